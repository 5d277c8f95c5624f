package lease

import (
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// A tombstone goes when the rows that it hits are gone. Batch tokens have no row: for them what a wide revocation hit stays on
// record, in store.Config, until the last of them has expired by itself.

var pastRows = store.MountKey(lessor.RootNamespace, "", "revoked/")

// Remember puts a wide revocation on record for tokens that have no row. It belongs in the commit of Bury.
func Remember(txn *store.Txn, t *Tomb) {
	exact(&t.Time)
	txn.Put(store.Config, pastRows+t.ID, encode(t))
}

// LoadPast reads the wide revocations on record. The result is true until a commit touches store.Config.
func LoadPast(v store.View) (Tombs, error) {
	var all Tombs
	err := scanPast(v, func(t Tomb) { all = append(all, t) })
	return all, err
}

// Forget adds to txn the deletion of those from before a time.
func Forget(v store.View, txn *store.Txn, before time.Time) error {
	return scanPast(v, func(t Tomb) {
		if t.Time.Before(before) && len(txn.Deletes) < chunk {
			txn.Delete(store.Config, pastRows+t.ID)
		}
	})
}

func scanPast(v store.View, f func(Tomb)) error {
	for row, err := range v.Scan(store.Config, pastRows, store.PrefixEnd(pastRows)) {
		if err != nil {
			return err
		}
		t, err := decodeTomb(row)
		if err != nil {
			return err
		}
		f(t)
	}
	return nil
}
