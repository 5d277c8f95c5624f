package lease

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/lessor-dev/lessor/internal/store"
)

// TestHistories lives random lives: leases are issued, renewed, revoked one by one and widely, their makers die at every step, the target
// and the server go down, and time passes. What must hold after each step is in sound and history.check.
func TestHistories(t *testing.T) {
	inBubbles(t, live)
}

// inBubbles checks a property, each time in a bubble of its own.
func inBubbles(t *testing.T, live func(*rapid.T)) {
	t.Helper()
	rapid.Check(t, func(rt *rapid.T) {
		var failure any // of rapid's, which must not leave the bubble by itself
		synctest.Test(t, func(*testing.T) {
			defer func() { failure = recover() }()
			live(rt)
		})
		switch fmt.Sprintf("%T", failure) { // rapid tells failures apart by where they come from
		case "<nil>":
		case "rapid.invalidData":
			panic(failure)
		default:
			panic(failure)
		}
	})
}

func live(rt *rapid.T) {
	h := &history{world: newWorld(rt), leases: map[string]*known{}, tokens: map[string]bool{}}
	h.start()
	defer func() { h.close() }()
	rt.Repeat(map[string]func(*rapid.T){
		"issue":   h.issueSome,
		"read":    h.readSome,
		"renew":   h.renewSome,
		"revoke":  h.revokeSome,
		"bury":    h.burySome,
		"login":   h.login,
		"logout":  h.logout,
		"outage":  func(rt *rapid.T) { h.target.set(rapid.Bool().Draw(rt, "down")) },
		"restart": func(*rapid.T) { h.restart() },
		"wait":    h.passTime,
		"":        func(*rapid.T) { h.check() },
	})
	h.target.set(false)
	time.Sleep(100 * time.Hour)
	h.check()
	h.empty()
}

// known is what the test knows of a lease.
type known struct {
	*Lease
	until time.Time // as the holder was told
	ended bool      // somebody ended it
}

type history struct {
	*world
	leases map[string]*known
	tokens map[string]bool // live
	made   int
}

func (h *history) issueSome(rt *rapid.T) {
	l := h.draft(rapid.SampledFrom([]string{"database/creds/app", "database/creds/zoo"}).Draw(rt, "role"), rapid.SampledFrom([]time.Duration{time.Second, time.Minute, time.Hour}).Draw(rt, "ttl"),
		func(l *Lease) {
			l.Holder = rapid.SampledFrom([]Holder{alice, bob}).Draw(rt, "holder")
			l.Owner = rapid.SampledFrom([]string{"team-a", "team-b"}).Draw(rt, "owner")
			l.Target = rapid.SampledFrom([]string{"pg", "pg2"}).Draw(rt, "target")
			l.Token = h.someToken(rt)
		})
	h.must(h.pend(l))
	k := &known{Lease: l, until: l.Expires}
	h.leases[l.ID] = k
	for _, step := range []func() error{func() error { return h.target.apply(l) }, func() error { return h.confirm(l) }} {
		if rapid.IntRange(0, 9).Draw(rt, "dies") == 0 || step() != nil {
			k.ended = true
			return
		}
	}
}

func (h *history) someToken(rt *rapid.T) string {
	for _, name := range slices.Sorted(maps.Keys(h.tokens)) {
		if rapid.Bool().Draw(rt, "with token") {
			return hash(name)
		}
	}
	return ""
}

func (h *history) readSome(rt *rapid.T) {
	before := len(h.names(store.Leases))
	holder := rapid.SampledFrom([]Holder{alice, bob}).Draw(rt, "holder")
	version := rapid.Uint64Range(1, 3).Draw(rt, "version")
	_, id, _ := h.read(version, holder)
	_, again, writes := h.read(version, holder)
	if id != again || writes != 0 {
		h.Errorf("the same reader got %q, then %q with %d writes", id, again, writes)
	}
	l := h.find(id)
	if l == nil || l.Version != version || !h.live(l) || len(h.names(store.Leases)) > before+1 {
		h.Errorf("a read left %+v", l)
	}
}

func (h *history) some(rt *rapid.T) *known {
	if len(h.leases) == 0 {
		rt.Skip("no leases")
	}
	all := slices.Sorted(maps.Keys(h.leases))
	return h.leases[all[rapid.IntRange(0, len(all)-1).Draw(rt, "lease")]]
}

func (h *history) renewSome(rt *rapid.T) {
	k := h.some(rt)
	live := h.live(k.Lease)
	if _, err := h.renew(k.Lease, 0); err == nil && live {
		k.until = h.get(k.Lease).Expires
	} else if live {
		h.Errorf("a live lease was not renewed: %v", err)
	}
}

func (h *history) revokeSome(rt *rapid.T) {
	k := h.some(rt)
	h.must(h.revoke(k.Lease, false))
	k.ended = true
	if h.live(k.Lease) {
		h.Errorf("live after it was revoked")
	}
}

func (h *history) burySome(rt *rapid.T) {
	s := rapid.SampledFrom([]Selector{
		{Kind: ByPrefix, Mount: database.UUID, Value: "database/creds/app/"},
		{Kind: ByMount, Value: database.UUID},
		{Kind: ByHolder, Value: alice.Entity},
		{Kind: ByOwner, Value: "team-b"},
	}).Draw(rt, "selector")
	h.bury(s, false)
	for _, k := range h.leases {
		if s.lease(k.Lease) {
			k.ended = true
		}
	}
	if s.Kind == ByHolder {
		for name := range h.tokens {
			h.endOf(name)
		}
	}
}

func (h *history) login(*rapid.T) {
	h.made++
	name := fmt.Sprint("token ", h.made)
	h.token(name, 30*time.Minute)
	h.tokens[name] = true
}

func (h *history) endOf(name string) {
	delete(h.tokens, name)
	for _, k := range h.leases {
		if k.Token == hash(name) {
			k.ended = true
		}
	}
}

func (h *history) logout(rt *rapid.T) {
	if len(h.tokens) == 0 {
		rt.Skip("no tokens")
	}
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(h.tokens))).Draw(rt, "token")
	if h.hasToken(name) {
		h.bury(Selector{Kind: ByToken, Value: hash(name)}, false)
	}
	h.endOf(name)
}

func (h *history) passTime(rt *rapid.T) {
	time.Sleep(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 20 * time.Second, 10 * time.Minute, 2 * time.Hour}).Draw(rt, "pause"))
	for name := range h.tokens {
		if !h.hasToken(name) {
			h.endOf(name)
		}
	}
}

// check: no lease is live after its end, nobody's is lost before it, and each row is where it belongs.
func (h *history) check() {
	h.Helper()
	now := h.db.Now()
	for id, k := range h.leases {
		live := h.live(k.Lease)
		switch over := !now.Before(k.until); {
		case live && over:
			h.Errorf("%s is live after its end", id)
		case live && k.ended && k.Token == "":
			h.Errorf("%s is live though it was ended", id)
		case !live && !over && !k.ended && (k.Token == "" || h.hasToken(trimmed(k.Token))):
			h.Errorf("%s was lost: %+v", id, h.get(k.Lease))
		}
		if got := h.get(k.Lease); got == nil {
			if h.target.has(id) {
				h.Errorf("%s is gone, its account is not", id)
			}
			delete(h.leases, id)
		}
	}
	h.soundNow()
}

func trimmed(hash string) string {
	for len(hash) > 0 && hash[len(hash)-1] == ' ' {
		hash = hash[:len(hash)-1]
	}
	return hash
}

// soundNow checks sound at a moment when the reaper is not in the middle of something.
func (h *history) soundNow() {
	synctest.Wait()
	h.sound()
}
