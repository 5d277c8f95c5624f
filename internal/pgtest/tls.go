package pgtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

// ByCertificate is a role that a test may make at a Server with TLS: its members log in by a certificate in their name (Server.Certificate), and with
// no password.
const ByCertificate = "by_certificate"

// issuer is a CA.
type issuer struct {
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuer() (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	from, to := validity()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pgtest CA"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		return nil, err
	}
	root.Raw = der
	return &issuer{root, key}, nil
}

// validity is that of all certificates.
func validity() (from, to time.Time) {
	return time.Now().Add(-time.Hour), time.Now().Add(24 * time.Hour)
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// pem is the CA's own certificate.
func (i *issuer) pem() []byte { return block("CERTIFICATE", i.root.Raw) }

// issue makes a certificate, and its key, as PEM.
func (i *issuer) issue(c *x509.Certificate) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	c.NotBefore, c.NotAfter = validity()
	c.SerialNumber, c.KeyUsage = big.NewInt(time.Now().UnixNano()), x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, c, i.root, private.Public(), i.key)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return block("CERTIFICATE", der), block("EC PRIVATE KEY", encoded), nil
}

// server makes a certificate for this machine's loopback names.
func (i *issuer) server() (certificate, key []byte, err error) {
	return i.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// Certificate is one, with its key, both PEM, by which a member of ByCertificate logs in at a Server with TLS.
func (s *Server) Certificate(role string) (certificate, key []byte, err error) {
	return s.issuer.issue(&x509.Certificate{Subject: pkix.Name{CommonName: role}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

// OtherCA is the certificate of a CA that has issued nothing.
func OtherCA() ([]byte, error) {
	i, err := newIssuer()
	if err != nil {
		return nil, err
	}
	return i.pem(), nil
}

// ServerCertificate is a certificate for this machine's loopback names, its key and the CA that issued it, all PEM, for other servers that tests start.
func ServerCertificate() (ca, certificate, key []byte, err error) {
	i, err := newIssuer()
	if err != nil {
		return nil, nil, nil, err
	}
	certificate, key, err = i.server()
	return i.pem(), certificate, key, err
}
