package postgres

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
)

// Rows that are overwritten again and again take the space that they took at first, or some times that, however often.
func TestHotRowsDoNotBloat(t *testing.T) {
	b := connect(t, database(t))
	defer b.Close()
	const rows, rounds = 2000, 200
	names := make([]string, rows)
	for i := range names {
		names[i] = store.MountKey(1, "mount", string(binary.BigEndian.AppendUint64(nil, uint64(i)*0x9e3779b97f4a7c15)))
	}
	value := make([]byte, 300)
	overwrite := func() {
		commit(t, b, func(w store.Write) {
			for _, name := range names {
				w.Set(store.Key{Table: store.Engine, Name: name}, value)
			}
		})
	}
	size := func(table string) int { return count(t, b, `SELECT pg_total_relation_size($1::text::regclass)`, table) }
	reclaimed := func() {
		for deadline := time.Now().Add(time.Minute); count(t, b, `SELECT count(*) FROM lessor.past`) > rows; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the past is not reclaimed")
			}
			if err := b.beat(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := b.sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	overwrite()
	first := size("lessor.rows")
	for i := range rounds {
		overwrite()
		if i%10 == 0 { // however fast these overwrite
			reclaimed()
		}
	}
	reclaimed()
	if now := size("lessor.rows"); now > 12*first {
		t.Errorf("%d rows that took %d bytes take %d after they were overwritten %d times", rows, first, now, rounds)
	}
	if past := size("lessor.past"); past > (rounds/2)*first {
		t.Errorf("the past of %d rows of %d bytes takes %d", rows, first, past)
	}
	t.Logf("rows: %d bytes at first, %d after; past: %d", first, size("lessor.rows"), size("lessor.past"))
}
