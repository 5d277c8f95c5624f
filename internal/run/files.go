package run

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
)

// files are those that hold secrets, for as long as the command runs: in a folder that only this user can enter, in memory where the system has a place for that.
type files struct {
	dir string // empty: there is none yet
}

// places are where the folder may lie, good ones first: $XDG_RUNTIME_DIR and /dev/shm are in memory.
func places(env func(string) string) []string {
	return []string{env("XDG_RUNTIME_DIR"), "/dev/shm", os.TempDir()}
}

// name is the file of a reference: the same for the same one, so that a command which reads it again finds what is new.
func (f *files) name(r Reference) string {
	sum := sha256.Sum256([]byte(r.Path + "\x00" + r.Field))
	return filepath.Join(f.dir, hex.EncodeToString(sum[:8]))
}

// put writes a file in the place of the one before, at once: nobody sees half of it.
func (f *files) put(r Reference, text string) (name string, err error) {
	if f.dir == "" {
		if err := f.make(); err != nil {
			return "", err
		}
	}
	name = f.name(r)
	file, err := os.CreateTemp(f.dir, ".new-*") // 0600
	if err != nil {
		return "", err
	}
	_, err = file.WriteString(text)
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), name)
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(file.Name()))
	}
	return name, nil
}

func (f *files) make() (err error) {
	for _, place := range places(os.Getenv) {
		if place == "" {
			continue
		}
		if f.dir, err = os.MkdirTemp(place, "lessor-run-"); err == nil { // 0700
			return nil
		}
	}
	return err
}

// remove removes all.
func (f *files) remove() error {
	if f.dir == "" {
		return nil
	}
	return os.RemoveAll(f.dir)
}
