package core

import (
	"sync"

	"github.com/lessor-dev/lessor/internal/exporter"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// cache remembers what was derived from one table, for as long as no commit touches it. The zero cache is ready.
type cache[T any] struct {
	mu   sync.RWMutex
	at   uint64 // Changed(table) that the values are true for
	vals map[string]T
}

// cached is the number of values a cache holds before it starts anew.
const cached = 100_000

// get returns the value of key as of v, deriving it if need be. What an older View derives is not kept.
func (c *cache[T]) get(v store.View, t store.Table, key string, derive func() (T, error)) (T, error) {
	at := v.Changed(t)
	c.mu.RLock()
	val, ok := c.vals[key]
	ok = ok && c.at == at
	c.mu.RUnlock()
	if ok {
		return val, nil
	}
	val, err := derive()
	if err != nil {
		return val, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.vals == nil || c.at < at || len(c.vals) >= cached {
		c.at, c.vals = at, map[string]T{}
	}
	if c.at == at {
		c.vals[key] = val
	}
	return val, nil
}

// mounted is the mount table as of a change of store.Mounts.
type mounted struct {
	at uint64
	*mount.Table
}

// table is the mount table as of v.
func (c *Core) table(v store.View) (*mount.Table, error) {
	at := v.Changed(store.Mounts)
	if m := c.mounts.Load(); m != nil && m.at == at {
		return m.Table, nil
	}
	t, err := mount.Load(v)
	if err != nil {
		return nil, err
	}
	if m := c.mounts.Load(); m == nil || m.at < at {
		c.mounts.Store(&mounted{at, t})
	}
	return t, nil
}

// headersOf says which request headers audit records keep as of v.
func (c *Core) headersOf(v store.View) (exporter.Headers, error) {
	return c.headers.get(v, store.Config, "", func() (exporter.Headers, error) { return exporter.LoadHeaders(v) })
}

// Headers names the request headers that audit records keep, in lower case.
func (c *Core) Headers() []string {
	v, err := c.Store.View()
	if err != nil {
		return nil
	}
	defer v.Close()
	kept, err := c.headersOf(v)
	if err != nil {
		c.Log.Error("reading which request headers are audited failed", "error", err)
	}
	return kept.Names
}
