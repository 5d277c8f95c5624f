package lessorredis_test

import (
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/client/lessorredis"
)

// Connections that the pool keeps and nobody asks for move, too: else a rotation would wait for them as long as they are idle.
func TestIdleConnectionsMove(t *testing.T) {
	server, s, secret := managed(t, "idle_blue", "idle_green")
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
