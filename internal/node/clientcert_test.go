package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/config"
)

// somebody makes a certificate that a client shows, signed by itself.
func somebody(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func inPEM(c tls.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
}

// Who connects with a certificate logs in by it, and renews the token only with its key. A listener that takes nobody without one does not
// even answer others, and hears of new authorities with a reload; one that asks for none sees none.
func TestClientCertificates(t *testing.T) {
	p := newPlace(t)
	dir := filepath.Join(p.dir, "tls")
	p.do(makeCertificates(dir, time.Now()))
	known, stranger := somebody(t, "web"), somebody(t, "web")
	authorities := filepath.Join(dir, "clients.pem")
	p.do(os.WriteFile(authorities, []byte(inPEM(stranger)), 0o600))
	asks := config.Listener{Address: "127.0.0.1:0", TLS: true, MinVersion: tls.VersionTLS12, CertFile: filepath.Join(dir, certFile), KeyFile: filepath.Join(dir, keyFile)}
	insists, ignores := asks, asks
	insists.ClientCAFile, insists.RequireClients = authorities, true
	ignores.IgnoreClients = true
	c := p.config()
	c.Listeners = []config.Listener{asks, insists, ignores}
	n, err := Start(t.Context(), c, p.o)
	p.do(err)
	defer func() { p.do(n.Stop(context.Background())) }()

	trusted, err := os.ReadFile(filepath.Join(dir, caFile))
	p.do(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(trusted)
	as := func(token string, shows ...tls.Certificate) *running {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: shows}, ForceAttemptHTTP2: true}}
		t.Cleanup(client.CloseIdleConnections)
		return &running{p, n, token, client}
	}
	role, err := json.Marshal(map[string]any{"certificate": inPEM(known), "token_policies": "app"})
	p.do(err)
	root := as(n.Root.Reveal())
	root.must(204, "POST", "sys/auth/cert", `{"type":"cert"}`)
	root.must(204, "POST", "auth/cert/certs/web", string(role))

	root.must(204, "POST", "sys/lessor/owners/auth/cert/certs/web", `{"owner":"team-web"}`)

	as("", stranger).must(400, "POST", "auth/cert/login", "")
	as("").must(400, "POST", "auth/cert/login", "")
	auth := as("", known).must(200, "POST", "auth/cert/login", "")["auth"].(map[string]any)
	token := auth["client_token"].(string)
	if auth["metadata"].(map[string]any)["common_name"] != "web" {
		t.Errorf("%v", auth)
	}
	if self := root.must(200, "POST", "auth/token/lookup", `{"token":"`+token+`"}`)["data"].(map[string]any); self["owner"] != "team-web" || self["display_name"] != "cert-web" {
		t.Errorf("%v", self)
	}
	as(token, known).must(200, "POST", "auth/token/renew-self", "")
	as(token, stranger).must(400, "POST", "auth/token/renew-self", "")
	as(token).must(400, "POST", "auth/token/renew-self", "")
	as(token).must(200, "GET", "auth/token/lookup-self", "") // to use it takes no certificate

	at := func(l int, shows ...tls.Certificate) (int, error) {
		r := as("", shows...)
		answer, err := r.client.Post(n.listeners[l].url()+"/v1/auth/cert/login", "application/json", nil)
		if err != nil {
			return 0, err
		}
		return answer.StatusCode, answer.Body.Close()
	}
	if status, err := at(1); err == nil {
		t.Errorf("without a certificate it answers %d", status)
	}
	if status, err := at(1, known); err == nil {
		t.Errorf("by another authority's it answers %d", status)
	}
	p.do(os.WriteFile(authorities, []byte(inPEM(stranger)+inPEM(known)), 0o600))
	p.do(n.Reload())
	if status, err := at(1, known); err != nil || status != 200 {
		t.Errorf("%d %v", status, err)
	}
	if status, err := at(2, known); err != nil || status != 400 {
		t.Errorf("where none is asked for: %d %v", status, err)
	}
}
