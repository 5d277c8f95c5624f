package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lessor-dev/lessor/internal/store"
)

// The audit tables (store.Records, ByPath, ByWho) lie in table records, partitioned by the day with which their names begin: what
// is older than the retention goes with its partition, which costs no vacuum. Their rows are written once and never overwritten, so that
// they need no past.
//
// Partitions are made a week ahead, and for other days before their first row is written. If that does not succeed at once, the
// rows go to the default partition, records_rest: no commit fails for want of a partition.
//
// Pruning a day is a floor, for each of the tables: from the epoch of the commit on, what lies below is not there. Snapshots of earlier
// epochs still show it, since partitions are dropped only once the horizon has passed that epoch. To drop one needs a moment
// without readers of records; whoever waits for that holds up commits, so it waits for a tenth of a second, and comes
// back a minute later if there was no such moment.
//
// Version 1 had these rows in table rows. They move from there in pieces, and both places are read for as long as
// there is a version that may find some in the old one.

const (
	partitionsAhead = 7                      // days
	partitionWait   = 100 * time.Millisecond // for locks that hold up commits
	expectPatience  = 2 * time.Second
	movedRows       = 5000 // at once
)

// inRecords reports whether table's rows lie in table records.
func inRecords(t store.Table) bool {
	return t == store.Records || t == store.ByPath || t == store.ByWho
}

// firstRecords and lastRecords are the audit tables' numbers, which have nothing else between them.
const firstRecords, lastRecords = int16(store.Records), int16(store.ByWho)

// Statements that delete from the audit tables. Only the first is for what the store does while it serves.
const (
	floorSQL = `INSERT INTO lessor.floors (tab, name, since) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	// unfloorSQL is for a table that is emptied, as before a restore: what comes back lies at any day.
	unfloorSQL = `DELETE FROM lessor.floors WHERE tab = $1`
	eraseSQL   = `WITH moved AS (DELETE FROM lessor.records WHERE tab = $1 AND name >= $2 AND name < $3)
DELETE FROM lessor.rows WHERE tab = $1 AND name >= $2 AND name < $3`
	unrecordSQL = `WITH gone AS (SELECT * FROM unnest($1::smallint[], $2::bytea[]) AS i (tab, name)),
moved AS (DELETE FROM lessor.records r USING gone i WHERE r.tab = i.tab AND r.name = i.name)
DELETE FROM lessor.rows r USING gone i WHERE r.tab = i.tab AND r.name = i.name`
)

// dropRecords queues the deletion of a range of an audit table. The days before some day go by a floor; anything else, which
// the store does to a table that it is about to fill anew, goes row by row, and from snapshots as well.
func dropRecords(batch *pgx.Batch, r store.Range, epoch int64) {
	tab := int16(r.Table)
	switch {
	case r.From == "" && len(r.To) == dayLen:
		batch.Queue(floorSQL, tab, []byte(r.To), epoch)
		return
	case r.From == "" && r.To == "":
		batch.Queue(unfloorSQL, tab)
	}
	batch.Queue(eraseSQL, tab, []byte(r.From), recordsEnd(r.To))
}

// dayLen is how much of a name is its day: days since 1970, big endian.
const dayLen = 4

// recordsEnd is the end of a range of an audit table, whose names are at most 24 bytes long.
func recordsEnd(to string) []byte {
	if to == "" {
		return bytes.Repeat([]byte{0xff}, 32)
	}
	return []byte(to)
}

// recordsSQL reads a chunk of a range of an audit table: table, from, to, epoch, count. The range's days are in the text,
// so that the planner sees which partitions it can leave out.
const recordsSQL = `SELECT h.reclaimed, u.name, u.bytes FROM lessor.horizon h LEFT JOIN LATERAL (
	(SELECT name, bytes FROM lessor.records WHERE tab = $1 AND name >= greatest($2, (
			SELECT f.name FROM lessor.floors f WHERE f.tab = $1 AND f.since <= $4 ORDER BY f.name DESC LIMIT 1))
		AND name < $3 AND since <= $4 AND name >= '\x%[2]x' AND name < '\x%[3]x' ORDER BY name %[1]s LIMIT $5)
	UNION ALL
	(SELECT name, bytes FROM lessor.rows WHERE tab = $1 AND name >= greatest($2, (
			SELECT f.name FROM lessor.floors f WHERE f.tab = $1 AND f.since <= $4 ORDER BY f.name DESC LIMIT 1))
		AND name < $3 AND since <= $4 ORDER BY name %[1]s LIMIT $5)
	ORDER BY name %[1]s LIMIT $5
) u ON true ORDER BY u.name %[1]s`

// recordsScan is recordsSQL for a range.
func recordsScan(from, to []byte, reverse bool) string {
	order := "ASC"
	if reverse {
		order = "DESC"
	}
	first, last := dayOf(from), dayOf(to)
	if last < 1<<32-1 {
		last++
	}
	end := binary.BigEndian.AppendUint32(nil, last)
	if last == 1<<32-1 {
		end = recordsEnd("")
	}
	return fmt.Sprintf(recordsSQL, order, binary.BigEndian.AppendUint32(nil, first), end)
}

// dayOf is the day of a name, or of the beginning of one.
func dayOf(name []byte) uint32 {
	var day [dayLen]byte
	copy(day[:], name)
	return binary.BigEndian.Uint32(day[:])
}

// recordGetSQL reads one row of an audit table: table, name, epoch.
const recordGetSQL = `SELECT h.reclaimed, coalesce(
	(SELECT bytes FROM lessor.records WHERE tab = $1 AND name = $2 AND since <= $3 AND name >= '\x%[1]x' AND name < '\x%[2]x'
		AND NOT EXISTS (SELECT FROM lessor.floors f WHERE f.tab = $1 AND f.name > $2 AND f.since <= $3)),
	(SELECT bytes FROM lessor.rows WHERE tab = $1 AND name = $2 AND since <= $3
		AND NOT EXISTS (SELECT FROM lessor.floors f WHERE f.tab = $1 AND f.name > $2 AND f.since <= $3)))
FROM lessor.horizon h`

// recordGet is recordGetSQL for a name.
func recordGet(name []byte) string {
	first := dayOf(name)
	end := binary.BigEndian.AppendUint32(nil, first+1)
	if first == 1<<32-1 {
		end = recordsEnd("")
	}
	return fmt.Sprintf(recordGetSQL, binary.BigEndian.AppendUint32(nil, first), end)
}

// partition names the table of a day (UTC).
func partition(day time.Time) string { return "records_" + day.Format("20060102") }

// partitions are the days that have a partition.
func partitions(ctx context.Context, q interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
}) (days map[time.Time]bool, err error) {
	rows, err := q.Query(ctx, `SELECT c.relname FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'lessor.records'::regclass`)
	if err != nil {
		return nil, err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	days = make(map[time.Time]bool)
	for _, name := range names {
		if day, err := time.Parse("records_20060102", name); err == nil {
			days[day] = true
		}
	}
	return days, err
}

// provide makes the partitions of today and of the week to come.
func (b *Backend) provide(ctx context.Context) error {
	var now time.Time
	if err := b.keeper.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return err
	}
	var days []time.Time
	for n := range partitionsAhead + 1 {
		days = append(days, now.UTC().Truncate(24*time.Hour).AddDate(0, 0, n))
	}
	return b.part(ctx, days...)
}

// part makes the partitions of the days that have none. Attaching one locks out neither writers nor readers of
// other partitions but the default one; where that has rows of the day already, there they stay, and the day has no partition.
func (b *Backend) part(ctx context.Context, days ...time.Time) error {
	have, err := partitions(ctx, b.keeper)
	if err != nil || !slices.ContainsFunc(days, func(day time.Time) bool { return !have[day] }) {
		return err
	}
	err = b.alone(ctx, func(tx pgx.Tx) error {
		if have, err = partitions(ctx, tx); err != nil {
			return err
		}
		for _, day := range days {
			if have[day] {
				continue
			}
			if err := attach(ctx, tx, day); err != nil {
				return err
			}
		}
		return nil
	})
	if busy(err) {
		return nil // the next round will find a better moment
	}
	return err
}

// expect makes the partition of the day of a row that is about to be written, if need be: a restore brings days of long ago, and a cluster that
// slept for weeks has made none for today. It is tried once a day, and not for long, as rows may go to the default partition.
func (b *Backend) expect(name string) {
	day := dayOf([]byte(name))
	if b.day.Load() == uint64(day)+1 {
		return
	}
	if _, known := b.days.LoadOrStore(day, nil); !known {
		ctx, cancel := context.WithTimeout(b.link.current(), expectPatience)
		defer cancel()
		if err := b.part(ctx, time.Unix(int64(day)*86400, 0).UTC()); err != nil {
			b.log.Warn("postgresql: audit records of a day have no partition of their own", "day", day, "error", wrap(err))
		}
	}
	b.day.Store(uint64(day) + 1)
}

// attach makes the partition of a day.
func attach(ctx context.Context, tx pgx.Tx, day time.Time) error {
	n := uint32(day.Unix() / 86400)
	from, to := binary.BigEndian.AppendUint32(nil, n), binary.BigEndian.AppendUint32(nil, n+1)
	var late bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM lessor.records_rest WHERE tab BETWEEN $1 AND $2 AND name >= $3 AND name < $4)`,
		firstRecords, lastRecords, from, to).Scan(&late)
	if err != nil || late || day.Year() > 9999 {
		return err
	}
	_, err = tx.Exec(ctx, fmt.Sprintf(`CREATE TABLE lessor.%[1]s (LIKE lessor.records INCLUDING ALL);
ALTER TABLE lessor.records ATTACH PARTITION lessor.%[1]s FOR VALUES FROM ('\x%[2]x') TO ('\x%[3]x')`, partition(day), from, to), pgx.QueryExecModeSimpleProtocol)
	return err
}

// alone runs f in a transaction, once no other node makes, drops or fills partitions. f waits for no lock longer than partitionWait.
func (b *Backend) alone(ctx context.Context, f func(pgx.Tx) error) error {
	return b.quick(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(recordLock)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = %d`, partitionWait.Milliseconds())); err != nil {
			return err
		}
		return f(tx)
	})
}

// busy reports whether err says that a lock was not to be had in time.
func busy(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && said.Code == "55P03"
}

// cutSQL is the name below which no snapshot shows any row of the audit tables; NULL if there is none.
const cutSQL = `SELECT f.name FROM generate_series($1::integer, $2::integer) AS t (tab) CROSS JOIN lessor.horizon h LEFT JOIN LATERAL (
	SELECT name FROM lessor.floors WHERE tab = t.tab AND since <= h.reclaimed ORDER BY name DESC LIMIT 1) AS f ON true
ORDER BY f.name NULLS FIRST LIMIT 1`

// retireSQL deletes rows below the cut that have no partition of their own.
const retireSQL = `DELETE FROM lessor.records_rest WHERE ctid = ANY (ARRAY(
	SELECT ctid FROM lessor.records_rest WHERE tab = $1 AND name < $2 ORDER BY name LIMIT 10000))`

// lapseSQL forgets floors that a later one makes needless.
const lapseSQL = `DELETE FROM lessor.floors f USING lessor.horizon h WHERE EXISTS (
	SELECT FROM lessor.floors g WHERE g.tab = f.tab AND g.name > f.name AND g.since <= h.reclaimed)`

// retire drops the partitions that no snapshot shows any more.
func (b *Backend) retire(ctx context.Context) error {
	var cut []byte
	if err := b.keeper.QueryRow(ctx, cutSQL, firstRecords, lastRecords).Scan(&cut); err != nil || cut == nil {
		return err
	}
	days, err := partitions(ctx, b.keeper)
	if err != nil {
		return err
	}
	for day := range days {
		if uint32(day.Unix()/86400) >= dayOf(cut) {
			continue
		}
		err := b.alone(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `DROP TABLE IF EXISTS lessor.`+partition(day))
			return err
		})
		if busy(err) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	for tab := firstRecords; tab <= lastRecords; tab++ {
		for n := int64(1); n > 0; {
			tag, err := b.keeper.Exec(ctx, retireSQL, tab, cut)
			if err != nil {
				return err
			}
			n = tag.RowsAffected()
		}
	}
	_, err = b.keeper.Exec(ctx, lapseSQL)
	return err
}

// moveSQL moves rows of one audit table to where they belong, in one statement: readers see them in one place.
const moveSQL = `WITH gone AS (
	DELETE FROM lessor.rows WHERE ctid = ANY (ARRAY(
		SELECT ctid FROM lessor.rows WHERE tab = $1 AND name < $2 ORDER BY name LIMIT $3)) RETURNING tab, name, since, bytes
)
INSERT INTO lessor.records SELECT * FROM gone`

// move moves what version 1 left, in pieces, until nothing is left or ctx ends. A day gets its partition before its first row comes.
func (b *Backend) move(ctx context.Context) error {
	for tab := firstRecords; tab <= lastRecords; tab++ {
		for {
			var first []byte
			err := b.keeper.QueryRow(ctx, `SELECT name FROM lessor.rows WHERE tab = $1 ORDER BY name LIMIT 1`, tab).Scan(&first)
			if errors.Is(err, pgx.ErrNoRows) {
				break
			}
			if err != nil {
				return err
			}
			day := dayOf(first)
			if err := b.part(ctx, time.Unix(int64(day)*86400, 0).UTC()); err != nil {
				return err
			}
			err = b.alone(ctx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, moveSQL, tab, binary.BigEndian.AppendUint32(nil, day+1), movedRows)
				return err
			})
			if err != nil && !busy(err) {
				return err
			}
		}
	}
	b.tidy.Store(true)
	return nil
}

// tend is the chore of the partitions.
func (b *Backend) tend(ctx context.Context) error {
	errs := []error{b.provide(ctx), b.retire(ctx)}
	if !b.tidy.Load() {
		errs = append(errs, b.move(ctx))
	}
	return errors.Join(errs...)
}
