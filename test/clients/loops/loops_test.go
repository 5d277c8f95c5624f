// Package loops lets the clients that watch and renew do so for a while, with leases of seconds, and looks at what they did to
// the server: whether one of them looped, kept an old version, or left leases behind. Between each client and lessor stands a
// proxy that counts.
package loops

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/test/clients/server"
)

// counter is a reverse proxy that counts requests by method and path.
type counter struct {
	*httptest.Server
	mu    sync.Mutex
	seen  map[string]int
	fails map[int]int // by status, 400 and above
}

func count(t *testing.T, address string) *counter {
	target, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{seen: map[string]int{}, fails: map[int]int{}}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(r *http.Response) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.seen[r.Request.Method+" "+strings.TrimPrefix(r.Request.URL.Path, "/v1/")]++
		if r.StatusCode >= 400 {
			c.fails[r.StatusCode]++
		}
		return nil
	}
	c.Server = httptest.NewServer(proxy)
	t.Cleanup(c.Close)
	return c
}

// requests is how many requests there were whose method and path begin so.
func (c *counter) requests(prefix string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for what, times := range c.seen {
		if strings.HasPrefix(what, prefix) {
			n += times
		}
	}
	return n
}

// between fails the test unless there were at least low and at most high requests.
func (c *counter) between(t *testing.T, prefix string, low, high int) {
	t.Helper()
	if n := c.requests(prefix); n < low || n > high {
		t.Errorf("%d requests %q, want %d to %d; all: %v, failures: %v", n, prefix, low, high, c.seen, c.fails)
	}
}

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

// leases are the ids of the leases under a prefix.
func leases(t *testing.T, c *api.Client, prefix string) []any {
	t.Helper()
	s := must[*api.Secret](t)(c.Logical().List("sys/leases/lookup/" + prefix))
	if s == nil {
		return nil
	}
	return s.Data["keys"].([]any)
}

// template runs consul-template, as its users do, until the test ends, and returns the file that it keeps up to date.
func template(t *testing.T, address, token, text string) (rendered string) {
	t.Helper()
	tool, err := exec.Command("go", "tool", "-n", "consul-template").Output()
	if err != nil {
		t.Fatalf("building consul-template: %v", err)
	}
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
	cmd := exec.Command(strings.TrimSpace(string(tool)), "-config", config, "-log-level", "err")
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
		t.Run("watcher of a token", func(t *testing.T) { t.Parallel(); watchToken(t, address) })
		t.Run("watcher of a periodic token", func(t *testing.T) { t.Parallel(); watchPeriodic(t, address) })
		t.Run("watcher of a static secret", func(t *testing.T) { t.Parallel(); watchStatic(t, address) })
		t.Run("watcher of database credentials", func(t *testing.T) { t.Parallel(); watchDatabase(t, address) })
		t.Run("watcher whose lease is revoked", func(t *testing.T) { t.Parallel(); watchRevoked(t, address) })
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
	ctx, root, proxy := t.Context(), client(t, address), count(t, address)
	must[*api.KVSecret](t)(root.KVv2("fast").Put(ctx, "templated", map[string]any{"n": "1"}))
	tok := child(t, address, &api.TokenCreateRequest{TTL: "5s", Period: "5s"})
	out := template(t, proxy.URL, tok.Auth.ClientToken, `{{ with secret "fast/data/templated" }}{{ .Data.data.n }}{{ end }}`)
	waitFor(t, out, 10*time.Second, func(s string) bool { return s == "1" })
	for n := 2; n <= 4; n++ {
		time.Sleep(4 * time.Second)
		must[*api.KVSecret](t)(root.KVv2("fast").Put(ctx, "templated", map[string]any{"n": n}))
		waitFor(t, out, 6*time.Second, func(s string) bool { return s == fmt.Sprint(n) })
	}
	// Some 13 s of leases of 2 s, re-read at about 0.85 to 0.95 of it.
	proxy.between(t, "GET fast/data/templated", 5, 20)
	proxy.between(t, "PUT sys/leases/renew", 0, 0)
	proxy.between(t, "PUT auth/token/renew-self", 2, 20)
	if l := leases(t, root, "fast/data/templated"); len(l) > 4 {
		t.Errorf("%d leases for 4 versions and one reader: %v", len(l), l)
	}
}

func templateKV1(t *testing.T, address string) {
	root, proxy := client(t, address), count(t, address)
	write := func(n int) {
		must[*api.Secret](t)(root.Logical().Write("old/templated", map[string]any{"n": fmt.Sprint(n), "ttl": "2s"}))
	}
	write(1)
	out := template(t, proxy.URL, child(t, address, &api.TokenCreateRequest{}).Auth.ClientToken, `{{ with secret "old/templated" }}{{ .Data.n }}{{ end }}`)
	waitFor(t, out, 10*time.Second, func(s string) bool { return s == "1" })
	time.Sleep(5 * time.Second)
	write(2)
	waitFor(t, out, 6*time.Second, func(s string) bool { return s == "2" })
	proxy.between(t, "GET old/templated", 3, 12)
	proxy.between(t, "PUT sys/leases/renew", 0, 0)
	if l := leases(t, root, "old/templated"); len(l) > 2 {
		t.Errorf("%d leases for 2 versions and one reader: %v", len(l), l)
	}
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
	ctx, root, proxy := t.Context(), client(t, address), count(t, address)
	role(t, root, "templated", "3s", "9s")
	tok := child(t, address, &api.TokenCreateRequest{TTL: "1h"})
	out := template(t, proxy.URL, tok.Auth.ClientToken, `{{ with secret "database/creds/templated" }}{"u":"{{ .Data.username }}","p":"{{ .Data.password }}"}{{ end }}`)
	waitFor(t, out, 10*time.Second, func(s string) bool { return strings.HasSuffix(s, "}") })

	// What the file says opens the database at every moment; a file that is just being replaced gets a second chance.
	users := map[string]bool{}
	for end := time.Now().Add(22 * time.Second); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		var err error
		for range 3 {
			var c struct{ U, P string }
			text, _ := os.ReadFile(out)
			if err = json.Unmarshal(text, &c); err == nil {
				if err = login(ctx, db, c.U, c.P); err == nil {
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
	if len(users) < 2 || len(users) > 8 {
		t.Errorf("%d credentials in 22 s of at most 9 s each", len(users))
	}
	proxy.between(t, "GET database/creds/templated", 2, 8)
	proxy.between(t, "PUT sys/leases/renew", 4, 60)

	check(t, root.Auth().Token().RevokeTree(tok.Auth.ClientToken))
	gone(t, root, db, "database/creds/templated", users)
}

func login(ctx context.Context, db, user, password string) error {
	cfg, err := pgx.ParseConfig(db)
	if err != nil {
		return err
	}
	cfg.User, cfg.Password = user, password
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// gone fails the test unless leases and accounts are soon gone.
func gone(t *testing.T, root *api.Client, db, prefix string, users map[string]bool) {
	t.Helper()
	conn := must[*pgx.Conn](t)(pgx.Connect(t.Context(), db))
	defer conn.Close(t.Context())
	var names []string
	for u := range users {
		names = append(names, u)
	}
	var left int
	var ids []any
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		check(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname = ANY($1)", names).Scan(&left))
		if ids = leases(t, root, prefix); left == 0 && len(ids) == 0 {
			return
		}
	}
	t.Errorf("%d accounts and the leases %v are left", left, ids)
}

// watch runs a LifetimeWatcher until it is done or time is over, and counts its renewals.
func watch(t *testing.T, c *api.Client, in *api.LifetimeWatcherInput, most time.Duration) (renewals int, done bool, err error) {
	t.Helper()
	w := must[*api.LifetimeWatcher](t)(c.NewLifetimeWatcher(in))
	go w.Start()
	defer w.Stop()
	timeout := time.After(most)
	for {
		select {
		case <-w.RenewCh():
			renewals++
		case err := <-w.DoneCh():
			return renewals, true, err
		case <-timeout:
			return renewals, false, nil
		}
	}
}

func watchToken(t *testing.T, address string) {
	proxy := count(t, address)
	tok := child(t, address, &api.TokenCreateRequest{TTL: "3s", ExplicitMaxTTL: "12s"})
	c := client(t, proxy.URL)
	c.SetToken(tok.Auth.ClientToken)
	renewals, done, err := watch(t, c, &api.LifetimeWatcherInput{Secret: tok, Increment: 3}, 20*time.Second)
	if !done || err != nil || renewals < 3 || renewals > 20 {
		t.Errorf("%d renewals, done %v, error %v", renewals, done, err)
	}
	proxy.between(t, "PUT auth/token/renew-self", 3, 20)
}

func watchPeriodic(t *testing.T, address string) {
	proxy := count(t, address)
	tok := child(t, address, &api.TokenCreateRequest{Period: "2s"})
	c := client(t, proxy.URL)
	c.SetToken(tok.Auth.ClientToken)
	renewals, done, err := watch(t, c, &api.LifetimeWatcherInput{Secret: tok}, 15*time.Second)
	if done || renewals < 6 || renewals > 40 {
		t.Errorf("%d renewals, done %v, error %v", renewals, done, err)
	}
	proxy.between(t, "PUT auth/token/renew-self", 6, 40)
}

// watchStatic: a static secret's lease is not renewable, so a watcher only waits until it is time to read again.
func watchStatic(t *testing.T, address string) {
	ctx, root, proxy := t.Context(), client(t, address), count(t, address)
	must[*api.KVSecret](t)(root.KVv2("fast").Put(ctx, "watched", map[string]any{"n": "1"}))
	c := client(t, proxy.URL)
	last := ""
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
		s := must[*api.Secret](t)(c.Logical().ReadWithContext(ctx, "fast/data/watched"))
		last = s.Data["data"].(map[string]any)["n"].(string)
		if last == "1" {
			must[*api.KVSecret](t)(root.KVv2("fast").Put(ctx, "watched", map[string]any{"n": "2"}))
		}
		if renewals, done, err := watch(t, c, &api.LifetimeWatcherInput{Secret: s, RenewBehavior: api.RenewBehaviorIgnoreErrors}, 10*time.Second); !done || renewals > 1 {
			t.Fatalf("%d renewals, done %v, error %v", renewals, done, err)
		}
	}
	if last != "2" {
		t.Errorf("the loop still has %q", last)
	}
	proxy.between(t, "GET fast/data/watched", 5, 20)
	if l := leases(t, root, "fast/data/watched"); len(l) > 2 {
		t.Errorf("%d leases for 2 versions and one reader: %v", len(l), l)
	}
}

func watchDatabase(t *testing.T, address string) {
	root, proxy := client(t, address), count(t, address)
	role(t, root, "watched", "2s", "8s")
	c := client(t, proxy.URL)
	for range 2 {
		s := must[*api.Secret](t)(c.Logical().Read("database/creds/watched"))
		renewals, done, err := watch(t, c, &api.LifetimeWatcherInput{Secret: s, Increment: 2}, 15*time.Second)
		if !done || err != nil || renewals < 2 || renewals > 20 {
			t.Errorf("%d renewals, done %v, error %v", renewals, done, err)
		}
	}
	proxy.between(t, "PUT sys/leases/renew", 4, 40)
}

// watchRevoked: refusals of renewals must end a watcher, not make it loop.
func watchRevoked(t *testing.T, address string) {
	root, proxy := client(t, address), count(t, address)
	role(t, root, "revoked", "4s", "1h")
	c := client(t, proxy.URL)
	s := must[*api.Secret](t)(c.Logical().Read("database/creds/revoked"))
	time.AfterFunc(3*time.Second, func() { _ = root.Sys().Revoke(s.LeaseID) })
	_, done, _ := watch(t, c, &api.LifetimeWatcherInput{Secret: s, Increment: 4}, 20*time.Second)
	if !done {
		t.Error("the watcher of a revoked lease goes on")
	}
	proxy.between(t, "PUT sys/leases/renew", 1, 30)
}
