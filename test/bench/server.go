package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// lessorServer is a lessor server in a folder of its own.
type lessorServer struct {
	binary, dir string
	database    string // URL; empty: the embedded store
	root        string // token
	addr        string // host:port
	cmd         *exec.Cmd
	exited      chan struct{} // closed when it has
}

// newServer makes a server with an empty embedded store and starts it.
func newServer(binary, dir string) (*lessorServer, error) {
	s := &lessorServer{binary: binary, dir: dir}
	return s, s.first()
}

// first configures the server, starts it, and takes the root token of the store that it makes.
func (s *lessorServer) first() error {
	if err := s.configure(); err != nil {
		return err
	}
	if err := s.start(); err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(s.dir, "bootstrap-token"))
	s.root = strings.TrimSpace(string(token))
	return err
}

// configure makes the server's folder and writes its configuration there.
func (s *lessorServer) configure() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	storage := fmt.Sprintf("storage \"pebble\" { path = %q }", s.data())
	if s.database != "" {
		storage = fmt.Sprintf("storage \"postgresql\" { connection_url = %q }", s.database)
	}
	configuration := fmt.Sprintf("%s\nseal \"keyfile\" { path = %q }\n"+
		"listener \"tcp\" {\n  address = \"127.0.0.1:0\"\n  tls_disable = true\n}\n", storage, s.key())
	return os.WriteFile(filepath.Join(s.dir, "lessor.hcl"), []byte(configuration), 0o600)
}

func (s *lessorServer) data() string { return filepath.Join(s.dir, "data") }
func (s *lessorServer) key() string  { return filepath.Join(s.dir, "seal.key") }

// start starts the server and waits until it says where it listens.
func (s *lessorServer) start() error {
	stdout := filepath.Join(s.dir, "stdout")
	out, err := os.Create(stdout)
	if err != nil {
		return err
	}
	defer out.Close()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(s.binary, "server", "-config", filepath.Join(s.dir, "lessor.hcl"))
	s.cmd.Stdout, s.cmd.Stderr = out, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	s.exited = exited
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(exited)
	}(s.cmd)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(stdout)
		if err != nil {
			return err
		}
		if _, rest, ok := strings.Cut(string(text), "Listener Address:"); ok {
			if line, _, ok := strings.Cut(rest, "\n"); ok {
				s.addr = strings.TrimPrefix(strings.TrimSpace(line), "http://")
				return nil
			}
		}
		select {
		case <-exited:
			return fmt.Errorf("the server did not start: %s", s.lastWords())
		default:
		}
	}
	return fmt.Errorf("the server did not start: %s", s.lastWords())
}

func (s *lessorServer) lastWords() string {
	log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return string(log[max(0, len(log)-2000):])
}

// end ends the process by a signal and waits for it.
func (s *lessorServer) end(signal os.Signal) {
	if s == nil || s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(signal)
	<-s.exited
	s.cmd = nil
}

// resident is the process's resident memory in bytes.
func (s *lessorServer) resident() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, errors.New("no VmRSS")
	}
	kb, err := strconv.ParseInt(fields[0], 10, 64)
	return kb << 10, err
}

// cpu is how much of the processors' time the process has had.
func (s *lessorServer) cpu() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond // a tick is 1/100 s on Linux
}

// call makes one request of the root token's that is not measured, and returns what the answer holds.
func (s *lessorServer) call(method, path string, body any) (map[string]any, error) {
	return s.callAs(s.root, method, path, body)
}

func (s *lessorServer) callAs(token, method, path string, body any) (map[string]any, error) {
	b, err := s.fetch(token, method, path, body)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	var m map[string]any
	return m, json.Unmarshal(b, &m)
}

func (s *lessorServer) fetch(token, method, path string, body any) ([]byte, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, "http://"+s.addr+"/v1/"+path, r)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Vault-Token", token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode > 299 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	return b, err
}

// text is a string somewhere in an answer.
func text(m map[string]any, path ...string) string {
	for _, p := range path[:len(path)-1] {
		m, _ = m[p].(map[string]any)
	}
	s, _ := m[path[len(path)-1]].(string)
	return s
}

type object = map[string]any

const rules = `
path "secret/*"              { capabilities = ["create", "read", "update"] }
path "database/creds/*"      { capabilities = ["read"] }
path "auth/token/create"     { capabilities = ["update"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "sys/leases/renew"      { capabilities = ["update"] }
path "sys/wrapping/wrap"     { capabilities = ["update"] }
`

// furnish gives a server what the figures need: a KV mount, a policy, a token for each client.
func (s *lessorServer) furnish(clients int) (tokens []string, err error) {
	for _, step := range []struct {
		path string
		body object
	}{
		{"sys/mounts/secret", object{"type": "kv", "options": object{"version": "2"}}},
		{"sys/policies/acl/bench", object{"policy": rules}},
	} {
		if _, err := s.call("POST", step.path, step.body); err != nil {
			return nil, err
		}
	}
	for range clients {
		m, err := s.call("POST", "auth/token/create-orphan", object{"policies": []string{"bench"}, "ttl": "24h"})
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, text(m, "auth", "client_token"))
	}
	return tokens, nil
}
