package store

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// entry is an audit record on its way into the store.
type entry struct {
	encoded []byte
	leaf    audit.Hash
	paths   []string // keyed hashes of the paths that it is about, 8 bytes each
	who     []string // keyed hashes of entity, accessor and display name
}

func newEntry(a audit.Authority, r *audit.Record) entry {
	e := entry{encoded: r.Encode()}
	e.leaf = audit.Leaf(e.encoded)
	for _, path := range r.About() {
		e.paths = append(e.paths, lookup(a, ByPath, path))
	}
	for _, who := range [...]string{r.Entity, r.Accessor, r.Name} {
		if who != "" {
			e.who = append(e.who, lookup(a, ByWho, who))
		}
	}
	return e
}

// lookup is the keyed hash by which an audit index knows s.
func lookup(a audit.Authority, t Table, s string) string {
	h := a.Element(uint8(t), s, 0)
	return string(h[:8])
}

// dayLen, seqLen and so on are the parts of names in the audit tables: records by day, sequence and index; indexes by
// day, hash, sequence and index.
const (
	dayLen   = 4
	hashLen  = 8
	seqLen   = 8
	placeLen = 12 // sequence and index
)

func day(t time.Time) uint32 { return uint32(t.Unix() / 86400) }

func dayKey(day uint32) string {
	var b [dayLen]byte
	binary.BigEndian.PutUint32(b[:], day)
	return string(b[:])
}

// placeKey is where a record is within its day, or within its hash's part of an index.
func placeKey(seq uint64, index uint32) string {
	var b [placeLen]byte
	binary.BigEndian.PutUint64(b[:8], seq)
	binary.BigEndian.PutUint32(b[8:], index)
	return string(b[:])
}

func recordKey(day string, seq uint64, index uint32) Key {
	return Key{Records, day + placeKey(seq, index)}
}

// place takes apart the name of a record.
func place(name string) (day string, seq uint64, index uint32, err error) {
	if len(name) != dayLen+placeLen {
		return "", 0, 0, &Damage{Key{Records, name}, "it is no name of a record"}
	}
	b := []byte(name)
	return name[:dayLen], binary.BigEndian.Uint64(b[dayLen:]), binary.BigEndian.Uint32(b[dayLen+8:]), nil
}

// recordValue is what is sealed for a record: the time of its commit, then its encoding.
func recordValue(dst []byte, commit time.Time, encoded []byte) []byte {
	return append(binary.BigEndian.AppendUint64(dst, uint64(commit.UnixNano())), encoded...)
}

func splitRecord(k Key, value []byte) (commit time.Time, encoded []byte, err error) {
	if len(value) < 8 {
		return time.Time{}, nil, &Damage{k, "it is cut short"}
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(value))).UTC(), value[8:], nil
}

// record reads the record at a place (day, sequence, index).
func (s *state) record(at string) (audit.At, error) {
	row, err := s.get(Key{Records, at})
	if err != nil {
		return audit.At{}, err
	}
	if !row.Exists() {
		return audit.At{}, &Damage{row.Key, "an index names it, but it is gone"}
	}
	return decodeAt(row)
}

// decodeAt reads a row of Records.
func decodeAt(row Row) (at audit.At, err error) {
	if _, at.Seq, at.Index, err = place(row.Name); err != nil {
		return audit.At{}, err
	}
	var encoded []byte
	if at.Commit, encoded, err = splitRecord(row.Key, row.Value); err != nil {
		return audit.At{}, err
	}
	if at.Record, err = audit.DecodeRecord(encoded); err != nil {
		return audit.At{}, &Damage{row.Key, err.Error()}
	}
	return at, nil
}

// Query selects audit records. All conditions that are set must hold.
type Query struct {
	From, To time.Time // of the commit: From <= time < To; zero: open
	Path     string    // exactly
	Who      string    // entity id, accessor or display name
	Newest   bool      // newest first; else oldest first
	Limit    int       // records at most; 0: 100, and never more than 10000
	Cursor   string    // where the page before ended; "" for the first page
}

func (q *Query) matches(r *audit.At) bool {
	return (q.From.IsZero() || !r.Commit.Before(q.From)) && (q.To.IsZero() || r.Commit.Before(q.To)) &&
		(q.Path == "" || slices.Contains(r.About(), q.Path)) &&
		(q.Who == "" || r.Entity == q.Who || r.Accessor == q.Who || r.Name == q.Who)
}

// Records returns the records that q asks for and the cursor of the next page, "" if this is the last. A page may have fewer
// records than its limit and yet not be the last.
func (db *DB) Records(q Query) (records []audit.At, next string, err error) {
	s, err := db.latest()
	if err != nil {
		return nil, "", err
	}
	defer s.release()
	if s.cipher == nil {
		return nil, "", ErrSealed
	}
	if q.Limit <= 0 {
		q.Limit = 100
	}
	q.Limit = min(q.Limit, 10000)
	from, to, err := q.span(s)
	if err != nil {
		return nil, "", err
	}
	for at, err := range s.places(&q, from, to) {
		if err != nil {
			return nil, "", err
		}
		r, err := s.record(at)
		if err != nil {
			return nil, "", err
		}
		if q.matches(&r) {
			records = append(records, r)
		}
		if len(records) == q.Limit {
			return records, base64.RawURLEncoding.EncodeToString([]byte(at)), nil
		}
	}
	return records, "", nil
}

// span bounds the places that can match: from <= place < to.
func (q *Query) span(s *state) (from, to string, err error) {
	first := uint32(0)
	for e, err := range s.snap.Scan(Range{Table: Records}, false) {
		if err != nil {
			return "", "", err
		}
		first = binary.BigEndian.Uint32([]byte(e.Key.Name))
		break
	}
	last := day(s.head.Time)
	if !q.From.IsZero() {
		first = max(first, day(q.From))
	}
	if !q.To.IsZero() {
		last = min(last, day(q.To))
	}
	from, to = dayKey(first), dayKey(last+1)
	if q.Cursor == "" {
		return from, to, nil
	}
	at, err := base64.RawURLEncoding.DecodeString(q.Cursor)
	if err != nil || len(at) != dayLen+placeLen {
		return "", "", errors.New("store: the cursor is not one that a query returned")
	}
	if q.Newest {
		return from, min(to, string(at)), nil
	}
	return max(from, string(at)+"\x00"), to, nil
}

// places yields where records are that may match, in order.
func (s *state) places(q *Query, from, to string) iter.Seq2[string, error] {
	table, hash := Records, ""
	switch {
	case q.Path != "":
		table, hash = ByPath, lookup(s.cipher, ByPath, q.Path)
	case q.Who != "":
		table, hash = ByWho, lookup(s.cipher, ByWho, q.Who)
	}
	if table == Records {
		return func(yield func(string, error) bool) {
			for e, err := range s.snap.Scan(Range{Records, from, to}, q.Newest) {
				if !yield(e.Key.Name, err) || err != nil {
					return
				}
			}
		}
	}
	return func(yield func(string, error) bool) {
		for d := range days(from, to, q.Newest) {
			// The part of this day that lies between from and to.
			lo, hi := "", PrefixEnd(d+hash)
			if from[:dayLen] == d {
				lo = from[dayLen:]
			}
			if to[:dayLen] == d {
				hi = d + hash + to[dayLen:]
			}
			for e, err := range s.snap.Scan(Range{table, d + hash + lo, hi}, q.Newest) {
				if err != nil {
					yield("", err)
					return
				}
				if !yield(d+e.Key.Name[dayLen+hashLen:], nil) {
					return
				}
			}
		}
	}
}

// days yields the days from <= day <= to, as keys; to's own day only if to lies within it.
func days(from, to string, newest bool) iter.Seq[string] {
	return func(yield func(string) bool) {
		first, last := binary.BigEndian.Uint32([]byte(from)), binary.BigEndian.Uint32([]byte(to))
		if len(to) == dayLen {
			last--
		}
		for i := range int64(last) - int64(first) + 1 {
			d := first + uint32(i)
			if newest {
				d = last - uint32(i)
			}
			if !yield(dayKey(d)) {
				return
			}
		}
	}
}
