package postgres

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// impatient ends a connection on which something sent is not acknowledged for so long. Keepalives notice only what is idle.
func impatient(raw syscall.RawConn, patience time.Duration) error {
	var err error
	outer := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(patience.Milliseconds()))
	})
	if outer != nil {
		return outer
	}
	return err
}
