package pgtest

import (
	"context"
	"testing"
	"time"
)

// A standby has what was acknowledged, takes over, and gets a standby of its own.
func TestStandbyTakesOver(t *testing.T) {
	options := []Option{Fsync()}
	if Root() {
		options = append(options, Disk(512<<20))
	}
	primary := Own(t, options...)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	run := func(s *Server, sql string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		c, err := s.Login(ctx, Superuser, s.Password(), "")
		if err != nil {
			return err
		}
		defer c.Close(context.Background())
		_, err = c.Exec(ctx, sql)
		return err
	}
	standby, err := primary.Standby(t, 0)
	must(err)
	must(primary.Synchronous(t.Context()))
	must(run(primary, "CREATE ROLE first"))
	if run(standby, "CREATE ROLE never") == nil {
		t.Error("a standby took a write")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	must(standby.Pause())
	c, err := primary.Login(t.Context(), Superuser, primary.Password(), "")
	must(err)
	if _, err := c.Exec(ctx, "CREATE ROLE waiting"); err == nil {
		t.Error("the primary did not wait for its standby")
	}
	c.Close(context.Background())
	must(standby.Resume())
	must(primary.Crash())
	must(primary.Up())
	must(run(primary, "CREATE ROLE second"))
	must(primary.Crash())
	primary.Discard()
	must(standby.Promote())
	next, err := standby.Standby(t, 0)
	must(err)
	must(run(standby, "DROP ROLE first, second"))
	if hit, err := standby.CrashBackend("nobody"); hit || err != nil {
		t.Error(hit, err)
	}
	if !next.Alive() {
		t.Error("the new standby is not there")
	}
	if !Root() {
		return
	}
	must(run(standby, "CREATE TABLE t AS SELECT generate_series(1, 1000) i"))
	must(standby.Fill(1 << 20))
	if run(standby, "INSERT INTO t SELECT generate_series(1, 3000000)") == nil {
		t.Error("a full disk took everything")
	}
	must(standby.Free())
	if !standby.Alive() {
		must(standby.Up())
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err = run(standby, "INSERT INTO t VALUES (1)"); err == nil || time.Now().After(end) {
			break
		}
	}
	must(err)
}
