// Package pgtest gives tests a real PostgreSQL server of their own: on a free loopback port, in a temporary folder, gone
// when the test process is, however that ends.
//
// Where no PostgreSQL is installed, a test fails; under -short it skips instead, unless CI=true.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lessor-dev/lessor/internal/servertest"
)

// Superuser is the name of every Server's superuser.
const Superuser = "postgres"

const password = "superuser's-password"

// Option changes how a server is started.
type Option func(*options)

type options struct {
	fsync    bool
	own      bool
	tls      bool
	archive  bool
	disk     int64
	settings string
}

// Fsync makes the server flush what it commits, as one in production does. Without it tests are faster.
func Fsync() Option { return func(o *options) { o.fsync = true } }

// TLS gives the server a certificate for "localhost" and 127.0.0.1; Server.CA is who issued it. Plain connections stay possible.
func TLS() Option { return func(o *options) { o.tls = true } }

// Setting sets a parameter of postgresql.conf.
func Setting(name, value string) Option {
	return func(o *options) {
		o.settings += fmt.Sprintf("%s = '%s'\n", name, strings.ReplaceAll(value, "'", "''"))
	}
}

// Server is a running PostgreSQL.
type Server struct {
	*servertest.Daemon
	Port   int
	Socket string // folder of its Unix socket
	CA     []byte // PEM; nil without TLS

	bin    string         // folder of its programs
	issuer *servertest.CA // nil without TLS
	disk   int64          // bytes of the file system that its data has to itself; 0: none
}

// kind is PostgreSQL: the newest that is installed.
var kind = servertest.Kind{
	Name: "PostgreSQL", Starter: "pgtest", Debian: "postgresql", Folders: folders(), User: "postgres", Down: syscall.SIGINT,
	Kill: syscall.SIGQUIT, // without a word to clients or disk; SIGKILL would leave its shared memory behind
}

func folders() []string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	return found
}

func version(path string) int {
	n, _ := strconv.Atoi(strings.Split(path, "/")[4])
	return n
}

var shared servertest.Shared[options, *Server]

// Start returns the test process's server for these options, starting it if this is the first to ask. Tests that share it
// keep apart by database (Server.Database) and by the names of their roles.
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
	program, err := filepath.EvalSymlinks(kind.Programs(t, "postgres")[0])
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	s, err := launch(filepath.Dir(program), o.disk, func(s *Server) error { return s.create(o) })
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	return s
}

// launch starts a server on the data that fill puts into its folder.
func launch(bin string, disk int64, fill func(*Server) error) (*Server, error) {
	d, err := kind.Open()
	if err != nil {
		return nil, err
	}
	s := &Server{Daemon: d, Socket: d.Dir, bin: bin, disk: disk}
	return s, d.Begin(func() error { return fill(s) }, func() (err error) {
		if s.Port, err = s.Daemon.Port(); err != nil {
			return err
		}
		return s.Up()
	})
}

// create makes the server's data folder.
func (s *Server) create(o options) error {
	if err := errors.Join(s.Write("password", []byte(password+"\n")), s.mount()); err != nil {
		return err
	}
	err := s.Do(s.program("initdb", "-D", s.data(), "-U", Superuser, "--pwfile="+filepath.Join(s.Dir, "password"),
		"--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C", "--no-instructions"))
	if err != nil {
		return err
	}
	conf := fmt.Sprintf("listen_addresses = '127.0.0.1'\nunix_socket_directories = '%s'\nmax_connections = 90\nshared_buffers = 32MB\n", s.Socket)
	conf += "password_encryption = 'scram-sha-256'\nlog_min_messages = warning\nautovacuum_naptime = 10s\n"
	if !o.fsync {
		conf += "fsync = off\nfull_page_writes = off\n"
		if !o.own {
			conf += "synchronous_commit = off\n"
		}
	}
	if o.archive {
		archiving, err := s.archiving()
		if err != nil {
			return err
		}
		conf += archiving
	}
	if o.tls {
		if err := s.certify(); err != nil {
			return err
		}
		conf += fmt.Sprintf("ssl = on\nssl_cert_file = '%[1]s/server.crt'\nssl_key_file = '%[1]s/server.key'\nssl_ca_file = '%[1]s/ca.crt'\n", s.Dir)
	}
	return s.Append(filepath.Join(s.data(), "postgresql.conf"), conf+o.settings)
}

// certify makes the server's certificate, and lets members of ByCertificate log in by theirs.
func (s *Server) certify() (err error) {
	if s.issuer, err = s.Certify(); err != nil {
		return err
	}
	s.CA = s.issuer.PEM()
	access := filepath.Join(s.data(), "pg_hba.conf")
	rules, err := os.ReadFile(access)
	if err != nil {
		return err
	}
	rules = append([]byte("hostssl all +"+ByCertificate+" 127.0.0.1/32 cert\nhost all +"+ByCertificate+" 127.0.0.1/32 reject\n"), rules...)
	return os.WriteFile(access, rules, 0o600)
}

// Up starts the server after it ended; Start and Own have done it once. The port stays the same.
func (s *Server) Up() error {
	return s.Run(s.program("postgres", "-D", s.data(), "-p", strconv.Itoa(s.Port)), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, err := s.Login(ctx, Superuser, password, "")
		if err == nil {
			return c.Close(ctx)
		}
		if refused := (*pgconn.PgError)(nil); errors.As(err, &refused) && refused.Code != "57P03" { // cannot_connect_now
			return nil // a test may have changed who logs in
		}
		return err
	})
}

// URL is a connection URL for name, without TLS. Braces in name and password stay as they are, for templates.
func (s *Server) URL(name, password, database string) string {
	return fmt.Sprintf("postgresql://%s:%s@%s:%d/%s?sslmode=disable", name, password, s.Host, s.Port, database)
}

// Password is the superuser's.
func (s *Server) Password() string { return password }

// Connect opens a session of the superuser in database ("" for "postgres"), closed when the test ends.
func (s *Server) Connect(t testing.TB, database string) *pgx.Conn {
	t.Helper()
	c, err := s.Login(t.Context(), Superuser, password, database)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// Login opens a session in database ("" for "postgres"). The caller closes it.
func (s *Server) Login(ctx context.Context, name, password, database string) (*pgx.Conn, error) {
	if database == "" {
		database = "postgres"
	}
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%d dbname=%s sslmode=disable connect_timeout=10", s.Host, s.Port, database))
	if err != nil {
		return nil, err
	}
	cfg.User, cfg.Password = name, password
	return pgx.ConnectConfig(ctx, cfg)
}

// Database makes an empty database, dropped when the test ends, and returns its name.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	c := s.Connect(t, "")
	name := "test_" + strconv.FormatInt(time.Now().UnixNano(), 36)
	if _, err := c.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if c, err := s.Login(ctx, Superuser, password, ""); err == nil {
			_, _ = c.Exec(ctx, "SET synchronous_commit = local") // its standby may be gone by now
			_, _ = c.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
			c.Close(ctx)
		}
	})
	return name
}

func (s *Server) data() string { return filepath.Join(s.Dir, "data") }

// program is one of the server's own.
func (s *Server) program(name string, args ...string) *exec.Cmd {
	return s.Command(filepath.Join(s.bin, name), args...)
}
