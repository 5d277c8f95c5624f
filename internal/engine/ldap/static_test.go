package ldap_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// A static role is rotated when it is made, by request, and in time; each time the new password logs in, and the old one does not.
func TestStaticRole(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	name, dn := w.person("first")
	w.do(lessor.Update, "ldap/static-role/team/App", fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, name))
	a := w.do(lessor.Read, "ldap/static-cred/team/app", "")
	first := a.Data["password"].(lessor.Secret).Reveal()
	if !w.LogsIn(dn, first) || w.LogsIn(dn, "first") {
		t.Fatal("the password that is shown is not in force, or the old one still is")
	}
	for _, field := range []string{"username", "dn", "ttl", "rotation_period", "last_vault_rotation"} {
		if a.Data[field] == nil {
			t.Errorf("the answer lacks %s: %v", field, a.Data)
		}
	}
	w.do(lessor.Update, "ldap/rotate-role/team/app", "")
	a = w.do(lessor.Read, "ldap/static-cred/team/app", "")
	second := a.Data["password"].(lessor.Secret).Reveal()
	if !w.LogsIn(dn, second) || w.LogsIn(dn, first) {
		t.Fatal("the password that is shown is not in force, or the old one still is")
	}
	if last, _ := a.Data["last_password"].(lessor.Secret); last.Reveal() != first {
		t.Error("last_password is not the password before")
	}
	w.clock.advance(time.Hour)
	w.until("it is rotated in time", func() bool { return w.password("team/app") != second })
	if !w.LogsIn(dn, w.password("team/app")) || w.LogsIn(dn, second) {
		t.Fatal("the password that is shown is not in force, or the old one still is")
	}
	w.until("what was before is proven dead", func() bool {
		w.clock.advance(10 * time.Second)
		return len(w.passwords("static/team/app").Former) == 0
	})
	if d := w.do(lessor.Read, "ldap/static-cred/team/app", "").Data; d["last_password"] != nil {
		t.Error("a dead password is still shown")
	}

	keys := func(path string) string { return fmt.Sprint(w.do(lessor.List, path, "").Data["keys"]) }
	if keys("ldap/static-role") != "[team/]" || keys("ldap/static-role/team") != "[app]" {
		t.Errorf("listed %s, %s", keys("ldap/static-role"), keys("ldap/static-role/team"))
	}
	other := func(body, text string) {
		t.Helper()
		w.refused(api.Invalid, lessor.Update, "ldap/static-role/other", body, text)
	}
	other(fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, strings.ToUpper(name)), "is already managed by the secrets engine: by static/team/app")
	other(`{"rotation_period":"1h"}`, "username is a required field to manage a static account")
	other(`{"username":"x"}`, "rotation_period is required to create static accounts")
	other(`{"username":"x","rotation_period":1}`, "rotation_period must be 5 seconds or more")
	other(`{"username":"x","rotation_period":"1h","rotation_jitter":"1h"}`, "rotation_jitter must be shorter than the time from one rotation to the next")
	other(`{"username":"x","rotation_period":"1h","dn":"nonsense"}`, "dn is no distinguished name")
	other(fmt.Sprintf(`{"username":"x","rotation_period":"1h","dn":%q}`, strings.ToUpper(w.Manager)), "is the account that lessor itself logs in with")
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/other", `{"username":"lessor","rotation_period":"1h"}`, "is the account that lessor itself logs in with")
	w.refused(api.Upstream, lessor.Update, "ldap/static-role/other", `{"username":"nobody","rotation_period":"1h"}`, "the directory shows no account whose cn is nobody")
	w.refused(api.NotFound, lessor.Read, "ldap/static-role/other", "", "")
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/team/app", `{"username":"other"}`, "cannot update static account username")
	w.refused(api.Invalid, lessor.Delete, "ldap/config", "", "the configuration is still needed for the accounts of static/team/app")
	w.do(lessor.Delete, "ldap/static-role/team/app", "")
	w.do(lessor.Delete, "ldap/config", "")
}

// A role that is made without rotating it knows no password until somebody asks for a rotation. A DN finds what a name does not.
func TestImportIsSkipped(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	_, dn := w.person("first")
	w.do(lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"username":"unknown","dn":%q,"rotation_period":"1h","skip_import_rotation":true}`, dn))
	if !w.LogsIn(dn, "first") {
		t.Fatal("it was rotated")
	}
	w.refused(api.Invalid, lessor.Read, "ldap/static-cred/app", "", "write to rotate-role/app")
	w.do(lessor.Update, "ldap/rotate-role/app", "")
	if !w.LogsIn(dn, w.password("app")) || w.LogsIn(dn, "first") {
		t.Error("the password that is shown is not in force, or the old one still is")
	}
	other := fmt.Sprintf(`{"username":"another","dn":%q,"rotation_period":"1h","skip_import_rotation":true}`, strings.ReplaceAll(strings.ToUpper(dn), ",", " , "))
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/other", other, "is already managed by the secrets engine: by static/app")
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/app", `{"dn":"cn=else"}`, "cannot update static account distinguished name (dn)")
	w.do(lessor.Update, "ldap/static-role/app", `{"dn":""}`)
	w.do(lessor.Update, "ldap/static-role/other", other)
	w.do(lessor.Delete, "ldap/static-role/other", "")
	w.do(lessor.Update, "ldap/static-role/other", other)
}

// An account that the directory does not show is missed when the role is written, and not when it is rotated first, be it the second of two; unless the
// directory is away.
func TestAccountsAreLookedFor(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	one, oneDN := w.person("first")
	two, twoDN := w.person("first")
	gone := "cn=gone," + w.Branch.DN
	body := func(members string) string { return `{"rotation_period":"1000h",` + members + `}` }
	both := func(dn string) string { return fmt.Sprintf(`"usernames":[%q,%q],"dns":["",%q]`, one, two, dn) }
	const skip = `,"skip_import_rotation":true`
	for _, c := range []struct {
		members, text string
		kind          api.Kind
	}{
		{`"username":"nobody"` + skip, "the static role was not written: the directory shows no account whose cn is nobody", api.Invalid},
		{fmt.Sprintf(`"username":"nobody","dn":%q`, gone) + skip, "the static role was not written: the directory shows no entry " + gone, api.Invalid},
		{both(gone), "the directory shows no entry " + gone, api.Upstream},
	} {
		w.refused(c.kind, lessor.Update, "ldap/static-role/app", body(c.members), c.text)
		w.refused(api.NotFound, lessor.Read, "ldap/static-role/app", "", "")
		if w.state("static/app") != nil || !w.LogsIn(oneDN, "first") {
			t.Fatalf("%s: it left something", c.members)
		}
	}
	w.do(lessor.Update, "ldap/static-role/app", body(fmt.Sprintf(`"username":%q`, one)))
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/app", "{"+both(gone)+"}", "the directory shows no entry "+gone)
	w.do(lessor.Update, "ldap/static-role/app", "{"+both(twoDN)+"}")
	if !w.LogsIn(twoDN, "first") {
		t.Error("the second account was touched")
	}
	w.away(w.URL(), func() {
		a := w.do(lessor.Update, "ldap/static-role/meanwhile", body(`"username":"nobody"`+skip))
		if len(a.Warnings) != 2 || !strings.Contains(a.Warnings[0], "was not tried") || !strings.Contains(a.Warnings[0], "the directory cannot be reached") {
			t.Errorf("warnings %q", a.Warnings)
		}
	})
}

// Lessor's own password is known to nobody afterwards, and lessor still gets in, after a restart too.
func TestRotateRoot(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	name, dn := w.person("first")
	w.do(lessor.Update, "ldap/rotate-root", "")
	if w.LogsIn(w.Manager, ldaptest.ManagerPassword) {
		t.Fatal("the old password is still in force")
	}
	w.crash()
	w.do(lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, name))
	if !w.LogsIn(dn, w.password("app")) {
		t.Error("lessor does not get in any more")
	}
	w.do(lessor.Update, "ldap/config", `{"rotation_period":"24h"}`)
	before := w.passwords("root").Current
	w.clock.advance(24 * time.Hour)
	w.until("it is rotated in time", func() bool { return !w.passwords("root").Current.Equal(before) })
	if a := w.do(lessor.Read, "ldap/config", ""); a.Data["last_bind_password_rotation"] == nil || strings.Contains(fmt.Sprint(a.Data), before.Reveal()) {
		t.Errorf("read %v", a.Data)
	}
	// A tool that keeps the first password writes it again: it is tried, and does no harm.
	w.do(lessor.Update, "ldap/config", w.config(""))
	w.do(lessor.Update, "ldap/rotate-role/app", "")
	w.refused(api.Invalid, lessor.Update, "ldap/config", fmt.Sprintf(`{"binddn":%q}`, dn), "needs its password: send bindpass, too")
}

// An account is lessor's own or a static role's, whichever comes first, and whether the role knows its DN or finds it.
func TestOwnAccountIsNoRoles(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	_, dn := w.person("first")
	found, other := w.person("first")
	w.do(lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"username":"app","dn":%q,"rotation_period":"1h"}`, dn))
	w.refused(api.Invalid, lessor.Update, "ldap/config", fmt.Sprintf(`{"binddn":%q,"bindpass":%q}`, strings.ToUpper(dn), w.password("app")), "is managed by static/app")
	w.do(lessor.Update, "ldap/static-role/found", fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, found))
	password := w.password("found")
	w.do(lessor.Update, "ldap/config", fmt.Sprintf(`{"binddn":%q,"bindpass":%q,"verify_connection":false}`, other, password))
	w.refused(api.Invalid, lessor.Update, "ldap/rotate-role/found", "", "is the account that lessor itself logs in with")
	if !w.LogsIn(other, password) {
		t.Error("lessor's own password was changed as a role's")
	}
}

// Lessor's own account is not rotated as such while a role or a library that searches for it manages it; one that means another entry by its name may.
func TestOwnAccountIsManagedByName(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	_, dn := w.person("first")
	w.do(lessor.Update, "ldap/static-role/else", fmt.Sprintf(`{"username":"lessor","dn":%q,"rotation_period":"1h"}`, dn))
	w.do(lessor.Update, "ldap/rotate-root", "")
	w.do(lessor.Delete, "ldap/static-role/else", "")
	password := w.passwords("root").Current.Reveal()
	own := `{"username":"LESSOR","rotation_period":"1000h","skip_import_rotation":true}`
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/own", own, "is the account that lessor itself logs in with")
	w.away(w.URL(), func() { w.do(lessor.Update, "ldap/static-role/own", own) })
	w.refused(api.Invalid, lessor.Update, "ldap/rotate-root", "", "is managed by static/own")
	if !w.LogsIn(w.Manager, password) {
		t.Error("lessor's own password was changed under a role")
	}
	w.do(lessor.Delete, "ldap/static-role/own", "")
	w.do(lessor.Update, "ldap/rotate-root", "")
	if w.LogsIn(w.Manager, password) || !w.LogsIn(w.Manager, w.passwords("root").Current.Reveal()) {
		t.Error("it is not rotated once the role is gone")
	}
}

// errBroken is a connection that broke off: whether something was done nobody knows.
var errBroken = &api.Error{Kind: api.Upstream, Text: "the connection broke off", Cause: ldap.ErrUnreachable}

// rotated is an account whose password a test has rotated: a static role's, or lessor's own.
type rotated struct{ name, dn, first, rotate, config string }

func (w *world) accounts() []rotated {
	w.Helper()
	name, dn := w.person("first")
	w.do(lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, name))
	return []rotated{
		{"static/app", dn, w.password("app"), "ldap/rotate-role/app", "ldap/static-role/app"},
		{"root", w.Manager, ldaptest.ManagerPassword, "ldap/rotate-root", "ldap/config"},
	}
}

// settle lets time pass until a rotation that was begun is done.
func (w *world) settle(a rotated) {
	w.Helper()
	w.until(a.name+" has no password on its way", func() bool {
		w.clock.advance(time.Second)
		s := w.state(a.name)
		return s == nil || s.Pending == 0 && s.Attempts == 0
	})
}

// struck is an account in a lessor that is struck.
func (w *world) struck(a rotated) *enginetest.Rotated {
	return &enginetest.Rotated{
		First:     a.first,
		Rotate:    func() error { _, err := w.try(lessor.Update, a.rotate, ""); return err },
		State:     func() (*rotation.Account, error) { return w.tryState(a.name) },
		Passwords: func() (*rotation.Passwords, error) { return w.tryPasswords(a.name) },
		Shown: func() (string, string, error) {
			p, err := w.tryPasswords(a.name)
			if err != nil {
				return "", "", err
			}
			return a.dn, p.Current.Reveal(), nil
		},
		Begun: func() (n int) {
			recs := slices.Concat(w.records(a.rotate), w.records(a.config))
			for i := range recs {
				if recs[i].Phase == audit.Begun {
					n++
				}
			}
			return n
		},
		LogsIn: w.LogsIn, Watch: w.eye.Watch, Advance: w.clock.advance, Broken: errBroken,
		Fail: func(f storetest.Faults) { w.faulty.Set(f) }, Dead: func() bool { return w.db.Fault() != nil }, Revive: w.crash,
	}
}

// A rotation is struck at each moment at which it can be: at each of its commits, done or not, and at each touch of the directory, {done?} × {told?},
// where lessor lives on or dies.
func TestRotationIsStruck(t *testing.T) {
	s := ldaptest.Start(t)
	for _, k := range enginetest.SingleStrikes() {
		t.Run(fmt.Sprintf("%+v", k), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, s)
			for _, a := range w.accounts() {
				w.struck(a).StrikeSingle(t, k)
			}
		})
	}
}

// So is a rotation of two accounts that take turns.
func TestHandoverIsStruck(t *testing.T) {
	s := ldaptest.Start(t)
	for _, k := range enginetest.PairStrikes() {
		t.Run(fmt.Sprintf("%+v", k), func(t *testing.T) {
			t.Parallel()
			p := newWorld(t, s).pair("")
			p.read("one")
			r := p.struck(rotated{name: "static/app", rotate: "ldap/rotate-role/app"})
			r.Shown = func() (string, string, error) {
				l, err := p.tryRead("two")
				return l.username, l.password, err
			}
			r.LogsIn = func(username, password string) bool { return p.lets(login{username: username, password: password}) }
			r.Retire = func() error {
				_, err := p.try(lessor.Update, "sys/lessor/rotation/retire/ldap/static-cred/app", "")
				return err
			}
			r.StrikePair(t, k)
		})
	}
}

// An attempt lands long after lessor gave it up, after the next rotation: it is noticed, and the password in force is set again.
func TestAttemptLandsLate(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	for _, a := range w.accounts() {
		given := false
		w.eye.Watch(func(call string, _ lessor.Secret, do func() error) error {
			if call == "set" && !given {
				given = true
				return errBroken
			}
			return do()
		})
		w.refused(api.Upstream, lessor.Update, a.rotate, "", "unable to finish rotating credentials; retries will continue in the background but it is also safe to retry manually")
		onItsWay := w.passwords(a.name).Pending.Reveal()
		w.do(lessor.Update, a.rotate, "") // by hand, before the background does
		second := w.passwords(a.name).Current.Reveal()
		if second != onItsWay {
			t.Errorf("%s: a password on its way was replaced by another", a.name)
		}
		w.do(lessor.Update, a.rotate, "")
		third := w.passwords(a.name).Current.Reveal()
		if w.SetPassword(a.dn, second); w.LogsIn(a.dn, third) {
			t.Fatal("nothing landed: this shows nothing")
		}
		w.clock.advance(rotation.Watch + time.Second)
		w.until("the password is in force again", func() bool { return w.LogsIn(a.dn, third) })
		w.until("that is on record", func() bool {
			return slices.ContainsFunc(w.records(a.config), func(r audit.At) bool { return strings.Contains(r.Note, "changed by somebody else") })
		})
		w.eye.Watch(nil)
	}
}

// A directory that is down parks a rotation, which is named, and loses no password; it goes on by itself.
func TestDirectoryIsDown(t *testing.T) {
	s := ldaptest.Own(t)
	w := newWorld(t, s)
	a := w.accounts()[0]
	w.must(s.Kill())
	w.refused(api.Upstream, lessor.Update, a.rotate, "", "the directory cannot be reached")
	w.refused(api.Upstream, lessor.Update, "ldap/static-role/new", `{"username":"new","rotation_period":"1h"}`, "the static role was not made, since the password of its account could not be changed")
	w.refused(api.NotFound, lessor.Read, "ldap/static-role/new", "", "")
	w.refused(api.Invalid, lessor.Update, "ldap/config", `{"userattr":"uid"}`, "error verifying the configuration: the directory cannot be reached")
	read := w.do(lessor.Read, "ldap/static-cred/app", "")
	if read.Data["password"].(lessor.Secret).Reveal() != a.first || len(read.Warnings) == 0 {
		t.Errorf("readers get %v, %v", read.Data, read.Warnings)
	}
	onItsWay := w.passwords(a.name).Pending
	w.crash()
	w.must(s.Up())
	if !w.LogsIn(a.dn, a.first) {
		t.Fatal("the password was changed")
	}
	w.settle(a)
	if now := w.password("app"); now != onItsWay.Reveal() || !w.LogsIn(a.dn, now) || w.LogsIn(a.dn, a.first) {
		t.Error("the rotation did not go on with the password that was on its way")
	}
	// One that hangs is the same: nobody waits longer than for any other target.
	w.must(s.Pause())
	w.refused(api.Upstream, lessor.Update, a.rotate, "", "the directory cannot be reached: it did not answer in time")
	w.must(s.Resume())
	w.settle(a)
	if !w.LogsIn(a.dn, w.password("app")) {
		t.Error("the password that is shown is not in force")
	}
}

// A password that the directory refuses is not in force, and gives way to another; the policy can be mended.
func TestRefusedPassword(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t, ldaptest.PasswordLength(12)))
	a := w.accounts()[0]
	w.do(lessor.Update, "sys/policies/password/short", `{"policy":"length=8\nrule \"charset\" { charset = \"abcdef\" }"}`)
	w.do(lessor.Update, "ldap/config", `{"password_policy":"short"}`)
	w.refused(api.Upstream, lessor.Update, a.rotate, "", "the directory refused: Constraint Violation")
	if p := w.passwords(a.name); !p.Pending.Empty() || w.password("app") != a.first || !w.LogsIn(a.dn, a.first) {
		t.Error("what was refused is still kept, or shown")
	}
	w.do(lessor.Update, "ldap/config", `{"password_policy":""}`)
	w.settle(a)
	if now := w.password("app"); now == a.first || !w.LogsIn(a.dn, now) {
		t.Error("the rotation did not go on")
	}
}

// How rotations stand is shown, by each of an account's paths; one that the directory does not finish can be given up.
func TestRotationIsShownAndGivenUp(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	a := w.accounts()[0]
	for _, path := range []string{"ldap/static-cred/app", "ldap/static-role/App", "ldap/config", "ldap/rotate-root"} {
		w.do(lessor.Read, "sys/lessor/rotation/status/"+path, "")
	}
	w.refused(api.NotFound, lessor.Read, "sys/lessor/rotation/status/ldap/creds/app", "", "is not the path of something that is rotated")
	w.do(lessor.Read, "sys/lessor/rotation/plan/ldap/static-cred/app", "")
	w.eye.Watch(func(call string, password lessor.Secret, do func() error) error {
		if call == "set" && password.Reveal() != a.first {
			_ = do() // it lands, and nobody is told
			return errBroken
		}
		return do()
	})
	w.refused(api.Upstream, lessor.Update, a.rotate, "", "unable to finish rotating credentials")
	if w.LogsIn(a.dn, a.first) {
		t.Fatal("nothing landed: this shows nothing")
	}
	w.do(lessor.Update, "sys/lessor/rotation/abort/ldap/static-cred/app", "")
	w.until("it is given up", func() bool {
		w.clock.advance(time.Second)
		state := w.state(a.name)
		return state.Pending == 0 && !state.Abort && state.Attempts == 0
	})
	w.until("what was before is forgotten", func() bool {
		w.clock.advance(10 * time.Second)
		return len(w.passwords(a.name).Former) == 0
	})
	if now := w.password("app"); now != a.first || !w.LogsIn(a.dn, now) {
		t.Error("readers are not shown the password before, or it is not in force")
	}
}

// A holder whose lease on a password is revoked may know it still: it is rotated.
func TestRevokedHolderHasItRotated(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	a := w.accounts()[0]
	op := w.op(w.root, lessor.Read, "ldap/static-cred/app", "")
	op.Renewable = true
	held, err := w.core.Handle(t.Context(), op)
	w.must(err)
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, held.Lease.ID))
	w.until("it is rotated", func() bool { return w.password("app") != a.first })
	if w.LogsIn(a.dn, a.first) || !w.LogsIn(a.dn, w.password("app")) {
		t.Error("the holder's password is in force still, or what is shown is not")
	}
}
