package identity

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// Arrival is a login: by which name somebody is known at an auth mount, and what the auth method says of them.
type Arrival struct {
	Mount    string            // accessor
	Name     string            // of the alias
	Metadata map[string]string // of the alias
	Groups   []string          // names of group aliases at the mount
	Now      time.Time
	Random   io.Reader
}

// Arrive finds the entity that logs in, or adds a new one, and makes it a member of just those external groups of the mount
// that the auth method names.
func (c *Change) Arrive(a Arrival) (*Entity, Alias, error) {
	e, err := c.entityVia(aliasKey(a.Mount, a.Name))
	if err != nil {
		return nil, Alias{}, err
	}
	if e == nil {
		if e, err = c.NewEntity("", a.Now, a.Random); err != nil {
			return nil, Alias{}, err
		}
		id, err := NewID(a.Random)
		if err != nil {
			return nil, Alias{}, err
		}
		e.Aliases = []Alias{{ID: id, Name: a.Name, Mount: a.Mount, Metadata: a.Metadata, Created: e.Created, Updated: e.Updated}}
	}
	i := slices.IndexFunc(e.Aliases, func(b Alias) bool { return aliasKey(b.Mount, b.Name) == aliasKey(a.Mount, a.Name) })
	if i < 0 {
		return nil, Alias{}, fmt.Errorf("identity: entity %s lacks the alias that names it", e.ID)
	}
	if !maps.Equal(e.Aliases[i].Metadata, a.Metadata) {
		e.Aliases[i].Metadata, e.Aliases[i].Updated = a.Metadata, a.Now
	}
	return e, e.Aliases[i], c.Refresh(e, a.Mount, a.Groups)
}

// Refresh makes an entity a member of those external groups that have one of the names as their alias at the mount, and of no
// other external group of the mount.
func (c *Change) Refresh(e *Entity, mount string, names []string) error {
	joined := map[string]bool{}
	for _, name := range names {
		idx, err := c.view.Get(groupAlias(mount, name))
		if err != nil {
			return err
		}
		if idx.Exists() {
			joined[string(idx.Value)] = true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(joined)) {
		if slices.Contains(e.Groups, id) {
			continue
		}
		g, err := c.Group(id)
		if err != nil {
			return err
		}
		if g != nil && g.External {
			g.Entities, e.Groups = with(g.Entities, e.ID), with(e.Groups, g.ID)
		}
	}
	for _, id := range e.Groups {
		g, _, err := c.peek(id)
		if err != nil {
			return err
		}
		if g == nil || !g.External || joined[id] || g.Alias != nil && g.Alias.Mount != mount {
			continue
		}
		if g, err = c.Group(id); err != nil {
			return err
		}
		g.Entities, e.Groups = without(g.Entities, e.ID), without(e.Groups, g.ID)
	}
	return nil
}
