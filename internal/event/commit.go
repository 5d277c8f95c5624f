package event

import (
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// Commit is what a commit did to what one mount keeps.
type Commit struct {
	*audit.Header
	Mount   *mount.Entry
	Touched []Touched
	records func() ([]audit.Record, error)
	acts    []audit.Record
	read    bool
}

// Touched is a row of the mount that a commit wrote or deleted.
type Touched struct {
	Touch   int // its index in the header
	Table   store.Table
	Name    string // within the mount
	Deleted bool
}

// Commits sorts by mount what a commit touched of engines' rows, in the order of the header; deleted ranges are left out. records reads what
// is on record with the commit; it is called if that is asked for.
func Commits(h *audit.Header, mounts *mount.Table, records func() ([]audit.Record, error)) []*Commit {
	var all []*Commit
	byMount := map[string]*Commit{}
	for i, t := range h.Touched {
		if table := store.Table(t.Table); t.Range || table != store.Engine && table != store.Secrets {
			continue
		}
		_, uuid, name := store.SplitMountKey(t.Name)
		c, seen := byMount[uuid]
		if !seen {
			if m := mounts.ByUUID(uuid); m != nil && !m.Removing {
				c = &Commit{Header: h, Mount: m, records: records}
				all = append(all, c)
			}
			byMount[uuid] = c
		}
		if c != nil {
			c.Touched = append(c.Touched, Touched{i, store.Table(t.Table), name, t.Deleted})
		}
	}
	return all
}

// Acts are the records of what succeeded at the mount with the commit, their paths within the mount; none if they were pruned.
func (c *Commit) Acts() ([]audit.Record, error) {
	if c.read {
		return c.acts, nil
	}
	records, err := c.records()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		path, ours := strings.CutPrefix(r.Path, c.Mount.Path)
		if r.Path = path; ours && r.ErrorKind == "" && r.Phase != audit.Begun {
			c.acts = append(c.acts, r)
		}
	}
	c.read = true
	return c.acts, nil
}

// Written is the version of what is read at a path within the mount that is in force since the commit, as is on record with it.
func (c *Commit) Written(path string) (version uint64, ok bool, err error) {
	acts, err := c.Acts()
	if err != nil {
		return 0, false, err
	}
	for i := range acts {
		shown := acts[i].Secrets
		if at := slices.IndexFunc(shown, func(s audit.Shown) bool { return s.Path == path && s.How == "written" }); at >= 0 {
			return shown[at].Version, true, nil
		}
	}
	return 0, false, nil
}
