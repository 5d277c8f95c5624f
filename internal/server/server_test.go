package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// gate is a Gate made of functions.
type gate struct {
	admit   func(*lessor.Op, bool) ([][2]string, bool, error)
	handle  func(context.Context, *lessor.Op) (*lessor.Answer, error)
	status  Status
	headers []string
	cors    CORS
}

func (g *gate) Admit(op *lessor.Op, data bool) ([][2]string, bool, error) {
	if g.admit == nil {
		return nil, false, nil
	}
	return g.admit(op, data)
}

func (g *gate) Handle(ctx context.Context, op *lessor.Op) (*lessor.Answer, error) {
	return g.handle(ctx, op)
}

func (g *gate) Help(_ context.Context, op *lessor.Op) (*lessor.Answer, error) {
	return &lessor.Answer{Bare: true, Data: map[string]any{"help": "about " + op.Path}}, nil
}

func (g *gate) Status() Status { return g.status }

func (g *gate) Headers() []string { return g.headers }

func (g *gate) CORS() CORS { return g.cors }

var running = Status{Initialized: true, ClusterID: "c-1", ClusterName: "test", Reported: "1.20.0", Version: "0.1.0", Storage: "mem", Seal: "keyfile"}

// answering makes a Handler whose Gate answers a, and shows each Op to see.
func answering(a *lessor.Answer, err error, see func(*lessor.Op)) *Handler {
	return New(Options{Random: rand.Reader, Gate: &gate{status: running, handle: func(_ context.Context, op *lessor.Op) (*lessor.Answer, error) {
		if see != nil {
			see(op)
		}
		return a, err
	}}})
}

func ask(h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestDecode(t *testing.T) {
	type op struct {
		verb lessor.Verb
		path string
		data map[string]any
	}
	n := func(s string) json.Number { return json.Number(s) }
	for _, c := range []struct {
		name, method, target, body string
		header                     []string
		want                       op
	}{
		{"read", "GET", "/v1/secret/data/app", "", nil, op{lessor.Read, "secret/data/app", nil}},
		{"list", "LIST", "/v1/secret/metadata", "", nil, op{lessor.List, "secret/metadata/", nil}},
		{"list with slash", "LIST", "/v1/secret/metadata/", "", nil, op{lessor.List, "secret/metadata/", nil}},
		{"list by query", "GET", "/v1/secret/metadata?list=true&after=x", "", nil, op{lessor.List, "secret/metadata/", map[string]any{"after": "x"}}},
		{"not list by query", "GET", "/v1/secret/metadata?list=false", "", nil, op{lessor.Read, "secret/metadata", nil}},
		{"slash at the end of a read", "GET", "/v1/secret/data/app/", "", nil, op{lessor.Read, "secret/data/app", nil}},
		{"query", "GET", "/v1/secret/data/app?version=2&x=1&x=2", "", nil, op{lessor.Read, "secret/data/app", map[string]any{"version": "2", "x": []any{"1", "2"}}}},
		{"delete with a body", "DELETE", "/v1/sys/rekey/init", `{"nonce":"x"}`, nil, op{lessor.Delete, "sys/rekey/init", map[string]any{"nonce": "x"}}},
		{"delete with query", "DELETE", "/v1/a/b?list=true", "", nil, op{lessor.Delete, "a/b", map[string]any{"list": "true"}}},
		{"post", "POST", "/v1/a/b", `{"n":1}`, nil, op{lessor.Update, "a/b", map[string]any{"n": n("1")}}},
		{"put", "PUT", "/v1/a/b", `{"n":1}`, nil, op{lessor.Update, "a/b", map[string]any{"n": n("1")}}},
		{"query of a write is ignored", "PUT", "/v1/a/b?x=1", `{}`, nil, op{lessor.Update, "a/b", map[string]any{}}},
		{"empty body", "POST", "/v1/a/b", "", nil, op{lessor.Update, "a/b", nil}},
		{"blank body", "POST", "/v1/a/b", " \n", nil, op{lessor.Update, "a/b", nil}},
		{"null body", "POST", "/v1/a/b", "null", nil, op{lessor.Update, "a/b", nil}},
		{"patch", "PATCH", "/v1/a/b", `{"x":null}`, []string{"Content-Type", "application/merge-patch+json; charset=utf-8"}, op{lessor.Patch, "a/b", map[string]any{"x": nil}}},
		{"form", "POST", "/v1/a/b", "x=1&y=a%20b&x=2", []string{"Content-Type", "application/x-www-form-urlencoded"}, op{lessor.Update, "a/b", map[string]any{"x": []any{"1", "2"}, "y": "a b"}}},
		{"JSON announced as a form", "POST", "/v1/a/b", ` {"x":"1"}`, []string{"Content-Type", "application/x-www-form-urlencoded"}, op{lessor.Update, "a/b", map[string]any{"x": "1"}}},
		{"escaped path", "GET", "/v1/secret/data/a%20b%2Fc%25", "", nil, op{lessor.Read, "secret/data/a b/c%", nil}},
		{"path beyond ASCII", "GET", "/v1/secret/data/%C3%A9t%C3%A9", "", nil, op{lessor.Read, "secret/data/été", nil}},
		{"dots in a segment", "GET", "/v1/secret/data/a..b/.c", "", nil, op{lessor.Read, "secret/data/a..b/.c", nil}},
		{"root namespace", "GET", "/v1/a", "", []string{"X-Vault-Namespace", "root"}, op{lessor.Read, "a", nil}},
		{"exact numbers", "POST", "/v1/a/b", `{"big":123456789012345678901234567890,"f":1.10,"e":1E400,"neg":-0.0}`, nil,
			op{lessor.Update, "a/b", map[string]any{"big": n("123456789012345678901234567890"), "f": n("1.10"), "e": n("1E400"), "neg": n("-0.0")}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got *lessor.Op
			w := ask(answering(&lessor.Answer{}, nil, func(o *lessor.Op) { got = o }), c.method, c.target, c.body, c.header...)
			if got == nil {
				t.Fatalf("refused: %d %s", w.Code, w.Body)
			}
			if have := (op{got.Verb, got.Path, got.Data}); !reflect.DeepEqual(have, c.want) {
				t.Errorf("got %+v\nwant %+v", have, c.want)
			}
			if got.Namespace != lessor.RootNamespace || got.Client != netip.MustParseAddr("192.0.2.1") || got.Time.IsZero() {
				t.Errorf("namespace %d, client %s, time %s", got.Namespace, got.Client, got.Time)
			}
			if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(got.ID) {
				t.Errorf("request id %q is no UUID", got.ID)
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	var got *lessor.Op
	h := answering(&lessor.Answer{}, nil, func(o *lessor.Op) { got = o })
	ask(h, "GET", "/v1/a", "", "X-Vault-Token", "hvs.one", "Authorization", "Bearer two", "X-Vault-Wrap-TTL", "5m", "X-Lessor-Instance", "pod-1",
		"X-Lessor-Lease", "renewable", "X-Vault-Request", "true", "X-Vault-Index", "x", "X-Vault-Inconsistent", "forward-active-node", "X-Vault-Forward", "active-node",
		"X-Vault-Policy-Override", "true", "X-Vault-MFA", "m:1")
	if got.Token.Reveal() != "hvs.one" || got.WrapTTL != 5*time.Minute || got.Instance != "pod-1" || !got.Renewable {
		t.Errorf("got %+v", got)
	}
	for bearer, want := range map[string]string{"Bearer two": "two", "bearer  two ": "two", "Basic dTpw": "", "Bearer": ""} {
		if ask(h, "GET", "/v1/a", "", "Authorization", bearer); got.Token.Reveal() != want {
			t.Errorf("Authorization %q: token %q, want %q", bearer, got.Token.Reveal(), want)
		}
	}
	for text, want := range map[string]time.Duration{"60": time.Minute, "90s": 90 * time.Second, "1d": 24 * time.Hour, "": 0} {
		if ask(h, "GET", "/v1/a", "", "X-Vault-Wrap-TTL", text); got.WrapTTL != want {
			t.Errorf("wrap ttl %q is %s, want %s", text, got.WrapTTL, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	deep := func(n int) string { return `{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}" }
	patch := []string{"Content-Type", "application/merge-patch+json"}
	for _, c := range []struct {
		name, method, target, body string
		header                     []string
		status                     int
		text                       string
	}{
		{"not below v1", "GET", "/", "", nil, 404, "/v1/"},
		{"another version", "GET", "/v2/secret", "", nil, 404, "/v1/"},
		{"v1 itself", "GET", "/v1/", "", nil, 404, "/v1/"},
		{"unknown method", "BREW", "/v1/a", "", nil, 405, "method not allowed"},
		{"head", "HEAD", "/v1/a", "", nil, 405, "method not allowed"},
		{"options", "OPTIONS", "/v1/a", "", nil, 405, "method not allowed"},
		{"namespace", "GET", "/v1/a", "", []string{"X-Vault-Namespace", "team"}, 404, "namespace not found"},
		{"parent", "GET", "/v1/secret/%2e%2e/sys", "", nil, 400, "cannot contain . or .."},
		{"self", "GET", "/v1/secret/./sys", "", nil, 400, "cannot contain . or .."},
		{"parent at the end", "GET", "/v1/secret/..", "", nil, 400, "cannot contain . or .."},
		{"empty segment", "GET", "/v1/secret//app", "", nil, 400, "empty segment"},
		{"leading slash", "GET", "/v1//secret/app", "", nil, 400, "empty segment"},
		{"two slashes at the end", "GET", "/v1/secret//", "", nil, 400, "empty segment"},
		{"escaped slashes", "GET", "/v1/secret/%2f%2fapp", "", nil, 400, "empty segment"},
		{"NUL", "GET", "/v1/secret/a%00b", "", nil, 400, "printable"},
		{"newline", "GET", "/v1/secret/a%0ab", "", nil, 400, "printable"},
		{"bidirectional override", "GET", "/v1/secret/a%E2%80%AEb", "", nil, 400, "printable"},
		{"path is not UTF-8", "GET", "/v1/secret/a%ff", "", nil, 400, "printable"},
		{"long path", "GET", "/v1/" + strings.Repeat("a", 4097), "", nil, 400, "longer than"},
		{"bad query", "GET", "/v1/a?x=%zz", "", nil, 400, "query"},
		{"bad list", "GET", "/v1/a?list=maybe", "", nil, 400, "list"},
		{"query is not UTF-8", "GET", "/v1/a?x=%ff", "", nil, 400, "UTF-8"},
		{"patch without type", "PATCH", "/v1/a", "{}", nil, 415, "merge-patch"},
		{"patch with JSON's type", "PATCH", "/v1/a", "{}", []string{"Content-Type", "application/json"}, 415, "merge-patch"},
		{"patch with nonsense", "PATCH", "/v1/a", "{", patch, 400, "error parsing JSON"},
		{"wrap ttl", "GET", "/v1/a", "", []string{"X-Vault-Wrap-TTL", "soon"}, 400, "X-Vault-Wrap-TTL"},
		{"negative wrap ttl", "GET", "/v1/a", "", []string{"X-Vault-Wrap-TTL", "-1"}, 400, "X-Vault-Wrap-TTL"},
		{"instance", "GET", "/v1/a", "", []string{"X-Lessor-Instance", strings.Repeat("x", 129)}, 400, "X-Lessor-Instance"},
		{"lease", "GET", "/v1/a", "", []string{"X-Lessor-Lease", "forever"}, 400, "X-Lessor-Lease"},
		{"array", "POST", "/v1/a", `[1]`, nil, 400, "must be a JSON object"},
		{"string", "POST", "/v1/a", `"x"`, nil, 400, "must be a JSON object"},
		{"trailing garbage", "POST", "/v1/a", `{} {}`, nil, 400, "behind the JSON object"},
		{"key twice", "POST", "/v1/a", `{"a":1,"a":2}`, nil, 400, "same key twice"},
		{"key twice in disguise", "POST", "/v1/a", `{"b":{"a":1,"\u0061":2}}`, nil, 400, "same key twice"},
		{"cut short", "POST", "/v1/a", `{"a":"b`, nil, 400, "does not end"},
		{"leading zero", "POST", "/v1/a", `{"a":01}`, nil, 400, "comma or the end"},
		{"no digits", "POST", "/v1/a", `{"a":-}`, nil, 400, "digit"},
		{"control character", "POST", "/v1/a", "{\"a\":\"\x01\"}", nil, 400, "control character"},
		{"not UTF-8", "POST", "/v1/a", "{\"a\":\"\xff\"}", nil, 400, "UTF-8"},
		{"half a surrogate", "POST", "/v1/a", `{"a":"\ud800x"}`, nil, 400, "surrogate"},
		{"bad escape", "POST", "/v1/a", `{"a":"\x41"}`, nil, 400, "escape"},
		{"too deep", "POST", "/v1/a", deep(maxDepth + 1), nil, 400, "nested"},
		{"too many values", "POST", "/v1/a", `{"a":[0` + strings.Repeat(",0", maxValues) + `]}`, nil, 413, "values"},
		{"bad form", "POST", "/v1/a", "x=%zz", []string{"Content-Type", "application/x-www-form-urlencoded"}, 400, "form"},
		{"too large", "POST", "/v1/a", strings.Repeat(" ", maxBody+1), nil, 413, "32 MiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := answering(nil, nil, func(op *lessor.Op) { t.Errorf("reached the gate as %+v", op) })
			w := ask(h, c.method, c.target, c.body, c.header...)
			var body struct{ Errors []string }
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
				t.Fatalf("%v: %q", err, w.Body)
			}
			if w.Code != c.status || len(body.Errors) != 1 || !strings.Contains(body.Errors[0], c.text) {
				t.Errorf("got %d %q; want %d %q", w.Code, body.Errors, c.status, c.text)
			}
			checkHeader(t, w)
		})
	}
	if w := ask(answering(&lessor.Answer{}, nil, nil), "POST", "/v1/a", deep(maxDepth)); w.Code != 204 {
		t.Errorf("the deepest that is allowed: %d %s", w.Code, w.Body)
	}
}

func checkHeader(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	if got := w.Header().Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control is %q", got)
	}
	if got := w.Header().Get("Content-Type"); w.Body.Len() > 0 && got != "application/json" {
		t.Errorf("Content-Type is %q", got)
	}
}

func TestChunkedBodyTooLarge(t *testing.T) {
	s := httptest.NewServer(answering(&lessor.Answer{}, nil, nil))
	defer s.Close()
	r, _ := http.NewRequest("POST", s.URL+"/v1/a", io.LimitReader(spaces{}, maxBody+1)) // no length is announced
	answer, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != 413 {
		t.Errorf("got %s", answer.Status)
	}
}

type spaces struct{}

func (spaces) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

func TestAnswers(t *testing.T) {
	const id = `"request_id":"ID","lease_id":"","renewable":false,"lease_duration":0,`
	for _, c := range []struct {
		name   string
		answer *lessor.Answer
		err    error
		status int
		body   string
	}{
		{"nothing to say", &lessor.Answer{}, nil, 204, ""},
		{"accepted", &lessor.Answer{Status: 202}, nil, 202, ""},
		{"data", &lessor.Answer{Data: map[string]any{"k": lessor.NewSecret("v"), "n": json.Number("1.10")}, Mount: "kv"}, nil, 200,
			`{` + id + `"data":{"k":"v","n":1.10},"wrap_info":null,"warnings":null,"auth":null,"mount_type":"kv"}`},
		{"a deleted version", &lessor.Answer{Status: 404, Data: map[string]any{"data": nil}, Mount: "kv"}, nil, 404,
			`{` + id + `"data":{"data":null},"wrap_info":null,"warnings":null,"auth":null,"mount_type":"kv"}`},
		{"warnings only", &lessor.Answer{Warnings: []string{"w"}}, nil, 200,
			`{` + id + `"data":null,"wrap_info":null,"warnings":["w"],"auth":null,"mount_type":""}`},
		{"nothing there", nil, &api.Error{Kind: api.NotFound}, 404, `{"errors":[]}`},
		{"an empty list", &lessor.Answer{Status: 404}, nil, 404, `{"errors":[]}`},
		{"denied", nil, &api.Error{Kind: api.Denied, Text: "permission denied"}, 403, `{"errors":["permission denied"]}`},
		{"wrapped error", nil, fmt.Errorf("outer: %w", &api.Error{Kind: api.Limited, Text: "slow down"}), 429, `{"errors":["slow down"]}`},
		{"internal", nil, &api.Error{Kind: api.Internal, Text: "disk /dev/x", Cause: errors.New("cause")}, 500,
			`{"errors":["internal error; the server's log tells more under request id ID"]}`},
		{"of no kind", nil, errors.New("raw"), 500, `{"errors":["internal error; the server's log tells more under request id ID"]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var op *lessor.Op
			w := ask(answering(c.answer, c.err, func(o *lessor.Op) { op = o }), "GET", "/v1/a", "")
			if body := strings.ReplaceAll(w.Body.String(), op.ID, "ID"); w.Code != c.status || body != c.body {
				t.Errorf("got  %d %s\nwant %d %s", w.Code, body, c.status, c.body)
			}
			checkHeader(t, w)
		})
	}
}

func TestLogHoldsCausesAndNoSecrets(t *testing.T) {
	var log bytes.Buffer
	fail := func(context.Context, *lessor.Op) (*lessor.Answer, error) {
		return nil, &api.Error{Kind: api.Internal, Cause: errors.New("the disk is on fire")}
	}
	g := &gate{status: running, handle: fail}
	h := New(Options{Gate: g, Random: rand.Reader, Log: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	request := func() *httptest.ResponseRecorder {
		return ask(h, "POST", "/v1/secret/data/path-of-a-secret", `{"password":"value-of-a-secret"}`, "X-Vault-Token", "hvs.token")
	}
	request()
	if !strings.Contains(log.String(), "the disk is on fire") {
		t.Errorf("the log does not tell the cause: %s", &log)
	}
	g.handle = func(_ context.Context, op *lessor.Op) (*lessor.Answer, error) { panic(op.Data) }
	if w := request(); w.Code != 500 || !strings.Contains(log.String(), "panicked") {
		t.Errorf("after a panic: %d, log %s", w.Code, &log)
	}
	for _, secret := range []string{"value-of-a-secret", "path-of-a-secret", "hvs.token"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log holds %q: %s", secret, &log)
		}
	}
}

func TestClientsThatGoAreNoFailures(t *testing.T) {
	var log bytes.Buffer
	gone := &api.Error{Kind: api.Unavailable, Cause: context.Canceled}
	fail := func(context.Context, *lessor.Op) (*lessor.Answer, error) { return nil, gone }
	h := New(Options{Gate: &gate{status: running, handle: fail}, Random: rand.Reader, Log: slog.New(slog.NewJSONHandler(&log, nil))})
	get := func(ctx context.Context) {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/v1/sys/lessor/events/*?wait=50s", nil))
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	if get(left); log.Len() != 0 {
		t.Errorf("of a client that went away: %s", &log)
	}
	// Whoever is still there is told, and so is the log.
	if get(t.Context()); !strings.Contains(log.String(), "request failed") {
		t.Errorf("of a request that failed: %q", &log)
	}
	// What the store cannot do is no client's doing.
	log.Reset()
	gone.Cause = errors.New("the disk is away")
	if get(left); !strings.Contains(log.String(), "the disk is away") {
		t.Errorf("of a disk that is away: %q", &log)
	}
}

func TestStream(t *testing.T) {
	raw := func(f func(w io.Writer) error) *Handler {
		return answering(&lessor.Answer{RawType: "text/plain; version=0.0.4", Raw: func(_ context.Context, w io.Writer) error { return f(w) }}, nil, nil)
	}
	s := httptest.NewServer(raw(func(w io.Writer) error { _, err := io.WriteString(w, "lessor_up 1\n"); return err }))
	defer s.Close()
	answer, err := s.Client().Get(s.URL + "/v1/sys/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(answer.Body)
	if string(body) != "lessor_up 1\n" || answer.Header.Get("Content-Type") != "text/plain; version=0.0.4" {
		t.Errorf("got %q %q", body, answer.Header)
	}

	s.Config.Handler = raw(func(io.Writer) error { return &api.Error{Kind: api.Unavailable, Text: "not now"} })
	if answer, err = s.Client().Get(s.URL + "/v1/sys/metrics"); err != nil || answer.StatusCode != 503 || answer.Header.Get("Content-Type") != "application/json" {
		t.Errorf("failure before the first byte: %v %v", answer, err)
	}

	s.Config.Handler = raw(func(w io.Writer) error {
		_, _ = w.Write(bytes.Repeat([]byte{'x'}, 100_000))
		return errors.New("broken")
	})
	answer, err = s.Client().Get(s.URL + "/v1/sys/metrics")
	if err == nil {
		_, err = io.ReadAll(answer.Body)
	}
	if err == nil {
		t.Error("a stream that broke off looks complete")
	}
}

func TestHelp(t *testing.T) {
	if w := ask(answering(nil, nil, nil), "GET", "/v1/secret/x?help=1", ""); w.Code != 200 || w.Body.String() != `{"help":"about secret/x"}` {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestHelpOfWhatAnybodyMayKnow(t *testing.T) {
	for _, path := range append(Public(), "sys/unseal") {
		if w := ask(answering(nil, nil, nil), "GET", "/v1/"+path+"?help=1", ""); w.Body.String() != `{"help":"about `+path+`"}` {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestAccept(t *testing.T) {
	var got string
	h := answering(&lessor.Answer{}, nil, func(op *lessor.Op) { got = op.Accept })
	r := httptest.NewRequest("GET", "/v1/a", nil)
	r.Header.Set("Accept", "application/openmetrics-text, text/plain")
	if h.ServeHTTP(httptest.NewRecorder(), r); got != "application/openmetrics-text, text/plain" {
		t.Errorf("got %q", got)
	}
}

func TestForwarded(t *testing.T) {
	var got netip.Addr
	h := answering(&lessor.Answer{}, nil, func(op *lessor.Op) { got = op.Client })
	h.proxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/8")}
	for _, c := range []struct {
		peer   string
		lines  []string
		want   string
		status int
	}{
		{"192.0.2.1:1", nil, "192.0.2.1", 204},
		{"192.0.2.1:1", []string{"203.0.113.9"}, "203.0.113.9", 204},
		{"192.0.2.1:1", []string{"1.1.1.1, 203.0.113.9, 10.1.2.3"}, "203.0.113.9", 204},
		{"192.0.2.1:1", []string{"1.1.1.1", "203.0.113.9", "10.1.2.3"}, "203.0.113.9", 204},
		{"192.0.2.1:1", []string{"203.0.113.9:4711"}, "203.0.113.9", 204},
		{"192.0.2.1:1", []string{"[2001:db8::1]:4711"}, "2001:db8::1", 204},
		{"192.0.2.1:1", []string{"10.1.2.3"}, "10.1.2.3", 204},
		{"192.0.2.1:1", []string{"unknown"}, "", 400},
		{"198.51.100.7:1", []string{"203.0.113.9"}, "198.51.100.7", 204},
		{"[::ffff:192.0.2.1]:1", []string{"203.0.113.9"}, "203.0.113.9", 204},
	} {
		got = netip.Addr{}
		r := httptest.NewRequest("GET", "/v1/a", nil)
		r.RemoteAddr = c.peer
		r.Header["X-Forwarded-For"] = c.lines
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.status || c.want != "" && got != netip.MustParseAddr(c.want) {
			t.Errorf("%s %q: %d %s, want %d %s", c.peer, c.lines, w.Code, got, c.status, c.want)
		}
	}
}

// What came over plain HTTP from elsewhere is not private, whatever it says of itself or a proxy says of it.
func TestPrivate(t *testing.T) {
	var got bool
	h := answering(&lessor.Answer{}, nil, func(op *lessor.Op) { got = op.Private })
	h.proxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	for _, c := range []struct {
		peer string
		tls  *tls.ConnectionState
		want bool
	}{
		{"127.0.0.1:1", nil, true}, {"[::1]:1", nil, true}, {"[::ffff:127.0.0.1]:1", nil, true}, {"198.51.100.7:1", &tls.ConnectionState{}, true},
		{"198.51.100.7:1", nil, false}, {"192.0.2.1:1", nil, false}, {"@", nil, false},
	} {
		r := httptest.NewRequest("GET", "/v1/a", nil)
		r.RemoteAddr, r.TLS = c.peer, c.tls
		r.Header.Set("X-Forwarded-For", "127.0.0.1")
		r.Header.Set("X-Forwarded-Proto", "https")
		got = !c.want
		h.ServeHTTP(httptest.NewRecorder(), r)
		if got != c.want {
			t.Errorf("%s, TLS %t: private is %t", c.peer, c.tls != nil, got)
		}
	}
}

func TestPublic(t *testing.T) {
	g := &gate{status: running, handle: func(context.Context, *lessor.Op) (*lessor.Answer, error) {
		t.Error("the gate was asked")
		return &lessor.Answer{}, nil
	}}
	clock := fixed(time.Unix(1700000000, 0))
	h := New(Options{Gate: g, Clock: clock})
	for _, c := range []struct{ path, want string }{
		{"sys/health", `{"initialized":true,"sealed":false,"standby":false,"performance_standby":false,"replication_performance_mode":"disabled","replication_dr_mode":"disabled","server_time_utc":1700000000,"version":"1.20.0","enterprise":false,"cluster_name":"test","cluster_id":"c-1","echo_duration_ms":0,"clock_skew_ms":0,"replication_primary_canary_age_ms":0,"lessor_version":"0.1.0","fenced":false,"draining":false,"away":false}`},
		{"sys/seal-status", `{"type":"keyfile","initialized":true,"sealed":false,"t":0,"n":0,"progress":0,"nonce":"","version":"1.20.0","build_date":"","migration":false,"cluster_name":"test","cluster_id":"c-1","recovery_seal":false,"storage_type":"mem","lessor_version":"0.1.0"}`},
		{"sys/leader", `{"ha_enabled":false,"is_self":false,"active_time":"0001-01-01T00:00:00Z","leader_address":"","leader_cluster_address":"","performance_standby":false,"performance_standby_last_remote_wal":0}`},
		{"sys/init", `{"initialized":true}`},
		{"sys/seal-backend-status", `{"healthy":true,"backends":[{"name":"keyfile","healthy":true}],"fully_wrapped":true}`},
	} {
		w := ask(h, "GET", "/v1/"+c.path, "")
		if w.Code != 200 || w.Body.String() != c.want {
			t.Errorf("%s: %d\ngot  %s\nwant %s", c.path, w.Code, w.Body, c.want)
		}
		checkHeader(t, w)
		if w := ask(h, "DELETE", "/v1/"+c.path, ""); w.Code != 405 {
			t.Errorf("DELETE %s: %d", c.path, w.Code)
		}
	}
	if w := ask(answering(nil, &api.Error{Kind: api.Invalid, Text: "Vault is already initialized"}, nil), "PUT", "/v1/sys/init", "{}"); w.Code != 400 ||
		w.Body.String() != `{"errors":["Vault is already initialized"]}` {
		t.Errorf("PUT sys/init: %d %s", w.Code, w.Body)
	}
	if w := ask(answering(&lessor.Answer{Bare: true}, nil, nil), "PUT", "/v1/sys/unseal", `{"key":"x"}`); w.Code != 200 || !strings.HasPrefix(w.Body.String(), `{"type":"keyfile",`) {
		t.Errorf("PUT sys/unseal: %d %s", w.Code, w.Body)
	}

	sealed, fresh := running, running
	sealed.Sealed = true
	fresh.Initialized, fresh.Sealed = false, true
	for _, c := range []struct {
		state Status
		query string
		want  int
	}{
		{running, "", 200}, {running, "?standbyok=true&perfstandbyok=true", 200}, {running, "?activecode=299", 299},
		{sealed, "", 503}, {sealed, "?sealedcode=204", 204}, {fresh, "", 501}, {fresh, "?uninitcode=200", 200},
		{running, "?sealedcode=x", 400}, {running, "?standbycode=99", 400}, {running, "?drsecondarycode=1000", 400},
	} {
		g.status = c.state
		for _, method := range []string{"GET", "HEAD"} {
			if w := ask(h, method, "/v1/sys/health"+c.query, ""); w.Code != c.want {
				t.Errorf("%s health%s of %+v: %d, want %d", method, c.query, c.state, w.Code, c.want)
			}
		}
	}
	g.status = sealed
	if w := ask(h, "GET", "/v1/sys/leader", ""); w.Code != 200 {
		t.Errorf("sys/leader of a sealed node: %d", w.Code)
	}
	g.status = running
	g.status.Shared, g.status.Address, g.status.Since = true, "https://n1:8200", time.Unix(1700000000, 0)
	if w := ask(h, "GET", "/v1/sys/leader", ""); w.Body.String() != `{"ha_enabled":true,"is_self":true,"active_time":"2023-11-14T22:13:20Z","leader_address":"https://n1:8200","leader_cluster_address":"https://n1:8200","performance_standby":false,"performance_standby_last_remote_wal":0}` {
		t.Errorf("sys/leader of one of several nodes: %s", w.Body)
	}
	g.status.Away = true
	if w := ask(h, "GET", "/v1/sys/health", ""); w.Code != 503 || !strings.Contains(w.Body.String(), `"sealed":false`) || !strings.Contains(w.Body.String(), `"away":true`) {
		t.Errorf("health while the store is away: %d %s", w.Code, w.Body)
	}
	g.status = running
	g.handle = func(context.Context, *lessor.Op) (*lessor.Answer, error) { return &lessor.Answer{}, nil }
	if err := h.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if w := ask(h, "GET", "/v1/sys/health", ""); w.Code != 503 || !strings.Contains(w.Body.String(), `"draining":true`) {
		t.Errorf("health while draining: %d %s", w.Code, w.Body)
	}
	if w := ask(h, "GET", "/v1/secret/x", ""); w.Code != 204 || w.Header().Get("Connection") != "close" {
		t.Errorf("a request while draining: %d %s", w.Code, w.Body)
	}
}

type fixed time.Time

func (f fixed) Now() time.Time { return time.Time(f) }

func TestNamespaceIsEchoed(t *testing.T) {
	for ns, status := range map[string]int{"root": 204, "/": 204, "team/": 404} {
		w := ask(answering(&lessor.Answer{}, nil, nil), "GET", "/v1/a", "", "X-Vault-Namespace", ns)
		if w.Code != status || w.Header().Get("X-Vault-Namespace") != ns {
			t.Errorf("namespace %q: %d, echoed as %q", ns, w.Code, w.Header().Get("X-Vault-Namespace"))
		}
	}
}

// A body that trickles in is given up, and does not hold the connection for ever.
func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		s := NewHTTP(answering(&lessor.Answer{}, nil, nil), slog.New(slog.DiscardHandler))
		go func() { _ = s.Serve(l) }()
		c := l.dial()
		defer c.Close()
		_, _ = io.WriteString(c, "POST /v1/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
		start := time.Now()
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || answer.StatusCode != 400 {
			t.Fatalf("got %v %v", answer, err)
		}
		if took := time.Since(start); took < bodyPatience || took > bodyPatience+5*time.Second {
			t.Errorf("given up after %s", took)
		}
		_ = s.Close()
	})
}

// Large bodies wait for each other beyond the number of seats, until those before them are answered; none is lost.
func TestLargeBodiesTakeTurns(t *testing.T) {
	for _, c := range []struct{ size, atOnce int }{{2 << 20, 8}, {100 << 10, 256}} {
		synctest.Test(t, func(t *testing.T) {
			var reached atomic.Int64
			release := make(chan struct{})
			h := answering(&lessor.Answer{}, nil, func(op *lessor.Op) {
				switch n := len(op.Data["x"].(string)); n {
				case 1:
				case c.size:
					reached.Add(1)
					<-release
				default:
					t.Errorf("%d bytes arrived", n)
				}
			})
			body := `{"x":"` + strings.Repeat("y", c.size) + `"}`
			for range 2 * c.atOnce {
				go func() {
					if w := ask(h, "POST", "/v1/a", body); w.Code != 204 {
						t.Errorf("got %d %s", w.Code, w.Body)
					}
				}()
			}
			synctest.Wait()
			if n := reached.Load(); n != int64(c.atOnce) {
				t.Errorf("%d bodies of %d bytes are in memory at once, want %d", n, c.size, c.atOnce)
			}
			if w := ask(h, "POST", "/v1/a", `{"x":"y"}`); w.Code != 204 {
				t.Errorf("a small body meanwhile: %d", w.Code)
			}
			close(release)
			synctest.Wait()
			if n := reached.Load(); n != int64(2*c.atOnce) {
				t.Errorf("%d reached the gate", n)
			}
			for i, seats := range h.taken {
				if len(seats) != 0 {
					t.Errorf("%d seats of room %d are still taken", len(seats), i)
				}
			}
		})
	}
}

// Whoever sends the body of a request slowly gains no time: the token is judged when all of it is there.
func TestTimeOfARequestWithABody(t *testing.T) {
	var late time.Duration
	begun := time.Time{}
	h := answering(&lessor.Answer{}, nil, func(op *lessor.Op) { late = op.Time.Sub(begun) })
	inFakeTime(t, h, func(t *testing.T, l *pipes) {
		c := l.dial()
		defer c.Close()
		begun = time.Now()
		_, _ = io.WriteString(c, "POST /v1/a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
		time.Sleep(20 * time.Second)
		_, _ = io.WriteString(c, "}")
		if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || answer.StatusCode != 204 {
			t.Fatalf("got %v %v", answer, err)
		}
	})
	if late < 20*time.Second {
		t.Errorf("the request is as of %s after its beginning", late)
	}
}

// pipes is a listener within a process, for tests in fake time.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) dial() net.Conn {
	a, b := net.Pipe()
	p.conns <- b
	return a
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// FuzzObject holds parseObject against encoding/json: whatever both take, both take for the same; what only one takes is
// what parseObject refuses on purpose.
func FuzzObject(f *testing.F) {
	for _, s := range []string{
		`{"a":1}`, `{"a":[1,-2.50e+3,null,true,false,"x\u00e9\ud83d\ude00\n"],"b":{}}`, `{"a":1,"a":2}`, ` null `, `{"a":"\ud800"}`, `{"a":01}`, `{"":""}x`,
		"{\"a\":\"\xff\"}", `[]`, `{"a":1e999999}`, `{"é":"\/"}`, ``, `{`, `{"a":"\u12`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		ours, err := parseObject(body)
		theirs, theirErr := reference(body)
		if err == nil {
			if theirErr != nil {
				t.Fatalf("accepted %q, which is no JSON: %v", body, theirErr)
			}
			if !reflect.DeepEqual(ours, theirs) {
				t.Fatalf("%q is\n%#v, not\n%#v", body, theirs, ours)
			}
			again, err := parseObject(lessor.AppendJSON(nil, ours))
			if err != nil || !reflect.DeepEqual(again, ours) {
				t.Fatalf("%q does not survive a round trip: %v", body, err)
			}
			return
		}
		if api.KindOf(err) != api.Invalid && api.KindOf(err) != api.TooLarge {
			t.Fatalf("refused with %v", err)
		}
		onPurpose := []string{"twice", "UTF-8", "surrogate", "nested", "values", "must be a JSON object"}
		if theirErr == nil && !slices.ContainsFunc(onPurpose, func(s string) bool { return strings.Contains(err.Error(), s) }) {
			t.Fatalf("refused %q: %v", body, err)
		}
	})
}

// reference decodes by encoding/json; an empty body is nothing.
func reference(body []byte) (object map[string]any, err error) {
	if len(bytes.Trim(body, " \t\r\n")) == 0 {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&object); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more than one value")
	}
	return object, nil
}

// FuzzRequest throws paths, queries, headers and bodies at the server: it never panics, and what reaches the gate is sound.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/v1/secret/data/app", "version=2", "text/plain", "", "5m", "1.2.3.4")
	f.Add("PATCH", "/v1/a/../b", "list=true", "application/merge-patch+json", `{"n":1.10}`, "1d", "[::1]:80, unknown")
	f.Add("POST", "/v1//a/", "%zz", "application/x-www-form-urlencoded", `a=1&a=2`, "-1", ",")
	f.Add("LIST", "/v1/\x00\xff/", "help&list=1;2", "", `{"a":{"a":1}}`, "99999999999d", "10.0.0.1")
	f.Fuzz(func(t *testing.T, method, path, query, kind, body, wrap, forwarded string) {
		h := answering(&lessor.Answer{}, nil, func(op *lessor.Op) {
			if op.Path == "" || strings.HasPrefix(op.Path, "/") || strings.Contains(op.Path, "//") || strings.Contains("/"+op.Path+"/", "/../") || !printable(op.Path) {
				t.Errorf("path %q reached the gate", op.Path)
			}
			if (op.Verb == lessor.List) != strings.HasSuffix(op.Path, "/") {
				t.Errorf("path %q of %s", op.Path, op.Verb)
			}
			if op.WrapTTL < 0 || !op.Client.IsValid() {
				t.Errorf("wrap ttl %s, client %s", op.WrapTTL, op.Client)
			}
			op.Digest()
		})
		h.proxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/8")}
		r := httptest.NewRequest("GET", "/", strings.NewReader(body))
		r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query}
		r.Header = http.Header{"Content-Type": {kind}, "X-Vault-Wrap-Ttl": {wrap}, "X-Forwarded-For": {forwarded}, "X-Lessor-Instance": {wrap}, "X-Vault-Token": {kind}}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 && !strings.HasPrefix(path, "/v1/sys/") {
			t.Errorf("status %d: %s", w.Code, w.Body)
		}
	})
}

// Numbers of any length come out of the gate as they went in.
func TestNumbersSurvive(t *testing.T) {
	digits, _ := new(big.Int).SetString(strings.Repeat("9", 400), 10)
	for _, text := range []string{digits.String(), "-" + digits.String(), "0." + digits.String(), "1e-" + "400", "0", "-0", "1E+5"} {
		h := New(Options{Random: rand.Reader, Gate: &gate{handle: func(_ context.Context, op *lessor.Op) (*lessor.Answer, error) {
			return &lessor.Answer{Bare: true, Data: maps.Clone(op.Data)}, nil
		}}})
		if w := ask(h, "POST", "/v1/a", `{"n":`+text+`}`); w.Body.String() != `{"n":`+text+`}` {
			t.Errorf("%s came back as %s", text, w.Body)
		}
	}
}

// BenchmarkRead is a KV read by the handler alone; BenchmarkReadHTTP over a real connection; BenchmarkBare a handler that
// only writes the same bytes, the limit of the latter.
func BenchmarkRead(b *testing.B) {
	h := answering(kvAnswer(), nil, nil)
	r := httptest.NewRequest("GET", "/v1/secret/data/app", nil)
	r.Header.Set("X-Vault-Token", "hvs.CAESIJ0123456789")
	w := &discard{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		h.ServeHTTP(w, r)
	}
}

func BenchmarkWrite(b *testing.B) {
	h := answering(&lessor.Answer{}, nil, nil)
	const body = `{"options":{"cas":1},"data":{"username":"app","password":"correct horse battery staple","port":5432}}`
	w := &discard{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		r := httptest.NewRequest("POST", "/v1/secret/data/app", strings.NewReader(body))
		h.ServeHTTP(w, r)
	}
}

func BenchmarkReadHTTP(b *testing.B) { overHTTP(b, answering(kvAnswer(), nil, nil)) }

func BenchmarkBare(b *testing.B) {
	body := kvAnswer().Append(nil, "00000000-0000-4000-8000-000000000000")
	overHTTP(b, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { send(w, 200, body) }))
}

func overHTTP(b *testing.B, h http.Handler) {
	s := httptest.NewServer(h)
	defer s.Close()
	b.ReportAllocs()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	request := []byte("GET /v1/secret/data/app HTTP/1.1\r\nHost: x\r\nX-Vault-Token: hvs.CAESIJ0123456789\r\nX-Vault-Request: true\r\n\r\n")
	for b.Loop() {
		if _, err := c.Write(request); err != nil {
			b.Fatal(err)
		}
		length := 0
		for {
			line, err := in.ReadSlice('\n')
			if err != nil {
				b.Fatal(err)
			}
			if n, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
				_, _ = fmt.Sscan(string(n), &length)
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := in.Discard(length); err != nil {
			b.Fatal(err)
		}
	}
}

func kvAnswer() *lessor.Answer {
	return &lessor.Answer{
		Lease: lessor.Terms{ID: "secret/data/app/0123456789abcdefghijklmn", Duration: 5 * time.Minute}, Mount: "kv",
		Data: map[string]any{
			"data": lessor.SecretJSON{Secret: lessor.NewSecret(`{"password":"correct horse battery staple","username":"app"}`)},
			"metadata": map[string]any{"created_time": "2026-01-01T00:00:00.000000000Z", "custom_metadata": nil, "deletion_time": "",
				"destroyed": false, "version": 3},
		},
	}
}

type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}
