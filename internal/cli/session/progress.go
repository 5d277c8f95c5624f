package session

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Progress shows, on a terminal, what a command that takes more than a second is waiting for. Whatever the command
// writes goes through its writers, which take the line away first.
type Progress struct {
	terminal io.Writer // nil: nobody watches

	mu    sync.Mutex
	text  string
	since time.Time // begin of this wait
	shown bool
	stop  chan struct{} // nil: not running
}

const (
	patience = time.Second // a wait that is not worth a word
	blink    = 250 * time.Millisecond
)

func newProgress(w io.Writer, watched bool) *Progress {
	if !watched {
		return &Progress{}
	}
	return &Progress{terminal: w}
}

// Watched reports whether there is a terminal that shows it.
func (p *Progress) Watched() bool { return p.terminal != nil }

// Begin shows text from a second after now until end.
func (p *Progress) Begin(text string) {
	if p.terminal == nil {
		return
	}
	p.End()
	p.mu.Lock()
	defer p.mu.Unlock()
	stop := make(chan struct{})
	p.text, p.since, p.stop = text, time.Now(), stop
	go p.tick(stop)
}

func (p *Progress) tick(stop chan struct{}) {
	ticker := time.NewTicker(blink)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
			p.mu.Lock()
			if waited := time.Since(p.since); p.stop == stop && waited >= patience {
				p.clear()
				_, _ = fmt.Fprintf(p.terminal, "%s (%d s)", p.text, int(waited.Seconds()))
				p.shown = true
			}
			p.mu.Unlock()
		}
	}
}

// Say changes the text.
func (p *Progress) Say(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = text
}

// End takes the line away. It may be called at any time.
func (p *Progress) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stop != nil {
		close(p.stop)
		p.stop = nil
	}
	p.clear()
}

// clear expects mu to be held.
func (p *Progress) clear() {
	if p.shown {
		_, _ = io.WriteString(p.terminal, "\r\x1b[K")
		p.shown = false
	}
}

// writer is w, with the line out of the way.
func (p *Progress) writer(w io.Writer) io.Writer { return progressWriter{p, w} }

type progressWriter struct {
	p *Progress
	w io.Writer
}

func (w progressWriter) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	w.p.clear()
	w.p.since = time.Now()
	return w.w.Write(b)
}
