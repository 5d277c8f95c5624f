package rotator

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// receiver is a webhook over TLS, and what lessor knows of it.
func receiver(t *testing.T, h http.HandlerFunc) (*Caller, *Rotator, *Signing) {
	t.Helper()
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	r := &Rotator{Type: Webhook, URL: server.URL + "/rotate", Paths: []string{"*"}, CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))}
	s := &Signing{}
	if _, err := s.Renew(r, rand.Reader, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	return &Caller{Hosts: []string{"127.0.0.1"}, Random: rand.Reader}, r, s
}

func (k *Caller) request(ctx context.Context, s *Signing, r *Rotator, c Call) (Answer, error) {
	in, err := c.encode()
	if err != nil {
		return Answer{}, err
	}
	return c.answered(k.post(ctx, s, r, &c, in))
}

// Keys that are left of a rotator which had the name before sign nothing for the next one.
func TestKeysOfAnother(t *testing.T) {
	before, s := &Rotator{}, &Signing{}
	for range 2 {
		if _, err := s.Renew(before, rand.Reader, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	next := &Rotator{}
	key, err := s.Renew(next, rand.Reader, time.Now())
	if err != nil || len(s.Keys) != 1 || len(next.Keyed) != 1 || key.Reveal() != "whsec_"+base64.StdEncoding.EncodeToString(s.Keys[0]) {
		t.Errorf("%d keys, of which %d are known (%v)", len(s.Keys), len(next.Keyed), err)
	}
}

// A request is signed by each of the keys, as the webhook's receiver checks it: with what it was given of the key, over id, time and body.
func TestSigned(t *testing.T) {
	keys, ids := map[string]bool{}, map[string]bool{}
	k, r, s := receiver(t, func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		id, at := q.Header.Get("Webhook-Id"), q.Header.Get("Webhook-Timestamp")
		ids[id] = true
		for key := range keys {
			b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(key, "whsec_"))
			mac := hmac.New(sha256.New, b)
			fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
			if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); err != nil || !strings.Contains(" "+q.Header.Get("Webhook-Signature")+" ", " "+want+" ") {
				t.Errorf("%s has no signature of a key (%v)", q.Header.Get("Webhook-Signature"), err)
			}
		}
		if n := len(strings.Fields(q.Header.Get("Webhook-Signature"))); n != len(keys) {
			t.Errorf("%d keys have signed, not %d", n, len(keys))
		}
		if q.Method != http.MethodPost || q.URL.Path != "/rotate" || !bytes.Contains(body, []byte(`"step":"test"`)) {
			t.Errorf("%s %s", q.Method, q.URL)
		}
		fmt.Fprint(w, `{"verdict":"accepted"}`)
	})
	ask := func(signed ...lessor.Secret) {
		t.Helper()
		clear(keys)
		for _, key := range signed {
			keys[key.Reveal()] = true
		}
		if a, err := k.request(t.Context(), s, r, Call{Step: Test, Pending: lessor.NewSecret(`{"a":1}`)}); err != nil || !a.Accepted {
			t.Errorf("%v, %v", a, err)
		}
	}
	renew := func() lessor.Secret {
		t.Helper()
		key, err := s.Renew(r, rand.Reader, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	s.Keys, r.Keyed = nil, nil
	first := renew()
	ask(first)
	_ = renew() // its answer is lost
	second := renew()
	ask(first, second)
	if err := s.Retire(r); err != nil {
		t.Fatal(err)
	}
	ask(second)
	if len(ids) != 3 || len(r.Keyed) != 1 {
		t.Errorf("ids %v, keys of %v", ids, r.Keyed)
	}
	if s.Retire(r) == nil {
		t.Error("the last key was retired")
	}
}

// Whatever a webhook answers, and however it does not: the step failed, in words that are lessor's own.
func TestBadDays(t *testing.T) {
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	for name, c := range map[string]struct {
		want string
		do   func(w http.ResponseWriter, q *http.Request, free <-chan struct{})
	}{
		"garbage": {"did not answer with a JSON object", func(w http.ResponseWriter, _ *http.Request, _ <-chan struct{}) { fmt.Fprint(w, "hunter2") }},
		"nothing": {"did not answer with a JSON object", func(http.ResponseWriter, *http.Request, <-chan struct{}) {}},
		"status":  {"answered with status 500", func(w http.ResponseWriter, _ *http.Request, _ <-chan struct{}) { http.Error(w, "hunter2", 500) }},
		"too large": {"answered with status 413", func(w http.ResponseWriter, _ *http.Request, _ <-chan struct{}) {
			http.Error(w, "hunter2", http.StatusRequestEntityTooLarge)
		}},
		"redirect": {"answered with status 307", func(w http.ResponseWriter, q *http.Request, _ <-chan struct{}) {
			http.Redirect(w, q, elsewhere.URL, http.StatusTemporaryRedirect)
		}},
		"flood": {"more than 65536 bytes", func(w http.ResponseWriter, _ *http.Request, _ <-chan struct{}) { w.Write(make([]byte, 1<<20)) }},
		"endless header": {"broke off", func(w http.ResponseWriter, _ *http.Request, _ <-chan struct{}) {
			w.Header().Set("X", strings.Repeat("hunter2", 10000))
		}},
		"cut": {"broke off", func(w http.ResponseWriter, _ *http.Request, _ <-chan struct{}) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"pending":`)
			panic(http.ErrAbortHandler)
		}},
		"compressed": {"did not answer with a JSON object", func(w http.ResponseWriter, q *http.Request, _ <-chan struct{}) {
			if q.Header.Get("Accept-Encoding") != "" {
				t.Error("lessor takes compressed answers")
			}
			w.Header().Set("Content-Encoding", "gzip")
			w.Write([]byte{0x1f, 0x8b})
		}},
		"hangs": {"in time", func(_ http.ResponseWriter, q *http.Request, free <-chan struct{}) { _, _ = io.ReadAll(q.Body); <-free }},
		"hangs halfway": {"in time", func(w http.ResponseWriter, _ *http.Request, free <-chan struct{}) {
			fmt.Fprint(w, "{")
			w.(http.Flusher).Flush()
			<-free
		}},
	} {
		t.Run(name, func(t *testing.T) {
			free := make(chan struct{})
			k, r, s := receiver(t, func(w http.ResponseWriter, q *http.Request) { c.do(w, q, free) })
			t.Cleanup(func() { close(free) }) // the server waits for it
			ctx := t.Context()
			if c.want == "in time" {
				short, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				ctx = short
			}
			_, err := k.request(ctx, s, r, Call{Step: Create})
			if api.KindOf(err) != api.Upstream || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// A value is told only to whoever has a certificate of the one that was registered, and not by way of a proxy that the environment names.
func TestOnlyToItsCertificate(t *testing.T) {
	k, r, s := receiver(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a proxy was asked") }))
	defer proxy.Close()
	t.Setenv("HTTPS_PROXY", proxy.URL)
	t.Setenv("ALL_PROXY", proxy.URL)
	if _, err := k.request(t.Context(), s, r, Call{Step: Set}); err != nil {
		t.Fatal(err)
	}
	changed := *r
	changed.CA = other
	if err := changed.Check(); err != nil {
		t.Fatal(err)
	}
	unknown := *r
	unknown.CA = ""
	for _, r := range []*Rotator{&changed, &unknown} {
		if _, err := k.request(t.Context(), s, r, Call{Step: Set}); err == nil || !strings.Contains(err.Error(), "certificate is not to be trusted") {
			t.Errorf("%v", err)
		}
	}
}

// other vouches for none of the tests' webhooks.
const other = `-----BEGIN CERTIFICATE-----
MIIBeDCCAR2gAwIBAgIUEUivOsonIWCSCbhkVe7jAcpwZeYwCgYIKoZIzj0EAwIw
EDEOMAwGA1UEAwwFb3RoZXIwIBcNMjYxMTI5MTYxOTQ3WhgPMjEyNjExMDUxNjE5
NDdaMBAxDjAMBgNVBAMMBW90aGVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
NYp7vLuMBXCEjBfbMdoXJB/kdIQz8zwSnfCvU2q3cLF5ndG67SWg1qhPwU18CCHz
EHYgaFgdHJ2Q4V9+JEY3T6NTMFEwHQYDVR0OBBYEFEcMmr338EEO2mF6ho8OCx9Z
FT15MB8GA1UdIwQYMBaAFEcMmr338EEO2mF6ho8OCx9ZFT15MA8GA1UdEwEB/wQF
MAMBAf8wCgYIKoZIzj0EAwIDSQAwRgIhAIGYyMgdHhXa4FRGD2Rkvur9dqGuTwMH
MJVp44Pl8AdIAiEA93HJZ2HNK+YfVLO1gqNJM7z6db5+Qe6vUs19zuKfDuw=
-----END CERTIFICATE-----
`

func TestReaches(t *testing.T) {
	for _, c := range []struct {
		host, address string
		want          bool
	}{
		{"rotators.example.org", "203.0.113.7", true},
		{"rotators.example.org", "10.0.0.7", true},
		{"rotators.example.org", "fd12::7", true},
		{"rotators.example.org", "127.0.0.1", false},
		{"rotators.example.org", "::1", false},
		{"rotators.example.org", "::ffff:127.0.0.1", false},
		{"rotators.example.org", "0.0.0.0", false},
		{"rotators.example.org", "169.254.169.254", false},
		{"rotators.example.org", "::ffff:169.254.169.254", false},
		{"rotators.example.org", "64:ff9b::a9fe:a9fe", false},
		{"rotators.example.org", "fe80::1", false},
		{"rotators.example.org", "fd00:ec2::254", false},
		{"rotators.example.org", "100.100.100.200", false},
		{"rotators.example.org", "224.0.0.1", false},
		{"localhost", "127.0.0.1", true},
		{"localhost", "::1", true},
		{"localhost", "203.0.113.7", false},
		{"127.0.0.1", "127.0.0.1", true},
		{"169.254.1.2", "169.254.1.2", true},
		{"169.254.1.2", "169.254.169.254", false},
	} {
		if got := reaches(c.host, netip.MustParseAddr(c.address)); got != c.want {
			t.Errorf("%s at %s: %v", c.host, c.address, got)
		}
	}
}

// The address is looked at when it is dialled: a name that leads to the machine itself is none of a webhook's, whatever it led to before.
func TestRebound(t *testing.T) {
	k, r, s := receiver(t, func(http.ResponseWriter, *http.Request) { t.Error("a name led to the machine itself") })
	r.URL = strings.Replace(r.URL, "127.0.0.1", "LOCALHOST", 1) // not the word that Check knows, so a name as any other
	if _, err := k.request(t.Context(), s, r, Call{Step: Set}); err == nil || !strings.Contains(err.Error(), "must have the address") {
		t.Errorf("%v", err)
	}
}

func TestCheckWebhook(t *testing.T) {
	good := Rotator{Type: Webhook, URL: "https://rotators.example.org:8443/billing", Paths: []string{"secret/*"}}
	for _, url := range []string{good.URL, "http://127.0.0.1:8080", "http://[::1]:8080/x", "http://localhost"} {
		is := good
		if is.URL = url; is.Check() != nil {
			t.Errorf("%s: %v", url, is.Check())
		}
	}
	for _, url := range []string{
		"", "http://rotators.example.org", "ftp://rotators.example.org", "https://", "https://u:p@rotators.example.org", "https://rotators.example.org/#x",
		"rotators.example.org", "https://Rotators.example.org", "http://127.0.0.1.example.org", "http://localhost.example.org", "https://ro tators", "unix:///run/x",
	} {
		is := good
		if is.URL = url; is.Check() == nil {
			t.Errorf("%s was taken", url)
		}
	}
	for name, change := range map[string]func(*Rotator){
		"a path": func(r *Rotator) { r.Path = "/opt/rotators/x" }, "a user": func(r *Rotator) { r.User = "nobody" }, "no paths": func(r *Rotator) { r.Paths = nil },
		"a ca of nothing": func(r *Rotator) { r.CA = "x" }, "a key for a ca": func(r *Rotator) { r.CA = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" },
		"a ca for http": func(r *Rotator) { r.URL, r.CA = "http://127.0.0.1", other },
	} {
		bad := good
		if change(&bad); bad.Check() == nil {
			t.Errorf("%s was taken", name)
		}
	}
	for _, c := range []struct {
		k    *Caller
		want string
	}{
		{&Caller{}, "set rotator_hosts"}, {nil, "set rotator_hosts"},
		{&Caller{Hosts: []string{"other.example.org"}}, "do not name it"},
		{&Caller{Hosts: []string{"rotators.example.org"}}, ""}, {&Caller{Hosts: []string{"*"}}, ""},
	} {
		if err := c.k.Ready(&good); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.k, err)
		}
	}
}
