package core

import (
	"context"
	"time"
)

// Operations whose ground moves walk again. Where very many want the same (the table of policies, say, on which every decision
// rests), each commit lets one of them through and has all others walk again, and who came first would have no better prospects than who came last. So those
// who lost often enough line up, and one of them at a time is in the crowd.

const (
	attempts = 64                     // how often an operation walks, at most
	patient  = 8                      // how often it loses before it lines up
	inLine   = 2 * time.Second        // how long it waits there, at most
	atHead   = 200 * time.Millisecond // how long it may keep the others waiting
)

// crowd is the line of a node.
type crowd struct{ head chan struct{} }

func newCrowd() crowd { return crowd{make(chan struct{}, 1)} }

// turn is an operation's place in the crowd. The zero turn, but for its crowd, is that of one that has not lost yet.
type turn struct {
	crowd *crowd
	lost  int
	since time.Time // when it came to the head of the line; zero: it is not there
}

// again is called before an operation that lost walks again: at once at first, and once it is at the head of the line; and now and then after a pause,
// if it is never its turn. It reports false if it should give up.
func (t *turn) again(ctx context.Context) bool {
	if t.lost++; t.lost == attempts {
		return false
	}
	switch {
	case t.lost < patient:
		return true
	case !t.since.IsZero():
		if time.Since(t.since) > atHead {
			t.end()
		}
		return true
	}
	wait := time.NewTimer(inLine)
	defer wait.Stop()
	select {
	case t.crowd.head <- struct{}{}:
		t.since = time.Now()
	case <-wait.C:
	case <-ctx.Done():
	}
	return true
}

// end leaves the line. It may be called at any time.
func (t *turn) end() {
	if !t.since.IsZero() {
		t.since = time.Time{}
		<-t.crowd.head
	}
}
