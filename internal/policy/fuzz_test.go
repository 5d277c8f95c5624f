package policy

import (
	"regexp"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

var place = regexp.MustCompile(`^policy "fuzz", line [1-9][0-9]*, column [1-9][0-9]*: .`)

// FuzzParse: no document makes it panic; what is refused is refused with a place and a text; what parses compiles,
// decides, explains the same, and never grants what no rule names.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "#", "/*", `path "a" {}`, `path "a" { capabilities = ["read"] }`, Default(),
		`path "secret/+/x*" { policy = "write" allowed_parameters = { "a" = ["x*", 1, true, [], {b = 1}], "*" = [] } min_wrapping_ttl = "1h" max_wrapping_ttl = 7200 }`,
		`path "a/{{identity.entity.name}}/{{identity.groups.names.ops.metadata.site}}" { capabilities = ["deny"] required_parameters = ["x"] denied_parameters { y = [] } }`,
		`path "a" { capabilities = ["read"] control_group = { ttl = "4h" factor "f" { controlled_capabilities = ["read"] identity { group_ids = ["g"] approvals = 2 } } } }`,
		`{"path": {"a/*": {"capabilities": ["read", "list"]}}}`, `{"path": [{"a": {"policy": "sudo"}}, {"b": {"comment": "\u00e9"}}]}`,
		`path = { "a" = { capabilities = ["list"] } }`, "path \"a\\x00\" { comment = \"\\U0001F600\" }", `name = "x"`, "\ufeff", `path "{{}}" {}`, `path "+" {} path "*" {} path "+/*" {}`,
	} {
		f.Add(seed, "a/b")
	}
	f.Fuzz(func(t *testing.T, source, path string) {
		p, err := Parse("fuzz", source)
		if err != nil {
			if api.KindOf(err) != api.Invalid || !place.MatchString(err.Error()) {
				t.Fatalf("%q", err)
			}
			return
		}
		for _, r := range p.Rules {
			if r.Path == "" || r.Capabilities.Has(Deny) && r.Capabilities != Deny || r.Line < 1 || r.MinWrap < 0 || r.MaxWrap < 0 {
				t.Fatalf("%+v", r)
			}
			if r.Control != nil {
				for _, factor := range r.Control.Factors {
					if factor.Approvals < 1 || len(factor.GroupIDs)+len(factor.GroupNames) == 0 {
						t.Fatalf("%+v", factor)
					}
				}
			}
		}
		a := Compile([]*Policy{p}, somebody)
		paths := []string{path}
		for _, s := range a.all {
			paths = append(paths, s.pattern, strings.NewReplacer("+", "x", "*", "y/z").Replace(s.pattern))
		}
		for _, path := range paths[:min(len(paths), 20)] {
			for verb := lessor.Read; verb <= lessor.Delete; verb++ {
				op := &lessor.Op{Verb: verb, Path: path, Data: map[string]any{"a": "x", "y": nil}}
				d := check(t, a, somebody, op, Facts{})
				if d.Grant.Valid() {
					need, _ := needed(verb, Facts{})
					s := a.find(path, verb == lessor.List)
					if s == nil || !s.capabilities.Has(need) {
						t.Fatalf("%v %q granted by %s", verb, path, d.Rule)
					}
				}
			}
			a.Capabilities(path)
			a.Reaches(path + "/")
		}
	})
}
