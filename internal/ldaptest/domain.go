package ldaptest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unicode/utf16"

	"github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/internal/servertest"
)

// DomainSuffix is the root of a Domain's tree, and DomainName what its accounts' names end with.
const (
	DomainSuffix = "DC=example,DC=org"
	DomainName   = "example.org"
)

const (
	administrator         = "CN=Administrator,CN=Users," + DomainSuffix
	administratorPassword = "Administrator-1"
)

// Domain is a running Active Directory, of Samba's: its LDAP server at 127.0.0.1, on the ports that such a one has.
type Domain struct {
	*servertest.Daemon
	CA []byte // PEM, of who issued its certificate for "localhost" and 127.0.0.1
}

var (
	domainMu sync.Mutex
	domain   *Domain
	units    atomic.Int64
)

// StartDomain returns the test process's domain, making it if this is the first to ask, which takes some ten seconds. It wants root, for its ports and for
// the owners of files; where that, or Samba, is missing the test is skipped: scripts/others runs it.
func StartDomain(t testing.TB) *Domain {
	t.Helper()
	if _, err := exec.LookPath("samba-tool"); err != nil || os.Getuid() != 0 {
		t.Skip("ldaptest: there is no Samba that could be a domain controller (Debian, as root: apt-get install samba-ad-dc samba-ad-provision)")
	}
	domainMu.Lock()
	defer domainMu.Unlock()
	if domain == nil {
		d, err := startDomain()
		if err != nil {
			t.Fatalf("ldaptest: %v", err)
		}
		domain = d
	}
	return domain
}

func startDomain() (*Domain, error) {
	if c, err := net.Dial("tcp", "127.0.0.1:636"); err == nil {
		c.Close()
		return nil, errors.New("somebody listens at 127.0.0.1:636 already")
	}
	daemon, err := servertest.Kind{Name: "Samba", Starter: "domaintest", Debian: "samba-ad-dc"}.Open()
	if err != nil {
		return nil, err
	}
	d := &Domain{Daemon: daemon}
	return d, d.Begin(d.provision, d.up)
}

// provision makes the domain.
func (d *Domain) provision() error {
	ca, err := d.Certify()
	if err != nil {
		return err
	}
	d.CA = ca.PEM()
	cmd := d.Command("samba-tool", "domain", "provision", "--realm="+strings.ToUpper(DomainName), "--domain=EXAMPLE", "--server-role=dc", "--dns-backend=NONE",
		"--host-name=dc1", "--host-ip=127.0.0.1", "--adminpass="+administratorPassword, "--targetdir="+d.Dir,
		"--option=xattr_tdb:file="+d.Dir+"/xattr.tdb", "--option=vfs objects=dfs_samba4 acl_xattr xattr_tdb")
	cmd.Env = append(cmd.Env, "LC_ALL=C.UTF-8")
	return d.Do(cmd)
}

// up starts the domain's LDAP server.
func (d *Domain) up() error {
	cmd := d.Command("samba", "-s", filepath.Join(d.Dir, "etc/smb.conf"), "-i", "-d1", "--debug-stdout", "--option=server services=ldap",
		"--option=interfaces=127.0.0.1/8", "--option=bind interfaces only=yes", "--option=pid directory="+d.Dir, "--option=ncalrpc dir="+d.Dir+"/ncalrpc",
		"--option=tls cafile="+d.Dir+"/ca.crt", "--option=tls certfile="+d.Dir+"/server.crt", "--option=tls keyfile="+d.Dir+"/server.key")
	cmd.Env = append(cmd.Env, "LC_ALL=C.UTF-8")
	return d.Run(cmd, func() error {
		c, err := d.root()
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// URL leads to the domain controller, over TLS.
func (d *Domain) URL() string { return "ldaps://127.0.0.1" }

func (d *Domain) root() (*ldap.Conn, error) { return d.dial(administrator, administratorPassword) }

func (d *Domain) dial(dn, password string) (*ldap.Conn, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(d.CA)
	return login(d.URL(), dn, password, ldap.DialWithTLSConfig(&tls.Config{RootCAs: roots}))
}

// Unit is an organizational unit that is one test's alone.
type Unit struct {
	*Domain
	DN      string // "OU=…"
	Manager string // DN of an account that may do everything in the unit, where it is itself, and is nobody elsewhere
	tree
}

// UnitPassword is that of every unit's Manager, at first.
const UnitPassword = "Manager's-1st"

// Unit makes a unit.
func (d *Domain) Unit(t testing.TB) *Unit {
	t.Helper()
	n := units.Add(1)
	dn := fmt.Sprintf("OU=test%d,%s", n, DomainSuffix)
	u := &Unit{Domain: d, DN: dn, tree: tree{d, t}}
	u.Add(dn, "objectClass", "organizationalUnit")
	u.Manager = u.User(fmt.Sprintf("lessor%d", n), UnitPassword)
	u.tool("dsacl", "set", "--objectdn="+dn, "--sddl=(A;CI;GA;;;"+u.sid(u.Manager)+")")
	return u
}

// tool runs one of samba-tool's commands, as the administrator.
func (u *Unit) tool(args ...string) {
	u.t.Helper()
	cmd := u.Command("samba-tool", append(args, "-H", filepath.Join(u.Dir, "private/sam.ldb"), "-s", filepath.Join(u.Dir, "etc/smb.conf"))...)
	cmd.Env = append(cmd.Env, "LC_ALL=C.UTF-8")
	if err := u.Do(cmd); err != nil {
		u.t.Fatalf("ldaptest: samba-tool %v: %v", args, err)
	}
}

// PasswordSetting changes one of the domain's rules about passwords, as "samba-tool domain passwordsettings" has them.
func (u *Unit) PasswordSetting(name, value string) {
	u.t.Helper()
	u.tool("domain", "passwordsettings", "set", "--"+name+"="+value)
}

func (u *Unit) sid(dn string) string {
	b := u.Entry(dn).GetRawAttributeValue("objectSid")
	var authority uint64
	for _, x := range b[2:8] {
		authority = authority<<8 | uint64(x)
	}
	text := fmt.Sprintf("S-%d-%d", b[0], authority)
	for b = b[8:]; len(b) >= 4; b = b[4:] {
		text += fmt.Sprintf("-%d", uint32(b[0])|uint32(b[1])<<8|uint32(b[2])<<16|uint32(b[3])<<24)
	}
	return text
}

// User makes an account that can log in, and returns its DN.
func (u *Unit) User(name, password string) string {
	u.t.Helper()
	dn := "CN=" + name + "," + u.DN
	u.Add(dn, "objectClass", "user", "sAMAccountName", name, "userPrincipalName", name+"@"+DomainName)
	u.Modify(dn, "unicodePwd", inQuotes(password))
	u.Modify(dn, "userAccountControl", "66048") // a normal account, whose password never expires
	return dn
}

func inQuotes(password string) string {
	var b []byte
	for _, c := range utf16.Encode([]rune(`"` + password + `"`)) {
		b = append(b, byte(c), byte(c>>8))
	}
	return string(b)
}
