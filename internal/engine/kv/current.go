package kv

import (
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Current is the version of a secret that a read would show now; 0 if there is none. It makes the engines Versioners: who
// renews a lease on an older version learns that there is a newer one.
func (V1) Current(v store.View, m *mount.Entry, path string) (uint64, uint64, error) {
	row, err := v.Get(rowV1(&engine.Request{Mount: m}, path))
	return row.Version, 0, err
}

// Current is the number of the secret's newest version, 0 if there is none, and which secret at that path it is of.
func (V2) Current(v store.View, m *mount.Entry, path string) (uint64, uint64, error) {
	meta, _, err := load(&engine.Request{Mount: m, View: v}, path)
	if err != nil || meta == nil {
		return 0, 0, err
	}
	return meta.Current, meta.Born, nil
}
