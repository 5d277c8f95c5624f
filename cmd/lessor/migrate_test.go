package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/pgtest"
)

// house is a store that moves between a folder and a PostgreSQL, served and moved by processes of lessor.
type house struct {
	*testing.T
	dir   string
	pg    *pgtest.Server
	token string
}

func newHouse(t *testing.T) *house {
	h := &house{T: t, dir: t.TempDir(), pg: pgtest.Start(t, pgtest.Fsync())}
	h.conf("embedded", fmt.Sprintf("storage \"pebble\" {\n  path = %q\n}", h.dir+"/data"))
	h.conf("postgresql", fmt.Sprintf("storage \"postgresql\" {\n  connection_url = %q\n}", h.pg.URL(pgtest.Superuser, h.pg.Password(), h.pg.Database(t))))
	return h
}

func (h *house) conf(name, storage string) {
	h.Helper()
	text := fmt.Sprintf("%s\nseal \"keyfile\" {\n  path = %q\n}\nlistener \"tcp\" {\n  address = \"127.0.0.1:0\"\n  tls_disable = true\n}\n", storage, h.dir+"/keys/seal.key")
	if err := os.WriteFile(h.file(name), []byte(text), 0o600); err != nil {
		h.Fatal(err)
	}
}

func (h *house) file(name string) string { return filepath.Join(h.dir, name+".hcl") }

func (h *house) command(args ...string) *exec.Cmd {
	h.Helper()
	self, err := os.Executable()
	if err != nil {
		h.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = []string{"HOME=" + h.dir, "PATH=" + os.Getenv("PATH"), "LESSOR_TEST_AS=lessor"}
	return cmd
}

// serve runs a server until f returns.
func (h *house) serve(name string, f func(*tenant)) {
	h.Helper()
	cmd := h.command("server", "-config="+h.file(name))
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			h.Errorf("the server: %v\n%s", err, &log)
		}
	}()
	var banner strings.Builder
	for b := make([]byte, 4096); !strings.Contains(banner.String(), "server started!"); {
		n, err := out.Read(b)
		if err != nil {
			h.Fatalf("the server on %s did not start: %v\n%s", name, err, &log)
		}
		banner.Write(b[:n])
	}
	t := &tenant{house: h}
	for line := range strings.Lines(banner.String()) {
		if address, ok := strings.CutPrefix(line, "Listener Address: "); ok {
			t.address = strings.TrimSpace(address)
		}
		if file, ok := strings.CutPrefix(line, "Bootstrap Token File: "); ok {
			token, err := os.ReadFile(strings.TrimSpace(file))
			if err != nil {
				h.Fatal(err)
			}
			h.token = strings.TrimSpace(string(token))
		}
	}
	f(t)
}

// tenant asks a running server.
type tenant struct {
	*house
	address string
}

func (t *tenant) must(status int, method, path, body string) map[string]any {
	t.Helper()
	request, err := http.NewRequest(method, t.address+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Vault-Token", t.token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	var data map[string]any
	_ = json.NewDecoder(answer.Body).Decode(&data)
	if answer.StatusCode != status {
		t.Fatalf("%s %s: %d %v, want %d", method, path, answer.StatusCode, data, status)
	}
	return data
}

func (t *tenant) value(i int) string {
	return strings.Repeat(string(rune('a'+i%26)), 200<<10) + fmt.Sprint(i)
}

// secrets is how many there are; with their size, some three parts of a move.
const secrets = 60

// move runs the move, killed once in each of its phases, some time after it began, and then to its end.
func (h *house) move(from, to string) {
	h.Helper()
	for _, phase := range []string{"copying", "verifying", ""} {
		cmd := h.command("operator", "migrate", "-from="+h.file(from), "-to="+h.file(to))
		log, err := cmd.StderrPipe()
		if err != nil {
			h.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			h.Fatal(err)
		}
		told, reached := "", false
		for lines := bufio.NewScanner(log); !reached && lines.Scan(); {
			told += lines.Text() + "\n"
			reached = phase != "" && strings.HasPrefix(lines.Text(), phase)
		}
		if reached {
			wait := rand.N(20 * time.Millisecond)
			h.Logf("killed %v after it said %q", wait, phase)
			time.Sleep(wait)
			_ = cmd.Process.Kill()
		}
		err = cmd.Wait()
		if reached != (phase != "") || err != nil && !reached {
			h.Fatalf("reached %q: %v; %v\n%s", phase, reached, err, told)
		}
		if reached && err == nil {
			h.Log("it came to its end before it was killed")
			return
		}
	}
}

// A store moves from a folder to PostgreSQL and back, its mover killed on the way. Tokens, secrets, leases and the audit trail of before go
// on after.
func TestMoveThatIsKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("moves a store twice: left out by -short")
	}
	h := newHouse(t)
	target := h.pg.Connect(t, "")
	has := func(username string) bool {
		var n int
		if err := target.QueryRow(context.Background(), "SELECT count(*) FROM pg_roles WHERE rolname = $1", username).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
	var lease, username string
	h.serve("embedded", func(s *tenant) {
		s.must(204, "POST", "sys/mounts/secret", `{"type":"kv","options":{"version":"2"}}`)
		for i := range secrets {
			s.must(200, "POST", fmt.Sprint("secret/data/", i), fmt.Sprintf(`{"data":{"v":%q}}`, s.value(i)))
		}
		s.must(204, "POST", "sys/mounts/db", `{"type":"database"}`)
		s.must(204, "POST", "db/config/pg", fmt.Sprintf(
			`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":"*","scram_iterations":1}`,
			h.pg.URL("{{username}}", "{{password}}", "postgres"), pgtest.Superuser, h.pg.Password()))
		s.must(204, "POST", "db/roles/app", `{"db_name":"pg","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'"],"default_ttl":"1h"}`)
		made := s.must(200, "GET", "db/creds/app", "")
		lease, username = made["lease_id"].(string), made["data"].(map[string]any)["username"].(string)
	})
	check := func(s *tenant) {
		t.Helper()
		for i := 0; i < secrets; i += 7 {
			data := s.must(200, "GET", fmt.Sprint("secret/data/", i), "")["data"].(map[string]any)["data"].(map[string]any)
			if data["v"] != s.value(i) {
				t.Errorf("secret %d is another", i)
			}
		}
		s.must(200, "PUT", "sys/leases/lookup", fmt.Sprintf(`{"lease_id":%q}`, lease))
		s.must(200, "GET", "sys/lessor/audit/verify", "")
	}
	h.move("embedded", "postgresql")
	h.serve("postgresql", check)
	if err := os.Rename(h.dir+"/data", h.dir+"/data.moved"); err != nil {
		t.Fatal(err)
	}
	h.move("postgresql", "embedded")
	h.serve("embedded", func(s *tenant) {
		check(s)
		if !has(username) {
			t.Error("the account is gone")
		}
		s.must(204, "PUT", "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q,"sync":true}`, lease))
		if has(username) {
			t.Error("the account outlived its lease")
		}
	})
	if out, err := h.command("operator", "verify", "-config="+h.file("embedded")).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := h.command("server", "-config="+h.file("postgresql")).CombinedOutput(); err == nil || !strings.Contains(string(out), "it was moved to pebble") {
		t.Errorf("the source started: %v\n%s", err, out)
	}
	if out, _ := h.command("operator", "migrate", "-from="+h.file("postgresql"), "-to="+h.file("embedded")).CombinedOutput(); strings.Contains(string(out), h.pg.Password()) {
		t.Errorf("the database's password is told:\n%s", out)
	}
}
