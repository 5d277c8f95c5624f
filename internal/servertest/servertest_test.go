package servertest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// shell is a server that has children, one of which left the group of its processes, and answers by a file.
var shell = Kind{Name: "a shell", Starter: "servertest", Debian: "dash"}

const serving = `setsid sleep 1000 & sleep 1000 & trap 'rm -f up; kill %2; exit' TERM; echo secret-looking >&2; touch up; wait`

func begin(t testing.TB) *Daemon {
	t.Helper()
	sh := shell.Programs(t, "sh", "setsid")[0]
	d, err := shell.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Discard)
	if err := d.Begin(func() error { _, err := d.Port(); return err }, func() error { return up(d, sh) }); err != nil {
		t.Fatal(err)
	}
	return d
}

func up(d *Daemon, sh string) error {
	_ = os.Remove(filepath.Join(d.Dir, "up"))
	return d.Run(d.Command(sh, "-c", serving), func() error {
		_, err := os.Stat(filepath.Join(d.Dir, "up"))
		return err
	})
}

func TestServerEndsWithItsProcess(t *testing.T) {
	EndsWithItsProcess(t, begin)
}

// A process that is killed at any moment leaves nothing.
func TestKilledAtAnyMoment(t *testing.T) {
	const told = "LESSOR_SERVERTEST_MOMENT"
	if tell := os.Getenv(told); tell != "" {
		for {
			d, err := shell.Open()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(d.Dir, filepath.Join(tell, filepath.Base(d.Dir))); err != nil {
				t.Fatal(err)
			}
			if err := up(d, "/bin/sh"); err != nil {
				t.Fatal(err)
			}
			if err := d.Pause(); err != nil {
				t.Fatal(err)
			}
		}
	}
	tell := t.TempDir()
	for i := range 6 {
		child := exec.Command(os.Args[0], "-test.run=^TestKilledAtAnyMoment$")
		child.Env = append(os.Environ(), told+"="+tell)
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { all, err := os.ReadDir(tell); return err == nil && len(all) > i })
		time.Sleep(time.Duration(i*i) * time.Millisecond)
		_ = child.Process.Kill()
		_ = child.Wait()
	}
	all, err := os.ReadDir(tell)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		d := &Daemon{Dir: filepath.Join("/tmp", e.Name())}
		eventually(t, func() bool { _, err := os.Stat(d.Dir); return err != nil && len(d.processes()) == 0 })
	}
}

func TestLife(t *testing.T) {
	d := begin(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	count := func() int { return len(d.processes()) }
	eventually(t, func() bool { return count() == 3 })
	if err := up(d, "/bin/sh"); err == nil || !d.Alive() {
		t.Error("it was started twice")
	}
	must(d.Pause())
	for _, pid := range d.processes() {
		if !stopped(pid) {
			t.Errorf("process %d goes on", pid)
		}
	}
	must(d.Resume())
	for _, pid := range d.processes() {
		eventually(t, func() bool { return !stopped(pid) })
	}
	must(d.Kill())
	if count() != 0 || d.Alive() {
		t.Errorf("%d processes outlived a crash", count())
	}
	if _, err := d.PID(); err == nil || d.Down() == nil || d.Kill() == nil || d.Pause() == nil {
		t.Error("it is up after a crash")
	}
	must(up(d, "/bin/sh"))
	must(d.Down())
	if _, err := os.Stat(filepath.Join(d.Dir, "up")); err == nil {
		t.Error("it was not told to end")
	}
	must(up(d, "/bin/sh"))
	must(d.Pause())
	must(d.Crash())
	must(d.Crash())
	if count() != 0 || d.Alive() {
		t.Error("the end of the machine left processes")
	}
	err := d.Run(d.Command("/bin/sh", "-c", "echo why >&2; exit 1"), func() error { return errors.New("silent") })
	if err == nil || !strings.Contains(err.Error(), "ended as soon as it was started") || !strings.Contains(err.Error(), "why") {
		t.Errorf("a server that ends: %v", err)
	}
	must(up(d, "/bin/sh"))
	d.Discard()
	d.Discard()
	if _, err := os.Stat(d.Dir); err == nil || count() != 0 {
		t.Error("something was left behind")
	}
}

// What cannot begin is tried again, and then leaves nothing.
func TestBegin(t *testing.T) {
	d, err := shell.Open()
	if err != nil {
		t.Fatal(err)
	}
	times := 0
	in := errors.New("address already in use")
	if err := d.Begin(func() error { return nil }, func() error { times++; return in }); !errors.Is(err, in) || times != 3 {
		t.Errorf("%v, after %d times", err, times)
	}
	if _, err := os.Stat(d.Dir); err == nil {
		t.Error("the folder was left behind")
	}
}

// No two daemons get the same port, whichever process they are of, nor does a connection; and whoever listens keeps his.
func TestPorts(t *testing.T) {
	d, err := shell.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	var mu sync.Mutex
	given := map[int]bool{}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 500 {
				port, err := d.Port()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if given[port] || port >= 32768 {
					t.Errorf("port %d", port)
				}
				given[port] = true
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for port := range given {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatalf("port %d is not free: %v", port, err)
		}
		_ = l.Close()
		if l, err := net.Listen("unix", fmt.Sprintf("@lessor/servertest/%d", port)); !errors.Is(err, syscall.EADDRINUSE) {
			_ = l.Close()
			t.Fatalf("port %d is not reserved: %v", port, err)
		}
		break
	}
}

// A program that is missing skips a test that may be skipped, and fails others.
func TestMissing(t *testing.T) {
	if os.Getenv("LESSOR_SERVERTEST_MISSING") != "" {
		Kind{Name: "nothing", Starter: "nothingtest", Debian: "nothing-server"}.Programs(t, "sh", "there-is-no-such-program")
	}
	for _, c := range []struct{ ci, short, want string }{
		{"", "-test.short=true", "--- SKIP"}, {"true", "-test.short=true", "--- FAIL"}, {"", "-test.short=false", "--- FAIL"}, {"true", "-test.short=false", "--- FAIL"},
	} {
		child := exec.Command(os.Args[0], "-test.v", "-test.run=^TestMissing$", c.short)
		child.Env = append(os.Environ(), "LESSOR_SERVERTEST_MISSING=yes", "CI="+c.ci)
		out, _ := child.CombinedOutput()
		if !strings.Contains(string(out), c.want) || !strings.Contains(string(out), "there is no there-is-no-such-program (Debian: apt-get install nothing-server)") {
			t.Errorf("CI=%s %s:\n%s", c.ci, c.short, out)
		}
	}
}
