package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
)

func (a *app) kvMetadata() *cobra.Command {
	return group("metadata", "Look after secrets' metadata: versions, limits, notes", "",
		a.kvMetadataGet(), a.kvMetadataWrite("put"), a.kvMetadataWrite("patch"), a.kvMetadataDelete())
}

func (a *app) kvMetadataGet() *cobra.Command {
	var field string
	command := a.kvCommand("get PATH", "Show a secret's metadata and versions", "",
		1, 1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, _ []string) error {
			if err := place.versioned(cmd); err != nil {
				return err
			}
			path := place.at("metadata")
			answer, err := c.Read(ctx, path, nil)
			if err = explainMissing(err, path, place.whereElse()); err != nil {
				return err
			}
			if field != "" || answer.WrapInfo != nil {
				return a.printAnswer(answer, field)
			}
			a.warn(answer)
			return a.print(answer, func() error { return a.metadataTables(path, answer.Data) })
		})
	fieldFlag(command, &field)
	return command
}

// metadataTables writes the metadata, then each version's, in their order.
func (a *app) metadataTables(path string, data map[string]any) error {
	versions, _ := data["versions"].(map[string]any)
	about := maps.Clone(data)
	delete(about, "versions")
	if err := a.printPath("Metadata Path", path); err != nil {
		return err
	}
	if err := a.section("Metadata", metadataRows(about)); err != nil {
		return err
	}
	numbers := slices.SortedFunc(maps.Keys(versions), func(x, y string) int {
		a, _ := strconv.Atoi(x)
		b, _ := strconv.Atoi(y)
		return a - b
	})
	for _, number := range numbers {
		version, _ := versions[number].(map[string]any)
		_, _ = fmt.Fprintln(a.out)
		if err := a.section("Version "+number, metadataRows(version)); err != nil {
			return err
		}
	}
	return nil
}

// kvMetadataWrite is "put" or "patch".
func (a *app) kvMetadataWrite(verb string) *cobra.Command {
	var (
		casRequired bool
		maxVersions int
		deleteAfter duration
		custom      = pairs{}
		remove      []string
	)
	short, done := "Set a secret's metadata", "Data written to"
	long := "What is not given keeps its value; custom metadata is replaced as a whole."
	if verb == "patch" {
		short, done = "Change some of a secret's metadata", "Data patched at"
		long = "What is not given keeps its value, each key of the custom metadata too."
	}
	command := a.kvCommand(verb+" PATH", short, long,
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
			if err = explainMissing(err, path, ""); err != nil {
				return err
			}
			if answer.Empty() {
				a.warn(answer)
				return a.say("Success! %s: %s", done, path)
			}
			return a.printAnswer(answer, "")
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

func (a *app) kvMetadataDelete() *cobra.Command {
	return a.kvCommand("delete PATH", "Delete a secret: all its versions and its metadata, for ever", "",
		1, 1, func(ctx context.Context, cmd *cobra.Command, c *client.Client, place kvPlace, _ []string) error {
			if err := place.versioned(cmd); err != nil {
				return err
			}
			path := place.at("metadata")
			answer, err := c.Delete(ctx, path, nil)
			if err != nil {
				return err
			}
			a.warn(answer)
			return a.say("Success! Data deleted (if it existed) at: %s", path)
		})
}
