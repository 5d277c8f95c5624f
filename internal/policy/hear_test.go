package policy

import (
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
)

func TestHears(t *testing.T) {
	p, err := Parse("p", `
path "read/*"      { capabilities = ["read"] }
path "listed/*"    { capabilities = ["list", "update", "sudo"] }
path "events/*"    { capabilities = ["subscribe"] subscribe_event_types = ["kv*", "database/rotate"] }
path "nothing/*"   { capabilities = ["subscribe"] }
path "read/denied" { capabilities = ["deny"] }
path "two/*"       { capabilities = ["read"] control_group = { factor "f" { identity { group_names = ["g"] approvals = 1 } } } }
`)
	if err != nil {
		t.Fatal(err)
	}
	acl := Compile([]*Policy{p}, nil)
	prefix := func(pattern, kind string) bool { return strings.HasPrefix(kind, strings.TrimSuffix(pattern, "*")) }
	who := &lessor.Principal{Accessor: "a"}
	for _, c := range []struct {
		path, kind string
		hears      bool
	}{
		{"read/a", "any", true}, {"read/denied", "any", false}, {"listed/a", "any", false}, {"nothing/a", "any", false}, {"else", "any", false},
		{"events/a", "kv-v2/data-write", true}, {"events/a", "database/rotate", true}, {"events/a", "database/x", false}, {"two/a", "any", false},
	} {
		if got := Hears(acl, who, c.path, c.kind, prefix); got != c.hears {
			t.Errorf("%s of %s is heard: %t", c.kind, c.path, got)
		}
	}
	root := Compile([]*Policy{Root()}, nil)
	if !Hears(root, &lessor.Principal{Root: true}, "x", "any", prefix) || Hears(root, who, "x", "any", prefix) || Hears(nil, who, "x", "any", prefix) || Hears(acl, nil, "read/a", "any", prefix) {
		t.Error("who is root, or nobody")
	}
}
