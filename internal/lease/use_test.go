package lease

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/store"
)

func rotatable(r *Reading) { r.Value.Rotatable = true }

// users lists who may use the secret, each as "entity oldest-newest", with what else there is to say.
func (w *world) users() []string {
	w.Helper()
	var all []string
	w.view(func(v store.View) {
		users, err := Users(v, secret, "app")
		w.must(err)
		for _, u := range users {
			s := fmt.Sprintf("%s %d-%d", u.Entity, u.Oldest, u.Newest)
			if u.Acked > 0 {
				s += fmt.Sprint(" acked ", u.Acked)
			}
			if u.Pinned {
				s += " pinned"
			}
			if !u.Lapsed.IsZero() {
				s += " lapsed"
			}
			if u.Revoked {
				s += " revoked"
			}
			all = append(all, s)
		}
	})
	slices.Sort(all)
	return all
}

func (w *world) used(want ...string) {
	w.Helper()
	if got := w.users(); !slices.Equal(got, want) {
		w.Errorf("users are %q, not %q", got, want)
	}
}

// acknowledge does so with a lease, with another try when the ground moved, and returns the rows that it wrote.
func (w *world) acknowledge(id string) (writes int, err error) {
	w.Helper()
	for {
		var refused error
		failure := w.do(func(v store.View, txn *store.Txn) {
			l, row, err := Find(v, secret.Namespace, secret.UUID, id)
			w.must(err)
			if l == nil {
				refused = errors.New("lease not found")
				return
			}
			refused = Acknowledge(v, txn, row, l, w.db.Now())
			writes = len(txn.Puts) + len(txn.Deletes)
		})
		if !errors.As(failure, new(*store.Conflict)) {
			w.must(failure)
			return writes, refused
		}
	}
}

// settle says that all versions up to dead are dead, and returns how many transactions that took.
func (w *world) settle(dead, born uint64) (n int) {
	w.Helper()
	for more := true; more; {
		err := w.do(func(v store.View, txn *store.Txn) {
			var err error
			more, err = Settle(v, txn, secret, "app", dead, born)
			w.must(err)
		})
		if errors.As(err, new(*store.Conflict)) {
			more = true
			continue
		}
		w.must(err)
		n++
	}
	return n
}

func (w *world) exposures() int {
	w.Helper()
	var n int
	w.view(func(v store.View) {
		found, err := Exposures(v, secret, "")
		w.must(err)
		n = len(found)
	})
	return n
}

func TestUse(t *testing.T) {
	run(t, "reading is not adopting", func(t *testing.T, w *world) {
		w.read(1, alice, rotatable)
		w.read(1, bob, rotatable)
		w.used("e-alice 1-1", "e-bob 1-1")
		_, a2, _ := w.read(2, alice, rotatable)
		w.used("e-alice 1-2", "e-bob 1-1")
		if n, err := w.acknowledge(a2); err != nil || n != 1 {
			t.Errorf("acknowledging: %d writes, %v", n, err)
		}
		w.used("e-alice 2-2 acked 2", "e-bob 1-1")
		if n, err := w.acknowledge(a2); err != nil || n != 0 {
			t.Errorf("acknowledging again: %d writes, %v", n, err)
		}
		if _, _, writes := w.read(2, alice, rotatable); writes != 0 {
			t.Errorf("reading again costs %d writes", writes)
		}
		w.read(3, alice, rotatable)
		w.used("e-alice 2-3 acked 2", "e-bob 1-1")
		w.sound()
	})
	run(t, "who was moved on meanwhile still says what it uses", func(t *testing.T, w *world) {
		w.read(1, alice)
		_, a2, _ := w.read(2, alice)
		w.read(3, alice)
		_, err := w.acknowledge(a2)
		w.must(err)
		w.used("e-alice 2-3 acked 2")
	})
	run(t, "who reads once at boot", func(t *testing.T, w *world) {
		_, id, _ := w.read(1, alice, rotatable)
		w.read(1, bob) // nobody rotates what bob read
		time.Sleep(30 * 24 * time.Hour)
		if w.find(id) != nil || len(w.names(store.Due)) != 0 {
			t.Fatal("the lease is still there")
		}
		w.used("e-alice 1-1 lapsed")
		w.view(func(v store.View) {
			users, err := Users(v, secret, "app")
			w.must(err)
			u := users[0]
			if u.Holder != alice || u.Lease != id || u.Owner != "team-a" || u.Lapsed.Sub(u.Since) < MinHold || u.Lapsed.Sub(u.Since) > MinHold+time.Minute {
				t.Errorf("known of it: %+v", u)
			}
		})
		_, again, _ := w.read(2, alice, rotatable)
		if again == id || !w.live(w.find(again)) {
			t.Error("a lapsed lease was given again")
		}
		w.used("e-alice 1-2")
		w.settle(1, 0)
		w.used("e-alice 2-2")
		time.Sleep(100 * 24 * time.Hour)
		w.used("e-alice 2-2 lapsed")
		w.settle(1, 0)
		w.used("e-alice 2-2 lapsed")
		w.settle(2, 0)
		w.used()
		w.empty()
	})
	run(t, "a holder that is not wanted any more", func(t *testing.T, w *world) {
		_, id, _ := w.read(1, alice, rotatable)
		w.read(2, alice, rotatable)
		w.must(w.revoke(w.find(id), false)) // the one that she was moved from: the other stands
		w.used("e-alice 1-2")
		_, id, _ = w.read(2, alice, rotatable)
		w.must(w.revoke(w.find(id), false))
		w.used("e-alice 1-2 lapsed revoked")
		if n := w.exposures(); n != 2 {
			t.Errorf("%d exposures", n)
		}
		if _, again, _ := w.read(2, alice, rotatable); again == id {
			t.Error("a revoked lease was given again")
		}
		w.used("e-alice 1-2") // was let back in
		w.settle(1, 0)
		w.used("e-alice 2-2")
		if n := w.exposures(); n != 1 {
			t.Errorf("%d exposures", n)
		}
		w.settle(2, 0)
		if n := w.exposures(); n != 0 {
			t.Errorf("%d exposures", n)
		}
		w.sound()
	})
	run(t, "a mount that goes on elsewhere", func(t *testing.T, w *world) {
		w.read(1, alice, rotatable)
		w.read(1, bob, rotatable, func(r *Reading) { r.Value.Path, r.Path = "kept", "secret/data/kept" })
		_, id, _ := w.read(1, bob)
		w.must(w.reaper.Settle(ctx, w.bury(Selector{Kind: ByMount, Value: secret.UUID, Moved: true}, false)))
		if w.find(id) != nil {
			t.Error("a lease is left")
		}
		w.used("e-alice 1-1 lapsed")
		if n := w.exposures(); n != 0 {
			t.Errorf("%d exposures", n)
		}
		w.sound()
		w.must(w.reaper.Settle(ctx, w.bury(Selector{Kind: ByPrefix, Value: "secret/data/app/", Mount: secret.UUID}, false)))
		w.used("e-alice 1-1 lapsed revoked")
		if n := w.exposures(); n != 1 {
			t.Errorf("%d exposures", n)
		}
	})
	run(t, "what a version before wrote", func(t *testing.T, w *world) {
		_, id, _ := w.read(4, alice)
		w.commit(func(v store.View, txn *store.Txn) {
			l, _, err := Find(v, secret.Namespace, secret.UUID, id)
			w.must(err)
			p := l.pointer()
			p.Oldest = 0 // it did not know of it
			txn.Put(store.LeaseIdx, l.pointerKey().Name, p.encode())
		})
		w.used("e-alice 0-4")
		_, next, _ := w.read(4, alice, rotatable)
		if next == id {
			t.Error("the lease does not say that the secret is rotated")
		}
		if _, same, writes := w.read(4, alice, rotatable); same != next || writes != 0 {
			t.Errorf("reading again costs %d writes", writes)
		}
		w.used("e-alice 0-4")
		time.Sleep(25 * time.Hour)
		w.used("e-alice 0-4 lapsed")
		w.settle(3, 0)
		w.used("e-alice 4-4 lapsed")
	})
	run(t, "an answer that nobody unwraps", func(t *testing.T, w *world) {
		wrapped := Holder{Entity: alice.Entity, Instance: Wrapped + "r-9"}
		_, id, _ := w.read(1, wrapped, rotatable, func(r *Reading) { r.Least = 100 * time.Hour })
		w.used("e-alice 1-1")
		time.Sleep(99 * time.Hour)
		if !w.live(w.find(id)) {
			t.Error("the hold is shorter than the wrapping")
		}
		time.Sleep(2 * time.Hour)
		w.used()
		w.empty()
	})
	run(t, "who unwraps something older", func(t *testing.T, w *world) {
		_, id, _ := w.read(1, Holder{Entity: alice.Entity, Instance: Wrapped + "r-9"}, rotatable)
		_, own, _ := w.read(2, bob, rotatable)
		_, err := w.acknowledge(own)
		w.must(err)
		w.commit(func(v store.View, txn *store.Txn) {
			l, row, err := Find(v, secret.Namespace, secret.UUID, id)
			w.must(err)
			w.must(Rehold(v, txn, row, l, bob))
		})
		w.used("e-bob 1-2 acked 2")
		if _, err := w.acknowledge(own); err != nil { // said before it unwrapped, heard after it
			t.Error(err)
		}
		w.used("e-bob 1-2 acked 2")
		w.settle(1, 0)
		w.used("e-bob 2-2 acked 2")
		time.Sleep(25 * time.Hour)
		w.used("e-bob 2-2 acked 2 lapsed")
		w.must(w.reaper.Settle(ctx, w.bury(Selector{Kind: ByHolder, Value: bob.Entity}, false)))
		w.view(func(v store.View) {
			if found, err := Exposures(v, secret, ""); err != nil || len(found) != 1 || found[0].Version != 2 {
				t.Errorf("exposed are %+v: %v", found, err)
			}
		})
	})
	run(t, "another secret at the same path", func(t *testing.T, w *world) {
		born := func(n uint64) func(*Reading) { return func(r *Reading) { r.Value.Born = n } }
		w.read(7, alice, rotatable, born(1))
		w.read(7, bob, rotatable, born(1))
		_, id, _ := w.read(1, bob, rotatable, born(2))
		w.used("e-alice 7-7", "e-bob 0-1")
		w.view(func(v store.View) {
			users, err := Users(v, secret, "app")
			w.must(err)
			for _, u := range users {
				if !u.Behind(1, 2) {
					t.Errorf("%s uses nothing older", u.Entity)
				}
			}
		})
		_, err := w.acknowledge(id)
		w.must(err)
		w.used("e-alice 7-7", "e-bob 1-1 acked 1")
		time.Sleep(25 * time.Hour)
		w.read(2, bob, rotatable, born(2))
		w.used("e-alice 7-7 lapsed", "e-bob 1-2 acked 1")
		w.settle(1, 2)
		w.used("e-bob 2-2 acked 1")
	})
	run(t, "what is no static secret", func(t *testing.T, w *world) {
		l := w.issue("database/creds/app", time.Hour)
		w.view(func(v store.View) {
			got, row, err := Get(v, l)
			w.must(err)
			if err := Acknowledge(v, &store.Txn{}, row, got, w.db.Now()); api.KindOf(err) != api.Invalid {
				t.Errorf("got %v", err)
			}
		})
	})
	run(t, "very many", func(t *testing.T, w *world) {
		for i := range 2*settled + 100 {
			w.read(1, Holder{Entity: "e-many", Instance: fmt.Sprint(i)}, rotatable)
		}
		time.Sleep(25 * time.Hour)
		if n := len(w.users()); n != 2*settled+100 {
			t.Errorf("%d users", n)
		}
		if n := w.settle(1, 0); n != 3 {
			t.Errorf("settled in %d transactions", n)
		}
		w.empty()
	})
}
