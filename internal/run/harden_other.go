//go:build !linux

package run

import "syscall"

// Harden keeps secrets out of core dumps, this process's and those of the commands that it runs.
func Harden() error { return syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}) }
