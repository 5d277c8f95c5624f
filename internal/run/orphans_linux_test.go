package run_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lessor-dev/lessor/internal/run"
)

// What the command has started and left is this process's where that is the first one of a container: a new start does not wait for it in vain.
func TestRestartInAContainer(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
	r := start(t, secrets, run.Change{Restart: true}, "sh", "-c", `sleep 1000 & echo "with $PASSWORD"; test "$PASSWORD" = two && { kill $!; exit 7; }; wait`)
	r.await("with one")
	begun := time.Now()
	r.put("two")
	r.await("with two")
	if took := time.Since(begun); took > patience/2 {
		t.Errorf("it took %v, of a grace of %v, though nothing was left", took, patience)
	}
	r.ends(7)
}

// What others have started and left, and what has ended since, does not stay on the system's list: it would be full some day.
func TestOrphansAreCollected(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
	t.Cleanup(run.Inherit())
	stop := filepath.Join(t.TempDir(), "stop")
	r := start(t, secrets, run.Change{Restart: true}, "sh", "-c",
		`for i in 1 2 3; do (setsid sh -c 'echo "left $$"; sleep 0.2' &); done; echo started; while ! test -e "$0"; do sleep 0.05; done`, stop)
	r.await("started")
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		left := strings.Count(r.out.String(), "left ")
		gone := 0
		for line := range strings.Lines(r.out.String()) {
			if pid, ok := strings.CutPrefix(strings.TrimSpace(line), "left "); ok {
				if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
					gone++
				}
			}
		}
		if left == 3 && gone == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d were left, %d are gone", left, gone)
		}
	}
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.ends(0)
}
