package pebble_test

import (
	"context"
	"encoding/binary"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/pebble"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

func openBench(b *testing.B) *store.DB {
	back, err := pebble.Open(b.TempDir(), pebble.Options{Ballast: -1})
	if err != nil {
		b.Fatal(err)
	}
	db, err := store.Open(back, store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := db.Unseal(storetest.NewCipher("bench")); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	})
	return db
}

// leaseTxn is what issuing a lease commits: four rows of 300 bytes, their checks and one audit record.
func leaseTxn(n uint64, value []byte) store.Txn {
	var t store.Txn
	id := make([]byte, 16)
	binary.BigEndian.PutUint64(id[8:], n*0x9e3779b97f4a7c15)
	name := store.MountKey(1, "0123456789abcdef", string(id))
	t.Present(store.Config, "role")
	t.Absent(store.Leases, name)
	t.Put(store.Leases, name, value)
	t.Put(store.Due, store.TimeKey(time.Unix(int64(n%100000), 0))+name, value)
	t.Put(store.LeaseIdx, name, value)
	t.Put(store.Engine, name, value)
	t.Audit = []audit.Record{{
		Time: time.Now(), Request: "3f5f6f4c-58d1-44a4-b4a9-6f2b7d3cbb2b", Operation: "read", Namespace: 1,
		Path: "database/creds/billing", Phase: audit.Done, Entity: "7d2e3179-f69b-450c-7179-ac8ee8bd8ca9",
		Name: "approle-billing", Accessor: "2c84f488-2133-4ced-87b0-570f93a76830", Client: "10.1.2.3", Granted: true,
		Rule: "path \"database/creds/billing\"", Policy: "billing", PolicyVersion: 7, Lease: name,
	}}
	return t
}

// BenchmarkCommit is durable transactions by 128 writers at once: ns/op is the inverse of the throughput.
func BenchmarkCommit(b *testing.B) {
	db := openBench(b)
	var seed store.Txn
	seed.Put(store.Config, "role", []byte("x"))
	if _, err := db.Commit(b.Context(), seed); err != nil {
		b.Fatal(err)
	}
	value := storetest.Random(300)
	var n atomic.Uint64
	b.ReportAllocs()
	b.SetParallelism(max(1, 128/runtime.GOMAXPROCS(0)))
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := db.Commit(context.Background(), leaseTxn(n.Add(1), value)); err != nil {
				b.Error(err)
			}
		}
	})
	b.StopTimer()
	s := db.Stats()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "txn/s")
	b.ReportMetric(float64(s.Transactions)/float64(s.Commits), "txn/batch")
	b.ReportMetric(float64(s.FlushTime.Microseconds())/float64(s.Commits), "µs/flush")
}

// BenchmarkView is what each request does: take the published state, read a row, let go.
func BenchmarkView(b *testing.B) {
	db := openBench(b)
	var t store.Txn
	for i := range 1000 {
		t.Put(store.Tokens, store.Uint64Key(uint64(i)), storetest.Random(300))
	}
	if _, err := db.Commit(b.Context(), t); err != nil {
		b.Fatal(err)
	}
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			v, err := db.View()
			if err != nil {
				b.Fatal(err)
			}
			v.Close()
		}
	})
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		v, err := db.View()
		if err != nil {
			b.Fatal(err)
		}
		defer v.Close()
		for i := uint64(0); b.Loop(); i++ {
			if row, err := v.Get(store.Key{Table: store.Tokens, Name: store.Uint64Key(i % 1000)}); err != nil || !row.Exists() {
				b.Fatal(row, err)
			}
		}
	})
}

// BenchmarkMillion opens and unseals a store with a million leases (two million rows) and reports the memory that the process
// then has, after a thousand transactions.
func BenchmarkMillion(b *testing.B) {
	const leases, step = 1_000_000, 2000
	dir := b.TempDir()
	start := func() *store.DB {
		back, err := pebble.Open(dir, pebble.Options{Ballast: -1})
		if err != nil {
			b.Fatal(err)
		}
		db, err := store.Open(back, store.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := db.Unseal(storetest.NewCipher("bench")); err != nil {
			b.Fatal(err)
		}
		return db
	}
	db := start()
	value := storetest.Random(300)
	for i := 0; i < leases; i += step {
		var t store.Txn
		for j := range uint64(step) {
			name := store.MountKey(1, "0123456789abcdef", store.Uint64Key((uint64(i)+j)*0x9e3779b97f4a7c15))
			t.Put(store.Leases, name, value)
			t.Put(store.Due, store.TimeKey(time.Unix(int64(j), 0))+name, nil)
		}
		if _, err := db.Commit(b.Context(), t); err != nil {
			b.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		db = start()
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
	}
	db = start()
	var seed store.Txn
	seed.Put(store.Config, "role", nil)
	_, _ = db.Commit(b.Context(), seed)
	for i := range uint64(1000) {
		if _, err := db.Commit(b.Context(), leaseTxn(i, value)); err != nil {
			b.Fatal(err)
		}
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapInuse+m.StackInuse)/(1<<20), "MB-inuse")
	began := time.Now()
	if _, err := db.Verify(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(time.Since(began).Seconds(), "s/verify")
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapInuse+m.StackInuse)/(1<<20), "MB-inuse-verify")
	if status, err := os.ReadFile("/proc/self/status"); err == nil {
		for _, line := range strings.Split(string(status), "\n") {
			if strings.HasPrefix(line, "VmHWM") || strings.HasPrefix(line, "VmRSS") {
				b.Log(line)
			}
		}
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
}
