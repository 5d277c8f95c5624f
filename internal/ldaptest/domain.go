package ldaptest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/internal/pgtest"
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
	CA []byte // PEM, of who issued its certificate for "localhost" and 127.0.0.1

	dir  string
	stop func()
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
	dir, err := os.MkdirTemp("/tmp", "domaintest-")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir} // which has the watch
	if err := s.watch(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	d := &Domain{dir: dir, stop: s.stop}
	if err = d.provision(); err == nil {
		err = d.up()
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return d, nil
}

// provision makes the domain.
func (d *Domain) provision() error {
	ca, certificate, key, err := pgtest.ServerCertificate()
	if err != nil {
		return err
	}
	d.CA = ca
	for name, content := range map[string][]byte{"ca.crt": ca, "server.crt": certificate, "server.key": key} {
		if err := os.WriteFile(filepath.Join(d.dir, name), content, 0o600); err != nil {
			return err
		}
	}
	cmd := exec.Command("samba-tool", "domain", "provision", "--realm="+strings.ToUpper(DomainName), "--domain=EXAMPLE", "--server-role=dc", "--dns-backend=NONE",
		"--host-name=dc1", "--host-ip=127.0.0.1", "--adminpass="+administratorPassword, "--targetdir="+d.dir,
		"--option=xattr_tdb:file="+d.dir+"/xattr.tdb", "--option=vfs objects=dfs_samba4 acl_xattr xattr_tdb")
	cmd.Env, cmd.Dir = d.environment(), d.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("samba-tool domain provision: %w\n%s", err, out)
	}
	return nil
}

func (d *Domain) environment() []string {
	return []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8", "HOME=" + d.dir, "TMPDIR=" + d.dir}
}

// up starts the domain's LDAP server.
func (d *Domain) up() error {
	cmd := exec.Command("samba", "-s", filepath.Join(d.dir, "etc/smb.conf"), "-i", "-d1", "--debug-stdout", "--option=server services=ldap",
		"--option=interfaces=127.0.0.1/8", "--option=bind interfaces only=yes", "--option=pid directory="+d.dir, "--option=ncalrpc dir="+d.dir+"/ncalrpc",
		"--option=tls cafile="+d.dir+"/ca.crt", "--option=tls certfile="+d.dir+"/server.crt", "--option=tls keyfile="+d.dir+"/server.key")
	var said bytes.Buffer
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = d.environment(), d.dir, &said, &said, 5*time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	err := os.WriteFile(filepath.Join(d.dir, "pid"), []byte(strconv.Itoa(-cmd.Process.Pid)), 0o600) // all that it starts, for the watch
	for end := time.Now().Add(2 * time.Minute); err == nil; time.Sleep(50 * time.Millisecond) {
		c, failure := d.dial(administrator, administratorPassword)
		if failure == nil {
			c.Close()
			return nil
		}
		select {
		case err = <-ended:
			return fmt.Errorf("starting samba: %w\n%s", err, said.String())
		default:
		}
		if time.Now().After(end) {
			err = fmt.Errorf("samba does not answer: %w", failure)
		}
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	<-ended
	return fmt.Errorf("%w\n%s", err, said.String())
}

// URL leads to the domain controller, over TLS.
func (d *Domain) URL() string { return "ldaps://127.0.0.1" }

func (d *Domain) dial(dn, password string) (*ldap.Conn, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(d.CA)
	c, err := ldap.DialURL(d.URL(), ldap.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}), ldap.DialWithTLSConfig(&tls.Config{RootCAs: roots}))
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

// Unit is an organizational unit that is one test's alone.
type Unit struct {
	*Domain
	DN      string // "OU=…"
	Manager string // DN of an account that may do everything in the unit, where it is itself, and is nobody elsewhere
	t       testing.TB
	n       int64
}

// UnitPassword is that of every unit's Manager, at first.
const UnitPassword = "Manager's-1st"

// Unit makes a unit.
func (d *Domain) Unit(t testing.TB) *Unit {
	t.Helper()
	n := units.Add(1)
	dn := fmt.Sprintf("OU=test%d,%s", n, DomainSuffix)
	u := &Unit{Domain: d, DN: dn, t: t, n: n}
	u.Add(dn, "objectClass", "organizationalUnit")
	u.Manager = u.User(fmt.Sprintf("lessor%d", n), UnitPassword)
	u.tool("dsacl", "set", "--objectdn="+dn, "--sddl=(A;CI;GA;;;"+u.sid(u.Manager)+")")
	return u
}

// tool runs one of samba-tool's commands, as the administrator.
func (u *Unit) tool(args ...string) {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "samba-tool", append(args, "-H", filepath.Join(u.dir, "private/sam.ldb"), "-s", filepath.Join(u.dir, "etc/smb.conf"))...)
	cmd.Env, cmd.Dir = u.environment(), u.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		u.t.Fatalf("ldaptest: samba-tool %v: %v\n%s", args, err, out)
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

// Add makes an entry, as the administrator does: attributes are names and values in turn.
func (u *Unit) Add(dn string, attributes ...string) {
	u.t.Helper()
	u.do(func(c *ldap.Conn) error { return c.Add(entry(dn, attributes...)) })
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

// Modify replaces an attribute's values; none removes it.
func (u *Unit) Modify(dn, attribute string, values ...string) {
	u.t.Helper()
	u.do(func(c *ldap.Conn) error {
		r := ldap.NewModifyRequest(dn, nil)
		r.Replace(attribute, values)
		return c.Modify(r)
	})
}

// Entry is an entry with its attributes; nil if there is none.
func (u *Unit) Entry(dn string) (found *ldap.Entry) {
	u.t.Helper()
	u.do(func(c *ldap.Conn) error {
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
func (u *Unit) LogsIn(dn, password string) bool {
	u.t.Helper()
	c, err := u.dial(dn, password)
	if err != nil {
		if !ldap.IsErrorWithCode(err, ldap.LDAPResultInvalidCredentials) {
			u.t.Fatalf("ldaptest: logging in as %s: %v", dn, err)
		}
		return false
	}
	c.Close()
	return true
}

func (u *Unit) do(f func(*ldap.Conn) error) {
	u.t.Helper()
	c, err := u.dial(administrator, administratorPassword)
	if err == nil {
		defer c.Close()
		err = f(c)
	}
	if err != nil {
		u.t.Fatalf("ldaptest: %v", err)
	}
}
