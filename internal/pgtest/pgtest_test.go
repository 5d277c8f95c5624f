package pgtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/servertest"
)

func TestServerLives(t *testing.T) {
	s := Own(t, TLS(), Setting("work_mem", "5MB"))
	ask := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c, err := s.Login(ctx, Superuser, s.Password(), "")
		if err != nil {
			return err
		}
		defer c.Close(context.Background())
		var mem, who string
		if err := c.QueryRow(ctx, "SELECT current_setting('work_mem'), current_user").Scan(&mem, &who); err != nil {
			return err
		}
		if mem != "5MB" || who != Superuser {
			t.Errorf("work_mem %s, user %s", mem, who)
		}
		return nil
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(ask())
	must(s.Pause())
	if ask() == nil {
		t.Error("a paused server answered")
	}
	must(s.Resume())
	must(ask())
	c, err := s.Login(t.Context(), Superuser, s.Password(), "")
	must(err)
	defer c.Close(context.Background())
	_, err = c.Exec(t.Context(), "CREATE ROLE somebody")
	must(err)
	must(s.Kill())
	if ask() == nil {
		t.Error("a killed server answered")
	}
	must(s.Up())
	must(ask())
	c, err = s.Login(t.Context(), Superuser, s.Password(), "")
	must(err)
	defer c.Close(context.Background())
	if _, err := c.Exec(t.Context(), "DROP ROLE somebody"); err != nil {
		t.Errorf("a killed server lost what it had committed: %v", err)
	}
	must(s.Down())
	if ask() == nil {
		t.Error("a stopped server answered")
	}
	must(s.Up())

	cfg, err := pgx.ParseConfig(strings.Replace(s.URL(Superuser, "x", "postgres"), "disable", "require", 1))
	must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CA)
	cfg.Password, cfg.TLSConfig = s.Password(), &tls.Config{RootCAs: roots, ServerName: "localhost"}
	c, err = pgx.ConnectConfig(t.Context(), cfg)
	must(err)
	c.Close(t.Context())

	s.Discard()
	if _, err := os.Stat(s.Dir); err == nil {
		t.Error("the folder was left behind")
	}
	if ask() == nil {
		t.Error("the server outlived its test")
	}
}

// A test process that panics, or is killed, leaves neither a server nor a folder.
func TestServerEndsWithItsProcess(t *testing.T) {
	servertest.EndsWithItsProcess(t, func(t testing.TB) *servertest.Daemon { return Start(t).Daemon })
}

// What was committed by the moment is there after RestoreTo, and nothing else.
func TestRestoreTo(t *testing.T) {
	s := Own(t, Archive())
	exec := func(sql string) {
		t.Helper()
		c, err := s.Login(t.Context(), Superuser, s.Password(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(t.Context())
		if _, err := c.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE TABLE kept (n int)")
	if err := s.BaseBackup(); err != nil {
		t.Fatal(err)
	}
	exec("INSERT INTO kept VALUES (1)")
	var at time.Time
	if err := s.Connect(t, "").QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&at); err != nil {
		t.Fatal(err)
	}
	exec("INSERT INTO kept VALUES (2)")
	if err := s.RestoreTo(at); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := s.Connect(t, "").QueryRow(t.Context(), "SELECT sum(n) FROM kept").Scan(&n); err != nil || n != 1 {
		t.Fatalf("%d, %v", n, err)
	}
	exec("INSERT INTO kept VALUES (3)") // it takes writes
}
