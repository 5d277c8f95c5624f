package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

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
	n, b, err := attach(ctx, c, o)
	if err != nil {
		return Restored{}, err
	}
	if c.Storage.Type == config.Mem {
		return Restored{}, errors.Join(errors.New(`storage "mem" forgets everything: there is nothing to restore into`), b.Close())
	}
	kek, mend, err := n.kek()
	if err != nil {
		return Restored{}, errors.Join(err, b.Close())
	}
	_ = mend // a lost key file is replaced by the first start
	unseal := func(v store.View) (store.Cipher, error) {
		if n.keys, err = seal.Unseal(v, kek); err != nil {
			return nil, err
		}
		return n.keys.Cipher(), nil
	}
	head, err := store.Restore(ctx, backup, b, n.storeOptions(), unseal, n.renew)
	if n.keys != nil {
		n.keys.Forget()
	}
	if err != nil {
		return Restored{}, err
	}
	return Restored{head, n.TokenFile}, nil
}

// renew adds to a restore's commit what it must bring along: the end of what was wrapped and kept by tokens, a new term of keys,
// since commits now get numbers that were used before, and a token to begin with.
func (n *Node) renew(v store.View, txn *store.Txn) error {
	now := n.o.Clock.Now()
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
	record := bootstrapRecord(now, "restore", "sys/lessor/backup")
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
	n, b, err := attach(ctx, c, o)
	if err != nil {
		return Verified{}, err
	}
	n.db, err = store.Open(b, n.storeOptions())
	if err != nil {
		return Verified{Broken: err}, b.Close()
	}
	found, err := n.verify(ctx, b, progress)
	return found, errors.Join(err, n.db.Close())
}

func (n *Node) verify(ctx context.Context, b store.Backend, progress func(done, total uint64)) (v Verified, err error) {
	kek, _, err := n.kek()
	if err != nil {
		return v, err
	}
	view, err := n.db.View()
	if err != nil {
		return v, err
	}
	n.keys, err = seal.Unseal(view, kek)
	view.Close()
	if errors.Is(err, seal.ErrDamaged) {
		return Verified{Broken: err}, nil
	}
	if err != nil {
		return v, err
	}
	defer n.keys.Forget()
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

// attach opens what the store of c lies in, for work without a server.
func attach(ctx context.Context, c config.Config, o Options) (*Node, store.Backend, error) {
	if err := c.Validate(); err != nil {
		return nil, nil, err
	}
	n := newNode(c, o)
	b, err := openBackend(ctx, c, n.o)
	if err != nil {
		return nil, nil, fmt.Errorf("%w (a server that runs on the store must be stopped first)", err)
	}
	return n, b, nil
}
