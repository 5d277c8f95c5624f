// Package token is the auth method behind auth/token/: creating, looking up, renewing and revoking lessor's own tokens.
package token

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy/book"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// Backend is the token method. Settle waits for what revocations leave to the background.
type Backend struct {
	Settle func(ctx context.Context, tomb string) error
}

var creation = []engine.Field{
	{Name: "id", Type: engine.String, Help: "id of the token; needs sudo"},
	{Name: "policies", Type: engine.Strings, Help: "policies; without any, those of the parent"},
	{Name: "meta", Type: engine.Pairs, Help: "metadata, kept with the token"},
	{Name: "no_parent", Type: engine.Bool, Help: "make an orphan; needs sudo"},
	{Name: "no_default_policy", Type: engine.Bool, Help: "leave the policy default out"},
	{Name: "renewable", Type: engine.Bool, Help: "false: never renewable"},
	{Name: "lease", Type: engine.Duration, Help: "the same as ttl"},
	{Name: "ttl", Type: engine.Duration, Help: "time to live"},
	{Name: "explicit_max_ttl", Type: engine.Duration, Help: "end that no renewal goes beyond"},
	{Name: "display_name", Type: engine.String, Help: "name, prefixed with token-"},
	{Name: "num_uses", Type: engine.Int, Help: "uses; 0: unlimited"},
	{Name: "period", Type: engine.Duration, Help: "makes the token periodic; needs sudo"},
	{Name: "type", Type: engine.String, Help: "service or batch"},
	{Name: "entity_alias", Type: engine.String, Help: "alias to create the token for; token roles only"},
}

var (
	accessorField  = []engine.Field{{Name: "accessor", Type: engine.String, Help: "accessor of the token"}}
	tokenField     = []engine.Field{{Name: "token", Type: engine.String, Help: "the token"}}
	incrementField = engine.Field{Name: "increment", Type: engine.Duration, Help: "time from now that is asked for"}
)

type ops = map[lessor.Verb]engine.Handler

// Routes is the method table.
func (b *Backend) Routes() []engine.Route {
	update := func(h engine.Handler) ops { return ops{lessor.Update: h} }
	return []engine.Route{
		{Pattern: "create", Help: "create a token", Fields: creation, Ops: update(b.create)},
		{Pattern: "create-orphan", Help: "create a token without a parent", Fields: creation, Ops: update(b.createOrphan)},
		{Pattern: "create/{role_name}", Help: "create a token by a token role", Fields: creation, Fold: true, Ops: update(b.createByRole)},
		{Pattern: "lookup", Help: "look a token up", Fields: tokenField, Ops: ops{lessor.Read: b.lookup, lessor.Update: b.lookup}},
		{Pattern: "lookup/{token}", Help: "look a token up", Ops: ops{lessor.Read: b.lookup, lessor.Update: b.lookup}},
		{Pattern: "lookup-self", Help: "look the calling token up", Ops: ops{lessor.Read: b.lookupSelf, lessor.Update: b.lookupSelf}},
		{Pattern: "lookup-accessor", Help: "look a token up by its accessor", Fields: accessorField, Ops: update(b.lookupAccessor)},
		{Pattern: "renew", Help: "renew a token", Fields: append([]engine.Field{incrementField}, tokenField...), Ops: update(b.renew)},
		{Pattern: "renew-self", Help: "renew the calling token", Fields: []engine.Field{incrementField}, Ops: update(b.renewSelf)},
		{Pattern: "renew-accessor", Help: "renew a token by its accessor", Fields: append([]engine.Field{incrementField}, accessorField...), Ops: update(b.renewAccessor)},
		{Pattern: "revoke", Help: "revoke a token, its children and leases", Fields: tokenField, Ops: update(b.revoke)},
		{Pattern: "revoke-self", Help: "revoke the calling token", Ops: update(b.revokeSelf)},
		{Pattern: "revoke-accessor", Help: "revoke a token by its accessor", Fields: accessorField, Ops: update(b.revokeAccessor)},
		{Pattern: "revoke-orphan", Help: "revoke a token and leave its children as orphans", Fields: tokenField, Sudo: true, Ops: update(b.revokeOrphan)},
		{Pattern: "accessors", Help: "list the accessors of all tokens", Sudo: true, Ops: ops{lessor.List: b.accessors}},
		{Pattern: "roles", Help: "list token roles", Ops: ops{lessor.List: b.listRoles}},
		{Pattern: "roles/{role_name}", Help: "token roles", Fields: roleFields, Exists: roleExists, Fold: true,
			Ops: ops{lessor.Read: b.readRole, lessor.Create: b.writeRole, lessor.Update: b.writeRole, lessor.Delete: b.deleteRole}},
		{Pattern: "tidy", Help: "clean up what expired; lessor does so by itself", Ops: update(b.tidy)},
	}
}

func (b *Backend) create(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	return b.make(r, nil, false)
}

func (b *Backend) createOrphan(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	return b.make(r, nil, true)
}

func (b *Backend) createByRole(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, _, err := role(r.View, r.Mount.UUID, r.Param("role_name"))
	if err != nil {
		return nil, err
	}
	if ro == nil {
		return nil, api.Errorf(api.Invalid, "unknown role %s", r.Param("role_name"))
	}
	return b.make(r, ro, ro.Orphan)
}

// make is the making of a token: what the parent may give, what the role says, what is asked for.
func (b *Backend) make(r *engine.Request, ro *Role, orphan bool) (*engine.Reply, error) {
	parent, own := r.Principal, r.System.Caller()
	sudo := r.System.Sudo() || parent.Root
	switch {
	case parent.TokenKind == lessor.Batch:
		return nil, api.Errorf(api.Invalid, "batch tokens cannot create more tokens")
	case own.Limited:
		return nil, api.Errorf(api.Invalid, "restricted use token cannot generate child tokens")
	}
	m := &engine.Mint{
		ID: r.Secret("id"), Name: "token", Metadata: r.Pairs("meta"), NoDefault: true, TTL: r.Dur("ttl"), EntityAlias: r.Str("entity_alias"),
		Explicit: r.Dur("explicit_max_ttl"), Period: r.Dur("period"), NumUses: int(r.Int("num_uses")), Renewable: !r.Has("renewable") || r.Bool("renewable"),
	}
	if m.TTL == 0 {
		m.TTL = r.Dur("lease")
	}
	if name := r.Str("display_name"); name != "" {
		m.Name = displayName("token-" + name)
	}
	if own.Bound != nil && !orphan {
		m.BoundCIDRs = own.Bound // a child is not good from anywhere else
	}
	var err error
	if m.Batch, err = batch(r, ro); err != nil {
		return nil, err
	}
	switch {
	case len(m.Name) > longestName:
		return nil, api.Errorf(api.Invalid, "display_name has at most %d bytes: each audit record has it", longestName-len("token-"))
	case m.NumUses < 0:
		return nil, api.Errorf(api.Invalid, "number of uses cannot be negative")
	case m.EntityAlias != "" && ro == nil:
		return nil, api.Errorf(api.Invalid, "'entity_alias' is only allowed in combination with token role")
	case m.EntityAlias != "" && !ro.allows(m.EntityAlias):
		return nil, api.Errorf(api.Invalid, "invalid 'entity_alias' value")
	case !m.ID.Empty() && !sudo:
		return nil, api.Errorf(api.Invalid, "root or sudo privileges required to specify token id")
	}
	ask := ask{asked: r.List("policies"), own: own.Policies, role: ro, sudo: sudo, noDefault: r.Bool("no_default_policy")}
	if m.Policies, err = ask.grant(); err != nil {
		return nil, err
	}
	root := slices.Contains(m.Policies, token.RootPolicy)
	switch {
	case root && m.Batch:
		return nil, api.Errorf(api.Invalid, "batch tokens cannot be root tokens")
	case ro == nil && r.Bool("no_parent") && !sudo:
		return nil, api.Errorf(api.Invalid, "root or sudo privileges required to create orphan token")
	case m.Period > 0 && !sudo:
		return nil, api.Errorf(api.Invalid, "root or sudo privileges required to create periodic token")
	}
	reply := &engine.Reply{Mint: m}
	if ro != nil {
		m.Role = r.Param("role_name")
		reply.Warnings = ro.apply(m)
	} else {
		orphan = orphan || r.Bool("no_parent")
	}
	if !m.ID.Empty() {
		if err := customID(r, m.ID.Reveal()); err != nil {
			return nil, err
		}
	}
	if !orphan {
		m.Parent, m.Entity = parent, parent.Entity
	}
	// A root token without a ttl never expires, but an expiring one cannot make such a token.
	if root && m.TTL == 0 && m.Period == 0 {
		if m.TTL = m.Explicit; m.Explicit == 0 {
			if !own.Expires.IsZero() {
				return nil, api.Errorf(api.Invalid, "expiring root tokens cannot create non-expiring root tokens")
			}
			m.NeverExpires = true
		}
	}
	for _, name := range m.Policies {
		row, err := book.Row(r.View, name)
		if err != nil {
			return nil, err
		}
		if name != token.RootPolicy && !row.Exists() {
			reply.Warnings = append(reply.Warnings, fmt.Sprintf("Policy %q does not exist", name))
		}
	}
	return reply, nil
}

// batch decides which kind of token is made: the role's, if it fixes one, else the one that is asked for, else the role's default.
func batch(r *engine.Request, ro *Role) (bool, error) {
	kind := r.Str("type")
	if ro != nil {
		switch {
		case ro.Type == "service" || ro.Type == "batch":
			kind = ro.Type
		case ro.Type == "default-batch" && kind == "":
			kind = "batch"
		}
	}
	switch kind {
	case "", "service":
		return false, nil
	case "batch":
	default:
		return false, api.Errorf(api.Invalid, "invalid 'token_type' value")
	}
	bad := ""
	switch {
	case r.Dur("explicit_max_ttl") != 0:
		bad = "explicit_max_ttl"
	case r.Int("num_uses") != 0:
		bad = "num_uses"
	case r.Dur("period") != 0:
		bad = "period"
	case r.Str("id") != "":
		bad = "id"
	default:
		return true, nil
	}
	return false, api.Errorf(api.Invalid, "batch tokens cannot have %q set", bad)
}

const longestName = 512

// customID refuses ids that a client chose but nobody could use, or that would be taken for another kind.
func customID(r *engine.Request, id string) error {
	for _, prefix := range []string{token.ServicePrefix, token.BatchPrefix, "s.", "b."} {
		if strings.HasPrefix(id, prefix) {
			return api.Errorf(api.Invalid, "custom token ID cannot have the '%s' prefix", prefix)
		}
	}
	switch {
	case strings.Contains(id, "."):
		return api.Errorf(api.Invalid, "custom token ID cannot have a '.' in the value")
	case !printable(id):
		return api.Errorf(api.Invalid, "custom token ID has at most 256 bytes, and can be written in a header")
	case len(id) < 8 && !r.Principal.Root:
		return api.Errorf(api.Invalid, "custom token ID needs 8 characters at least")
	}
	_, row, err := token.Lookup(r.View, r.Opener.TokenHash(id))
	if err == nil && row.Exists() {
		err = api.Errorf(api.Invalid, "cannot create a token with a duplicate ID")
	}
	return err
}

// ask is what decides the policies of a new token.
type ask struct {
	asked, own []string // what is asked for, and what the caller's own token has
	role       *Role    // nil: none
	sudo       bool     // the caller may give what it does not have
	noDefault  bool
}

// grant decides which policies the token gets, sorted. An error of kind Invalid says why not what was asked for. A role that allows or
// forbids anything decides by that; else a child has no more than its parent, unless the parent has sudo.
func (a ask) grant() ([]string, error) {
	asked, own := clean(a.asked), clean(a.own)
	var final []string
	addDefault := false
	switch {
	case slices.Contains(asked, token.RootPolicy) && !slices.Contains(own, token.RootPolicy):
		return nil, api.Errorf(api.Invalid, "root tokens may not be created without parent token being root")
	case a.role.restricted():
		var err error
		if final, err = a.role.policies(asked, own, a.noDefault); err != nil {
			return nil, err
		}
	case len(asked) == 0:
		final = own
	case !a.sudo:
		for _, p := range asked {
			if !slices.Contains(own, p) {
				return nil, api.Errorf(api.Invalid, "child policies must be subset of parent")
			}
		}
		final, addDefault = asked, slices.Contains(own, book.DefaultPolicy)
	default:
		final, addDefault = asked, true
	}
	final = slices.Clone(final)
	if addDefault {
		final = append(final, book.DefaultPolicy)
	}
	if a.noDefault {
		final = slices.DeleteFunc(final, func(p string) bool { return p == book.DefaultPolicy })
	}
	final = clean(final)
	switch {
	case slices.ContainsFunc(final, book.IsBearer):
		return nil, api.Errorf(api.Invalid, "cannot assign policy %q", final[slices.IndexFunc(final, book.IsBearer)])
	case !slices.Contains(final, token.RootPolicy):
		return final, nil
	case a.role != nil:
		return nil, api.Errorf(api.Invalid, "token roles cannot give the root policy")
	case !slices.Contains(own, token.RootPolicy):
		return nil, api.Errorf(api.Invalid, "root tokens may not be created without parent token being root")
	}
	return []string{token.RootPolicy}, nil
}

func clean(names []string) []string {
	out := []string{}
	for _, n := range names {
		if n = strings.ToLower(strings.TrimSpace(n)); n != "" {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// printable reports whether a token's id can be sent in a header.
func printable(id string) bool {
	return len(id) <= 256 && !strings.ContainsFunc(id, func(c rune) bool { return c <= 0x20 || c >= 0x7f })
}

// displayName keeps letters, digits and dashes.
func displayName(s string) string {
	return strings.TrimSuffix(strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-':
			return c
		}
		return '-'
	}, s), "-")
}

func (b *Backend) lookup(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	id := r.Str("token")
	if id == "" {
		id = r.Param("token")
	}
	if id == "" {
		return b.lookupSelf(ctx, r)
	}
	t, _, err := r.System.Token(lessor.NewSecret(id))
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, api.Errorf(api.Denied, "bad token")
	}
	return about(r, t, lessor.NewSecret(id))
}

// about is data, with a note of whose token was looked up.
func about(r *engine.Request, t *token.Token, id lessor.Secret) (*engine.Reply, error) {
	reply, err := data(r, t, id)
	if err == nil && t.Accessor != "" {
		reply.Note = "token " + t.Accessor
	}
	return reply, err
}

func (b *Backend) lookupSelf(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, _, err := r.System.Token(r.Op.Token)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, api.Errorf(api.Denied, "bad token")
	}
	return data(r, t, r.Op.Token)
}

func (b *Backend) lookupAccessor(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, _, err := byAccessor(r)
	if err != nil {
		return nil, err
	}
	return about(r, t, lessor.Secret{})
}

var errAccessor = api.Errorf(api.Invalid, "invalid accessor")

func byAccessor(r *engine.Request) (*token.Token, store.Row, error) {
	acc := r.Str("accessor")
	if acc == "" {
		return nil, store.Row{}, api.Errorf(api.Invalid, "missing accessor")
	}
	t, row, err := token.ByAccessor(r.View, acc)
	if err != nil {
		return nil, row, err
	}
	if t != nil {
		var live bool
		if live, err = t.Live(r.View, r.Now); err == nil && !live {
			t = nil
		}
	}
	if t == nil && err == nil {
		err = errAccessor
	}
	return t, row, err
}

// data is a token as lookups show it.
func data(r *engine.Request, t *token.Token, id lessor.Secret) (*engine.Reply, error) {
	d := map[string]any{
		"id": id, "accessor": t.Accessor, "policies": t.Policies, "path": t.Path, "meta": t.Metadata, "display_name": t.Name,
		"num_uses": t.NumUses, "orphan": t.Orphan, "creation_time": t.Created.Unix(), "creation_ttl": whole(t.TTL),
		"expire_time": nil, "ttl": whole(t.Left(r.Now)), "explicit_max_ttl": whole(t.Explicit), "entity_id": t.Entity,
		"type": t.Kind.String(), "renewable": t.Renewable, "issue_time": t.Created.Format(time.RFC3339Nano), "owner": t.Owner,
	}
	if t.Owner == "" {
		delete(d, "owner")
	}
	if !t.Expires.IsZero() {
		d["expire_time"] = t.Expires.Format(time.RFC3339Nano)
	}
	if !t.Renewed.IsZero() {
		d["last_renewal"] = t.Renewed.Format(time.RFC3339Nano)
		d["last_renewal_time"] = t.Renewed.Unix()
	}
	if t.Period > 0 {
		d["period"] = whole(t.Period)
	}
	if t.Role != "" && t.Mount == r.Mount.UUID {
		d["role"] = t.Role
	}
	if len(t.Bound) > 0 {
		d["bound_cidrs"] = prefixes(t.Bound)
	}
	if t.Entity != "" {
		s, err := identity.Resolve(r.View, t.Entity)
		if err != nil {
			return nil, err
		}
		if s != nil {
			d["entity_id"] = s.Entity.ID // it may have been merged since
			if len(s.Policies) > 0 {
				d["identity_policies"], d["external_namespace_policies"] = s.Policies, map[string]any{}
			}
		}
	}
	return &engine.Reply{Data: d}, nil
}

func whole(d time.Duration) int64 {
	if d > 0 && d < time.Second {
		return 1
	}
	return int64(d / time.Second)
}

func prefixes(ps []netip.Prefix) []string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
		if p.IsSingleIP() {
			out[i] = p.Addr().String()
		}
	}
	return out
}

func (b *Backend) renew(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	if r.Str("token") == "" {
		return nil, api.Errorf(api.Invalid, "missing token ID")
	}
	return b.renewID(r, r.Secret("token"))
}

func (b *Backend) renewSelf(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return b.renewID(r, r.Op.Token)
}

func (b *Backend) renewID(r *engine.Request, id lessor.Secret) (*engine.Reply, error) {
	t, row, err := r.System.Token(id)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, api.Errorf(api.Invalid, "token not found")
	}
	return extend(r, t, row, id)
}

func (b *Backend) renewAccessor(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, row, err := byAccessor(r)
	if err != nil {
		return nil, err
	}
	return extend(r, t, row, lessor.Secret{})
}

// extend renews a token: a periodic one to its period, others by the increment that is asked for, up to their maximum.
func extend(r *engine.Request, t *token.Token, row store.Row, id lessor.Secret) (*engine.Reply, error) {
	reply := &engine.Reply{}
	if t.Accessor != r.Principal.Accessor {
		reply.Note = "token " + t.Accessor
	}
	switch {
	case t.Kind == lessor.Batch:
		return nil, api.Errorf(api.Invalid, "batch tokens cannot be renewed")
	case !t.Renewable:
		return nil, api.Errorf(api.Invalid, "lease is not renewable")
	}
	terms, err := r.System.Renewal(&reply.Txn, t)
	if err != nil {
		return nil, err
	}
	ttl, warnings, err := terms.Grant(r.Dur("increment"), r.Now)
	if err != nil {
		return nil, err
	}
	reply.Warnings = warnings
	until := r.Now.Add(ttl)
	earlier := until.Before(t.Expires)
	t.Expires, t.Renewed, t.Period, t.Explicit, t.Max = until, r.Now, terms.Period, terms.Explicit, terms.MaxTTL
	if own := r.System.Caller(); own != nil && own.Hash == t.Hash && t.Limited {
		t.NumUses-- // this very call
	}
	if t.Limited && t.NumUses <= 0 { // it was the last one
		reply.Txn.Require(row)
		t.Drop(&reply.Txn)
		if _, err := r.System.Bury(&reply.Txn, lease.Selector{Kind: lease.ByToken, Value: t.Hash}, "its token was used up"); err != nil {
			return nil, err
		}
	} else {
		t.Save(&reply.Txn, row, earlier)
	}
	policies := t.Policies
	var fromIdentity []string
	if t.Entity != "" {
		s, err := identity.Resolve(r.View, t.Entity)
		if err != nil {
			return nil, err
		}
		if s != nil {
			t.Entity = s.Entity.ID // it may have been merged since
			fromIdentity = s.Policies
			policies = clean(slices.Concat(policies, fromIdentity))
		}
	}
	reply.Renewed = &lessor.Auth{
		Token: id, Accessor: t.Accessor, Policies: policies, TokenPolicies: t.Policies, IdentityPolicies: fromIdentity, Metadata: t.Metadata,
		Duration: t.Left(r.Now), Renewable: t.Renewable, Entity: t.Entity, Kind: t.Kind, Orphan: t.Orphan, NumUses: t.NumUses,
	}
	return reply, nil
}

func (b *Backend) revoke(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if r.Str("token") == "" {
		return nil, api.Errorf(api.Invalid, "missing token ID")
	}
	return b.revokeID(r, r.Secret("token"))
}

func (b *Backend) revokeSelf(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return b.revokeID(r, r.Op.Token)
}

func (b *Backend) revokeID(r *engine.Request, id lessor.Secret) (*engine.Reply, error) {
	t, row, err := r.System.Token(id)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return &engine.Reply{}, nil // revoked already
	}
	if t.Kind == lessor.Batch {
		return nil, api.Errorf(api.Invalid, "batch tokens cannot be revoked")
	}
	return b.end(r, t, row)
}

func (b *Backend) revokeAccessor(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, row, err := byAccessor(r)
	if errors.Is(err, errAccessor) { // revoking is idempotent
		return &engine.Reply{Warnings: []string{"No token found with this accessor"}}, nil
	}
	if err != nil {
		return nil, err
	}
	return b.end(r, t, row)
}

// end revokes a token: with its row gone, it and all below it are dead at once. What they left is buried in the background,
// and the answer waits for that.
func (b *Backend) end(r *engine.Request, t *token.Token, row store.Row) (*engine.Reply, error) {
	reply := &engine.Reply{Note: "token " + t.Accessor}
	reply.Txn.Urgent = true
	reply.Txn.Require(row)
	t.Drop(&reply.Txn)
	tomb, err := r.System.Bury(&reply.Txn, lease.Selector{Kind: lease.ByToken, Value: t.Hash}, "token revoked")
	if err != nil {
		return nil, err
	}
	reply.Do = func(ctx context.Context) error { return b.Settle(ctx, tomb) }
	return reply, nil
}

// revokeOrphan revokes a token alone; its children live on as orphans.
func (b *Backend) revokeOrphan(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	id := r.Secret("token")
	if id.Empty() {
		return nil, api.Errorf(api.Invalid, "missing token ID")
	}
	t, row, err := r.System.Token(id)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, api.Errorf(api.Invalid, "token to revoke not found")
	}
	if t.Kind == lessor.Batch {
		return nil, api.Errorf(api.Invalid, "batch tokens cannot be revoked")
	}
	reply := &engine.Reply{Note: "token " + t.Accessor}
	if err := token.Orphan(r.View, &reply.Txn, t); err != nil {
		return nil, err
	}
	rest, err := b.end(r, t, row)
	if err != nil {
		return nil, err
	}
	reply.Txn.Join(&rest.Txn)
	reply.Do = rest.Do
	return reply, nil
}

// mostAccessors bounds one list of accessors.
const mostAccessors = 100_000

func (b *Backend) accessors(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	keys := []string{}
	err := token.Accessors(r.View, "", func(acc, _ string) bool {
		keys = append(keys, acc)
		return len(keys) < mostAccessors
	})
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, &api.Error{Kind: api.NotFound}
	}
	reply := &engine.Reply{Data: map[string]any{"keys": keys}}
	if len(keys) == mostAccessors {
		reply.Warnings = []string{fmt.Sprintf("there are more than the %d accessors listed", mostAccessors)}
	}
	return reply, nil
}

func (b *Backend) tidy(context.Context, *engine.Request) (*engine.Reply, error) {
	return &engine.Reply{Status: 202, Warnings: []string{"Nothing to do: lessor removes what has expired by itself."}}, nil
}
