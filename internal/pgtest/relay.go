package pgtest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// Relay is a network between clients and a server that a test breaks. Its methods are safe for concurrent use.
type Relay struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	from  string // what has a connection held that sends it; "": nothing
	cut   bool
	conns map[net.Conn]chan struct{} // of clients: closed when what they send goes on, nil: it does; of servers: nil
}

// NewRelay is a relay to a server until the test ends.
func NewRelay(t testing.TB, s *Server) *Relay {
	t.Helper()
	return RelayTo(t, fmt.Sprintf("%s:%d", s.Host, s.Port))
}

// RelayTo is a relay to any server, by its host and port.
func RelayTo(t testing.TB, address string) *Relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{listener: l, to: address, conns: map[net.Conn]chan struct{}{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.Release()
		r.Cut()
		all.Wait()
	})
	return r
}

// URL leads a URL of the server's through the relay.
func (r *Relay) URL(of string) string {
	return strings.Replace(of, r.to, r.listener.Addr().String(), 1)
}

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

// Cut ends all connections, and refuses new ones until Mend.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = true
	for c := range r.conns {
		_ = c.Close()
	}
}

// Mend ends Cut.
func (r *Relay) Mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = false
}

// join adds a connection to those that Cut ends.
func (r *Relay) join(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cut {
		_ = c.Close()
		return false
	}
	r.conns[c] = nil
	return true
}

func (r *Relay) leave(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	_ = c.Close()
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

func (r *Relay) serve(client net.Conn) {
	if !r.join(client) {
		return
	}
	defer r.leave(client)
	server, err := net.Dial("tcp", r.to)
	if err != nil || !r.join(server) {
		return
	}
	defer r.leave(server)
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
