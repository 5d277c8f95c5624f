package run

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a command that was started, and, unless it belongs to a terminal, all that it started, which is one group.
type process struct {
	cmd   *exec.Cmd
	group bool
	done  chan struct{} // closed when the command has ended
	exit  Exit          // then
}

// forwarded are the signals that are meant for the command.
var forwarded = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// Foreground reports whether this process belongs to what its terminal listens to, whatever its input and output are: then the command must, too, or it is stopped
// when it asks there for a password.
func Foreground() bool {
	terminal, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return false // there is none
	}
	defer terminal.Close()
	group, err := unix.IoctlGetInt(int(terminal.Fd()), unix.TIOCGPGRP)
	return err == nil && group == syscall.Getpgrp()
}

func begin(c Command, environ []string) (*process, error) {
	p := &process{cmd: exec.Command(c.Args[0], c.Args[1:]...), group: !c.Terminal, done: make(chan struct{})}
	p.cmd.Env, p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = environ, c.In, c.Out, c.Err
	p.cmd.WaitDelay = time.Second // for its output, if what it has started goes on writing
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: p.group}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		err := p.cmd.Wait()
		p.exit = exitOf(p.cmd.ProcessState, err)
		close(p.done)
	}()
	return p, nil
}

func exitOf(state *os.ProcessState, err error) Exit {
	if state == nil {
		return 1
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return Exit(128 + int(status.Signal()))
	}
	if code := state.ExitCode(); code != 0 || err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return Exit(code)
	}
	return 1 // its output could not be passed on
}

// signal sends a signal to the command itself.
func (p *process) signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// forward passes on a signal that this process got. What a terminal sends it sends to the command, too.
func (p *process) forward(sig syscall.Signal) {
	if p.group || sig != syscall.SIGINT && sig != syscall.SIGQUIT {
		p.signal(sig)
	}
}

// stop ends the command, and what it has started: by SIGTERM, and by SIGKILL after grace. Signals that arrive meanwhile are passed on; it returns false if one of
// them says that all is to end.
func (p *process) stop(grace time.Duration, signals <-chan os.Signal) (again bool) {
	again = true
	p.all(syscall.SIGTERM)
	kill := time.After(grace)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	done := p.done
	for {
		select {
		case <-done:
			done = nil
		case <-look.C:
		case sig := <-signals:
			again = again && sig != syscall.SIGTERM && sig != syscall.SIGINT
			p.forward(sig.(syscall.Signal))
		case <-kill:
			p.all(syscall.SIGKILL)
			kill = nil
		}
		// Of what was killed there may be entries left that nobody collects.
		if done == nil && (kill == nil || !p.group || p.empty()) {
			return again
		}
	}
}

// empty reports whether nothing of the group is left, once the command itself has ended. What it has left behind that became this process's, as everything
// does in a container where this is the first, is collected.
func (p *process) empty() bool {
	for {
		if pid, err := syscall.Wait4(-p.cmd.Process.Pid, nil, syscall.WNOHANG, nil); pid <= 0 && err != syscall.EINTR {
			return syscall.Kill(-p.cmd.Process.Pid, 0) != nil
		}
	}
}

func (p *process) all(sig syscall.Signal) {
	if p.group {
		_ = syscall.Kill(-p.cmd.Process.Pid, sig)
		return
	}
	p.signal(sig)
}
