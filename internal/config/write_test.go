package config

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// FuzzHCL: what is written is what is read, whatever characters a password or a path has.
func FuzzHCL(f *testing.F) {
	for _, text := range []string{"postgresql://lessor:p%20w@db1,db2/lessor?sslmode=verify-full", `${file("/etc/passwd")} %{ if true } "\` + "\n\t\r\x00'", "host=db password='ä ö'"} {
		f.Add(text, "/etc/lessor/seal.key", true)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, url, path string, on bool) {
		url, path = cty.StringVal(url).AsString(), cty.StringVal(path).AsString() // composed, as HCL reads all text
		if url == "" || path == "" || url != string([]rune(url)) || path != string([]rune(path)) {
			t.Skip() // no UTF-8
		}
		c := defaults()
		c.Storage = Storage{Type: PostgreSQL, ConnectionURL: lessor.NewSecret(url), Connections: 30}
		c.Seal = Seal{KeyFile: path, Anchor: path + AnchorSuffix}
		c.NodeName, c.APIAddr, c.ClusterName = "two", "https://two.example.org:8200", "prod"
		c.RequireOwner, c.UI, c.Audit.AllowPrefix = on, on, on
		c.RotatorDirectory, c.RotatorSameUser, c.RotatorHosts = "/opt/rotators", on, []string{"rotators.example.org", "*"}
		c.Audit.Retention, c.Audit.Patience, c.DefaultLeaseTTL, c.MaxLeaseTTL = 0, time.Hour, 90*time.Second, 40*day
		c.DrainDelay = drainDelay
		c.Listeners = []Listener{
			{Address: "0.0.0.0:8200", TLS: true, CertFile: path, KeyFile: path + ".key", MinVersion: tls.VersionTLS13, ClientCAFile: path + ".ca", RequireClients: on},
			{Address: "0.0.0.0:8300", TLS: true, CertFile: path, KeyFile: path + ".key", MinVersion: tls.VersionTLS12, IgnoreClients: on},
			{Address: "127.0.0.1:8200", MinVersion: tls.VersionTLS12},
		}
		file := filepath.Join(dir, "lessor.hcl")
		if err := os.WriteFile(file, c.HCL(), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Parse(file)
		if err != nil {
			t.Fatalf("%v\n%s", err, c.HCL())
		}
		if !reflect.DeepEqual(got, c) {
			t.Errorf("read  %+v\nwrote %+v", got, c)
		}
	})
}
