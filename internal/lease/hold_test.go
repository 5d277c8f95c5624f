package lease

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// read reads a static secret as the gate does, with another try when the ground moved.
func (w *world) read(version uint64, h Holder, set ...func(*Reading)) (terms lessor.Terms, id string, writes int) {
	w.Helper()
	for {
		err := w.do(func(v store.View, txn *store.Txn) {
			tombs, err := LoadTombs(v)
			w.must(err)
			r := Reading{View: v, Tombs: tombs, Mount: secret, Path: "secret/data/app", Value: Value{Path: "app", Version: version, Current: version},
				Holder: h, Owner: "team-a", Now: w.db.Now(), Random: w.random}
			for _, f := range set {
				f(&r)
			}
			terms, id, err = Hold(txn, r)
			w.must(err)
			writes = len(txn.Puts) + len(txn.Deletes)
		})
		if !errors.As(err, new(*store.Conflict)) {
			w.must(err)
			return terms, id, writes
		}
	}
}

func (w *world) find(id string) *Lease {
	return w.get(&Lease{Namespace: secret.Namespace, Mount: secret.UUID, ID: id})
}

func (w *world) renewStatic(id string, current uint64) (terms lessor.Terms, warning string, err error) {
	w.commit(func(v store.View, txn *store.Txn) {
		l, _, e := Find(v, secret.Namespace, secret.UUID, id)
		w.must(e)
		terms, warning, err = RenewStatic(v, txn, l, current, l.Born, w.db.Now())
	})
	return terms, warning, err
}

func pinned(r *Reading)    { r.Value.Pinned = true }
func renewable(r *Reading) { r.Renewable = true }

func TestStatic(t *testing.T) {
	run(t, "what clients see", func(t *testing.T, w *world) {
		for _, c := range []struct {
			name    string
			options map[string]string
			set     func(*Reading)
			want    lessor.Terms
			kept    bool
		}{
			{"default", nil, func(*Reading) {}, lessor.Terms{Duration: 300 * time.Second}, true},
			{"mount's duration", map[string]string{"lease_duration": "10m"}, func(*Reading) {}, lessor.Terms{Duration: 10 * time.Minute}, true},
			{"mount's duration in seconds", map[string]string{"lease_duration": "60"}, func(*Reading) {}, lessor.Terms{Duration: time.Minute}, true},
			{"nonsense", map[string]string{"lease_duration": "soon"}, func(*Reading) {}, lessor.Terms{Duration: 300 * time.Second}, true},
			{"secret's duration", map[string]string{"lease_duration": "10m"}, func(r *Reading) { r.Value.Duration = time.Hour }, lessor.Terms{Duration: time.Hour}, true},
			{"renewable on request", nil, renewable, lessor.Terms{Duration: 300 * time.Second, Renewable: true}, true},
			{"shown", map[string]string{"lease": "shown"}, func(*Reading) {}, lessor.Terms{Duration: 300 * time.Second}, true},
			{"quiet", map[string]string{"lease": "quiet"}, func(*Reading) {}, lessor.Terms{}, true},
			{"off", map[string]string{"lease": "off"}, func(*Reading) {}, lessor.Terms{}, false},
		} {
			h := Holder{Entity: c.name}
			terms, id, _ := w.read(1, h, func(r *Reading) {
				e := *secret
				e.Options = c.options
				r.Mount = &e
				c.set(r)
			})
			want := c.want
			if want.Duration > 0 {
				want.ID = id
			}
			if terms != want || (id != "") != c.kept {
				t.Errorf("%s: got %+v, id %q", c.name, terms, id)
			}
			if c.kept && (w.find(id) == nil || w.find(id).Token != "") {
				t.Errorf("%s: row %+v", c.name, w.find(id))
			}
		}
		w.sound()
	})
	run(t, "the same reader gets the same lease", func(t *testing.T, w *world) {
		terms, id, writes := w.read(1, alice)
		if writes != 3 || terms.ID != id || id[:16] != "secret/data/app/" {
			t.Fatalf("first read: %d writes, %q", writes, id)
		}
		for range 100 {
			time.Sleep(100 * time.Second)
			again, same, writes := w.read(1, alice)
			if again != terms || same != id || writes != 0 {
				t.Fatalf("got %+v, %d writes", again, writes)
			}
		}
		others := map[string]bool{id: true}
		for _, h := range []Holder{bob, {alice.Entity, alice.Alias, "another", ""}, {alice.Entity, "another", alice.Instance, ""}, {"another", alice.Alias, alice.Instance, ""}} {
			_, other, _ := w.read(1, h)
			others[other] = true
		}
		if len(others) != 5 {
			t.Errorf("holders share leases: %v", others)
		}
		w.sound()
	})
	run(t, "a newer version moves its reader only", func(t *testing.T, w *world) {
		_, a1, _ := w.read(1, alice)
		_, b1, _ := w.read(1, bob)
		_, p1, _ := w.read(1, alice, pinned)
		_, a2, _ := w.read(2, alice)
		if a2 == a1 || p1 == a1 {
			t.Fatal("one lease for two versions")
		}
		if got := w.find(a1); got == nil || got.State != Moved {
			t.Fatalf("old lease: %+v", got)
		}
		if got := w.find(b1); got.State != Live {
			t.Fatalf("somebody else's lease: %+v", got)
		}
		for _, c := range []struct {
			name, id string
			want     time.Duration
			warned   bool
		}{
			{"moved", a1, time.Second, true}, {"superseded", b1, time.Second, true}, {"current", a2, 300 * time.Second, false}, {"pinned", p1, 300 * time.Second, false},
		} {
			terms, warning, err := w.renewStatic(c.id, 2)
			if err != nil || terms.ID != c.id || terms.Duration != c.want || (warning != "") != c.warned || terms.Renewable {
				t.Errorf("renewing the %s one: %+v, %q, %v", c.name, terms, warning, err)
			}
		}
		w.sound()
		time.Sleep(25 * time.Hour)
		w.empty()
	})
	run(t, "a hold lasts from the last read", func(t *testing.T, w *world) {
		_, id, _ := w.read(1, alice)
		for day := range 10 {
			for range 24 {
				time.Sleep(time.Hour)
				if _, same, _ := w.read(1, alice); same != id {
					t.Fatalf("day %d: another lease", day)
				}
			}
		}
		w.sound()
		time.Sleep(20 * time.Hour)
		if !w.live(w.find(id)) {
			t.Fatal("lapsed too early")
		}
		time.Sleep(4*time.Hour + time.Second)
		if w.find(id) != nil {
			t.Fatal("did not lapse")
		}
		w.empty()
		if got, want := w.trail(id), []string{"expire done expired"}; !slices.Equal(got, want) {
			t.Errorf("audit: %q", got)
		}
	})
	run(t, "who reads seldom is held longer", func(t *testing.T, w *world) {
		_, id, _ := w.read(1, alice)
		time.Sleep(20 * time.Hour)
		w.read(1, alice)
		time.Sleep(59 * time.Hour)
		if _, same, _ := w.read(1, alice); same != id {
			t.Fatal("the hold is not three times the interval")
		}
		time.Sleep(2 * time.Hour)
		_, next, _ := w.read(2, alice)
		time.Sleep(170 * time.Hour)
		if l := w.find(next); l == nil || !w.live(l) {
			t.Error("a new version forgets how seldom its holder reads")
		}
		time.Sleep(10 * time.Hour)
		w.empty()
	})
	run(t, "renewals hold too", func(t *testing.T, w *world) {
		_, id, _ := w.read(1, alice, renewable)
		for range 100 {
			time.Sleep(20 * time.Hour)
			terms, warning, err := w.renewStatic(id, 1)
			if err != nil || warning != "" || terms != (lessor.Terms{ID: id, Renewable: true, Duration: 300 * time.Second}) {
				t.Fatalf("%+v, %q, %v", terms, warning, err)
			}
		}
		w.sound()
	})
	run(t, "lapsed leases are not renewed", func(t *testing.T, w *world) {
		w.stop() // the reaper is late
		_, id, _ := w.read(1, alice)
		time.Sleep(24 * time.Hour)
		if w.live(w.find(id)) {
			t.Error("live after its end")
		}
		if _, _, err := w.renewStatic(id, 1); err == nil || err.Error() != "lease expired" {
			t.Errorf("got %v", err)
		}
		if _, next, _ := w.read(1, alice); next == id {
			t.Error("a lapsed lease was given again")
		}
		w.sound()
	})
	run(t, "revoking one exposes its version", func(t *testing.T, w *world) {
		_, id, _ := w.read(7, alice)
		w.must(w.revoke(w.find(id), false))
		if w.find(id) != nil {
			t.Fatal("still there")
		}
		w.sound()
		var found []Exposure
		w.view(func(v store.View) {
			var err error
			found, err = Exposures(v, secret, "")
			w.must(err)
		})
		if len(found) != 1 || found[0].Secret != "app" || found[0].Version != 7 || found[0].Holder != alice || found[0].Lease != id || found[0].Cause != "revoked by request r-1" {
			t.Fatalf("findings: %+v", found)
		}
		w.commit(func(_ store.View, txn *store.Txn) { Resolve(txn, secret, found[0]) })
		w.view(func(v store.View) {
			if left, err := Exposures(v, secret, "app"); err != nil || len(left) != 0 {
				t.Errorf("left: %+v, %v", left, err)
			}
		})
		w.empty()
	})
	run(t, "a holder's removal", func(t *testing.T, w *world) {
		_, a, _ := w.read(1, alice)
		_, b, _ := w.read(1, bob)
		w.stop()
		tomb := w.bury(Selector{Kind: ByHolder, Value: alice.Entity}, false)
		if w.live(w.find(a)) || !w.live(w.find(b)) {
			t.Error("not in force at once, or for the wrong one")
		}
		_, again, _ := w.read(1, alice) // was let back in
		if again == a {
			t.Error("a dead lease was given again")
		}
		w.start()
		w.must(w.reaper.Settle(ctx, tomb))
		if w.find(a) != nil || !w.live(w.find(again)) || !w.live(w.find(b)) {
			t.Error("wrong ones are gone")
		}
		w.sound()
	})
	run(t, "who unwraps is the holder", func(t *testing.T, w *world) {
		_, id, _ := w.read(1, Holder{Entity: alice.Entity, Instance: "wrapped:r-9"})
		_, own, _ := w.read(1, bob)
		rehold := func(h Holder) {
			w.commit(func(v store.View, txn *store.Txn) {
				l, row, err := Find(v, secret.Namespace, secret.UUID, id)
				w.must(err)
				w.must(Rehold(v, txn, row, l, h))
			})
			w.sound()
		}
		rehold(bob)
		if got := w.find(id); got.Holder != bob || got.State != Live {
			t.Errorf("after: %+v", got)
		}
		if got := w.find(own); got.State != Moved {
			t.Errorf("what bob had: %+v", got)
		}
		if _, same, writes := w.read(1, bob); same != id || writes != 0 {
			t.Error("bob has two leases")
		}
		rehold(bob)
		rehold(alice)
		if _, next, _ := w.read(1, bob); next == id || next == own {
			t.Error("bob still has the lease")
		}
	})
}

func TestUsers(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.read(1, alice)
		w.read(2, alice)
		w.read(1, bob)
		w.read(1, bob, pinned)
		w.read(1, bob, func(r *Reading) { r.Value.Path, r.Path = "app2", "secret/data/app2" })
		holders := func() map[string]int {
			n := map[string]int{}
			w.view(func(v store.View) {
				all, err := Users(v, secret, "app")
				w.must(err)
				for _, u := range all {
					n[fmt.Sprint(u.Entity, " ", u.Version, " ", u.Pinned)]++
				}
			})
			return n
		}
		want := map[string]int{"e-alice 2 false": 1, "e-bob 1 false": 1, "e-bob 1 true": 1}
		if got := holders(); !maps.Equal(got, want) {
			t.Errorf("got %v", got)
		}
		time.Sleep(25 * time.Hour)
		if got := holders(); len(got) != 0 {
			t.Errorf("got %v", got)
		}
	})
}

// TestHotSecret has one holder's many requests read one secret at the moment when its hold is to be extended: none of them may
// get into another's way.
func TestHotSecret(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, id, _ := w.read(1, alice)
		for range 20 {
			time.Sleep(4 * time.Hour)
			var conflicts, writes atomic.Int64
			var all sync.WaitGroup
			for range 64 {
				all.Go(func() {
					for range 4 {
						err := w.do(func(v store.View, txn *store.Txn) {
							_, same, err := Hold(txn, Reading{View: v, Mount: secret, Path: "secret/data/app",
								Value: Value{Path: "app", Version: 1, Current: 1}, Holder: alice, Now: w.db.Now(), Random: w.random})
							if err != nil || same != id {
								t.Errorf("got %q, %v", same, err)
							}
							writes.Add(int64(len(txn.Puts)))
						})
						if errors.As(err, new(*store.Conflict)) {
							conflicts.Add(1)
						} else if err != nil {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			if conflicts.Load() != 0 {
				t.Errorf("%d conflicts", conflicts.Load())
			}
			if n := writes.Load(); n == 0 || n > 64 {
				t.Errorf("%d writes of 256 reads", n)
			}
		}
		w.sound()
	})
}

// TestLastMoment has a holder read just before its hold ends, while the reaper ends it: whoever commits first, the other must look again.
func TestLastMoment(t *testing.T) {
	for _, first := range []string{"reader", "reaper"} {
		run(t, first+" first", func(t *testing.T, w *world) {
			w.stop()
			_, id, _ := w.read(1, alice)
			time.Sleep(24*time.Hour - time.Millisecond)
			decided := map[string]store.Txn{}
			w.view(func(v store.View) {
				var txn store.Txn
				_, same, err := Hold(&txn, Reading{View: v, Mount: secret, Path: "secret/data/app", Value: Value{Path: "app", Version: 1, Current: 1}, Holder: alice, Now: w.db.Now(), Random: w.random})
				if err != nil || same != id {
					t.Fatalf("got %q, %v", same, err)
				}
				decided["reader"] = txn
			})
			time.Sleep(time.Millisecond)
			j, _, err := w.reaper.look(w.reaper.expireRest)
			w.must(err)
			decided["reaper"] = j.txn
			if len(decided["reader"].Puts) == 0 || len(decided["reaper"].Deletes) == 0 {
				t.Fatalf("nothing to race for: %+v", decided)
			}
			second := map[string]string{"reader": "reaper", "reaper": "reader"}[first]
			_, err = w.db.Commit(ctx, decided[first])
			w.must(err)
			if _, err := w.db.Commit(ctx, decided[second]); !errors.As(err, new(*store.Conflict)) {
				t.Errorf("the %s does not notice: %v", second, err)
			}
			w.sound()
			if live := w.find(id) != nil && w.live(w.find(id)); live != (first == "reader") {
				t.Errorf("live: %v", live)
			}
		})
	}
}
