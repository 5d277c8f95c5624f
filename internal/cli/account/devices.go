package account

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// completeDevice lists audit devices.
func completeDevice(ctx context.Context, c *client.Client, _ string) []string {
	answer, err := c.Read(ctx, "sys/audit", nil)
	if err != nil {
		return nil
	}
	return slices.Collect(maps.Keys(answer.Data))
}

const devices = "sys/audit/"

func auditEnable(a *session.Session) *cobra.Command {
	var path, description string
	var local bool
	command := a.Remote("enable TYPE [key=value...]", "Let audit records go out of the server, too: to a file, a socket or syslog", `
The audit trail itself is always on, in the store; a device follows it. What a device misses while it fails it gets later.

  lessor audit enable file file_path=/var/log/lessor/audit.log
  lessor audit enable -path=siem socket address=siem.example.com:514 socket_type=tcp
  lessor audit enable syslog tag=lessor`,
		1, -1, func(cmd *cobra.Command, args []string) error {
			data, err := a.Input.Data(args[1:])
			if err != nil {
				return err
			}
			options := map[string]string{}
			for key, value := range data {
				options[key] = fmt.Sprint(value)
			}
			kind := strings.TrimSpace(args[0])
			if path == "" {
				path = kind
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := session.CleanPath(path) + "/"
			answer, err := c.Write(cmd.Context(), devices+session.CleanPath(path), map[string]any{
				"type": kind, "description": description, "options": options, "local": local,
			})
			if err != nil {
				return err
			}
			a.Warn(answer)
			return a.Say("Success! Enabled the %s audit device at: %s", kind, path)
		})
	f := command.Flags()
	f.StringVar(&path, "path", "", "`name` of the device (default its type)")
	f.StringVar(&description, "description", "", "`text` for people")
	f.BoolVar(&local, "local", false, "accepted for Vault's users")
	command.ValidArgsFunction = cobra.FixedCompletions([]string{"file", "socket", "syslog"}, cobra.ShellCompDirectiveNoFileComp)
	return command
}

func auditDisable(a *session.Session) *cobra.Command {
	command := a.Remote("disable PATH", "Let audit records go to a device no more", `
The audit trail in the store goes on.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0])
			answer, err := c.Delete(cmd.Context(), devices+path, nil)
			if err != nil {
				return err
			}
			a.Warn(answer)
			return a.Say("Success! Disabled audit device (if it was enabled) at: %s/", path)
		})
	return a.CompleteArgument(command, 0, completeDevice)
}

func auditList(a *session.Session) *cobra.Command {
	var detailed bool
	command := a.Remote("list", "List audit devices", `
Exit code 2: there are none. The audit trail in the store is always on (lessor audit tail).`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			answer, err := c.Read(cmd.Context(), session.CleanPath(devices), nil)
			if err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				return a.PrintAnswer(answer, "")
			}
			a.Warn(answer)
			err = a.Print(answer.Data, func() error {
				if len(answer.Data) == 0 {
					return a.Say("No audit devices are enabled.")
				}
				return deviceTable(a, answer.Data, detailed || a.Detailed())
			})
			if err == nil && len(answer.Data) == 0 && a.ForPeople() {
				return session.ExitCode(session.ExitRemote)
			}
			return err
		})
	command.Flags().BoolVar(&detailed, "detailed", false, "show their options, too (LESSOR_DETAILED, VAULT_DETAILED)")
	return command
}

func deviceTable(a *session.Session, data map[string]any, detailed bool) error {
	headings := session.Row{"Path", "Type", "Description"}
	if detailed {
		headings = append(headings, "Replication", "Options")
	}
	var rows []session.Row
	for _, path := range slices.Sorted(maps.Keys(data)) {
		device, _ := data[path].(map[string]any)
		line := session.Row{
			session.PrintableLine(path), session.PrintableLine(session.Cell("", session.OrEmpty(device["type"]))), session.PrintableLine(session.Cell("", session.OrEmpty(device["description"]))),
		}
		if detailed {
			replication := "replicated"
			if device["local"] == true {
				replication = "local"
			}
			options, _ := device["options"].(map[string]any)
			var pairs []string
			for _, key := range slices.Sorted(maps.Keys(options)) {
				pairs = append(pairs, key+"="+fmt.Sprint(options[key]))
			}
			line = append(line, replication, session.PrintableLine(session.Cell("", strings.Join(pairs, " "))))
		}
		rows = append(rows, line)
	}
	return a.Table(headings, rows)
}
