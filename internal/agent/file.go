package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// owner is whose a file is to be.
type owner struct {
	mode        os.FileMode
	user, group int // ids; -1: as it comes
}

// owner is whose the template's file is to be: as configured, else as the file is that info is about, nil if there is none, else the agent's alone. An error refuses to give a secret to whoever has put
// a file in its place.
func (t *template) owner(info os.FileInfo) (owner, error) {
	to := owner{mode: t.Mode, user: -1, group: -1}
	if to.mode == 0 && info != nil {
		folder, err := os.Stat(filepath.Dir(t.Destination))
		if err != nil {
			return to, err
		}
		if planted(folder, info) {
			return to, fmt.Errorf("%s may be anybody's, since anybody may write to its folder, and who may read it would get the secret: set perms, or remove it", t.Destination)
		}
		to.mode = info.Mode().Perm()
		to.user, to.group = idsOf(info)
	}
	if to.mode == 0 {
		to.mode = 0o600
	}
	var err error
	if t.User != "" {
		if to.user, err = userID(t.User); err != nil {
			return to, err
		}
	}
	if t.Group != "" {
		to.group, err = groupID(t.Group)
	}
	return to, err
}

// planted reports whether a file may have been put into its folder by whoever has a use for that: all may write to the folder, and the file is neither the folder's owner's nor this process's, or
// others than its owner may read it. Such a one, of the system's, say, may be moved or linked there by who does not own it.
func planted(folder, file os.FileInfo) bool {
	of, _ := idsOf(folder)
	user, _ := idsOf(file)
	return folder.Mode().Perm()&0o002 != 0 && (user != of && user != os.Geteuid() || file.Mode().Perm()&0o077 != 0)
}

// userID is a user's id, by name or number.
func userID(name string) (int, error) {
	if id, err := strconv.Atoi(name); err == nil && id >= 0 {
		return id, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return -1, err
	}
	return strconv.Atoi(u.Uid)
}

// groupID is a group's id, by name or number.
func groupID(name string) (int, error) {
	if id, err := strconv.Atoi(name); err == nil && id >= 0 {
		return id, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return -1, err
	}
	return strconv.Atoi(g.Gid)
}

// largestFile bounds what is read of a file that others may write to.
const largestFile = 64 << 20

// readPlain reads a plain file, and what there is to know of it; text is nil if there is none. Where somebody has put anything else, a link to what he may not read, say, it is not followed.
func readPlain(name string) (text []byte, info os.FileInfo, err error) {
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil, nil
	case errors.Is(err, syscall.ELOOP):
		return nil, nil, notPlain(name)
	case err != nil:
		return nil, nil, err
	}
	defer func() { _ = file.Close() }()
	if info, err = file.Stat(); err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, notPlain(name)
	}
	if info.Size() > largestFile {
		return nil, nil, fmt.Errorf("%s is larger than %d MiB, and is not replaced", name, largestFile>>20)
	}
	text, err = io.ReadAll(io.LimitReader(file, largestFile))
	return text, info, err
}

func notPlain(name string) error {
	return fmt.Errorf("%s is not a plain file, and is not replaced", name)
}

// writeFile puts a file in the place of another at once: nobody sees half of it, and nobody it who may not. It is durable when writeFile returns.
func writeFile(name string, text []byte, to owner) (err error) {
	if info, err := os.Lstat(name); err == nil && !info.Mode().IsRegular() {
		return notPlain(name)
	}
	file, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".new-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(file.Name())
		}
	}()
	_, err = file.Write(text)
	if uid, gid := to.user, to.group; err == nil && (uid >= 0 || gid >= 0) {
		if info, failed := file.Stat(); failed == nil {
			if hasUID, hasGID := idsOf(info); uid != hasUID && uid >= 0 || gid != hasGID && gid >= 0 {
				err = file.Chown(uid, gid)
			}
		}
	}
	if err == nil {
		err = file.Chmod(to.mode)
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err = os.Rename(file.Name(), name); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

func makeFolders(file string) error { return os.MkdirAll(filepath.Dir(file), 0o755) }

// markOf is the file beside another that says that its program is yet to be told.
func markOf(file string) string {
	return filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".untold")
}

// writePID writes the process's number, and returns what removes it.
func writePID(file string) (remove func(), err error) {
	if file == "" {
		return func() {}, nil
	}
	if err := writeFile(file, []byte(strconv.Itoa(os.Getpid())+"\n"), owner{mode: 0o644, user: -1, group: -1}); err != nil {
		return nil, fmt.Errorf("pid_file: %w", err)
	}
	return func() { _ = os.Remove(file) }, nil
}
