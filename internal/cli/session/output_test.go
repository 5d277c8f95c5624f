package session

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// screen is a run of the command line that writes into b.
func screen(form string) (a *Session, out, err *strings.Builder) {
	out, err = new(strings.Builder), new(strings.Builder)
	a = New(System{In: strings.NewReader(""), Out: out, Err: err, Env: func(string) (string, bool) { return "", false }})
	a.Flags.Format = form
	return a, out, err
}

const dynamicAnswer = `{"request_id":"r1","lease_id":"database/creds/app/x","renewable":true,"lease_duration":5400,
"data":{"username":"v-app","password":"p<w","ttl":3600,"max_ttl":"n","tags":["a","b"],"nested":{"k":[1]},"none":null,"n":12345678901234567890,"esc":"\u001b[2J"},
"wrap_info":null,"warnings":["soon\u0007"],"auth":null}`

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

func TestPrintanswer(t *testing.T) {
	for form, want := range map[string]string{
		"table": `
Key                Value
---                -----
lease_id           database/creds/app/x
lease_duration     1h30m
lease_renewable    true
esc                �[2J
max_ttl            n
n                  12345678901234567890
nested             map[k:[1]]
none               <nil>
password           p<w
tags               [a b]
ttl                1h
username           v-app
`,
		"json": `
{
  "request_id": "r1",
  "lease_id": "database/creds/app/x",
  "renewable": true,
  "lease_duration": 5400,
  "data": {
    "username": "v-app",
    "password": "p<w",
    "ttl": 3600,
    "max_ttl": "n",
    "tags": [
      "a",
      "b"
    ],
    "nested": {
      "k": [
        1
      ]
    },
    "none": null,
    "n": 12345678901234567890,
    "esc": "\u001b[2J"
  },
  "wrap_info": null,
  "warnings": [
    "soon\u0007"
  ],
  "auth": null
}
`,
		"yaml": `
request_id: r1
lease_id: database/creds/app/x
renewable: true
lease_duration: 5400
data:
  username: v-app
  password: "p<w"
  ttl: 3600
  max_ttl: "n"
  tags:
    - a
    - b
  nested:
    k:
      - 1
  none: null
  "n": 12345678901234567890
  esc: "\u001b[2J"
wrap_info: null
warnings:
  - "soon\u0007"
auth: null
`,
	} {
		a, out, side := screen(form)
		if err := a.PrintAnswer(answer(t, dynamicAnswer), ""); err != nil {
			t.Fatal(err)
		}
		if got := "\n" + out.String(); got != want {
			t.Errorf("%s: %s\nwant %s", form, got, want)
		}
		// Beside JSON and YAML, which hold the warnings, nothing is said: whoever parses may have joined both streams.
		if warned := strings.Contains(side.String(), "  * soon�\n"); warned != (form == "table") {
			t.Errorf("%s: warnings %q", form, side)
		}
	}
}

func TestPrintLogin(t *testing.T) {
	a, out, _ := screen("")
	err := a.PrintAnswer(answer(t, `{"auth":{"client_token":"hvs.t","accessor":"acc","policies":["app","default"],"token_policies":["app","default"],
"metadata":{"username":"alice"},"lease_duration":2764800,"renewable":true}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	if want := `Key                    Value
---                    -----
token                  hvs.t
token_accessor         acc
token_duration         768h
token_renewable        true
token_policies         ["app" "default"]
identity_policies      []
policies               ["app" "default"]
token_meta_username    alice
`; out.String() != want {
		t.Errorf("%s\nwant\n%s", out, want)
	}
}

func TestPrintField(t *testing.T) {
	for _, try := range []struct{ form, field, want string }{
		{"", "username", "v-app"},
		{"", "esc", "\x1b[2J"}, // a value that is asked for by name comes as it is
		{"", "n", "12345678901234567890"},
		{"", "tags", "[a b]"},
		{"", "lease_id", "database/creds/app/x"},
		{"", "lease_duration", "5400"},
		{"json", "username", `"v-app"`},
		{"yaml", "tags", "- a\n- b"},
		{"", "missing", ""},
		{"", "token", ""},
	} {
		a, out, _ := screen(try.form)
		err := a.PrintAnswer(answer(t, dynamicAnswer), try.field)
		if out.String() != try.want || (err == nil) != (try.want != "") {
			t.Errorf("%s of %s: %q, %v, want %q", try.form, try.field, out, err, try.want)
		}
	}
	a, out, _ := screen("")
	wrapped := answer(t, `{"wrap_info":{"token":"hvs.w","ttl":60,"creation_path":"a"}}`)
	if err := a.PrintAnswer(wrapped, "wrapping_token"); err != nil || out.String() != "hvs.w" {
		t.Errorf("%q, %v", out, err)
	}
	a, out, _ = screen("")
	a.Terminal = true
	if err := a.PrintAnswer(answer(t, dynamicAnswer), "username"); err != nil || out.String() != "v-app\n" {
		t.Errorf("on a terminal: %q, %v", out, err)
	}
}

func TestFormat(t *testing.T) {
	for _, try := range []struct {
		flag, lessor, vault string
		want                Form
	}{
		{"", "", "", FormTable}, {"json", "yaml", "table", formJSON}, {"", "YAML", "json", FormYAML}, {"", "", "json", formJSON},
		{"xml", "", "", ""}, {"", "xml", "json", ""},
	} {
		a, _, _ := screen(try.flag)
		a.Env = func(name string) (string, bool) {
			value, ok := map[string]string{"LESSOR_FORMAT": try.lessor, "VAULT_FORMAT": try.vault}[name]
			return value, ok
		}
		if got, err := a.Format(); got != try.want || (err == nil) != (try.want != "") {
			t.Errorf("%v: %q, %v", try, got, err)
		}
	}
}

func TestYAML(t *testing.T) {
	for in, want := range map[string]string{
		`"x"`: "x\n", `""`: "\"\"\n", `null`: "null\n", `12e3`: "12e3\n", `{}`: "{}\n", `[]`: "[]\n",
		`["true","No","~","null","1","1.5",".5","-","a: b","a #b","a b","é","-x","0x1f","1_000","2026-01-01",".inf"]`: `- "true"
- "No"
- "~"
- "null"
- "1"
- "1.5"
- ".5"
- "-"
- "a: b"
- "a #b"
- a b
- "é"
- "-x"
- "0x1f"
- "1_000"
- "2026-01-01"
- ".inf"
`,
		`{"b":[[1,[]],{"c":{},"d":[]}],"a":"two\nlines","k":"two\nlines\n","odd":" two\nlines","cr":"a\r\nb","end":"a\n\n"}`: `b:
  - - 1
    - []
  - c: {}
    d: []
a: |-
  two
  lines
k: |
  two
  lines
odd: " two\nlines"
cr: "a\r\nb"
end: "a\n\n"
`,
		`{"l":["two\nlines"],"y":"\u007f\u0085\ufeff"}`: "l:\n  - |-\n    two\n    lines\n\"y\": \"\\u007f\\u0085\\ufeff\"\n",
	} {
		got, err := Yaml([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", in, err, got, want)
		}
	}
	for _, in := range []string{"", "{", `{"a"`, `{"a":`, `[1,`} {
		if got, err := Yaml([]byte(in)); err == nil {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestSeconds(t *testing.T) {
	for n, want := range map[int64]string{0: "0s", 15: "15s", 60: "1m", 3600: "1h", 5400: "1h30m", 3661: "1h1m1s", 2764800: "768h", 3601: "1h0m1s"} {
		if got := Seconds(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestMoment(t *testing.T) {
	if got := Moment(time.Time{}); got != "-" {
		t.Error(got)
	}
	if got := Moment(time.Unix(0, 5)); got != "1970-01-01T00:00:00Z" {
		t.Error(got)
	}
}
