package identity

import (
	"context"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/store"
)

// group finds the group that a request names, by id or by name; nil: there is none.
func group(r *engine.Request, c *Change) (*Group, error) {
	switch id, name := named(r); {
	case id != "":
		return c.Group(id)
	case name != "":
		return c.groupVia(groupName(name))
	}
	return nil, nil
}

func writeGroup(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c := NewChange(r.View)
	g, err := group(r, c)
	if err != nil {
		return nil, err
	}
	name, err := renamed(r)
	if err != nil {
		return nil, err
	}
	fresh := g == nil
	if fresh {
		if id, _ := named(r); id != "" {
			return nil, api.Errorf(api.Invalid, "invalid group ID")
		}
		if g, err = c.NewGroup(name, r.Now, r.Random); err != nil {
			return nil, err
		}
	} else if name != "" {
		if other, err := c.groupVia(groupName(name)); err != nil {
			return nil, err
		} else if other != nil && other != g {
			return nil, api.Errorf(api.Invalid, "group name is already in use")
		}
		g.Name = name
	}
	if err := g.apply(r, fresh); err != nil {
		return nil, err
	}
	if r.Has("member_entity_ids") {
		if g.External {
			return nil, api.Errorf(api.Invalid, "member entities can't be set manually for external groups")
		}
		if err := c.SetEntities(g, sorted(r.List("member_entity_ids"))); err != nil {
			return nil, err
		}
	}
	if r.Has("member_group_ids") {
		if g.External {
			return nil, api.Errorf(api.Invalid, "member groups can't be set for external groups")
		}
		if err := c.SetMembers(g, sorted(r.List("member_group_ids"))); err != nil {
			return nil, err
		}
	}
	g.Updated = r.Now
	if fresh {
		return c.done(map[string]any{"id": g.ID, "name": g.Name})
	}
	return c.done(nil)
}

// apply takes over what the client sent of a group's own.
func (g *Group) apply(r *engine.Request, fresh bool) (err error) {
	if r.Has("policies") {
		if g.Policies, err = checkPolicies(r.List("policies")); err != nil {
			return err
		}
	}
	if r.Has("type") {
		kind := r.Str("type")
		switch {
		case kind != "internal" && kind != "external" && (kind != "" || !fresh):
			return api.Errorf(api.Invalid, "invalid group type %q", kind)
		case !fresh && kind != g.kind():
			return api.Errorf(api.Invalid, "group type cannot be changed")
		}
		g.External = kind == "external"
	}
	if r.Has("metadata") {
		if err := checkMetadata(r.Pairs("metadata")); err != nil {
			return err
		}
		g.Metadata = r.Pairs("metadata")
	}
	return nil
}

func (g *Group) kind() string {
	if g.External {
		return "external"
	}
	return "internal"
}

func readGroup(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	g, err := group(r, NewChange(r.View))
	if err != nil {
		return nil, err
	}
	if g == nil {
		return nil, nothing
	}
	return showGroup(r, g), nil
}

func showGroup(r *engine.Request, g *Group) *engine.Reply {
	alias := map[string]any{}
	if g.Alias != nil {
		alias = mountsOf(r).full(g.Alias, g.ID)
	}
	return &engine.Reply{Data: map[string]any{
		"id": g.ID, "name": g.Name, "type": g.kind(), "metadata": pairs(g.Metadata), "policies": names(g.Policies),
		"member_entity_ids": names(g.Entities), "member_group_ids": names(g.Members), "parent_group_ids": names(g.Parents), "alias": alias,
		"creation_time": stamp(g.Created), "last_update_time": stamp(g.Updated), "modify_index": g.Index, "namespace_id": "root",
	}}
}

func deleteGroup(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c := NewChange(r.View)
	g, err := group(r, c)
	if err != nil || g == nil {
		return &engine.Reply{}, err
	}
	if err := c.DropGroup(g); err != nil {
		return nil, err
	}
	return c.done(nil)
}

func listGroups(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return list(r, "g", groupInfo(r, func(g *Group) string { return g.ID }))
}

func listGroupNames(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return list(r, "g", groupInfo(r, func(g *Group) string { return g.Name }))
}

func groupInfo(r *engine.Request, by func(*Group) string) func(store.Row, string) (string, string, map[string]any, error) {
	m := mountsOf(r)
	return func(_ store.Row, id string) (string, string, map[string]any, error) {
		g, _, err := GroupByID(r.View, id)
		if err != nil || g == nil {
			return "", "", nil, err
		}
		info := map[string]any{"name": g.Name, "num_member_entities": len(g.Entities), "num_parent_groups": len(g.Parents)}
		if g.Alias != nil {
			info["alias"] = m.brief(g.Alias)
		}
		return by(g), id, info, nil
	}
}

func lookupGroup(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c := NewChange(r.View)
	g, err := find(r, c.Group,
		func(name string) (*Group, error) { return c.groupVia(groupName(name)) },
		func(id string) (*Group, error) { return c.groupVia(groupAliasID(id)) },
		func(accessor, name string) (*Group, error) { return c.groupVia(groupAlias(accessor, name)) })
	if err != nil || g == nil {
		return &engine.Reply{}, err
	}
	return showGroup(r, g), nil
}

func writeGroupAlias(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	id, name, accessor, target := r.Param("id"), r.Str("name"), r.Str("mount_accessor"), r.Str("canonical_id")
	if id == "" {
		id = r.Str("id")
	}
	c := NewChange(r.View)
	var from *Group
	a := Alias{Created: r.Now}
	if id != "" || r.Has("id") {
		var err error
		if from, err = c.groupVia(groupAliasID(id)); err != nil {
			return nil, err
		}
		if from == nil {
			return nil, api.Errorf(api.Invalid, "invalid group alias ID")
		}
		a = *from.Alias
	}
	switch {
	case name == "":
		return nil, api.Errorf(api.Invalid, "missing alias name")
	case accessor == "":
		return nil, api.Errorf(api.Invalid, "missing mount_accessor")
	case from != nil && a.Name == name && a.Mount == accessor && (target == "" || target == from.ID):
		return &engine.Reply{}, nil
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	to, err := aliasGroup(r, c, from, target)
	if err != nil {
		return nil, err
	}
	if err := mountsOf(r).check(accessor); err != nil {
		return nil, err
	}
	if holder, err := c.groupVia(groupAlias(accessor, name)); err != nil {
		return nil, err
	} else if holder != nil && holder != from && (holder != to || to.Alias.ID != a.ID) {
		return nil, api.Errorf(api.Invalid, "combination of mount and group alias name is already in use")
	}
	if a.ID == "" {
		if a.ID, err = NewID(r.Random); err != nil {
			return nil, err
		}
	}
	a.Name, a.Mount, a.Updated = name, accessor, r.Now
	if from != nil && from != to {
		from.Alias = nil
	}
	to.Alias, to.Updated = &a, r.Now
	return c.done(map[string]any{"id": a.ID, "canonical_id": to.ID})
}

// aliasGroup is the group that an alias is to name: the one that the client sent, else the one that it names now, else a new one.
func aliasGroup(r *engine.Request, c *Change, from *Group, target string) (*Group, error) {
	if target != "" {
		g, err := c.Group(target)
		switch {
		case err != nil:
			return nil, err
		case g == nil:
			return nil, api.Errorf(api.Invalid, "invalid group ID given in 'canonical_id'")
		case !g.External:
			return nil, api.Errorf(api.Invalid, "alias can't be set on an internal group")
		}
		return g, nil
	}
	if from != nil {
		return from, nil
	}
	g, err := c.NewGroup("", r.Now, r.Random)
	if err == nil {
		g.External = true
	}
	return g, err
}

func readGroupAlias(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	g, err := NewChange(r.View).groupVia(groupAliasID(r.Param("id")))
	if err != nil {
		return nil, err
	}
	if g == nil {
		return nil, nothing
	}
	return &engine.Reply{Data: mountsOf(r).read(g.Alias, g.ID)}, nil
}

func deleteGroupAlias(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c := NewChange(r.View)
	g, err := c.groupVia(groupAliasID(r.Param("id")))
	if err != nil || g == nil {
		return &engine.Reply{}, err
	}
	g.Alias, g.Updated = nil, r.Now
	return c.done(nil)
}

func listGroupAliases(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	m := mountsOf(r)
	return list(r, "j", func(row store.Row, id string) (string, string, map[string]any, error) {
		g, _, err := GroupByID(r.View, string(row.Value))
		if err != nil || g == nil || g.Alias == nil {
			return "", "", nil, err
		}
		return id, id, m.listed(g.Alias, g.ID), nil
	})
}
