package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// In each case the path matches both patterns, and the first one precedes. Whoever changes the order of precedence
// changes what existing policies mean.
func TestPrecedence(t *testing.T) {
	for _, c := range []struct{ path, wins, loses, why string }{
		{"secret/a", "secret/a", "secret/+", "exact before segment"},
		{"secret/a", "secret/a", "secret/*", "exact before prefix"},
		{"secret/a", "secret/a", "secret/a*", "exact before a prefix that is as long"},
		{"secret/a/b", "secret/a/*", "secret/*", "longer prefix"},
		{"secret/ab", "secret/a*", "secret/*", "longer prefix within a segment"},
		{"secret/a", "secret/*", "*", "any prefix before *"},
		{"secret/ab", "secret/a*", "secret/+", "later first wildcard"},
		{"a/b/c", "a/b/+", "a/+/c", "later first wildcard"},
		{"a/b/c/d", "a/b/*", "a/+/c/d", "later first wildcard, though it is a prefix"},
		{"a/(/(/d", "a/(/+/d", "a/+/(/d", "later first wildcard, whatever bytes surround it"},
		{"secret/a", "secret/+", "secret/*", "segment before prefix at the same place"},
		{"a/b/c", "a/+/c", "a/+/c*", "no * before *"},
		{"a/b/c", "a/+/c", "a/+/*", "no * before *"},
		{"a/b/c/d", "a/+/+/d", "a/+/c/*", "no * counts before the number of +"},
		{"a/b/c/d", "a/+/c/d", "a/+/+/d", "fewer +"},
		{"a/b/c/d", "a/+/c/*", "a/+/+/*", "fewer + among prefixes"},
		{"a/b/c/d", "a/+/c/d", "a/+/+/*", "fewer +, no *"},
		{"a/b/cde", "a/+/cd*", "a/+/c*", "longer"},
		{"a/b/c/d", "a/+/c/d*", "a/+/c/*", "longer"},
		{"a/b/c", "+/+/c", "+/+/+", "fewer + from the beginning"},
		{"a/b/c", "+/b/+", "+/*", "no * before *"},
		{"a/b/c", "*", "+/*", "* alone has no +"},
		{"a/b", "+/b", "*", "segment before *"},
		{"a/b/c/d", "+/+/c/d", "+/b/+/+", "fewer +, wherever they stand"},
		{"a/b/c/d", "+/b/c/+", "+/+/c/d", "byte order, when all else is equal"},
	} {
		for _, order := range [][2]string{{c.wins, c.loses}, {c.loses, c.wins}} {
			source := ""
			for _, pattern := range order {
				capabilities := "update"
				if pattern == c.wins {
					capabilities = "read"
				}
				source += fmt.Sprintf("path %q { capabilities = [%q] }\n", pattern, capabilities)
			}
			a := acl(t, source)
			op, f := request("read " + c.path)
			if d := check(t, a, somebody, op, f); !d.Grant.Valid() || d.Rule != fmt.Sprintf("path %q", c.wins) {
				t.Errorf("%s: %q should precede %q (%s), decided by %s", c.path, c.wins, c.loses, c.why, d.Rule)
			}
			if e := a.Explain(op, f); len(e.Candidates) != 2 {
				t.Errorf("%s: %q and %q should both match: %+v", c.path, c.wins, c.loses, e.Candidates)
			}
		}
	}
}

func TestMatching(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"a", []string{"a"}, []string{"", "b", "a/", "ab", "a/b"}},
		{"/a", []string{"a", "/a"}, []string{"a/"}},
		{"a/", []string{"a/"}, []string{"a", "a/b"}},
		{"a*", []string{"a", "ab", "a/b/c"}, []string{"", "b/a"}},
		{"a/*", []string{"a/", "a/b", "a/b/c"}, []string{"a", "ab"}},
		{"*", []string{"", "a", "a/b/"}, nil},
		{"a**", []string{"a*", "a*b"}, []string{"a", "ab"}},
		{"a/*/c", []string{"a/*/c"}, []string{"a/b/c"}},
		{"+", []string{"a", ""}, []string{"a/", "a/b"}},
		{"a/+", []string{"a/b", "a/"}, []string{"a", "a/b/", "a/b/c"}},
		{"a/+/", []string{"a/b/", "a//"}, []string{"a/b", "a/b/c"}},
		{"a/+/c", []string{"a/b/c", "a//c"}, []string{"a/c", "a/b/d", "a/b/c/", "a/b/b/c"}},
		{"+/b", []string{"a/b", "/a/b"[1:]}, []string{"b", "a/b/c"}},
		{"a/+/*", []string{"a/b/", "a/b/c", "a/b/c/d"}, []string{"a/b", "a/"}},
		{"a/+/c*", []string{"a/b/c", "a/b/cd", "a/b/c/d"}, []string{"a/b/", "a/b/d"}},
		{"+/+/*", []string{"a/b/", "a/b/c"}, []string{"a/b", "a"}},
		{"a+/b", []string{"a+/b"}, []string{"ax/b"}},
		{"a/+b", []string{"a/+b"}, []string{"a/b", "a/xb"}},
		{"a/+b*", []string{"a/+b", "a/+bc/d"}, []string{"a/xb"}},
	} {
		a := acl(t, fmt.Sprintf("path %q { capabilities = [\"read\"] }", c.pattern))
		for _, path := range c.yes {
			op, f := request("read " + path)
			if d := check(t, a, somebody, op, f); !d.Grant.Valid() {
				t.Errorf("%q should match %q: %v", c.pattern, path, d.Denied)
			}
		}
		for _, path := range c.no {
			op, f := request("read " + path)
			if d := check(t, a, somebody, op, f); d.Grant.Valid() {
				t.Errorf("%q should not match %q", c.pattern, path)
			}
		}
	}
}

func TestOperations(t *testing.T) {
	const layered = `
path "dev/*"              { policy = "sudo" }
path "stage/*"            { policy = "write" }
path "stage/aws/*"        { policy = "read" capabilities = ["update", "sudo"] }
path "prod/*"             { policy = "read" }
path "prod/aws/*"         { policy = "deny" }
path "patched"            { capabilities = ["read", "create", "patch"] }
path "both/*"             { capabilities = ["deny", "read"] }
path "nothing/*"          { }
path "1/2/*"              { capabilities = ["create"] }
path "1/2/+"              { capabilities = ["read"] }
path "1/2/+/+"            { capabilities = ["update"] }`
	const above = `
path "dev/hide/*"         { policy = "deny" }
path "stage/aws/*"        { capabilities = ["delete"] }
path "prod/*"             { policy = "write" }
path "patched"            { capabilities = ["deny"] }
path "nothing/*"          { capabilities = ["list"] }`
	one, two := acl(t, layered), acl(t, layered, above)
	for _, c := range []struct {
		request  string
		one, two bool
	}{
		{"read dev/x", true, true}, {"patch dev/x", false, false},
		{"read dev/hide/x", true, false}, {"create dev/x", true, true},
		{"delete stage/x", true, true}, {"list stage/aws/x", true, true}, {"update stage/aws/x", true, true},
		{"delete stage/aws/x", false, true}, {"create stage/aws/x", false, false},
		{"update prod/x", false, true}, {"read prod/x", true, true}, {"list prod/x", true, true}, {"read prod/aws/x", false, false},
		{"read patched", true, false}, {"create patched", true, false}, {"patch patched", true, false}, {"update patched", false, false},
		{"read both/x", false, false}, {"list nothing/x", false, true}, {"read nothing/x", false, false},
		{"read elsewhere", false, false}, {"read dev", false, false},
		{"read 1/2/3", true, true}, {"update 1/2/3", false, false}, {"read 1/2/3/4", false, false},
		{"update 1/2/3/4", true, true}, {"create 1/2/3/4/5", true, true},
	} {
		op, f := request(c.request)
		if d := check(t, one, somebody, op, f); d.Grant.Valid() != c.one {
			t.Errorf("%s, one policy: granted %v, want %v: %v", c.request, d.Grant.Valid(), c.one, d.Denied)
		}
		if d := check(t, two, somebody, op, f); d.Grant.Valid() != c.two {
			t.Errorf("%s, two policies: granted %v, want %v: %v", c.request, d.Grant.Valid(), c.two, d.Denied)
		}
	}
}

func TestLists(t *testing.T) {
	for _, c := range []struct {
		source, path, rule string // rule: which decides
	}{
		{`path "a/b" { capabilities = ["list"] }`, "a/b/", `path "a/b"`},
		{`path "a/b/" { capabilities = ["list"] }`, "a/b/", `path "a/b/"`},
		{`path "a/b" { capabilities = ["list"] } path "a/b/" { capabilities = ["deny"] }`, "a/b/", `path "a/b/"`},
		{`path "a/b/*" { capabilities = ["list"] }`, "a/b/", `path "a/b/*"`},
		{`path "a/+" { capabilities = ["list"] }`, "a/b/", `path "a/+"`},
		{`path "a/+/" { capabilities = ["list"] }`, "a/b/", `path "a/+/"`},
		// Without its trailing slash first, even if what matches then is less specific.
		{`path "a/*" { capabilities = ["list"] } path "a/b/*" { capabilities = ["deny"] }`, "a/b/", `path "a/*"`},
		{`path "a/b" { capabilities = ["list"] } path "a/b/*" { capabilities = ["deny"] }`, "a/b/", `path "a/b"`},
		{`path "a/b/" { capabilities = ["list"] }`, "a/b", NoRule},
		{`path "a/b" { capabilities = ["list"] }`, "a/b//", NoRule},
	} {
		op, f := request("list " + c.path)
		d := check(t, acl(t, c.source), somebody, op, f)
		if d.Rule != c.rule {
			t.Errorf("%s: list %s decided by %s, want %s", c.source, c.path, d.Rule, c.rule)
		}
	}
	op, f := request("read a/b/")
	if d := check(t, acl(t, `path "a/b" { capabilities = ["read"] }`), somebody, op, f); d.Grant.Valid() {
		t.Error("only a list may leave out the trailing slash")
	}
}

func TestExistence(t *testing.T) {
	create := acl(t, `path "a" { capabilities = ["create"] }`)
	update := acl(t, `path "a" { capabilities = ["update"] }`)
	for _, c := range []struct {
		facts          Facts
		create, update bool
		verb           lessor.Verb
	}{
		{Facts{ExistsKnown: true, Exists: false}, true, false, lessor.Create},
		{Facts{ExistsKnown: true, Exists: true}, false, true, lessor.Update},
		{Facts{ExistsKnown: false, Exists: false}, false, true, lessor.Update},
		{Facts{ExistsKnown: false, Exists: true}, false, true, lessor.Update},
	} {
		for _, asked := range []lessor.Verb{lessor.Create, lessor.Update} {
			op := &lessor.Op{Verb: asked, Path: "a"}
			d, e := check(t, create, somebody, op, c.facts), check(t, update, somebody, op, c.facts)
			if d.Grant.Valid() != c.create || e.Grant.Valid() != c.update {
				t.Errorf("%v %+v: create %v, update %v", asked, c.facts, d.Grant.Valid(), e.Grant.Valid())
			}
			if got := max(d.Grant.Verb(), e.Grant.Verb()); got != c.verb {
				t.Errorf("%v %+v: granted %v, want %v", asked, c.facts, got, c.verb)
			}
		}
	}
}

func TestSudo(t *testing.T) {
	a := acl(t, `path "plain" { capabilities = ["read"] } path "high" { capabilities = ["read", "sudo"] } path "only" { capabilities = ["sudo"] }`)
	for path, want := range map[string][2]bool{"plain": {true, false}, "high": {true, true}, "only": {false, false}} {
		for i, sudo := range []bool{false, true} {
			op, f := request("read " + path)
			f.Sudo = sudo
			if d := check(t, a, somebody, op, f); d.Grant.Valid() != want[i] {
				t.Errorf("read %s, sudo needed %v: granted %v", path, sudo, d.Grant.Valid())
			}
		}
	}
}

func TestSudoAtPath(t *testing.T) {
	a := acl(t, `path "a" { capabilities = ["sudo"] } path "b/*" { capabilities = ["sudo", "read"] } path "b/no" { capabilities = ["read"] }
path "c" { capabilities = ["sudo"] }`, `path "c" { capabilities = ["deny"] }`)
	for path, want := range map[string]bool{"a": true, "a/": false, "b/x": true, "b/no": false, "c": false, "d": false} {
		if got := a.Sudo(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
	if (*ACL)(nil).Sudo("a") || !Compile([]*Policy{Root()}, nil).Sudo("a") {
		t.Error("nil has no sudo, root has")
	}
}

func TestWrapping(t *testing.T) {
	a := acl(t, `
path "min"    { capabilities = ["read", "list", "delete"] min_wrapping_ttl = "1m" }
path "max"    { capabilities = ["read"] max_wrapping_ttl = 300 }
path "within" { capabilities = ["read"] min_wrapping_ttl = 60 max_wrapping_ttl = "5m" }
path "united" { capabilities = ["read"] min_wrapping_ttl = "100" max_wrapping_ttl = "300s" }
path "broken" { capabilities = ["read"] min_wrapping_ttl = "10m" }`, `
path "united" { capabilities = ["read"] min_wrapping_ttl = "50" max_wrapping_ttl = "200" }
path "broken" { capabilities = ["read"] max_wrapping_ttl = "5m" }`)
	for path, granted := range map[string][]int{ // of these seconds
		"min":    {60, 200, 250, 300, 400, 900},
		"max":    {1, 49, 50, 60, 200, 250, 300},
		"within": {60, 200, 250, 300},
		"united": {50, 60, 200},
		"broken": nil,
	} {
		for _, seconds := range []int{0, 1, 49, 50, 60, 200, 250, 300, 400, 900} {
			op, f := request("read " + path)
			op.WrapTTL = time.Duration(seconds) * time.Second
			if d := check(t, a, somebody, op, f); d.Grant.Valid() != slices.Contains(granted, seconds) {
				t.Errorf("read %s wrapped for %ds: granted %v", path, seconds, d.Grant.Valid())
			}
		}
	}
	for _, unwrapped := range []string{"list min", "delete min"} { // bounds hold for every operation
		op, f := request(unwrapped)
		if d := check(t, a, somebody, op, f); d.Grant.Valid() {
			t.Errorf("%s granted without wrapping", unwrapped)
		}
	}
}

func TestParameters(t *testing.T) {
	a := acl(t, `
path "required"   { capabilities = ["update", "read", "list", "delete"] required_parameters = ["Foo", "bar"] }
path "denied"     { capabilities = ["update"] denied_parameters  = { "zip" = [], "Zap" = ["bad", "*evil", "evil*", "*worse*"] } }
path "denied/all" { capabilities = ["update"] denied_parameters  = { "*" = [] } }
path "allowed"    { capabilities = ["update", "read", "delete"] allowed_parameters = { "zip" = [], "zap" = ["good", "sub/*", "*/end"] } }
path "star"       { capabilities = ["update"] allowed_parameters = { "*" = [], "bar" = [false] } }
path "any"        { capabilities = ["update"] allowed_parameters = { "*" = [] } }
path "anyvalue"   { capabilities = ["update"] allowed_parameters = { "zap" = ["*"] } }
path "types"      { capabilities = ["update"] allowed_parameters = { "int" = [1, 2.50], "bool" = [false], "map" = [{ "good" = "one" }], "list" = ["a", "b", ["c", 1]] } }
path "no/types"   { capabilities = ["update"] denied_parameters  = { "int" = [1], "bool" = [true], "text" = ["true", "5"], "map" = [{ "bad" = "one" }], "list" = ["a"] } }
path "both"       { capabilities = ["update"] allowed_parameters = { "*" = [] } denied_parameters = { "zip" = ["x"] } }
path "empty"      { capabilities = ["update"] allowed_parameters = { "zap" = ["", []] } }
path "none"       { capabilities = ["update"] allowed_parameters = { } denied_parameters = { } required_parameters = [] }`)
	for _, c := range []struct {
		request, data string
		want          bool
	}{
		{"update required", `{"foo":1,"bar":2}`, true},
		{"update required", `{"foo":1}`, false},
		{"update required", ``, false},
		{"read required", ``, false},
		{"read required", `{"foo":"","bar":null}`, true},
		{"list required", ``, true},
		{"delete required", ``, true},
		{"update required", `{"FOO":1,"bar":2}`, false}, // the key has to be lower case itself

		{"update denied", `{"other":1}`, true},
		{"update denied", ``, true},
		{"update denied", `{"zip":1}`, false},
		{"update denied", `{"ZIP":1}`, false},
		{"update denied", `{"zap":"fine"}`, true},
		{"update denied", `{"zap":"bad"}`, false},
		{"update denied", `{"zAP":"bad"}`, false},
		{"update denied", `{"zap":"so evil"}`, false},
		{"update denied", `{"zap":"evilish"}`, false},
		{"update denied", `{"zap":"an evil thing"}`, true},
		{"update denied", `{"zap":"a worse thing"}`, false},
		{"update denied", `{"zap":["fine","bad"]}`, false},
		{"update denied", `{"zap":"fine, bad"}`, false},
		{"update denied", `{"zap":null}`, true},
		{"update denied/all", `{"x":1}`, false},
		{"update denied/all", `{}`, true},

		{"update allowed", `{"zip":{"any":"thing"}}`, true},
		{"update allowed", `{"zip":null}`, true},
		{"update allowed", `{"ZIP":1}`, true},
		{"update allowed", `{"zap":"good"}`, true},
		{"update allowed", `{"zap":"bad"}`, false},
		{"update allowed", `{"zap":"sub/x"}`, true},
		{"update allowed", `{"zap":"x/end"}`, true},
		{"update allowed", `{"zap":null}`, false},
		{"update allowed", `{"zap":["good","sub/1"]}`, true},
		{"update allowed", `{"zap":["good","bad"]}`, false},
		{"update allowed", `{"zap":"good, sub/1"}`, true},
		{"update allowed", `{"zap":"good,bad"}`, false},
		{"update allowed", `{"zap":""}`, false}, // would lift the restriction
		{"update allowed", `{"zap":[]}`, false},
		{"update empty", `{"zap":""}`, true},
		{"update empty", `{"zap":[]}`, true},
		{"update allowed", `{"other":1}`, false},
		{"update allowed", `{"zip":1,"other":1}`, false},
		{"update allowed", ``, true},
		{"read allowed", `{"other":1}`, false},
		{"delete allowed", `{"other":1}`, true},

		{"update star", `{"anything":true}`, true},
		{"update star", `{"bar":false}`, true},
		{"update star", `{"bar":true}`, false},
		{"update any", `{"x":1}`, true},
		{"update anyvalue", `{"zap":"whatever"}`, true},
		{"update anyvalue", `{"zip":"whatever"}`, false},
		{"update both", `{"zip":"x"}`, false},
		{"update both", `{"zip":"y","z":1}`, true},
		{"update none", `{"x":1}`, true},

		{"update types", `{"int":1}`, true},
		{"update types", `{"int":1.0}`, true},
		{"update types", `{"int":2.5}`, true},
		{"update types", `{"int":3}`, false},
		{"update types", `{"int":"1"}`, false}, // permissions are strict about types
		{"update types", `{"bool":false}`, true},
		{"update types", `{"bool":true}`, false},
		{"update types", `{"bool":"false"}`, false},
		{"update types", `{"map":{"good":"one"}}`, true},
		{"update types", `{"map":{"good":"one","bad":"two"}}`, false},
		{"update types", `{"list":["a","b"]}`, true},
		{"update types", `{"list":["c",1]}`, true},
		{"update types", `{"list":["c"]}`, false},

		{"update no/types", `{"int":1}`, false},
		{"update no/types", `{"int":"1"}`, false}, // denials are loose
		{"update no/types", `{"int":"t"}`, true},
		{"update no/types", `{"int":10}`, true},
		{"update no/types", `{"bool":"true"}`, false},
		{"update no/types", `{"bool":"T"}`, false},
		{"update no/types", `{"bool":1}`, false},
		{"update no/types", `{"bool":"no"}`, true},
		{"update no/types", `{"text":true}`, false},
		{"update no/types", `{"text":5.0}`, false},
		{"update no/types", `{"text":55}`, true},
		{"update no/types", `{"map":{"bad":"one"}}`, false},
		{"update no/types", `{"map":{"bad":"two"}}`, true},
		{"update no/types", `{"list":["b","a"]}`, false},
	} {
		op, f := request(c.request)
		op.Data = data(t, c.data)
		if d := check(t, a, somebody, op, f); d.Grant.Valid() != c.want {
			t.Errorf("%s %s: granted %v, want %v: %v", c.request, c.data, d.Grant.Valid(), c.want, d.Denied)
		}
	}
}

func data(t testing.TB, s string) map[string]any {
	t.Helper()
	if s == "" {
		return nil
	}
	var m map[string]any
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

// Stanzas for the same path are one, whichever policy they stand in and in whatever order.
func TestUnion(t *testing.T) {
	const some = `
path "denied"  { capabilities = ["update"] denied_parameters  = { "x" = ["1"], "y" = [] } }
path "allowed" { capabilities = ["update"] allowed_parameters = { "x" = ["1"], "y" = ["1"] } }
path "free"    { capabilities = ["update"] }
path "star"    { capabilities = ["update"] allowed_parameters = { "x" = ["1"] } }
path "need"    { capabilities = ["update"] required_parameters = ["x"] }
path "caps/*"  { capabilities = ["read", "list"] }`
	const others = `
path "denied"  { capabilities = ["update"] denied_parameters  = { "x" = ["2"], "y" = ["3"], "z" = [] } }
path "allowed" { capabilities = ["update"] allowed_parameters = { "x" = ["2"], "y" = [], "z" = ["1"] } }
path "free"    { capabilities = ["update"] allowed_parameters = { "x" = ["1"] } }
path "star"    { capabilities = ["update"] allowed_parameters = { "*" = [] } }
path "need"    { capabilities = ["update"] required_parameters = ["y", "x"] }
path "caps/*"  { capabilities = ["list", "sudo"] }`
	for i, a := range []*ACL{acl(t, some, others), acl(t, others, some), acl(t, some+others), acl(t, some, others, some, others)} {
		for _, c := range []struct {
			path, data string
			want       bool
		}{
			{"denied", `{"x":"1"}`, false}, {"denied", `{"x":"2"}`, false}, {"denied", `{"x":"3"}`, true},
			{"denied", `{"y":"9"}`, false}, {"denied", `{"z":"9"}`, false},
			{"allowed", `{"x":"1"}`, true}, {"allowed", `{"x":"2"}`, true}, {"allowed", `{"x":"3"}`, false},
			{"allowed", `{"y":"9"}`, true}, {"allowed", `{"z":"1"}`, true}, {"allowed", `{"z":"2"}`, false},
			{"free", `{"x":"1"}`, true}, {"free", `{"x":"2"}`, false}, {"free", `{"y":"1"}`, false},
			{"star", `{"x":"1"}`, true}, {"star", `{"x":"2"}`, false}, {"star", `{"y":"2"}`, true},
			{"need", `{"x":"1"}`, false}, {"need", `{"y":"1"}`, false}, {"need", `{"x":1,"y":1}`, true},
		} {
			op, f := request("update " + c.path)
			op.Data = data(t, c.data)
			if d := check(t, a, somebody, op, f); d.Grant.Valid() != c.want {
				t.Errorf("order %d: update %s %s: granted %v, want %v: %v", i, c.path, c.data, d.Grant.Valid(), c.want, d.Denied)
			}
		}
		if got := a.Capabilities("caps/x"); !slices.Equal(got, []string{"list", "read", "sudo"}) {
			t.Errorf("order %d: capabilities %v", i, got)
		}
	}
}

// Uniting must not write into the policies: they are shared by many ACLs.
func TestUnionLeavesPoliciesAlone(t *testing.T) {
	a := named(t, "a", 1, `path "x" { capabilities = ["update"] allowed_parameters = { "p" = ["1"] } required_parameters = ["p"] }`)
	b := named(t, "b", 1, `path "x" { capabilities = ["update"] allowed_parameters = { "p" = ["2"], "q" = [] } required_parameters = ["q"] }`)
	before := fmt.Sprint(a.Rules, b.Rules)
	for range 3 {
		Compile([]*Policy{a, b, a}, nil)
		Compile([]*Policy{b, a}, nil)
	}
	if after := fmt.Sprint(a.Rules, b.Rules); after != before {
		t.Errorf("before %s\nafter  %s", before, after)
	}
}

func TestCapabilities(t *testing.T) {
	a := acl(t, `
path "all/*"  { capabilities = ["sudo", "list", "delete", "patch", "update", "read", "create", "recover", "subscribe"] }
path "old"    { policy = "write" }
path "no/*"   { capabilities = ["read", "deny"] }
path "void"   { capabilities = [] }
path "dir/"   { capabilities = ["list"] }
path "dir"    { capabilities = ["read"] }`)
	for path, want := range map[string]string{
		"all/x":  "create delete list patch read recover subscribe sudo update",
		"old":    "create delete list read update",
		"old/":   "create delete list read update",
		"no/x":   "deny",
		"void":   "deny",
		"absent": "deny",
		"dir":    "read",
		"dir/":   "list",
		"/dir":   "read",
	} {
		if got := strings.Join(a.Capabilities(path), " "); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if got := Compile([]*Policy{Root()}, nil).Capabilities("x"); !slices.Equal(got, []string{"root"}) {
		t.Errorf("root: %v", got)
	}
	if got := (*ACL)(nil).Capabilities("x"); !slices.Equal(got, []string{"deny"}) {
		t.Errorf("nil: %v", got)
	}
}

func TestReaches(t *testing.T) {
	for _, c := range []struct {
		pattern, prefix string
		want            bool
	}{
		{"foo/bar", "foo/", true}, {"foo/", "foo/", true}, {"foo", "foo/", true}, {"foob", "foo/", false}, {"fo", "foo/", false},
		{"foo/*", "foo/", true}, {"foo*", "foo/", true}, {"fo*", "foo/", true}, {"*", "foo/", true}, {"foob*", "foo/", false}, {"g*", "foo/", false},
		{"foo/a*", "foo/", true}, {"foo/a*", "foo/b/", false}, {"foo/*", "foo/b/c/", true}, {"foo/b", "foo/b/c/", false},
		{"+", "foo/", true}, {"+/*", "foo/", true}, {"foo/+", "foo/", true}, {"foo/+/+/*", "foo/", true}, {"foo/+/+/*", "foo/bar/bar/baz/", true},
		{"foo/+/+/baz", "foo/bar/bar/baz/", true}, {"foo/+/bar/baz", "foo/bar/bar/baz/", true}, {"foo/bar/+/b*", "foo/bar/bar/baz/", true},
		{"foo/+/x/y", "foo/bar/z/", false}, {"+/+", "a/b/c/", false},
	} {
		a := acl(t, fmt.Sprintf("path %q { capabilities = [\"read\"] }", c.pattern))
		if got := a.Reaches(c.prefix); got != c.want {
			t.Errorf("%q reaches %q: %v, want %v", c.pattern, c.prefix, got, c.want)
		}
		if acl(t, fmt.Sprintf("path %q { capabilities = [\"deny\"] }", c.pattern)).Reaches(c.prefix) {
			t.Errorf("%q reaches %q by denying", c.pattern, c.prefix)
		}
	}
	if (*ACL)(nil).Reaches("foo/") || !Compile([]*Policy{Root()}, nil).Reaches("foo/") {
		t.Error("nil reaches nothing, root everything")
	}
}
