package postgres

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// through is a connection over a relay, with a session that is open. asked is the most that asking for the server's clock can have taken, by
// which a script may be late.
func through(b *bench, r *pgtest.Relay) (d database.Database, asked time.Duration) {
	b.t.Helper()
	d = connection(b.t, b.Server, b.name, func(c *database.Connection, _ *database.Secrets) { c.URL = r.URL(c.URL) })
	a := account()
	begun := time.Now()
	if err := d.Create(b.t.Context(), a); err != nil {
		b.t.Fatal(err)
	}
	asked = time.Since(begun)
	b.remove(a)
	return d, asked
}

// delivered waits until the server has ended the relay's sessions, which it does when it has done all that was sent.
func delivered(b *bench) {
	b.t.Helper()
	for start := time.Now(); ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'lessor%' AND datname = current_database()") > 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			b.t.Fatal("what was held back is under way for ever")
		}
	}
}

// What a paused process sent, and the network delivers after its successor has removed the account and looked for the last time, makes nothing.
func TestScriptThatComesTooLate(t *testing.T) {
	b := newBench(t, pgtest.Start(t))
	relay := pgtest.NewRelay(t, b.Server)
	paused, asked := through(b, relay)
	relay.Hold()
	a := account()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := paused.Create(ctx, a); !errors.Is(err, database.ErrUnreachable) {
		t.Fatalf("got %v", err)
	}
	b.remove(a)
	time.Sleep(asked)
	relay.Release()
	b.Database.(*server).pool.Reset()
	delivered(b)
	if b.has(a) {
		t.Error("an account that was reverted came back")
	}
}

// The same of a password: one that was succeeded does not come into force again.
func TestPasswordThatComesTooLate(t *testing.T) {
	b := newBench(t, pgtest.Start(t))
	relay := pgtest.NewRelay(t, b.Server)
	paused, asked := through(b, relay)
	a := b.create(account())
	change := func(password string) database.Change {
		return database.Change{Name: "static/app", Username: a.Username, Password: lessor.NewSecret(password)}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := paused.(*server).session(ctx, func(s *session) error { // as SetPassword, in the middle of it
		begun := time.Now()
		if _, err := s.punctual(); err != nil {
			return err
		}
		asked = max(asked, time.Since(begun))
		relay.Hold()
		return s.make("static/app", "", `ALTER ROLE "`+a.Username+`" PASSWORD 'the first'`)
	}); err == nil {
		t.Fatal("it was not held back")
	}
	if err := b.SetPassword(t.Context(), change("the second")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(asked)
	relay.Release()
	b.Database.(*server).pool.Reset()
	delivered(b)
	if verdict, err := b.Database.Login(t.Context(), a.Username, lessor.NewSecret("the second")); err != nil || verdict != database.Accepted {
		t.Errorf("the password in force: %v, %v", verdict, err)
	}
	b.remove(a)
}

// A server whose clock was set since a session asked for it is asked again; it refuses nothing that is in time.
func TestClockThatWasSet(t *testing.T) {
	b := newBench(t, pgtest.Start(t))
	d := b.Database.(*server)
	for _, off := range []float64{-3600, 3600} {
		if err := d.session(t.Context(), func(s *session) error {
			r, err := s.asked()
			r.server += off
			s.conn.PgConn().CustomData()[clockOf] = r
			return err
		}); err != nil {
			t.Fatal(err)
		}
		b.remove(b.create(account()))
	}
}
