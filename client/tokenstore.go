package client

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// TokenStore keeps the token of the last login for later commands.
type TokenStore interface {
	Load() (Token, error) // none stored: an empty token
	Store(Token) error
	Erase() error
	Place() string // where it keeps the token, for people
}

// TokenFile keeps the token of the last login in a user's home folder.
type TokenFile struct {
	Home string // the user's home folder
}

// Path is the file that Store writes.
func (f TokenFile) Path() string { return filepath.Join(f.Home, ".lessor-token") }

// Load reads the stored token: lessor's, else the one that Vault's command line stored. No file: an empty token.
func (f TokenFile) Load() (Token, error) {
	if f.Home == "" {
		return Token{}, nil
	}
	for _, path := range []string{f.Path(), filepath.Join(f.Home, ".vault-token")} {
		text, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return Token{}, fmt.Errorf("stored token: %w", err)
		}
		if token := NewToken(string(text)); !token.Empty() {
			return token, nil
		}
	}
	return Token{}, nil
}

// Store replaces the stored token: nobody sees half of it, and nobody but the user can read it (mode 0600). It is
// durable when Store returns.
func (f TokenFile) Store(token Token) (err error) {
	if f.Home == "" {
		return fmt.Errorf("stored token: the user has no home folder: set HOME, or log in with -no-store")
	}
	// CreateTemp creates with mode 0600.
	file, err := os.CreateTemp(f.Home, ".lessor-token.*")
	if err != nil {
		return fmt.Errorf("stored token: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(file.Name())
			err = fmt.Errorf("stored token: %w", err)
		}
	}()
	_, err = file.WriteString(token.Reveal())
	if err == nil {
		err = file.Sync()
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(file.Name(), f.Path())
	}
	return err
}

// Erase removes lessor's stored token, if there is one.
func (f TokenFile) Erase() error {
	if err := os.Remove(f.Path()); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("stored token: %w", err)
	}
	return nil
}

// Place is Path.
func (f TokenFile) Place() string { return f.Path() }

// TokenProgram keeps the token by means of a program of the user's, as Vault's token helpers do: it is run with one
// argument. "get" writes the token to standard output, "store" reads it from standard input, "erase" forgets it. An
// exit code other than 0 is an error, told on standard error. The token is never an argument.
type TokenProgram struct {
	Program string // absolute path
}

// Load asks the program for the token.
func (p TokenProgram) Load() (Token, error) {
	text, err := p.run("get", "")
	return NewToken(text), err
}

// Store hands the token to the program.
func (p TokenProgram) Store(token Token) error {
	_, err := p.run("store", token.Reveal())
	return err
}

// Erase lets the program forget the token.
func (p TokenProgram) Erase() error {
	_, err := p.run("erase", "")
	return err
}

// Place names the program.
func (p TokenProgram) Place() string { return "token helper " + p.Program }

func (p TokenProgram) run(operation, input string) (string, error) {
	if !filepath.IsAbs(p.Program) {
		return "", fmt.Errorf("token helper: %s is not an absolute path", p.Program)
	}
	var out, side bytes.Buffer
	program := exec.Command(p.Program, operation)
	program.Stdin, program.Stdout, program.Stderr = strings.NewReader(input), &out, &side
	if err := program.Run(); err != nil {
		told, _, _ := strings.Cut(strings.TrimSpace(side.String()), "\n")
		if told != "" {
			told = ": " + told
		}
		return "", fmt.Errorf("token helper %s %s: %w%s", p.Program, operation, err, told)
	}
	return out.String(), nil
}
