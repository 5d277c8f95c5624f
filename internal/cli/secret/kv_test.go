package secret

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/cli/session"
)

func TestPrintSecret(t *testing.T) {
	a, out, _ := screen("")
	place := kvPlace{mount: "secret/", path: "app/db", version: 2}
	secret := answer(t, `{"lease_id":"secret/data/app/db/L","lease_duration":300,"data":{"data":{"password":"p"},
"metadata":{"created_time":"2026-11-24T00:00:00Z","custom_metadata":null,"deletion_time":"","destroyed":false,"version":3}}}`)
	if err := printSecret(a, secret, place, ""); err != nil {
		t.Fatal(err)
	}
	if want := `=== Secret Path ===
secret/data/app/db

======= Metadata =======
Key                Value
---                -----
created_time       2026-11-24T00:00:00Z
custom_metadata    <nil>
deletion_time      n/a
destroyed          false
version            3

========= Lease =========
Key                Value
---                -----
lease_id           secret/data/app/db/L
lease_duration     5m
lease_renewable    false

====== Data ======
Key         Value
---         -----
password    p
`; out.String() != want {
		t.Errorf("%s\nwant\n%s", out, want)
	}
	a, out, _ = screen("")
	if err := printSecret(a, secret, place, "password"); err != nil || out.String() != "p" {
		t.Errorf("%q, %v", out, err)
	}
	a, out, _ = screen("")
	deleted := answer(t, `{"data":{"data":null,"metadata":{"version":3}}}`)
	if err := printSecret(a, deleted, place, "password"); session.CodeOf(err) != session.ExitRemote || out.String() != "" {
		t.Errorf("%q, %v", out, err)
	}
}

// screen is a run of the command line that writes into out and err.
func screen(form string) (a *session.Session, out, err *strings.Builder) {
	out, err = new(strings.Builder), new(strings.Builder)
	a = session.New(session.System{In: strings.NewReader(""), Out: out, Err: err, Env: func(string) (string, bool) { return "", false }})
	a.Flags.Format = form
	return a, out, err
}

func answer(t *testing.T, text string) *client.Response {
	t.Helper()
	response := &client.Response{Raw: json.RawMessage(text)}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(response); err != nil {
		t.Fatal(err)
	}
	return response
}
