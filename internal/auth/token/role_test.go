package token

import "testing"

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a/b", true}, {"a*", "a", true}, {"a*", "ba", false}, {"*a", "ba", true}, {"a*a", "a", false},
		{"a*a", "aa", true}, {"a*b*c", "a-b-c", true}, {"a*b*c", "a-c-b", false}, {"a*b*b", "ab", false}, {"a?c", "abc", false}, {"[ab]", "a", false},
		{"[ab]*", "[ab]c", true}, {"a[", "a[", true}, {"**", "x", true}, {`\*`, "*", false}, {`\*`, `\x`, true},
	} {
		if got := glob(c.pattern, c.s); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.s, got)
		}
	}
}
