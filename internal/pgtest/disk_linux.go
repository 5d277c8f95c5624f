package pgtest

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Root reports whether this process may mount what Disk asks for.
func Root() bool { return os.Getuid() == 0 }

// attach mounts the disk of s at its folder of data.
func (s *Server) attach() error {
	owner := ""
	if who := s.Credential(); who != nil {
		owner = fmt.Sprintf(",uid=%d,gid=%d", who.Uid, who.Gid)
	}
	if err := syscall.Mount("pgtest", s.data(), "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700%s", s.disk, owner)); err != nil {
		return fmt.Errorf("mounting a disk for PostgreSQL: %w", err)
	}
	return nil
}

// Fill leaves so many bytes free on the disk of s, until Free.
func (s *Server) Fill(free int64) error {
	var at syscall.Statfs_t
	if err := syscall.Statfs(s.data(), &at); err != nil {
		return err
	}
	return s.resize(int64(at.Blocks-at.Bfree)*at.Bsize + free)
}

// Free undoes Fill. A server that ended since then has to be brought Up.
func (s *Server) Free() error { return s.resize(s.disk) }

func (s *Server) resize(bytes int64) error {
	if s.disk == 0 {
		return errors.New("pgtest: this server has no disk of its own")
	}
	return syscall.Mount("pgtest", s.data(), "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", bytes))
}
