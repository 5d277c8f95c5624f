package node

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A full disk keeps nobody from unsealing, not even with a newer version, so that revocation works, nor from sealing.
func TestUnsealsOnAFullDisk(t *testing.T) {
	p := under(t, byShares)
	p.do(os.Mkdir(p.data(), 0o700))
	if err := syscall.Mount("tmpfs", p.data(), "tmpfs", 0, "size=400m,mode=0700"); err != nil {
		t.Skipf("a small disk of its own takes a mount, which is not allowed here: %v", err)
	}
	t.Cleanup(func() { p.do(syscall.Unmount(p.data(), 0)) })
	r := p.start()
	keys := r.initialise(3, 2)
	r.give(keys[:2]...)
	r.fill()
	accessor := r.must(200, "POST", "auth/token/create", `{"policies":["default"]}`)["auth"].(map[string]any)["accessor"].(string)
	r.stop()
	var free syscall.Statfs_t
	p.do(syscall.Statfs(p.data(), &free))
	p.do(os.WriteFile(filepath.Join(p.data(), "filler"), make([]byte, int64(free.Bavail)*free.Bsize-60<<20), 0o600))

	p.o.Version = "newer"
	again := p.start()
	again.token = r.token
	time.Sleep(500 * time.Millisecond) // until the store has looked
	again.must(400, "PUT", "sys/unseal", `{"key":"AAAA"}`)
	again.give(keys[1:]...)
	again.must(503, "GET", "secret/data/app", "")
	again.must(204, "POST", "auth/token/revoke-accessor", `{"accessor":"`+accessor+`"}`)
	again.must(204, "PUT", "sys/seal", "")
	again.fails(503, "Vault is sealed", "GET", "secret/data/app", "")
	again.give(keys[:2]...)
	p.do(os.Remove(filepath.Join(p.data(), "filler")))
	again.eventually("it writes again", func() bool {
		status, _ := again.ask("POST", "secret/data/later", `{"data":{"x":"y"}}`)
		return status == 200
	})
	again.checkFilled()
	again.must(400, "POST", "auth/token/lookup-accessor", `{"accessor":"`+accessor+`"}`)
	again.stop()
	last := p.start()
	last.token = r.token
	last.give(keys[:2]...)
	if n := len(last.must(200, "LIST", "sys/version-history", "")["data"].(map[string]any)["keys"].([]any)); n != 2 {
		t.Errorf("%d versions are on record, want 2", n)
	}
}
