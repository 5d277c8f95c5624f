package server

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Harden keeps what is in the process's memory, keys and secrets, to the process: it leaves no core dump, and debuggers and /proc
// show it to root only. Files that it makes are for their owner only. This holds for the whole process and cannot be undone.
//
// Afterwards a process that is not root's can open neither /dev/stdin nor /dev/fd/N, which lead through its /proc.
func Harden() error {
	unix.Umask(0o077)
	return errors.Join(
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
	)
}

// noDump is the environment that makes a panic print its reason, and no word of the stack. The runtime reads it at its start only.
const noDump = "GOTRACEBACK=none"

// Shed starts the program anew as the same process if its environment holds what a server must not keep: then it does not
// return. What it takes out is what Vault's and lessor's clients log in with; what it adds is noDump, unless the operator asked for
// dumps (GOTRACEBACK). An error means that the program goes on as it was.
//
// Of SIGQUIT and SIGABRT the runtime makes a dump of all stacks and of the registers, whatever noDump says; so they end the
// program here. What the runtime's own faults print is out of reach.
func Shed() error {
	lean := shed(os.Environ())
	if slices.Contains(lean, noDump) {
		abort := make(chan os.Signal, 1)
		signal.Notify(abort, unix.SIGQUIT, unix.SIGABRT)
		go func() {
			_, _ = fmt.Fprintf(os.Stderr, "ended by a signal: %s; for a dump of the stacks set GOTRACEBACK=all\n", <-abort)
			os.Exit(2)
		}()
	}
	if slices.Equal(lean, os.Environ()) {
		return nil
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	return unix.Exec(program, os.Args, lean)
}

// shed is Shed's environment.
func shed(env []string) []string {
	lean := slices.DeleteFunc(slices.Clone(env), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return name == "LESSOR_TOKEN" || name == "VAULT_TOKEN"
	})
	if !slices.ContainsFunc(lean, func(variable string) bool { return strings.HasPrefix(variable, "GOTRACEBACK=") }) {
		lean = append(lean, noDump)
	}
	return lean
}

// Files is how many files the process may have open.
func Files() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return l.Cur
}
