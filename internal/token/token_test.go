package token_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
	"github.com/lessor-dev/lessor/internal/token"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

func TestRowsSayWhatTokensSay(t *testing.T) {
	k := &token.Token{
		Hash: "\x00\xffraw", Accessor: "acc", Kind: lessor.Service, Ancestors: []string{"\xfe\xff", "b"}, Policies: []string{"a"}, Path: "auth/token/create",
		Created: epoch.Add(999), Expires: epoch.Add(time.Hour), TTL: time.Hour, NumUses: 3, Limited: true, Bound: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		Metadata: map[string]string{"k": "v"}, Salt: []byte{1}, Wrapping: true, Cluster: 7, Position: 9, Owner: "o",
	}
	got, err := token.Decode(k.Hash, k.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, k) {
		t.Errorf("got %+v, want %+v", got, k)
	}
	if _, err := token.Decode("x", []byte("not a token")); err == nil {
		t.Error("nonsense was decoded")
	}
}

func TestAddresses(t *testing.T) {
	k := token.Token{Bound: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}
	for addr, want := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "11.0.0.1": false, "fd00::1": true, "fe80::1": false} {
		if got := k.AllowedFrom(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	if k.AllowedFrom(netip.Addr{}) {
		t.Error("from nowhere")
	}
	if !(&token.Token{}).AllowedFrom(netip.Addr{}) {
		t.Error("a token that is not bound is refused")
	}
}

// A tree dies with any of its ancestors; orphaned, it lives on.
func TestTree(t *testing.T) {
	db, err := store.Open(mem.New(), store.Options{Clock: lessor.SystemClock{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Unseal(storetest.NewCipher("test")); err != nil {
		t.Fatal(err)
	}
	view := func() store.View {
		v, err := db.View()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Close)
		return v
	}
	commit := func(fill func(*store.Txn)) error {
		txn := &store.Txn{}
		fill(txn)
		_, err := db.Commit(t.Context(), *txn)
		return err
	}
	hash := func(i int) string { return strings.Repeat(string(rune('a'+i)), 32) }
	var ancestors []string
	for i := range 4 { // a chain
		k := &token.Token{Hash: hash(i), Accessor: fmt.Sprint("acc", i), Kind: lessor.Service, Ancestors: ancestors, Created: epoch, Expires: epoch.Add(time.Hour)}
		if err := commit(k.Store); err != nil {
			t.Fatal(err)
		}
		ancestors = append([]string{k.Hash}, ancestors...)
	}
	alive := func() string {
		out := ""
		for i := range 4 {
			k, _, err := token.Lookup(view(), hash(i))
			if err != nil {
				t.Fatal(err)
			}
			if k == nil {
				continue
			}
			live, err := k.Live(view(), epoch)
			if err != nil {
				t.Fatal(err)
			}
			if live {
				out += fmt.Sprint(i)
			}
		}
		return out
	}
	if got := alive(); got != "0123" {
		t.Fatalf("alive: %s", got)
	}
	one, row, err := token.ByAccessor(view(), "acc1")
	if err != nil || one == nil || one.Hash != hash(1) {
		t.Fatalf("by accessor: %+v, %v", one, err)
	}
	if err := commit(func(txn *store.Txn) { // revoke-orphan
		if err := token.Orphan(view(), txn, one); err != nil {
			t.Fatal(err)
		}
		txn.Require(row)
		one.Drop(txn)
	}); err != nil {
		t.Fatal(err)
	}
	if got := alive(); got != "023" {
		t.Errorf("after 1 was revoked alone: %s", got)
	}
	two, _, _ := token.Lookup(view(), hash(2))
	if !two.Orphan || len(two.Ancestors) != 0 {
		t.Errorf("2 is no orphan: %+v", two)
	}
	if err := commit(two.Drop); err != nil {
		t.Fatal(err)
	}
	if got := alive(); got != "0" {
		t.Errorf("after 2 was revoked: %s", got)
	}
	late := &token.Token{Hash: hash(9), Accessor: "late", Ancestors: []string{hash(2)}}
	if err := commit(late.Store); err == nil {
		t.Error("a dead token has a new child")
	}
	var accessors []string
	if err := token.Accessors(view(), "acc0", func(acc, _ string) bool { accessors = append(accessors, acc); return true }); err != nil || fmt.Sprint(accessors) != "[acc3]" {
		t.Errorf("accessors after acc0: %v, %v", accessors, err)
	}
}

func TestIDs(t *testing.T) {
	id, err := token.NewID(bytes.NewReader(bytes.Repeat([]byte{0xff}, 24)))
	if err != nil || id.Reveal() != "hvs.________________________________" {
		t.Errorf("%v %v", id.Reveal(), err)
	}
	if _, err := token.NewID(bytes.NewReader(nil)); err == nil {
		t.Error("an id without randomness")
	}
	if _, err := token.NewAccessor(bytes.NewReader(nil)); err == nil {
		t.Error("an accessor without randomness")
	}
}

func TestAccessorsAreLettersAndDigits(t *testing.T) {
	for range 1000 {
		a, err := token.NewAccessor(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if len(a) != 24 || strings.Trim(a, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
			t.Fatalf("accessor %q", a)
		}
	}
}
