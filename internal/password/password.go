// Package password makes passwords. A Policy says how long one is and of which characters; Generate draws it, every
// password that fits the policy being equally likely. The policy's language is Vault's:
//
//	length = 20
//	rule "charset" {
//	  charset   = "abcdefghijklmnopqrstuvwxyz"
//	  min-chars = 1
//	}
package password

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/gocty"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// Bounds of a password's length in characters, and of a policy's text in bytes.
const (
	MinLength = 4
	MaxLength = 100
	maxSource = 64 << 10
)

// attempts bounds Generate. A policy whose rules are met by fewer than one in some hundred draws is refused by Parse,
// so that running out of attempts means a broken source of randomness.
const (
	attempts = 20000
	leastFit = 1.0 / 500
)

// Policy is what a password must be. The zero Policy generates nothing; a Policy is immutable and safe for concurrent use.
type Policy struct {
	Length int // characters
	Rules  []Rule

	alphabet []rune // union of the charsets
}

// Rule asks for at least Min characters out of Charset, whose characters are distinct and sorted.
type Rule struct {
	Charset []rune
	Min     int
}

// Default is the policy where none is named: 26 letters and digits, 154 bits.
var Default = must(New(26, Rule{Charset: runes('a', 'z'), Min: 1}, Rule{Charset: runes('A', 'Z'), Min: 1}, Rule{Charset: runes('0', '9'), Min: 1}))

// ErrLength is the error of a policy whose passwords would be too short, or too long.
var ErrLength = errors.New("length must be")

// New makes a policy. Errors say what is wrong with it, in words for whoever wrote it.
func New(length int, rules ...Rule) (*Policy, error) {
	if length < MinLength || length > MaxLength {
		return nil, fmt.Errorf("%w from %d to %d characters, not %d", ErrLength, MinLength, MaxLength, length)
	}
	if len(rules) == 0 {
		return nil, errors.New(`at least one rule "charset" is needed`)
	}
	p := &Policy{Length: length}
	least := 0
	for i, r := range rules {
		set := slices.Clone(r.Charset)
		slices.Sort(set)
		set = slices.Compact(set)
		if len(set) == 0 {
			return nil, fmt.Errorf("rule %d: charset is empty", i+1)
		}
		for _, c := range set {
			if !unicode.IsPrint(c) || c == utf8.RuneError {
				return nil, fmt.Errorf("rule %d: charset has a character that cannot be printed (%U)", i+1, c)
			}
		}
		if r.Min < 0 || r.Min > length {
			return nil, fmt.Errorf("rule %d: min-chars must be from 0 to the length, %d", i+1, length)
		}
		least += r.Min
		p.Rules = append(p.Rules, Rule{set, r.Min})
		p.alphabet = append(p.alphabet, set...)
	}
	slices.Sort(p.alphabet)
	p.alphabet = slices.Compact(p.alphabet)
	if least > length {
		return nil, fmt.Errorf("the rules ask for %d characters, more than the length, %d", least, length)
	}
	if len(p.alphabet) < 2 {
		return nil, errors.New("the charsets have but one character together: there would be one password only")
	}
	if f := p.fit(); f < leastFit {
		return nil, fmt.Errorf("the rules are met by too few of the passwords of this length (about one in %.0f): make it longer, or ask for fewer min-chars", 1/f)
	}
	return p, nil
}

// Parse reads a policy, in HCL or JSON.
func Parse(source string) (*Policy, error) {
	if len(source) > maxSource {
		return nil, fmt.Errorf("password policy is longer than %d bytes", maxSource)
	}
	var f *hcl.File
	var bad hcl.Diagnostics
	if strings.HasPrefix(strings.TrimSpace(source), "{") {
		f, bad = hcljson.Parse([]byte(source), "policy")
	} else {
		f, bad = hclsyntax.ParseConfig([]byte(source), "policy", hcl.InitialPos)
		if bad.HasErrors() {
			if older, worse := hclsyntax.ParseConfig(spread(source), "policy", hcl.InitialPos); !worse.HasErrors() {
				f, bad = older, nil
			}
		}
	}
	if bad.HasErrors() {
		return nil, explain(bad)
	}
	top, bad := f.Body.Content(&hcl.BodySchema{
		Attributes: []hcl.AttributeSchema{{Name: "length", Required: true}},
		Blocks:     []hcl.BlockHeaderSchema{{Type: "rule", LabelNames: []string{"type"}}},
	})
	if bad.HasErrors() {
		return nil, explain(bad)
	}
	length, err := number(top.Attributes["length"])
	if err != nil {
		return nil, err
	}
	var rules []Rule
	for _, block := range top.Blocks {
		if block.Labels[0] != "charset" {
			return nil, fmt.Errorf("line %d: there is no rule %q; only \"charset\"", block.DefRange.Start.Line, block.Labels[0])
		}
		body, bad := block.Body.Content(&hcl.BodySchema{Attributes: []hcl.AttributeSchema{
			{Name: "charset", Required: true}, {Name: "min-chars"}, {Name: "min_chars"},
		}})
		if bad.HasErrors() {
			return nil, explain(bad)
		}
		var r Rule
		charset, bad := body.Attributes["charset"].Expr.Value(nil)
		if bad.HasErrors() {
			return nil, explain(bad)
		}
		if charset.IsNull() || charset.Type() != cty.String {
			return nil, fmt.Errorf("line %d: charset must be a string", block.DefRange.Start.Line)
		}
		r.Charset = []rune(charset.AsString())
		for _, name := range []string{"min-chars", "min_chars"} {
			if a := body.Attributes[name]; a != nil {
				if r.Min, err = number(a); err != nil {
					return nil, err
				}
			}
		}
		rules = append(rules, r)
	}
	return New(length, rules...)
}

// spread puts each attribute on a line of its own: HCL's first version, in which Vault's policies are written, does not ask for it.
func spread(source string) []byte {
	var out []byte
	quoted, value := false, false // within a string; behind a "="
	for i := 0; i < len(source); i++ {
		c := source[i]
		switch {
		case quoted && c == '\\' && i+1 < len(source):
			out = append(out, c)
			i++
			c = source[i]
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '=':
			value = true
		case c == '{':
			out, value = append(out, c), false
			c = '\n'
		case c == '}':
			out = append(out, '\n')
		case c == '\n':
			value = false
		case value && (c >= 'a' && c <= 'z' || c == '_') && i > 0 && (source[i-1] == ' ' || source[i-1] == '\t'):
			out, value = append(out, '\n'), false
		}
		out = append(out, c)
	}
	return out
}

// Generate draws a password, taking its randomness from r only. It fails when r does.
func (p *Policy) Generate(r io.Reader) (lessor.Secret, error) {
	if p == nil || len(p.alphabet) == 0 {
		return lessor.Secret{}, errors.New("password: the empty policy makes no passwords")
	}
	source := chance{from: r}
	drawn := make([]rune, p.Length)
	for range attempts {
		for i := range drawn {
			n, err := source.below(len(p.alphabet))
			if err != nil {
				return lessor.Secret{}, fmt.Errorf("password: no randomness: %w", err)
			}
			drawn[i] = p.alphabet[n]
		}
		if p.Fits(drawn) {
			return lessor.NewSecret(string(drawn)), nil
		}
	}
	return lessor.Secret{}, errors.New("password: the source of randomness repeats itself")
}

// Fits reports whether the password is one that the policy could have made.
func (p *Policy) Fits(password []rune) bool {
	if len(password) != p.Length {
		return false
	}
	for _, c := range password {
		if !has(p.alphabet, c) {
			return false
		}
	}
	for _, r := range p.Rules {
		n := 0
		for _, c := range password {
			if n < r.Min && has(r.Charset, c) {
				n++
			}
		}
		if n < r.Min {
			return false
		}
	}
	return true
}

// Bits is the strength of the policy's passwords, from above: log2 of how many there are without regard to min-chars.
func (p *Policy) Bits() float64 { return float64(p.Length) * math.Log2(float64(len(p.alphabet))) }

// fit is the product of the probabilities that each rule alone is met by a random string over the alphabet. For
// disjoint charsets that is close to the share of strings that meet all of them.
func (p *Policy) fit() float64 {
	f := 1.0
	for _, r := range p.Rules {
		q := float64(len(r.Charset)) / float64(len(p.alphabet))
		miss := 0.0
		for k := range r.Min {
			miss += binomial(p.Length, k, q)
		}
		f *= max(0, 1-miss)
	}
	return f
}

func binomial(n, k int, q float64) float64 {
	if q == 1 {
		return 0 // k < n: every character is in the set
	}
	l1, _ := math.Lgamma(float64(n + 1))
	l2, _ := math.Lgamma(float64(k + 1))
	l3, _ := math.Lgamma(float64(n - k + 1))
	return math.Exp(l1 - l2 - l3 + float64(k)*math.Log(q) + float64(n-k)*math.Log(1-q))
}

// chance draws unbiased numbers from a reader, which it reads in pieces.
type chance struct {
	from io.Reader
	buf  [128]byte
	rest []byte
}

// below returns a number in [0, n), each equally likely, for 0 < n <= 1<<16: what of two bytes would favour small numbers is
// drawn again.
func (c *chance) below(n int) (int, error) {
	limit := (1 << 16) / n * n
	for {
		if len(c.rest) == 0 {
			if _, err := io.ReadFull(c.from, c.buf[:]); err != nil {
				return 0, err
			}
			c.rest = c.buf[:]
		}
		x := int(c.rest[0])<<8 | int(c.rest[1])
		c.rest = c.rest[2:]
		if x < limit {
			return x % n, nil
		}
	}
}

func has(set []rune, c rune) bool {
	_, found := slices.BinarySearch(set, c)
	return found
}

func runes(from, to rune) []rune {
	var set []rune
	for c := from; c <= to; c++ {
		set = append(set, c)
	}
	return set
}

func must(p *Policy, err error) *Policy {
	if err != nil {
		panic(err)
	}
	return p
}

func number(a *hcl.Attribute) (int, error) {
	v, bad := a.Expr.Value(nil)
	if bad.HasErrors() {
		return 0, explain(bad)
	}
	var n int
	if v.IsNull() || v.Type() != cty.Number || gocty.FromCtyValue(v, &n) != nil {
		return 0, fmt.Errorf("line %d: %s must be a whole number", a.Range.Start.Line, a.Name)
	}
	return n, nil
}

func explain(bad hcl.Diagnostics) error {
	for _, d := range bad {
		if d.Severity != hcl.DiagError {
			continue
		}
		line := 0
		if d.Subject != nil {
			line = d.Subject.Start.Line
		}
		text := strings.TrimSuffix(d.Detail, ".")
		if text == "" {
			text = d.Summary
		}
		if strings.Contains(d.Summary, "emplate") || strings.Contains(d.Detail, "ariables") || strings.Contains(d.Detail, "unction") {
			text += `; in a charset, "${" is written "$${" and "%{" "%%{"`
		}
		return fmt.Errorf("line %d: %s", line, text)
	}
	return bad
}
