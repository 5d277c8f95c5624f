package ldap_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lessor"
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
