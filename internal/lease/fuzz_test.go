package lease

import (
	"bytes"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// FuzzRow: what a row says of a lease, it says again when it is written anew.
func FuzzRow(f *testing.F) {
	l := &Lease{Kind: Dynamic, State: Live, Issued: time.Unix(1, 0), Expires: time.Unix(2, 0), TTL: time.Hour, Token: "hash", Holder: Holder{Entity: "e"}, Intent: []byte{1}}
	f.Add(l.Encode())
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, value []byte) {
		row := store.Row{Key: store.Key{Table: store.Leases, Name: store.MountKey(1, "0123456789abcdef", "a/b")}, Version: 1, Value: value}
		l, err := Decode(row)
		if err != nil {
			return
		}
		again := row
		again.Value = l.Encode()
		if m, err := Decode(again); err != nil || !bytes.Equal(again.Value, m.Encode()) { // an empty list is none
			t.Fatalf("%x is %+v, then %+v (%v)", value, l, m, err)
		}
	})
}

// FuzzNames: the names of index rows lead back to the lease, whatever it is called, and nothing else is taken for one.
func FuzzNames(f *testing.F) {
	f.Add("database/creds/app/x", "target", int64(1_700_000_000_000), "")
	f.Add("", "", int64(0), "d")
	f.Add("\x00\xff", "\xff", int64(-5), queuePrefix+"0123456789012345678901234567890123456789")
	f.Fuzz(func(t *testing.T, id, target string, at int64, name string) {
		for i := range len(target) {
			if target[i] == 0 {
				return // no target has one
			}
		}
		l := &Lease{ID: id, Namespace: 1, Mount: "0123456789abcdef", Kind: Dynamic, Target: target, Due: time.UnixMilli(at % 1e15), Next: time.UnixMilli(at % 1e15)}
		if got, ok := CredentialDue(l.dueName()); !ok || got != l.name() {
			t.Fatalf("due row of %q is one of %q", l.name(), got)
		}
		q, _, got, ok := parseQueue(l.queueName())
		if !ok || got != l.name() || q.name != target || q.mount != l.Mount {
			t.Fatalf("queue row of %q is one of %q, of %+v", l.name(), got, q)
		}
		if row, ok := CredentialDue(name); ok && len(row) > len(name)-9 {
			t.Fatalf("%q is about %q", name, row)
		}
		_, _, _, _ = parseQueue(name)
	})
}
