package directory_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/engine/ldap/directory"
	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// config is one of a branch, changed.
func config(b *ldaptest.Branch, change func(*ldap.Config)) *ldap.Config {
	c := &ldap.Config{URL: b.URL(), Schema: ldap.OpenLDAP, BindDN: b.Manager, UserDN: b.DN, UserAttr: "cn"}
	if change != nil {
		change(c)
	}
	return c
}

func open(t *testing.T, c *ldap.Config, password string) ldap.Directory {
	t.Helper()
	d, err := directory.Open(c, ldap.Secrets{Password: lessor.NewSecret(password)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TLS is what it is said to be: its certificate is verified, unless it is not to be; a server that does not answer gives way to the next.
func TestTLS(t *testing.T) {
	s := ldaptest.Start(t)
	b := s.Branch(t)
	for name, c := range map[string]struct {
		change func(*ldap.Config)
		err    string
	}{
		"plain":          {nil, ""},
		"ldaps":          {func(c *ldap.Config) { c.URL, c.CA = s.SafeURL(), string(s.CA) }, ""},
		"starttls":       {func(c *ldap.Config) { c.StartTLS, c.CA = true, string(s.CA) }, ""},
		"TLS 1.3":        {func(c *ldap.Config) { c.URL, c.CA, c.MinTLS = s.SafeURL(), string(s.CA), "tls13" }, ""},
		"not trusted":    {func(c *ldap.Config) { c.URL = s.SafeURL() }, "its certificate is not trusted"},
		"not trusted up": {func(c *ldap.Config) { c.StartTLS = true }, "its certificate is not trusted"},
		"insecure":       {func(c *ldap.Config) { c.URL, c.InsecureTLS = s.SafeURL(), true }, ""},
		"the second":     {func(c *ldap.Config) { c.URL = "ldap://127.0.0.1:1, " + c.URL }, ""},
		"none":           {func(c *ldap.Config) { c.URL = "ldap://127.0.0.1:1" }, "connection refused"},
		"no TLS there":   {func(c *ldap.Config) { c.URL = strings.Replace(s.URL(), "ldap:", "ldaps:", 1) }, "the directory cannot be reached"},
	} {
		d := open(t, config(b, c.change), ldaptest.ManagerPassword)
		err := d.Ping(within(t))
		switch {
		case c.err == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || !errors.Is(err, ldap.ErrUntouched)):
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A server that asks for a certificate gets lessor's.
func TestMutualTLS(t *testing.T) {
	s := ldaptest.Start(t, ldaptest.Mutual())
	b := s.Branch(t)
	c := config(b, func(c *ldap.Config) { c.URL, c.CA = s.SafeURL(), string(s.CA) })
	if err := open(t, c, ldaptest.ManagerPassword).Ping(within(t)); !errors.Is(err, ldap.ErrUnreachable) {
		t.Errorf("without a certificate: %v", err)
	}
	certificate, key, err := s.Certificate("lessor")
	if err != nil {
		t.Fatal(err)
	}
	c.Certificate = string(certificate)
	d, err := directory.Open(c, ldap.Secrets{Password: lessor.NewSecret(ldaptest.ManagerPassword), PrivateKey: lessor.NewSecret(key)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Ping(within(t)); err != nil {
		t.Error(err)
	}
}

func TestConfigurationsRefused(t *testing.T) {
	for text, c := range map[string]ldap.Config{
		"url must be ldap://HOST":                      {URL: "https://db"},
		"url names no host":                            {URL: "ldap://"},
		"url must not hold a login":                    {URL: "ldap://a:b@db"},
		"url must name hosts only":                     {URL: "ldap://db/dc=x"},
		"does not connect to these":                    {URL: "ldap://ok,ldap://169.254.169.254"},
		"Active Directory takes passwords over TLS":    {URL: "ldap://db", Schema: ldap.AD},
		"binddn is no distinguished name":              {URL: "ldap://db", BindDN: "lessor"},
		"userdn is no distinguished name":              {URL: "ldap://db", UserDN: "people"},
		"lessor does not connect":                      {URL: "ldap://[64:ff9b::a9fe:a9fe]"},
		"tls_min_version must be tls12 or tls13":       {URL: "ldap://db", MinTLS: "tls10"},
		"tls_max_version must be tls12 or tls13":       {URL: "ldap://db", MinTLS: "tls13", MaxTLS: "tls12"},
		"certificate has no certificate in PEM":        {URL: "ldap://db", CA: "x"},
		"client_tls_cert and client_tls_key are not a": {URL: "ldap://db", Certificate: "x"},
	} {
		if _, err := directory.Open(&c, ldap.Secrets{}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%+v: %v, want %q", c, err, text)
		}
	}
	if _, err := directory.Open(&ldap.Config{URL: "ldaps://dc1,ldaps://dc2", Schema: ldap.AD, BindDN: "lessor@ad.example.org"}, ldap.Secrets{}); err != nil {
		t.Errorf("Active Directory: %v", err)
	}
}

// Errors say what to do, are of kind Upstream, and hold no secret, whatever the server quotes.
func TestErrors(t *testing.T) {
	b := ldaptest.Start(t).Branch(t)
	ctx := within(t)
	refused := func(err error, text string) {
		t.Helper()
		if err == nil || api.KindOf(err) != api.Upstream || errors.Is(err, ldap.ErrUnreachable) || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "hush") {
			t.Errorf("got %s %v, want %q", api.KindOf(err), err, text)
		}
	}
	refused(open(t, config(b, nil), "hush-wrong").Ping(ctx), "the directory refused lessor's own login: Invalid Credentials (49)")
	refused(open(t, config(b, nil), "").Ping(ctx), "lessor has no password for its own login")
	d := open(t, config(b, nil), ldaptest.ManagerPassword)
	dn := b.Person("ann", "hush-ann")
	refused(d.SetPassword(ctx, "cn=nobody,"+b.DN, lessor.NewSecret("hush")), "the directory refused: No Such Object (32)")
	refused(open(t, config(b, func(c *ldap.Config) { c.BindDN = dn }), "hush-ann").SetPassword(ctx, b.Manager, lessor.NewSecret("hush")), "does not let lessor's account (binddn) do that")
	refused(d.Make(ctx, ldap.Entries{Mark: ldap.Mark{Lease: "x"}, Steps: []ldap.Step{{Verb: ldap.Add, DN: "cn=x," + b.DN, Secret: true, Values: []ldap.Values{
		{Attribute: "objectClass", Values: []string{"person"}}, {Attribute: "cn", Values: []string{"x"}}, {Attribute: "sn", Values: []string{"x"}}, {Attribute: "hush", Values: []string{"hush"}},
	}}}}), "the directory refused: Undefined Attribute Type (17)")
	refused(d.Make(ctx, ldap.Entries{Mark: ldap.Mark{Lease: "x"}, Steps: []ldap.Step{{Verb: ldap.Add, DN: "uid=x," + b.DN, Values: []ldap.Values{
		{Attribute: "objectClass", Values: []string{"simpleSecurityObject", "uidObject"}}, {Attribute: "uid", Values: []string{"x"}}, {Attribute: "userPassword", Values: []string{"x"}},
	}}}}), "the entry bears lessor's mark in the attribute description")
	if _, err := d.Locate(ctx, "nobody)(cn=*"); !errors.Is(err, ldap.ErrNoAccount) {
		t.Errorf("a filter in a name: %v", err)
	}
	b.Add("ou=more,"+b.DN, "objectClass", "organizationalUnit")
	b.Add("cn=ann,ou=more,"+b.DN, "objectClass", "person", "cn", "ann", "sn", "ann")
	_, err := d.Locate(ctx, "ann")
	refused(err, "the directory has several accounts whose cn is ann: give the role a dn")
}

// What a directory says of passwords is told apart: no password is never right, whatever an anonymous login may do.
func TestVerdicts(t *testing.T) {
	b := ldaptest.Start(t).Branch(t)
	d := open(t, config(b, nil), ldaptest.ManagerPassword)
	dn := b.Person("ann", "right")
	b.Add("cn=none,"+b.DN, "objectClass", "person", "cn", "none", "sn", "none")
	for _, c := range []struct {
		dn, password string
		want         ldap.Verdict
	}{
		{dn, "right", ldap.Accepted}, {dn, "wrong", ldap.Refused}, {dn, "", ldap.Refused}, {"", "right", ldap.Refused},
		{"cn=none," + b.DN, "x", ldap.Refused}, {"cn=nobody," + b.DN, "x", ldap.Refused},
	} {
		if got, err := d.Login(within(t), c.dn, lessor.NewSecret(c.password)); err != nil || got != c.want {
			t.Errorf("%s with %q: %v, %v", c.dn, c.password, got, err)
		}
	}
}

// While lessor's own password changes, it gets in with whichever is in force; many calls at once share few connections.
func TestOwnPasswordChanges(t *testing.T) {
	b := ldaptest.Start(t).Branch(t)
	d := open(t, config(b, nil), ldaptest.ManagerPassword)
	dn := b.Person("ann", "x")
	var all sync.WaitGroup
	failed := make(chan error, 100)
	for i := range 20 {
		all.Go(func() {
			for n := range 5 {
				if err := d.SetPassword(within(t), dn, lessor.NewSecret(fmt.Sprint("password ", i, n))); err != nil {
					failed <- err
				}
			}
		})
	}
	for i := range 5 {
		next := lessor.NewSecret(fmt.Sprint("own ", i))
		before := lessor.NewSecret(fmt.Sprint("own ", i-1))
		if i == 0 {
			before = lessor.NewSecret(ldaptest.ManagerPassword)
		}
		d.Use([]lessor.Secret{before, next})
		if err := d.SetPassword(within(t), b.Manager, next); err != nil {
			t.Error(err)
		}
		d.Use([]lessor.Secret{next, before})
	}
	all.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	if v, err := d.Login(within(t), b.Manager, lessor.NewSecret("own 4")); err != nil || v != ldap.Accepted {
		t.Errorf("%v, %v", v, err)
	}
}

// A server that went away and came back is connected to anew; one that hangs costs a call its time and no more.
func TestServerComesAndGoes(t *testing.T) {
	s := ldaptest.Own(t)
	b := s.Branch(t)
	d := open(t, config(b, nil), ldaptest.ManagerPassword)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(d.Ping(within(t)))
	must(s.Down())
	if err := d.Ping(within(t)); !errors.Is(err, ldap.ErrUnreachable) {
		t.Errorf("a server that is down: %v", err)
	}
	must(s.Up())
	for end := time.Now().Add(30 * time.Second); d.Ping(within(t)) != nil; {
		if time.Now().After(end) {
			t.Fatal("it is not connected to any more")
		}
	}
	must(s.Pause())
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := d.Ping(short); !errors.Is(err, ldap.ErrUnreachable) || !strings.Contains(err.Error(), "did not answer in time") {
		t.Errorf("a server that hangs: %v", err)
	}
	must(s.Resume())
	must(d.Ping(within(t)))
	d.Close()
}

// Without userdn, marks are found wherever the server keeps entries; a mark survives values that an attribute has besides.
func TestMarksAreFoundEverywhere(t *testing.T) {
	b := ldaptest.Start(t).Branch(t)
	d := open(t, config(b, func(c *ldap.Config) { c.UserDN = "" }), ldaptest.ManagerPassword)
	dn := b.Person("ann", "x")
	b.Modify(dn, "description", "somebody", "lessor lease=l mount=m role= name=n")
	found, err := d.Marked(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range found {
		if m.DN == dn && m.Mark == (ldap.Mark{Lease: "l", Mount: "m", Name: "n"}) {
			return
		}
	}
	t.Errorf("found %+v", found)
}

// paused is the context of a process that was paused once something was there: its time is over, and nothing in the process has noticed.
type paused struct {
	context.Context
	there func() bool
}

func (p paused) Deadline() (time.Time, bool) {
	if p.there() {
		return time.Unix(1, 0), true
	}
	return time.Now().Add(20 * time.Second), true
}

// Whoever was paused between adding an entry and giving it its password does not go on.
func TestPausedAmidMaking(t *testing.T) {
	b := ldaptest.Start(t).Branch(t)
	d := open(t, config(b, nil), ldaptest.ManagerPassword)
	dn := "cn=x," + b.DN
	steps := []ldap.Step{
		{Verb: ldap.Add, DN: dn, Values: []ldap.Values{
			{Attribute: "objectClass", Values: []string{"person"}}, {Attribute: "cn", Values: []string{"x"}}, {Attribute: "sn", Values: []string{"x"}},
		}},
		{Verb: ldap.Password, DN: dn, Password: lessor.NewSecret("given out"), Secret: true},
	}
	err := d.Make(paused{t.Context(), func() bool { return b.Entry(dn) != nil }}, ldap.Entries{Mark: ldap.Mark{Lease: "l"}, DNs: []string{dn}, Steps: steps})
	if !errors.Is(err, ldap.ErrUnreachable) || b.Entry(dn) == nil || b.LogsIn(dn, "given out") {
		t.Errorf("it went on: %v", err)
	}
	if err := d.Make(within(t), ldap.Entries{Mark: ldap.Mark{Lease: "l"}, DNs: []string{dn}, Steps: steps}); err != nil || !b.LogsIn(dn, "given out") {
		t.Errorf("in time: %v", err)
	}
}
