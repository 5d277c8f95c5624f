package directory_test

import (
	"crypto/tls"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	ber "github.com/go-asn1-ber/asn1-ber"
	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/engine/ldap/directory"
	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// domainConfig is a configuration of a unit of Active Directory.
func domainConfig(u *ldaptest.Unit) *ldap.Config {
	return &ldap.Config{URL: u.URL(), CA: string(u.CA), Schema: ldap.AD, BindDN: u.Manager, UserDN: u.DN, UserAttr: "userPrincipalName", UPNDomain: ldaptest.DomainName}
}

// A password is set whatever the domain's rules say of changes, since it is reset; what they say of the password itself is told.
func TestDomainPasswords(t *testing.T) {
	u := ldaptest.StartDomain(t).Unit(t)
	d := open(t, domainConfig(u), ldaptest.UnitPassword)
	user := u.User("alice", "First-word-1")
	dn, err := d.Locate(within(t), "alice")
	if err != nil || !strings.EqualFold(dn, user) {
		t.Fatalf("%s, %v", dn, err)
	}
	if _, err := d.Locate(within(t), "nobody"); !errors.Is(err, ldap.ErrNoAccount) {
		t.Errorf("nobody: %v", err)
	}
	before := "First-word-1"
	for _, password := range []string{"Second-word-2", "Second-word-2", "First-word-1", "Third-word-3"} {
		if err := d.SetPassword(within(t), dn, lessor.NewSecret(password)); err != nil {
			t.Fatalf("%s: %v", password, err)
		}
		if verdict, err := d.Login(within(t), dn, lessor.NewSecret(password)); err != nil || verdict != ldap.Accepted {
			t.Errorf("%s: %v, %v", password, verdict, err)
		}
		if verdict, err := d.Login(within(t), dn, lessor.NewSecret(before)); before != password && (err != nil || verdict != ldap.Refused) {
			t.Errorf("%s, after %s: %v, %v", before, password, verdict, err)
		}
		before = password
	}
	if err := d.SetPassword(within(t), dn, lessor.NewSecret("weakword")); err == nil || errors.Is(err, ldap.ErrUnreachable) || strings.Contains(err.Error(), "weakword") {
		t.Errorf("a weak password: %v", err)
	}
	for _, password := range []string{"First-word-1", "Second-word-2", "weakword"} {
		if verdict, err := d.Login(within(t), dn, lessor.NewSecret(password)); err != nil || verdict != ldap.Refused {
			t.Errorf("%s: %v, %v", password, verdict, err)
		}
	}
	if err := d.SetPassword(within(t), u.Manager, lessor.NewSecret("Managers-next-1")); err != nil {
		t.Errorf("lessor's own: %v", err)
	}
}

// A password that a domain takes once, and then refuses, is in force: that is no refusal, which would have it given up while the one before logs in still. No
// domain does that at will, so what answers here does nothing else.
func TestDomainRefusesAgain(t *testing.T) {
	certified := httptest.NewTLSServer(nil)
	certified.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", certified.TLS)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for taken := false; ; {
			asked, err := ber.ReadPacket(c)
			if err != nil || len(asked.Children) < 2 {
				return
			}
			result := goldap.LDAPResultSuccess
			if op := asked.Children[1].Tag; op == goldap.ApplicationModifyRequest && taken {
				result = goldap.LDAPResultUnwillingToPerform
			} else {
				taken = op == goldap.ApplicationModifyRequest
			}
			answer := ber.NewSequence("message")
			answer.AppendChild(asked.Children[0])
			said := ber.Encode(ber.ClassApplication, ber.TypeConstructed, asked.Children[1].Tag+1, nil, "result")
			said.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, result, "code"))
			said.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "", "dn"))
			said.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "", "message"))
			answer.AppendChild(said)
			if _, err := c.Write(answer.Bytes()); err != nil {
				return
			}
		}
	}()
	c := &ldap.Config{URL: "ldaps://" + l.Addr().String(), InsecureTLS: true, Schema: ldap.AD, BindDN: "cn=lessor,dc=example", UserDN: "dc=example", UserAttr: "cn"}
	d, err := directory.Open(c, ldap.Secrets{Password: lessor.NewSecret("x")})
	if err != nil {
		t.Fatal(err)
	}
	err = d.SetPassword(within(t), "cn=app,dc=example", lessor.NewSecret("Next-word-1"))
	if !errors.Is(err, ldap.ErrUnreachable) || errors.Is(err, ldap.ErrUntouched) || !strings.Contains(err.Error(), "not again") {
		t.Errorf("it counts as refused: %v", err)
	}
	d.Close()
	l.Close()
	<-served
}

// What keeps an account out besides its password comes after it, and is told apart.
func TestDomainVerdicts(t *testing.T) {
	u := ldaptest.StartDomain(t).Unit(t)
	d := open(t, domainConfig(u), ldaptest.UnitPassword)
	for name, c := range map[string]struct {
		attribute, value string
		right            ldap.Verdict
	}{
		"usual":    {"description", "usual", ldap.Accepted},
		"disabled": {"userAccountControl", "66050", ldap.Barred},
		"expired":  {"accountExpires", "130000000000000000", ldap.Barred},
		"must":     {"pwdLastSet", "0", ldap.Accepted},
		"hours":    {"logonHours", strings.Repeat("\x00", 21), ldap.Accepted},
	} {
		dn := u.User(name, "Right-word-1")
		u.Modify(dn, c.attribute, c.value)
		if verdict, err := d.Login(within(t), dn, lessor.NewSecret("Right-word-1")); err != nil || verdict != c.right {
			t.Errorf("%s: %v, not %v, %v", name, verdict, c.right, err)
		}
		if verdict, err := d.Login(within(t), dn, lessor.NewSecret("Wrong-word-1")); err != nil || verdict != ldap.Refused {
			t.Errorf("%s, wrong: %v, %v", name, verdict, err)
		}
	}
	if verdict, err := d.Login(within(t), "CN=nobody,"+u.DN, lessor.NewSecret("x")); err != nil || verdict != ldap.Refused {
		t.Errorf("nobody: %v, %v", verdict, err)
	}
	dn := u.User("locked", "Right-word-1")
	u.PasswordSetting("account-lockout-threshold", "1")
	defer u.PasswordSetting("account-lockout-threshold", "0")
	for _, c := range []struct {
		password string
		want     ldap.Verdict
	}{{"Right-word-1", ldap.Accepted}, {"Wrong-word-1", ldap.Refused}, {"Right-word-1", ldap.Unknown}} {
		if verdict, err := d.Login(within(t), dn, lessor.NewSecret(c.password)); err != nil || verdict != c.want {
			t.Errorf("where one wrong password locks an account, %q: %v, %v", c.password, verdict, err)
		}
	}
}
