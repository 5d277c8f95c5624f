package redis

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/drivertest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/redistest"
)

// client is a session that has this id at the server: the library opens another where it ends.
type client struct {
	*redis.Client
	id int64
}

func (c client) Works() bool {
	id, err := c.ClientID(context.Background()).Result()
	return err == nil && id == c.id
}

func (c client) Close() { _ = c.Client.Close() }

func TestDriver(t *testing.T) {
	s := redistest.Start(t)
	root := s.Connect(t)
	drivertest.Run(t, &drivertest.Target{
		Driver:     Driver{},
		Connection: database.Connection{Host: s.Host, Port: int64(s.Port), Username: redistest.Admin},
		Secrets:    database.Secrets{Password: lessor.NewSecret(s.Password())},
		Address:    s.Addr(),
		Through: func(c *database.Connection, address string) {
			host, port, _ := net.SplitHostPort(address)
			c.Host = host
			c.Port, _ = strconv.ParseInt(port, 10, 64)
		},
		Creation: []string{"~* +@read +client|id"},
		Broken:   map[string]string{"+@nonsense": "+@nonsense", `["~*","+get","%R~after"]`: "%R~after"},
		Has: func(t testing.TB, username string) bool {
			t.Helper()
			err := root.Do(t.Context(), "ACL", "GETUSER", username).Err()
			if err != nil && !errors.Is(err, redis.Nil) {
				t.Fatal(err)
			}
			return err == nil
		},
		Person: func(username, password string) error {
			return root.Do(t.Context(), "ACL", "SETUSER", username, "on", ">"+password, "+client|id").Err()
		},
		Onlooker: func(username, password string) error {
			return root.Do(t.Context(), "ACL", "SETUSER", username, "on", ">"+password, "+@all", "-acl|setuser").Err()
		},
		Drop: func(username string) { root.Do(t.Context(), "ACL", "DELUSER", username) },
		Session: func(username, password string) (drivertest.Client, error) {
			c := s.Client(username, password)
			id, err := c.ClientID(t.Context()).Result()
			if err == nil {
				return client{c, id}, nil
			}
			c.Close()
			if strings.HasPrefix(err.Error(), "WRONGPASS") {
				return nil, nil
			}
			return nil, err
		},
	})
}
