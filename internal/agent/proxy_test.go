package agent_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/client"
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
