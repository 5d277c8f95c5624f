package password

import (
	"bytes"
	"crypto/rand"
	"errors"
	"math"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		source string
		length int
		rules  []Rule
		err    string
	}{
		"vault's example": {source: `
			length = 20
			rule "charset" {
			  charset = "abc"
			  min-chars = 1
			}
			rule "charset" {
			  charset = "!@#$%^&*"
			}`, length: 20, rules: []Rule{{[]rune("abc"), 1}, {[]rune("!#$%&*@^"), 0}}},
		"on one line":       {source: `length=20 rule "charset" { charset="a=\"{b" min-chars=1 } rule "charset" { charset = "01" }`, length: 20, rules: []Rule{{[]rune("\"=ab{"), 1}, {[]rune("01"), 0}}},
		"json":              {source: `{"length": 8, "rule": {"charset": [{"charset": "ba", "min-chars": 2}, {"charset":"0"}]}}`, length: 8, rules: []Rule{{[]rune("ab"), 2}, {[]rune("0"), 0}}},
		"repeated runes":    {source: "length = 5\nrule \"charset\" {\n charset = \"aabb\"\n}", length: 5, rules: []Rule{{[]rune("ab"), 0}}},
		"escaped dollar":    {source: "length = 5\nrule \"charset\" {\n charset = \"$${a\"\n}", length: 5, rules: []Rule{{[]rune("$a{"), 0}}},
		"no length":         {source: "rule \"charset\" {\n charset = \"ab\"\n}", err: `"length" is required`},
		"no rule":           {source: "length = 20", err: "at least one rule"},
		"too short":         {source: "length = 3\nrule \"charset\" {\n charset = \"ab\"\n}", err: "from 4 to 100"},
		"too long":          {source: "length = 101\nrule \"charset\" {\n charset = \"ab\"\n}", err: "from 4 to 100"},
		"fraction":          {source: "length = 8.5\nrule \"charset\" {\n charset = \"ab\"\n}", err: "length must be a whole number"},
		"text for a length": {source: "length = \"x\"\nrule \"charset\" {\n charset = \"ab\"\n}", err: "line 1: length must be a whole number"},
		"huge length":       {source: "length = 1e400\nrule \"charset\" {\n charset = \"ab\"\n}", err: "whole number"},
		"unknown rule":      {source: "length = 8\nrule \"dictionary\" {\n charset = \"ab\"\n}", err: `line 2: there is no rule "dictionary"`},
		"unknown attribute": {source: "length = 8\nrule \"charset\" {\n charset = \"ab\"\n max-chars = 2\n}", err: `line 4: An argument named "max-chars" is not expected here`},
		"empty charset":     {source: "length = 8\nrule \"charset\" {\n charset = \"\"\n}", err: "charset is empty"},
		"control character": {source: "length = 8\nrule \"charset\" {\n charset = \"a\\n\"\n}", err: "U+000A"},
		"charset number":    {source: "length = 8\nrule \"charset\" {\n charset = 5\n}", err: "line 2: charset must be a string"},
		"interpolation":     {source: "length = 8\nrule \"charset\" {\n charset = \"${a}\"\n}", err: `"$${"`},
		"min too many":      {source: "length = 8\nrule \"charset\" {\n charset = \"ab\"\n min-chars = 5\n}\nrule \"charset\" {\n charset = \"cd\"\n min-chars = 5\n}", err: "ask for 10 characters"},
		"negative min":      {source: "length = 8\nrule \"charset\" {\n charset = \"ab\"\n min-chars = -1\n}", err: "min-chars must be from 0"},
		"one password":      {source: "length = 8\nrule \"charset\" {\n charset = \"a\"\n}", err: "one password only"},
		"hardly ever met":   {source: "length = 50\nrule \"charset\" {\n charset = \"abcdefghijklmnopqrstuvwxyz\"\n}\nrule \"charset\" {\n charset = \"0\"\n min-chars = 30\n}", err: "too few"},
		"not hcl":           {source: "length 20", err: "line 1"},
		"not json":          {source: "{", err: "line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Parse(c.source)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got error %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.Length != c.length || !slices.EqualFunc(p.Rules, c.rules, func(a, b Rule) bool { return a.Min == b.Min && slices.Equal(a.Charset, b.Charset) }) {
				t.Errorf("got %+v", p)
			}
		})
	}
}

// Whatever policy there is, what it makes fits it, and the same randomness makes the same password.
func TestGenerateFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		length := rapid.IntRange(MinLength, MaxLength).Draw(t, "length")
		rules := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Rule {
			return Rule{
				Charset: rapid.SliceOfN(rapid.RuneFrom(runes('!', '~')), 1, 40).Draw(t, "charset"),
				Min:     rapid.IntRange(0, 3).Draw(t, "min"),
			}
		}), 1, 4).Draw(t, "rules")
		p, err := New(length, rules...)
		if err != nil {
			t.Skip("no policy: ", err)
		}
		seed := rapid.Uint64().Draw(t, "seed")
		draw := func() string {
			s, err := p.Generate(mrand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}))
			if err != nil {
				t.Fatal(err)
			}
			return s.Reveal()
		}
		s := draw()
		if !p.Fits([]rune(s)) || utf8.RuneCountInString(s) != length {
			t.Fatalf("%q does not fit %+v", s, p)
		}
		for _, r := range rules {
			n := 0
			for _, c := range s {
				if slices.Contains(r.Charset, c) {
					n++
				}
			}
			if n < r.Min {
				t.Fatalf("%q has %d of %q, not %d", s, n, string(r.Charset), r.Min)
			}
		}
		if draw() != s {
			t.Fatal("the same randomness made another password")
		}
	})
}

func TestDefaultIsStrong(t *testing.T) {
	if Default.Bits() < 128 || Default.Length < 20 {
		t.Errorf("default policy: %d characters, %.0f bits", Default.Length, Default.Bits())
	}
	seen := map[string]bool{}
	for range 1000 {
		s, err := Default.Generate(rand.Reader)
		if err != nil || seen[s.Reveal()] {
			t.Fatalf("repeated, or %v", err)
		}
		seen[s.Reveal()] = true
	}
}

// Of a charset whose size does not divide 256, each character must come equally often: a plain remainder of a byte would
// make some of them 1.5 times as likely.
func TestGenerateIsUnbiased(t *testing.T) {
	charset := runes(0x4e00, 0x4e00+99)
	p, err := New(100, Rule{Charset: charset})
	if err != nil {
		t.Fatal(err)
	}
	count := map[rune]int{}
	const draws = 4000
	random := mrand.NewChaCha8([32]byte{7})
	for range draws {
		s, err := p.Generate(random)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range s.Reveal() {
			count[c]++
		}
	}
	mean := float64(draws*100) / float64(len(charset))
	for c, n := range count {
		if d := math.Abs(float64(n) - mean); d > 6*math.Sqrt(mean) {
			t.Errorf("%c came %d times, expected about %.0f", c, n, mean)
		}
	}
	if len(count) != len(charset) {
		t.Errorf("only %d of %d characters came", len(count), len(charset))
	}
}

func TestGenerateFailsWithoutRandomness(t *testing.T) {
	if s, err := Default.Generate(bytes.NewReader(nil)); err == nil || !s.Empty() {
		t.Errorf("got %q, %v", s.Reveal(), err)
	}
	if _, err := Default.Generate(zeros{}); err == nil {
		t.Error("a source of zeros made a password")
	}
	if _, err := (&Policy{}).Generate(rand.Reader); err == nil {
		t.Error("the zero policy made a password")
	}
	broken := errors.New("broken")
	if _, err := Default.Generate(failing{broken}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("length = 20\nrule \"charset\" {\n charset = \"abcdef\"\n min-chars = 1\n}")
	f.Add(`{"length": 8, "rule": {"charset": [{"charset": "ba", "min-chars": 2}]}}`)
	f.Add("length = 1e9999\nrule \"\" {}")
	f.Fuzz(func(t *testing.T, source string) {
		p, err := Parse(source)
		if err != nil {
			return
		}
		s, err := p.Generate(rand.Reader)
		if err != nil || !p.Fits([]rune(s.Reveal())) {
			t.Errorf("%q: %v", source, err)
		}
	})
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
