package cert

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"strconv"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
)

// role says which certificates are trusted and on which terms they get tokens. Lists are of globs: one must match, where there are
// any. CBOR keys are on disk: never renumber, only append.
type role struct {
	Certificates [][]byte          `cbor:"1,keyasint"` // DER: of authorities, or of clients themselves
	Names        []string          `cbor:"2,keyasint,omitempty"`
	CommonNames  []string          `cbor:"3,keyasint,omitempty"`
	DNS          []string          `cbor:"4,keyasint,omitempty"`
	Emails       []string          `cbor:"5,keyasint,omitempty"`
	URIs         []string          `cbor:"6,keyasint,omitempty"`
	Units        []string          `cbor:"7,keyasint,omitempty"`
	Extensions   []string          `cbor:"8,keyasint,omitempty"` // each must match: OID:glob, or hex:OID:value
	MetadataOIDs []string          `cbor:"9,keyasint,omitempty"`
	DisplayName  string            `cbor:"10,keyasint,omitempty"`
	Token        engine.TokenTerms `cbor:"11,keyasint"`
	Older        []string          `cbor:"12,keyasint,omitempty"` // parameters last written by their older names
}

var older = auth.Older{
	"token_policies": "policies", "token_ttl": "ttl", "token_max_ttl": "max_ttl", "token_period": "period", "token_bound_cidrs": "bound_cidrs",
}

var roleFields = func() []engine.Field {
	terms := auth.TokenFields()
	own := []engine.Field{
		{Name: "certificate", Type: engine.String, Help: "certificates that are trusted, in PEM: of authorities, or of clients themselves"},
		{Name: "allowed_names", Type: engine.Strings, Help: "globs, one of which the common name or a DNS or e-mail name must match"},
		{Name: "allowed_common_names", Type: engine.Strings, Help: "globs, one of which the common name must match"},
		{Name: "allowed_dns_sans", Type: engine.Strings, Help: "globs, one of which a DNS name must match"},
		{Name: "allowed_email_sans", Type: engine.Strings, Help: "globs, one of which an e-mail address must match"},
		{Name: "allowed_uri_sans", Type: engine.Strings, Help: "globs, one of which a URI must match: spiffe://example.org/billing/*"},
		{Name: "allowed_organizational_units", Type: engine.Strings, Help: "globs, one of which an organizational unit must match"},
		{Name: "required_extensions", Type: engine.Strings, Help: "extensions, all of which it must have: OID:glob of a text, or hex:OID:value"},
		{Name: "allowed_metadata_extensions", Type: engine.Strings, Help: "OIDs of extensions whose texts go into the tokens' metadata"},
		{Name: "display_name", Type: engine.String, Help: "name of the tokens; none: the role's"},
	}
	own = append(append(own, terms...), older.Fields(terms)...)
	for _, name := range []string{"ocsp_enabled", "ocsp_fail_open", "ocsp_query_all_servers", "ocsp_this_update_max_age", "ocsp_max_retries", "ocsp_ca_certificates", "ocsp_servers_override"} {
		own = append(own, engine.Field{Name: name, Type: engine.Any, Help: "not supported: revocations come as lists (crls), or not at all for certificates that live for hours"})
	}
	return own
}()

const mostCertificates = 100 // of one role

func readRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	var ro role
	row, err := load(r, certPrefix, name, &ro)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, &api.Error{Kind: api.NotFound}
	}
	var text strings.Builder
	for _, der := range ro.Certificates {
		text.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	data := map[string]any{"certificate": text.String(), "display_name": ro.DisplayName, "ocsp_enabled": false}
	for name, values := range ro.lists() {
		data[name] = append([]string{}, *values...)
	}
	auth.TermsData(&ro.Token, data)
	older.Show(data, ro.Older)
	return &engine.Reply{Data: data}, nil
}

// lists are the parameters that are lists.
func (ro *role) lists() map[string]*[]string {
	return map[string]*[]string{
		"allowed_names": &ro.Names, "allowed_common_names": &ro.CommonNames, "allowed_dns_sans": &ro.DNS, "allowed_email_sans": &ro.Emails,
		"allowed_uri_sans": &ro.URIs, "allowed_organizational_units": &ro.Units, "required_extensions": &ro.Extensions, "allowed_metadata_extensions": &ro.MetadataOIDs,
	}
}

func writeRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	var ro role
	row, err := load(r, certPrefix, name, &ro)
	if err != nil {
		return nil, err
	}
	if on, ok := engine.ParseBool(r.Any("ocsp_enabled")); r.Has("ocsp_enabled") && (on || !ok) {
		return nil, api.Errorf(api.Invalid, "ocsp_enabled is not supported: lessor asks nobody about a certificate. Write revocation lists to crls/NAME, or let certificates live for hours only")
	}
	if r.Has("certificate") {
		if ro.Certificates, err = certificates(r.Str("certificate")); err != nil {
			return nil, err
		}
	}
	for name, to := range ro.lists() {
		if r.Has(name) {
			*to = r.List(name)
		}
	}
	if r.Has("display_name") {
		ro.DisplayName = r.Str("display_name")
	}
	if err := auth.ParseTokenTerms(r, &ro.Token, older); err != nil {
		return nil, err
	}
	ro.Older = older.Used(r, ro.Older)
	if len(ro.Certificates) == 0 {
		return nil, api.Errorf(api.Invalid, "failed to parse certificate: it is missing")
	}
	for _, x := range ro.Extensions {
		if _, err := parseExtension(x); err != nil {
			return nil, api.Errorf(api.Invalid, "required_extensions: %v", err)
		}
	}
	for _, oid := range ro.MetadataOIDs {
		if _, ok := parseOID(oid); !ok {
			return nil, api.Errorf(api.Invalid, "allowed_metadata_extensions: %q is no object identifier", oid)
		}
	}
	return save(row, ro), nil
}

// certificates reads PEM. Errors are of kind Invalid.
func certificates(text string) ([][]byte, error) {
	var out [][]byte
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(out) == 0 || strings.TrimSpace(string(rest)) != "" {
				return nil, api.Errorf(api.Invalid, "failed to parse certificate: it is not in PEM")
			}
			return out, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, api.Errorf(api.Invalid, "failed to parse certificate: there is something else in it; never send private keys")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "failed to parse certificate: it cannot be read")
		}
		if !c.IsCA && c.ExtKeyUsage != nil && !usableByClient(c) {
			return nil, api.Errorf(api.Invalid, "nonCA certificates should be usable for client auth")
		}
		if out = append(out, c.Raw); len(out) > mostCertificates {
			return nil, api.Errorf(api.Invalid, "a role has at most %d certificates", mostCertificates)
		}
	}
}

func usableByClient(c *x509.Certificate) bool {
	for _, u := range c.ExtKeyUsage {
		if u == x509.ExtKeyUsageClientAuth || u == x509.ExtKeyUsageAny {
			return true
		}
	}
	return false
}

// extension is one that a certificate must have.
type extension struct {
	oid   asn1.ObjectIdentifier
	glob  string // of its text
	value []byte // or its whole value; nil: glob counts
}

// parseExtension reads OID:glob or hex:OID:value.
func parseExtension(text string) (*extension, error) {
	rest, isHex := strings.CutPrefix(text, "hex:")
	name, value, found := strings.Cut(rest, ":")
	oid, ok := parseOID(name)
	if !found || !ok {
		return nil, api.Errorf(api.Invalid, "%q is neither OID:value nor hex:OID:value", text)
	}
	x := &extension{oid: oid, glob: value}
	if isHex {
		var err error
		if x.value, err = hex.DecodeString(value); err != nil || len(x.value) == 0 {
			return nil, api.Errorf(api.Invalid, "%q has no value in hexadecimal", text)
		}
	}
	return x, nil
}

func parseOID(text string) (asn1.ObjectIdentifier, bool) {
	var oid asn1.ObjectIdentifier
	for part := range strings.SplitSeq(text, ".") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 {
			return nil, false
		}
		oid = append(oid, n)
	}
	return oid, len(oid) > 1
}
