package jwt

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth"
)

// claims are what a verified token says. Numbers are json.Number.
type claims map[string]any

const deepest = 32 // levels of a token's claims

// readClaims reads a token's payload. Two claims of one name are refused, since the issuer and lessor could each mean another one of them.
func readClaims(payload []byte) (claims, error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	v, err := readValue(d, deepest)
	if err != nil {
		return nil, err
	}
	c, ok := v.(map[string]any)
	if _, end := d.Token(); !ok || end != io.EOF {
		return nil, errors.New("the claims are no JSON object")
	}
	return c, nil
}

func readValue(d *json.Decoder, deep int) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, errors.New("the claims are not in JSON")
	}
	open, ok := t.(json.Delim)
	switch {
	case !ok:
		return t, nil
	case deep == 0:
		return nil, errors.New("the claims are nested too deeply")
	case open == '[':
		list := []any{}
		for d.More() {
			v, err := readValue(d, deep-1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	}
	object := map[string]any{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, errors.New("the claims are not in JSON")
		}
		name := t.(string) // as the decoder sees to
		if _, twice := object[name]; twice {
			return nil, errors.New("a claim stands in it twice")
		}
		if object[name], err = readValue(d, deep-1); err != nil {
			return nil, err
		}
	}
	_, err = d.Token()
	return object, err
}

// find is a claim by its name or, if that begins with a slash, by a JSON pointer (RFC 6901).
func (c claims) find(name string) (any, bool) {
	if !strings.HasPrefix(name, "/") {
		v, ok := c[name]
		return v, ok
	}
	var at any = map[string]any(c)
	for step := range strings.SplitSeq(name[1:], "/") {
		step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
		switch v := at.(type) {
		case map[string]any:
			next, ok := v[step]
			if !ok {
				return nil, false
			}
			at = next
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(v) || strconv.Itoa(i) != step {
				return nil, false
			}
			at = v[i]
		default:
			return nil, false
		}
	}
	return at, true
}

// text is a claim that is a text.
func (c claims) text(name string) string {
	s, _ := c[name].(string)
	return s
}

// scalar is a value that is compared as a text.
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

// scalars are those of a value that is one, or a list of some.
func scalars(v any) ([]string, bool) {
	list, ok := v.([]any)
	if !ok {
		s, ok := scalar(v)
		return []string{s}, ok
	}
	out := make([]string, 0, len(list))
	for _, e := range list {
		s, ok := scalar(e)
		if !ok {
			return nil, false
		}
		out = append(out, s)
	}
	return out, true
}

// instant is a claim that is a time, in seconds since 1970; the zero time if it is not there.
func (c claims) instant(name string) (time.Time, error) {
	v, ok := c[name]
	if !ok || v == nil {
		return time.Time{}, nil
	}
	n, ok := v.(json.Number)
	seconds, err := strconv.ParseFloat(string(n), 64)
	if !ok || err != nil || !(seconds > 0 && seconds < 1<<40) {
		return time.Time{}, invalid("the claim %q is no time", name)
	}
	whole, part := math.Modf(seconds)
	return time.Unix(int64(whole), int64(part*1e9)), nil
}

func invalid(format string, args ...any) error {
	return api.Errorf(api.Invalid, "error validating token: "+format, args...)
}

// leeways are by how much times may be off.
type leeways struct {
	skew      time.Duration // of clocks
	expiry    time.Duration // how long a token lives that has no end of its own
	notBefore time.Duration // how long before its end a token began that does not say so
}

// widest are the widest leeways of roles that take each token once. So it is known, whatever role a token comes to and whatever becomes of roles, for how
// long it has to be remembered.
var widest = leeways{skew: 15 * time.Minute, expiry: 15 * time.Minute, notBefore: 15 * time.Minute}

// times are what a token says of its time; what it does not say is zero.
type times struct{ exp, nbf, iat time.Time }

func (c claims) times() (t times, err error) {
	for name, to := range map[string]*time.Time{"exp": &t.exp, "nbf": &t.nbf, "iat": &t.iat} {
		if *to, err = c.instant(name); err != nil {
			return t, err
		}
	}
	if t == (times{}) {
		err = invalid("no issued at (iat), not before (nbf), or expiration time (exp) claims in token")
	}
	return t, err
}

// end is when a token is over.
func (l leeways) end(t times) time.Time {
	exp := t.exp
	if exp.IsZero() {
		latest := t.iat
		if t.nbf.After(t.iat) {
			latest = t.nbf
		}
		exp = latest.Add(l.expiry)
	}
	return exp.Add(l.skew)
}

// check refuses a token that is over, or not good yet.
func (l leeways) check(t times, now time.Time) error {
	end, nbf := l.end(t), t.nbf
	if nbf.IsZero() {
		if nbf = t.iat; t.iat.IsZero() {
			nbf = t.exp.Add(-l.notBefore)
		}
	}
	switch {
	case !now.Before(end):
		return invalid("invalid expiration time (exp) claim: token is expired")
	case now.Add(l.skew).Before(nbf):
		return invalid("invalid not before (nbf) claim: token not yet valid")
	case now.Add(l.skew).Before(t.iat):
		return invalid("invalid issued at (iat) claim: token issued in the future")
	}
	return nil
}

// audience refuses a token that is for somebody else. One that is for somebody is good for those only who say that they are meant.
func audience(c claims, bound []string) error {
	aud, there := c["aud"]
	switch {
	case !there && len(bound) == 0:
		return nil
	case there && len(bound) == 0:
		return invalid("audience claim found in JWT but no audiences bound to the role")
	}
	if list, ok := scalars(aud); ok && slices.ContainsFunc(list, func(a string) bool { return slices.Contains(bound, a) }) {
		return nil
	}
	return invalid("invalid audience (aud) claim: audience claim does not match any bound audience")
}

// bound refuses a token some of whose claims have not one of the values that they must have. With globs, "*" in a value stands for
// anything.
func bound(c claims, must map[string][]string, globs bool) error {
	for _, name := range slices.Sorted(maps.Keys(must)) {
		v, ok := c.find(name)
		if !ok {
			return api.Errorf(api.Invalid, "error validating claims: claim %q is missing", name)
		}
		list, ok := scalars(v)
		if !ok || !slices.ContainsFunc(list, func(have string) bool {
			return slices.ContainsFunc(must[name], func(want string) bool {
				return want == have || globs && auth.Glob(want, have)
			})
		}) {
			return api.Errorf(api.Invalid, "error validating claims: claim %q does not match any associated bound claim values", name)
		}
	}
	return nil
}

// mapped are the claims that go into the token's metadata, under the names there. Claims that are not there are left out.
func mapped(c claims, mappings map[string]string) (map[string]string, error) {
	out := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(mappings)) {
		v, ok := c.find(name)
		if !ok || v == nil {
			continue
		}
		s, ok := scalar(v)
		if !ok {
			return nil, api.Errorf(api.Invalid, "error converting claim %q to a string", name)
		}
		out[mappings[name]] = s
	}
	return out, nil
}

// groups are those that the token says its bearer is in.
func groups(c claims, name string) ([]string, error) {
	if name == "" {
		return nil, nil
	}
	v, ok := c.find(name)
	if !ok {
		return nil, api.Errorf(api.Invalid, "%q claim not found in token", name)
	}
	list, ok := scalars(v)
	if !ok || slices.Contains(list, "") {
		return nil, api.Errorf(api.Invalid, "%q claim could not be converted to a list of groups", name)
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// instance is what tells running instances of one program apart, where the issuer says it: the UID of a pod of Kubernetes.
func instance(c claims) string {
	uid, _ := c.find("/kubernetes.io/pod/uid")
	s, _ := uid.(string)
	return s
}
