package pebble_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/pebble"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

func openFS(t *testing.T, fs vfs.FS) (*pebble.Backend, *store.DB) {
	t.Helper()
	b, err := pebble.Open("data", pebble.Options{FS: fs, Ballast: -1, Fatal: func(m string) { panic(m) }})
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(b, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(storetest.NewCipher("crash")); err != nil {
		t.Fatal(err)
	}
	return b, db
}

// pair is a transaction whose two rows must both be there, or neither, with a record.
func pair(n int) store.Txn {
	var x store.Txn
	x.Put(store.Tokens, fmt.Sprintf("%06d", n), storetest.Random(rand.IntN(2000)))
	x.Put(store.Leases, fmt.Sprintf("%06d", n), storetest.Random(100))
	x.Audit = []audit.Record{{Operation: "create", Path: fmt.Sprint(n), Phase: audit.Done, Granted: true}}
	return x
}

// TestCrash stops the machine before each of many writes to the disk, while many commit: after each stop everything
// acknowledged is there, nothing is half-written, and the chain is whole.
func TestCrash(t *testing.T) {
	const seed = 11
	mem := vfs.NewCrashableMem()
	type crash struct {
		fs    *vfs.MemFS
		acked []int
		op    string
	}
	var (
		mu      sync.Mutex
		acked   []int
		crashes []crash
		ops     atomic.Int64
		armed   atomic.Bool
		rng     = rand.New(rand.NewPCG(seed, 0))
	)
	every := int64(13)
	limit := 40
	if testing.Short() {
		limit = 12
	}
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !armed.Load() || op.Kind.ReadOrWrite() != errorfs.OpIsWrite || ops.Add(1)%every != 0 {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if len(crashes) < limit {
			have := append([]int(nil), acked...)
			clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(3) * 50, RNG: rng})
			crashes = append(crashes, crash{clone, have, fmt.Sprintf("%v of %s", op.Kind, op.Path)})
		}
		return nil
	}))
	b, db := openFS(t, fs)
	armed.Store(true)
	var next atomic.Int64
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for {
				n := int(next.Add(1))
				mu.Lock()
				enough := len(crashes) >= limit
				mu.Unlock()
				if enough || n > 100000 {
					return
				}
				if _, err := db.Commit(context.Background(), pair(n)); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acked = append(acked, n)
				mu.Unlock()
				if n%500 == 0 {
					if err := b.Flush(); err != nil { // so that crashes hit flushes and compactions, too
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	armed.Store(false)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if len(crashes) < limit {
		t.Fatalf("only %d crashes", len(crashes))
	}
	for i, c := range crashes {
		check(t, fmt.Sprintf("crash %d at %s", i, c.op), c.fs, c.acked)
	}
	t.Logf("%d commits acknowledged, %d crashes", len(acked), len(crashes))
}

// check opens what a crash left.
func check(t *testing.T, what string, fs vfs.FS, acked []int) {
	t.Helper()
	_, db := openFS(t, fs)
	if _, err := db.Verify(context.Background(), nil); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range acked {
		token, err1 := v.Get(store.Key{Table: store.Tokens, Name: fmt.Sprintf("%06d", n)})
		lease, err2 := v.Get(store.Key{Table: store.Leases, Name: fmt.Sprintf("%06d", n)})
		if err := errors.Join(err1, err2); err != nil || !token.Exists() || token.Version != lease.Version {
			t.Errorf("%s: transaction %d was acknowledged: %v, %v, %v", what, n, token.Exists(), lease.Exists(), err)
			break
		}
	}
	for row, err := range v.Scan(store.Tokens, "", "") {
		lease, err2 := v.Get(store.Key{Table: store.Leases, Name: row.Name})
		if err := errors.Join(err, err2); err != nil || lease.Version != row.Version {
			t.Errorf("%s: transaction %s is half-written: %v", what, row.Name, err)
			break
		}
	}
	v.Close()
	if _, err := db.Commit(context.Background(), pair(999999)); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if err := db.Close(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// TestDiskFull runs a process whose disk fills up: first the ballast saves it, then it dies a clean death, and what
// it acknowledged is there.
func TestDiskFull(t *testing.T) {
	if dir := os.Getenv("LESSOR_TEST_FULL_DISK"); dir != "" {
		fillUp(t, dir)
		return
	}
	dir := filepath.Join(t.TempDir(), "data")
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiskFull$")
	cmd.Env = append(os.Environ(), "LESSOR_TEST_FULL_DISK="+dir)
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != pebble.ExitDisk {
		t.Fatalf("the process ended with %v\n%s\n%s", err, out, log.String())
	}
	for _, want := range []string{"the ballast makes room", "the disk of the store failed", "no space left", "exit_code=74"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
	var acked []int
	saved := false
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		var n int
		if _, err := fmt.Sscanf(lines.Text(), "acked %d", &n); err == nil {
			acked = append(acked, n)
		}
		saved = saved || lines.Text() == "saved by the ballast"
	}
	if len(acked) < 10 || !saved {
		t.Fatalf("%d acknowledged, saved %v", len(acked), saved)
	}
	b, err := pebble.Open(dir, pebble.Options{Ballast: -1})
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(b, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Unseal(storetest.NewCipher("crash")); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for _, n := range acked {
		if row, err := v.Get(store.Key{Table: store.Leases, Name: fmt.Sprintf("%06d", n)}); err != nil || !row.Exists() {
			t.Errorf("%d was acknowledged, but is gone: %v", n, err)
		}
	}
}

// fillUp commits until the disk is full: at first removing the ballast helps, later nothing does.
func fillUp(t *testing.T, dir string) {
	var full, over atomic.Bool
	ballast := filepath.Join(dir, "ballast")
	fs := errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileWrite, errorfs.OpFilePreallocate, errorfs.OpCreate, errorfs.OpFileSync, errorfs.OpFileSyncData:
		default:
			return nil
		}
		_, err := os.Stat(ballast)
		if over.Load() || full.Load() && err == nil {
			return &os.PathError{Op: "write", Path: op.Path, Err: syscall.ENOSPC}
		}
		return nil
	}))
	b, err := pebble.Open(dir, pebble.Options{FS: fs, Ballast: 1 << 20, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(b, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(storetest.NewCipher("crash")); err != nil {
		t.Fatal(err)
	}
	for n := range 1000 {
		switch n {
		case 10:
			full.Store(true)
		case 12:
			if _, err := os.Stat(ballast); errors.Is(err, os.ErrNotExist) {
				fmt.Println("saved by the ballast")
			}
			full.Store(false)
		case 20:
			over.Store(true)
		}
		if _, err := db.Commit(t.Context(), pair(n)); err != nil {
			t.Fatal(err)
		}
		fmt.Println("acked", n)
	}
}

func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	b, err := pebble.Open(dir, pebble.Options{Ballast: 3 << 20})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder %v, %v", info.Mode(), err)
	}
	if info, err = os.Stat(filepath.Join(dir, "ballast")); err != nil {
		t.Error(err)
	} else if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Blocks*512 < 3<<20 {
		t.Errorf("the ballast takes only %d bytes", st.Blocks*512)
	}
	if _, err := pebble.Open(dir, pebble.Options{}); err == nil {
		t.Error("opened twice")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}
