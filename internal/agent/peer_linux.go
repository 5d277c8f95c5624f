package agent

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerOf is who is at the other end, as it was when the connection was made, by the kernel's word.
func peerOf(c *net.UnixConn) (uid, gid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var who *unix.Ucred
	failed := raw.Control(func(fd uintptr) { who, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if failed != nil {
		return 0, 0, failed
	}
	if err != nil {
		return 0, 0, err
	}
	return int(who.Uid), int(who.Gid), nil
}
