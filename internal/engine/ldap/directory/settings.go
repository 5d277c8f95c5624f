package directory

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/engine/target"
)

// address is a server's.
type address struct {
	host   string // as certificates have it
	at     string // host:port
	tls    bool   // from the beginning
	upward bool   // StartTLS
}

// settings is a configuration, read.
type settings struct {
	servers []address
	tls     *tls.Config // without a name
	connect time.Duration
	request time.Duration
}

// read reads a configuration, strictly. Its errors are for whoever wrote it.
func read(c *ldap.Config, s ldap.Secrets) (*settings, error) {
	out := &settings{connect: cmp.Or(c.ConnectTimeout, ldap.ConnectTimeout), request: cmp.Or(c.RequestTimeout, ldap.RequestTimeout)}
	for raw := range strings.SplitSeq(c.URL, ",") {
		a, err := parse(strings.TrimSpace(raw))
		if err != nil {
			return nil, err
		}
		a.upward = c.StartTLS && !a.tls
		if c.Schema == ldap.AD && !a.tls && !a.upward {
			return nil, errors.New("url: Active Directory takes passwords over TLS only: use ldaps://, or starttls=true")
		}
		out.servers = append(out.servers, a)
	}
	for name, dn := range map[string]string{"binddn": c.BindDN, "userdn": c.UserDN} {
		if _, err := goldap.ParseDN(dn); err != nil && !(name == "binddn" && c.Schema == ldap.AD && strings.Contains(dn, "@")) {
			return nil, fmt.Errorf("%s is no distinguished name, such as cn=lessor,dc=example,dc=org", name)
		}
	}
	var err error
	out.tls, err = encryption(c, s)
	return out, err
}

func parse(raw string) (address, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return address{}, errors.New("url is not well-formed")
	}
	port := ""
	switch u.Scheme {
	case "ldap":
		port = "389"
	case "ldaps":
		port = "636"
	default:
		return address{}, errors.New("url must be ldap://HOST, ldaps://HOST, or several of them with commas in between")
	}
	switch {
	case u.User != nil:
		return address{}, errors.New("url must not hold a login: use binddn and bindpass")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return address{}, errors.New("url must name hosts only: use userdn for where to search")
	case u.Hostname() == "":
		return address{}, errors.New("url names no host")
	}
	if p := u.Port(); p != "" {
		port = p
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		if err := target.Forbidden(ip); err != nil {
			return address{}, err
		}
	}
	return address{host: u.Hostname(), at: net.JoinHostPort(u.Hostname(), port), tls: u.Scheme == "ldaps"}, nil
}

var versions = map[string]uint16{"": tls.VersionTLS12, "tls12": tls.VersionTLS12, "tls13": tls.VersionTLS13}

func encryption(c *ldap.Config, s ldap.Secrets) (*tls.Config, error) {
	t := &tls.Config{InsecureSkipVerify: c.InsecureTLS}
	var ok bool
	if t.MinVersion, ok = versions[c.MinTLS]; !ok {
		return nil, errors.New("tls_min_version must be tls12 or tls13")
	}
	if t.MaxVersion, ok = versions[c.MaxTLS]; !ok || c.MaxTLS == "" {
		t.MaxVersion = 0
	}
	if !ok || t.MaxVersion != 0 && t.MaxVersion < t.MinVersion {
		return nil, errors.New("tls_max_version must be tls12 or tls13, and not less than tls_min_version")
	}
	if c.CA != "" {
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM([]byte(c.CA)) {
			return nil, errors.New("certificate has no certificate in PEM")
		}
	}
	if c.Certificate != "" || !s.PrivateKey.Empty() {
		pair, err := tls.X509KeyPair([]byte(c.Certificate), []byte(s.PrivateKey.Reveal()))
		if err != nil {
			return nil, errors.New("client_tls_cert and client_tls_key are not a certificate and its key, in PEM")
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}
