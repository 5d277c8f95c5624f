package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// screen is a run of the command line that writes into b.
func screen(form string) (a *app, out, err *strings.Builder) {
	out, err = new(strings.Builder), new(strings.Builder)
	a = newApp(System{In: strings.NewReader(""), Out: out, Err: err, Env: func(string) (string, bool) { return "", false }}, Commands{})
	a.flags.format = form
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

func TestPrintAnswer(t *testing.T) {
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
		if err := a.printAnswer(answer(t, dynamicAnswer), ""); err != nil {
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
	err := a.printAnswer(answer(t, `{"auth":{"client_token":"hvs.t","accessor":"acc","policies":["app","default"],"token_policies":["app","default"],
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
		err := a.printAnswer(answer(t, dynamicAnswer), try.field)
		if out.String() != try.want || (err == nil) != (try.want != "") {
			t.Errorf("%s of %s: %q, %v, want %q", try.form, try.field, out, err, try.want)
		}
	}
	a, out, _ := screen("")
	wrapped := answer(t, `{"wrap_info":{"token":"hvs.w","ttl":60,"creation_path":"a"}}`)
	if err := a.printAnswer(wrapped, "wrapping_token"); err != nil || out.String() != "hvs.w" {
		t.Errorf("%q, %v", out, err)
	}
	a, out, _ = screen("")
	a.terminal = true
	if err := a.printAnswer(answer(t, dynamicAnswer), "username"); err != nil || out.String() != "v-app\n" {
		t.Errorf("on a terminal: %q, %v", out, err)
	}
}

func TestFormat(t *testing.T) {
	for _, try := range []struct {
		flag, lessor, vault string
		want                form
	}{
		{"", "", "", formTable}, {"json", "yaml", "table", formJSON}, {"", "YAML", "json", formYAML}, {"", "", "json", formJSON},
		{"xml", "", "", ""}, {"", "xml", "json", ""},
	} {
		a, _, _ := screen(try.flag)
		a.env = func(name string) (string, bool) {
			value, ok := map[string]string{"LESSOR_FORMAT": try.lessor, "VAULT_FORMAT": try.vault}[name]
			return value, ok
		}
		if got, err := a.format(); got != try.want || (err == nil) != (try.want != "") {
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
		got, err := yaml([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", in, err, got, want)
		}
	}
	for _, in := range []string{"", "{", `{"a"`, `{"a":`, `[1,`} {
		if got, err := yaml([]byte(in)); err == nil {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestSeconds(t *testing.T) {
	for n, want := range map[int64]string{0: "0s", 15: "15s", 60: "1m", 3600: "1h", 5400: "1h30m", 3661: "1h1m1s", 2764800: "768h", 3601: "1h0m1s"} {
		if got := seconds(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestPrintSecret(t *testing.T) {
	a, out, _ := screen("")
	place := kvPlace{mount: "secret/", path: "app/db", version: 2}
	secret := answer(t, `{"lease_id":"secret/data/app/db/L","lease_duration":300,"data":{"data":{"password":"p"},
"metadata":{"created_time":"2026-11-24T00:00:00Z","custom_metadata":null,"deletion_time":"","destroyed":false,"version":3}}}`)
	if err := a.printSecret(secret, place, ""); err != nil {
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
	if err := a.printSecret(secret, place, "password"); err != nil || out.String() != "p" {
		t.Errorf("%q, %v", out, err)
	}
	a, out, _ = screen("")
	deleted := answer(t, `{"data":{"data":null,"metadata":{"version":3}}}`)
	if err := a.printSecret(deleted, place, "password"); codeOf(err) != exitRemote || out.String() != "" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestRecordLines(t *testing.T) {
	text := `{"records":[
{"time":"2026-11-24T00:27:01.000002Z","seq":7,"index":1,"operation":"read","path":"secret/data/app","phase":"done","outcome":"granted",
 "rule":"path \"secret/data/*\"","policy":"app","policy_version":3,"entity_id":"e1","display_name":"approle-billing","alias":"billing",
 "lease_id":"secret/data/app/L1","secrets":[{"path":"secret/data/app","version":2,"how":"shown"}]},
{"time":"2026-11-24T00:27:00.123456789Z","seq":7,"index":0,"operation":"update","path":"auth/approle/login","phase":"done","outcome":"denied",
 "error":"invalid","client_address":"10.0.0.7"},
{"time":"2026-11-24T01:27:01+01:00","seq":9,"operation":"expire","path":"database/creds/app","phase":"begun","outcome":"granted","system":"reaper",
 "cause":"ttl","lease_id":"database/creds/app/L2"},
{"time":"2026-11-24T00:27:02Z","seq":8,"operation":"read","path":"secret/data/\u001b[2Jx\ny","phase":"done","outcome":"denied","rule":"no rule","entity_id":"e2","alias":"mallory"}
],"next":""}`
	var page recordPage
	if err := json.Unmarshal([]byte(text), &page); err != nil {
		t.Fatal(err)
	}
	raw := make([]any, len(page.Records))
	for i := range raw {
		raw[i] = page.Records[i].Seq
	}
	sortRecords(page.Records, raw)
	var rows []row
	for i := range page.Records {
		rows = append(rows, page.Records[i].line())
		if raw[i] != page.Records[i].Seq {
			t.Errorf("record %d is %v in one form and %v in the other", i, page.Records[i].Seq, raw[i])
		}
	}
	a, out, _ := screen("")
	if err := a.table(recordHeadings, rows); err != nil {
		t.Fatal(err)
	}
	want := `Time                           Identity               Operation    Path                   Outcome            Rule                    Policy    Lease
----                           --------               ---------    ----                   -------            ----                    ------    -----
2026-11-24T00:27:00.123456Z    anonymous 10.0.0.7     update       auth/approle/login     denied: invalid    -                       -         -
2026-11-24T00:27:01.000002Z    approle-billing        read         secret/data/app v2     granted            path "secret/data/*"    app@3     secret/data/app/L1
2026-11-24T00:27:02.000000Z    mallory                read         secret/data/�[2Jx y    denied             no rule                 -         -
2026-11-24T00:27:01.000000Z    system:reaper (ttl)    expire       database/creds/app     granted, begun     -                       -         database/creds/app/L2
`
	if got := out.String(); got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}

	follow := tailLines{app: a}
	before := follow.pad(row{"t", "a", "read", "p", "granted", "r", "x@1", "l"})
	wide := follow.pad(row{"t", strings.Repeat("n", 30), "read", "p", "granted", "r", "x@1", "l"})
	after := follow.pad(row{"t", "a", "read", "p", "granted", "r", "x@1", "l"})
	if strings.Index(after, "read") != strings.Index(wide, "read") || strings.Index(before, "read") > strings.Index(after, "read") {
		t.Errorf("columns:\n%s\n%s\n%s", before, wide, after)
	}
}

func TestVerificationSpeaks(t *testing.T) {
	a, out, _ := screen("")
	if err := a.printVerification(Verification{OK: true, First: 1, Last: 9, Records: 40, HeadHash: "ab"}); err != nil {
		t.Fatal(err)
	}
	if out.String() != "The chain holds: commits 1 to 9, 40 records, head ab\n" {
		t.Errorf("%s", out)
	}
	a, out, _ = screen("")
	err := a.printVerification(Verification{Broken: &Broken{Seq: 3, Index: 2, Reason: "hash"}})
	if err != ExitCode(2) || out.String() != "The chain is BROKEN at commit 3, record 2: hash\n" {
		t.Errorf("%v, %s", err, out)
	}
	a, out, _ = screen("")
	if err := a.printVerification(Verification{Broken: &Broken{Reason: "no head"}}); err != ExitCode(2) || out.String() != "The chain is BROKEN: no head\n" {
		t.Errorf("%v, %s", err, out)
	}
	a, out, _ = screen("json")
	if err := a.printVerification(Verification{}); err != ExitCode(2) || !json.Valid([]byte(out.String())) {
		t.Errorf("%v, %s", err, out)
	}
}

func TestMoment(t *testing.T) {
	if got := moment(time.Time{}); got != "-" {
		t.Error(got)
	}
	if got := moment(time.Unix(0, 5)); got != "1970-01-01T00:00:00Z" {
		t.Error(got)
	}
}
