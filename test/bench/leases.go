package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/pebble"
	database "github.com/lessor-dev/lessor/internal/store/postgres"
)

// backend opens what the server keeps its store in.
func (s *lessorServer) backend() (store.Backend, error) {
	if s.database != "" {
		return database.Open(context.Background(), lessor.NewSecret(s.database), database.Options{})
	}
	return pebble.Open(s.data(), pebble.Options{})
}

// offline opens the store of a server that is not running.
func (s *lessorServer) offline(use func(db *store.DB) error) error {
	backend, err := s.backend()
	if err != nil {
		return err
	}
	db, err := store.Open(backend, store.Options{Anchor: store.FileAnchor(s.key() + ".anchor")})
	if err != nil {
		return errors.Join(err, backend.Close())
	}
	kek, err := seal.OpenKeyFile(s.key())
	if err != nil {
		return errors.Join(err, db.Close())
	}
	view, err := db.View()
	if err != nil {
		return errors.Join(err, db.Close())
	}
	keys, err := seal.Unseal(view, kek)
	view.Close()
	if err == nil {
		err = db.Unseal(keys.Cipher())
	}
	if err == nil {
		err = use(db)
	}
	return errors.Join(err, db.Close())
}

const perCommit = 10_000 // leases

// many commits n leases, put by put, with an audit record for each commit.
func many(db *store.DB, n int, put func(txn *store.Txn, view store.View, i int) error) error {
	for done := 0; done < n; done += perCommit {
		if err := some(db, done, min(n, done+perCommit), put); err != nil {
			return err
		}
	}
	return nil
}

func some(db *store.DB, from, to int, put func(txn *store.Txn, view store.View, i int) error) error {
	view, err := db.View()
	if err != nil {
		return err
	}
	defer view.Close()
	txn := store.Txn{Audit: []audit.Record{{
		Time: db.Now(), Operation: "fill", Path: "bench", Phase: audit.Done, System: "bench", Granted: true, Rule: "system:bench", Policy: "system",
	}}}
	for i := from; i < to; i++ {
		if err := put(&txn, view, i); err != nil {
			return err
		}
	}
	_, err = db.Commit(context.Background(), txn)
	return err
}

// kvMount finds the mount of the static secrets.
func kvMount(db *store.DB) (*mount.Entry, error) {
	view, err := db.View()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	table, err := mount.Load(view)
	if err != nil {
		return nil, err
	}
	if e := table.ByPath("secret/"); e != nil {
		return e, nil
	}
	return nil, errors.New("there is no mount secret/")
}

// static has a holder of its own read a static secret at a time, which leaves a live lease that ends a hold later.
func static(txn *store.Txn, view store.View, m *mount.Entry, i int, at time.Time) error {
	_, _, err := lease.Hold(txn, lease.Reading{
		View: view, Mount: m, Value: lease.Value{Path: fmt.Sprintf("app/%d", i%10_000), Version: 1, Current: 1},
		Holder:  lease.Holder{Entity: "5f0c4a5e-0f5a-4c0e-9d1e-7d5f3c1b2a90", Alias: "a0b1c2d3-e4f5-4061-8273-8495a6b7c8d9", Instance: fmt.Sprintf("instance-%d", i), Name: "approle-app"},
		Now:     at,
		Request: "3f5f6f4c-58d1-44a4-b4a9-6f2b7d3cbb2b", Random: random,
	})
	return err
}

// random is crypto/rand's, asked less often.
var random = bufio.NewReaderSize(rand.Reader, 1<<16)

// million measures what a million live leases cost.
func (b *bench) million() error {
	n := pick(b.quick, 20_000, 1_000_000)
	title := count(float64(n)) + " live leases"
	names := []string{title + ": first audited answer after kill -9", "the same: resident memory", "the same: KV read, against a server with few leases"}
	if !b.wants(names...) {
		return nil
	}
	few, err := b.newScene("few")
	if err != nil {
		return err
	}
	much, err := b.newScene("many")
	if err != nil {
		return err
	}
	much.end(syscall.SIGTERM)
	began := time.Now()
	if err := much.offline(func(db *store.DB) error {
		m, err := kvMount(db)
		if err != nil {
			return err
		}
		now := db.Now()
		return many(db, n, func(txn *store.Txn, view store.View, i int) error {
			return static(txn, view, m, i, now.Add(time.Duration(i%3600)*time.Second))
		})
	}); err != nil {
		return err
	}
	b.say("%d leases in the store, made in %.0f s", n, time.Since(began).Seconds())
	if err := much.start(); err != nil {
		return err
	}
	if _, err := b.readsOf(much, b.warm(), b.slice()); err != nil { // something under way when it dies
		return err
	}

	var starts []time.Duration
	for range b.rounds() {
		took, err := much.restart()
		if err != nil {
			return err
		}
		starts = append(starts, took)
		if _, err := b.readsOf(much, 0, b.slice()/4); err != nil {
			return err
		}
	}
	longest := starts[0]
	for _, s := range starts {
		longest = max(longest, s)
	}
	b.plain(&figure{name: names[0], value: fmt.Sprintf("%.2f s (longest of %d)", longest.Seconds(), len(starts)), bound: "≤ 1 s", met: longest <= time.Second})

	fire := kinds[0].fire
	f := &figure{name: names[2], clients: 32, target: 0.9}
	var peak int64
	ends := []*scene{much, few}
	var rates [2]func(warm, d time.Duration) (float64, error)
	for i, s := range ends {
		all, err := dial(s.addr, f.clients)
		if err != nil {
			return err
		}
		defer hangUp(all)
		rates[i] = func(warm, d time.Duration) (float64, error) {
			rate, err := closed(all, fire(s), warm, d)
			if r, rerr := much.resident(); rerr == nil {
				peak = max(peak, r)
			}
			return rate, err
		}
	}
	if err := b.alternate(f, rates[0], rates[1]); err != nil {
		return err
	}
	b.plain(&figure{name: names[1], value: fmt.Sprintf("%d MB", peak/1e6), bound: "≤ 250 MB", met: peak <= 250e6})
	much.end(syscall.SIGKILL)
	few.end(syscall.SIGKILL)
	return errors.Join(os.RemoveAll(much.dir), os.RemoveAll(few.dir))
}

func (b *bench) plain(f *figure) {
	b.figures = append(b.figures, f)
	b.say("%-44s       %s, %s", f.name, f.value, f.bound)
}

// readsOf reads for a while with 32 clients.
func (b *bench) readsOf(s *scene, warm, d time.Duration) (float64, error) {
	all, err := dial(s.addr, 32)
	if err != nil {
		return 0, err
	}
	defer hangUp(all)
	return closed(all, kinds[0].fire(s), warm, d)
}

// restart kills the server as a crash does, starts it, and returns how long it took from the start of the process to the answer of a
// read, which is audited.
func (s *scene) restart() (time.Duration, error) {
	s.end(syscall.SIGKILL)
	began := time.Now()
	if err := s.start(); err != nil {
		return 0, err
	}
	all, err := dial(s.addr, 1)
	if err != nil {
		return 0, err
	}
	defer hangUp(all)
	all[0].request("GET", secretPath(0), s.tokens[0], "")
	_, err = all[0].must()
	return time.Since(began), err
}

// drained is what one round of drain saw.
type drained struct {
	limit, rate float64 // roles a second: dropped straight, and by lessor
	idle, busy  time.Duration
	all         time.Duration // until all leases had ended
}

// drain measures a hundred thousand leases that end in the same second, two thousand of them roles at PostgreSQL, beside straight
// DROP ROLEs, and what a steady load of reads feels of it.
func (b *bench) drain() error {
	roles, n := pick(b.quick, 100, 2_000), pick(b.quick, 5_000, 100_000)
	what := fmt.Sprintf("%s leases due in one second, %s of them roles", count(float64(n)), count(float64(roles)))
	names := []string{what + ": roles dropped, against straight DROP ROLE", "the same: p99 of 1,000 reads/s meanwhile", "the same: until all had ended"}
	if !b.wants(names...) {
		return nil
	}
	p, err := b.startPostgres()
	if err != nil {
		return err
	}
	s, err := b.newScene("drain")
	if err != nil {
		return err
	}
	if err := s.furnishDatabase(p, 1); err != nil {
		return err
	}
	var all []drained
	for range pick(b.quick, 1, 3) {
		d, err := b.drainOnce(s, p, roles, n)
		if err != nil {
			return err
		}
		all = append(all, d)
		b.say("dropped %.0f/s, straight %.0f/s; p99 %.1f ms, idle %.1f ms; all ended in %.1f s", d.rate, d.limit, ms(d.busy), ms(d.idle), d.all.Seconds())
	}
	of := func(get func(d drained) float64) (values []float64) {
		for _, d := range all {
			values = append(values, get(d))
		}
		return values
	}
	f := &figure{name: names[0], target: 0.8, rates: of(func(d drained) float64 { return d.rate }), limits: of(func(d drained) float64 { return d.limit })}
	b.figures = append(b.figures, f)
	b.say("%s", f)
	idle, busy := median(of(func(d drained) float64 { return ms(d.idle) })), median(of(func(d drained) float64 { return ms(d.busy) }))
	times := of(func(d drained) float64 { return ms(d.busy) / ms(d.idle) })
	b.plain(&figure{
		name: names[1], bound: "≤ 3 times idle", met: median(times) <= 3,
		value: fmt.Sprintf("%.1f ms; idle %.1f ms; %.1f times (%.1f to %.1f)", busy, idle, median(times), slices.Min(times), slices.Max(times)),
	})
	b.plain(&figure{name: names[2], value: fmt.Sprintf("%.1f s", median(of(func(d drained) float64 { return d.all.Seconds() }))), met: true})
	s.end(syscall.SIGTERM)
	p.stop()
	return errors.Join(os.RemoveAll(p.dir), os.RemoveAll(s.dir))
}

func (b *bench) drainOnce(s *scene, p *postgres, roles, n int) (d drained, err error) {
	ahead := pick(b.quick, 8*time.Second, 25*time.Second) // from the last preparation to the second in question
	conns, err := p.sessions(sessions)
	if err != nil {
		return d, err
	}
	defer disconnect(conns)

	// The limit: as many roles, made by lessor in the same way, dropped straight.
	if _, err := s.makeRoles(roles); err != nil {
		return d, err
	}
	made, err := p.roles(conns[0], "v-")
	if err != nil {
		return d, err
	}
	if d.limit, err = dropStraight(conns, made); err != nil {
		return d, err
	}
	if _, err := s.call("PUT", "sys/leases/revoke-prefix/database/creds", nil); err != nil {
		return d, err
	}

	// The same number under leases, whose end is then moved to one instant, with that of many others.
	ids, err := s.makeRoles(roles)
	if err != nil {
		return d, err
	}
	s.end(syscall.SIGTERM)
	var due time.Time
	if err := s.offline(func(db *store.DB) error {
		due = db.Now().Add(ahead)
		return dueAt(db, due, ids, n)
	}); err != nil {
		return d, err
	}
	if err := s.start(); err != nil {
		return d, err
	}

	// Reads arrive from well before that instant until all is over.
	clients, err := dial(s.addr, 64)
	if err != nil {
		return d, err
	}
	defer hangUp(clients)
	stop, loaded := make(chan struct{}), make(chan error, 1)
	var samples []sample
	go func() {
		var err error
		samples, err = open(clients, kinds[0].fire(s), 1_000, stop)
		loaded <- err
	}()
	idleFrom := time.Now().Add(2 * time.Second)
	time.Sleep(time.Until(due))
	rolesGone, allGone, err := s.watchDrain(p, due, n)
	close(stop)
	if err = errors.Join(err, <-loaded); err != nil {
		return d, err
	}
	var idle, busy []sample
	for _, x := range samples {
		switch {
		case !x.at.Before(idleFrom) && x.at.Before(due.Add(-time.Second)):
			idle = append(idle, x)
		case !x.at.Before(due) && x.at.Before(allGone):
			busy = append(busy, x)
		}
	}
	d.rate, d.all = float64(roles)/rolesGone.Sub(due).Seconds(), allGone.Sub(due)
	d.idle, d.busy = percentile(idle, 0.99), percentile(busy, 0.99)
	return d, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// makeRoles has lessor make roles, and returns their leases.
func (s *scene) makeRoles(n int) (ids []string, err error) {
	all, err := dial(s.addr, 32)
	if err != nil {
		return nil, err
	}
	defer hangUp(all)
	type part struct {
		ids []string
		err error
	}
	parts := make(chan part)
	for _, c := range all {
		go func() {
			var p part
			for i := c.n; i < n && p.err == nil; i += len(all) {
				var body []byte
				c.request("GET", "database/creds/scram-1", s.tokens[c.n], "")
				if body, p.err = c.must(); p.err == nil {
					_, rest, _ := strings.Cut(string(body), `"lease_id":"`)
					id, _, _ := strings.Cut(rest, `"`)
					p.ids = append(p.ids, id)
				}
			}
			parts <- p
		}()
	}
	for range all {
		p := <-parts
		ids, err = append(ids, p.ids...), errors.Join(err, p.err)
	}
	return ids, err
}

// dueAt moves the end of the leases to one instant, and adds leases on static secrets with the same until there are n.
func dueAt(db *store.DB, due time.Time, ids []string, n int) error {
	m, err := kvMount(db)
	if err != nil {
		return err
	}
	view, err := db.View()
	if err != nil {
		return err
	}
	defer view.Close()
	table, err := mount.Load(view)
	if err != nil {
		return err
	}
	database := table.ByPath("database/")
	found := make([]*lease.Lease, len(ids))
	rows := make([]store.Row, len(ids))
	for i, id := range ids {
		if found[i], rows[i], err = lease.Find(view, database.Namespace, database.UUID, id); err != nil {
			return err
		}
		if found[i] == nil {
			return fmt.Errorf("there is no lease %s", id)
		}
	}
	if err := many(db, len(ids), func(txn *store.Txn, _ store.View, i int) error {
		found[i].Expires = due
		lease.Save(txn, rows[i], found[i])
		return nil
	}); err != nil {
		return err
	}
	return many(db, n-len(ids), func(txn *store.Txn, view store.View, i int) error {
		return static(txn, view, m, i, due.Add(-lease.MinHold))
	})
}

// watchDrain waits until the roles are gone at PostgreSQL, and until lessor has ended all n leases.
func (s *scene) watchDrain(p *postgres, due time.Time, n int) (rolesGone, allGone time.Time, err error) {
	c, err := p.connect()
	if err != nil {
		return rolesGone, allGone, err
	}
	defer c.Close(context.Background())
	for deadline := due.Add(2 * time.Minute); rolesGone.IsZero() || allGone.IsZero(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return rolesGone, allGone, errors.New("the leases do not end")
		}
		if rolesGone.IsZero() {
			var left int
			if err := c.QueryRow(context.Background(), "SELECT count(*) FROM pg_roles WHERE starts_with(rolname, 'v-')").Scan(&left); err != nil {
				return rolesGone, allGone, err
			}
			if left == 0 {
				rolesGone = time.Now()
			}
			continue
		}
		time.Sleep(250 * time.Millisecond) // asking costs the server something, too
		ended, err := s.expired()
		if err != nil {
			return rolesGone, allGone, err
		}
		if ended >= n {
			allGone = time.Now()
		}
	}
	return rolesGone, allGone, nil
}

// expired is how many leases the server has ended since it started because their time was over.
func (s *scene) expired() (int, error) {
	body, err := s.fetch(s.root, "GET", "sys/metrics?format=prometheus", nil)
	if err != nil {
		return 0, err
	}
	const name = "\nlessor_leases_expired_total "
	_, rest, found := strings.Cut(string(body), name)
	if !found {
		return 0, errors.New("the server's metrics lack" + strings.TrimSpace(name))
	}
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseFloat(line, 64)
	return int(n), err
}
