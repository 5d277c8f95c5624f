package system

import (
	"context"
	"slices"

	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/lockout"
	"github.com/lessor-dev/lessor/internal/mount"
)

func (b *Backend) lockedUserRoutes() []engine.Route {
	return []engine.Route{
		{
			Pattern: "locked-users", Help: "users who are locked out after too many failed logins", Ops: read(b.lockedUsers),
			Fields: []engine.Field{{Name: "mount_accessor", Type: engine.String, Help: "of one auth method; empty: of all"}},
		},
		{
			Pattern: "locked-users/{mount_accessor}/unlock/{alias_identifier...}", Help: "let a user who is locked out log in again",
			Ops: ops{lessor.Update: unlockUser},
		},
	}
}

// lockedUsers tells who is locked out, where most are first.
func (b *Backend) lockedUsers(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	accessor, total := r.Str("mount_accessor"), 0
	of := []map[string]any{}
	add := func(accessor string, aliases []string) {
		total += len(aliases)
		of = append(of, map[string]any{"mount_accessor": accessor, "counts": len(aliases), "alias_identifiers": aliases})
	}
	for _, e := range r.System.Mounts() {
		if e.Class != mount.Auth || e.Removing || accessor != "" && e.Accessor != accessor {
			continue
		}
		aliases := []string{}
		if err := lockout.Locked(r.View, e, b.Lockout.For(e), r.Now, func(alias string) { aliases = append(aliases, alias) }); err != nil {
			return nil, err
		}
		if len(aliases) > 0 {
			add(e.Accessor, aliases)
		}
	}
	if accessor != "" && len(of) == 0 {
		add(accessor, []string{})
	}
	slices.SortStableFunc(of, func(a, b map[string]any) int { return b["counts"].(int) - a["counts"].(int) })
	spaces := []any{}
	if len(of) > 0 {
		list := make([]any, len(of))
		for i := range of {
			list[i] = of[i]
		}
		spaces = append(spaces, map[string]any{"namespace_id": "root", "namespace_path": "", "counts": total, "mount_accessors": list})
	}
	return &engine.Reply{Data: map[string]any{"by_namespace": spaces, "total": total}}, nil
}

// unlockUser lets a user log in again. Where there is nobody to unlock it does nothing.
func unlockUser(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{}
	for _, e := range r.System.Mounts() {
		if e.Class == mount.Auth && e.Accessor == r.Param("mount_accessor") {
			k := lockout.Name{Mount: e, Alias: r.Param("alias_identifier")}.Key()
			reply.Txn.Delete(k.Table, k.Name)
		}
	}
	return reply, nil
}
