package servertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"time"
)

// CA issues certificates that are valid for a day.
type CA struct {
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes one.
func NewCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "servertest CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root.Raw, err = x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	return &CA{root, key}, err
}

// PEM is its own certificate.
func (c *CA) PEM() []byte { return block("CERTIFICATE", c.root.Raw) }

// Server is a certificate for this machine's loopback names, with its key, both PEM.
func (c *CA) Server() (certificate, key []byte, err error) {
	return c.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// Client is a certificate for a client of that name, with its key, both PEM.
func (c *CA) Client(name string) (certificate, key []byte, err error) {
	return c.issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

func (c *CA) issue(of *x509.Certificate) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	of.SerialNumber, of.KeyUsage = big.NewInt(time.Now().UnixNano()), x509.KeyUsageDigitalSignature
	of.NotBefore, of.NotAfter = c.root.NotBefore, c.root.NotAfter
	der, err := x509.CreateCertificate(rand.Reader, of, c.root, private.Public(), c.key)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return block("CERTIFICATE", der), block("EC PRIVATE KEY", encoded), nil
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Certify makes a CA, and writes what a server with TLS needs into the folder: ca.crt, and server.crt with server.key.
func (d *Daemon) Certify() (*CA, error) {
	ca, err := NewCA()
	if err != nil {
		return nil, err
	}
	certificate, key, err := ca.Server()
	if err != nil {
		return nil, err
	}
	return ca, errors.Join(d.Write("ca.crt", ca.PEM()), d.Write("server.crt", certificate), d.Write("server.key", key))
}
