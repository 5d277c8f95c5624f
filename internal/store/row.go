package store

import (
	"crypto/hmac"
	"encoding/binary"
	"errors"
)

// What a backend stores for a row is its version (8 bytes, big endian) followed by
//
//	ordinary and secret tables   the value, sealed under key and version
//	Meta                         a MAC over key, version and value (32 bytes), then the value in clear
//	Head                         the encoded header, which ends in its own MAC
//	ByPath, ByWho, Batches       nothing: their names say it all, and Verify holds them against the records
const (
	versionLen = 8
	metaMACLen = 32
)

func storedVersion(stored []byte) uint64 {
	if len(stored) < versionLen {
		return 0
	}
	return binary.BigEndian.Uint64(stored)
}

// appendStored appends to dst what is stored for value at (k, version).
func appendStored(dst []byte, c Cipher, k Key, version uint64, value []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, version)
	switch class := &classes[k.Table]; {
	case class.index:
		return dst
	case k.Table == Meta:
		mac := metaMAC(c, k, version, value)
		return append(append(dst, mac[:]...), value...)
	case class.clear:
		return append(dst, value...)
	}
	return c.Seal(dst, k, version, value)
}

// metaMAC binds a clear row to its place. Its input begins with 'r', which no encoded header begins with.
func metaMAC(c Cipher, k Key, version uint64, value []byte) [metaMACLen]byte {
	b := append(make([]byte, 0, 64+len(k.Name)+len(value)), "row:"...)
	b = append(b, byte(k.Table))
	b = binary.BigEndian.AppendUint64(b, version)
	b = binary.BigEndian.AppendUint32(b, uint32(len(k.Name)))
	b = append(b, k.Name...)
	return c.MAC(append(b, value...))
}

var errNotOpened = errors.New("does not open under its place and version")

// openStored takes apart what is stored for k; c is nil while the store is sealed, and then Meta is not verified.
// Rows of secret tables stay closed.
func openStored(c Cipher, k Key, stored []byte) (Row, error) {
	row := Row{Key: k, Version: storedVersion(stored)}
	if row.Version == 0 {
		return Row{}, &Damage{k, "it has no version"}
	}
	body := stored[versionLen:]
	class := &classes[k.Table]
	switch {
	case class.secret:
		row.sealed = body
		return row, nil
	case k.Table == Meta:
		if len(body) < metaMACLen {
			return Row{}, &Damage{k, "it is cut short"}
		}
		row.Value = body[metaMACLen:]
		if c != nil {
			if want := metaMAC(c, k, row.Version, row.Value); !hmac.Equal(want[:], body[:metaMACLen]) {
				return Row{}, &Damage{k, "it has a wrong MAC"}
			}
		}
		return row, nil
	case class.clear, class.index:
		row.Value = body
		return row, nil
	}
	if c == nil {
		return Row{}, ErrSealed
	}
	value, err := c.Open(nil, k, row.Version, body)
	if err != nil {
		return Row{}, &Damage{k, errNotOpened.Error()}
	}
	row.Value, row.sealed = value, body
	return row, nil
}
