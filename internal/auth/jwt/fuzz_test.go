package jwt

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

// FuzzClaims: what is read as claims is what any reader of JSON takes them for, since no claim stands there twice; nothing that a token
// says makes a decision panic.
func FuzzClaims(f *testing.F) {
	for _, text := range []string{
		`{"a":1,"b":{"c":[1,"x",null,true]},"exp":1e3,"aud":["x"],"groups":["g"]}`, `{"a":1,"a":2}`, `{"a":{"b":1,"b":1}}`, `{"A":1,"a":2}`, `{"a":1}{}`, `[1]`, `null`, `{`, ``,
		`{"exp":"x","nbf":-1,"iat":1e999}`, `{"a~1b":{"":1}}`,
	} {
		f.Add([]byte(text), "/b/c/0", "claims.a == 1")
	}
	ro := role{Type: typeJWT, UserClaim: "a", Audiences: []string{"x"}, GroupsClaim: "/groups", Mappings: map[string]string{"/b/c/1": "m"}}
	f.Fuzz(func(t *testing.T, text []byte, name, condition string) {
		c, err := readClaims(text)
		if err != nil {
			return
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		var plainly map[string]any
		if err := d.Decode(&plainly); err != nil || !reflect.DeepEqual(plainly, map[string]any(c)) {
			t.Fatalf("%s is read as %v (%v)", text, c, err)
		}
		c.find(name)
		_ = ro.accepts(c, nil, time.Unix(1e9, 0))
		_, _ = ro.person(c)
		if len(condition) > 100 {
			return
		}
		if x, err := compile(condition); err == nil {
			_ = x.holds(c)
		}
	})
}
