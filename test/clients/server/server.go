// Package server starts what the clients' tests talk to: the lessor binary, as its users start it, and a private PostgreSQL.
package server

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Root is the root token of a server that Start started.
const Root = "root-of-the-test"

// Start runs "lessor server -dev" until the test ends and returns its address.
func Start(t testing.TB) string {
	t.Helper()
	return Run(t, "-dev", "-dev-root-token-id="+Root, "-dev-listen-address=127.0.0.1:0", "-dev-no-store-token").Address
}

// Server is a lessor under way.
type Server struct {
	Address string // URL
	t       testing.TB
	cmd     *exec.Cmd
	ended   bool
}

// Run runs "lessor server" with these arguments until the test ends, or until it is stopped or killed.
func Run(t testing.TB, args ...string) *Server {
	t.Helper()
	bin, err := filepath.Abs("../../../bin/lessor")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		build := exec.Command("go", "build", "-o", bin, "./cmd/lessor")
		build.Dir = filepath.Dir(filepath.Dir(bin))
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building lessor: %v\n%s", err, out)
		}
	}
	cmd := exec.Command(bin, append([]string{"server"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = &lines{t: t}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, cmd: cmd}
	t.Cleanup(s.Stop)
	found := make(chan string, 1)
	go func() {
		s := bufio.NewScanner(out)
		addr := ""
		for s.Scan() {
			if text, ok := strings.CutPrefix(strings.TrimSpace(s.Text()), "Listener Address:"); ok {
				addr = strings.TrimSpace(text)
			}
			if strings.Contains(s.Text(), "lessor server started!") {
				found <- addr
			}
		}
	}()
	select {
	case s.Address = <-found:
		return s
	case <-time.After(30 * time.Second):
		t.Fatal("the server did not say where it listens")
		return nil
	}
}

// Stop ends the server in order.
func (s *Server) Stop() {
	if s.ended {
		return
	}
	s.ended = true
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("the server did not end cleanly: %v", err)
	}
}

// Kill ends it at once, as a power cut would end its process.
func (s *Server) Kill() {
	s.ended = true
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// lines sends the server's log to the test's.
type lines struct{ t testing.TB }

func (l *lines) Write(b []byte) (int, error) {
	_, _ = os.Stderr.Write(b)
	return len(b), nil
}

// Postgres runs a private PostgreSQL until the test ends and returns a URL of its superuser.
func Postgres(t testing.TB) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	slices.Sort(found)
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			found = append(found, real)
		}
	}
	if len(found) == 0 {
		if testing.Short() && os.Getenv("CI") != "true" {
			t.Skip("PostgreSQL is not installed")
		}
		t.Fatal("PostgreSQL is not installed: run make servers")
	}
	bin := filepath.Dir(found[len(found)-1])
	dir, err := os.MkdirTemp("", "lessor-clients")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGINT}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir, cmd.SysProcAttr = dir, attr
		return cmd
	}
	if out, err := run("initdb", "-D", dir+"/data", "-U", "admin", "-A", "trust", "-E", "UTF8", "--locale=C", "-N").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	const access = "host all admin 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n" // passwords count, but the superuser's
	if err := os.WriteFile(dir+"/data/pg_hba.conf", []byte(access), 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	pg := run("postgres", "-D", dir+"/data", "-p", strconv.Itoa(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off")
	if err := pg.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = pg.Process.Signal(syscall.SIGINT)
		_ = pg.Wait()
	})
	url := fmt.Sprintf("postgresql://admin@127.0.0.1:%d/postgres?sslmode=disable", port)
	for range 200 {
		conn, err := pgx.Connect(context.Background(), url)
		if err == nil {
			conn.Close(context.Background())
			return url
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("PostgreSQL did not start")
	return ""
}
