// Package secret has the commands about secrets and the engines that hold or make them; and about auth methods, which
// are mounted alike.
package secret

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

// KV is the group kv.
func KV(a *session.Session) *cobra.Command {
	return session.Group("kv", "Keep secrets in a key-value engine", `
A path begins with its mount ("secret/app"), or the mount is given apart ("-mount=secret app"). Whether the engine keeps
versions (version 2) or not (version 1) is asked of the server.`,
		kvGet(a), kvPut(a), kvPatch(a), kvDelete(a), kvUndelete(a), kvDestroy(a), kvRollback(a), kvList(a),
		kvMetadata(a), kvEnableVersioning(a))
}

// kvPlace is a secret's place: an engine, its version, and the path inside it.
type kvPlace struct {
	mount   string // "secret/"
	path    string // "app"
	version int    // 1 or 2
}

// at is the API's path of one part of a version 2 engine ("data", "metadata", "delete", …); version 1 has none.
func (p kvPlace) at(part string) string {
	if p.version == 1 {
		return p.mount + p.path
	}
	return p.mount + part + "/" + p.path
}

// versioned refuses engines that keep no versions.
func (p kvPlace) versioned(cmd *cobra.Command) error {
	if p.version == 1 {
		return fmt.Errorf("%s needs an engine that keeps versions, and %s does not: enable one with lessor secrets enable -version=2 kv",
			cmd.CommandPath(), p.mount)
	}
	return nil
}

// kvRun is the body of a kv command: its place has been found.
type kvRun func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, args []string) error

// kvCommand is remote, with the flag -mount, and a body that is given the secret's place.
func kvCommand(a *session.Session, use, short, long string, least, most int, body kvRun) *cobra.Command {
	var mount string
	command := a.Remote(use, short, long, least, most, func(cmd *cobra.Command, args []string) error {
		c, err := a.Connect()
		if err != nil {
			return err
		}
		path := ""
		if len(args) > 0 {
			path, args = args[0], args[1:]
		}
		place, err := findPlace(a, cmd.Context(), c, mount, path)
		if err != nil {
			return err
		}
		return body(cmd.Context(), cmd, c, place, args)
	})
	command.Flags().StringVar(&mount, "mount", "", "`path` where the engine is mounted, if PATH does not begin with it")
	a.CompleteFlag(command, "mount", session.Engines.Complete)
	return a.CompleteArgument(command, 0, func(ctx context.Context, c *client.Client, typed string) []string {
		if mount == "" {
			return session.CompleteSecret(ctx, c, typed)
		}
		inside := session.CleanPath(mount) + "/"
		found := session.CompleteSecret(ctx, c, inside+typed)
		for i := range found {
			found[i] = strings.TrimPrefix(found[i], inside)
		}
		return found
	})
}

// findPlace asks the server which engine path is in, and of which version that is.
func findPlace(a *session.Session, ctx context.Context, c *client.Client, mount, path string) (kvPlace, error) {
	path = session.CleanPath(path)
	ask := path
	if mount != "" {
		ask = session.CleanPath(mount)
	}
	answer, err := c.WithWrapTTL(0).WithPreview(nil).Read(ctx, "sys/internal/ui/mounts/"+ask, nil)
	if client.IsStatus(err, http.StatusNotFound) {
		// A server from before this call existed: the first segment is the mount, without versions.
		first, rest, _ := strings.Cut(ask, "/")
		if mount != "" {
			first, rest = ask, path
		}
		return kvPlace{first + "/", rest, 1}, nil
	}
	if err != nil {
		return kvPlace{}, err
	}
	var found struct {
		Path    string            `json:"path"`
		Options map[string]string `json:"options"`
	}
	if err := answer.Decode(&found); err != nil {
		return kvPlace{}, err
	}
	place := kvPlace{mount: session.CleanPath(found.Path) + "/", path: path, version: 1}
	if found.Options["version"] == "2" {
		place.version = 2
	}
	if mount == "" {
		place.path = session.CleanPath(strings.TrimPrefix(path+"/", place.mount))
	}
	return place, nil
}

func kvGet(a *session.Session) *cobra.Command {
	var field string
	var version int
	command := kvCommand(a, "get PATH", "Read a secret", `
  lessor kv get secret/app
  lessor kv get -mount=secret -field=password app
  lessor kv get -version=3 secret/app`,
		1, 1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, _ []string) error {
			query := url.Values{}
			if version > 0 {
				if err := place.versioned(cmd); err != nil {
					return err
				}
				query.Set("version", strconv.Itoa(version))
			}
			path, next := place.at("data"), place.whereElse()
			if version > 0 {
				next = "Its versions: lessor kv metadata get " + place.mount + place.path
			}
			answer, err := c.Read(ctx, path, query)
			// A deleted version is answered with 404 and what is known of it.
			if refused, ok := errors.AsType[*client.Error](err); ok && refused.Status == http.StatusNotFound && refused.Response != nil && refused.Response.Data != nil {
				answer, err = refused.Response, nil
			}
			if err = session.ExplainMissing(err, path, next); err != nil {
				return err
			}
			return printSecret(a, answer, place, field)
		})
	session.FieldFlag(command, &field)
	command.Flags().IntVar(&version, "version", 0, "`number` of the version to read (default the latest)")
	return command
}

// parent is the folder that the place is in, as kv commands name it.
func (p kvPlace) parent() string {
	return p.mount + p.path[:strings.LastIndex(p.path, "/")+1]
}

// whereElse tells where to look for a secret that is not there.
func (p kvPlace) whereElse() string {
	for _, part := range []string{"data/", "metadata/"} {
		if inside, ok := strings.CutPrefix(p.path, part); ok && p.version == 2 {
			return "lessor kv adds " + part + " itself: leave it out (" + p.mount + inside + ")."
		}
	}
	return "What there is: lessor kv list " + p.parent()
}

// printSecret writes what reading a secret answered.
func printSecret(a *session.Session, answer *client.Response, place kvPlace, field string) error {
	if answer.WrapInfo != nil || field != "" && place.version == 1 {
		return a.PrintAnswer(answer, field)
	}
	if place.version == 1 {
		a.Warn(answer)
		return a.Print(answer, func() error { return a.Section("Data", session.DataRows(answer.Data)) })
	}
	data, _ := answer.Data["data"].(map[string]any)
	metadata, _ := answer.Data["metadata"].(map[string]any)
	if field != "" {
		if data == nil {
			return session.NothingAt(place.at("data"), "This version was deleted: lessor kv metadata get "+place.mount+place.path)
		}
		value, ok := data[field]
		if !ok && field == "data" {
			value, ok = data, true
		}
		if !ok {
			return session.NoField(field)
		}
		return a.PrintValue(value)
	}
	a.Warn(answer)
	return a.Print(answer, func() error {
		if err := printPath(a, "Secret Path", place.at("data")); err != nil {
			return err
		}
		if err := a.Section("Metadata", metadataRows(metadata)); err != nil {
			return err
		}
		if answer.LeaseID != "" {
			_, _ = fmt.Fprintln(a.Out)
			if err := a.Section("Lease", session.AnswerRows(&client.Response{LeaseID: answer.LeaseID, LeaseDuration: answer.LeaseDuration, Renewable: answer.Renewable})); err != nil {
				return err
			}
		}
		if data == nil {
			return nil
		}
		_, _ = fmt.Fprintln(a.Out)
		return a.Section("Data", session.DataRows(data))
	})
}

func printPath(a *session.Session, title, path string) error {
	_, err := fmt.Fprintf(a.Out, "%s\n%s\n\n", session.Banner(title, len(path)), session.PrintableLine(path))
	return err
}

// metadataRows are dataRows that say "n/a" for times that have not come.
func metadataRows(metadata map[string]any) []session.Row {
	rows := session.DataRows(metadata)
	for i := range rows {
		if rows[i][1] == "" {
			rows[i][1] = "n/a"
		}
	}
	return rows
}

// printWritten writes the metadata that a write answered.
func printWritten(a *session.Session, answer *client.Response, place kvPlace, done, field string) error {
	switch {
	case answer.Empty() && field != "":
		return nil
	case field != "" || answer.WrapInfo != nil:
		return a.PrintAnswer(answer, field)
	case answer.Empty():
		a.Warn(answer)
		return a.Say("Success! %s: %s", done, place.at("data"))
	}
	a.Warn(answer)
	return a.Print(answer, func() error {
		if err := printPath(a, "Secret Path", place.at("data")); err != nil {
			return err
		}
		return a.Section("Metadata", metadataRows(answer.Data))
	})
}

// unset is a check-and-set number that was not given.
const unset = -1

func casFlag(command *cobra.Command, cas *int) {
	command.Flags().IntVar(cas, "cas", unset, "write only if this is the current version's `number`; 0: only if there is none (default no check)")
}

func options(cas int) map[string]any {
	if cas == unset {
		return map[string]any{}
	}
	return map[string]any{"cas": cas}
}

func kvPut(a *session.Session) *cobra.Command {
	var field string
	var cas int
	command := kvCommand(a, "put PATH key=value...", "Write a secret, as a new version", session.DataHelp+`

  lessor kv put secret/app password=@password.txt
  generate | lessor kv put -cas=0 secret/app password=-`,
		2, -1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, args []string) error {
			data, err := a.Input.Data(args)
			if err != nil {
				return err
			}
			if place.version == 1 {
				if cas != unset {
					return place.versioned(cmd)
				}
				answer, err := c.Write(ctx, place.at("data"), data)
				if err != nil {
					return err
				}
				return printWritten(a, answer, place, "Data written to", field)
			}
			answer, err := c.Write(ctx, place.at("data"), map[string]any{"data": data, "options": options(cas)})
			if err != nil {
				return err
			}
			return printWritten(a, answer, place, "Data written to", field)
		})
	session.FieldFlag(command, &field)
	casFlag(command, &cas)
	return command
}

func kvPatch(a *session.Session) *cobra.Command {
	var field, method string
	var cas int
	var remove []string
	command := kvCommand(a, "patch PATH [key=value...]", "Change some keys of a secret, as a new version", session.DataHelp+`

The server merges, or, if the token may not patch there, this command reads, merges and writes, and fails if someone
else wrote in between.`,
		1, -1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, args []string) error {
			if err := place.versioned(cmd); err != nil {
				return err
			}
			if method != "" && method != "patch" && method != "rw" {
				return session.Usage(cmd, "-method must be patch or rw")
			}
			data, err := a.Input.Data(args)
			if err != nil {
				return err
			}
			for _, key := range remove {
				data[key] = nil
			}
			if len(data) == 0 {
				return session.Usage(cmd, "nothing to change: give key=value or -remove-data=key")
			}
			var answer *client.Response
			if method != "rw" {
				answer, err = c.Patch(ctx, place.at("data"), map[string]any{"data": data, "options": options(cas)})
			}
			if method == "rw" || method == "" && client.IsStatus(err, http.StatusForbidden, http.StatusMethodNotAllowed) {
				answer, err = readMergeWrite(ctx, c, place, data, cas)
			}
			if err = session.ExplainMissing(err, place.at("data"), "Write a first version with: lessor kv put"); err != nil {
				return err
			}
			return printWritten(a, answer, place, "Data patched at", field)
		})
	session.FieldFlag(command, &field)
	casFlag(command, &cas)
	command.Flags().StringVar(&method, "method", "", "`how`: patch (the server merges) or rw (read, merge, write); default the first that is permitted")
	command.Flags().StringArrayVar(&remove, "remove-data", nil, "`key` to take out; may be repeated")
	return command
}

// readMergeWrite changes keys of the latest version; null takes one out. It writes only onto the version that it read.
func readMergeWrite(ctx context.Context, c *client.Client, place kvPlace, changes map[string]any, cas int) (*client.Response, error) {
	data, current, err := readVersion(ctx, c, place, 0)
	if err != nil {
		return nil, err
	}
	if cas != unset {
		current = json.Number(strconv.Itoa(cas))
	}
	for key, value := range changes {
		if value == nil {
			delete(data, key)
		} else {
			data[key] = value
		}
	}
	return c.Write(ctx, place.at("data"), map[string]any{"data": data, "options": map[string]any{"cas": current}})
}

// readVersion reads a version's data and its number; 0 is the latest.
func readVersion(ctx context.Context, c *client.Client, place kvPlace, version int) (map[string]any, json.Number, error) {
	query := url.Values{}
	if version > 0 {
		query.Set("version", strconv.Itoa(version))
	}
	answer, err := c.WithWrapTTL(0).WithPreview(nil).Read(ctx, place.at("data"), query)
	if err != nil {
		if refused, ok := errors.AsType[*client.Error](err); ok && refused.Status == http.StatusNotFound {
			return nil, "", session.NothingAt(place.at("data"), "Its versions: lessor kv metadata get "+place.mount+place.path)
		}
		return nil, "", err
	}
	data, _ := answer.Data["data"].(map[string]any)
	metadata, _ := answer.Data["metadata"].(map[string]any)
	number, ok := metadata["version"].(json.Number)
	if data == nil || !ok {
		return nil, "", session.NothingAt(place.at("data"), "Its versions: lessor kv metadata get "+place.mount+place.path)
	}
	return data, number, nil
}

func kvDelete(a *session.Session) *cobra.Command {
	var field string
	var versions []string
	command := kvCommand(a, "delete PATH", "Delete the latest version of a secret, or given ones", `
Deleted versions can be brought back (lessor kv undelete) until they are destroyed.`,
		1, 1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, _ []string) error {
			if len(versions) > 0 {
				return kvVersions(a, ctx, cmd, c, place, "delete", "Data deleted (if it existed) at", versions)
			}
			answer, err := c.Delete(ctx, place.at("data"), nil)
			if err != nil {
				return err
			}
			return printWritten(a, answer, place, "Data deleted (if it existed) at", field)
		})
	session.FieldFlag(command, &field)
	versionsFlag(command, &versions)
	return command
}

func kvUndelete(a *session.Session) *cobra.Command {
	var versions []string
	command := kvCommand(a, "undelete PATH", "Bring deleted versions of a secret back", `
  lessor kv undelete -versions=3,4 secret/app`,
		1, 1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, _ []string) error {
			return kvVersions(a, ctx, cmd, c, place, "undelete", "Data written to", versions)
		})
	versionsFlag(command, &versions)
	return command
}

func kvDestroy(a *session.Session) *cobra.Command {
	var versions []string
	command := kvCommand(a, "destroy PATH", "Destroy versions of a secret for ever", `
  lessor kv destroy -versions=1,2 secret/app`,
		1, 1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, _ []string) error {
			return kvVersions(a, ctx, cmd, c, place, "destroy", "Data written to", versions)
		})
	versionsFlag(command, &versions)
	return command
}

func versionsFlag(command *cobra.Command, versions *[]string) {
	command.Flags().StringSliceVar(versions, "versions", nil, "`numbers` of the versions, with commas between them; may be repeated")
}

// kvVersions does something to given versions.
func kvVersions(a *session.Session, ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, part, done string, versions []string) error {
	if err := place.versioned(cmd); err != nil {
		return err
	}
	if len(versions) == 0 {
		return session.Usage(cmd, "say which versions: -versions=1,2")
	}
	numbers := make([]int, len(versions))
	for i, text := range versions {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return session.Usage(cmd, "-versions must be whole numbers, 1 or more")
		}
		numbers[i] = n
	}
	answer, err := c.Write(ctx, place.at(part), map[string]any{"versions": numbers})
	if err != nil {
		return err
	}
	if part != "delete" && answer.Empty() {
		a.Warn(answer)
		return a.Say("Success! %s: %s", done, place.at(part))
	}
	return printWritten(a, answer, place, done, "")
}

func kvRollback(a *session.Session) *cobra.Command {
	var field string
	var version int
	command := kvCommand(a, "rollback PATH", "Make an older version of a secret the latest again", `
The old version's data is written as a new version, unless someone else wrote in between.

  lessor kv rollback -version=2 secret/app`,
		1, 1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, _ []string) error {
			if err := place.versioned(cmd); err != nil {
				return err
			}
			if version < 1 {
				return session.Usage(cmd, "say which version to go back to: -version=2")
			}
			metadata, err := c.WithWrapTTL(0).WithPreview(nil).Read(ctx, place.at("metadata"), nil)
			if err = session.ExplainMissing(err, place.at("metadata"), ""); err != nil {
				return err
			}
			data, _, err := readVersion(ctx, c, place, version)
			if err != nil {
				return err
			}
			answer, err := c.Write(ctx, place.at("data"), map[string]any{
				"data": data, "options": map[string]any{"cas": metadata.Data["current_version"]},
			})
			if err != nil {
				return err
			}
			return printWritten(a, answer, place, "Rolled back", field)
		})
	session.FieldFlag(command, &field)
	command.Flags().IntVar(&version, "version", 0, "`number` of the version to go back to")
	return command
}

func kvList(a *session.Session) *cobra.Command {
	var detailed bool
	command := kvCommand(a, "list PATH", "List secrets", `
Keys that end in / hold further keys. PATH may be left out with -mount.`,
		0, 1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, _ []string) error {
			path := strings.TrimRight(place.at("metadata"), "/") + "/"
			answer, err := c.List(ctx, path)
			if err = session.ExplainMissing(err, session.CleanPath(path), ""); err != nil {
				return a.PrintNoKeys(err)
			}
			return a.PrintKeys(answer, detailed || a.Detailed())
		})
	command.Flags().BoolVar(&detailed, "detailed", false, "show what the server tells of each key, too (LESSOR_DETAILED, VAULT_DETAILED)")
	return command
}

// kvEnableVersioning makes an engine keep versions.
func kvEnableVersioning(a *session.Session) *cobra.Command {
	command := a.Remote("enable-versioning MOUNT", "Make an engine that keeps no versions keep them from now on", `
It cannot be taken back. Paths of the API change: secrets are read at MOUNT/data/PATH then.`,
		1, 1, func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			path := session.CleanPath(args[0])
			answer, err := c.Write(cmd.Context(), session.Engines.Path+path+"/tune", map[string]any{"options": map[string]string{"version": "2"}})
			if err != nil {
				return err
			}
			a.Warn(answer)
			return a.Say("Success! Tuned the secrets engine at: %s/", path)
		})
	return a.CompleteArgument(command, 0, session.Engines.Complete)
}
