package lease

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
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
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}

// One holder's threads read newer and newer versions at one node and acknowledge them at another, while the versions die and leases are revoked. What is on
// record of the holder is at each moment what it has said and read, whoever commits first.
func TestNodesAcknowledge(t *testing.T) {
	w := newWorld(t)
	defer w.close()
	nodes := []*member{w.member(t), w.member(t)}
	type progress struct{ said, heard, read atomic.Uint64 } // versions: acknowledged, before and after; read
	var dying, dead atomic.Uint64
	holders := map[Holder]*progress{}
	for i := range 6 {
		holders[Holder{Entity: "e-app", Alias: "a-app", Instance: fmt.Sprint("pod-", i)}] = &progress{}
	}
	var all sync.WaitGroup
	const versions = 30
	for who, p := range holders {
		all.Go(func() {
			var late sync.WaitGroup
			for version := uint64(1); version <= versions; version++ {
				at, other := nodes[version%2], nodes[(version+1)%2]
				_, id, _ := at.read(version, who, rotatable)
				p.read.Store(version)
				switch version % 5 {
				case 1, 3:
					late.Go(func() { // while it reads on
						raise(&p.said, version)
						if _, err := other.acknowledge(id); err == nil {
							raise(&p.heard, version)
						}
					})
				case 4:
					late.Go(func() {
						if l := other.find(id); l != nil {
							other.must(other.world.revoke(l, false))
						}
					})
				}
			}
			late.Wait()
		})
	}
	all.Go(func() {
		for version := uint64(1); version < versions; version += 4 {
			await(t, func() bool { // nobody reads what is dead
				for _, p := range holders {
					if p.read.Load() <= version {
						return false
					}
				}
				return true
			})
			dying.Store(version)
			nodes[version%2].settle(version, 0)
			dead.Store(version)
		}
	})
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	check := func(at *member) {
		type bounds struct{ oldest, newest uint64 }
		before, gone := map[Holder]bounds{}, dead.Load()
		for who, p := range holders {
			before[who] = bounds{p.heard.Load(), p.read.Load()}
		}
		var found []User
		if err := at.db.Fresh(ctx); err != nil {
			t.Fatal(err)
		}
		at.view(func(v store.View) {
			var err error
			found, err = Users(v, secret, "app")
			at.must(err)
		})
		known := map[Holder]User{}
		for _, u := range found {
			known[u.Holder] = u
		}
		for who, p := range holders {
			b := before[who]
			u, ok := known[who]
			if !ok && b.newest > 0 {
				t.Errorf("%s has read %d, and is forgotten", who.Instance, b.newest)
			}
			least, most := max(b.oldest, gone+1), max(1, p.said.Load(), dying.Load()+1)
			if ok && (u.Oldest < least || u.Oldest > most || u.Newest < b.newest) {
				t.Errorf("%s acknowledged %d, and read %d, of which %d are dead: known of it is %d to %d", who.Instance, b.oldest, b.newest, gone, u.Oldest, u.Newest)
			}
		}
	}
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		for _, at := range nodes {
			check(at)
		}
	}
	for _, at := range nodes {
		check(at)
		at.sound()
	}
}

// raise makes it n at least.
func raise(to *atomic.Uint64, n uint64) {
	for {
		if old := to.Load(); old >= n || to.CompareAndSwap(old, n) {
			return
		}
	}
}
