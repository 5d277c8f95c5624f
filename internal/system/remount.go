package system

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/mount"
)

// remount moves a mount. Its rows begin with its UUID, so that the move is one commit, and done when it is answered. As in
// Vault, its leases and the tokens that it gave are revoked: they were asked for under the old path.
func (b *Backend) remount(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	from, to := r.Str("from"), r.Str("to")
	switch {
	case from == "" || to == "":
		return nil, api.Errorf(api.Invalid, "both 'from' and 'to' path must be specified as a string")
	case strings.TrimSpace(from) != from:
		return nil, api.Errorf(api.Invalid, "'from' path cannot contain trailing whitespace")
	case strings.TrimSpace(to) != to:
		return nil, api.Errorf(api.Invalid, "'to' path cannot contain trailing whitespace")
	case path.Clean(to) != strings.TrimSuffix(to, "/"):
		return nil, api.Errorf(api.Invalid, "invalid destination mount: path '%s' does not match cleaned path '%s'", strings.TrimSuffix(to, "/")+"/", path.Clean(to)+"/")
	case strings.ContainsFunc(to, func(c rune) bool { return !unicode.IsPrint(c) }):
		return nil, api.Errorf(api.Invalid, "invalid destination mount: path cannot contain non-printable characters")
	}
	from, to = strings.Trim(from, "/")+"/", strings.Trim(to, "/")+"/"
	if err := movable(from, to); err != nil {
		return nil, err
	}
	table, err := mount.Load(r.View)
	if err != nil {
		return nil, err
	}
	found := table.ByPath(from)
	if found == nil || found.Removing {
		return nil, api.Errorf(api.Invalid, "no matching mount at %q", from)
	}
	e := *found
	e.Path = to
	if other := clash(r, &mount.Entry{Path: to}); other != nil {
		return nil, api.Errorf(api.Invalid, "path already in use at %q", other.Path)
	}
	if err := checkPath(r, &e); err != nil {
		return nil, err
	}
	var id [16]byte
	if _, err := io.ReadFull(r.Random, id[:]); err != nil {
		return nil, err
	}
	move := mount.Move{ID: uuidText(string(id[:])), From: from, To: to}
	e.Moves = append(slices.Clone(e.Moves), move)
	e.Moves = e.Moves[max(0, len(e.Moves)-mount.MostMoves):]

	reply := &engine.Reply{
		Data: map[string]any{"migration_id": move.ID}, Flat: true, Note: "moved",
		Warnings: []string{
			fmt.Sprintf("Mount move is done. Its leases and the tokens that it gave are revoked; its quotas move with it; policies and owners that name %s do not.", from),
		},
	}
	table.Save(&reply.Txn, &e, from)
	if _, err := r.System.Bury(&reply.Txn, lease.Selector{Kind: lease.ByMount, Value: e.UUID, Moved: true}, "mount moved"); err != nil {
		return nil, err
	}
	return reply, nil
}

// movable refuses moves of what is lessor's own, to where only lessor itself mounts, and out of auth/.
func movable(from, to string) error {
	if strings.HasPrefix(from, "auth/") {
		switch {
		case !strings.HasPrefix(to, "auth/"):
			return api.Errorf(api.Invalid, "cannot remount auth mount to non-auth mount %q", to)
		case strings.HasPrefix(from, "auth/token"):
			return api.Errorf(api.Invalid, "cannot remount %q", from)
		case strings.HasPrefix(to, "auth/token"):
			return api.Errorf(api.Invalid, "cannot remount to destination %q", to)
		}
		return nil
	}
	for _, p := range reserved {
		switch {
		case strings.HasPrefix(from, p):
			return api.Errorf(api.Invalid, "cannot remount %q", from)
		case strings.HasPrefix(to, p):
			return api.Errorf(api.Invalid, "cannot remount to destination %s", to)
		}
	}
	return nil
}

func (b *Backend) remountStatus(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	id := r.Param("migration_id")
	for _, e := range r.System.Mounts() {
		for _, m := range e.Moves {
			if m.ID == id {
				return &engine.Reply{Data: map[string]any{
					"migration_id": id, "migration_info": map[string]any{"source_mount": m.From, "target_mount": m.To, "status": "success"},
				}}, nil
			}
		}
	}
	return nil, empty()
}
