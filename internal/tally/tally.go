// Package tally keeps a flood of refusals from filling the disk. A refusal changes nothing and shows nothing, so it needs
// no record of its own before its answer leaves: the first of a source in a second has one, at once; the rest of
// that second are counted, and the count is one record, made when the second is over.
//
// A source is an address: of IPv6 its /64, which is what one line of a provider has. Memory is bounded however
// many addresses a flood comes from, and so is what is written: beyond so many sources in a second those that come later
// share the bucket of their network, and at last one for all.
package tally

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// Bounds of one second.
const (
	sources  = 64 // sources that are told apart
	networks = 32 // networks (/24, /48) of sources beyond them
	probes   = 16 // records of their own that each source's probes get; see Probe
)

// Kind is what the caller wants of a refusal.
type Kind uint8

const (
	Plain Kind = iota + 1 // the first of its source has a record of its own
	Probe                 // a security event: the first sixteen of its source have
	Quiet                 // counted only
)

// Tally counts refusals. Its methods are safe for concurrent use.
type Tally struct {
	commit  func(context.Context, []audit.Record) error
	mu      sync.Mutex
	second  time.Time // that buckets are of
	buckets map[key]*bucket
	own     map[string]int // records of their own that sources got in this second
	wide    int            // buckets that are networks
	over    []audit.Record // of seconds that are over, not yet committed
}

// New makes a Tally whose counts go to commit, which makes them durable in one piece. A commit that fails is tried again
// with the next.
func New(commit func(context.Context, []audit.Record) error) *Tally {
	return &Tally{commit: commit, buckets: map[key]*bucket{}, own: map[string]int{}}
}

// key tells buckets of one second apart.
type key struct{ source, class string }

// bucket is what was counted besides the records that were made at once.
type bucket struct {
	rec audit.Record // of the first one counted; Path is what all have in common
	n   uint64
}

// Add takes notice of a refusal, whose record would be rec. class tells reasons apart: what is of different classes is not
// counted together. If Add returns true, rec is the caller's to commit at once; if not, it is counted.
func (t *Tally) Add(client netip.Addr, class string, kind Kind, rec audit.Record) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if second := rec.Time.Truncate(time.Second); second.After(t.second) {
		t.close()
		t.second = second
	}
	source := Source(client)
	k := key{source, class}
	b := t.buckets[k]
	if b == nil && len(t.buckets)-t.wide >= sources {
		k.source = Network(client)
		if b = t.buckets[k]; b == nil {
			if t.wide >= networks {
				k = key{source: "others"}
				b = t.buckets[k]
			}
			if b == nil {
				b = t.open(k)
				t.wide++
			}
		}
	}
	if b == nil {
		b = t.open(k)
	}
	if k.source == source && t.owns(source, class, kind) {
		return true
	}
	b.add(k.source, rec)
	return false
}

func (t *Tally) open(k key) *bucket {
	b := &bucket{}
	t.buckets[k] = b
	return b
}

// owns reports whether the refusal gets a record of its own, and counts that.
func (t *Tally) owns(source, class string, kind Kind) bool {
	most := 0
	switch kind {
	case Plain:
		most = 1
	case Probe:
		most = probes
	}
	name := source + "\x00" + class
	if t.own[name] >= most {
		return false
	}
	t.own[name]++
	return true
}

func (b *bucket) add(source string, rec audit.Record) {
	if b.n++; b.n == 1 {
		b.rec = rec
		b.rec.Client, b.rec.Request = source, ""
		return
	}
	b.rec.Path = common(b.rec.Path, rec.Path)
	b.rec.Granted = b.rec.Granted && rec.Granted
	for _, f := range []struct{ have, next *string }{
		{&b.rec.Operation, &rec.Operation}, {&b.rec.ErrorKind, &rec.ErrorKind}, {&b.rec.Note, &rec.Note}, {&b.rec.Rule, &rec.Rule},
		{&b.rec.Accessor, &rec.Accessor}, {&b.rec.Entity, &rec.Entity}, {&b.rec.Name, &rec.Name}, {&b.rec.Alias, &rec.Alias}, {&b.rec.Role, &rec.Role},
		{&b.rec.Instance, &rec.Instance},
	} {
		if *f.have != *f.next {
			*f.have = "" // said only if it is so of all
		}
	}
	if b.rec.Operation == "" {
		b.rec.Operation = "various"
	}
}

// common is what two paths begin with, in whole segments.
func common(a, b string) string {
	if a == b {
		return a
	}
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:strings.LastIndexByte(a[:n], '/')+1]
}

// close ends the second: its counts become records.
func (t *Tally) close() {
	for _, b := range t.buckets {
		if b.n > 0 {
			b.rec.Count = b.n
			t.over = append(t.over, b.rec)
		}
	}
	clear(t.buckets)
	clear(t.own)
	t.wide = 0
	if len(t.over) > backlog {
		t.over = fold(t.over)
	}
}

// backlog is how many records wait for a commit, at most, while the store takes none.
const backlog = 4 * (sources + networks + 1)

// fold makes one record of each source and error.
func fold(records []audit.Record) []audit.Record {
	buckets := map[[2]string]*bucket{}
	for _, r := range records {
		k := [2]string{r.Client, r.ErrorKind}
		if buckets[k] == nil && len(buckets) >= sources {
			k = [2]string{"others"}
		}
		b := buckets[k]
		if b == nil {
			b = &bucket{}
			buckets[k] = b
		}
		n := b.n
		b.add(k[0], r)
		b.n = n + r.Count
		b.rec.Count = b.n
	}
	out := make([]audit.Record, 0, len(buckets))
	for _, b := range buckets {
		out = append(out, b.rec)
	}
	return out
}

// Flush commits the counts of the seconds that are over at now.
func (t *Tally) Flush(ctx context.Context, now time.Time) error {
	t.mu.Lock()
	if now.Truncate(time.Second).After(t.second) {
		t.close()
	}
	records := t.over
	t.over = nil
	t.mu.Unlock()
	if len(records) == 0 {
		return nil
	}
	err := t.commit(ctx, records)
	if err != nil {
		t.mu.Lock()
		t.over = append(records, t.over...)
		t.mu.Unlock()
	}
	return err
}

// Run flushes each second until ctx ends, and once more then. What a crash takes with it are the counts of the second
// under way and of the one before.
func (t *Tally) Run(ctx context.Context, now func() time.Time, failed func(error)) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		if err := t.Flush(ctx, now()); err != nil && ctx.Err() == nil {
			failed(err)
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := t.Flush(last, now().Add(time.Second)); err != nil {
		failed(err)
	}
}

// Source is what counts as one source: an IPv4 address, or the /64 that an IPv6 address is in.
func Source(a netip.Addr) string {
	a = a.Unmap()
	switch {
	case !a.IsValid():
		return ""
	case a.Is4(), a.IsLoopback():
		return a.String()
	}
	return masked(a, 64)
}

// Network is the neighbourhood of a source: the /24, or the /48.
func Network(a netip.Addr) string {
	a = a.Unmap()
	switch {
	case !a.IsValid():
		return ""
	case a.Is4():
		return masked(a, 24)
	}
	return masked(a, 48)
}

func masked(a netip.Addr, bits int) string {
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return a.String() // there is no such prefix only of what is no address
	}
	return p.String()
}
