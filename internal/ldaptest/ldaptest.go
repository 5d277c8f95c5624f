// Package ldaptest gives tests a real directory server of their own, OpenLDAP's slapd: on free loopback ports, in a temporary folder,
// gone when the test process is, however that ends.
//
// Where no slapd is installed, a test fails; under -short it skips instead, unless CI=true.
package ldaptest

import (
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

	"github.com/go-ldap/ldap/v3"
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
	Host string // 127.0.0.1
	Port int    // of ldap://, StartTLS included
	Safe int    // of ldaps://
	CA   []byte // PEM, of who issued its certificate for "localhost" and 127.0.0.1
	Log  string // file that the server logs to

	dir    string
	bin    string
	issuer *issuer
	stop   func() // stops the watch, and so the server, and removes all
	mu     sync.Mutex
	pid    int
}

var (
	sharedMu sync.Mutex
	shared   = map[options]*Server{}
	branches atomic.Int64
)

// Start returns the test process's server for these options, starting it if this is the first to ask. Tests that share it keep apart by
// Branch.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	bin := binary(t)
	o := chosen(opts)
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if s := shared[o]; s != nil {
		return s
	}
	s, err := start(bin, o)
	if err != nil {
		t.Fatalf("ldaptest: %v", err)
	}
	shared[o] = s
	return s
}

// Own starts a server for this test alone, which may stop, pause or kill it: what was acknowledged survives that. It is removed when the
// test ends.
func Own(t testing.TB, opts ...Option) *Server {
	t.Helper()
	bin := binary(t)
	o := chosen(opts)
	o.own = true
	s, err := start(bin, o)
	if err != nil {
		t.Fatalf("ldaptest: %v", err)
	}
	t.Cleanup(s.stop)
	return s
}

func chosen(opts []Option) (o options) {
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// binary is slapd's program.
func binary(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"slapd", "/usr/sbin/slapd", "/usr/local/libexec/slapd"} {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	if testing.Short() && os.Getenv("CI") != "true" {
		t.Skip("ldaptest: no OpenLDAP server is installed (Debian: apt-get install slapd)")
	}
	t.Fatal("ldaptest: no OpenLDAP server is installed (Debian: apt-get install slapd); -short skips these tests")
	return ""
}

func start(bin string, o options) (*Server, error) {
	dir, err := os.MkdirTemp("/tmp", "ldaptest-")
	if err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", Log: filepath.Join(dir, "log"), dir: dir, bin: bin}
	if err := s.watch(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	if err := s.create(o); err != nil {
		s.stop()
		return nil, err
	}
	for range 3 { // another process may take a port between finding it free and binding it
		if err = s.Up(); err == nil {
			break
		}
		s.Port, s.Safe = 0, 0
	}
	if err == nil {
		err = s.plant()
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
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
		if err := os.Mkdir(filepath.Join(s.dir, name), 0o700); err != nil {
			return err
		}
	}
	if err := s.certify(); err != nil {
		return err
	}
	verify := "never"
	if o.mutual {
		verify = "demand"
	}
	init := filepath.Join(s.dir, "init.ldif")
	if err := os.WriteFile(init, fmt.Appendf(nil, configuration, s.dir, modules, schemas, overlay, verify), 0o600); err != nil {
		return err
	}
	// slapadd is slapd under another name.
	cmd := s.command("-Ta", "-n0", "-F", filepath.Join(s.dir, "config"), "-l", init)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("slapadd: %w\n%s", err, out)
	}
	if o.shortest == 0 {
		return nil
	}
	return os.WriteFile(filepath.Join(s.dir, "shortest"), []byte(strconv.Itoa(o.shortest)), 0o600)
}

// plant makes the root of the tree.
func (s *Server) plant() error {
	c, err := s.root()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Add(entry(Suffix, "objectClass", "dcObject", "objectClass", "organization", "dc", "example", "o", "example")); err != nil {
		return err
	}
	shortest, err := os.ReadFile(filepath.Join(s.dir, "shortest"))
	if err != nil {
		return nil
	}
	return c.Add(entry("cn=policy,"+Suffix, "objectClass", "person", "objectClass", "pwdPolicy", "cn", "policy", "sn", "policy",
		"pwdAttribute", "userPassword", "pwdCheckQuality", "2", "pwdMinLength", string(shortest)))
}

// watch starts a shell that waits for its standard input to end, which it does when this process ends in whatever way (or by stop), and then
// takes the server down and its folder away.
func (s *Server) watch() error {
	cmd := exec.Command("/bin/sh", "-c", `read -r _
[ -f "$0/pid" ] && {
  pid=$(cat "$0/pid")
  kill -CONT "$pid" 2>/dev/null
  kill -TERM "$pid" 2>/dev/null
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do kill -0 "$pid" 2>/dev/null || break; sleep 0.05; done
  kill -KILL "$pid" 2>/dev/null
}
rm -rf "$0"`, s.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.stop = sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Wait()
	})
	return nil
}

// Up starts the server after Down or Kill; Start and Own have done it once. The ports stay the same.
func (s *Server) Up() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range []*int{&s.Port, &s.Safe} {
		if *p == 0 {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			*p = l.Addr().(*net.TCPAddr).Port
			l.Close()
		}
	}
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.command("-d", "none", "-F", filepath.Join(s.dir, "config"), "-h", fmt.Sprintf("ldap://%s:%d/ ldaps://%s:%d/", s.Host, s.Port, s.Host, s.Safe))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := s.root(); err == nil {
			c.Close()
			s.pid = cmd.Process.Pid
			return nil
		}
		select {
		case err := <-ended:
			said, _ := os.ReadFile(s.Log)
			return fmt.Errorf("starting slapd: %w\n%s", err, said)
		default:
		}
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			said, _ := os.ReadFile(s.Log)
			return fmt.Errorf("slapd does not answer\n%s", said)
		}
	}
}

// Down stops the server in an orderly way.
func (s *Server) Down() error { return s.end(syscall.SIGTERM) }

// Kill ends the server as a crash does.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

func (s *Server) end(sig syscall.Signal) error {
	if err := s.signal(sig); err != nil {
		return err
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", net.JoinHostPort(s.Host, strconv.Itoa(s.Port))); err != nil {
			return nil
		} else {
			c.Close()
		}
	}
	return errors.New("slapd did not end")
}

// Pause stops the server where it is: connections are accepted by the kernel, and nothing answers.
func (s *Server) Pause() error {
	if err := s.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if s.stopped() {
			return nil
		}
	}
	return errors.New("slapd did not stop")
}

// stopped reports whether all threads of the server have stopped.
func (s *Server) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.pid))
	for _, t := range threads {
		stat, err := os.ReadFile(t)
		if _, state, ok := strings.Cut(string(stat), ") "); err == nil && (!ok || !strings.HasPrefix(state, "T")) {
			return false
		}
	}
	return len(threads) > 0
}

// Resume undoes Pause.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return syscall.Kill(s.pid, sig)
}

// URL leads to the server without TLS, unless StartTLS is asked for.
func (s *Server) URL() string { return fmt.Sprintf("ldap://%s:%d", s.Host, s.Port) }

// SafeURL leads to the server over TLS.
func (s *Server) SafeURL() string { return fmt.Sprintf("ldaps://%s:%d", s.Host, s.Safe) }

func (s *Server) root() (*ldap.Conn, error) { return s.dial(rootDN, password) }

func (s *Server) dial(dn, password string) (*ldap.Conn, error) {
	c, err := ldap.DialURL(s.URL(), ldap.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}))
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

// Branch is a part of the tree that is one test's alone.
type Branch struct {
	*Server
	DN      string // "ou=…"
	Manager string // DN of an account that may do everything here, and nothing elsewhere
	t       testing.TB
}

// ManagerPassword is that of every branch's Manager, at first.
const ManagerPassword = "manager's-password"

// Branch makes a branch, which goes when the test ends.
func (s *Server) Branch(t testing.TB) *Branch {
	t.Helper()
	dn := fmt.Sprintf("ou=test%d,%s", branches.Add(1), Suffix)
	b := &Branch{Server: s, DN: dn, Manager: "cn=lessor," + dn, t: t}
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

// Add makes an entry, as an administrator does: attributes are names and values in turn.
func (b *Branch) Add(dn string, attributes ...string) {
	b.t.Helper()
	b.do(func(c *ldap.Conn) error { return c.Add(entry(dn, attributes...)) })
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

// Modify replaces an attribute's values; none removes it.
func (b *Branch) Modify(dn, attribute string, values ...string) {
	b.t.Helper()
	b.do(func(c *ldap.Conn) error {
		r := ldap.NewModifyRequest(dn, nil)
		r.Replace(attribute, values)
		return c.Modify(r)
	})
}

// Delete takes an entry away.
func (b *Branch) Delete(dn string) {
	b.t.Helper()
	b.do(func(c *ldap.Conn) error { return c.Del(ldap.NewDelRequest(dn, nil)) })
}

// Entry is an entry with its attributes; nil if there is none.
func (b *Branch) Entry(dn string) *ldap.Entry {
	b.t.Helper()
	var found *ldap.Entry
	b.do(func(c *ldap.Conn) error {
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

// LogsIn reports whether a password is an account's.
func (b *Branch) LogsIn(dn, password string) bool {
	b.t.Helper()
	c, err := b.dial(dn, password)
	if err != nil {
		if !ldap.IsErrorWithCode(err, ldap.LDAPResultInvalidCredentials) {
			b.t.Fatalf("ldaptest: logging in as %s: %v", dn, err)
		}
		return false
	}
	c.Close()
	return true
}

func (b *Branch) do(f func(*ldap.Conn) error) {
	b.t.Helper()
	c, err := b.root()
	if err == nil {
		defer c.Close()
		err = f(c)
	}
	if err != nil {
		b.t.Fatalf("ldaptest: %v", err)
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

func (s *Server) command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.bin, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}
