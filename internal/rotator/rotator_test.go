package rotator

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// program is a rotator that is a script of the shell, in a folder of its own.
func program(t *testing.T, text string) (*Caller, *Rotator) {
	t.Helper()
	// What the server does at its start.
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := &Rotator{Type: Exec, Path: filepath.Join(dir, "program")}
	if os.Geteuid() == 0 {
		r.User = "nobody"
	}
	b := []byte("#!/bin/sh\n" + text)
	if err := os.WriteFile(r.Path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	r.Sum = sum[:]
	return &Caller{Directory: dir, SameUser: true}, r
}

func (k *Caller) ask(ctx context.Context, r *Rotator, c Call) (Answer, error) {
	in, err := c.encode()
	if err != nil {
		return Answer{}, err
	}
	return c.answered(k.run(ctx, r, &c, in))
}

// A program is told everything by standard input, and has nothing of lessor's: neither environment nor files, neither user nor rights.
func TestProgramHasNothingOfLessors(t *testing.T) {
	t.Setenv("LESSOR_TEST_SECRET", "hunter2")
	k, r := program(t, `in=$(cat)
case "$in" in *'"step":"create"'*'"token":"t1"'*'"options":{"account":"billing"}'*) ;; *) exit 3;; esac
printf '{"pending":{"env":"%s","uid":"%s","groups":"%s","core":"%s","args":"%s","session":"%s"}}' "$(env | cut -d= -f1 | sort | tr '\n' ' ')" "$(id -u)" "$(id -G)" "$(ulimit -c)" "$*" "$(cut -d' ' -f6 /proc/$$/stat | sed "s/^$$\$/its own/")"`)
	a, err := k.ask(t.Context(), r, Call{Step: Create, Token: "t1", Secret: "secret/app", Options: map[string]string{"account": "billing"}})
	if err != nil {
		t.Fatal(err)
	}
	got := a.Pending.Reveal()
	if strings.Contains(got, "LESSOR") || strings.Contains(got, "HOME") || !strings.Contains(got, `"core":"0"`) || !strings.Contains(got, `"args":""`) || !strings.Contains(got, `"session":"its own"`) {
		t.Errorf("a program saw %s", got)
	}
	if os.Geteuid() == 0 && (strings.Contains(got, `"uid":"0"`) || strings.Contains(got, `"groups":"0`)) {
		t.Errorf("a program runs as root: %s", got)
	}
}

// What a rotator says is taken for what it is, and nothing of it that might be a secret is repeated.
func TestWords(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"crash":    {"cat >/dev/null; echo hunter2 >&2; echo hunter2; exit 7", "exit code 7; it wrote 8 bytes to standard error"},
		"no json":  {"cat >/dev/null; echo hunter2", "did not answer with a JSON object"},
		"failure":  {`cat >/dev/null; echo '{"failure":"denied"}'`, "its target does not let it"},
		"chatter":  {`cat >/dev/null; echo '{"failure":"no: hunter2"}'`, "not repeated here"},
		"nothing":  {`cat >/dev/null; echo '{"pending":{}}'`, `did not answer with "pending"`},
		"flood":    {`cat >/dev/null; head -c 100000 /dev/zero`, "more than 65536 bytes"},
		"no input": {`exit 1`, "exit code 1"},
	} {
		t.Run(name, func(t *testing.T) {
			k, r := program(t, c.text)
			_, err := k.ask(t.Context(), r, Call{Step: Create, Current: lessor.NewSecret(`{"password":"` + strings.Repeat("x", 1<<20) + `"}`)})
			if api.KindOf(err) != api.Upstream || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestVerdict(t *testing.T) {
	k, r := program(t, `case "$(cat)" in *'"expect":"refused"'*) echo '{"verdict":"refused"}';; *) echo '{"verdict":"accepted"}';; esac`)
	for _, refused := range []bool{false, true} {
		a, err := k.ask(t.Context(), r, Call{Step: Test, Refused: refused})
		if err != nil || a.Accepted == refused {
			t.Errorf("%v, %v", a, err)
		}
	}
}

// A program that takes too long is killed with all that it has started.
func TestKilled(t *testing.T) {
	long := lasting(600)
	k, r := program(t, long+" & echo $! >&1; wait")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var call Call
	if _, err := k.run(ctx, r, &call, nil); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Errorf("%v", err)
	}
	gone(t, long)
}

// lasting is a command that lasts for some seconds, and is like none that tests beside this one run.
func lasting(seconds int) string { return fmt.Sprintf("sleep %d.%d", seconds, os.Getpid()) }

// gone fails the test unless the processes of a command, which were killed, are soon gone.
func gone(t *testing.T, command string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		left := running(t, strings.ReplaceAll(command, " ", "\x00")+"\x00")
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %s", left)
		}
	}
}

// running is a process with this command line, if there is one that has not ended.
func running(t *testing.T, line string) string {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if b, _ := os.ReadFile(p); string(b) == line {
			if status, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "status")); !strings.Contains(string(status), "State:\tZ") {
				return p
			}
		}
	}
	return ""
}

// Only the bytes that were registered are run, in the folder that was meant, as whom it was meant.
func TestRefused(t *testing.T) {
	k, r := program(t, "exit 0")
	for want, change := range map[string]func(k *Caller, r *Rotator){
		"its SHA-256 is another":         func(_ *Caller, r *Rotator) { r.Sum = make([]byte, 32) },
		"set rotator_directory":          func(k *Caller, _ *Rotator) { k.Directory = "" },
		"the server's rotator_directory": func(_ *Caller, r *Rotator) { r.Path = "/bin/sh" },
		"must not be root":               func(_ *Caller, r *Rotator) { r.User = "root" },
		"has no user":                    func(_ *Caller, r *Rotator) { r.User = "nobody-of-that-name" },
		"cannot be opened":               func(_ *Caller, r *Rotator) { r.Path += ".gone" },
	} {
		k, r := *k, *r
		change(&k, &r)
		err := k.Ready(&r)
		if err == nil {
			_, err = k.run(t.Context(), &r, &Call{Step: Set}, []byte("{}"))
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	link := r.Path + ".link"
	if err := os.Symlink(r.Path, link); err != nil {
		t.Fatal(err)
	}
	linked := *r
	linked.Path = link
	if _, err := k.run(t.Context(), &linked, &Call{Step: Set}, []byte("{}")); err == nil {
		t.Error("a link was followed")
	}
	if os.Geteuid() == 0 {
		r.User = ""
		if err := k.Ready(r); err == nil || !strings.Contains(err.Error(), "runs as root") {
			t.Errorf("a program would run as root: %v", err)
		}
	} else if k.SameUser = false; k.Ready(r) == nil {
		t.Error("a program would run as lessor, which was not allowed")
	}
}

func TestCheck(t *testing.T) {
	good := Rotator{Type: Exec, Path: "/opt/rotators/x", Sum: make([]byte, 32), Paths: []string{"secret/*"}}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Rotator){
		"type": func(r *Rotator) { r.Type = "script" }, "relative": func(r *Rotator) { r.Path = "x" }, "dots": func(r *Rotator) { r.Path = "/opt/rotators/../x" },
		"sum": func(r *Rotator) { r.Sum = nil }, "timeout": func(r *Rotator) { r.Timeout = time.Hour }, "root": func(r *Rotator) { r.User = "root" },
		"no paths": func(r *Rotator) { r.Paths = nil }, "a slash first": func(r *Rotator) { r.Paths = []string{"/secret/x"} }, "a star within": func(r *Rotator) { r.Paths = []string{"secret/*/x"} },
		"a url": func(r *Rotator) { r.URL = "https://example.org" },
	} {
		bad := good
		if change(&bad); bad.Check() == nil {
			t.Errorf("%s: %s was taken", name, fmt.Sprint(bad))
		}
	}
}

// A rotator is asked only about secrets that it was registered for.
func TestMay(t *testing.T) {
	r := &Rotator{Paths: []string{"secret/billing/*", "kv/+/key"}}
	for secret, want := range map[string]bool{
		"secret/billing/a": true, "secret/billing/a/b": true, "kv/a/key": true, "secret/billing": false, "secret/app": false, "kv/a/b/key": false, "kv/key": false,
	} {
		if err := r.May(secret); (err == nil) != want || err != nil && api.KindOf(err) != api.Invalid {
			t.Errorf("%s: %v", secret, err)
		}
	}
	if (&Rotator{}).May("secret/app") == nil {
		t.Error("a rotator without paths is asked about a secret")
	}
}

// What a program leaves behind in its session ends with it, and does not hold up its answer.
func TestLeftBehind(t *testing.T) {
	long := lasting(601)
	k, r := program(t, `cat >/dev/null; `+long+` & echo '{"verdict":"accepted"}'`)
	if a, err := k.ask(t.Context(), r, Call{Step: Test}); err != nil || !a.Accepted {
		t.Errorf("%v, %v", a, err)
	}
	gone(t, long)
}
