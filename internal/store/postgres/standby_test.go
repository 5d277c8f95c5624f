package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// guesser counts the guesses of its node.
type guesser struct {
	*Backend
	guessed atomic.Bool // the latest write was begun without the lock
}

func (g *guesser) Guess(at store.Snapshot, keys []store.Key, versions []uint64) store.Write {
	g.guessed.Store(true)
	return g.Backend.Guess(at, keys, versions)
}

func (g *guesser) Begin() (store.Write, error) {
	g.guessed.Store(false)
	return g.Backend.Begin()
}

// followed is a server with a synchronous standby.
type followed struct {
	*pgtest.Server
	t       *testing.T
	standby *pgtest.Server
	admin   *pgx.Conn // in database postgres, which waits for no standby
}

func follow(t *testing.T) *followed {
	t.Helper()
	f := &followed{Server: pgtest.Own(t, pgtest.Fsync()), t: t}
	f.admin = f.Connect(t, "postgres")
	f.exec(`SET synchronous_commit = local`)
	var err error
	if f.standby, err = f.Standby(t, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Synchronous(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "the standby is synchronous", func() bool {
		return f.number(`SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'`) == 1
	})
	return f
}

func (f *followed) url() string { return f.URL(pgtest.Superuser, f.Password(), "postgres") }

func (f *followed) exec(sql string) {
	f.t.Helper()
	if _, err := f.admin.Exec(f.t.Context(), sql); err != nil {
		f.t.Fatal(err)
	}
}

func (f *followed) number(sql string, args ...any) (n int) {
	f.t.Helper()
	if err := f.admin.QueryRow(f.t.Context(), sql, args...).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

// waiting is the session that waits for the standby, 0 if there is none.
func (f *followed) waiting() int {
	f.t.Helper()
	return f.number(`SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE datname = 'postgres' AND wait_event = 'SyncRep'`)
}

// cut waits until a session waits for the standby, and cuts that wait short.
func (f *followed) cut() {
	f.t.Helper()
	await(f.t, "the commit waits", func() bool { return f.waiting() != 0 })
	if f.number(`SELECT pg_cancel_backend($1)::int`, f.waiting()) != 1 {
		f.t.Fatal("the wait was not cut")
	}
}

// away has the standby stand still while do runs.
func (f *followed) away(do func()) {
	f.t.Helper()
	if err := f.standby.Pause(); err != nil {
		f.t.Fatal(err)
	}
	defer func() {
		if err := f.standby.Resume(); err != nil {
			f.t.Error(err)
		}
	}()
	do()
}

// A commit waits for a synchronous standby that stands still, and somebody cuts the wait short: the server then shows the commit, which the
// standby does not have. It is not acknowledged, by this node or through another, before the standby has it. Under the lock or by a guess.
func TestWaitsCutShortAcknowledgeNothing(t *testing.T) {
	t.Parallel()
	f := follow(t)
	b := &guesser{Backend: connect(t, f.url())}
	db, err := store.Open(b, store.Options{Node: "node"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
		t.Fatal(err)
	}
	heads := func() uint64 {
		t.Helper()
		return uint64(f.number(`SELECT count(*) FROM lessor.rows WHERE tab = $1`, int16(store.Head)))
	}
	for path, guessed := range map[string]bool{"under the lock": false, "by a guess": true} {
		for tries, met := 0, false; !met; tries++ {
			if tries == 20 {
				t.Fatalf("no commit was made %s", path)
			}
			var acknowledged atomic.Uint64
			acknowledged.Store(counted(t, db, "n"))
			stop, done := make(chan struct{}), make(chan error, 1)
			write := func() { // a node guesses once it has met no other for a while, and only where one commit follows upon another
				for {
					if _, err := add(context.Background(), db, "n"); err != nil {
						done <- err
						return
					}
					acknowledged.Add(1)
					select {
					case <-stop:
						done <- nil
						return
					default:
					}
				}
			}
			if guessed {
				go write()
			} else {
				time.Sleep(50 * time.Millisecond) // without which it guesses
			}
			var before uint64
			f.away(func() {
				if !guessed {
					go write()
				}
				await(t, "a commit waits", func() bool { // and is not one that the standby had before it stood still
					before = acknowledged.Load()
					waits := f.waiting() != 0
					time.Sleep(20 * time.Millisecond)
					return waits && acknowledged.Load() == before
				})
				close(stop)
				met = b.guessed.Load() == guessed
				for range 3 { // it is committed, and seen to be; it waits on nevertheless, with a further commit
					f.cut()
					await(t, "the server shows the commit", func() bool { return heads() > before })
				}
				await(t, "it waits again", func() bool { return f.waiting() != 0 })
				if got := acknowledged.Load(); got != before {
					t.Errorf("%s: a commit that the standby does not have was acknowledged", path)
				}
			})
			if err := <-done; err != nil {
				t.Errorf("%s: the standby is back: %v", path, err)
			}
			if n := counted(t, db, "n"); n != before+1 {
				t.Errorf("%s: %d where %d was to be", path, n, before+1)
			}
			if n := heads(); n != before+1 {
				t.Errorf("%s: %d commits where %d were to be", path, n, before+1)
			}
		}
	}
	verify(t, db)
}

// A write whose wait for the standby is cut short says that its outcome is unknown, on either way, and so does who asks whether all is safe.
func TestWaitsCutShortAreUnknown(t *testing.T) {
	t.Parallel()
	f := follow(t)
	b := connect(t, f.url())
	defer b.Close()
	set := func(w store.Write) { w.Set(store.Key{Table: store.Engine, Name: "n"}, make([]byte, 8)) }
	for path, do := range map[string]func() error{
		"under the lock": func() error {
			w, err := b.Begin()
			if err != nil {
				return err
			}
			set(w)
			return w.Commit()
		},
		"by a guess": func() error {
			at, err := b.Snapshot()
			if err != nil {
				return err
			}
			defer at.Close()
			w := b.Guess(at, nil, nil)
			set(w)
			return w.Commit()
		},
		"confirm": func() error { return b.Confirm(context.Background()) },
	} {
		done := make(chan error, 1)
		f.away(func() {
			go func() { done <- do() }()
			f.cut()
			if err := <-done; !errors.Is(err, errShort) {
				t.Errorf("%s: %v", path, err)
			}
		})
		if err := do(); err != nil {
			t.Errorf("%s: the standby is back: %v", path, err)
		}
	}
}

// The primary stops in its tracks, keeping all connections, and its standby takes over: the node goes on there within seconds. Nothing holds on
// to the connections that nobody will ever close.
func TestFailoverFromSilence(t *testing.T) {
	t.Parallel()
	f := follow(t)
	address := fmt.Sprintf("%s:%d", f.Host, f.Port)
	db := node(t, strings.Replace(f.url(), address, fmt.Sprintf("%s,%s:%d", address, f.standby.Host, f.standby.Port), 1), "node")
	if _, err := add(t.Context(), db, "n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Pause(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := f.standby.Promote(); err != nil {
		t.Fatal(err)
	}
	c, err := f.standby.Login(t.Context(), pgtest.Superuser, f.Password(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	for _, sql := range []string{`SET synchronous_commit = local`, `ALTER SYSTEM SET synchronous_standby_names = ''`, `SELECT pg_reload_conf()`} {
		if _, err := c.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for err := error(nil); ; {
		if _, err = add(t.Context(), db, "n"); err == nil {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatal(err)
		}
		t.Logf("after %s: %v", time.Since(began).Round(time.Millisecond), err)
	}
	took := time.Since(began)
	t.Logf("it took %s", took.Round(time.Millisecond))
	if took > 40*time.Second { // 4 to notice, 4 to let go, and each new connection passes by the one that is silent for 3: 24 at most, on a machine that has the time
		t.Error("that is too long")
	}
	if n := counted(t, db, "n"); n < 2 {
		t.Errorf("%d commits are there", n)
	}
}
