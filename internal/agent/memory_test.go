package agent_test

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"github.com/lessor-dev/lessor/internal/agent"
)

// What an agent has read is nowhere in what it keeps, but sealed; nor is what it logs in with, once the file of that is gone.
func TestMemoryIsSealed(t *testing.T) {
	p := newPlace(t)
	p.put("app", "sesame")
	proof, err := os.ReadFile(p.in("secret-id"))
	if err != nil {
		t.Fatal(err)
	}
	p.config(`exit_retain = true
cache {
  use_auto_auth_token = true
}
listener "unix" {
  address = "$D/socket"
}
template {
  contents = <<EOT
` + password + `
EOT
  destination = "$D/app"
  command = "true"
}
template {
  contents = <<EOT
` + password + `
EOT
  destination = "$D/untold"
}`)
	c, err := p.parse()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan map[string]bool, 1)
	go func() {
		found, err := agent.RunAndSearch(ctx, c, agent.Options{Log: slog.New(slog.NewTextHandler(&p.log, nil))}, "sesame", string(proof), p.address)
		if err != nil {
			t.Error(err)
		}
		ended <- found
	}()
	p.await("app", "sesame\n")
	p.await("untold", "sesame\n")
	p.eventually("it was told", func() bool { return p.template("app").State == "current" && p.template("untold").State == "current" })
	if _, err := p.through("socket", "").Read(t.Context(), "secret/data/app", nil); err != nil {
		t.Error(err)
	}
	cancel()
	found := <-ended
	if found["sesame"] || found[string(proof)] {
		t.Errorf("what lies in memory: the secret %t, the secret id %t", found["sesame"], found[string(proof)])
	}
	if !found[p.address] {
		t.Error("the search finds nothing")
	}
	plain, err := p.Client().Secret(t.Context(), "secret/data/app")
	if err != nil {
		t.Fatal(err)
	}
	if err := plain.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if !agent.Search(plain, "sesame")["sesame"] {
		t.Error("the search does not find what is there")
	}
}
