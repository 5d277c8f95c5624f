package torture

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

const (
	nodes    = 3
	diskSize = 4 << 30 // bytes that a store's server has, where the test may mount disks
)

// cluster is the system under test, and what stands between its parts.
type cluster struct {
	t      *testing.T
	dir    string
	root   lessor.Secret
	nodes  [nodes]*process
	http   *http.Client // the test's own way to nodes, past the links
	target *pgtest.Server
	aim    *link  // between the nodes and the target
	base   string // the target's database

	mu      sync.Mutex
	primary *pgtest.Server
	standby *pgtest.Server
	slots   [2]*pgtest.Server // whom each node's n-th link to the store leads to
	stream  *link             // between primary and standby
}

// newCluster starts everything, with nothing wrong yet.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), http: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
	options := []pgtest.Option{pgtest.Fsync(), pgtest.Setting("max_connections", "120"), pgtest.Setting("wal_keep_size", "1GB"), pgtest.Setting("max_wal_size", "512MB"),
		pgtest.Setting("wal_receiver_timeout", "10s"), pgtest.Setting("wal_sender_timeout", "10s"), pgtest.Setting("wal_retrieve_retry_interval", "500ms"),
		pgtest.Setting("hot_standby_feedback", "off")}
	if pgtest.Root() {
		options = append(options, pgtest.Disk(diskSize))
	}
	c.primary = pgtest.Own(t, options...)
	c.target = pgtest.Own(t, pgtest.Setting("max_connections", "120"))
	secret := c.createDatabase()
	c.must(c.furnishTarget())

	var err error
	c.stream, err = newLink("primary-standby", address(c.primary))
	c.must(err)
	c.standby, err = c.primary.Standby(t, c.stream.port())
	c.must(err)
	c.must(c.primary.Synchronous(t.Context()))
	c.slots = [2]*pgtest.Server{c.primary, c.standby}
	c.aim, err = newLink("nodes-target", address(c.target))
	c.must(err)
	for i := range c.nodes {
		c.nodes[i] = c.newNode(i, secret)
	}
	c.t.Cleanup(c.stop)
	c.startNodes()
	return c
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func address(s *pgtest.Server) string { return net.JoinHostPort(s.Host, fmt.Sprint(s.Port)) }

// createDatabase makes lessor's role, which has no power beyond its own database, and returns its password.
func (c *cluster) createDatabase() string {
	conn := c.primary.Connect(c.t, "")
	secret := rand.Text()
	for _, sql := range []string{"CREATE ROLE lessor LOGIN PASSWORD '" + secret + "'", "CREATE DATABASE lessor OWNER lessor"} {
		_, err := conn.Exec(c.t.Context(), sql)
		c.must(err)
	}
	return secret
}

// furnishTarget makes what the target has besides accounts that lessor makes.
func (c *cluster) furnishTarget() error {
	conn, err := c.target.Login(c.t.Context(), pgtest.Superuser, c.target.Password(), "")
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	c.base = "app"
	for _, sql := range []string{"CREATE DATABASE app", "CREATE ROLE fixed LOGIN PASSWORD '" + rand.Text() + "'"} {
		if _, err := conn.Exec(c.t.Context(), sql); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) newNode(i int, secret string) *process {
	p := &process{name: fmt.Sprintf("node %d", i), dir: filepath.Join(c.dir, fmt.Sprintf("node%d", i)), stopped: make(chan struct{})}
	c.must(os.Mkdir(p.dir, 0o700))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	p.listen = l.Addr().String()
	c.must(l.Close())
	p.link, err = newLink("clients-"+p.name, p.listen)
	c.must(err)
	var hosts []string
	for n, s := range c.slots {
		k, err := newLink(fmt.Sprintf("%s-store %d", p.name, n), address(s))
		c.must(err)
		p.stores = append(p.stores, k)
		hosts = append(hosts, k.address())
	}
	c.must(p.configure(fmt.Sprintf("postgresql://lessor:%s@%s/lessor?sslmode=disable&target_session_attrs=read-write&connect_timeout=3", secret, strings.Join(hosts, ","))))
	return p
}

// startNodes starts the first node, which makes the store, and then the others with its key.
func (c *cluster) startNodes() {
	c.nodes[0].start()
	c.serving(c.nodes[0])
	b, err := os.ReadFile(filepath.Join(c.nodes[0].dir, "bootstrap-token"))
	c.must(err)
	c.root = lessor.NewSecret(strings.TrimSpace(string(b)))
	key, err := os.ReadFile(filepath.Join(c.nodes[0].dir, "seal.key"))
	c.must(err)
	for _, p := range c.nodes[1:] {
		c.must(os.WriteFile(filepath.Join(p.dir, "seal.key"), key, 0o600))
		p.start()
	}
	for _, p := range c.nodes[1:] {
		c.serving(p)
	}
}

// serving waits until a node serves.
func (c *cluster) serving(p *process) {
	c.t.Helper()
	for end := time.Now().Add(30 * time.Second); !p.ready(c.http); time.Sleep(25 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("%s does not serve:\n%s", p.name, p.tail(12))
		}
	}
}

func (c *cluster) stop() {
	var all sync.WaitGroup
	for _, p := range c.nodes {
		select {
		case <-p.stopped: // stopped already
			continue
		default:
		}
		all.Go(p.stop)
	}
	all.Wait()
	for _, p := range c.nodes {
		for _, k := range append(p.stores, p.link) {
			k.close()
		}
	}
	c.aim.close()
	c.stream.close()
}

// failover makes the standby the primary, as a cluster's manager does: the old primary is ended first, and never comes back. The
// new primary gets a new standby, until when it acknowledges nothing.
func (c *cluster) failover() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, next := c.primary, c.standby
	if err := old.Crash(); err != nil {
		return err
	}
	old.Discard()
	_ = next.Resume()
	if !next.Alive() {
		if err := next.Up(); err != nil {
			return err
		}
	}
	if err := next.Promote(); err != nil {
		return err
	}
	c.stream.lead(address(next))
	c.stream.set(open, 0)
	standby, err := next.Standby(c.t, c.stream.port())
	if err != nil {
		return err
	}
	c.primary, c.standby = next, standby
	for n, s := range c.slots {
		if s == old {
			c.slots[n] = standby
			for _, p := range c.nodes {
				p.stores[n].lead(address(standby))
			}
		}
	}
	return nil
}

// server is the primary or the standby of this moment.
func (c *cluster) server(name string) *pgtest.Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch name {
	case "primary":
		return c.primary
	case "standby":
		return c.standby
	}
	return c.target
}

// raise starts a server that a fault has ended, unless it is one that a failover has removed.
func (c *cluster) raise(s *pgtest.Server) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s != c.primary && s != c.standby && s != c.target || s.Alive() {
		return nil
	}
	return s.Up()
}

// mend undoes every fault there may be.
func (c *cluster) mend() error {
	for _, p := range c.nodes {
		for _, k := range append(p.stores, p.link) {
			k.set(open, 0)
		}
		if err := errors.Join(p.signal(syscall.SIGCONT), p.release()); err != nil {
			return err
		}
	}
	c.aim.set(open, 0)
	c.stream.set(open, 0)
	for _, s := range []*pgtest.Server{c.server("primary"), c.server("standby"), c.target} {
		_ = s.Resume()
		if err := c.raise(s); err != nil {
			return err
		}
	}
	return nil
}

// healthy reports whether every node serves, and the store has its standby.
func (c *cluster) healthy(ctx context.Context) error {
	for _, p := range c.nodes {
		if !p.ready(c.http) {
			return errors.New(p.name + " is not healthy")
		}
	}
	conn, err := c.server("primary").Login(ctx, pgtest.Superuser, c.primary.Password(), "")
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	var standbys int
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum') AND state = 'streaming'").Scan(&standbys); err != nil {
		return err
	}
	if standbys == 0 {
		return errors.New("the primary has no synchronous standby")
	}
	return nil
}

// loginAtTarget logs in at the target as its clients do, which is past the nodes' link.
func (c *cluster) loginAtTarget(ctx context.Context, name, secret string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := c.target.Login(ctx, name, secret, c.base)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(ctx, "SELECT 1", pgx.QueryExecModeSimpleProtocol)
	return err
}
