package servertest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience is how long a server may take for what it is told to do.
const patience = 3 * time.Minute

// Daemon is a server in a folder of its own. Its methods are safe for concurrent use.
type Daemon struct {
	Dir  string // its folder, which whoever runs it owns
	Host string // 127.0.0.1
	Log  string // file of what it writes to its output

	kind  Kind
	cred  *syscall.Credential // who runs it; nil: this process's user
	watch *watch

	mu       sync.Mutex
	process  *os.Process
	ended    chan struct{} // closed when process has ended; nil: none was started
	reserved []net.Listener
}

// Open makes a daemon with an empty folder. From now on the end of this process, in whatever way, ends all that runs there, and removes it.
func (k Kind) Open() (*Daemon, error) {
	cred, err := k.unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", k.Starter+"-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	d := &Daemon{Dir: dir, Host: "127.0.0.1", Log: filepath.Join(dir, "log"), kind: k, cred: cred}
	if d.watch, err = watchOver(dir, k.kill()); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := d.Chown(dir); err != nil {
		d.Discard()
		return nil, err
	}
	return d, nil
}

// Begin has fill make what is in the folder, and up start the server. Where up fails it is called again, twice: a program that knows nothing of
// reservations (Port) may have taken a port. What has not begun is discarded.
func (d *Daemon) Begin(fill, up func() error) error {
	err := fill()
	if err == nil {
		for range 3 {
			if err = up(); err == nil {
				return nil
			}
		}
	}
	d.Discard()
	return err
}

// unprivileged is who runs a server that refuses to run as root.
func (k Kind) unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 || k.User == "" {
		return nil, nil
	}
	for _, name := range []string{k.User, "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("running as root, and there is neither a user %s nor nobody to run %s as", k.User, k.Name)
}

// Credential is who runs the server; nil: this process's user.
func (d *Daemon) Credential() *syscall.Credential { return d.cred }

// Chown gives a file or folder to who runs the server.
func (d *Daemon) Chown(path string) error {
	if d.cred == nil {
		return nil
	}
	return os.Chown(path, int(d.cred.Uid), int(d.cred.Gid))
}

// Write writes a file that the server, and nobody else, reads; a relative name is one in its folder.
func (d *Daemon) Write(name string, content []byte) error {
	if !filepath.IsAbs(name) {
		name = filepath.Join(d.Dir, name)
	}
	return errors.Join(os.WriteFile(name, content, 0o600), d.Chown(name))
}

// Append adds to a file that is there.
func (d *Daemon) Append(name, text string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// Command is a program, to be run by who runs the server, in its folder, with little in its environment.
func (d *Daemon) Command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Dir = d.Dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":" + strings.Join(sbin, ":"), "LC_ALL=C", "HOME=" + d.Dir, "TMPDIR=" + d.Dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: d.cred, Setsid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Do runs a command to its end. Its error has what the command said.
func (d *Daemon) Do(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, out)
	}
	return nil
}

// Run starts the server's command, and returns when the server answers: as soon as answers returns nil. It fails if one runs.
func (d *Daemon) Run(cmd *exec.Cmd, answers func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running() {
		return fmt.Errorf("%s is up", d.kind.Name)
	}
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	d.process, d.ended = cmd.Process, ended
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		silence := answers()
		if silence == nil && d.running() {
			return nil
		}
		if !d.running() {
			return fmt.Errorf("%s ended as soon as it was started\n%s", d.kind.Name, d.said())
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("%s does not answer: %w\n%s", d.kind.Name, silence, d.said()), d.kill())
		}
	}
}

// said is the end of the server's log.
func (d *Daemon) said() []byte {
	log, _ := os.ReadFile(d.Log)
	return log[max(0, len(log)-8<<10):]
}

// running reports whether the process that Run started has not ended.
func (d *Daemon) running() bool {
	if d.ended == nil {
		return false
	}
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// Alive reports whether the server's first process is there, be it paused.
func (d *Daemon) Alive() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running()
}

// PID is the server's first process.
func (d *Daemon) PID() (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.running() {
		return 0, fmt.Errorf("%s is down", d.kind.Name)
	}
	return d.process.Pid, nil
}

// Down stops the server in an orderly way, ending its sessions.
func (d *Daemon) Down() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kind.Down == 0 {
		return d.end(syscall.SIGTERM)
	}
	return d.end(d.kind.Down)
}

// Kill ends the server as a crash does, and all that it started.
func (d *Daemon) Kill() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.kill()
}

func (d *Daemon) kill() error {
	if err := d.end(d.kind.kill()); err != nil {
		return err
	}
	return d.sweep(func(pid int) bool { _ = syscall.Kill(pid, syscall.SIGKILL); return false })
}

// kill is the signal.
func (k Kind) kill() syscall.Signal {
	if k.Kill == 0 {
		return syscall.SIGKILL
	}
	return k.Kill
}

func (d *Daemon) end(sig syscall.Signal) error {
	if !d.running() {
		return fmt.Errorf("%s is down", d.kind.Name)
	}
	if err := d.process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.ended:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%s did not end upon %v", d.kind.Name, sig)
	}
}

// Crash ends every process of the server at once, as the end of its machine does. It does nothing to one that is down.
func (d *Daemon) Crash() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.running() {
		return nil
	}
	if err := d.process.Signal(syscall.SIGSTOP); err != nil { // so that it has no more children
		return err
	}
	err := d.sweep(func(pid int) bool { _ = syscall.Kill(pid, syscall.SIGKILL); return false })
	<-d.ended
	return err
}

// Pause stops every process of the server where it is: connections are accepted by the kernel, and nothing answers.
func (d *Daemon) Pause() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.running() {
		return fmt.Errorf("%s is down", d.kind.Name)
	}
	if err := d.process.Signal(syscall.SIGSTOP); err != nil { // first, so that it has no more children
		return err
	}
	return d.sweep(func(pid int) bool {
		if stopped(pid) {
			return true
		}
		_ = syscall.Kill(pid, syscall.SIGSTOP)
		return false
	})
}

// Resume undoes Pause.
func (d *Daemon) Resume() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, pid := range d.processes() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// sweep calls do for each process of the server, until it returns true for all that there are.
func (d *Daemon) sweep(do func(pid int) bool) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		done := true
		for _, pid := range d.processes() {
			done = do(pid) && done
		}
		if done {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of %s do as they like", d.kind.Name)
		}
	}
}

// processes are all that work in the server's folder, or below; those that have ended do not.
func (d *Daemon) processes() (all []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		at, err := os.Readlink(link)
		if err != nil || at != d.Dir && !strings.HasPrefix(at, d.Dir+"/") {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(link, "/")[2]); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// stopped reports whether all threads of a process have stopped, or ended.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, t := range threads {
		stat, err := os.ReadFile(t)
		if _, state, ok := strings.Cut(string(stat), ") "); err == nil && ok && !strings.ContainsAny(state[:1], "TtZX") {
			return false
		}
	}
	return true
}

// Discard ends the server for good, and removes its folder. Again, it does nothing.
func (d *Daemon) Discard() {
	d.watch.end()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended != nil {
		<-d.ended
	}
	for _, l := range d.reserved {
		_ = l.Close()
	}
	d.reserved = nil
}
