package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMigration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "migrate.hcl")
	read := func(text string) (Config, Config, error) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return migration([]string{file}, environment{getenv: func(name string) string { return map[string]string{"HOME": "/home/op"}[name] }})
	}
	const source, destination = `storage_source "pebble" { path = "/data" }`, `storage_destination "postgresql" { connection_url = "postgres://db/lessor" }`
	from, to, err := read(source + "\n" + destination + "\n" + `seal "keyfile" { path = "/keys/seal.key" }
cluster_addr = "https://10.0.0.1:8201"`)
	if err != nil {
		t.Fatal(err)
	}
	if from.Storage.Type != Pebble || from.Storage.Path != "/data" || to.Storage.Type != PostgreSQL || to.Storage.ConnectionURL.Reveal() != "postgres://db/lessor" {
		t.Errorf("from %+v to %+v", from.Storage, to.Storage)
	}
	if from.Seal != to.Seal || from.Seal.Anchor != "/keys/seal.key.anchor" {
		t.Errorf("seals: %+v, %+v", from.Seal, to.Seal)
	}
	if from, _, err := read(source + "\n" + destination); err != nil || from.Seal.KeyFile != "/home/op/.config/lessor/seal.key" {
		t.Errorf("without a seal: %+v, %v", from.Seal, err)
	}
	for text, words := range map[string]string{
		source: "needs two stanzas",
		source + "\n" + destination + "\n" + `storage "mem" {}`:                    "storage",
		source + "\n" + source + "\n" + destination:                                "was set before",
		source + "\n" + `storage_destination "raft" {}`:                            `unknown storage "raft"`,
		destination + "\n" + `storage_source "pebble" { url = "x" }`:               "url",
		source + "\n" + `storage_destination "postgresql" {}`:                      "storage_destination",
		source + "\n" + destination + "\n" + `seal "keyfile" { path = "/data/k" }`: "inside the data folder",
	} {
		if _, _, err := read(text); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s:\n%v; want %q", text, err, words)
		}
	}
	c := defaults()
	if err := c.read([]string{file}); err == nil {
		t.Error("a server takes the configuration of a move")
	}
}
