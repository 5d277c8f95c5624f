package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// cluster is some nodes over one store, and the limits beside each: what the same clients get from a server that only keeps as many
// rows as large, in the same PostgreSQL, or from the one that appends to a file.
type cluster struct {
	name     string
	nodes    []*lessorServer
	scene    *scene
	database string // URL; empty: the embedded store
	conn     *pgx.Conn
}

// clusterKinds are the requests that are measured.
func clusterKinds() (some []kind) {
	for _, k := range kinds {
		switch k.name {
		case "KV read, many secrets", "KV write", "lease renewal", "token creation", "AppRole login":
			some = append(some, k)
		}
	}
	return some
}

// clusters measures the same load on one node with its embedded store, on one node and on three nodes over PostgreSQL.
func (b *bench) clusters() error {
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	for _, shape := range []struct {
		name  string
		nodes int
		of    func(string, int) (*cluster, error)
	}{
		{"embedded", 1, b.embedded},
		{"1 node, PostgreSQL", 1, func(name string, n int) (*cluster, error) { return b.overPostgres(p, name, n) }},
		{"3 nodes, PostgreSQL", 3, func(name string, n int) (*cluster, error) { return b.overPostgres(p, name, n) }},
	} {
		c, err := shape.of(shape.name, shape.nodes)
		if err != nil {
			return fmt.Errorf("%s: %w", shape.name, err)
		}
		for _, k := range clusterKinds() {
			if !b.wants(shape.name + ": " + k.name) {
				continue
			}
			for _, n := range b.crowds() {
				if err := b.besideRows(c, k, n); err != nil {
					return fmt.Errorf("%s: %s: %w", shape.name, k.name, err)
				}
			}
		}
		c.end()
	}
	return nil
}

func (b *bench) embedded(name string, _ int) (*cluster, error) {
	s, err := b.newScene("embedded")
	if err != nil {
		return nil, err
	}
	return &cluster{name: name, nodes: []*lessorServer{s.lessorServer}, scene: s}, nil
}

// overPostgres starts n nodes over a database of their own. The key file of the first is copied to the others.
func (b *bench) overPostgres(p *postgres, name string, n int) (c *cluster, err error) {
	c = &cluster{name: name}
	if c.database, err = p.newDatabase(fmt.Sprintf("lessor%d", n)); err != nil {
		return nil, err
	}
	if c.conn, err = pgx.Connect(context.Background(), c.database); err != nil {
		return nil, err
	}
	if _, err := c.conn.Exec(context.Background(), limitTable); err != nil {
		return nil, err
	}
	for i := range n {
		s := &lessorServer{binary: b.binary, database: c.database, dir: filepath.Join(b.dir, fmt.Sprintf("%d-node-%d", n, i))}
		b.later(func() { s.end(syscall.SIGKILL) })
		if i == 0 {
			err = s.first()
		} else {
			s.root = c.nodes[0].root
			err = errors.Join(s.configure(), copyFile(c.nodes[0].key(), s.key()))
			if err == nil {
				err = s.start()
			}
		}
		if err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, s)
	}
	c.scene, err = newSceneOn(c.nodes[0])
	return c, err
}

func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o600)
}

// newDatabase makes an empty database and returns its URL.
func (p *postgres) newDatabase(name string) (string, error) {
	c, err := p.connect()
	if err != nil {
		return "", err
	}
	defer c.Close(context.Background())
	if _, err := c.Exec(context.Background(), "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return "", err
	}
	return fmt.Sprintf("postgresql://%s:%s@127.0.0.1:%d/%s?sslmode=disable", superuser, password, p.port, name), nil
}

func (c *cluster) end() {
	for _, s := range c.nodes {
		s.end(syscall.SIGTERM)
	}
	if c.conn != nil {
		_ = c.conn.Close(context.Background())
	}
}

// dialAll opens n clients, spread over servers.
func dialAll(addrs []string, n int) (all []*client, err error) {
	for i := range n {
		one, err := dial(addrs[i%len(addrs)], 1)
		if err != nil {
			return all, err
		}
		one[0].n = i
		all = append(all, one[0])
	}
	return all, nil
}

func (c *cluster) addresses() (all []string) {
	for _, s := range c.nodes {
		all = append(all, s.addr)
	}
	return all
}

// besideRows measures one kind of request beside the limit.
func (b *bench) besideRows(c *cluster, k kind, n int) error {
	to, err := dialAll(c.addresses(), n)
	defer func() { hangUp(to) }()
	if err != nil {
		return err
	}
	fire := k.fire(c.scene)
	fire(to[0])
	answer, err := to[0].must()
	if err != nil {
		return err
	}
	answer = append([]byte(nil), answer...)
	target := filepath.Join(b.dir, "limit")
	if c.database != "" {
		f, err := c.measure(to, fire)
		if err != nil {
			return err
		}
		b.say("    one of %s: %d rows, names of %d bytes, values of %d", k.name, f.rows, f.name, f.value)
		target = f.at(c.database)
	}
	var bareAt []string
	for range c.nodes {
		l, err := startLimit(target)
		if err != nil {
			return err
		}
		defer l.stop()
		if err := l.answers(answer); err != nil {
			return err
		}
		bareAt = append(bareAt, l.addr)
	}
	bare, err := dialAll(bareAt, n)
	defer func() { hangUp(bare) }()
	if err != nil {
		return err
	}
	for _, x := range to {
		x.times = make([]time.Duration, 0, 1<<16)
	}
	err = b.alternate(&figure{name: c.name + ": " + k.name, clients: n, target: 0.5},
		func(warm, d time.Duration) (float64, error) { return closed(to, fire, warm, d) },
		func(warm, d time.Duration) (float64, error) { return closed(bare, fire, warm, d) })
	if c.conn != nil {
		_, terr := c.conn.Exec(context.Background(), `TRUNCATE bench_limit`)
		err = errors.Join(err, terr)
	}
	b.figures[len(b.figures)-1].note = fmt.Sprintf("p50 %.1f ms, p99 %.1f ms", ms(quantile(to, 0.5)), ms(quantile(to, 0.99)))
	b.say("    %s", b.figures[len(b.figures)-1].note)
	return err
}

// written are the rows that lessor wrote after an epoch, but for those that it writes once for each commit, however many
// requests share it: header (table 2) and batch id (table 19).
const written = `SELECT count(*), coalesce(avg(length(name)), 0)::int, coalesce(avg(length(bytes)), 0)::int FROM (
	SELECT name, bytes FROM lessor.rows WHERE since > $1 AND tab NOT IN (2, 19)
	UNION ALL SELECT name, bytes FROM lessor.records WHERE since > $1) AS new`

// measure finds out what one request leaves in the database: each client makes one, so that no row is written twice.
func (c *cluster) measure(to []*client, fire shot) (f footprint, err error) {
	ctx := context.Background()
	var epoch, rows int64
	if err := c.conn.QueryRow(ctx, `SELECT epoch FROM lessor.state`).Scan(&epoch); err != nil {
		return f, err
	}
	for _, x := range to {
		fire(x)
		if _, err := x.must(); err != nil {
			return f, err
		}
	}
	if err := c.conn.QueryRow(ctx, written, epoch).Scan(&rows, &f.name, &f.value); err != nil {
		return f, err
	}
	f.rows = max(1, (int(rows)+len(to)/2)/len(to))
	return f, nil
}

// quantile is that of how long the clients' requests took.
func quantile(all []*client, q float64) time.Duration {
	var samples []sample
	for _, c := range all {
		for _, took := range c.times {
			samples = append(samples, sample{took: took})
		}
	}
	return percentile(samples, q)
}
