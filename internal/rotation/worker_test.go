package rotation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/postgres"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// bench is a Worker over a real store, whose accounts are rotated as the test says.
type bench struct {
	*testing.T
	*Worker
	db    *store.DB
	clock *clock
	mu    sync.Mutex
	turns []string                   // accounts, as they came
	fails func(account string) error // nil: none does
	stays bool                       // failures are not recorded
}

type clock struct {
	mu sync.Mutex
	d  time.Duration
}

func (c *clock) Elapsed() time.Duration { c.mu.Lock(); defer c.mu.Unlock(); return c.d }
func (c *clock) Now() time.Time         { return t0.Add(c.Elapsed()) }
func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.d += d
}

const uuid = "0123456789abcdef0123456789abcdef"

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, clock: &clock{}}
	kek, err := seal.CreateKeyFile(filepath.Join(t.TempDir(), "key"), rand.Reader)
	b.must(err)
	keys, rows, err := seal.Init(rand.Reader, t0, kek)
	b.must(err)
	b.db, err = store.Open(mem.New(), store.Options{Clock: b.clock})
	b.must(err)
	b.must(b.db.Unseal(keys.Cipher()))
	t.Cleanup(func() { _ = b.db.Close() })
	_, err = b.db.Commit(t.Context(), store.Txn{Puts: rows})
	b.must(err)
	b.Worker = New(Options{Store: b.db, Mounts: func(store.View) ([]Mount, error) { return []Mount{{0, uuid}}, nil }, Rotate: b.rotate})
	return b
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// rotate succeeds at once, or fails and is recorded.
func (b *bench) rotate(ctx context.Context, mount, account string) error {
	b.mu.Lock()
	b.turns = append(b.turns, account)
	b.mu.Unlock()
	var failure error
	if b.fails != nil {
		failure = b.fails(account)
	}
	if failure != nil && b.stays {
		return failure
	}
	_, err := b.db.Update(ctx, func(v store.View, txn *store.Txn) error {
		a, row, err := Load(v, 0, mount, account)
		if err != nil {
			return err
		}
		if failure != nil {
			a.Failed(failure, b.db.Now(), 1)
		} else {
			a.Attempts, a.Retry, a.Version, a.Due = 0, time.Time{}, a.Version+1, hourly.Next(b.db.Now())
		}
		return Save(txn, row, a)
	})
	return errors.Join(failure, err)
}

// add makes accounts that are due.
func (b *bench) add(target string, names ...string) {
	b.Helper()
	for i, name := range names {
		_, err := b.db.Update(b.Context(), func(v store.View, txn *store.Txn) error {
			a, row, err := Load(v, 0, uuid, name)
			if err != nil {
				return err
			}
			a.Target, a.Due = target, b.db.Now().Add(time.Duration(i)*time.Microsecond)
			return Save(txn, row, a)
		})
		b.must(err)
	}
}

// work is one round, to its end, and returns who had a turn.
func (b *bench) work() string {
	b.Helper()
	b.clock.advance(time.Millisecond)
	_, err := b.round(b.Context())
	b.must(err)
	b.all.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	all := fmt.Sprint(b.turns)
	b.turns = nil
	return all
}

func TestQueuesAreOrdered(t *testing.T) {
	b := newBench(t)
	b.add("pg", "c", "a", "b")
	if got := b.work(); got != "[c a b]" {
		t.Errorf("turns %s", got)
	}
	if got := b.work(); got != "[]" {
		t.Errorf("turns before their time %s", got)
	}
	b.clock.advance(time.Hour)
	if got := b.work(); got != "[a b c]" || b.Metrics().Done != 6 {
		t.Errorf("an hour later %s, %+v", got, b.Metrics())
	}
}

// A target that fails is probed, and left alone in between; another is not delayed; nobody gives up.
func TestFailingTarget(t *testing.T) {
	b := newBench(t)
	b.add("down", "a", "b", "c", "d", "e")
	b.add("up", "z")
	b.fails = func(account string) error {
		if account != "z" {
			return errors.New("down")
		}
		return nil
	}
	b.work()
	if m := b.Metrics(); m.Done != 1 || m.Failed != trips {
		t.Errorf("at first %+v", m)
	}
	probes := 0
	for range 60 { // minutes
		b.clock.advance(time.Minute)
		if b.work() != "[]" {
			probes++
		}
	}
	if m := b.Metrics(); probes < 50 || m.Failed > 70 || m.Done < 1 {
		t.Errorf("%d probes in an hour, %+v", probes, m)
	}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		v, err := b.db.View()
		b.must(err)
		a, _, err := Load(v, 0, uuid, name)
		v.Close()
		b.must(err)
		if a.Attempts == 0 || a.Next.IsZero() {
			t.Errorf("%s was given up: %+v", name, a)
		}
	}
	b.fails = nil
	b.clock.advance(15 * time.Minute)
	if got := b.work(); len(got) < len("[a b c d e]") {
		t.Errorf("when it is back %s", got)
	}
}

// A target is told to fail once it is only probed, as long as something is due there and until it is back.
func TestFailing(t *testing.T) {
	b := newBench(t)
	b.add("down", "a", "b")
	b.add("up", "z")
	b.fails = func(account string) error {
		if account != "z" {
			return errors.New("down")
		}
		return nil
	}
	b.work()
	if all := b.Failing(); len(all) != 0 {
		t.Errorf("after two failures %v", all)
	}
	b.clock.advance(time.Minute)
	b.work()
	if all := b.Failing(); len(all) != 1 || all[0] != (Target{uuid, "down"}) {
		t.Errorf("after three %v", all)
	}
	b.clock.advance(2*longest + time.Second)
	if all := b.Failing(); len(all) != 0 {
		t.Errorf("where nothing was tried for long %v", all)
	}
	b.work()
	if all := b.Failing(); len(all) != 1 {
		t.Errorf("when it was tried again %v", all)
	}
	b.fails = nil
	b.clock.advance(15 * time.Minute)
	b.work()
	if all := b.Failing(); len(all) != 0 {
		t.Errorf("when it is back %v", all)
	}
}

// What failed at a target outlasts a moment in which its work was to be another node's, and ends with the hand-over.
func TestFailuresAreOfWhoWorksThere(t *testing.T) {
	server := pgtest.Start(t, pgtest.Fsync())
	url := server.URL(pgtest.Superuser, server.Password(), server.Database(t))
	cipher := storetest.NewCipher("rotation")
	join := func() (*store.DB, *claim.Claims, func()) {
		backend, err := postgres.Open(t.Context(), lessor.NewSecret(url), postgres.Options{Connections: 4})
		if err != nil {
			t.Fatal(err)
		}
		db, err := store.Open(backend, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Unseal(cipher); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		c := claim.New(claim.Options{Store: db, Look: 50 * time.Millisecond})
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { c.Run(ctx) })
		leave := func() { cancel(); running.Wait() }
		t.Cleanup(leave)
		return db, c, leave
	}
	await := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(15 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("it does not happen: %s", what)
			}
		}
	}
	b := &bench{T: t, clock: &clock{}, stays: true, fails: func(string) error { return errors.New("down") }}
	var mine *claim.Claims
	var leave func()
	b.db, mine, leave = join()
	b.Worker = New(Options{Store: b.db, Mounts: func(store.View) ([]Mount, error) { return []Mount{{0, uuid}}, nil }, Rotate: b.rotate, Claims: mine})
	await("one node has everything", func() bool { return mine.Held() == claim.Shards })
	const targets = 16
	name := func(i int) string { return fmt.Sprintf("pg%02d", i) }
	for i := range targets {
		b.add(name(i), name(i))
	}
	added := b.db.Now()
	await("all are due", func() bool { return b.db.Now().Sub(added) > 2*time.Millisecond }) // that is what queues are exact to
	b.work()
	b.work()

	// Another node comes, and is to have some of them; they cannot be given to it yet.
	var holds []*claim.Hold
	for i := range targets {
		hold, ok := mine.Take(claim.Target(uuid, name(i)))
		if !ok {
			t.Fatalf("%s is nobody's", name(i))
		}
		holds = append(holds, hold)
	}
	_, theirs, goes := join()
	await("it has its part", func() bool { return theirs.Held() > 0 })
	if !slices.ContainsFunc(holds, (*claim.Hold).Over) {
		t.Fatal("the other node is to have none of the targets")
	}
	b.work()
	if all := b.Failing(); len(all) == targets {
		t.Errorf("work that is to be another node's is begun: %v", all)
	}
	goes()
	await("that one has gone", func() bool { return mine.Held() == claim.Shards })
	for _, hold := range holds {
		hold.Release()
	}
	await("all is this node's again", func() bool {
		for i := range targets {
			again, ok := mine.Take(claim.Target(uuid, name(i)))
			if !ok {
				return false
			}
			again.Release()
		}
		return true
	})
	b.work()
	if all := b.Failing(); len(all) != targets {
		t.Errorf("after a third failure of each %v are told", all)
	}

	leave()
	if all := b.Failing(); len(all) != 0 {
		t.Errorf("after the hand-over %v are told", all)
	}
	b.work()
	b.Worker.mu.Lock()
	defer b.Worker.mu.Unlock()
	if n := len(b.targets); n != 0 {
		t.Errorf("after the hand-over %d targets are remembered", n)
	}
}

// An account whose failure cannot be recorded, since its rows are damaged, stays at the head of its queue; those behind it have their turn.
func TestStuckAccount(t *testing.T) {
	b := newBench(t)
	b.add("pg", "a", "b", "c")
	b.stays = true
	b.fails = func(account string) error {
		if account == "a" {
			return errors.New("damaged")
		}
		return nil
	}
	if got := b.work(); got != "[a b c]" {
		t.Errorf("turns %s", got)
	}
	if got := b.work(); got != "[a]" {
		t.Errorf("turns %s", got)
	}
}

func TestPanicIsAFailure(t *testing.T) {
	b := newBench(t)
	b.add("pg", "a", "b")
	b.stays = true
	b.fails = func(account string) error {
		if account == "a" {
			panic("no engine is perfect")
		}
		return nil
	}
	if got := b.work(); got != "[a b]" || b.Metrics().Failed != 1 {
		t.Errorf("turns %s, %+v", got, b.Metrics())
	}
}

// More accounts than one commit makes due are all proven after a copy is resumed.
func TestProveAll(t *testing.T) {
	b := newBench(t)
	var names []string
	for i := range 2*some + 1 {
		names = append(names, fmt.Sprintf("%03d", i))
	}
	b.add("pg", names...)
	b.work()
	_, err := b.db.Update(t.Context(), func(_ store.View, txn *store.Txn) error { ProveAll(txn, b.db.Now()); return nil })
	b.must(err)
	b.work()
	v, err := b.db.View()
	b.must(err)
	defer v.Close()
	due, err := Overdue(v, []Mount{{0, uuid}}, b.db.Now(), 0, 1000)
	b.must(err)
	proven := 0
	for _, name := range names {
		a, _, err := Load(v, 0, uuid, name)
		b.must(err)
		if a.Step(hourly, b.db.Now()) == Prove {
			proven++
		}
	}
	if proven != len(names) || len(due) != 0 {
		t.Errorf("%d of %d are to be proven, %d are overdue", proven, len(names), len(due))
	}
	if row, err := v.Get(resumed); err != nil || row.Exists() {
		t.Error("they are made due for ever")
	}
}
