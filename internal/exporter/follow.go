package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

const (
	chunk         = 1000                  // records that are read from one View
	longBuffer    = 256 << 10             // bytes of lines that are handed over at once, or a little more
	linger        = 20 * time.Millisecond // for what comes right after: lines are handed over together, and the committer is left alone
	firstPause    = 250 * time.Millisecond
	longestPause  = 5 * time.Second
	complainEvery = 10 * time.Minute
	mostCounted   = 10_000 // headers that are counted for one answer to how far a device lags
)

// sink is where a device's lines go. It is used by one goroutine at a time, but for Close, and never holds more than it was given.
type sink interface {
	// Write hands over lines, each ended by a newline. It returns once they are taken, or when ctx ends. stalled is told,
	// perhaps again and again, that nothing moves.
	Write(ctx context.Context, lines []byte, stalled func(error)) error
	// Sync returns once what was written is where a crash of this process, or of the machine, does not take it from.
	Sync(ctx context.Context) error
	// Close ends the sink; a Write under way fails.
	Close() error
}

// cursor is the row that remembers how far a device has come. CBOR keys are on disk: never renumber, only append. 2 and 3 said who tells it.
type cursor struct {
	Seq uint64 `cbor:"1,keyasint"` // of the last commit that it was told in full
}

// Status is how a device fares.
type Status struct {
	State   string    // "following", "catching up", "failing", "elsewhere" (another node tells it), "stopped"
	Seq     uint64    // last commit that it was told
	Behind  uint64    // commits after that
	Lag     uint64    // records in them, as far as they were counted
	Told    uint64    // records since the start
	Lost    uint64    // records that retention had removed before they were told
	Kind    string    // of the last error, while it fails: full, denied, refused, timeout, missing, unsafe, diverged, damaged, io
	Error   string    // that error; holds no secret
	Failing time.Time // since when
}

// follower tells one device.
type follower struct {
	o      Options
	device *Device
	set    *settings
	bad    error // the device's options no longer parse
	done   chan struct{}
	end    context.CancelFunc
	ended  context.Context

	mu        sync.Mutex
	status    Status
	opened    chan struct{} // closed when the first attempt to open the sink has an outcome
	outcome   error
	elsewhere bool   // another node tells the device
	again     bool   // the sink is to be opened anew
	wake      func() // ends the present waiting
	complain  time.Time
	counted   uint64 // the commit up to which waiting counts
	waiting   uint64 // records after status.Seq up to counted
	mounts    *mount.Table
	mountsAt  uint64
}

func newFollower(o Options, d *Device) *follower {
	f := &follower{o: o, device: d, done: make(chan struct{}), opened: make(chan struct{}), wake: func() {}}
	f.status.State = "catching up"
	f.set, f.bad = parse(d.Type, d.Options)
	f.ended, f.end = context.WithCancel(context.Background())
	return f
}

// errReload ends a session whose sink is to be opened anew.
var errReload = errors.New("reload")

// run tells the device until ctx ends or stop is called.
func (f *follower) run(ctx context.Context) {
	defer close(f.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.ended, cancel)()
	// What is under way when ctx ends has a moment more.
	hard, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, kill) })()
	pause := firstPause
	for {
		before, claims := f.count(), f.o.Claims.Changed()
		err := f.bad
		if err == nil {
			err = f.session(ctx, hard)
		}
		f.first(err)
		switch {
		case ctx.Err() != nil || err == nil:
			return
		case errors.Is(err, errReload):
			continue
		case errors.Is(err, errElsewhere):
			pause = longestPause // or until that changes
		case f.count() != before:
			pause = firstPause
		}
		f.failed(err)
		waiting, stop := f.waitable(ctx, pause)
		select {
		case <-waiting.Done():
		case <-claims:
		}
		stop()
		pause = min(2*pause, longestPause)
	}
}

// count is how many records were told since the start.
func (f *follower) count() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status.Told
}

// session opens the sink at the saved cursor and tells it what comes, until ctx ends (nil) or something fails.
func (f *follower) session(ctx, hard context.Context) error {
	hold, ok := f.o.Claims.Take("device/" + f.device.UUID)
	f.mu.Lock()
	f.elsewhere, f.again = !ok, false
	f.mu.Unlock()
	if !ok {
		f.first(f.probe(hard))
		_, _ = f.begin() // how far the other has come
		return errElsewhere
	}
	defer hold.Release()
	hard, cancel := hold.Context(hard)
	defer cancel()
	seq, err := f.begin()
	if err != nil {
		return err
	}
	w := &writer{device: f.device, set: f.set, keys: f.o.Keys}
	out, have, err := f.open(hard, w)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	f.first(nil)
	t := &telling{follower: f, w: w, out: out, seq: seq, have: have, saved: time.Now()}
	for {
		if err := t.catchUp(hard); err != nil {
			return err
		}
		elsewhere := hold.Over()
		over := ctx.Err() != nil || elsewhere
		again := f.reloading() || t.moved()
		due := t.dirty && (over || again || time.Since(t.saved) >= saveEvery)
		if due {
			if err := t.save(hard); err != nil && !over {
				return err
			}
		}
		switch {
		case elsewhere:
			return errElsewhere
		case over:
			return nil
		case again:
			return errReload
		}
		waiting, stop := f.waitable(ctx, saveEvery)
		unwanted := whenWanted(hold, stop)
		err := f.o.Store.Await(waiting, t.seq+1)
		if err == nil { // more is likely under way
			more, stopMore := context.WithTimeout(waiting, linger)
			<-more.Done()
			stopMore()
		}
		ended := waiting.Err() != nil
		unwanted()
		stop()
		if err != nil && !ended {
			return err
		}
	}
}

// telling is a session's state.
type telling struct {
	*follower
	w      *writer
	out    sink
	seq    uint64 // last commit whose records are in buf or told
	have   tail   // what the sink had when it was opened
	buf    []byte
	lines  uint64 // in buf
	passed uint64 // records up to seq, in buf or not to be told, that the status does not count yet
	dirty  bool   // more was told than the cursor says
	saved  time.Time
}

// tail is what is at the end of a file.
type tail struct {
	place        // of its last whole line, zero if it has none of this device's
	torn  []byte // what comes after
}

// catchUp tells what there is by now.
func (t *telling) catchUp(ctx context.Context) error {
	for head := t.o.Store.Head().Seq; t.seq < head; {
		commits, err := t.o.Store.Commits(t.seq+1, chunk)
		if err == nil {
			err = t.o.Store.Confirm(ctx) // a device cannot be told that it was told what a failover lost
		}
		if err != nil {
			return err
		}
		if err := t.look(); err != nil {
			return err
		}
		for i := range commits {
			c := &commits[i]
			if c.Gone() {
				t.lose(c)
			}
			for j := range c.Records {
				t.add(c, j)
			}
			t.seq, t.passed = c.Seq, t.passed+uint64(c.Count)
		}
		if len(t.buf) >= longBuffer {
			if err := t.flush(ctx); err != nil {
				return err
			}
		}
		if t.dirty && time.Since(t.saved) >= saveEvery {
			if err := t.save(ctx); err != nil {
				return err
			}
		}
		if t.reloading() {
			break
		}
	}
	return t.flush(ctx)
}

// add puts the line of a record into the buffer, unless the sink has it.
func (t *telling) add(c *store.Commit, i int) {
	r := &c.Records[i]
	if at := (place{c.Incarnation, r.Seq, r.Index}); !at.after(t.have.place) {
		return
	}
	from := len(t.buf)
	t.buf = t.w.append(t.buf, c, r)
	t.lines++
	if torn := t.have.torn; torn != nil {
		t.have.torn = nil
		line := t.buf[from:]
		if rest, ok := bytes.CutPrefix(line, torn); ok { // the rest of a line that was cut off
			t.buf = append(t.buf[:from], rest...)
		} else {
			t.buf = append(t.buf[:from], append([]byte{'\n'}, line...)...)
		}
	}
}

// flush hands the buffer over.
func (t *telling) flush(ctx context.Context) error {
	if len(t.buf) > 0 {
		if err := t.out.Write(ctx, t.buf, t.failed); err != nil {
			return err
		}
		if !t.dirty {
			t.dirty, t.saved = true, time.Now()
		}
	}
	t.told(t.seq, t.lines, t.passed)
	t.buf, t.lines, t.passed = t.buf[:0], 0, 0
	return nil
}

// save makes sure of what was told, and moves the cursor.
func (t *telling) save(ctx context.Context) error {
	if err := t.flush(ctx); err != nil {
		return err
	}
	if err := t.out.Sync(ctx); err != nil {
		return err
	}
	t.saved = time.Now()
	err := t.keep(ctx, func(c *cursor) error {
		c.Seq = t.seq
		return nil
	})
	switch {
	case errors.As(err, new(*store.Conflict)), errors.Is(err, store.ErrFull), errors.Is(err, store.ErrUnreachable):
		return nil // disabled meanwhile; or later
	case err != nil:
		return err
	}
	t.dirty = false
	return nil
}

// moved reports whether the sink's file is no longer where it was.
func (t *telling) moved() bool {
	f, ok := t.out.(*file)
	return ok && f.moved()
}

// look keeps the mount table current.
func (t *telling) look() error {
	v, err := t.o.Store.View()
	if err != nil {
		return err
	}
	defer v.Close()
	if at := v.Changed(store.Mounts); t.mounts == nil || at != t.mountsAt {
		if t.mounts, err = mount.Load(v); err != nil {
			return err
		}
		t.mountsAt = at
	}
	t.w.mounts = t.mounts
	return nil
}

// errElsewhere says that another node tells the device.
var errElsewhere = errors.New("another node tells the device")

// whenWanted calls stop once another node should tell the device, unless it is undone before.
func whenWanted(hold *claim.Hold, stop func()) (undo func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-hold.Wanted():
			stop()
		case <-done:
		}
	}()
	return func() { close(done) }
}

// probe opens the device once although another node tells it: what would not work here is better known before it is this node's turn.
func (f *follower) probe(ctx context.Context) error {
	select {
	case <-f.opened:
		return nil
	default:
	}
	out, _, err := f.open(ctx, &writer{device: f.device, set: f.set, keys: f.o.Keys})
	if err != nil {
		f.o.Log.Warn("an audit device that another node tells cannot be opened by this one", "device", f.device.Path, "error", err)
		return err
	}
	return out.Close()
}

// begin reads how far the device has come.
func (f *follower) begin() (seq uint64, err error) {
	seq, err = f.load()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.status.Seq != seq {
		f.status.Seq, f.counted, f.waiting = seq, seq, 0
	}
	return seq, err
}

// keep changes the cursor, unless the device is no longer enabled, or another node tells it: a *store.Conflict.
func (f *follower) keep(ctx context.Context, change func(*cursor) error) error {
	_, err := f.o.Store.Update(ctx, func(v store.View, txn *store.Txn) error {
		c, err := remembered(v, f.device)
		if err != nil {
			return err
		}
		if err := change(&c); err != nil {
			return err
		}
		b, err := encoding.Marshal(c)
		if err != nil {
			return err
		}
		claim.Fence(ctx, txn)
		txn.Present(store.Config, f.device.key().Name)
		txn.Put(store.Engine, f.device.cursor().Name, b)
		return nil
	})
	return err
}

// load reads how far the device has come.
func (f *follower) load() (uint64, error) {
	v, err := f.o.Store.View()
	if err != nil {
		return 0, err
	}
	defer v.Close()
	c, err := remembered(v, f.device)
	return c.Seq, err
}

// remembered is a device's cursor. Where there is none yet, the device begins where its configuration says.
func remembered(v store.View, d *Device) (cursor, error) {
	c := cursor{Seq: max(d.From, 1) - 1}
	row, err := v.Get(d.cursor())
	if err != nil || !row.Exists() {
		return c, err
	}
	if err := cbor.Unmarshal(row.Value, &c); err != nil {
		return c, fmt.Errorf("exporter: damaged row %s: %w", row.Key, err)
	}
	return c, nil
}

// open opens the device's sink.
func (f *follower) open(ctx context.Context, w *writer) (sink, tail, error) {
	s := f.set
	switch {
	case f.device.Type == Socket:
		out, err := dial(ctx, s.network, s.address, s.writeTimeout, w.shorten)
		return out, tail{}, err
	case f.device.Type == Syslog:
		out, err := dialSyslog(ctx, s, w.shorten)
		return out, tail{}, err
	case s.file == discard:
		return nowhere{}, tail{}, nil
	case s.file == stdout:
		return &stream{w: f.o.Stdout}, tail{}, nil
	}
	out, have, err := openFile(s, w, f.o.Private)
	if err != nil {
		return nil, tail{}, err
	}
	if err := f.diverged(have); err != nil {
		_ = out.Close()
		return nil, tail{}, err
	}
	return out, have.tail, nil
}

// errDiverged is the error of a file that knows more than the store, or something else.
var errDiverged = errors.New("the file's last line is of a commit that this store never made")

// diverged compares the end of a file with the chain. A copy that is ahead of its store tells of a rollback that nothing else may
// have noticed.
func (f *follower) diverged(have end) error {
	if have.header == "" {
		return nil
	}
	head := f.o.Store.Head()
	suspect := fmt.Errorf("%w (%d): the store was put back to an earlier state, or the file was written to by somebody else. Find out which; then move the "+
		"file away and reload", errDiverged, have.sequence)
	switch {
	case have.incarnation > head.Incarnation, have.incarnation == head.Incarnation && have.sequence > head.Seq:
		return suspect
	case have.incarnation < head.Incarnation: // of before a restore
		return nil
	}
	_, hash, err := f.o.Store.Header(have.sequence)
	if err == nil && fmt.Sprintf("%x", hash) != have.header {
		return suspect
	}
	return err
}

// waitable is a context that ends after d, or when somebody wants the follower's attention.
func (f *follower) waitable(ctx context.Context, d time.Duration) (context.Context, func()) {
	waiting, cancel := context.WithTimeout(ctx, d)
	f.mu.Lock()
	f.wake = cancel
	if f.again {
		cancel()
	}
	f.mu.Unlock()
	return waiting, cancel
}

// reload makes the follower open its sink anew.
func (f *follower) reload() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.again = true
	f.wake()
}

// reloading reports whether the sink is to be opened anew; the session that is told so ends.
func (f *follower) reloading() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.again
}

// stop ends the follower, once it told what there is, or after a moment.
func (f *follower) stop() { f.end() }

// first notes the outcome of the first attempt to open the sink.
func (f *follower) first(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.opened:
	default:
		if errors.Is(err, errElsewhere) {
			err = nil
		}
		f.outcome = err
		close(f.opened)
	}
}

// opening waits for that outcome.
func (f *follower) opening(ctx context.Context) error {
	select {
	case <-f.opened:
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.outcome
	case <-ctx.Done():
		return ctx.Err()
	}
}

// failed notes, and now and then logs, that the device is in trouble.
func (f *follower) failed(err error) {
	if errors.Is(err, errElsewhere) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	kind := kindOf(err)
	s := &f.status
	if s.Kind == "" {
		s.Failing = time.Now()
	}
	fresh := s.Kind != kind
	s.State, s.Kind, s.Error = "failing", kind, err.Error()
	if fresh || time.Since(f.complain) > complainEvery {
		f.complain = time.Now()
		f.o.Log.Error("an audit device fails; it is tried again and told what it misses: nothing is lost", "device", f.device.Path, "kind", kind, "error", err, "told_up_to", s.Seq)
	}
}

// told notes progress: the device was told all up to commit seq, lines of it just now; since the last call passed records came by.
func (f *follower) told(seq, lines, passed uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.status
	if s.Kind != "" {
		f.o.Log.Info("an audit device works again", "device", f.device.Path, "after", time.Since(s.Failing).Round(time.Second).String())
	}
	s.Kind, s.Error, s.Failing = "", "", time.Time{}
	s.Told += lines
	s.State, s.Seq = "following", seq
	if seq >= f.counted {
		f.counted, f.waiting = seq, 0
	} else {
		f.waiting -= passed
	}
}

// lose notes records that retention removed before the device was told them.
func (f *follower) lose(c *store.Commit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.status.Lost == 0 {
		f.o.Log.Error("retention removed audit records before an audit device was told them", "device", f.device.Path, "from_commit", c.Seq)
	}
	f.status.Lost += uint64(c.Count)
}

// tell is the follower's status.
func (f *follower) tell() Status {
	head := f.o.Store.Head().Seq
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := 0; f.counted < head && n < mostCounted; n++ {
		h, _, err := f.o.Store.Header(f.counted + 1)
		if err != nil {
			break
		}
		f.counted, f.waiting = f.counted+1, f.waiting+uint64(h.Count)
	}
	s := f.status
	s.Lag = f.waiting
	if head > s.Seq {
		s.Behind = head - s.Seq
	}
	switch {
	case f.elsewhere:
		s.State = "elsewhere"
	case s.State == "following" && s.Lag > 0:
		s.State = "catching up"
	}
	return s
}

// kindOf classifies an error for metrics. The set is closed.
func kindOf(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, errUnsafe):
		return "unsafe"
	case errors.Is(err, errDiverged):
		return "diverged"
	case errors.As(err, new(*store.Damage)):
		return "damaged"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "full"
	case errors.Is(err, fs.ErrPermission):
		return "denied"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, fs.ErrNotExist):
		return "missing"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return "io"
}

// Untold is the first commit that some device was not told, as the cursors have it, and that device; 0: there is no device.
func Untold(v store.View) (uint64, *Device, error) {
	all, err := Load(v)
	if err != nil {
		return 0, nil, err
	}
	first, slowest := uint64(0), (*Device)(nil)
	for _, d := range all {
		c, err := remembered(v, d)
		if err != nil {
			return 0, nil, err
		}
		if slowest == nil || c.Seq+1 < first {
			first, slowest = c.Seq+1, d
		}
	}
	return first, slowest, nil
}

// nowhere discards.
type nowhere struct{}

func (nowhere) Write(context.Context, []byte, func(error)) error { return nil }
func (nowhere) Sync(context.Context) error                       { return nil }
func (nowhere) Close() error                                     { return nil }

// stream is standard output. A reader that does not read holds up nobody but it.
type stream struct{ w io.Writer }

func (s *stream) Write(ctx context.Context, lines []byte, _ func(error)) error {
	taken := make(chan error, 1)
	lines = bytes.Clone(lines)
	go func() { _, err := s.w.Write(lines); taken <- err }()
	select {
	case err := <-taken:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *stream) Sync(context.Context) error { return nil }
func (s *stream) Close() error               { return nil }
