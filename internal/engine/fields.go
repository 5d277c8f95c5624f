package engine

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Bind parses what the client sent against the route's fields, weakly typed as Vault's clients expect. It returns the
// names that nothing declared (for a warning); a value of the wrong type is an error of kind Invalid.
func (r *Request) Bind(route *Route) (unknown []string, err error) {
	r.values = make(map[string]any, len(r.Op.Data))
	for name, raw := range r.Op.Data {
		i := slices.IndexFunc(route.Fields, func(f Field) bool { return f.Name == name })
		if i < 0 {
			if _, isParam := r.Params[name]; !isParam && !route.Free {
				unknown = append(unknown, name)
			}
			continue
		}
		v, ok := parse(route.Fields[i].Type, raw)
		if !ok {
			return nil, api.Errorf(api.Invalid, "field %q is not %s", name, route.Fields[i].Type)
		}
		r.values[name] = v
	}
	sort.Strings(unknown)
	return unknown, nil
}

// Has reports whether the client sent the field (null counts as not sent).
func (r *Request) Has(name string) bool { _, ok := r.values[name]; return ok && r.values[name] != nil }

// Param is a name of the route's pattern.
func (r *Request) Param(name string) string { return r.Params[name] }

// Str, Int, Bool, Dur, List, Map and Pairs are the parsed values of declared fields, zero if not sent. Asking for a
// field under another type than declared is a defect and panics.
func (r *Request) Str(name string) string              { return get[string](r, name) }
func (r *Request) Int(name string) int64               { return get[int64](r, name) }
func (r *Request) Bool(name string) bool               { return get[bool](r, name) }
func (r *Request) Dur(name string) time.Duration       { return get[time.Duration](r, name) }
func (r *Request) List(name string) []string           { return get[[]string](r, name) }
func (r *Request) Map(name string) map[string]any      { return get[map[string]any](r, name) }
func (r *Request) Pairs(name string) map[string]string { return get[map[string]string](r, name) }

// Any is a field's value as it was sent.
func (r *Request) Any(name string) any { return r.values[name] }

// Secret is a string field whose value must not be seen.
func (r *Request) Secret(name string) lessor.Secret { return lessor.NewSecret(get[string](r, name)) }

func get[T any](r *Request, name string) T {
	v, ok := r.values[name]
	if !ok || v == nil {
		var zero T
		return zero
	}
	return v.(T)
}

func (t FieldType) String() string {
	return [...]string{"", "a string", "an integer", "a boolean", "a duration", "a list of strings", "an object", "a set of key=value pairs", "a value"}[t]
}

func parse(t FieldType, raw any) (any, bool) {
	if raw == nil {
		return nil, true
	}
	switch t {
	case String:
		return scalar(raw)
	case Int:
		return integer(raw)
	case Bool:
		return boolean(raw)
	case Duration:
		return ParseDuration(raw)
	case Strings:
		return list(raw)
	case Map:
		return object(raw)
	case Pairs:
		return pairs(raw)
	}
	return raw, true
}

func scalar(raw any) (string, bool) {
	switch v := raw.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}

func integer(raw any) (int64, bool) {
	switch v := raw.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n, true
		}
		f, err := v.Float64()
		return int64(f), err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53
	case string:
		if v == "" {
			return 0, true
		}
		n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		return n, err == nil
	case int:
		return int64(v), true
	}
	return 0, false
}

func boolean(raw any) (bool, bool) {
	switch v := raw.(type) {
	case bool:
		return v, true
	case json.Number:
		n, err := v.Int64()
		return n != 0, err == nil
	case string:
		if v == "" {
			return false, true
		}
		b, err := strconv.ParseBool(v)
		return b, err == nil
	}
	return false, false
}

// ParseDuration reads a duration as Vault's clients write it: seconds as a number or string, or a Go duration with "d"
// for days. Negative durations and those beyond a hundred years are refused.
func ParseDuration(raw any) (time.Duration, bool) {
	const most = 100 * 365 * 24 * time.Hour
	seconds := func(f float64) (time.Duration, bool) {
		if !(f >= 0 && f <= most.Seconds()) {
			return 0, false
		}
		return time.Duration(f * float64(time.Second)), true
	}
	switch v := raw.(type) {
	case json.Number:
		f, err := v.Float64()
		if err != nil {
			return 0, false
		}
		return seconds(f)
	case int:
		return seconds(float64(v))
	case string:
		v = strings.TrimSpace(v)
		if v == "" {
			return 0, true
		}
		if f, err := strconv.ParseFloat(v, 64); err == nil {
			return seconds(f)
		}
		var days time.Duration
		if head, rest, found := strings.Cut(v, "d"); found {
			n, err := strconv.ParseFloat(head, 64)
			if err != nil || !(n >= 0 && n <= most.Hours()/24) {
				return 0, false
			}
			days = time.Duration(n * 24 * float64(time.Hour))
			if v = rest; v == "" {
				return days, true
			}
		}
		d, err := time.ParseDuration(v)
		return days + d, err == nil && d >= 0 && d <= most && days+d <= most
	}
	return 0, false
}

// ParseList reads a list as Vault's clients write it: an array, or a string with commas. null is an empty list.
func ParseList(raw any) ([]string, bool) {
	if raw == nil {
		return nil, true
	}
	return list(raw)
}

// ParseInt and ParseBool read an integer and a boolean as Vault's clients write them: also as a string.
func ParseInt(raw any) (int64, bool) { return integer(raw) }
func ParseBool(raw any) (bool, bool) { return boolean(raw) }

func list(raw any) ([]string, bool) {
	switch v := raw.(type) {
	case []any:
		out := make([]string, 0, len(v))
		for _, e := range v {
			s, ok := scalar(e)
			if !ok {
				return nil, false
			}
			out = append(out, s)
		}
		return out, true
	case []string:
		return v, true
	case string:
		out := []string{}
		for s := range strings.SplitSeq(v, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, s)
			}
		}
		return out, true
	case json.Number:
		return []string{v.String()}, true
	}
	return nil, false
}

func object(raw any) (map[string]any, bool) {
	switch v := raw.(type) {
	case map[string]any:
		return v, true
	case string:
		d := json.NewDecoder(strings.NewReader(v))
		d.UseNumber()
		var m map[string]any
		return m, d.Decode(&m) == nil
	}
	return nil, false
}

func pairs(raw any) (map[string]string, bool) {
	out := map[string]string{}
	switch v := raw.(type) {
	case map[string]any:
		for k, e := range v {
			s, ok := scalar(e)
			if !ok {
				return nil, false
			}
			out[k] = s
		}
		return out, true
	case string, []any:
		if m, ok := object(raw); ok {
			return pairs(m)
		}
		l, ok := list(v)
		for _, e := range l {
			k, val, found := strings.Cut(e, "=")
			if !found || k == "" {
				return nil, false
			}
			out[strings.TrimSpace(k)] = strings.TrimSpace(val)
		}
		return out, ok
	}
	return nil, false
}

// Ignored is the warning about parameters that no field declares, in the words that Vault's users know.
func Ignored(unknown []string) string {
	return fmt.Sprintf("Endpoint ignored these unrecognized parameters: %v", unknown)
}
