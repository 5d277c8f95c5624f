package node

import (
	"net"
	"os"
)

// notify tells systemd, or whatever stands in for it, how the server fares: "READY=1", "RELOADING=1", "STOPPING=1", "STATUS=…"
// (sd_notify(3)). Where nobody listens (NOTIFY_SOCKET is not set) it does nothing.
func (n *Node) notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET") // a name that begins with "@" is in the abstract namespace; package net knows
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		_, err = c.Write([]byte(state))
		_ = c.Close()
	}
	if err != nil {
		n.log.Warn("the service manager could not be told how the server fares", "state", state, "error", err)
	}
}
