package server

import (
	"context"
	"crypto/rand"
	"net/http"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
)

func TestCrossOrigin(t *testing.T) {
	handled := 0
	g := &gate{status: running, handle: func(context.Context, *lessor.Op) (*lessor.Answer, error) {
		handled++
		return &lessor.Answer{Data: map[string]any{}}, nil
	}}
	h := New(Options{Random: rand.Reader, Gate: g})
	ours := CORS{Origins: []string{"https://a.example"}, Headers: []string{"X-Vault-Token", "X-Foo"}}
	for _, c := range []struct {
		name           string
		cors           CORS
		method, origin string
		asked          string // Access-Control-Request-Method
		status         int
		allowed        string // Access-Control-Allow-Origin
		handled        int
	}{
		{"switched off", CORS{}, http.MethodGet, "https://a.example", "", 200, "", 1},
		{"switched off, asking", CORS{}, http.MethodOptions, "https://a.example", "PUT", 405, "", 0},
		{"no page", ours, http.MethodGet, "", "", 200, "", 1},
		{"ours", ours, http.MethodGet, "https://a.example", "", 200, "https://a.example", 1},
		{"ours, asking", ours, http.MethodOptions, "https://a.example", "PUT", 200, "https://a.example", 0},
		{"ours, asking for a list", ours, http.MethodOptions, "https://a.example", "LIST", 200, "https://a.example", 0},
		{"ours, asking for what there is not", ours, http.MethodOptions, "https://a.example", "TRACE", 405, "", 0},
		{"ours, asking for nothing", ours, http.MethodOptions, "https://a.example", "", 405, "", 0},
		{"another's", ours, http.MethodGet, "https://b.example", "", 403, "", 0},
		{"another's, asking", ours, http.MethodOptions, "https://b.example", "PUT", 403, "", 0},
		{"one that ours begins", ours, http.MethodGet, "https://a.example.org", "", 403, "", 0},
		{"null", ours, http.MethodGet, "null", "", 403, "", 0},
		{"all are", CORS{Origins: []string{"*"}}, http.MethodGet, "https://b.example", "", 200, "https://b.example", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.cors, handled = c.cors, 0
			var header []string
			if c.origin != "" {
				header = append(header, "Origin", c.origin)
			}
			if c.asked != "" {
				header = append(header, "Access-Control-Request-Method", c.asked)
			}
			w := ask(h, c.method, "/v1/secret/data/app", "", header...)
			if got := w.Header().Get("Access-Control-Allow-Origin"); w.Code != c.status || got != c.allowed || handled != c.handled {
				t.Errorf("status %d, origin %q, handled %d times: %s", w.Code, got, handled, w.Body)
			}
			if asks := c.method == http.MethodOptions && c.status == 200; asks {
				want := map[string]string{
					"Access-Control-Allow-Methods": "DELETE,GET,OPTIONS,POST,PUT,PATCH,LIST", "Access-Control-Allow-Headers": "X-Vault-Token,X-Foo",
					"Access-Control-Max-Age": "300", "Vary": "Origin",
				}
				for name, value := range want {
					if got := w.Header().Get(name); got != value {
						t.Errorf("%s: %q, want %q", name, got, value)
					}
				}
			}
		})
	}
	g.cors = ours
	if w := ask(h, http.MethodGet, "/v1/sys/seal-status", "", "Origin", "https://b.example"); w.Code != 403 || w.Body.String() != `{"errors":["origin not allowed"]}` {
		t.Errorf("what is public, for a page that is not ours: %d %s", w.Code, w.Body)
	}
}

func TestRequestsUnderWayAreKnown(t *testing.T) {
	var h *Handler
	var during []*lessor.Op
	h = New(Options{Random: rand.Reader, Gate: &gate{status: running, handle: func(context.Context, *lessor.Op) (*lessor.Answer, error) {
		during = h.InFlight()
		return &lessor.Answer{}, nil
	}}})
	ask(h, http.MethodGet, "/v1/secret/data/app", "")
	if len(during) != 1 || during[0].Path != "secret/data/app" {
		t.Errorf("during the request: %+v", during)
	}
	if after := h.InFlight(); len(after) != 0 {
		t.Errorf("after it: %+v", after)
	}
}
