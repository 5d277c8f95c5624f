package postgres

import (
	"context"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
)

// A commit waits for a synchronous standby that is not there, and somebody cuts the wait short: the server then shows the commit, which no
// standby has. It is not acknowledged, by this node or through another, before the standby has it.
func TestWaitsCutShortAcknowledgeNothing(t *testing.T) {
	s := pgtest.Own(t, pgtest.Fsync())
	name := s.Database(t)
	db := node(t, s.URL(pgtest.Superuser, s.Password(), name), "node")
	admin := s.Connect(t, name)
	exec := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.Exec(t.Context(), `SET synchronous_commit = local`); err != nil {
		t.Fatal(err)
	}
	standbys := func(names string) {
		t.Helper()
		exec(`ALTER SYSTEM SET synchronous_standby_names = '` + names + `'`)
		exec(`SELECT pg_reload_conf()`)
	}
	// waiting is the session that waits for standbys, 0 if there is none.
	waiting := func() (pid int) {
		t.Helper()
		err := admin.QueryRow(t.Context(), `SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE datname = $1 AND wait_event = 'SyncRep'`, name).Scan(&pid)
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	until := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("waited in vain until " + what)
			}
		}
	}
	defer standbys("") // or what closes the store waits as well
	for range 2 {
		before := counted(t, db, "n")
		standbys("nobody")
		time.Sleep(50 * time.Millisecond) // for other sessions to read it
		done := make(chan error, 1)
		go func() {
			_, err := add(context.Background(), db, "n")
			done <- err
		}()
		until("the commit waits", func() bool { return waiting() != 0 })
		for range 3 {
			var cut bool
			if err := admin.QueryRow(t.Context(), `SELECT pg_cancel_backend($1)`, waiting()).Scan(&cut); err != nil || !cut {
				t.Fatalf("the wait was not cut: %v", err)
			}
			// It is committed, and seen to be; it waits on nevertheless, with a further commit.
			until("the server shows the commit", func() bool {
				var n int
				err := admin.QueryRow(t.Context(), `SELECT count(*) FROM lessor.rows WHERE tab = $1`, int16(store.Head)).Scan(&n)
				return err == nil && uint64(n) > before
			})
			until("it waits again", func() bool { return waiting() != 0 })
		}
		select {
		case err := <-done:
			t.Fatalf("a commit that no standby has was answered: %v", err)
		default:
		}
		standbys("")
		if err := <-done; err != nil {
			t.Errorf("the standbys are back: %v", err)
		}
		if n := counted(t, db, "n"); n != before+1 {
			t.Errorf("%d where %d was to be", n, before+1)
		}
	}
	verify(t, db)
}
