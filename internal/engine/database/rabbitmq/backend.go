package rabbitmq

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// the is the name of the one connection that a mount has.
const the = "connection"

// Backend is the engine: the database engine, whose leases, rotations and searches for strays it has, under other paths.
type Backend struct{ *database.Engine }

var (
	_ engine.Finder    = Backend{}
	_ engine.Rotator   = Backend{}
	_ engine.Versioner = Backend{}
	_ engine.Follower  = Backend{}
)

// New makes the engine.
func New() Backend { return Backend{database.New(Driver{})} }

// Routes is the method table.
func (b Backend) Routes() []engine.Route {
	type ops = map[lessor.Verb]engine.Handler
	t := b.table()
	static := t.fields("static-roles/{name}", "username", "usernames", "rotation_period", "rotation_schedule", "rotation_window", "rotation_jitter", "rotation_quiet",
		"rotation_grace", "credential_type", "credential_config", "skip_import_rotation", "password")
	return []engine.Route{
		{Pattern: "config/connection", Owned: true, Help: "Configure the connection to the broker's management API.", Fields: connectionFields(t),
			Ops: ops{
				lessor.Read:   then(t.forward(lessor.Read, "config/{name}", the, nil), readConnection),
				lessor.Update: then(t.forward(lessor.Update, "config/{name}", the, connectionBody), exposed),
				lessor.Delete: t.forward(lessor.Delete, "config/{name}", the, nil),
			}},
		{Pattern: "config/lease", Help: "Say how long leases of accounts are.", Fields: []engine.Field{
			{Name: "ttl", Type: engine.Duration, Help: "Length of the leases; 0 for the mount's default."},
			{Name: "max_ttl", Type: engine.Duration, Help: "Length that renewals cannot exceed; 0 for the mount's maximum."},
		}, Ops: ops{lessor.Read: readTerms, lessor.Update: writeTerms}},
		{Pattern: "roles", Help: "List the roles.", Ops: ops{lessor.List: t.forward(lessor.List, "roles", "", nil)}},
		{Pattern: "roles/{name}", Owned: true, Help: "Say what accounts of a role may do.", Fields: []engine.Field{
			{Name: "tags", Type: engine.Strings, Help: "Tags of the accounts, with commas between: management, monitoring, …"},
			{Name: "vhosts", Type: engine.Any, Help: `Permissions by virtual host, JSON: {"/": {"configure": "", "write": "orders", "read": ".*"}}.`},
			{Name: "vhost_topics", Type: engine.Any, Help: `Permissions by virtual host and topic exchange, JSON: {"/": {"amq.topic": {"write": "", "read": ".*"}}}.`},
		}, Ops: ops{
			lessor.Read:   then(t.forward(lessor.Read, "roles/{name}", "", nil), readRole),
			lessor.Update: t.forward(lessor.Update, "roles/{name}", "", roleBody),
			lessor.Delete: t.forward(lessor.Delete, "roles/{name}", "", nil),
		}},
		{Pattern: "creds/{name}", Help: "Get a leased account of a role.", Ops: ops{lessor.Read: then(t.forward(lessor.Read, "creds/{name}", "", nil), underTerms)}},
		{Pattern: "rotate-root", Help: "Change the password of lessor's own account at the broker; nobody is told the new one.",
			Ops: ops{lessor.Update: t.forward(lessor.Update, "rotate-root/{name}", the, nil)}},
		{Pattern: "static-roles", Help: "List the static roles.", Ops: ops{lessor.List: t.forward(lessor.List, "static-roles", "", nil)}},
		{Pattern: "static-roles/{name}", Owned: true, Help: "Have lessor manage the password of an account that exists.", Fields: static, Exists: t.exists("static-roles/{name}"),
			Ops: ops{
				lessor.Read:   then(t.forward(lessor.Read, "static-roles/{name}", "", nil), without("db_name", "rotation_statements")),
				lessor.Update: t.forward(lessor.Update, "static-roles/{name}", "", func(*engine.Request) (map[string]any, error) { return map[string]any{"db_name": the}, nil }),
				lessor.Delete: t.forward(lessor.Delete, "static-roles/{name}", "", nil),
			}},
		{Pattern: "static-creds/{name}", Help: "Read the password of a static role.", Ops: ops{lessor.Read: t.forward(lessor.Read, "static-creds/{name}", "", nil)}},
		{Pattern: "rotate-role/{name}", Help: "Change the password of a static role now.", Ops: ops{lessor.Update: t.forward(lessor.Update, "rotate-role/{name}", "", nil)}},
	}
}

// table is the database engine's, by pattern.
type table map[string]*engine.Route

func (b Backend) table() table {
	t := table{}
	for _, route := range b.Engine.Routes() {
		t[route.Pattern] = &route
	}
	return t
}

// fields are some of a route's.
func (t table) fields(pattern string, names ...string) []engine.Field {
	return slices.DeleteFunc(slices.Clone(t[pattern].Fields), func(f engine.Field) bool { return !slices.Contains(names, f.Name) })
}

// exists is a route's existence check.
func (t table) exists(pattern string) func(*engine.Request) (bool, error) { return t[pattern].Exists }

// forward hands a request on to a route of the database engine, with body's parameters beside those that it has. name, if not empty, is what the
// pattern's name stands for.
func (t table) forward(verb lessor.Verb, pattern, name string, body func(*engine.Request) (map[string]any, error)) engine.Handler {
	route := t[pattern]
	handler := route.Handler(verb)
	return func(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
		inner, op := *r, *r.Op
		op.Data = map[string]any{}
		for field, v := range r.Op.Data {
			if r.Has(field) { // it is one of those that this engine has
				op.Data[field] = v
			}
		}
		if body != nil {
			more, err := body(r)
			if err != nil {
				return nil, err
			}
			maps.Copy(op.Data, more)
		}
		if inner.Op = &op; name != "" {
			inner.Params = map[string]string{"name": name}
		}
		if _, err := inner.Bind(route); err != nil {
			return nil, err
		}
		return handler(ctx, &inner)
	}
}

// then has change see to the reply of a handler.
func then(h engine.Handler, change func(*engine.Request, *engine.Reply) error) engine.Handler {
	return func(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
		reply, err := h(ctx, r)
		if err == nil && reply != nil {
			err = change(r, reply)
		}
		return reply, err
	}
}

// without takes away what makes no sense here.
func without(names ...string) func(*engine.Request, *engine.Reply) error {
	return func(_ *engine.Request, reply *engine.Reply) error {
		maps.DeleteFunc(reply.Data, func(name string, _ any) bool { return slices.Contains(names, name) })
		return nil
	}
}

func connectionFields(t table) []engine.Field {
	return append([]engine.Field{
		{Name: "connection_uri", Type: engine.String, Help: "URL of the management API: https://rabbit.example.com:15671."},
	}, t.fields("config/{name}", "username", "password", "verify_connection", "max_open_connections", "username_template", "password_policy", "tls_ca", "tls_certificate", "private_key",
		"tls_server_name", "skip_static_role_import_rotation", "rotation_period", "rotation_schedule", "rotation_window", "disable_automated_rotation")...)
}

func connectionBody(r *engine.Request) (map[string]any, error) {
	body := map[string]any{"plugin_name": plugin, "allowed_roles": []any{"*"}}
	if r.Has("connection_uri") {
		body["connection_url"] = r.Str("connection_uri")
	}
	return body, nil
}

// readConnection tells of a connection as it was written.
func readConnection(_ *engine.Request, reply *engine.Reply) error {
	details, _ := reply.Data["connection_details"].(map[string]any)
	maps.Copy(reply.Data, details)
	reply.Data["connection_uri"] = reply.Data["connection_url"]
	return without("connection_details", "connection_url", "plugin_name", "plugin_version", "allowed_roles", "root_credentials_rotate_statements")(nil, reply)
}

// exposed warns of a connection that somebody on the way may read.
func exposed(r *engine.Request, reply *engine.Reply) error {
	u, err := endpoint(&database.Connection{URL: r.Str("connection_uri")})
	if err != nil || u.Scheme != "http" {
		return nil
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Hostname() != "localhost" && (err != nil || !ip.Unmap().IsLoopback()) {
		reply.Warnings = append(reply.Warnings, "without TLS, who stands between lessor and the broker reads lessor's password: say https:// in connection_uri")
	}
	return nil
}

// roleBody makes a role's rights a statement. As in Vault, what is not sent is not kept.
func roleBody(r *engine.Request) (map[string]any, error) {
	role := rights{Tags: strings.Join(r.List("tags"), ",")}
	for name, into := range map[string]any{"vhosts": &role.VHosts, "vhost_topics": &role.Topics} {
		var text []byte
		var err error
		switch v := r.Any(name).(type) {
		case nil:
			continue
		case string:
			text = []byte(v)
		default:
			text, err = json.Marshal(v)
		}
		if len(text) == 0 {
			continue
		}
		if err == nil {
			err = json.Unmarshal(text, into)
		}
		if err != nil {
			return nil, api.Errorf(api.Invalid, "failed to unmarshal %s: it is JSON, such as %s", name, map[string]string{
				"vhosts": `{"/": {"configure": "", "write": "", "read": ".*"}}`, "vhost_topics": `{"/": {"amq.topic": {"write": "", "read": ".*"}}}`,
			}[name])
		}
	}
	role.Tags = strings.Join(role.tags(), ",")
	if err := role.check(); err != nil {
		return nil, api.Errorf(api.Invalid, "%v", err)
	}
	statement, err := json.Marshal(role)
	return map[string]any{"db_name": the, "creation_statements": []any{string(statement)}}, err
}

// readRole tells of a role as it was written.
func readRole(_ *engine.Request, reply *engine.Reply) error {
	creation, _ := reply.Data["creation_statements"].([]string)
	role, err := parse(creation)
	if err != nil {
		return fmt.Errorf("rabbitmq: %w", err)
	}
	reply.Data = map[string]any{"tags": role.Tags, "vhosts": role.VHosts, "vhost_topics": role.Topics}
	return nil
}

// terms are how long the leases of a mount are. CBOR keys are on disk: never renumber, only append.
type terms struct {
	TTL    time.Duration `cbor:"1,keyasint,omitempty"`
	MaxTTL time.Duration `cbor:"2,keyasint,omitempty"`
}

// loadTerms reads the mount's row "lease"; one that is not there says nothing.
func loadTerms(v store.View, m *mount.Entry) (t terms, row store.Row, err error) {
	row, err = v.Get(store.Key{Table: store.Engine, Name: store.MountKey(m.Namespace, m.UUID, "lease")})
	if err == nil && row.Exists() {
		if err = cbor.Unmarshal(row.Value, &t); err != nil {
			err = fmt.Errorf("rabbitmq: %s is damaged: %w", row.Key, err)
		}
	}
	return t, row, err
}

func readTerms(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, row, err := loadTerms(r.View, r.Mount)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, &api.Error{Kind: api.NotFound}
	}
	seconds := func(d time.Duration) json.Number { return json.Number(fmt.Sprint(int64(d / time.Second))) }
	return &engine.Reply{Data: map[string]any{"ttl": seconds(t.TTL), "max_ttl": seconds(t.MaxTTL)}}, nil
}

func writeTerms(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	_, row, err := loadTerms(r.View, r.Mount)
	if err != nil {
		return nil, err
	}
	t := terms{r.Dur("ttl"), r.Dur("max_ttl")}
	if t.TTL < 0 || t.MaxTTL < 0 || t.MaxTTL > 0 && t.TTL > t.MaxTTL {
		return nil, api.Errorf(api.Invalid, "ttl must not exceed max_ttl, nor be negative")
	}
	value, err := cbor.Marshal(t)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	reply.Txn.Require(row)
	reply.Txn.Put(row.Table, row.Name, value)
	return reply, nil
}

// underTerms gives a lease the mount's terms.
func underTerms(r *engine.Request, reply *engine.Reply) error {
	t, row, err := loadTerms(r.View, r.Mount)
	if err != nil || reply.Issue == nil {
		return err
	}
	reply.Issue.TTL, reply.Issue.MaxTTL = t.TTL, t.MaxTTL
	reply.Txn.Require(row)
	return nil
}
