package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
)

// Parse reads a policy in HCL, as Vault's users write it, or in JSON. The error is an *api.Error of kind Invalid that
// names line and column (both from 1) and says what to do. The name "root" is refused: that policy is built in.
func Parse(name, source string) (*Policy, error) {
	switch {
	case name == "":
		return nil, api.Errorf(api.Invalid, "a policy needs a name")
	case strings.EqualFold(name, "root"):
		return nil, api.Errorf(api.Invalid, `the policy "root" is built in and cannot be written; choose another name`)
	}
	p := &Policy{Name: name, Source: source}
	if err := p.parse(); err != nil {
		line, column := 1, 1
		if f, ok := errors.AsType[*fault](err); ok {
			line, column = locate(source, f.at)
		}
		return nil, api.Errorf(api.Invalid, "policy %q, line %d, column %d: %v", name, line, column, err)
	}
	return p, nil
}

func (p *Policy) parse() error {
	fields, err := parseTree(p.Source)
	if err != nil {
		return err
	}
	for _, f := range fields {
		switch f.keys[0] {
		case "path":
			stanzas, err := blocks(f, `path "secret/*" { … }`)
			if err != nil {
				return err
			}
			for _, b := range stanzas {
				r, err := parseRule(b)
				if err != nil {
					return err
				}
				r.Line, _ = locate(p.Source, b.at)
				if r.template != nil {
					p.templated = append(p.templated, len(p.Rules))
				}
				p.Rules = append(p.Rules, r)
				for _, w := range doubts(&r) {
					p.Warnings = append(p.Warnings, fmt.Sprintf("line %d, path %q: %s", r.Line, r.Path, w))
				}
			}
		case "name": // the name that counts is the one it is stored under
			if _, err := stringOf(f); err != nil {
				return err
			}
		default:
			return faultf(f.at, `unknown key %q; a policy consists of path "…" { … } stanzas`, f.keys[0])
		}
	}
	return nil
}

// block is a labelled object, in whichever way it was written: key "label" { … }, key = { "label" = { … } }, or JSON.
type block struct {
	at     int
	label  string
	fields []field
}

func blocks(f field, like string) ([]block, error) {
	wrong := func(at int) error { return faultf(at, "%q is written as %s", f.keys[0], like) }
	labelled := func(label string, at int, v node) ([]block, error) {
		if v.shape == anObject {
			return []block{{at, label, v.fields}}, nil
		}
		return nil, wrong(v.at)
	}
	if len(f.keys) == 2 {
		return labelled(f.keys[1], f.at, f.value)
	}
	nodes := []node{f.value}
	if f.value.shape == aList {
		nodes = f.value.list
	}
	var found []block
	for _, n := range nodes {
		if n.shape != anObject || len(f.keys) != 1 {
			return nil, wrong(f.at)
		}
		for _, g := range n.fields {
			if len(g.keys) != 1 {
				return nil, wrong(g.at)
			}
			b, err := labelled(g.keys[0], g.at, g.value)
			if err != nil {
				return nil, err
			}
			found = append(found, b...)
		}
	}
	return found, nil
}

// object takes an object apart by its keys: each must be known, and may come once.
func object(what string, fields []field, known ...string) (map[string]field, error) {
	byKey := make(map[string]field, len(fields))
	for _, f := range fields {
		key := f.keys[0]
		if !slices.Contains(known, key) {
			return nil, faultf(f.at, "unknown key %q in %s; it may have %s", key, what, strings.Join(known, ", "))
		}
		if _, twice := byKey[key]; twice {
			return nil, faultf(f.at, "%q is given twice in %s; keep one", key, what)
		}
		if len(f.keys) > 1 {
			return nil, faultf(f.at, "%q takes no label", key)
		}
		byKey[key] = f
	}
	return byKey, nil
}

func parseRule(b block) (Rule, error) {
	r := Rule{Path: b.label, label: fmt.Sprintf("path %q", b.label)}
	var err error
	if r.template, err = parseTemplate(r.Path); err != nil {
		return r, faultf(b.at, "%s: %v", r.label, err)
	}
	switch bare := strings.TrimPrefix(r.Path, "/"); {
	case bare == "":
		return r, faultf(b.at, `a path is missing; write path "secret/*" { … }, or path "*" for all paths`)
	case strings.Contains(bare, "+*"):
		return r, faultf(b.at, "%s: +* is not a pattern; write + for exactly one segment, or * for any end", r.label)
	}
	fields, err := object(r.label, b.fields, "capabilities", "policy", "comment", "required_parameters",
		"allowed_parameters", "denied_parameters", "min_wrapping_ttl", "max_wrapping_ttl", "control_group",
		"subscribe_event_types", "mfa_methods")
	if err != nil {
		return r, err
	}
	for _, read := range []struct {
		key  string
		into func(field) error
	}{
		{"capabilities", func(f field) error { return addCapabilities(&r.Capabilities, f) }},
		{"policy", func(f field) error { return addLegacy(&r.Capabilities, f) }},
		{"comment", func(f field) error { r.Comment, err = stringOf(f); return err }},
		{"required_parameters", func(f field) error { r.Required, err = requiredOf(f); return err }},
		{"allowed_parameters", func(f field) error { r.Allowed, err = parametersOf(f); return err }},
		{"denied_parameters", func(f field) error { r.Denied, err = parametersOf(f); return err }},
		{"min_wrapping_ttl", func(f field) error { r.MinWrap, err = durationOf(f); return err }},
		{"max_wrapping_ttl", func(f field) error { r.MaxWrap, err = durationOf(f); return err }},
		{"control_group", func(f field) error { r.Control, err = controlOf(f, r.Capabilities); return err }},
		{"subscribe_event_types", func(f field) error { r.Events, err = stringsOf(f); return err }},
		{"mfa_methods", func(f field) error {
			return faultf(f.at, "%s: mfa_methods is not enforced on paths, so it is refused rather than ignored; require MFA at login", r.label)
		}},
	} {
		if f, ok := fields[read.key]; ok {
			if err := read.into(f); err != nil {
				return r, err
			}
		}
	}
	if r.MinWrap > 0 && r.MaxWrap > 0 && r.MaxWrap < r.MinWrap {
		return r, faultf(fields["max_wrapping_ttl"].at, "%s: max_wrapping_ttl is less than min_wrapping_ttl, so nothing would be granted", r.label)
	}
	if r.Capabilities.Has(Deny) {
		r.Capabilities = Deny
	}
	return r, nil
}

func addCapabilities(c *Capabilities, f field) error {
	names, err := stringsOf(f)
	if err != nil {
		return err
	}
	for _, name := range names {
		one := capability(name)
		if one == 0 {
			hint := ""
			if name == "write" {
				hint = `; "write" is "create" and "update"`
			}
			return faultf(f.at, "unknown capability %q; there are %s%s", name, strings.Join(capabilityNames[:], ", "), hint)
		}
		*c |= one
	}
	return nil
}

func addLegacy(c *Capabilities, f field) error {
	name, err := stringOf(f)
	if err != nil {
		return err
	}
	if legacy[name] == 0 {
		return faultf(f.at, "unknown policy %q; it is read, write, sudo or deny, but write capabilities = […] instead", name)
	}
	*c |= legacy[name]
	return nil
}

func requiredOf(f field) ([]string, error) {
	names, err := stringsOf(f)
	for i, name := range names {
		if name == "" || strings.Contains(name, "*") || strings.HasPrefix(name, "/") {
			return nil, faultf(f.at, "required_parameters: %q is not the name of a parameter; name each one that must be there", name)
		}
		names[i] = strings.ToLower(name)
	}
	return names, err
}

func parametersOf(f field) (map[string][]any, error) {
	if f.value.shape != anObject {
		return nil, faultf(f.value.at, `%s is %s; write { "name" = ["value", …] }, with [] for any value`, f.keys[0], shapes[f.value.shape])
	}
	parameters := make(map[string][]any, len(f.value.fields))
	for _, g := range f.value.fields {
		name := strings.ToLower(g.keys[0])
		switch _, twice := parameters[name]; {
		case len(g.keys) > 1:
			return nil, faultf(g.at, "%s: write %q = […]", f.keys[0], g.keys[0])
		case twice:
			return nil, faultf(g.at, "%s: %q is given twice (case does not count); keep one", f.keys[0], name)
		case strings.HasPrefix(name, "/"):
			return nil, faultf(g.at, "%s: %q is a path into the body; only top-level parameters can be governed", f.keys[0], name)
		case strings.Contains(name, "*") && name != "*":
			return nil, faultf(g.at, `%s: a * within a name is not a pattern; name the parameter, or write "*" for all`, f.keys[0])
		case g.value.shape != aList:
			return nil, faultf(g.value.at, "%s: %q is %s; write a list of values, [] for any", f.keys[0], name, shapes[g.value.shape])
		}
		values := make([]any, len(g.value.list))
		for i, n := range g.value.list {
			values[i] = n.plain()
		}
		parameters[name] = values
	}
	return parameters, nil
}

// plain is the node as a request's data would have it.
func (n node) plain() any {
	switch n.shape {
	case aString:
		return n.text
	case aNumber:
		return json.Number(n.text)
	case aBoolean:
		return n.truth
	case aList:
		values := make([]any, len(n.list))
		for i, m := range n.list {
			values[i] = m.plain()
		}
		return values
	case anObject:
		values := make(map[string]any, len(n.fields))
		for _, f := range n.fields {
			values[strings.Join(f.keys, " ")] = f.value.plain()
		}
		return values
	}
	return nil
}

func controlOf(f field, granted Capabilities) (*ControlGroup, error) {
	const like = `factor "name" { identity { group_names = ["…"] approvals = 1 } }`
	if f.value.shape != anObject {
		return nil, faultf(f.value.at, "control_group is %s; write control_group = { %s }", shapes[f.value.shape], like)
	}
	control := &ControlGroup{}
	var rest []field
	for _, g := range f.value.fields {
		if g.keys[0] != "factor" {
			rest = append(rest, g)
			continue
		}
		factors, err := blocks(g, like)
		if err != nil {
			return nil, err
		}
		for _, b := range factors {
			factor, err := factorOf(b, granted)
			if err != nil {
				return nil, err
			}
			if slices.ContainsFunc(control.Factors, func(o Factor) bool { return o.Name == factor.Name }) {
				return nil, faultf(b.at, "factor %q is given twice; name each differently", b.label)
			}
			control.Factors = append(control.Factors, factor)
		}
	}
	keys, err := object("control_group", rest, "ttl", "factor")
	if err != nil {
		return nil, err
	}
	if ttl, ok := keys["ttl"]; ok {
		if control.TTL, err = durationOf(ttl); err != nil {
			return nil, err
		}
	}
	if len(control.Factors) == 0 {
		return nil, faultf(f.at, "control_group has no factor, so nobody would have to approve; write %s", like)
	}
	return control, nil
}

func factorOf(b block, granted Capabilities) (Factor, error) {
	factor := Factor{Name: b.label}
	keys, err := object(fmt.Sprintf("factor %q", b.label), b.fields, "controlled_capabilities", "identity")
	if err != nil {
		return factor, err
	}
	if f, ok := keys["controlled_capabilities"]; ok {
		if err := addCapabilities(&factor.Capabilities, f); err != nil {
			return factor, err
		}
		if !granted.Has(factor.Capabilities) {
			return factor, faultf(f.at, "factor %q controls capabilities that its path does not give; name only those that it gives", b.label)
		}
	}
	identity, ok := keys["identity"]
	if !ok || identity.value.shape != anObject {
		return factor, faultf(b.at, `factor %q does not say who approves; write identity { group_names = ["…"] approvals = 1 }`, b.label)
	}
	who, err := object("identity", identity.value.fields, "group_names", "group_ids", "approvals")
	if err != nil {
		return factor, err
	}
	if f, ok := who["group_names"]; ok {
		if factor.GroupNames, err = stringsOf(f); err != nil {
			return factor, err
		}
	}
	if f, ok := who["group_ids"]; ok {
		if factor.GroupIDs, err = stringsOf(f); err != nil {
			return factor, err
		}
	}
	if len(factor.GroupNames)+len(factor.GroupIDs) == 0 {
		return factor, faultf(identity.at, "factor %q names no group, so nobody could approve; set group_names or group_ids", b.label)
	}
	approvals, ok := who["approvals"]
	if ok {
		n, err := strconv.ParseInt(approvals.value.text, 10, 32)
		if err != nil {
			return factor, faultf(approvals.value.at, "approvals is not a number of people; write approvals = 1 or more")
		}
		factor.Approvals = int(n)
	}
	if factor.Approvals < 1 {
		at := identity.at
		if ok {
			at = approvals.value.at
		}
		return factor, faultf(at, "factor %q asks for no approval; write approvals = 1 or more", b.label)
	}
	return factor, nil
}

func stringOf(f field) (string, error) {
	if f.value.shape != aString || len(f.keys) > 1 {
		return "", faultf(f.value.at, "%s is %s; write a quoted string", f.keys[0], shapes[f.value.shape])
	}
	return f.value.text, nil
}

func stringsOf(f field) ([]string, error) {
	if f.value.shape != aList {
		return nil, faultf(f.value.at, `%s is %s; write a list of strings, such as ["a", "b"]`, f.keys[0], shapes[f.value.shape])
	}
	values := make([]string, len(f.value.list))
	for i, n := range f.value.list {
		if n.shape != aString {
			return nil, faultf(n.at, "%s in the list %s; write a quoted string", shapes[n.shape], f.keys[0])
		}
		values[i] = n.text
	}
	return values, nil
}

// durationOf reads seconds, or a string such as "3600", "90s", "1h30m" or "5d".
func durationOf(f field) (time.Duration, error) {
	if f.value.shape == aString || f.value.shape == aNumber {
		if d, ok := parseDuration(f.value.text); ok {
			return d, nil
		}
	}
	return 0, faultf(f.value.at, `%s is not a duration; write seconds, or a string such as "90s", "1h30m" or "5d"`, f.keys[0])
}

func parseDuration(s string) (time.Duration, bool) {
	count, unit := s, time.Second
	if days, ok := strings.CutSuffix(s, "d"); ok {
		count, unit = days, 24*time.Hour
	}
	if n, err := strconv.ParseInt(count, 10, 64); err == nil {
		return time.Duration(n) * unit, n >= 0 && n <= math.MaxInt64/int64(unit)
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d >= 0
}

// doubts says what in a rule parses but probably does not mean what it seems to.
func doubts(r *Rule) []string {
	var found []string
	bare := strings.TrimPrefix(r.Path, "/")
	if strings.Contains(strings.TrimSuffix(bare, "*"), "*") {
		found = append(found, "a * that is not at the end is an ordinary character; + stands for one segment")
	}
	for segment := range strings.SplitSeq(bare, "/") {
		if len(segment) > 1 && strings.Contains(segment, "+") && !strings.Contains(segment, "{{") {
			found = append(found, "a + that is not a whole segment is an ordinary character")
			break
		}
	}
	if strings.HasPrefix(bare, "v1/") {
		found = append(found, "paths do not begin with v1/; this one matches only a mount of that name")
	}
	if r.Capabilities == 0 {
		found = append(found, "it has no capabilities, so it denies whatever it matches")
	}
	return found
}
