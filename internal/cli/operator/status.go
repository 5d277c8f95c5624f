package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Status is the command status.
func Status(a *session.Session) *cobra.Command {
	return a.Remote("status", "Show whether the server is there and unsealed", `
Exit codes: 0 unsealed, 2 sealed, 1 an error, or no server. Needs no token; with one, it shows more.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			c = c.WithWrapTTL(0).WithNamespace("")
			answer, err := c.WithToken(client.Token{}).Read(cmd.Context(), "sys/seal-status", nil)
			if _, shown := errors.AsType[session.Preview](err); shown {
				return err
			}
			if err != nil {
				a.Progress.End()
				a.Complain("%s", session.Sentence(err))
				if advice := a.Advice(err); advice != "" {
					a.Complain("%s", advice)
				}
				return session.ExitCode(session.ExitLocal)
			}
			if err := printSeal(a, cmd.Context(), c, answer.Data); err != nil {
				return err
			}
			if sealed, _ := answer.Data["sealed"].(bool); sealed {
				return session.ExitCode(session.ExitRemote)
			}
			return nil
		})
}

// printSeal writes the state of the seal, with what the server tells of itself besides.
func printSeal(a *session.Session, ctx context.Context, c *client.Client, state map[string]any) error {
	state = maps.Clone(state)
	if leader, err := c.WithToken(client.Token{}).WithWrapTTL(0).WithNamespace("").Read(ctx, "sys/leader", nil); err == nil {
		for _, key := range []string{"ha_enabled", "is_self", "active_time", "leader_address", "leader_cluster_address", "performance_standby", "last_wal"} {
			if value, ok := leader.Data[key]; ok {
				state[key] = value
			}
		}
	}
	info := info(a, ctx, c)
	if info != nil {
		state["lessor"] = info
	}
	return a.Print(state, func() error { return a.Pairs(statusRows(state, info)) })
}

// info is what lessor tells of itself to those who may know; nil for others, and from other servers.
func info(a *session.Session, ctx context.Context, c *client.Client) map[string]any {
	if c.Token().Empty() {
		return nil
	}
	answer, err := c.WithWrapTTL(0).Read(ctx, "sys/lessor/info", nil)
	if err != nil {
		return nil
	}
	return answer.Data
}

// statusRows has Vault's rows in Vault's order; what lessor says of itself follows.
func statusRows(state, info map[string]any) []session.Row {
	sealed, _ := state["sealed"].(bool)
	recovery, _ := state["recovery_seal"].(bool)
	shares := "Total Shares"
	if recovery {
		shares = "Total Recovery Shares"
	}
	var rows []session.Row
	add := func(title string, value any, when bool) {
		if when && value != nil && value != "" {
			rows = append(rows, session.Row{title, session.PrintableLine(session.Cell("", value))})
		}
	}
	add("Seal Type", state["type"], true)
	add("Recovery Seal Type", state["recovery_seal_type"], recovery)
	add("Initialized", state["initialized"], true)
	add("Sealed", state["sealed"], true)
	add(shares, state["n"], true)
	add("Threshold", state["t"], true)
	add("Unseal Progress", fmt.Sprintf("%v/%v", state["progress"], state["t"]), sealed)
	if sealed {
		rows = append(rows, session.Row{"Unseal Nonce", session.PrintableLine(session.Cell("", session.OrEmpty(state["nonce"])))})
	}
	add("Seal Migration in Progress", state["migration"], state["migration"] == true)
	add("Version", state["version"], true)
	add("Lessor Version", state["lessor_version"], true)
	add("Build Date", state["build_date"], true)
	add("Storage Type", state["storage_type"], true)
	add("Cluster Name", state["cluster_name"], true)
	add("Cluster ID", state["cluster_id"], true)
	ha, _ := state["ha_enabled"].(bool)
	add("HA Enabled", ha, true)
	if ha && !sealed {
		mode := "standby"
		if self, _ := state["is_self"].(bool); self {
			mode = "active"
		}
		add("HA Cluster", state["leader_cluster_address"], true)
		add("HA Mode", mode, true)
		add("Active Since", state["active_time"], mode == "active")
		add("Active Node Address", cmp.Or(session.OrEmpty(state["leader_address"]), "<none>"), mode == "standby")
	}
	for _, r := range session.DataRows(info) {
		if info[r[0]] == nil { // nothing to tell, such as no alarm
			continue
		}
		titles := map[string]string{
			"version": "Lessor Version", "incarnation": "Incarnation", "storage": "Storage Type", "seal": "Seal Type",
			"cluster_id": "Cluster ID", "cluster_name": "Cluster Name", "clock_alarm": "Clock Alarm", "fenced": "Fenced",
			"go_version": "Go Version", "sequence": "Sequence", "started": "Started",
		}
		if title, ok := titles[r[0]]; ok {
			r[0] = title
		}
		if !slices.ContainsFunc(rows, func(other session.Row) bool { return other[0] == r[0] }) {
			rows = append(rows, r)
		}
	}
	return rows
}

// VersionText names this binary.
func VersionText(version string) string {
	return fmt.Sprintf("lessor %s, %s %s/%s", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// Version is the command version.
func Version(a *session.Session, version string) *cobra.Command {
	return a.Local("version", "Print the version of this program", "", 0, 0, func(*cobra.Command, []string) error {
		about := map[string]any{"version": version, "go_version": runtime.Version(), "os": runtime.GOOS, "architecture": runtime.GOARCH}
		return a.Print(about, func() error { return a.Say("%s", VersionText(version)) })
	})
}

// VersionHistory lists which versions served the store.
func VersionHistory(a *session.Session) *cobra.Command {
	return a.Remote("version-history", "List the versions that served the store, and since when", "", 0, 0,
		func(cmd *cobra.Command, _ []string) error {
			c, err := a.Unwrapped()
			if err != nil {
				return err
			}
			answer, err := c.List(cmd.Context(), "sys/version-history/")
			if err = session.ExplainMissing(err, "sys/version-history", ""); err != nil {
				return err
			}
			a.Warn(answer)
			return a.Print(answer, func() error {
				about, _ := answer.Data["key_info"].(map[string]any)
				var rows []session.Row
				for _, version := range answer.Keys() {
					of, _ := about[version].(map[string]any)
					rows = append(rows, session.Row{
						session.PrintableLine(version), session.PrintableLine(session.Cell("", session.OrEmpty(of["timestamp_installed"]))), session.PrintableLine(session.Cell("", session.OrEmpty(of["build_date"]))),
					})
				}
				return a.Table(session.Row{"Version", "Installation Time", "Build Date"}, rows)
			})
		})
}
