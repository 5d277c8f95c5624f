package lessorsql_test

import (
	"database/sql"
	"database/sql/driver"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/client/lessorsql"
	"github.com/lessor-dev/lessor/internal/mariatest"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/lessortest"
)

// Only a login that was refused is a reason to ask lessor whether there is another credential by now: a database that is away, or does not let anybody in, is
// none.
func TestLessorIsAskedAfterARefusalOnly(t *testing.T) {
	t.Parallel()
	server := lessortest.Start(t)
	server.Write("secret/data/db", map[string]any{"data": map[string]any{"password": "wrong"}})
	at, err := url.Parse(server.Address)
	if err != nil {
		t.Fatal(err)
	}
	var reads atomic.Int64
	proxy := httputil.NewSingleHostReverseProxy(at)
	front := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/secret/") {
			reads.Add(1)
		}
		proxy.ServeHTTP(w, r)
	})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = front.Serve(listener) }()
	t.Cleanup(func() { _ = front.Close() })
	c, err := client.New(client.Config{Address: "http://" + listener.Addr().String(), Token: server.Root})
	if err != nil {
		t.Fatal(err)
	}
	session, err := client.Open(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Leave)
	secret, err := session.Secret(t.Context(), "secret/data/db")
	if err != nil {
		t.Fatal(err)
	}

	pg, maria := pgtest.Start(t), mariatest.Start(t)
	closed, shut := pg.Database(t), pg.Connect(t, "")
	if _, err := shut.Exec(t.Context(), "ALTER DATABASE "+closed+" ALLOW_CONNECTIONS false"); err != nil {
		t.Fatal(err)
	}
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nowhere := nobody.Addr().String()
	_ = nobody.Close()
	postgres := func(url string) driver.Connector {
		config, err := pgx.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		return stdlib.GetConnector(*config)
	}
	mariadb := func(address, user, password, database string) driver.Connector {
		config := mysql.NewConfig()
		config.Logger = log.New(io.Discard, "", 0)
		config.Net, config.Addr, config.User, config.Passwd, config.DBName = "tcp", address, user, password, database
		connector, err := mysql.NewConnector(config)
		if err != nil {
			t.Fatal(err)
		}
		return connector
	}
	for _, c := range []struct {
		what  string
		to    driver.Connector
		asked bool
	}{
		{"a PostgreSQL that is not there", postgres("postgres://app:wrong@" + nowhere + "/app?sslmode=disable"), false},
		{"a PostgreSQL that lets nobody in", postgres(pg.URL(pgtest.Superuser, pg.Password(), closed)), false},
		{"a PostgreSQL that refuses the login", postgres(pg.URL("nobody", "wrong", "postgres")), true},
		{"a MariaDB that is not there", mariadb(nowhere, "app", "wrong", ""), false},
		{"a MariaDB without the database", mariadb(maria.Address(), mariatest.Superuser, maria.Password(), "nowhere"), false},
		{"a MariaDB that refuses the login", mariadb(maria.Address(), "nobody", "wrong", ""), true},
	} {
		connector, err := lessorsql.New(secret, func(client.Value) (driver.Connector, error) { return c.to, nil })
		if err != nil {
			t.Fatal(err)
		}
		db, before := sql.OpenDB(connector), reads.Load()
		if err := db.PingContext(t.Context()); err == nil {
			t.Errorf("%s: it let us in", c.what)
		}
		if asked := reads.Load() > before; asked != c.asked {
			t.Errorf("%s: lessor was asked: %v", c.what, asked)
		}
		_ = db.Close()
	}
}
