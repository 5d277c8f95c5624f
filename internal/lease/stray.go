package lease

import (
	"fmt"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// A stray is a credential at a target that no lease knows: it was made after the state that the store was put back to. Once such a
// store is resumed, its targets are searched, each until it has been; a stray gets a lease that is Revoking from the start.

// searchRow is there while targets are to be searched.
var searchRow = store.Key{Table: store.Config, Name: store.MountKey(lessor.RootNamespace, "", "lease/strays")}

// Search says how far the search for strays is.
type Search struct {
	Since  time.Time          `cbor:"1,keyasint"`
	Done   map[string]uint64  `cbor:"2,keyasint,omitempty"` // targets that were searched (Place) → strays found there
	Failed map[string]Failure `cbor:"3,keyasint,omitempty"` // targets that could not be searched yet
}

// Failure is why a target could not be searched, free of secrets, and what can be done about it.
type Failure struct {
	Mount  string `cbor:"1,keyasint"` // its path
	Target string `cbor:"2,keyasint"`
	Why    string `cbor:"3,keyasint"`
	Advice string `cbor:"4,keyasint"`
}

// Place names a target of a mount, by the mount's UUID.
func Place(mount, target string) string { return mount + "\x00" + target }

// SeekStrays asks to search all targets: the store was put back to an earlier state.
func SeekStrays(txn *store.Txn, now time.Time) {
	txn.Put(searchRow.Table, searchRow.Name, encode(&Search{Since: now.UTC()}))
}

// Searching is the search under way; nil if there is none.
func Searching(v store.View) (*Search, store.Row, error) {
	row, err := v.Get(searchRow)
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	s := &Search{}
	if err := decoding.Unmarshal(row.Value, s); err != nil {
		return nil, row, fmt.Errorf("lease: damaged row %s: %w", row.Key, err)
	}
	return s, row, nil
}

// Save puts the search, required to be still what row was.
func (s *Search) Save(txn *store.Txn, row store.Row) {
	txn.Require(row)
	txn.Put(row.Table, row.Name, encode(s))
}

// End ends the search, required to be still what row was.
func (s *Search) End(txn *store.Txn, row store.Row) {
	txn.Require(row)
	txn.Delete(row.Table, row.Name)
}

// Adopt puts the lease of a stray, which must not be there yet: Revoking, and first in its target's queue. The commit should carry the
// audit record that the target is about to be touched.
func Adopt(txn *store.Txn, l *Lease, cause string, now time.Time) {
	l.Kind, l.State, l.Issued, l.Expires, l.Ended, l.Next, l.Cause = Dynamic, Revoking, now, now, now, now, cause
	value := l.Encode()
	txn.Absent(store.Leases, l.name())
	txn.Put(store.Leases, l.name(), value)
	txn.Put(store.LeaseIdx, l.queueName(), nil)
}
