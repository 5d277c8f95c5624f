package lessor

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
)

const redacted = "[secret]"

// Secret is a value that must not be seen: a password, a token, a secret's data. However it is printed, logged or
// marshalled, it reads "[secret]"; only Reveal gives the bytes. The zero Secret is empty. A Secret is immutable.
type Secret struct{ b string }

// NewSecret wraps s.
func NewSecret[T ~string | ~[]byte](s T) Secret { return Secret{string(s)} }

// Reveal returns the value. Each call is a place to review.
func (s Secret) Reveal() string { return s.b }

// Empty reports whether there is no value.
func (s Secret) Empty() bool { return s.b == "" }

// Equal compares in constant time.
func (s Secret) Equal(t Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.b), []byte(t.b)) == 1
}

func (s Secret) String() string               { return redacted }
func (s Secret) GoString() string             { return redacted }
func (s Secret) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (s Secret) MarshalCBOR() ([]byte, error) {
	return nil, fmt.Errorf("lessor: a Secret is never marshalled")
}

// SecretJSON is a Secret whose value is a JSON text: AppendJSON writes it as it stands, not as a string.
type SecretJSON struct{ Secret }
