package system

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/owner"
)

var mountFields = []engine.Field{
	{Name: "type", Type: engine.String, Help: "type of the engine: kv, database, approle, …"},
	{Name: "description", Type: engine.String, Help: "what it is for"},
	{Name: "config", Type: engine.Map, Help: "tuning, as for …/tune"},
	{Name: "options", Type: engine.Pairs, Help: "options of the engine; kv: version; lease: shown, quiet or off"},
	{Name: "local", Type: engine.Bool, Help: "kept and told; there is no replication that it could stay out of"},
	{Name: "seal_wrap", Type: engine.Bool, Help: "kept and told; every secret is sealed"},
	{Name: "external_entropy_access", Type: engine.Bool, Help: "kept and told; without effect"},
	{Name: "plugin_name", Type: engine.String, Help: "the type, where type is plugin"},
	{Name: "plugin_version", Type: engine.String, Help: "version of the engine: none but the built-in one"},
	{Name: "owner", Type: engine.String, Help: "who answers for it"},
}

func (b *Backend) mountRoutes() []engine.Route {
	var routes []engine.Route
	for _, class := range []mount.Class{mount.Secret, mount.Auth} {
		base, what, one := "mounts", "secrets engines", "a secrets engine"
		if class == mount.Auth {
			base, what, one = "auth", "auth methods", "an auth method"
		}
		of := func(h func(r *engine.Request, class mount.Class, path string) (*engine.Reply, error)) engine.Handler {
			return func(_ context.Context, r *engine.Request) (*engine.Reply, error) { return h(r, class, r.Param("path")) }
		}
		sudo := class == mount.Auth // as in Vault: auth methods decide who anybody is
		routes = append(routes,
			engine.Route{Pattern: base, Help: "list " + what, Ops: read(of(b.listMounts))},
			engine.Route{Pattern: base + "/{path...}", Help: "enable, read and disable " + one, Sudo: sudo, Fields: mountFields, Ops: ops{
				lessor.Read: of(b.readMount), lessor.Update: of(b.enable), lessor.Delete: of(b.disable),
			}},
			engine.Route{Pattern: base + "/{path...}/tune", Help: "how " + one + " is tuned", Sudo: sudo, Fields: tuneFields, Ops: ops{
				lessor.Read: of(b.readTune), lessor.Update: of(b.tune),
			}})
	}
	return append(routes,
		engine.Route{Pattern: "remount", Help: "move a secrets engine or an auth method to another path", Sudo: true, Ops: update(b.remount), Fields: []engine.Field{
			{Name: "from", Type: engine.String, Help: "where it is"},
			{Name: "to", Type: engine.String, Help: "where it is to be"},
		}},
		engine.Route{Pattern: "remount/status/{migration_id}", Help: "what became of a move", Ops: read(b.remountStatus)},
	)
}

// full is the path of a mount as entries have it.
func full(class mount.Class, path string) string {
	path = strings.Trim(path, "/") + "/"
	if class == mount.Auth {
		return "auth/" + path
	}
	return path
}

// told is the path of a mount as lists of its class have it.
func told(e *mount.Entry) string {
	if e.Class == mount.Auth {
		return strings.TrimPrefix(e.Path, "auth/")
	}
	return e.Path
}

func find(r *engine.Request, class mount.Class, path string) *mount.Entry {
	path = full(class, path)
	for _, e := range r.System.Mounts() {
		if e.Path == path && !e.Removing {
			return e
		}
	}
	return nil
}

func (b *Backend) listMounts(r *engine.Request, class mount.Class, _ string) (*engine.Reply, error) {
	data := map[string]any{}
	for _, e := range r.System.Mounts() {
		if e.Class == class && !e.Removing {
			data[told(e)] = b.entryData(r, e)
		}
	}
	return &engine.Reply{Data: data, Flat: true}, nil
}

// singletons are the types that are lessor's own: each is mounted once, from the start, and never again.
var singletons = []string{"system", "identity", "cubbyhole", "token"}

// entryData is a mount as lists and reads show it.
func (b *Backend) entryData(r *engine.Request, e *mount.Entry) map[string]any {
	config := configData(e)
	config["default_lease_ttl"], config["max_lease_ttl"] = whole(e.Config.DefaultTTL), whole(e.Config.MaxTTL)
	if l := lockoutData(e); l != nil {
		config["user_lockout_config"] = l
	}
	d := map[string]any{
		"type": e.Type, "description": e.Description, "accessor": e.Accessor, "config": config, "options": nil,
		"local": e.Local, "seal_wrap": e.SealWrap, "external_entropy_access": e.Entropy, "uuid": uuidText(e.UUID),
		"plugin_version": "", "running_plugin_version": b.builtinVersion(), "running_sha256": "",
	}
	if !slices.Contains(singletons, e.Type) {
		d["deprecation_status"] = "supported"
	}
	if !e.Builtin {
		d["options"] = map[string]string{}
	}
	if len(e.Options) > 0 {
		d["options"] = e.Options
	}
	if name, _ := r.System.OwnerOf(e.Path); name != "" {
		d["owner"] = name
	}
	return d
}

func uuidText(raw string) string {
	h := hex.EncodeToString([]byte(raw))
	if len(h) != 32 {
		return h
	}
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func (b *Backend) readMount(r *engine.Request, class mount.Class, path string) (*engine.Reply, error) {
	e := find(r, class, path)
	if e == nil {
		return nil, noMount(class, path)
	}
	return &engine.Reply{Data: b.entryData(r, e), Flat: true}, nil
}

func noMount(class mount.Class, path string) error {
	if class == mount.Auth {
		return api.Errorf(api.Invalid, "No auth engine at %s", strings.Trim(path, "/")+"/")
	}
	return api.Errorf(api.Invalid, "No secret engine mount at %s", strings.Trim(path, "/")+"/")
}

func (b *Backend) enable(r *engine.Request, class mount.Class, path string) (*engine.Reply, error) {
	config := r.Map("config")
	e := &mount.Entry{
		Namespace: r.Op.Namespace, Path: full(class, path), Class: class, Type: r.Str("type"), Description: r.Str("description"),
		Options: r.Pairs("options"), Local: r.Bool("local"), SealWrap: r.Bool("seal_wrap"), Entropy: r.Bool("external_entropy_access"),
		Owner: r.Str("owner"), Created: r.Now,
	}
	reply := &engine.Reply{Note: "enabled"}
	switch e.Type {
	case "":
		return nil, api.Errorf(api.Invalid, "backend type must be specified as a string")
	case "plugin":
		if e.Type, _ = config["plugin_name"].(string); e.Type == "" {
			e.Type = r.Str("plugin_name")
		}
		if e.Type == "" {
			return nil, api.Errorf(api.Invalid, "plugin_name must be provided for plugin backend")
		}
	}
	if err := tuneConfig(e, given(config), r.Default); err != nil {
		return nil, err
	}
	if err := settleVersion(e); err != nil {
		return nil, err
	}
	if err := checkPath(r, e); err != nil {
		return nil, err
	}
	if err := b.checkType(e, version(r, config)); err != nil {
		return nil, err
	}
	if err := checkTexts(e); err != nil {
		return nil, err
	}
	if name, _ := r.System.OwnerOf(e.Path); b.RequireOwner && name == "" && e.Owner == "" {
		return nil, api.Errorf(api.Invalid, "nobody owns %q, and this server creates nothing without an owner: pass owner=NAME", e.Path)
	}
	reply.Warnings = effectless(e, given(config))
	var id [20]byte
	if _, err := io.ReadFull(r.Random, id[:]); err != nil {
		return nil, err
	}
	e.UUID = string(id[:16])
	e.Accessor = e.Type + "_" + hex.EncodeToString(id[16:])
	if class == mount.Auth {
		e.Accessor = "auth_" + e.Accessor
	}
	mount.Add(&reply.Txn, e)
	return reply, nil
}

// version is the version of the engine that a request asks for.
func version(r *engine.Request, config map[string]any) string {
	if v, _ := config["plugin_version"].(string); v != "" {
		return v
	}
	return r.Str("plugin_version")
}

// settleVersion settles the version of kv, which may be said in the type. Nothing else has one.
func settleVersion(e *mount.Entry) error {
	kv, isKV := map[string]string{"kv": "", "generic": "", "kv-v1": "1", "kv-v2": "2"}[e.Type]
	if e.Class == mount.Auth || !isKV {
		if e.Options["version"] != "" {
			what := "secrets engine"
			if e.Class == mount.Auth {
				what = "auth method"
			}
			return api.Errorf(api.Invalid, "%s %q does not allow setting a version", what, e.Type)
		}
	} else {
		e.Type, e.Options = "kv", maps.Clone(e.Options)
		if kv != "" {
			if e.Options == nil {
				e.Options = map[string]string{}
			}
			e.Options["version"] = kv
		}
		switch v := e.Options["version"]; v {
		case "":
			delete(e.Options, "version") // it is version 1
		case "1", "2":
		default:
			return api.Errorf(api.Invalid, "unsupported kv version %q: 1 or 2", v)
		}
	}
	return checkOptions(e.Options)
}

// checkType refuses what cannot be mounted.
func (b *Backend) checkType(e *mount.Entry, version string) error {
	switch {
	case e.Type == "token" && e.Class == mount.Auth:
		return api.Errorf(api.Invalid, "token credential backend cannot be instantiated")
	case slices.Contains(singletons, e.Type):
		return api.Errorf(api.Invalid, "mount type of %q is not mountable", e.Type)
	case b.Backends[e.Backend()] == nil || slices.Contains(authTypes, e.Type) != (e.Class == mount.Auth):
		return api.Errorf(api.Invalid, "plugin not found in the catalog: %s; this server has the secrets engines %s and the auth methods %s", e.Type,
			strings.Join(b.types(mount.Secret), ", "), strings.Join(b.types(mount.Auth), ", "))
	}
	return b.checkVersion(e, version)
}

// checkVersion accepts no version of an engine but the built-in one.
func (b *Backend) checkVersion(e *mount.Entry, version string) error {
	kind := "secrets"
	if e.Class == mount.Auth {
		kind = "auth"
	}
	switch {
	case version == "" || version == b.builtinVersion():
		return nil
	case !semver.MatchString(version):
		return api.Errorf(api.Invalid, "version %q is not a valid semantic version", version)
	}
	return api.Errorf(api.Invalid, "cannot select non-builtin version of %s plugin %s", kind, e.Type)
}

// reserved are the paths under which only lessor itself mounts.
var reserved = []string{"audit/", "auth/", "sys/", "cubbyhole/", "identity/"}

// checkPath refuses mount paths that could not be routed or read, that are lessor's own, or another mount's.
func checkPath(r *engine.Request, e *mount.Entry) error {
	path := strings.TrimSuffix(told(e), "/")
	segments := strings.Split(path, "/")
	switch {
	case path == "":
		return api.Errorf(api.Invalid, "missing path: where is it to be mounted?")
	case len(path) > 256:
		return api.Errorf(api.Invalid, "the path is longer than 256 bytes")
	case strings.ContainsFunc(path, func(c rune) bool { return unicode.IsControl(c) || unicode.IsSpace(c) || c == '*' || c == '+' }):
		return api.Errorf(api.Invalid, "the path has a space, a control character, * or + in it")
	case slices.Contains(segments, "") || slices.Contains(segments, "..") || slices.Contains(segments, "."):
		return api.Errorf(api.Invalid, "the path has an empty segment, . or .. in it")
	case segments[len(segments)-1] == "tune":
		return api.Errorf(api.Invalid, "a path cannot end in tune")
	}
	if e.Class == mount.Secret && slices.ContainsFunc(reserved, func(p string) bool { return strings.HasPrefix(e.Path, p) }) {
		return api.Errorf(api.Invalid, "cannot mount %q", e.Path)
	}
	if other := clash(r, e); other != nil {
		return api.Errorf(api.Invalid, "path is already in use at %s", told(other))
	}
	return nil
}

// clash is another mount whose path contains e's or is contained in it.
func clash(r *engine.Request, e *mount.Entry) *mount.Entry {
	for _, other := range r.System.Mounts() {
		if (strings.HasPrefix(other.Path, e.Path) || strings.HasPrefix(e.Path, other.Path)) && (e.UUID == "" || other.UUID != e.UUID) {
			return other
		}
	}
	return nil
}

// checkTexts bounds what every node keeps in memory of each mount.
func checkTexts(e *mount.Entry) error {
	size := len(e.Description)
	for k, v := range e.Options {
		size += len(k) + len(v)
	}
	switch {
	case len(e.Owner) > owner.Longest:
		return api.Errorf(api.Invalid, "the owner's name is longer than %d bytes", owner.Longest)
	case size > 8192:
		return api.Errorf(api.Invalid, "description and options of a mount have at most 8192 bytes together")
	}
	return nil
}

func checkOptions(o map[string]string) error {
	switch o["lease"] {
	case "", "shown", "quiet", "off":
	default:
		return api.Errorf(api.Invalid, "option lease is %q: shown, quiet or off", o["lease"])
	}
	if d, ok := o["lease_duration"]; ok {
		if _, good := engine.ParseDuration(d); !good {
			return api.Errorf(api.Invalid, "option lease_duration is no duration: %q", d)
		}
	}
	return nil
}

// authTypes are the auth methods among the types of engines.
var authTypes = []string{"approle", "cert", "jwt", "oidc", "token", "userpass"}

// types are the names of what can be mounted.
func (b *Backend) types(class mount.Class) []string {
	var out []string
	for name := range b.Backends {
		if slices.Contains(singletons, name) || name == "kv-v2" || slices.Contains(authTypes, name) != (class == mount.Auth) {
			continue
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// disable ends a mount: it routes nothing any more with this commit, its leases and tokens end with it, and the background
// removes what it kept once every credential that it made is gone.
func (b *Backend) disable(r *engine.Request, class mount.Class, path string) (*engine.Reply, error) {
	at := full(class, path)
	switch {
	case at == "auth/token/" && class == mount.Auth:
		return nil, api.Errorf(api.Invalid, "token credential backend cannot be disabled")
	case class == mount.Secret && slices.ContainsFunc(reserved, func(p string) bool { return strings.HasPrefix(at, p) }):
		text := fmt.Sprintf("cannot unmount %q", at)
		if rest, auth := strings.CutPrefix(at, "auth/"); auth { // the path of auth methods takes sudo; this one does not
			text += "; disable auth methods at sys/auth/" + strings.TrimSuffix(rest, "/")
		}
		return nil, api.Errorf(api.Invalid, "%s", text)
	}
	found := find(r, class, path)
	if found == nil {
		return &engine.Reply{}, nil
	}
	e := *found
	e.Removing = true
	e.Path = "sys/removed/" + hex.EncodeToString([]byte(e.UUID)) + "/" // its old path is free at once
	table, err := mount.Load(r.View)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{Note: "disabled"}
	table.Save(&reply.Txn, &e, found.Path)
	tomb, err := r.System.Bury(&reply.Txn, lease.Selector{Kind: lease.ByMount, Value: e.UUID}, "mount disabled")
	if err != nil {
		return nil, err
	}
	reply.Do = b.settle(tomb)
	return reply, nil
}
