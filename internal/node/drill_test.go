package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// TestBackups: a server that backs itself up does so across being sealed; drills restore what it made, by the key file or by the recovery file
// alone, while it runs, and leave nothing behind.
func TestBackups(t *testing.T) {
	p := newPlace(t)
	p.o.Recovery.Passphrase = lessor.NewSecret("five random words or more")
	backups, conf, scratch := filepath.Join(p.dir, "backups"), filepath.Join(p.dir, "backup.hcl"), t.TempDir()
	p.do(os.WriteFile(conf, fmt.Appendf(nil, "backup {\n destination = \"file://%s\"\n interval = \"1h\"\n}\n", backups), 0o600))
	n, err := Start(t.Context(), p.config("-config", conf), p.o)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{p, n, n.Root.Reveal(), http.DefaultClient}
	t.Cleanup(r.stop)
	r.fill()
	status := r.must(200, "PUT", "sys/lessor/backups", "")["data"].(map[string]any)
	if status["state"] != "current" || status["failures"] != float64(0) || status["point"] == "" {
		t.Errorf("status: %v", status)
	}
	first := time.Now()
	r.must(200, "POST", "secret/data/later", `{"data":{"a":"b"}}`)

	drill := func(how DrillOptions, from Origin) (Drilled, error) {
		t.Helper()
		how.Scratch, how.Progress = scratch, func(string) {}
		found, err := Drill(t.Context(), p.config("-config", conf), p.o, from, how)
		if left, _ := os.ReadDir(scratch); len(left) > 0 {
			t.Errorf("the drill left %v", left)
		}
		return found, err
	}
	found, err := drill(DrillOptions{}, Origin{})
	if err != nil || found.Broken != nil || found.Rows == 0 || found.Records == 0 || found.Bytes == 0 || found.Segments == 0 || found.Age < 0 || found.Age > time.Minute {
		t.Fatalf("drill: %+v, %v", found, err)
	}
	r.must(200, "PUT", "sys/lessor/backups", "")
	again, err := drill(DrillOptions{}, Origin{At: first})
	if err != nil || again.Point != found.Point {
		t.Errorf("at %s: %+v, %v", first, again, err)
	}
	if _, err := drill(DrillOptions{}, Origin{At: first.Add(-time.Hour)}); err == nil || !strings.Contains(err.Error(), "no backup of that time") {
		t.Errorf("before the first: %v", err)
	}
	p.do(os.Rename(p.key(), p.key()+".elsewhere"))
	if found, err = drill(DrillOptions{Recovery: true}, Origin{}); err != nil || found.Broken != nil {
		t.Errorf("by the recovery file: %+v, %v", found, err)
	}
	if _, err := os.Stat(p.key()); err == nil {
		t.Error("a drill made a key file")
	}
	p.do(os.Rename(p.key()+".elsewhere", p.key()))
	p.o.Recovery.Passphrase = lessor.NewSecret("some other passphrase")
	if _, err := drill(DrillOptions{Recovery: true}, Origin{}); err == nil {
		t.Error("a drill by a wrong passphrase succeeded")
	}

	// Nothing lies there in clear, and only its owner may look.
	err = filepath.WalkDir(backups, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
		if d.IsDir() {
			return nil
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(secretValue)) {
			t.Errorf("%s holds the secret in clear", path)
		}
		return err
	})
	p.do(err)
}

// TestDrillOfASharedStore: a backup of what lies in PostgreSQL is drilled without a database, and any node takes the report and shows it.
func TestDrillOfASharedStore(t *testing.T) {
	c := startNodes(t, 2)
	one, two := c.nodes[0], c.nodes[1]
	one.fill()
	file := filepath.Join(c.dir, "backup.lessor")
	request, err := http.NewRequest("GET", one.Address()+"/v1/sys/lessor/backup", nil)
	c.do(err)
	request.Header.Set("X-Vault-Token", one.token)
	answer, err := one.client.Do(request)
	c.do(err)
	text, err := io.ReadAll(answer.Body)
	c.do(errors.Join(err, answer.Body.Close()))
	c.do(os.WriteFile(file, text, 0o600))

	found, err := Drill(t.Context(), one.Node.config, c.o, Origin{File: file}, DrillOptions{Scratch: t.TempDir(), Progress: func(string) {}})
	if err != nil || found.Broken != nil {
		t.Fatalf("drill: %+v, %v", found, err)
	}
	two.must(200, "PUT", "sys/lessor/drills", fmt.Sprintf(`{"sequence":%d,"hash":%q,"restore_time":%g}`, found.Seq, found.Hash, found.Restore.Seconds()))
	told := one.must(200, "GET", "sys/lessor/drills", "")["data"].(map[string]any)
	if last := told["last"].(map[string]any); last["ok"] != true || last["sequence"] != float64(found.Seq) || told["last_good_age_seconds"].(float64) > 60 {
		t.Errorf("the other node tells %v", told)
	}
	two.must(400, "PUT", "sys/lessor/drills", fmt.Sprintf(`{"sequence":%d,"hash":%q}`, found.Seq-1, found.Hash))
}

// TestBackupRefused: a destination that is none ends the start.
func TestBackupRefused(t *testing.T) {
	p := newPlace(t)
	conf := filepath.Join(p.dir, "backup.hcl")
	p.do(os.WriteFile(conf, []byte("backup {\n destination = \"s3://bucket?secret=x\"\n}\n"), 0o600))
	if n, err := Start(t.Context(), p.config("-config", conf), p.o); err == nil || !strings.Contains(err.Error(), `unknown parameter "secret"`) {
		t.Errorf("%v", err)
		if n != nil {
			_ = n.Stop(t.Context())
		}
	}
}
