package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// The order of precedence once more, written from Vault's documentation and without any index: the test's own
// understanding, which shares no code with the package.

type naive struct {
	patterns map[string][]string // pattern → capabilities, deny alone
}

func (n naive) applies(path string, listing bool) (pattern string, found bool) {
	if _, ok := n.patterns[path]; ok && !isWild(path) {
		return path, true
	}
	if listing && strings.HasSuffix(path, "/") {
		bare := path[:len(path)-1]
		if _, ok := n.patterns[bare]; ok && !isWild(bare) {
			return bare, true
		}
		if pattern, found := n.bestWild(bare); found {
			return pattern, true
		}
	}
	return n.bestWild(path)
}

func (n naive) bestWild(path string) (best string, found bool) {
	for pattern := range n.patterns {
		if isWild(pattern) && wildMatches(strings.Split(pattern, "/"), strings.Split(path, "/")) && (!found || before(pattern, best)) {
			best, found = pattern, true
		}
	}
	return best, found
}

func isWild(pattern string) bool {
	return strings.HasSuffix(pattern, "*") || slices.Contains(strings.Split(pattern, "/"), "+")
}

func wildMatches(pattern, path []string) bool {
	if len(pattern) == 0 || len(path) == 0 {
		return len(pattern) == len(path)
	}
	if len(pattern) == 1 && strings.HasSuffix(pattern[0], "*") {
		return strings.HasPrefix(path[0], strings.TrimSuffix(pattern[0], "*"))
	}
	return (pattern[0] == "+" || pattern[0] == path[0]) && wildMatches(pattern[1:], path[1:])
}

// before reports whether p precedes q.
func before(p, q string) bool {
	if a, b := strings.IndexAny(p, "+*"), strings.IndexAny(q, "+*"); a != b {
		return a > b
	}
	if a, b := strings.HasSuffix(p, "*"), strings.HasSuffix(q, "*"); a != b {
		return b
	}
	if a, b := strings.Count(p, "+"), strings.Count(q, "+"); a != b {
		return a < b
	}
	if len(p) != len(q) {
		return len(p) > len(q)
	}
	return p > q
}

// Few names, so that patterns overlap often.
func pathGen(wild bool) *rapid.Generator[string] {
	segments := []string{"a", "b", "ab", "abc", ""}
	if wild {
		segments = append(segments, "+", "+", "+")
	}
	return rapid.Custom(func(t *rapid.T) string {
		parts := rapid.SliceOfN(rapid.SampledFrom(segments), 1, 5).Draw(t, "segments")
		path := strings.TrimLeft(strings.Join(parts, "/"), "/")
		if wild && rapid.Bool().Draw(t, "glob") && !strings.HasSuffix(path, "+") {
			path += "*"
		}
		return path
	})
}

// someCapabilities are those that operations take.
var someCapabilities = []string{"create", "read", "update", "patch", "delete", "list"}

func TestPropertyPrecedence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := naive{patterns: map[string][]string{}}
		var sources [3]strings.Builder
		for _, pattern := range rapid.SliceOfN(pathGen(true), 0, 12).Draw(t, "patterns") {
			if pattern == "" {
				continue
			}
			capabilities := rapid.SliceOfNDistinct(rapid.SampledFrom(append(slices.Clone(someCapabilities), "deny")), 0, 3, rapid.ID[string]).Draw(t, "capabilities")
			n.patterns[pattern] = append(n.patterns[pattern], capabilities...)
			quoted, _ := json.Marshal(capabilities)
			fmt.Fprintf(&sources[rapid.IntRange(0, 2).Draw(t, "policy")], "path %q { capabilities = %s }\n", pattern, quoted)
		}
		var policies []*Policy
		for i := range sources {
			p, err := Parse(string(rune('a'+i)), sources[i].String())
			if err != nil {
				t.Fatal(err)
			}
			policies = append(policies, p)
		}
		a := Compile(policies, nil)
		slices.Reverse(policies)
		turned := Compile(policies, nil)

		for range 8 {
			op := &lessor.Op{
				Verb: rapid.SampledFrom([]lessor.Verb{lessor.Read, lessor.List, lessor.Create, lessor.Update, lessor.Patch, lessor.Delete}).Draw(t, "verb"),
				Path: pathGen(false).Draw(t, "path"),
			}
			if op.Verb == lessor.List && rapid.Bool().Draw(t, "slash") {
				op.Path += "/"
			}
			op.Path = strings.TrimLeft(op.Path, "/")
			f := Facts{ExistsKnown: op.Verb == lessor.Create, Exists: false}
			pattern, found := n.applies(op.Path, op.Verb == lessor.List)
			want := found && slices.Contains(n.patterns[pattern], op.Verb.String()) && !slices.Contains(n.patterns[pattern], "deny")

			d := Decide(a, somebody, op, f)
			if d.Grant.Valid() != want {
				t.Fatalf("%v %q: granted %v by %s, want %v by %q", op.Verb, op.Path, d.Grant.Valid(), d.Rule, want, pattern)
			}
			rule := NoRule
			if found {
				rule = fmt.Sprintf("path %q", pattern)
			}
			if d.Rule != rule {
				t.Fatalf("%v %q: decided by %s, want %s", op.Verb, op.Path, d.Rule, rule)
			}
			if e := Decide(turned, somebody, op, f); e.Grant.Valid() != want || e.Rule != rule {
				t.Fatalf("%v %q: the order of policies counts", op.Verb, op.Path)
			}
			e := a.Explain(op, f)
			if e.Granted != want || e.Origin.Rule != d.Rule || e.Origin.Policy != d.Policy || found != (len(e.Candidates) > 0) {
				t.Fatalf("%v %q: explained %+v, decided %+v", op.Verb, op.Path, e, d)
			}
			for i, c := range e.Candidates {
				if c.Applied != (i == 0) || i == 0 && c.Pattern != pattern {
					t.Fatalf("%v %q: candidate %d is %+v, want %q to apply", op.Verb, op.Path, i, c, pattern)
				}
			}
			if !want && d.Denied.Text != e.Text {
				t.Fatalf("denied as %q, explained as %q", d.Denied.Text, e.Text)
			}
			if at := slices.Contains(a.Capabilities(op.Path), op.Verb.String()); op.Verb == lessor.List && at != want {
				t.Fatalf("%v %q: granted %v, but capabilities are %v", op.Verb, op.Path, want, a.Capabilities(op.Path))
			}
		}
	})
}

// Whatever a denial is added to, it never grants more; and for the path that it names, it grants nothing.
func TestPropertyDenyWins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var source strings.Builder
		for range rapid.IntRange(1, 6).Draw(t, "rules") {
			pattern := rapid.SampledFrom([]string{"a/b", "a/*", "a/+", "+/b", "*"}).Draw(t, "pattern")
			parameters := rapid.SampledFrom([]string{"", `allowed_parameters = { "*" = [] }`, `min_wrapping_ttl = 1`, `denied_parameters = { x = [] }`}).Draw(t, "parameters")
			fmt.Fprintf(&source, "path %q { capabilities = [\"create\", \"read\", \"update\", \"patch\", \"delete\", \"list\", \"sudo\"] %s }\n", pattern, parameters)
		}
		some, err := Parse("some", source.String())
		if err != nil {
			t.Fatal(err)
		}
		deny, err := Parse("deny", `path "a/b" { capabilities = ["deny"] }`)
		if err != nil {
			t.Fatal(err)
		}
		policies := []*Policy{some, deny}
		if rapid.Bool().Draw(t, "first") {
			slices.Reverse(policies)
		}
		a := Compile(policies, nil)
		for verb := lessor.Read; verb <= lessor.Delete; verb++ {
			f := Facts{ExistsKnown: rapid.Bool().Draw(t, "known"), Exists: rapid.Bool().Draw(t, "exists"), Sudo: rapid.Bool().Draw(t, "sudo")}
			if d := Decide(a, somebody, &lessor.Op{Verb: verb, Path: "a/b"}, f); d.Grant.Valid() || d.Policy != "deny" {
				t.Fatalf("%v granted: %+v", verb, d)
			}
		}
		if got := a.Capabilities("a/b"); !slices.Equal(got, []string{"deny"}) {
			t.Fatal(got)
		}
	})
}

// The index of prefixes finds what a scan of them finds.
func TestPropertyPrefixes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.SliceOfNDistinct(rapid.StringOfN(rapid.SampledFrom([]rune("ab/\u00ff")), 0, 6, -1), 0, 20, rapid.ID[string]).Draw(t, "texts")
		var ps prefixes
		for _, text := range texts {
			ps = append(ps, prefix{text: text, stanza: newStanza(text + "*")})
		}
		ps.link()
		path := rapid.StringOfN(rapid.SampledFrom([]rune("ab/\u00ff")), 0, 10, -1).Draw(t, "path")
		want := -1
		for i, text := range texts {
			if strings.HasPrefix(path, text) && (want < 0 || len(text) > len(texts[want])) {
				want = i
			}
		}
		got := ps.longest(path)
		if (got == nil) != (want < 0) || got != nil && got.text != texts[want] {
			t.Fatalf("%q among %q: %+v, want %d", path, texts, got, want)
		}
	})
}
