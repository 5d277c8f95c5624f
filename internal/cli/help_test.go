package cli

import (
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/internal/cli/session"
)

// On a terminal of 80 columns nothing but examples is longer, and no word is lost.
func TestHelpFitsTheTerminal(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(command *cobra.Command) {
		whole, narrow := help(command, 0), help(command, 80)
		if !slices.Equal(strings.Fields(whole), strings.Fields(narrow)) {
			t.Errorf("%s: folding changed the text:\n%s", command.CommandPath(), narrow)
		}
		for line := range strings.Lines(narrow) {
			line = strings.TrimSuffix(line, "\n")
			if utf8.RuneCountInString(line) > 80 && !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: %s", command.CommandPath(), line)
			}
		}
		for _, child := range command.Commands() {
			walk(child)
		}
	}
	a := session.New(session.System{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard, Env: noEnvironment})
	walk(root(a, all(t)))
}

func TestFolded(t *testing.T) {
	const text = "one two three four five six\nseven eight nine ten\n\n  lessor example that is longer than all of it\nlast"
	if got := folded(text, 0); got != text {
		t.Errorf("no terminal:\n%s", got)
	}
	if got := folded(text, 100); got != text {
		t.Errorf("a wide terminal:\n%s", got)
	}
	const want = "one two three four five\nsix seven eight nine ten\n\n  lessor example that is longer than all of it\nlast"
	if got := folded(text, 24); got != want {
		t.Errorf("a narrow terminal:\n%s", got)
	}
}
