package approle

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// secretID is what is kept of a secret id: a row of store.Secrets, found by its keyed hash. CBOR keys are on disk: never
// renumber, only append.
type secretID struct {
	Accessor string            `cbor:"1,keyasint"`
	NumUses  int               `cbor:"2,keyasint,omitempty"` // logins left; 0: unlimited, since the last one removes the row
	TTL      time.Duration     `cbor:"3,keyasint,omitempty"`
	Created  time.Time         `cbor:"4,keyasint"`
	Expires  time.Time         `cbor:"5,keyasint"` // zero: never
	Updated  time.Time         `cbor:"6,keyasint"`
	Metadata map[string]string `cbor:"7,keyasint,omitempty"`
	Bound    []netip.Prefix    `cbor:"8,keyasint,omitempty"` // addresses that it may log in from
	Token    []netip.Prefix    `cbor:"9,keyasint,omitempty"` // addresses that its tokens may be used from
}

// accessor is a row of store.Engine that leads from a secret id's accessor to its row.
type accessor struct {
	Hash    string    `cbor:"1,keyasint"`
	Expires time.Time `cbor:"2,keyasint"`
}

// newKey makes a role's key.
func newKey(random io.Reader) (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("approle: no randomness: %w", err)
	}
	return string(b[:]), nil
}

func secretKey(r *engine.Request, role, hash string) store.Key {
	return store.Key{Table: store.Secrets, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "s/", role, hash)}
}

func accessorKey(r *engine.Request, role, name string) store.Key {
	return store.Key{Table: store.Engine, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "a/", role, name)}
}

// secretIDs are the ranges of all that the role's secret ids have.
func (ro *role) secretIDs(r *engine.Request) []store.Range {
	var all []store.Range
	for _, k := range []store.Key{secretKey(r, ro.Key, ""), accessorKey(r, ro.Key, "")} {
		all = append(all, store.Range{Table: k.Table, From: k.Name, To: store.PrefixEnd(k.Name)})
	}
	return all
}

func over(expires, now time.Time) bool { return !expires.IsZero() && !now.Before(expires) }

// find reads the secret id with this hash; nil if there is none, or if its time is over.
func (ro *role) find(r *engine.Request, hash string) (*secretID, store.Row, error) {
	s, row, err := ro.kept(r, hash)
	if s != nil && over(s.Expires, r.Now) {
		s = nil
	}
	return s, row, err
}

// kept reads the secret id with this hash, even if its time is over; nil if there is none.
func (ro *role) kept(r *engine.Request, hash string) (*secretID, store.Row, error) {
	row, err := r.View.Get(secretKey(r, ro.Key, hash))
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	value, err := r.Opener.Open(r.Grant, row)
	if err != nil {
		return nil, row, err
	}
	s := &secretID{}
	if err := auth.Decode(value.Reveal(), s); err != nil {
		return nil, row, err
	}
	return s, row, nil
}

// findAccessor reads the secret id with this accessor.
func (ro *role) findAccessor(r *engine.Request, name string) (*secretID, store.Row, error) {
	row, err := r.View.Get(accessorKey(r, ro.Key, name))
	if err != nil {
		return nil, row, err
	}
	if !row.Exists() {
		return nil, row, unknownAccessor(name)
	}
	var a accessor
	if err := auth.Decode(row.Value, &a); err != nil {
		return nil, row, err
	}
	s, row, err := ro.find(r, a.Hash)
	if err == nil && s == nil {
		err = unknownAccessor(name)
	}
	return s, row, err
}

func unknownAccessor(name string) error {
	return api.Errorf(api.NotFound, "failed to find accessor entry for secret_id_accessor: %q", name)
}

// drop removes a secret id.
func (ro *role) drop(r *engine.Request, txn *store.Txn, s *secretID, row store.Row) {
	txn.Delete(row.Table, row.Name)
	k := accessorKey(r, ro.Key, s.Accessor)
	txn.Delete(k.Table, k.Name)
}

// sweep looks at no more than limit accessors of a mount from a row on, drops secret ids whose time is over, and yields the others. next
// is where to go on; "" if it came to the end.
func sweep(v store.View, txn *store.Txn, m *mount.Entry, from, to string, now time.Time, limit int, yield func(name string)) (next string, err error) {
	begin := len(store.MountKey(m.Namespace, m.UUID, "a/"))
	for row, err := range v.Scan(store.Engine, from, to) {
		if err != nil {
			return "", err
		}
		if limit--; limit < 0 {
			return row.Name, nil
		}
		var a accessor
		if err := auth.Decode(row.Value, &a); err != nil {
			return "", err
		}
		role, name := row.Name[begin:begin+16], row.Name[begin+16:]
		if !over(a.Expires, now) {
			yield(name)
			continue
		}
		txn.Require(row) // who registers the same secret id again drops it first
		txn.Delete(row.Table, row.Name)
		txn.Delete(store.Secrets, store.MountKey(m.Namespace, m.UUID, "s/", role, a.Hash))
	}
	return "", nil
}

// Tidy clears away the secret ids of all roles whose time is over.
func (Backend) Tidy(v store.View, txn *store.Txn, m *mount.Entry, from string, now time.Time) (next string, err error) {
	all := store.MountKey(m.Namespace, m.UUID, "a/")
	if from == "" {
		from = all
	}
	return sweep(v, txn, m, from, store.PrefixEnd(all), now, tidied, func(string) {})
}

const (
	longest    = 4096 // bytes of a role id or secret id
	neighbours = 32   // accessors that a new secret id looks at, to clear away what is over
	tidied     = 2000 // accessors that one commit of a tidy looks at
	most       = 1 << 31
)

var secretIDFields = []engine.Field{
	{Name: "metadata", Type: engine.Pairs, Help: "metadata of its tokens: JSON, or a list of key=value"},
	{Name: "cidr_list", Type: engine.Strings, Help: "addresses that it may log in from; within those of the role"},
	{Name: "token_bound_cidrs", Type: engine.Strings, Help: "addresses that its tokens may be used from; within those of the role"},
	{Name: "num_uses", Type: engine.Int, Help: "logins that it is good for; not more than the role says"},
	{Name: "ttl", Type: engine.Duration, Help: "how long it is good; not longer than the role says"},
}

func createSecretID(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	id, err := auth.NewUUID(r.Random)
	if err != nil {
		return nil, err
	}
	return register(r, lessor.NewSecret(id))
}

func customSecretID(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	id := r.Secret("secret_id")
	switch {
	case id.Empty():
		return nil, api.Errorf(api.Invalid, "missing secret_id")
	case len(id.Reveal()) > longest:
		return nil, api.Errorf(api.Invalid, "secret_id is longer than maximum of %d bytes", longest)
	}
	return register(r, id)
}

// register keeps a secret id of the role that the path names.
func register(r *engine.Request, id lessor.Secret) (*engine.Reply, error) {
	ro, roleRow, err := known(r)
	if err != nil {
		return nil, err
	}
	if !ro.BindSecretID {
		return nil, api.Errorf(api.Invalid, "bind_secret_id is not set on the role")
	}
	s, err := ro.terms(r)
	if err != nil {
		return nil, err
	}
	if s.Accessor, err = auth.NewUUID(r.Random); err != nil {
		return nil, err
	}
	hash := r.Opener.TokenHash(id.Reveal())
	before, row, err := ro.kept(r, hash)
	if err != nil {
		return nil, err
	}
	if before != nil && !over(before.Expires, r.Now) {
		return nil, api.Errorf(api.Invalid, "SecretID is already registered")
	}
	reply := &engine.Reply{
		Accessor: s.Accessor,
		Data: map[string]any{
			"secret_id": id, "secret_id_accessor": s.Accessor, "secret_id_ttl": auth.Seconds(capped(r, s.TTL)), "secret_id_num_uses": s.NumUses,
		},
		Shown: []audit.Shown{{Path: "role/" + ro.Name + "/secret-id/" + s.Accessor, Fingerprint: fingerprint(r, id), How: "issued"}},
	}
	txn := &reply.Txn
	txn.Require(roleRow)
	txn.Require(row)
	txn.Put(row.Table, row.Name, auth.Encode(s))
	if before != nil { // its time is over: its accessor must not lead to the new one
		old := accessorKey(r, ro.Key, before.Accessor)
		txn.Delete(old.Table, old.Name)
	}
	index := accessorKey(r, ro.Key, s.Accessor)
	txn.Put(index.Table, index.Name, auth.Encode(accessor{hash, s.Expires}))
	if before != nil {
		return reply, nil
	}
	_, err = sweep(r.View, txn, r.Mount, index.Name, store.PrefixEnd(accessorKey(r, ro.Key, "").Name), r.Now, neighbours, func(string) {})
	return reply, err
}

func fingerprint(r *engine.Request, id lessor.Secret) []byte {
	return r.Opener.Fingerprint(r.Mount.UUID, "secret-id", []byte(id.Reveal()))
}

// capped is how long a secret id with this ttl is good.
func capped(r *engine.Request, ttl time.Duration) time.Duration { return min(ttl, r.Default.MaxTTL) }

// terms are those of a new secret id: what the client sent, within what the role allows.
func (ro *role) terms(r *engine.Request) (*secretID, error) {
	s := &secretID{NumUses: ro.SecretIDNumUses, TTL: ro.SecretIDTTL, Created: r.Now, Updated: r.Now, Metadata: r.Pairs("metadata")}
	var err error
	if s.Bound, err = auth.Prefixes("cidr_list", r.List("cidr_list")); err != nil {
		return nil, err
	}
	if s.Token, err = auth.Prefixes("token_bound_cidrs", r.List("token_bound_cidrs")); err != nil {
		return nil, err
	}
	if !auth.Inside(ro.SecretIDBound, s.Bound) || !auth.Inside(ro.Token.BoundCIDRs, s.Token) {
		return nil, notInside()
	}
	if r.Has("num_uses") {
		n := r.Int("num_uses")
		switch {
		case n < 0 || n > most:
			return nil, api.Errorf(api.Invalid, "num_uses cannot be negative")
		case ro.SecretIDNumUses > 0 && (n == 0 || n > int64(ro.SecretIDNumUses)):
			return nil, api.Errorf(api.Invalid, "num_uses cannot be higher than the role's secret_id_num_uses")
		}
		s.NumUses = int(n)
	}
	if r.Has("ttl") {
		s.TTL = r.Dur("ttl")
		if ro.SecretIDTTL > 0 && (s.TTL == 0 || s.TTL > ro.SecretIDTTL) {
			return nil, api.Errorf(api.Invalid, "ttl cannot be longer than the role's secret_id_ttl")
		}
	}
	if s.TTL > 0 {
		s.Expires = r.Now.Add(capped(r, s.TTL))
	}
	return s, nil
}

func notInside() error {
	return api.Errorf(api.Invalid, "failed to verify subset relationship between CIDR blocks on the role and CIDR blocks on the secret ID")
}

func listSecretIDs(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, _, err := named(r)
	if err != nil {
		return nil, err
	}
	if ro == nil {
		return nil, api.Errorf(api.Invalid, "role %q does not exist", r.Param("role_name"))
	}
	var names []string
	all := accessorKey(r, ro.Key, "").Name
	_, err = sweep(r.View, &store.Txn{}, r.Mount, all, store.PrefixEnd(all), r.Now, most, func(name string) { names = append(names, name) })
	if err != nil {
		return nil, err
	}
	return engine.Keys(names)
}

// tidy asks for expired secret ids to be cleared away now, rather than within the hour.
func tidy(context.Context, *engine.Request) (*engine.Reply, error) {
	return &engine.Reply{Status: 202, Tidy: true, Warnings: []string{"Tidy operation successfully started. What it removes is in the audit trail."}}, nil
}

// data is the secret id as clients see it.
func (s *secretID) data() map[string]any {
	metadata := s.Metadata
	if metadata == nil {
		metadata = map[string]string{}
	}
	return map[string]any{
		"secret_id_accessor": s.Accessor, "secret_id_num_uses": s.NumUses, "secret_id_ttl": auth.Seconds(s.TTL),
		"creation_time": s.Created, "expiration_time": s.Expires, "last_updated_time": s.Updated, "metadata": metadata,
		"cidr_list": append([]string{}, blocks(s.Bound)...), "token_bound_cidrs": append([]string{}, blocks(s.Token)...),
	}
}

// sent is the parameter of that name, which must be there.
func sent(r *engine.Request, name string) (string, error) {
	v := r.Str(name)
	if v == "" {
		return "", api.Errorf(api.Invalid, "missing %s", name)
	}
	return v, nil
}

// bySecretID does something with the secret id that the client sent; with one that is not there, nothing.
func bySecretID(do func(r *engine.Request, ro *role, s *secretID, row store.Row) *engine.Reply) engine.Handler {
	return func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
		id, err := sent(r, "secret_id")
		if err != nil {
			return nil, err
		}
		ro, _, err := known(r)
		if err != nil {
			return nil, err
		}
		s, row, err := ro.find(r, r.Opener.TokenHash(id))
		if err != nil || s == nil {
			return &engine.Reply{}, err
		}
		return do(r, ro, s, row), nil
	}
}

// byAccessor does something with the secret id whose accessor the client sent.
func byAccessor(do func(r *engine.Request, ro *role, s *secretID, row store.Row) *engine.Reply) engine.Handler {
	return func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
		name, err := sent(r, "secret_id_accessor")
		if err != nil {
			return nil, err
		}
		ro, _, err := known(r)
		if err != nil {
			return nil, err
		}
		s, row, err := ro.findAccessor(r, name)
		if err != nil {
			return nil, err
		}
		return do(r, ro, s, row), nil
	}
}

func lookup(_ *engine.Request, _ *role, s *secretID, _ store.Row) *engine.Reply {
	return &engine.Reply{Data: s.data()}
}

func destroy(r *engine.Request, ro *role, s *secretID, row store.Row) *engine.Reply {
	reply := &engine.Reply{Shown: []audit.Shown{{Path: "role/" + ro.Name + "/secret-id/" + s.Accessor, How: "destroyed"}}}
	ro.drop(r, &reply.Txn, s, row)
	return reply
}

// use takes one use off a secret id that a login rests on.
func (ro *role) use(r *engine.Request, txn *store.Txn, s *secretID, row store.Row) {
	txn.Require(row)
	switch s.NumUses {
	case 0:
	case 1:
		ro.drop(r, txn, s, row)
	default:
		after := *s
		after.NumUses, after.Updated = s.NumUses-1, r.Now
		txn.Put(row.Table, row.Name, auth.Encode(after))
	}
}

// tokenBound are the addresses that tokens of a login may be used from.
func tokenBound(ro *role, s *secretID) []netip.Prefix {
	if s != nil && len(s.Token) > 0 {
		return slices.Clone(s.Token)
	}
	return ro.Token.BoundCIDRs
}
