package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

const devices = "sys/audit/"

func (a *app) auditEnable() *cobra.Command {
	var path, description string
	var local bool
	command := a.remote("enable TYPE [key=value...]", "Let audit records go out of the server, too: to a file, a socket or syslog", `
The audit trail itself is always on, in the store; a device follows it. What a device misses while it fails it gets later.

  lessor audit enable file file_path=/var/log/lessor/audit.log
  lessor audit enable -path=siem socket address=siem.example.com:514 socket_type=tcp
  lessor audit enable syslog tag=lessor`,
		1, -1, func(cmd *cobra.Command, args []string) error {
			data, err := a.input.data(args[1:])
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
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(path) + "/"
			answer, err := c.Write(cmd.Context(), devices+cleanPath(path), map[string]any{
				"type": kind, "description": description, "options": options, "local": local,
			})
			if err != nil {
				return err
			}
			a.warn(answer)
			return a.say("Success! Enabled the %s audit device at: %s", kind, path)
		})
	f := command.Flags()
	f.StringVar(&path, "path", "", "`name` of the device (default its type)")
	f.StringVar(&description, "description", "", "`text` for people")
	f.BoolVar(&local, "local", false, "accepted for Vault's users")
	command.ValidArgsFunction = cobra.FixedCompletions([]string{"file", "socket", "syslog"}, cobra.ShellCompDirectiveNoFileComp)
	return command
}

func (a *app) auditDisable() *cobra.Command {
	command := a.remote("disable PATH", "Let audit records go to a device no more", `
The audit trail in the store goes on.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(args[0])
			answer, err := c.Delete(cmd.Context(), devices+path, nil)
			if err != nil {
				return err
			}
			a.warn(answer)
			return a.say("Success! Disabled audit device (if it was enabled) at: %s/", path)
		})
	return a.completeArgument(command, 0, completeDevice)
}

func (a *app) auditList() *cobra.Command {
	var detailed bool
	command := a.remote("list", "List audit devices", `
Exit code 2: there are none. The audit trail in the store is always on (lessor audit tail).`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			answer, err := c.Read(cmd.Context(), cleanPath(devices), nil)
			if err != nil {
				return err
			}
			if answer.WrapInfo != nil {
				return a.printAnswer(answer, "")
			}
			a.warn(answer)
			err = a.print(answer.Data, func() error {
				if len(answer.Data) == 0 {
					return a.say("No audit devices are enabled.")
				}
				return a.deviceTable(answer.Data, detailed || a.detailed())
			})
			if err == nil && len(answer.Data) == 0 && a.forPeople() {
				return ExitCode(exitRemote)
			}
			return err
		})
	command.Flags().BoolVar(&detailed, "detailed", false, "show their options, too (LESSOR_DETAILED, VAULT_DETAILED)")
	return command
}

func (a *app) deviceTable(data map[string]any, detailed bool) error {
	headings := row{"Path", "Type", "Description"}
	if detailed {
		headings = append(headings, "Replication", "Options")
	}
	var rows []row
	for _, path := range slices.Sorted(maps.Keys(data)) {
		device, _ := data[path].(map[string]any)
		line := row{
			printableLine(path), printableLine(cell("", orEmpty(device["type"]))), printableLine(cell("", orEmpty(device["description"]))),
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
			line = append(line, replication, printableLine(cell("", strings.Join(pairs, " "))))
		}
		rows = append(rows, line)
	}
	return a.table(headings, rows)
}
