package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// version is that of the tables. A node works with its own version only.
const version = 2

// The advisory locks, in the database. Nobody else should take them.
const (
	writeLock = 0x6c6573736f720001 // held by the open Write of the cluster
	sweepLock = 0x6c6573736f720002 // held by who reclaims
)

// tables is what create makes, once. Autovacuum comes early: what is overwritten again and again must not bloat.
const tables = `
CREATE TABLE lessor.state (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	version integer NOT NULL,
	epoch bigint NOT NULL
) WITH (fillfactor = 10);
CREATE TABLE lessor.horizon (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	epoch bigint NOT NULL
) WITH (fillfactor = 10);
CREATE TABLE lessor.nodes (
	id text PRIMARY KEY,
	pin bigint NOT NULL,
	about bytea,
	started timestamptz NOT NULL,
	seen timestamptz NOT NULL
) WITH (fillfactor = 10);
CREATE TABLE lessor.rows (
	tab smallint NOT NULL,
	name bytea NOT NULL,
	since bigint NOT NULL,
	bytes bytea NOT NULL,
	PRIMARY KEY (tab, name)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
CREATE TABLE lessor.past (
	tab smallint NOT NULL,
	name bytea NOT NULL,
	since bigint NOT NULL,
	until bigint NOT NULL,
	bytes bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
CREATE INDEX past_name ON lessor.past (tab, name, until);
CREATE INDEX past_until ON lessor.past (until);
ALTER TABLE lessor.rows ALTER COLUMN bytes SET STORAGE EXTERNAL;
ALTER TABLE lessor.past ALTER COLUMN bytes SET STORAGE EXTERNAL;
INSERT INTO lessor.state (version, epoch) VALUES (2, 0);
INSERT INTO lessor.horizon (epoch) VALUES (0);
`

// create makes the tables unless they are there, one node at a time.
func (b *Backend) create(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectPatience+lockPatience)
	defer cancel()
	return pgx.BeginTxFunc(ctx, b.writer, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(writeLock)); err != nil {
			return err
		}
		var schema, there bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'lessor'), to_regclass('lessor.state') IS NOT NULL`).
			Scan(&schema, &there)
		switch {
		case err != nil:
			return err
		case there:
			var found int32
			if err := tx.QueryRow(ctx, `SELECT version FROM lessor.state`).Scan(&found); err != nil {
				return err
			}
			return compatible(found)
		case !schema:
			if _, err := tx.Exec(ctx, `CREATE SCHEMA lessor`); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, tables, pgx.QueryExecModeSimpleProtocol)
		return err
	})
}

// errVersion is the error of a database that is not this lessor's.
var errVersion = errors.New("postgresql: the tables are not of this version of lessor")

func compatible(found int32) error {
	switch {
	case found > version:
		return fmt.Errorf("%w: they are version %d, made by a newer lessor, and this one knows version %d: use the newer lessor", errVersion, found, version)
	case found < version:
		return fmt.Errorf("%w: they are version %d, and this one needs version %d: restart this node, so that it brings them up to date", errVersion, found, version)
	}
	return nil
}
