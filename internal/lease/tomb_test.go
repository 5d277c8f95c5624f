package lease

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

func with(f func(*Lease)) func(*Lease) { return f }

// TestTombstones buries by each selector: what it hits is dead with the commit, gone in the background; what it does not hit, and what is made
// after it, lives on.
func TestTombstones(t *testing.T) {
	const h = time.Hour
	other := with(func(l *Lease) { l.Mount, l.ID = "another-mount-id", "other/"+l.ID[len("database/"):] })
	for _, c := range []struct {
		name     string
		selector Selector
		hit      []func(*Lease)
		spared   []func(*Lease)
	}{
		{"prefix", Selector{Kind: ByPrefix, Mount: database.UUID, Value: "database/creds/app/"},
			[]func(*Lease){with(func(*Lease) {}), with(func(l *Lease) { l.Holder = bob })},
			[]func(*Lease){with(func(l *Lease) { l.ID = "database/creds/app2/x" }), other}},
		{"mount", Selector{Kind: ByMount, Value: database.UUID},
			[]func(*Lease){with(func(*Lease) {}), with(func(l *Lease) { l.ID = "database/creds/app2/x" })},
			[]func(*Lease){other}},
		{"holder", Selector{Kind: ByHolder, Value: alice.Entity},
			[]func(*Lease){with(func(*Lease) {}), other, with(func(l *Lease) { l.Holder.Instance = "elsewhere" })},
			[]func(*Lease){with(func(l *Lease) { l.Holder = bob })}},
		{"instance of a holder", Selector{Kind: ByHolder, Value: alice.Entity, Instance: alice.Instance},
			[]func(*Lease){with(func(*Lease) {})},
			[]func(*Lease){with(func(l *Lease) { l.Holder.Instance = "elsewhere" }), with(func(l *Lease) { l.Holder.Entity = bob.Entity })}},
		{"heir", Selector{Kind: ByHeir, Value: alice.Entity, Alias: alice.Alias, Instance: alice.Instance, Kept: []string{"database/creds/app/kept"}},
			[]func(*Lease){with(func(*Lease) {}), other},
			[]func(*Lease){with(func(l *Lease) { l.Holder.Instance = "elsewhere" }), with(func(l *Lease) { l.Holder.Instance = "" }), with(func(l *Lease) { l.ID = "database/creds/app/kept" })}},
		{"owner", Selector{Kind: ByOwner, Value: "team-a"},
			[]func(*Lease){with(func(*Lease) {}), other},
			[]func(*Lease){with(func(l *Lease) { l.Owner = "team-b" }), with(func(l *Lease) { l.Owner = "" })}},
	} {
		run(t, c.name, func(t *testing.T, w *world) {
			var hit, spared []*Lease
			for _, set := range c.hit {
				hit = append(hit, w.issue("database/creds/app", h, set))
			}
			for _, set := range c.spared {
				spared = append(spared, w.issue("database/creds/app", h, set))
			}
			late := w.draft("database/creds/app", h, c.hit[0]) // decided before, durable after
			w.stop()
			id := w.bury(c.selector, false)
			for i, l := range hit {
				if w.live(l) {
					t.Errorf("hit %d lives after the commit", i)
				}
			}
			if err := w.pend(late); !errors.As(err, new(*store.Conflict)) {
				t.Errorf("a lease that was decided before the tombstone was made after it: %v", err)
			}
			after := w.issue("database/creds/app", h, c.hit[0])
			if !w.live(after) {
				t.Error("a lease that was made after the tombstone is dead")
			}
			w.start()
			w.must(w.reaper.Settle(ctx, id))
			for i, l := range hit {
				if w.get(l) != nil || w.target.has(l.ID) {
					t.Errorf("hit %d is still there", i)
				}
			}
			for i, l := range append(spared, after) {
				if !w.live(l) || !w.target.has(l.ID) {
					t.Errorf("spared %d is gone", i)
				}
			}
			if n := len(w.names(store.Tombs)); n != 0 {
				t.Errorf("%d tombstones left", n)
			}
			w.sound()
			if got, want := w.trail(hit[0].ID), []string{"revoke begun revoked by request r-2", "revoke outcome revoked by request r-2"}; !slices.Equal(got, want) {
				t.Errorf("audit: %q", got)
			}
			time.Sleep(2 * h)
			w.empty()
		})
	}
}

// TestWide buries more than one chunk, and dies in the middle.
func TestWide(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.target.slow = 10 * time.Millisecond
		for i := range 1000 {
			w.issue("database/creds/app", time.Hour, func(l *Lease) { l.Target = fmt.Sprint("pg", i%3) })
		}
		id := w.bury(Selector{Kind: ByMount, Value: database.UUID}, false)
		time.Sleep(2 * time.Millisecond)
		w.restart()
		w.sound()
		w.must(w.reaper.Settle(ctx, id))
		w.empty()
		if w.target.most < 3 || w.target.most > 12 {
			t.Errorf("%d calls at a time, for 3 targets", w.target.most)
		}
	})
}

func TestForcedTombstone(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		stuck := w.issue("database/creds/app", time.Minute)
		w.target.set(true)
		time.Sleep(time.Hour) // it is Revoking, in the queue, behind an open breaker
		fresh := w.issueDown("database/creds/app", time.Hour)
		id := w.bury(Selector{Kind: ByPrefix, Mount: database.UUID, Value: "database/creds/"}, true)
		w.must(w.reaper.Settle(ctx, id))
		if w.get(stuck) != nil || w.get(fresh) != nil {
			t.Error("force waits for the target")
		}
		if m := w.reaper.Metrics(); m.Forced != 2 {
			t.Errorf("metrics: %+v", m)
		}
		w.target.forget()
		time.Sleep(2 * time.Hour)
		w.empty()
	})
}

// issueDown issues while the target refuses reverts only.
func (w *world) issueDown(path string, ttl time.Duration) *Lease {
	l := w.draft(path, ttl)
	w.must(w.pend(l))
	w.target.mu.Lock()
	w.target.accounts[l.ID] = true
	w.target.mu.Unlock()
	w.must(w.confirm(l))
	return l
}

func TestTokenTree(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		of := func(name string) func(*Lease) { return func(l *Lease) { l.Token = hash(name) } }
		w.token("root", 2*time.Hour)
		w.token("a", 2*time.Hour, "root")
		w.token("aa", 2*time.Hour, "a", "root")
		w.token("b", 2*time.Hour, "root")
		w.token("stranger", 2*time.Hour)
		var hit []*Lease
		for _, name := range []string{"root", "a", "aa", "b"} {
			for range 100 {
				hit = append(hit, w.issue("database/creds/app", time.Hour, of(name)))
			}
		}
		spared := w.issue("database/creds/app", time.Hour, of("stranger"))
		id := w.bury(Selector{Kind: ByToken, Value: hash("root")}, false)
		if w.hasToken("root") {
			t.Error("the token outlives its burial")
		}
		w.must(w.reaper.Settle(ctx, id))
		for _, name := range []string{"a", "aa", "b"} {
			if w.hasToken(name) {
				t.Errorf("token %s is left", name)
			}
		}
		for _, l := range hit {
			if w.get(l) != nil || w.target.has(l.ID) {
				t.Fatal("a lease is left")
			}
		}
		if !w.live(spared) || !w.hasToken("stranger") {
			t.Error("somebody else's is gone")
		}
		if n := len(w.names(store.Secrets)); n != 1 {
			t.Errorf("%d cubbyholes left, want the stranger's", n)
		}
		w.sound()
		time.Sleep(3 * time.Hour)
		w.empty()
	})
}

func TestTokenExpires(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.token("t", time.Hour)
		w.token("child", 10*time.Hour, "t")
		long := w.issue("database/creds/app", 5*time.Hour, func(l *Lease) { l.Token = hash("child") })
		renewed := w.token("renewed", time.Hour)
		w.commit(func(v store.View, txn *store.Txn) {
			_, row, err := token.Lookup(v, hash("renewed"))
			w.must(err)
			renewed.Expires = renewed.Expires.Add(time.Hour)
			renewed.Save(txn, row, false)
		})
		time.Sleep(time.Hour + 100*time.Millisecond)
		synctest.Wait()
		if w.hasToken("t") || w.hasToken("child") || w.target.has(long.ID) {
			t.Error("a token's end did not take what hangs off it")
		}
		if !w.hasToken("renewed") {
			t.Error("a renewed token ended")
		}
		time.Sleep(10 * time.Hour)
		w.empty()
		if m := w.reaper.Metrics(); m.Tokens != 3 {
			t.Errorf("metrics: %+v", m)
		}
	})
}

// TestTombstonesOfTokens: wide revocations reach the tokens that an auth mount gave, that an entity has, that an owner owns.
func TestTombstonesOfTokens(t *testing.T) {
	for name, s := range map[string]Selector{
		"mount":  {Kind: ByMount, Value: "authmount\xff\x00uuid"},
		"prefix": {Kind: ByPrefix, Mount: "authmount\xff\x00uuid", Value: "auth/userpass/login/"},
		"holder": {Kind: ByHolder, Value: alice.Entity},
		"owner":  {Kind: ByOwner, Value: "team-a"},
	} {
		run(t, name, func(t *testing.T, w *world) {
			w.token("t", time.Hour)
			w.token("child", time.Hour, "t")
			l := w.issue("database/creds/app", time.Hour, func(l *Lease) { l.Token, l.Holder, l.Owner = hash("child"), bob, "team-b" })
			w.stop()
			id := w.bury(s, false)
			w.view(func(v store.View) {
				tombs, err := LoadTombs(v)
				w.must(err)
				k, _, err := token.Lookup(v, hash("t"))
				w.must(err)
				if !tombs.MatchToken(k) {
					t.Error("not in force at once")
				}
				k.Position = v.Position()
				if tombs.MatchToken(k) {
					t.Error("hits what is made after it")
				}
			})
			w.start()
			w.must(w.reaper.Settle(ctx, id))
			if w.hasToken("t") || w.hasToken("child") || w.get(l) != nil {
				t.Error("something is left")
			}
			time.Sleep(2 * time.Hour)
			w.empty()
		})
	}
}

func TestSettle(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		l := w.issue("database/creds/app", time.Hour)
		w.target.set(true)
		id := w.bury(Selector{Kind: ByMount, Value: database.UUID}, false)
		if err := w.reaper.Settle(ctx, id); err == nil {
			t.Fatal("settled though the target is down")
		}
		if w.live(l) {
			t.Error("live")
		}
		w.target.set(false)
		time.Sleep(maxOpen)
		w.must(w.reaper.Settle(ctx, id))
		w.must(w.reaper.Settle(ctx, "no such tombstone"))
		w.empty()
	})
}

func TestSelectorsThatNameNothing(t *testing.T) {
	for _, s := range []Selector{{}, {Kind: ByHolder}, {Kind: ByOwner}, {Kind: ByMount}, {Kind: ByToken}, {Kind: ByPrefix, Value: "x"}, {Kind: ByPrefix, Mount: "m"}, {Kind: ByHeir, Value: "x", Alias: "a"}, {Kind: ByHeir, Value: "x", Instance: "i"}, {Kind: 99, Value: "x"}} {
		if _, err := NewTomb(s, "cause", time.Now(), &chance{}); err == nil {
			t.Errorf("%+v: accepted", s)
		}
	}
}
