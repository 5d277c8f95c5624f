package store

import (
	"encoding/binary"
	"time"
)

// MaxName is the length in bytes of the longest name of a row: what an index of PostgreSQL takes.
const MaxName = 2600

// MountKey begins the name of a row that belongs to a mount: namespace id, then the mount's UUID (16 raw bytes; "" for none).
func MountKey(namespace uint32, mount string, rest ...string) string {
	n := 20
	for _, r := range rest {
		n += len(r)
	}
	b := make([]byte, 20, n)
	binary.BigEndian.PutUint32(b, namespace)
	copy(b[4:20], mount)
	for _, r := range rest {
		b = append(b, r...)
	}
	return string(b)
}

// SplitMountKey takes MountKey apart.
func SplitMountKey(name string) (namespace uint32, mount, rest string) {
	if len(name) < 20 {
		return 0, "", name
	}
	return binary.BigEndian.Uint32([]byte(name[:4])), name[4:20], name[20:]
}

// PrefixEnd is the end of the range of names that begin with prefix ("" when there is none).
func PrefixEnd(prefix string) string {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return ""
}

// Uint64Key is n in order-preserving form.
func Uint64Key(n uint64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	return string(b[:])
}

// TimeKey is t in order-preserving form, to the millisecond, rounded up: what is due at t sorts not before t.
func TimeKey(t time.Time) string {
	ms := t.UnixMilli()
	if t.After(time.UnixMilli(ms)) {
		ms++
	}
	return Uint64Key(uint64(max(ms, 0)))
}

// ParseTimeKey reads the TimeKey that name begins with.
func ParseTimeKey(name string) (t time.Time, rest string, ok bool) {
	if len(name) < 8 {
		return time.Time{}, "", false
	}
	ms := binary.BigEndian.Uint64([]byte(name[:8]))
	if ms > 1<<62 {
		return time.Time{}, "", false
	}
	return time.UnixMilli(int64(ms)).UTC(), name[8:], true
}
