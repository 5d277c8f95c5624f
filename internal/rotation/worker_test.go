package rotation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
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
	b.must(b.round(b.Context()))
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
