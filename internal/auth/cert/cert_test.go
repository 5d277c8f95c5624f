package cert_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"reflect"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth/cert"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

const (
	put = lessor.Update
	get = lessor.Read
	ls  = lessor.List
	del = lessor.Delete
)

func TestConform(t *testing.T) { enginetest.Conform(t, cert.Backend{}, nil) }

// authority is a certificate that others are signed with, or that signs itself.
type authority struct {
	t testing.TB
	*x509.Certificate
	key *ecdsa.PrivateKey
}

var serial int64

// issue makes a certificate from a template, signed by a; a zero authority signs nothing: it is signed by itself.
func (a authority) issue(template x509.Certificate, key *ecdsa.PrivateKey) authority {
	a.t.Helper()
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			a.t.Fatal(err)
		}
	}
	serial++
	template.SerialNumber = big.NewInt(serial)
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = enginetest.Epoch.Add(-time.Hour), enginetest.Epoch.Add(24*time.Hour)
	}
	if template.ExtKeyUsage == nil && !template.IsCA {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	by, with := a.Certificate, a.key
	if by == nil {
		by, with = &template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, by, key.Public(), with)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return authority{a.t, c, key}
}

func (a authority) ca(name string) authority {
	return a.issue(x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil)
}

func (a authority) client(name string) authority {
	return a.issue(x509.Certificate{Subject: pkix.Name{CommonName: name}}, nil)
}

func (a authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Raw}))
}

// revoke makes a list of the authority's.
func (a authority) revoke(certificates ...authority) string {
	a.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: enginetest.Epoch, NextUpdate: enginetest.Epoch.Add(time.Hour)}
	for _, c := range certificates {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: enginetest.Epoch})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.Certificate, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

func body(t testing.TB, fields map[string]any) string {
	t.Helper()
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// login shows a chain.
func login(b *enginetest.Bench, name string, chain ...authority) (*enginetest.Act, error) {
	b.Shown = nil
	for _, c := range chain {
		b.Shown = append(b.Shown, c.Certificate)
	}
	return b.BeginAs(&lessor.Principal{}, put, "login", body(b.T, map[string]any{"name": name}))
}

func admitted(t *testing.T, b *enginetest.Bench, name string, chain ...authority) *engine.Login {
	t.Helper()
	act, err := login(b, name, chain...)
	if err != nil {
		t.Fatal(err)
	}
	if err := act.Commit(); err != nil {
		t.Fatal(err)
	}
	return act.Reply.Login
}

const invalid = "invalid certificate or no client certificate supplied"

func refused(t *testing.T, b *enginetest.Bench, name string, chain ...authority) {
	t.Helper()
	if _, err := login(b, name, chain...); err == nil || err.Error() != invalid || api.KindOf(err) != api.Invalid {
		t.Errorf("%v, want it to be refused", err)
	}
}

func TestTrust(t *testing.T) {
	none := authority{t: t}
	root, stranger := none.ca("root"), none.ca("root")
	between := root.ca("between")
	b := enginetest.New(t, cert.Backend{}, nil)
	b.Do(put, "certs/App", body(t, map[string]any{"certificate": root.pem(), "display_name": "the app", "token_policies": "app"}))

	client := root.client("web")
	got := admitted(t, b, "APP", client)
	if got.Alias != "web" || got.Name != "the app" || got.Role != "app" || got.Owned != "certs/app" || got.AliasMeta != nil || len(got.Instance) != 64 || got.Metadata["cert_name"] != "app" ||
		got.Metadata["common_name"] != "web" || got.Metadata["serial_number"] != client.SerialNumber.String() || len(got.Metadata["authority_key_id"]) != 20*3-1 {
		t.Errorf("%+v", got)
	}
	admitted(t, b, "", client)
	admitted(t, b, "app", between.client("web"), between)
	refused(t, b, "nothing", client)
	refused(t, b, "app", between.client("web"))                         // what is between was not sent
	refused(t, b, "app", stranger.client("web"), root)                  // of an authority with the same name
	refused(t, b, "app", none.client("web"), client)                    // its own, with another's behind it
	refused(t, b, "app", client.issue(x509.Certificate{}, nil), client) // of one that may not sign
	refused(t, b, "app", root.issue(x509.Certificate{Subject: pkix.Name{CommonName: "server"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, nil))
	refused(t, b, "app", root.issue(x509.Certificate{Subject: pkix.Name{CommonName: "old"}, NotBefore: enginetest.Epoch.Add(-2 * time.Hour), NotAfter: enginetest.Epoch.Add(-time.Second)}, nil))
	refused(t, b, "app", root.issue(x509.Certificate{Subject: pkix.Name{CommonName: "soon"}, NotBefore: enginetest.Epoch.Add(time.Hour), NotAfter: enginetest.Epoch.Add(2 * time.Hour)}, nil))
	if _, err := login(b, "app"); api.KindOf(err) != api.Invalid {
		t.Errorf("without a certificate: %v", err)
	}
	if _, err := login(b, "app", root.issue(x509.Certificate{}, nil)); api.KindOf(err) != api.Invalid {
		t.Errorf("without a name: %v", err)
	}

	// A certificate itself may be trusted: that one, and none that looks like it.
	pinned := none.client("pinned")
	b.Do(put, "certs/pin", body(t, map[string]any{"certificate": pinned.pem()}))
	if got := admitted(t, b, "", pinned); got.Role != "pin" || got.Name != "pin" {
		t.Errorf("%+v", got)
	}
	refused(t, b, "pin", none.client("pinned"))
	refused(t, b, "pin", client)
	b.Clock.Advance(25 * time.Hour)
	refused(t, b, "pin", pinned)
	refused(t, b, "app", client)
}

func TestConstraints(t *testing.T) {
	root := authority{t: t}.ca("root")
	spiffe, err := url.Parse("spiffe://example.org/billing/api")
	if err != nil {
		t.Fatal(err)
	}
	text, err := asn1.MarshalWithParams("blue", "utf8")
	if err != nil {
		t.Fatal(err)
	}
	client := root.issue(x509.Certificate{
		Subject: pkix.Name{CommonName: "api.example.org", OrganizationalUnit: []string{"billing", "ops"}}, DNSNames: []string{"api.example.org", "api"},
		EmailAddresses: []string{"ops@example.org"}, URIs: []*url.URL{spiffe},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: text}},
	}, nil)
	b := enginetest.New(t, cert.Backend{}, nil)
	for _, c := range []struct {
		field string
		value any
		in    bool
	}{
		{"allowed_names", "*.example.org", true},
		{"allowed_names", "ops@example.org", true},
		{"allowed_names", "spiffe://*", false},
		{"allowed_common_names", []string{"nobody", "api.*"}, true},
		{"allowed_common_names", "api", false},
		{"allowed_common_names", "*.com", false},
		{"allowed_dns_sans", "api", true},
		{"allowed_dns_sans", "ap", false},
		{"allowed_email_sans", "*@example.org", true},
		{"allowed_email_sans", "*@example.com", false},
		{"allowed_uri_sans", "spiffe://example.org/billing/*", true},
		{"allowed_uri_sans", "spiffe://example.org/*/web", false},
		{"allowed_organizational_units", "ops", true},
		{"allowed_organizational_units", "o", false},
		{"required_extensions", "1.3.6.1.4.1.99999.1:bl*", true},
		{"required_extensions", "1.3.6.1.4.1.99999.1:red", false},
		{"required_extensions", []string{"1.3.6.1.4.1.99999.1:blue", "1.3.6.1.4.1.99999.2:*"}, false},
		{"required_extensions", "hex:1.3.6.1.4.1.99999.1:0c04626c7565", true},
		{"required_extensions", "hex:1.3.6.1.4.1.99999.1:0c04626c7566", false},
		{"token_bound_cidrs", "10.0.0.0/8", true},
	} {
		b.Do(del, "certs/app", "")
		b.Do(put, "certs/app", body(t, map[string]any{"certificate": root.pem(), c.field: c.value}))
		if _, err := login(b, "", client); (err == nil) != c.in || err != nil && err.Error() != invalid {
			t.Errorf("%s = %v: %v", c.field, c.value, err)
		}
	}
	b.Do(put, "certs/app", body(t, map[string]any{"token_bound_cidrs": "10.9.0.0/16"}))
	if _, err := login(b, "", client); api.KindOf(err) != api.Unauthenticated {
		t.Errorf("from elsewhere: %v", err)
	}
	b.Do(put, "certs/app", body(t, map[string]any{"token_bound_cidrs": "", "allowed_metadata_extensions": "1.3.6.1.4.1.99999.1,1.2.3"}))
	b.Do(put, "config", `{"enable_identity_alias_metadata":true}`)
	if got := admitted(t, b, "app", client); got.Metadata["1-3-6-1-4-1-99999-1"] != "blue" || len(got.Metadata) != 6 || !reflect.DeepEqual(got.AliasMeta, got.Metadata) {
		t.Errorf("%+v", got)
	}
	svid := root.issue(x509.Certificate{URIs: []*url.URL{spiffe}}, nil)
	if got := admitted(t, b, "app", svid); got.Alias != spiffe.String() {
		t.Errorf("%+v", got)
	}
}

func TestRevocation(t *testing.T) {
	none := authority{t: t}
	root, other := none.ca("root"), none.ca("other")
	between := root.ca("between")
	client, second, below := root.client("one"), root.client("two"), between.client("below")
	pinned := none.client("pinned")
	b := enginetest.New(t, cert.Backend{}, nil)
	b.Do(put, "certs/app", body(t, map[string]any{"certificate": root.pem() + other.pem() + pinned.pem()}))
	early, err := login(b, "app", second)
	if err != nil {
		t.Fatal(err)
	}
	b.Do(put, "crls/Root", body(t, map[string]any{"crl": root.revoke(client)}))
	enginetest.Unwritten(t, early) // what it rests on has changed
	refused(t, b, "app", client)
	admitted(t, b, "app", second)
	admitted(t, b, "app", below, between)
	b.Do(put, "crls/more", body(t, map[string]any{"crl": root.revoke(between)}))
	refused(t, b, "app", below, between)
	refused(t, b, "app", client)
	b.Do(put, "crls/other", body(t, map[string]any{"crl": other.revoke(second)})) // a number of somebody else's
	admitted(t, b, "app", second)
	b.Do(put, "crls/pin", body(t, map[string]any{"crl": pinnedList(none, pinned)}))
	refused(t, b, "app", pinned)
	b.Run([]enginetest.Step{
		{Verb: ls, Path: "crls/", Want: `{"keys":["more","other","pin","root"]}`},
		{Verb: get, Path: "crls/root", Want: `{"serials":{"` + client.SerialNumber.String() + `":{}}}`},
		{Verb: get, Path: "crls/root", After: time.Hour, Want: `{"serials":{"` + client.SerialNumber.String() + `":{}}}`,
			Warn: "the authority was to publish a newer list at 2026-01-02T04:04:05Z: write it here"},
		{Verb: put, Path: "crls/x", Body: `{"url":"https://example.org/crl"}`, Kind: api.Invalid,
			Err: "url is not supported: lessor fetches no revocation lists; write the list itself as crl, whenever the authority publishes one"},
		{Verb: put, Path: "crls/x", Body: `{"crl":"x"}`, Kind: api.Invalid, Err: "failed to parse CRL"},
		{Verb: put, Path: "crls/x", Body: `{}`, Kind: api.Invalid, Err: "one of 'crl' or 'url' must be provided: a list of at most 1048576 bytes as crl"},
		{Verb: del, Path: "crls/ROOT"},
		{Verb: get, Path: "crls/root", Fails: true, Kind: api.NotFound},
	}...)
	admitted(t, b, "app", client)
}

// pinnedList is a list of the certificate itself as its own issuer: made by an authority of the same name.
func pinnedList(none authority, c authority) string {
	return none.ca(c.Subject.CommonName).revoke(c)
}

// A token is renewed only by who has its key, and while the certificate is good.
func TestRenewal(t *testing.T) {
	root := authority{t: t}.ca("root")
	client, other := root.client("web"), root.client("web")
	renewed := root.issue(x509.Certificate{Subject: pkix.Name{CommonName: "web"}}, client.key)
	b := enginetest.New(t, cert.Backend{}, nil)
	b.Do(put, "certs/app", body(t, map[string]any{"certificate": root.pem(), "token_policies": "a", "token_ttl": "1h"}))
	l := admitted(t, b, "app", client)
	held := &token.Token{Role: l.Role, Instance: l.Instance, Policies: []string{"a", "default"}}
	renew := func(chain ...authority) error {
		t.Helper()
		v, err := b.DB.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		op := &lessor.Op{Time: b.Clock.Now()}
		for _, c := range chain {
			op.Certificates = append(op.Certificates, c.Certificate)
		}
		var terms token.Lifetime
		err = cert.Backend{}.Renew(&engine.Request{Op: op, Mount: b.Mount, View: v, Now: op.Time}, &store.Txn{}, held, &terms)
		if err == nil && terms.TTL != time.Hour {
			t.Errorf("terms %+v", terms)
		}
		return err
	}
	not := func(what string, err error, want string) {
		t.Helper()
		if err == nil || err.Error() != want || api.KindOf(err) != api.Invalid {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	const elsewhere = "client identity during renewal not matching client identity used during login"
	for what, chain := range map[string][]authority{"the same certificate": {client}, "another one for the same key": {renewed}} {
		if err := renew(chain...); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	not("no certificate", renew(), elsewhere)
	not("another key", renew(other), elsewhere)
	not("another key first", renew(other, client), elsewhere)
	b.Do(put, "crls/root", body(t, map[string]any{"crl": root.revoke(client)}))
	not("revoked", renew(client), invalid)
	b.Do(del, "crls/root", "")
	b.Do(put, "certs/app", `{"allowed_common_names":"db"}`)
	not("not allowed any more", renew(client), invalid)
	b.Do(put, "config", `{"disable_binding":true}`)
	if err := renew(); err != nil {
		t.Errorf("without binding: %v", err)
	}
	b.Do(put, "certs/app", `{"token_policies":"b"}`)
	not("other policies", renew(client), "policies have changed, not renewing")
	b.Do(del, "certs/app", "")
	not("no role", renew(client), `certificate "app" no longer exists`)
}

func TestRoles(t *testing.T) {
	root := authority{t: t}.ca("root")
	server := root.issue(x509.Certificate{Subject: pkix.Name{CommonName: "server"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, nil)
	key := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("x")}))
	const missing = "failed to parse certificate: "
	b := enginetest.New(t, cert.Backend{}, nil)
	want := map[string]any{
		"certificate": root.pem(), "display_name": "", "ocsp_enabled": false, "allowed_names": []string{}, "allowed_common_names": []string{"a*"}, "allowed_dns_sans": []string{},
		"allowed_email_sans": []string{}, "allowed_uri_sans": []string{}, "allowed_organizational_units": []string{}, "required_extensions": []string{},
		"allowed_metadata_extensions": []string{}, "token_bound_cidrs": []string{}, "token_explicit_max_ttl": 0, "token_max_ttl": 0,
		"token_no_default_policy": false, "token_num_uses": 0, "token_period": 0, "token_policies": []string{"p"}, "policies": []string{"p"}, "token_ttl": 0, "token_type": "default",
	}
	b.Run([]enginetest.Step{
		{Verb: ls, Path: "certs/", Fails: true, Kind: api.NotFound},
		{Verb: get, Path: "certs/app", Fails: true, Kind: api.NotFound},
		{Verb: get, Path: "config", Want: `{"disable_binding":false,"enable_identity_alias_metadata":false}`},
		{Verb: put, Path: "certs/app", Body: `{}`, Kind: api.Invalid, Err: missing + "it is missing"},
		{Verb: put, Path: "certs/app", Body: `{"certificate":"x"}`, Kind: api.Invalid, Err: missing + "it is not in PEM"},
		{Verb: put, Path: "certs/app", Body: body(t, map[string]any{"certificate": root.pem() + key}), Kind: api.Invalid, Err: missing + "there is something else in it; never send private keys"},
		{Verb: put, Path: "certs/app", Body: body(t, map[string]any{"certificate": server.pem()}), Kind: api.Invalid, Err: "nonCA certificates should be usable for client auth"},
		{Verb: put, Path: "certs/app", Body: body(t, map[string]any{"certificate": root.pem(), "ocsp_enabled": true}), Kind: api.Invalid,
			Err: "ocsp_enabled is not supported: lessor asks nobody about a certificate. Write revocation lists to crls/NAME, or let certificates live for hours only"},
		{Verb: put, Path: "certs/app", Body: body(t, map[string]any{"certificate": root.pem(), "required_extensions": "1.2"}), Kind: api.Invalid,
			Err: `required_extensions: "1.2" is neither OID:value nor hex:OID:value`},
		{Verb: put, Path: "certs/App", Body: body(t, map[string]any{"certificate": root.pem(), "allowed_common_names": "a*", "policies": "p", "ocsp_enabled": "false"})},
		{Verb: put, Path: "certs/app", Body: `{"display_name":""}`},
		{Verb: get, Path: "certs/APP", Want: body(t, want)},
		{Verb: ls, Path: "certs/", Want: `{"keys":["app"]}`},
		{Verb: del, Path: "certs/App"},
		{Verb: get, Path: "certs/app", Fails: true, Kind: api.NotFound},
	}...)
}

// A login rests on the role and the settings as they are when it commits.
func TestStaleLogins(t *testing.T) {
	root := authority{t: t}.ca("root")
	client := root.client("web")
	b := enginetest.New(t, cert.Backend{}, nil)
	for _, change := range []func(){
		func() { b.Do(put, "certs/app", `{"token_policies":"less"}`) },
		func() { b.Do(put, "config", `{"enable_identity_alias_metadata":true}`) },
		func() { b.Do(del, "certs/app", "") },
	} {
		b.Do(put, "certs/app", body(t, map[string]any{"certificate": root.pem()}))
		act, err := login(b, "", client)
		if err != nil {
			t.Fatal(err)
		}
		change()
		enginetest.Unwritten(t, act)
	}
}
