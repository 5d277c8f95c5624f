// Package rotatortest runs a real lessor, on a real disk, for the tests of rotators: it can be killed at any moment, and started again.
package rotatortest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// server is the path of lessor, built once for each test binary.
var server = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lessor")
	if err != nil {
		return "", err
	}
	built = dir
	return filepath.Join(dir, "lessor"), Build(filepath.Join(dir, "lessor"), "github.com/lessor-dev/lessor/cmd/lessor")
})

var built string // the folder of server; empty: it is not built

// Main runs the tests of a package that uses this one, and cleans up.
func Main(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// Build builds a program of Go's.
func Build(to, from string, flags ...string) error {
	b := exec.Command("go", append(append([]string{"build", "-o", to}, flags...), from)...)
	b.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := b.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// Free is an address of this machine at which nobody listens.
func Free(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// World is a lessor with the key-value engine at secret/, where the secret "app" is rotated. It is of one test's goroutine, but for Strike.
type World struct {
	*testing.T
	Dir  string // of the test: everybody may look into it
	Root string // token

	address string
	bin     string
	cmd     *exec.Cmd
}

// New starts a lessor whose configuration has these lines, too; DIR in them stands for the world's folder. It is killed when the test ends.
func New(t *testing.T, configuration string) *World {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and starts a server")
	}
	dir, err := os.MkdirTemp("", "rotator")
	w := &World{T: t, Dir: dir, address: Free(t)}
	w.Must(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.Must(os.Chmod(dir, 0o755))
	w.bin, err = server()
	w.Must(err)
	w.Must(os.WriteFile(dir+"/lessor.hcl", fmt.Appendf(nil,
		"storage \"pebble\" { path = %q }\nseal \"keyfile\" { path = %q }\nlistener \"tcp\" {\n  address = %q\n  tls_disable = true\n}\n%s\n",
		dir+"/data", dir+"/seal.key", w.address, strings.ReplaceAll(configuration, "DIR", dir)), 0o600))
	w.Start()
	t.Cleanup(w.Kill)
	token, err := os.ReadFile(dir + "/bootstrap-token")
	w.Must(err)
	w.Root = strings.TrimSpace(string(token))
	w.Do("POST", "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]any{"version": "2"}})
	return w
}

// Must ends the test at an error.
func (w *World) Must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// Start starts the server, and returns when it serves.
func (w *World) Start() {
	w.Helper()
	w.cmd = exec.Command(w.bin, "server", "-config="+w.Dir+"/lessor.hcl")
	log, err := os.OpenFile(w.Dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	w.Must(err)
	defer log.Close()
	w.cmd.Dir, w.cmd.Stdout, w.cmd.Stderr = w.Dir, log, log
	w.cmd.Env = []string{"HOME=" + w.Dir, "PATH=" + os.Getenv("PATH"), "XDG_DATA_HOME=" + w.Dir}
	w.Must(w.cmd.Start())
	w.Until("the server serves", func() bool {
		answer, err := http.Get("http://" + w.address + "/v1/sys/health")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == 200
	})
}

// Strike kills the server at once, on any goroutine: Kill and Start follow.
func (w *World) Strike() { _ = w.cmd.Process.Signal(syscall.SIGKILL) }

// Kill kills the server at once, if it runs, and waits until it has ended.
func (w *World) Kill() {
	w.Strike()
	_ = w.cmd.Wait()
}

// Log is what the server has logged.
func (w *World) Log() string {
	log, _ := os.ReadFile(w.Dir + "/log")
	return string(log)
}

// Try asks the server for something, as root unless the header names another token.
func (w *World) Try(method, path string, body map[string]any, header ...string) (map[string]any, error) {
	b, err := json.Marshal(body)
	w.Must(err)
	r, err := http.NewRequest(method, "http://"+w.address+"/v1/"+path, bytes.NewReader(b))
	w.Must(err)
	r.Header.Set("X-Vault-Token", w.Root)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	all := map[string]any{}
	if answer.StatusCode != http.StatusNoContent {
		err = json.NewDecoder(answer.Body).Decode(&all)
	}
	if answer.StatusCode >= 300 {
		err = fmt.Errorf("status %d: %v", answer.StatusCode, all["errors"])
	}
	return all, err
}

// Do is Try, for what must succeed.
func (w *World) Do(method, path string, body map[string]any, header ...string) map[string]any {
	w.Helper()
	all, err := w.Try(method, path, body, header...)
	if err != nil {
		w.Fatalf("%s %s: %v", method, path, err)
	}
	return all
}

// Until waits until something is so.
func (w *World) Until(what string, f func() bool) {
	w.Helper()
	for start := time.Now(); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 2*time.Minute {
			status, _ := w.Try("GET", "sys/lessor/rotation/status/secret/app", nil)
			w.Fatalf("never: %s\n%v\n%s", what, status["data"], w.Log())
		}
	}
}

// Read is what a consumer gets of the secret, and the lease on it, by which it says later what it uses.
func (w *World) Read() (value map[string]any, version int, lease string) {
	w.Helper()
	all := w.Do("GET", "secret/data/app", nil, "X-Lessor-Lease", "renewable")
	data := all["data"].(map[string]any)
	lease, _ = all["lease_id"].(string)
	return data["data"].(map[string]any), int(data["metadata"].(map[string]any)["version"].(float64)), lease
}

// Acknowledge says that nothing older is used.
func (w *World) Acknowledge(lease string) {
	w.Helper()
	w.Do("PUT", "sys/lessor/leases/acknowledge", map[string]any{"lease_id": lease})
}

// Version is the secret's newest one; 0: there is none yet, or no answer.
func (w *World) Version() int {
	all, err := w.Try("GET", "secret/metadata/app", nil)
	if err != nil {
		return 0
	}
	return int(all["data"].(map[string]any)["current_version"].(float64))
}

// Status is how the rotation stands, or why nobody says.
func (w *World) Status() map[string]any {
	all, err := w.Try("GET", "sys/lessor/rotation/status/secret/app", nil)
	if err != nil {
		return map[string]any{"step": err.Error()}
	}
	return all["data"].(map[string]any)
}

// Step is how far the rotation is.
func (w *World) Step() string { return w.Status()["step"].(string) }
