package lease

import (
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// Release ends a Live or Moved Static lease, required to be still what row was, at now, since its holder, who is about to end, uses nothing of the secret any
// more. The caller has made sure that the holder itself says so. That is no leak, and rotation waits for nobody then; but what the holder has read it knows: where
// lessor rotates the secret it stays a User until that is dead, so that its removal exposes it still. Elsewhere nobody waits for holders, and the
// lease stays until it lapses.
func Release(v store.View, txn *store.Txn, row store.Row, l *Lease, now time.Time) error {
	if !l.Rotatable {
		return nil
	}
	txn.Require(row)
	txn.Delete(store.Due, l.dueName())
	txn.Delete(store.Holds, row.Name)
	if l.Token != "" {
		txn.Delete(store.LeaseIdx, tokenPrefix(l.Token)+row.Name)
	}
	if err := dropStatic(v, txn, row, l, now, false); err != nil || l.State != Live {
		return err
	}
	at, err := v.Get(l.pointerKey())
	if err != nil || !at.Exists() {
		return err
	}
	p, err := decodePointer(at)
	if err != nil || p.Oldest > p.newest() {
		return err
	}
	p.lapse(now, false)
	p.Released = true
	txn.Put(at.Table, at.Name, p.encode())
	return nil
}
