// Package lease gives everything that lessor hands out an end. A lease is a row, found by id, by expiry, by token and
// by holder; memory holds none of them. Its life is
//
//	pending → live → revoking → gone
//
// A dynamic credential's lease is durable, pending, before its target is touched, and holds all that is needed to undo
// it; whatever dies midway, the reaper reverts. A lease on a static secret is born live and records who holds which
// version; it is gone when it ends, since no target has to be asked. What its holder may still use then is in use.go.
//
// What is in lease.go, hold.go, use.go, renew.go and tomb.go decides: it reads a store.View, fills a store.Txn and touches nothing.
// Reaper is the one that acts.
package lease

import (
	"fmt"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/store"
)

// State is where a lease is in its life.
type State uint8

const (
	Pending  State = iota + 1 // durable, the target may or may not have been touched
	Live                      // handed out
	Revoking                  // ended; the target has not confirmed yet
	Moved                     // static: its holder has a newer lease on the same secret
)

func (s State) String() string {
	switch s {
	case Pending:
		return "pending"
	case Live:
		return "live"
	case Revoking:
		return "revoking"
	case Moved:
		return "moved"
	}
	return "unknown"
}

// Kind separates what must be undone at a target from what need not.
type Kind uint8

const (
	Dynamic Kind = iota + 1 // a credential made for its holder; reverted at its target
	Static                  // a version of a stored secret; ends by lapsing
)

func (k Kind) String() string {
	switch k {
	case Dynamic:
		return "dynamic"
	case Static:
		return "static"
	}
	return "unknown"
}

// Holder is who has what a lease is about: an entity, through one of its aliases, in one running instance.
type Holder struct {
	Entity   string `cbor:"1,keyasint,omitempty" json:"entity_id"`
	Alias    string `cbor:"2,keyasint,omitempty" json:"alias"`    // alias id; token accessor for what has no entity
	Instance string `cbor:"3,keyasint,omitempty" json:"instance"` // X-Lessor-Instance, secret-id accessor, …, else client address
	Name     string `cbor:"4,keyasint,omitempty" json:"display_name"`
}

// Lease is one row of store.Leases, named MountKey(namespace, mount) + ID. Times are kept to the microsecond.
// CBOR keys are on disk: never renumber, only append.
type Lease struct {
	ID        string        `cbor:"-"` // "database/creds/app/Zk3…": what clients see
	Namespace uint32        `cbor:"-"`
	Mount     string        `cbor:"-"` // UUID of the mount
	Kind      Kind          `cbor:"4,keyasint"`
	State     State         `cbor:"5,keyasint"`
	Issued    time.Time     `cbor:"6,keyasint"`
	Renewed   time.Time     `cbor:"7,keyasint,omitempty"`
	Expires   time.Time     `cbor:"8,keyasint"`           // end; Pending: when it must have been confirmed; Static: the end of the hold
	Max       time.Time     `cbor:"9,keyasint,omitempty"` // no renewal goes beyond; zero: no maximum
	TTL       time.Duration `cbor:"10,keyasint"`          // as granted; what a renewal without increment asks for
	Renewable bool          `cbor:"11,keyasint,omitempty"`
	Token     string        `cbor:"12,keyasint,omitempty"` // keyed hash of the token it dies with; empty for Static
	Ancestors []string      `cbor:"13,keyasint,omitempty"` // of that token, parent first
	Holder    Holder        `cbor:"14,keyasint"`
	Owner     string        `cbor:"15,keyasint,omitempty"`
	Version   uint64        `cbor:"16,keyasint,omitempty"` // Static: version of the secret
	Pinned    bool          `cbor:"17,keyasint,omitempty"` // Static: read with ?version=
	Secret    string        `cbor:"18,keyasint,omitempty"` // Static: path within the mount
	Target    string        `cbor:"19,keyasint,omitempty"` // Dynamic: what its revert touches, within the mount: one target, one queue
	Intent    []byte        `cbor:"20,keyasint,omitempty"` // Dynamic: the engine's own notes, enough to renew and revert
	Request   string        `cbor:"21,keyasint,omitempty"` // request id that made it
	Ended     time.Time     `cbor:"22,keyasint,omitempty"` // Revoking: when it stopped being valid
	Cause     string        `cbor:"23,keyasint,omitempty"` // Revoking: "expired", "revoked by request …", "could not be made", …
	Attempts  uint32        `cbor:"24,keyasint,omitempty"` // Revoking: reverts that failed
	Next      time.Time     `cbor:"25,keyasint,omitempty"` // Revoking: when the next revert is due
	LastError string        `cbor:"26,keyasint,omitempty"` // Revoking: why the last failed, free of secrets
	Position  uint64        `cbor:"27,keyasint,omitempty"` // View position at which it was decided; tombstones compare with it
	Forced    bool          `cbor:"28,keyasint,omitempty"` // Revoking: remove even if the target fails
	Shown     time.Duration `cbor:"29,keyasint,omitempty"` // Static: lease_duration that clients see
	Watch     bool          `cbor:"30,keyasint,omitempty"` // its apply never reported back: reverted again until the target says it is gone
	Due       time.Time     `cbor:"31,keyasint,omitempty"` // not Revoking: where its row of store.Due is; not after Expires
	Tomb      string        `cbor:"32,keyasint,omitempty"` // Revoking: id of the tombstone that ended it
	Longest   time.Duration `cbor:"33,keyasint,omitempty"` // Static: longest interval between the holder's reads before this lease
	Born      uint64        `cbor:"34,keyasint,omitempty"` // Static: which of the secrets that were at this path, see Value.Born
	Rotatable bool          `cbor:"35,keyasint,omitempty"` // Static: lessor rotates the secret, so that its end leaves who may still use it
	Indexed   bool          `cbor:"36,keyasint,omitempty"` // Dynamic: its holder's heir finds it
	CheckOut  bool          `cbor:"37,keyasint,omitempty"` // Static: see Value.CheckOut
}

// PendingMargin is what a pending lease is given beyond the deadline of its apply, before the reaper reverts it.
const PendingMargin = 10 * time.Second

var encoding, decoding = func() (cbor.EncMode, cbor.DecMode) {
	o := cbor.CoreDetEncOptions()
	o.Time, o.TimeTag = cbor.TimeUnixDynamic, cbor.EncTagNone
	e, err := o.EncMode()
	if err != nil {
		panic(err)
	}
	d, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode() // keyed hashes are raw bytes
	if err != nil {
		panic(err)
	}
	return e, d
}()

func encode(v any) []byte {
	b, err := encoding.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("lease: %v", err)) // plain data: a defect if it fails
	}
	return b
}

// exact makes times what a row says of them: UTC, to the microsecond, so that a row read back names the same index rows.
func exact(times ...*time.Time) {
	for _, t := range times {
		if !t.IsZero() {
			*t = t.Round(time.Microsecond).UTC()
		}
	}
}

func (l *Lease) exact() {
	exact(&l.Issued, &l.Renewed, &l.Expires, &l.Max, &l.Ended, &l.Next, &l.Due)
}

// Encode is the row's value.
func (l *Lease) Encode() []byte {
	l.exact()
	return encode(l)
}

// Decode reads a row of store.Leases.
func Decode(row store.Row) (*Lease, error) {
	l := &Lease{}
	l.Namespace, l.Mount, l.ID = store.SplitMountKey(row.Name)
	if err := decoding.Unmarshal(row.Value, l); err != nil {
		return nil, fmt.Errorf("lease: damaged row %s: %w", row.Key, err)
	}
	l.exact()
	return l, nil
}

// Key names the lease's row.
func (l *Lease) Key() store.Key { return store.Key{Table: store.Leases, Name: l.name()} }

// name is the row's name; index rows end with it.
func (l *Lease) name() string { return store.MountKey(l.Namespace, l.Mount, l.ID) }

// Path is the path that the lease was asked for at: its id without the random part.
func (l *Lease) Path() string {
	if i := strings.LastIndexByte(l.ID, '/'); i > 0 {
		return l.ID[:i]
	}
	return l.ID
}

// Find returns the lease of a mount by its id, with the end of its hold if it is static. nil: there is none.
func Find(v store.View, namespace uint32, mount, id string) (*Lease, store.Row, error) {
	return load(v, store.MountKey(namespace, mount, id))
}

// Get reads the lease's row anew.
func Get(v store.View, l *Lease) (*Lease, store.Row, error) { return load(v, l.name()) }

func load(v store.View, name string) (*Lease, store.Row, error) {
	l, row, _, err := loadHeld(v, name)
	return l, row, err
}

// loadHeld returns the row of store.Holds of a static lease, too.
func loadHeld(v store.View, name string) (l *Lease, row, held store.Row, err error) {
	row, err = v.Get(store.Key{Table: store.Leases, Name: name})
	if err != nil || !row.Exists() {
		return nil, row, held, err
	}
	if l, err = Decode(row); err != nil || l.Kind != Static {
		return l, row, held, err
	}
	h, held, err := extension(v, name)
	if h.Expires.After(l.Expires) {
		l.Expires = h.Expires
	}
	return l, row, held, err
}

// Live reports whether the lease gives its holder anything at now: handed out, not over, hit by no tombstone. A dynamic
// lease also dies with its token: whether that lives, with its ancestors, is the caller's to check.
func (l *Lease) Live(tombs Tombs, now time.Time) bool {
	return (l.State == Live || l.State == Moved) && now.Before(l.Expires) && !tombs.Match(l)
}

// Names of index rows. Each ends with the name of the lease's row.
//
//	Due       TimeKey  "l"             leases that need nothing undone, by Due, among the tokens
//	Due       "d" TimeKey              the others: what leaves a credential at a target goes first
//	LeaseIdx  "t/" token               Pending and Live ones by the token they die with
//	LeaseIdx  "i/" holder              Pending and Live Dynamic ones by who holds them: who takes over from him finds them
//	LeaseIdx  "r/" mount target Next   Revoking ones by target: the queues of its workers
//	LeaseIdx  "w/" tombstone           Revoking ones by the tombstone that ended them: who waits for it sees them go
const (
	dueLease   = "l"
	dueDynamic = "d"
)

func (l *Lease) dueName() string {
	if l.Kind == Dynamic {
		return dueDynamic + store.TimeKey(l.Due) + l.name()
	}
	return store.TimeKey(l.Due) + dueLease + l.name()
}

func tokenPrefix(hash string) string {
	return store.MountKey(0, "", "t/", string([]byte{byte(len(hash))}), hash)
}

func tombPrefix(id string) string { return store.MountKey(0, "", "w/", id, "\x00") }

// queuePrefix begins all queues, targetPrefix one of them.
var queuePrefix = store.MountKey(0, "", "r/")

func targetPrefix(namespace uint32, mount, target string) string {
	return queuePrefix + store.MountKey(namespace, mount, target, "\x00")
}

func (l *Lease) queueName() string {
	return targetPrefix(l.Namespace, l.Mount, l.Target) + store.TimeKey(l.Next) + l.name()
}

// Add puts a new lease with its index rows. txn commits only if no wide revocation began since l.Position: what was decided
// before one is not made after it. That the lease's token still lives is the caller's condition.
func Add(txn *store.Txn, l *Lease) {
	l.Due = l.Expires
	l.index(txn)
	value := l.Encode()
	name := l.name()
	txn.Unchanged = append(txn.Unchanged, store.Since{Table: store.Tombs, Position: l.Position})
	txn.Absent(store.Leases, name)
	txn.Put(store.Leases, name, value)
	txn.Put(store.Due, l.dueName(), nil)
	if l.Token != "" {
		txn.Put(store.LeaseIdx, tokenPrefix(l.Token)+name, nil)
	}
}

// Confirm puts a pending lease, required to be still what row was, as live: its target has what it is about. Its end
// is l.Expires from now on.
func Confirm(txn *store.Txn, row store.Row, l *Lease) {
	l.State = Live
	txn.Require(row)
	l.moveDue(txn, l.Expires)
	txn.Put(row.Table, row.Name, l.Encode())
}

// Save puts a changed lease that is not Revoking, required to be still what row was. A later end writes no due row: the
// reaper, finding the old one, looks at the lease. An earlier one moves it.
func Save(txn *store.Txn, row store.Row, l *Lease) {
	txn.Require(row)
	if l.Expires.Before(l.Due) {
		l.moveDue(txn, l.Expires)
	}
	if !l.Indexed {
		l.index(txn)
	}
	txn.Put(row.Table, row.Name, l.Encode())
}

// moveDue moves the due row.
func (l *Lease) moveDue(txn *store.Txn, to time.Time) {
	exact(&to)
	from := l.dueName()
	l.Due = to
	if at := l.dueName(); at != from {
		txn.Delete(store.Due, from)
		txn.Put(store.Due, at, nil)
	}
}

// End ends a lease at now, required to be still what row was; l.Forced and l.Tomb are the caller's to set before. A
// dynamic one becomes Revoking and stands first in its target's queue; the commit should carry the audit record that the target is
// about to be touched. A static one is gone with the commit, which
// leaves an Exposure of its version and, where lessor rotates the secret, a User who is Revoked. Ending what is Revoking already means: try again at once.
func End(v store.View, txn *store.Txn, row store.Row, l *Lease, cause string, now time.Time) error {
	txn.Urgent = true
	txn.Require(row)
	if l.State == Revoking {
		requeue(txn, l, now)
		return nil
	}
	txn.Delete(store.Due, l.dueName())
	if l.Token != "" {
		txn.Delete(store.LeaseIdx, tokenPrefix(l.Token)+row.Name)
	}
	if name := l.heirName(); name != "" {
		txn.Delete(store.LeaseIdx, name)
	}
	if l.Kind == Static {
		txn.Delete(store.Holds, row.Name)
		expose(txn, l, cause, now)
		newest, err := l.newest(v)
		if err != nil {
			return err
		}
		if newest.Version != l.Version {
			expose(txn, newest, cause, now)
		}
		return dropStatic(v, txn, row, l, now, revoked)
	}
	l.Watch = l.Watch || l.State == Pending
	l.State, l.Ended, l.Cause, l.Due = Revoking, now, cause, time.Time{}
	l.Next = l.firstTry(now)
	exact(&l.Next)
	txn.Put(store.LeaseIdx, l.queueName(), nil)
	if l.Tomb != "" {
		txn.Put(store.LeaseIdx, tombPrefix(l.Tomb)+row.Name, nil)
	}
	txn.Put(row.Table, row.Name, l.Encode())
	return nil
}

// firstTry is when a revert is due that somebody waits for: now; with force, before all others and past the breaker.
func (l *Lease) firstTry(now time.Time) time.Time {
	if l.Forced {
		return time.Time{}
	}
	return now
}

// requeue makes the revert of a Revoking lease due at once. The caller has required the row.
func requeue(txn *store.Txn, l *Lease, now time.Time) {
	reschedule(txn, l, l.firstTry(now))
}

// reschedule puts a Revoking lease with its next revert due at next.
func reschedule(txn *store.Txn, l *Lease, next time.Time) {
	exact(&next)
	from := l.queueName()
	l.Next = next
	if at := l.queueName(); at != from {
		txn.Delete(store.LeaseIdx, from)
		txn.Put(store.LeaseIdx, at, nil)
	}
	txn.Put(store.Leases, l.name(), l.Encode())
}

// Drop deletes a Revoking lease, required to be still what row was: its target has confirmed, or does not matter any more.
func Drop(txn *store.Txn, row store.Row, l *Lease) {
	txn.Urgent = true
	txn.Require(row)
	txn.Delete(row.Table, row.Name)
	txn.Delete(store.LeaseIdx, l.queueName())
	if l.Tomb != "" {
		txn.Delete(store.LeaseIdx, tombPrefix(l.Tomb)+row.Name)
	}
}
