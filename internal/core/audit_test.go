package core_test

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/exporter"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/system"
)

// told collects a log.
type told struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *told) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *told) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// prune lets a core over the same store do what it does every hour.
func (g *gate) prune(patience time.Duration) string {
	g.Helper()
	log := &told{}
	c, err := core.New(core.Options{Store: g.db, Keys: g.core.Keys, Random: g.core.Random, Backends: g.backends, ExportWait: patience, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		g.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(g.Context(), 300*time.Millisecond)
	defer cancel()
	c.Run(ctx)
	return log.String()
}

// oldest is the first record that is still there.
func (g *gate) oldest() time.Time {
	g.Helper()
	all, _, err := g.db.Records(store.Query{Limit: 1})
	if err != nil || len(all) == 0 {
		g.Fatalf("%v, %v", all, err)
	}
	return all[0].Commit.Truncate(24 * time.Hour)
}

// TestRetentionWaitsForAuditDevices: what a device was not told is kept beyond retention, but not for ever.
func TestRetentionWaitsForAuditDevices(t *testing.T) {
	g := startWith(t, store.Options{Retention: 24 * time.Hour}, func(o *core.Options) { o.ExportWait = 30 * 24 * time.Hour })
	x := exporter.New(exporter.Options{Store: g.db, Keys: g.core.Keys})
	g.backends["system"].(*system.Backend).Exporters = x
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); x.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })

	socket := t.TempDir() + "/collector"
	g.do(g.root, lessor.Update, "sys/audit/slow", `{"type":"socket","options":{"address":"`+socket+`","socket_type":"unix","skip_test":"true"}}`)
	first := g.db.Now().Truncate(24 * time.Hour)
	for range 4 {
		g.clock.Advance(24 * time.Hour)
		g.do(g.root, lessor.Read, "sys/mounts", "")
	}
	if log := g.prune(30 * 24 * time.Hour); !strings.Contains(log, "an audit device lags") {
		t.Errorf("nobody was told: %s", log)
	}
	if at := g.oldest(); !at.Equal(first) {
		t.Fatalf("the oldest record is of %v, want %v: what the device was not told is gone", at, first)
	}

	// The collector comes back and is told; then retention does its work.
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				b := make([]byte, 1<<16)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
				}
			}()
		}
	}()
	untold := func() uint64 {
		v, err := g.db.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		seq, _, err := exporter.Untold(v)
		if err != nil {
			t.Fatal(err)
		}
		return seq
	}
	head := g.db.Head().Seq
	for deadline := time.Now().Add(time.Minute); untold() <= head; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the device was not told")
		}
		x.Reload() // saves the cursor
	}
	if log := g.prune(30 * 24 * time.Hour); strings.Contains(log, "lag") {
		t.Errorf("log: %s", log)
	}
	if at, want := g.oldest(), g.db.Now().Add(-24*time.Hour).Truncate(24*time.Hour); !at.Equal(want) {
		t.Errorf("the oldest record is of %v, want %v", at, want)
	}

	// It goes away for longer than anybody waits.
	_ = l.Close()
	cancel()
	<-done
	for range 5 {
		g.clock.Advance(24 * time.Hour)
		g.do(g.root, lessor.Read, "sys/mounts", "")
	}
	if log := g.prune(48 * time.Hour); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "exporter_patience") {
		t.Errorf("nobody was told: %s", log)
	}
	if at, want := g.oldest(), g.db.Now().Add(-72*time.Hour).Truncate(24*time.Hour); !at.Equal(want) {
		t.Errorf("the oldest record is of %v, want %v", at, want)
	}
	records := g.last("sys/lessor/audit")
	if len(records) == 0 || records[0].Operation != "prune" || records[0].Note == "" {
		t.Errorf("pruning is not on record: %+v", records)
	}
}
