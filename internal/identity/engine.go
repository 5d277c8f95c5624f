package identity

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Backend is the engine at identity/: entities, groups and the aliases of both, to read and to change.
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
		{Name: "entity_id", Type: engine.String, Help: "older name of canonical_id"},
		{Name: "mount_accessor", Type: engine.String, Help: "accessor of the auth mount"},
		{Name: "custom_metadata", Type: engine.Pairs, Help: "metadata of the operator's own, replaced as a whole"},
	}
	groupFields = []engine.Field{
		{Name: "id", Type: engine.String, Help: "id of the group; one that is there is updated"},
		{Name: "name", Type: engine.String, Help: "name of the group"},
		{Name: "type", Type: engine.String, Help: "internal or external; cannot be changed later"},
		{Name: "metadata", Type: engine.Pairs, Help: "metadata, replaced as a whole"},
		{Name: "policies", Type: engine.Strings, Help: "policies that members' tokens have besides their own"},
		{Name: "member_entity_ids", Type: engine.Strings, Help: "entities in it; not for external groups"},
		{Name: "member_group_ids", Type: engine.Strings, Help: "groups in it; not for external groups"},
	}
	groupAliasFields = []engine.Field{
		{Name: "id", Type: engine.String, Help: "id of the alias; one that is there is updated"},
		{Name: "name", Type: engine.String, Help: "name that the auth method has for the group"},
		{Name: "mount_accessor", Type: engine.String, Help: "accessor of the auth mount"},
		{Name: "canonical_id", Type: engine.String, Help: "id of the external group; without it a new one is made"},
	}
	mergeFields = []engine.Field{
		{Name: "from_entity_ids", Type: engine.Strings, Help: "entities that are merged"},
		{Name: "to_entity_id", Type: engine.String, Help: "entity that takes them in"},
		{Name: "conflicting_alias_ids_to_keep", Type: engine.Strings, Help: "aliases that stay where both entities have one at the same mount"},
		{Name: "force", Type: engine.Bool, Help: "accepted; nothing that an entity has conflicts but aliases"},
	}
	lookupFields = []engine.Field{
		{Name: "id", Type: engine.String, Help: "by id"},
		{Name: "name", Type: engine.String, Help: "by name"},
		{Name: "alias_id", Type: engine.String, Help: "by the id of an alias"},
		{Name: "alias_name", Type: engine.String, Help: "by the name of an alias, with alias_mount_accessor"},
		{Name: "alias_mount_accessor", Type: engine.String, Help: "accessor of the alias's mount"},
	}
	batchFields = []engine.Field{{Name: "entity_ids", Type: engine.Strings, Help: "entities to delete"}}
)

// Routes is the method table.
func (Backend) Routes() []engine.Route {
	write := func(h engine.Handler) ops { return ops{lessor.Update: h} }
	list := func(h engine.Handler) ops { return ops{lessor.List: h} }
	all := func(read, update, remove engine.Handler) ops {
		return ops{lessor.Read: read, lessor.Update: update, lessor.Delete: remove}
	}
	return append(aliasRoutes(), []engine.Route{
		{Pattern: "entity", Help: "create or update an entity", Fields: entityFields, Ops: write(writeEntity)},
		{Pattern: "entity/id", Help: "list entities by id", Ops: list(listEntities)},
		{Pattern: "entity/id/{id}", Help: "entities", Fields: entityFields, Ops: all(readEntity, writeEntity, deleteEntity)},
		{Pattern: "entity/name", Help: "list entities by name", Ops: list(listEntityNames)},
		{Pattern: "entity/name/{name...}", Help: "entities by name", Fold: true, Fields: entityFields, Ops: all(readEntity, writeEntity, deleteEntity)},
		{Pattern: "entity/batch-delete", Help: "delete entities", Fields: batchFields, Ops: write(deleteEntities)},
		{Pattern: "entity/merge", Help: "merge entities into one, with their tokens and leases", Fields: mergeFields, Ops: write(merge)},
		{Pattern: "group", Help: "create or update a group", Fields: groupFields, Ops: write(writeGroup)},
		{Pattern: "group/id", Help: "list groups by id", Ops: list(listGroups)},
		{Pattern: "group/id/{id}", Help: "groups", Fields: groupFields, Ops: all(readGroup, writeGroup, deleteGroup)},
		{Pattern: "group/name", Help: "list groups by name", Ops: list(listGroupNames)},
		{Pattern: "group/name/{name...}", Help: "groups by name", Fold: true, Fields: groupFields, Ops: all(readGroup, writeGroup, deleteGroup)},
		{Pattern: "group-alias", Help: "create or update the alias of an external group", Fields: groupAliasFields, Ops: write(writeGroupAlias)},
		{Pattern: "group-alias/id", Help: "list aliases of groups", Ops: list(listGroupAliases)},
		{Pattern: "group-alias/id/{id}", Help: "aliases of groups", Fields: groupAliasFields, Ops: all(readGroupAlias, writeGroupAlias, deleteGroupAlias)},
		{Pattern: "lookup/entity", Help: "find an entity", Fields: lookupFields, Ops: write(lookupEntity)},
		{Pattern: "lookup/group", Help: "find a group", Fields: lookupFields, Ops: write(lookupGroup)},
	}...)
}

// aliasRoutes are those of entities' aliases, under their name and under the two that they had before.
func aliasRoutes() (routes []engine.Route) {
	for _, name := range []string{"entity-alias", "alias", "persona"} {
		older := ""
		if name != "entity-alias" {
			older = "; an older path of entity-alias"
		}
		routes = append(routes,
			engine.Route{Pattern: name, Help: "create or update an alias" + older, Fields: aliasFields, Ops: ops{lessor.Update: writeAlias}},
			engine.Route{Pattern: name + "/id", Help: "list aliases" + older, Ops: ops{lessor.List: listAliases}},
			engine.Route{
				Pattern: name + "/id/{id}", Help: "aliases" + older, Fields: aliasFields,
				Ops: ops{lessor.Read: readAlias, lessor.Update: writeAlias, lessor.Delete: deleteAlias},
			},
		)
	}
	return routes
}

// mostListed bounds one list.
const mostListed = 100_000

var nothing = &api.Error{Kind: api.NotFound}

// done is the reply whose commit the changes are.
func (c *Change) done(data map[string]any) (*engine.Reply, error) {
	reply := &engine.Reply{Data: data}
	return reply, c.Into(&reply.Txn)
}

// named is the id or the name by which a request names what it is about. Where the path does, it alone: it is what policy was
// asked about, and nothing in the data may point elsewhere.
func named(r *engine.Request) (id, name string) {
	if id, name = r.Param("id"), r.Param("name"); id != "" || name != "" {
		return id, name
	}
	if id = r.Str("id"); id != "" {
		return id, ""
	}
	return "", r.Str("name")
}

// renamed is the name that a request gives to what it is about; empty: none.
func renamed(r *engine.Request) (string, error) {
	name := r.Param("name")
	if name == "" {
		name = r.Str("name")
	}
	return name, checkName(name)
}

func checkName(name string) error {
	if len(name) > longestName || !utf8.ValidString(name) || strings.ContainsFunc(name, func(c rune) bool { return c < 0x20 || c == 0x7f }) {
		return api.Errorf(api.Invalid, "a name has at most %d bytes, and no control characters", longestName)
	}
	return nil
}

// checkPolicies are the names of policies as they are kept. Nothing that identity says makes somebody root.
func checkPolicies(names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		switch n = strings.ToLower(strings.TrimSpace(n)); n {
		case "":
		case "root", "response-wrapping", "lessor-join":
			return nil, api.Errorf(api.Invalid, "policies cannot contain %s", n)
		default:
			out = append(out, n)
		}
	}
	return sorted(out), nil
}

// checkMetadata holds to Vault's limits.
func checkMetadata(m map[string]string) error {
	if len(m) > 64 {
		return api.Errorf(api.Invalid, "metadata cannot contain more than 64 key/value pairs")
	}
	for k, v := range m {
		if k == "" || len(k) > 128 || len(v) > 512 {
			return api.Errorf(api.Invalid, "metadata keys have 1 to 128 bytes, values at most 512")
		}
	}
	return nil
}

// pairs and names are null where nothing is.
func pairs(m map[string]string) any {
	if len(m) == 0 {
		return nil
	}
	return m
}

func names(s []string) any {
	if len(s) == 0 {
		return nil
	}
	return s
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// mounts are the auth mounts by accessor.
type mounts map[string]*mount.Entry

func mountsOf(r *engine.Request) mounts {
	all := mounts{}
	for _, m := range r.System.Mounts() {
		if m.Class == mount.Auth {
			all[m.Accessor] = m
		}
	}
	return all
}

// check refuses an accessor that no auth mount has.
func (m mounts) check(accessor string) error {
	if m[accessor] == nil {
		return api.Errorf(api.Invalid, "invalid mount accessor %q", accessor)
	}
	return nil
}

// brief is an alias as lists show it.
func (m mounts) brief(a *Alias) map[string]any {
	d := map[string]any{"id": a.ID, "name": a.Name, "mount_accessor": a.Mount}
	m.add(d, a.Mount)
	return d
}

// full is an alias as reads of what has it show it.
func (m mounts) full(a *Alias, canonical string) map[string]any {
	d := map[string]any{
		"id": a.ID, "name": a.Name, "canonical_id": canonical, "mount_accessor": a.Mount, "metadata": pairs(a.Metadata),
		"merged_from_canonical_ids": names(a.Merged), "creation_time": stamp(a.Created), "last_update_time": stamp(a.Updated),
	}
	m.add(d, a.Mount)
	return d
}

// read is an alias as reads of itself show it.
func (m mounts) read(a *Alias, canonical string) map[string]any {
	d := m.full(a, canonical)
	d["custom_metadata"], d["local"], d["namespace_id"] = pairs(a.Custom), false, "root"
	return d
}

// listed is an alias as lists of aliases show it.
func (m mounts) listed(a *Alias, canonical string) map[string]any {
	d := map[string]any{
		"name": a.Name, "canonical_id": canonical, "mount_accessor": a.Mount, "metadata": pairs(a.Metadata), "custom_metadata": pairs(a.Custom),
		"local": false,
	}
	m.add(d, a.Mount)
	return d
}

// add tells where an accessor leads, if it leads anywhere.
func (m mounts) add(d map[string]any, accessor string) {
	if e := m[accessor]; e != nil {
		d["mount_path"], d["mount_type"] = e.Path, e.Type
	}
}

// list is the answer to a List: what of makes of each row of a kind. Rows of which it makes no key are left out.
func list(r *engine.Request, kind string, of func(row store.Row, name string) (key, id string, info map[string]any, err error)) (*engine.Reply, error) {
	prefix := key(kind, "").Name
	keys, infos := []string{}, map[string]any{}
	reply := &engine.Reply{}
	for row, err := range r.View.Scan(store.Identity, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return nil, err
		}
		k, id, info, err := of(row, strings.TrimPrefix(row.Name, prefix))
		if err != nil {
			return nil, err
		}
		if k == "" {
			continue
		}
		if len(keys) == mostListed {
			reply.Warnings = []string{"there are more than the 100,000 that are listed"}
			break
		}
		keys = append(keys, k)
		if k == id {
			infos[id] = info // Vault tells it by id only
		}
	}
	if len(keys) == 0 {
		return nil, nothing
	}
	slices.Sort(keys)
	reply.Data = map[string]any{"keys": keys}
	if len(infos) > 0 {
		reply.Data["key_info"] = infos
	}
	return reply, nil
}

// find sorts out by what a lookup asks: one of id, name, alias_id, or alias_name together with alias_mount_accessor.
func find[T any](r *engine.Request, byID, byName, byAliasID func(string) (*T, error), byAlias func(accessor, name string) (*T, error)) (*T, error) {
	var sent []string
	for _, f := range lookupFields {
		if r.Has(f.Name) {
			sent = append(sent, f.Name)
		}
	}
	aliasName, accessor := r.Str("alias_name"), r.Str("alias_mount_accessor")
	switch {
	case len(sent) == 0:
		return nil, api.Errorf(api.Invalid, "query parameter not supplied")
	case len(sent) == 2 && aliasName != "" && accessor != "":
		return byAlias(accessor, aliasName)
	case len(sent) > 1:
		return nil, api.Errorf(api.Invalid, "query parameter conflict; please supply distinct set of query parameters")
	case aliasName != "" || accessor != "":
		return nil, api.Errorf(api.Invalid, "both 'alias_name' and 'alias_mount_accessor' needs to be set")
	case r.Str("id") != "":
		return byID(r.Str("id"))
	case r.Str("name") != "":
		return byName(r.Str("name"))
	case r.Str("alias_id") != "":
		return byAliasID(r.Str("alias_id"))
	}
	return nil, nil
}
