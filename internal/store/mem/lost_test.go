package mem

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"testing"

	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// openNode opens a store over b, unsealed, until the test ends.
func openNode(t *testing.T, b store.Backend) *store.DB {
	t.Helper()
	db, err := store.Open(b, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Unseal(storetest.NewCipher("nodes")); err != nil {
		t.Fatal(err)
	}
	return db
}

func put(t *testing.T, db *store.DB, name, value string) {
	t.Helper()
	var x store.Txn
	x.Put(store.Config, name, []byte(value))
	if _, err := db.Commit(t.Context(), x); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, db *store.DB, name string) store.Row {
	t.Helper()
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	row, err := v.Get(store.Key{Table: store.Config, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// A store falls back to a state before its last commits. A node that only saw them is told that they are lost, and needs no more than to
// be opened again; one that was told that they are done finds the store behind. It is the same if others have committed since.
func TestFailoverLosesCommits(t *testing.T) {
	for _, since := range []int{0, 1, 2, 5} {
		t.Run(fmt.Sprint(since), func(t *testing.T) {
			disk := new(Disk)
			seer, maker := openNode(t, disk.Open()), openNode(t, disk.Open())
			put(t, seer, "kept", "")
			back := disk.Save()
			put(t, maker, "lost", "")
			put(t, maker, "lost too", "")
			if err := seer.Fresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			back()
			other := openNode(t, disk.Open())
			for i := range since {
				put(t, other, fmt.Sprint("new", i), "")
			}
			if err := seer.Fresh(t.Context()); !errors.Is(err, store.ErrLost) || errors.Is(err, store.ErrBehind) || !errors.Is(seer.Fault(), store.ErrLost) {
				t.Errorf("who saw what is lost: %v", err)
			}
			if _, err := maker.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: store.Key{Table: store.Config, Name: "x"}}}}); !errors.Is(err, store.ErrBehind) ||
				!errors.Is(maker.Fault(), store.ErrBehind) {
				t.Errorf("who made what is lost: %v", err)
			}
			put(t, other, "goes on", "")
			if _, err := other.Verify(t.Context(), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// cut is a Backend that gives no hints, and breaks off where it tells what is new, if it is told to.
type cut struct {
	*Backend
	off bool
}

func (*cut) Moved() <-chan struct{} { return nil }

func (b *cut) Look(ctx context.Context, at store.Snapshot, after uint64) (store.News, error) {
	news, err := b.Backend.Look(ctx, at, after)
	if b.off && news.State != nil {
		news.More, news.State = true, torn{news.State}
	}
	return news, err
}

type torn struct{ store.Snapshot }

func (torn) Scan(store.Range, bool) iter.Seq2[store.Stored, error] {
	return func(yield func(store.Stored, error) bool) { yield(store.Stored{}, errors.New("connection reset")) }
}

// A node hears of some commits, not of all, and then a failover takes them back. It rests nothing on what it heard.
func TestNewsThatBreakOffAndAreLost(t *testing.T) {
	disk := new(Disk)
	b := &cut{Backend: disk.Open()}
	seer, maker := openNode(t, b), openNode(t, disk.Open())
	put(t, seer, "k", "first")
	version := seer.Head().Seq
	back := disk.Save()
	put(t, maker, "k", "lost")
	b.off = true
	if err := seer.Fresh(t.Context()); err == nil || seer.Fault() != nil {
		t.Fatal(err, seer.Fault())
	}
	b.off = false
	back()
	put(t, openNode(t, disk.Open()), "x", "")
	if err := seer.Fresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	var x store.Txn
	x.Require(store.Row{Key: store.Key{Table: store.Config, Name: "k"}, Version: version})
	x.Put(store.Engine, "e", nil)
	if _, err := seer.Commit(t.Context(), x); err != nil {
		t.Error(err)
	}
	put(t, seer, "k", "second") // subtracts what is there from the sum
	if _, err := seer.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	openNode(t, disk.Open()) // which verifies the sum
}

// late is a Backend whose answer to a look is held up.
type late struct {
	*Backend
	heard, go_ chan struct{}
}

func (*late) Moved() <-chan struct{} { return nil }

func (b *late) Look(ctx context.Context, at store.Snapshot, after uint64) (store.News, error) {
	news, err := b.Backend.Look(ctx, at, after)
	if b.heard != nil {
		heard := b.heard
		b.heard = nil
		close(heard)
		<-b.go_
	}
	return news, err
}

// A node hears of a commit and is slow to take it in. Meanwhile a failover takes it back, and the node itself goes on from before it.
func TestNewsThatComeLateAndAreLost(t *testing.T) {
	for _, since := range []int{1, 2} {
		t.Run(fmt.Sprint(since), func(t *testing.T) {
			disk := new(Disk)
			b := &late{Backend: disk.Open()}
			seer, maker := openNode(t, b), openNode(t, disk.Open())
			put(t, seer, "k", "first")
			back := disk.Save()
			put(t, maker, "k", "lost")
			heard := make(chan struct{})
			b.heard, b.go_ = heard, make(chan struct{})
			looked := make(chan error)
			go func() { looked <- seer.Fresh(t.Context()) }()
			<-heard
			back()
			for i := range since {
				put(t, seer, fmt.Sprint("new", i), "")
			}
			close(b.go_)
			if err := <-looked; !errors.Is(err, store.ErrUnreachable) || seer.Fault() != nil {
				t.Fatalf("%v, %v", err, seer.Fault())
			}
			put(t, seer, "k", "second")
			if _, err := seer.Verify(t.Context(), nil); err != nil {
				t.Error(err)
			}
			openNode(t, disk.Open())
		})
	}
}

// slow is a Backend that gives no hints, and is slow to get at the lock.
type slow struct {
	*Backend
	meanwhile func()
}

func (*slow) Moved() <-chan struct{} { return nil }

func (b *slow) Enter(ctx context.Context, at store.Snapshot, after uint64, keys []store.Key, versions []uint64) (store.Write, store.News, error) {
	if f := b.meanwhile; f != nil {
		b.meanwhile = nil
		f()
	}
	return b.Backend.Enter(ctx, at, after, keys, versions)
}

// A node waits for the lock. Meanwhile it hears of commits, which a failover takes back, and others commit. What it then commits rests on nothing that it
// heard, and it stops, since it showed what is lost. However many commits were lost, and made since.
func TestEntersAfterWhatItHeardWasLost(t *testing.T) {
	for lost := 1; lost <= 3; lost++ {
		for since := range 4 {
			t.Run(fmt.Sprintf("%d lost, %d since", lost, since), func(t *testing.T) {
				disk := new(Disk)
				b := &slow{Backend: disk.Open()}
				seer, maker := openNode(t, b), openNode(t, disk.Open())
				put(t, seer, "k", "first")
				get(t, seer, "k")
				back := disk.Save()
				joined := make(chan error, 1)
				b.meanwhile = func() {
					for i := range lost {
						put(t, maker, "k", fmt.Sprint("lost ", i))
					}
					if err := seer.Fresh(t.Context()); err != nil {
						t.Error(err)
					}
					get(t, seer, "k")
					back()
					for i := range since {
						put(t, openNode(t, disk.Open()), "k", fmt.Sprint("new ", i))
					}
					go func() {
						var x store.Txn
						x.Put(store.Config, "k", []byte("second"))
						_, err := seer.Commit(context.Background(), x)
						joined <- err
					}()
					for seer.Stats().Queued == 0 {
						runtime.Gosched()
					}
				}
				var x store.Txn
				x.Put(store.Config, "y", nil)
				_, err := seer.Commit(t.Context(), x)
				t.Logf("%v, %v", err, <-joined)
				_ = seer.Fresh(t.Context())
				if !errors.Is(seer.Fault(), store.ErrLost) && !errors.Is(seer.Fault(), store.ErrBehind) {
					t.Errorf("it goes on: %v", seer.Fault())
				}
				if _, err := openNode(t, disk.Open()).Verify(t.Context(), nil); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// veiled is a Backend whose Writes do not tell which state they made, and others may write before its node looks.
type veiled struct {
	*Backend
	between func()
}

type veiledWrite struct {
	store.Write
	b *veiled
}

func (*veiled) Moved() <-chan struct{} { return nil }

func (b *veiled) Enter(ctx context.Context, at store.Snapshot, after uint64, keys []store.Key, versions []uint64) (store.Write, store.News, error) {
	w, news, err := b.Backend.Enter(ctx, at, after, keys, versions)
	return veiledWrite{w, b}, news, err
}

func (b *veiled) Guess(at store.Snapshot, keys []store.Key, versions []uint64) store.Write {
	return veiledWrite{b.Backend.Guess(at, keys, versions), b}
}

func (w veiledWrite) Commit() error {
	err := w.Write.Commit()
	if between := w.b.between; between != nil {
		w.b.between = nil
		between()
	}
	return err
}

// Views show the last of what was written, where a node's own commit and another's become visible at once.
func TestOwnRowsAmongOthers(t *testing.T) {
	disk := new(Disk)
	b := &veiled{Backend: disk.Open()}
	one, other := openNode(t, b), openNode(t, disk.Open())
	put(t, one, "k", "old")
	get(t, one, "k") // so that it is in demand
	b.between = func() { put(t, other, "k", "the other's") }
	put(t, one, "k", "one's")
	if row := get(t, one, "k"); string(row.Value) != "the other's" {
		t.Errorf("it is %q", row.Value)
	}
	b.between = func() { put(t, other, "x", "") }
	put(t, one, "k", "one's")
	if row := get(t, one, "k"); string(row.Value) != "one's" {
		t.Errorf("it is %q", row.Value)
	}
	b.between = func() { put(t, other, "x", "") }
	var x store.Txn
	x.Delete(store.Config, "k")
	if _, err := one.Commit(t.Context(), x); err != nil {
		t.Fatal(err)
	}
	if get(t, one, "k").Exists() {
		t.Error("it is not deleted")
	}
}

// A row appears behind the store's back where the node knows that there is none. Writing it costs nobody else his commit.
func TestAddOfWhatIsThere(t *testing.T) {
	disk := new(Disk)
	one := openNode(t, disk.Open())
	put(t, one, "x", "")
	k := store.Key{Table: store.Engine, Name: "k"}
	absent := func() bool {
		v, err := one.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		row, err := v.Get(k)
		if err != nil {
			t.Fatal(err)
		}
		return !row.Exists()
	}
	if !absent() {
		t.Fatal("it is there")
	}
	w, err := disk.Open().Begin()
	if err != nil {
		t.Fatal(err)
	}
	w.Set(k, append(make([]byte, 7), 1))
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	var x store.Txn
	x.Absent(k.Table, k.Name)
	x.Put(k.Table, k.Name, nil)
	if _, err := one.Commit(t.Context(), x); !errors.As(err, new(*store.Conflict)) {
		t.Error(err)
	}
	put(t, one, "y", "")
}

// held is a Backend that gives no hints; its node's commits are held up when they are done.
type held struct {
	*Backend
	done func()
}

type heldWrite struct {
	store.Exact
	b *held
}

func (*held) Moved() <-chan struct{} { return nil }

func (b *held) Enter(ctx context.Context, at store.Snapshot, after uint64, keys []store.Key, versions []uint64) (store.Write, store.News, error) {
	w, news, err := b.Backend.Enter(ctx, at, after, keys, versions)
	return heldWrite{w.(store.Exact), b}, news, err
}

func (b *held) Guess(at store.Snapshot, keys []store.Key, versions []uint64) store.Write {
	return heldWrite{b.Backend.Guess(at, keys, versions).(store.Exact), b}
}

func (w heldWrite) Commit() error {
	err := w.Exact.Commit()
	if done := w.b.done; done != nil && err == nil {
		w.b.done = nil
		done()
	}
	return err
}

// A commit is done, and taken back by a failover before its node shows it; others have committed since, and the node has heard. Nobody is told that it is done.
func TestOwnCommitIsLostBeforeItIsShown(t *testing.T) {
	for since := range 3 {
		t.Run(fmt.Sprint(since), func(t *testing.T) {
			disk := new(Disk)
			b := &held{Backend: disk.Open()}
			one := openNode(t, b)
			put(t, one, "k", "first")
			back := disk.Save()
			b.done = func() {
				back()
				for i := range since {
					put(t, openNode(t, disk.Open()), fmt.Sprint("new", i), "")
				}
				if err := one.Fresh(t.Context()); err != nil {
					t.Error(err)
				}
			}
			var x store.Txn
			x.Put(store.Config, "k", []byte("second"))
			_, err := one.Commit(t.Context(), x)
			fresh := one.Fresh(t.Context())
			if since == 0 { // nothing tells yet that it is lost
				if err != nil || !errors.Is(fresh, store.ErrBehind) {
					t.Errorf("%v; then %v", err, fresh)
				}
				return
			}
			if !errors.Is(err, store.ErrUncertain) || !errors.Is(one.Fault(), store.ErrLost) {
				t.Errorf("%v; the fault is %v", err, one.Fault())
			}
		})
	}
}

// A store is put back while a node is sealed, which then opens it as it is.
func TestSealedWhileItIsPutBack(t *testing.T) {
	disk := new(Disk)
	one := openNode(t, disk.Open())
	put(t, one, "k", "first")
	back := disk.Save()
	put(t, one, "k", "second")
	sealed, err := store.Open(disk.Open(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer sealed.Close()
	back()
	if err := sealed.Refresh(); err != nil || sealed.Head().Seq != 1 {
		t.Fatalf("commit %d, %v", sealed.Head().Seq, err)
	}
	if err := sealed.Unseal(storetest.NewCipher("nodes")); err != nil {
		t.Fatal(err)
	}
	if row := get(t, sealed, "k"); string(row.Value) != "first" {
		t.Errorf("it is %q", row.Value)
	}
}
