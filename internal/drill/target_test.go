package drill

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/client/lessorpgx"
	"github.com/lessor-dev/lessor/client/lessorredis"
	"github.com/lessor-dev/lessor/client/lessorsql"
	"github.com/lessor-dev/lessor/internal/mariatest"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/redistest"
)

// accounts are the two that take turns at each target.
var accounts = [2]string{"turn_a", "turn_b"}

// target is a real server at which passwords are rotated, and what lessor says to it.
type target struct {
	address    string
	connection func(address string) map[string]any       // that lessor is configured with, over the wire
	sets       func(account string) string               // what lessor says when it changes an account's password
	enters     func(account string) string               // and when it logs in as one
	login      func(ctx context.Context, l login) error  // nil: the target accepts it
	pool       func(t *testing.T, s *client.Secret) pool // of connections that log in with a secret, by the Go client
	accounts   func() string                             // that there are, and how many passwords each takes
	url        func(username, password string) string    // which both go into as they are; for open
}

// targets are the servers, each with two accounts that take turns.
var targets = map[string]func(*testing.T) *target{"postgresql": postgresql, "mariadb": mariadb, "redis": redisServer}

// pool is what a service queries over.
type pool interface {
	query(ctx context.Context) error
	close()
}

type login struct{ username, password string }

func loginOf(v client.Value) login {
	username, _ := v.Field("username")
	password, _ := v.Field("password")
	return login{username, password}
}

// open is a pool of connections that log in as a URL says for ever: what a program has that knows nothing of lessor.
func open(address string) (pool, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("the URL cannot be parsed")
	}
	password, _ := u.User.Password()
	switch u.Scheme {
	case "postgres":
		config, err := pgxpool.ParseConfig(address)
		if err != nil {
			return nil, err
		}
		config.MaxConns, config.MaxConnLifetime, config.MaxConnLifetimeJitter = connections, lifetime(), lifetime()/2
		p, err := pgxpool.NewWithConfig(context.Background(), config)
		if err != nil {
			return nil, err
		}
		return pgPool{p}, nil
	case "mysql":
		c, err := mysql.NewConnector(mysqlConfig(u.Host, login{u.User.Username(), password}))
		if err != nil {
			return nil, err
		}
		return newSQLPool(c), nil
	case "redis":
		o := redisOptions(u.Host)
		o.Username, o.Password = u.User.Username(), password
		return redisPool{redis.NewClient(o)}, nil
	}
	return nil, fmt.Errorf("nobody knows what %q is", u.Scheme)
}

func postgresql(t *testing.T) *target {
	pg := pgtest.Own(t, pgtest.Setting("max_connections", "300"))
	database := pg.Database(t)
	root := pg.Connect(t, database)
	for _, name := range accounts {
		if _, err := root.Exec(t.Context(), "CREATE ROLE "+name+" LOGIN"); err != nil {
			t.Fatal(err)
		}
	}
	return &target{
		address: fmt.Sprintf("%s:%d", pg.Host, pg.Port),
		connection: func(address string) map[string]any {
			template := strings.Replace(pg.URL("{{username}}", "{{password}}", database), fmt.Sprintf("%s:%d", pg.Host, pg.Port), address, 1)
			template = strings.NewReplacer("%7B", "{", "%7D", "}").Replace(template)
			return map[string]any{"plugin_name": "postgresql-database-plugin", "connection_url": template, "username": pgtest.Superuser, "password": pg.Password()}
		},
		sets:   func(account string) string { return `ALTER ROLE "` + account + `" WITH PASSWORD` },
		enters: func(account string) string { return "user\x00" + account + "\x00" },
		login: func(ctx context.Context, l login) error {
			c, err := pg.Login(ctx, l.username, l.password, database)
			if err == nil {
				_ = c.Close(ctx)
			}
			return err
		},
		pool: func(t *testing.T, s *client.Secret) pool {
			config, err := pgxpool.ParseConfig(pg.URL("nobody", "none", database))
			if err != nil {
				t.Fatal(err)
			}
			config.MaxConns, config.MaxConnLifetime, config.MaxConnLifetimeJitter = connections, lifetime(), lifetime()/2
			p, err := lessorpgx.NewPool(context.Background(), config, s)
			if err != nil {
				t.Fatal(err)
			}
			return lessorPool{p}
		},
		url: func(username, password string) string {
			return fmt.Sprintf("postgres://%s:%s@%s:%d/%s", username, password, pg.Host, pg.Port, database)
		},
		accounts: func() (all string) {
			if err := root.QueryRow(context.Background(), "SELECT string_agg(rolname || ' ' || rolcanlogin, ', ' ORDER BY rolname) FROM pg_roles").Scan(&all); err != nil {
				t.Fatal(err)
			}
			return all
		},
	}
}

type pgPool struct{ *pgxpool.Pool }

func (p pgPool) query(ctx context.Context) error {
	_, err := p.Exec(ctx, "SELECT 1")
	return err
}

func (p pgPool) close() { p.Close() }

type lessorPool struct{ *lessorpgx.Pool }

func (p lessorPool) query(ctx context.Context) error {
	_, err := p.Exec(ctx, "SELECT 1")
	return err
}

func (p lessorPool) close() { p.Close() }

func mariadb(t *testing.T) *target {
	maria := mariatest.Own(t, mariatest.Setting("max_connections", "300"))
	root := maria.Connect(t, "")
	for _, name := range accounts {
		if _, err := root.ExecContext(context.Background(), "CREATE USER "+name+"@'%'"); err != nil {
			t.Fatal(err)
		}
	}
	return &target{
		address: maria.Address(),
		connection: func(address string) map[string]any {
			return map[string]any{"plugin_name": "mysql-database-plugin", "connection_url": "{{username}}:{{password}}@tcp(" + address + ")/?tls=false", "username": mariatest.Superuser, "password": maria.Password()}
		},
		sets:   func(account string) string { return "ALTER USER '" + account + "'@" },
		enters: func(account string) string { return account + "\x00" },
		login: func(ctx context.Context, l login) error {
			c, err := maria.Login(ctx, l.username, l.password, "")
			if err == nil {
				_ = c.Close()
			}
			return err
		},
		pool: func(t *testing.T, s *client.Secret) pool {
			c, err := lessorsql.New(s, func(v client.Value) (driver.Connector, error) {
				return mysql.NewConnector(mysqlConfig(maria.Address(), loginOf(v)))
			})
			if err != nil {
				t.Fatal(err)
			}
			return newSQLPool(c)
		},
		url: func(username, password string) string {
			return "mysql://" + username + ":" + password + "@" + maria.Address()
		},
		accounts: func() (all string) {
			const query = "SELECT GROUP_CONCAT(CONCAT(user, '@', host) ORDER BY user, host) FROM mysql.user"
			if err := root.QueryRowContext(context.Background(), query).Scan(&all); err != nil {
				t.Fatal(err)
			}
			return all
		},
	}
}

func mysqlConfig(address string, l login) *mysql.Config {
	c := mysql.NewConfig()
	c.Net, c.Addr, c.User, c.Passwd, c.Logger = "tcp", address, l.username, l.password, &mysql.NopLogger{}
	return c
}

type sqlPool struct{ *sql.DB }

func newSQLPool(c driver.Connector) sqlPool {
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	db.SetConnMaxLifetime(lifetime())
	return sqlPool{db}
}

func (p sqlPool) query(ctx context.Context) error {
	_, err := p.ExecContext(ctx, "SELECT 1")
	return err
}

func (p sqlPool) close() { _ = p.Close() }

func redisServer(t *testing.T) *target {
	logging.Disable() // of each connection that it moves
	server := redistest.Own(t)
	admin := server.Connect(t)
	for _, name := range accounts {
		if err := admin.Do(t.Context(), "ACL", "SETUSER", name, "reset", "on", ">"+name, "~*", "+@all").Err(); err != nil {
			t.Fatal(err)
		}
	}
	return &target{
		address: server.Addr(),
		connection: func(address string) map[string]any {
			host, port, _ := strings.Cut(address, ":")
			return map[string]any{"plugin_name": "redis-database-plugin", "host": host, "port": port, "username": redistest.Admin, "password": server.Password()}
		},
		sets:   func(account string) string { return fmt.Sprintf("SETUSER\r\n$%d\r\n%s\r\n", len(account), account) },
		enters: func(account string) string { return fmt.Sprintf("$4\r\nauth\r\n$%d\r\n%s\r\n", len(account), account) },
		login: func(ctx context.Context, l login) error {
			c := server.Client(l.username, l.password)
			defer c.Close()
			return c.Ping(ctx).Err()
		},
		pool: func(_ *testing.T, s *client.Secret) pool {
			// lessor sees at the server who uses the old password still: a command that takes longer is waited for all the same.
			return redisPool{lessorredis.NewClient(s, redisOptions(server.Addr()), lessorredis.WithGrace(200*time.Millisecond))}
		},
		url: func(username, password string) string {
			return "redis://" + username + ":" + password + "@" + server.Addr()
		},
		accounts: func() string {
			names, err := admin.Do(context.Background(), "ACL", "USERS").StringSlice()
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, name := range names {
				user, err := admin.Do(context.Background(), "ACL", "GETUSER", name).Slice()
				if err != nil {
					t.Fatal(err)
				}
				passwords := user[slices.Index(user, any("passwords"))+1].([]any)
				all = append(all, fmt.Sprintf("%s with %d", name, len(passwords)))
			}
			slices.Sort(all)
			return strings.Join(all, ", ")
		},
	}
}

func redisOptions(address string) *redis.Options {
	return &redis.Options{Addr: address, Protocol: 2, DisableIdentity: true, PoolSize: connections, ConnMaxLifetime: lifetime(), MaxRetries: -1}
}

type redisPool struct{ redis.UniversalClient }

func (p redisPool) query(ctx context.Context) error { return p.Ping(ctx).Err() }

func (p redisPool) close() { _ = p.Close() }
