// Package storetest is the conformance suite that every store.Backend passes, with the DB on top of it: what a backend does
// wrong shows as a broken promise of the store. It also has what tests of the store need: a real cipher, a clock that
// is set by hand, and a backend that fails by chance.
package storetest

import (
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// Run runs the suite. fresh makes a new, empty store for one test and returns how to open it: again after a Close; and
// where the Backend is store.Shared, several times at once, as nodes of one cluster.
func Run(t *testing.T, fresh func(t *testing.T) (open func() store.Backend)) {
	for _, c := range backendTests {
		t.Run("backend/"+c.name, func(t *testing.T) { c.test(t, fresh(t)) })
	}
	for _, c := range dbTests {
		t.Run(c.name, func(t *testing.T) {
			c.test(t, &setup{open: fresh(t), fresh: fresh, cipher: NewCipher("suite"), clock: NewClock()})
		})
	}
	t.Run("cluster", func(t *testing.T) {
		open := fresh(t)
		b := open()
		_, shared := b.(store.Shared)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if !shared {
			t.Skip("the backend is not shared by nodes")
		}
		t.Run("one chain", func(t *testing.T) { testCluster(t, open) })
		t.Run("peers", func(t *testing.T) { testPeers(t, fresh(t)) })
		t.Run("move in use", func(t *testing.T) {
			testMoveInUse(t, &setup{open: fresh(t), fresh: fresh, cipher: NewCipher("suite"), clock: NewClock()})
		})
		t.Run("settled", func(t *testing.T) { testSettled(t, fresh(t)) })
		t.Run("interleaved", func(t *testing.T) { testInterleaved(t, fresh(t)) })
		t.Run("joins", func(t *testing.T) { testJoins(t, fresh(t)) })
		t.Run("fresh", func(t *testing.T) { testFresh(t, fresh(t)) })
	})
}

// Clock is a lessor.Clock that stands still until it is set. It is safe for concurrent use.
type Clock struct {
	mu      sync.Mutex
	now     time.Time
	elapsed time.Duration
}

// NewClock starts at noon of 2026-01-01, UTC.
func NewClock() *Clock { return &Clock{now: time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)} }

// Now implements lessor.Clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Elapsed implements store.Monotonic.
func (c *Clock) Elapsed() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.elapsed
}

// Advance lets time pass.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, c.elapsed = c.now.Add(d), c.elapsed+d
}

// Jump sets the wall clock ahead, or back, while no time passes.
func (c *Clock) Jump(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
