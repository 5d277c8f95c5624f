package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lessor-dev/lessor/internal/store"
)

// FuzzAnchor: a file is no anchor, or one that is the same when it is written anew.
func FuzzAnchor(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 80))
	f.Add([]byte("not an anchor"))
	anchor := store.FileAnchor(filepath.Join(f.TempDir(), "anchor"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(string(anchor), b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := anchor.Load()
		if err != nil {
			return
		}
		if err := anchor.Store(m); err != nil {
			t.Fatal(err)
		}
		if again, err := os.ReadFile(string(anchor)); err != nil || string(again) != string(b) {
			t.Fatalf("%x becomes %x (%v)", b, again, err)
		}
	})
}
