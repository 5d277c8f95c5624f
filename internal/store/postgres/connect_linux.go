package postgres

import (
	"errors"
	"net"
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

// silent reports whether nothing has arrived on a connection that is not asked anything: no end, and no word that the server is about to.
func silent(conn net.Conn) bool {
	for {
		over, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = over.NetConn()
	}
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Control(func(fd uintptr) { // rather than Read, which would wait for whoever reads: pgx does in the background, now and then, after a slow write
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		quiet = errors.Is(err, unix.EAGAIN)
	})
	return err == nil && quiet
}
