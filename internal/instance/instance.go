// Package instance keeps which process of its holder a program is, for those that take its place later: who is killed gives nothing back, and who comes
// after it can have it ended only if servers know both as the same.
package instance

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unicode"
)

// mostName is how many bytes servers take of an instance.
const mostName = 128

// Claim is who holds a folder: of all processes one at a time. Its lock ends with the process, however that ends.
type Claim struct {
	Name string // the instance
	lock *os.File
}

// In claims a folder, which is made if it is not there. The instance is name, or, if that is empty, one that the folder keeps, which is made up at first: host, kind of program, chance.
// Nothing else is kept there, and nothing secret. An error says that another process has the folder, or that it cannot be used.
func In(folder, kind, name string) (*Claim, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(folder, "instance"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("another process uses %s", folder)
	}
	if name == "" {
		if name, err = kept(file, kind); err != nil {
			_ = file.Close()
			return nil, err
		}
	}
	return &Claim{name, file}, nil
}

// Release gives the folder up.
func (c *Claim) Release() { _ = c.lock.Close() }

// kept is the instance that a file keeps, which gets one if it has none.
func kept(file *os.File, kind string) (string, error) {
	b := make([]byte, 200)
	n, _ := file.ReadAt(b, 0)
	if text := strings.TrimSpace(string(b[:n])); text != "" {
		if len(text) > mostName || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return "", fmt.Errorf("%s holds something else", file.Name())
		}
		return text, nil
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	var chance [8]byte
	_, _ = rand.Read(chance[:]) // never fails
	text := fmt.Sprintf("%.64s/%s/%s", host, kind, hex.EncodeToString(chance[:]))
	if _, err := file.WriteAt([]byte(text+"\n"), 0); err != nil {
		return "", err
	}
	return text, file.Sync()
}
