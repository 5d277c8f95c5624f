package lease

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/lessor-dev/lessor/internal/store"
)

// tidy walks once over all who may use secrets, none of which is gone, and returns in how many transactions.
func (w *world) tidy(most int) (n int) {
	w.Helper()
	walk := &Tidying{most: most}
	for more := true; more; n++ {
		err := w.do(func(v store.View, txn *store.Txn) {
			var err error
			more, err = walk.Users(v, txn, secret, func(string) (bool, error) { return false, nil })
			w.must(err)
		})
		if !errors.As(err, new(*store.Conflict)) {
			w.must(err)
		}
	}
	return n
}

func (w *world) everybody() (all []User) {
	w.Helper()
	w.view(func(v store.View) {
		var err error
		all, err = Users(v, secret, "app")
		w.must(err)
	})
	return all
}

// A holder that is somebody else with each read leaves no more rows than some, and is waited for, and exposed, as before.
func TestCrowd(t *testing.T) {
	run(t, "another instance with each read", func(t *testing.T, w *world) {
		const reads = 10000
		for i := range reads {
			if _, _, writes := w.read(uint64(1+i%3), Holder{Entity: "e-many", Instance: fmt.Sprint(i)}, rotatable); writes != 3 {
				t.Fatalf("read %d costs %d writes", i, writes)
			}
		}
		w.read(2, bob, rotatable)
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if n := len(w.everybody()); n != reads+1 {
			t.Fatalf("%d users", n)
		}
		if n := w.tidy(0); n < reads/settled {
			t.Errorf("merged in %d transactions", n)
		}
		all := w.everybody()
		if len(all) != individuals+2 {
			t.Errorf("%d users are left", len(all))
		}
		i := slices.IndexFunc(all, func(u User) bool { return u.Many > 0 })
		if i < 0 || all[i].Many != reads-individuals || all[i].Oldest != 1 || all[i].Newest != 3 || all[i].Instance != Crowd || all[i].Pinned || all[i].Revoked {
			t.Fatalf("they are %+v", all[max(i, 0)])
		}
		if n := w.tidy(0); n > 2 || len(w.everybody()) != individuals+2 {
			t.Errorf("again: in %d transactions, %d users", n, len(w.everybody()))
		}
		if _, _, writes := w.read(3, Holder{Entity: "e-many", Instance: "0"}, rotatable); writes != 3 {
			t.Errorf("reading again costs %d writes", writes)
		}
		w.sound()
		w.settle(2, 0)
		for _, u := range w.everybody() {
			if u.Oldest != 3 || u.Newest != 3 {
				t.Errorf("what is dead is used by %+v", u)
			}
		}
		w.must(w.reaper.Settle(ctx, w.bury(Selector{Kind: ByHolder, Value: "e-many", Instance: "1"}, false)))
		if all := w.everybody(); w.exposures() == 0 || !slices.ContainsFunc(all, func(u User) bool { return u.Many > 0 && !u.Revoked }) {
			t.Errorf("one of many is thrown out: %d exposures", w.exposures())
		}
		w.must(w.reaper.Settle(ctx, w.bury(Selector{Kind: ByHolder, Value: "e-many"}, false)))
		if slices.ContainsFunc(w.everybody(), func(u User) bool { return u.Entity == "e-many" && !u.Revoked }) {
			t.Error("a holder that is thrown out is waited for")
		}
		for i := range individuals + 10 {
			w.read(3, Holder{Entity: "e-many", Instance: fmt.Sprint("later ", i)}, rotatable)
		}
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		w.tidy(0)
		crowds := map[bool]uint64{}
		for _, u := range w.everybody() {
			crowds[u.Revoked] += u.Many
		}
		if crowds[false] != 10 || crowds[true] != reads-individuals {
			t.Errorf("of those that come together once others were thrown out: %v", crowds)
		}
		w.settle(3, 0)
		w.empty()
	})
}

// TestCrowdWaits has holders' instances read, acknowledge, end and be thrown out, while they are merged again and again: whoever may use something is
// waited for, under whichever name, unless it was thrown out; and what is known to who was is exposed.
func TestCrowdWaits(t *testing.T) {
	inBubbles(t, crowded)
}

// together is how many of a holder's lapsed instances stay by themselves in TestCrowdWaits.
const together = 2

func crowded(rt *rapid.T) {
	h := &throng{world: newWorld(rt), current: 1, readers: map[reader]*usage{}, leases: map[string]reader{}}
	h.start()
	defer func() { h.close() }()
	rt.Repeat(map[string]func(*rapid.T){
		"rotate":      func(*rapid.T) { h.current++ },
		"read":        h.readSome,
		"acknowledge": h.acknowledgeSome,
		"release":     h.releaseSome,
		"revoke":      h.revokeSome,
		"remove":      h.removeSome,
		"settle":      h.settleSome,
		"wait": func(rt *rapid.T) {
			time.Sleep(rapid.SampledFrom([]time.Duration{time.Second, 25 * time.Hour, 25 * time.Hour}).Draw(rt, "pause"))
		},
		"tidy": func(*rapid.T) { synctest.Wait(); h.tidy(together) },
		"":     func(*rapid.T) { h.check() },
	})
	h.must(h.reaper.Settle(ctx, h.bury(Selector{Kind: ByMount, Value: secret.UUID}, false)))
	h.settle(h.current, 0)
	h.empty()
}

// throng is what is true of the instances that read a secret.
type throng struct {
	*world
	current, dead uint64
	exposed       uint64 // newest version that somebody knows who was thrown out; 0: none that is not dead
	readers       map[reader]*usage
	leases        map[string]reader
}

// reader is an instance, or what is known of its reads of one version.
type reader struct {
	Holder
	pinned uint64
}

func (h *throng) holder(rt *rapid.T) Holder {
	who := rapid.SampledFrom([]Holder{alice, bob}).Draw(rt, "holder")
	who.Instance = fmt.Sprint(rapid.IntRange(1, 12).Draw(rt, "instance"))
	return who
}

func (h *throng) readSome(rt *rapid.T) {
	for range rapid.IntRange(1, 8).Draw(rt, "readers") {
		who := reader{Holder: h.holder(rt)}
		if rapid.IntRange(0, 9).Draw(rt, "pinned") == 0 {
			who.pinned = h.current
		}
		_, id, _ := h.read(h.current, who.Holder, rotatable, func(r *Reading) { r.Value.Pinned = who.pinned > 0 })
		if h.readers[who] == nil {
			h.readers[who] = &usage{}
		}
		h.readers[who].got(id, h.current)
		h.leases[id] = who
	}
}

// lease is one that is there, whose it is, and whether it is the latest of that reader.
func (h *throng) lease(rt *rapid.T) (l *Lease, u *usage, latest bool) {
	synctest.Wait()
	var ids []string
	for id := range h.leases {
		if h.find(id) != nil {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		rt.Skip("there is no lease")
	}
	slices.Sort(ids)
	id := rapid.SampledFrom(ids).Draw(rt, "lease")
	u = h.readers[h.leases[id]]
	return h.find(id), u, u.leases[len(u.leases)-1].id == id
}

func (h *throng) acknowledgeSome(rt *rapid.T) {
	l, u, _ := h.lease(rt)
	_, err := h.acknowledge(l.ID)
	h.must(err)
	u.versions = slices.DeleteFunc(u.versions, func(v uint64) bool { return v < l.Version })
}

func (h *throng) releaseSome(rt *rapid.T) {
	l, u, latest := h.lease(rt)
	h.release(l.ID)
	if latest {
		u.versions = nil
	}
}

func (h *throng) revokeSome(rt *rapid.T) {
	l, u, latest := h.lease(rt)
	h.must(h.revoke(l, false))
	u.revoked = u.revoked || latest
	if l.Version > h.dead {
		h.exposed = max(h.exposed, l.Version)
	}
}

func (h *throng) removeSome(rt *rapid.T) {
	who := h.holder(rt)
	s := Selector{Kind: ByHolder, Value: who.Entity}
	if rapid.Bool().Draw(rt, "one instance") {
		s.Instance = who.Instance
	}
	synctest.Wait()
	h.must(h.reaper.Settle(ctx, h.bury(s, false)))
	for other, u := range h.readers {
		if other.Entity == who.Entity && is(s.Instance, other.Instance) {
			for _, v := range u.versions {
				h.exposed = max(h.exposed, v)
			}
			u.revoked = true
		}
	}
}

func (h *throng) settleSome(rt *rapid.T) {
	h.dead = max(h.dead, rapid.Uint64Range(0, h.current).Draw(rt, "dead"))
	h.settle(h.dead, 0)
	for _, u := range h.readers {
		u.versions = slices.DeleteFunc(u.versions, func(v uint64) bool { return v <= h.dead })
	}
	if h.exposed <= h.dead {
		h.exposed = 0
	}
	if h.dead == h.current {
		h.current++
	}
}

func (h *throng) check() {
	synctest.Wait()
	h.sound()
	all := h.everybody()
	for who, u := range h.readers {
		for _, v := range u.versions {
			if !slices.ContainsFunc(all, func(a User) bool {
				mine := a.Entity == who.Entity && (a.Many > 0 || a.Instance == who.Instance)
				return mine && a.Oldest <= v && a.Newest >= v && (u.revoked || !a.Revoked)
			}) {
				h.Errorf("%+v may use %d, and nobody waits for it: %+v", who, v, all)
			}
		}
	}
	for _, a := range all {
		if a.Many > 0 && (a.Acked != 0 || a.Oldest > a.Newest || a.Lapsed.IsZero() || a.Pinned) {
			h.Errorf("many are %+v", a)
		}
	}
	h.view(func(v store.View) {
		found, err := Exposures(v, secret, "app")
		h.must(err)
		if h.exposed > 0 && !slices.ContainsFunc(found, func(x Exposure) bool { return x.Version >= h.exposed }) {
			h.Errorf("version %d is known to who was thrown out, and is not exposed: %+v", h.exposed, found)
		}
	})
}
