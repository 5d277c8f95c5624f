package policy

import (
	"fmt"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// many compiles n policies of ten rules each: four exact, three prefixes, three with segments.
func many(b *testing.B, n int) *ACL {
	b.Helper()
	policies := make([]*Policy, n)
	for i := range policies {
		policies[i] = named(b, fmt.Sprintf("team-%d", i), 1, fmt.Sprintf(`
path "secret/data/team-%[1]d/db"            { capabilities = ["read"] }
path "secret/data/team-%[1]d/api"           { capabilities = ["read", "update"] allowed_parameters = { "data" = [], "options" = [] } }
path "secret/metadata/team-%[1]d"           { capabilities = ["list"] }
path "database/creds/team-%[1]d"            { capabilities = ["read"] }
path "secret/data/team-%[1]d/*"             { capabilities = ["create", "read", "update"] }
path "secret/metadata/team-%[1]d/*"         { capabilities = ["read", "list", "delete"] }
path "transit/encrypt/team-%[1]d-*"         { capabilities = ["update"] }
path "secret/data/+/shared/team-%[1]d"      { capabilities = ["read"] }
path "secret/data/+/shared/team-%[1]d/*"    { capabilities = ["read"] }
path "pki/+/issue/team-%[1]d-*"             { capabilities = ["update"] }`, i))
	}
	return Compile(policies, nil)
}

var kept Decision

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 1000} {
		a := many(b, n)
		team := n / 2
		for _, c := range []struct {
			name, request, path string
			granted             bool
		}{
			{"exact", "read", "secret/data/team-%d/db", true},
			{"prefix", "read", "secret/data/team-%d/some/where/else", true},
			{"segment", "read", "secret/data/other/shared/team-%d", true},
			{"segment-prefix", "update", "pki/eu/issue/team-%d-web", true},
			{"denied", "delete", "secret/data/team-%d/db", false},
			{"unmatched", "read", "nowhere/%d", false},
		} {
			op, f := request(c.request + " " + fmt.Sprintf(c.path, team))
			b.Run(fmt.Sprintf("policies=%d/%s", n, c.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					kept = Decide(a, somebody, op, f)
				}
				if kept.Grant.Valid() != c.granted {
					b.Fatalf("%+v", kept)
				}
			})
		}
	}
}

func BenchmarkFind(b *testing.B) {
	a := many(b, 1000)
	for name, path := range map[string]string{"exact": "secret/data/team-500/db", "prefix": "secret/data/team-500/some/where", "segment": "secret/data/other/shared/team-500", "none": "nowhere"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				a.find(path, false)
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{1, 10, 1000} {
		var policies []*Policy
		for i := range n {
			policies = append(policies, named(b, fmt.Sprint(i), 1, Default()+fmt.Sprintf("path \"secret/%d/*\" { capabilities = [\"read\"] }\n", i)))
		}
		b.Run(fmt.Sprintf("policies=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Compile(policies, somebody)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	b.SetBytes(int64(len(Default())))
	for b.Loop() {
		if _, err := Parse("default", Default()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDigest(b *testing.B) {
	op := &lessor.Op{Verb: lessor.Read, Path: "secret/data/team-500/db"}
	b.ReportAllocs()
	for b.Loop() {
		digest(op)
	}
}
