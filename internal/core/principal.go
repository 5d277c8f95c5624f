package core

import (
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy/book"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// caller is a principal with what it was derived from.
type caller struct {
	lessor.Principal
	token    *token.Token // nil for an anonymous caller
	row      store.Row    // the token's; zero for batch tokens
	standing *standing    // nil without an entity
	instance string       // what tells running instances of the alias apart, if the token knows
}

// standing is what identity says of an entity.
type standing = identity.Standing

// errToken is the one answer to every token that cannot be used, whatever the reason: it helps nobody who guesses.
var errToken = api.Errorf(api.Unauthenticated, "permission denied: the token is unknown, expired or revoked; log in again")

var (
	errElsewhere = api.Errorf(api.Unauthenticated, "permission denied: the token is not to be used from this address")
	errDisabled  = api.Errorf(api.Unauthenticated, "permission denied: the entity of this token is disabled; an administrator can enable it")
)

// caller finds out who asks: the token, alive with all its ancestors, then the entity behind it and its groups.
// Without a token the caller is anonymous. An error of kind Unauthenticated means that the token is no good; whose it is
// comes with the error, where that is known, for the record and for nothing else.
func (c *Core) caller(v store.View, op *lessor.Op) (*caller, error) {
	if op.Token.Empty() {
		return &caller{}, nil
	}
	t, row, err := c.lookup(v, op.Token)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, errToken
	}
	who := &caller{Principal: *t.Principal(), token: t, row: row, instance: t.Instance}
	live, err := t.Live(v, op.Time)
	if err != nil {
		return nil, err
	}
	if live {
		live, err = c.spared(v, t)
	}
	if err != nil {
		return nil, err
	}
	if !live {
		return who, errToken
	}
	if !t.AllowedFrom(op.Client) {
		return who, errElsewhere
	}
	if t.Entity == "" {
		return who, nil
	}
	return who, c.identify(v, who)
}

// lookup finds the token of an id, whether stored or sealed into itself. nil: there is none.
func (c *Core) lookup(v store.View, id lessor.Secret) (*token.Token, store.Row, error) {
	if !strings.HasPrefix(id.Reveal(), token.BatchPrefix) {
		return token.Lookup(v, c.Keys.TokenHash(id.Reveal()))
	}
	payload, err := c.Keys.OpenToken(id.Reveal())
	if err != nil {
		return nil, store.Row{}, nil
	}
	t, err := token.Decode("", payload)
	if err != nil || t.Cluster != c.Store.Head().Incarnation {
		return nil, store.Row{}, nil
	}
	return t, store.Row{}, nil
}

// identify adds entity and groups to a principal.
func (c *Core) identify(v store.View, who *caller) error {
	s, err := c.standingOf(v, who.token.Entity)
	switch {
	case err != nil:
		return err
	case s == nil:
		return errToken // its entity was deleted
	case s.Entity.Disabled:
		return errDisabled
	}
	who.standing = s
	who.EntityName, who.EntityMeta = s.Entity.Name, s.Entity.Metadata
	who.Aliases, who.Groups = s.Aliases, s.Groups
	who.Identity = s.Policies
	who.Entity = s.Entity.ID
	if i := slices.IndexFunc(s.Aliases, func(a lessor.Alias) bool { return a.ID == who.token.Alias }); i >= 0 {
		who.Alias = s.Aliases[i]
	}
	if len(s.Policies) > 0 {
		who.Policies = slices.Concat(who.Policies, s.Policies)
		slices.Sort(who.Policies)
		who.Policies = slices.Compact(who.Policies)
	}
	return nil
}

// standingOf is what identity says of an entity; nil if there is none.
func (c *Core) standingOf(v store.View, entity string) (*standing, error) {
	return c.standing.get(v, store.Identity, entity, func() (*standing, error) { return identity.Resolve(v, entity) })
}

// ground adds to txn that what the decision relied on is still so when it commits. Reads need none of it: they show one
// consistent state. The mount table, policies and wide revocations are required by table; who changes those seldom pays with a retry
// elsewhere. A revocation does not wait for other revocations: many at once would be in each other's way.
func (who *caller) ground(v store.View, txn *store.Txn) {
	txn.Unchanged = append(txn.Unchanged,
		store.Since{Table: store.Mounts, Position: v.Position()},
		store.Since{Table: store.Policies, Position: v.Position()})
	if who.token == nil {
		return
	}
	if !txn.Urgent {
		txn.Unchanged = append(txn.Unchanged, store.Since{Table: store.Tombs, Position: v.Position()})
	}
	if who.row.Exists() && !touches(txn, who.row.Key) {
		txn.Require(who.row)
	}
	for _, hash := range who.token.Ancestors {
		k := token.Key(hash)
		txn.Present(k.Table, k.Name)
	}
	if who.standing != nil {
		for _, row := range who.standing.Rows {
			if !touches(txn, row.Key) {
				txn.Require(row)
			}
		}
	}
}

// touches reports whether txn itself checks the row already.
func touches(txn *store.Txn, k store.Key) bool {
	return slices.ContainsFunc(txn.Checks, func(c store.Check) bool { return c.Key == k })
}

// spared reports whether no revocation under way hits the token or one of its ancestors.
func (c *Core) spared(v store.View, t *token.Token) (bool, error) {
	if t.Kind == lessor.Batch {
		if live, err := c.batchLives(v, t); err != nil || !live {
			return false, err
		}
	}
	tombs, err := c.tombstones(v)
	if err != nil || len(tombs) == 0 {
		return err == nil, err
	}
	if tombs.MatchToken(t) {
		return false, nil
	}
	for _, hash := range t.Ancestors {
		a, _, err := token.Lookup(v, hash)
		if err != nil || a == nil || tombs.MatchToken(a) {
			return false, err
		}
	}
	return true, nil
}

// batchLives reports whether no wide revocation on record hits a batch token. It has no row that could be deleted: so a
// revocation counts for it long after that has done the rest of its work.
func (c *Core) batchLives(v store.View, t *token.Token) (bool, error) {
	past, err := c.past.get(v, store.Config, "", func() (lease.Tombs, error) { return lease.LoadPast(v) })
	return err == nil && !past.MatchToken(t), err
}

// tombstones are the wide revocations under way.
func (c *Core) tombstones(v store.View) (lease.Tombs, error) {
	return c.tombs.get(v, store.Tombs, "", func() (lease.Tombs, error) { return lease.LoadTombs(v) })
}

// policiesOf are the policies of a new token: what was asked for, with default unless it was declined.
func policiesOf(asked []string, noDefault bool) []string {
	out := make([]string, 0, len(asked)+1)
	for _, p := range asked {
		if p = strings.ToLower(strings.TrimSpace(p)); p != "" {
			out = append(out, p)
		}
	}
	if !noDefault && !slices.Contains(out, token.RootPolicy) {
		out = append(out, book.DefaultPolicy)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
