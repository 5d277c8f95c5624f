package client

import (
	"net/http"
	"strings"
	"testing"
)

// FuzzAnswer: whatever a server sends, or something that is none, is an answer or an error, and neither shows more than is fit.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"request_id":"x","lease_id":"","renewable":false,"lease_duration":0,"data":{"k":1.0},"wrap_info":null,"warnings":["w"],"auth":null}`))
	f.Add(200, []byte(`{"keys":["a"],"data":null}`))
	f.Add(404, []byte(`{"errors":[]}`))
	f.Add(404, []byte(`{"request_id":"x","data":{"data":null,"metadata":{}},"errors":["gone"]}`))
	f.Add(502, []byte("<html>\nBad Gateway"))
	f.Add(200, []byte(`{"data":[1]}`))
	f.Add(200, []byte("null"))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		r, err := decode(status, body)
		if (r == nil) == (err == nil) {
			t.Fatalf("%q is %v and %v", body, r, err)
		}
		if r != nil {
			_ = r.Keys()
			_ = r.Decode(&struct{ Keys []string }{})
			if strings.Contains(r.String(), "data") {
				t.Fatalf("%q is told as %s", body, r)
			}
		}
		if err := decodeError(Request{Method: "GET", Path: "secret/data/x"}, status, body); err == nil || err.Error() == "" {
			t.Fatalf("%q is no error", body)
		}
	})
}

// FuzzAddress: an address that is taken names a host or a socket, and has neither a password nor anything behind its path.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{"https://host:8200", "host:8200", "unix:///run/lessor.sock", "http://[::1]:8200/prefix/", "https://u:p@host", "https://host?q=1", "://", "unix://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, address string) {
		base, socket, err := parseAddress(address)
		if err != nil {
			if base != nil || socket != "" || len(address) > 8 && strings.Contains(err.Error(), address) {
				t.Fatalf("%q: %v, %q, %v", address, base, socket, err)
			}
			return
		}
		if base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "" || base.Scheme != "http" && base.Scheme != "https" {
			t.Fatalf("%q is %+v", address, base)
		}
	})
}

// FuzzHeader: what is not a header does not change what is sent, and no header stands for one of lessor's own.
func FuzzHeader(f *testing.F) {
	for _, s := range []string{"a=b", "=", " X-Vault-Token = x", "x-vault-token=x", "a\n=b", "a=b=c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h := http.Header{}
		if err := ParseHeader(h, text); err != nil && len(h) > 0 {
			t.Fatalf("%q is refused, and sent as %v", text, h)
		}
		for name := range h {
			if name = strings.ToLower(strings.TrimSpace(name)); strings.HasPrefix(name, "x-vault-") {
				t.Fatalf("%q is sent as %v", text, h)
			}
		}
	})
}
