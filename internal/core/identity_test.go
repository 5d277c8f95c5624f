package core_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// write is an update of identity/ by root whose answer is not asked for.
func (g *gate) write(path, data string) { g.Helper(); g.do(g.root, lessor.Update, path, data) }

// show reads a path as root.
func (g *gate) show(path string) map[string]any {
	g.Helper()
	return g.do(g.root, lessor.Read, path, "").Data
}

// made is the id in the answer to an update by root.
func (g *gate) made(path, data string) string {
	g.Helper()
	id, _ := g.do(g.root, lessor.Update, path, data).Data["id"].(string)
	if id == "" {
		g.Fatalf("%s %s made nothing", path, data)
	}
	return id
}

// accessor of an auth mount.
func (g *gate) accessor(path string) string {
	g.Helper()
	return g.show("sys/auth")[path].(map[string]any)["accessor"].(string)
}

func keysOf(m map[string]any) string { return strings.Join(slices.Sorted(maps.Keys(m)), " ") }

func TestEntities(t *testing.T) {
	g := start(t)
	a := g.do(g.root, lessor.Update, "identity/entity", `{"name":"Ann","metadata":{"team":"x"},"policies":["P1","p2","p1"]}`)
	id := a.Data["id"].(string)
	if keysOf(a.Data) != "aliases id name" || a.Data["name"] != "Ann" || a.Data["aliases"] != nil {
		t.Errorf("created: %v", a.Data)
	}
	d := g.show("identity/entity/id/" + id)
	if got, want := keysOf(d), "aliases creation_time direct_group_ids disabled group_ids id inherited_group_ids last_update_time merged_entity_ids metadata name namespace_id policies"; got != want {
		t.Errorf("keys %s\nwant %s", got, want)
	}
	if fmt.Sprint(d["policies"]) != "[p1 p2]" || d["namespace_id"] != "root" || d["merged_entity_ids"] != nil {
		t.Errorf("read: %v", d)
	}
	// Names have no case; an update answers 204 and keeps what it does not name.
	for _, path := range []string{"identity/entity/name/ann", "identity/entity"} {
		if a := g.do(g.root, lessor.Update, path, `{"name":"ANN","disabled":true}`); !a.Empty() {
			t.Errorf("%s: an update answers %v", path, a.Data)
		}
	}
	if d := g.show("identity/entity/name/aNN"); d["name"] != "ANN" && d["name"] != "ann" || d["id"] != id || fmt.Sprint(d["metadata"]) != "map[team:x]" || d["disabled"] != true {
		t.Errorf("updated: %v", d)
	}
	other := g.made("identity/entity", `{}`)
	if name := g.show("identity/entity/id/" + other)["name"].(string); !strings.HasPrefix(name, "entity_") {
		t.Errorf("made up name %q", name)
	}
	g.write("identity/entity/name/a/b", `{"policies":"p3"}`) // names may have slashes
	if d := g.show("identity/entity/name/a/b"); fmt.Sprint(d["policies"]) != "[p3]" {
		t.Errorf("name with a slash: %v", d)
	}
	for data, text := range map[string]string{
		`{"id":"` + other + `","name":"ann"}`: "entity name is already in use",
		`{"id":"no"}`:                         "entity not found from id",
		`{"policies":"Root"}`:                 "policies cannot contain root",
		`{"metadata":{"":"x"}}`:               "metadata keys",
	} {
		if got := g.refused(api.Invalid, g.root, lessor.Update, "identity/entity", data); !strings.Contains(got, text) {
			t.Errorf("%s: %s", data, got)
		}
	}
	list := g.do(g.root, lessor.List, "identity/entity/name/", "").Data
	if fmt.Sprint(list["keys"].([]string)[:2]) != "[ANN a/b]" && fmt.Sprint(list["keys"].([]string)[:2]) != "[a/b ann]" || list["key_info"] != nil {
		t.Errorf("list by name: %v", list)
	}
	list = g.do(g.root, lessor.List, "identity/entity/id/", "").Data
	if len(list["keys"].([]string)) != 3 || list["key_info"].(map[string]any)[id] == nil {
		t.Errorf("list by id: %v", list)
	}
	g.write("identity/entity/batch-delete", `{"entity_ids":["`+id+`","`+other+`","nobody"]}`)
	g.refused(api.NotFound, g.root, lessor.Read, "identity/entity/id/"+id, "")
	if got := g.do(g.root, lessor.List, "identity/entity/id/", "").Data["keys"].([]string); len(got) != 1 {
		t.Errorf("after a batch delete: %v", got)
	}
	g.do(g.root, lessor.Delete, "identity/entity/id/"+id, "")
	g.write("identity/entity", `{"name":"ann"}`) // the name is free again
}

func TestEntityAliases(t *testing.T) {
	g := start(t)
	g.write("sys/auth/userpass", `{"type":"userpass"}`)
	g.write("sys/auth/second", `{"type":"userpass"}`)
	first, second := g.accessor("userpass/"), g.accessor("second/")
	ann, bob := g.made("identity/entity", `{"name":"ann"}`), g.made("identity/entity", `{"name":"bob"}`)
	alias := func(data string) string {
		return g.made("identity/entity-alias", data)
	}
	// Prepared before the first login, in whatever case.
	id := alias(`{"name":"Ann","mount_accessor":"` + first + `","canonical_id":"` + ann + `","custom_metadata":{"k":"v"}}`)
	if login := g.login("userpass", "ann"); login.Auth.Entity != ann {
		t.Errorf("login is entity %s, not the prepared %s", login.Auth.Entity, ann)
	}
	d := g.show("identity/entity-alias/id/" + id)
	if got, want := keysOf(d), "canonical_id creation_time custom_metadata id last_update_time local merged_from_canonical_ids metadata mount_accessor mount_path mount_type name namespace_id"; got != want {
		t.Errorf("keys %s\nwant %s", got, want)
	}
	if d["mount_path"] != "auth/userpass/" || d["mount_type"] != "userpass" || fmt.Sprint(d["custom_metadata"]) != "map[k:v]" || d["canonical_id"] != ann {
		t.Errorf("alias: %v", d)
	}
	if a := g.do(g.root, lessor.Update, "identity/entity-alias", `{"name":"ann","mount_accessor":"`+first+`"}`); a.Data["id"] != id {
		t.Errorf("found by its factors: %v", a.Data)
	}
	if a := g.do(g.root, lessor.Update, "identity/entity-alias/id/"+id, `{}`); !a.Empty() {
		t.Errorf("nothing to do: %v", a.Data)
	}
	alone := g.do(g.root, lessor.Update, "identity/entity-alias", `{"name":"carl","mount_accessor":"`+first+`"}`).Data
	if alone["canonical_id"] == ann || alone["canonical_id"] == "" {
		t.Errorf("an alias alone: %v", alone)
	}
	at2 := alias(`{"name":"x","mount_accessor":"` + second + `","entity_id":"` + bob + `"}`)
	for data, text := range map[string]string{
		`{"name":"dora","mount_accessor":"` + first + `","canonical_id":"` + ann + `"}`: "Alias already exists for requested entity",
		`{"name":"dora","mount_accessor":"none"}`:                                       "invalid mount accessor",
		`{"name":"dora"}`:                                                             "'id' or 'mount_accessor' and 'name' must be provided",
		`{"id":"` + id + `","name":"CARL"}`:                                           "combination of mount accessor and name already exists",
		`{"id":"` + id + `","canonical_id":"nobody"}`:                                 "given 'canonical_id' is not associated",
		`{"id":"` + at2 + `","mount_accessor":"` + first + `","name":"ann"}`:          "already exists",
		`{"id":"` + id + `","canonical_id":"` + alone["canonical_id"].(string) + `"}`: "already has an alias for this mount",
		`{"id":"none"}`: "invalid alias ID",
	} {
		if got := g.refused(api.Invalid, g.root, lessor.Update, "identity/entity-alias", data); !strings.Contains(got, text) {
			t.Errorf("%s: %s", data, got)
		}
	}
	g.write("identity/entity-alias/id/"+id, `{"canonical_id":"`+bob+`"}`)
	if login := g.do(lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`); login.Auth.Entity != bob {
		t.Errorf("the alias moved, the login did not: %s", login.Auth.Entity)
	}
	if list := g.do(g.root, lessor.List, "identity/entity-alias/id/", "").Data; len(list["keys"].([]string)) != 3 ||
		list["key_info"].(map[string]any)[id].(map[string]any)["canonical_id"] != bob {
		t.Errorf("list: %v", list)
	}
	g.do(g.root, lessor.Delete, "identity/entity-alias/id/"+id, "")
	g.refused(api.NotFound, g.root, lessor.Read, "identity/entity-alias/id/"+id, "")
	if as := g.show("identity/entity/id/" + bob)["aliases"].([]any); len(as) != 1 {
		t.Errorf("aliases left: %v", as)
	}
}

// Aliases are found under the names that their paths had once, too: persona, then alias.
func TestAliasesUnderOlderPaths(t *testing.T) {
	g := start(t)
	g.write("sys/auth/userpass", `{"type":"userpass"}`)
	accessor, ann := g.accessor("userpass/"), g.made("identity/entity", `{"name":"ann"}`)
	for _, older := range []string{"persona", "alias"} {
		id := g.made("identity/"+older, `{"name":"`+older+`","mount_accessor":"`+accessor+`","entity_id":"`+ann+`"}`)
		if d := g.show("identity/entity-alias/id/" + id); d["name"] != older || d["canonical_id"] != ann {
			t.Errorf("made as %s: %v", older, d)
		}
		g.write("identity/"+older+"/id/"+id, `{"name":"renamed"}`)
		if d := g.show("identity/" + older + "/id/" + id); d["name"] != "renamed" {
			t.Errorf("renamed as %s: %v", older, d)
		}
		if keys := g.do(g.root, lessor.List, "identity/"+older+"/id/", "").Data["keys"].([]string); !slices.Equal(keys, []string{id}) {
			t.Errorf("listed as %s: %v", older, keys)
		}
		g.do(g.root, lessor.Delete, "identity/"+older+"/id/"+id, "")
		g.refused(api.NotFound, g.root, lessor.Read, "identity/entity-alias/id/"+id, "")
	}
}

func TestLookups(t *testing.T) {
	g := start(t)
	g.write("sys/auth/userpass", `{"type":"userpass"}`)
	at := g.accessor("userpass/")
	ann := g.made("identity/entity", `{"name":"ann"}`)
	alias := g.made("identity/entity-alias", `{"name":"ann","mount_accessor":"`+at+`","canonical_id":"`+ann+`"}`)
	ext := g.made("identity/group", `{"name":"ext","type":"external"}`)
	galias := g.made("identity/group-alias", `{"name":"admins","mount_accessor":"`+at+`","canonical_id":"`+ext+`"}`)
	for _, c := range []struct{ path, data, want string }{
		{"entity", `{"id":"` + ann + `"}`, ann}, {"entity", `{"name":"ANN"}`, ann}, {"entity", `{"alias_id":"` + alias + `"}`, ann},
		{"entity", `{"alias_name":"Ann","alias_mount_accessor":"` + at + `"}`, ann}, {"entity", `{"id":"` + ext + `"}`, ""}, {"entity", `{"name":""}`, ""},
		{"entity", `{"alias_name":"admins","alias_mount_accessor":"` + at + `"}`, ""},
		{"group", `{"id":"` + ext + `"}`, ext}, {"group", `{"name":"Ext"}`, ext}, {"group", `{"alias_id":"` + galias + `"}`, ext},
		{"group", `{"alias_name":"Admins","alias_mount_accessor":"` + at + `"}`, ext}, {"group", `{"alias_id":"` + alias + `"}`, ""},
	} {
		a := g.do(g.root, lessor.Update, "identity/lookup/"+c.path, c.data)
		if got, _ := a.Data["id"].(string); got != c.want || c.want == "" && !a.Empty() {
			t.Errorf("%s %s: %q, want %q", c.path, c.data, got, c.want)
		}
	}
	for data, text := range map[string]string{
		`{}`: "query parameter not supplied", `{"id":"x","name":"y"}`: "query parameter conflict",
		`{"alias_name":"x"}`: "both 'alias_name' and 'alias_mount_accessor'", `{"alias_name":"x","alias_mount_accessor":"y","id":"z"}`: "conflict",
	} {
		for _, path := range []string{"entity", "group"} {
			if got := g.refused(api.Invalid, g.root, lessor.Update, "identity/lookup/"+path, data); !strings.Contains(got, text) {
				t.Errorf("%s %s: %s", path, data, got)
			}
		}
	}
}

func TestGroups(t *testing.T) {
	g := start(t)
	g.write("sys/auth/userpass", `{"type":"userpass"}`)
	at := g.accessor("userpass/")
	ann := g.made("identity/entity", `{"name":"ann"}`)
	id := g.made("identity/group", `{"name":"team","policies":"p","metadata":{"a":"b"},"member_entity_ids":["`+ann+`"]}`)
	d := g.show("identity/group/name/TEAM")
	if got, want := keysOf(d), "alias creation_time id last_update_time member_entity_ids member_group_ids metadata modify_index name namespace_id parent_group_ids policies type"; got != want {
		t.Errorf("keys %s\nwant %s", got, want)
	}
	if d["type"] != "internal" || fmt.Sprint(d["alias"]) != "map[]" || d["modify_index"] != uint64(1) || fmt.Sprint(d["member_entity_ids"]) != "["+ann+"]" {
		t.Errorf("group: %v", d)
	}
	outer := g.made("identity/group", `{"name":"outer","member_group_ids":["`+id+`"]}`)
	if d := g.show("identity/entity/id/" + ann); fmt.Sprint(d["direct_group_ids"], d["inherited_group_ids"], d["group_ids"]) != fmt.Sprintf("[%s] [%s] [%s %s]", id, outer, id, outer) {
		t.Errorf("groups of an entity: %v", d)
	}
	if d := g.show("identity/group/id/" + id); d["modify_index"] != uint64(2) || fmt.Sprint(d["parent_group_ids"]) != "["+outer+"]" {
		t.Errorf("after it became a member: %v", d)
	}
	ext := g.made("identity/group", `{"name":"ext","type":"external","policies":"p-ext"}`)
	for _, c := range []struct{ path, data, text string }{
		{"group", `{"name":"x","type":"odd"}`, "invalid group type"},
		{"group/id/" + id, `{"type":"external"}`, "group type cannot be changed"},
		{"group/id/" + ext, `{"name":"team"}`, "group name is already in use"},
		{"group/id/none", `{}`, "invalid group ID"},
		{"group/id/" + id, `{"member_entity_ids":["none"]}`, "invalid entity ID"},
		{"group/id/" + id, `{"member_group_ids":["none"]}`, "invalid member group ID"},
		{"group/id/" + id, `{"member_group_ids":["` + outer + `"]}`, "cyclic relationship detected for member group ID"},
		{"group/id/" + id, `{"member_group_ids":["` + id + `"]}`, "same as the ID of the group"},
		{"group/id/" + ext, `{"member_entity_ids":["` + ann + `"]}`, "member entities can't be set manually for external groups"},
		{"group/id/" + ext, `{"member_group_ids":["` + id + `"]}`, "member groups can't be set for external groups"},
		{"group-alias", `{"name":"x","mount_accessor":"` + at + `","canonical_id":"` + id + `"}`, "alias can't be set on an internal group"},
		{"group-alias", `{"name":"x","mount_accessor":"none","canonical_id":"` + ext + `"}`, "invalid mount accessor"},
		{"group-alias", `{"mount_accessor":"` + at + `"}`, "missing alias name"},
		{"group-alias", `{"name":"x"}`, "missing mount_accessor"},
		{"group-alias/id/none", `{"name":"x","mount_accessor":"` + at + `"}`, "invalid group alias ID"},
	} {
		if got := g.refused(api.Invalid, g.root, lessor.Update, "identity/"+c.path, c.data); !strings.Contains(got, c.text) {
			t.Errorf("%s %s: %s", c.path, c.data, got)
		}
	}
	alias := g.made("identity/group-alias", `{"name":"Admins","mount_accessor":"`+at+`","canonical_id":"`+ext+`"}`)
	if got := g.refused(api.Invalid, g.root, lessor.Update, "identity/group-alias", `{"name":"admins","mount_accessor":"`+at+`"}`); !strings.Contains(got, "already in use") {
		t.Error(got)
	}
	if a := g.show("identity/group/id/" + ext)["alias"].(map[string]any); a["id"] != alias || a["name"] != "Admins" || a["mount_type"] != "userpass" || a["canonical_id"] != ext {
		t.Errorf("alias of a group: %v", a)
	}
	if a := g.do(g.root, lessor.Update, "identity/group-alias/id/"+alias, `{"name":"Admins","mount_accessor":"`+at+`"}`); !a.Empty() {
		t.Errorf("nothing to do: %v", a.Data)
	}
	// An alias alone makes its group, and moves.
	made := g.do(g.root, lessor.Update, "identity/group-alias", `{"name":"ops","mount_accessor":"`+at+`"}`).Data
	g.write("identity/group-alias/id/"+made["id"].(string), `{"name":"ops","mount_accessor":"`+at+`","canonical_id":"`+ext+`"}`)
	g.refused(api.NotFound, g.root, lessor.Read, "identity/group-alias/id/"+alias, "")
	if d := g.show("identity/group/id/" + made["canonical_id"].(string)); d["type"] != "external" || fmt.Sprint(d["alias"]) != "map[]" {
		t.Errorf("the group that the alias left: %v", d)
	}
	if list := g.do(g.root, lessor.List, "identity/group-alias/id/", "").Data; len(list["keys"].([]string)) != 1 {
		t.Errorf("list of aliases: %v", list)
	}
	list := g.do(g.root, lessor.List, "identity/group/id/", "").Data
	if info := list["key_info"].(map[string]any)[id].(map[string]any); info["num_member_entities"] != 1 || info["num_parent_groups"] != 1 {
		t.Errorf("list: %v", list)
	}
	g.do(g.root, lessor.Delete, "identity/group/name/ext", "")
	g.refused(api.NotFound, g.root, lessor.Read, "identity/group-alias/id/"+made["id"].(string), "")
	g.made("identity/group-alias", `{"name":"ops","mount_accessor":"`+at+`"}`) // its name is free again
}

// grouped is an auth method that says which groups somebody is in.
type grouped struct{}

func (grouped) Routes() []engine.Route {
	return []engine.Route{{
		Pattern: "login", Help: "Log in.", Open: true,
		Fields: []engine.Field{{Name: "name", Type: engine.String, Help: "who"}, {Name: "groups", Type: engine.Strings, Help: "groups"}},
		Ops: map[lessor.Verb]engine.Handler{lessor.Update: func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
			return &engine.Reply{Login: &engine.Login{Alias: r.Str("name"), Name: r.Str("name"), Groups: r.List("groups")}}, nil
		}},
	}}
}

func TestExternalGroupsFollowLogins(t *testing.T) {
	g := start(t, func(o *core.Options) { o.Backends["userpass"] = grouped{} })
	g.write("sys/auth/one", `{"type":"userpass"}`)
	g.write("sys/auth/two", `{"type":"userpass"}`)
	groups := map[string]string{}
	for _, name := range []string{"one/admins", "one/users", "two/admins"} {
		mount, alias, _ := strings.Cut(name, "/")
		groups[name] = g.made("identity/group", `{"name":"`+mount+"-"+alias+`","type":"external","policies":"p-`+mount+"-"+alias+`"}`)
		g.write("identity/group-alias", `{"name":"`+alias+`","mount_accessor":"`+g.accessor(mount+"/")+`","canonical_id":"`+groups[name]+`"}`)
	}
	g.write("identity/group", `{"name":"outer","policies":"p-outer","member_group_ids":["`+groups["one/admins"]+`"]}`)
	login := func(mount, data string) *lessor.Auth {
		return g.do(lessor.Secret{}, lessor.Update, "auth/"+mount+"/login", data).Auth
	}
	policies := func(a *lessor.Auth) string { return strings.Join(a.IdentityPolicies, " ") }
	first := login("one", `{"name":"ann","groups":"Admins,users,unknown"}`)
	if got := policies(first); got != "p-one-admins p-one-users p-outer" {
		t.Errorf("first login: %s", got)
	}
	if d := g.show("identity/group/id/" + groups["one/users"]); fmt.Sprint(d["member_entity_ids"]) != "["+first.Entity+"]" {
		t.Errorf("members: %v", d)
	}
	internal := g.made("identity/group", `{"name":"internal","policies":"p-internal","member_entity_ids":["`+first.Entity+`"]}`)
	// A login through another mount says nothing of the groups of the first.
	g.write("identity/entity-alias", `{"name":"annie","mount_accessor":"`+g.accessor("two/")+`","canonical_id":"`+first.Entity+`"}`)
	if got := policies(login("two", `{"name":"annie","groups":"admins"}`)); got != "p-internal p-one-admins p-one-users p-outer p-two-admins" {
		t.Errorf("through another mount: %s", got)
	}
	again := login("one", `{"name":"ann","groups":"users"}`)
	if got := policies(again); got != "p-internal p-one-users p-two-admins" {
		t.Errorf("next login: %s", got)
	}
	// The older token lost the group, too.
	if d := g.do(first.Token, lessor.Read, "auth/token/lookup-self", "").Data; strings.Join(d["identity_policies"].([]string), " ") != policies(again) {
		t.Errorf("older token: %v", d["identity_policies"])
	} else if elsewhere, ok := d["external_namespace_policies"].(map[string]any); !ok || len(elsewhere) != 0 {
		t.Errorf("policies of other namespaces: %v", d["external_namespace_policies"])
	}
	if got := policies(login("one", `{"name":"ann"}`)); got != "p-internal p-two-admins" {
		t.Errorf("without groups: %s", got)
	}
	if d := g.show("identity/group/id/" + groups["one/users"]); d["member_entity_ids"] != nil {
		t.Errorf("members left: %v", d)
	}
	g.do(g.root, lessor.Delete, "identity/group/id/"+internal, "")
	g.do(g.root, lessor.Delete, "identity/entity/id/"+first.Entity, "")
	if d := g.show("identity/group/id/" + groups["two/admins"]); d["member_entity_ids"] != nil {
		t.Errorf("members left: %v", d)
	}
}

// Who was one entity is another after a merge: tokens go on working, with the other's policies, and what they hold is the other's.
func TestMergedEntities(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.write("secret/data/app", `{"data":{"k":"v"}}`)
	g.write("secret/data/team", `{"data":{"k":"v"}}`)
	g.policy("app", `path "secret/data/app" { capabilities = ["read"] }`)
	g.policy("team", `path "secret/data/team" { capabilities = ["read"] }`)
	g.write("sys/auth/userpass", `{"type":"userpass"}`)
	g.write("sys/auth/second", `{"type":"userpass"}`)
	old, keep := g.login("userpass", "ann").Auth, g.login("second", "annie").Auth
	batch := func() lessor.Secret {
		g.write("auth/userpass/users/ann", `{"token_type":"batch"}`)
		return g.do(lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`).Auth.Token
	}()
	group := g.made("identity/group", `{"name":"team","policies":"team","member_entity_ids":["`+old.Entity+`"]}`)
	g.write("identity/entity/id/"+old.Entity, `{"policies":"app"}`)
	g.do(old.Token, lessor.Read, "secret/data/app", "")
	g.write("identity/entity/id/"+keep.Entity, `{"name":"annie"}`)

	for data, text := range map[string]string{
		`{"from_entity_ids":"` + old.Entity + `"}`:                                                                 "missing entity id to merge to",
		`{"to_entity_id":"` + old.Entity + `"}`:                                                                    "missing entity ids to merge from",
		`{"to_entity_id":"none","from_entity_ids":"` + old.Entity + `"}`:                                           "entity id to merge to is invalid",
		`{"to_entity_id":"` + old.Entity + `","from_entity_ids":"none"}`:                                           "entity id to merge from is invalid",
		`{"to_entity_id":"` + old.Entity + `","from_entity_ids":"` + old.Entity + `"}`:                             "to_entity_id should not be present",
		`{"to_entity_id":"` + old.Entity + `","from_entity_ids":"` + g.login("userpass", "bob").Auth.Entity + `"}`: "same mount accessor",
	} {
		if got := g.refused(api.Invalid, g.root, lessor.Update, "identity/entity/merge", data); !strings.Contains(got, text) {
			t.Errorf("%s: %s", data, got)
		}
	}
	if a := g.do(g.root, lessor.Update, "identity/entity/merge", `{"from_entity_ids":["`+old.Entity+`"],"to_entity_id":"`+keep.Entity+`"}`); !a.Empty() {
		t.Errorf("a merge answers %v", a)
	}
	if note := g.last("identity/entity/merge")[0].Note; note != "entity "+old.Entity+" into entity "+keep.Entity {
		t.Errorf("record: %q", note)
	}
	d := g.show("identity/entity/id/" + keep.Entity)
	if fmt.Sprint(d["merged_entity_ids"]) != "["+old.Entity+"]" || len(d["aliases"].([]any)) != 2 || fmt.Sprint(d["direct_group_ids"]) != "["+group+"]" {
		t.Errorf("after the merge: %v", d)
	}
	if a := d["aliases"].([]any)[1].(map[string]any); fmt.Sprint(a["merged_from_canonical_ids"]) != "["+old.Entity+"]" || a["canonical_id"] != keep.Entity {
		t.Errorf("the alias that came: %v", a)
	}
	g.refused(api.NotFound, g.root, lessor.Read, "identity/entity/id/"+old.Entity, "")
	if d := g.show("identity/group/id/" + group); fmt.Sprint(d["member_entity_ids"]) != "["+keep.Entity+"]" {
		t.Errorf("group: %v", d)
	}

	// Tokens from before: the groups came along, the policies of the merged entity did not.
	for _, tok := range []lessor.Secret{old.Token, batch} {
		g.do(tok, lessor.Read, "secret/data/team", "")
		if rec := g.last("secret/data/team")[0]; rec.Entity != keep.Entity {
			t.Errorf("record of a token from before: %+v", rec.Record)
		}
		g.refused(api.Denied, tok, lessor.Read, "secret/data/app", "")
	}
	if d := g.do(old.Token, lessor.Read, "auth/token/lookup-self", "").Data; d["entity_id"] != keep.Entity {
		t.Errorf("token from before: %v", d["entity_id"])
	}
	if login := g.do(lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`).Auth; login.Entity != keep.Entity {
		t.Errorf("login: %s", login.Entity)
	}
	holders := g.show("sys/lessor/holders/secret/app")["holders"].([]any)
	if len(holders) != 1 || holders[0].(map[string]any)["entity_id"] != keep.Entity {
		t.Errorf("holders: %v", holders)
	}

	// Merged on: ids from further back lead to the last. Deleting it, or revoking all that it holds, hits what they hold.
	third := g.made("identity/entity", `{"name":"third"}`)
	g.write("identity/entity/merge", `{"from_entity_ids":["`+keep.Entity+`"],"to_entity_id":"`+third+`"}`)
	if d := g.do(old.Token, lessor.Read, "auth/token/lookup-self", "").Data; d["entity_id"] != third {
		t.Errorf("merged twice: %v", d["entity_id"])
	}
	g.do(g.root, lessor.Delete, "identity/entity/id/"+third, "")
	for _, tok := range []lessor.Secret{old.Token, keep.Token, batch} {
		g.refused(api.Unauthenticated, tok, lessor.Read, "auth/token/lookup-self", "")
	}
	g.eventually("the lease from before the merges is gone", func() bool {
		return len(g.show("sys/lessor/exposures/secret/app")["exposures"].([]any)) == 1
	})
}

func TestRevokedByMergedHolder(t *testing.T) {
	g := start(t)
	g.write("sys/auth/userpass", `{"type":"userpass"}`)
	g.write("sys/auth/second", `{"type":"userpass"}`)
	old, keep := g.login("userpass", "ann").Auth, g.login("second", "annie").Auth
	g.write("identity/entity/merge", `{"from_entity_ids":["`+old.Entity+`"],"to_entity_id":"`+keep.Entity+`"}`)
	g.write("sys/lessor/revoke", `{"by":"holder","value":"`+old.Entity+`"}`)
	for _, a := range []*lessor.Auth{old, keep} {
		g.refused(api.Unauthenticated, a.Token, lessor.Read, "auth/token/lookup-self", "")
	}
}

// Policies that are named, and templates, by what identity knows.
func TestTemplatesOfIdentity(t *testing.T) {
	g := start(t)
	g.write("sys/auth/userpass", `{"type":"userpass"}`)
	at := g.accessor("userpass/")
	login := g.login("userpass", "ann").Auth
	g.write("identity/entity/id/"+login.Entity, `{"name":"ann","metadata":{"team":"blue"},"policies":"templated"}`)
	alias := g.show("identity/entity/id/" + login.Entity)["aliases"].([]any)[0].(map[string]any)["id"].(string)
	g.write("identity/entity-alias/id/"+alias, `{"custom_metadata":{"cost":"c1"}}`)
	id := g.made("identity/group", `{"name":"crew","metadata":{"floor":"3"},"member_entity_ids":["`+login.Entity+`"]}`)
	g.policy("templated", `
		path "a/{{identity.entity.id}}" { capabilities = ["read"] }
		path "b/{{identity.entity.name}}" { capabilities = ["read"] }
		path "c/{{identity.entity.metadata.team}}/*" { capabilities = ["read"] }
		path "d/{{identity.entity.aliases.`+at+`.name}}" { capabilities = ["read"] }
		path "e/{{identity.entity.aliases.`+at+`.metadata.cost}}" { capabilities = ["read"] }
		path "f/{{identity.groups.ids.`+id+`.name}}" { capabilities = ["read"] }
		path "g/{{identity.groups.names.crew.metadata.floor}}" { capabilities = ["read"] }
		path "h/{{identity.groups.names.other.id}}" { capabilities = ["read"] }
		path "i/{{identity.entity.metadata.none}}" { capabilities = ["read"] }`)
	may := func(path string) string {
		g.Helper()
		caps := g.do(g.root, lessor.Update, "sys/capabilities-accessor", `{"accessor":"`+login.Accessor+`","paths":["`+path+`"]}`).Data[path]
		self := g.do(login.Token, lessor.Update, "sys/capabilities-self", `{"paths":["`+path+`"]}`).Data[path]
		if fmt.Sprint(caps) != fmt.Sprint(self) {
			t.Errorf("%s: %v by accessor, %v by oneself", path, caps, self)
		}
		return fmt.Sprint(caps)
	}
	for _, path := range []string{"a/" + login.Entity, "b/ann", "c/blue/x", "d/ann", "e/c1", "f/crew", "g/3"} {
		if got := may(path); got != "[read]" {
			t.Errorf("%s: %s", path, got)
		}
	}
	for _, path := range []string{"a/x", "h/", "i/", "c/red/x"} {
		if got := may(path); got != "[deny]" {
			t.Errorf("%s: %s", path, got)
		}
	}
}

// Nobody gains power by what they may write in identity/ but by policies that they may name there.
func TestIdentityGivesNoRoot(t *testing.T) {
	g := start(t)
	g.policy("names", `path "identity/entity/name/mine" { capabilities = ["create", "update"] }`)
	mine := g.token(`{"policies":["names"]}`)
	g.do(mine, lessor.Update, "identity/entity/name/mine", `{}`)
	for _, path := range []string{"identity/entity", "identity/entity/id/x", "identity/entity/merge", "identity/entity/batch-delete", "identity/group",
		"identity/group-alias", "identity/entity-alias", "identity/lookup/entity"} {
		g.refused(api.Denied, mine, lessor.Update, path, `{}`)
	}
	g.refused(api.Invalid, mine, lessor.Update, "identity/entity/name/mine", `{"policies":["root"]}`)
}
