package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// ACL is what a set of policies gives a principal, ready to decide. It is immutable and safe for concurrent use. A nil
// ACL gives nothing.
type ACL struct {
	root       bool
	who        string // `no rule of policies "default", "dev"`, for texts
	exact      map[string]*stanza
	prefixes   prefixes
	segments   *segments
	all        []*stanza // in the order of their patterns
	unresolved []Origin  // rules whose template found nothing
}

// Compile unites policies, and fills in their templates for p, which may be nil; without templates (see [Templated])
// the result does not depend on p. Nil policies are left out.
func Compile(policies []*Policy, p *lessor.Principal) *ACL {
	a := &ACL{exact: make(map[string]*stanza), who: nobody}
	var names []string
	byPattern := make(map[string]*stanza)
	for _, policy := range policies {
		if policy == nil {
			continue
		}
		a.root = a.root || policy.root
		names = append(names, policy.Name)
		for i := range policy.Rules {
			rule := &policy.Rules[i]
			origin := Origin{rule.label, policy.Name, policy.Version}
			pattern, ok := rule.resolve(p)
			if !ok {
				a.unresolved = append(a.unresolved, origin)
				continue
			}
			s := byPattern[pattern]
			if s == nil {
				s = newStanza(pattern)
				byPattern[pattern] = s
				a.all = append(a.all, s)
			}
			s.add(rule, origin)
		}
	}
	switch len(names) {
	case 0:
	case 1:
		a.who = fmt.Sprintf("no rule of policy %q", names[0])
	default:
		a.who = "no rule of policies " + several(names, 16, strconv.Quote)
	}
	slices.SortFunc(a.all, func(s, t *stanza) int { return strings.Compare(s.pattern, t.pattern) })
	a.index()
	return a
}

// index builds what find searches.
func (a *ACL) index() {
	var wild []*stanza
	for _, s := range a.all {
		if s.wild() {
			wild = append(wild, s)
		} else {
			a.exact[s.pattern] = s
		}
	}
	slices.SortFunc(wild, func(s, t *stanza) int {
		order, _ := precedence(s, t)
		return order
	})
	for i, s := range wild {
		s.rank = i + 1
		if !s.segmented {
			a.prefixes = append(a.prefixes, prefix{text: s.text, stanza: s})
			continue
		}
		if a.segments == nil {
			a.segments = &segments{}
		}
		a.segments.insert(s.text, s)
	}
	a.prefixes.link()
	a.segments.link()
}

// find returns the one stanza that applies to a path, nil if there is none.
func (a *ACL) find(path string, listing bool) *stanza {
	path = strings.TrimLeft(path, "/")
	if s := a.exact[path]; s != nil {
		return s
	}
	if bare, ok := strings.CutSuffix(path, "/"); ok && listing {
		if s := a.exact[bare]; s != nil {
			return s
		}
		if s := a.findWild(bare); s != nil {
			return s
		}
	}
	return a.findWild(path)
}

func (a *ACL) findWild(path string) *stanza {
	return a.segments.best(path, true, a.prefixes.longest(path))
}

// Capabilities lists what the ACL gives at a path, sorted: ["root"] for the root policy, ["deny"] for nothing.
func (a *ACL) Capabilities(path string) []string {
	switch {
	case a == nil:
		return Capabilities(0).Names()
	case a.root:
		return []string{"root"}
	}
	if s := a.find(path, true); s != nil {
		return s.capabilities.Names()
	}
	return Capabilities(0).Names()
}

// Resultant lists what the ACL gives, by pattern: exact ones, those that end in * (without it), and those with + segments.
// root tells that it gives everything.
func (a *ACL) Resultant() (exact, glob map[string][]string, root bool) {
	exact, glob = map[string][]string{}, map[string][]string{}
	if a == nil {
		return exact, glob, false
	}
	for _, s := range a.all {
		switch names := s.capabilities.Names(); {
		case s.segmented:
			glob[s.pattern] = names
		case s.glob:
			glob[s.text] = names
		default:
			exact[s.pattern] = names
		}
	}
	return exact, glob, a.root
}

// Sudo reports whether the ACL gives sudo at a path, on top of whatever was granted: for what an operation may only ask
// for with sudo, such as a token without a parent. It grants nothing.
func (a *ACL) Sudo(path string) bool {
	if a == nil || a.root {
		return a != nil
	}
	s := a.find(path, false)
	return s != nil && s.capabilities.Has(Sudo) && !s.capabilities.Has(Deny)
}

// Reaches reports whether some path of the ACL gives anything at or below prefix, which ends in "/": whether the
// principal may know that a mount is there. It looks at each path by itself, and takes time in their number.
func (a *ACL) Reaches(prefix string) bool {
	if a == nil || a.root {
		return a != nil
	}
	return slices.ContainsFunc(a.all, func(s *stanza) bool {
		return s.capabilities != 0 && !s.capabilities.Has(Deny) && s.touches(prefix)
	})
}

// stanza is all that the policies say about one pattern.
type stanza struct {
	pattern       string // with templates filled in
	contributions []contribution

	capabilities Capabilities
	required     []string
	denied       map[string][]any
	allowed      map[string][]any
	minWrap      time.Duration
	maxWrap      time.Duration
	control      []Factor

	text      string // the pattern without the * at its end
	glob      bool   // there was one
	segmented bool   // it has + segments
	first     int    // offset of the first wildcard
	plus      int    // number of + segments
	rank      int    // among those with wildcards: the higher precedes
}

// contribution is one policy's part of a stanza.
type contribution struct {
	*Rule
	origin Origin
}

func newStanza(pattern string) *stanza {
	s := &stanza{pattern: pattern, text: pattern}
	// A segment that merely begins with + is compared like a wildcard, as in Vault, but stands for itself.
	s.segmented = pattern == "+" || strings.HasPrefix(pattern, "+/") || strings.Contains(pattern, "/+")
	s.text, s.glob = strings.CutSuffix(pattern, "*")
	s.first = len(s.text)
	if s.segmented {
		s.first = strings.IndexByte(s.text, '+')
		for segment := range strings.SplitSeq(s.text, "/") {
			if segment == "+" {
				s.plus++
			}
		}
	}
	return s
}

func (s *stanza) wild() bool { return s.glob || s.segmented }

// add unites the stanza with a rule for the same pattern.
func (s *stanza) add(r *Rule, origin Origin) {
	s.contributions = append(s.contributions, contribution{r, origin})
	s.capabilities |= r.Capabilities
	s.denied = unite(s.denied, r.Denied)
	s.allowed = unite(s.allowed, r.Allowed)
	s.minWrap = lesser(s.minWrap, r.MinWrap)
	s.maxWrap = lesser(s.maxWrap, r.MaxWrap)
	for _, name := range r.Required {
		if !slices.Contains(s.required, name) {
			s.required = append(s.required, name)
		}
	}
	if r.Control != nil {
		s.control = append(s.control, r.Control.Factors...)
	}
}

// unite joins values by parameter; none means any. Neither argument is changed.
func unite(a, b map[string][]any) map[string][]any {
	if len(a) == 0 || len(b) == 0 {
		if len(a) == 0 {
			return b
		}
		return a
	}
	united := maps.Clone(a)
	for name, values := range b {
		if old, both := a[name]; both && (len(old) == 0 || len(values) == 0) {
			values = nil
		} else if both {
			values = slices.Concat(old, values)
		}
		united[name] = values
	}
	return united
}

// lesser is the smaller of two bounds; 0 is none.
func lesser(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return a + b
	}
	return min(a, b)
}

// precedence orders two stanzas with wildcards; the greater applies. The text says why the lesser does not.
func precedence(s, t *stanza) (order int, why string) {
	if order = cmp.Compare(s.first, t.first); order != 0 {
		return order, "the first wildcard of this one stands further left"
	}
	if s.glob != t.glob {
		if s.glob {
			order = -1
		} else {
			order = 1
		}
		return order, "this one ends in *"
	}
	if order = cmp.Compare(t.plus, s.plus); order != 0 {
		return order, "this one has more + segments"
	}
	if order = cmp.Compare(len(s.text), len(t.text)); order != 0 {
		return order, "this one is shorter"
	}
	return strings.Compare(s.text, t.text), "this one comes first in byte order"
}

// Match reports whether a path is one of those that a pattern names, as the paths of rules do.
func Match(pattern, path string) bool { return newStanza(pattern).matches(path) }

// matches is the meaning of a pattern, said plainly. The index answers the same, faster; explanations use this.
func (s *stanza) matches(path string) bool {
	switch {
	case !s.wild():
		return path == s.pattern
	case !s.segmented:
		return strings.HasPrefix(path, s.text)
	}
	have, want := strings.Split(path, "/"), strings.Split(s.text, "/")
	if len(have) < len(want) || len(have) > len(want) && !s.glob {
		return false
	}
	for i, segment := range want {
		last := i == len(want)-1
		if segment != "+" && segment != have[i] && !(last && s.glob && strings.HasPrefix(have[i], segment)) {
			return false
		}
	}
	return true
}

// touches reports whether the pattern matches some path at or below prefix, which ends in "/".
func (s *stanza) touches(prefix string) bool {
	have, want := strings.Split(strings.TrimSuffix(prefix, "/"), "/"), strings.Split(s.text, "/")
	for i, segment := range want {
		last := i == len(want)-1
		switch {
		case i == len(have): // the pattern goes on below the prefix
			return true
		case s.segmented && segment == "+", segment == have[i]:
		default:
			return last && s.glob && strings.HasPrefix(have[i], segment)
		}
	}
	return s.glob || len(want) >= len(have)
}

// prefixes finds the longest of many prefixes of a path. They are sorted, and each knows the longest other one that it
// begins with. Whatever sorts between a prefix of the path and the path itself begins with that prefix, so it is found
// among the last one that does not sort after the path, and those that this one begins with.
type prefixes []prefix

type prefix struct {
	text   string
	within int // index of the longest other one that text begins with; -1
	stanza *stanza
}

func (ps prefixes) link() {
	slices.SortFunc(ps, func(p, q prefix) int { return strings.Compare(p.text, q.text) })
	for i := range ps {
		within := i - 1
		for within >= 0 && !strings.HasPrefix(ps[i].text, ps[within].text) {
			within = ps[within].within
		}
		ps[i].within = within
	}
}

func (ps prefixes) longest(path string) *stanza {
	low, high := 0, len(ps)
	for low < high {
		if middle := int(uint(low+high) >> 1); ps[middle].text <= path {
			low = middle + 1
		} else {
			high = middle
		}
	}
	for i := low - 1; i >= 0; i = ps[i].within {
		if strings.HasPrefix(path, ps[i].text) {
			return ps[i].stanza
		}
	}
	return nil
}

// segments is a tree over the segments of patterns with +.
type segments struct {
	literal map[string]*segments
	any     *segments
	end     *stanza  // ends here
	globs   prefixes // end within the next segment, with *
	top     int      // highest rank in this part of the tree
}

func (n *segments) insert(text string, s *stanza) {
	n.top = max(n.top, s.rank)
	segment, rest, more := strings.Cut(text, "/")
	if !more && s.glob {
		n.globs = append(n.globs, prefix{text: segment, stanza: s})
		return
	}
	next := n.any
	if segment != "+" {
		next = n.literal[segment]
	}
	if next == nil {
		next = &segments{}
		if segment == "+" {
			n.any = next
		} else {
			if n.literal == nil {
				n.literal = make(map[string]*segments)
			}
			n.literal[segment] = next
		}
	}
	if !more {
		next.top = max(next.top, s.rank)
		next.end = s
		return
	}
	next.insert(rest, s)
}

func (n *segments) link() {
	if n == nil {
		return
	}
	n.globs.link()
	n.any.link()
	for _, next := range n.literal {
		next.link()
	}
}

// best returns what precedes all else that matches, or found if nothing here precedes it. more tells an empty segment
// from the path's end.
func (n *segments) best(path string, more bool, found *stanza) *stanza {
	if n == nil || found != nil && n.top <= found.rank {
		return found
	}
	if !more {
		return later(found, n.end)
	}
	found = later(found, n.globs.longest(path))
	segment, rest, more := strings.Cut(path, "/")
	found = n.literal[segment].best(rest, more, found)
	return n.any.best(rest, more, found)
}

func later(s, t *stanza) *stanza {
	if s == nil || t != nil && t.rank > s.rank {
		return t
	}
	return s
}
