package approle

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// role is a row of store.Config. CBOR keys are on disk: never renumber, only append.
type role struct {
	Key             string            `cbor:"1,keyasint"` // 16 random bytes; begins the names of its secret ids' rows
	Name            string            `cbor:"2,keyasint"`
	RoleID          string            `cbor:"3,keyasint"`
	BindSecretID    bool              `cbor:"4,keyasint,omitempty"`
	SecretIDBound   []netip.Prefix    `cbor:"5,keyasint,omitempty"`
	SecretIDNumUses int               `cbor:"6,keyasint,omitempty"`
	SecretIDTTL     time.Duration     `cbor:"7,keyasint,omitempty"`
	LocalSecretIDs  bool              `cbor:"8,keyasint,omitempty"`
	Token           engine.TokenTerms `cbor:"9,keyasint"`
	Older           []string          `cbor:"10,keyasint,omitempty"` // parameters last written by their older names
}

var older = auth.Older{"token_policies": "policies", "token_period": "period", "secret_id_bound_cidrs": "bound_cidr_list"}

// fields are the parameters of a role.
var fields = func() []engine.Field {
	all := append([]engine.Field{
		{Name: "bind_secret_id", Type: engine.Bool, Help: "logins need a secret id; true unless said otherwise"},
		{Name: "secret_id_bound_cidrs", Type: engine.Strings, Help: "addresses that may log in; none: any"},
		{Name: "secret_id_num_uses", Type: engine.Int, Help: "logins that a secret id is good for; 0: unlimited"},
		{Name: "secret_id_ttl", Type: engine.Duration, Help: "how long a secret id is good; 0: until it is destroyed"},
		{Name: "local_secret_ids", Type: engine.Bool, Help: "secret ids stay in this cluster; cannot be changed later"},
		{Name: "role_id", Type: engine.String, Help: "name of the role at login; made up if not given"},
	}, auth.TokenFields()...)
	return append(all, older.Fields(all)...)
}()

// setting is a sub-path of a role, which reads, writes and resets some of its parameters.
type setting struct {
	path       string
	parameters []string
	reset      func(*role) // nil: cannot be reset
	fixed      bool        // read only
}

var settings = []setting{
	{path: "policies", parameters: []string{"token_policies", "policies"}, reset: func(ro *role) { ro.Token.Policies = nil }},
	{path: "bound-cidr-list", parameters: []string{"bound_cidr_list"}, reset: func(ro *role) { ro.SecretIDBound = nil }},
	{path: "secret-id-bound-cidrs", parameters: []string{"secret_id_bound_cidrs"}, reset: func(ro *role) { ro.SecretIDBound = nil }},
	{path: "token-bound-cidrs", parameters: []string{"token_bound_cidrs"}, reset: func(ro *role) { ro.Token.BoundCIDRs = nil }},
	{path: "bind-secret-id", parameters: []string{"bind_secret_id"}, reset: func(ro *role) { ro.BindSecretID = true }},
	{path: "secret-id-num-uses", parameters: []string{"secret_id_num_uses"}, reset: func(ro *role) { ro.SecretIDNumUses = 0 }},
	{path: "secret-id-ttl", parameters: []string{"secret_id_ttl"}, reset: func(ro *role) { ro.SecretIDTTL = 0 }},
	{path: "token-num-uses", parameters: []string{"token_num_uses"}, reset: func(ro *role) { ro.Token.NumUses = 0 }},
	{path: "token-ttl", parameters: []string{"token_ttl"}, reset: func(ro *role) { ro.Token.TTL = 0 }},
	{path: "token-max-ttl", parameters: []string{"token_max_ttl"}, reset: func(ro *role) { ro.Token.MaxTTL = 0 }},
	{path: "period", parameters: []string{"token_period", "period"}, reset: func(ro *role) { ro.Token.Period = 0 }},
	{path: "local-secret-ids", parameters: []string{"local_secret_ids"}, fixed: true},
	{path: "role-id", parameters: []string{"role_id"}},
}

// routes are those of the settings.
func settingRoutes() (routes []engine.Route) {
	for _, s := range settings {
		route := engine.Route{
			Pattern: "role/{role_name}/" + s.path, Fold: true, Help: "Read or set " + strings.Join(s.parameters, ", ") + " of a role.",
			Ops: ops{lessor.Read: s.read},
		}
		for _, f := range fields {
			if slices.Contains(s.parameters, f.Name) {
				route.Fields = append(route.Fields, f)
			}
		}
		if !s.fixed {
			route.Ops[lessor.Update] = s.write
		}
		if s.reset != nil {
			route.Ops[lessor.Delete] = s.remove
		}
		routes = append(routes, route)
	}
	return routes
}

// Rows: a role is found by the keyed hash of its role id, which is what logins know of it, and by its name through the
// name's row. A role id is half of a credential, so that it is not to be seen in names of rows.

func byName(r *engine.Request, name string) store.Key {
	return store.Key{Table: store.Config, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "name/", name)}
}

func byHash(r *engine.Request, hash string) store.Key {
	return store.Key{Table: store.Config, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "role/", hash)}
}

func byRoleID(r *engine.Request, id string) store.Key { return byHash(r, r.Opener.TokenHash(id)) }

// get reads a role at its key; nil if there is none.
func get(r *engine.Request, key store.Key) (*role, store.Row, error) {
	row, err := r.View.Get(key)
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	ro := &role{}
	return ro, row, auth.Decode(row.Value, ro)
}

// named finds the role that the path names; nil if there is none.
func named(r *engine.Request) (*role, store.Row, error) {
	name := strings.ToLower(r.Param("role_name"))
	if err := auth.CheckName("role_name", name); err != nil {
		return nil, store.Row{}, err
	}
	return byRoleName(r, name)
}

// byRoleName finds the role with the name, in lower case; nil if there is none.
func byRoleName(r *engine.Request, name string) (*role, store.Row, error) {
	index, err := r.View.Get(byName(r, name))
	if err != nil || !index.Exists() {
		return nil, index, err
	}
	ro, row, err := get(r, byHash(r, string(index.Value)))
	if err == nil && ro == nil {
		err = fmt.Errorf("approle: the name of a role leads nowhere")
	}
	return ro, row, err
}

// known is named for what needs the role.
func known(r *engine.Request) (*role, store.Row, error) {
	ro, row, err := named(r)
	if err == nil && ro == nil {
		err = api.Errorf(api.NotFound, "role %q does not exist", r.Param("role_name"))
	}
	return ro, row, err
}

func exists(r *engine.Request) (bool, error) {
	row, err := r.View.Get(byName(r, strings.ToLower(r.Param("role_name"))))
	return row.Exists(), err
}

// save writes a role. row is where it was read; for a new role that of its name, which does not exist.
func (ro *role) save(r *engine.Request, txn *store.Txn, row store.Row) error {
	if !ro.BindSecretID && len(ro.SecretIDBound) == 0 && len(ro.Token.BoundCIDRs) == 0 {
		return api.Errorf(api.Invalid, "at least one constraint should be enabled on the role")
	}
	key := byRoleID(r, ro.RoleID)
	if !row.Exists() || row.Key != key {
		taken, err := r.View.Get(key)
		if err != nil {
			return err
		}
		if taken.Exists() {
			return api.Errorf(api.Invalid, "role_id already in use")
		}
		txn.Require(taken)
		index := byName(r, ro.Name)
		txn.Put(index.Table, index.Name, []byte(r.Opener.TokenHash(ro.RoleID)))
	}
	txn.Require(row)
	if row.Exists() && row.Key != key {
		txn.Delete(row.Table, row.Name)
	}
	txn.Put(key.Table, key.Name, auth.Encode(ro))
	return nil
}

// apply takes over what the client sent. Warnings go into reply.
func (ro *role) apply(r *engine.Request, fresh bool, reply *engine.Reply) error {
	if err := auth.ParseTokenTerms(r, &ro.Token, older); err != nil {
		return err
	}
	if t, meant := ro.Token.Type, strings.TrimPrefix(ro.Token.Type, "default-"); t != meant {
		ro.Token.Type = meant
		reply.Warnings = append(reply.Warnings, fmt.Sprintf("%s has no useful meaning; adjusting to %s", t, meant))
	}
	if r.Has("local_secret_ids") {
		if !fresh {
			return api.Errorf(api.Invalid, "local_secret_ids can only be modified during role creation")
		}
		ro.LocalSecretIDs = r.Bool("local_secret_ids")
	}
	if r.Has("role_id") {
		if ro.RoleID = strings.TrimSpace(r.Str("role_id")); ro.RoleID == "" || len(ro.RoleID) > longest {
			return api.Errorf(api.Invalid, "invalid role_id supplied, or failed to generate a role_id")
		}
	}
	if r.Has("bind_secret_id") {
		ro.BindSecretID = r.Bool("bind_secret_id")
	}
	if name, ok := older.Name(r, "secret_id_bound_cidrs"); ok {
		bound, err := auth.Prefixes(name, r.List(name))
		if err != nil {
			return err
		}
		ro.SecretIDBound = bound
	}
	if r.Has("secret_id_num_uses") {
		n := r.Int("secret_id_num_uses")
		if n < 0 {
			return api.Errorf(api.Invalid, "secret_id_num_uses cannot be negative")
		}
		ro.SecretIDNumUses = int(n)
	}
	if r.Has("secret_id_ttl") {
		ro.SecretIDTTL = r.Dur("secret_id_ttl")
	}
	if most := r.Default.MaxTTL; ro.Token.Period > most {
		return api.Errorf(api.Invalid, "period of %q is greater than the backend's maximum lease TTL of %q", ro.Token.Period, most)
	} else if ro.Token.MaxTTL > most {
		reply.Warnings = append(reply.Warnings,
			"token_max_ttl is greater than the backend mount's maximum TTL value; issued tokens' max TTL value will be truncated")
	}
	ro.Older = older.Used(r, ro.Older)
	return nil
}

// data is the role as clients see it.
func (ro *role) data() map[string]any {
	data := map[string]any{
		"bind_secret_id": ro.BindSecretID, "secret_id_bound_cidrs": blocks(ro.SecretIDBound), "secret_id_num_uses": ro.SecretIDNumUses,
		"secret_id_ttl": auth.Seconds(ro.SecretIDTTL), "local_secret_ids": ro.LocalSecretIDs,
	}
	auth.TermsData(&ro.Token, data)
	older.Show(data, ro.Older)
	delete(data, "bound_cidr_list") // Vault shows it by its present name only
	return data
}

// blocks are prefixes as they were sent; null for none.
func blocks(prefixes []netip.Prefix) []string {
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return out
}

func listRoles(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	names, err := engine.List(r.View, store.Config, byName(r, "").Name)
	if err != nil {
		return nil, err
	}
	return engine.Keys(names)
}

func readRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, _, err := named(r)
	if err != nil {
		return nil, err
	}
	if ro == nil {
		return nil, &api.Error{Kind: api.NotFound}
	}
	return &engine.Reply{Data: ro.data()}, nil
}

func writeRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, row, err := named(r)
	if err != nil {
		return nil, err
	}
	reply, fresh := &engine.Reply{}, ro == nil
	if fresh {
		if ro, err = newRole(r); err != nil {
			return nil, err
		}
	}
	if err := ro.apply(r, fresh, reply); err != nil {
		return nil, err
	}
	return reply, ro.save(r, &reply.Txn, row)
}

// newRole is a role with everything at its default.
func newRole(r *engine.Request) (*role, error) {
	ro := &role{Name: strings.ToLower(r.Param("role_name")), BindSecretID: true}
	var err error
	if ro.RoleID, err = auth.NewUUID(r.Random); err != nil {
		return nil, err
	}
	ro.Key, err = newKey(r.Random)
	return ro, err
}

func removeRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, row, err := named(r)
	if err != nil || ro == nil {
		return &engine.Reply{}, err
	}
	reply := &engine.Reply{}
	reply.Txn.Require(row)
	reply.Txn.Delete(row.Table, row.Name)
	index := byName(r, ro.Name)
	reply.Txn.Delete(index.Table, index.Name)
	reply.Txn.Ranges = ro.secretIDs(r)
	return reply, nil
}

func (s setting) read(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, _, err := named(r)
	if err != nil {
		return nil, err
	}
	if ro == nil {
		return nil, &api.Error{Kind: api.NotFound}
	}
	all, reply := ro.data(), &engine.Reply{}
	all["role_id"] = ro.RoleID
	if len(ro.Token.BoundCIDRs) == 0 {
		all["token_bound_cidrs"] = nil
	}
	if s.path == "bound-cidr-list" {
		all["bound_cidr_list"] = blocks(ro.SecretIDBound)
		reply.Warnings = []string{`The "bound_cidr_list" field is deprecated and will be removed. Please use "secret_id_bound_cidrs" instead.`}
	}
	maps.DeleteFunc(all, func(name string, _ any) bool { return !slices.Contains(s.parameters, name) })
	reply.Data = all
	return reply, nil
}

// missing is the parameter that a write lacks, by the name that clients know.
func (s setting) missing() string {
	if s.path == "period" {
		return s.path
	}
	return s.parameters[0]
}

func (s setting) write(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, row, err := known(r)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(s.parameters, r.Has) {
		return nil, api.Errorf(api.Invalid, "missing %s", s.missing())
	}
	reply := &engine.Reply{}
	if err := ro.apply(r, false, reply); err != nil {
		return nil, err
	}
	return reply, ro.save(r, &reply.Txn, row)
}

func (s setting) remove(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, row, err := named(r)
	if err != nil || ro == nil {
		return &engine.Reply{}, err
	}
	s.reset(ro)
	ro.Older = slices.DeleteFunc(ro.Older, func(name string) bool { return slices.Contains(s.parameters, older[name]) })
	reply := &engine.Reply{}
	return reply, ro.save(r, &reply.Txn, row)
}
