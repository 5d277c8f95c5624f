package rotation

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

var (
	t0     = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	hourly = Schedule{Period: time.Hour}
)

func secret(s string) lessor.Secret { return lessor.NewSecret(s) }

// reveal is a password list as text.
func reveal(l []lessor.Secret) string {
	var all []string
	for _, s := range l {
		all = append(all, s.Reveal())
	}
	return strings.Join(all, " ")
}

// A life of one account: what is kept at each step, and what is to be done next.
func TestLife(t *testing.T) {
	a, p := &Account{}, &Passwords{}
	at := t0
	step := func(what string, do func(), after time.Duration, next Step, candidates string) {
		t.Helper()
		do()
		at = at.Add(after)
		if got := a.Step(hourly, at); got != next {
			t.Errorf("%s: then %d comes, not %d", what, got, next)
		}
		if got := reveal(p.Candidates()); got != candidates {
			t.Errorf("%s: kept are %q, not %q", what, got, candidates)
		}
	}
	step("imported", func() { a.Import(p, secret("a"), at); a.Due = at.Add(time.Hour) }, 0, Nothing, "a")
	step("due", func() {}, time.Hour, Rotate, "a")
	step("begun", func() { a.Begin(p, secret("b"), at) }, Head-1, Nothing, "a b")
	step("abandoned", func() {}, 1, Resume, "a b")
	step("begun again", func() { a.Begin(p, secret("c"), at) }, Head, Resume, "a b")
	step("failed", func() { a.Failed(errors.New("down"), at, 1) }, time.Second, Resume, "a b")
	step("confirmed", func() { a.Confirm(p, hourly, at) }, Watch-1, Nothing, "b a")
	step("watched", func() {}, 1, Prove, "b a")
	step("proven", func() { a.Proven(p, at) }, 0, Nothing, "b")
	if a.Version != 2 || a.Attempts != 0 || a.Loose != 0 || !a.Rotated.Equal(t0.Add(time.Hour+2*Head+time.Second)) || !a.When().Equal(a.Due) {
		t.Errorf("in the end %+v", a)
	}
	// Rotations faster than Watch keep what may still land, and no more.
	a.Begin(p, secret("c"), at)
	a.Confirm(p, hourly, at)
	at = at.Add(Watch - time.Second)
	a.Begin(p, secret("d"), at)
	a.Confirm(p, hourly, at)
	step("the older is old enough", func() { at = at.Add(time.Second); a.Proven(p, at) }, Watch-2*time.Second, Nothing, "d c")
	step("and the other", func() {}, time.Second, Prove, "d c")
	step("all are dead", func() { a.Proven(p, at) }, time.Minute, Nothing, "d")
	// Somebody sets a password while another is on its way.
	a.Begin(p, secret("e"), at)
	step("imported meanwhile", func() { a.Import(p, secret("x"), at) }, Head, Resume, "x e d")
	if a.Pending != a.Version+1 {
		t.Errorf("%+v", a)
	}
}

// What the second account of a pair had is forgotten in its time, too, when there is one account only by now: it is not tried again and again.
func TestOneOfTwo(t *testing.T) {
	a, p := pair()
	a.Close(Told, nil, t0)
	a.Begin(p, secret("x"), t0)
	a.Confirm(p, hourly, t0)
	a.Proven(p, t0)
	a.Buried(p, t0)
	a.Pair, a.Settled = false, a.Dead
	at := t0.Add(Watch)
	if len(p.Former) == 0 || a.Step(Schedule{}, at) != Prove {
		t.Fatalf("nothing is left to be tried: %+v", a)
	}
	a.Proven(p, at)
	a.Buried(p, at)
	if len(p.Former) > 0 || !a.Check.IsZero() {
		t.Errorf("it is tried at %v, for ever: %+v", a.Check, p.Former)
	}
}

// What any reader can bring about is no oftener than what a schedule may ask for.
func TestSpared(t *testing.T) {
	a, p := &Account{}, &Passwords{}
	a.Import(p, secret("a"), t0)
	rotations := 0
	for at := t0; at.Before(t0.Add(time.Minute)); at = at.Add(100 * time.Millisecond) {
		a.Demand("a lease on it ended", a.Spared(at))
		if a.Step(Schedule{}, at) != Rotate {
			continue
		}
		rotations++
		a.Begin(p, secret("b"), at)
		a.Confirm(p, Schedule{}, at)
	}
	if rotations != 12 {
		t.Errorf("%d rotations in a minute", rotations)
	}
	later := t0.Add(time.Hour)
	if a.Demand("a lease on it ended", a.Spared(later)); a.Step(Schedule{}, later) != Rotate {
		t.Error("what was long ago delays a rotation")
	}
}

// What is demanded is due as soon as any says that demands it, and is put off by no other schedule.
func TestDemandedSooner(t *testing.T) {
	a, p := &Account{}, &Passwords{}
	a.Import(p, secret("a"), t0)
	a.Rotated = t0
	at := t0.Add(time.Second)
	if !a.Demand("a lease on it ended", a.Spared(at)) || a.Step(hourly, at) == Rotate {
		t.Fatalf("rotated a second after the last: %+v", a)
	}
	if !a.Demand("leak", at) || a.Cause != "leak" || a.Step(hourly, at) != Rotate {
		t.Errorf("an exposure waits for what is in no hurry: %+v", a)
	}
	if a.Demand("a lease on it ended", a.Spared(at)) || a.Cause != "leak" {
		t.Errorf("what is in no hurry comes in an exposure's place: %+v", a)
	}
	if a.Reschedule(hourly, at); a.Step(hourly, at) != Rotate {
		t.Errorf("another schedule puts off what is demanded: %+v", a)
	}
	a.Cause = ""
	if a.Reschedule(hourly, at); !a.Due.Equal(hourly.Next(at)) {
		t.Errorf("another schedule does not count: %+v", a)
	}
}

// A pending password is withdrawn only if no attempt at it can have come through.
func TestWithdraw(t *testing.T) {
	a, p := &Account{}, &Passwords{}
	a.Import(p, secret("a"), t0)
	a.Due = t0.Add(-time.Minute)
	a.Begin(p, secret("b"), t0)
	a.Begin(p, lessor.Secret{}, t0) // two at once
	a.Untouched()
	if a.Withdraw(p, true, t0); p.Pending.Empty() {
		t.Error("withdrawn under somebody's hands")
	}
	a.Untouched()
	if a.Withdraw(p, true, t0); !p.Pending.Empty() || len(p.Former) > 0 || a.Pending != 0 || !a.Due.Equal(t0.Add(-time.Minute)) {
		t.Errorf("not withdrawn: %+v", a)
	}
	if a.Step(hourly, t0.Add(Head)) != Rotate {
		t.Error("what was begun is not done with another password")
	}
	a.Due = time.Time{}
	a.Begin(p, secret("c"), t0)
	a.Untouched()
	if a.Withdraw(p, true, t0); !a.Due.Equal(t0) {
		t.Errorf("what was asked for is forgotten: %+v", a)
	}
	a.Begin(p, secret("n"), t0)
	a.Untouched()
	if a.Withdraw(p, false, t0); a.Pending != 0 || reveal(p.Candidates()) != "a n" || !a.Check.Equal(t0.Add(Watch)) {
		t.Errorf("forgotten, and nobody knows that it is dead: %+v, %q", a, reveal(p.Candidates()))
	}
	a.Proven(p, t0.Add(Watch))
	a.Begin(p, secret("d"), t0) // broke off
	a.Begin(p, lessor.Secret{}, t0)
	a.Untouched()
	if a.Withdraw(p, true, t0); reveal(p.Candidates()) != "a d" {
		t.Errorf("withdrawn though it may land: %q", reveal(p.Candidates()))
	}
}

// A target that refuses whatever it is given, and does not show what is in force, is not given ever more passwords; none of those that it was given is forgotten, and
// one that it takes at last is in force.
func TestRefusedForEver(t *testing.T) {
	a, p := &Account{}, &Passwords{}
	a.Import(p, secret("a"), t0)
	a.Due = t0
	given := map[string]bool{"a": true}
	now := t0
	for i := range 1000 {
		now = now.Add(10 * time.Minute)
		switch a.Step(hourly, now) {
		case Rotate:
			fresh := fmt.Sprint("p", i)
			given[fresh] = true
			a.Begin(p, secret(fresh), now)
		case Resume:
			a.Begin(p, lessor.Secret{}, now)
		default:
			t.Fatalf("step %d", a.Step(hourly, now))
		}
		a.Untouched()
		a.Withdraw(p, false, now)
		a.Failed(errors.New("refused"), now, 1)
		if len(p.Candidates()) != len(given) {
			t.Fatalf("of %d passwords that may be in force %d are kept", len(given), len(p.Candidates()))
		}
	}
	if len(given) != 1+mostRefused+1 || a.Pending == 0 {
		t.Errorf("%d passwords were tried; the last one is tried still: %v", len(given), a.Pending != 0)
	}
	a.Begin(p, lessor.Secret{}, now)
	a.Confirm(p, hourly, now)
	if now = now.Add(Watch); a.Step(hourly, now) != Prove {
		t.Error("it is not proven")
	}
	if a.Proven(p, now); len(p.Candidates()) != 1 || a.Pending != 0 {
		t.Errorf("in the end %d passwords are kept", len(p.Candidates()))
	}
}

// What was left pending by a version that did not count attempts may still land.
func TestUncounted(t *testing.T) {
	for loose, row := range map[uint32]map[int]any{
		1: {1: "pg", 2: 1, 3: 2},
		0: {1: "pg", 2: 1, 3: 2, 13: 0},
		2: {1: "pg", 2: 1, 3: 2, 13: 2},
	} {
		value, err := encoding.Marshal(row)
		if err != nil {
			t.Fatal(err)
		}
		at := accountKey(store.Engine, 1, "m", "root/pg")
		a, _, err := Load(kept{at.Name: value}, 1, "m", "root/pg")
		if err != nil || a.Loose != loose || a.Pending != 2 {
			t.Errorf("%v is %+v, %v", row, a, err)
		}
		again := &store.Txn{}
		if err := Save(again, store.Row{Key: at}, a); err != nil {
			t.Fatal(err)
		}
		for _, put := range again.Puts {
			if put.Key != at {
				continue
			}
			if a, _, err := Load(kept{at.Name: put.Value}, 1, "m", "root/pg"); err != nil || a.Loose != loose {
				t.Errorf("%v, saved, is %+v, %v", row, a, err)
			}
		}
	}
}

// Who has read what a version handed out that forgot its holders with their leases is not known, until another is in force.
func TestForgottenHolders(t *testing.T) {
	at := accountKey(store.Engine, 1, "m", "static/app")
	value, err := encoding.Marshal(map[int]any{1: "pg", 2: 7, 4: t0.Unix(), 13: 0})
	if err != nil {
		t.Fatal(err)
	}
	a, _, err := Load(kept{at.Name: value}, 1, "m", "static/app")
	if err != nil || !a.Strangers() {
		t.Fatalf("%+v, %v", a, err)
	}
	p := &Passwords{Current: secret("old")}
	a.Begin(p, secret("new"), t0)
	if value, err = encoding.Marshal(a); err != nil {
		t.Fatal(err)
	}
	if a, _, err = Load(kept{at.Name: value}, 1, "m", "static/app"); err != nil || !a.Strangers() {
		t.Errorf("forgotten as soon as a rotation begins: %+v, %v", a, err)
	}
	a.Confirm(p, hourly, t0)
	if value, err = encoding.Marshal(a); err != nil {
		t.Fatal(err)
	}
	if a, _, err = Load(kept{at.Name: value}, 1, "m", "static/app"); err != nil || a.Strangers() {
		t.Errorf("of a version since: %+v, %v", a, err)
	}
}

// kept is a View of some rows.
type kept map[string][]byte

func (k kept) Position() uint64           { return 1 }
func (k kept) Changed(store.Table) uint64 { return 1 }
func (k kept) Close()                     {}
func (k kept) Get(at store.Key) (store.Row, error) {
	return store.Row{Key: at, Version: 1, Value: k[at.Name]}, nil
}
func (k kept) Scan(store.Table, string, string) iter.Seq2[store.Row, error] { return nil }

func TestBackoff(t *testing.T) {
	last := time.Duration(0)
	for n := range uint32(64) {
		least, most := Backoff(n, 0), Backoff(n, 1)
		if least < 500*time.Millisecond || most > 10*time.Minute || most != 2*least || most < last {
			t.Errorf("after %d failures from %s to %s", n, least, most)
		}
		last = most
	}
	if last != 10*time.Minute {
		t.Errorf("at most %s", last)
	}
}

func TestSchedule(t *testing.T) {
	nightly := Schedule{Cron: "30 3 * * 1-5", Window: 2 * time.Hour}
	friday := time.Date(2026, 5, 1, 3, 30, 0, 0, time.UTC)
	for _, c := range []struct {
		s           Schedule
		after, next time.Time
	}{
		{Schedule{}, t0, time.Time{}},
		{hourly, t0, t0.Add(time.Hour)},
		{nightly, friday.Add(-time.Second), friday},
		{nightly, friday, friday.Add(72 * time.Hour)},
		{nightly, friday.Add(-time.Second).In(time.FixedZone("", 7200)), friday}, // times are UTC
		{Schedule{Cron: "0 0 29 2 *"}, t0, time.Date(2028, 2, 29, 0, 0, 0, 0, time.UTC)},
	} {
		if got := c.s.Next(c.after); !got.Equal(c.next) {
			t.Errorf("%+v after %s: %s, not %s", c.s, c.after, got, c.next)
		}
	}
	if nightly.Missed(friday, friday.Add(2*time.Hour-1)) || !nightly.Missed(friday, friday.Add(2*time.Hour)) || hourly.Missed(t0, t0.Add(time.Hour*99)) {
		t.Error("windows")
	}
	a := &Account{Due: friday}
	if a.Step(nightly, friday.Add(3*time.Hour)) != Miss {
		t.Error("a rotation whose window is over is begun")
	}
	if a.Skip(nightly, friday.Add(3*time.Hour)); !a.Due.Equal(friday.Add(72 * time.Hour)) {
		t.Errorf("skipped to %s", a.Due)
	}
	for _, bad := range []Schedule{
		{Period: time.Second}, {Period: time.Hour, Window: time.Hour}, {Cron: "* * * * *", Window: time.Minute}, {Cron: "@hourly"}, {Cron: "* * * * * *"},
		{Cron: "CRON_TZ=Asia/Tokyo 0 0 * * *"}, {Cron: "0 0 31 2 *"}, {Cron: strings.Repeat("1,", 200) + "1 * * * *"}, {Cron: "61 * * * *"},
	} {
		if bad.Check(t0) == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// What a later version has put into an account's row is there still when this one has put it anew; and what an earlier one left out is as it was then.
func TestRowsOfOtherVersions(t *testing.T) {
	if n := reflect.TypeFor[Account](); !strings.HasPrefix(n.Field(n.NumField()-2).Tag.Get("cbor"), fmt.Sprint(known, ",")) {
		t.Errorf("the last key is not %d: %s", known, n.Field(n.NumField()-2).Tag)
	}
	b := newBench(t)
	b.add("pg", "a")
	name := accountKey(store.Engine, 0, uuid, "a").Name
	change := func(do func(row map[uint64]any)) {
		t.Helper()
		_, err := b.db.Update(t.Context(), func(v store.View, txn *store.Txn) error {
			row, err := v.Get(store.Key{Table: store.Engine, Name: name})
			if err != nil {
				return err
			}
			value := map[uint64]any{}
			if err := decoding.Unmarshal(row.Value, &value); err != nil {
				return err
			}
			do(value)
			encoded, err := encoding.Marshal(value)
			txn.Put(store.Engine, name, encoded)
			return err
		})
		b.must(err)
	}
	change(func(row map[uint64]any) { row[known+1], row[1000] = "later", []any{uint64(1), "much later"} })
	for range 2 {
		b.clock.advance(2 * time.Hour)
		if got := b.work(); got != "[a]" {
			t.Fatalf("turns %s", got)
		}
	}
	change(func(row map[uint64]any) {
		if row[known+1] != "later" || fmt.Sprint(row[1000]) != "[1 much later]" || row[2] != uint64(2) {
			t.Errorf("the row is %v", row)
		}
		maps.DeleteFunc(row, func(key uint64, _ any) bool { return key > 12 }) // as it was before there were two accounts
	})
	v, err := b.db.View()
	b.must(err)
	defer v.Close()
	a, _, err := Load(v, 0, uuid, "a")
	b.must(err)
	if a.Version != 2 || a.Loose != 1 || !a.Strangers() || len(a.later) > 0 {
		t.Errorf("an earlier version's row is read as %+v", a)
	}
}
