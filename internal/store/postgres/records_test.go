package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/store"
)

// dayName is the nth name of an audit table on a day.
func dayName(day uint32, n int) string {
	return string(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, day), uint64(n))) + "\x00\x00\x00\x00"
}

// commit commits what f does.
func commit(t testing.TB, b *Backend, f func(store.Write)) {
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

func snap(t testing.TB, b *Backend) store.Snapshot {
	t.Helper()
	s, err := b.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// names are those of a range, which both directions of a scan, and Get, agree upon.
func names(t testing.TB, s store.Snapshot, r store.Range) (found []string) {
	t.Helper()
	for e, err := range s.Scan(r, false) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, e.Key.Name)
		if stored, err := s.Get(e.Key); err != nil || string(stored) != string(e.Bytes) {
			t.Errorf("get of %q: %q, %v", e.Key.Name, stored, err)
		}
	}
	n := len(found)
	for e, err := range s.Scan(r, true) {
		if err != nil {
			t.Fatal(err)
		}
		if n--; n < 0 || found[n] != e.Key.Name {
			t.Fatalf("in reverse %q comes at %d of %d", e.Key.Name, n, len(found))
		}
	}
	if n != 0 {
		t.Errorf("in reverse %d fewer", n)
	}
	return found
}

// Days that are pruned are gone from the commit on; whoever shows an earlier state shows them yet; then their partitions go.
func TestPrunedDaysGo(t *testing.T) {
	url := database(t)
	b := connect(t, url)
	defer b.Close()
	other := connect(t, url)
	defer other.Close()
	today := uint32(time.Now().Unix() / 86400)
	const days, each = 6, 40
	b.days.Store(today-(days-1), nil) // so that the oldest has no partition of its own
	tables := []store.Table{store.Records, store.ByPath, store.ByWho}
	commit(t, b, func(w store.Write) {
		for d := range uint32(days) {
			for n := range each {
				for _, table := range tables {
					w.Set(store.Key{Table: table, Name: dayName(today-d, n)}, fmt.Append(nil, "of day ", d))
				}
			}
		}
	})
	if n := count(t, b, `SELECT count(*) FROM lessor.records_rest`); n != 3*each {
		t.Fatalf("%d rows have no partition of their day", n)
	}
	old := snap(t, other)
	const kept = 2
	cut := string(binary.BigEndian.AppendUint32(nil, today-kept+1))
	commit(t, b, func(w store.Write) {
		for _, table := range tables {
			w.DeleteRange(store.Range{Table: table, To: cut})
		}
		w.Set(store.Key{Table: store.Records, Name: dayName(today, each)}, []byte("who pruned"))
	})
	check := func(what string, s store.Snapshot, want int) {
		t.Helper()
		if got := len(names(t, s, store.Range{Table: store.ByWho})); got != want*each {
			t.Errorf("%s: %d rows, not %d", what, got, want*each)
		}
		// A range within a day, one across days, one that has an end only.
		day := dayName(today-3, 0)[:dayLen]
		within := names(t, s, store.Range{Table: store.Records, From: day, To: dayName(today-3, each/2)})
		across := names(t, s, store.Range{Table: store.Records, From: dayName(today-4, each/2), To: dayName(today, 1)})
		until := names(t, s, store.Range{Table: store.ByPath, To: dayName(today-1, 0)})
		if want == days && (len(within) != each/2 || len(across) != each/2+3*each+1 || len(until) != 4*each) ||
			want == kept && (len(within) != 0 || len(across) != each+1 || len(until) != 0) {
			t.Errorf("%s: %d within a day, %d across days, %d until yesterday", what, len(within), len(across), len(until))
		}
		stored, err := s.Get(store.Key{Table: store.Records, Name: dayName(today-3, 1)})
		if err != nil || (stored != nil) != (want == days) {
			t.Errorf("%s: get of a day that was pruned: %q, %v", what, stored, err)
		}
	}
	partition := func() int {
		return count(t, b, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'lessor.records'::regclass`)
	}
	sweep := func() {
		t.Helper()
		for _, n := range []*Backend{other, b} {
			if err := n.beat(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := b.retire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	all := partition()
	later := snap(t, b)
	defer later.Close()
	check("the state before", old, days)
	check("the state after", later, kept)
	sweep()
	if partition() != all {
		t.Error("a partition was dropped under a snapshot that shows it")
	}
	check("the state before, swept", old, days)
	old.Close()
	latest := snap(t, other) // what the other node shows now
	defer latest.Close()

	// Whoever reads the trail for long holds up the drop, and the drop holds up nobody.
	reader := connectTo(t, url)
	tx, err := reader.BeginTx(t.Context(), pgx.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT count(*) FROM lessor.records`); err != nil {
		t.Fatal(err)
	}
	sweep()
	if partition() != all {
		t.Error("a partition was dropped under a reader")
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); partition() != all-(days-1-kept); sweep() {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d partitions are left", partition(), all)
		}
	}
	if n := count(t, b, `SELECT count(*) FROM lessor.records_rest`); n != 0 {
		t.Errorf("%d rows of a day without a partition are left", n)
	}
	check("the state after, once they went", later, kept)
	check("the latest state", latest, kept)
	if n := count(t, b, `SELECT count(*) FROM lessor.floors`); n != len(tables) {
		t.Errorf("%d floors", n)
	}

	// A table that is emptied, as before a restore, takes any day again.
	commit(t, b, func(w store.Write) {
		for _, table := range tables {
			w.DeleteRange(store.Range{Table: table})
		}
		w.Set(store.Key{Table: store.Records, Name: dayName(today-100, 1)}, []byte("restored"))
	})
	s := snap(t, b)
	defer s.Close()
	if got := names(t, s, store.Range{Table: store.Records}); len(got) != 1 {
		t.Errorf("%d rows are in the emptied table", len(got))
	}
}

// While a drop waits for a reader of the trail, commits are held up for a moment at most.
func TestDropHoldsUpNobody(t *testing.T) {
	url := database(t)
	b, db := connect(t, url), node(t, url, "writer")
	defer b.Close()
	today := time.Now().UTC().Truncate(24 * time.Hour)
	if err := b.part(t.Context(), today.AddDate(0, 0, -1)); err != nil {
		t.Fatal(err)
	}
	sql(t, url, fmt.Sprintf(`INSERT INTO lessor.floors SELECT t, '\x%x', 0 FROM generate_series(%d, %d) t`,
		binary.BigEndian.AppendUint32(nil, uint32(today.Unix()/86400)), firstRecords, lastRecords))
	reader := connectTo(t, url)
	tx, err := reader.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `SELECT count(*) FROM lessor.records`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- b.retire(t.Context()) }()
	var slowest time.Duration
	for going := true; going; {
		began := time.Now()
		if _, err := add(t.Context(), db, "n"); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(began))
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			going = false
		default:
		}
	}
	if slowest > 15*time.Second { // without its bound, the drop would wait for the reader, and commits for the drop
		t.Errorf("a commit took %s", slowest)
	}
}
