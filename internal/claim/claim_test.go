package claim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/postgres"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

func TestShare(t *testing.T) {
	var nodes []string
	var before [Shards]string
	for n := 1; n <= 9; n++ {
		nodes = append(nodes, fmt.Sprintf("%016x", n*7919))
		by := share(nodes)
		load, stayed := map[string]int{}, 0
		for i, id := range by {
			load[id]++
			if id == before[i] {
				stayed++
			}
		}
		most := (Shards + n - 1) / n
		for id, l := range load {
			if l > most {
				t.Errorf("of %d nodes %s has %d shards, more than %d", n, id, l, most)
			}
		}
		if n > 1 && stayed < Shards*(n-1)/n/2 {
			t.Errorf("a node came to %d others: %d of %d shards stayed where they were", n-1, stayed, Shards)
		}
		before = by
		if again := share(slices.Clone(nodes)); again != by {
			t.Error("two nodes work out different shares")
		}
	}
	if by := share(nil); by != [Shards]string{} {
		t.Error("nobody has something")
	}
}

func TestAloneHoldsEverything(t *testing.T) {
	var c *Claims
	h, ok := c.Take("anything")
	if !ok || h.Over() {
		t.Fatal("it is not held")
	}
	defer h.Release()
	ctx, cancel := h.Context(t.Context())
	defer cancel()
	txn := store.Txn{}
	Fence(ctx, &txn)
	if len(txn.Checks) != 0 {
		t.Error("a fence where there is nobody else")
	}
}

func open(t *testing.T, b store.Backend) *store.DB {
	t.Helper()
	db, err := store.Open(b, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(storetest.NewCipher("claims")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// node is one of a cluster.
type node struct {
	*Claims
	db    *store.DB
	leave func() // in order
}

type cluster struct {
	t      *testing.T
	server *pgtest.Server
	url    string
}

func newCluster(t *testing.T) *cluster {
	s := pgtest.Start(t, pgtest.Fsync())
	return &cluster{t, s, s.URL(pgtest.Superuser, s.Password(), s.Database(t))}
}

func (c *cluster) join() *node { return c.joinAt(c.url) }

func (c *cluster) joinAt(url string) *node {
	c.t.Helper()
	b, err := postgres.Open(context.Background(), lessor.NewSecret(url), postgres.Options{Connections: 4})
	if err != nil {
		c.t.Fatal(err)
	}
	n := &node{db: open(c.t, b)}
	n.Claims = New(Options{Store: n.db, Look: 100 * time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { n.Run(ctx) })
	n.leave = func() { cancel(); running.Wait() }
	c.t.Cleanup(n.leave)
	return n
}

// patience is how long a test waits for what must happen.
const patience = time.Minute

// await waits for a condition.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func balanced(nodes ...*node) func() bool {
	return func() bool {
		sum, most := 0, (Shards+len(nodes)-1)/len(nodes)
		for _, n := range nodes {
			if n.Held() > most {
				return false
			}
			sum += n.Held()
		}
		return sum == Shards
	}
}

// idle waits until nothing was committed for a second, as a node sees it.
func (c *cluster) idle(n *node) {
	c.t.Helper()
	var head uint64
	var since time.Time
	await(c.t, "an idle cluster commits nothing for a second", func() bool {
		if now := n.db.Head().Seq; now != head {
			head, since = now, time.Now()
		}
		return time.Since(since) > time.Second
	})
}

// Work is spread over the nodes, each part held by one; it moves when nodes come and go; and an idle cluster commits nothing.
func TestShardsFollowTheNodes(t *testing.T) {
	c := newCluster(t)
	one := c.join()
	await(t, "one node holds everything", balanced(one))
	two, three := c.join(), c.join()
	await(t, "three nodes share", balanced(one, two, three))
	c.idle(one)
	began := time.Now()
	two.leave()
	await(t, "two nodes share", balanced(one, three))
	if took := time.Since(began); took >= store.PeerTerm { // after which it counts as dead
		t.Errorf("an orderly handover took %s", took)
	}
	if n := two.Held(); n != 0 {
		if _, ok := two.Take("expiry"); ok {
			t.Error("who left takes work")
		}
	}
}

// A node that is told to retire passes everything on while it goes on serving, once what it does is finished, and takes nothing new.
func TestRetire(t *testing.T) {
	c := newCluster(t)
	one, two := c.join(), c.join()
	await(t, "two nodes share", balanced(one, two))
	var held *Hold
	work := ""
	for i := 0; held == nil; i++ {
		work = fmt.Sprint(i)
		held, _ = one.Take(work)
	}
	began := time.Now()
	one.Retire()
	select {
	case <-held.Wanted():
	case <-time.After(patience):
		t.Fatal("who works is not told to finish")
	}
	if two.Held() == Shards {
		t.Error("work was handed over that was being done")
	}
	ctx, cancel := held.Context(t.Context())
	defer cancel()
	txn := store.Txn{}
	txn.Put(store.Engine, "x", []byte("finished"))
	Fence(ctx, &txn)
	if _, err := one.db.Commit(ctx, txn); err != nil {
		t.Errorf("what was under way could not be finished: %v", err)
	}
	held.Release()
	await(t, "the other one has everything", balanced(two))
	if took := time.Since(began); took >= store.PeerTerm {
		t.Errorf("handing over took %s", took)
	}
	await(t, "who retired has nothing", func() bool { return one.Held() == 0 })
	if _, ok := one.Take(work); ok {
		t.Error("who retired takes work")
	}
	if h, ok := two.Take(work); !ok {
		t.Error("the successor does not take it")
	} else {
		h.Release()
	}
}

// working has a node do something until the test ends. The context is that of the work.
func working(t *testing.T, c *node) context.Context {
	t.Helper()
	var held *Hold
	for i := 0; held == nil; i++ {
		held, _ = c.Take(fmt.Sprint(i))
	}
	t.Cleanup(held.Release)
	ctx, cancel := held.Context(t.Context())
	t.Cleanup(cancel)
	return ctx
}

// Who does not finish what it does holds up the handover for some seconds only, and then finds its work ended.
func TestRetireEndsWorkThatHangs(t *testing.T) {
	c := newCluster(t)
	one, two := c.join(), c.join()
	await(t, "two nodes share", balanced(one, two))
	ctx := working(t, one)
	one.Retire()
	await(t, "the other one has everything", balanced(two))
	if ctx.Err() == nil {
		t.Error("work goes on that another node does")
	}
}

// Of nodes that retire at once, and one that is alone, somebody always does the work until it ends or others come.
func TestLastToRetireGoesOn(t *testing.T) {
	c := newCluster(t)
	one, two := c.join(), c.join()
	await(t, "two nodes share", balanced(one, two))
	one.Retire()
	two.Retire()
	await(t, "one of them has everything", func() bool { return balanced(one)() || balanced(two)() })
	last := one
	if two.Held() > 0 {
		last = two
	}
	last.Retire()
	await(t, "it goes on", func() bool {
		h, ok := last.Take("expiry")
		if ok {
			h.Release()
		}
		return ok
	})
	c.idle(one)
	first := one
	if last == one {
		first = two
	}
	last.leave()
	await(t, "who retired before takes it back", balanced(first))
	three := c.join()
	await(t, "who comes has everything", balanced(three))
	await(t, "who retired has nothing", func() bool { return first.Held() == 0 })
	c.idle(three)
}

// Nodes that retire at once do not end each other's work for nothing: who finds himself the last goes on with it, and with all else.
func TestLastToRetireKeepsItsWork(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	one, two := c.join(), c.join()
	await(t, "two nodes share", balanced(one, two))
	ctx := working(t, one)
	began := time.Now()
	one.Retire() // and waits for what it does
	two.Retire()
	await(t, "the other one has left", func() bool { return two.Held() == 0 })
	await(t, "the last one takes up everything else", func() bool {
		free := 0
		for i := range Shards {
			if h, ok := one.Take(work(i)); ok {
				h.Release()
				free++
			}
		}
		return free == Shards-1
	})
	if took := time.Since(began); took > parting/2 {
		t.Skipf("this machine is too slow to show it: it took %s, and work that hangs is ended after %s", took, parting/2)
	}
	await(t, "patience would be over", func() bool { return time.Since(began) > parting/2+200*time.Millisecond })
	if ctx.Err() != nil {
		t.Error("work was ended that nobody else does")
	}
}

// work is some that falls into a shard.
func work(of int) string {
	for i := 0; ; i++ {
		if name := fmt.Sprint(i); shard(name) == of {
			return name
		}
	}
}

// A node that retired, and serves on, does the work of a successor that dies, until that one is back.
func TestWhoRetiredSucceedsTheDead(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	relay := pgtest.NewRelay(t, c.server)
	one, two := c.join(), c.joinAt(relay.URL(c.url))
	await(t, "two nodes share", balanced(one, two))
	one.Retire()
	await(t, "the other one has everything", balanced(two))
	c.idle(one)
	relay.Cut()
	await(t, "who retired has everything", func() bool { return one.Held() == Shards })
	if h, ok := one.Take("expiry"); !ok {
		t.Error("it does not do it")
	} else {
		h.Release()
	}
	await(t, "who is cut off has nothing", func() bool { return two.Held() == 0 })
	relay.Mend()
	await(t, "who is back has everything", balanced(two))
	await(t, "who retired has nothing", func() bool { return one.Held() == 0 })
}

// Of several nodes that retired one comes back when nobody else is left, and the others let it.
func TestOneOfThoseWhoRetiredComesBack(t *testing.T) {
	c := newCluster(t)
	one, two, three := c.join(), c.join(), c.join()
	await(t, "three nodes share", balanced(one, two, three))
	one.Retire()
	two.Retire()
	await(t, "the third has everything", balanced(three))
	three.leave()
	await(t, "one of them has everything", func() bool { return balanced(one)() || balanced(two)() })
	c.idle(one)

	// Of two that decide at once, the second is refused.
	one.leave()
	two.leave()
	var empty *table
	await(t, "nobody takes part", func() bool {
		v, err := one.db.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		if empty, err = load(v); err != nil {
			t.Fatal(err)
		}
		return len(empty.nodes) == 0
	})
	alive := map[string]bool{one.db.Self(): true, two.db.Self(): true}
	var errs []error
	for _, n := range []*node{one, two} {
		txn, _, err := empty.step(n.db.Self(), alive, true, nil)
		if err != nil || len(txn.Puts) != 1 {
			t.Fatalf("a node that is the only one does not take part: %+v, %v", txn, err)
		}
		_, err = n.db.Commit(t.Context(), txn)
		errs = append(errs, err)
	}
	if errs[0] != nil || !errors.As(errs[1], new(*store.Conflict)) {
		t.Errorf("they come back: %v", errs)
	}
}

// Who left meanwhile is given nothing: what others decided before they knew does not hold.
func TestNothingGoesToWhoLeft(t *testing.T) {
	c := newCluster(t)
	one, two := c.join(), c.join()
	await(t, "two nodes share", balanced(one, two))
	v, err := one.db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	before, err := load(v)
	if err != nil {
		t.Fatal(err)
	}
	self, other := one.db.Self(), two.db.Self()
	i := slices.IndexFunc(before.claims[:], func(c claim) bool { return c.Holder == other })
	before.claims[i].Holder = self // as if it were surplus; its row stays as it is, by which the commit goes
	txn, surplus, err := before.step(self, map[string]bool{self: true, other: true}, false, func(int) bool { return false })
	if err != nil || !slices.Equal(surplus, []int{i}) {
		t.Fatalf("surplus: %v, %v", surplus, err)
	}
	txn.Checks = slices.DeleteFunc(txn.Checks, func(c store.Check) bool { return c.Key == shardKey(i) })
	two.leave()
	if _, err := one.db.Commit(t.Context(), txn); !errors.As(err, new(*store.Conflict)) {
		t.Errorf("who left was given a shard: %v", err)
	}
}

// A shard in use is not handed over before it is released.
func TestSurplusIsFinishedFirst(t *testing.T) {
	c := newCluster(t)
	one := c.join()
	await(t, "one node holds everything", balanced(one))
	holds := map[int]*Hold{}
	for i := 0; len(holds) < Shards; i++ {
		work := fmt.Sprint(i)
		if holds[shard(work)] == nil {
			holds[shard(work)], _ = one.Take(work)
		}
	}
	two := c.join()
	var wanted *Hold
	await(t, "some are wanted", func() bool {
		n := 0
		for _, h := range holds {
			if h.Over() {
				wanted, n = h, n+1
			}
		}
		return n == Shards/2
	})
	if two.Held() != 0 {
		t.Error("work was handed over that was being done")
	}
	ctx, cancel := wanted.Context(t.Context())
	defer cancel()
	txn := store.Txn{}
	txn.Put(store.Engine, "x", []byte("finished"))
	Fence(ctx, &txn)
	if _, err := one.db.Commit(ctx, txn); err != nil {
		t.Errorf("what was under way could not be finished: %v", err)
	}
	for _, h := range holds {
		h.Release()
	}
	await(t, "two nodes share", balanced(one, two))
}

// Who was counted dead finds his commits refused, and his work ended.
func TestFence(t *testing.T) {
	c := newCluster(t)
	one := c.join()
	await(t, "one node holds everything", balanced(one))
	h, ok := one.Take("expiry")
	if !ok {
		t.Fatal("it is not held")
	}
	defer h.Release()
	ctx, cancel := h.Context(t.Context())
	defer cancel()
	stale := store.Txn{}
	stale.Put(store.Engine, "x", []byte("late"))
	Fence(ctx, &stale)

	two := c.join()
	await(t, "it is wanted, or stays", func() bool { return two.Held() > 0 })
	steal(t, two.db, "expiry")
	if _, err := one.db.Commit(context.Background(), stale); !errors.As(err, new(*store.Conflict)) {
		t.Fatalf("a lost claim still commits: %v", err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		t.Fatal("who lost a claim goes on")
	}
}

// A node that vanishes is succeeded within seconds, and knows by then that it has nothing any more; when it is back, it has its part again.
func TestFailover(t *testing.T) {
	t.Parallel() // it waits, as others do
	c := newCluster(t)
	relay := pgtest.NewRelay(t, c.server)
	one, two := c.join(), c.joinAt(relay.URL(c.url))
	await(t, "two nodes share", balanced(one, two))
	work := ""
	for i := 0; ; i++ {
		work = fmt.Sprint(i)
		if h, ok := two.Take(work); ok {
			defer h.Release()
			ctx, cancel := h.Context(t.Context())
			defer cancel()
			relay.Cut()
			began := time.Now()
			await(t, "who is left has everything", func() bool { return one.Held() == Shards })
			t.Logf("failover took %s", time.Since(began).Round(time.Millisecond))
			select {
			case <-ctx.Done():
			case <-time.After(patience):
				t.Error("who vanished still works")
			}
			break
		}
	}
	if _, ok := two.Take(work); ok {
		t.Error("who vanished takes work")
	}
	if h, ok := one.Take(work); !ok {
		t.Error("the successor does not take it")
	} else {
		h.Release()
	}
	relay.Mend()
	await(t, "two nodes share again", balanced(one, two))
}

// steal takes a claim over as if its holder had died.
func steal(t *testing.T, db *store.DB, work string) {
	t.Helper()
	if _, err := db.Update(t.Context(), func(v store.View, txn *store.Txn) error {
		table, err := load(v)
		if err != nil {
			return err
		}
		return table.pass(txn, shard(work), db.Self())
	}); err != nil {
		t.Fatal(err)
	}
}
