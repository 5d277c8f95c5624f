package system

import (
	"context"
	"encoding/hex"
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
	{Name: "local", Type: engine.Bool, Help: "accepted for compatibility"},
	{Name: "seal_wrap", Type: engine.Bool, Help: "accepted for compatibility: every secret is sealed"},
	{Name: "external_entropy_access", Type: engine.Bool, Help: "accepted for compatibility"},
	{Name: "plugin_name", Type: engine.String, Help: "accepted for compatibility"},
	{Name: "plugin_version", Type: engine.String, Help: "accepted for compatibility"},
	{Name: "owner", Type: engine.String, Help: "who answers for it"},
}

var tuneFields = []engine.Field{
	{Name: "default_lease_ttl", Type: engine.String, Help: "default ttl of leases and tokens; system or 0: the server's"},
	{Name: "max_lease_ttl", Type: engine.String, Help: "maximum ttl of leases and tokens; system or 0: the server's"},
	{Name: "description", Type: engine.String, Help: "what it is for"},
	{Name: "audit_non_hmac_request_keys", Type: engine.Strings, Help: "accepted for compatibility: audit records hold no values"},
	{Name: "audit_non_hmac_response_keys", Type: engine.Strings, Help: "accepted for compatibility: audit records hold no values"},
	{Name: "listing_visibility", Type: engine.String, Help: "unauth or hidden"},
	{Name: "passthrough_request_headers", Type: engine.Strings, Help: "accepted for compatibility"},
	{Name: "allowed_response_headers", Type: engine.Strings, Help: "accepted for compatibility"},
	{Name: "token_type", Type: engine.String, Help: "auth: default-service, default-batch, service or batch"},
	{Name: "force_no_cache", Type: engine.Bool, Help: "accepted for compatibility"},
	{Name: "user_lockout_config", Type: engine.Map, Help: "auth: lockout_threshold, lockout_duration, lockout_counter_reset_duration, lockout_disable"},
	{Name: "options", Type: engine.Pairs, Help: "options of the engine"},
	{Name: "owner", Type: engine.String, Help: "who answers for it"},
}

func (b *Backend) mountRoutes() []engine.Route {
	var routes []engine.Route
	for _, class := range []mount.Class{mount.Secret, mount.Auth} {
		base, what := "mounts", "secrets engines"
		if class == mount.Auth {
			base, what = "auth", "auth methods"
		}
		of := func(h func(r *engine.Request, class mount.Class, path string) (*engine.Reply, error)) engine.Handler {
			return func(_ context.Context, r *engine.Request) (*engine.Reply, error) { return h(r, class, r.Param("path")) }
		}
		sudo := class == mount.Auth // as in Vault: auth methods decide who anybody is
		routes = append(routes,
			engine.Route{Pattern: base, Help: "list " + what, Ops: read(of(b.listMounts))},
			engine.Route{Pattern: base + "/{path...}", Help: "enable, read, tune (…/tune) and disable " + what, Sudo: sudo,
				Fields: append(slices.Clone(mountFields), tuneFields...),
				Ops: ops{
					lessor.Read:   of(tunable(b.readMount, b.readTune)),
					lessor.Update: of(tunable(b.enable, b.tune)),
					lessor.Delete: of(b.disable),
				}})
	}
	return append(routes,
		engine.Route{Pattern: "internal/ui/mounts", Help: "mounts that the caller can see", Ops: read(b.visibleMounts)},
		engine.Route{Pattern: "internal/ui/resultant-acl", Help: "what the caller's policies give, by pattern", Ops: read(
			func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
				data, err := r.System.Resultant()
				return &engine.Reply{Data: data}, err
			})},
		engine.Route{Pattern: "internal/ui/mounts/{path...}", Help: "the mount that serves a path", Ops: read(b.preflight)},
	)
}

type mountHandler = func(r *engine.Request, class mount.Class, path string) (*engine.Reply, error)

// tunable sends …/tune to tune and everything else to plain.
func tunable(plain, tune mountHandler) mountHandler {
	return func(r *engine.Request, class mount.Class, path string) (*engine.Reply, error) {
		if of, ok := strings.CutSuffix(path, "/tune"); ok {
			return tune(r, class, of)
		}
		return plain(r, class, path)
	}
}

// full is the path of a mount as entries have it.
func full(class mount.Class, path string) string {
	path = strings.Trim(path, "/") + "/"
	if class == mount.Auth {
		return "auth/" + path
	}
	return path
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
			data[strings.TrimPrefix(e.Path, "auth/")] = entryData(r, e)
		}
	}
	return &engine.Reply{Data: data, Flat: true}, nil
}

// entryData is a mount as lists and reads show it.
func entryData(r *engine.Request, e *mount.Entry) map[string]any {
	config := map[string]any{
		"default_lease_ttl": whole(e.Config.DefaultTTL), "max_lease_ttl": whole(e.Config.MaxTTL), "force_no_cache": e.Config.ForceNoCache,
	}
	for name, list := range lists(&e.Config) {
		if len(*list) > 0 {
			config[name] = *list
		}
	}
	if e.Config.ListingVisibility != "" {
		config["listing_visibility"] = e.Config.ListingVisibility
	}
	if e.Class == mount.Auth {
		config["token_type"] = tokenType(e)
	}
	if l := lockoutData(e); l != nil {
		config["user_lockout_config"] = l
	}
	d := map[string]any{
		"type": e.Type, "description": e.Description, "accessor": e.Accessor, "config": config, "options": nil,
		"local": e.Local, "seal_wrap": e.SealWrap, "external_entropy_access": false, "uuid": uuidText(e.UUID),
		"plugin_version": "", "running_plugin_version": "", "running_sha256": "", "deprecation_status": "supported",
	}
	if len(e.Options) > 0 {
		d["options"] = e.Options
	}
	if name, _ := r.System.OwnerOf(e.Path); name != "" {
		d["owner"] = name
	}
	return d
}

func tokenType(e *mount.Entry) string {
	if e.Config.TokenType == "" {
		return "default-service"
	}
	return e.Config.TokenType
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
	return &engine.Reply{Data: entryData(r, e), Flat: true}, nil
}

func noMount(class mount.Class, path string) error {
	if class == mount.Auth {
		return api.Errorf(api.Invalid, "No auth engine at %s", strings.Trim(path, "/")+"/")
	}
	return api.Errorf(api.Invalid, "No secret engine mount at %s", strings.Trim(path, "/")+"/")
}

func (b *Backend) enable(r *engine.Request, class mount.Class, path string) (*engine.Reply, error) {
	e := &mount.Entry{
		Namespace: r.Op.Namespace, Path: full(class, path), Class: class, Type: r.Str("type"), Description: r.Str("description"),
		Options: r.Pairs("options"), Local: r.Bool("local"), SealWrap: r.Bool("seal_wrap"), Owner: r.Str("owner"), Created: r.Now,
	}
	if e.Type == "plugin" && r.Str("plugin_name") != "" {
		e.Type = r.Str("plugin_name")
	}
	if err := checkPath(class, strings.Trim(path, "/")); err != nil {
		return nil, err
	}
	if err := checkTexts(e); err != nil {
		return nil, err
	}
	if e.Type == "kv-v2" || e.Type == "kv-v1" || e.Type == "generic" {
		if e.Options == nil {
			e.Options = map[string]string{}
		}
		if e.Options["version"] == "" {
			e.Options["version"] = map[string]string{"kv-v2": "2"}[e.Type]
		}
		e.Type = "kv"
	}
	if e.Type == "kv" && e.Options["version"] == "" {
		e.Options = maps.Clone(e.Options)
		if e.Options == nil {
			e.Options = map[string]string{}
		}
		e.Options["version"] = "1"
	}
	if err := b.checkType(e); err != nil {
		return nil, err
	}
	for _, other := range r.System.Mounts() {
		if strings.HasPrefix(other.Path, e.Path) || strings.HasPrefix(e.Path, other.Path) {
			return nil, api.Errorf(api.Invalid, "path is already in use at %s", other.Path)
		}
	}
	if err := tuneConfig(e, r.Map("config")); err != nil {
		return nil, err
	}
	if name, _ := r.System.OwnerOf(e.Path); b.RequireOwner && name == "" && e.Owner == "" {
		return nil, api.Errorf(api.Invalid, "nobody owns %q, and this server creates nothing without an owner: pass owner=NAME", e.Path)
	}
	var id [20]byte
	if _, err := io.ReadFull(r.Random, id[:]); err != nil {
		return nil, err
	}
	e.UUID = string(id[:16])
	e.Accessor = e.Type + "_" + hex.EncodeToString(id[16:])
	if class == mount.Auth {
		e.Accessor = "auth_" + e.Accessor
	}
	reply := &engine.Reply{Note: "enabled"}
	mount.Add(&reply.Txn, e)
	return reply, nil
}

// checkPath refuses mount paths that could not be routed or read.
func checkPath(class mount.Class, path string) error {
	switch {
	case path == "":
		return api.Errorf(api.Invalid, "missing path: where is it to be mounted?")
	case len(path) > 256:
		return api.Errorf(api.Invalid, "the path is longer than 256 bytes")
	case strings.ContainsFunc(path, func(c rune) bool { return unicode.IsControl(c) || unicode.IsSpace(c) || c == '*' || c == '+' }):
		return api.Errorf(api.Invalid, "the path has a space, a control character, * or + in it")
	case strings.Contains(path, "//") || slices.Contains(strings.Split(path, "/"), "..") || slices.Contains(strings.Split(path, "/"), "."):
		return api.Errorf(api.Invalid, "the path has an empty segment, . or .. in it")
	case path == "tune" || strings.HasSuffix(path, "/tune"):
		return api.Errorf(api.Invalid, "a path cannot end in tune")
	}
	first, _, _ := strings.Cut(path, "/")
	if class == mount.Secret && slices.Contains([]string{"sys", "auth", "identity", "cubbyhole", "audit"}, first) {
		return api.Errorf(api.Invalid, "path is already in use at %s/: it is lessor's own", first)
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

func (b *Backend) checkType(e *mount.Entry) error {
	builtin := []string{"system", "identity", "cubbyhole", "token"}
	if b.Backends[e.Backend()] == nil || slices.Contains(builtin, e.Type) {
		return api.Errorf(api.Invalid, "unknown engine type %q; this server has: %s", e.Type, strings.Join(b.types(e.Class), ", "))
	}
	isAuth := slices.Contains(authTypes, e.Type)
	if isAuth != (e.Class == mount.Auth) {
		return api.Errorf(api.Invalid, "%q is not a type for this: secrets engines are %s; auth methods are %s", e.Type,
			strings.Join(b.types(mount.Secret), ", "), strings.Join(b.types(mount.Auth), ", "))
	}
	if e.Type == "kv" && e.Options["version"] != "1" && e.Options["version"] != "2" {
		return api.Errorf(api.Invalid, "unsupported kv version %q: 1 or 2", e.Options["version"])
	}
	return checkOptions(e.Options)
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
var authTypes = []string{"userpass", "approle", "token"}

func (b *Backend) types(class mount.Class) []string {
	var out []string
	for name := range b.Backends {
		if slices.Contains([]string{"system", "identity", "cubbyhole", "token", "kv-v2"}, name) || slices.Contains(authTypes, name) != (class == mount.Auth) {
			continue
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (b *Backend) readTune(r *engine.Request, class mount.Class, path string) (*engine.Reply, error) {
	e := find(r, class, path)
	if e == nil {
		return nil, noMount(class, path)
	}
	data := map[string]any{
		"default_lease_ttl": whole(orSystem(e.Config.DefaultTTL, r.Default.TTL)), "max_lease_ttl": whole(orSystem(e.Config.MaxTTL, r.Default.MaxTTL)),
		"force_no_cache": e.Config.ForceNoCache, "description": e.Description,
	}
	for name, list := range lists(&e.Config) {
		if len(*list) > 0 {
			data[name] = *list
		}
	}
	if e.Config.ListingVisibility != "" {
		data["listing_visibility"] = e.Config.ListingVisibility
	}
	if e.Class == mount.Auth {
		data["token_type"] = tokenType(e)
	}
	maps.Copy(data, lockoutData(e))
	if len(e.Options) > 0 {
		data["options"] = e.Options
	}
	if name, _ := r.System.OwnerOf(e.Path); name != "" {
		data["owner"] = name
	}
	return &engine.Reply{Data: data, Flat: true}, nil
}

func (b *Backend) tune(r *engine.Request, class mount.Class, path string) (*engine.Reply, error) {
	found := find(r, class, path)
	if found == nil {
		return nil, noMount(class, path)
	}
	e := *found
	values := map[string]any{}
	for _, f := range tuneFields {
		if r.Has(f.Name) {
			values[f.Name] = r.Any(f.Name)
		}
	}
	if err := tuneConfig(&e, values); err != nil {
		return nil, err
	}
	if r.Has("description") {
		e.Description = r.Str("description")
	}
	if r.Has("owner") {
		e.Owner = r.Str("owner")
	}
	if r.Has("options") {
		o := maps.Clone(e.Options)
		if o == nil {
			o = map[string]string{}
		}
		for k, v := range r.Pairs("options") {
			if e.Type == "kv" && k == "version" && v != o[k] {
				return nil, api.Errorf(api.Invalid, "the version of a kv mount is not changed in place: mount a new one and copy")
			}
			o[k] = v
		}
		if err := checkOptions(o); err != nil {
			return nil, err
		}
		e.Options = o
	}
	if err := checkTexts(&e); err != nil {
		return nil, err
	}
	table, err := mount.Load(r.View)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{Note: "tuned"}
	table.Save(&reply.Txn, &e, e.Path)
	return reply, nil
}

// lists are the parts of a mount's configuration that are kept for clients that look for what they wrote.
func lists(c *mount.Config) map[string]*[]string {
	return map[string]*[]string{
		"passthrough_request_headers": &c.PassthroughHeaders, "allowed_response_headers": &c.AllowedHeaders,
		"audit_non_hmac_request_keys": &c.AuditNonHMACRequest, "audit_non_hmac_response_keys": &c.AuditNonHMACResponse,
	}
}

// tuneConfig applies tuning to a mount's configuration.
func tuneConfig(e *mount.Entry, values map[string]any) error {
	ttl := func(name string) (d *int64, err error) {
		raw, ok := values[name]
		if !ok || raw == nil {
			return nil, nil
		}
		if raw == "system" || raw == "" {
			raw = 0
		}
		dur, ok := engine.ParseDuration(raw)
		if !ok {
			return nil, api.Errorf(api.Invalid, "%s is no duration", name)
		}
		n := int64(dur)
		return &n, nil
	}
	for name, to := range map[string]*int64{"default_lease_ttl": (*int64)(&e.Config.DefaultTTL), "max_lease_ttl": (*int64)(&e.Config.MaxTTL)} {
		d, err := ttl(name)
		if err != nil {
			return err
		}
		if d != nil {
			*to = *d
		}
	}
	if e.Config.MaxTTL > 0 && e.Config.DefaultTTL > e.Config.MaxTTL {
		return api.Errorf(api.Invalid, "default_lease_ttl is longer than max_lease_ttl")
	}
	if v, ok := values["listing_visibility"].(string); ok {
		switch v {
		case "", "hidden", "unauth":
			e.Config.ListingVisibility = v
		default:
			return api.Errorf(api.Invalid, "invalid listing visibility %q: hidden or unauth", v)
		}
	}
	if v, ok := values["token_type"].(string); ok && v != "" {
		if e.Class != mount.Auth || !slices.Contains([]string{"default-service", "default-batch", "service", "batch"}, v) {
			return api.Errorf(api.Invalid, "invalid token_type %q", v)
		}
		e.Config.TokenType = v
	}
	if v, ok := values["force_no_cache"].(bool); ok {
		e.Config.ForceNoCache = v
	}
	if v, ok := values["user_lockout_config"].(map[string]any); ok && len(v) > 0 {
		if err := tuneLockout(e, v); err != nil {
			return err
		}
	}
	for name, to := range lists(&e.Config) {
		raw, ok := values[name]
		if !ok {
			continue
		}
		list, ok := engine.ParseList(raw)
		if !ok || len(list) > 64 || len(strings.Join(list, "")) > 4096 {
			return api.Errorf(api.Invalid, "%s is no list of at most 64 names", name)
		}
		*to = list
	}
	return nil
}

func orSystem[T ~int64](v, system T) T {
	if v == 0 {
		return system
	}
	return v
}

// disable ends a mount: it routes nothing any more with this commit, its leases and tokens end with it, and the background
// removes what it kept once every credential that it made is gone.
func (b *Backend) disable(r *engine.Request, class mount.Class, path string) (*engine.Reply, error) {
	found := find(r, class, path)
	if found == nil {
		return &engine.Reply{}, nil
	}
	if found.Class != class { // the path of auth methods takes sudo; this one does not
		return nil, api.Errorf(api.Invalid, "cannot unmount %q: it is an auth method; disable it at sys/auth/%s", found.Path, strings.TrimPrefix(found.Path, "auth/"))
	}
	if found.Builtin {
		return nil, api.Errorf(api.Invalid, "%q is lessor's own and cannot be disabled", found.Path)
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

func (b *Backend) visibleMounts(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	secret, auth := map[string]any{}, map[string]any{}
	for _, e := range r.System.Mounts() {
		if e.Removing || !b.sees(r, e) {
			continue
		}
		if e.Class == mount.Auth {
			auth[strings.TrimPrefix(e.Path, "auth/")] = entryData(r, e)
		} else {
			secret[e.Path] = entryData(r, e)
		}
	}
	return &engine.Reply{Data: map[string]any{"secret": secret, "auth": auth}}, nil
}

// sees reports whether the caller may do anything at all under a mount.
func (b *Backend) sees(r *engine.Request, e *mount.Entry) bool {
	return e.Config.ListingVisibility == "unauth" || r.System.Reaches(e.Path)
}

// preflight tells a client which mount serves a path, so that it knows which version of KV it talks to. An unknown mount is
// a denial, on purpose: it must not tell what exists.
func (b *Backend) preflight(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	path := strings.TrimPrefix(r.Param("path"), "/")
	e, _ := mountOf(r, path+"/")
	if e == nil || e.Removing || !r.System.Reaches(path) && !r.System.Reaches(e.Path) {
		return nil, api.Errorf(api.Denied, "preflight capability check returned 403, please ensure client's policies grant access to path %q", path+"/")
	}
	data := entryData(r, e)
	data["path"] = e.Path
	return &engine.Reply{Data: data}, nil
}
