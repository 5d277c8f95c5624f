package drill

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// server is a real lessor on a real disk, which is killed and started again.
type server struct {
	*testing.T
	bin, dir, address, token string
	client                   *client.Client

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has
}

// built is the folder of what build makes, which ends with this process.
var built string

// build makes the program, once for all tests of this process.
var build = sync.OnceValues(func() (string, error) {
	var err error
	if built, err = os.MkdirTemp("", "lessor-drill-"); err != nil {
		return "", err
	}
	bin := filepath.Join(built, "lessor")
	cmd := exec.Command("go", "build", "-o", bin, "github.com/lessor-dev/lessor/cmd/lessor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return bin, nil
})

func newServer(t *testing.T) *server {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{T: t, bin: bin, dir: t.TempDir()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	l.Close()
	config := fmt.Sprintf("storage \"pebble\" { path = %q }\nseal \"keyfile\" { path = %q }\nlistener \"tcp\" {\n  address = %q\n  tls_disable = true\n}\n",
		s.dir+"/data", s.dir+"/seal.key", s.address)
	if err := os.WriteFile(s.dir+"/lessor.hcl", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	token, err := os.ReadFile(s.dir + "/bootstrap-token")
	if err != nil {
		t.Fatal(err)
	}
	s.token = strings.TrimSpace(string(token))
	s.client = s.as(s.token)
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			out, _ := exec.Command("tail", "-n", "30", s.dir+"/log").Output()
			t.Logf("the server's log:\n%s", out)
		}
	})
	return s
}

// as is a client with a token.
func (s *server) as(token string) *client.Client { return s.through("http://"+s.address, token) }

// through is a client that has another way to the server.
func (s *server) through(address, token string) *client.Client {
	s.Helper()
	c, err := client.New(client.Config{Address: address, Token: client.NewToken(token), Timeout: 30 * time.Second})
	if err != nil {
		s.Fatal(err)
	}
	return c
}

// start starts the server, and waits until it serves; it answers before that.
func (s *server) start() {
	s.Helper()
	log, err := os.OpenFile(s.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(s.bin, "server", "-config", s.dir+"/lessor.hcl")
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	s.mu.Lock()
	s.cmd, s.ended = cmd, ended
	s.mu.Unlock()
	c := s.as("")
	s.until("the server serves", func() bool {
		_, err := c.Read(s.Context(), "sys/health", nil)
		return err == nil
	})
}

// kill is kill -9. It may be called from anywhere.
func (s *server) kill() {
	s.mu.Lock()
	cmd, ended := s.cmd, s.ended
	s.mu.Unlock()
	_ = cmd.Process.Kill()
	<-ended
}

// up starts the server if it was killed, and reports whether it was.
func (s *server) up() bool {
	s.Helper()
	s.mu.Lock()
	ended := s.ended
	s.mu.Unlock()
	select {
	case <-ended:
		s.start()
		return true
	default:
		return false
	}
}

// until waits for a condition.
func (s *server) until(what string, holds func() bool) {
	s.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("not within two minutes: %s", what)
		}
	}
}

func (s *server) write(path string, data map[string]any) {
	s.Helper()
	if _, err := s.client.Write(s.Context(), path, data); err != nil {
		s.Fatalf("%s: %v", path, err)
	}
}

// tokenOf is a token of who has a name, and may read one secret.
func (s *server) tokenOf(name, secret string) string {
	s.Helper()
	s.write("sys/policies/acl/consumer", map[string]any{"policy": fmt.Sprintf("path %q { capabilities = [\"read\"] }", secret)})
	answer, err := s.client.Write(s.Context(), "auth/token/create-orphan", map[string]any{"policies": []string{"consumer"}, "period": "1h", "display_name": name})
	if err != nil {
		s.Fatal(err)
	}
	return answer.Auth.ClientToken
}
