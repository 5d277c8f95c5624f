package archive

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/pebble"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// victim names the folder of a process that is to be killed.
const victim = "LESSOR_TEST_ARCHIVE_VICTIM"

// TestMain is the victim, too.
func TestMain(m *testing.M) {
	if dir := os.Getenv(victim); dir != "" {
		if err := backUp(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var killed = storetest.NewCipher("killed")

// open opens the store in a folder, and a Keeper of it.
func open(dir string) (*store.DB, *Keeper, error) {
	b, err := pebble.Open(dir+"/data", pebble.Options{})
	if err != nil {
		return nil, nil, err
	}
	db, err := store.Open(b, store.Options{})
	if err != nil {
		return nil, nil, err
	}
	return db, NewKeeper(Options{
		Store: db, Keys: killed, Destination: Folder(dir + "/backups"), Random: rand.Reader, Interval: 20 * time.Millisecond, Full: time.Second, segment: 3000,
	}), db.Unseal(killed)
}

// backUp commits, and backs up, until it is killed.
func backUp(dir string) error {
	db, k, err := open(dir)
	if err != nil {
		return err
	}
	go func() {
		for i := db.Head().Seq; ; i++ {
			_, _ = db.Commit(context.Background(), store.Txn{
				Puts:  []store.Put{{Key: store.Key{Table: store.Secrets, Name: fmt.Sprint(i % 50)}, Value: make([]byte, 500)}},
				Audit: []audit.Record{record("secret/x")},
			})
			time.Sleep(time.Millisecond)
		}
	}()
	go k.Run(context.Background())
	time.Sleep(20 * time.Second)
	return nil
}

// unended counts the segments of runs that have no end, yet or for ever.
func unended(c *Catalog) int { return len(c.expired(time.Now().Add(48*time.Hour), 0, nil)) }

// TestKilled: whenever a server is killed while it backs up, what it ended is whole, and the next start goes on.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	to := Folder(dir + "/backups")
	points, halves := 0, 0
	for i := 0; i < 4 || halves == 0 && i < 12; i++ {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), victim+"="+dir)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, func() bool { // it has made some more, and is about to make another
			c, err := Read(t.Context(), to)
			return err == nil && len(c.Points) > points+2 && unended(c) > halves
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		c, err := Read(t.Context(), to)
		if err != nil || len(c.Broken) > 0 {
			t.Fatalf("after kill %d: %v, %v", i, c, err)
		}
		points = len(c.Points)
		halves = unended(c)
	}
	t.Logf("%d points, %d segments of runs that were never ended", points, halves)
	db, k, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := k.attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := Read(t.Context(), to)
	if err != nil || len(c.Points) != points+1 || k.Status().Point != c.Points[points].Name() {
		t.Fatalf("the next start made no point: %v, %+v", err, k.Status())
	}
	for i, p := range slices.Backward(c.Points) {
		if i%10 != 0 && i != points {
			continue
		}
		disk := new(mem.Disk)
		_, err := store.RestoreFrom(t.Context(), NewSource(t.Context(), to, c, p), disk.Open(), store.Options{},
			func(store.View) (store.Cipher, error) { return killed, nil }, func(store.View, *store.Txn) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		copied, err := store.Open(disk.Open(), store.Options{})
		if err == nil {
			err = copied.Unseal(killed)
		}
		if err == nil {
			_, err = copied.Verify(t.Context(), nil)
		}
		if err != nil {
			t.Fatalf("%s: %v", p.Name(), err)
		}
		_, had, err1 := db.Header(p.Seq)
		_, has, err2 := copied.Header(p.Seq)
		if err1 != nil || err2 != nil || had != has {
			t.Errorf("%s: commit %d is another: %v, %v", p.Name(), p.Seq, err1, err2)
		}
		_ = copied.Close()
	}
	// What was being written when the process died lies there under no name of a segment.
	sets, err := os.ReadDir(string(to))
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range sets {
		files, _ := os.ReadDir(string(to) + "/" + set.Name())
		for _, f := range files {
			if _, ok := ParseName(set.Name() + "/" + f.Name()); !ok && !strings.HasPrefix(f.Name(), unfinished) {
				t.Errorf("there is %s/%s", set.Name(), f.Name())
			}
		}
	}
}
