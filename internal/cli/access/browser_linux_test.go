package access

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The page leads this user to the login, again and again, and nobody else on the machine.
func TestLeadKnowsWhoComes(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("there is no curl")
	}
	page := &lead{path: "/page", to: "https://login.example.org/?state=s", spied: func() { t.Error("the login is given up") }}
	server := httptest.NewServer(page)
	t.Cleanup(server.Close)
	asks := func(uid int) string {
		c := exec.Command(curl, "-sSi", "--noproxy", "*", server.URL+"/page")
		if c.Dir = "/"; uid != os.Geteuid() {
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	for range 2 {
		if got := asks(os.Geteuid()); !strings.Contains(got, "Location: "+page.to) {
			t.Errorf("this user: %s", got)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root asks as another user")
	}
	if got := asks(65534); strings.Contains(got, "state") || !strings.Contains(got, " 403 ") {
		t.Errorf("another user: %s", got)
	}
}

// A port may have several connections, of different users, if they lead to different places: another user who chooses the one of a connection of this user's is not taken
// for him.
func TestLeadKnowsConnectionsApart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has connections of other users")
	}
	page := &lead{path: "/page", to: "https://login.example.org/?state=s", spied: func() { t.Error("the login is given up") }}
	server := httptest.NewServer(page)
	t.Cleanup(server.Close)
	for range 16 { // in which order the kernel lists them is chance, place by place
		elsewhere, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = elsewhere.Close() })
		mine, err := net.Dial("tcp4", elsewhere.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = mine.Close() })
		port := mine.LocalAddr().(*net.TCPAddr).Port
		stranger := &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
			var chosen error
			err := raw.Control(func(fd uintptr) {
				if chosen = unix.Fchown(int(fd), 65534, 65534); chosen == nil { // the kernel has it as that user's
					chosen = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, port<<16|port)
				}
			})
			return errors.Join(err, chosen)
		}}
		client := &http.Client{
			Transport:     &http.Transport{DialContext: stranger.DialContext, DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		answer, err := client.Get(server.URL + "/page")
		if errors.Is(err, unix.ENOPROTOOPT) {
			t.Skip("this kernel lets nobody choose (before Linux 6.3)")
		}
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			continue // by chance the port has led to the page before
		}
		if err != nil {
			t.Fatal(err)
		}
		if _ = answer.Body.Close(); answer.StatusCode != http.StatusForbidden {
			t.Fatalf("another user, from port %d as this one: %s", port, answer.Status)
		}
	}
}

// Another user is known also if he has said all that he will say, and only listens.
func TestLeadKnowsWhoOnlyListens(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has connections of other users")
	}
	page := &lead{path: "/page", to: "https://login.example.org/?state=s", spied: func() { t.Error("the login is given up") }}
	server := httptest.NewServer(page)
	t.Cleanup(server.Close)
	stranger := &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var chosen error
		err := raw.Control(func(fd uintptr) {
			if chosen = unix.Fchown(int(fd), 65534, 65534); chosen == nil {
				chosen = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, 1) // what is asked arrives with the end
			}
		})
		return errors.Join(err, chosen)
	}}
	conn, err := stranger.Dial("tcp4", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, "GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 403 ") {
		t.Errorf("%v: %s", err, answer)
	}
}

// Of whom nothing is known the first one is led there, and if there is another, the login is given up.
func TestLeadOfWhoIsNotKnown(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	page := &lead{path: "/page", to: "https://login.example.org/?state=s", spied: func() { cancel(errSpied) }}
	comes := func(path string) *httptest.ResponseRecorder {
		r, w := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil), httptest.NewRecorder()
		r.RemoteAddr = "203.0.113.1:1"
		page.ServeHTTP(w, r)
		return w
	}
	for _, path := range []string{"/", "/favicon.ico", "/page"} {
		if w := comes(path); (w.Header().Get("Location") == page.to) != (path == "/page") || ctx.Err() != nil {
			t.Errorf("%s: %d, %v", path, w.Code, context.Cause(ctx))
		}
	}
	if w := comes("/page"); w.Code != http.StatusGone || context.Cause(ctx) != errSpied {
		t.Errorf("a second time: %d, %v", w.Code, context.Cause(ctx))
	}
}
