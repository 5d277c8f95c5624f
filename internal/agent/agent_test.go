package agent_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/agent"
	"github.com/lessor-dev/lessor/lessortest"
)

// patience is how long a test waits for what must happen.
const patience = time.Minute

// buffer collects what is logged.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// place is a folder with an agent's configuration, over a server with a login for it.
type place struct {
	*testing.T
	*lessortest.Server
	dir     string
	address string // that the agent knows of the server
	log     buffer
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{T: t, Server: lessortest.Start(t), dir: t.TempDir()}
	p.address = p.Server.Address
	p.Policy("app", `path "secret/*" { capabilities = ["read", "list"] }`)
	p.Server.Write("sys/auth/approle", map[string]any{"type": "approle"})
	p.Server.Write("auth/approle/role/app", map[string]any{"token_policies": "app"})
	p.file("role-id", p.Read("auth/approle/role/app/role-id").Data["role_id"].(string))
	p.proof()
	t.Cleanup(func() {
		if log := p.log.String(); strings.Contains(log, "sesame") || strings.Contains(log, "hvs.") {
			t.Errorf("a secret is in the log:\n%s", log)
		} else if t.Failed() {
			t.Logf("the log:\n%s", log)
		}
	})
	return p
}

// proof puts a new secret id into its file.
func (p *place) proof() {
	p.Helper()
	p.file("secret-id", p.Server.Write("auth/approle/role/app/secret-id", nil).Data["secret_id"].(string))
}

// in is a file in the folder.
func (p *place) in(name string) string { return filepath.Join(p.dir, name) }

func (p *place) file(name, text string) {
	p.Helper()
	if err := os.WriteFile(p.in(name), []byte(text), 0o600); err != nil {
		p.Fatal(err)
	}
}

func (p *place) put(name, password string) {
	p.Helper()
	p.Server.Write("secret/data/"+name, map[string]any{"data": map[string]any{"password": password}})
}

// config writes the configuration: how the agent logs in, and more; $D is the folder.
func (p *place) config(more string) {
	p.Helper()
	p.configure(`
auto_auth {
  method "approle" {
    config = {
      role_id_file_path   = "$D/role-id"
      secret_id_file_path = "$D/secret-id"
    }
  }
  sink "file" {
    config = { path = "$D/token" }
  }
}
` + more)
}

// configure writes the configuration, all but where the server is.
func (p *place) configure(text string) {
	p.Helper()
	p.file("agent.hcl", strings.ReplaceAll(`
vault {
  address = "`+p.address+`"
}
status_socket = "$D/status"
`+text, "$D", p.dir))
}

func (p *place) parse() (agent.Config, error) {
	return agent.Parse(func(string) (string, bool) { return "", false }, p.in("agent.hcl"))
}

// running is an agent that runs.
type running struct {
	*place
	reload chan struct{}
	stop   func()
	ended  chan error
}

func (p *place) start(more string) *running {
	p.Helper()
	p.config(more)
	return p.run()
}

// run runs an agent as it is configured.
func (p *place) run() *running {
	p.Helper()
	c, err := p.parse()
	if err != nil {
		p.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{place: p, reload: make(chan struct{}), ended: make(chan error, 1)}
	go func() {
		r.ended <- agent.Run(ctx, c, agent.Options{Log: slog.New(slog.NewTextHandler(&p.log, nil)), Reload: r.reload, Read: p.parse})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-r.ended:
			if err != nil {
				p.Errorf("the agent: %v", err)
			}
		case <-time.After(patience):
			p.Error("the agent does not end")
		}
	})
	p.Cleanup(r.stop)
	return r
}

func (p *place) eventually(what string, holds func() bool) {
	p.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// await waits until a file has a text.
func (p *place) await(name, want string) {
	p.Helper()
	p.eventually(fmt.Sprintf("%s has %q", name, want), func() bool {
		got, err := os.ReadFile(p.in(name))
		return err == nil && string(got) == want
	})
}

// template is how a template of the running agent stands.
func (p *place) template(name string) (t agent.TemplateStatus) {
	s, err := agent.ReadStatus(p.Context(), p.in("status"))
	if err != nil {
		return t
	}
	for _, t := range s.Templates {
		if t.Destination == p.in(name) {
			return t
		}
	}
	return t
}

// holder is what the only holder of a secret may use: "oldest-newest".
func (p *place) holder(name string) string {
	p.Helper()
	holders := p.Read("sys/lessor/holders/secret/" + name).Data["holders"].([]any)
	if len(holders) != 1 {
		return fmt.Sprintf("%d holders", len(holders))
	}
	h := holders[0].(map[string]any)
	return fmt.Sprintf("%v-%v", h["oldest"], h["newest"])
}

const password = `{{ with secret "secret/data/app" }}{{ .Data.data.password }}{{ end }}`

// A file follows its secret, and its program is told; only then the older version is out of use. The login leaves nothing to log in with.
func TestTemplate(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	p.start(`
template {
  contents    = "` + strings.ReplaceAll(password, `"`, `\"`) + ` {{ (secret \"secret/data/app\").Data.metadata.version }}"
  destination = "$D/deep/app"
  perms       = "0640"
  command     = "test ! -e $D/refuse && cat $D/deep/app >>$D/told && echo >>$D/told"
}`)
	p.await("deep/app", "one 1")
	p.await("told", "one 1\n")
	if info, err := os.Stat(p.in("deep/app")); err != nil || info.Mode() != 0o640 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(p.in("secret-id")); !os.IsNotExist(err) {
		t.Errorf("the secret id is there still: %v", err)
	}
	if info, err := os.Stat(p.in("token")); err != nil || info.Mode() != 0o600 {
		t.Errorf("the token's file: %v", err)
	}
	// A program that refuses what is new uses what is old.
	p.file("refuse", "")
	p.put("app", "two")
	p.await("deep/app", "two 2")
	p.eventually("the command fails", func() bool { return p.template("deep/app").State == "failing" })
	if got := p.holder("app"); got != "1-2" {
		t.Errorf("holders while the command fails: %s", got)
	}
	if err := os.Remove(p.in("refuse")); err != nil {
		t.Fatal(err)
	}
	p.await("told", "one 1\ntwo 2\n")
	p.eventually("the older one is out of use", func() bool { return p.holder("app") == "2-2" })
	if left, _ := filepath.Glob(p.in("deep/.*")); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}

// What is wrong with one template is no other's harm, and mended by itself.
func TestTemplatesAreApart(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	p.put("third", "sesame")
	template := func(name, contents, more string) string {
		return "template {\n  contents = <<EOT\n" + contents + "\nEOT\n  destination = \"$D/" + name + "\"\n" + more + "\n}\n"
	}
	p.start(template("good", password, "") +
		template("missing", `{{ with secret "secret/data/later" }}{{ .Data.data.password }}{{ end }}`, "command = \"true\"") +
		template("unknown", `{{ nonsense }}`, "") +
		template("refused", `{{ pkiCert "pki/issue/app" }}`, "") +
		template("field", `{{ with secret "secret/data/app" }}{{ .Data.data.key }}{{ end }}`, "error_on_missing_key = true") +
		template("revealing", `{{ with secret "secret/data/third" }}{{ range .Data.data.password }}{{ end }}{{ end }}`, "") +
		template("denied", `{{ with secret "other/app" }}{{ end }}`, "") +
		template("slow", `{{ with secret "secret/data/third" }}{{ .Data.data.password }}{{ end }}`, "command = \"sleep 1000\"\ncommand_timeout = \"1s\"") +
		template("untold", password, ""))
	p.await("good", "one\n")
	for name, state := range map[string]string{"missing": "waiting", "unknown": "failing", "refused": "failing", "field": "failing", "revealing": "failing", "denied": "waiting", "slow": "failing"} {
		p.eventually(name+" is "+state, func() bool { t := p.template(name); return t.State == state && t.Error != "" })
	}
	if got := p.template("revealing").Error; strings.Contains(got, "sesame") {
		t.Errorf("a secret is told: %s", got)
	}
	p.put("app", "two")
	p.put("later", "three")
	p.await("good", "two\n")
	p.await("missing", "three\n")
	p.Server.Write("secret/data/app", map[string]any{"data": map[string]any{"password": "two", "key": "k"}})
	p.await("field", "k\n")
	p.put("later", "four")
	p.eventually("what is told is out of use", func() bool { return p.holder("later") == "2-2" })
	if got := p.holder("app"); got != "1-3" { // nobody knows what the program of "untold" uses
		t.Errorf("holders: %s", got)
	}
}

// Without a command a file counts as used if that is declared.
func TestAdopts(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	p.start("template {\n  contents = <<EOT\n" + password + "\nEOT\n  destination = \"$D/app\"\n  adopts = true\n}\n")
	p.await("app", "one\n")
	p.put("app", "two")
	p.await("app", "two\n")
	p.eventually("the older one is out of use", func() bool { return p.holder("app") == "2-2" })
}

// Of two templates with the same secret one cannot say for the other that what was before the agent is out of use.
func TestTemplatesShareASecret(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	const both = `state_dir = "$D/state"
template {
  contents = <<EOT
{{ with secret "secret/data/app" }}{{ .Data.data.password }}{{ end }}
EOT
  destination = "$D/quick"
  command = "true"
}
template {
  contents = <<EOT
{{ with secret "secret/data/app" }}{{ .Data.data.password }}{{ end }}
EOT
  destination = "$D/slow"
  command = "test ! -e $D/refuse"
}
template {
  contents = <<EOT
{{ with secret "secret/data/later" }}{{ .Data.data.password }}{{ end }}
EOT
  destination = "$D/later"
  command = "true"
}
exit_retain = true
`
	p.put("later", "one")
	first := p.start(both)
	p.await("slow", "one\n")
	p.eventually("both are current", func() bool { return p.template("slow").State == "current" && p.template("quick").State == "current" })
	first.stop()
	p.file("refuse", "")
	p.put("app", "two")
	p.put("later", "two")
	p.proof()
	p.start(both)
	p.await("quick", "two\n")
	p.await("slow", "two\n")
	p.eventually("one has moved", func() bool { return p.template("quick").State == "current" && p.holder("later") == "2-2" })
	if got := p.holder("app"); got != "1-2" {
		t.Errorf("while the other has not: %s", got)
	}
	if err := os.Remove(p.in("refuse")); err != nil {
		t.Fatal(err)
	}
	p.eventually("both have moved", func() bool { return p.holder("app") == "2-2" })
}

// A template that does not read a secret any more, and never had its program move to it, holds up nobody who has moved.
func TestTemplateThatReadsASecretNoMore(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	p.file("refuse", "")
	p.file("slow.tmpl", `{{ with secret "secret/data/app" }}{{ .Data.data.password }}{{ end }}`)
	p.start(`
template {
  contents    = "{{ with secret \"secret/data/app\" }}{{ .Data.data.password }}{{ end }}"
  destination = "$D/quick"
  command     = "true"
}
template {
  source      = "$D/slow.tmpl"
  destination = "$D/slow"
  command     = "test ! -e $D/refuse"
}`)
	p.eventually("one has moved, the other fails", func() bool { return p.template("quick").State == "current" && p.template("slow").State == "failing" })
	p.put("app", "two")
	p.await("quick", "two")
	p.eventually("one has moved", func() bool { return p.template("quick").State == "current" && p.holder("app") == "1-2" })
	p.file("slow.tmpl", "nothing")
	p.await("slow", "nothing") // else its program might still move to what the template read before
	if err := os.Remove(p.in("refuse")); err != nil {
		t.Fatal(err)
	}
	p.eventually("nobody uses the old value", func() bool { return p.holder("app") == "2-2" })
}

// SIGHUP changes templates, and what others have goes on.
func TestReload(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	p.put("other", "two")
	template := func(name string) string {
		return "template {\n  contents = <<EOT\n{{ with secret \"secret/data/" + name + "\" }}{{ .Data.data.password }}{{ end }}\nEOT\n  destination = \"$D/" + name + "\"\n command = \"true\"\n}\n"
	}
	r := p.start(template("app"))
	p.await("app", "one\n")
	lease := p.Read("sys/lessor/holders/secret/app").Data["holders"].([]any)[0].(map[string]any)["lease_id"]
	p.config(template("app") + template("other"))
	r.reload <- struct{}{}
	p.await("other", "two\n")
	if got := p.Read("sys/lessor/holders/secret/app").Data["holders"].([]any)[0].(map[string]any)["lease_id"]; got != lease {
		t.Error("another lease after the configuration was read again")
	}
	p.config("nonsense = true")
	r.reload <- struct{}{}
	p.put("app", "three")
	p.await("app", "three\n")
	p.config(template("other"))
	r.reload <- struct{}{}
	p.eventually("one template is left", func() bool {
		s, err := agent.ReadStatus(t.Context(), p.in("status"))
		return err == nil && len(s.Templates) == 1
	})
	p.put("other", "four")
	p.await("other", "four\n")
	p.put("app", "five")
	p.put("other", "six")
	p.await("other", "six\n")
	p.await("app", "three\n")
}

// With exit_after_auth it ends once all is written, and leaves the leases.
func TestExitAfterAuth(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	r := p.start("exit_after_auth = true\ntemplate {\n  contents = <<EOT\n" + password + "\nEOT\n  destination = \"$D/app\"\n}\n")
	select {
	case err := <-r.ended:
		r.ended <- err
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	p.await("app", "one\n")
	if got := p.holder("app"); got != "1-1" {
		t.Errorf("holders: %s", got)
	}
	token, err := os.ReadFile(p.in("token"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Client().WithToken(client.NewToken(string(token))).Read(t.Context(), "auth/token/lookup-self", nil); err != nil {
		t.Errorf("the token in the sink: %v", err)
	}
}
