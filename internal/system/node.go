package system

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Node is what the running server knows of itself. Its functions may be called concurrently and hold nothing secret.
type Node struct {
	Version  string                   // of this binary
	Members  Members                  // the nodes on the store, in the order in which they started
	Settings func() map[string]any    // its configuration without secrets, in Vault's names
	InFlight func() map[string]any    // requests under way, by id
	Level    func() string            // of the log: error, warn, info, debug or trace
	SetLevel func(level string) error // "" is what the configuration says
}

// Members asks the store which nodes work on it.
type Members func(context.Context) ([]Member, error)

// Member is a node that works on the store, or did within the last minute. Times are by the store's clock.
type Member struct {
	ID             string // of this start of it
	Name           string // node_name; empty if it did not say yet, as all that follows
	Address        string // URL for clients
	ClusterAddress string
	Version        string // of lessor
	Reported       string // of Vault, for Vault's clients
	State          string // active, sealed, draining or starting
	Started, Seen  time.Time
	Alive          bool // seen within the last five seconds
	Self           bool // it is the one that answers
	Failing        int  // targets that it works at and only probes, since they fail
	Claims         int  // how many of the claim.Shards of the background work are its own
}

// nodeRoutes are about this node rather than about what it keeps.
func (b *Backend) nodeRoutes() []engine.Route {
	level := []engine.Field{{Name: "level", Type: engine.String, Help: "trace, debug, info, warn or error"}}
	return []engine.Route{
		{Pattern: "ha-status", Help: "the nodes that there are, as Vault tells of them", Ops: read(b.haStatus)},
		{Pattern: "lessor/members", Help: "the nodes that work on the store, and how they are", Ops: read(b.members)},
		{Pattern: "step-down", Help: "give up being the active node; every node is active, so nothing changes", Sudo: true, Ops: update(nothing)},
		{Pattern: "replication/status", Help: "state of replication: there is none", Open: true, Ops: read(constant(map[string]any{"mode": "disabled"}))},
		{Pattern: "version-history", Help: "versions that ran on this store", Ops: ops{lessor.List: b.versions}},
		{Pattern: "config/state/sanitized", Help: "the server's configuration without what is secret", Ops: read(
			func(context.Context, *engine.Request) (*engine.Reply, error) {
				return &engine.Reply{Data: b.Node.Settings()}, nil
			})},
		{Pattern: "in-flight-req", Help: "requests under way", Ops: read(
			func(context.Context, *engine.Request) (*engine.Reply, error) {
				return &engine.Reply{Data: b.Node.InFlight(), Bare: true}, nil
			})},
		{Pattern: "loggers", Help: "how much the server logs", Fields: level, Ops: ops{lessor.Read: b.readLevel, lessor.Update: b.setLevel, lessor.Delete: b.resetLevel}},
		{Pattern: "loggers/{name}", Help: "how much a part of the server logs: there is one log, named " + theLog, Fields: level,
			Ops: ops{lessor.Read: b.readLevel, lessor.Update: b.setLevel, lessor.Delete: b.resetLevel}},
		{Pattern: "internal/counters/entities", Help: "number of entities", Ops: read(countEntities)},
		{Pattern: "internal/counters/requests", Help: "not told any more", Ops: read(
			func(context.Context, *engine.Request) (*engine.Reply, error) {
				return nil, notFound("The functionality has been removed on this path")
			})},
		{Pattern: "experiments", Help: "experiments that are switched on: there are none", Ops: read(constant(map[string]any{"available": []string{}, "enabled": []string{}}))},
	}
}

func nothing(context.Context, *engine.Request) (*engine.Reply, error) { return &engine.Reply{}, nil }

// haStatus tells of the nodes in Vault's shape. Each that is unsealed is active. A node that was not heard of for five seconds is none.
func (b *Backend) haStatus(context.Context, *engine.Request) (*engine.Reply, error) {
	return &engine.Reply{Flat: true, Later: func(ctx context.Context) (map[string]any, error) {
		members, err := b.Node.Members(ctx)
		if err != nil {
			return nil, err
		}
		nodes := []any{}
		for _, m := range members {
			if !m.Alive {
				continue
			}
			var echo any
			if !m.Self {
				echo = stamp(m.Seen)
			}
			nodes = append(nodes, map[string]any{
				"hostname": m.Name, "api_address": m.Address, "cluster_address": m.ClusterAddress, "active_node": m.State == "active", "last_echo": echo,
				"version": m.Reported, "echo_duration_ms": 0, "clock_skew_ms": 0, "replication_primary_canary_age_ms": 0,
			})
		}
		return map[string]any{"nodes": nodes}, nil
	}}, nil
}

// members tells of the nodes, those included that were lost within the last minute.
func (b *Backend) members(context.Context, *engine.Request) (*engine.Reply, error) {
	return &engine.Reply{Later: func(ctx context.Context) (map[string]any, error) {
		members, err := b.Node.Members(ctx)
		if err != nil {
			return nil, err
		}
		out := []any{}
		for _, m := range members {
			out = append(out, map[string]any{
				"id": m.ID, "name": m.Name, "address": m.Address, "version": m.Version, "state": m.State, "started": stamp(m.Started), "seen": stamp(m.Seen),
				"alive": m.Alive, "self": m.Self, "claims": m.Claims, "failing_targets": m.Failing,
			})
		}
		return map[string]any{"members": out, "shards": claim.Shards}, nil
	}}, nil
}

// theLog is the name of the only log.
const theLog = "core"

func (b *Backend) readLevel(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	data := map[string]any{}
	if name := r.Param("name"); name == "" || name == theLog {
		data[theLog] = b.Node.Level()
	}
	return &engine.Reply{Data: data}, nil
}

// known log levels, as Vault's clients write them.
var levels = map[string]string{
	"trace": "trace", "debug": "debug", "notice": "info", "info": "info", "warn": "warn", "warning": "warn", "err": "error", "error": "error",
}

func (b *Backend) setLevel(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if name := r.Param("name"); name != "" && name != theLog {
		return nil, api.Errorf(api.Invalid, "logger %q not found", name)
	}
	if r.Str("level") == "" {
		return nil, api.Errorf(api.Invalid, "level is required")
	}
	level := levels[r.Str("level")]
	if level == "" {
		return nil, api.Errorf(api.Invalid, "invalid level provided: unknown log level: %s", r.Str("level"))
	}
	return &engine.Reply{Note: "log level " + level, Then: func(context.Context) error { return b.Node.SetLevel(level) }}, nil
}

func (b *Backend) resetLevel(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if name := r.Param("name"); name != "" && name != theLog {
		return nil, api.Errorf(api.Invalid, "logger %q not found", name)
	}
	return &engine.Reply{Then: func(context.Context) error { return b.Node.SetLevel("") }}, nil
}

func countEntities(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	n, err := identity.CountEntities(r.View)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: map[string]any{"counters": map[string]any{"entities": map[string]any{"total": n}}}}, nil
}

// installed is a version that ran on the store, from its first start on.
type installed struct {
	Since    time.Time `json:"since"`
	Previous string    `json:"previous,omitempty"`
}

var versionRows = store.MountKey(lessor.RootNamespace, "", "version/")

// Installed adds to txn that a version runs on the store from now on, and reports whether that is news.
func Installed(v store.View, txn *store.Txn, version string, now time.Time) (bool, error) {
	row, err := v.Get(store.Key{Table: store.Config, Name: versionRows + version})
	if err != nil || row.Exists() {
		return false, err
	}
	it := installed{Since: now}
	var latest time.Time
	err = eachVersion(v, func(name string, other installed) {
		if other.Since.After(latest) {
			it.Previous, latest = name, other.Since
		}
	})
	if err != nil {
		return false, err
	}
	raw, err := json.Marshal(it)
	txn.Require(row)
	txn.Put(row.Table, row.Name, raw)
	return true, err
}

func eachVersion(v store.View, yield func(string, installed)) error {
	for row, err := range v.Scan(store.Config, versionRows, store.PrefixEnd(versionRows)) {
		if err != nil {
			return err
		}
		var it installed
		if err := json.Unmarshal(row.Value, &it); err != nil {
			return fmt.Errorf("system: damaged row %s: %w", row.Key, err)
		}
		yield(row.Name[len(versionRows):], it)
	}
	return nil
}

// versions lists what ran on the store, in that order.
func (b *Backend) versions(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	keys, info, since := []string{}, map[string]any{}, map[string]time.Time{}
	err := eachVersion(r.View, func(name string, it installed) {
		var previous any
		if it.Previous != "" {
			previous = it.Previous
		}
		keys, since[name] = append(keys, name), it.Since
		info[name] = map[string]any{"build_date": "", "previous_version": previous, "timestamp_installed": it.Since.UTC().Format(time.RFC3339)}
	})
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, empty()
	}
	slices.SortFunc(keys, func(a, b string) int { return since[a].Compare(since[b]) })
	return &engine.Reply{Data: map[string]any{"keys": keys, "key_info": info}}, nil
}
