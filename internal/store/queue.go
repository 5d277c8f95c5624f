package store

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// pending is a transaction on its way through the committer.
type pending struct {
	txn     Txn
	records []entry
	size    int     // bytes, roughly
	drops   []Range // what Prune drops
	pruned  uint64  // and up to which commit
	void    bool    // the whole tables of the tokens' sum are deleted first
	state   atomic.Uint32
	answer  chan answer
}

type answer struct {
	Receipt
	err error
}

// The states of a pending transaction.
const (
	queued uint32 = iota
	taken         // the committer has it: its outcome will come
	gone          // its caller gave up while it was queued
)

// queue holds what waits for the committer.
type queue struct {
	mu     sync.Mutex
	wake   sync.Cond
	items  []*pending
	closed bool
}

func (q *queue) init() { q.wake.L = &q.mu }

// add appends p; false if the queue is closed.
func (q *queue) add(p *pending) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.items = append(q.items, p)
	if len(q.items) == 1 {
		q.wake.Signal()
	}
	return true
}

// gather lets those run who were just answered, as long as the queue grows by what they ask for next: they would else miss
// this batch, and batches would be half as large as they can be. Where nobody else is ready to run it takes no time.
func (q *queue) gather() {
	for before, n := -1, q.len(); n > before; before, n = n, q.len() {
		runtime.Gosched()
	}
}

// take appends to batch what is queued, within bounds; it waits until there is something. Nothing is returned once the
// queue is closed and empty.
func (q *queue) take(batch []*pending, count, bytes int) []*pending {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(batch) == 0 {
		for len(q.items) == 0 {
			if q.closed {
				return nil
			}
			q.wake.Wait()
		}
		batch = q.move(batch, count, bytes)
	}
	return batch
}

// more appends to batch what is queued now, within bounds for all of it.
func (q *queue) more(batch []*pending, count, bytes int) []*pending {
	for _, p := range batch {
		bytes -= p.size
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.move(batch, count, bytes)
}

// move takes out of the queue, whose lock is held, what fits.
func (q *queue) move(batch []*pending, count, bytes int) []*pending {
	n := 0
	for _, p := range q.items {
		if len(batch) == count || len(batch) > 0 && p.size > bytes {
			break
		}
		n++
		if p.state.CompareAndSwap(queued, taken) {
			batch, bytes = append(batch, p), bytes-p.size
		}
	}
	rest := copy(q.items, q.items[n:])
	clear(q.items[rest:])
	q.items = q.items[:rest]
	return batch
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake.Broadcast()
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}
