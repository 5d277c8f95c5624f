package server

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Harden keeps the process's memory, which holds keys, out of core dumps and away from debuggers of the same user.
// It cannot be undone.
func Harden() error {
	return errors.Join(
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
	)
}
