package jwt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"testing"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/lessor-dev/lessor/internal/oidctest"
)

// A key verifies only what is signed in the way that it is for, and a token that names its key is by no other.
func TestKeysAreForWhatTheySay(t *testing.T) {
	one, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	two, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys := []jose.JSONWebKey{{Key: &one.PublicKey, KeyID: "one"}, {Key: &two.PublicKey, KeyID: "two", Algorithm: "RS256"}}
	for _, c := range []struct {
		alg jose.SignatureAlgorithm
		key jose.JSONWebKey
		ok  bool
	}{
		{jose.ES256, jose.JSONWebKey{Key: one, KeyID: "one"}, true},
		{jose.ES256, jose.JSONWebKey{Key: one}, true},
		{jose.ES256, jose.JSONWebKey{Key: one, KeyID: "two"}, false},
		{jose.ES256, jose.JSONWebKey{Key: one, KeyID: "three"}, false},
		{jose.RS256, jose.JSONWebKey{Key: two, KeyID: "two"}, true},
		{jose.PS256, jose.JSONWebKey{Key: two, KeyID: "two"}, false},
		{jose.RS512, jose.JSONWebKey{Key: two}, false},
	} {
		s, err := parse(oidctest.Sign(t, c.alg, c.key, map[string]any{"a": 1}), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.verify(keys); (err == nil) != c.ok {
			t.Errorf("%s by %q: %v", c.alg, c.key.KeyID, err)
		}
	}
}

// Of a key set, what is no sound public key for signatures is passed over.
func TestKeySets(t *testing.T) {
	good, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	var all []any
	for _, k := range []jose.JSONWebKey{
		{Key: good.Public(), KeyID: "good"}, {Key: good, KeyID: "private"}, {Key: []byte("symmetric, and long enough for it"), KeyID: "symmetric"},
		{Key: good.Public(), KeyID: "encrypts", Use: "enc"}, {Key: weak.Public(), KeyID: "weak"},
	} {
		all = append(all, k)
	}
	text, err := json.Marshal(map[string]any{"keys": append(all, map[string]any{"kty": "of the future", "kid": "future"}, 7)})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := readKeys(text)
	if err != nil || len(keys) != 1 || keys[0].KeyID != "good" {
		t.Errorf("%v %v", keys, err)
	}
	for _, bad := range []string{``, `[]`, `{}`, `{"keys":[]}`, `{"keys":[7]}`} {
		if keys, err := readKeys([]byte(bad)); err == nil {
			t.Errorf("%s: %v", bad, keys)
		}
	}
}
