package server

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync/atomic"
)

// Certificate is a TLS certificate in files, which may change, with the authorities of clients' certificates. Calls are concurrent.
type Certificate struct {
	certFile, keyFile string
	clients           Clients
	current           atomic.Pointer[tls.Certificate]
	authorities       atomic.Pointer[x509.CertPool] // nil: none
}

// Clients says how a listener asks clients for certificates. Unless it is told otherwise it takes any, or none: what a certificate is
// good for, logins find out.
type Clients struct {
	Ignore  bool   // ask for none
	Require bool   // take no connection without one that an authority of File vouches for
	File    string // PEM; empty: no authorities
}

// LoadCertificate reads the pair of PEM files, and the file of clients.
func LoadCertificate(certFile, keyFile string, clients Clients) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, clients: clients}
	return c, c.Reload()
}

// Reload reads the files again. After an error the certificate is what it was.
func (c *Certificate) Reload() error {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("TLS certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	if c.clients.File != "" {
		text, err := os.ReadFile(c.clients.File)
		if err != nil {
			return fmt.Errorf("authorities of clients: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return fmt.Errorf("authorities of clients: %s holds no certificate in PEM", c.clients.File)
		}
		c.authorities.Store(pool)
	}
	c.current.Store(&pair)
	return nil
}

// Config is the TLS configuration of a listener that shows the certificate; connections made before a Reload keep
// the one they began with. min is the lowest version accepted, 0: TLS 1.2.
func (c *Certificate) Config(min uint16) *tls.Config {
	if min == 0 {
		min = tls.VersionTLS12
	}
	config := &tls.Config{
		MinVersion:     min,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
		ClientAuth:     tls.RequestClientCert,
	}
	switch {
	case c.clients.Ignore:
		config.ClientAuth = tls.NoClientCert
	case c.clients.Require:
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if c.clients.File != "" && !c.clients.Ignore {
		base := config.Clone()
		config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			now := base.Clone()
			now.ClientCAs = c.authorities.Load()
			return now, nil
		}
	}
	return config
}
