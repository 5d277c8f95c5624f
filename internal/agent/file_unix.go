//go:build unix

package agent

import (
	"net"
	"os"
	"sync"
	"syscall"
)

func idsOf(info os.FileInfo) (user, group int) {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid), int(s.Gid)
	}
	return -1, -1
}

// listenMasked opens a socket that is the agent's alone from its first moment on.
func listenMasked(file string) (net.Listener, error) {
	masking.Lock()
	defer masking.Unlock()
	before := syscall.Umask(0o177)
	defer syscall.Umask(before)
	return net.Listen("unix", file)
}

// masking is held while the process's mask is another.
var masking sync.Mutex
