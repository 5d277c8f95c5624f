package language

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"go.yaml.in/yaml/v3"
)

// functions are those of Vault Agent's templates that need no server. Their errors never repeat what they were given: it may be a secret.
func functions() template.FuncMap {
	all := template.FuncMap{
		// Text.
		"contains":        func(v, in any) (bool, error) { return has(in, v) },
		"containsAll":     func(want, in any) (bool, error) { n, of, err := count(want, in); return n == of, err },
		"containsAny":     func(want, in any) (bool, error) { n, _, err := count(want, in); return n > 0, err },
		"containsNone":    func(want, in any) (bool, error) { n, _, err := count(want, in); return n == 0, err },
		"containsNotAll":  func(want, in any) (bool, error) { n, of, err := count(want, in); return n < of, err },
		"in":              func(in, v any) (bool, error) { return has(in, v) },
		"indent":          indent,
		"join":            join,
		"regexMatch":      regexMatch,
		"regexReplaceAll": regexReplaceAll,
		"replaceAll":      func(from, to, text string) string { return strings.ReplaceAll(text, from, to) },
		"split":           func(by, text string) []string { return fields(text, by) },
		"toLower":         strings.ToLower,
		"toUpper":         strings.ToUpper,
		"trim":            func(cut, text string) string { return strings.Trim(text, cut) },
		"trimPrefix":      func(prefix, text string) string { return strings.TrimPrefix(text, prefix) },
		"trimSpace":       strings.TrimSpace,
		"trimSuffix":      func(suffix, text string) string { return strings.TrimSuffix(text, suffix) },

		// Encodings and hashes.
		"base64Decode":    decoded(base64.StdEncoding, "base64"),
		"base64Encode":    func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) },
		"base64URLDecode": decoded(base64.URLEncoding, "base64 for URLs"),
		"base64URLEncode": func(text string) string { return base64.URLEncoding.EncodeToString([]byte(text)) },
		"hmacSHA256Hex":   hmacSHA256Hex,
		"md5sum":          func(text string) string { sum := md5.Sum([]byte(text)); return hex.EncodeToString(sum[:]) },
		"sha256Hex":       func(text string) string { sum := sha256.Sum256([]byte(text)); return hex.EncodeToString(sum[:]) },
		"parseBool":       parse("a boolean", strconv.ParseBool),
		"parseFloat":      parse("a number", func(s string) (float64, error) { return strconv.ParseFloat(s, 64) }),
		"parseInt":        parse("a whole number", func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }),
		"parseJSON":       parseJSON,
		"parseUint":       parse("a number that is not negative", func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }),
		"parseYAML":       parseYAML,
		"toJSON":          func(v any) (string, error) { return toJSON(v, "", true) },
		"toJSONPretty":    func(v any) (string, error) { return toJSON(v, "  ", true) },
		"toUnescapedJSON": func(v any) (string, error) { return toJSON(v, "", false) },
		"toYAML":          toYAML,

		// Numbers.
		"add":      arithmetic(func(b, a int64) (int64, error) { return a + b, nil }),
		"subtract": arithmetic(func(b, a int64) (int64, error) { return a - b, nil }),
		"multiply": arithmetic(func(b, a int64) (int64, error) { return a * b, nil }),
		"divide":   arithmetic(divide),
		"modulo":   arithmetic(modulo),
		"minimum":  arithmetic(func(b, a int64) (int64, error) { return min(a, b), nil }),
		"maximum":  arithmetic(func(b, a int64) (int64, error) { return max(a, b), nil }),
		"loop":     loop,

		// The machine.
		"env":          os.Getenv,
		"envOrDefault": envOrDefault,
		"file":         file,
		"mustEnv":      mustEnv,
		"timestamp":    timestamp,
	}
	for name, why := range refused {
		all[name] = func(...any) (any, error) { return nil, errors.New(name + " is not here: " + why) }
	}
	return all
}

// refused are functions of Vault Agent's and consul-template's that are not here, and why.
var refused = map[string]string{
	"pkiCert": "there is no engine that makes certificates", "plugin": "templates run no programs", "writeToFile": "write a template for each file",
	"key": "there is no Consul", "keyOrDefault": "there is no Consul", "keyExists": "there is no Consul", "ls": "there is no Consul", "service": "there is no Consul",
	"services": "there is no Consul", "tree": "there is no Consul", "node": "there is no Consul", "nodes": "there is no Consul", "datacenters": "there is no Consul",
}

// limits of what a template makes of little.
const (
	mostIndent = 1000
	mostLoop   = 100_000
)

func fields(text, by string) []string {
	text = strings.TrimSpace(text)
	if text == "" {
		return []string{}
	}
	return strings.Split(text, by)
}

func indent(spaces int, text string) (string, error) {
	if spaces < 0 || spaces > mostIndent {
		return "", fmt.Errorf("indent takes 0 to %d spaces", mostIndent)
	}
	pad := strings.Repeat(" ", spaces)
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimRight(line, "\n") != "" {
			b.WriteString(pad)
		}
		b.WriteString(line)
	}
	return b.String(), nil
}

// items are those of a list, or of an object's values.
func items(list any) ([]any, error) {
	v := reflect.ValueOf(list)
	var all []any
	switch v.Kind() {
	case reflect.Invalid:
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			all = append(all, v.Index(i).Interface())
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			all = append(all, v.MapIndex(key).Interface())
		}
	default:
		return nil, errors.New("a list is needed")
	}
	return all, nil
}

func has(in, want any) (bool, error) {
	if text, ok := in.(string); ok {
		return strings.Contains(text, fmt.Sprint(want)), nil
	}
	all, err := items(in)
	return slices.ContainsFunc(all, func(v any) bool { return reflect.DeepEqual(v, want) }), err
}

// count is how many of what is wanted are in a list.
func count(want, in any) (n, of int, err error) {
	all, err := items(want)
	for _, v := range all {
		found, failed := has(in, v)
		if failed != nil {
			return 0, 0, failed
		}
		if found {
			n++
		}
	}
	return n, len(all), err
}

func join(by string, list any) (string, error) {
	all, err := items(list)
	var texts []string
	for _, v := range all {
		texts = append(texts, fmt.Sprint(v))
	}
	return strings.Join(texts, by), err
}

func regexMatch(expression, text string) (bool, error) {
	r, err := regexp.Compile(expression)
	if err != nil {
		return false, errors.New("regexMatch was given no regular expression")
	}
	return r.MatchString(text), nil
}

func regexReplaceAll(expression, to, text string) (string, error) {
	r, err := regexp.Compile(expression)
	if err != nil {
		return "", errors.New("regexReplaceAll was given no regular expression")
	}
	return r.ReplaceAllString(text, to), nil
}

func decoded(e *base64.Encoding, what string) func(string) (string, error) {
	return func(text string) (string, error) {
		b, err := e.DecodeString(text)
		if err != nil {
			return "", errors.New("the text is no " + what)
		}
		return string(b), nil
	}
}

func hmacSHA256Hex(text, key string) string {
	h := hmac.New(sha256.New, []byte(key))
	h.Write([]byte(text))
	return hex.EncodeToString(h.Sum(nil))
}

func parse[T any](what string, with func(string) (T, error)) func(string) (T, error) {
	return func(text string) (v T, err error) {
		if text == "" {
			return v, nil
		}
		if v, err = with(text); err != nil {
			return v, errors.New("the text is not " + what)
		}
		return v, nil
	}
}

func parseJSON(text string) (v any, err error) {
	if text == "" {
		return map[string]any{}, nil
	}
	if json.Unmarshal([]byte(text), &v) != nil {
		return nil, errors.New("the text is no JSON")
	}
	return v, nil
}

func parseYAML(text string) (v any, err error) {
	if text == "" {
		return map[string]any{}, nil
	}
	if yaml.Unmarshal([]byte(text), &v) != nil {
		return nil, errors.New("the text is no YAML")
	}
	return v, nil
}

func toJSON(v any, indent string, escape bool) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetIndent("", indent)
	e.SetEscapeHTML(escape)
	if err := e.Encode(v); err != nil {
		return "", errors.New("the value cannot be written as JSON")
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

func toYAML(v any) (string, error) {
	b, err := yaml.Marshal(numbers(v))
	if err != nil {
		return "", errors.New("the value cannot be written as YAML")
	}
	return strings.TrimSpace(string(b)), nil
}

// numbers has the numbers of an answer as such, not as the texts that they came as.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	case map[string]any:
		all := map[string]any{}
		for key, item := range v {
			all[key] = numbers(item)
		}
		return all
	case []any:
		all := make([]any, len(v))
		for i, item := range v {
			all[i] = numbers(item)
		}
		return all
	}
	return v
}

// arithmetic takes whole numbers of whatever type; the second is the one that is counted from, as in pipes.
func arithmetic(f func(b, a int64) (int64, error)) func(b, a any) (int64, error) {
	return func(b, a any) (int64, error) {
		x, err := whole(a)
		if err != nil {
			return 0, err
		}
		y, err := whole(b)
		if err != nil {
			return 0, err
		}
		return f(y, x)
	}
}

func whole(v any) (int64, error) {
	if n, ok := v.(json.Number); ok {
		if i, err := n.Int64(); err == nil {
			return i, nil
		}
	}
	switch r := reflect.ValueOf(v); {
	case r.CanInt():
		return r.Int(), nil
	case r.CanUint():
		return int64(r.Uint()), nil
	case r.CanFloat() && r.Float() == float64(int64(r.Float())):
		return int64(r.Float()), nil
	}
	return 0, errors.New("a whole number is needed")
}

func divide(b, a int64) (int64, error) {
	if b == 0 {
		return 0, errors.New("nothing can be divided by 0")
	}
	return a / b, nil
}

func modulo(b, a int64) (int64, error) {
	if b == 0 {
		return 0, errors.New("nothing can be divided by 0")
	}
	return a % b, nil
}

// loop counts: up to the only number, from 0 on, or from the first up to the second.
func loop(bounds ...any) ([]int64, error) {
	if len(bounds) < 1 || len(bounds) > 2 {
		return nil, errors.New("loop takes one number or two")
	}
	var from int64
	to, err := whole(bounds[len(bounds)-1])
	if err == nil && len(bounds) == 2 {
		from, err = whole(bounds[0])
	}
	if err != nil {
		return nil, err
	}
	if to > from && uint64(to-from) > mostLoop { // a distance that has no int64 is a negative one of them
		return nil, fmt.Errorf("loop counts %d at most", mostLoop)
	}
	all := []int64{}
	for n := from; n < to; n++ {
		all = append(all, n)
	}
	return all, nil
}

func envOrDefault(name, otherwise string) string {
	if text, ok := os.LookupEnv(name); ok && text != "" {
		return text
	}
	return otherwise
}

func mustEnv(name string) (string, error) {
	text, ok := os.LookupEnv(name)
	if !ok {
		return "", fmt.Errorf("the variable %s is not set", name)
	}
	return text, nil
}

// file is a file's text, as it is when the template is rendered.
func file(name string) (string, error) {
	text, err := os.ReadFile(name)
	return string(text), err
}

// timestamp is the time when the template is rendered, in RFC 3339, or as the layout says; "unix" is seconds.
func timestamp(layout ...string) (string, error) {
	now := time.Now().UTC()
	switch {
	case len(layout) == 0:
		return now.Format(time.RFC3339), nil
	case len(layout) > 1:
		return "", errors.New("timestamp takes one layout")
	case layout[0] == "unix":
		return strconv.FormatInt(now.Unix(), 10), nil
	}
	return now.Format(layout[0]), nil
}
