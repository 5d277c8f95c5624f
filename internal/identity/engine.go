package identity

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Backend is the engine at identity/: entities, their aliases, and groups, to read and to change.
type Backend struct{}

type ops = map[lessor.Verb]engine.Handler

var (
	entityFields = []engine.Field{
		{Name: "id", Type: engine.String, Help: "id of the entity; one that is there is updated"},
		{Name: "name", Type: engine.String, Help: "name of the entity"},
		{Name: "metadata", Type: engine.Pairs, Help: "metadata, replaced as a whole"},
		{Name: "policies", Type: engine.Strings, Help: "policies that tokens of the entity have besides their own"},
		{Name: "disabled", Type: engine.Bool, Help: "true: tokens of the entity are refused"},
	}
	aliasFields = []engine.Field{
		{Name: "id", Type: engine.String, Help: "id of the alias; one that is there is updated"},
		{Name: "name", Type: engine.String, Help: "name of the alias at its auth mount"},
		{Name: "canonical_id", Type: engine.String, Help: "id of the entity"},
		{Name: "entity_id", Type: engine.String, Help: "the same as canonical_id"},
		{Name: "mount_accessor", Type: engine.String, Help: "accessor of the auth mount"},
		{Name: "custom_metadata", Type: engine.Pairs, Help: "metadata of the operator's own"},
	}
	groupFields = []engine.Field{
		{Name: "id", Type: engine.String, Help: "id of the group; one that is there is updated"},
		{Name: "name", Type: engine.String, Help: "name of the group"},
		{Name: "type", Type: engine.String, Help: "internal or external"},
		{Name: "metadata", Type: engine.Pairs, Help: "metadata, replaced as a whole"},
		{Name: "policies", Type: engine.Strings, Help: "policies that members' tokens have besides their own"},
		{Name: "member_entity_ids", Type: engine.Strings, Help: "entities in it"},
		{Name: "member_group_ids", Type: engine.Strings, Help: "groups in it"},
	}
	lookupFields = []engine.Field{
		{Name: "id", Type: engine.String, Help: "by id"},
		{Name: "name", Type: engine.String, Help: "by name"},
		{Name: "alias_id", Type: engine.String, Help: "by the id of an alias"},
		{Name: "alias_name", Type: engine.String, Help: "by the name of an alias, with alias_mount_accessor"},
		{Name: "alias_mount_accessor", Type: engine.String, Help: "accessor of the alias's mount"},
	}
)

// Routes is the method table.
func (b Backend) Routes() []engine.Route {
	return []engine.Route{
		{Pattern: "entity", Help: "create or update an entity", Fields: entityFields, Ops: ops{lessor.Update: b.writeEntity}},
		{Pattern: "entity/id", Help: "list entities by id", Ops: ops{lessor.List: b.listEntities}},
		{Pattern: "entity/id/{id}", Help: "entities", Fields: entityFields, Ops: ops{lessor.Read: b.readEntity, lessor.Update: b.writeEntity, lessor.Delete: b.deleteEntity}},
		{Pattern: "entity/name", Help: "list entities by name", Ops: ops{lessor.List: b.listEntityNames}},
		{Pattern: "entity/name/{name}", Help: "entities by name", Fold: true, Fields: entityFields, Ops: ops{lessor.Read: b.readEntity, lessor.Update: b.writeEntity, lessor.Delete: b.deleteEntity}},
		{Pattern: "entity-alias", Help: "create or update an alias", Fields: aliasFields, Ops: ops{lessor.Update: b.writeAlias}},
		{Pattern: "entity-alias/id", Help: "list aliases", Ops: ops{lessor.List: b.listAliases}},
		{Pattern: "entity-alias/id/{id}", Help: "aliases", Fields: aliasFields, Ops: ops{lessor.Read: b.readAlias, lessor.Update: b.writeAlias, lessor.Delete: b.deleteAlias}},
		{Pattern: "group", Help: "create or update a group", Fields: groupFields, Ops: ops{lessor.Update: b.writeGroup}},
		{Pattern: "group/id", Help: "list groups by id", Ops: ops{lessor.List: b.listGroups}},
		{Pattern: "group/id/{id}", Help: "groups", Fields: groupFields, Ops: ops{lessor.Read: b.readGroup, lessor.Update: b.writeGroup, lessor.Delete: b.deleteGroup}},
		{Pattern: "group/name", Help: "list groups by name", Ops: ops{lessor.List: b.listGroupNames}},
		{Pattern: "group/name/{name}", Help: "groups by name", Fold: true, Fields: groupFields, Ops: ops{lessor.Read: b.readGroup, lessor.Update: b.writeGroup, lessor.Delete: b.deleteGroup}},
		{Pattern: "lookup/entity", Help: "find an entity", Fields: lookupFields, Ops: ops{lessor.Update: b.lookupEntity}},
		{Pattern: "lookup/group", Help: "find a group", Fields: lookupFields[:2], Ops: ops{lessor.Update: b.lookupGroup}},
	}
}

// mostListed bounds one list.
const mostListed = 100_000

var (
	nothing   = &api.Error{Kind: api.NotFound}
	tooMuch   = "there are more than the 100,000 that are listed"
	assignees = "root and response-wrapping are not given by identity"
)

func checkPolicies(names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		switch n = strings.ToLower(strings.TrimSpace(n)); n {
		case "":
		case "root", "response-wrapping":
			return nil, api.Errorf(api.Invalid, "policy %q cannot be assigned: %s", n, assignees)
		default:
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// checkMetadata holds to Vault's limits.
func checkMetadata(m map[string]string) error {
	if len(m) > 64 {
		return api.Errorf(api.Invalid, "metadata can hold at most 64 keys")
	}
	for k, v := range m {
		if k == "" || len(k) > 128 || len(v) > 512 {
			return api.Errorf(api.Invalid, "metadata keys have 1 to 128 bytes, values at most 512")
		}
	}
	return nil
}

// named is the id or the name by which a request names what it is about. Where the path does, it alone: it is what policy was
// asked about, and nothing in the data may point elsewhere.
func named(r *engine.Request) (id, name string) {
	if id, name = r.Param("id"), r.Param("name"); id != "" || name != "" {
		return id, name
	}
	return r.Str("id"), r.Str("name")
}

// renamed is the name that a request gives to what it is about; empty: none.
func renamed(r *engine.Request) (string, error) {
	name := first(r.Param("name"), r.Str("name"))
	if len(name) > 512 || strings.ContainsFunc(name, func(c rune) bool { return c < 0x20 || c == 0x7f }) {
		return "", api.Errorf(api.Invalid, "a name has at most 512 bytes, and no control characters")
	}
	return name, nil
}

// entity finds the entity that a request names, by id or by name.
func entity(r *engine.Request) (*Entity, store.Row, error) {
	switch id, name := named(r); {
	case id != "":
		return EntityByID(r.View, id)
	case name != "":
		return EntityByName(r.View, name)
	}
	return nil, store.Row{}, nil
}

func first(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

func (b Backend) writeEntity(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	e, row, err := entity(r)
	if err != nil {
		return nil, err
	}
	isNew := e == nil
	if isNew {
		if id, _ := named(r); id != "" {
			return nil, api.Errorf(api.Invalid, "entity not found from id %q", id)
		}
		id, err := NewID(r.Random)
		if err != nil {
			return nil, err
		}
		e = &Entity{ID: id, Name: "entity_" + id[:8], Created: r.Now}
	}
	from := e.Name
	if name, err := renamed(r); err != nil {
		return nil, err
	} else if name != "" {
		if other, _, err := EntityByName(r.View, name); err != nil {
			return nil, err
		} else if other != nil && other.ID != e.ID {
			return nil, api.Errorf(api.Invalid, "entity name is already in use")
		}
		e.Name = name
	}
	if r.Has("metadata") {
		if err := checkMetadata(r.Pairs("metadata")); err != nil {
			return nil, err
		}
		e.Metadata = r.Pairs("metadata")
	}
	if r.Has("policies") {
		if e.Policies, err = checkPolicies(r.List("policies")); err != nil {
			return nil, err
		}
	}
	if r.Has("disabled") {
		e.Disabled = r.Bool("disabled")
	}
	e.Updated = r.Now
	reply := &engine.Reply{}
	if isNew {
		NewEntity(&reply.Txn, e)
		reply.Data = map[string]any{"id": e.ID, "name": e.Name, "aliases": nil}
		return reply, nil
	}
	SaveEntity(&reply.Txn, row, e, from)
	if r.Param("id") == "" && r.Param("name") == "" {
		reply.Data = map[string]any{"id": e.ID, "name": e.Name, "aliases": aliasIDs(e)}
	}
	return reply, nil
}

func aliasIDs(e *Entity) any {
	if len(e.Aliases) == 0 {
		return nil
	}
	ids := []string{}
	for _, a := range e.Aliases {
		ids = append(ids, a.ID)
	}
	return ids
}

func (b Backend) readEntity(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	e, _, err := entity(r)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, nothing
	}
	return entityReply(r, e)
}

func entityReply(r *engine.Request, e *Entity) (*engine.Reply, error) {
	s, err := Resolve(r.View, e.ID)
	if err != nil {
		return nil, err
	}
	direct, all := []string{}, []string{}
	for _, g := range s.Groups {
		all = append(all, g.ID)
		if slices.Contains(e.Groups, g.ID) {
			direct = append(direct, g.ID)
		}
	}
	inherited := slices.DeleteFunc(slices.Clone(all), func(id string) bool { return slices.Contains(direct, id) })
	aliases := []any{}
	for i := range e.Aliases {
		aliases = append(aliases, aliasData(r, e, &e.Aliases[i]))
	}
	return &engine.Reply{Data: map[string]any{
		"id": e.ID, "name": e.Name, "metadata": pairs(e.Metadata), "policies": names(e.Policies), "disabled": e.Disabled, "aliases": aliases,
		"direct_group_ids": direct, "inherited_group_ids": inherited, "group_ids": all, "merged_entity_ids": e.Merged,
		"creation_time": e.Created.Format(time.RFC3339Nano), "last_update_time": e.Updated.Format(time.RFC3339Nano),
		"namespace_id": "root", "bucket_key_hash": "", "mfa_secrets": map[string]any{},
	}}, nil
}

func pairs(m map[string]string) any {
	if m == nil {
		return nil
	}
	return m
}

func names(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func aliasData(r *engine.Request, e *Entity, a *Alias) map[string]any {
	d := map[string]any{
		"id": a.ID, "name": a.Name, "canonical_id": e.ID, "mount_accessor": a.Mount, "metadata": pairs(a.Metadata), "custom_metadata": pairs(a.Custom),
		"creation_time": a.Created.Format(time.RFC3339Nano), "last_update_time": a.Updated.Format(time.RFC3339Nano),
		"mount_path": "", "mount_type": "", "merged_from_canonical_ids": nil, "local": false, "namespace_id": "root",
	}
	if m := authMount(r, a.Mount); m != nil {
		d["mount_path"], d["mount_type"] = m.Path, m.Type
	}
	return d
}

func authMount(r *engine.Request, accessor string) *mount.Entry {
	for _, m := range r.System.Mounts() {
		if m.Accessor == accessor && m.Class == mount.Auth {
			return m
		}
	}
	return nil
}

// deleteEntity takes the entity out of its groups and away, and ends all that it holds: tokens and leases.
func (b Backend) deleteEntity(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	e, row, err := entity(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	if e == nil {
		return reply, nil
	}
	for _, id := range e.Groups {
		g, grow, err := GroupByID(r.View, id)
		if err != nil {
			return nil, err
		}
		if g != nil {
			g.Entities = without(g.Entities, e.ID)
			SaveGroup(&reply.Txn, grow, g, g.Name)
		}
	}
	DropEntity(&reply.Txn, row, e)
	if _, err := r.System.Bury(&reply.Txn, lease.Selector{Kind: lease.ByHolder, Value: e.ID}, "entity deleted"); err != nil {
		return nil, err
	}
	return reply, nil
}

func without(s []string, id string) []string {
	return slices.DeleteFunc(slices.Clone(s), func(v string) bool { return v == id })
}

func (b Backend) listEntities(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return list(r, "e", func(row store.Row, name string) (string, map[string]any, error) {
		e, _, err := EntityByID(r.View, name)
		if err != nil || e == nil {
			return "", nil, err
		}
		return name, map[string]any{"name": e.Name, "aliases": aliasIDs(e)}, nil
	})
}

func (b Backend) listEntityNames(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return list(r, "e", func(row store.Row, name string) (string, map[string]any, error) {
		e, _, err := EntityByID(r.View, name)
		if err != nil || e == nil {
			return "", nil, err
		}
		return e.Name, nil, nil
	})
}

func (b Backend) listGroups(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return list(r, "g", func(row store.Row, name string) (string, map[string]any, error) {
		g, _, err := GroupByID(r.View, name)
		if err != nil || g == nil {
			return "", nil, err
		}
		return name, map[string]any{"name": g.Name, "num_member_entities": len(g.Entities), "num_parent_groups": len(g.Parents)}, nil
	})
}

func (b Backend) listGroupNames(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return list(r, "g", func(row store.Row, name string) (string, map[string]any, error) {
		g, _, err := GroupByID(r.View, name)
		if err != nil || g == nil {
			return "", nil, err
		}
		return g.Name, nil, nil
	})
}

func (b Backend) listAliases(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	return list(r, "i", func(row store.Row, name string) (string, map[string]any, error) {
		e, err := aliasOwner(r, row)
		if err != nil || e == nil {
			return "", nil, err
		}
		for i := range e.Aliases {
			if e.Aliases[i].ID == name {
				return name, aliasData(r, e, &e.Aliases[i]), nil
			}
		}
		return "", nil, nil
	})
}

func aliasOwner(r *engine.Request, row store.Row) (*Entity, error) {
	e, _, err := EntityByID(r.View, string(row.Value))
	return e, err
}

// list collects what of makes of the rows of one kind, sorted.
func list(r *engine.Request, kind string, of func(row store.Row, name string) (string, map[string]any, error)) (*engine.Reply, error) {
	prefix := key(kind, "").Name
	keys, info := []string{}, map[string]any{}
	reply := &engine.Reply{}
	for row, err := range r.View.Scan(store.Identity, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return nil, err
		}
		k, data, err := of(row, strings.TrimPrefix(row.Name, prefix))
		if err != nil {
			return nil, err
		}
		if k == "" {
			continue
		}
		if len(keys) == mostListed {
			reply.Warnings = []string{tooMuch}
			break
		}
		keys = append(keys, k)
		if data != nil {
			info[k] = data
		}
	}
	if len(keys) == 0 {
		return nil, nothing
	}
	slices.Sort(keys)
	reply.Data = map[string]any{"keys": keys}
	if len(info) > 0 {
		reply.Data["key_info"] = info
	}
	return reply, nil
}

func (b Backend) writeAlias(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if err := checkMetadata(r.Pairs("custom_metadata")); err != nil {
		return nil, err
	}
	target := first(r.Str("canonical_id"), r.Str("entity_id"))
	if _, err := renamed(r); err != nil {
		return nil, err
	}
	name, accessor := r.Str("name"), r.Str("mount_accessor")
	id := first(r.Param("id"), r.Str("id"))
	var e *Entity
	var row store.Row
	var err error
	if id != "" {
		e, row, err = EntityByAliasID(r.View, id)
	} else {
		if name == "" || accessor == "" {
			return nil, api.Errorf(api.Invalid, "missing alias name or mount_accessor")
		}
		e, row, err = EntityByAlias(r.View, accessor, name)
	}
	if err != nil {
		return nil, err
	}
	if id != "" && e == nil {
		return nil, api.Errorf(api.Invalid, "invalid alias ID %q", id)
	}
	reply := &engine.Reply{}
	if e != nil {
		i := slices.IndexFunc(e.Aliases, func(a Alias) bool { return a.ID == id || id == "" && a.Mount == accessor && a.Name == name })
		if i < 0 {
			return nil, nothing
		}
		a := &e.Aliases[i]
		if target != "" && target != e.ID {
			return b.moveAlias(r, e, row, i, target)
		}
		if name != "" && name != a.Name {
			if other, _, err := EntityByAlias(r.View, a.Mount, name); err != nil {
				return nil, err
			} else if other != nil {
				return nil, api.Errorf(api.Invalid, "alias name is already in use at this mount")
			}
			DropAlias(&reply.Txn, a)
			reply.Txn.Deletes = slices.DeleteFunc(reply.Txn.Deletes, func(k store.Key) bool { return k == aliasID(a.ID) })
			a.Name = name
			AddAlias(&reply.Txn, e, a)
		}
		if r.Has("custom_metadata") {
			a.Custom = r.Pairs("custom_metadata")
		}
		a.Updated = r.Now
		SaveEntity(&reply.Txn, row, e, e.Name)
		reply.Data = map[string]any{"id": a.ID, "canonical_id": e.ID}
		return reply, nil
	}
	if authMount(r, accessor) == nil {
		return nil, api.Errorf(api.Invalid, "invalid mount accessor %q", accessor)
	}
	aid, err := NewID(r.Random)
	if err != nil {
		return nil, err
	}
	a := Alias{ID: aid, Name: name, Mount: accessor, Custom: r.Pairs("custom_metadata"), Created: r.Now, Updated: r.Now}
	if target == "" {
		eid, err := NewID(r.Random)
		if err != nil {
			return nil, err
		}
		e = &Entity{ID: eid, Name: "entity_" + eid[:8], Aliases: []Alias{a}, Created: r.Now, Updated: r.Now}
		NewEntity(&reply.Txn, e)
	} else {
		if e, row, err = EntityByID(r.View, target); err != nil {
			return nil, err
		}
		if e == nil {
			return nil, api.Errorf(api.Invalid, "invalid canonical ID")
		}
		if err := oneAliasAMount(e, accessor); err != nil {
			return nil, err
		}
		e.Aliases, e.Updated = append(e.Aliases, a), r.Now
		AddAlias(&reply.Txn, e, &a)
		SaveEntity(&reply.Txn, row, e, e.Name)
	}
	reply.Data = map[string]any{"id": a.ID, "canonical_id": e.ID}
	return reply, nil
}

func oneAliasAMount(e *Entity, accessor string) error {
	if slices.ContainsFunc(e.Aliases, func(a Alias) bool { return a.Mount == accessor }) {
		return api.Errorf(api.Invalid, "Entity already has an alias with a mount accessor of %s", accessor)
	}
	return nil
}

// moveAlias gives an alias to another entity.
func (b Backend) moveAlias(r *engine.Request, e *Entity, row store.Row, i int, target string) (*engine.Reply, error) {
	to, toRow, err := EntityByID(r.View, target)
	if err != nil {
		return nil, err
	}
	if to == nil {
		return nil, api.Errorf(api.Invalid, "invalid canonical ID")
	}
	a := e.Aliases[i]
	if err := oneAliasAMount(to, a.Mount); err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	e.Aliases = slices.Delete(e.Aliases, i, i+1)
	if r.Has("custom_metadata") {
		a.Custom = r.Pairs("custom_metadata")
	}
	a.Updated, e.Updated, to.Updated = r.Now, r.Now, r.Now
	to.Aliases = append(to.Aliases, a)
	for _, k := range []store.Key{aliasKey(a.Mount, a.Name), aliasID(a.ID)} {
		reply.Txn.Put(k.Table, k.Name, []byte(to.ID))
	}
	SaveEntity(&reply.Txn, row, e, e.Name)
	SaveEntity(&reply.Txn, toRow, to, to.Name)
	reply.Data = map[string]any{"id": a.ID, "canonical_id": to.ID}
	return reply, nil
}

func (b Backend) readAlias(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	e, _, err := EntityByAliasID(r.View, r.Param("id"))
	if err != nil {
		return nil, err
	}
	if e != nil {
		for i := range e.Aliases {
			if e.Aliases[i].ID == r.Param("id") {
				return &engine.Reply{Data: aliasData(r, e, &e.Aliases[i])}, nil
			}
		}
	}
	return nil, nothing
}

func (b Backend) deleteAlias(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	e, row, err := EntityByAliasID(r.View, r.Param("id"))
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	if e == nil {
		return reply, nil
	}
	i := slices.IndexFunc(e.Aliases, func(a Alias) bool { return a.ID == r.Param("id") })
	if i < 0 {
		return reply, nil
	}
	DropAlias(&reply.Txn, &e.Aliases[i])
	e.Aliases, e.Updated = slices.Delete(e.Aliases, i, i+1), r.Now
	SaveEntity(&reply.Txn, row, e, e.Name)
	return reply, nil
}

// group finds the group that a request names, by id or by name.
func group(r *engine.Request) (*Group, store.Row, error) {
	switch id, name := named(r); {
	case id != "":
		return GroupByID(r.View, id)
	case name != "":
		return GroupByName(r.View, name)
	}
	return nil, store.Row{}, nil
}

func (b Backend) writeGroup(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	g, row, err := group(r)
	if err != nil {
		return nil, err
	}
	before := &Group{}
	if g != nil {
		old := *g
		before = &old
	} else {
		if id, _ := named(r); id != "" {
			return nil, api.Errorf(api.Invalid, "group not found from id %q", id)
		}
		id, err := NewID(r.Random)
		if err != nil {
			return nil, err
		}
		g = &Group{ID: id, Name: "group_" + id[:8], Created: r.Now}
		switch r.Str("type") {
		case "", "internal":
		case "external":
			g.External = true
		default:
			return nil, api.Errorf(api.Invalid, "invalid group type %q: internal or external", r.Str("type"))
		}
	}
	if name, err := renamed(r); err != nil {
		return nil, err
	} else if name != "" {
		if other, _, err := GroupByName(r.View, name); err != nil {
			return nil, err
		} else if other != nil && other.ID != g.ID {
			return nil, api.Errorf(api.Invalid, "group name is already in use")
		}
		g.Name = name
	}
	if r.Has("metadata") {
		if err := checkMetadata(r.Pairs("metadata")); err != nil {
			return nil, err
		}
		g.Metadata = r.Pairs("metadata")
	}
	if r.Has("policies") {
		if g.Policies, err = checkPolicies(r.List("policies")); err != nil {
			return nil, err
		}
	}
	if (r.Has("member_entity_ids") || r.Has("member_group_ids")) && g.External {
		return nil, api.Errorf(api.Invalid, "member entities and groups cannot be set on external groups: their auth method decides")
	}
	if r.Has("member_entity_ids") {
		g.Entities = sorted(r.List("member_entity_ids"))
	}
	if r.Has("member_group_ids") {
		g.Members = sorted(r.List("member_group_ids"))
	}
	g.Updated = r.Now
	reply := &engine.Reply{}
	if r.Has("member_group_ids") { // two changes at once, far apart, would make a circle that neither sees
		reply.Txn.Unchanged = append(reply.Txn.Unchanged, store.Since{Table: store.Identity, Position: r.View.Position()})
	}
	if err := b.relate(r, &reply.Txn, before, g); err != nil {
		return nil, err
	}
	if before.ID == "" {
		NewGroup(&reply.Txn, g)
	} else {
		SaveGroup(&reply.Txn, row, g, before.Name)
	}
	if before.ID == "" || r.Param("id") == "" && r.Param("name") == "" {
		reply.Data = map[string]any{"id": g.ID, "name": g.Name}
	}
	return reply, nil
}

func sorted(s []string) []string {
	out := slices.Clone(s)
	slices.Sort(out)
	return slices.Compact(out)
}

// relate keeps the other ends of a group's memberships true: entities know their groups, groups their parents.
func (b Backend) relate(r *engine.Request, txn *store.Txn, before, after *Group) error {
	for _, id := range changed(before.Entities, after.Entities) {
		e, row, err := EntityByID(r.View, id)
		if err != nil {
			return err
		}
		joined := slices.Contains(after.Entities, id)
		if e == nil {
			if joined {
				return api.Errorf(api.Invalid, "invalid entity ID %q", id)
			}
			continue
		}
		e.Groups = without(e.Groups, after.ID)
		if joined {
			e.Groups = append(e.Groups, after.ID)
		}
		SaveEntity(txn, row, e, e.Name)
	}
	for _, id := range changed(before.Members, after.Members) {
		m, row, err := GroupByID(r.View, id)
		if err != nil {
			return err
		}
		joined := slices.Contains(after.Members, id)
		if m == nil {
			if joined {
				return api.Errorf(api.Invalid, "invalid group ID %q", id)
			}
			continue
		}
		if joined {
			if cyclic, err := contains(r.View, m, after.ID); err != nil {
				return err
			} else if cyclic {
				return api.Errorf(api.Invalid, "cyclic relationship detected for member group ID %q", id)
			}
		}
		m.Parents = without(m.Parents, after.ID)
		if joined {
			m.Parents = append(m.Parents, after.ID)
		}
		SaveGroup(txn, row, m, m.Name)
	}
	return nil
}

// contains reports whether a group is, or has somewhere below it, the group with the id.
func contains(v store.View, g *Group, id string) (bool, error) {
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
			next, _, err := GroupByID(v, m)
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

// changed are the elements that only one of the two has.
func changed(a, b []string) []string {
	only := map[string]bool{}
	for _, s := range a {
		only[s] = !slices.Contains(b, s)
	}
	for _, s := range b {
		only[s] = !slices.Contains(a, s)
	}
	maps.DeleteFunc(only, func(_ string, v bool) bool { return !v })
	return slices.Sorted(maps.Keys(only))
}

func (b Backend) readGroup(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	g, _, err := group(r)
	if err != nil {
		return nil, err
	}
	if g == nil {
		return nil, nothing
	}
	return groupReply(g), nil
}

func groupReply(g *Group) *engine.Reply {
	kind := "internal"
	if g.External {
		kind = "external"
	}
	return &engine.Reply{Data: map[string]any{
		"id": g.ID, "name": g.Name, "type": kind, "metadata": pairs(g.Metadata), "policies": names(g.Policies),
		"member_entity_ids": names(g.Entities), "member_group_ids": names(g.Members), "parent_group_ids": names(g.Parents), "alias": map[string]any{},
		"creation_time": g.Created.Format(time.RFC3339Nano), "last_update_time": g.Updated.Format(time.RFC3339Nano), "modify_index": 1, "namespace_id": "root",
	}}
}

// deleteGroup takes the group out of all that name it, and away.
func (b Backend) deleteGroup(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	g, row, err := group(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	if g == nil {
		return reply, nil
	}
	bare := *g
	bare.Entities, bare.Members = nil, nil
	if err := b.relate(r, &reply.Txn, g, &bare); err != nil {
		return nil, err
	}
	for _, id := range g.Parents {
		p, prow, err := GroupByID(r.View, id)
		if err != nil {
			return nil, err
		}
		if p != nil {
			p.Members = without(p.Members, g.ID)
			SaveGroup(&reply.Txn, prow, p, p.Name)
		}
	}
	DropGroup(&reply.Txn, row, g)
	return reply, nil
}

func (b Backend) lookupEntity(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var e *Entity
	var err error
	switch {
	case r.Str("id") != "" || r.Str("name") != "":
		e, _, err = entity(r)
	case r.Str("alias_id") != "":
		e, _, err = EntityByAliasID(r.View, r.Str("alias_id"))
	case r.Str("alias_name") != "" && r.Str("alias_mount_accessor") != "":
		e, _, err = EntityByAlias(r.View, r.Str("alias_mount_accessor"), r.Str("alias_name"))
	default:
		return nil, api.Errorf(api.Invalid, "query parameter not supplied")
	}
	if err != nil {
		return nil, err
	}
	if e == nil {
		return &engine.Reply{}, nil
	}
	return entityReply(r, e)
}

func (b Backend) lookupGroup(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if r.Str("id") == "" && r.Str("name") == "" {
		return nil, api.Errorf(api.Invalid, "query parameter not supplied")
	}
	g, _, err := group(r)
	if err != nil {
		return nil, err
	}
	if g == nil {
		return &engine.Reply{}, nil
	}
	return groupReply(g), nil
}
