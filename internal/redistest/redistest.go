// Package redistest gives tests a real Redis server of their own: on a free loopback port, in a temporary folder, gone when the test process
// is, however that ends. Where no Redis is installed, but Valkey, it is that.
//
// Where neither is installed, a test fails; under -short it skips instead, unless CI=true.
package redistest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/internal/pgtest"
)

// Admin is the name of every Server's account that may do everything.
const Admin = "admin"

const password = "administrator-password"

// Option changes how a server is started.
type Option func(*options)

type options struct {
	tls   bool
	users bool
}

// TLS makes the server speak TLS only, with a certificate for "localhost" and 127.0.0.1; Server.CA is who issued it.
func TLS() Option { return func(o *options) { o.tls = true } }

// ACLFile makes the server keep its accounts in a file of their own. Without it, Admin is in its configuration file.
func ACLFile() Option { return func(o *options) { o.users = true } }

// Server is a running Redis.
type Server struct {
	Host   string // 127.0.0.1
	Port   int
	CA     []byte // PEM; nil without TLS
	Log    string // file that the server logs to
	Config string // its configuration file
	ACL    string // file of its accounts; empty without ACLFile

	dir  string
	tls  bool
	stop func() // stops the watch, and so the server, and removes all
	mu   sync.Mutex
	cmd  *exec.Cmd
}

var (
	sharedMu sync.Mutex
	shared   = map[options]*Server{}
)

// Start returns the test process's server for these options, starting it if this is the first to ask. Tests that share it keep apart by the
// names of their accounts.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	bin, o := prepared(t, opts)
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if s := shared[o]; s != nil {
		return s
	}
	s, err := start(bin, o)
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	shared[o] = s
	return s
}

// Own starts a server for this test alone, which may pause or kill it. It is removed when the test ends.
func Own(t testing.TB, opts ...Option) *Server {
	t.Helper()
	bin, o := prepared(t, opts)
	s, err := start(bin, o)
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	t.Cleanup(s.stop)
	return s
}

func prepared(t testing.TB, opts []Option) (bin string, o options) {
	t.Helper()
	for _, opt := range opts {
		opt(&o)
	}
	if bin, err := find(); err == nil {
		return bin, o
	}
	if testing.Short() && os.Getenv("CI") != "true" {
		t.Skip("redistest: no Redis server is installed (Debian: apt-get install redis-server)")
	}
	t.Fatal("redistest: no Redis server is installed (Debian: apt-get install redis-server); -short skips these tests")
	return "", o
}

// find is the server's program: Redis's, or Valkey's where there is none.
func find() (string, error) {
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		bin, err = exec.LookPath("valkey-server")
	}
	return bin, err
}

func start(bin string, o options) (*Server, error) {
	dir, err := os.MkdirTemp("/tmp", "redistest-")
	if err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", Log: filepath.Join(dir, "log"), Config: filepath.Join(dir, "redis.conf"), dir: dir, tls: o.tls}
	if err := s.watch(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	for range 3 { // another process may take the port between finding it free and binding it
		if err = s.configure(o); err == nil {
			err = s.up(bin)
		}
		if err == nil {
			return s, nil
		}
	}
	s.stop()
	return nil, err
}

// configure writes the server's files, for a port that is free.
func (s *Server) configure(o options) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	users := "user default off\nuser " + Admin + " on >" + password + " ~* &* +@all\n"
	conf := fmt.Sprintf("bind 127.0.0.1\ndir %s\nlogfile %s\ndaemonize no\nsave \"\"\nmaxmemory 64mb\n", s.dir, s.Log)
	if o.users {
		s.ACL = filepath.Join(s.dir, "users.acl")
		conf += "aclfile " + s.ACL + "\n"
		if err := os.WriteFile(s.ACL, []byte(users), 0o600); err != nil {
			return err
		}
	} else {
		conf += users
	}
	if !o.tls {
		return os.WriteFile(s.Config, fmt.Appendf(nil, "%sport %d\n", conf, s.Port), 0o600)
	}
	ca, certificate, key, err := pgtest.ServerCertificate()
	if err != nil {
		return err
	}
	s.CA = ca
	conf += fmt.Sprintf("port 0\ntls-port %[2]d\ntls-cert-file %[1]s/server.crt\ntls-key-file %[1]s/server.key\ntls-ca-cert-file %[1]s/ca.crt\ntls-auth-clients no\n", s.dir, s.Port)
	for name, content := range map[string][]byte{"server.crt": certificate, "server.key": key, "ca.crt": ca, "redis.conf": []byte(conf)} {
		if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// watch starts a shell that waits for its standard input to end, which it does when this process ends in whatever way (or by stop), and then
// takes the server down and its folder away.
func (s *Server) watch() error {
	cmd := exec.Command("/bin/sh", "-c", `read -r _
[ -f "$0/pid" ] && { pid=$(cat "$0/pid"); kill -KILL "$pid" 2>/dev/null; }
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

// Up starts the server after Kill; Start and Own have done it once. The port stays the same.
func (s *Server) Up() error {
	bin, err := find()
	if err != nil {
		return err
	}
	return s.up(bin)
}

func (s *Server) up(bin string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	cmd := exec.Command(bin, s.Config)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	err := os.WriteFile(filepath.Join(s.dir, "pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	for deadline := time.Now().Add(time.Minute); err == nil; {
		ready := s.ready()
		if ready == nil {
			s.cmd = cmd
			return nil
		}
		select {
		case <-ended:
			log, _ := os.ReadFile(s.Log)
			return fmt.Errorf("the server ended: %s", log)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			err = fmt.Errorf("the server does not answer: %w", ready)
		}
	}
	_ = cmd.Process.Kill()
	<-ended
	return err
}

// ready is nil if the server takes logins.
func (s *Server) ready() error {
	probe, err := net.Dial("tcp", s.Addr())
	if err != nil {
		return err
	}
	probe.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c := s.Client(Admin, password)
	defer c.Close()
	return c.Ping(ctx).Err()
}

// Kill ends the server as a crash does.
func (s *Server) Kill() error {
	if err := s.signal(syscall.SIGKILL); err != nil {
		return err
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", s.Addr()); err != nil {
			return nil
		} else {
			c.Close()
		}
	}
	return errors.New("the server did not die")
}

// Pause stops the server where it is: connections are accepted by the kernel, and nothing answers.
func (s *Server) Pause() error { return s.signal(syscall.SIGSTOP) }

// Resume undoes Pause.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Signal(sig)
}

// Addr is host and port.
func (s *Server) Addr() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// Password is Admin's.
func (s *Server) Password() string { return password }

// Client talks to the server as an account. The caller closes it.
func (s *Server) Client(username, password string) *redis.Client {
	o := &redis.Options{Addr: s.Addr(), Username: username, Password: password, Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1}
	if s.tls {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(s.CA)
		o.TLSConfig = &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	}
	return redis.NewClient(o)
}

// Connect is a client of Admin, closed when the test ends.
func (s *Server) Connect(t testing.TB) *redis.Client {
	t.Helper()
	c := s.Client(Admin, password)
	t.Cleanup(func() { c.Close() })
	return c
}
