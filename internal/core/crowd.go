package core

import (
	"context"
	"sync"
	"time"
)

// Operations whose ground moves walk again. Where very many want the same (the table of policies, say, on which every decision
// rests), each commit lets one of them through and has all others walk again, and who came first would have no better prospects than who came last. So those
// who lost often enough line up, and one of them at a time is in the crowd.

const (
	attempts = 64                     // how often an operation walks, at most
	patient  = 8                      // how often it loses before it lines up
	inLine   = 2 * time.Second        // how long it waits there, at most
	atHead   = 200 * time.Millisecond // how long it keeps the others waiting, at most: it may have a target to wait for
)

// crowd is the line of a node.
type crowd struct{ head chan struct{} }

func newCrowd() crowd { return crowd{make(chan struct{}, 1)} }

// turn is an operation's place in the crowd. The zero turn, but for its crowd, is that of one that has not lost yet.
type turn struct {
	crowd *crowd
	lost  int
	until time.Time // it is at the head of the line
	leave func()    // the head; nil: it never was there
}

// again is called before an operation that lost walks again: at once at first, and once it is at the head of the line; and now and then after a pause,
// if it is never its turn. It reports false if it should give up.
func (t *turn) again(ctx context.Context) bool {
	if t.lost++; t.lost == attempts {
		return false
	}
	if t.lost < patient || time.Now().Before(t.until) {
		return true
	}
	t.end()
	wait := time.NewTimer(inLine)
	defer wait.Stop()
	select {
	case t.crowd.head <- struct{}{}:
		leave := sync.OnceFunc(func() { <-t.crowd.head })
		late := time.AfterFunc(atHead, leave)
		t.until, t.leave = time.Now().Add(atHead), func() { late.Stop(); leave() }
	case <-wait.C:
	case <-ctx.Done():
	}
	return true
}

// end leaves the line. It may be called at any time.
func (t *turn) end() {
	if t.leave != nil {
		t.leave()
	}
}
