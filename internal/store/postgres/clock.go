package postgres

import (
	"context"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// clock tells the database's time, which is the same for all nodes whatever their own clocks say: as it was at the last reading, and
// what the machine's monotonic clock has counted since. It does not step back: after a failover to a server whose clock
// is behind, it goes at half the pace until that one has caught up. One that is ahead is followed at once; store.DB raises
// its alarm, and does not follow, if that is by minutes, and such a leap is undone at once as well. While the database is away the clock goes on by
// the monotonic one alone.
//
// A reading is off by half its round trip at most. A slow one counts only if it beats what the last one is good for by now.
type clock struct {
	elapsed func() time.Duration // since some fixed moment, by a clock that nobody sets

	mu    sync.Mutex
	told  time.Time     // at the last reading that counted
	at    time.Duration // elapsed then
	ahead time.Duration // by how much told was ahead of the reading
	leapt time.Duration // by how much it leapt ahead, where store.DB did not follow
	error time.Duration // of the reading, at most; 0: there was none
}

// pace is how far a machine's monotonic clock may be off: 500 parts in a million, more than any that works.
const pace = 2000

func newClock() *clock {
	began := time.Now()
	return &clock{elapsed: func() time.Duration { return time.Since(began) }}
}

// read takes down that the database said now between the moments sent and received of the elapsed clock.
func (c *clock) read(now time.Time, sent, received time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	off := max((received-sent)/2, 1)
	now = now.Add(off) // as of received
	switch told := c.now(received); {
	case c.error == 0:
		c.told, c.ahead = now, 0
	case off > c.error+(received-c.at)/pace:
		return
	case now.Before(told):
		if told.Sub(now) > store.Drift {
			told, c.leapt = told.Add(-min(c.leapt, told.Sub(now))), 0
		}
		c.told, c.ahead = told, told.Sub(now)
	default:
		if d := now.Sub(told); d > store.Drift {
			c.leapt += d
		}
		c.told, c.ahead = now, 0
	}
	c.at, c.error = received, off
}

// now is what the clock tells at a moment not before the last reading.
func (c *clock) now(elapsed time.Duration) time.Time {
	since := elapsed - c.at
	return c.told.Add(since - min(since/2, c.ahead))
}

// Now implements lessor.Clock.
func (c *clock) Now() time.Time {
	elapsed := c.elapsed()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now(max(elapsed, c.at))
}

// Elapsed implements store.Monotonic.
func (c *clock) Elapsed() time.Duration { return c.elapsed() }

// Clock is the database's clock: store.DB tells lease time by it.
func (b *Backend) Clock() lessor.Clock { return b.clock }

// tell reads the database's clock.
func (b *Backend) tell(ctx context.Context) error {
	conn, err := b.keeper.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	var now time.Time
	sent := b.clock.elapsed()
	if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return err
	}
	b.clock.read(now.UTC(), sent, b.clock.elapsed())
	return nil
}
