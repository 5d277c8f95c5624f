package sim

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDamagedFiles damages each file of a stopped server's store in each of several ways and starts the server on it. It either
// serves everything that was acknowledged, or says no and names the file: wrong or missing answers are the one thing that must not be.
func TestDamagedFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server dozens of times")
	}
	sound := filepath.Join(t.TempDir(), "data")
	p := newProcess(t, sound)
	p.must("POST", "sys/mounts/secret", `{"type":"kv","options":{"version":"2"}}`)
	const secrets = 20
	for round := range 3 { // so that there are tables besides the log
		for i := range secrets {
			p.must("POST", fmt.Sprintf("secret/data/s%d", i), fmt.Sprintf(`{"data":{"n":"%d.%d"}}`, round, i))
		}
		p.end()
		if round < 2 {
			p.start()
		}
	}
	anchor, err := os.ReadFile(p.dir + "/seal.key.anchor")
	if err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(t.TempDir(), "sound")
	if err := os.CopyFS(kept, os.DirFS(sound)); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(sound)
	if err != nil {
		t.Fatal(err)
	}
	served, refused := 0, 0
	for _, f := range files {
		for _, harm := range []struct {
			name string
			do   func(path string, b []byte) error
		}{
			{"a byte in the middle", func(path string, b []byte) error { b[len(b)/2] ^= 0x40; return os.WriteFile(path, b, 0o600) }},
			{"a byte near the start", func(path string, b []byte) error { b[min(9, len(b)-1)] ^= 0x40; return os.WriteFile(path, b, 0o600) }},
			{"cut in half", func(path string, b []byte) error { return os.WriteFile(path, b[:len(b)/2], 0o600) }},
			{"empty", func(path string, b []byte) error { return os.WriteFile(path, nil, 0o600) }},
			{"gone", func(path string, b []byte) error { return os.Remove(path) }},
		} {
			path := filepath.Join(sound, f.Name())
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if f.IsDir() || len(b) == 0 && harm.name != "gone" || f.Name() == "ballast" {
				continue
			}
			what := f.Name() + ", " + harm.name
			if err := harm.do(path, bytes.Clone(b)); err != nil {
				t.Fatal(err)
			}
			switch said, ok := p.serves(secrets); {
			case ok:
				served++
			case strings.Contains(said, f.Name()) || harm.name == "gone" && strings.Contains(said, sound):
				refused++
			default:
				t.Errorf("%s: the server neither serves all nor names the file:\n%s", what, said)
			}
			if err := errors.Join(os.RemoveAll(sound), os.CopyFS(sound, os.DirFS(kept)), os.WriteFile(p.dir+"/seal.key.anchor", anchor, 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(sound, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	if served == 0 || refused == 0 {
		t.Errorf("%d served, %d refused: one of them cannot be", served, refused)
	}
	t.Logf("%d kinds of damage did no harm, %d were refused", served, refused)
}

// end stops the process in order.
func (p *process) end() {
	p.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		p.Fatal(err)
	}
}

// serves starts the process on a store that somebody damaged and reads all secrets. If it serves them all, ok; otherwise
// what it said when it ended.
func (p *process) serves(secrets int) (said string, ok bool) {
	p.Helper()
	var log bytes.Buffer
	cmd := exec.Command(p.bin, "server", "-config", p.dir+"/lessor.hcl")
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		p.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop := func() {
		select {
		case <-ended:
		default:
			_ = cmd.Process.Kill()
			<-ended
		}
	}
	for range 1000 {
		select {
		case err := <-ended:
			if err == nil {
				p.Error("the server ended without an error")
			}
			return log.String(), false
		case <-time.After(10 * time.Millisecond):
		}
		if _, err := p.do("GET", "sys/health", ""); err == nil {
			break
		}
	}
	for i := range secrets {
		a, err := p.do("GET", fmt.Sprintf("secret/data/s%d", i), "")
		if err != nil {
			time.Sleep(100 * time.Millisecond) // it may be on its way out
			stop()
			return fmt.Sprintf("%v\n%s", err, log.String()), false
		}
		if n := a["data"].(map[string]any)["data"].(map[string]any)["n"]; n != fmt.Sprintf("2.%d", i) {
			p.Errorf("secret %d is %v", i, n)
		}
	}
	v, err := p.do("GET", "sys/lessor/audit/verify", "")
	stop()
	if err != nil || v["data"].(map[string]any)["ok"] != true {
		return fmt.Sprintf("verify: %v %v\n%s", v, err, log.String()), false
	}
	return "", true
}
