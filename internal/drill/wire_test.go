package drill

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/lessor-dev/lessor/internal/servertest"
)

// wire is what lessor's sessions with a target go over. It can be told to act when something is said.
type wire struct {
	*servertest.Wire

	mu   sync.Mutex
	text []byte      // that is waited for; nil: nothing
	only func() bool // whether this time it counts
	done bool        // act once the target has answered it; else before it arrives
	act  func()
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	w := &wire{}
	w.Wire = servertest.NewWire(t, to, w.carry)
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

// carry passes on what both say, until it is time to act.
func (w *wire) carry(client, server net.Conn) {
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
