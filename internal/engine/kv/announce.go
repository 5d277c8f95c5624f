package kv

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/event"
	"github.com/lessor-dev/lessor/internal/store"
)

// Announce makes the engines Announcers: who follows a secret learns of what becomes of it.
func (V1) Announce(_ store.View, c *event.Commit) (events []*event.Event, err error) {
	for _, t := range c.Touched {
		path, ok := strings.CutPrefix(t.Name, "v/")
		if !ok || t.Table != store.Secrets {
			continue
		}
		if t.Deleted {
			events = append(events, &event.Event{Type: "kv-v1/delete", Path: path, Touch: t.Touch})
			continue
		}
		events = append(events, &event.Event{Type: "kv-v1/write", Path: path, Touch: t.Touch}, rotated(path, c.Seq, t.Touch))
	}
	return events, nil
}

// rotated tells that what is read at path has a new version.
func rotated(path string, version uint64, touch int) *event.Event {
	return &event.Event{Type: event.Rotated, Path: path, Touch: touch, Metadata: map[string]string{"version": strconv.FormatUint(version, 10)}}
}

// changed is what a commit did to one secret.
type changed struct {
	path      string
	touch     int
	gone      bool     // all of it
	written   uint64   // number of the version that is new; 0: none is
	destroyed []uint64 // numbers of versions whose values went for good
}

// Announce tells what became of secrets. What did it follows from the record of who did it: the rows are the same if a version was
// deleted or brought back, if a value was written or patched. Once the records are pruned the words are less exact.
func (V2) Announce(v store.View, c *event.Commit) (events []*event.Event, err error) {
	secrets, configured, touch := changes(c)
	if len(secrets) == 0 && !configured {
		return nil, nil
	}
	acts, err := c.Acts()
	if err != nil {
		return nil, err
	}
	did := map[string]*audit.Record{} // by path within the mount
	for i := range acts {
		if a := &acts[i]; a.Operation != "read" && a.Operation != "list" {
			did[a.Path] = a
		}
	}
	if configured {
		events = append(events, &event.Event{Type: "kv-v2/config-write", Path: "config", Touch: touch})
	}
	for _, s := range secrets {
		told, err := s.tell(v, c, did)
		if err != nil {
			return nil, err
		}
		events = append(events, told...)
	}
	return events, nil
}

// changes reads from the rows that were touched what happened to which secret.
func changes(c *event.Commit) (secrets []*changed, configured bool, touch int) {
	byPath := map[string]*changed{}
	for _, t := range c.Touched {
		if path, ok := strings.CutPrefix(t.Name, "m/"); ok && t.Table == store.Engine {
			s := &changed{path: path, touch: t.Touch, gone: t.Deleted}
			secrets, byPath[path] = append(secrets, s), s
		}
		if t.Table == store.Engine && t.Name == "c" {
			configured, touch = true, t.Touch
		}
	}
	for _, t := range c.Touched {
		name, ok := strings.CutPrefix(t.Name, "v/")
		path, number, versioned := strings.Cut(name, "\x00")
		s := byPath[path]
		if !ok || !versioned || len(number) != 8 || s == nil || t.Table != store.Secrets {
			continue
		}
		if n := binary.BigEndian.Uint64([]byte(number)); t.Deleted {
			s.destroyed = append(s.destroyed, n)
		} else {
			s.written = max(s.written, n)
		}
	}
	return secrets, configured, touch
}

// tell puts into Vault's words what happened to a secret.
func (s *changed) tell(v store.View, c *event.Commit, did map[string]*audit.Record) ([]*event.Event, error) {
	if s.gone {
		return []*event.Event{{Type: "kv-v2/metadata-delete", Path: "metadata/" + s.path, Touch: s.touch}}, nil
	}
	m, _, err := load(&engine.Request{Mount: c.Mount, View: v}, s.path)
	if err != nil {
		return nil, err
	}
	if m == nil {
		m = &metadata{} // deleted since
	}
	e := &event.Event{Path: "data/" + s.path, Touch: s.touch, Metadata: map[string]string{
		"current_version": strconv.FormatUint(max(m.Current, s.written), 10), "oldest_version": strconv.FormatUint(m.Oldest, 10),
	}}
	by := func(verb string) *audit.Record { return did[verb+"/"+s.path] }
	switch data := by("data"); {
	case s.written > 0:
		e.Type = "kv-v2/data-write"
		if data != nil && data.Operation == "patch" {
			e.Type = "kv-v2/data-patch"
		}
		e.Metadata["current_version"] = strconv.FormatUint(s.written, 10)
		return []*event.Event{e, rotated(e.Path, s.written, s.touch)}, nil
	case len(s.destroyed) > 0:
		e.Type, e.Metadata["path"] = "kv-v2/destroy", "destroy/"+s.path
		e.Metadata["destroyed_versions"] = numbersOf(s.destroyed)
	case data != nil && data.Operation == "delete":
		e.Type = "kv-v2/data-delete"
	case by("delete") != nil:
		e.Type, e.Metadata["path"] = "kv-v2/delete", "delete/"+s.path
		e.Metadata["deleted_versions"] = numbersOf(m.deletedAt(by("delete").Time.UnixNano()))
	case by("undelete") != nil:
		e.Type, e.Metadata["path"] = "kv-v2/undelete", "undelete/"+s.path
	default:
		e.Type, e.Path = "kv-v2/metadata-write", "metadata/"+s.path
		if meta := by("metadata"); meta != nil && meta.Operation == "patch" {
			e.Type = "kv-v2/metadata-patch"
		}
	}
	return []*event.Event{e}, nil
}

// deletedAt are the numbers of the versions that were deleted at a time.
func (m *metadata) deletedAt(ns int64) (numbers []uint64) {
	for i := range m.Versions {
		if m.Versions[i].Deleted == ns {
			numbers = append(numbers, max(m.Oldest, 1)+uint64(i))
		}
	}
	return numbers
}

// numbersOf is a list as Vault writes them into metadata: "[2,3]".
func numbersOf(numbers []uint64) string { return strings.ReplaceAll(fmt.Sprint(numbers), " ", ",") }
