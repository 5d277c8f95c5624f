package secret

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

func kvMetadata(a *session.Session) *cobra.Command {
	return session.Group("metadata", "Look after secrets' metadata: versions, limits, notes", "",
		kvMetadataGet(a), kvMetadataWrite(a, "put"), kvMetadataWrite(a, "patch"), kvMetadataDelete(a))
}

func kvMetadataGet(a *session.Session) *cobra.Command {
	var field string
	command := kvCommand(a, "get PATH", "Show a secret's metadata and versions", "",
		1, 1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, _ []string) error {
			if err := place.versioned(cmd); err != nil {
				return err
			}
			path := place.at("metadata")
			answer, err := c.Read(ctx, path, nil)
			if err = session.ExplainMissing(err, path, place.whereElse()); err != nil {
				return err
			}
			if field != "" || answer.WrapInfo != nil {
				return a.PrintAnswer(answer, field)
			}
			a.Warn(answer)
			return a.Print(answer, func() error { return metadataTables(a, path, answer.Data) })
		})
	session.FieldFlag(command, &field)
	return command
}

// metadataTables writes the metadata, then each version's, in their order.
func metadataTables(a *session.Session, path string, data map[string]any) error {
	versions, _ := data["versions"].(map[string]any)
	about := maps.Clone(data)
	delete(about, "versions")
	if err := printPath(a, "Metadata Path", path); err != nil {
		return err
	}
	if err := a.Section("Metadata", metadataRows(about)); err != nil {
		return err
	}
	numbers := slices.SortedFunc(maps.Keys(versions), func(x, y string) int {
		a, _ := strconv.Atoi(x)
		b, _ := strconv.Atoi(y)
		return a - b
	})
	for _, number := range numbers {
		version, _ := versions[number].(map[string]any)
		_, _ = fmt.Fprintln(a.Out)
		if err := a.Section("Version "+number, metadataRows(version)); err != nil {
			return err
		}
	}
	return nil
}

// kvMetadataWrite is "put" or "patch".
func kvMetadataWrite(a *session.Session, verb string) *cobra.Command {
	var (
		casRequired bool
		maxVersions int
		deleteAfter session.Duration
		custom      = session.Pairs{}
		remove      []string
	)
	short, done := "Set a secret's metadata", "Data written to"
	long := "What is not given keeps its value; custom metadata is replaced as a whole."
	if verb == "patch" {
		short, done = "Change some of a secret's metadata", "Data patched at"
		long = "What is not given keeps its value, each key of the custom metadata too."
	}
	command := kvCommand(a, verb+" PATH", short, long,
		1, 1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, _ []string) error {
			if err := place.versioned(cmd); err != nil {
				return err
			}
			data := map[string]any{}
			if cmd.Flags().Changed("cas-required") {
				data["cas_required"] = casRequired
			}
			if cmd.Flags().Changed("max-versions") {
				data["max_versions"] = maxVersions
			}
			if deleteAfter != "" {
				data["delete_version_after"] = string(deleteAfter)
			}
			notes := map[string]any{}
			for key, value := range custom {
				notes[key] = value
			}
			for _, key := range remove {
				notes[key] = nil
			}
			if len(notes) > 0 {
				data["custom_metadata"] = notes
			}
			path, write := place.at("metadata"), c.Write
			if verb == "patch" {
				write = c.Patch
			}
			answer, err := write(ctx, path, data)
			if err = session.ExplainMissing(err, path, ""); err != nil {
				return err
			}
			if answer.Empty() {
				a.Warn(answer)
				return a.Say("Success! %s: %s", done, path)
			}
			return a.PrintAnswer(answer, "")
		})
	f := command.Flags()
	f.BoolVar(&casRequired, "cas-required", false, "refuse writes without -cas")
	f.IntVar(&maxVersions, "max-versions", 0, "`number` of versions to keep; 0: as the engine says")
	f.Var(&deleteAfter, "delete-version-after", "delete each version after this `duration`; 0s: as the engine says")
	f.Var(custom, "custom-metadata", "note to keep with the secret, as `key=value`; may be repeated; not for secrets")
	if verb == "patch" {
		f.StringArrayVar(&remove, "remove-custom-metadata", nil, "`key` of a note to take out; may be repeated")
	}
	return command
}

func kvMetadataDelete(a *session.Session) *cobra.Command {
	return kvCommand(a, "delete PATH", "Delete a secret: all its versions and its metadata, for ever", "",
		1, 1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, _ []string) error {
			if err := place.versioned(cmd); err != nil {
				return err
			}
			path := place.at("metadata")
			answer, err := c.Delete(ctx, path, nil)
			if err != nil {
				return err
			}
			a.Warn(answer)
			return a.Say("Success! Data deleted (if it existed) at: %s", path)
		})
}
