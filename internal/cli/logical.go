package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
)

const dataHelp = `
Data is given as key=value, or so that nobody sees it in the list of processes: key=@file and key=- take the value from
a file or standard input, @file and - take a whole JSON object. key=\@text is a value that begins with @.`

func (a *app) read() *cobra.Command {
	var field string
	command := a.remote("read PATH [key=value...]", "Read what is at a path", `
Reading from an engine that makes credentials makes one, with a lease. Further arguments become parameters of the query.

  lessor read database/creds/app
  lessor read -field=username database/creds/app`,
		1, -1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			query, err := a.query(args[1:])
			if err != nil {
				return err
			}
			path := cleanPath(args[0])
			if f, err := a.format(); err != nil {
				return err
			} else if f == formRaw && field == "" {
				return a.copyAnswer(cmd.Context(), c, client.Request{Method: http.MethodGet, Path: path, Query: query})
			}
			answer, err := c.Read(cmd.Context(), path, query)
			if err = explainMissing(err, path, ""); err != nil {
				return err
			}
			if answer.Empty() {
				return &nothingThere{path, ""}
			}
			return a.printAnswer(answer, field)
		})
	fieldFlag(command, &field)
	return a.completeArgument(command, 0, completePath)
}

// copyAnswer writes an answer as it comes, whatever it is.
func (a *app) copyAnswer(ctx context.Context, c *client.Client, request client.Request) error {
	body, _, err := c.Stream(ctx, request)
	if err = explainMissing(err, request.Path, ""); err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	_, err = io.Copy(a.out, body)
	return err
}

func (a *app) write() *cobra.Command {
	var field string
	var force bool
	command := a.remote("write PATH [key=value...]", "Write data to a path", dataHelp+`

  lessor write database/roles/app db_name=main creation_statements=@create.sql default_ttl=1h
  lessor write -force auth/approle/role/app/secret-id`,
		1, -1, func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && !force {
				return usage(cmd, "no data was given: give key=value, or write without data with -force")
			}
			return a.send(cmd, http.MethodPut, "Data written to: ", args, field)
		})
	fieldFlag(command, &field)
	command.Flags().BoolVarP(&force, "force", "f", false, "write without data")
	return a.completeArgument(command, 0, completePath)
}

func (a *app) patch() *cobra.Command {
	var field string
	var force bool
	command := a.remote("patch PATH [key=value...]", "Change some of the data at a path", `
The server merges the data into what is there (RFC 7396). For secrets in a key-value engine: lessor kv patch.
`+dataHelp, 1, -1, func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 && !force {
			return usage(cmd, "no data was given: give key=value, or patch without data with -force")
		}
		return a.send(cmd, http.MethodPatch, "Data written to: ", args, field)
	})
	fieldFlag(command, &field)
	command.Flags().BoolVarP(&force, "force", "f", false, "patch without data")
	return a.completeArgument(command, 0, completePath)
}

// send writes the data that the arguments after the path give.
func (a *app) send(cmd *cobra.Command, method, done string, args []string, field string) error {
	data, err := a.input.data(args[1:])
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	path := cleanPath(args[0])
	request := client.Request{Method: method, Path: path, Body: data}
	if method == http.MethodPatch {
		request.Type = "application/merge-patch+json"
	}
	answer, err := c.Do(cmd.Context(), request)
	if err != nil {
		return err
	}
	if answer.Empty() {
		a.warn(answer)
		if field != "" {
			return nil
		}
		return a.say("Success! %s%s", done, path)
	}
	return a.printAnswer(answer, field)
}

func (a *app) list() *cobra.Command {
	var detailed bool
	command := a.remote("list PATH", "List what is under a path", `
Keys that end in / hold further keys.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(args[0]) + "/"
			answer, err := c.List(cmd.Context(), path)
			if err = explainMissing(err, cleanPath(path), ""); err != nil {
				return a.printNoKeys(err)
			}
			return a.printKeys(answer, detailed || a.detailed())
		})
	command.Flags().BoolVar(&detailed, "detailed", false, "show what the server tells of each key, too (LESSOR_DETAILED, VAULT_DETAILED)")
	return a.completeArgument(command, 0, completePath)
}

func (a *app) detailed() bool {
	on, _ := strconv.ParseBool(a.env.Setting("DETAILED"))
	return on
}

func (a *app) delete() *cobra.Command {
	var field string
	command := a.remote("delete PATH [key=value...]", "Delete what is at a path", `
What "delete" means is up to the engine. Further arguments become parameters of the query.`,
		1, -1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			query, err := a.query(args[1:])
			if err != nil {
				return err
			}
			path := cleanPath(args[0])
			answer, err := c.Delete(cmd.Context(), path, query)
			if err != nil {
				return err
			}
			if answer.Empty() {
				a.warn(answer)
				return a.say("Success! Data deleted (if it existed) at: %s", path)
			}
			return a.printAnswer(answer, field)
		})
	fieldFlag(command, &field)
	return a.completeArgument(command, 0, completePath)
}

func (a *app) unwrap() *cobra.Command {
	var field string
	command := a.remote("unwrap [TOKEN]", "Unwrap a wrapped answer", `
Each wrapping token works once: if it fails, someone may have read what it held, and you should tell its sender.
Without TOKEN the current token is the wrapping token; - reads it from standard input.`,
		0, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			c = c.WithWrapTTL(0)
			body := map[string]any{}
			if len(args) == 1 {
				wrapping, err := a.input.secretArgument(args[0])
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
				return a.say("Successfully unwrapped. There was no data in the wrapped secret.")
			}
			if _, list := answer.Data["keys"].([]any); list && field == "" {
				return a.printKeys(answer, a.detailed())
			}
			return a.printAnswer(answer, field)
		})
	fieldFlag(command, &field)
	return command
}

func fieldFlag(command *cobra.Command, field *string) {
	command.Flags().StringVar(field, "field", "", "print only the field of this `name`, and no newline unless on a terminal")
}

// query makes parameters of a query from key=value arguments.
func (a *app) query(args []string) (url.Values, error) {
	data, err := a.input.data(args)
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

// explainMissing turns a 404 without texts into a plain statement that nothing is at path.
func explainMissing(err error, path, next string) error {
	refused, ok := errors.AsType[*client.Error](err)
	if ok && refused.Status == http.StatusNotFound && len(refused.Errors) == 0 {
		return &nothingThere{path, next}
	}
	return err
}

// pathHelp shows what the server says of a path.
func (a *app) pathHelp() *cobra.Command {
	command := a.remote("path-help PATH", "Show what the server says about a path: what it is for, what it takes", `
-format=json prints the OpenAPI description of the path.

  lessor path-help secret/data/app
  lessor path-help sys/mounts`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(args[0])
			answer, err := c.Read(cmd.Context(), path, url.Values{"help": {"1"}})
			if err = explainMissing(err, path, ""); err != nil {
				return err
			}
			var told struct {
				Help string `json:"help"`
			}
			if err := answer.Decode(&told); err != nil {
				return err
			}
			return a.print(answer.Data["openapi"], func() error {
				_, err := fmt.Fprintln(a.out, strings.TrimRight(printable(told.Help), "\n"))
				return err
			})
		})
	return a.completeArgument(command, 0, completePath)
}
