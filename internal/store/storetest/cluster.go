package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lessor-dev/lessor/internal/store"
)

// testInterleaved has three nodes commit in turns of chance, upon Views that may be behind, and holds every outcome against a model: what
// commits met its conditions in the latest state of all, what is refused did not, and a node made fresh shows the model. A node that has
// several turns in a row guesses, one that comes after another is told of it; ranges are deleted as well.
func testInterleaved(t *testing.T, open func() store.Backend) {
	const seed, turns = 11, 400
	s := &setup{open: open, cipher: NewCipher("suite"), clock: NewClock()}
	rng := rand.New(rand.NewPCG(seed, 0))
	dbs := []*store.DB{s.db(t, nil, store.Options{}), s.db(t, nil, store.Options{}), s.db(t, nil, store.Options{})}
	tables := []store.Table{store.Config, store.Engine} // one under an authenticated sum, one not
	model := make(map[store.Key]entry)
	key := func() store.Key {
		return store.Key{Table: tables[rng.IntN(len(tables))], Name: fmt.Sprintf("%02d", rng.IntN(12))}
	}
	old := make(map[*store.DB]store.View) // one of each node's from some turns ago
	defer func() {
		for _, v := range old {
			v.Close()
		}
	}()
	db, commits, conflicts := dbs[0], 0, 0
	for turn := range turns {
		if rng.IntN(6) == 0 {
			db = dbs[rng.IntN(len(dbs))]
		}
		if rng.IntN(8) == 0 {
			fresh(t, db, model)
		}
		v, err := db.View()
		if err != nil {
			t.Fatal(err)
		}
		if before := old[db]; before != nil && rng.IntN(4) == 0 {
			v, old[db] = before, v
		} else if before == nil {
			if old[db], err = db.View(); err != nil {
				t.Fatal(err)
			}
		}
		var x store.Txn
		holds := true
		for range rng.IntN(3) {
			k := key()
			row, err := v.Get(k)
			if err != nil {
				t.Fatal(err)
			}
			if row.Exists() && rng.IntN(2) == 0 {
				x.Present(k.Table, k.Name)
				holds = holds && model[k].version != 0
				continue
			}
			x.Require(row)
			holds = holds && model[k].version == row.Version
		}
		v.Close()
		after := maps.Clone(model)
		if rng.IntN(5) == 0 {
			r := store.Range{Table: store.Engine, From: fmt.Sprintf("%02d", rng.IntN(6)), To: fmt.Sprintf("%02d", 6+rng.IntN(6))}
			x.Ranges = append(x.Ranges, r)
			maps.DeleteFunc(after, func(k store.Key, _ entry) bool { return r.Contains(k) })
		}
		changed := make(map[store.Key]bool)
		var puts []store.Key
		for range 1 + rng.IntN(3) {
			k := key()
			if changed[k] {
				continue
			}
			changed[k] = true
			if rng.IntN(3) == 0 {
				x.Delete(k.Table, k.Name)
				delete(after, k)
				continue
			}
			x.Put(k.Table, k.Name, []byte{byte(turn)})
			puts = append(puts, k)
		}
		r, err := db.Commit(t.Context(), x)
		var conflict *store.Conflict
		switch {
		case err == nil && holds:
			commits++
			for _, k := range puts {
				after[k] = entry{r.Seq, byte(turn)}
			}
			model = after
		case errors.As(err, &conflict) && !holds:
			conflicts++
		default:
			t.Fatalf("seed %d, turn %d: %v, though the conditions hold: %t", seed, turn, err, holds)
		}
	}
	t.Logf("%d commits, %d conflicts", commits, conflicts)
	if commits < turns/4 || conflicts == 0 {
		t.Errorf("%d commits and %d conflicts show little", commits, conflicts)
	}
	for _, db := range dbs {
		fresh(t, db, model)
		verify(t, db)
	}
}

// entry is a row as a model has it.
type entry struct {
	version uint64
	value   byte
}

func (e entry) is(row store.Row) bool {
	return row.Version == e.version && (e.version == 0 || string(row.Value) == string([]byte{e.value}))
}

// fresh makes db fresh and holds what it shows against the model.
func fresh(t *testing.T, db *store.DB, model map[store.Key]entry) {
	t.Helper()
	if err := db.Fresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	n := 0
	for _, table := range []store.Table{store.Config, store.Engine} {
		for row, err := range v.Scan(table, "", "") {
			if err != nil {
				t.Fatal(err)
			}
			if n++; !model[row.Key].is(row) {
				t.Fatalf("%s is of version %d, %x, not %v", row.Key, row.Version, row.Value, model[row.Key])
			}
		}
	}
	for k, e := range model {
		row, err := v.Get(k)
		if err != nil || !e.is(row) {
			t.Fatalf("%s is of version %d, %x, not %v: %v", k, row.Version, row.Value, e, err)
		}
	}
	if n != len(model) {
		t.Fatalf("%d rows, not %d", n, len(model))
	}
}

// telling is a Shared that tells when its node is about to enter a Write.
type telling struct {
	store.Shared
	entering chan struct{}
}

func (b telling) Enter(ctx context.Context, at store.Snapshot, after uint64, keys []store.Key, versions []uint64) (store.Write, store.News, error) {
	b.entering <- struct{}{}
	return b.Shared.Enter(ctx, at, after, keys, versions)
}

// testJoins has a node wait for another's write: what queues there meanwhile is in the commit that waits, whatever it rests upon.
func testJoins(t *testing.T, open func() store.Backend) {
	s := &setup{open: open, cipher: NewCipher("suite"), clock: NewClock()}
	told := telling{open().(store.Shared), make(chan struct{}, 9)}
	a, b, other := s.db(t, told, store.Options{}), s.db(t, nil, store.Options{}), open()
	defer other.Close()
	commit(t, a, func(x *store.Txn) { x.Put(store.Tokens, "known", nil); x.Put(store.Tokens, "contested", nil) })
	known, contested := get(t, a, store.Tokens, "known"), get(t, a, store.Tokens, "contested")
	commit(t, b, func(x *store.Txn) {
		x.Put(store.Tokens, "contested", []byte("b's"))
		x.Put(store.Tokens, "unknown", nil)
	})
	for len(told.entering) > 0 {
		<-told.entering
	}
	w, err := other.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	type outcome struct {
		store.Receipt
		err error
	}
	var all []chan outcome
	for i, fill := range []func(x *store.Txn){
		func(x *store.Txn) { x.Put(store.Tokens, "first", nil) },
		func(x *store.Txn) { x.Require(known); x.Put(store.Tokens, "known", []byte("again")) },
		func(x *store.Txn) { x.Present(store.Tokens, "unknown"); x.Put(store.Engine, "e", nil) },
		func(x *store.Txn) { x.Absent(store.Tokens, "new"); x.Put(store.Tokens, "new", nil) },
		func(x *store.Txn) { x.Delete(store.Tokens, "unknown") },
		func(x *store.Txn) { x.Require(contested); x.Put(store.Tokens, "contested", []byte("a's")) },
	} {
		done := make(chan outcome, 1)
		all = append(all, done)
		go func() {
			var x store.Txn
			fill(&x)
			r, err := a.Commit(t.Context(), x)
			done <- outcome{r, err}
		}()
		if i == 0 {
			<-told.entering
		}
		until(t, "it queues", func() bool { return a.Stats().Queued == i })
	}
	w.Abort()
	first := (<-all[0])
	if first.err != nil {
		t.Fatal(first.err)
	}
	for i, done := range all[1:] {
		o := <-done
		if i == len(all)-2 {
			if !errors.As(o.err, new(*store.Conflict)) {
				t.Errorf("it rested on what the other node changed: %v", o.err)
			}
			continue
		}
		if o.err != nil || o.Seq != first.Seq {
			t.Errorf("transaction %d: commit %d, not %d: %v", i+1, o.Seq, first.Seq, o.err)
		}
	}
	verify(t, a)
	if err := b.Fresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"known": "again", "contested": "b's", "new": "", "first": ""} {
		for _, db := range []*store.DB{a, b} {
			if row := get(t, db, store.Tokens, name); !row.Exists() || string(row.Value) != value {
				t.Errorf("%s is %q", name, row.Value)
			}
		}
	}
	if get(t, a, store.Tokens, "unknown").Exists() {
		t.Error("what was deleted is there")
	}
}

// deaf is a Shared that gives no hints: its node hears of others by asking.
type deaf struct{ store.Shared }

func (deaf) Moved() <-chan struct{} { return nil }

// testFresh has two nodes write, many at a time, and those who wrote read at a third: after Fresh it shows what they were told is done, each time,
// whoever else asks at the same time. Without Fresh it does not: so it is Fresh that does it.
func testFresh(t *testing.T, open func() store.Backend) {
	const clients, each = 8, 20
	s := &setup{open: open, cipher: NewCipher("suite"), clock: NewClock()}
	writers := []*store.DB{s.db(t, nil, store.Options{}), s.db(t, nil, store.Options{})}
	reader := s.db(t, deaf{open().(store.Shared)}, store.Options{})
	var all sync.WaitGroup
	var stale atomic.Int64
	for c := range clients {
		key := store.Key{Table: store.Tokens, Name: fmt.Sprint(c)}
		all.Go(func() {
			for i := range each {
				var x store.Txn
				x.Put(key.Table, key.Name, fmt.Append(nil, i))
				r, err := writers[c%len(writers)].Commit(t.Context(), x)
				if err != nil {
					t.Error(err)
					return
				}
				if row, err := look(reader, key); err == nil && row.Version != r.Seq {
					stale.Add(1)
				}
				if err := reader.Fresh(t.Context()); err != nil {
					t.Error(err)
					return
				}
				if row, err := look(reader, key); err != nil || row.Version != r.Seq || string(row.Value) != fmt.Sprint(i) {
					t.Errorf("commit %d was acknowledged; a fresh view shows version %d: %v", r.Seq, row.Version, err)
					return
				}
			}
		})
	}
	all.Wait()
	if stale.Load() == 0 {
		t.Error("the node that reads was never behind: this shows nothing")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := reader.Fresh(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// look reads a row from a View of its own.
func look(db *store.DB, k store.Key) (store.Row, error) {
	v, err := db.View()
	if err != nil {
		return store.Row{}, err
	}
	defer v.Close()
	return v.Get(k)
}
