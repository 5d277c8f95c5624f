package lease

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// inBubble runs f with a new world, the reaper running, on a clock that jumps.
func inBubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer func() { w.close() }()
		f(t, w)
	})
}

func TestLife(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		l := w.draft("database/creds/app", time.Hour)
		w.must(w.pend(l))
		if got := w.get(l); got.State != Pending || w.live(l) {
			t.Fatalf("before apply: %s, live %v", got.State, w.live(l))
		}
		w.must(w.target.apply(l))
		w.must(w.confirm(l))
		w.sound()
		time.Sleep(59 * time.Minute)
		if !w.live(l) || !w.target.has(l.ID) {
			t.Fatal("ended before its time")
		}
		if _, err := w.renew(l, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Minute)
		w.sound()
		if !w.live(l) || !w.target.has(l.ID) {
			t.Fatal("renewed, but ended")
		}
		time.Sleep(time.Minute)
		if w.live(l) {
			t.Fatal("live after its end")
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if w.target.has(l.ID) || w.get(l) != nil {
			t.Fatalf("still there 100 ms after its end: %+v", w.get(l))
		}
		if _, err := w.renew(l, 0); err == nil {
			t.Error("renewed what is gone")
		}
		if got, want := w.trail(l.ID), []string{"expire begun expired", "revoke outcome expired"}; !slices.Equal(got, want) {
			t.Errorf("audit: %q, want %q", got, want)
		}
		time.Sleep(time.Hour)
		w.empty()
	})
}

func TestRenewalWritesOneRow(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		l := w.issue("database/creds/app", time.Hour)
		for range 50 {
			time.Sleep(30 * time.Minute)
			txn, err := w.renew(l, 0)
			w.must(err)
			if len(txn.Puts) != 1 || len(txn.Deletes) != 0 {
				t.Fatalf("a renewal puts %d rows and deletes %d", len(txn.Puts), len(txn.Deletes))
			}
			w.sound()
		}
		if !w.live(l) {
			t.Fatal("a lease that is renewed in time ended")
		}
		time.Sleep(time.Minute)
		txn, err := w.renew(l, time.Minute) // shorter than what is left: the due row must come forward
		w.must(err)
		if len(txn.Puts) != 2 || len(txn.Deletes) != 1 {
			t.Errorf("a renewal that shortens puts %d rows and deletes %d", len(txn.Puts), len(txn.Deletes))
		}
		time.Sleep(61 * time.Second)
		w.empty()
	})
}

func TestUnconfirmed(t *testing.T) {
	run(t, "never applied", func(t *testing.T, w *world) {
		l := w.draft("database/creds/app", time.Hour)
		w.must(w.pend(l))
		time.Sleep(31 * time.Second)
		if got := w.get(l); got.State != Revoking || !got.Watch {
			t.Fatalf("31 s after: %+v", got)
		}
		if err := w.confirm(l); err == nil {
			t.Error("confirmed what was given up")
		}
		time.Sleep(3 * time.Minute)
		w.empty()
		if w.target.tried(l.ID) < 3 {
			t.Errorf("under watch, but reverted only %d times", w.target.tried(l.ID))
		}
	})
	run(t, "applied after the first revert", func(t *testing.T, w *world) {
		l := w.draft("database/creds/app", time.Hour)
		w.must(w.pend(l))
		time.Sleep(40 * time.Second)
		if w.target.tried(l.ID) == 0 {
			t.Fatal("not reverted yet")
		}
		time.Sleep(70 * time.Second)
		w.must(w.target.apply(l)) // the paused process woke up
		w.sound()
		time.Sleep(11 * time.Minute)
		w.empty()
	})
	run(t, "revoked while it is applied", func(t *testing.T, w *world) {
		l := w.draft("database/creds/app", time.Hour)
		w.must(w.pend(l))
		w.must(w.revoke(l, false))
		time.Sleep(time.Second)
		w.must(w.target.apply(l))
		if err := w.confirm(l); err == nil {
			t.Error("confirmed what was revoked")
		}
		time.Sleep(3 * time.Minute)
		w.empty()
	})
}

// TestRestart dies after each step of a lease's life.
func TestRestart(t *testing.T) {
	steps := []func(w *world, l *Lease){
		func(w *world, l *Lease) { w.must(w.pend(l)) },
		func(w *world, l *Lease) { w.must(w.target.apply(l)) },
		func(w *world, l *Lease) { w.must(w.confirm(l)) },
		func(w *world, l *Lease) { _, err := w.renew(l, 0); w.must(err) },
		func(w *world, l *Lease) { w.target.set(true); w.must(w.revoke(l, false)) },
		func(w *world, l *Lease) { time.Sleep(time.Minute) },
		func(w *world, l *Lease) { w.target.set(false) },
	}
	for n := range len(steps) + 1 {
		run(t, fmt.Sprint("after step ", n), func(t *testing.T, w *world) {
			l := w.draft("database/creds/app", time.Hour)
			for i, step := range steps {
				step(w, l)
				if i+1 == n {
					w.restart()
					w.sound()
					if n < 3 {
						break // whoever was making it died
					}
				}
			}
			w.target.set(false)
			time.Sleep(3 * time.Hour)
			w.empty()
		})
	}
}

func TestRevoke(t *testing.T) {
	run(t, "waits for the target", func(t *testing.T, w *world) {
		l := w.issue("database/creds/app", time.Hour)
		w.target.slow = 300 * time.Millisecond
		began := time.Now()
		w.must(w.revoke(l, false))
		if w.live(l) {
			t.Error("live after it was revoked")
		}
		w.must(w.reaper.SettleLease(ctx, l))
		if took := time.Since(began); took < 300*time.Millisecond || took > 2*time.Second {
			t.Errorf("took %s", took)
		}
		w.empty()
	})
	run(t, "tells that the target fails", func(t *testing.T, w *world) {
		l := w.issue("database/creds/app", time.Hour)
		w.target.set(true)
		w.must(w.revoke(l, false))
		err := w.reaper.SettleLease(ctx, l)
		if api.KindOf(err) != api.Upstream || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("got %v", err)
		}
		w.target.set(false)
		w.must(w.revoke(l, false)) // again: it is tried at once
		began := time.Now()
		w.must(w.reaper.SettleLease(ctx, l))
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("took %s", took)
		}
		w.empty()
	})
	run(t, "does not wait for a target that is left alone", func(t *testing.T, w *world) {
		first := w.issue("database/creds/app", time.Minute)
		second := w.issue("database/creds/app", 2*time.Hour)
		w.target.set(true)
		time.Sleep(time.Hour) // the breaker is open
		if w.live(first) || !w.live(second) {
			t.Fatal("the first is to be over, the second not")
		}
		for !w.reaper.workers.shut(target{1, database.UUID, "pg"}, w.db.Now()) {
			time.Sleep(time.Millisecond) // it is being probed
		}
		w.must(w.revoke(second, false))
		began := time.Now()
		err := w.reaper.SettleLease(ctx, second)
		if api.KindOf(err) != api.Unavailable || !strings.Contains(err.Error(), "in force") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("took %s", took)
		}
		w.target.set(false)
		time.Sleep(time.Minute)
		w.must(w.reaper.SettleLease(ctx, second))
		time.Sleep(10 * time.Minute)
		w.empty()
	})
	run(t, "by force", func(t *testing.T, w *world) {
		l := w.issue("database/creds/app", time.Hour)
		w.target.set(true)
		w.must(w.revoke(l, false))
		time.Sleep(10 * time.Minute)
		w.must(w.revoke(l, true))
		w.must(w.reaper.SettleLease(ctx, l))
		if !w.target.has(l.ID) {
			t.Fatal("the target is down")
		}
		trail := w.trail(l.ID)
		if last := trail[len(trail)-1]; last != "revoke outcome revoked by request r-1 upstream" {
			t.Errorf("last record: %q", last)
		}
		if m := w.reaper.Metrics(); m.Forced != 1 || m.Reverted != 0 {
			t.Errorf("metrics: %+v", m)
		}
		w.target.forget()
		time.Sleep(time.Hour)
		w.empty()
	})
}

// TestNeverTerminal keeps a target down for a month.
func TestNeverTerminal(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		for range 3 {
			w.issue("database/creds/app", time.Hour)
		}
		w.target.set(true)
		time.Sleep(30 * 24 * time.Hour)
		w.sound()
		var outlived []*Lease
		w.view(func(v store.View) {
			var err error
			outlived, err = Outlived(v, w.db.Now(), time.Minute, 100)
			w.must(err)
		})
		if len(outlived) != 3 || outlived[0].LastError != errDown.Error() || outlived[0].Attempts < 3 {
			t.Fatalf("outlived: %+v", outlived)
		}
		if m := w.reaper.Metrics(); len(m.Targets) != 1 || !m.Targets[0].Open || m.Targets[0].Target != "pg" {
			t.Errorf("metrics: %+v", m)
		}
		w.target.set(false)
		time.Sleep(maxBackoff + maxOpen)
		w.empty()
	})
}

func TestBreaker(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		for range 500 {
			w.issue("database/creds/app", time.Hour)
		}
		other := w.issue("database/creds/other", time.Hour, func(l *Lease) { l.Target = "pg2" })
		w.target.set(true)
		time.Sleep(time.Hour + 5*time.Second)
		w.sound()
		during := w.target.called()
		if during > 40 {
			t.Errorf("a target that is down was called %d times in 5 s", during)
		}
		time.Sleep(10 * time.Minute)
		if n := w.target.called() - during; n > 300 {
			t.Errorf("a target that is down was called %d times in 10 minutes", n)
		}
		w.target.set(false)
		w.must(w.revoke(other, false))
		time.Sleep(maxBackoff + maxOpen)
		if n := w.target.count(); n > 0 {
			t.Errorf("%d accounts left", n)
		}
		w.empty()
	})
}

// TestCredentialsFirst has leases of both kinds end together: as long as there are credentials to end, nothing else is.
func TestCredentialsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		defer w.reaper.workers.wait()
		w.fill(1000, 200, w.db.Now().Add(time.Hour))
		time.Sleep(2 * time.Hour)
		static := func() (n int) {
			w.view(func(v store.View) {
				prefix := store.MountKey(secret.Namespace, secret.UUID)
				for _, err := range v.Scan(store.Leases, prefix, store.PrefixEnd(prefix)) {
					w.must(err)
					n++
				}
			})
			return n
		}
		_, err := w.reaper.round(ctx)
		w.must(err)
		_, err = w.reaper.land()
		w.must(err)
		if n := w.reaper.counts.expired.Load(); n != chunk || static() != 800 || w.reaper.patient {
			t.Errorf("the first round ended %d leases, and left %d static ones of 800", n, static())
		}
		for pause := time.Duration(0); pause == 0; {
			pause, err = w.reaper.round(ctx)
			w.must(err)
		}
		if n := w.reaper.counts.expired.Load(); n != 1000 || static() != 0 {
			t.Errorf("%d leases ended, %d static ones left", n, static())
		}
	})
}

// TestOneRefuses has one credential that its target will not give up: the others must not wait for it.
func TestOneRefuses(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		bad := w.issue("database/creds/app", time.Minute)
		w.target.refuse(bad.ID, true)
		time.Sleep(10 * time.Hour)
		for range 10 {
			good := w.issue("database/creds/app", time.Minute)
			time.Sleep(time.Minute + maxOpen + time.Second)
			if w.target.has(good.ID) {
				t.Fatal("a credential waits for another one")
			}
		}
		if w.get(bad).State != Revoking {
			t.Fatal("the bad one is gone")
		}
		w.target.refuse(bad.ID, false)
		time.Sleep(maxBackoff + maxOpen)
		w.empty()
	})
}

func TestFenced(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		l := w.issue("database/creds/app", time.Minute)
		w.fenced.Store(true)
		time.Sleep(time.Hour)
		if !w.target.has(l.ID) || w.get(l).State != Live {
			t.Fatal("a fenced copy acted")
		}
		if w.live(l) {
			t.Error("live after its end")
		}
		w.fenced.Store(false)
		time.Sleep(11 * time.Minute)
		w.empty()
	})
}

type alarmed struct{ Store }

func (alarmed) ClockAlarm() error { return fmt.Errorf("the clock jumped") }

func TestClockAlarm(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.stop()
		w.reaper.Store = alarmed{w.db}
		w.start()
		l := w.issue("database/creds/app", time.Minute)
		revoked := w.issue("database/creds/app", time.Minute)
		time.Sleep(time.Hour)
		if !w.target.has(l.ID) {
			t.Error("expired by a clock that is not to be trusted")
		}
		w.must(w.revoke(revoked, false))
		w.must(w.reaper.SettleLease(ctx, revoked))
		w.stop()
		w.reaper.Store = w.db
		w.start()
		time.Sleep(time.Second)
		w.empty()
	})
}

func TestExtended(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := Lease{State: Live, Renewable: true, TTL: time.Hour, Expires: now.Add(time.Minute), Max: now.Add(90 * time.Minute)}
	const h = time.Hour
	for _, c := range []struct {
		name      string
		change    func(l *Lease)
		increment time.Duration
		want      time.Duration // from now
		warning   string
		err       string
	}{
		{"its ttl", func(*Lease) {}, 0, h, "", ""},
		{"increment", func(*Lease) {}, 10 * time.Second, 10 * time.Second, "", ""},
		{"capped", func(*Lease) {}, 2 * h, 90 * time.Minute, `TTL of "2h" exceeded the effective max_ttl of "1h30m"; TTL value is capped accordingly`, ""},
		{"ttl capped", func(l *Lease) { l.Max = now.Add(30 * time.Minute) }, 0, 30 * time.Minute, `TTL of "1h" exceeded the effective max_ttl of "30m"; TTL value is capped accordingly`, ""},
		{"exactly the maximum", func(*Lease) {}, 90 * time.Minute, 90 * time.Minute, "", ""},
		{"no maximum", func(l *Lease) { l.Max = time.Time{} }, 1000 * h, 1000 * h, "", ""},
		{"past the maximum", func(l *Lease) { l.Max = now }, 0, 0, "", "past the max TTL, cannot renew"},
		{"not renewable", func(l *Lease) { l.Renewable = false }, 0, 0, "", "lease is not renewable"},
		{"expired this moment", func(l *Lease) { l.Expires = now }, 0, 0, "", "lease expired"},
		{"revoking", func(l *Lease) { l.State = Revoking }, 0, 0, "", "lease expired"},
		{"pending", func(l *Lease) { l.State = Pending }, 0, 0, "", "lease expired"},
		{"negative", func(*Lease) {}, -1, 0, "", "increment must not be negative"},
	} {
		l := l
		c.change(&l)
		until, warning, err := l.Extended(c.increment, now)
		if c.err != "" {
			if err == nil || err.Error() != c.err || api.KindOf(err) != api.Invalid {
				t.Errorf("%s: got %v", c.name, err)
			}
			continue
		}
		if err != nil || until.Sub(now) != c.want || warning != c.warning {
			t.Errorf("%s: got %s, %q, %v", c.name, until.Sub(now), warning, err)
		}
	}
}

// TestRow writes each field, so that a new one cannot be forgotten, and reads it back.
func TestRow(t *testing.T) {
	l := &Lease{}
	fill(reflect.ValueOf(l).Elem(), 1)
	l.Namespace = lessor.RootNamespace
	l.Mount = "0123456789abcde\xff"
	l.Token, l.Ancestors = "\xff\x00raw", []string{"\xfe\x01"}
	value := l.Encode()
	got, err := Decode(store.Row{Key: l.Key(), Version: 1, Value: value})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, l) {
		t.Errorf("got  %+v\nwant %+v", got, l)
	}
	if got.dueName() != l.dueName() || got.queueName() != l.queueName() {
		t.Error("a row read back names other index rows")
	}
	if _, err := Decode(store.Row{Key: l.Key(), Version: 1, Value: value[:len(value)-1]}); err == nil {
		t.Error("a cut row was read")
	}
	small := (&Lease{Kind: Static, State: Live, Expires: time.Unix(1, 0)}).Encode()
	if len(small) > 40 {
		t.Errorf("empty fields take room: %d bytes", len(small))
	}
}

// fill sets each field to something that is not zero.
func fill(v reflect.Value, n int64) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(1_790_000_000+n, 123456_789)))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n+int64(i))
		}
	case v.Kind() == reflect.String:
		v.SetString(fmt.Sprint("field/", n))
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.CanInt():
		v.SetInt(n%3 + 1)
	case v.CanUint():
		v.SetUint(uint64(n%3 + 1))
	case v.Type() == reflect.TypeFor[[]byte]():
		v.SetBytes([]byte{byte(n)})
	case v.Type() == reflect.TypeFor[[]string]():
		v.Set(reflect.ValueOf([]string{fmt.Sprint(n)}))
	default:
		panic(v.Type().String())
	}
}

func TestBackoff(t *testing.T) {
	for n, want := range map[uint32]time.Duration{0: time.Second, 1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 11: maxBackoff, 1 << 31: maxBackoff} {
		if got := backoff(n, 1); got != want && n > 0 {
			t.Errorf("after %d failures: %s, want %s", n, got, want)
		}
		if got := backoff(n, 0); got > want/2 {
			t.Errorf("after %d failures at the earliest %s", n, got)
		}
	}
}

func TestList(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a := w.issue("database/creds/app", time.Hour)
		b := w.issue("database/creds/app", time.Hour)
		c := w.issue("database/creds/app/deep", time.Hour)
		w.issue("database/creds/zoo", time.Hour)
		list := func(prefix string) (names []string) {
			w.view(func(v store.View) {
				w.must(List(v, database.Namespace, database.UUID, prefix, func(n string) bool { names = append(names, n); return true }))
			})
			slices.Sort(names)
			return names
		}
		if got := list("database/"); !slices.Equal(got, []string{"creds/"}) {
			t.Errorf("got %q", got)
		}
		if got := list("database/creds/"); !slices.Equal(got, []string{"app/", "zoo/"}) {
			t.Errorf("got %q", got)
		}
		want := []string{a.ID[len("database/creds/app/"):], b.ID[len("database/creds/app/"):], "deep/"}
		slices.Sort(want)
		if got := list("database/creds/app/"); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := list("database/creds/app/deep/"); len(got) != 1 || c.ID != "database/creds/app/deep/"+got[0] {
			t.Errorf("got %q", got)
		}
	})
}
