package store

import (
	"testing"

	"github.com/lessor-dev/lessor/internal/audit"
)

func cachedHeader(seq uint64, touched ...audit.Touch) *audit.Header {
	return &audit.Header{Seq: seq, Touched: touched}
}

// TestRowCache holds the cache to what Views of each position would read.
func TestRowCache(t *testing.T) {
	k, other := Key{Tokens, "a"}, Key{Tokens, "b"}
	touch := audit.Touch{Table: uint8(Tokens), Name: "a"}
	row := Row{Key: k, Version: 3, Value: []byte("v")}
	for _, c := range []struct {
		name     string
		do       func(c *rowCache)
		position uint64
		found    bool
	}{
		{"nothing is known of what nobody read", func(c *rowCache) {}, 5, false},
		{"a View of the same position", func(c *rowCache) { c.put(row, 5) }, 5, true},
		{"a later View", func(c *rowCache) { c.put(row, 5) }, 9, true},
		{"an earlier View may have seen another row", func(c *rowCache) { c.put(row, 5) }, 4, false},
		{"a commit touched it", func(c *rowCache) { c.put(row, 5); c.drop(cachedHeader(6, touch)) }, 6, false},
		{"an old View comes late", func(c *rowCache) { c.drop(cachedHeader(6, touch)); c.put(row, 5) }, 6, false},
		{"read again after the commit", func(c *rowCache) { c.drop(cachedHeader(6, touch)); c.put(row, 6) }, 6, true},
		{"a range may have held it", func(c *rowCache) {
			c.put(row, 5)
			c.drop(cachedHeader(6, audit.Touch{Table: uint8(Secrets), Range: true}))
		}, 6, false},
		{"the records are read once", func(c *rowCache) { c.put(Row{Key: Key{Records, "a"}, Version: 3}, 5) }, 5, false},
		{"too large", func(c *rowCache) { c.put(Row{Key: k, Version: 3, Value: make([]byte, cacheBytes)}, 5) }, 5, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cache := newRowCache()
			cache.put(Row{Key: other}, 1)
			c.do(cache)
			got, found := cache.get(k, c.position)
			if found != c.found || found && (got.Version != 3 || string(got.Value) != "v") {
				t.Errorf("found %v: %+v", found, got)
			}
		})
	}
}

// TestRowCacheBound fills the cache with more than it holds.
func TestRowCacheBound(t *testing.T) {
	c := newRowCache()
	for i := range uint64(10 * cacheShards * cacheRows) {
		c.put(Row{Key: Key{Tokens, Uint64Key(i)}}, 1)
	}
	for i := range c.shards {
		if n := len(c.shards[i].rows); n > cacheRows {
			t.Errorf("shard %d holds %d rows", i, n)
		}
	}
}
