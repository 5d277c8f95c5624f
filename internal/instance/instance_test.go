package instance_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/instance"
)

// A folder names whoever has it, the same each time, and one at a time.
func TestClaim(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "below", "state")
	first, err := instance.In(folder, "run", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := instance.In(folder, "run", ""); err == nil || !strings.Contains(err.Error(), "another process uses") {
		t.Errorf("while it is claimed: %v", err)
	}
	first.Release()
	for _, want := range []string{"", "app-1"} {
		next, err := instance.In(folder, "run", want)
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			want = first.Name
		}
		if next.Name != want || !strings.Contains(first.Name, "/run/") {
			t.Errorf("claimed as %q, not %q", next.Name, want)
		}
		next.Release()
	}
	other, err := instance.In(t.TempDir(), "run", "")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Release()
	if other.Name == first.Name {
		t.Errorf("two folders have the instance %s", other.Name)
	}
	if info, err := os.Stat(filepath.Join(folder, "instance")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// What somebody else put there is neither written nor told to servers.
func TestNoInstance(t *testing.T) {
	folder := t.TempDir()
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(folder, "instance")
	if err := os.Symlink(other, file); err != nil {
		t.Fatal(err)
	}
	if _, err := instance.In(folder, "run", ""); err == nil {
		t.Error("a link is followed")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first line\nsecond line\n", strings.Repeat("x", 129)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := instance.In(folder, "run", ""); err == nil || strings.Contains(err.Error(), "line") {
			t.Errorf("%.20q: %v, %v", text, c, err)
		}
	}
}
