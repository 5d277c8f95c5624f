package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Command is how a program is told that its file is another: by a command, or a signal.
type Command struct {
	Args    []string // none: no command
	Timeout time.Duration

	Signal  syscall.Signal // 0: no signal
	PIDFile string         // of who gets the signal
	Settle  time.Duration  // how long after the signal the program uses nothing older: it says nothing itself
}

func (c Command) given() bool { return len(c.Args) > 0 || c.Signal != 0 }

// run tells the program, and waits until the command has ended, or until the program that was signalled has settled. What a command has started goes with it if it takes
// too long.
func (c Command) run(ctx context.Context) error {
	if c.Signal != 0 {
		return c.signal(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); name != "LESSOR_TOKEN" && name != "VAULT_TOKEN" {
			cmd.Env = append(cmd.Env, v)
		}
	}
	// What it says may be anything, a secret included: it is nobody's.
	err := cmd.Run()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("the command did not end within %v, and was killed", c.Timeout)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return fmt.Errorf("the command failed: %w", err)
	}
	return nil
}

// signal signals the process whose number is in the file. That there is none is no error: who begins later reads what is new.
func (c Command) signal(ctx context.Context) error {
	text, err := os.ReadFile(c.PIDFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 2 {
		return fmt.Errorf("%s holds no process's number", c.PIDFile)
	}
	err = syscall.Kill(pid, c.Signal)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d could not be signalled: %w", pid, err)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(c.Settle):
		return nil
	}
}
