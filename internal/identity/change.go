package identity

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/store"
)

// Change is a set of changes to entities and groups that become one commit. Each is read once and written once, however many
// of the changes touch it; the rows of the indexes follow from what it was and what it became. All that was read
// must still be so when it commits. It is for one goroutine.
type Change struct {
	view     store.View
	entities map[string]*Entity
	groups   map[string]*Group
	records  []record
	alone    bool
}

// record is an entity or group as it was read, and what became of it.
type record struct {
	row    store.Row
	was    []byte  // nil: it is new
	before []entry // rows of the indexes
	now    subject
	gone   bool
}

// subject is *Entity or *Group.
type subject interface{ entries() []entry }

// NewChange starts a set of changes to what v shows.
func NewChange(v store.View) *Change {
	return &Change{view: v, entities: map[string]*Entity{}, groups: map[string]*Group{}}
}

// Alone makes the commit fail if anything of identity changed since the View: for changes that depend on more than they touch.
func (c *Change) Alone() { c.alone = true }

// Entity is the entity with the id, to be read and changed; nil: there is none.
func (c *Change) Entity(id string) (*Entity, error) {
	if e, ok := c.entities[id]; ok {
		return e, nil
	}
	e, row, err := EntityByID(c.view, id)
	if err != nil || e == nil {
		return nil, err
	}
	c.entities[id] = e
	c.records = append(c.records, record{row: row, was: encode(e), before: e.entries(), now: e})
	return e, nil
}

// Group is the group with the id, to be read and changed; nil: there is none.
func (c *Change) Group(id string) (*Group, error) {
	if g, ok := c.groups[id]; ok {
		return g, nil
	}
	g, row, err := GroupByID(c.view, id)
	if err != nil || g == nil {
		return nil, err
	}
	c.groups[id] = g
	c.records = append(c.records, record{row: row, was: encode(g), before: g.entries(), now: g})
	return g, nil
}

// peek is the group with the id, to be read only: nothing will be required of it.
func (c *Change) peek(id string) (*Group, store.Row, error) {
	if g, ok := c.groups[id]; ok {
		return g, store.Row{}, nil
	}
	return GroupByID(c.view, id)
}

// entityVia and groupVia are what the row of an index leads to.
func (c *Change) entityVia(k store.Key) (*Entity, error) { return follow(c.view, k, c.Entity) }
func (c *Change) groupVia(k store.Key) (*Group, error)   { return follow(c.view, k, c.Group) }

func follow[T any](v store.View, k store.Key, find func(string) (*T, error)) (*T, error) {
	idx, err := v.Get(k)
	if err != nil || !idx.Exists() {
		return nil, err
	}
	return find(string(idx.Value))
}

// NewEntity adds an entity, named after its id if name is empty.
func (c *Change) NewEntity(name string, now time.Time, random io.Reader) (*Entity, error) {
	id, err := NewID(random)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = "entity_" + id[:8]
	}
	e := &Entity{ID: id, Name: name, Created: now, Updated: now}
	exact(&e.Created, &e.Updated)
	c.entities[id] = e
	c.records = append(c.records, record{row: store.Row{Key: entityKey(id)}, now: e})
	return e, nil
}

// NewGroup adds a group, named after its id if name is empty.
func (c *Change) NewGroup(name string, now time.Time, random io.Reader) (*Group, error) {
	id, err := NewID(random)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = "group_" + id[:8]
	}
	g := &Group{ID: id, Name: name, Created: now, Updated: now}
	exact(&g.Created, &g.Updated)
	c.groups[id] = g
	c.records = append(c.records, record{row: store.Row{Key: groupKey(id)}, now: g})
	return g, nil
}

// drop takes an entity or group away. What names it is for the caller.
func (c *Change) drop(s subject) {
	for i := range c.records {
		if c.records[i].now == s {
			c.records[i].gone = true
		}
	}
}

// DropEntity takes an entity away, and out of its groups.
func (c *Change) DropEntity(e *Entity) error {
	for _, id := range e.Groups {
		g, err := c.Group(id)
		if err != nil {
			return err
		}
		if g != nil {
			g.Entities = without(g.Entities, e.ID)
		}
	}
	c.drop(e)
	return nil
}

// DropGroup takes a group away, and out of all that name it.
func (c *Change) DropGroup(g *Group) error {
	if err := c.SetEntities(g, nil); err != nil {
		return err
	}
	if err := c.SetMembers(g, nil); err != nil {
		return err
	}
	for _, id := range g.Parents {
		p, err := c.Group(id)
		if err != nil {
			return err
		}
		if p != nil {
			p.Members = without(p.Members, g.ID)
		}
	}
	c.drop(g)
	return nil
}

// SetEntities makes entities the members of a group. An entity that does not exist is an error of kind Invalid.
func (c *Change) SetEntities(g *Group, ids []string) error {
	for id, joins := range changed(g.Entities, ids) {
		e, err := c.Entity(id)
		switch {
		case err != nil:
			return err
		case e == nil && joins:
			return api.Errorf(api.Invalid, "invalid entity ID %q", id)
		case e == nil:
		case joins:
			e.Groups = with(e.Groups, g.ID)
		default:
			e.Groups = without(e.Groups, g.ID)
		}
	}
	g.Entities = ids
	return nil
}

// SetMembers makes groups the members of a group. One that does not exist, or that contains the group, is an error of kind Invalid.
func (c *Change) SetMembers(g *Group, ids []string) error {
	for id, joins := range changed(g.Members, ids) {
		if joins && id == g.ID {
			return api.Errorf(api.Invalid, "member group ID %q is same as the ID of the group", id)
		}
		m, err := c.Group(id)
		switch {
		case err != nil:
			return err
		case m == nil && joins:
			return api.Errorf(api.Invalid, "invalid member group ID %q", id)
		case m == nil:
		case joins:
			if cyclic, err := c.contains(m, g.ID); err != nil {
				return err
			} else if cyclic {
				return api.Errorf(api.Invalid, "cyclic relationship detected for member group ID %q", id)
			}
			m.Parents = with(m.Parents, g.ID)
		default:
			m.Parents = without(m.Parents, g.ID)
		}
	}
	g.Members = ids
	c.Alone() // two changes at once, far apart, would make a circle that neither sees
	return nil
}

// contains reports whether a group is, or has somewhere below it, the group with the id.
func (c *Change) contains(g *Group, id string) (bool, error) {
	seen := map[string]bool{}
	for queue := []*Group{g}; len(queue) > 0; queue = queue[1:] {
		if queue[0].ID == id {
			return true, nil
		}
		for _, m := range queue[0].Members {
			if seen[m] {
				continue
			}
			seen[m] = true
			next, _, err := c.peek(m)
			if err != nil {
				return false, err
			}
			if next != nil {
				queue = append(queue, next)
			}
		}
	}
	return false, nil
}

// Standing derives that of an entity as the changes leave it.
func (c *Change) Standing(e *Entity) (*Standing, error) { return standing(e, c.peek) }

// Into adds the changes to txn. Two that lay claim to one name are an error of kind Invalid.
func (c *Change) Into(txn *store.Txn) error {
	if c.alone {
		txn.Unchanged = append(txn.Unchanged, store.Since{Table: store.Identity, Position: c.view.Position()})
	}
	was, is := map[store.Key]string{}, map[store.Key]string{}
	for i := range c.records {
		r := &c.records[i]
		txn.Require(r.row)
		for _, e := range r.before {
			was[e.key] = e.id
		}
		if r.gone {
			if r.row.Exists() {
				txn.Delete(r.row.Table, r.row.Name)
			}
			continue
		}
		for _, e := range r.now.entries() {
			if id, taken := is[e.key]; taken && id != e.id {
				return api.Errorf(api.Invalid, "two would have the same name")
			}
			is[e.key] = e.id
		}
		if now := encode(r.now); !bytes.Equal(now, r.was) {
			if g, ok := r.now.(*Group); ok {
				g.Index++
				now = encode(g)
			}
			txn.Put(r.row.Table, r.row.Name, now)
		}
	}
	for _, k := range sortedKeys(was) {
		if _, stays := is[k]; !stays {
			txn.Delete(k.Table, k.Name)
		}
	}
	for _, k := range sortedKeys(is) {
		before, had := was[k]
		if !had {
			txn.Absent(k.Table, k.Name)
		}
		if before != is[k] {
			txn.Put(k.Table, k.Name, []byte(is[k]))
		}
	}
	return nil
}

func sortedKeys(m map[store.Key]string) []store.Key {
	return slices.SortedFunc(maps.Keys(m), func(a, b store.Key) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
}

func with(s []string, id string) []string {
	if slices.Contains(s, id) {
		return s
	}
	return append(slices.Clone(s), id)
}

func without(s []string, id string) []string {
	return slices.DeleteFunc(slices.Clone(s), func(v string) bool { return v == id })
}

// sorted is a set of strings in order.
func sorted(s []string) []string {
	out := slices.Clone(s)
	slices.Sort(out)
	return slices.Compact(out)
}

// changed yields, in order, what only one of the two sets has, and whether that is the second.
func changed(before, after []string) func(yield func(id string, joins bool) bool) {
	diff := map[string]bool{}
	for _, s := range after {
		diff[s] = true
	}
	for _, s := range before {
		if _, both := diff[s]; both {
			delete(diff, s)
		} else {
			diff[s] = false
		}
	}
	return func(yield func(string, bool) bool) {
		for _, id := range slices.Sorted(maps.Keys(diff)) {
			if !yield(id, diff[id]) {
				return
			}
		}
	}
}
