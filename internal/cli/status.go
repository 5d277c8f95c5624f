package cli

import (
	"context"
	"fmt"
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
			c = c.WithWrapTTL(0)
			answer, err := c.WithToken(client.Token{}).Read(cmd.Context(), "sys/seal-status", nil)
			if err != nil {
				a.progress.end()
				a.complain("Error: %s", printable(err.Error()))
				if advice := a.advice(err); advice != "" {
					a.complain("%s", advice)
				}
				return ExitCode(exitLocal)
			}
			state := answer.Data
			info := a.info(cmd.Context(), c)
			if info != nil {
				state["lessor"] = info
			}
			err = a.print(state, func() error { return a.pairs(statusRows(state, info)) })
			if sealed, _ := state["sealed"].(bool); err == nil && sealed {
				return ExitCode(exitRemote)
			}
			return err
		})
}

// info is what lessor tells of itself to those who may know; nil for others, and from other servers.
func (a *app) info(ctx context.Context, c *client.Client) map[string]any {
	if c.Token().Empty() {
		return nil
	}
	answer, err := c.Read(ctx, "sys/lessor/info", nil)
	if err != nil {
		return nil
	}
	return answer.Data
}

// statusRows puts what people look for first into words; what else the server says follows under its own name.
func statusRows(state, info map[string]any) []row {
	known := []struct{ key, title string }{
		{"type", "Seal Type"}, {"initialized", "Initialized"}, {"sealed", "Sealed"}, {"n", "Total Shares"}, {"t", "Threshold"},
		{"progress", "Unseal Progress"}, {"version", "Version"}, {"lessor_version", "Lessor Version"}, {"build_date", "Build Date"},
		{"storage_type", "Storage Type"}, {"cluster_name", "Cluster Name"}, {"cluster_id", "Cluster ID"},
		{"ha_enabled", "HA Enabled"}, {"recovery_seal", "Recovery Seal"},
	}
	var rows []row
	for _, k := range known {
		value, ok := state[k.key]
		if !ok || value == nil || value == "" {
			continue
		}
		if sealed, _ := state["sealed"].(bool); k.key == "progress" && !sealed {
			continue
		}
		rows = append(rows, row{k.title, cell("", value)})
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

func (a *app) completion(root *cobra.Command) *cobra.Command {
	command := &cobra.Command{
		Use: "completion SHELL", Short: "Print a script that completes commands in bash, zsh, fish or powershell",
		Long: describe("Print a script that completes commands in bash, zsh, fish or powershell", `
  source <(lessor completion bash)
  lessor completion zsh > "${fpath[1]}/_lessor"
  lessor completion fish > ~/.config/fish/completions/lessor.fish`),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.out)
			}
			return usage(cmd, "it must be bash, zsh, fish or powershell")
		},
	}
	return command
}
