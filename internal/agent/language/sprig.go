package language

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

// sprig are those functions of Sprig's that templates of secrets are written with, by the names that Vault Agent has them under. The library itself brings ten modules with it. What makes something else
// each time it is called is not here: a file would be written anew for it. As of all functions, errors never repeat what was given.
func sprig() template.FuncMap {
	plain := template.FuncMap{
		// Text.
		"cat":        func(v ...any) string { return strings.Join(texts(v), " ") },
		"contains":   func(part, in string) bool { return strings.Contains(in, part) },
		"hasPrefix":  func(prefix, in string) bool { return strings.HasPrefix(in, prefix) },
		"hasSuffix":  func(suffix, in string) bool { return strings.HasSuffix(in, suffix) },
		"indent":     margin,
		"lower":      strings.ToLower,
		"nindent":    func(n int, s string) (string, error) { s, err := margin(n, s); return "\n" + s, err },
		"nospace":    func(s string) string { return strings.Join(strings.Fields(s), "") },
		"quote":      func(v ...any) string { return quoted(v, strconv.Quote) },
		"repeat":     repeat,
		"replace":    func(from, to, in string) string { return strings.ReplaceAll(in, from, to) },
		"squote":     func(v ...any) string { return quoted(v, func(s string) string { return "'" + s + "'" }) },
		"substr":     substr,
		"toString":   spoken,
		"trim":       strings.TrimSpace,
		"trimAll":    func(cut, s string) string { return strings.Trim(s, cut) },
		"trimPrefix": func(prefix, s string) string { return strings.TrimPrefix(s, prefix) },
		"trimSuffix": func(suffix, s string) string { return strings.TrimSuffix(s, suffix) },
		"trunc":      trunc,
		"upper":      strings.ToUpper,

		// What is missing.
		"coalesce": func(v ...any) any { return firstOf(v, nil) },
		"default":  func(otherwise any, v ...any) any { return firstOf(v, otherwise) },
		"empty":    void,
		"fail":     func(string) (string, error) { return "", errors.New("the template says fail") },
		"ternary":  func(yes, no any, is bool) any { return choose(is, yes, no) },

		// Lists.
		"append":  func(list, v any) ([]any, error) { l, err := items(list); return append(l, v), err },
		"compact": func(list any) ([]any, error) { l, err := items(list); return slices.DeleteFunc(l, void), err },
		"first":   func(list any) (any, error) { l, err := items(list); return nth(l, 0), err },
		"has":     func(v, list any) (bool, error) { l, err := items(list); return within(l, v), err },
		"initial": func(list any) ([]any, error) { l, err := items(list); return l[:max(0, len(l)-1)], err },
		"join":    joined,
		"last":    func(list any) (any, error) { l, err := items(list); return nth(l, len(l)-1), err },
		"list":    func(v ...any) []any { return v },
		"prepend": func(list, v any) ([]any, error) { l, err := items(list); return append([]any{v}, l...), err },
		"rest":    func(list any) ([]any, error) { l, err := items(list); return l[min(1, len(l)):], err },
		"reverse": func(list any) ([]any, error) { l, err := items(list); slices.Reverse(l); return l, err },
		"sortAlpha": func(list any) ([]string, error) {
			l, err := items(list)
			return slices.Sorted(slices.Values(texts(l))), err
		},
		"splitList": func(by, s string) []string { return strings.Split(s, by) },
		"toStrings": func(list any) ([]string, error) { l, err := items(list); return texts(l), err },
		"uniq":      uniq,
		"until":     func(n any) ([]int64, error) { return loop(n) },
		"without":   without,

		// Objects.
		"dict":   dict,
		"get":    func(d map[string]any, key string) any { return d[key] },
		"hasKey": func(d map[string]any, key string) bool { _, ok := d[key]; return ok },
		"keys":   func(d map[string]any) []string { return slices.Sorted(maps.Keys(d)) },
		"omit":   func(d map[string]any, keys ...string) map[string]any { return part(d, keys, false) },
		"pick":   func(d map[string]any, keys ...string) map[string]any { return part(d, keys, true) },
		"values": func(d map[string]any) []any {
			return slices.Collect(func(yield func(any) bool) {
				for _, key := range slices.Sorted(maps.Keys(d)) {
					if !yield(d[key]) {
						return
					}
				}
			})
		},

		// Encodings and hashes.
		"b64dec":       decoded(base64.StdEncoding, "base64"),
		"b64enc":       func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"fromJson":     parseJSON,
		"sha1sum":      func(s string) string { sum := sha1.Sum([]byte(s)); return hex.EncodeToString(sum[:]) },
		"sha256sum":    func(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:]) },
		"sha512sum":    func(s string) string { sum := sha512.Sum512([]byte(s)); return hex.EncodeToString(sum[:]) },
		"toJson":       func(v any) (string, error) { return toJSON(v, "", true) },
		"toPrettyJson": func(v any) (string, error) { return toJSON(v, "  ", true) },
		"toRawJson":    func(v any) (string, error) { return toJSON(v, "", false) },

		// Numbers: whole ones, or texts of them.
		"add":   fold(func(a, b int64) (int64, error) { return a + b, nil }),
		"add1":  func(v any) (int64, error) { n, err := number64(v); return n + 1, err },
		"atoi":  number64,
		"div":   fold(func(a, b int64) (int64, error) { return divide(b, a) }),
		"int":   number64,
		"int64": number64,
		"max":   fold(func(a, b int64) (int64, error) { return max(a, b), nil }),
		"min":   fold(func(a, b int64) (int64, error) { return min(a, b), nil }),
		"mod":   fold(func(a, b int64) (int64, error) { return modulo(b, a) }),
		"mul":   fold(func(a, b int64) (int64, error) { return a * b, nil }),
		"sub":   fold(func(a, b int64) (int64, error) { return a - b, nil }),

		// Expressions, paths and the machine.
		"base":            path.Base,
		"dir":             path.Dir,
		"env":             os.Getenv,
		"ext":             path.Ext,
		"regexFind":       func(e, s string) (string, error) { r, err := expression(e); return find(r, s), err },
		"regexMatch":      regexMatch,
		"regexQuoteMeta":  regexp.QuoteMeta,
		"regexReplaceAll": func(e, s, to string) (string, error) { return regexReplaceAll(e, to, s) },
		"regexSplit":      func(e, s string, n int) ([]string, error) { r, err := expression(e); return cut(r, s, n), err },
	}
	all := template.FuncMap{}
	for name, f := range plain {
		all["sprig_"+name] = f
	}
	return all
}

// mostText bounds what a function makes of little.
const mostText = 1 << 20

func margin(spaces int, text string) (string, error) {
	if spaces < 0 || spaces > mostIndent {
		return "", fmt.Errorf("indent takes 0 to %d spaces", mostIndent)
	}
	pad := strings.Repeat(" ", spaces)
	return pad + strings.ReplaceAll(text, "\n", "\n"+pad), nil
}

func repeat(n int, text string) (string, error) {
	if n < 0 || n*len(text) > mostText || n > mostText {
		return "", fmt.Errorf("repeat makes %d bytes at most", mostText)
	}
	return strings.Repeat(text, n), nil
}

// substr is what lies between two places; one below 0 is the beginning, or the end.
func substr(from, to int, text string) string {
	if to < 0 || to > len(text) {
		to = len(text)
	}
	return text[min(max(from, 0), to):to]
}

// trunc is the beginning of a text, or, with a negative length, its end.
func trunc(n int, text string) string {
	if n < 0 {
		return text[max(0, len(text)+n):]
	}
	return text[:min(n, len(text))]
}

func spoken(v any) string {
	if b, ok := v.([]byte); ok {
		return string(b)
	}
	return fmt.Sprint(v)
}

// texts are those of a list, without what is nil.
func texts(list []any) []string {
	all := []string{}
	for _, v := range list {
		if v != nil {
			all = append(all, spoken(v))
		}
	}
	return all
}

func quoted(v []any, quote func(string) string) string {
	all := texts(v)
	for i := range all {
		all[i] = quote(all[i])
	}
	return strings.Join(all, " ")
}

// void reports whether there is nothing in v: no text, 0, false, an empty list or object.
func void(v any) bool {
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.Invalid:
		return true
	case reflect.Slice, reflect.Map, reflect.Array, reflect.String:
		return r.Len() == 0
	case reflect.Struct:
		return false
	}
	return r.IsZero()
}

// firstOf is the first that is not void.
func firstOf(all []any, otherwise any) any {
	for _, v := range all {
		if !void(v) {
			return v
		}
	}
	return otherwise
}

func choose(is bool, yes, no any) any {
	if is {
		return yes
	}
	return no
}

// nth is nil beyond the list.
func nth(list []any, n int) any {
	if n < 0 || n >= len(list) {
		return nil
	}
	return list[n]
}

func within(list []any, v any) bool {
	return slices.ContainsFunc(list, func(one any) bool { return reflect.DeepEqual(one, v) })
}

func joined(by string, list any) (string, error) {
	l, err := items(list)
	return strings.Join(texts(l), by), err
}

func uniq(list any) ([]any, error) {
	l, err := items(list)
	all := []any{}
	for _, v := range l {
		if !within(all, v) {
			all = append(all, v)
		}
	}
	return all, err
}

func without(list any, not ...any) ([]any, error) {
	l, err := items(list)
	return slices.DeleteFunc(l, func(v any) bool { return within(not, v) }), err
}

// dict is an object of names and values in turn.
func dict(v ...any) map[string]any {
	d := map[string]any{}
	for i := 0; i < len(v); i += 2 {
		d[spoken(v[i])] = choose(i+1 < len(v), nth(v, i+1), "")
	}
	return d
}

// part is what of an object has one of the names, or none of them.
func part(d map[string]any, names []string, with bool) map[string]any {
	d = maps.Clone(d)
	maps.DeleteFunc(d, func(name string, _ any) bool { return slices.Contains(names, name) != with })
	return d
}

// number64 is a whole number, or the text of one.
func number64(v any) (int64, error) {
	if text, ok := v.(string); ok {
		v = json.Number(text)
	}
	return whole(v)
}

// fold goes from the first number through the others.
func fold(f func(a, b int64) (int64, error)) func(first any, others ...any) (int64, error) {
	return func(first any, others ...any) (int64, error) {
		n, err := number64(first)
		for _, v := range others {
			if err != nil {
				return 0, err
			}
			var m int64
			if m, err = number64(v); err == nil {
				n, err = f(n, m)
			}
		}
		return n, err
	}
}

func expression(text string) (*regexp.Regexp, error) {
	r, err := regexp.Compile(text)
	if err != nil {
		return nil, errors.New("the text is no regular expression")
	}
	return r, nil
}

func find(r *regexp.Regexp, text string) string {
	if r == nil {
		return ""
	}
	return r.FindString(text)
}

func cut(r *regexp.Regexp, text string, n int) []string {
	if r == nil {
		return nil
	}
	return r.Split(text, n)
}
