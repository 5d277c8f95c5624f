package lease

import (
	"fmt"
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

// longestLife is the longest life that a batch token was given so far: a row whose value is whole days.
var longestLife = store.Key{Table: store.Config, Name: store.MountKey(lessor.RootNamespace, "", "batch/longest")}

const day = 24 * time.Hour

// Longest is the longest life that a batch token was given so far, to the next day.
func Longest(v store.View) (time.Duration, error) {
	life, _, err := longest(v)
	return life, err
}

func longest(v store.View) (time.Duration, store.Row, error) {
	row, err := v.Get(longestLife)
	if err != nil || !row.Exists() {
		return 0, row, err
	}
	var days uint64
	if err := decoding.Unmarshal(row.Value, &days); err != nil {
		return 0, row, fmt.Errorf("lease: damaged record of batch tokens: %w", err)
	}
	return time.Duration(days) * day, row, nil
}

// Outlast puts on record that a batch token lives so long. It belongs in the commit that gives it.
func Outlast(v store.View, txn *store.Txn, life time.Duration) error {
	most, row, err := longest(v)
	if err != nil || life <= most {
		return err
	}
	txn.Require(row)
	txn.Put(row.Table, row.Name, encode(uint64((life-1)/day)+1))
	return nil
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
