// Corpus keeps what the fuzzers found. Of the inputs in Go's fuzz cache it takes those few that reach what the inputs kept so
// far do not, and puts them where `go test` runs them from then on: testdata/fuzz of the fuzzer's package.
//
//	go run ./test/corpus PACKAGE FUZZER
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// fuzzer is one fuzz target, built so that it tells what it reaches.
type fuzzer struct {
	name   string
	dir    string // of its package
	cache  string // where Go keeps what it found
	binary string
	work   string // a folder for what comes and goes
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: corpus PACKAGE FUZZER")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

func run(pkg, name string) error {
	work, err := os.MkdirTemp("", "lessor-corpus-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	f, err := build(pkg, name, work)
	if err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(f.cache, "*"))
	if err != nil {
		return err
	}
	kept, err := f.keep(found)
	if err != nil {
		return err
	}
	fmt.Printf("%s %s: %d inputs found, %d of them kept anew\n", pkg, name, len(found), kept)
	return nil
}

func build(pkg, name, work string) (*fuzzer, error) {
	told, err := exec.Command("go", "list", "-f", "{{.Dir}}\n{{.ImportPath}}", pkg).Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w", pkg, err)
	}
	dir, path, _ := strings.Cut(strings.TrimSpace(string(told)), "\n")
	cache, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	f := &fuzzer{
		name: name, dir: dir, work: work, binary: filepath.Join(work, "test"),
		cache: filepath.Join(strings.TrimSpace(string(cache)), "fuzz", filepath.FromSlash(path), name),
	}
	if out, err := exec.Command("go", "test", "-c", "-covermode=set", "-o", f.binary, pkg).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the tests of %s: %w\n%s", pkg, err, out)
	}
	return f, nil
}

// keep copies to testdata which of the inputs are needed to reach what all of them reach: again and again the one that adds most.
func (f *fuzzer) keep(found []string) (int, error) {
	known, err := f.reached("^" + f.name + "$")
	if err != nil {
		return 0, err
	}
	adds := make(map[string][]string, len(found))
	for _, input := range found {
		reached, err := f.tried(input)
		if err != nil {
			return 0, err
		}
		adds[input] = reached
	}
	for kept := 0; ; kept++ {
		best, most := "", 0
		for _, input := range found {
			n := 0
			for _, block := range adds[input] {
				if !known[block] {
					n++
				}
			}
			if n > most {
				best, most = input, n
			}
		}
		if most == 0 {
			return kept, nil
		}
		for _, block := range adds[best] {
			known[block] = true
		}
		if err := copyFile(f.place(best), best); err != nil {
			return kept, err
		}
	}
}

// place is where `go test` looks for an input.
func (f *fuzzer) place(input string) string {
	return filepath.Join(f.dir, "testdata", "fuzz", f.name, filepath.Base(input))
}

// tried tells what an input reaches that is not kept, or not yet.
func (f *fuzzer) tried(input string) ([]string, error) {
	place := f.place(input)
	if _, err := os.Stat(place); err == nil {
		return nil, nil
	}
	if err := copyFile(place, input); err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(place) }()
	reached, err := f.reached("^" + f.name + "$/^" + filepath.Base(input) + "$")
	if err != nil {
		return nil, fmt.Errorf("%s fails: %w", input, err)
	}
	blocks := make([]string, 0, len(reached))
	for block := range reached {
		blocks = append(blocks, block)
	}
	return blocks, nil
}

// reached runs the tests that match and tells which blocks of the package's code they went through.
func (f *fuzzer) reached(match string) (map[string]bool, error) {
	profile := filepath.Join(f.work, "profile")
	cmd := exec.Command(f.binary, "-test.run", match, "-test.coverprofile", profile)
	cmd.Dir = f.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", match, err, out)
	}
	text, err := os.ReadFile(profile)
	if err != nil {
		return nil, err
	}
	blocks := map[string]bool{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		// file:from,to statements count
		if block, ok := strings.CutSuffix(lines.Text(), " 1"); ok {
			blocks[block] = true
		}
	}
	return blocks, nil
}

func copyFile(to, from string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o644)
}
