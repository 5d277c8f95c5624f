package ldap_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
)

// domainWorld is a world over a unit of Active Directory. lessor logs in as binddn says.
func domainWorld(t *testing.T, u *ldaptest.Unit, binddn string) *world {
	t.Helper()
	w := &world{T: t}
	config, err := json.Marshal(map[string]string{"url": u.URL(), "certificate": string(u.CA), "schema": "ad", "binddn": binddn, "bindpass": ldaptest.UnitPassword,
		"userdn": u.DN, "upndomain": ldaptest.DomainName})
	if err != nil {
		t.Fatal(err)
	}
	w.begin(string(config))
	return w
}

// The accounts of Active Directory: those that stay, that are lent, and that are made as the documentation says.
func TestDomain(t *testing.T) {
	u := ldaptest.StartDomain(t).Unit(t)
	w := domainWorld(t, u, u.Manager)
	secret := func(data map[string]any, field string) string {
		t.Helper()
		s, ok := data[field].(lessor.Secret)
		if !ok {
			t.Fatalf("no %s: %v", field, data)
		}
		return s.Reveal()
	}
	in := func(what, dn string, passwords map[string]bool) {
		t.Helper()
		for password, want := range passwords {
			if u.LogsIn(dn, password) != want {
				t.Errorf("%s: %q logs in: %v", what, password, !want)
			}
		}
	}

	w.do(lessor.Update, "ldap/rotate-root", "")
	if u.LogsIn(u.Manager, ldaptest.UnitPassword) {
		t.Error("lessor's own old password logs in")
	}

	app := u.User("app", "First-word-1")
	w.do(lessor.Update, "ldap/static-role/app", `{"username":"app","rotation_period":"1h"}`)
	first := w.password("app")
	in("made", app, map[string]bool{"First-word-1": false, first: true})
	w.do(lessor.Update, "ldap/rotate-role/app", "")
	in("rotated", app, map[string]bool{"First-word-1": false, first: false, w.password("app"): true})

	ops := u.User("ops", "First-word-1")
	w.do(lessor.Update, "ldap/library/ops", `{"service_account_names":"ops","ttl":"1h"}`)
	lent := w.do(lessor.Update, "ldap/library/ops/check-out", "")
	in("lent", ops, map[string]bool{"First-word-1": false, secret(lent.Data, "password"): true})
	w.do(lessor.Update, "ldap/library/ops/check-in", "")
	w.until("it is there for the next", func() bool {
		return !u.LogsIn(ops, secret(lent.Data, "password")) && strings.Contains(fmt.Sprint(w.do(lessor.Read, "ldap/library/ops/status", "").Data["ops"]), "available:true")
	})

	group := "CN=readers," + u.DN
	u.Add(group, "objectClass", "group", "sAMAccountName", "readers")
	creation := fmt.Sprintf(`dn: CN={{.Username}},%[1]s
changetype: add
objectClass: user
sAMAccountName: {{.Username}}

dn: CN={{.Username}},%[1]s
changetype: modify
replace: unicodePwd
unicodePwd::{{ printf "%%q" .Password | utf16le | base64 }}
-
replace: userAccountControl
userAccountControl: 66048
-

dn: %[2]s
changetype: modify
add: member
member: CN={{.Username}},%[1]s
-
`, u.DN, group)
	role, err := json.Marshal(map[string]string{"creation_ldif": creation, "default_ttl": "1h", "username_template": `{{ printf "v-%s" (random 16) }}`})
	w.must(err)
	w.do(lessor.Update, "ldap/role/reader", string(role))
	made := w.do(lessor.Read, "ldap/creds/reader", "")
	dn := "CN=" + made.Data["username"].(string) + "," + u.DN
	in("made", dn, map[string]bool{secret(made.Data, "password"): true})
	e := u.Entry(dn)
	if e == nil || !strings.HasPrefix(e.GetAttributeValue("adminDescription"), "lessor lease=") || !strings.EqualFold(e.GetAttributeValue("memberOf"), group) {
		t.Fatalf("the account: %+v", e)
	}
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q,"sync":true}`, made.Lease.ID))
	if u.Entry(dn) != nil || len(u.Entry(group).GetAttributeValues("member")) != 0 {
		t.Error("a revoked account is there still")
	}
	in("revoked", dn, map[string]bool{secret(made.Data, "password"): false})
}

// lessor's own account may be named as people name theirs.
func TestDomainByPrincipalName(t *testing.T) {
	u := ldaptest.StartDomain(t).Unit(t)
	name := u.Entry(u.Manager).GetAttributeValue("userPrincipalName")
	w := domainWorld(t, u, name)
	w.do(lessor.Update, "ldap/rotate-root", "")
	if u.LogsIn(u.Manager, ldaptest.UnitPassword) {
		t.Error("the old password logs in")
	}
	u.User("other", "First-word-1")
	w.do(lessor.Update, "ldap/static-role/app", `{"username":"other","rotation_period":"1h"}`)
	w.password("app")
	own, _, _ := strings.Cut(name, "@")
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/own", fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, own), "is the account that lessor itself logs in with")
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/own", fmt.Sprintf(`{"username":"else","dn":%q,"rotation_period":"1h"}`, u.Manager), "is the account that lessor itself logs in with")
	skipped := fmt.Sprintf(`{"username":"else","dn":%q,"rotation_period":"1000h","skip_import_rotation":true}`, u.Manager)
	w.refused(api.Invalid, lessor.Update, "ldap/static-role/own", skipped, "is the account that lessor itself logs in with")
	w.away(u.URL(), func() { w.do(lessor.Update, "ldap/static-role/own", skipped) })
	w.refused(api.Invalid, lessor.Update, "ldap/rotate-root", "", "is managed by static/own")
	w.do(lessor.Delete, "ldap/static-role/own", "")
	w.refused(api.Invalid, lessor.Update, "ldap/library/own", fmt.Sprintf(`{"service_account_names":%q}`, own), "lessor")
}

// Two accounts of Active Directory take turns, found by their names or named by their DNs: the old password works until the last holder has moved.
func TestDomainHandover(t *testing.T) {
	for _, named := range []string{"usernames", "dns"} {
		t.Run(named, func(t *testing.T) {
			u := ldaptest.StartDomain(t).Unit(t)
			p := &pair{world: domainWorld(t, u, u.Manager)}
			role := map[string]any{"rotation_period": "1000h"}
			for i, color := range []string{"blue", "green"} {
				p.names[i] = fmt.Sprintf("%s-%s", color, named)
				p.dns[i] = u.User(p.names[i], "First-word-1")
			}
			if named == "dns" {
				p.names, role["dns"] = [2]string{"first", "second"}, p.dns // only the readers are told these
			}
			role["usernames"] = p.names
			body, err := json.Marshal(role)
			p.must(err)
			p.do(lessor.Update, "ldap/static-role/app", string(body))
			lets := func(l login) bool { return u.LogsIn(p.dns[slices.Index(p.names[:], l.username)], l.password) }

			old := p.read("one")
			if old.username != p.names[0] || !lets(old) || u.LogsIn(p.dns[0], "First-word-1") {
				t.Fatalf("before: %+v", old)
			}
			p.acknowledge("one", old)
			p.do(lessor.Update, "ldap/rotate-role/app", "")
			next := p.read("one")
			if next.username != p.names[1] || !lets(next) || !lets(old) || u.LogsIn(p.dns[1], "First-word-1") {
				t.Fatalf("after the rotation readers are shown %+v", next)
			}
			p.acknowledge("one", next)
			p.reaches(rotation.Idle, time.Second)
			if lets(old) || !lets(next) {
				t.Errorf("in the end the old password logs in: %v; the new one: %v", lets(old), lets(next))
			}
		})
	}
}
