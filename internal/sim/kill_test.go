package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
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

// kills is how often the process is killed.
const kills = 20

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

// TestKill kills a real process 20 times under load. Afterwards the chain verifies, nothing that was acknowledged is lost,
// nothing that was answered is without its audit record, and no role is left at PostgreSQL without a lease to end it.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	pg := pgtest.Start(t)
	dir := t.TempDir()
	p := &process{T: t, dir: dir, bin: filepath.Join(dir, "lessor"), versions: map[string]int{}, requests: map[string]bool{}, http: &http.Client{Timeout: 20 * time.Second}}
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
		dir+"/data", dir+"/seal.key", p.address)
	if err := os.WriteFile(dir+"/lessor.hcl", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start()
	token, err := os.ReadFile(dir + "/bootstrap-token")
	if err != nil {
		t.Fatal(err)
	}
	p.root = strings.TrimSpace(string(token))
	database := pg.Database(t)
	p.must("POST", "sys/mounts/secret", `{"type":"kv","options":{"version":"2"}}`)
	p.must("POST", "sys/mounts/database", `{"type":"database"}`)
	p.must("POST", "database/config/pg", string(marshal(map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "scram_iterations": 1,
		"connection_url": pg.URL(pgtest.Superuser, pg.Password(), database),
	})))
	p.must("POST", "database/roles/app", string(marshal(map[string]any{
		"db_name": "pg", "default_ttl": "3s", "max_ttl": "10s", "creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`,
	})))

	for range kills {
		stop := make(chan struct{})
		var clients sync.WaitGroup
		for c := range 8 {
			clients.Go(func() { p.client(c, stop) })
		}
		time.Sleep(time.Duration(200+rand.IntN(400)) * time.Millisecond)
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = p.cmd.Wait()
		close(stop)
		clients.Wait()
		p.start()
	}
	t.Logf("%d kills: %d requests were answered, %d credentials among them", kills, len(p.requests), len(p.leases))
	if len(p.leases) < kills || len(p.versions) == 0 {
		t.Errorf("too little was done for this to show anything")
	}

	// What was acknowledged is there, and what was answered is on record.
	for path, version := range p.versions {
		a := p.must("GET", path, "")
		meta, _ := a["data"].(map[string]any)["metadata"].(map[string]any)
		if got := int(number(meta["version"])); got < version {
			t.Errorf("%s is at version %d; version %d was acknowledged", path, got, version)
		}
	}
	recorded := map[string]bool{}
	for cursor := ""; ; {
		data := p.must("GET", "sys/lessor/audit/records?limit=5000&after="+cursor, "")["data"].(map[string]any)
		for _, r := range data["records"].([]any) {
			rec := r.(map[string]any)
			if id, ok := rec["request_id"].(string); ok && rec["phase"] != "begun" {
				recorded[id] = true
			}
		}
		if cursor, _ = data["next"].(string); cursor == "" {
			break
		}
	}
	for id := range p.requests {
		if !recorded[id] {
			t.Errorf("request %s was answered, and is not on record", id)
		}
	}
	if v := p.must("GET", "sys/lessor/audit/verify", "")["data"].(map[string]any); v["ok"] != true {
		t.Errorf("the store does not verify: %v", v)
	}

	// Every role ends with its lease: those that were never confirmed, too.
	conn := pg.Connect(t, database)
	roles := func() (n int) {
		if err := conn.QueryRow(context.Background(), "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for end := time.Now().Add(90 * time.Second); roles() > 0; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d roles are left at PostgreSQL", roles())
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("the server did not end cleanly: %v", err)
	}
	verify := exec.Command(p.bin, "operator", "verify", "-config", dir+"/lessor.hcl")
	if out, err := verify.CombinedOutput(); err != nil {
		t.Errorf("offline: %v\n%s", err, out)
	}
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

// client works until the server is gone.
func (p *process) client(id int, stop chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		path := fmt.Sprintf("secret/data/c%d/s%d", id, i%3)
		var a map[string]any
		var err error
		switch i % 4 {
		case 0:
			a, err = p.do("POST", path, fmt.Sprintf(`{"data":{"n":"%d"}}`, i))
		case 1:
			a, err = p.do("GET", "database/creds/app", "")
		case 2:
			a, err = p.do("GET", fmt.Sprintf("secret/data/c%d/s%d", id, (i-2)%3), "")
		case 3:
			p.mu.Lock()
			lease := ""
			if len(p.leases) > 0 {
				lease = p.leases[rand.IntN(len(p.leases))]
			}
			p.mu.Unlock()
			if lease == "" {
				continue
			}
			a, err = p.do("POST", "sys/leases/renew", string(marshal(map[string]any{"lease_id": lease})))
		}
		if err != nil || a == nil {
			continue
		}
		p.mu.Lock()
		if r, ok := a["request_id"].(string); ok && r != "" {
			p.requests[r] = true
		}
		if data, ok := a["data"].(map[string]any); ok && i%4 == 0 {
			p.versions[path] = max(p.versions[path], int(number(data["version"])))
		}
		if l, ok := a["lease_id"].(string); ok && i%4 == 1 {
			p.leases = append(p.leases, l)
		}
		p.mu.Unlock()
	}
}
