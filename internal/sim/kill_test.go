package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/pgtest"
)

// kills is how often the process is killed.
const kills = 20

// TestKill kills a real process 20 times under load. Afterwards the chain verifies, nothing that was acknowledged is lost,
// nothing that was answered is without its audit record, and no role is left at PostgreSQL without a lease to end it.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	pg := pgtest.Start(t)
	p := newProcess(t, filepath.Join(t.TempDir(), "data"))
	database := p.furnish(pg)

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
	verify := exec.Command(p.bin, "operator", "verify", "-config", p.dir+"/lessor.hcl")
	if out, err := verify.CombinedOutput(); err != nil {
		t.Errorf("offline: %v\n%s", err, out)
	}
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
