// Package lockout keeps people from guessing passwords: whoever fails to log in under one name too often is locked out, under
// that name at that mount, for a while.
//
// The lock is a row, so that every node and a restart know it; the failures that lead to one are counted in memory, on each node
// by itself. Names that nobody has are locked in memory only, exactly as it looks from outside, so that being locked
// does not tell who exists, and a flood of invented names fills neither memory nor disk.
package lockout

import (
	"container/list"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Terms are how many failures lock out, and for how long.
type Terms struct {
	Threshold    uint64        // failures in a row; 0: the first one locks, as 1 does
	Duration     time.Duration // of the lock, from the last failure
	CounterReset time.Duration // time without a failure after which the count begins anew
	Disabled     bool          // nobody is locked out
}

// Default are the terms where nobody says others.
var Default = Terms{Threshold: 5, Duration: 15 * time.Minute, CounterReset: 15 * time.Minute}

// Types are the auth methods that lock out.
var Types = []string{"approle", "ldap", "userpass"}

// Settings are the server's own: by type of auth method, "all" for those that are not named.
type Settings struct {
	ByType   map[string]Terms
	Disabled *bool // whatever the rest says; nil: the rest decides
}

// For is what holds at a mount: the server's word that there is no lockout, then the mount's own tuning, then the server's
// settings for its type.
func (s *Settings) For(e *mount.Entry) Terms {
	t, ok := s.ByType[e.Type]
	if !ok {
		if t, ok = s.ByType["all"]; !ok {
			t = Default
		}
	}
	if l := e.Config.Lockout; l != nil {
		if l.Threshold != 0 {
			t.Threshold = l.Threshold
		}
		if l.Duration != 0 {
			t.Duration = l.Duration
		}
		if l.CounterReset != 0 {
			t.CounterReset = l.CounterReset
		}
		t.Disabled = t.Disabled || l.Disabled
	}
	if s.Disabled != nil {
		t.Disabled = *s.Disabled
	}
	return t
}

// Name is an alias at a mount.
type Name struct {
	Mount *mount.Entry
	Alias string
	Known bool // there is such a user or role
}

// Key is that of the lock's row. It goes with its mount.
func (n Name) Key() store.Key {
	return store.Key{Table: store.Config, Name: prefix(n.Mount) + n.Alias}
}

func prefix(e *mount.Entry) string { return store.MountKey(e.Namespace, e.UUID, "locked/") }

// lock is a row. CBOR keys are on disk: never renumber, only append.
type lock struct {
	Since int64 `cbor:"1,keyasint"` // last failure, in seconds since 1970
}

func decode(row store.Row) (time.Time, error) {
	var l lock
	if err := cbor.Unmarshal(row.Value, &l); err != nil {
		return time.Time{}, fmt.Errorf("lockout: damaged row: %w", err)
	}
	return time.Unix(l.Since, 0), nil
}

// Put locks the name from now on.
func Put(txn *store.Txn, n Name, now time.Time) {
	value, err := cbor.Marshal(lock{now.Unix()})
	if err != nil {
		panic(fmt.Sprintf("lockout: %v", err)) // plain data: a defect
	}
	k := n.Key()
	txn.Put(k.Table, k.Name, value)
}

// Locked yields the aliases of a mount that are locked out at now, in order.
func Locked(v store.View, e *mount.Entry, t Terms, now time.Time, yield func(alias string)) error {
	p := prefix(e)
	for row, err := range v.Scan(store.Config, p, store.PrefixEnd(p)) {
		if err != nil {
			return err
		}
		since, err := decode(row)
		if err != nil {
			return err
		}
		if now.Before(since.Add(t.Duration)) {
			yield(strings.TrimPrefix(row.Name, p))
		}
	}
	return nil
}

// Expire adds to txn the deletion of a mount's locks that are over at now.
func Expire(v store.View, txn *store.Txn, e *mount.Entry, t Terms, now time.Time) error {
	p := prefix(e)
	for row, err := range v.Scan(store.Config, p, store.PrefixEnd(p)) {
		if err != nil {
			return err
		}
		since, err := decode(row)
		if err != nil {
			return err
		}
		if !now.Before(since.Add(max(t.Duration, t.CounterReset))) {
			txn.Require(row)
			txn.Delete(row.Table, row.Name)
		}
	}
	return nil
}

// Guard counts failures. The zero Guard is ready; its methods are safe for concurrent use.
type Guard struct {
	mu             sync.Mutex
	known, unknown memory
}

// Check says whether the name is locked out as of v, and gives the row that says so, or does not. A login that succeeds
// after all requires that row to be still so.
func (g *Guard) Check(v store.View, n Name, t Terms, now time.Time) (locked bool, row store.Row, err error) {
	if row, err = v.Get(n.Key()); err != nil {
		return false, row, err
	}
	if row.Exists() {
		since, err := decode(row)
		if err != nil {
			return false, row, err
		}
		if now.Before(since.Add(t.Duration)) {
			return true, row, nil
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.memory(n)
	f := m.get(n)
	if f == nil || f.count < t.Threshold || !now.Before(f.last.Add(t.Duration)) {
		return false, row, nil
	}
	if n.Known && !row.Exists() && f.locked != 0 && v.Position() >= f.locked {
		m.drop(n) // somebody unlocked it
		return false, row, nil
	}
	return true, row, nil
}

// Outcome is what a failure leads to.
type Outcome uint8

const (
	Counted Outcome = iota + 1 // it was counted
	Locks                      // it locks the name: Put, then Committed
	Already                    // the name was locked meanwhile: what was found out must not be told
)

// Fail takes notice of a failed login.
func (g *Guard) Fail(n Name, t Terms, now time.Time) Outcome {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.memory(n).make(n)
	if f.count >= t.Threshold && f.count > 0 && now.Before(f.last.Add(t.Duration)) {
		return Already
	}
	if now.After(f.last.Add(t.CounterReset)) {
		f.count = 0
	}
	f.count, f.last, f.locked = f.count+1, now, 0
	if f.count < t.Threshold {
		return Counted
	}
	if !n.Known {
		return Counted
	}
	return Locks
}

// Committed tells that the lock's row is durable as of commit seq; 0: it could not be written, and the next failure tries again.
func (g *Guard) Committed(n Name, seq uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.memory(n).get(n)
	switch {
	case f == nil:
	case seq == 0 && f.count > 0:
		f.count--
	default:
		f.locked = seq
	}
}

// Forget forgets the failures under a name: it logged in.
func (g *Guard) Forget(n Name) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.memory(n).drop(n)
}

func (g *Guard) memory(n Name) *memory {
	if n.Known {
		return &g.known
	}
	return &g.unknown
}

// failures are those under one name.
type failures struct {
	id     [16]byte
	count  uint64
	last   time.Time
	locked uint64 // commit of the lock's row; 0: there is none yet
}

// remembered is how many names a memory holds; those that failed longest ago are forgotten first.
const remembered = 1 << 16

// memory is the failures of names, bounded. Names are kept as hashes: they may be long.
type memory struct {
	byID  map[[16]byte]*list.Element
	order list.List // of *failures, the latest first
}

func id(n Name) [16]byte {
	sum := sha256.Sum256([]byte(n.Mount.UUID + n.Alias))
	return [16]byte(sum[:16])
}

func (m *memory) get(n Name) *failures {
	if e := m.byID[id(n)]; e != nil {
		return e.Value.(*failures)
	}
	return nil
}

func (m *memory) make(n Name) *failures {
	k := id(n)
	if e := m.byID[k]; e != nil {
		m.order.MoveToFront(e)
		return e.Value.(*failures)
	}
	if m.byID == nil {
		m.byID = map[[16]byte]*list.Element{}
	}
	if m.order.Len() >= remembered {
		oldest := m.order.Back()
		delete(m.byID, oldest.Value.(*failures).id)
		m.order.Remove(oldest)
	}
	f := &failures{id: k}
	m.byID[k] = m.order.PushFront(f)
	return f
}

func (m *memory) drop(n Name) {
	if e := m.byID[id(n)]; e != nil {
		delete(m.byID, id(n))
		m.order.Remove(e)
	}
}
