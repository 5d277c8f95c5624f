//go:build !linux

package pgtest

import "errors"

var errDisk = errors.New("pgtest: a server has a disk of its own on Linux only")

// Root reports whether this process may mount what Disk asks for.
func Root() bool { return false }

func (s *Server) attach() error { return errDisk }

// Fill leaves so many bytes free on the disk of s, until Free.
func (s *Server) Fill(int64) error { return errDisk }

// Free undoes Fill. A server that ended since then has to be brought Up.
func (s *Server) Free() error { return errDisk }
