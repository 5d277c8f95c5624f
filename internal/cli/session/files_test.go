package session

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "backup")
	if err := WriteFile(name, 0o600, func(w io.Writer) error { _, err := io.WriteString(w, "one"); return err }); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broke off")
	if err := WriteFile(name, 0o600, func(w io.Writer) error { _, _ = io.WriteString(w, "tw"); return broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	text, _ := os.ReadFile(name)
	entries, _ := os.ReadDir(dir)
	if string(text) != "one" || len(entries) != 1 {
		t.Errorf("%q, %v", text, entries)
	}
	if err := WriteFile(dir, 0o600, func(io.Writer) error { return nil }); err == nil {
		t.Error("a folder was replaced")
	}
}
