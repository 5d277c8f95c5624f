package store

import (
	"context"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Mark is what an anchor remembers: how far the chain had come.
type Mark struct {
	Seq         uint64
	Incarnation uint64
	Hash        audit.Hash // of header Seq
	MAC         [32]byte   // under the chain's keys
}

// Anchor remembers the head outside the store, so that a store that was put back to an earlier state is noticed. It is written
// at most once a second, after the head is durable, and at Close: a crash costs the protection of at most the last second.
// On a Shared backend a head is remembered only once it is sure to survive a failover.
// Who can put back the store and the anchor together is not noticed.
type Anchor interface {
	// Load returns the last mark stored; the zero Mark if there never was one.
	Load() (Mark, error)
	// Store remembers m durably, in place of what was remembered.
	Store(m Mark) error
	// String says where the anchor is, for messages to the operator.
	String() string
}

// ErrBehind is the error of a store that is known to have been in a later, or another, state: from its anchor, or from what
// this process was told. What was acknowledged is gone.
var ErrBehind = errors.New("store: behind what it was")

// ErrLost is the Fault of a DB that has shown commits which the backend lost, as a failover or a crash of its server may: they were seen, but
// nobody who made them was told that they are done. Opening the store again shows what is true.
var ErrLost = errors.New("store: the database lost commits that were never acknowledged")

// bytes is what the MAC is over. It begins with 'a', which no encoded header begins with.
func (m *Mark) bytes() []byte {
	b := append(make([]byte, 0, 64), "anchor:"...)
	b = binary.BigEndian.AppendUint64(b, m.Seq)
	b = binary.BigEndian.AppendUint64(b, m.Incarnation)
	return append(b, m.Hash[:]...)
}

// verifyAnchor refuses a store that is not what its anchor remembers, or what came of it.
func (db *DB) verifyAnchor(s *state, c Cipher) error {
	if db.o.Anchor == nil || db.arrival == reborn {
		return nil
	}
	m, err := db.loadAnchor(c)
	if err != nil || m == (Mark{}) {
		return err
	}
	if err := db.holdAgainst(s, m); err != nil {
		return err
	}
	db.anchored = m.Seq
	db.confirmed.Store(&m)
	return nil
}

// loadAnchor reads the anchor and checks its MAC; the zero Mark if nothing was stored.
func (db *DB) loadAnchor(c Cipher) (Mark, error) {
	m, err := db.o.Anchor.Load()
	if err != nil {
		return Mark{}, fmt.Errorf("store: reading the anchor %s: %w", db.o.Anchor, err)
	}
	if m == (Mark{}) {
		return Mark{}, nil
	}
	if want := c.MAC(m.bytes()); !hmac.Equal(want[:], m.MAC[:]) {
		return Mark{}, fmt.Errorf("store: the anchor %s has a wrong MAC: it was altered, or belongs to another store", db.o.Anchor)
	}
	return m, nil
}

// holdAgainst holds the state against what the anchor remembers: ErrBehind, unless it is that or came of it.
func (db *DB) holdAgainst(s *state, m Mark) error {
	if s.head.Seq < m.Seq {
		return fmt.Errorf("%w, says the anchor %s: %s ends at commit %d, but had come to commit %d; it was put back to an earlier state, or "+
			"lost writes. %s", ErrBehind, db.o.Anchor, db.place(), s.head.Seq, m.Seq, s.mend(m))
	}
	h, err := s.header(m.Seq)
	if err != nil {
		return err
	}
	if h.Hash() != m.Hash || h.Incarnation != m.Incarnation {
		return fmt.Errorf("%w, says the anchor %s: commit %d is not the one that the store had then; it is another history of this store. "+
			"%s", ErrBehind, db.o.Anchor, m.Seq, s.mend(m))
	}
	return nil
}

// mend says what to do about a store that is behind its anchor.
func (s *state) mend(m Mark) string {
	if s.head.Incarnation > m.Incarnation {
		return "If an earlier state was taken over on another node, accept that here (lessor operator takeover -accept=HASH)"
	}
	return "Bring back its latest state; or, if that is lost, take this one over (lessor operator takeover), or restore a backup"
}

// place says where the store is, if its backend knows.
func (db *DB) place() string {
	if b, ok := db.b.(interface{ Found() string }); ok {
		return "the store in " + b.Found() + ","
	}
	return "the store"
}

// anchorEvery is how often the anchor is written at most.
const anchorEvery = time.Second

// anchorKeeper brings the anchor up to date until the store closes.
func (db *DB) anchorKeeper() {
	tick := time.NewTicker(anchorEvery)
	defer tick.Stop()
	for {
		select {
		case <-db.ctx.Done():
			return
		case <-tick.C:
			if err := db.Confirm(db.ctx); err != nil && db.ctx.Err() == nil && db.Fault() == nil {
				db.log.Warn("the head could not be confirmed, so the anchor stays behind it", "error", err)
			}
			if err := db.storeAnchor(); err != nil {
				db.log.Warn("writing the anchor failed", "anchor", db.o.Anchor.String(), "error", err)
			}
		}
	}
}

// Confirm returns once what Views show survives whatever commits survive, a failover too: a commit of another node's may be seen
// before it does, after a crash of the backend. What is done outside the store, because of what was seen, comes after it. For what this node
// committed last, and on a backend that is not Shared, it returns at once. Errors: ErrUnreachable; ErrClosed; the Fault.
func (db *DB) Confirm(ctx context.Context) error {
	s, err := db.latest()
	if err != nil {
		return err
	}
	defer s.release()
	if m := db.confirmed.Load(); db.shared == nil || s.head.Seq == 0 || m != nil && m.Seq >= s.head.Seq {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := db.shared.Confirm(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	// Who confirmed may be a server that took over meanwhile, and never had the head.
	snap, err := db.b.Snapshot()
	if err != nil {
		return err
	}
	defer snap.Close()
	if err := (&state{snap: snap}).holds(s.head.Seq, s.hash); err != nil {
		return err
	}
	db.confirm(s)
	return nil
}

// storeAnchor remembers the head that is confirmed.
func (db *DB) storeAnchor() error {
	s, confirmed := db.published.Load(), db.confirmed.Load()
	if db.o.Anchor == nil || s == nil || s.cipher == nil || confirmed == nil || confirmed.Seq == db.anchored {
		return nil
	}
	m := *confirmed
	m.MAC = s.cipher.MAC(m.bytes())
	if err := db.o.Anchor.Store(m); err != nil {
		db.stats.anchorErrors.Add(1)
		return err
	}
	db.anchored = m.Seq
	return nil
}

// FileAnchor is an Anchor in a file of its own, which should not lie where the store does.
type FileAnchor string

func (f FileAnchor) String() string { return string(f) }

const markLen = 8 + 8 + 32 + 32

// Load reads the file.
func (f FileAnchor) Load() (Mark, error) {
	b, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return Mark{}, nil
	}
	if err != nil {
		return Mark{}, err
	}
	if len(b) != markLen {
		return Mark{}, fmt.Errorf("it has %d bytes where an anchor has %d", len(b), markLen)
	}
	m := Mark{Seq: binary.BigEndian.Uint64(b), Incarnation: binary.BigEndian.Uint64(b[8:])}
	copy(m.Hash[:], b[16:])
	copy(m.MAC[:], b[48:])
	return m, nil
}

// Store replaces the file atomically and syncs it and its directory.
func (f FileAnchor) Store(m Mark) error {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, markLen), m.Seq)
	b = binary.BigEndian.AppendUint64(b, m.Incarnation)
	b = append(append(b, m.Hash[:]...), m.MAC[:]...)
	dir := filepath.Dir(string(f))
	tmp, err := os.CreateTemp(dir, ".anchor-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), string(f)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
