package cert

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/auth"
)

// accepts reports whether a client with this chain, its own certificate first, may have tokens of the role at now.
func (ro *role) accepts(chain []*x509.Certificate, lists []*crl, now time.Time) bool {
	return ro.trusts(chain, lists, now) && ro.permits(chain[0])
}

// trusts reports whether the certificate is one of the role's, or leads to one of its authorities by way of what came with it, and nothing on
// that way is revoked.
func (ro *role) trusts(chain []*x509.Certificate, lists []*crl, now time.Time) bool {
	leaf := chain[0]
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, der := range ro.Certificates {
		c, err := x509.ParseCertificate(der)
		switch {
		case err != nil:
		case c.IsCA:
			roots.AddCert(c)
		case bytes.Equal(der, leaf.Raw):
			return !now.Before(leaf.NotBefore) && !now.After(leaf.NotAfter) && !revoked(lists, []*x509.Certificate{leaf})
		}
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	ways, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err == nil && slices.ContainsFunc(ways, func(way []*x509.Certificate) bool { return !revoked(lists, way) })
}

// permits reports whether what stands in the certificate is as the role asks for.
func (ro *role) permits(c *x509.Certificate) bool {
	common := []string{c.Subject.CommonName}
	var uris []string
	for _, u := range c.URIs {
		uris = append(uris, u.String())
	}
	for _, must := range []struct{ globs, have []string }{
		{ro.Names, slices.Concat(common, c.DNSNames, c.EmailAddresses)}, {ro.CommonNames, common}, {ro.DNS, c.DNSNames}, {ro.Emails, c.EmailAddresses},
		{ro.URIs, uris}, {ro.Units, c.Subject.OrganizationalUnit},
	} {
		if len(must.globs) > 0 && !slices.ContainsFunc(must.have, func(s string) bool { return matches(must.globs, s) }) {
			return false
		}
	}
	return !slices.ContainsFunc(ro.Extensions, func(text string) bool { return !extended(c, text) })
}

func matches(globs []string, s string) bool {
	return s != "" && slices.ContainsFunc(globs, func(g string) bool { return auth.Glob(g, s) })
}

// extended reports whether the certificate has a required extension.
func extended(c *x509.Certificate, text string) bool {
	must, err := parseExtension(text)
	if err != nil {
		return false
	}
	value, ok := valueOf(c, must.oid)
	if !ok {
		return false
	}
	if must.value != nil {
		return bytes.Equal(must.value, value)
	}
	s, ok := textOf(value)
	return ok && auth.Glob(must.glob, s)
}

func valueOf(c *x509.Certificate, oid asn1.ObjectIdentifier) ([]byte, bool) {
	for _, x := range c.Extensions {
		if x.Id.Equal(oid) {
			return x.Value, true
		}
	}
	return nil, false
}

// textOf is the text that an extension consists of.
func textOf(value []byte) (string, bool) {
	var s string
	rest, err := asn1.Unmarshal(value, &s)
	return s, err == nil && len(rest) == 0
}

// identity is whom a certificate is for: its common name or, where there is none as with SPIFFE, its first alternative name.
func identity(c *x509.Certificate) string {
	switch {
	case c.Subject.CommonName != "":
		return c.Subject.CommonName
	case len(c.URIs) > 0:
		return c.URIs[0].String()
	case len(c.DNSNames) > 0:
		return c.DNSNames[0]
	case len(c.EmailAddresses) > 0:
		return c.EmailAddresses[0]
	}
	return ""
}

// metadata is that of tokens for the certificate, as Vault's.
func (ro *role) metadata(name string, c *x509.Certificate) map[string]string {
	out := map[string]string{
		"cert_name": name, "common_name": c.Subject.CommonName, "serial_number": c.SerialNumber.String(),
		"subject_key_id": octets(c.SubjectKeyId), "authority_key_id": octets(c.AuthorityKeyId),
	}
	for _, text := range ro.MetadataOIDs {
		oid, _ := parseOID(text)
		if value, ok := valueOf(c, oid); ok {
			if s, ok := textOf(value); ok {
				out[strings.ReplaceAll(text, ".", "-")] = s
			}
		}
	}
	return out
}

// octets writes bytes as 01:ab:….
func octets(b []byte) string {
	parts := make([]string, len(b))
	for i := range b {
		parts[i] = hex.EncodeToString(b[i : i+1])
	}
	return strings.Join(parts, ":")
}
