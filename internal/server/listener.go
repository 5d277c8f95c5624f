package server

import (
	"net"
	"sync"
	"sync/atomic"
)

// Connections bounds how many connections a node has open at once, over all its listeners: what remains of the process's files
// is the store's, which cannot do without.
type Connections struct{ slots chan struct{} }

// NewConnections allows most connections at once, at least one.
func NewConnections(most int) *Connections {
	return &Connections{slots: make(chan struct{}, max(1, most))}
}

// Most is the number of connections that a process which may open so many files should have: three quarters.
func Most(files uint64) int { return int(min(files, 1<<20) / 4 * 3) }

// Bound returns l, which accepts no more than are allowed: who comes beyond them waits until somebody leaves.
func (c *Connections) Bound(l net.Listener) net.Listener {
	return &bounded{Listener: l, slots: c.slots, closed: make(chan struct{})}
}

type bounded struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

// Accept waits for a free slot, then for a connection.
func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.slots <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	conn, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &counted{Conn: conn, slots: b.slots}, nil
}

// Close ends waiting, too.
func (b *bounded) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

// counted is a connection that gives its slot back.
type counted struct {
	net.Conn
	slots chan struct{}
	done  atomic.Bool
}

func (c *counted) Close() error {
	err := c.Conn.Close()
	if !c.done.Swap(true) {
		<-c.slots
	}
	return err
}
