package token

import (
	"strings"
	"testing"
)

// What a token may be given is Vault's rule, word for word: by its parent, unless that has sudo; by a role that allows or forbids.
func TestPoliciesOfNewTokens(t *testing.T) {
	f := strings.Fields
	allows := &Role{AllowedPolicies: f("a b")}
	globs := &Role{AllowedPoliciesGlob: f("app-*"), DisallowedPoliciesGlob: f("app-x*")}
	forbids := &Role{DisallowedPolicies: f("a")}
	nothing := &Role{}
	for _, c := range []struct {
		name string
		ask  ask
		want string // sorted policies, or the error
	}{
		{"the parent's", ask{own: f("a default")}, "a default"},
		{"the parent's, without default", ask{own: f("a")}, "a"},
		{"default declined", ask{own: f("a default"), noDefault: true}, "a"},
		{"a subset", ask{asked: f("a"), own: f("a b default")}, "a default"},
		{"a subset of who has no default", ask{asked: f("a"), own: f("a b")}, "a"},
		{"default of who has none", ask{asked: f("a default"), own: f("a b")}, "error: child policies must be subset of parent"},
		{"more than the parent", ask{asked: f("c"), own: f("a")}, "error: child policies must be subset of parent"},
		{"more, with sudo", ask{asked: f("C c"), own: f("a"), sudo: true}, "c default"},
		{"more, with sudo, default declined", ask{asked: f("c default"), own: f("a"), sudo: true, noDefault: true}, "c"},
		{"root by sudo", ask{asked: f("Root"), own: f("a"), sudo: true}, "error: root tokens may not be created"},
		{"root by root", ask{asked: f("root a"), own: f("root"), sudo: true}, "root"},
		{"root's child", ask{own: f("root"), sudo: true}, "root"},
		{"internal", ask{asked: f("response-wrapping"), own: f("root"), sudo: true}, `error: cannot assign policy "response-wrapping"`},

		{"role: all it allows", ask{own: f("x"), role: allows}, "a b default"},
		{"role: one that it allows", ask{asked: f("b"), own: f("x"), role: allows}, "b default"},
		{"role: one that it does not", ask{asked: f("a c"), own: f("a c"), role: allows, sudo: true}, `error: token policies (["a" "c" "default"]) must be subset of the role's allowed policies (["a" "b" "default"])`},
		{"role: default declined", ask{asked: f("b"), own: f("x"), role: allows, noDefault: true}, "b"},
		{"role: default declined by it", ask{asked: f("b"), own: f("x"), role: &Role{AllowedPolicies: f("b"), NoDefaultPolicy: true}}, "b"},
		{"role: default forbidden", ask{asked: f("b"), own: f("x"), role: &Role{AllowedPolicies: f("b"), DisallowedPolicies: f("default")}}, "b"},
		{"role: default forbidden and asked", ask{asked: f("default"), own: f("x"), role: &Role{DisallowedPolicies: f("default")}}, `error: token policy "default" is disallowed`},
		{"role: globs", ask{asked: f("app-1"), own: f("x"), role: globs}, "app-1 default"},
		{"role: globs, nothing asked", ask{own: f("x"), role: globs}, "default"},
		{"role: globs, forbidden", ask{asked: f("app-x1"), own: f("x"), role: globs}, `error: token policy "app-x1" is disallowed by this role`},
		{"role: forbids, the parent's", ask{own: f("b"), role: forbids}, "b default"},
		{"role: forbids, the parent has it", ask{own: f("a b"), role: forbids}, `error: token policy "a" is disallowed`},
		{"role: forbids, and else allows", ask{asked: f("c"), own: f("x"), role: forbids}, "c default"},
		{"role: says nothing", ask{asked: f("c"), own: f("x"), role: nothing}, "error: child policies must be subset of parent"},
		{"role: says nothing, the parent's", ask{own: f("x"), role: nothing}, "x"},
		{"role: no root", ask{own: f("root"), role: nothing, sudo: true}, "error: token roles cannot give the root policy"},
		{"role: no root for who allows it", ask{own: f("root"), role: &Role{AllowedPolicies: f("root")}, sudo: true}, "error: token roles cannot give the root policy"},
	} {
		got, err := c.ask.grant()
		s := strings.Join(got, " ")
		if err != nil {
			s = "error: " + err.Error()
		}
		if s != c.want && (err == nil || !strings.HasPrefix(c.want, "error") || !strings.HasPrefix(s, c.want)) {
			t.Errorf("%s: %s; want %s", c.name, s, c.want)
		}
	}
}
