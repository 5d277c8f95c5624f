package ldap_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
)

// pair is a static role of two accounts, "app".
type pair struct {
	*world
	names, dns [2]string
}

// pair makes one that is rotated on request only, by and large.
func (w *world) pair(more string) *pair {
	w.Helper()
	p := &pair{world: w}
	for i := range p.names {
		p.names[i], p.dns[i] = w.person("first")
	}
	w.do(lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"usernames":[%q,%q],"rotation_period":"1000h"%s}`, p.names[0], p.names[1], more))
	return p
}

// login is what a reader is shown.
type login struct{ username, password, lease string }

// read reads the role's password as one of its holders, who renews and acknowledges.
func (p *pair) read(instance string) login {
	p.Helper()
	l, err := p.tryRead(instance)
	p.must(err)
	return l
}

func (p *pair) tryRead(instance string) (login, error) {
	op := p.op(p.root, lessor.Read, "ldap/static-cred/app", "")
	op.Instance, op.Renewable = instance, true
	a, err := p.core.Handle(context.Background(), op)
	if err != nil {
		return login{}, err
	}
	return login{a.Data["username"].(string), a.Data["password"].(lessor.Secret).Reveal(), a.Lease.ID}, nil
}

// acknowledge says that a holder uses the version that its lease is on, and nothing older.
func (p *pair) acknowledge(instance string, l login) {
	p.Helper()
	op := p.op(p.root, lessor.Update, "sys/lessor/leases/acknowledge", fmt.Sprintf(`{"lease_id":%q}`, l.lease))
	op.Instance = instance
	_, err := p.core.Handle(context.Background(), op)
	p.must(err)
}

// lets reports whether the directory lets a login in.
func (p *pair) lets(l login) bool {
	p.Helper()
	return p.LogsIn(p.dns[slices.Index(p.names[:], l.username)], l.password)
}

// reaches waits for a phase; time passes meanwhile, by steps of d.
func (p *pair) reaches(phase rotation.Phase, d time.Duration) {
	p.Helper()
	p.until("the rotation is in phase "+phase.String(), func() bool {
		p.clock.advance(d)
		return p.state("static/app").Phase() == phase
	})
}

// noted reports whether a note is on record of the role's rotations.
func (p *pair) noted(note string) bool {
	p.Helper()
	return slices.ContainsFunc(p.records("ldap/static-role/app"), func(r audit.At) bool { return strings.Contains(r.Note, note) })
}

// The old password works until the last holder has said that it has moved, however long that takes: that a directory shows nobody's use is no evidence that
// there is none.
func TestHandover(t *testing.T) {
	p := newWorld(t, ldaptest.Start(t)).pair("")
	old := p.read("one")
	if old.username != p.names[0] || !p.lets(old) {
		t.Fatalf("before: %+v", old)
	}
	p.acknowledge("one", old)
	p.do(lessor.Update, "ldap/rotate-role/app", "")
	next := p.read("one")
	if next.username != p.names[1] || !p.lets(next) || !p.lets(old) {
		t.Fatalf("after the rotation readers are shown %+v", next)
	}
	p.until("it is looked at for longer than would be evidence elsewhere", func() bool {
		s := p.state("static/app")
		if s.Look.After(p.db.Now()) {
			p.clock.advance(rotation.LastLook)
		}
		return s.Looked.Sub(s.Since) > rotation.DefaultQuiet+time.Minute || s.Phase() != rotation.Waiting
	})
	if s := p.state("static/app"); s.Phase() != rotation.Waiting || !p.lets(old) {
		t.Fatalf("silence is taken for a sign, in phase %s", s.Phase())
	}
	if a := p.do(lessor.Update, "ldap/rotate-role/app", ""); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "begins when it is done") {
		t.Errorf("asked for while another waits: %q", a.Warnings)
	}
	version := p.state("static/app").Version
	p.acknowledge("one", p.read("one"))
	p.until("the next rotation has begun, when the old password was dead", func() bool {
		p.clock.advance(time.Second)
		return p.state("static/app").Version > version
	})
	if p.lets(old) || !p.lets(next) {
		t.Errorf("in the end the old password logs in: %v; the new one: %v", p.lets(old), p.lets(next))
	}
	if l := p.read("one"); l.username != p.names[0] || !p.lets(l) {
		t.Errorf("the second rotation: %+v", l)
	}
	if !p.noted("every holder has moved; the target does not show who uses it") {
		t.Error("why the wait ended is not on record")
	}
}

// A grace ends the wait for a reader that never moves. It is named.
func TestHandoverByDeadline(t *testing.T) {
	p := newWorld(t, ldaptest.Start(t)).pair(`,"rotation_grace":"1h"`)
	old := p.read("slow")
	p.do(lessor.Update, "ldap/rotate-role/app", "")
	p.clock.advance(58 * time.Minute)
	p.until("it is looked at", func() bool { return p.state("static/app").Look.After(p.db.Now()) })
	if !p.lets(old) {
		t.Fatal("broken within its grace")
	}
	p.reaches(rotation.Idle, 10*time.Second)
	if p.lets(old) || !p.lets(p.read("fresh")) {
		t.Error("the old password works after the grace, or the new one does not")
	}
	if s := p.state("static/app").Stragglers; len(s) != 1 || s[0].Holder.Instance != "slow" || !p.noted("has not moved from the outgoing password") {
		t.Errorf("named are %+v", s)
	}
	p.until("what was before is forgotten", func() bool {
		p.clock.advance(10 * time.Second)
		return len(p.passwords("static/app").Former) == 0
	})
}

// A rotation that waits is given up: what was before is in force again, and nobody is locked out by that.
func TestHandoverIsGivenUp(t *testing.T) {
	p := newWorld(t, ldaptest.Start(t)).pair("")
	old := p.read("one")
	p.do(lessor.Update, "ldap/rotate-role/app", "")
	moved := p.read("two")
	p.do(lessor.Update, "sys/lessor/rotation/abort/ldap/static-cred/app", "")
	p.until("the old password is shown again", func() bool { return p.read("one").password == old.password })
	if !p.lets(moved) || !p.lets(old) {
		t.Error("somebody is locked out")
	}
	p.acknowledge("two", p.read("two"))
	p.acknowledge("one", p.read("one"))
	p.reaches(rotation.Idle, time.Second)
	if p.lets(moved) || !p.lets(old) {
		t.Error("what was given up is not dead, or what is in force is")
	}
}

// What is refused of two accounts, and what a role with one becomes.
func TestPairIsRefused(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	one, oneDN := w.person("first")
	two, twoDN := w.person("first")
	other, otherDN := w.person("first")
	body := func(members string) string { return `{"rotation_period":"1h",` + members + `}` }
	both := fmt.Sprintf(`"usernames":[%q,%q]`, one, two)
	for _, c := range []struct{ members, text string }{
		{`"usernames":[]`, "two different accounts"},
		{fmt.Sprintf(`"usernames":[%q]`, one), "two different accounts"},
		{fmt.Sprintf(`"usernames":[%q,%q]`, one, strings.ToUpper(one)), "two different accounts"},
		{fmt.Sprintf(`"usernames":[%q,"lessor"]`, one), "is the account that lessor itself logs in with"},
		{fmt.Sprintf(`"usernames":[%q,"twin"],"dns":["",%q]`, one, oneDN), "are one account at the directory"},
		{both + fmt.Sprintf(`,"dns":[%q,%q]`, oneDN, strings.ToUpper(oneDN)), "two different accounts"},
		{both + fmt.Sprintf(`,"dns":[%q,%q]`, oneDN, w.Manager), "is the account that lessor itself logs in with"},
		{both + `,"dns":"cn=a,dc=example,cn=b,dc=example"`, "as an array"},
		{both + fmt.Sprintf(`,"dn":%q,"dns":[%q,%q]`, oneDN, oneDN, twoDN), "dn or dns, not both"},
		{both + `,"skip_import_rotation":true`, "to hand over from it: let the role be rotated when it is made, with skip_import_rotation=false"},
		{both + `,"rotation_grace":-1`, "rotation_grace"},
		{fmt.Sprintf(`"username":%q,"rotation_grace":"1h"`, one), "send usernames"},
		{fmt.Sprintf(`"username":%q,"dns":[%q,%q]`, one, oneDN, twoDN), "that usernames name"},
	} {
		w.refused(api.Invalid, lessor.Update, "ldap/static-role/app", body(c.members), c.text)
	}
	w.refused(api.Upstream, lessor.Update, "ldap/static-role/app", body(fmt.Sprintf(`"usernames":[%q,"nobody"]`, one)), "shows no account whose cn is nobody")
	if !w.LogsIn(oneDN, "first") {
		t.Fatal("the first account was touched, though the second is not there")
	}

	// Of one account two are made, at their DNs.
	made := w.do(lessor.Update, "ldap/static-role/app", body(fmt.Sprintf(`"username":%q,"dn":%q`, one, oneDN)))
	if len(made.Warnings) != 1 || !strings.Contains(made.Warnings[0], "has one account") {
		t.Errorf("warnings %q", made.Warnings)
	}
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"usernames":[%q,%q]}`, two, one), "the first of usernames must be")
	p := &pair{w, [2]string{one, "alias"}, [2]string{oneDN, twoDN}}
	old := p.read("one")
	paired := w.do(lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"usernames":[%q,"alias"],"dns":[%q,%q]}`, one, oneDN, twoDN))
	if len(paired.Warnings) != 1 || !strings.Contains(paired.Warnings[0], "give the role a rotation_grace") {
		t.Errorf("warnings %q", paired.Warnings)
	}
	w.do(lessor.Update, "ldap/static-role/app", `{"rotation_grace":"1h"}`)
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"dns":[%q,%q]}`, oneDN, otherDN), "cannot update static account distinguished name (dn)")
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"usernames":[%q,%q]}`, one, other), "need a role of their own")
	for _, taken := range []string{fmt.Sprintf(`"username":%q,"dn":%q`, other, twoDN), `"username":"ALIAS"`} {
		w.refused(api.Invalid, lessor.Update, "ldap/static-role/b", body(taken), "is already managed by the secrets engine: by static/app")
	}
	w.crash()
	w.do(lessor.Update, "ldap/rotate-role/app", "")
	next := p.read("two")
	if next.username != "alias" || !p.lets(next) || !p.lets(old) {
		t.Errorf("a role that has become one with two locks out who uses it: %+v", next)
	}
	d := w.do(lessor.Read, "ldap/static-role/app", "").Data
	if got := fmt.Sprint(d["strategy"], d["username"], d["dn"], d["usernames"], d["dns"], d["rotation_grace"]); got != fmt.Sprint("alternating", "alias", twoDN, []string{one, "alias"}, []string{oneDN, twoDN}, "3600") {
		t.Errorf("the role is read as %s", got)
	}
	w.do(lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"username":"alias","dn":%q}`, twoDN)) // by a tool that writes what it has read
	w.do(lessor.Delete, "ldap/static-role/app", "")
	w.do(lessor.Update, "ldap/static-role/b", body(fmt.Sprintf(`"username":%q,"dn":%q`, two, twoDN)))
}
