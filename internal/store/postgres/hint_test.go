package postgres

import (
	"fmt"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// rarely opens an unsealed store that polls so rarely that it hears of others by hints, or not at all.
func rarely(t *testing.T, url, name string) (*store.DB, *Backend) {
	t.Helper()
	b, err := Open(t.Context(), lessor.NewSecret(url), Options{Connections: 8, pollEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(b, store.Options{Node: name})
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
	return db, b
}

// listeners are the sessions that hear hints.
const listeners = `FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'`

// What a node commits, one that does not poll hears of at once; also after its session was ended.
func TestHints(t *testing.T) {
	s := pgtest.Start(t, pgtest.Fsync())
	name := s.Database(t)
	url := s.URL(pgtest.Superuser, s.Password(), name)
	admin := s.Connect(t, name)
	count := func() (n int) {
		t.Helper()
		if err := admin.QueryRow(t.Context(), `SELECT count(*) `+listeners).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	one, b := rarely(t, url, "one")
	two, _ := rarely(t, url, "two")
	for range 2 {
		await(t, "both listen, and one knows of two", func() bool { return b.others.Load() && count() == 2 })
		began := time.Now()
		const commits = 20
		for range commits {
			r, err := add(t.Context(), one, "n")
			if err != nil {
				t.Fatal(err)
			}
			hears(t, two, r.Seq)
		}
		t.Logf("%s from one commit to the next", (time.Since(began) / commits).Round(10*time.Microsecond))
		if _, err := admin.Exec(t.Context(), `SELECT pg_terminate_backend(pid, 5000) `+listeners); err != nil {
			t.Fatal(err)
		}
	}
}

// Without hints, nodes hear of each other all the same.
func TestNoHints(t *testing.T) {
	s := pgtest.Start(t, pgtest.Fsync())
	name := s.Database(t)
	url := s.URL(pgtest.Superuser, s.Password(), name)
	admin := s.Connect(t, name)
	one, two := node(t, url, "one"), node(t, url, "two")
	for range 5 {
		if _, err := admin.Exec(t.Context(), `SELECT pg_terminate_backend(pid, 5000) `+listeners); err != nil {
			t.Fatal(err)
		}
		r, err := add(t.Context(), one, "n")
		if err != nil {
			t.Fatal(err)
		}
		hears(t, two, r.Seq)
	}
}

// A node that is alone gives no hints, and gives them once it is not.
func TestNobodyToHint(t *testing.T) {
	s := pgtest.Start(t, pgtest.Fsync())
	name := s.Database(t)
	url := s.URL(pgtest.Superuser, s.Password(), name)
	hears := s.Connect(t, name)
	if _, err := hears.Exec(t.Context(), `LISTEN lessor`); err != nil {
		t.Fatal(err)
	}
	db, b := rarely(t, url, "alone")
	if err := b.beat(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := add(t.Context(), db, "n"); err != nil {
		t.Fatal(err)
	}
	other := connect(t, url)
	defer other.Close()
	if err := b.beat(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := add(t.Context(), db, "n"); err != nil {
		t.Fatal(err)
	}
	n, err := hears.WaitForNotification(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprint(b.told.Load()); n.Payload != want {
		t.Errorf("the first hint is of epoch %s, not %s", n.Payload, want)
	}
}

// await waits for a condition.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain until " + what)
		}
	}
}
