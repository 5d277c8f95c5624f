package sim

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/pgtest"
)

// TestDiskFillsUp runs a real lessor on a small disk that somebody else fills. From then on only revocations are accepted, at
// targets too; everything else is refused with 503, nothing is lost and no credential is made; with room, service goes on.
func TestDiskFillsUp(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=400m"); err != nil {
		t.Skipf("a small disk of its own takes a mount, which is not allowed here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	pg := pgtest.Start(t)
	p := newProcess(t, filepath.Join(disk, "data"))
	t.Cleanup(func() { // before the disk goes
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	conn := pg.Connect(t, p.furnish(pg))
	roles := func() (n int) {
		if err := conn.QueryRow(context.Background(), "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	p.must("POST", "database/roles/app", `{"db_name":"pg","default_ttl":"1h","max_ttl":"2h","creation_statements":"CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'"}`)
	p.must("POST", "secret/data/app", `{"data":{"n":"1"}}`)
	lease, _ := p.must("GET", "database/creds/app", "")["lease_id"].(string)
	token, _ := p.must("POST", "auth/token/create", `{"ttl":"1h"}`)["auth"].(map[string]any)["accessor"].(string)
	expiring := string(marshal(map[string]any{"ttl": "3s"}))
	p.must("POST", "auth/token/create", expiring)

	// Somebody fills the disk.
	var free syscall.Statfs_t
	if err := syscall.Statfs(disk, &free); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, int64(free.Bavail)*free.Bsize-60<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	for _, c := range []struct{ method, path, body string }{
		{"POST", "secret/data/app", `{"data":{"n":"2"}}`},
		{"GET", "secret/data/app", ""}, // it would have to be on record
		{"GET", "database/creds/app", ""},
		{"POST", "auth/token/create", `{}`},
		{"POST", "sys/policies/acl/p", `{"policy":"path \"x\" { capabilities = [\"read\"] }"}`},
		{"POST", "sys/leases/renew", string(marshal(map[string]any{"lease_id": lease}))},
	} {
		_, err := p.do(c.method, c.path, c.body)
		if err == nil || !strings.Contains(err.Error(), ": 503 ") || !strings.Contains(err.Error(), "only revocations are accepted") {
			t.Errorf("%s %s on a full disk: %v", c.method, c.path, err)
		}
	}
	if n := roles(); n != 1 {
		t.Errorf("%d roles at PostgreSQL, want 1", n)
	}
	p.must("POST", "auth/token/revoke-accessor", string(marshal(map[string]any{"accessor": token})))
	p.must("POST", "sys/leases/revoke", string(marshal(map[string]any{"lease_id": lease, "sync": true})))
	if n := roles(); n != 0 {
		t.Errorf("%d roles at PostgreSQL after the revocation", n)
	}
	if log, _ := os.ReadFile(p.dir + "/log"); !strings.Contains(string(log), "the disk is almost full: only revocations are accepted until there is room") {
		t.Errorf("the log does not say so:\n%s", log)
	}

	// A full disk is no reason not to start, and revocation works then, too.
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
	p.start()
	if _, err := p.do("POST", "secret/data/app", `{"data":{"n":"2"}}`); err == nil || !strings.Contains(err.Error(), ": 503 ") {
		t.Errorf("a write after a start on a full disk: %v", err)
	}

	// There is room again.
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	data := p.must("GET", "secret/data/app", "")["data"].(map[string]any)
	if n := data["data"].(map[string]any)["n"]; n != "1" {
		t.Errorf("the secret is %v, want what was acknowledged", n)
	}
	p.must("POST", "secret/data/app", `{"data":{"n":"2"}}`)
	if _, err := p.do("POST", "auth/token/lookup-accessor", string(marshal(map[string]any{"accessor": token}))); err == nil {
		t.Error("a token that was revoked on the full disk is alive")
	}
	if v := p.must("GET", "sys/lessor/audit/verify", "")["data"].(map[string]any); v["ok"] != true {
		t.Errorf("the store does not verify: %v", v)
	}
}
