package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Fenced is the row that a restore leaves: while it is there, the store must not act on any target. Resuming deletes it.
var Fenced = Key{Meta, "fenced"}

// Source is what a store is restored from.
type Source interface {
	// Fill gives f all rows. An error ends the restore; nothing that was given counts then.
	Fill(ctx context.Context, f *Filling) error
	// Authentic says, after Fill, whether all that it gave was made under the keys of c: nil if so.
	Authentic(c Cipher) error
}

// RestoreFrom fills the empty backend b from a source, and closes b. unseal gets the keys by what the clear tables of the restored
// store say. The restored store begins a new incarnation with one commit: all tokens are void, the row Fenced is there, and void adds
// what else must not survive (wrappings, approvals, join secrets) and the act's audit record. If there is an anchor it is set to the
// new head. When RestoreFrom fails, b is empty, or cannot be opened until a restore into it succeeds.
func RestoreFrom(ctx context.Context, from Source, b Backend, o Options, unseal func(View) (Cipher, error), void func(View, *Txn) error) (audit.Header, error) {
	if err := fill(ctx, b, from); err != nil {
		return audit.Header{}, errors.Join(err, b.Close())
	}
	db, err := open(b, o, reborn)
	if err != nil {
		return audit.Header{}, errors.Join(err, b.Close())
	}
	err = db.reincarnate(ctx, from, unseal, void)
	head := db.Head()
	if err = errors.Join(err, db.Close()); err != nil {
		return audit.Header{}, err
	}
	return head, nil
}

// reincarnate makes the restored state a store of its own.
func (db *DB) reincarnate(ctx context.Context, from Source, unseal func(View) (Cipher, error), void func(View, *Txn) error) error {
	c, err := db.keys(unseal)
	if err != nil {
		return err
	}
	if err := from.Authentic(c); err != nil {
		return err
	}
	if err := db.Unseal(c); err != nil {
		return err
	}
	return db.beginAnew(ctx, "restored", void)
}

// fillBytes is how much a restore writes at once.
const fillBytes = 4 << 20

// Filling is an empty store that a Source fills: with the rows of one state, then with those of the commits after it. It checks
// that rows are where they belong, not that they are authentic.
type Filling struct {
	b      Backend
	ranges []Range        // to be deleted with the next write, before its rows
	rows   map[Key][]byte // of the next write; nil: to be deleted
	size   int
	last   []byte // what was set in Head last

	head    audit.Header // the commit that was followed last
	hash    audit.Hash
	wrote   map[Key]bool // its rows that are expected yet
	follows bool
}

// fill writes the rows of a source to b, under the restoreMark.
func fill(ctx context.Context, b Backend, from Source) error {
	if err := mustBeEmpty(b); err != nil {
		return err
	}
	f := &Filling{b: b, rows: map[Key][]byte{restoreMark: {0, 0, 0, 0, 0, 0, 0, 1}}}
	if err := from.Fill(ctx, f); err != nil {
		return errors.Join(err, wipe(b))
	}
	return f.write()
}

// Set writes a row of the state that the source begins with. Rows of Head come in order.
func (f *Filling) Set(e Stored) error {
	if e.Key.Table == 0 || e.Key.Table >= tables || e.Key.Name == "" || len(e.Bytes) < versionLen || f.follows {
		return &Damage{e.Key, "it is no row of a backup's state"}
	}
	if e.Key.Table == Head {
		f.last = append(f.last[:0], e.Bytes...)
	}
	return f.set(e)
}

// Follow writes a row of a commit after that state, as Image.After yields it: first the row of Head, with what the commit deleted,
// then what the commit wrote.
func (f *Filling) Follow(e Stored) error {
	if e.Key.Table == Head {
		return f.follow(e)
	}
	var mine bool
	switch version := storedVersion(e.Bytes); {
	case !f.follows || version != f.head.Seq:
	case e.Key.Table == Records:
		_, seq, index, err := place(e.Key.Name)
		mine = err == nil && seq == version && index < f.head.Count
	case e.Key.Table == ByPath || e.Key.Table == ByWho:
		mine = len(e.Bytes) == versionLen && len(e.Key.Name) == dayLen+hashLen+placeLen && e.Key.Name[dayLen+hashLen:][:seqLen] == Uint64Key(version)
	default:
		mine = f.wrote[e.Key]
		delete(f.wrote, e.Key)
	}
	if !mine {
		return &Damage{e.Key, fmt.Sprintf("it is no row of commit %d, where the backup has it", f.head.Seq)}
	}
	return f.set(e)
}

// follow begins the next commit.
func (f *Filling) follow(e Stored) error {
	if !f.follows && f.last != nil {
		var err error
		if f.head, f.hash, err = decodeHead(Stored{Key{Head, Uint64Key(storedVersion(f.last))}, f.last}); err != nil {
			return err
		}
	}
	h, hash, err := decodeHead(e)
	if err != nil {
		return err
	}
	if h.Seq != f.head.Seq+1 || h.Prev != f.hash {
		return &Damage{e.Key, fmt.Sprintf("it does not follow commit %d", f.head.Seq)}
	}
	f.head, f.hash, f.follows, f.wrote = h, hash, true, make(map[Key]bool, len(h.Touched))
	for _, t := range h.Touched {
		k := Key{Table(t.Table), t.Name}
		switch {
		case k.Table == 0 || k.Table >= tables || k.Table == Head || k.Table == Batches:
			return &Damage{e.Key, "it touches what no commit does"}
		case t.Range:
			r := Range{k.Table, t.Name, t.To}
			maps.DeleteFunc(f.rows, func(k Key, _ []byte) bool { return r.Contains(k) })
			f.ranges = append(f.ranges, r)
			continue
		case !t.Deleted:
			f.wrote[k] = true
		}
		f.rows[k] = nil // what a later commit of the backup overwrote is not in it
	}
	if err := f.set(Stored{Key{Batches, h.Batch}, e.Bytes[:versionLen]}); err != nil {
		return err
	}
	return f.set(e)
}

func (f *Filling) set(e Stored) error {
	f.rows[e.Key] = bytes.Clone(e.Bytes)
	if f.size += len(e.Key.Name) + len(e.Bytes); f.size < fillBytes {
		return nil
	}
	return f.write()
}

// write commits what was collected.
func (f *Filling) write() error {
	w, err := f.b.Begin()
	if err != nil {
		return err
	}
	for _, r := range f.ranges {
		w.DeleteRange(r)
	}
	for k, stored := range f.rows {
		if stored == nil {
			w.Delete(k)
		} else {
			w.Set(k, stored)
		}
	}
	f.ranges, f.size = f.ranges[:0], 0
	clear(f.rows)
	return w.Commit()
}

// mustBeEmpty refuses to overwrite a store. What an unfinished restore left it clears away.
func mustBeEmpty(b Backend) error {
	s, err := b.Snapshot()
	if err != nil {
		return err
	}
	defer s.Close()
	if mark, err := s.Get(restoreMark); err != nil {
		return err
	} else if mark != nil {
		return wipe(b)
	}
	for t := Table(1); t < tables; t++ {
		for _, err := range s.Scan(Range{Table: t}, false) {
			if err != nil {
				return err
			}
			return errors.New("store: a backup can only be restored into an empty store, and this one is not")
		}
	}
	return nil
}

// wipe empties b.
func wipe(b Backend) error {
	w, err := b.Begin()
	if err != nil {
		return err
	}
	for t := Table(0); t < tables; t++ {
		w.DeleteRange(Range{Table: t})
	}
	return w.Commit()
}
