package mount_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

func open(t *testing.T) *store.DB {
	t.Helper()
	db, err := store.Open(mem.New(), store.Options{Clock: lessor.SystemClock{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Unseal(storetest.NewCipher("test")); err != nil {
		t.Fatal(err)
	}
	return db
}

func load(t *testing.T, db *store.DB) *mount.Table {
	t.Helper()
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	table, err := mount.Load(v)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func commit(t *testing.T, db *store.DB, fill func(*store.Txn)) error {
	t.Helper()
	txn := &store.Txn{}
	fill(txn)
	_, err := db.Commit(t.Context(), *txn)
	return err
}

func entry(n byte, path string, options map[string]string) *mount.Entry {
	return &mount.Entry{UUID: fmt.Sprintf("mount-uuid-%05d", n), Namespace: 1, Path: path, Class: mount.Secret, Type: "kv", Options: options}
}

func TestTable(t *testing.T) {
	db := open(t)
	two := map[string]string{"version": "2"}
	gone := entry(4, "gone/", two)
	gone.Removing = true
	for _, e := range []*mount.Entry{entry(1, "secret/", two), entry(2, "team/a/", nil), entry(3, "auth/up/", nil), gone} {
		if err := commit(t, db, func(txn *store.Txn) { mount.Add(txn, e) }); err != nil {
			t.Fatal(err)
		}
	}
	table := load(t, db)
	for _, c := range []struct{ path, mount, rest, logical string }{
		{"secret/data/app", "secret/", "data/app", "secret/app"},
		{"secret/metadata/a/b", "secret/", "metadata/a/b", "secret/a/b"},
		{"secret/destroy/a", "secret/", "destroy/a", "secret/a"},
		{"secret/app", "secret/", "app", "secret/app"},
		{"secret/data", "secret/", "data", "secret/data"},
		{"secret/config", "secret/", "config", "secret/config"},
		{"secret", "secret/", "", "secret"},
		{"secret/", "secret/", "", "secret/"},
		{"secrets/x", "", "secrets/x", "secrets/x"},
		{"team/a/data/x", "team/a/", "data/x", "team/a/data/x"}, // version 1: a path is a name
		{"team/a", "team/a/", "", "team/a"},
		{"team/b", "", "team/b", "team/b"},
		{"team", "", "team", "team"},
		{"auth/up/login/x", "auth/up/", "login/x", "auth/up/login/x"},
		{"gone/data/x", "", "gone/data/x", "gone/data/x"},
		{"", "", "", ""},
	} {
		e, rest := table.Route(c.path)
		got := ""
		if e != nil {
			got = e.Path
		}
		if got != c.mount || rest != c.rest {
			t.Errorf("%q is routed to %q, %q; want %q, %q", c.path, got, rest, c.mount, c.rest)
		}
		if got := table.Logical(c.path); got != c.logical {
			t.Errorf("%q is about %q, want %q", c.path, got, c.logical)
		}
	}
	if table.ByUUID(gone.UUID) == nil || table.ByPath("gone/") == nil {
		t.Error("a mount under removal is not found by its UUID")
	}
	for path, clash := range map[string]bool{"secret/": true, "secret/below/": true, "team/": true, "team/a/b/": true, "team/b/": false, "secrets/": false} {
		if got := table.Clash(path) != nil; got != clash {
			t.Errorf("%s clashes: %v, want %v", path, got, clash)
		}
	}
}

// Whatever happens at the same time, a path is one mount's.
func TestOnePathOneMount(t *testing.T) {
	db := open(t)
	conflict := func(err error) bool { return errors.As(err, new(*store.Conflict)) }
	if err := commit(t, db, func(txn *store.Txn) { mount.Add(txn, entry(1, "a/", nil)) }); err != nil {
		t.Fatal(err)
	}
	if err := commit(t, db, func(txn *store.Txn) { mount.Add(txn, entry(2, "a/", nil)) }); !conflict(err) {
		t.Errorf("a second mount at a path: %v", err)
	}
	if err := commit(t, db, func(txn *store.Txn) { mount.Add(txn, entry(3, "b/", nil)) }); err != nil {
		t.Fatal(err)
	}
	before := load(t, db)
	moved := *before.ByPath("b/")
	moved.Path = "a/"
	if err := commit(t, db, func(txn *store.Txn) { before.Save(txn, &moved, "b/") }); !conflict(err) {
		t.Errorf("a move onto another mount: %v", err)
	}
	moved.Path = "c/"
	if err := commit(t, db, func(txn *store.Txn) { before.Save(txn, &moved, "b/") }); err != nil {
		t.Fatal(err)
	}
	if err := commit(t, db, func(txn *store.Txn) { before.Save(txn, &moved, "b/") }); !conflict(err) {
		t.Errorf("a change on stale ground: %v", err)
	}
	if err := commit(t, db, func(txn *store.Txn) { mount.Add(txn, entry(4, "b/", nil)) }); err != nil {
		t.Errorf("the path that was left is not free: %v", err)
	}
	after := load(t, db)
	if err := commit(t, db, func(txn *store.Txn) { after.Remove(txn, after.ByPath("a/")) }); err != nil {
		t.Fatal(err)
	}
	if load(t, db).ByPath("a/") != nil {
		t.Error("it is still there")
	}
}
