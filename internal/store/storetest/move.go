package storetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
)

// moving is a move between two stores in the making.
type moving struct {
	store.Move
	from, to            func() store.Backend
	source, destination memory // anchors
	progress            int    // parts that were written
}

func newMoving(t *testing.T, s *setup) *moving {
	m := &moving{from: s.open, to: s.fresh(t)}
	m.Move = store.Move{
		Source: "here", Destination: "there", Unseal: keys(s.cipher), SourceAnchor: &m.source, DestinationAnchor: &m.destination,
		Options: store.Options{Node: "mover", Clock: s.clock}, Record: record("sys/lessor/move", "mover"), PartBytes: 300,
	}
	return m
}

// keys unseal whatever it is.
func keys(c *Cipher) func(store.View) (store.Cipher, error) {
	return func(store.View) (store.Cipher, error) { return c, nil }
}

// run runs the move on backends that it opens and closes. It is cut off after so many parts; negative: not at all.
func (m *moving) run(t *testing.T, parts int) (store.Report, audit.Header, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m.From, m.To = m.from(), m.to()
	m.Progress = func(p store.Stage) {
		if p.Doing != "copying" {
			return
		}
		if parts--; parts == 0 {
			cancel()
		}
		m.progress++
	}
	report, head, err := m.Run(ctx)
	if err := errors.Join(m.From.Close(), m.To.Close()); err != nil {
		t.Fatal(err)
	}
	return report, head, err
}

// chance is random for so many reads, and then fails.
type chance struct{ left int }

func (c *chance) Read(b []byte) (int, error) {
	if c.left--; c.left < 0 {
		return 0, errors.New("no chance left")
	}
	return rand.Read(b)
}

// refuses tells that the store on b does not open, for a reason that has the words.
func refuses(t *testing.T, b store.Backend, words string) {
	t.Helper()
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := store.Open(b, store.Options{}); err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("opened: %v; want %q", err, words)
	}
}

func contentsOf(t *testing.T, b store.Backend) map[store.Key][]byte {
	t.Helper()
	snap := snapshot(t, b)
	defer snap.Close()
	return contents(t, snap)
}

func testMove(t *testing.T, s *setup) {
	populate(t, s)
	m := newMoving(t, s)
	db := s.db(t, nil, store.Options{Anchor: &m.source})
	commit(t, db, func(x *store.Txn) { x.Put(store.Tokens, "lives", []byte("on")) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b := s.open()
	before := contentsOf(t, b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	// Cut off after each part in turn, it goes on where it was; what is there meanwhile is no store, and the source still is.
	for i := range 4 {
		if _, _, err := m.run(t, 1+i); !errors.Is(err, context.Canceled) {
			t.Fatalf("cut off: %v", err)
		}
		refuses(t, m.to(), "operator migrate")
	}
	done := m.progress
	if err := s.db(t, nil, store.Options{Anchor: &m.source}).Close(); err != nil {
		t.Fatal(err)
	}
	// An anchor that cannot be read ends the move before the source is given up.
	m.destination.err = errors.New("no disk")
	if _, _, err := m.run(t, -1); err == nil {
		t.Fatal("moved without an anchor")
	}
	if err := s.db(t, nil, store.Options{Anchor: &m.source}).Close(); err != nil {
		t.Fatal(err)
	}
	m.destination.err = nil
	before = m.after(t, before)
	// It ends at each draw of chance in turn, the last of which is the id of the first commit's batch: the source has been left then.
	var report store.Report
	var head audit.Header
	for n := 0; ; n++ {
		m.Options.Random = &chance{n}
		var err error
		if report, head, err = m.run(t, -1); err == nil {
			break
		}
		if n == 20 {
			t.Fatal(err)
		}
		refuses(t, m.to(), "operator migrate")
	}
	m.Options.Random = nil
	if whole := total(before); m.progress > whole/300+2*done+2 {
		t.Errorf("%d parts for %d bytes: it began anew each time", m.progress, whole)
	}
	if head.Seq != report.Head+1 || head.Incarnation != report.Incarnation || head.Count != 1 {
		t.Errorf("verified %+v; first commit %+v", report, head)
	}
	if m.destination.mark.Seq != head.Seq || m.source.mark != m.destination.mark {
		t.Errorf("the anchors remember %d and %d, the head is %d", m.source.mark.Seq, m.destination.mark.Seq, head.Seq)
	}

	// Everything is there, as it was, and goes on.
	b = m.to()
	after := contentsOf(t, b)
	for k, v := range before {
		if string(after[k]) != string(v) {
			t.Errorf("%s: was %q, is %q", k, v, after[k])
		}
	}
	maps.DeleteFunc(after, func(k store.Key, _ []byte) bool { _, had := before[k]; return had })
	for k := range after {
		if k.Table != store.Records && !k.Table.Once() {
			t.Errorf("the first commit wrote %s", k)
		}
	}
	arrived := &setup{open: m.to, cipher: s.cipher, clock: s.clock}
	db = arrived.db(t, b, store.Options{Anchor: &m.destination})
	verify(t, db)
	if string(get(t, db, store.Tokens, "lives").Value) != "on" || get(t, db, store.Fenced.Table, store.Fenced.Name).Exists() {
		t.Error("a token ended, or the store is fenced")
	}
	commit(t, db, func(x *store.Txn) { x.Put(store.Engine, "new", nil) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	// The source says where it went. Without its mark it is behind its anchor.
	refuses(t, s.open(), "there")
	if _, _, err := m.run(t, -1); err != nil {
		t.Errorf("once more: %v", err)
	}
	b = s.open()
	write(t, b, func(w store.Write) { w.Delete(store.Key{Name: "moved"}) })
	left, err := store.Open(b, store.Options{Clock: s.clock, Anchor: &m.source})
	if err != nil {
		t.Fatal(err)
	}
	if err := left.Unseal(s.cipher); !errors.Is(err, store.ErrBehind) {
		t.Errorf("the source without its mark: %v", err)
	}
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}

	// And back, to an empty place.
	back := newMoving(t, arrived.with(s.fresh))
	back.source, back.destination = m.destination, m.source
	if _, h, err := back.run(t, -1); err != nil || h.Seq != head.Seq+2 {
		t.Fatalf("back: %d, %v", h.Seq, err)
	}
	verify(t, (&setup{open: back.to, cipher: s.cipher, clock: s.clock}).db(t, nil, store.Options{Anchor: &back.destination}))
}

// with is the setup with a way to make more.
func (s *setup) with(fresh func(*testing.T) func() store.Backend) *setup {
	s.fresh = fresh
	return s
}

// after are the rows of the source now, which opening and closing it has not changed.
func (m *moving) after(t *testing.T, before map[store.Key][]byte) map[store.Key][]byte {
	t.Helper()
	b := m.from()
	defer func() { _ = b.Close() }()
	now := contentsOf(t, b)
	if len(now) != len(before) {
		t.Errorf("the source had %d rows, and has %d", len(before), len(now))
	}
	return now
}

func total(rows map[store.Key][]byte) (n int) {
	for k, v := range rows {
		n += len(k.Name) + len(v)
	}
	return n
}

// testMoveRefuses moves what must not be moved.
func testMoveRefuses(t *testing.T, s *setup) {
	populate(t, s)
	refused := func(m *moving, parts int, words string) {
		t.Helper()
		if _, _, err := m.run(t, parts); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v; want %q", err, words)
		}
		if err := s.db(t, nil, store.Options{}).Close(); err != nil { // the source is still the store
			t.Fatal(err)
		}
	}
	// A destination that is in use, even by the same store.
	m := newMoving(t, s)
	other := &setup{open: m.to, cipher: s.cipher, clock: s.clock}
	populate(t, other)
	refused(m, -1, "not empty")

	// The unfinished copy of a store under other keys; and wrong keys.
	m = newMoving(t, s)
	refused(m, 2, "canceled")
	foreign := newMoving(t, (&setup{open: s.fresh(t), cipher: NewCipher("foreign"), clock: s.clock}).with(s.fresh))
	populate(t, &setup{open: foreign.from, cipher: NewCipher("foreign"), clock: s.clock})
	foreign.to = m.to
	refused(foreign, -1, "another store")
	m.Unseal = keys(NewCipher("foreign"))
	refused(m, -1, "damaged")
	m.Unseal = keys(s.cipher)

	// A server that wrote to the source between two tries: the copy is made anew.
	db := s.db(t, nil, store.Options{})
	commit(t, db, func(x *store.Txn) { x.Put(store.Engine, "later", nil) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	// A row of the copy that was altered, removed or added is found, and mended by another try.
	for what, damage := range map[string]func(store.Write){
		"altered": func(w store.Write) {
			w.Set(store.Key{Table: store.Leases, Name: "a"}, stored(3, "nonsense of some length, for a cipher"))
		},
		"removed": func(w store.Write) { w.Delete(store.Key{Table: store.Engine, Name: "a"}) },
		"added":   func(w store.Write) { w.Set(store.Key{Table: store.Engine, Name: "zz"}, stored(1, "added")) },
	} {
		m.PartBytes = 0
		m.destination.err = errors.New("no disk") // so that all is copied, and the move goes no further
		refused(m, -1, "no disk")
		m.destination.err = nil
		b := m.to()
		write(t, b, damage)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		m.progress = 0
		refused(m, -1, "run the same command again")
		if m.progress != 0 {
			t.Errorf("%s: what was copied was copied again before it was verified", what)
		}
	}
	if _, _, err := m.run(t, -1); err != nil {
		t.Errorf("after damage: %v", err)
	}
	// The source was moved; it is moved nowhere else.
	m.to = s.fresh(t)
	if _, _, err := m.run(t, -1); err == nil || !strings.Contains(err.Error(), "was moved to there") {
		t.Errorf("moved twice: %v", err)
	}
}

// testMoveInUse moves a store that other nodes have open.
func testMoveInUse(t *testing.T, s *setup) {
	populate(t, s)
	db := s.db(t, nil, store.Options{})
	m := newMoving(t, s)
	if _, _, err := m.run(t, -1); err == nil || !strings.Contains(err.Error(), "other servers") {
		t.Errorf("moved while it was open: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func testTakeover(t *testing.T, s *setup) {
	populate(t, s)
	var one, two memory
	db := s.db(t, nil, store.Options{Anchor: &one})
	commit(t, db, func(x *store.Txn) { x.Put(store.Tokens, "t", nil) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b := s.open()
	earlier := contentsOf(t, b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	db = s.db(t, nil, store.Options{Anchor: &one})
	lost := commit(t, db, func(x *store.Txn) { x.Put(store.Engine, "lost", nil) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	two = one

	o := func(anchor store.Anchor) store.Options {
		return store.Options{Node: "operator", Clock: s.clock, Anchor: anchor}
	}
	unseal := keys(s.cipher)
	void := func(v store.View, x *store.Txn) error {
		x.Ranges = append(x.Ranges, store.Range{Table: store.Secrets, From: "b"})
		x.Audit = append(x.Audit, record("sys/lessor/takeover", "operator"))
		return nil
	}
	takeover := func(anchor store.Anchor, force bool) (audit.Header, error) {
		return store.Takeover(t.Context(), s.open(), o(anchor), force, nil, unseal, void)
	}
	if _, err := takeover(&one, false); !errors.Is(err, store.ErrCurrent) {
		t.Errorf("took over a store that is where it was: %v", err)
	}

	b = s.open()
	write(t, b, func(w store.Write) { // as a database that was restored
		for table := store.Meta; table <= store.Claims; table++ {
			w.DeleteRange(store.Range{Table: table})
		}
		for k, v := range earlier {
			w.Set(k, v)
		}
	})
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	refusesToUnseal(t, s, &one, "takeover")

	if _, err := store.Accept(t.Context(), s.open(), o(&two), strings.Repeat("0", 64), unseal); err == nil || !strings.Contains(err.Error(), "nobody has taken") {
		t.Errorf("accepted what nobody took over: %v", err)
	}
	head, err := takeover(&one, false)
	if err != nil {
		t.Fatal(err)
	}
	if head.Seq != lost.Seq || head.Incarnation != 2 || one.mark.Seq != head.Seq {
		t.Errorf("%+v; anchor %+v", head, one.mark)
	}
	db = s.db(t, nil, store.Options{Anchor: &one})
	verify(t, db)
	if get(t, db, store.Tokens, "t").Exists() || get(t, db, store.Secrets, "b").Exists() || !get(t, db, store.Fenced.Table, store.Fenced.Name).Exists() {
		t.Error("tokens or wrappings survived, or the store is not fenced")
	}
	for range 3 { // past where the anchor of the other node is
		commit(t, db, func(x *store.Txn) { x.Put(store.Engine, "next", nil) })
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	// The other node goes along once somebody brings the right hash, and not before.
	refusesToUnseal(t, s, &two, "takeover -accept")
	first := head.Hash()
	wrong := first
	wrong[0] ^= 1
	before := two.mark
	if _, err := store.Accept(t.Context(), s.open(), o(&two), hex.EncodeToString(wrong[:]), unseal); err == nil || two.mark != before {
		t.Errorf("accepted another history: %v", err)
	}
	h, err := store.Accept(t.Context(), s.open(), o(&two), hex.EncodeToString(first[:]), unseal)
	if err != nil || two.mark.Seq != h.Seq || h.Seq != head.Seq+3 {
		t.Fatalf("accepting: %+v, %v", h, err)
	}
	if err := s.db(t, nil, store.Options{Anchor: &two}).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Accept(t.Context(), s.open(), o(&memory{}), hex.EncodeToString(first[:]), unseal); !errors.Is(err, store.ErrCurrent) {
		t.Errorf("accepted without an anchor: %v", err)
	}
	if _, err := takeover(nil, false); !errors.Is(err, store.ErrCurrent) {
		t.Errorf("without an anchor: %v", err)
	}
	if h, err := takeover(nil, true); err != nil || h.Incarnation != 3 {
		t.Errorf("by force: %+v, %v", h, err)
	}
}

func refusesToUnseal(t *testing.T, s *setup, anchor store.Anchor, words string) {
	t.Helper()
	db, err := store.Open(s.open(), store.Options{Clock: s.clock, Anchor: anchor})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(s.cipher); !errors.Is(err, store.ErrBehind) || !strings.Contains(err.Error(), words) {
		t.Errorf("unsealed: %v; want %q", err, words)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
