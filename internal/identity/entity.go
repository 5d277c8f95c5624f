package identity

import (
	"context"
	"slices"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/store"
)

// entity finds the entity that a request names, by id or by name; nil: there is none.
func entity(r *engine.Request, c *Change) (*Entity, error) {
	switch id, name := named(r); {
	case id != "":
		return c.Entity(id)
	case name != "":
		return c.entityVia(entityName(name))
	}
	return nil, nil
}

func writeEntity(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c := NewChange(r.View)
	e, err := entity(r, c)
	if err != nil {
		return nil, err
	}
	name, err := renamed(r)
	if err != nil {
		return nil, err
	}
	fresh := e == nil
	if fresh {
		if id, _ := named(r); id != "" {
			return nil, api.Errorf(api.Invalid, "entity not found from id")
		}
		if e, err = c.NewEntity(name, r.Now, r.Random); err != nil {
			return nil, err
		}
	} else if name != "" {
		if other, err := c.entityVia(entityName(name)); err != nil {
			return nil, err
		} else if other != nil && other != e {
			return nil, api.Errorf(api.Invalid, "entity name is already in use")
		}
		e.Name = name
	}
	if r.Has("policies") {
		if e.Policies, err = checkPolicies(r.List("policies")); err != nil {
			return nil, err
		}
	}
	if r.Has("disabled") {
		e.Disabled = r.Bool("disabled")
	}
	if r.Has("metadata") {
		if err := checkMetadata(r.Pairs("metadata")); err != nil {
			return nil, err
		}
		e.Metadata = r.Pairs("metadata")
	}
	e.Updated = r.Now
	if fresh {
		return c.done(map[string]any{"id": e.ID, "name": e.Name, "aliases": nil})
	}
	return c.done(nil)
}

func readEntity(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c := NewChange(r.View)
	e, err := entity(r, c)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, nothing
	}
	return showEntity(r, c, e)
}

func showEntity(r *engine.Request, c *Change, e *Entity) (*engine.Reply, error) {
	s, err := c.Standing(e)
	if err != nil {
		return nil, err
	}
	direct, inherited := []string{}, []string{}
	for _, g := range s.Groups {
		if slices.Contains(e.Groups, g.ID) {
			direct = append(direct, g.ID)
		} else {
			inherited = append(inherited, g.ID)
		}
	}
	m, aliases := mountsOf(r), []any{}
	for i := range e.Aliases {
		a := m.full(&e.Aliases[i], e.ID)
		a["custom_metadata"], a["local"] = pairs(e.Aliases[i].Custom), false
		aliases = append(aliases, a)
	}
	return &engine.Reply{Data: map[string]any{
		"id": e.ID, "name": e.Name, "metadata": pairs(e.Metadata), "policies": append([]string{}, e.Policies...), "disabled": e.Disabled, "aliases": aliases,
		"direct_group_ids": direct, "inherited_group_ids": inherited, "group_ids": append(slices.Clone(direct), inherited...), "merged_entity_ids": names(e.Merged),
		"creation_time": stamp(e.Created), "last_update_time": stamp(e.Updated), "namespace_id": "root",
	}}, nil
}

func deleteEntity(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c := NewChange(r.View)
	e, err := entity(r, c)
	if err != nil || e == nil {
		return &engine.Reply{}, err
	}
	return remove(r, c, e)
}

// mostDeleted bounds the entities that one request deletes.
const mostDeleted = 10_000

func deleteEntities(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ids := sorted(r.List("entity_ids"))
	switch {
	case len(ids) == 0:
		return nil, api.Errorf(api.Invalid, "missing entity ids to delete")
	case len(ids) > mostDeleted:
		return nil, api.Errorf(api.Invalid, "at most %d entities are deleted at once", mostDeleted)
	}
	c := NewChange(r.View)
	var all []*Entity
	for _, id := range ids {
		e, err := c.Entity(id)
		if err != nil {
			return nil, err
		}
		if e != nil {
			all = append(all, e)
		}
	}
	return remove(r, c, all...)
}

// remove takes entities out of their groups and away, and ends all that they hold: tokens and leases.
func remove(r *engine.Request, c *Change, entities ...*Entity) (*engine.Reply, error) {
	var ids []string
	for _, e := range entities {
		if err := c.DropEntity(e); err != nil {
			return nil, err
		}
		ids = append(ids, e.ID)
	}
	reply, err := c.done(nil)
	if err != nil || len(ids) == 0 {
		return reply, err
	}
	_, err = r.System.Bury(&reply.Txn, lease.Selector{Kind: lease.ByHolder, Value: ids[0], Others: ids[1:]}, "entity deleted")
	return reply, err
}

func listEntities(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return list(r, "e", entityInfo(r, func(e *Entity) string { return e.ID }))
}

func listEntityNames(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return list(r, "e", entityInfo(r, func(e *Entity) string { return e.Name }))
}

func entityInfo(r *engine.Request, by func(*Entity) string) func(store.Row, string) (string, string, map[string]any, error) {
	m := mountsOf(r)
	return func(_ store.Row, id string) (string, string, map[string]any, error) {
		e, _, err := EntityByID(r.View, id)
		if err != nil || e == nil {
			return "", "", nil, err
		}
		info := map[string]any{"name": e.Name}
		if len(e.Aliases) > 0 {
			aliases := []any{}
			for i := range e.Aliases {
				aliases = append(aliases, m.brief(&e.Aliases[i]))
			}
			info["aliases"] = aliases
		}
		return by(e), id, info, nil
	}
}

func lookupEntity(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c := NewChange(r.View)
	e, err := find(r, c.Entity,
		func(name string) (*Entity, error) { return c.entityVia(entityName(name)) },
		func(id string) (*Entity, error) { return c.entityVia(aliasID(id)) },
		func(accessor, name string) (*Entity, error) { return c.entityVia(aliasKey(accessor, name)) })
	if err != nil || e == nil {
		return &engine.Reply{}, err
	}
	return showEntity(r, c, e)
}
