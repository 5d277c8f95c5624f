package store

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"time"
)

// PeerTerm is how long after its last sign of life, one a second, a node counts as alive.
const PeerTerm = 5 * time.Second

// PeerBytes is how much a node may say about itself.
const PeerBytes = 4 << 10

// Peer is one start of one node that works on the store. Times are by the backend's clock.
type Peer struct {
	ID      string // 16 hex digits, never used again
	About   []byte // what the node announced; nil before it did
	Started time.Time
	Seen    time.Time // its last sign of life
	Alive   bool      // Seen no longer than PeerTerm ago
}

// NewPeerID draws the id of a start from random, which should be crypto/rand's Reader wherever other nodes are.
func NewPeerID(random io.Reader) (string, error) {
	var id [8]byte
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return "", fmt.Errorf("store: an id for this start: %w", err)
	}
	return hex.EncodeToString(id[:]), nil
}

// alone is the peer that a DB is by itself, on a backend that is not Shared.
type alone struct {
	id      string
	started time.Time
}

// Self is the id of this start of this node: 16 hex digits, never used again.
func (db *DB) Self() string {
	if db.shared != nil {
		return db.shared.Self()
	}
	return db.alone.id
}

// Announce sets what other nodes are told of this one, PeerBytes at most. They see it within a second or two, as long as the
// backend answers; it is repeated with each sign of life. It is no commit.
func (db *DB) Announce(about []byte) {
	if len(about) > PeerBytes {
		panic("store: a node announces more than PeerBytes")
	}
	about = append([]byte(nil), about...)
	if db.shared != nil {
		db.shared.Announce(about)
		return
	}
	db.about.Store(&about)
}

// Peers are the nodes that work on the store, this one included, in the order in which they started. Those unseen for PeerTerm
// are not Alive; after a minute, or once they signed off, they are not told any more. Where the backend is not Shared there is
// one peer, this one, always alive.
func (db *DB) Peers(ctx context.Context) ([]Peer, error) {
	if db.shared != nil {
		return db.shared.Peers(ctx)
	}
	p := Peer{ID: db.alone.id, Started: db.alone.started, Seen: db.Now(), Alive: true}
	if about := db.about.Load(); about != nil {
		p.About = *about
	}
	return []Peer{p}, nil
}
