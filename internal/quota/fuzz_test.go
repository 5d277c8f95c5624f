package quota

import (
	"bytes"
	"testing"
)

// FuzzRow: what a row says of a rule, it says again when it is written anew.
func FuzzRow(f *testing.F) {
	f.Add(encode(&Rule{Kind: RateLimit, Name: "x", Mount: "\xff", Rate: 1.5}))
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, value []byte) {
		var r, again Rule
		if decoding.Unmarshal(value, &r) != nil {
			return
		}
		b := encode(&r)
		if err := decoding.Unmarshal(b, &again); err != nil || !bytes.Equal(encode(&again), b) {
			t.Fatalf("%x is %+v, then %+v (%v)", value, r, again, err)
		}
	})
}
