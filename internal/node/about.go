package node

import (
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"

	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/system"
)

// about is what the node tells of itself.
func (l *life) about() system.Node {
	n := l.n
	return system.Node{
		Version: n.o.Version, Members: l.members, Settings: l.settings, Level: n.level, SetLevel: n.setLevel,
		InFlight: func() map[string]any { return n.inFlight(l.core) },
	}
}

// settings is the configuration as Vault's clients know it. What may hold a secret is not in it.
func (l *life) settings() map[string]any {
	c := l.n.config
	format := "standard"
	if c.LogJSON {
		format = "json"
	}
	listeners := []any{}
	for _, l := range c.Listeners {
		listeners = append(listeners, map[string]any{"type": "tcp", "config": map[string]any{"address": l.Address, "tls_disable": !l.TLS}})
	}
	return map[string]any{
		"api_addr": c.APIAddr, "cluster_addr": c.ClusterAddr, "cluster_name": l.cluster.name, "node_name": c.NodeName, "drain_delay": int64(c.DrainDelay.Seconds()), "default_lease_ttl": int64(c.DefaultLeaseTTL.Seconds()),
		"max_lease_ttl": int64(c.MaxLeaseTTL.Seconds()), "enable_ui": c.UI, "log_format": format, "log_level": levelName(c.LogLevel), "pid_file": c.PIDFile,
		"listeners": listeners, "storage": map[string]any{"type": string(c.Storage.Type)}, "raw_storage_endpoint": false, "introspection_endpoint": false,
		"disable_cache": false, "plugin_directory": "", "require_owner": c.RequireOwner,
	}
}

var methods = map[lessor.Verb]string{
	lessor.Read: http.MethodGet, lessor.List: "LIST", lessor.Create: http.MethodPut, lessor.Update: http.MethodPut, lessor.Patch: http.MethodPatch,
	lessor.Delete: http.MethodDelete,
}

// inFlight tells of requests under way. Tokens in their paths are told as in audit records.
func (n *Node) inFlight(c *core.Core) map[string]any {
	all := map[string]any{}
	for _, l := range n.listeners {
		for _, op := range l.handler.InFlight() {
			path, err := c.Recorded(op)
			if err != nil {
				continue // the store stopped serving
			}
			client := ""
			if op.Client.IsValid() {
				client = op.Client.String()
			}
			all[op.ID] = map[string]any{
				"start_time": op.Time, "client_remote_address": client, "request_path": "/v1/" + path, "request_method": methods[op.Verb], "client_id": "",
			}
		}
	}
	return all
}

// levelNames are the log levels as Vault's clients write them.
var levelNames = map[slog.Level]string{
	config.LevelTrace: "trace", slog.LevelDebug: "debug", slog.LevelInfo: "info", slog.LevelWarn: "warn", slog.LevelError: "error",
}

func levelName(l slog.Level) string {
	name := "trace"
	for _, at := range slices.Sorted(maps.Keys(levelNames)) {
		if l >= at {
			name = levelNames[at]
		}
	}
	return name
}

func (n *Node) level() string {
	if n.o.Level == nil {
		return levelName(n.config.LogLevel)
	}
	return levelName(n.o.Level.Level())
}

// setLevel changes how much is logged; "" is what the configuration says.
func (n *Node) setLevel(name string) error {
	if n.o.Level == nil {
		return fmt.Errorf("the log of this server does not change its level")
	}
	level := n.config.LogLevel
	for l, is := range levelNames {
		if is == name {
			level = l
		}
	}
	n.o.Level.Set(level)
	return nil
}
