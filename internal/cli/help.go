package cli

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lessor-dev/lessor/internal/cli/session"
)

// help says what a command is for and how it is called: its children or its own flags, then those that all share. It is
// folded to so many columns; 0 is for programs, which get the lines as they are.
func help(cmd *cobra.Command, width int) string {
	var b strings.Builder
	name, rest, _ := strings.Cut(cmd.Use, " ")
	if cmd.HasParent() {
		name = cmd.Parent().CommandPath() + " " + name
	}
	b.WriteString(folded(strings.TrimSpace(cmd.Long), width) + "\n\n")
	if cmd.HasSubCommands() {
		fmt.Fprintf(&b, "Usage:\n  %s COMMAND\n", name)
		writeChildren(&b, cmd, "Commands:", "", width)
		for _, g := range cmd.Groups() {
			writeChildren(&b, cmd, g.Title, g.ID, width)
		}
		fmt.Fprintf(&b, "\nMore about a command: %s COMMAND -help\n", name)
		return b.String()
	}
	fmt.Fprintf(&b, "Usage:\n  %s\n", strings.TrimRight(name+" [flags] "+rest, " "))
	var connection session.Globals
	shared, own := pflag.NewFlagSet("", pflag.ContinueOnError), pflag.NewFlagSet("", pflag.ContinueOnError)
	if cmd.Flags().Lookup("address") != nil {
		connection.Register(shared)
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if shared.Lookup(f.Name) == nil && f.Name != "help" {
			own.AddFlag(f)
		}
	})
	if own.HasFlags() {
		fmt.Fprintf(&b, "\nFlags:\n%s", own.FlagUsagesWrapped(width))
	}
	if shared.HasFlags() {
		fmt.Fprintf(&b, "\nFlags of every command that calls the server:\n%s", shared.FlagUsagesWrapped(width))
	}
	return b.String()
}

// writeChildren lists the commands of one group, if there are any.
func writeChildren(b *strings.Builder, cmd *cobra.Command, title, group string, width int) {
	var rows []session.Row
	for _, child := range cmd.Commands() {
		if child.IsAvailableCommand() && child.GroupID == group {
			rows = append(rows, session.Row{"  " + child.Name(), child.Short})
		}
	}
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s\n", title)
	for line := range strings.Lines(session.Align(rows)) {
		line = strings.TrimSuffix(line, "\n")
		about := rows[0][1]
		rows = rows[1:]
		margin := utf8.RuneCountInString(line) - utf8.RuneCountInString(about)
		lines := wrapped(strings.Fields(about), width-margin)
		b.WriteString(line[:len(line)-len(about)] + strings.Join(lines, "\n"+strings.Repeat(" ", margin)) + "\n")
	}
}

// folded breaks the paragraphs of a text anew if a line is longer than width. What is indented stays as it is.
func folded(text string, width int) string {
	var lines, words []string
	flush := func() {
		lines = append(lines, wrapped(words, width)...)
		words = nil
	}
	long := false
	for line := range strings.SplitSeq(text, "\n") {
		long = long || utf8.RuneCountInString(line) > width
		if line != "" && !strings.HasPrefix(line, " ") {
			words = append(words, strings.Fields(line)...)
			continue
		}
		flush()
		lines = append(lines, line)
	}
	flush()
	if width < narrowest || !long {
		return text
	}
	return strings.Join(lines, "\n")
}

// narrowest is the least number of columns to fold to: for fewer, terminals do no worse.
const narrowest = 24

// wrapped puts words into lines of at most width columns; one line if there is no width to speak of.
func wrapped(words []string, width int) (lines []string) {
	for _, word := range words {
		if last := len(lines) - 1; last >= 0 && (width < narrowest || utf8.RuneCountInString(lines[last])+1+utf8.RuneCountInString(word) <= width) {
			lines[last] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}
