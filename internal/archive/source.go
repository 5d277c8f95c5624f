package archive

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// Source is a store.Source: the way to one point of a destination. It takes the memory of one segment.
type Source struct {
	Point    Segment
	Progress func(done, total int64) // bytes; may be nil
	path     []Segment
	from     Destination
	last     *segment
}

// NewSource is the source of a point of the catalog of d. It reads nothing, unless somebody put names there that contradict each other.
func NewSource(ctx context.Context, d Destination, c *Catalog, p Segment) *Source {
	path := c.Path(p, func(s Segment) bool {
		_, err := load(ctx, d, &s)
		return err == nil
	})
	return &Source{Point: p, path: path, from: d}
}

// Size is what is read for it: segments, and bytes.
func (s *Source) Size() (segments int, bytes int64) {
	for i := range s.path {
		bytes += s.path[i].Size
	}
	return len(s.path), bytes
}

// Fill implements store.Source. Its error names the segment that is missing, damaged or not where it belongs.
func (s *Source) Fill(ctx context.Context, f *store.Filling) error {
	_, total := s.Size()
	var done int64
	s.last = nil
	for i := range s.path {
		at, err := load(ctx, s.from, &s.path[i])
		if err != nil {
			return err
		}
		if err := at.follows(s.last); err != nil {
			return fmt.Errorf("archive: %s: %w", s.path[i].Name(), err)
		}
		write := f.Follow
		if at.Base {
			write = f.Set
		}
		if err := at.each(write); err != nil {
			return fmt.Errorf("archive: %s: %w", s.path[i].Name(), err)
		}
		at.rows = nil
		s.last = at
		if done += s.path[i].Size; s.Progress != nil {
			s.Progress(done, total)
		}
	}
	if s.last == nil || !s.last.Point || describe(&s.last.Header, s.last.hash).Name() != s.Point.Name() {
		return errors.New("archive: there is no way to this point")
	}
	return nil
}

// Authentic implements store.Source. The last segment vouches for those before it.
func (s *Source) Authentic(c store.Cipher) error {
	if !s.last.authentic(c) {
		return fmt.Errorf("archive: %s was not made under these keys, or was altered", s.Point.Name())
	}
	return nil
}

// readings is how often a segment is asked for that cannot be read.
const readings = 5

// load reads a segment, which must be what its name says.
func load(ctx context.Context, d Destination, s *Segment) (*segment, error) {
	content, err := d.Read(ctx, s.Name())
	for i := 1; err != nil && i < readings && ctx.Err() == nil && !errors.Is(err, ErrGone); i++ {
		select {
		case <-time.After(time.Duration(i) * 200 * time.Millisecond):
			content, err = d.Read(ctx, s.Name())
		case <-ctx.Done():
		}
	}
	if err != nil {
		return nil, err
	}
	at, err := parse(content)
	if err != nil {
		return nil, fmt.Errorf("archive: %s: %w", s.Name(), err)
	}
	if is := describe(&at.Header, at.hash); is.Name() != s.Name() {
		return nil, fmt.Errorf("archive: %s: %w: it is %s", s.Name(), errDamaged, is.Name())
	}
	return at, nil
}
