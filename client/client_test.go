package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// answers starts a server that gives one answer after the other, and the last one again and again.
func answers(t *testing.T, handlers ...http.HandlerFunc) (*Client, *atomic.Int64) {
	t.Helper()
	n := new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers[min(int(n.Add(1)), len(handlers))-1](w, r)
	}))
	t.Cleanup(server.Close)
	c, err := New(Config{Address: server.URL, Token: NewToken("hvs.sesame"), MaxRetries: 2, RetryWait: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return c, n
}

func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

func TestRetriesWhatMayPass(t *testing.T) {
	for code, calls := range map[int]int64{
		400: 1, 403: 1, 404: 1, 405: 1, 501: 1,
		412: 3, 429: 3, 500: 3, 502: 3, 503: 3,
	} {
		c, n := answers(t, status(code, `{"errors":["no"]}`))
		_, err := c.Write(t.Context(), "secret/a", map[string]any{"k": "v"})
		if !IsStatus(err, code) || n.Load() != calls {
			t.Errorf("status %d: %d calls, want %d; error %v", code, n.Load(), calls, err)
		}
	}
}

func TestRetrySendsTheBodyAgain(t *testing.T) {
	var bodies []string
	keep := func(then http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			bodies = append(bodies, string(body))
			then(w, r)
		}
	}
	c, _ := answers(t, keep(status(503, "")), keep(status(204, "")))
	var waits []int
	c = c.with(func(g *Config) {
		g.Waiting = func(n int, wait time.Duration, err error) {
			if !IsStatus(err, 503) || wait < time.Millisecond || wait > 2*time.Millisecond {
				t.Errorf("waiting %v after %v", wait, err)
			}
			waits = append(waits, n)
		}
	})
	answer, err := c.Write(t.Context(), "secret/a", map[string]any{"k": "v"})
	if err != nil || answer.Status != 204 || !answer.Empty() {
		t.Fatalf("%v, %v", answer, err)
	}
	if want := []string{`{"k":"v"}`, `{"k":"v"}`}; !reflect.DeepEqual(bodies, want) {
		t.Errorf("bodies %q, want %q", bodies, want)
	}
	if !reflect.DeepEqual(waits, []int{1}) {
		t.Errorf("waits %v", waits)
	}
}

func TestRetryEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c, n := answers(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	c = c.with(func(g *Config) {
		g.RetryWait = time.Hour
		g.Waiting = func(int, time.Duration, error) { cancel() }
	})
	if _, err := c.Read(ctx, "secret/a", nil); !IsStatus(err, 503) || n.Load() != 1 {
		t.Errorf("%d calls, error %v", n.Load(), err)
	}
}

// A write that broke off may have happened: only reads are sent again.
func TestBrokenConnections(t *testing.T) {
	broken := func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }
	c, n := answers(t, broken)
	_, err := c.Write(t.Context(), "secret/a", map[string]any{})
	if _, ok := errors.AsType[*Unreachable](err); !ok || n.Load() != 1 {
		t.Errorf("write: %d calls, error %v", n.Load(), err)
	}
	c, n = answers(t, broken, status(200, `{"data":{"a":1}}`))
	if _, err := c.Read(t.Context(), "secret/a", nil); err != nil || n.Load() != 2 {
		t.Errorf("read: %d calls, error %v", n.Load(), err)
	}
}

func TestRequests(t *testing.T) {
	var got *http.Request
	var body string
	c, _ := answers(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		b, _ := io.ReadAll(r.Body)
		body = string(b)
		w.WriteHeader(204)
	})
	c = c.with(func(g *Config) {
		g.Namespace, g.WrapTTL, g.Instance = "team", 90*time.Second+1, "pod-7"
		g.Header = http.Header{"X-Trace": {"t1"}}
	})
	ctx := t.Context()
	for name, try := range map[string]struct {
		call         func() (*Response, error)
		method, uri  string
		body, accept string
	}{
		"read": {func() (*Response, error) { return c.Read(ctx, "secret/a b%2f?c", url.Values{"version": {"2"}}) },
			"GET", "/v1/secret/a%20b%252f%3Fc?version=2", "", ""},
		"list":   {func() (*Response, error) { return c.List(ctx, "secret/") }, "GET", "/v1/secret/?list=true", "", ""},
		"write":  {func() (*Response, error) { return c.Write(ctx, "/secret/a", map[string]any{"<": 1}) }, "PUT", "/v1/secret/a", `{"\u003c":1}`, "application/json"},
		"empty":  {func() (*Response, error) { return c.Write(ctx, "sys/seal", nil) }, "PUT", "/v1/sys/seal", "", ""},
		"patch":  {func() (*Response, error) { return c.Patch(ctx, "secret/a", map[string]any{"a": nil}) }, "PATCH", "/v1/secret/a", `{"a":null}`, "application/merge-patch+json"},
		"delete": {func() (*Response, error) { return c.Delete(ctx, "secret/a", nil) }, "DELETE", "/v1/secret/a", "", ""},
	} {
		if _, err := try.call(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got.Method != try.method || got.RequestURI != try.uri || body != try.body || got.Header.Get("Content-Type") != try.accept {
			t.Errorf("%s: %s %s, type %q, body %s", name, got.Method, got.RequestURI, got.Header.Get("Content-Type"), body)
		}
		for header, want := range map[string]string{
			"X-Vault-Token": "hvs.sesame", "X-Vault-Request": "true", "X-Vault-Namespace": "team",
			"X-Vault-Wrap-TTL": "91", "X-Lessor-Instance": "pod-7", "X-Trace": "t1",
		} {
			if got.Header.Get(header) != want {
				t.Errorf("%s: header %s is %q, want %q", name, header, got.Header.Get(header), want)
			}
		}
	}
}

func TestDecode(t *testing.T) {
	for name, try := range map[string]struct {
		body string
		want *Response
	}{
		"empty": {"", &Response{}},
		"envelope": {`{"request_id":"r","lease_id":"l","renewable":true,"lease_duration":3600,"data":{"n":12345678901234567890},
			"wrap_info":null,"warnings":["w"],"auth":null,"mount_type":"kv"}`,
			&Response{RequestID: "r", LeaseID: "l", Renewable: true, LeaseDuration: 3600, MountType: "kv", Warnings: []string{"w"},
				Data: map[string]any{"n": json.Number("12345678901234567890")}}},
		"no envelope": {`{"sealed":false,"t":1}`, &Response{Data: map[string]any{"sealed": false, "t": json.Number("1")}}},
		"login": {`{"request_id":"r","data":null,"auth":{"client_token":"c","policies":["a"],"lease_duration":5,"metadata":null}}`,
			&Response{RequestID: "r", Auth: &Auth{ClientToken: "c", Policies: []string{"a"}, LeaseDuration: 5}}},
		"wrapped": {`{"request_id":"","data":null,"wrap_info":{"token":"w","ttl":60,"creation_path":"p"}}`,
			&Response{WrapInfo: &WrapInfo{Token: "w", TTL: 60, CreationPath: "p"}}},
	} {
		got, err := decode(200, []byte(try.body))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got.Raw, try.want.Status = nil, 200
		if !reflect.DeepEqual(*got, *try.want) {
			t.Errorf("%s: %s", name, difference(got, try.want))
		}
	}
	for _, body := range []string{"<html>", `[1]`, `"x"`, `{"data":5}`, `{"data":{}`} {
		if got, err := decode(200, []byte(body)); err == nil {
			t.Errorf("%s: %+v", body, *got)
		}
	}
}

// difference shows what Response's own methods hide.
func difference(got, want *Response) string {
	type plain Response
	return fmt.Sprintf("got %+v, want %+v", plain(*got), plain(*want))
}

func TestRefusals(t *testing.T) {
	for name, try := range map[string]struct {
		code int
		body string
		text string
		data string // JSON of what came along
	}{
		"texts":           {403, `{"errors":["permission denied","rule 3"]}`, "read secret/a: permission denied; rule 3 (status 403)", "none"},
		"no texts":        {404, `{"errors":[]}`, "read secret/a: not found (status 404)", "none"},
		"deleted version": {404, `{"request_id":"r","data":{"data":null,"metadata":{"version":2}}}`, "read secret/a: not found (status 404)", `{"data":null,"metadata":{"version":2}}`},
		"data and texts":  {400, `{"errors":["no"],"data":{"error":"no"}}`, "read secret/a: no (status 400)", `{"error":"no"}`},
		"health":          {429, `{"standby":true}`, "read secret/a: too many requests (status 429)", `{"standby":true}`},
		"plain text":      {400, "Client sent an HTTP request to an HTTPS server.\n", "read secret/a: Client sent an HTTP request to an HTTPS server. (status 400)", "none"},
		"a proxy's page":  {502, "<html><h1>Bad Gateway", "read secret/a: bad gateway (status 502)", "none"},
	} {
		c, _ := answers(t, status(try.code, try.body))
		_, err := c.with(func(g *Config) { g.MaxRetries = 0 }).Read(t.Context(), "secret/a", nil)
		refused, ok := errors.AsType[*Error](err)
		if !ok || err.Error() != try.text {
			t.Errorf("%s: error %q, want %q", name, err, try.text)
			continue
		}
		data := "none"
		if refused.Response != nil {
			b, _ := json.Marshal(refused.Response.Data)
			data = string(b)
		}
		if data != try.data {
			t.Errorf("%s: data %s, want %s", name, data, try.data)
		}
	}
}

func TestRedirects(t *testing.T) {
	active, _ := answers(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		status(200, fmt.Sprintf(`{"data":{"method":%q,"body":%q,"token":%q}}`, r.Method, body, r.Header.Get("X-Vault-Token")))(w, r)
	})
	standby, _ := answers(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, active.Address()+r.URL.Path, http.StatusTemporaryRedirect)
	})
	answer, err := standby.Write(t.Context(), "secret/a", map[string]any{"k": "v"})
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]any{"method": "PUT", "body": `{"k":"v"}`, "token": "hvs.sesame"}; !reflect.DeepEqual(answer.Data, want) {
		t.Errorf("got %v, want %v", answer.Data, want)
	}

	strayed := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("another host was shown a request") }))
	defer strayed.Close()
	for _, at := range []string{strings.Replace(strayed.URL, "127.0.0.1", "localhost", 1), strings.Replace(strayed.URL, "http://127.0.0.1", "//localhost", 1)} {
		astray, n := answers(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", at+r.URL.Path)
			w.WriteHeader(http.StatusPermanentRedirect)
		})
		_, err := astray.Write(t.Context(), "secret/a", map[string]any{"k": "v"})
		if err == nil || !strings.Contains(err.Error(), "another host, localhost") || n.Load() != 1 {
			t.Errorf("to %s: %d calls, %v", at, n.Load(), err)
		}
	}

	var n *atomic.Int64
	var loop *Client
	loop, n = answers(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/v1/again", http.StatusTemporaryRedirect)
	})
	if _, err := loop.Read(t.Context(), "a", nil); err == nil || n.Load() != 2 {
		t.Errorf("a loop: %d calls, error %v", n.Load(), err)
	}

	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, active.Address()+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer server.Close()
	c, err := New(Config{Address: server.URL, TLS: TLS{SkipVerify: true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(t.Context(), "a", nil); err == nil || !strings.Contains(err.Error(), "from https to http") {
		t.Errorf("from https to http: %v", err)
	}
}

func TestTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(status(204, ""))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	pem := pemOf(server.Certificate().Raw)
	if err := os.WriteFile(ca, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]struct {
		tls     TLS
		trusted bool
	}{
		"nobody":      {TLS{}, false},
		"file":        {TLS{CACert: ca}, true},
		"text":        {TLS{CACertPEM: pem}, true},
		"folder":      {TLS{CAPath: filepath.Dir(ca)}, true},
		"anyone":      {TLS{SkipVerify: true}, true},
		"other name":  {TLS{CACert: ca, ServerName: "lessor.invalid"}, false},
		"example.com": {TLS{CACert: ca, ServerName: "example.com"}, true},
	} {
		c, err := New(Config{Address: server.URL, TLS: try.tls, MaxRetries: 1, RetryWait: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(t.Context(), "a", nil); (err == nil) != try.trusted {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, config := range map[string]TLS{
		"no such file":  {CACert: ca + "x"},
		"no PEM":        {CACertPEM: []byte("x")},
		"empty folder":  {CAPath: t.TempDir()},
		"only half":     {ClientCert: ca},
		"no such certs": {ClientCert: ca + "x", ClientKey: ca},
	} {
		if _, err := New(Config{Address: server.URL, TLS: config}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestStream(t *testing.T) {
	c, n := answers(t, status(503, `{"errors":["starting"]}`), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Kind", "backup")
		for range 3 {
			_, _ = io.WriteString(w, "chunk")
			w.(http.Flusher).Flush()
		}
	})
	body, header, err := c.WithTimeout(time.Minute).Stream(t.Context(), Request{Method: "GET", Path: "sys/lessor/backup"})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	text, err := io.ReadAll(body)
	if err != nil || string(text) != "chunkchunkchunk" || header.Get("X-Kind") != "backup" || n.Load() != 2 {
		t.Errorf("%q, %v, %v, %d calls", text, header, err, n.Load())
	}

	c, _ = answers(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	body, _, err = c.Stream(t.Context(), Request{Method: "GET", Path: "sys/lessor/backup"})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if text, err := io.ReadAll(body); err == nil {
		t.Errorf("a stream that broke off was read to its end: %q", text)
	}
}

func TestTimeout(t *testing.T) {
	release := make(chan struct{})
	c, n := answers(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	_, err := c.WithTimeout(20*time.Millisecond).Read(t.Context(), "a", nil)
	if _, ok := errors.AsType[*Unreachable](err); !ok || !errors.Is(err, context.DeadlineExceeded) || n.Load() > 1 {
		t.Errorf("%d calls, error %v", n.Load(), err)
	}
}

// Whatever fails, no error tells what was sent.
func TestErrorsTellNoSecrets(t *testing.T) {
	const secret = "s3cr3t"
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	down, err := New(Config{Address: closed.URL, Token: NewToken(secret)})
	if err != nil {
		t.Fatal(err)
	}
	refusing, _ := answers(t, status(400, `{"errors":["bad"]}`))
	for _, c := range []*Client{down, refusing.WithToken(NewToken(secret))} {
		_, read := c.Read(t.Context(), "a", url.Values{"password": {secret}})
		_, write := c.Write(t.Context(), "a", map[string]any{"password": secret})
		for _, err := range []error{read, write} {
			if err == nil {
				t.Fatal("no error")
			}
			if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, secret) {
				t.Errorf("%s", text)
			}
		}
		if text := fmt.Sprintf("%v %+v %#v %s", c.Token(), c.config, c.config, c.Token()); strings.Contains(text, secret) {
			t.Errorf("%s", text)
		}
	}
	answer, err := decode(200, []byte(`{"data":{"password":"`+secret+`"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", answer, answer, answer, answer); strings.Contains(text, secret) {
		t.Errorf("%s", text)
	}
	if _, err := New(Config{Address: "https://user:" + secret + "@host"}); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("%v", err)
	}
}

func TestAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"http://h:1": "http://h:1", "https://h/": "https://h", "https://h/vault/": "https://h/vault", "h:8200": "https://h:8200",
		"127.0.0.1:8200": "https://127.0.0.1:8200", "unix:///run/l.sock": "http://localhost|/run/l.sock",
		"": "", "ftp://h": "", "https://": "", "http://h:x": "", "unix://": "", "https://h?x=1": "",
	} {
		base, socket, err := parseAddress(address)
		got := ""
		if err == nil {
			got = base.String()
			if socket != "" {
				got += "|" + socket
			}
		}
		if got != want {
			t.Errorf("%q: %q, want %q (%v)", address, got, want, err)
		}
	}
}
