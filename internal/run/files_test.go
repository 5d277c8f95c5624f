package run

import (
	"os"
	"os/exec"
	"testing"
)

// What a process left that was killed goes with the next one, but not while its command runs, nor what belongs to processes that live.
func TestFilesOfTheKilledAreSwept(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	command := exec.Command("sleep", "1000")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = command.Process.Kill() }()
	made := func(pid int) *files {
		f := &files{}
		if _, err := f.put(Reference{Path: "secret/data/app"}, "sesame"); err != nil {
			t.Fatal(err)
		}
		if err := f.readBy(pid); err != nil {
			t.Fatal(err)
		}
		return f
	}
	there := func(f *files) bool {
		_, err := os.Stat(f.name(Reference{Path: "secret/data/app"}))
		return err == nil
	}
	killed, alive := made(command.Process.Pid), made(1<<30)
	_ = killed.lock.Close() // as the system does
	last := made(1 << 30)
	if !there(killed) || !there(alive) || !there(last) {
		t.Errorf("of a command that runs: %v; of a process that lives: %v; of the new one: %v", there(killed), there(alive), there(last))
	}
	_ = command.Process.Kill()
	_ = command.Wait()
	next := made(1 << 30)
	if there(killed) || !there(alive) || !there(last) {
		t.Errorf("of what was killed: %v; of processes that live: %v, %v", there(killed), there(alive), there(last))
	}
	for _, f := range []*files{alive, last, next} {
		if err := f.remove(); err != nil || there(f) {
			t.Errorf("%v", err)
		}
	}
}
