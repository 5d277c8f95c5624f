package core

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy/book"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// login turns an auth method's proof into a token: entity and alias (made at the first login), then the token's rows. All
// of it, with what the method used up, is one commit.
func (w *walk) login(ctx context.Context, txn *store.Txn, rec *audit.Record, l *engine.Login) (*lessor.Auth, error) {
	now := w.op.Time
	w.trusted(txn)
	t := l.Token
	m := &engine.Mint{
		Name: displayName(w.mount.Path, l.Name), Policies: t.Policies, NoDefault: t.NoDefaultPolicy, Metadata: l.Metadata,
		TTL: t.TTL, Explicit: t.ExplicitMaxTTL, Period: t.Period, NumUses: t.NumUses, Renewable: true, Role: l.Role, BoundCIDRs: t.BoundCIDRs,
	}
	m.Batch = batch(t.Type, w.mount.Config.TokenType)
	switch given := policiesOf(m.Policies, true); {
	case slices.Contains(given, token.RootPolicy):
		return nil, api.Errorf(api.Invalid, "auth methods cannot create root tokens")
	case slices.ContainsFunc(given, book.IsBearer):
		return nil, api.Errorf(api.Invalid, "cannot assign policy %q", given[slices.IndexFunc(given, book.IsBearer)])
	}
	var alias identity.Alias
	var identityPolicies []string
	if l.Alias != "" {
		e, a, policies, err := w.someone(txn, l)
		if err != nil {
			return nil, err
		}
		if e.Disabled {
			return nil, api.Errorf(api.Unauthenticated, "permission denied: the entity of this alias is disabled; an administrator can enable it")
		}
		m.Entity, alias, identityPolicies = e.ID, a, policies
	}
	made, secret, err := w.mintFor(m, now, w.op.Path, token.Lifetime{Default: w.request.Default.TTL, Max: w.request.Default.MaxTTL, MaxTTL: t.MaxTTL})
	if err != nil {
		return nil, err
	}
	made.Alias, made.AliasName, made.Mount, made.Instance = alias.ID, alias.Name, w.mount.UUID, l.Instance
	made.Owner, _ = w.ownerOf(w.op.Path)
	if l.Role != "" {
		made.Owner, _ = w.ownerOf(w.mount.Path + cmp.Or(l.Owned, "role/"+l.Role))
	}
	if err := w.reserveToken(ctx, made); err != nil {
		return nil, err
	}
	if secret, err = w.keep(txn, made, secret); err != nil {
		return nil, err
	}
	rec.Entity, rec.Groups, rec.Owner = made.Entity, nil, made.Owner // who logs in, not who holds a token that came along
	rec.Name, rec.Alias, rec.Accessor, rec.Role = made.Name, alias.Name, made.Accessor, made.Role
	w.counters.logins.Add(1)
	return authOf(made, secret, identityPolicies, now), nil
}

// displayName is the name of tokens that a login gives: where it was made, and the name that the auth method knows.
func displayName(mount, name string) string {
	return strings.TrimSuffix(strings.ReplaceAll(strings.TrimPrefix(mount, "auth/"), "/", "-")+name, "-")
}

// someone finds the entity behind a login, or adds a new one, with the external groups that the auth method names, and tells what
// policies it has from that.
func (w *walk) someone(txn *store.Txn, l *engine.Login) (*identity.Entity, identity.Alias, []string, error) {
	c := identity.NewChange(w.view)
	e, alias, err := c.Arrive(identity.Arrival{
		Mount: w.mount.Accessor, Name: l.Alias, Metadata: l.AliasMeta, Groups: l.Groups, Now: w.op.Time, Random: w.Random,
	})
	if err != nil {
		return nil, alias, nil, err
	}
	s, err := c.Standing(e)
	if err != nil {
		return nil, alias, nil, err
	}
	return e, alias, s.Policies, c.Into(txn)
}

// give makes the token that auth/token/create asks for.
func (w *walk) give(ctx context.Context, txn *store.Txn, rec *audit.Record, m *engine.Mint) (*lessor.Auth, error) {
	path := w.op.Path
	if m.PathSuffix != "" {
		path += "/" + m.PathSuffix
	}
	var alias identity.Alias
	var identityPolicies []string
	if m.EntityAlias != "" {
		e, a, policies, err := w.someone(txn, &engine.Login{Alias: m.EntityAlias})
		if err != nil {
			return nil, err
		}
		if e.Disabled {
			return nil, api.Errorf(api.Denied, "entity from given entity alias is disabled")
		}
		m.Entity, alias, identityPolicies = e.ID, a, policies
	} else if m.Entity != "" && m.Entity == w.who.Entity {
		identityPolicies = w.who.Identity
	}
	made, secret, err := w.mintFor(m, w.op.Time, path, token.Lifetime{Default: w.request.Default.TTL, Max: w.request.Default.MaxTTL})
	if err != nil {
		return nil, err
	}
	if p := w.who.token; m.EntityAlias != "" {
		made.Alias, made.AliasName = alias.ID, alias.Name
	} else if m.Parent != nil && p != nil && m.Entity == w.who.Entity {
		made.Alias, made.AliasName, made.Instance = p.Alias, p.AliasName, p.Instance
	}
	made.Mount = w.mount.UUID
	if made.Owner, _ = w.ownerOf(w.op.Path); m.Role != "" {
		made.Owner, _ = w.ownerOf(w.mount.Path + "roles/" + m.Role)
	}
	if made.Owner == "" && w.who.token != nil {
		made.Owner = w.who.token.Owner
	}
	rec.Owner = made.Owner
	if err := w.reserveToken(ctx, made); err != nil {
		return nil, err
	}
	if secret, err = w.keep(txn, made, secret); err != nil {
		return nil, err
	}
	if rec.Note = "token " + made.Accessor; made.Accessor == "" {
		rec.Note = "batch token"
	}
	return authOf(made, secret, identityPolicies, w.op.Time), nil
}

// mintFor makes a token under a caller. l says what is in force besides what m says.
func (w *walk) mintFor(m *engine.Mint, now time.Time, path string, l token.Lifetime) (*token.Token, lessor.Secret, error) {
	t, secret, warnings, err := w.mintWithin(w.view, m, now, path, l)
	if err != nil {
		return nil, secret, err
	}
	w.reply.Warnings = append(warnings, w.reply.Warnings...)
	if m.Parent != nil && w.who.token != nil {
		t.Orphan = false
		t.Ancestors = w.who.token.Ancestors
		if w.who.token.Hash != "" {
			t.Ancestors = append([]string{w.who.token.Hash}, t.Ancestors...)
		}
	}
	return t, secret, nil
}

// mint makes a token within the server's limits.
func (c *Core) mint(v store.View, m *engine.Mint, now time.Time, path string) (*token.Token, lessor.Secret, error) {
	t, secret, _, err := c.mintWithin(v, m, now, path, token.Lifetime{Default: c.DefaultTTL, Max: c.MaxTTL})
	return t, secret, err
}

// heaviest bounds what is read with each request of a token.
const heaviest = 64 << 10

func weight(t *token.Token) (n int) {
	for _, p := range t.Policies {
		n += len(p)
	}
	for k, v := range t.Metadata {
		n += len(k) + len(v)
	}
	return n
}

// mintWithin makes a token, an orphan still, and its id. A batch token gets its id when it is kept. Warnings tell what was cut of
// what was asked for.
func (c *Core) mintWithin(v store.View, m *engine.Mint, now time.Time, path string, l token.Lifetime) (*token.Token, lessor.Secret, []string, error) {
	t := &token.Token{
		Kind: lessor.Service, Orphan: true, Policies: policiesOf(m.Policies, m.NoDefault), Path: path, Name: m.Name, Metadata: m.Metadata,
		Created: now, Explicit: m.Explicit, Period: m.Period, NumUses: m.NumUses, Limited: m.NumUses > 0, Max: l.MaxTTL,
		Renewable: m.Renewable, Entity: m.Entity, Role: m.Role, Bound: m.BoundCIDRs, Position: v.Position(),
	}
	if weight(t) > heaviest {
		return nil, lessor.Secret{}, nil, api.Errorf(api.Invalid, "the policies and the metadata of a token have at most %d bytes together", heaviest)
	}
	var warnings []string
	if m.NeverExpires {
		t.Renewable, t.Explicit, t.Period, t.Max = false, 0, 0, 0
	} else {
		l.TTL, l.Period, l.Explicit, l.Issued = m.TTL, m.Period, m.Explicit, now
		var err error
		if t.TTL, warnings, err = l.Grant(0, now); err != nil {
			return nil, lessor.Secret{}, nil, err
		}
		t.Expires = now.Add(t.TTL)
	}
	if m.Batch {
		t.NumUses, t.Limited = 0, false // nothing counts them
		t.Kind, t.Renewable, t.Cluster = lessor.Batch, false, c.Store.Head().Incarnation
		t.Salt = make([]byte, 16)
		_, err := c.Random.Read(t.Salt)
		return t, lessor.Secret{}, warnings, err
	}
	secret := m.ID
	var err error
	if secret.Empty() {
		if secret, err = token.NewID(c.Random); err != nil {
			return nil, secret, nil, err
		}
	}
	t.Hash = c.Keys.TokenHash(secret.Reveal())
	t.Accessor, err = token.NewAccessor(c.Random)
	return t, secret, warnings, err
}

// keep puts a service token's rows, or seals a batch token into its id.
func (w *walk) keep(txn *store.Txn, t *token.Token, secret lessor.Secret) (lessor.Secret, error) {
	if t.Kind == lessor.Batch {
		return lessor.NewSecret(w.Keys.SealToken(t.Encode())), lease.Outlast(w.view, txn, t.TTL)
	}
	txn.Unchanged = append(txn.Unchanged, store.Since{Table: store.Tombs, Position: t.Position})
	t.Store(txn)
	return secret, nil
}

// batch decides between service and batch token. A mount that is tuned to one of them gives that whatever a role says; else the
// role decides, and where it says nothing the mount's default.
func batch(role, tuned string) bool {
	switch tuned {
	case "service", "batch":
		return tuned == "batch"
	case "default-batch":
		return role != "service" && role != "default-service"
	}
	return role == "batch" || role == "default-batch"
}

// authOf is the token as its holder learns of it.
func authOf(t *token.Token, secret lessor.Secret, identityPolicies []string, now time.Time) *lessor.Auth {
	all := slices.Concat(t.Policies, identityPolicies)
	slices.Sort(all)
	return &lessor.Auth{
		Token: secret, Accessor: t.Accessor, Policies: slices.Compact(all), TokenPolicies: t.Policies, IdentityPolicies: identityPolicies,
		Metadata: t.Metadata, Duration: t.Left(now), Renewable: t.Renewable, Entity: t.Entity, Kind: t.Kind, Orphan: t.Orphan, NumUses: t.NumUses,
	}
}
