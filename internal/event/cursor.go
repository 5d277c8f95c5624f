package event

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Cursor is a place in the chain from which a subscriber goes on, on whatever node: what it names was told, what comes later was not. It
// says of which history the place is, so that one which a restore or a failover took back is noticed.
type Cursor struct {
	Place
	of [8]byte // digest of the commit's header
}

// At is the cursor behind all of a commit.
func At(h *audit.Header) Cursor { return Cursor{end(h.Seq), digest(h)} }

// Of reports whether the cursor is of the history that has h as the header of its commit.
func (c Cursor) Of(h *audit.Header) bool { return c.Seq == h.Seq && c.of == digest(h) }

// digest tells a commit from any other that another history has in its place.
func digest(h *audit.Header) (d [8]byte) {
	b := binary.BigEndian.AppendUint64(nil, h.Seq)
	b = binary.BigEndian.AppendUint64(b, h.Incarnation)
	b = append(b, h.Prev[:]...)
	b = append(b, h.Batch...)
	sum := sha256.Sum256(b)
	copy(d[:], sum[:])
	return d
}

// cursorVersion begins a cursor.
const cursorVersion = 1

const cursorLen = 1 + 8 + 4 + 8

func (p Place) bytes() []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, p.Seq), p.Index)
}

// String is the cursor as clients keep it: letters, digits, - and _.
func (c Cursor) String() string {
	b := append(make([]byte, 0, cursorLen), cursorVersion)
	b = append(b, c.Place.bytes()...)
	return base64.RawURLEncoding.EncodeToString(append(b, c.of[:]...))
}

var errCursor = errors.New("event: it is no cursor")

// Parse reads what String wrote.
func Parse(s string) (Cursor, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != cursorLen || b[0] != cursorVersion || len(s) != base64.RawURLEncoding.EncodedLen(cursorLen) { // lines, which it would read over
		return Cursor{}, errCursor
	}
	c := Cursor{Place: Place{binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint32(b[9:])}}
	copy(c.of[:], b[13:])
	return c, nil
}
