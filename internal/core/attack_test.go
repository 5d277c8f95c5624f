package core_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// everything is the audit trail as text.
func (g *gate) everything() string {
	g.Helper()
	var b strings.Builder
	for cursor := ""; ; {
		records, next, err := g.db.Records(store.Query{Limit: 1000, Cursor: cursor})
		if err != nil {
			g.Fatal(err)
		}
		for _, r := range records {
			fmt.Fprintf(&b, "%+v\n", r)
		}
		if cursor = next; next == "" {
			return b.String()
		}
	}
}

func (g *gate) login(method, name string) *lessor.Answer {
	g.Helper()
	g.do(g.root, lessor.Update, "auth/"+method+"/users/"+name, `{"password":"a long password"}`)
	return g.do(lessor.Secret{}, lessor.Update, "auth/"+method+"/login/"+name, `{"password":"a long password"}`)
}

func TestTokensInPathsAreNotOnRecord(t *testing.T) {
	g := start(t)
	service := g.token(`{"policies":["default"]}`)
	custom := g.token(`{"policies":["default"],"id":"a-chosen-token-id"}`)
	batch := g.token(`{"policies":["default"],"type":"batch"}`)
	for _, secret := range []lessor.Secret{service, custom, batch} {
		id := secret.Reveal()
		if d := g.do(g.root, lessor.Read, "auth/token/lookup/"+id, "").Data; !d["id"].(lessor.Secret).Equal(secret) {
			t.Errorf("lookup: %v", d)
		}
		for _, path := range []string{"auth/token/renew/" + id, "auth/token/revoke/" + id, "auth/token/revoke-orphan/" + id, "auth/token/lookup/" + id + "/more"} {
			g.refused(api.NotFound, g.root, lessor.Update, path, "")
			g.refused(api.Denied, service, lessor.Update, path, "")
			g.refused(api.Unauthenticated, lessor.Secret{}, lessor.Update, path, "")
		}
	}
	op := g.op(g.root, lessor.Read, "auth/token/lookup/"+service.Reveal(), "")
	op.WrapTTL = time.Minute
	if _, err := g.core.Handle(t.Context(), op); err != nil {
		t.Fatal(err)
	}
	g.clock.Advance(time.Hour)
	g.eventually("the wrapping token is over", func() bool { return strings.Contains(g.everything(), "token expired") })
	for _, secret := range []lessor.Secret{service, batch} {
		g.refused(api.NotFound, g.root, lessor.Read, "nowhere/"+secret.Reveal()+"/x", "")
		g.refused(api.Invalid, g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+secret.Reveal()+`"}`)
		g.do(g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"`+secret.Reveal()+`"}`)
		g.do(g.root, lessor.Update, "sys/lessor/revoke", `{"by":"lease","value":"`+secret.Reveal()+`"}`)
	}
	// Wherever they stand: behind a question mark that was escaped, in a name, in what a revocation is told to revoke.
	for _, secret := range []lessor.Secret{service, batch} {
		for _, path := range []string{"secret/data/app?token=%s", "nowhere/x%sx/y", "nowhere/Bearer %s", "auth/token/roles/a%s"} {
			_, _ = g.try(g.root, lessor.Read, fmt.Sprintf(path, secret.Reveal()), "")
			_, _ = g.try(lessor.Secret{}, lessor.Read, fmt.Sprintf(path, secret.Reveal()), "")
		}
		for _, by := range []string{"prefix", "mount", "holder", "owner", "token", "lease"} {
			for _, value := range []string{"%s", "auth/token/%s", "sys/%s"} {
				_, _ = g.try(g.root, lessor.Update, "sys/lessor/revoke", fmt.Sprintf(`{"by":"`+by+`","value":"`+value+`"}`, secret.Reveal()))
			}
		}
	}
	trail := g.everything()
	for _, secret := range []lessor.Secret{service, custom, batch, g.root} {
		if strings.Contains(trail, secret.Reveal()) {
			t.Errorf("the audit trail holds a token that begins with %.4s", secret.Reveal())
		}
	}
	if !strings.Contains(trail, "auth/token/lookup/hash:") {
		t.Error("the lookups are not on record as such")
	}
}

// What policy is asked about is the path: nothing in the data may make the operation one on something else.
func TestDataDoesNotPointElsewhere(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	mine, other := g.login("userpass", "mallory"), g.login("userpass", "admin")
	g.do(g.root, lessor.Update, "identity/entity/id/"+mine.Auth.Entity, `{"name":"mallory"}`)
	g.do(g.root, lessor.Update, "identity/entity/id/"+other.Auth.Entity, `{"name":"admin","metadata":{"phone":"1"}}`)
	for _, path := range []string{"identity/entity/name/mallory", "identity/entity/id/" + mine.Auth.Entity} {
		d := g.do(mine.Auth.Token, lessor.Read, path, `{"id":"`+other.Auth.Entity+`","name":"admin"}`).Data
		if d["id"] != mine.Auth.Entity {
			t.Errorf("%s with another's id in the query shows the other: %v", path, d)
		}
	}
	g.policy("own", `path "identity/entity/name/mallory" { capabilities = ["update", "delete"] }
		path "identity/group/name/mine" { capabilities = ["update", "delete"] }
		path "sys/leases/renew/secret/data/mine/*" { capabilities = ["update"] }
		path "sys/leases/revoke/secret/data/mine/*" { capabilities = ["update"] }`)
	own := g.token(`{"policies":["own"]}`)
	g.do(own, lessor.Update, "identity/entity/name/mallory", `{"id":"`+other.Auth.Entity+`","policies":["evil"]}`)
	group := g.do(g.root, lessor.Update, "identity/group", `{"name":"theirs"}`).Data["id"].(string)
	g.do(own, lessor.Update, "identity/group/name/mine", `{"id":"`+group+`","policies":["evil"]}`)
	g.do(own, lessor.Delete, "identity/group/name/mine", `{"id":"`+group+`"}`)
	g.do(own, lessor.Delete, "identity/entity/name/mallory", `{"id":"`+other.Auth.Entity+`"}`)
	if d := g.do(g.root, lessor.Read, "identity/entity/id/"+other.Auth.Entity, "").Data; d["name"] != "admin" || fmt.Sprint(d["policies"]) != "[]" {
		t.Errorf("the other entity was changed: %v", d)
	}
	if d := g.do(g.root, lessor.Read, "identity/group/id/"+group, "").Data; d["name"] != "theirs" || d["policies"] != nil {
		t.Errorf("the other group was changed: %v", d)
	}
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	id := g.do(g.root, lessor.Read, "secret/data/app", "").Lease.ID
	g.refused(api.Invalid, own, lessor.Update, "sys/leases/renew/secret/data/mine/x", `{"lease_id":"`+id+`"}`)
	g.do(own, lessor.Update, "sys/leases/revoke/secret/data/mine/x", `{"lease_id":"`+id+`"}`)
	g.do(g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+id+`"}`)
}

// A rule about a name is about all its spellings, where names have no case.
func TestSpellingDoesNotEvadeARule(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/approle", `{"type":"approle"}`)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	g.policy("almost", `path "*" { capabilities = ["create", "read", "update", "delete", "list"] }
		path "sys/policies/acl/admin" { capabilities = ["deny"] }
		path "auth/token/roles/admin" { capabilities = ["deny"] }
		path "auth/token/create/admin" { capabilities = ["deny"] }
		path "identity/entity/name/admin" { capabilities = ["deny"] }
		path "identity/group/name/admin" { capabilities = ["deny"] }
		path "auth/approle/role/admin*" { capabilities = ["deny"] }
		path "auth/userpass/users/admin*" { capabilities = ["deny"] }`)
	tok := g.token(`{"policies":["almost"]}`)
	for _, path := range []string{
		"sys/policies/acl/%s", "auth/token/roles/%s", "auth/token/create/%s", "identity/entity/name/%s", "identity/group/name/%s",
		"auth/approle/role/%s", "auth/approle/role/%s/secret-id", "auth/approle/role/%s/policies", "auth/userpass/users/%s", "auth/userpass/users/%s/password",
	} {
		for _, name := range []string{"admin", "ADMIN", "Admin"} {
			g.refused(api.Denied, tok, lessor.Update, fmt.Sprintf(path, name), `{}`)
		}
		// A rule in the spelling that is asked for is good for that spelling.
		g.policy("cased", `path "`+fmt.Sprintf(path, "Other")+`" { capabilities = ["create", "update"] }`)
		if _, err := g.try(g.token(`{"policies":["cased"]}`), lessor.Update, fmt.Sprintf(path, "Other"), `{}`); api.KindOf(err) == api.Denied {
			t.Errorf(path+" by a rule in its own spelling: %v", "Other", err)
		}
		if _, err := g.try(tok, lessor.Update, fmt.Sprintf(path, "OTHER"), `{}`); api.KindOf(err) == api.Denied {
			t.Errorf(path+": %v", "OTHER", err)
		}
	}
	// A trailing slash or an empty segment is not another path.
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	g.policy("deny", `path "secret/*" { capabilities = ["read", "list"] }
		path "secret/data/app" { capabilities = ["deny"] }`)
	denied := g.token(`{"policies":["deny"]}`)
	for _, path := range []string{"secret/data/app", "secret/data//app", "secret//data/app", "secret/data/app/", "secret/data/./app", "secret/data/x/../app"} {
		if a, err := g.try(denied, lessor.Read, path, ""); err == nil && (a.Status != 404 || a.Data != nil) {
			t.Errorf("%q shows %v", path, a.Data)
		}
	}
}

func TestAuthMethodsTakeSudo(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/approle", `{"type":"approle"}`)
	g.policy("mounts", `path "sys/mounts*" { capabilities = ["create", "read", "update", "delete", "list"] }
		path "sys/auth*" { capabilities = ["create", "read", "update", "delete", "list"] }`)
	tok := g.token(`{"policies":["mounts"]}`)
	g.refused(api.Denied, tok, lessor.Delete, "sys/auth/approle", "")
	g.refused(api.Denied, tok, lessor.Update, "sys/auth/mine", `{"type":"userpass"}`)
	g.refused(api.Invalid, tok, lessor.Delete, "sys/mounts/auth/approle", "")
	g.refused(api.Invalid, tok, lessor.Update, "sys/mounts/auth/mine", `{"type":"userpass"}`)
	g.refused(api.Invalid, tok, lessor.Update, "sys/mounts/mine", `{"type":"userpass"}`)
	g.do(tok, lessor.Read, "sys/mounts/auth/approle/tune", "")
	g.do(g.root, lessor.Read, "sys/auth/approle", "")
	for _, path := range []string{"sys", "identity", "cubbyhole", "auth", "auth/token", "sys/x"} {
		g.refused(api.Invalid, g.root, lessor.Update, "sys/mounts/"+path, `{"type":"kv"}`)
	}
	g.refused(api.Invalid, g.root, lessor.Delete, "sys/auth/token", "")
}

func TestWhoMayMakeWhichToken(t *testing.T) {
	g := start(t, func(o *core.Options) { o.MaxTTL = 100 * time.Hour })
	g.policy("maker", `path "auth/token/create*" { capabilities = ["update"] }`)
	g.policy("sudoer", `path "auth/token/create*" { capabilities = ["update", "sudo"] }`)
	g.do(g.root, lessor.Update, "auth/token/roles/app", `{"allowed_policies":"app","period":"2h"}`)
	g.do(g.root, lessor.Update, "auth/token/roles/free", `{}`)
	g.do(g.root, lessor.Update, "auth/token/roles/globs", `{"allowed_policies_glob":"app-*","disallowed_policies_glob":"app-[ad]*,app-x*y","orphan":true}`)
	g.do(g.root, lessor.Update, "auth/token/roles/rooted", `{"allowed_policies":"ROOT"}`)
	maker, sudoer := g.token(`{"policies":["maker"]}`), g.token(`{"policies":["sudoer"]}`)
	expiring := g.token(`{"policies":["root"],"ttl":"1h"}`)
	limited := g.token(`{"policies":["maker"],"num_uses":9}`)
	batch := g.token(`{"policies":["maker"],"type":"batch"}`)
	for _, c := range []struct {
		who        lessor.Secret
		name       string
		path, data string
		refusal    string // "": it is made
	}{
		{maker, "maker", "create", `{"policies":["maker"]}`, ""},
		{maker, "maker", "create", `{"policies":["sudoer"]}`, "child policies must be subset of parent"},
		{maker, "maker", "create", `{"policies":[" ROOT "]}`, "root tokens may not be created"},
		{sudoer, "sudoer", "create", `{"policies":["Root"]}`, "root tokens may not be created"},
		{sudoer, "sudoer", "create-orphan", `{"policies":["root"]}`, "root tokens may not be created"},
		{sudoer, "sudoer", "create", `{"policies":["anything"],"no_parent":true,"period":"1h"}`, ""},
		{maker, "maker", "create-orphan", `{}`, ""}, // who may call it may make orphans, of what he has himself
		{maker, "maker", "create-orphan", `{"policies":["sudoer"]}`, "child policies must be subset of parent"},
		{maker, "maker", "create-orphan", `{"period":"1h"}`, "root or sudo privileges required to create periodic token"},
		{maker, "maker", "create-orphan", `{"id":"a-custom-token-id"}`, "root or sudo privileges required to specify token id"},
		{g.token(`{"policies":["default"]}`), "default", "create-orphan", `{}`, "permission denied"},
		{maker, "maker", "create", `{"no_parent":true}`, "root or sudo privileges required to create orphan token"},
		{maker, "maker", "create", `{"period":"1h"}`, "root or sudo privileges required to create periodic token"},
		{maker, "maker", "create/app", `{"period":"1h"}`, "root or sudo privileges required to create periodic token"},
		{maker, "maker", "create/free", `{"period":"1000h"}`, "root or sudo privileges required to create periodic token"},
		{maker, "maker", "create/app", `{}`, ""},
		{maker, "maker", "create/app", `{"policies":["maker"]}`, "must be subset of the role's allowed policies"},
		{maker, "maker", "create/free", `{"policies":["other"]}`, "child policies must be subset of parent"},
		{maker, "maker", "create/free", `{"policies":["maker"]}`, ""},
		{g.root, "root", "create/free", `{}`, "token roles cannot give the root policy"},
		{g.root, "root", "create/rooted", `{}`, "token roles cannot give the root policy"},
		{maker, "maker", "create/globs", `{"policies":["app-a"]}`, ""},
		{maker, "maker", "create/globs", `{"policies":["app-[ad]min"]}`, "is disallowed by this role"},
		{maker, "maker", "create/globs", `{"policies":["app-x-1-y"]}`, "is disallowed by this role"},
		{maker, "maker", "create/globs", `{"policies":["root"]}`, "root tokens may not be created without parent token being root"},
		{maker, "maker", "create/none", `{}`, "unknown role none"},
		{maker, "maker", "create", `{"id":"a-custom-token-id"}`, "root or sudo privileges required to specify token id"},
		{maker, "maker", "create/free", `{"id":"a-custom-token-id"}`, "root or sudo privileges required to specify token id"},
		{g.root, "root", "create", `{"id":"a-custom-token-id"}`, ""},
		{g.root, "root", "create", `{"id":"a-custom-token-id"}`, "duplicate ID"},
		{g.root, "root", "create", `{"id":"hvs.forged-token-id"}`, "prefix"},
		{g.root, "root", "create", `{"id":"two words"}`, "header"},
		{maker, "maker", "create", `{"entity_alias":"x"}`, "only allowed in combination with token role"},
		{maker, "maker", "create/free", `{"entity_alias":"x"}`, "invalid 'entity_alias' value"},
		{limited, "limited", "create", `{}`, "restricted use token cannot generate child tokens"},
		{batch, "batch", "create", `{}`, "batch tokens cannot create more tokens"},
		{expiring, "expiring root", "create", `{}`, "expiring root tokens cannot create non-expiring root tokens"},
		{expiring, "expiring root", "create", `{"policies":["root"]}`, "expiring root tokens cannot create non-expiring root tokens"},
		{expiring, "expiring root", "create-orphan", `{}`, "expiring root tokens cannot create non-expiring root tokens"},
		{expiring, "expiring root", "create", `{"ttl":"5m"}`, ""},
		{g.root, "root", "create", `{"type":"batch"}`, "batch tokens cannot be root tokens"},
		{g.root, "root", "create", `{"type":"batch","policies":["x"],"num_uses":1}`, "batch tokens cannot have"},
		{maker, "maker", "create", `{"display_name":"` + strings.Repeat("x", 506) + `"}`, ""},
		{maker, "maker", "create", `{"display_name":"` + strings.Repeat("x", 507) + `"}`, "display_name has at most 506 bytes"},
		{maker, "maker", "create", `{"meta":{"a":"` + strings.Repeat("x", 60_000) + `"}}`, ""},
		{maker, "maker", "create", `{"meta":{"a":"` + strings.Repeat("x", 1<<16) + `"}}`, "at most 65536 bytes together"},
		{g.root, "root", "create", `{"type":"batch","policies":["` + strings.Repeat("x", 1<<16) + `"]}`, "at most 65536 bytes together"},
		{maker, "maker", "create", `{"num_uses":-1}`, "number of uses cannot be negative"},
		{maker, "maker", "create", `{"ttl":"soon"}`, `field "ttl" is not a duration`},
		{maker, "maker", "create", `{"type":"strange"}`, "invalid 'token_type' value"},
	} {
		a, err := g.try(c.who, lessor.Update, "auth/token/"+c.path, c.data)
		switch {
		case err == nil && c.refusal == "":
			if a.Auth.Token.Empty() {
				t.Errorf("%s by %s %s: no token", c.path, c.name, c.data)
			}
		case err == nil:
			t.Errorf("%s by %s %s was made, with %v", c.path, c.name, c.data, a.Auth.TokenPolicies)
		case c.refusal == "" || !strings.Contains(err.Error(), c.refusal):
			t.Errorf("%s by %s %s: %v, want %q", c.path, c.name, c.data, err, c.refusal)
		case api.KindOf(err) != api.Invalid && c.refusal != "permission denied":
			t.Errorf("%s by %s %s: kind %s", c.path, c.name, c.data, api.KindOf(err))
		}
	}
	// No wish for a late end goes beyond the maximum, at once or by and by.
	for _, data := range []string{`{"policies":["default"],"ttl":"90h","explicit_max_ttl":"5000h"}`, `{"policies":["default"],"ttl":"5000h"}`} {
		tok := g.do(g.root, lessor.Update, "auth/token/create", data).Auth.Token
		for range 3 {
			g.clock.Advance(30 * time.Hour)
			g.do(tok, lessor.Update, "auth/token/renew-self", `{"increment":"5000h"}`)
		}
		g.clock.Advance(11 * time.Hour)
		g.refused(api.Unauthenticated, tok, lessor.Read, "auth/token/lookup-self", "")
	}
	long := g.do(g.root, lessor.Update, "auth/token/create", `{"policies":["default"],"period":"5000h"}`)
	if long.Auth.Duration != 100*time.Hour || len(long.Warnings) == 0 {
		t.Errorf("a period beyond the maximum: %v, warnings %v", long.Auth.Duration, long.Warnings)
	}
	// A child is not good from where its parent is not.
	g.do(g.root, lessor.Update, "auth/token/roles/bound", `{"allowed_policies":"maker","bound_cidrs":"127.0.0.0/8"}`)
	bound := g.do(g.root, lessor.Update, "auth/token/create/bound", `{}`).Auth.Token
	child := g.do(bound, lessor.Update, "auth/token/create", `{"policies":["maker","default"]}`)
	_ = child
	if d := g.do(g.root, lessor.Update, "auth/token/lookup", `{"token":"`+g.do(bound, lessor.Update, "auth/token/create", `{}`).Auth.Token.Reveal()+`"}`).Data; fmt.Sprint(d["bound_cidrs"]) != "[127.0.0.0/8]" {
		t.Errorf("child of a bound token: %v", d)
	}
}

// A batch token has no row to delete: what ends it must not forget that it did.
func TestBatchTokensStayDead(t *testing.T) {
	g := start(t)
	enable := func() lessor.Secret {
		g.do(g.root, lessor.Update, "sys/auth/up", `{"type":"userpass","config":{"token_type":"batch"}}`)
		return g.login("up", "ann").Auth.Token
	}
	tok := enable()
	g.do(tok, lessor.Read, "auth/token/lookup-self", "")
	g.do(g.root, lessor.Delete, "sys/auth/up", "") // waits until the tombstone has done its work
	g.refused(api.Unauthenticated, tok, lessor.Read, "auth/token/lookup-self", "")
	again := enable()
	g.refused(api.Unauthenticated, tok, lessor.Read, "auth/token/lookup-self", "")
	d := g.do(again, lessor.Read, "auth/token/lookup-self", "").Data
	g.do(g.root, lessor.Update, "sys/lessor/revoke", `{"by":"holder","value":"`+d["entity_id"].(string)+`"}`)
	g.refused(api.Unauthenticated, again, lessor.Read, "auth/token/lookup-self", "")
	after := g.do(lessor.Secret{}, lessor.Update, "auth/up/login/ann", `{"password":"a long password"}`).Auth.Token
	g.do(after, lessor.Read, "auth/token/lookup-self", "")
	g.do(g.root, lessor.Update, "sys/leases/revoke-prefix/auth/up/login", "")
	g.refused(api.Unauthenticated, after, lessor.Read, "auth/token/lookup-self", "")
	// What is on record for them is forgotten when they are all over.
	g.do(g.root, lessor.Update, "sys/leases/revoke-prefix/sys/x", "")
	v, err := g.db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for at, want := range map[time.Time]int{g.clock.Now().Add(-time.Hour): 0, g.clock.Now().Add(time.Hour): 3} {
		txn := &store.Txn{}
		if err := lease.Forget(v, txn, at); err != nil || len(txn.Deletes) != want {
			t.Errorf("%d revocations are forgotten, want %d (%v)", len(txn.Deletes), want, err)
		}
	}
	parent := g.token(`{"policies":["root"]}`)
	child := g.do(parent, lessor.Update, "auth/token/create", `{"type":"batch","policies":["default"]}`).Auth.Token
	g.do(child, lessor.Read, "auth/token/lookup-self", "")
	g.refused(api.Invalid, child, lessor.Update, "cubbyhole/x", `{"k":"v"}`)
	g.do(parent, lessor.Update, "auth/token/revoke-self", "")
	g.refused(api.Unauthenticated, child, lessor.Read, "auth/token/lookup-self", "")
}

// Who may write users and roles gives nobody what only lessor itself gives.
func TestLoginsGiveNoBuiltInPower(t *testing.T) {
	g := start(t)
	g.write("sys/auth/up", `{"type":"userpass"}`)
	g.write("sys/auth/app", `{"type":"approle"}`)
	for policies, text := range map[string]string{
		`"root"`: "auth methods cannot create root tokens", `["default"," Root "]`: "auth methods cannot create root tokens",
		`"default,response-wrapping"`: `cannot assign policy "response-wrapping"`, `["RESPONSE-WRAPPING"]`: `cannot assign policy "response-wrapping"`,
	} {
		g.write("auth/up/users/ann", `{"password":"a long password","token_policies":`+policies+`}`)
		if got := g.refused(api.Invalid, lessor.Secret{}, lessor.Update, "auth/up/login/ann", `{"password":"a long password"}`); got != text {
			t.Errorf("a user with %s: %s", policies, got)
		}
		g.write("auth/app/role/r", `{"role_id":"r","bind_secret_id":false,"token_bound_cidrs":"127.0.0.0/8","token_policies":`+policies+`}`)
		if got := g.refused(api.Invalid, lessor.Secret{}, lessor.Update, "auth/app/login", `{"role_id":"r"}`); got != text {
			t.Errorf("a role with %s: %s", policies, got)
		}
	}
}

// A batch token may live longer than the mount that gave it, and longer than any mount that is left would let it.
func TestBatchTokensOfLongLifeStayDead(t *testing.T) {
	g := start(t)
	g.write("sys/auth/up", `{"type":"userpass","config":{"token_type":"batch","max_lease_ttl":"9000h","default_lease_ttl":"9000h"}}`)
	tok := g.login("up", "ann").Auth.Token
	g.do(tok, lessor.Read, "auth/token/lookup-self", "")
	g.do(g.root, lessor.Delete, "sys/auth/up", "")
	other, err := core.New(core.Options{Store: g.db, Keys: g.core.Keys, Random: rand.Reader, Backends: g.backends})
	if err != nil {
		t.Fatal(err)
	}
	revocations := func(wait time.Duration) int {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		other.Run(ctx) // it forgets at its start what it may
		v, err := g.db.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		past, err := lease.LoadPast(v)
		if err != nil {
			t.Fatal(err)
		}
		return len(past)
	}
	revocations(300 * time.Millisecond) // and removes what is left of the mount
	g.clock.Advance(60 * 24 * time.Hour)
	if n := revocations(300 * time.Millisecond); n != 1 {
		t.Errorf("%d revocations are on record", n)
	}
	g.refused(api.Unauthenticated, tok, lessor.Read, "auth/token/lookup-self", "")
	g.clock.Advance(400 * 24 * time.Hour)
	for i := 0; revocations(300*time.Millisecond) > 0; i++ {
		if i == 20 {
			t.Fatal("the revocation is on record for ever")
		}
	}
}

func TestPrefixEndsWithASegment(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	ids := map[string]string{}
	for _, name := range []string{"app", "app2", "app/below"} {
		g.do(g.root, lessor.Update, "secret/data/"+name, `{"data":{"k":"v"}}`)
		ids[name] = g.do(g.root, lessor.Read, "secret/data/"+name, "").Lease.ID
	}
	if a := g.do(g.root, lessor.Update, "sys/leases/revoke-prefix/secret/data/app", ""); a.Status != 0 {
		t.Errorf("status %d, want 204: it waits unless told not to", a.Status)
	}
	g.refused(api.Invalid, g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+ids["app"]+`"}`)
	g.refused(api.Invalid, g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+ids["app/below"]+`"}`)
	g.do(g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+ids["app2"]+`"}`)
	if a := g.do(g.root, lessor.Update, "sys/leases/revoke-prefix/secret/data/app2", `{"sync":false}`); a.Status != 202 {
		t.Errorf("status %d, want 202", a.Status)
	}
	g.refused(api.Invalid, g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+ids["app2"]+`"}`)
	if a := g.do(g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"secret/data/never"}`); !a.Empty() || a.Status != 0 {
		t.Errorf("an unknown lease: %+v", a)
	}
	g.do(g.root, lessor.Update, "sys/leases/revoke-prefix/nowhere/x", "") // as in Vault
	recs := g.last("sys/leases/revoke-prefix/secret/data/app")
	if len(recs) == 0 || recs[0].Tombstone == "" || recs[0].Note != "by prefix" {
		t.Errorf("record: %+v", recs)
	}
}

// The last use may be a renewal: the token and all that it holds end all the same.
func TestRenewalAsTheLastUse(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	g.policy("creds", `path "target/creds/*" { capabilities = ["read"] }`)
	tok := g.token(`{"policies":["creds","default"],"num_uses":2}`)
	g.do(tok, lessor.Read, "target/creds/app", "")
	if g.target.count() != 1 {
		t.Fatal("no account")
	}
	g.do(tok, lessor.Update, "auth/token/renew-self", "")
	g.refused(api.Unauthenticated, tok, lessor.Read, "auth/token/lookup-self", "")
	g.eventually("the account of a used-up token is gone", func() bool { return g.target.count() == 0 })
	// So may be any other act, one that is refused too.
	for _, last := range []string{"auth/token/lookup-self", "secret/data/app", "target/nothing"} {
		tok := g.token(`{"policies":["creds","default"],"num_uses":2}`)
		g.do(tok, lessor.Read, "target/creds/app", "")
		_, _ = g.try(tok, lessor.Read, last, "")
		g.refused(api.Unauthenticated, tok, lessor.Read, "auth/token/lookup-self", "")
		g.eventually("the account of a token used up at "+last+" is gone", func() bool { return g.target.count() == 0 })
	}
	// A credential is not given for the last use: it would die with it. A static value is.
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	g.policy("both", `path "target/creds/*" { capabilities = ["read"] }
		path "secret/*" { capabilities = ["read"] }`)
	once := g.token(`{"policies":["both"],"num_uses":1}`)
	id := g.do(once, lessor.Read, "secret/data/app", "").Lease.ID
	g.do(g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+id+`"}`)
	once = g.token(`{"policies":["both"],"num_uses":1}`)
	g.refused(api.Invalid, once, lessor.Read, "target/creds/app", "")
	if g.target.count() != 0 {
		t.Error("an account was made for the last use of a token")
	}
	// A login needs no token, and uses none up.
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	g.login("userpass", "ann")
	once = g.token(`{"policies":["default"],"num_uses":1}`)
	g.do(once, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`)
	g.do(once, lessor.Read, "auth/token/lookup-self", "")
	g.refused(api.Unauthenticated, once, lessor.Read, "auth/token/lookup-self", "")
}

func (g *gate) eventually(what string, ok func() bool) {
	g.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			g.Fatalf("never: %s", what)
		}
	}
}

// An answer does not wait for a target for ever, and says that the revocation is in force.
func TestTargetThatDoesNotAnswer(t *testing.T) {
	g := start(t, func(o *core.Options) { o.Patience = 100 * time.Millisecond })
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target","owner":"team-db"}`)
	one := g.do(g.root, lessor.Read, "target/creds/app", "").Lease.ID
	two := g.do(g.root, lessor.Read, "target/creds/app", "").Lease.ID
	g.target.set(true, true)
	began := time.Now()
	if text := g.refused(api.Unavailable, g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"`+one+`"}`); !strings.Contains(text, "in force") {
		t.Errorf("text: %s", text)
	}
	if time.Since(began) > 30*time.Second { // the default is 45
		t.Errorf("the answer took %v", time.Since(began))
	}
	g.refused(api.Invalid, g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+one+`"}`)
	if a := g.do(g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"`+one+`","sync":false}`); a.Status != 202 {
		t.Errorf("status %d", a.Status)
	}
	// Disabling the mount is in force at once, its path is free, and what is left at the target is told.
	g.refused(api.Unavailable, g.root, lessor.Delete, "sys/mounts/target", "")
	g.refused(api.NotFound, g.root, lessor.Read, "target/creds/app", "")
	g.refused(api.Invalid, g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+two+`"}`)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"kv"}`)
	g.do(g.root, lessor.Update, "target/x", `{"k":"v"}`)
	g.clock.Advance(time.Minute)
	left := g.do(g.root, lessor.Read, "sys/lessor/outlived", "").Data["credentials"].([]any)
	if len(left) != 2 || !strings.HasPrefix(left[0].(map[string]any)["lease_id"].(string), "target/creds/app/") || left[0].(map[string]any)["owner"] != "team-db" {
		t.Errorf("outlived: %v", left)
	}
	if d := g.do(g.root, lessor.Update, "sys/leases/lookup", `{"lease_id":"`+two+`"}`).Data; d["state"] != "revoking" {
		t.Errorf("a lease of a mount under removal: %v", d)
	}
	// Another mount is not held up by it.
	for i := range 8 { // mounts are removed in any order
		other := fmt.Sprintf("other%d", i)
		g.kv2(other)
		g.do(g.root, lessor.Update, other+"/data/x", `{"data":{"k":"v"}}`)
		g.do(g.root, lessor.Delete, "sys/mounts/"+other, "")
	}
	g.eventually("the other mounts are removed", func() bool { return g.removing() == 1 })
	// When the target is back, it all goes.
	g.target.set(false, false)
	g.eventually("the accounts are gone", func() bool { g.clock.Advance(time.Minute); return g.target.count() == 0 })
	g.eventually("the mount is removed", func() bool { return g.removing() == 0 })
	g.do(g.root, lessor.Read, "target/x", "")
}

// removing counts the mounts under removal.
func (g *gate) removing() int {
	g.Helper()
	v, err := g.db.View()
	if err != nil {
		g.Fatal(err)
	}
	defer v.Close()
	n := 0
	for row, err := range v.Scan(store.Mounts, "", "") {
		if err != nil {
			g.Fatal(err)
		}
		if strings.Contains(string(row.Value), "sys/removed/") {
			n++
		}
	}
	return n
}

// rows counts the rows whose name has a mount's UUID.
func (g *gate) rows(uuid string) map[string]int {
	g.Helper()
	v, err := g.db.View()
	if err != nil {
		g.Fatal(err)
	}
	defer v.Close()
	n := map[string]int{}
	for table := store.Mounts; table < store.Batches; table++ {
		for row, err := range v.Scan(table, "", "") {
			if err != nil {
				g.Fatal(err)
			}
			if strings.Contains(row.Name, uuid) {
				n[table.String()]++
			}
		}
	}
	return n
}

func (g *gate) uuid(path string) string {
	g.Helper()
	text := strings.ReplaceAll(g.do(g.root, lessor.Read, "sys/mounts/"+path, "").Data["uuid"].(string), "-", "")
	var raw [16]byte
	if _, err := fmt.Sscanf(text, "%x", (*hexBytes)(&raw)); err != nil {
		g.Fatal(err)
	}
	return string(raw[:])
}

// hexBytes scans hexadecimal digits.
type hexBytes [16]byte

func (h *hexBytes) Scan(state fmt.ScanState, _ rune) error {
	for i := range h {
		var hi, lo rune
		for _, p := range []*rune{&hi, &lo} {
			r, _, err := state.ReadRune()
			if err != nil {
				return err
			}
			*p = rune(strings.IndexRune("0123456789abcdef", r))
		}
		h[i] = byte(hi<<4 | lo)
	}
	return nil
}

func TestRemovalTakesAllOfTheMountAndNothingElse(t *testing.T) {
	g := start(t)
	for _, name := range []string{"gone", "kept"} {
		g.kv2(name)
		for i := range 5 {
			path := fmt.Sprintf("%s/data/app%d", name, i)
			g.do(g.root, lessor.Update, path, `{"data":{"k":"v"}}`)
			g.do(g.root, lessor.Read, path, "")
		}
	}
	gone, kept := g.uuid("gone"), g.uuid("kept")
	before := g.rows(kept)
	if g.rows(gone)["secrets"] != 5 || g.rows(gone)["leases"] != 5 {
		t.Fatalf("rows: %v", g.rows(gone))
	}
	g.do(g.root, lessor.Delete, "sys/mounts/gone", "")
	g.eventually("the mount is removed", func() bool { return len(g.rows(gone)) == 0 })
	if left := g.rows(gone); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if after := g.rows(kept); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the other mount had %v, has %v", before, after)
	}
}

// A leaver: with the entity ends all that it holds.
func TestEntityDeletion(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	login := g.login("userpass", "ann")
	g.policy("all", `path "*" { capabilities = ["read"] }`)
	g.do(g.root, lessor.Update, "identity/entity/id/"+login.Auth.Entity, `{"policies":["all"]}`)
	static := g.do(login.Auth.Token, lessor.Read, "secret/data/app", "").Lease.ID
	g.do(login.Auth.Token, lessor.Read, "target/creds/app", "")
	g.do(g.root, lessor.Delete, "identity/entity/id/"+login.Auth.Entity, "")
	g.refused(api.Unauthenticated, login.Auth.Token, lessor.Read, "secret/data/app", "")
	g.eventually("the account is gone", func() bool { return g.target.count() == 0 })
	g.refused(api.Invalid, g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+static+`"}`)
	g.eventually("the version is an exposure", func() bool {
		return len(g.do(g.root, lessor.Read, "sys/lessor/exposures/secret/app", "").Data["exposures"].([]any)) == 1
	})
	again := g.do(lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`)
	if again.Auth.Entity == login.Auth.Entity {
		t.Error("the entity is back")
	}
	g.refused(api.Denied, again.Auth.Token, lessor.Read, "secret/data/app", "")
}

func TestGroupsAndAliases(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	ann, bob := g.login("userpass", "ann").Auth.Entity, g.login("userpass", "bob").Auth.Entity
	group := func(name, data string) string {
		return g.do(g.root, lessor.Update, "identity/group", `{"name":"`+name+`"`+data+`}`).Data["id"].(string)
	}
	inner := group("inner", `,"policies":["p-inner"],"member_entity_ids":["`+ann+`"]`)
	middle := group("middle", `,"policies":["p-middle"],"member_group_ids":["`+inner+`"]`)
	outer := group("outer", `,"policies":["p-outer"],"member_group_ids":["`+middle+`"]`)
	login := g.do(lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`)
	if got := strings.Join(login.Auth.IdentityPolicies, " "); got != "p-inner p-middle p-outer" {
		t.Errorf("identity policies: %s", got)
	}
	for _, id := range []string{inner, middle, outer} {
		if text := g.refused(api.Invalid, g.root, lessor.Update, "identity/group/id/"+inner, `{"member_group_ids":["`+id+`"]}`); !strings.Contains(text, "cyclic") && id != inner {
			t.Errorf("a cycle: %s", text)
		}
	}
	for _, p := range []string{"root", " Root ", "response-wrapping"} {
		g.refused(api.Invalid, g.root, lessor.Update, "identity/group", `{"name":"x","policies":["`+p+`"]}`)
		g.refused(api.Invalid, g.root, lessor.Update, "identity/entity", `{"name":"x","policies":["`+p+`"]}`)
	}
	g.do(g.root, lessor.Delete, "identity/group/id/"+middle, "")
	d := g.do(g.root, lessor.Read, "identity/entity/id/"+ann, "").Data
	if fmt.Sprint(d["group_ids"]) != "["+inner+"]" {
		t.Errorf("after the middle went: %v", d["group_ids"])
	}
	if d := g.do(g.root, lessor.Read, "identity/group/id/"+outer, "").Data; d["member_group_ids"] != nil {
		t.Errorf("outer: %v", d)
	}
	// An alias moves only to who has none at its mount, and is renamed only to what is free.
	alias := func(entity string) map[string]any {
		return g.do(g.root, lessor.Read, "identity/entity/id/"+entity, "").Data["aliases"].([]any)[0].(map[string]any)
	}
	id := alias(ann)["id"].(string)
	g.refused(api.Invalid, g.root, lessor.Update, "identity/entity-alias/id/"+id, `{"canonical_id":"`+bob+`"}`)
	g.refused(api.Invalid, g.root, lessor.Update, "identity/entity-alias/id/"+id, `{"name":"bob"}`)
	g.do(g.root, lessor.Update, "identity/entity-alias/id/"+id, `{"name":"ann2"}`)
	third := g.do(g.root, lessor.Update, "identity/entity", `{"name":"third","policies":["p-third"]}`).Data["id"].(string)
	g.do(g.root, lessor.Update, "identity/entity-alias/id/"+id, `{"canonical_id":"`+third+`"}`)
	if a := alias(third); a["name"] != "ann2" || a["canonical_id"] != third {
		t.Errorf("moved: %v", a)
	}
	g.do(g.root, lessor.Update, "identity/entity-alias/id/"+id, `{"name":"ann"}`)
	login = g.do(lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`)
	if login.Auth.Entity != third || strings.Join(login.Auth.IdentityPolicies, " ") != "p-third" {
		t.Errorf("login by the moved alias: %+v", login.Auth)
	}
	look := g.do(g.root, lessor.Update, "identity/lookup/entity", `{"alias_name":"ann","alias_mount_accessor":"`+alias(third)["mount_accessor"].(string)+`"}`)
	if look.Data["id"] != third {
		t.Errorf("lookup: %v", look.Data)
	}
}

// Whose token it was that could not be used is on record, but nobody is told.
func TestRecordsOfUnusableTokens(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	login := g.login("userpass", "ann")
	g.do(g.root, lessor.Update, "identity/entity/id/"+login.Auth.Entity, `{"disabled":true}`)
	g.refused(api.Unauthenticated, login.Auth.Token, lessor.Read, "auth/token/lookup-self", "")
	rec := g.last("auth/token/lookup-self")[0]
	if rec.Granted || rec.Accessor != login.Auth.Accessor || rec.Note != "token of a disabled entity" {
		t.Errorf("record: %+v", rec.Record)
	}
	g.do(g.root, lessor.Update, "auth/token/roles/bound", `{"allowed_policies":"default","bound_cidrs":"10.0.0.0/8"}`)
	a := g.do(g.root, lessor.Update, "auth/token/create/bound", `{}`)
	g.refused(api.Unauthenticated, a.Auth.Token, lessor.Read, "auth/token/lookup-self", "")
	if rec := g.last("auth/token/lookup-self")[0]; rec.Accessor != a.Auth.Accessor || !strings.Contains(rec.Note, "address") {
		t.Errorf("record: %+v", rec.Record)
	}
}

// A wrapping token unwraps, and that is all.
func TestWrappingTokensAreGoodForNothingElse(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	wrap := func() *lessor.Wrap {
		op := g.op(g.root, lessor.Read, "secret/data/app", "")
		op.WrapTTL = time.Minute
		a, err := g.core.Handle(t.Context(), op)
		if err != nil {
			t.Fatal(err)
		}
		return a.Wrap
	}
	w := wrap()
	for _, c := range []struct {
		verb lessor.Verb
		path string
	}{
		{lessor.Read, "secret/data/app"}, {lessor.Read, "auth/token/lookup-self"}, {lessor.Update, "auth/token/renew-self"}, {lessor.Update, "auth/token/create"},
		{lessor.Update, "cubbyhole/x"}, {lessor.Read, "cubbyhole/response"}, {lessor.Update, "sys/wrapping/wrap"}, {lessor.Update, "sys/wrapping/rewrap"},
		{lessor.Update, "sys/capabilities-self"}, {lessor.Read, "sys/internal/ui/mounts"},
	} {
		g.refused(api.Denied, w.Token, c.verb, c.path, `{"k":"v"}`)
	}
	// Others may unwrap it for themselves: they become its holders.
	other := g.do(g.root, lessor.Update, "auth/token/create", `{"policies":["default"],"display_name":"other"}`)
	a := g.do(other.Auth.Token, lessor.Update, "sys/wrapping/unwrap", `{"token":"`+w.Token.Reveal()+`"}`)
	if a.Verbatim == nil || !strings.Contains(a.Verbatim.Reveal(), `"k":"v"`) {
		t.Fatalf("unwrapped: %+v", a)
	}
	held := g.do(g.root, lessor.Read, "sys/lessor/holders/secret/app", "").Data["holders"].([]any)
	if len(held) != 1 || held[0].(map[string]any)["display_name"] != "token-other" {
		t.Errorf("holders: %v", held)
	}
	g.refused(api.Invalid, other.Auth.Token, lessor.Update, "sys/wrapping/unwrap", `{"token":"`+w.Token.Reveal()+`"}`)
	// A token that wraps nothing is not unwrapped, and not used up by the attempt.
	g.refused(api.Invalid, g.root, lessor.Update, "sys/wrapping/unwrap", `{"token":"`+other.Auth.Token.Reveal()+`"}`)
	g.refused(api.Invalid, g.root, lessor.Update, "sys/wrapping/unwrap", "")
	g.do(other.Auth.Token, lessor.Read, "auth/token/lookup-self", "")
	// Rewrapping: the old token is worth nothing, the path stays that of the secret.
	w = wrap()
	re := g.do(g.root, lessor.Update, "sys/wrapping/rewrap", `{"token":"`+w.Token.Reveal()+`"}`)
	if re.Wrap == nil || re.Wrap.Path != "secret/data/app" {
		t.Fatalf("rewrapped: %+v", re)
	}
	g.refused(api.Invalid, w.Token, lessor.Update, "sys/wrapping/unwrap", "")
	g.do(re.Wrap.Token, lessor.Update, "sys/wrapping/unwrap", "")
	// What was revoked in its wrapping is not shown; what lay there for long is, and is held for as long.
	w = wrap()
	g.do(g.root, lessor.Update, "sys/leases/revoke-prefix/secret/data/app", "")
	if text := g.refused(api.Invalid, w.Token, lessor.Update, "sys/wrapping/unwrap", ""); !strings.Contains(text, "ask for it anew") {
		t.Errorf("unwrapping what was revoked: %s", text)
	}
	long := g.op(g.root, lessor.Read, "secret/data/app", "")
	long.WrapTTL = 100 * time.Hour
	kept, err := g.core.Handle(t.Context(), long)
	if err != nil {
		t.Fatal(err)
	}
	g.clock.Advance(90 * time.Hour)
	kept = g.do(g.root, lessor.Update, "sys/wrapping/rewrap", `{"token":"`+kept.Wrap.Token.Reveal()+`"}`)
	g.clock.Advance(90 * time.Hour)
	g.do(kept.Wrap.Token, lessor.Update, "sys/wrapping/unwrap", "")
	held = g.do(g.root, lessor.Read, "sys/lessor/holders/secret/app", "").Data["holders"].([]any)
	if len(held) != 1 || held[0].(map[string]any)["display_name"] != "wrapping token" {
		t.Errorf("holders of what lay in a wrapping for long: %v", held)
	}
	long.ID, long.Time = "long", g.op(g.root, lessor.Read, "secret/data/app", "").Time
	if kept, err = g.core.Handle(t.Context(), long); err != nil {
		t.Fatal(err)
	}
	g.do(g.root, lessor.Update, "sys/leases/revoke-prefix/secret/data/app", "")
	g.clock.Advance(90 * time.Hour)
	g.refused(api.Invalid, kept.Wrap.Token, lessor.Update, "sys/wrapping/unwrap", "")
	g.clock.Advance(20 * time.Hour)
	// A lease that clients do not see has its holder, too.
	g.do(g.root, lessor.Update, "sys/mounts/secret/tune", `{"options":{"lease":"quiet"}}`)
	w = wrap()
	g.do(other.Auth.Token, lessor.Update, "sys/wrapping/unwrap", `{"token":"`+w.Token.Reveal()+`"}`)
	held = g.do(g.root, lessor.Read, "sys/lessor/holders/secret/app", "").Data["holders"].([]any)
	if len(held) != 1 || held[0].(map[string]any)["display_name"] != "token-other" {
		t.Errorf("holders of a quiet lease: %v", held)
	}
	g.eventually("what was not unwrapped in time is gone", func() bool { return g.rows(core.SystemMount)["secrets"] == 0 })
	// Revoked by accessor, it opens nothing, and what it wrapped goes.
	w = wrap()
	g.do(g.root, lessor.Update, "auth/token/revoke-accessor", `{"accessor":"`+w.Accessor+`"}`)
	g.refused(api.Invalid, w.Token, lessor.Update, "sys/wrapping/unwrap", "")
	if n := g.rows(core.SystemMount)["secrets"]; n != 0 {
		t.Errorf("%d wrapped answers are left", n)
	}
	if a := g.do(g.root, lessor.Update, "auth/token/revoke-accessor", `{"accessor":"`+w.Accessor+`"}`); len(a.Warnings) != 1 {
		t.Errorf("revoking it again: %+v", a)
	}
}

func TestCubbyholesAreEachTokensOwn(t *testing.T) {
	g := start(t)
	one, two := g.token(`{"policies":["default"]}`), g.token(`{"policies":["default"]}`)
	g.do(one, lessor.Update, "cubbyhole/x", `{"k":"one"}`)
	g.refused(api.NotFound, two, lessor.Read, "cubbyhole/x", "")
	g.refused(api.NotFound, g.root, lessor.Read, "cubbyhole/x", "")
	g.refused(api.NotFound, g.root, lessor.List, "cubbyhole/", "")
	g.do(two, lessor.Delete, "cubbyhole/x", "")
	g.do(one, lessor.Read, "cubbyhole/x", "")
	g.do(one, lessor.Update, "auth/token/revoke-self", "")
	if n := g.rows(core.CubbyholeMount)["secrets"]; n != 0 {
		t.Errorf("%d values outlived their token", n)
	}
}

func TestOwnersOfSecretsRolesAndTokens(t *testing.T) {
	g := start(t, func(o *core.Options) { o.RequireOwner = true })
	g.do(g.root, lessor.Update, "sys/mounts/secret", `{"type":"kv","options":{"version":"2"},"owner":"platform"}`)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target","owner":"dba"}`)
	g.do(g.root, lessor.Update, "sys/auth/approle", `{"type":"approle","owner":"sre"}`)
	owns := func(path string) string {
		return fmt.Sprint(g.do(g.root, lessor.Read, "sys/lessor/owners/"+path, "").Data["owner"])
	}
	// Set by either spelling, it holds for both, and for the leases.
	g.do(g.root, lessor.Update, "sys/lessor/owners/secret/team", `{"owner":"ann"}`)
	g.do(g.root, lessor.Update, "sys/lessor/owners/secret/data/other", `{"owner":"bob"}`)
	for path, want := range map[string]string{
		"secret/team": "ann", "secret/data/team": "ann", "secret/metadata/team/app": "ann", "secret/team/app": "ann", "secret/other/x": "bob", "secret/data/other": "bob",
		"secret/data": "platform", "secret/else": "platform", "secret": "platform", "target/creds/app": "dba",
	} {
		if got := owns(path); got != want {
			t.Errorf("%s is owned by %s, want %s", path, got, want)
		}
	}
	g.do(g.root, lessor.Update, "sys/lessor/owners/target/roles/app", `{"owner":"carol"}`)
	g.do(g.root, lessor.Update, "secret/data/team/app", `{"data":{"k":"v"}}`)
	for path, want := range map[string]string{"secret/data/team/app": "ann", "target/creds/app": "carol", "target/creds/else": "dba"} {
		id := g.do(g.root, lessor.Read, path, "").Lease.ID
		if d := g.do(g.root, lessor.Update, "sys/leases/lookup", `{"lease_id":"`+id+`"}`).Data; d["owner"] != want {
			t.Errorf("lease on %s is owned by %v, want %s", path, d["owner"], want)
		}
	}
	g.do(g.root, lessor.Update, "auth/approle/role/app", `{"token_policies":"default","bind_secret_id":false,"token_bound_cidrs":"127.0.0.0/8"}`)
	g.do(g.root, lessor.Update, "sys/lessor/owners/auth/approle/role/app", `{"owner":"dora"}`)
	id := g.do(g.root, lessor.Read, "auth/approle/role/app/role-id", "").Data["role_id"]
	login := g.do(lessor.Secret{}, lessor.Update, "auth/approle/login", fmt.Sprintf(`{"role_id":%q}`, id))
	if d := g.do(login.Auth.Token, lessor.Read, "auth/token/lookup-self", "").Data; d["owner"] != "dora" {
		t.Errorf("token's owner: %v", d["owner"])
	}
	g.do(g.root, lessor.Update, "sys/lessor/revoke", `{"by":"owner","value":"dora"}`)
	g.refused(api.Unauthenticated, login.Auth.Token, lessor.Read, "auth/token/lookup-self", "")
	g.do(g.root, lessor.Delete, "sys/lessor/owners/secret/other", "")
	if got := owns("secret/data/other"); got != "platform" {
		t.Errorf("after it was unset: %s", got)
	}
	// Without an owner nothing is created: the mount's own is taken away.
	g.do(g.root, lessor.Update, "sys/mounts/secret/tune", `{"owner":""}`)
	g.refused(api.Invalid, g.root, lessor.Update, "secret/data/new", `{"data":{"k":"v"}}`)
	g.do(g.root, lessor.Update, "secret/data/team/new", `{"data":{"k":"v"}}`)
	g.do(g.root, lessor.Update, "secret/data/team/app", `{"data":{"k":"w"}}`)
	g.do(g.root, lessor.Update, "sys/auth/approle/tune", `{"owner":""}`)
	g.refused(api.Invalid, g.root, lessor.Update, "auth/approle/role/new", `{}`)
}

// A restored copy touches nothing, and says so instead of letting people wait.
func TestRevocationOnAFencedCopy(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	id := g.do(g.root, lessor.Read, "target/creds/app", "").Lease.ID
	if _, err := g.db.Commit(context.Background(), store.Txn{Puts: []store.Put{{Key: store.Fenced, Value: []byte("now")}}}); err != nil {
		t.Fatal(err)
	}
	g.refused(api.Unavailable, g.root, lessor.Read, "target/creds/app", "")
	g.refused(api.Unavailable, g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+id+`"}`)
	a := g.do(g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"`+id+`"}`)
	if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "restored copy") {
		t.Errorf("answer: %+v", a)
	}
	if g.target.count() != 1 {
		t.Error("a copy touched the target")
	}
	g.do(g.root, lessor.Delete, "sys/lessor/fence", "")
	g.eventually("it is gone once resumed", func() bool { return g.target.count() == 0 })
}

// What clients are answered, where they look closely.
func TestShapesThatClientsRead(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.policy("app", `path "secret/data/app" { capabilities = ["read"] }`)
	app := g.token(`{"policies":["app","default"]}`)
	d := g.do(app, lessor.Read, "sys/internal/ui/mounts/secret/data/app", "").Data
	if d["path"] != "secret/" || d["type"] != "kv" || fmt.Sprint(d["options"]) != "map[version:2]" {
		t.Errorf("preflight: %v", d)
	}
	for _, path := range []string{"nowhere", "target/x"} {
		if text := g.refused(api.Denied, app, lessor.Read, "sys/internal/ui/mounts/"+path, ""); !strings.Contains(text, "preflight capability check returned 403") {
			t.Errorf("preflight of %s: %s", path, text)
		}
	}
	stranger := g.token(`{"policies":["default"]}`)
	known := g.refused(api.Denied, stranger, lessor.Read, "sys/internal/ui/mounts/secret/x", "")
	unknown := g.refused(api.Denied, stranger, lessor.Read, "sys/internal/ui/mounts/nowhere/x", "")
	if strings.ReplaceAll(known, "secret", "nowhere") != unknown {
		t.Errorf("a stranger can tell a mount from none: %q, %q", known, unknown)
	}
	d = g.do(app, lessor.Read, "sys/internal/ui/resultant-acl", "").Data
	exact := d["exact_paths"].(map[string]any)
	if d["root"] != false || fmt.Sprint(exact["secret/data/app"]) != "map[capabilities:[read]]" || fmt.Sprint(d["glob_paths"].(map[string]any)["cubbyhole/"]) == "<nil>" {
		t.Errorf("resultant ACL: %v", d)
	}
	a := g.do(app, lessor.Update, "sys/capabilities-self", `{"paths":["secret/data/app"]}`)
	if fmt.Sprint(a.Data["capabilities"]) != "[read]" || fmt.Sprint(a.Data["secret/data/app"]) != "[read]" || !a.Flat {
		t.Errorf("capabilities: %+v", a)
	}
	a = g.do(g.root, lessor.Update, "sys/capabilities", `{"paths":["secret/data/app","x"],"token":"`+app.Reveal()+`"}`)
	if fmt.Sprint(a.Data["x"]) != "[deny]" || a.Data["capabilities"] != nil {
		t.Errorf("capabilities: %+v", a)
	}
	if d := g.do(g.root, lessor.Read, "sys/policies/acl/app", "").Data; len(d) != 2 || d["name"] != "app" || d["policy"] == "" {
		t.Errorf("policy: %v", d)
	}
	if a := g.do(g.root, lessor.Read, "sys/policy/app", ""); len(a.Data) != 2 || a.Data["rules"] == "" || !a.Flat {
		t.Errorf("policy by its older path: %+v", a)
	}
	g.do(g.root, lessor.Update, "sys/policy/old", `{"rules":"path \"x\" { policy = \"read\" }"}`)
	info := g.do(g.root, lessor.List, "sys/policies/acl/", "").Data["key_info"].(map[string]any)
	if info["old"].(map[string]any)["version"].(uint64) == 0 {
		t.Errorf("versions of policies: %v", info)
	}
	g.do(g.root, lessor.Update, "sys/mounts/secret/tune", `{"default_lease_ttl":"1h","max_lease_ttl":7200,"allowed_response_headers":["A","B"],"description":"d","options":{"lease":"quiet"}}`)
	d = g.do(g.root, lessor.Read, "sys/mounts/secret/tune", "").Data
	if d["default_lease_ttl"] != int64(3600) || d["max_lease_ttl"] != int64(7200) || fmt.Sprint(d["allowed_response_headers"]) != "[A B]" || d["description"] != "d" || fmt.Sprint(d["options"]) != "map[lease:quiet version:2]" {
		t.Errorf("tune: %v", d)
	}
	g.refused(api.Invalid, g.root, lessor.Update, "sys/mounts/secret/tune", `{"default_lease_ttl":"3h"}`)
	g.refused(api.Invalid, g.root, lessor.Update, "sys/mounts/secret/tune", `{"options":{"version":"1"}}`)
	g.refused(api.Invalid, g.root, lessor.Update, "sys/mounts/secret/tune", `{"options":{"lease":"loud"}}`)
	for _, c := range []struct {
		kind             api.Kind
		verb             lessor.Verb
		path, data, text string
	}{
		{api.Invalid, lessor.Read, "sys/mounts/none", "", "No secret engine mount at none/"},
		{api.Invalid, lessor.Read, "sys/auth/none", "", "No auth engine at none/"},
		{api.Invalid, lessor.Update, "sys/mounts/secret", `{"type":"kv"}`, "path is already in use at secret/"},
		{api.Invalid, lessor.Update, "sys/mounts/secret/below", `{"type":"kv"}`, "path is already in use at secret/"},
		{api.Invalid, lessor.Update, "auth/token/lookup-accessor", `{"accessor":"none"}`, "invalid accessor"},
		{api.Denied, lessor.Update, "auth/token/lookup", `{"token":"none"}`, "bad token"},
		{api.Invalid, lessor.Update, "auth/token/renew", `{"token":"none"}`, "token not found"},
		{api.Invalid, lessor.Update, "auth/token/renew-self", "", "lease is not renewable"},
		{api.Invalid, lessor.Update, "sys/leases/lookup", `{"lease_id":"none"}`, "invalid lease"},
		{api.Invalid, lessor.Update, "sys/leases/renew", `{"lease_id":"none"}`, "lease not found"},
		{api.Invalid, lessor.Update, "sys/wrapping/unwrap", `{"token":"none"}`, "wrapping token is not valid or does not exist"},
		{api.Invalid, lessor.Update, "sys/wrapping/wrap", `{"k":"v"}`, "endpoint requires response wrapping to be used"},
		{api.NotFound, lessor.Read, "nowhere/x", "", `no handler for route "nowhere/x". route entry not found.`},
		{api.NotFound, lessor.Read, "sys/none/x", "", `unsupported path: the system engine at "sys/" has no "none/x"`},
		{api.Unsupported, lessor.Delete, "auth/token/create", "", "unsupported operation"},
		{api.NotFound, lessor.List, "identity/entity/id/", "", ""},
		{api.Invalid, lessor.Update, "sys/policies/acl/root", `{"policy":"path \"x\" {}"}`, `cannot update "root" policy`},
		{api.Invalid, lessor.Delete, "sys/policies/acl/default", "", `cannot delete default policy`},
	} {
		if text := g.refused(c.kind, g.root, c.verb, c.path, c.data); !strings.Contains(text, c.text) {
			t.Errorf("%s %s: %q, want %q", c.verb, c.path, text, c.text)
		}
	}
	g.do(g.root, lessor.Update, "auth/token/revoke", `{"token":"none"}`)
}

// accessorOf is that of the token which was made with a display name.
func (g *gate) accessorOf(name string) string {
	g.Helper()
	for _, a := range g.do(g.root, lessor.List, "auth/token/accessors/", "").Data["keys"].([]string) {
		if d := g.do(g.root, lessor.Update, "auth/token/lookup-accessor", `{"accessor":"`+a+`"}`).Data; d["display_name"] == "token-"+name {
			return a
		}
	}
	g.Fatalf("no token is named %s", name)
	return ""
}

// A target is tried once for an operation, however often the ground moves meanwhile, and what came of it is on record whoever leaves.
func TestTrials(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	ended := func(phases, kind string) {
		t.Helper()
		var got []string
		records := g.last("target/settings/x")
		for i := range min(2, len(records)) {
			got = append(got, string(records[i].Phase))
		}
		if fmt.Sprint(got) != phases || records[0].ErrorKind != kind {
			t.Errorf("on record %v, %q, want %s, %q", got, records[0].ErrorKind, phases, kind)
		}
	}

	var n int
	g.target.trial = func() { n++; g.policy(fmt.Sprint("other", n), `path "x" {}`) }
	a := g.do(g.root, lessor.Update, "target/settings/x", "")
	if g.target.trials != 1 || len(a.Warnings) != 1 || a.Warnings[0] != "it was tried" {
		t.Errorf("tried %d times, warnings %q", g.target.trials, a.Warnings)
	}
	ended("[outcome begun]", "")
	if n := len(g.last("target/settings/x")); n != 2 {
		t.Errorf("%d records", n)
	}

	g.target.trial = func() { // somebody else changes what it is about
		g.target.trial = nil
		g.do(g.root, lessor.Update, "target/settings/x", "")
	}
	g.do(g.root, lessor.Update, "target/settings/x", "")
	if g.target.trials != 4 {
		t.Errorf("tried %d times, want 4: another's, and again for what he left", g.target.trials)
	}

	g.target.trial = nil
	g.target.set(true, false)
	g.refused(api.Upstream, g.root, lessor.Update, "target/settings/x", "")
	ended("[outcome begun]", "upstream")
	g.target.set(false, false)

	ctx, leave := context.WithCancel(t.Context())
	g.target.trial = leave
	if _, err := g.core.Handle(ctx, g.op(g.root, lessor.Update, "target/settings/x", "")); err != nil {
		t.Errorf("who left is told %v", err)
	}
	ended("[outcome begun]", "")
}

// A token that became an orphan while its credential was made has it.
func TestOrphanedWhileItIsMade(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	parent := g.token(`{"policies":["root"]}`)
	child := g.do(parent, lessor.Update, "auth/token/create", `{"policies":["root"]}`).Auth.Token
	g.target.during = func(*lease.Lease) {
		g.do(g.root, lessor.Update, "auth/token/revoke-orphan", `{"token":"`+parent.Reveal()+`"}`)
	}
	g.do(child, lessor.Read, "target/creds/app", "")
}

// Wide revocations that do not concern a credential, however many, do not keep it from being handed out.
func TestRevocationsElsewhere(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	made := make(chan struct{})
	var others, makers sync.WaitGroup
	others.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-made:
				return
			default:
				if _, err := g.try(g.root, lessor.Update, "sys/lessor/revoke", fmt.Sprintf(`{"by":"prefix","value":"target/nothing/%d","sync":false}`, n)); err != nil {
					t.Errorf("revocation %d: %v", n, err)
				}
			}
		}
	})
	for range 4 {
		makers.Go(func() {
			for range 50 {
				if _, err := g.try(g.root, lessor.Read, "target/creds/app", ""); err != nil {
					t.Errorf("a credential: %v", err)
				}
			}
		})
	}
	makers.Wait()
	close(made)
	others.Wait()
}

// What is revoked while its target is still making it is not handed out, and that is on record.
func TestRevokedWhileItIsMade(t *testing.T) {
	for name, revoke := range map[string]func(*gate, string){
		"its lease": func(g *gate, id string) {
			g.do(g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"`+id+`","sync":false}`)
		},
		"its prefix": func(g *gate, id string) {
			g.refused(api.Unavailable, g.root, lessor.Update, "sys/leases/revoke-prefix/target/creds", "") // in force; it may still land
		},
		"its mount": func(g *gate, id string) {
			g.refused(api.Unavailable, g.root, lessor.Delete, "sys/mounts/target", "")
		},
		"all of its owner's": func(g *gate, _ string) {
			g.do(g.root, lessor.Update, "sys/lessor/revoke", `{"by":"owner","value":"somebody","sync":false}`)
		},
		"its token": func(g *gate, _ string) {
			g.do(g.root, lessor.Update, "sys/lessor/revoke", `{"by":"token","value":"`+g.accessorOf("child")+`","sync":false}`)
		},
		"its token's parent": func(g *gate, _ string) {
			g.do(g.root, lessor.Update, "sys/lessor/revoke", `{"by":"token","value":"`+g.accessorOf("parent")+`","sync":false}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := start(t, func(o *core.Options) { o.Patience = 100 * time.Millisecond })
			g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target","owner":"somebody"}`)
			parent := g.token(`{"policies":["root"],"display_name":"parent"}`)
			child := g.do(parent, lessor.Update, "auth/token/create", `{"policies":["root"],"display_name":"child"}`).Auth.Token
			batch := g.do(parent, lessor.Update, "auth/token/create", `{"type":"batch","policies":["creds"]}`).Auth.Token
			g.policy("creds", `path "target/creds/*" { capabilities = ["read"] }`)
			g.do(g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"`+g.do(batch, lessor.Read, "target/creds/app", "").Lease.ID+`","sync":false}`)
			g.eventually("the first account is gone", func() bool { return g.target.count() == 0 })
			g.target.during = func(l *lease.Lease) {
				revoke(g, l.ID)
			}
			g.refused(api.Upstream, child, lessor.Read, "target/creds/app", "")
			recs := g.last("target/creds/app")
			outcomes := 0
			for _, r := range recs {
				if r.Phase == "outcome" && r.System == "" && r.ErrorKind != "" && len(r.Secrets) == 0 {
					outcomes++
				}
			}
			if outcomes != 1 {
				t.Errorf("%d outcomes are on record: %+v", outcomes, recs)
			}
			g.eventually("the account is gone", func() bool { g.clock.Advance(time.Minute); return g.target.count() == 0 })
		})
	}
}

// What is taken from somebody is taken when that is answered: an operation that was decided before, and commits after, does not.
func TestOldStandingCommitsNothing(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	const rule = `path "target/*" { capabilities = ["create", "read", "update"] }`
	for name, c := range map[string]struct {
		token string // what the token is made with besides its policy; "login": it is a login's
		take  func(token, parent lessor.Secret, auth *lessor.Auth)
	}{
		"the token": {"", func(token, _ lessor.Secret, _ *lessor.Auth) {
			g.do(g.root, lessor.Update, "auth/token/revoke", `{"token":"`+token.Reveal()+`"}`)
		}},
		"its parent": {"", func(_, parent lessor.Secret, _ *lessor.Auth) {
			g.do(g.root, lessor.Update, "auth/token/revoke", `{"token":"`+parent.Reveal()+`"}`)
		}},
		"the parent of a batch token": {`,"type":"batch"`, func(_, parent lessor.Secret, _ *lessor.Auth) {
			g.do(g.root, lessor.Update, "auth/token/revoke", `{"token":"`+parent.Reveal()+`"}`)
		}},
		"the policy": {"", func(lessor.Secret, lessor.Secret, *lessor.Auth) { g.policy("noter", `path "x" {}`) }},
		"the policy's being": {"", func(lessor.Secret, lessor.Secret, *lessor.Auth) {
			g.do(g.root, lessor.Delete, "sys/policies/acl/noter", "")
		}},
		"the mount": {"", func(lessor.Secret, lessor.Secret, *lessor.Auth) {
			g.do(g.root, lessor.Update, "sys/remount", `{"from":"target","to":"elsewhere"}`)
		}},
		"the last use": {`,"num_uses":1`, func(token, _ lessor.Secret, _ *lessor.Auth) {
			_, _ = g.try(token, lessor.Read, "target/notes/none", "")
		}},
		"tokens of a path": {"", func(lessor.Secret, lessor.Secret, *lessor.Auth) {
			g.do(g.root, lessor.Update, "sys/lessor/revoke", `{"by":"prefix","value":"auth/token/create","sync":false}`)
		}},
		"tokens of an owner": {"", func(lessor.Secret, lessor.Secret, *lessor.Auth) {
			g.do(g.root, lessor.Update, "sys/lessor/revoke", `{"by":"owner","value":"noters","sync":false}`)
		}},
		"batch tokens of an owner": {`,"type":"batch"`, func(lessor.Secret, lessor.Secret, *lessor.Auth) {
			g.do(g.root, lessor.Update, "sys/lessor/revoke", `{"by":"owner","value":"noters","sync":false}`)
		}},
		"the method": {"login", func(lessor.Secret, lessor.Secret, *lessor.Auth) { g.do(g.root, lessor.Delete, "sys/auth/userpass", "") }},
		"all that somebody holds": {"login", func(_, _ lessor.Secret, a *lessor.Auth) {
			g.do(g.root, lessor.Update, "sys/lessor/revoke", `{"by":"holder","value":"`+a.Entity+`","sync":false}`)
		}},
		"the entity's being": {"login", func(_, _ lessor.Secret, a *lessor.Auth) {
			g.do(g.root, lessor.Delete, "identity/entity/id/"+a.Entity, "")
		}},
		"the entity's leave": {"login", func(_, _ lessor.Secret, a *lessor.Auth) {
			g.do(g.root, lessor.Update, "identity/entity/id/"+a.Entity, `{"disabled":true}`)
		}},
		"the entity's policies": {"login", func(_, _ lessor.Secret, a *lessor.Auth) {
			g.do(g.root, lessor.Update, "identity/entity/id/"+a.Entity, `{"policies":[]}`)
		}},
		"by a group that denies": {"login", func(_, _ lessor.Secret, a *lessor.Auth) {
			g.policy("denier", `path "target/notes/by-a-group-that-denies" { capabilities = ["deny"] }`)
			g.do(g.root, lessor.Update, "identity/group", `{"policies":["denier"],"member_entity_ids":["`+a.Entity+`"]}`)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g.policy("noter", rule)
			g.policy("maker", `path "auth/token/create" { capabilities = ["update", "sudo"] }`)
			g.do(g.root, lessor.Update, "sys/lessor/owners/auth/token", `{"owner":"noters"}`)
			parent := g.token(`{"policies":["maker"]}`)
			var auth *lessor.Auth
			if c.token == "login" {
				_, _ = g.try(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
				auth = g.login("userpass", strings.NewReplacer(" ", "-", "'", "").Replace(name)).Auth // somebody new each time
				g.do(g.root, lessor.Update, "identity/entity/id/"+auth.Entity, `{"policies":["noter"]}`)
			} else {
				auth = g.do(parent, lessor.Update, "auth/token/create", `{"policies":["noter"]`+c.token+`}`).Auth
			}
			note := "target/notes/" + strings.ReplaceAll(name, " ", "-")
			taken := false
			g.target.meanwhile = func() { taken = true; c.take(auth.Token, parent, auth) }
			_, err := g.try(auth.Token, lessor.Update, note, "")
			if !taken {
				t.Fatalf("it was not even decided: %v", err)
			}
			switch kind := api.KindOf(err); {
			case err == nil:
				t.Error("it committed")
			case kind != api.Denied && kind != api.Unauthenticated && (kind != api.NotFound || name != "the mount"):
				t.Errorf("refused by %v", err)
			}
			if name == "the mount" {
				g.do(g.root, lessor.Update, "sys/remount", `{"from":"elsewhere","to":"target"}`)
			}
			if d := g.do(g.root, lessor.Read, note, "").Data; d["kept"] != false {
				t.Error("what it wrote is there")
			}
		})
	}
}
