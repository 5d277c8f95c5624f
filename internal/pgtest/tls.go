package pgtest

import "github.com/lessor-dev/lessor/internal/servertest"

// ByCertificate is a role that a test may make at a Server with TLS: its members log in by a certificate in their name (Server.Certificate), and with
// no password.
const ByCertificate = "by_certificate"

// Certificate is one, with its key, both PEM, by which a member of ByCertificate logs in at a Server with TLS.
func (s *Server) Certificate(role string) (certificate, key []byte, err error) {
	return s.issuer.Client(role)
}

// OtherCA is the certificate of a CA that has issued nothing.
func OtherCA() ([]byte, error) {
	ca, err := servertest.NewCA()
	if err != nil {
		return nil, err
	}
	return ca.PEM(), nil
}
