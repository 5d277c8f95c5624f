package torture

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// manner is how a link treats what passes through it.
type manner int

const (
	open     manner = iota
	cut             // connections are reset, new ones too
	hole            // nothing passes, in either direction, and nobody is told; what was sent arrives when the link is open again
	halfOpen        // what is asked arrives, answers do not
	slow            // everything is late
)

// link is a TCP proxy between two parts of the system.
type link struct {
	name     string
	listener net.Listener
	target   atomic.Value // string; where it leads

	mu      sync.Mutex
	manner  manner
	delay   time.Duration
	changed chan struct{} // closed when manner changes
	pipes   map[*pipe]struct{}
}

type pipe struct{ from, to *net.TCPConn }

func newLink(name, target string) (*link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &link{name: name, listener: l, changed: make(chan struct{}), pipes: map[*pipe]struct{}{}}
	k.target.Store(target)
	go k.accept()
	return k, nil
}

func (k *link) port() int { return k.listener.Addr().(*net.TCPAddr).Port }

func (k *link) address() string { return k.listener.Addr().String() }

// set changes how the link treats what passes.
func (k *link) set(m manner, delay time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.manner, k.delay = m, delay
	close(k.changed)
	k.changed = make(chan struct{})
	if m == cut {
		k.reset()
	}
}

// lead makes the link lead elsewhere. Connections that there are end.
func (k *link) lead(target string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.target.Store(target)
	k.reset()
}

func (k *link) reset() {
	for p := range k.pipes {
		_ = p.from.SetLinger(0)
		_ = p.to.SetLinger(0)
		_ = p.from.Close()
		_ = p.to.Close()
	}
}

func (k *link) close() {
	_ = k.listener.Close()
	k.set(cut, 0)
}

func (k *link) accept() {
	for {
		c, err := k.listener.Accept()
		if err != nil {
			return
		}
		go k.carry(c.(*net.TCPConn))
	}
}

func (k *link) carry(from *net.TCPConn) {
	if !k.pass(false) {
		_ = from.SetLinger(0)
		_ = from.Close()
		return
	}
	c, err := net.DialTimeout("tcp", k.target.Load().(string), 5*time.Second)
	if err != nil {
		_ = from.SetLinger(0)
		_ = from.Close()
		return
	}
	p := &pipe{from, c.(*net.TCPConn)}
	k.mu.Lock()
	k.pipes[p] = struct{}{}
	isCut := k.manner == cut
	k.mu.Unlock()
	if isCut {
		_ = p.from.Close()
		_ = p.to.Close()
	}
	var both sync.WaitGroup
	both.Go(func() { k.pump(p.to, p.from, false) })
	both.Go(func() { k.pump(p.from, p.to, true) })
	both.Wait()
	k.mu.Lock()
	delete(k.pipes, p)
	k.mu.Unlock()
	_ = p.from.Close()
	_ = p.to.Close()
}

// pass waits until something may pass, and is false if the link is cut.
func (k *link) pass(back bool) bool {
	for {
		k.mu.Lock()
		m, delay, changed := k.manner, k.delay, k.changed
		k.mu.Unlock()
		switch {
		case m == cut:
			return false
		case m == hole, m == halfOpen && back:
			<-changed
			continue
		case m == slow:
			time.Sleep(delay)
		}
		return true
	}
}

func (k *link) pump(to, from *net.TCPConn, back bool) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if !k.pass(back) { // the end of a connection is no news either
			return
		}
		if n > 0 {
			if _, werr := to.Write(b[:n]); werr != nil {
				_ = from.Close()
				return
			}
		}
		switch {
		case err == io.EOF:
			_ = to.CloseWrite()
			return
		case err != nil:
			_ = to.SetLinger(0)
			_ = to.Close()
			return
		}
	}
}
