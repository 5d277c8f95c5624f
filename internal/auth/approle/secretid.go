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
	if over(s.Expires, r.Now) {
		return nil, row, nil
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

// sweep looks at no more than limit accessors from a row on, drops secret ids whose time is over, and yields the others.
// It returns how many it dropped, and whether it came to the end.
func sweep(r *engine.Request, txn *store.Txn, from, to string, limit int, yield func(name string)) (dropped int, end bool, err error) {
	begin := len(accessorKey(r, "", "").Name)
	for row, err := range r.View.Scan(store.Engine, from, to) {
		if err != nil {
			return dropped, false, err
		}
		if limit--; limit < 0 {
			return dropped, false, nil
		}
		var a accessor
		if err := auth.Decode(row.Value, &a); err != nil {
			return dropped, false, err
		}
		role, name := row.Name[begin:begin+16], row.Name[begin+16:]
		if !over(a.Expires, r.Now) {
			yield(name)
			continue
		}
		k := secretKey(r, role, a.Hash)
		txn.Delete(k.Table, k.Name)
		txn.Delete(row.Table, row.Name)
		dropped++
	}
	return dropped, true, nil
}

const (
	longest    = 4096  // bytes of a role id or secret id
	neighbours = 32    // accessors that a new secret id looks at, to clear away what is over
	tidied     = 10000 // accessors that one tidy looks at
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
	row, err := r.View.Get(secretKey(r, ro.Key, hash))
	if err != nil {
		return nil, err
	}
	if row.Exists() {
		return nil, api.Errorf(api.Invalid, "SecretID is already registered")
	}
	reply := &engine.Reply{
		Data: map[string]any{
			"secret_id": id, "secret_id_accessor": s.Accessor, "secret_id_ttl": auth.Seconds(capped(r, s.TTL)), "secret_id_num_uses": s.NumUses,
		},
		Shown: []audit.Shown{{Path: "role/" + ro.Name + "/secret-id/" + s.Accessor, Fingerprint: fingerprint(r, id), How: "issued"}},
	}
	txn := &reply.Txn
	txn.Require(roleRow)
	txn.Require(row)
	txn.Put(row.Table, row.Name, auth.Encode(s))
	index := accessorKey(r, ro.Key, s.Accessor)
	txn.Put(index.Table, index.Name, auth.Encode(accessor{hash, s.Expires}))
	_, _, err = sweep(r, txn, index.Name, store.PrefixEnd(accessorKey(r, ro.Key, "").Name), neighbours, func(string) {})
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
	ro, _, err := known(r)
	if err != nil {
		return nil, err
	}
	var names []string
	var swept store.Txn
	all := accessorKey(r, ro.Key, "").Name
	_, _, err = sweep(r, &swept, all, store.PrefixEnd(all), most, func(name string) { names = append(names, name) })
	if err != nil {
		return nil, err
	}
	reply, err := engine.Keys(names)
	if reply != nil && len(swept.Deletes) <= 2*tidied {
		reply.Txn = swept
	}
	return reply, err
}

// tidy clears away the secret ids of all roles whose time is over.
func tidy(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{Status: 202}
	all := accessorKey(r, "", "").Name
	n, end, err := sweep(r, &reply.Txn, all, store.PrefixEnd(all), tidied, func(string) {})
	text := fmt.Sprintf("Removed %d expired secret ids.", n)
	if !end {
		text += fmt.Sprintf(" There are more than %d secret ids; the others are looked at as new ones are made.", tidied)
	}
	reply.Warnings = []string{text}
	return reply, err
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
