// Package wrapping keeps answers for whoever holds their wrapping token: sealed, once, for a limited time. The token is a
// token like others, with a policy that allows to unwrap and nothing else; the answer is a row of store.Secrets.
package wrapping

import (
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
)

// Kept is a wrapped answer. CBOR keys are on disk: never renumber, only append.
type Kept struct {
	Body     []byte        `cbor:"1,keyasint"` // the answer's bytes, as unwrapping returns them
	Path     string        `cbor:"2,keyasint"` // that was wrapped
	Created  time.Time     `cbor:"3,keyasint"`
	TTL      time.Duration `cbor:"4,keyasint"`
	Accessor string        `cbor:"5,keyasint,omitempty"` // of the token inside
	Lease    string        `cbor:"6,keyasint,omitempty"` // id of the lease inside; who unwraps becomes its holder
	First    time.Time     `cbor:"7,keyasint"`           // when it was wrapped for the first time
}

// Key is that of what the wrapping token with the hash wraps. sys is the UUID of the mount sys/.
func Key(sys, hash string) store.Key {
	return store.Key{Table: store.Secrets, Name: store.MountKey(lessor.RootNamespace, sys, "w/", hash)}
}

// Put keeps an answer for the wrapping token with the hash. sys is the UUID of the mount sys/.
func Put(txn *store.Txn, sys, hash string, k *Kept) {
	o := cbor.CoreDetEncOptions()
	o.Time = cbor.TimeUnixDynamic
	mode, err := o.EncMode()
	if err != nil {
		panic(err)
	}
	b, err := mode.Marshal(k)
	if err != nil {
		panic(fmt.Sprintf("wrapping: %v", err))
	}
	row := Key(sys, hash)
	txn.Put(row.Table, row.Name, b)
}

// Get finds and opens what is kept for a wrapping token; nil: nothing.
func Get(v store.View, o engine.Opener, g policy.Grant, sys, hash string) (*Kept, store.Row, error) {
	row, err := v.Get(Key(sys, hash))
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	secret, err := o.Open(g, row)
	if err != nil {
		return nil, row, err
	}
	k := &Kept{}
	if err := cbor.Unmarshal([]byte(secret.Reveal()), k); err != nil {
		return nil, row, fmt.Errorf("wrapping: damaged row")
	}
	return k, row, nil
}

// Drop deletes what is kept for a wrapping token, required to be still what row was: it is unwrapped once.
func Drop(txn *store.Txn, row store.Row) {
	txn.Require(row)
	txn.Delete(row.Table, row.Name)
}
