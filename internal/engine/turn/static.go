package turn

import (
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/rotation"
)

// Names are the names of a static role's accounts at their target: of one, or of two with equal rights that take turns. One is encoded as the text that it
// always was. Two are a list, at which a version that knows of no second account fails, rather than to rotate the first alone and to lose what the row
// has of the other.
type Names []string

// MarshalCBOR makes Names a cbor.Marshaler.
func (n Names) MarshalCBOR() ([]byte, error) {
	if len(n) == 1 {
		return cbor.Marshal(n[0])
	}
	return cbor.Marshal([]string(n))
}

// UnmarshalCBOR makes Names a cbor.Unmarshaler.
func (n *Names) UnmarshalCBOR(b []byte) error {
	var one string
	if err := cbor.Unmarshal(b, &one); err == nil {
		*n = Names{one}
		return nil
	}
	return cbor.Unmarshal(b, (*[]string)(n))
}

// Pair reports whether two accounts take turns.
func (n Names) Pair() bool { return len(n) == 2 }

// Strategy is what people call the way in which they are rotated.
func (n Names) Strategy() string {
	if n.Pair() {
		return "alternating"
	}
	return "single"
}

// Renamed takes over which accounts a client named, as username or as usernames. None stays none. Those that a role has stay; a second one may come to the first.
func (n Names) Renamed(r *engine.Request) (Names, error) {
	one, list := r.Str("username"), r.List("usernames")
	switch {
	case len(list) == 0 && one == "":
		return n, nil
	case len(list) == 0 && len(n) == 0:
		return Names{one}, nil
	case len(list) == 0 && slices.Contains(n, one):
		return n, nil
	case len(list) == 0:
		return n, api.Errorf(api.Invalid, "cannot update static account username")
	case one != "" && one != list[0] && !slices.Contains(n, one):
		return n, api.Errorf(api.Invalid, "send username or usernames, not both")
	case len(list) != 2 || list[0] == list[1] || list[0] == "" || list[1] == "":
		return n, api.Errorf(api.Invalid, "usernames are two different accounts")
	case len(n) == 2 && !slices.Equal(n, list):
		return n, api.Errorf(api.Invalid, "the accounts of the role are %q: others need a role of their own", []string(n))
	case len(n) == 1 && n[0] != list[0]:
		return n, api.Errorf(api.Invalid, "the first of usernames must be %q, the account that the role has", n[0])
	}
	return list, nil
}

// CheckPair says why two accounts cannot take turns, or not yet. before are those that the role had so far; skipped: it is made without rotating it.
func (t *Turn) CheckPair(before Names, skipped bool) error {
	switch {
	case !t.Pair:
		return nil
	case t.Grace < 0:
		return api.Errorf(api.Invalid, "rotation_grace must not be negative")
	case skipped && t.Version == 0:
		return api.Errorf(api.Invalid, "lessor must know the password of the first account, to hand over from it: send it as password, or let the role be rotated when it is made")
	case len(before) == 1 && (t.Phase() != rotation.Idle || t.Version == 0):
		return api.Errorf(api.Invalid, "a rotation of this role is under way: wait until it is done before you give it a second account")
	}
	return nil
}

// Alone warns of a role with one account.
const Alone = "the role has one account: whoever uses its password is locked out by each rotation until it reads the new one; give the role usernames, two accounts with equal rights that take turns, and nobody is"

// unhurried is the shortest TTL of a password that stays in force when there is a newer one: a rotation that is due may wait for long, and nobody needs to read
// again and again until it comes.
const unhurried = time.Minute

// TTL is how long whoever reads the password at now need not read it again.
func (t *Turn) TTL(now time.Time) time.Duration {
	ttl := max(0, t.Due.Sub(now))
	if t.Pair {
		ttl = max(ttl, unhurried)
	}
	return ttl
}
