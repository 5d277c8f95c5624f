package store

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Image is one durable state of the store as the backend keeps it, sealed, to be copied elsewhere. The store goes on meanwhile. It
// must be closed: it holds back what the backend may reclaim.
type Image struct {
	Head audit.Header // the state's last commit; zero for an empty store
	Hash audit.Hash   // of Head
	*view
}

// Image is the latest durable state. It fails with ErrSealed while the store is sealed.
func (db *DB) Image() (*Image, error) {
	s, err := db.latest()
	if err != nil {
		return nil, err
	}
	if s.cipher == nil {
		s.release()
		return nil, ErrSealed
	}
	return &Image{s.head, s.hash, &view{state: s}}, nil
}

// All yields all rows, in order of tables and names, until ctx ends or an error. Bytes are valid until the next step.
func (i *Image) All(ctx context.Context) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		for t := Table(1); t < tables; t++ {
			for e, err := range i.snap.Scan(Range{Table: t}, false) {
				if err == nil {
					err = ctx.Err()
				}
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// After yields what makes the state of the commit seq, which must be one of this chain, the state of the Image: for each commit
// after it its header, as the row of Head, then those of the rows it wrote that no later commit touched, its audit records, unless they were
// pruned since, and their index entries. What commits deleted is told by their headers. It ends as All does.
//
// It takes the memory of one commit.
func (i *Image) After(ctx context.Context, seq uint64) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		for e, err := range i.snap.Scan(Range{Table: Head, From: Uint64Key(seq + 1)}, false) {
			if err == nil {
				err = ctx.Err()
			}
			seq++
			if err == nil {
				e.Bytes = append([]byte(nil), e.Bytes...)
				err = i.commitOf(e, seq, yield)
			}
			if err == errStop {
				return
			}
			if err != nil {
				yield(Stored{}, err)
				return
			}
		}
	}
}

// errStop ends a walk whose consumer has enough.
var errStop = errors.New("stop")

// commitOf yields one commit.
func (i *Image) commitOf(e Stored, seq uint64, yield func(Stored, error) bool) error {
	h, _, err := decodeHead(e)
	if err != nil {
		return err
	}
	if h.Seq != seq {
		return &Damage{headKey(seq), "it is missing"}
	}
	if !yield(e, nil) {
		return errStop
	}
	for _, t := range h.Touched {
		if t.Range || t.Deleted {
			continue
		}
		k := Key{Table(t.Table), t.Name}
		stored, err := i.snap.Get(k)
		if err != nil {
			return err
		}
		if version := storedVersion(stored); version > i.head.Seq || stored != nil && version < seq {
			return &Damage{k, fmt.Sprintf("commit %d wrote it, but what is there is of commit %d", seq, version)}
		} else if version == seq && !yield(Stored{k, stored}, nil) {
			return errStop
		}
	}
	return i.recordsOf(&h, yield)
}

// recordsOf yields the records of one commit, and their index entries.
func (i *Image) recordsOf(h *audit.Header, yield func(Stored, error) bool) error {
	if h.Count == 0 {
		return nil
	}
	day := dayKey(day(h.Time))
	n := uint32(0)
	for e, err := range i.snap.Scan(Range{Records, day + Uint64Key(h.Seq), day + Uint64Key(h.Seq+1)}, false) {
		if err != nil {
			return err
		}
		e.Bytes = append([]byte(nil), e.Bytes...)
		row, err := i.row(e.Key, e.Bytes)
		if err != nil {
			return err
		}
		at, err := decodeAt(row)
		if err != nil {
			return err
		}
		if !yield(e, nil) {
			return errStop
		}
		for _, k := range indexEntries(i.cipher, e.Key.Name, &at.Record) {
			if !yield(Stored{k, e.Bytes[:versionLen]}, nil) {
				return errStop
			}
		}
		n++
	}
	if n != 0 && n != h.Count {
		return &Damage{Key{Records, day + Uint64Key(h.Seq)}, "records of this commit are missing"}
	}
	return nil
}
