// Package mariatest gives tests a real MariaDB server of their own: on a free loopback port, in a temporary folder, gone when the test process is,
// however that ends. Where no MariaDB is installed, but MySQL, it is that.
//
// Where neither is installed, a test fails; under -short it skips instead, unless CI=true.
package mariatest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/lessor-dev/lessor/internal/servertest"
)

// Superuser is the name of every Server's superuser, who may come from anywhere.
const Superuser = "root"

const password = "superuser's-password"

// Option changes how a server is started.
type Option func(*options)

type options struct {
	own      bool
	tls      bool
	settings string // lines of the option file
}

// TLS gives the server a certificate for "localhost" and 127.0.0.1; Server.CA is who issued it. Plain connections stay possible.
func TLS() Option { return func(o *options) { o.tls = true } }

// Setting sets an option of the server, by its name in an option file.
func Setting(name, value string) Option {
	return func(o *options) { o.settings += name + " = " + value + "\n" }
}

// Server is a running MariaDB, or MySQL.
type Server struct {
	*servertest.Daemon
	Port   int
	Socket string // its Unix socket
	CA     []byte // PEM; nil without TLS

	server  string // program
	install string // the one that makes the data folder; empty: the server itself does, as MySQL's
}

var kind = servertest.Kind{Name: "MariaDB", Starter: "mariatest", Debian: "mariadb-server", User: "mysql"}

var shared servertest.Shared[options, *Server]

// Start returns the test process's server for these options, starting it if this is the first to ask. Tests that share it keep apart by database
// (Server.Database) and by the names of their accounts.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	o := servertest.Chosen(opts)
	return shared.Get(o, func() *Server { return start(t, o) })
}

// Own starts a server for this test alone, which may stop, pause or kill it: what was committed survives that. It is removed when the test ends.
func Own(t testing.TB, opts ...Option) *Server {
	t.Helper()
	o := servertest.Chosen(opts)
	o.own = true
	s := start(t, o)
	t.Cleanup(s.Discard)
	return s
}

func start(t testing.TB, o options) *Server {
	t.Helper()
	programs := kind.OneOf(t, []string{"mariadbd", "mariadb-install-db"}, []string{"mysqld"})
	d, err := kind.Open()
	if err != nil {
		t.Fatalf("mariatest: %v", err)
	}
	s := &Server{Daemon: d, Socket: filepath.Join(d.Dir, "sock"), server: programs[0]}
	if len(programs) > 1 {
		s.install = programs[1]
	}
	err = d.Begin(func() error { return s.create(o) }, func() (err error) {
		if s.Port, err = s.Daemon.Port(); err != nil {
			return err
		}
		return s.Up()
	})
	if err != nil {
		t.Fatalf("mariatest: %v", err)
	}
	return s
}

// create makes the server's data folder, its options, and what it does when it starts for the first time.
func (s *Server) create(o options) error {
	cmd := s.Command(s.install, "--no-defaults", "--datadir="+s.data(), "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", "--force",
		"--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0")
	if s.MySQL() {
		cmd = s.Command(s.server, "--no-defaults", "--initialize-insecure", "--datadir="+s.data())
	}
	if err := s.Do(cmd); err != nil {
		return err
	}
	conf := fmt.Sprintf("[mysqld]\ndatadir = %s\nsocket = %s\npid_file = %s\ngeneral_log_file = %[4]s.general\nslow_query_log_file = %[4]s.slow\n",
		s.data(), s.Socket, filepath.Join(s.Dir, "mariadbd.pid"), s.Log)
	conf += "bind_address = 127.0.0.1\nmax_connections = 300\ninnodb_buffer_pool_size = 32M\nloose_innodb_log_file_size = 16M\nkey_buffer_size = 1M\n" +
		"innodb_flush_log_at_trx_commit = 0\ninnodb_fast_shutdown = 2\nloose_log_warnings = 2\nloose_log_error_verbosity = 3\nskip_log_bin\nloose_mysqlx = OFF\n"
	if o.own { // what is killed loses what it had not written, not what the system had not flushed
		conf += "innodb_flush_log_at_trx_commit = 2\n"
	}
	if o.tls {
		ca, err := s.Certify()
		if err != nil {
			return err
		}
		s.CA = ca.PEM()
		conf += fmt.Sprintf("ssl_ca = %[1]s/ca.crt\nssl_cert = %[1]s/server.crt\nssl_key = %[1]s/server.key\n", s.Dir)
	} else if s.MySQL() { // newer servers make themselves a certificate otherwise
		conf += "tls_version =\n"
	} else {
		conf += "skip_ssl\n"
	}
	others := "DELETE FROM mysql.global_priv WHERE User IN ('', 'root') AND Host <> '%';\nFLUSH PRIVILEGES;\n"
	if s.MySQL() {
		others = "DROP USER root@localhost;\n"
	}
	quoted := strings.ReplaceAll(password, "'", "''")
	return errors.Join(s.Write("my.cnf", []byte(conf+o.settings)), s.Write("first.sql", []byte(
		"CREATE USER "+Superuser+"@'%' IDENTIFIED BY '"+quoted+"';\nGRANT ALL PRIVILEGES ON *.* TO "+Superuser+"@'%' WITH GRANT OPTION;\n"+others)))
}

// Up starts the server after it ended; Start and Own have done it once. The port stays the same.
func (s *Server) Up() error {
	args := []string{"--defaults-file=" + filepath.Join(s.Dir, "my.cnf"), "--port=" + strconv.Itoa(s.Port)}
	first := filepath.Join(s.Dir, "first.sql")
	if _, err := os.Stat(first); err == nil {
		args = append(args, "--init-file="+first)
	}
	err := s.Run(s.Command(s.server, args...), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, err := s.Login(ctx, Superuser, password, "")
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(first)
}

// MySQL reports whether the server is MySQL, and no MariaDB.
func (s *Server) MySQL() bool { return s.install == "" }

// Address is the server's host and port.
func (s *Server) Address() string { return fmt.Sprintf("%s:%d", s.Host, s.Port) }

// URL is a connection URL as Vault has them for MySQL, without TLS. Braces in name and password stay as they are, for templates.
func (s *Server) URL(name, password string) string {
	return fmt.Sprintf("%s:%s@tcp(%s)/?tls=false", name, password, s.Address())
}

// Password is the superuser's.
func (s *Server) Password() string { return password }

// Connect opens a session of the superuser in database (which may be ""), closed when the test ends.
func (s *Server) Connect(t testing.TB, database string) *sql.Conn {
	t.Helper()
	c, err := s.Login(t.Context(), Superuser, password, database)
	if err != nil {
		t.Fatalf("mariatest: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c.Conn
}

// Session is one session with a server.
type Session struct {
	*sql.Conn
	all *sql.DB
}

// Close ends it.
func (s *Session) Close() error { return errors.Join(s.Conn.Close(), s.all.Close()) }

// Login opens a session in database (which may be ""). The caller closes it.
func (s *Server) Login(ctx context.Context, name, password, database string) (*Session, error) {
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.User, cfg.Passwd, cfg.DBName, cfg.MultiStatements = "tcp", s.Address(), name, password, database, true
	cfg.Timeout, cfg.Logger, cfg.ConnectionAttributes = 10*time.Second, &mysql.NopLogger{}, "program_name:mariatest"
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	c, err := db.Conn(ctx)
	for try := 1; errors.Is(err, mysql.ErrMalformPkt) && try < 8; try++ { // the library's way with one of 256 challenges of ed25519
		c, err = db.Conn(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &Session{c, db}, nil
}

// Database makes an empty database, dropped when the test ends, and returns its name.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	c := s.Connect(t, "")
	name := "test_" + strconv.FormatInt(time.Now().UnixNano(), 36)
	if _, err := c.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatalf("mariatest: %v", err)
	}
	t.Cleanup(func() {
		if c, err := s.Login(context.Background(), Superuser, password, ""); err == nil {
			_, _ = c.ExecContext(context.Background(), "DROP DATABASE IF EXISTS "+name)
			c.Close()
		}
	})
	return name
}

// Logs are the files of the general log and of slow queries, as far as they are switched on (general_log, slow_query_log), and of errors.
func (s *Server) Logs() []string {
	all := []string{s.Log}
	for _, name := range []string{s.Log + ".general", s.Log + ".slow"} {
		if _, err := os.Stat(name); err == nil {
			all = append(all, name)
		}
	}
	return all
}

func (s *Server) data() string { return filepath.Join(s.Dir, "data") }
