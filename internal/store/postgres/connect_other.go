//go:build !linux

package postgres

import (
	"syscall"
	"time"
)

// impatient leaves it to the system when it gives a connection up.
func impatient(syscall.RawConn, time.Duration) error { return nil }
