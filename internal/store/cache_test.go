package store

import (
	"errors"
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

// TestRowCacheVersions holds what the cache says of versions to what was committed.
func TestRowCacheVersions(t *testing.T) {
	k := Key{Tokens, "a"}
	set, gone := audit.Touch{Table: uint8(Tokens), Name: "a"}, audit.Touch{Table: uint8(Tokens), Name: "a", Deleted: true}
	many := func(seq uint64) *audit.Header {
		h := cachedHeader(seq)
		for i := range uint64(2 * cacheShards * cacheTouches) {
			h.Touched = append(h.Touched, audit.Touch{Table: uint8(Secrets), Name: Uint64Key(i)})
		}
		return h
	}
	for _, c := range []struct {
		name     string
		do       func(c *rowCache)
		position uint64
		version  uint64
		known    bool
	}{
		{"nothing is known of what nobody touched", func(c *rowCache) {}, 5, 0, false},
		{"a row that was read", func(c *rowCache) { c.put(Row{Key: k, Version: 3}, 5) }, 5, 3, true},
		{"a row that was written", func(c *rowCache) { c.drop(cachedHeader(6, set)) }, 6, 6, true},
		{"as of before it was written", func(c *rowCache) { c.drop(cachedHeader(6, set)) }, 5, 0, false},
		{"a row that was deleted", func(c *rowCache) { c.drop(cachedHeader(6, gone)) }, 6, 0, true},
		{"an old commit is heard of late", func(c *rowCache) { c.drop(cachedHeader(7, set)); c.drop(cachedHeader(6, gone)) }, 7, 7, true},
		{"a range may have held it", func(c *rowCache) {
			c.drop(cachedHeader(6, set))
			c.drop(cachedHeader(7, audit.Touch{Table: uint8(Tokens), Range: true}))
		}, 7, 0, false},
		{"too much was written since", func(c *rowCache) { c.drop(cachedHeader(6, set)); c.drop(many(7)) }, 7, 0, false},
		{"an old commit is heard of after too much was written", func(c *rowCache) { c.drop(many(7)); c.drop(cachedHeader(6, set)) }, 7, 0, false},
		{"it was read before too much was written", func(c *rowCache) { c.drop(many(7)); c.put(Row{Key: k, Version: 3}, 6) }, 7, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cache := newRowCache()
			c.do(cache)
			if version, known := cache.version(k, c.position); known != c.known || known && version != c.version {
				t.Errorf("version %d, known: %v", version, known)
			}
		})
	}
}

// TestRecentHeaders has states remember headers, each from the one before.
func TestRecentHeaders(t *testing.T) {
	s := new(state)
	for seq := uint64(1); seq <= 5*recentHeaders; seq++ {
		next := &state{head: audit.Header{Seq: seq}, hash: audit.Hash{byte(seq), byte(seq >> 8)}}
		next.inherit(s)
		next.remember(next.head, next.hash)
		if n := len(next.recent); seq >= recentHeaders && n < recentHeaders || n > 2*recentHeaders {
			t.Fatalf("after %d commits, %d are remembered", seq, n)
		}
		for from := next.recent[0].Seq; from <= seq; from++ {
			for _, n := range []int{1, 3, watchChunk} {
				hs, err := next.headers(from, n)
				if err != nil || len(hs) != min(n, int(seq-from+1)) || hs[0].Seq != from || hs[len(hs)-1].Seq != from+uint64(len(hs))-1 {
					t.Fatalf("%d headers from %d of %d: %v, %v", n, from, seq, hs, err)
				}
			}
		}
		s = next
	}
}

// TestContinues asks states, with headers of many rows among them, whether they continue earlier ones, of their own history and of another.
func TestContinues(t *testing.T) {
	const commits, fork = 5 * recentHeaders, 3 * recentHeaders
	var histories [2][]*state
	for which := range histories {
		s := new(state)
		histories[which] = []*state{s}
		for seq := uint64(1); seq <= commits; seq++ {
			next := &state{head: audit.Header{Seq: seq}, hash: audit.Hash{byte(seq), byte(seq >> 8)}}
			if which == 1 && seq >= fork {
				next.hash[31] = 1
			}
			if seq%7 == 0 {
				next.head.Touched = make([]audit.Touch, recentTouches+1)
			}
			next.inherit(s)
			next.remember(next.head, next.hash)
			s = next
			histories[which] = append(histories[which], s)
		}
	}
	for _, s := range histories[0] {
		for which, other := range histories {
			for _, earlier := range other[:s.head.Seq+1] {
				err := s.continues(earlier)
				same := which == 0 || earlier.head.Seq < fork
				switch after := s.head.Seq - earlier.head.Seq; {
				case err == nil && same, err != nil && !same:
				case errors.Is(err, errLate) && after >= recentHeaders-1:
				default:
					t.Fatalf("commit %d continues commit %d of history %d: %v", s.head.Seq, earlier.head.Seq, which, err)
				}
			}
		}
	}
	far := histories[0][commits]
	far.from = histories[0][1].point() // followed from there at once
	if err := far.continues(histories[0][1]); err != nil {
		t.Error(err)
	}
	if err := far.continues(histories[0][2]); !errors.Is(err, errLate) {
		t.Errorf("it cannot know: %v", err)
	}
}
