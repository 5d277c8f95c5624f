package agent_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/agent"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// build builds the binary.
func build(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the binary: left out by -short")
	}
	file := t.TempDir() + "/lessor"
	if out, err := exec.Command("go", "build", "-o", file, "github.com/lessor-dev/lessor/cmd/lessor").CombinedOutput(); err != nil {
		t.Fatalf("building the binary: %v\n%s", err, out)
	}
	return file
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

// An agent that was killed leaves a credential that works; its successor puts another in its place, and then has it revoked, within five seconds.
func TestSuccessorRevokes(t *testing.T) {
	binary := build(t)
	p := newPlace(t)
	has := p.postgres("1h")
	p.config(`
state_dir = "$D/state"
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
	killed := p.launch(binary)
	p.eventually("there is a credential", func() bool { return user() != "" && has(user()) })
	first := user()
	killed.kill()
	if !has(first) {
		t.Error("the credential ended with the agent that was killed")
	}
	p.proof()
	begun := time.Now()
	p.launch(binary)
	p.eventually("another takes its place", func() bool { return user() != first && has(user()) })
	p.eventually("the first one is revoked", func() bool { return !has(first) })
	t.Logf("revoked within %v of the restart", time.Since(begun))
	if !has(user()) {
		t.Errorf("the one in force is gone")
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
