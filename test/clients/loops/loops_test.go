// Package loops lets consul-template watch and renew for a while, with leases of seconds, and looks at what it did to the server:
// whether it looped, kept an old version, or left leases behind. Between it and lessor stands a proxy that counts. The
// loops around other clients' watchers are tested with these clients.
package loops

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/lessor-dev/lessor/test/clients/server"
)

func TestMain(m *testing.M) { server.Main(m) }

func client(t *testing.T, address string) *api.Client {
	t.Helper()
	cfg := api.DefaultConfig()
	cfg.Address, cfg.MaxRetries = address, 0
	c, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.SetToken(server.Root)
	return c
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// consulTemplate builds the program, which may take minutes: before there are tokens that live for seconds.
var consulTemplate = sync.OnceValues(func() (string, error) {
	path, err := exec.Command("go", "tool", "-n", "consul-template").Output()
	if err != nil {
		return "", fmt.Errorf("building consul-template: %w", err)
	}
	return strings.TrimSpace(string(path)), nil
})

// template runs consul-template, as its users do, until the test ends, and returns the file that it keeps up to date.
func template(t *testing.T, address, token, text string) (rendered string) {
	t.Helper()
	tool := must[string](t)(consulTemplate())
	dir := t.TempDir()
	from, to := filepath.Join(dir, "in.tpl"), filepath.Join(dir, "out")
	check(t, os.WriteFile(from, []byte(text), 0o600))
	config := filepath.Join(dir, "config.hcl")
	check(t, os.WriteFile(config, fmt.Appendf(nil, `
vault {
  address     = %q
  token       = %q
  renew_token = true
  retry { backoff = "200ms" }
}
template {
  source      = %q
  destination = %q
}
`, address, token, from, to), 0o600))
	cmd := exec.Command(tool, "-config", config, "-log-level", "err")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	cmd.Stderr = os.Stderr
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
	})
	return to
}

// waitFor reads the file until it says what is wanted, and fails the test after a while.
func waitFor(t *testing.T, file string, within time.Duration, want func(string) bool) string {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		text, _ := os.ReadFile(file)
		if want(string(text)) {
			return string(text)
		}
		if time.Now().After(end) {
			t.Fatalf("after %v %s says %q", within, filepath.Base(file), text)
		}
	}
}

func TestLoops(t *testing.T) {
	os.Unsetenv("VAULT_TOKEN")
	must[string](t)(consulTemplate())
	address, db := server.Start(t), server.Postgres(t)
	root := client(t, address)
	check(t, root.Sys().PutPolicy("loops", `path "*" { capabilities = ["create", "read", "update", "list"] }`))
	check(t, root.Sys().Mount("fast", &api.MountInput{Type: "kv", Options: map[string]string{"version": "2", "lease_duration": "2s"}}))
	check(t, root.Sys().Mount("old", &api.MountInput{Type: "kv", Options: map[string]string{"version": "1"}}))
	check(t, root.Sys().Mount("database", &api.MountInput{Type: "database"}))
	must[*api.Secret](t)(root.Logical().Write("database/config/pg", map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": "admin", "password": "unused",
		"connection_url": strings.Replace(db, "admin@", "{{username}}:{{password}}@", 1),
	}))
	t.Run("at once", func(t *testing.T) {
		t.Run("consul-template on kv version 2", func(t *testing.T) { t.Parallel(); templateKV2(t, address) })
		t.Run("consul-template on kv version 1", func(t *testing.T) { t.Parallel(); templateKV1(t, address) })
		t.Run("consul-template on database credentials", func(t *testing.T) { t.Parallel(); templateDatabase(t, address, db) })
	})
}

// child is a token of its own for a loop.
func child(t *testing.T, address string, r *api.TokenCreateRequest) *api.Secret {
	t.Helper()
	if r.Policies == nil {
		r.Policies = []string{"loops"}
	}
	return must[*api.Secret](t)(client(t, address).Auth().Token().Create(r))
}

func templateKV2(t *testing.T, address string) {
	tok := child(t, address, &api.TokenCreateRequest{TTL: "5s", Period: "5s"})
	proxy, seconds := templateStatic(t, address, tok, "fast/data/templated", `{{ .Data.data.n }}`, func(n int) map[string]any {
		return map[string]any{"data": map[string]any{"n": fmt.Sprint(n)}}
	})
	proxy.Between("PUT auth/token/renew-self", seconds/7, seconds*3/2)
}

func templateKV1(t *testing.T, address string) {
	templateStatic(t, address, child(t, address, &api.TokenCreateRequest{}), "old/templated", `{{ .Data.n }}`, func(n int) map[string]any {
		return map[string]any{"n": fmt.Sprint(n), "ttl": "2s"}
	})
}

// templateStatic has a secret rendered whose leases take two seconds, and which has a new version every four.
func templateStatic(t *testing.T, address string, tok *api.Secret, path, field string, value func(n int) map[string]any) (*server.Counter, int) {
	root, proxy := client(t, address), server.Count(t, address)
	write := func(n int) { must[*api.Secret](t)(root.Logical().Write(path, value(n))) }
	write(1)
	out := template(t, proxy.URL, tok.Auth.ClientToken, fmt.Sprintf(`{{ with secret %q }}%s{{ end }}`, path, field))
	waitFor(t, out, 10*time.Second, func(s string) bool { return s == "1" })
	versions, begun := 1, time.Now()
	for time.Since(begun) < server.Lasting(t) {
		time.Sleep(4 * time.Second)
		versions++
		write(versions)
		waitFor(t, out, 6*time.Second, func(s string) bool { return s == fmt.Sprint(versions) })
	}
	// consul-template reads again at about 0.85 to 0.95 of a lease.
	seconds := int(time.Since(begun) / time.Second)
	proxy.Between("GET "+path, seconds/3, seconds*3/2)
	proxy.Between("PUT sys/leases/renew", 0, 0)
	proxy.Calm(15)
	if l := server.Leases(t, address, path); len(l) == 0 || len(l) > versions {
		t.Errorf("%d leases for %d versions and one reader: %v", len(l), versions, l)
	}
	return proxy, seconds
}

const createRole = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`

// role makes a database role whose credentials live so long.
func role(t *testing.T, root *api.Client, name, ttl, most string) {
	t.Helper()
	must[*api.Secret](t)(root.Logical().Write("database/roles/"+name, map[string]any{
		"db_name": "pg", "creation_statements": createRole, "default_ttl": ttl, "max_ttl": most,
	}))
}

func templateDatabase(t *testing.T, address, db string) {
	ctx, root, proxy := t.Context(), client(t, address), server.Count(t, address)
	role(t, root, "templated", "3s", "9s")
	tok := child(t, address, &api.TokenCreateRequest{TTL: "1h"})
	out := template(t, proxy.URL, tok.Auth.ClientToken, `{{ with secret "database/creds/templated" }}{"u":"{{ .Data.username }}","p":"{{ .Data.password }}"}{{ end }}`)
	waitFor(t, out, 10*time.Second, func(s string) bool { return strings.HasSuffix(s, "}") })

	// What the file says opens the database at every moment; a file that is just being replaced gets a second chance.
	users := map[string]bool{}
	for end := time.Now().Add(server.Lasting(t)); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if l := server.Leases(t, address, "database/creds/templated"); len(l) > 3 {
			t.Errorf("one template has %d leases at once: %v", len(l), l)
		}
		var err error
		for range 3 {
			var c struct{ U, P string }
			text, _ := os.ReadFile(out)
			if err = json.Unmarshal(text, &c); err == nil {
				if err = server.Login(ctx, db, c.U, c.P); err == nil {
					users[c.U] = true
					break
				}
			}
			time.Sleep(150 * time.Millisecond)
		}
		if err != nil {
			t.Fatalf("the rendered credentials do not open the database: %v", err)
		}
	}
	seconds := int(server.Lasting(t) / time.Second)
	if n := len(users); n < seconds/12 || n > seconds/3+1 {
		t.Errorf("%d credentials in %d s of at most 9 s each", n, seconds)
	}
	proxy.Between("GET database/creds/templated", seconds/12, seconds/3+1)
	proxy.Between("PUT sys/leases/renew", seconds/5, seconds*3)
	proxy.Calm(15)

	check(t, root.Auth().Token().RevokeTree(tok.Auth.ClientToken))
	server.Gone(t, address, db, "database/creds/templated", users)
}
