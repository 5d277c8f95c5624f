package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The bill of lessor names what modules.txt allows, each module with its hash, and comes out the same each time.
func TestBill(t *testing.T) {
	program := filepath.Join(t.TempDir(), "lessor")
	build := exec.Command("go", "build", "-o", program, "../../cmd/lessor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building lessor: %v\n%s", err, out)
	}
	var first, second bytes.Buffer
	for _, b := range []*bytes.Buffer{&first, &second} {
		if err := write(b, program, "../../go.sum", "1.2.3+meta", "86400"); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two bills of one program differ")
	}
	var b bill
	if err := json.Unmarshal(first.Bytes(), &b); err != nil {
		t.Fatal(err)
	}
	if b.Metadata.Time != "1970-01-02T00:00:00Z" || b.Metadata.Component.PURL != "pkg:golang/github.com/lessor-dev/lessor@1.2.3%2Bmeta" {
		t.Errorf("metadata: %+v", b.Metadata)
	}
	allowed, err := os.ReadFile("../../modules.txt")
	if err != nil {
		t.Fatal(err)
	}
	var modules []string
	for _, c := range b.Components {
		if c.Name == "std" {
			continue
		}
		modules = append(modules, c.Name+" "+c.Version)
		if len(c.Hashes) != 1 || len(c.Hashes[0].Content) != 64 || c.PURL != "pkg:golang/"+c.Name+"@"+c.Version {
			t.Errorf("%+v", c)
		}
	}
	slices.Sort(modules)
	if want := strings.Fields(string(allowed)); !slices.Equal(strings.Fields(strings.Join(modules, " ")), want) {
		t.Errorf("the bill does not list what modules.txt does, but %q", modules)
	}
	if on := b.Dependencies[0].On; len(on) != len(modules)+1 {
		t.Errorf("the program depends on %d modules and the standard library, the bill says %d", len(modules), len(on))
	}
	// A module that nobody vouches for is no part of what is released.
	empty := filepath.Join(t.TempDir(), "go.sum")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := write(new(bytes.Buffer), program, empty, "", ""); err == nil || !strings.Contains(err.Error(), "has no hash of") {
		t.Errorf("without hashes: %v", err)
	}
}
