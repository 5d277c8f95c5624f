package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
)

// completionPatience is how long somebody who pressed tab waits for the server.
const completionPatience = 2 * time.Second

func (a *app) completion(root *cobra.Command) *cobra.Command {
	short := "Print a script that completes commands in bash, zsh, fish or powershell"
	return &cobra.Command{
		Use: "completion SHELL", Short: short,
		Long: describe(short, `
Paths, mounts, policies and leases are completed, too: by what the server tells the current token.

  source <(lessor completion bash)
  lessor completion zsh > "${fpath[1]}/_lessor"
  lessor completion fish > ~/.config/fish/completions/lessor.fish`),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.out)
			}
			return usage(cmd, "it must be bash, zsh, fish or powershell")
		},
	}
}

// autocomplete answers Vault's way to install completion.
func autocomplete(arg string, env client.Lookup) (text string, asked bool) {
	name := strings.TrimLeft(arg, "-")
	if !strings.HasPrefix(arg, "-") || name != "autocomplete-install" && name != "autocomplete-uninstall" {
		return "", false
	}
	shell, _ := env("SHELL")
	line := map[string]string{
		"zsh":  "add to ~/.zshrc:    source <(lessor completion zsh)",
		"fish": "run once:    lessor completion fish > ~/.config/fish/completions/lessor.fish",
	}[filepath.Base(shell)]
	if line == "" {
		line = "add to ~/.bashrc:    source <(lessor completion bash)"
	}
	return "lessor leaves your shell's files alone. For completion " + line + "\n", true
}

// completes reports whether args come from a shell that wants to know what could follow.
func completes(args []string) bool {
	return len(args) > 1 && (args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd)
}

// dashes takes one dash off the long flags that are offered to somebody who typed one dash: shells throw away what does
// not begin with what was typed.
type dashes struct {
	out  io.Writer
	last string // what was typed of the last word
	text bytes.Buffer
}

func (d *dashes) Write(b []byte) (int, error) { return d.text.Write(b) }

func (d *dashes) flush() {
	single := strings.HasPrefix(d.last, "-") && !strings.HasPrefix(d.last, "--")
	for line := range strings.Lines(d.text.String()) {
		if single && strings.HasPrefix(line, "--") {
			line = line[1:]
		}
		_, _ = io.WriteString(d.out, line)
	}
}

// completer lists what could stand where typed was begun. It is silent about what fails.
type completer func(ctx context.Context, c *client.Client, typed string) []string

// completeArgument completes the nth argument (from 0) of a command.
func (a *app) completeArgument(command *cobra.Command, n int, list completer) *cobra.Command {
	command.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) != n {
			return nil, cobra.ShellCompDirectiveDefault // data may come from a file
		}
		return a.complete(cmd, list, typed)
	}
	return command
}

// completeFlag completes the value of a flag.
func (a *app) completeFlag(command *cobra.Command, flag string, list completer) {
	_ = command.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return a.complete(cmd, list, typed)
	})
}

func (a *app) complete(cmd *cobra.Command, list completer, typed string) ([]string, cobra.ShellCompDirective) {
	c, err := a.connect()
	a.progress.end()
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
		found[i] = printableLine(found[i])
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

// complete lists mounts' paths.
func (m mounts) complete(ctx context.Context, c *client.Client, _ string) []string {
	engines, auth := visible(ctx, c)
	if m == logins {
		return slices.Collect(maps.Keys(auth))
	}
	return slices.Collect(maps.Keys(engines))
}

// completePath lists paths of the API as read, write, list and delete take them.
func completePath(ctx context.Context, c *client.Client, typed string) []string {
	engines, auth := visible(ctx, c)
	var roots []string
	for mount := range engines {
		roots = append(roots, mount)
	}
	for mount := range auth {
		roots = append(roots, logins.at+mount)
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

// completeSecret lists secrets as the kv commands name them.
func completeSecret(ctx context.Context, c *client.Client, typed string) []string {
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

// completeUnder lists keys under a path of the API: policies, leases.
func completeUnder(path string) completer {
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

// completeDevice lists audit devices.
func completeDevice(ctx context.Context, c *client.Client, _ string) []string {
	answer, err := c.Read(ctx, "sys/audit", nil)
	if err != nil {
		return nil
	}
	return slices.Collect(maps.Keys(answer.Data))
}

// printing is Vault's "print token".
func (a *app) printing() *cobra.Command {
	return group("print", "Print what later commands would use", "", a.remote("token", "Print the current token",
		"The one that LESSOR_TOKEN, VAULT_TOKEN or the stored login gives. Everybody who sees it can use it.", 0, 0,
		func(*cobra.Command, []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.out, c.Token().Reveal())
			return err
		}))
}
