package session

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// FileOrStdin reads a file, or standard input for "-".
func (a *Session) FileOrStdin(name string) (string, error) {
	if name == "-" {
		return a.Input.All()
	}
	text, err := os.ReadFile(name)
	return string(text), err
}

// ReplaceFile writes text in a file's place at once, with the file's mode.
func ReplaceFile(name, text string) error {
	name, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	return WriteFile(name, info.Mode().Perm(), func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

// WriteFile lets fill write a new file beside name, and puts it in name's place once it is complete and durable.
func WriteFile(name string, mode os.FileMode, fill func(io.Writer) error) (err error) {
	if info, err := os.Lstat(name); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a plain file, and cannot be replaced", name)
	}
	file, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(file.Name())
		}
	}()
	err = fill(file)
	if err == nil {
		err = file.Chmod(mode)
	}
	if err == nil {
		err = file.Sync()
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(file.Name(), name)
	}
	return err
}
