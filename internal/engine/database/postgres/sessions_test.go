package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// Sessions of accounts are seen while they are open, by an account of few rights too, which is told less of them; and end when they are told to.
func TestSessionsOfAccounts(t *testing.T) {
	s := pgtest.Start(t)
	root := newBench(t, s)
	user, other, weak := fmt.Sprintf("user_%d", serial.Add(1)), fmt.Sprintf("user_%d", serial.Add(1)), fmt.Sprintf("lessor_%d", serial.Add(1))
	for _, name := range []string{user, other, weak} {
		root.exec(fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'word'", name))
		t.Cleanup(func() { _, _ = root.root.Exec(context.Background(), "DROP ROLE "+name) })
	}
	few := newBench(t, s, func(c *database.Connection, s *database.Secrets) {
		c.Username, s.Password = weak, lessor.NewSecret("word")
	})
	open := func(name, application string) *pgx.Conn {
		t.Helper()
		c, err := s.Login(t.Context(), name, "word", root.name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(context.Background()) })
		if _, err := c.Exec(t.Context(), "SET application_name = '"+application+"'"); err != nil {
			t.Fatal(err)
		}
		return c
	}
	look := func(d database.Database, names ...string) []database.Session {
		t.Helper()
		all, err := d.Sessions(t.Context(), names)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if all := append(look(root.Database, user, other), look(root.Database)...); len(all) > 0 {
		t.Errorf("sessions that nobody has: %+v", all)
	}
	before := time.Now().Add(-time.Minute)
	first := open(user, strings.Repeat("long ", 12))
	open(other, "other")
	all := look(root.Database, user, "nobody")
	if len(all) != 1 || all[0].Username != user || all[0].Client == "" || all[0].Since.Before(before) || len(all[0].Application) > database.LongestApplication {
		t.Errorf("sessions %+v", all)
	}
	if all := look(few.Database, user, other); len(all) != 2 || all[0].Client != "" || !all[0].Since.IsZero() || all[0].Application == "" {
		t.Errorf("whoever has few rights sees %+v", all)
	}
	if all := look(root.Database, user, other); len(all) != 2 || all[1].Application != "other" {
		t.Errorf("sessions %+v", all)
	}
	if _, err := root.Sessions(t.Context(), []string{`x'; DROP ROLE y --`}); err == nil {
		t.Error("a name that ends a literal is looked for")
	}

	if err := few.End(t.Context(), user); err == nil || !strings.Contains(err.Error(), "pg_signal_backend") {
		t.Errorf("whoever has few rights ends sessions: %v", err)
	}
	root.exec("GRANT pg_signal_backend TO " + weak)
	if err := few.End(t.Context(), pgtest.Superuser); err == nil || !strings.Contains(err.Error(), "only a superuser") {
		t.Errorf("whoever has few rights ends a superuser's sessions: %v", err)
	}
	if err := few.End(t.Context(), other); err != nil {
		t.Errorf("whoever may end sessions: %v", err)
	}
	open(other, "other")
	for range 2 {
		if err := root.End(t.Context(), user); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.End(t.Context(), "nobody"); err != nil {
		t.Errorf("sessions of nobody: %v", err)
	}
	if all := look(root.Database, user, other); len(all) != 1 || all[0].Username != other {
		t.Errorf("left are %+v", all)
	}
	if err := first.Ping(t.Context()); err == nil {
		t.Error("the session lives")
	}
}
