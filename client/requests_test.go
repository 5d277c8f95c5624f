package client

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is to be seen is shown instead of sent.
func TestPreview(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a call was made") }))
	defer server.Close()
	seen := errors.New("seen")
	c, err := New(Config{Address: server.URL, Token: NewToken("t"), MaxRetries: 3, Preview: func(r *http.Request, body []byte) error {
		if r.Method != http.MethodPut || r.URL.Path != "/v1/secret/data/a" || string(body) != `{"a":"b"}` || r.Header.Get("X-Vault-Token") != "t" {
			t.Errorf("%s %s %s", r.Method, r.URL, body)
		}
		return seen
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(t.Context(), "secret/data/a", map[string]string{"a": "b"}); !errors.Is(err, seen) {
		t.Errorf("%v", err)
	}
}

func TestHeadersOfFactorsAndOverrides(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := strings.Join(r.Header.Values("X-Vault-MFA"), " "); got != "totp:1 duo" {
			t.Errorf("factors %q", got)
		}
		if r.Header.Get("X-Vault-Policy-Override") != "true" || r.Header.Get("X-Vault-Namespace") != "other" {
			t.Errorf("%v", r.Header)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer server.Close()
	c, err := New(Config{Address: server.URL, MFA: []string{"totp:1", "duo"}, PolicyOverride: true, Namespace: "one"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WithNamespace("other").Read(t.Context(), "a", nil); err != nil {
		t.Error(err)
	}
}

func TestRedirectsMayBeRefused(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/a" {
				http.Redirect(w, r, "/v1/b", http.StatusTemporaryRedirect)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		}))
		c, err := New(Config{Address: server.URL, NoRedirects: refuse})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(t.Context(), "a", nil); (err != nil) != refuse {
			t.Errorf("refuse %v: %v", refuse, err)
		}
		server.Close()
	}
}

func TestProxyAddress(t *testing.T) {
	reached := false
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached = r.Host == "server.invalid"
		w.WriteHeader(http.StatusNoContent)
	}))
	defer proxy.Close()
	c, err := New(Config{Address: "http://server.invalid", Proxy: proxy.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(t.Context(), "a", nil); err != nil || !reached {
		t.Errorf("reached %v, %v", reached, err)
	}
	if _, err := New(Config{Address: "http://s", Proxy: "nowhere"}); err == nil {
		t.Error("a proxy without a host was taken")
	}
}

func TestTokenProgram(t *testing.T) {
	dir := t.TempDir()
	program := TokenProgram{Program: filepath.Join(dir, "helper")}
	script := "#!/bin/sh\ncd " + dir + "\ncase $1 in get) test ! -f kept || cat kept;; store) cat > kept;; erase) rm kept;; esac\n"
	if err := os.WriteFile(program.Program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		if got, err := program.Load(); err != nil || got.Reveal() != want {
			t.Errorf("%q, %v, want %q", got.Reveal(), err, want)
		}
	}
	expect("")
	if err := program.Store(NewToken("hvs.sesame")); err != nil {
		t.Fatal(err)
	}
	expect("hvs.sesame")
	if err := program.Erase(); err != nil {
		t.Fatal(err)
	}
	expect("")
	if err := program.Erase(); err == nil || !strings.Contains(err.Error(), "helper erase: exit status 1: rm:") {
		t.Errorf("%v", err)
	}
	if _, err := (TokenProgram{Program: "helper"}).Load(); err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("%v", err)
	}
}
