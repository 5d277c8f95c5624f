package store

import (
	"iter"
	"sync"
	"sync/atomic"

	"github.com/lessor-dev/lessor/internal/audit"
)

// state is a published durable state. It lives while it is the latest or some View shows it.
type state struct {
	snap    Snapshot
	head    audit.Header
	hash    audit.Hash // of head; zero for an empty store
	changed [tables]uint64
	recent  []*audit.Header // the last ones, in order, up to head; nobody changes them
	hashes  []audit.Hash    // of the last headers, in order, up to head's; nobody changes them
	from    point           // what the chain was followed from to head
	cipher  Cipher          // nil while sealed
	rows    *rowCache       // of the DB; nil for a state that stands alone
	next    chan struct{}   // closed once a later state is published
	refs    atomic.Int64
	open    *sync.WaitGroup
}

// point is a commit on the chain.
type point struct {
	seq  uint64
	hash audit.Hash
}

func (s *state) point() point { return point{s.head.Seq, s.hash} }

// acquire adds a reference, unless the state is gone already.
func (s *state) acquire() bool {
	for {
		n := s.refs.Load()
		if n == 0 {
			return false
		}
		if s.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *state) release() {
	if s.refs.Add(-1) == 0 {
		s.snap.Close()
		s.open.Done()
	}
}

func (s *state) get(k Key) (Row, error) {
	if s.cipher == nil || s.rows == nil {
		return s.seek(k)
	}
	if row, ok := s.rows.get(k, s.head.Seq); ok {
		return row, nil
	}
	row, err := s.seek(k)
	if err == nil {
		s.rows.put(row, s.head.Seq)
	}
	return row, err
}

func (s *state) seek(k Key) (Row, error) {
	stored, err := s.snap.Get(k)
	if err != nil {
		return Row{}, err
	}
	if stored == nil {
		return Row{Key: k}, nil
	}
	return s.row(k, stored)
}

func (s *state) row(k Key, stored []byte) (Row, error) {
	row, err := openStored(s.cipher, k, stored)
	if err == nil && row.Version > s.head.Seq {
		return Row{}, &Damage{k, "it is of a commit that the chain does not have"}
	}
	return row, err
}

// view is one holder of a state.
type view struct {
	*state
	closed atomic.Bool
}

func (v *view) Position() uint64       { return v.head.Seq }
func (v *view) Changed(t Table) uint64 { return v.changed[t] }

func (v *view) Close() {
	if v.closed.CompareAndSwap(false, true) {
		v.release()
	}
}

func (v *view) Get(k Key) (Row, error) {
	if v.closed.Load() {
		return Row{}, ErrClosed
	}
	return v.get(k)
}

func (v *view) Scan(t Table, from, to string) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		if v.closed.Load() {
			yield(Row{}, ErrClosed)
			return
		}
		for e, err := range v.snap.Scan(Range{t, from, to}, false) {
			var row Row
			if err == nil {
				row, err = v.row(e.Key, append([]byte(nil), e.Bytes...))
			}
			if !yield(row, err) || err != nil {
				return
			}
		}
	}
}
