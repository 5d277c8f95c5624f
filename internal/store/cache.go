package store

import (
	"hash/maphash"
	"sync"

	"github.com/lessor-dev/lessor/internal/audit"
)

// rowCache remembers rows that were read lately, opened and verified, and that there was none: what requests read again and again
// (tokens, roles, entities, secrets in demand) is then neither sought nor opened again.
//
// A row is in it from when a View read it until a commit touches it. That commit takes it out before any View shows the
// commit, and nobody whose View is older puts it in again: so what is found here is what a View of that position or a
// later one would read, and the latest state's when no write but the finder's is under way.
type rowCache struct {
	seed   maphash.Seed
	shards [cacheShards]cacheShard
}

const (
	cacheShards = 16
	cacheRows   = 1024 // in a shard, at most
	cacheBytes  = 4096 // of a row that is kept, at most
)

type cacheShard struct {
	mu      sync.RWMutex
	rows    map[Key]cachedRow
	touched uint64 // sequence of the last commit that took something out, or might have
}

type cachedRow struct {
	Row
	at uint64 // position of the View that read it
}

func newRowCache() *rowCache { return &rowCache{seed: maphash.MakeSeed()} }

func (c *rowCache) shard(k Key) *cacheShard {
	return &c.shards[(maphash.String(c.seed, k.Name)+uint64(k.Table))%cacheShards]
}

// get returns the row as a View at a position reads it, if it is known.
func (c *rowCache) get(k Key, position uint64) (Row, bool) {
	s := c.shard(k)
	s.mu.RLock()
	e, ok := s.rows[k]
	s.mu.RUnlock()
	return e.Row, ok && e.at <= position
}

// put keeps a row that a View at a position read.
func (c *rowCache) put(row Row, position uint64) {
	if classes[row.Table].own || len(row.Value)+len(row.sealed)+len(row.Name) > cacheBytes {
		return
	}
	s := c.shard(row.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if position < s.touched {
		return // it may have changed since
	}
	if s.rows == nil {
		s.rows = make(map[Key]cachedRow)
	}
	if len(s.rows) >= cacheRows {
		for k := range s.rows { // any
			delete(s.rows, k)
			break
		}
	}
	s.rows[row.Key] = cachedRow{row, position}
}

// drop takes out what a commit touches. It comes before any View shows the commit.
func (c *rowCache) drop(h *audit.Header) {
	for i := range h.Touched {
		t := &h.Touched[i]
		if t.Range {
			c.dropAll(h.Seq)
			return
		}
		k := Key{Table(t.Table), t.Name}
		s := c.shard(k)
		s.mu.Lock()
		delete(s.rows, k)
		s.touched = max(s.touched, h.Seq)
		s.mu.Unlock()
	}
}

func (c *rowCache) dropAll(seq uint64) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		clear(s.rows)
		s.touched = max(s.touched, seq)
		s.mu.Unlock()
	}
}
