package client_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// A client's certificate that is renewed in its place is shown by the next connection; one that is half written is not, nor does it harm.
func TestCertificateIsRenewed(t *testing.T) {
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"data":{"name":%q}}`, r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	front.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	front.StartTLS()
	t.Cleanup(front.Close)
	dir := t.TempDir()
	files := client.TLS{
		ClientCert: filepath.Join(dir, "client.crt"), ClientKey: filepath.Join(dir, "client.key"),
		CACertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}),
	}
	write := func(file, kind string, der []byte) {
		t.Helper()
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	issue := func(name string) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		text, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(files.ClientCert, "CERTIFICATE", der)
		write(files.ClientKey, "EC PRIVATE KEY", text)
	}
	issue("first")
	c, err := client.New(client.Config{Address: front.URL, TLS: files})
	if err != nil {
		t.Fatal(err)
	}
	shown := func() any {
		t.Helper()
		front.CloseClientConnections()
		answer, err := c.Read(t.Context(), "x", nil)
		if err != nil {
			t.Fatal(err)
		}
		return answer.Data["name"]
	}
	if got := shown(); got != "first" {
		t.Errorf("at first: %v", got)
	}
	issue("second")
	if got := shown(); got != "second" {
		t.Errorf("once it was renewed: %v", got)
	}
	write(files.ClientCert, "CERTIFICATE", []byte("half"))
	if got := shown(); got != "second" {
		t.Errorf("while it is half written: %v", got)
	}
}
