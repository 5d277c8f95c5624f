package node

import (
	"context"
	"encoding/hex"
	"errors"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/store"
)

// Taken tells what a takeover made.
type Taken struct {
	Head      audit.Header
	Hash      string // of its first commit, hex: what other nodes accept it by; empty after Accept
	TokenFile string // a bootstrap root token, since all earlier tokens are void; empty after Accept
}

// Takeover makes the state that the store of c is in into the store, where a later one is lost, with no server running; see
// store.Takeover. The store is fenced then, as a restored backup is.
func Takeover(ctx context.Context, c config.Config, o Options, force bool, progress func(done, total uint64)) (Taken, error) {
	n, b, err := attachKept(ctx, c, o)
	if err != nil {
		return Taken{}, err
	}
	defer n.forget()
	void := func(v store.View, txn *store.Txn) error { return n.renew(v, txn, "takeover", "sys/lessor/storage") }
	head, err := store.Takeover(ctx, b, n.storeOptions(), force, progress, n.cipherOf, void)
	if errors.Is(err, store.ErrCurrent) {
		return Taken{}, errors.Join(err, errors.New("if you know better, say -force"))
	}
	if err != nil {
		return Taken{}, err
	}
	hash := head.Hash()
	return Taken{head, hex.EncodeToString(hash[:]), n.TokenFile}, nil
}

// Accept lets the node of c go along with a takeover on another node, whose first commit has the hash first; see store.Accept.
func Accept(ctx context.Context, c config.Config, o Options, first string) (Taken, error) {
	n, b, err := attachKept(ctx, c, o)
	if err != nil {
		return Taken{}, err
	}
	defer n.forget()
	head, err := store.Accept(ctx, b, n.storeOptions(), first, n.cipherOf)
	return Taken{Head: head}, err
}
