package store

import (
	"context"
	"errors"
	"iter"
	"sync"
)

// attempts is how often Update tries before it returns the Conflict.
const attempts = 16

// Update runs fn on the latest state and commits the transaction that fn fills, on condition that each row that fn read is
// still as it was: rows got, found or missing, and rows scanned. What a scan did not find is not covered: where a phantom row matters, fn
// gets or checks a row that every writer of that range writes. On a Conflict it starts again with a new View and an
// empty Txn, sixteen times at most. An error of fn is returned as it is, and nothing is written. If fn asks for nothing
// (no changes, no audit records), nothing is committed and the Receipt names the View's position.
func (db *DB) Update(ctx context.Context, fn func(View, *Txn) error) (Receipt, error) {
	return db.update(ctx, false, fn)
}

func (db *DB) update(ctx context.Context, void bool, fn func(View, *Txn) error) (Receipt, error) {
	for try := 1; ; try++ {
		p := &pending{void: void}
		at, err := db.attempt(fn, &p.txn)
		if err != nil {
			return Receipt{}, err
		}
		if p.txn.empty() && !p.void {
			return at, nil
		}
		r, err := db.commit(ctx, p)
		var conflict *Conflict
		if try == attempts || !errors.As(err, &conflict) {
			return r, err
		}
	}
}

func (t *Txn) empty() bool {
	return len(t.Puts) == 0 && len(t.Deletes) == 0 && len(t.Ranges) == 0 && len(t.Audit) == 0
}

// attempt runs fn once and adds what it read to the checks.
func (db *DB) attempt(fn func(View, *Txn) error, t *Txn) (Receipt, error) {
	s, err := db.latest()
	if err != nil {
		return Receipt{}, err
	}
	r := &recorder{view: view{state: s}, seen: make(map[Key]uint64)}
	defer r.Close()
	if err := fn(r, t); err != nil {
		return Receipt{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, version := range r.seen {
		t.Checks = append(t.Checks, Check{Key: k, Version: version})
	}
	return Receipt{s.head.Seq, s.head.Time}, nil
}

// recorder is a View that remembers what was read.
type recorder struct {
	view
	mu   sync.Mutex
	seen map[Key]uint64
}

func (r *recorder) saw(k Key, version uint64) {
	r.mu.Lock()
	r.seen[k] = version
	r.mu.Unlock()
}

func (r *recorder) Get(k Key) (Row, error) {
	row, err := r.view.Get(k)
	if err == nil {
		r.saw(k, row.Version)
	}
	return row, err
}

func (r *recorder) Scan(t Table, from, to string) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for row, err := range r.view.Scan(t, from, to) {
			if err == nil {
				r.saw(row.Key, row.Version)
			}
			if !yield(row, err) {
				return
			}
		}
	}
}
