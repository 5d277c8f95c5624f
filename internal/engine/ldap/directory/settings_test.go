package directory

import (
	"errors"
	"net"
	"testing"

	"github.com/lessor-dev/lessor/internal/engine/ldap"
)

// A name leads where its addresses do, when it is connected to, whatever it led to before.
func TestForbiddenAddresses(t *testing.T) {
	for _, at := range []string{"169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "100.100.100.200", "0.0.0.0", "::"} {
		err := permitted(t.Context(), "tcp", net.JoinHostPort(at, "389"), nil)
		d := &Server{}
		if got := d.fail(&net.OpError{Op: "dial", Err: err}); !errors.Is(err, errForbidden) || errors.Is(got, ldap.ErrUnreachable) {
			t.Errorf("%s: %v, %v", at, err, got)
		}
	}
	for _, at := range []string{"127.0.0.1", "10.0.0.1", "192.0.2.1", "::1", "2001:db8::1"} {
		if err := permitted(t.Context(), "tcp", net.JoinHostPort(at, "389"), nil); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// What Active Directory says of passwords with one code is told apart by what it says besides.
func TestActiveDirectorysVerdicts(t *testing.T) {
	for data, want := range map[string]ldap.Verdict{
		"52e": ldap.Refused, "525": ldap.Refused, "775": ldap.Unknown, "532": ldap.Accepted, "533": ldap.Accepted, "701": ldap.Accepted, "773": ldap.Accepted,
	} {
		if got := active(errors.New("80090308: LdapErr: DSID-0C09041C, comment: AcceptSecurityContext error, data " + data + ", v4f7c")); got != want {
			t.Errorf("data %s: %v", data, got)
		}
	}
	if got := quoted("ü€😀"); got != "\"\x00\xfc\x00\xac\x20\x3d\xd8\x00\xde\"\x00" {
		t.Errorf("a password is sent as %q", got)
	}
}
