package tally

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

type book struct {
	mu      sync.Mutex
	records []audit.Record
	fail    error
}

func (b *book) commit(_ context.Context, records []audit.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail == nil {
		b.records = append(b.records, records...)
	}
	return b.fail
}

func denial(path string, at time.Time) audit.Record {
	return audit.Record{Time: at, Operation: "read", Path: path, Phase: audit.Done, ErrorKind: "unauthenticated", Note: "no token", Request: "r"}
}

func TestOneSource(t *testing.T) {
	b := &book{}
	ta := New(b.commit)
	ann := netip.MustParseAddr("192.0.2.1")
	first := 0
	for i := range 1000 {
		if ta.Add(ann, "a", Plain, denial(fmt.Sprintf("auth/userpass/login/user%d", i), epoch.Add(time.Duration(i)*time.Millisecond/2))) {
			first++
		}
	}
	if first != 1 {
		t.Errorf("%d records at once, want 1", first)
	}
	if err := ta.Flush(t.Context(), epoch); err != nil || len(b.records) != 0 {
		t.Errorf("before the second is over: %v %v", b.records, err)
	}
	if err := ta.Flush(t.Context(), epoch.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if len(b.records) != 1 {
		t.Fatalf("records: %+v", b.records)
	}
	r := b.records[0]
	if r.Count != 999 || r.Client != "192.0.2.1" || r.Path != "auth/userpass/login/" || r.Note != "no token" || r.Request != "" || !r.Time.Equal(epoch.Add(time.Millisecond/2)) {
		t.Errorf("count: %+v", r)
	}
	if !ta.Add(ann, "a", Plain, denial("x", epoch.Add(time.Second))) {
		t.Error("the first of the next second is not told at once")
	}
	if err := ta.Flush(t.Context(), epoch.Add(time.Hour)); err != nil || len(b.records) != 1 {
		t.Errorf("a record of nothing: %+v", b.records)
	}
}

func TestKinds(t *testing.T) {
	ta := New((&book{}).commit)
	own := map[Kind]int{}
	for _, k := range []Kind{Plain, Probe, Quiet} {
		for range 100 {
			if ta.Add(netip.MustParseAddr("192.0.2.1"), fmt.Sprint(k), k, denial("x", epoch)) {
				own[k]++
			}
		}
	}
	if own[Plain] != 1 || own[Probe] != probes || own[Quiet] != 0 {
		t.Errorf("records of their own: %v", own)
	}
}

// Whatever a flood is made of, memory and records are bounded, and every refusal is in some count.
func TestManySources(t *testing.T) {
	for name, addr := range map[string]func(i int) netip.Addr{
		"IPv4": func(i int) netip.Addr {
			return netip.AddrFrom4([4]byte{byte(i >> 12), byte(i >> 8), byte(i >> 3), byte(i)})
		},
		"one /24": func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) },
		"IPv6": func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, byte(i), byte(i >> 8), 4: byte(i >> 3)})
		},
		"one /64":     func(i int) netip.Addr { return netip.AddrFrom16([16]byte{0x20, 1, 14: byte(i >> 8), 15: byte(i)}) },
		"no address":  func(int) netip.Addr { return netip.Addr{} },
		"mapped IPv4": func(i int) netip.Addr { return netip.AddrFrom16(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).As16()) },
	} {
		b := &book{}
		ta := New(b.commit)
		const n = 50_000
		told := uint64(0)
		for i := range n {
			if ta.Add(addr(i), "a", Plain, denial("x", epoch)) {
				told++
			}
			if len(ta.buckets) > sources+networks+1 {
				t.Fatalf("%s: %d buckets", name, len(ta.buckets))
			}
		}
		_ = ta.Flush(t.Context(), epoch.Add(time.Second))
		if len(b.records) > sources+networks+1 || told > sources {
			t.Errorf("%s: %d counts, %d records at once", name, len(b.records), told)
		}
		for _, r := range b.records {
			told += r.Count
		}
		if told != n {
			t.Errorf("%s: %d refusals on record of %d", name, told, n)
		}
		if one := name == "one /64" || name == "no address"; one && len(b.records) != 1 {
			t.Errorf("%s is %d sources", name, len(b.records))
		}
	}
}

func TestStoreAway(t *testing.T) {
	b := &book{fail: errors.New("away")}
	ta := New(b.commit)
	const n, seconds = 200, 50
	told := uint64(0)
	for s := range seconds {
		at := epoch.Add(time.Duration(s) * time.Second)
		for i := range n {
			if ta.Add(netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), "a", Plain, denial("x", at)) {
				told++
			}
		}
		if ta.Flush(t.Context(), at.Add(time.Second)) == nil {
			t.Fatal("no error")
		}
		if len(ta.over) > 2*backlog {
			t.Fatalf("%d records wait", len(ta.over))
		}
	}
	b.fail = nil
	if err := ta.Flush(t.Context(), epoch.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.records {
		told += r.Count
	}
	if told != n*seconds {
		t.Errorf("%d refusals on record of %d", told, n*seconds)
	}
}

func TestRunFlushesAtTheEnd(t *testing.T) {
	b := &book{}
	ta := New(b.commit)
	for range 3 {
		ta.Add(netip.MustParseAddr("::1"), "a", Plain, denial("x", epoch))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ta.Run(ctx, func() time.Time { return epoch }, func(err error) { t.Error(err) })
	if len(b.records) != 1 || b.records[0].Count != 2 {
		t.Errorf("at the end: %+v", b.records)
	}
}

func TestConcurrent(t *testing.T) {
	b := &book{}
	ta := New(b.commit)
	var all sync.WaitGroup
	var told sync.Map
	for g := range 8 {
		all.Go(func() {
			n := 0
			for i := range 2000 {
				if ta.Add(netip.AddrFrom4([4]byte{10, 0, byte(g), byte(i)}), "a", Plain, denial("x", epoch.Add(time.Duration(i)*time.Millisecond))) {
					n++
				}
				if i%100 == 0 {
					_ = ta.Flush(context.Background(), epoch.Add(time.Duration(i)*time.Millisecond))
				}
			}
			told.Store(g, n)
		})
	}
	all.Wait()
	_ = ta.Flush(t.Context(), epoch.Add(time.Hour))
	sum := 0
	told.Range(func(_, n any) bool { sum += n.(int); return true })
	for _, r := range b.records {
		sum += int(r.Count)
	}
	if sum != 16000 {
		t.Errorf("%d refusals on record of 16000", sum)
	}
}
