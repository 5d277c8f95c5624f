package database_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	goredis "github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/rotation"
)

// pool is up to ten sessions of a login's, each of which is opened anew every moment.
type pool struct {
	ask   func(context.Context) error // over one of them
	close func()                      // lets them run out
}

// service is a program that works at a database all the time over a pool. It follows rotations: it goes on with a pool of the new password, lets the old one run
// out, and acknowledges.
type service struct {
	*pair
	open    func(login) *pool
	at      atomic.Pointer[pool]
	using   sync.RWMutex // read: something is asked over the pool that at was
	version login

	done, failed atomic.Int64
	failure      atomic.Pointer[error]
}

// work asks until ctx ends.
func (s *service) work(ctx context.Context) {
	for ctx.Err() == nil {
		s.using.RLock()
		err := s.at.Load().ask(context.Background())
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
		time.Sleep(100 * time.Millisecond) // it takes a while to notice
		next := s.open(l)
		s.using.Lock() // what was asked last over the old pool is answered
		old := s.at.Swap(next)
		s.using.Unlock()
		old.close()
		s.version = l
		s.acknowledge("service", l)
	}
}

// run has the service at work while f goes on.
func (s *service) run(f func()) {
	s.version = s.read("service")
	s.at.Store(s.open(s.version))
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
	s.at.Load().close()
}

// follows has a service follow ten rotations in a row: nothing that it asks fails. Something does where the old password is retired at once, which shows that it
// would have been noticed.
func follows(t *testing.T, start func(*testing.T) (p *pair, open func(login) *pool, lets func(login) bool)) {
	for name, c := range map[string]struct {
		rotations int
		atOnce    bool
	}{"waiting": {10, false}, "control": {2, true}} {
		t.Run(name, func(t *testing.T) {
			p, open, lets := start(t)
			s := &service{pair: p, open: open}
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
				t.Errorf("%d questions only", n)
			}
			if n := s.failed.Load(); (n > 0) != c.atOnce {
				t.Errorf("%d of %d questions failed: %v", n, s.done.Load(), s.failure.Load())
			}
			for _, l := range passwords {
				if lets(l) {
					t.Error("an old password is not dead")
				}
			}
			if !lets(s.read("watcher")) {
				t.Error("the password in force is not let in")
			}
		})
	}
}

func TestServiceFollows(t *testing.T) {
	follows(t, func(t *testing.T) (*pair, func(login) *pool, func(login) bool) {
		p := newWorld(t, pgtest.Start(t)).pair("")
		return p, func(l login) *pool {
			cfg, err := pgxpool.ParseConfig(p.pg.URL(l.username, l.password, "postgres"))
			p.must(err)
			cfg.MaxConns, cfg.MaxConnLifetime = 10, 50*time.Millisecond
			c, err := pgxpool.NewWithConfig(context.Background(), cfg)
			p.must(err)
			return &pool{func(ctx context.Context) error { _, err := c.Exec(ctx, "SELECT 1"); return err }, c.Close}
		}, p.lets
	})
}

func TestRedisServiceFollows(t *testing.T) {
	follows(t, func(t *testing.T) (*pair, func(login) *pool, func(login) bool) {
		w := newRedisWorld(t)
		p := &pair{w.world, [2]string{w.own + "_a", w.own + "_b"}}
		for _, user := range p.users {
			w.redis("ACL", "SETUSER", user, "on", ">first", "~*", "+exists")
		}
		p.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"r","usernames":[%q,%q],"rotation_period":"1000h"}`, p.users[0], p.users[1]))
		return p, func(l login) *pool {
			o := *w.server.Client(l.username, l.password).Options()
			o.PoolSize, o.ConnMaxLifetime = 10, 50*time.Millisecond
			c := goredis.NewClient(&o)
			return &pool{func(ctx context.Context) error { return c.Exists(ctx, "x").Err() }, func() { _ = c.Close() }}
		}, func(l login) bool { return w.logsIn(l.username, l.password) }
	})
}
