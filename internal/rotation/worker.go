package rotation

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
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
	agenda  agenda
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
	parked   map[string]parked // accounts that stood after their turn as they stood before
}

// parked is an account that is left alone for a while, though its row does not say so: its failure could not be recorded, since its rows are damaged or its
// engine fails, or there was nothing to do with it.
type parked struct {
	version uint64 // of the account's row after its turn, at which this is so
	turns   uint32 // one after the other
	until   time.Time
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

// Nudge tells the Worker that something may be due, anywhere. It never blocks.
func (w *Worker) Nudge() {
	w.everything()
	signal(w.nudge)
}

// everything has the next round look at every target.
func (w *Worker) everything() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.agenda.whole = true
}

// touched has a target looked at.
func (w *Worker) touched(t target) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.agenda.touch(t)
	signal(w.nudge)
}

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
			namespace, uuid, rest := store.SplitMountKey(t.Name)
			if place, ok := strings.CutPrefix(rest, queueRows); ok {
				name, _, _ := strings.Cut(place, "\x00")
				w.touched(target{Mount{namespace, uuid}, name})
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
	poll := time.NewTicker(w.Poll)
	defer poll.Stop()
	for w.everything(); ; {
		next, err := w.round(ctx)
		if err != nil && ctx.Err() == nil {
			w.Log.Error("looking for rotations failed; it is tried again", "error", err)
		}
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-w.nudge:
		case <-poll.C:
			w.everything()
		}
		if t.Stop(); ctx.Err() != nil {
			return
		}
	}
}

// round starts work at each target where something is due, of those on the agenda. It says when to look again: Poll from now, or when something is due before.
func (w *Worker) round(ctx context.Context) (next time.Duration, err error) {
	w.forget()
	now := w.Store.Now()
	if w.barred() {
		return w.Poll, nil
	}
	w.mu.Lock()
	whole, some := w.agenda.take(now)
	w.mu.Unlock()
	view, err := w.Store.View() // what it shows was not touched since, or is on the agenda again
	if err != nil {
		return w.Poll, err
	}
	defer view.Close()
	mounts, err := w.Mounts(view)
	if err != nil {
		return w.Poll, err
	}
	again, err := view.Get(resumed)
	if err != nil {
		return w.Poll, err
	}
	if again.Exists() {
		return w.Poll, w.recheck(ctx, mounts)
	}
	if whole {
		for _, m := range mounts {
			if err := w.survey(ctx, view, m, now); err != nil {
				return w.Poll, err
			}
		}
	}
	for _, t := range some {
		if !slices.Contains(mounts, t.Mount) {
			continue
		}
		prefix := queuePrefix(t.Namespace, t.UUID)
		own := prefix + t.name + "\x00"
		q, ok, err := first(view, own, store.PrefixEnd(own), len(prefix), ignore)
		if err != nil {
			return w.Poll, err
		}
		if ok {
			w.begin(ctx, t, q.at, now)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.agenda.next(now, w.Poll), nil
}

// barred reports whether nothing may be done by itself: in a restored copy that nobody has resumed, and while the clock is not to be trusted. A time that was read
// before it was asked is to be trusted if it says no.
func (w *Worker) barred() bool { return w.Fenced() || w.Store.ClockAlarm() != nil }

// survey starts work at each target of a mount where something is due.
func (w *Worker) survey(ctx context.Context, view store.View, m Mount, now time.Time) error {
	prefix := queuePrefix(m.Namespace, m.UUID)
	for from := prefix; ; {
		q, ok, err := first(view, from, store.PrefixEnd(prefix), len(prefix), func(damage error) {
			w.Log.Error("a place in the queue of rotations is damaged: whoever stands there waits until it is changed", "error", damage)
		})
		if err != nil || !ok {
			return err
		}
		w.begin(ctx, target{m, q.target}, q.at, now)
		from = store.PrefixEnd(prefix + q.target + "\x00")
	}
}

// begin starts work at a target whose queue begins with a time, or notes when it is due.
func (w *Worker) begin(ctx context.Context, t target, at, now time.Time) {
	if !at.After(now) {
		w.wake(ctx, t, now)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.agenda.put(t, at)
}

// queued is a row of a queue.
type queued struct {
	row, target, account string
	at                   time.Time
	part                 part
	before               uint64    // version of the account's row; 0: there is none
	attempts             uint32    // of the account
	parked               uint32    // turns in which nothing became of it
	free                 time.Time // since when it may have its turn
}

// first is the first row of a queue at or after from. Those that are damaged are passed over; tell hears of them.
func first(v store.View, from, to string, base int, tell func(damage error)) (queued, bool, error) {
	for from != "" {
		start := from
		from = ""
		for row, err := range v.Scan(store.Engine, start, to) {
			q := queued{row: row.Name}
			if err == nil {
				q.target, q.account, q.at, err = place(row, base)
			}
			if err == nil {
				return q, true, nil
			}
			next, ok := behind(err, start)
			if !ok {
				return q, false, err
			}
			tell(err)
			from = next
			break // the scan ends here
		}
	}
	return queued{}, false, nil
}

func ignore(error) {}

// behind is where a scan of store.Engine from a name on that met a damaged row is to go on. ok: that is what err says.
func behind(err error, start string) (next string, ok bool) {
	d, ok := errors.AsType[*store.Damage](err)
	if !ok || d.Key.Table != store.Engine || d.Key.Name < start {
		return "", false
	}
	return d.Key.Name + "\x00", true
}

// place takes the name of a row of a queue apart, behind base.
func place(row store.Row, base int) (target, account string, at time.Time, err error) {
	target, rest, found := strings.Cut(row.Name[base:], "\x00")
	at, account, ok := store.ParseTimeKey(rest)
	if !found || !ok {
		return "", "", at, &store.Damage{Key: row.Key, Why: "it is no place in a queue"}
	}
	return target, account, at, nil
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
		w.unpark(t)
		w.mu.Lock()
		defer w.mu.Unlock()
		if r.busy = false; r.failures == 0 && len(r.parked) == 0 {
			delete(w.targets, t)
		}
		if w.agenda.touch(t); did {
			signal(w.nudge) // something may have become due since it looked
		}
	})
}

// part is one of the two that a queue has. Steps that follow what is under way have no time, and stand in front.
type part uint8

const (
	due part = iota
	following
)

// orders are in which part of a queue the next turn is looked for first, turn by turn. What is to begin comes before what is left to be done, so that however much
// was begun a moment ago, what becomes due now is in force soon; but one turn in four is for that, however much is due.
var orders = [...][2]part{{due, following}, {due, following}, {due, following}, {following, due}}

// afresh is after how many turns what is due is looked for from the beginning again: somebody may have come there meanwhile, whose time had come long ago, and the end of a
// queue may be far.
const afresh = 64

// drain does what is due at a target until nothing is or the target fails. An account that stays where it is, since not even its failure could be
// recorded, is parked. It reports whether anything was done.
func (w *Worker) drain(ctx context.Context, hold *claim.Hold, t target) (did bool) {
	var from [2]string // in each part, behind the place whose turn it was last
	for turn := 0; ctx.Err() == nil && !hold.Over(); turn++ {
		if turn%afresh == 0 {
			from[due] = ""
		}
		q, err := w.next(t, orders[turn%len(orders)], from)
		if err != nil {
			w.Log.Error("looking for rotations failed; it is tried again", "target", t.name, "error", err)
			return did
		}
		if q.row == "" || w.barred() {
			return did
		}
		ok, more := w.do(ctx, t, q.account)
		switch {
		case ok:
			moved, stays, err := w.settled(ctx, t, q)
			if err != nil {
				w.Log.Error("a place in the queue of rotations cannot be given up; it is tried again", "account", q.account, "target", t.name, "error", err)
			}
			did = did || moved
			w.park(t, q, stays)
		case ctx.Err() == nil:
			var failed bool
			failed, q.before = w.recorded(t, q)
			w.park(t, q, !failed)
		}
		if !more {
			return did
		}
		from[q.part] = q.row + "\x00"
	}
	return did
}

// next is the row of the target's queue whose turn it is; none: the zero value. It is sought in the parts in the given order, in each from a row on, so that a store
// need not pass over what was deleted before it a moment ago; of what follows then from the beginning. It is due, and not parked. But a target that failed is probed by an
// account that did not fail itself when it was tried last, if one is due, else by the one that has waited longest: however many of the others are gone at the
// target, those that are there do not wait behind them, once each of those has failed.
func (w *Worker) next(t target, order [2]part, from [2]string) (queued, error) {
	view, err := w.Store.View()
	if err != nil {
		return queued{}, err
	}
	defer view.Close()
	probed := w.probed(t)
	var spare queued
	for _, p := range order {
		starts := []string{from[p]}
		if p == following && from[p] != "" {
			starts = append(starts, "")
		}
		for _, start := range starts {
			for q, err := range w.waiting(view, t, p, start) {
				switch {
				case err != nil:
					return queued{}, err
				case !probed || q.attempts == 0 && q.parked == 0:
					return q, nil
				case spare.row == "" || q.free.Before(spare.free):
					spare = q
				}
			}
		}
	}
	return spare, nil
}

// waiting yields what is due in one part of a target's queue, from a row on, in order, but for what is parked.
func (w *Worker) waiting(v store.View, t target, p part, from string) iter.Seq2[queued, error] {
	prefix := queuePrefix(t.Namespace, t.UUID)
	own := prefix + t.name + "\x00"
	end := own + store.TimeKey(immediately.Add(time.Millisecond))
	from = max(own, from)
	if p == due {
		from, end = max(end, from), store.PrefixEnd(own)
	}
	now := w.Store.Now()
	return func(yield func(queued, error) bool) {
		for {
			q, ok, err := first(v, from, end, len(prefix), ignore)
			if err != nil {
				yield(q, err)
				return
			}
			if !ok || q.at.After(now) {
				return
			}
			from, q.part = q.row+"\x00", p
			a, row, err := Load(v, t.Namespace, t.UUID, q.account)
			if q.before = row.Version; err == nil { // else whoever works on it says so
				q.attempts = a.Attempts
			}
			until, turns := w.left(t, q)
			if now.Before(until) {
				continue
			}
			q.parked, q.free = turns, later(q.at, until)
			if !yield(q, nil) {
				return
			}
		}
	}
}

// left is until when an account is left alone, and how many turns it has had in which nothing became of it.
func (w *Worker) left(t target, q queued) (until time.Time, turns uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.targets[t]; r != nil {
		if p := r.parked[q.account]; p.version == q.before {
			return p.until, p.turns
		}
	}
	return time.Time{}, 0
}

// recorded reports whether a failure is on record with its account, which waits by that, and what version its row has by now.
func (w *Worker) recorded(t target, q queued) (yes bool, version uint64) {
	view, err := w.Store.View()
	if err != nil {
		return false, q.before
	}
	defer view.Close()
	a, row, err := Load(view, t.Namespace, t.UUID, q.account)
	return err == nil && (!row.Exists() && q.before != 0 || a.Attempts > q.attempts), row.Version
}

// park has an account left alone for a while if it stays as it was, longer each time.
func (w *Worker) park(t target, q queued, stays bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.targets[t]
	if !stays {
		delete(r.parked, q.account)
		return
	}
	if r.parked == nil {
		r.parked = map[string]parked{}
	}
	turns := r.parked[q.account].turns + 1
	r.parked[q.account] = parked{q.before, turns, w.Store.Now().Add(Backoff(turns, w.Jitter()))}
}

// unpark forgets the parked accounts of a target whose rows are others by now, or gone.
func (w *Worker) unpark(t target) {
	w.mu.Lock()
	all := maps.Clone(w.targets[t].parked)
	w.mu.Unlock()
	if len(all) == 0 {
		return
	}
	view, err := w.Store.View()
	if err != nil {
		return
	}
	defer view.Close()
	for account, p := range all {
		if row, err := view.Get(accountKey(store.Engine, t.Namespace, t.UUID, account)); err == nil && (!row.Exists() || row.Version != p.version) {
			w.park(t, queued{account: account}, false)
		}
	}
}

// probed reports whether so many accounts failed at a target, one after the other, that the next is a probe.
func (w *Worker) probed(t target) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.targets[t]
	return r != nil && r.failures >= trips
}

// settled reports whether an account that had its turn stands otherwise than before, or stays at the place where it was. If neither, a place of which its row does not
// know is taken away: versions that knew times less exactly left some, and somebody comes to them again and again.
func (w *Worker) settled(ctx context.Context, t target, q queued) (moved, stays bool, err error) {
	_, err = w.Store.Update(ctx, func(v store.View, txn *store.Txn) error {
		a, row, err := Load(v, t.Namespace, t.UUID, q.account)
		if err != nil {
			return err
		}
		moved = row.Version != q.before
		if stays = !moved && !a.Next.IsZero() && a.queueName(t.Namespace, t.UUID) == q.row; moved || stays {
			return nil
		}
		claim.Fence(ctx, txn)
		txn.Delete(store.Engine, q.row)
		return nil
	})
	return moved, stays || err != nil, err
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
	defer w.caught("a rotation", account, &err)
	return w.Rotate(ctx, t.UUID, account)
}

// caught, deferred, makes an error of an engine's panic, and tells it with what was to be done about what.
func (w *Worker) caught(what, name string, err *error) {
	if p := recover(); p != nil {
		w.Log.Error("an engine panicked", "at", what, "of", name, "panic", p, "stack", string(debug.Stack()))
		*err = errors.New("the engine panicked")
	}
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

// recheck makes every account due to be proven, and then takes the row away that asks for it. One whose row is damaged is left out, and told of: the others do not
// wait for whoever mends it.
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
			var damaged error
			if _, err := w.Store.Update(ctx, func(v store.View, txn *store.Txn) (err error) {
				claim.Fence(ctx, txn)
				next, damaged, err = proveSome(v, txn, m, base, from, now)
				return err
			}); err != nil {
				return fmt.Errorf("making accounts due to be proven: %w", err)
			}
			if damaged != nil {
				w.Log.Error("the password of an account is not proven after the restored copy was resumed", "error", damaged)
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

// proveSome makes some accounts due, up to one whose row is damaged, and returns where to go on; "" at the end. What it fills is no act at a target: that is
// recorded when it comes.
func proveSome(v store.View, txn *store.Txn, m Mount, base, from string, now time.Time) (next string, damaged, err error) {
	n := 0
	for row, err := range v.Scan(store.Engine, from, store.PrefixEnd(base)) {
		if n++; n > some && err == nil {
			return row.Name, nil, nil
		}
		a := &Account{}
		if err == nil {
			a, row, err = Load(v, m.Namespace, m.UUID, row.Name[len(base):])
		}
		if next, ok := behind(err, from); ok {
			return next, err, nil
		}
		if err != nil {
			return from, nil, err
		}
		a.Recovered(now)
		if err := Save(txn, row, a); err != nil {
			return from, nil, err
		}
	}
	return "", nil, nil
}

// Accounts are those of a mount, in the order of their names. In the place of one whose row is damaged there is an error, a *store.Damage, and others follow; any other
// error is the last.
func Accounts(v store.View, m Mount) iter.Seq2[*Account, error] {
	base := store.MountKey(m.Namespace, m.UUID, accountRows)
	return func(yield func(*Account, error) bool) {
		for from := base; from != ""; {
			start := from
			from = ""
			for row, err := range v.Scan(store.Engine, start, store.PrefixEnd(base)) {
				var a *Account
				if err == nil {
					a, _, err = Load(v, m.Namespace, m.UUID, row.Name[len(base):])
				}
				if !yield(a, err) {
					return
				}
				if err != nil {
					from, _ = behind(err, start)
					break // the scan ends here
				}
			}
		}
	}
}

// Overdue counts the accounts of the mounts whose rotation fails, or is late by more than grace, up to limit. One whose row is damaged is not rotated, either.
func Overdue(v store.View, mounts []Mount, now time.Time, grace time.Duration, limit int) (n int, err error) {
	for _, m := range mounts {
		for a, err := range Accounts(v, m) {
			if n == limit {
				return n, nil
			}
			if err != nil && !errors.As(err, new(*store.Damage)) {
				return n, err
			}
			if err != nil || a.Overdue(now, grace) {
				n++
			}
		}
	}
	return n, nil
}
