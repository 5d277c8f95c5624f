package lease

import (
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
