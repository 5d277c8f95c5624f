package quota

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Guard applies the rules on one node. Its methods are safe for concurrent use; those of a nil Guard allow everything.
type Guard struct {
	db     *store.DB
	failed func(error)
	now    atomic.Pointer[active]

	mu      sync.Mutex
	moved   chan struct{} // closed when seen moves on; nil: nobody waits
	seen    uint64        // the commit up to which the feed was followed
	leases  *leases       // nil while nothing limits leases
	counted bool          // leases has been counted as of seen
}

// active are the rules in force, with their counts of requests.
type active struct {
	*Rules
	windows map[*Rule]*windows
}

// NewGuard makes a Guard that knows the rules as of now. Run keeps it up to date; failed is told of what went wrong and
// is tried again.
func NewGuard(db *store.DB, failed func(error)) (*Guard, error) {
	g := &Guard{db: db, failed: failed}
	v, err := db.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	if err := g.load(v); err != nil {
		return nil, err
	}
	g.seen = v.Position()
	return g, nil
}

// Rules are the rules in force.
func (g *Guard) Rules() *Rules { return g.now.Load().Rules }

// load takes the rules of a View. What a rule that is as it was has counted, it has counted.
func (g *Guard) load(v store.View) error {
	mounts, err := mount.Load(v)
	if err != nil {
		return err
	}
	rules, err := Load(v, mounts)
	if err != nil {
		return err
	}
	a := &active{Rules: rules, windows: map[*Rule]*windows{}}
	before := g.now.Load()
	for _, r := range rules.rules {
		if r.Kind != RateLimit {
			continue
		}
		a.windows[r] = &windows{}
		if before == nil {
			continue
		}
		if old := before.Named(r.Kind, r.Name); old != nil && old.row.Version == r.row.Version {
			a.windows[r] = before.windows[old]
		}
	}
	g.now.Store(a)
	return nil
}

// Run follows the store's changes until ctx ends.
func (g *Guard) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := g.follow(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrClosed) {
			g.failed(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// follow counts afresh and then takes one commit after the other.
func (g *Guard) follow(ctx context.Context) error {
	v, err := g.db.View()
	if err != nil {
		return err
	}
	err = g.refresh(v)
	from := v.Position()
	v.Close()
	if err != nil {
		return err
	}
	for h, err := range g.db.Watch(ctx, from+1) {
		if err != nil {
			return err
		}
		if err := g.take(&h); err != nil {
			return err
		}
	}
	return nil
}

// refresh takes rules and counts of leases from a View.
func (g *Guard) refresh(v store.View) error {
	if err := g.load(v); err != nil {
		return err
	}
	rules := g.Rules()
	var ls *leases
	if rules.kinds[LeaseCount] {
		ls = newLeases(rules)
		if err := ls.count(v); err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if ls != nil && g.leases != nil {
		ls.reserved = g.leases.reserved
		ls.settle()
	}
	g.leases, g.counted = ls, true
	g.advance(v.Position())
	return nil
}

// take takes one commit.
func (g *Guard) take(h *audit.Header) error {
	reload, tokens := false, []string(nil)
	for i := range h.Touched {
		switch t := &h.Touched[i]; store.Table(t.Table) {
		case store.Mounts:
			reload = true
		case store.Config:
			reload = reload || covers(t, root)
		case store.Leases, store.Tokens, store.Due:
			reload = reload || t.Range && g.counts()
			if store.Table(t.Table) == store.Tokens && !t.Deleted {
				tokens = append(tokens, t.Name)
			}
		}
	}
	if !reload && !g.counts() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.advance(h.Seq)
		return nil
	}
	v, err := g.db.View()
	if err != nil {
		return err
	}
	defer v.Close()
	if reload {
		return g.refresh(v) // and is ahead of the feed by what the View shows; what comes again does no harm
	}
	made, err := g.leases.made(v, tokens)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leases.take(h, made)
	g.advance(h.Seq)
	return nil
}

// counts reports whether leases are counted. Only Run's goroutine changes that.
func (g *Guard) counts() bool { return g.leases != nil }

// covers reports whether a change is about names with a prefix.
func covers(t *audit.Touch, prefix string) bool {
	if !t.Range {
		return len(t.Name) >= len(prefix) && t.Name[:len(prefix)] == prefix
	}
	return t.Name < store.PrefixEnd(prefix) && (t.To == "" || t.To > prefix)
}

// advance moves seen on. The caller holds the lock.
func (g *Guard) advance(seq uint64) {
	g.seen = max(g.seen, seq)
	if g.moved != nil {
		close(g.moved)
		g.moved = nil
	}
}

// wait waits until ready, which is asked under the lock.
func (g *Guard) wait(ctx context.Context, ready func() bool) error {
	for {
		g.mu.Lock()
		if ready() {
			g.mu.Unlock()
			return nil
		}
		if g.moved == nil {
			g.moved = make(chan struct{})
		}
		moved := g.moved
		g.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Sync waits until what is durable now is in force here.
func (g *Guard) Sync(ctx context.Context) error {
	if g == nil {
		return nil
	}
	target := g.db.Head().Seq
	return g.wait(ctx, func() bool { return g.counted && g.seen >= target })
}

// Request is what a rate limit looks at.
type Request struct {
	Path   string
	Client netip.Addr
	Role   string // of a login
	Entity string
	Now    time.Time
}

// Verdict is what the rate limits say of a request.
type Verdict struct {
	Rule   *Rule       // that refuses; nil: none does
	Header [][2]string // for the answer, if the operator wants them told
}

// Limits reports whether there is any rate limit.
func (g *Guard) Limits() bool { return g != nil && g.Rules().kinds[RateLimit] }

// NeedsCaller reports whether a request for path can be judged only when its role or entity is known.
func (g *Guard) NeedsCaller(path string) bool {
	rules := g.Rules()
	if rules.Roles(RateLimit, path) {
		return true
	}
	r := rules.For(RateLimit, path, "")
	return r != nil && (r.GroupBy == ByEntityThenIP || r.GroupBy == ByEntityThenNone)
}

// Allow counts a request against the rate limit that covers it.
func (g *Guard) Allow(q Request) Verdict {
	a := g.now.Load()
	r := a.For(RateLimit, q.Path, q.Role)
	if r == nil || a.Exempts(q.Path) {
		return Verdict{}
	}
	group, rate := r.group(q.Client, q.Entity)
	t := a.windows[r].take(r, rate, group, q.Client, q.Now)
	var v Verdict
	if !t.allowed {
		v.Rule = r
	}
	if !a.ResponseHeaders {
		return v
	}
	wait := strconv.Itoa(int(math.Ceil(t.wait.Seconds())))
	if !t.blocked {
		reset := wait
		if !t.allowed && r.Block > 0 {
			reset = strconv.Itoa(int(math.Ceil(r.Interval.Seconds())))
		}
		v.Header = append(v.Header,
			[2]string{"X-Ratelimit-Limit", strconv.FormatUint(t.limit, 10)},
			[2]string{"X-Ratelimit-Remaining", strconv.FormatUint(t.remaining, 10)},
			[2]string{"X-Ratelimit-Reset", reset})
	}
	if !t.allowed {
		v.Header = append(v.Header, [2]string{"Retry-After", wait})
	}
	return v
}

// ErrRate and ErrLeases are the answers to what a quota refuses.
func ErrRate(path string) *api.Error {
	return &api.Error{Kind: api.Limited, Text: fmt.Sprintf("request path %q: rate limit quota exceeded", path)}
}

func ErrLeases(path string) *api.Error {
	return &api.Error{Kind: api.Limited, Text: fmt.Sprintf("request path %q: lease count quota exceeded", path)}
}
