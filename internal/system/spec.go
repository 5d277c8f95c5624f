package system

import (
	"context"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/openapi"
)

func (b *Backend) specRoutes() []engine.Route {
	return []engine.Route{{
		Pattern: "internal/specs/openapi", Help: "an OpenAPI 3 document of all mounts that the caller can see", Open: true,
		Ops: ops{lessor.Read: b.spec, lessor.Update: b.spec}, Fields: []engine.Field{
			{Name: "context", Type: engine.String, Help: "appended to the names of operations"},
			{Name: "generic_mount_paths", Type: engine.Bool, Help: "parameters instead of the paths of mounts"},
		},
	}}
}

// longestContext is how much may be appended to each of some hundred names.
const longestContext = 64

// spec describes what the caller can see: with a token the mounts that it reaches, without one those that are shown to everybody.
func (b *Backend) spec(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	known, err := known(r)
	if err != nil {
		return nil, err
	}
	if len(r.Str("context")) > longestContext {
		return nil, api.Errorf(api.Invalid, "context has at most %d bytes", longestContext)
	}
	var mounts []openapi.Mount
	seen := map[string]bool{} // backends that are described with a parameter for a path: once each
	for _, e := range r.System.Mounts() {
		if e.Removing || e.Config.ListingVisibility != "unauth" && !(known && r.System.Reaches(e.Path)) {
			continue
		}
		backend, ok := b.Backends[e.Backend()]
		if !ok {
			continue
		}
		m := openapi.Mount{Path: e.Path, Type: e.Backend(), Tag: tag(e), Routes: engine.Described(backend)}
		if r.Bool("generic_mount_paths") && !slices.Contains(singletons, e.Type) {
			if seen[m.Type] {
				continue
			}
			m.Param, seen[m.Type] = generic(e), true
		}
		mounts = append(mounts, m)
	}
	doc := openapi.Document(openapi.Options{Version: b.Reported, Context: r.Str("context")}, mounts)
	return &engine.Reply{Data: doc, Bare: true}, nil
}

func tag(e *mount.Entry) string {
	switch {
	case e.Class == mount.Auth:
		return "auth"
	case e.Type == "system", e.Type == "identity":
		return e.Type
	}
	return "secrets"
}

// generic is the name of the parameter that stands for a mount's path.
func generic(e *mount.Entry) string {
	plain := func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			return c
		}
		return '_'
	}
	return strings.Map(plain, strings.TrimSuffix(told(e), "/")) + "_mount_path"
}
