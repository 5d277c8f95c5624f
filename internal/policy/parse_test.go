package policy

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// The same policy, in each of the ways to write it.
func TestForms(t *testing.T) {
	want := []Rule{{
		Path: "secret/*", Capabilities: Read | Update, Comment: "both",
		Required: []string{"owner"}, MinWrap: time.Minute, MaxWrap: 36 * time.Hour,
		Allowed: map[string][]any{"a": {"x", json.Number("1"), true}, "*": {}}, Denied: map[string][]any{"b": {}},
		Control: &ControlGroup{TTL: 4 * time.Hour, Factors: []Factor{
			{Name: "boss", Capabilities: Update, GroupNames: []string{"managers"}, Approvals: 2},
			{Name: "sec", GroupIDs: []string{"g-1", "g-2"}, Approvals: 1},
		}},
		label: `path "secret/*"`,
	}}
	for name, source := range map[string]string{
		"as documented": `
# a comment
path "secret/*" { // another
  /* and
     another */
  capabilities = ["read", "update",]
  comment = "both"
  required_parameters = ["Owner"]
  allowed_parameters = {
    "A" = ["x", 1, true]
    "*" = []
  }
  denied_parameters = { "b" = [] }
  min_wrapping_ttl = "60s"
  max_wrapping_ttl = "36h"
  control_group = {
    ttl = "4h"
    factor "boss" {
      controlled_capabilities = ["update"]
      identity {
        group_names = ["managers"]
        approvals = 2
      }
    }
    factor "sec" {
      identity { group_ids = ["g-1", "g-2"] approvals = 1 }
    }
  }
}
`,
		"blocks": `path "secret/*" {
  capabilities = ["update", "read"]  comment = "both"
  required_parameters = ["owner"]
  allowed_parameters { a = ["x", 1, true], "*" = [] }
  denied_parameters { b = [] }
  min_wrapping_ttl = 60
  max_wrapping_ttl = "129600"
  control_group {
    ttl = 14400
    factor = { "boss" = { controlled_capabilities = ["update"], identity = { group_names = ["managers"], approvals = 2 } } }
    factor "sec" { identity = { group_ids = ["g-1", "g-2"], approvals = "1" } }
  }
}`,
		"one object": `path = { "secret/*" = { "capabilities" = ["read", "update"] "comment" = "both" required_parameters = ["owner"]
  allowed_parameters = { a = ["x", 1, true] "*" = [] } denied_parameters = { b = [] } min_wrapping_ttl = "1m" max_wrapping_ttl = "36h"
  control_group = { ttl = "4h" factor "boss" { controlled_capabilities = ["update"] identity { group_names = ["managers"] approvals = 2 } }
  factor "sec" { identity { group_ids = ["g-1", "g-2"] approvals = 1 } } } } }`,
		"JSON": `{"name": "dev", "path": {"secret/*": {"capabilities": ["read", "update"], "comment": "both", "required_parameters": ["owner"],
  "allowed_parameters": {"a": ["x", 1, true], "*": []}, "denied_parameters": {"b": []}, "min_wrapping_ttl": "1m", "max_wrapping_ttl": "36h",
  "control_group": {"ttl": "4h", "factor": {"boss": {"controlled_capabilities": ["update"], "identity": {"group_names": ["managers"], "approvals": 2}},
  "sec": {"identity": {"group_ids": ["g-1", "g-2"], "approvals": 1}}}}}}}`,
		"JSON lists": ` {"path": [{"secret\/*": {"capabilities": ["read", "update"], "comment": "\u0062oth", "required_parameters": ["owner"],
  "allowed_parameters": {"a": ["x", 1, true], "*": []}, "denied_parameters": {"b": []}, "min_wrapping_ttl": 60, "max_wrapping_ttl": "36h",
  "control_group": {"ttl": "4h", "factor": [{"boss": {"controlled_capabilities": ["update"], "identity": {"group_names": ["managers"], "approvals": 2}}},
  {"sec": {"identity": {"group_ids": ["g-1", "g-2"], "approvals": 1}}}]}}}]}`,
	} {
		p, err := Parse("dev", source)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Name != "dev" || p.Source != source || len(p.Warnings) != 0 {
			t.Errorf("%s: %+v", name, p)
		}
		for i := range p.Rules {
			p.Rules[i].Line = 0
		}
		if !reflect.DeepEqual(p.Rules, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, p.Rules, want)
		}
	}
}

func TestStrings(t *testing.T) {
	for source, want := range map[string]string{
		`path "a\"b\\c\u00e9\n" {}`:    "a\"b\\cé\n",
		`path "${x}" {}`:               "${x}",    // no interpolation
		`path "e` + "\u0301" + `" {}`:  "e\u0301", // bytes stay as they are
		`{"path":{"a\"b\u00e9\/":{}}}`: `a"bé/`,
		"\ufeffpath \"a\" {}":          "a",
		`path word.with-dashes_1 {}`:   "word.with-dashes_1",
	} {
		p, err := Parse("dev", source)
		if err != nil || len(p.Rules) != 1 || p.Rules[0].Path != want {
			t.Errorf("%s: %+v, %v; want %q", source, p, err, want)
		}
	}
}

func TestEmpty(t *testing.T) {
	for _, source := range []string{"", "  \n", "# nothing", "{}", "/* */", `name = "x"`} {
		if p, err := Parse("dev", source); err != nil || len(p.Rules) != 0 {
			t.Errorf("%q: %+v, %v", source, p, err)
		}
	}
}

func TestDurations(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"0": 0, "60": time.Minute, "1h30m": 90 * time.Minute, "5d": 120 * time.Hour, "1.5h": 90 * time.Minute, "0s": 0, "250ms": 250 * time.Millisecond,
		"9223372036": 9223372036 * time.Second,
		"":           -1, "-1": -1, "-1s": -1, "1": time.Second, "x": -1, "1w": -1, "1.5": -1, "1d1h": -1, "9223372037": -1, "106752d": -1, "99999999999999999999": -1, "d": -1,
	} {
		d, ok := parseDuration(s)
		if ok != (want >= 0) || ok && d != want {
			t.Errorf("%q: %v %v, want %v", s, d, ok, want)
		}
	}
}

// What authors of policies read. "|" marks the place that line and column must name, if it is not the beginning.
func TestParseErrors(t *testing.T) {
	in := func(stanza string) string { return `path "a" { ` + stanza + ` }` }
	factor := func(s string) string { return in(`control_group = { ` + s + ` }`) }
	for _, c := range []struct{ source, text string }{
		{"path \"a\" {\n  capabilities = [\"read\"]\n  |capabilites = [\"list\"]\n}", `unknown key "capabilites" in path "a"; it may have capabilities, policy, `},
		{`|paths "a" {}`, `unknown key "paths"; a policy consists of path "…" { … } stanzas`},
		{`|path "a" "b" {}`, `"path" is written as path "secret/*" { … }`},
		{`path "a" |= {}`, `'=' stands after "path a", where = or { is expected`},
		{`|path = ["a"]`, `"path" is written as`},
		{`path = { "a" = |"read" }`, `"path" is written as`},
		{`|path = { "a" "b" {} }`[1:], `"path" is written as`},
		{`path "a" |{`, `this { is not closed; add a }`},
		{`path "a" {} |}`, `'}' stands where a key is expected`},
		{`path |"a {}`, `this string is not closed; add a "`},
		{"path |\"a\n\" {}", `this string is not closed on its line; add a "`},
		{`path |"a\q" {}`, `an escape that means nothing; write \\ for a backslash`},
		{`path |"a\xff" {}`, `this string is not valid UTF-8`},
		{"path \"a\" {} # caf|\xe9", `the policy is not valid UTF-8`},
		{`|/* path`, `this comment is not closed; end it with */`},
		{`|= "a"`, `'=' stands where a key is expected`},
		{`path|`, `the policy ends after "path", where = or { is expected`},
		{in(`capabilities = |read`), `read is not a value; write "read" if it is a string`},
		{in(`capabilities = |"read"`), `capabilities is a string; write a list of strings`},
		{`path "a" { capabilities = ["read" |}`, `'}' stands in a list, where a comma or ] is expected`},
		{in(`capabilities = [|1]`), `a number in the list capabilities; write a quoted string`},
		{`path "a" { capabilities = |["read"`, `this [ is not closed; add a ]`},
		{in(`|capabilities = ["write"]`), `unknown capability "write"; there are deny, create, read, update, patch, delete, list, sudo, recover, subscribe; "write" is "create" and "update"`},
		{in(`|capabilities = ["root"]`), `unknown capability "root"`},
		{in(`policy = "read" |policy = "write"`), `"policy" is given twice in path "a"; keep one`},
		{in(`|policy = "admin"`), `unknown policy "admin"; it is read, write, sudo or deny`},
		{in(`comment = |5`), `comment is a number; write a quoted string`},
		{in(`comment = |<<EOT`), `here-documents have no place in a policy`},
		{in(`|comment "x" { }`), `"comment" takes no label`},
		{in(`allowed_parameters = |["a"]`), `allowed_parameters is a list; write { "name" = ["value", …] }, with [] for any value`},
		{in(`allowed_parameters = { a = |"b" }`), `allowed_parameters: "a" is a string; write a list of values, [] for any`},
		{in(`denied_parameters = { a = [], |A = [] }`), `denied_parameters: "a" is given twice (case does not count); keep one`},
		{in(`denied_parameters = { |"a*" = [] }`), `denied_parameters: a * within a name is not a pattern`},
		{in(`denied_parameters = { |"/a/b" = [] }`), `denied_parameters: "/a/b" is a path into the body; only top-level parameters can be governed`},
		{in(`|required_parameters = ["*"]`), `required_parameters: "*" is not the name of a parameter`},
		{in(`min_wrapping_ttl = |"soon"`), `min_wrapping_ttl is not a duration; write seconds, or a string such as "90s", "1h30m" or "5d"`},
		{in(`max_wrapping_ttl = |-1`), `max_wrapping_ttl is not a duration`},
		{in(`max_wrapping_ttl = |01`), `01 is not a number; write "01" if it is a string`},
		{in(`min_wrapping_ttl = 2 |max_wrapping_ttl = 1`), `max_wrapping_ttl is less than min_wrapping_ttl, so nothing would be granted`},
		{in(`|mfa_methods = ["totp"]`), `mfa_methods is not enforced on paths, so it is refused rather than ignored`},
		{`|path "a/+*" {}`, `path "a/+*": +* is not a pattern; write + for exactly one segment, or * for any end`},
		{`|path "" {}`, `a path is missing`},
		{`|path "/" {}`, `a path is missing`},
		{`|path "a/{{identity.entity.id" {}`, `{{ without }} after it`},
		{`|path "a/}}{{identity.entity.id}}" {}`, `}} without {{ before it`},
		{`|path "a/{{identity.entity.shoe}}" {}`, `the template {{identity.entity.shoe}} means nothing; there are {{identity.entity.id}}`},
		{in(`|control_group = { ttl = "4h" }`), `control_group has no factor, so nobody would have to approve`},
		{in(`control_group = |true`), `control_group is a boolean; write`},
		{in(`control_group = { |approvals = 1 }`), `unknown key "approvals" in control_group; it may have ttl, factor`},
		{factor(`|factor "f" {}`), `factor "f" does not say who approves`},
		{factor(`factor "f" { identity { group_names = ["g"] approvals = |0 } }`), `factor "f" asks for no approval; write approvals = 1 or more`},
		{factor(`factor "f" { identity { group_names = ["g"] approvals = |-1 } }`), `factor "f" asks for no approval`},
		{factor(`factor "f" { |identity { group_names = ["g"] } }`), `factor "f" asks for no approval`},
		{factor(`factor "f" { identity { group_names = ["g"] approvals = |"many" } }`), `approvals is not a number of people`},
		{factor(`factor "f" { |identity { approvals = 1 } }`), `factor "f" names no group, so nobody could approve; set group_names or group_ids`},
		{factor(`factor "f" { |identity { group_names = [] approvals = 1 } }`), `factor "f" names no group`},
		{factor(`factor "f" { |controlled_capabilities = ["read"] identity { group_names = ["g"] approvals = 1 } }`), `factor "f" controls capabilities that its path does not give`},
		{factor(`factor "f" { identity { group_names = ["g"] approvals = 1 } } |factor "f" { identity { group_names = ["g"] approvals = 1 } }`), `factor "f" is given twice; name each differently`},
		{`{"path": {"a": {"capabilities": ["read"|}}}`, `not valid JSON: invalid character '}' after array element`},
		{`{"path": {"a": {|"policies": ["read"]}}}`, `unknown key "policies" in path "a"`},
		{`{} |x`, `not valid JSON`},
		{`{"path": {"a": {"comment": |null}}}`, `comment is null; write a quoted string`},
		{`{"path": {"a": ["x"]}}`, `"path" is written as`},
		{"path \"é\" {\n\n\t|x = 1 }", `unknown key "x" in path "é"`},
		{`a = ` + strings.Repeat("[", 24) + strings.Repeat("]", 24), `unknown key "a"`},
		{`a = ` + strings.Repeat("[", 24) + "|[" + strings.Repeat("]", 25), `more than 24 objects and lists within each other`},
		{strings.Repeat(" ", maxSource+1), `the policy has 1048577 bytes, more than the 1048576 that are accepted; split it`},
	} {
		mark := strings.Index(c.source, "|")
		source := strings.Replace(c.source, "|", "", 1)
		p, err := Parse("dev", source)
		if err == nil {
			t.Errorf("%.200s: parsed as %+v", c.source, p.Rules)
			continue
		}
		if api.KindOf(err) != api.Invalid || p != nil {
			t.Errorf("%s: %v, %v", c.source, p, api.KindOf(err))
		}
		text := err.Error()
		if !strings.Contains(text, c.text) {
			t.Errorf("%.200s\n got %s\nwant %s", c.source, text, c.text)
		}
		if mark >= 0 {
			line, column := locate(source, mark)
			if want := fmt.Sprintf(`policy "dev", line %d, column %d: `, line, column); !strings.HasPrefix(text, want) {
				t.Errorf("%.200s\n got %.60s\nwant %s", c.source, text, want)
			}
		}
	}
	for _, name := range []string{"root", "Root", ""} {
		if _, err := Parse(name, ""); api.KindOf(err) != api.Invalid || err == nil {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

func TestLocate(t *testing.T) {
	for _, c := range []struct {
		source           string
		at, line, column int
	}{{"", 0, 1, 1}, {"ab", 1, 1, 2}, {"a\nb", 2, 2, 1}, {"a\r\nb", 3, 2, 1}, {"é|", 2, 1, 2}, {"a", 9, 1, 2}} {
		if line, column := locate(c.source, c.at); line != c.line || column != c.column {
			t.Errorf("%q at %d: %d:%d, want %d:%d", c.source, c.at, line, column, c.line, c.column)
		}
	}
}

func TestWarnings(t *testing.T) {
	for path, want := range map[string]string{
		"secret/*": "", "secret/+/x": "", "*": "", "a/{{identity.entity.id}}/*": "",
		"secret/*/x": "ordinary character", "secret/a+b": "ordinary character", "v1/secret/*": "v1/", "/v1/x": "v1/", "a**": "ordinary character",
	} {
		p := dev(t, fmt.Sprintf("\npath %q { capabilities = [\"read\"] }", path))
		if got := strings.Join(p.Warnings, "; "); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		} else if want != "" && !strings.HasPrefix(got, fmt.Sprintf("line 2, path %q: ", path)) {
			t.Errorf("%s: %q", path, got)
		}
	}
	if p := dev(t, `path "a" { }`); len(p.Warnings) != 1 {
		t.Errorf("%q", p.Warnings)
	}
}

func TestDefault(t *testing.T) {
	p, err := Parse("default", Default())
	if err != nil || len(p.Warnings) != 0 {
		t.Fatal(err, p)
	}
	a := Compile([]*Policy{p}, somebody)
	for req, want := range map[string]bool{
		"read auth/token/lookup-self": true, "update auth/token/renew-self": true, "update auth/token/revoke-self": true,
		"update sys/capabilities-self": true, "read sys/internal/ui/resultant-acl": true, "read sys/internal/ui/mounts/secret/x": true,
		"read identity/entity/id/e-1": true, "read identity/entity/name/ada": true, "read identity/entity/id/e-2": false, "update identity/entity/id/e-1": false,
		"update sys/leases/lookup": true, "update sys/leases/renew": true, "update sys/leases/revoke": false, "update sys/lessor/leases/acknowledge": true, "update sys/lessor/leases/release": true, "update sys/lessor/leases/supersede": true, "list sys/leases/lookup/": false,
		"create cubbyhole/x/y": true, "list cubbyhole/": true, "patch cubbyhole/x": false,
		"update sys/wrapping/unwrap": true, "update sys/wrapping/wrap": true, "update sys/wrapping/lookup": true, "update sys/wrapping/rewrap": false,
		"update sys/tools/random/32": true, "update sys/tools/hash": true, "update sys/control-group/request": true, "update sys/control-group/authorize": false,
		"read secret/x": false, "read sys/mounts": false, "update auth/token/create": false,
	} {
		op, f := request(req)
		if d := check(t, a, somebody, op, f); d.Grant.Valid() != want {
			t.Errorf("%s: granted %v, want %v", req, d.Grant.Valid(), want)
		}
	}
}

func TestTemplates(t *testing.T) {
	for _, c := range []struct{ path, want string }{ // want: what it becomes for somebody; empty: it is dropped
		{"plain", "plain"},
		{"a/{{identity.entity.id}}", "a/e-1"},
		{"a/{{ identity.entity.name }}/*", "a/ada/*"},
		{"/{{identity.entity.name}}", "ada"},
		{"{{identity.entity.name}}-{{identity.entity.id}}/+", "ada-e-1/+"},
		{"a/{{identity.entity.metadata.team}}", "a/blue"},
		{"a/{{identity.entity.metadata.slash}}", "a/x/y"},
		{"a/{{identity.entity.metadata.empty}}", ""},
		{"a/{{identity.entity.metadata.missing}}", ""},
		{"a/{{identity.entity.metadata.star}}", ""},
		{"a/{{identity.entity.name}}/{{identity.entity.metadata.missing}}", ""},
		{"a/{{identity.entity.aliases.auth_userpass_1.id}}", "a/al-1"},
		{"a/{{identity.entity.aliases.auth_userpass_1.name}}", "a/ada@corp"},
		{"a/{{identity.entity.aliases.auth_userpass_1.metadata.uid}}", "a/7"},
		{"a/{{identity.entity.aliases.auth_userpass_2.name}}", ""},
		{"a/{{identity.groups.ids.g-1.name}}", "a/ops"},
		{"a/{{identity.groups.names.ops.id}}", "a/g-1"},
		{"a/{{identity.groups.names.ops.metadata.site}}", "a/bern"},
		{"a/{{identity.groups.names.dev.id}}", ""},
		{"a/{{identity.groups.ids.ops.id}}", ""},
	} {
		p := dev(t, fmt.Sprintf("path %q { capabilities = [\"read\"] }", c.path))
		if got := Templated([]*Policy{nil, p}); got != strings.Contains(c.path, "{{") {
			t.Errorf("%s: templated %v", c.path, got)
		}
		a := Compile([]*Policy{p}, somebody)
		var got string
		if len(a.all) > 0 {
			got = a.all[0].pattern
		}
		if got != c.want {
			t.Errorf("%s became %q, want %q", c.path, got, c.want)
		}
		if (c.want == "") != (len(a.unresolved) == 1) {
			t.Errorf("%s: unresolved %v", c.path, a.unresolved)
		}
		for _, stranger := range []*lessor.Principal{nil, {}, {Groups: somebody.Groups, Aliases: somebody.Aliases}} {
			if b := Compile([]*Policy{p}, stranger); len(b.all) > 0 && strings.Contains(c.path, "{{") {
				t.Errorf("%s became %q for nobody", c.path, b.all[0].pattern)
			}
		}
	}
	for _, bad := range []string{
		"{{", "}}", "a/{{}}", "{{identity.entity.id}", "{{{identity.entity.id}}}", "{{identity.entity}}", "{{identity.entity.metadata}}", "{{identity.entity.metadata.}}",
		"{{identity.entity.aliases.x}}", "{{identity.entity.aliases..id}}", "{{identity.groups.ids.x}}", "{{identity.groups.other.x.id}}", "{{identity.groups.names..id}}",
		"{{identity.entity.groups.names}}", "{{time.now}}", "{{identity.entity.id{{identity.entity.id}}}}", "{{identity.entity.aliases.x.custom_metadata.k}}",
	} {
		if _, err := Parse("dev", fmt.Sprintf("path %q { }", bad)); err == nil {
			t.Errorf("%s parsed", bad)
		}
	}
}

// A template that resolves to the same path as another stanza joins it; a denial does so as well.
func TestTemplatesUnite(t *testing.T) {
	a := Compile([]*Policy{
		dev(t, `path "u/{{identity.entity.name}}/*" { capabilities = ["read"] } path "u/+/*" { capabilities = ["list"] }`),
		dev(t, `path "u/ada/*" { capabilities = ["update"] } path "{{identity.entity.name}}" { capabilities = ["deny"] } path "ada" { capabilities = ["read"] }`),
	}, somebody)
	if got := strings.Join(a.Capabilities("u/ada/x"), " "); got != "read update" {
		t.Error(got)
	}
	if got := strings.Join(a.Capabilities("ada"), " "); got != "deny" {
		t.Error(got)
	}
}

func TestVariant(t *testing.T) {
	plain, templated := dev(t, `path "a" {}`), dev(t, `path "u/{{identity.entity.name}}" {} path "b" {} path "t/{{identity.entity.metadata.team}}" {}`)
	if v := Variant([]*Policy{plain, nil, Root()}, somebody); v != "" {
		t.Errorf("%q", v)
	}
	person := func(name, team string) *lessor.Principal {
		return &lessor.Principal{Entity: "e", EntityName: name, EntityMeta: map[string]string{"team": team}}
	}
	seen := map[string]string{}
	for _, p := range []*lessor.Principal{nil, person("ada", "blue"), person("ada", ""), person("ada", "red"), person("", "blue"), person("adat/", "blue"), person("ada", "t/blue"), person("adau/", "")} {
		list := []*Policy{plain, templated, templated}
		var patterns []string
		for _, s := range Compile(list, p).all {
			patterns = append(patterns, s.pattern)
		}
		v, acl := Variant(list, p), strings.Join(patterns, " ")
		if v == "" || v != Variant(list, p) {
			t.Errorf("%q", v)
		}
		if other, ok := seen[v]; ok && other != acl {
			t.Errorf("the same variant for %s and %s", other, acl)
		}
		seen[v] = acl
	}
	if len(seen) != 8 {
		t.Errorf("%d variants", len(seen))
	}
}
