package archive

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Options of a Keeper.
type Options struct {
	Store       *store.DB
	Keys        audit.Authority // of the store's chain
	Destination Destination
	Random      io.Reader     // names of sets
	Clock       lessor.Clock  // times the attempts; nil: the machine's
	Interval    time.Duration // from one increment to the next
	Full        time.Duration // from one base to the next
	Keep        time.Duration // how far back there is a point for each time; 0: for ever
	Log         *slog.Logger

	segment int // bytes; 0: segmentBytes
}

const (
	patience  = 10 * time.Minute // how long one segment is tried before its run is given up: a run holds back what the store may reclaim
	firstWait = time.Second      // after the first attempt that failed; each further one waits twice as long
	lastWait  = 30 * time.Second
)

// Keeper backs a store up, again and again. Methods are safe for concurrent use.
type Keeper struct {
	o   Options
	now chan chan error // somebody wants a backup at once

	// Run's own.
	tip     *segment // the point that the next increment follows; nil: not looked for yet, or there is none
	base    time.Time
	looked  bool
	settled uint64          // there is nothing after this commit but what the Keeper itself has put on record
	trouble bool            // it is on record that backups fail
	tidied  time.Time       // when what is over was deleted last
	own     map[string]bool // of bases that were read: whether they are the store's

	mu     sync.Mutex
	status Status
}

// Status tells how backups fare.
type Status struct {
	State    string    // "waiting" before the first, "current", "failing", or "fenced": a restored copy makes none
	Covered  time.Time // the store can be restored as it was then; zero: not at all, as far as is known
	Point    string    // name of the last point; empty: none
	Seq      uint64    // the commit that it ends with
	Success  time.Time // by the machine's clock: when an attempt succeeded last, were it that there was nothing to do
	Failures uint64    // attempts that failed, since the start
	Segments uint64    // written since the start
	Bytes    uint64    // written since the start
	Error    string    // why the last attempt failed; empty: it did not
	after    uint64    // commits after this one are in no backup
}

// NewKeeper makes a Keeper; Run runs it.
func NewKeeper(o Options) *Keeper {
	if o.Clock == nil {
		o.Clock = lessor.SystemClock{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.segment == 0 {
		o.segment = segmentBytes
	}
	return &Keeper{o: o, now: make(chan chan error), own: map[string]bool{}, status: Status{State: "waiting"}}
}

// Destination says where the backups go.
func (k *Keeper) Destination() string { return k.o.Destination.String() }

// Status tells how backups fare now.
func (k *Keeper) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.status
}

func (k *Keeper) set(f func(*Status)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(&k.status)
}

// Run backs up until ctx ends. Whatever fails is tried again, for ever.
func (k *Keeper) Run(ctx context.Context) {
	tick := time.NewTicker(k.o.Interval)
	defer tick.Stop()
	for {
		err := k.attempt(ctx)
		if err != nil && ctx.Err() == nil {
			k.failed(ctx, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case asked := <-k.now:
			err := k.attempt(ctx)
			if err != nil && ctx.Err() == nil {
				k.failed(ctx, err)
			}
			asked <- err
		}
	}
}

// Backup makes Run back up at once, and waits for it.
func (k *Keeper) Backup(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case k.now <- answer:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attempt makes the point that is due, if anything happened since the last.
func (k *Keeper) attempt(ctx context.Context) error {
	fenced, err := k.fenced()
	if err != nil {
		return err
	}
	if fenced { // the destination is the original's
		k.tip, k.looked, k.settled = nil, false, 0
		k.set(func(s *Status) { s.State, s.Error = "fenced", "" })
		return nil
	}
	if !k.looked {
		if err := k.look(ctx); err != nil {
			return err
		}
		k.looked = true
	}
	due := k.tip == nil || k.o.Store.Now().Sub(k.base) >= k.o.Full
	at := k.o.Store.Now()
	if k.o.Store.Head().Seq == k.settled && !due {
		k.succeeded(at)
		return nil
	}
	if err := k.run(ctx, due); err != nil {
		return err
	}
	k.tidy(ctx)
	return nil
}

func (k *Keeper) fenced() (bool, error) {
	v, err := k.o.Store.View()
	if err != nil {
		return false, err
	}
	defer v.Close()
	fence, err := v.Get(store.Fenced)
	return fence.Exists(), err
}

// look finds the point to continue: the latest that lies on the store's own chain.
func (k *Keeper) look(ctx context.Context) error {
	c, err := Read(ctx, k.o.Destination)
	if err != nil {
		return err
	}
	for _, missing := range c.Broken {
		k.o.Log.Warn("a segment of a backup is missing", "destination", k.o.Destination.String(), "what", missing)
	}
	k.tip, k.settled = nil, 0
	sets := map[string]bool{} // only the last point of each can be continued, or else is a branch that may rest
	for i := len(c.Points) - 1; i >= 0; i-- {
		p := c.Points[i]
		if sets[p.Set] {
			continue
		}
		sets[p.Set] = true
		s, err := load(ctx, k.o.Destination, &p)
		if err != nil {
			if ctx.Err() != nil || !errors.Is(err, errDamaged) && !errors.Is(err, ErrGone) {
				return err
			}
			k.o.Log.Warn("a backup is damaged; a new one is begun", "destination", k.o.Destination.String(), "error", err)
			continue
		}
		if !s.authentic(k.o.Keys) {
			return fmt.Errorf("archive: %s has backups of another store (%s): give each store a destination of its own", k.o.Destination, p.Name())
		}
		if h, hash, err := k.o.Store.Header(s.Seq); s.Seq <= k.o.Store.Head().Seq && err == nil && hash == s.Hash && h.Incarnation == s.Incarnation {
			s.rows = nil
			k.tip, k.base, k.settled = s, c.Base(p).Time, s.Seq
			k.set(func(st *Status) { st.Point, st.Seq, st.after, st.Covered = p.Name(), s.Seq, s.Seq, p.Time })
			return nil
		}
	}
	return nil
}

// run writes a base, or an increment, and has it on record.
func (k *Keeper) run(ctx context.Context, base bool) error {
	operation := "backup increment"
	if base {
		operation = "backup base"
	}
	if !k.trouble { // else it is on record already that it is tried
		if _, err := k.record(ctx, operation, audit.Begun, ""); err != nil {
			return err
		}
	}
	at := k.o.Store.Now()
	image, err := k.o.Store.Image()
	if err != nil {
		return err
	}
	defer image.Close()
	h := Header{Seq: image.Head.Seq, Hash: image.Hash, Incarnation: image.Head.Incarnation, Time: image.Head.Time.UnixNano(), Base: base}
	rows := image.All(ctx)
	if base {
		if h.Set, err = k.newSet(); err != nil {
			return err
		}
	} else {
		h.Set, h.Index, h.Prev, h.After = k.tip.Set, k.tip.Index+1, k.tip.hash, k.tip.Seq
		rows = image.After(ctx, h.After)
	}
	tip, err := k.write(ctx, h, rows)
	if err != nil {
		return err
	}
	name := describe(&tip.Header, tip.hash)
	if k.tip = tip; base {
		k.base = name.Time
	}
	k.settled = tip.Seq
	k.set(func(s *Status) { s.Point, s.Seq = name.Name(), tip.Seq })
	done, err := k.record(ctx, operation, audit.Outcome, "")
	if err != nil {
		return err
	}
	if k.trouble = false; done.Seq == tip.Seq+1 {
		k.settled = done.Seq
	}
	k.succeeded(at)
	k.o.Log.Debug("backed up", "destination", k.o.Destination.String(), "point", name.Name())
	return nil
}

func (k *Keeper) newSet() (string, error) {
	var id [8]byte
	if _, err := io.ReadFull(k.o.Random, id[:]); err != nil {
		return "", err
	}
	return k.o.Store.Now().UTC().Format(setLayout) + "-" + hex.EncodeToString(id[:]), nil
}

// write writes a run of segments, and returns its last.
func (k *Keeper) write(ctx context.Context, h Header, rows iter.Seq2[store.Stored, error]) (*segment, error) {
	var encoded []byte
	flush := func() (audit.Hash, error) {
		content, hash, err := seal(&h, encoded, k.o.Keys)
		if err != nil {
			return hash, err
		}
		encoded = encoded[:0]
		return hash, k.put(ctx, describe(&h, hash).Name(), content)
	}
	for e, err := range rows {
		if err != nil {
			return nil, err
		}
		if encoded = appendRow(encoded, e); len(encoded) < k.o.segment {
			continue
		}
		hash, err := flush()
		if err != nil {
			return nil, err
		}
		h.Index, h.Prev = h.Index+1, hash
	}
	h.Point = true
	hash, err := flush()
	if err != nil {
		return nil, err
	}
	return &segment{Header: h, hash: hash}, nil
}

// put writes one segment. A destination that is away is tried again, for a while.
func (k *Keeper) put(ctx context.Context, name string, content []byte) error {
	deadline := k.o.Clock.Now().Add(patience)
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		err := k.o.Destination.Write(ctx, name, content)
		if err == nil {
			k.set(func(s *Status) { s.Segments, s.Bytes = s.Segments+1, s.Bytes+uint64(len(content)) })
			return nil
		}
		if ctx.Err() != nil || !k.o.Clock.Now().Before(deadline) {
			return err
		}
		k.failed(ctx, err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (k *Keeper) succeeded(covered time.Time) {
	k.set(func(s *Status) {
		s.State, s.Covered, s.Success, s.Error, s.after = "current", covered, k.o.Clock.Now(), "", k.settled
	})
}

// failed tells of an attempt that failed: each time in metrics and log, once in the trail.
func (k *Keeper) failed(ctx context.Context, err error) {
	k.set(func(s *Status) { s.State, s.Error, s.Failures = "failing", err.Error(), s.Failures+1 })
	k.o.Log.Error("backing up failed; it is tried again", "destination", k.o.Destination.String(), "error", err)
	if k.trouble {
		return
	}
	if _, err := k.record(ctx, "backup", audit.Outcome, "unavailable"); err == nil {
		k.trouble = true
	}
}

// record puts on record that a backup is begun or ended.
func (k *Keeper) record(ctx context.Context, operation string, phase audit.Phase, kind string) (store.Receipt, error) {
	return k.o.Store.Commit(ctx, store.Txn{Urgent: true, Audit: []audit.Record{{ // a full disk is no time to be without backups
		Time: k.o.Store.Now(), Operation: operation, Path: "sys/lessor/backups", Phase: phase, System: "archive", Cause: "backup", Granted: true,
		Rule: "system:archive", Policy: "system", ErrorKind: kind,
	}}})
}

// tidyEvery is how often it is looked for what is over.
const tidyEvery = time.Hour

// Limits of what one such look reads to find out whose bases are. No backup is made meanwhile, and who may write to the destination can put
// there as many as he likes: the rest is for the next look, and keeps older backups until then.
const (
	vouchReads = 8
	vouchBytes = 128 << 20 // a base ends with far less
	vouchTime  = time.Minute
)

// allowance is what a look may still read.
type allowance struct {
	reads int
	bytes int64
	spent bool // something was left for the next
}

// vouched says whether a base was made under the store's keys. It is read once, and does not count as long as it cannot be.
func (k *Keeper) vouched(ctx context.Context, base Segment, left *allowance) bool {
	own, known := k.own[base.Name()]
	if known {
		return own
	}
	if left.reads == 0 || base.Size > left.bytes {
		left.spent = true
		return false
	}
	left.reads, left.bytes = left.reads-1, left.bytes-base.Size
	at, err := load(ctx, k.o.Destination, &base)
	own = err == nil && at.authentic(k.o.Keys)
	if err == nil || errors.Is(err, errDamaged) || errors.Is(err, ErrGone) {
		k.own[base.Name()] = own
	}
	if !own {
		k.o.Log.Warn("a base that is not known to be this store's own does not count: older backups are kept as long as there is no other",
			"destination", k.o.Destination.String(), "segment", base.Name(), "error", err)
	}
	return own
}

// tidy deletes what nobody needs any more. What fails is left for the next time.
func (k *Keeper) tidy(ctx context.Context) {
	now := k.o.Store.Now()
	if now.Sub(k.tidied) < tidyEvery {
		return
	}
	k.tidied = now
	c, err := Read(ctx, k.o.Destination)
	if err != nil {
		k.o.Log.Warn("looking for backups that are over failed", "destination", k.o.Destination.String(), "error", err)
		return
	}
	reading, cancel := context.WithTimeout(ctx, vouchTime)
	left := allowance{reads: vouchReads, bytes: vouchBytes}
	expired := c.expired(now, k.o.Keep, func(s Segment) bool { return k.vouched(reading, s, &left) })
	cancel()
	if left.spent {
		k.o.Log.Warn("there are more bases that are not known to be this store's own than are read at a time: older backups are kept meanwhile",
			"destination", k.o.Destination.String())
	}
	there := map[string]bool{}
	for _, base := range c.bases {
		there[base.Name()] = true
	}
	maps.DeleteFunc(k.own, func(name string, _ bool) bool { return !there[name] })
	if len(expired) == 0 {
		return
	}
	if _, err := k.record(ctx, "backup expire", audit.Begun, ""); err != nil {
		return
	}
	for i := range expired {
		if expired[i].Set == k.tip.Set && expired[i].Index > k.tip.Index {
			continue
		}
		if err := k.o.Destination.Delete(ctx, expired[i].Name()); err != nil {
			k.o.Log.Warn("deleting a backup that is over failed", "destination", k.o.Destination.String(), "error", err)
			return
		}
	}
	k.o.Log.Info("backups that were over are deleted", "destination", k.o.Destination.String(), "segments", len(expired))
}
