package storetest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// stored is value as a backend is given it, at a version.
func stored(version uint64, value string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, version), value...)
}

func write(t *testing.T, b store.Backend, f func(store.Write)) {
	t.Helper()
	w, err := b.Begin()
	if err != nil {
		t.Fatal(err)
	}
	f(w)
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

func snapshot(t *testing.T, b store.Backend) store.Snapshot {
	t.Helper()
	s, err := b.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// list is the names and values in r.
func list(t *testing.T, s store.Snapshot, r store.Range, reverse bool) string {
	t.Helper()
	var out []string
	for e, err := range s.Scan(r, reverse) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Key.Table != r.Table {
			t.Errorf("scan of %s yields a key of %s", r.Table, e.Key.Table)
		}
		out = append(out, fmt.Sprintf("%s=%s@%d", e.Key.Name, e.Bytes[8:], binary.BigEndian.Uint64(e.Bytes)))
	}
	return strings.Join(out, " ")
}

func wantList(t *testing.T, s store.Snapshot, r store.Range, want string) {
	t.Helper()
	if got := list(t, s, r, false); got != want {
		t.Errorf("scan of %s %q to %q: got %s, want %s", r.Table, r.From, r.To, got, want)
	}
	words := strings.Fields(want)
	slices.Reverse(words)
	if got, want := list(t, s, r, true), strings.Join(words, " "); got != want {
		t.Errorf("reverse scan of %s %q to %q: got %s, want %s", r.Table, r.From, r.To, got, want)
	}
}

const (
	tableA = store.Engine
	tableB = store.Secrets
)

// backendTests hold for every Backend.
var backendTests = []struct {
	name string
	test func(*testing.T, func() store.Backend)
}{
	{"order", testOrder},
	{"ranges", testRanges},
	{"snapshots", testSnapshots},
	{"durable", testDurable},
	{"exclusive", testExclusive},
	{"abort", testAbort},
	{"binary", testBinary},
	{"large", testLarge},
}

func testOrder(t *testing.T, open func() store.Backend) {
	b := open()
	defer b.Close()
	write(t, b, func(w store.Write) {
		for _, name := range []string{"m", "b", "z", "a", "c"} {
			w.Set(store.Key{Table: tableA, Name: name}, stored(1, "A"+name))
		}
		w.Set(store.Key{Table: tableB, Name: "b"}, stored(1, "B"))
		w.Set(store.Key{Table: tableA - 1, Name: "q"}, stored(1, "Q"))
	})
	s := snapshot(t, b)
	defer s.Close()
	wantList(t, s, store.Range{Table: tableA}, "a=Aa@1 b=Ab@1 c=Ac@1 m=Am@1 z=Az@1")
	wantList(t, s, store.Range{Table: tableA, From: "b"}, "b=Ab@1 c=Ac@1 m=Am@1 z=Az@1")
	wantList(t, s, store.Range{Table: tableA, From: "b", To: "m"}, "b=Ab@1 c=Ac@1")
	wantList(t, s, store.Range{Table: tableA, From: "bb", To: "mm"}, "c=Ac@1 m=Am@1")
	wantList(t, s, store.Range{Table: tableA, From: "zz"}, "")
	wantList(t, s, store.Range{Table: tableB}, "b=B@1")
	wantList(t, s, store.Range{Table: tableB + 1}, "")
	for _, c := range []struct{ from, to, want string }{{"", "", "z"}, {"", "m", "c"}, {"", "a", ""}, {"n", "y", ""}} {
		e, err := store.Last(s, store.Range{Table: tableA, From: c.from, To: c.to})
		if err != nil || e.Key.Name != c.want || (c.want == "") != (e.Bytes == nil) {
			t.Errorf("last of %q to %q: %q, %v", c.from, c.to, e.Key.Name, err)
		}
	}
	for range s.Scan(store.Range{Table: tableA}, false) {
		break // a scan may be left early
	}
	if v, err := s.Get(store.Key{Table: tableA, Name: "aa"}); v != nil || err != nil {
		t.Errorf("what is not there: %q, %v", v, err)
	}
	if v, err := s.Get(store.Key{Table: tableB, Name: "b"}); !bytes.Equal(v, stored(1, "B")) || err != nil {
		t.Errorf("get: %q, %v", v, err)
	}
}

func testRanges(t *testing.T, open func() store.Backend) {
	b := open()
	defer b.Close()
	set := func(w store.Write, version uint64, names string) {
		for _, n := range strings.Split(names, "") {
			w.Set(store.Key{Table: tableA, Name: n}, stored(version, ""))
		}
	}
	write(t, b, func(w store.Write) { set(w, 1, "abcdefgh"); w.Set(store.Key{Table: tableB, Name: "c"}, stored(1, "")) })
	write(t, b, func(w store.Write) {
		w.DeleteRange(store.Range{Table: tableA, From: "b", To: "e"}) // takes b, c and d, but not what is set
		set(w, 2, "xd")
		w.Delete(store.Key{Table: tableA, Name: "g"})
		w.Delete(store.Key{Table: tableA, Name: "nothing"})
	})
	s := snapshot(t, b)
	wantList(t, s, store.Range{Table: tableA}, "a=@1 d=@2 e=@1 f=@1 h=@1 x=@2")
	s.Close()
	write(t, b, func(w store.Write) { w.DeleteRange(store.Range{Table: tableA, From: "f"}) })
	s = snapshot(t, b)
	wantList(t, s, store.Range{Table: tableA}, "a=@1 d=@2 e=@1")
	wantList(t, s, store.Range{Table: tableB}, "c=@1")
	s.Close()
	write(t, b, func(w store.Write) { w.DeleteRange(store.Range{Table: tableA}) })
	s = snapshot(t, b)
	wantList(t, s, store.Range{Table: tableA}, "")
	s.Close()
}

func testSnapshots(t *testing.T, open func() store.Backend) {
	b := open()
	defer b.Close()
	k := store.Key{Table: tableA, Name: "k"}
	write(t, b, func(w store.Write) { w.Set(k, stored(1, "one")) })
	before := snapshot(t, b)
	defer before.Close()
	w, err := b.Begin()
	if err != nil {
		t.Fatal(err)
	}
	buf := stored(2, "two")
	w.Set(k, buf)
	clear(buf) // Set keeps no reference
	w.Set(store.Key{Table: tableA, Name: "l"}, stored(2, "new"))
	during := snapshot(t, b)
	defer during.Close()
	var versions [3]uint64
	if err := w.Versions([]store.Key{k, {Table: tableA, Name: "l"}, {Table: tableB, Name: "k"}}, versions[:]); err != nil || versions != [3]uint64{1} {
		t.Errorf("versions within a write: %v, %v", versions, err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	after := snapshot(t, b)
	defer after.Close()
	wantList(t, before, store.Range{Table: tableA}, "k=one@1")
	wantList(t, during, store.Range{Table: tableA}, "k=one@1")
	wantList(t, after, store.Range{Table: tableA}, "k=two@2 l=new@2")
	write(t, b, func(w store.Write) { w.DeleteRange(store.Range{Table: tableA}) })
	wantList(t, after, store.Range{Table: tableA}, "k=two@2 l=new@2")
	v, err := after.Get(k)
	if err != nil {
		t.Fatal(err)
	}
	v[8] = 'X' // a copy
	wantList(t, after, store.Range{Table: tableA}, "k=two@2 l=new@2")
}

func testDurable(t *testing.T, open func() store.Backend) {
	for i := range 3 {
		b := open()
		s := snapshot(t, b)
		var want []string
		for j := range i {
			want = append(want, fmt.Sprintf("%d=v@%d", j, j+1))
		}
		wantList(t, s, store.Range{Table: tableA}, strings.Join(want, " "))
		s.Close()
		write(t, b, func(w store.Write) {
			w.Set(store.Key{Table: tableA, Name: fmt.Sprint(i)}, stored(uint64(i+1), "v"))
		})
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func testExclusive(t *testing.T, open func() store.Backend) {
	b := open()
	defer b.Close()
	k := store.Key{Table: tableA, Name: "n"}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				w, err := b.Begin()
				if err != nil {
					t.Error(err)
					return
				}
				var v [1]uint64
				if err := w.Versions([]store.Key{k}, v[:]); err != nil {
					t.Error(err)
				}
				w.Set(k, stored(v[0]+1, ""))
				if err := w.Commit(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	s := snapshot(t, b)
	defer s.Close()
	wantList(t, s, store.Range{Table: tableA}, "n=@160")
}

func testAbort(t *testing.T, open func() store.Backend) {
	b := open()
	defer b.Close()
	w, err := b.Begin()
	if err != nil {
		t.Fatal(err)
	}
	w.Set(store.Key{Table: tableA, Name: "k"}, stored(1, ""))
	w.Abort()
	w.Abort()
	again := make(chan struct{})
	go func() {
		defer close(again)
		w, err := b.Begin()
		if err != nil {
			t.Error(err)
			return
		}
		w.Set(store.Key{Table: tableA, Name: "l"}, stored(1, ""))
		if err := w.Commit(); err != nil {
			t.Error(err)
		}
		w.Abort() // does nothing
	}()
	select {
	case <-again:
	case <-time.After(10 * time.Second):
		t.Fatal("an aborted write still holds the store")
	}
	s := snapshot(t, b)
	defer s.Close()
	wantList(t, s, store.Range{Table: tableA}, "l=@1")
}

func testBinary(t *testing.T, open func() store.Backend) {
	b := open()
	defer b.Close()
	names := []string{"\x00", "\x00\x00", "\x00\xff", "a", "a\x00", "a\x00b", "\x7f", "\x80", "\xc3\x28", "\xff", "\xff\x00", "\xff\xff\xff"}
	write(t, b, func(w store.Write) {
		for _, n := range names {
			w.Set(store.Key{Table: tableA, Name: n}, stored(1, n+"\x00\xff"))
		}
	})
	slices.Sort(names)
	s := snapshot(t, b)
	defer s.Close()
	i := 0
	for e, err := range s.Scan(store.Range{Table: tableA}, false) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Key.Name != names[i] || string(e.Bytes[8:]) != names[i]+"\x00\xff" {
			t.Errorf("name %d: got %q, want %q", i, e.Key.Name, names[i])
		}
		i++
	}
	if i != len(names) {
		t.Errorf("%d names of %d", i, len(names))
	}
}

func testLarge(t *testing.T, open func() store.Backend) {
	b := open()
	value := string(bytes.Repeat([]byte("0123456789abcdef"), 1<<16)) // 1 MiB
	write(t, b, func(w store.Write) {
		for i := range 8 {
			w.Set(store.Key{Table: tableA, Name: fmt.Sprint(i)}, stored(1, value))
		}
	})
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = open()
	defer b.Close()
	s := snapshot(t, b)
	defer s.Close()
	v, err := s.Get(store.Key{Table: tableA, Name: "7"})
	if err != nil || string(v[8:]) != value {
		t.Errorf("%d bytes, %v", len(v), err)
	}
	if used, _ := b.Usage(); used <= 0 {
		t.Errorf("uses %d bytes", used)
	}
}
