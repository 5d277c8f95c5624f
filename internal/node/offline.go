package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
	"github.com/lessor-dev/lessor/internal/wrapping"
)

// Restored tells what Restore made.
type Restored struct {
	Head      audit.Header // of the restored store
	TokenFile string       // a bootstrap root token, since all earlier tokens are void
}

// Restore fills the empty store of c from a backup, with no server running. The key file must be in its place. The store is
// fenced: it touches no target until an operator resumes it. Tokens and wrapped answers of before are void.
func Restore(ctx context.Context, c config.Config, o Options, backup io.Reader) (Restored, error) {
	from, err := store.ReadBackup(backup)
	if err != nil {
		return Restored{}, err
	}
	return RestoreFrom(ctx, c, o, from)
}

// RestoreFrom is Restore from any backup.
func RestoreFrom(ctx context.Context, c config.Config, o Options, from store.Source) (Restored, error) {
	n, b, err := attach(ctx, c, o, nil)
	if err != nil {
		return Restored{}, err
	}
	head, err := n.restore(ctx, from, b, func(v store.View, txn *store.Txn) error { return n.renew(v, txn, "restore", "sys/lessor/backup") })
	if err != nil {
		return Restored{}, err
	}
	return Restored{head, n.TokenFile}, nil
}

// restore fills b, which it closes, and gives it what void adds.
func (n *Node) restore(ctx context.Context, from store.Source, b store.Backend, void func(store.View, *store.Txn) error) (audit.Header, error) {
	c := n.config
	if c.Storage.Type == config.Mem {
		return audit.Header{}, errors.Join(errors.New(`storage "mem" forgets everything: there is nothing to restore into`), b.Close())
	}
	keys := n.candidates()
	if err := unusable(keys); err != nil {
		return audit.Header{}, errors.Join(err, b.Close())
	}
	unseal := func(v store.View) (store.Cipher, error) { return n.cipherBy(v, keys) } // a lost key file is replaced by the first start
	head, err := store.RestoreFrom(ctx, from, b, n.storeOptions(), unseal, void)
	n.forget()
	return head, err
}

var errNoKeys = errors.New("people hold the keys to this store: put enough of them, one a line, into a file that LESSOR_UNSEAL_KEYS_FILE names")

// unusable is why none of the candidates can unseal anything; nil if one may.
func unusable(all []candidate) error {
	var errs []error
	for _, c := range all {
		if c.err == nil {
			return nil
		}
		errs = append(errs, c.err)
	}
	if errs == nil {
		return errNoKeys
	}
	return errors.Join(errs...)
}

// Admit gives the store of c a new bootstrap root token, with no server running, for whoever has the store and its key, and no
// token that is good for anything. It returns the token's file.
func Admit(ctx context.Context, c config.Config, o Options) (tokenFile string, err error) {
	n, b, err := attach(ctx, c, o, nil)
	if err != nil {
		return "", err
	}
	if n.db, err = store.Open(b, n.storeOptions()); err != nil {
		return "", errors.Join(err, b.Close())
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if n.db.Head().Seq == 0 {
		return "", errors.New("the store is empty: the first start of its server makes a bootstrap token")
	}
	if err := n.unseal(); err != nil {
		return "", err
	}
	if n.keys == nil {
		return "", errNoKeys
	}
	_, err = n.db.Update(ctx, func(v store.View, txn *store.Txn) error {
		return n.admit(v, txn, n.db.Now(), "create", "auth/token/root")
	})
	return n.TokenFile, err
}

// renew adds to the first commit of a new incarnation what it must bring along: the end of what was wrapped and kept by tokens, a new term of keys,
// since commits now get numbers that were used before, and a token to begin with.
func (n *Node) renew(v store.View, txn *store.Txn, operation, path string) error {
	now := n.o.Clock.Now()
	if err := n.void(v, txn, now); err != nil {
		return err
	}
	return n.admit(v, txn, now, operation, path)
}

// void is renew without the token.
func (n *Node) void(v store.View, txn *store.Txn, now time.Time) error {
	for _, prefix := range []string{
		wrapping.Key(core.SystemMount, "").Name,
		store.MountKey(lessor.RootNamespace, core.CubbyholeMount),
	} {
		txn.Ranges = append(txn.Ranges, store.Range{Table: store.Secrets, From: prefix, To: store.PrefixEnd(prefix)})
	}
	put, err := n.keys.Rotate(n.o.Random, now, v.Position())
	if err != nil {
		return err
	}
	txn.Puts = append(txn.Puts, put)
	return nil
}

// admit adds a bootstrap root token to a commit, and the record of the operation that made it; the token is written to its file.
func (n *Node) admit(v store.View, txn *store.Txn, now time.Time, operation, path string) error {
	id, err := token.NewID(n.o.Random)
	if err != nil {
		return err
	}
	accessor, err := token.NewAccessor(n.o.Random)
	if err != nil {
		return err
	}
	if err := n.writeToken(id); err != nil {
		return err
	}
	t := &token.Token{
		Hash: n.keys.TokenHash(id.Reveal()), Accessor: accessor, Kind: lessor.Service, Orphan: true, Policies: []string{token.RootPolicy},
		Path: "auth/token/root", Name: "root", Created: now, TTL: bootstrapTTL, Max: bootstrapTTL, Expires: now.Add(bootstrapTTL), Position: v.Position(),
	}
	t.Store(txn)
	record := bootstrapRecord(now, operation, path)
	record.Accessor = accessor
	txn.Audit = append(txn.Audit, record)
	return nil
}

// Verified is what Verify found.
type Verified struct {
	store.Report
	HeadHash string // hex
	Broken   error  // what does not fit first; nil: all does
}

// Verify checks the whole store of c, with no server running. An error means that it could not; what is broken is in Verified.
// progress may be nil.
func Verify(ctx context.Context, c config.Config, o Options, progress func(done, total uint64)) (Verified, error) {
	var mu sync.Mutex
	damage := ""
	damaged := func(message string) { // of a file: says more than the error of whoever met it
		mu.Lock()
		defer mu.Unlock()
		damage = cmp.Or(damage, message)
	}
	o.Log = nil // what the store has to say is this command's answer
	n, b, err := attach(ctx, c, o, damaged)
	if err != nil {
		return Verified{}, err
	}
	var found Verified
	if n.db, err = store.Open(b, n.storeOptions()); err != nil {
		found.Broken, err = err, b.Close()
	} else {
		found, err = n.verify(ctx, b, progress)
		err = errors.Join(err, n.close())
	}
	mu.Lock()
	defer mu.Unlock()
	if damage != "" {
		found.Broken, err = errors.New(damage), nil
	}
	return found, err
}

func (n *Node) verify(ctx context.Context, b store.Backend, progress func(done, total uint64)) (v Verified, err error) {
	view, err := n.db.View()
	if err != nil {
		return v, err
	}
	defer view.Close()
	_, err = n.cipherOf(view)
	if errors.Is(err, seal.ErrDamaged) {
		return Verified{Broken: err}, nil
	}
	if err != nil {
		return v, err
	}
	v.Report, v.Broken = store.Inspect(ctx, b, n.keys.Cipher(), progress)
	if ctx.Err() != nil {
		return v, ctx.Err()
	}
	if v.Broken == nil { // whole in itself; is it also where its anchor has seen it?
		v.Broken = n.db.Unseal(n.keys.Cipher())
	}
	head := n.db.Head()
	hash := head.Hash()
	v.HeadHash = hex.EncodeToString(hash[:])
	return v, nil
}

// close closes the store, and forgets its keys: in this order, since the store signs its anchor last.
func (n *Node) close() error {
	defer n.forget()
	return n.db.Close()
}

// forget forgets the keys, if there are some.
func (n *Node) forget() {
	if n.keys != nil {
		n.keys.Forget()
		n.keys = nil
	}
}

// attachKept is attach for a store that outlives its processes.
func attachKept(ctx context.Context, c config.Config, o Options) (*Node, store.Backend, error) {
	if c.Storage.Type == config.Mem {
		return nil, nil, errors.New(`storage "mem" forgets everything: there is nothing to work on without its server`)
	}
	return attach(ctx, c, o, nil)
}

// attach opens what the store of c lies in, for work without a server; damaged as of openBackend.
func attach(ctx context.Context, c config.Config, o Options, damaged func(string)) (*Node, store.Backend, error) {
	if err := c.Validate(); err != nil {
		return nil, nil, err
	}
	n := newNode(c, o)
	b, err := openBackend(ctx, c, n.o, damaged)
	return n, b, err
}
