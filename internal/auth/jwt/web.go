package jwt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
)

const longestAnswer = 1 << 20 // bytes of an issuer's answer

// web asks issuers. It goes where it is sent and nowhere else: redirects are errors.
type web struct{ http *http.Client }

// newWeb trusts the authorities in PEM; none: the system's.
func newWeb(ca string) (*web, error) {
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM([]byte(ca)) {
			return nil, errors.New("the authorities to trust are not in PEM")
		}
	}
	return &web{http: &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: trust, TLSHandshakeTimeout: 5 * time.Second,
			ResponseHeaderTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (w *web) close() { w.http.CloseIdleConnections() }

// get is the body of an answer of 200.
func (w *web) get(ctx context.Context, at string) ([]byte, error) {
	return w.getAs(ctx, at, lessor.Secret{})
}

// getAs is get for the bearer of a token; empty: for anybody.
func (w *web) getAs(ctx context.Context, at string, bearer lessor.Secret) ([]byte, error) {
	status, text, err := w.do(ctx, http.MethodGet, at, nil, func(r *http.Request) {
		if !bearer.Empty() {
			r.Header.Set("Authorization", "Bearer "+bearer.Reveal())
		}
	})
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s answered with status %d", at, status)
	}
	return text, err
}

// credentials are a client's at a provider.
type credentials struct {
	id     string
	secret lessor.Secret
	inBody bool // the provider takes them in the form, not in a header
}

// post sends a form, and returns the answer whatever its status is.
func (w *web) post(ctx context.Context, at string, form url.Values, as credentials) (status int, text []byte, err error) {
	form.Set("client_id", as.id)
	if as.inBody {
		form.Set("client_secret", as.secret.Reveal())
	}
	return w.do(ctx, http.MethodPost, at, strings.NewReader(form.Encode()), func(r *http.Request) {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if !as.inBody {
			r.SetBasicAuth(url.QueryEscape(as.id), url.QueryEscape(as.secret.Reveal()))
		}
	})
}

func (w *web) do(ctx context.Context, method, at string, body io.Reader, dress func(*http.Request)) (int, []byte, error) {
	if err := checkURL(at); err != nil {
		return 0, nil, err
	}
	request, err := http.NewRequestWithContext(ctx, method, at, body)
	if err != nil {
		return 0, nil, fmt.Errorf("%q is no URL", at)
	}
	request.Header.Set("Accept", "application/json")
	dress(request)
	answer, err := w.http.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, longestAnswer+1))
	if err != nil {
		return 0, nil, fmt.Errorf("%s: %w", at, err)
	}
	if len(text) > longestAnswer {
		return 0, nil, fmt.Errorf("%s answered with more than %d bytes", at, longestAnswer)
	}
	return answer.StatusCode, text, nil
}

// checkURL refuses what an answer could be forged at on the way: who can do that makes the keys.
func checkURL(at string) error {
	u, err := url.Parse(at)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return fmt.Errorf("%q is no URL of an issuer", at)
	case u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%q is not an https URL", at)
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// provider is what an OpenID provider says of itself (OpenID Connect Discovery 1.0).
type provider struct {
	Issuer        string   `json:"issuer"`
	Keys          string   `json:"jwks_uri"`
	Authorization string   `json:"authorization_endpoint"`
	Token         string   `json:"token_endpoint"`
	Device        string   `json:"device_authorization_endpoint"`
	UserInfo      string   `json:"userinfo_endpoint"`
	Auth          []string `json:"token_endpoint_auth_methods_supported"`
}

// discover asks an issuer what it is. It must be who it was taken for.
func discover(ctx context.Context, w *web, issuer string) (*provider, error) {
	text, err := w.get(ctx, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return nil, err
	}
	p := &provider{}
	if err := json.Unmarshal(text, p); err != nil {
		return nil, fmt.Errorf("%s does not describe itself in JSON", issuer)
	}
	if p.Issuer != issuer {
		return nil, fmt.Errorf("the issuer at %s calls itself %.200q: take exactly that as its URL, if it is the right one", issuer, p.Issuer)
	}
	return p, nil
}
