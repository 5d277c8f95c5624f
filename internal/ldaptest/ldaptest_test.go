package ldaptest_test

import (
	"testing"

	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/servertest"
)

// What was acknowledged survives a crash; a branch's manager rules there, and nowhere else.
func TestServer(t *testing.T) {
	s := ldaptest.Own(t)
	mine, other := s.Branch(t), s.Branch(t)
	dn := mine.Person("ann", "first")
	if !mine.LogsIn(dn, "first") || mine.LogsIn(dn, "second") {
		t.Fatal("the password is not what was set")
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Up(); err != nil {
		t.Fatal(err)
	}
	if !mine.LogsIn(dn, "first") {
		t.Error("a crash lost what was acknowledged")
	}
	if all := mine.Below(); len(all) != 1 || all[0] != dn {
		t.Errorf("the branch has %v", all)
	}
	if other.Entry(dn) == nil || len(other.Below()) != 0 {
		t.Error("branches do not keep apart")
	}
	mine.Delete(dn)
	if mine.Entry(dn) != nil {
		t.Error("it is still there")
	}
}

// A test process that is killed leaves neither a server nor a folder.
func TestServerEndsWithItsProcess(t *testing.T) {
	servertest.EndsWithItsProcess(t, func(t testing.TB) *servertest.Daemon { return ldaptest.Start(t).Daemon })
}
