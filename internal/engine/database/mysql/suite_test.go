package mysql

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	library "github.com/go-sql-driver/mysql"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/drivertest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mariatest"
)

type client struct{ *mariatest.Session }

func (c client) Works() bool {
	_, err := c.ExecContext(context.Background(), "SELECT 1")
	return err == nil
}

func (c client) Close() { _ = c.Session.Close() }

func TestDriver(t *testing.T) {
	t.Run("hashes", func(t *testing.T) { drivertest.Run(t, at(t, mariatest.Start(t), "")) })
	t.Run("plain", func(t *testing.T) {
		drivertest.Run(t, at(t, mariatest.Start(t), plain), "passwords", "broken statements")
	})
}

// at is a server, where passwords are sent as the connection says.
func at(t *testing.T, s *mariatest.Server, authentication string) *drivertest.Target {
	root := s.Connect(t, "")
	return &drivertest.Target{
		Driver:     usual,
		Connection: database.Connection{URL: s.URL("{{username}}", "{{password}}"), Username: mariatest.Superuser, Authentication: authentication},
		Secrets:    database.Secrets{Password: lessor.NewSecret(s.Password())},
		Address:    s.Address(),
		Through:    func(c *database.Connection, address string) { c.URL = strings.Replace(c.URL, s.Address(), address, 1) },
		Creation:   []string{`CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'`},
		Broken: map[string]string{
			`CREATE USER '{{name}}' IDENTIFIED BY '{{password}}'; SELECT * FROM mysql.nothing`: "doesn't exist (error 1146)",
			`SELECT '{{name}}'`: "made no account",
			`CREATE USER '{{name}}' IDENTIFIED BY '{{password}}' 'X{{password}}'`: "(error 1064)",
		},
		Has: func(t testing.TB, username string) bool {
			t.Helper()
			var n int
			if err := root.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM mysql.user WHERE User="+text(username)).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n > 0
		},
		Person: func(username, password string) error {
			return execute(t.Context(), root, "CREATE USER "+text(username)+" IDENTIFIED BY "+text(password))
		},
		Onlooker: func(username, password string) error {
			return errors.Join(execute(t.Context(), root, "CREATE USER "+text(username)+" IDENTIFIED BY "+text(password)),
				execute(t.Context(), root, "GRANT SELECT ON *.* TO "+text(username)), execute(t.Context(), root, "GRANT PROCESS ON *.* TO "+text(username)))
		},
		Drop: func(username string) { _ = execute(context.Background(), root, "DROP USER IF EXISTS "+text(username)) },
		Session: func(username, password string) (drivertest.Client, error) {
			c, err := s.Login(t.Context(), username, password, "")
			if refused := (*library.MySQLError)(nil); errors.As(err, &refused) && refused.Number == 1045 {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			return client{c}, nil
		},
	}
}

func execute(ctx context.Context, c *sql.Conn, statement string) error {
	_, err := c.ExecContext(ctx, statement)
	return err
}
