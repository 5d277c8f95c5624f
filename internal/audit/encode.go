package audit

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// The encodings are CBOR in the deterministic core form of RFC 8949, section 4.2.1: integer keys in order, shortest
// lengths, no indefinite items. Times are nanoseconds since 1970-01-01 UTC, as integers. In headers all strings are
// byte strings, since names of rows are bytes; in records they are text.
var (
	recordMode = encMode(cbor.StringToTextString)
	headerMode = encMode(cbor.StringToByteString)
	decMode    = func() cbor.DecMode {
		m, err := cbor.DecOptions{
			DupMapKey:          cbor.DupMapKeyEnforcedAPF,
			IndefLength:        cbor.IndefLengthForbidden,
			TagsMd:             cbor.TagsForbidden,
			MaxArrayElements:   1 << 24,
			ByteStringToString: cbor.ByteStringToStringAllowed,
			UTF8:               cbor.UTF8DecodeInvalid,
		}.DecMode()
		if err != nil {
			panic(err)
		}
		return m
	}()
)

func encMode(s cbor.StringMode) cbor.EncMode {
	o := cbor.CoreDetEncOptions()
	o.String = s
	o.TagsMd = cbor.TagsForbidden
	m, err := o.EncMode()
	if err != nil {
		panic(err)
	}
	return m
}

// The wire forms hide the field Time behind an integer of the same key.
type (
	bareRecord Record
	wireRecord struct {
		Time int64 `cbor:"1,keyasint"`
		*bareRecord
	}
	bareHeader Header
	wireHeader struct {
		Time int64 `cbor:"4,keyasint"`
		*bareHeader
	}
)

// nanos is t on the wire; the zero time is 0.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// Encode is the record as it is sealed, hashed and proved.
func (r *Record) Encode() []byte {
	b, err := recordMode.Marshal(wireRecord{nanos(r.Time), (*bareRecord)(r)})
	if err != nil {
		panic("audit: a record cannot be encoded: " + err.Error()) // there is no such value of Record
	}
	return b
}

// DecodeRecord reads what Encode wrote.
func DecodeRecord(b []byte) (Record, error) {
	var r Record
	w := wireRecord{bareRecord: (*bareRecord)(&r)}
	if err := decMode.Unmarshal(b, &w); err != nil {
		return Record{}, fmt.Errorf("audit: record: %w", err)
	}
	r.Time = fromNanos(w.Time)
	return r, nil
}

// Encode is the header as it is stored and hashed. It ends with the 32 bytes of the MAC.
func (h *Header) Encode() []byte {
	b, err := headerMode.Marshal(wireHeader{nanos(h.Time), (*bareHeader)(h)})
	if err != nil {
		panic("audit: a header cannot be encoded: " + err.Error()) // there is no such value of Header
	}
	return b
}

// DecodeHeader reads what Encode wrote. It accepts no other encoding of the same header.
func DecodeHeader(b []byte) (Header, error) {
	h, err := decodeHeader(b)
	if err == nil && !bytes.Equal(h.Encode(), b) {
		err = fmt.Errorf("audit: header %d is not in its canonical encoding", h.Seq)
	}
	if err != nil {
		return Header{}, err
	}
	return h, nil
}

func decodeHeader(b []byte) (Header, error) {
	var h Header
	w := wireHeader{bareHeader: (*bareHeader)(&h)}
	if err := decMode.Unmarshal(b, &w); err != nil {
		return Header{}, fmt.Errorf("audit: header: %w", err)
	}
	h.Time = fromNanos(w.Time)
	return h, nil
}

// Hash is what the next header says of this one.
func (h *Header) Hash() Hash { return sha256.Sum256(h.Encode()) }
