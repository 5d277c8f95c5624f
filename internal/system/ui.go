package system

import (
	"cmp"
	"context"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/mount"
)

// uiRoutes are what clients and user interfaces ask before they know what they may: with a token they learn what it
// reaches, without one what is shown to everybody.
func (b *Backend) uiRoutes() []engine.Route {
	messages := func(context.Context, *engine.Request) (*engine.Reply, error) {
		return &engine.Reply{Data: map[string]any{}}, nil // nobody writes any
	}
	return []engine.Route{
		{Pattern: "internal/ui/mounts", Help: "mounts that the caller can see", Open: true, Ops: read(b.visibleMounts)},
		{Pattern: "internal/ui/mounts/{path...}", Help: "the mount that serves a path", Open: true, Ops: read(b.preflight)},
		{Pattern: "internal/ui/namespaces", Help: "namespaces that the caller can see: there are none", Open: true, Ops: read(b.namespaces)},
		{Pattern: "internal/ui/resultant-acl", Help: "what the caller's policies give, by pattern", Ops: read(b.resultant)},
		{Pattern: "internal/ui/feature-flags", Help: "features that are switched on: there are none", Open: true, Ops: read(
			func(context.Context, *engine.Request) (*engine.Reply, error) {
				return &engine.Reply{Bare: true, Data: map[string]any{"feature_flags": nil}}, nil
			})},
		{Pattern: "internal/ui/authenticated-messages", Help: "messages for who has a token: there are none", Open: true, Ops: read(messages)},
		{Pattern: "internal/ui/unauthenticated-messages", Help: "messages for everybody: there are none", Open: true, Ops: read(messages)},
	}
}

// known reports whether the caller has a token. One that is no good, or that is good for one thing only, is refused although none is needed:
// who has one wants to know what it reaches.
func known(r *engine.Request) (bool, error) {
	t := r.System.Caller()
	switch {
	case t != nil && t.Wrapping:
		return false, api.Errorf(api.Denied, "permission denied: a wrapping token only unwraps")
	case t != nil && t.Join:
		return false, api.Errorf(api.Denied, "permission denied: a join secret only lets a server join")
	case t == nil && !r.Op.Token.Empty():
		return false, api.Errorf(api.Unauthenticated, "permission denied")
	}
	return t != nil, nil
}

func (b *Backend) visibleMounts(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	known, err := known(r)
	if err != nil {
		return nil, err
	}
	secret, auth := map[string]any{}, map[string]any{}
	for _, e := range r.System.Mounts() {
		if e.Removing || e.Config.ListingVisibility != "unauth" && !(known && r.System.Reaches(e.Path)) {
			continue
		}
		data := b.uiData(r, e)
		if !known {
			data = map[string]any{"type": data["type"], "description": data["description"], "options": data["options"]}
		}
		if e.Class == mount.Auth {
			auth[told(e)] = data
		} else {
			secret[told(e)] = data
		}
	}
	return &engine.Reply{Data: map[string]any{"secret": secret, "auth": auth}}, nil
}

// uiData is entryData with the ttls in force.
func (b *Backend) uiData(r *engine.Request, e *mount.Entry) map[string]any {
	data := b.entryData(r, e)
	config := data["config"].(map[string]any)
	if e.Config.DefaultTTL == 0 {
		config["default_lease_ttl"] = whole(r.Default.TTL)
	}
	if e.Config.MaxTTL == 0 {
		config["max_lease_ttl"] = whole(r.Default.MaxTTL)
	}
	return data
}

// preflight tells a client which mount serves a path, so that it knows which version of KV it talks to. An unknown mount is
// a denial, on purpose: it must not tell what exists.
func (b *Backend) preflight(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if known, err := known(r); err != nil || !known {
		return nil, cmp.Or(err, error(api.Errorf(api.Unauthenticated, "permission denied")))
	}
	path := strings.TrimPrefix(r.Param("path"), "/")
	e, _ := mountOf(r, path+"/")
	if e == nil || e.Removing || !r.System.Reaches(e.Path) {
		return nil, api.Errorf(api.Denied, "preflight capability check returned 403, please ensure client's policies grant access to path %q", path+"/")
	}
	data := b.uiData(r, e)
	data["path"] = told(e)
	return &engine.Reply{Data: data}, nil
}

func (b *Backend) namespaces(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if known, err := known(r); err != nil || !known {
		return nil, cmp.Or(err, error(api.Errorf(api.Unauthenticated, "permission denied")))
	}
	return &engine.Reply{Data: map[string]any{"keys": []string{""}}}, nil
}

func (b *Backend) resultant(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	data, err := r.System.Resultant()
	return &engine.Reply{Data: data}, err
}
