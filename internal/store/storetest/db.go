package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
)

// setup is what one test of the DB works with.
type setup struct {
	open   func() store.Backend
	fresh  func(t *testing.T) func() store.Backend
	cipher *Cipher
	clock  *Clock
}

// db opens and unseals the store on b (nil: the setup's own); it is closed when the test ends, if it is still open.
func (s *setup) db(t *testing.T, b store.Backend, o store.Options) *store.DB {
	t.Helper()
	if b == nil {
		b = s.open()
	}
	if o.Clock == nil {
		o.Clock = s.clock
	}
	o.Node = "node-1"
	db, err := store.Open(b, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil && db.Fault() == nil {
			t.Error(err)
		}
	})
	if err := db.Unseal(s.cipher); err != nil {
		t.Fatal(err)
	}
	return db
}

func commit(t *testing.T, db *store.DB, f func(*store.Txn)) store.Receipt {
	t.Helper()
	var x store.Txn
	f(&x)
	r, err := db.Commit(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func get(t *testing.T, db *store.DB, table store.Table, name string) store.Row {
	t.Helper()
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	row, err := v.Get(store.Key{Table: table, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return row
}

func verify(t *testing.T, db *store.DB) store.Report {
	t.Helper()
	head := db.Head().Seq
	r, err := db.Verify(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Head < head {
		t.Errorf("verified up to commit %d of %d", r.Head, head)
	}
	return r
}

func record(path, who string) audit.Record {
	return audit.Record{Operation: "read", Path: path, Phase: audit.Done, Entity: who, Name: "name-" + who, Accessor: "acc-" + who, Granted: true}
}

// dbTests hold for the DB on every Backend.
var dbTests = []struct {
	name string
	test func(*testing.T, *setup)
}{
	{"sealed", testSealed},
	{"commit", testCommit},
	{"invalid", testInvalid},
	{"overlay", testOverlay},
	{"cancel", testCancel},
	{"counter", testCounter},
	{"update", testUpdate},
	{"scan", testScan},
	{"changed", testChanged},
	{"reopen", testReopen},
	{"time", testTime},
	{"full", testFull},
	{"uncertain", testUncertain},
	{"faults", testFaults},
	{"lies", testLies},
	{"watch", testWatch},
	{"records", testRecords},
	{"tail", testTail},
	{"prune", testPrune},
	{"tamper", testTamper},
	{"power", testPower},
	{"anchor", testAnchor},
	{"backup", testBackup},
	{"move", testMove},
	{"move/refused", testMoveRefuses},
	{"takeover", testTakeover},
	{"image", testImage},
}

func testSealed(t *testing.T, s *setup) {
	db, err := store.Open(s.open(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Commit(t.Context(), store.Txn{}); !errors.Is(err, store.ErrSealed) {
		t.Errorf("commit while sealed: %v", err)
	}
	if err := db.Unseal(s.cipher); err != nil {
		t.Fatal(err)
	}
	commit(t, db, func(x *store.Txn) { x.Put(store.Meta, "cluster", []byte("c1")); x.Put(store.Config, "k", []byte("v")) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = store.Open(s.open(), store.Options{}); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if row := get(t, db, store.Meta, "cluster"); string(row.Value) != "c1" || row.Version != 1 {
		t.Errorf("clear row of a sealed store: %+v", row)
	}
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, err := v.Get(store.Key{Table: store.Config, Name: "k"}); !errors.Is(err, store.ErrSealed) {
		t.Errorf("sealed row of a sealed store: %v", err)
	}
	if err := db.Unseal(NewCipher("another")); err == nil || !strings.Contains(err.Error(), "MAC") {
		t.Errorf("unsealed with another key: %v", err)
	}
	if err := db.Unseal(s.cipher); err != nil {
		t.Error(err)
	}
	if err := db.Unseal(s.cipher); err == nil {
		t.Error("unsealed twice")
	}
	if row := get(t, db, store.Config, "k"); string(row.Value) != "v" {
		t.Errorf("after unsealing: %+v", row)
	}
}

func testCommit(t *testing.T, s *setup) {
	db := s.db(t, nil, store.Options{})
	r := commit(t, db, func(x *store.Txn) {
		x.Absent(store.Config, "a")
		x.Put(store.Config, "a", []byte("1"))
		x.Put(store.Secrets, "s", []byte("hush"))
		x.Put(store.Leases, "empty", nil)
		x.Audit = []audit.Record{record("p", "alice")}
	})
	if r.Seq != 1 || !r.Time.Equal(s.clock.Now()) {
		t.Errorf("receipt %+v", r)
	}
	if row := get(t, db, store.Config, "a"); row.Version != 1 || string(row.Value) != "1" || !row.Exists() {
		t.Errorf("row %+v", row)
	}
	if row := get(t, db, store.Leases, "empty"); row.Version != 1 || len(row.Value) != 0 {
		t.Errorf("empty row %+v", row)
	}
	secret := get(t, db, store.Secrets, "s")
	if secret.Value != nil || bytes.Contains(secret.Sealed(), []byte("hush")) {
		t.Errorf("a secret lies open: %q", secret.Sealed())
	}
	if v, err := s.cipher.Open(nil, secret.Key, secret.Version, secret.Sealed()); err != nil || string(v) != "hush" {
		t.Errorf("sealed value: %q, %v", v, err)
	}
	for name, c := range map[string]struct {
		check func(*store.Txn)
		ok    bool
	}{
		"present":       {func(x *store.Txn) { x.Present(store.Config, "a") }, true},
		"not present":   {func(x *store.Txn) { x.Present(store.Config, "b") }, false},
		"absent":        {func(x *store.Txn) { x.Absent(store.Config, "b") }, true},
		"not absent":    {func(x *store.Txn) { x.Absent(store.Config, "a") }, false},
		"as read":       {func(x *store.Txn) { x.Require(get(t, db, store.Config, "a")) }, true},
		"other version": {func(x *store.Txn) { x.Require(store.Row{Key: store.Key{Table: store.Config, Name: "a"}, Version: 7}) }, false},
	} {
		var x store.Txn
		c.check(&x)
		x.Put(store.Engine, name, nil)
		_, err := db.Commit(t.Context(), x)
		var conflict *store.Conflict
		switch {
		case c.ok && err != nil:
			t.Errorf("%s: %v", name, err)
		case !c.ok && !errors.As(err, &conflict):
			t.Errorf("%s: %v is no conflict", name, err)
		case !c.ok && conflict.Key != x.Checks[0].Key:
			t.Errorf("%s: the conflict names %s", name, conflict.Key)
		}
		if get(t, db, store.Engine, name).Exists() != c.ok {
			t.Errorf("%s: written: %v", name, !c.ok)
		}
	}
	before := db.Head()
	commit(t, db, func(x *store.Txn) { x.Delete(store.Config, "a"); x.Delete(store.Config, "never") })
	if get(t, db, store.Config, "a").Exists() {
		t.Error("deleted row is there")
	}
	h := db.Head()
	if h.Seq != before.Seq+1 || h.Prev != before.Hash() || h.Writer != "node-1" || h.Incarnation != 1 || len(h.Touched) != 2 || !h.Touched[0].Deleted {
		t.Errorf("header %+v", h)
	}
	verify(t, db)
}

func testInvalid(t *testing.T, s *setup) {
	db := s.db(t, nil, store.Options{})
	many := store.Txn{}
	for i := range 20 {
		many.Put(store.Config, strconv.Itoa(i), nil)
	}
	many.Delete(store.Config, "7")
	for name, x := range map[string]store.Txn{
		"chain":       {Puts: []store.Put{{Key: store.Key{Table: store.Head, Name: "x"}}}},
		"records":     {Deletes: []store.Key{{Table: store.Records, Name: "x"}}},
		"no name":     {Puts: []store.Put{{Key: store.Key{Table: store.Config}}}},
		"no table":    {Puts: []store.Put{{Key: store.Key{Name: "x"}}}},
		"bad table":   {Checks: []store.Check{{Key: store.Key{Table: 200, Name: "x"}}}},
		"twice":       {Puts: []store.Put{{Key: store.Key{Table: store.Config, Name: "x"}}}, Deletes: []store.Key{{Table: store.Config, Name: "x"}}},
		"one of many": many,
		"power range": {Ranges: []store.Range{{Table: store.Tokens}}},
		"empty range": {Ranges: []store.Range{{Table: store.Leases, From: "b", To: "b"}}},
	} {
		if _, err := db.Commit(t.Context(), x); err == nil {
			t.Errorf("%s: committed", name)
		}
	}
	if h := db.Head(); h.Seq != 0 {
		t.Errorf("something was written: %+v", h)
	}
}

// gate is a Backend whose Begin waits while it is shut.
type gate struct {
	store.Backend
	mu      sync.Mutex
	entered atomic.Int64
}

func (g *gate) Begin() (store.Write, error) {
	g.entered.Add(1)
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Backend.Begin()
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain until " + what)
		}
	}
}

// batched commits txns in one batch, in their order, and returns their errors.
func batched(t *testing.T, db *store.DB, g *gate, txns ...store.Txn) []error {
	t.Helper()
	var all sync.WaitGroup
	before := g.entered.Load()
	g.mu.Lock()
	all.Go(func() { _, _ = db.Commit(context.Background(), store.Txn{Audit: []audit.Record{record("first", "x")}}) })
	until(t, "the committer is at the gate", func() bool { return g.entered.Load() > before })
	errs := make([]error, len(txns))
	for i := range txns {
		all.Go(func() { _, errs[i] = db.Commit(context.Background(), txns[i]) })
		until(t, "the transaction queues", func() bool { return db.Stats().Queued == i+1 })
	}
	g.mu.Unlock()
	all.Wait()
	return errs
}

func testOverlay(t *testing.T, s *setup) {
	g := &gate{Backend: s.open()}
	db := s.db(t, g, store.Options{})
	commit(t, db, func(x *store.Txn) {
		for _, n := range []string{"a", "b", "c", "d"} {
			x.Put(store.Leases, n, []byte("0"))
		}
		x.Put(store.Config, "a", []byte("0"))
	})
	txn := func(f func(x *store.Txn)) (x store.Txn) {
		f(&x)
		x.Audit = []audit.Record{record("p", "x")}
		return x
	}
	a, b := get(t, db, store.Leases, "a"), get(t, db, store.Leases, "b")
	power := get(t, db, store.Config, "a")
	seq := db.Head().Seq
	errs := batched(t, db, g,
		txn(func(x *store.Txn) { x.Require(a); x.Put(store.Leases, "a", []byte("1")) }),
		txn(func(x *store.Txn) { x.Require(a); x.Put(store.Leases, "a", []byte("2")) }), // conflict: written in this batch
		txn(func(x *store.Txn) { x.Absent(store.Leases, "new"); x.Put(store.Leases, "new", []byte("1")) }),
		txn(func(x *store.Txn) { x.Absent(store.Leases, "new") }), // conflict
		txn(func(x *store.Txn) { x.Present(store.Leases, "new"); x.Delete(store.Leases, "new") }),
		txn(func(x *store.Txn) { x.Absent(store.Leases, "new") }),
		txn(func(x *store.Txn) {
			x.Require(b)
			x.Ranges = []store.Range{{Table: store.Leases, From: "b", To: "d"}}
			x.Put(store.Leases, "c", []byte("after the range"))
		}),
		txn(func(x *store.Txn) { x.Require(b) }), // conflict: in the deleted range
		txn(func(x *store.Txn) {
			x.Absent(store.Leases, "b")
			x.Present(store.Leases, "c")
			x.Present(store.Leases, "d")
		}),
		txn(func(x *store.Txn) { x.Require(power); x.Put(store.Config, "a", []byte("1")) }),
		txn(func(x *store.Txn) { x.Put(store.Config, "a", []byte("2")) }),
		txn(func(x *store.Txn) { x.Put(store.Config, "b", []byte("1")) }),
		txn(func(x *store.Txn) { x.Delete(store.Config, "b") }),
		txn(func(x *store.Txn) {
			x.Put(store.Leases, "late", nil)
			x.Put(store.Tokens, "t", nil)
		}),
		txn(func(x *store.Txn) { x.Ranges = []store.Range{{Table: store.Leases, From: "l", To: "m"}} }),
	)
	conflicts := []int{1, 3, 7}
	for i, err := range errs {
		var conflict *store.Conflict
		if want := slices.Contains(conflicts, i); want != errors.As(err, &conflict) || !want && err != nil {
			t.Errorf("transaction %d: %v", i, err)
		}
	}
	if h := db.Head(); h.Seq != seq+2 || int(h.Count) != len(errs)-len(conflicts) {
		t.Fatalf("they were not one batch: %d records, commit %d after %d", h.Count, h.Seq, seq)
	}
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var got []string
	for _, table := range []store.Table{store.Leases, store.Config, store.Tokens} {
		for row, err := range v.Scan(table, "", "") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%s:%s", row.Name, row.Value))
		}
	}
	if want := "a:1 c:after the range d:0 a:2 t:"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", strings.Join(got, " "), want)
	}
	verify(t, db)
}

func testCancel(t *testing.T, s *setup) {
	g := &gate{Backend: s.open()}
	db := s.db(t, g, store.Options{})
	g.mu.Lock()
	first := make(chan error)
	go func() {
		_, err := db.Commit(context.Background(), store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Engine, Name: "first"}}}})
		first <- err
	}()
	until(t, "the committer is at the gate", func() bool { return g.entered.Load() == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := db.Commit(ctx, store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Engine, Name: "queued"}}}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the queued one: %v", err)
	}
	g.mu.Unlock()
	if err := <-first; err != nil {
		t.Error(err)
	}
	commit(t, db, func(x *store.Txn) { x.Put(store.Engine, "later", nil) })
	if get(t, db, store.Engine, "queued").Exists() || !get(t, db, store.Engine, "first").Exists() {
		t.Error("what was given up while queued was written, or what was not was not")
	}
}

// increment adds one to a counter and returns the value it wrote.
func increment(ctx context.Context, db *store.DB, name string) (n int, r store.Receipt, err error) {
	r, err = db.Update(ctx, func(v store.View, x *store.Txn) error {
		row, err := v.Get(store.Key{Table: store.Config, Name: name})
		if err != nil {
			return err
		}
		n, _ = strconv.Atoi(string(row.Value))
		n++
		x.Put(store.Config, name, strconv.AppendInt(nil, int64(n), 10))
		x.Audit = []audit.Record{record("counter/"+name, strconv.Itoa(n))}
		return nil
	})
	return n, r, err
}

func testCounter(t *testing.T, s *setup) {
	db := s.db(t, nil, store.Options{})
	testCounters(t, []*store.DB{db})
	if st := db.Stats(); st.Conflicts == 0 || st.Transactions == 0 || st.Commits == 0 {
		t.Errorf("stats: %+v", st)
	}
}

// testCounters increments a few counters from many goroutines on all nodes; no increment may be lost or seen twice.
func testCounters(t *testing.T, dbs []*store.DB) {
	const writers, times = 12, 15
	names := []string{"a", "b", "c"}
	seen := make([]map[int]store.Receipt, len(names))
	for i := range seen {
		seen[i] = make(map[int]store.Receipt)
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range times {
				which := (w + i) % len(names)
				n, r, err := increment(t.Context(), dbs[w%len(dbs)], names[which])
				var conflict *store.Conflict
				if errors.As(err, &conflict) {
					continue // sixteen times in a row: nothing was written
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if old, dup := seen[which][n]; dup {
					t.Errorf("%s was set to %d by commits %d and %d", names[which], n, old.Seq, r.Seq)
				}
				seen[which][n] = r
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for i, name := range names {
		for n := 1; n <= len(seen[i]); n++ {
			r, ok := seen[i][n]
			if !ok {
				t.Errorf("%s was never %d", name, n)
			}
			if before, ok := seen[i][n-1]; ok && before.Seq >= r.Seq {
				t.Errorf("%s was set to %d by commit %d, and to %d by commit %d", name, n-1, before.Seq, n, r.Seq)
			}
		}
	}
	verify(t, dbs[0])
}

func testUpdate(t *testing.T, s *setup) {
	db := s.db(t, nil, store.Options{})
	commit(t, db, func(x *store.Txn) {
		for _, n := range []string{"a", "b", "c"} {
			x.Put(store.Engine, n, []byte("1"))
		}
	})
	// What fn read changes under it, once by Get, once by Scan, once by a Get that found nothing.
	for name, read := range map[string]func(v store.View){
		"get":  func(v store.View) { _, _ = v.Get(store.Key{Table: store.Engine, Name: "b"}) },
		"none": func(v store.View) { _, _ = v.Get(store.Key{Table: store.Engine, Name: "none"}) },
		"scan": func(v store.View) {
			for range v.Scan(store.Engine, "a", "c") {
				continue
			}
		},
	} {
		tries := 0
		_, err := db.Update(t.Context(), func(v store.View, x *store.Txn) error {
			read(v)
			if tries++; tries == 1 {
				commit(t, db, func(x *store.Txn) { x.Put(store.Engine, "b", []byte(name)); x.Put(store.Engine, "none", nil) })
			}
			x.Put(store.Engine, "result", []byte(name))
			return nil
		})
		if err != nil || tries != 2 {
			t.Errorf("%s: %d tries, %v", name, tries, err)
		}
	}
	tries := 0
	_, err := db.Update(t.Context(), func(v store.View, x *store.Txn) error {
		tries++
		_, _ = v.Get(store.Key{Table: store.Engine, Name: "b"})
		commit(t, db, func(x *store.Txn) { x.Put(store.Engine, "b", nil) })
		x.Put(store.Engine, "result", nil)
		return nil
	})
	var conflict *store.Conflict
	if !errors.As(err, &conflict) || tries != 16 {
		t.Errorf("endless conflict: %d tries, %v", tries, err)
	}
	mine := errors.New("mine")
	if _, err := db.Update(t.Context(), func(_ store.View, x *store.Txn) error { x.Put(store.Engine, "never", nil); return mine }); err != mine {
		t.Errorf("an error of fn: %v", err)
	}
	before := db.Head().Seq
	if r, err := db.Update(t.Context(), func(store.View, *store.Txn) error { return nil }); err != nil || r.Seq != before || db.Head().Seq != before {
		t.Errorf("nothing to do: %+v, %v", r, err)
	}
	if get(t, db, store.Engine, "never").Exists() {
		t.Error("a failed update was written")
	}
}

func testScan(t *testing.T, s *setup) {
	db := s.db(t, nil, store.Options{})
	commit(t, db, func(x *store.Txn) {
		for i := range 100 {
			x.Put(store.Engine, fmt.Sprintf("%03d", i), fmt.Appendf(nil, "v%d", i))
		}
	})
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	commit(t, db, func(x *store.Txn) { x.Ranges = []store.Range{{Table: store.Engine}} })
	var rows []store.Row
	for row, err := range v.Scan(store.Engine, "010", "020") {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row)
	}
	for i, row := range rows { // values stay as they were
		if row.Name != fmt.Sprintf("%03d", i+10) || string(row.Value) != fmt.Sprintf("v%d", i+10) || row.Version != 1 {
			t.Errorf("row %d: %+v", i, row)
		}
	}
	if len(rows) != 10 || v.Position() != 1 {
		t.Errorf("%d rows at position %d", len(rows), v.Position())
	}
	v.Close()
	v.Close()
	if _, err := v.Get(store.Key{Table: store.Engine, Name: "010"}); err == nil {
		t.Error("a closed View answers")
	}
	for _, err := range v.Scan(store.Engine, "", "") {
		if err == nil {
			t.Error("a closed View answers")
		}
	}
}

func testChanged(t *testing.T, s *setup) {
	db := s.db(t, nil, store.Options{})
	changed := func(table store.Table) uint64 {
		v, err := db.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		return v.Changed(table)
	}
	commit(t, db, func(x *store.Txn) { x.Put(store.Policies, "p", nil) })
	commit(t, db, func(x *store.Txn) { x.Put(store.Leases, "l", nil) })
	commit(t, db, func(x *store.Txn) { x.Ranges = []store.Range{{Table: store.Engine}} })
	commit(t, db, func(x *store.Txn) { x.Delete(store.Mounts, "m") })
	for table, want := range map[store.Table]uint64{store.Policies: 1, store.Leases: 2, store.Engine: 3, store.Mounts: 4, store.Tokens: 0, store.Head: 4} {
		if got := changed(table); got != want {
			t.Errorf("%s changed at %d, want %d", table, got, want)
		}
	}
}

func testReopen(t *testing.T, s *setup) {
	var hash audit.Hash
	for i := range 4 {
		db := s.db(t, nil, store.Options{})
		if h := db.Head(); h.Seq != uint64(i*2) || i > 0 && h.Hash() != hash {
			t.Fatalf("head after %d openings: %+v", i, h)
		}
		n, r, err := increment(t.Context(), db, "n")
		if err != nil || n != i+1 || r.Seq != uint64(i*2+1) {
			t.Errorf("increment: %d, %+v, %v", n, r, err)
		}
		commit(t, db, func(x *store.Txn) { x.Put(store.Tokens, strconv.Itoa(i), nil); x.Put(store.Meta, "m", []byte{byte(i)}) })
		verify(t, db)
		h := db.Head()
		hash = h.Hash()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := db.View(); !errors.Is(err, store.ErrClosed) {
			t.Errorf("view of a closed store: %v", err)
		}
		if _, err := db.Commit(t.Context(), store.Txn{}); !errors.Is(err, store.ErrClosed) {
			t.Errorf("commit to a closed store: %v", err)
		}
	}
}

func testTime(t *testing.T, s *setup) {
	db := s.db(t, nil, store.Options{})
	tick := func() time.Time {
		return commit(t, db, func(x *store.Txn) { x.Audit = []audit.Record{record("t", "x")} }).Time
	}
	first := tick()
	s.clock.Advance(time.Minute)
	if second := tick(); !second.Equal(first.Add(time.Minute)) {
		t.Errorf("a minute later it is %s after %s", second, first)
	}
	s.clock.Jump(-time.Hour) // the wall clock runs back: lease time waits for it
	if third := tick(); !third.Equal(first.Add(time.Minute)) {
		t.Errorf("time ran back to %s", third)
	}
	if err := db.ClockAlarm(); err != nil {
		t.Error(err)
	}
	s.clock.Jump(time.Hour)
	s.clock.Jump(3 * time.Hour) // it jumps ahead: not followed
	s.clock.Advance(time.Minute)
	if fourth := tick(); !fourth.Equal(first.Add(2 * time.Minute)) {
		t.Errorf("time jumped to %s", fourth)
	}
	if err := db.ClockAlarm(); err == nil || !strings.Contains(err.Error(), "3h") {
		t.Errorf("no alarm: %v", err)
	}
	db.AcceptClock()
	if err := db.ClockAlarm(); err != nil {
		t.Errorf("accepted: %v", err)
	}
	last := tick()
	if !last.Equal(s.clock.Now()) {
		t.Errorf("accepted, but it is %s", last)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s.clock.Jump(-24 * time.Hour)
	db = s.db(t, nil, store.Options{})
	if now := db.Now(); now.Before(last) {
		t.Errorf("after reopening it is %s", now)
	}
	if tick().Before(last) {
		t.Error("time ran back over a reopening")
	}
	if err := db.ClockAlarm(); err == nil {
		t.Error("no alarm though the last commit is a day in the future")
	}
	verify(t, db)
}

// disk is a Backend on a disk with so many bytes free.
type disk struct {
	store.Backend
	mu   sync.Mutex
	free int64
}

func (d *disk) Usage() (int64, int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return 0, d.free
}

func (d *disk) set(free int64) {
	d.mu.Lock()
	d.free = free
	d.mu.Unlock()
}

func testFull(t *testing.T, s *setup) {
	d := &disk{Backend: s.open(), free: 50}
	db := s.db(t, d, store.Options{Reserve: 100})
	if _, err := db.Commit(t.Context(), store.Txn{}); !errors.Is(err, store.ErrFull) {
		t.Errorf("commit to a full disk: %v", err)
	}
	commit(t, db, func(x *store.Txn) { x.Urgent = true; x.Audit = []audit.Record{record("a", "x")} })
	s.clock.Advance(72 * time.Hour)
	if r, err := db.Prune(t.Context(), db.Now().Add(-24*time.Hour), record("sys/prune", "x")); err != nil || r.Seq == 0 {
		t.Errorf("pruning, which makes room: %+v, %v", r, err)
	}
	commit(t, db, func(x *store.Txn) { x.Urgent = true; x.Put(store.Tombs, "t", nil) })
	d.set(1000)
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := db.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Engine, Name: "x"}}}})
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrFull) || time.Now().After(deadline) {
			t.Fatalf("there is room again: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func testUncertain(t *testing.T, s *setup) {
	for _, c := range []struct {
		name   string
		faults Faults
		done   bool
	}{{"lost", Faults{Lost: 1}, false}, {"hidden", Faults{Hidden: 1}, true}} {
		f := NewFaulty(s.open(), 1, Faults{})
		db := s.db(t, f, store.Options{})
		before := db.Head().Seq
		f.Set(c.faults)
		_, err := db.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Engine, Name: c.name}}}})
		var u *store.Uncertain
		if !errors.Is(err, store.ErrUncertain) || !errors.Is(err, ErrFault) || !errors.As(err, &u) {
			t.Fatalf("%s: %v", c.name, err)
		}
		f.Set(Faults{})
		if _, err := db.Commit(t.Context(), store.Txn{}); !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s: the store goes on: %v", c.name, err)
		}
		if _, err := db.View(); err == nil || db.Fault() == nil {
			t.Errorf("%s: the store goes on", c.name)
		}
		for _, err := range db.Watch(t.Context(), db.Head().Seq+1) {
			if err == nil {
				t.Errorf("%s: something to watch", c.name)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = s.db(t, nil, store.Options{})
		r, done, err := db.Outcome(u.Batch)
		if err != nil || done != c.done || done && r.Seq != before+1 {
			t.Errorf("%s: outcome %+v, %v, %v", c.name, r, done, err)
		}
		if get(t, db, store.Engine, c.name).Exists() != c.done {
			t.Errorf("%s: the row tells another outcome", c.name)
		}
		commit(t, db, func(x *store.Txn) { x.Put(store.Engine, "next", nil) })
		verify(t, db)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// testFaults increments a counter through a backend that fails by chance, reopening whenever the store stops: what was
// acknowledged is there, what was refused is not.
func testFaults(t *testing.T, s *setup) {
	const seed = 7
	n, uncertain := 0, 0
	for round := range 25 {
		f := NewFaulty(s.open(), seed+uint64(round), Faults{Refused: 0.1, Lost: 0.1, Hidden: 0.1})
		db := s.db(t, f, store.Options{})
		row := get(t, db, store.Config, "n")
		have, _ := strconv.Atoi(string(row.Value))
		if have != n && have != uncertain {
			t.Fatalf("seed %d, round %d: counter is %d; acknowledged %d, uncertain %d", seed, round, have, n, uncertain)
		}
		n, uncertain = have, have
		for range 20 {
			got, _, err := increment(t.Context(), db, "n")
			if err == nil {
				n, uncertain = got, got
			} else if errors.Is(err, store.ErrUncertain) {
				uncertain = n + 1
				break
			} else if errors.Is(err, store.ErrClosed) {
				t.Fatalf("stopped without a reason: %v", err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	verify(t, s.db(t, nil, store.Options{}))
	if n == 0 {
		t.Error("nothing was ever committed")
	}
}

// testLies drops a commit that was acknowledged, as a disk that lies does, or a replica that takes over and is behind: the
// next commit must not build upon it.
func testLies(t *testing.T, s *setup) {
	f := NewFaulty(s.open(), 1, Faults{})
	db := s.db(t, f, store.Options{})
	commit(t, db, func(x *store.Txn) { x.Put(store.Config, "a", nil) })
	f.Set(Faults{Lied: 1})
	commit(t, db, func(x *store.Txn) { x.Put(store.Config, "b", nil) })
	f.Set(Faults{})
	if _, err := db.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Config, Name: "c"}}}}); !errors.Is(err, store.ErrBehind) {
		t.Errorf("built upon a commit that is gone: %v", err)
	}
	if db.Fault() == nil {
		t.Error("the store goes on")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	verify(t, s.db(t, nil, store.Options{}))
}

func testWatch(t *testing.T, s *setup) {
	db := s.db(t, nil, store.Options{})
	for range 5 {
		commit(t, db, func(x *store.Txn) { x.Put(store.Engine, "x", nil) })
	}
	const writers, times = 6, 60
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var watchers, all sync.WaitGroup
	var last atomic.Uint64
	for _, from := range []uint64{0, 4} {
		watchers.Go(func() {
			chain := audit.Chain{Authority: s.cipher}
			want := max(from, 1)
			for h, err := range db.Watch(ctx, from) {
				if err != nil {
					t.Error(err)
					return
				}
				if h.Seq != want {
					t.Errorf("commit %d where %d was to come", h.Seq, want)
					return
				}
				if from == 0 {
					if _, err := chain.Next(h.Encode()); err != nil {
						t.Error(err)
					}
				}
				want++
				if h.Seq == last.Load() {
					return
				}
			}
		})
	}
	for w := range writers {
		all.Go(func() {
			for i := range times {
				_, err := db.Commit(ctx, store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Engine, Name: fmt.Sprint(w, i)}}}})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	last.Store(db.Head().Seq + 1)
	commit(t, db, func(x *store.Txn) { x.Put(store.Engine, "end", nil) })
	watchers.Wait()
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	for _, err := range db.Watch(short, last.Load()+1) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nothing to watch: %v", err)
		}
	}
}

func collect(t *testing.T, db *store.DB, q store.Query) (got []string, pages int) {
	t.Helper()
	for {
		records, next, err := db.Records(q)
		if err != nil {
			t.Fatal(err)
		}
		pages++
		for _, r := range records {
			got = append(got, r.Request)
		}
		if next == "" {
			return got, pages
		}
		if pages > 1000 {
			t.Fatalf("%+v has no last page", q)
		}
		q.Cursor = next
	}
}

func testRecords(t *testing.T, s *setup) {
	db := s.db(t, nil, store.Options{})
	start := s.clock.Now()
	type made struct {
		at        time.Time
		path, who string
	}
	var all []made
	for i := range 30 {
		commit(t, db, func(x *store.Txn) {
			for j := range i % 3 {
				m := made{s.clock.Now(), fmt.Sprintf("path/%d", (i+j)%4), fmt.Sprintf("who%d", (i+2*j)%3)}
				r := record(m.path, m.who)
				r.Request = strconv.Itoa(len(all))
				all = append(all, m)
				x.Audit = append(x.Audit, r)
			}
			x.Put(store.Engine, "x", nil)
		})
		s.clock.Advance(2 * time.Hour)
	}
	for name, q := range map[string]store.Query{
		"all":       {},
		"path":      {Path: "path/1"},
		"nobody":    {Who: "nobody"},
		"entity":    {Who: "who1"},
		"accessor":  {Who: "acc-who2"},
		"name":      {Who: "name-who0"},
		"both":      {Path: "path/2", Who: "who1"},
		"from":      {From: start.Add(20 * time.Hour)},
		"to":        {To: start.Add(20 * time.Hour)},
		"span":      {From: start.Add(8 * time.Hour), To: start.Add(43 * time.Hour)},
		"span path": {From: start.Add(8 * time.Hour), To: start.Add(43 * time.Hour), Path: "path/3"},
		"future":    {From: start.Add(9999 * time.Hour), Who: "who1"},
		"past":      {To: start.Add(-9999 * time.Hour), Path: "path/1"},
	} {
		var want []string
		for i, m := range all {
			if (q.From.IsZero() || !m.at.Before(q.From)) && (q.To.IsZero() || m.at.Before(q.To)) && (q.Path == "" || q.Path == m.path) &&
				(q.Who == "" || slices.Contains([]string{m.who, "acc-" + m.who, "name-" + m.who}, q.Who)) {
				want = append(want, strconv.Itoa(i))
			}
		}
		for _, limit := range []int{0, 1, 3} {
			for _, newest := range []bool{false, true} {
				q.Limit, q.Newest = limit, newest
				got, pages := collect(t, db, q)
				want := slices.Clone(want)
				if newest {
					slices.Reverse(want)
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s, limit %d, newest %v: got %v, want %v", name, limit, newest, got, want)
				}
				if limit > 0 && pages < len(want)/limit {
					t.Errorf("%s: %d records on %d pages of %d", name, len(want), pages, limit)
				}
			}
		}
	}
	records, _, err := db.Records(store.Query{Limit: 1})
	if err != nil || len(records) != 1 {
		t.Fatal(records, err)
	}
	if r := records[0]; r.Node != "node-1" || r.Entity != "who1" || !r.Time.Equal(r.Commit) || r.Seq != 2 || r.Index != 0 {
		t.Errorf("record %+v", r)
	}
	if _, _, err := db.Records(store.Query{Cursor: "nonsense"}); err == nil {
		t.Error("a made-up cursor is taken")
	}
	verify(t, db)
}

func testTail(t *testing.T, s *setup) {
	db := s.db(t, nil, store.Options{})
	next, stop := iter.Pull2(db.Tail(t.Context(), 0))
	defer stop()
	for i := range 20 {
		commit(t, db, func(x *store.Txn) {
			x.Put(store.Engine, "x", nil)
			for j := range i % 3 {
				x.Audit = append(x.Audit, record(fmt.Sprint(i, j), "x"))
			}
		})
		for j := range i % 3 {
			r, err, _ := next()
			if err != nil || r.Path != fmt.Sprint(i, j) || r.Seq != uint64(i+1) || int(r.Index) != j {
				t.Fatalf("record %d of commit %d: %+v, %v", j, i, r, err)
			}
		}
	}
}

func testPrune(t *testing.T, s *setup) {
	db := s.db(t, nil, store.Options{Retention: 72 * time.Hour})
	start := s.clock.Now()
	for i := range 20 {
		commit(t, db, func(x *store.Txn) {
			x.Put(store.Engine, fmt.Sprint(i), nil)
			x.Audit = []audit.Record{record(fmt.Sprint(i), "x")}
		})
		s.clock.Advance(12 * time.Hour)
	}
	if want := start.Add(7 * 24 * time.Hour).Truncate(24 * time.Hour); !db.Expired().Equal(want) {
		t.Errorf("expired before %s, want %s", db.Expired(), want)
	}
	if _, err := db.Prune(t.Context(), db.Now().Add(48*time.Hour), record("sys/prune", "x")); err == nil {
		t.Error("the future was pruned")
	}
	if r, err := db.Prune(t.Context(), start, record("sys/prune", "x")); err != nil || r.Seq != 0 {
		t.Errorf("nothing to prune: %+v, %v", r, err)
	}
	cut := start.Add(5 * 24 * time.Hour) // keeps the commits of its day
	r, err := db.Prune(t.Context(), cut, record("sys/prune", "x"))
	if err != nil {
		t.Fatal(err)
	}
	h := db.Head()
	if !h.Checkpoint || h.Pruned != 10 || h.Seq != r.Seq {
		t.Errorf("checkpoint %+v", h)
	}
	got, _ := collect(t, db, store.Query{Who: "x"})
	if len(got) != 20-9+1 {
		t.Errorf("%d records left", len(got))
	}
	report := verify(t, db)
	if report.Pruned != h.Pruned || report.Records != uint64(len(got)) {
		t.Errorf("report %+v", report)
	}
	next, stop := iter.Pull2(db.Tail(t.Context(), 0))
	defer stop()
	if first, err, _ := next(); err != nil || first.Seq != h.Pruned {
		t.Errorf("the tail begins with %+v, %v", first, err)
	}
	stop()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = s.db(t, nil, store.Options{})
	s.clock.Advance(240 * time.Hour)
	if _, err := db.Prune(t.Context(), s.clock.Now(), record("sys/prune", "x")); err != nil {
		t.Fatal(err)
	}
	if report := verify(t, db); report.Records != 1 {
		t.Errorf("report %+v", report)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	// Records that no checkpoint covers must be there.
	b := s.open()
	defer b.Close()
	write(t, b, func(w store.Write) {
		for _, table := range []store.Table{store.Records, store.ByPath, store.ByWho} {
			w.DeleteRange(store.Range{Table: table})
		}
	})
	if _, err := store.Inspect(t.Context(), b, s.cipher, nil); err == nil || !strings.Contains(err.Error(), "records of commit") {
		t.Errorf("removed records are not missed: %v", err)
	}
}

func testCluster(t *testing.T, open func() store.Backend) {
	s := &setup{open: open, cipher: NewCipher("suite"), clock: NewClock()}
	a, b := s.db(t, nil, store.Options{}), s.db(t, nil, store.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var watching sync.WaitGroup
	ended := make(chan struct{})
	watching.Go(func() {
		want := uint64(1)
		for h, err := range b.Watch(ctx, 0) {
			if err != nil || h.Seq != want {
				t.Errorf("commit %d where %d was to come: %v", h.Seq, want, err)
				return
			}
			want++
			if h.Checkpoint || len(h.Touched) == 1 && h.Touched[0].Name == "end" {
				close(ended)
				return
			}
		}
	})
	testCounters(t, []*store.DB{a, b})
	commit(t, a, func(x *store.Txn) { x.Put(store.Engine, "end", nil) })
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("what one node commits does not reach the other's watchers")
		cancel()
	}
	watching.Wait()
	commit(t, b, func(x *store.Txn) { x.Put(store.Engine, "after", nil) })
	if h, g := a.Head(), b.Head(); g.Seq <= h.Seq && g.Hash() != h.Hash() {
		t.Errorf("two chains: %+v and %+v", h, g)
	}
	verify(t, b)
}

// faultyShared is a Faulty that does not hide that its Backend is shared.
type faultyShared struct {
	*Faulty
	store.Shared
}

func (f faultyShared) Begin() (store.Write, error) { return f.Faulty.Begin() }

func (f faultyShared) Look(ctx context.Context, at store.Snapshot, after uint64) (store.News, error) {
	return f.Shared.Look(ctx, at, after)
}

func (f faultyShared) Enter(ctx context.Context, at store.Snapshot, after uint64, keys []store.Key, versions []uint64) (store.Write, store.News, error) {
	w, news, err := f.Shared.Enter(ctx, at, after, keys, versions)
	if err != nil {
		return nil, news, err
	}
	return exactFaulty{&faultyWrite{w, f.Faulty}, w.(store.Exact)}, news, nil
}

func (f faultyShared) Guess(at store.Snapshot, keys []store.Key, versions []uint64) store.Write {
	w := f.Shared.Guess(at, keys, versions)
	return exactFaulty{&faultyWrite{w, f.Faulty}, w.(store.Exact)}
}

type exactFaulty struct {
	*faultyWrite
	exact store.Exact
}

func (w exactFaulty) State() store.Snapshot { return w.exact.State() }

// testSettled has flushes fail on a shared backend, of a node that guesses and of one that does not: the id of the batch tells what became
// of them, what was not done is done again, once, and the store goes on.
func testSettled(t *testing.T, open func() store.Backend) {
	s := &setup{open: open, cipher: NewCipher("suite"), clock: NewClock()}
	b := open()
	f := NewFaulty(b, 3, Faults{})
	db := s.db(t, faultyShared{f, b.(store.Shared)}, store.Options{})
	other := s.db(t, nil, store.Options{})
	put := func(name string) error {
		_, err := db.Commit(t.Context(), store.Txn{
			Puts:   []store.Put{{Key: store.Key{Table: store.Config, Name: name}}},
			Checks: []store.Check{{Key: store.Key{Table: store.Config, Name: name}}},
		})
		return err
	}
	n := 0
	for range 8 {
		for _, done := range []bool{true, false} {
			f.Set(Faults{At: 1, Done: done})
			name := fmt.Sprint(n)
			if err := put(name); err != nil {
				t.Fatalf("commit %d, done at first: %t: %v", n, done, err)
			}
			if n++; n%5 == 0 {
				commit(t, other, func(x *store.Txn) { x.Put(store.Config, "other"+name, nil) })
			}
		}
	}
	f.Set(Faults{})
	if err := put("next"); err != nil {
		t.Error(err)
	}
	var conflict *store.Conflict
	if err := put("next"); !errors.As(err, &conflict) {
		t.Errorf("what is there was put again: %v", err)
	}
	for i := range n {
		if !get(t, db, store.Config, fmt.Sprint(i)).Exists() {
			t.Errorf("commit %d is not there", i)
		}
	}
	verify(t, db)
}

// testPeers has nodes see each other, and what each says of itself, without a commit.
func testPeers(t *testing.T, open func() store.Backend) {
	s := &setup{open: open, cipher: NewCipher("suite"), clock: NewClock()}
	a, b := s.db(t, nil, store.Options{}), open().(store.Shared)
	before := a.Head().Seq
	a.Announce([]byte("here is a"))
	b.Announce([]byte("here is b"))
	until := func(what string, holds func([]store.Peer) bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			peers, err := a.Peers(t.Context())
			if err == nil && holds(peers) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v, %v", what, peers, err)
			}
		}
	}
	until("two peers that have said who they are", func(peers []store.Peer) bool {
		return len(peers) == 2 && peers[0].ID == a.Self() && string(peers[0].About) == "here is a" && peers[0].Alive &&
			peers[1].ID == b.Self() && string(peers[1].About) == "here is b" && peers[1].Alive && len(b.Self()) == 16 &&
			!peers[0].Started.After(peers[1].Started) && !peers[0].Seen.Before(peers[0].Started)
	})
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	until("the one that is left", func(peers []store.Peer) bool { return len(peers) == 1 && peers[0].ID == a.Self() })
	again := open().(store.Shared)
	defer again.Close()
	if again.Self() == b.Self() || again.Self() == a.Self() {
		t.Error("an id was used again")
	}
	if a.Head().Seq != before {
		t.Error("peers cost commits")
	}
}
