package auth_test

import (
	"net/netip"
	"testing"

	"github.com/lessor-dev/lessor/internal/auth"
)

func TestAddresses(t *testing.T) {
	prefixes := func(s ...string) []netip.Prefix {
		t.Helper()
		p, err := auth.Prefixes("cidrs", s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, c := range []struct {
		blocks []string
		addr   string
		want   bool
	}{
		{nil, "1.2.3.4", true},
		{[]string{"10.0.0.0/8"}, "10.9.9.9", true},
		{[]string{"10.0.0.0/8"}, "11.0.0.1", false},
		{[]string{"10.1.2.3/8"}, "10.9.9.9", true},
		{[]string{"10.0.0.1"}, "10.0.0.1", true},
		{[]string{"10.0.0.1"}, "10.0.0.2", false},
		{[]string{"10.0.0.0/8"}, "::ffff:10.1.1.1", true},
		{[]string{"fd00::/8", "10.0.0.0/8"}, "fd00::1", true},
		{[]string{"0.0.0.0/0"}, "fd00::1", false},
	} {
		if got := auth.Within(prefixes(c.blocks...), netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("%s within %v: %v", c.addr, c.blocks, got)
		}
	}
	if auth.Within(prefixes("10.0.0.0/8"), netip.Addr{}) {
		t.Error("no address is within a block")
	}
	for _, c := range []struct {
		outer, inner []string
		want         bool
	}{
		{nil, []string{"1.2.3.4"}, true},
		{[]string{"10.0.0.0/8"}, nil, true},
		{[]string{"10.0.0.0/8"}, []string{"10.1.0.0/16", "10.2.3.4"}, true},
		{[]string{"10.0.0.0/8"}, []string{"10.0.0.0/7"}, false},
		{[]string{"10.0.0.0/8"}, []string{"10.0.0.0/8", "11.0.0.1"}, false},
		{[]string{"10.0.0.0/8", "11.0.0.0/8"}, []string{"11.0.0.1"}, true},
		{[]string{"10.0.0.1"}, []string{"10.0.0.1/32"}, true},
	} {
		if got := auth.Inside(prefixes(c.outer...), prefixes(c.inner...)); got != c.want {
			t.Errorf("%v inside %v: %v", c.inner, c.outer, got)
		}
	}
	for _, s := range []string{"", "x", "10.0.0.0/33", "10.0.0", "fe80::1%eth0", "10.0.0.1/"} {
		if p, err := auth.Prefixes("cidrs", []string{s}); err == nil {
			t.Errorf("%q is %v", s, p)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a/b", true}, {"a*", "a", true}, {"a*", "ba", false}, {"*a", "ba", true}, {"a*a", "a", false},
		{"a*a", "aa", true}, {"a*b*c", "a-b-c", true}, {"a*b*c", "a-c-b", false}, {"a*b*b", "ab", false}, {"a?c", "abc", false}, {"[ab]", "a", false},
		{"[ab]*", "[ab]c", true}, {"a[", "a[", true}, {"**", "x", true}, {`\*`, "*", false}, {`\*`, `\x`, true},
	} {
		if got := auth.Glob(c.pattern, c.s); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.s, got)
		}
	}
}
