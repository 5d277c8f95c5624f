package kv

import (
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Forget rewrites a secret's metadata as a server does that knows of no rotations, and so loses that there is one.
func Forget(v store.View, txn *store.Txn, m *mount.Entry, path string) error {
	meta, row, err := load(&engine.Request{View: v, Mount: m}, path)
	if err == nil {
		meta.Rotated = false
		meta.save(txn, row)
	}
	return err
}
