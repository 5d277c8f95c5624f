package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"

	"github.com/lessor-dev/lessor/internal/audit"
)

// A backup is
//
//	"lessor backup 1\n"
//	the head: length, encoded header (length 0: the store was empty)
//	rows in order of tables and names: table (1 byte), length, name, length, what is stored
//	0 (1 byte)
//	SHA-256 of everything before (32 bytes)
//	MAC of that hash under the chain's keys (32 bytes)
//
// where lengths are unsigned varints. Rows are as sealed as in the store; root keys are in it only as wrapped.
const backupMagic = "lessor backup 1\n"

// Fenced is the row that a restore leaves: while it is there, the store must not act on any target. Resuming deletes it.
var Fenced = Key{Meta, "fenced"}

// maxStored bounds one row of a backup, against damaged lengths.
const maxStored = 1 << 30

// Backup writes one consistent state to w while the store goes on. ctx ends it early.
func (db *DB) Backup(ctx context.Context, w io.Writer) (audit.Header, error) {
	s, err := db.latest()
	if err != nil {
		return audit.Header{}, err
	}
	defer s.release()
	if s.cipher == nil {
		return audit.Header{}, ErrSealed
	}
	sum := sha256.New()
	buf := bufio.NewWriterSize(io.MultiWriter(w, sum), 1<<20)
	buf.WriteString(backupMagic) // a bufio.Writer keeps its error until Flush
	if s.head.Seq == 0 {
		writeBytes(buf, nil)
	} else {
		writeBytes(buf, s.head.Encode())
	}
	for t := Table(1); t < tables; t++ {
		for e, err := range s.snap.Scan(Range{Table: t}, false) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return audit.Header{}, err
			}
			buf.WriteByte(byte(t))
			writeBytes(buf, []byte(e.Key.Name))
			writeBytes(buf, e.Bytes)
		}
	}
	buf.WriteByte(0)
	if err := buf.Flush(); err != nil {
		return audit.Header{}, err
	}
	trailer := sum.Sum(nil)
	mac := s.cipher.MAC(backupMAC(trailer))
	if _, err := w.Write(append(trailer, mac[:]...)); err != nil {
		return audit.Header{}, err
	}
	return s.head, nil
}

// backupMAC is what the MAC of a backup is over. It begins with 'b', which no encoded header begins with.
func backupMAC(sum []byte) []byte { return append([]byte("backup:"), sum...) }

func writeBytes(w *bufio.Writer, b []byte) {
	var n [binary.MaxVarintLen64]byte
	w.Write(n[:binary.PutUvarint(n[:], uint64(len(b)))])
	w.Write(b)
}

var errBackup = errors.New("store: this is no complete backup: it was damaged or cut short")

// backup reads what Backup wrote.
type backup struct {
	r       *bufio.Reader
	sum     hash.Hash
	head    audit.Header
	trailer []byte
	mac     []byte
}

func openBackup(r io.Reader) (*backup, error) {
	b := &backup{r: bufio.NewReaderSize(r, 1<<20), sum: sha256.New()}
	magic := make([]byte, len(backupMagic))
	if err := b.read(magic); err != nil || string(magic) != backupMagic {
		return nil, errors.New("store: this is no backup of lessor, or one of a version that this one cannot read")
	}
	encoded, err := b.bytes()
	if err != nil {
		return nil, err
	}
	if len(encoded) > 0 {
		if b.head, err = audit.DecodeHeader(encoded); err != nil {
			return nil, errBackup
		}
	}
	return b, nil
}

func (b *backup) read(p []byte) error {
	if _, err := io.ReadFull(b.r, p); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return errBackup
		}
		return err
	}
	b.sum.Write(p)
	return nil
}

func (b *backup) bytes() ([]byte, error) {
	var n uint64
	for shift := 0; ; shift += 7 {
		var c [1]byte
		if err := b.read(c[:]); err != nil {
			return nil, err
		}
		if n |= uint64(c[0]&0x7f) << shift; c[0] < 0x80 {
			break
		}
		if shift > 56 {
			return nil, errBackup
		}
	}
	if n > maxStored {
		return nil, errBackup
	}
	// Read in pieces, so that a damaged length asks for no more memory than there is input.
	var p []byte
	for n > 0 {
		piece := make([]byte, min(n, 1<<20))
		if err := b.read(piece); err != nil {
			return nil, err
		}
		if p == nil {
			p = piece
		} else {
			p = append(p, piece...)
		}
		n -= uint64(len(piece))
	}
	return p, nil
}

// row reads the next row; false after the last, once the trailer was found right.
func (b *backup) row() (Stored, bool, error) {
	var t [1]byte
	if err := b.read(t[:]); err != nil {
		return Stored{}, false, err
	}
	if t[0] == 0 {
		return Stored{}, false, b.end()
	}
	if t[0] >= byte(tables) {
		return Stored{}, false, errBackup
	}
	name, err := b.bytes()
	if err != nil {
		return Stored{}, false, err
	}
	stored, err := b.bytes()
	return Stored{Key{Table(t[0]), string(name)}, stored}, true, err
}

func (b *backup) end() error {
	b.trailer = b.sum.Sum(nil)
	var trailer [2 * sha256.Size]byte
	if err := b.read(trailer[:]); err != nil {
		return err
	}
	if !bytes.Equal(trailer[:sha256.Size], b.trailer) {
		return errBackup
	}
	b.mac = trailer[sha256.Size:]
	return nil
}

// CheckBackup reads a backup to its end and returns its head. It finds accidental damage; whether the backup is authentic is
// checked by Restore, which has the keys.
func CheckBackup(r io.Reader) (audit.Header, error) {
	b, err := openBackup(r)
	if err != nil {
		return audit.Header{}, err
	}
	for {
		if _, ok, err := b.row(); err != nil || !ok {
			return b.head, err
		}
	}
}

// Restore fills the empty backend b from a backup, and closes b. unseal gets the keys by what the clear tables of the restored store
// say. The restored store begins a new incarnation with one commit: all tokens are void, the row Fenced is there, and void adds
// what else must not survive (wrappings, approvals, join secrets) and the act's audit record. If there is an anchor it is set to the
// new head. When Restore fails, b is empty, or
// cannot be opened until a Restore into it succeeds.
func Restore(ctx context.Context, r io.Reader, b Backend, o Options, unseal func(View) (Cipher, error), void func(View, *Txn) error) (audit.Header, error) {
	in, err := openBackup(r)
	if err == nil {
		err = fill(ctx, b, in)
	}
	if err != nil {
		return audit.Header{}, errors.Join(err, b.Close())
	}
	db, err := open(b, o, reborn)
	if err != nil {
		return audit.Header{}, errors.Join(err, b.Close())
	}
	err = db.reincarnate(ctx, in, unseal, void)
	head := db.Head()
	if err = errors.Join(err, db.Close()); err != nil {
		return audit.Header{}, err
	}
	return head, nil
}

// reincarnate makes the restored state a store of its own.
func (db *DB) reincarnate(ctx context.Context, in *backup, unseal func(View) (Cipher, error), void func(View, *Txn) error) error {
	v, err := db.View()
	if err != nil {
		return err
	}
	c, err := unseal(v)
	v.Close()
	if err != nil {
		return err
	}
	if want := c.MAC(backupMAC(in.trailer)); !hmac.Equal(want[:], in.mac) {
		return errors.New("store: the backup was not made under these keys, or it was altered")
	}
	if err := db.Unseal(c); err != nil {
		return err
	}
	return db.beginAnew(ctx, "restored", void)
}

// fillBytes is how much a restore writes at once.
const fillBytes = 4 << 20

// fill writes the rows of a backup to b, under the restoreMark.
func fill(ctx context.Context, b Backend, in *backup) (err error) {
	if err := mustBeEmpty(b); err != nil {
		return err
	}
	w, err := b.Begin()
	if err != nil {
		return err
	}
	w.Set(restoreMark, []byte{0, 0, 0, 0, 0, 0, 0, 1})
	size := 0
	for {
		e, ok, err := in.row()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			w.Abort()
			return errors.Join(err, wipe(b))
		}
		if !ok {
			return w.Commit()
		}
		w.Set(e.Key, e.Bytes)
		if size += len(e.Key.Name) + len(e.Bytes); size < fillBytes {
			continue
		}
		if err := w.Commit(); err != nil {
			return err
		}
		size = 0
		if w, err = b.Begin(); err != nil {
			return err
		}
	}
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
