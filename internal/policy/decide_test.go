package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// What people read when they are denied. These texts are part of the product.
func TestDenials(t *testing.T) {
	policies := []*Policy{
		named(t, "default", 1, `path "auth/token/lookup-self" { capabilities = ["read"] }`),
		named(t, "dev", 12, `
path "secret/data/*"      { capabilities = ["read", "create"] }
path "secret/data/prod/*" { capabilities = ["list"] }
path "secret/data/x/+"    { capabilities = ["deny"] }
path "sys/seal"           { capabilities = ["update"] }
path "wrap/min"           { capabilities = ["read"] min_wrapping_ttl = "1m" }
path "wrap/max"           { capabilities = ["read"] max_wrapping_ttl = "5m" }
path "wrap/both"          { capabilities = ["read"] min_wrapping_ttl = "1m" max_wrapping_ttl = "5m" }
path "wrap/never"         { capabilities = ["read"] min_wrapping_ttl = "10m" }
path "p/required"         { capabilities = ["update"] required_parameters = ["owner"] }
path "p/denied"           { capabilities = ["update"] denied_parameters = { "b" = [], "a" = ["bad"] } }
path "p/nothing"          { capabilities = ["update"] denied_parameters = { "*" = [] } }
path "p/allowed"          { capabilities = ["update"] allowed_parameters = { "a" = ["good"] } }
path "me/{{identity.entity.id}}" { capabilities = ["list"] }
path "approved/one"       { capabilities = ["read"] control_group = { factor "boss" { identity { group_names = ["managers"] approvals = 1 } } } }
path "approved/two"       { capabilities = ["read", "update"] control_group = {
    factor "boss" { controlled_capabilities = ["update"] identity { group_names = ["managers", "owners"] group_ids = ["g-7"] approvals = 2 } }
    factor "sec"  { identity { group_names = ["security"] approvals = 1 } } } }`),
		named(t, "ops", 3, `
path "secret/data/prod/*" { capabilities = ["delete"] }
path "secret/data/x/+"    { capabilities = ["read"] }
path "wrap/never"         { capabilities = ["read"] max_wrapping_ttl = "5m" }
path "p/required"         { capabilities = ["update"] }
path "me/e-1"             { capabilities = ["delete"] }`),
	}
	a := Compile(policies, somebody)
	for _, c := range []struct{ request, data, rule, policy, text string }{
		{"read secret/metadata/x", "", NoRule, "", `no rule of policies "default", "dev", "ops" matches read on "secret/metadata/x"`},
		{"update kv/x", "", NoRule, "", `no rule of policies "default", "dev", "ops" matches write on "kv/x"`},
		{"delete secret/data/a", "", `path "secret/data/*"`, "dev 12", `policy "dev" version 12, rule path "secret/data/*" has no "delete"`},
		{"update secret/data/a", "", `path "secret/data/*"`, "dev 12", `policy "dev" version 12, rule path "secret/data/*" has no "update"`},
		{"read secret/data/prod/a", "", `path "secret/data/prod/*"`, "dev 12", `policy "dev" version 12, policy "ops" version 3, rule path "secret/data/prod/*" has no "read"`},
		{"update secret/data/prod/a", "", `path "secret/data/prod/*"`, "dev 12", `policy "dev" version 12, policy "ops" version 3, rule path "secret/data/prod/*" has no "create" or "update"`},
		{"create secret/data/prod/a", "", `path "secret/data/prod/*"`, "dev 12", `policy "dev" version 12, policy "ops" version 3, rule path "secret/data/prod/*" has no "create" or "update"`},
		{"read secret/data/x/y", "", `path "secret/data/x/+"`, "dev 12", `policy "dev" version 12, rule path "secret/data/x/+" denies`},
		{"update sys/seal", "", `path "sys/seal"`, "dev 12", `policy "dev" version 12, rule path "sys/seal" has no "sudo", which this path takes too`},
		{"read wrap/min", "", `path "wrap/min"`, "dev 12", `policy "dev" version 12, rule path "wrap/min" requires the answer to be wrapped for at least 1m0s`},
		{"read wrap/max", "", `path "wrap/max"`, "dev 12", `policy "dev" version 12, rule path "wrap/max" requires the answer to be wrapped for at most 5m0s`},
		{"read wrap/both", "", `path "wrap/both"`, "dev 12", `policy "dev" version 12, rule path "wrap/both" requires the answer to be wrapped for at least 1m0s and at most 5m0s`},
		{"read wrap/never", "", `path "wrap/never"`, "dev 12", `policy "dev" version 12, policy "ops" version 3, rule path "wrap/never" requires the answer to be wrapped for at least 10m0s and at most 5m0s, which cannot be; change one of the policies`},
		{"update p/required", "", `path "p/required"`, "dev 12", `policy "dev" version 12, rule path "p/required" requires parameter "owner"`},
		{"update p/denied", `{"a":"bad","c":"x"}`, `path "p/denied"`, "dev 12", `policy "dev" version 12, rule path "p/denied" denies that value of parameter "a"`},
		{"update p/denied", `{"B":"x"}`, `path "p/denied"`, "dev 12", `policy "dev" version 12, rule path "p/denied" denies parameter "b"`},
		{"update p/nothing", `{"x":"x"}`, `path "p/nothing"`, "dev 12", `policy "dev" version 12, rule path "p/nothing" denies all parameters`},
		{"update p/allowed", `{"z":"1","y":"2","a":"good"}`, `path "p/allowed"`, "dev 12", `policy "dev" version 12, rule path "p/allowed" does not allow parameter "y"`},
		{"update p/allowed", `{"a":"hunter2"}`, `path "p/allowed"`, "dev 12", `policy "dev" version 12, rule path "p/allowed" does not allow that value of parameter "a"`},
		{"read me/e-1", "", `path "me/{{identity.entity.id}}"`, "dev 12", `policy "dev" version 12, rule path "me/{{identity.entity.id}}", policy "ops" version 3, rule path "me/e-1" has no "read"`},
		{"read approved/one", "", `path "approved/one"`, "dev 12", `policy "dev" version 12, rule path "approved/one" requires approvals, and there are none: 1 from group "managers" (factor "boss")`},
		{"update approved/two", "", `path "approved/two"`, "dev 12", `policy "dev" version 12, rule path "approved/two" requires approvals, and there are none: 2 from groups "managers", "owners", "g-7" (factor "boss"), 1 from group "security" (factor "sec")`},
		{"read approved/two", "", `path "approved/two"`, "dev 12", `policy "dev" version 12, rule path "approved/two" requires approvals, and there are none: 1 from group "security" (factor "sec")`},
	} {
		op, f := request(c.request)
		op.Data = data(t, c.data)
		f.Sudo = op.Path == "sys/seal"
		d := check(t, a, somebody, op, f)
		switch {
		case d.Grant.Valid():
			t.Errorf("%s granted by %s", c.request, d.Rule)
		case d.Denied.Text != "permission denied: "+c.text:
			t.Errorf("%s\n got %s\nwant %s", c.request, d.Denied.Text, "permission denied: "+c.text)
		case d.Rule != c.rule || strings.TrimSuffix(fmt.Sprint(d.Policy, " ", d.Version), " 0") != c.policy:
			t.Errorf("%s: rule %s, policy %s version %d; want %s, %s", c.request, d.Rule, d.Policy, d.Version, c.rule, c.policy)
		case d.Denied.Kind != api.Denied || api.KindOf(d.Denied) != api.Denied || d.Denied.Cause != nil:
			t.Errorf("%s: %+v", c.request, d.Denied)
		}
		if e := a.Explain(op, f); e.Text != d.Denied.Text {
			t.Errorf("%s: denied as %q, explained as %q", c.request, d.Denied.Text, e.Text)
		}
	}
	for _, c := range []struct {
		acl  *ACL
		text string
	}{
		{nil, `permission denied: no policy is attached, so none matches read on "x"`},
		{Compile(nil, nil), `permission denied: no policy is attached, so none matches read on "x"`},
		{Compile([]*Policy{dev(t, "")}, nil), `permission denied: no rule of policy "dev" matches read on "x"`},
	} {
		op, f := request("read x")
		if d := check(t, c.acl, nil, op, f); d.Grant.Valid() || d.Denied.Text != c.text {
			t.Errorf("got %+v, want %s", d, c.text)
		}
	}
}

// A denial is bounded, however long what it names is.
func TestDenialsAreShort(t *testing.T) {
	var policies []*Policy
	for i := range 500 {
		policies = append(policies, named(t, fmt.Sprintf("policy-%d", i), 1, `path "a" { capabilities = ["list"] allowed_parameters = { "x" = [] } }`))
	}
	a := Compile(policies, nil)
	for _, op := range []*lessor.Op{
		{Verb: lessor.Read, Path: "a"},
		{Verb: lessor.Read, Path: strings.Repeat("b", 1<<16)},
	} {
		if d := Decide(a, somebody, op, Facts{}); d.Grant.Valid() || len(d.Denied.Text) > 1000 {
			t.Errorf("%d bytes: %.300s", len(d.Denied.Text), d.Denied.Text)
		}
	}
	long := acl(t, `path "a" { capabilities = ["update"] allowed_parameters = { "x" = [] } }`)
	op := &lessor.Op{Verb: lessor.Update, Path: "a", Data: map[string]any{strings.Repeat("k", 1<<16): 1}}
	if d := Decide(long, somebody, op, Facts{}); d.Grant.Valid() || len(d.Denied.Text) > 300 {
		t.Errorf("%d bytes", len(d.Denied.Text))
	}
}

// The text of a denied write does not tell whether something is there.
func TestDenialsKeepExistenceSecret(t *testing.T) {
	a := acl(t, `
path "neither" { capabilities = ["read"] }
path "denied"  { capabilities = ["deny"] }
path "both"    { capabilities = ["create", "update"] required_parameters = ["x"] }
path "asked"   { capabilities = ["create", "update"] control_group = { factor "f" { identity { group_names = ["g"] approvals = 1 } } } }`)
	for _, path := range []string{"neither", "denied", "both", "asked", "unmatched"} {
		for _, verb := range []lessor.Verb{lessor.Create, lessor.Update} {
			op := &lessor.Op{Verb: verb, Path: path}
			there := Decide(a, somebody, op, Facts{ExistsKnown: true, Exists: true})
			absent := Decide(a, somebody, op, Facts{ExistsKnown: true, Exists: false})
			if there.Denied == nil || absent.Denied == nil || *there.Denied != *absent.Denied {
				t.Errorf("%s: %v, but %v", path, there.Denied, absent.Denied)
			}
		}
	}
	create, update := &lessor.Op{Verb: lessor.Create, Path: "x"}, &lessor.Op{Verb: lessor.Update, Path: "x"}
	if c, u := Decide(a, somebody, create, Facts{}), Decide(a, somebody, update, Facts{}); c.Denied.Text != u.Denied.Text {
		t.Errorf("%s, but %s", c.Denied.Text, u.Denied.Text)
	}
}

func TestWhoIsGranted(t *testing.T) {
	root := Compile([]*Policy{Root()}, nil)
	some := acl(t, `path "a/*" { capabilities = ["read"] }`)
	rootHolder := &lessor.Principal{Root: true, Accessor: "r", TokenKind: lessor.Service, Policies: []string{"root"}}
	reaper := &lessor.Principal{System: "reaper"}
	for _, c := range []struct {
		what    string
		acl     *ACL
		p       *lessor.Principal
		request string
		facts   Facts
		want    string // rule, policy; empty: denied
	}{
		{"rule", some, somebody, "read a/b", Facts{}, `path "a/*", a`},
		{"anybody, open", nil, nil, "update auth/userpass/login/ada", Facts{Open: true}, "open, "},
		{"anonymous, open", nil, &lessor.Principal{}, "update auth/userpass/login/ada", Facts{Open: true}, "open, "},
		{"somebody, open", some, somebody, "read sys/health", Facts{Open: true}, "open, "},
		{"anybody, not open", nil, nil, "read a/b", Facts{}, ""},
		{"root", root, rootHolder, "delete anything", Facts{Sudo: true}, "*, root"},
		{"root policy, but not root", root, somebody, "read a/b", Facts{}, ""},
		{"root policy, nobody", root, nil, "read a/b", Facts{}, ""},
		{"root, but not its policy", some, rootHolder, "read b", Facts{}, ""},
		{"root, no ACL", nil, rootHolder, "read b", Facts{}, ""},
		{"background", nil, reaper, "delete a/b", Facts{Sudo: true}, "system:reaper, system"},
		{"a request that calls itself background", some, &lessor.Principal{System: "reaper", Accessor: "x", TokenKind: lessor.Service}, "delete a/b", Facts{}, ""},
		{"a batch token that calls itself background", some, &lessor.Principal{System: "reaper", TokenKind: lessor.Batch}, "delete a/b", Facts{}, ""},
		{"no verb", some, somebody, "? a/b", Facts{}, ""},
	} {
		op, _ := request(c.request)
		c.facts.Mount = "m-9"
		d := Decide(c.acl, c.p, op, c.facts)
		got := ""
		if d.Grant.Valid() {
			got = d.Grant.Rule() + ", " + d.Grant.Policy()
		}
		if got != c.want || d.Grant.Valid() == (d.Denied != nil) {
			t.Errorf("%s: granted by %q, want %q (%v)", c.what, got, c.want, d.Denied)
		}
		if d.Grant.Valid() && !d.Grant.Covers(op) {
			t.Errorf("%s: the grant does not cover its operation", c.what)
		}
	}
	if _, err := Parse("fake", `name = "root" path "*" { capabilities = ["root"] }`); err == nil {
		t.Error("root is not a capability that a policy can give")
	}
	named := *dev(t, ``)
	named.Name = "root"
	op, f := request("read x")
	if d := Decide(Compile([]*Policy{&named}, nil), rootHolder, op, f); d.Grant.Valid() {
		t.Error("a parsed policy is not the root policy, whatever its name")
	}
}

func TestGrantCovers(t *testing.T) {
	a := acl(t, `path "*" { capabilities = ["create", "read", "update", "patch", "delete", "list"] }`)
	base := func() *lessor.Op {
		return &lessor.Op{
			ID: "1", Verb: lessor.Update, Namespace: 1, Path: "secret/a", Data: data(t, `{"a":"1","b":{"c":2}}`),
			WrapTTL: time.Minute, Token: lessor.NewSecret("t"), Time: time.Unix(1, 0),
		}
	}
	exists := Facts{Mount: "m", ExistsKnown: true, Exists: true}
	grant := Decide(a, somebody, base(), exists).Grant
	for what, change := range map[string]func(*lessor.Op){
		"verb":      func(op *lessor.Op) { op.Verb = lessor.Read },
		"create":    func(op *lessor.Op) { op.Verb = lessor.Create }, // what was granted is an update
		"namespace": func(op *lessor.Op) { op.Namespace = 2 },
		"path":      func(op *lessor.Op) { op.Path = "secret/b" },
		"value":     func(op *lessor.Op) { op.Data["a"] = "2" },
		"deep":      func(op *lessor.Op) { op.Data["b"].(map[string]any)["c"] = "3" },
		"more":      func(op *lessor.Op) { op.Data["d"] = nil },
		"less":      func(op *lessor.Op) { delete(op.Data, "a") },
		"no data":   func(op *lessor.Op) { op.Data = nil },
		"wrapping":  func(op *lessor.Op) { op.WrapTTL = 0 },
	} {
		op := base()
		change(op)
		if grant.Covers(op) {
			t.Errorf("the grant covers an operation with another %s", what)
		}
	}
	again := base()
	again.ID, again.Time, again.Token = "2", time.Unix(2, 0), lessor.NewSecret("u")
	if !grant.Covers(base()) || !grant.Covers(again) {
		t.Error("the grant does not cover the same operation")
	}

	created := Decide(a, somebody, base(), Facts{ExistsKnown: true}).Grant
	op := base()
	op.Verb = lessor.Create
	if created.Verb() != lessor.Create || !created.Covers(base()) || !created.Covers(op) {
		t.Error("a granted write covers the operation as it came, and as it was found to be")
	}

	var zero Grant
	if zero.Valid() || zero.Covers(base()) || zero.Covers(&lessor.Op{}) || zero.Rule() != "" || zero.Granting() != nil || zero.Verb() != 0 {
		t.Error("the zero grant permits nothing")
	}
	denied := Decide(nil, nil, base(), exists)
	if denied.Grant != zero || denied.Grant.Covers(base()) {
		t.Error("a denial carries no grant")
	}
}

func TestGranting(t *testing.T) {
	a := acl(t,
		`path "x/*" { capabilities = ["read"] } path "x/*" { capabilities = ["read"] }`,
		`path "x/*" { capabilities = ["update", "create"] }`,
		`path "x/*" { capabilities = ["update", "read"] } path "x/y/*" { capabilities = ["list"] }`)
	for req, want := range map[string]string{"read x/1": "a1 c3", "update x/1": "b2 c3", "create x/1": "b2", "list x/y/1": "c3"} {
		op, f := request(req)
		var got []string
		for _, o := range check(t, a, somebody, op, f).Grant.Granting() {
			got = append(got, fmt.Sprint(o.Policy, o.Version))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s granted by %v, want %s", req, got, want)
		}
	}
}

func TestExplain(t *testing.T) {
	policies := []*Policy{
		named(t, "default", 1, `path "*" { capabilities = ["read"] } path "mine/{{identity.entity.metadata.nothing}}/*" { capabilities = ["read"] }`),
		named(t, "dev", 12, `
path "secret/*"                            { capabilities = ["read", "list"] }
path "secret/{{identity.entity.name}}/*"   { capabilities = ["list"] }
path "secret/+/db"                         { capabilities = ["read"] }
path "secret/ada/db"                       { capabilities = ["update"] }
path "secret/+/+"                          { capabilities = ["update"] }
path "other"                               { capabilities = ["update"] }`),
	}
	a := Compile(policies, somebody)
	op, f := request("read secret/ada/db")
	e := a.Explain(op, f)
	if e.Granted || e.Operation != "read" || e.Origin != (Origin{`path "secret/ada/db"`, "dev", 12}) ||
		e.Text != `permission denied: policy "dev" version 12, rule path "secret/ada/db" has no "read"` {
		t.Errorf("%+v", e)
	}
	var got []string
	for _, c := range e.Candidates {
		got = append(got, fmt.Sprint(c.Pattern, " ", c.Rules[0].Rule, " ", c.Applied, " ", c.Why))
	}
	want := []string{
		`secret/ada/db path "secret/ada/db" true it is the path itself`,
		`secret/ada/* path "secret/{{identity.entity.name}}/*" false "secret/ada/db" precedes, since it is the path itself`,
		`secret/+/db path "secret/+/db" false "secret/ada/db" precedes, since it is the path itself`,
		`secret/+/+ path "secret/+/+" false "secret/ada/db" precedes, since it is the path itself`,
		`secret/* path "secret/*" false "secret/ada/db" precedes, since it is the path itself`,
		`* path "*" false "secret/ada/db" precedes, since it is the path itself`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(e.Unresolved) != 1 || e.Unresolved[0].Policy != "default" {
		t.Errorf("unresolved: %v", e.Unresolved)
	}
	op, f = request("read secret/bob/x")
	e = a.Explain(op, f)
	if e.Granted || e.Candidates[0].Pattern != "secret/+/+" || e.Candidates[1].Why != `"secret/+/+" precedes, since this one ends in *` {
		t.Errorf("%+v", e)
	}
	op, f = request("read other/x")
	if e = a.Explain(op, f); !e.Granted || e.Text != `granted: policy "default" version 1, rule path "*"` {
		t.Errorf("%+v", e)
	}
}

func TestDenialIsAnError(t *testing.T) {
	d := Decide(nil, nil, &lessor.Op{Verb: lessor.Read, Path: "x"}, Facts{})
	var err error = d.Denied
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Kind.Status() != 403 {
		t.Errorf("%v", err)
	}
}
