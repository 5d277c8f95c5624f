package lease

import (
	"slices"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// release does so with a lease.
func (w *world) release(id string) {
	w.Helper()
	w.must(w.do(func(v store.View, txn *store.Txn) {
		l, row, err := Find(v, secret.Namespace, secret.UUID, id)
		w.must(err)
		w.must(Release(v, txn, row, l, w.db.Now()))
	}))
}

func TestRelease(t *testing.T) {
	run(t, "nobody waits for who has ended, and it knows what it has read", func(t *testing.T, w *world) {
		_, a1, _ := w.read(1, alice, rotatable)
		_, a2, _ := w.read(2, alice, rotatable)
		w.release(a1) // an older one of its own is not what it uses
		w.used("e-alice 1-2")
		w.release(a2)
		w.used("e-alice 1-2 lapsed revoked")
		if w.find(a1) != nil || w.find(a2) != nil || w.exposures() != 0 {
			t.Errorf("leases %v, %v, %d exposures", w.find(a1), w.find(a2), w.exposures())
		}
		w.must(w.reaper.Settle(ctx, w.bury(Selector{Kind: ByHolder, Value: alice.Entity}, false)))
		if n := w.exposures(); n != 1 {
			t.Errorf("its removal exposes %d versions", n)
		}
		w.settle(2, 0)
		w.used()
		w.empty()
	})
	run(t, "who comes back uses nothing older", func(t *testing.T, w *world) {
		_, a1, _ := w.read(1, alice, rotatable)
		w.release(a1)
		_, a2, _ := w.read(2, alice, rotatable)
		w.used("e-alice 2-2")
		time.Sleep(2 * MinHold)
		if w.find(a2) != nil {
			t.Error("the second lease did not lapse")
		}
		w.used("e-alice 2-2 lapsed")
	})
	run(t, "where nothing is rotated the lease stays", func(t *testing.T, w *world) {
		_, a1, _ := w.read(1, alice)
		w.release(a1)
		if w.find(a1) == nil {
			t.Error("it is gone")
		}
	})
}

func checkedOut(r *Reading) { r.Value.Rotatable, r.Value.CheckOut = true, true }

// demands are the versions that are to be succeeded.
func (w *world) demands() (versions []uint64) {
	w.Helper()
	w.view(func(v store.View) {
		found, _, err := Demands(v, secret, "", 100)
		w.must(err)
		for _, d := range found {
			versions = append(versions, d.Version)
		}
	})
	return versions
}

// However a lease on what was checked out ends, it demands that the newest version which its holder has read is succeeded.
func TestCheckIn(t *testing.T) {
	for _, how := range []struct {
		name string
		end  func(w *world, id string)
	}{
		{"given back", (*world).release},
		{"lapsed", func(*world, string) { time.Sleep(2 * MinHold) }},
		{"revoked", func(w *world, id string) { w.must(w.revoke(w.find(id), false)) }},
		{"its mount was moved", func(w *world, _ string) {
			w.must(w.reaper.Settle(ctx, w.bury(Selector{Kind: ByMount, Value: secret.UUID, Moved: true}, false)))
		}},
	} {
		run(t, how.name, func(t *testing.T, w *world) {
			_, id, _ := w.read(1, alice, checkedOut)
			how.end(w, id)
			if got := w.demands(); !slices.Equal(got, []uint64{1}) {
				t.Errorf("versions %d are to be succeeded", got)
			}
		})
		run(t, how.name+", after an older one was unwrapped", func(t *testing.T, w *world) {
			_, id, _ := w.read(1, Holder{Entity: bob.Entity, Instance: Wrapped + "r-9"}, checkedOut)
			w.read(2, bob, checkedOut)
			w.commit(func(v store.View, txn *store.Txn) {
				l, row, err := Find(v, secret.Namespace, secret.UUID, id)
				w.must(err)
				w.must(Rehold(v, txn, row, l, bob))
			})
			how.end(w, id)
			if got := w.demands(); !slices.Contains(got, 2) {
				t.Errorf("versions %d are to be succeeded", got)
			}
		})
	}
}
