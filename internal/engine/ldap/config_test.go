package ldap_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/engine/ldap/directory"
	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lessor"
)

func TestConfiguration(t *testing.T) {
	b := enginetest.New(t, ldap.New(directory.Open), nil)
	b.System = passwords{}
	type step = enginetest.Step
	refused := func(name, body, text string) step {
		return step{Name: name, Verb: lessor.Update, Path: "config", Body: body, Kind: api.Invalid, Err: text}
	}
	answer := func(changes string) string {
		base := `"url":"ldaps://ad.example.org","schema":"openldap","binddn":"cn=lessor,dc=x","userdn":"dc=x","userattr":"cn","upndomain":"","starttls":false,` +
			`"insecure_tls":false,"certificate":"","client_tls_cert":"","tls_min_version":"tls12","tls_max_version":"tls13","connection_timeout":10,` +
			`"request_timeout":7,"mark_attribute":"description","skip_static_role_import_rotation":false,"rotation_period":0,"rotation_schedule":"",` +
			`"rotation_window":0,"disable_automated_rotation":false`
		return "{" + base + changes + "}"
	}
	clear := "passwords go over the network in clear: use ldaps://, or starttls=true"
	insecure := "insecure_tls: the directory's certificate is not verified, so whoever is on the way can read the passwords"
	b.Run(
		step{Name: "nothing", Verb: lessor.Read, Path: "config", Kind: api.NotFound, Fails: true},
		step{Name: "delete nothing", Verb: lessor.Delete, Path: "config"},
		refused("no account", `{"bindpass":"hush-1"}`, "binddn is needed: the account that lessor logs in with"),
		refused("no password", `{"binddn":"cn=x"}`, "bindpass is needed: the password of binddn"),
		refused("racf", `{"schema":"racf"}`, "schema racf is not supported: only openldap and ad are"),
		refused("unknown schema", `{"schema":"nis"}`, "the configured schema nis is not valid. Supported schemas: [openldap ad]"),
		refused("a filter", `{"binddn":"cn=x","bindpass":"hush-1","userattr":"cn)(x=*"}`, "userattr and mark_attribute must be names of attributes"),
		refused("the directory's own refusals", `{"binddn":"cn=x","bindpass":"hush-1","url":"ldap://a:hush-2@b"}`, "url must not hold a login: use binddn and bindpass"),
		refused("too long", `{"binddn":"cn=x","bindpass":"hush-1","request_timeout":"1h"}`, "request_timeout must be from 1 second to 10 minutes; 0 stands for the default"),
		refused("two schedules", `{"binddn":"cn=x","bindpass":"hush-1","rotation_period":"1h","rotation_schedule":"0 4 * * *"}`,
			"mutually exclusive fields rotation_period and rotation_schedule were both specified; only one of them can be provided"),
		step{Name: "no role", Verb: lessor.Update, Path: "static-role/x", Body: `{"username":"x","rotation_period":"1h"}`, Kind: api.Invalid, Err: "missing LDAP configuration: write it to config"},
		step{Name: "no set", Verb: lessor.Update, Path: "library/x", Body: `{"service_account_names":"x"}`, Kind: api.Invalid, Err: "missing LDAP configuration: write it to config"},
		step{Name: "no root", Verb: lessor.Update, Path: "rotate-root", Kind: api.Invalid, Err: "missing LDAP configuration: write it to config"},
		step{Name: "write", Verb: lessor.Update, Path: "config", Body: `{"url":"ldaps://ad.example.org","binddn":"cn=lessor,dc=x","bindpass":"hush-3","userdn":"dc=x","request_timeout":"7s","verify_connection":false}`},
		step{Name: "read", Verb: lessor.Read, Path: "config", Want: answer("")},
		step{Name: "what is not sent stays", Verb: lessor.Update, Path: "config", Body: `{"password_policy":"p","verify_connection":false}`},
		step{Name: "read", Verb: lessor.Read, Path: "config", Want: answer(`,"password_policy":"p"`)},
		step{Name: "another schema", Verb: lessor.Update, Path: "config", Body: `{"schema":"ad","password_policy":"","verify_connection":false}`},
		step{Name: "has other defaults", Verb: lessor.Read, Path: "config", Want: strings.NewReplacer("openldap", "ad", `"cn"`, `"userPrincipalName"`, `"description"`, `"adminDescription"`).Replace(answer(""))},
		refused("in clear", `{"url":"ldap://ad.example.org"}`, "url: Active Directory takes passwords over TLS only: use ldaps://, or starttls=true"),
		step{Name: "back", Verb: lessor.Update, Path: "config", Body: `{"schema":"openldap","url":"ldap://ldap.example.org","verify_connection":false}`, Warn: clear},
		step{Name: "not verified", Verb: lessor.Update, Path: "config", Body: `{"url":"ldaps://ldap.example.org","insecure_tls":true,"verify_connection":false}`, Warn: insecure},
		step{Name: "unknown parameter", Verb: lessor.Update, Path: "config", Body: `{"verify_connection":false,"insecure_tls":false,"color":1}`, Warn: "Endpoint ignored these unrecognized parameters: [color]"},
		step{Name: "delete", Verb: lessor.Delete, Path: "config"},
		step{Name: "deleted", Verb: lessor.Read, Path: "config", Kind: api.NotFound, Fails: true},
	)
	b.NoTrace("hush-1", "hush-2", "hush-3")
}

// A configuration that does not work is not stored; that it was tried is on record, before it is.
func TestVerification(t *testing.T) {
	w := newWorld(t, ldaptest.Start(t))
	w.refused(api.Invalid, lessor.Update, "ldap/config", `{"bindpass":"hush-wrong","userattr":"uid"}`,
		"error verifying the configuration: the directory refused lessor's own login: Invalid Credentials (49)")
	if a := w.do(lessor.Read, "ldap/config", ""); a.Data["userattr"] != "cn" {
		t.Errorf("what does not work was stored: %v", a.Data)
	}
	recs := w.records("ldap/config")
	if recs[1].Phase != audit.Outcome || recs[1].ErrorKind != "invalid" || recs[2].Phase != audit.Begun {
		t.Errorf("records of a refusal: %+v", recs[:3])
	}
	if strings.Contains(fmt.Sprint(recs), "hush") {
		t.Error("the password is on record")
	}
	name, dn := w.person("first")
	w.do(lessor.Update, "ldap/static-role/app", fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, name))
	if !w.LogsIn(dn, w.password("app")) {
		t.Error("the configuration that worked does not any more")
	}
}

// A configuration that leads to another directory has accounts tried there, and the password of each set that is not in force.
func TestDirectoryMoves(t *testing.T) {
	from, to := ldaptest.Own(t), ldaptest.Start(t)
	w := newWorld(t, from)
	a := w.accounts()[0]
	there := to.Branch(t)
	name := strings.TrimPrefix(strings.Split(a.dn, ",")[0], "cn=")
	dn := there.Person(name, "other")
	w.do(lessor.Update, "ldap/config", fmt.Sprintf(`{"url":%q,"binddn":%q,"bindpass":%q,"userdn":%q}`, to.URL(), there.Manager, ldaptest.ManagerPassword, there.DN))
	w.until("the password is in force there", func() bool { w.clock.advance(time.Second); return there.LogsIn(dn, a.first) })
	if w.password("app") != a.first {
		t.Error("the password is another now")
	}
}
