package system

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
)

// The catalog lists what is built in; lessor runs nothing else.

func (b *Backend) pluginRoutes() []engine.Route {
	version := engine.Field{Name: "version", Type: engine.String, Help: "version of the engine"}
	register := []engine.Field{
		version, {Name: "sha256", Type: engine.String, Help: "of the plugin"}, {Name: "sha_256", Type: engine.String, Help: "the same as sha256"},
		{Name: "command", Type: engine.String, Help: "that runs the plugin"}, {Name: "args", Type: engine.Strings, Help: "of the command"},
		{Name: "env", Type: engine.Strings, Help: "of the command"}, {Name: "oci_image", Type: engine.String, Help: "of the plugin"},
		{Name: "runtime", Type: engine.String, Help: "of the plugin"}, {Name: "download", Type: engine.Bool, Help: "whether to download the plugin"},
	}
	scope := engine.Field{Name: "scope", Type: engine.String, Help: "global, or nothing"}
	return []engine.Route{
		{Pattern: "plugins/catalog", Help: "engines, auth methods and database plugins that are built in", Ops: read(b.catalog)},
		{Pattern: "plugins/catalog/{type}", Help: "what is built in of one type: auth, database or secret", Sudo: true,
			Ops: ops{lessor.List: b.catalogOfType, lessor.Read: b.untyped, lessor.Update: b.register, lessor.Delete: b.unregister}, Fields: register},
		{Pattern: "plugins/catalog/{type}/{name}", Help: "one of them", Sudo: true, Fields: register,
			Ops: ops{lessor.Read: b.readPlugin, lessor.Update: b.register, lessor.Delete: b.unregister}},
		{Pattern: "plugins/pins", Help: "versions that are pinned: none", Ops: read(constant(map[string]any{"pinned_versions": []any{}}))},
		{Pattern: "plugins/runtimes/catalog", Help: "runtimes of external plugins: none", Sudo: true, Fields: []engine.Field{{Name: "type", Type: engine.String, Help: "type of runtime"}},
			Ops: ops{lessor.List: constant(map[string]any{"runtimes": []any{}}), lessor.Read: constant(map[string]any{"runtimes": []any{}})}},
		{Pattern: "plugins/reload/backend", Help: "reload an engine; what is built in has nothing to reload", Ops: update(b.reloadBackend), Fields: []engine.Field{
			{Name: "plugin", Type: engine.String, Help: "name of the engine"}, {Name: "mounts", Type: engine.Strings, Help: "paths of its mounts"}, scope,
		}},
		{Pattern: "plugins/reload/{type}/{name}", Help: "reload an engine; what is built in has nothing to reload", Ops: update(b.reloadPlugin), Fields: []engine.Field{scope}},
	}
}

// constant is a handler whose answer never changes.
func constant(data map[string]any) engine.Handler {
	return func(context.Context, *engine.Request) (*engine.Reply, error) { return &engine.Reply{Data: data}, nil }
}

// pluginTypes are the types of the catalog, in its order.
var pluginTypes = []string{"auth", "database", "secret"}

// plugins are the names of what is built in of a type, sorted.
func (b *Backend) plugins(kind string) []string {
	switch kind {
	case "auth":
		return b.types(mount.Auth)
	case "secret":
		return b.types(mount.Secret)
	case "database":
		if d, ok := b.Backends["database"].(interface{ Plugins() []string }); ok {
			return d.Plugins()
		}
	}
	return nil
}

func (b *Backend) catalog(context.Context, *engine.Request) (*engine.Reply, error) {
	data, detailed := map[string]any{}, []any{}
	for _, kind := range pluginTypes {
		names := b.plugins(kind)
		if len(names) == 0 {
			continue
		}
		data[kind] = names
		for _, name := range names {
			detailed = append(detailed, map[string]any{
				"builtin": true, "deprecation_status": "supported", "name": name, "type": kind, "version": b.builtinVersion(),
			})
		}
	}
	data["detailed"] = detailed
	return &engine.Reply{Data: data}, nil
}

func pluginType(r *engine.Request) (string, error) {
	if kind := r.Param("type"); slices.Contains(pluginTypes, kind) || kind == "unknown" {
		return kind, nil
	}
	return "", api.Errorf(api.Invalid, "%q is not a supported plugin type", r.Param("type"))
}

func (b *Backend) catalogOfType(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	kind, err := pluginType(r)
	if err != nil {
		return nil, err
	}
	return engine.Keys(b.plugins(kind))
}

// untyped answers the path that older clients have, on which a plugin had no type.
func (b *Backend) untyped(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if slices.Contains(pluginTypes, r.Param("type")) {
		return nil, api.Errorf(api.Unsupported, "unsupported operation: list it")
	}
	return &engine.Reply{Warnings: []string{fmt.Sprintf("Deprecated API endpoint, cannot read plugin information from catalog for %q", r.Param("type"))}}, nil
}

func (b *Backend) readPlugin(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	kind, err := pluginType(r)
	if err != nil {
		return nil, err
	}
	if v := r.Str("version"); v != "" && v != b.builtinVersion() || !slices.Contains(b.plugins(kind), r.Param("name")) {
		return nil, empty()
	}
	return &engine.Reply{Data: map[string]any{
		"args": nil, "builtin": true, "command": "", "deprecation_status": "supported", "name": r.Param("name"), "sha256": "", "version": b.builtinVersion(),
	}}, nil
}

func (b *Backend) register(context.Context, *engine.Request) (*engine.Reply, error) {
	return nil, api.Errorf(api.Invalid, "could not set plugin: this server runs no external plugins, its engines are built in")
}

// unregister finds nothing to take out: what is built in stays.
func (b *Backend) unregister(context.Context, *engine.Request) (*engine.Reply, error) {
	return &engine.Reply{}, nil
}

func (b *Backend) reloadBackend(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, mounts := r.Str("plugin"), r.List("mounts")
	switch {
	case r.Str("scope") != "" && r.Str("scope") != "global":
		return nil, api.Errorf(api.Invalid, "reload scope must be omitted or 'global'")
	case name != "" && len(mounts) > 0:
		return nil, api.Errorf(api.Invalid, "plugin and mounts cannot be set at the same time")
	case name == "" && len(mounts) == 0:
		return nil, api.Errorf(api.Invalid, "plugin or mounts must be provided")
	}
	for _, path := range mounts {
		if find(r, mount.Secret, path) == nil {
			return nil, api.Errorf(api.Invalid, "cannot fetch mount entry on %q", strings.Trim(path, "/")+"/")
		}
	}
	return reloaded(r, len(mounts) > 0 || mounted(r, name))
}

func (b *Backend) reloadPlugin(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	kind, err := pluginType(r)
	if err != nil {
		return nil, api.Errorf(api.Invalid, `error parsing %q as a plugin type, must be one of "auth", "secret", "database", or "unknown"`, r.Param("type"))
	}
	if s := r.Str("scope"); s != "" && s != "global" {
		return nil, api.Errorf(api.Invalid, "reload scope must be omitted or 'global'")
	}
	return reloaded(r, slices.Contains(b.plugins(kind), r.Param("name")) && mounted(r, r.Param("name")))
}

// mounted reports whether an engine of the name is in use.
func mounted(r *engine.Request, name string) bool {
	return slices.ContainsFunc(r.System.Mounts(), func(e *mount.Entry) bool { return e.Type == name && !e.Removing })
}

// reloaded answers a reload. Engines keep nothing that it could bring up to date.
func reloaded(r *engine.Request, some bool) (*engine.Reply, error) {
	reply := &engine.Reply{Data: map[string]any{"reload_id": r.Op.ID}}
	if !some {
		reply.Warnings = []string{"no plugins were reloaded"}
	}
	if r.Str("scope") == "global" {
		reply.Status = 202
	}
	return reply, nil
}
