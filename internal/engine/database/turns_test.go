package database_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rabbittest"
	"github.com/lessor-dev/lessor/internal/rotation"
)

// redisService is a program that works at Redis all the time over a pool of ten sessions, each of which it opens anew every moment, and follows rotations as
// service does.
type redisService struct {
	*pair
	redis        *redisWorld
	at           atomic.Pointer[goredis.Client]
	using        sync.RWMutex // read: a command is under way over the client that at was
	version      login
	done, failed atomic.Int64
	failure      atomic.Pointer[error]
}

func (s *redisService) client(l login) *goredis.Client {
	o := *s.redis.server.Client(l.username, l.password).Options()
	o.PoolSize, o.ConnMaxLifetime = 10, 50*time.Millisecond
	return goredis.NewClient(&o)
}

// work asks until ctx ends.
func (s *redisService) work(ctx context.Context) {
	for ctx.Err() == nil {
		s.using.RLock()
		err := s.at.Load().Exists(context.Background(), "x").Err()
		s.using.RUnlock()
		if s.done.Add(1); err != nil {
			s.failed.Add(1)
			s.failure.Store(&err)
		}
	}
}

// follow reads again and again, and moves when there is another password.
func (s *redisService) follow(ctx context.Context) {
	for ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
		l, err := s.tryRead("service")
		if err != nil || l.password == s.version.password {
			continue
		}
		time.Sleep(100 * time.Millisecond) // it takes a while to notice
		next := s.client(l)
		s.using.Lock() // the last command of the old client is over
		old := s.at.Swap(next)
		s.using.Unlock()
		_ = old.Close()
		s.version = l
		s.acknowledge("service", l)
	}
}

func (s *redisService) run(f func()) {
	s.version = s.read("service")
	s.at.Store(s.client(s.version))
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
	_ = s.at.Load().Close()
}

// Ten rotations in a row at Redis under a service that follows them: none of its commands fails. Some do where the old password is retired at once, which
// shows that it would have been noticed.
func TestRedisServiceFollows(t *testing.T) {
	for name, c := range map[string]struct {
		rotations int
		atOnce    bool
	}{"waiting": {10, false}, "control": {2, true}} {
		t.Run(name, func(t *testing.T) {
			w := newRedisWorld(t)
			p := &pair{w.world, [2]string{w.own + "_a", w.own + "_b"}}
			for _, user := range p.users {
				w.redis("ACL", "SETUSER", user, "on", ">first", "~*", "+exists")
			}
			p.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"r","usernames":[%q,%q],"rotation_period":"1000h"}`, p.users[0], p.users[1]))
			s := &redisService{pair: p, redis: w}
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
				t.Errorf("%d commands only", n)
			}
			if n := s.failed.Load(); (n > 0) != c.atOnce {
				t.Errorf("%d of %d commands failed: %v", n, s.done.Load(), s.failure.Load())
			}
			for _, l := range passwords {
				if w.logsIn(l.username, l.password) {
					t.Error("an old password is not dead")
				}
			}
			if l := s.read("watcher"); !w.logsIn(l.username, l.password) {
				t.Error("the password in force is not let in")
			}
		})
	}
}

// A program that lessor knows nothing of has a connection to RabbitMQ: it is named, and waited for, until the grace is over. Then its connection ends.
func TestRabbitMQConnectionIsWaitedFor(t *testing.T) {
	w := newBrokerWorld(t)
	users := [2]string{w.own + "_a", w.own + "_b"}
	for _, user := range users {
		w.server.Do(t, http.MethodPut, rabbittest.User(user), map[string]string{"password": "first", "tags": ""})
		w.server.Do(t, http.MethodPut, "permissions/%2F/"+user, map[string]string{"configure": "", "write": "", "read": ""})
		t.Cleanup(func() { w.server.Do(t, http.MethodDelete, rabbittest.User(user), nil) })
	}
	w.do(lessor.Update, "mq/static-roles/app", fmt.Sprintf(`{"usernames":[%q,%q],"rotation_period":"1000h","rotation_grace":"2h"}`, users[0], users[1]))
	read := func() (username, password string) {
		a := w.do(lessor.Read, "mq/static-creds/app", "")
		return a.Data["username"].(string), a.Data["password"].(lessor.Secret).Reveal()
	}
	name, first := read()
	c, err := w.server.Dial(name, first, "/")
	w.must(err)
	defer c.Close()
	w.do(lessor.Update, "mq/rotate-role/app", "")
	if other, second := read(); other == name || !w.logsIn(other, second) || !w.logsIn(name, first) {
		t.Fatalf("after the rotation: %s", other)
	}
	w.until("the connection is named", func() bool {
		w.clock.advance(time.Second)
		status, err := json.Marshal(w.do(lessor.Read, "sys/lessor/rotation/status/mq/static-creds/app", "").Data)
		return err == nil && strings.Contains(string(status), `"rabbittest"`)
	})
	if w.state("static/app").Phase() == rotation.Idle || !w.logsIn(name, first) {
		t.Error("it was not waited for")
	}
	w.clock.advance(2 * time.Hour)
	w.until("the rotation is done", func() bool {
		w.clock.advance(time.Second)
		return w.state("static/app").Phase() == rotation.Idle
	})
	if w.logsIn(name, first) || !c.Ended(30*time.Second) {
		t.Error("the old password, or what was opened by it, lives on")
	}
}
