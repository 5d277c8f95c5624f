package lease

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/store"
)

// member is one of several nodes over a world's disk and target, with everything that a node has around its Reaper. They look for nothing
// by themselves: the feed has to tell them.
type member struct {
	*world
	yield func() // its claims, while its Reaper goes on
}

func (w *world) member(t *testing.T) *member {
	t.Helper()
	m := &member{world: &world{failer: t, disk: w.disk, target: w.target, random: w.random, stop: func() {}}}
	m.open()
	claims := claim.New(claim.Options{Store: m.db, Look: 20 * time.Millisecond})
	m.reaper.Claims = claims
	sharing, yield := context.WithCancel(ctx)
	following, stop := context.WithCancel(ctx)
	var share, follow sync.WaitGroup
	share.Go(func() { claims.Run(sharing) })
	follow.Go(func() {
		for h, err := range m.db.Watch(following, 1) {
			if err != nil {
				return
			}
			m.reaper.Heard(&h)
		}
	})
	follow.Go(func() {
		for following.Err() == nil {
			select {
			case <-claims.Changed():
				m.reaper.Nudge()
			case <-following.Done():
			}
		}
	})
	m.start()
	m.yield = func() { yield(); share.Wait() }
	t.Cleanup(func() {
		m.stop()
		m.yield()
		stop()
		follow.Wait()
		m.must(m.db.Close())
	})
	return m
}

// revoke ends a lease without a word to this node's Reaper.
func (m *member) revoke(l *Lease) {
	m.Helper()
	_, err := m.db.Update(ctx, func(v store.View, txn *store.Txn) error {
		cur, row, err := Get(v, l)
		m.must(err)
		return End(v, txn, row, cur, "asked for", m.db.Now())
	})
	m.must(err)
}

// outcomes are how often it is on record that each lease's credential is gone.
func (w *world) outcomes() map[string]int {
	w.Helper()
	n := map[string]int{}
	for seq, head := uint64(1), w.db.Head().Seq; seq <= head; {
		commits, err := w.db.Commits(seq, 100)
		w.must(err)
		for _, c := range commits {
			for _, at := range c.Records {
				if at.Phase == audit.Outcome && at.Lease != "" && at.ErrorKind == "" {
					n[at.Lease]++
				}
			}
			seq = c.Seq + 1
		}
	}
	return n
}

func shared(claims ...*claim.Claims) bool {
	sum := 0
	for _, c := range claims {
		if c.Held() == 0 {
			return false
		}
		sum += c.Held()
	}
	return sum == claim.Shards
}

// What one node ends, the node whose work it is reverts as soon as it hears of it, and the first knows when it is done.
func TestNodesHearOfEachOther(t *testing.T) {
	w := newWorld(t)
	defer w.close()
	one, two := w.member(t), w.member(t)
	await(t, func() bool { return shared(one.reaper.Claims, two.reaper.Claims) })
	for i := range 24 {
		at := []*member{one, two}[i%2]
		l := at.issue(fmt.Sprint("database/creds/app", i), time.Hour, func(l *Lease) { l.Target = fmt.Sprint("pg", i/2) })
		at.revoke(l)
		waiting, cancel := context.WithTimeout(ctx, 5*time.Second)
		if err := at.reaper.SettleLease(waiting, l); err != nil {
			t.Fatalf("lease %d: %v", i, err)
		}
		cancel()
		if w.target.has(l.ID) {
			t.Errorf("lease %d is still there", i)
		}
	}
	await(t, func() bool { return one.db.Head().Seq == two.db.Head().Seq })
	for lease, n := range one.outcomes() {
		if n != 1 {
			t.Errorf("%s was ended %d times", lease, n)
		}
	}
	if a, b := one.reaper.Metrics().Reverted, two.reaper.Metrics().Reverted; a+b != 24 || a == 0 || b == 0 {
		t.Errorf("one node reverted %d, the other %d, of 24", a, b)
	}
}

// A node that loses its claim while a target hangs records nothing of what it did there; its successor does it again.
func TestLostClaim(t *testing.T) {
	w := newWorld(t)
	defer w.close()
	one := w.member(t)
	await(t, func() bool { return one.reaper.Claims.Held() == claim.Shards })
	two := w.member(t)
	await(t, func() bool { return shared(one.reaper.Claims, two.reaper.Claims) })
	name := ""
	for i := 0; name == ""; i++ {
		if h, ok := one.reaper.Claims.Take(claim.Target(database.UUID, fmt.Sprint("pg", i))); ok {
			h.Release()
			name = fmt.Sprint("pg", i)
		}
	}
	l := one.issue("database/creds/app", time.Hour, func(l *Lease) { l.Target = name })
	w.target.delay(10 * time.Second)
	one.revoke(l)
	await(t, func() bool { return w.target.called() == 1 })
	w.target.delay(0)
	one.yield() // as if it had died: what it still holds on to is lost after a while
	await(t, func() bool { return !w.target.has(l.ID) && two.get(l) == nil })
	if n := two.outcomes()[l.ID]; n != 1 {
		t.Errorf("%d outcomes", n)
	}
	if n := one.reaper.Metrics().Reverted; n != 0 {
		t.Errorf("who lost its claim says that it reverted %d", n)
	}
}

// delay makes calls take that long.
func (d *server) delay(by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = by
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}
