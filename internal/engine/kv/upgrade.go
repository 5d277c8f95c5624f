package kv

import (
	"strings"

	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/store"
)

// upgradeChunk is how many secrets one commit of an upgrade makes new.
const upgradeChunk = 256

// Upgrade makes values that version 1 kept the first versions of secrets. It makes V2 an Upgrader. What an upgrade that was cut
// short has done already is passed over.
func (V2) Upgrade(a engine.Access, txn *store.Txn, from string) (next string, err error) {
	r := &engine.Request{Mount: a.Mount, View: a.View, Grant: a.Grant, Opener: a.Opener, Now: a.Now}
	prefix := rowV1(r, "").Name
	if from == "" {
		from = prefix
	}
	done := 0
	for row, err := range a.View.Scan(store.Secrets, from, store.PrefixEnd(prefix)) {
		if err != nil {
			return "", err
		}
		path := row.Name[len(prefix):]
		if strings.Contains(path, "\x00") {
			continue // a value of version 2
		}
		if done == upgradeChunk {
			return row.Name, nil
		}
		value, err := open(r, row)
		if err != nil {
			return "", err
		}
		meta := create(r)
		meta.add(config{}, a.Now)
		key, at := valueKey(r, path, 1), metadataKey(r, path)
		txn.Require(row)
		txn.Delete(row.Table, row.Name)
		txn.Put(key.Table, key.Name, []byte(value.Reveal()))
		txn.Put(at.Table, at.Name, encode(meta))
		done++
	}
	return "", nil
}
