package run_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/site"
)

var binary = sync.OnceValues(func() (string, error) {
	folder, err := os.MkdirTemp("", "lessor-run-test-")
	if err != nil {
		return "", err
	}
	program = filepath.Join(folder, "lessor")
	build := exec.Command("go", "build", "-o", program, "github.com/lessor-dev/lessor/cmd/lessor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	return program, build.Run()
})

// program is what was built; empty: nothing was.
var program string

func TestMain(m *testing.M) {
	code := m.Run()
	if program != "" {
		_ = os.RemoveAll(filepath.Dir(program))
	}
	os.Exit(code)
}

// What "lessor run" had when it was killed is ended by its next start, where it is told to be there once, and nothing is of those that are one of many.
func TestSuccessor(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary: left out by -short")
	}
	binary, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	s := site.New(t)
	path := s.Dynamic(time.Hour, 24*time.Hour)
	s.Policy("app", `path "`+path+`" { capabilities = ["read"] }`)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(s.Token("app").Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	admin := s.PG.Connect(t, s.Database)
	has := func(user string) (found bool) {
		if err := admin.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", user).Scan(&found); err != nil {
			t.Fatal(err)
		}
		return found
	}
	launch := func(command string, flags ...string) (*exec.Cmd, *buffer) {
		out := &buffer{}
		args := append([]string{"run", "-token-file=" + token, "-env=PGUSER=lessor://" + path + "#username"}, flags...)
		c := exec.Command(binary, append(args, "--", "sh", "-c", command)...)
		c.Env, c.Stdout, c.Stderr = []string{"PATH=" + os.Getenv("PATH"), "LESSOR_ADDR=" + s.Address}, out, out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Signal(syscall.SIGTERM) }) // which it passes on, if it is there still
		return c, out
	}
	var pid int // of the command
	starts := func(out *buffer) (user string) {
		s.Eventually("the command has started", func() bool { return strings.HasSuffix(out.String(), "\n") })
		if _, err := fmt.Sscan(out.String(), &pid, &user); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return user
	}
	const stays = "echo $$ $PGUSER; exec sleep 1000"
	// killed is the user that one had who was killed, with his command.
	killed := func(flags ...string) string {
		c, out := launch(stays, flags...)
		user := starts(out)
		if strings.HasPrefix(strings.Join(flags, ""), "-state-dir=") {
			twice, said := launch("true", flags...)
			if err := twice.Wait(); err == nil || !strings.Contains(said.String(), "another process uses") {
				t.Errorf("while another has its place: %v: %s", err, said)
			}
		}
		_, _ = c.Process.Kill(), syscall.Kill(pid, syscall.SIGKILL)
		_ = c.Wait()
		if !has(user) {
			t.Errorf("with %v: %q ended with who was killed", flags, user)
		}
		return user
	}
	anybody := killed()
	place := "-state-dir=" + filepath.Join(t.TempDir(), "state")
	first := killed(place)
	next, out := launch("true", place)
	if err := next.Wait(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	s.Eventually("what was before one that ended at once is revoked", func() bool { return !has(first) })
	const name = "-instance=app-1"
	second := killed(name)
	next, out = launch(stays, name)
	user := starts(out)
	s.Eventually("what was before one that goes on is revoked", func() bool { return !has(second) })
	if !has(user) {
		t.Errorf("%q, of the successor, is gone", user)
	}
	_ = next.Process.Signal(syscall.SIGTERM)
	_ = next.Wait()
	s.Eventually("what is given back is revoked", func() bool { return !has(user) })
	if !has(anybody) {
		t.Error("what one of many had is gone")
	}
}
