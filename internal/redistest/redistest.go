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
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/internal/servertest"
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
	*servertest.Daemon
	Port   int
	CA     []byte // PEM; nil without TLS
	Config string // its configuration file
	ACL    string // file of its accounts; empty without ACLFile

	program string
}

var kind = servertest.Kind{Name: "Redis", Starter: "redistest", Debian: "redis-server"}

var shared servertest.Shared[options, *Server]

// Start returns the test process's server for these options, starting it if this is the first to ask. Tests that share it keep apart by the
// names of their accounts.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	o := servertest.Chosen(opts)
	return shared.Get(o, func() *Server { return start(t, o) })
}

// Own starts a server for this test alone, which may pause or kill it. It is removed when the test ends.
func Own(t testing.TB, opts ...Option) *Server {
	t.Helper()
	s := start(t, servertest.Chosen(opts))
	t.Cleanup(s.Discard)
	return s
}

func start(t testing.TB, o options) *Server {
	t.Helper()
	program := kind.OneOf(t, []string{"redis-server"}, []string{"valkey-server"})[0]
	d, err := kind.Open()
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	s := &Server{Daemon: d, Config: filepath.Join(d.Dir, "redis.conf"), program: program}
	err = d.Begin(func() error { return s.certify(o) }, func() (err error) {
		if s.Port, err = s.Daemon.Port(); err != nil {
			return err
		}
		if err := s.configure(o); err != nil {
			return err
		}
		return s.Up()
	})
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	return s
}

// certify makes the server's certificate, if it is to have one.
func (s *Server) certify(o options) error {
	if !o.tls {
		return nil
	}
	ca, err := s.Certify()
	if err != nil {
		return err
	}
	s.CA = ca.PEM()
	return nil
}

// configure writes the server's files.
func (s *Server) configure(o options) error {
	users := "user default off\nuser " + Admin + " on >" + password + " ~* &* +@all\n"
	conf := fmt.Sprintf("bind 127.0.0.1\ndir %s\ndaemonize no\nsave \"\"\nmaxmemory 64mb\n", s.Dir)
	if o.tls {
		conf += fmt.Sprintf("port 0\ntls-port %[2]d\ntls-cert-file %[1]s/server.crt\ntls-key-file %[1]s/server.key\ntls-ca-cert-file %[1]s/ca.crt\ntls-auth-clients no\n", s.Dir, s.Port)
	} else {
		conf += fmt.Sprintf("port %d\n", s.Port)
	}
	if !o.users {
		return s.Write(s.Config, []byte(conf+users))
	}
	s.ACL = filepath.Join(s.Dir, "users.acl")
	return errors.Join(s.Write(s.ACL, []byte(users)), s.Write(s.Config, []byte(conf+"aclfile "+s.ACL+"\n")))
}

// Up starts the server after Kill; Start and Own have done it once. The port stays the same.
func (s *Server) Up() error {
	return s.Run(s.Command(s.program, s.Config), s.ready)
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

// Addr is host and port.
func (s *Server) Addr() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// Password is Admin's.
func (s *Server) Password() string { return password }

// Client talks to the server as an account. The caller closes it.
func (s *Server) Client(username, password string) *redis.Client {
	o := &redis.Options{Addr: s.Addr(), Username: username, Password: password, Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1}
	if s.CA != nil {
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
