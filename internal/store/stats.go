package store

import (
	"sync/atomic"
	"time"
)

// FlushBounds are the upper bounds of the buckets of Stats.Flushes; the last bucket has none.
var FlushBounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond,
	5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	250 * time.Millisecond, time.Second,
}

// BatchBounds are the upper bounds of the buckets of Stats.Batches, in transactions; the last bucket has none.
var BatchBounds = [...]int{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}

// Stats counts what the store did since it was opened. Buckets are not cumulative.
type Stats struct {
	Commits      uint64                       // flushes that succeeded
	Transactions uint64                       // committed
	Records      uint64                       // audit records committed
	Conflicts    uint64                       // transactions rejected since a check failed
	Flushes      [len(FlushBounds) + 1]uint64 // flushes by duration
	FlushTime    time.Duration                // sum of the durations
	Batches      [len(BatchBounds) + 1]uint64 // flushes by transactions committed
	AnchorErrors uint64                       // attempts to write the anchor that failed
	Queued       int                          // transactions waiting now
}

type counters struct {
	commits, transactions, records, conflicts, flushTime, anchorErrors atomic.Uint64

	flushes [len(FlushBounds) + 1]atomic.Uint64
	batches [len(BatchBounds) + 1]atomic.Uint64
}

func (c *counters) flushed(admitted, records int, took time.Duration) {
	c.commits.Add(1)
	c.transactions.Add(uint64(admitted))
	c.records.Add(uint64(records))
	c.flushTime.Add(uint64(took))
	i := 0
	for i < len(FlushBounds) && took > FlushBounds[i] {
		i++
	}
	c.flushes[i].Add(1)
	for i = 0; i < len(BatchBounds) && admitted > BatchBounds[i]; {
		i++
	}
	c.batches[i].Add(1)
}

// Stats returns the counters.
func (db *DB) Stats() Stats {
	c := &db.stats
	s := Stats{
		Commits: c.commits.Load(), Transactions: c.transactions.Load(), Records: c.records.Load(), Conflicts: c.conflicts.Load(),
		FlushTime: time.Duration(c.flushTime.Load()), AnchorErrors: c.anchorErrors.Load(), Queued: db.queue.len(),
	}
	for i := range s.Flushes {
		s.Flushes[i] = c.flushes[i].Load()
	}
	for i := range s.Batches {
		s.Batches[i] = c.batches[i].Load()
	}
	return s
}

// Usage is the space in bytes: used by the store, and free where it lives (-1: unbounded).
func (db *DB) Usage() (used, free int64) { return db.b.Usage() }

// spaceEvery is how often the free space is looked at.
const spaceEvery = 200 * time.Millisecond

// full tells whether the space has come down to the reserve.
func (db *DB) full() bool {
	if db.o.Reserve <= 0 {
		return false
	}
	now, looked := time.Now().UnixNano(), db.looked.Load()
	if now-looked < int64(spaceEvery) || !db.looked.CompareAndSwap(looked, now) {
		return db.low.Load()
	}
	_, free := db.b.Usage()
	low := free >= 0 && free < db.o.Reserve
	if low != db.low.Swap(low) {
		if low {
			db.log.Error("the disk is almost full: only revocations are accepted until there is room", "free", free, "reserve", db.o.Reserve)
		} else {
			db.log.Warn("there is room on the disk again: everything is accepted", "free", free, "reserve", db.o.Reserve)
		}
	}
	return low
}
