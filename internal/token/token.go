// Package token keeps tokens: bearer credentials of lessor itself. A service token is a row under the keyed hash of its
// id, so that the store never knows a token; a batch token is sealed into itself and kept nowhere. Tokens form a tree: a
// token lives while its row and the rows of all its ancestors do, which makes the revocation of a tree one deletion.
package token

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Prefixes of token ids, as Vault's clients and secret scanners know them.
const (
	ServicePrefix = "hvs."
	BatchPrefix   = "hvb."
)

// RootPolicy is the policy that may do everything.
const RootPolicy = "root"

// Token is a row of store.Tokens, or the payload of a batch token. CBOR keys are on disk: never renumber, only append.
type Token struct {
	Hash      string            `cbor:"-"`                     // row's name after the mount prefix; empty for batch tokens
	Accessor  string            `cbor:"1,keyasint,omitempty"`  //
	Kind      lessor.TokenKind  `cbor:"2,keyasint"`            //
	Ancestors []string          `cbor:"3,keyasint,omitempty"`  // hashes, parent first
	Orphan    bool              `cbor:"4,keyasint,omitempty"`  //
	Policies  []string          `cbor:"5,keyasint,omitempty"`  // of the token itself, sorted
	Path      string            `cbor:"6,keyasint"`            // that made it: "auth/approle/login"
	Name      string            `cbor:"7,keyasint,omitempty"`  // display name
	Metadata  map[string]string `cbor:"8,keyasint,omitempty"`  //
	Created   time.Time         `cbor:"9,keyasint"`            //
	Renewed   time.Time         `cbor:"10,keyasint,omitempty"` // last renewal
	Expires   time.Time         `cbor:"11,keyasint,omitempty"` // zero: never (root only)
	TTL       time.Duration     `cbor:"12,keyasint,omitempty"` // as created; what a renewal without increment asks for
	Explicit  time.Duration     `cbor:"13,keyasint,omitempty"` // explicit_max_ttl, from Created
	Max       time.Duration     `cbor:"14,keyasint,omitempty"` // maximum that its role gave it, besides that of its mount
	Period    time.Duration     `cbor:"15,keyasint,omitempty"` //
	NumUses   int               `cbor:"16,keyasint,omitempty"` // left; 0: unlimited
	Limited   bool              `cbor:"17,keyasint,omitempty"` // created with num_uses
	Renewable bool              `cbor:"18,keyasint,omitempty"` //
	Entity    string            `cbor:"19,keyasint,omitempty"` // entity id
	Alias     string            `cbor:"20,keyasint,omitempty"` // alias id that it was given for
	AliasName string            `cbor:"21,keyasint,omitempty"` //
	Role      string            `cbor:"22,keyasint,omitempty"` // role of the auth method, or token role
	Mount     string            `cbor:"23,keyasint,omitempty"` // UUID of the auth mount that gave it
	Bound     []netip.Prefix    `cbor:"24,keyasint,omitempty"` // client addresses it may be used from; empty: any
	Instance  string            `cbor:"25,keyasint,omitempty"` // secret-id accessor or the like
	Salt      []byte            `cbor:"26,keyasint,omitempty"` // batch: makes each one unique
	Owner     string            `cbor:"27,keyasint,omitempty"` //
	Wrapping  bool              `cbor:"28,keyasint,omitempty"` // a response-wrapping token: good for one unwrap, nothing else
	Cluster   uint64            `cbor:"29,keyasint,omitempty"` // batch: incarnation it was made in; a restore voids it
	Position  uint64            `cbor:"30,keyasint,omitempty"` // View position at which it was decided; tombstones compare with it
	Join      bool              `cbor:"31,keyasint,omitempty"` // a join secret: lets one machine join the cluster, nothing else
}

var encoding, decoding = func() (cbor.EncMode, cbor.DecMode) {
	o := cbor.CoreDetEncOptions()
	o.Time = cbor.TimeUnixDynamic
	o.TimeTag = cbor.EncTagNone
	e, err := o.EncMode()
	if err != nil {
		panic(err)
	}
	d, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode() // hashes are raw bytes
	if err != nil {
		panic(err)
	}
	return e, d
}()

// Key is that of the row of the token with the hash.
func Key(hash string) store.Key {
	return store.Key{Table: store.Tokens, Name: store.MountKey(lessor.RootNamespace, "", hash)}
}

func accessorName(accessor string) string {
	return store.MountKey(lessor.RootNamespace, "", "a/", accessor)
}

func childPrefix(parent string) string {
	return store.MountKey(lessor.RootNamespace, "", "c/", parent)
}

func joinName(accessor string) string {
	return store.MountKey(lessor.RootNamespace, "", "j/", accessor)
}

// Encode is the row's value. Times are kept to the microsecond.
func (t *Token) Encode() []byte {
	t.exact()
	b, err := encoding.Marshal(t)
	if err != nil {
		panic(fmt.Sprintf("token: %v", err)) // plain data: a defect if it fails
	}
	return b
}

// Decode reads a row's value.
func Decode(hash string, value []byte) (*Token, error) {
	t := &Token{Hash: hash}
	if err := decoding.Unmarshal(value, t); err != nil {
		return nil, fmt.Errorf("token: damaged row: %w", err)
	}
	t.exact()
	return t, nil
}

// exact makes times what a row says of them.
func (t *Token) exact() {
	for _, at := range []*time.Time{&t.Created, &t.Renewed, &t.Expires} {
		if !at.IsZero() {
			*at = at.Round(time.Microsecond).UTC()
		}
	}
}

// Lookup finds a service token by hash. nil: there is none.
func Lookup(v store.View, hash string) (*Token, store.Row, error) {
	row, err := v.Get(Key(hash))
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	t, err := Decode(hash, row.Value)
	return t, row, err
}

// ByAccessor finds a service token by its accessor. nil: there is none.
func ByAccessor(v store.View, accessor string) (*Token, store.Row, error) {
	idx, err := v.Get(store.Key{Table: store.TokenIdx, Name: accessorName(accessor)})
	if err != nil || !idx.Exists() {
		return nil, idx, err
	}
	return Lookup(v, string(idx.Value))
}

// Accessors yields the accessors of all service tokens, in order, from the one after last.
func Accessors(v store.View, last string, yield func(accessor, hash string) bool) error {
	from := accessorName(last)
	for row, err := range v.Scan(store.TokenIdx, from, store.PrefixEnd(accessorName(""))) {
		if err != nil {
			return err
		}
		_, _, name := store.SplitMountKey(row.Name)
		if acc := strings.TrimPrefix(name, "a/"); acc != last && !yield(acc, string(row.Value)) {
			return nil
		}
	}
	return nil
}

// Children yields the hashes of a token's children.
func Children(v store.View, parent string, yield func(hash string) bool) error {
	return indexed(v, childPrefix(parent), yield)
}

// JoinSecrets yields the accessors of all join secrets, in order.
func JoinSecrets(v store.View, yield func(accessor string) bool) error {
	return indexed(v, joinName(""), yield)
}

// indexed yields what comes after a prefix in the index, in order.
func indexed(v store.View, p string, yield func(rest string) bool) error {
	for row, err := range v.Scan(store.TokenIdx, p, store.PrefixEnd(p)) {
		if err != nil {
			return err
		}
		if !yield(row.Name[len(p):]) {
			return nil
		}
	}
	return nil
}

// Live reports whether the token may be used at now: not expired, uses left, every ancestor's row still there and not
// expired. It does not look at tombstones.
func (t *Token) Live(v store.View, now time.Time) (bool, error) {
	if t.Expired(now) || t.Limited && t.NumUses <= 0 {
		return false, nil
	}
	for _, hash := range t.Ancestors {
		a, _, err := Lookup(v, hash)
		if err != nil {
			return false, err
		}
		if a == nil || a.Expired(now) {
			return false, nil
		}
	}
	return true, nil
}

// Expired reports whether the token's time is over at now.
func (t *Token) Expired(now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }

// AllowedFrom reports whether the token may be used from the address.
func (t *Token) AllowedFrom(client netip.Addr) bool {
	return len(t.Bound) == 0 || slices.ContainsFunc(t.Bound, func(p netip.Prefix) bool { return p.Contains(client.Unmap()) })
}

// IsRoot reports whether the token holds the root policy.
func (t *Token) IsRoot() bool { return slices.Contains(t.Policies, RootPolicy) }

// Left is the time until expiry at now, 0 for a token that never expires.
func (t *Token) Left(now time.Time) time.Duration {
	if t.Expires.IsZero() {
		return 0
	}
	return max(0, t.Expires.Sub(now))
}

// Store adds the rows of a new service token to txn: the token, its accessor, its place under its parent, its expiry.
func (t *Token) Store(txn *store.Txn) {
	k := Key(t.Hash)
	txn.Absent(k.Table, k.Name)
	txn.Put(k.Table, k.Name, t.Encode())
	txn.Put(store.TokenIdx, accessorName(t.Accessor), []byte(t.Hash))
	if len(t.Ancestors) > 0 {
		p := Key(t.Ancestors[0])
		txn.Present(p.Table, p.Name)
		txn.Put(store.TokenIdx, childPrefix(t.Ancestors[0])+t.Hash, nil)
	}
	if t.Join {
		txn.Put(store.TokenIdx, joinName(t.Accessor), nil)
	}
	t.putDue(txn)
}

// Save adds the changed row to txn, required to be still what row was. A later expiry needs no new due row: whoever finds
// the old one looks at the token; an earlier one does.
func (t *Token) Save(txn *store.Txn, row store.Row, earlier bool) {
	txn.Require(row)
	txn.Put(row.Table, row.Name, t.Encode())
	if earlier {
		t.putDue(txn)
	}
}

// Drop adds the deletion of the token's own rows to txn. Children, leases and cubbyhole are for whoever buries it.
func (t *Token) Drop(txn *store.Txn) {
	k := Key(t.Hash)
	txn.Delete(k.Table, k.Name)
	txn.Delete(store.TokenIdx, accessorName(t.Accessor))
	if len(t.Ancestors) > 0 {
		txn.Delete(store.TokenIdx, childPrefix(t.Ancestors[0])+t.Hash)
	}
	if t.Join {
		txn.Delete(store.TokenIdx, joinName(t.Accessor))
	}
}

// Orphan adds to txn that the children of t live on without it: they and all below them lose it, and what is above it, as
// an ancestor.
func Orphan(v store.View, txn *store.Txn, t *Token) error {
	var walk func(parent string, above int) error
	walk = func(parent string, above int) error {
		var children []string
		if err := Children(v, parent, func(h string) bool { children = append(children, h); return true }); err != nil {
			return err
		}
		for _, h := range children {
			c, row, err := Lookup(v, h)
			if err != nil {
				return err
			}
			if c == nil {
				continue
			}
			c.Ancestors = c.Ancestors[:above]
			if above == 0 {
				c.Orphan = true
				txn.Delete(store.TokenIdx, childPrefix(parent)+h)
			}
			c.Save(txn, row, false)
			if err := walk(h, above+1); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(t.Hash, 0)
}

// DueToken marks a row of store.Due as a token's: TimeKey, DueToken, hash.
const DueToken = "t"

func (t *Token) putDue(txn *store.Txn) {
	if !t.Expires.IsZero() {
		txn.Put(store.Due, store.TimeKey(t.Expires)+DueToken+t.Hash, nil)
	}
}

// NewID makes the id of a service token.
func NewID(random io.Reader) (lessor.Secret, error) {
	var b [24]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return lessor.Secret{}, err
	}
	return lessor.NewSecret(ServicePrefix + base64.RawURLEncoding.EncodeToString(b[:])), nil
}

var accessorEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewAccessor makes an accessor: 24 letters and digits, so that it is never taken for a flag on a command line.
func NewAccessor(random io.Reader) (string, error) {
	var b [15]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", err
	}
	return accessorEncoding.EncodeToString(b[:]), nil
}

// InstanceOf names an instance by something that must not be read back from it.
func InstanceOf(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:8])
}

// Principal is who a live token speaks for, before identity is added.
func (t *Token) Principal() *lessor.Principal {
	return &lessor.Principal{
		Entity: t.Entity, DisplayName: t.Name, Token: t.Hash, Accessor: t.Accessor, TokenKind: t.Kind, Role: t.Role,
		Metadata: t.Metadata, Policies: t.Policies, Root: t.IsRoot(),
	}
}
