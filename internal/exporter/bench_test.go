package exporter

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/pebble"
)

// BenchmarkWriters measures what a device that follows costs those who write: commits a second of 64 writers on a disk, in turns alone
// and beside an exporter to a file. "ratio" is the second by the first; "lag" what the device had still to be told at the end of a turn.
func BenchmarkWriters(b *testing.B) {
	backend, err := pebble.Open(b.TempDir()+"/data", pebble.Options{})
	if err != nil {
		b.Fatal(err)
	}
	db, err := store.Open(backend, store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	kek, err := seal.CreateKeyFile(b.TempDir()+"/seal.key", rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	keys, rows, err := seal.Init(rand.Reader, db.Now(), kek)
	if err != nil {
		b.Fatal(err)
	}
	if err := db.Unseal(keys.Cipher()); err != nil {
		b.Fatal(err)
	}
	d := &Device{Path: "file", Type: File, Options: map[string]string{"file_path": b.TempDir() + "/audit.log"}, From: 1}
	enable := store.Txn{Puts: rows}
	if _, err := db.Commit(b.Context(), enable); err != nil {
		b.Fatal(err)
	}
	if _, err := db.Update(b.Context(), func(v store.View, txn *store.Txn) error { return Enable(v, txn, d, rand.Reader) }); err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, 300)
	turn := func(length time.Duration) float64 {
		ctx, cancel := context.WithTimeout(context.Background(), length)
		defer cancel()
		var n atomic.Uint64
		var all sync.WaitGroup
		began := time.Now()
		for w := range 64 {
			all.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					txn := store.Txn{Audit: []audit.Record{{
						Request: fmt.Sprint(w, i), Operation: "update", Path: fmt.Sprint("secret/data/app-", w), Phase: audit.Done, Granted: true, Entity: "entity",
						Name: "approle-billing", Accessor: fmt.Sprint("accessor-", w), Policy: "billing", Rule: `path "secret/data/*"`, Client: "10.0.0.1",
					}}}
					txn.Put(store.Engine, fmt.Sprint("row-", w, i%100), payload)
					if _, err := db.Commit(context.Background(), txn); err != nil {
						b.Error(err)
						return
					}
					n.Add(1)
				}
			})
		}
		all.Wait()
		return float64(n.Load()) / time.Since(began).Seconds()
	}
	const length = 700 * time.Millisecond
	turn(length)
	var alone, followed, lag float64
	for b.Loop() {
		alone += turn(length)
		x := New(Options{Store: db, Keys: keys})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); x.Run(ctx) }()
		for x.Status(d).State != "following" { // it is told what was written meanwhile
			time.Sleep(10 * time.Millisecond)
		}
		followed += turn(length)
		lag += float64(x.Status(d).Lag)
		cancel()
		<-done
	}
	b.ReportMetric(alone/float64(b.N), "alone/s")
	b.ReportMetric(followed/float64(b.N), "followed/s")
	b.ReportMetric(followed/alone, "ratio")
	b.ReportMetric(lag/float64(b.N), "lag")
}
