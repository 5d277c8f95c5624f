package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/postgres"
)

// Migrated tells what Migrate did.
type Migrated struct {
	store.Report              // of what was verified at the destination
	First        audit.Header // its first commit there
	From, To     string       // where the store was, and is
}

// Migrate moves the store of from to where to has its own, with no server running on either. The keys that unseal it must be in place
// for both. It may be called again after it was cut off. progress may be nil.
func Migrate(ctx context.Context, from, to config.Config, o Options, progress func(store.Stage)) (moved Migrated, err error) {
	if err := movable(from, to); err != nil {
		return Migrated{}, err
	}
	source, b, err := attach(ctx, from, o, nil)
	if err != nil {
		return Migrated{}, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	destination, d, err := attach(ctx, to, o, nil)
	if err != nil {
		return Migrated{}, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	defer func() {
		if source.keys != nil {
			source.keys.Forget()
		}
	}()
	moved.From, moved.To = whereabouts(from.Storage), whereabouts(to.Storage)
	record := bootstrapRecord(source.o.Clock.Now(), "migrate", "sys/lessor/storage")
	record.Note = "moved from " + moved.From + " to " + moved.To
	move := store.Move{
		From: b, To: d, Source: moved.From, Destination: moved.To,
		SourceAnchor: store.FileAnchor(from.Seal.Anchor), DestinationAnchor: store.FileAnchor(to.Seal.Anchor),
		Options: destination.storeOptions(), Record: record, Progress: progress,
		Unseal: func(v store.View) (store.Cipher, error) {
			if err := destination.couldUnseal(v); err != nil {
				return nil, fmt.Errorf("a server at the destination could not unseal the store: %w", err)
			}
			return source.cipherOf(v)
		},
	}
	moved.Report, moved.First, err = move.Run(ctx)
	return moved, err
}

// movable refuses moves that cannot be.
func movable(from, to config.Config) error {
	for _, c := range [...]config.Config{from, to} {
		if c.Storage.Type == config.Mem {
			return errors.New(`storage "mem" forgets everything: nothing is moved from it or to it`)
		}
	}
	if whereabouts(from.Storage) == whereabouts(to.Storage) {
		return fmt.Errorf("source and destination are the same: %s", whereabouts(from.Storage))
	}
	if from.Storage.Type != config.Pebble {
		return nil
	}
	if empty, err := emptyFolder(from.Storage.Path); err != nil || empty {
		return errors.Join(err, fmt.Errorf("there is no store in %s", from.Storage.Path))
	}
	return nil
}

// whereabouts says in words where a store is; nothing secret.
func whereabouts(s config.Storage) string {
	where := s.Path
	if s.Type == config.PostgreSQL {
		where = postgres.Place(s.ConnectionURL)
	}
	return string(s.Type) + " " + where
}

// cipherOf unseals the store in v by what the configuration has, and keeps the keys.
func (n *Node) cipherOf(v store.View) (store.Cipher, error) { return n.cipherBy(v, n.candidates()) }

func (n *Node) cipherBy(v store.View, keys []candidate) (store.Cipher, error) {
	kek, err := n.kekOf(v, keys)
	if err != nil {
		return nil, err
	}
	defer kek.Forget()
	if n.keys, err = seal.Unseal(v, kek); err != nil {
		return nil, err
	}
	return n.keys.Cipher(), nil
}

// couldUnseal says why the configuration would not unseal the store in v; nil if it does, or leaves it to people.
func (n *Node) couldUnseal(v store.View) error {
	if n.config.Seal.Shamir {
		return nil
	}
	kek, err := n.kekOf(v, n.candidates())
	if err == nil {
		kek.Forget()
	}
	return err
}

func (n *Node) kekOf(v store.View, keys []candidate) (seal.Forgetter, error) {
	locks, err := seal.ReadLocks(v)
	if err != nil {
		return nil, err
	}
	kek, _, err := n.find(locks, keys)
	if err == nil && kek == nil {
		err = errNoKeys
	}
	return kek, err
}
