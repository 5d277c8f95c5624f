package enginetest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Conform holds an engine to what the core relies on: its method table is sound, and every handler, given nothing or
// nonsense, answers or refuses in a kind that the client can act on, without a panic and without changing anything itself.
func Conform(t *testing.T, backend engine.Backend, options map[string]string) {
	t.Run("table", func(t *testing.T) { table(t, backend.Routes()) })
	t.Run("nonsense", func(t *testing.T) {
		b := New(t, backend, options)
		for _, route := range backend.Routes() {
			for _, name := range []string{"x", "x/y", "ü", "%2e", "a\x00b", "..", strings.Repeat("n", 5000)} {
				if strings.Contains(name, "/") && !strings.Contains(route.Pattern, "...}") {
					continue
				}
				path := fill(route.Pattern, name)
				for verb := lessor.Read; verb <= lessor.Delete; verb++ {
					if verb == lessor.Create || route.Handler(verb) == nil {
						continue
					}
					for _, body := range append(bodies(route.Fields), "", "{}") {
						try(t, b, verb, path, body)
					}
				}
			}
		}
	})
	t.Run("empty lists", func(t *testing.T) {
		b := New(t, backend, options)
		for _, route := range backend.Routes() {
			if route.Ops[lessor.List] == nil {
				continue
			}
			r, err := b.Try(lessor.List, fill(route.Pattern, "nowhere")+"/", "")
			if err == nil {
				t.Errorf("LIST %s of nothing: %v, want an error", route.Pattern, r.Data)
			} else if k := api.KindOf(err); k != api.NotFound && k != api.Invalid {
				t.Errorf("LIST %s of nothing: %s %v", route.Pattern, k, err)
			}
		}
	})
}

func try(t *testing.T, b *Bench, verb lessor.Verb, path, body string) {
	t.Helper()
	defer func() {
		if p := recover(); p != nil {
			t.Fatalf("%s %.40q %s: panic: %v", verb, path, body, p)
		}
	}()
	before := b.DB.Head().Seq
	act, err := b.Begin(verb, path, body)
	if b.DB.Head().Seq != before {
		t.Errorf("%s %.40q %s: the handler committed something itself", verb, path, body)
	}
	if err == nil {
		err = act.Commit()
	}
	if err != nil && api.KindOf(err) == api.Internal {
		t.Errorf("%s %.40q %s: %v", verb, path, body, err)
	}
	if err != nil && !errors.As(err, new(*api.Error)) {
		t.Errorf("%s %.40q %s: an error of no kind: %v", verb, path, body, err)
	}
	if verb == lessor.Read && act != nil && len(act.Reply.Txn.Puts) > 0 {
		t.Errorf("READ %.40q writes %d rows", path, len(act.Reply.Txn.Puts))
	}
}

// bodies are JSON objects with one declared field each.
func bodies(fields []engine.Field) (out []string) {
	values := map[engine.FieldType][]string{
		engine.String: {`""`, `"x"`, `"\u0000"`, `7`, `[]`}, engine.Int: {`-1`, `0`, `"3"`, `99999999999`, `"x"`}, engine.Bool: {`true`, `"no"`},
		engine.Duration: {`-1`, `"1h"`, `0`, `"5d"`, `"9e99"`}, engine.Strings: {`[]`, `"a,b"`, `[1,null]`, `["x"]`}, engine.Map: {`{}`, `{"a":null}`, `"{"`},
		engine.Pairs: {`{}`, `"a=b"`, `{"a":{}}`}, engine.Any: {`{}`, `"-1"`, `[[]]`, `-5`},
	}
	for _, f := range fields {
		for _, v := range append(values[f.Type], "null") {
			out = append(out, fmt.Sprintf(`{%q:%s}`, f.Name, v))
		}
	}
	return out
}

// fill puts name in the place of each of a pattern's parameters.
func fill(pattern, name string) string {
	segments := strings.Split(pattern, "/")
	for i, s := range segments {
		if strings.HasPrefix(s, "{") {
			segments[i] = name
		}
	}
	return strings.Join(segments, "/")
}

// table checks the method table itself.
func table(t *testing.T, routes []engine.Route) {
	shapes := map[string][]engine.Route{}
	for _, r := range routes {
		segments := strings.Split(r.Pattern, "/")
		names := map[string]bool{}
		for i, s := range segments {
			if !strings.HasPrefix(s, "{") {
				continue
			}
			if strings.HasSuffix(s, "...}") && strings.Contains(strings.Join(segments[i+1:], "/"), "{") {
				t.Errorf("%s: behind a rest only what is literal can be", r.Pattern)
			}
			names[strings.TrimSuffix(s[1:len(s)-1], "...")] = true
		}
		if r.Help == "" {
			t.Errorf("%s: no help", r.Pattern)
		}
		if len(r.Ops) == 0 {
			t.Errorf("%s: nothing can be done there", r.Pattern)
		}
		for _, f := range r.Fields {
			if f.Name == "" || f.Help == "" || f.Type == 0 || f.Type > engine.Any {
				t.Errorf("%s: field %+v is not complete", r.Pattern, f)
			}
			if names[f.Name] {
				t.Errorf("%s: two parameters are named %q", r.Pattern, f.Name)
			}
			names[f.Name] = true
		}
		if r.Exists != nil && r.Handler(lessor.Update) == nil {
			t.Errorf("%s: an existence check, but nothing to write", r.Pattern)
		}
		shape := fill(r.Pattern, "{}")
		for _, other := range shapes[shape] {
			for verb := range r.Ops {
				if other.Handler(verb) != nil {
					t.Errorf("%s and %s: both serve %s", r.Pattern, other.Pattern, verb)
				}
			}
		}
		shapes[shape] = append(shapes[shape], r)
	}
}

// Unwritten checks that an operation fails with a conflict when it is committed after the other.
func Unwritten(t testing.TB, late *Act) {
	t.Helper()
	if err := late.Commit(); !errors.As(err, new(*store.Conflict)) {
		t.Errorf("decided on stale ground, and committed: %v", err)
	}
}
