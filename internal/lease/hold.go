package lease

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Reading to hold. A client that reads a static secret may use it from then on, whatever it does later: so the read
// leaves a lease that says who holds which version. What the client is shown (an id, a duration of minutes) follows what
// existing clients bear; how long it counts as a holder (the hold, a day or more) is the server's own.
//
// One row, the pointer, leads from a holder and a path to its lease, so that reading again costs one Get and no write. Only
// when less than 7/8 of the hold is left is it extended, by a row of store.Holds beside the lease that is put without
// looking at its version: however many read at once, none of them conflict.

const (
	// DefaultShown is the lease_duration that clients see of a static lease when neither the secret nor its mount says another.
	DefaultShown = 300 * time.Second
	// MinHold is the shortest hold; else it is three times the holder's longest read interval.
	MinHold = 24 * time.Hour
	// Wrapped begins the Instance of a holder that is nobody yet: the answer lies in a wrapping, and who unwraps it becomes the holder (Rehold).
	Wrapped = "wrapped:"
)

// Value is the version of a static secret that a reader is shown.
type Value struct {
	Path     string        // within the mount, without "data/"
	Version  uint64        // of the value
	Born     uint64        // tells secrets apart that were at the path one after the other, where versions begin anew; 0: they do not
	Current  uint64        // the secret's current version
	Pinned   bool          // a version was asked for
	Duration time.Duration // lease_duration that the secret asks for; 0: mount's "lease_duration" option, else DefaultShown
	Quiet    bool          // the lease is shown only to those who say that they renew it

	// Rotatable says that lessor rotates the secret: older versions are retired once nobody uses them any more, so who may is kept beyond the
	// lease, until they are proven dead (Settle).
	Rotatable bool
	// CheckOut says that what is Rotatable is checked out: the end of a lease on it, however it comes, demands another version, since its holder should not know the one
	// in force any more.
	CheckOut bool
}

// Reading is one read of a static secret. The mount's option "lease" decides what comes of it: "shown" (the default), "quiet" (a lease that the
// client does not see), "off".
type Reading struct {
	View      store.View
	Tombs     Tombs // of View
	Mount     *mount.Entry
	Path      string // that was asked for: the lease's id begins with it; "": mount's path + Value.Path
	Value     Value
	Holder    Holder
	Owner     string
	Renewable bool          // the client said that it renews
	Least     time.Duration // how long the hold lasts at least: what lies in a wrapping is unwrapped until then
	Now       time.Time
	Request   string // id
	Random    io.Reader
}

// hold is how long somebody counts as a holder. As a row of store.Holds, named like the lease's, it extends the lease.
type hold struct {
	Expires time.Time     `cbor:"1,keyasint"`
	Last    time.Time     `cbor:"2,keyasint"`           // read that is on record
	Longest time.Duration `cbor:"3,keyasint,omitempty"` // interval between reads on record
}

// pointer is a row of store.LeaseIdx: the latest lease of one holder on one secret, and which versions that holder may use. A Static lease is Live,
// rather than Moved, exactly while a pointer names it. CBOR keys are on disk: never renumber, only append.
type pointer struct {
	ID        string `cbor:"1,keyasint"`
	Version   uint64 `cbor:"2,keyasint"`
	Position  uint64 `cbor:"3,keyasint"`
	Owner     string `cbor:"4,keyasint,omitempty"`
	Renewable bool   `cbor:"5,keyasint,omitempty"`
	Hold      hold   `cbor:"6,keyasint"` // as the lease began
	Born      uint64 `cbor:"7,keyasint,omitempty"`

	Oldest    uint64    `cbor:"8,keyasint,omitempty"`  // version that the holder may still use; 0: whatever was there before
	Newest    uint64    `cbor:"9,keyasint,omitempty"`  // that it has read, if that is not Version
	Acked     uint64    `cbor:"10,keyasint,omitempty"` // that it has acknowledged last
	Rotatable bool      `cbor:"11,keyasint,omitempty"` // the pointer outlives its lease
	Holder    Holder    `cbor:"12,keyasint,omitempty"` // of a Rotatable one
	Lapsed    time.Time `cbor:"13,keyasint,omitempty"` // when the lease ended; zero: it has not
	Revoked   bool      `cbor:"14,keyasint,omitempty"` // Lapsed: by a revocation
	Released  bool      `cbor:"15,keyasint,omitempty"` // Lapsed: its holder said that it uses nothing any more
	CheckOut  bool      `cbor:"16,keyasint,omitempty"` // of the lease; one that it is not known of is made anew by a read that has it
	Many      uint64    `cbor:"17,keyasint,omitempty"` // Lapsed: how many instances it is about, at most; 0: one
}

// Hold gives the reader a lease: the live one that the same holder instance has on the same version, else a new one, in whose
// favour the old one is Moved. It returns what the client sees, and the id ("" with "lease" off). Most calls add nothing to txn.
func Hold(txn *store.Txn, r Reading) (lessor.Terms, string, error) {
	mode := r.Mount.Options["lease"]
	if mode == "off" {
		return lessor.Terms{}, "", nil
	}
	id, err := r.hold(txn)
	if err != nil || mode == "quiet" || r.Value.Quiet && !r.Renewable {
		return lessor.Terms{}, id, err
	}
	return lessor.Terms{ID: id, Renewable: r.Renewable, Duration: r.shown()}, id, nil
}

func (r *Reading) hold(txn *store.Txn) (id string, err error) {
	row, err := r.View.Get(pointerKey(r.Mount.Namespace, r.Mount.UUID, r.Value.Path, r.Holder, r.pinned()))
	if err != nil {
		return "", err
	}
	if !row.Exists() {
		return r.take(txn, row, nil, hold{})
	}
	p, err := decodePointer(row)
	if err != nil {
		return "", err
	}
	name := store.MountKey(r.Mount.Namespace, r.Mount.UUID, p.ID)
	held := p.Hold
	if !held.fresh(r.Now) {
		if held, err = held.extended(r.View, name); err != nil {
			return "", err
		}
	}
	switch {
	case p.Version != r.Value.Version || p.Born != r.Value.Born, r.Renewable && !p.Renewable, r.Value.Rotatable && !p.Rotatable, r.Value.CheckOut && !p.CheckOut,
		!p.Lapsed.IsZero(), !r.Now.Before(held.Expires), r.buried(p):
		return r.replace(txn, row, p, held)
	}
	if !held.fresh(r.Now) {
		held.extend(txn, name, r.Now)
	}
	return p.ID, nil
}

// buried reports whether a wide revocation under way hits the lease of p.
func (r *Reading) buried(p *pointer) bool {
	return r.Tombs.Match(&Lease{
		ID: p.ID, Namespace: r.Mount.Namespace, Mount: r.Mount.UUID, Kind: Static, Holder: r.Holder, Owner: p.Owner, Position: p.Position,
	})
}

// take makes a new lease and points to it, as p did to the one before, if there was one. before is what is known of the holder's reads so far.
func (r *Reading) take(txn *store.Txn, at store.Row, p *pointer, before hold) (string, error) {
	id, err := NewID(r.path(), r.Random)
	if err != nil {
		return "", err
	}
	begun := before.next(r.Now)
	if least := r.Now.Add(r.Least); least.After(begun.Expires) {
		begun.Expires = least
	}
	l := &Lease{
		ID: id, Namespace: r.Mount.Namespace, Mount: r.Mount.UUID, Kind: Static, State: Live,
		Issued: r.Now, Expires: begun.Expires, TTL: r.shown(), Renewable: r.Renewable, Holder: r.Holder, Owner: r.Owner,
		Version: r.Value.Version, Born: r.Value.Born, Pinned: r.Value.Pinned, Secret: r.Value.Path, Request: r.Request, Position: r.View.Position(),
		Shown: r.shown(), Longest: begun.Longest, Rotatable: r.Value.Rotatable, CheckOut: r.Value.CheckOut,
	}
	next, err := l.successor(r.View, p)
	if err != nil {
		return "", err
	}
	Add(txn, l)
	txn.Require(at)
	txn.Put(at.Table, at.Name, next.encode())
	return id, nil
}

// replace makes a new lease where the holder has one that does not serve any more: it read another version, or the lease
// lapsed or was revoked a moment ago.
func (r *Reading) replace(txn *store.Txn, at store.Row, p *pointer, before hold) (string, error) {
	if err := move(r.View, txn, store.MountKey(r.Mount.Namespace, r.Mount.UUID, p.ID)); err != nil {
		return "", err
	}
	return r.take(txn, at, p, before)
}

// move takes the holder's pointer away from a lease. It stays until its end, so that who renews it is told to read again.
func move(v store.View, txn *store.Txn, name string) error {
	l, row, err := load(v, name)
	if err != nil || l == nil || l.State != Live {
		return err
	}
	l.State = Moved
	Save(txn, row, l)
	return nil
}

func (r *Reading) path() string {
	if r.Path != "" {
		return r.Path
	}
	return r.Mount.Path + r.Value.Path
}

// pinned is the version that was asked for; 0: none was.
func (r *Reading) pinned() uint64 {
	if r.Value.Pinned {
		return r.Value.Version
	}
	return 0
}

// shown is the lease_duration that clients see.
func (r *Reading) shown() time.Duration {
	if r.Value.Duration > 0 {
		return r.Value.Duration
	}
	option := r.Mount.Options["lease_duration"]
	if n, err := strconv.ParseUint(option, 10, 31); err == nil && n > 0 {
		return time.Duration(n) * time.Second
	}
	if d, err := time.ParseDuration(option); err == nil && d > 0 {
		return d
	}
	return DefaultShown
}

// length is how long a hold lasts from a read on.
func (h hold) length() time.Duration { return max(MinHold, 3*h.Longest) }

// fresh reports whether at least 7/8 of the hold is left.
func (h hold) fresh(now time.Time) bool { return h.Expires.Sub(now) >= h.length()/8*7 }

// next is the hold from a read at now on.
func (h hold) next(now time.Time) hold {
	if !h.Last.IsZero() {
		h.Longest = max(h.Longest, now.Sub(h.Last))
	}
	return hold{Expires: now.Add(h.length()), Last: now, Longest: h.Longest}
}

// extend puts the hold from a read at now on. It asks for nothing but that the lease is still there.
func (h hold) extend(txn *store.Txn, name string, now time.Time) {
	txn.Present(store.Leases, name)
	txn.Put(store.Holds, name, encode(h.next(now)))
}

// extended is the later of h and what the lease's row of store.Holds says.
func (h hold) extended(v store.View, name string) (hold, error) {
	later, _, err := extension(v, name)
	if err == nil && later.Expires.After(h.Expires) {
		return later, nil
	}
	return h, err
}

// extension is a row of store.Holds; zero if there is none.
func extension(v store.View, name string) (h hold, row store.Row, err error) {
	row, err = v.Get(store.Key{Table: store.Holds, Name: name})
	if err != nil || !row.Exists() {
		return hold{}, row, err
	}
	h, err = decodeHold(row)
	return h, row, err
}

func decodeHold(row store.Row) (h hold, err error) {
	if err := decoding.Unmarshal(row.Value, &h); err != nil {
		return hold{}, fmt.Errorf("lease: damaged row %s: %w", row.Key, err)
	}
	exact(&h.Expires, &h.Last)
	return h, nil
}

const usedRows = "h/" // + secret, NUL, pointerSum

// pointerRows begins the pointers of a mount.
func pointerRows(namespace uint32, mount string) string {
	return store.MountKey(namespace, mount, usedRows)
}

// pointerPrefix begins the pointers to the leases on a secret.
func pointerPrefix(namespace uint32, mount, path string) string {
	return pointerRows(namespace, mount) + path + "\x00"
}

// lease is what the pointer says of the lease that it names, but that it is on the newest version that the holder has read; rest is the pointer's name
// without namespace and mount.
func (p *pointer) lease(namespace uint32, mount, rest string) *Lease {
	path, _, _ := strings.Cut(strings.TrimPrefix(rest, usedRows), "\x00")
	return &Lease{
		ID: p.ID, Namespace: namespace, Mount: mount, Kind: Static, Holder: p.Holder, Owner: p.Owner, Version: p.newest(), Secret: path,
		Position: p.Position, Born: p.Born, Rotatable: p.Rotatable,
	}
}

// pointerSum is the length of what stands for the holder in a pointer's name.
const pointerSum = 16

// pointerKey names a pointer. Reads of a pinned version have pointers of their own: they are never superseded.
func pointerKey(namespace uint32, mount, path string, h Holder, pinned uint64) store.Key {
	sum := sha256.Sum256([]byte(h.Entity + "\x00" + h.Alias + "\x00" + h.Instance))
	name := pointerPrefix(namespace, mount, path) + string(sum[:pointerSum])
	if pinned != 0 {
		name += store.Uint64Key(pinned)
	}
	return store.Key{Table: store.LeaseIdx, Name: name}
}

func (l *Lease) pointerKey() store.Key {
	var pinned uint64
	if l.Pinned {
		pinned = l.Version
	}
	return pointerKey(l.Namespace, l.Mount, l.Secret, l.Holder, pinned)
}

// pointer is the pointer to l, of a holder that has read nothing before.
func (l *Lease) pointer() *pointer {
	p := &pointer{
		ID: l.ID, Version: l.Version, Position: l.Position, Owner: l.Owner, Renewable: l.Renewable, Hold: l.hold(), Born: l.Born, Oldest: l.Version,
		Rotatable: l.Rotatable, CheckOut: l.CheckOut,
	}
	if l.Rotatable {
		p.Holder = l.Holder
	}
	return p
}

func (p *pointer) encode() []byte {
	exact(&p.Lapsed)
	return encode(p)
}

// hold is how the lease's own row has it.
func (l *Lease) hold() hold { return hold{Expires: l.Expires, Last: l.Issued, Longest: l.Longest} }

func decodePointer(row store.Row) (*pointer, error) {
	p := &pointer{}
	if err := decoding.Unmarshal(row.Value, p); err != nil {
		return nil, fmt.Errorf("lease: damaged row %s: %w", row.Key, err)
	}
	exact(&p.Hold.Expires, &p.Hold.Last, &p.Lapsed)
	return p, nil
}

// NewID makes the id of a new lease at a path.
func NewID(path string, random io.Reader) (string, error) {
	var b [18]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("lease: no randomness: %w", err)
	}
	return path + "/" + base64.RawURLEncoding.EncodeToString(b[:]), nil
}

// RenewStatic answers the renewal, at now, of a Static lease that is Live. current is the secret's current version, 0 if it is unknown, and
// born the secret that it is of. A
// lease on a superseded version is shown to end in a second, with a warning, so that its holder reads again; one on a
// version that was asked for by number is not.
func RenewStatic(v store.View, txn *store.Txn, l *Lease, current uint64, born uint64, now time.Time) (lessor.Terms, string, error) {
	if !now.Before(l.Expires) {
		return lessor.Terms{}, "", api.Errorf(api.Invalid, "lease expired")
	}
	terms := lessor.Terms{ID: l.ID, Renewable: l.Renewable, Duration: l.Shown}
	if l.State == Live { // who renews still holds it
		h, err := l.hold().extended(v, l.name())
		if err != nil {
			return lessor.Terms{}, "", err
		}
		if !h.fresh(now) {
			h.extend(txn, l.name(), now)
		}
	}
	if l.Pinned || l.State == Live && (current == 0 || current == l.Version && born == l.Born) {
		return terms, "", nil
	}
	terms.Duration = time.Second
	return terms, "the secret has a newer version than this lease is on: read it again", nil
}

// Prolong has the hold on a Static lease that is there end at until, if it does not end later.
func Prolong(v store.View, txn *store.Txn, l *Lease, until time.Time) error {
	h, err := l.hold().extended(v, l.name())
	if err != nil || !until.After(h.Expires) {
		return err
	}
	h.Expires = until
	txn.Present(store.Leases, l.name())
	txn.Put(store.Holds, l.name(), encode(h))
	return nil
}

// Rehold makes h the holder of a lease, required to be still what row was: who unwraps a wrapped answer holds what is in it.
func Rehold(v store.View, txn *store.Txn, row store.Row, l *Lease, h Holder) error {
	if l.Kind == Dynamic || l.State != Live {
		if name := l.heirName(); name != "" {
			txn.Delete(store.LeaseIdx, name)
		}
		l.Holder, l.Indexed = h, false
		Save(txn, row, l)
		return nil
	}
	from := l.pointerKey()
	l.Holder = h
	to := l.pointerKey()
	Save(txn, row, l)
	if from == to {
		return nil
	}
	at, err := v.Get(to)
	if err != nil {
		return err
	}
	var before *pointer
	if at.Exists() {
		if before, err = decodePointer(at); err != nil {
			return err
		}
		if err := move(v, txn, store.MountKey(l.Namespace, l.Mount, before.ID)); err != nil {
			return err
		}
	}
	next, err := l.successor(v, before)
	if err != nil {
		return err
	}
	txn.Require(at)
	txn.Put(to.Table, to.Name, next.encode())
	txn.Delete(from.Table, from.Name)
	return nil
}

// Exposure is a finding: a lease on this version of a static secret was revoked, or its holder was removed, while the holder may
// still know the value. The remedy is a new value.
type Exposure struct {
	Secret  string    `cbor:"-"` // path within the mount
	Version uint64    `cbor:"-"`
	Time    time.Time `cbor:"1,keyasint"`
	Cause   string    `cbor:"2,keyasint"`
	Holder  Holder    `cbor:"3,keyasint"`
	Owner   string    `cbor:"4,keyasint,omitempty"`
	Lease   string    `cbor:"5,keyasint"`
	Born    uint64    `cbor:"6,keyasint,omitempty"` // which of the secrets that were at the path, see Value.Born
}

func exposurePrefix(namespace uint32, mount, path string) string {
	return store.MountKey(namespace, mount, "x/", path)
}

func exposureName(namespace uint32, mount, path string, version uint64, lease string) string {
	return exposurePrefix(namespace, mount, path) + "\x00" + store.Uint64Key(version) + lease
}

// dropStatic deletes a static lease that is over at now, required to be still what it was, but for its row of store.Holds. Where lessor rotates
// the secret, its pointer stays: the holder may use what it has read for long.
func dropStatic(v store.View, txn *store.Txn, row store.Row, l *Lease, now time.Time, how ending) error {
	txn.Delete(row.Table, row.Name)
	if l.State != Live {
		return nil
	}
	k := l.pointerKey()
	if !l.Rotatable || strings.HasPrefix(l.Holder.Instance, Wrapped) {
		txn.Delete(k.Table, k.Name)
		return nil
	}
	at, err := v.Get(k)
	if err != nil || !at.Exists() {
		return err
	}
	p, err := decodePointer(at)
	if err != nil {
		return err
	}
	if p.Hold, err = p.Hold.extended(v, row.Name); err != nil {
		return err
	}
	txn.Require(at)
	if p.Oldest > p.newest() { // all that it has read is dead
		txn.Delete(at.Table, at.Name)
		return nil
	}
	p.lapse(now, how)
	txn.Put(at.Table, at.Name, p.encode())
	return nil
}

// expose puts the finding that a version is known to somebody who should not use it any more.
func expose(txn *store.Txn, l *Lease, cause string, now time.Time) {
	exact(&now)
	name := exposureName(l.Namespace, l.Mount, l.Secret, l.Version, l.ID)
	txn.Put(store.LeaseIdx, name, encode(&Exposure{Time: now, Cause: cause, Holder: l.Holder, Owner: l.Owner, Lease: l.ID, Born: l.Born}))
	if l.Rotatable {
		demand(txn, l, cause, false)
	}
}

// checkIn demands that what was checked out is succeeded, since a lease on it ends by itself, or by its holder's word. One that was never unwrapped is known to nobody.
func checkIn(v store.View, txn *store.Txn, l *Lease, cause string) error {
	if !l.CheckOut || !l.Rotatable || l.State != Live || strings.HasPrefix(l.Holder.Instance, Wrapped) {
		return nil
	}
	newest, err := l.newest(v)
	if err == nil {
		demand(txn, newest, cause, true)
	}
	return err
}

// newest is l, a static lease, as if it were on the newest version that its holder has read: it is, but where the holder unwrapped an older one since.
func (l *Lease) newest(v store.View) (*Lease, error) {
	if l.State != Live {
		return l, nil
	}
	at, err := v.Get(l.pointerKey())
	if err != nil || !at.Exists() {
		return l, err
	}
	p, err := decodePointer(at)
	if err != nil || p.newest() <= l.Version {
		return l, err
	}
	newest := *l
	newest.Version = p.newest()
	return &newest, nil
}

// Exposures lists the exposed versions of a mount's static secrets, by path and version: of those whose path begins with prefix.
// Versions that are not current any more are listed too; what became of them the engine knows.
func Exposures(v store.View, e *mount.Entry, prefix string) ([]Exposure, error) {
	return exposures(v, e, exposurePrefix(e.Namespace, e.UUID, prefix))
}

// exposures lists those whose rows' names begin with from.
func exposures(v store.View, e *mount.Entry, from string) ([]Exposure, error) {
	var all []Exposure
	base := len(exposurePrefix(e.Namespace, e.UUID, ""))
	for row, err := range v.Scan(store.LeaseIdx, from, store.PrefixEnd(from)) {
		if err != nil {
			return nil, err
		}
		x, err := decodeExposure(row, base)
		if err != nil {
			return nil, err
		}
		all = append(all, x)
	}
	return all, nil
}

func decodeExposure(row store.Row, base int) (Exposure, error) {
	var x Exposure
	path, rest, ok := strings.Cut(row.Name[base:], "\x00")
	if !ok || len(rest) < 8 {
		return x, fmt.Errorf("lease: damaged row %s", row.Key)
	}
	if err := decoding.Unmarshal(row.Value, &x); err != nil {
		return x, fmt.Errorf("lease: damaged row %s: %w", row.Key, err)
	}
	exact(&x.Time)
	x.Secret, x.Version = path, binary.BigEndian.Uint64([]byte(rest))
	return x, nil
}

// Resolve deletes a finding: the value was changed, or somebody judged that it need not be.
func Resolve(txn *store.Txn, e *mount.Entry, x Exposure) {
	txn.Delete(store.LeaseIdx, exposureName(e.Namespace, e.UUID, x.Secret, x.Version, x.Lease))
}
