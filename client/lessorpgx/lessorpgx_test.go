package lessorpgx_test

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/client/lessorpgx"
	"github.com/lessor-dev/lessor/internal/site"
)

func newPool(s *site.Site, secret *client.Secret, most int) *lessorpgx.Pool {
	s.Helper()
	config, err := pgxpool.ParseConfig(fmt.Sprintf("postgres://%s:%d/%s?sslmode=disable&pool_max_conns=%d", s.PG.Host, s.PG.Port, url.PathEscape(s.Database), most))
	if err != nil {
		s.Fatal(err)
	}
	pool, err := lessorpgx.NewPool(s.Context(), config, secret)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(pool.Close)
	return pool
}

// A pool under load goes through one credential after the other, without a query that fails, and what is out of use is gone.
func TestPoolOfDynamicCredentials(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	users := map[string]bool{}
	s.Leases(func(lease time.Duration) error {
		secret := s.Secret(s.Dynamic(lease, lease))
		pool := newPool(s, secret, 20)
		stop := s.Busy(20, func(ctx context.Context) error {
			var user string
			return pool.QueryRow(ctx, "SELECT current_user FROM pg_sleep(0.002)").Scan(&user)
		})
		clear(users)
		v := secret.Value()
		for range 2 {
			user, _ := v.Field("username")
			users[user] = true
			v = s.Await(secret, v)
		}
		calls, err := stop()
		if calls < 100 || len(users) != 2 {
			t.Errorf("%d queries as %d users", calls, len(users))
		}
		return err
	})
	admin := s.PG.Connect(t, "")
	for user := range users {
		s.Eventually("the account "+user+" is gone", func() bool {
			var n int
			return admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname = $1", user).Scan(&n) == nil && n == 0
		})
	}
}

// Nobody's query is cut off: a connection that is in use keeps its credential in use.
func TestPoolInterruptsNobody(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	secret := s.Secret(s.Static("one"))
	pool := newPool(s, secret, 2)
	c, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	if err := pool.Ping(t.Context()); err != nil { // the second connection, which is idle then
		t.Fatal(err)
	}
	v := secret.Value()
	s.Write("database/rotate-role/app", nil)
	if now, err := secret.Refresh(t.Context(), v); err != nil || now.Serial == v.Serial {
		t.Fatalf("%d, %v", now.Serial, err)
	}
	s.Eventually("the idle connection is closed", func() bool { return pool.Stat().TotalConns() == 1 })
	if secret.Settled() {
		t.Error("the old password counts as out of use while a connection has it")
	}
	if _, err := c.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Errorf("the connection in use: %v", err)
	}
	c.Release()
	s.Eventually("nothing older is in use", secret.Settled)
}

// A login that fails because of a rotation of a moment ago is tried once more.
func TestPoolTriesAgainAfterARotation(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	secret := s.Secret(s.Static("one"))
	pool := newPool(s, secret, 2)
	for name, use := range map[string]func() error{
		"QueryRow": func() error { var n int; return pool.QueryRow(t.Context(), "SELECT 1").Scan(&n) },
		"Exec":     func() error { _, err := pool.Exec(t.Context(), "SELECT 1"); return err },
		"Begin": func() error {
			tx, err := pool.Begin(t.Context())
			if err != nil {
				return err
			}
			return tx.Commit(t.Context())
		},
	} {
		s.Write("database/rotate-role/app", nil)
		pool.Reset()
		if err := use(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who closes a secret leaves no account behind, though its lease had long to go and its policies let it revoke nothing.
func TestClosedSecretLeavesNoAccount(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	secret := s.Secret(s.Dynamic(time.Hour, time.Hour))
	pool := newPool(s, secret, 2)
	if err := pool.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	user, _ := secret.Value().Field("username")
	pool.Close()
	if err := secret.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	admin := s.PG.Connect(t, "")
	s.Eventually("the account is gone", func() bool {
		var n int
		return admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname = $1", user).Scan(&n) == nil && n == 0
	})
}

// A dynamic credential ends with the token that it was asked for with: before that, session and pool have others.
func TestPoolOutlivesItsToken(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	path := s.Dynamic(time.Hour, time.Hour)
	s.Policy("app", `path "`+path+`" { capabilities = ["read"] }`)
	s.Write("sys/auth/approle", map[string]any{"type": "approle"})
	s.Write("auth/approle/role/app", map[string]any{"token_policies": "app", "token_ttl": "6s", "token_max_ttl": "6s", "bind_secret_id": false, "token_bound_cidrs": "127.0.0.1/32"})
	id, _ := s.Read("auth/approle/role/app/role-id").Data["role_id"].(string)
	session, err := client.Open(t.Context(), s.Client().WithToken(client.Token{}), &client.AppRole{RoleID: id})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := session.Close(context.Background()); err != nil {
			t.Errorf("closing the session: %v", err)
		}
	}()
	secret, err := session.Secret(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	pool := newPool(s, secret, 2)
	defer pool.Close()
	if err := pool.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	v, token := secret.Value(), session.Client().Token()
	s.Await(secret, v)
	if session.Client().Token() == token {
		t.Error("it was replaced though the token is the same")
	}
	if err := pool.Ping(t.Context()); err != nil {
		t.Errorf("with the second credential: %v", err)
	}
}
