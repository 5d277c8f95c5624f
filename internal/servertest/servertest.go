// Package servertest is what it takes to give tests a real server, of whichever kind: its programs are found, it gets a temporary folder, loopback ports that
// are free and a user who is not root, it is waited for, and it is gone when the test process is, however that ends.
//
// A package for one kind (pgtest, mariatest, …) says what is in the folder, what is run, and what shows that the server answers. Linux only.
package servertest

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// Kind is a kind of server.
type Kind struct {
	Name    string         // what people call it: "MariaDB"
	Starter string         // the package that starts it: "mariatest"
	Debian  string         // the package that it comes in
	Folders []string       // where its programs are looked for before PATH, the best first
	User    string         // who runs it where root runs the tests; without such a user, nobody does. Empty: root may
	Down    syscall.Signal // ends it in an orderly way, and its sessions with it; 0: SIGTERM
	Kill    syscall.Signal // ends it as a crash does, with its children; 0: SIGKILL
}

// sbin is where programs are that not everybody's PATH leads to.
var sbin = []string{"/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin", "/usr/local/libexec"}

// Programs are paths of the server's programs. Where one is not installed, the test fails; under -short it is skipped instead, unless CI=true.
func (k Kind) Programs(t testing.TB, names ...string) []string {
	t.Helper()
	return k.OneOf(t, names)
}

// OneOf are the Programs of the first of several servers that can stand for each other, of which all are installed.
func (k Kind) OneOf(t testing.TB, servers ...[]string) []string {
	t.Helper()
	missing := ""
	for _, names := range servers {
		var paths []string
		for _, name := range names {
			if p := k.find(name); p != "" {
				paths = append(paths, p)
			} else if missing == "" {
				missing = name
			}
		}
		if len(paths) == len(names) {
			return paths
		}
	}
	if testing.Short() && os.Getenv("CI") != "true" {
		t.Skipf("%s: no %s server is installed: there is no %s (Debian: apt-get install %s)", k.Starter, k.Name, missing, k.Debian)
	}
	t.Fatalf("%s: no %s server is installed: there is no %s (Debian: apt-get install %s); -short skips these tests", k.Starter, k.Name, missing, k.Debian)
	return nil
}

// find is the path of a program; "": there is none.
func (k Kind) find(name string) string {
	for _, dir := range k.Folders {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range sbin {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	return ""
}

// Shared are the servers that the tests of a process share, one for each set of options. The zero value has none. It is safe for concurrent use.
type Shared[O comparable, S any] struct {
	mu  sync.Mutex
	all map[O]S
}

// Get is the server for these options; start starts it for the first who asks, or fails the test.
func (s *Shared[O, S]) Get(o O, start func() S) S {
	s.mu.Lock()
	defer s.mu.Unlock()
	server, ok := s.all[o]
	if !ok {
		server = start()
		if s.all == nil {
			s.all = map[O]S{}
		}
		s.all[o] = server
	}
	return server
}

// Chosen are the options that opts make, one after the other.
func Chosen[Option ~func(*O), O any](opts []Option) (o O) {
	for _, opt := range opts {
		opt(&o)
	}
	return o
}
