package postgres

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lessor-dev/lessor/internal/store"
)

// place is a state among all that there ever were: epochs begin again from an earlier one after a failover that lost some, marks are drawn
// by chance.
type place struct {
	epoch int64
	mark  [16]byte
}

// write is a change on its way to commit_3. What Begin and Enter make has a connection from the start, and on that a transaction that
// holds the cluster's lock; a guess has a connection only in Commit.
type write struct {
	b    *Backend
	conn *pgxpool.Conn
	link context.Context // that conn was taken under; what is asked over conn ends with it
	base place           // the state that it is upon
	made place           // the state that it makes
	load *load           // nil once the write is over

	aside pgx.Batch // what commit_3 does not do: deletions from the audit tables, which are rare
}

var (
	_ store.Exact = (*write)(nil)
	_ store.Adder = (*write)(nil)
)

// load is what a write carries, as commit_3 takes it.
type load struct {
	asked         columns // with versions
	from, to      columns // of intervals to delete
	once, records columns // rows that are new: outside of the audit trail, and in it
	set           columns
	gone          columns
}

// columns are rows as arrays.
type columns struct{ tabs, names, bytes array }

func (c *columns) add(tab int16, name string) {
	c.tabs.addInt16(tab)
	put(&c.names, name)
}

func (l *load) parts() [7]*columns {
	return [...]*columns{&l.asked, &l.from, &l.to, &l.once, &l.records, &l.set, &l.gone}
}

func newLoad() *load {
	l := new(load)
	for _, c := range l.parts() {
		*c = columns{newArray(smallintOID), newArray(byteaOID), newArray(byteaOID)}
	}
	return l
}

// keptBytes is up to how much space a load leaves to the next.
const keptBytes = 16 << 20

// end makes the write be over, and keeps the load's space.
func (w *write) end() {
	size := 0
	for _, c := range w.load.parts() {
		for _, a := range [...]*array{&c.tabs, &c.names, &c.bytes} {
			size += cap(a.bytes)
			a.reset()
		}
	}
	if size <= keptBytes {
		w.b.spare.Store(w.load)
	}
	w.load = nil
	if w.conn != nil {
		free(w.conn)
		w.conn = nil
	}
}

// free gives a connection back. One that is closed keeps no place in the pool: there is but one for those who write, and the pool would
// wait for the server to say goodbye.
func free(c *pgxpool.Conn) {
	if c.Conn().IsClosed() {
		c.Hijack()
		return
	}
	c.Release()
}

// unasked has a connection that lay idle used as it is. A ping is not given up with the call that it is for, and would keep the one connection that
// writes waiting for a server that says nothing. What has arrived from the server tells take.
func unasked(context.Context, pgxpool.ShouldPingParams) bool { return false }

// take takes the connection that writes. One that the server ended while it lay idle is not it: whether a commit sent on that was made would
// be unknown until the server is back.
func (b *Backend) take(ctx context.Context) (*pgxpool.Conn, error) {
	for {
		conn, err := b.writer.Acquire(ctx)
		if err != nil || silent(conn.Conn().PgConn().Conn()) {
			return conn, err
		}
		_ = conn.Conn().PgConn().Conn().Close() // without a goodbye, which nobody hears
		_ = conn.Conn().Close(ctx)
		free(conn)
	}
}

func (b *Backend) newWrite() *write {
	l := b.spare.Swap(nil)
	if l == nil {
		l = newLoad()
	}
	return &write{b: b, load: l}
}

var errOver = errors.New("postgresql: the write is over")

// Begin waits for the Write that is open, here or on another node, for up to twenty seconds.
func (b *Backend) Begin() (store.Write, error) {
	w, _, err := b.enter(context.Background(), place{}, math.MaxInt64, nil, nil)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// Enter implements store.Shared.
func (b *Backend) Enter(ctx context.Context, at store.Snapshot, after uint64, keys []store.Key, versions []uint64) (store.Write, store.News, error) {
	floor := b.pins.hold()
	defer b.pins.release(floor)
	base := at.(*snapshot).place
	w, headers, err := b.enter(ctx, base, after, keys, versions)
	if err != nil {
		return nil, store.News{}, err
	}
	return w, b.news(base, w.base, headers), nil
}

// Guess implements store.Shared.
func (b *Backend) Guess(at store.Snapshot, keys []store.Key, versions []uint64) store.Write {
	w := b.newWrite()
	w.base = at.(*snapshot).place
	asked := &w.load.asked
	for i, k := range keys {
		asked.add(int16(k.Table), k.Name)
		if versions[i] == store.Any {
			put(&asked.bytes, "")
		} else {
			put(&asked.bytes, binary.BigEndian.AppendUint64(nil, versions[i]))
		}
	}
	return w
}

func (b *Backend) enter(ctx context.Context, base place, after uint64, keys []store.Key, versions []uint64) (w *write, headers []store.Stored, err error) {
	err = b.attemptFor(ctx, connectPatience+lockPatience, func(within context.Context) error {
		link := b.link.current() // if it is not the one that within hangs on, then that is over, and there is no connection
		conn, err := b.take(within)
		if err != nil {
			return err
		}
		w = b.newWrite()
		w.conn, w.link = conn, link
		if headers, err = w.enter(within, base, after, keys, versions); err != nil {
			w.Abort()
		}
		return err
	})
	return w, headers, err
}

// enter takes the lock, then looks, in one round trip: each statement of READ COMMITTED sees what was committed before it began.
func (w *write) enter(ctx context.Context, base place, after uint64, keys []store.Key, versions []uint64) (headers []store.Stored, err error) {
	var batch pgx.Batch
	batch.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`)
	batch.Queue(`SELECT pg_advisory_xact_lock($1)`, int64(writeLock))
	queueLook(&batch, base, after, func(now place, found []store.Stored) { w.base, headers = now, found })
	if len(keys) > 0 {
		queueVersions(&batch, keys, versions)
	}
	return headers, w.conn.SendBatch(ctx, &batch).Close()
}

// queueLook adds lookSQL to a batch.
func queueLook(batch *pgx.Batch, base place, after uint64, told func(now place, headers []store.Stored)) {
	batch.Queue(lookSQL, base.epoch, base.mark[:], []byte(store.Uint64Key(after))).Query(func(rows pgx.Rows) error {
		now, headers, err := looked(rows)
		if err == nil {
			told(now, headers)
		}
		return err
	})
}

// looked reads the answer to lookSQL.
func looked(rows pgx.Rows) (now place, headers []store.Stored, err error) {
	var version, least int32
	var mark, name, bytes []byte
	_, err = pgx.ForEachRow(rows, []any{&version, &least, &now.epoch, &mark, &name, &bytes}, func() error {
		if err := compatible(version, least); err != nil {
			return err
		}
		if copy(now.mark[:], mark); name != nil {
			headers = append(headers, store.Stored{Key: store.Key{Table: store.Head, Name: string(name)}, Bytes: bytes})
		}
		return nil
	})
	return now, headers, err
}

// news are what was found at now by who shows base. The caller holds a pin that is not later than now.
func (b *Backend) news(base, now place, headers []store.Stored) store.News {
	b.told.Store(now.epoch)
	if now == base {
		return store.News{}
	}
	n := store.News{State: b.snapshot(now), Headers: headers}
	if len(headers) > newsHeaders {
		n.Headers, n.More = headers[:newsHeaders], true
	}
	return n
}

// queueVersions adds versionsSQL to a batch.
func queueVersions(batch *pgx.Batch, keys []store.Key, versions []uint64) {
	clear(versions[:len(keys)])
	tabs, names := make([]int16, len(keys)), make([][]byte, len(keys))
	for i, k := range keys {
		tabs[i], names[i] = int16(k.Table), []byte(k.Name)
	}
	batch.Queue(versionsSQL, tabs, names).Query(func(rows pgx.Rows) error {
		var n int64
		var stored []byte
		_, err := pgx.ForEachRow(rows, []any{&n, &stored}, func() error {
			if len(stored) == 8 {
				versions[n-1] = binary.BigEndian.Uint64(stored)
			}
			return nil
		})
		return err
	})
}

// Versions does not know the rows of the audit tables: no condition is ever about one.
func (w *write) Versions(keys []store.Key, versions []uint64) error {
	if w.conn == nil {
		return errOver
	}
	ctx, cancel := context.WithTimeout(w.link, readPatience)
	defer cancel()
	var batch pgx.Batch
	queueVersions(&batch, keys, versions)
	return wrap(reason(ctx, w.conn.SendBatch(ctx, &batch).Close()))
}

func (w *write) DeleteRange(r store.Range) {
	if inRecords(r.Table) {
		dropRecords(&w.aside, r, w.base.epoch+1)
		return
	}
	i := bounds(r)
	w.load.from.add(i.fromTab, string(i.from))
	w.load.to.add(i.toTab, string(i.to))
}

func (w *write) Set(k store.Key, stored []byte) {
	c := &w.load.set
	switch k.Table {
	case store.Head, store.Batches:
		c = &w.load.once
	default:
		if inRecords(k.Table) {
			w.b.expect(k.Name)
			c = &w.load.records
		}
	}
	c.add(int16(k.Table), k.Name)
	put(&c.bytes, stored)
}

// Add implements store.Adder.
func (w *write) Add(k store.Key, stored []byte) {
	w.load.once.add(int16(k.Table), k.Name)
	put(&w.load.once.bytes, stored)
}

func (w *write) Delete(k store.Key) {
	if inRecords(k.Table) {
		w.aside.Queue(unrecordSQL, []int16{int16(k.Table)}, [][]byte{[]byte(k.Name)})
		return
	}
	w.load.gone.add(int16(k.Table), k.Name)
}

// Commit sends everything in one round trip. When it returns without an error, the changes are durable.
func (w *write) Commit() error {
	if w.load == nil {
		return errOver
	}
	defer w.Abort()
	guess := w.conn == nil
	if guess {
		w.link = w.b.link.current()
	}
	ctx, cancel := context.WithTimeout(w.link, commitPatience)
	defer cancel()
	if guess {
		if w.aside.Len() > 0 {
			return store.ErrMoved // that takes the lock
		}
		if err := w.connect(ctx); err != nil {
			return fmt.Errorf("%w: %w", store.ErrMoved, wrap(err)) // nothing was sent: whoever writes under the lock will see why
		}
		return wrap(reason(ctx, w.commit(ctx, w.call)))
	}
	return wrap(reason(ctx, w.commit(ctx, w.callWithin)))
}

// connect takes the connection that writes.
func (w *write) connect(ctx context.Context) (err error) {
	if w.conn, err = w.b.take(ctx); err != nil {
		return err
	}
	_, err = w.conn.Conn().Prepare(ctx, "commit", commitSQL)
	return err
}

// errShort is the error of a commit that is done on the primary, and perhaps not on the standbys.
var errShort = errors.New("postgresql: the commit's wait for its synchronous standbys was cut short")

// commit has commit_3 called and reads what it says.
func (w *write) commit(ctx context.Context, call func(context.Context, [][]byte) ([]byte, error)) error {
	w.made.epoch = w.base.epoch + 1
	if _, err := rand.Read(w.made.mark[:]); err != nil {
		return err
	}
	warned := w.b.warned.Load()
	said, err := call(ctx, w.params())
	if err != nil {
		return err
	}
	if len(said) != 8 {
		return fmt.Errorf("postgresql: commit_3 returned %d bytes", len(said))
	}
	switch epoch := int64(binary.BigEndian.Uint64(said)); {
	case epoch < 0:
		return fmt.Errorf("%w: %w", store.ErrMoved, compatible(int32(-epoch), int32(-epoch)))
	case epoch == 0:
		return store.ErrMoved
	}
	if w.b.warned.Load() != warned {
		return errShort
	}
	w.b.pins.heard(w.made.epoch)
	w.b.told.Store(w.made.epoch)
	w.b.committed()
	w.end()
	return nil
}

var binaryFormat = []int16{pgx.BinaryFormatCode}

// call is a transaction by itself. It is over, and durable, only when the server is ready for another; Read waits for that.
func (w *write) call(ctx context.Context, params [][]byte) ([]byte, error) {
	r := w.conn.Conn().PgConn().ExecPrepared(ctx, "commit", params, binaryFormat, binaryFormat).Read()
	if r.Err != nil {
		return nil, r.Err
	}
	return r.Rows[0][0], nil
}

// callWithin ends the transaction that holds the lock.
func (w *write) callWithin(ctx context.Context, params [][]byte) ([]byte, error) {
	if _, err := w.conn.Conn().Prepare(ctx, "commit", commitSQL); err != nil {
		return nil, err
	}
	if w.aside.Len() > 0 {
		if err := w.conn.SendBatch(ctx, &w.aside).Close(); err != nil {
			return nil, err
		}
	}
	var batch pgconn.Batch
	batch.ExecPrepared("commit", params, binaryFormat, binaryFormat)
	batch.ExecParams("COMMIT", nil, nil, nil, nil)
	results, err := w.conn.Conn().PgConn().ExecBatch(ctx, &batch).ReadAll()
	if err != nil {
		return nil, err
	}
	if tag := results[1].CommandTag.String(); tag != "COMMIT" {
		return nil, errors.New("postgresql: the server did not commit: " + tag)
	}
	return results[0].Rows[0][0], nil
}

// params are those of commit_3.
func (w *write) params() [][]byte {
	l := w.load
	return [][]byte{
		binary.BigEndian.AppendUint32(nil, version), binary.BigEndian.AppendUint64(nil, uint64(w.base.epoch)), w.base.mark[:], w.made.mark[:],
		l.asked.tabs.param(), l.asked.names.param(), l.asked.bytes.param(),
		l.from.tabs.param(), l.from.names.param(), l.to.tabs.param(), l.to.names.param(),
		l.once.tabs.param(), l.once.names.param(), l.once.bytes.param(),
		l.records.tabs.param(), l.records.names.param(), l.records.bytes.param(),
		l.set.tabs.param(), l.set.names.param(), l.set.bytes.param(),
		l.gone.tabs.param(), l.gone.names.param(),
	}
}

// State is that of the commit, which no other commit has.
func (w *write) State() store.Snapshot { return w.b.snapshot(w.made) }

// Abort rolls back. A connection on which that fails is given up, and the server with it; so is one whose link ended, without asking.
func (w *write) Abort() {
	if w.load == nil {
		return
	}
	defer w.end()
	if w.conn == nil || w.conn.Conn().PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(w.link, abortPatience)
	defer cancel()
	if _, err := w.conn.Exec(ctx, `ROLLBACK`); err != nil {
		_ = w.conn.Conn().Close(ctx) // nothing is lost that was not lost before
	}
}

// Look implements store.Shared.
func (b *Backend) Look(ctx context.Context, at store.Snapshot, after uint64) (news store.News, err error) {
	floor := b.pins.hold()
	defer b.pins.release(floor)
	base := at.(*snapshot).place
	err = b.attemptFor(ctx, readPatience, func(within context.Context) error {
		rows, err := b.readers.Query(within, lookSQL, base.epoch, base.mark[:], []byte(store.Uint64Key(after)))
		if err != nil {
			return err
		}
		now, headers, err := looked(rows)
		if err != nil {
			return err
		}
		news = b.news(base, now, headers)
		return nil
	})
	return news, err
}

// confirmSQL writes to the log, and to nothing else: to be durable itself it needs all that was written before to be.
const confirmSQL = `SELECT pg_logical_emit_message(true, 'lessor', '')`

// Confirm implements store.Shared.
func (b *Backend) Confirm(ctx context.Context) error {
	return b.attemptFor(ctx, commitPatience, func(within context.Context) error {
		conn, err := b.take(within)
		if err != nil {
			return err
		}
		defer free(conn)
		warned := b.warned.Load()
		var batch pgx.Batch
		batch.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`)
		batch.Queue(`SET LOCAL synchronous_commit = on`)
		batch.Queue(confirmSQL)
		batch.Queue(`COMMIT`)
		if err := conn.SendBatch(within, &batch).Close(); err != nil {
			return err
		}
		if b.warned.Load() != warned {
			return errShort
		}
		return nil
	})
}

// notice counts warnings on the connection that writes. In a commit there is one reason for any: a wait for standbys that somebody cut short.
func (b *Backend) notice(_ *pgconn.PgConn, n *pgconn.Notice) {
	if n.SeverityUnlocalized == "WARNING" {
		b.warned.Add(1)
	}
}
