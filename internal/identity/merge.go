package identity

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
)

// merge makes several entities one. Tokens and leases that name a merged entity stay as they are: its id leads to the one that took it
// in (Survivor), so that they go on working, and a revocation by holder hits them (core expands it by Entity.Merged).
func merge(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	target, ids, keep := r.Str("to_entity_id"), sorted(r.List("from_entity_ids")), r.List("conflicting_alias_ids_to_keep")
	switch {
	case target == "":
		return nil, api.Errorf(api.Invalid, "missing entity id to merge to")
	case len(ids) == 0:
		return nil, api.Errorf(api.Invalid, "missing entity ids to merge from")
	}
	c := NewChange(r.View)
	c.Alone()
	to, err := c.Entity(target)
	if err != nil {
		return nil, err
	}
	switch {
	case to == nil:
		return nil, api.Errorf(api.Invalid, "entity id to merge to is invalid")
	case len(ids) > 1 && len(keep) > 1:
		return nil, api.Errorf(api.Invalid, "aliases conflicts cannot be resolved with multiple from entity ids - merge one entity at a time")
	}
	var from []*Entity
	var warnings []string
	for _, id := range ids {
		e, err := c.Entity(id)
		switch {
		case err != nil:
			return nil, err
		case id == to.ID:
			return nil, api.Errorf(api.Invalid, "to_entity_id should not be present in from_entity_ids")
		case e == nil:
			return nil, api.Errorf(api.Invalid, "entity id to merge from is invalid")
		}
		if e.Disabled && !to.Disabled {
			warnings = append(warnings, fmt.Sprintf("entity %s was disabled: its tokens are good again, as those of %s", e.ID, to.ID))
		}
		from = append(from, e)
	}
	if to.Aliases, err = united(to, from, keep); err != nil {
		return nil, err
	}
	for _, e := range from {
		if err := c.join(to, e); err != nil {
			return nil, err
		}
	}
	to.Updated = r.Now
	reply, err := c.done(nil)
	if err != nil {
		return nil, err
	}
	reply.Warnings = warnings
	if reply.Note = "into entity " + to.ID; len(ids) == 1 {
		reply.Note = "entity " + ids[0] + " into entity " + to.ID
	}
	return reply, nil
}

// join puts an entity's place in groups, and whoever it took in before, to the account of to, and takes it away.
func (c *Change) join(to, e *Entity) error {
	for _, id := range e.Groups {
		g, err := c.Group(id)
		if err != nil {
			return err
		}
		if g != nil {
			g.Entities, to.Groups = with(without(g.Entities, e.ID), to.ID), with(to.Groups, id)
		}
	}
	to.Merged = append(append(to.Merged, e.Merged...), e.ID)
	c.drop(e)
	return nil
}

// united are the aliases of an entity that takes others in. Where two would be at the same mount, keep names the one that
// stays; else it is an error of kind Invalid.
func united(to *Entity, from []*Entity, keep []string) ([]Alias, error) {
	at := map[string]string{} // mount → id of the entity merged whose alias is there
	var clashes []string
	all := slices.Clone(to.Aliases)
	for _, e := range from {
		for _, a := range e.Aliases {
			if other, taken := at[a.Mount]; taken && other != e.ID {
				return nil, api.Errorf(api.Invalid, "mount accessor %s found in multiple fromEntities, merge should be done with one fromEntity at a time", a.Mount)
			}
			at[a.Mount] = e.ID
			a.Merged = append(slices.Clone(a.Merged), e.ID)
			i := slices.IndexFunc(all, func(b Alias) bool { return b.Mount == a.Mount })
			switch {
			case i < 0:
				all = append(all, a)
			case slices.Contains(keep, all[i].ID):
			case slices.Contains(keep, a.ID):
				all[i] = a
			case len(keep) > 0:
				return nil, api.Errorf(api.Invalid, "conflicting mount accessors in following alias IDs and neither were present in conflicting_alias_ids_to_keep: %s, %s", a.ID, all[i].ID)
			default:
				clashes = append(clashes, fmt.Sprintf("mountAccessor: %s, toEntity ID: %s, fromEntity ID: %s, conflicting toEntity alias ID: %s, conflicting fromEntity alias ID: %s",
					a.Mount, to.ID, e.ID, all[i].ID, a.ID))
			}
		}
	}
	if len(clashes) > 0 {
		return nil, api.Errorf(api.Invalid, "%d errors occurred:\n\t* toEntity and at least one fromEntity have aliases with the same mount accessor, repeat the merge request specifying exactly one fromEntity, clashes: \n\t* %s\n\n",
			len(clashes)+1, strings.Join(clashes, "\n\t* "))
	}
	return all, nil
}
