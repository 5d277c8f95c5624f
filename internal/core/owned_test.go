package core_test

import (
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
)

func TestOwnersAreShown(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/secret", `{"type":"kv","options":{"version":"2"},"owner":"team-a"}`)
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	g.do(g.root, lessor.Update, "sys/auth/approle", `{"type":"approle","owner":"platform"}`)
	g.do(g.root, lessor.Update, "auth/approle/role/app", `{"token_policies":"default"}`)
	g.do(g.root, lessor.Update, "sys/lessor/owners/auth/approle/role/app", `{"owner":"team-b"}`)
	for path, want := range map[string]string{"secret/metadata/app": "team-a", "auth/approle/role/app": "team-b"} {
		if got := g.do(g.root, lessor.Read, path, "").Data["owner"]; got != want {
			t.Errorf("%s shows owner %v, want %s", path, got, want)
		}
	}
}
