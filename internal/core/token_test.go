package core_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/lessor"
)

func (g *gate) self(token lessor.Secret) map[string]any {
	g.Helper()
	return g.do(token, lessor.Read, "auth/token/lookup-self", "").Data
}

func (g *gate) warns(want string, a *lessor.Answer) {
	g.Helper()
	if got := strings.Join(a.Warnings, "; "); (got == "") != (want == "") || !strings.Contains(got, want) {
		g.Errorf("warnings %q, want %q", got, want)
	}
}

func TestTokenRoles(t *testing.T) {
	g := start(t)
	g.policy("p1", `path "x" { capabilities = ["read"] }`)
	g.write("auth/token/roles/Plain", `{"allowed_policies":"p1"}`)
	d := g.show("auth/token/roles/plain")
	want := "allowed_entity_aliases allowed_policies allowed_policies_glob disallowed_policies disallowed_policies_glob explicit_max_ttl name orphan path_suffix period renewable token_explicit_max_ttl token_no_default_policy token_period token_type"
	if got := keysOf(d); got != want {
		t.Errorf("keys %s\nwant %s", got, want)
	}
	if d["name"] != "Plain" || d["token_type"] != "default-service" || d["renewable"] != true || d["allowed_entity_aliases"].([]string) != nil {
		t.Errorf("role: %v", d)
	}
	if keys := g.do(g.root, lessor.List, "auth/token/roles/", "").Data["keys"]; fmt.Sprint(keys) != "[Plain]" {
		t.Errorf("list: %v", keys)
	}
	// Written by older names, shown by both.
	g.write("auth/token/roles/old", `{"period":"1h","explicit_max_ttl":"3h","bound_cidrs":["127.0.0.1/32"]}`)
	if d := g.show("auth/token/roles/old"); fmt.Sprint(d["period"], d["token_period"], d["explicit_max_ttl"], d["token_explicit_max_ttl"], d["bound_cidrs"], d["token_bound_cidrs"]) !=
		"3600 3600 10800 10800 [127.0.0.1] [127.0.0.1]" {
		t.Errorf("older names: %v", d)
	}
	g.warns("Both 'token_period' and deprecated 'period' value supplied", g.do(g.root, lessor.Update, "auth/token/roles/old", `{"period":"1h","token_period":"2h"}`))
	g.warns("Given explicit max TTL", g.do(g.root, lessor.Update, "auth/token/roles/long", `{"token_explicit_max_ttl":"9000h"}`))
	for data, text := range map[string]string{
		`{"token_type":"batch"}`:                                                               "'token_type' cannot be 'batch' when role is set to generate non-orphan tokens",
		`{"token_type":"batch","orphan":true}`:                                                 "renewable tokens",
		`{"token_type":"batch","orphan":true,"token_period":"1h"}`:                             "periodic tokens",
		`{"token_type":"batch","orphan":true,"renewable":false,"token_explicit_max_ttl":"1h"}`: "explicit max TTL",
		`{"token_type":"strange"}`:                                                             "invalid 'token_type' value",
		`{"path_suffix":"a/../b"}`:                                                             "path cannot contain parent references",
		`{"path_suffix":"a/b"}`:                                                                "invalid characters",
		`{"token_bound_cidrs":["zz"]}`:                                                         "zz",
		`{"token_num_uses":-1}`:                                                                "cannot be negative",
	} {
		if got := g.refused(api.Invalid, g.root, lessor.Update, "auth/token/roles/bad", data); !strings.Contains(got, text) {
			t.Errorf("%s: %s", data, got)
		}
	}
	g.write("auth/token/roles/batch", `{"token_type":"batch","orphan":true,"renewable":false,"allowed_policies":"p1"}`)
	if a := g.do(g.root, lessor.Update, "auth/token/create/batch", `{"ttl":"1h"}`).Auth; a.Kind != lessor.Batch || a.Duration != time.Hour {
		t.Errorf("batch token: %+v", a)
	}
	g.write("auth/token/roles/tight", `{"allowed_policies":"p1","orphan":true,"renewable":false,"path_suffix":"v1","token_explicit_max_ttl":"2h","token_num_uses":3}`)
	a := g.do(g.root, lessor.Update, "auth/token/create/tight", `{"explicit_max_ttl":"3h","num_uses":9}`)
	g.warns("Explicit max TTL specified both during creation call and in role; using the lesser value of 7200 seconds", a)
	if d := g.self(a.Auth.Token); d["path"] != "auth/token/create/tight/v1" || d["role"] != "tight" || d["orphan"] != true || d["renewable"] != false || d["ttl"] != int64(7200) || d["num_uses"] != 3 {
		t.Errorf("token of a role: %v", d)
	}
	g.do(g.root, lessor.Delete, "auth/token/roles/PLAIN", "")
	g.refused(api.NotFound, g.root, lessor.Read, "auth/token/roles/Plain", "")
}

func TestTokenWarnings(t *testing.T) {
	g := start(t)
	g.warns(`TTL of "10000h" exceeded the effective max_ttl of "768h"`, g.do(g.root, lessor.Update, "auth/token/create", `{"policies":["default"],"ttl":"10000h"}`))
	g.warns(`period of "10000h" exceeded the effective max_ttl of "768h"`, g.do(g.root, lessor.Update, "auth/token/create", `{"policies":["default"],"period":"10000h"}`))
	g.warns(`Policy "nosuch" does not exist`, g.do(g.root, lessor.Update, "auth/token/create", `{"policies":["default","nosuch"]}`))
	g.warns("", g.do(g.root, lessor.Update, "auth/token/create", `{"policies":["default"]}`))
	// A root token may be limited too.
	a := g.do(g.root, lessor.Update, "auth/token/create", `{"explicit_max_ttl":"100h"}`)
	if d := g.self(a.Auth.Token); d["ttl"] != int64(360000) || fmt.Sprint(d["policies"]) != "[root]" {
		t.Errorf("root token with an end: %v", d)
	}
	for data, text := range map[string]string{
		`{"type":"batch","num_uses":1,"policies":"x"}`: `batch tokens cannot have "num_uses" set`, `{"type":"batch","period":"1h"}`: `"period"`,
		`{"type":"batch","explicit_max_ttl":"1h"}`: `"explicit_max_ttl"`, `{"id":"hvs.abcdefgh"}`: "cannot have the 'hvs.' prefix", `{"id":"ab.cdefgh"}`: "cannot have a '.' in the value",
		`{"policies":"response-wrapping"}`: `cannot assign policy "response-wrapping"`,
	} {
		if got := g.refused(api.Invalid, g.root, lessor.Update, "auth/token/create", data); !strings.Contains(got, text) {
			t.Errorf("%s: %s", data, got)
		}
	}
	if d := g.self(g.token(`{"display_name":"a b!"}`)); d["display_name"] != "token-a-b" {
		t.Errorf("display name %v", d["display_name"])
	}
}

// A role's entity_alias gives tokens an entity, made when it is first named.
func TestEntityAliasOfTokens(t *testing.T) {
	g := start(t)
	g.write("auth/token/roles/ci", `{"allowed_policies":"default","allowed_entity_aliases":"build-*,deploy"}`)
	create := func(alias string) *lessor.Auth {
		g.Helper()
		return g.do(g.root, lessor.Update, "auth/token/create/ci", `{"entity_alias":"`+alias+`"}`).Auth
	}
	a, b, c := create("Build-1"), create("build-1"), create("deploy")
	if a.Entity == "" || a.Entity != b.Entity || a.Entity == c.Entity {
		t.Errorf("entities %s %s %s", a.Entity, b.Entity, c.Entity)
	}
	g.refused(api.Invalid, g.root, lessor.Update, "auth/token/create/ci", `{"entity_alias":"other"}`)
	g.write("identity/entity/id/"+a.Entity, `{"policies":"p1"}`)
	if a := create("build-1"); strings.Join(a.IdentityPolicies, " ") != "p1" || strings.Join(a.Policies, " ") != "default p1" {
		t.Errorf("policies: %+v", a)
	}
	g.self(a.Token)
	if rec := g.last("auth/token/lookup-self"); rec[0].Entity != a.Entity || rec[0].Alias != "Build-1" {
		t.Errorf("record: %+v", rec[0].Record)
	}
	g.write("identity/entity/id/"+a.Entity, `{"disabled":true}`)
	g.refused(api.Denied, g.root, lessor.Update, "auth/token/create/ci", `{"entity_alias":"build-1"}`)
}

// A renewal asks the method that gave the token: who is gone, or has other policies now, is not renewed; other terms count from then on.
func TestRenewalsAskTheMethod(t *testing.T) {
	g := start(t, func(o *core.Options) { o.MaxTTL = 100 * time.Hour })
	g.write("sys/auth/userpass", `{"type":"userpass"}`)
	g.write("sys/auth/approle", `{"type":"approle"}`)
	renew := func(tok lessor.Secret) time.Duration {
		g.Helper()
		return g.do(tok, lessor.Update, "auth/token/renew-self", `{}`).Auth.Duration
	}
	refused := func(text string, tok lessor.Secret) {
		g.Helper()
		if got := g.refused(api.Invalid, tok, lessor.Update, "auth/token/renew-self", `{}`); !strings.Contains(got, text) {
			t.Errorf("refusal: %s", got)
		}
		g.self(tok) // it lives on until its end
	}
	ann := g.login("userpass", "Ann").Auth.Token
	g.write("auth/userpass/users/ann", `{"token_ttl":"2h","token_max_ttl":"5h"}`)
	if got := renew(ann); got != 2*time.Hour {
		t.Errorf("renewed to %v by the user's new ttl", got)
	}
	g.clock.Advance(time.Hour)
	if a := g.do(ann, lessor.Update, "auth/token/renew-self", `{"increment":"50h"}`); a.Auth.Duration != 4*time.Hour {
		t.Errorf("renewed to %v beyond the user's new maximum", a.Auth.Duration)
	} else {
		g.warns(`TTL of "50h" exceeded the effective max_ttl of "4h"`, a)
	}
	g.write("auth/userpass/users/ann", `{"token_policies":"DEFAULT"}`)
	renew(ann)
	g.write("auth/userpass/users/ann/policies", `{"policies":"other"}`)
	refused("policies have changed, not renewing", ann)
	g.write("auth/userpass/users/ann/policies", `{"policies":""}`)
	renew(ann)
	g.do(g.root, lessor.Delete, "auth/userpass/users/ann", "")
	refused("does not exist any more", ann)

	g.write("auth/approle/role/app", `{"token_ttl":"1h","token_policies":"a"}`)
	role := g.show("auth/approle/role/app/role-id")["role_id"].(string)
	secret := g.do(g.root, lessor.Update, "auth/approle/role/app/secret-id", `{}`).Data["secret_id"].(lessor.Secret).Reveal()
	app := g.do(lessor.Secret{}, lessor.Update, "auth/approle/login", `{"role_id":"`+role+`","secret_id":"`+secret+`"}`).Auth.Token
	g.write("auth/approle/role/app", `{"token_period":"30m","token_policies":"b"}`)
	if got := renew(app); got != 30*time.Minute {
		t.Errorf("renewed to %v by the role's new period", got)
	}
	g.do(g.root, lessor.Delete, "auth/approle/role/app", "")
	refused(`role "app" does not exist during renewal`, app)

	g.write("auth/token/roles/r", `{"token_period":"1h"}`)
	tok := g.do(g.root, lessor.Update, "auth/token/create/r", `{"policies":["default"]}`).Auth.Token
	g.write("auth/token/roles/r", `{"token_period":"2h"}`)
	if got := renew(tok); got != 2*time.Hour {
		t.Errorf("renewed to %v by the token role's new period", got)
	}
	g.do(g.root, lessor.Delete, "auth/token/roles/r", "")
	refused(`original token role "r" could not be found, not renewing`, tok)

	// The end that a token was given stays, whatever its role says of others; a role may bring it nearer.
	g.write("auth/token/roles/e", `{"token_period":"2h"}`)
	ends := g.do(g.root, lessor.Update, "auth/token/create/e", `{"policies":["default"],"explicit_max_ttl":"5h"}`).Auth.Token
	g.clock.Advance(90 * time.Minute)
	renew(ends)
	g.clock.Advance(110 * time.Minute)
	if got := renew(ends); got != 100*time.Minute {
		t.Errorf("renewed to %v, its explicit end is in 100m", got)
	}
	g.write("auth/token/roles/e", `{"token_explicit_max_ttl":"4h"}`)
	if got := renew(ends); got != 40*time.Minute {
		t.Errorf("renewed to %v, the role's explicit end is in 40m", got)
	}
	g.write("auth/token/roles/e", `{"token_explicit_max_ttl":"90h"}`)
	if got := renew(ends); got != 40*time.Minute {
		t.Errorf("renewed to %v after the role's explicit end went further away", got)
	}

	// What a mount is tuned to counts at the next renewal.
	bob := g.login("userpass", "bob").Auth.Token
	g.write("sys/auth/userpass/tune", `{"default_lease_ttl":"3h","max_lease_ttl":"6h"}`)
	if got := renew(bob); got != 3*time.Hour {
		t.Errorf("renewed to %v after the mount was tuned", got)
	}
	g.clock.Advance(150 * time.Minute)
	if a := g.do(bob, lessor.Update, "auth/token/renew-self", `{"increment":"90h"}`); a.Auth.Duration != 210*time.Minute {
		t.Errorf("renewed to %v beyond the mount's maximum", a.Auth.Duration)
	}
}

// Usernames of dynamic credentials begin with the display name, and people look for those.
func TestDisplayNamesTellTheMount(t *testing.T) {
	g := start(t)
	for path, want := range map[string]string{"userpass": "userpass-ann", "corp/people": "corp-people-ann"} {
		g.write("sys/auth/"+path, `{"type":"userpass"}`)
		if d := g.self(g.login(path, "ann").Auth.Token); d["display_name"] != want {
			t.Errorf("a login at %s is %q, want %q", path, d["display_name"], want)
		}
	}
	g.write("sys/auth/ci/approle", `{"type":"approle"}`)
	g.write("auth/ci/approle/role/r", `{"role_id":"r","bind_secret_id":false,"token_bound_cidrs":"127.0.0.0/8"}`)
	if d := g.self(g.do(lessor.Secret{}, lessor.Update, "auth/ci/approle/login", `{"role_id":"r"}`).Auth.Token); d["display_name"] != "ci-approle" {
		t.Errorf("a login without a name is %q", d["display_name"])
	}
}

// A mount that is tuned to one type of token gives that.
func TestTokenTypeOfMounts(t *testing.T) {
	g := start(t)
	g.write("sys/auth/userpass", `{"type":"userpass"}`)
	for _, c := range []struct {
		mount, user string
		batch       bool
	}{
		{"default-service", "", false}, {"default-service", "service", false}, {"default-service", "batch", true},
		{"default-batch", "", true}, {"default-batch", "service", false}, {"default-batch", "batch", true},
		{"service", "batch", false}, {"batch", "service", true}, {"batch", "", true},
	} {
		g.write("sys/auth/userpass/tune", `{"token_type":"`+c.mount+`"}`)
		g.write("auth/userpass/users/ann", `{"password":"a long password","token_type":"`+c.user+`"}`)
		a := g.do(lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`).Auth
		if (a.Kind == lessor.Batch) != c.batch {
			t.Errorf("mount %q, user %q: %s", c.mount, c.user, a.Kind)
		}
	}
	// Nothing counts the uses of a batch token.
	g.write("auth/userpass/users/eve", `{"password":"a long password","token_num_uses":2}`)
	a := g.do(lessor.Secret{}, lessor.Update, "auth/userpass/login/eve", `{"password":"a long password"}`).Auth
	for range 3 {
		g.self(a.Token)
	}
}

// Secret ids whose time is over go by themselves, on record; a wrapping of one tells its accessor.
func TestSecretIDsGoByThemselves(t *testing.T) {
	g := start(t)
	g.write("sys/auth/approle", `{"type":"approle"}`)
	g.write("auth/approle/role/app", `{"secret_id_ttl":"1h"}`)
	for range 5 {
		g.write("auth/approle/role/app/secret-id", `{}`)
	}
	op := g.op(g.root, lessor.Update, "auth/approle/role/app/secret-id", `{"ttl":"30m"}`)
	op.WrapTTL = time.Minute
	wrapped, err := g.core.Handle(t.Context(), op)
	if err != nil {
		t.Fatal(err)
	}
	accessor := wrapped.Wrap.WrappedAccessor
	if d := g.do(g.root, lessor.Update, "auth/approle/role/app/secret-id-accessor/lookup", `{"secret_id_accessor":"`+accessor+`"}`).Data; d["secret_id_ttl"] != int64(1800) {
		t.Errorf("the wrapped secret id, by its accessor: %v", d)
	}
	g.clock.Advance(2 * time.Hour)
	rows := func() int { return g.rows(g.uuid("auth/approle"))["secrets"] }
	if rows() != 6 {
		t.Errorf("%d secret ids before", rows())
	}
	a := g.do(g.root, lessor.Update, "auth/approle/tidy/secret-id", `{}`)
	if a.Status != 202 || len(a.Warnings) != 1 {
		t.Errorf("answer: %+v", a)
	}
	g.eventually("the secret ids are gone", func() bool { return rows() == 0 })
	if rec := g.last("auth/approle/"); len(rec) != 1 || rec[0].Operation != "tidy" || rec[0].System != "upkeep" {
		t.Errorf("record: %+v", rec)
	}
}
