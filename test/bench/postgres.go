package main

import (
	"context"
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
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	superuser = "bench"
	password  = "the-superuser-of-a-server-on-loopback-for-minutes"
)

// postgres is a PostgreSQL server with its defaults: it flushes what it commits.
type postgres struct {
	dir  string
	port int
	cmd  *exec.Cmd
	cred *syscall.Credential
	bin  string
}

func (b *bench) startPostgres() (*postgres, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if p, err := exec.LookPath("initdb"); err == nil {
		found = append(found, p)
	}
	if len(found) == 0 {
		return nil, errors.New("no PostgreSQL server is installed (make servers)")
	}
	p := &postgres{dir: filepath.Join(b.dir, "postgres"), bin: filepath.Dir(found[len(found)-1])}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return nil, err
	}
	secret := filepath.Join(p.dir, "password")
	if err := os.WriteFile(secret, []byte(password), 0o600); err != nil {
		return nil, err
	}
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, err
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		p.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := errors.Join(os.Chown(p.dir, uid, gid), os.Chown(secret, uid, gid)); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.port = l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return nil, err
	}
	data := filepath.Join(p.dir, "data")
	if out, err := p.command("initdb", "-D", data, "-U", superuser, "--pwfile="+secret, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	p.cmd = p.command("postgres", "-D", data, "-p", strconv.Itoa(p.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=200")
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	b.later(p.stop)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := p.connect()
		if err == nil {
			return p, c.Close(context.Background())
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("PostgreSQL did not start: %w", err)
		}
	}
}

func (p *postgres) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, name), args...)
	cmd.Dir = p.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.cred, Pdeathsig: syscall.SIGQUIT}
	return cmd
}

func (p *postgres) stop() {
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

func (p *postgres) connect() (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=postgres sslmode=disable", p.port, superuser))
	if err != nil {
		return nil, err
	}
	cfg.Password = password
	return pgx.ConnectConfig(context.Background(), cfg)
}

// sessions opens n of them.
func (p *postgres) sessions(n int) ([]*pgx.Conn, error) {
	var all []*pgx.Conn
	for range n {
		c, err := p.connect()
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func disconnect(all []*pgx.Conn) {
	for _, c := range all {
		_ = c.Close(context.Background())
	}
}

// straight has every session run statement(n), n counting up, as soon as its last one is through, and returns how many a second
// there were in d after warm.
func straight(all []*pgx.Conn, statement func(n int64) string, next *atomic.Int64, warm, d time.Duration) (float64, error) {
	var stop atomic.Bool
	var done atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, len(all))
	for i, c := range all {
		wg.Go(func() {
			for !stop.Load() && errs[i] == nil {
				_, errs[i] = c.Exec(context.Background(), statement(next.Add(1)), pgx.QueryExecModeSimpleProtocol)
				done.Add(1)
			}
		})
	}
	time.Sleep(warm)
	before, began := done.Load(), time.Now()
	time.Sleep(d)
	n, took := done.Load()-before, time.Since(began)
	stop.Store(true)
	wg.Wait()
	return float64(n) / took.Seconds(), errors.Join(errs...)
}

// dropStraight drops the roles, each in a statement of its own, over all sessions, and returns how many a second.
func dropStraight(all []*pgx.Conn, roles []string) (float64, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, len(all))
	began := time.Now()
	for i, c := range all {
		wg.Go(func() {
			for n := next.Add(1); n <= int64(len(roles)) && errs[i] == nil; n = next.Add(1) {
				_, errs[i] = c.Exec(context.Background(), `DROP ROLE "`+roles[n-1]+`"`, pgx.QueryExecModeSimpleProtocol)
			}
		})
	}
	wg.Wait()
	return float64(len(roles)) / time.Since(began).Seconds(), errors.Join(errs...)
}

// roles are the names of the roles that begin with a prefix.
func (p *postgres) roles(c *pgx.Conn, prefix string) ([]string, error) {
	rows, err := c.Query(context.Background(), "SELECT rolname FROM pg_roles WHERE starts_with(rolname, $1)", prefix)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// creation is the one statement that makes a role, in lessor's notation.
const creation = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`

const (
	straightPassword = "A1a-correct-horse-battery-staple"
	straightVerifier = "SCRAM-SHA-256$1:MDEyMzQ1Njc4OWFiY2RlZg==$vOeeIsKwPr1tlR18U6bFBRLn+RbUPRcpeGlJiQTToVQ=:P9vFRqt0EKTPczWhi+Ucplw03zt1MkRlRJ9Wnf1bxB4=" // of it, at 1 iteration
)

// straightCreation is the same as an operator would send it. PostgreSQL hashes a password at 4096 iterations; what it is to keep
// at another number must be given to it ready.
func straightCreation(iterations int) func(n int64) string {
	secret := straightPassword
	if iterations == 1 {
		secret = straightVerifier
	}
	return func(n int64) string {
		return strings.NewReplacer("{{name}}", fmt.Sprintf("straight-%d-%d", iterations, n), "{{password}}", secret, "{{expiration}}", "2100-01-01 00:00:00+00").Replace(creation)
	}
}

const sessions = 4 // of the pool that lessor has by default, and of the statements that go straight

// furnishDatabase gives a server a connection and a role for each number of SCRAM iterations.
func (s *lessorServer) furnishDatabase(p *postgres, iterations ...int) error {
	if _, err := s.call("POST", "sys/mounts/database", object{"type": "database"}); err != nil {
		return err
	}
	for _, n := range iterations {
		at := fmt.Sprintf("scram-%d", n)
		if _, err := s.call("POST", "database/config/"+at, object{
			"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": superuser, "password": password,
			"connection_url":       fmt.Sprintf("postgresql://{{username}}:{{password}}@127.0.0.1:%d/postgres?sslmode=disable", p.port),
			"max_open_connections": sessions, "scram_iterations": n,
		}); err != nil {
			return err
		}
		if _, err := s.call("POST", "database/roles/"+at, object{
			"db_name": at, "creation_statements": creation, "default_ttl": "1h", "max_ttl": "24h",
		}); err != nil {
			return err
		}
	}
	return nil
}

// credentials measures PostgreSQL credentials beside the statement that makes their roles.
func (b *bench) credentials() error {
	kinds := []struct {
		iterations int
		target     float64
	}{{4096, 0.7}, {1, 0.2}}
	name := func(i int) string { return fmt.Sprintf("PostgreSQL credential, SCRAM iterations: %d", i) }
	if !b.wants(name(4096), name(1)) {
		return nil
	}
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	s, err := newServer(b.binary, b.dir+"/credentials")
	if err != nil {
		return err
	}
	b.later(func() { s.end(syscall.SIGKILL) })
	tokens, err := s.furnish(mostClients)
	if err != nil {
		return err
	}
	if err := s.furnishDatabase(p, 4096, 1); err != nil {
		return err
	}
	conns, err := p.sessions(sessions)
	if err != nil {
		return err
	}
	defer disconnect(conns)
	for _, k := range kinds {
		if !b.wants(name(k.iterations)) {
			continue
		}
		statement := straightCreation(k.iterations)
		path := fmt.Sprintf("database/creds/scram-%d", k.iterations)
		var next atomic.Int64
		for _, n := range b.crowds() {
			all, err := dial(s.addr, n)
			if err != nil {
				return err
			}
			err = b.alternate(&figure{name: name(k.iterations), clients: n, target: k.target},
				func(warm, d time.Duration) (float64, error) {
					return closed(all, func(c *client) { c.request("GET", path, tokens[c.n], "") }, warm, d)
				},
				func(warm, d time.Duration) (float64, error) { return straight(conns, statement, &next, warm, d) })
			hangUp(all)
			if err != nil {
				return err
			}
		}
	}
	s.end(syscall.SIGKILL)
	p.stop()
	return os.RemoveAll(p.dir)
}
