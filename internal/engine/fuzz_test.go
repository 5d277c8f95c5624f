package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// FuzzMatch: a route that is found, filled with what it took from the path, is the path.
func FuzzMatch(f *testing.F) {
	handler := map[lessor.Verb]Handler{lessor.Read: func(context.Context, *Request) (*Reply, error) { return nil, nil }}
	var routes []Route
	for _, p := range []string{"config", "roles", "roles/{name}", "roles/{name}/id", "data/{path...}", "a/{b}/c/{d...}", "{x}/tail", "users/{user}/policies"} {
		routes = append(routes, Route{Pattern: p, Ops: handler})
	}
	router := NewRouter(routes)
	for _, p := range []string{"config", "roles/app", "roles//id", "data/a/b", "data/", "a/b/c", "a/b/c/d/e", "/", "", "x/tail", "roles/app/id/"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, path string) {
		r, params := router.Match(lessor.Read, path)
		if r == nil {
			return
		}
		segments := strings.Split(r.Pattern, "/")
		for i, s := range segments {
			if name, ok := strings.CutPrefix(s, "{"); ok {
				name = strings.TrimSuffix(strings.TrimSuffix(name, "}"), "...")
				value, given := params[name]
				if !given || value == "" || !strings.HasSuffix(s, "...}") && strings.Contains(value, "/") {
					t.Fatalf("%q by %q: %s is %q", path, r.Pattern, name, value)
				}
				segments[i] = value
			}
		}
		if got := strings.Join(segments, "/"); got != strings.TrimSuffix(path, "/") {
			t.Fatalf("%q is found as %q of %q", path, got, r.Pattern)
		}
	})
}

// FuzzField: a value that a field takes is of the field's type, whatever JSON it came as; none stands for nothing.
func FuzzField(f *testing.F) {
	for _, s := range []string{`"1h"`, `3600`, `1e300`, `-1`, `true`, `"yes"`, `["a",1,null]`, `"a, b,,c"`, `{"k":"v","n":1}`, `"k=v,x="`, `"{\"a\":1} x"`, `null`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		var raw any
		if d.Decode(&raw) != nil || raw == nil {
			return
		}
		for kind, want := range map[FieldType]string{
			String: "string", Int: "int64", Bool: "bool", Duration: "time.Duration", Strings: "[]string", Map: "map[string]interface {}", Pairs: "map[string]string",
		} {
			if v, ok := parse(kind, raw); ok && fmt.Sprintf("%T", v) != want {
				t.Fatalf("%s as %s is a %T", text, kind, v)
			}
		}
	})
}
