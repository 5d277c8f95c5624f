package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// proofLock is taken by prove, and by nobody else for longer than a moment.
const proofLock = 0x6c6573736f720005

// errNoLock is the error of a database whose advisory locks let two in.
var errNoLock = errors.New("postgresql: this database's advisory locks do not exclude: it takes them, but gives one to two sessions at once. Only one " +
	"node may write at a time, so lessor cannot use it. Is it PostgreSQL itself, without a pooler that pools transactions in between?")

// prove makes sure that a session that has an advisory lock keeps others from it. All rests on that, and there are databases that speak
// PostgreSQL's protocol and take such locks without locking anything.
func (b *Backend) prove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepPatience)
	defer cancel()
	return pgx.BeginFunc(ctx, b.keeper, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(proofLock)); err != nil {
			return err
		}
		var given bool
		if err := b.readers.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, int64(proofLock)).Scan(&given); err != nil {
			return err
		}
		if given {
			return errNoLock
		}
		return nil
	})
}
