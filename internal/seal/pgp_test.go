package seal

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// Reading a key costs time in its length, and anybody may send some.
func TestRecipientsAreBounded(t *testing.T) {
	e, err := openpgp.NewEntity("somebody", "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := e.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	for len(b.Bytes()) < 90<<10 { // the same key over and over: what is behind the first is ignored
		b.Write(b.Bytes())
	}
	key := base64.StdEncoding.EncodeToString(b.Bytes()[:90<<10])
	some := func(n int) (all []string) {
		for range n {
			all = append(all, key)
		}
		return all
	}
	if _, err := ParseRecipients(some(8)); err != nil {
		t.Errorf("long keys: %v", err)
	}
	for name, keys := range map[string][]string{"many long keys": some(9), "one longer": {key + key}} {
		if _, err := ParseRecipients(keys); err == nil || !strings.Contains(err.Error(), "is too long") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
