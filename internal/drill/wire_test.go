package drill

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
)

// wire is what lessor's sessions with a target go over. It can be told to act when something is said.
type wire struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	text  []byte      // that is waited for; nil: nothing
	only  func() bool // whether this time it counts
	done  bool        // act once the target has answered it; else before it arrives
	act   func()
	conns map[net.Conn]bool
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, to: to, conns: map[net.Conn]bool{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { w.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		w.mu.Lock()
		for c := range w.conns {
			_ = c.Close()
		}
		w.mu.Unlock()
		all.Wait()
	})
	return w
}

// when has act called once, as soon as lessor says text, and only, asked while lessor waits, agrees: before that arrives at the target, which it then does not,
// or when the target has done it, whose answer then goes nowhere.
func (w *wire) when(text string, only func() bool, done bool, act func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text, w.only, w.done, w.act = []byte(text), only, done, act
}

// said takes what is waited for if sent has it. Nobody else gets it then.
func (w *wire) said(sent []byte) (act func(), done bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.text == nil || !bytes.Contains(sent, w.text) || !w.only() {
		return nil, false
	}
	w.text = nil
	return w.act, w.done
}

func (w *wire) join(conns ...net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range conns {
		w.conns[c] = true
	}
}

func (w *wire) leave(conns ...net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(w.conns, c)
	}
}

func (w *wire) serve(client net.Conn) {
	server, err := net.Dial("tcp", w.to)
	if err != nil {
		_ = client.Close()
		return
	}
	w.join(client, server)
	defer w.leave(client, server)
	answered := make(chan func(), 1) // what is to be done instead of passing on the next answer
	var both sync.WaitGroup
	both.Go(func() {
		defer client.Close()
		buffer := make([]byte, 1<<16)
		for {
			n, err := server.Read(buffer)
			select {
			case act := <-answered:
				act()
				return
			default:
			}
			if n > 0 {
				if _, err := client.Write(buffer[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	w.forward(client, server, answered)
	_ = server.Close()
	both.Wait()
}

// forward passes on what lessor sends until one of them ends.
func (w *wire) forward(client io.Reader, server io.Writer, answered chan<- func()) {
	buffer := make([]byte, 1<<16)
	for {
		n, err := client.Read(buffer)
		if n > 0 {
			switch act, done := w.said(buffer[:n]); {
			case act != nil && !done:
				act()
				return
			case act != nil:
				answered <- act
			}
			if _, err := server.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
