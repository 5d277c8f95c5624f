package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// NoRule is the rule of a denial that no rule of any policy made: what is not granted is denied.
const NoRule = "no rule"

// Facts are what a decision has to know beyond policies.
type Facts struct {
	Mount       string // UUID of the mount that the path routes to
	Exists      bool   // writes: something is there
	ExistsKnown bool   // writes: the path has an existence check, and Exists is its outcome; else a write is an update
	Sudo        bool   // a root-protected path: it takes the capability sudo, too
	Open        bool   // an unauthenticated route
}

// Decision is the answer to one operation. Exactly one of Grant.Valid() and Denied != nil holds.
type Decision struct {
	Grant   Grant
	Denied  *api.Error // of kind Denied; its text names what denied, and does not tell whether the thing exists
	Rule    string     // that granted or denied, as Origin.Rule
	Policy  string     // empty if no policy did
	Version uint64     // the policy's store version
}

// Grant is the permission for one operation. Only Decide makes one; the zero Grant permits nothing.
type Grant struct {
	origin *Origin
	stanza *stanza // nil if no policy granted
	digest [32]byte
	mount  string
	asked  lessor.Verb // of the operation
	verb   lessor.Verb // what was granted
}

// Valid reports whether the grant permits anything.
func (g Grant) Valid() bool { return g.origin != nil }

// Covers reports whether the grant is for this operation: the same by content. A write may name Update, as it came, or
// the verb that the grant found it to be.
func (g Grant) Covers(op *lessor.Op) bool {
	return g.Valid() && (op.Verb == g.asked || op.Verb == g.verb) && digest(op) == g.digest
}

// digest is the operation's, with both kinds of write as one: which of them it is, is a fact and not a wish.
func digest(op *lessor.Op) [32]byte {
	if op.Verb != lessor.Create {
		return op.Digest()
	}
	write := *op
	write.Verb = lessor.Update
	return write.Digest()
}

// Mount is the UUID of the mount that the grant is for.
func (g Grant) Mount() string { return g.mount }

// Verb is what was granted: for a write, Create or Update, as the existence check said. 0 for the zero Grant.
func (g Grant) Verb() lessor.Verb { return g.verb }

// Rule is what granted: `path "secret/*"` as written, "open", "system:NAME" or "*" for root.
func (g Grant) Rule() string { return g.from().Rule }

// Policy is the name of the policy that granted; "system" for background acts, empty for open routes.
func (g Grant) Policy() string { return g.from().Policy }

// Version is the store version of the policy that granted; 0 if it is built in.
func (g Grant) Version() uint64 { return g.from().Version }

func (g Grant) from() Origin {
	if g.origin == nil {
		return Origin{}
	}
	return *g.origin
}

// Granting lists every policy that has the capability at the path that applied; the first is that of Rule.
func (g Grant) Granting() []Origin {
	switch {
	case !g.Valid():
		return nil
	case g.stanza == nil:
		return []Origin{*g.origin}
	}
	need, _ := needed(g.verb, Facts{ExistsKnown: true, Exists: g.verb != lessor.Create})
	return origins(g.stanza, func(r *Rule) bool { return r.Capabilities.Has(need) })
}

var (
	openOrigin = &Origin{Rule: "open"}
	rootOrigin = &Origin{Rule: "*", Policy: "root"}
	noRule     = &Origin{Rule: NoRule}
)

// Decide answers an operation of a principal, given the ACL compiled for it and the facts. It is the only place where
// a Grant is made. A nil ACL or principal has no permissions.
func Decide(acl *ACL, p *lessor.Principal, op *lessor.Op, f Facts) Decision {
	var v verdict
	switch {
	case background(p):
		_, verb := needed(op.Verb, f)
		v = verdict{verb: verb, origin: &Origin{Rule: "system:" + p.System, Policy: "system"}}
	default:
		v = acl.judge(op, f)
		if v.origin == rootOrigin && (p == nil || !p.Root) {
			v = acl.unmatched(op) // the root policy in the hands of somebody who is not root
		}
	}
	if v.refused != "" {
		return Decision{
			Denied: &api.Error{Kind: api.Denied, Text: "permission denied: " + v.refused, Rule: v.origin.Rule},
			Rule:   v.origin.Rule, Policy: v.origin.Policy, Version: v.origin.Version,
		}
	}
	return Decision{
		Grant: Grant{origin: v.origin, stanza: v.stanza, digest: digest(op), mount: f.Mount, asked: op.Verb, verb: v.verb},
		Rule:  v.origin.Rule, Policy: v.origin.Policy, Version: v.origin.Version,
	}
}

// background reports whether nobody's request, but lessor itself asks.
func background(p *lessor.Principal) bool {
	return p != nil && p.System != "" && p.TokenKind == 0 && p.Token == "" && p.Accessor == ""
}

// verdict is a decision before it becomes a Grant or an error.
type verdict struct {
	verb    lessor.Verb
	stanza  *stanza // that applied; nil if none did
	origin  *Origin // who is named for it
	refused string  // why not; empty if granted
}

// judge is the decision itself; see the package's comment.
func (a *ACL) judge(op *lessor.Op, f Facts) verdict {
	need, verb := needed(op.Verb, f)
	switch {
	case f.Open:
		return verdict{verb: verb, origin: openOrigin}
	case a == nil:
		return a.unmatched(op)
	case a.root:
		return verdict{verb: verb, origin: rootOrigin}
	}
	s := a.find(op.Path, op.Verb == lessor.List)
	if s == nil {
		return a.unmatched(op)
	}
	if o := s.objection(op, need, verb, f); o != nil {
		return s.refuse(o)
	}
	for i := range s.contributions {
		if c := &s.contributions[i]; c.Capabilities.Has(need) {
			return verdict{verb: verb, stanza: s, origin: &c.origin}
		}
	}
	return a.unmatched(op) // no contribution has what their union has: cannot be, and would not be a yes
}

// objection is the first reason against, nil if there is none.
func (s *stanza) objection(op *lessor.Op, need Capabilities, verb lessor.Verb, f Facts) *objection {
	anyone := func(*Rule) bool { return true }
	switch {
	case s.capabilities.Has(Deny):
		return &objection{"denies", func(r *Rule) bool { return r.Capabilities.Has(Deny) }}
	case need == 0:
		return &objection{"knows no such operation", anyone}
	case !s.capabilities.Has(need):
		return &objection{"has no " + s.lacking(need), anyone}
	case f.Sudo && !s.capabilities.Has(Sudo):
		return &objection{`has no "sudo", which this path takes too`, anyone}
	case s.minWrap > 0 || s.maxWrap > 0:
		if !s.wraps(op.WrapTTL) {
			return &objection{s.wrapping(), func(r *Rule) bool { return r.MinWrap > 0 || r.MaxWrap > 0 }}
		}
	}
	if governed(verb) {
		if o := s.parameters(op.Data); o != nil {
			return o
		}
	}
	return s.approvals(need)
}

// lacking names the missing capability. For a write of which both are missing it names both, whichever it was, since
// it is no business of the caller's whether the thing exists.
func (s *stanza) lacking(need Capabilities) string {
	if write := Create | Update; need&write != 0 && s.capabilities&write == 0 {
		return `"create" or "update"`
	}
	return fmt.Sprintf("%q", need.Names()[0])
}

// wraps reports whether an answer that is wrapped for d, 0 for not at all, is within the bounds.
func (s *stanza) wraps(d time.Duration) bool {
	return d > 0 && d >= s.minWrap && (s.maxWrap == 0 || d <= s.maxWrap)
}

func (s *stanza) wrapping() string {
	switch {
	case s.maxWrap == 0:
		return fmt.Sprintf("requires the answer to be wrapped for at least %s", s.minWrap)
	case s.minWrap == 0:
		return fmt.Sprintf("requires the answer to be wrapped for at most %s", s.maxWrap)
	case s.maxWrap < s.minWrap:
		return fmt.Sprintf("requires the answer to be wrapped for at least %s and at most %s, which cannot be; change one of the policies", s.minWrap, s.maxWrap)
	}
	return fmt.Sprintf("requires the answer to be wrapped for at least %s and at most %s", s.minWrap, s.maxWrap)
}

// approvals objects if other people have to approve.
func (s *stanza) approvals(need Capabilities) *objection {
	var wanted []Factor
	for _, f := range s.control {
		if f.Capabilities == 0 || f.Capabilities.Has(need) {
			wanted = append(wanted, f)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	return &objection{
		"requires approvals, and there are none: " + several(wanted, 8, Factor.String),
		func(r *Rule) bool { return r.Control != nil },
	}
}

// String is `2 from group "managers" (factor "ops")`.
func (f Factor) String() string {
	noun, groups := "group", slices.Concat(f.GroupNames, f.GroupIDs)
	if len(groups) > 1 {
		noun = "groups"
	}
	return fmt.Sprintf("%d from %s %s (factor %q)", f.Approvals, noun, several(groups, 4, strconv.Quote), f.Name)
}

// refuse puts an objection into words, and names who made it.
func (s *stanza) refuse(o *objection) verdict {
	from := origins(s, o.by)
	if len(from) == 0 {
		from = origins(s, func(*Rule) bool { return true })
	}
	return verdict{stanza: s, origin: &from[0], refused: sentence(from) + " " + o.text}
}

// origins lists the contributions that a condition holds for, each policy's rule once.
func origins(s *stanza, holds func(*Rule) bool) []Origin {
	var from []Origin
	for _, c := range s.contributions {
		if holds(c.Rule) && !slices.Contains(from, c.origin) {
			from = append(from, c.origin)
		}
	}
	return from
}

// sentence names origins: `policy "a" version 1, policy "b" version 2, rule path "secret/*"`.
func sentence(from []Origin) string {
	if slices.ContainsFunc(from, func(o Origin) bool { return o.Rule != from[0].Rule }) {
		return several(from, 3, Origin.String)
	}
	return several(from, 3, Origin.policy) + ", rule " + from[0].Rule
}

// unmatched is the answer where no rule applies.
func (a *ACL) unmatched(op *lessor.Op) verdict {
	who := nobody
	if a != nil {
		who = a.who
	}
	return verdict{origin: noRule, refused: fmt.Sprintf("%s matches %s on %.256q", who, asked(op.Verb), op.Path)}
}

const nobody = "no policy is attached, so none"

// Explanation tells how a decision comes out, and why.
type Explanation struct {
	Path       string      `json:"path"`
	Operation  string      `json:"operation"`
	Granted    bool        `json:"granted"`
	Text       string      `json:"text"` // as the denial's, or what granted
	Origin     Origin      `json:"origin"`
	Candidates []Candidate `json:"candidates"`           // what matches the path, the one that applies first
	Unresolved []Origin    `json:"unresolved,omitempty"` // rules that are not there since their template found no value
}

// Candidate is a path of the ACL that matches the operation's.
type Candidate struct {
	Pattern      string   `json:"pattern"` // with templates filled in
	Rules        []Origin `json:"rules"`
	Capabilities []string `json:"capabilities"`
	Applied      bool     `json:"applied"`
	Why          string   `json:"why"` // it applied, or did not
}

// Explain decides as Decide does, by the same code, for a principal that the ACL was compiled for, and tells why. It
// grants nothing. It takes time in the number of paths.
func (a *ACL) Explain(op *lessor.Op, f Facts) Explanation {
	v := a.judge(op, f)
	e := Explanation{Path: op.Path, Operation: op.Verb.String(), Origin: *v.origin}
	if e.Granted = v.refused == ""; e.Granted {
		e.Text = "granted: " + v.origin.String()
	} else {
		e.Text = "permission denied: " + v.refused
	}
	if a == nil || f.Open || a.root {
		return e
	}
	e.Unresolved = a.unresolved
	candidates := a.candidates(op)
	for i, c := range candidates {
		e.Candidates = append(e.Candidates, Candidate{
			Pattern:      c.stanza.pattern,
			Rules:        origins(c.stanza, func(*Rule) bool { return true }),
			Capabilities: c.stanza.capabilities.Names(),
			Applied:      c.stanza == v.stanza,
			Why:          why(candidates, i),
		})
	}
	return e
}

// candidate is a stanza that matches, and how: the lower stage precedes.
type candidate struct {
	stanza *stanza
	stage  int
}

var stages = [...]string{
	"it is the path itself",
	"it is the path without its trailing /",
	"it matches the path without its trailing /",
	"it matches the path",
}

// candidates lists what matches, by the plain meaning of patterns, best first.
func (a *ACL) candidates(op *lessor.Op) []candidate {
	path := strings.TrimLeft(op.Path, "/")
	bare, slashed := strings.CutSuffix(path, "/")
	listing := slashed && op.Verb == lessor.List
	var found []candidate
	for _, s := range a.all {
		switch wild := s.wild(); {
		case !wild && s.matches(path):
			found = append(found, candidate{s, 0})
		case !wild && listing && s.matches(bare):
			found = append(found, candidate{s, 1})
		case wild && listing && s.matches(bare):
			found = append(found, candidate{s, 2})
		case wild && s.matches(path):
			found = append(found, candidate{s, 3})
		}
	}
	slices.SortFunc(found, func(c, d candidate) int {
		if c.stage != d.stage {
			return c.stage - d.stage
		}
		order, _ := precedence(d.stanza, c.stanza)
		return order
	})
	return found
}

// why tells why a candidate applies or, compared with the first, does not.
func why(candidates []candidate, i int) string {
	first, c := candidates[0], candidates[i]
	switch {
	case i == 0:
		return stages[c.stage]
	case c.stage != first.stage:
		return fmt.Sprintf("%q precedes, since %s", first.stanza.pattern, stages[first.stage])
	}
	_, because := precedence(c.stanza, first.stanza)
	return fmt.Sprintf("%q precedes, since %s", first.stanza.pattern, because)
}
