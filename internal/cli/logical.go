package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

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
	return command
}

func (a *app) write() *cobra.Command {
	var field string
	var force bool
	command := a.remote("write PATH [key=value...]", "Write data to a path", dataHelp+`

  lessor write database/roles/app db_name=main creation_statements=@create.sql default_ttl=1h
  lessor write -force auth/approle/role/app/secret-id`,
		1, -1, func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && !force {
				return usage(cmd, "no data was given: give some, or write with none with -force")
			}
			return a.send(cmd, http.MethodPut, "Data written to: ", args, field)
		})
	fieldFlag(command, &field)
	command.Flags().BoolVarP(&force, "force", "f", false, "write without data")
	return command
}

func (a *app) patch() *cobra.Command {
	var field string
	var force bool
	command := a.remote("patch PATH [key=value...]", "Change some of the data at a path", `
The server merges the data into what is there (RFC 7396). For secrets in a key-value engine: lessor kv patch.
`+dataHelp, 1, -1, func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 && !force {
			return usage(cmd, "no data was given: give some, or patch with none with -force")
		}
		return a.send(cmd, http.MethodPatch, "Data patched at: ", args, field)
	})
	fieldFlag(command, &field)
	command.Flags().BoolVarP(&force, "force", "f", false, "patch without data")
	return command
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
	if answer.Empty() && field == "" {
		a.warn(answer)
		return a.say("Success! %s%s", done, path)
	}
	return a.printAnswer(answer, field)
}

func (a *app) list() *cobra.Command {
	return a.remote("list PATH", "List what is under a path", `
Keys that end in / hold further keys.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			path := cleanPath(args[0]) + "/"
			answer, err := c.List(cmd.Context(), path)
			if err = explainMissing(err, path, ""); err != nil {
				return err
			}
			return a.printKeys(answer)
		})
}

func (a *app) delete() *cobra.Command {
	return a.remote("delete PATH [key=value...]", "Delete what is at a path", `
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
			return a.printAnswer(answer, "")
		})
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
				return a.say("Success! The wrapped answer was empty.")
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
