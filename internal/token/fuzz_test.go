package token

import (
	"bytes"
	"testing"
	"time"
)

// FuzzRow: what a row, or a batch token's seal, says of a token, it says again when it is written anew.
func FuzzRow(f *testing.F) {
	f.Add((&Token{Policies: []string{"default"}, Created: time.Unix(1, 0), Expires: time.Unix(2, 0), Ancestors: []string{"\xff"}}).Encode())
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, value []byte) {
		tok, err := Decode("hash", value)
		if err != nil {
			return
		}
		written := tok.Encode()
		if again, err := Decode("hash", written); err != nil || !bytes.Equal(written, again.Encode()) { // an empty list is none
			t.Fatalf("%x is %+v, then %+v (%v)", value, tok, again, err)
		}
		if tok.Expired(time.Unix(1e9, 0)) && tok.Left(time.Unix(1e9, 0)) != 0 {
			t.Fatalf("%+v is over and has time left", tok)
		}
	})
}
