package postgres

import (
	"testing"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// settler calls settled whenever a Write by Begin is over, as of who asks what became of a commit.
type settler struct {
	*Backend
	settled func()
}

type settling struct {
	store.Write
	over func()
}

func (s *settler) Begin() (store.Write, error) {
	w, err := s.Backend.Begin()
	if err != nil {
		return nil, err
	}
	return &settling{w, s.settled}, nil
}

func (w *settling) Abort() {
	w.Write.Abort()
	w.over()
}

// hang ends the calls that are under way, as when the database has not answered for long.
func (b *Backend) hang() {
	b.link.heard.Store(0)
	b.link.answered(false)
}

// The network keeps back the call that commits, the node gives it up and finds that nothing was written; then, at the worst moment, before
// the node writes again, the call is delivered. It does nothing.
func TestCallDeliveredLate(t *testing.T) {
	s := pgtest.Start(t, pgtest.Fsync())
	name := s.Database(t)
	direct := s.URL(pgtest.Superuser, s.Password(), name)
	admin := s.Connect(t, name)
	relay := pgtest.NewRelay(t, s)
	b := &settler{Backend: connect(t, relay.URL(direct)), settled: func() {}}
	db, err := store.Open(b, store.Options{Node: "node"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
		t.Fatal(err)
	}
	sessions := func(pid uint32) (n int) {
		t.Helper()
		if err := admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, pid).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	write := func(value string) error {
		x := store.Txn{Audit: []audit.Record{{Operation: "update", Path: value, Phase: audit.Done}}}
		x.Put(store.Engine, "k", []byte(value)) // whatever is there
		_, err := db.Commit(t.Context(), x)
		return err
	}
	for range 20 { // a node that has met no other for a while guesses
		if err := write("before"); err != nil {
			t.Fatal(err)
		}
	}
	before := db.Head().Seq
	conn, err := b.writer.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pid := conn.Conn().PgConn().PID()
	conn.Release()
	delivered := false
	b.settled = func() {
		if delivered {
			return
		}
		delivered = true
		relay.Release()
		await(t, "the session with the late call has done it, and found its client gone", func() bool { return sessions(pid) == 0 })
	}
	relay.Hold()
	done := make(chan error, 1)
	go func() { done <- write("once") }()
	await(t, "the call is under way", func() bool { return b.writer.Stat().AcquiredConns() == 1 })
	b.hang()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !delivered {
		t.Error("nobody asked what had become of the commit")
	}
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if seq := db.Head().Seq; seq != before+1 {
		t.Errorf("%d commits where one was to be", seq-before)
	}
	var records int
	if err := admin.QueryRow(t.Context(), `SELECT count(*) FROM lessor.records WHERE tab = $1`, int16(store.Records)).Scan(&records); err != nil || records != 21 {
		t.Errorf("%d records, %v", records, err)
	}
	verify(t, db)
}
