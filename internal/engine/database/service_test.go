package database_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/rotation"
)

// service is a program that works at the database all the time over a pool of ten sessions, each of which it opens anew every moment. It follows rotations: it
// goes on with a pool of the new password, lets the old one run out, and acknowledges.
type service struct {
	*pair
	at      atomic.Pointer[pgxpool.Pool]
	using   sync.RWMutex // read: a query is under way over the pool that at was
	version login
	slow    time.Duration // how long it takes to notice

	done, failed atomic.Int64
	failure      atomic.Pointer[error]
}

func (s *service) pool(l login) *pgxpool.Pool {
	cfg, err := pgxpool.ParseConfig(s.pg.URL(l.username, l.password, "postgres"))
	s.must(err)
	cfg.MaxConns, cfg.MaxConnLifetime = 10, 50*time.Millisecond
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	s.must(err)
	return pool
}

// work queries until ctx ends.
func (s *service) work(ctx context.Context) {
	for ctx.Err() == nil {
		s.using.RLock()
		_, err := s.at.Load().Exec(context.Background(), "SELECT 1")
		s.using.RUnlock()
		if s.done.Add(1); err != nil {
			s.failed.Add(1)
			s.failure.Store(&err)
		}
	}
}

// follow reads again and again, and moves when there is another password.
func (s *service) follow(ctx context.Context) {
	for ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
		l, err := s.tryRead("service")
		if err != nil || l.password == s.version.password {
			continue
		}
		time.Sleep(s.slow)
		next := s.pool(l)
		s.using.Lock() // the last query of the old pool is over
		old := s.at.Swap(next)
		s.using.Unlock()
		old.Close()
		s.version = l
		s.acknowledge("service", l)
	}
}

// run has the service at work while f goes on.
func (s *service) run(f func()) {
	s.version = s.read("service")
	s.at.Store(s.pool(s.version))
	s.acknowledge("service", s.version)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { s.work(ctx) })
	}
	all.Go(func() { s.follow(ctx) })
	f()
	cancel()
	all.Wait()
	s.at.Load().Close()
}

// Ten rotations in a row under a service that follows them: no query of it fails. It does where the old password is retired at once, which shows that it
// would have been noticed.
func TestServiceFollows(t *testing.T) {
	for name, c := range map[string]struct {
		rotations int
		atOnce    bool
	}{"waiting": {10, false}, "control": {2, true}} {
		t.Run(name, func(t *testing.T) {
			s := &service{pair: newWorld(t, pgtest.Start(t)).pair(""), slow: 100 * time.Millisecond}
			var passwords []login
			s.run(func() {
				for i := range c.rotations {
					passwords = append(passwords, s.read("watcher"))
					s.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q,"sync":true}`, passwords[i].lease))
					s.do(lessor.Update, "db/rotate-role/app", "")
					if c.atOnce {
						s.do(lessor.Update, "sys/lessor/rotation/retire/db/static-creds/app", "")
					}
					s.until("the rotation is done", func() bool {
						s.clock.advance(500 * time.Millisecond)
						time.Sleep(10 * time.Millisecond)
						a := s.state("static/app")
						return a.Phase() == rotation.Idle && a.Version == uint64(i+2)
					})
				}
			})
			if n := s.done.Load(); n < 100 {
				t.Errorf("%d queries only", n)
			}
			if n := s.failed.Load(); (n > 0) != c.atOnce {
				t.Errorf("%d of %d queries failed: %v", n, s.done.Load(), s.failure.Load())
			}
			for _, l := range passwords {
				if s.lets(l) {
					t.Error("an old password is not dead")
				}
			}
			if !s.lets(s.read("watcher")) {
				t.Error("the password in force is not let in")
			}
		})
	}
}
