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

// maxStored bounds one row of a backup, against damaged lengths.
const maxStored = 1 << 30

// Backup writes one consistent state to w while the store goes on. ctx ends it early.
func (db *DB) Backup(ctx context.Context, w io.Writer) (audit.Header, error) {
	image, err := db.Image()
	if err != nil {
		return audit.Header{}, err
	}
	defer image.Close()
	sum := sha256.New()
	buf := bufio.NewWriterSize(io.MultiWriter(w, sum), 1<<20)
	buf.WriteString(backupMagic) // a bufio.Writer keeps its error until Flush
	if image.Head.Seq == 0 {
		writeBytes(buf, nil)
	} else {
		writeBytes(buf, image.Head.Encode())
	}
	for e, err := range image.All(ctx) {
		if err != nil {
			return audit.Header{}, err
		}
		buf.WriteByte(byte(e.Key.Table))
		writeBytes(buf, []byte(e.Key.Name))
		writeBytes(buf, e.Bytes)
	}
	buf.WriteByte(0)
	if err := buf.Flush(); err != nil {
		return audit.Header{}, err
	}
	trailer := sum.Sum(nil)
	mac := image.cipher.MAC(backupMAC(trailer))
	if _, err := w.Write(append(trailer, mac[:]...)); err != nil {
		return audit.Header{}, err
	}
	return image.Head, nil
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

// Fill implements Source.
func (b *backup) Fill(ctx context.Context, f *Filling) error {
	for {
		e, ok, err := b.row()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || !ok {
			return err
		}
		if err := f.Set(e); err != nil {
			return err
		}
	}
}

// Authentic implements Source.
func (b *backup) Authentic(c Cipher) error {
	if want := c.MAC(backupMAC(b.trailer)); !hmac.Equal(want[:], b.mac) {
		return errors.New("store: the backup was not made under these keys, or it was altered")
	}
	return nil
}

// ReadBackup is the Source of what Backup wrote.
func ReadBackup(r io.Reader) (Source, error) {
	b, err := openBackup(r)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Restore is RestoreFrom for what Backup wrote.
func Restore(ctx context.Context, r io.Reader, b Backend, o Options, unseal func(View) (Cipher, error), void func(View, *Txn) error) (audit.Header, error) {
	in, err := openBackup(r)
	if err != nil {
		return audit.Header{}, errors.Join(err, b.Close())
	}
	return RestoreFrom(ctx, in, b, o, unseal, void)
}
