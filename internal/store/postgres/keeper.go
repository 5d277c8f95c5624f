package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lessor-dev/lessor/internal/store"
)

// What a Backend does in the background, and how often.
const (
	pollEvery    = 100 * time.Millisecond // look for other nodes' commits, at which hints get there first
	tellEvery    = time.Second            // read the database's clock
	beatEvery    = time.Second            // give a sign of life, and say what this node shows
	sweepEvery   = time.Second            // reclaim what no node shows
	measureEvery = 5 * time.Second
	tendEvery    = time.Minute // make and drop partitions
	keepPatience = 10 * time.Second
	pollPatience = 2 * time.Second
	tendPatience = 10 * time.Minute
	beatPatience = 4 * time.Second // less than store.PeerTerm
)

// chore is one thing done in the background. None waits for another.
type chore struct {
	name     string
	every    time.Duration
	patience time.Duration
	do       func(context.Context) error
}

func (b *Backend) chores() []chore {
	return []chore{
		{"poll", b.pollEvery, pollPatience, b.poll},
		{"tell", tellEvery, beatPatience, b.tell},
		{"beat", beatEvery, beatPatience, b.beat},
		{"sweep", sweepEvery, keepPatience, b.sweep},
		{"measure", measureEvery, keepPatience, b.measure},
		{"tend", tendEvery, tendPatience, b.tend},
	}
}

// keep does c until the Backend closes.
func (b *Backend) keep(c chore) {
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	ailing := false
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(b.ctx, c.patience)
		err := wrap(c.do(ctx))
		cancel()
		b.link.answered(err == nil || answer(err) || ours(err))
		switch {
		case b.ctx.Err() != nil:
		case err != nil && !ailing:
			b.log.Warn("postgresql: the database does not answer as it should; trying on", "what", c.name, "error", err)
		case err == nil && ailing:
			b.log.Info("postgresql: the database answers again", "what", c.name)
		}
		ailing = err != nil
	}
}

// answer reports whether err is something that the database said.
func answer(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said)
}

// poll gives a hint if there is an epoch that the store was not told of. Snapshots that it took for itself do not count.
func (b *Backend) poll(ctx context.Context) error {
	var found, least int32
	var epoch int64
	if err := b.keeper.QueryRow(ctx, `SELECT version, least, epoch FROM lessor.state`).Scan(&found, &least, &epoch); err != nil {
		return err
	}
	if err := compatible(found, least); err != nil {
		return err
	}
	if epoch != b.told.Load() {
		b.nudge()
	}
	return nil
}

// register makes this node known before it shows anything.
func (b *Backend) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepPatience)
	defer cancel()
	id, err := store.NewPeerID(rand.Reader)
	if err != nil {
		return err
	}
	var epoch int64
	err = b.keeper.QueryRow(ctx, `INSERT INTO lessor.nodes (id, pin, started, seen)
SELECT $1, epoch, clock_timestamp(), clock_timestamp() FROM lessor.state RETURNING pin, started`, id).Scan(&epoch, &b.started)
	b.id = id
	b.pins.heard(epoch)
	return err
}

// Self implements store.Shared.
func (b *Backend) Self() string { return b.id }

// Announce implements store.Shared: the next beat says it, within a second.
func (b *Backend) Announce(about []byte) { b.about.Store(&about) }

// beatSQL brings back a row that was forgotten meanwhile, and tells whether there are others who live. It does nothing, and tells nothing, on
// tables that take later versions than $5.
const beatSQL = `INSERT INTO lessor.nodes (id, pin, about, started, seen)
SELECT $1::text, $2::bigint, $3::bytea, $4::timestamptz, clock_timestamp() FROM lessor.state WHERE least <= $5
ON CONFLICT (id) DO UPDATE SET pin = EXCLUDED.pin, about = EXCLUDED.about, seen = EXCLUDED.seen
RETURNING EXISTS (SELECT FROM lessor.nodes AS n WHERE n.id <> $1 AND n.seen > clock_timestamp() - $6::interval)`

// beat gives a sign of life, says what the oldest epoch is that this node shows, and looks whether it is alone. A node that can work on the tables
// no more, since a newer lessor changed them, gives none: so others take over what it held.
func (b *Backend) beat(ctx context.Context) error {
	var about []byte
	if said := b.about.Load(); said != nil {
		about = *said
	}
	var others bool
	err := b.quick(ctx, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, beatSQL, b.id, b.pins.oldest(), about, b.started, version, store.PeerTerm).Scan(&others)
		if errors.Is(err, pgx.ErrNoRows) {
			return errVersion
		}
		return err
	})
	if err == nil {
		b.others.Store(others)
	}
	return err
}

// peersSQL has one row at least.
const peersSQL = `SELECT s.version, s.least, id, about, started, seen, seen > clock_timestamp() - $1::interval
FROM lessor.state s LEFT JOIN lessor.nodes ON seen > clock_timestamp() - interval '1 minute' ORDER BY started, id`

// Peers implements store.Shared, by the database's clock.
func (b *Backend) Peers(ctx context.Context) ([]store.Peer, error) {
	ctx, cancel := context.WithTimeout(ctx, beatPatience)
	defer cancel()
	rows, err := b.keeper.Query(ctx, peersSQL, store.PeerTerm)
	if err != nil {
		return nil, wrap(err)
	}
	var peers []store.Peer
	var found, least int32
	var id *string
	var about []byte
	var started, seen *time.Time
	var alive *bool
	_, err = pgx.ForEachRow(rows, []any{&found, &least, &id, &about, &started, &seen, &alive}, func() error {
		if id != nil {
			peers = append(peers, store.Peer{ID: *id, About: bytes.Clone(about), Started: started.UTC(), Seen: seen.UTC(), Alive: *alive})
		}
		return compatible(found, least)
	})
	return peers, wrap(err)
}

// quick runs f in a transaction that nobody waits to be flushed.
func (b *Backend) quick(ctx context.Context, f func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, b.keeper, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
			return err
		}
		return f(tx)
	})
}

// Statements of sweep. After a failover the clock may be behind what was noted by the one before: nodes that are gone must
// not live on until it has caught up.
const (
	mendSQL    = `UPDATE lessor.nodes SET seen = clock_timestamp() WHERE seen > clock_timestamp() + interval '1 second'`
	forgetSQL  = `DELETE FROM lessor.nodes WHERE seen < clock_timestamp() - interval '1 minute'`
	horizonSQL = `UPDATE lessor.horizon SET reclaimed = greatest(reclaimed, (SELECT min(pin) FROM lessor.nodes))`
	reclaimSQL = `DELETE FROM lessor.past WHERE ctid = ANY (ARRAY(
	SELECT ctid FROM lessor.past WHERE until <= (SELECT reclaimed FROM lessor.horizon) ORDER BY until LIMIT 20000))`
)

// What is reclaimed in one transaction, and after how many rows the space is made ready for others: autovacuum, which by default
// comes by once a minute, would find millions where many nodes write.
const (
	reclaimRows = 20000
	vacuumRows  = 100000
	vacuumSQL   = `VACUUM (SKIP_LOCKED, TRUNCATE off) lessor.past`
)

// sweep, unless another node is at it, forgets the nodes that are gone, raises the horizon to the oldest epoch
// that any node shows, and reclaims what ended before. No node that signs on meanwhile can have an earlier epoch: what
// it shows is later than every pin there was when it came.
func (b *Backend) sweep(ctx context.Context) error {
	for reclaimed := int64(reclaimRows); reclaimed == reclaimRows; {
		err := b.quick(ctx, func(tx pgx.Tx) (err error) {
			reclaimed, err = reclaim(ctx, tx)
			return err
		})
		if err != nil {
			return err
		}
		if b.dead.Add(reclaimed) >= vacuumRows {
			b.dead.Store(0)
			if _, err := b.keeper.Exec(ctx, vacuumSQL); err != nil {
				return err
			}
		}
	}
	return nil
}

func reclaim(ctx context.Context, tx pgx.Tx) (rows int64, err error) {
	var mine bool
	if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, int64(sweepLock)).Scan(&mine); err != nil || !mine {
		return 0, err
	}
	for _, sql := range [...]string{mendSQL, forgetSQL, horizonSQL} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return 0, err
		}
	}
	tag, err := tx.Exec(ctx, reclaimSQL)
	return tag.RowsAffected(), err
}

// measure looks at the size of the database.
func (b *Backend) measure(ctx context.Context) error {
	var used int64
	if err := b.keeper.QueryRow(ctx, `SELECT pg_database_size(current_database())`).Scan(&used); err != nil {
		return err
	}
	b.used.Store(used)
	return nil
}
