package mem

import (
	"errors"
	"fmt"
	"testing"

	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// A store falls back to a state before its last commits. A node that only saw them is told that they are lost, and needs no more than to
// be opened again; one that was told that they are done finds the store behind. It is the same if others have committed since.
func TestFailoverLosesCommits(t *testing.T) {
	for _, since := range []int{0, 1, 2, 5} {
		t.Run(fmt.Sprint(since), func(t *testing.T) {
			disk := new(Disk)
			node := func() *store.DB {
				db, err := store.Open(disk.Open(), store.Options{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = db.Close() })
				if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
					t.Fatal(err)
				}
				return db
			}
			put := func(db *store.DB, name string) {
				t.Helper()
				if _, err := db.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Config, Name: name}}}}); err != nil {
					t.Fatal(err)
				}
			}
			seer, maker := node(), node()
			put(seer, "kept")
			back := disk.Save()
			put(maker, "lost")
			put(maker, "lost too")
			if err := seer.Fresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			back()
			other := node()
			for i := range since {
				put(other, fmt.Sprint("new", i))
			}
			if err := seer.Fresh(t.Context()); !errors.Is(err, store.ErrLost) || errors.Is(err, store.ErrBehind) || !errors.Is(seer.Fault(), store.ErrLost) {
				t.Errorf("who saw what is lost: %v", err)
			}
			if _, err := maker.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Config, Name: "x"}}}}); !errors.Is(err, store.ErrBehind) ||
				!errors.Is(maker.Fault(), store.ErrBehind) {
				t.Errorf("who made what is lost: %v", err)
			}
			put(other, "goes on")
			if _, err := other.Verify(t.Context(), nil); err != nil {
				t.Error(err)
			}
		})
	}
}
