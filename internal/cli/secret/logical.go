package secret

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// Read is the command read.
func Read(a *session.Session) *cobra.Command {
	var field string
	command := a.Remote("read PATH [key=value...]", "Read what is at a path", `
Reading from an engine that makes credentials makes one, with a lease. Further arguments become parameters of the query.

  lessor read database/creds/app
  lessor read -field=username database/creds/app`,
		1, -1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			query, err := query(a, args[1:])
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0])
			if f, err := a.Format(); err != nil {
				return err
			} else if f == session.FormRaw && field == "" {
				return copyAnswer(a, cmd.Context(), c, client.Request{Method: http.MethodGet, Path: path, Query: query})
			}
			answer, err := c.Read(cmd.Context(), path, query)
			if err = session.ExplainMissing(err, path, ""); err != nil {
				return err
			}
			if answer.Empty() {
				return session.NothingAt(path, "")
			}
			return a.PrintAnswer(answer, field)
		})
	session.FieldFlag(command, &field)
	return a.CompleteArgument(command, 0, session.CompletePath)
}

// copyAnswer writes an answer as it comes, whatever it is.
func copyAnswer(a *session.Session, ctx context.Context, c *client.Client, request client.Request) error {
	body, _, err := c.Stream(ctx, request)
	if err = session.ExplainMissing(err, request.Path, ""); err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	_, err = io.Copy(a.Out, body)
	return err
}

// Write is the command write.
func Write(a *session.Session) *cobra.Command {
	var field string
	var force bool
	command := a.Remote("write PATH [key=value...]", "Write data to a path", session.DataHelp+`

  lessor write database/roles/app db_name=main creation_statements=@create.sql default_ttl=1h
  lessor write -force auth/approle/role/app/secret-id`,
		1, -1, func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && !force {
				return session.Usage(cmd, "no data was given: give key=value, or write without data with -force")
			}
			return send(a, cmd, http.MethodPut, "Data written to: ", args, field)
		})
	session.FieldFlag(command, &field)
	command.Flags().BoolVarP(&force, "force", "f", false, "write without data")
	return a.CompleteArgument(command, 0, session.CompletePath)
}

// Patch is the command patch.
func Patch(a *session.Session) *cobra.Command {
	var field string
	var force bool
	command := a.Remote("patch PATH [key=value...]", "Change some of the data at a path", `
The server merges the data into what is there (RFC 7396). For secrets in a key-value engine: lessor kv patch.
`+session.DataHelp, 1, -1, func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 && !force {
			return session.Usage(cmd, "no data was given: give key=value, or patch without data with -force")
		}
		return send(a, cmd, http.MethodPatch, "Data written to: ", args, field)
	})
	session.FieldFlag(command, &field)
	command.Flags().BoolVarP(&force, "force", "f", false, "patch without data")
	return a.CompleteArgument(command, 0, session.CompletePath)
}

// send writes the data that the arguments after the path give.
func send(a *session.Session, cmd *cobra.Command, method, done string, args []string, field string) error {
	data, err := a.Input.Data(args[1:])
	if err != nil {
		return err
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	path := session.CleanPath(args[0])
	request := client.Request{Method: method, Path: path, Body: data}
	if method == http.MethodPatch {
		request.Type = "application/merge-patch+json"
	}
	answer, err := c.Do(cmd.Context(), request)
	if err != nil {
		return err
	}
	if answer.Empty() {
		a.Warn(answer)
		if field != "" {
			return nil
		}
		return a.Say("Success! %s%s", done, path)
	}
	return a.PrintAnswer(answer, field)
}

// List is the command list.
func List(a *session.Session) *cobra.Command {
	var detailed bool
	command := a.Remote("list PATH", "List what is under a path", `
Keys that end in / hold further keys.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0]) + "/"
			answer, err := c.List(cmd.Context(), path)
			if err = session.ExplainMissing(err, session.CleanPath(path), ""); err != nil {
				return a.PrintNoKeys(err)
			}
			return a.PrintKeys(answer, detailed || a.Detailed())
		})
	command.Flags().BoolVar(&detailed, "detailed", false, "show what the server tells of each key, too (LESSOR_DETAILED, VAULT_DETAILED)")
	return a.CompleteArgument(command, 0, session.CompletePath)
}

// Delete is the command delete.
func Delete(a *session.Session) *cobra.Command {
	var field string
	command := a.Remote("delete PATH [key=value...]", "Delete what is at a path", `
What "delete" means is up to the engine. Further arguments become parameters of the query.`,
		1, -1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			query, err := query(a, args[1:])
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0])
			answer, err := c.Delete(cmd.Context(), path, query)
			if err != nil {
				return err
			}
			if answer.Empty() {
				a.Warn(answer)
				return a.Say("Success! Data deleted (if it existed) at: %s", path)
			}
			return a.PrintAnswer(answer, field)
		})
	session.FieldFlag(command, &field)
	return a.CompleteArgument(command, 0, session.CompletePath)
}

// Unwrap is the command unwrap.
func Unwrap(a *session.Session) *cobra.Command {
	var field string
	command := a.Remote("unwrap [TOKEN]", "Unwrap a wrapped answer", `
Each wrapping token works once: if it fails, someone may have read what it held, and you should tell its sender.
Without TOKEN the current token is the wrapping token; - reads it from standard input.`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			c = c.WithWrapTTL(0)
			body := map[string]any{}
			if len(args) == 1 {
				wrapping, err := a.Input.SecretArgument(args[0])
				if err != nil {
					return fmt.Errorf("wrapping token: %w", err)
				}
				if c.Token().Empty() {
					c = c.WithToken(wrapping)
				} else {
					body["token"] = wrapping.Reveal()
				}
			}
			answer, err := c.Write(cmd.Context(), "sys/wrapping/unwrap", body)
			if err != nil {
				return err
			}
			if answer.Empty() {
				return a.Say("Successfully unwrapped. There was no data in the wrapped secret.")
			}
			if _, list := answer.Data["keys"].([]any); list && field == "" {
				return a.PrintKeys(answer, a.Detailed())
			}
			return a.PrintAnswer(answer, field)
		})
	session.FieldFlag(command, &field)
	return command
}

// query makes parameters of a query from key=value arguments.
func query(a *session.Session, args []string) (url.Values, error) {
	data, err := a.Input.Data(args)
	if err != nil {
		return nil, err
	}
	query := url.Values{}
	for key, value := range data {
		list, ok := value.([]any)
		if !ok {
			list = []any{value}
		}
		for _, element := range list {
			query.Add(key, fmt.Sprint(element))
		}
	}
	return query, nil
}

// PathHelp shows what the server says of a path.
func PathHelp(a *session.Session) *cobra.Command {
	command := a.Remote("path-help PATH", "Show what the server says about a path: what it is for, what it takes", `
-format=json prints the OpenAPI description of the path.

  lessor path-help secret/data/app
  lessor path-help sys/mounts`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Unwrapped()
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0])
			answer, err := c.Read(cmd.Context(), path, url.Values{"help": {"1"}})
			if err = session.ExplainMissing(err, path, ""); err != nil {
				return err
			}
			var told struct {
				Help string `json:"help"`
			}
			if err := answer.Decode(&told); err != nil {
				return err
			}
			return a.Print(answer.Data["openapi"], func() error {
				_, err := fmt.Fprintln(a.Out, strings.TrimRight(session.Printable(told.Help), "\n"))
				return err
			})
		})
	return a.CompleteArgument(command, 0, session.CompletePath)
}
