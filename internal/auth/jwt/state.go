package jwt

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"io"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
)

// state is a login of a person that is under way. It is sealed into itself, and goes with the person to the provider and back: strangers who
// begin logins leave nothing here, and whichever node one comes back to can go on. CBOR keys are read by other versions: never
// renumber, only append.
type state struct {
	Role     string    `cbor:"1,keyasint"`
	Redirect string    `cbor:"2,keyasint,omitempty"` // where the provider sends the person back to
	Nonce    string    `cbor:"3,keyasint,omitempty"` // that the ID token must have
	Verifier string    `cbor:"4,keyasint,omitempty"` // of PKCE
	Client   string    `cbor:"5,keyasint,omitempty"` // what the client that began made up: nobody else goes on
	Device   string    `cbor:"6,keyasint,omitempty"` // device code
	Interval uint64    `cbor:"7,keyasint,omitempty"` // seconds between two questions about that
	Config   uint64    `cbor:"8,keyasint"`           // version of the configuration under which it began
	Expires  time.Time `cbor:"9,keyasint"`
}

const (
	stateSalt    = 16   // bytes
	longestState = 8192 // characters
)

// errState refuses who comes back from elsewhere, too late, or again.
var errState = api.Errorf(api.Invalid, "Login failed. Expired or missing OAuth state.")

// stateCipher seals one state: the salt makes the key, which seals nothing else.
func stateCipher(r *engine.Request, salt []byte) (cipher.AEAD, error) {
	var key []byte
	for _, half := range []string{"oidc state 1", "oidc state 2"} {
		key = append(key, r.Opener.Fingerprint(r.Mount.UUID, half, salt)...)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// seal makes the state's text.
func (s *state) seal(r *engine.Request) (string, error) {
	out := make([]byte, stateSalt)
	if _, err := io.ReadFull(r.Random, out); err != nil {
		return "", err
	}
	c, err := stateCipher(r, out)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(c.Seal(out, make([]byte, c.NonceSize()), auth.Encode(s), nil)), nil
}

// openState reads a state that this mount sealed and that is not over. The client must be the one that began.
func openState(r *engine.Request) (*state, error) {
	text := r.Str("state")
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(text) > longestState || len(b) < stateSalt || base64.RawURLEncoding.EncodeToString(b) != text {
		return nil, errState // each state has one text: by that it is known again
	}
	c, err := stateCipher(r, b[:stateSalt])
	if err != nil {
		return nil, err
	}
	plain, err := c.Open(nil, make([]byte, c.NonceSize()), b[stateSalt:], nil)
	s := &state{}
	if err != nil || auth.Decode(plain, s) != nil || !r.Now.Before(s.Expires) {
		return nil, errState
	}
	if s.Client != "" && s.Client != r.Str("client_nonce") {
		return nil, api.Errorf(api.Invalid, "invalid client_nonce")
	}
	return s, nil
}
