package kv

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// TestMerge has the examples of RFC 7396's appendix that are objects.
func TestMerge(t *testing.T) {
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		{`{"a":1}`, `{"a":{"b":null,"c":2}}`, `{"a":{"c":2}}`},
		{`{"n":1.10,"m":1e400}`, `{}`, `{"m":1e400,"n":1.10}`},
	} {
		if got := string(lessor.AppendJSON(nil, merge(parse(c[0]), parse(c[1])))); got != c[2] {
			t.Errorf("%s with %s: got %s, want %s", c[0], c[1], got, c[2])
		}
	}
}

// parse is nil for what is no object.
func parse(text string) map[string]any {
	m, _ := object(lessor.SecretJSON{Secret: lessor.NewSecret(text)})
	return m
}

func FuzzMerge(f *testing.F) {
	f.Add(`{"a":{"b":1,"c":null}}`, `{"a":{"b":null,"d":{"e":null}}}`)
	f.Add(`{"a":1.0}`, `{"a":{"a":{}}}`)
	f.Add(`{}`, `{"a":[null,{"b":null}]}`)
	f.Fuzz(func(t *testing.T, target, patch string) {
		a, p := parse(target), parse(patch)
		if a == nil || p == nil {
			return
		}
		before, asked := text(a), text(p)
		got := merge(a, p)
		if text(a) != before || text(p) != asked {
			t.Fatal("merge changed its arguments")
		}
		if again := merge(got, p); !reflect.DeepEqual(again, got) {
			t.Fatalf("applied twice: %s, once: %s", text(again), text(got))
		}
		if !reflect.DeepEqual(merge(a, map[string]any{}), a) {
			t.Fatal("an empty patch changed something")
		}
		follows(t, a, p, got)
		var plain any
		if err := json.Unmarshal([]byte(text(got)), &plain); err != nil && !strings.Contains(err.Error(), "cannot unmarshal number") {
			t.Fatalf("the result is not JSON: %v", err)
		}
	})
}

func text(v any) string { return string(lessor.AppendJSON(nil, v)) }

// follows checks every key of the result against the rules, without computing the result.
func follows(t *testing.T, target, patch, got map[string]any) {
	for k := range got {
		_, was := target[k]
		if _, asked := patch[k]; !was && !asked {
			t.Fatalf("%q came out of nowhere", k)
		}
	}
	for k, v := range target {
		if _, asked := patch[k]; !asked && !reflect.DeepEqual(got[k], v) {
			t.Fatalf("%q changed, though nobody asked", k)
		}
	}
	for k, v := range patch {
		have, there := got[k]
		inner, isObject := v.(map[string]any)
		switch {
		case v == nil && there:
			t.Fatalf("%q is still there", k)
		case v == nil:
		case isObject:
			was, _ := target[k].(map[string]any)
			now, ok := have.(map[string]any)
			if !ok {
				t.Fatalf("%q is no object", k)
			}
			follows(t, was, inner, now)
		case !reflect.DeepEqual(have, v):
			t.Fatalf("%q is %v", k, have)
		}
	}
}
