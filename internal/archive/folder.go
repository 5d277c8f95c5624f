package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Folder is a Destination in a folder, which it makes if need be. Files appear under their names once they are whole and synced;
// they and folders are readable by their owner only.
type Folder string

// String implements Destination.
func (f Folder) String() string { return "file://" + string(f) }

// unfinished begins the names of files that are being written.
const unfinished = ".unfinished-"

// abandoned is how old an unfinished file is whose writer is gone.
const abandoned = 24 * time.Hour

// List implements Destination. It removes what writers that died left long ago.
func (f Folder) List(ctx context.Context) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		sets, err := os.ReadDir(string(f))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			yield(Object{}, err)
			return
		}
		for _, set := range sets {
			if !set.IsDir() {
				continue
			}
			files, err := os.ReadDir(filepath.Join(string(f), set.Name()))
			if err == nil {
				err = ctx.Err()
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				yield(Object{}, err)
				return
			}
			for _, file := range files {
				info, err := file.Info()
				if err != nil || !info.Mode().IsRegular() {
					continue // it was deleted meanwhile, or is none of ours
				}
				if strings.HasPrefix(file.Name(), unfinished) {
					if time.Since(info.ModTime()) > abandoned {
						_ = os.Remove(filepath.Join(string(f), set.Name(), file.Name()))
					}
					continue
				}
				if !yield(Object{set.Name() + "/" + file.Name(), info.Size()}, nil) {
					return
				}
			}
		}
	}
}

func (f Folder) path(name string) (string, error) {
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("archive: %q is no name of an object", name)
	}
	return filepath.Join(string(f), filepath.FromSlash(name)), nil
}

// Read implements Destination.
func (f Folder) Read(_ context.Context, name string) ([]byte, error) {
	path, err := f.path(name)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrGone, name)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	return bounded(file, name)
}

// bounded reads an object to its end.
func bounded(r io.Reader, name string) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, largest+1))
	if err == nil && len(content) > largest {
		err = fmt.Errorf("archive: %s is larger than any segment", name)
	}
	return content, err
}

// Write implements Destination.
func (f Folder) Write(ctx context.Context, name string, content []byte) error {
	path, err := f.path(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	dir := filepath.Dir(path)
	if err := f.make(dir); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, unfinished)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(content)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close(), ctx.Err()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// make makes a set's folder, durably.
func (f Folder) make(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if dir == string(f) {
		return nil
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Delete implements Destination. The folder of a set goes with its last file.
func (f Folder) Delete(_ context.Context, name string) error {
	path, err := f.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if dir := filepath.Dir(path); dir != string(f) {
		_ = os.Remove(dir) // fails while there is something in it
	}
	return nil
}
