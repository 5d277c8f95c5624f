package client_test

import (
	"testing"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/lessortest"
)

// A successor of the same instance ends the credentials of who was killed before it, under whatever number he had asked for them, and no others.
func TestSupersede(t *testing.T) {
	t.Parallel()
	server, pg := lessortest.Start(t), pgtest.Start(t)
	server.Write("sys/mounts/database", map[string]any{"type": "database"})
	server.Write("database/config/db", map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": pg.URL("{{username}}", "{{password}}", pg.Database(t)),
		"username": pgtest.Superuser, "password": pg.Password(), "allowed_roles": "*",
	})
	const creds = "database/creds/app"
	server.Write("database/roles/app", map[string]any{
		"db_name": "db", "default_ttl": "1h", "creation_statements": []string{`CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`},
	})
	server.Policy("app", `path "`+creds+`" { capabilities = ["read"] }`)
	lives := func(s *client.Secret) bool {
		_, err := server.Client().Write(t.Context(), "sys/leases/lookup", map[string]any{"lease_id": s.Value().Lease})
		return err == nil
	}
	c := server.As("app").WithInstance("app-1")
	two := func(c *client.Client) (*client.Session, []*client.Secret) {
		s := open(t, c, nil)
		return s, []*client.Secret{secret(t, s, creds), secret(t, s, creds)}
	}
	killed, before := two(c)
	killed.Leave() // as one who was killed, it gives nothing back
	_, others := two(c.WithInstance("app-2"))
	next, now := two(c)
	if err := next.Supersede(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range before {
		eventually(t, "what was killed has nothing left", func() bool { return !lives(s) })
	}
	for _, s := range append(others, now...) {
		if !lives(s) {
			t.Errorf("%s has ended", s.Value().Lease)
		}
	}
	if err := open(t, server.As("app"), nil).Supersede(t.Context()); err == nil {
		t.Error("who made its instance up takes somebody's place")
	}
}
