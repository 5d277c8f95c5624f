package store

import (
	"hash/maphash"
	"sync"

	"github.com/lessor-dev/lessor/internal/audit"
)

// rowCache remembers rows that were read lately, opened and verified, and that there was none: what requests read again and again
// (tokens, roles, entities, secrets in demand) is then neither sought nor opened again. Of rows that were written lately it
// remembers the version. It knows nothing but what was published.
//
// A row is in it from when a View read it until a commit touches it. That commit takes it out before any View shows the
// commit, and nobody whose View is older puts it in again: so what is found here is what a View of that position or a
// later one would read, and the latest state's when no write but the finder's is under way. Who made the commit puts in what it wrote
// instead, if the row was in demand.
type rowCache struct {
	seed   maphash.Seed
	shards [cacheShards]cacheShard
}

const (
	cacheShards  = 16
	cacheRows    = 1024 // in a shard, at most
	cacheBytes   = 4096 // of a row that is kept, at most
	cacheTouches = 512  // in a shard, at most
)

type cacheShard struct {
	mu      sync.RWMutex
	rows    map[Key]cachedRow
	touched map[Key]touch // by commits after since
	since   uint64        // what was touched up to here is forgotten
	last    uint64        // the last commit that touched something here, or might have
}

type cachedRow struct {
	Row
	at uint64 // position of the View that read it
}

// touch is what the last commit that touched a row did to it.
type touch struct {
	seq  uint64
	gone bool
}

func (t touch) version() uint64 {
	if t.gone {
		return 0
	}
	return t.seq
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

// version returns the version of the row as a View at a position reads it, if it is known.
func (c *rowCache) version(k Key, position uint64) (uint64, bool) {
	s := c.shard(k)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e, ok := s.rows[k]; ok && e.at <= position {
		return e.Version, true
	}
	t, ok := s.touched[k]
	return t.version(), ok && t.seq <= position
}

// demanded reports whether the row is there for some View.
func (c *rowCache) demanded(k Key) bool {
	s := c.shard(k)
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.rows[k]
	return ok
}

// put keeps a row that a View at a position read.
func (c *rowCache) put(row Row, position uint64) {
	if classes[row.Table].own || len(row.Value)+len(row.sealed)+len(row.Name) > cacheBytes {
		return
	}
	s := c.shard(row.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if position < s.since || position < s.touched[row.Key].seq {
		return // it may have changed since
	}
	if s.rows == nil {
		s.rows = make(map[Key]cachedRow)
	}
	if _, ok := s.rows[row.Key]; !ok && len(s.rows) >= cacheRows {
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
		s.touch(k, touch{h.Seq, t.Deleted})
		s.mu.Unlock()
	}
}

// touch takes down what a commit did. Commits come in any order, and more than once.
func (s *cacheShard) touch(k Key, t touch) {
	s.last = max(s.last, t.seq)
	if len(s.touched) >= cacheTouches {
		clear(s.touched)
		s.since = s.last
	}
	if t.seq <= s.since || t.seq <= s.touched[k].seq {
		return
	}
	if s.touched == nil {
		s.touched = make(map[Key]touch)
	}
	s.touched[k] = t
}

func (c *rowCache) dropAll(seq uint64) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		clear(s.rows)
		clear(s.touched)
		s.last = max(s.last, seq)
		s.since = s.last
		s.mu.Unlock()
	}
}
