package core_test

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// TestSystemAsVaultTellsIt compares answers with those of a Vault server.
func TestSystemAsVaultTellsIt(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	g.do(g.root, lessor.Update, "identity/entity", `{"name":"one"}`)
	const kv = `{"builtin":true,"deprecation_status":"supported","name":"kv","type":"secret","version":"v1.20.0+builtin.lessor"}`
	for _, c := range []struct {
		verb             lessor.Verb
		path, data, want string
	}{
		{lessor.Update, "sys/tools/hash", `{"input":"dGVzdA=="}`, `{"sum":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}`},
		{lessor.Update, "sys/tools/hash", `{}`, `{"sum":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`},
		{lessor.Update, "sys/tools/hash/sha2-224", `{"input":"dGVzdA==","algorithm":"sha2-512"}`, `{"sum":"90a3ed9e32b2aaf4c61c410eb925426119e1a9dc53d4286ade99a809"}`},
		{lessor.Update, "sys/tools/hash", `{"input":"dGVzdA==","algorithm":"sha3-256","format":"base64"}`, `{"sum":"NvAoWAuwLMgnKpoCD0IA40bidq5mTkXugHRVdOL1q4A="}`},
		{lessor.Read, "sys/plugins/catalog", ``, `{"auth":["approle","cert","jwt","userpass"],"database":["postgresql-database-plugin"],"secret":["database","kv","ldap","rabbitmq","target"],"detailed":"*"}`},
		{lessor.List, "sys/plugins/catalog/auth/", ``, `{"keys":["approle","cert","jwt","userpass"]}`},
		{lessor.Read, "sys/plugins/catalog/secret/kv", ``, `{"args":null,"builtin":true,"command":"","deprecation_status":"supported","name":"kv","sha256":"","version":"v1.20.0+builtin.lessor"}`},
		{lessor.Read, "sys/plugins/pins", ``, `{"pinned_versions":[]}`},
		{lessor.Read, "sys/plugins/runtimes/catalog", ``, `{"runtimes":[]}`},
		{lessor.Update, "sys/plugins/reload/backend", `{"plugin":"kv"}`, `{"reload_id":"*"}`},
		{lessor.Update, "sys/plugins/reload/secret/kv", `{}`, `{"reload_id":"*"}`},
		{lessor.Read, "sys/config/cors", ``, `{"enabled":false}`},
		{lessor.Read, "sys/replication/status", ``, `{"mode":"disabled"}`},
		{lessor.Read, "sys/internal/counters/entities", ``, `{"counters":{"entities":{"total":1}}}`},
		{lessor.Read, "sys/loggers", ``, `{"core":"info"}`},
		{lessor.Read, "sys/loggers/core", ``, `{"core":"info"}`},
		{lessor.Read, "sys/loggers/nope", ``, `{}`},
		{lessor.Read, "sys/ha-status", ``, `{"nodes":[{"active_node":true,"hostname":"test","api_address":"","cluster_address":"","version":"","last_echo":null,"echo_duration_ms":0,"clock_skew_ms":0,"replication_primary_canary_age_ms":0}]}`},
	} {
		g.same(c.path, g.do(g.root, c.verb, c.path, c.data).Data, c.want)
	}
	if got := says(g.do(g.root, lessor.Read, "sys/plugins/catalog", "").Data, "detailed"); !strings.Contains(got, kv) {
		t.Errorf("the catalog in detail: %s", got)
	}
	for path, data := range map[string]string{"sys/step-down": "", "sys/loggers/core": `{"level":"debug"}`} {
		if a := g.do(g.root, lessor.Update, path, data); !a.Empty() {
			t.Errorf("%s: %s", path, body(a))
		}
	}
	g.refusals([]tried{
		{lessor.Update, "sys/tools/hash", `{"input":"***"}`, "unable to decode input as base64: illegal base64 data at input byte 0"},
		{lessor.Update, "sys/tools/hash/md5", `{"input":""}`, "unsupported algorithm md5"},
		{lessor.Update, "sys/tools/hash", `{"format":"zz"}`, `unsupported encoding format "zz"; must be "hex" or "base64"`},
		{lessor.Update, "sys/tools/random", `{"bytes":0}`, `"bytes" cannot be less than 1`},
		{lessor.Update, "sys/tools/random", `{"bytes":200000}`, `"bytes" should be less than 131072`},
		{lessor.Update, "sys/tools/random/many", ``, "error parsing url-set byte count"},
		{lessor.Update, "sys/tools/random/bogus/12", ``, `unsupported entropy source "bogus"; must be "platform" or "seal", or "all"`},
		{lessor.Update, "sys/tools/random", `{"format":"zz"}`, `unsupported encoding format "zz"; must be "hex" or "base64"`},
		{lessor.Update, "sys/plugins/catalog/secret/mine", `{"sha256":"00","command":"mine"}`, "runs no external plugins"},
		{lessor.Update, "sys/plugins/reload/backend", `{}`, "plugin or mounts must be provided"},
		{lessor.Update, "sys/plugins/reload/backend", `{"mounts":"nothing"}`, `cannot fetch mount entry on "nothing/"`},
		{lessor.Update, "sys/plugins/reload/backend", `{"plugin":"kv","scope":"zz"}`, "reload scope must be omitted or 'global'"},
		{lessor.Update, "sys/config/cors", `{}`, "at least one origin or the wildcard must be provided"},
		{lessor.Update, "sys/config/cors", `{"allowed_origins":["*","https://b"]}`, "to allow all origins the '*' must be the only value for allowed_origins"},
		{lessor.Update, "sys/config/ui/headers/X-Vault-Foo", `{"values":["a"]}`, "X-Vault headers cannot be set"},
		{lessor.Update, "sys/config/ui/headers/X-Foo", `{}`, "header and values must be specified"},
		{lessor.Update, "sys/loggers", `{"level":"zz"}`, "invalid level provided: unknown log level: zz"},
	})
	for _, path := range []string{"sys/internal/counters/requests", "sys/plugins/catalog/database/nosuch", "sys/license/status"} {
		g.refused(api.NotFound, g.root, lessor.Read, path, "")
	}
}

func TestRandomBytes(t *testing.T) {
	g := start(t)
	seen := map[string]bool{}
	for _, c := range []struct {
		path, data string
		bytes      int
	}{
		{"sys/tools/random", ``, 32}, {"sys/tools/random/16", ``, 16}, {"sys/tools/random/all/12", ``, 12}, {"sys/tools/random/seal", `{"bytes":"7"}`, 7},
		{"sys/tools/random", `{"bytes":131072}`, 131072},
	} {
		text := g.do(g.root, lessor.Update, c.path, c.data).Data["random_bytes"].(lessor.Secret).Reveal()
		raw, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(raw) != c.bytes || seen[text] {
			t.Errorf("%s %s: %d bytes, %v", c.path, c.data, len(raw), err)
		}
		seen[text] = true
	}
	if text := g.do(g.root, lessor.Update, "sys/tools/random/4", `{"format":"hex"}`).Data["random_bytes"].(lessor.Secret).Reveal(); len(text) != 8 {
		t.Errorf("in hex: %d characters", len(text))
	}
}

func TestConfigurationForBrowsers(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/config/cors", `{"allowed_origins":"https://a.example","allowed_headers":["X-Foo"]}`)
	g.same("CORS", g.do(g.root, lessor.Read, "sys/config/cors", "").Data, `{"enabled":true,"allowed_origins":["https://a.example"],
		"allowed_headers":["Content-Type","X-Requested-With","X-Vault-AWS-IAM-Server-ID","X-Vault-MFA","X-Vault-No-Request-Forwarding","X-Vault-Wrap-Format",
		"X-Vault-Wrap-TTL","X-Vault-Policy-Override","Authorization","X-Vault-Token","X-Foo"]}`)
	g.do(g.root, lessor.Delete, "sys/config/cors", "")
	g.same("CORS that was taken away", g.do(g.root, lessor.Read, "sys/config/cors", "").Data, `{"enabled":false}`)

	g.refused(api.NotFound, g.root, lessor.List, "sys/config/ui/headers/", "")
	if a := g.do(g.root, lessor.Update, "sys/config/ui/headers/x-foo", `{"values":["a","b"]}`); len(a.Warnings) != 1 {
		t.Errorf("that there is no user interface is not told: %s", body(a))
	}
	g.same("a header", g.do(g.root, lessor.Read, "sys/config/ui/headers/X-Foo", "").Data, `{"value":"a"}`)
	g.same("all its values", g.do(g.root, lessor.Read, "sys/config/ui/headers/X-Foo", `{"multivalue":"true"}`).Data, `{"values":["a","b"]}`)
	g.same("headers", g.do(g.root, lessor.List, "sys/config/ui/headers/", "").Data, `{"keys":["X-Foo"]}`)
	g.do(g.root, lessor.Delete, "sys/config/ui/headers/X-Foo", "")
	g.refused(api.NotFound, g.root, lessor.Read, "sys/config/ui/headers/X-Foo", "")
}

// A token in the path of a request under way is told as in its audit record.
func TestNoTokenIsInFlight(t *testing.T) {
	g := start(t)
	token := g.root.Reveal()
	for _, path := range []string{"auth/token/lookup/" + token, "nowhere/" + token} {
		if got, err := g.core.Recorded(g.op(g.root, lessor.Read, path, "")); err != nil || strings.Contains(got, token) || !strings.Contains(got, "/hash:") {
			t.Errorf("%s is told as %s, %v", path, got, err)
		}
	}
}

func TestPoliciesAsVaultTellsThem(t *testing.T) {
	g := start(t)
	if a := g.do(g.root, lessor.Update, "sys/policies/acl/Loud", `{"policy":"path \"x\" { capabilities = [\"read\"] }"}`); len(a.Warnings) != 1 || a.Warnings[0] != "policy name was converted to loud" {
		t.Errorf("warnings: %q", a.Warnings)
	}
	if a := g.do(g.root, lessor.Update, "sys/policy/old", `{"rules":"path \"x\" { capabilities = [\"read\"] }"}`); len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "'rules' is deprecated") {
		t.Errorf("warnings: %q", a.Warnings)
	}
	g.same("the list for older clients", g.do(g.root, lessor.Read, "sys/policy", "").Data, `{"keys":["default","loud","old","root"],"policies":["default","loud","old","root"]}`)
	g.refused(api.Unsupported, g.root, lessor.Read, "sys/policies/acl", "")
	const charset = `rule \"charset\" { charset=\"abcdef\" min-chars=1 }`
	g.do(g.root, lessor.Update, "sys/policies/password/pw", `{"policy":"length=20\n`+charset+`","entropy_source":"platform"}`)
	if p := g.do(g.root, lessor.Read, "sys/policies/password/pw/generate", "").Data["password"].(lessor.Secret).Reveal(); len(p) != 20 || strings.Trim(p, "abcdef") != "" {
		t.Errorf("a password of %d characters does not fit its policy", len(p))
	}
	g.same("a password policy", g.do(g.root, lessor.Read, "sys/policies/password/pw", "").Data, `{"policy":"length=20\n`+charset+`"}`)
	encoded := base64.StdEncoding.EncodeToString([]byte(`{"length": 8, "rule": {"charset": [{"charset": "ab"}]}}`))
	g.do(g.root, lessor.Update, "sys/policies/password/json", `{"policy":"`+encoded+`"}`)
	g.same("password policies", g.do(g.root, lessor.List, "sys/policies/password/", "").Data, `{"keys":["json","pw"]}`)
	g.refusals([]tried{
		{lessor.Update, "sys/policies/acl/bad", `{"policy":"zzz {"}`, "failed to parse policy: "},
		{lessor.Update, "sys/policies/acl/bad", `{}`, "'policy' parameter not supplied or empty"},
		{lessor.Delete, "sys/policies/acl/default", ``, "cannot delete default policy"},
		{lessor.Update, "sys/capabilities-accessor", `{"paths":["x"]}`, "missing accessor"},
		{lessor.Delete, "sys/policies/acl/root", ``, `cannot delete "root" policy`},
		{lessor.Update, "sys/policies/acl/root", `{"policy":"x"}`, `cannot update "root" policy`},
		{lessor.Update, "sys/policies/password/bad", `{}`, "missing policy"},
		{lessor.Update, "sys/policies/password/bad", `{"policy":"length=2\n` + charset + `"}`, "passwords must be between 4 and 100 characters"},
		{lessor.Update, "sys/policies/password/bad", `{"policy":"length=200\n` + charset + `"}`, "passwords must be between 4 and 100 characters"},
		{lessor.Update, "sys/policies/password/bad", `{"policy":"zz"}`, "invalid password policy: "},
		{lessor.Update, "sys/policies/password/bad", `{"policy":"length=20"}`, "invalid password policy: "},
		{lessor.Update, "sys/policies/password/bad", `{"policy":"length=20\n` + charset + `","entropy_source":"dice"}`, "unsupported entropy source dice"},
	})
	for _, path := range []string{"sys/policies/password/none", "sys/policies/password/none/generate"} {
		if text := g.refused(api.NotFound, g.root, lessor.Read, path, ""); text != "policy does not exist" {
			t.Errorf("%s: %s", path, text)
		}
	}
}

func TestIrrevocableLeases(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	g.same("none", g.do(g.root, lessor.Read, "sys/leases", `{"type":"irrevocable"}`).Data, `{"lease_count":0,"leases":[]}`)
	g.refused(api.NotFound, g.root, lessor.Read, "sys/leases", "")
	g.refused(api.NotFound, g.root, lessor.Read, "sys/leases/count", "")
	id := g.do(g.root, lessor.Read, "target/creds/app", "").Lease.ID
	g.target.set(true, false)
	g.refused(api.Upstream, g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"`+id+`"}`)
	accessor := g.do(g.root, lessor.Read, "sys/mounts/target", "").Data["accessor"].(string)
	g.same("one", g.do(g.root, lessor.Read, "sys/leases", `{"type":"irrevocable","limit":"none"}`).Data,
		`{"lease_count":1,"leases":[{"lease_id":"`+id+`","mount_id":"`+accessor+`","error":"the target does not answer"}]}`)
	g.same("counted", g.do(g.root, lessor.Read, "sys/leases/count", `{"type":"irrevocable"}`).Data, `{"lease_count":1,"counts":{"`+accessor+`":1}}`)
	g.refusals([]tried{{lessor.Read, "sys/leases", `{"type":"irrevocable","limit":"few"}`, "limit must be 'none' or a positive integer"}})
	for path, status := range map[string]int{"sys/leases/revoke-prefix/nosuch": 0, "sys/leases/revoke-force/nosuch": 0} {
		if a := g.do(g.root, lessor.Update, path, ""); !a.Empty() || a.Status != status {
			t.Errorf("%s: %d %s", path, a.Status, body(a))
		}
	}
	if a := g.do(g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"nosuch","sync":false}`); a.Status != 202 {
		t.Errorf("an unknown lease, without waiting: %d", a.Status)
	}
	g.do(g.root, lessor.Update, "sys/leases/revoke-force/target", "")
	g.target.set(false, false)
}

// TestSpecificationAsSeen: each caller is told of the mounts that it may see.
func TestSpecificationAsSeen(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass","config":{"listing_visibility":"unauth"}}`)
	g.policy("reader", `path "secret/data/x" { capabilities = ["read"] }`)
	for _, c := range []struct {
		who     string
		token   lessor.Secret
		in, out []string
	}{
		{"nobody", lessor.Secret{}, []string{"/auth/userpass/login/{username}"}, []string{"/secret/data/{path}", "/sys/mounts"}},
		{"a reader", g.token(`{"policies":["reader"],"no_default_policy":true}`), []string{"/secret/data/{path}", "/secret/metadata/{path}/", "/auth/userpass/login/{username}"}, []string{"/sys/mounts"}},
		{"root", g.root, []string{"/secret/data/{path}", "/sys/mounts", "/sys/mounts/{path}/tune", "/auth/token/create", "/identity/entity"}, nil},
	} {
		a := g.do(c.token, lessor.Read, "sys/internal/specs/openapi", "")
		paths := a.Data["paths"].(map[string]any)
		for _, p := range c.in {
			if paths[p] == nil {
				t.Errorf("%s is not told of %s", c.who, p)
			}
		}
		for _, p := range c.out {
			if paths[p] != nil {
				t.Errorf("%s is told of %s", c.who, p)
			}
		}
		if !a.Bare || a.Data["openapi"] != "3.0.2" {
			t.Errorf("%s: %v", c.who, a.Data["openapi"])
		}
	}
	g.refused(api.Unauthenticated, lessor.NewSecret("hvs.nonesuch"), lessor.Read, "sys/internal/specs/openapi", "")
	if all := g.do(g.root, lessor.Read, "sys/internal/specs/openapi", "").Data["paths"].(map[string]any); says(all["/sys/health"].(map[string]any), "x-vault-unauthenticated") != "true" {
		t.Errorf("what the node answers itself: %v", all["/sys/health"])
	}
	help, err := g.core.Help(t.Context(), g.op(g.root, lessor.Read, "sys/mounts/x/tune", ""))
	if err != nil {
		t.Fatal(err)
	}
	if got := says(help.Data["openapi"].(map[string]any), "paths"); !strings.HasPrefix(got, `{"/mounts/{path}/tune":`) || strings.Contains(got, "/remount") || says(help.Data, "see_also") != "null" {
		t.Errorf("help: %s", got)
	}
}

// TestHelpOfEveryRoute: each path has its own help, whatever may be done there, and only a path that is.
func TestHelpOfEveryRoute(t *testing.T) {
	g := start(t)
	g.matrix()
	help := func(path string) (string, error) {
		a, err := g.core.Help(t.Context(), g.op(g.root, lessor.Read, path, ""))
		if err != nil {
			return "", err
		}
		return a.Data["help"].(string), nil
	}
	for _, m := range own {
		for _, r := range engine.Described(g.backends[m.backend]) {
			path := strings.TrimSuffix(m.mount+sample(r.Pattern, lessor.Read), "/")
			text, err := help(path)
			if err != nil || !strings.Contains(text, "Matching Route: "+r.Pattern+"\n") || !strings.Contains(text, r.Help) {
				t.Errorf("%s: %v\n%s", path, err, text)
			}
			for _, f := range r.Fields {
				if !strings.Contains(text, "    "+f.Name+" (") || !strings.Contains(text, f.Help) {
					t.Errorf("%s does not tell of %s", path, f.Name)
				}
			}
		}
	}
	if text, err := help("sys/"); err != nil || !strings.Contains(text, "    mounts/{path...}/tune\n") || !strings.Contains(text, "    health\n") {
		t.Errorf("sys/: %v\n%s", err, text)
	}
	for path, want := range map[string]string{"sys/nonesuch": "unsupported path", "secret/nonesuch/x": "unsupported path", "nonesuch/x": "no handler for route"} {
		if _, err := help(path); api.KindOf(err) != api.NotFound || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestMetricsFormats: Prometheus is told in its own format, by what it asks for or accepts, everybody else in JSON.
func TestMetricsFormats(t *testing.T) {
	g := start(t)
	for _, c := range []struct{ format, accept, kind string }{
		{"", "", "application/json"},
		{"", "*/*", "application/json"},
		{"", "application/json", "application/json"},
		{"prometheus", "", "text/plain; version=0.0.4; charset=utf-8"},
		{"prometheus", "application/json", "text/plain; version=0.0.4; charset=utf-8"},
		{"", "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", "text/plain; version=0.0.4; charset=utf-8"},
		{"", "text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8"},
	} {
		op := g.op(g.root, lessor.Read, "sys/metrics", "")
		op.Accept = c.accept
		if c.format != "" {
			op.Data = map[string]any{"format": c.format}
		}
		a, err := g.core.Handle(t.Context(), op)
		if err != nil || a.RawType != c.kind {
			t.Errorf("%q, accepting %q: %+v %v", c.format, c.accept, a, err)
		}
	}
	if text := g.refused(api.Invalid, g.root, lessor.Read, "sys/metrics", `{"format":"xml"}`); text != `metric response format "xml" unknown` {
		t.Errorf("xml: %s", text)
	}
}

// TestNothingIsNotWrapped: who asks to have every answer wrapped, as VAULT_WRAP_TTL does, is not refused what has none.
func TestNothingIsNotWrapped(t *testing.T) {
	g := start(t)
	for _, c := range []tried{
		{lessor.Update, "sys/rotate", "", ""}, {lessor.Update, "sys/rotate/config", `{"enabled":true}`, ""}, {lessor.Update, "sys/quotas/config", "", ""},
		{lessor.Update, "sys/quotas/rate-limit/all", `{"rate":1000}`, ""}, {lessor.Delete, "sys/quotas/rate-limit/all", "", ""},
		{lessor.Update, "sys/mounts/plain", `{"type":"kv"}`, ""}, {lessor.Update, "sys/loggers", `{"level":"info"}`, ""},
	} {
		op := g.op(g.root, c.verb, c.path, c.data)
		op.WrapTTL = time.Minute
		if a, err := g.core.Handle(t.Context(), op); err != nil || !a.Empty() {
			t.Errorf("%s %s: %+v %v", c.verb, c.path, a, err)
		}
	}
	if term := says(g.do(g.root, lessor.Read, "sys/key-status", "").Data, "term"); term != "2" {
		t.Errorf("term %s", term)
	}
}

// TestCapabilitiesOfManyPaths: there is a bound to what one question may cost.
func TestCapabilitiesOfManyPaths(t *testing.T) {
	g := start(t)
	ask := func(n int) string { return `{"paths":["` + strings.Repeat(`a","`, n-1) + `b"]}` }
	if a := g.do(g.root, lessor.Update, "sys/capabilities-self", ask(10_000)); says(a.Data, "b") != `["root"]` {
		t.Errorf("many: %v", a.Data)
	}
	g.refusals([]tried{{lessor.Update, "sys/capabilities-self", ask(10_001), "10001 paths in one request: ask about 10000 at most"}})
}

// TestVersionHistory: versions are told in the order in which they ran, which is not that of their names.
func TestVersionHistory(t *testing.T) {
	g := start(t)
	for _, version := range []string{"0.9.0", "0.10.0", "0.9.0", "0.11.0"} {
		g.clock.Advance(time.Hour)
		if err := g.core.Installed(t.Context(), version); err != nil {
			t.Fatal(err)
		}
	}
	data := g.do(g.root, lessor.List, "sys/version-history/", "").Data
	if keys := says(data, "keys"); keys != `["0.9.0","0.10.0","0.11.0"]` {
		t.Errorf("keys: %s", keys)
	}
	if info := data["key_info"].(map[string]any)["0.11.0"].(map[string]any); info["previous_version"] != "0.10.0" {
		t.Errorf("0.11.0: %v", info)
	}
}

// The document repeats its context in the name of each operation: a long one would make it many times as long.
func TestContextOfTheSpecificationIsBounded(t *testing.T) {
	g := start(t)
	token := g.token(`{"policies":["default"]}`)
	g.do(token, lessor.Read, "sys/internal/specs/openapi", `{"context":"`+strings.Repeat("x", 64)+`"}`)
	for _, who := range []lessor.Secret{token, {}} {
		g.refused(api.Invalid, who, lessor.Update, "sys/internal/specs/openapi", `{"context":"`+strings.Repeat("x", 65)+`"}`)
	}
}
