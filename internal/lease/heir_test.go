package lease

import (
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// counting counts the rows that a View is asked for.
type counting struct {
	store.View
	rows int
}

func (c *counting) Get(k store.Key) (store.Row, error) {
	c.rows++
	return c.View.Get(k)
}

func (c *counting) Scan(t store.Table, from, to string) iter.Seq2[store.Row, error] {
	return func(yield func(store.Row, error) bool) {
		for row, err := range c.View.Scan(t, from, to) {
			if c.rows++; !yield(row, err) {
				return
			}
		}
	}
}

// inherit has h take over, and returns what ended, and how many rows were looked at.
func (w *world) inherit(h Holder, kept ...string) (ended []string, all bool, looked int) {
	w.Helper()
	w.commit(func(v store.View, txn *store.Txn) {
		c := &counting{View: v}
		ls, fit, err := Inherit(c, txn, h, slices.Sorted(slices.Values(kept)), "revoked by request r-1", w.db.Now())
		w.must(err)
		for _, l := range ls {
			ended = append(ended, l.ID)
		}
		all, looked = fit, c.rows
	})
	slices.Sort(ended)
	return ended, all, looked
}

// Who takes over ends what was his, of whatever mount, pending or live, and looks at nothing else however much there is.
func TestInherit(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		with := func(h Holder) func(*Lease) { return func(l *Lease) { l.Holder = h } }
		heir, second, nameless := Holder{Entity: "e-1", Alias: "a-1", Instance: "pod-1"}, Holder{Entity: "e-1", Alias: "a-1", Instance: "pod-2"}, Holder{Entity: "e-1", Instance: "pod-1"}
		var others []*Lease
		for _, h := range []Holder{second, nameless, {Entity: "e-1", Alias: "a-2", Instance: "pod-1"}, {Entity: "e-1", Alias: "a-1"}} {
			for range 20 {
				others = append(others, w.issue("database/creds/app", time.Hour, with(h)))
			}
		}
		first, kept := w.issue("database/creds/app", time.Hour, with(heir)), w.issue("database/creds/other", time.Hour, with(heir))
		pending := w.draft("database/creds/app", time.Hour, with(heir))
		w.must(w.pend(pending))
		w.sound()
		want := []string{first.ID, pending.ID}
		slices.Sort(want)
		ended, all, looked := w.inherit(heir, kept.ID)
		if !slices.Equal(ended, want) || !all || looked > 10 {
			t.Errorf("ended %v of %v, all: %t, rows looked at: %d", ended, want, all, looked)
		}
		w.must(w.reaper.SettleLease(ctx, first))
		for _, l := range append(others, kept) {
			if !w.live(l) {
				t.Errorf("%s of %v is gone", l.ID, l.Holder)
			}
		}
		if w.target.has(first.ID) {
			t.Error("its credential is there still")
		}
		if trail := w.trail(first.ID); len(trail) == 0 {
			t.Error("nothing is on record")
		}
		w.sound()
		if ended, all, _ := w.inherit(heir, kept.ID); len(ended) > 0 || !all {
			t.Errorf("once more: %v", ended)
		}
	})
}

// What a lessor without the index made is found once it was renewed; what such a one ended leaves nothing; who unwraps is found, and who wrapped is not.
func TestInheritBesideTheVersionBefore(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		heir := Holder{Entity: "e-1", Alias: "a-1", Instance: "pod-1"}
		with := func(l *Lease) { l.Holder = heir }
		older, ended := w.issue("database/creds/app", time.Hour, with), w.issue("database/creds/app", time.Hour, with)
		w.commit(func(v store.View, txn *store.Txn) { // as a lessor of before writes it
			l, row, err := Get(v, older)
			w.must(err)
			l.Indexed = false
			txn.Require(row)
			txn.Put(row.Table, row.Name, l.Encode())
			txn.Delete(store.LeaseIdx, l.heirName())
		})
		w.must(w.revoke(ended, false))
		w.must(w.reaper.SettleLease(ctx, ended))
		w.commit(func(_ store.View, txn *store.Txn) { txn.Put(store.LeaseIdx, ended.heirName(), nil) })
		if got, all, _ := w.inherit(heir); len(got) > 0 || !all {
			t.Errorf("before it is renewed: %v", got)
		}
		if _, err := w.renew(older, 0); err != nil {
			t.Fatal(err)
		}
		w.sound()
		other := Holder{Entity: "e-2", Alias: "a-2", Instance: "pod-2"}
		w.commit(func(v store.View, txn *store.Txn) {
			l, row, err := Get(v, older)
			w.must(err)
			w.must(Rehold(v, txn, row, l, other))
		})
		w.sound()
		if got, _, _ := w.inherit(heir); len(got) > 0 {
			t.Errorf("who had it before: %v", got)
		}
		if got, _, _ := w.inherit(other); !slices.Equal(got, []string{older.ID}) {
			t.Errorf("once it was renewed, and unwrapped: %v", got)
		}
	})
}

// More than fits into one commit is a tombstone's work.
func TestInheritMuch(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		heir := Holder{Entity: "e-1", Alias: "a-1", Instance: "pod-1"}
		for range mostInherited + 1 {
			w.issue("database/creds/app", time.Hour, func(l *Lease) { l.Holder = heir })
		}
		if ended, all, _ := w.inherit(heir); all || len(ended) > 0 {
			t.Errorf("ended %d, all: %t", len(ended), all)
		}
		w.must(w.reaper.Settle(ctx, w.bury(Selector{Kind: ByHeir, Value: heir.Entity, Alias: heir.Alias, Instance: heir.Instance}, false)))
		w.empty()
	})
}
