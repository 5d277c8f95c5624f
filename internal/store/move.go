package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Extent is how much of a store is meant.
type Extent struct {
	Rows  uint64 `json:"rows"`  // of all tables, headers and audit records included
	Bytes uint64 `json:"bytes"` // of names, and of what is stored under them
}

// Stage tells how far a move came.
type Stage struct {
	Doing       string // "counting", "copying" or "verifying"
	Done, Total Extent // Total is zero while counting. While verifying, Rows are commits and Bytes is zero
}

// Move takes a store from one backend to another. It stays the same store: chain, incarnation, tokens and leases go on where
// they were.
//
// At each moment at most one of the two can be opened, and one of them can at nearly every moment:
//
//  1. The destination gets the mark of an unfinished move, then the rows, some MB at a time, each time with how far they came.
//  2. All of it is verified there, chain and rows, and its head held against the source's and the destination's anchor.
//  3. The source gets the mark that says where it went. From here on it does not open.
//  4. The destination gets its first commit, with a record of the move; it takes the mark away. Both anchors remember that commit,
//     so that a source whose mark was removed is behind its anchor.
//
// A move that was cut off at any point goes on there when Run is called again with the same two backends. If servers wrote to the
// source meanwhile, the copy is thrown away and made anew.
type Move struct {
	From, To    Backend
	Source      string                     // where the store is and goes, in words without anything secret; they are in marks, messages and
	Destination string                     // the audit record
	Unseal      func(View) (Cipher, error) // gets the keys by what the clear tables of the source say

	SourceAnchor, DestinationAnchor Anchor // as Options.Anchor; may be the same

	Options   Options      // of the store at its destination; Anchor is DestinationAnchor
	Record    audit.Record // of the first commit; its Time is set
	Progress  func(Stage)  // may be nil; called often, and after each part that is durable at the destination
	PartBytes int          // written at once; 0: 4 MiB

	cipher Cipher // of the store, once the source was looked at
}

var (
	errNothing  = errors.New("store: there is no store at the source: nothing to move")
	errOccupied = errors.New("store: the destination is not empty: a store is moved to an empty place, or to where the same move broke off")
)

// Run moves the store, and returns what the verification at the destination found, with the head of the first commit there.
// Neither backend is closed. No server may run on either; other nodes that have one open are waited for, some seconds.
func (m *Move) Run(ctx context.Context) (Report, audit.Header, error) {
	if m.Progress == nil {
		m.Progress = func(Stage) {}
	}
	if err := errors.Join(mustBeAlone(ctx, m.From), mustBeAlone(ctx, m.To)); err != nil {
		return Report{}, audit.Header{}, err
	}
	p, left, err := m.depart(ctx)
	if err != nil {
		return Report{}, audit.Header{}, err
	}
	arrived, err := m.arrive(ctx, &p, left)
	if err != nil {
		return Report{}, audit.Header{}, err
	}
	var report Report
	if !arrived {
		if report, err = m.carry(ctx, &p); err != nil {
			return Report{}, audit.Header{}, err
		}
	}
	head, err := m.settle(ctx, &p, arrived, left)
	return report, head, err
}

// open opens a store on a backend that outlives it.
func (m *Move) open(b Backend, o Options, as arrival) (*DB, error) {
	db, err := open(b, o, as)
	if err == nil {
		db.lent = true
	}
	return db, err
}

// depart looks at the source. left is whether it was marked as moved: then p is what the mark says.
func (m *Move) depart(ctx context.Context) (p passage, left bool, err error) {
	o := m.Options
	o.Anchor = m.SourceAnchor
	db, err := m.open(m.From, o, relocated)
	if err != nil {
		return passage{}, false, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if db.Head().Seq == 0 {
		return passage{}, false, errNothing
	}
	if m.cipher, err = db.keys(m.Unseal); err != nil {
		return passage{}, false, err
	}
	s, err := db.latest()
	if err != nil {
		return passage{}, false, err
	}
	defer s.release()
	for _, k := range [...]Key{restoreMark, moveMark} {
		if mark, err := s.snap.Get(k); err != nil || mark != nil {
			return passage{}, false, cmp.Or(err, fmt.Errorf("store: the source is itself an unfinished %s", k.Name))
		}
	}
	if err := db.verifyHead(s, m.cipher); err != nil {
		return passage{}, false, err
	}
	if p, left, err = readPassage(s.snap, m.cipher, movedMark); err != nil {
		return passage{}, false, err
	}
	if !left {
		id, err := NewPeerID(db.o.Random)
		p = passage{ID: id, From: m.Source, To: m.Destination, Began: db.Now().UTC(), Seq: s.head.Seq, Hash: s.hash}
		return p, false, cmp.Or(err, db.verifyAnchor(s, m.cipher))
	}
	if p.Seq != s.head.Seq || p.Hash != s.hash {
		return passage{}, false, fmt.Errorf("store: the source ends at commit %d, but was moved to %s at commit %d: it was changed since", s.head.Seq, p.To, p.Seq)
	}
	return p, true, nil
}

// arrive looks at the destination: a store that arrived is done with. An unfinished copy of the same state sets p to where it
// broke off; anything else that is not empty is refused.
func (m *Move) arrive(ctx context.Context, p *passage, left bool) (arrived bool, err error) {
	snap, err := m.To.Snapshot()
	if err != nil {
		return false, err
	}
	defer snap.Close()
	if mark, err := snap.Get(restoreMark); err != nil || mark != nil {
		return false, cmp.Or(err, errors.New("store: at the destination a restore did not finish; empty it"))
	}
	q, found, err := readPassage(snap, m.cipher, moveMark)
	switch {
	case err != nil:
		return false, err
	case found && left && q.ID != p.ID:
		return false, fmt.Errorf("store: the source was moved to %s, by another move than the one that broke off here", p.To)
	case found && q.Seq == p.Seq && q.Hash == p.Hash:
		*p = q
		return false, nil
	case found:
		return false, nil // of an earlier state of the same store; p begins anew
	}
	if left {
		return m.arrivedAs(snap, p)
	}
	for t := Table(1); t < tables; t++ {
		for _, err := range snap.Scan(Range{Table: t}, false) {
			return false, cmp.Or(err, errOccupied)
		}
	}
	return false, nil
}

// arrivedAs is true if the store in snap is the one that the source was moved to, and an error if not.
func (m *Move) arrivedAs(snap Snapshot, p *passage) (bool, error) {
	stored, err := snap.Get(headKey(p.Seq))
	if err != nil {
		return false, err
	}
	if stored != nil {
		if _, hash, err := decodeHead(Stored{headKey(p.Seq), stored}); err == nil && hash == p.Hash {
			return true, nil
		}
	}
	return false, fmt.Errorf("store: the source was moved to %s, and the destination is not that store", p.To)
}

// carry copies what is not copied yet, and verifies all of it.
func (m *Move) carry(ctx context.Context, p *passage) (Report, error) {
	from, err := m.From.Snapshot()
	if err != nil {
		return Report{}, err
	}
	defer from.Close()
	if !p.Whole {
		if err := m.copy(ctx, from, p); err != nil {
			return Report{}, err
		}
	}
	return m.verify(ctx, p)
}

// copy writes the rows after p.at() to the destination.
func (m *Move) copy(ctx context.Context, from Snapshot, p *passage) error {
	total, err := m.count(ctx, from)
	if err != nil {
		return err
	}
	if p.Table == 0 {
		p.Copied = Extent{}
		if err := m.begin(p); err != nil {
			return err
		}
	}
	var w Write // of the part under way; nil between two
	defer func() {
		if w != nil {
			w.Abort()
		}
	}()
	size := 0
	for e, err := range m.rest(from, p.at()) {
		if err := cmp.Or(err, ctx.Err()); err != nil {
			return err
		}
		if w == nil {
			if w, err = m.To.Begin(); err != nil {
				return err
			}
		}
		w.Set(e.Key, e.Bytes)
		n := len(e.Key.Name) + len(e.Bytes)
		p.Table, p.Name = e.Key.Table, append(p.Name[:0], e.Key.Name...)
		p.Copied.Rows, p.Copied.Bytes = p.Copied.Rows+1, p.Copied.Bytes+uint64(n)
		if size += n; size < cmp.Or(m.PartBytes, fillBytes) {
			continue
		}
		if err := m.part(w, p, total); err != nil {
			return err
		}
		size, w = 0, nil
	}
	if w == nil {
		if w, err = m.To.Begin(); err != nil {
			return err
		}
	}
	p.Whole = true
	return m.part(w, p, total)
}

// rest are the rows after a key.
func (m *Move) rest(from Snapshot, after Key) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		for t := max(after.Table, 1); t < tables; t++ {
			r := Range{Table: t}
			if t == after.Table {
				r.From = after.Name + "\x00" // the name right after
			}
			for e, err := range from.Scan(r, false) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// part ends w, which took the copy to p.
func (m *Move) part(w Write, p *passage, total Extent) error {
	if err := m.mark(w, p); err != nil {
		return err
	}
	if err := w.Commit(); err != nil {
		return err
	}
	m.Progress(Stage{"copying", p.Copied, total})
	return nil
}

// count goes through the source once, so that the person who waits knows how long.
func (m *Move) count(ctx context.Context, from Snapshot) (total Extent, err error) {
	for t := Table(1); t < tables; t++ {
		for e, err := range from.Scan(Range{Table: t}, false) {
			if err := cmp.Or(err, ctx.Err()); err != nil {
				return Extent{}, err
			}
			total.Rows, total.Bytes = total.Rows+1, total.Bytes+uint64(len(e.Key.Name)+len(e.Bytes))
			if total.Rows%1024 == 0 {
				m.Progress(Stage{Doing: "counting", Done: total})
			}
		}
	}
	return total, nil
}

// begin empties the destination, and marks it.
func (m *Move) begin(p *passage) error {
	w, err := m.To.Begin()
	if err != nil {
		return err
	}
	defer w.Abort()
	for t := Table(1); t < tables; t++ {
		w.DeleteRange(Range{Table: t})
	}
	if err := m.mark(w, p); err != nil {
		return err
	}
	return w.Commit()
}

func (m *Move) mark(w Write, p *passage) error {
	stored, err := p.stored(m.cipher, moveMark)
	if err == nil {
		w.Set(moveMark, stored)
	}
	return err
}

// verify holds the copy against itself, and against the source's head. A copy in which something does not fit is made anew by
// the next Run.
func (m *Move) verify(ctx context.Context, p *passage) (Report, error) {
	report, err := Inspect(ctx, m.To, m.cipher, func(done, total uint64) {
		m.Progress(Stage{"verifying", Extent{Rows: done}, Extent{Rows: total}})
	})
	if err == nil {
		err = m.sameHead(p)
	}
	if err == nil || ctx.Err() != nil {
		return report, err
	}
	err = fmt.Errorf("store: the copy is not what the source is, or the source is damaged (lessor operator verify tells which); "+
		"run the same command again to copy anew: %w", err)
	w, beginErr := m.To.Begin()
	if beginErr != nil {
		return Report{}, errors.Join(err, beginErr)
	}
	defer w.Abort()
	anew := *p
	anew.Table, anew.Name, anew.Copied, anew.Whole = 0, nil, Extent{}, false
	return Report{}, errors.Join(err, m.mark(w, &anew), w.Commit())
}

func (m *Move) sameHead(p *passage) error {
	snap, err := m.To.Snapshot()
	if err != nil {
		return err
	}
	defer snap.Close()
	last, err := Last(snap, Range{Table: Head})
	if err != nil {
		return err
	}
	_, hash, err := decodeHead(last)
	if err == nil && hash != p.Hash {
		err = &Damage{last.Key, "it is not the head of the source"}
	}
	return err
}

// leave marks the source as moved, and then looks once more whether it is still what was copied, and whether it is in use: whoever
// opens it sees the mark, or is seen.
func (m *Move) leave(ctx context.Context, p *passage) error {
	w, err := m.From.Begin()
	if err != nil {
		return err
	}
	defer w.Abort()
	next := make([]uint64, 1)
	if err := w.Versions([]Key{headKey(p.Seq + 1)}, next); err != nil {
		return err
	}
	if next[0] != 0 {
		return errors.New("store: a server wrote to the source meanwhile: stop it, and run the same command again")
	}
	q := *p
	q.Table, q.Name = 0, nil
	stored, err := q.stored(m.cipher, movedMark)
	if err != nil {
		return err
	}
	w.Set(movedMark, stored)
	if err := w.Commit(); err != nil {
		return err
	}
	if err := mustBeAlone(ctx, m.From); err != nil {
		return errors.Join(err, m.stay())
	}
	return nil
}

// stay undoes leave.
func (m *Move) stay() error {
	w, err := m.From.Begin()
	if err != nil {
		return err
	}
	defer w.Abort()
	w.Delete(movedMark)
	return w.Commit()
}

// settle opens the destination, marks the source, and makes the destination's first commit, as far as that is not done yet. The
// source's anchor remembers the commit, too.
func (m *Move) settle(ctx context.Context, p *passage, arrived, left bool) (head audit.Header, err error) {
	o := m.Options
	o.Anchor = m.DestinationAnchor
	as := relocated
	if arrived {
		as = settled
	}
	db, err := m.open(m.To, o, as)
	if err != nil {
		return audit.Header{}, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.Unseal(m.cipher); err != nil {
		return audit.Header{}, err
	}
	if !left {
		if err := m.leave(ctx, p); err != nil {
			return audit.Header{}, err
		}
	}
	if !arrived {
		record := m.Record
		record.Time = db.Now()
		if _, err := db.Commit(ctx, Txn{Audit: []audit.Record{record}}); err != nil {
			return audit.Header{}, err
		}
	}
	head = db.Head()
	if m.SourceAnchor != nil {
		mark := Mark{Seq: head.Seq, Incarnation: head.Incarnation, Hash: head.Hash()}
		mark.MAC = m.cipher.MAC(mark.bytes())
		err = m.SourceAnchor.Store(mark)
	}
	return head, err
}
