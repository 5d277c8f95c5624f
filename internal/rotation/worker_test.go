package rotation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
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
	heard uint64                     // the commit that was heard of last
}

// hear tells the Worker of what was committed since it heard last.
func (b *bench) hear() {
	b.Helper()
	for head := b.db.Head().Seq; b.heard < head; {
		for h, err := range b.db.Watch(b.Context(), b.heard+1) {
			b.must(err)
			b.Heard(&h)
			if b.heard = h.Seq; b.heard == head {
				break
			}
		}
	}
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

const uuid = "0123456789abcdef"

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
	b.everything()
	_, err := b.round(b.Context())
	b.must(err)
	b.all.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	all := fmt.Sprint(b.turns)
	b.turns = nil
	return all
}

// Whoever comes into a queue before those who have had their turn, since he was due long ago, does not wait for its end, which may never come: a target may have more to do than
// it gets done.
func TestWhatWasDueBeforeIsSeen(t *testing.T) {
	b := newBench(t)
	turns, seen := 0, 0
	change := func(name string, change func(a *Account)) {
		_, err := b.db.Update(b.Context(), func(v store.View, txn *store.Txn) error {
			a, row, err := Load(v, 0, uuid, name)
			if err != nil {
				return err
			}
			a.Target = "pg"
			change(a)
			return Save(txn, row, a)
		})
		b.must(err)
	}
	b.Rotate = func(_ context.Context, _, account string) error {
		b.clock.advance(time.Millisecond)
		if turns++; turns == 10 {
			change("before", func(a *Account) { a.Due = t0 })
		}
		if account == "before" {
			seen = turns
		}
		change(account, func(a *Account) {
			if a.Version, a.Due = a.Version+1, b.db.Now(); seen > 0 || turns == 1000 {
				a.Due = a.Due.Add(time.Hour)
			}
		})
		return nil
	}
	b.clock.advance(time.Second)
	b.add("pg", "again and again")
	if b.work(); seen == 0 || seen > 100 {
		t.Errorf("it had turn %d, of %d", seen, turns)
	}
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

// However many accounts are known to be gone at a target, one that is there waits for no more than the rest between two probes; and each of the others is tried again.
func TestGoneAccountsDelayNoOther(t *testing.T) {
	b := newBench(t)
	var gone []string
	for i := range 50 {
		gone = append(gone, fmt.Sprintf("gone%02d", i))
	}
	b.add("pg", gone...)
	b.fails = func(account string) error {
		if account != "there" {
			return errors.New("it does not exist")
		}
		return nil
	}
	tries := map[string]int{}
	wait := func(d time.Duration) {
		for end := b.db.Now().Add(d); b.db.Now().Before(end); {
			b.clock.advance(time.Second)
			for _, account := range strings.Fields(strings.Trim(b.work(), "[]")) {
				tries[account]++
			}
		}
	}
	wait(time.Hour) // until each has failed once
	for range 3 {
		b.add("pg", "there")
		before := tries["there"]
		if wait(longest + 2*time.Second); tries["there"] == before {
			t.Errorf("it was not rotated within %s", longest)
		}
		wait(10 * time.Minute)
	}
	wait(time.Hour)
	for _, account := range gone {
		if tries[account] < 2 {
			t.Errorf("%s was tried %d times", account, tries[account])
		}
	}
}

// However many targets hang, each has one turn and no other begins there, while another target's accounts have all theirs.
func TestHangingTargets(t *testing.T) {
	b := newBench(t)
	const hanging, healthy = 100, 50
	for i := range hanging {
		name := fmt.Sprintf("down%03d", i)
		b.add(name, name+"a", name+"b")
	}
	for i := range healthy {
		b.add("up", fmt.Sprintf("up%03d", i))
	}
	answers := make(chan struct{})
	b.fails = func(account string) error {
		if strings.HasPrefix(account, "down") {
			<-answers
			return errors.New("down")
		}
		return nil
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { b.Worker.Run(ctx) })
	defer running.Wait()
	defer stop()
	defer close(answers)
	for rounds := uint64(1); rounds <= 3; rounds++ {
		await(t, "the healthy ones have their turn while the others hang", func() bool {
			b.clock.advance(time.Minute)
			b.Nudge()
			return b.Metrics().Done >= rounds*healthy
		})
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	turns := map[string]int{}
	for _, account := range b.turns {
		if strings.HasPrefix(account, "down") {
			turns[account[:len("down000")]]++
		}
	}
	for target, n := range turns {
		if n != 1 {
			t.Errorf("%s had %d turns while it hung", target, n)
		}
	}
	if len(turns) != hanging {
		t.Errorf("%d of %d targets had a turn", len(turns), hanging)
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

// nodes makes nodes over one PostgreSQL. Each has claims until it leaves.
func nodes(t *testing.T) (join func() (db *store.DB, claims *claim.Claims, leave func())) {
	t.Helper()
	server := pgtest.Start(t, pgtest.Fsync())
	url := server.URL(pgtest.Superuser, server.Password(), server.Database(t))
	cipher := storetest.NewCipher("rotation")
	return func() (*store.DB, *claim.Claims, func()) {
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
}

// await waits for something.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not happen: %s", what)
		}
	}
}

// What failed at a target outlasts a moment in which its work was to be another node's, and ends with the hand-over.
func TestFailuresAreOfWhoWorksThere(t *testing.T) {
	join := nodes(t)
	b := &bench{T: t, clock: &clock{}, stays: true, fails: func(string) error { return errors.New("down") }}
	var mine *claim.Claims
	var leave func()
	b.db, mine, leave = join()
	b.Worker = New(Options{Store: b.db, Mounts: func(store.View) ([]Mount, error) { return []Mount{{0, uuid}}, nil }, Rotate: b.rotate, Claims: mine})
	await(t, "one node has everything", func() bool { return mine.Held() == claim.Shards })
	const targets = 16
	name := func(i int) string { return fmt.Sprintf("pg%02d", i) }
	work := func(account string) { // has one more due at each target
		for i := range targets {
			b.add(name(i), name(i)+account)
		}
		added := b.db.Now()
		await(t, "all are due", func() bool { return b.db.Now().Sub(added) > 2*time.Millisecond }) // that is what queues are exact to
		b.work()
	}
	work("a")
	work("b")

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
	await(t, "it has its part", func() bool { return theirs.Held() > 0 })
	if !slices.ContainsFunc(holds, (*claim.Hold).Over) {
		t.Fatal("the other node is to have none of the targets")
	}
	work("c")
	if all := b.Failing(); len(all) == targets {
		t.Errorf("work that is to be another node's is begun: %v", all)
	}
	goes()
	await(t, "that one has gone", func() bool { return mine.Held() == claim.Shards })
	for _, hold := range holds {
		hold.Release()
	}
	await(t, "all is this node's again", func() bool {
		for i := range targets {
			again, ok := mine.Take(claim.Target(uuid, name(i)))
			if !ok {
				return false
			}
			again.Release()
		}
		return true
	})
	work("d")
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

// An account whose failure cannot be recorded, since its engine fails, stays at the head of its queue; those behind it have their turn. It is tried again, less and less often.
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
	turns := 0
	for range 600 { // seconds
		if b.clock.advance(time.Second); b.work() != "[]" {
			turns++
		}
	}
	if turns < 5 || turns > 15 {
		t.Errorf("%d turns in ten minutes", turns)
	}
	b.fails = nil
	b.clock.advance(longestBackoff)
	if b.work(); b.load("a").Version == 0 || len(b.targets) != 0 {
		t.Errorf("once it is mended: %+v, %d targets are remembered", b.load("a"), len(b.targets))
	}
}

// load is an account as it stands.
func (b *bench) load(name string) *Account {
	b.Helper()
	v, err := b.db.View()
	b.must(err)
	defer v.Close()
	a, _, err := Load(v, 0, uuid, name)
	b.must(err)
	return a
}

// Accounts whose failure is never recorded do not have a target probed by them while others are well, whether their rows stay as they are, cannot be read, or have it that
// an attempt was begun.
func TestParkedAccountsDelayNoOther(t *testing.T) {
	for _, row := range []string{"as it is", "damaged", "begun"} {
		b := newBench(t)
		b.stays = true
		if row == "begun" {
			b.Rotate = func(ctx context.Context, mount, account string) error {
				if account != "well" {
					_, err := b.db.Update(ctx, func(v store.View, txn *store.Txn) error {
						a, row, err := Load(v, 0, mount, account)
						if err != nil {
							return err
						}
						a.Retry = b.db.Now().Add(Head)
						return Save(txn, row, a)
					})
					b.must(err)
				}
				return b.rotate(ctx, mount, account)
			}
		}
		b.fails = func(account string) error {
			if account != "well" {
				return errors.New("the engine fails")
			}
			return nil
		}
		for i := range 20 {
			name := fmt.Sprintf("bad%02d", i)
			b.add("pg", name)
			if row == "damaged" {
				var txn store.Txn
				txn.Put(store.Engine, store.MountKey(0, uuid, accountRows, name), []byte("damaged"))
				_, err := b.db.Commit(t.Context(), txn)
				b.must(err)
			}
		}
		tries := map[string]int{}
		wait := func(d time.Duration) {
			for end := b.db.Now().Add(d); b.db.Now().Before(end); {
				b.clock.advance(time.Second)
				for _, account := range strings.Fields(strings.Trim(b.work(), "[]")) {
					tries[account]++
				}
			}
		}
		wait(time.Hour) // until each has failed
		for range 3 {
			b.add("pg", "well")
			before := tries["well"]
			if wait(longest + 2*time.Second); tries["well"] == before {
				t.Errorf("%s: it was not rotated within %s", row, longest)
			}
			wait(10 * time.Minute)
		}
		for name, n := range tries {
			if n < 2 {
				t.Errorf("%s: %s had %d turns", row, name, n)
			}
		}
	}
}

// What becomes due while much is left to be done for what was begun before has its turn soon; and what is left is done, however much becomes due.
func TestWhatIsLeftDelaysNothing(t *testing.T) {
	b := newBench(t)
	const begun = 200
	left := map[string]int{} // steps of each that was begun
	step := func(account string) {
		_, err := b.db.Update(b.Context(), func(v store.View, txn *store.Txn) error {
			a, row, err := Load(v, 0, uuid, account)
			if err != nil {
				return err
			}
			a.Target, a.Pair, a.Version, a.Since = "pg", true, 2, b.db.Now()
			if a.Outgoing, a.OutFrom, a.Over = 1, 1, Acknowledged; left[account] == 0 {
				a.Outgoing, a.OutFrom, a.Over = 0, 0, 0
			}
			a.Due = time.Time{}
			return Save(txn, row, a)
		})
		b.must(err)
	}
	var order []string
	b.Rotate = func(ctx context.Context, mount, account string) error {
		order = append(order, account)
		if strings.HasPrefix(account, "begun") {
			left[account]--
			step(account)
		} else if b.must(b.rotate(ctx, mount, account)); len(order) < 100 { // another becomes due as soon as one is done
			b.add("pg", fmt.Sprintf("due%03d", len(order)))
			b.clock.advance(time.Millisecond)
		}
		return nil
	}
	for i := range begun {
		name := fmt.Sprintf("begun%03d", i)
		left[name] = 3
		step(name)
	}
	b.add("pg", "due000")
	b.work()
	if i := slices.Index(order, "due000"); i < 0 || i > 3 {
		t.Errorf("what became due has turn %d", i)
	}
	if n := len(slices.DeleteFunc(slices.Clone(order[:100]), func(account string) bool { return strings.HasPrefix(account, "due") })); n < 20 || n > 30 {
		t.Errorf("while there was always something due, %d of 100 turns were for what is left to be done", n)
	}
	for name, n := range left {
		if n != 0 {
			t.Errorf("of %s %d steps are left", name, n)
		}
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

// An engine that panics over one secret of which somebody moved costs that hint: the process lives, and other hints are followed.
func TestPanicOverAHint(t *testing.T) {
	b := newBench(t)
	b.Secret = func(_ store.View, _ Mount, path string) (string, error) {
		if path == "bad" {
			panic("no engine is perfect")
		}
		return path, nil
	}
	m := &mount.Entry{UUID: uuid, Path: "db/"}
	for _, name := range []string{"bad", "good"} {
		_, err := b.db.Update(t.Context(), func(v store.View, txn *store.Txn) error {
			a, row, err := Load(v, 0, uuid, name)
			if err != nil {
				return err
			}
			now := b.db.Now()
			a.Target, a.Pair, a.Version, a.Since = name, true, 2, now
			a.Outgoing, a.OutFrom, a.Behind = 1, 1, 1
			a.Looked, a.Look = now.Add(-time.Minute), now.Add(time.Hour)
			if err := Save(txn, row, a); err != nil {
				return err
			}
			_, _, err = lease.Hold(txn, lease.Reading{
				View: v, Mount: m, Now: now, Random: rand.Reader, Holder: lease.Holder{Entity: "e", Instance: "one"}, Renewable: true,
				Value: lease.Value{Path: name, Version: 2, Current: 2, Rotatable: true},
			})
			return err
		})
		b.must(err)
	}
	b.hear()
	if _, err := b.follow(t.Context()); err == nil {
		t.Error("nobody is told of the panic")
	}
	if look := b.load("good").Look; look.After(b.db.Now()) {
		t.Errorf("the other hint is not followed: the next look is at %s", look)
	}
}

// More accounts than one commit makes due are all proven after a copy is resumed, but for one whose row is damaged.
func TestProveAll(t *testing.T) {
	b := newBench(t)
	var names []string
	for i := range 2*some + 1 {
		names = append(names, fmt.Sprintf("%03d", i))
	}
	b.add("pg", names...)
	b.work()
	_, err := b.db.Update(t.Context(), func(_ store.View, txn *store.Txn) error {
		ProveAll(txn, b.db.Now())
		txn.Put(store.Engine, store.MountKey(0, uuid, accountRows, "000x"), []byte("damaged"))
		return nil
	})
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
	if proven != len(names) || due != 1 { // which is damaged
		t.Errorf("%d of %d are to be proven, %d are overdue", proven, len(names), due)
	}
	if row, err := v.Get(resumed); err != nil || row.Exists() {
		t.Error("they are made due for ever")
	}
}

// An account leaves the place in its queue that it had, whatever fraction of a second that was: a place that nobody has any more would be come to for ever.
func TestPlacesAreGivenUp(t *testing.T) {
	b := newBench(t)
	for i := range 2000 {
		at := t0.Add(time.Duration(i)*time.Hour + time.Duration(i)*7*time.Millisecond)
		for _, due := range []time.Time{at, at.Add(time.Minute)} {
			_, err := b.db.Update(b.Context(), func(v store.View, txn *store.Txn) error {
				a, row, err := Load(v, 0, uuid, "a")
				if err != nil {
					return err
				}
				a.Target, a.Due = "pg", due
				return Save(txn, row, a)
			})
			b.must(err)
		}
	}
	if n := b.places(); n != 1 {
		t.Errorf("an account stands at %d places", n)
	}
}

// places is how many there are in the queues.
func (b *bench) places() (n int) {
	b.Helper()
	v, err := b.db.View()
	b.must(err)
	defer v.Close()
	prefix := queuePrefix(0, uuid)
	for _, err := range v.Scan(store.Engine, prefix, store.PrefixEnd(prefix)) {
		b.must(err)
		n++
	}
	return n
}

// A place that is damaged keeps nobody else from having a turn, at that target or another.
func TestDamagedPlace(t *testing.T) {
	b := newBench(t)
	b.add("pg", "a", "b")
	b.add("zz", "c")
	var txn store.Txn
	for _, name := range []string{"no place", "pg\x00\x00"} {
		txn.Put(store.Engine, queuePrefix(0, uuid)+name, nil)
	}
	_, err := b.db.Commit(t.Context(), txn)
	b.must(err)
	b.work()
	if n := b.Metrics().Done; n != 3 {
		t.Errorf("%d of 3 had a turn", n)
	}
}

// What an earlier version left in a queue is taken away; and an account with which there is nothing to do, though it is due, is not come to again at once.
func TestStrayPlaces(t *testing.T) {
	b := newBench(t)
	b.add("pg", "a", "b")
	b.work()
	stray := func(name string) string {
		return queuePrefix(0, uuid) + "pg\x00" + store.TimeKey(b.db.Now()) + name
	}
	var txn store.Txn
	txn.Put(store.Engine, stray("a"), nil)
	txn.Put(store.Engine, stray("gone"), nil)
	_, err := b.db.Commit(t.Context(), txn)
	b.must(err)
	idle := true
	b.Rotate = func(ctx context.Context, mount, account string) error {
		if idle {
			b.turns = append(b.turns, account)
			return nil
		}
		return b.rotate(ctx, mount, account)
	}
	if got := b.work(); got != "[a gone]" || b.places() != 2 {
		t.Errorf("turns %s, %d places", got, b.places())
	}
	if got := b.work(); got != "[]" {
		t.Errorf("turns %s at places that are gone", got)
	}
	b.clock.advance(time.Hour)
	for len(b.nudge) > 0 {
		<-b.nudge
	}
	if got := b.work(); got != "[a b]" || len(b.nudge) > 0 {
		t.Errorf("turns %s; looked at again at once: %v", got, len(b.nudge) > 0)
	}
	idle = false
	b.clock.advance(time.Second)
	if got := b.work(); got != "[a b]" || len(b.nudge) == 0 {
		t.Errorf("turns %s", got)
	}
}

// Whoever acknowledges at one node is noticed by the one whose work the account is. A holder that reads anew is not looked for, nor is one of an account that
// was looked at a moment ago.
func TestMovesAreHeardOf(t *testing.T) {
	join := nodes(t)
	type node struct {
		*Worker
		db *store.DB
	}
	var all []node
	var claims []*claim.Claims
	m := &mount.Entry{UUID: uuid, Path: "db/"}
	for range 2 {
		db, c, _ := join()
		w := New(Options{
			Store: db, Mounts: func(store.View) ([]Mount, error) { return []Mount{{0, uuid}}, nil }, Claims: c, Poll: time.Hour,
			Rotate: func(context.Context, string, string) error { return nil },
			Secret: func(_ store.View, _ Mount, path string) (string, error) { return path, nil },
		})
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { w.Run(ctx) })
		running.Go(func() {
			for h, err := range db.Watch(ctx, db.Head().Seq+1) {
				if err != nil {
					return
				}
				w.Heard(&h)
			}
		})
		t.Cleanup(func() { cancel(); running.Wait() })
		all, claims = append(all, node{w, db}), append(claims, c)
	}
	await(t, "both nodes have their part", func() bool { return claims[0].Held() == claim.Shards/2 && claims[1].Held() == claim.Shards/2 })
	update := func(n node, do func(v store.View, txn *store.Txn, now time.Time) error) {
		t.Helper()
		if _, err := n.db.Update(t.Context(), func(v store.View, txn *store.Txn) error { return do(v, txn, n.db.Now()) }); err != nil {
			t.Fatal(err)
		}
	}
	load := func(n node, name string) *Account {
		t.Helper()
		v, err := n.db.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		a, _, err := Load(v, 0, uuid, name)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	read := func(n node, name, instance string, version uint64) {
		update(n, func(v store.View, txn *store.Txn, now time.Time) error {
			_, _, err := lease.Hold(txn, lease.Reading{
				View: v, Mount: m, Now: now, Random: rand.Reader, Holder: lease.Holder{Entity: "e", Instance: instance}, Renewable: true,
				Value: lease.Value{Path: name, Version: version, Current: version, Rotatable: true},
			})
			return err
		})
	}
	acknowledge := func(n node, name string) {
		update(n, func(v store.View, txn *store.Txn, now time.Time) error {
			users, err := lease.Users(v, m, name)
			if err != nil {
				return err
			}
			l, row, err := lease.Get(v, &lease.Lease{ID: users[0].Lease, Mount: uuid})
			if err != nil {
				return err
			}
			return lease.Acknowledge(v, txn, row, l, now)
		})
	}
	wait := func(name string, looked time.Duration) (look time.Time) {
		update(all[0], func(v store.View, txn *store.Txn, now time.Time) error {
			a, row, err := Load(v, 0, uuid, name)
			if err != nil {
				return err
			}
			a.Target, a.Pair, a.Version, a.Since = name, true, 2, now
			a.Outgoing, a.OutFrom, a.Behind = 1, 1, 1
			a.Looked, a.Look = now.Add(-looked), now.Add(time.Hour)
			look = a.Look
			return Save(txn, row, a)
		})
		return look
	}
	for i := range 8 { // of which each node has some
		name := fmt.Sprintf("app%d", i)
		n := all[i%2]
		read(n, name, "one", 1)
		look := wait(name, time.Minute)
		read(n, name, "one", 2)
		if i == 0 {
			read(n, name, "new", 2)
			other := "other"
			read(n, other, "one", 1)
			wait(other, time.Minute)
			read(n, other, "one", 2)
			acknowledge(n, other) // by which what was before it has been heard
			await(t, "another account is looked at", func() bool { return load(n, other).Look.Before(look) })
			if a := load(n, name); a.Look.Before(look.Add(-time.Second)) {
				t.Error("it is looked at though nobody has moved")
			}
			users := func() int {
				v, err := n.db.View()
				if err != nil {
					t.Fatal(err)
				}
				defer v.Close()
				all, err := lease.Users(v, m, name)
				if err != nil {
					t.Fatal(err)
				}
				return len(load(n, name).Holding(all))
			}
			if got := users(); got != 1 {
				t.Fatalf("%d hold it", got)
			}
			continue
		}
		acknowledge(n, name)
		await(t, "whoever has moved is looked for", func() bool { return load(n, name).Look.Before(look) })
	}
}
