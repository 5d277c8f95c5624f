package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
)

// populate commits something of everything, and returns all that was ever stored, oldest first.
func populate(t *testing.T, s *setup) (history []map[store.Key][]byte) {
	t.Helper()
	b := s.open()
	db := s.db(t, b, store.Options{})
	note := func() {
		snap := snapshot(t, b)
		defer snap.Close()
		history = append(history, contents(t, snap))
	}
	commit(t, db, func(x *store.Txn) {
		x.Put(store.Meta, "cluster", []byte("c"))
		for _, table := range []store.Table{store.Mounts, store.Policies, store.Identity, store.Config, store.Tokens, store.TokenIdx,
			store.Leases, store.Due, store.LeaseIdx, store.Holds, store.Tombs, store.Engine, store.Secrets} {
			x.Put(table, "a", []byte("first"))
			x.Put(table, "b", []byte("other"))
			x.Put(table, "c", nil)
		}
		x.Audit = []audit.Record{record("p1", "alice"), record("p2", "bob"), record("p3", "carol")}
	})
	note()
	commit(t, db, func(x *store.Txn) { x.Put(store.Engine, "d", nil) })
	commit(t, db, func(x *store.Txn) {
		for _, table := range []store.Table{store.Meta, store.Config, store.Tokens, store.Leases, store.Secrets} {
			x.Put(table, "a", []byte("again"))
			x.Delete(table, "c")
		}
		x.Audit = []audit.Record{record("p1", "bob")}
	})
	note()
	commit(t, db, func(x *store.Txn) {
		x.Ranges = []store.Range{{Table: store.Due, From: "a", To: "c"}}
		x.Put(store.Due, "a", []byte("back"))
		x.Audit = []audit.Record{record("p4", "alice"), record("p1", "alice")}
	})
	note()
	verify(t, db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return history
}

func contents(t *testing.T, snap store.Snapshot) map[store.Key][]byte {
	t.Helper()
	all := make(map[store.Key][]byte)
	for table := store.Meta; table <= store.Claims; table++ {
		for e, err := range snap.Scan(store.Range{Table: table}, false) {
			if err != nil {
				t.Fatal(err)
			}
			all[e.Key] = bytes.Clone(e.Bytes)
		}
	}
	return all
}

// testTamper changes whatever can be changed behind the store's back, one thing at a time, and wants Verify to name it.
func testTamper(t *testing.T, s *setup) {
	history := populate(t, s)
	last := history[len(history)-1]
	keys := make([]store.Key, 0, len(last))
	for k := range last {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b store.Key) int { return strings.Compare(a.String(), b.String()) })
	b := s.open()
	defer b.Close()
	tamper := func(what string, changes map[store.Key][]byte, named ...store.Key) {
		t.Helper()
		put := func(values map[store.Key][]byte) {
			write(t, b, func(w store.Write) {
				for k := range changes {
					if v := values[k]; v == nil {
						w.Delete(k)
					} else {
						w.Set(k, v)
					}
				}
			})
		}
		put(changes)
		_, err := store.Inspect(t.Context(), b, s.cipher, nil)
		put(last)
		if err == nil {
			t.Errorf("%s: not found", what)
			return
		}
		var d *store.Damage
		if len(named) > 0 && (!errors.As(err, &d) || !slices.Contains(named, d.Key)) {
			t.Errorf("%s: it names something else: %v", what, err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, k := range keys {
		v := last[k]
		var named []store.Key
		if k.Table != store.Head && k.Table != store.Records { // there, a neighbour may be the one that does not fit
			named = []store.Key{k}
		}
		for _, at := range []int{0, 7, len(v) - 1, 8 + rng.IntN(max(len(v)-8, 1))} {
			if at < len(v) {
				flipped := bytes.Clone(v)
				flipped[at] ^= 1 << rng.IntN(8)
				tamper(fmt.Sprintf("bit of byte %d of %s", at, k), map[store.Key][]byte{k: flipped}, named...)
			}
		}
		tamper(fmt.Sprintf("longer %s", k), map[store.Key][]byte{k: append(bytes.Clone(v), 0)}, named...)
		tamper(fmt.Sprintf("removed %s", k), map[store.Key][]byte{k: nil}, named...)
		moved := store.Key{Table: k.Table, Name: k.Name + "\x00"}
		tamper(fmt.Sprintf("moved %s", k), map[store.Key][]byte{k: nil, moved: v})
		tamper(fmt.Sprintf("copied %s", k), map[store.Key][]byte{moved: v})
		for i, before := range history[:len(history)-1] {
			if old := before[k]; old != nil && !bytes.Equal(old, v) {
				tamper(fmt.Sprintf("%s put back to state %d", k, i), map[store.Key][]byte{k: old}, named...)
			}
		}
	}
	for _, before := range history {
		for k, old := range before {
			if last[k] == nil {
				tamper(fmt.Sprintf("%s brought back", k), map[store.Key][]byte{k: old}, k)
			}
		}
	}
	for _, table := range []store.Table{store.Records, store.Leases, store.Secrets, store.Tokens, store.Head} {
		var two []store.Key
		for _, k := range keys {
			if k.Table == table {
				two = append(two, k)
			}
		}
		x, y := two[0], two[1]
		tamper(fmt.Sprintf("swapped %s and %s", x, y), map[store.Key][]byte{x: last[y], y: last[x]})
	}
	forged := map[store.Key][]byte{{Table: store.Tokens, Name: "evil"}: last[store.Key{Table: store.Tokens, Name: "a"}]}
	tamper("a forged token", forged, store.Key{Table: store.Tokens, Name: "evil"})
	if _, err := store.Inspect(t.Context(), b, s.cipher, nil); err != nil {
		t.Errorf("all is as it was: %v", err)
	}
	if _, err := store.Inspect(t.Context(), b, NewCipher("another"), nil); err == nil {
		t.Error("verified under another key")
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.Inspect(canceled, b, s.cipher, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// testPower removes, adds and puts back rows that grant power: the store must not be unsealed, or must stop by itself.
func testPower(t *testing.T, s *setup) {
	history := populate(t, s)
	last := history[len(history)-1]
	key := func(table store.Table, name string) store.Key { return store.Key{Table: table, Name: name} }
	for _, c := range []struct {
		name       string
		key        store.Key
		value      []byte // nil: removed
		background bool
	}{
		{"removed policy", key(store.Policies, "a"), nil, false},
		{"removed mount", key(store.Mounts, "b"), nil, false},
		{"removed tombstone", key(store.Tombs, "c"), nil, false},
		{"role put back", key(store.Config, "a"), history[0][key(store.Config, "a")], false},
		{"deleted role back", key(store.Config, "c"), history[0][key(store.Config, "c")], false},
		{"copied identity", key(store.Identity, "d"), last[key(store.Identity, "a")], false},
		{"altered cluster metadata", key(store.Meta, "cluster"), append(bytes.Clone(last[key(store.Meta, "cluster")]), 'x'), false},
		{"removed cluster metadata", key(store.Meta, "cluster"), nil, false},
		{"deleted token back", key(store.Tokens, "c"), history[0][key(store.Tokens, "c")], true},
		{"token put back", key(store.Tokens, "a"), history[0][key(store.Tokens, "a")], true},
		{"removed accessor", key(store.TokenIdx, "a"), nil, true},
	} {
		set := func(v []byte) {
			b := s.open()
			defer b.Close()
			write(t, b, func(w store.Write) {
				if v == nil {
					w.Delete(c.key)
				} else {
					w.Set(c.key, v)
				}
			})
		}
		set(c.value)
		db, err := store.Open(s.open(), store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Unseal(s.cipher)
		switch {
		case !c.background && err == nil:
			t.Errorf("%s: unsealed", c.name)
		case c.background && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.background:
			until(t, c.name+" is found", func() bool { return db.Fault() != nil })
			if _, err := db.Commit(t.Context(), store.Txn{}); !errors.Is(err, store.ErrClosed) {
				t.Errorf("%s: commit: %v", c.name, err)
			}
			if _, err := db.View(); err == nil {
				t.Errorf("%s: still serves", c.name)
			}
			if _, err := db.Verify(t.Context(), nil); err == nil {
				t.Errorf("%s: not found by Verify", c.name)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		set(last[c.key])
	}
	whole := s.db(t, nil, store.Options{})
	verify(t, whole)
	if err := whole.Close(); err != nil {
		t.Fatal(err)
	}

	// The last header is gone, and what it wrote is not: it touched no power, so that only the rows tell.
	b := s.open()
	write(t, b, func(w store.Write) { w.Delete(key(store.Head, store.Uint64Key(4))) })
	db := s.db(t, b, store.Options{})
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var d *store.Damage
	if _, err := v.Get(key(store.Due, "a")); !errors.As(err, &d) {
		t.Errorf("a row of a commit that is not in the chain: %v", err)
	}
}

// memory is an Anchor in memory.
type memory struct {
	mark store.Mark
	err  error
}

func (m *memory) Load() (store.Mark, error) { return m.mark, m.err }
func (m *memory) String() string            { return "in memory" }
func (m *memory) Store(k store.Mark) error  { m.mark = k; return m.err }

func testAnchor(t *testing.T, s *setup) {
	anchor := store.FileAnchor(filepath.Join(t.TempDir(), "anchor"))
	step := func() {
		t.Helper()
		db := s.db(t, nil, store.Options{Anchor: anchor})
		commit(t, db, func(x *store.Txn) { x.Put(store.Config, "x", Random(4)) })
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	load := func() store.Mark {
		t.Helper()
		m, err := anchor.Load()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	all := func() map[store.Key][]byte {
		b := s.open()
		defer b.Close()
		snap := snapshot(t, b)
		defer snap.Close()
		return contents(t, snap)
	}
	refused := func(what, want string) {
		t.Helper()
		db, err := store.Open(s.open(), store.Options{Anchor: anchor})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.Unseal(s.cipher); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), anchor.String()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	become := func(state map[store.Key][]byte) {
		b := s.open()
		defer b.Close()
		write(t, b, func(w store.Write) {
			for table := store.Meta; table <= store.Batches; table++ {
				w.DeleteRange(store.Range{Table: table})
			}
			for k, v := range state {
				w.Set(k, v)
			}
		})
	}
	step()
	if m := load(); m.Seq != 1 || m.Incarnation != 1 {
		t.Errorf("mark %+v", m)
	}
	old, mark1 := all(), load()
	step()
	now, mark2 := all(), load()
	become(old)
	refused("a store put back", "commit 1, but had come to commit 2")
	become(nil)
	refused("an empty store", "commit 0, but had come to commit 2")
	become(old) // a second history of the same length
	if err := anchor.Store(mark1); err != nil {
		t.Fatal(err)
	}
	step()
	step()
	if err := anchor.Store(mark2); err != nil {
		t.Fatal(err)
	}
	refused("another history", "not the one")
	become(now)
	step()
	if err := anchor.Store(mark2); err != nil {
		t.Fatal(err)
	}
	step() // a store may be ahead of its anchor
	m := load()
	m.Seq--
	if err := anchor.Store(m); err != nil {
		t.Fatal(err)
	}
	refused("an altered anchor", "wrong MAC")

	m2 := &memory{}
	db, err := store.Open(s.fresh(t)(), store.Options{Anchor: m2, Clock: s.clock})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(s.cipher); err != nil {
		t.Fatal(err)
	}
	commit(t, db, func(x *store.Txn) { x.Put(store.Config, "x", nil) })
	m2.err = errors.New("unreachable")
	if err := db.Close(); err == nil || db.Stats().AnchorErrors == 0 {
		t.Error("an anchor that cannot be written is silent")
	}
}

func testBackup(t *testing.T, s *setup) {
	populate(t, s)
	db := s.db(t, nil, store.Options{})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // the store goes on meanwhile
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				if _, err := db.Commit(context.Background(), store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Tokens, Name: fmt.Sprint(i)}, Value: Random(100)}}}); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	time.Sleep(5 * time.Millisecond)
	var buf bytes.Buffer
	head, err := db.Backup(t.Context(), &buf)
	if err != nil {
		t.Fatal(err)
	}
	close(stop)
	<-stopped
	backup := buf.Bytes()
	if h, err := store.CheckBackup(bytes.NewReader(backup)); err != nil || h.Hash() != head.Hash() {
		t.Errorf("check: %+v, %v", h, err)
	}
	if bytes.Contains(backup, []byte("other")) {
		t.Error("a value lies open in the backup")
	}

	unseal := func(v store.View) (store.Cipher, error) {
		if row, err := v.Get(store.Key{Table: store.Meta, Name: "cluster"}); err != nil || string(row.Value) != "c" {
			return nil, fmt.Errorf("the restored store does not tell its keys: %+v, %w", row, err)
		}
		return s.cipher, nil
	}
	void := func(v store.View, x *store.Txn) error {
		x.Ranges = append(x.Ranges, store.Range{Table: store.Secrets, From: "b"})
		x.Audit = append(x.Audit, record("sys/restore", "operator"))
		return nil
	}
	restore := func(open func() store.Backend, data []byte, anchor store.Anchor) (audit.Header, error) {
		return store.Restore(t.Context(), bytes.NewReader(data), open(), store.Options{Node: "node-2", Clock: s.clock, Anchor: anchor}, unseal, void)
	}
	open := s.fresh(t)
	anchor := &memory{mark: store.Mark{Seq: 1 << 40}} // of the store that was lost
	h, err := restore(open, backup, anchor)
	if err != nil {
		t.Fatal(err)
	}
	if h.Seq != head.Seq+1 || h.Incarnation != head.Incarnation+1 || h.Prev != head.Hash() || anchor.mark.Seq != h.Seq {
		t.Errorf("first header after the restore: %+v; anchor %+v", h, anchor.mark)
	}
	restored := &setup{open: open, cipher: s.cipher, clock: s.clock}
	db2 := restored.db(t, nil, store.Options{Anchor: anchor})
	verify(t, db2)
	v, err := db2.View()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []store.Table{store.Tokens, store.TokenIdx} {
		for row := range v.Scan(table, "", "") {
			t.Errorf("%s survived", row.Key)
		}
	}
	v.Close()
	if !get(t, db2, store.Fenced.Table, store.Fenced.Name).Exists() {
		t.Error("the restored store is not fenced")
	}
	if get(t, db2, store.Secrets, "b").Exists() || !get(t, db2, store.Secrets, "a").Exists() || string(get(t, db2, store.Leases, "a").Value) != "again" {
		t.Error("what was to survive did not, or what was not did")
	}
	commit(t, db2, func(x *store.Txn) { x.Delete(store.Fenced.Table, store.Fenced.Name); x.Put(store.Tokens, "new", nil) })
	verify(t, db2)
	var again bytes.Buffer
	if _, err := db2.Backup(t.Context(), &again); err != nil {
		t.Fatal(err)
	}
	if err := db2.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := restore(open, backup, nil); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("restored over a store: %v", err)
	}
	if h, err := restore(s.fresh(t), again.Bytes(), nil); err != nil || h.Incarnation != 3 {
		t.Errorf("backup of a restored store: %+v, %v", h, err)
	}

	// Damaged backups are refused, what they left cannot be opened, and a sound one still goes in.
	open = s.fresh(t)
	for _, at := range []int{3, len(backup) / 3, len(backup) / 2, len(backup) - 50, len(backup) - 1} {
		bad := bytes.Clone(backup)
		bad[at] ^= 4
		if _, err := restore(open, bad, nil); err == nil {
			t.Errorf("a backup with a flipped bit at %d of %d was restored", at, len(bad))
		}
		if _, err := restore(open, backup[:at], nil); err == nil {
			t.Errorf("a backup cut at %d of %d was restored", at, len(backup))
		}
		if at < len(backup)-40 {
			if _, err := store.CheckBackup(bytes.NewReader(bad)); err == nil {
				t.Errorf("a flipped bit at %d of %d was not found", at, len(bad))
			}
		}
	}
	forged := bytes.Clone(backup)
	forged[len(forged)-1] ^= 1 // the MAC, which is checked after the store was filled
	if _, err := restore(open, forged, nil); err == nil {
		t.Error("a forged backup was restored")
	}
	b := open()
	if _, err := store.Open(b, store.Options{}); err == nil {
		t.Error("a store was opened whose restore failed")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := restore(open, backup, nil); err != nil {
		t.Errorf("after failures: %v", err)
	}
}

// copied is a store.Source: a state, and the commits after it.
type copied struct{ state, commits []store.Stored }

func (c *copied) Fill(_ context.Context, f *store.Filling) error {
	for _, e := range c.state {
		if err := f.Set(e); err != nil {
			return err
		}
	}
	for _, e := range c.commits {
		if err := f.Follow(e); err != nil {
			return err
		}
	}
	return nil
}

func (c *copied) Authentic(store.Cipher) error { return nil }

// rowsOf takes down what an Image yields.
func rowsOf(t *testing.T, rows iter.Seq2[store.Stored, error]) (all []store.Stored) {
	t.Helper()
	for e, err := range rows {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, store.Stored{Key: e.Key, Bytes: bytes.Clone(e.Bytes)})
	}
	return all
}

// testImage copies a state, then what became of it, and restores both together; and damages what it copied.
func testImage(t *testing.T, s *setup) {
	populate(t, s)
	db := s.db(t, nil, store.Options{})
	before, err := db.Image()
	if err != nil {
		t.Fatal(err)
	}
	from := &copied{state: rowsOf(t, before.All(t.Context()))}
	commit(t, db, func(x *store.Txn) {
		x.Put(store.Secrets, "b", []byte("overwritten"))
		x.Put(store.Leases, "gone", []byte("x"))
		x.Audit = []audit.Record{record("secret/b", "x"), record("secret/c", "y")}
	})
	commit(t, db, func(x *store.Txn) { x.Put(store.Secrets, "b", []byte("last")); x.Put(store.Config, "y", []byte("1")) })
	s.clock.Advance(72 * time.Hour)
	commit(t, db, func(x *store.Txn) {
		x.Ranges = []store.Range{{Table: store.Leases, From: "g"}}
		x.Delete(store.Config, "y")
		x.Put(store.Leases, "h", []byte("after the range"))
		x.Audit = []audit.Record{record("secret/h", "x")}
	})
	if _, err := db.Prune(t.Context(), db.Now().Add(-24*time.Hour), record("sys/prune", "x")); err != nil {
		t.Fatal(err)
	}
	after, err := db.Image()
	if err != nil {
		t.Fatal(err)
	}
	if after.Head.Seq != before.Head.Seq+4 || after.Hash != after.Head.Hash() {
		t.Errorf("heads: %d, %d", before.Head.Seq, after.Head.Seq)
	}
	from.commits = rowsOf(t, after.After(t.Context(), before.Head.Seq))
	before.Close()
	after.Close()

	restore := func(from store.Source) (func() store.Backend, error) {
		open := s.fresh(t)
		_, err := store.RestoreFrom(t.Context(), from, open(), store.Options{Clock: s.clock}, func(store.View) (store.Cipher, error) { return s.cipher, nil },
			func(store.View, *store.Txn) error { return nil })
		return open, err
	}
	open, err := restore(from)
	if err != nil {
		t.Fatal(err)
	}
	restored := &setup{open: open, cipher: s.cipher, clock: s.clock}
	db2 := restored.db(t, nil, store.Options{})
	verify(t, db2)
	if get(t, db2, store.Config, "y").Exists() || get(t, db2, store.Leases, "gone").Exists() || string(get(t, db2, store.Leases, "h").Value) != "after the range" ||
		get(t, db2, store.Secrets, "b").Version != before.Head.Seq+2 {
		t.Error("the copy is not what the store was")
	}

	for batch, kept := range map[string]bool{before.Head.Batch: false, after.Head.Batch: true} { // the first is of days ago
		if _, found, err := db2.Outcome(batch); err != nil || found != kept {
			t.Errorf("the id of a batch is kept: %v, want %v; %v", found, kept, err)
		}
	}

	// Commits that are missing, come twice or in another order, and rows that are not their commit's, are refused.
	heads := []int{}
	for i, e := range from.commits {
		if e.Key.Table == store.Head {
			heads = append(heads, i)
		}
	}
	if len(heads) != 4 {
		t.Fatalf("%d commits", len(heads))
	}
	row := from.commits[heads[1]+1]
	with := func(i int, e store.Stored) []store.Stored { return slices.Insert(slices.Clone(from.commits), i, e) }
	older := slices.Clone(from.commits)
	older[heads[1]+1].Bytes = bytes.Clone(row.Bytes)
	older[heads[1]+1].Bytes[7]-- // the version's last byte
	for name, commits := range map[string][]store.Stored{
		"one is missing":      slices.Concat(from.commits[:heads[1]], from.commits[heads[2]:]),
		"one comes twice":     slices.Concat(from.commits[:heads[1]], from.commits[:heads[1]]),
		"in another order":    slices.Concat(from.commits[:heads[0]], from.commits[heads[1]:heads[2]], from.commits[:heads[1]]),
		"a row comes first":   slices.Concat(from.commits[1:2], from.commits),
		"a row comes twice":   with(heads[1]+2, row),
		"a row of another":    with(heads[2]+1, row),
		"a row that is short": with(heads[1]+1, store.Stored{Key: row.Key, Bytes: row.Bytes[:4]}),
		"a row is untouched":  with(heads[1]+1, store.Stored{Key: store.Key{Table: store.Secrets, Name: "untouched"}, Bytes: row.Bytes}),
		"a row is older":      older,
		"a batch of its own":  with(heads[1]+1, store.Stored{Key: store.Key{Table: store.Batches, Name: "x"}, Bytes: row.Bytes}),
	} {
		if _, err := restore(&copied{from.state, commits}); err == nil {
			t.Errorf("restored although %s", name)
		}
	}
	for name, e := range map[string]store.Stored{
		"no table": {Key: store.Key{Table: 0, Name: "restore"}, Bytes: row.Bytes}, "no version": {Key: row.Key}, "no name": {Key: store.Key{Table: store.Config}, Bytes: row.Bytes},
	} {
		if _, err := restore(&copied{state: append(slices.Clone(from.state), e)}); err == nil {
			t.Errorf("restored a row with %s", name)
		}
	}
}
