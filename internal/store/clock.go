package store

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// Drift is how far the wall clock may outrun the monotonic one within driftTerm, or the last header the wall clock, before it is an
// alarm. Over a longer time, the one of a machine may go that much faster than that of another.
const (
	Drift     = 2 * time.Minute
	driftTerm = time.Hour
)

// Monotonic is what a lessor.Clock may also be: one that tells the time elapsed since some fixed moment by a clock that nobody
// sets. Of a clock without it, the monotonic reading of its times counts.
type Monotonic interface{ Elapsed() time.Duration }

// Timed is a Backend with a clock that all nodes share. Lease time follows that one rather than each machine's own, so that
// a lease ends everywhere at once.
type Timed interface {
	// Clock is Monotonic and tells nodes the same to some milliseconds. It steps back only if it leapt ahead by more than Drift.
	Clock() lessor.Clock
}

// leaseClock tells lease time: the wall clock, but never before what was told, nor before the last header. A wall
// clock that jumps ahead is not followed: time then goes on at the monotonic clock's pace until somebody accepts the jump.
type leaseClock struct {
	clock lessor.Clock
	last  atomic.Int64 // nanoseconds; the latest time told or committed

	mu    sync.Mutex
	wall  time.Time     // when the count of elapsed time began
	mono  time.Duration // Monotonic's reading then
	ahead time.Duration // by how much the wall clock is ahead; 0: no alarm
	past  time.Duration // by how much the wall clock was behind the last header when the store opened
}

func newLeaseClock(c lessor.Clock) *leaseClock {
	l := &leaseClock{clock: c}
	l.accept()
	return l
}

// accept makes the wall clock's present reading the true one.
func (l *leaseClock) accept() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m, ok := l.clock.(Monotonic); ok {
		l.mono = m.Elapsed()
	}
	l.wall, l.ahead, l.past = l.clock.Now(), 0, 0
}

// follow makes t, a header's time, a lower bound.
func (l *leaseClock) follow(t time.Time) {
	for n := t.UnixNano(); ; {
		last := l.last.Load()
		if n <= last || l.last.CompareAndSwap(last, n) {
			return
		}
	}
}

// resume follows the head of a store that was just opened.
func (l *leaseClock) resume(head time.Time) {
	l.follow(head)
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := head.Sub(l.wall.Round(0)); d > Drift {
		l.past = d
	}
}

// now reads the monotonic clock first: if the machine stands for hours before it reads the other, the wall clock seems to have jumped, and the next call sees that it
// has not. The other way round a wall clock of before would be taken for what belongs to a monotonic one of after, for good.
func (l *leaseClock) now() time.Time {
	var mono time.Duration
	m, steadily := l.clock.(Monotonic)
	if steadily {
		mono = m.Elapsed()
	}
	wall := l.clock.Now()
	l.mu.Lock()
	elapsed := wall.Sub(l.wall) // monotonic if both have the reading
	if steadily {
		elapsed = mono - l.mono
	}
	steady := l.wall.Round(0).Add(elapsed)
	if d := wall.Round(0).Sub(steady); d > Drift {
		wall, l.ahead = steady, d
	} else {
		l.ahead = 0
		if elapsed > driftTerm {
			l.wall, l.mono = wall, l.mono+elapsed
		}
	}
	l.mu.Unlock()
	l.follow(wall)
	return time.Unix(0, l.last.Load()).UTC()
}

func (l *leaseClock) alarm() error {
	l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ahead > 0:
		return fmt.Errorf("the clock jumped ahead by %s; set it right, or accept it", l.ahead.Round(time.Second))
	case l.past > 0:
		return fmt.Errorf("the store's last commit is %s ahead of the clock; set the clock right, or accept it", l.past.Round(time.Second))
	}
	return nil
}
