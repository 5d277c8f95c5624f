package cli_test

import (
	"bytes"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/browsertest"
	"github.com/lessor-dev/lessor/internal/cli"
	"github.com/lessor-dev/lessor/internal/cli/operator"
	"github.com/lessor-dev/lessor/internal/cli/session"
	"github.com/lessor-dev/lessor/internal/oidctest"
	"github.com/lessor-dev/lessor/lessortest"
)

// written is what a command writes while it runs.
type written struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *written) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

func (w *written) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// login is "lessor login" of somebody who sits before a browser.
type login struct {
	*testing.T
	out, err written
	page     string // that the command sent the browser to
	at       string // where that leads
	code     chan int
}

const patience = time.Minute

// logsIn begins a login, and waits until the command has opened its page.
func logsIn(t *testing.T, server *lessortest.Server, args ...string) *login {
	t.Helper()
	l := &login{T: t, code: make(chan int, 1)}
	dir := t.TempDir()
	opened, program := filepath.Join(dir, "opened"), filepath.Join(dir, "browser")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nprintf %s \"$1\" > "+opened+".new && mv "+opened+".new "+opened+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"LESSOR_ADDR": server.Address, "BROWSER": program}
	system := session.System{
		In: strings.NewReader(""), Out: &l.out, Err: &l.err, Home: dir,
		Env: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
	}
	go func() {
		l.code <- cli.Run(t.Context(), system, operator.Commands{}, append([]string{"login", "-method=oidc", "-token-only"}, args...))
	}()
	for deadline := time.Now().Add(patience); l.page == ""; time.Sleep(10 * time.Millisecond) {
		page, _ := os.ReadFile(opened)
		if l.page = string(page); time.Now().After(deadline) {
			t.Fatalf("no page was opened within %v: %s", patience, l.err.String())
		}
	}
	stays := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	answer, err := stays.Get(l.page)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if l.at = answer.Header.Get("Location"); l.at == "" || !strings.Contains(l.err.String(), l.at) {
		t.Errorf("the page that was opened is not on the screen: %s", l.err.String())
	}
	return l
}

// is waits until the command has ended, with the token of somebody.
func (l *login) is(server *lessortest.Server, name string) {
	l.Helper()
	if code := l.ends(); code != 0 {
		l.Fatalf("exit code %d: %s", code, l.err.String())
	}
	about := server.Client()
	answer, err := about.Write(l.Context(), "auth/token/lookup", map[string]any{"token": strings.TrimSpace(l.out.String())})
	if err != nil {
		l.Fatal(err)
	}
	if got := answer.Data["display_name"]; got != "oidc-"+name {
		l.Errorf("logged in as %v, not %s", got, name)
	}
}

func (l *login) ends() int {
	l.Helper()
	select {
	case code := <-l.code:
		return code
	case <-time.After(patience):
		l.Fatalf("the command did not end within %v: %s", patience, l.err.String())
		return 0
	}
}

// people is a server that lets people of a provider in: by a page that sends them back, by one that posts (-path=posts), by a code (role=remote).
func people(t *testing.T) (*lessortest.Server, *oidctest.Provider) {
	t.Helper()
	p, server := oidctest.New(t), lessortest.Start(t)
	for mount, mode := range map[string]string{"oidc": "query", "posts": "form_post"} {
		server.Write("sys/auth/"+mount, map[string]any{"type": "oidc"})
		server.Write("auth/"+mount+"/config", map[string]any{
			"oidc_discovery_url": p.URL, "oidc_discovery_ca_pem": p.CA, "oidc_client_id": oidctest.ClientID, "oidc_client_secret": oidctest.ClientSecret,
			"oidc_response_mode": mode, "default_role": "staff",
		})
		server.Write("auth/"+mount+"/role/staff", map[string]any{
			"user_claim": "email", "allowed_redirect_uris": "http://localhost/oidc/callback,http://127.0.0.1/oidc/callback", "token_policies": "default",
		})
		server.Write("auth/"+mount+"/role/remote", map[string]any{"user_claim": "email", "callback_mode": "device", "token_policies": "default"})
	}
	return server, p
}

// A person clicks through a provider's page in a browser, which the command waits for.
func TestLoginInARealBrowser(t *testing.T) {
	server, p := people(t)
	b := browsertest.Start(t)
	decides := func(user, button string) {
		t.Helper()
		b.Type("input[name=user]", user)
		b.Click(button)
	}

	l := logsIn(t, server, "port=0")
	at, err := url.Parse(l.at)
	if err != nil {
		t.Fatal(err)
	}
	b.Open(at.Query().Get("redirect_uri") + "?code=another&state=another") // as any page can
	b.Await("not the login that lessor waits for")
	b.Open(l.page)
	decides("ann", "#agree")
	b.Await("Go back to the terminal")
	if at := b.URL(); !strings.HasPrefix(at, "http://localhost:") {
		t.Errorf("the browser is at %s", at)
	}
	l.is(server, "ann@example.com")

	// By a form that the provider's page posts to this machine, under its address.
	l = logsIn(t, server, "-path=posts", "port=0", "listenaddress=127.0.0.1", "callbackhost=127.0.0.1")
	b.Open(l.at)
	decides("bob", "#agree")
	b.Await("Go back to the terminal")
	if at := b.URL(); !strings.HasPrefix(at, "http://127.0.0.1:") || strings.Contains(at, "code=") {
		t.Errorf("the browser is at %s", at)
	}
	if code := l.ends(); code != 0 {
		t.Errorf("exit code %d: %s", code, l.err.String())
	}

	// Who refuses is told so.
	l = logsIn(t, server, "port=0")
	b.Open(l.at)
	decides("eve", "#refuse")
	b.Await("Go back to the terminal")
	if code := l.ends(); code != session.ExitRemote || !strings.Contains(l.err.String(), "The provider refused: access_denied") {
		t.Errorf("exit code %d: %s", code, l.err.String())
	}

	// With a code, in a browser that is nowhere near.
	l = logsIn(t, server, "role=remote")
	if !strings.HasPrefix(l.at, p.URL+"/device?user_code=") {
		t.Errorf("sent to %s", l.at)
	}
	b.Open(l.at)
	decides("cat", "#agree")
	b.Await("Go back to your device")
	l.is(server, "cat@example.com")
}

// A login by a code outlasts a provider that fails for a moment.
func TestLoginByCodeGoesOn(t *testing.T) {
	t.Parallel()
	server, p := people(t)
	var failures atomic.Int32
	p.Set(func() {
		p.Answer = func(w http.ResponseWriter, r *http.Request) bool {
			fails := r.URL.Path == "/token" && failures.CompareAndSwap(0, 1)
			if fails {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return fails
		}
	})
	l := logsIn(t, server, "role=remote")
	for deadline := time.Now().Add(patience); p.Asked("/token") == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the provider is not asked")
		}
	}
	for _, code := range p.Waiting() {
		if err := p.Enter(code, "ann"); err != nil {
			t.Fatal(err)
		}
	}
	l.is(server, "ann@example.com")
	if !strings.Contains(l.err.String(), "This goes on asking.") {
		t.Errorf("the person is not told: %s", l.err.String())
	}
}
