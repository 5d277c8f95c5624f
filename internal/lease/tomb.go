package lease

import (
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// SelectorKind is what a wide revocation selects by.
type SelectorKind uint8

const (
	ByPrefix SelectorKind = iota + 1 // ids of leases, and paths of tokens, of one mount that begin with Value
	ByMount                          // all leases of a mount, and all tokens that it gave; Value is its UUID
	ByToken                          // all that a token leaves: children and theirs, leases, belongings; Value is its hash
	ByHolder                         // leases and tokens of an entity (Value), alias or instance, of those that are set
	ByOwner                          // leases and tokens of an owner; Value
	ByHeir                           // dynamic leases of exactly one holder (Value, Alias, Instance) but for those with an id in Kept: it has taken over from who held them
)

func (k SelectorKind) String() string {
	switch k {
	case ByPrefix:
		return "prefix"
	case ByMount:
		return "mount"
	case ByToken:
		return "token"
	case ByHolder:
		return "holder"
	case ByOwner:
		return "owner"
	case ByHeir:
		return "heir"
	}
	return "unknown"
}

// Selector says what a wide revocation hits. CBOR keys are on disk: never renumber, only append.
type Selector struct {
	Kind     SelectorKind `cbor:"1,keyasint"`
	Value    string       `cbor:"2,keyasint,omitempty"`
	Mount    string       `cbor:"3,keyasint,omitempty"` // ByPrefix: UUID of the mount whose path Value begins with
	Alias    string       `cbor:"4,keyasint,omitempty"` // ByHolder, ByHeir: alias id, or accessor of a token without an entity
	Instance string       `cbor:"5,keyasint,omitempty"` // ByHolder, ByHeir
	Others   []string     `cbor:"6,keyasint,omitempty"` // ByHolder, ByHeir: more entities, hit like Value; sorted
	Moved    bool         `cbor:"7,keyasint,omitempty"` // ByMount: it goes on elsewhere, so nobody is thrown out: leases on static secrets lapse, and expose nothing
	Kept     []string     `cbor:"8,keyasint,omitempty"` // ByHeir: sorted
}

// validate refuses what would hit nothing, or everything.
func (s *Selector) validate() error {
	switch s.Kind {
	case ByPrefix:
		if s.Mount == "" || s.Value == "" {
			return fmt.Errorf("lease: a prefix to revoke names no mount")
		}
	case ByHolder:
		if s.Value == "" && s.Alias == "" && s.Instance == "" {
			return fmt.Errorf("lease: a holder to revoke is not named")
		}
	case ByHeir:
		if s.Alias == "" || s.Instance == "" {
			return fmt.Errorf("lease: a holder that takes over is not named")
		}
	case ByMount, ByToken, ByOwner:
		if s.Value == "" {
			return fmt.Errorf("lease: a %s to revoke is not named", s.Kind)
		}
	default:
		return fmt.Errorf("lease: unknown selector")
	}
	return nil
}

// lease reports whether s hits the lease, whenever it was made.
func (s *Selector) lease(l *Lease) bool {
	switch s.Kind {
	case ByPrefix:
		return l.Mount == s.Mount && strings.HasPrefix(l.ID, s.Value)
	case ByMount:
		return l.Mount == s.Value
	case ByHolder:
		return s.entity(l.Holder.Entity) && is(s.Alias, l.Holder.Alias) && is(s.Instance, l.Holder.Instance)
	case ByOwner:
		return l.Owner == s.Value
	case ByHeir:
		_, kept := slices.BinarySearch(s.Kept, l.ID)
		return !kept && l.Kind == Dynamic && s.entity(l.Holder.Entity) && l.Holder.Alias == s.Alias && l.Holder.Instance == s.Instance
	}
	return false
}

// token reports whether s hits the token, whenever it was made.
func (s *Selector) token(t *token.Token) bool {
	switch s.Kind {
	case ByPrefix:
		return t.Mount == s.Mount && strings.HasPrefix(t.Path+"/", s.Value)
	case ByMount:
		return t.Mount == s.Value
	case ByHolder:
		alias := t.Alias
		if alias == "" {
			alias = t.Accessor
		}
		return s.entity(t.Entity) && is(s.Alias, alias) && is(s.Instance, token.InstanceOf(t.Instance))
	case ByOwner:
		return t.Owner == s.Value
	}
	return false
}

// entity reports whether a ByHolder or ByHeir selects the entity.
func (s *Selector) entity(id string) bool {
	if is(s.Value, id) {
		return true
	}
	_, found := slices.BinarySearch(s.Others, id)
	return found
}

// is reports whether got is what was asked for, if anything was.
func is(want, got string) bool { return want == "" || want == got }

// Tomb is a wide revocation: a row that is in force from its commit on, for all that was decided before, however many
// rows that is. The reaper then ends them in chunks; with the last of them the tombstone goes. CBOR keys are on disk: never renumber, only
// append.
type Tomb struct {
	ID       string    `cbor:"-"`
	Position uint64    `cbor:"-"` // of its commit: what was decided on an earlier View is hit
	Selector Selector  `cbor:"1,keyasint"`
	Time     time.Time `cbor:"2,keyasint"`
	Cause    string    `cbor:"3,keyasint"`           // "revoked by request …", "mount disabled", …: goes into leases and audit records
	Forced   bool      `cbor:"4,keyasint,omitempty"` // leases go even if their target fails
}

// NewTomb makes a tombstone with a random id.
func NewTomb(s Selector, cause string, now time.Time, random io.Reader) (*Tomb, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	var b [12]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return nil, fmt.Errorf("lease: no randomness: %w", err)
	}
	return &Tomb{ID: base64.RawURLEncoding.EncodeToString(b[:]), Selector: s, Cause: cause, Time: now}, nil
}

// Two kinds of rows: what must be known to decide whether a lease lives is in store.Tombs; a token's tree dies with the
// token's own row, so that its tombstone is only work to do, in LeaseIdx: "k/", tombstone, token.
var (
	tombRows  = store.MountKey(lessor.RootNamespace, "", "")
	treeRows  = store.MountKey(lessor.RootNamespace, "", "k/")
	tokenRows = store.MountKey(lessor.RootNamespace, "", "")
)

func treeName(id, hash string) string { return treeRows + id + "\x00" + hash }

// Bury puts the tombstone. One ByToken must be in the commit that deletes the token's own row (token.Token.Drop).
func Bury(txn *store.Txn, t *Tomb) {
	txn.Urgent = true
	exact(&t.Time)
	if t.Selector.Kind == ByToken {
		txn.Put(store.LeaseIdx, treeName(t.ID, t.Selector.Value), encode(t))
		return
	}
	txn.Put(store.Tombs, tombRows+t.ID, encode(t))
}

func decodeTomb(row store.Row) (Tomb, error) {
	t := Tomb{Position: row.Version}
	switch row.Table {
	case store.Tombs:
		t.ID = row.Name[len(tombRows):]
	case store.Config:
		t.ID = row.Name[len(pastRows):]
	default:
		t.ID, _, _ = strings.Cut(row.Name[len(treeRows):], "\x00")
	}
	if err := decoding.Unmarshal(row.Value, &t); err != nil {
		return t, fmt.Errorf("lease: damaged row %s: %w", row.Key, err)
	}
	exact(&t.Time)
	return t, nil
}

// hits reports whether the tombstone is about the lease.
func (t *Tomb) hits(l *Lease) bool { return l.Position < t.Position && t.Selector.lease(l) }

func (t *Tomb) hitsToken(k *token.Token) bool { return k.Position < t.Position && t.Selector.token(k) }

// Tombs are the wide revocations under way, but for those of token trees. Immutable.
type Tombs []Tomb

// LoadTombs reads them. The result is true until a commit touches store.Tombs.
func LoadTombs(v store.View) (Tombs, error) {
	var all Tombs
	for row, err := range v.Scan(store.Tombs, tombRows, store.PrefixEnd(tombRows)) {
		if err != nil {
			return nil, err
		}
		t, err := decodeTomb(row)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// Match reports whether one of them hits the lease.
func (ts Tombs) Match(l *Lease) bool {
	for i := range ts {
		if ts[i].hits(l) {
			return true
		}
	}
	return false
}

// MatchToken reports whether one of them hits the token. Those that hit an ancestor are the caller's to ask for.
func (ts Tombs) MatchToken(t *token.Token) bool {
	for i := range ts {
		if ts[i].hitsToken(t) {
			return true
		}
	}
	return false
}
