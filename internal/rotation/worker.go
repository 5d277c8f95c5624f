package rotation

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Store is what a Worker works on; *store.DB is one.
type Store interface {
	View() (store.View, error)
	Update(ctx context.Context, fn func(store.View, *store.Txn) error) (store.Receipt, error)
	Now() time.Time    // lease time
	ClockAlarm() error // why lease time should not be acted upon; nil: it may
}

// Mount is one that has accounts.
type Mount struct {
	Namespace uint32
	UUID      string
}

// Options of a Worker. Store, Mounts and Rotate are needed; the rest has defaults.
type Options struct {
	Store  Store
	Mounts func(store.View) ([]Mount, error) // whose queues are worked off
	// Rotate does what is due with an account, and records it, failures too: afterwards the account stands elsewhere in its queue.
	// It obeys ctx and is called concurrently for different targets, and for one now and then by people.
	Rotate func(ctx context.Context, mount, account string) error
	// Secret is the account whose password is what readers of a path within a mount are shown; "": there is none. By that whoever moves is noticed at once. nil:
	// at the next look.
	Secret func(v store.View, m Mount, path string) (account string, err error)
	Fenced func() bool   // while true nothing is done: the store is a copy. nil: never
	Random io.Reader     // jitter; nil: crypto/rand
	Log    *slog.Logger  // nil: discarded
	Poll   time.Duration // how often it looks for what became due. 0: 1 s
	Claims *claim.Claims // whose targets are this node's work; nil: all
}

// Worker does what is due, one account after the other at each target, all targets at a time. It keeps nothing in memory but who is busy: work
// is rows, sought in order of time. A target that fails is left alone for a while, and tried again for ever; it delays no other.
type Worker struct {
	Options
	done, failed atomic.Uint64
	nudge        chan struct{}
	hinted       chan struct{}

	mu      sync.Mutex
	targets map[target]*rest
	hints   map[string]struct{} // of secrets: names of rows, see lease.Used
	all     sync.WaitGroup
}

type target struct {
	Mount
	name string
}

// rest is how a target stands: who works there, and how long it is left alone.
type rest struct {
	busy     bool
	failures uint32 // accounts that failed, one after the other
	until    time.Time
}

const (
	trips   = 3                // failures, one after the other, after which a target is probed only
	longest = 60 * time.Second // between probes
)

// New makes a Worker. It starts nothing.
func New(o Options) *Worker {
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Fenced == nil {
		o.Fenced = func() bool { return false }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Poll == 0 {
		o.Poll = time.Second
	}
	return &Worker{Options: o, targets: map[target]*rest{}, hints: map[string]struct{}{}, nudge: make(chan struct{}, 1), hinted: make(chan struct{}, 1)}
}

// Nudge tells the Worker that something may be due. It never blocks.
func (w *Worker) Nudge() { signal(w.nudge) }

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Heard takes notice of a commit, whatever node made it: what it put into a queue is looked at, and so is who moved.
func (w *Worker) Heard(h *audit.Header) {
	for i := range h.Touched {
		t := &h.Touched[i]
		switch store.Table(t.Table) {
		case store.LeaseIdx:
			w.note(t.Name)
		case store.Engine:
			if _, _, rest := store.SplitMountKey(t.Name); !t.Deleted && strings.HasPrefix(rest, queueRows) {
				w.Nudge()
			}
		}
	}
}

// Metrics count what a Worker did since it was made.
type Metrics struct {
	Done   uint64 // rotations, proofs and looks that succeeded
	Failed uint64
}

// Metrics returns the counters.
func (w *Worker) Metrics() Metrics { return Metrics{Done: w.done.Load(), Failed: w.failed.Load()} }

// Target is a target of a mount.
type Target struct {
	Mount string // UUID
	Name  string
}

// Failing are the targets that this Worker only probes, since they failed several times in a row; one that is another node's by now is not.
func (w *Worker) Failing() []Target {
	now := w.Store.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Target
	for t, r := range w.targets {
		if r.failures >= trips && (r.busy || now.Before(r.until.Add(longest))) && w.ours(t) { // else nothing is due there any more
			all = append(all, Target{t.UUID, t.name})
		}
	}
	return all
}

// ours reports whether a target is this node's work.
func (w *Worker) ours(t target) bool { return w.Claims.Holds(claim.Target(t.UUID, t.name)) }

// forget drops what is known of targets that are another node's by now: when one comes back it may stand otherwise.
func (w *Worker) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for t, r := range w.targets {
		if !r.busy && !w.ours(t) {
			delete(w.targets, t)
		}
	}
}

// Run works until ctx ends, and returns when nothing of it is left running.
func (w *Worker) Run(ctx context.Context) {
	defer w.all.Wait()
	w.all.Go(func() { w.heed(ctx) })
	for {
		next, err := w.round(ctx)
		if err != nil && ctx.Err() == nil {
			w.Log.Error("looking for rotations failed; it is tried again", "error", err)
		}
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-w.nudge:
		}
		if t.Stop(); ctx.Err() != nil {
			return
		}
	}
}

// round starts work at each target where something is due. It says when to look again: Poll from now, or when something is due before.
func (w *Worker) round(ctx context.Context) (next time.Duration, err error) {
	next = w.Poll
	w.forget()
	if w.Fenced() || w.Store.ClockAlarm() != nil {
		return next, nil
	}
	view, err := w.Store.View()
	if err != nil {
		return next, err
	}
	defer view.Close()
	mounts, err := w.Mounts(view)
	if err != nil {
		return next, err
	}
	again, err := view.Get(resumed)
	if err != nil {
		return next, err
	}
	if again.Exists() {
		return next, w.recheck(ctx, mounts)
	}
	now := w.Store.Now()
	for _, m := range mounts {
		prefix := queuePrefix(m.Namespace, m.UUID)
		for from := prefix; ; {
			q, ok, err := first(view, from, store.PrefixEnd(prefix), len(prefix))
			if err != nil {
				return next, err
			}
			if !ok {
				break
			}
			if !q.at.After(now) {
				w.wake(ctx, target{m, q.target}, now)
			} else {
				next = min(next, q.at.Sub(now))
			}
			from = store.PrefixEnd(prefix + q.target + "\x00")
		}
	}
	return next, nil
}

// queued is a row of a queue.
type queued struct {
	row, target, account string
	at                   time.Time
	before               uint64 // version of the account's row; 0: there is none
}

// first is the first row of a queue at or after from.
func first(v store.View, from, to string, base int) (q queued, ok bool, err error) {
	for row, err := range v.Scan(store.Engine, from, to) {
		if err != nil {
			return q, false, err
		}
		target, rest, found := strings.Cut(row.Name[base:], "\x00")
		at, account, ok := store.ParseTimeKey(rest)
		if !found || !ok {
			return q, false, &store.Damage{Key: row.Key, Why: "it is no place in a queue"}
		}
		return queued{row: row.Name, target: target, account: account, at: at}, true, nil
	}
	return q, false, nil
}

// wake starts work at a target, unless somebody works there, it is left alone, or it is another node's.
func (w *Worker) wake(ctx context.Context, t target, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.targets[t]
	if r != nil && (r.busy || now.Before(r.until)) {
		return
	}
	hold, ok := w.Claims.Take(claim.Target(t.UUID, t.name))
	if !ok {
		return
	}
	if r == nil {
		r = &rest{}
		w.targets[t] = r
	}
	r.busy = true
	w.all.Go(func() {
		defer hold.Release()
		ctx, cancel := hold.Context(ctx)
		defer cancel()
		did := w.drain(ctx, hold, t)
		w.mu.Lock()
		defer w.mu.Unlock()
		if r.busy = false; r.failures == 0 {
			delete(w.targets, t)
		}
		if did {
			w.Nudge() // what was done may have made the next step due, in front of where it looked
		}
	})
}

// drain does what is due at a target, in order, until nothing is or the target fails. An account that stays where it is, since not even
// its failure could be recorded, keeps those behind it waiting no longer than any other. It reports whether anything was done.
func (w *Worker) drain(ctx context.Context, hold *claim.Hold, t target) (did bool) {
	for from := ""; ctx.Err() == nil && !hold.Over(); {
		q, err := w.next(t, from)
		if err != nil {
			w.Log.Error("looking for rotations failed; it is tried again", "target", t.name, "error", err)
			return did
		}
		if q.row == "" {
			return did
		}
		ok, more := w.do(ctx, t, q.account)
		if ok {
			moved, err := w.settled(ctx, t, q)
			if err != nil {
				w.Log.Error("a place in the queue of rotations cannot be given up; it is tried again", "account", q.account, "target", t.name, "error", err)
			}
			did = did || moved
		}
		if !more {
			return did
		}
		from = q.row + "\x00"
	}
	return did
}

// next is the row of the target's queue, at or after from, whose turn it is; none: the zero value. That is the first one, if it is due; but a target that failed is
// probed by an account that did not fail itself when it was tried last, if one is due: however many of the others are gone at the target, those that are there
// do not wait behind them, once each of those has failed.
func (w *Worker) next(t target, from string) (queued, error) {
	view, err := w.Store.View()
	if err != nil {
		return queued{}, err
	}
	defer view.Close()
	prefix := queuePrefix(t.Namespace, t.UUID)
	own := prefix + t.name + "\x00"
	due := func(from string) (queued, bool, error) {
		q, ok, err := first(view, max(own, from), store.PrefixEnd(own), len(prefix))
		return q, ok && !q.at.After(w.Store.Now()), err
	}
	q, ok, err := due(from)
	if err != nil || !ok {
		return queued{}, err
	}
	if w.probed(t) {
		for at := q; ok; at, ok, err = due(at.row + "\x00") {
			if a, _, err := Load(view, t.Namespace, t.UUID, at.account); err == nil && a.Attempts == 0 {
				q = at
				break
			}
		}
		if err != nil {
			return queued{}, err
		}
	}
	row, err := view.Get(accountKey(store.Engine, t.Namespace, t.UUID, q.account))
	q.before = row.Version
	return q, err
}

// probed reports whether so many accounts failed at a target, one after the other, that the next is a probe.
func (w *Worker) probed(t target) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.targets[t]
	return r != nil && r.failures >= trips
}

// settled reports whether an account that had its turn stands otherwise than before. If it does not, a place of which its row does not know is taken away: versions
// that knew times less exactly left some, and somebody comes to them again and again.
func (w *Worker) settled(ctx context.Context, t target, q queued) (moved bool, err error) {
	_, err = w.Store.Update(ctx, func(v store.View, txn *store.Txn) error {
		a, row, err := Load(v, t.Namespace, t.UUID, q.account)
		if err != nil {
			return err
		}
		if moved = row.Version != q.before; moved || !a.Next.IsZero() && a.queueName(t.Namespace, t.UUID) == q.row {
			return nil
		}
		claim.Fence(ctx, txn)
		txn.Delete(store.Engine, q.row)
		return nil
	})
	return moved, err
}

// do has one account rotated, and reports whether that was done, and whether to go on at this target.
func (w *Worker) do(ctx context.Context, t target, account string) (ok, more bool) {
	err := w.call(ctx, t, account)
	if ctx.Err() != nil {
		return false, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.targets[t]
	if err == nil {
		w.done.Add(1)
		r.failures = 0
		return true, true
	}
	w.failed.Add(1)
	r.failures++
	w.Log.Error("a rotation failed, it is tried again", "account", account, "target", t.name, "failures", r.failures, "error", err)
	if r.failures < trips {
		return false, true
	}
	r.until = w.Store.Now().Add(min(longest, Backoff(r.failures, w.Jitter())))
	return false, false
}

func (w *Worker) call(ctx context.Context, t target, account string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			w.Log.Error("an engine's rotation panicked", "account", account, "panic", p, "stack", string(debug.Stack()))
			err = errors.New("the engine panicked")
		}
	}()
	return w.Rotate(ctx, t.UUID, account)
}

// Jitter is a random number in [0, 1).
func (w *Worker) Jitter() float64 { return Chance(w.Random) }

// Chance draws a number in [0, 1). Without randomness it is 0.5: nothing of what it is for depends on it.
func Chance(random io.Reader) float64 {
	var b [8]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return 0.5
	}
	return float64(binary.BigEndian.Uint64(b[:])>>11) / (1 << 53)
}

// resumed is the row that asks to prove every account: this was a copy, and what it knows may be old.
var resumed = store.Key{Table: store.Config, Name: store.MountKey(lessor.RootNamespace, "", "rotation/prove")}

// ProveAll asks the Worker to try every password in force.
func ProveAll(txn *store.Txn, now time.Time) {
	txn.Put(resumed.Table, resumed.Name, []byte(now.UTC().Format(time.RFC3339)))
}

// some is how many accounts one commit makes due.
const some = 100

// recheck makes every account due to be proven, and then takes the row away that asks for it.
func (w *Worker) recheck(ctx context.Context, mounts []Mount) error {
	hold, ok := w.Claims.Take("rotation")
	if !ok {
		return nil
	}
	defer hold.Release()
	ctx, cancel := hold.Context(ctx)
	defer cancel()
	now := w.Store.Now()
	for _, m := range mounts {
		base := store.MountKey(m.Namespace, m.UUID, accountRows)
		for from := base; from != ""; {
			next := ""
			if _, err := w.Store.Update(ctx, func(v store.View, txn *store.Txn) (err error) {
				claim.Fence(ctx, txn)
				next, err = proveSome(v, txn, m, base, from, now)
				return err
			}); err != nil {
				return fmt.Errorf("making accounts due to be proven: %w", err)
			}
			from = next
		}
	}
	_, err := w.Store.Update(ctx, func(v store.View, txn *store.Txn) error {
		claim.Fence(ctx, txn)
		txn.Delete(resumed.Table, resumed.Name)
		return nil
	})
	return err
}

// proveSome makes some accounts due, and returns where to go on; "" at the end. What it fills is no act at a target: that is recorded when it comes.
func proveSome(v store.View, txn *store.Txn, m Mount, base, from string, now time.Time) (string, error) {
	n := 0
	for row, err := range v.Scan(store.Engine, from, store.PrefixEnd(base)) {
		if err != nil {
			return from, err
		}
		if n++; n > some {
			return row.Name, nil
		}
		a, row, err := Load(v, m.Namespace, m.UUID, row.Name[len(base):])
		if err != nil {
			return from, err
		}
		a.Recovered(now)
		if err := Save(txn, row, a); err != nil {
			return from, err
		}
	}
	return "", nil
}

// Accounts yields those of a mount, in the order of their names, until yield says that it is enough.
func Accounts(v store.View, m Mount, yield func(*Account) (bool, error)) error {
	base := store.MountKey(m.Namespace, m.UUID, accountRows)
	for row, err := range v.Scan(store.Engine, base, store.PrefixEnd(base)) {
		if err != nil {
			return err
		}
		a, _, err := Load(v, m.Namespace, m.UUID, row.Name[len(base):])
		if err != nil {
			return err
		}
		if more, err := yield(a); err != nil || !more {
			return err
		}
	}
	return nil
}

// Overdue lists the accounts of the mounts whose rotation fails, or is late by more than grace, at most limit.
func Overdue(v store.View, mounts []Mount, now time.Time, grace time.Duration, limit int) (all []*Account, err error) {
	for _, m := range mounts {
		err := Accounts(v, m, func(a *Account) (bool, error) {
			if a.Overdue(now, grace) {
				all = append(all, a)
			}
			return len(all) < limit, nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
