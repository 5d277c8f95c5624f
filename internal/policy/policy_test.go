package policy

import (
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// dev parses one policy named "dev", version 12.
func dev(t testing.TB, source string) *Policy {
	t.Helper()
	return named(t, "dev", 12, source)
}

func named(t testing.TB, name string, version uint64, source string) *Policy {
	t.Helper()
	p, err := Parse(name, source)
	if err != nil {
		t.Fatal(err)
	}
	p.Version = version
	return p
}

// acl compiles sources as the policies "a" version 1, "b" version 2, …
func acl(t testing.TB, sources ...string) *ACL {
	t.Helper()
	policies := make([]*Policy, len(sources))
	for i, source := range sources {
		policies[i] = named(t, string(rune('a'+i)), uint64(i+1), source)
	}
	return Compile(policies, nil)
}

var somebody = &lessor.Principal{
	Entity: "e-1", EntityName: "ada", Accessor: "acc", TokenKind: lessor.Service,
	EntityMeta: map[string]string{"team": "blue", "empty": "", "star": "a*", "slash": "x/y"},
	Aliases:    []lessor.Alias{{ID: "al-1", Name: "ada@corp", MountAccessor: "auth_userpass_1", Metadata: map[string]string{"uid": "7"}}},
	Groups:     []lessor.Group{{ID: "g-1", Name: "ops", Metadata: map[string]string{"site": "bern"}}},
}

var verbsByName = map[string]lessor.Verb{
	"read": lessor.Read, "list": lessor.List, "create": lessor.Create, "update": lessor.Update, "patch": lessor.Patch, "delete": lessor.Delete,
}

// request turns "create secret/x" into an operation and its facts; create and update have an existence check.
func request(s string) (*lessor.Op, Facts) {
	verb, path, _ := strings.Cut(s, " ")
	op := &lessor.Op{Verb: verbsByName[verb], Namespace: lessor.RootNamespace, Path: path}
	f := Facts{Mount: "m-1", ExistsKnown: true, Exists: verb != "create"}
	if verb == "create" {
		op.Verb = lessor.Update // as it arrives
	}
	return op, f
}

// check decides, and verifies what holds for every decision.
func check(t testing.TB, a *ACL, p *lessor.Principal, op *lessor.Op, f Facts) Decision {
	t.Helper()
	d := Decide(a, p, op, f)
	if d.Grant.Valid() == (d.Denied != nil) {
		t.Fatalf("a decision must either grant or deny: %+v", d)
	}
	if d.Rule == "" {
		t.Fatalf("a decision without a rule: %+v", d)
	}
	if g := d.Grant; g.Valid() {
		if !g.Covers(op) || g.Mount() != f.Mount || g.Rule() != d.Rule || g.Policy() != d.Policy || g.Version() != d.Version || g.Granting()[0].Rule != d.Rule {
			t.Fatalf("grant and decision differ: %+v", d)
		}
	} else if d.Denied.Rule != d.Rule || !strings.HasPrefix(d.Denied.Text, "permission denied: ") {
		t.Fatalf("denial and decision differ: %+v", d)
	}
	if e := a.Explain(op, f); !background(p) && e.Granted != d.Grant.Valid() {
		t.Fatalf("explained %+v, decided %+v", e, d)
	} else if len(e.Candidates) > 0 && (!e.Candidates[0].Applied || e.Candidates[0].Pattern == "") {
		t.Fatalf("the first candidate did not apply: %+v", e)
	}
	return d
}
