package postgres

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/store"
)

// plan is the server's generic plan of a statement, as a session of lessor's has it.
func plan(t *testing.T, b *Backend, statement string, args string) string {
	t.Helper()
	conn, err := b.readers.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), `DEALLOCATE ALL; PREPARE it AS `+statement, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%v in %s", err, statement)
	}
	rows, err := conn.Query(t.Context(), `EXPLAIN (COSTS off) EXECUTE it (`+args+`)`, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	conn.Conn().Close(t.Context()) // it no longer has the statements that the pool thinks it has
	return strings.Join(lines, "\n")
}

// Whatever reads or reclaims finds its rows by an index, and reads no partition of days that it does not ask for, whatever the
// planner knows of the tables.
func TestPlans(t *testing.T) {
	url := database(t)
	b := connect(t, url)
	defer b.Close()
	today := time.Now().UTC().Truncate(24 * time.Hour)
	day := func(n int) []byte {
		return binary.BigEndian.AppendUint32(nil, uint32(today.AddDate(0, 0, n).Unix()/86400))
	}
	fill := fmt.Sprintf(`INSERT INTO lessor.rows SELECT 1 + n %% 19, decode(lpad(to_hex(n), 24, '0'), 'hex'), 1, '\x0000000000000001' FROM generate_series(1, 20000) n;
INSERT INTO lessor.past SELECT 1 + n %% 19, decode(lpad(to_hex(n), 24, '0'), 'hex'), 1, n, '\x0000000000000001' FROM generate_series(1, 20000) n;
INSERT INTO lessor.records SELECT 3, '\x%x' || decode(lpad(to_hex(n), 24, '0'), 'hex'), 1, '\x0000000000000001' FROM generate_series(1, 5000) n;
INSERT INTO lessor.records SELECT 3, '\x%x' || decode(lpad(to_hex(n), 24, '0'), 'hex'), 1, '\x0000000000000001' FROM generate_series(1, 5000) n`, day(0), day(-3))
	sql(t, url, fill)
	name := func(day []byte) []byte { return append(append([]byte(nil), day...), make([]byte, 12)...) }
	within, _ := interval{fromTab: 3, toTab: 3, from: name(day(1)), to: day(2)}.scan(store.Records, false)
	across, _ := interval{fromTab: 3, toTab: 3, from: name(day(1)), to: name(day(2))}.scan(store.Records, true)
	whole, _ := bounds(store.Range{Table: store.Records}).scan(store.Records, false)
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			sql(t, url, `ANALYZE`)
		}
		for what, s := range map[string]struct {
			sql, args string
			days      []int // whose partitions it may read; nil: any
		}{
			"get":               {getSQL, `1, '\x00', 5`, nil},
			"scan":              {forwardSQL, `1, '\x00', 1, '\x01', 5, 16`, nil},
			"scan in reverse":   {reverseSQL, `1, '\x00', 2, '', 5, 16`, nil},
			"get of a record":   {recordGet(name(day(1))), `3, '\x00', 5`, []int{1}},
			"a day's records":   {within, `3, '\x00', '\x01', 5, 16`, []int{1, 2}},
			"two days' records": {across, `3, '\x00', '\x01', 5, 16`, []int{1, 2}},
			"all records":       {whole, `3, '\x00', '\x01', 5, 16`, nil},
			"reclaim":           {reclaimSQL, ``, nil},
			"retire":            {retireSQL, `3, '\x00'`, nil},
			"move":              {moveSQL, `3, '\x00', 16`, nil},
		} {
			args := s.args
			if args == "" {
				s.sql, args = s.sql+" AND $1 = $1", "true"
				s.sql = strings.Replace(s.sql, "$1 = $1", "$1::boolean", 1)
			}
			found := plan(t, b, s.sql, args)
			for _, line := range strings.Split(found, "\n") {
				for _, table := range []string{"rows", "past", "records"} {
					if strings.Contains(line, "Seq Scan on "+table) || strings.Contains(line, "Bitmap") {
						t.Errorf("%s, analyzed %t: %s\n%s", what, analyzed, strings.TrimSpace(line), found)
					}
				}
			}
			if s.days == nil {
				continue
			}
			if strings.Contains(found, "records_rest") {
				t.Errorf("%s reads the partition of days that have none:\n%s", what, found)
			}
			read := strings.Count(found, "_pkey on records_")
			if most := len(s.days); read > most || read == 0 {
				t.Errorf("%s reads %d partitions, not %d at most:\n%s", what, read, most, found)
			}
		}
	}
}
