package lessorredis_test

import (
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/client/lessorredis"
	"github.com/lessor-dev/lessor/internal/redistest"
	"github.com/lessor-dev/lessor/internal/site"
)

// Connections that the pool keeps and nobody asks for move, too: else a rotation would wait for them as long as they are idle.
func TestIdleConnectionsMove(t *testing.T) {
	server := redistest.Start(t)
	admin := server.Connect(t)
	for _, name := range []string{"idle_blue", "idle_green"} {
		if err := admin.Do(t.Context(), "ACL", "SETUSER", name, "on", "~*", "&*", "+@all").Err(); err != nil {
			t.Fatal(err)
		}
	}
	s := site.Over(t, map[string]any{
		"plugin_name": "redis-database-plugin", "host": server.Host, "port": server.Port, "username": redistest.Admin, "password": server.Password(),
	})
	secret := s.Secret(s.Managed("idle_blue", "idle_green"))
	db := lessorredis.NewClient(secret, &redis.Options{Addr: server.Addr(), PoolSize: 10, MaxRetries: -1}, lessorredis.WithGrace(time.Second))
	defer func() { _ = db.Close() }()
	var all sync.WaitGroup
	for range 10 { // at a time, so that each takes a connection
		all.Go(func() {
			if err := db.BLPop(t.Context(), time.Second, "nothing").Err(); err != redis.Nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := db.PoolStats().IdleConns; n < 5 {
		t.Fatalf("%d connections are idle", n)
	}
	s.Rotate()
}
