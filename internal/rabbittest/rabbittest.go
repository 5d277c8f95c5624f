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
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/servertest"
)

// Admin is the name of the Server's administrator.
const Admin = "admin"

const password = "administrator-password"

// Server is a running RabbitMQ.
type Server struct {
	*servertest.Daemon
	URL  string // of its management API: http://127.0.0.1:PORT
	AMQP string // host and port
}

var kind = servertest.Kind{Name: "RabbitMQ", Starter: "rabbittest", Debian: "rabbitmq-server", Folders: []string{"/usr/lib/rabbitmq/bin"}}

var shared servertest.Shared[struct{}, *Server]

// Start returns the test process's server, starting it if this is the first to ask, which takes some seconds. Tests that share it keep apart by the
// names of their users and virtual hosts.
func Start(t testing.TB) *Server {
	t.Helper()
	return shared.Get(struct{}{}, func() *Server {
		t.Helper()
		programs := kind.Programs(t, "rabbitmq-server", "epmd")
		d, err := kind.Open()
		if err != nil {
			t.Fatalf("rabbittest: %v", err)
		}
		s := &Server{Daemon: d}
		if err := d.Begin(s.create, func() error { return s.up(programs[0], programs[1]) }); err != nil {
			t.Fatalf("rabbittest: %v", err)
		}
		return s
	})
}

// create makes the files that are the same whatever the ports are.
func (s *Server) create() error {
	return errors.Join(s.Write("plugins", []byte("[rabbitmq_management].\n")), s.Write("env", nil), s.Write(".erlang.cookie", []byte(rand.Text())))
}

// up starts the server with a port mapper of its own, Erlang's.
func (s *Server) up(server, mapper string) error {
	var ports [4]string
	for i := range ports {
		port, err := s.Port()
		if err != nil {
			return err
		}
		ports[i] = strconv.Itoa(port)
	}
	amqp, api, distribution, mapping := ports[0], ports[1], ports[2], ports[3]
	s.AMQP, s.URL = s.Host+":"+amqp, "http://"+s.Host+":"+api
	err := s.Write("rabbitmq.conf", []byte("listeners.tcp.1 = 127.0.0.1:"+amqp+"\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = "+api+
		"\nmanagement.rates_mode = none\ncollect_statistics_interval = 1000\nloopback_users = none\ndefault_user = "+Admin+"\ndefault_pass = "+password+
		"\ndisk_free_limit.absolute = 1MB\n"))
	if err != nil {
		return err
	}
	cmd := s.Command("/bin/sh", "-c", `"$0" -port "$ERL_EPMD_PORT" -address 127.0.0.1 & exec "$1"`, mapper, server)
	cmd.Env = append(cmd.Env, "LC_ALL=C.UTF-8", "ERL_EPMD_PORT="+mapping, "ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_NODENAME=lessor"+amqp+"@localhost", "RABBITMQ_NODE_PORT="+amqp, "RABBITMQ_DIST_PORT="+distribution,
		"RABBITMQ_MNESIA_BASE="+s.Dir+"/mnesia", "RABBITMQ_LOG_BASE="+s.Dir+"/logs", "RABBITMQ_LOGS=-", "RABBITMQ_PID_FILE="+s.Dir+"/node.pid",
		"RABBITMQ_CONFIG_FILE="+s.Dir+"/rabbitmq.conf", "RABBITMQ_CONF_ENV_FILE="+s.Dir+"/env", "RABBITMQ_ENABLED_PLUGINS_FILE="+s.Dir+"/plugins",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}")
	return s.Run(cmd, s.ready)
}

// ready is nil if the server lets the administrator in, at both of its doors.
func (s *Server) ready() error {
	status, _, err := s.Call(Admin, password, http.MethodGet, "whoami", nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("the management API's status is %d", status)
	}
	c, err := s.Dial(Admin, password, "/")
	if err != nil {
		return err
	}
	return c.Close()
}

// Password is Admin's.
func (s *Server) Password() string { return password }

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
