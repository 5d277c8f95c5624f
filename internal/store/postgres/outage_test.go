package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/servertest"
	"github.com/lessor-dev/lessor/internal/store"
)

// wire is a proxy before a server that cuts connections at the worst moments.
type wire struct {
	*servertest.Wire
	cut  atomic.Int32 // one of the moments; reset once it has come
	cuts [3]atomic.Int32
}

// The moments.
const (
	never      int32 = iota
	beforeSent       // the batch with the COMMIT reaches the server in part
	afterDone        // the server has committed, its answer is lost
)

func newWire(t *testing.T, s *pgtest.Server) *wire {
	w := &wire{}
	w.Wire = servertest.NewWire(t, fmt.Sprintf("%s:%d", s.Host, s.Port), w.carry)
	return w
}

func (w *wire) carry(client, server net.Conn) {
	pass := func(to, from net.Conn, moment int32, is func([]byte) bool) {
		defer client.Close()
		defer server.Close()
		b := make([]byte, 1<<16)
		for {
			n, err := from.Read(b)
			if n > 0 && is(b[:n]) && w.cut.CompareAndSwap(moment, never) {
				w.cuts[moment].Add(1)
				if moment == beforeSent {
					_, _ = to.Write(b[:n/2])
				}
				return
			}
			if _, werr := to.Write(b[:n]); err != nil || werr != nil {
				return
			}
		}
	}
	var both sync.WaitGroup
	both.Go(func() { pass(server, client, beforeSent, func(b []byte) bool { return len(b) > 700 }) })
	both.Go(func() {
		pass(client, server, afterDone, func(b []byte) bool { return bytes.Contains(b, []byte("COMMIT\x00")) })
	})
	both.Wait()
}

// Connections are cut in the midst of commits, by the network and by the server, while two nodes write: every commit has a
// definite answer, and the answers are true.
func TestCutsHaveDefiniteAnswers(t *testing.T) {
	s := pgtest.Start(t, pgtest.Fsync())
	name := s.Database(t)
	direct := s.URL(pgtest.Superuser, s.Password(), name)
	wire := newWire(t, s)
	through := strings.Replace(direct, wire.To, wire.Address(), 1)
	cut, steady := node(t, through, "cut"), node(t, direct, "steady")
	admin := s.Connect(t, name)

	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var done, refused [2]atomic.Uint64
	for i, db := range []*store.DB{cut, steady} {
		for range 3 {
			all.Go(func() {
				for ctx.Err() == nil {
					_, err := add(t.Context(), db, fmt.Sprint("counter", i))
					var conflict *store.Conflict
					switch {
					case err == nil:
						done[i].Add(1)
					case errors.Is(err, store.ErrUncertain), errors.Is(err, store.ErrClosed):
						t.Errorf("no definite answer: %v", err)
						return
					case !errors.As(err, &conflict):
						refused[i].Add(1)
					}
				}
			})
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 24 {
		time.Sleep(time.Duration(20+rng.IntN(60)) * time.Millisecond)
		if i%3 == 2 {
			_, err := admin.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.5`)
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		wire.cut.Store([]int32{beforeSent, afterDone}[i%3])
	}
	time.Sleep(300 * time.Millisecond)
	cancel()
	all.Wait()
	t.Logf("cut: %d done, %d refused; steady: %d done, %d refused; %d cuts before, %d after the commit", done[0].Load(), refused[0].Load(),
		done[1].Load(), refused[1].Load(), wire.cuts[beforeSent].Load(), wire.cuts[afterDone].Load())
	if wire.cuts[beforeSent].Load() == 0 || wire.cuts[afterDone].Load() == 0 {
		t.Error("the wire was never cut at one of the moments")
	}
	last := node(t, direct, "last")
	for i := range done {
		if n := counted(t, last, fmt.Sprint("counter", i)); n != done[i].Load() {
			t.Errorf("counter %d: %d commits were acknowledged, %d are there", i, done[i].Load(), n)
		}
	}
	verify(t, last)
}

// The server dies and comes back: what was acknowledged is there, and the node goes on without a restart.
func TestServerDiesAndReturns(t *testing.T) {
	t.Parallel()
	s := pgtest.Own(t, pgtest.Fsync())
	db := node(t, s.URL(pgtest.Superuser, s.Password(), s.Database(t)), "node")
	const before = 5
	for range before {
		if _, err := add(t.Context(), db, "n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	var down store.Txn
	down.Put(store.Engine, "down", []byte("x"))
	if _, err := db.Commit(t.Context(), down); err == nil || errors.Is(err, store.ErrUncertain) {
		t.Errorf("commit without a server: %v", err)
	}
	if err := s.Up(); err != nil {
		t.Fatal(err)
	}
	if n := counted(t, db, "n"); n != before {
		t.Errorf("%d of %d commits are there", n, before)
	}
	if _, err := add(t.Context(), db, "n"); err != nil {
		t.Errorf("commit after the server returned: %v", err)
	}
	verify(t, db)
}
