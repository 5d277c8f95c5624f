package session

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
)

// completionPatience is how long somebody who pressed tab waits for the server.
const completionPatience = 2 * time.Second

// completer lists what could stand where typed was begun. It is silent about what fails.
type completer func(ctx context.Context, c *client.Client, typed string) []string

// CompleteArgument completes the nth argument (from 0) of a command.
func (a *Session) CompleteArgument(command *cobra.Command, n int, list completer) *cobra.Command {
	command.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) != n {
			return nil, cobra.ShellCompDirectiveDefault // data may come from a file
		}
		return a.complete(cmd, list, typed)
	}
	return command
}

// CompleteFlag completes the value of a flag.
func (a *Session) CompleteFlag(command *cobra.Command, flag string, list completer) {
	_ = command.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return a.complete(cmd, list, typed)
	})
}

func (a *Session) complete(cmd *cobra.Command, list completer, typed string) ([]string, cobra.ShellCompDirective) {
	c, err := a.Connect()
	a.Progress.End()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), completionPatience)
	defer cancel()
	if cmd.Context() != nil {
		defer context.AfterFunc(cmd.Context(), cancel)()
	}
	found := slices.DeleteFunc(list(ctx, c.WithWrapTTL(0).WithPreview(nil), typed), func(s string) bool { return !strings.HasPrefix(s, typed) })
	slices.Sort(found)
	directive := cobra.ShellCompDirectiveNoFileComp
	if slices.ContainsFunc(found, func(s string) bool { return strings.HasSuffix(s, "/") }) {
		directive |= cobra.ShellCompDirectiveNoSpace
	}
	for i := range found {
		found[i] = PrintableLine(found[i])
	}
	return found, directive
}

// visible are the mounts that the token may see, with their versions ("2": a kv engine that keeps versions).
func visible(ctx context.Context, c *client.Client) (engines, logins map[string]visibleMount) {
	answer, err := c.Read(ctx, "sys/internal/ui/mounts", nil)
	if err != nil {
		return nil, nil
	}
	var found struct {
		Secret map[string]visibleMount `json:"secret"`
		Auth   map[string]visibleMount `json:"auth"`
	}
	if answer.Decode(&found) != nil {
		return nil, nil
	}
	return found.Secret, found.Auth
}

type visibleMount struct {
	Type    string            `json:"type"`
	Options map[string]string `json:"options"`
}

func (m visibleMount) keepsVersions() bool { return m.Type == "kv" && m.Options["version"] == "2" }

// Complete lists mounts' paths.
func (m Mounts) Complete(ctx context.Context, c *client.Client, _ string) []string {
	engines, auth := visible(ctx, c)
	if m == Logins {
		return slices.Collect(maps.Keys(auth))
	}
	return slices.Collect(maps.Keys(engines))
}

// CompletePath lists paths of the API as read, write, list and delete take them.
func CompletePath(ctx context.Context, c *client.Client, typed string) []string {
	engines, auth := visible(ctx, c)
	var roots []string
	for mount := range engines {
		roots = append(roots, mount)
	}
	for mount := range auth {
		roots = append(roots, Logins.At+mount)
	}
	if !strings.Contains(typed, "/") {
		return roots
	}
	for mount, about := range engines {
		if inside, ok := strings.CutPrefix(typed, mount); ok && about.keepsVersions() {
			part, rest, deeper := strings.Cut(inside, "/")
			if !deeper {
				return []string{mount + "data/", mount + "delete/", mount + "destroy/", mount + "metadata/", mount + "undelete/"}
			}
			return under(mount+part+"/", list(ctx, c, mount+"metadata/", rest))
		}
	}
	return append(roots, list(ctx, c, "", typed)...)
}

// CompleteSecret lists secrets as the kv commands name them.
func CompleteSecret(ctx context.Context, c *client.Client, typed string) []string {
	engines, _ := visible(ctx, c)
	var roots []string
	for mount, about := range engines {
		if about.Type != "kv" {
			continue
		}
		roots = append(roots, mount)
		if inside, ok := strings.CutPrefix(typed, mount); ok {
			at := mount
			if about.keepsVersions() {
				at += "metadata/"
			}
			return under(mount, list(ctx, c, at, inside))
		}
	}
	return roots
}

// CompleteUnder lists keys under a path of the API: policies, leases.
func CompleteUnder(path string) completer {
	return func(ctx context.Context, c *client.Client, typed string) []string { return list(ctx, c, path, typed) }
}

// list lists the folder of at that typed is in; what it returns begins as typed does.
func list(ctx context.Context, c *client.Client, at, typed string) []string {
	folder := typed[:strings.LastIndex(typed, "/")+1]
	answer, err := c.List(ctx, at+folder)
	if err != nil {
		return nil
	}
	return under(folder, answer.Keys())
}

func under(folder string, keys []string) []string {
	for i := range keys {
		keys[i] = folder + keys[i]
	}
	return keys
}

// Mounts is one of the two kinds of mounts, as their commands name it.
type Mounts struct {
	Path string // of the API: "sys/mounts/"
	Kind string // "secrets engine"
	At   string // what comes before a mount's path when it is used: "auth/"
}

var (
	Engines = Mounts{Path: "sys/mounts/", Kind: "secrets engine"}
	Logins  = Mounts{Path: "sys/auth/", Kind: "auth method", At: "auth/"}
)
