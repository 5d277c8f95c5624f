// Package site is for tests of what uses secrets: a lessor server, and a database whose accounts it looks after, both real.
package site

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/lessortest"
)

// Patience is how long a test waits for what must happen.
const Patience = time.Minute

// Site is a lessor server, the database that it looks after, and who administrates both.
type Site struct {
	*testing.T
	*lessortest.Server
	PG       *pgtest.Server
	Database string
}

// New starts both; the database is a PostgreSQL.
func New(t *testing.T) *Site {
	t.Helper()
	pg := pgtest.Start(t)
	database := pg.Database(t)
	s := Over(t, map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": pg.URL("{{username}}", "{{password}}", database),
		"username": pgtest.Superuser, "password": pg.Password(),
	})
	s.PG, s.Database = pg, database
	return s
}

// Over starts lessor over a database that is there, to which it connects as connection says.
func Over(t *testing.T, connection map[string]any) *Site {
	t.Helper()
	s := &Site{T: t, Server: lessortest.Start(t)}
	s.Write("sys/mounts/database", map[string]any{"type": "database"})
	connection["allowed_roles"] = "*"
	s.Write("database/config/db", connection)
	return s
}

// Dynamic makes a role for accounts that last so long.
func (s *Site) Dynamic(ttl, most time.Duration) string {
	s.Helper()
	s.Server.Write("database/roles/app", map[string]any{
		"db_name": "db", "default_ttl": ttl.String(), "max_ttl": most.String(),
		"creation_statements": []string{`CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE pg_read_all_data`},
	})
	return "database/creds/app"
}

// Static makes a role over two accounts that take turns, or over one.
func (s *Site) Static(users ...string) string {
	s.Helper()
	admin := s.PG.Connect(s.T, s.Database)
	var names []string
	for _, user := range users {
		name := user + "_" + strings.TrimPrefix(s.Database, "test_") // accounts are the server's, not the database's
		if _, err := admin.Exec(s.Context(), "CREATE ROLE "+name+" WITH LOGIN IN ROLE pg_read_all_data"); err != nil {
			s.Fatal(err)
		}
		names = append(names, name)
	}
	return s.Managed(names...)
}

// Managed makes a role over accounts that exist: two that take turns, or one.
func (s *Site) Managed(names ...string) string {
	s.Helper()
	role := map[string]any{"db_name": "db", "rotation_period": "24h", "usernames": names}
	if len(names) == 1 {
		delete(role, "usernames")
		role["username"] = names[0]
	}
	s.Server.Write("database/static-roles/app", role)
	return "database/static-creds/app"
}

// Rotate rotates the static role, and waits until the rotation is over: everybody has moved, and the old password is dead.
func (s *Site) Rotate() {
	s.Helper()
	s.Server.Write("database/rotate-role/app", nil)
	s.Eventually("the rotation is over", func() bool { return s.Step() == "idle" })
}

// Step is how far the rotation of the static role is.
func (s *Site) Step() string {
	s.Helper()
	step, _ := s.Read("sys/lessor/rotation/status/database/static-creds/app").Data["step"].(string)
	return step
}

// Secret opens a secret in a session that may do nothing else, and ends with the test.
func (s *Site) Secret(path string) *client.Secret {
	s.Helper()
	s.Policy("app", `path "`+path+`" { capabilities = ["read"] }`)
	session, err := client.Open(s.Context(), s.As("app"), nil)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := session.Close(context.Background()); err != nil {
			s.Errorf("closing the session: %v", err)
		}
	})
	secret, err := session.Secret(s.Context(), path)
	if err != nil {
		s.Fatal(err)
	}
	return secret
}

// Await waits for the value after v, and until the older ones are out of use, and the server knows.
func (s *Site) Await(secret *client.Secret, v client.Value) client.Value {
	s.Helper()
	select {
	case <-secret.Changed(v):
	case <-time.After(Patience):
		s.Fatalf("%s did not change within %v: %+v", v.Path, Patience, secret.Status())
	}
	s.Eventually("nothing older is in use", secret.Settled)
	return secret.Value()
}

// Eventually waits until a condition holds.
func (s *Site) Eventually(what string, holds func() bool) {
	s.Helper()
	for deadline := time.Now().Add(Patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("not within %v: %s", Patience, what)
		}
	}
}

// Load keeps so many busy with f until the function that it returns is called, which reports how often f was done. No call may fail.
func (s *Site) Load(workers int, f func(context.Context) error) (stop func() uint64) {
	s.Helper()
	end := s.Busy(workers, f)
	return func() uint64 {
		s.Helper()
		calls, err := end()
		if err != nil {
			s.Errorf("a query failed: %v", err)
		}
		return calls
	}
}

// Busy keeps so many busy with f until the function that it returns is called, which reports how often f was done, and the first error.
func (s *Site) Busy(workers int, f func(context.Context) error) (stop func() (calls uint64, err error)) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var calls atomic.Uint64
	var failure atomic.Pointer[error]
	for range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := f(context.WithoutCancel(ctx)); err != nil {
					failure.CompareAndSwap(nil, &err)
				}
				calls.Add(1)
			}
		})
	}
	stop = sync.OnceValues(func() (uint64, error) {
		cancel()
		all.Wait()
		if first := failure.Load(); first != nil {
			return calls.Load(), *first
		}
		return calls.Load(), nil
	})
	s.Cleanup(func() { _, _ = stop() })
	return stop
}

// Leases has f try how consumers move from one dynamic credential to the next, with leases of six seconds; with longer ones where a machine is so slow that an account ended
// before they had moved, which f's error says.
func (s *Site) Leases(f func(lease time.Duration) error) {
	s.Helper()
	for lease := 6 * time.Second; ; lease *= 2 {
		err := f(lease)
		var refused *pgconn.PgError
		switch {
		case err == nil:
			return
		case lease < Patience/2 && errors.As(err, &refused) && (refused.Code == "57P01" || strings.HasPrefix(refused.Code, "28")): // cut off, or not let in
			s.Logf("leases of %s: %v", lease, err)
		default:
			s.Fatalf("a query failed: %v", err)
		}
	}
}
