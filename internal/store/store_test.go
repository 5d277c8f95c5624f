package store_test

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

func open(t testing.TB, b store.Backend, o store.Options) *store.DB {
	t.Helper()
	db, err := store.Open(b, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(storetest.NewCipher("test")); err != nil {
		t.Fatal(err)
	}
	return db
}

// TestCloseWaits closes a store while a View is open.
func TestCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := open(t, mem.New(), store.Options{})
		v, err := db.View()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Second)
			v.Close()
		}()
		if err := db.Close(); err != nil {
			t.Errorf("the View was closed in time: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		db := open(t, mem.New(), store.Options{})
		v, err := db.View()
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err == nil {
			t.Error("closed under an open View")
		}
		if _, err := v.Get(store.Key{Table: store.Config, Name: "x"}); err != nil {
			t.Errorf("the View lost its ground: %v", err)
		}
		v.Close()
		synctest.Wait()
	})
}

// TestAnchorPace lets a store commit for ten seconds: the anchor is written about once a second.
func TestAnchorPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &counting{}
		db := open(t, mem.New(), store.Options{Anchor: a})
		for range 1000 {
			if _, err := db.Commit(t.Context(), store.Txn{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if a.stored < 9 || a.stored > 12 || a.mark.Seq != 1000 {
			t.Errorf("stored %d times, last %d", a.stored, a.mark.Seq)
		}
	})
}

type counting struct {
	mark   store.Mark
	stored int
}

func (c *counting) Load() (store.Mark, error) { return c.mark, nil }
func (c *counting) Store(m store.Mark) error  { c.mark, c.stored = m, c.stored+1; return nil }
func (c *counting) String() string            { return "counting" }

// FuzzBackup reads damaged backups: they are refused, without taking memory that the input does not justify.
func FuzzBackup(f *testing.F) {
	db := open(f, mem.New(), store.Options{})
	for _, name := range []string{"a", "b"} {
		if _, err := db.Commit(f.Context(), store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Config, Name: name}}}}); err != nil {
			f.Fatal(err)
		}
	}
	var buf bytes.Buffer
	if _, err := db.Backup(f.Context(), &buf); err != nil {
		f.Fatal(err)
	}
	if err := db.Close(); err != nil {
		f.Fatal(err)
	}
	good := buf.Bytes()
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := store.CheckBackup(bytes.NewReader(b))
		if err == nil && !bytes.HasPrefix(b, good[:16]) {
			t.Error("a backup without its beginning was taken")
		}
		if err == io.EOF {
			t.Error("a bare end of file")
		}
	})
}
