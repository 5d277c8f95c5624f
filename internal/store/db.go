package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Options of a DB. The zero value of each is usable.
type Options struct {
	Node       string        // name of this node, in headers and records; "" is "lessor"
	Clock      lessor.Clock  // nil or lessor.SystemClock: the Backend's where it is Timed, else the machine's
	Random     io.Reader     // ids of batches; nil: crypto/rand
	Anchor     Anchor        // where the head is remembered outside the store; nil: nowhere
	Log        *slog.Logger  // nil: discarded
	BatchCount int           // transactions in a batch at most; 0: 1024
	BatchBytes int           // bytes in a batch at most, though a larger transaction goes alone; 0: 4 MiB
	Reserve    int64         // free bytes below which only Urgent transactions are taken; 0: no such limit
	Retention  time.Duration // how long audit records are kept, see Expired; 0: for ever
}

// DB is the store. All methods are safe for concurrent use.
//
// It begins sealed: only clear tables can be read. Unseal gives it the keys, checks that the store is what it was left as,
// and starts the committer.
type DB struct {
	b      Backend
	shared Shared // b, if other nodes write to it as well
	o      Options
	log    *slog.Logger
	clock  *leaseClock

	published atomic.Pointer[state]
	publish   sync.Mutex     // one publisher at a time
	states    sync.WaitGroup // of live states

	unsealing sync.Mutex
	queue     queue
	rows      *rowCache
	stats     counters
	low       atomic.Bool  // less than Reserve is free
	looked    atomic.Int64 // when that was looked at
	alone     alone        // where the backend is not Shared
	about     atomic.Pointer[[]byte]
	fresh     barrier
	confirmed atomic.Pointer[Mark] // the last commit that is known to survive a failover; without MAC

	fault    atomic.Pointer[error]
	halted   chan struct{}   // closed on a fault
	ctx      context.Context // ends when the store closes
	cancel   context.CancelFunc
	entering context.Context // ends closeGrace later
	breakOff context.CancelFunc
	once     sync.Once
	running  sync.WaitGroup // background goroutines
	closed   error          // what Close returned
	lent     bool           // the backend outlives the DB

	anchored uint64 // sequence that the anchor remembers; the anchor keeper's, then Close's

	// The committer's own.
	batch    []*pending
	plan     plan
	kept     []Row // what the commit writes that Views were asked for
	admitted []*pending
	rejected []rejected
	quiet    int       // flushes in a row that met no other node's commit
	flushed  time.Time // when the last flush ended
	leaves   []audit.Hash
	buf      []byte
	value    []byte
	dropped  time.Time // when old ids of batches were dropped last
	arrival  arrival   // what the next commit makes of the store
}

// Open opens the store in b, sealed. An error means that b is damaged or fails, or holds an unfinished restore.
// On success the DB owns b.
func Open(b Backend, o Options) (*DB, error) { return open(b, o, settled) }

func open(b Backend, o Options, as arrival) (*DB, error) {
	if o.Node == "" {
		o.Node = "lessor"
	}
	if o.Clock == nil {
		o.Clock = lessor.SystemClock{}
	}
	if timed, ok := b.(Timed); ok && o.Clock == (lessor.SystemClock{}) {
		o.Clock = timed.Clock()
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.BatchCount <= 0 {
		o.BatchCount = 1024
	}
	if o.BatchBytes <= 0 {
		o.BatchBytes = 4 << 20
	}
	db := &DB{b: b, o: o, log: o.Log, clock: newLeaseClock(o.Clock), rows: newRowCache(), halted: make(chan struct{}), arrival: as}
	db.shared, _ = b.(Shared)
	db.ctx, db.cancel = context.WithCancel(context.Background())
	db.entering, db.breakOff = context.WithCancel(context.Background())
	db.queue.init()
	if db.shared == nil {
		id, err := NewPeerID(o.Random)
		if err != nil {
			return nil, err
		}
		db.alone = alone{id, db.Now()}
	}
	s, err := db.load()
	if err != nil {
		return nil, err
	}
	db.clock.resume(s.head.Time)
	db.published.Store(s)
	return db, nil
}

// Refresh looks again at what others may have written to the backend while the store is sealed. Once it is unsealed, it does nothing.
func (db *DB) Refresh() error {
	db.unsealing.Lock()
	defer db.unsealing.Unlock()
	s, err := db.latest()
	if err != nil {
		return err
	}
	open := s.cipher != nil
	s.release()
	if open {
		return nil
	}
	if s, err = db.load(); err != nil {
		return err
	}
	db.clock.resume(s.head.Time)
	return db.replace(s)
}

// load reads the latest state of the backend.
func (db *DB) load() (*state, error) {
	snap, err := db.b.Snapshot()
	if err != nil {
		return nil, err
	}
	s, err := db.read(snap)
	if err != nil {
		snap.Close()
		return nil, err
	}
	return s, nil
}

func (db *DB) read(snap Snapshot) (*state, error) {
	if err := db.arrival.admit(snap); err != nil {
		return nil, err
	}
	last, err := Last(snap, Range{Table: Head})
	if err != nil {
		return nil, err
	}
	var head audit.Header
	var hash audit.Hash
	if last.Bytes != nil {
		if head, hash, err = decodeHead(last); err != nil {
			return nil, err
		}
	}
	s := db.newState(snap, head, hash, nil)
	for t := range s.changed {
		s.changed[t] = head.Seq
	}
	return s, nil
}

// decodeHead reads a row of Head.
func decodeHead(e Stored) (audit.Header, audit.Hash, error) {
	if len(e.Bytes) < versionLen {
		return audit.Header{}, audit.Hash{}, &Damage{e.Key, "it is cut short"}
	}
	encoded := e.Bytes[versionLen:]
	h, err := audit.DecodeHeader(encoded)
	if err != nil {
		return audit.Header{}, audit.Hash{}, &Damage{e.Key, err.Error()}
	}
	if e.Key.Name != Uint64Key(h.Seq) || storedVersion(e.Bytes) != h.Seq {
		return audit.Header{}, audit.Hash{}, &Damage{e.Key, fmt.Sprintf("it holds header %d", h.Seq)}
	}
	return h, sha256.Sum256(encoded), nil
}

func headKey(seq uint64) Key { return Key{Head, Uint64Key(seq)} }

func (db *DB) newState(snap Snapshot, head audit.Header, hash audit.Hash, c Cipher) *state {
	s := &state{snap: snap, head: head, hash: hash, cipher: c, rows: db.rows, next: make(chan struct{}), open: &db.states}
	s.refs.Store(1)
	db.states.Add(1)
	return s
}

// replace makes s the published state, unless there is a later one already, which continues it. If neither continues the other, a failover took
// one of the two back: then s is not published, and the error tells; if it was the published one, that is a Fault.
func (db *DB) replace(s *state) error {
	for {
		old := db.published.Load()
		if old == nil {
			s.release()
			return ErrClosed
		}
		if !old.acquire() {
			continue // there is another meanwhile
		}
		if done, err := db.succeed(old, s); done {
			old.release()
			return err
		}
		old.release()
	}
}

// succeed publishes s if old is what is published; done is false if it is not, any more.
func (db *DB) succeed(old, s *state) (done bool, err error) {
	if err := old.agrees(s); err != nil {
		s.release()
		return true, db.parted(old, err)
	}
	db.publish.Lock()
	if db.published.Load() != old {
		db.publish.Unlock()
		return false, nil
	}
	if s.head.Seq < old.head.Seq && old.cipher != nil {
		db.publish.Unlock()
		s.release()
		return true, nil
	}
	db.forget(old, s)
	db.published.Store(s)
	db.publish.Unlock()
	close(old.next)
	old.release()
	return true, nil
}

// agrees is an error unless one of two states continues the other. Nothing rests on what a sealed store showed.
func (s *state) agrees(t *state) error {
	switch {
	case s.cipher == nil:
		return nil
	case s.head.Seq < t.head.Seq:
		return t.continues(s)
	}
	return s.continues(t)
}

// continues is an error unless the state is known to have the head of t, which is not later. It goes by what the state remembers: a database that
// was asked might answer from another history than the state is of.
func (s *state) continues(t *state) error {
	if t.head.Seq == 0 || t.point() == s.from {
		return nil
	}
	has := s.hash
	if after := s.head.Seq - t.head.Seq; after > 0 {
		if after >= uint64(len(s.hashes)) {
			return errLate
		}
		has = s.hashes[uint64(len(s.hashes))-1-after]
	}
	if has != t.hash {
		return &Damage{headKey(t.head.Seq), "there are two of this number"}
	}
	return nil
}

// errLate is the error of a state of which it cannot be told any more whether another is of the same history.
var errLate = errors.New("store: it came too late")

// forget takes out of the cache what the commits touched by which s, about to be published, is later than old. What is published only: news
// that could not be followed to their end, or came too late, may be of a history that a failover took back.
func (db *DB) forget(old, s *state) {
	n := s.head.Seq - old.head.Seq
	if n > uint64(len(s.recent)) {
		db.rows.dropAll(s.head.Seq)
		return
	}
	for _, h := range s.recent[uint64(len(s.recent))-n:] {
		db.rows.drop(h)
	}
}

// View returns the latest durable state. It fails with ErrClosed, which wraps the Fault, once the store is closed or has one.
func (db *DB) View() (View, error) {
	s, err := db.latest()
	if err != nil {
		return nil, err
	}
	return &view{state: s}, nil
}

// latest acquires the published state.
func (db *DB) latest() (*state, error) {
	if db.fault.Load() != nil {
		return nil, db.stopped()
	}
	for {
		s := db.published.Load()
		if s == nil {
			return nil, ErrClosed
		}
		if s.acquire() {
			return s, nil
		}
	}
}

// Unseal gives the store its keys. It fails, and the store stays sealed, if the chain's head was not made under them, if the
// store is behind its anchor, or if a row that grants power (mounts, policies, identity, configuration, cluster
// metadata) was altered, removed or put back to an earlier version. The same is checked of tokens in the background; see Fault.
func (db *DB) Unseal(c Cipher) error {
	db.unsealing.Lock()
	defer db.unsealing.Unlock()
	s, err := db.latest()
	if err != nil {
		return err
	}
	defer s.release()
	if s.cipher != nil {
		return errors.New("store: unsealed already")
	}
	if err := db.verifyHead(s, c); err != nil {
		return err
	}
	if err := db.verifyAnchor(s, c); err != nil {
		return err
	}
	if err := verifyMeta(s.snap, c); err != nil {
		return err
	}
	if err := verifySum(context.Background(), s.snap, &s.head, c, 0); err != nil {
		return err
	}
	open, err := db.unsealed(s, c)
	if err != nil {
		return err
	}
	if db.shared == nil {
		db.confirm(open)
	}
	if err := db.replace(open); err != nil {
		return err
	}
	db.start(func() { db.verifyTokens(open.head.Seq, c) })
	db.start(db.committer)
	if db.shared != nil {
		db.start(db.followOthers)
	}
	if db.o.Anchor != nil {
		db.start(db.anchorKeeper)
	}
	return nil
}

// unsealed is s with keys. It needs a snapshot of its own, which may be later than s on a shared backend.
func (db *DB) unsealed(s *state, c Cipher) (*state, error) {
	snap, err := db.b.Snapshot()
	if err != nil {
		return nil, err
	}
	return db.advance(s, News{State: snap, More: true}, c, nil)
}

// verifyHead checks that the last header was made under the keys and continues the one before.
func (db *DB) verifyHead(s *state, c Cipher) error {
	if s.head.Seq == 0 {
		return nil
	}
	if err := s.head.VerifyMAC(c); err != nil {
		return &Damage{headKey(s.head.Seq), err.Error()}
	}
	if s.head.Seq == 1 {
		return nil
	}
	before, err := s.snap.Get(headKey(s.head.Seq - 1))
	if err != nil {
		return err
	}
	if len(before) < versionLen || sha256.Sum256(before[versionLen:]) != s.head.Prev {
		return &Damage{headKey(s.head.Seq - 1), "the next header does not continue it"}
	}
	return nil
}

// verifyMeta checks the rows that are read while the store is sealed.
func verifyMeta(snap Snapshot, c Cipher) error {
	for e, err := range snap.Scan(Range{Table: Meta}, false) {
		if err != nil {
			return err
		}
		if _, err := openStored(c, e.Key, e.Bytes); err != nil {
			return err
		}
	}
	return nil
}

// verifySum recomputes one authenticated sum from the rows it covers.
func verifySum(ctx context.Context, snap Snapshot, head *audit.Header, c Cipher, sum int) error {
	var have audit.Sum
	for t := Table(1); t < tables; t++ {
		if t.Power() != sum+1 {
			continue
		}
		for e, err := range snap.Scan(Range{Table: t}, false) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			have = audit.Add(have, c.Element(uint8(t), e.Key.Name, storedVersion(e.Bytes)))
		}
	}
	if have != head.Sums(c)[sum] {
		return fmt.Errorf("%w: the %s are not those of commit %d: rows were removed, added or put back to an earlier "+
			"version behind the store's back; run a full verification to find them", errSum, sums[sum], head.Seq)
	}
	return nil
}

// errSum is the error of rows that an authenticated sum belies.
var errSum = errors.New("store: damaged")

// sums names what the authenticated sums cover.
var sums = [audit.Sums]string{"mounts, policies, identities or settings", "tokens"}

// verifyTokens checks the sum over tokens as of a state not before seq.
func (db *DB) verifyTokens(seq uint64, c Cipher) {
	looked := false
	for {
		s, err := db.latest()
		if err != nil {
			return
		}
		err = verifySum(db.ctx, s.snap, &s.head, c, 1)
		s.release()
		switch {
		case err == nil || db.ctx.Err() != nil:
			return
		case db.shared == nil || errors.Is(err, errSum) && looked:
			db.fail(err)
			return
		case errors.Is(err, errSum):
			if looked = db.Fresh(db.ctx) == nil; looked { // had a failover changed history under the scan, this would have told
				continue
			}
		}
		db.log.Warn("the tokens could not be verified; trying again", "error", err) // a server may be away for a while
		select {
		case <-time.After(time.Second):
		case <-db.ctx.Done():
			return
		}
	}
}

// start runs f in the background until it returns; Close waits for it.
func (db *DB) start(f func()) {
	db.running.Add(1)
	go func() {
		defer db.running.Done()
		f()
	}()
}

// advance makes the state of the news, which follows s. It owns the news' State, and calls each, if not nil, with every header that is new.
func (db *DB) advance(s *state, news News, c Cipher, each func(*audit.Header)) (*state, error) {
	next := db.newState(news.State, s.head, s.hash, c)
	next.inherit(s)
	err := next.follow(news, each)
	if err == nil && next.head.Seq == s.head.Seq && db.shared != nil {
		err = next.holds(s.head.Seq, s.hash)
	}
	if err != nil {
		next.release()
		return nil, err
	}
	return next, nil
}

// follow takes the state, which nobody else has yet, to that of the news: it verifies the headers after its own.
func (s *state) follow(news News, each func(*audit.Header)) error {
	chain := audit.Resume(s.cipher, s.head, s.hash)
	for _, e := range news.Headers {
		if err := s.step(chain, e, each); err != nil {
			return err
		}
	}
	if news.More {
		for e, err := range news.State.Scan(Range{Table: Head, From: Uint64Key(chain.Last.Seq + 1)}, false) {
			if err == nil {
				err = s.step(chain, e, each)
			}
			if err != nil {
				return err
			}
		}
	}
	s.head, s.hash = chain.Last, chain.Hash()
	return nil
}

// step takes the state past one header. The chain has the same place.
func (s *state) step(chain *audit.Chain, e Stored, each func(*audit.Header)) error {
	if len(e.Bytes) < versionLen {
		return &Damage{e.Key, "it is cut short"}
	}
	h, err := chain.Next(e.Bytes[versionLen:])
	if err != nil {
		return &Damage{e.Key, err.Error()}
	}
	s.note(h)
	s.remember(*h, chain.Hash())
	if each != nil {
		each(h)
	}
	return nil
}

// note takes down what tables a header touched.
func (s *state) note(h *audit.Header) {
	for i := range h.Touched {
		if t := h.Touched[i].Table; t < uint8(tables) {
			s.changed[t] = h.Seq
		}
	}
	s.changed[Head] = h.Seq
	s.changed[Batches] = h.Seq
	if h.Count > 0 {
		s.changed[Records], s.changed[ByPath], s.changed[ByWho] = h.Seq, h.Seq, h.Seq
	}
}

// recentHeaders is how many of the last headers a state knows by heart, or twice as many; none from before one that touched more than
// recentTouches rows.
const (
	recentHeaders = 64
	recentTouches = 1000
)

// inherit has a new state know what the one knows from which it is reached.
func (s *state) inherit(from *state) {
	s.changed, s.from = from.changed, from.point()
	s.recent, s.hashes = slices.Clone(from.recent), slices.Clone(from.hashes)
}

// remember takes down a header, which continues those before, and its hash. The state has its lists to itself.
func (s *state) remember(h audit.Header, hash audit.Hash) {
	if len(s.hashes) == 2*recentHeaders {
		s.hashes = append(s.hashes[:0:0], s.hashes[recentHeaders:]...)
	}
	s.hashes = append(s.hashes, hash)
	if len(h.Touched) > recentTouches {
		s.recent = nil
		return
	}
	if len(s.recent) == 2*recentHeaders {
		s.recent = append(s.recent[:0:0], s.recent[recentHeaders:]...)
	}
	s.recent = append(s.recent, &h)
}

// Head is the header of the last durable commit; the zero Header of an empty store. Callers must not change it.
func (db *DB) Head() audit.Header {
	if s := db.published.Load(); s != nil {
		return s.head
	}
	return audit.Header{}
}

// Now is lease time: the clock's, but never before the last header and never before what Now said already.
func (db *DB) Now() time.Time { return db.clock.now().Truncate(time.Microsecond) }

// ClockAlarm tells why lease time should not be acted upon: the wall clock ran ahead of the monotonic one by minutes, or
// the store was last written minutes in the clock's future. While it is not nil, nothing should be reaped. Now meanwhile goes on
// at the monotonic clock's pace.
func (db *DB) ClockAlarm() error { return db.clock.alarm() }

// AcceptClock ends a ClockAlarm: an operator says that the wall clock is right.
func (db *DB) AcceptClock() { db.clock.accept() }

// Fault is why the store stopped serving; nil if it did not. What ends it, errors.Is tells: after ErrUncertain and ErrLost it is enough to
// open the store again, which reads what is true now. ErrBehind and damage stay until somebody looks into them.
func (db *DB) Fault() error {
	if f := db.fault.Load(); f != nil {
		return *f
	}
	return nil
}

// fail stops the store for good.
func (db *DB) fail(err error) {
	if db.fault.CompareAndSwap(nil, &err) {
		db.log.Error("the store stopped serving", "error", err)
		db.queue.close()
		close(db.halted)
	}
}

// Outcome tells whether a batch, named by an Uncertain error, was committed. Ids are kept for an hour. It is definitive on
// a store that was reopened.
func (db *DB) Outcome(batch string) (Receipt, bool, error) {
	s, err := db.latest()
	if err != nil {
		return Receipt{}, false, err
	}
	defer s.release()
	stored, err := s.snap.Get(Key{Batches, batch})
	if err != nil || stored == nil {
		return Receipt{}, false, err
	}
	h, err := s.header(storedVersion(stored))
	if err != nil {
		return Receipt{}, false, err
	}
	return Receipt{h.Seq, h.Time}, true, nil
}

// Committed is the time of a commit.
func (db *DB) Committed(seq uint64) (time.Time, error) {
	s, err := db.latest()
	if err != nil {
		return time.Time{}, err
	}
	defer s.release()
	h, err := s.header(seq)
	return h.Time, err
}

// header reads the header of one commit.
func (s *state) header(seq uint64) (audit.Header, error) {
	if seq == s.head.Seq {
		return s.head, nil
	}
	stored, err := s.snap.Get(headKey(seq))
	if err != nil {
		return audit.Header{}, err
	}
	h, _, err := decodeHead(Stored{headKey(seq), stored})
	return h, err
}

// closeGrace is how long Close waits for Views, and before that for a backend that does not let it write.
const closeGrace = 10 * time.Second

// Close commits what is queued, brings the anchor up to date and closes the backend. What waits to be written for ten seconds, behind other nodes or
// a Shared backend that is away, is refused with ErrUnreachable. It waits for open Views for ten seconds;
// if some stay open it returns an error and leaves the backend open, since closing it would pull the ground from under them; a Shared one it
// closes all the same, so that other nodes do not wait for this one.
func (db *DB) Close() error {
	db.once.Do(func() {
		db.queue.close()
		db.cancel()
		late := time.AfterFunc(closeGrace, db.breakOff)
		db.running.Wait()
		late.Stop()
		db.breakOff()
		err := db.storeAnchor()
		db.publish.Lock()
		s := db.published.Swap(nil)
		db.publish.Unlock()
		if s != nil {
			close(s.next)
			s.release()
		}
		gone := make(chan struct{})
		go func() { db.states.Wait(); close(gone) }()
		select {
		case <-gone:
			if db.closed = err; !db.lent {
				db.closed = errors.Join(err, db.b.Close())
			}
		case <-time.After(closeGrace):
			db.closed = errors.New("store: a View is still open; the backend was not closed")
			if db.shared != nil { // it bears that, and others would go on to take this node for alive
				db.closed = errors.Join(errors.New("store: a View is still open, and reads nothing more"), db.b.Close())
			}
		}
	})
	return db.closed
}

// batchID is a new id: time, so that old ids can be dropped as a range, and 10 random bytes.
func (db *DB) batchID(t time.Time) (string, error) {
	var b [10]byte
	if _, err := io.ReadFull(db.o.Random, b[:]); err != nil {
		return "", err
	}
	return batchTime(t) + string(b[:]), nil
}

// batchTime is what ids of batches made at t begin with: milliseconds in 6 bytes.
func batchTime(t time.Time) string { return TimeKey(t)[2:] }
