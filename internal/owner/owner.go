// Package owner remembers who answers for what: an owner is set for a path and holds for all below it, unless something
// nearer says otherwise. Mounts, roles, secrets and leases all resolve to one.
package owner

import (
	"strings"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

var prefix = store.MountKey(lessor.RootNamespace, "", "owner/")

// Longest is the number of bytes that an owner's name has at most.
const Longest = 256

// clean is the form in which a path is kept.
func clean(path string) string { return strings.Trim(path, "/") }

// Row is the owner that was set for exactly this path.
func Row(v store.View, path string) (store.Row, error) {
	return v.Get(store.Key{Table: store.Config, Name: prefix + clean(path)})
}

// Set puts the owner of a path; row is what Row said.
func Set(txn *store.Txn, row store.Row, name string) {
	txn.Require(row)
	txn.Put(row.Table, row.Name, []byte(name))
}

// Unset removes it.
func Unset(txn *store.Txn, row store.Row) { txn.Delete(row.Table, row.Name) }

// Of finds the owner of a path: what was set for it or for its nearest ancestor. from is the path for which it was set.
func Of(v store.View, path string) (name, from string, err error) {
	for path = clean(path); path != ""; {
		row, err := Row(v, path)
		if err != nil {
			return "", "", err
		}
		if row.Exists() {
			return string(row.Value), path, nil
		}
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			break
		}
		path = path[:i]
	}
	return "", "", nil
}

// All yields every path that has an owner set, in order.
func All(v store.View, yield func(path, name string) bool) error {
	for row, err := range v.Scan(store.Config, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return err
		}
		if !yield(strings.TrimPrefix(row.Name, prefix), string(row.Value)) {
			return nil
		}
	}
	return nil
}
