package lessorsql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/client/lessorsql"
	"github.com/lessor-dev/lessor/internal/site"
)

func dialer(s *site.Site, v client.Value) (driver.Connector, error) {
	config, err := pgx.ParseConfig(fmt.Sprintf("postgres://%s:%d/%s?sslmode=disable", s.PG.Host, s.PG.Port, s.Database))
	if err != nil {
		return nil, err
	}
	config.User, _ = v.Field("username")
	config.Password, _ = v.Field("password")
	return stdlib.GetConnector(*config), nil
}

func open(s *site.Site, secret *client.Secret) *sql.DB {
	s.Helper()
	connector, err := lessorsql.New(secret, func(v client.Value) (driver.Connector, error) {
		return dialer(s, v)
	})
	if err != nil {
		s.Fatal(err)
	}
	db := sql.OpenDB(connector)
	s.Cleanup(func() {
		if err := db.Close(); err != nil {
			s.Errorf("closing the pool: %v", err)
		}
	})
	return db
}

// A pool under load goes through one credential after the other, without a query that fails.
func TestPoolOfDynamicCredentials(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	s.Leases(func(lease time.Duration) error {
		secret := s.Secret(s.Dynamic(lease, lease))
		db := open(s, secret)
		db.SetMaxOpenConns(20)
		db.SetMaxIdleConns(20)
		stop := s.Busy(20, func(ctx context.Context) error {
			tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
			if err != nil {
				return err
			}
			var user string
			return errors.Join(tx.QueryRowContext(ctx, "SELECT current_user FROM pg_sleep($1)", 0.002).Scan(&user), tx.Commit())
		})
		now := s.Await(secret, secret.Value())
		calls, err := stop()
		if calls < 100 {
			t.Errorf("%d queries", calls)
		}
		if err != nil {
			return err
		}
		var user string
		if err := db.QueryRow("SELECT current_user").Scan(&user); err != nil {
			return err
		}
		if newest, _ := now.Field("username"); user != newest {
			t.Errorf("logged in as %s, not %s", user, newest)
		}
		return nil
	})
}

// A connection in use stays, an idle one is closed without anybody's asking for it.
func TestPoolInterruptsNobody(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	secret := s.Secret(s.Static("one"))
	db := open(s, secret)
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Ping(); err != nil { // the second connection, which is idle then
		t.Fatal(err)
	}
	v := secret.Value()
	s.Write("database/rotate-role/app", nil)
	if now, err := secret.Refresh(t.Context(), v); err != nil || now.Serial == v.Serial {
		t.Fatalf("%d, %v", now.Serial, err)
	}
	admin := s.PG.Connect(t, "")
	sessions := func() (n int) {
		if err := admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND usename LIKE 'one%'", s.Database).Scan(&n); err != nil {
			t.Error(err)
		}
		return n
	}
	s.Eventually("the idle connection is closed", func() bool { return sessions() == 1 })
	if secret.Settled() {
		t.Error("the old password counts as out of use while a connection has it")
	}
	if _, err := tx.Exec("SELECT 1"); err != nil {
		t.Errorf("the connection in use: %v", err)
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
	s.Eventually("nothing older is in use", secret.Settled)
	if err := db.Ping(); err != nil {
		t.Errorf("with the new password: %v", err)
	}
}

// slow is a driver's connector whose connections are handed over only when the pool is told to go on.
type slow struct {
	driver.Connector
	made, hand chan struct{}
}

func (s slow) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := s.Connector.Connect(ctx)
	s.made <- struct{}{}
	<-s.hand
	return c, err
}

// A connection that was being made while its password was rotated does not lie in the pool with the old one: whoever asked for it has gone, and nobody
// may use it for long.
func TestPoolKeepsNothingThatWasBeingMade(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	secret := s.Secret(s.Static("one"))
	made, hand := make(chan struct{}, 9), make(chan struct{})
	connector, err := lessorsql.New(secret, func(v client.Value) (driver.Connector, error) {
		inner, err := dialer(s, v)
		return slow{inner, made, hand}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	v := secret.Value()
	db.SetMaxOpenConns(1)
	go func() { hand <- struct{}{} }()
	first, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-made
	asking, leave := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() { asked <- db.PingContext(asking) }()
	s.Eventually("somebody waits for a connection", func() bool { return db.Stats().WaitCount == 1 })
	if err := first.Raw(func(any) error { return driver.ErrBadConn }); !errors.Is(err, driver.ErrBadConn) { // so the pool makes another
		t.Fatal(err)
	}
	<-made
	leave()
	if err := <-asked; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	s.Write("database/rotate-role/app", nil)
	now, err := secret.Refresh(t.Context(), v)
	if err != nil || now.Serial == v.Serial {
		t.Fatalf("%d, %v", now.Serial, err)
	}
	s.Eventually("the pool has heard of it", func() bool { return connector.Newest() == now.Serial })
	close(hand)
	s.Eventually("nothing older is in use", secret.Settled)
}

// A login that fails because of a rotation of a moment ago is tried once more; one that fails otherwise is an error.
func TestPoolTriesAgainAfterARotation(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	secret := s.Secret(s.Static("one"))
	db := open(s, secret)
	s.Write("database/rotate-role/app", nil)
	if err := db.Ping(); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
	if _, err := s.PG.Connect(t, "").Exec(t.Context(), "ALTER DATABASE "+s.Database+" ALLOW_CONNECTIONS false"); err != nil {
		t.Fatal(err)
	}
	secret.Adopt(secret.Value())
	db.SetMaxIdleConns(0)
	if err := db.Ping(); err == nil {
		t.Error("a database that takes no connections is reached")
	}
}
