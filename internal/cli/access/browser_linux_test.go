package access

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
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
