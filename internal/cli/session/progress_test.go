package session

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tape is a terminal that remembers.
type tape struct {
	mu   sync.Mutex
	text strings.Builder
}

func (t *tape) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(b)
}

func (t *tape) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

func (t *tape) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text.Reset()
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var terminal, out tape
		p := newProgress(&terminal, true)
		w := p.writer(&out)
		p.Begin("waiting for it")
		time.Sleep(900 * time.Millisecond)
		synctest.Wait()
		if terminal.String() != "" {
			t.Errorf("after 0.9 s: %q", &terminal)
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if terminal.String() != "waiting for it (1 s)" {
			t.Errorf("after 1.1 s: %q", &terminal)
		}
		terminal.Reset()
		if _, err := w.Write([]byte("result\n")); err != nil || terminal.String() != "\r\x1b[K" || out.String() != "result\n" {
			t.Errorf("after writing: %q, %q, %v", &terminal, &out, err)
		}
		terminal.Reset()
		p.Say("received 5 MiB")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !strings.HasSuffix(terminal.String(), "received 5 MiB (2 s)") && !strings.HasSuffix(terminal.String(), "received 5 MiB (1 s)") {
			t.Errorf("after 2 s more: %q", &terminal)
		}
		p.End()
		terminal.Reset()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		p.End()
		if terminal.String() != "" {
			t.Errorf("after the end: %q", &terminal)
		}
	})
	var out strings.Builder
	silent := newProgress(&out, false)
	silent.Begin("x")
	silent.Say("y")
	silent.End()
	if out.String() != "" {
		t.Errorf("%q", &out)
	}
}
