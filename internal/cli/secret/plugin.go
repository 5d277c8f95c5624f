package secret

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/internal/cli/session"
)

const catalog = "sys/plugins/catalog"

const builtIn = "lessor loads no foreign code: its engines, auth methods and databases are built in (lessor plugin list)"

// Plugin is the group plugin.
func Plugin(a *session.Session) *cobra.Command {
	return session.Group("plugin", "List what the server has built in: engines, auth methods, databases", `
lessor loads no foreign code: what is there is part of the program.`,
		pluginList(a), pluginInfo(a), pluginReload(a), session.Refusal("register", builtIn), session.Refusal("deregister", builtIn), session.Refusal("runtime", builtIn))
}

func pluginList(a *session.Session) *cobra.Command {
	var detailed bool
	command := a.Remote("list [TYPE]", "List what is built in, of one type (auth, secret or database) or all", "",
		0, 1, func(cmd *cobra.Command, args []string) error {
			kind := ""
			if len(args) == 1 {
				switch kind = strings.ToLower(strings.TrimSpace(args[0])); kind {
				case "", "auth", "secret", "database":
				default:
					return session.Usage(cmd, "TYPE must be auth, secret or database")
				}
			}
			c, err := a.Unwrapped()
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
			a.Warn(answer)
			all := map[string]any{"details": answer.Data["detailed"]}
			for _, name := range []string{"auth", "database", "secret"} {
				if kind == "" || kind == name {
					all[name] = answer.Data[name]
				}
			}
			return a.Print(all, func() error {
				headings := session.Row{"Name", "Type", "Version"}
				switch {
				case detailed:
					headings = append(headings, "Container", "Deprecation Status")
				case kind != "":
					headings = session.Row{"Name", "Version"}
				}
				var rows []session.Row
				for _, p := range found.Detailed {
					if kind != "" && p.Type != kind {
						continue
					}
					line := session.Row{p.Name, p.Type, session.Cell("", p.Version)}
					switch {
					case detailed:
						line = append(line, fmt.Sprint(p.Image != ""), session.Cell("", p.Deprecated))
					case kind != "":
						line = session.Row{p.Name, session.Cell("", p.Version)}
					}
					for i := range line {
						line[i] = session.PrintableLine(line[i])
					}
					rows = append(rows, line)
				}
				return a.Table(headings, rows)
			})
		})
	command.Flags().BoolVar(&detailed, "detailed", false, "show whether they are deprecated, too")
	command.ValidArgsFunction = cobra.FixedCompletions([]string{"auth", "database", "secret"}, cobra.ShellCompDirectiveNoFileComp)
	return command
}

func pluginInfo(a *session.Session) *cobra.Command {
	var version, field string
	command := a.Remote("info TYPE NAME", "Show something that is built in", `
  lessor plugin info secret kv`,
		2, 2, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			query := url.Values{}
			if version != "" {
				query.Set("version", version)
			}
			path := catalog + "/" + session.CleanPath(args[0]) + "/" + session.CleanPath(args[1])
			answer, err := c.Read(cmd.Context(), path, query)
			if err = session.ExplainMissing(err, path, "What there is: lessor plugin list"); err != nil {
				return err
			}
			if field != "" || answer.WrapInfo != nil {
				return a.PrintAnswer(answer, field)
			}
			a.Warn(answer)
			return a.Print(answer.Data, func() error { return a.Pairs(session.DataRows(answer.Data)) })
		})
	command.Flags().StringVar(&version, "version", "", "`version` of it")
	session.FieldFlag(command, &field)
	return command
}

func pluginReload(a *session.Session) *cobra.Command {
	var name, kind, scope string
	var at []string
	command := a.Remote("reload", "Accepted for Vault's users: what is built in needs no reloading", `
  lessor plugin reload -plugin=kv
  lessor plugin reload -mounts=secret/`,
		0, 0, func(cmd *cobra.Command, _ []string) error {
			switch {
			case (name == "") == (len(at) == 0):
				return session.Usage(cmd, "give -plugin or -mounts, not both")
			case len(at) > 0 && kind != "":
				return session.Usage(cmd, "-type and -mounts exclude each other")
			case scope != "" && scope != "global":
				return session.Usage(cmd, "-scope must be global, or left out")
			}
			body := map[string]any{"scope": scope}
			what := "plugin: " + name
			if name != "" {
				body["plugin"] = name
			} else {
				body["mounts"], what = at, fmt.Sprintf("mounts: %v", at)
			}
			c, err := a.Unwrapped()
			if err != nil {
				return err
			}
			answer, err := c.Write(cmd.Context(), "sys/plugins/reload/backend", body)
			if err != nil {
				return err
			}
			a.Warn(answer)
			if id := session.OrEmpty(answer.Data["reload_id"]); id != "" {
				return a.Say("Success! Reloading %s, reload_id: %s", what, session.PrintableLine(id))
			}
			return a.Say("Success! Reloaded %s", what)
		})
	f := command.Flags()
	f.StringVar(&name, "plugin", "", "`name` of what to reload")
	f.StringSliceVar(&at, "mounts", nil, "`paths` of the mounts to reload, with commas between them")
	f.StringVar(&kind, "type", "", "`type` of -plugin: auth, secret or database")
	f.StringVar(&scope, "scope", "", "`global`: on all servers")
	return command
}
