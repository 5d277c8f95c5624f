package core_test

import (
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// A secret that is made again counts its versions from 1, but is another one: who held version 1 of the old holds nothing of it.
func TestASecretMadeAnewIsAnother(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"old"}}`)
	old := g.do(g.root, lessor.Read, "secret/data/app", "").Lease.ID
	g.do(g.root, lessor.Delete, "secret/metadata/app", "")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"new"}}`)
	if a := g.do(g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+old+`"}`); len(a.Warnings) == 0 {
		t.Error("who renews the old one is not told to read again")
	}
	again := g.do(g.root, lessor.Read, "secret/data/app", "").Lease.ID
	if again == old {
		t.Error("the lease on version 1 of the old secret is the one on version 1 of the new")
	}
	if a := g.do(g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+again+`"}`); len(a.Warnings) != 0 {
		t.Errorf("the new one: %v", a.Warnings)
	}
	if next := g.do(g.root, lessor.Read, "secret/data/app", "").Lease.ID; next != again {
		t.Error("reading again gives another lease")
	}
}

// Who takes version 2 for version 1 is told so, in a 404 that clients read.
func TestPathsOfVersion1OnVersion2(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	for _, c := range []struct {
		verb       lessor.Verb
		path, says string
	}{
		{lessor.Read, "secret/app", "use 'kv get'"}, {lessor.Update, "secret/app", "use 'kv put'"}, {lessor.List, "secret/", "use 'kv list'"}, {lessor.Delete, "secret/app/x", "use 'kv delete'"},
		{lessor.Read, "secret/data", "Non-listing operations on the root of a K/V v2 mount"}, {lessor.List, "secret/data/", "use 'kv list'"},
	} {
		a := g.do(g.root, c.verb, c.path, "")
		if a.Status != 404 || a.Data != nil || len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], c.says) {
			t.Errorf("%s %s: %d %s", c.verb, c.path, a.Status, body(a))
		}
	}
	if rec := g.last("secret/app")[0]; !rec.Granted {
		t.Errorf("record: %+v", rec.Record)
	}
	g.refused(api.Unsupported, g.root, lessor.Delete, "secret/config", "")
	g.refused(api.Denied, g.token(`{"policies":["default"]}`), lessor.Read, "secret/app", "")
	g.do(g.root, lessor.Update, "sys/mounts/plain", `{"type":"kv"}`)
	g.refused(api.NotFound, g.root, lessor.Read, "plain/app", "")
}
