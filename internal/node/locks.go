package node

import (
	"context"
	"path/filepath"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
)

// What follows is system.Seal: files that unseal the store are added while it serves. A file is made under its name with newSuffix, its row
// is committed with the record, then the file gets its name. Whatever moment the process dies at, the next start, with the file in
// its configuration, or another call, ends it.

// Used implements system.Seal.
func (l *life) Used(name string) bool {
	s := l.n.config.Seal
	if seal.IsKeyFile(name) {
		return s.KeyFile != "" && name == l.n.keyLock()
	}
	switch name {
	case seal.RecoveryName:
		return !l.n.o.Recovery.Passphrase.Empty()
	case seal.ShamirName:
		return s.Shamir
	case seal.MemoryName:
		return l.n.config.Storage.Type == config.Mem
	}
	return false
}

// AddKeyFile implements system.Seal.
func (l *life) AddKeyFile(ctx context.Context, op *lessor.Op, path string) (string, error) {
	if path == "" {
		path = l.n.config.Seal.KeyFile
	}
	return path, l.addFile(ctx, op, l.n.ownLock(), path, func(pending string) (seal.Forgetter, error) {
		if exists(pending) {
			return seal.OpenKeyFile(pending)
		}
		return seal.CreateKeyFile(pending, l.n.o.Random)
	})
}

// AddRecovery implements system.Seal.
func (l *life) AddRecovery(ctx context.Context, op *lessor.Op, path string, passphrase lessor.Secret) (string, error) {
	if path == "" {
		path = l.n.recoveryFile()
	}
	return path, l.addFile(ctx, op, seal.RecoveryName, path, func(pending string) (seal.Forgetter, error) {
		if exists(pending) {
			return seal.OpenRecovery(pending, passphrase)
		}
		return seal.CreateRecovery(pending, passphrase, l.n.o.Random)
	})
}

func (l *life) addFile(ctx context.Context, op *lessor.Op, name, path string, obtain func(pending string) (seal.Forgetter, error)) error {
	l.n.turn.Lock()
	defer l.n.turn.Unlock()
	c := l.n.config
	switch {
	case c.Storage.Type == config.Mem:
		return api.Errorf(api.Invalid, "this store is in memory and ends with the process: no file unseals it")
	case path == "":
		return api.Errorf(api.Invalid, "missing path: the server's configuration names none")
	case !filepath.IsAbs(path):
		return api.Errorf(api.Invalid, "path must be absolute")
	case c.Storage.Type == config.Pebble && config.Within(path, c.Storage.Path):
		return api.Errorf(api.Invalid, "the path is inside the data folder, where every backup of the data would hold the key: keep it elsewhere")
	case exists(path):
		return api.Errorf(api.Invalid, "there is a file at that path already: move it away, or name another")
	}
	view, err := l.db.View()
	if err != nil {
		return err
	}
	defer view.Close()
	row, err := view.Get(seal.KEKKey(name))
	if err != nil {
		return err
	}
	if row.Exists() && seal.IsKeyFile(name) && l.n.shared() && name != l.n.keyLock() {
		return api.Errorf(api.Invalid, "another node of this name has a key file, which the new one would take away: give this node a node_name of "+
			"its own, or remove %s first", name)
	}
	kek, err := obtain(path + newSuffix)
	if err != nil {
		return &api.Error{Kind: api.Invalid, Text: err.Error(), Cause: err}
	}
	defer kek.Forget()
	put, err := l.keys.WrapRootAs(name, kek)
	if err != nil {
		return err
	}
	rec := audit.Record{
		Time: l.db.Now(), Request: op.ID, Operation: op.Verb.String(), Path: op.Path, Phase: audit.Outcome, System: "seal", Granted: true,
		Rule: "system:seal", Policy: "system", Note: "the new file unseals the store",
	}
	if row.Exists() {
		rec.Note = "the new file unseals the store, the one before it no longer"
	}
	if op.Client.IsValid() {
		rec.Client = op.Client.String()
	}
	txn := store.Txn{Puts: []store.Put{put}, Audit: []audit.Record{rec}}
	txn.Require(row)
	if _, err := l.db.Commit(ctx, txn); err != nil {
		return outcome(err)
	}
	if seal.IsKeyFile(name) {
		l.n.lock.Store(&name)
	}
	return promote(path)
}

// ownLock is the name in the store of a key file of this node that it makes from now on. Of several nodes each has its own.
func (n *Node) ownLock() string {
	if n.shared() {
		return seal.KeyFileOf(n.config.NodeName)
	}
	return seal.KeyFileName
}

// keyLock is the name in the store of the key file that this node has.
func (n *Node) keyLock() string {
	if name := n.lock.Load(); name != nil {
		return *name
	}
	return seal.KeyFileName
}
