package pebble

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// foundPrefix is before the names under which a start keeps the logs that it found.
const foundPrefix = "found-"

// found is what a start finds in the folder. Pebble takes a damaged end of a log for one that was never written, and removes
// the log once it has read it. So each log gets a second name first, which goes with the first write: by then whoever opened the
// store has compared its head with the anchor. After a refusal, what was there is still there.
type found struct {
	fs       vfs.FS
	dir      string
	manifest string   // that the folder's marker names; empty in a new folder
	logs     []string // oldest first; those of a start that was refused before, if there was one
	kept     bool
}

// look finds what is in the folder, before Pebble does. A folder with data, but without the file that says which of it
// counts, is refused: Pebble would begin anew there, and remove the rest.
func look(fs vfs.FS, dir string) (*found, error) {
	names, err := fs.List(dir)
	if err != nil && !errors.Is(err, fsNotExist) {
		return nil, err
	}
	slices.Sort(names)
	f := &found{fs: fs, dir: dir}
	var data string
	var before []string
	for _, name := range names {
		switch {
		case strings.HasPrefix(name, foundPrefix):
			before = append(before, name)
		case strings.HasPrefix(name, "marker.manifest."):
			f.manifest = name[strings.LastIndexByte(name, '.')+1:]
		case strings.HasSuffix(name, ".log"):
			f.logs, data = append(f.logs, name), name
		case strings.HasSuffix(name, ".sst"), strings.HasPrefix(name, "MANIFEST-"):
			data = name
		}
	}
	if f.manifest == "" && data != "" {
		return nil, fmt.Errorf("%s has data (%s), but its file marker.manifest.… is missing: it was removed, or the copy of the folder is not complete", dir, data)
	}
	if len(before) > 0 {
		f.logs, f.kept = before, true
		return f, nil
	}
	return f, nil
}

var fsNotExist = fs.ErrNotExist

// keep gives the logs their second names.
func (f *found) keep() error {
	if f.kept {
		return nil
	}
	for _, name := range f.logs {
		if err := f.fs.Link(f.fs.PathJoin(f.dir, name), f.fs.PathJoin(f.dir, foundPrefix+name)); err != nil {
			return fmt.Errorf("keeping the log %s: %w", name, err)
		}
	}
	f.kept = true
	return nil
}

// drop takes the second names away.
func (f *found) drop() {
	if !f.kept {
		return
	}
	f.kept = false
	for _, name := range f.logs {
		_ = f.fs.Remove(f.fs.PathJoin(f.dir, foundPrefix+strings.TrimPrefix(name, foundPrefix)))
	}
}

// String says where the data is, for an error that tells that it is not whole.
func (f *found) String() string {
	switch {
	case len(f.logs) > 0:
		return fmt.Sprintf("the data folder %s, whose newest log, %s, may be cut short or damaged", f.dir, strings.TrimPrefix(f.logs[len(f.logs)-1], foundPrefix))
	case f.manifest != "":
		return fmt.Sprintf("the data folder %s, whose log is missing", f.dir)
	}
	return "the data folder " + f.dir
}
