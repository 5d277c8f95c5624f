package directory

import (
	"errors"
	"net"
	"testing"

	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/engine/target"
)

// An address that lessor does not connect to is no outage.
func TestForbiddenAddresses(t *testing.T) {
	err := (&Server{}).fail(&net.OpError{Op: "dial", Err: target.ErrForbidden})
	if errors.Is(err, ldap.ErrUnreachable) || err.Error() != target.ErrForbidden.Error() {
		t.Errorf("got %v", err)
	}
}

// What Active Directory says of passwords with one code is told apart by what it says besides.
func TestActiveDirectorysVerdicts(t *testing.T) {
	for data, want := range map[string]ldap.Verdict{
		"52e": ldap.Refused, "525": ldap.Refused, "775": ldap.Unknown, "532": ldap.Accepted, "533": ldap.Barred, "701": ldap.Barred, "773": ldap.Accepted,
	} {
		if got := active(errors.New("80090308: LdapErr: DSID-0C09041C, comment: AcceptSecurityContext error, data " + data + ", v4f7c")); got != want {
			t.Errorf("data %s: %v", data, got)
		}
	}
	if got := quoted("ü€😀"); got != "\"\x00\xfc\x00\xac\x20\x3d\xd8\x00\xde\"\x00" {
		t.Errorf("a password is sent as %q", got)
	}
}
