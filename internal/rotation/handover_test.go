package rotation

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// model is a pair of accounts at a target, and a lessor of which the rows survive and nothing else.
type model struct {
	*rapid.T
	a      Account
	p      Passwords
	now    time.Time
	target [2]string // the passwords in force
	late   []late    // attempts that may land yet, or never
	n      int       // of passwords that were made
	strays int       // attempts that were late, ever
	whole  bool      // nothing fails any more
}

// late is an attempt that lands before a time, since no statement runs for longer, or never.
type late struct {
	by       time.Time
	slot     uint8
	password string
}

// pass lets time pass.
func (m *model) pass(d time.Duration) {
	m.now = m.now.Add(d)
	m.late = slices.DeleteFunc(m.late, func(l late) bool { return !m.now.Before(l.by) })
}

// set is an attempt at the password of an account: done or not, told or not.
func (m *model) set(slot uint8, password lessor.Secret) (err error) {
	do := func() { m.target[slot] = password.Reveal() }
	if m.whole {
		do()
		return nil
	}
	switch rapid.IntRange(0, 5).Draw(m.T, "set") {
	case 0:
		return errors.New("broken before")
	case 1:
		do()
		return errors.New("broken after")
	case 2:
		m.strays++
		m.late = append(m.late, late{m.now.Add(Watch), slot, password.Reveal()})
		return errors.New("on its way")
	}
	do()
	return nil
}

// work does what is due as an engine does, and dies now and then.
func (m *model) work(holding int, seen []Seen) {
	a, p := &m.a, &m.p
	was := a.Phase()
	switch a.Step(hourly, m.now) {
	case Rotate, Retire:
		if was != Idle && a.Step(hourly, m.now) == Rotate {
			m.Fatalf("a rotation begins in phase %s", was)
		}
		m.n++
		a.Begin(p, secret(fmt.Sprint("p", m.n)), m.now)
		m.turn()
	case Resume:
		a.Begin(p, lessor.Secret{}, m.now)
		m.turn()
	case Watching:
		if !m.whole && rapid.IntRange(0, 4).Draw(m.T, "look") == 0 {
			a.Failed(errors.New("no answer"), m.now, 1)
		} else {
			a.Sighted(seen, m.now, m.now)
		}
		if why := a.Weigh(holding, true, m.now); why != 0 {
			if !why.Forced() && len(seen) > 0 || why == Acknowledged && holding > 0 {
				m.Fatalf("the wait is over since %s, with %d who hold and %v", why, holding, seen)
			}
			a.Close(why, nil, m.now)
		}
	case Prove:
		m.prove()
	case Settle:
		a.Settled = a.Dead
	case Yield:
		a.GiveUp(p, hourly, m.now)
	}
}

// turn brings the pending password into force, unless it dies.
func (m *model) turn() {
	pending := m.p.Pending
	if !m.whole && rapid.IntRange(0, 4).Draw(m.T, "dies") == 0 {
		return
	}
	slot := m.a.Turn()
	if err := m.set(slot, pending); err != nil {
		m.a.Failed(err, m.now, 1)
		return
	}
	m.a.Confirm(&m.p, hourly, m.now)
}

// prove tries the password in force, and those that should not be.
func (m *model) prove() {
	a, p := &m.a, &m.p
	if p.Current.Reveal() != m.target[a.Slot] && m.set(a.Slot, p.Current) != nil {
		a.Failed(errors.New("broken"), m.now, 1)
		return
	}
	for _, f := range p.Formers(1 - a.Slot) {
		switch {
		case f.Password.Reveal() != m.target[1-a.Slot]:
		case p.Other.Empty():
			p.Other = f.Password
		case m.set(1-a.Slot, p.Other) != nil:
			a.Failed(errors.New("broken"), m.now, 1)
			return
		}
	}
	a.Proven(p, m.now)
	a.Buried(p, m.now)
}

// check is what must hold at each moment.
func (m *model) check() {
	a, p := &m.a, &m.p
	for slot := range uint8(2) {
		known := m.target[slot] == "first" && slot != a.Slot && p.Of(a, slot).Empty() // the second account's own, until it is set
		for _, s := range p.Candidates() {
			known = known || s.Reveal() == m.target[slot]
		}
		if !known {
			m.Fatalf("the password %q of account %d is in force, and not on record: %+v", m.target[slot], slot, a)
		}
	}
	if m.strays == 0 && m.target[a.Slot] != p.Current.Reveal() {
		m.Fatalf("what readers are shown is not in force: %+v", a)
	}
	if m.strays == 0 && a.Phase() == Waiting && m.target[1-a.Slot] != p.Other.Reveal() {
		m.Fatalf("what is waited for is not in force: %+v", a)
	}
	if a.Outgoing >= a.Version && a.Outgoing != 0 || a.Dead >= a.Version {
		m.Fatalf("versions run back: %+v", a)
	}
}

// Two accounts take turns under deaths, lost answers, attempts that land late, people who give up and people who do not wait. At each moment what is in
// force is on record, at most one rotation is under way, and who holds what is waited for is let in, but for what lands late. In the end all is quiet: both accounts
// have the password on record, one that nobody is told where nobody should log in.
func TestPairModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{T: t, now: t0, target: [2]string{"first", "first"}}
		m.a.Pair, m.a.Grace, m.a.QuietFor = true, rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(t, "grace"), 10*time.Second
		m.a.Import(&m.p, secret("first"), m.now)
		m.a.Due = m.now.Add(time.Hour)
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 0:
				m.a.Demand("a test", m.now)
			case 1:
				if _, ok := m.a.Abortable(); ok {
					m.a.Abort, m.a.Retry = true, time.Time{}
				}
			case 2:
				if m.a.Phase() == Waiting {
					m.a.Close(Told, nil, m.now)
				}
			case 3:
				if len(m.late) > 0 && rapid.Bool().Draw(t, "lands") {
					m.target[m.late[0].slot] = m.late[0].password
					m.late = m.late[1:]
				}
			case 4:
				m.pass(rapid.SampledFrom([]time.Duration{Watch, time.Hour}).Draw(t, "long"))
			default:
				m.pass(time.Duration(rapid.IntRange(0, 10_000).Draw(t, "ms")) * time.Millisecond)
				m.work(rapid.IntRange(0, 1).Draw(t, "holding"), rapid.SampledFrom([][]Seen{nil, {{Count: 1}}}).Draw(t, "seen"))
			}
			m.check()
		}
		// What is on its way lands or is lost for good; then time heals all.
		for _, l := range m.late {
			if rapid.Bool().Draw(t, "lands in the end") {
				m.target[l.slot] = l.password
			}
		}
		m.late, m.whole = nil, true
		for range 2_000 {
			if at := m.a.When(); m.a.Phase() == Idle && m.a.Check.IsZero() && m.a.Due.After(m.now) && at.Equal(m.a.Due) {
				break
			}
			m.pass(time.Second)
			m.work(0, nil)
		}
		if m.a.Phase() != Idle || !m.a.Check.IsZero() {
			t.Fatalf("it never comes to an end: %+v", m.a)
		}
		if m.target[m.a.Slot] != m.p.Current.Reveal() {
			t.Fatalf("what readers are shown is not in force: %+v", m.a)
		}
		if other := m.p.Of(&m.a, 1-m.a.Slot); !other.Empty() && m.target[1-m.a.Slot] != other.Reveal() {
			t.Fatalf("the other account has a password that is not its own: %+v", m.a)
		}
		if len(m.p.Former) > 0 {
			t.Fatalf("what is dead is not forgotten: %+v", m.p.Former)
		}
	})
}

// pair is one of which the first rotation was promoted at t0.
func pair() (*Account, *Passwords) {
	a, p := &Account{Pair: true, QuietFor: time.Minute}, &Passwords{}
	a.Begin(p, secret("a"), t0)
	a.Confirm(p, hourly, t0)
	a.Begin(p, secret("b"), t0)
	a.Confirm(p, hourly, t0)
	return a, p
}

// Who is waited for: whoever may use the outgoing version, that is has read it and not said that it uses only newer ones.
func TestHolding(t *testing.T) {
	a, _ := pair()
	for _, c := range []struct {
		u    lease.User
		want bool
	}{
		{lease.User{Oldest: 1, Newest: 1}, true},
		{lease.User{Oldest: 1, Newest: 2}, true}, // read the new one, and said nothing
		{lease.User{Oldest: 2, Newest: 2, Acked: 2}, false},
		{lease.User{Oldest: 2, Newest: 2}, false},
		{lease.User{Oldest: 1, Newest: 1, Lapsed: t0}, true},
		{lease.User{Oldest: 1, Newest: 1, Lapsed: t0, Revoked: true}, false},
		{lease.User{Oldest: 1, Newest: 1, Born: 7}, false}, // of another role that had the name
	} {
		if got := len(a.Holding([]lease.User{c.u})) == 1; got != c.want {
			t.Errorf("%+v is waited for: %v", c.u, got)
		}
	}
}

// When the wait is over, and when the next look is.
func TestWeigh(t *testing.T) {
	busy := []Seen{{Client: "10.0.0.1", Count: 3}}
	type look struct {
		after   time.Duration
		seen    []Seen
		fails   bool
		holding int
		want    Over
		next    time.Duration // from then on; 0: not looked at
	}
	for name, c := range map[string]struct {
		change func(*Account)
		looks  []look
	}{
		"nobody holds it": {nil, []look{{after: 0, want: Acknowledged}}},
		"all have said so, but it is in use": {nil, []look{
			{after: 0, seen: busy, next: time.Second}, {after: time.Second, seen: busy, next: 2 * time.Second}, {after: 2 * time.Second, want: Acknowledged}}},
		"looks are more and more seldom": {nil, []look{
			{holding: 1, seen: busy, next: firstLook}, {holding: 1, seen: busy, next: time.Second}, {holding: 1, seen: busy, next: 2 * time.Second},
			{holding: 1, seen: busy, next: 4 * time.Second}, {holding: 1, seen: busy, next: 8 * time.Second}, {holding: 1, seen: busy, next: 16 * time.Second},
			{holding: 1, seen: busy, next: LastLook}, {holding: 1, seen: busy, next: LastLook}, {holding: 2, seen: busy, next: firstLook}}},
		"one is left that says nothing": {nil, []look{
			{holding: 1}, {after: 30 * time.Second, holding: 1}, {after: 29 * time.Second, holding: 1, next: time.Second}, {after: time.Second, holding: 1, want: Unused}}},
		"use in between": {nil, []look{
			{holding: 1}, {after: 30 * time.Second, holding: 1, seen: busy}, {after: 30 * time.Second, holding: 1}, {after: 30 * time.Second, holding: 1},
			{after: 30 * time.Second, holding: 1, want: Unused}}},
		"nobody looked for too long":      {nil, []look{{holding: 1}, {after: time.Hour, holding: 1}, {after: time.Minute, holding: 1, want: Unused}}},
		"looks that fail are no evidence": {nil, []look{{fails: true}, {after: time.Minute, fails: true}, {after: time.Minute, want: Acknowledged}}},
		"a grace": {func(a *Account) { a.Grace = 2 * time.Minute }, []look{
			{holding: 1, seen: busy}, {after: 119 * time.Second, holding: 1, seen: busy, next: time.Second}, {after: time.Second, holding: 1, seen: busy, want: Expired}}},
		"a grace, and the target is away": {func(a *Account) { a.Grace = 2 * time.Minute }, []look{{after: 2 * time.Minute, holding: 1, fails: true, want: Expired}}},
		"somebody else made it":           {func(a *Account) { a.Foreign = 1 }, []look{{}, {after: 59 * time.Second}, {after: time.Second, want: Unused}}},
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := pair()
			if c.change != nil {
				c.change(a)
			}
			now := t0
			for i, l := range c.looks {
				now = now.Add(l.after)
				if l.fails {
					a.Failed(errors.New("away"), now, 1)
				} else {
					a.Sighted(l.seen, now, now)
				}
				if got := a.Weigh(l.holding, true, now); got != l.want {
					t.Fatalf("look %d: %q, not %q", i, got, l.want)
				}
				if next := a.Look.Sub(now); l.next != 0 && next != l.next {
					t.Errorf("look %d: the next one is in %s, not %s", i, next, l.next)
				}
			}
		})
	}
	a, _ := pair()
	if a.Sighted(nil, t0, t0); a.Weigh(0, false, t0) != 0 {
		t.Error("nobody is waited for though it is not known who reads")
	}
}

// Who gives up a rotation that waits gets back the password that was outgoing, as a new version, and only those who read the other one are waited for.
func TestGiveUpWhileItWaits(t *testing.T) {
	a, p := pair()
	a.Abort = true
	if a.Step(hourly, t0) != Yield || !a.GiveUp(p, hourly, t0) {
		t.Fatal("not given up")
	}
	if a.Version != 3 || p.Current.Reveal() != "a" || p.Other.Reveal() != "b" || a.Slot != 0 || a.Outgoing != 2 || a.Phase() != Waiting {
		t.Fatalf("%+v, %q", a, reveal(p.Candidates()))
	}
	if got := a.Holding([]lease.User{{Oldest: 1, Newest: 1}, {Oldest: 1, Newest: 2, Lease: "moved"}, {Oldest: 3, Newest: 3}}); len(got) != 1 || got[0].Lease != "moved" {
		t.Errorf("waited for are %+v", got)
	}
	if _, ok := a.Abortable(); ok {
		t.Error("given up twice")
	}
	end := func(fresh string) {
		a.Close(Told, nil, t0)
		a.Begin(p, secret(fresh), t0)
		a.Confirm(p, hourly, t0)
		a.Proven(p, t0)
		a.Buried(p, t0)
	}
	if end("x"); a.Phase() != Idle || a.Dead != 0 || a.Back {
		t.Errorf("what is in force counts as dead, since it was so before: %+v", a)
	}
	a.Begin(p, secret("c"), t0)
	a.Confirm(p, hourly, t0)
	if got := a.Holding([]lease.User{{Oldest: 1, Newest: 1}, {Oldest: 2, Newest: 2}, {Oldest: 4, Newest: 4}}); len(got) != 2 {
		t.Errorf("who read the same password as an older version is not waited for: %+v", got)
	}
	if end("y"); a.Dead != 3 || a.Version != 4 || p.Current.Reveal() != "c" {
		t.Errorf("in the end %+v", a)
	}
}

// Those who had not moved are named, as many as are kept.
func TestStragglers(t *testing.T) {
	a, _ := pair()
	a.Sighted([]Seen{{Client: "10.0.0.1", Application: "psql", Count: 2}}, t0, t0)
	users := make([]lease.User, MostStragglers+3)
	a.Close(Expired, users, t0)
	if len(a.Stragglers) != MostStragglers || a.Beyond != 4 {
		t.Errorf("%d are named, %d are not", len(a.Stragglers), a.Beyond)
	}
	a, _ = pair()
	a.Sighted([]Seen{{Client: "10.0.0.1", Application: "psql", Count: 2}}, t0, t0)
	a.Sighted(nil, t0.Add(time.Second), t0.Add(time.Second)) // it is between two queries
	if a.Close(Expired, nil, t0.Add(2*time.Second)); len(a.Stragglers) != 1 || a.Stragglers[0].Application != "psql" || !a.Stragglers[0].Last.Equal(t0) {
		t.Errorf("%+v", a.Stragglers)
	}
	a, _ = pair()
	if a.Close(Unused, users[:1], t0); len(a.Stragglers) != 0 {
		t.Errorf("named though nobody uses it: %+v", a.Stragglers)
	}
}

// Rotations that are demanded: each waits for its turn, and is not left to the next window.
func TestDemand(t *testing.T) {
	a, p := pair()
	if !a.Demand("leak", t0) || a.Demand("again", t0) {
		t.Error("not kept, or kept twice")
	}
	if a.Step(hourly, t0) != Watching || !a.Due.Equal(t0) {
		t.Errorf("it does not wait for the one under way: %+v", a)
	}
	a.Close(Told, nil, t0)
	a.Begin(p, secret("x"), t0)
	a.Confirm(p, hourly, t0)
	a.Proven(p, t0)
	a.Buried(p, t0)
	a.Settled = a.Dead
	nightly := Schedule{Cron: "30 3 * * *", Window: time.Hour}
	if got := a.Step(nightly, t0.Add(5*time.Hour)); got != Rotate || a.Cause != "leak" {
		t.Errorf("step %d comes of %+v", got, a)
	}
	if a.Begin(p, secret("c"), t0); a.Demand("leak", t0) {
		t.Error("demanded though a new password is on its way")
	}
	if a.Confirm(p, hourly, t0); a.Cause != "" {
		t.Errorf("%+v", a)
	}
}

// What somebody asked for is demanded as soon as there is a reason that whoever gives it up does not give up.
func TestDemandOfWhatWasAskedFor(t *testing.T) {
	a := &Account{Version: 1, Due: t0.Add(time.Hour)}
	if !a.Demand(Asked, t0) || a.Demand(Asked, t0) || a.Demanded() {
		t.Errorf("%+v", a)
	}
	if !a.Demand("leak", t0) || a.Demand(Asked, t0) || !a.Demanded() || a.Cause != "leak" || !a.Due.Equal(t0) {
		t.Errorf("%+v", a)
	}
}

// Who gives up a rotation before its password is in force does not give up what demanded it: somebody knows the password in force who should not. What somebody
// asked for is given up.
func TestDemandOutlivesGivingUp(t *testing.T) {
	for cause, stays := range map[string]bool{"": false, Asked: false, "a holder's lease was revoked": true} {
		a, p := &Account{}, &Passwords{}
		a.Import(p, secret("a"), t0)
		if cause != "" && !a.Demand(cause, t0) {
			t.Fatal("not demanded")
		}
		a.Begin(p, secret("b"), t0)
		a.Abort = true
		if !a.GiveUp(p, hourly, t0) || a.Pending != 0 {
			t.Fatal("not given up")
		}
		if again := a.Step(hourly, t0) == Rotate; again != stays || stays != (a.Cause == cause && cause != "") {
			t.Errorf("%q: rotated at once: %v, cause %q", cause, again, a.Cause)
		}
	}
}

// Jitter moves what is due, never before its time nor past the next one.
func TestJitter(t *testing.T) {
	s := Schedule{Period: time.Hour, Jitter: 10 * time.Minute}
	if got := s.Next(t0); !got.Equal(t0.Add(time.Hour)) {
		t.Errorf("not drawn: %s", got)
	}
	if got := s.Drawn(0.5).Next(t0); !got.Equal(t0.Add(65 * time.Minute)) {
		t.Errorf("drawn: %s", got)
	}
	nightly := Schedule{Cron: "0 3 * * *", Window: time.Hour, Jitter: 30 * time.Minute}
	if got := nightly.Drawn(0.5).Next(t0); got.Hour() != 3 || got.Minute() != 15 {
		t.Errorf("drawn: %s", got)
	}
	for _, bad := range []Schedule{
		{Period: time.Hour, Jitter: time.Hour}, {Jitter: time.Second}, {Period: time.Hour, Jitter: -1}, {Cron: "* * * * *", Jitter: time.Minute},
		{Cron: "0 3 * * *", Window: time.Hour, Jitter: time.Hour},
	} {
		if bad.Check(t0) == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	for _, good := range []Schedule{{}, s, nightly} {
		if err := good.Check(t0); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}

// A look that was answered late is evidence of when the target was asked only.
func TestLookThatIsAnsweredLate(t *testing.T) {
	a, _ := pair()
	a.Sighted(nil, t0, t0)
	if a.Weigh(1, true, t0) != 0 {
		t.Fatal("nobody is waited for")
	}
	now := t0.Add(time.Minute + 5*time.Second)
	if a.Sighted(nil, t0.Add(time.Second), now); a.Weigh(1, true, now) != 0 {
		t.Error("two looks within a second are evidence of a minute without use")
	}
	now = now.Add(time.Second)
	if a.Sighted(nil, now, now); a.Weigh(1, true, now) != Unused {
		t.Error("looks a minute apart are no evidence")
	}
}

// Which versions are the password in force, or may be again.
func TestVersionsInForce(t *testing.T) {
	a, p := pair()
	if a.InForce(1) || !a.InForce(2) || a.InForce(3) || !a.MayReturn(1) || a.MayReturn(2) {
		t.Errorf("while it waits: %+v", a)
	}
	a.GiveUp(p, hourly, t0)
	if !a.InForce(1) || !a.InForce(3) || a.MayReturn(1) || a.MayReturn(2) {
		t.Errorf("given up: %+v", a)
	}
}

// A restored copy does not know who has been shown what it knows to be in force, nor what it was about to bring into force.
func TestRecovered(t *testing.T) {
	end := func(a *Account, p *Passwords) {
		a.Close(Told, nil, t0)
		a.Begin(p, secret("nobody's"), t0)
		a.Confirm(p, hourly, t0)
		a.Proven(p, t0)
		a.Buried(p, t0)
	}
	a, p := pair()
	end(a, p)
	a.Begin(p, secret("c"), t0)
	if a.Recovered(t0); !a.Strangers() || a.Step(hourly, t0) != Resume {
		t.Errorf("%+v", a)
	}
	for _, want := range []Over{0, 0, Acknowledged} { // of version 2, of 3, which was pending, and of 4
		a.Confirm(p, hourly, t0)
		if a.Sighted(nil, t0, t0); a.Weigh(0, true, t0) != want {
			t.Errorf("version %d is handed over: %+v", a.Outgoing, a)
		}
		end(a, p)
		a.Begin(p, secret("next"), t0)
	}
}

// Where a target does not show who uses what, that nothing is seen never ends a wait: the holders' word does, or the deadline.
func TestBlind(t *testing.T) {
	for _, blind := range []bool{false, true} {
		a, p := &Account{Pair: true, Blind: blind, QuietFor: time.Minute, Grace: time.Hour}, &Passwords{}
		for _, s := range []string{"a", "b"} {
			a.Begin(p, secret(s), t0)
			a.Confirm(p, hourly, t0)
		}
		over := Over(0)
		for at := t0; over == 0; at = at.Add(LastLook) {
			a.Sighted(nil, at, at)
			over = a.Weigh(1, true, at)
		}
		if want := map[bool]Over{false: Unused, true: Expired}[blind]; over != want {
			t.Errorf("blind: %v, the wait ended since %s", blind, over)
		}
		a.Sighted(nil, t0, t0)
		if a.Weigh(0, true, t0) != Acknowledged {
			t.Errorf("blind: %v, who has moved is waited for", blind)
		}
	}
}

// What somebody else put into force is what the next rotation begins from, and is never one that has to be refused.
func TestAdopt(t *testing.T) {
	a, p := &Account{}, &Passwords{}
	a.Begin(p, secret("a"), t0)
	a.Confirm(p, hourly, t0)
	a.Begin(p, secret("b"), t0)
	a.Confirm(p, hourly, t0)
	a.Adopt(p, secret("a"), 7)
	if a.Version != 7 || a.Foreign != 7 || reveal(p.Candidates()) != "a" {
		t.Errorf("%+v, %q", a, reveal(p.Candidates()))
	}
}
