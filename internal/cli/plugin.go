package cli

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
)

const catalog = "sys/plugins/catalog"

func (a *app) plugin() *cobra.Command {
	return group("plugin", "List what the server has built in: engines, auth methods, databases", `
lessor loads no foreign code: what is there is part of the program.`,
		a.pluginList(), a.pluginInfo(), a.pluginReload(), builtIn("register"), builtIn("deregister"))
}

func (a *app) pluginList() *cobra.Command {
	var detailed bool
	command := a.remote("list [TYPE]", "List what is built in, of one type (auth, secret or database) or all", "",
		0, 1, func(cmd *cobra.Command, args []string) error {
			kind := ""
			if len(args) == 1 {
				switch kind = strings.ToLower(strings.TrimSpace(args[0])); kind {
				case "", "auth", "secret", "database":
				default:
					return usage(cmd, "TYPE must be auth, secret or database")
				}
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			answer, err := c.Read(cmd.Context(), catalog, nil)
			if err != nil {
				return err
			}
			var found struct {
				Detailed []struct {
					Name       string `json:"name"`
					Type       string `json:"type"`
					Version    string `json:"version"`
					Deprecated string `json:"deprecation_status"`
					Image      string `json:"oci_image"`
				} `json:"detailed"`
			}
			if err := answer.Decode(&found); err != nil {
				return err
			}
			a.warn(answer)
			all := map[string]any{"details": answer.Data["detailed"]}
			for _, name := range []string{"auth", "database", "secret"} {
				if kind == "" || kind == name {
					all[name] = answer.Data[name]
				}
			}
			return a.print(all, func() error {
				headings := row{"Name", "Type", "Version"}
				switch {
				case detailed:
					headings = append(headings, "Container", "Deprecation Status")
				case kind != "":
					headings = row{"Name", "Version"}
				}
				var rows []row
				for _, p := range found.Detailed {
					if kind != "" && p.Type != kind {
						continue
					}
					line := row{p.Name, p.Type, cell("", p.Version)}
					switch {
					case detailed:
						line = append(line, fmt.Sprint(p.Image != ""), cell("", p.Deprecated))
					case kind != "":
						line = row{p.Name, cell("", p.Version)}
					}
					for i := range line {
						line[i] = printableLine(line[i])
					}
					rows = append(rows, line)
				}
				return a.table(headings, rows)
			})
		})
	command.Flags().BoolVar(&detailed, "detailed", false, "show whether they are deprecated, too")
	command.ValidArgsFunction = cobra.FixedCompletions([]string{"auth", "database", "secret"}, cobra.ShellCompDirectiveNoFileComp)
	return command
}

func (a *app) pluginInfo() *cobra.Command {
	var version, field string
	command := a.remote("info TYPE NAME", "Show something that is built in", `
  lessor plugin info secret kv`,
		2, 2, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			query := url.Values{}
			if version != "" {
				query.Set("version", version)
			}
			path := catalog + "/" + cleanPath(args[0]) + "/" + cleanPath(args[1])
			answer, err := c.Read(cmd.Context(), path, query)
			if err = explainMissing(err, path, "What there is: lessor plugin list"); err != nil {
				return err
			}
			if field != "" || answer.WrapInfo != nil {
				return a.printAnswer(answer, field)
			}
			a.warn(answer)
			return a.print(answer.Data, func() error { return a.pairs(dataRows(answer.Data)) })
		})
	command.Flags().StringVar(&version, "version", "", "`version` of it")
	fieldFlag(command, &field)
	return command
}

func (a *app) pluginReload() *cobra.Command {
	var name, kind, scope string
	var at []string
	command := a.remote("reload", "Accepted for Vault's users: what is built in needs no reloading", `
  lessor plugin reload -plugin=kv
  lessor plugin reload -mounts=secret/`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			switch {
			case (name == "") == (len(at) == 0):
				return usage(cmd, "give -plugin or -mounts, not both")
			case len(at) > 0 && kind != "":
				return usage(cmd, "-type and -mounts exclude each other")
			case scope != "" && scope != "global":
				return usage(cmd, "-scope must be global, or left out")
			}
			body := map[string]any{"scope": scope}
			what := "plugin: " + name
			if name != "" {
				body["plugin"] = name
			} else {
				body["mounts"], what = at, fmt.Sprintf("mounts: %v", at)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), "sys/plugins/reload/backend", body)
			if err != nil {
				return err
			}
			a.warn(answer)
			if id := orEmpty(answer.Data["reload_id"]); id != "" {
				return a.say("Success! Reloading %s, reload_id: %s", what, printableLine(id))
			}
			return a.say("Success! Reloaded %s", what)
		})
	f := command.Flags()
	f.StringVar(&name, "plugin", "", "`name` of what to reload")
	f.StringSliceVar(&at, "mounts", nil, "`paths` of the mounts to reload, with commas between them")
	f.StringVar(&kind, "type", "", "`type` of -plugin: auth, secret or database")
	f.StringVar(&scope, "scope", "", "`global`: on all servers")
	return command
}

// builtIn answers commands of Vault's that would load or forget foreign code.
func builtIn(verb string) *cobra.Command {
	return refusal(verb, "Refused: lessor loads no foreign code", "lessor loads no foreign code: its engines, auth methods and databases are built in (lessor plugin list)")
}

// refusal is a command of Vault's that lessor does not have, and says why.
func refusal(use, short, why string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: short + ".", DisableFlagParsing: true, Hidden: true,
		RunE: func(*cobra.Command, []string) error { return errors.New(why) },
	}
}

// namespace answers Vault's commands about namespaces.
func (a *app) namespace() *cobra.Command {
	return refusal("namespace", "Refused: there is one namespace",
		"this server has one namespace, its root; set mounts and policies for each tenant apart (lessor secrets enable -path=TENANT/...)")
}
