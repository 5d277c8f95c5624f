// Package pgtest gives tests a real PostgreSQL server of their own: on a free loopback port, in a temporary folder, gone
// when the test process is, however that ends.
//
// Where no PostgreSQL is installed, a test fails; under -short it skips instead, unless CI=true.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
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
	Host   string // 127.0.0.1
	Port   int
	Socket string // folder of its Unix socket
	CA     []byte // PEM; nil without TLS
	Log    string // file that the server logs to

	dir    string
	bin    string
	cred   *syscall.Credential
	issuer *issuer // nil without TLS
	disk   int64   // bytes of the file system that its data has to itself; 0: none
	stop   func()  // stops the watch, and so the server, and removes all
	mu     sync.Mutex
}

var (
	sharedMu sync.Mutex
	shared   = map[options]*Server{}
)

// Start returns the test process's server for these options, starting it if this is the first to ask. Tests that share it
// keep apart by database (Server.Database) and by the names of their roles.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	bin := binaries(t)
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
		t.Fatalf("pgtest: %v", err)
	}
	shared[o] = s
	return s
}

// Own starts a server for this test alone, which may stop, pause or kill it: what was committed survives that. It is removed when the test ends.
func Own(t testing.TB, opts ...Option) *Server {
	t.Helper()
	bin := binaries(t)
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	o.own = true
	s, err := start(bin, o)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(s.stop)
	return s
}

// binaries is the folder of the newest PostgreSQL server that is installed.
func binaries(t testing.TB) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	if p, err := exec.LookPath("postgres"); err == nil {
		found = append(found, p)
	}
	for _, p := range found {
		if p, err := filepath.EvalSymlinks(p); err == nil {
			if _, err := os.Stat(filepath.Join(filepath.Dir(p), "initdb")); err == nil {
				return filepath.Dir(p)
			}
		}
	}
	if testing.Short() && os.Getenv("CI") != "true" {
		t.Skip("pgtest: no PostgreSQL server is installed (Debian: apt-get install postgresql)")
	}
	t.Fatal("pgtest: no PostgreSQL server is installed (Debian: apt-get install postgresql); -short skips these tests")
	return ""
}

func version(path string) int {
	n, _ := strconv.Atoi(strings.Split(path, "/")[4])
	return n
}

// unprivileged is who runs the server: PostgreSQL refuses to run as root.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("running as root, and there is neither a user postgres nor nobody to run the server as")
}

func start(bin string, o options) (*Server, error) {
	return launch(bin, o, func(s *Server) error { return s.create(o) })
}

// launch starts a server on the data that fill puts into its folder.
func launch(bin string, o options, fill func(*Server) error) (*Server, error) {
	cred, err := unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "pgtest-")
	if err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", Socket: dir, Log: filepath.Join(dir, "log"), dir: dir, bin: bin, disk: o.disk, cred: cred}
	if err := s.watch(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	if err := fill(s); err != nil {
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

// create makes the server's data folder.
func (s *Server) create(o options) error {
	secret := filepath.Join(s.dir, "password")
	if err := s.write(secret, []byte(password+"\n")); err != nil {
		return err
	}
	if err := s.settle(); err != nil {
		return err
	}
	cmd := s.command(filepath.Join(s.bin, "initdb"), "-D", s.data(), "-U", Superuser, "--pwfile="+secret,
		"--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C", "--no-instructions")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
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
		conf += fmt.Sprintf("ssl = on\nssl_cert_file = '%[1]s/server.crt'\nssl_key_file = '%[1]s/server.key'\nssl_ca_file = '%[1]s/ca.crt'\n", s.dir)
	}
	f, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(conf + o.settings)
	return errors.Join(err, f.Close())
}

// certify makes the server's certificate, and lets members of ByCertificate log in by theirs.
func (s *Server) certify() (err error) {
	if s.issuer, err = newIssuer(); err != nil {
		return err
	}
	s.CA = s.issuer.pem()
	certificate, key, err := s.issuer.server()
	if err != nil {
		return err
	}
	access := filepath.Join(s.data(), "pg_hba.conf")
	rules, err := os.ReadFile(access)
	if err != nil {
		return err
	}
	rules = append([]byte("hostssl all +"+ByCertificate+" 127.0.0.1/32 cert\nhost all +"+ByCertificate+" 127.0.0.1/32 reject\n"), rules...)
	return errors.Join(s.write(filepath.Join(s.dir, "server.crt"), certificate), s.write(filepath.Join(s.dir, "server.key"), key),
		s.write(filepath.Join(s.dir, "ca.crt"), s.CA), os.WriteFile(access, rules, 0o600))
}

// watch starts a shell that waits for its standard input to end, which it does when this process ends in whatever way
// (or by stop), and then takes the server down and its folder away.
func (s *Server) watch() error {
	cmd := exec.Command("/bin/sh", "-c", `read -r _
[ -f "$0/data/postmaster.pid" ] && {
  pid=$(head -n 1 "$0/data/postmaster.pid")
  for p in $pid $(cat /proc/$pid/task/$pid/children 2>/dev/null); do kill -CONT "$p" 2>/dev/null; done
  kill -QUIT "$pid" 2>/dev/null
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null
}
umount -l "$0/data" 2>/dev/null
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
	out, err := s.command(filepath.Join(s.bin, "pg_ctl"), "start", "-D", s.data(), "-l", s.Log, "-w", "-t", "60", "-s", "-o", "-p "+strconv.Itoa(s.Port)).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(s.Log)
		return fmt.Errorf("starting PostgreSQL: %w\n%s%s", err, out, log)
	}
	return nil
}

// Down stops the server in an orderly way, ending its sessions.
func (s *Server) Down() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	out, err := s.command(filepath.Join(s.bin, "pg_ctl"), "stop", "-D", s.data(), "-m", "fast", "-w", "-s").CombinedOutput()
	if err != nil {
		return fmt.Errorf("stopping PostgreSQL: %w\n%s", err, out)
	}
	return nil
}

// Kill ends the server as a crash does.
func (s *Server) Kill() error {
	if err := s.signal(syscall.SIGQUIT, false); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(s.data(), "postmaster.pid")); err != nil {
			return nil
		}
	}
	return errors.New("PostgreSQL did not die")
}

// Pause stops every process of the server where it is: connections are accepted by the kernel, and nothing answers.
func (s *Server) Pause() error { return s.signal(syscall.SIGSTOP, true) }

// Resume undoes Pause.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT, true) }

func (s *Server) signal(sig syscall.Signal, all bool) error {
	pid, err := s.postmaster()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, sig); err != nil || !all {
		return err
	}
	for _, child := range children(pid) {
		if err := syscall.Kill(child, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
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
		if c, err := s.Login(context.Background(), Superuser, password, ""); err == nil {
			_, _ = c.Exec(context.Background(), "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
			c.Close(context.Background())
		}
	})
	return name
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setsid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (s *Server) write(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if s.cred != nil {
		err = f.Chown(int(s.cred.Uid), int(s.cred.Gid))
	}
	_, werr := f.Write(content)
	return errors.Join(err, werr, f.Close())
}
