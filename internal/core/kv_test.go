package core_test

import (
	"testing"

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
