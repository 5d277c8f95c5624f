package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// spoken is a Feed that says what it is given, until it ends.
type spoken struct {
	say    chan []byte
	end    chan error
	opened error
	open   atomic.Int32
}

func newSpoken() *spoken { return &spoken{say: make(chan []byte), end: make(chan error, 1)} }

func (s *spoken) Open() error {
	if s.opened == nil {
		s.open.Add(1)
	}
	return s.opened
}
func (s *spoken) Close() { s.open.Add(-1) }

func (s *spoken) Next(ctx context.Context) ([][]byte, error) {
	select {
	case m := <-s.say:
		return [][]byte{m}, nil
	case err := <-s.end:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

const upgrade = "GET /v1/sys/events/subscribe/x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"

// greet begins a conversation over a connection.
func greet(t *testing.T, c net.Conn) *bufio.Reader {
	t.Helper()
	go func() { _, _ = io.WriteString(c, upgrade) }()
	r := bufio.NewReader(c)
	answer, err := http.ReadResponse(r, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v %v", answer, err)
	}
	return r
}

// Who takes nothing, or does not answer to a ping, is cut off; and the Feed is closed.
func TestSilentListeners(t *testing.T) {
	for name, c := range map[string]struct {
		speak bool
		after time.Duration
	}{
		"takes no message": {true, socketPatience}, "answers no ping": {false, pingEvery + socketPatience},
	} {
		t.Run(name, func(t *testing.T) {
			var feed *spoken
			var done chan struct{}
			h := New(Options{Gate: &gate{status: running, handle: func(context.Context, *lessor.Op) (*lessor.Answer, error) {
				return &lessor.Answer{Feed: feed}, nil
			}}})
			watched := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { defer close(done); h.ServeHTTP(w, r) })
			inFakeTime(t, watched, func(t *testing.T, l *pipes) {
				feed, done = newSpoken(), make(chan struct{})
				conn := l.dial()
				defer conn.Close()
				r := greet(t, conn)
				start := time.Now()
				if c.speak {
					feed.say <- []byte("news")
				} else {
					go func() { _, _ = io.Copy(io.Discard, r) }()
				}
				<-done
				if took := time.Since(start); took < c.after-time.Second || took > c.after+10*time.Second {
					t.Errorf("cut off after %s", took)
				}
				if feed.open.Load() != 0 {
					t.Error("the feed is open still")
				}
			})
		})
	}
}

// The close frame says why a conversation ends; a fault's own words stay here.
func TestFarewells(t *testing.T) {
	feed := newSpoken()
	s := httptest.NewServer(answering(&lessor.Answer{Feed: feed}, nil, nil))
	defer s.Close()
	for _, c := range []struct {
		end    error
		code   websocket.StatusCode
		reason string
	}{
		{api.Errorf(api.Unavailable, "elsewhere"), websocket.StatusGoingAway, "elsewhere"},
		{api.Errorf(api.Unauthenticated, "over"), websocket.StatusPolicyViolation, "over"},
		{api.Errorf(api.Denied, "denied %s", strings.Repeat("x", 200)), websocket.StatusPolicyViolation, ("denied " + strings.Repeat("x", 200))[:longestReason]},
		{api.Errorf(api.Invalid, "too old"), websocket.StatusTryAgainLater, "too old"},
		{io.ErrUnexpectedEOF, websocket.StatusInternalError, "internal error; the server's log tells more under request id "},
	} {
		conn, _, err := websocket.Dial(t.Context(), s.URL+"/v1/sys/events/subscribe/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		feed.say <- []byte("news")
		if _, m, err := conn.Read(t.Context()); err != nil || string(m) != "news" {
			t.Errorf("%s %v", m, err)
		}
		feed.end <- c.end
		_, _, err = conn.Read(t.Context())
		var closed websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != c.code || !strings.HasPrefix(closed.Reason, c.reason) || strings.Contains(closed.Reason, "EOF") {
			t.Errorf("%v ends it with %v", c.end, err)
		}
	}
}

// Who does not come for a conversation, or may not have one, is told so in an answer; a page of another site gets none.
func TestNoConversation(t *testing.T) {
	feed := newSpoken()
	h := answering(&lessor.Answer{Feed: feed}, nil, nil)
	if w := ask(h, "GET", "/v1/sys/events/subscribe/x", ""); w.Code != 400 || !strings.Contains(w.Body.String(), "websocket") {
		t.Errorf("without a websocket: %d %s", w.Code, w.Body)
	}
	s := httptest.NewServer(h)
	defer s.Close()
	dial := func(o *websocket.DialOptions) int {
		t.Helper()
		conn, answer, err := websocket.Dial(t.Context(), s.URL+"/v1/sys/events/subscribe/x", o)
		if err == nil {
			_ = conn.CloseNow()
		}
		if answer == nil {
			t.Fatal(err)
		}
		return answer.StatusCode
	}
	if status := dial(&websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://example.org"}}}); status != 403 {
		t.Errorf("a page of another site: %d", status)
	}
	feed.opened = api.Errorf(api.Limited, "too many")
	if status := dial(nil); status != 429 {
		t.Errorf("one too many: %d", status)
	}
	if feed.open.Load() != 0 {
		t.Errorf("%d feeds are open", feed.open.Load())
	}
}

// Who leaves, or talks back, is forgotten.
func TestListenersWhoLeave(t *testing.T) {
	for name, leave := range map[string]func(*websocket.Conn) error{
		"goes":    (*websocket.Conn).CloseNow,
		"says so": func(c *websocket.Conn) error { return c.Close(websocket.StatusNormalClosure, "") },
		"talks back": func(c *websocket.Conn) error {
			return c.Write(context.Background(), websocket.MessageText, []byte("hello"))
		},
	} {
		feed := newSpoken()
		s := httptest.NewServer(answering(&lessor.Answer{Feed: feed}, nil, nil))
		conn, _, err := websocket.Dial(t.Context(), s.URL+"/v1/sys/events/subscribe/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := leave(conn); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for end := time.Now().Add(time.Minute); feed.open.Load() != 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: it is listening still", name)
			}
		}
		_ = conn.CloseNow()
		s.Close()
	}
}
