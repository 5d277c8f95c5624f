package cli

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
)

func (a *app) status() *cobra.Command {
	return a.remote("status", "Show whether the server is there and unsealed", `
Exit codes: 0 unsealed, 2 sealed, 1 an error, or no server. Needs no token; with one, it shows more.`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			c = c.WithWrapTTL(0).WithNamespace("")
			answer, err := c.WithToken(client.Token{}).Read(cmd.Context(), "sys/seal-status", nil)
			if _, shown := errors.AsType[preview](err); shown {
				return err
			}
			if err != nil {
				a.progress.end()
				a.complain("%s", sentence(err))
				if advice := a.advice(err); advice != "" {
					a.complain("%s", advice)
				}
				return ExitCode(exitLocal)
			}
			if err := a.printSeal(cmd.Context(), c, answer.Data); err != nil {
				return err
			}
			if sealed, _ := answer.Data["sealed"].(bool); sealed {
				return ExitCode(exitRemote)
			}
			return nil
		})
}

// printSeal writes the state of the seal, with what the server tells of itself besides.
func (a *app) printSeal(ctx context.Context, c *client.Client, state map[string]any) error {
	state = maps.Clone(state)
	if leader, err := c.WithToken(client.Token{}).WithWrapTTL(0).WithNamespace("").Read(ctx, "sys/leader", nil); err == nil {
		for _, key := range []string{"ha_enabled", "is_self", "active_time", "leader_address", "leader_cluster_address", "performance_standby", "last_wal"} {
			if value, ok := leader.Data[key]; ok {
				state[key] = value
			}
		}
	}
	info := a.info(ctx, c)
	if info != nil {
		state["lessor"] = info
	}
	return a.print(state, func() error { return a.pairs(statusRows(state, info)) })
}

// info is what lessor tells of itself to those who may know; nil for others, and from other servers.
func (a *app) info(ctx context.Context, c *client.Client) map[string]any {
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
func statusRows(state, info map[string]any) []row {
	sealed, _ := state["sealed"].(bool)
	recovery, _ := state["recovery_seal"].(bool)
	shares := "Total Shares"
	if recovery {
		shares = "Total Recovery Shares"
	}
	var rows []row
	add := func(title string, value any, when bool) {
		if when && value != nil && value != "" {
			rows = append(rows, row{title, printableLine(cell("", value))})
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
		rows = append(rows, row{"Unseal Nonce", printableLine(cell("", orEmpty(state["nonce"])))})
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
		add("Active Node Address", cmp.Or(orEmpty(state["leader_address"]), "<none>"), mode == "standby")
	}
	for _, r := range dataRows(info) {
		titles := map[string]string{
			"version": "Lessor Version", "incarnation": "Incarnation", "storage": "Storage Type", "seal": "Seal Type",
			"cluster_id": "Cluster ID", "cluster_name": "Cluster Name", "clock_alarm": "Clock Alarm", "fenced": "Fenced",
			"go_version": "Go Version", "sequence": "Sequence", "started": "Started",
		}
		if title, ok := titles[r[0]]; ok {
			r[0] = title
		}
		if !slices.ContainsFunc(rows, func(other row) bool { return other[0] == r[0] }) {
			rows = append(rows, r)
		}
	}
	return rows
}

func (a *app) versionText() string {
	return fmt.Sprintf("lessor %s, %s %s/%s", a.commands.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func (a *app) version() *cobra.Command {
	command := &cobra.Command{
		Use: "version", Short: "Print the version of this program", Long: "Print the version of this program.",
		Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.out, a.versionText())
			return err
		},
	}
	return command
}

// versionHistory lists which versions served the store.
func (a *app) versionHistory() *cobra.Command {
	return a.remote("version-history", "List the versions that served the store, and since when", "", 0, 0,
		func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			answer, err := c.List(cmd.Context(), "sys/version-history/")
			if err = explainMissing(err, "sys/version-history", ""); err != nil {
				return err
			}
			a.warn(answer)
			return a.print(answer, func() error {
				about, _ := answer.Data["key_info"].(map[string]any)
				var rows []row
				for _, version := range answer.Keys() {
					of, _ := about[version].(map[string]any)
					rows = append(rows, row{
						printableLine(version), printableLine(cell("", orEmpty(of["timestamp_installed"]))), printableLine(cell("", orEmpty(of["build_date"]))),
					})
				}
				return a.table(row{"Version", "Installation Time", "Build Date"}, rows)
			})
		})
}
