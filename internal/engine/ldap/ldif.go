package ldap

import (
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	texttemplate "text/template"
	"time"
	"unicode/utf16"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/template"
)

// LDIF (RFC 2849) with templates. A text is taken apart into records, DNs, attributes and values first, and what is in braces is filled in
// afterwards, into one DN or value each: so nothing that is filled in can become a line, an attribute or another record. What goes into a DN is
// escaped (RFC 4514) besides.

// script is LDIF, compiled.
type script struct{ records []record }

type record struct {
	verb    Verb
	dn      *template.Template
	values  []text
	changes []amendment
}

// text is a value, as a template.
type text struct {
	attribute string
	template  *template.Template
	encoded   bool // what it makes is base64
}

type amendment struct {
	kind      ChangeKind
	attribute string
	values    []text
}

// subject is what a template is about.
type subject struct {
	Username              string
	Password              string // of creation_ldif only
	DisplayName           string // of who asks; characters other than letters, digits, "_", "." and "-" are "-"
	RoleName              string
	IssueTime             string
	IssueTimeSeconds      int64
	ExpirationTime        string
	ExpirationTimeSeconds int64
}

const (
	longestLDIF = 32 << 10
	mostRecords = 64
)

var (
	attribute = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]*(;[A-Za-z0-9-]+)*$|^[0-9]+(\.[0-9]+)+$`)

	fields  = []string{"Username", "DisplayName", "RoleName", "IssueTime", "IssueTimeSeconds", "ExpirationTime", "ExpirationTimeSeconds"}
	inDN    = template.Language{Name: "DNs", Longest: longestLDIF, Fields: fields, Escape: escapeDN}
	inValue = template.Language{Name: "LDIF", Longest: longestLDIF, Fields: fields, Functions: texttemplate.FuncMap{"utf16le": utf16le}}
	secret  = template.Language{Name: "LDIF", Longest: longestLDIF, Fields: append(slices.Clone(fields), "Password"), Functions: inValue.Functions}
)

// utf16le is a text in the encoding of Active Directory's passwords.
func utf16le(s string) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return string(b)
}

// escapeDN makes a text a part of an attribute's value in a DN.
func escapeDN(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case strings.IndexByte(`,+"\<>;=#`, c) >= 0:
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c == 0x7f, c == ' ' && (i == 0 || i == len(s)-1):
			fmt.Fprintf(&b, `\%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// parseLDIF compiles LDIF, as it is or in base64. Errors are for whoever wrote it. A password is known where values are of language secret.
func parseLDIF(raw string, values *template.Language) (*script, error) {
	if len(raw) > longestLDIF {
		return nil, fmt.Errorf("longer than %d bytes", longestLDIF)
	}
	if b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(raw)); err == nil {
		raw = string(b)
	}
	s := &script{}
	for _, lines := range paragraphs(raw) {
		if s.records == nil && len(lines) > 0 && strings.HasPrefix(lines[0], "version:") {
			lines = lines[1:]
		}
		if len(lines) == 0 {
			continue
		}
		r, err := parseRecord(lines, values)
		if err != nil {
			return nil, err
		}
		if s.records = append(s.records, *r); len(s.records) > mostRecords {
			return nil, fmt.Errorf("more than %d records", mostRecords)
		}
	}
	if len(s.records) == 0 {
		return nil, errors.New("must specify at least one LDIF entry")
	}
	return s, nil
}

// paragraphs are the records' lines, unfolded, without comments.
func paragraphs(raw string) (all [][]string) {
	var lines []string
	comment := false
	for line := range strings.SplitSeq(raw+"\n\n", "\n") {
		line = strings.TrimSuffix(line, "\r")
		switch {
		case strings.TrimSpace(line) == "":
			if len(lines) > 0 {
				all, lines = append(all, lines), nil
			}
			comment = false
		case line[0] == ' ' && comment:
		case line[0] == ' ' && len(lines) > 0:
			lines[len(lines)-1] += line[1:]
		case line[0] == '#':
			comment = true
		default:
			lines, comment = append(lines, line), false
		}
	}
	return all
}

// member is a line "name: value".
func member(line string) (name, value string, encoded bool, err error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok {
		return "", "", false, fmt.Errorf("%q is no line of LDIF: name: value", clip(line))
	}
	if strings.HasPrefix(value, "<") {
		return "", "", false, fmt.Errorf("%s:< is not supported: nothing is read from URLs", clip(name))
	}
	if rest, ok := strings.CutPrefix(value, ":"); ok {
		value, encoded = rest, true
	}
	return strings.TrimSpace(name), strings.TrimLeft(value, " "), encoded, nil
}

func clip(s string) string { return s[:min(len(s), 60)] }

// valueOf compiles a value. One in base64 that has no template in it is decoded now.
func valueOf(l *template.Language, name, value string, encoded bool) (text, error) {
	v := text{attribute: name, encoded: encoded}
	if !attribute.MatchString(name) {
		return v, fmt.Errorf("%q is no name of an attribute", clip(name))
	}
	if encoded && !strings.Contains(value, "{{") {
		if _, err := base64.StdEncoding.DecodeString(value); err != nil {
			return v, fmt.Errorf("the value of %s is no base64", name)
		}
	}
	if value == "" {
		return v, nil
	}
	t, err := l.Compile(value)
	if err != nil {
		return v, fmt.Errorf("the value of %s: %w (each line of LDIF is a template by itself)", name, err)
	}
	v.template = t
	return v, nil
}

func parseRecord(lines []string, l *template.Language) (*record, error) {
	name, dn, encoded, err := member(lines[0])
	if err != nil {
		return nil, err
	}
	if !strings.EqualFold(name, "dn") {
		return nil, fmt.Errorf("a record begins with %q, not with its dn", clip(name))
	}
	if encoded {
		b, err := base64.StdEncoding.DecodeString(dn)
		if err != nil {
			return nil, errors.New("a dn is no base64")
		}
		dn = string(b)
	}
	r := &record{verb: Add}
	if r.dn, err = inDN.Compile(dn); err != nil {
		return nil, fmt.Errorf("dn: %w (each line of LDIF is a template by itself)", err)
	}
	lines = lines[1:]
	if len(lines) > 0 {
		if name, kind, _, err := member(lines[0]); err == nil && strings.EqualFold(name, "changetype") {
			lines = lines[1:]
			switch strings.ToLower(kind) {
			case "add":
			case "modify":
				r.verb = Modify
			case "delete":
				r.verb = Delete
			default:
				return nil, fmt.Errorf("changetype %q is not supported: add, modify or delete", clip(kind))
			}
		}
	}
	switch r.verb {
	case Delete:
		if len(lines) > 0 {
			return nil, errors.New("a record that deletes has nothing but its dn")
		}
		return r, nil
	case Modify:
		return r, r.parseChanges(lines, l)
	}
	for _, line := range lines {
		name, value, encoded, err := member(line)
		if err != nil {
			return nil, err
		}
		v, err := valueOf(l, name, value, encoded)
		if err != nil {
			return nil, err
		}
		r.values = append(r.values, v)
	}
	if len(r.values) == 0 {
		return nil, errors.New("a record that adds an entry has no attributes")
	}
	return r, nil
}

// parseChanges reads what a record modifies: "add: ATTRIBUTE", values, "-".
func (r *record) parseChanges(lines []string, l *template.Language) error {
	var open *amendment
	for _, line := range lines {
		if strings.TrimSpace(line) == "-" {
			open = nil
			continue
		}
		name, value, encoded, err := member(line)
		if err != nil {
			return err
		}
		if open == nil {
			kind := map[string]ChangeKind{"add": AddValues, "delete": DeleteValues, "replace": ReplaceValues}[strings.ToLower(name)]
			if kind == 0 || !attribute.MatchString(value) {
				return fmt.Errorf("%q says no modification: add:, delete: or replace: and an attribute's name", clip(line))
			}
			r.changes = append(r.changes, amendment{kind: kind, attribute: value})
			open = &r.changes[len(r.changes)-1]
			continue
		}
		if !strings.EqualFold(name, open.attribute) {
			return fmt.Errorf("%s is among the values of %s: modifications are separated by a line with \"-\"", clip(name), open.attribute)
		}
		v, err := valueOf(l, name, value, encoded)
		if err != nil {
			return err
		}
		open.values = append(open.values, v)
	}
	if len(r.changes) == 0 {
		return errors.New("a record that modifies says no modification")
	}
	for _, c := range r.changes {
		if c.kind == AddValues && len(c.values) == 0 {
			return fmt.Errorf("add: %s has no values", c.attribute)
		}
	}
	return nil
}

// fill is what the script says for a lease.
func (s *script) fill(lease string, issued time.Time, about subject) ([]Step, error) {
	var steps []Step
	for i := range s.records {
		r := &s.records[i]
		dn, err := r.dn.Execute(lease, issued, about)
		if err != nil {
			return nil, fmt.Errorf("dn: %w", err)
		}
		if parsed, err := goldap.ParseDN(dn); err != nil || len(parsed.RDNs) == 0 {
			return nil, errors.New("it makes what is no distinguished name")
		}
		step := Step{Verb: r.verb, DN: dn}
		if step.Values, err = fillAll(r.values, lease, issued, about); err != nil {
			return nil, err
		}
		for _, c := range r.changes {
			change := Change{c.kind, Values{Attribute: c.attribute}}
			values, err := fillAll(c.values, lease, issued, about)
			if err != nil {
				return nil, err
			}
			if len(values) > 0 {
				change.Values.Values = values[0].Values
			}
			step.Changes = append(step.Changes, change)
		}
		steps = append(steps, step)
	}
	return steps, nil
}

// fillAll is what templates of values make, by attribute.
func fillAll(texts []text, lease string, issued time.Time, about subject) (all []Values, err error) {
	for _, v := range texts {
		value := ""
		if v.template != nil {
			if value, err = v.template.Execute(lease, issued, about); err != nil {
				return nil, fmt.Errorf("the value of %s: %w", v.attribute, err)
			}
		}
		if v.encoded {
			b, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				return nil, fmt.Errorf("the value of %s:: is no base64", v.attribute)
			}
			value = string(b)
		}
		i := slices.IndexFunc(all, func(have Values) bool { return strings.EqualFold(have.Attribute, v.attribute) })
		if i < 0 {
			i, all = len(all), append(all, Values{Attribute: v.attribute})
		}
		all[i].Values = append(all[i].Values, value)
	}
	return all, nil
}

// making is how to make what the script says. An entry is added with a password that nobody knows, nobodys, and given its own last, by a step that
// demands the entry.
func (s *script) making(lease string, issued time.Time, about subject, password, nobodys lessor.Secret) (steps []Step, err error) {
	about.Password = password.Reveal()
	own, err := s.fill(lease, issued, about)
	if err != nil {
		return nil, err
	}
	about.Password = nobodys.Reveal()
	if steps, err = s.fill(lease, issued, about); err != nil {
		return nil, err
	}
	var last []Step
	for i := range steps {
		if steps[i].Verb != Add {
			if !reflect.DeepEqual(steps[i], own[i]) {
				steps[i] = own[i]
				steps[i].Secret = true
			}
			continue
		}
		for n, v := range own[i].Values {
			switch {
			case slices.Equal(v.Values, steps[i].Values[n].Values):
			case strings.EqualFold(v.Attribute, "userPassword") && len(v.Values) == 1 && v.Values[0] == password.Reveal():
				last = append(last, Step{Verb: Password, DN: own[i].DN, Password: password, Secret: true})
			default:
				last = append(last, Step{Verb: Modify, DN: own[i].DN, Changes: []Change{{ReplaceValues, v}}, Secret: true})
			}
		}
	}
	return append(steps, last...), nil
}

// added are the DNs of the entries that steps add.
func added(steps []Step) (dns []string) {
	for _, s := range steps {
		if s.Verb == Add && !slices.ContainsFunc(dns, func(dn string) bool { return same(dn, s.DN) }) {
			dns = append(dns, s.DN)
		}
	}
	return dns
}

var errIrreversible = errors.New("deletion_ldif is needed: creation_ldif changes an entry in a way that lessor cannot undo by itself")

// undoing are steps that undo others: entries that were added are deleted, values that were added to others go.
func undoing(steps []Step) ([]Step, error) {
	mine := added(steps)
	var undo []Step
	for _, s := range slices.Backward(steps) {
		own := slices.ContainsFunc(mine, func(dn string) bool { return same(dn, s.DN) })
		switch {
		case s.Verb == Add:
			undo = append(undo, Step{Verb: Delete, DN: s.DN})
		case own || s.Verb == Password:
		case s.Verb == Delete:
			return nil, errIrreversible
		default:
			back := Step{Verb: Modify, DN: s.DN}
			for _, c := range slices.Backward(s.Changes) {
				if c.Kind != AddValues || s.Secret {
					return nil, errIrreversible
				}
				back.Changes = append(back.Changes, Change{DeleteValues, c.Values})
			}
			undo = append(undo, back)
		}
	}
	return undo, nil
}
