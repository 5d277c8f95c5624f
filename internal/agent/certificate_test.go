package agent_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/node"
)

// authority makes certificates.
type authority struct {
	*testing.T
	of  *x509.Certificate
	key *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{T: t}
	of := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "fleet"}}
	der, key := a.sign(of, of)
	a.key = key
	var err error
	if a.of, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// sign signs a certificate under a new key; the authority's own by itself.
func (a *authority) sign(c, by *x509.Certificate) (der []byte, key *ecdsa.PrivateKey) {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.Fatal(err)
	}
	signing := a.key
	if signing == nil {
		signing = key
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if der, err = x509.CreateCertificate(rand.Reader, c, by, key.Public(), signing); err != nil {
		a.Fatal(err)
	}
	return der, key
}

// pem is the authority's own certificate.
func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.of.Raw}))
}

// issue puts a client's certificate and its key into the folder's files web.crt and web.key.
func (a *authority) issue(p *place, name string) {
	a.Helper()
	der, key := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, a.of)
	text, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.Fatal(err)
	}
	p.file("web.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	p.file("web.key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: text})))
}

// An agent logs in by its certificate, and by the one that has taken its place when it needs another token.
func TestCertificate(t *testing.T) {
	p := &place{T: t, dir: t.TempDir()}
	flags, err := config.Flags([]string{"-dev", "-dev-no-store-token", "-dev-listen-address=127.0.0.1:0", "-dev-tls", "-dev-tls-cert-dir=" + p.dir})
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(t.Context(), flags, node.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		_ = n.Stop(now)
	})
	p.address = n.Address()
	root, err := client.New(client.Config{Address: p.address, Token: client.NewToken(n.Root.Reveal()), TLS: client.TLS{CACert: p.in("vault-ca.pem")}})
	if err != nil {
		t.Fatal(err)
	}
	fleet := newAuthority(t)
	for path, data := range map[string]map[string]any{
		"secret/data/app":      {"data": map[string]any{"password": "one"}},
		"sys/policies/acl/app": {"policy": `path "secret/*" { capabilities = ["read"] }`},
		"sys/auth/fleet":       {"type": "cert"},
	} {
		if _, err := root.Write(t.Context(), path, data); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := root.Write(t.Context(), "auth/fleet/certs/web", map[string]any{"certificate": fleet.pem(), "allowed_common_names": "web-*", "token_policies": "app"}); err != nil {
		t.Fatal(err)
	}
	fleet.issue(p, "web-1")
	p.configure(`
auto_auth {
  method "cert" {
    mount_path = "auth/fleet"
    config = {
      name        = "web"
      ca_cert     = "$D/vault-ca.pem"
      client_cert = "$D/web.crt"
      client_key  = "$D/web.key"
      reload      = true
    }
  }
  sink "file" {
    config = { path = "$D/token" }
  }
}
` + follow("app", "app", ""))
	p.run()
	p.await("app", "one\n")
	who := func() (token, name string) {
		text, err := os.ReadFile(p.in("token"))
		if err != nil {
			t.Fatal(err)
		}
		found, err := root.WithToken(client.NewToken(string(text))).Read(t.Context(), "auth/token/lookup-self", nil)
		if err != nil {
			return "", ""
		}
		meta, _ := found.Data["meta"].(map[string]any)
		name, _ = meta["common_name"].(string)
		return strings.TrimSpace(string(text)), name
	}
	first, name := who()
	if name != "web-1" {
		t.Fatalf("it is known as %q", name)
	}
	fleet.issue(p, "web-2")
	if _, err := root.Write(t.Context(), "auth/token/revoke", map[string]any{"token": first}); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Write(t.Context(), "secret/data/app", map[string]any{"data": map[string]any{"password": "two"}}); err != nil {
		t.Fatal(err)
	}
	p.await("app", "two\n")
	if _, name := who(); name != "web-2" {
		t.Errorf("afterwards it is known as %q", name)
	}
}
