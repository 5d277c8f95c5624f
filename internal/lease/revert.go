package lease

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Reverting. The Revoking leases of a target form a queue, ordered by when the next try is due; it is rows, not memory.
// A worker takes them in batches. A revert that fails goes back into the queue, later each time and for ever; when a
// target fails altogether, only one revert now and then asks whether it is back.

const (
	batch       = 64 // leases in one call of Revert, at most
	minBatch    = 8  // below which they are not spread over parallel calls
	waves       = 4  // batches for each parallel call that one pass takes from the queue: so none waits for the slowest each time
	minBackoff  = time.Second
	maxBackoff  = 10 * time.Minute // between tries of one revert
	trips       = 3                // batches that fail entirely, one after the other, before the breaker opens
	maxOpen     = 15 * time.Second // between probes of a target whose breaker is open
	maxErrorLen = 300              // bytes of an error that are kept
)

// target is what a worker works on.
type target struct {
	namespace   uint32
	mount, name string
}

// parseQueue takes the name of a queue's row apart.
func parseQueue(name string) (t target, next time.Time, lease string, ok bool) {
	rest, ok := strings.CutPrefix(name, queuePrefix)
	if !ok || len(rest) < 20 {
		return t, next, "", false
	}
	t.namespace, t.mount, rest = store.SplitMountKey(rest)
	t.name, rest, ok = strings.Cut(rest, "\x00")
	if !ok {
		return t, next, "", false
	}
	next, lease, ok = store.ParseTimeKey(rest)
	return t, next, lease, ok
}

func (t target) prefix() string { return targetPrefix(t.namespace, t.mount, t.name) }

// workers are the running workers, one for each target with something to revert.
type workers struct {
	mu      sync.Mutex
	running map[target]*worker
	all     sync.WaitGroup
}

// start sees to it that each target with something to revert has a worker, if that is this node's work, and that those that sleep look again.
func (w *workers) start(ctx context.Context, r *Reaper) error {
	view, err := r.Store.View()
	if err != nil {
		return err
	}
	defer view.Close()
	for from := queuePrefix; ; {
		t, ok, err := nextTarget(view, from)
		if err != nil || !ok {
			return err
		}
		w.wake(ctx, r, t)
		from = store.PrefixEnd(t.prefix())
	}
}

// nextTarget is the first target that has a queue at or after from.
func nextTarget(v store.View, from string) (t target, ok bool, err error) {
	for row, err := range v.Scan(store.LeaseIdx, from, store.PrefixEnd(queuePrefix)) {
		if err != nil {
			return t, false, err
		}
		t, _, _, ok := parseQueue(row.Name)
		if !ok {
			return t, false, &store.Damage{Key: row.Key, Why: "it names no target"}
		}
		return t, true, nil
	}
	return t, false, nil
}

func (w *workers) wake(ctx context.Context, r *Reaper, t target) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.running[t]
	if k == nil {
		hold, ok := r.Claims.Take(claim.Target(t.mount, t.name))
		if !ok {
			return
		}
		k = &worker{Reaper: r, target: t, hold: hold, nudged: make(chan struct{}, 1)}
		if w.running == nil {
			w.running = map[target]*worker{}
		}
		w.running[t] = k
		w.all.Go(func() {
			defer hold.Release()
			ctx, cancel := hold.Context(ctx)
			defer cancel()
			k.run(ctx)
			w.gone(k)
		})
	}
	select {
	case k.nudged <- struct{}{}:
	default:
	}
}

// leave takes a worker off, unless there is news for it.
func (w *workers) leave(k *worker) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(k.nudged) > 0 {
		return false
	}
	delete(w.running, k.target)
	return true
}

// gone takes off a worker that was told to stop.
func (w *workers) gone(k *worker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running[k.target] == k {
		delete(w.running, k.target)
	}
}

func (w *workers) wait() { w.all.Wait() }

// busy reports whether there is something to revert at a target that answers.
func (w *workers) busy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.running {
		if k.breaker.count() == 0 {
			return true
		}
	}
	return false
}

// shut reports whether a target fails and is left alone for now.
func (w *workers) shut(t target, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.running[t]
	return k != nil && k.breaker.shut(now) > 0
}

// TargetMetrics tell of one target that has something to revert.
type TargetMetrics struct {
	Mount    string // UUID
	Target   string
	Open     bool // the breaker: the target fails, it is only probed
	Failures int  // batches that failed entirely, one after the other
}

func (w *workers) metrics() []TargetMetrics {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []TargetMetrics
	for t, k := range w.running {
		failures := k.breaker.count()
		all = append(all, TargetMetrics{Mount: t.mount, Target: t.name, Open: failures >= trips, Failures: failures})
	}
	return all
}

// worker reverts the leases of one target.
type worker struct {
	*Reaper
	target  target
	hold    *claim.Hold
	nudged  chan struct{}
	breaker breaker
	from    string // where in the queue to go on, see cursor
	until   time.Time
}

// run works until the queue is empty, ctx ends, or another node should do it.
func (k *worker) run(ctx context.Context) {
	for ctx.Err() == nil && !k.hold.Over() {
		pause, err := k.pass(ctx)
		if err != nil && ctx.Err() == nil {
			k.Log.Error("reverting failed, it is tried again", "target", k.target.name, "error", err)
			pause = time.Second
		}
		if pause < 0 {
			if k.workers.leave(k) {
				return
			}
			pause = k.Poll // there is news: rest does not rest
		}
		if pause > 0 {
			k.rest(ctx, pause)
		}
	}
}

// rest waits, but not when there is news.
func (k *worker) rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-k.nudged:
	case <-k.hold.Wanted():
	case <-t.C:
	}
}

// pass reverts what is due, over Parallel calls at a time, and returns how long there is nothing more to do: negative if the queue
// is empty.
func (k *worker) pass(ctx context.Context) (time.Duration, error) {
	if k.Fenced() {
		return k.Poll, nil
	}
	now := k.Store.Now()
	shut := k.breaker.shut(now)
	limit := batch * k.Parallel * waves
	if k.breaker.count() >= trips {
		limit = 1 // a probe
	}
	due, next, err := k.due(now, limit, shut > 0)
	if err != nil {
		return 0, err
	}
	if len(due) == 0 {
		switch {
		case next < 0:
			return next, nil
		case shut > 0:
			return min(shut, k.Poll), nil
		}
		return min(next, k.Poll), nil
	}
	size := min(batch, max(minBatch, (len(due)+k.Parallel-1)/k.Parallel))
	errs := make([]error, (len(due)+size-1)/size)
	free := make(chan struct{}, k.Parallel)
	var wg sync.WaitGroup
	for i := range errs {
		part := due[i*size : min(len(due), (i+1)*size)]
		free <- struct{}{}
		if i >= k.Parallel && k.breaker.count() >= trips {
			break // the target failed meanwhile: the rest waits for the probes
		}
		wg.Go(func() {
			defer func() { <-free }()
			errs[i] = k.revert(ctx, part)
		})
	}
	wg.Wait()
	return 0, errors.Join(errs...)
}

// queued is a row of the queue.
type queued struct{ row, lease string }

// due returns the rows of leases whose revert is due, and when the next is: negative if there are none at all. Behind a shut
// breaker only those are due that go anyway.
func (k *worker) due(now time.Time, limit int, shut bool) (due []queued, next time.Duration, err error) {
	view, err := k.Store.View()
	if err != nil {
		return nil, 0, err
	}
	defer view.Close()
	prefix := k.target.prefix()
	if k.from == "" || !now.Before(k.until) {
		k.from, k.until = prefix, now.Add(time.Second)
	}
	due, next, err = k.scan(view, prefix, now, limit, shut)
	if err == nil && len(due) == 0 && k.from != prefix {
		k.from = prefix // through: look whether anything is behind
		due, next, err = k.scan(view, prefix, now, limit, shut)
	}
	if len(due) > 0 {
		k.from = due[len(due)-1].row + "\x00"
	}
	return due, next, err
}

func (k *worker) scan(view store.View, prefix string, now time.Time, limit int, shut bool) (due []queued, next time.Duration, err error) {
	for row, err := range view.Scan(store.LeaseIdx, k.from, store.PrefixEnd(prefix)) {
		if err != nil {
			return nil, 0, err
		}
		_, at, name, ok := parseQueue(row.Name)
		if !ok {
			return nil, 0, &store.Damage{Key: row.Key, Why: "it names no lease"}
		}
		forced := at.UnixMilli() == 0
		switch {
		case len(due) >= limit && !forced, len(due) >= batch*k.Parallel*waves:
			return due, 0, nil
		case at.After(now):
			return due, at.Sub(now), nil
		case shut && !forced:
			return due, k.Poll, nil
		}
		due = append(due, queued{row.Name, name})
	}
	if len(due) > 0 {
		return due, 0, nil
	}
	return nil, -1, nil
}

// revert has one batch reverted and commits what became of it.
func (k *worker) revert(ctx context.Context, part []queued) error {
	leases, rows, err := k.load(ctx, part)
	if err != nil || len(leases) == 0 {
		return err
	}
	if err := k.Store.Confirm(ctx); err != nil { // that they are being revoked, and the record of it, may be another node's commit
		return err
	}
	failures := k.call(ctx, leases)
	if ctx.Err() != nil {
		return nil // stopping: whatever happened, it is tried again
	}
	now := k.Store.Now()
	k.breaker.saw(failures, now, k.jitter())
	whole := &store.Txn{}
	single := make([]store.Txn, len(leases))
	for i, l := range leases {
		k.settle(&single[i], rows[i], l, failures[i], now)
		whole.Join(&single[i])
	}
	err = k.commit(ctx, whole)
	if !errors.As(err, new(*store.Conflict)) {
		return err
	}
	for i := range single { // one of them was changed meanwhile, by force say: it is looked at again
		if err := k.commit(ctx, &single[i]); err != nil && !errors.As(err, new(*store.Conflict)) {
			return err
		}
	}
	return nil
}

// load reads the leases that are still Revoking. A row of the queue without such a lease is stale, and goes.
func (k *worker) load(ctx context.Context, part []queued) (leases []*Lease, rows []store.Row, err error) {
	view, err := k.Store.View()
	if err != nil {
		return nil, nil, err
	}
	defer view.Close()
	stale := &store.Txn{Urgent: true}
	for _, q := range part {
		l, row, err := load(view, q.lease)
		if err != nil {
			return nil, nil, err
		}
		if l == nil || l.State != Revoking {
			stale.Delete(store.LeaseIdx, q.row)
			continue
		}
		leases, rows = append(leases, l), append(rows, row)
	}
	if len(stale.Deletes) == 0 {
		return leases, rows, nil
	}
	return leases, rows, k.commit(ctx, stale)
}

// call calls Revert. What it does not say counts as a failure.
func (k *worker) call(ctx context.Context, ls []*Lease) (failures []error) {
	ctx, cancel := context.WithTimeout(ctx, k.Timeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			k.Log.Error("an engine's revert panicked", "mount", fmt.Sprintf("%x", k.target.mount), lessor.Recovered(p))
			failures = nil
		}
		for len(failures) < len(ls) {
			failures = append(failures, errors.New("the engine did not say what became of it"))
		}
	}()
	copies := make([]*Lease, len(ls)) // engines may keep what they are given
	for i, l := range ls {
		c := *l
		copies[i] = &c
	}
	return k.Revert(ctx, k.target.mount, copies)
}

// settle adds what becomes of one lease to txn, after one try.
func (k *worker) settle(txn *store.Txn, row store.Row, l *Lease, failure error, now time.Time) {
	rec := record(l, "revoke", audit.Outcome, l.Cause, now)
	switch {
	case failure == nil && l.Watch && now.Before(l.Ended.Add(k.Watch)):
		// It is gone, but a late apply may still bring it back.
		l.Attempts++
		l.LastError = ""
		txn.Urgent = true
		txn.Require(row)
		reschedule(txn, l, sooner(now.Add(backoff(l.Attempts, 1)), l.Ended.Add(k.Watch)))
		return
	case failure == nil:
		Drop(txn, row, l)
		k.counts.reverted.Add(1)
	case l.Forced:
		rec.ErrorKind, rec.Note = api.Upstream.String(), "dropped by force: the target did not confirm that the credential is gone"
		Drop(txn, row, l)
		k.counts.forced.Add(1)
		k.Log.Error("a lease was dropped by force; its credential may still be there", "lease", l.ID, "error", failure)
	default:
		rec.ErrorKind, rec.Note = api.Upstream.String(), "to be tried again"
		l.Attempts++
		l.LastError = clip(failure.Error())
		txn.Urgent = true
		txn.Require(row)
		reschedule(txn, l, now.Add(backoff(l.Attempts, k.jitter())))
		k.counts.failed.Add(1)
		k.Log.Warn("a credential could not be reverted, it is tried again", "lease", l.ID, "attempts", l.Attempts, "next", l.Next, "error", failure)
	}
	txn.Audit = append(txn.Audit, rec)
}

func sooner(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func clip(s string) string {
	if len(s) > maxErrorLen {
		s = s[:maxErrorLen]
	}
	return strings.ToValidUTF8(s, "")
}

// jitter is a random number in [0, 1).
func (r *Reaper) jitter() float64 {
	var b [8]byte
	if _, err := io.ReadFull(r.Random, b[:]); err != nil {
		return 0.5
	}
	return float64(binary.BigEndian.Uint64(b[:])>>11) / (1 << 53)
}

// backoff is the wait after so many failures: it doubles from minBackoff to maxBackoff; jitter, in [0, 1], takes up to half off.
func backoff(failures uint32, jitter float64) time.Duration {
	return jittered(doubled(failures, maxBackoff), jitter)
}

func doubled(failures uint32, most time.Duration) time.Duration {
	if failures > 20 {
		return most
	}
	return min(most, minBackoff<<max(failures, 1)>>1)
}

func jittered(d time.Duration, jitter float64) time.Duration {
	return d/2 + time.Duration(float64(d/2)*jitter)
}

// breaker keeps a target that fails altogether from being asked for each lease. It is not kept: a restart asks at once.
type breaker struct {
	mu       sync.Mutex
	failures int // batches that failed entirely, one after the other
	until    time.Time
}

// saw counts what one batch said.
func (b *breaker) saw(failures []error, now time.Time, jitter float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, err := range failures {
		if err == nil {
			b.failures = 0
			return
		}
	}
	b.failures++
	if b.failures >= trips {
		b.until = now.Add(jittered(doubled(uint32(b.failures-trips+1), maxOpen), jitter))
	}
}

func (b *breaker) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failures
}

// shut is how long the target is to be left alone.
func (b *breaker) shut(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < trips {
		return 0
	}
	return max(0, b.until.Sub(now))
}
