package quota

import (
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/internal/tally"
)

// groups is how many groups of requests a rule tells apart at once. Beyond, those of sources that come later are counted by
// their network, and at last all together: a flood of addresses neither fills memory nor gets past the limit.
const groups = 1 << 16

// windows are the counts of one rate limit.
type windows struct {
	mu    sync.Mutex
	of    map[string]*window
	swept time.Time
}

// window is the count of one group in the interval under way.
type window struct {
	start   time.Time
	used    uint64
	blocked time.Time // until when it is refused, whatever its count
}

// taken is what became of one request.
type taken struct {
	allowed   bool
	blocked   bool // by the rule's block interval, without a look at the count
	limit     uint64
	remaining uint64
	wait      time.Duration // until the interval, or the block, is over
}

// take counts a request of a group.
func (ws *windows) take(r *Rule, rate float64, group string, client netip.Addr, now time.Time) taken {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w := ws.window(r, group, client, now)
	t := taken{limit: uint64(math.Round(rate))}
	if now.Before(w.blocked) {
		t.blocked, t.wait = true, w.blocked.Sub(now)
		return t
	}
	if over := now.Sub(w.start); over >= r.Interval {
		w.start, w.used = w.start.Add(over.Truncate(r.Interval)), 0
	}
	t.wait = w.start.Add(r.Interval).Sub(now)
	if w.used < t.limit {
		w.used++
		t.allowed = true
	} else if r.Block > 0 {
		w.blocked = now.Add(r.Block)
		t.wait = r.Block
	}
	t.remaining = t.limit - min(w.used, t.limit)
	return t
}

// window finds the window of a group, or begins one.
func (ws *windows) window(r *Rule, group string, client netip.Addr, now time.Time) *window {
	if w := ws.of[group]; w != nil {
		return w
	}
	if ws.of == nil {
		ws.of = map[string]*window{}
	}
	if len(ws.of) >= groups && now.Sub(ws.swept) >= time.Second {
		ws.swept = now
		for name, w := range ws.of {
			if now.Sub(w.start) >= r.Interval && !now.Before(w.blocked) {
				delete(ws.of, name)
			}
		}
	}
	if len(ws.of) >= groups {
		group = "network " + tally.Network(client)
		if len(ws.of) >= 2*groups && ws.of[group] == nil {
			group = "others"
		}
		if w := ws.of[group]; w != nil {
			return w
		}
	}
	w := &window{start: now}
	ws.of[group] = w
	return w
}

// group is what a rule counts a request with, and at which rate.
func (r *Rule) group(client netip.Addr, entity string) (name string, rate float64) {
	second := r.SecondaryRate
	if second == 0 {
		second = r.Rate
	}
	switch r.GroupBy {
	case ByNone:
		return "", r.Rate
	case ByEntityThenIP, ByEntityThenNone:
		if entity != "" {
			return "entity " + entity, r.Rate
		}
		if r.GroupBy == ByEntityThenNone {
			return "", second
		}
		return tally.Source(client), second
	}
	return tally.Source(client), r.Rate
}
