package lease

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
	"github.com/lessor-dev/lessor/internal/token"
)

var (
	ctx      = context.Background()
	database = &mount.Entry{UUID: "database\xff\xfe\x00uuid1", Namespace: lessor.RootNamespace, Path: "database/", Type: "database"}
	secret   = &mount.Entry{UUID: "secrets\xff\xfe\x00\x00uuid2", Namespace: lessor.RootNamespace, Path: "secret/", Type: "kv"}
	alice    = Holder{Entity: "e-alice", Alias: "a-alice", Instance: "10.0.0.1", Name: "userpass-alice"}
	bob      = Holder{Entity: "e-bob", Alias: "a-bob", Instance: "10.0.0.2", Name: "userpass-bob"}
)

// server stands for a database: accounts by lease id, and the ways in which a database lets one down.
type server struct {
	mu       sync.Mutex
	accounts map[string]bool
	down     bool            // refuses everything
	refuses  map[string]bool // the reverts of these leases
	slow     time.Duration   // each call takes that long
	each     time.Duration   // … and that for each lease
	calls    int             // of revert
	tries    map[string]int  // reverts by lease
	running  int
	most     int // calls at a time
}

func newServer() *server {
	return &server{accounts: map[string]bool{}, refuses: map[string]bool{}, tries: map[string]int{}}
}

var errDown = errors.New("connection refused")

func (d *server) apply(l *Lease) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return errDown
	}
	d.accounts[l.ID] = true
	return nil
}

func (d *server) revert(ctx context.Context, _ string, ls []*Lease) []error {
	d.mu.Lock()
	d.calls++
	d.running++
	d.most = max(d.most, d.running)
	slow := d.slow + time.Duration(len(ls))*d.each
	d.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running--
	errs := make([]error, len(ls))
	for i, l := range ls {
		d.tries[l.ID]++
		switch {
		case d.down:
			errs[i] = errDown
		case d.refuses[l.ID]:
			errs[i] = errors.New("role owns objects")
		case ctx.Err() != nil:
			errs[i] = ctx.Err()
		default:
			delete(d.accounts, l.ID)
		}
	}
	return errs
}

func (d *server) set(down bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = down
}

// refuse makes the target keep one account, or give it up.
func (d *server) refuse(id string, keep bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuses[id] = keep
}

// forget removes accounts behind lessor's back.
func (d *server) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.accounts)
}

// tried is how often the revert of a lease was tried; called, how often the target was asked.
func (d *server) tried(id string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tries[id]
}

func (d *server) called() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls
}

func (d *server) has(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.accounts[id]
}

func (d *server) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.accounts)
}

// failer is what a *testing.T and a *rapid.T have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// world is a store, a target and a reaper.
type world struct {
	failer
	disk   *mem.Disk
	db     *store.DB
	target *server
	reaper *Reaper
	fenced atomic.Bool
	random io.Reader
	stop   func()
}

// chance is a seeded io.Reader that may be shared.
type chance struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func (c *chance) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.Read(b)
}

func newWorldRandom() io.Reader { return &chance{r: rand.NewChaCha8([32]byte{1})} }

func newWorld(f failer) *world {
	w := &world{failer: f, disk: new(mem.Disk), target: newServer(), random: newWorldRandom(), stop: func() {}}
	w.open()
	return w
}

func (w *world) open() {
	w.Helper()
	db, err := store.Open(w.disk.Open(), store.Options{})
	w.must(err)
	w.must(db.Unseal(storetest.NewCipher("lease")))
	w.db = db
	w.reaper = New(Options{Store: db, Revert: w.target.revert, Random: w.random, Poll: 10 * time.Minute, Fenced: w.fenced.Load,
		Belongings: func(hash string) []store.Range {
			p := store.MountKey(lessor.RootNamespace, "cubbyhole", hash)
			return []store.Range{{Table: store.Secrets, From: p, To: store.PrefixEnd(p)}}
		}})
}

// start starts the reaper.
func (w *world) start() {
	run, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { w.reaper.Run(run); close(done) }()
	w.stop = func() { cancel(); <-done; w.stop = func() {} }
}

func (w *world) close() {
	w.Helper()
	w.stop()
	w.must(w.db.Close())
}

// restart loses all that is not in the store.
func (w *world) restart() {
	w.Helper()
	w.close()
	w.open()
	w.start()
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatalf("%v", err)
	}
}

func (w *world) view(f func(v store.View)) {
	w.Helper()
	v, err := w.db.View()
	w.must(err)
	defer v.Close()
	f(v)
}

// do commits what f fills in.
func (w *world) do(f func(v store.View, txn *store.Txn)) error {
	w.Helper()
	var txn store.Txn
	w.view(func(v store.View) { f(v, &txn) })
	_, err := w.db.Commit(ctx, txn)
	w.reaper.Nudge()
	return err
}

func (w *world) commit(f func(v store.View, txn *store.Txn)) {
	w.Helper()
	w.must(w.do(f))
}

// draft is a lease that was decided on the latest View.
func (w *world) draft(path string, ttl time.Duration, set ...func(*Lease)) *Lease {
	w.Helper()
	id, err := NewID(path, w.random)
	w.must(err)
	now := w.db.Now()
	l := &Lease{
		ID: id, Namespace: lessor.RootNamespace, Mount: database.UUID, Kind: Dynamic, State: Pending, Issued: now, Expires: now.Add(ttl), TTL: ttl,
		Max: now.Add(100 * ttl), Renewable: true, Holder: alice, Owner: "team-a", Target: "pg", Intent: []byte("drop role"),
	}
	w.view(func(v store.View) { l.Position = v.Position() })
	for _, f := range set {
		f(l)
	}
	return l
}

// pend makes the lease durable, to be confirmed within 30 s.
func (w *world) pend(l *Lease) error {
	end := l.Expires
	l.Expires = l.Issued.Add(30 * time.Second)
	err := w.do(func(_ store.View, txn *store.Txn) { Add(txn, l) })
	l.Expires = end
	return err
}

func (w *world) confirm(l *Lease) error {
	return w.do(func(v store.View, txn *store.Txn) {
		cur, row, err := Get(v, l)
		w.must(err)
		if cur == nil || cur.State != Pending {
			txn.Absent(store.Leases, row.Name)
			txn.Require(store.Row{Key: row.Key, Version: row.Version + 1})
			return
		}
		l.Due = cur.Due
		Confirm(txn, row, l)
	})
}

// issue makes a credential.
func (w *world) issue(path string, ttl time.Duration, set ...func(*Lease)) *Lease {
	w.Helper()
	l := w.draft(path, ttl, set...)
	w.must(w.pend(l))
	w.must(w.target.apply(l))
	w.must(w.confirm(l))
	return l
}

func (w *world) get(l *Lease) *Lease {
	w.Helper()
	var got *Lease
	w.view(func(v store.View) {
		var err error
		got, _, err = Get(v, l)
		w.must(err)
	})
	return got
}

// live reports whether the lease is live now.
func (w *world) live(l *Lease) bool {
	w.Helper()
	var live bool
	w.view(func(v store.View) {
		got, _, err := Get(v, l)
		w.must(err)
		tombs, err := LoadTombs(v)
		w.must(err)
		live = got != nil && got.Live(tombs, w.db.Now())
	})
	return live
}

func (w *world) renew(l *Lease, increment time.Duration) (store.Txn, error) {
	w.Helper()
	for {
		txn, err := w.tryRenew(l, increment)
		if !errors.As(err, new(*store.Conflict)) {
			return txn, err
		}
	}
}

func (w *world) tryRenew(l *Lease, increment time.Duration) (store.Txn, error) {
	w.Helper()
	var kept store.Txn
	var refused error
	err := w.do(func(v store.View, txn *store.Txn) {
		cur, row, err := Get(v, l)
		w.must(err)
		if cur == nil {
			refused = errors.New("lease not found")
			return
		}
		until, _, err := cur.Extended(increment, w.db.Now())
		if refused = err; err != nil {
			return
		}
		cur.Expires, cur.Renewed = until, w.db.Now()
		Save(txn, row, cur)
		kept = *txn
	})
	return kept, errors.Join(refused, err)
}

func (w *world) revoke(l *Lease, forced bool) error {
	w.Helper()
	for {
		if err := w.tryRevoke(l, forced); !errors.As(err, new(*store.Conflict)) {
			return err
		}
	}
}

func (w *world) tryRevoke(l *Lease, forced bool) error {
	w.Helper()
	return w.do(func(v store.View, txn *store.Txn) {
		cur, row, err := Get(v, l)
		w.must(err)
		if cur == nil {
			return
		}
		cur.Forced = forced
		w.must(End(v, txn, row, cur, "revoked by request r-1", w.db.Now()))
	})
}

func (w *world) bury(s Selector, forced bool) string {
	w.Helper()
	t, err := NewTomb(s, "revoked by request r-2", w.db.Now(), w.random)
	w.must(err)
	t.Forced = forced
	w.commit(func(v store.View, txn *store.Txn) {
		Bury(txn, t)
		if s.Kind == ByToken {
			k, row, err := token.Lookup(v, s.Value)
			w.must(err)
			txn.Require(row)
			k.Drop(txn)
		}
	})
	return t.ID
}

// hash is a token's: they are all of one length.
func hash(name string) string { return fmt.Sprintf("%-20s", name) }

// token makes a service token, and something in its cubbyhole.
func (w *world) token(name string, ttl time.Duration, ancestors ...string) *token.Token {
	w.Helper()
	hash, parents := hash(name), []string(nil)
	for _, a := range ancestors {
		parents = append(parents, fmt.Sprintf("%-20s", a))
	}
	now := w.db.Now()
	t := &token.Token{Hash: hash, Accessor: "acc-" + name, Kind: lessor.Service, Ancestors: parents, Path: "auth/userpass/login/x", Created: now,
		Expires: now.Add(ttl), TTL: ttl, Entity: alice.Entity, Alias: alice.Alias, Mount: "authmount\xff\x00uuid", Owner: "team-a"}
	w.commit(func(v store.View, txn *store.Txn) {
		t.Position = v.Position()
		t.Store(txn)
		txn.Put(store.Secrets, store.MountKey(lessor.RootNamespace, "cubbyhole", hash, "/x"), []byte("mine"))
	})
	return t
}

func (w *world) hasToken(name string) bool {
	w.Helper()
	var found bool
	w.view(func(v store.View) {
		t, _, err := token.Lookup(v, hash(name))
		w.must(err)
		found = t != nil
	})
	return found
}

// names lists the rows of a table without their namespace and mount.
func (w *world) names(table store.Table) []string {
	w.Helper()
	var all []string
	w.view(func(v store.View) {
		for row, err := range v.Scan(table, "", "") {
			w.must(err)
			all = append(all, row.Name)
		}
	})
	return all
}

// sound checks what always holds: each lease has just the index rows that its state wants, nobody else has any, and each account at the
// target has a lease.
func (w *world) sound() {
	w.Helper()
	want := map[store.Key]bool{}
	leases := map[string]*Lease{}
	w.view(func(v store.View) {
		for row, err := range v.Scan(store.Leases, "", "") {
			w.must(err)
			l, err := Decode(row)
			w.must(err)
			leases[l.ID] = l
			want[store.Key{Table: store.Holds, Name: row.Name}] = true
			if l.State == Revoking {
				want[store.Key{Table: store.LeaseIdx, Name: l.queueName()}] = true
				if l.Tomb != "" {
					want[store.Key{Table: store.LeaseIdx, Name: tombPrefix(l.Tomb) + row.Name}] = true
				}
				continue
			}
			if l.Due.After(l.Expires) {
				w.Errorf("%s is due at %s, after it expires at %s", l.ID, l.Due, l.Expires)
			}
			want[store.Key{Table: store.Due, Name: l.dueName()}] = true
			if l.Token != "" {
				want[store.Key{Table: store.LeaseIdx, Name: tokenPrefix(l.Token) + row.Name}] = true
			}
			if name := l.heirName(); name != "" {
				want[store.Key{Table: store.LeaseIdx, Name: name}] = true
			}
			if l.Kind == Static && l.State == Live {
				want[l.pointerKey()] = true
			}
		}
		for _, table := range []store.Table{store.Due, store.LeaseIdx, store.Holds} {
			for row, err := range v.Scan(table, "", "") {
				w.must(err)
				if !want[row.Key] && !w.others(row.Key) && !w.outlives(row, leases) {
					w.Errorf("stray row %s", row.Key)
				}
				delete(want, row.Key)
			}
		}
		for k := range want {
			if k.Table != store.Holds {
				w.Errorf("missing row %s", k)
			}
		}
	})
	w.target.mu.Lock()
	defer w.target.mu.Unlock()
	for id := range w.target.accounts {
		if leases[id] == nil {
			w.Errorf("orphan account: %s", id)
		}
	}
}

// others are the rows that belong to no lease.
func (w *world) others(k store.Key) bool {
	_, _, rest := store.SplitMountKey(k.Name)
	switch k.Table {
	case store.Due:
		_, rest, ok := store.ParseTimeKey(k.Name)
		return ok && strings.HasPrefix(rest, token.DueToken)
	case store.LeaseIdx:
		return strings.HasPrefix(rest, "x/") || strings.HasPrefix(rest, "d/") || strings.HasPrefix(rest, "k/")
	}
	return false
}

// outlives reports whether a row is a pointer whose lease has ended, of a secret that is rotated.
func (w *world) outlives(row store.Row, leases map[string]*Lease) bool {
	w.Helper()
	if _, _, rest := store.SplitMountKey(row.Name); row.Table != store.LeaseIdx || !strings.HasPrefix(rest, "h/") {
		return false
	}
	p, err := decodePointer(row)
	w.must(err)
	return p.Rotatable && !p.Lapsed.IsZero() && leases[p.ID] == nil
}

// empty checks that nothing is left but findings.
func (w *world) empty() {
	w.Helper()
	w.sound()
	for _, table := range []store.Table{store.Leases, store.Due, store.Holds, store.Tombs, store.Tokens, store.TokenIdx, store.Secrets, store.LeaseIdx} {
		names := slices.DeleteFunc(w.names(table), func(n string) bool {
			_, _, rest := store.SplitMountKey(n)
			return strings.HasPrefix(rest, "x/") || strings.HasPrefix(rest, "d/")
		})
		if len(names) > 0 {
			w.Errorf("%d rows left of %s: %q…", len(names), table, names[0])
		}
	}
	if n := w.target.count(); n > 0 {
		w.Errorf("%d accounts left at the target", n)
	}
}

// trail is what the audit trail says of a lease.
func (w *world) trail(id string) []string {
	w.Helper()
	var all []string
	w.must(w.audit(func(r audit.At) {
		if r.Lease == id {
			all = append(all, strings.TrimSpace(fmt.Sprint(r.Operation, " ", r.Phase, " ", r.Cause, " ", r.ErrorKind)))
		}
	}))
	return all
}

func run(t *testing.T, name string, f func(t *testing.T, w *world)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { inBubble(t, f) })
}

// audit calls f for each record, in order.
func (w *world) audit(f func(audit.At)) error {
	q := store.Query{Limit: 100_000}
	records, _, err := w.db.Records(q)
	for _, r := range records {
		f(r)
	}
	return err
}
