package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/internal/archive"
	"github.com/lessor-dev/lessor/internal/config"
)

// exists reports whether there is something at path; an unreadable folder counts, so that nothing is made over it.
func exists(path string) bool {
	if path == "" {
		return false
	}
	_, err := os.Lstat(path)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}

// emptyFolder reports whether there is no data at path. What the system puts into the root of a fresh disk is none.
func emptyFolder(path string) (bool, error) {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("refusing to start: the data folder cannot be read: %w", err)
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return false, nil
		}
	}
	return true, nil
}

// promote gives a new key file its name, which nothing may have yet.
func promote(file string) error {
	if err := os.Link(file+newSuffix, file); err != nil {
		return fmt.Errorf("the new key cannot take its place: %w; it is in %s: move it to %s", err, file+newSuffix, file)
	}
	if err := os.Remove(file + newSuffix); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(file))
}

// writePrivate replaces the file at path by one that only its owner can read, durably and at once.
func writePrivate(path, text string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncFolder(dir)
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// private are the files and folders of lessor's own, in which nothing that somebody names by API may be written.
func (n *Node) private() []string {
	all := []string{n.config.Storage.Path, n.config.PIDFile}
	if anchor := n.config.Seal.Anchor; anchor != "" {
		key := strings.TrimSuffix(anchor, config.AnchorSuffix)
		all = append(all, anchor, anchor+".old", key, key+newSuffix, n.recoveryFile(), n.recoveryFile()+newSuffix,
			filepath.Join(filepath.Dir(anchor), "bootstrap-token"), key+".bootstrap-token")
	}
	if key := n.config.Seal.KeyFile; key != "" {
		all = append(all, key, key+newSuffix)
	}
	if file := n.config.Seal.Recovery.PassphraseFile; file != "" {
		all = append(all, file)
	}
	if folder, ok := n.destination.(archive.Folder); ok {
		all = append(all, string(folder))
	}
	for _, l := range n.config.Listeners {
		all = append(all, l.CertFile, l.KeyFile, l.ClientCAFile)
	}
	return slices.DeleteFunc(all, func(path string) bool { return path == "" })
}
