package store

import (
	"context"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Commit is a commit as those see it who follow the chain: its header, the header's hash, and the audit records, none if they
// were pruned.
type Commit struct {
	audit.Header
	Hash    audit.Hash
	Records []audit.At
}

// Gone reports whether the commit had records that are gone.
func (c *Commit) Gone() bool { return c.Count > 0 && len(c.Records) == 0 }

// Commits returns the commits from sequence from on, in order and without a gap, as far as they are durable: until they have some n
// records together, or are n. Callers must not change what they refer to.
func (db *DB) Commits(from uint64, n int) ([]Commit, error) {
	s, err := db.latest()
	if err != nil {
		return nil, err
	}
	defer s.release()
	if s.cipher == nil {
		return nil, ErrSealed
	}
	seq, records := max(from, 1), 0
	var all []Commit
	if seq == s.head.Seq {
		all = append(all, Commit{Header: s.head, Hash: s.hash})
	} else if seq < s.head.Seq {
		for e, err := range s.snap.Scan(Range{Table: Head, From: Uint64Key(seq)}, false) {
			if err != nil {
				return nil, err
			}
			h, hash, err := decodeHead(e)
			if err != nil {
				return nil, err
			}
			if h.Seq != seq {
				return nil, &Damage{headKey(seq), "it is missing"}
			}
			all, records = append(all, Commit{Header: h, Hash: hash}), records+int(h.Count)
			if seq++; len(all) >= n || records >= n {
				break
			}
		}
	}
	return all, s.fill(all)
}

// fill reads the records of commits that follow each other: those of one day lie side by side.
func (s *state) fill(all []Commit) error {
	for len(all) > 0 {
		today, n := day(all[0].Time), 1
		for n < len(all) && day(all[n].Time) == today {
			n++
		}
		if err := s.fillDay(dayKey(today), all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

func (s *state) fillDay(day string, all []Commit) error {
	first := all[0].Seq
	from, to := day+Uint64Key(first), day+Uint64Key(all[len(all)-1].Seq+1)
	for e, err := range s.snap.Scan(Range{Records, from, to}, false) {
		if err != nil {
			return err
		}
		row, err := s.row(e.Key, e.Bytes)
		if err != nil {
			return err
		}
		at, err := decodeAt(row)
		if err != nil {
			return err
		}
		c := &all[at.Seq-first]
		if c.Records == nil {
			c.Records = make([]audit.At, 0, c.Count)
		}
		c.Records = append(c.Records, at)
	}
	for i := range all {
		if c := &all[i]; len(c.Records) != int(c.Count) && len(c.Records) > 0 {
			return &Damage{Key{Records, day + Uint64Key(c.Seq)}, "records of this commit are missing"}
		}
	}
	return nil
}

// Await returns when commit seq is durable: nil, or ctx's error, ErrClosed or the Fault.
func (db *DB) Await(ctx context.Context, seq uint64) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := db.latest()
		if err != nil {
			return err
		}
		reached, next := s.head.Seq >= seq, s.next
		s.release()
		if reached {
			return nil
		}
		select {
		case <-next:
		case <-db.halted:
		case <-ctx.Done():
		}
	}
}

// Header is that of one commit, and its hash; an error if there is no such commit.
func (db *DB) Header(seq uint64) (audit.Header, audit.Hash, error) {
	s, err := db.latest()
	if err != nil {
		return audit.Header{}, audit.Hash{}, err
	}
	defer s.release()
	if seq == s.head.Seq {
		return s.head, s.hash, nil
	}
	stored, err := s.snap.Get(headKey(seq))
	if err != nil {
		return audit.Header{}, audit.Hash{}, err
	}
	return decodeHead(Stored{headKey(seq), stored})
}

// Since is the first commit that was not made before t; it may be still to come.
func (db *DB) Since(t time.Time) (uint64, error) {
	s, err := db.latest()
	if err != nil {
		return 0, err
	}
	defer s.release()
	return s.first(func(h *audit.Header) bool { return !h.Time.Before(t) })
}

// first is the first commit of which f is true, as it is of all that come after; it may be still to come.
func (s *state) first(f func(*audit.Header) bool) (uint64, error) {
	lo, hi := uint64(1), s.head.Seq+1 // the first is in lo..hi
	for lo < hi {
		mid := lo + (hi-lo)/2
		h, err := s.header(mid)
		if err != nil {
			return 0, err
		}
		if f(&h) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo, nil
}
