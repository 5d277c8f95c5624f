package run

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Harden keeps secrets out of core dumps, this process's and those of the commands that it runs, and this process's memory to root.
func Harden() error {
	return errors.Join(
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
	)
}
