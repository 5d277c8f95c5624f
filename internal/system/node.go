package system

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Node is what the running server knows of itself. Its functions may be called concurrently and hold nothing secret.
type Node struct {
	Version  string                   // of this binary
	Self     func() map[string]any    // as sys/ha-status tells of a node
	Settings func() map[string]any    // its configuration without secrets, in Vault's names
	InFlight func() map[string]any    // requests under way, by id
	Level    func() string            // of the log: error, warn, info, debug or trace
	SetLevel func(level string) error // "" is what the configuration says
}

// nodeRoutes are about this node rather than about what it keeps.
func (b *Backend) nodeRoutes() []engine.Route {
	level := []engine.Field{{Name: "level", Type: engine.String, Help: "trace, debug, info, warn or error"}}
	return []engine.Route{
		{Pattern: "ha-status", Help: "the nodes that there are: this one", Ops: read(b.haStatus)},
		{Pattern: "step-down", Help: "give up being the active node; where there is one node only, nothing changes", Sudo: true, Ops: update(nothing)},
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

func (b *Backend) haStatus(context.Context, *engine.Request) (*engine.Reply, error) {
	return &engine.Reply{Data: map[string]any{"nodes": []any{b.Node.Self()}}, Flat: true}, nil
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
