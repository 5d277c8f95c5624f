package postgres

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// soon is well below what a node waits for a server that says nothing, and above what any answer takes.
const soon = 3500 * time.Millisecond

// relayed opens a Backend through a relay. Connections that the relay holds are to a server that says nothing; new ones, to the one in its place.
func relayed(t *testing.T) (*Backend, *pgtest.Relay, *pgtest.Server, string) {
	t.Helper()
	s := pgtest.Start(t, pgtest.Fsync())
	name := s.Database(t)
	relay := pgtest.NewRelay(t, s)
	b := connect(t, relay.URL(s.URL(pgtest.Superuser, s.Password(), name))+"&connect_timeout=1")
	t.Cleanup(func() {
		relay.Release()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, relay, s, name
}

// A server that says nothing more between a login and the answer to what each connection begins with has the one place of those who write for
// no longer than a login may take.
func TestSilenceAfterLogin(t *testing.T) {
	b, relay, s, name := relayed(t)
	w, err := b.Begin()
	if err != nil {
		t.Fatal(err)
	}
	pid := w.(*write).conn.Conn().PgConn().PID()
	w.Abort()
	relay.HoldFrom("SHOW fsync")
	if _, err := s.Connect(t, name).Exec(t.Context(), `SELECT pg_terminate_backend($1)`, int32(pid)); err != nil {
		t.Fatal(err)
	}
	made := b.writer.Stat().NewConnsCount()
	begun := make(chan error, 1)
	go func() {
		w, err := b.Begin()
		if err == nil {
			w.Abort()
		}
		begun <- err
	}()
	await(t, "a connection was given up, and another is made", func() bool { return b.writer.Stat().NewConnsCount() >= made+2 })
	relay.Release()
	if err := <-begun; err != nil {
		t.Error(err)
	}
}

// Once another server is known to have taken the place of the one that was asked, nobody who writes waits for that one: not behind who confirms, and
// not for a connection that lay idle.
func TestWritersLeaveTheServerBefore(t *testing.T) {
	b, relay, _, _ := relayed(t)
	begin := func() error {
		w, err := b.Begin()
		if err == nil {
			w.Abort()
		}
		return err
	}
	confirm := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return b.Confirm(ctx)
	}
	for _, c := range []struct {
		what  string
		idle  time.Duration
		first func() error
	}{
		{"confirming", 0, confirm},
		{"writing", 0, begin},
		{"writing after a pause", 1100 * time.Millisecond, begin}, // a pool pings what lay idle for a second
	} {
		if err := begin(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(c.idle)
		relay.Hold()
		first := make(chan error, 1)
		go func() { first <- c.first() }()
		await(t, "the server before is asked", func() bool { return b.writer.Stat().AcquiredConns() == 1 })
		began := time.Now()
		b.reconnect()
		if err := begin(); err != nil {
			t.Errorf("%s: the next who writes: %v", c.what, err)
		}
		if err := <-first; err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		if took := time.Since(began); took > soon {
			t.Errorf("%s: it took %s after it was known that another server is there", c.what, took)
		}
		relay.Release()
	}
}

// What was begun with the server before is not done with it once another is known to have taken its place, and nobody waits for it.
func TestWritesEndWithTheServer(t *testing.T) {
	b, relay, _, _ := relayed(t)
	for what, ask := range map[string]func(store.Write) error{
		"versions": func(w store.Write) error {
			return w.Versions([]store.Key{{Table: store.Engine, Name: "n"}}, make([]uint64, 1))
		},
		"commit": store.Write.Commit,
	} {
		w, err := b.Begin()
		if err != nil {
			t.Fatal(err)
		}
		w.Set(store.Key{Table: store.Engine, Name: "n"}, make([]byte, 8))
		relay.Hold()
		b.reconnect()
		began := time.Now()
		if err := ask(w); !errors.Is(err, errElsewhere) {
			t.Errorf("%s: %v", what, err)
		}
		w.Abort()
		if took := time.Since(began); took > soon {
			t.Errorf("%s: it took %s", what, took)
		}
		relay.Release()
	}
	snapshot := snap(t, b)
	defer snapshot.Close()
	if stored, err := snapshot.Get(store.Key{Table: store.Engine, Name: "n"}); err != nil || stored != nil {
		t.Errorf("%x, %v", stored, err)
	}
}

// No call begins under a new link while connections to the server before lie idle: it would take one, and nothing would end it again.
func TestIdleConnectionsGoFirst(t *testing.T) {
	b, _, _, _ := relayed(t)
	w, err := b.Begin()
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if n := b.writer.Stat().IdleConns(); n != 1 {
		t.Fatalf("%d idle connections", n)
	}
	b.link.mu.Lock() // so the link cannot end yet
	done := make(chan struct{})
	go func() { defer close(done); b.reconnect() }()
	await(t, "the idle connection is gone, while its link lasts", func() bool { return b.writer.Stat().IdleConns() == 0 })
	b.link.mu.Unlock()
	<-done
}

// Several chores that fail at once because the database says nothing end one link, not the one after it, too.
func TestSilenceEndsOneLink(t *testing.T) {
	l := newLink(t.Context())
	first := l.current()
	l.heard.Store(time.Now().Add(-2 * silence).UnixNano())
	after := make([]context.Context, 32)
	var coming, all sync.WaitGroup
	coming.Add(len(after))
	l.mu.Lock()
	for i := range after {
		all.Go(func() {
			coming.Done()
			l.answered(false)
			after[i] = l.current()
		})
	}
	coming.Wait()
	for range 100 { // they come as far as they can
		runtime.Gosched()
	}
	l.mu.Unlock()
	all.Wait()
	if context.Cause(first) != errSilent {
		t.Errorf("the link ended for %v", context.Cause(first))
	}
	for _, ctx := range after {
		if ctx.Err() != nil {
			t.Fatal("a link ended that had only begun")
		}
	}
}

// A store that closes while another node has the lock, and keeps it, gives up what is queued, and says that it was not written.
func TestCloseIsNotKeptByAnotherWrite(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Fsync())
	name := s.Database(t)
	db, err := store.Open(connect(t, s.URL(pgtest.Superuser, s.Password(), name)), store.Options{Node: "node"})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
		t.Fatal(err)
	}
	other := s.Connect(t, name)
	if _, err := other.Exec(t.Context(), `SELECT pg_advisory_lock($1)`, int64(writeLock)); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		_, err := add(context.Background(), db, "n")
		written <- err
	}()
	await(t, "the node waits for the lock", func() bool {
		var waits bool
		err := other.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database =
			(SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waits)
		return err == nil && waits
	})
	began := time.Now()
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 15*time.Second { // the wait for a lock alone may be twenty
		t.Errorf("it took %s", took)
	}
	if err := <-written; !errors.Is(err, store.ErrUnreachable) {
		t.Errorf("what was queued: %v", err)
	}
}
