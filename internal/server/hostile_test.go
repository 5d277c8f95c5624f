package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// inFakeTime serves h within the process, and lets test talk to it.
func inFakeTime(t *testing.T, h http.Handler, test func(t *testing.T, l *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		s := NewHTTP(h, slog.New(slog.DiscardHandler))
		go func() { _ = s.Serve(l) }()
		test(t, l)
		_ = s.Close()
	})
}

// drip writes begin, and then a piece a second for as long as somebody takes it.
func drip(c net.Conn, begin, piece string) {
	_, err := io.WriteString(c, begin)
	for err == nil {
		time.Sleep(time.Second)
		_, err = io.WriteString(c, piece)
	}
}

// Who sends headers a byte at a time is cut off after ten seconds.
func TestSlowHeaders(t *testing.T) {
	inFakeTime(t, answering(&lessor.Answer{}, nil, nil), func(t *testing.T, l *pipes) {
		c := l.dial()
		defer c.Close()
		start := time.Now()
		var all sync.WaitGroup
		defer all.Wait()
		all.Go(func() { drip(c, "GET /v1/a HTTP/1.1\r\nX-Slow: ", "x") })
		_, _ = io.Copy(io.Discard, c)
		if took := time.Since(start); took < 5*time.Second || took > 12*time.Second {
			t.Errorf("cut off after %s", took)
		}
	})
}

// Who does not take the answer is given up, a stream after a minute, anything else after five.
func TestSlowReader(t *testing.T) {
	for name, c := range map[string]struct {
		answer *lessor.Answer
		after  time.Duration
	}{
		"answer": {&lessor.Answer{Data: map[string]any{"x": strings.Repeat("x", 1<<20)}}, 5 * time.Minute},
		"stream": {&lessor.Answer{Raw: streamOf(1 << 20)}, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			h := answering(c.answer, nil, nil)
			var done chan struct{}
			watched := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { defer close(done); h.ServeHTTP(w, r) })
			inFakeTime(t, watched, func(t *testing.T, l *pipes) {
				done = make(chan struct{})
				conn := l.dial()
				defer conn.Close()
				start := time.Now()
				_, _ = io.WriteString(conn, "GET /v1/a HTTP/1.1\r\nHost: x\r\n\r\n")
				_, _ = conn.Read(make([]byte, 10))
				<-done
				if took := time.Since(start); took < c.after-time.Second || took > c.after+5*time.Second {
					t.Errorf("given up after %s", took)
				}
			})
		})
	}
}

func streamOf(n int) func(ctx context.Context, w io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		_, err := w.Write(make([]byte, n))
		return err
	}
}

// A body in chunks that never ends is given up as soon as it is too large, or late.
func TestEndlessChunks(t *testing.T) {
	inFakeTime(t, answering(&lessor.Answer{}, nil, nil), func(t *testing.T, l *pipes) {
		c := l.dial()
		defer c.Close()
		start := time.Now()
		var all sync.WaitGroup
		defer all.Wait()
		defer c.Close()
		all.Go(func() { drip(c, "POST /v1/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\n \r\n") })
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || answer.StatusCode != 400 {
			t.Fatalf("got %v %v", answer, err)
		}
		if took := time.Since(start); took > 6*time.Minute {
			t.Errorf("given up after %s", took)
		}
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := NewConnections(2).Bound(inner)
	accepted := make(chan net.Conn, 10)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	})
	for range 4 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	<-accepted
	select {
	case <-accepted:
		t.Error("a third connection was accepted")
	case <-time.After(50 * time.Millisecond):
	}
	_ = first.Close()
	_ = first.Close() // gives back one slot, not two
	<-accepted
	select {
	case <-accepted:
		t.Error("closing a connection twice made room for two")
	case <-time.After(50 * time.Millisecond):
	}
	_ = l.Close()
	all.Wait()
	if Most(1024) != 768 || Most(1<<63) != 3<<18 {
		t.Errorf("connections for 1024 files: %d", Most(1024))
	}
}

// Who holds connections without asking anything keeps nobody out, over TLS neither.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	for _, secured := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %t", secured), func(t *testing.T) {
			const most = 4
			connections := NewConnections(most)
			s := httptest.NewUnstartedServer(answering(&lessor.Answer{}, nil, nil))
			s.Config.ConnState = connections.Note
			s.Listener = connections.Bound(s.Listener)
			if secured {
				s.StartTLS()
			} else {
				s.Start()
			}
			defer s.Close()
			ask := func(c *http.Client) error {
				answer, err := c.Get(s.URL + "/v1/a")
				if err == nil {
					_, _ = io.Copy(io.Discard, answer.Body)
					err = answer.Body.Close()
				}
				return err
			}
			hoarder := s.Client()
			hoarder.Transport.(*http.Transport).MaxIdleConnsPerHost = 100
			var all sync.WaitGroup
			for range most {
				all.Go(func() {
					if err := ask(hoarder); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			for range 3 * most { // each on a connection of his own, which he keeps
				mine := hoarder.Transport.(*http.Transport).Clone()
				defer mine.CloseIdleConnections()
				if err := ask(&http.Client{Transport: mine, Timeout: 5 * time.Second}); err != nil {
					t.Fatalf("somebody was kept out: %v", err)
				}
			}
			if n := len(connections.slots); n > most {
				t.Errorf("%d connections are open", n)
			}
		})
	}
}

// Nobody loses his place with a request under way: what is done is answered.
func TestRoomIsMadeBetweenRequests(t *testing.T) {
	connections := NewConnections(4)
	var done, answered atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		done.Add(1)
	}))
	s.Config.ConnState = connections.Note
	s.Listener = connections.Bound(s.Listener)
	s.Start()
	defer s.Close()
	var all sync.WaitGroup
	end := time.Now().Add(2 * time.Second)
	for range 8 {
		c := &http.Client{Transport: s.Client().Transport.(*http.Transport).Clone(), Timeout: 5 * time.Second}
		defer c.CloseIdleConnections()
		all.Go(func() {
			for time.Now().Before(end) {
				if a, err := c.Post(s.URL, "application/json", strings.NewReader("{}")); err == nil { // else it was not read
					_ = a.Body.Close()
					answered.Add(1)
				}
			}
		})
	}
	all.Wait()
	if done.Load() != answered.Load() || answered.Load() < 100 {
		t.Errorf("%d requests were done, %d answered", done.Load(), answered.Load())
	}
}

// What the rate limits refuse is refused before the body is read; what they want to say is said.
func TestAdmission(t *testing.T) {
	refused := &api.Error{Kind: api.Limited, Text: `request path "a": rate limit quota exceeded`}
	header := [][2]string{{"X-Ratelimit-Limit", "1"}, {"Retry-After", "7"}}
	for name, c := range map[string]struct {
		admit  func(*lessor.Op, bool) ([][2]string, bool, error)
		status int
		read   bool
	}{
		"at once": {func(_ *lessor.Op, data bool) ([][2]string, bool, error) { return header, false, refused }, 429, false},
		"with the data": {func(op *lessor.Op, data bool) ([][2]string, bool, error) {
			if !data {
				return nil, true, nil
			}
			if op.Data["role"] != "r" {
				t.Errorf("data: %v", op.Data)
			}
			return header, false, refused
		}, 429, true},
		"not": {func(_ *lessor.Op, data bool) ([][2]string, bool, error) { return header, false, nil }, 204, true},
	} {
		h := answering(&lessor.Answer{}, nil, nil)
		h.gate.(*gate).admit = c.admit
		body := &touched{Reader: strings.NewReader(`{"role":"r"}`)}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/v1/a", body))
		if w.Code != c.status || body.read != c.read || w.Header().Get("X-Ratelimit-Limit") != "1" || w.Header().Get("Retry-After") != "7" {
			t.Errorf("%s: %d, body read: %t, header %v", name, w.Code, body.read, w.Header())
		}
		if c.status == 429 && w.Body.String() != `{"errors":["request path \"a\": rate limit quota exceeded"]}` {
			t.Errorf("%s: %s", name, w.Body)
		}
	}
	h := answering(&lessor.Answer{}, nil, nil)
	h.gate.(*gate).admit = func(op *lessor.Op, _ bool) ([][2]string, bool, error) {
		if op.Path == "sys/leader" {
			return nil, false, refused
		}
		return nil, false, nil
	}
	if w := ask(h, "GET", "/v1/sys/leader", ""); w.Code != 429 {
		t.Errorf("a public path beyond its limit: %d", w.Code)
	}
	if w := ask(h, "GET", "/v1/sys/health", ""); w.Code != 200 {
		t.Errorf("another: %d", w.Code)
	}
}

// touched is a body that knows whether somebody read it.
type touched struct {
	io.Reader
	read bool
}

func (b *touched) Read(p []byte) (int, error) { b.read = true; return b.Reader.Read(p) }
