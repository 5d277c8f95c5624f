package store

import (
	"context"
	"iter"

	"github.com/lessor-dev/lessor/internal/audit"
)

// watchChunk is how many headers a watcher reads from one View.
const watchChunk = 256

// Watch yields the header of each commit from sequence from on (0 and 1: from the first), in order and without a gap, and
// waits for more until ctx ends. It ends with an error: ctx's, ErrClosed or the Fault. Callers must not change what headers refer to.
func (db *DB) Watch(ctx context.Context, from uint64) iter.Seq2[audit.Header, error] {
	return func(yield func(audit.Header, error) bool) {
		seq := max(from, 1)
		for {
			if err := ctx.Err(); err != nil {
				yield(audit.Header{}, err)
				return
			}
			s, err := db.latest()
			if err != nil {
				yield(audit.Header{}, err)
				return
			}
			headers, err := s.headers(seq, watchChunk)
			next := s.next
			s.release()
			for _, h := range headers {
				if !yield(h, nil) {
					return
				}
				seq++
			}
			if err != nil {
				yield(audit.Header{}, err)
				return
			}
			if len(headers) == watchChunk {
				continue
			}
			select {
			case <-next:
			case <-db.halted:
			case <-ctx.Done():
			}
		}
	}
}

// headers reads up to n headers from seq on. An error comes after those that could be read.
func (s *state) headers(seq uint64, n int) (hs []audit.Header, err error) {
	if seq > s.head.Seq {
		return nil, nil
	}
	if seq == s.head.Seq {
		return []audit.Header{s.head}, nil
	}
	if k := len(s.recent); k > 0 && seq >= s.recent[0].Seq {
		for _, h := range s.recent[seq-s.recent[0].Seq : k][:min(n, int(s.head.Seq-seq+1))] {
			hs = append(hs, *h)
		}
		return hs, nil
	}
	for e, err := range s.snap.Scan(Range{Table: Head, From: Uint64Key(seq)}, false) {
		if err != nil {
			return hs, err
		}
		h, _, err := decodeHead(e)
		if err != nil {
			return hs, err
		}
		if h.Seq != seq {
			return hs, &Damage{headKey(seq), "it is missing"}
		}
		hs = append(hs, h)
		if seq++; len(hs) == n {
			break
		}
	}
	return hs, nil
}

// tailChunk is how many records Tail reads from one View, or a few more.
const tailChunk = 256

// Tail yields the audit records of all commits from sequence from on, in order, and waits for more until ctx ends; what was
// pruned is passed over. It ends as Watch does.
func (db *DB) Tail(ctx context.Context, from uint64) iter.Seq2[audit.At, error] {
	return func(yield func(audit.At, error) bool) {
		seq := max(from, 1)
		for {
			err := db.Await(ctx, seq)
			var commits []Commit
			if err == nil {
				commits, err = db.Commits(seq, tailChunk)
			}
			if err != nil {
				yield(audit.At{}, err)
				return
			}
			for i := range commits {
				for _, r := range commits[i].Records {
					if !yield(r, nil) {
						return
					}
				}
				seq = commits[i].Seq + 1
			}
		}
	}
}
