package engine

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

func TestParseDuration(t *testing.T) {
	for _, c := range []struct {
		raw  any
		want time.Duration
		ok   bool
	}{
		{json.Number("3600"), time.Hour, true}, {"3600", time.Hour, true}, {"1h", time.Hour, true}, {"5d", 120 * time.Hour, true}, {"1d12h", 36 * time.Hour, true},
		{"", 0, true}, {" 90s ", 90 * time.Second, true}, {json.Number("1.5"), 1500 * time.Millisecond, true}, {3, 3 * time.Second, true}, {"0", 0, true},
		{"-1", 0, false}, {"-1h", 0, false}, {json.Number("-5"), 0, false}, {"soon", 0, false}, {"1000y", 0, false}, {json.Number("1e300"), 0, false},
		{"NaN", 0, false}, {"Inf", 0, false}, {"NaNd", 0, false}, {"99999999d", 0, false}, {"1d-30h", 0, false}, {true, 0, false}, {[]any{"1h"}, 0, false}, {nil, 0, false},
	} {
		if got, ok := ParseDuration(c.raw); ok != c.ok || ok && got != c.want {
			t.Errorf("%#v: %v %v, want %v %v", c.raw, got, ok, c.want, c.ok)
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"1h", "5d", "1d1h", "-3", "1e9", "0x1p3", "d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, ok := ParseDuration(s); ok && (d < 0 || d > 100*365*24*time.Hour) {
			t.Errorf("%q is %v", s, d)
		}
	})
}

func TestFields(t *testing.T) {
	route := &Route{Fields: []Field{
		{Name: "s", Type: String}, {Name: "i", Type: Int}, {Name: "b", Type: Bool}, {Name: "d", Type: Duration}, {Name: "l", Type: Strings}, {Name: "m", Type: Map}, {Name: "p", Type: Pairs},
	}}
	for _, c := range []struct {
		data string
		want string // of the one field, "" if it is refused
	}{
		{`{"s":"x"}`, "x"}, {`{"s":7}`, "7"}, {`{"s":true}`, "true"}, {`{"s":{}}`, ""}, {`{"s":["x"]}`, ""},
		{`{"i":7}`, "7"}, {`{"i":"7"}`, "7"}, {`{"i":7.0}`, "7"}, {`{"i":7.5}`, ""}, {`{"i":1e30}`, ""}, {`{"i":"x"}`, ""}, {`{"i":""}`, "0"},
		{`{"b":true}`, "true"}, {`{"b":"1"}`, "true"}, {`{"b":0}`, "false"}, {`{"b":"maybe"}`, ""},
		{`{"d":"1h"}`, "1h0m0s"}, {`{"d":-1}`, ""},
		{`{"l":"a, b,,c"}`, "[a b c]"}, {`{"l":["a",1]}`, "[a 1]"}, {`{"l":[{}]}`, ""}, {`{"l":[]}`, "[]"},
		{`{"m":{"a":1}}`, "map[a:1]"}, {`{"m":"{\"a\":1}"}`, "map[a:1]"}, {`{"m":"x"}`, ""},
		{`{"p":{"a":1}}`, "map[a:1]"}, {`{"p":"a=b"}`, "map[a:b]"}, {`{"p":["a=b","c=d=e"]}`, "map[a:b c:d=e]"}, {`{"p":"a"}`, ""}, {`{"p":{"a":{}}}`, ""},
	} {
		d := json.NewDecoder(strings.NewReader(c.data))
		d.UseNumber()
		op := &lessor.Op{}
		if err := d.Decode(&op.Data); err != nil {
			t.Fatal(err)
		}
		r := &Request{Op: op}
		_, err := r.Bind(route)
		if c.want == "" {
			if api.KindOf(err) != api.Invalid {
				t.Errorf("%s: %v", c.data, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.data, err)
			continue
		}
		for name := range op.Data {
			if got := fmt.Sprint(r.Any(name)); got != c.want || !r.Has(name) {
				t.Errorf("%s: %s, want %s", c.data, got, c.want)
			}
		}
	}
	r := &Request{Op: &lessor.Op{Data: map[string]any{"s": nil, "z": 1, "a": 2, "path": "x"}}, Params: map[string]string{"path": "y"}}
	unknown, err := r.Bind(route)
	if err != nil || fmt.Sprint(unknown) != "[a z]" || r.Has("s") || r.Str("s") != "" {
		t.Errorf("unknown %v, %v; null counts as sent: %v", unknown, err, r.Has("s"))
	}
}
