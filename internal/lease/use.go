package lease

import (
	"math"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Who may still use what. Reading is not adopting: most programs read once, at boot, and use what they have read for as long as they run. So
// whoever has read a version may use it, and what it read before, until it says that it does not (Acknowledge), or the version is proven dead
// (Settle). The pointer from a holder and a path to its lease bears that: the oldest version that the holder may use, and the newest that it has read.
//
// Where lessor rotates the secret, a pointer outlives its lease. It is no lease then, is not counted, and gives nobody anything. It stays until rotation
// has proven dead what it is about: a row for each holder that was, at most, until the next rotation; of a holder with very many instances, fewer (Tidying).

// User is a holder that may use a static secret.
type User struct {
	Holder
	Owner   string
	Lease   string    // id of its latest lease on the secret; it is there no more if Lapsed says so
	Born    uint64    // which of the secrets that were at the path it has read last, see Value.Born
	Kept    bool      // lessor rotates the secret: the user stays on record when its lease ends
	Pinned  bool      // it asked for that version; it has another entry for the others
	Version uint64    // that its latest lease is on
	Oldest  uint64    // version that it may still use; 0: it may use something from before that is not known any more, of another secret at the path too
	Newest  uint64    // version that it has read; Version but where it unwrapped an older one since
	Acked   uint64    // version that it has acknowledged last; 0: none
	Since   time.Time // when its latest lease began
	Last    time.Time // read, or renewal, on record: it may have read later, by up to an eighth of the hold
	Expires time.Time // end of its hold
	Lapsed  time.Time // when its lease ended; zero: its hold is alive
	Revoked bool      // it Lapsed by a revocation: it may use what it knows all the same, but nobody has to wait for it
	// Released says that it Lapsed by its own word: it uses nothing any more. It is Revoked, too, in that nobody has to wait for it.
	Released bool
	CheckOut bool   // the end of its latest lease demands another version; not of one that is Wrapped still
	Many     uint64 // how many instances of the Holder that have Lapsed this is, at most, the Instance being Crowd; 0: one, by itself
}

// Behind reports whether the user may still use something that is older than a version of the secret. Whoever has read only another secret, that
// was at the path before, may.
func (u *User) Behind(version, born uint64) bool { return u.Born != born || u.Oldest < version }

// Users lists who may use a static secret (its path within the mount), pinned versions included: each holder whose lease is there, even if its hold
// is over but for the reaper, and, where lessor rotates the secret, those whose lease has ended, but for what was proven dead. The order is
// the rows', by no name.
func Users(v store.View, e *mount.Entry, path string) ([]User, error) {
	var all []User
	prefix := pointerPrefix(e.Namespace, e.UUID, path)
	later := extensions{view: v, mount: e}
	for row, err := range v.Scan(store.LeaseIdx, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return nil, err
		}
		p, err := decodePointer(row)
		if err != nil {
			return nil, err
		}
		u := p.user()
		u.Pinned = p.Many == 0 && len(row.Name) > len(prefix)+pointerSum
		if !p.Rotatable {
			l, _, err := load(v, store.MountKey(e.Namespace, e.UUID, p.ID))
			if err != nil {
				return nil, err
			}
			if l == nil {
				continue
			}
			u.Holder = l.Holder
		}
		if p.Lapsed.IsZero() {
			h, err := later.of(p)
			if err != nil {
				return nil, err
			}
			u.Last, u.Expires = h.Last, h.Expires
		}
		all = append(all, u)
	}
	return all, nil
}

// Used is the secret that a row of store.LeaseIdx is about if it says who may use it: what begins the names of all such rows of that secret, which is
// store.MountKey and more. SecretOf reads its path from that.
func Used(row string) (secret string, ok bool) {
	_, _, rest := store.SplitMountKey(row)
	if !strings.HasPrefix(rest, usedRows) {
		return "", false
	}
	path, _, ok := strings.Cut(rest, "\x00")
	return row[:len(row)-len(rest)] + path, ok
}

// SecretOf is the path within its mount of a secret as Used has it.
func SecretOf(secret string) string {
	_, _, rest := store.SplitMountKey(secret)
	return strings.TrimPrefix(rest, usedRows)
}

// user is what the pointer says by itself.
func (p *pointer) user() User {
	return User{
		Holder: p.Holder, Owner: p.Owner, Lease: p.ID, Born: p.Born, Kept: p.Rotatable, Version: p.Version, Oldest: p.Oldest, Newest: p.newest(), Acked: p.Acked,
		Since: p.Hold.Last, Last: p.Hold.Last, Expires: p.Hold.Expires, Lapsed: p.Lapsed, Revoked: p.Revoked || p.Released,
		Released: p.Released, CheckOut: p.CheckOut && !strings.HasPrefix(p.Holder.Instance, Wrapped), Many: p.Many,
	}
}

// extensions are the rows of store.Holds of the leases of one path, read in one go.
type extensions struct {
	view  store.View
	mount *mount.Entry
	path  string
	holds map[string]hold
}

// of is the hold on the live lease that p names.
func (x *extensions) of(p *pointer) (hold, error) {
	path, name := (&Lease{ID: p.ID}).Path(), store.MountKey(x.mount.Namespace, x.mount.UUID, p.ID)
	if x.holds == nil || path != x.path {
		if err := x.read(path); err != nil {
			return hold{}, err
		}
	}
	if h := x.holds[name]; h.Expires.After(p.Hold.Expires) {
		return h, nil
	}
	return p.Hold, nil
}

// read reads those of the leases that were asked for at path. Nearly always that is one path for all holders of a secret.
func (x *extensions) read(path string) error {
	x.path, x.holds = path, map[string]hold{}
	prefix := store.MountKey(x.mount.Namespace, x.mount.UUID, path, "/")
	for row, err := range x.view.Scan(store.Holds, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return err
		}
		if strings.Contains(row.Name[len(prefix):], "/") {
			continue // of a secret below
		}
		if x.holds[row.Name], err = decodeHold(row); err != nil {
			return err
		}
	}
	return nil
}

// newest is the newest version that the holder has read.
func (p *pointer) newest() uint64 { return max(p.Version, p.Newest) }

// after is p, of a lease that its holder gets now, where before led to its holder's last one; nil: it had none. What that one let it use it may
// use still.
func (p *pointer) after(before *pointer) *pointer {
	switch {
	case before == nil || before.Released && before.Born == p.Born:
	case before.Born != p.Born:
		p.Oldest = 0
	default:
		p.Oldest, p.Acked = min(p.Oldest, before.Oldest), before.Acked
		if n := before.newest(); n > p.newest() {
			p.Newest = n
		}
	}
	return p
}

// ending is how a static lease ended.
type ending uint8

const (
	lapsed   ending = iota // its hold was over
	revoked                // somebody revoked it
	released               // its holder gave it back
)

// lapse says that the lease is no more, since now.
func (p *pointer) lapse(now time.Time, how ending) {
	p.Lapsed, p.Revoked, p.Released = now, how == revoked, how == released
	if p.Hold.Expires.After(now) {
		p.Hold.Expires = now
	}
}

// Acknowledge puts on record, at now, that the holder of a Live or Moved Static lease, required to be still what row was, uses the version that the lease
// is on, and nothing older. The caller has made sure that the holder itself says so, and that the lease is in force. txn is left as it is if all that is
// known, and if the holder has read something older meanwhile. An error of kind Invalid refuses a Dynamic lease.
func Acknowledge(v store.View, txn *store.Txn, row store.Row, l *Lease, now time.Time) error {
	if l.Kind != Static {
		return api.Errorf(api.Invalid, "the lease is on a credential of its own: only leases on static secrets are acknowledged")
	}
	at, err := v.Get(l.pointerKey())
	if err != nil || !at.Exists() {
		return err
	}
	p, err := decodePointer(at)
	if err != nil {
		return err
	}
	if p.ID == l.ID { // who acknowledges still holds it
		h, err := l.hold().extended(v, row.Name)
		if err != nil {
			return err
		}
		if !h.fresh(now) {
			h.extend(txn, row.Name, now)
		}
	}
	if p.Born != l.Born || p.Version < l.Version || p.Oldest >= l.Version && p.Acked >= l.Version {
		return nil
	}
	p.Oldest, p.Acked = max(p.Oldest, l.Version), max(p.Acked, l.Version)
	txn.Require(row)
	txn.Require(at)
	txn.Put(at.Table, at.Name, p.encode())
	return nil
}

// Release ends a Live or Moved Static lease, required to be still what row was, at now: its holder says that it uses nothing of the secret any
// more, since it is about to end, say. The caller has made sure that it is the holder who says so. That exposes nothing, and rotation waits for nobody
// then; but what the holder has read it knows: where lessor rotates the secret it stays a User until that is dead, so that its removal
// exposes it still. Elsewhere nobody waits for holders, and the lease stays until it lapses.
func Release(v store.View, txn *store.Txn, row store.Row, l *Lease, now time.Time) error {
	if !l.Rotatable {
		return nil
	}
	txn.Require(row)
	txn.Delete(store.Due, l.dueName())
	txn.Delete(store.Holds, row.Name)
	if err := checkIn(v, txn, l, "released"); err != nil {
		return err
	}
	return dropStatic(v, txn, row, l, now, released)
}

// settled is how many rows one call of Settle changes at most.
const settled = 512

// Settle puts on record that no version up to dead of a static secret, nor anything that was at its path before, is in force any more: nobody uses them
// whatever it has read. Users that have read nothing newer go, but for those with a lease that is there; Exposures of those versions are
// resolved. born is which of the secrets that were at the path it is. Rows are required to be still what v shows. It reports whether there is
// more than fits into one transaction: then it is to be called again, on a View of after the commit.
func Settle(v store.View, txn *store.Txn, e *mount.Entry, path string, dead, born uint64) (more bool, err error) {
	left := settled
	prefix := pointerPrefix(e.Namespace, e.UUID, path)
	for row, err := range v.Scan(store.LeaseIdx, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return false, err
		}
		p, err := decodePointer(row)
		if err != nil {
			return false, err
		}
		over := p.Born != born || p.newest() <= dead
		switch {
		case over && !p.Lapsed.IsZero():
			txn.Delete(row.Table, row.Name)
		case p.Born == born && p.Oldest <= dead && dead < math.MaxUint64:
			p.Oldest = dead + 1
			txn.Put(row.Table, row.Name, p.encode())
		default:
			continue
		}
		txn.Require(row)
		if left--; left == 0 {
			return true, nil
		}
	}
	found, err := exposures(v, e, exposurePrefix(e.Namespace, e.UUID, path)+"\x00")
	if err != nil {
		return false, err
	}
	for _, x := range found {
		if x.Born == born && x.Version > dead {
			continue
		}
		Resolve(txn, e, x)
		if left--; left == 0 {
			return true, nil
		}
	}
	return false, nil
}
