package lease

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/lessor-dev/lessor/internal/store"
)

// TestWhoMayUse has holders read, acknowledge, unwrap, fall silent and be thrown out while a secret is rotated and its old versions die. Whatever
// happens in which order, each version that somebody may still use is known, with who it is, and nothing else is.
func TestWhoMayUse(t *testing.T) {
	inBubbles(t, use)
}

func use(rt *rapid.T) {
	h := &uses{world: newWorld(rt), current: 1, holders: map[Holder]*usage{}}
	h.start()
	defer func() { h.close() }()
	rt.Repeat(map[string]func(*rapid.T){
		"rotate":      func(*rapid.T) { h.current++ },
		"read":        h.readSome,
		"wrap":        h.wrapSome,
		"acknowledge": h.acknowledgeSome,
		"release":     h.releaseSome,
		"revoke":      h.revokeSome,
		"remove":      h.removeSome,
		"settle":      h.settleSome,
		"wait":        h.passTime,
		"restart":     func(*rapid.T) { h.restart() },
		"":            func(*rapid.T) { h.check() },
	})
	h.must(h.reaper.Settle(ctx, h.bury(Selector{Kind: ByMount, Value: secret.UUID}, false)))
	h.settle(h.current, 0)
	h.empty()
	if n := h.exposures(); n != 0 {
		h.Errorf("%d versions are exposed that are dead", n)
	}
}

// uses is what is true of the holders of a secret.
type uses struct {
	*world
	current uint64
	dead    uint64
	holders map[Holder]*usage
	exposed int // leases that were revoked, of versions that are not dead
	made    int
}

// usage is what one holder may be using.
type usage struct {
	versions []uint64 // that it has read, and has not said or been told to be done with
	leases   []leased // all that it had
	revoked  bool     // since it read last
}

type leased struct {
	id      string
	version uint64
}

func (u *usage) got(id string, version uint64) {
	u.revoked = false
	if !slices.Contains(u.versions, version) {
		u.versions = append(u.versions, version)
	}
	if n := len(u.leases); n == 0 || u.leases[n-1].id != id {
		u.leases = append(u.leases, leased{id, version})
	}
}

func (h *uses) holder(rt *rapid.T) (Holder, *usage) {
	who := rapid.SampledFrom([]Holder{alice, bob, {Entity: alice.Entity, Alias: alice.Alias, Instance: "another"}}).Draw(rt, "holder")
	if h.holders[who] == nil {
		h.holders[who] = &usage{}
	}
	return who, h.holders[who]
}

func (h *uses) readSome(rt *rapid.T) {
	who, u := h.holder(rt)
	_, id, _ := h.read(h.current, who, rotatable)
	if _, same, writes := h.read(h.current, who, rotatable); same != id || writes != 0 {
		h.Errorf("the same reader got %q, then %q with %d writes", id, same, writes)
	}
	u.got(id, h.current)
}

// wrapSome has somebody get an answer that another one wrapped some time ago.
func (h *uses) wrapSome(rt *rapid.T) {
	who, u := h.holder(rt)
	h.made++
	version := h.current
	_, id, _ := h.read(version, Holder{Entity: "e-wrapper", Instance: fmt.Sprint(Wrapped, h.made)}, rotatable)
	if rapid.Bool().Draw(rt, "rotated meanwhile") {
		h.current++
	}
	h.commit(func(v store.View, txn *store.Txn) {
		l, row, err := Find(v, secret.Namespace, secret.UUID, id)
		h.must(err)
		h.must(Rehold(v, txn, row, l, who))
	})
	u.got(id, version)
}

// acknowledgeSome has a holder say late or early, again and again, that it uses what one of its leases is on.
func (h *uses) acknowledgeSome(rt *rapid.T) {
	_, u := h.holder(rt)
	if len(u.leases) == 0 {
		rt.Skip("it has no lease")
	}
	l := rapid.SampledFrom(u.leases).Draw(rt, "lease")
	there := h.find(l.id) != nil
	if _, err := h.acknowledge(l.id); (err == nil) != there {
		h.Errorf("acknowledging, the lease there: %v: %v", there, err)
	}
	if !there || u.leases[len(u.leases)-1].version < l.version {
		return // it is about something newer than it got last
	}
	u.versions = slices.DeleteFunc(u.versions, func(v uint64) bool { return v < l.version })
}

// releaseSome has a holder say that it uses nothing any more, with its latest lease or with one that it was moved from.
func (h *uses) releaseSome(rt *rapid.T) {
	_, u := h.holder(rt)
	if len(u.leases) == 0 {
		rt.Skip("it has no lease")
	}
	l := rapid.SampledFrom(u.leases).Draw(rt, "lease")
	if h.find(l.id) == nil {
		return
	}
	h.release(l.id)
	if l == u.leases[len(u.leases)-1] {
		u.versions = nil
	}
}

func (h *uses) revokeSome(rt *rapid.T) {
	_, u := h.holder(rt)
	if len(u.leases) == 0 {
		rt.Skip("it has no lease")
	}
	l := rapid.SampledFrom(u.leases).Draw(rt, "lease")
	found := h.find(l.id)
	if found == nil {
		return
	}
	h.must(h.revoke(found, false))
	h.exposed++
	u.revoked = u.revoked || l == u.leases[len(u.leases)-1]
}

func (h *uses) removeSome(rt *rapid.T) {
	who, _ := h.holder(rt)
	before := h.exposures()
	tomb := h.bury(Selector{Kind: ByHolder, Value: who.Entity}, false)
	h.must(h.reaper.Settle(ctx, tomb))
	for other, u := range h.holders {
		if other.Entity == who.Entity {
			u.revoked = true
		}
	}
	h.exposed += h.exposures() - before
}

func (h *uses) settleSome(rt *rapid.T) {
	h.dead = max(h.dead, rapid.Uint64Range(0, h.current).Draw(rt, "dead"))
	h.settle(h.dead, 0)
	for _, u := range h.holders {
		u.versions = slices.DeleteFunc(u.versions, func(v uint64) bool { return v <= h.dead })
	}
	h.view(func(v store.View) {
		left, err := Exposures(v, secret, "app")
		h.must(err)
		for _, x := range left {
			if x.Version <= h.dead {
				h.Errorf("version %d is dead, and exposed", x.Version)
			}
		}
		h.exposed = len(left)
	})
	if h.dead == h.current {
		h.current++ // nobody reads what is dead
	}
}

func (h *uses) passTime(rt *rapid.T) {
	time.Sleep(rapid.SampledFrom([]time.Duration{time.Second, 5 * time.Hour, 25 * time.Hour}).Draw(rt, "pause"))
}

// check compares what is on record with what is true.
func (h *uses) check() {
	h.Helper()
	synctest.Wait()
	h.sound()
	if n := h.exposures(); n != h.exposed {
		h.Errorf("%d exposures, not %d", n, h.exposed)
	}
	var found []User
	h.view(func(v store.View) {
		var err error
		found, err = Users(v, secret, "app")
		h.must(err)
	})
	known := map[Holder]User{}
	for _, f := range found {
		known[f.Holder] = f
		there := h.find(f.Lease) != nil
		if f.Lapsed.IsZero() != there || f.Revoked && there {
			h.Errorf("the lease there: %v, and %+v", there, f)
		}
		if u := h.holders[f.Holder]; u == nil || len(u.versions) == 0 && !there && !f.Released {
			h.Errorf("on record for nothing: %+v", f)
		}
	}
	for who, u := range h.holders {
		f, ok := known[who]
		switch {
		case len(u.versions) == 0:
			continue
		case !ok:
			h.Errorf("%s may use %d, and is forgotten", who.Entity, u.versions)
		case f.Oldest > slices.Min(u.versions), f.Oldest < slices.Min(u.versions) && f.Oldest != h.dead+1, f.Newest < slices.Max(u.versions):
			h.Errorf("%s may use %d, and is known to use %d to %d", who.Entity, u.versions, f.Oldest, f.Newest)
		case f.Revoked != u.revoked:
			h.Errorf("%s was revoked: %v; on record is %v", who.Entity, u.revoked, f.Revoked)
		}
		if !f.Behind(f.Oldest+1, 0) || f.Behind(f.Oldest, 0) {
			h.Errorf("behind what? %+v", f)
		}
	}
}
