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
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/lessor-dev/lessor/internal/pgtest"
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
	Host   string // 127.0.0.1
	Port   int
	Socket string // its Unix socket
	CA     []byte // PEM; nil without TLS

	dir  string
	bin  binaries
	cred *syscall.Credential
	stop func() // stops the watch, and so the server, and removes all

	mu    sync.Mutex
	pid   int
	ended chan struct{} // closed when the process has ended
}

type binaries struct {
	server  string
	install string // empty: the server itself makes its data folder, as MySQL's does
}

var (
	sharedMu sync.Mutex
	shared   = map[options]*Server{}
)

// Start returns the test process's server for these options, starting it if this is the first to ask. Tests that share it keep apart by database
// (Server.Database) and by the names of their accounts.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	bin := installed(t)
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if s := shared[o]; s != nil {
		return s
	}
	s, err := start(bin, o)
	if err != nil {
		t.Fatalf("mariatest: %v", err)
	}
	shared[o] = s
	return s
}

// Own starts a server for this test alone, which may stop, pause or kill it: what was committed survives that. It is removed when the test ends.
func Own(t testing.TB, opts ...Option) *Server {
	t.Helper()
	bin := installed(t)
	o := options{own: true}
	for _, opt := range opts {
		opt(&o)
	}
	s, err := start(bin, o)
	if err != nil {
		t.Fatalf("mariatest: %v", err)
	}
	t.Cleanup(s.stop)
	return s
}

// installed are the server's programs, which some systems keep where only root's PATH leads.
func installed(t testing.TB) binaries {
	t.Helper()
	server, install := find("mariadbd"), find("mariadb-install-db")
	if server != "" && install != "" {
		return binaries{server, install}
	}
	if server := find("mysqld"); server != "" {
		return binaries{server: server}
	}
	if testing.Short() && os.Getenv("CI") != "true" {
		t.Skip("mariatest: no MariaDB server is installed (Debian: apt-get install mariadb-server)")
	}
	t.Fatal("mariatest: no MariaDB server is installed (Debian: apt-get install mariadb-server); -short skips these tests")
	return binaries{}
}

func find(program string) string {
	if p, err := exec.LookPath(program); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"} {
		if p, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return p
		}
	}
	return ""
}

// unprivileged is who runs the server: MariaDB refuses to run as root.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"mysql", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("running as root, and there is neither a user mysql nor nobody to run the server as")
}

func start(bin binaries, o options) (*Server, error) {
	cred, err := unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "mariatest-")
	if err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", Socket: filepath.Join(dir, "sock"), dir: dir, bin: bin, cred: cred}
	if err := s.watch(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	if err := s.create(o); err != nil {
		s.stop()
		return nil, err
	}
	for range 3 { // another process may take the port between finding it free and binding it
		if err = s.Up(); err == nil {
			return s, nil
		}
		s.Port = 0
	}
	s.stop()
	return nil, err
}

// create makes the server's data folder, its options, and what it does when it starts for the first time.
func (s *Server) create(o options) error {
	if s.cred != nil {
		if err := os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			return err
		}
	}
	cmd := s.command(s.bin.install, "--no-defaults", "--datadir="+s.data(), "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", "--force",
		"--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0")
	if s.MySQL() {
		cmd = s.command(s.bin.server, "--no-defaults", "--initialize-insecure", "--datadir="+s.data())
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("making its data folder: %w\n%s", err, out)
	}
	conf := fmt.Sprintf("[mysqld]\ndatadir = %s\nsocket = %s\npid_file = %s\nlog_error = %s\ngeneral_log_file = %[5]s.general\nslow_query_log_file = %[5]s.slow\n",
		s.data(), s.Socket, filepath.Join(s.dir, "mariadbd.pid"), s.errors(), s.logs())
	conf += "bind_address = 127.0.0.1\nmax_connections = 300\ninnodb_buffer_pool_size = 32M\nloose_innodb_log_file_size = 16M\nkey_buffer_size = 1M\n" +
		"innodb_flush_log_at_trx_commit = 0\ninnodb_fast_shutdown = 2\nloose_log_warnings = 2\nloose_log_error_verbosity = 3\nskip_log_bin\nloose_mysqlx = OFF\n"
	if o.own { // what is killed loses what it had not written, not what the system had not flushed
		conf += "innodb_flush_log_at_trx_commit = 2\n"
	}
	if o.tls {
		ca, certificate, key, err := pgtest.ServerCertificate()
		if err != nil {
			return err
		}
		s.CA = ca
		conf += fmt.Sprintf("ssl_ca = %[1]s/ca.crt\nssl_cert = %[1]s/server.crt\nssl_key = %[1]s/server.key\n", s.dir)
		if err := errors.Join(s.write("ca.crt", ca), s.write("server.crt", certificate), s.write("server.key", key)); err != nil {
			return err
		}
	} else if s.MySQL() { // newer servers make themselves a certificate otherwise
		conf += "tls_version =\n"
	} else {
		conf += "skip_ssl\n"
	}
	quoted := strings.ReplaceAll(password, "'", "''")
	others := "DELETE FROM mysql.global_priv WHERE User IN ('', 'root') AND Host <> '%';\nFLUSH PRIVILEGES;\n"
	if s.MySQL() {
		others = "DROP USER root@localhost;\n"
	}
	return errors.Join(s.write("my.cnf", []byte(conf+o.settings)), s.write("first.sql", []byte(
		"CREATE USER "+Superuser+"@'%' IDENTIFIED BY '"+quoted+"';\nGRANT ALL PRIVILEGES ON *.* TO "+Superuser+"@'%' WITH GRANT OPTION;\n"+others)))
}

// watch starts a shell that waits for its standard input to end, which it does when this process ends in whatever way (or by stop), and then takes
// the server down and its folder away.
func (s *Server) watch() error {
	cmd := exec.Command("/bin/sh", "-c", `read -r _
[ -f "$0/pid" ] && {
  pid=$(cat "$0/pid")
  kill -KILL "$pid" 2>/dev/null
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
}
rm -rf "$0"`, s.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.stop = sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Wait()
	})
	return nil
}

// Up starts the server after Down or Kill; Start and Own have done it once. The port stays the same.
func (s *Server) Up() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Port == 0 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s.Port = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	args := []string{"--defaults-file=" + filepath.Join(s.dir, "my.cnf"), "--port=" + strconv.Itoa(s.Port)}
	first := filepath.Join(s.dir, "first.sql")
	if _, err := os.Stat(first); err == nil {
		args = append(args, "--init-file="+first)
	}
	cmd := s.command(s.bin.server, args...)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	s.pid, s.ended = cmd.Process.Pid, ended
	if err := os.WriteFile(filepath.Join(s.dir, "pid"), []byte(strconv.Itoa(s.pid)), 0o600); err != nil { // for the watch
		return errors.Join(err, syscall.Kill(s.pid, syscall.SIGKILL))
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		c, err := s.Login(ctx, Superuser, password, "")
		if err == nil {
			c.Close()
			cancel()
			return os.RemoveAll(first)
		}
		cancel()
		select {
		case <-ended:
			log, _ := os.ReadFile(s.errors())
			return fmt.Errorf("MariaDB ended as soon as it was started\n%s", log)
		default:
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(s.pid, syscall.SIGKILL)
			<-ended
			log, _ := os.ReadFile(s.errors())
			return fmt.Errorf("starting MariaDB: %w\n%s", err, log)
		}
	}
}

// Down stops the server in an orderly way, ending its sessions.
func (s *Server) Down() error { return s.end(syscall.SIGTERM) }

// Kill ends the server as a crash does.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

func (s *Server) end(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := syscall.Kill(s.pid, sig); err != nil {
		return err
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(time.Minute):
		return errors.New("MariaDB did not end")
	}
}

// Pause stops the server where it is: connections are accepted by the kernel, and nothing answers.
func (s *Server) Pause() error { return syscall.Kill(s.pid, syscall.SIGSTOP) }

// Resume undoes Pause.
func (s *Server) Resume() error { return syscall.Kill(s.pid, syscall.SIGCONT) }

// MySQL reports whether the server is MySQL, and no MariaDB.
func (s *Server) MySQL() bool { return s.bin.install == "" }

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
	all := []string{s.errors()}
	for _, name := range []string{s.logs() + ".general", s.logs() + ".slow"} {
		if _, err := os.Stat(name); err == nil {
			all = append(all, name)
		}
	}
	return all
}

func (s *Server) data() string   { return filepath.Join(s.dir, "data") }
func (s *Server) logs() string   { return filepath.Join(s.dir, "log") }
func (s *Server) errors() string { return filepath.Join(s.dir, "errors.log") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/usr/bin", "LC_ALL=C", "HOME=" + s.dir, "TMPDIR=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setsid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (s *Server) write(name string, content []byte) error {
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if s.cred != nil {
		err = f.Chown(int(s.cred.Uid), int(s.cred.Gid))
	}
	_, werr := f.Write(content)
	return errors.Join(err, werr, f.Close())
}
