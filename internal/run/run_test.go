package run_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/run"
	"github.com/lessor-dev/lessor/lessortest"
)

const patience = time.Minute

// buffer collects what is written.
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

// running is a command that is run over a server with a secret at secret/data/app.
type running struct {
	*testing.T
	*lessortest.Server
	out, told buffer
	exit      chan run.Exit
}

func start(t *testing.T, variables map[string]string, change run.Change, args ...string) *running {
	t.Helper()
	return startSettling(t, time.Millisecond, variables, change, args...)
}

func startSettling(t *testing.T, settle time.Duration, variables map[string]string, change run.Change, args ...string) *running {
	t.Helper()
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	r := &running{T: t, Server: lessortest.Start(t), exit: make(chan run.Exit, 1)}
	r.Server.Write("sys/mounts/secret/tune", map[string]any{"options": map[string]any{"lease_duration": "2s"}})
	r.put("one")
	session, err := client.Open(t.Context(), r.Client(), nil)
	if err != nil {
		t.Fatal(err)
	}
	e := &run.Environment{}
	if err := e.Inherit(os.Environ()); err != nil {
		t.Fatal(err)
	}
	for name, value := range variables {
		if err := e.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	c := run.Command{
		Args: args, Environment: e, In: strings.NewReader(""), Out: &r.out, Err: &r.out, OnChange: change, Grace: patience, Settle: settle,
		Tell: func(format string, args ...any) { _, _ = fmt.Fprintf(&r.told, format+"\n", args...) },
	}
	go func() {
		exit, err := run.Run(context.Background(), session, c)
		if err != nil {
			t.Errorf("running the command: %v", err)
		}
		r.exit <- exit
	}()
	return r
}

func (r *running) put(password string) {
	r.Helper()
	r.Server.Write("secret/data/app", map[string]any{"data": map[string]any{"password": password}})
}

func (r *running) await(text string) {
	r.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(r.out.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatalf("the command did not say %q within %v, but %q; %s", text, patience, r.out.String(), r.told.String())
		}
	}
}

func (r *running) ends(want run.Exit) {
	r.Helper()
	select {
	case exit := <-r.exit:
		if exit != want {
			r.Errorf("exit code %d, want %d: %s %s", exit, want, r.out.String(), r.told.String())
		}
	case <-time.After(patience):
		r.Fatalf("the command did not end within %v: %s %s", patience, r.out.String(), r.told.String())
	}
	if left, _ := filepath.Glob(os.Getenv("XDG_RUNTIME_DIR") + "/*"); len(left) > 0 {
		r.Errorf("files are left: %v", left)
	}
	if told := r.told.String(); strings.Contains(told, "one") || strings.Contains(told, "two") {
		r.Errorf("a secret was told: %s", told)
	}
}

var secrets = map[string]string{"PASSWORD": "lessor://secret/data/app#password", "PASSWORD_FILE": "lessor://secret/data/app?as=file#password"}

// The command is started anew with what is new, and nothing of the old one is left.
func TestRestart(t *testing.T) {
	r := start(t, secrets, run.Change{Restart: true}, "sh", "-c",
		`sleep 1000 & echo "$PASSWORD $(cat "$PASSWORD_FILE") $(stat -c %a "$PASSWORD_FILE" "$(dirname "$PASSWORD_FILE")" | tr '\n' ' ')"; test "$PASSWORD" = two && { kill $!; exit 7; }; wait`)
	r.await("one one 600 700")
	r.put("two")
	r.await("two two 600 700")
	r.ends(7)
}

// A command that does not end when it is told to is killed.
func TestKill(t *testing.T) {
	r := start(t, secrets, run.Change{Restart: true}, "sh", "-c", `test "$PASSWORD" = two && exit 3; trap "echo ignored" TERM; echo ready; while :; do sleep 0.1; done`)
	r.await("ready")
	// Grace is long: what kills it here is the test.
	r.put("two")
	r.await("ignored")
	if out := r.out.String(); strings.Contains(out, "two") {
		t.Errorf("%s", out)
	}
	for _, pid := range pids(t, "echo ignored") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	r.ends(3)
}

// pids are the processes with a text in their command line.
func pids(t *testing.T, text string) (all []int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range lines {
		if line, err := os.ReadFile(file); err == nil && strings.Contains(string(line), text) {
			var pid int
			_, _ = fmt.Sscanf(file, "/proc/%d/", &pid)
			all = append(all, pid)
		}
	}
	return all
}

// With a signal the command goes on, and finds what is new in its file.
func TestSignal(t *testing.T) {
	r := start(t, secrets, run.Change{Notify: syscall.SIGHUP}, "sh", "-c",
		`trap 'echo "again $PASSWORD $(cat "$PASSWORD_FILE")"; exit 0' HUP; echo "ready $PASSWORD"; while :; do sleep 0.05; done`)
	r.await("ready one")
	r.put("two")
	r.await("again one two")
	r.ends(0)
}

// What a command was not told of it does not use, whatever else changes in its secrets afterwards.
func TestUntoldIsNotAdopted(t *testing.T) {
	for name, change := range map[string]run.Change{"none": {}, "signal": {Notify: syscall.SIGUSR1}} {
		t.Run(name, func(t *testing.T) {
			stop := filepath.Join(t.TempDir(), "stop")
			r := startSettling(t, time.Hour, secrets, change, "sh", "-c",
				`trap : USR1; echo "file $PASSWORD_FILE"; while ! test -e "$0"; do sleep 0.05; done`, stop)
			r.await("\n")
			_, file, _ := strings.Cut(strings.TrimSpace(r.out.String()), "file ")
			holder := func() map[string]any {
				return r.Server.Read("sys/lessor/holders/secret/app").Data["holders"].([]any)[0].(map[string]any)
			}
			holds := func(what string, condition func() bool) {
				t.Helper()
				for deadline := time.Now().Add(patience); !condition(); time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("not within %v: %s; %v", patience, what, holder())
					}
				}
			}
			shows := func(password string) func() bool {
				return func() bool { text, _ := os.ReadFile(file); return string(text) == password }
			}
			r.put("two")
			holds("the file has the second password", shows("two"))
			r.Server.Write("secret/data/app", map[string]any{"data": map[string]any{"password": "two", "note": "what it does not refer to"}})
			holds("it is read again", func() bool { return fmt.Sprint(holder()["newest"]) == "3" })
			for watched := time.Now(); time.Since(watched) < 500*time.Millisecond; time.Sleep(10 * time.Millisecond) { // a defect shows within a moment
				if h := holder(); fmt.Sprint(h["oldest"]) != "1" {
					t.Fatalf("the command was started with version 1, and counts as one that uses nothing older than version %v", h["oldest"])
				}
			}
			if err := os.WriteFile(stop, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			r.ends(0)
		})
	}
}

// A secret that loses what the command needs does not end it.
func TestFieldGoesAway(t *testing.T) {
	r := start(t, secrets, run.Change{Restart: true}, "sh", "-c", `echo "with $PASSWORD"; test "$PASSWORD" = three && exit 0; while :; do sleep 0.05; done`)
	r.await("with one")
	r.Server.Write("secret/data/app", map[string]any{"data": map[string]any{"key": "k"}})
	for deadline := time.Now().Add(patience); !strings.Contains(r.told.String(), "no field password"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody was told")
		}
	}
	r.put("three")
	r.await("with three")
	r.ends(0)
}
