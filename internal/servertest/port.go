package servertest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// The ports that servers get: below those that the kernel gives to connections (net.ipv4.ip_local_port_range, unless it was changed), so that a server that
// was down finds its port free.
const (
	lowest  = 20000
	highest = 32767
)

// Port is a port of 127.0.0.1 that nobody listens at. It is reserved, among all test processes of the machine, until the daemon is discarded.
func (d *Daemon) Port() (int, error) {
	for range 1000 {
		port := lowest + rand.IntN(highest-lowest+1)
		// A name that the kernel gives to one process of its network at a time, and takes back when that ends.
		reservation, err := net.Listen("unix", fmt.Sprintf("@lessor/servertest/%d", port))
		if err != nil {
			continue
		}
		free, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			_ = reservation.Close()
			continue
		}
		_ = free.Close()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.reserved = append(d.reserved, reservation)
		return port, nil
	}
	return 0, errors.New("no port is free")
}
