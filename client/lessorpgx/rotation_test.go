package lessorpgx_test

import (
	"context"
	"testing"

	"github.com/lessor-dev/lessor/internal/site"
)

// A pool under load goes through one rotation after the other, without a query that fails: each old password is retired, and no sooner than the pool has
// moved.
func TestPoolMovesThroughRotations(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	secret := s.Secret(s.Static("blue", "green"))
	pool := newPool(s, secret, 20)
	query := func(ctx context.Context) error {
		var user string
		return pool.QueryRow(ctx, "SELECT current_user FROM pg_sleep(0.002)").Scan(&user)
	}
	stop := s.Load(20, query)
	for range 2 {
		v := secret.Value()
		user, _ := v.Field("username")
		password, _ := v.Field("password")
		s.Rotate()
		if secret.Value().Serial == v.Serial {
			t.Error("the rotation was over before the pool heard of it")
		}
		if c, err := s.PG.Login(t.Context(), user, password, s.Database); err == nil {
			_ = c.Close(t.Context())
			t.Errorf("the old password of %s logs in after it was retired", user)
		}
	}
	if calls := stop(); calls < 100 {
		t.Errorf("%d queries", calls)
	}
}

// A connection that stays in use keeps the old password alive.
func TestPoolHoldsUpARotation(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	secret := s.Secret(s.Static("blue", "green"))
	pool := newPool(s, secret, 2)
	c, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	v := secret.Value()
	s.Write("database/rotate-role/app", nil)
	s.Eventually("the secret has changed", func() bool { return secret.Value().Serial != v.Serial })
	if err := pool.Ping(t.Context()); err != nil {
		t.Errorf("with the new password: %v", err)
	}
	if step := s.Step(); step != "wait" || secret.Settled() {
		t.Errorf("while a connection has the old password: %v", step)
	}
	if _, err := c.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Errorf("the connection in use: %v", err)
	}
	c.Release()
	s.Eventually("the rotation is over", func() bool { return s.Step() == "idle" })
}

// A program that has ended, and said so, holds up no rotation.
func TestNobodyWaitsForWhoHasEnded(t *testing.T) {
	t.Parallel()
	s := site.New(t)
	secret := s.Secret(s.Static("blue", "green"))
	if err := secret.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Rotate()
}
