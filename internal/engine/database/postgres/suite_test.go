package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/drivertest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

type client struct{ *pgx.Conn }

func (c client) Works() bool { return c.Ping(context.Background()) == nil }

func (c client) Close() { _ = c.Conn.Close(context.Background()) }

func TestDriver(t *testing.T) {
	t.Run("hashes", func(t *testing.T) { drivertest.Run(t, at(t, pgtest.Start(t), "")) })
	t.Run("plain", func(t *testing.T) { drivertest.Run(t, at(t, pgtest.Start(t), plain), "passwords", "broken statements") })
}

// at is a server, where passwords are sent as the connection says.
func at(t *testing.T, s *pgtest.Server, authentication string) *drivertest.Target {
	db := s.Database(t)
	root := s.Connect(t, db)
	quoted := func(name string) string { return pgx.Identifier{name}.Sanitize() }
	address := net.JoinHostPort(s.Host, fmt.Sprint(s.Port))
	return &drivertest.Target{
		Driver: Driver{},
		Connection: database.Connection{
			URL: s.URL("{{username}}", "{{password}}", db), Username: pgtest.Superuser, ScramIterations: 1, Authentication: authentication,
		},
		Secrets:  database.Secrets{Password: lessor.NewSecret(s.Password())},
		Address:  address,
		Through:  func(c *database.Connection, other string) { c.URL = strings.Replace(c.URL, address, other, 1) },
		Creation: []string{`CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`},
		Broken: map[string]string{
			`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}'; SELECT 1/0`: "division by zero (SQLSTATE 22012)",
			`SELECT '{{name}}'`: "does not exist (SQLSTATE 42704)",
			`CREATE ROLE "{{name}}" PASSWORD '{{password}}' 'X{{password}}'`: "42601",
		},
		Has: func(t testing.TB, username string) (has bool) {
			t.Helper()
			if err := root.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", username).Scan(&has); err != nil {
				t.Fatal(err)
			}
			return has
		},
		Person: func(username, password string) error {
			_, err := root.Exec(t.Context(), fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", quoted(username), password))
			return err
		},
		Onlooker: func(username, password string) error {
			_, err := root.Exec(t.Context(), fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", quoted(username), password))
			return err
		},
		Drop: func(username string) { _, _ = root.Exec(context.Background(), "DROP ROLE IF EXISTS "+quoted(username)) },
		Session: func(username, password string) (drivertest.Client, error) {
			c, err := s.Login(t.Context(), username, password, db)
			if refused := (*pgconn.PgError)(nil); errors.As(err, &refused) && refused.Code == "28P01" {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			return client{c}, nil
		},
	}
}
