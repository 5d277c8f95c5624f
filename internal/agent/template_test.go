package agent_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/agent"
	"github.com/lessor-dev/lessor/internal/ldaptest"
)

// follow is a template of one secret, with more settings.
func follow(secret, file, more string) string {
	return "template {\n  contents = <<EOT\n{{ with secret \"secret/data/" + secret + "\" }}{{ .Data.data.password }}{{ end }}\nEOT\n  destination = \"$D/" + file + "\"\n" + more + "\n}\n"
}

// A signal is no answer: the version before counts as in use until the program has had its time, and an agent that ends earlier leaves word that it is to be told again.
func TestReloadSettle(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	told := make(chan os.Signal, 10)
	signal.Notify(told, syscall.SIGUSR2)
	defer signal.Stop(told)
	p.start(follow("app", "app", `reload_signal = "USR2"`+"\n"+`reload_pid_file = "$D/pid"`+"\n"+`reload_settle = "1h"`))
	p.eventually("nobody is there to be told", func() bool { return p.template("app").State == "current" && p.holder("app") == "1-1" })
	p.file("pid", strconv.Itoa(os.Getpid())+"\n")
	p.put("app", "two")
	<-told
	for at := time.Now(); time.Since(at) < 500*time.Millisecond; {
		if got := p.holder("app"); got != "1-2" {
			t.Fatalf("the program was signalled only, and uses %s", got)
		}
	}
	if _, err := os.Stat(p.in(".app.untold")); err != nil {
		t.Errorf("an agent that ended now would leave no word of it: %v", err)
	}
}

// A program is told by a signal, at each change and not between; that there is none yet is no failure, and that its number is nonsense is one.
func TestReloadSignal(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	told := make(chan os.Signal, 10)
	signal.Notify(told, syscall.SIGUSR1)
	defer signal.Stop(told)
	p.start(follow("app", "app", `reload_signal = "SIGUSR1"`+"\n"+`reload_pid_file = "$D/pid"`+"\n"+`reload_settle = "1ms"`))
	p.eventually("nobody is there to be told", func() bool { return p.template("app").State == "current" })
	p.file("pid", "nonsense")
	p.put("app", "two")
	p.eventually("there is nobody of that number", func() bool { return p.template("app").State == "failing" })
	if got := p.holder("app"); got != "1-2" {
		t.Errorf("while the program is not told: %s", got)
	}
	p.file("pid", strconv.Itoa(os.Getpid())+"\n")
	p.await("app", "two\n")
	<-told
	p.eventually("it is told", func() bool { return p.template("app").State == "current" && p.holder("app") == "2-2" })
	p.put("app", "three")
	<-told
	p.eventually("it is told again", func() bool { return p.template("app").State == "current" && p.holder("app") == "3-3" })
	if len(told) > 0 {
		t.Errorf("told %d times too often", len(told))
	}
}

// A file has the user, the group and the mode that are asked for from its first moment on, as what it was before has them; what cannot be had is a failure, and no file.
func TestOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("files are given away by root only")
	}
	p := newPlace(t)
	p.put("app", "one")
	p.start(follow("app", "numbers", "user = \"65534\"\ngroup = 65534\nperms = 0440\nbackup = true") +
		follow("app", "nobody", `user = "no-such-user"`) + follow("app", "nogroup", `group = "no-such-group"`))
	of := func(name string) string {
		info, err := os.Stat(p.in(name))
		if err != nil {
			return err.Error()
		}
		stat := info.Sys().(*syscall.Stat_t)
		return fmt.Sprintf("%d:%d %v", stat.Uid, stat.Gid, info.Mode())
	}
	const want = "65534:65534 -r--r-----"
	p.await("numbers", "one\n")
	if got := of("numbers"); got != want {
		t.Errorf("the file is %s", got)
	}
	if _, err := os.Stat(p.in("numbers.bak")); !os.IsNotExist(err) {
		t.Errorf("there is something before the first: %v", err)
	}
	p.put("app", "two")
	p.await("numbers", "two\n")
	p.await("numbers.bak", "one\n")
	for _, name := range []string{"numbers", "numbers.bak"} {
		if got := of(name); got != want {
			t.Errorf("%s is %s", name, got)
		}
	}
	for _, name := range []string{"nobody", "nogroup"} {
		p.eventually(name+" fails", func() bool { return p.template(name).State == "failing" })
		if _, err := os.Stat(p.in(name)); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
	if left, _ := filepath.Glob(p.in(".*")); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}

// Where anybody may write, somebody may have put his own file in the place of the one to come: he is not given the secret. Nor is a file without end read.
func TestPlantedFiles(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("files are given away by root only")
	}
	p := newPlace(t)
	p.put("app", "sesame")
	if err := os.Mkdir(p.in("open"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p.in("open"), 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"open/bare", "open/set", "its"} {
		p.file(name, "")
		if err := os.Chown(p.in(name), 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	p.file("open/moved", "")
	if err := os.Chmod(p.in("open/moved"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.file("endless", "")
	if err := os.Truncate(p.in("endless"), 1<<40); err != nil {
		t.Fatal(err)
	}
	p.start(follow("app", "open/bare", "") + follow("app", "open/moved", "") + follow("app", "open/set", "perms = 0640") + follow("app", "its", "") + follow("app", "endless", ""))
	of := func(name string) string {
		info, err := os.Stat(p.in(name))
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%d %v", info.Sys().(*syscall.Stat_t).Uid, info.Mode())
	}
	for _, name := range []string{"open/bare", "open/moved"} {
		p.eventually("it is refused", func() bool { return p.template(name).State == "failing" })
		p.await(name, "")
	}
	p.await("open/set", "sesame\n")
	if got := of("open/set"); got != "0 -rw-r-----" {
		t.Errorf("where the mode is set: %s", got)
	}
	p.await("its", "sesame\n")
	if got := of("its"); got != "65534 -rw-------" {
		t.Errorf("in a folder that nobody else may write to: %s", got)
	}
	p.eventually("a file without end is refused", func() bool { return strings.Contains(p.template("endless").Error, "64 MiB") })
	for _, name := range []string{"open/bare", "endless"} {
		if err := os.Remove(p.in(name)); err != nil {
			t.Fatal(err)
		}
	}
	p.await("open/bare", "sesame\n")
	if got := of("open/bare"); got != "0 -rw-------" {
		t.Errorf("once it is gone: %s", got)
	}
	p.await("endless", "sesame\n")
}

// A link in the place of a file is not followed, not replaced, and what it leads to not kept as the file of before: who can put one there would choose whose file is overwritten, or have
// one copied that he may not read. Nor does a pipe hold up anything.
func TestLinksAreNotFollowed(t *testing.T) {
	p := newPlace(t)
	p.put("app", "sesame")
	p.file("victim", "as it was")
	if err := os.Symlink(p.in("victim"), p.in("app")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(p.in("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start(follow("app", "app", "backup = true") + follow("app", "pipe", ""))
	for _, name := range []string{"app", "pipe"} {
		p.eventually(name+" fails", func() bool {
			one := p.template(name)
			return one.State == "failing" && strings.Contains(one.Error, "not a plain file")
		})
	}
	p.await("victim", "as it was")
	if _, err := os.Stat(p.in("app.bak")); !os.IsNotExist(err) {
		t.Errorf("what the link leads to was copied: %v", err)
	}
	if err := os.Remove(p.in("app")); err != nil {
		t.Fatal(err)
	}
	p.await("app", "sesame\n")
}

// A command that takes too long goes, and all that it has started with it.
func TestCommandsChildren(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	p.start(follow("app", "app", `command = "sleep 1000 & echo $! >$D/child; wait"`+"\n"+`command_timeout = "1s"`))
	var child int
	p.eventually("the command has a child", func() bool {
		text, err := os.ReadFile(p.in("child"))
		if err != nil {
			return false
		}
		child, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil
	})
	p.eventually("the child is gone", func() bool { return gone(child) })
	p.eventually("that is told", func() bool { return strings.Contains(p.template("app").Error, "was killed") })
}

// gone reports whether a process is over, waited for or not.
func gone(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(text), ") Z ")
}

// What a command says goes nowhere, and it has nobody's token: it may print what it likes.
func TestCommandsSurroundings(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "hvs.of-the-one-who-started-it")
	p := newPlace(t)
	p.put("app", "sesame")
	p.start(follow("app", "app", `command = "env >$D/env; cat $D/app; cat $D/app >&2; exit 1"`))
	p.eventually("it fails", func() bool { return p.template("app").State == "failing" })
	if text, err := os.ReadFile(p.in("env")); err != nil || strings.Contains(string(text), "hvs.") {
		t.Errorf("it has a token: %v", err)
	}
	if got := p.template("app").Error; strings.Contains(got, "sesame") {
		t.Errorf("it is quoted: %s", got)
	}
}

// A secret id in a wrapping is taken out once, and kept for further logins; a wrapping that was made elsewhere, or opened before, is refused.
func TestWrappedSecretID(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	wrap := func(path string) {
		answer, err := p.Client().WithWrapTTL(5*time.Minute).Write(t.Context(), path, map[string]any{"k": "v"})
		if err != nil {
			t.Fatal(err)
		}
		p.file("secret-id", answer.WrapInfo.Token)
	}
	wrap("sys/wrapping/wrap")
	p.configure(`
auto_auth {
  method "approle" {
    config = {
      role_id_file_path                = "$D/role-id"
      secret_id_file_path              = "$D/secret-id"
      secret_id_response_wrapping_path = "auth/approle/role/app/secret-id"
    }
  }
  sink "file" {
    config = { path = "$D/token" }
  }
}
` + follow("app", "app", ""))
	p.run()
	p.eventually("what somebody else has wrapped is refused", func() bool { return strings.Contains(p.log.String(), "put another in its place") })
	wrap("auth/approle/role/app/secret-id")
	p.await("app", "one\n")
	if _, err := os.Stat(p.in("secret-id")); !os.IsNotExist(err) {
		t.Errorf("the wrapping is there still: %v", err)
	}
	first, err := os.ReadFile(p.in("token"))
	if err != nil {
		t.Fatal(err)
	}
	p.Server.Write("auth/token/revoke", map[string]any{"token": string(first)})
	p.put("app", "two") // which the token cannot read any more
	p.await("app", "two\n")
	if second, err := os.ReadFile(p.in("token")); err != nil || string(second) == string(first) {
		t.Errorf("the sink has the token of before: %v", err)
	}
}

// Sinks get each token, with their mode, and one that cannot be written harms no other.
func TestSinks(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	if err := os.Mkdir(p.in("folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.configure(`
auto_auth {
  method "approle" {
    config = {
      role_id_file_path   = "$D/role-id"
      secret_id_file_path = "$D/secret-id"
    }
  }
  sink "file" {
    config = { path = "$D/folder" }
  }
  sink "file" {
    config = { path = "$D/plain" }
  }
  sink "file" {
    config = {
      path = "$D/shared"
      mode = 0640
    }
  }
}
` + follow("app", "app", ""))
	p.run()
	p.await("app", "one\n")
	for name, mode := range map[string]os.FileMode{"plain": 0o600, "shared": 0o640} {
		info, err := os.Stat(p.in(name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
			continue
		}
		text, err := os.ReadFile(p.in(name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Client().WithToken(client.NewToken(string(text))).Read(t.Context(), "auth/token/lookup-self", nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !strings.Contains(p.log.String(), "the token could not be written") {
		t.Error("a sink that cannot be written is not told")
	}
}

// While one template has no secret, one a program that is dead, and one a function that fails, the others go on following what changes, again and again.
func TestGoodTemplatesGoOn(t *testing.T) {
	p := newPlace(t)
	p.put("app", "0")
	if err := os.Mkdir(p.in("taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.start(follow("app", "good", `command = "cat $D/good >>$D/told"`) +
		follow("missing", "missing", "") +
		follow("app", "dead", "command = \"sleep 1000\"\ncommand_timeout = \"10m\"") +
		follow("app", "taken", "") +
		"template {\n  contents = <<EOT\n{{ with secret \"secret/data/app\" }}{{ parseJSON .Data.data.password }}{{ range .Data.data.password }}{{ end }}{{ end }}\nEOT\n  destination = \"$D/broken\"\n}\n")
	told := ""
	for n := range 5 {
		p.put("app", strconv.Itoa(n))
		p.await("good", strconv.Itoa(n)+"\n")
		told += strconv.Itoa(n) + "\n"
		p.eventually("it is told", func() bool {
			text, err := os.ReadFile(p.in("told"))
			return err == nil && strings.HasSuffix(string(text), strconv.Itoa(n)+"\n")
		})
	}
	for name, state := range map[string]string{"missing": "waiting", "taken": "failing", "broken": "failing", "dead": "waiting", "good": "current"} {
		p.eventually(name+" is "+state, func() bool { return p.template(name).State == state })
	}
}

// A secret is found where the API has it, whichever way its path is written; a version that is asked for stays; names are listed either way.
func TestPathsOfVersion2(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	p.put("app", "two")
	p.start("template {\n  contents = <<EOT\n" +
		`{{ with secret "secret/app" }}{{ .Data.data.password }}{{ end }} {{ with secret "secret/app?version=1" }}{{ .Data.data.password }}{{ end }} {{ secrets "secret" }} {{ secrets "secret/metadata/" }}` +
		"\nEOT\n  destination = \"$D/app\"\n}\n" +
		"template {\n  contents = <<EOT\n{{ secret \"secret/app?list=true\" }}\nEOT\n  destination = \"$D/other\"\n}\n")
	p.await("app", "two one [app] [app]\n")
	p.put("app", "three")
	p.await("app", "three one [app] [app]\n")
	p.eventually("anything else is refused", func() bool { return strings.Contains(p.template("other").Error, "only version=NUMBER") })
}

// What is written to get a secret is written once, and what it gave is kept, and given back.
func TestSecretsThatAreWrittenFor(t *testing.T) {
	p := newPlace(t)
	branch := ldaptest.Start(t).Branch(t)
	branch.Person("ops-1", "first")
	p.Server.Write("sys/mounts/ldap", map[string]any{"type": "ldap"})
	p.Server.Write("ldap/config", map[string]any{"url": branch.URL(), "binddn": branch.Manager, "bindpass": ldaptest.ManagerPassword, "userdn": branch.DN})
	p.Server.Write("ldap/library/ops", map[string]any{"service_account_names": "ops-1"})
	p.Policy("app", `path "ldap/library/ops/check-out" { capabilities = ["update"] } path "sys/tools/hash" { capabilities = ["update"] } path "secret/*" { capabilities = ["read"] }`)
	p.put("app", "one")
	p.put("third", "sesame")
	out := func() bool {
		return !p.Read("ldap/library/ops/status").Data["ops-1"].(map[string]any)["available"].(bool)
	}
	r := p.start("template {\n  contents = <<EOT\n" +
		`{{ with secret "ldap/library/ops/check-out" "ttl=1h" }}{{ .Data.service_account_name }}{{ end }} {{ with secret "secret/data/app" }}{{ .Data.data.password }}{{ end }}` +
		` {{ with secret "sys/tools/hash" "input=YQ==" "algorithm=sha2-256" }}{{ .Data.sum }}{{ end }}` +
		"\nEOT\n  destination = \"$D/app\"\n  command = \"true\"\n}\n" +
		"template {\n  contents = <<EOT\n{{ with secret \"secret/data/third\" }}{{ secret \"ldap/library/ops/check-out\" .Data.data.password }}{{ end }}\nEOT\n  destination = \"$D/wrong\"\n}\n")
	const sum = " ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb\n"
	p.await("app", "ops-1 one"+sum)
	if !out() {
		t.Error("the account is not lent")
	}
	p.put("app", "two") // the template is rendered anew, with the same account
	p.await("app", "ops-1 two"+sum)
	p.eventually("what is no data is refused", func() bool { return strings.Contains(p.template("wrong").Error, "name=value") })
	if got := p.template("wrong").Error; strings.Contains(got, "sesame") {
		t.Errorf("what was to be written is told: %s", got)
	}
	r.stop()
	p.eventually("the account is given back", func() bool { return !out() })
}

// A mark beside a file, which an agent left that died before its program was told, has the program told, though the file is as it should be.
func TestUntold(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	p.file("app", "one\n")
	p.file(".app.untold", "")
	p.start(follow("app", "app", `command = "echo told >>$D/told"`))
	p.await("told", "told\n")
	p.eventually("the mark is gone", func() bool {
		_, err := os.Stat(p.in(".app.untold"))
		return os.IsNotExist(err)
	})
}

// A configuration in pieces, files or folders of them, is one; the agent ends as it is told: with 0 when it is asked to, and with an error for what trying again does not change.
func TestCommand(t *testing.T) {
	binary := build(t)
	p := newPlace(t)
	p.put("app", "one")
	p.config("")
	if err := os.Mkdir(p.in("more"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.file("more/app.hcl", strings.ReplaceAll(follow("app", "app", ""), "$D", p.dir))
	p.file("more/pid.json", `{"pid_file": "`+p.in("pid")+`"}`)
	p.file("more/notes.txt", "nothing of a configuration")
	agent := p.launch(binary, func(c *exec.Cmd) { c.Args = append(c.Args, "-config="+p.in("more")) })
	p.await("app", "one\n")
	p.await("pid", strconv.Itoa(agent.Process.Pid)+"\n")
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-agent.ended
	if code := agent.ProcessState.ExitCode(); code != 0 {
		t.Errorf("told to end, it ends with %d", code)
	}
	if _, err := os.Stat(p.in("pid")); !os.IsNotExist(err) {
		t.Errorf("its number is there still: %v", err)
	}
	once := p.launch(binary, func(c *exec.Cmd) { c.Args = append(c.Args, "-exit-after-auth") }, func(*exec.Cmd) { p.proof() })
	<-once.ended
	if code := once.ProcessState.ExitCode(); code != 0 {
		t.Errorf("once it has logged in, it ends with %d", code)
	}
	p.config("nonsense = true")
	wrong := p.launch(binary)
	<-wrong.ended
	if code := wrong.ProcessState.ExitCode(); code != 1 {
		t.Errorf("a wrong configuration: %d", code)
	}
}

// What a file is made of no more is given back, though its template goes on: at once, or, if it is still being made, once it is there.
func TestWhatIsReadNoMore(t *testing.T) {
	p := newPlace(t)
	has := p.postgres("1h")
	server := p.Client().Forward()
	late, hold := make(chan string, 1), make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/database/creds/app" || r.Header.Get("X-Lessor-Instance") == "" {
			server.ServeHTTP(w, r)
			return
		}
		answer := httptest.NewRecorder()
		server.ServeHTTP(answer, r)
		var made struct{ Data struct{ Username string } }
		if err := json.Unmarshal(answer.Body.Bytes(), &made); err != nil {
			t.Error(err)
		}
		late <- made.Data.Username
		<-hold
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	}))
	t.Cleanup(front.Close)
	p.address = front.URL
	p.put("app", "database")
	p.start(`
template {
  contents = "{{ with secret \"secret/data/app\" }}{{ if eq .Data.data.password \"database\" }}{{ with secret \"database/creds/app\" }}{{ .Data.username }}{{ end }}{{ else }}nothing{{ end }}{{ end }}"
  destination = "$D/app"
  command     = "true"
}`)
	made := <-late
	p.put("app", "nothing")
	p.await("app", "nothing")
	if !has(made) {
		t.Fatal("there is no credential")
	}
	close(hold)
	p.eventually("what came too late is given back", func() bool { return !has(made) })
	p.put("app", "database")
	made = <-late
	p.await("app", made)
	p.put("app", "nothing")
	p.await("app", "nothing")
	p.eventually("what is read no more is given back", func() bool { return !has(made) })
}

// What was to be written at a path is not repeated where it cannot be.
func TestQueriesAreNotRepeated(t *testing.T) {
	if got, err := agent.Render(`{{ with "sesame" }}{{ secret "a" . }}{{ end }}`); err == nil || strings.Contains(err.Error(), "sesame") {
		t.Errorf("%q, %v", got, err)
	}
}
