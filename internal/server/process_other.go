//go:build !linux

package server

// Harden does nothing where there is no such protection.
func Harden() error { return nil }

// Shed does nothing where a process cannot start anew.
func Shed() error { return nil }
