package archive

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
)

// A segment is
//
//	"lessor segment 1\n"
//	its header: length, CBOR
//	rows: table (1 byte), length, name, length, what is stored
//	0 (1 byte)
//	SHA-256 of everything before (32 bytes): the segment's hash
//	MAC of that hash under the chain's keys (32 bytes)
//
// where lengths are unsigned varints. A base has the rows of a state, in order of tables and names; an increment has commits, each as the
// row of its header followed by the rows that it wrote and nobody changed since. A run may be cut between any two rows.
const segmentMagic = "lessor segment 1\n"

// segmentBytes is how long a segment becomes, or longer by one row.
const segmentBytes = 8 << 20

// Header is what a segment says of itself. CBOR keys are on disk: never renumber, only append.
type Header struct {
	Set   string     `cbor:"1,keyasint"`
	Index uint32     `cbor:"2,keyasint"`           // within its branch of the set, from 0
	Prev  audit.Hash `cbor:"3,keyasint"`           // hash of the segment before; zero for the first
	Point bool       `cbor:"4,keyasint,omitempty"` // it is the last of its run
	Base  bool       `cbor:"5,keyasint,omitempty"` // the run is a base
	After uint64     `cbor:"6,keyasint,omitempty"` // an increment: the commit that it follows

	// The commit that the run ends with.
	Seq         uint64     `cbor:"7,keyasint"`
	Hash        audit.Hash `cbor:"8,keyasint"`
	Incarnation uint64     `cbor:"9,keyasint"`
	Time        int64      `cbor:"10,keyasint"` // ns since 1970-01-01 UTC
}

var decoding = func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// segment is one that was read, or written.
type segment struct {
	Header
	hash audit.Hash
	mac  [32]byte
	rows []byte
}

func appendBytes[T string | []byte](to []byte, b T) []byte {
	return append(binary.AppendUvarint(to, uint64(len(b))), b...)
}

func appendRow(to []byte, e store.Stored) []byte {
	return appendBytes(appendBytes(append(to, byte(e.Key.Table)), e.Key.Name), e.Bytes)
}

// seal is the encoding of a segment, and its hash.
func seal(h *Header, rows []byte, a audit.Authority) ([]byte, audit.Hash, error) {
	header, err := cbor.Marshal(h)
	if err != nil {
		return nil, audit.Hash{}, err
	}
	encoded := make([]byte, 0, len(segmentMagic)+len(header)+len(rows)+100)
	encoded = append(append(appendBytes(append(encoded, segmentMagic...), header), rows...), 0)
	hash := audit.Hash(sha256.Sum256(encoded))
	mac := a.MAC(signed(hash))
	return append(append(encoded, hash[:]...), mac[:]...), hash, nil
}

// signed is what the MAC of a segment is over. It begins with 's', which nothing else that the chain's keys sign does.
func signed(hash audit.Hash) []byte { return append([]byte("segment:"), hash[:]...) }

var errDamaged = errors.New("it is not the segment that it should be, was damaged or cut short")

// parse reads a segment. It finds all accidental damage; whether the segment is authentic is told by its MAC.
func parse(content []byte) (*segment, error) {
	body := len(content) - 2*sha256.Size
	if body < len(segmentMagic)+1 || !bytes.HasPrefix(content, []byte(segmentMagic)) {
		return nil, errDamaged
	}
	s := &segment{hash: sha256.Sum256(content[:body])}
	if s.hash != audit.Hash(content[body:][:sha256.Size]) || content[body-1] != 0 {
		return nil, errDamaged
	}
	copy(s.mac[:], content[body+sha256.Size:])
	header, rest, ok := cutBytes(content[len(segmentMagic) : body-1])
	if !ok || decoding.Unmarshal(header, &s.Header) != nil {
		return nil, errDamaged
	}
	s.rows = rest
	return s, nil
}

// authentic says whether the segment was made under the keys of a, and with it all before it.
func (s *segment) authentic(a audit.Authority) bool {
	want := a.MAC(signed(s.hash))
	return hmac.Equal(want[:], s.mac[:])
}

// cutBytes takes a length and as many bytes off b.
func cutBytes(b []byte) (piece, rest []byte, ok bool) {
	n, length := binary.Uvarint(b)
	if length <= 0 || n > uint64(len(b)-length) {
		return nil, nil, false
	}
	return b[length:][:n], b[length:][n:], true
}

// each calls f with the segment's rows, until an error.
func (s *segment) each(f func(store.Stored) error) error {
	for rest := s.rows; len(rest) > 0; {
		table := rest[0]
		name, after, ok := cutBytes(rest[1:])
		if !ok {
			return errDamaged
		}
		stored, after, ok := cutBytes(after)
		if !ok {
			return errDamaged
		}
		if err := f(store.Stored{Key: store.Key{Table: store.Table(table), Name: string(name)}, Bytes: stored}); err != nil {
			return err
		}
		rest = after
	}
	return nil
}

// follows says what is wrong with the segment as the one after before; nil before: as the first of a set.
func (s *segment) follows(before *segment) error {
	if before == nil {
		if s.Index != 0 || s.Prev != (audit.Hash{}) || !s.Base {
			return errors.New("it does not begin a set")
		}
		return nil
	}
	switch {
	case s.Set != before.Set || s.Index != before.Index+1 || s.Prev != before.hash:
		return fmt.Errorf("it does not follow segment %d", before.Index)
	case before.Point && (s.Base || s.After != before.Seq):
		return fmt.Errorf("it is no increment after commit %d", before.Seq)
	case !before.Point && (s.Base != before.Base || s.After != before.After || s.Seq != before.Seq || s.Hash != before.Hash):
		return fmt.Errorf("it does not continue what segment %d began", before.Index)
	}
	return nil
}
