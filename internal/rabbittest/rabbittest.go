// Package rabbittest gives tests a real RabbitMQ of their own, with its management API: on free loopback ports, in a temporary folder, gone when the
// test process is, however that ends.
//
// Where no RabbitMQ is installed, a test fails; under -short it skips instead, unless CI=true.
package rabbittest

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Admin is the name of the Server's administrator.
const Admin = "admin"

const password = "administrator-password"

// Server is a running RabbitMQ.
type Server struct {
	URL  string // of its management API: http://127.0.0.1:PORT
	AMQP string // host and port
	Log  string // file that the server's output goes to

	dir  string
	stop func() // stops the watch, and so the server, and removes all
	cmd  *exec.Cmd
}

var (
	sharedMu sync.Mutex
	shared   *Server
)

// Start returns the test process's server, starting it if this is the first to ask, which takes some seconds. Tests that share it keep apart by the
// names of their users and virtual hosts.
func Start(t testing.TB) *Server {
	t.Helper()
	programs := map[string]string{}
	for name, at := range map[string]string{"rabbitmq-server": "/usr/lib/rabbitmq/bin/rabbitmq-server", "epmd": ""} {
		program, err := exec.LookPath(at)
		if err != nil {
			program, err = exec.LookPath(name)
		}
		if err != nil {
			if testing.Short() && os.Getenv("CI") != "true" {
				t.Skipf("rabbittest: there is no %s (Debian: apt-get install rabbitmq-server)", name)
			}
			t.Fatalf("rabbittest: there is no %s (Debian: apt-get install rabbitmq-server); -short skips these tests", name)
		}
		programs[name] = program
	}
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if shared != nil {
		return shared
	}
	var err error
	for range 3 { // another process may take a port between finding it free and binding it
		if shared, err = start(programs["rabbitmq-server"], programs["epmd"]); err == nil {
			return shared
		}
	}
	t.Fatalf("rabbittest: %v", err)
	return nil
}

func start(server, epmd string) (*Server, error) {
	dir, err := os.MkdirTemp("/tmp", "rabbittest-")
	if err != nil {
		return nil, err
	}
	s := &Server{Log: filepath.Join(dir, "log"), dir: dir}
	if err := s.watch(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	if err := s.up(server, epmd); err != nil {
		log, _ := os.ReadFile(s.Log)
		s.stop()
		return nil, fmt.Errorf("%w\n%s", err, log)
	}
	return s, nil
}

// up starts Erlang's port mapper and the server, each as the leader of a group of processes, which the watch ends.
func (s *Server) up(server, epmd string) error {
	ports, err := free(4)
	if err != nil {
		return err
	}
	amqp, api, dist, mapper := ports[0], ports[1], ports[2], ports[3]
	s.AMQP, s.URL = "127.0.0.1:"+amqp, "http://127.0.0.1:"+api
	conf := "listeners.tcp.1 = 127.0.0.1:" + amqp + "\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = " + api +
		"\nmanagement.rates_mode = none\ncollect_statistics_interval = 1000\nloopback_users = none\ndefault_user = " + Admin + "\ndefault_pass = " + password +
		"\ndisk_free_limit.absolute = 1MB\n"
	for name, content := range map[string]string{"rabbitmq.conf": conf, "plugins": "[rabbitmq_management].\n", "env": ""} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	cookie := rand.Text()
	if err := os.WriteFile(filepath.Join(s.dir, ".erlang.cookie"), []byte(cookie), 0o400); err != nil {
		return err
	}
	out, err := os.Create(s.Log)
	if err != nil {
		return err
	}
	defer out.Close()
	env := []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "HOME=" + s.dir, "ERL_EPMD_PORT=" + mapper, "ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_NODENAME=lessor" + amqp + "@localhost", "RABBITMQ_NODE_PORT=" + amqp, "RABBITMQ_DIST_PORT=" + dist,
		"RABBITMQ_MNESIA_BASE=" + s.dir + "/mnesia", "RABBITMQ_LOG_BASE=" + s.dir + "/logs", "RABBITMQ_LOGS=-", "RABBITMQ_PID_FILE=" + s.dir + "/node.pid",
		"RABBITMQ_CONFIG_FILE=" + s.dir + "/rabbitmq.conf", "RABBITMQ_CONF_ENV_FILE=" + s.dir + "/env", "RABBITMQ_ENABLED_PLUGINS_FILE=" + s.dir + "/plugins",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
	}
	begin := func(program string, args ...string) (*exec.Cmd, error) {
		cmd := exec.Command(program, args...)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, env, out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		return cmd, os.WriteFile(filepath.Join(s.dir, filepath.Base(program)+".group"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
	}
	mapping, err := begin(epmd, "-port", mapper, "-address", "127.0.0.1")
	if err != nil {
		return err
	}
	go func() { _ = mapping.Wait() }()
	if s.cmd, err = begin(server); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- s.cmd.Wait() }()
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); {
		if s.ready() {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("the server ended: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	return errors.New("the server does not answer")
}

// ready reports whether the server lets the administrator in, at both of its doors.
func (s *Server) ready() bool {
	status, _, err := s.Call(Admin, password, http.MethodGet, "whoami", nil)
	if err != nil || status != http.StatusOK {
		return false
	}
	c, err := s.Dial(Admin, password, "/")
	if err == nil {
		c.Close()
	}
	return err == nil
}

// watch starts a shell that waits for its standard input to end, which it does when this process ends in whatever way (or by stop), and then
// takes the server down and its folder away.
func (s *Server) watch() error {
	cmd := exec.Command("/bin/sh", "-c", `read -r _
for f in "$0"/*.group; do [ -f "$f" ] && kill -s KILL -- "-$(cat "$f")" 2>/dev/null; done
for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$0" 2>/dev/null && break; sleep 0.1; done`, s.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.stop = sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Wait()
	})
	return nil
}

// free are ports that nobody listens at.
func free(n int) (ports []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}

// Password is Admin's.
func (s *Server) Password() string { return password }

// Pause stops every process of the server where it is: connections are accepted by the kernel, and nothing answers.
func (s *Server) Pause() error { return syscall.Kill(-s.cmd.Process.Pid, syscall.SIGSTOP) }

// Resume undoes Pause.
func (s *Server) Resume() error { return syscall.Kill(-s.cmd.Process.Pid, syscall.SIGCONT) }

// Call asks the management API, as an account, for a path below /api/.
func (s *Server) Call(username, password, method, path string, body any) (status int, answer []byte, err error) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		content = bytes.NewReader(b)
	}
	r, err := http.NewRequest(method, s.URL+"/api/"+path, content)
	if err != nil {
		return 0, nil, err
	}
	r.SetBasicAuth(username, password)
	client := http.Client{Timeout: 30 * time.Second}
	a, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer a.Body.Close()
	answer, err = io.ReadAll(a.Body)
	return a.StatusCode, answer, err
}

// Do is Call as the administrator, which must succeed, or find nothing: then it returns nil.
func (s *Server) Do(t testing.TB, method, path string, body any) []byte {
	t.Helper()
	status, answer, err := s.Call(Admin, password, method, path, body)
	switch {
	case err != nil:
		t.Fatalf("%s %s: %v", method, path, err)
	case status == http.StatusNotFound:
		return nil
	case status/100 != 2:
		t.Fatalf("%s %s: %d %s", method, path, status, answer)
	}
	return answer
}

// User is the path of a user.
func User(name string) string { return "users/" + url.PathEscape(name) }
