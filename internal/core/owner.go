package core

import (
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/owner"
	"github.com/lessor-dev/lessor/internal/store"
)

// owned is an owner and the path that names it.
type owned struct{ owner, from string }

// OwnerOf resolves who owns a path as clients have it.
func (w *walk) OwnerOf(path string) (name, from string) { return w.ownerOf(w.mounts.Logical(path)) }

// ownerOf resolves who owns a path: the nearest ancestor's owner that was set, else the mount's own.
func (w *walk) ownerOf(path string) (name, from string) {
	o, err := w.owners.get(w.view, store.Config, path, func() (owned, error) {
		name, from, err := owner.Of(w.view, path)
		return owned{name, from}, err
	})
	if err == nil && o.owner != "" {
		return o.owner, o.from
	}
	if e, _ := w.mounts.Route(strings.TrimSuffix(path, "/") + "/"); e != nil && e.Owner != "" {
		return e.Owner, e.Path
	}
	return "", ""
}

// owned refuses, where the configuration says so, to create what nobody owns. Mounts are for the handler that makes them.
func (w *walk) owned() error {
	if !w.RequireOwner || w.request.Verb != lessor.Create || w.mount.Builtin {
		return nil
	}
	if name, _ := w.OwnerOf(w.op.Path); name == "" {
		return api.Errorf(api.Invalid, "nobody owns %q, and this server creates nothing without an owner: set one with "+
			"lessor owner set PATH OWNER, for it or for something above it", w.op.Path)
	}
	return nil
}

// Mounts yields all mounts, sorted by path.
func (w *walk) Mounts() []*mount.Entry { return w.mounts.All() }
