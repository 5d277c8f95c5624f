package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/store"
)

// Store is what a Reaper works on; *store.DB is one.
type Store interface {
	View() (store.View, error)
	Commit(ctx context.Context, t store.Txn) (store.Receipt, error)
	Confirm(ctx context.Context) error // what Views show now survives a failover
	Now() time.Time                    // lease time
	ClockAlarm() error                 // why lease time should not be acted upon; nil: it may
}

// Options of a Reaper. Store and Revert are needed; the rest has defaults.
type Options struct {
	Store Store
	// Revert removes the credentials of leases of one mount and one target, and says of each whether the target confirmed
	// that it is gone: one error for each, free of secrets. It is idempotent, obeys ctx, and is called concurrently.
	Revert func(ctx context.Context, mount string, ls []*Lease) []error
	// Belongings are rows that die with the token of this hash, besides those of package token: its cubbyhole, what it wraps.
	Belongings func(token string) []store.Range
	Random     io.Reader     // ids, jitter; must be safe for concurrent use. nil: crypto/rand
	Log        *slog.Logger  // nil: discarded
	Fenced     func() bool   // while true nothing is done: the store is a copy. nil: never
	Watch      time.Duration // how long an apply that never reported back may still land: until then it is reverted again. 0: 2 min
	Timeout    time.Duration // of one call of Revert. 0: 1 min
	Parallel   int           // calls of Revert at a time, for one target. 0: 4
	Poll       time.Duration // how long it sleeps at most: what was made due without a Nudge is found by then. 0: 1 s
	Claims     *claim.Claims // which part of the work is this node's; nil: all of it
}

// Reaper ends what is over: leases and tokens that expired, what wide revocations hit, credentials whose making was never
// confirmed. It keeps nothing in memory but where it is looking: all work is rows, sought in order, so that a start costs nothing
// and a crash loses nothing. A target that fails is tried again for ever.
//
// One goroutine follows the clock and the tombstones; it moves dynamic leases to Revoking, in whose commit is the audit
// record that their target is about to be touched. One worker for each target with such leases (revert.go) then reverts them.
// Of several nodes one does the former, and one the latter for each target: those that hold the claims.
type Reaper struct {
	Options
	nudge   chan struct{}
	expiry  held
	dynamic cursor
	rest    cursor
	sweep   sweep
	flying  *job // the chunk that is being committed
	workers workers
	patient bool // nothing of the last round's work is urgent
	counts  counts

	mu      sync.Mutex
	changed chan struct{} // closed and replaced after each commit
}

// counts are the counters behind Metrics.
type counts struct {
	expired, revoked, tokens, reverted, failed, forced, unconfirmed atomic.Uint64
}

// Metrics count what a Reaper did since it was made.
type Metrics struct {
	Expired     uint64 // leases whose time was over
	Revoked     uint64 // leases ended by wide revocations
	Unconfirmed uint64 // leases whose credential was never confirmed
	Tokens      uint64 // tokens ended
	Reverted    uint64 // credentials that their target confirmed gone
	Failed      uint64 // reverts that failed
	Forced      uint64 // leases dropped although their target did not confirm
	Targets     []TargetMetrics
}

// chunk is how many leases or tokens one commit of the reaper ends at most. Requests share their commits with it: it is
// small enough for them not to wait long, and large enough that a commit's cost is the rows'.
const chunk = 128

// morsel is how many it is of those whose end nobody waits for.
const morsel = 32

// New makes a Reaper. It starts nothing.
func New(o Options) *Reaper {
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Fenced == nil {
		o.Fenced = func() bool { return false }
	}
	if o.Belongings == nil {
		o.Belongings = func(string) []store.Range { return nil }
	}
	if o.Watch == 0 {
		o.Watch = 2 * time.Minute
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.Parallel == 0 {
		o.Parallel = 4
	}
	if o.Poll == 0 {
		o.Poll = time.Second
	}
	return &Reaper{Options: o, nudge: make(chan struct{}, 1), changed: make(chan struct{})}
}

// Nudge tells the Reaper that there may be something to do at once. It never blocks.
func (r *Reaper) Nudge() {
	select {
	case r.nudge <- struct{}{}:
	default:
	}
}

// Metrics returns the counters.
func (r *Reaper) Metrics() Metrics {
	c := &r.counts
	return Metrics{
		Expired: c.expired.Load(), Revoked: c.revoked.Load(), Unconfirmed: c.unconfirmed.Load(), Tokens: c.tokens.Load(),
		Reverted: c.reverted.Load(), Failed: c.failed.Load(), Forced: c.forced.Load(), Targets: r.workers.metrics(),
	}
}

// Run works until ctx ends, and returns when nothing of it is left running. Errors are logged and what failed is tried again.
func (r *Reaper) Run(ctx context.Context) {
	defer r.workers.wait()
	defer r.yield()
	for ctx.Err() == nil {
		began := time.Now()
		pause, err := r.round(ctx)
		if err != nil && ctx.Err() == nil {
			r.Log.Error("reaping failed, it is tried again", "error", err)
			pause = time.Second
		}
		if pause == 0 && r.patient {
			pause = r.courtesy(time.Since(began))
		}
		if pause > 0 {
			r.sleep(ctx, pause)
		}
	}
}

// courtesy is how long the reaper rests after a round that only removed rows which mean nothing any more: what is over gives nobody
// anything, removed or not, so requests go first, and credentials at targets do even more.
func (r *Reaper) courtesy(took time.Duration) time.Duration {
	if r.workers.busy() {
		return 4 * took
	}
	return 2 * took
}

// sleep waits, but not when nudged.
func (r *Reaper) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-r.nudge:
	case <-r.expiry.wanted():
	case <-t.C:
	}
}

// work is the name of what the first goroutine does, for claims.
const work = "expiry"

// held is some work that this node holds; zero: it does not.
type held struct {
	*claim.Hold
	ctx    context.Context
	cancel context.CancelFunc
}

// lost reports whether there is no use in going on.
func (h *held) lost() bool { return h.Hold != nil && h.ctx.Err() != nil }

func (h *held) wanted() <-chan struct{} {
	if h.Hold == nil {
		return nil
	}
	return h.Hold.Wanted()
}

// mine reports whether ending what is over is this node's work. Where it was, and is to be another's, what is under way is finished.
func (r *Reaper) mine(ctx context.Context) bool {
	if r.expiry.Hold != nil && !r.expiry.Over() {
		return true
	}
	r.yield()
	hold, ok := r.Claims.Take(work)
	if !ok {
		return false
	}
	r.expiry.Hold = hold
	r.expiry.ctx, r.expiry.cancel = hold.Context(ctx)
	r.dynamic, r.rest, r.sweep = cursor{}, cursor{}, sweep{} // others may have been at work meanwhile
	return true
}

// yield finishes what is under way, and gives the work back.
func (r *Reaper) yield() {
	_, _ = r.land()
	if r.expiry.Hold != nil {
		r.expiry.cancel()
		r.expiry.Release()
	}
	r.expiry = held{}
}

// round does one chunk of each kind of work, and says how long there is nothing more to do.
func (r *Reaper) round(ctx context.Context) (pause time.Duration, err error) {
	if r.Fenced() {
		return r.Poll, nil
	}
	if pause = r.Poll; r.mine(ctx) {
		if pause, err = r.end(); err != nil {
			return 0, err
		}
	}
	return pause, r.workers.start(ctx, r)
}

// end ends some of what is over.
func (r *Reaper) end() (pause time.Duration, err error) {
	pause, r.patient = r.Poll, true
	for _, step := range []struct {
		decide  func(*job) (time.Duration, error)
		alone   bool
		patient bool
	}{{r.expireDynamic, false, false}, {r.expireRest, false, true}, {r.sweepTrees, true, false}, {r.sweepTombs, true, false}} {
		if step.patient && !r.patient {
			continue // credentials at targets first
		}
		wait, err := r.step(r.expiry.ctx, step.decide, step.alone)
		if err != nil {
			return 0, err
		}
		pause = min(pause, wait)
		r.patient = r.patient && (wait > 0 || step.patient)
	}
	if pause > 0 && r.flying != nil {
		pause = 0 // what it leaves may be work
		if _, err := r.land(); err != nil {
			return 0, err
		}
	}
	return pause, nil
}

// job is one chunk: what it reads, what it will commit.
type job struct {
	view  store.View
	now   time.Time
	txn   store.Txn
	left  int  // rows that it may still end
	alarm bool // the clock is not to be trusted: nothing expires
	poll  time.Duration
	done  []func() // after the commit
	undo  func()   // if it fails: takes back where the next chunk begins
	err   chan error
}

func (j *job) empty() bool {
	return len(j.txn.Puts)+len(j.txn.Deletes)+len(j.txn.Ranges) == 0
}

// step decides one chunk while the one before commits, then has it committed. Work that cannot tell where the chunk before
// will have left it is decided alone. A conflict means that somebody was faster: the chunk is looked at again.
func (r *Reaper) step(ctx context.Context, decide func(*job) (time.Duration, error), alone bool) (time.Duration, error) {
	j, wait, err := r.look(decide)
	if err == nil && alone && r.flying != nil && !j.empty() {
		if landed, err := r.land(); err != nil || !landed {
			return 0, err
		}
		j, wait, err = r.look(decide)
	}
	if err != nil || j.empty() {
		return wait, err
	}
	if landed, err := r.land(); err != nil || !landed {
		j.undo()
		return 0, err
	}
	r.flying = j
	go func() { j.err <- r.commit(ctx, &j.txn) }()
	if !alone {
		return wait, nil
	}
	if landed, err := r.land(); err != nil || !landed {
		return 0, err
	}
	return wait, nil
}

// look decides a chunk on the latest View.
func (r *Reaper) look(decide func(*job) (time.Duration, error)) (*job, time.Duration, error) {
	view, err := r.Store.View()
	if err != nil {
		return nil, 0, err
	}
	defer view.Close()
	j := &job{
		view: view, now: r.Store.Now(), left: chunk, alarm: r.Store.ClockAlarm() != nil, poll: r.Poll, undo: func() {}, err: make(chan error, 1),
	}
	j.txn.Urgent = true
	wait, err := decide(j)
	return j, wait, err
}

// land waits for the chunk that is being committed, if there is one. It reports false if somebody was faster, and nothing of
// it was written.
func (r *Reaper) land() (bool, error) {
	j := r.flying
	if j == nil {
		return true, nil
	}
	r.flying = nil
	err := <-j.err
	switch {
	case err == nil:
		for _, f := range j.done {
			f()
		}
		return true, nil
	case errors.As(err, new(*store.Conflict)), r.expiry.lost():
		err = nil
	}
	j.undo()
	return false, err
}

// after is run when the chunk is committed.
func (j *job) after(f func()) { j.done = append(j.done, f) }

// commit commits under the claim of ctx, and tells those who wait for something to go.
func (r *Reaper) commit(ctx context.Context, txn *store.Txn) error {
	claim.Fence(ctx, txn)
	if _, err := r.Store.Commit(ctx, *txn); err != nil {
		return err
	}
	r.tell()
	return nil
}

// tell tells those who wait for something to go.
func (r *Reaper) tell() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

// Heard takes notice of a commit, another node's as well as this one's: what it made due is looked for, and those who wait for
// something to go look again.
func (r *Reaper) Heard(h *audit.Header) {
	work, ended := false, false
	for i := range h.Touched {
		t := &h.Touched[i]
		switch store.Table(t.Table) {
		case store.Tombs:
			work, ended = work || !t.Deleted, true
		case store.LeaseIdx:
			ended = true
			work = work || !t.Deleted && strings.HasPrefix(t.Name, queuePrefix)
		case store.Leases:
			ended = true
		}
	}
	if work {
		r.Nudge()
	}
	if ended {
		r.tell()
	}
}

// record is what the audit trail keeps of an act on a lease.
func record(l *Lease, operation string, phase audit.Phase, cause string, now time.Time) audit.Record {
	return audit.Record{
		Time: now, Operation: operation, Namespace: l.Namespace, Path: l.Path(), Phase: phase, Entity: l.Holder.Entity, Name: l.Holder.Name,
		Instance: l.Holder.Instance, System: "reaper", Cause: cause, Granted: true, Rule: "system:reaper", Lease: l.ID, Owner: l.Owner,
		Tombstone: l.Tomb,
	}
}

// end ends a lease for the reaper's own reasons, with the audit record.
func (j *job) end(row store.Row, l *Lease, operation, cause string) error {
	j.left--
	phase := audit.Done
	if l.Kind == Dynamic {
		phase = audit.Begun
	}
	if err := End(j.view, &j.txn, row, l, cause, j.now); err != nil {
		return err
	}
	rec := record(l, operation, phase, cause, j.now)
	if l.Kind == Static {
		rec.Secrets = exposed(l)
	}
	j.txn.Audit = append(j.txn.Audit, rec)
	return nil
}

// exposed is what an audit record says of the version that the end of a static lease exposes.
func exposed(l *Lease) []audit.Shown {
	return []audit.Shown{{Path: l.Path(), Version: l.Version, How: "exposed"}}
}
