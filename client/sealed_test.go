package client_test

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/lessortest"
)

// locker seals under a key of its own.
type locker struct{ cipher.AEAD }

func newLocker(t *testing.T) locker {
	t.Helper()
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return locker{seal}
}

func (l locker) Seal(plain []byte) []byte { return l.AEAD.Seal(nil, nil, plain, nil) }

func (l locker) Open(sealed []byte) []byte {
	plain, err := l.AEAD.Open(nil, nil, sealed, nil)
	if err != nil {
		panic(err)
	}
	return plain
}

// What is sealed says what it said, and nothing when it is printed; a reading that finds nothing new is no change.
func TestSealedSecret(t *testing.T) {
	server := lessortest.Start(t)
	put(server, "secret/data/app", "sesame")
	session := open(t, server.Client(), nil)
	s, plain := secret(t, session, "secret/data/app", client.Sealed(newLocker(t))), secret(t, session, "secret/data/app")
	v, want := s.Value(), plain.Value()
	if field(t, v, "password") != "sesame" || fmt.Sprint(v.Fields(), v.Data(), v.Answer(), v.Version) != fmt.Sprint(want.Fields(), want.Data(), want.Answer(), want.Version) {
		t.Errorf("sealed: %v %v %v", v.Fields(), v.Data(), v.Version)
	}
	var into struct{ Password string }
	if err := v.Decode(&into); err != nil || into.Password != "sesame" {
		t.Errorf("decoded: %v", err)
	}
	if shown := fmt.Sprintf("%+v %#v", v, s); strings.Contains(shown, "sesame") {
		t.Errorf("it is shown as %s", shown)
	}
	if now, err := s.Refresh(t.Context(), v); err != nil || now.Serial != v.Serial {
		t.Errorf("read again: value %d after %d, %v", now.Serial, v.Serial, err)
	}
	put(server, "secret/data/app", "open-sesame")
	if got := field(t, await(t, s, v), "password"); got != "open-sesame" {
		t.Errorf("after a change: %s", got)
	}
}
