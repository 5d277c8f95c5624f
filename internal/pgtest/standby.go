package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Disk gives the data of a server a file system of its own, in memory, of so many bytes, which Fill fills. It takes root: see Root.
func Disk(bytes int64) Option { return func(o *options) { o.disk = bytes } }

// Root reports whether this process may mount what Disk asks for.
func Root() bool { return os.Getuid() == 0 }

// StandbyName is what standbys call themselves: synchronous_standby_names of a server that shall wait for them.
const StandbyName = "lessor_standby"

// Standby makes a copy of s, on a port of its own, that follows it; port is where it reaches s, 0: directly. Until Synchronous was called on
// s it does not wait for its standby; the copy, once it is promoted, always waits for one of its own. Like a server from Own, it is removed when the test ends.
func (s *Server) Standby(t testing.TB, port int) (*Server, error) {
	if port == 0 {
		port = s.Port
	}
	copied, err := launch(s.bin, options{own: true, disk: s.disk}, func(c *Server) error { return c.copy(s, port) })
	if err != nil {
		return nil, err
	}
	t.Cleanup(copied.stop)
	return copied, nil
}

// copy fills the folder of c with a base backup of s.
func (c *Server) copy(s *Server, port int) error {
	if err := c.settle(); err != nil {
		return err
	}
	pass := filepath.Join(c.dir, "pgpass")
	if err := c.write(pass, []byte("*:*:*:"+Superuser+":"+password+"\n")); err != nil {
		return err
	}
	cmd := c.command(filepath.Join(c.bin, "pg_basebackup"), "-D", c.data(), "-h", s.Host, "-p", strconv.Itoa(s.Port), "-U", Superuser,
		"-X", "stream", "-c", "fast", "--no-sync")
	cmd.Env = append(cmd.Env, "PGPASSFILE="+pass)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_basebackup: %w\n%s", err, out)
	}
	if err := c.write(filepath.Join(c.data(), "standby.signal"), nil); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(c.data(), "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "unix_socket_directories = '%s'\nsynchronous_standby_names = '%s'\nprimary_conninfo = 'host=%s port=%d user=%s passfile=''%s'' application_name=%s connect_timeout=2'\n",
		c.Socket, StandbyName, s.Host, port, Superuser, pass, StandbyName)
	return errors.Join(err, f.Close())
}

// settle makes the folder of s its own, and mounts its disk.
func (s *Server) settle() error {
	if s.cred != nil {
		if err := os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			return err
		}
	}
	if s.disk == 0 {
		return nil
	}
	if err := os.Mkdir(s.data(), 0o700); err != nil {
		return err
	}
	owner := ""
	if s.cred != nil {
		owner = fmt.Sprintf(",uid=%d,gid=%d", s.cred.Uid, s.cred.Gid)
	}
	if err := syscall.Mount("pgtest", s.data(), "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700%s", s.disk, owner)); err != nil {
		return fmt.Errorf("mounting a disk for PostgreSQL: %w", err)
	}
	return nil
}

// Fill leaves so many bytes free on the disk of s, until Free.
func (s *Server) Fill(free int64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.data(), &fs); err != nil {
		return err
	}
	return s.resize(int64(fs.Blocks-fs.Bfree)*fs.Bsize + free)
}

// Free undoes Fill. A server that ended since then has to be brought Up.
func (s *Server) Free() error { return s.resize(s.disk) }

func (s *Server) resize(bytes int64) error {
	if s.disk == 0 {
		return errors.New("pgtest: this server has no disk of its own")
	}
	return syscall.Mount("pgtest", s.data(), "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", bytes))
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
	s.mu.Lock()
	defer s.mu.Unlock()
	out, err := s.command(filepath.Join(s.bin, "pg_ctl"), "promote", "-D", s.data(), "-w", "-t", "60", "-s").CombinedOutput()
	if err != nil {
		return fmt.Errorf("promoting PostgreSQL: %w\n%s", err, out)
	}
	return nil
}

// Alive reports whether the server's first process is there, be it paused.
func (s *Server) Alive() bool {
	pid, err := s.postmaster()
	return err == nil && alive(pid)
}

// Crash ends every process of the server at once with SIGKILL, as the end of its machine does. Up starts it again.
func (s *Server) Crash() error {
	pid, err := s.postmaster()
	if err != nil || !alive(pid) {
		return nil
	}
	_ = syscall.Kill(pid, syscall.SIGSTOP) // so that it has no more children
	all := append(children(pid), pid)
	for _, p := range all {
		_ = syscall.Kill(p, syscall.SIGKILL)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		left := 0
		for _, p := range all {
			if alive(p) {
				left++
			}
		}
		if left == 0 { // init may not have noticed yet, but PostgreSQL would take its zombie for a server
			_ = os.Remove(filepath.Join(s.Socket, fmt.Sprintf(".s.PGSQL.%d.lock", s.Port)))
			return os.Remove(filepath.Join(s.data(), "postmaster.pid"))
		}
	}
	return errors.New("PostgreSQL did not die")
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
	pid, err := s.postmaster()
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

// Discard ends the server for good, as the end of the test does.
func (s *Server) Discard() { s.stop() }

func (s *Server) postmaster() (int, error) {
	b, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strconv.Atoi(strings.TrimSpace(line))
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

// alive reports whether there is such a process that has not ended.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}
