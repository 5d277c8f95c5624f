package postgres

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lessor-dev/lessor/internal/store"
)

// write is a transaction under the cluster's lock, and the changes that Commit will send.
type write struct {
	b     *Backend
	conn  *pgxpool.Conn // nil once the write is over
	epoch int64         // that its changes are since
	steps []step
	last  map[store.Key]int // where in the last step each key is
	space []byte            // what steps refer to
}

// step is the deletion of a range, or a run of changes of distinct keys.
type step struct {
	drop    *store.Range
	changes []change
	size    int
}

type change struct {
	table int16
	name  []byte
	bytes []byte // nil: deleted
}

// stepBytes bounds what one statement carries.
const stepBytes = 8 << 20

// Begin waits for the Write that is open, here or on another node, for up to twenty seconds.
func (b *Backend) Begin() (store.Write, error) {
	var w *write
	err := b.attempt(connectPatience+lockPatience, func(ctx context.Context) error {
		conn, err := b.writer.Acquire(ctx)
		if err != nil {
			return err
		}
		w = &write{b: b, conn: conn}
		if err = w.begin(ctx); err != nil {
			w.Abort()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// begin takes the lock, then looks: each statement of READ COMMITTED sees what was committed before it began.
func (w *write) begin(ctx context.Context) error {
	var batch pgx.Batch
	batch.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`)
	batch.Queue(`SET LOCAL synchronous_commit = on`)
	batch.Queue(`SELECT pg_advisory_xact_lock($1)`, int64(writeLock))
	var found, least int32
	batch.Queue(`SELECT version, least, epoch FROM lessor.state`).QueryRow(func(row pgx.Row) error { return row.Scan(&found, &least, &w.epoch) })
	if err := w.conn.SendBatch(ctx, &batch).Close(); err != nil {
		return err
	}
	w.epoch++
	return compatible(found, least)
}

var _ store.Exact = (*write)(nil)

var errOver = errors.New("postgresql: the write is over")

const versionsSQL = `SELECT i.n, substr(r.bytes, 1, 8)
FROM unnest($1::smallint[], $2::bytea[]) WITH ORDINALITY AS i (tab, name, n)
JOIN lessor.rows r ON r.tab = i.tab AND r.name = i.name`

// Versions does not know the rows of the audit tables: no condition is ever about one.
func (w *write) Versions(keys []store.Key, versions []uint64) error {
	if w.conn == nil {
		return errOver
	}
	clear(versions[:len(keys)])
	tabs, names := make([]int16, len(keys)), make([][]byte, len(keys))
	for i, k := range keys {
		tabs[i], names[i] = int16(k.Table), []byte(k.Name)
	}
	ctx, cancel := context.WithTimeout(w.b.link.current(), readPatience)
	defer cancel()
	rows, err := w.conn.Query(ctx, versionsSQL, tabs, names)
	if err != nil {
		return wrap(err)
	}
	var n int64
	var stored []byte
	_, err = pgx.ForEachRow(rows, []any{&n, &stored}, func() error {
		if len(stored) == 8 {
			versions[n-1] = binary.BigEndian.Uint64(stored)
		}
		return nil
	})
	return wrap(err)
}

func (w *write) Set(k store.Key, stored []byte) { w.change(k, keep(w, stored)) }
func (w *write) Delete(k store.Key)             { w.change(k, nil) }

func (w *write) DeleteRange(r store.Range) { w.steps = append(w.steps, step{drop: &r}) }

// change notes a change in the last run; a later change of a key takes the place of an earlier one.
func (w *write) change(k store.Key, bytes []byte) {
	if inRecords(k.Table) && bytes != nil {
		w.b.expect(k.Name)
	}
	n := len(w.steps)
	if n == 0 || w.steps[n-1].drop != nil || w.steps[n-1].size > stepBytes {
		w.steps = append(w.steps, step{})
		w.last = make(map[store.Key]int)
		n++
	}
	s := &w.steps[n-1]
	s.size += len(k.Name) + len(bytes)
	if i, again := w.last[k]; again {
		s.changes[i].bytes = bytes
		return
	}
	w.last[k] = len(s.changes)
	s.changes = append(s.changes, change{int16(k.Table), keep(w, k.Name), bytes})
}

// keep copies text into the write's space. What it returns is never nil, which would be NULL.
func keep[T ~string | ~[]byte](w *write, text T) []byte {
	if w.space == nil || cap(w.space)-len(w.space) < len(text) {
		w.space = make([]byte, 0, max(16<<10, 2*cap(w.space), len(text)))
	}
	from := len(w.space)
	w.space = append(w.space, text...)
	return w.space[from:len(w.space):len(w.space)]
}

// Commit sends everything in one round trip. When it returns without an error, the changes are durable.
func (w *write) Commit() error {
	if w.conn == nil {
		return errOver
	}
	defer w.Abort()
	var batch pgx.Batch
	for i := range w.steps {
		w.steps[i].queue(&batch, w.epoch)
	}
	batch.Queue(`UPDATE lessor.state SET epoch = $1`, w.epoch)
	done := ""
	batch.Queue(`COMMIT`).Exec(func(tag pgconn.CommandTag) error { done = tag.String(); return nil })
	ctx, cancel := context.WithTimeout(w.b.link.current(), commitPatience)
	defer cancel()
	if err := w.conn.SendBatch(ctx, &batch).Close(); err != nil {
		return wrap(err)
	}
	if done != "COMMIT" {
		return errors.New("postgresql: the server did not commit: " + done)
	}
	w.b.pins.heard(w.epoch)
	w.conn.Release()
	w.conn = nil
	return nil
}

// State is the epoch's, which no other commit has.
func (w *write) State() store.Snapshot { return w.b.snapshot(w.epoch) }

// Abort rolls back. A connection on which that fails is given up, and the server with it.
func (w *write) Abort() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), abortPatience)
	defer cancel()
	if _, err := w.conn.Exec(ctx, `ROLLBACK`); err != nil {
		_ = w.conn.Conn().Close(ctx) // nothing is lost that was not lost before
	}
	w.conn.Release()
	w.conn = nil
}

// queue adds the statements of a step.
func (s *step) queue(batch *pgx.Batch, epoch int64) {
	if s.drop != nil && inRecords(s.drop.Table) {
		dropRecords(batch, *s.drop, epoch)
		return
	}
	if s.drop != nil {
		r := bounds(*s.drop)
		batch.Queue(dropSQL, r.fromTab, r.from, r.toTab, r.to, epoch)
		return
	}
	var gone, once, again, records, unrecorded columns
	for _, c := range s.changes {
		switch {
		case inRecords(store.Table(c.table)) && c.bytes == nil:
			unrecorded.add(c)
		case inRecords(store.Table(c.table)):
			records.add(c)
		case c.bytes == nil:
			gone.add(c)
		case store.Table(c.table).Once():
			once.add(c)
		default:
			again.add(c)
		}
	}
	if len(records.tabs) > 0 {
		batch.Queue(recordSQL, records.tabs, records.names, records.bytes, epoch)
	}
	if len(unrecorded.tabs) > 0 {
		batch.Queue(unrecordSQL, unrecorded.tabs, unrecorded.names)
	}
	if len(once.tabs) > 0 {
		batch.Queue(addSQL, once.tabs, once.names, once.bytes, epoch)
	}
	if len(again.tabs) > 0 {
		batch.Queue(setSQL, again.tabs, again.names, again.bytes, epoch)
	}
	if len(gone.tabs) > 0 {
		batch.Queue(deleteSQL, gone.tabs, gone.names, epoch)
	}
}

// columns are changes as arrays.
type columns struct {
	tabs         []int16
	names, bytes [][]byte
}

func (cs *columns) add(c change) {
	cs.tabs, cs.names, cs.bytes = append(cs.tabs, c.table), append(cs.names, c.name), append(cs.bytes, c.bytes)
}

// addSQL is setSQL for rows that were not there before the write.
const addSQL = `INSERT INTO lessor.rows (tab, name, since, bytes)
SELECT tab, name, $4, bytes FROM unnest($1::smallint[], $2::bytea[], $3::bytea[]) AS i (tab, name, bytes)
ON CONFLICT (tab, name) DO UPDATE SET since = EXCLUDED.since, bytes = EXCLUDED.bytes`

// setSQL: both parts of the statement see the rows as they were before it.
const setSQL = `WITH i AS MATERIALIZED (
	SELECT * FROM unnest($1::smallint[], $2::bytea[], $3::bytea[]) AS i (tab, name, bytes)
), old AS (
	INSERT INTO lessor.past (tab, name, since, until, bytes)
	SELECT r.tab, r.name, r.since, $4, r.bytes FROM i JOIN lessor.rows r ON r.tab = i.tab AND r.name = i.name WHERE r.since < $4
)
INSERT INTO lessor.rows (tab, name, since, bytes) SELECT tab, name, $4, bytes FROM i
ON CONFLICT (tab, name) DO UPDATE SET since = EXCLUDED.since, bytes = EXCLUDED.bytes`

const deleteSQL = `WITH gone AS (
	DELETE FROM lessor.rows r USING unnest($1::smallint[], $2::bytea[]) AS i (tab, name)
	WHERE r.tab = i.tab AND r.name = i.name RETURNING r.*
)
INSERT INTO lessor.past (tab, name, since, until, bytes) SELECT tab, name, since, $3, bytes FROM gone WHERE since < $3`

const dropSQL = `WITH gone AS (
	DELETE FROM lessor.rows r WHERE (tab, name) >= ($1::smallint, $2::bytea) AND (tab, name) < ($3::smallint, $4::bytea) RETURNING r.*
)
INSERT INTO lessor.past (tab, name, since, until, bytes) SELECT tab, name, since, $5, bytes FROM gone WHERE since < $5`
