package owner_test

import (
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/owner"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

func TestNearestAncestorOwns(t *testing.T) {
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
	change := func(path, name string) {
		t.Helper()
		row, err := owner.Row(view(), path)
		if err != nil {
			t.Fatal(err)
		}
		txn := &store.Txn{}
		if name == "" {
			owner.Unset(txn, row)
		} else {
			owner.Set(txn, row, name)
		}
		if _, err := db.Commit(t.Context(), *txn); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(want map[string]string) {
		t.Helper()
		for path, name := range want {
			got, from, err := owner.Of(view(), path)
			if err != nil || got != name || (from == "") != (name == "") {
				t.Errorf("%q is owned by %q, from %q (%v); want %q", path, got, from, err, name)
			}
		}
	}
	change("secret/", "platform")
	change("/secret/team/a", "ann")
	holds(map[string]string{
		"secret": "platform", "secret/": "platform", "secret/x/y": "platform", "secret/team": "platform", "secret/team/a": "ann", "secret/team/a/": "ann",
		"secret/team/a/b/c": "ann", "secret/team/ab": "platform", "secrets": "", "": "", "other/secret": "",
	})
	all := 0
	if err := owner.All(view(), func(path, name string) bool { all++; return true }); err != nil || all != 2 {
		t.Errorf("%d owners are set (%v)", all, err)
	}
	change("secret/team/a", "")
	holds(map[string]string{"secret/team/a": "platform"})
}
