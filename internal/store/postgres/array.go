package postgres

import "encoding/binary"

// array is a one-dimensional array in PostgreSQL's binary format, as a statement takes it; the zero array is not ready, see newArray.
type array struct {
	n     uint32
	bytes []byte
}

// The types of elements, by their OIDs.
const (
	byteaOID    = 17
	smallintOID = 21
)

const arrayHeader = 5 * 4 // dimensions, whether there are NULLs, type; of the dimension: length, first index

func newArray(oid uint32) array {
	b := make([]byte, arrayHeader, 256)
	binary.BigEndian.PutUint32(b, 1)
	binary.BigEndian.PutUint32(b[8:], oid)
	binary.BigEndian.PutUint32(b[16:], 1)
	return array{bytes: b}
}

// reset makes the array empty and keeps its space.
func (a *array) reset() { a.n, a.bytes = 0, a.bytes[:arrayHeader] }

func (a *array) addInt16(v int16) {
	a.n++
	a.bytes = binary.BigEndian.AppendUint32(a.bytes, 2)
	a.bytes = binary.BigEndian.AppendUint16(a.bytes, uint16(v))
}

// put appends an element of bytes.
func put[T ~string | ~[]byte](a *array, v T) {
	a.n++
	a.bytes = binary.BigEndian.AppendUint32(a.bytes, uint32(len(v)))
	a.bytes = append(a.bytes, v...)
}

// param is the array as a parameter. It is good until the next change.
func (a *array) param() []byte {
	if a.n == 0 {
		return append(make([]byte, 8), a.bytes[8:12]...) // of no dimension
	}
	binary.BigEndian.PutUint32(a.bytes[12:], a.n)
	return a.bytes
}
