package server

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// Connections bounds how many connections a node has open at once, over all its listeners: what remains of the process's files
// is the store's, which cannot do without. When all are taken, somebody new takes the place of whoever has asked nothing for longest.
type Connections struct {
	slots   chan struct{}
	mu      sync.Mutex
	idle    list.List // of *counted: those between two requests, the longest first
	waiting int       // listeners that wait for a slot
}

// NewConnections allows most connections at once, at least one.
func NewConnections(most int) *Connections {
	return &Connections{slots: make(chan struct{}, max(1, most))}
}

// Most is the number of connections that a process which may open so many files should have: three quarters.
func Most(files uint64) int { return int(min(files, 1<<20) / 4 * 3) }

// Bound returns l, which accepts no more than are allowed: who comes beyond them waits until somebody leaves.
func (c *Connections) Bound(l net.Listener) net.Listener {
	return &bounded{Listener: l, of: c, closed: make(chan struct{})}
}

// Note is the http.Server's ConnState: it tells which connections wait for their next request.
func (c *Connections) Note(conn net.Conn, state http.ConnState) {
	if secured, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = secured.NetConn()
	}
	k, ok := conn.(*counted)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case state != http.StateIdle:
		c.forget(k)
	case c.waiting > 0:
		k.shut = true
		go func() { _ = k.Close() }() // somebody has something to ask
	case k.idle == nil:
		k.idle = c.idle.PushBack(k)
	}
}

// forget takes a connection out of the idle ones; c.mu is held.
func (c *Connections) forget(k *counted) {
	if k.idle != nil {
		c.idle.Remove(k.idle)
		k.idle = nil
	}
}

// take takes a slot, if need be that of the connection that is idle for longest; false: closed came first.
func (c *Connections) take(closed <-chan struct{}) bool {
	select {
	case c.slots <- struct{}{}:
		return true
	default:
	}
	longest := c.wait()
	defer c.waited()
	if longest != nil {
		_ = longest.Close()
	}
	select {
	case c.slots <- struct{}{}:
		return true
	case <-closed:
		return false
	}
}

// wait counts who waits for a slot, and takes the connection that is idle for longest out of service; nil: none is.
func (c *Connections) wait() *counted {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting++
	e := c.idle.Front()
	if e == nil {
		return nil
	}
	k := e.Value.(*counted)
	c.forget(k)
	k.shut = true
	return k
}

func (c *Connections) waited() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting--
}

type bounded struct {
	net.Listener
	of     *Connections
	closed chan struct{}
	once   sync.Once
}

// Accept waits for a connection, then for a slot.
func (b *bounded) Accept() (net.Conn, error) {
	conn, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if !b.of.take(b.closed) {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	return &counted{Conn: conn, of: b.of}, nil
}

// Close ends waiting, too.
func (b *bounded) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

// counted is a connection that gives its slot back.
type counted struct {
	net.Conn
	of   *Connections
	once sync.Once
	idle *list.Element // its place among the idle ones; nil: it is none
	shut bool          // it was idle, and gives its place to somebody else: what still comes is not read
}

// Read ends being idle, before the server sees what came: a request that is begun is answered.
func (k *counted) Read(b []byte) (int, error) {
	n, err := k.Conn.Read(b)
	if n > 0 {
		k.of.mu.Lock()
		defer k.of.mu.Unlock()
		if k.shut {
			return 0, net.ErrClosed
		}
		k.of.forget(k)
	}
	return n, err
}

func (k *counted) Close() error {
	err := k.Conn.Close()
	k.once.Do(func() {
		k.of.mu.Lock()
		k.of.forget(k)
		k.of.mu.Unlock()
		<-k.of.slots
	})
	return err
}
