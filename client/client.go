// Package client speaks lessor's HTTP API, which is Vault's. It is thin on purpose: it addresses, authenticates,
// retries and decodes, and leaves paths and their data to its caller.
//
// A Client is immutable and safe for concurrent use; the With methods return changed copies that share connections. On top of it, a
// Session stays logged in, and a Secret stays fresh; lessorpgx, lessorsql and lessorredis, below this package, are for pools of connections that log in with one.
// Errors never contain a token, a query or a body.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Token is a bearer token. However it is printed or logged it reads "[secret]"; only Reveal gives its text.
type Token struct{ text string }

// NewToken wraps a token's text, without the white space around it that files and terminals add.
func NewToken(text string) Token { return Token{strings.TrimSpace(text)} }

// Reveal returns the token's text.
func (t Token) Reveal() string { return t.text }

// Empty reports whether there is no token.
func (t Token) Empty() bool { return t.text == "" }

func (t Token) String() string               { return "[secret]" }
func (t Token) GoString() string             { return "[secret]" }
func (t Token) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, "[secret]") }
func (t Token) LogValue() slog.Value         { return slog.StringValue("[secret]") }
func (t Token) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

// Config is how a Client finds the server and speaks to it. The zero value of each field but Address is usable.
type Config struct {
	Address   string        // "https://host:port[/prefix]", "http://…" or "unix:///path"
	Token     Token         // none: requests carry no token
	Namespace string        // X-Vault-Namespace
	WrapTTL   time.Duration // answers are to be wrapped for so long; 0: not wrapped. Whole seconds
	Instance  string        // which process of its holder this is (X-Lessor-Instance)
	Header    http.Header   // further headers of every request
	TLS       TLS

	Timeout    time.Duration // of one attempt, body included; 0: none
	MaxRetries int           // attempts after the first
	RetryWait  time.Duration // least wait before a retry, up to half of it is added at random; 0: 1 s

	Proxy          string   // URL of the proxy to go through; empty: as HTTPS_PROXY, HTTP_PROXY and NO_PROXY say
	NoRedirects    bool     // a redirect is an error instead of being followed
	MFA            []string // X-Vault-MFA, one header each
	PolicyOverride bool     // X-Vault-Policy-Override

	// Preview, if set, is given each call as it would be sent, and its error is the call's: nothing is sent.
	Preview func(*http.Request, []byte) error

	// Waiting, if set, is called before the wait that precedes retry n (from 1). The error says what failed.
	Waiting func(n int, wait time.Duration, err error)
}

// TLS says whom to trust and who to be. Files are read once, by New, but for the client's certificate and its key: they are read again for each connection, since they may be renewed
// in their place; while they do not fit together, the last that did are shown.
type TLS struct {
	CACert     string // PEM file
	CACertPEM  []byte // PEM, instead of a file
	CAPath     string // folder of PEM files
	ClientCert string // PEM file
	ClientKey  string // PEM file
	ServerName string // name to expect in the server's certificate; empty: the address's host
	SkipVerify bool   // accept any certificate: for experiments only
}

// Client speaks to one server.
type Client struct {
	config Config
	base   *url.URL
	http   *http.Client
}

// New checks the configuration and reads the files that it names. It does not connect.
func New(config Config) (*Client, error) {
	base, socket, err := parseAddress(config.Address)
	if err != nil {
		return nil, err
	}
	tlsConfig, err := config.TLS.load()
	if err != nil {
		return nil, err
	}
	proxy := http.ProxyFromEnvironment
	if config.Proxy != "" {
		via, err := url.Parse(config.Proxy)
		if err != nil || via.Host == "" {
			return nil, errors.New(`the proxy's address is not of the form "http://host:port"`)
		}
		proxy = http.ProxyURL(via)
	}
	transport := &http.Transport{
		Proxy:                 proxy,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   10 * time.Second,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       90 * time.Second,
		ExpectContinueTimeout: time.Second,
		ForceAttemptHTTP2:     true,
	}
	if socket != "" {
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	return &Client{
		config: config,
		base:   base,
		http: &http.Client{
			Transport: transport,
			// A redirect is followed by send, which knows what may be shown to whom.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// parseAddress splits an address into the base of its URLs and, for unix://, its socket. An address without a
// scheme is taken to be https.
func parseAddress(address string) (base *url.URL, socket string, err error) {
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		if path == "" {
			return nil, "", errors.New(`the address names no socket: write "unix:///path/to/socket"`)
		}
		return &url.URL{Scheme: "http", Host: "localhost"}, path, nil
	}
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	base, err = url.Parse(address)
	// url.Parse's own text would repeat the address, which may hold a password.
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" || base.User != nil || base.RawQuery != "" {
		return nil, "", errors.New(`the server's address is not of the form "https://host:port", "http://host:port" or "unix:///path"`)
	}
	base.Path = strings.TrimRight(base.Path, "/")
	base.Fragment = ""
	return base, "", nil
}

func (t TLS) load() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.SkipVerify}
	if t.CACert != "" || len(t.CACertPEM) > 0 || t.CAPath != "" {
		pool, err := t.authorities()
		if err != nil {
			return nil, err
		}
		config.RootCAs = pool
	}
	if (t.ClientCert == "") != (t.ClientKey == "") {
		return nil, errors.New("a client certificate needs both its certificate file and its key file")
	}
	if t.ClientCert != "" {
		pair, err := tls.LoadX509KeyPair(t.ClientCert, t.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		config.GetClientCertificate = t.certificate(&pair)
	}
	return config, nil
}

// certificate shows what is in the files by now.
func (t TLS) certificate(first *tls.Certificate) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	var last atomic.Pointer[tls.Certificate]
	last.Store(first)
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if pair, err := tls.LoadX509KeyPair(t.ClientCert, t.ClientKey); err == nil {
			last.Store(&pair)
		}
		return last.Load(), nil
	}
}

func (t TLS) authorities() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	add := func(pem []byte, from string) error {
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("no certificate in %s: it must hold PEM", from)
		}
		return nil
	}
	switch {
	case t.CACert != "":
		pem, err := os.ReadFile(t.CACert)
		if err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
		return pool, add(pem, t.CACert)
	case len(t.CACertPEM) > 0:
		return pool, add(t.CACertPEM, "the CA certificate given as text")
	default:
		entries, err := os.ReadDir(t.CAPath)
		if err != nil {
			return nil, fmt.Errorf("CA folder: %w", err)
		}
		found := false
		for _, entry := range entries {
			pem, err := os.ReadFile(filepath.Join(t.CAPath, entry.Name()))
			if err == nil && pool.AppendCertsFromPEM(pem) {
				found = true
			}
		}
		if !found {
			return nil, fmt.Errorf("no certificate in folder %s: its files must hold PEM", t.CAPath)
		}
		return pool, nil
	}
}

// Address is the server's address as configured.
func (c *Client) Address() string { return c.config.Address }

// Authentic reports whether nobody else can pose as the server, or read along: its certificate is verified, or it is on this machine.
func (c *Client) Authentic() bool {
	if c.base.Scheme == "https" {
		return !c.config.TLS.SkipVerify
	}
	host := c.base.Hostname()
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback() // a socket's is localhost
}

// Namespace is the namespace that requests name.
func (c *Client) Namespace() string { return c.config.Namespace }

// Token is the token that requests carry.
func (c *Client) Token() Token { return c.config.Token }

func (c *Client) with(change func(*Config)) *Client {
	copied := *c
	change(&copied.config)
	return &copied
}

// WithToken returns a client that carries another token.
func (c *Client) WithToken(t Token) *Client { return c.with(func(g *Config) { g.Token = t }) }

// WithWrapTTL returns a client whose answers are wrapped for ttl; 0: not wrapped.
func (c *Client) WithWrapTTL(ttl time.Duration) *Client {
	return c.with(func(g *Config) { g.WrapTTL = ttl })
}

// WithTimeout returns a client whose attempts may each take so long; 0: without limit.
func (c *Client) WithTimeout(d time.Duration) *Client {
	return c.with(func(g *Config) { g.Timeout = d })
}

// WithInstance returns a client that is another process of its holder.
func (c *Client) WithInstance(instance string) *Client {
	return c.with(func(g *Config) { g.Instance = instance })
}

// WithHeader returns a client whose requests have one more header.
func (c *Client) WithHeader(name, value string) *Client {
	return c.with(func(g *Config) {
		g.Header = g.Header.Clone()
		if g.Header == nil {
			g.Header = http.Header{}
		}
		g.Header.Set(name, value)
	})
}

// WithPreview returns a client that shows its calls to preview instead of making them; nil: that makes them.
func (c *Client) WithPreview(preview func(*http.Request, []byte) error) *Client {
	return c.with(func(g *Config) { g.Preview = preview })
}

// WithNamespace returns a client that names another namespace.
func (c *Client) WithNamespace(namespace string) *Client {
	return c.with(func(g *Config) { g.Namespace = namespace })
}

// Request is one call. Path is without "/v1/".
type Request struct {
	Method string     // GET, POST, PUT, PATCH, DELETE; LIST is sent as GET ?list=true
	Path   string     // "secret/data/app"
	Query  url.Values // may be nil
	Body   any        // marshalled as JSON; nil: no body
	Type   string     // Content-Type of the body; empty: application/json
}

// Read reads a path. A missing path is an *Error with status 404.
func (c *Client) Read(ctx context.Context, path string, query url.Values) (*Response, error) {
	return c.Do(ctx, Request{Method: http.MethodGet, Path: path, Query: query})
}

// List lists the keys under a path. An empty list is an *Error with status 404.
func (c *Client) List(ctx context.Context, path string) (*Response, error) {
	return c.Do(ctx, Request{Method: "LIST", Path: path})
}

// Write writes data to a path. The answer may be empty (status 204).
func (c *Client) Write(ctx context.Context, path string, data any) (*Response, error) {
	return c.Do(ctx, Request{Method: http.MethodPut, Path: path, Body: data})
}

// Patch merges data into what is at a path (RFC 7396).
func (c *Client) Patch(ctx context.Context, path string, data any) (*Response, error) {
	return c.Do(ctx, Request{Method: http.MethodPatch, Path: path, Body: data, Type: "application/merge-patch+json"})
}

// Delete deletes what is at a path.
func (c *Client) Delete(ctx context.Context, path string, query url.Values) (*Response, error) {
	return c.Do(ctx, Request{Method: http.MethodDelete, Path: path, Query: query})
}

// maxAnswer bounds an answer that is held in memory.
const maxAnswer = 128 << 20

// Do makes one call and decodes its answer. An answer of status 400 or above is an *Error; a server that cannot be
// reached, an *Unreachable.
func (c *Client) Do(ctx context.Context, r Request) (*Response, error) {
	var response *Response
	err := c.attempts(ctx, r, func(answer *http.Response) error {
		body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
		if err != nil {
			return c.unreachable(r, err)
		}
		if len(body) > maxAnswer {
			return fmt.Errorf("%s: the answer is longer than %d MiB", r.name(), maxAnswer>>20)
		}
		response, err = decode(answer.StatusCode, body)
		if err != nil {
			return fmt.Errorf("%s: %w; is %s a lessor or Vault server?", r.name(), err, c.config.Address)
		}
		response.Version, _ = strconv.ParseUint(answer.Header.Get("X-Lessor-Version"), 10, 64)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// Stream makes one call and hands over the answer's body as it arrives; the caller closes it. Retries cover what
// happens before the first byte, and the client's timeout does not apply to what follows.
func (c *Client) Stream(ctx context.Context, r Request) (io.ReadCloser, http.Header, error) {
	var body io.ReadCloser
	var header http.Header
	err := c.WithTimeout(0).attempts(ctx, r, func(answer *http.Response) error {
		header = answer.Header
		body, answer.Body = answer.Body, http.NoBody
		return nil
	})
	return body, header, err
}

// attempts sends r until take is given an answer below 400, and retries what may succeed later: a server that is
// not there yet, or one that answers 412, 429 or 5xx (501 excepted: it will not change).
func (c *Client) attempts(ctx context.Context, r Request, take func(*http.Response) error) error {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = json.Marshal(r.Body); err != nil {
			return fmt.Errorf("%s: the data cannot be said in JSON", r.name())
		}
	}
	for n := 1; ; n++ {
		after, err := c.attempt(ctx, r, body, take)
		if err == nil || n > c.config.MaxRetries || ctx.Err() != nil || !mayRetry(r, err) {
			return err
		}
		wait := max(c.pause(), min(after, time.Minute))
		if c.config.Waiting != nil {
			c.config.Waiting(n, wait, err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// attempt sends r once. It also tells how long the server asked to be left alone.
func (c *Client) attempt(ctx context.Context, r Request, body []byte, take func(*http.Response) error) (time.Duration, error) {
	if c.config.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.config.Timeout)
		defer cancel()
	}
	answer, err := c.send(ctx, r, body)
	if err != nil {
		return 0, err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode < 400 {
		return 0, take(answer)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return 0, c.unreachable(r, err)
	}
	seconds, _ := strconv.Atoi(answer.Header.Get("Retry-After"))
	return time.Duration(max(seconds, 0)) * time.Second, decodeError(r, answer.StatusCode, text)
}

// send sends r and follows one redirect on the server's own host, as a proxy may want it, never from https to http. Another host would be shown the token and the
// data, and nobody has said that it may: lessor's servers redirect nobody. Another port may be shown them: it is named by who has them already, and where the address is verified so is
// that port, by a certificate of the same host. (Vault's client follows to any host, and refuses http after https only.)
func (c *Client) send(ctx context.Context, r Request, body []byte) (*http.Response, error) {
	target := c.target(r)
	for redirected := false; ; redirected = true {
		request, err := c.request(ctx, r, target, body)
		if err != nil {
			return nil, err
		}
		if c.config.Preview != nil {
			return nil, c.config.Preview(request, body)
		}
		answer, err := c.http.Do(request)
		if err != nil {
			return nil, c.unreachable(r, err)
		}
		switch answer.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return answer, nil
		}
		_ = answer.Body.Close()
		location, err := answer.Location()
		if err == nil && c.config.NoRedirects {
			return nil, fmt.Errorf("%s: the server redirects to %s, and redirects are not to be followed", r.name(), location.Host)
		}
		if err != nil || redirected {
			return nil, fmt.Errorf("%s: the server redirects without end; address its active node itself", r.name())
		}
		if target.Scheme == "https" && location.Scheme != "https" {
			return nil, fmt.Errorf("%s: the server redirects from https to %s, which would show the token", r.name(), location.Scheme)
		}
		if !strings.EqualFold(location.Hostname(), target.Hostname()) {
			return nil, fmt.Errorf("%s: the server redirects to another host, %s, which would be shown the token: if that is right, address it itself", r.name(), location.Hostname())
		}
		target = location
	}
}

func (c *Client) target(r Request) *url.URL {
	target := *c.base
	target.Path += "/v1/" + strings.TrimPrefix(r.Path, "/")
	query := r.Query
	if r.Method == "LIST" {
		query = url.Values{"list": {"true"}}
		for k, v := range r.Query {
			query[k] = v
		}
	}
	target.RawQuery = query.Encode()
	return &target
}

func (c *Client) request(ctx context.Context, r Request, target *url.URL, body []byte) (*http.Request, error) {
	method := r.Method
	if method == "LIST" {
		method = http.MethodGet
	}
	request, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s: the path cannot be part of a URL", r.name())
	}
	header := request.Header
	for k, v := range c.config.Header {
		header[http.CanonicalHeaderKey(k)] = v
	}
	header.Set("X-Vault-Request", "true")
	header.Set("User-Agent", "lessor-client")
	set := func(name, value string) {
		if value != "" {
			header.Set(name, value)
		}
	}
	set("X-Vault-Token", c.config.Token.Reveal())
	set("X-Vault-Namespace", c.config.Namespace)
	set("X-Lessor-Instance", c.config.Instance)
	for _, factor := range c.config.MFA {
		header.Add("X-Vault-MFA", factor)
	}
	if c.config.PolicyOverride {
		header.Set("X-Vault-Policy-Override", "true")
	}
	if c.config.WrapTTL > 0 {
		header.Set("X-Vault-Wrap-TTL", strconv.FormatInt(int64((c.config.WrapTTL+time.Second-1)/time.Second), 10))
	}
	if body != nil {
		header.Set("Content-Type", "application/json")
		set("Content-Type", r.Type)
	}
	return request, nil
}

func (c *Client) pause() time.Duration {
	wait := c.config.RetryWait
	if wait <= 0 {
		wait = time.Second
	}
	return wait + rand.N(wait/2+1)
}

// mayRetry reports whether sending r again can help and cannot harm: an answer of a kind that passes, a connection
// that never was, or one that broke during a call that changes nothing.
func mayRetry(r Request, err error) bool {
	if refused, ok := errors.AsType[*Error](err); ok {
		s := refused.Status
		return s == http.StatusPreconditionFailed || s == http.StatusTooManyRequests ||
			s >= 500 && s != http.StatusNotImplemented
	}
	if _, ok := errors.AsType[*Unreachable](err); !ok {
		return false
	}
	if operation, ok := errors.AsType[*net.OpError](err); ok && operation.Op == "dial" {
		return true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	return (r.Method == http.MethodGet || r.Method == "LIST") && !errors.Is(err, context.DeadlineExceeded)
}
