package session

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/client"
)

func request(t *testing.T, method, url string) *http.Request {
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", "hvs.sesame")
	r.Header.Set("User-Agent", "lessor-client")
	return r
}

func shown(t *testing.T, err error) string {
	text, ok := errors.AsType[Preview](err)
	if !ok {
		t.Fatalf("%v", err)
	}
	return string(text)
}

func TestAsCurl(t *testing.T) {
	for _, try := range []struct{ method, url, body, want string }{
		{"GET", "http://h/v1/a", "", `curl -H "X-Vault-Token: $(lessor print token)" http://h/v1/a`},
		{"GET", "http://h/v1/a?list=true", "", `curl -H "X-Vault-Token: $(lessor print token)" 'http://h/v1/a?list=true'`},
		{"PUT", "http://h/v1/a", `{"a":"it's"}`, `curl -X PUT -H "X-Vault-Token: $(lessor print token)" -d '{"a":"it'"'"'s"}' http://h/v1/a`},
	} {
		if got := shown(t, asCurl(request(t, try.method, try.url), []byte(try.body), client.TLS{})); got != try.want {
			t.Errorf("%s\nwant %s", got, try.want)
		}
	}
	got := shown(t, asCurl(request(t, "GET", "https://h/v1/a"), nil, client.TLS{SkipVerify: true, CACert: "/my ca", ClientCert: "/c", ClientKey: "/k"}))
	if want := "curl --insecure --cacert '/my ca' --cert '/c' --key '/k' -H"; !strings.HasPrefix(got, want) || strings.Contains(got, "sesame") {
		t.Errorf("%s", got)
	}
}

func TestAsPolicy(t *testing.T) {
	for _, try := range []struct{ method, url, path, capabilities string }{
		{"GET", "http://h/v1/secret/data/a", "secret/data/a", `"read"`},
		{"GET", "http://h/v1/secret/metadata/a/?list=true", "secret/metadata/a/", `"list"`},
		{"PUT", "http://h/prefix/v1/secret/data/a", "secret/data/a", `"create", "update"`},
		{"PATCH", "http://h/v1/secret/data/a", "secret/data/a", `"patch"`},
		{"DELETE", "http://h/v1/sys/audit/file", "sys/audit/file", `"delete", "sudo"`},
		{"GET", "http://h/v1/auth/token/accessors/?list=true", "auth/token/accessors/", `"list", "sudo"`},
	} {
		want := "path \"" + try.path + "\" {\n  capabilities = [" + try.capabilities + "]\n}"
		if got := shown(t, asPolicy(request(t, try.method, try.url))); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

func TestTokenHelperSetting(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "",
		"# nothing\n":                   "",
		`token_helper = "/bin/keep"`:    "/bin/keep",
		`{"token_helper": "/bin/keep"}`: "/bin/keep",
		`token_helper = 5`:              "error",
		`token_helper = `:               "error",
		`colour = "red"`:                "error",
		`block { }`:                     "error",
		`{"token_helper": 5}`:           "error",
		`{"a": "b"}`:                    "error",
		"$ANSIBLE_VAULT;1.1;AES256\n62": "error",
	} {
		got, err := tokenHelper([]byte(text))
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}
