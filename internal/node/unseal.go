package node

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/pebble"
	"github.com/lessor-dev/lessor/internal/store/postgres"
	"github.com/lessor-dev/lessor/internal/token"
)

const (
	sealType     = "keyfile"
	bootstrapTTL = 24 * time.Hour
	anchorSuffix = ".anchor" // of the file beside the key file that remembers how far the store had come
	newSuffix    = ".new"    // of a key file whose store has no commit yet, see open
	reserve      = 128 << 20 // free bytes that are kept for revocations
)

// open opens the store and unseals it. A store that has nothing in it is given keys; initialize then makes its first commit.
//
// A new key is called "….new" until that commit is durable: so the key file's name means that there is a store, and a
// first start that died midway is simply begun again.
func (n *Node) open(ctx context.Context) error {
	keyFile := n.config.Seal.KeyFile
	if n.config.Storage.Type == config.Pebble && exists(keyFile) {
		if empty, err := emptyFolder(n.config.Storage.Path); err != nil {
			return err
		} else if empty {
			return refuseOrphanKey(keyFile, n.config.Storage)
		}
	}
	b, err := openBackend(ctx, n.config, n.o, nil)
	if err != nil {
		return err
	}
	if n.db, err = store.Open(b, n.storeOptions()); err != nil {
		return errors.Join(fmt.Errorf("refusing to start: %w", err), b.Close())
	}
	n.release = append(n.release, n.close)
	if n.db.Head().Seq > 0 {
		return n.unseal()
	}
	if exists(keyFile) {
		return refuseOrphanKey(keyFile, n.config.Storage)
	}
	return n.makeKeys()
}

func refuseOrphanKey(keyFile string, s config.Storage) error {
	data := s.Path
	if s.Type == config.PostgreSQL {
		data = "the database"
	}
	return fmt.Errorf("refusing to start: key file %s belongs to a store that is not here: the data (%s) is empty. "+
		"Check where the data is, or restore it from a backup; only if that store is not needed any more, move the key file away", keyFile, data)
}

func (n *Node) storeOptions() store.Options {
	o := store.Options{Clock: n.o.Clock, Random: n.o.Random, Log: n.log, Retention: n.config.Audit.Retention}
	if host, err := os.Hostname(); err == nil {
		o.Node = host
	}
	if n.config.Storage.Type != config.Mem {
		o.Anchor = store.FileAnchor(n.config.Seal.KeyFile + anchorSuffix)
		o.Reserve = reserve
	}
	return o
}

// openBackend opens what the store lies in. damaged is told of a damaged file; nil: the process ends.
func openBackend(ctx context.Context, c config.Config, o Options, damaged func(string)) (store.Backend, error) {
	switch c.Storage.Type {
	case config.Mem:
		return mem.New(), nil
	case config.Pebble:
		return openFolder(c.Storage.Path, o, damaged)
	case config.PostgreSQL:
		b, err := postgres.Open(ctx, c.Storage.ConnectionURL, postgres.Options{Log: o.Log})
		if err != nil {
			return nil, fmt.Errorf("refusing to start: %w", err)
		}
		return b, nil
	}
	return nil, fmt.Errorf("this lessor was built without storage %q", c.Storage.Type)
}

func openFolder(path string, o Options, damaged func(string)) (store.Backend, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() && info.Mode().Perm()&0o077 != 0 {
		o.Log.Warn("others may look into the data folder; run chmod 700 on it", "path", path)
	}
	b, err := pebble.Open(path, pebble.Options{Log: o.Log, Damaged: damaged})
	if err == nil {
		return b, nil
	}
	if errors.Is(err, syscall.EAGAIN) || strings.Contains(err.Error(), "lock held by current process") {
		return nil, fmt.Errorf("refusing to start: the data folder %s is in use by another lessor: stop that one, or use another folder (-data)", path)
	}
	return nil, fmt.Errorf("refusing to start: %w. If it is damaged, restore a backup into an empty folder (lessor operator restore)", err)
}

// unseal gives the store its keys.
func (n *Node) unseal() error {
	kek, mend, err := n.kek()
	if err != nil {
		return err
	}
	view, err := n.db.View()
	if err != nil {
		return err
	}
	n.keys, err = seal.Unseal(view, kek)
	view.Close()
	if err != nil {
		return err
	}
	if anchor := n.config.Seal.KeyFile + anchorSuffix; n.config.Storage.Type != config.Mem && !exists(anchor) {
		n.log.Warn("the anchor is missing: this once, nothing tells whether the store was put back to an earlier state", "path", anchor)
	}
	if err := n.db.Unseal(n.keys.Cipher()); err != nil {
		return fmt.Errorf("refusing to start: %w", err)
	}
	n.keys.Follow(n.readKeyring)
	return mend()
}

// kek opens the key file or, if that is lost and there is a passphrase, the recovery file. mend, once the store is unsealed,
// puts a key file where it belongs.
func (n *Node) kek() (kek seal.KEK, mend func() error, err error) {
	file := n.config.Seal.KeyFile
	mend = func() error { return nil }
	kek, err = seal.OpenKeyFile(file)
	if !errors.Is(err, seal.ErrMissing) {
		return kek, mend, err
	}
	switch {
	case exists(file + newSuffix):
		kek, err = seal.OpenKeyFile(file + newSuffix)
		mend = func() error { return promote(file) }
	case !n.o.Recovery.Passphrase.Empty():
		n.log.Warn("the key file is missing: unsealing with the recovery file", "key_file", file, "recovery_file", n.recoveryFile())
		kek, err = seal.OpenRecovery(n.recoveryFile(), n.o.Recovery.Passphrase)
		mend = n.replaceKeyFile
	}
	return kek, mend, err
}

// keyringRow is where the store keeps the keyring, wrapped.
var keyringRow = store.Key{Table: store.Meta, Name: "keyring"}

// readKeyring reads it, for a Keyring that meets a row of a later term.
func (n *Node) readKeyring() ([]byte, error) {
	view, err := n.db.View()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	row, err := view.Get(keyringRow)
	return row.Value, err
}

// rotateEvery is how often it is asked whether the keys are due.
const rotateEvery = time.Hour

// rotateKeys begins a new term of keys whenever one is due, until ctx ends.
func (n *Node) rotateKeys(ctx context.Context) {
	tick := time.NewTicker(rotateEvery)
	defer tick.Stop()
	for {
		if n.keys.Due(n.db.Now(), n.db.Head().Seq) {
			if err := n.rotate(ctx); err != nil && ctx.Err() == nil {
				n.log.Error("rotating the keys failed; it is tried again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// rotate begins a new term of keys; rows of earlier terms stay readable.
func (n *Node) rotate(ctx context.Context) error {
	var put store.Put
	_, err := n.db.Update(ctx, func(v store.View, txn *store.Txn) error {
		row, err := v.Get(keyringRow) // and so a check of the commit: two nodes may rotate at once
		if err != nil {
			return err
		}
		if err := n.keys.Adopt(row.Value); err != nil {
			return err
		}
		now := n.db.Now()
		if put, err = n.keys.Rotate(n.o.Random, now, v.Position()); err != nil {
			return err
		}
		txn.Puts = append(txn.Puts, put)
		txn.Audit = append(txn.Audit, bootstrapRecord(now, "rotate", "sys/rotate"))
		return nil
	})
	if err != nil {
		return err
	}
	return n.keys.Adopt(put.Value)
}

// bootstrapRecord is the audit record of what a node does to its own seal.
func bootstrapRecord(now time.Time, operation, path string) audit.Record {
	return audit.Record{
		Time: now, Operation: operation, Path: path, Phase: audit.Done, System: "bootstrap", Granted: true,
		Rule: "system:bootstrap", Policy: "system",
	}
}

func (n *Node) recoveryFile() string {
	if n.o.Recovery.File != "" {
		return n.o.Recovery.File
	}
	return filepath.Join(filepath.Dir(n.config.Seal.KeyFile), "recovery.key")
}

// replaceKeyFile makes a new key file for a store whose old one is lost; the old one no longer unseals it.
func (n *Node) replaceKeyFile() error {
	kek, err := seal.CreateKeyFile(n.config.Seal.KeyFile+newSuffix, n.o.Random)
	if err != nil {
		return err
	}
	put, err := n.keys.WrapRoot(kek)
	if err != nil {
		return err
	}
	_, err = n.db.Commit(context.Background(), store.Txn{Puts: []store.Put{put}, Audit: []audit.Record{
		bootstrapRecord(n.db.Now(), "replace-key-file", "sys/seal"),
	}})
	if err != nil {
		return fmt.Errorf("the new key file was not taken over: %w", err)
	}
	return promote(n.config.Seal.KeyFile)
}

// initialize makes the first commit of a new store: its keys, the builtin mounts, and a root token.
func (n *Node) initialize(ctx context.Context) error {
	if n.db.Head().Seq > 0 {
		return nil
	}
	id, ttl := n.config.Dev.RootToken, time.Duration(0)
	if !n.config.Dev.Enabled {
		ttl = bootstrapTTL
	}
	if id.Empty() {
		var err error
		if id, err = token.NewID(n.o.Random); err != nil {
			return err
		}
	}
	if !n.config.Dev.Enabled {
		if err := n.writeToken(id); err != nil {
			return err
		}
	}
	rows, err := n.cluster.rows(n.config.ClusterName, n.o.Random)
	if err != nil {
		return err
	}
	if _, err := n.core.Init(ctx, append(n.first, rows...), id, ttl); err != nil {
		return err
	}
	n.Root = id
	if n.config.Storage.Type != config.Mem {
		return promote(n.config.Seal.KeyFile)
	}
	return nil
}

// writeToken leaves the bootstrap token in a file beside the key file.
func (n *Node) writeToken(id lessor.Secret) error {
	dir, name := filepath.Dir(n.config.Seal.KeyFile), "bootstrap-token"
	if key := filepath.Base(n.config.Seal.KeyFile); key != "seal.key" { // several servers may keep their keys in one folder
		name = key + "." + name
	}
	if n.config.Seal.KeyFile == "" { // the store is in memory: so is, nearly, its token
		temporary, err := os.MkdirTemp("", "lessor-")
		if err != nil {
			return err
		}
		n.release = append(n.release, func() error { return os.RemoveAll(temporary) })
		dir, name = temporary, "bootstrap-token"
	}
	n.TokenFile = filepath.Join(dir, name)
	if err := writePrivate(n.TokenFile, id.Reveal()+"\n"); err != nil {
		return fmt.Errorf("cannot write the bootstrap token: %w", err)
	}
	return nil
}

// makeKeys gives a new store its keys. Its first commit must be theirs (n.first).
func (n *Node) makeKeys() error {
	keks, err := n.keks()
	if err != nil {
		return err
	}
	if n.keys, n.first, err = seal.Init(n.o.Random, n.db.Now(), keks...); err != nil {
		return err
	}
	// An anchor without its key and its data remembers a store that was given up.
	if anchor := n.config.Seal.KeyFile + anchorSuffix; n.config.Storage.Type != config.Mem && exists(anchor) {
		n.log.Warn("an anchor of an earlier store was set aside", "path", anchor+".old")
		if err := os.Rename(anchor, anchor+".old"); err != nil {
			return err
		}
	}
	return n.db.Unseal(n.keys.Cipher())
}

// keks makes what unseals a new store, or takes what a first start that did not finish has made.
func (n *Node) keks() ([]seal.KEK, error) {
	file := n.config.Seal.KeyFile
	if file == "" {
		pad, err := newPad(n.o.Random)
		if err != nil {
			return nil, err
		}
		n.UnsealKey = lessor.NewSecret(base64.StdEncoding.EncodeToString(pad[:]))
		return []seal.KEK{pad}, nil
	}
	pending := file + newSuffix
	obtain := func() (*seal.KeyFile, error) { return seal.CreateKeyFile(pending, n.o.Random) }
	if exists(pending) {
		obtain = func() (*seal.KeyFile, error) { return seal.OpenKeyFile(pending) }
	}
	key, err := obtain()
	if err != nil {
		return nil, err
	}
	keks := []seal.KEK{key}
	if passphrase := n.o.Recovery.Passphrase; !passphrase.Empty() {
		path := n.recoveryFile()
		obtain := func() (*seal.Recovery, error) { return seal.CreateRecovery(path, passphrase, n.o.Random) }
		if exists(path) {
			obtain = func() (*seal.Recovery, error) { return seal.OpenRecovery(path, passphrase) }
		}
		recovery, err := obtain()
		if err != nil {
			return nil, err
		}
		n.Recovered = path
		keks = append(keks, recovery)
	}
	return keks, nil
}

// pad is the key of a store in memory: a one-time pad for its root key, which it wraps once.
type pad [32]byte

func newPad(random io.Reader) (*pad, error) {
	p := new(pad)
	_, err := io.ReadFull(random, p[:])
	return p, err
}

func (p *pad) Name() string { return "memory" }

// Wrap is the bitwise sum of root and pad.
func (p *pad) Wrap(root []byte) ([]byte, error) {
	if len(root) != len(p) {
		return nil, fmt.Errorf("node: a root key has %d bytes, not %d", len(p), len(root))
	}
	sum := make([]byte, len(p))
	for i := range sum {
		sum[i] = root[i] ^ p[i]
	}
	return sum, nil
}

// Unwrap is the same sum.
func (p *pad) Unwrap(wrapped []byte) ([]byte, error) { return p.Wrap(wrapped) }

// cluster is the store's own identity, the same on each of its nodes.
type cluster struct{ id, name string }

var (
	clusterID   = store.Key{Table: store.Meta, Name: "cluster/id"}
	clusterName = store.Key{Table: store.Meta, Name: "cluster/name"}
)

// rows make the identity of a new store.
func (cluster) rows(name string, random io.Reader) ([]store.Put, error) {
	var id [16]byte
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return nil, err
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	text := fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	if name == "" {
		name = "lessor-cluster-" + hex.EncodeToString(id[:4])
	}
	return []store.Put{{Key: clusterID, Value: []byte(text)}, {Key: clusterName, Value: []byte(name)}}, nil
}

// identify reads the store's identity. A name in the configuration wins.
func (n *Node) identify() (c cluster, err error) {
	view, err := n.db.View()
	if err != nil {
		return c, err
	}
	defer view.Close()
	id, err := view.Get(clusterID)
	if err != nil {
		return c, err
	}
	name, err := view.Get(clusterName)
	c = cluster{id: string(id.Value), name: string(name.Value)}
	if n.config.ClusterName != "" {
		c.name = n.config.ClusterName
	}
	return c, err
}
