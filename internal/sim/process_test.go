package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
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

	"github.com/lessor-dev/lessor/internal/pgtest"
)

// process is a real lessor on a real disk, which is killed and started again.
type process struct {
	*testing.T
	bin, dir, address, root string
	cmd                     *exec.Cmd
	http                    *http.Client

	mu       sync.Mutex
	versions map[string]int  // KV path: highest acknowledged version
	requests map[string]bool // ids of answered requests
	leases   []string
}

// newProcess builds and starts a lessor whose data lies in a folder; all else lies in one of its own.
func newProcess(t *testing.T, data string) *process {
	t.Helper()
	dir := t.TempDir()
	p := &process{T: t, dir: dir, bin: filepath.Join(dir, "lessor"), versions: map[string]int{}, requests: map[string]bool{}, http: &http.Client{Timeout: 60 * time.Second}}
	build := exec.Command("go", "build", "-o", p.bin, "github.com/lessor-dev/lessor/cmd/lessor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = ln.Addr().String()
	ln.Close()
	config := fmt.Sprintf("storage \"pebble\" { path = %q }\nseal \"keyfile\" { path = %q }\nlistener \"tcp\" {\n  address = %q\n  tls_disable = true\n}\n",
		data, dir+"/seal.key", p.address)
	if err := os.WriteFile(dir+"/lessor.hcl", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start()
	token, err := os.ReadFile(dir + "/bootstrap-token")
	if err != nil {
		t.Fatal(err)
	}
	p.root = strings.TrimSpace(string(token))
	return p
}

// furnish mounts KV and a database engine at a new database of pg, whose name it returns.
func (p *process) furnish(pg *pgtest.Server) (database string) {
	p.Helper()
	database = pg.Database(p.T)
	p.must("POST", "sys/mounts/secret", `{"type":"kv","options":{"version":"2"}}`)
	p.must("POST", "sys/mounts/database", `{"type":"database"}`)
	p.must("POST", "database/config/pg", string(marshal(map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "scram_iterations": 1,
		"connection_url": pg.URL(pgtest.Superuser, pg.Password(), database),
	})))
	p.must("POST", "database/roles/app", string(marshal(map[string]any{
		"db_name": "pg", "default_ttl": "3s", "max_ttl": "10s", "creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`,
	})))
	return database
}

// start starts the process and waits until it answers.
func (p *process) start() {
	p.Helper()
	log, err := os.OpenFile(p.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(p.bin, "server", "-config", p.dir+"/lessor.hcl")
	p.cmd.Stderr = log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.Fatal(err)
	}
	cmd := p.cmd
	p.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		if p.Failed() {
			if out, err := exec.Command("tail", "-n", "15", p.dir+"/log").Output(); err == nil {
				p.Logf("the server's log:\n%s", out)
			}
		}
	})
	for range 400 {
		if r, err := p.http.Get("http://" + p.address + "/v1/sys/health"); err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
		}
		time.Sleep(25 * time.Millisecond)
	}
	p.Fatal("the server does not answer")
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// do sends a request; a nil answer means that the server did not give a good one.
func (p *process) do(method, path, body string) (map[string]any, error) {
	req, err := http.NewRequest(method, "http://"+p.address+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Vault-Token", p.root)
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %d %s", method, path, resp.StatusCode, b)
	}
	answer := map[string]any{}
	if len(b) > 0 {
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		if err := d.Decode(&answer); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

func (p *process) must(method, path, body string) map[string]any {
	p.Helper()
	a, err := p.do(method, path, body)
	if err != nil {
		p.Fatal(err)
	}
	return a
}
