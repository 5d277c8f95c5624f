package jwt

import (
	"context"
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
		select {
		case <-known.done:
			return known.value, known.err
		default:
			return nil, &engine.Unknown{Learn: known.wait}
		}
	}
	if !a.from.may(r.Op.Client, r.Now) {
		return nil, api.Errorf(api.Limited, "too many logins are begun from this address; try again in a few seconds")
	}
	for k, old := range a.known {
		if !r.Now.Before(old.expires) {
			delete(a.known, k)
		}
	}
	if len(a.known) >= mostAnswers {
		return nil, api.Errorf(api.Limited, "too many logins are under way; try again in a few seconds")
	}
	if a.known == nil {
		a.known = map[string]*outcome{}
	}
	mine := &outcome{done: make(chan struct{}), expires: r.Now.Add(answerLife)}
	a.known[key] = mine
	return nil, &engine.Unknown{Learn: func(ctx context.Context) {
		defer close(mine.done)
		mine.value, mine.err = ask(context.WithoutCancel(ctx)) // others may wait for it
	}}
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

func (s *allowances) may(client netip.Addr, now time.Time) bool {
	bits := 64
	if client = client.Unmap(); client.Is4() {
		bits = 32
	}
	from, err := client.Prefix(bits)
	if err != nil {
		from = netip.Prefix{}
	}
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
