package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
)

// PostgreSQL checks each verifier that it is given against the empty password, at the verifier's own iteration count: at
// 4096 that is most of what making a role costs. Fewer weaken nothing where the password is random (128 bits need no
// stretching), but some clients refuse them.
const (
	defaultIterations = 4096
	mostIterations    = 1_000_000
)

// verifier is what PostgreSQL keeps of a password (RFC 5803, RFC 7677): it can check one who knows the password by it, and
// nobody can log in with it. The password is taken as printable ASCII, which SASLprep leaves as it is.
func verifier(password string, salt []byte, iterations int) (string, error) {
	for _, c := range []byte(password) {
		if c < ' ' || c > '~' {
			return "", errors.New("the password has characters beyond printable ASCII: change its policy, or set password_authentication to password")
		}
	}
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", err
	}
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	text := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, text(salt), text(stored[:]), text(mac("Server Key"))), nil
}

// salt of a lease's password: unique, as a salt has to be, and the same whenever the same account is made again.
func salt(lease string) []byte {
	h := sha256.Sum256([]byte("lessor salt\x00" + lease))
	return h[:16]
}
