package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// objection is why a stanza does not grant, and which of its rules say so.
type objection struct {
	text string
	by   func(*Rule) bool
}

// governed reports whether the verb's parameters are looked at.
func governed(v lessor.Verb) bool { return v != lessor.List && v != lessor.Delete }

// parameters checks an operation's data: required ones are there, none is denied, each is allowed. Names in policies
// are lower case. Of several offenders it names the least, so that texts are the same each time.
func (s *stanza) parameters(data map[string]any) *objection {
	for _, name := range s.required {
		if _, ok := data[name]; !ok {
			return &objection{
				fmt.Sprintf("requires parameter %q", name),
				func(r *Rule) bool { return slices.Contains(r.Required, name) },
			}
		}
	}
	if len(data) == 0 {
		return nil
	}
	if _, all := s.denied["*"]; all {
		return &objection{"denies all parameters", func(r *Rule) bool { return has(r.Denied, "*") }}
	}
	if name, found := least(data, s.denies); found {
		return &objection{
			fmt.Sprintf("denies %sparameter %q", thatValue(s.denied[name]), name),
			func(r *Rule) bool { return has(r.Denied, name) },
		}
	}
	if len(s.allowed) == 0 {
		return nil
	}
	if name, found := least(data, s.disallows); found {
		return &objection{
			fmt.Sprintf("does not allow %sparameter %.64q", thatValue(s.allowed[name]), name),
			func(r *Rule) bool { return len(r.Allowed) > 0 },
		}
	}
	return nil
}

func (s *stanza) denies(name string, value any) bool {
	values, named := s.denied[name]
	return named && (len(values) == 0 || listed(values, value, true) || anyListed(values, value))
}

func (s *stanza) disallows(name string, value any) bool {
	values, named := s.allowed[name]
	if !named {
		_, all := s.allowed["*"]
		return !all
	}
	if name == "*" {
		return false
	}
	return len(values) > 0 && !listed(values, value, false) && !allListed(values, value)
}

// least finds the smallest name, in lower case, of the parameters that offend.
func least(data map[string]any, offends func(name string, value any) bool) (name string, found bool) {
	for key, value := range data {
		lower := strings.ToLower(key)
		if (!found || lower < name) && offends(lower, value) {
			name, found = lower, true
		}
	}
	return name, found
}

func thatValue(values []any) string {
	if len(values) == 0 {
		return ""
	}
	return "that value of "
}

// anyListed reports whether an element of a list, or of a comma-separated string, is among the values.
func anyListed(values []any, value any) bool {
	for _, element := range elements(value) {
		if listed(values, element, true) {
			return true
		}
	}
	return false
}

// allListed reports whether there are elements, and all are among the values. An empty list is not, unless it is
// listed itself: often it means that a restriction is lifted.
func allListed(values []any, value any) bool {
	all := elements(value)
	for _, element := range all {
		if !listed(values, element, false) {
			return false
		}
	}
	return len(all) > 0
}

// elements takes a list, or a string that an engine may read as one, apart.
func elements(value any) []any {
	switch v := value.(type) {
	case []any:
		return v
	case string:
		if !strings.Contains(v, ",") {
			return []any{strings.TrimSpace(v)}
		}
		var parts []any
		for part := range strings.SplitSeq(v, ",") {
			parts = append(parts, strings.TrimSpace(part))
		}
		return parts
	}
	return nil
}

// listed reports whether a value is among those of a policy. Strings match with a * at either end. Loosely, a value
// also matches one that engines would read the same: "true" and true, "5" and 5. Denials are loose, permissions strict.
func listed(values []any, value any, loose bool) bool {
	for _, want := range values {
		if pattern, ok := want.(string); ok {
			if s, ok := value.(string); ok && globbed(pattern, s) {
				return true
			}
		}
		if same(want, value) || loose && alike(want, value) {
			return true
		}
	}
	return false
}

func globbed(pattern, s string) bool {
	inner, before := strings.CutPrefix(pattern, "*")
	inner, after := strings.CutSuffix(inner, "*")
	switch {
	case before && after, pattern == "*":
		return strings.Contains(s, inner)
	case before:
		return strings.HasSuffix(s, inner)
	case after:
		return strings.HasPrefix(s, inner)
	}
	return pattern == s
}

// same compares JSON values; numbers by what they are, not by how they are written.
func same(a, b any) bool {
	switch a := a.(type) {
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !same(a[i], b[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k := range a {
			if v, ok := b[k]; !ok || !same(a[k], v) {
				return false
			}
		}
		return true
	case json.Number:
		b, ok := b.(json.Number)
		return ok && equalNumbers(a.String(), b.String())
	case string:
		b, ok := b.(string)
		return ok && a == b
	case bool:
		b, ok := b.(bool)
		return ok && a == b
	}
	return a == nil && b == nil
}

// alike compares scalars as engines do that accept "true" for true and "5" for 5.
func alike(a, b any) bool {
	x, ok := scalar(a)
	if !ok {
		return false
	}
	y, ok := scalar(b)
	if !ok {
		return false
	}
	if globbed(x, y) || equalNumbers(x, y) {
		return true
	}
	_, isBool := a.(bool)
	if _, is := b.(bool); !is && !isBool {
		return false
	}
	p, errP := strconv.ParseBool(x)
	q, errQ := strconv.ParseBool(y)
	return errP == nil && errQ == nil && p == q
}

func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}

func equalNumbers(a, b string) bool {
	if a == b {
		return true
	}
	i, errI := strconv.ParseInt(a, 10, 64)
	j, errJ := strconv.ParseInt(b, 10, 64)
	if errI == nil && errJ == nil {
		return i == j
	}
	x, errX := strconv.ParseFloat(a, 64)
	y, errY := strconv.ParseFloat(b, 64)
	return errX == nil && errY == nil && x == y
}

func has(parameters map[string][]any, name string) bool {
	_, ok := parameters[name]
	return ok
}
