package postgres

import (
	"fmt"

	"github.com/lessor-dev/lessor/internal/store"
)

// functions2 are what runs in the server since version 2 of the tables.
//
// commit_2 makes a commit, and returns its epoch: if the state is still that of (epoch, mark), and the rows asked about have their versions
// (” is any), it deletes the intervals, adds what is written once, sets and deletes rows. Otherwise it returns 0, and has written nothing; or
// the negative of the least version that the tables ask of who writes, if the caller does not know that. It takes the cluster's lock first, then looks: each statement
// in it sees what was committed before that statement began.
var functions2 = fmt.Sprintf(`
CREATE FUNCTION lessor.commit_2(
	knows integer, base_epoch bigint, base_mark bytea, new_mark bytea,
	ask_tab smallint[], ask_name bytea[], ask_version bytea[],
	drop_from_tab smallint[], drop_from bytea[], drop_to_tab smallint[], drop_to bytea[],
	once_tab smallint[], once_name bytea[], once_bytes bytea[],
	record_tab smallint[], record_name bytea[], record_bytes bytea[],
	set_tab smallint[], set_name bytea[], set_bytes bytea[],
	gone_tab smallint[], gone_name bytea[]
) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	latest record;
	now_epoch bigint := base_epoch + 1;
	added bigint;
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE EXCEPTION 'lessor commits at the isolation level READ COMMITTED only';
	END IF;
	IF current_setting('synchronous_commit') NOT IN ('on', 'remote_apply') THEN
		PERFORM set_config('synchronous_commit', 'on', true);
	END IF;
	PERFORM pg_advisory_xact_lock(%[1]d);
	SELECT least, epoch, mark INTO STRICT latest FROM lessor.state;
	IF latest.least > knows THEN
		RETURN -latest.least;
	END IF;
	IF latest.epoch <> base_epoch OR latest.mark <> base_mark THEN
		RETURN 0;
	END IF;
	IF cardinality(ask_tab) > 0 THEN
		PERFORM FROM unnest(ask_tab, ask_name, ask_version) AS i (tab, name, version)
			LEFT JOIN lessor.rows r ON r.tab = i.tab AND r.name = i.name
			WHERE CASE i.version WHEN '' THEN r.bytes IS NULL
				ELSE coalesce(substr(r.bytes, 1, 8), '\x0000000000000000') <> i.version END LIMIT 1;
		IF FOUND THEN
			RETURN 0;
		END IF;
	END IF;

	FOR n IN 1 .. cardinality(drop_from) LOOP
		WITH gone AS (
			DELETE FROM lessor.rows
			WHERE (tab, name) >= (drop_from_tab[n], drop_from[n]) AND (tab, name) < (drop_to_tab[n], drop_to[n]) RETURNING *
		)
		INSERT INTO lessor.past (tab, name, since, until, bytes) SELECT tab, name, since, now_epoch, bytes FROM gone;
	END LOOP;
	INSERT INTO lessor.rows (tab, name, since, bytes)
		SELECT tab, name, now_epoch, bytes FROM unnest(once_tab, once_name, once_bytes) AS i (tab, name, bytes);
	INSERT INTO lessor.records (tab, name, since, bytes)
		SELECT tab, name, now_epoch, bytes FROM unnest(record_tab, record_name, record_bytes) AS i (tab, name, bytes);
	IF cardinality(set_tab) > 0 THEN
		INSERT INTO lessor.rows (tab, name, since, bytes)
			SELECT tab, name, now_epoch, bytes FROM unnest(set_tab, set_name, set_bytes) AS i (tab, name, bytes)
			ON CONFLICT (tab, name) DO NOTHING;
		GET DIAGNOSTICS added = ROW_COUNT;
		IF added < cardinality(set_tab) THEN -- the others were there before
			INSERT INTO lessor.past (tab, name, since, until, bytes)
				SELECT r.tab, r.name, r.since, now_epoch, r.bytes FROM unnest(set_tab, set_name) AS i (tab, name)
				JOIN lessor.rows r ON r.tab = i.tab AND r.name = i.name WHERE r.since < now_epoch;
			UPDATE lessor.rows r SET since = now_epoch, bytes = i.bytes
				FROM unnest(set_tab, set_name, set_bytes) AS i (tab, name, bytes)
				WHERE r.tab = i.tab AND r.name = i.name AND r.since < now_epoch;
		END IF;
	END IF;
	IF cardinality(gone_tab) > 0 THEN
		WITH gone AS (
			DELETE FROM lessor.rows r USING unnest(gone_tab, gone_name) AS i (tab, name)
			WHERE r.tab = i.tab AND r.name = i.name RETURNING r.*
		)
		INSERT INTO lessor.past (tab, name, since, until, bytes) SELECT tab, name, since, now_epoch, bytes FROM gone;
	END IF;
	UPDATE lessor.state SET epoch = now_epoch, mark = new_mark;
	RETURN now_epoch;
END $$;
`, int64(writeLock))

// functions3 are what version 3 of the tables adds. commit_3 does what commit_2 does, which nodes that know version 2 go on calling. Of the rows that it
// sets it takes it that they are there already: who knows that one is not gives it among those that are written once.
var functions3 = fmt.Sprintf(`
CREATE FUNCTION lessor.commit_3(
	knows integer, base_epoch bigint, base_mark bytea, new_mark bytea,
	ask_tab smallint[], ask_name bytea[], ask_version bytea[],
	drop_from_tab smallint[], drop_from bytea[], drop_to_tab smallint[], drop_to bytea[],
	once_tab smallint[], once_name bytea[], once_bytes bytea[],
	record_tab smallint[], record_name bytea[], record_bytes bytea[],
	set_tab smallint[], set_name bytea[], set_bytes bytea[],
	gone_tab smallint[], gone_name bytea[]
) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	latest record;
	now_epoch bigint := base_epoch + 1;
	changed bigint;
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE EXCEPTION 'lessor commits at the isolation level READ COMMITTED only';
	END IF;
	IF current_setting('synchronous_commit') NOT IN ('on', 'remote_apply') THEN
		PERFORM set_config('synchronous_commit', 'on', true);
	END IF;
	PERFORM pg_advisory_xact_lock(%[1]d);
	SELECT least, epoch, mark INTO STRICT latest FROM lessor.state;
	IF latest.least > knows THEN
		RETURN -latest.least;
	END IF;
	IF latest.epoch <> base_epoch OR latest.mark <> base_mark THEN
		RETURN 0;
	END IF;
	IF cardinality(ask_tab) > 0 THEN
		PERFORM FROM unnest(ask_tab, ask_name, ask_version) AS i (tab, name, version)
			LEFT JOIN lessor.rows r ON r.tab = i.tab AND r.name = i.name
			WHERE CASE i.version WHEN '' THEN r.bytes IS NULL
				ELSE coalesce(substr(r.bytes, 1, 8), '\x0000000000000000') <> i.version END LIMIT 1;
		IF FOUND THEN
			RETURN 0;
		END IF;
	END IF;

	FOR n IN 1 .. cardinality(drop_from) LOOP
		WITH gone AS (
			DELETE FROM lessor.rows
			WHERE (tab, name) >= (drop_from_tab[n], drop_from[n]) AND (tab, name) < (drop_to_tab[n], drop_to[n]) RETURNING *
		)
		INSERT INTO lessor.past (tab, name, since, until, bytes) SELECT tab, name, since, now_epoch, bytes FROM gone;
	END LOOP;
	INSERT INTO lessor.rows (tab, name, since, bytes)
		SELECT tab, name, now_epoch, bytes FROM unnest(once_tab, once_name, once_bytes) AS i (tab, name, bytes);
	INSERT INTO lessor.records (tab, name, since, bytes)
		SELECT tab, name, now_epoch, bytes FROM unnest(record_tab, record_name, record_bytes) AS i (tab, name, bytes);
	IF cardinality(set_tab) > 0 THEN
		WITH was AS (
			UPDATE lessor.rows r SET since = now_epoch, bytes = i.bytes
			FROM unnest(set_tab, set_name, set_bytes) AS i (tab, name, bytes)
			JOIN lessor.rows o ON o.tab = i.tab AND o.name = i.name
			WHERE r.tab = i.tab AND r.name = i.name RETURNING o.*
		)
		INSERT INTO lessor.past (tab, name, since, until, bytes) SELECT tab, name, since, now_epoch, bytes FROM was;
		GET DIAGNOSTICS changed = ROW_COUNT;
		IF changed < cardinality(set_tab) THEN -- the others were not there before
			INSERT INTO lessor.rows (tab, name, since, bytes)
				SELECT tab, name, now_epoch, bytes FROM unnest(set_tab, set_name, set_bytes) AS i (tab, name, bytes)
				ON CONFLICT (tab, name) DO NOTHING;
		END IF;
	END IF;
	IF cardinality(gone_tab) > 0 THEN
		WITH gone AS (
			DELETE FROM lessor.rows r USING unnest(gone_tab, gone_name) AS i (tab, name)
			WHERE r.tab = i.tab AND r.name = i.name RETURNING r.*
		)
		INSERT INTO lessor.past (tab, name, since, until, bytes) SELECT tab, name, since, now_epoch, bytes FROM gone;
	END IF;
	UPDATE lessor.state SET epoch = now_epoch, mark = new_mark;
	RETURN now_epoch;
END $$;
`, int64(writeLock))

// commitSQL calls commit_3.
const commitSQL = `SELECT lessor.commit_3($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)`

// lookSQL tells the state, and the headers after $3 if it is another than ($1, $2). It has one row at least.
var lookSQL = fmt.Sprintf(`SELECT s.version, s.least, s.epoch, s.mark, h.name, h.bytes FROM lessor.state s LEFT JOIN LATERAL (
	SELECT name, bytes FROM lessor.rows WHERE tab = %d AND name > $3 AND (s.epoch <> $1 OR s.mark <> $2) ORDER BY tab, name LIMIT %d
) h ON true`, store.Head, newsHeaders+1)

// newsHeaders is how many headers a look brings.
const newsHeaders = 64

const versionsSQL = `SELECT i.n, substr(r.bytes, 1, 8)
FROM unnest($1::smallint[], $2::bytea[]) WITH ORDINALITY AS i (tab, name, n)
JOIN lessor.rows r ON r.tab = i.tab AND r.name = i.name`
