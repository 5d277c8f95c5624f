package system

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/mount"
)

var tuneFields = []engine.Field{
	{Name: "default_lease_ttl", Type: engine.String, Help: "default ttl of leases and tokens; system or 0: the server's"},
	{Name: "max_lease_ttl", Type: engine.String, Help: "maximum ttl of leases and tokens; system or 0: the server's"},
	{Name: "description", Type: engine.String, Help: "what it is for"},
	{Name: "audit_non_hmac_request_keys", Type: engine.Strings, Help: "kept and told; audit records hold no values"},
	{Name: "audit_non_hmac_response_keys", Type: engine.Strings, Help: "kept and told; audit records hold no values"},
	{Name: "listing_visibility", Type: engine.String, Help: "unauth: who has no token sees that it is there; hidden"},
	{Name: "passthrough_request_headers", Type: engine.Strings, Help: "kept and told; no engine of this server reads headers"},
	{Name: "allowed_response_headers", Type: engine.Strings, Help: "kept and told; no engine of this server sets headers"},
	{Name: "allowed_managed_keys", Type: engine.Strings, Help: "kept and told; without effect"},
	{Name: "delegated_auth_accessors", Type: engine.Strings, Help: "kept and told; without effect"},
	{Name: "identity_token_key", Type: engine.String, Help: "key that signs tokens for other systems: there is none"},
	{Name: "token_type", Type: engine.String, Help: "auth: default-service, default-batch, service or batch"},
	{Name: "force_no_cache", Type: engine.Bool, Help: "kept and told; what is cached is never older than the store"},
	{Name: "trim_request_trailing_slashes", Type: engine.Bool, Help: "kept and told; they are always trimmed"},
	{Name: "plugin_version", Type: engine.String, Help: "version of the engine: none but the built-in one"},
	{Name: "user_lockout_config", Type: engine.Map, Help: "auth: lockout_threshold, lockout_duration, lockout_counter_reset_duration, lockout_disable"},
	{Name: "options", Type: engine.Pairs, Help: "options of the engine; an empty value takes one away"},
	{Name: "owner", Type: engine.String, Help: "who answers for it"},
}

// configData is what reads of a mount and of its tuning say alike.
func configData(e *mount.Entry) map[string]any {
	data := map[string]any{"force_no_cache": e.Config.ForceNoCache}
	for name, list := range lists(&e.Config) {
		if len(*list) > 0 {
			data[name] = *list
		}
	}
	if e.Config.ListingVisibility != "" {
		data["listing_visibility"] = e.Config.ListingVisibility
	}
	if e.Config.TrimSlashes {
		data["trim_request_trailing_slashes"] = true
	}
	if e.Class == mount.Auth {
		data["token_type"] = tokenType(e)
	}
	return data
}

func tokenType(e *mount.Entry) string {
	if e.Config.TokenType == "" {
		return "default-service"
	}
	return e.Config.TokenType
}

func (b *Backend) readTune(r *engine.Request, class mount.Class, path string) (*engine.Reply, error) {
	e := find(r, class, path)
	if e == nil {
		return nil, api.Errorf(api.Invalid, "cannot fetch sysview for path %q", full(class, path))
	}
	data := configData(e)
	delete(data, "delegated_auth_accessors") // told with the mount only
	data["default_lease_ttl"], data["max_lease_ttl"] = whole(cmp.Or(e.Config.DefaultTTL, r.Default.TTL)), whole(cmp.Or(e.Config.MaxTTL, r.Default.MaxTTL))
	data["description"] = e.Description
	if e.Entropy {
		data["external_entropy_access"] = true
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
	at := full(class, path)
	for _, p := range []string{"cubbyhole/", "sys/", "audit/"} {
		if strings.HasPrefix(at, p) {
			return nil, api.Errorf(api.Invalid, "cannot tune %q", at)
		}
	}
	found := find(r, class, path)
	if found == nil {
		return nil, api.Errorf(api.Invalid, "tune of path %q failed: no mount entry found", at)
	}
	e, values := *found, map[string]any{}
	for _, f := range tuneFields {
		if r.Has(f.Name) {
			values[f.Name] = r.Any(f.Name)
		}
	}
	if err := tuneConfig(&e, values, r.Default); err != nil {
		return nil, err
	}
	if r.Has("description") {
		e.Description = r.Str("description")
	}
	if r.Has("owner") {
		e.Owner = r.Str("owner")
	}
	if r.Has("plugin_version") {
		if err := b.checkVersion(&e, r.Str("plugin_version")); err != nil {
			return nil, err
		}
	}
	reply := &engine.Reply{Note: "tuned", Warnings: effectless(&e, values)}
	if err := b.tuneOptions(&e, r.Pairs("options"), reply); err != nil {
		return nil, err
	}
	if err := checkTexts(&e); err != nil {
		return nil, err
	}
	table, err := mount.Load(r.View)
	if err != nil {
		return nil, err
	}
	table.Save(&reply.Txn, &e, e.Path)
	return reply, nil
}

// tuneOptions takes options over. That of kv from version 1 to version 2 begins the upgrade of what is kept.
func (b *Backend) tuneOptions(e *mount.Entry, options map[string]string, reply *engine.Reply) error {
	if len(options) == 0 {
		return nil
	}
	if text, ok := options["version"]; ok {
		if e.Type != "kv" {
			return api.Errorf(api.Invalid, "engine type %q does not allow setting a version", e.Type)
		}
		from, _ := strconv.Atoi(e.Options["version"])
		to, err := strconv.Atoi(text)
		switch {
		case err != nil:
			return api.Errorf(api.Invalid, "unable to parse options: the version %q is no number", text)
		case to != 1 && to != 2:
			return api.Errorf(api.Invalid, "invalid version provided: %d", to)
		case from > to:
			return api.Errorf(api.Invalid, "cannot downgrade mount from version %d", from)
		case from < to && to == 2: // what has no version yet is of version 1
			e.Upgrading = true
			reply.Warnings = append(reply.Warnings, fmt.Sprintf("Upgrading mount from version %d to version %d. This mount will be unavailable for a brief period and will resume service shortly.", from, to))
			reply.Then = b.Upgrade
		}
	}
	o := maps.Clone(e.Options)
	if o == nil {
		o = map[string]string{}
	}
	for k, v := range options {
		if v == "" {
			delete(o, k)
		} else {
			o[k] = v
		}
	}
	e.Options = o
	return checkOptions(o)
}

// given is a configuration without what is null, which says nothing.
func given(config map[string]any) map[string]any {
	out := maps.Clone(config)
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == nil })
	return out
}

// lists are the parts of a mount's configuration that are lists of names.
func lists(c *mount.Config) map[string]*[]string {
	return map[string]*[]string{
		"passthrough_request_headers": &c.PassthroughHeaders, "allowed_response_headers": &c.AllowedHeaders,
		"audit_non_hmac_request_keys": &c.AuditNonHMACRequest, "audit_non_hmac_response_keys": &c.AuditNonHMACResponse,
		"allowed_managed_keys": &c.ManagedKeys, "delegated_auth_accessors": &c.DelegatedAccessors,
	}
}

// effectless warns of what somebody may rely on and should not.
func effectless(e *mount.Entry, values map[string]any) []string {
	var out []string
	for name, why := range map[string]string{
		"allowed_managed_keys":     "this server has no managed keys",
		"delegated_auth_accessors": "no engine of this server delegates authentication",
	} {
		if _, asked := values[name]; asked && len(*lists(&e.Config)[name]) > 0 {
			out = append(out, name+" is kept, but has no effect: "+why)
		}
	}
	if e.Entropy && len(e.UUID) == 0 {
		out = append(out, "external_entropy_access is kept, but has no effect: randomness comes from the operating system")
	}
	slices.Sort(out)
	return out
}

// tuneConfig applies tuning to a mount's configuration. system are the server's own bounds.
func tuneConfig(e *mount.Entry, values map[string]any, system engine.Limits) error {
	if err := tuneTTLs(e, values, system); err != nil {
		return err
	}
	if v, ok := values["listing_visibility"].(string); ok {
		if v != "" && v != "hidden" && v != "unauth" {
			return api.Errorf(api.Invalid, "invalid listing_visibility %s", v)
		}
		e.Config.ListingVisibility = v
	}
	if v, ok := values["token_type"].(string); ok && (e.UUID != "" || e.Class == mount.Auth) {
		switch {
		case e.Class != mount.Auth:
			return api.Errorf(api.Invalid, "'token_type' can only be modified on auth mounts")
		case e.Type == "token":
			return api.Errorf(api.Invalid, "'token_type' cannot be set for 'token' or 'ns_token' auth mounts")
		case !slices.Contains([]string{"", "default-service", "default-batch", "service", "batch"}, v):
			return api.Errorf(api.Invalid, "invalid value for 'token_type'")
		}
		e.Config.TokenType = v
	}
	if v, ok := values["identity_token_key"].(string); ok && v != "" {
		return api.Errorf(api.Invalid, "key %q does not exist", v)
	}
	for name, to := range map[string]*bool{"force_no_cache": &e.Config.ForceNoCache, "trim_request_trailing_slashes": &e.Config.TrimSlashes} {
		raw, ok := values[name]
		if !ok {
			continue
		}
		v, good := engine.ParseBool(raw)
		if !good {
			return api.Errorf(api.Invalid, "%s is no boolean", name)
		}
		*to = v
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
	if v, ok := values["user_lockout_config"].(map[string]any); ok && len(v) > 0 {
		return tuneLockout(e, v)
	}
	return nil
}

// tuneTTLs applies default_lease_ttl and max_lease_ttl. An empty one says nothing.
func tuneTTLs(e *mount.Entry, values map[string]any, system engine.Limits) error {
	for _, t := range []struct {
		name, what string
		to         *time.Duration
	}{{"default_lease_ttl", "default", &e.Config.DefaultTTL}, {"max_lease_ttl", "max", &e.Config.MaxTTL}} {
		raw, ok := values[t.name]
		if !ok || raw == "" {
			continue
		}
		if raw == "system" {
			raw = 0
		}
		d, ok := engine.ParseDuration(raw)
		if !ok {
			return api.Errorf(api.Invalid, "unable to parse %s TTL of %v: write seconds, or 90s, 5m, 1h", t.what, raw)
		}
		*t.to = d
	}
	c := &e.Config
	switch {
	case c.MaxTTL > 0 && c.DefaultTTL > c.MaxTTL && e.UUID == "":
		return api.Errorf(api.Invalid, "given default lease TTL greater than given max lease TTL")
	case c.MaxTTL > 0 && c.DefaultTTL > c.MaxTTL:
		return api.Errorf(api.Invalid, "backend max lease TTL of %d would be less than backend default lease TTL of %d", whole(c.MaxTTL), whole(c.DefaultTTL))
	case c.MaxTTL == 0 && c.DefaultTTL > system.MaxTTL && e.UUID == "":
		return api.Errorf(api.Invalid, "given default lease TTL greater than system max lease TTL of %d", whole(system.MaxTTL))
	}
	return nil
}
