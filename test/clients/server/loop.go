package server

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Main runs the tests of a package whose loops wait much and work little: many at once, however few processors there are.
func Main(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// Lasting is how long a loop of a client is watched: LESSOR_LOOPS, or 20 s, which are some ten leases.
func Lasting(t testing.TB) time.Duration {
	t.Helper()
	said := os.Getenv("LESSOR_LOOPS")
	if said == "" {
		return 20 * time.Second
	}
	d, err := time.ParseDuration(said)
	if err != nil {
		t.Fatalf("LESSOR_LOOPS: %v", err)
	}
	return d
}

// Counter is a reverse proxy that counts what a client asks for, by method and path.
type Counter struct {
	URL     string
	t       testing.TB
	mu      sync.Mutex
	seen    map[string]int
	seconds map[int64]int
	fails   map[int]int // by status, 400 and above
}

// Count puts a Counter before the server at the address, until the test ends.
func Count(t testing.TB, address string) *Counter {
	t.Helper()
	target, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	c := &Counter{t: t, seen: map[string]int{}, seconds: map[int64]int{}, fails: map[int]int{}}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(r *http.Response) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.seen[r.Request.Method+" "+strings.TrimPrefix(r.Request.URL.Path, "/v1/")]++
		c.seconds[time.Now().Unix()]++
		if r.StatusCode >= 400 {
			c.fails[r.StatusCode]++
		}
		return nil
	}
	s := httptest.NewServer(proxy)
	t.Cleanup(s.Close)
	c.URL = s.URL
	return c
}

// Between fails the test unless there were at least low and at most high requests whose method and path begin so.
func (c *Counter) Between(prefix string, low, high int) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for what, times := range c.seen {
		if strings.HasPrefix(what, prefix) {
			n += times
		}
	}
	if n < low || n > high {
		c.t.Errorf("%d requests %q, want %d to %d; all: %v, failures: %v", n, prefix, low, high, c.seen, c.fails)
	}
}

// Calm fails the test if some second saw more requests than most: nobody loops, not even for a moment.
func (c *Counter) Calm(most int) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.seconds {
		if n > most {
			c.t.Errorf("%d requests in one second, want %d at most; all: %v, failures: %v", n, most, c.seen, c.fails)
		}
	}
}

// Keys lists what is under a path, as the root token may; nothing if nothing is there.
func Keys(t testing.TB, address, path string) []string {
	t.Helper()
	req, err := http.NewRequest("LIST", address+"/v1/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", Root)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct{ Data struct{ Keys []string } }
	switch err := json.NewDecoder(resp.Body).Decode(&answer); {
	case err != nil:
		t.Fatal(err)
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotFound:
		t.Fatalf("LIST %s: %s", path, resp.Status)
	}
	return answer.Data.Keys
}

// Leases are the ids of the leases under a prefix, without it.
func Leases(t testing.TB, address, prefix string) []string {
	t.Helper()
	return Keys(t, address, "sys/leases/lookup/"+prefix)
}

// Login opens the database as a user, and closes it again.
func Login(ctx context.Context, db, user, password string) error {
	cfg, err := pgx.ParseConfig(db)
	if err != nil {
		return err
	}
	cfg.User, cfg.Password = user, password
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// Gone fails the test unless the leases under a prefix, and the accounts of the database, are soon gone.
func Gone(t testing.TB, address, db, prefix string, users map[string]bool) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), db)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var names []string
	for u := range users {
		names = append(names, u)
	}
	soon(t, func() string {
		var left int
		if err := conn.QueryRow(context.Background(), "SELECT count(*) FROM pg_roles WHERE rolname = ANY($1)", names).Scan(&left); err != nil {
			t.Fatal(err)
		}
		if ids := Leases(t, address, prefix); left > 0 || len(ids) > 0 {
			return fmt.Sprintf("%d accounts and the leases %v are left", left, ids)
		}
		return ""
	})
}

// Ended fails the test unless none of the tokens lives any more soon.
func Ended(t testing.TB, address string, accessors []string) {
	t.Helper()
	soon(t, func() string {
		living := Keys(t, address, "auth/token/accessors")
		left := slices.DeleteFunc(slices.Clone(accessors), func(a string) bool { return !slices.Contains(living, a) })
		if len(left) > 0 {
			return fmt.Sprintf("%d of %d tokens are left", len(left), len(accessors))
		}
		return ""
	})
}

// soon waits until there is nothing wrong any more, and fails the test after a while.
func soon(t testing.TB, wrong func() string) {
	t.Helper()
	text := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if text = wrong(); text == "" {
			return
		}
	}
	t.Error(text)
}
