package run_test

import (
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
