package pgtest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/lessor-dev/lessor/internal/servertest"
)

// Relay is a network between clients and a server that a test breaks. Its methods are safe for concurrent use.
type Relay struct {
	*servertest.Wire

	mu    sync.Mutex
	from  string                     // what has a connection held that sends it; "": nothing
	conns map[net.Conn]chan struct{} // of clients: closed when what they send goes on, nil: it does
}

// NewRelay is a relay to a server until the test ends.
func NewRelay(t testing.TB, s *Server) *Relay {
	t.Helper()
	return RelayTo(t, fmt.Sprintf("%s:%d", s.Host, s.Port))
}

// RelayTo is a relay to any server, by its host and port.
func RelayTo(t testing.TB, address string) *Relay {
	t.Helper()
	r := &Relay{conns: map[net.Conn]chan struct{}{}}
	r.Wire = servertest.NewWire(t, address, r.carry)
	t.Cleanup(r.Release)
	return r
}

// URL leads a URL of the server's through the relay.
func (r *Relay) URL(of string) string { return strings.Replace(of, r.To, r.Address(), 1) }

// Hold keeps back what clients send from now on over the connections that there are, until Release. What was sent by a client that has
// gone meanwhile is delivered, too.
func (r *Relay) Hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c, held := range r.conns {
		if held == nil {
			r.conns[c] = make(chan struct{})
		}
	}
}

// HoldFrom keeps back what clients send over any connection once text is in it, that and all after, until Release.
func (r *Relay) HoldFrom(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.from = text
}

// Release delivers what was held back.
func (r *Relay) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.from = ""
	for c, held := range r.conns {
		if held != nil {
			close(held)
			r.conns[c] = nil
		}
	}
}

// held is closed when what a client sent may go on; nil: it may.
func (r *Relay) held(client net.Conn, sent []byte) chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns[client] == nil && r.from != "" && bytes.Contains(sent, []byte(r.from)) {
		r.conns[client] = make(chan struct{})
	}
	return r.conns[client]
}

// carry passes on what both say, but for what a client says while it is held.
func (r *Relay) carry(client, server net.Conn) {
	r.mu.Lock()
	r.conns[client] = nil
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, client)
	}()
	go func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	}()
	b := make([]byte, 64<<10)
	for {
		n, err := client.Read(b)
		if held := r.held(client, b[:n]); held != nil {
			<-held
		}
		if _, failed := server.Write(b[:n]); failed != nil || err != nil {
			return
		}
	}
}
