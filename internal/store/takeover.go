package store

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// ErrCurrent is the error of a takeover of a store that is, as far as anything tells, in its latest state.
var ErrCurrent = errors.New("store: nothing tells that this store was put back to an earlier state: its anchor, if there is one, agrees with it")

// Takeover makes the state that b has, and closes b, into the store, when a later one is lost: a database that was restored to
// an earlier time, or the source of a move whose destination is gone. As a restored backup does, it begins a new incarnation with one
// commit: all tokens are void, the row Fenced is there, and void adds what else must not survive and the act's audit record. The
// anchor is set to that commit, whose header is returned; other nodes accept it by Accept.
//
// The state is verified before, as Verify does; progress is told how far that is. Unless force is true, a store of which nothing
// tells that it is behind is left as it is, with ErrCurrent. No other node may have it open.
func Takeover(ctx context.Context, b Backend, o Options, force bool, progress func(done, total uint64), unseal func(View) (Cipher, error), void func(View, *Txn) error) (head audit.Header, err error) {
	db, err := open(b, o, reborn)
	if err != nil {
		return audit.Header{}, errors.Join(err, b.Close())
	}
	defer func() {
		if closing := db.Close(); closing != nil {
			head, err = audit.Header{}, errors.Join(err, closing)
		}
	}()
	c, err := db.keys(unseal)
	if err != nil {
		return audit.Header{}, err
	}
	if err := mustBeAlone(ctx, b); err != nil {
		return audit.Header{}, err
	}
	behind, err := db.isBehind(c)
	if err != nil {
		return audit.Header{}, err
	}
	if !behind && !force {
		return audit.Header{}, ErrCurrent
	}
	if _, err := Inspect(ctx, b, c, progress); err != nil {
		return audit.Header{}, fmt.Errorf("what is here is damaged, and cannot be taken over: %w", err)
	}
	if err := db.Unseal(c); err != nil {
		return audit.Header{}, err
	}
	if err := db.beginAnew(ctx, "taken over", void); err != nil {
		return audit.Header{}, err
	}
	return db.Head(), nil
}

// keys are what unseal makes of the sealed store.
func (db *DB) keys(unseal func(View) (Cipher, error)) (Cipher, error) {
	v, err := db.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	return unseal(v)
}

// beginAnew commits the first commit of a new incarnation: how says what the state is that it begins with.
func (db *DB) beginAnew(ctx context.Context, how string, void func(View, *Txn) error) error {
	_, err := db.update(ctx, true, func(v View, t *Txn) error {
		t.Put(Fenced.Table, Fenced.Name, fmt.Appendf(nil, "%s at %s from commit %d", how, db.Now().Format(time.RFC3339), v.Position()))
		return void(v, t)
	})
	return err
}

// isBehind reports whether something tells that a later state is lost: the anchor, or the mark of a move. An anchor that was not
// made under the keys of c is an error.
func (db *DB) isBehind(c Cipher) (bool, error) {
	s, err := db.latest()
	if err != nil {
		return false, err
	}
	defer s.release()
	if s.head.Seq == 0 {
		return false, errors.New("store: it is empty: there is nothing to take over")
	}
	for _, k := range [...]Key{restoreMark, moveMark} {
		if mark, err := s.snap.Get(k); err != nil || mark != nil {
			return false, cmp.Or(err, fmt.Errorf("store: it is an unfinished %s, which is no state of a store", k.Name))
		}
	}
	if _, left, err := readPassage(s.snap, c, movedMark); left || err != nil {
		return left, err
	}
	if db.o.Anchor == nil {
		return false, nil
	}
	m, err := db.loadAnchor(c)
	if err != nil || m == (Mark{}) {
		return false, err
	}
	err = db.holdAgainst(s, m)
	if errors.Is(err, ErrBehind) {
		return true, nil
	}
	return false, err
}

// Accept lets the anchor of one node of several follow a takeover that was made on another. Its anchor knows the later state that was
// lost, and so refuses what came of the earlier one; first is the hash, in hex, of the commit that the takeover began with, which
// a person brought from there. That takes a person, since whoever can write to the store and has a copy that was taken over elsewhere, for a
// drill, say, under the same keys could otherwise put that one in the place of the store.
//
// It closes b, and returns the header that the anchor then remembers.
func Accept(ctx context.Context, b Backend, o Options, first string, unseal func(View) (Cipher, error)) (head audit.Header, err error) {
	db, err := open(b, o, settled)
	if err != nil {
		return audit.Header{}, errors.Join(err, b.Close())
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	c, err := db.keys(unseal)
	if err != nil {
		return audit.Header{}, err
	}
	s, err := db.latest()
	if err != nil {
		return audit.Header{}, err
	}
	defer s.release()
	if err := db.verifyHead(s, c); err != nil {
		return audit.Header{}, err
	}
	m, err := db.loadAnchor(c)
	if err != nil {
		return audit.Header{}, err
	}
	if m == (Mark{}) {
		return audit.Header{}, ErrCurrent
	}
	switch err := db.holdAgainst(s, m); {
	case err == nil:
		return audit.Header{}, ErrCurrent
	case !errors.Is(err, ErrBehind):
		return audit.Header{}, err
	case m.Incarnation >= s.head.Incarnation:
		return audit.Header{}, fmt.Errorf("store: nobody has taken this state over yet: lessor operator takeover does: %w", err)
	}
	began, err := s.firstOf(ctx)
	if err != nil {
		return audit.Header{}, err
	}
	if hex.EncodeToString(began[:]) != first {
		return audit.Header{}, fmt.Errorf("store: this is not what was taken over: incarnation %d begins with commit %x. If that is not what "+
			"lessor operator takeover said, somebody put another copy in its place", s.head.Incarnation, began)
	}
	n := Mark{Seq: s.head.Seq, Incarnation: s.head.Incarnation, Hash: s.hash}
	n.MAC = c.MAC(n.bytes())
	return s.head, db.o.Anchor.Store(n)
}

// firstOf is the hash of the first header of the head's incarnation. It follows the chain back to there, so what it returns is what
// the head rests upon.
func (s *state) firstOf(ctx context.Context) (audit.Hash, error) {
	hash, prev := s.hash, s.head.Prev
	for e, err := range s.snap.Scan(Range{Table: Head, To: Uint64Key(s.head.Seq)}, true) {
		if err := cmp.Or(err, ctx.Err()); err != nil {
			return audit.Hash{}, err
		}
		h, was, err := decodeHead(e)
		if err != nil {
			return audit.Hash{}, err
		}
		if was != prev {
			return audit.Hash{}, &Damage{e.Key, "the next header does not continue it"}
		}
		if h.Incarnation != s.head.Incarnation {
			break
		}
		hash, prev = was, h.Prev
	}
	return hash, nil
}
