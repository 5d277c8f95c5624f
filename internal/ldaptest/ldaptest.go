// Package ldaptest gives tests a real directory server of their own, OpenLDAP's slapd: on free loopback ports, in a temporary folder,
// gone when the test process is, however that ends.
//
// Where no slapd is installed, a test fails; under -short it skips instead, unless CI=true.
package ldaptest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/internal/servertest"
)

// Suffix is the root of every Server's tree.
const Suffix = "dc=example,dc=org"

const (
	rootDN   = "cn=root," + Suffix
	password = "root's-password"
)

// Option changes how a server is started.
type Option func(*options)

type options struct {
	own      bool
	shortest int
	mutual   bool
}

// PasswordLength has the server refuse passwords that are shorter.
func PasswordLength(shortest int) Option { return func(o *options) { o.shortest = shortest } }

// Mutual has the server ask for a certificate wherever there is TLS, see Server.Certificate.
func Mutual() Option { return func(o *options) { o.mutual = true } }

// Server is a running slapd.
type Server struct {
	*servertest.Daemon
	Port int    // of ldap://, StartTLS included
	Safe int    // of ldaps://
	CA   []byte // PEM, of who issued its certificate for "localhost" and 127.0.0.1

	program string
	issuer  *servertest.CA
}

var kind = servertest.Kind{Name: "OpenLDAP", Starter: "ldaptest", Debian: "slapd"}

var (
	shared   servertest.Shared[options, *Server]
	branches atomic.Int64
)

// Start returns the test process's server for these options, starting it if this is the first to ask. Tests that share it keep apart by
// Branch.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	o := servertest.Chosen(opts)
	return shared.Get(o, func() *Server { return start(t, o) })
}

// Own starts a server for this test alone, which may stop, pause or kill it: what was acknowledged survives that. It is removed when the
// test ends.
func Own(t testing.TB, opts ...Option) *Server {
	t.Helper()
	o := servertest.Chosen(opts)
	o.own = true
	s := start(t, o)
	t.Cleanup(s.Discard)
	return s
}

func start(t testing.TB, o options) *Server {
	t.Helper()
	program := kind.Programs(t, "slapd")[0]
	d, err := kind.Open()
	if err != nil {
		t.Fatalf("ldaptest: %v", err)
	}
	s := &Server{Daemon: d, program: program}
	err = d.Begin(func() error { return s.create(o) }, func() (err error) {
		if s.Port, err = s.Daemon.Port(); err != nil {
			return err
		}
		if s.Safe, err = s.Daemon.Port(); err != nil {
			return err
		}
		return s.Up()
	})
	if err == nil {
		err = s.plant(o)
	}
	if err != nil {
		d.Discard()
		t.Fatalf("ldaptest: %v", err)
	}
	return s
}

// configuration is slapd's, in the form that slapadd takes. Whoever is "cn=lessor" in a branch may do everything there, and nothing elsewhere.
const configuration = `dn: cn=config
objectClass: olcGlobal
cn: config
olcPidFile: %[1]s/pid
olcTLSCACertificateFile: %[1]s/ca.crt
olcTLSCertificateFile: %[1]s/server.crt
olcTLSCertificateKeyFile: %[1]s/server.key
olcTLSVerifyClient: %[5]s
olcThreads: 4

dn: cn=module,cn=config
objectClass: olcModuleList
cn: module
%[2]s
dn: cn=schema,cn=config
objectClass: olcSchemaConfig
cn: schema

include: file://%[3]s/core.ldif
include: file://%[3]s/cosine.ldif
include: file://%[3]s/inetorgperson.ldif

dn: olcDatabase=frontend,cn=config
objectClass: olcDatabaseConfig
objectClass: olcFrontendConfig
olcDatabase: frontend
olcPasswordHash: {SSHA}

dn: olcDatabase=mdb,cn=config
objectClass: olcDatabaseConfig
objectClass: olcMdbConfig
olcDatabase: mdb
olcDbDirectory: %[1]s/data
olcSuffix: ` + Suffix + `
olcRootDN: ` + rootDN + `
olcRootPW: ` + password + `
olcDbMaxSize: 67108864
olcDbIndex: objectClass,cn,uid eq
olcAccess: to dn.regex="^(.+,)?ou=([^,]+),` + Suffix + `$" attrs=userPassword
  by dn.exact,expand="cn=lessor,ou=$2,` + Suffix + `" write by anonymous auth by * none
olcAccess: to dn.regex="^(.+,)?ou=([^,]+),` + Suffix + `$"
  by dn.exact,expand="cn=lessor,ou=$2,` + Suffix + `" write by users read by anonymous auth by * none
olcAccess: to * by users read by * none
%[4]s
`

// lengthy is the part of the configuration that refuses short passwords.
const lengthy = `
dn: olcOverlay=ppolicy,olcDatabase={1}mdb,cn=config
objectClass: olcOverlayConfig
objectClass: olcPPolicyConfig
olcOverlay: ppolicy
olcPPolicyDefault: cn=policy,` + Suffix + `
`

// create makes the server's folders, certificate and configuration.
func (s *Server) create(o options) error {
	schemas := ""
	for _, p := range []string{"/etc/ldap/schema", "/etc/openldap/schema", "/usr/local/etc/openldap/schema"} {
		if _, err := os.Stat(filepath.Join(p, "inetorgperson.ldif")); err == nil {
			schemas = p
			break
		}
	}
	if schemas == "" {
		return errors.New("slapd's schemas are not where packages put them")
	}
	modules := ""
	for _, p := range []string{"/usr/lib/ldap", "/usr/lib64/openldap", "/usr/lib/openldap"} {
		if _, err := os.Stat(filepath.Join(p, "back_mdb.so")); err == nil {
			modules = "olcModulePath: " + p + "\nolcModuleLoad: back_mdb\n"
			if o.shortest > 0 {
				modules += "olcModuleLoad: ppolicy\n"
			}
			break
		}
	}
	overlay := "olcDbNoSync: TRUE\n"
	if o.own {
		overlay = ""
	}
	if o.shortest > 0 {
		overlay += lengthy
	}
	for _, name := range []string{"config", "data"} {
		if err := os.Mkdir(filepath.Join(s.Dir, name), 0o700); err != nil {
			return err
		}
	}
	ca, err := s.Certify()
	if err != nil {
		return err
	}
	s.issuer, s.CA = ca, ca.PEM()
	verify := "never"
	if o.mutual {
		verify = "demand"
	}
	if err := s.Write("init.ldif", fmt.Appendf(nil, configuration, s.Dir, modules, schemas, overlay, verify)); err != nil {
		return err
	}
	// slapadd is slapd under another name.
	return s.Do(s.Command(s.program, "-Ta", "-n0", "-F", filepath.Join(s.Dir, "config"), "-l", filepath.Join(s.Dir, "init.ldif")))
}

// plant makes the root of the tree.
func (s *Server) plant(o options) error {
	c, err := s.root()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Add(entry(Suffix, "objectClass", "dcObject", "objectClass", "organization", "dc", "example", "o", "example")); err != nil {
		return err
	}
	if o.shortest == 0 {
		return nil
	}
	return c.Add(entry("cn=policy,"+Suffix, "objectClass", "person", "objectClass", "pwdPolicy", "cn", "policy", "sn", "policy",
		"pwdAttribute", "userPassword", "pwdCheckQuality", "2", "pwdMinLength", strconv.Itoa(o.shortest)))
}

// Up starts the server after it ended; Start and Own have done it once. The ports stay the same.
func (s *Server) Up() error {
	at := fmt.Sprintf("ldap://%s:%d/ ldaps://%s:%d/", s.Host, s.Port, s.Host, s.Safe)
	return s.Run(s.Command(s.program, "-d", "none", "-F", filepath.Join(s.Dir, "config"), "-h", at), func() error {
		c, err := s.root()
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// Certificate is one for a client, with its key, both PEM.
func (s *Server) Certificate(name string) (certificate, key []byte, err error) {
	return s.issuer.Client(name)
}

// URL leads to the server without TLS, unless StartTLS is asked for.
func (s *Server) URL() string { return fmt.Sprintf("ldap://%s:%d", s.Host, s.Port) }

// SafeURL leads to the server over TLS.
func (s *Server) SafeURL() string { return fmt.Sprintf("ldaps://%s:%d", s.Host, s.Safe) }

func (s *Server) root() (*ldap.Conn, error) { return s.dial(rootDN, password) }

func (s *Server) dial(dn, password string) (*ldap.Conn, error) {
	return login(s.URL(), dn, password)
}

// Branch is a part of the tree that is one test's alone.
type Branch struct {
	*Server
	DN      string // "ou=…"
	Manager string // DN of an account that may do everything here, and nothing elsewhere
	tree
}

// ManagerPassword is that of every branch's Manager, at first.
const ManagerPassword = "manager's-password"

// Branch makes a branch, which goes when the test ends.
func (s *Server) Branch(t testing.TB) *Branch {
	t.Helper()
	dn := fmt.Sprintf("ou=test%d,%s", branches.Add(1), Suffix)
	b := &Branch{Server: s, DN: dn, Manager: "cn=lessor," + dn, tree: tree{s, t}}
	t.Cleanup(b.fell)
	b.Add(dn, "objectClass", "organizationalUnit")
	b.Person("lessor", ManagerPassword)
	return b
}

// fell takes the branch away, as far as the server is up.
func (b *Branch) fell() {
	c, err := b.root()
	if err != nil {
		return
	}
	defer c.Close()
	found, err := c.Search(ldap.NewSearchRequest(b.DN, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", []string{"1.1"}, nil))
	if err != nil {
		return
	}
	for i := len(found.Entries) - 1; i >= 0; i-- {
		_ = c.Del(ldap.NewDelRequest(found.Entries[i].DN, nil))
	}
}

// Person makes an account "cn=NAME" in the branch, and returns its DN.
func (b *Branch) Person(name, password string) string {
	b.t.Helper()
	dn := "cn=" + name + "," + b.DN
	b.Add(dn, "objectClass", "inetOrgPerson", "cn", name, "sn", name, "uid", name)
	b.SetPassword(dn, password)
	return dn
}

// SetPassword changes a password, as an administrator does.
func (b *Branch) SetPassword(dn, password string) {
	b.t.Helper()
	b.do(func(c *ldap.Conn) error {
		_, err := c.PasswordModify(ldap.NewPasswordModifyRequest(dn, "", password))
		return err
	})
}

// Delete takes an entry away.
func (b *Branch) Delete(dn string) {
	b.t.Helper()
	b.do(func(c *ldap.Conn) error { return c.Del(ldap.NewDelRequest(dn, nil)) })
}

// Below are the DNs of the branch's entries, but for its own and its Manager's.
func (b *Branch) Below() (dns []string) {
	b.t.Helper()
	b.do(func(c *ldap.Conn) error {
		r, err := c.Search(ldap.NewSearchRequest(b.DN, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", []string{"1.1"}, nil))
		if err != nil {
			return err
		}
		for _, e := range r.Entries {
			if e.DN != b.DN && e.DN != b.Manager {
				dns = append(dns, e.DN)
			}
		}
		return nil
	})
	return dns
}
