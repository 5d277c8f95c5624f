package agent_test

import (
	"net/http"
	"net/http/httptest"
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
