package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
)

// growth is something of which a server may have few or many.
type growth struct {
	what  string // in the plural
	file  string
	sizes []int
	large []int // over PostgreSQL: sizes
	// grow takes a server that is not running from a number of them to another.
	grow func(s *scene, from, to int) error
	// live is grow for a server that has to run.
	live func(s *scene, from, to int) error
}

// cost is what a server costs that has n of something.
type cost struct {
	n        int
	start    time.Duration // from the start of the process, after a kill -9, to the first audited answer
	p50, p99 time.Duration // of reads that arrive 1,000 times a second
	resident int64         // bytes, while it serves them
	disk     int64         // bytes
}

func (b *bench) growths() []growth {
	return []growth{
		{what: "leases", file: "leases", sizes: pick(b.quick, []int{1_000, 10_000}, []int{10_000, 100_000, 1_000_000, 5_000_000}),
			large: pick(b.quick, []int{1_000, 10_000}, []int{10_000, 100_000, 1_000_000}), grow: growLeases},
		{what: "secrets", file: "secrets", sizes: pick(b.quick, []int{1_000, 3_000}, []int{10_000, 100_000, 1_000_000}),
			large: pick(b.quick, []int{1_000, 3_000}, []int{10_000, 100_000}), live: growSecrets},
		{what: "policies", file: "policies", sizes: pick(b.quick, []int{10, 100}, []int{10, 1_000, 10_000}),
			large: pick(b.quick, []int{10, 100}, []int{10, 1_000, 10_000}), live: growPolicies},
		{what: "audit records", file: "audit", sizes: pick(b.quick, []int{10_000, 50_000}, []int{1_000_000, 10_000_000, 50_000_000}),
			large: pick(b.quick, []int{10_000, 50_000}, []int{100_000, 1_000_000, 3_000_000}), grow: growAudit},
	}
}

// scales measures how cost grows, and writes a table and its plots.
func (b *bench) scales() error {
	var table strings.Builder
	fmt.Fprintf(&table, "Measured on %s on %s.\n\n", b.began.UTC().Format("2 January 2006"), machine())
	table.WriteString("| of what | how many | read, p50 | read, p99 | resident | disk | start |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	for _, g := range b.growths() {
		for _, over := range []*postgres{nil, p} {
			what := g.what
			if over != nil {
				what += ", over PostgreSQL"
			}
			if !b.wants(what) {
				continue
			}
			costs, err := b.along(g, over)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			for _, c := range costs {
				fmt.Fprintf(&table, "| %s | %s | %.2f ms | %.2f ms | %d MB | %s | %.2f s |\n", what, thousands(c.n), ms(c.p50), ms(c.p99), c.resident/1e6, size(c.disk), c.start.Seconds())
			}
			if b.quick {
				continue
			}
			file := g.file
			if over != nil {
				file += "-postgresql"
			}
			if err := b.plot(file, what, g.what, costs); err != nil {
				return err
			}
		}
	}
	fmt.Println()
	fmt.Print(table.String())
	if b.quick || b.only != "" || b.out == "" {
		return nil
	}
	return b.write(b.out, "scale", table.String())
}

// along takes one server from few to many, and measures it at each size: one with an embedded store, or one over p.
func (b *bench) along(g growth, p *postgres) (costs []cost, err error) {
	server, sizes := &lessorServer{binary: b.binary, dir: filepath.Join(b.dir, g.file)}, g.sizes
	if p != nil {
		sizes = g.large
		server.dir += "-postgresql"
		if server.database, err = p.newDatabase(g.file); err != nil {
			return nil, err
		}
	}
	b.later(func() { server.end(syscall.SIGTERM) })
	if err := server.first(); err != nil {
		return nil, err
	}
	s, err := newSceneOn(server)
	if err != nil {
		return nil, err
	}
	had := 0
	for _, n := range sizes {
		began := time.Now()
		if g.live != nil {
			err = g.live(s, had, n)
		}
		s.end(syscall.SIGTERM)
		if err == nil && g.grow != nil {
			err = g.grow(s, had, n)
		}
		if err == nil {
			err = s.start()
		}
		if err != nil {
			return nil, err
		}
		b.say("%s %s in the store, after %.0f s", thousands(n), g.what, time.Since(began).Seconds())
		b.settle(s)
		c, err := b.costOf(s, n)
		if err != nil {
			return nil, err
		}
		b.say("    start %.2f s; read p50 %.2f ms, p99 %.2f ms; %d MB resident, %s of disk", c.start.Seconds(), ms(c.p50), ms(c.p99), c.resident/1e6, size(c.disk))
		costs, had = append(costs, c), n
	}
	s.end(syscall.SIGTERM)
	return costs, os.RemoveAll(s.dir)
}

// settle waits until the server does nothing by itself: after so much was written at once, its store is still being compacted.
func (b *bench) settle(s *scene) {
	began := time.Now()
	for calm := 0; calm < 5 && time.Since(began) < 15*time.Minute; {
		before := s.cpu()
		time.Sleep(time.Second)
		if calm++; s.cpu()-before > 50*time.Millisecond {
			calm = 0
		}
	}
	b.say("    at rest after %.0f s", time.Since(began).Seconds())
}

// costOf measures a server that runs.
func (b *bench) costOf(s *scene, n int) (c cost, err error) {
	c.n = n
	for range pick(b.quick, 1, 3) {
		took, err := s.restart()
		if err != nil {
			return c, err
		}
		c.start = max(c.start, took)
	}
	all, err := dial(s.addr, 32)
	if err != nil {
		return c, err
	}
	defer hangUp(all)
	if _, err := closed(all, kinds[0].fire(s), 0, time.Second); err != nil { // warm
		return c, err
	}
	stop := make(chan struct{})
	time.AfterFunc(pick(b.quick, time.Second, 15*time.Second), func() { close(stop) })
	samples, err := open(all, kinds[0].fire(s), 1_000, stop)
	if err != nil {
		return c, err
	}
	c.p50, c.p99 = percentile(samples, 0.5), percentile(samples, 0.99)
	if c.resident, err = s.resident(); err != nil {
		return c, err
	}
	c.disk, err = s.disk()
	return c, err
}

// disk is what the store takes of it.
func (s *scene) disk() (n int64, err error) {
	if s.database == "" {
		return folderSize(s.data())
	}
	ctx := context.Background()
	c, err := pgx.Connect(ctx, s.database)
	if err != nil {
		return 0, err
	}
	err = c.QueryRow(ctx, `SELECT pg_database_size(current_database())`).Scan(&n)
	return n, errors.Join(err, c.Close(ctx))
}

func folderSize(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) { // compacted away meanwhile
			return nil
		}
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return n, err
}

// growLeases adds leases on static secrets, each of a holder of its own.
func growLeases(s *scene, from, to int) error {
	return s.offline(func(db *store.DB) error {
		m, err := kvMount(db)
		if err != nil {
			return err
		}
		now := db.Now()
		return many(db, to-from, func(txn *store.Txn, view store.View, i int) error {
			return static(txn, view, m, from+i, now.Add(time.Duration(i%3600)*time.Second))
		})
	})
}

// growAudit adds audit records as a read of a secret leaves them, many with one commit.
func growAudit(s *scene, from, to int) error {
	const together = 2_000
	return s.offline(func(db *store.DB) error {
		for done := from; done < to; done += together {
			records := make([]audit.Record, min(together, to-done))
			now := db.Now()
			for i := range records {
				n := done + i
				records[i] = audit.Record{
					Time: now, Request: fmt.Sprintf("3f5f6f4c-58d1-44a4-b4a9-%012x", n), Operation: "read", Namespace: 1, Path: fmt.Sprintf("secret/data/app/%d", n%100_000),
					Phase: audit.Done, Entity: fmt.Sprintf("7d2e3179-f69b-450c-7179-%012x", n%1_000), Name: "approle-billing",
					Accessor: fmt.Sprintf("2c84f488-2133-4ced-87b0-%012x", n%10_000), Client: "10.1.2.3", Granted: true,
					Rule: `path "secret/data/app/*"`, Policy: "billing", PolicyVersion: 7,
					Secrets: []audit.Shown{{Path: fmt.Sprintf("secret/data/app/%d", n%100_000), Version: 3, How: "shown"}},
				}
			}
			if _, err := db.Commit(context.Background(), store.Txn{Audit: records}); err != nil {
				return err
			}
		}
		return nil
	})
}

// growSecrets writes secrets through the front door, a new one each time.
func growSecrets(s *scene, from, to int) error {
	return s.spread(from, to, func(c *client, i int) {
		c.request("POST", "secret/data/grown/"+fmt.Sprint(i%1_000)+"/"+fmt.Sprint(i), s.tokens[c.n], value)
	})
}

// growPolicies writes policies of twenty rules each. No token has more than one of them.
func growPolicies(s *scene, from, to int) error {
	var rules strings.Builder
	for i := range 20 {
		fmt.Fprintf(&rules, "path \\\"secret/data/team-%d/*\\\" { capabilities = [\\\"read\\\", \\\"list\\\"] }\\n", i)
	}
	body := `{"policy":"` + rules.String() + `"}`
	return s.spread(from, to, func(c *client, i int) { c.request("POST", fmt.Sprintf("sys/policies/acl/grown-%d", i), s.root, body) })
}

// spread has 32 clients make the requests from <= i < to.
func (s *scene) spread(from, to int, fire func(c *client, i int)) error {
	all, err := dial(s.addr, 32)
	if err != nil {
		return err
	}
	defer hangUp(all)
	done := make(chan error, len(all))
	for _, c := range all {
		go func() {
			var err error
			for i := from + c.n; i < to && err == nil; i += len(all) {
				fire(c, i)
				_, err = c.must()
			}
			done <- err
		}()
	}
	for range all {
		err = errors.Join(err, <-done)
	}
	return err
}

// thousands writes n with separators.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// size writes a number of bytes.
func size(n int64) string {
	if n < 1e9 {
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}
