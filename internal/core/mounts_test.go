package core_test

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/system"
)

// body is an answer as it goes over the wire, without the request's id.
func body(a *lessor.Answer) string { return string(a.Append(nil, "")) }

// says reports what data says of a key, as JSON; "absent" if it has no such key.
func says(data map[string]any, key string) string {
	v, ok := data[key]
	if !ok {
		return "absent"
	}
	return string(lessor.AppendJSON(nil, v))
}

func TestTuningOfUserLockout(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	if got := says(g.do(g.root, lessor.Read, "sys/auth/userpass/tune", "").Data, "user_lockout_threshold"); got != "absent" {
		t.Errorf("before it was tuned: %s", got)
	}
	g.do(g.root, lessor.Update, "sys/auth/userpass/tune",
		`{"user_lockout_config":{"lockout_threshold":"7","lockout_duration":"10m","lockout_counter_reset_duration":"90","lockout_disable":true}}`)
	g.do(g.root, lessor.Update, "sys/auth/userpass/tune", `{"user_lockout_config":{"lockout_threshold":"","lockout_disable":false,"lockout_duration":"20m"}}`)
	data := g.do(g.root, lessor.Read, "sys/auth/userpass/tune", "").Data
	for key, want := range map[string]string{
		"user_lockout_threshold": "7", "user_lockout_duration": "1200", "user_lockout_counter_reset_duration": "90", "user_lockout_disable": "false",
	} {
		if got := says(data, key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	const told = `"user_lockout_config":{"user_lockout_counter_reset_duration":90,"user_lockout_disable":false,"user_lockout_duration":1200,"user_lockout_threshold":7}`
	if got := body(g.do(g.root, lessor.Read, "sys/auth/userpass", "")); !strings.Contains(got, told) {
		t.Errorf("the method as it is read: %s", got)
	}
	g.kv2("secret")
	if text := g.refused(api.Invalid, g.root, lessor.Update, "sys/mounts/secret/tune", `{"user_lockout_config":{"lockout_threshold":"7"}}`); !strings.Contains(text, `for auth type "kv" not allowed`) {
		t.Error(text)
	}
}

// tried is one request that is refused, and what its text says.
type tried struct {
	verb       lessor.Verb
	path, data string
	text       string
}

// refusals tries them all; each is a 400 that says what it is to say.
func (g *gate) refusals(all []tried) {
	g.Helper()
	for _, c := range all {
		if got := g.refused(api.Invalid, g.root, c.verb, c.path, c.data); !strings.Contains(got, c.text) {
			g.Errorf("%s %s %s: %q, want %q", c.verb, c.path, c.data, got, c.text)
		}
	}
}

// same compares an answer's data, as JSON, with what it is to be; "*" stands for any value.
func (g *gate) same(what string, data map[string]any, want string) {
	g.Helper()
	var expected, got map[string]any
	if err := json.Unmarshal([]byte(want), &expected); err != nil {
		g.Fatal(err)
	}
	if err := json.Unmarshal(lessor.AppendJSON(nil, data), &got); err != nil {
		g.Fatal(err)
	}
	var like func(want, got any) bool
	like = func(want, got any) bool {
		if want == "*" {
			return true
		}
		w, isObject := want.(map[string]any)
		if !isObject {
			return reflect.DeepEqual(want, got)
		}
		o, isObject := got.(map[string]any)
		if !isObject || len(w) != len(o) {
			return false
		}
		for k := range w {
			if _, ok := o[k]; !ok || !like(w[k], o[k]) {
				return false
			}
		}
		return true
	}
	if !like(expected, got) {
		g.Errorf("%s:\n got %s\nwant %s", what, lessor.AppendJSON(nil, data), want)
	}
}

func TestMountsAsVaultTellsThem(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/plain", `{"type":"kv","description":"text","local":true,"seal_wrap":true,
		"config":{"default_lease_ttl":"1h","max_lease_ttl":7200,"force_no_cache":"true","listing_visibility":"hidden","passthrough_request_headers":"X-A,X-B",
		"audit_non_hmac_request_keys":["k"],"trim_request_trailing_slashes":true,"token_type":"ignored"}}`)
	const plain = `{"accessor":"*","config":{"default_lease_ttl":3600,"max_lease_ttl":7200,"force_no_cache":true,"listing_visibility":"hidden",
		"passthrough_request_headers":["X-A","X-B"],"audit_non_hmac_request_keys":["k"],"trim_request_trailing_slashes":true},
		"deprecation_status":"supported","description":"text","external_entropy_access":false,"local":true,"options":{},"plugin_version":"",
		"running_plugin_version":"v1.20.0+builtin.lessor","running_sha256":"","seal_wrap":true,"type":"kv","uuid":"*"}`
	a := g.do(g.root, lessor.Read, "sys/mounts/plain", "")
	g.same("a mount", a.Data, plain)
	if !a.Flat {
		t.Error("a mount's data are not repeated at the top level")
	}
	all := g.do(g.root, lessor.Read, "sys/mounts", "").Data
	g.same("it in the list", all["plain/"].(map[string]any), plain)
	g.same("lessor's own", all["sys/"].(map[string]any), `{"accessor":"*","config":{"default_lease_ttl":0,"max_lease_ttl":0,"force_no_cache":false},"description":"*",
		"external_entropy_access":false,"local":false,"options":null,"plugin_version":"","running_plugin_version":"*","running_sha256":"","seal_wrap":false,"type":"system","uuid":"*"}`)
	g.do(g.root, lessor.Update, "sys/auth/people", `{"type":"userpass","config":{"token_type":"default-batch"}}`)
	g.same("an auth method", g.do(g.root, lessor.Read, "sys/auth/people", "").Data, `{"accessor":"*",
		"config":{"default_lease_ttl":0,"max_lease_ttl":0,"force_no_cache":false,"token_type":"default-batch"},"deprecation_status":"supported","description":"",
		"external_entropy_access":false,"local":false,"options":{},"plugin_version":"","running_plugin_version":"*","running_sha256":"","seal_wrap":false,"type":"userpass","uuid":"*"}`)
	const tuning = `{"default_lease_ttl":2764800,"max_lease_ttl":2764800,"force_no_cache":false,"description":"","token_type":"default-batch"}`
	g.same("its tuning", g.do(g.root, lessor.Read, "sys/auth/people/tune", "").Data, tuning)
	g.same("its tuning, by the other path", g.do(g.root, lessor.Read, "sys/mounts/auth/people/tune", "").Data, tuning)

	a = g.do(g.root, lessor.Update, "sys/mounts/auth/people/tune", `{"default_lease_ttl":"10m","description":"of people","listing_visibility":"unauth","token_type":"",
		"allowed_managed_keys":"a","options":{"lease":"quiet","gone":"x"},"unheard_of":1}`)
	if len(a.Warnings) != 2 || !strings.Contains(a.Warnings[0], "unheard_of") || !strings.Contains(a.Warnings[1], "allowed_managed_keys") {
		t.Errorf("warnings: %q", a.Warnings)
	}
	if a := g.do(g.root, lessor.Update, "sys/auth/people/tune", `{"options":{"gone":""},"max_lease_ttl":"system","allowed_managed_keys":[]}`); !a.Empty() {
		t.Errorf("an answer to plain tuning: %+v", a)
	}
	g.do(g.root, lessor.Update, "sys/mounts/odd", `{"type":"kv","config":{"max_lease_ttl":"1h","delegated_auth_accessors":"x"}}`)
	g.same("the server's default beyond a mount's maximum", g.do(g.root, lessor.Read, "sys/mounts/odd/tune", "").Data,
		`{"default_lease_ttl":2764800,"max_lease_ttl":3600,"force_no_cache":false,"description":""}`)
	g.do(g.root, lessor.Delete, "sys/mounts/odd", "")
	g.same("tuned", g.do(g.root, lessor.Read, "sys/auth/people/tune", "").Data, `{"default_lease_ttl":600,"max_lease_ttl":2764800,"force_no_cache":false,"description":"of people",
		"listing_visibility":"unauth","token_type":"default-service","options":{"lease":"quiet"}}`)
	if a := g.do(g.root, lessor.Update, "sys/mounts/odd", `{"type":"kv-v2","external_entropy_access":true}`); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "no effect") {
		t.Errorf("warnings: %q", a.Warnings)
	}
	if a := g.do(g.root, lessor.Delete, "sys/mounts/nothing-there", ""); !a.Empty() {
		t.Errorf("disabling nothing: %+v", a)
	}
}

func TestMountsAreRefusedAsByVault(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "sys/auth/people", `{"type":"userpass"}`)
	g.refusals([]tried{
		{lessor.Update, "sys/mounts/x", `{}`, "backend type must be specified as a string"},
		{lessor.Update, "sys/mounts/x", `{"type":"plugin"}`, "plugin_name must be provided for plugin backend"},
		{lessor.Update, "sys/mounts/x", `{"type":"nonesuch"}`, "plugin not found in the catalog: nonesuch"},
		{lessor.Update, "sys/mounts/x", `{"type":"userpass"}`, "plugin not found in the catalog: userpass"},
		{lessor.Update, "sys/auth/x", `{"type":"kv"}`, "plugin not found in the catalog: kv"},
		{lessor.Update, "sys/mounts/x", `{"type":"cubbyhole"}`, `mount type of "cubbyhole" is not mountable`},
		{lessor.Update, "sys/auth/x", `{"type":"token"}`, "token credential backend cannot be instantiated"},
		{lessor.Update, "sys/mounts/x", `{"type":"target","options":{"version":"2"}}`, `secrets engine "target" does not allow setting a version`},
		{lessor.Update, "sys/auth/x", `{"type":"userpass","options":{"version":"2"}}`, `auth method "userpass" does not allow setting a version`},
		{lessor.Update, "sys/mounts/x", `{"type":"kv","config":{"default_lease_ttl":"2h","max_lease_ttl":"1h"}}`, "given default lease TTL greater than given max lease TTL"},
		{lessor.Update, "sys/mounts/x", `{"type":"kv","config":{"default_lease_ttl":"7680h"}}`, "given default lease TTL greater than system max lease TTL of 2764800"},
		{lessor.Update, "sys/mounts/x", `{"type":"kv","config":{"default_lease_ttl":"soon"}}`, "unable to parse default TTL of soon"},
		{lessor.Update, "sys/mounts/x", `{"type":"kv","config":{"listing_visibility":"secret"}}`, "invalid listing_visibility secret"},
		{lessor.Update, "sys/mounts/x", `{"type":"kv","config":{"plugin_version":"v9.9.9"}}`, "cannot select non-builtin version of secrets plugin kv"},
		{lessor.Update, "sys/mounts/x", `{"type":"kv","config":{"plugin_version":"new"}}`, `version "new" is not a valid semantic version`},
		{lessor.Update, "sys/mounts/x", `{"type":"kv","config":{"identity_token_key":"k"}}`, `key "k" does not exist`},
		{lessor.Update, "sys/mounts/secret", `{"type":"kv"}`, "path is already in use at secret/"},
		{lessor.Update, "sys/mounts/secret/below", `{"type":"kv"}`, "path is already in use at secret/"},
		{lessor.Update, "sys/auth/people", `{"type":"userpass"}`, "path is already in use at people/"},
		{lessor.Update, "sys/mounts/auth/x", `{"type":"kv"}`, `cannot mount "auth/x/"`},
		{lessor.Update, "sys/mounts/sys/x", `{"type":"kv"}`, `cannot mount "sys/x/"`},
		{lessor.Update, "sys/mounts/audit", `{"type":"kv"}`, `cannot mount "audit/"`},
		{lessor.Delete, "sys/mounts/sys", ``, `cannot unmount "sys/"`},
		{lessor.Delete, "sys/mounts/auth/people", ``, `cannot unmount "auth/people/"`},
		{lessor.Delete, "sys/auth/token", ``, "token credential backend cannot be disabled"},
		{lessor.Read, "sys/mounts/nothing", ``, "No secret engine mount at nothing/"},
		{lessor.Read, "sys/auth/nothing", ``, "No auth engine at nothing/"},
		{lessor.Read, "sys/mounts/nothing/tune", ``, `cannot fetch sysview for path "nothing/"`},
		{lessor.Update, "sys/mounts/nothing/tune", `{}`, `tune of path "nothing/" failed: no mount entry found`},
		{lessor.Update, "sys/mounts/sys/tune", `{}`, `cannot tune "sys/"`},
		{lessor.Update, "sys/mounts/cubbyhole/tune", `{}`, `cannot tune "cubbyhole/"`},
		{lessor.Update, "sys/mounts/secret/tune", `{"default_lease_ttl":"2h","max_lease_ttl":"1h"}`, "backend max lease TTL of 3600 would be less than backend default lease TTL of 7200"},
		{lessor.Update, "sys/mounts/secret/tune", `{"token_type":"batch"}`, "'token_type' can only be modified on auth mounts"},
		{lessor.Update, "sys/auth/token/tune", `{"token_type":"batch"}`, "'token_type' cannot be set for 'token' or 'ns_token' auth mounts"},
		{lessor.Update, "sys/auth/people/tune", `{"token_type":"mixed"}`, "invalid value for 'token_type'"},
		{lessor.Update, "sys/mounts/secret/tune", `{"options":{"version":"1"}}`, "cannot downgrade mount from version 2"},
		{lessor.Update, "sys/mounts/secret/tune", `{"options":{"version":"3"}}`, "invalid version provided: 3"},
		{lessor.Update, "sys/mounts/secret/tune", `{"plugin_version":"v0.1.0"}`, "cannot select non-builtin version of secrets plugin kv"},
		{lessor.Update, "sys/remount", `{"from":"secret"}`, "both 'from' and 'to' path must be specified as a string"},
		{lessor.Update, "sys/remount", `{"from":"secret ","to":"x"}`, "'from' path cannot contain trailing whitespace"},
		{lessor.Update, "sys/remount", `{"from":"secret","to":"a//b"}`, "invalid destination mount"},
		{lessor.Update, "sys/remount", `{"from":"nothing","to":"x"}`, `no matching mount at "nothing/"`},
		{lessor.Update, "sys/remount", `{"from":"secret","to":"secret"}`, `path already in use at "secret/"`},
		{lessor.Update, "sys/remount", `{"from":"secret","to":"secret/below"}`, `path already in use at "secret/"`},
		{lessor.Update, "sys/remount", `{"from":"secret","to":"sys/x"}`, "cannot remount to destination sys/x/"},
		{lessor.Update, "sys/remount", `{"from":"secret","to":"auth/x"}`, "cannot remount to destination auth/x/"},
		{lessor.Update, "sys/remount", `{"from":"cubbyhole","to":"x"}`, `cannot remount "cubbyhole/"`},
		{lessor.Update, "sys/remount", `{"from":"auth/people","to":"x"}`, `cannot remount auth mount to non-auth mount "x/"`},
		{lessor.Update, "sys/remount", `{"from":"auth/token","to":"auth/x"}`, `cannot remount "auth/token/"`},
	})
	g.refused(api.NotFound, g.root, lessor.Read, "sys/remount/status/none", "")
}

func TestRemount(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	held := g.do(g.root, lessor.Read, "secret/data/app", "").Lease.ID
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	cred := g.do(g.root, lessor.Read, "target/creds/app", "")
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	g.do(g.root, lessor.Update, "auth/userpass/users/ann", `{"password":"a long password"}`)
	ann := g.do(lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`).Auth.Token

	move := func(from, to string) {
		t.Helper()
		a := g.do(g.root, lessor.Update, "sys/remount", `{"from":"`+from+`","to":"`+to+`"}`)
		if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "policies and owners that name "+from+"/ do not") || !a.Flat {
			t.Errorf("answer to a move: %s", body(a))
		}
		id := a.Data["migration_id"].(string)
		g.same("status", g.do(g.root, lessor.Read, "sys/remount/status/"+id, "").Data,
			`{"migration_id":"`+id+`","migration_info":{"source_mount":"`+from+`/","target_mount":"`+to+`/","status":"success"}}`)
	}
	g.do(g.root, lessor.Update, "sys/quotas/rate-limit/app", `{"rate":1000,"path":"secret/data/app"}`)
	move("secret", "team/kv")
	if path := g.do(g.root, lessor.Read, "sys/quotas/rate-limit/app", "").Data["path"]; path != "team/kv/data/app" {
		t.Errorf("the quota is about %s after the move", path)
	}
	g.refused(api.NotFound, g.root, lessor.Read, "secret/data/app", "")
	moved := g.do(g.root, lessor.Read, "team/kv/data/app", "")
	if !strings.Contains(body(moved), `"k":"v"`) || !strings.HasPrefix(moved.Lease.ID, "team/kv/") || moved.Lease.ID == held {
		t.Errorf("after the move: %s", body(moved))
	}
	g.refused(api.Invalid, g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+held+`"}`)
	g.kv2("secret") // its old path is free
	g.refused(api.NotFound, g.root, lessor.Read, "secret/data/app", "")

	g.target.set(true, false)
	move("target", "elsewhere")
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"kv"}`)
	g.refused(api.Invalid, g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+cred.Lease.ID+`"}`)
	g.do(g.root, lessor.Update, "sys/lessor/revoke", `{"by":"lease","value":"`+cred.Lease.ID+`","force":true}`) // its id is found though the path is another's
	if a := g.do(g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"`+cred.Lease.ID+`"}`); !a.Empty() {
		t.Errorf("it was not removed by force: %s", body(a))
	}
	g.target.set(false, false)

	move("auth/userpass", "auth/people")
	g.refused(api.Unauthenticated, ann, lessor.Read, "auth/token/lookup-self", "")
	ann = g.do(lessor.Secret{}, lessor.Update, "auth/people/login/ann", `{"password":"a long password"}`).Auth.Token
	g.do(ann, lessor.Read, "auth/token/lookup-self", "")
	g.refused(api.Unauthenticated, lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`)
}

func TestKVIsUpgraded(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/plain", `{"type":"kv"}`)
	const n = 600 // more than two commits of the upgrade
	for i := range n {
		g.do(g.root, lessor.Update, fmt.Sprintf("plain/f/%d", i), fmt.Sprintf(`{"k":"v%d"}`, i))
	}
	held := g.do(g.root, lessor.Read, "plain/f/7", "").Lease.ID
	a := g.do(g.root, lessor.Update, "sys/mounts/plain/tune", `{"options":{"version":"2"}}`)
	if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "Upgrading mount from version 0 to version 2") {
		t.Errorf("warnings: %q", a.Warnings)
	}
	if keys := g.do(g.root, lessor.List, "plain/metadata/f/", "").Data["keys"].([]string); len(keys) != n {
		t.Errorf("%d secrets after the upgrade", len(keys))
	}
	for _, i := range []int{0, 7, 255, 256, 599} {
		if a := g.do(g.root, lessor.Read, fmt.Sprintf("plain/data/f/%d", i), ""); !strings.Contains(body(a), fmt.Sprintf(`"data":{"k":"v%d"}`, i)) || !strings.Contains(body(a), `"version":1`) {
			t.Errorf("secret %d: %s", i, body(a))
		}
	}
	if a := g.do(g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+held+`"}`); len(a.Warnings) == 0 {
		t.Error("who held the value is not told to read again")
	}
	g.do(g.root, lessor.Update, "plain/data/f/7", `{"data":{"k":"new"},"options":{"cas":1}}`)
	if e := g.do(g.root, lessor.Read, "sys/mounts/plain", "").Data; says(e, "options") != `{"version":"2"}` {
		t.Errorf("options: %s", says(e, "options"))
	}
	rec := g.last("plain/")[0]
	if rec.System != "upkeep" || rec.Operation != "upgrade" {
		t.Errorf("record: %+v", rec.Record)
	}
}

func TestWhatIsSeenWithoutAToken(t *testing.T) {
	g := start(t)
	g.kv2("hidden")
	g.do(g.root, lessor.Update, "sys/mounts/shown", `{"type":"kv","description":"for all to see","config":{"listing_visibility":"unauth"}}`)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass","config":{"listing_visibility":"unauth"}}`)
	nobody := lessor.Secret{}
	g.same("without a token", g.do(nobody, lessor.Read, "sys/internal/ui/mounts", "").Data,
		`{"auth":{"userpass/":{"description":"","options":{},"type":"userpass"}},"secret":{"shown/":{"description":"for all to see","options":{},"type":"kv"}}}`)
	g.refused(api.Unauthenticated, nobody, lessor.Read, "sys/internal/ui/mounts/shown", "")
	g.refused(api.Unauthenticated, nobody, lessor.Read, "sys/internal/ui/namespaces", "")
	g.refused(api.Unauthenticated, lessor.NewSecret("hvs.nonesuch"), lessor.Read, "sys/internal/ui/mounts", "")
	g.same("flags", g.do(nobody, lessor.Read, "sys/internal/ui/feature-flags", "").Data, `{"feature_flags":null}`)

	g.policy("reader", `path "hidden/data/+/x" { capabilities = ["read"] }`)
	reader := g.token(`{"policies":["reader"],"no_default_policy":true}`)
	seen := g.do(reader, lessor.Read, "sys/internal/ui/mounts", "").Data
	if got := says(seen, "secret"); !strings.Contains(got, `"hidden/"`) || !strings.Contains(got, `"shown/"`) || strings.Contains(got, `"sys/"`) {
		t.Errorf("what a reader sees: %s", got)
	}
	one := g.do(reader, lessor.Read, "sys/internal/ui/mounts/hidden/data/app/x", "").Data
	if one["path"] != "hidden/" || says(one, "options") != `{"version":"2"}` || !strings.Contains(says(one, "config"), `"max_lease_ttl":2764800`) {
		t.Errorf("preflight: %v", one)
	}
	if text := g.refused(api.Denied, reader, lessor.Read, "sys/internal/ui/mounts/identity/entity", ""); !strings.Contains(text, `ensure client's policies grant access to path "identity/entity/"`) {
		t.Error(text)
	}
	if got := says(g.do(g.root, lessor.Read, "sys/internal/ui/mounts/auth/userpass/login", "").Data, "path"); got != `"userpass/"` {
		t.Errorf("path of an auth method: %s", got)
	}
	g.same("namespaces", g.do(reader, lessor.Read, "sys/internal/ui/namespaces", "").Data, `{"keys":[""]}`)
	g.same("resultant ACL of root", g.do(g.root, lessor.Read, "sys/internal/ui/resultant-acl", "").Data, `{"root":true,"chroot_namespace":""}`)
}

// A mount without a version is one of version 1: to say so changes nothing of what it serves.
func TestKVOfNoVersionIsOfVersion1(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/plain", `{"type":"kv"}`)
	g.do(g.root, lessor.Update, "plain/a", `{"k":"v"}`)
	if a := g.do(g.root, lessor.Update, "sys/mounts/plain/tune", `{"options":{"version":"1"}}`); !a.Empty() {
		t.Errorf("tuned: %s", body(a))
	}
	if a := g.do(g.root, lessor.Read, "plain/a", ""); !strings.Contains(body(a), `"data":{"k":"v"}`) {
		t.Errorf("read: %s", body(a))
	}
	if options := says(g.do(g.root, lessor.Read, "sys/mounts/plain", "").Data, "options"); options != `{"version":"1"}` {
		t.Errorf("options: %s", options)
	}
	if a := g.do(g.root, lessor.Update, "sys/mounts/plain/tune", `{"options":{"version":"2"}}`); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "from version 1 to version 2") {
		t.Errorf("upgraded: %s", body(a))
	}
	if a := g.do(g.root, lessor.Read, "plain/data/a", ""); !strings.Contains(body(a), `"data":{"k":"v"}`) {
		t.Errorf("read as version 2: %s", body(a))
	}
}

// While what it keeps is upgraded a mount serves nothing; what a crash cuts short, the background finishes.
func TestAMountUnderUpgradeServesNothing(t *testing.T) {
	g := start(t)
	g.backends["system"].(*system.Backend).Upgrade = func(context.Context) error { return nil } // as if the server had died
	refused := false
	for i := 0; i < 10 && !refused; i++ { // the background may be faster
		path := fmt.Sprint("plain", i)
		g.do(g.root, lessor.Update, "sys/mounts/"+path, `{"type":"kv"}`)
		g.do(g.root, lessor.Update, path+"/app", `{"k":"v"}`)
		g.do(g.root, lessor.Update, "sys/mounts/"+path+"/tune", `{"options":{"version":"2"}}`)
		if _, err := g.try(g.root, lessor.Update, path+"/data/app", `{"data":{"k":"new"}}`); err != nil {
			refused = true
			if api.KindOf(err) != api.Invalid || !strings.Contains(err.Error(), "Upgrading from non-versioned to versioned data") {
				t.Errorf("during the upgrade: %v", err)
			}
			g.refused(api.Denied, g.token(`{"policies":["default"]}`), lessor.Read, path+"/data/app", "")
			if err := g.core.Upgrade(t.Context()); err != nil {
				t.Fatal(err)
			}
			if a := g.do(g.root, lessor.Read, path+"/data/app", ""); !strings.Contains(body(a), `"k":"v"`) {
				t.Errorf("after the upgrade: %s", body(a))
			}
		}
	}
	if !refused {
		t.Error("a mount under upgrade was never seen")
	}
}
