package drivertest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// wire is a network between a driver and its server, which a test breaks. Its methods are safe for concurrent use.
type wire struct {
	listener net.Listener
	to       string

	mu     sync.Mutex
	held   chan struct{} // closed when the test ends; nil: nothing is held
	counts bool          // left is how many messages of the driver's are delivered yet
	left   int
	cut    bool
	conns  map[net.Conn]bool
}

// newWire is a wire to a server until the test ends.
func newWire(t testing.TB, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, to: to, conns: map[net.Conn]bool{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { w.serve(client) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		w.mu.Lock()
		if w.held != nil {
			close(w.held)
		}
		w.end()
		w.mu.Unlock()
		all.Wait()
	})
	return w
}

func (w *wire) address() string { return w.listener.Addr().String() }

// cutAfter delivers so many more messages of the driver's, and ends all connections then, for good: the last one's answer comes to nobody.
func (w *wire) cutAfter(messages int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.counts, w.left = true, messages; messages == 0 {
		w.end()
	}
}

// wasCut reports whether it came to that.
func (w *wire) wasCut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut
}

// hold delivers nothing of the driver's from now on, nor after the test has ended.
func (w *wire) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = make(chan struct{})
}

// end ends all connections, with mu held.
func (w *wire) end() {
	w.cut = true
	for c := range w.conns {
		_ = c.Close()
	}
}

// join adds a connection to those that end.
func (w *wire) join(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		_ = c.Close()
		return false
	}
	w.conns[c] = true
	return true
}

func (w *wire) leave(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, c)
	_ = c.Close()
}

func (w *wire) serve(client net.Conn) {
	if !w.join(client) {
		return
	}
	defer w.leave(client)
	server, err := net.Dial("tcp", w.to)
	if err != nil || !w.join(server) {
		return
	}
	defer w.leave(server)
	go func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	}()
	message := make([]byte, 64<<10)
	for {
		n, err := client.Read(message)
		if n > 0 && !w.deliver(server, message[:n]) || err != nil {
			return
		}
	}
}

// deliver sends a message on, and reports whether more may follow.
func (w *wire) deliver(server net.Conn, message []byte) bool {
	w.mu.Lock()
	held := w.held
	w.mu.Unlock()
	if held != nil {
		<-held
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return false
	}
	if _, err := server.Write(message); err != nil {
		return false
	}
	if w.left--; w.counts && w.left <= 0 {
		w.end()
	}
	return true
}
