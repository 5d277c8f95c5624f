package lessorsql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"log"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/client/lessorsql"
	"github.com/lessor-dev/lessor/internal/mariatest"
	"github.com/lessor-dev/lessor/internal/site"
)

// With another driver, and another database: a pool under load goes through rotations of two accounts without a query that fails.
func TestPoolMovesThroughRotationsOfMariaDB(t *testing.T) {
	t.Parallel()
	maria := mariatest.Start(t)
	admin := maria.Connect(t, "")
	for _, statement := range []string{"CREATE USER blue@'%'", "CREATE USER green@'%'"} {
		if _, err := admin.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	s := site.Over(t, map[string]any{
		"plugin_name": "mysql-database-plugin", "connection_url": maria.URL("{{username}}", "{{password}}"),
		"username": mariatest.Superuser, "password": maria.Password(),
	})
	secret := s.Secret(s.Managed("blue", "green"))
	connector, err := lessorsql.New(secret, func(v client.Value) (driver.Connector, error) {
		config := mysql.NewConfig()
		config.Net, config.Addr, config.Logger = "tcp", maria.Address(), log.New(io.Discard, "", 0)
		config.User, _ = v.Field("username")
		config.Passwd, _ = v.Field("password")
		return mysql.NewConnector(config)
	})
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer func() { _ = db.Close() }()
	db.SetMaxIdleConns(10)
	stop := s.Load(10, func(ctx context.Context) error {
		var user string
		return db.QueryRowContext(ctx, "SELECT current_user() FROM (SELECT sleep(?)) AS s", 0.002).Scan(&user)
	})
	for range 2 {
		v := secret.Value()
		s.Rotate()
		if secret.Value().Serial == v.Serial {
			t.Error("the rotation was over before the pool heard of it")
		}
	}
	if calls := stop(); calls < 100 {
		t.Errorf("%d queries", calls)
	}
}
