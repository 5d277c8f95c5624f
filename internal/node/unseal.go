package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/pebble"
	"github.com/lessor-dev/lessor/internal/store/postgres"
	"github.com/lessor-dev/lessor/internal/token"
)

const (
	bootstrapTTL = 24 * time.Hour
	newSuffix    = ".new"    // of a key file whose store has no commit yet, see open
	reserve      = 128 << 20 // free bytes that are kept for revocations
)

// open opens the store and unseals it, if that can be done without people. A store that has nothing in it is given keys;
// initialize then makes its first commit. With a seal that needs people it waits for sys/init, or for sys/unseal.
//
// A new key is called "….new" until that commit is durable: so the key file's name means that there is a store, and a
// first start that died midway is simply begun again.
func (n *Node) open(ctx context.Context) error {
	keyFile := n.config.Seal.KeyFile
	if n.config.Storage.Type == config.Pebble && (exists(keyFile) || n.manual() && exists(n.config.Seal.Anchor)) {
		if empty, err := emptyFolder(n.config.Storage.Path); err != nil {
			return err
		} else if empty {
			return n.refuseOrphan()
		}
	}
	n.turn.Lock()
	defer n.turn.Unlock()
	if err := n.patiently(ctx); err != nil {
		return err
	}
	n.release = append(n.release, n.shut)
	if err := n.look(); err != nil {
		return err
	}
	if n.db.Head().Seq == 0 && !n.manual() {
		found, err := n.founding(ctx) // several nodes may start at once
		if err != nil {
			return err
		}
		defer found()
	}
	switch {
	case n.db.Head().Seq > 0:
		if err := n.unseal(); err != nil || n.keys == nil {
			return n.located(n.advised(err))
		}
		return n.awaken(ctx, nil, nil)
	case exists(keyFile) && !n.prepared(), n.manual() && exists(n.config.Seal.Anchor):
		return n.refuseOrphan()
	case n.manual():
		n.log.Warn("the store is not initialised: it waits for sys/init")
		return nil
	}
	first, err := n.makeKeys()
	if err != nil {
		return err
	}
	return n.awaken(ctx, first, nil)
}

// founder is a backend of several nodes: one at a time may make the store.
type founder interface {
	Founding(ctx context.Context) (done func(), err error)
}

// founding waits until no other node is about to make the store, keeps others from it until done is called, and looks at the store again.
func (n *Node) founding(ctx context.Context) (done func(), err error) {
	b, ok := n.backend.(founder)
	if !ok {
		return func() {}, nil
	}
	done, err = b.Founding(ctx)
	if err != nil {
		return nil, fmt.Errorf("refusing to start: another server is making the store: %w", err)
	}
	if err := n.look(); err != nil {
		done()
		return nil, err
	}
	return done, nil
}

// prepared reports whether the key file was made in advance, for several nodes that start at once on a store which is still to be made:
// had it ever unsealed a store from here, there would be the store's anchor.
func (n *Node) prepared() bool { return n.shared() && !exists(n.config.Seal.Anchor) }

// advised adds to the error of a node that has no key how it gets one.
func (n *Node) advised(err error) error {
	if err == nil || !n.shared() || !errors.Is(err, seal.ErrMissing) {
		return err
	}
	return fmt.Errorf("%w\nThe database has a store already, made by another server. To add this one, make a join secret there (lessor operator join-secret), and join with it here (lessor operator join)", err)
}

// located adds to an error where the store is, unless it says so already.
func (n *Node) located(err error) error {
	data := dataOf(n.config.Storage)
	if err == nil || n.config.Storage.Type == config.Mem || strings.Contains(err.Error(), data) {
		return err
	}
	return fmt.Errorf("%w (the store is %s)", err, data)
}

// openStore opens the store, sealed.
func (n *Node) openStore(ctx context.Context) error {
	b, err := n.openBackend(ctx)
	if err != nil {
		return err
	}
	db, err := store.Open(b, n.storeOptions())
	if err != nil {
		return errors.Join(n.located(fmt.Errorf("refusing to start: %w", err)), b.Close())
	}
	n.db, n.backend = db, b
	return nil
}

func (n *Node) openBackend(ctx context.Context) (store.Backend, error) {
	if n.config.Storage.Type == config.Mem {
		return n.disk.Open(), nil // what is in memory outlasts being sealed
	}
	return openBackend(ctx, n.config, n.o, nil)
}

// shut ends what open began.
func (n *Node) shut() error {
	if l := n.state.Load().life; l != nil {
		n.state.Store(&state{db: l.db})
		l.end()
	}
	return n.close()
}

func (n *Node) refuseOrphan() error {
	if exists(n.config.Seal.KeyFile) {
		return refuseOrphanKey(n.config.Seal.KeyFile, n.config.Storage)
	}
	return fmt.Errorf("refusing to start: the anchor %s belongs to a store that is not here: the data (%s) is empty. "+
		"Check where the data is, or restore it from a backup; only if that store is not needed any more, move the anchor away", n.config.Seal.Anchor, dataOf(n.config.Storage))
}

func dataOf(s config.Storage) string {
	if s.Type == config.PostgreSQL {
		return "the database"
	}
	return s.Path
}

func refuseOrphanKey(keyFile string, s config.Storage) error {
	return fmt.Errorf("refusing to start: key file %s belongs to a store that is not here: the data (%s) is empty. "+
		"Check where the data is, or restore it from a backup; only if that store is not needed any more, move the key file away", keyFile, dataOf(s))
}

func (n *Node) storeOptions() store.Options {
	o := store.Options{Node: n.config.NodeName, Clock: n.o.Clock, Random: n.o.Random, Log: n.log, Retention: n.config.Audit.Retention}
	if n.shared() {
		o.Clock = nil // the database's, which is the same for all nodes
	}
	if n.config.Storage.Type != config.Mem {
		o.Anchor = store.FileAnchor(n.config.Seal.Anchor)
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
		b, err := postgres.Open(ctx, c.Storage.ConnectionURL, postgres.Options{Log: o.Log, Connections: c.Storage.Connections})
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

// candidate is something in the configuration that may unseal the store.
type candidate struct {
	what string
	kek  seal.Forgetter // nil: err says why not
	err  error
	mend func() error // what to do once the store is unsealed by it; nil: nothing

	instead bool // mend replaces the key file, if the store had one
}

// candidates opens what the configuration has for unsealing, in the order in which it is tried.
func (n *Node) candidates() (all []candidate) {
	file := n.config.Seal.KeyFile
	if file != "" {
		c := candidate{what: "key file " + file}
		kek, err := seal.OpenKeyFile(file)
		if errors.Is(err, seal.ErrMissing) && exists(file+newSuffix) {
			kek, err = seal.OpenKeyFile(file + newSuffix)
			c.mend = func() error { return promote(file) }
		}
		if c.err = err; err == nil {
			c.kek = kek
		}
		all = append(all, c)
	}
	if path := n.recoveryFile(); !n.o.Recovery.Passphrase.Empty() {
		c := candidate{what: "recovery file " + path}
		kek, err := seal.OpenRecovery(path, n.o.Recovery.Passphrase)
		switch {
		case errors.Is(err, seal.ErrMissing) && exists(path+newSuffix):
			kek, err = seal.OpenRecovery(path+newSuffix, n.o.Recovery.Passphrase)
			c.mend = func() error { return promote(path) }
		case file != "" && !exists(file) && !exists(file+newSuffix):
			c.mend, c.instead = n.replaceKeyFile, true
		}
		if c.err = err; err == nil {
			c.kek = kek
		}
		all = append(all, c)
	}
	if keys := n.o.Recovery.UnsealKeys; len(keys) > 0 {
		all = append(all, candidate{what: "unseal keys"})
	}
	return all
}

// find is what unseals the store, of what the configuration has: the first that works. All that does not is told: in the log, if
// something else does. mend is what to do then.
func (n *Node) find(locks seal.Locks, all []candidate) (kek seal.Forgetter, mend func() error, err error) {
	var errs []error
	for _, c := range all {
		if c.err == nil && c.kek == nil {
			c.kek, c.err = n.assemble(locks)
		}
		if c.err == nil {
			if c.err = locks.Try(c.kek); c.err != nil {
				c.err = fmt.Errorf("refusing to start: %w", c.err)
			}
		}
		switch {
		case c.err != nil:
			errs = append(errs, c.err)
			continue
		case kek != nil:
			c.kek.Forget()
			continue
		}
		kek = c.kek
		if had := slices.ContainsFunc(locks.List(), func(l seal.Lock) bool { return seal.IsKeyFile(l.Name) }); had || !c.instead {
			mend = c.mend
		}
		if name := locks.NameOf(kek); seal.IsKeyFile(name) {
			n.lock.Store(&name)
		}
		n.log.Info("unsealing", "by", c.what)
	}
	if kek == nil {
		return nil, nil, errors.Join(errs...)
	}
	for _, err := range errs {
		n.log.Warn("this would not have unsealed the store, and must be put right before it has to", "error", err)
	}
	return kek, mend, nil
}

// assemble is the KEK of the unseal keys that were given for work without a server.
func (n *Node) assemble(locks seal.Locks) (seal.Forgetter, error) {
	var q seal.Quorum
	defer q.Clear()
	for _, key := range n.o.Recovery.UnsealKeys {
		if kek, _, err := q.Add(locks, key); kek != nil || err != nil {
			return kek, err
		}
	}
	threshold, _ := required(locks)
	return nil, fmt.Errorf("%w: %d of the %d unseal keys that are needed were given", seal.ErrMissing, q.Progress(), threshold)
}

// unseal gives the store its keys, if the configuration has some. Where it says that people have them, too, the store
// stays sealed otherwise.
func (n *Node) unseal() error {
	view, err := n.db.View()
	if err != nil {
		return err
	}
	locks, err := seal.ReadLocks(view)
	view.Close()
	if err == nil {
		err = locks.Check()
	}
	if err != nil {
		return fmt.Errorf("refusing to start: %w", err)
	}
	kek, mend, err := n.find(locks, n.candidates())
	switch _, shares := locks.Find(seal.ShamirName); {
	case errors.Is(err, seal.ErrNewer):
		return err
	case kek == nil && n.config.Seal.Shamir:
		n.log.Warn("the store is sealed: it waits for sys/unseal", "error", err)
		return nil
	case err != nil && shares:
		return fmt.Errorf("%w\nPeople hold shares of another key to this store: with seal \"shamir\" {} in the configuration, a start waits for them", err)
	case err != nil:
		return err
	}
	defer kek.Forget()
	if err := n.unlock(kek); err != nil {
		return err
	}
	if n.config.Seal.Shamir {
		if _, made := locks.Find(seal.ShamirName); !made {
			n.log.Warn("no unseal keys were made for the Shamir seal yet: ask for them at sys/lessor/seal/shamir")
		}
	}
	if mend == nil {
		return nil
	}
	return mend()
}

// unlock unseals the store.
func (n *Node) unlock(kek seal.KEK) error {
	view, err := n.db.View()
	if err != nil {
		return err
	}
	keys, err := seal.Unseal(view, kek)
	view.Close()
	if err != nil {
		return err
	}
	err = n.anchorReady(true)
	if err == nil {
		err = n.db.Unseal(keys.Cipher())
	}
	if err != nil {
		keys.Forget()
		return fmt.Errorf("refusing to start: %w", err)
	}
	n.keys = keys
	keys.Follow(readKeyring(n.db))
	n.checkLoose()
	return nil
}

// checkLoose warns once of keys that could be swapped out.
func (n *Node) checkLoose() {
	if err := n.keys.Loose(); err != nil && !n.warned {
		n.warned = true
		n.log.Warn("the keys could be swapped out to disk, or dumped: allow the process to lock memory (RLIMIT_MEMLOCK), or turn swap off", "error", err)
	}
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
	if n.config.Seal.Recovery.Path != "" {
		return n.config.Seal.Recovery.Path
	}
	return filepath.Join(filepath.Dir(n.config.Seal.Anchor), "recovery.key")
}

// replaceKeyFile makes a new key file for a store whose old one is lost; the old one no longer unseals it, unless other nodes may have it.
func (n *Node) replaceKeyFile() error {
	kek, err := seal.CreateKeyFile(n.config.Seal.KeyFile+newSuffix, n.o.Random)
	if err != nil {
		return err
	}
	defer kek.Forget()
	name := n.ownLock()
	put, err := n.keys.WrapRootAs(name, kek)
	if err != nil {
		return err
	}
	_, err = n.db.Commit(context.Background(), store.Txn{Puts: []store.Put{put}, Audit: []audit.Record{
		bootstrapRecord(n.db.Now(), "replace-key-file", "sys/seal"),
	}})
	if err != nil {
		return fmt.Errorf("the new key file was not taken over: %w", err)
	}
	n.lock.Store(&name)
	return promote(n.config.Seal.KeyFile)
}

// initialize makes the first commit of a new store: its keys, the builtin mounts, and a root token.
func (n *Node) initialize(ctx context.Context, c *core.Core, first []store.Put) error {
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
	rows, err := cluster{}.rows(n.config.ClusterName, n.o.Random)
	if err != nil {
		return err
	}
	if _, err := c.Init(ctx, append(first, rows...), id, ttl); err != nil {
		return err
	}
	n.Root = id
	if n.config.Storage.Type != config.Mem && exists(n.config.Seal.KeyFile+newSuffix) {
		return promote(n.config.Seal.KeyFile)
	}
	return nil
}

// writeToken leaves the bootstrap token in a file beside the key file.
func (n *Node) writeToken(id lessor.Secret) error {
	dir, name := filepath.Dir(n.config.Seal.Anchor), "bootstrap-token"
	if key := strings.TrimSuffix(filepath.Base(n.config.Seal.Anchor), config.AnchorSuffix); key != "seal.key" { // several servers may keep their keys in one folder
		name = key + "." + name
	}
	if n.config.Storage.Type == config.Mem { // the store is in memory: so is, nearly, its token
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

// makeKeys gives a new store its keys. Its first commit must be their rows.
func (n *Node) makeKeys() ([]store.Put, error) {
	keks, err := n.keks()
	if err != nil {
		return nil, err
	}
	first, err := n.initKeys(keks)
	if err != nil {
		return nil, err
	}
	// An anchor without its key and its data remembers a store that was given up.
	if anchor := n.config.Seal.Anchor; exists(anchor) {
		n.log.Warn("an anchor of an earlier store was set aside", "path", anchor+".old")
		if err := os.Rename(anchor, anchor+".old"); err != nil {
			return nil, err
		}
	}
	return first, n.db.Unseal(n.keys.Cipher())
}

// initKeys makes the keys of a new store, under keks.
func (n *Node) initKeys(keks []seal.Forgetter) ([]store.Put, error) {
	plain := make([]seal.KEK, len(keks))
	for i, k := range keks {
		defer k.Forget()
		plain[i] = k
	}
	keys, first, err := seal.Init(n.o.Random, n.db.Now(), plain...)
	if err != nil {
		return nil, err
	}
	n.keys = keys
	n.checkLoose()
	return first, nil
}

// keks makes what unseals a new store, or takes what a first start that did not finish has made.
func (n *Node) keks() ([]seal.Forgetter, error) {
	if n.config.Storage.Type == config.Mem {
		key, err := seal.NewKey(seal.MemoryName, n.o.Random)
		if err != nil {
			return nil, err
		}
		n.UnsealKey = key.Text()
		return []seal.Forgetter{key}, nil
	}
	pending := n.config.Seal.KeyFile + newSuffix
	obtain := func() (*seal.KeyFile, error) { return seal.CreateKeyFile(pending, n.o.Random) }
	if file := n.config.Seal.KeyFile; exists(file) { // prepared
		obtain = func() (*seal.KeyFile, error) { return seal.OpenKeyFile(file) }
	} else if exists(pending) {
		obtain = func() (*seal.KeyFile, error) { return seal.OpenKeyFile(pending) }
	}
	key, err := obtain()
	if err != nil {
		return nil, err
	}
	return n.withRecovery(key)
}

// withRecovery adds the recovery file, if the configuration has one, to what unseals a new store.
func (n *Node) withRecovery(first seal.Forgetter) ([]seal.Forgetter, error) {
	passphrase := n.o.Recovery.Passphrase
	if passphrase.Empty() {
		return []seal.Forgetter{first}, nil
	}
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
	return []seal.Forgetter{first, recovery}, nil
}

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
	text := uuid(id)
	if name == "" {
		name = "lessor-cluster-" + text[:8]
	}
	return []store.Put{{Key: clusterID, Value: []byte(text)}, {Key: clusterName, Value: []byte(name)}}, nil
}

// identify reads the store's identity. A name in the configuration wins.
func (l *life) identify() (c cluster, err error) {
	view, err := l.db.View()
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
	if l.n.config.ClusterName != "" {
		c.name = l.n.config.ClusterName
	}
	return c, err
}
