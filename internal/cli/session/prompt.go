package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// Ask prompts for data[key] if it is missing.
func (a *Session) Ask(ctx context.Context, data map[string]any, key, title string) error {
	if data[key] != nil {
		return nil
	}
	text, err := a.Prompt(ctx, title)
	if err == nil {
		data[key] = text
	}
	return err
}

// CanAsk reports whether there is somebody to ask, who may be asked.
func (a *Session) CanAsk() bool { return IsTerminal(a.Input.Stdin) && !a.Flags.nonInteractive }

// Prompt reads a line from the terminal without showing it. Without a terminal it fails and says what to do instead.
func (a *Session) Prompt(ctx context.Context, title string) (string, error) {
	file, _ := a.Input.Stdin.(*os.File)
	if !a.CanAsk() {
		return "", fmt.Errorf("%s: there is no terminal to ask on; give it on standard input (- or key=-) or from a file (@file or key=@file)", strings.ToLower(title))
	}
	a.Progress.End()
	before, err := term.GetState(int(file.Fd()))
	if err != nil {
		return "", fmt.Errorf("terminal: %w", err)
	}
	defer func() { _ = term.Restore(int(file.Fd()), before) }()
	if err := hush(int(file.Fd())); err != nil { // before anybody is asked
		return "", fmt.Errorf("terminal: %w", err)
	}
	_, _ = io.WriteString(a.Err, title+" (will be hidden): ")
	type line struct {
		text []byte
		err  error
	}
	typed := make(chan line, 1)
	go func() {
		text, err := term.ReadPassword(int(file.Fd()))
		typed <- line{text, err}
	}()
	select {
	case <-ctx.Done():
		_, _ = io.WriteString(a.Err, "\n")
		return "", ctx.Err()
	case l := <-typed:
		_, _ = io.WriteString(a.Err, "\n")
		if l.err != nil {
			return "", fmt.Errorf("terminal: %w", l.err)
		}
		return string(l.text), nil
	}
}

// AskTwice prompts for data[key] if it is missing, twice, since nobody sees a slip.
func (a *Session) AskTwice(ctx context.Context, data map[string]any, key, title string) error {
	if data[key] != nil {
		return nil
	}
	first, err := a.Prompt(ctx, title)
	if err != nil {
		return err
	}
	second, err := a.Prompt(ctx, title+", again")
	if err != nil {
		return err
	}
	if first != second {
		return errors.New("the two differ: try again")
	}
	data[key] = first
	return nil
}
