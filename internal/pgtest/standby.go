package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Disk gives the data of a server a file system of its own, in memory, of so many bytes, which Fill fills. It takes root, on Linux: see Root.
func Disk(bytes int64) Option { return func(o *options) { o.disk = bytes } }

// StandbyName is what standbys call themselves: synchronous_standby_names of a server that shall wait for them.
const StandbyName = "lessor_standby"

// Standby makes a copy of s, on a port of its own, that follows it; port is where it reaches s, 0: directly. Until Synchronous was called on
// s it does not wait for its standby; the copy, once it is promoted, always waits for one of its own. Like a server from Own, it is removed when the test ends.
func (s *Server) Standby(t testing.TB, port int) (*Server, error) {
	if port == 0 {
		port = s.Port
	}
	copied, err := launch(s.bin, s.disk, func(c *Server) error { return c.copy(s, port) })
	if err != nil {
		return nil, err
	}
	t.Cleanup(copied.Discard)
	return copied, nil
}

// copy fills the folder of c with a base backup of s.
func (c *Server) copy(s *Server, port int) error {
	pass := filepath.Join(c.Dir, "pgpass")
	if err := errors.Join(c.mount(), c.Write(pass, []byte("*:*:*:"+Superuser+":"+password+"\n"))); err != nil {
		return err
	}
	cmd := c.program("pg_basebackup", "-D", c.data(), "-h", s.Host, "-p", strconv.Itoa(s.Port), "-U", Superuser,
		"-X", "stream", "-c", "fast", "--no-sync")
	cmd.Env = append(cmd.Env, "PGPASSFILE="+pass)
	if err := c.Do(cmd); err != nil {
		return err
	}
	return errors.Join(c.Write(filepath.Join(c.data(), "standby.signal"), nil), c.Append(filepath.Join(c.data(), "postgresql.auto.conf"), fmt.Sprintf("unix_socket_directories = '%s'\nsynchronous_standby_names = '%s'\nprimary_conninfo = 'host=%s port=%d user=%s passfile=''%s'' application_name=%s connect_timeout=2'\n",
		c.Socket, StandbyName, s.Host, port, Superuser, pass, StandbyName)))
}

// mount mounts the disk of s, if it has one to itself.
func (s *Server) mount() error {
	if s.disk == 0 {
		return nil
	}
	if err := os.Mkdir(s.data(), 0o700); err != nil {
		return err
	}
	return s.attach()
}

// Synchronous makes s wait for its standby with each commit.
func (s *Server) Synchronous(ctx context.Context) error {
	c, err := s.Login(ctx, Superuser, password, "")
	if err != nil {
		return err
	}
	defer c.Close(context.Background())
	for _, sql := range []string{"SET synchronous_commit = local", "ALTER SYSTEM SET synchronous_standby_names = '" + StandbyName + "'", "SELECT pg_reload_conf()"} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// Promote makes a standby take writes, and returns when it does.
func (s *Server) Promote() error {
	return s.Do(s.program("pg_ctl", "promote", "-D", s.data(), "-w", "-t", "60", "-s"))
}

// Crash ends every process of the server at once with SIGKILL, as the end of its machine does. Up starts it again.
func (s *Server) Crash() error {
	if err := s.Daemon.Crash(); err != nil {
		return err
	}
	for _, lock := range []string{filepath.Join(s.Socket, fmt.Sprintf(".s.PGSQL.%d.lock", s.Port)), filepath.Join(s.data(), "postmaster.pid")} {
		if err := os.Remove(lock); err != nil && !errors.Is(err, fs.ErrNotExist) { // another process may have the numbers in them by then
			return err
		}
	}
	return nil
}

// CrashBackend ends one process that serves a session of a user with SIGKILL, which makes the server end all sessions and recover. Without
// such a process it does nothing, and returns false.
func (s *Server) CrashBackend(name string) (bool, error) {
	pid, err := s.backend(name)
	if pid == 0 || err != nil {
		return false, err
	}
	return true, syscall.Kill(pid, syscall.SIGKILL)
}

// PauseBackend stops one process that serves a session of a user where it is, with whatever locks it holds, until resume, which may be called
// at any time. Without such a process it does nothing.
func (s *Server) PauseBackend(name string) (resume func(), err error) {
	pid, err := s.backend(name)
	if pid == 0 || err != nil {
		return func() {}, err
	}
	return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }, syscall.Kill(pid, syscall.SIGSTOP)
}

// backend is a process that serves a session of a user; 0: there is none.
func (s *Server) backend(name string) (int, error) {
	pid, err := s.PID()
	if err != nil {
		return 0, err
	}
	for _, p := range children(pid) {
		title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
		if err == nil && bytes.HasPrefix(title, []byte("postgres: "+name+" ")) {
			return p, nil
		}
	}
	return 0, nil
}

func children(pid int) (all []int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, f := range strings.Fields(string(b)) {
		if child, err := strconv.Atoi(f); err == nil {
			all = append(all, child)
		}
	}
	return all
}
