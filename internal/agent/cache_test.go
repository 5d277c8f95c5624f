package agent_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/lessor-dev/lessor/client"
)

// Who asks for a credential through the agent again, or at once, has the same one, whose lease goes on. What changes is seen at once; while the server is away
// there is what there was.
func TestCache(t *testing.T) {
	p := newPlace(t)
	has := p.postgres("3s")
	p.put("app", "one")
	front := httptest.NewServer(p.Client().Forward())
	t.Cleanup(front.Close)
	p.address = front.URL
	p.start(`
cache {
  use_auto_auth_token = true
}
listener "unix" {
  address = "$D/socket"
}`)
	read := func(path, token string) (*client.Response, error) {
		return p.through("socket", token).Read(t.Context(), path, nil)
	}
	p.eventually("the agent has logged in", func() bool {
		_, err := read("secret/data/app", "")
		return err == nil
	})
	const creds = "database/creds/app"
	var mu sync.Mutex
	var all sync.WaitGroup
	leases, user := map[string]bool{}, ""
	for range 8 {
		all.Go(func() {
			answer, err := read(creds, "")
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			leases[answer.LeaseID], user = true, answer.Data["username"].(string)
		})
	}
	all.Wait()
	if len(leases) != 1 || !has(user) {
		t.Fatalf("%d leases", len(leases))
	}
	if answer, err := read(creds, p.Token("app").Reveal()); err != nil || leases[answer.LeaseID] {
		t.Errorf("with another token: the same lease, %v", err)
	}
	var lease string
	for id := range leases {
		lease = id
	}
	p.eventually("the lease is renewed", func() bool {
		found, err := p.Client().Write(t.Context(), "sys/leases/lookup", map[string]any{"lease_id": lease})
		return err == nil && found.Data["last_renewal"] != nil && found.Data["last_renewal"] != ""
	})
	if answer, err := read(creds, ""); err != nil || answer.LeaseID != lease {
		t.Errorf("once it was renewed: another lease, %v", err)
	}
	password := func() string {
		answer, err := read("secret/data/app", "")
		if err != nil {
			t.Error(err)
			return ""
		}
		text, _ := answer.Data["data"].(map[string]any)["password"].(string)
		return text
	}
	if _, err := p.through("socket", "nobody's").Write(t.Context(), "sys/leases/revoke", map[string]any{"lease_id": lease}); !client.IsStatus(err, http.StatusForbidden) {
		t.Errorf("a revocation by nobody: %v", err)
	}
	if answer, err := read(creds, ""); err != nil || answer.LeaseID != lease {
		t.Errorf("once somebody was refused a revocation: another lease, %v", err)
	}
	p.put("app", "two")
	if got := password(); got != "two" {
		t.Errorf("after a change: %s", got)
	}
	if _, err := p.through("socket", p.Root.Reveal()).Write(t.Context(), "sys/leases/revoke", map[string]any{"lease_id": lease}); err != nil {
		t.Fatal(err)
	}
	if answer, err := read(creds, ""); err != nil || answer.LeaseID == lease {
		t.Errorf("what was revoked is answered: %v", err)
	}
	if got := password(); got != "two" { // what was kept before is not any more
		t.Errorf("after a revocation: %s", got)
	}
	front.CloseClientConnections()
	front.Close()
	if got := password(); got != "two" {
		t.Errorf("while the server is away: %s", got)
	}
	if _, err := read("secret/data/other", ""); !client.IsStatus(err, http.StatusBadGateway) {
		t.Errorf("what was not read before: %v", err)
	}
}

// Who asks and does not read the answer holds up nobody who asks the same, whether the answer comes from the server, or is kept; and one that is too large to be kept
// is passed on whole.
func TestCacheWithOneWhoDoesNotRead(t *testing.T) {
	p := newPlace(t)
	large := strings.Repeat("x", 900<<10)
	answers := map[string]string{
		"/v1/kept":   `{"lease_id": "kept/1", "lease_duration": 600, "renewable": true, "data": {"text": "` + large + `"}}`,
		"/v1/passed": `{"lease_id": "passed/1", "lease_duration": 600, "data": {"text": "` + large + large + `"}}`,
		"/v1/asked":  `{"data": {"text": "` + large + `"}}`,
	}
	server := p.Client().Forward()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if text, ok := answers[r.URL.Path]; ok {
			_, _ = io.WriteString(w, text)
			return
		}
		server.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	p.address = front.URL
	p.start(`
cache {
}
listener "unix" {
  address = "$D/socket"
}`)
	p.eventually("the agent is there", func() bool {
		_, err := p.through("socket", "").Read(t.Context(), "kept", nil)
		return err == nil
	})
	for path, text := range answers {
		asking, err := net.Dial("unix", p.in("socket"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = asking.Close() })
		// Nothing more is read than that there is an answer.
		if _, err := io.WriteString(asking, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(asking, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		within, cancel := context.WithTimeout(t.Context(), patience)
		stream, _, err := p.through("socket", "").Stream(within, client.Request{Method: http.MethodGet, Path: strings.TrimPrefix(path, "/v1/")})
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		got, err := io.ReadAll(stream)
		_ = stream.Close()
		cancel()
		if err != nil || string(got) != text {
			t.Errorf("%s: %d bytes of %d, %v", path, len(got), len(text), err)
		}
	}
}

// What is kept takes no more memory than it may: what is for the server's absence goes first, the oldest of it; a credential stays, and what there is no room for is not kept.
func TestCacheIsBounded(t *testing.T) {
	p := newPlace(t)
	text := strings.Repeat("x", 100<<10)
	var mu sync.Mutex
	asked, away := map[string]int{}, false
	server := p.Client().Forward()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/v1/")
		if !strings.HasPrefix(name, "value/") && !strings.HasPrefix(name, "credential/") {
			server.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if asked[name]++; away {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if strings.HasPrefix(name, "value/") {
			w.Header().Set("X-Lessor-Version", "1")
		}
		_, _ = io.WriteString(w, `{"lease_id": "`+name+`", "lease_duration": 600, "renewable": true, "data": {"text": "`+text+`"}}`)
	}))
	t.Cleanup(front.Close)
	p.address = front.URL
	p.start(`
cache {
  max_size = 320000
}
listener "unix" {
  address = "$D/socket"
}`)
	read := func(name string) error {
		_, err := p.through("socket", "").Read(t.Context(), name, nil)
		return err
	}
	kept := func(name string) bool { // of a credential
		mu.Lock()
		before := asked[name]
		mu.Unlock()
		if err := read(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		mu.Lock()
		defer mu.Unlock()
		return asked[name] == before
	}
	p.eventually("the agent is there", func() bool { return read("value/1") == nil })
	for _, name := range []string{"value/2", "value/3", "credential/1"} { // no room for four
		if err := read(name); err != nil {
			t.Fatal(err)
		}
	}
	if !kept("credential/1") {
		t.Error("values leave no room for a credential")
	}
	is := func(yes bool) {
		mu.Lock()
		defer mu.Unlock()
		away = yes
	}
	is(true)
	for name, want := range map[string]bool{"value/1": false, "value/2": true, "value/3": true} {
		if err := read(name); want && err != nil || !want && !client.IsStatus(err, http.StatusServiceUnavailable) {
			t.Errorf("while the server is away, %s: %v", name, err)
		}
	}
	is(false)
	for _, name := range []string{"credential/2", "credential/3", "credential/4"} {
		if err := read(name); err != nil {
			t.Fatal(err)
		}
	}
	if !kept("credential/1") || !kept("credential/2") || !kept("credential/3") || kept("credential/4") {
		t.Errorf("of four credentials not the first three are kept: asked %v", asked)
	}
}
