package run

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// files are those that hold secrets, for as long as the command runs: in a folder that only this user can enter, in memory where the system has a place for that. If
// this process is killed, the next one that makes a folder removes this one, once the command has ended as well.
type files struct {
	dir  string   // empty: there is none yet
	lock *os.File // the folder, locked for as long as this process lives
}

const (
	folders = "lessor-run-"
	reader  = ".command" // file with the id of the process that reads the others
)

// places are where the folder may lie, good ones first: $XDG_RUNTIME_DIR and /dev/shm are in memory.
func places(env func(string) string) []string {
	return []string{env("XDG_RUNTIME_DIR"), "/dev/shm", os.TempDir()}
}

// name is the file of a reference: the same for the same one, so that a command which reads it again finds what is new.
func (f *files) name(r Reference) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d", r.Path, r.Field, r.Version))
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
		if f.dir, f.lock, err = folder(place); err == nil {
			sweep(place)
			return nil
		}
	}
	return err
}

// folder makes and locks one.
func folder(place string) (dir string, lock *os.File, err error) {
	for {
		if dir, err = os.MkdirTemp(place, folders); err != nil { // 0700
			return "", nil, err
		}
		if lock, err = os.Open(dir); err == nil {
			if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err == nil {
				if _, err = os.Lstat(dir); err == nil {
					return dir, lock, nil
				}
			}
			_ = lock.Close()
		}
		if !errors.Is(err, os.ErrNotExist) { // else it was swept before it was locked
			return "", nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
}

// sweep removes what was left by processes that were killed: folders of this user that nobody has locked, and whose command has ended.
func sweep(place string) {
	left, err := filepath.Glob(filepath.Join(place, folders+"*"))
	if err != nil {
		return
	}
	for _, dir := range left {
		lock, err := os.OpenFile(dir, syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if info, err := lock.Stat(); err == nil && info.Sys().(*syscall.Stat_t).Uid == uint32(os.Geteuid()) &&
			syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil && !inUse(dir) {
			_ = os.RemoveAll(dir)
		}
		_ = lock.Close()
	}
}

// inUse reports whether the command that a folder is for may be running.
func inUse(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, reader))
	pid, malformed := strconv.Atoi(string(text))
	return err == nil && malformed == nil && pid > 0 && (syscall.Kill(pid, 0) != syscall.ESRCH || syscall.Kill(-pid, 0) != syscall.ESRCH)
}

// readBy says which process reads the files, or is the first of the group that does.
func (f *files) readBy(pid int) error {
	if f.dir == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(f.dir, reader), []byte(strconv.Itoa(pid)), 0o600)
}

// remove removes all.
func (f *files) remove() error {
	if f.dir == "" {
		return nil
	}
	return errors.Join(os.RemoveAll(f.dir), f.lock.Close())
}
