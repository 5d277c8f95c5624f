package event

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
)

// Bounds of a Feed.
const (
	Reach = 1 << 20 // commits: a cursor that is further back is too old

	back       = 1024        // commits before the latest that a Feed begins with, for those who were here a moment ago
	mostEvents = 1 << 14     // kept at once
	mostPlaces = 1 << 16     // commits whose place is known by heart
	page       = 2048        // commits that are read again at once for somebody who comes from further back
	most       = 512         // events that Next returns at once
	idleAfter  = time.Minute // without a subscriber
	settling   = 50 * time.Millisecond
)

// ErrPlace refuses a cursor from which nobody can go on.
var ErrPlace = api.Errorf(api.Invalid, "the cursor is too old, or of a history that this store does not have: begin anew: read again what you follow, then subscribe without a cursor")

// ErrLeaving ends a subscription on a server that stops serving.
var ErrLeaving = api.Errorf(api.Unavailable, "this server stops serving: subscribe again, from the cursor that you have")

var errMany = api.Errorf(api.Limited, "too many subscribers at once: try again later, or ask another server")

// Options of a Feed. Store and Derive are needed.
type Options struct {
	Store *store.DB
	// Derive tells the events of one commit, in order, as of a View that shows it.
	Derive    func(v store.View, h *audit.Header) ([]*Event, error)
	Log       *slog.Logger // nil: none
	Most      int          // subscribers at once; 0: no bound
	PerSource int          // of them from one IPv4 address or IPv6 /64; 0: no bound
}

// Feed derives events while somebody is subscribed. Its methods are safe for concurrent use.
//
// It keeps no queue for anybody: a subscriber has a place in what all share, and is woken when there may be something for him. So a slow one costs nothing;
// who falls behind what is kept reads the chain again.
type Feed struct {
	Options
	wanted  chan struct{} // somebody subscribed
	rests   time.Duration // after so long without a subscriber nothing is derived
	replays chan struct{} // held by those who read the chain again

	mu      sync.RWMutex // guards what is kept
	ready   chan struct{}
	keeps   int       // events at most
	on      bool      // what follows is kept
	low     uint64    // commits after this one
	places  [][8]byte // of the commits low to high
	events  []*Event
	roll    sync.RWMutex // guards what follows
	all     set
	in      interested
	tokens  map[string]set // whose subscriptions end with a row of store.Tokens, by its name
	sources map[netip.Prefix]int
	idle    time.Time // since when nobody is subscribed
	moved   *time.Timer
	leaving chan struct{} // closes when all subscriptions are to end
	left    bool
}

// NewFeed makes a Feed, which tells nothing before Run.
func NewFeed(o Options) *Feed {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Feed{
		Options: o, wanted: make(chan struct{}, 1), rests: idleAfter, replays: make(chan struct{}, 2), ready: make(chan struct{}), keeps: mostEvents,
		all: set{}, in: newInterested(), tokens: map[string]set{}, sources: map[netip.Prefix]int{}, leaving: make(chan struct{}),
	}
}

// Run derives events until ctx ends, and with it all subscriptions.
func (f *Feed) Run(ctx context.Context) {
	defer f.Leave()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wanted:
		}
		for ctx.Err() == nil && !f.unwanted() {
			if err := f.follow(ctx); err != nil && ctx.Err() == nil {
				f.Log.Warn("events cannot be told at the moment; it is tried again", "error", err)
				pause(ctx, time.Second)
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// unwanted reports whether nobody has been subscribed for a while.
func (f *Feed) unwanted() bool {
	f.roll.RLock()
	defer f.roll.RUnlock()
	return len(f.all) == 0 && time.Since(f.idle) >= f.rests
}

// follow keeps what commits tell, from a little back on, while it is wanted.
func (f *Feed) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer f.cease()
	go f.rest(ctx, cancel)
	head, sure := f.Store.Head().Seq, uint64(0)
	low := head - min(head, back)
	if err := f.begin(low); err != nil {
		return err
	}
	for h, err := range f.Store.Watch(ctx, low+1) {
		if err != nil {
			if f.unwanted() {
				return nil
			}
			return err
		}
		if h.Seq > sure {
			if sure, err = f.sure(ctx); err != nil {
				return err
			}
		}
		events, err := f.derive(&h)
		if err != nil {
			f.Log.Error("the events of a commit cannot be told: subscribers are told to begin anew", "commit", h.Seq, "error", err)
		}
		f.keep(&h, events, err == nil)
		if h.Seq >= head {
			f.open()
		}
	}
	return nil
}

// rest ends what follows commits once it has not been wanted for a while.
func (f *Feed) rest(ctx context.Context, end func()) {
	tick := time.NewTicker(f.rests)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if f.unwanted() {
			end()
			return
		}
	}
}

// sure waits until what Views show survives a failover, and says up to which commit that is.
func (f *Feed) sure(ctx context.Context) (uint64, error) {
	for {
		head := f.Store.Head().Seq
		err := f.Store.Confirm(ctx)
		if err == nil || ctx.Err() != nil || f.Store.Fault() != nil {
			return head, err
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func (f *Feed) derive(h *audit.Header) ([]*Event, error) {
	v, err := f.Store.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	return f.Derive(v, h)
}

// begin starts to keep what comes after a commit.
func (f *Feed) begin(low uint64) error {
	place := [8]byte{}
	if low > 0 {
		h, _, err := f.Store.Header(low)
		if err != nil {
			return err
		}
		place = digest(&h)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on, f.low, f.places, f.events = true, low, [][8]byte{place}, nil
	return nil
}

// open lets subscribers read what is kept.
func (f *Feed) open() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.ready:
	default:
		close(f.ready)
	}
}

// cease forgets what is kept.
func (f *Feed) cease() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on, f.places, f.events = false, nil, nil
	select {
	case <-f.ready:
		f.ready = make(chan struct{})
	default:
	}
}

// keep adds the events of the next commit, and wakes those whom they may concern. If they are not known, nobody goes on from before it.
func (f *Feed) keep(h *audit.Header, events []*Event, known bool) {
	f.mu.Lock()
	f.places = append(f.places, digest(h))
	f.events = append(f.events, events...)
	switch {
	case !known:
		f.drop(h.Seq)
	case len(f.events) > f.keeps:
		f.drop(f.events[len(f.events)/2].place.Seq)
	case len(f.places) > mostPlaces:
		f.drop(f.low + mostPlaces/2)
	}
	f.mu.Unlock()

	f.roll.RLock()
	defer f.roll.RUnlock()
	for _, e := range events {
		f.in.wake(e)
	}
	if !known {
		f.wakeAll()
	}
	for _, t := range h.Touched {
		if t.Deleted && !t.Range && store.Table(t.Table) == store.Tokens {
			wake(f.tokens[t.Name])
		}
	}
	if shifts(h) {
		f.look()
	}
}

// drop forgets the commits up to low; f.mu is held.
func (f *Feed) drop(low uint64) {
	f.places = slices.Clone(f.places[low-f.low:])
	f.events = slices.Clone(f.events[f.next(end(low)):])
	f.low = low
}

// next is the index of the first event behind a place; f.mu is held.
func (f *Feed) next(p Place) int {
	i, _ := slices.BinarySearchFunc(f.events, p, func(e *Event, p Place) int {
		if e.place.Compare(p) <= 0 {
			return -1
		}
		return 1
	})
	return i
}

// shifts reports whether a commit may have ended very many tokens, or changed who may what.
func shifts(h *audit.Header) bool {
	return slices.ContainsFunc(h.Touched, func(t audit.Touch) bool {
		switch store.Table(t.Table) {
		case store.Tombs, store.Policies, store.Identity:
			return true
		case store.Tokens:
			return t.Range
		}
		return false
	})
}

// look has all subscribers look, soon, whether they still may: f.roll is held. Who is told something is looked at anyway; this is about when others
// learn that it is over. It is done the more seldom the more there are.
func (f *Feed) look() {
	wait := settling + time.Duration(len(f.all))*50*time.Microsecond
	if f.moved == nil {
		f.moved = time.AfterFunc(wait, func() {
			f.roll.Lock()
			defer f.roll.Unlock()
			f.moved = nil
			f.wakeAll()
		})
	}
}

// wakeAll has all subscribers look; f.roll is held.
func (f *Feed) wakeAll() { wake(f.all) }

// wake has subscribers look whether they still may.
func wake(all set) {
	for s := range all {
		s.again.Store(true)
		s.poke()
	}
}

// Leave ends all subscriptions, and those to come, with ErrLeaving, once they were told what there is.
func (f *Feed) Leave() {
	f.roll.Lock()
	defer f.roll.Unlock()
	if !f.left {
		f.left = true
		close(f.leaving)
	}
}

// Subscribers is how many there are.
func (f *Feed) Subscribers() int {
	f.roll.RLock()
	defer f.roll.RUnlock()
	return len(f.all)
}

// Now is the cursor behind all that a View shows.
func (f *Feed) Now(v store.View) (Cursor, error) {
	h, _, err := f.Store.Header(v.Position())
	if err != nil {
		return Cursor{}, err
	}
	return At(&h), nil
}

// Resume reads a cursor, and says whether one can go on from it: ErrPlace.
func (f *Feed) Resume(text string) (Cursor, error) {
	c, err := Parse(text)
	if err != nil {
		return c, ErrPlace
	}
	f.mu.RLock()
	known := f.on && c.Seq >= f.low && c.Seq-f.low < uint64(len(f.places))
	same := known && f.places[c.Seq-f.low] == c.of
	f.mu.RUnlock()
	switch head := f.Store.Head().Seq; {
	case same:
		return c, nil
	case known, c.Seq == 0, c.Seq > head, head-c.Seq > Reach:
		return c, ErrPlace
	}
	h, _, err := f.Store.Header(c.Seq)
	if err != nil {
		return c, err
	}
	if !c.Of(&h) {
		return c, ErrPlace
	}
	return c, nil
}

// Subscription is one subscriber's. Its methods are for one goroutine at a time.
type Subscription struct {
	feed     *Feed
	interest Interest
	tokens   []string // with one of which it ends
	source   netip.Prefix
	cursor   Cursor
	woken    chan struct{}
	again    atomic.Bool // to look whether it still may
}

// Subscribe tells somebody at an address what is behind a cursor. He is woken to look whether he still may when one of the tokens is gone: names of rows of
// store.Tokens, which must be there in a View that is opened after this. The error is of kind Limited: there are too many.
func (f *Feed) Subscribe(client netip.Addr, i Interest, after Cursor, tokens ...string) (*Subscription, error) {
	s := &Subscription{feed: f, interest: i, tokens: tokens, source: source(client), cursor: after, woken: make(chan struct{}, 1)}
	f.roll.Lock()
	defer f.roll.Unlock()
	if f.Most > 0 && len(f.all) >= f.Most || f.PerSource > 0 && f.sources[s.source] >= f.PerSource {
		return nil, errMany
	}
	f.all[s] = struct{}{}
	f.sources[s.source]++
	f.in.add(s)
	for _, name := range tokens {
		enrol(f.tokens, name, s)
	}
	select {
	case f.wanted <- struct{}{}:
	default:
	}
	return s, nil
}

// source is what of an address tells one who asks from another.
func source(client netip.Addr) netip.Prefix {
	bits := 64
	if client = client.Unmap(); client.Is4() {
		bits = 32
	}
	p, _ := client.Prefix(bits)
	return p
}

// Close ends the subscription.
func (s *Subscription) Close() {
	f := s.feed
	f.roll.Lock()
	defer f.roll.Unlock()
	if _, ok := f.all[s]; !ok {
		return
	}
	delete(f.all, s)
	if f.sources[s.source]--; f.sources[s.source] == 0 {
		delete(f.sources, s.source)
	}
	f.in.remove(s)
	for _, name := range s.tokens {
		strike(f.tokens, name, s)
	}
	f.idle = time.Now()
}

func (s *Subscription) poke() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

// Cursor is behind all that Next returned, and what did not concern the subscriber.
func (s *Subscription) Cursor() Cursor { return s.cursor }

// Next waits for what comes next, and returns it, in order. It may return nothing: then it is time to look whether the subscriber still may
// hear of anything. The errors are ctx's, ErrLeaving, ErrPlace and the store's.
func (s *Subscription) Next(ctx context.Context) ([]*Event, error) {
	for {
		if err := s.feed.await(ctx); err != nil {
			return nil, err
		}
		found, next, kept, more := s.feed.after(s.cursor, &s.interest)
		if !kept {
			var err error
			if found, next, err = s.feed.replay(ctx, s.cursor, &s.interest); err != nil {
				return nil, err
			}
		}
		s.cursor = next
		switch {
		case len(found) > 0, s.again.Swap(false):
			return found, nil
		case !kept, more:
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			continue
		}
		select {
		case <-s.woken:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.feed.leaving:
			return nil, ErrLeaving
		}
	}
}

// await returns once the Feed keeps what commits tell.
func (f *Feed) await(ctx context.Context) error {
	f.mu.RLock()
	ready := f.ready
	f.mu.RUnlock()
	select {
	case <-ready:
		return nil
	default:
	}
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-f.leaving:
		return ErrLeaving
	}
}

// after finds what is of interest behind a cursor, and the cursor behind it. kept is false if what is kept begins later; more is true if it has not looked
// at all that there is, so that nobody looks for long without a look at what else has happened.
func (f *Feed) after(c Cursor, i *Interest) (found []*Event, next Cursor, kept, more bool) {
	events, last, kept := f.behind(c)
	if !kept {
		return nil, c, false, false
	}
	for n, e := range events {
		if i.Wants(e) {
			found = append(found, e)
		}
		if (len(found) == most || n+1 == page) && n+1 < len(events) {
			return found, Cursor{e.place, e.of}, true, true
		}
	}
	if c.Compare(last.Place) < 0 {
		c = last
	}
	return found, c, true, false
}

// behind are the events behind a cursor, and the cursor behind them, if what is kept begins there. Nobody changes them: they are looked at without f.mu, since
// a filter takes its time.
func (f *Feed) behind(c Cursor) (events []*Event, last Cursor, kept bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.on || c.Compare(end(f.low)) < 0 {
		return nil, c, false
	}
	n := len(f.places) - 1
	return f.events[f.next(c.Place):], Cursor{end(f.low + uint64(n)), f.places[n]}, true
}

// replay is after for what is not kept: it reads a piece of the chain.
func (f *Feed) replay(ctx context.Context, c Cursor, i *Interest) (found []*Event, next Cursor, err error) {
	select {
	case f.replays <- struct{}{}:
		defer func() { <-f.replays }()
	case <-ctx.Done():
		return nil, c, ctx.Err()
	case <-f.leaving:
		return nil, c, ErrLeaving
	}
	head, n := f.Store.Head().Seq, 0
	if head > c.Seq && head-c.Seq > Reach {
		return nil, c, ErrPlace
	}
	for h, err := range f.Store.Watch(ctx, c.Seq) {
		if err != nil {
			if ctx.Err() != nil && next.Seq > 0 {
				break // so that it comes further next time
			}
			return nil, c, err
		}
		events, err := f.derive(&h)
		if err != nil {
			f.Log.Error("the events of a commit cannot be told: a subscriber is told to begin anew", "commit", h.Seq, "error", err)
			return nil, c, ErrPlace
		}
		for _, e := range events {
			if e.place.Compare(c.Place) > 0 && i.Wants(e) {
				found = append(found, e)
			}
		}
		if next = At(&h); len(found) >= most || h.Seq >= head {
			break
		}
		if n++; n == page {
			break
		}
	}
	return found, next, nil
}
