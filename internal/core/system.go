package core

import (
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/password"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// What follows is engine.System, as handlers see it: the walk's own View, and nothing later.

// Caller is the caller's own token.
func (w *walk) Caller() *token.Token { return w.who.token }

// Holder is who the caller is as the holder of a lease.
func (w *walk) Holder() lease.Holder { return w.holder() }

// Sudo reports whether the caller's policies grant sudo on the request's path.
func (w *walk) Sudo() bool {
	if w.who.Root {
		return true
	}
	acl, err := w.policies.ACL(w.view, &w.who.Principal)
	return err == nil && acl.Sudo(w.op.Path)
}

// Reaches reports whether the caller's policies grant anything at the path or below it.
func (w *walk) Reaches(path string) bool {
	acl, err := w.policies.ACL(w.view, &w.who.Principal)
	return err == nil && acl.Reaches(strings.TrimSuffix(path, "/")+"/")
}

// Resultant is what the caller's policies give, as sys/internal/ui/resultant-acl tells.
func (w *walk) Resultant() (map[string]any, error) {
	acl, err := w.policies.ACL(w.view, &w.who.Principal)
	if err != nil {
		return nil, err
	}
	exact, glob, root := acl.Resultant()
	if root {
		return map[string]any{"root": true, "chroot_namespace": ""}, nil
	}
	tell := func(from map[string][]string) map[string]any {
		out := make(map[string]any, len(from))
		for pattern, names := range from {
			out[pattern] = map[string]any{"capabilities": names}
		}
		return out
	}
	return map[string]any{"exact_paths": tell(exact), "glob_paths": tell(glob), "root": false, "chroot_namespace": ""}, nil
}

// Capabilities are what a token may do at a path.
func (w *walk) Capabilities(t *token.Token, path string) ([]string, error) {
	who := w.who
	if t != who.token {
		who = &caller{Principal: *t.Principal(), token: t, instance: t.Instance}
		if t.Entity != "" {
			if err := w.identify(w.view, who); err != nil {
				return nil, err
			}
		}
	}
	acl, err := w.policies.ACL(w.view, &who.Principal)
	if err != nil {
		return nil, err
	}
	return acl.Capabilities(path), nil
}

// Token finds a live token by its id.
func (w *walk) Token(id lessor.Secret) (*token.Token, store.Row, error) {
	if id.Empty() {
		return nil, store.Row{}, nil
	}
	t, row, err := w.lookup(w.view, id)
	if err != nil || t == nil {
		return nil, row, err
	}
	live, err := t.Live(w.view, w.op.Time)
	if err == nil && live {
		live, err = w.spared(w.view, t)
	}
	if err != nil || !live {
		return nil, row, err
	}
	return t, row, nil
}

// Password makes a password by a stored password policy, or by the built-in one.
func (w *walk) Password(name string) (lessor.Secret, error) { return w.password(w.view, name) }

func (c *Core) password(v store.View, name string) (lessor.Secret, error) {
	p := password.Default
	if name != "" {
		row, err := v.Get(password.Key(name))
		if err != nil {
			return lessor.Secret{}, err
		}
		if !row.Exists() {
			return lessor.Secret{}, api.Errorf(api.Invalid, "there is no password policy %q: write it at sys/policies/password/%s", name, name)
		}
		if p, err = password.Parse(string(row.Value)); err != nil {
			return lessor.Secret{}, err
		}
	}
	return p.Generate(c.Random)
}

// Bury puts a tombstone on all that the selector matches so far.
func (w *walk) Bury(txn *store.Txn, s lease.Selector, cause string) (string, error) {
	return w.bury(txn, s, cause, false)
}

// BuryForced is Bury, but leases go even if their target fails.
func (w *walk) BuryForced(txn *store.Txn, s lease.Selector, cause string) (string, error) {
	return w.bury(txn, s, cause, true)
}

func (w *walk) bury(txn *store.Txn, s lease.Selector, cause string, forced bool) (string, error) {
	if err := w.merged(&s); err != nil {
		return "", err
	}
	t, err := lease.NewTomb(s, cause+" by request "+w.op.ID, w.op.Time, w.Random)
	if err != nil {
		return "", api.Errorf(api.Invalid, "this would revoke nothing in particular: %w", err)
	}
	t.Forced = forced
	lease.Bury(txn, t)
	if w.hitsTokens(s) {
		lease.Remember(txn, t)
	}
	w.tombstone = t.ID
	return t.ID, nil
}

// merged makes a selector by entity hit those that were merged into it, too: tokens and leases from before name them.
func (w *walk) merged(s *lease.Selector) error {
	if s.Kind != lease.ByHolder && s.Kind != lease.ByHeir || s.Value == "" {
		return nil
	}
	others := slices.Clone(s.Others)
	for _, id := range append([]string{s.Value}, s.Others...) {
		e, _, err := identity.EntityByID(w.view, id)
		if err != nil {
			return err
		}
		if e != nil {
			others = append(others, e.Merged...)
		}
	}
	slices.Sort(others)
	s.Others = slices.Compact(others)
	return nil
}

// hitsTokens reports whether a selector may hit tokens by themselves, not by their rows.
func (w *walk) hitsTokens(s lease.Selector) bool {
	switch s.Kind {
	case lease.ByToken, lease.ByHeir:
		return false // all that depend on a token look for its row; who takes over has nothing against the tokens of before
	case lease.ByPrefix:
		return strings.HasPrefix(s.Value, "auth/")
	case lease.ByMount:
		e := w.mounts.ByUUID(s.Value)
		return e == nil || e.Class == mount.Auth
	}
	return true
}

// Renewal asks the auth method that gave a token on which terms it may be renewed now.
func (w *walk) Renewal(txn *store.Txn, t *token.Token) (token.Lifetime, error) {
	terms := token.Lifetime{Default: w.DefaultTTL, Max: w.MaxTTL, TTL: t.TTL, MaxTTL: t.Max, Period: t.Period, Explicit: t.Explicit, Issued: t.Created}
	m := w.mounts.ByUUID(t.Mount)
	if m == nil {
		return terms, nil
	}
	l := w.limits(m)
	terms.Default, terms.Max = l.TTL, l.MaxTTL
	method, ok := w.Backends[m.Backend()].(engine.Renewer)
	if !ok {
		return terms, nil
	}
	r := &engine.Request{
		Op: w.op, Verb: w.op.Verb, Principal: &w.who.Principal, Mount: m, View: w.view, Opener: w.Keys, Now: w.op.Time, Random: w.Random,
		Default: l, System: w,
	}
	return terms, method.Renew(r, txn, t, &terms)
}

// EntityID finds an entity by id or name. That of an entity which was merged leads to the one that took it in.
func (w *walk) EntityID(idOrName string) (string, error) {
	e, _, err := identity.Survivor(w.view, idOrName)
	if err == nil && e == nil {
		e, _, err = identity.EntityByName(w.view, idOrName)
	}
	switch {
	case err != nil:
		return "", err
	case e == nil:
		return "", api.Errorf(api.Invalid, "there is no entity with the id or name %q", idOrName)
	}
	return e.ID, nil
}
