package turn

import (
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
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
		return n, api.Errorf(api.Invalid, "usernames are two different accounts; a role that has one says username")
	case len(n) == 2 && !slices.Equal(n, list):
		return n, api.Errorf(api.Invalid, "the accounts of the role are %q: others need a role of their own", []string(n))
	case len(n) == 1 && n[0] != list[0]:
		return n, api.Errorf(api.Invalid, "the first of usernames must be %q, the account that the role has", n[0])
	}
	return list, nil
}

// CheckPair says why two accounts cannot take turns, or not yet. before are those that the role had so far; skipped: it is made without rotating it, though the
// engine has another remedy for that.
func (t *Turn) CheckPair(before Names, skipped bool, remedy string) error {
	switch {
	case !t.Pair:
		return nil
	case t.Grace < 0:
		return api.Errorf(api.Invalid, "rotation_grace must not be negative")
	case skipped && t.Version == 0:
		return api.Errorf(api.Invalid, "lessor must know the password of the first account, to hand over from it: %s", remedy)
	case len(before) == 1 && (t.Phase() != rotation.Idle || t.Version == 0):
		return api.Errorf(api.Invalid, "a rotation of this role is under way: wait until it is done before you give it a second account")
	}
	return nil
}

// Alone warns of a role with one account.
const Alone = "the role has one account: whoever uses its password is locked out by each rotation until it reads the new one; give the role usernames, two accounts with equal rights that take turns, and nobody is"

// Write records, in reply's Txn, the rotation of a static role that r writes. A new one, which was rotated by no schedule before (nil), is rotated at once
// unless that is skipped; another is due anew if its schedule is another.
func (of Accounts) Write(t *Turn, r *engine.Request, reply *engine.Reply, before *rotation.Schedule, skip bool) error {
	schedule := t.Terms.Schedule.Drawn(rotation.Chance(r.Random))
	if before != nil {
		last := t.Rotated
		if last.IsZero() {
			last = r.Now
		}
		if *before != t.Terms.Schedule {
			t.Reschedule(schedule, last)
		}
		return t.Save(&reply.Txn)
	}
	t.Born = uint64(r.Now.UnixMicro())
	if skip {
		t.Due = schedule.Next(r.Now)
		return t.Save(&reply.Txn)
	}
	t.New = true
	return of.begin(t, r, reply)
}

// Known is the error that the password of static role name is not known, if it is not.
func (t *Turn) Known(name string) error {
	switch {
	case t.Version != 0:
		return nil
	case t.Pending != 0 || t.Attempts > 0:
		return api.Errorf(api.Upstream, "the first rotation of static role %q has not succeeded yet; it is tried again, or write to rotate-role/%s", name, name)
	}
	return api.Errorf(api.Invalid, "the password of static role %q is not known, since it was made without rotating it: write to rotate-role/%s", name, name)
}

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

// Static is the lease of whoever reads the password at now.
func (t *Turn) Static(now time.Time) *engine.Static {
	return &engine.Static{
		Path: t.Terms.Reads, Born: t.Born, Version: t.Version, Current: t.Version, Duration: max(time.Second, t.TTL(now)), Quiet: true, Rotatable: true, CheckOut: t.Terms.CheckOut,
	}
}

// Current is the version of an account's password, and which account it is a version of, for leases on it (engine.Versioner).
func Current(v store.View, m *mount.Entry, account string) (version, born uint64, err error) {
	a, _, err := rotation.Load(v, m.Namespace, m.UUID, account)
	if err != nil {
		return 0, 0, err
	}
	return a.Version, a.Born, nil
}
