package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
)

// Store is what a Reaper works on; *store.DB is one.
type Store interface {
	View() (store.View, error)
	Commit(ctx context.Context, t store.Txn) (store.Receipt, error)
	Now() time.Time    // lease time
	ClockAlarm() error // why lease time should not be acted upon; nil: it may
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
	Poll       time.Duration // how long it sleeps at most: what was made due without a Nudge, by another node say, is found by then. 0: 1 s
}

// Reaper ends what is over: leases and tokens that expired, what wide revocations hit, credentials whose making was never
// confirmed. It keeps nothing in memory but where it is looking: all work is rows, sought in order, so that a start costs nothing
// and a crash loses nothing. A target that fails is tried again for ever.
//
// One goroutine follows the clock and the tombstones; it moves dynamic leases to Revoking, in whose commit is the audit
// record that their target is about to be touched. One worker for each target with such leases (revert.go) then reverts them.
type Reaper struct {
	Options
	nudge   chan struct{}
	sweep   sweep
	pace    pace
	workers workers
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
	return &Reaper{Options: o, nudge: make(chan struct{}, 1), changed: make(chan struct{}), pace: pace{size: chunk / 4}}
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
	for ctx.Err() == nil {
		pause, err := r.round(ctx)
		if err != nil && ctx.Err() == nil {
			r.Log.Error("reaping failed, it is tried again", "error", err)
			pause = time.Second
		}
		if pause > 0 {
			r.sleep(ctx, pause)
		}
	}
}

// sleep waits, but not when nudged.
func (r *Reaper) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-r.nudge:
	case <-t.C:
	}
}

// round does one chunk of each kind of work, and says how long there is nothing more to do.
func (r *Reaper) round(ctx context.Context) (pause time.Duration, err error) {
	if r.Fenced() {
		return r.Poll, nil
	}
	pause = r.Poll
	for _, step := range []func(*job) (time.Duration, error){r.expireDynamic, r.expireRest, r.sweepTrees, r.sweepTombs} {
		wait, err := r.step(ctx, step)
		if err != nil {
			return 0, err
		}
		pause = min(pause, wait)
	}
	return pause, r.workers.start(ctx, r)
}

// job is one chunk: what it reads, what it will commit.
type job struct {
	view  store.View
	now   time.Time
	txn   store.Txn
	left  int      // rows that it may still end
	done  []func() // after the commit
	alarm bool     // the clock is not to be trusted: nothing expires
	poll  time.Duration
}

// step runs one chunk and commits what it decided. A conflict means that somebody was faster: the chunk is looked at again.
func (r *Reaper) step(ctx context.Context, decide func(*job) (time.Duration, error)) (time.Duration, error) {
	view, err := r.Store.View()
	if err != nil {
		return 0, err
	}
	defer view.Close()
	j := &job{view: view, now: r.Store.Now(), left: r.pace.size, alarm: r.Store.ClockAlarm() != nil, poll: r.Poll}
	j.txn.Urgent = true
	wait, err := decide(j)
	if err != nil || len(j.txn.Puts)+len(j.txn.Deletes)+len(j.txn.Ranges) == 0 {
		return wait, err
	}
	view.Close() // a View holds back what the store may reclaim
	began := time.Now()
	if err := r.commit(ctx, &j.txn); err != nil {
		if errors.As(err, new(*store.Conflict)) {
			return 0, nil
		}
		return 0, err
	}
	for _, f := range j.done {
		f()
	}
	r.yield(ctx, r.pace.took(time.Since(began)))
	return wait, nil
}

// after is run when the chunk is committed.
func (j *job) after(f func()) { j.done = append(j.done, f) }

// commit commits, and tells those who wait for something to go.
func (r *Reaper) commit(ctx context.Context, txn *store.Txn) error {
	if _, err := r.Store.Commit(ctx, *txn); err != nil {
		return err
	}
	r.mu.Lock()
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	return nil
}

// yield leaves the committer to others for a moment.
func (r *Reaper) yield(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// pace fits chunks to the store, so that requests, which share their commits with the reaper, wait little: a chunk is
// as large as what commits in about chunkTime, and between chunks the reaper pauses for half as long.
type pace struct{ size int }

const (
	chunk     = 256
	chunkTime = 8 * time.Millisecond
)

// took adapts the size to how long a commit took, and returns the pause.
func (p *pace) took(d time.Duration) time.Duration {
	switch {
	case d > chunkTime:
		p.size = max(p.size/2, chunk/16)
	case d < chunkTime/2:
		p.size = min(p.size*2, chunk)
	}
	return min(d/2, chunkTime)
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
func (j *job) end(row store.Row, l *Lease, operation, cause string) {
	j.left--
	phase := audit.Done
	if l.Kind == Dynamic {
		phase = audit.Begun
	}
	End(&j.txn, row, l, cause, j.now)
	rec := record(l, operation, phase, cause, j.now)
	if l.Kind == Static {
		rec.Secrets = []audit.Shown{{Path: l.Path(), Version: l.Version, How: "exposed"}}
	}
	j.txn.Audit = append(j.txn.Audit, rec)
}
