package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// leaseTxn is what issuing a lease commits: four rows of 300 bytes, their checks and one audit record.
func leaseTxn(n uint64, value []byte) store.Txn {
	var t store.Txn
	id := binary.BigEndian.AppendUint64(make([]byte, 8), n*0x9e3779b97f4a7c15)
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

// BenchmarkCommit is durable transactions by that many writers at once: ns/op is the inverse of the throughput.
func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 32, 128} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			db := node(b, database(b), "bench")
			var seed store.Txn
			seed.Put(store.Config, "role", []byte("x"))
			if _, err := db.Commit(b.Context(), seed); err != nil {
				b.Fatal(err)
			}
			value := storetest.Random(300)
			var n atomic.Uint64
			var all sync.WaitGroup
			b.ResetTimer()
			for range writers {
				all.Go(func() {
					for i := n.Add(1); i <= uint64(b.N); i = n.Add(1) {
						if _, err := db.Commit(context.Background(), leaseTxn(i, value)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.StopTimer()
			s := db.Stats()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "txn/s")
			b.ReportMetric(float64(s.Transactions)/float64(s.Commits), "txn/batch")
			b.ReportMetric(float64(s.FlushTime.Microseconds())/float64(s.Commits), "µs/flush")
		})
	}
}

// BenchmarkNodes is the same by one node and by three, each with its share of the writers, beside a plain writer of the same rows: one
// connection, and for each batch one INSERT and one COMMIT in one round trip.
func BenchmarkNodes(b *testing.B) {
	for _, writers := range []int{32, 128, 384} {
		for _, nodes := range []int{1, 3} {
			b.Run(fmt.Sprintf("%d/nodes=%d", writers, nodes), func(b *testing.B) {
				url := database(b)
				dbs := make([]*store.DB, nodes)
				for i := range dbs {
					dbs[i] = node(b, url, fmt.Sprint("node", i))
				}
				var seed store.Txn
				seed.Put(store.Config, "role", []byte("x"))
				if _, err := dbs[0].Commit(b.Context(), seed); err != nil {
					b.Fatal(err)
				}
				value := storetest.Random(300)
				var n atomic.Uint64
				var all sync.WaitGroup
				took := make([]time.Duration, b.N+1)
				b.ResetTimer()
				for w := range writers {
					all.Go(func() {
						for i := n.Add(1); i <= uint64(b.N); i = n.Add(1) {
							began := time.Now()
							if _, err := dbs[w%nodes].Commit(context.Background(), leaseTxn(i, value)); err != nil {
								b.Error(err)
								return
							}
							took[i] = time.Since(began)
						}
					})
				}
				all.Wait()
				b.StopTimer()
				slices.Sort(took)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "txn/s")
				b.ReportMetric(float64(took[b.N*99/100].Microseconds())/1e3, "p99-ms")
			})
		}
		b.Run(fmt.Sprintf("%d/plain", writers), func(b *testing.B) { benchmarkPlain(b, writers) })
	}
}

// rowsEach is how many rows a leaseTxn is: four of its own, one record, three of its indexes.
const rowsEach = 8

func benchmarkPlain(b *testing.B, batch int) {
	ctx := b.Context()
	conn, err := pgx.Connect(ctx, database(b))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `CREATE TABLE plain (tab smallint, name bytea, since bigint, bytes bytea, PRIMARY KEY (tab, name))`); err != nil {
		b.Fatal(err)
	}
	value := storetest.Random(340)
	b.ResetTimer()
	for done := 0; done < b.N; done += batch {
		n := min(batch, b.N-done) * rowsEach
		tabs, names, values := make([]int16, n), make([][]byte, n), make([][]byte, n)
		for i := range n {
			tabs[i], values[i] = int16(i%rowsEach), value
			if names[i] = storetest.Random(44); i%rowsEach > 4 {
				values[i] = value[:8]
			}
		}
		var q pgx.Batch
		q.Queue(`BEGIN`)
		q.Queue(`INSERT INTO plain SELECT tab, name, 1, bytes FROM unnest($1::smallint[], $2::bytea[], $3::bytea[]) AS i (tab, name, bytes)`, tabs, names, values)
		q.Queue(`COMMIT`)
		if err := conn.SendBatch(ctx, &q).Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "txn/s")
}
