package agent_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/agent"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// station is a server that can be killed, and started again over the same store.
type station struct {
	*place
	binary string
	root   *client.Client
	cmd    *exec.Cmd
}

func newStation(t *testing.T) *station {
	t.Helper()
	s := &station{place: &place{T: t, dir: t.TempDir()}, binary: build(t)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.address = "http://" + at
	s.file("lessor.hcl", fmt.Sprintf("storage \"pebble\" { path = %q }\nseal \"keyfile\" { path = %q }\nlistener \"tcp\" {\n  address = %q\n  tls_disable = true\n}\n",
		s.in("data"), s.in("seal.key"), at))
	t.Cleanup(func() { s.kill() })
	s.up()
	token, err := os.ReadFile(s.in("bootstrap-token"))
	if err != nil {
		t.Fatal(err)
	}
	if s.root, err = client.New(client.Config{Address: s.address, Token: client.NewToken(string(token))}); err != nil {
		t.Fatal(err)
	}
	return s
}

// up starts the server, and waits until it answers.
func (s *station) up() {
	s.Helper()
	log, err := os.OpenFile(s.in("server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	s.cmd = exec.Command(s.binary, "server", "-config", s.in("lessor.hcl"))
	s.cmd.Stderr = log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.eventually("the server answers", func() bool {
		answer, err := http.Get(s.address + "/v1/sys/health?standbyok=true")
		if err != nil {
			return false
		}
		_ = answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
}

func (s *station) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *station) write(path string, data map[string]any) *client.Response {
	s.Helper()
	answer, err := s.root.Write(s.Context(), path, data)
	if err != nil {
		s.Fatal(err)
	}
	return answer
}

// While the server is away what there is stays in use until its lease ends, and no longer: then the template says so, and nothing is answered. When the server is back all goes on by itself.
func TestServersAbsence(t *testing.T) {
	s := newStation(t)
	pg := pgtest.Start(t)
	database := pg.Database(t)
	s.write("sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	s.write("sys/mounts/database", map[string]any{"type": "database"})
	s.write("database/config/db", map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": pg.URL("{{username}}", "{{password}}", database),
		"username": pgtest.Superuser, "password": pg.Password(), "allowed_roles": "*",
	})
	s.write("database/roles/app", map[string]any{
		"db_name": "db", "default_ttl": "4s", "max_ttl": "24h",
		"creation_statements": []string{`CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`},
	})
	s.write("sys/policies/acl/app", map[string]any{"policy": `path "database/creds/app" { capabilities = ["read"] } path "secret/*" { capabilities = ["read"] }`})
	s.write("sys/auth/approle", map[string]any{"type": "approle"})
	s.write("auth/approle/role/app", map[string]any{"token_policies": "app"})
	role, err := s.root.Read(t.Context(), "auth/approle/role/app/role-id", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.file("role-id", role.Data["role_id"].(string))
	s.file("secret-id", s.write("auth/approle/role/app/secret-id", nil).Data["secret_id"].(string))
	put := func(password string) {
		t.Helper()
		s.write("secret/data/app", map[string]any{"data": map[string]any{"password": password}})
	}
	put("one")
	r := s.start(`
instance = "app-1"
cache {
  use_auto_auth_token = true
}
listener "unix" {
  address = "$D/socket"
}
` + follow("app", "static", `command = "true"`) + "template {\n  contents = <<EOT\n{{ with secret \"database/creds/app\" }}{{ .Data.username }}{{ end }}\nEOT\n  destination = \"$D/user\"\n  command = \"true\"\n}\n")
	current := func(name string) func() bool { return func() bool { return s.template(name).State == "current" } }
	s.eventually("all is there", func() bool { return current("static")() && current("user")() })
	read := func(path string) error {
		_, err := s.through("socket", "").Read(t.Context(), path, nil)
		return err
	}
	for _, path := range []string{"secret/data/app", "database/creds/app"} {
		if err := read(path); err != nil {
			t.Fatal(err)
		}
	}
	s.kill()
	user, err := os.ReadFile(s.in("user"))
	if err != nil {
		t.Fatal(err)
	}
	if err := read("secret/data/app"); err != nil {
		t.Errorf("what was read before: %v", err)
	}
	s.eventually("the lease has ended", func() bool {
		one := s.template("user")
		return one.State == "waiting" && strings.Contains(one.Error, "lease has ended")
	})
	s.eventually("no credential is answered whose lease has ended", func() bool { return client.IsStatus(read("database/creds/app"), http.StatusBadGateway) })
	if now, err := os.ReadFile(s.in("user")); err != nil || string(now) != string(user) {
		t.Errorf("the file is another: %v", err)
	}
	// Templates are configured anew: what is there goes on, and what has ended is not written.
	s.config(strings.Replace(follow("app", "static", `command = "true"`), "command", "backup = true\ncommand", 1) +
		"template {\n  contents = <<EOT\n{{ with secret \"database/creds/app\" }}{{ .Data.username }}{{ end }}\nEOT\n  destination = \"$D/later\"\n  command = \"true\"\n}\n")
	r.reload <- struct{}{}
	s.eventually("the new template waits", func() bool { return s.template("later").State == "waiting" && current("static")() })
	s.await("static", "one\n")
	if _, err := os.Stat(s.in("later")); !os.IsNotExist(err) {
		t.Errorf("what has ended was written: %v", err)
	}
	s.up()
	put("two")
	s.await("static", "two\n")
	s.eventually("there is another credential", func() bool {
		text, err := os.ReadFile(s.in("later"))
		return err == nil && string(text) != string(user) && current("later")()
	})
	s.eventually("what is read through is answered", func() bool { return read("database/creds/app") == nil })
	if status, err := agent.ReadStatus(t.Context(), s.in("status")); err != nil || !status.Current() {
		s.eventually("all is current", func() bool {
			status, err := agent.ReadStatus(t.Context(), s.in("status"))
			return err == nil && status.Current()
		})
	}
}

// An agent that is started while the server is away comes up when that does.
func TestAgentBeforeTheServer(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	right := p.address
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = "http://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r := p.start("listener \"unix\" {\n  address = \"$D/socket\"\n}\napi_proxy {\n  use_auto_auth_token = true\n}\n" + follow("app", "app", ""))
	p.eventually("it says why it has no token", func() bool {
		status, err := agent.ReadStatus(t.Context(), p.in("status"))
		return err == nil && !status.LoggedIn && !status.Current() && strings.Contains(status.Error, "no answer from")
	})
	if _, err := p.through("socket", "").Read(t.Context(), "secret/data/app", nil); !client.IsStatus(err, http.StatusBadGateway) {
		t.Errorf("before it has logged in: %v", err)
	}
	if !strings.Contains(p.log.String(), "is tried again") {
		t.Error("it is not told")
	}
	p.address = right
	begun := time.Now()
	r.stop() // in the midst of a pause
	if took := time.Since(begun); took > patience/2 {
		t.Errorf("it took %v to end", took)
	}
}
