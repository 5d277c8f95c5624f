package rotator

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
)

const (
	largestCA     = 64 << 10 // bytes
	largestHeader = 16 << 10 // bytes
)

func (r *Rotator) checkWebhook() error {
	u, err := url.Parse(r.URL)
	host := ""
	if err == nil {
		host = u.Hostname()
	}
	switch {
	case r.Path != "" || len(r.Sum) != 0 || r.User != "":
		return api.Errorf(api.Invalid, "path, sha256 and user are for the type exec")
	case host == "" || u.User != nil || u.Fragment != "" || len(r.URL) > 2048 || host != strings.ToLower(host):
		return api.Errorf(api.Invalid, "url must be one such as https://rotators.example.org/billing, its host in lower case, without user, password and fragment")
	case u.Scheme != "https" && !(u.Scheme == "http" && loopback(host)):
		return api.Errorf(api.Invalid, "url must begin with https://; http:// is for addresses of the machine itself, such as http://127.0.0.1:8080")
	case u.Scheme == "http" && r.CA != "":
		return api.Errorf(api.Invalid, "ca is for URLs that begin with https://")
	}
	_, err = r.roots()
	return err
}

// roots are who may vouch for the webhook's certificate; nil: whom the machine trusts.
func (r *Rotator) roots() (*x509.CertPool, error) {
	if r.CA == "" {
		return nil, nil
	}
	pool, rest := x509.NewCertPool(), []byte(r.CA)
	for len(bytes.TrimSpace(rest)) > 0 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" || len(r.CA) > largestCA {
			return nil, api.Errorf(api.Invalid, "ca must be certificates in PEM, of %d KiB at most, and nothing else", largestCA>>10)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "ca holds a certificate that cannot be read")
		}
		pool.AddCert(c)
	}
	return pool, nil
}

func (k *Caller) readyWebhook(r *Rotator) error {
	u, err := url.Parse(r.URL)
	switch {
	case err != nil:
		return api.Errorf(api.Invalid, "the webhook's url cannot be read")
	case k == nil || len(k.Hosts) == 0:
		return api.Errorf(api.Invalid, "this server calls no webhooks: set rotator_hosts in its configuration")
	case !slices.Contains(k.Hosts, "*") && !slices.Contains(k.Hosts, u.Hostname()):
		return api.Errorf(api.Invalid, "this server calls no webhook at %s: its rotator_hosts do not name it", u.Hostname())
	}
	return nil
}

// post asks a webhook once, and returns its answer.
func (k *Caller) post(ctx context.Context, signing *Signing, r *Rotator, c *Call, in []byte) ([]byte, error) {
	client, err := r.client()
	if err != nil {
		return nil, err
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL, bytes.NewReader(in))
	if err != nil {
		return nil, api.Errorf(api.Invalid, "the webhook's url cannot be read")
	}
	var id [16]byte
	if _, err := io.ReadFull(k.Random, id[:]); err != nil {
		return nil, fmt.Errorf("rotator: no randomness: %w", err)
	}
	q.Header.Set("Content-Type", "application/json")
	q.Header.Set("Accept", "application/json")
	q.Header.Set("User-Agent", "lessor")
	signing.sign(q.Header, hex.EncodeToString(id[:]), time.Now(), in) // its receiver's clock is the world's, too
	answer, err := client.Do(q)
	if err != nil {
		return nil, unreached(ctx, c, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, c.failed(fmt.Sprintf("it answered with status %d", answer.StatusCode))
	}
	out := bytes.NewBuffer(make([]byte, 0, largestAnswer+1+bytes.MinRead)) // so that no copies are left of what it grew from
	switch _, err = out.ReadFrom(io.LimitReader(answer.Body, largestAnswer+1)); {
	case err != nil:
		clear(out.Bytes())
		return nil, unreached(ctx, c, err)
	case out.Len() > largestAnswer:
		clear(out.Bytes())
		return nil, c.failed(fmt.Sprintf("it answered with more than %d bytes", largestAnswer))
	}
	return out.Bytes(), nil
}

// signing are the keys of a rotator, for a call that lessor makes by itself.
func (k *Caller) signing(v store.View, name string) (*Signing, error) {
	op := &lessor.Op{Verb: lessor.Read, Namespace: lessor.RootNamespace, Path: "sys/lessor/rotators/" + name + "/key"}
	d := policy.Decide(nil, &lessor.Principal{System: "rotation"}, op, policy.Facts{Mount: k.Mount})
	s, _, err := LoadSigning(v, k.Mount, name, k.Keys, d.Grant)
	if err == nil && len(s.Keys) == 0 {
		err = api.Errorf(api.Invalid, "the rotator has no signing key: make one at sys/lessor/rotators/%s/key", name)
	}
	return s, err
}

// client is for one request: to the webhook itself, wherever redirects and the environment's proxies would lead, over a connection that nobody had before.
func (r *Rotator) client() (*http.Client, error) {
	u, err := url.Parse(r.URL)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "the webhook's url cannot be read")
	}
	roots, err := r.roots()
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address) // what the name led to just now: no later answer can change it
		if err != nil || !reaches(u.Hostname(), to.Addr()) {
			return errAddress
		}
		return nil
	}}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: largestHeader,
		},
	}, nil
}

var errAddress = errors.New("the address is none of a webhook's")

// reaches reports whether a webhook's connection may go to an address that its host led to. The machine itself, its link and what tells a cloud's machines
// their secrets are reached only where the URL says that address and no name.
func reaches(host string, a netip.Addr) bool {
	a = a.Unmap()
	switch own, err := netip.ParseAddr(host); {
	case err == nil:
		return own.Unmap() == a
	case host == "localhost":
		return a.IsLoopback()
	}
	return !a.IsLoopback() && target.Forbidden(a) == nil
}

// loopback reports whether a URL's host is the machine itself, whatever names lead to.
func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}

// unreached says in fixed words why there was no answer: the other side chooses those of errors.
func unreached(ctx context.Context, c *Call, err error) error {
	var certificate *tls.CertificateVerificationError
	why := "the webhook cannot be reached, or broke off"
	switch {
	case ctx.Err() != nil:
		why = fmt.Sprintf("the webhook did not end the step %q in time", c.Step)
	case errors.Is(err, errAddress):
		why = "the webhook's name leads to an address of the machine itself, of its link or of a cloud's metadata: if that is meant, the url must have the address"
	case errors.As(err, &certificate):
		why = "the webhook's certificate is not to be trusted: see its names, its end, and the rotator's ca"
	}
	return &api.Error{Kind: api.Upstream, Cause: ErrUnreachable, Text: why}
}
