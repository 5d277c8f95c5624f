package redis

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/internal/engine/database"
)

// Marks. Redis keeps of an account its name, its rules, and the SHA-256 of each of its passwords, of which it may have several; nothing else that
// could say whose it is. So the mark stands where a password's hash would: 64 hexadecimal digits, as ACL GETUSER and ACL LIST show them to whoever
// may administer accounts. Nobody can log in by it. That would take a text of which it is the SHA-256, and to find one for a value that was not made
// from a text takes as many attempts (2^256) as to find another for a password's hash. What the digits say is no secret, and need not be.
//
//	1e5504a1  lease's mark, 32 digits  mount's, 24 digits
//	1e5504b2  lease's mark, 32 digits  role's, 24 digits     (where it has a role)
const (
	leaseSlot = "1e5504a1"
	roleSlot  = "1e5504b2"
	markLen   = 32
	placeLen  = 24
)

// nowhere stands for a mount that an account does not name.
var nowhere = strings.Repeat("0", placeLen)

// slots are the hashes that mark an account. ok is false if they could not be read back.
func slots(a *database.Account) (all []string, ok bool) {
	mount := a.Mount
	if mount == "" {
		mount = nowhere
	}
	all = []string{leaseSlot + a.Bears() + mount}
	if a.Role != "" {
		all = append(all, roleSlot+a.Bears()+a.Role)
	}
	return all, !slices.ContainsFunc(all, func(s string) bool {
		_, err := hex.DecodeString(s)
		return err != nil || len(s) != 2*sha256.Size || s != strings.ToLower(s)
	})
}

// marks reads an account's hashes. Mark is empty if it bears none of lessor's; rest are those that are no marks.
func marks(hashes []string) (m database.Marked, rest []string) {
	var role string
	for _, h := range hashes {
		switch {
		case len(h) != 2*sha256.Size:
		case strings.HasPrefix(h, leaseSlot):
			m.Mark, m.Mount = h[len(leaseSlot):len(leaseSlot)+markLen], h[len(leaseSlot)+markLen:]
		case strings.HasPrefix(h, roleSlot):
			role = h
		default:
			rest = append(rest, h)
		}
	}
	if m.Mount == nowhere {
		m.Mount = ""
	}
	if of, ok := strings.CutPrefix(role, roleSlot+m.Mark); ok && m.Mark != "" {
		m.Role = of
	}
	return m, rest
}

// digest is what Redis keeps of a password.
func digest(password string) string {
	h := sha256.Sum256([]byte(password))
	return hex.EncodeToString(h[:])
}
