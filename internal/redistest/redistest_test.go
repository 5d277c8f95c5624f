package redistest

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/servertest"
)

func TestServerLives(t *testing.T) {
	for name, opts := range map[string][]Option{"plain": {ACLFile()}, "tls": {TLS()}} {
		t.Run(name, func(t *testing.T) {
			s := Own(t, opts...)
			ask := func(patience time.Duration) error {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				c := s.Client(Admin, s.Password())
				defer c.Close()
				return c.Do(ctx, "ACL", "SETUSER", "somebody").Err()
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(ask(time.Minute))
			must(s.Pause())
			conn, err := net.Dial("tcp", s.Addr())
			must(err)
			conn.Close()
			if ask(300*time.Millisecond) == nil {
				t.Error("a paused server answered")
			}
			must(s.Resume())
			must(ask(time.Minute))
			must(s.Kill())
			if ask(time.Second) == nil {
				t.Error("a killed server answered")
			}
			must(s.Up())
			must(ask(time.Minute))
			s.Discard()
			if _, err := os.Stat(s.Dir); err == nil {
				t.Error("the folder was left behind")
			}
			if ask(time.Second) == nil {
				t.Error("the server outlived its test")
			}
		})
	}
}

// A test process that is killed leaves neither a server nor a folder.
func TestServerEndsWithItsProcess(t *testing.T) {
	servertest.EndsWithItsProcess(t, func(t testing.TB) *servertest.Daemon { return Start(t).Daemon })
}
