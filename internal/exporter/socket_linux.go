package exporter

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsent is the number of bytes that the peer's system has not taken yet.
func unsent(c net.Conn) (n int, err error) {
	err = control(c, func(fd int) (e error) { n, e = unix.IoctlGetInt(fd, unix.TIOCOUTQ); return e })
	return n, err
}

// established is the state of a TCP connection that neither side has ended.
const established = 1

// alive is nil if the connection still stands in both directions, as far as this system knows.
func alive(c net.Conn) error {
	if _, ok := c.(*net.TCPConn); !ok {
		return nil
	}
	var info *unix.TCPInfo
	err := control(c, func(fd int) (e error) {
		info, e = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return e
	})
	if err == nil && info.State != established {
		return errGone
	}
	return err
}

func control(c net.Conn, f func(fd int) error) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
