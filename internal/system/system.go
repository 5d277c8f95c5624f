// Package system is the engine at sys/: mounts, policies, leases, wrapping, capabilities, as Vault's clients know them, and
// under sys/lessor what lessor adds: the audit trail, owners, holders, wide revocation, backup. Its handlers are like any
// engine's: they read one View and say what should happen.
package system

import (
	"context"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/archive"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/event"
	"github.com/lessor-dev/lessor/internal/exporter"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/lockout"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/quota"
	"github.com/lessor-dev/lessor/internal/rotator"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
)

// Backend is the engine. Its fields are set before it serves.
type Backend struct {
	Quotas *quota.Guard

	Store        *store.DB
	Reaper       *lease.Reaper
	Backends     map[string]engine.Backend // by mount type: what can be mounted
	RequireOwner bool
	Lockout      lockout.Settings // of users who fail to log in
	Node         Node
	Reported     string                          // the version that Vault's clients compare with
	Upgrade      func(ctx context.Context) error // makes what was kv of version 1 version 2, where that was asked for
	PrefixAudit  bool                            // files of audit devices may have a prefix before each line
	Exporters    *exporter.Exporters             // nil: devices are configuration only
	Backups      *archive.Keeper                 // nil: none are configured
	Metrics      Metrics
	Info         func() map[string]any // answer of sys/lessor/info
	Keys         *seal.Keyring
	Seal         Seal
	Rotators     *rotator.Caller // nil: this server calls none
	Events       *event.Feed     // what commits tell
	Listen       Listen
	Welcome      func(url bool) Welcome // for a machine that joins, with the database's URL or without; nil: none can
	Outside      []engine.Route         // below sys/, what the node answers before the gate: told in Front
}

// Metrics write what the node counts and measures.
type Metrics struct {
	Text func(ctx context.Context, w io.Writer) error // in Prometheus's text format
	JSON func(ctx context.Context, w io.Writer) error // in the shape of Vault's sink in memory
}

type ops = map[lessor.Verb]engine.Handler

func read(h engine.Handler) ops   { return ops{lessor.Read: h} }
func update(h engine.Handler) ops { return ops{lessor.Update: h} }

// Routes is the method table.
func (b *Backend) Routes() []engine.Route {
	var routes []engine.Route
	for _, part := range [][]engine.Route{
		b.mountRoutes(), b.uiRoutes(), b.toolRoutes(), b.pluginRoutes(), b.webRoutes(), b.nodeRoutes(), b.specRoutes(), b.policyRoutes(), b.leaseRoutes(), b.wrappingRoutes(), b.auditRoutes(), b.sealRoutes(), b.joinRoutes(), b.ownRoutes(), b.rotationRoutes(), b.drillRoutes(),
		b.lockedUserRoutes(), b.eventRoutes(), b.rotatorRoutes(),
	} {
		routes = append(routes, part...)
	}
	return append(routes, b.quotaRoutes()...)
}

// Front makes the Backend an engine.Fronted.
func (b *Backend) Front() []engine.Route { return b.Outside }

// builtinVersion is the version of the engines in this binary.
func (b *Backend) builtinVersion() string { return "v" + b.Reported + "+builtin.lessor" }

// semver is a version number as Vault's clients write it.
var semver = regexp.MustCompile(`^v?\d+(\.\d+)*(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// empty is the answer to a list of nothing.
func empty() error { return &api.Error{Kind: api.NotFound} }

// notFound is a 404 that says what is not there.
func notFound(format string, args ...any) error { return api.Errorf(api.NotFound, format, args...) }

// settle waits until what a tombstone covers is cleaned up.
func (b *Backend) settle(tomb string) func(context.Context) error {
	return func(ctx context.Context) error { return b.Reaper.Settle(ctx, tomb) }
}

// mountOf finds the mount of a lease id or secret path.
func mountOf(r *engine.Request, path string) (*mount.Entry, string) {
	var best *mount.Entry
	for _, e := range r.System.Mounts() {
		if strings.HasPrefix(path, e.Path) && (best == nil || len(e.Path) > len(best.Path)) {
			best = e
		}
	}
	if best == nil {
		return nil, path
	}
	return best, path[len(best.Path):]
}

// secretPath takes the "data/" or "metadata/" out of a KV v2 path, so that a secret has one name.
func secretPath(e *mount.Entry, rest string) string {
	if e != nil && e.Type == "kv" && e.Options["version"] == "2" {
		for _, p := range []string{"data/", "metadata/"} {
			if after, ok := strings.CutPrefix(rest, p); ok {
				return after
			}
		}
	}
	return rest
}

func stamp(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func whole(d time.Duration) int64 { return int64(d / time.Second) }
