package account

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/cli/session"
)

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
	var rows []session.Row
	for i := range page.Records {
		rows = append(rows, page.Records[i].line())
		if raw[i] != page.Records[i].Seq {
			t.Errorf("record %d is %v in one form and %v in the other", i, page.Records[i].Seq, raw[i])
		}
	}
	a, out, _ := screen("")
	if err := a.Table(recordHeadings, rows); err != nil {
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

	follow := tailLines{Session: a}
	before := follow.pad(session.Row{"t", "a", "read", "p", "granted", "r", "x@1", "l"})
	wide := follow.pad(session.Row{"t", strings.Repeat("n", 30), "read", "p", "granted", "r", "x@1", "l"})
	after := follow.pad(session.Row{"t", "a", "read", "p", "granted", "r", "x@1", "l"})
	if strings.Index(after, "read") != strings.Index(wide, "read") || strings.Index(before, "read") > strings.Index(after, "read") {
		t.Errorf("columns:\n%s\n%s\n%s", before, wide, after)
	}
}

// screen is a run of the command line that writes into out and err.
func screen(form string) (a *session.Session, out, err *strings.Builder) {
	out, err = new(strings.Builder), new(strings.Builder)
	a = session.New(session.System{In: strings.NewReader(""), Out: out, Err: err, Env: func(string) (string, bool) { return "", false }})
	a.Flags.Format = form
	return a, out, err
}
