package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nobody is the user that servers run as here, where the tests run as root.
const nobody = 65534

// copied is this program where every user can run it; TestMain removes it. It stands for lessor, see TestMain.
var copied = sync.OnceValues(func() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(copies, 0o755); err != nil {
		return "", err
	}
	return filepath.Join(copies, "lessor"), exec.Command("cp", self, filepath.Join(copies, "lessor")).Run()
})

var copies = fmt.Sprintf("/tmp/lessor-process-%d", os.Getpid())

// process is a server in the making.
type process struct {
	*exec.Cmd
	t    *testing.T
	told *net.UnixConn // what it tells the service manager
	dir  string        // its folder, and its user's
}

// started starts lessor as a user without rights, if we may, with core dumps allowed, and waits until it is ready.
func started(t *testing.T, env ...string) *process {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lessor-process-") // the user must be able to get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary, err := copied()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, dir: dir}
	if p.told, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.told.Close() })
	// The shell stands for a service manager that does not mind core dumps.
	p.Cmd = exec.Command("sh", "-c", `ulimit -c unlimited; exec "$0" "$@"`,
		binary, "server", "-data", dir+"/data", "-key-file", dir+"/keys/seal.key", "-listen", "127.0.0.1:0")
	p.Dir = dir
	p.Env = append([]string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "NOTIFY_SOCKET=" + filepath.Join(dir, "notify"), "LESSOR_TEST_AS=lessor"}, env...)
	p.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		p.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		for _, path := range []string{dir, filepath.Join(dir, "notify")} {
			if err := os.Chown(path, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	var log strings.Builder
	p.Stderr = &log
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
		if t.Failed() {
			t.Logf("the server's log:\n%s", &log)
		}
	})
	p.says("READY=1")
	return p
}

// says waits for what the service manager is told next.
func (p *process) says(want string) {
	p.t.Helper()
	_ = p.told.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 1024)
	n, err := p.told.Read(b)
	if got := string(b[:n]); err != nil || got != want {
		p.t.Fatalf("the service manager was told %q, %v; want %q", got, err, want)
	}
}

func (p *process) proc(name string) string { return fmt.Sprintf("/proc/%d/%s", p.Process.Pid, name) }

// sameUser does one thing to a process as the server's own user, in a process of its own.
func (p *process) sameUser(what string, pid int) string {
	p.t.Helper()
	program, err := copied()
	if err != nil {
		p.t.Fatal(err)
	}
	c := exec.Command(program)
	c.Env = []string{"LESSOR_TEST_AS=intruder", "LESSOR_TEST_DOES=" + what, fmt.Sprintf("LESSOR_TEST_PID=%d", pid)}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: p.SysProcAttr.Credential}
	c.Dir = "/"
	out, err := c.CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s as the same user: %v: %s", what, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestMain makes of this program what a test started it as.
func TestMain(m *testing.M) {
	switch os.Getenv("LESSOR_TEST_AS") {
	case "lessor":
		os.Exit(run())
	case "intruder":
		fmt.Println(intrude(os.Getenv("LESSOR_TEST_DOES"), os.Getenv("LESSOR_TEST_PID")))
		return
	}
	code := m.Run()
	_ = os.RemoveAll(copies)
	os.Exit(code)
}

// intrude looks into a process and says what came of it: "allowed" or an error.
func intrude(what, pid string) string {
	verdict := func(err error) string {
		if err != nil {
			return err.Error()
		}
		return "allowed"
	}
	if what != "ptrace" {
		f, err := os.Open("/proc/" + pid + "/" + what)
		if err == nil {
			_ = f.Close()
		}
		return verdict(err)
	}
	runtime.LockOSThread()
	var id int
	if _, err := fmt.Sscan(pid, &id); err != nil {
		return err.Error()
	}
	err := unix.PtraceAttach(id)
	if err == nil {
		_, _ = unix.Wait4(id, nil, 0, nil)
		_ = unix.PtraceDetach(id)
	}
	return verdict(err)
}

// A server's memory is for nobody but root, not even for its own user, and neither are the files that it makes for others.
func TestAServerKeepsItsMemoryToItself(t *testing.T) {
	t.Parallel()
	p := started(t, "LESSOR_TOKEN=hunter2", "VAULT_TOKEN=hunter2")
	control := exec.Command("sleep", "60") // what a process that is not hardened allows
	control.SysProcAttr = &syscall.SysProcAttr{Credential: p.SysProcAttr.Credential}
	if err := control.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = control.Process.Kill(); _ = control.Wait() }()
	for _, what := range []string{"mem", "environ", "maps", "ptrace"} {
		if os.Geteuid() == 0 {
			if got := p.sameUser(what, control.Process.Pid); got != "allowed" {
				t.Logf("%s: nothing can be told from this, as the machine denies it anyway: %s", what, got)
				continue
			}
		}
		if got := p.sameUser(what, p.Process.Pid); !strings.Contains(got, "permission denied") && !strings.Contains(got, "operation not permitted") {
			t.Errorf("%s: %s", what, got)
		}
	}
	limits, err := os.ReadFile(p.proc("limits"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if strings.HasPrefix(line, "Max core file size") && strings.Join(strings.Fields(line)[4:6], " ") != "0 0" {
			t.Error(line)
		}
	}
	status, err := os.ReadFile(p.proc("status"))
	if err != nil || !strings.Contains(string(status), "Umask:\t0077\n") {
		t.Errorf("umask: %v\n%s", err, status)
	}
	if os.Geteuid() == 0 {
		env, err := os.ReadFile(p.proc("environ"))
		if err != nil {
			t.Fatal(err)
		}
		if text := string(env); strings.Contains(text, "hunter2") || !strings.Contains(text, "\x00GOTRACEBACK=none\x00") {
			t.Errorf("environment: %q", env)
		}
	}
	comm, err := os.ReadFile(p.proc("comm"))
	if err != nil || string(comm) != "lessor\n" {
		t.Errorf("the process is called %q, %v", comm, err)
	}
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.says("RELOADING=1")
	p.says("READY=1")
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.says("STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000")
	if err := p.Wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
}

// A crash leaves no core file and prints no memory, even if everything around the server would have it so.
func TestACrashShowsNoMemory(t *testing.T) {
	t.Parallel()
	p := started(t)
	if err := p.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
	log := p.Stderr.(*strings.Builder).String()
	if !strings.Contains(log, "aborted") {
		t.Errorf("the log does not say what happened:\n%s", log)
	}
	for lines := bufio.NewScanner(strings.NewReader(log)); lines.Scan(); {
		if line := lines.Text(); strings.HasPrefix(line, "goroutine ") || strings.HasPrefix(line, "rax ") || strings.Contains(line, "(0x") {
			t.Errorf("the log shows memory: %s", line)
		}
	}

	p = started(t, "GOTRACEBACK=crash") // asks for a core dump
	if err := p.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
	if p.ProcessState.Sys().(syscall.WaitStatus).CoreDump() {
		t.Error("the server left a core dump")
	}
	if cores, _ := filepath.Glob(filepath.Join(p.dir, "core*")); cores != nil {
		t.Errorf("the server left %v", cores)
	}
}
