package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/agent"
	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// build builds the binary, once for all tests.
func build(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the binary: left out by -short")
	}
	file, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// programs is the folder of what was built; empty: nothing was.
var programs string

var built = sync.OnceValues(func() (string, error) {
	folder, err := os.MkdirTemp("", "lessor-agent-")
	if err != nil {
		return "", err
	}
	programs = folder
	if err := os.Chmod(folder, 0o755); err != nil { // some run it as somebody else
		return "", err
	}
	build := exec.Command("go", "build", "-o", folder, "github.com/lessor-dev/lessor/cmd/lessor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building the binary: %w\n%s", err, out)
	}
	return filepath.Join(folder, "lessor"), nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if programs != "" {
		_ = os.RemoveAll(programs)
	}
	os.Exit(code)
}

// process is the binary, running as an agent.
type process struct {
	*exec.Cmd
	ended chan struct{}
}

// launch starts the binary as an agent, after what is to be changed about that.
func (p *place) launch(binary string, change ...func(*exec.Cmd)) *process {
	p.Helper()
	r := &process{exec.Command(binary, "agent", "-config="+p.in("agent.hcl")), make(chan struct{})}
	r.Stderr, r.Env = &p.log, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir}
	for _, c := range change {
		c(r.Cmd)
	}
	if err := r.Start(); err != nil {
		p.Fatal(err)
	}
	go func() {
		_ = r.Wait()
		close(r.ended)
	}()
	p.Cleanup(r.kill)
	return r
}

func (r *process) kill() {
	_ = r.Process.Kill()
	<-r.ended
}

// postgres has the server make accounts of a database, and returns what tells whether there is one.
func (p *place) postgres(ttl string) (has func(name string) bool) {
	p.Helper()
	pg := pgtest.Start(p.T)
	database := pg.Database(p.T)
	p.Server.Write("sys/mounts/database", map[string]any{"type": "database"})
	p.Server.Write("database/config/db", map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": pg.URL("{{username}}", "{{password}}", database),
		"username": pgtest.Superuser, "password": pg.Password(), "allowed_roles": "*",
	})
	p.Server.Write("database/roles/app", map[string]any{
		"db_name": "db", "default_ttl": ttl, "max_ttl": "24h",
		"creation_statements": []string{`CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`},
	})
	p.Policy("app", `path "database/creds/app" { capabilities = ["read"] } path "secret/*" { capabilities = ["read", "list"] }`)
	admin := pg.Connect(p.T, database)
	return func(name string) (found bool) {
		if err := admin.QueryRow(p.Context(), "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", name).Scan(&found); err != nil {
			p.Fatal(err)
		}
		return found
	}
}

// promptly is how long may pass from a start of the binary until what was before it is revoked: five seconds, and ten times what the machine, as it is loaded now, needs to start
// the binary at all.
func promptly(t *testing.T, binary string) time.Duration {
	t.Helper()
	begun := time.Now()
	if err := exec.Command(binary, "version").Run(); err != nil {
		t.Fatal(err)
	}
	return 5*time.Second + 10*time.Since(begun)
}

// An agent that was killed leaves credentials that work, its own and those that were read through it with its token; its successor puts others in their place, and has them
// revoked, within five seconds. Who came through with a token of his own keeps what he has.
func TestSuccessorRevokes(t *testing.T) {
	binary := build(t)
	p := newPlace(t)
	has := p.postgres("1h")
	p.config(`
state_dir = "$D/state"
api_proxy {
  use_auto_auth_token = true
}
listener "unix" {
  address = "$D/socket"
}
template {
  contents = <<EOT
{{ with secret "database/creds/app" }}{{ .Data.username }}{{ end }}
EOT
  destination = "$D/user"
  command = "true"
}`)
	user := func() string {
		text, _ := os.ReadFile(p.in("user"))
		return strings.TrimSpace(string(text))
	}
	read := func(token string) string {
		answer, err := p.through("socket", token).Read(t.Context(), "database/creds/app", nil)
		if err != nil {
			t.Fatal(err)
		}
		return answer.Data["username"].(string)
	}
	killed := p.launch(binary)
	p.eventually("there is a credential", func() bool { return user() != "" && has(user()) })
	first, passed, own := user(), read(""), read(p.Token("app").Reveal())
	killed.kill()
	if !has(first) || !has(passed) {
		t.Error("a credential ended with the agent that was killed")
	}
	p.proof()
	bound := promptly(t, binary)
	begun := time.Now()
	p.launch(binary)
	p.eventually("another takes its place", func() bool { return user() != first && has(user()) })
	p.eventually("the first ones are revoked", func() bool { return !has(first) && !has(passed) })
	if took := time.Since(begun); took > bound {
		t.Errorf("revoked %v after the restart, more than %v", took, bound)
	} else {
		t.Logf("revoked within %v of the restart, of %v", took, bound)
	}
	if now := read(""); !has(user()) || !has(own) || !has(now) {
		t.Errorf("what is in force is gone: the file's %t, somebody's own %t, the agent's %t", !has(user()), !has(own), !has(now))
	}
	p.eventually("all is current", func() bool {
		s, err := agent.ReadStatus(context.Background(), p.in("status"))
		return err == nil && s.Current()
	})
	if left, err := os.ReadDir(p.in("state")); err != nil || len(left) != 1 {
		t.Errorf("in the agent's folder: %v, %v", left, err)
	}
	if text, err := os.ReadFile(p.in("state/instance")); err != nil || strings.Contains(string(text), "hvs.") {
		t.Errorf("the instance: %q, %v", text, err)
	}
}

// What the successor is being given while it has all else ended is not lost: if it was ended as well, there is another.
func TestSuccessorKeepsWhatComesLate(t *testing.T) {
	p := newPlace(t)
	has := p.postgres("1h")
	server := p.Client().Forward()
	ended := make(chan struct{})
	var first sync.Once
	end := sync.OnceFunc(func() { close(ended) })
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/database/creds/app" {
			server.ServeHTTP(w, r)
			if strings.HasSuffix(r.URL.Path, "/supersede") {
				end()
			}
			return
		}
		answer := httptest.NewRecorder()
		server.ServeHTTP(answer, r)
		first.Do(func() {
			var made struct{ Data struct{ Username string } }
			if err := json.Unmarshal(answer.Body.Bytes(), &made); err != nil {
				t.Error(err)
			}
			select {
			case <-ended:
			case <-r.Context().Done():
			}
			for r.Context().Err() == nil && has(made.Data.Username) {
				time.Sleep(10 * time.Millisecond)
			}
		})
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	}))
	t.Cleanup(front.Close)
	t.Cleanup(end)
	p.address = front.URL
	p.start(`
instance = "app-1"
template {
  contents    = "{{ with secret \"database/creds/app\" }}{{ .Data.username }}{{ end }}"
  destination = "$D/user"
  command     = "true"
}`)
	p.eventually("the template is current", func() bool { return p.template("user").State == "current" })
	p.eventually("what is in the file is in force", func() bool {
		user, err := os.ReadFile(p.in("user"))
		return err == nil && len(user) > 0 && has(string(user))
	})
}

// What a killed agent had written for, of one path with different data, is given back by its successor as well, all of it.
func TestSuccessorGivesBackWhatWasWrittenFor(t *testing.T) {
	binary := build(t)
	p := newPlace(t)
	branch := ldaptest.Start(t).Branch(t)
	accounts := []string{"ops-1", "ops-2", "ops-3", "ops-4"}
	for _, name := range accounts {
		branch.Person(name, "first")
	}
	p.Server.Write("sys/mounts/ldap", map[string]any{"type": "ldap"})
	p.Server.Write("ldap/config", map[string]any{"url": branch.URL(), "binddn": branch.Manager, "bindpass": ldaptest.ManagerPassword, "userdn": branch.DN})
	p.Server.Write("ldap/library/ops", map[string]any{"service_account_names": strings.Join(accounts, ",")})
	p.Policy("app", `path "ldap/library/ops/check-out" { capabilities = ["update"] }`)
	p.config(`
instance = "app-1"
template {
  contents = <<EOT
{{ with secret "ldap/library/ops/check-out" "ttl=1h" }}{{ .Data.service_account_name }}{{ end }} {{ with secret "ldap/library/ops/check-out" "ttl=2h" }}{{ .Data.service_account_name }}{{ end }}
EOT
  destination = "$D/accounts"
  command = "true"
}`)
	written := func() string {
		text, _ := os.ReadFile(p.in("accounts"))
		return strings.TrimSpace(string(text))
	}
	lent := func() (all []string) {
		status := p.Read("ldap/library/ops/status").Data
		for _, name := range accounts {
			if !status[name].(map[string]any)["available"].(bool) {
				all = append(all, name)
			}
		}
		return all
	}
	killed := p.launch(binary)
	p.eventually("two accounts are lent", func() bool { return len(strings.Fields(written())) == 2 && len(lent()) == 2 })
	first := written()
	killed.kill()
	p.proof()
	p.launch(binary)
	p.eventually("the file has others", func() bool { return written() != first })
	p.eventually("these are lent, and no more", func() bool {
		return slices.Equal(lent(), slices.Sorted(slices.Values(strings.Fields(written()))))
	})
}

// A template whose program does not take the new file does not keep the old credential in force: it is revoked all the same.
func TestSuccessorRevokesThoughAProgramRefuses(t *testing.T) {
	binary := build(t)
	p := newPlace(t)
	has := p.postgres("1h")
	p.config(`
instance = "app-1"
template {
  contents = <<EOT
{{ with secret "database/creds/app" }}{{ .Data.username }}{{ end }}
EOT
  destination = "$D/user"
  command = "test ! -e $D/refuse"
}`)
	user := func() string {
		text, _ := os.ReadFile(p.in("user"))
		return strings.TrimSpace(string(text))
	}
	killed := p.launch(binary)
	p.eventually("there is a credential", func() bool { return user() != "" && has(user()) && p.template("user").State == "current" })
	first := user()
	killed.kill()
	p.file("refuse", "")
	p.proof()
	bound := promptly(t, binary)
	begun := time.Now()
	p.launch(binary)
	p.eventually("it is revoked", func() bool { return !has(first) })
	if took := time.Since(begun); took > bound {
		t.Errorf("revoked %v after the restart, more than %v", took, bound)
	} else {
		t.Logf("revoked within %v of the restart, of %v", took, bound)
	}
}
