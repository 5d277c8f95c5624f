package cli

import (
	"bytes"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

func completion(a *session.Session, root *cobra.Command) *cobra.Command {
	short := "Print a script that completes commands in bash, zsh, fish or powershell"
	return &cobra.Command{
		Use: "completion SHELL", Short: short,
		Long: session.Describe(short, `
Paths, mounts, policies and leases are completed, too: by what the server tells the current token.

  source <(lessor completion bash)
  lessor completion zsh > "${fpath[1]}/_lessor"
  lessor completion fish > ~/.config/fish/completions/lessor.fish`),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      session.Arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Out, true)
			case "zsh":
				return root.GenZshCompletion(a.Out)
			case "fish":
				return root.GenFishCompletion(a.Out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.Out)
			}
			return session.Usage(cmd, "it must be bash, zsh, fish or powershell")
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
