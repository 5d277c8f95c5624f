// Command sbom writes a software bill of materials of a Go program, in CycloneDX 1.6, to standard output: the program, the Go
// standard library, and every module linked into it, as the program itself says.
//
//	go run ./packaging/sbom -sums go.sum BINARY
//
// The same program gives the same bytes: the serial number is derived from the program's hash, and the time is that of
// SOURCE_DATE_EPOCH, or none.
package main

import (
	"bufio"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// bill is a CycloneDX document: https://cyclonedx.org/docs/1.6/json/.
type bill struct {
	Schema       string      `json:"$schema"`
	Format       string      `json:"bomFormat"`
	Spec         string      `json:"specVersion"`
	Serial       string      `json:"serialNumber"`
	Version      int         `json:"version"`
	Metadata     metadata    `json:"metadata"`
	Components   []component `json:"components"`
	Dependencies []depends   `json:"dependencies"`
}

type metadata struct {
	Time      string    `json:"timestamp,omitempty"`
	Component component `json:"component"`
}

type component struct {
	Ref        string     `json:"bom-ref"`
	Type       string     `json:"type"`
	Name       string     `json:"name"`
	Version    string     `json:"version,omitempty"`
	Scope      string     `json:"scope,omitempty"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Licenses   []license  `json:"licenses,omitempty"`
	PURL       string     `json:"purl,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type license struct {
	License struct {
		ID string `json:"id"`
	} `json:"license"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type depends struct {
	Ref string   `json:"ref"`
	On  []string `json:"dependsOn,omitempty"`
}

func main() {
	sums := flag.String("sums", "go.sum", "the `file` with the modules' hashes")
	version := flag.String("version", "", "the program's `version`")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: sbom [-sums FILE] [-version VERSION] BINARY")
		os.Exit(2)
	}
	if err := write(os.Stdout, flag.Arg(0), *sums, *version, os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

// write writes the bill of a program. epoch is its time in seconds; empty: none.
func write(w io.Writer, program, sums, version, epoch string) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	hashes, err := readSums(sums)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)

	self := component{
		Ref: "program", Type: "application", Name: filepath.Base(info.Path), Version: version, PURL: purl(info.Main.Path, version),
		Hashes: []hash{{"SHA-256", hex.EncodeToString(sum[:])}}, Licenses: make([]license, 1),
	}
	self.Licenses[0].License.ID = "Apache-2.0"
	for _, s := range info.Settings {
		switch s.Key {
		case "CGO_ENABLED", "GOARCH", "GOOS", "-trimpath", "-ldflags":
			self.Properties = append(self.Properties, property{"go:build:" + s.Key, s.Value})
		}
	}
	b := bill{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", Spec: "1.6", Serial: serial(sum), Version: 1,
		Metadata: metadata{Component: self},
	}
	if epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		b.Metadata.Time = time.Unix(seconds, 0).UTC().Format(time.RFC3339)
	}
	all := depends{Ref: self.Ref}
	add := func(c component) {
		c.Ref, c.Type, c.Scope = c.PURL, "library", "required"
		b.Components = append(b.Components, c)
		all.On = append(all.On, c.Ref)
	}
	goVersion, _, _ := strings.Cut(strings.TrimPrefix(info.GoVersion, "go"), " ")
	add(component{Name: "std", Version: goVersion, PURL: "pkg:golang/std@" + goVersion})
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		known, ok := hashes[m.Path+" "+m.Version]
		if !ok {
			return fmt.Errorf("%s has no hash of %s %s", sums, m.Path, m.Version)
		}
		add(component{Name: m.Path, Version: m.Version, PURL: purl(m.Path, m.Version), Hashes: []hash{{"SHA-256", known}}})
	}
	b.Dependencies = []depends{all}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(b)
}

// readSums reads the modules' hashes in hexadecimal, by "PATH VERSION". A hash is of the list of a module's files and their
// hashes (h1 in go.sum).
func readSums(file string) (map[string]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	hashes := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || strings.HasSuffix(fields[1], "/go.mod") {
			continue
		}
		encoded, ok := strings.CutPrefix(fields[2], "h1:")
		raw, err := base64.StdEncoding.DecodeString(encoded)
		if !ok || err != nil {
			return nil, fmt.Errorf("%s: no hash: %s", file, lines.Text())
		}
		hashes[fields[0]+" "+fields[1]] = hex.EncodeToString(raw)
	}
	return hashes, lines.Err()
}

// purl is a module's package URL: https://github.com/package-url/purl-spec.
func purl(path, version string) string {
	p := "pkg:golang/" + path
	if version != "" {
		p += "@" + strings.ReplaceAll(version, "+", "%2B")
	}
	return p
}

// serial is a UUID (version 8, RFC 9562) of a hash.
func serial(sum [32]byte) string {
	u := sum[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
