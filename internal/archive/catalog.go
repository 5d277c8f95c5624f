package archive

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Segment is an object as its name describes it:
//
//	SET/INDEX-TIME-SEQ-PREV-HASH-point (or -part)
//
// INDEX has eight digits; TIME, of the commit that the run ends with, six places of a second; SEQ is that commit in 16 hex digits; PREV and
// HASH are 16 hex digits each of the hashes of the segment before and of the segment.
type Segment struct {
	Set   string    // its beginning, and 16 hex digits by chance
	Index uint32    // within its branch
	Time  time.Time // of the commit that its run ends with, to the microsecond
	Seq   uint64    // of that commit
	Prev  string
	Hash  string
	Point bool
	Size  int64 // of the object, in bytes; 0 if it was not listed
}

const (
	setLayout  = "20060102T150405Z"
	timeLayout = "20060102T150405.000000Z"
	none       = "0000000000000000"
)

// Name is that of the object.
func (s Segment) Name() string {
	kind := "part"
	if s.Point {
		kind = "point"
	}
	return fmt.Sprintf("%s/%08d-%s-%016x-%s-%s-%s", s.Set, s.Index, s.Time.UTC().Format(timeLayout), s.Seq, s.Prev, s.Hash, kind)
}

// ParseName reads the name of an object; false if it is none of a segment.
func ParseName(name string) (Segment, bool) {
	set, rest, _ := strings.Cut(name, "/")
	f := strings.Split(rest, "-")
	if len(f) != 6 {
		return Segment{}, false
	}
	index, err1 := strconv.ParseUint(f[0], 10, 32)
	at, err2 := time.Parse(timeLayout, f[1])
	seq, err3 := strconv.ParseUint(f[2], 16, 64)
	s := Segment{Set: set, Index: uint32(index), Time: at, Seq: seq, Prev: f[3], Hash: f[4], Point: f[5] == "point"}
	if errors.Join(err1, err2, err3) != nil || len(f[3]) != 16 || len(f[4]) != 16 || s.began().IsZero() || s.Name() != name {
		return Segment{}, false
	}
	return s, true
}

// began is when the segment's set was begun.
func (s Segment) began() time.Time {
	began, random, _ := strings.Cut(s.Set, "-")
	if t, err := time.Parse(setLayout, began); err == nil && len(random) == 16 {
		return t
	}
	return time.Time{}
}

// describe is the Segment of a header and a hash.
func describe(h *Header, hash audit.Hash) Segment {
	prev := none
	if h.Index > 0 {
		prev = hex.EncodeToString(h.Prev[:8])
	}
	return Segment{
		Set: h.Set, Index: h.Index, Time: time.Unix(0, h.Time).UTC().Truncate(time.Microsecond), Seq: h.Seq, Prev: prev, Hash: hex.EncodeToString(hash[:8]), Point: h.Point,
	}
}

// Catalog is what a destination has.
type Catalog struct {
	Points []Segment                      // at which a store can be restored, from the oldest to the newest
	Broken []string                       // what is missing, in words
	sets   map[string][]*Segment          // by index
	at     map[string]map[link][]*Segment // one each, unless names contradict each other
	whole  map[*Segment]bool              // the way to it is there
	bases  map[string]Segment
}

// link is what a segment is known by to the one after it.
type link struct {
	index uint32
	hash  string
}

// Read reads the names of all that is in a destination.
func Read(ctx context.Context, d Destination) (*Catalog, error) {
	var all []Segment
	for o, err := range d.List(ctx) {
		if err != nil {
			return nil, err
		}
		if s, ok := ParseName(o.Name); ok {
			s.Size = o.Size
			all = append(all, s)
		}
	}
	return catalog(all), nil
}

func catalog(all []Segment) *Catalog {
	c := &Catalog{sets: map[string][]*Segment{}, at: map[string]map[link][]*Segment{}, whole: map[*Segment]bool{}, bases: map[string]Segment{}}
	slices.SortFunc(all, func(a, b Segment) int {
		return cmp.Or(cmp.Compare(a.Set, b.Set), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Hash, b.Hash),
			cmp.Compare(a.Prev, b.Prev), a.Time.Compare(b.Time), cmp.Compare(a.Seq, b.Seq))
	})
	lost := map[string]bool{} // sets of which something is missing
	for i := range all {
		s := &all[i]
		if c.at[s.Set] == nil {
			c.at[s.Set] = map[link][]*Segment{}
		}
		c.sets[s.Set] = append(c.sets[s.Set], s)
		is := link{s.Index, s.Hash}
		c.at[s.Set][is] = append(c.at[s.Set][is], s)
		before := c.before(s)
		if c.whole[s] = s.Index == 0 && s.Prev == none || slices.ContainsFunc(before, func(b *Segment) bool { return c.whole[b] }); !c.whole[s] {
			if before == nil && !lost[s.Set+s.Prev] {
				lost[s.Set+s.Prev] = true
				c.Broken = append(c.Broken, fmt.Sprintf("%s: segment %d (…-%s-…) is missing: what follows it cannot be restored", s.Set, int64(s.Index)-1, s.Prev))
			}
			continue
		}
		if s.Point {
			c.Points = append(c.Points, *s)
			if _, ok := c.bases[s.Set]; !ok {
				c.bases[s.Set] = *s
			}
		}
	}
	slices.SortStableFunc(c.Points, func(a, b Segment) int {
		return cmp.Or(a.Time.Compare(b.Time), a.began().Compare(b.began()), cmp.Compare(a.Seq, b.Seq))
	})
	return c
}

// before are those that claim to be the one before s. A segment's hash binds all that its name says, so at most one of them is.
func (c *Catalog) before(s *Segment) []*Segment {
	if s.Index == 0 {
		return nil
	}
	return c.at[s.Set][link{s.Index - 1, s.Prev}]
}

// in says whether the point is one of a set, or itself that is named.
func (s Segment) in(of string) bool { return of == "" || s.Set == of || s.Name() == of }

// ErrNone is the error of a time of which there is no point.
var ErrNone = errors.New("archive: there is no backup")

// At is the last point that was reached at or before a time, of one set, of the point of that name, or ("") of all.
func (c *Catalog) At(t time.Time, of string) (Segment, error) {
	for _, p := range slices.Backward(c.Points) {
		if !p.Time.After(t) && p.in(of) {
			return p, nil
		}
	}
	switch {
	case len(c.Points) == 0 && len(c.Broken) > 0:
		return Segment{}, fmt.Errorf("%w that is whole: %s", ErrNone, strings.Join(c.Broken, "; "))
	case len(c.Points) == 0:
		return Segment{}, fmt.Errorf("%w", ErrNone)
	}
	for _, p := range c.Points {
		if p.in(of) {
			return Segment{}, fmt.Errorf("%w of that time: the first is of %s", ErrNone, p.Time.Format(time.RFC3339Nano))
		}
	}
	return Segment{}, fmt.Errorf("%w %s", ErrNone, of)
}

// Path is the way to a point: its base, and all increments up to it; nil if there is none. Where several names claim to be one segment, and
// each has a way to it, is says which does so rightly; it is not asked otherwise.
func (c *Catalog) Path(p Segment, is func(Segment) bool) []Segment {
	path := []Segment{p}
	for s := p; s.Index > 0; path = append(path, s) {
		var claims []*Segment
		for _, b := range c.before(&s) {
			if c.whole[b] {
				claims = append(claims, b)
			}
		}
		if len(claims) == 0 {
			return nil
		}
		right := 0
		if len(claims) > 1 {
			right = max(0, slices.IndexFunc(claims, func(b *Segment) bool { return is(*b) }))
		}
		s = *claims[right]
	}
	slices.Reverse(path)
	return path
}

// Base is the point of the base of a point's set.
func (c *Catalog) Base(p Segment) Segment { return c.bases[p.Set] }

// expired are the segments that may be deleted at now, in the order in which to do so, if what is needed for each time within keep
// (0: for ever) is to stay: sets that were over before that, and, once they are a day old, runs that were never ended.
//
// Names prove nothing: who may write to the destination, and not delete, must not have others delete by them. So a base is good enough to
// do without older sets only if vouched says that it is the store's own; and names that contradict each other keep all that any of them needs.
func (c *Catalog) expired(now time.Time, keep time.Duration, vouched func(Segment) bool) []Segment {
	since := now.Add(-keep)
	var needed Segment // the last base before the time to keep; without a Set: there is none
	if keep > 0 {
		needed = c.lastBase(since, vouched)
	}
	var out []Segment
	for set, segments := range c.sets {
		var newest time.Time
		for _, s := range segments {
			newest = latest(newest, s.Time)
		}
		useful := useful(segments)
		for _, s := range segments {
			over := set != needed.Set && s.began().Before(needed.began()) && !newest.After(since)
			if over || !useful[s] && now.Sub(latest(s.Time, s.began())) > abandoned {
				out = append(out, *s)
			}
		}
	}
	slices.SortFunc(out, func(a, b Segment) int {
		return cmp.Or(cmp.Compare(a.Set, b.Set), cmp.Compare(b.Index, a.Index), cmp.Compare(a.Hash, b.Hash))
	})
	return out
}

// lastBase is the last base at or before a time that is vouched for; the zero Segment if there is none.
func (c *Catalog) lastBase(at time.Time, vouched func(Segment) bool) Segment {
	bases := slices.SortedFunc(maps.Values(c.bases), func(a, b Segment) int { return b.Time.Compare(a.Time) })
	for _, base := range bases {
		if !base.Time.After(at) && vouched(base) {
			return base
		}
	}
	return Segment{}
}

// useful are those of a set's segments that lie on the way to a point.
func useful(set []*Segment) map[*Segment]bool {
	useful := map[*Segment]bool{}
	wanted := map[link]bool{}
	for _, s := range slices.Backward(set) { // later ones first
		if s.Point || wanted[link{s.Index, s.Hash}] {
			useful[s] = true
			wanted[link{s.Index - 1, s.Prev}] = true
		}
	}
	return useful
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
