package identity

import (
	"context"
	"maps"
	"slices"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/store"
)

// alias is that of the entity with the id; -1 if it is not there.
func (e *Entity) alias(id string) int {
	return slices.IndexFunc(e.Aliases, func(a Alias) bool { return a.ID == id })
}

// at is the entity's alias at a mount; -1 if there is none.
func (e *Entity) at(mount string) int {
	return slices.IndexFunc(e.Aliases, func(a Alias) bool { return a.Mount == mount })
}

// aliased finds the entity that has the alias with the id; nil: there is none.
func aliased(c *Change, id string) (*Entity, *Alias, error) {
	e, err := c.entityVia(aliasID(id))
	if err != nil || e == nil {
		return nil, nil, err
	}
	if i := e.alias(id); i >= 0 {
		return e, &e.Aliases[i], nil
	}
	return nil, nil, nil
}

func writeAlias(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	id, target := r.Param("id"), r.Str("canonical_id")
	if id == "" {
		id = r.Str("id")
	}
	if target == "" {
		target = r.Str("entity_id")
	}
	name, accessor := r.Str("name"), r.Str("mount_accessor")
	if err := checkMetadata(r.Pairs("custom_metadata")); err != nil {
		return nil, err
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	c := NewChange(r.View)
	if id != "" {
		e, a, err := aliased(c, id)
		if err != nil {
			return nil, err
		}
		if a == nil {
			return nil, api.Errorf(api.Invalid, "invalid alias ID provided")
		}
		return updateAlias(r, c, e, a, target)
	}
	if name == "" || accessor == "" {
		return nil, api.Errorf(api.Invalid, "'id' or 'mount_accessor' and 'name' must be provided")
	}
	if err := mountsOf(r).check(accessor); err != nil {
		return nil, err
	}
	e, err := c.entityVia(aliasKey(accessor, name))
	if err != nil {
		return nil, err
	}
	if e != nil {
		return updateAlias(r, c, e, &e.Aliases[e.at(accessor)], target)
	}
	return createAlias(r, c, target)
}

func createAlias(r *engine.Request, c *Change, target string) (*engine.Reply, error) {
	var e *Entity
	var err error
	if target == "" {
		e, err = c.NewEntity("", r.Now, r.Random)
	} else {
		e, err = c.Entity(target)
	}
	switch {
	case err != nil:
		return nil, err
	case e == nil:
		return nil, api.Errorf(api.Invalid, "invalid canonical ID")
	case e.at(r.Str("mount_accessor")) >= 0:
		return nil, api.Errorf(api.Invalid, "Alias already exists for requested entity and mount accessor")
	}
	id, err := NewID(r.Random)
	if err != nil {
		return nil, err
	}
	e.Aliases = append(e.Aliases, Alias{
		ID: id, Name: r.Str("name"), Mount: r.Str("mount_accessor"), Custom: r.Pairs("custom_metadata"), Created: r.Now, Updated: r.Now,
	})
	e.Updated = r.Now
	return c.done(map[string]any{"id": id, "canonical_id": e.ID})
}

// updateAlias changes what the client sent of an alias: its name, its mount, its metadata, its entity.
func updateAlias(r *engine.Request, c *Change, e *Entity, a *Alias, target string) (*engine.Reply, error) {
	after := *a
	if name := r.Str("name"); name != "" {
		after.Name = name
	}
	if accessor := r.Str("mount_accessor"); accessor != "" {
		after.Mount = accessor
	}
	if r.Has("custom_metadata") {
		after.Custom = r.Pairs("custom_metadata")
	}
	if target == "" {
		target = e.ID
	}
	if after.Name == a.Name && after.Mount == a.Mount && maps.Equal(after.Custom, a.Custom) && target == e.ID {
		return &engine.Reply{}, nil
	}
	if after.Mount != a.Mount || after.Name != a.Name {
		if err := mountsOf(r).check(after.Mount); err != nil {
			return nil, err
		}
		idx, err := r.View.Get(aliasKey(after.Mount, after.Name))
		if err != nil {
			return nil, err
		}
		if idx.Exists() && aliasKey(after.Mount, after.Name) != aliasKey(a.Mount, a.Name) {
			return nil, api.Errorf(api.Invalid, "alias with combination of mount accessor and name already exists")
		}
	}
	to := e
	if target != e.ID {
		var err error
		if to, err = c.Entity(target); err != nil {
			return nil, err
		}
		if to == nil {
			return nil, api.Errorf(api.Invalid, "given 'canonical_id' is not associated with an entity")
		}
		if to.at(after.Mount) >= 0 {
			return nil, api.Errorf(api.Invalid, "Alias cannot be updated as the given entity already has an alias for this mount ")
		}
	} else if after.Mount != a.Mount && e.at(after.Mount) >= 0 {
		return nil, api.Errorf(api.Invalid, "Alias cannot be updated as the entity already has an alias for the given 'mount_accessor' ")
	}
	after.Updated, e.Updated, to.Updated = r.Now, r.Now, r.Now
	if i := e.alias(a.ID); to == e {
		e.Aliases[i] = after
	} else {
		e.Aliases, to.Aliases = slices.Delete(e.Aliases, i, i+1), append(to.Aliases, after)
	}
	return c.done(map[string]any{"id": after.ID, "canonical_id": to.ID})
}

func readAlias(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	e, a, err := aliased(NewChange(r.View), r.Param("id"))
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, nothing
	}
	return &engine.Reply{Data: mountsOf(r).read(a, e.ID)}, nil
}

func deleteAlias(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c := NewChange(r.View)
	e, a, err := aliased(c, r.Param("id"))
	if err != nil || a == nil {
		return &engine.Reply{}, err
	}
	i := e.alias(a.ID)
	e.Aliases, e.Updated = slices.Delete(e.Aliases, i, i+1), r.Now
	return c.done(nil)
}

func listAliases(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	m := mountsOf(r)
	return list(r, "i", func(row store.Row, id string) (string, string, map[string]any, error) {
		e, _, err := EntityByID(r.View, string(row.Value))
		if err != nil || e == nil || e.alias(id) < 0 {
			return "", "", nil, err
		}
		return id, id, m.listed(&e.Aliases[e.alias(id)], e.ID), nil
	})
}
