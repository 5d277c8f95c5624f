package ldap_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
)

// Whoever should not know the password of an account any more has it rotated; whoever read it once and fell silent is known still.
func TestHoldersOfStaticRole(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	name, dn := w.person("first")
	w.do(lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"username":%q,"dn":%q,"rotation_period":"1000h"}`, name, dn))
	read := func(instance string) string {
		op := w.op(w.root, lessor.Read, "ldap/static-cred/app", "")
		op.Instance, op.Renewable = instance, true
		a, err := w.core.Handle(context.Background(), op)
		w.must(err)
		return a.Lease.ID
	}
	read("boot")
	w.clock.advance(30 * 24 * time.Hour)
	w.until("the hold has lapsed", func() bool {
		all := w.do(lessor.Read, "sys/lessor/holders/ldap/static-cred/app", "").Data["holders"].([]any)
		return len(all) == 1 && all[0].(map[string]any)["lapsed"] != nil
	})
	exposed := w.password("app")
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, read("pod-0")))
	w.until("the exposed password is rotated", func() bool { return w.state("static/app").Version == 2 })
	if w.LogsIn(dn, exposed) || !w.LogsIn(dn, w.password("app")) {
		t.Error("the password that was exposed is in force")
	}
}

// What was checked out does not work any more once its lease is over: of one account when nobody has it any more, of two when who has it still has moved.
func TestCheckedOut(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	name, dn := w.person("first")
	w.do(lessor.Update, "ldap/static-role/one", fmt.Sprintf(`{"username":%q,"rotation_period":"1000h","rotation_on_lease_end":true}`, name))
	for _, path := range []string{"ldap/static-role/one", "sys/lessor/rotation/plan/ldap/static-cred/one"} {
		if on := w.do(lessor.Read, path, "").Data["rotation_on_lease_end"]; on != true {
			t.Errorf("%s says %v", path, on)
		}
	}
	for option, want := range map[string]int{"off": 1, "quiet": 0} { // where there are no leases none ends
		w.do(lessor.Update, "sys/mounts/ldap/tune", `{"options":{"lease":"`+option+`"}}`)
		for _, verb := range []lessor.Verb{lessor.Update, lessor.Read} {
			if got := strings.Count(strings.Join(w.do(verb, "ldap/static-role/one", "").Warnings, "\n"), "rotation_on_lease_end does nothing"); got != want {
				t.Errorf("with lease=%s, %d warnings of %v", option, got, verb)
			}
		}
	}
	w.do(lessor.Update, "sys/mounts/ldap/tune", `{"options":{"lease":"shown"}}`)
	release := func(instance, id string) {
		t.Helper()
		op := w.op(w.root, lessor.Update, "sys/lessor/leases/release", fmt.Sprintf(`{"lease_id":%q}`, id))
		op.Instance = instance
		_, err := w.core.Handle(context.Background(), op)
		w.must(err)
	}
	op := w.op(w.root, lessor.Read, "ldap/static-cred/one", "")
	op.Instance, op.Renewable = "pod", true
	read, err := w.core.Handle(context.Background(), op)
	w.must(err)
	old := read.Data["password"].(lessor.Secret).Reveal()
	release("pod", read.Lease.ID)
	w.until("what was given back is rotated", func() bool { return w.state("static/one").Version == 2 })
	if w.LogsIn(dn, old) {
		t.Error("what was given back works still")
	}
	w.do(lessor.Update, "ldap/static-role/one", `{"rotation_on_lease_end":false}`)
	if on := w.do(lessor.Read, "ldap/static-role/one", "").Data["rotation_on_lease_end"]; on != nil {
		t.Errorf("switched off, it is %v", on)
	}

	p := w.pair(`,"rotation_on_lease_end":true`)
	a, b := p.read("a"), p.read("b")
	release("a", a.lease)
	p.until("a rotation has begun", func() bool { return p.state("static/app").Phase() == rotation.Waiting })
	if !p.lets(b) {
		t.Fatal("who has it still is locked out")
	}
	p.acknowledge("b", p.read("b"))
	p.reaches(rotation.Idle, time.Second)
	if p.lets(a) {
		t.Error("what was given back works still")
	}
}
