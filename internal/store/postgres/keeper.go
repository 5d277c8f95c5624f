package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// What a Backend does in the background, and how often.
const (
	pollEvery    = 100 * time.Millisecond // look for other nodes' commits
	sweepEvery   = time.Second            // say what this node shows, reclaim what nobody does
	measureEvery = 5 * time.Second
	keepPatience = 10 * time.Second
)

// keep runs until the Backend closes.
func (b *Backend) keep() {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var swept, measured time.Time
	ailing := false
	for {
		select {
		case <-b.ctx.Done():
			return
		case now := <-tick.C:
			err := b.poll(b.ctx)
			if err == nil && now.Sub(swept) >= sweepEvery {
				swept, err = now, b.sweep(b.ctx)
			}
			if err == nil && now.Sub(measured) >= measureEvery {
				measured, err = now, b.measure(b.ctx)
			}
			switch {
			case b.ctx.Err() != nil:
			case err != nil && !ailing:
				b.log.Warn("postgresql: the database does not answer as it should; trying on", "error", err)
			case err == nil && ailing:
				b.log.Info("postgresql: the database answers again")
			}
			ailing = err != nil
		}
	}
}

// poll gives a hint if there is an epoch that this node has not shown.
func (b *Backend) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepPatience)
	defer cancel()
	var epoch int64
	if err := b.readers.QueryRow(ctx, `SELECT epoch FROM lessor.state`).Scan(&epoch); err != nil {
		return wrap(err)
	}
	if epoch != b.pins.latest() {
		select {
		case b.moved <- struct{}{}:
		default:
		}
	}
	return nil
}

// register makes this node known before it shows anything.
func (b *Backend) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepPatience)
	defer cancel()
	var epoch int64
	err := b.writer.QueryRow(ctx, `INSERT INTO lessor.nodes (pin) SELECT epoch FROM lessor.state RETURNING id, pin`).Scan(&b.node, &epoch)
	b.pins.heard(epoch)
	return wrap(err)
}

// Statements of sweep.
const (
	pinSQL = `INSERT INTO lessor.nodes (id, pin, seen) VALUES ($1, $2, now())
ON CONFLICT (id) DO UPDATE SET pin = EXCLUDED.pin, seen = EXCLUDED.seen`
	forgetSQL  = `DELETE FROM lessor.nodes WHERE seen < now() - interval '1 minute'`
	horizonSQL = `UPDATE lessor.horizon SET epoch = greatest(epoch, (SELECT min(pin) FROM lessor.nodes))`
	reclaimSQL = `DELETE FROM lessor.past WHERE ctid = ANY (ARRAY(
	SELECT ctid FROM lessor.past WHERE until <= (SELECT epoch FROM lessor.horizon) ORDER BY until LIMIT 100000))`
)

// sweep says what the oldest epoch is that this node shows. Then, unless another node is at it, it raises the horizon to the oldest
// that any node shows, and reclaims what ended before. No node that signs on meanwhile can have an earlier epoch: what
// it shows is later than every pin there was when it came.
func (b *Backend) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepPatience)
	defer cancel()
	begin := func(f func(pgx.Tx) error) error {
		return pgx.BeginTxFunc(ctx, b.readers, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
				return err // nothing here is worth a flush
			}
			return f(tx)
		})
	}
	err := begin(func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, pinSQL, b.node, b.pins.oldest())
		return err
	})
	if err != nil {
		return wrap(err)
	}
	return wrap(begin(func(tx pgx.Tx) error {
		var mine bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, int64(sweepLock)).Scan(&mine); err != nil || !mine {
			return err
		}
		for _, sql := range [...]string{forgetSQL, horizonSQL, reclaimSQL} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	}))
}

// measure looks at the size of the database.
func (b *Backend) measure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepPatience)
	defer cancel()
	var used int64
	if err := b.readers.QueryRow(ctx, `SELECT pg_database_size(current_database())`).Scan(&used); err != nil {
		return wrap(err)
	}
	b.used.Store(used)
	return nil
}
