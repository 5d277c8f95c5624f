package mariatest

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/servertest"
)

func TestServerLives(t *testing.T) {
	s := Own(t, TLS(), Setting("sort_buffer_size", "3M"))
	within := func(patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := s.Login(ctx, Superuser, s.Password(), "")
		if err != nil {
			return err
		}
		defer c.Close()
		var size, who string
		if err := c.QueryRowContext(ctx, "SELECT @@sort_buffer_size, CURRENT_USER()").Scan(&size, &who); err != nil {
			return err
		}
		if size != "3145728" || who != Superuser+"@%" {
			t.Errorf("sort_buffer_size %s, user %s", size, who)
		}
		return nil
	}
	ask := func() error { return within(30 * time.Second) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(ask())
	must(s.Pause())
	if within(time.Second) == nil {
		t.Error("a paused server answered")
	}
	must(s.Resume())
	must(ask())
	c, err := s.Login(t.Context(), Superuser, s.Password(), "")
	must(err)
	_, err = c.ExecContext(t.Context(), "CREATE USER somebody")
	must(err)
	c.Close()
	must(s.Kill())
	if ask() == nil {
		t.Error("a killed server answered")
	}
	must(s.Up())
	must(ask())
	c, err = s.Login(t.Context(), Superuser, s.Password(), "")
	must(err)
	if _, err := c.ExecContext(t.Context(), "DROP USER somebody"); err != nil {
		t.Errorf("a killed server lost what it had committed: %v", err)
	}
	c.Close()
	must(s.Down())
	if ask() == nil {
		t.Error("a stopped server answered")
	}
	must(s.Up())
	for _, nobody := range []string{"", "root"} {
		if c, err := s.Login(t.Context(), nobody, "", ""); err == nil {
			c.Close()
			t.Errorf("%q logs in without a password", nobody)
		}
	}
	s.Discard()
	if _, err := os.Stat(s.Dir); err == nil {
		t.Error("the folder was left behind")
	}
	if ask() == nil {
		t.Error("the server outlived its test")
	}
}

// A test process that panics, or is killed, leaves neither a server nor a folder.
func TestServerEndsWithItsProcess(t *testing.T) {
	servertest.EndsWithItsProcess(t, func(t testing.TB) *servertest.Daemon { return Start(t).Daemon })
}
