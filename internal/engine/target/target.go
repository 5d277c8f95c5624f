// Package target is the way to what lessor makes credentials at: which addresses it connects to, how it tells that a server is the right
// one, and what it says of one that cannot be reached. Drivers of databases and brokers share it.
package target

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// metadata are addresses at which clouds tell a machine its own secrets, beyond the link-local ones.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("100.100.100.200/32"), netip.MustParsePrefix("168.63.129.16/32"), netip.MustParsePrefix("192.0.0.192/32"),
	netip.MustParsePrefix("fd00:ec2::/32"), netip.MustParsePrefix("fd20:ce::254/128"),
}

// translated are networks whose addresses end in that of the IPv4 host which they lead to: NAT64, IPv4-compatible.
var translated = []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("::/96")}

// ErrForbidden is why lessor does not connect to an address.
var ErrForbidden = errors.New("the host is link-local, multicast, unspecified, or a cloud's metadata service: lessor does not connect to these")

// Forbidden is ErrForbidden for an address that lessor does not connect to.
func Forbidden(ip netip.Addr) error {
	ip = ip.WithZone("").Unmap()
	holds := func(p netip.Prefix) bool { return p.Contains(ip) }
	if ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() || slices.ContainsFunc(metadata, holds) {
		return ErrForbidden
	}
	if b := ip.As16(); ip.Is6() && !ip.IsLoopback() && slices.ContainsFunc(translated, holds) {
		return Forbidden(netip.AddrFrom4([4]byte(b[12:])))
	}
	return nil
}

// Dialer connects within a time, and to no forbidden address, whatever name it was found by.
func Dialer(timeout time.Duration) *net.Dialer {
	return &net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second, ControlContext: permitted}
}

func permitted(_ context.Context, network, at string, _ syscall.RawConn) error {
	if network == "unix" {
		return nil
	}
	ip, err := netip.ParseAddrPort(at)
	if err != nil {
		return ErrForbidden
	}
	return Forbidden(ip.Addr())
}

// TLS is how to know a server, by who issued its certificate (PEM; empty: who the system trusts) and by its name, and to be known by a certificate
// (PEM; empty: none). Errors name the parameters tls_ca, tls_certificate and private_key.
func TLS(host, ca, certificate, key string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if ca != "" {
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM([]byte(ca)) {
			return nil, errors.New("tls_ca has no certificate in PEM")
		}
	}
	if certificate != "" || key != "" {
		pair, err := tls.X509KeyPair([]byte(certificate), []byte(key))
		if err != nil {
			return nil, errors.New("tls_certificate and private_key are not a certificate and its key, in PEM")
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// ChainOnly makes t verify who issued the server's certificate, but not its name.
func ChainOnly(t *tls.Config) *tls.Config {
	t.InsecureSkipVerify = true
	t.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("the server has no certificate")
		}
		o := x509.VerifyOptions{Roots: t.RootCAs, Intermediates: x509.NewCertPool()}
		for _, c := range state.PeerCertificates[1:] {
			o.Intermediates.AddCert(c)
		}
		_, err := state.PeerCertificates[0].Verify(o)
		return err
	}
	return t
}

// Unreachable says, free of secrets, why a server could not be asked, from the error of whatever was to ask it.
func Unreachable(err error) string {
	var (
		network   net.Error
		name      *net.DNSError
		untrusted *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		errno     syscall.Errno
	)
	switch {
	case errors.As(err, &untrusted), errors.As(err, &authority), errors.As(err, &host), errors.As(err, &invalid):
		return "its certificate is not trusted: it must be issued by tls_ca, for the name that is connected to"
	case errors.As(err, new(tls.RecordHeaderError)):
		return "it speaks no TLS at this port"
	case errors.Is(err, context.Canceled):
		return "the request ended"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return "it did not answer in time"
	case errors.As(err, &name):
		return "its name cannot be resolved"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return "the session broke off"
}
