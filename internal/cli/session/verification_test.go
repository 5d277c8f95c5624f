package session

import (
	"encoding/json"
	"testing"
)

func TestVerificationSpeaks(t *testing.T) {
	a, out, _ := screen("")
	if err := a.PrintVerification(Verification{OK: true, First: 1, Last: 9, Records: 40, HeadHash: "ab"}); err != nil {
		t.Fatal(err)
	}
	if out.String() != "The chain holds: commits 1 to 9, 40 records, head ab\n" {
		t.Errorf("%s", out)
	}
	a, out, _ = screen("")
	err := a.PrintVerification(Verification{Broken: &Broken{Seq: 3, Index: 2, Reason: "hash"}})
	if err != ExitCode(2) || out.String() != "The chain is BROKEN at commit 3, record 2: hash\n" {
		t.Errorf("%v, %s", err, out)
	}
	a, out, _ = screen("")
	if err := a.PrintVerification(Verification{Broken: &Broken{Reason: "no head"}}); err != ExitCode(2) || out.String() != "The chain is BROKEN: no head\n" {
		t.Errorf("%v, %s", err, out)
	}
	a, out, _ = screen("json")
	if err := a.PrintVerification(Verification{}); err != ExitCode(2) || !json.Valid([]byte(out.String())) {
		t.Errorf("%v, %s", err, out)
	}
}
