package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// database is the URL of a new, empty database.
func database(t testing.TB) string {
	s := pgtest.Start(t, pgtest.Fsync())
	return s.URL(pgtest.Superuser, s.Password(), s.Database(t))
}

// connect opens a Backend. Few connections: the server is shared by tests.
func connect(t testing.TB, url string) *Backend {
	t.Helper()
	b, err := Open(context.Background(), lessor.NewSecret(url), Options{Connections: 8})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// node opens an unsealed store, closed when the test ends.
func node(t testing.TB, url, name string) *store.DB {
	t.Helper()
	db, err := store.Open(connect(t, url), store.Options{Node: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
		t.Fatal(err)
	}
	return db
}

func verify(t *testing.T, db *store.DB) {
	t.Helper()
	if _, err := db.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func() store.Backend {
		url := database(t)
		return func() store.Backend { return connect(t, url) }
	})
}

// add adds one to a counter that is a row.
func add(ctx context.Context, db *store.DB, name string) (store.Receipt, error) {
	return db.Update(ctx, func(v store.View, t *store.Txn) error {
		row, err := v.Get(store.Key{Table: store.Engine, Name: name})
		if err != nil {
			return err
		}
		var n uint64
		if row.Exists() {
			n = binary.BigEndian.Uint64(row.Value)
		}
		t.Put(store.Engine, name, binary.BigEndian.AppendUint64(nil, n+1))
		t.Audit = []audit.Record{{Time: time.Now(), Operation: "update", Path: "count/" + name, Phase: audit.Done}}
		return nil
	})
}

func counted(t testing.TB, db *store.DB, name string) uint64 {
	t.Helper()
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	row, err := v.Get(store.Key{Table: store.Engine, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	if !row.Exists() {
		return 0
	}
	return binary.BigEndian.Uint64(row.Value)
}

// What one node commits, the others show, without a commit of their own.
func TestNodesFollowEachOther(t *testing.T) {
	url := database(t)
	one, two := node(t, url, "one"), node(t, url, "two")
	for i := range uint64(3) {
		from, to := one, two
		if i%2 == 1 {
			from, to = two, one
		}
		r, err := add(t.Context(), from, "n")
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); to.Head().Seq < r.Seq; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("commit %d never reached the other node", r.Seq)
			}
		}
		if n := counted(t, to, "n"); n != i+1 {
			t.Errorf("the other node shows %d, not %d", n, i+1)
		}
	}
	verify(t, one)
	verify(t, two)
}

// raced is a Backend whose commits are followed by others' before they return.
type raced struct {
	store.Shared
	follow func()
}

type racedWrite struct {
	store.Exact
	follow func()
}

func (r *raced) Enter(ctx context.Context, at store.Snapshot, after uint64, keys []store.Key, versions []uint64) (store.Write, store.News, error) {
	w, news, err := r.Shared.Enter(ctx, at, after, keys, versions)
	if err != nil {
		return nil, news, err
	}
	return &racedWrite{w.(store.Exact), r.follow}, news, nil
}

func (w *racedWrite) Commit() error {
	err := w.Exact.Commit()
	w.follow()
	return err
}

// Moved gives no hints: the node hears of others' commits by its own.
func (r *raced) Moved() <-chan struct{} { return nil }

// A node shows its own commit as that left the store, though another's has come right after it.
func TestCommitsShowTheirOwnState(t *testing.T) {
	url := database(t)
	other := node(t, url, "other")
	db, err := store.Open(&raced{connect(t, url), func() {
		if _, err := add(t.Context(), other, "n"); err != nil {
			t.Error(err)
		}
	}}, store.Options{Node: "raced"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(4) {
		var one store.Txn
		one.Put(store.Engine, "mine", []byte{byte(i)})
		r, err := db.Commit(t.Context(), one)
		if err != nil || r.Seq != 2*i+1 {
			t.Fatalf("commit %d, %v; want %d", r.Seq, err, 2*i+1)
		}
		if mine, theirs := counted(t, db, "n"), counted(t, other, "n"); mine != i || theirs != i+1 {
			t.Errorf("commit %d shows %d of the other's commits, which shows %d", r.Seq, mine, theirs)
		}
	}
	verify(t, other)
}

// Three nodes write the same rows at once: nothing is lost, what a node was told is what it shows, and the chain is one.
func TestNodesContend(t *testing.T) {
	url := database(t)
	const nodes, writers, each = 3, 4, 15
	dbs := make([]*store.DB, nodes)
	for i := range dbs {
		dbs[i] = node(t, url, fmt.Sprint("node", i))
	}
	var all sync.WaitGroup
	for i, db := range dbs {
		for w := range writers {
			all.Go(func() {
				for done := 0; done < each; {
					_, err := add(t.Context(), db, "shared")
					var conflict *store.Conflict
					if errors.As(err, &conflict) {
						continue
					}
					if err == nil {
						_, err = add(t.Context(), db, fmt.Sprintf("own/%d/%d", i, w))
					}
					if err != nil {
						t.Error(err)
						return
					}
					done++
					if n := counted(t, db, fmt.Sprintf("own/%d/%d", i, w)); n != uint64(done) {
						t.Errorf("node %d shows %d right after commit %d", i, n, done)
					}
				}
			})
		}
	}
	all.Wait()
	last := node(t, url, "last")
	if n := counted(t, last, "shared"); n != nodes*writers*each {
		t.Errorf("%d of %d updates are there", n, nodes*writers*each)
	}
	verify(t, last)
}

// A View stays what it was while other nodes overwrite and delete, and what nobody shows any more is reclaimed.
func TestViewsStayAndThePastGoes(t *testing.T) {
	url := database(t)
	b := connect(t, url)
	defer b.Close()
	other := connect(t, url)
	defer other.Close()
	key := func(i int) store.Key { return store.Key{Table: store.Engine, Name: fmt.Sprintf("%03d", i)} }
	version := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	const rows = 100
	commit(t, b, func(w store.Write) {
		for i := range rows {
			w.Set(key(i), version(1))
		}
	})
	old, err := b.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint64(3) {
		commit(t, other, func(w store.Write) {
			for i := range rows {
				w.Set(key(i), version(2+n))
			}
		})
	}
	commit(t, other, func(w store.Write) { w.DeleteRange(store.Range{Table: store.Engine, To: key(rows / 2).Name}) })
	past := func() (n int) {
		if err := b.readers.QueryRow(t.Context(), `SELECT count(*) FROM lessor.past`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	show := func(s store.Snapshot, n int, v uint64) {
		t.Helper()
		for _, reverse := range []bool{false, true} {
			got := 0
			for e, err := range s.Scan(store.Range{Table: store.Engine}, reverse) {
				if err != nil {
					t.Fatal(err)
				}
				if have := binary.BigEndian.Uint64(e.Bytes); have != v {
					t.Fatalf("%s is of version %d, not %d", e.Key, have, v)
				}
				got++
			}
			if got != n {
				t.Errorf("%d rows, not %d", got, n)
			}
		}
	}
	for range 3 { // however often it is swept
		if err := errors.Join(b.beat(t.Context()), b.sweep(t.Context()), other.beat(t.Context()), other.sweep(t.Context())); err != nil {
			t.Fatal(err)
		}
		show(old, rows, 1)
	}
	old.Close()
	latest, err := b.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer latest.Close()
	show(latest, rows/2, 4)
	for deadline := time.Now().Add(time.Minute); past() > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d past rows are not reclaimed", past())
		}
	}
	show(latest, rows/2, 4)

	// A node that was cut off for so long that its state was reclaimed says so.
	if _, err := b.readers.Exec(t.Context(), `UPDATE lessor.horizon SET reclaimed = reclaimed + 100`); err != nil {
		t.Fatal(err)
	}
	if _, err := latest.Get(key(rows - 1)); !errors.Is(err, errReclaimed) {
		t.Errorf("get of a reclaimed state: %v", err)
	}
	for _, err := range latest.Scan(store.Range{Table: store.Secrets}, false) {
		if !errors.Is(err, errReclaimed) {
			t.Errorf("scan of a reclaimed state: %v", err)
		}
	}
}

// Names of the greatest length, which do not compress, are stored.
func TestLongNames(t *testing.T) {
	b := connect(t, database(t))
	defer b.Close()
	name := string(storetest.Random(store.MaxName))
	for v := range uint64(2) {
		w, err := b.Begin()
		if err != nil {
			t.Fatal(err)
		}
		w.Set(store.Key{Table: store.Secrets, Name: name}, binary.BigEndian.AppendUint64(nil, v+1))
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManyNodesStartAtOnce(t *testing.T) {
	url := database(t)
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			b, err := Open(t.Context(), lessor.NewSecret(url), Options{Connections: 1})
			if err != nil {
				t.Error(err)
				return
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestRefusals(t *testing.T) {
	server := pgtest.Start(t, pgtest.Fsync())
	database := server.Database(t)
	good := server.URL(pgtest.Superuser, server.Password(), database)
	b := connect(t, good)
	defer b.Close()
	refused := func(t *testing.T, url, want string) {
		t.Helper()
		b, err := Open(t.Context(), lessor.NewSecret(url), Options{})
		if err == nil {
			b.Close()
			t.Fatal("it was opened")
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want: %s", err, want)
		}
		for _, secret := range []string{"hunter2", server.Password()} {
			if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), secret) {
				t.Errorf("the error shows the password: %v", err)
			}
		}
	}
	t.Run("wrong password", func(t *testing.T) {
		refused(t, server.URL(pgtest.Superuser, "hunter2", database), "password authentication failed")
	})
	t.Run("no URL", func(t *testing.T) { refused(t, "postgresql://u:hunter2@[::1:5432/x", "does not parse") })
	t.Run("bad port", func(t *testing.T) { refused(t, "postgresql://u:hunter2/@h:5432/x", "does not parse") })
	t.Run("bad keyword", func(t *testing.T) { refused(t, "host=h password=hunter2 sslmode=hunter2", "does not parse") })
	t.Run("nobody there", func(t *testing.T) {
		refused(t, "postgresql://u:hunter2@127.0.0.1:1/x?sslmode=disable", "connect")
	})
	t.Run("without fsync", func(t *testing.T) {
		s := pgtest.Start(t)
		refused(t, s.URL(pgtest.Superuser, s.Password(), s.Database(t)), "fsync = off")
	})
	t.Run("locks that do not lock", func(t *testing.T) {
		name := server.Database(t)
		_, err := server.Connect(t, name).Exec(t.Context(), `CREATE FUNCTION public.pg_advisory_xact_lock(bigint) RETURNS void LANGUAGE sql AS 'SELECT';
			CREATE FUNCTION public.pg_try_advisory_xact_lock(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true'`,
			pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		refused(t, server.URL(pgtest.Superuser, server.Password(), name)+"&search_path=public,pg_catalog", "do not exclude")
	})
	t.Run("newer lessor", func(t *testing.T) {
		if _, err := b.readers.Exec(t.Context(), `UPDATE lessor.state SET version = version + 1, least = version + 1`); err != nil {
			t.Fatal(err)
		}
		refused(t, good, "newer lessor")
		if _, err := b.Begin(); !errors.Is(err, errVersion) {
			t.Errorf("a node that runs already wrote to newer tables: %v", err)
		}
	})
}

func TestTLS(t *testing.T) {
	server := pgtest.Start(t, pgtest.Fsync(), pgtest.TLS())
	file := func(ca []byte) string {
		path := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(path, ca, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	other, err := pgtest.OtherCA()
	if err != nil {
		t.Fatal(err)
	}
	// Of two hosts, the one that answers is used.
	url := fmt.Sprintf("postgresql://%s:%s@127.0.0.1:1,127.0.0.1:%d/%s?sslmode=verify-full&sslrootcert=", pgtest.Superuser, strings.ReplaceAll(server.Password(), "'", "%27"), server.Port, server.Database(t))
	b := connect(t, url+file(server.CA))
	var encrypted bool
	if err := b.readers.QueryRow(t.Context(), `SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`).Scan(&encrypted); err != nil || !encrypted {
		t.Errorf("encrypted: %t, %v", encrypted, err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if b, err := Open(t.Context(), lessor.NewSecret(url+file(other)), Options{}); err == nil {
		b.Close()
		t.Error("a server whose certificate nobody vouches for was trusted")
	}
}

// A node that died is not alive for long, and then forgotten; one that was only cut off comes back as itself.
func TestPeersDie(t *testing.T) {
	url := database(t)
	a, dead := connect(t, url), connect(t, url)
	defer a.Close()
	defer dead.disconnect()
	dead.cancel()
	dead.running.Wait()
	ago := func(id, age string) {
		t.Helper()
		if _, err := a.readers.Exec(t.Context(), `UPDATE lessor.nodes SET seen = clock_timestamp() - $2::text::interval WHERE id = $1`, id, age); err != nil {
			t.Fatal(err)
		}
	}
	find := func(id string) *store.Peer {
		t.Helper()
		peers, err := a.Peers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range peers {
			if p.ID == id {
				return &p
			}
		}
		return nil
	}
	if p := find(dead.Self()); p == nil || !p.Alive {
		t.Fatalf("a node that was there just now: %+v", p)
	}
	ago(dead.Self(), "5.1 s")
	if p := find(dead.Self()); p == nil || p.Alive {
		t.Errorf("a node that gave no sign of life for 5.1 s: %+v", p)
	}
	ago(dead.Self(), "61 s")
	if p := find(dead.Self()); p != nil {
		t.Errorf("a node that gave no sign of life for a minute: %+v", p)
	}
	ago(dead.Self(), "-1 hour") // the clock was set back, or a failover came to one that is behind
	if err := a.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p := find(dead.Self()); p == nil || time.Until(p.Seen) > time.Minute {
		t.Errorf("a node that is gone lives on until the clock catches up: %+v", p)
	}
	started := find(a.Self()).Started
	if _, err := a.readers.Exec(t.Context(), `DELETE FROM lessor.nodes WHERE id = $1`, a.Self()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); find(a.Self()) == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a node that was forgotten does not come back")
		}
	}
	if p := find(a.Self()); !p.Started.Equal(started) {
		t.Errorf("it came back as if it had just started: %v, not %v", p.Started, started)
	}
}

// Functions that somebody else made are not called in the place of PostgreSQL's own, though the database be set to find them first.
func TestForeignFunctionsAreNotCalled(t *testing.T) {
	server := pgtest.Start(t, pgtest.Fsync())
	name := server.Database(t)
	admin := server.Connect(t, name)
	_, err := admin.Exec(t.Context(), `CREATE TABLE public.caught (n int);
		CREATE FUNCTION public.cardinality(smallint[]) RETURNS integer LANGUAGE sql AS 'INSERT INTO public.caught VALUES (1); SELECT 0';
		ALTER DATABASE `+name+` SET search_path = public, pg_catalog`, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	db := node(t, server.URL(pgtest.Superuser, server.Password(), name), "node")
	if _, err := add(t.Context(), db, "n"); err != nil {
		t.Fatal(err)
	}
	if n := counted(t, db, "n"); n != 1 {
		t.Errorf("the commit was acknowledged, and shows %d", n)
	}
	var caught int
	if err := admin.QueryRow(t.Context(), `SELECT count(*) FROM public.caught`).Scan(&caught); err != nil || caught != 0 {
		t.Errorf("it was called %d times; %v", caught, err)
	}
}

// A node hears of what others commit, whatever else it reads of the backend meanwhile.
func TestNodesHearThoughTheyLook(t *testing.T) {
	url := database(t)
	b := connect(t, url)
	db, err := store.Open(b, store.Options{Node: "looks"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
		t.Fatal(err)
	}
	other := node(t, url, "other")
	for range 20 {
		r, err := add(t.Context(), other, "n")
		if err != nil {
			t.Fatal(err)
		}
		snap, err := b.Snapshot() // as who confirms heads does
		if err != nil {
			t.Fatal(err)
		}
		snap.Close()
		hears(t, db, r.Seq)
	}
}

// hears fails the test unless a node soon shows a commit.
func hears(t *testing.T, db *store.DB, seq uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := db.Await(ctx, seq); err != nil {
		t.Fatalf("commit %d was not heard of: %v", seq, err)
	}
}

// A node that was cut off while the store was moved elsewhere commits nothing to what was left behind.
func TestNodeThatMissedAMove(t *testing.T) {
	url := database(t)
	db, err := store.Open(connect(t, url), store.Options{Node: "paused"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
		t.Fatal(err)
	}
	if _, err := add(t.Context(), db, "n"); err != nil {
		t.Fatal(err)
	}
	mover := connect(t, url)
	defer mover.Close()
	w, err := mover.Begin()
	if err != nil {
		t.Fatal(err)
	}
	w.Set(store.Key{Name: "moved"}, append(make([]byte, 7), append([]byte{1}, append(make([]byte, 32), `{"To":"the folder /elsewhere"}`...)...)...))
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := add(t.Context(), db, "n"); err == nil {
		t.Error("it went on committing")
	}
	if f := db.Fault(); f == nil || store.Passing(f) || !strings.Contains(f.Error(), "moved to the folder /elsewhere") {
		t.Errorf("the fault: %v", f)
	}
}
