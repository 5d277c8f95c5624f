package lease

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/pebble"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// durable is a world on disk.
func durable(b *testing.B) *world {
	backend, err := pebble.Open(b.TempDir(), pebble.Options{Ballast: -1})
	if err != nil {
		b.Fatal(err)
	}
	db, err := store.Open(backend, store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := db.Unseal(storetest.NewCipher("bench")); err != nil {
		b.Fatal(err)
	}
	w := &world{failer: b, db: db, target: newServer(), random: newWorldRandom(), stop: func() {}}
	w.reaper = New(Options{Store: db, Revert: w.target.revert, Random: w.random})
	b.Cleanup(func() { w.close() })
	return w
}

// readOnce is what a read of a static secret commits: its audit record, and seldom its hold.
func (w *world) readOnce(h Holder) error {
	v, err := w.db.View()
	if err != nil {
		return err
	}
	defer v.Close()
	now := w.db.Now()
	txn := store.Txn{}
	_, id, err := Hold(&txn, Reading{View: v, Mount: secret, Path: "secret/data/app", Value: Value{Path: "app", Version: 1, Current: 1}, Holder: h, Now: now, Random: w.random})
	if err != nil {
		return err
	}
	txn.Audit = []audit.Record{{Time: now, Request: "3f5f6f4c-58d1-44a4-b4a9-6f2b7d3cbb2b", Operation: "read", Namespace: 1, Path: "secret/data/app", Phase: audit.Done,
		Entity: h.Entity, Accessor: "2c84f488-2133-4ced-87b0-570f93a76830", Client: "10.1.2.3", Granted: true, Rule: `path "secret/*"`, Policy: "app", PolicyVersion: 7, Lease: id}}
	_, err = w.db.Commit(context.Background(), txn)
	return err
}

// BenchmarkHold is the decision alone: what leasing adds to a read. "grown" has a hold that was extended before.
func BenchmarkHold(b *testing.B) {
	for _, grown := range []bool{false, true} {
		b.Run(map[bool]string{false: "young", true: "grown"}[grown], func(b *testing.B) {
			w := durable(b)
			w.read(1, alice)
			now := w.db.Now()
			if grown {
				now = now.Add(4 * time.Hour)
				w.read(1, alice, func(r *Reading) { r.Now = now })
			}
			v, err := w.db.View()
			w.must(err)
			defer v.Close()
			b.ReportAllocs()
			for b.Loop() {
				var txn store.Txn
				_, _, err := Hold(&txn, Reading{View: v, Mount: secret, Path: "secret/data/app", Value: Value{Path: "app", Version: 1, Current: 1}, Holder: alice, Now: now, Random: w.random})
				if err != nil || len(txn.Puts) > 0 {
					b.Fatal(err, len(txn.Puts))
				}
			}
		})
	}
}

// BenchmarkHotSecret is audited, leased, durable reads of one secret by 128 requests at once: of one holder, and of as many.
func BenchmarkHotSecret(b *testing.B) {
	for _, holders := range []int{1, 128} {
		b.Run(fmt.Sprint("holders=", holders), func(b *testing.B) {
			w := durable(b)
			for i := range holders {
				w.read(1, Holder{Entity: "e", Instance: fmt.Sprint(i)})
			}
			var n atomic.Int64
			b.SetParallelism(64)
			b.RunParallel(func(pb *testing.PB) {
				h := Holder{Entity: "e", Instance: fmt.Sprint(int(n.Add(1)) % holders)}
				for pb.Next() {
					if err := w.readOnce(h); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
		})
	}
}

// BenchmarkDrain has 100,000 leases due in the same second, 2,000 of them at a target that takes 700 µs for each of four connections, under 1,000
// reads/s that arrive on time whatever happens. Idle and busy are their 99th percentiles.
func BenchmarkDrain(b *testing.B) {
	const all, dynamic, rate = 100_000, 2_000, 1_000
	const each = 700 * time.Microsecond
	for range b.N {
		b.StopTimer()
		w := durable(b)
		w.target.each = each
		due := time.Now().Add(3 * time.Minute)
		w.fill(all, dynamic, due)
		w.read(1, alice)
		for end := time.Now().Add(time.Second); time.Now().Before(end); { // settle down
			w.must(w.readOnce(alice))
		}
		idle := w.load(rate, 3*time.Second, nil)
		w.reaper.Store = early{w.db, time.Until(due)}
		stop := make(chan struct{})
		b.StartTimer()
		began := time.Now()
		go func() {
			for w.reaper.Metrics().Reverted < dynamic {
				time.Sleep(time.Millisecond)
			}
			b.ReportMetric(time.Since(began).Seconds(), "s/roles")
			for w.reaper.Metrics().Expired < all {
				time.Sleep(time.Millisecond)
			}
			close(stop)
		}()
		w.start()
		busy := w.load(rate, time.Minute, stop)
		b.StopTimer()
		straight := (dynamic * each / 4).Seconds()
		b.ReportMetric(straight, "s/straight")
		b.ReportMetric(time.Since(began).Seconds(), "s/all")
		b.ReportMetric(float64(p99(idle).Microseconds()), "µs-idle")
		b.ReportMetric(float64(p99(busy).Microseconds()), "µs-busy")
		b.ReportMetric(float64(p99(busy))/float64(p99(idle)), "busy/idle")
		w.stop()
	}
}

// early is a store whose time is ahead of the clock.
type early struct {
	Store
	by time.Duration
}

func (a early) Now() time.Time { return a.Store.Now().Add(a.by) }

func (w *world) fill(all, dynamic int, due time.Time) {
	var txn store.Txn
	for i := range all {
		l := &Lease{Namespace: lessor.RootNamespace, Mount: secret.UUID, ID: fmt.Sprintf("secret/data/app/%024d", i), Kind: Static, State: Live, Issued: w.db.Now(),
			Expires: due.Add(time.Duration(i%1000) * -time.Millisecond), Holder: Holder{Entity: "e", Alias: "a", Instance: fmt.Sprint(i)}, Owner: "team-a", Secret: "app", Version: 1}
		if i%(all/dynamic) == 0 {
			l.Mount, l.ID, l.Kind, l.Target, l.Token = database.UUID, fmt.Sprintf("database/creds/app/%024d", i), Dynamic, "pg", hash("t")
			l.Intent = make([]byte, 300)
		}
		w.view(func(v store.View) { l.Position = v.Position() })
		Add(&txn, l)
		if l.Kind == Static {
			k := l.pointerKey()
			txn.Put(k.Table, k.Name, l.pointer().encode())
		}
		if len(txn.Puts) > 10_000 || i == all-1 {
			_, err := w.db.Commit(ctx, txn)
			w.must(err)
			txn = store.Txn{}
		}
	}
}

// load reads rate times a second until the time is over or stop is closed, and returns how long each read took from when it should have begun.
func (w *world) load(rate int, d time.Duration, stop chan struct{}) []time.Duration {
	var mu sync.Mutex
	var took []time.Duration
	var reads sync.WaitGroup
	began := time.Now()
	for i := 0; time.Since(began) < d; i++ {
		select {
		case <-stop:
			reads.Wait()
			return took
		default:
		}
		at := began.Add(time.Duration(i) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(at))
		reads.Go(func() {
			w.must(w.readOnce(alice))
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(at))
		})
	}
	reads.Wait()
	return took
}

func p99(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)*99/100]
}

// BenchmarkUsers lists the ten thousand holders of a secret that is rotated, a tenth of whom were seen to read again; "settle" is until its last version is dead for all.
func BenchmarkUsers(b *testing.B) {
	const holders = 10_000
	w := durable(b)
	w.fill(holders, 1, w.db.Now().Add(time.Hour))
	var txn store.Txn
	for i := range holders {
		l := &Lease{Namespace: secret.Namespace, Mount: secret.UUID, ID: fmt.Sprintf("secret/data/app/%024d", i), Holder: Holder{Entity: "e", Alias: "a", Instance: fmt.Sprint(i)},
			Secret: "app", Version: 1, Rotatable: true}
		k := l.pointerKey()
		txn.Put(k.Table, k.Name, l.pointer().encode())
		if i%10 == 0 {
			txn.Put(store.Holds, l.name(), encode(hold{}.next(w.db.Now())))
		}
	}
	_, err := w.db.Commit(ctx, txn)
	w.must(err)
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			w.view(func(v store.View) {
				users, err := Users(v, secret, "app")
				w.must(err)
				if len(users) != holders {
					b.Fatalf("%d users", len(users))
				}
			})
		}
	})
	b.Run("settle", func(b *testing.B) {
		dead := uint64(0)
		for b.Loop() {
			dead++
			w.settle(dead, 0)
		}
	})
}
