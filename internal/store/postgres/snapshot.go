package postgres

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/store"
)

// snapshot is the state after the commit of an epoch.
type snapshot struct {
	b *Backend
	place
	closed atomic.Bool
}

func (b *Backend) snapshot(at place) *snapshot {
	b.pins.pin(at.epoch)
	return &snapshot{b: b, place: at}
}

func (s *snapshot) Close() {
	if s.closed.CompareAndSwap(false, true) {
		s.b.pins.release(s.epoch)
	}
}

// errReclaimed is the error of a snapshot that is no more.
var errReclaimed = errors.New("postgresql: this state of the store was reclaimed, since this node was cut off from the database for a minute or more")

func (s *snapshot) check(horizon int64) error {
	if s.epoch < horizon {
		return fmt.Errorf("%w: epoch %d, horizon %d", errReclaimed, s.epoch, horizon)
	}
	return nil
}

const getSQL = `SELECT h.reclaimed, coalesce(
	(SELECT bytes FROM lessor.rows WHERE tab = $1 AND name = $2 AND since <= $3),
	(SELECT bytes FROM lessor.past WHERE tab = $1 AND name = $2 AND since <= $3 AND until > $3))
FROM lessor.horizon h`

func (s *snapshot) Get(k store.Key) (stored []byte, err error) {
	sql := getSQL
	if inRecords(k.Table) {
		sql = recordGet([]byte(k.Name))
	}
	err = s.b.attempt(readPatience, func(ctx context.Context) error {
		var horizon int64
		if err := s.b.readers.QueryRow(ctx, sql, int16(k.Table), []byte(k.Name), s.epoch).Scan(&horizon, &stored); err != nil {
			return err
		}
		return s.check(horizon)
	})
	if err != nil {
		return nil, err
	}
	return stored, nil
}

// interval is a range as the statements take it: (tab, name) from one pair, up to but without the other.
type interval struct {
	fromTab, toTab int16
	from, to       []byte
}

func bounds(r store.Range) interval {
	i := interval{fromTab: int16(r.Table), toTab: int16(r.Table), from: []byte(r.From), to: []byte(r.To)}
	if r.To == "" {
		i.toTab++
	}
	return i
}

// scanSQL reads a chunk of a range. Its first column is there even if the range is empty.
const scanSQL = `SELECT h.reclaimed, u.name, u.bytes FROM lessor.horizon h LEFT JOIN LATERAL (
	(SELECT name, bytes FROM lessor.rows
		WHERE (tab, name) >= ($1::smallint, $2::bytea) AND (tab, name) < ($3::smallint, $4::bytea) AND since <= $5
		ORDER BY tab %[1]s, name %[1]s LIMIT $6)
	UNION ALL
	(SELECT name, bytes FROM lessor.past
		WHERE (tab, name) >= ($1::smallint, $2::bytea) AND (tab, name) < ($3::smallint, $4::bytea) AND since <= $5 AND until > $5
		ORDER BY tab %[1]s, name %[1]s LIMIT $6)
	ORDER BY name %[1]s LIMIT $6
) u ON true ORDER BY u.name %[1]s`

var (
	forwardSQL = fmt.Sprintf(scanSQL, "ASC")
	reverseSQL = fmt.Sprintf(scanSQL, "DESC")
)

// scan is the statement that reads a range, and its arguments but for epoch and count.
func (i interval) scan(table store.Table, reverse bool) (sql string, args []any) {
	switch {
	case inRecords(table):
		to := i.to
		if i.toTab > i.fromTab {
			to = recordsEnd("")
		}
		return recordsScan(i.from, to, reverse), []any{i.fromTab, i.from, to}
	case reverse:
		sql = reverseSQL
	default:
		sql = forwardSQL
	}
	return sql, []any{i.fromTab, i.from, i.toTab, i.to}
}

// How much a scan fetches at once: few entries at first, as many want only one, then more, as long as they are small.
const (
	firstChunk = 16
	mostChunk  = 1024
	chunkBytes = 2 << 20
)

// Scan fetches chunk after chunk and holds no connection in between: what it yields to may use this Snapshot.
func (s *snapshot) Scan(r store.Range, reverse bool) iter.Seq2[store.Stored, error] {
	return func(yield func(store.Stored, error) bool) {
		in := bounds(r)
		for limit := firstChunk; ; {
			chunk, size, err := s.chunk(r.Table, in, reverse, limit)
			if err != nil {
				yield(store.Stored{}, err)
				return
			}
			for _, e := range chunk {
				if !yield(e, nil) {
					return
				}
			}
			if len(chunk) < limit {
				return
			}
			if last := []byte(chunk[len(chunk)-1].Key.Name); reverse {
				in.toTab, in.to = int16(r.Table), last
			} else {
				in.from = append(last, 0)
			}
			limit = max(firstChunk, min(4*limit, mostChunk, limit*chunkBytes/(size+1)))
		}
	}
}

func (s *snapshot) chunk(table store.Table, in interval, reverse bool, limit int) (chunk []store.Stored, size int, err error) {
	sql, args := in.scan(table, reverse)
	args = append(args, s.epoch, int64(limit))
	err = s.b.attempt(readPatience, func(ctx context.Context) error {
		chunk, size = make([]store.Stored, 0, limit), 0
		rows, err := s.b.readers.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		var horizon int64
		var name, bytes []byte
		_, err = pgx.ForEachRow(rows, []any{&horizon, &name, &bytes}, func() error {
			if name != nil {
				chunk = append(chunk, store.Stored{Key: store.Key{Table: table, Name: string(name)}, Bytes: bytes})
				size += len(name) + len(bytes)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return s.check(horizon)
	})
	return chunk, size, err
}

// pins counts the snapshots of each epoch.
type pins struct {
	mu    sync.Mutex
	last  int64 // the latest epoch that this node has shown
	count map[int64]int
}

func (p *pins) pin(epoch int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(epoch)
}

func (p *pins) add(epoch int64) {
	if p.count == nil {
		p.count = make(map[int64]int)
	}
	p.count[epoch]++
	p.last = max(p.last, epoch)
}

// hold pins the latest epoch known, for as long as a later one is asked for.
func (p *pins) hold() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(p.last)
	return p.last
}

func (p *pins) release(epoch int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count[epoch]--; p.count[epoch] == 0 {
		delete(p.count, epoch)
	}
}

// heard takes down an epoch that this node has made.
func (p *pins) heard(epoch int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = max(p.last, epoch)
}

// oldest is the epoch from which on this node may still read.
func (p *pins) oldest() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	least := int64(math.MaxInt64)
	for epoch := range p.count {
		least = min(least, epoch)
	}
	return min(least, p.last)
}
