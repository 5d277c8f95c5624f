package exporter

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/pebble"
)

// victim names the folder of a process that is to be killed.
const victim = "LESSOR_TEST_EXPORTER_VICTIM"

// TestMain is the victim, too.
func TestMain(m *testing.M) {
	if dir := os.Getenv(victim); dir != "" {
		if err := write(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// open opens the store in a folder, or makes it.
func open(dir string) (*store.DB, *seal.Keyring, error) {
	b, err := pebble.Open(dir+"/data", pebble.Options{})
	if err != nil {
		return nil, nil, err
	}
	db, err := store.Open(b, store.Options{})
	if err != nil {
		return nil, nil, err
	}
	if db.Head().Seq > 0 {
		kek, err := seal.OpenKeyFile(dir + "/seal.key")
		if err != nil {
			return nil, nil, err
		}
		v, err := db.View()
		if err != nil {
			return nil, nil, err
		}
		defer v.Close()
		keys, err := seal.Unseal(v, kek)
		if err != nil {
			return nil, nil, err
		}
		return db, keys, db.Unseal(keys.Cipher())
	}
	kek, err := seal.CreateKeyFile(dir+"/seal.key", rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	keys, rows, err := seal.Init(rand.Reader, db.Now(), kek)
	if err != nil {
		return nil, nil, err
	}
	if err := db.Unseal(keys.Cipher()); err != nil {
		return nil, nil, err
	}
	_, err = db.Commit(context.Background(), store.Txn{Puts: rows})
	return db, keys, err
}

// write commits, and exports, until it is killed.
func write(dir string) error {
	db, keys, err := open(dir)
	if err != nil {
		return err
	}
	go New(Options{Store: db, Keys: keys}).Run(context.Background())
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				_, _ = db.Commit(context.Background(), store.Txn{Audit: []audit.Record{{Request: fmt.Sprint(w, "/", i), Operation: "read", Path: "secret/data/x", Phase: audit.Done}}})
			}
		}()
	}
	time.Sleep(10 * time.Second)
	return nil
}

// TestKilled: whenever the process is killed, the file ends up with each record once and in order.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, _, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{Path: "file", Type: File, Options: map[string]string{"file_path": dir + "/audit.log"}, From: 1}
	if _, err := db.Update(t.Context(), func(v store.View, txn *store.Txn) error { return Enable(v, txn, d, rand.Reader) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), victim+"="+dir)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(300+73*i) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	db, keys, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	w := &world{T: t, db: db, keys: keys, o: Options{Store: db, Keys: keys}}
	w.run()
	defer w.end()
	w.until("the device runs", func() bool { return w.x.Status(d).State != "stopped" })
	w.caughtUp(d)
	lines := w.lines(dir + "/audit.log")
	var want []place
	for seq := uint64(1); ; {
		commits, err := db.Commits(seq, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(commits) == 0 {
			break
		}
		for _, c := range commits {
			for i := range c.Count {
				want = append(want, place{c.Incarnation, c.Seq, i})
			}
			seq = c.Seq + 1
		}
	}
	if len(want) < 10 || len(lines) != len(want) {
		t.Fatalf("the file has %d lines, the chain %d records", len(lines), len(want))
	}
	for i, l := range lines {
		if at := (place{l.Lessor.Incarnation, l.Lessor.Sequence, l.Lessor.Index}); at != want[i] {
			t.Fatalf("line %d is record %v, want %v", i+1, at, want[i])
		}
	}
	t.Logf("%d records", len(want))
}
