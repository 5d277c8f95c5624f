package agent_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/agent"
)

// through is a client that knows a socket only.
func (p *place) through(socket, token string) *client.Client {
	p.Helper()
	c, err := client.New(client.Config{Address: "unix://" + p.in(socket), Token: client.NewToken(token)})
	if err != nil {
		p.Fatal(err)
	}
	return c
}

// A program without a token reads what the agent may read; one that has a token is itself. Who may not ask does not.
func TestProxy(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	p.Policy("other", `path "secret/data/other" { capabilities = ["read"] }`)
	other := p.Token("other")
	uid := strconv.Itoa(os.Getuid())
	p.start(`
api_proxy {
  use_auto_auth_token = true
}
listener "unix" {
  address    = "$D/open"
  allow_uids = [` + uid + `]
}
listener "unix" {
  address    = "$D/others"
  allow_uids = [` + strconv.Itoa(os.Getuid()+1) + `]
}
listener "unix" {
  address                = "$D/careful"
  require_request_header = true
}
listener "tcp" {
  address = "127.0.0.1:0"
}`)
	p.eventually("the agent has logged in", func() bool {
		_, err := p.through("open", "").Read(t.Context(), "secret/data/app", nil)
		return err == nil
	})
	answer, err := p.through("open", "").Read(t.Context(), "secret/data/app", nil)
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := answer.Data["data"].(map[string]any); data["password"] != "one" || answer.LeaseID == "" {
		t.Errorf("through the agent: %v", answer.Data)
	}
	if _, err := p.through("open", other.Reveal()).Read(t.Context(), "secret/data/app", nil); !client.IsStatus(err, http.StatusForbidden) {
		t.Errorf("with a token that may not: %v", err)
	}
	if _, err := p.through("open", p.Root.Reveal()).Write(t.Context(), "secret/data/app", map[string]any{"data": map[string]any{"password": "two"}}); err != nil {
		t.Errorf("writing with a token of its own: %v", err)
	}
	if _, err := p.through("open", "").Read(t.Context(), "secret/data/missing", nil); !client.IsStatus(err, http.StatusNotFound) {
		t.Errorf("what is not there: %v", err)
	}
	if keys, err := p.through("open", "").List(t.Context(), "secret/metadata"); err != nil || len(keys.Keys()) != 1 {
		t.Errorf("a list: %v", err)
	}
	if _, err := p.through("others", "").Read(t.Context(), "secret/data/app", nil); err == nil || client.IsStatus(err, 403) {
		t.Errorf("as a user who may not ask: %v", err)
	}
	p.eventually("that is logged", func() bool { return strings.Contains(p.log.String(), "may not ask here") })
	// The agent's token is asked with, and stays the agent's.
	own, err := os.ReadFile(p.in("token"))
	if err != nil {
		t.Fatal(err)
	}
	about := func(method, path string, wrapped time.Duration) string {
		stream, _, err := p.through("open", "").WithWrapTTL(wrapped).Stream(t.Context(), client.Request{Method: method, Path: path})
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		text, err := io.ReadAll(stream)
		if _ = stream.Close(); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return string(text)
	}
	accessor := p.Server.Write("auth/token/lookup", map[string]any{"token": string(own)}).Data["accessor"].(string)
	for _, text := range []string{
		about("GET", "auth/token/lookup-self", 0), about("PUT", "auth/token/renew-self", 0), about("GET", "auth/token/lookup-self", time.Minute),
	} {
		if !strings.Contains(text, `"app"`) || strings.Contains(text, string(own)) || strings.Contains(text, accessor) {
			t.Errorf("of the agent's token: %s", text)
		}
	}
	for _, path := range []string{"auth/token/revoke-self", "auth/token/revoke-self/"} {
		if _, err := p.through("open", "").Write(t.Context(), path, nil); !client.IsStatus(err, http.StatusForbidden) {
			t.Errorf("ending the agent's token: %v", err)
		}
	}
	if answer, err := p.through("open", other.Reveal()).Read(t.Context(), "auth/token/lookup-self", nil); err != nil || answer.Data["id"] != other.Reveal() {
		t.Errorf("about a token of one's own: %v", err)
	}
	if _, err := p.through("open", other.Reveal()).Write(t.Context(), "auth/token/revoke-self", nil); err != nil {
		t.Errorf("ending a token of one's own: %v", err)
	}
	raw := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", p.in("careful"))
	}}}
	for header, want := range map[string]int{"": 412, "true": 200} {
		request, err := http.NewRequestWithContext(t.Context(), "GET", "http://agent/v1/secret/data/app", nil)
		if err != nil {
			t.Fatal(err)
		}
		if header != "" {
			request.Header.Set("X-Vault-Request", header)
		}
		answer, err := raw.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if answer.StatusCode != want || strings.Contains(string(body), "hvs.") {
			t.Errorf("X-Vault-Request %q: %d %s", header, answer.StatusCode, body)
		}
	}
}

// A program that asks with the agent's token is not the agent, whatever it calls itself; one that brings a token is itself, however it writes that.
func TestProxyIsNotTheAgent(t *testing.T) {
	p := newPlace(t)
	p.put("app", "one")
	p.Policy("other", `path "secret/data/other" { capabilities = ["read"] }`)
	p.start(`
instance = "app-1"
api_proxy {
  use_auto_auth_token = true
}
listener "unix" {
  address = "$D/open"
}`)
	lease := func(instance string) string {
		answer, err := p.through("open", "").WithInstance(instance).Read(t.Context(), "secret/data/app", nil)
		if err != nil {
			return ""
		}
		return answer.LeaseID
	}
	p.eventually("the agent has logged in", func() bool { return lease("worker-1") != "" })
	if asked, as := lease(""), lease("app-1"); asked != as || asked == lease("worker-1") {
		t.Errorf("who calls itself what the agent does holds %s, not %s", as, asked)
	}
	// Nor is it another agent with the same login, whatever it calls itself.
	p.proof()
	proof := map[string]any{}
	for field, file := range map[string]string{"role_id": "role-id", "secret_id": "secret-id"} {
		text, err := os.ReadFile(p.in(file))
		if err != nil {
			t.Fatal(err)
		}
		proof[field] = string(text)
	}
	login, err := p.Client().Write(t.Context(), "auth/approle/login", proof)
	if err != nil {
		t.Fatal(err)
	}
	other := p.Client().WithToken(client.NewToken(login.Auth.ClientToken)).WithInstance("app-2")
	held, err := other.Read(t.Context(), "secret/data/app", nil)
	if err != nil {
		t.Fatal(err)
	}
	release := map[string]any{"lease_id": held.LeaseID}
	if _, err := p.through("open", "").WithInstance("app-2").Write(t.Context(), "sys/lessor/leases/release", release); !client.IsStatus(err, http.StatusBadRequest) {
		t.Errorf("ending what another agent has: %v", err)
	}
	if _, err := other.Write(t.Context(), "sys/lessor/leases/release", release); err != nil {
		t.Errorf("ending one's own: %v", err)
	}
	for _, name := range []string{"worker-1", strings.Repeat("w", 128)} { // each is itself, again and again, also by the name that the server has for it
		asked := lease(name)
		found, err := p.Client().Write(t.Context(), "sys/leases/lookup", map[string]any{"lease_id": asked})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if known, _ := found.Data["holder"].(map[string]any)["instance"].(string); !strings.HasPrefix(known, "app-1/through/") || len(known) > 128 || lease(name) != asked || lease(known) != asked {
			t.Errorf("%s is %q", name, known)
		}
	}
	raw := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", p.in("open"))
	}}}
	request, err := http.NewRequestWithContext(t.Context(), "GET", "http://agent/v1/secret/data/app", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Connection", "X-Lessor-Instance")
	answer, err := raw.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	var read struct {
		Lease string `json:"lease_id"`
	}
	err = json.NewDecoder(answer.Body).Decode(&read)
	if _ = answer.Body.Close(); err != nil || read.Lease != lease("") {
		t.Errorf("who has his name taken away on the way holds %q, not %q: %v", read.Lease, lease(""), err)
	}
	for _, scheme := range []string{"Bearer", "bearer"} {
		request, err := http.NewRequestWithContext(t.Context(), "GET", "http://agent/v1/secret/data/app", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", scheme+" "+p.Token("other").Reveal())
		answer, err := raw.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if _ = answer.Body.Close(); answer.StatusCode != http.StatusForbidden {
			t.Errorf("with a %s token that may not: %d", scheme, answer.StatusCode)
		}
	}
}

// What a web page has the browser ask at an address of this machine goes nowhere; what programs ask does, and so does a page that came from there.
func TestPagesOfElsewhere(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(server.Close)
	c, err := client.New(client.Config{Address: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	const here = "127.0.0.1:8100"
	answer := func(l agent.Listener, host string, header ...string) int {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/secret/data/app", strings.NewReader("{}"))
		r.Host = host
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		agent.Through(c, l).ServeHTTP(w, r)
		return w.Code
	}
	tcp := agent.Listener{Address: here}
	for _, header := range [][]string{
		{"Origin", "https://example.com"}, {"Origin", "null"}, {"Origin", "http://127.0.0.1:9"}, {"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site", "Origin", "http://" + here},
	} {
		if got := answer(tcp, here, header...); got != http.StatusForbidden {
			t.Errorf("%v: %d", header, got)
		}
	}
	if got := answer(tcp, "example.com"); got != http.StatusForbidden || asked.Load() != 0 {
		t.Errorf("by another name: %d; %d went on", got, asked.Load())
	}
	for _, header := range [][]string{nil, {"Origin", "http://" + here}, {"Sec-Fetch-Site", "none"}, {"Sec-Fetch-Site", "same-origin"}} {
		if got := answer(tcp, here, header...); got != http.StatusOK {
			t.Errorf("%v: %d", header, got)
		}
	}
	if got := answer(agent.Listener{Unix: true}, "localhost"); got != http.StatusOK {
		t.Errorf("at a socket: %d", got)
	}
}
