package config

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// user is the environment of somebody whose home is /home/u; variables are "NAME=value".
func user(variables ...string) environment {
	env := map[string]string{"HOME": "/home/u"}
	for _, v := range variables {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	return environment{getenv: func(name string) string { return env[name] }, host: "host-1"}
}

func file(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func plain(address string) Listener { return Listener{Address: address, MinVersion: tls.VersionTLS12} }

func TestDefaults(t *testing.T) {
	for what, c := range map[string]struct {
		env             environment
		data, key, node string
	}{
		"user":         {user(), "/home/u/.local/share/lessor", "/home/u/.config/lessor/seal.key", "host-1"},
		"XDG":          {user("XDG_DATA_HOME=/d", "XDG_CONFIG_HOME=/c"), "/d/lessor", "/c/lessor/seal.key", "host-1"},
		"relative XDG": {user("XDG_DATA_HOME=d", "XDG_CONFIG_HOME=c"), "/home/u/.local/share/lessor", "/home/u/.config/lessor/seal.key", "host-1"},
		"root":         {environment{user().getenv, true, "not a name"}, "/var/lib/lessor", "/etc/lessor/seal.key", "lessor"},
	} {
		got, err := flags(nil, c.env)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		want := Config{
			Storage:         Storage{Type: Pebble, Path: c.data},
			NodeName:        c.node,
			Seal:            Seal{KeyFile: c.key, Anchor: c.key + AnchorSuffix},
			Listeners:       []Listener{plain("127.0.0.1:8200")},
			Audit:           Audit{Retention: 400 * 24 * time.Hour, Patience: 30 * 24 * time.Hour},
			DefaultLeaseTTL: 768 * time.Hour,
			MaxLeaseTTL:     768 * time.Hour,
			ReportedVersion: "1.20.0",
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got\n%+v, want\n%+v", what, got, want)
		}
	}
	if _, err := flags(nil, user("HOME=")); err == nil || !strings.Contains(err.Error(), "-data") {
		t.Errorf("without a home: %v", err)
	}
	if _, err := flags([]string{"-data", "/d", "-key-file", "/k"}, user("HOME=")); err != nil {
		t.Errorf("without a home, but told where: %v", err)
	}
}

const full = `
storage "postgresql" {
  connection_url = "postgres://u:$${x}@db/lessor"
  max_parallel   = "40"
  ha_enabled     = "true"
}
listener "tcp" {
  address         = "10.0.0.1:8200"
  cluster_address = "10.0.0.1:8201"
  tls_cert_file   = "/tls/crt"
  tls_key_file    = "/tls/key"
  tls_min_version = "tls13"
  x_forwarded_for_authorized_addrs = ["10.0.0.0/8", "192.0.2.7"]
}
listener "tcp" {
  address     = "[::1]:8300"
  tls_disable = 1
  x_forwarded_for_authorized_addrs = "10.1.2.3/8, ::1"
}
listener "tcp" {
  address                      = ":8400"
  tls_disable                  = "true"
  allow_plaintext_off_loopback = true
}
seal "keyfile" { path = "/keys/seal.key" }
seal "recovery" {
  path            = "/elsewhere/recovery.key"
  passphrase_file = "/run/passphrase"
}
seal "shamir" { anchor = "/keys/anchor" }
allow_audit_log_prefixing = true
audit {
  retention         = "30d"
  exporter_patience = "2d"
}
telemetry {
  prometheus_retention_time = "30s"
  disable_hostname = true
}
api_addr          = "https://lessor.example.com:8200"
cluster_addr      = "https://10.0.0.1:8201"
cluster_name      = "one" // a comment
node_name         = "node-1.example"
drain_delay       = "20s"
ui                = true
disable_mlock     = true
log_level         = "Trace"
log_format        = "json"
default_lease_ttl = "1d12h"
max_lease_ttl     = 172800
pid_file          = "/run/lessor.pid"
require_owner     = true
rotator_directory = "/opt/rotators"
rotator_hosts     = ["rotators.example.org", "::1"]
rotator_same_user = true
reported_version  = "1.19.3-rc1"
`

const fullJSON = `{
  "storage": {"postgresql": {"connection_url": "postgres://u:${x}@db/lessor", "max_parallel": 40, "ha_enabled": true}},
  "listener": [
    {"tcp": {"address": "10.0.0.1:8200", "cluster_address": "x", "tls_cert_file": "/tls/crt", "tls_key_file": "/tls/key",
      "tls_min_version": "tls13", "x_forwarded_for_authorized_addrs": ["10.0.0.0/8", "192.0.2.7"]}},
    {"tcp": {"address": "[::1]:8300", "tls_disable": 1, "x_forwarded_for_authorized_addrs": "10.1.2.3/8, ::1"}},
    {"tcp": {"address": ":8400", "tls_disable": "true", "allow_plaintext_off_loopback": true}}
  ],
  "seal": {"keyfile": {"path": "/keys/seal.key"}, "recovery": {"path": "/elsewhere/recovery.key", "passphrase_file": "/run/passphrase"}, "shamir": {"anchor": "/keys/anchor"}},
  "allow_audit_log_prefixing": true,
  "audit": {"retention": "30d", "exporter_patience": "48h"},
  "telemetry": {"disable_hostname": true},
  "api_addr": "https://lessor.example.com:8200", "cluster_addr": "https://10.0.0.1:8201", "cluster_name": "one", "node_name": "node-1.example", "drain_delay": 20,
  "ui": true, "disable_mlock": true, "log_level": "trace", "log_format": "json",
  "default_lease_ttl": "36h", "max_lease_ttl": "172800", "pid_file": "/run/lessor.pid",
  "require_owner": "1", "rotator_directory": "/opt/rotators", "rotator_hosts": "rotators.example.org, ::1", "rotator_same_user": true, "reported_version": "1.19.3-rc1"
}`

func TestEverySetting(t *testing.T) {
	prefixes := func(s ...string) (all []netip.Prefix) {
		for _, p := range s {
			all = append(all, netip.MustParsePrefix(p))
		}
		return all
	}
	want := Config{
		Storage: Storage{Type: PostgreSQL, ConnectionURL: lessor.NewSecret("postgres://u:${x}@db/lessor"), Connections: 40},
		Listeners: []Listener{
			{Address: "10.0.0.1:8200", TLS: true, CertFile: "/tls/crt", KeyFile: "/tls/key", MinVersion: tls.VersionTLS13, TrustedProxies: prefixes("10.0.0.0/8", "192.0.2.7/32")},
			{Address: "[::1]:8300", MinVersion: tls.VersionTLS12, TrustedProxies: prefixes("10.0.0.0/8", "::1/128")},
			{Address: ":8400", MinVersion: tls.VersionTLS12, AllowPlaintext: true},
		},
		Seal: Seal{
			KeyFile: "/keys/seal.key", Recovery: Recovery{"/elsewhere/recovery.key", "/run/passphrase"}, Shamir: true, Anchor: "/keys/anchor",
		},
		Audit:            Audit{Retention: 720 * time.Hour, Patience: 48 * time.Hour, AllowPrefix: true},
		RequireOwner:     true,
		RotatorDirectory: "/opt/rotators",
		RotatorHosts:     []string{"rotators.example.org", "::1"},
		RotatorSameUser:  true,
		DefaultLeaseTTL:  36 * time.Hour,
		MaxLeaseTTL:      48 * time.Hour,
		ReportedVersion:  "1.19.3-rc1",
		APIAddr:          "https://lessor.example.com:8200",
		ClusterAddr:      "https://10.0.0.1:8201",
		ClusterName:      "one",
		NodeName:         "node-1.example",
		DrainDelay:       20 * time.Second,
		PIDFile:          "/run/lessor.pid",
		UI:               true,
		LogLevel:         LevelTrace,
		LogJSON:          true,
	}
	for name, text := range map[string]string{"a.hcl": full, "a.json": fullJSON, "without-ending": fullJSON, "conf": full} {
		got, err := Parse(file(t, name, text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got\n%+v, want\n%+v", name, got, want)
		}
	}
	// A password in the configuration does not get into whatever prints it.
	if s := fmt.Sprintf("%+v %#v", want, want); strings.Contains(s, "${x}") {
		t.Error("printing the configuration shows the password")
	}
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.hcl": `storage "mem" {}`, "b.json": `{"ui": true}`, "notes.txt": "no configuration",
		"c.hcl": "listener \"tcp\" {\n tls_disable = true\n}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Parse(dir)
	if err != nil {
		t.Fatal(err)
	}
	if c.Storage.Type != Mem || !c.UI || c.Seal.KeyFile != "" || len(c.Listeners) != 1 || c.Listeners[0].Address != "127.0.0.1:8200" {
		t.Errorf("got %+v", c)
	}
	if _, err := Parse(t.TempDir()); err == nil || !strings.Contains(err.Error(), "no *.hcl or *.json") {
		t.Errorf("empty folder: %v", err)
	}
	if _, err := Parse(filepath.Join(dir, "none.hcl")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	twice := file(t, "more.hcl", "\nui = false\n\nstorage \"mem\" {}\n")
	_, err = Parse(dir, twice)
	for _, want := range []string{
		twice + ":2: ui was set before, at " + filepath.Join(dir, "b.json") + ":1",
		twice + ":4: storage was set before, at " + filepath.Join(dir, "a.hcl") + ":1",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("set twice: %v, want %q", err, want)
		}
	}
}

// Each wrong configuration, with what the error must say. FILE stands for the file's path.
func TestRefused(t *testing.T) {
	const tcp = "listener \"tcp\" {\n"
	for _, c := range []struct{ text, want string }{
		{"\nuii = true\n", `FILE:2: Unsupported argument: An argument named "uii" is not expected here. Did you mean "ui"?`},
		{"ui = true\n\nlistner \"tcp\" {}\n", `FILE:3: Unsupported block type: Blocks of type "listner" are not expected here. Did you mean "listener"?`},
		{tcp + "adress = \"x\"\n}", `FILE:2: Unsupported argument: An argument named "adress" is not expected here. Did you mean "address"?`},
		{"raw_storage_endpoint = true", `FILE:1: Unsupported argument`},
		{"storage \"pebble\" {\n  paht = \"/x\"\n}", `FILE:2: `},
		{`{"uii": true}`, `FILE:1: Extraneous JSON object property`},
		{"ui = true\nui = true", "FILE:2: Attribute redefined"},
		{"storage \"mem\" {}\nstorage \"mem\" {}", "FILE:2: storage was set before, at FILE:1"},
		{"audit {\n}\naudit {}", "FILE:3: audit was set before"},
		{"ui = maybe", "FILE:1: ui must be written out"},
		{"ui = 1 == 1", "FILE:1: ui must be written out"},
		{"cluster_name = \"a${1e999999999}\"", "FILE:1: cluster_name must be written out"},
		{"max_lease_ttl = 1e999999999", "FILE:1: max_lease_ttl is no number of a sensible size"},
		{"max_lease_ttl = 1e-99999999", "FILE:1: max_lease_ttl is no number of a sensible size"},
		{`{"listener": {"tcp": {"x_forwarded_for_authorized_addrs": [1e-99999999]}}}`, "must be a list"},
		{"ui = \"maybe\"", "FILE:1: ui must be true or false"},
		{"ui = null", "FILE:1: ui has no value"},
		{"api_addr = [1]", "FILE:1: api_addr must be a string"},
		{"api_addr = \"lessor:8200\"", "api_addr must be a URL"},
		{"log_level = \"loud\"", "FILE:1: log_level must be trace"},
		{"log_format = \"xml\"", "FILE:1: log_format must be"},
		{"max_lease_ttl = \"soon\"", "FILE:1: max_lease_ttl must be a duration"},
		{"max_lease_ttl = -1", "FILE:1: max_lease_ttl must be a duration"},
		{"max_lease_ttl = \"1h\"", "default_lease_ttl (768h0m0s) is longer than max_lease_ttl (1h0m0s)"},
		{"default_lease_ttl = 0", "longer than 0"},
		{"audit {\n retention = \"1h\"\n}", "a day or more"},
		{"backup {}", "FILE:1: backup needs a destination"},
		{"backup {\n destination = \"file:///b\"\n}\nbackup {\n}", "FILE:4: backup was set before, at FILE:1"},
		{"backup {\n destination = \"/b\"\n}", "must be a URL"},
		{"backup {\n destination = \"file:///b\"\n interval = \"1d\"\n full = \"1h\"\n}", "full not shorter than interval"},
		{"backup {\n destination = \"file:///b\"\n interval = 0\n}", "a second or more"},
		{"backup {\n destination = \"file:///b\"\n keep = \"1h\"\n}", "keep not shorter than full"},
		{"storage \"pebble\" {\n path = \"/d\"\n}\nbackup {\n destination = \"file:///d/b\"\n}", "are lost together"},
		{"storage \"pebble\" {\n path = \"/d/s\"\n}\nbackup {\n destination = \"file:///d\"\n}", "are lost together"},
		{"storage \"mem\" {}\nbackup {\n destination = \"file:///b\"\n}", "forgets everything"},
		{"storage \"postgresql\" {\n connection_url = \"host=x\"\n}\nbackup {\n destination = \"file:///b\"\n}", "write-ahead log"},
		{"reported_version = \"latest\"", "reported_version"},
		{"storage \"raft\" {}", `FILE:1: unknown storage "raft": use "pebble", "postgresql" or "mem"`},
		{"storage \"postgresql\" {}", "needs a connection_url"},
		{"storage \"postgresql\" {\n table = \"kv\"\n}", "FILE:2: table cannot be chosen"},
		{"storage \"postgresql\" {\n max_idle_connections = 4\n}", "max_parallel bounds them"},
		{"storage \"postgresql\" {\n ha_enabled = \"false\"\n}", "ha_enabled cannot be off"},
		{"storage \"postgresql\" {\n max_parallel = 2\n}", "from 8 to 1000"},
		{"storage {}", "FILE:1: "},
		{"seal \"awskms\" {}", `FILE:1: unknown seal "awskms"`},
		{"seal \"keyfile\" {}", `FILE:1: seal "keyfile" needs a path`},
		{"seal \"recovery\" {}", `FILE:1: seal "recovery" needs a path`},
		{"seal \"shamir\" {}\nseal \"shamir\" {}", `FILE:2: seal "shamir" was set before, at FILE:1`},
		{"seal \"keyfile\" {\n path = \"/k\"\n anchor = \"/a\"\n}\nseal \"shamir\" {\n anchor = \"/b\"\n}", "FILE:5: the anchor was set before"},
		{"seal \"shamir\" {\n path = \"/k\"\n}", "FILE:2: Unsupported argument"},
		{"storage \"pebble\" {\n path = \"/d\"\n}\nseal \"shamir\" {\n anchor = \"/d/a\"\n}", "the anchor /d/a is inside the data folder"},
		{"storage \"pebble\" {\n path = \"/d\"\n}\nseal \"recovery\" {\n path = \"/d/r\"\n}", "the recovery file /d/r is inside the data folder"},
		{"storage \"mem\" {}\nseal \"keyfile\" {\n path = \"/k\"\n}", "takes no key file"},
		{"storage \"mem\" {}\nseal \"shamir\" {}", "no other seal"},
		{"storage \"pebble\" {\n path = \"/d\"\n}\nseal \"keyfile\" {\n path = \"/d/x/../seal.key\"\n}", "inside the data folder"},
		{"listener \"unix\" {}", `FILE:1: unknown listener "unix"`},
		{"listener \"tcp\" {}", "set tls_cert_file and tls_key_file, or tls_disable = true"},
		{tcp + "tls_cert_file = \"c\"\n}", "set tls_cert_file and tls_key_file"},
		{tcp + "tls_disable = true\ntls_cert_file = \"c\"\n}", "contradict"},
		{tcp + "tls_min_version = \"tls10\"\n}", "FILE:2: tls_min_version must be tls12 or tls13"},
		{tcp + "x_forwarded_for_authorized_addrs = \"lan\"\n}", "FILE:2: x_forwarded_for_authorized_addrs must be a list"},
		{tcp + "tls_disable = true\ntls_client_ca_file = \"c\"\n}", "contradict"},
		{tcp + "tls_cert_file = \"c\"\ntls_key_file = \"k\"\ntls_client_ca_file = \"c\"\ntls_disable_client_certs = true\n}", "contradict"},
		{tcp + "tls_cert_file = \"c\"\ntls_key_file = \"k\"\ntls_require_and_verify_client_cert = true\n}", "needs a tls_client_ca_file"},
		{tcp + "tls_disable = true\naddress = \"nowhere\"\n}", "is not host:port"},
		{tcp + "tls_disable = true\naddress = \"127.0.0.1:x y\"\n}", "no such port"},
		{tcp + "tls_disable = true\naddress = \"0.0.0.0:8200\"\n}", "allow_plaintext_off_loopback"},
		{tcp + "tls_disable = true\naddress = \":8200\"\n}", "allow_plaintext_off_loopback"},
		{tcp + "tls_disable = true\naddress = \"lessor.example.com:8200\"\n}", "allow_plaintext_off_loopback"},
		{tcp + "tls_disable = true\n}\n" + tcp + "tls_disable = true\n}", "two listeners"},
		{"listener \"tcp\" {", "FILE:1: "},
		{"{", "FILE:1: "},
	} {
		path := file(t, "c.conf", c.text)
		_, err := Parse(path)
		if want := strings.ReplaceAll(c.want, "FILE", path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q:\ngot  %v\nwant %s", c.text, err, want)
		}
	}
	// All that is wrong is said at once, and never a password.
	_, err := Parse(file(t, "c.hcl", "uii = 1\nstorage \"postgresql\" {\n connection_url = [\"hunter2\"]\n}\nlog_level = \"x\"\n"))
	if err == nil || strings.Count(err.Error(), "\n") != 2 || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

// Shares take the place of the key file, or stand beside it.
func TestShamirSeal(t *testing.T) {
	for text, want := range map[string]Seal{
		`seal "shamir" {}`:                                          {Shamir: true, Anchor: "/home/u/.config/lessor/seal.key.anchor"},
		"seal \"shamir\" {\n anchor = \"/a\"\n}":                    {Shamir: true, Anchor: "/a"},
		"seal \"shamir\" {}\nseal \"keyfile\" {\n path = \"/k\"\n}": {Shamir: true, KeyFile: "/k", Anchor: "/k.anchor"},
		"seal \"keyfile\" {\n path = \"/k\"\n anchor = \"/b\"\n}":   {KeyFile: "/k", Anchor: "/b"},
		"seal \"recovery\" {\n path = \"/r\"\n}":                    {KeyFile: "/home/u/.config/lessor/seal.key", Recovery: Recovery{Path: "/r"}, Anchor: "/home/u/.config/lessor/seal.key.anchor"},
	} {
		c, err := flags([]string{"-config", file(t, "c.hcl", text)}, user())
		if err != nil || c.Seal != want {
			t.Errorf("%s: got %+v, %v", text, c.Seal, err)
		}
	}
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "localhost": true, "LocalHost.": true, "::ffff:127.0.0.1": true,
		"": false, "0.0.0.0": false, "::": false, "10.0.0.1": false, "localhost.example.com": false, "lessor": false,
	} {
		if got := loopback(host); got != want {
			t.Errorf("%q: got %v", host, got)
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "3600": time.Hour, " 90m ": 90 * time.Minute, "1h30m": 90 * time.Minute, "400d": 9600 * time.Hour, "1d12h": 36 * time.Hour, "0d": 0,
	} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%q: got %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "-1", "-1h", "d", "1.5d", "99999999999d", "9999999999999999999", "1d-1h", "1dd", "x"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q: got %s", text, got)
		}
	}
}

func TestFlags(t *testing.T) {
	conf := file(t, "c.hcl", "log_level = \"debug\"\nui = true\n")
	c, err := flags([]string{"-config", conf, "--data=/elsewhere", "-key-file=/k", "-listen=[::1]:0", "-log-level=warn", "-log-format=json"}, user())
	if err != nil {
		t.Fatal(err)
	}
	if c.Storage != (Storage{Type: Pebble, Path: "/elsewhere"}) || c.Seal.KeyFile != "/k" || !c.UI || c.LogLevel != slog.LevelWarn || !c.LogJSON ||
		!reflect.DeepEqual(c.Listeners, []Listener{plain("[::1]:0")}) {
		t.Errorf("got %+v", c)
	}
	pg := file(t, "pg.hcl", `storage "postgresql" { connection_url = "postgres:///x" }`)
	if c, err = flags([]string{"-config", pg, "-node-name=n-2"}, user("LESSOR_NODE_NAME=n-3")); err != nil || c.NodeName != "n-2" || c.DrainDelay != drainDelay {
		t.Errorf("got %+v, %v", c, err)
	}
	mem := file(t, "mem.hcl", `storage "mem" {}`)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-nonsense"}, "-nonsense"},
		{[]string{"extra"}, "extra"},
		{[]string{"-config", "/does/not/exist.hcl"}, "/does/not/exist.hcl"},
		{[]string{"-listen", "0.0.0.0:8200"}, "allow_plaintext_off_loopback"},
		{[]string{"-log-level", "x"}, "-log-level must be"},
		{[]string{"-node-name", "a/b"}, "node_name"},
		{[]string{"-config", mem, "-data", "/d"}, "-data"},
		{[]string{"-data", "/d", "-key-file", "/d/k"}, "inside the data folder"},
		{[]string{"-dev-root-token-id=x"}, "needs -dev"},
		{[]string{"-dev-no-store-token"}, "needs -dev"},
		{[]string{"-dev", "-dev-tls-cert-dir=/x"}, "needs -dev-tls"},
		{[]string{"-dev", "-dev-tls-san=x"}, "-dev-tls-san needs -dev-tls"},
		{[]string{"-dev-kv-v1"}, "needs -dev"},
		{[]string{"-dev", "-data", "/d"}, "in memory"},
		{[]string{"-dev", "-key-file", "/d"}, "no key file"},
		{[]string{"-dev", "-listen", "127.0.0.1:1"}, "-dev-listen-address"},
		{[]string{"-dev", "-dev-listen-address=0.0.0.0:8200"}, "-dev-tls"},
		{[]string{"-dev", "-dev-listen-address=:8200"}, "-dev-tls"},
	} {
		if _, err := flags(c.args, user()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q", c.args, err, c.want)
		}
	}
	if _, err := Flags([]string{"-help"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-help: %v", err)
	}
	if u := Usage(); !strings.Contains(u, "-dev-root-token-id token") || !strings.Contains(u, "-config file") {
		t.Errorf("usage:\n%s", u)
	}
}

func TestEnvironment(t *testing.T) {
	conf := file(t, "c.hcl", "log_level = \"debug\"\nlog_format = \"standard\"\napi_addr = \"https://file.example:8200\"\n")
	c, err := flags([]string{"-config", conf, "-log-level=error"},
		user("VAULT_API_ADDR=https://vault.example:8200", "LESSOR_API_ADDR=https://lessor.example:8200", "VAULT_REDIRECT_ADDR=https://old.example:8200",
			"VAULT_CLUSTER_ADDR=https://10.0.0.1:8201", "LESSOR_NODE_NAME=n-1", "VAULT_LOG_LEVEL=trace", "VAULT_LOG_FORMAT=json", "VAULT_UI="))
	if err != nil {
		t.Fatal(err)
	}
	if c.APIAddr != "https://lessor.example:8200" || c.ClusterAddr != "https://10.0.0.1:8201" || c.LogLevel != slog.LevelError || !c.LogJSON || c.NodeName != "n-1" || c.DrainDelay != 0 {
		t.Errorf("got %+v", c)
	}
	if c, err = flags([]string{"-config", conf}, user("VAULT_REDIRECT_ADDR=https://old.example:8200", "LESSOR_LOG_LEVEL=warn")); err != nil || c.APIAddr != "https://old.example:8200" || c.LogLevel != slog.LevelWarn {
		t.Errorf("got %+v, %v", c, err)
	}
	for variable, want := range map[string]string{
		"VAULT_LOG_LEVEL=loud": "VAULT_LOG_LEVEL must be trace", "LESSOR_LOG_FORMAT=xml": "LESSOR_LOG_FORMAT must be",
		"VAULT_API_ADDR=lessor:8200": "api_addr must be a URL", "LESSOR_DISABLE_USER_LOCKOUT=perhaps": "LESSOR_DISABLE_USER_LOCKOUT must be true or false",
	} {
		if _, err := flags(nil, user(variable)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", variable, err, want)
		}
	}
}

func TestDev(t *testing.T) {
	env := user("VAULT_DEV_ROOT_TOKEN_ID=loses", "LESSOR_DEV_ROOT_TOKEN_ID=from-env", "VAULT_DEV_LISTEN_ADDRESS=127.0.0.1:9999")
	for what, c := range map[string]struct {
		args []string
		env  environment
		dev  Dev
		at   Listener
	}{
		"bare":        {[]string{"-dev"}, user(), Dev{Enabled: true}, plain("127.0.0.1:8200")},
		"environment": {[]string{"-dev"}, env, Dev{Enabled: true, RootToken: lessor.NewSecret("from-env")}, plain("127.0.0.1:9999")},
		"flags win": {
			[]string{"-dev", "-dev-root-token-id=root", "-dev-listen-address=localhost:0", "-dev-no-store-token", "-dev-plugin-dir=/p"},
			env, Dev{Enabled: true, RootToken: lessor.NewSecret("root"), NoStoreToken: true}, plain("localhost:0"),
		},
		"TLS": {
			[]string{"-dev-tls", "-dev-listen-address=0.0.0.0:8200", "-dev-tls-cert-dir=/c", "-dev-tls-san=a", "-dev-tls-san=10.0.0.1", "-dev-kv-v1"},
			user(), Dev{Enabled: true, TLS: true, TLSCertDir: "/c", TLSNames: []string{"a", "10.0.0.1"}, KV1: true}, Listener{Address: "0.0.0.0:8200", TLS: true, MinVersion: tls.VersionTLS12},
		},
	} {
		got, err := flags(c.args, c.env)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if !reflect.DeepEqual(got.Dev, c.dev) || got.Storage != (Storage{Type: Mem}) || got.Seal.KeyFile != "" || !reflect.DeepEqual(got.Listeners, []Listener{c.at}) {
			t.Errorf("%s: got %+v", what, got)
		}
	}
	// The environment alone makes no development server.
	if c, err := flags(nil, env); err != nil || c.Dev.Enabled || c.Listeners[0].Address != "127.0.0.1:8200" {
		t.Errorf("got %+v, %v", c, err)
	}
	extra := file(t, "c.hcl", "ui = true\nlistener \"tcp\" {\n address = \"127.0.0.1:8300\"\n tls_disable = true\n}\n")
	if c, err := flags([]string{"-dev", "-config", extra}, user()); err != nil || !c.UI || len(c.Listeners) != 2 || c.Listeners[1].Address != "127.0.0.1:8300" {
		t.Errorf("got %+v, %v", c, err)
	}
	durable := file(t, "d.hcl", `storage "pebble" {}`)
	if _, err := flags([]string{"-dev", "-config", durable}, user()); err == nil || !strings.Contains(err.Error(), "in memory") {
		t.Errorf("-dev with a durable store: %v", err)
	}
}

func FuzzFile(f *testing.F) {
	f.Add("c.hcl", full)
	f.Add("c.json", fullJSON)
	f.Add("c", "listener \"tcp\" {\n address = \"${1}\"\n}\n")
	f.Add("c", "ui = [for x in [1] : x]")
	f.Add("c", "max_lease_ttl = 1e999")
	f.Fuzz(func(t *testing.T, name, text string) {
		c := defaults()
		d := decoder{config: &c, places: map[string]string{}}
		d.file(name, []byte(text))
		if d.wrong != nil || c.complete(user()) != nil || c.Validate() != nil {
			return
		}
		for _, l := range c.Listeners {
			if host := l.Address[:strings.LastIndex(l.Address, ":")]; !l.TLS && !l.AllowPlaintext && !loopback(strings.Trim(host, "[]")) {
				t.Fatalf("%q: plain HTTP on %s", text, l.Address)
			}
		}
		if c.Storage.Type != Mem && (c.Seal.KeyFile == "" && !c.Seal.Shamir || c.Seal.Anchor == "") {
			t.Fatalf("%q: no key, or no anchor", text)
		}
	})
}

func FuzzFlags(f *testing.F) {
	f.Add("-dev\n-dev-listen-address=0.0.0.0:1")
	f.Add("-dev-tls")
	f.Add("-data\n/d\n-key-file\n/d/k")
	f.Fuzz(func(t *testing.T, args string) {
		if strings.Contains(args, "config") {
			return // reads files
		}
		c, err := flags(strings.Split(args, "\n"), user())
		if err == nil && c.Dev.Enabled != (c.Storage.Type == Mem) {
			t.Fatalf("%q: %+v", args, c)
		}
	})
}

// TestBackup: what a backup stanza leaves out has its default; without one there are no backups.
func TestBackup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.hcl")
	for text, want := range map[string]Backup{
		"": {},
		"backup {\n destination = \"s3://b/p?region=r\"\n}":                                        {"s3://b/p?region=r", time.Minute, day, 30 * day},
		"backup {\n destination = \"file:///b\"\n interval = \"5s\"\n full = \"1h\"\n keep = 0\n}": {"file:///b", 5 * time.Second, time.Hour, 0},
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := Parse(file); err != nil || c.Backup != want {
			t.Errorf("%s: %+v, %v", text, c.Backup, err)
		}
	}
}
