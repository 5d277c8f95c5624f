package drill

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/client/lessorpgx"
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
	pool       func(t *testing.T, s *client.Secret) pool // of connections that log in with a secret
	others     func() int                                // accounts that there are
	fixed      func(l login) pool                        // of connections that log in so for ever
	url        func(username, password string) string
}

// pool is what a service queries over.
type pool interface {
	query(ctx context.Context) error
	close()
}

type login struct{ username, password string }

// connections is how many a service has open.
const connections = 50

// lifetime is how old they become: so that the password counts all the time.
const lifetime = time.Second

func postgresql(t *testing.T) *target {
	pg := pgtest.Start(t, pgtest.Setting("max_connections", "300"))
	database := pg.Database(t)
	root := pg.Connect(t, database)
	for _, name := range accounts {
		run(t, root, fmt.Sprintf("DROP ROLE IF EXISTS %s", name))
		run(t, root, fmt.Sprintf("CREATE ROLE %s LOGIN", name))
		t.Cleanup(func() { _, _ = root.Exec(context.Background(), "DROP ROLE "+name) })
	}
	return &target{
		address: fmt.Sprintf("%s:%d", pg.Host, pg.Port),
		connection: func(address string) map[string]any {
			url := strings.Replace(pg.URL("{{username}}", "{{password}}", database), fmt.Sprintf("%s:%d", pg.Host, pg.Port), address, 1)
			url = strings.NewReplacer("%7B", "{", "%7D", "}").Replace(url)
			return map[string]any{"plugin_name": "postgresql-database-plugin", "connection_url": url, "username": pgtest.Superuser, "password": pg.Password()}
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
			config.MaxConns, config.MaxConnLifetime = connections, lifetime
			config.MaxConnLifetimeJitter = lifetime / 2
			p, err := lessorpgx.NewPool(context.Background(), config, s)
			if err != nil {
				t.Fatal(err)
			}
			return pgPool{p}
		},
		fixed: func(l login) pool {
			config, err := pgxpool.ParseConfig(pg.URL(l.username, l.password, database))
			if err != nil {
				t.Fatal(err)
			}
			config.MaxConns, config.MaxConnLifetime = connections, lifetime
			p, err := pgxpool.NewWithConfig(context.Background(), config)
			if err != nil {
				t.Fatal(err)
			}
			return fixedPool{p}
		},
		url: func(username, password string) string {
			return fmt.Sprintf("postgres://%s:%s@%s:%d/%s", username, password, pg.Host, pg.Port, database)
		},
		others: func() (n int) {
			if err := root.QueryRow(context.Background(), "SELECT count(*) FROM pg_roles WHERE rolcanlogin").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		},
	}
}

func run(t *testing.T, c *pgx.Conn, sql string) {
	t.Helper()
	if _, err := c.Exec(context.Background(), sql); err != nil {
		t.Fatal(err)
	}
}

type pgPool struct{ *lessorpgx.Pool }

func (p pgPool) query(ctx context.Context) error {
	_, err := p.Exec(ctx, "SELECT 1")
	return err
}

func (p pgPool) close() { p.Close() }

type fixedPool struct{ *pgxpool.Pool }

func (p fixedPool) query(ctx context.Context) error {
	_, err := p.Exec(ctx, "SELECT 1")
	return err
}

func (p fixedPool) close() { p.Close() }

func mariadb(t *testing.T) *target {
	maria := mariatest.Start(t, mariatest.Setting("max_connections", "300"))
	root := maria.Connect(t, "")
	for _, name := range accounts {
		if _, err := root.ExecContext(context.Background(), "CREATE OR REPLACE USER "+name+"@'%'"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = root.ExecContext(context.Background(), "DROP USER "+name+"@'%'") })
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
				l := loginOf(v)
				config := mysql.NewConfig()
				config.Net, config.Addr, config.User, config.Passwd, config.Logger = "tcp", maria.Address(), l.username, l.password, &mysql.NopLogger{}
				return mysql.NewConnector(config)
			})
			if err != nil {
				t.Fatal(err)
			}
			db := sql.OpenDB(c)
			db.SetMaxOpenConns(connections)
			db.SetMaxIdleConns(connections)
			db.SetConnMaxLifetime(lifetime)
			return sqlPool{db}
		},
		others: func() (n int) {
			if err := root.QueryRowContext(context.Background(), "SELECT count(*) FROM mysql.user").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		},
	}
}

type sqlPool struct{ *sql.DB }

func (p sqlPool) query(ctx context.Context) error {
	_, err := p.ExecContext(ctx, "SELECT 1")
	return err
}

func (p sqlPool) close() { _ = p.Close() }

func loginOf(v client.Value) login {
	username, _ := v.Field("username")
	password, _ := v.Field("password")
	return login{username, password}
}

func redisServer(t *testing.T) *target {
	server := redistest.Start(t)
	admin := server.Connect(t)
	for _, name := range accounts {
		if err := admin.Do(t.Context(), "ACL", "SETUSER", name, "reset", "on", ">"+name, "~*", "+@all").Err(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = admin.Do(context.Background(), "ACL", "DELUSER", name).Err() })
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
		pool: func(t *testing.T, s *client.Secret) pool {
			return newRedisPool(server.Addr(), s)
		},
		others: func() int {
			n, err := admin.Do(context.Background(), "ACL", "LIST").Slice()
			if err != nil {
				t.Fatal(err)
			}
			return len(n)
		},
	}
}

// redisPool is a program that uses a client for each password: go-redis knows no way to have some of its connections closed.
type redisPool struct {
	secret *client.Secret
	taken  chan *generation // the newest, held by whoever takes or changes it
	stop   chan struct{}
	ended  chan struct{}
}

// generation is a client that logs in with one value.
type generation struct {
	*redis.Client
	queries chan struct{} // one for each that is under way
}

func newRedisPool(address string, s *client.Secret) *redisPool {
	p := &redisPool{secret: s, taken: make(chan *generation, 1), stop: make(chan struct{}), ended: make(chan struct{})}
	begin := func(v client.Value) *generation {
		l := loginOf(v)
		return &generation{redis.NewClient(&redis.Options{
			Addr: address, Username: l.username, Password: l.password, PoolSize: connections, ConnMaxLifetime: lifetime, MaxRetries: -1,
		}), make(chan struct{}, connections)}
	}
	v := s.Value()
	p.taken <- begin(v)
	go func() {
		defer close(p.ended)
		for {
			select {
			case <-s.Changed(v):
			case <-p.stop:
				return
			}
			v = s.Value()
			old := <-p.taken
			p.taken <- begin(v)
			for range connections {
				old.queries <- struct{}{} // each query of the old one is over
			}
			_ = old.Close()
			s.Adopt(v)
		}
	}()
	return p
}

func (p *redisPool) query(ctx context.Context) error {
	g := <-p.taken
	g.queries <- struct{}{}
	p.taken <- g
	defer func() { <-g.queries }()
	return g.Ping(ctx).Err()
}

func (p *redisPool) close() {
	close(p.stop)
	<-p.ended
	g := <-p.taken
	_ = g.Close()
}
