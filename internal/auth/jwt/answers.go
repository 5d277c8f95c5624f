package jwt

import (
	"context"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
)

// answers keeps what providers said, for a moment: an operation walks again with it, as often as the ground moves, and asks once.
type answers struct {
	mu    sync.Mutex
	known map[string]*outcome // by digest of what was asked
	from  allowances
}

// outcome is one of them.
type outcome struct {
	done    chan struct{} // closed once there is one
	value   any
	err     error
	from    netip.Prefix // network that had it asked
	expires time.Time
}

const (
	answerLife  = 2 * time.Minute
	mostAnswers = 4096
)

// of is the answer to what key names. An *engine.Unknown asks for it first, unless this client has asked for too much lately.
func (a *answers) of(r *engine.Request, key string, ask func(ctx context.Context) (any, error)) (any, error) {
	key = digest(r.Mount.UUID + "\x00" + key)
	a.mu.Lock()
	defer a.mu.Unlock()
	if known := a.known[key]; known != nil {
		if known.there() {
			return known.value, known.err
		}
		return nil, &engine.Unknown{Learn: known.wait}
	}
	from := network(r.Op.Client)
	if !a.from.may(from, r.Now) {
		return nil, api.Errorf(api.Limited, "too many logins are begun from this address; try again in a few seconds")
	}
	maps.DeleteFunc(a.known, func(_ string, old *outcome) bool { return !r.Now.Before(old.expires) })
	if len(a.known) >= mostAnswers && !a.yield(from) {
		return nil, api.Errorf(api.Limited, "too many logins are under way; try again in a few seconds")
	}
	if a.known == nil {
		a.known = map[string]*outcome{}
	}
	mine := &outcome{done: make(chan struct{}), from: from, expires: r.Now.Add(answerLife)}
	a.known[key] = mine
	return nil, &engine.Unknown{Learn: func(ctx context.Context) {
		defer close(mine.done)
		mine.value, mine.err = ask(context.WithoutCancel(ctx)) // others may wait for it
	}}
}

// yield forgets an answer for the sake of a network: the oldest of the one that has the most, if that has more. So who has very much asked takes away from
// himself. a.mu is held.
func (a *answers) yield(to netip.Prefix) bool {
	has := map[netip.Prefix]int{}
	for _, o := range a.known {
		has[o.from]++
	}
	most, key := has[to], ""
	for k, o := range a.known {
		if n := has[o.from]; o.there() && (n > most || key != "" && n == most && o.expires.Before(a.known[key].expires)) {
			most, key = n, k
		}
	}
	delete(a.known, key)
	return key != ""
}

// there reports whether the outcome is.
func (o *outcome) there() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

func (o *outcome) wait(ctx context.Context) {
	select {
	case <-o.done:
	case <-ctx.Done():
	}
}

// allowances bound how often each network has providers asked: a stranger's logins are questions in lessor's name. a.mu guards it.
type allowances map[netip.Prefix]*allowance

// allowance is how many questions are left, and as of when.
type allowance struct {
	left float64
	at   time.Time
}

const (
	burst       = 20.0 // questions at once
	aSecond     = 2.0  // questions that come back each second
	mostSources = 10000
)

// network is what of an address tells one who asks from another.
func network(client netip.Addr) netip.Prefix {
	bits := 64
	if client = client.Unmap(); client.Is4() {
		bits = 32
	}
	from, _ := client.Prefix(bits)
	return from
}

func (s *allowances) may(from netip.Prefix, now time.Time) bool {
	if *s == nil || len(*s) >= mostSources {
		*s = allowances{}
	}
	a := (*s)[from]
	if a == nil {
		a = &allowance{left: burst, at: now}
		(*s)[from] = a
	}
	a.left = min(burst, a.left+max(0, now.Sub(a.at).Seconds())*aSecond)
	a.at = now
	if a.left < 1 {
		return false
	}
	a.left--
	return true
}

// intervals bounds how often each device login asks.
type intervals struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// may reports whether it is time to ask again for what name names.
func (i *intervals) may(name string, now time.Time, every time.Duration) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	last, asked := i.last[name]
	if asked && now.Sub(last) < every {
		return false
	}
	if i.last == nil || len(i.last) >= mostSources {
		i.last = map[string]time.Time{}
	}
	i.last[name] = now
	return true
}
