package archive

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// tb is a test, or one run of rapid's.
type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
	Errorf(string, ...any)
}

// world is a store in memory with a Keeper for it.
type world struct {
	t      tb
	clock  *storetest.Clock
	cipher *storetest.Cipher
	disk   *mem.Disk
	db     *store.DB
	to     Destination
	*Keeper
}

func newWorld(t tb, to Destination, seed string) *world {
	w := &world{t: t, clock: storetest.NewClock(), cipher: storetest.NewCipher(seed), disk: new(mem.Disk), to: to}
	w.start()
	w.commit(store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Meta, Name: "cluster"}, Value: []byte(seed)}}})
	return w
}

// start opens the store, and makes a Keeper.
func (w *world) start() {
	w.t.Helper()
	var err error
	if w.db, err = store.Open(w.disk.Open(), store.Options{Clock: w.clock}); err == nil {
		err = w.db.Unseal(w.cipher)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.Keeper = NewKeeper(Options{
		Store: w.db, Keys: w.cipher, Destination: w.to, Random: rand.Reader, Interval: time.Minute, Full: 24 * time.Hour, Keep: 30 * 24 * time.Hour, segment: 2000,
	})
}

func (w *world) stop() {
	if err := w.db.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) commit(x store.Txn) store.Receipt {
	w.t.Helper()
	r, err := w.db.Commit(context.Background(), x)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) put(name, value string) {
	w.t.Helper()
	w.commit(store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Secrets, Name: name}, Value: []byte(value)}}, Audit: []audit.Record{record(name)}})
}

func record(path string) audit.Record {
	return audit.Record{Operation: "update", Path: path, Phase: audit.Done, Entity: "entity", Name: "somebody", Accessor: "accessor", Granted: true}
}

// backUp makes one attempt, which must succeed.
func (w *world) backUp() {
	w.t.Helper()
	if err := w.attempt(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

// content is all rows that transactions write, as a string each.
func content(t tb, db *store.DB) map[store.Key]string {
	t.Helper()
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	rows := map[store.Key]string{}
	for table := store.Meta; table < store.Batches; table++ {
		if table.Once() {
			continue
		}
		for row, err := range v.Scan(table, "", "") {
			if err != nil {
				t.Fatal(err)
			}
			rows[row.Key] = fmt.Sprintf("%d %s %x", row.Version, row.Value, row.Sealed())
		}
	}
	return rows
}

// path is the way to a point; no name contradicts another.
func (w *world) path(p Segment) []Segment {
	return w.catalog().Path(p, func(s Segment) bool { w.t.Errorf("it was asked for %s", s.Name()); return false })
}

func (w *world) catalog() *Catalog {
	w.t.Helper()
	c, err := Read(context.Background(), w.to)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// restore restores a point into a new store, which it verifies.
func (w *world) restore(p Segment) (*store.DB, error) {
	w.t.Helper()
	disk := new(mem.Disk)
	unseal := func(store.View) (store.Cipher, error) { return w.cipher, nil }
	void := func(_ store.View, x *store.Txn) error {
		x.Audit = append(x.Audit, record("sys/restore"))
		return nil
	}
	h, err := store.RestoreFrom(context.Background(), NewSource(context.Background(), w.to, w.catalog(), p), disk.Open(), store.Options{Clock: w.clock}, unseal, void)
	if err != nil {
		return nil, err
	}
	if h.Seq != p.Seq+1 {
		w.t.Errorf("restored to commit %d, not to %d", h.Seq-1, p.Seq)
	}
	db, err := store.Open(disk.Open(), store.Options{Clock: w.clock})
	if err == nil {
		err = db.Unseal(w.cipher)
	}
	if err == nil {
		_, err = db.Verify(context.Background(), nil)
	}
	if err != nil {
		w.t.Fatalf("restored to %s: %v", p.Name(), err)
	}
	return db, nil
}

// mustEqual holds the rows of a restored store against those that there were, but for what a restore voids.
func mustEqual(t tb, p Segment, db *store.DB, want map[store.Key]string) {
	t.Helper()
	got, want := content(t, db), maps.Clone(want)
	delete(got, store.Fenced)
	for k := range want {
		if k.Table.Power() == 2 {
			delete(want, k)
		}
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("at %s, %s is %q; it was %q", p.Name(), k, got[k], v)
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("at %s, there is %s", p.Name(), k)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// memory is a Destination of tests that make thousands: objects in memory.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
	away    atomic.Pointer[error] // what writing fails with
	hidden  atomic.Pointer[error] // what reading fails with
	writes  atomic.Int64
	reads   atomic.Int64
}

func newMemory() *memory { return &memory{objects: map[string][]byte{}} }

func (m *memory) List(context.Context) iter.Seq2[Object, error] {
	m.mu.Lock()
	defer m.mu.Unlock()
	objects := maps.Clone(m.objects)
	return func(yield func(Object, error) bool) {
		for name, content := range objects {
			if !yield(Object{name, int64(len(content))}, nil) {
				return
			}
		}
	}
}

func (m *memory) Read(_ context.Context, name string) ([]byte, error) {
	m.reads.Add(1)
	if err := m.hidden.Load(); err != nil {
		return nil, *err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	content, ok := m.objects[name]
	if !ok {
		return nil, ErrGone
	}
	return bytes.Clone(content), nil
}

func (m *memory) Write(_ context.Context, name string, content []byte) error {
	m.writes.Add(1)
	if err := m.away.Load(); err != nil {
		return *err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[name]; !ok {
		m.objects[name] = bytes.Clone(content)
	}
	return nil
}

func (m *memory) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

func (m *memory) String() string { return "memory" }

var workload = []store.Table{store.Config, store.Tokens, store.Leases, store.Secrets, store.Engine}

// act does something to the store by chance.
func (w *world) act(t *rapid.T) {
	table := rapid.SampledFrom(workload).Draw(t, "table")
	name := func(what string) string { return rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, what) }
	x := store.Txn{Audit: []audit.Record{record("secret/" + name("path")), record("secret/x")}}
	switch rapid.IntRange(0, 6).Draw(t, "act") {
	case 0, 1, 2:
		x.Put(table, name("name"), rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "value"))
		if second := name("second"); second != x.Puts[0].Name {
			x.Put(table, second, []byte("2"))
		}
	case 3:
		x.Delete(table, name("name"))
	case 4:
		if table.Power() == 0 {
			x.Ranges = []store.Range{{Table: table, From: name("from")}}
			x.Put(table, name("name"), []byte("after the range"))
		}
	case 5:
		w.clock.Advance(time.Duration(rapid.IntRange(1, 2000).Draw(t, "minutes")) * time.Minute)
		if _, err := w.db.Prune(context.Background(), w.db.Now().Add(-48*time.Hour), record("sys/prune")); err != nil {
			t.Fatal(err)
		}
	case 6:
		w.clock.Advance(time.Second)
		x.Audit = nil
	}
	w.commit(x)
}

// TestEveryPoint restores to each point of random histories, with restarts, bases now and then, runs of several segments, deletions of
// ranges and pruning: each is what the store was then, and verifies.
func TestEveryPoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, newMemory(), "every")
		w.o.Keep = 0
		was := map[string]map[store.Key]string{}
		for range rapid.IntRange(2, 6).Draw(t, "points") {
			for range rapid.IntRange(0, 12).Draw(t, "acts") {
				w.act(t)
			}
			if rapid.IntRange(0, 4).Draw(t, "restart") == 0 {
				w.stop()
				w.start()
				w.o.Keep = 0
			}
			w.clock.Advance(time.Second) // so that times tell points apart
			w.backUp()
			was[w.Status().Point] = content(t, w.db)
		}
		c := w.catalog()
		if len(c.Points) != len(was) || len(c.Broken) > 0 {
			t.Fatalf("%d points of %d, %v", len(c.Points), len(was), c.Broken)
		}
		for _, p := range c.Points {
			at, err := c.At(p.Time, "")
			if err != nil || at.Name() != p.Name() {
				t.Errorf("at %s: %v, %v", p.Time, at, err)
			}
			db, err := w.restore(p)
			if err != nil {
				t.Fatal(err)
			}
			mustEqual(t, p, db, was[p.Name()])
		}
		w.stop()
	})
}

// TestIdle: what the Keeper itself puts on record is no reason for another backup, and age counts from when it was looked.
func TestIdle(t *testing.T) {
	m := newMemory()
	w := newWorld(t, m, "idle")
	defer w.stop()
	w.backUp()
	n := len(m.objects)
	for range 5 {
		w.clock.Advance(time.Minute)
		w.backUp()
	}
	if s := w.Status(); len(m.objects) != n || !s.Covered.Equal(w.db.Now()) || s.State != "current" {
		t.Errorf("%d objects became %d; %+v", n, len(m.objects), s)
	}
	w.put("a", "b")
	w.backUp()
	if p := w.catalog().Points; len(p) != 2 || p[1].Set != p[0].Set {
		t.Errorf("points: %v", p)
	}
	w.clock.Advance(24 * time.Hour)
	w.backUp()
	if p := w.catalog().Points; len(p) != 3 || p[2].Set == p[0].Set || p[2].Index == 0 && !p[2].Point {
		t.Errorf("after a day there is no base: %v", p)
	}
	var acts []string
	for _, r := range w.recorded() {
		acts = append(acts, r.Operation+" "+string(r.Phase))
	}
	if want := []string{
		"backup base begun", "backup base outcome", "backup increment begun", "backup increment outcome", "backup base begun", "backup base outcome",
	}; !slices.Equal(acts, want) {
		t.Errorf("on record: %q", acts)
	}
}

// recorded is what the Keeper has put on record.
func (w *world) recorded() (all []audit.Record) {
	w.t.Helper()
	commits, err := w.db.Commits(1, 1<<20)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range commits {
		for _, r := range c.Records {
			if r.System == "archive" {
				all = append(all, r.Record)
			}
		}
	}
	return all
}

// TestDamage: whatever happens to one of the objects on the way to a point, a restore fails and names it.
func TestDamage(t *testing.T) {
	m := newMemory()
	w := newWorld(t, m, "damage")
	defer w.stop()
	for i := range 6 {
		for j := range 20 {
			w.put(fmt.Sprint(i, j), strings.Repeat("value", 40))
		}
		w.clock.Advance(time.Minute)
		w.backUp()
	}
	points := w.catalog().Points
	last := points[len(points)-1]
	path := w.path(last)
	if len(path) < 10 {
		t.Fatalf("%d segments only", len(path))
	}
	victim := path[len(path)/2]
	other := newWorld(t, newMemory(), "other")
	other.backUp()
	foreign := other.to.(*memory).objects[other.Status().Point]
	sound := m.objects[victim.Name()]
	flipped := func(at int) []byte {
		b := bytes.Clone(sound)
		b[at] ^= 8
		return b
	}
	for name, bad := range map[string][]byte{
		"cut": sound[:len(sound)/2], "empty": {}, "flipped in the header": flipped(30), "flipped in a row": flipped(len(sound) / 2),
		"flipped in the hash": flipped(len(sound) - 40), "another's": m.objects[path[1].Name()], "of another store": foreign,
	} {
		m.objects[victim.Name()] = bad
		if _, err := w.restore(last); err == nil || !strings.Contains(err.Error(), victim.Name()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.objects[victim.Name()] = sound

	// Somebody without the keys can remake hashes and names, but no MAC.
	end := m.objects[last.Name()]
	e, err := parse(end)
	if err != nil {
		t.Fatal(err)
	}
	forged, _, err := seal(&e.Header, e.rows, storetest.NewCipher("an attacker's"))
	if err != nil {
		t.Fatal(err)
	}
	m.objects[last.Name()] = forged
	if _, err := w.restore(last); err == nil || !strings.Contains(err.Error(), "not made under these keys") || !strings.Contains(err.Error(), last.Name()) {
		t.Errorf("forged: %v", err)
	}
	m.objects[last.Name()] = end

	// One that is missing is told before anything is read; points before it are good still.
	delete(m.objects, victim.Name())
	c := w.catalog()
	if len(c.Broken) != 1 || !strings.Contains(c.Broken[0], victim.Hash) {
		t.Errorf("missing: %v", c.Broken)
	}
	before, err := c.At(last.Time, "")
	if err != nil || before.Index >= victim.Index {
		t.Fatalf("the last point before it: %v, %v", before, err)
	}
	db, err := w.restore(before)
	if err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
	if _, err := c.At(points[0].Time.Add(-time.Hour), ""); !errors.Is(err, ErrNone) {
		t.Errorf("before the first: %v", err)
	}
	// The Keeper does not continue what is broken.
	w.stop()
	w.start()
	w.put("more", "and more")
	w.backUp()
	if p := w.catalog().Points; len(p) == 0 || w.Status().Point != p[len(p)-1].Name() {
		t.Errorf("after that: %v", w.Status())
	}
}

// TestReordered feeds increments in another order than they were made, with their hashes put right: the store's own chain tells.
func TestReordered(t *testing.T) {
	m := newMemory()
	w := newWorld(t, m, "reordered")
	defer w.stop()
	w.o.segment = 1 << 20
	for range 3 {
		w.put("a", "b")
		w.backUp()
	}
	path := w.path(w.catalog().Points[2])
	if len(path) != 3 {
		t.Fatal(path)
	}
	first, err1 := parse(m.objects[path[0].Name()])
	third, err2 := parse(m.objects[path[2].Name()])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	third.Index, third.Prev = 1, first.hash
	for _, after := range []uint64{third.After, first.Seq} { // the second with what it says put right, too
		third.After = after
		content, hash, err := seal(&third.Header, third.rows, w.cipher)
		if err != nil {
			t.Fatal(err)
		}
		p := describe(&third.Header, hash)
		m.objects[p.Name()] = content
		if _, err := w.restore(p); err == nil || !strings.Contains(err.Error(), p.Name()) {
			t.Errorf("after %d: %v", after, err)
		}
	}
}

// TestFollows says of each way in which a segment may not follow another that it does not.
func TestFollows(t *testing.T) {
	base := &segment{Header: Header{Set: "s", Base: true, Seq: 9}, hash: audit.Hash{1}}
	point := &segment{Header: Header{Set: "s", Index: 3, Base: true, Point: true, Seq: 9}, hash: audit.Hash{2}}
	part := Header{Set: "s", Index: 1, Prev: base.hash, Base: true, Seq: 9}
	increment := Header{Set: "s", Index: 4, Prev: point.hash, After: 9, Seq: 12}
	for _, c := range []struct {
		what   string
		h      Header
		change func(*Header)
		before *segment
		ok     bool
	}{
		{"a base", base.Header, func(*Header) {}, nil, true},
		{"an increment without a base", increment, func(*Header) {}, nil, false},
		{"a base's second", base.Header, func(h *Header) { h.Index = 1 }, nil, false},
		{"what has one before", base.Header, func(h *Header) { h.Prev = point.hash }, nil, false},
		{"no base", base.Header, func(h *Header) { h.Base = false }, nil, false},
		{"a part", part, func(*Header) {}, base, true},
		{"another set's", part, func(h *Header) { h.Set = "t" }, base, false},
		{"not the next", part, func(h *Header) { h.Index = 2 }, base, false},
		{"after another", part, func(h *Header) { h.Prev = point.hash }, base, false},
		{"a part of another state", part, func(h *Header) { h.Seq = 10 }, base, false},
		{"an increment within a base", part, func(h *Header) { h.Base = false }, base, false},
		{"an increment", increment, func(*Header) {}, point, true},
		{"an increment after another state", increment, func(h *Header) { h.After = 8 }, point, false},
		{"a base after a base", increment, func(h *Header) { h.Base = true }, point, false},
	} {
		c.change(&c.h)
		if err := (&segment{Header: c.h}).follows(c.before); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// TestForeign: a destination that has another store's backups is left alone, aloud.
func TestForeign(t *testing.T) {
	m := newMemory()
	other := newWorld(t, m, "other")
	other.backUp()
	other.stop()
	n := len(m.objects)
	w := newWorld(t, m, "one")
	defer w.stop()
	if err := w.attempt(t.Context()); err == nil || !strings.Contains(err.Error(), "another store") {
		t.Errorf("%v", err)
	}
	if len(m.objects) != n {
		t.Error("it wrote all the same")
	}
}

// TestTwoWriters: two that continue the same point make two branches, each of whose points can be restored.
func TestTwoWriters(t *testing.T) {
	m := newMemory()
	w := newWorld(t, m, "two")
	defer w.stop()
	w.backUp()
	second := *w
	second.Keeper = NewKeeper(w.o)
	if err := second.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	second.looked = true
	was := map[string]map[store.Key]string{w.Status().Point: content(t, w.db)}
	for i := range 4 {
		for _, k := range []*world{w, &second} {
			k.put(fmt.Sprint(i), "x")
			k.backUp()
			was[k.Status().Point] = content(t, k.db)
		}
	}
	c := w.catalog()
	if len(c.Points) != 9 || len(c.Broken) > 0 || len(c.sets) != 1 {
		t.Errorf("%d points in %d sets, %v", len(c.Points), len(c.sets), c.Broken)
	}
	for _, p := range c.Points {
		db, err := w.restore(p)
		if err != nil {
			t.Fatal(err)
		}
		mustEqual(t, p, db, was[p.Name()])
	}
}

// TestAway: a destination that is away fails loudly, is on record once, and is tried again.
func TestAway(t *testing.T) {
	m := newMemory()
	w := newWorld(t, m, "away")
	defer w.stop()
	away := errors.New("the destination is away")
	m.away.Store(&away)
	ctx, cancel := context.WithCancel(t.Context())
	running := make(chan struct{})
	go func() { defer close(running); w.Run(ctx) }()
	await(t, func() bool {
		s := w.Status()
		return s.State == "failing" && s.Failures >= 2 && strings.Contains(s.Error, "away")
	})
	m.away.Store(nil)
	await(t, func() bool { return w.Status().State == "current" })
	w.put("a", "b")
	if err := w.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(w.catalog().Points) != 2 {
		t.Errorf("%v", w.catalog().Points)
	}
	cancel()
	<-running
	failed := 0
	for _, r := range w.recorded() {
		if r.ErrorKind != "" {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("the outage is on record %d times", failed)
	}
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
	}
}

// TestRestored: a restored copy makes no backups until it is resumed, then goes on in the same place: after the point that it was restored to, if
// that was the last, else in a set of its own.
func TestRestored(t *testing.T) {
	for i, to := range []string{"an earlier point", "the last point"} {
		t.Run(to, func(t *testing.T) {
			m := newMemory()
			w := newWorld(t, m, "restored")
			w.put("a", "b")
			w.commit(store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Tokens, Name: "void"}, Value: []byte("x")}}})
			w.backUp()
			w.clock.Advance(time.Minute)
			w.put("a", "c")
			w.backUp()
			points := w.catalog().Points
			w.stop()
			db, err := w.restore(points[i])
			if err != nil {
				t.Fatal(err)
			}
			w.db = db
			w.o.Store = db
			w.Keeper = NewKeeper(w.o)
			n := len(m.objects)
			w.backUp()
			if w.Status().State != "fenced" || len(m.objects) != n {
				t.Errorf("a fenced copy: %+v", w.Status())
			}
			w.commit(store.Txn{Deletes: []store.Key{store.Fenced}})
			w.backUp()
			was := content(t, w.db)
			after := w.catalog().Points
			if len(after) != 3 || (after[2].Set == points[0].Set) != (i == 1) {
				t.Errorf("resumed: %v", after)
			}
			again, err := w.restore(after[2])
			if err != nil {
				t.Fatal(err)
			}
			if again.Head().Incarnation != 3 {
				t.Errorf("incarnation %d", again.Head().Incarnation)
			}
			mustEqual(t, after[2], again, was)
			w.stop()
		})
	}
}

// TestRetention runs for forty days, and keeps thirty: each time within them can be gone back to, and what is over is gone.
func TestRetention(t *testing.T) {
	m := newMemory()
	w := newWorld(t, m, "retention")
	defer w.stop()
	var dead string // of a writer that died midway
	for hour := range 40 * 24 / 6 {
		w.put("a", fmt.Sprint(hour))
		w.backUp()
		if hour == 40*24/6-20 {
			half := *w.tip
			half.Index, half.Prev, half.Point = half.Index+1, half.hash, false
			content, hash, err := seal(&half.Header, nil, w.cipher)
			if err != nil {
				t.Fatal(err)
			}
			dead = describe(&half.Header, hash).Name()
			m.objects[dead] = content
		}
		if _, there := m.objects[dead]; dead != "" && hour == 40*24/6-19 && !there {
			t.Error("what another may be writing was deleted")
		}
		w.clock.Advance(6 * time.Hour)
	}
	c := w.catalog()
	if len(c.Broken) > 0 {
		t.Errorf("broken: %v", c.Broken)
	}
	oldest := w.db.Now().Add(-30 * 24 * time.Hour)
	for at := oldest; at.Before(w.db.Now()); at = at.Add(6 * time.Hour) {
		p, err := c.At(at, "")
		if err != nil || at.Sub(p.Time) > 6*time.Hour {
			t.Fatalf("of %s there is %v, %v", at, p, err)
		}
	}
	if first := c.Points[0].Time; oldest.Sub(first) > 36*time.Hour {
		t.Errorf("the oldest point is of %s, needed from %s on", first, oldest)
	}
	if _, there := m.objects[dead]; there {
		t.Error("a run that was never ended is kept for ever")
	}
}

// TestSparse: of a store that was off for long, the last point before the time to keep stays, however old it is.
func TestSparse(t *testing.T) {
	now := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	day := func(n int) time.Time { return now.AddDate(0, 0, -n) }
	point := func(set string, index uint32, at time.Time, prev, hash string) Segment {
		return Segment{Set: at.Format(setLayout) + "-000000000000000" + set, Index: index, Time: at, Seq: 1, Prev: prev, Hash: hash, Point: true}
	}
	a, b := point("a", 0, day(60), none, "a"), point("b", 0, day(50), none, "b")
	later := Segment{Set: b.Set, Index: 1, Time: day(49), Seq: 2, Prev: "b", Hash: "b1", Point: true}
	c := point("c", 0, day(1), none, "c")
	any := func(Segment) bool { return true }
	lost := Segment{Set: day(55).Format(setLayout) + "-000000000000000d", Index: 3, Time: day(54), Prev: "x", Hash: "d", Point: true} // its base is gone
	got := catalog([]Segment{c, lost, later, b, a}).expired(now, 30*24*time.Hour, any)
	if want := []Segment{a, lost}; !slices.Equal(got, want) {
		t.Errorf("expired: %v, not %v", got, want)
	}
	if got := catalog([]Segment{c, later, b, a}).expired(now, 0, any); len(got) > 0 {
		t.Errorf("expired although all is kept: %v", got)
	}
	if got := catalog([]Segment{later, b, a}).expired(now, 40*24*time.Hour, any); !slices.Equal(got, []Segment{a}) {
		t.Errorf("nothing is newer than what is kept: %v", got)
	}
}

// TestForgedNames: who may write to the destination, and not delete, has the Keeper delete nothing that is needed.
func TestForgedNames(t *testing.T) {
	m := newMemory()
	w := newWorld(t, m, "forged")
	defer w.stop()
	w.o.segment = 64 // so that each run is of several
	w.put("a", "1")
	w.backUp()
	w.clock.Advance(time.Hour)
	w.put("a", "2")
	w.backUp()
	w.clock.Advance(40 * 24 * time.Hour) // switched off: these are the last before the time to keep
	before := w.catalog()
	ways := map[Segment][]Segment{}
	for _, p := range before.Points {
		ways[p] = w.path(p)
	}
	first := before.Points[0]
	last := before.Points[len(before.Points)-1]
	forge := func(s Segment) { m.objects[s.Name()] = []byte("forged") }
	later := last.Time.Add(48 * time.Hour)
	forge(Segment{Set: later.Format(setLayout) + "-0000000000000000", Time: later, Seq: last.Seq + 1, Prev: none, Hash: "ffffffffffffffff", Point: true})
	forge(Segment{Set: last.Set, Index: last.Index + 7, Time: last.Time, Seq: last.Seq, Prev: "eeeeeeeeeeeeeeee", Hash: last.Prev})      // as if it were the one before
	forge(Segment{Set: last.Set, Index: first.Index, Time: first.Time, Seq: first.Seq, Prev: "eeeeeeeeeeeeeeee", Hash: first.Hash})      // in its place
	forge(Segment{Set: first.Set, Time: first.Time.Add(-9 * 24 * time.Hour), Seq: 1, Prev: none, Hash: "0000000000000000", Point: true}) // an earlier base
	w.put("a", "3")
	w.backUp() // and tidies up
	for _, p := range before.Points {
		for _, s := range ways[p] {
			if _, there := m.objects[s.Name()]; !there {
				t.Errorf("%s was deleted", s.Name())
			}
		}
	}
}

// TestForgedBases: bases that others put there are read once, some at a time; what is over goes once they are known for what they are.
func TestForgedBases(t *testing.T) {
	m := newMemory()
	w := newWorld(t, m, "bases")
	defer w.stop()
	w.o.Full = 10 * 24 * time.Hour
	w.put("a", "1")
	w.backUp()
	first := w.Status().Point
	w.clock.Advance(w.o.Full)
	w.put("a", "2")
	w.backUp()
	second := w.catalog().Points[1]
	w.clock.Advance(40 * 24 * time.Hour)
	forged := 2*vouchReads + 3
	for i := range forged {
		at := second.Time.Add(time.Duration(i+1) * time.Hour)
		m.objects[Segment{Set: at.Format(setLayout) + "-0000000000000000", Time: at, Seq: second.Seq + 1, Prev: none, Hash: "ffffffffffffffff", Point: true}.Name()] = []byte("forged")
	}
	at := second.Time.Add(30 * time.Hour)
	large := Segment{Set: at.Format(setLayout) + "-0000000000000001", Time: at, Seq: second.Seq + 1, Prev: none, Hash: "ffffffffffffffff", Point: true}.Name()
	m.objects[large] = make([]byte, vouchBytes+1) // nobody reads it
	read := func() int64 {
		t.Helper()
		was := m.reads.Load()
		w.put("a", "again")
		w.backUp()
		w.clock.Advance(tidyEvery)
		return m.reads.Load() - was
	}
	there := func(name string) bool { return m.objects[name] != nil }
	for range 2 {
		if n := read(); n != vouchReads {
			t.Errorf("%d bases were read", n)
		}
	}
	away := errors.New("the destination cannot be read")
	m.hidden.Store(&away)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	w.tidy(ended) // which would try again, for seconds
	m.hidden.Store(nil)
	w.clock.Advance(tidyEvery)
	if !there(first) {
		t.Fatal("a base was taken for the store's own that nobody had read")
	}
	if n := read(); n != int64(forged+1-2*vouchReads) || there(first) || !there(second.Name()) {
		t.Errorf("%d more were read; the first base is there: %t, the second: %t", n, there(first), there(second.Name()))
	}
	for range 2 {
		if n := read(); n != 0 {
			t.Errorf("%d bases were read again", n)
		}
	}
	delete(m.objects, large)
	read()
	if len(w.own) != forged+1 {
		t.Errorf("%d bases are remembered, of %d", len(w.own), forged+1)
	}
	maps.DeleteFunc(m.objects, func(name string, _ []byte) bool { return strings.HasSuffix(name, "-ffffffffffffffff-point") })
	read()
	if len(w.own) != 1 {
		t.Errorf("%d bases are remembered that are no more", len(w.own)-1)
	}
}

// TestContradictingNames: names that claim to be a segment which is there under another do not keep anybody from restoring a point by its own.
func TestContradictingNames(t *testing.T) {
	m := newMemory()
	w := newWorld(t, m, "contradicting")
	defer w.stop()
	w.o.segment = 64 // so that each run is of several
	w.backUp()
	second := *w
	second.Keeper = NewKeeper(w.o)
	if err := second.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	second.looked = true
	was := map[string]map[store.Key]string{w.Status().Point: content(t, w.db)}
	for i := range 2 {
		for _, k := range []*world{w, &second} { // two branches, so that there are others of the same index
			k.clock.Advance(time.Minute)
			k.put(fmt.Sprint("a", i), "x")
			k.backUp()
			was[k.Status().Point] = content(t, k.db)
		}
	}
	c := w.catalog()
	forge := func(s Segment) {
		if _, there := m.objects[s.Name()]; !there {
			m.objects[s.Name()] = []byte("forged")
		}
	}
	for _, s := range slices.Concat(slices.Collect(maps.Values(c.sets))...) {
		for _, prev := range []string{none, "8888888888888888", "ffffffffffffffff"} {
			forged := *s
			forged.Prev = prev
			forge(forged)
		}
		for _, other := range c.sets[s.Set] {
			if forged := *s; other.Index+1 == s.Index {
				forged.Prev = other.Hash
				forge(forged)
			}
		}
		earlier, later, next := *s, *s, *s
		earlier.Time, later.Time, next.Seq = s.Time.Add(-time.Hour), s.Time.Add(time.Hour), s.Seq+1
		forge(earlier)
		forge(later)
		forge(next)
	}
	restored := 0
	for _, p := range w.catalog().Points {
		want := was[p.Name()]
		if want == nil {
			continue // one of the forged
		}
		restored++
		db, err := w.restore(p)
		if err != nil {
			t.Fatal(err)
		}
		mustEqual(t, p, db, want)
	}
	if len(was) != 5 || restored != len(was) {
		t.Errorf("%d of %d points are there", restored, len(was))
	}
}

// TestPlaces makes backups in a folder and in a bucket, and restores them from there.
func TestPlaces(t *testing.T) {
	for kind, open := range places {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t, open(t), "places")
			defer w.stop()
			was := map[string]map[store.Key]string{}
			for i := range 3 {
				for j := range 10 {
					w.put(fmt.Sprint(i, j), strings.Repeat("value", 100))
				}
				w.clock.Advance(time.Minute)
				w.backUp()
				was[w.Status().Point] = content(t, w.db)
			}
			for _, p := range w.catalog().Points {
				db, err := w.restore(p)
				if err != nil {
					t.Fatal(err)
				}
				mustEqual(t, p, db, was[p.Name()])
			}
			if len(was) != 3 || w.Status().Segments < 9 {
				t.Errorf("%d points in %d segments", len(was), w.Status().Segments)
			}
		})
	}
}

// FuzzSegment reads damaged segments: they are refused, or are what they were.
func FuzzSegment(f *testing.F) {
	m := newMemory()
	w := newWorld(f, m, "fuzz")
	w.put("a", "b")
	w.backUp()
	w.put("c", "d")
	w.backUp()
	w.stop()
	for _, b := range m.objects {
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if body := len(b) - 64; mend && body > 0 { // so that the fuzzer gets past the hash
			s, err := parse(b)
			if err != nil {
				hash := sha256.Sum256(b[:body])
				b = append(bytes.Clone(b[:body]), append(hash[:], make([]byte, 32)...)...)
			} else if encoded, _, err := seal(&s.Header, s.rows, w.cipher); err == nil {
				b = encoded
			}
		}
		s, err := parse(b)
		if err != nil {
			return
		}
		n := 0
		if err := s.each(func(e store.Stored) error { n += len(e.Bytes) + len(e.Key.Name) + 3; return nil }); err == nil && n > len(b) {
			t.Errorf("%d bytes of rows in %d", n, len(b))
		}
		if name := describe(&s.Header, s.hash).Name(); len(name) > 1<<20 {
			t.Error("a name that nobody can write")
		} else if p, ok := ParseName(name); ok && p.Name() != name {
			t.Errorf("%s is read as %s", name, p.Name())
		}
	})
}

// FuzzName: a name that is read is written the same.
func FuzzName(f *testing.F) {
	f.Add("20261129T064301Z-3f2a91bc00112233/00000012-20261129T064301.123456Z-000000000000a1b2-89abcdef01234567-0123456789abcdef-point")
	f.Add("20261129T064301Z-3f2a91bc00112233/00000000-20261129T064301.000000Z-0000000000000000-0000000000000000-0123456789abcdef-part")
	f.Fuzz(func(t *testing.T, name string) {
		if s, ok := ParseName(name); ok && s.Name() != name {
			t.Errorf("%q becomes %q", name, s.Name())
		}
	})
}
