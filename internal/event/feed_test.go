package event

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// patience is how long a test waits for what is to come.
const patience = time.Minute

// world is a store whose rows of one mount are things that people follow.
type world struct {
	testing.TB
	db   *store.DB
	feed *Feed
	uuid string
}

func newWorld(t testing.TB, o Options) *world {
	t.Helper()
	db, err := store.Open(mem.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(storetest.NewCipher("events")); err != nil {
		t.Fatal(err)
	}
	w := &world{TB: t, db: db, uuid: "0123456789abcdef"}
	o.Store, o.Derive = db, w.derive
	w.feed = NewFeed(o)
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() { w.feed.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	w.write("begin")
	return w
}

// bad is the name of rows that cannot be told of.
const bad = "bad"

// derive tells each row that is written.
func (w *world) derive(_ store.View, h *audit.Header) ([]*Event, error) {
	c := &Commit{Header: h, Mount: &mount.Entry{UUID: w.uuid, Path: "m/", Type: "test"}}
	var events []*Event
	for i, t := range h.Touched {
		if _, _, name := store.SplitMountKey(t.Name); store.Table(t.Table) == store.Engine {
			if name == bad {
				return nil, errors.New("a row that cannot be told of")
			}
			events = append(events, &Event{Type: "test/write", Path: name, Touch: i})
		}
	}
	Tell(c, events, "test")
	return events, nil
}

func (w *world) write(names ...string) {
	w.Helper()
	txn := store.Txn{Audit: []audit.Record{{Operation: "write", Phase: audit.Done}}}
	for _, name := range names {
		txn.Put(store.Engine, store.MountKey(1, w.uuid, name), []byte("x"))
	}
	if _, err := w.db.Commit(context.Background(), txn); err != nil {
		w.Error(err)
	}
}

func (w *world) now() Cursor {
	w.Helper()
	v, err := w.db.View()
	if err != nil {
		w.Fatal(err)
	}
	defer v.Close()
	c, err := w.feed.Now(v)
	if err != nil {
		w.Fatal(err)
	}
	return c
}

var here = netip.MustParseAddr("192.0.2.1")

func (w *world) subscribe(after Cursor, i Interest) *Subscription {
	w.Helper()
	s, err := w.feed.Subscribe(here, i, after)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

var everything = Interest{Types: []string{"*"}}

// Subscribers who are cut off at random, and come back at random, from where they know, near or far, each hear of every write once, in order.
func TestNothingIsLostAndNothingRepeated(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t, Options{})
	w.feed.keeps = 40 // so that it is forgotten soon
	const writes, subscribers = 400, 6
	var all sync.WaitGroup
	start := w.now()
	for n := range subscribers {
		all.Go(func() {
			chance := rand.New(rand.NewPCG(seed, uint64(n)))
			interest := everything
			if n%2 == 1 {
				interest.Paths = []string{"m/odd*"}
			}
			heard, text := 0, start.String()
			for last := time.Now(); heard < writes/(1+n%2) && time.Since(last) < patience; {
				after, err := w.feed.Resume(text)
				if err != nil {
					t.Errorf("subscriber %d: %v", n, err)
					return
				}
				s := w.subscribe(after, interest)
				for range chance.IntN(4) {
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(chance.IntN(10))*time.Millisecond)
					events, err := s.Next(ctx)
					cancel()
					if err != nil && !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("subscriber %d: %v", n, err)
						return
					}
					for i, e := range events {
						want := heard * (1 + n%2)
						if n%2 == 1 {
							want++
						}
						if !strings.HasSuffix(e.Path, fmt.Sprint("-", want)) {
							t.Errorf("subscriber %d heard of %s where write %d was to come", n, e.Path, want)
							return
						}
						heard, last = heard+1, time.Now()
						text = s.Cursor().String()
						if i < len(events)-1 && chance.IntN(5) == 0 { // it was cut off before it heard the rest
							text = Cursor{e.place, e.of}.String()
							break
						}
					}
					if text != s.Cursor().String() && len(events) > 0 {
						break
					}
				}
				s.Close()
				time.Sleep(time.Duration(chance.IntN(2000)) * time.Microsecond)
			}
			if heard != writes/(1+n%2) {
				t.Errorf("subscriber %d heard of %d writes", n, heard)
			}
		})
	}
	chance := rand.New(rand.NewPCG(seed, subscribers))
	for i := 0; i < writes; {
		var names []string
		for range 1 + chance.IntN(min(5, writes-i)) {
			names = append(names, fmt.Sprintf("%s-%d", []string{"even", "odd"}[i%2], i))
			i++
		}
		w.write(names...)
	}
	all.Wait()
}

// Whoever is slow holds up nobody, and loses nothing.
func TestASlowSubscriberHoldsUpNobody(t *testing.T) {
	w := newWorld(t, Options{})
	w.feed.keeps = 10
	slow, quick := w.subscribe(w.now(), everything), w.subscribe(w.now(), everything)
	defer slow.Close()
	defer quick.Close()
	for i := range 100 {
		w.write(fmt.Sprint("row", i))
		if e, err := quick.Next(t.Context()); err != nil || len(e) != 1 || e[0].Path != fmt.Sprint("m/row", i) {
			t.Fatalf("the quick one heard %v %v", e, err)
		}
	}
	for i := 0; i < 100; {
		events, err := slow.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Path != fmt.Sprint("m/row", i) {
				t.Fatalf("the slow one heard of %s where row %d was to come", e.Path, i)
			}
			i++
		}
	}
}

// A place may be within a commit: behind what was told of it, before what was not; whether it is kept or read again.
func TestGoingOnFromWithinACommit(t *testing.T) {
	w := newWorld(t, Options{})
	s := w.subscribe(w.now(), everything)
	defer s.Close()
	var names []string
	for i := range most + 10 {
		names = append(names, fmt.Sprintf("row%03d", i))
	}
	w.write(names...)
	hear := func(s *Subscription, from, n int) []*Event {
		t.Helper()
		events, err := s.Next(t.Context())
		if err != nil || len(events) != n || events[0].Path != "m/"+names[from] || events[n-1].Path != "m/"+names[from+n-1] {
			t.Fatalf("%d events, %v; want %d from %s on", len(events), err, n, names[from])
		}
		return events
	}
	first := hear(s, 0, most)
	hear(s, most, 10)
	within := Cursor{first[7].place, first[7].of}
	hear(w.subscribe(within, everything), 8, most)

	w.feed.mu.Lock()
	w.feed.drop(within.Seq)
	w.feed.mu.Unlock()
	hear(w.subscribe(within, everything), 8, most+2)
	w.feed.mu.RLock()
	defer w.feed.mu.RUnlock()
	if len(w.feed.events) > 0 {
		t.Error("it was kept")
	}
}

// What cannot be told is not passed over in silence.
func TestWhatCannotBeToldLosesThePlace(t *testing.T) {
	w := newWorld(t, Options{})
	before := w.now()
	s := w.subscribe(before, everything)
	defer s.Close()
	w.write(bad)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		events, err := s.Next(ctx)
		if errors.Is(err, ErrPlace) {
			break
		}
		if err != nil || len(events) > 0 {
			t.Fatalf("%v %v", events, err)
		}
	}
	again := w.subscribe(w.now(), everything)
	defer again.Close()
	w.write("good")
	if e, err := again.Next(ctx); err != nil || len(e) != 1 {
		t.Errorf("who began anew heard %v %v", e, err)
	}
}

// Nothing is derived while nobody is subscribed; somebody who is, and hears of nothing for long, is no reason to rest.
func TestRestWithoutSubscribers(t *testing.T) {
	const rests = 20 * time.Millisecond
	w := newWorld(t, Options{})
	w.feed.rests = rests
	following := func() bool {
		w.feed.mu.RLock()
		defer w.feed.mu.RUnlock()
		return w.feed.on
	}
	until := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); following() != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("it is %t that commits are followed", !want)
			}
		}
	}
	for range 3 {
		s := w.subscribe(w.now(), everything)
		until(true)
		for end := time.Now().Add(5 * rests); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if !following() {
				t.Fatal("commits are not followed, and somebody is subscribed")
			}
		}
		w.write("row")
		if e, err := s.Next(t.Context()); err != nil || len(e) != 1 {
			t.Errorf("%v %v", e, err)
		}
		s.Close()
		until(false)
	}
}

// Nobody can name what he wants to hear of so that it is taken for what somebody else does, who then is not woken.
func TestNobodyPassesForAnother(t *testing.T) {
	w := newWorld(t, Options{})
	other := w.subscribe(w.now(), Interest{Types: []string{"*"}, Paths: []string{"m/a*\x00m/b*"}})
	defer other.Close()
	s := w.subscribe(w.now(), Interest{Types: []string{"*"}, Paths: []string{"m/a*", "m/b*"}})
	defer s.Close()
	w.feed.roll.RLock()
	defer w.feed.roll.RUnlock()
	w.feed.in.wake(&Event{Type: "test/write", Path: "m/app"})
	select {
	case <-s.woken:
	default:
		t.Error("it is not woken")
	}
}

func TestSubscribersAreBounded(t *testing.T) {
	w := newWorld(t, Options{Most: 4, PerSource: 2})
	from := func(addr string) error {
		s, err := w.feed.Subscribe(netip.MustParseAddr(addr), everything, w.now())
		if err == nil {
			t.Cleanup(s.Close)
		}
		return err
	}
	for _, c := range []struct {
		from string
		ok   bool
	}{
		{"2001:db8::1", true}, {"2001:db8::2", true}, {"2001:db8::3", false}, {"192.0.2.1", true}, {"::ffff:192.0.2.1", true}, {"192.0.2.1", false}, {"192.0.2.2", false},
	} {
		if err := from(c.from); (err == nil) != c.ok || err != nil && api.KindOf(err) != api.Limited {
			t.Errorf("%s: %v", c.from, err)
		}
	}
}

// The end of a token wakes those who rest on it, and nobody else.
func TestTheEndOfATokenWakesItsOwn(t *testing.T) {
	w := newWorld(t, Options{})
	names := map[string]*Subscription{}
	for _, tokens := range [][]string{{"parent"}, {"child", "parent"}, {"other"}, {"gone", "other"}} {
		s, err := w.feed.Subscribe(here, Interest{Types: []string{"none"}}, w.now(), tokens...)
		if err != nil {
			t.Fatal(err)
		}
		names[tokens[0]] = s
	}
	names["gone"].Close()
	if err := w.feed.await(t.Context()); err != nil {
		t.Fatal(err)
	}
	told := w.subscribe(w.now(), everything)
	txn := store.Txn{Audit: []audit.Record{{Operation: "revoke", Phase: audit.Done}}}
	for _, name := range []string{"parent", "stranger"} {
		txn.Put(store.Tokens, name, []byte("x"))
	}
	if _, err := w.db.Commit(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	txn = store.Txn{Audit: []audit.Record{{Operation: "revoke", Phase: audit.Done}}}
	txn.Delete(store.Tokens, "parent")
	txn.Delete(store.Tokens, "stranger")
	txn.Put(store.Engine, store.MountKey(1, w.uuid, "then"), []byte("x"))
	if _, err := w.db.Commit(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"parent", "child"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if events, err := names[name].Next(ctx); err != nil || len(events) > 0 {
			t.Errorf("%s: %v, %v", name, events, err)
		}
		cancel()
	}
	w.write("after") // once it is told, all is done about what was before
	for last := ""; last != "m/after"; {
		events, err := told.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			last = e.Path
		}
	}
	w.feed.roll.Lock()
	defer w.feed.roll.Unlock()
	if names["other"].again.Load() || w.feed.moved != nil {
		t.Error("who rests on another token is to look, too")
	}
	if len(w.feed.tokens) != 3 {
		t.Errorf("tokens are watched: %v", w.feed.tokens)
	}
}

// Somebody's filter is nobody else's matter, however long it takes.
func TestASlowFilterHoldsUpNobody(t *testing.T) {
	w := newWorld(t, Options{})
	at, goOn := make(chan struct{}), make(chan struct{})
	slow := w.subscribe(w.now(), Interest{Types: []string{"*"}, Filter: func(*Event) bool {
		at <- struct{}{}
		<-goOn
		return true
	}})
	quick := w.subscribe(w.now(), everything)
	told := make(chan error, 1)
	go func() {
		_, err := slow.Next(t.Context())
		told <- err
	}()
	w.write("one")
	<-at
	for n := range 3 {
		w.write(fmt.Sprint(n))
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for heard := 0; heard < 4; {
		events, err := quick.Next(ctx)
		if err != nil {
			t.Fatalf("heard of %d: %v", heard, err)
		}
		heard += len(events)
	}
	close(goOn)
	if err := <-told; err != nil {
		t.Error(err)
	}
}

// What each event is held against, for all, is bounded; so is what is looked at in one go.
func TestWhatOneMayNameIsBounded(t *testing.T) {
	many := func(n int, end string) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprintf("m/%d%s", i, end))
		}
		return all
	}
	for name, c := range map[string]struct {
		i  Interest
		ok bool
	}{
		"many paths":     {Interest{Types: []string{"*"}, Paths: many(1024, "")}, true},
		"more":           {Interest{Types: []string{"*"}, Paths: many(1025, "")}, false},
		"some prefixes":  {Interest{Types: []string{"*"}, Paths: append(many(900, ""), many(64, "*")...)}, true},
		"many prefixes":  {Interest{Types: []string{"*"}, Paths: many(65, "*")}, false},
		"some types":     {Interest{Types: many(64, "")}, true},
		"many types":     {Interest{Types: many(65, "")}, false},
		"no type at all": {Interest{}, false},
	} {
		if err := c.i.Check(); (err == nil) != c.ok || err != nil && api.KindOf(err) != api.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	w := newWorld(t, Options{})
	looked := 0
	s := w.subscribe(w.now(), Interest{Types: []string{"*"}, Paths: []string{"m/f*", "m/last"}, Filter: func(e *Event) bool {
		looked++
		return e.Path == "m/last"
	}})
	told := w.subscribe(w.now(), everything)
	if err := w.feed.await(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		names := []string{}
		for i := range 1000 {
			names = append(names, fmt.Sprintf("f%d-%d", n, i))
		}
		w.write(names...)
	}
	w.write("last")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for last := ""; last != "m/last"; { // then all is kept
		events, err := told.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		last = events[len(events)-1].Path
	}
	if events, err := s.Next(ctx); err != nil || len(events) != 1 {
		t.Errorf("%d events, %v", len(events), err)
	}
	if looked != 3001 {
		t.Errorf("looked at %d events", looked)
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		ok         bool
	}{
		{"*", "", true}, {"*", "kv-v2/data-write", true}, {"kv*", "kv-v2/data-write", true}, {"kv", "kv-v2/data-write", false},
		{"kv-v2/*", "kv-v1/write", false}, {"*/data-*", "kv-v2/data-write", true}, {"*write", "kv-v2/data-write", true}, {"*writ", "kv-v2/data-write", false},
		{"a*b*c", "a-b-b-c", true}, {"a*b*c", "a-c-b", false}, {"ab*ba", "aba", false}, {"", "", true}, {"", "a", false}, {"a**", "a", true},
	} {
		if got := Match(c.pattern, c.s); got != c.ok {
			t.Errorf("Match(%q, %q) = %t", c.pattern, c.s, got)
		}
	}
}

func TestFilter(t *testing.T) {
	e := &Event{Type: "kv-v2/data-write", mount: "secret/", Metadata: map[string]string{"data_path": "secret/data/app", "operation": "data-write", "note": `a "b"`}}
	for text, want := range map[string]bool{
		`data_path == "secret/data/app"`:                                   true,
		`data_path==secret/data/app and operation != "data-write"`:         false,
		`not (operation == data-write and event_type == "kv-v2/x")`:        true,
		`operation == x or operation == data-write and data_path == other`: false,
		`(operation == x or operation == data-write) and note contains b`:  true,
		"note contains `\"b\"`":                                            true,
		`source_plugin_mount == "secret/"`:                                 true,
		`absent == ""`:                                                     true,
		`event.metadata.operation == data-write`:                           true,
	} {
		f, err := Filter(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := f(e); got != want {
			t.Errorf("%s is %t", text, got)
		}
	}
	for _, text := range []string{"", "a", "a ==", "a == b c == d", "(a == b", "a = b", "a == (b)", "not", "a matches b", strings.Repeat("not ", 100) + "a == b", strings.Repeat("(", 5000)} {
		if _, err := Filter(text); api.KindOf(err) != api.Invalid {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add(`data_path == "secret/data/app" and (operation != x or not a contains b)`)
	f.Fuzz(func(_ *testing.T, text string) {
		if f, err := Filter(text); err == nil {
			f(&Event{})
		}
	})
}

func FuzzCursor(f *testing.F) {
	f.Add(Cursor{Place{7, 8}, [8]byte{9}}.String())
	f.Add("A\nX00000000000000000000000000")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := Parse(text); err == nil && c.String() != text {
			t.Errorf("%q reads as %q", text, c)
		}
	})
}

// BenchmarkSubscribers has very many wait for one thing among others, and measures from its write until the last of them was told.
func BenchmarkSubscribers(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b, Options{})
			about := Interest{Types: []string{"test/*"}, Paths: []string{"m/one"}}
			var waiting, told sync.WaitGroup
			waiting.Add(n)
			after := w.now()
			for range n {
				go func() {
					s := w.subscribe(after, about)
					defer s.Close()
					waiting.Done()
					for range b.N {
						if _, err := s.Next(context.Background()); err != nil {
							b.Error(err)
						}
						told.Done()
					}
				}()
			}
			waiting.Wait()
			b.ResetTimer()
			for range b.N {
				told.Add(n)
				w.write("one")
				told.Wait()
			}
		})
	}
}
