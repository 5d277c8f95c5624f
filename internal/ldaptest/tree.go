package ldaptest

import (
	"net"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// dialer logs in to a directory.
type dialer interface {
	root() (*ldap.Conn, error) // as who may do everything
	dial(dn, password string) (*ldap.Conn, error)
}

func login(url, dn, password string, how ...ldap.DialOpt) (*ldap.Conn, error) {
	c, err := ldap.DialURL(url, append(how, ldap.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}))...)
	if err != nil {
		return nil, err
	}
	c.SetTimeout(30 * time.Second)
	if err := c.Bind(dn, password); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// tree is what a test sees of a directory, and does to it as an administrator.
type tree struct {
	at dialer
	t  testing.TB
}

// Add makes an entry: attributes are names and values in turn.
func (e *tree) Add(dn string, attributes ...string) {
	e.t.Helper()
	e.do(func(c *ldap.Conn) error { return c.Add(entry(dn, attributes...)) })
}

// Modify replaces an attribute's values; none removes it.
func (e *tree) Modify(dn, attribute string, values ...string) {
	e.t.Helper()
	e.do(func(c *ldap.Conn) error {
		r := ldap.NewModifyRequest(dn, nil)
		r.Replace(attribute, values)
		return c.Modify(r)
	})
}

// Entry is an entry with its attributes; nil if there is none.
func (e *tree) Entry(dn string) (found *ldap.Entry) {
	e.t.Helper()
	e.do(func(c *ldap.Conn) error {
		r, err := c.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", nil, nil))
		if ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
			return nil
		}
		if err == nil && len(r.Entries) == 1 {
			found = r.Entries[0]
		}
		return err
	})
	return found
}

// LogsIn reports whether a password is an account's.
func (e *tree) LogsIn(dn, password string) bool {
	e.t.Helper()
	c, err := e.at.dial(dn, password)
	if err != nil {
		if !ldap.IsErrorWithCode(err, ldap.LDAPResultInvalidCredentials) {
			e.t.Fatalf("ldaptest: logging in as %s: %v", dn, err)
		}
		return false
	}
	c.Close()
	return true
}

func (e *tree) do(f func(*ldap.Conn) error) {
	e.t.Helper()
	c, err := e.at.root()
	if err == nil {
		defer c.Close()
		err = f(c)
	}
	if err != nil {
		e.t.Fatalf("ldaptest: %v", err)
	}
}

func entry(dn string, attributes ...string) *ldap.AddRequest {
	values := map[string][]string{}
	var order []string
	for i := 0; i+1 < len(attributes); i += 2 {
		name := attributes[i]
		if values[name] == nil {
			order = append(order, name)
		}
		values[name] = append(values[name], attributes[i+1])
	}
	r := ldap.NewAddRequest(dn, nil)
	for _, name := range order {
		r.Attribute(name, values[name])
	}
	return r
}
