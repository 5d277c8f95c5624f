package servertest

import (
	"net"
	"sync"
	"testing"
)

// Wire is a network between clients and a server, which a test breaks: what becomes of each connection's bytes its maker says. Its methods are safe for
// concurrent use.
type Wire struct {
	To string // host and port of the server

	listener net.Listener
	mu       sync.Mutex
	cut      bool
	conns    map[net.Conn]bool
}

// NewWire is a wire to a server, by its host and port, until the test ends. carry takes what the two ends of a connection say to each other; when it returns, both
// are closed. It is called for each connection, concurrently, and has to return once they are.
func NewWire(t testing.TB, to string, carry func(client, server net.Conn)) *Wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{To: to, listener: l, conns: map[net.Conn]bool{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { w.serve(client, carry) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		w.Cut()
		all.Wait()
	})
	return w
}

// Address is where clients connect to: host and port.
func (w *Wire) Address() string { return w.listener.Addr().String() }

// Cut ends all connections, and refuses new ones until Mend.
func (w *Wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for c := range w.conns {
		_ = c.Close()
	}
}

// Mend ends Cut.
func (w *Wire) Mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = false
}

// serve has a client's connection carried to the server.
func (w *Wire) serve(client net.Conn, carry func(client, server net.Conn)) {
	if !w.join(client) {
		return
	}
	defer w.leave(client)
	server, err := net.Dial("tcp", w.To)
	if err != nil || !w.join(server) {
		return
	}
	defer w.leave(server)
	carry(client, server)
}

// join adds a connection to those that Cut ends; one that comes while the wire is cut ends at once.
func (w *Wire) join(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		_ = c.Close()
		return false
	}
	w.conns[c] = true
	return true
}

func (w *Wire) leave(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, c)
	_ = c.Close()
}
