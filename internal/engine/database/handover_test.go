package database_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// pair is a static role of two accounts, "app".
type pair struct {
	*world
	users [2]string
}

// pair makes one, whose first password is known, and which is rotated on request only, by and large.
func (w *world) pair(more string) *pair {
	w.Helper()
	p := &pair{w, [2]string{w.account(""), w.account("")}}
	w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"pg","usernames":[%q,%q],"rotation_period":"1000h"%s}`, p.users[0], p.users[1], more))
	return p
}

// login is what a reader is shown.
type login struct{ username, password, lease string }

// read reads the role's password as one of its holders, who renews and acknowledges or, with instance "", does neither.
func (p *pair) read(instance string) login {
	p.Helper()
	l, err := p.tryRead(instance)
	p.must(err)
	return l
}

func (p *pair) tryRead(instance string) (login, error) {
	op := p.op(lessor.Read, "db/static-creds/app", "")
	op.Instance, op.Renewable = instance, instance != ""
	a, err := p.core.Handle(context.Background(), op)
	if err != nil {
		return login{}, err
	}
	return login{a.Data["username"].(string), a.Data["password"].(lessor.Secret).Reveal(), a.Lease.ID}, nil
}

// acknowledge says that a holder uses the version that its lease is on, and nothing older.
func (p *pair) acknowledge(instance string, l login) {
	p.Helper()
	op := p.op(lessor.Update, "sys/lessor/leases/acknowledge", fmt.Sprintf(`{"lease_id":%q}`, l.lease))
	op.Instance = instance
	_, err := p.core.Handle(context.Background(), op)
	p.must(err)
}

// open opens a session that stays.
func (p *pair) open(l login) *pgx.Conn {
	p.Helper()
	c, err := p.pg.Login(context.Background(), l.username, l.password, "")
	p.must(err)
	p.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// phase is how far the rotation is.
func (p *pair) phase() rotation.Phase { return p.state("static/app").Phase() }

// reaches waits for a phase; time passes meanwhile, by steps of d.
func (p *pair) reaches(phase rotation.Phase, d time.Duration) {
	p.Helper()
	p.until("the rotation is in phase "+phase.String(), func() bool {
		p.clock.advance(d)
		return p.phase() == phase
	})
}

// lets reports whether a login is let in.
func (p *pair) lets(l login) bool { p.Helper(); return p.logsIn(l.username, l.password) }

// status is what people are told.
func (p *pair) status() map[string]any {
	p.Helper()
	return p.do(lessor.Read, "sys/lessor/rotation/status/db/static-creds/app", "").Data
}

// Readers who acknowledge are waited for, whatever they do until then; their old password works until the last one has, and is dead soon after.
func TestHandover(t *testing.T) {
	p := newWorld(t, pgtest.Start(t)).pair("")
	one, two := p.read("one"), p.read("two")
	if one.username != p.users[0] || one.lease == "" || p.phase() != rotation.Idle {
		t.Fatalf("before: %+v, %s", one, p.phase())
	}
	p.acknowledge("one", one)
	p.acknowledge("two", two)
	p.do(lessor.Update, "db/rotate-role/app", "")
	next := p.read("one")
	if next.username != p.users[1] || !p.lets(next) || !p.lets(one) {
		t.Fatalf("after the rotation readers are shown %q; it logs in: %v; the old one: %v", next.username, p.lets(next), p.lets(one))
	}
	p.read("two") // reading is not adopting
	for range 3 {
		p.clock.advance(time.Minute)
		time.Sleep(50 * time.Millisecond)
	}
	p.acknowledge("one", next)
	p.clock.advance(time.Minute)
	p.until("who has not moved is shown", func() bool {
		s := p.status()
		holders := s["holders"].([]any)
		return s["step"] == "wait" && len(holders) == 1 && holders[0].(map[string]any)["instance"] == "two"
	})
	if !p.lets(two) {
		t.Fatal("who has not acknowledged is locked out")
	}
	p.acknowledge("two", p.read("two"))
	p.reaches(rotation.Idle, time.Second)
	if p.lets(one) || !p.lets(next) || p.read("one").password != next.password {
		t.Errorf("in the end the old password logs in: %v; the new one: %v", p.lets(one), p.lets(next))
	}
	s := p.state("static/app")
	if s.Dead != 1 || len(s.Stragglers) > 0 {
		t.Errorf("in the end %+v", s)
	}
	p.until("holders are told", func() bool { s := p.state("static/app"); return s.Settled == 1 })
	if notes := p.notes(); !strings.Contains(notes, "every holder has moved") || strings.Contains(notes, "has not moved") {
		t.Errorf("on record is %s", notes)
	}
	// And back again.
	p.do(lessor.Update, "db/rotate-role/app", "")
	if l := p.read("one"); l.username != p.users[0] || l.password == one.password || !p.lets(l) || !p.lets(next) {
		t.Errorf("the second rotation: %+v", l)
	}
}

// Whoever says that he has moved, or that he uses nothing any more, is noticed at once, however long it is until the next look.
func TestMoveIsNoticedAtOnce(t *testing.T) {
	p := newWorld(t, pgtest.Start(t)).pair(`,"rotation_quiet":"100h"`)
	p.read("one")
	two := p.read("two")
	p.do(lessor.Update, "db/rotate-role/app", "")
	one := p.read("one")
	var look time.Time
	far := func() {
		p.Helper()
		p.until("looks are rare", func() bool {
			look = p.state("static/app").Look
			if look.Sub(p.clock.Now()) > rotation.LastLook*5/6 {
				return true
			}
			p.clock.advance(rotation.LastLook)
			return false
		})
	}
	far()
	p.acknowledge("one", one)
	p.until("one has moved", func() bool { return p.state("static/app").Behind == 1 })
	if now := p.clock.Now(); !now.Before(look) {
		t.Errorf("it was noticed at %s, when the next look was due at %s anyway", now, look)
	}
	far()
	op := p.op(lessor.Update, "sys/lessor/leases/release", fmt.Sprintf(`{"lease_id":%q}`, two.lease))
	op.Instance = "two"
	_, err := p.core.Handle(context.Background(), op)
	p.must(err)
	p.until("the wait is over", func() bool { return p.phase() != rotation.Waiting })
	if now := p.clock.Now(); !now.Before(look) {
		t.Errorf("it was noticed at %s, when the next look was due at %s anyway", now, look)
	}
}

// notes are those of all audit records of the role's rotations.
func (p *pair) notes() string {
	p.Helper()
	var all []string
	for _, r := range p.records("db/static-roles/app") {
		all = append(all, r.Note)
	}
	return strings.Join(all, "\n")
}

// Whoever reads as Vault's clients do says nothing. The database shows that it is connected, and where from, for as long as it is.
func TestHandoverByEvidence(t *testing.T) {
	p := newWorld(t, pgtest.Start(t)).pair(`,"rotation_quiet":"60s"`)
	old := p.read("")
	c := p.open(old)
	p.do(lessor.Update, "db/rotate-role/app", "")
	p.until("it is seen", func() bool { p.clock.advance(time.Second); return len(p.status()["sessions"].([]any)) == 1 })
	seen := p.status()["sessions"].([]any)[0].(map[string]any)
	if seen["client"] == "" || seen["count"] != 1 {
		t.Errorf("seen is %v", seen)
	}
	for range 20 {
		p.clock.advance(10 * time.Second)
		time.Sleep(20 * time.Millisecond)
	}
	if p.phase() != rotation.Waiting || !p.lets(old) || c.Ping(t.Context()) != nil {
		t.Fatalf("retired while it is in use, in phase %s", p.phase())
	}
	if a := p.do(lessor.Read, "db/static-creds/app", ""); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "has been waiting since") {
		t.Errorf("warnings %q", a.Warnings)
	}
	p.must(c.Close(t.Context()))
	p.until("no use is seen", func() bool { p.clock.advance(time.Second); return !p.state("static/app").QuietSince.IsZero() })
	since := p.state("static/app").QuietSince
	p.reaches(rotation.Idle, time.Second)
	if waited := p.db.Now().Sub(since); waited < time.Minute {
		t.Errorf("retired %s after the last use was seen", waited)
	}
	if p.lets(old) || !p.lets(p.read("")) {
		t.Error("in the end")
	}
	if notes := p.notes(); !strings.Contains(notes, "no use for long enough") {
		t.Errorf("on record is %s", notes)
	}
}

// A grace ends the wait for a reader that never moves, and for sessions of which nobody knows whose they are. Both are named, and sent away.
func TestHandoverByDeadline(t *testing.T) {
	p := newWorld(t, pgtest.Start(t)).pair(`,"rotation_grace":"1h"`)
	old := p.read("slow")
	c := p.open(old)
	p.do(lessor.Update, "db/rotate-role/app", "")
	p.until("it is seen", func() bool { p.clock.advance(time.Second); return len(p.status()["sessions"].([]any)) == 1 })
	p.clock.advance(58 * time.Minute)
	p.until("it is looked at again", func() bool { s := p.state("static/app"); return s.Look.After(p.db.Now()) })
	if p.phase() != rotation.Waiting || c.Ping(t.Context()) != nil || !p.lets(old) {
		t.Fatalf("broken within its grace, in phase %s", p.phase())
	}
	p.reaches(rotation.Idle, 10*time.Second)
	if c.Ping(t.Context()) == nil || p.lets(old) {
		t.Error("the old password is in use after the grace")
	}
	s := p.state("static/app")
	if len(s.Stragglers) != 2 || s.Stragglers[0].Holder.Instance != "slow" || s.Stragglers[1].Count != 1 {
		t.Errorf("named are %+v", s.Stragglers)
	}
	records := p.records("db/static-roles/app")
	for _, want := range []string{"has not moved from the outgoing password", "sessions that use the outgoing password"} {
		i := slices.IndexFunc(records, func(r audit.At) bool { return r.Note == want })
		if i < 0 || records[i].Lease != old.lease && records[i].Client == "" {
			t.Errorf("not on record, or not of whom: %s", want)
		}
	}
	if got := p.status()["stragglers"].([]any); len(got) != 2 {
		t.Errorf("shown are %v", got)
	}
}

// A reader whose lease was revoked, or that lapsed: nobody waits for the first to say anything; the other is waited for until the database shows no use.
func TestHandoverFromWhoIsGone(t *testing.T) {
	p := newWorld(t, pgtest.Start(t)).pair(`,"rotation_quiet":"60s"`)
	gone := p.read("gone")
	p.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q,"sync":true}`, gone.lease))
	p.do(lessor.Update, "db/rotate-role/app", "")
	p.reaches(rotation.Idle, time.Second)
	if notes := p.notes(); !strings.Contains(notes, "every holder has moved") {
		t.Errorf("whose access was revoked is waited for: %s", notes)
	}
	lapsed := p.read("lapsed")
	p.clock.advance(100 * 24 * time.Hour)
	p.until("the lease lapses", func() bool {
		a, err := p.try(lessor.Update, "sys/leases/lookup", fmt.Sprintf(`{"lease_id":%q}`, lapsed.lease))
		return err != nil || a == nil
	})
	p.do(lessor.Update, "db/rotate-role/app", "")
	p.until("it is looked at", func() bool { p.clock.advance(time.Second); return p.state("static/app").Looks > 2 })
	if p.phase() != rotation.Waiting || !p.lets(lapsed) {
		t.Errorf("who lapsed counts as moved: %s", p.phase())
	}
	if h := p.status()["holders"].([]any); len(h) != 1 || h[0].(map[string]any)["lapsed"] == nil {
		t.Errorf("waited for are %v", h)
	}
	p.reaches(rotation.Idle, time.Second)
	if p.lets(lapsed) {
		t.Error("the old password is not dead")
	}
}

// A rotation that is due, or asked for, while another waits begins after it.
func TestRotationsOfAPairDoNotOverlap(t *testing.T) {
	p := newWorld(t, pgtest.Start(t)).pair("")
	p.do(lessor.Update, "db/static-roles/app", `{"rotation_period":"1h"}`)
	old := p.read("one")
	p.do(lessor.Update, "db/rotate-role/app", "")
	version := p.state("static/app").Version
	if a := p.do(lessor.Update, "db/rotate-role/app", ""); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "begins when it is done") {
		t.Errorf("asked for while another waits: %q", a.Warnings)
	}
	p.open(old)
	for range 10 {
		p.clock.advance(time.Hour)
		time.Sleep(30 * time.Millisecond)
		if s := p.state("static/app"); s.Version != version || s.Pending != 0 || !p.lets(old) {
			t.Fatalf("another rotation has begun: %+v", s)
		}
	}
	p.do(lessor.Update, "sys/lessor/rotation/retire/db/static-creds/app", "")
	p.until("the next one is promoted", func() bool { p.clock.advance(time.Second); return p.state("static/app").Version == version+1 })
	if p.lets(old) {
		t.Error("the old password is not dead before the next rotation")
	}
	if r := p.records("db/static-roles/app"); !slices.ContainsFunc(r, func(r audit.At) bool { return r.Cause == "asked for" && r.Note == "rotation" }) {
		t.Error("why it was rotated is not on record")
	}
}

// A rotation is given up in each phase in which it can be, and is not where it cannot.
func TestRotationIsGivenUp(t *testing.T) {
	e := &eye{}
	p := newWorldOf(t, pgtest.Start(t), e).pair("")
	const abort, retire = "sys/lessor/rotation/abort/db/static-creds/app", "sys/lessor/rotation/retire/db/static-roles/app"
	p.refused(api.Invalid, lessor.Update, abort, "", "no rotation is under way")
	p.refused(api.Invalid, lessor.Update, retire, "", "nobody is waited for")
	old := p.read("one")

	// Before it is promoted.
	e.Watch(func(call string, _ lessor.Secret, do func() error) error {
		if call == "set" {
			_ = do()
			return errBroken
		}
		return do()
	})
	p.refused(api.Upstream, lessor.Update, "db/rotate-role/app", "", "the session broke off")
	e.Watch(nil)
	withdrawn := p.passwords("static/app").Pending.Reveal()
	p.do(lessor.Update, abort, "")
	p.reaches(rotation.Idle, 0)
	if l := p.read("one"); l.username != old.username || l.password != old.password || !p.lets(l) {
		t.Errorf("given up before it was promoted: %+v", l)
	}
	p.until("what was withdrawn is forgotten", func() bool { p.clock.advance(10 * time.Second); return len(p.passwords("static/app").Former) == 0 })
	if got := p.passwords("static/app").Other.Reveal(); got != withdrawn && p.logsIn(p.users[1], withdrawn) {
		t.Error("what was withdrawn is in force, and not on record")
	}

	// While it waits: what was before is in force again.
	p.do(lessor.Update, "db/rotate-role/app", "")
	moved := p.read("two")
	p.do(lessor.Update, abort, "")
	p.until("the old password is shown again", func() bool { return p.read("one").password == old.password })
	if !p.lets(moved) || !p.lets(old) {
		t.Error("somebody is locked out by giving up")
	}
	p.refused(api.Invalid, lessor.Update, abort, "", "has been given up already")
	if !slices.ContainsFunc(p.records("db/static-roles/app"), func(r audit.At) bool {
		return r.Note == "the rotation is given up" && len(r.Secrets) == 1 && r.Secrets[0].How == "written" && r.Secrets[0].Version == p.state("static/app").Version
	}) {
		t.Error("it is not on record which version is in force")
	}
	back := p.read("two")
	p.acknowledge("two", back)
	p.acknowledge("one", p.read("one"))
	p.reaches(rotation.Idle, time.Second)
	if p.lets(moved) || !p.lets(old) || back.password != old.password {
		t.Error("what was given up is not dead, or what is in force is")
	}
	if s := p.state("static/app"); s.Dead != 0 {
		t.Errorf("what is in force counts as dead: %+v", s)
	}

	// Once it is being retired there is no way back.
	p.do(lessor.Update, "db/rotate-role/app", "")
	var once sync.Once
	reached, goOn := make(chan struct{}), make(chan struct{})
	e.Watch(func(call string, _ lessor.Secret, do func() error) error {
		if call == "set" {
			once.Do(func() { close(reached); <-goOn })
		}
		return do()
	})
	p.do(lessor.Update, retire, "")
	<-reached
	p.refused(api.Invalid, lessor.Update, abort, "", "is being retired")
	close(goOn)
	p.reaches(rotation.Idle, time.Second)
	if p.lets(old) || !p.lets(p.read("one")) {
		t.Error("retired at once: the old password is not dead")
	}
}

// Who asks for a rotation that another request is amid, and then finds it done, has the outcome on record like anybody.
func TestWhoComesSecondIsOnRecord(t *testing.T) {
	e := &eye{}
	p := newWorldOf(t, pgtest.Start(t), e).pair("")
	p.read("one")
	second := p.op(lessor.Update, "db/rotate-role/app", "")
	answered := make(chan error, 1)
	var once sync.Once
	e.Watch(func(call string, _ lessor.Secret, do func() error) error {
		if call == "set" {
			once.Do(func() {
				go func() {
					_, err := p.core.Handle(context.Background(), second)
					answered <- err
				}()
				p.until("the second has begun", func() bool { return p.state("static/app").Loose == 2 })
			})
		}
		return do()
	})
	p.do(lessor.Update, "db/rotate-role/app", "")
	p.must(<-answered)
	if a := p.state("static/app"); a.Version != 2 || a.Phase() != rotation.Waiting {
		t.Errorf("after two requests: %+v", a)
	}
	if !slices.ContainsFunc(p.records("db/rotate-role/app"), func(r audit.At) bool { return r.Request == second.ID && r.Phase == audit.Outcome }) {
		t.Error("the second was answered, and its outcome is not on record")
	}
}

// A rotation of a pair is struck at each commit and each touch of the database, and lessor dies, or not, while somebody is connected who does not move.
func TestHandoverIsStruck(t *testing.T) {
	s := pgtest.Start(t)
	for _, k := range enginetest.PairStrikes("sessions", "end") {
		t.Run(fmt.Sprintf("%+v", k), func(t *testing.T) {
			t.Parallel()
			e := &eye{}
			p := newWorldOf(t, s, e).pair("")
			p.open(p.read("one"))
			r := p.struck(e, rotated{name: "static/app", rotate: "db/rotate-role/app"})
			r.Shown = func() (string, string, error) {
				l, err := p.tryRead("two")
				return l.username, l.password, err
			}
			r.Retire = func() error {
				_, err := p.try(lessor.Update, "sys/lessor/rotation/retire/db/static-creds/app", "")
				return err
			}
			r.StrikePair(t, k)
		})
	}
}

// What is refused of two accounts, and what a role with one becomes.
func TestPairIsRefused(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	one, two, other := w.account(""), w.account(""), w.account("")
	body := func(users, more string) string { return `{"db_name":"pg","rotation_period":"1h",` + users + more + `}` }
	both := fmt.Sprintf(`"usernames":[%q,%q]`, one, two)
	for _, c := range []struct{ body, text string }{
		{body(fmt.Sprintf(`"usernames":[%q]`, one), ""), "two different accounts"},
		{body(fmt.Sprintf(`"usernames":[%q,%q]`, one, one), ""), "two different accounts"},
		{body(fmt.Sprintf(`"usernames":[%q,"a'b"]`, one), ""), "without quotes"},
		{body(fmt.Sprintf(`"usernames":[%q,"postgres"]`, one), ""), "is the account that lessor itself uses"},
		{body(both, fmt.Sprintf(`,"username":%q`, other)), "not both"},
		{body(both, `,"rotation_quiet":"1s"`), "rotation_quiet must be 5 seconds or more"},
		{body(both, `,"skip_import_rotation":true`), "must know the password of the first account"},
		{body(both, `,"self_managed_password":"first"`), "for one account"},
		{body(both, `,"rotation_jitter":"1h"`), "rotation_jitter must be shorter"},
		{body(fmt.Sprintf(`"username":%q`, one), `,"rotation_grace":"1h"`), "send usernames"},
	} {
		w.refused(api.Invalid, lessor.Update, "db/static-roles/app", c.body, c.text)
	}
	w.do(lessor.Update, "db/static-roles/app", body(both, ""))
	w.refused(api.Invalid, lessor.Update, "db/static-roles/b", body(fmt.Sprintf(`"username":%q`, two), ""), `is managed by the static role "app" already`)
	w.refused(api.Invalid, lessor.Update, "db/static-roles/app", body(fmt.Sprintf(`"usernames":[%q,%q]`, one, other), ""), "need a role of their own")
	w.refused(api.Invalid, lessor.Update, "db/static-roles/app", body(fmt.Sprintf(`"username":%q`, other), ""), "cannot update static account username")
	w.do(lessor.Update, "db/static-roles/app", body(both, `,"rotation_grace":"1h"`))
	if d := w.do(lessor.Read, "db/static-roles/app", "").Data; d["strategy"] != "alternating" || fmt.Sprintf("%v %v", d["rotation_grace"], d["rotation_quiet"]) != "3600 600" {
		t.Errorf("the role is read as %v", d)
	}
	w.do(lessor.Delete, "db/static-roles/app", "")
	w.do(lessor.Update, "db/static-roles/app", body(fmt.Sprintf(`"username":%q`, one), ""))
	w.refused(api.Invalid, lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"usernames":[%q,%q]}`, two, one), "the first of usernames must be")
	p := &pair{w, [2]string{one, two}}
	old := p.read("one")
	if a := w.do(lessor.Update, "db/static-roles/app", "{"+both+"}"); len(a.Warnings) > 0 {
		t.Errorf("warnings %q", a.Warnings)
	}
	w.crash()
	w.do(lessor.Update, "db/rotate-role/app", "")
	if l := p.read("two"); l.username != two || !p.lets(l) || !p.lets(old) {
		t.Error("a role that has become one with two locks out who uses it")
	}
	w.do(lessor.Delete, "db/static-roles/app", "")
	w.do(lessor.Update, "db/static-roles/b", body(fmt.Sprintf(`"username":%q`, two), ""))
}

// The plan says who holds the password, how each will be known to have moved, and who is locked out when; it touches nothing.
func TestPlan(t *testing.T) {
	e := &eye{}
	w := newWorldOf(t, pgtest.Start(t), e)
	p := w.pair(`,"rotation_grace":"1h"`)
	p.read("")
	p.acknowledge("one", p.read("one"))
	op := p.op(lessor.Update, "sys/lessor/leases/release", fmt.Sprintf(`{"lease_id":%q}`, p.read("gone").lease))
	op.Instance = "gone"
	_, err := p.core.Handle(t.Context(), op)
	w.must(err)
	e.Watch(func(call string, _ lessor.Secret, do func() error) error {
		t.Errorf("the database is asked to %s", call)
		return do()
	})
	before := w.db.Head().Seq
	a := w.do(lessor.Read, "sys/lessor/rotation/plan/db/static-roles/app", "")
	if a.Data["strategy"] != "alternating" || fmt.Sprint(a.Data["acknowledging"], a.Data["silent"]) != "1 1" || len(a.Warnings) != 1 {
		t.Errorf("the plan is %v, %q", a.Data, a.Warnings)
	}
	due := w.state("static/app").Due
	for _, h := range a.Data["holders"].([]any) {
		h := h.(map[string]any)
		moves, breaks := "only by evidence", true
		switch h["instance"] {
		case "one":
			moves, breaks = "it acknowledges", false
		case "gone":
			moves, breaks = "it is not waited for", false
		}
		if !strings.HasPrefix(h["moves"].(string), moves) || (h["breaks_at"] != nil) != breaks {
			t.Errorf("a holder is planned as %v", h)
		}
	}
	if got := a.Data["deadline"]; got != due.Add(time.Hour).Format(time.RFC3339Nano) {
		t.Errorf("the deadline is %v, due is %s", got, due)
	}
	if w.db.Head().Seq != before+1 {
		t.Errorf("%d commits, and not the record only", w.db.Head().Seq-before)
	}
	e.Watch(nil)

	// Of one account everybody is locked out.
	w.static("lone", "pg", w.account(""))
	w.password("lone")
	a = w.do(lessor.Read, "sys/lessor/rotation/plan/db/static-creds/lone", "")
	if h := a.Data["holders"].([]any)[0].(map[string]any); h["moves"] != "not at all: nobody is waited for" || h["breaks_at"] == nil || len(a.Warnings) != 1 {
		t.Errorf("the plan is %v, %q", a.Data, a.Warnings)
	}
	w.refused(api.NotFound, lessor.Read, "sys/lessor/rotation/plan/db/static-creds/none", "", "there is no account")
	w.refused(api.NotFound, lessor.Read, "sys/lessor/rotation/plan/db/creds/app", "", "is not the path of something that is rotated")

	// And the list has what is under way only, or all.
	w.do(lessor.Update, "db/rotate-role/app", "")
	w.do(lessor.Read, "db/static-creds/app", "")
	list := w.do(lessor.Read, "sys/lessor/rotation/status", "").Data
	if l := list["rotations"].([]any); len(l) != 1 || l[0].(map[string]any)["path"] != "db/static-creds/app" || list["accounts"] != 2 {
		t.Errorf("the list is %v", list)
	}
	if l := w.do(lessor.Read, "sys/lessor/rotation/status", `{"all":true}`).Data["rotations"].([]any); len(l) != 2 {
		t.Errorf("the list of all is %v", l)
	}
}

// Once a password is promoted nobody comes to hold the one before it: reads that began before are on record before, or show the new one.
func TestNobodyReadsTooLate(t *testing.T) {
	p := newWorld(t, pgtest.Start(t)).pair("")
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for i := range 4 {
		readers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := p.tryRead(fmt.Sprint("reader-", i, "-", n%20)); err != nil {
					t.Errorf("a reader: %v", err)
				}
			}
		})
	}
	for range 8 {
		p.do(lessor.Update, "db/rotate-role/app", "")
		p.do(lessor.Update, "sys/lessor/rotation/retire/db/static-creds/app", "")
		p.reaches(rotation.Idle, time.Second)
	}
	close(stop)
	readers.Wait()
	promoted := map[uint64]uint64{} // by version, the commit
	for _, path := range []string{"db/rotate-role/app", "db/static-roles/app"} {
		for _, r := range p.all(path) {
			for _, s := range r.Secrets {
				if s.How == "written" {
					promoted[s.Version] = r.Seq
				}
			}
		}
	}
	shown := 0
	for _, r := range p.all("db/static-creds/app") {
		for _, s := range r.Secrets {
			if shown++; promoted[s.Version+1] != 0 && promoted[s.Version+1] < r.Seq {
				t.Errorf("version %d is shown in commit %d, and version %d was promoted in %d", s.Version, r.Seq, s.Version+1, promoted[s.Version+1])
			}
		}
	}
	if shown < 100 || len(promoted) != 9 {
		t.Errorf("%d reads, %d promotions", shown, len(promoted))
	}
}

// all are all audit records of a path.
func (p *pair) all(path string) (all []audit.At) {
	p.Helper()
	for q := (store.Query{Path: path}); ; {
		some, next, err := p.db.Records(q)
		p.must(err)
		if all = append(all, some...); next == "" {
			return all
		}
		q.Cursor = next
	}
}

// A database that does not show who is connected parks the rotation, with the reason, for everybody to see; other accounts are rotated all the while, and a
// person can end it. One that refuses the retirement parks it, too, and what may be in force is not forgotten.
func TestHandoverIsParked(t *testing.T) {
	e := &eye{}
	p := newWorldOf(t, pgtest.Start(t), e).pair("")
	old := p.read("one")
	p.acknowledge("one", old)
	e.Watch(func(call string, _ lessor.Secret, do func() error) error {
		if call == "sessions" {
			return api.Errorf(api.Upstream, "the database refused: permission denied")
		}
		return do()
	})
	p.do(lessor.Update, "db/rotate-role/app", "")
	p.acknowledge("one", p.read("one"))
	p.until("it is told", func() bool {
		p.clock.advance(time.Second)
		s := p.status()
		return s["overdue"] == true && strings.Contains(s["last_error"].(string), "permission denied") && s["attempts"].(int) > 5
	})
	if p.phase() != rotation.Waiting || !p.lets(old) {
		t.Fatalf("retired though nobody knows whether it is in use: %s", p.phase())
	}
	p.static("other", "pg", p.account(""))
	p.clock.advance(time.Hour)
	p.until("another account is rotated", func() bool { return p.state("static/other").Version == 2 })
	if n := strings.Count(p.notes(), "cannot be seen"); n != 1 {
		t.Errorf("it is on record %d times", n)
	}
	refusals := 0
	var tried []lessor.Secret
	e.Watch(func(call string, password lessor.Secret, do func() error) error {
		if call == "set" {
			if tried = append(tried, password); len(tried) < 3 {
				refusals++
				return api.Errorf(api.Upstream, "the database refused: password is too easy")
			}
		}
		return do()
	})
	p.do(lessor.Update, "sys/lessor/rotation/retire/db/static-creds/app", "")
	p.until("it is refused", func() bool { return p.phase() == rotation.Retiring && p.state("static/app").Attempts > 0 })
	if !slices.ContainsFunc(p.passwords("static/app").Candidates(), func(s lessor.Secret) bool { return p.logsIn(old.username, s.Reveal()) }) {
		t.Error("what is in force is forgotten")
	}
	p.reaches(rotation.Idle, time.Second)
	if p.lets(old) || !p.lets(p.read("one")) || refusals != 2 || tried[0].Equal(tried[1]) {
		t.Errorf("after %d refusals the old password logs in: %v", refusals, p.lets(old))
	}
}

// With one account, too, a rotation can be given up as long as it is not done: what was in force is set again, if need be.
func TestLoneRotationIsGivenUp(t *testing.T) {
	e := &eye{}
	w := newWorldOf(t, pgtest.Start(t), e)
	a := w.accounts()[0]
	e.Watch(func(call string, _ lessor.Secret, do func() error) error {
		if err := do(); call == "set" || err != nil {
			return errBroken
		}
		return nil
	})
	w.refused(api.Upstream, lessor.Update, a.rotate, "", "the session broke off")
	if w.logsIn(a.username, a.first) {
		t.Fatal("nothing was set: this shows nothing")
	}
	w.do(lessor.Update, "sys/lessor/rotation/abort/db/static-creds/app", "")
	e.Watch(nil)
	w.until("what was in force is in force", func() bool { w.clock.advance(time.Second); return w.logsIn(a.username, a.first) })
	if s := w.state(a.name); s.Pending != 0 || s.Version != 1 || w.password("app") != a.first {
		t.Errorf("given up: %+v", s)
	}
	w.do(lessor.Update, a.rotate, "")
	if !w.logsIn(a.username, w.password("app")) || w.logsIn(a.username, a.first) {
		t.Error("it does not rotate after that")
	}
}

// A connection that leads elsewhere takes both accounts along, while one of them is waited for, too. A role moves when nothing is under way only.
func TestPairMoves(t *testing.T) {
	far := pgtest.Start(t, pgtest.TLS())
	p := newWorld(t, pgtest.Start(t)).pair("")
	there := &world{T: t, pg: far}
	for _, user := range p.users {
		there.sql(`CREATE ROLE "` + user + `" LOGIN PASSWORD 'there'`)
	}
	old := p.read("one")
	p.do(lessor.Update, "db/rotate-role/app", "")
	p.connect("far", far, pgtest.Superuser, far.Password())
	p.refused(api.Invalid, lessor.Update, "db/static-roles/app", `{"db_name":"far"}`, "is under way: wait until it is done before you change db_name")
	p.connect("pg", far, pgtest.Superuser, far.Password())
	next := p.read("two")
	p.until("the password that is shown is in force there", func() bool { return there.logsIn(next.username, next.password) })
	p.do(lessor.Update, "sys/lessor/rotation/retire/db/static-creds/app", "")
	p.reaches(rotation.Idle, time.Second)
	if other := p.passwords("static/app").Other.Reveal(); !there.logsIn(old.username, other) {
		t.Error("the outgoing account was not retired there")
	}
	p.connect("back", p.pg, pgtest.Superuser, p.pg.Password())
	p.do(lessor.Update, "db/static-roles/app", `{"db_name":"back"}`)
	p.until("the password that is shown is in force again", func() bool { p.clock.advance(time.Second); return p.lets(p.read("two")) })
	p.static("elsewhere", "far", p.users[0])
}

// Whose access was revoked is thrown out of a password that is in force again since a rotation was given up, whichever version of it he had read, and whenever
// he was revoked.
func TestRevokedBeforeItIsGivenUp(t *testing.T) {
	const abort = "sys/lessor/rotation/abort/db/static-creds/app"
	for name, early := range map[string]bool{"while it waits": true, "afterwards": false} {
		t.Run(name, func(t *testing.T) {
			p := newWorld(t, pgtest.Start(t)).pair("")
			p.read("slow")
			old := p.read("gone")
			revoke := func() {
				p.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q,"sync":true}`, old.lease))
			}
			p.do(lessor.Update, "db/rotate-role/app", "")
			if early {
				revoke()
				time.Sleep(100 * time.Millisecond) // for the background to see to it
			}
			p.do(lessor.Update, abort, "")
			p.until("the old password is shown again", func() bool { return p.read("slow").password == old.password })
			if !early {
				revoke()
			}
			p.until("another is in force", func() bool { p.clock.advance(time.Second); return p.state("static/app").Version == 4 })
			p.do(lessor.Update, "sys/lessor/rotation/retire/db/static-creds/app", "")
			p.until("the old one is dead", func() bool { p.clock.advance(time.Second); return !p.lets(old) && p.unmet() == 0 })
		})
	}
}

// Readers of a mount that keeps no leases, and of a copy that was restored, are not on record: that nobody else has moved is no reason to retire what they may use.
func TestReadersNotOnRecord(t *testing.T) {
	for name, prepare := range map[string]func(p *pair){
		"without leases": func(p *pair) {
			p.do(lessor.Update, "sys/mounts/db/tune", `{"options":{"lease":"off"}}`)
			p.read("")
			p.do(lessor.Update, "sys/mounts/db/tune", `{"options":{"lease":"quiet"}}`)
		},
		"restored": func(p *pair) {
			_, err := p.db.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: store.Fenced, Value: []byte("now")}}})
			p.must(err)
			p.crash()
			p.do(lessor.Delete, "sys/lessor/fence", "")
			p.until("passwords are proven", func() bool { return strings.Contains(p.notes(), "password proven") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newWorld(t, pgtest.Start(t)).pair(`,"rotation_quiet":"60s"`)
			prepare(p)
			old := login{username: p.users[0], password: p.passwords("static/app").Current.Reveal()}
			p.do(lessor.Update, "db/rotate-role/app", "")
			p.until("the database was asked", func() bool { a := p.state("static/app"); return a.Phase() != rotation.Waiting || !a.Looked.IsZero() })
			if p.phase() != rotation.Waiting || !p.lets(old) {
				t.Fatalf("retired at once, in phase %s", p.phase())
			}
			p.reaches(rotation.Idle, 5*time.Second)
			if p.lets(old) || !strings.Contains(p.notes(), "no use for long enough") {
				t.Errorf("on record is %s", p.notes())
			}
		})
	}
}

// A look that is under way when somebody gives the rotation up does not end the wait.
func TestGivenUpDuringALook(t *testing.T) {
	e := &eye{}
	p := newWorldOf(t, pgtest.Start(t), e).pair(`,"rotation_grace":"1h"`)
	old := p.read("slow")
	var once sync.Once
	reached, goOn := make(chan struct{}), make(chan struct{})
	e.Watch(func(call string, _ lessor.Secret, do func() error) error {
		if call == "sessions" {
			once.Do(func() { close(reached); <-goOn })
		}
		return do()
	})
	p.do(lessor.Update, "db/rotate-role/app", "")
	<-reached
	p.clock.advance(time.Hour)
	p.do(lessor.Update, "sys/lessor/rotation/abort/db/static-creds/app", "")
	close(goOn)
	p.until("the old password is shown again", func() bool { return p.read("slow").password == old.password })
	if !p.lets(old) {
		t.Error("it is not let in")
	}
}

// A consumer crashes, and leaves a session behind, as a host does that is gone from the network. It says nothing any more, so its lease lapses; that is no word that
// it uses nothing. It is waited for, and named, until the database shows no use of its password for long enough, or the grace has passed: then it is a straggler.
func TestConsumerCrashes(t *testing.T) {
	for name, c := range map[string]struct {
		grace string
		over  rotation.Over
	}{"until no use is seen": {"0", rotation.Unused}, "until the grace has passed": {"2h", rotation.Expired}} {
		t.Run(name, func(t *testing.T) {
			p := newWorld(t, pgtest.Start(t)).pair(fmt.Sprintf(`,"rotation_quiet":"60s","rotation_grace":%q`, c.grace))
			old := p.read("crashed")
			p.acknowledge("crashed", old)
			left := p.open(old)
			p.clock.advance(100 * 24 * time.Hour)
			p.until("its lease lapses", func() bool {
				_, err := p.try(lessor.Update, "sys/leases/lookup", fmt.Sprintf(`{"lease_id":%q}`, old.lease))
				return err != nil
			})
			p.reaches(rotation.Waiting, time.Second) // it was due meanwhile
			since := p.state("static/app").Since
			p.until("it is waited for, and what it left is seen", func() bool {
				p.clock.advance(time.Second)
				s := p.status()
				holders := s["holders"].([]any)
				return len(holders) == 1 && holders[0].(map[string]any)["instance"] == "crashed" && holders[0].(map[string]any)["lapsed"] != nil && len(s["sessions"].([]any)) == 1
			})
			p.clock.advance(time.Hour)
			looked := p.state("static/app").Looked
			p.until("it is looked at again", func() bool { return p.state("static/app").Looked.After(looked) })
			if p.phase() != rotation.Waiting || !p.lets(old) || left.Ping(t.Context()) != nil {
				t.Fatalf("who lapsed counts as moved, in phase %s", p.phase())
			}
			if c.over == rotation.Unused {
				p.must(left.Close(t.Context()))
			} else {
				p.clock.advance(58 * time.Minute)
			}
			p.reaches(rotation.Idle, 5*time.Second)
			s := p.state("static/app")
			if p.lets(old) || !p.lets(p.read("new")) || !strings.Contains(p.notes(), c.over.String()) {
				t.Errorf("in the end the old password logs in: %v; on record is %s", p.lets(old), p.notes())
			}
			if c.over == rotation.Unused {
				if len(s.Stragglers) > 0 {
					t.Errorf("named are %+v, who use nothing", s.Stragglers)
				}
				return
			}
			if len(s.Stragglers) != 2 || s.Stragglers[0].Holder.Instance != "crashed" || s.Stragglers[0].Lapsed.IsZero() || s.Stragglers[1].Count != 1 || left.Ping(t.Context()) == nil {
				t.Errorf("named are %+v", s.Stragglers)
			}
			if p.db.Now().Sub(since) < 2*time.Hour {
				t.Errorf("retired %s after the rotation", p.db.Now().Sub(since))
			}
		})
	}
}

// An account that may not log in gets no turn: readers keep the one that may, and the rotation says what is wrong, and goes on once it is put right. One whose
// turn is over may be locked.
func TestNoTurnForWhoMayNotLogIn(t *testing.T) {
	p := newWorld(t, pgtest.Start(t)).pair("")
	one := p.read("one")
	p.acknowledge("one", one)
	p.sql(`ALTER ROLE "` + p.users[1] + `" NOLOGIN`)
	p.refused(api.Upstream, lessor.Update, "db/rotate-role/app", "", fmt.Sprintf("the account %q has its new password, but may not log in", p.users[1]))
	if again := p.read("one"); again.username != p.users[0] || again.password != one.password || !p.lets(again) {
		t.Fatalf("readers are shown %q, which logs in: %v", again.username, p.lets(again))
	}
	if s := p.status(); s["step"] != "set" || !strings.Contains(fmt.Sprint(s["last_error"]), "may not log in") {
		t.Errorf("status %v", s)
	}
	p.sql(`ALTER ROLE "` + p.users[1] + `" LOGIN`)
	p.reaches(rotation.Waiting, time.Minute)
	next := p.read("one")
	if next.username != p.users[1] || !p.lets(next) {
		t.Fatalf("after it was let in readers are shown %q, which logs in: %v", next.username, p.lets(next))
	}
	p.sql(`ALTER ROLE "` + p.users[0] + `" NOLOGIN`)
	p.acknowledge("one", next)
	p.reaches(rotation.Idle, time.Second)
	if a := p.state("static/app"); a.LastError != "" || a.Version != 2 {
		t.Errorf("in the end it stands at %+v", a)
	}
}
