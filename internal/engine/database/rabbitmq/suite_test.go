package rabbitmq

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/drivertest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rabbittest"
)

// client is a connection in the virtual host "/".
type client struct{ *rabbittest.Connection }

func (c client) Works() bool { return !c.Ended(50 * time.Millisecond) }

func (c client) Close() { _ = c.Connection.Close() }

func TestDriver(t *testing.T) {
	s := rabbittest.Start(t)
	put := func(path string, body any) error {
		status, answer, err := s.Call(rabbittest.Admin, s.Password(), http.MethodPut, path, body)
		if err == nil && status/100 != 2 {
			err = fmt.Errorf("%s: %d %s", path, status, answer)
		}
		return err
	}
	at, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	drivertest.Run(t, &drivertest.Target{
		Driver:     Driver{},
		Connection: database.Connection{URL: s.URL, Username: rabbittest.Admin},
		Secrets:    database.Secrets{Password: lessor.NewSecret(s.Password())},
		Address:    at.Host,
		Through:    func(c *database.Connection, address string) { c.URL = "http://" + address },
		Creation:   []string{`{"vhosts":{"/":{"configure":"","write":"","read":".*"}}}`},
		Broken: map[string]string{
			`{"vhosts":{"nowhere":{}}}`:                     `virtual host "nowhere"`,
			`{"vhosts":{"/":{"write":"(x"}}}`:               `regular expressions`,
			`{"vhost_topics":{"nowhere":{"amq.topic":{}}}}`: `virtual host "nowhere"`,
		},
		Has: func(t testing.TB, username string) bool {
			t.Helper()
			return s.Do(t, http.MethodGet, rabbittest.User(username), nil) != nil
		},
		Person: func(username, password string) error {
			return errors.Join(put(rabbittest.User(username), map[string]string{"password": password, "tags": ""}),
				put("permissions/%2F/"+url.PathEscape(username), map[string]string{"configure": "", "write": "", "read": ".*"}))
		},
		Drop: func(username string) {
			_, _, _ = s.Call(rabbittest.Admin, s.Password(), http.MethodDelete, rabbittest.User(username), nil)
		},
		Session: func(username, password string) (drivertest.Client, error) {
			c, err := s.Dial(username, password, "/")
			if errors.Is(err, rabbittest.ErrRefused) {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			return client{c}, nil
		},
	})
}
