package lessorredis_test

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/client/lessorredis"
	"github.com/lessor-dev/lessor/internal/redistest"
	"github.com/lessor-dev/lessor/internal/site"
)

// managed is a Redis with two accounts that take turns, the lessor that rotates them, and their password.
func managed(t *testing.T, blue, green string) (*redistest.Server, *site.Site, *client.Secret) {
	t.Helper()
	server := redistest.Start(t)
	admin := server.Connect(t)
	for _, name := range []string{blue, green} {
		if err := admin.Do(t.Context(), "ACL", "SETUSER", name, "on", "~*", "&*", "+@all").Err(); err != nil {
			t.Fatal(err)
		}
	}
	s := site.Over(t, map[string]any{
		"plugin_name": "redis-database-plugin", "host": server.Host, "port": server.Port, "username": redistest.Admin, "password": server.Password(),
	})
	return server, s, s.Secret(s.Managed(blue, green))
}

// A client under load goes through rotations of two accounts without a command that fails.
func TestClientMovesThroughRotations(t *testing.T) {
	server, s, secret := managed(t, "blue", "green")
	provider := lessorredis.New(secret, lessorredis.WithGrace(time.Second))
	defer func() { _ = provider.Close() }()
	db := redis.NewClient(&redis.Options{Addr: server.Addr(), StreamingCredentialsProvider: provider, PoolSize: 10, MaxRetries: -1})
	defer func() { _ = db.Close() }()
	stop := s.Load(10, func(ctx context.Context) error { return db.Incr(ctx, "count").Err() })
	for range 2 {
		v := secret.Value()
		s.Rotate()
		if secret.Value().Serial == v.Serial {
			t.Error("the rotation was over before the client heard of it")
		}
	}
	if calls := stop(); calls < 100 {
		t.Errorf("%d commands", calls)
	}
	user, err := db.Do(t.Context(), "ACL", "WHOAMI").Text()
	if now, _ := secret.Value().Field("username"); err != nil || user != now {
		t.Errorf("logged in as %s, not %s: %v", user, now, err)
	}
}
