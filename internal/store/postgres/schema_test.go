package postgres

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// sql runs statements on the database of url.
func sql(t testing.TB, url, text string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), text, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
}

// connectTo is a connection of somebody else's.
func connectTo(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// count is the number that a query tells.
func count(t testing.TB, b *Backend, query string, args ...any) (n int) {
	t.Helper()
	if err := b.keeper.QueryRow(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// version1 makes the database of url what a lessor of version 1 left, which commits were made on.
func version1(t *testing.T, url string, commits int) {
	t.Helper()
	db, err := store.Open(connect(t, url), store.Options{Node: "before"})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
		t.Fatal(err)
	}
	for range commits {
		if _, err := add(t.Context(), db, "n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	sql(t, url, `ALTER SCHEMA lessor RENAME TO later; CREATE SCHEMA lessor;`+tables1+`
INSERT INTO lessor.rows SELECT * FROM later.rows UNION ALL SELECT * FROM later.records;
UPDATE lessor.state SET epoch = (SELECT epoch FROM later.state);
UPDATE lessor.horizon SET epoch = (SELECT reclaimed FROM later.horizon);
DROP SCHEMA later CASCADE`)
}

// together opens n Backends at once.
func together(t *testing.T, url string, n int) []*Backend {
	t.Helper()
	all := make([]*Backend, n)
	errs := make([]error, n)
	var starting sync.WaitGroup
	for i := range n {
		starting.Go(func() { all[i], errs[i] = Open(t.Context(), lessor.NewSecret(url), Options{Connections: 6}) })
	}
	starting.Wait()
	for _, b := range all {
		if b != nil {
			t.Cleanup(func() { b.Close() })
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestNodesStartAtOnceOnNothing(t *testing.T) {
	b := together(t, database(t), 4)[0]
	if n := count(t, b, `SELECT version FROM lessor.state`); n != version {
		t.Errorf("the tables are of version %d", n)
	}
	if n := count(t, b, `SELECT count(*) FROM lessor.nodes`); n != 4 {
		t.Errorf("%d nodes signed on", n)
	}
	if n := count(t, b, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'lessor.records'::regclass`); n != partitionsAhead+2 {
		t.Errorf("%d partitions", n)
	}
}

// Nodes of this version start at once on version 1's tables; the store is whole from the first moment on, while its audit records are
// on their way, and afterwards.
func TestMigratesFromVersion1(t *testing.T) {
	url := database(t)
	const commits = 60
	version1(t, url, commits)
	all := together(t, url, 4)
	b := all[0]
	db, err := store.Open(all[1], store.Options{Node: "after"})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
		t.Fatal(err)
	}
	check := func(what string, want uint64) {
		t.Helper()
		report, err := db.Verify(t.Context(), nil)
		if err != nil || report.Records != want {
			t.Errorf("%s: %d records, not %d: %v", what, report.Records, want, err)
		}
		records, _, err := db.Records(store.Query{Path: "count/n", Newest: true, Limit: 10000})
		if err != nil || len(records) != int(want) {
			t.Errorf("%s: %d records of the path, not %d: %v", what, len(records), want, err)
		}
	}
	left := func() int {
		return count(t, b, `SELECT count(*) FROM lessor.rows WHERE tab BETWEEN $1 AND $2`, firstRecords, lastRecords)
	}
	if _, err := b.keeper.Exec(t.Context(), `SELECT epoch FROM lessor.horizon`); err == nil {
		t.Error("a node of version 1 would read on, and miss what moves")
	}
	if left() != 2*commits {
		t.Fatalf("%d rows are to be moved", left())
	}
	check("before they move", commits)
	if _, err := add(t.Context(), db, "n"); err != nil {
		t.Fatal(err)
	}
	day := binary.BigEndian.AppendUint32(nil, 1<<32-1)
	if _, err := b.keeper.Exec(t.Context(), moveSQL, firstRecords, day, commits/2); err != nil {
		t.Fatal(err)
	}
	if left() != 2*commits-commits/2 {
		t.Fatalf("%d rows are to be moved yet", left())
	}
	check("midway", commits+1)
	if err := b.move(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left() != 0 || !b.tidy.Load() {
		t.Errorf("%d rows did not move", left())
	}
	check("once they moved", commits+1)
	if n := count(t, b, `SELECT count(*) FROM lessor.records_rest`); n != 0 {
		t.Errorf("%d rows have no day's partition", n)
	}
}

// A migration waits for who reads the tables, and holds up nobody meanwhile.
func TestMigrationWaitsForReaders(t *testing.T) {
	url := database(t)
	version1(t, url, 3)
	dump, err := connectTo(t, url).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dump.Exec(t.Context(), `LOCK TABLE lessor.state IN ACCESS SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() {
		b, err := Open(t.Context(), lessor.NewSecret(url), Options{})
		if err == nil {
			err = b.Close()
		}
		opened <- err
	}()
	reader, held := connectTo(t, url), 0
	for began := time.Now(); time.Since(began) < 2*time.Second || held == 0 && time.Since(began) < time.Minute; {
		asked := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // behind a migration that waits it would be for ever
		_, err := reader.Exec(ctx, `SELECT FROM lessor.state`)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(asked)
		if took > 30*time.Second {
			t.Errorf("a read took %s", took)
		}
		if took > partitionWait/2 {
			held++
		}
	}
	if held == 0 {
		t.Error("the migration did not come to the table that is read")
	}
	select {
	case err := <-opened:
		t.Fatalf("opened while somebody reads the tables: %v", err)
	default:
	}
	if err := dump.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// A migration that fails midway was never begun.
func TestMigrationIsWhole(t *testing.T) {
	url := database(t)
	version1(t, url, 3)
	sql(t, url, `CREATE TABLE lessor.floors ()`) // which the migration makes late
	if b, err := Open(t.Context(), lessor.NewSecret(url), Options{}); err == nil {
		b.Close()
		t.Fatal("the migration cannot have succeeded")
	}
	sql(t, url, `SELECT epoch FROM lessor.horizon; INSERT INTO lessor.nodes (pin) VALUES (1); DROP TABLE lessor.floors`) // as version 1 has them
	verify(t, node(t, url, "after"))
}

// Of two versions side by side, the one before goes on as long as the newer one says that it may.
func TestNewerTablesThatAreCompatible(t *testing.T) {
	url := database(t)
	backend := connect(t, url)
	defer backend.Close()
	running := node(t, url, "running")
	sql(t, url, `UPDATE lessor.state SET version = version + 1`)
	starting := node(t, url, "starting")
	for _, db := range []*store.DB{running, starting} {
		if _, err := add(t.Context(), db, "n"); err != nil {
			t.Error(err)
		}
	}
	sql(t, url, `UPDATE lessor.state SET least = version`)
	for _, db := range []*store.DB{running, starting} {
		if _, err := add(t.Context(), db, "n"); !errors.Is(err, errVersion) {
			t.Errorf("a commit to tables that this version does not know: %v", err)
		}
	}
	if s, err := backend.Snapshot(); !errors.Is(err, errVersion) {
		t.Errorf("the latest state of tables that this version does not know: %v", err)
		if err == nil {
			s.Close()
		}
	}
}

// A node whose tables became too new for it is gone for the others, so that they take over its work, and knows it.
func TestTablesThatAreTooNew(t *testing.T) {
	url := database(t)
	b := connect(t, url)
	t.Cleanup(func() { b.Close() })
	if peers, err := b.Peers(t.Context()); err != nil || len(peers) != 1 || !peers[0].Alive {
		t.Fatalf("%v %v", peers, err)
	}
	sql(t, url, `UPDATE lessor.state SET version = version + 1, least = version + 1`)
	for range 2 {
		if err := b.beat(t.Context()); !errors.Is(err, errVersion) {
			t.Errorf("a sign of life: %v", err)
		}
		sql(t, url, `UPDATE lessor.nodes SET seen = seen - interval '10 seconds'`)
	}
	if n := count(t, b, `SELECT count(*) FROM lessor.nodes WHERE seen > clock_timestamp() - $1::interval`, store.PeerTerm); n != 0 {
		t.Error("the node is alive to the others")
	}
	if _, err := b.Peers(t.Context()); !errors.Is(err, errVersion) || !errors.Is(err, store.ErrOutdated) {
		t.Errorf("who else is there: %v", err)
	}
	sql(t, url, `DELETE FROM lessor.nodes`)
	if _, err := b.Peers(t.Context()); !errors.Is(err, errVersion) {
		t.Errorf("who else is there, once it is forgotten: %v", err)
	}
}

// The role that lessor uses owns nothing but its schema.
func TestRoleWithoutPrivileges(t *testing.T) {
	s := pgtest.Start(t, pgtest.Fsync())
	name := s.Database(t)
	admin := s.Connect(t, name)
	role := "plain_" + strings.ToLower(rand.Text()[:8])
	do := func(text string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), strings.NewReplacer("$role", role, "$name", name).Replace(text), pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
	}
	do(`CREATE USER $role PASSWORD 'secret'; REVOKE ALL ON SCHEMA public FROM PUBLIC`)
	url := s.URL(role, "secret", name)
	refused := func(why string) {
		t.Helper()
		b, err := Open(t.Context(), lessor.NewSecret(url), Options{})
		if err == nil {
			b.Close()
		}
		if !errors.Is(err, errRole) || !strings.Contains(err.Error(), why) {
			t.Errorf("not %q: %v", why, err)
		}
	}
	works := func() {
		t.Helper()
		db, err := store.Open(connect(t, url), store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
			t.Fatal(err)
		}
		if _, err := add(t.Context(), db, "n"); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	refused("GRANT CREATE ON DATABASE")
	do(`CREATE SCHEMA lessor`)
	refused("ALTER SCHEMA lessor OWNER TO")
	do(`ALTER SCHEMA lessor OWNER TO $role`)
	works() // in a schema made in advance
	do(`DROP SCHEMA lessor CASCADE; GRANT CREATE ON DATABASE $name TO $role`)
	works() // in a schema that it made
}
