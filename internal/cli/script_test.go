package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/lessor-dev/lessor/internal/cli/session"
	"github.com/lessor-dev/lessor/internal/oidctest"
)

const scripts = "testdata/script"

// TestScripts runs the binary against real servers: its own, on loopback ports that are free, with data of their own.
//
// Besides testscript's own commands there are: "server dev" and "server FOLDER" (start one, in memory or with its data
// in FOLDER and its key in FOLDER.key) and "server FILE.hcl" (with a configuration; LESSOR_ADDR and LESSOR_TOKEN lead to it), "halt" (end it in order), "exits N
// COMMAND…" (the exit code must be N), "sign FILE KEY=VALUE…" (puts a token with these claims into FILE, of the OpenID provider at $PROVIDER,
// whose authority is in provider.pem), "grab NAME REGEXP" (what the group of REGEXP matched in the
// last output becomes a variable), "capture NAME" (the last output becomes a variable).
func TestScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary and starts servers: left out by -short")
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "lessor"), "github.com/lessor-dev/lessor/cmd/lessor")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the binary: %v\n%s", err, out)
	}
	provider := oidctest.New(t)
	testscript.Run(t, testscript.Params{
		Dir: scripts,
		Setup: func(env *testscript.Env) error {
			home := filepath.Join(env.WorkDir, "home")
			env.Setenv("HOME", home)
			env.Setenv("BIN", bin)
			env.Setenv("PROVIDER", provider.URL)
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))

			env.Values[running{}] = &running{}
			// Configurations that name a program must name it absolutely.
			for name, text := range map[string]string{
				"shamir.hcl": fmt.Sprintf("seal \"shamir\" {\n  anchor = %q\n}\nstorage \"pebble\" {\n  path = %q\n}\nlistener \"tcp\" {\n  address = \"127.0.0.1:0\"\n  tls_disable = true\n}\n",
					env.WorkDir+"/anchor", env.WorkDir+"/shared"),
				"config.hcl": "token_helper = \"" + env.WorkDir + "/helper\"\n", "config.json": `{"token_helper": "` + env.WorkDir + `/helper"}`,
				"provider.pem": provider.CA,
			} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), []byte(text), 0o600); err != nil {
					return err
				}
			}
			return os.Mkdir(home, 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"server": startServer, "halt": stopServer, "grab": grab, "exits": exits, "capture": capture,
			"sign": func(ts *testscript.TestScript, neg bool, args []string) { sign(ts, provider, neg, args) },
		},
	})
}

// running is the server of a script.
type running struct {
	process *exec.Cmd
	log     *os.File
}

// sign writes a token of the provider's, that is good for an hour.
func sign(ts *testscript.TestScript, p *oidctest.Provider, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: sign FILE KEY=VALUE...")
	}
	claims := map[string]any{"iss": p.URL, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix()}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		claims[key] = value
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(p.Sign(claims)), 0o600))
}

func startServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: server dev|FOLDER|FILE.hcl [FLAG...]")
	}
	flags := []string{"server", "-dev", "-dev-root-token-id=root", "-dev-no-store-token", "-dev-listen-address=127.0.0.1:0"}
	if args[0] != "dev" && !strings.HasSuffix(args[0], ".hcl") {
		data := ts.MkAbs(args[0])
		flags = []string{"server", "-data=" + data, "-key-file=" + data + ".key", "-listen=127.0.0.1:0"}
	}
	if strings.HasSuffix(args[0], ".hcl") {
		flags = []string{"server", "-config=" + ts.MkAbs(args[0])}
	}
	flags = append(flags, args[1:]...)
	server := ts.Value(running{}).(*running)
	log, err := os.CreateTemp(ts.Getenv("WORK"), "server-*.log")
	ts.Check(err)
	server.log = log
	server.process = exec.Command(filepath.Join(ts.Getenv("BIN"), "lessor"), flags...)
	server.process.Env = []string{"HOME=" + ts.Getenv("HOME"), "PATH=" + ts.Getenv("PATH")}
	server.process.Stderr = log
	out, err := server.process.StdoutPipe()
	ts.Check(err)
	ts.Check(server.process.Start())
	ts.Defer(func() { server.stop(ts) })

	type banner struct{ address, tokenFile string }
	ready := make(chan banner, 1)
	go func() {
		var b banner
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if address, ok := strings.CutPrefix(lines.Text(), "Listener Address: "); ok {
				b.address = address
			}
			if file, ok := strings.CutPrefix(lines.Text(), "Bootstrap Token File: "); ok {
				b.tokenFile = file
			}
			if strings.Contains(lines.Text(), "server started!") {
				ready <- b
			}
		}
		close(ready)
		_, _ = io.Copy(io.Discard, out)
	}()
	select {
	case b, ok := <-ready:
		if !ok || b.address == "" {
			ts.Fatalf("the server did not start:\n%s", server.text())
		}
		ts.Setenv("LESSOR_ADDR", b.address)
		switch {
		case args[0] == "dev":
			ts.Setenv("LESSOR_TOKEN", "root")
		case b.tokenFile != "":
			token, err := os.ReadFile(b.tokenFile)
			ts.Check(err)
			ts.Setenv("LESSOR_TOKEN", strings.TrimSpace(string(token)))
		}
	case <-time.After(time.Minute):
		ts.Fatalf("the server did not start within a minute:\n%s", server.text())
	}
}

func (r *running) text() string {
	text, _ := os.ReadFile(r.log.Name())
	return string(text)
}

// stop ends the server in order, and by force if it does not end.
func (r *running) stop(ts *testscript.TestScript) {
	if r.process == nil {
		return
	}
	process := r.process
	r.process = nil
	_ = process.Process.Signal(os.Interrupt)
	force := time.AfterFunc(20*time.Second, func() { _ = process.Process.Kill() })
	defer force.Stop()
	if err := process.Wait(); err != nil {
		ts.Logf("the server ended with %v:\n%s", err, r.text())
	}
	_ = r.log.Close()
}

func stopServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: halt")
	}
	ts.Value(running{}).(*running).stop(ts)
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	if neg || err != nil || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d\n%s%s", code, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func grab(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: grab NAME REGEXP")
	}
	found := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(found) < 2 {
		ts.Fatalf("nothing in the output is %s", args[1])
	}
	ts.Setenv(args[0], found[1])
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: capture NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// Every command that calls something has a script that calls it.
func TestScriptsCoverEveryCommand(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(scripts, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	var text strings.Builder
	for _, file := range files {
		script, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(script)
	}
	// A command line, without flags and their values.
	words := func(line string) string {
		fields := strings.Fields(line)
		i := slices.Index(fields, "lessor")
		if i < 0 {
			return ""
		}
		return strings.Join(slices.DeleteFunc(fields[i:], func(f string) bool { return strings.HasPrefix(f, "-") }), " ") + " "
	}
	called := map[string]bool{}
	for line := range strings.Lines(text.String()) {
		called[words(line)] = true
	}
	var walk func(*cobra.Command)
	walk = func(command *cobra.Command) {
		if command.HasSubCommands() {
			for _, child := range command.Commands() {
				if child.IsAvailableCommand() && child.Name() != "help" && child.Name() != "server" {
					walk(child)
				}
			}
			return
		}
		path := command.CommandPath() + " "
		for line := range called {
			if strings.HasPrefix(line, path) {
				return
			}
		}
		t.Errorf("no script in %s calls %q", scripts, path)
	}
	walk(root(session.New(System{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard, Env: noEnvironment}), all(t)))
}
