//go:build !linux

package server

// Harden does nothing where there is no such protection.
func Harden() error { return nil }

// Shed does nothing where a process cannot start anew.
func Shed() error { return nil }

// Files is how many files the process may have open, as far as is known: the least that systems allow.
func Files() uint64 { return 256 }
