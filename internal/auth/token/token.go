// Package token is the auth method behind auth/token/: creating, looking up, renewing and revoking lessor's own tokens.
package token

import (
	"context"
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
		{Pattern: "create-orphan", Help: "create a token without a parent", Fields: creation, Sudo: true, Ops: update(b.createOrphan)},
		{Pattern: "create/{role}", Help: "create a token by a token role", Fields: creation, Fold: true, Ops: update(b.createByRole)},
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
		{Pattern: "roles/{role}", Help: "token roles", Fields: roleFields, Exists: roleExists, Fold: true,
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
	ro, _, err := role(r.View, r.Mount.UUID, r.Param("role"))
	if err != nil {
		return nil, err
	}
	if ro == nil {
		return nil, api.Errorf(api.Invalid, "unknown role %s", r.Param("role"))
	}
	return b.make(r, ro, ro.Orphan)
}

// make is the making of a token: what the parent may give, what the role says, what is asked for.
func (b *Backend) make(r *engine.Request, ro *Role, orphan bool) (*engine.Reply, error) {
	parent := r.Principal
	sudo := r.System.Sudo() || parent.Root
	if parent.TokenKind == lessor.Batch {
		return nil, api.Errorf(api.Invalid, "batch tokens cannot create more tokens")
	}
	own := r.System.Caller()
	if own.Limited {
		return nil, api.Errorf(api.Invalid, "restricted use token cannot generate child tokens")
	}
	m := &engine.Mint{
		ID: r.Secret("id"), Name: "token", Metadata: r.Pairs("meta"), NoDefault: r.Bool("no_default_policy"), TTL: r.Dur("ttl"),
		Explicit: r.Dur("explicit_max_ttl"), Period: r.Dur("period"), NumUses: int(r.Int("num_uses")), Renewable: true,
	}
	if m.TTL == 0 {
		m.TTL = r.Dur("lease")
	}
	if r.Has("renewable") {
		m.Renewable = r.Bool("renewable")
	}
	if m.NumUses < 0 {
		return nil, api.Errorf(api.Invalid, "number of uses cannot be negative")
	}
	if name := displayName(r.Str("display_name")); name != "" {
		m.Name = "token-" + name
	}
	if own.Bound != nil && !orphan {
		m.BoundCIDRs = own.Bound // a child is not good from anywhere else
	}
	var warnings []string
	if m.Period > 0 && !sudo {
		return nil, api.Errorf(api.Invalid, "root or sudo privileges required to create periodic token")
	}
	if err := policies(r, ro, sudo, m); err != nil {
		return nil, err
	}
	kind := r.Str("type")
	if ro != nil {
		m.Role = r.Param("role")
		kind = ro.apply(m, kind)
		warnings = append(warnings, ro.warnings(r)...)
		if err := alias(r, ro, m); err != nil {
			return nil, err
		}
	} else {
		switch {
		case r.Has("entity_alias") && r.Str("entity_alias") != "":
			return nil, api.Errorf(api.Invalid, "'entity_alias' is only allowed in combination with token role")
		case r.Bool("no_parent") && !sudo:
			return nil, api.Errorf(api.Invalid, "root or sudo privileges required to create orphan token")
		}
		orphan = orphan || r.Bool("no_parent")
	}
	if !m.ID.Empty() {
		id := m.ID.Reveal()
		switch {
		case !sudo:
			return nil, api.Errorf(api.Invalid, "root or sudo privileges required to specify token id")
		case strings.HasPrefix(id, token.ServicePrefix) || strings.HasPrefix(id, token.BatchPrefix) || strings.HasPrefix(id, "s."):
			return nil, api.Errorf(api.Invalid, "custom token ID cannot have a token type's prefix")
		case !printable(id):
			return nil, api.Errorf(api.Invalid, "custom token ID has at most 256 bytes, and can be written in a header")
		case strings.ContainsAny(id, ". \t\r\n") || len(id) < 8 && !parent.Root:
			return nil, api.Errorf(api.Invalid, "custom token ID cannot contain '.' or white space, and needs 8 characters")
		}
		if _, row, err := token.Lookup(r.View, r.Opener.TokenHash(id)); err != nil || row.Exists() {
			if err != nil {
				return nil, err
			}
			return nil, api.Errorf(api.Invalid, "cannot create a token with a duplicate ID")
		}
	}
	switch kind {
	case "", "service":
	case "batch":
		switch {
		case m.NumUses != 0 || m.Period != 0 || m.Explicit != 0 || !m.ID.Empty():
			return nil, api.Errorf(api.Invalid, "batch tokens cannot have num_uses, period, explicit_max_ttl or a custom id")
		case slices.Contains(m.Policies, token.RootPolicy):
			return nil, api.Errorf(api.Invalid, "batch tokens cannot be root tokens")
		}
		m.Batch = true
	default:
		return nil, api.Errorf(api.Invalid, "invalid token type %q: service or batch", kind)
	}
	if !orphan {
		m.Parent = parent
		if m.Entity == "" {
			m.Entity = parent.Entity
		}
	}
	// A root token without a ttl never expires, but an expiring one cannot make such a token.
	if slices.Contains(m.Policies, token.RootPolicy) {
		if m.TTL == 0 && m.Period == 0 {
			if !own.Expires.IsZero() {
				return nil, api.Errorf(api.Invalid, "expiring root tokens cannot create non-expiring root tokens")
			}
			m.NeverExpires = m.Explicit == 0
		}
	}
	if most := r.Default.MaxTTL; !m.NeverExpires && max(m.TTL, m.Period) > most {
		warnings = append(warnings, lease.CapWarning(max(m.TTL, m.Period), most))
	}
	return &engine.Reply{Mint: m, Warnings: warnings}, nil
}

// policies works out which policies the new token gets, and refuses those that the caller may not give.
func policies(r *engine.Request, ro *Role, sudo bool, m *engine.Mint) error {
	asked := clean(r.List("policies"))
	own := clean(r.System.Caller().Policies)
	if ro != nil {
		return ro.policies(asked, own, m)
	}
	if len(asked) == 0 {
		m.Policies = own
		m.NoDefault = m.NoDefault || !slices.Contains(own, "default")
		return nil
	}
	if slices.Contains(asked, token.RootPolicy) && !r.Principal.Root {
		return api.Errorf(api.Invalid, "root tokens may not be created without parent token being root")
	}
	if !sudo && !r.Principal.Root {
		for _, p := range asked {
			if p != "default" && !slices.Contains(own, p) {
				return api.Errorf(api.Invalid, "child policies must be subset of parent")
			}
		}
		// A parent without default does not hand it on unasked.
		m.NoDefault = m.NoDefault || !slices.Contains(own, "default") && !slices.Contains(asked, "default")
	}
	m.Policies = asked
	return nil
}

// alias finds the entity for a role's entity_alias.
func alias(r *engine.Request, ro *Role, m *engine.Mint) error {
	name := r.Str("entity_alias")
	if name == "" {
		return nil
	}
	if !slices.ContainsFunc(ro.AllowedEntityAliases, func(g string) bool { return glob(g, strings.ToLower(name)) }) {
		return api.Errorf(api.Invalid, "invalid 'entity_alias' value")
	}
	e, _, err := identity.EntityByAlias(r.View, r.Mount.Accessor, name)
	if err != nil {
		return err
	}
	if e == nil {
		return api.Errorf(api.Invalid, "entity_alias %q has no entity yet; create an alias of that name at auth/token first", name)
	}
	m.Entity = e.ID
	return nil
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
	return strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-':
			return c
		}
		return '-'
	}, s)
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
		err = api.Errorf(api.Denied, "invalid accessor")
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
				d["identity_policies"] = s.Policies
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
		return nil, api.Errorf(api.Invalid, "missing token")
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
	ttl := r.Dur("increment")
	if t.Period > 0 {
		ttl = t.Period
	} else if ttl == 0 {
		ttl = t.TTL
	}
	until := r.Now.Add(ttl)
	if end := t.Deadline(); !end.IsZero() && until.After(end) {
		reply.Warnings = append(reply.Warnings, lease.CapWarning(ttl, end.Sub(r.Now)))
		until = end
	}
	earlier := until.Before(t.Expires)
	t.Expires, t.Renewed = until, r.Now
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
	if api.KindOf(err) == api.Denied { // revoking is idempotent
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
