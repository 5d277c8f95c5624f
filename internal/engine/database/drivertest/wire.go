package drivertest

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/lessor-dev/lessor/internal/servertest"
)

// wire is a network between a driver and its server, which a test breaks. Its methods are safe for concurrent use.
type wire struct {
	*servertest.Wire

	mu     sync.Mutex
	held   chan struct{} // closed when the test ends; nil: nothing is held
	counts bool          // left is how many messages of the driver's are delivered yet
	left   int
	cut    bool
}

// newWire is a wire to a server until the test ends.
func newWire(t testing.TB, to string) *wire {
	t.Helper()
	w := &wire{}
	w.Wire = servertest.NewWire(t, to, w.carry)
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.end(); w.held != nil {
			close(w.held)
		}
	})
	return w
}

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
	w.Cut()
}

// carry passes the server's answers on as they come, and the driver's messages as they may.
func (w *wire) carry(client, server net.Conn) {
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
