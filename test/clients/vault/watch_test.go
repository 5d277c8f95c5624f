package vault

//go:generate sh -c "sed -e 's#github.com/hashicorp/vault/api#github.com/openbao/openbao/api/v2#; s#^package vault#// Code generated from ../vault by go generate; DO NOT EDIT.\\n\\npackage openbao#; /^..go:generate/d' watch_test.go | gofmt > ../openbao/watch_test.go"

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/lessor-dev/lessor/test/clients/server"
)

func TestMain(m *testing.M) { server.Main(m) }

// world is a server whose mounts give leases of seconds, and the database behind it.
type world struct{ address, db string }

// TestWatchers lets programs built around the client's watcher go on for a while. Between each and lessor a proxy counts. Of each it is
// asked whether it loops, whether it keeps what is old, and what it leaves behind.
func TestWatchers(t *testing.T) {
	os.Unsetenv("VAULT_TOKEN")
	w := world{server.Start(t), server.Postgres(t)}
	root := w.dial(t, server.Root)
	check(t, root.Sys().PutPolicy("loops", `path "*" { capabilities = ["create", "read", "update", "list"] }`))
	check(t, root.Sys().Mount("fast", &api.MountInput{Type: "kv", Options: map[string]string{"version": "2", "lease_duration": "2s"}}))
	check(t, root.Sys().Mount("old", &api.MountInput{Type: "kv", Options: map[string]string{"version": "1", "lease_duration": "2s"}}))
	check(t, root.Sys().Mount("database", &api.MountInput{Type: "database"}))
	check(t, root.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}))
	must[*api.Secret](t)(root.Logical().Write("database/config/pg", map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": "admin", "password": "unused",
		"connection_url": strings.Replace(w.db, "admin@", "{{username}}:{{password}}@", 1),
	}))
	t.Run("at once", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, world){
			"logins": watchLogins, "a periodic token": watchPeriodic, "a token with an explicit end": watchExplicit,
			"a revoked token": watchRevokedToken, "kv version 2": watchKV2, "kv version 1": watchKV1,
			"database credentials": watchDatabase, "a revoked lease": watchRevokedLease,
		} {
			t.Run(name, func(t *testing.T) { t.Parallel(); test(t, w) })
		}
	})
}

func (w world) dial(t *testing.T, token string) *api.Client {
	t.Helper()
	return dial(t, w.address, token)
}

// child is a token of its own for a loop.
func (w world) child(t *testing.T, r *api.TokenCreateRequest) *api.Secret {
	t.Helper()
	r.Policies = []string{"loops"}
	return must[*api.Secret](t)(w.dial(t, server.Root).Auth().Token().Create(r))
}

// role makes a database role whose credentials live so long.
func (w world) role(t *testing.T, name, ttl, most string) {
	t.Helper()
	must[*api.Secret](t)(w.dial(t, server.Root).Logical().Write("database/roles/"+name, map[string]any{
		"db_name": "pg", "default_ttl": ttl, "max_ttl": most,
		"creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`,
	}))
}

// loop does what programs do with a watcher, for as long as loops are watched: get a secret, keep it renewed until the watcher is
// done, get the next one. What is held is used several times a second.
func loop(t *testing.T, c *api.Client, increment int, get func() *api.Secret, use func(*api.Secret)) (gets, renewals int) {
	t.Helper()
	over := time.After(server.Lasting(t))
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		s := get()
		gets++
		watcher := must[*api.LifetimeWatcher](t)(c.NewLifetimeWatcher(&api.LifetimeWatcherInput{Secret: s, Increment: increment}))
		go watcher.Start()
		for done := false; !done; {
			select {
			case <-watcher.RenewCh():
				renewals++
			case <-tick.C:
				use(s)
			case err := <-watcher.DoneCh():
				if err != nil {
					t.Fatalf("after %d renewals the watcher ended: %v", renewals, err)
				}
				done = true
			case <-over:
				watcher.Stop()
				return gets, renewals
			}
		}
	}
}

// within fails the test unless n is so many a minute, give or take one or two.
func within(t *testing.T, what string, n, low, high int) {
	t.Helper()
	if from, to := perLoop(t, low)-1, perLoop(t, high)+2; n < from || n > to {
		t.Errorf("%d %s, want %d to %d", n, what, from, to)
	}
}

// perLoop is how many a minute are in the time that a loop is watched.
func perLoop(t *testing.T, minute int) int {
	return int(time.Duration(minute) * server.Lasting(t) / time.Minute)
}

// watchLogins: a program logs in, renews until its token's maximum, and logs in again.
func watchLogins(t *testing.T, w world) {
	root, proxy := w.dial(t, server.Root).Logical(), server.Count(t, w.address)
	must[*api.Secret](t)(root.Write("auth/approle/role/app", map[string]any{"token_policies": "loops", "token_ttl": "3s", "token_max_ttl": "9s"}))
	id := must[*api.Secret](t)(root.Read("auth/approle/role/app/role-id"))
	secret := must[*api.Secret](t)(root.Write("auth/approle/role/app/secret-id", nil))
	c := dial(t, proxy.URL, "")
	var accessors []string
	gets, renewals := loop(t, c, 3, func() *api.Secret {
		s := must[*api.Secret](t)(c.Logical().Write("auth/approle/login", map[string]any{"role_id": id.Data["role_id"], "secret_id": secret.Data["secret_id"]}))
		c.SetToken(s.Auth.ClientToken)
		accessors = append(accessors, s.Auth.Accessor)
		return s
	}, func(s *api.Secret) {
		if _, err := w.dial(t, s.Auth.ClientToken).Auth().Token().LookupSelf(); err != nil {
			t.Fatalf("the token that is held: %v", err)
		}
	})
	within(t, "logins", gets, 6, 14)
	within(t, "renewals", renewals, 12, 90)
	proxy.Between("PUT auth/approle/login", gets, gets)
	proxy.Between("PUT auth/token/renew-self", renewals, renewals+perLoop(t, 20)+2)
	proxy.Calm(15)
	server.Ended(t, w.address, accessors)
}

func watchPeriodic(t *testing.T, w world) {
	proxy, made := server.Count(t, w.address), w.child(t, &api.TokenCreateRequest{Period: "3s"})
	gets, renewals := loop(t, dial(t, proxy.URL, made.Auth.ClientToken), 0, func() *api.Secret { return made }, func(*api.Secret) {
		if _, err := w.dial(t, made.Auth.ClientToken).Auth().Token().LookupSelf(); err != nil {
			t.Fatalf("the periodic token: %v", err)
		}
	})
	if gets != 1 {
		t.Errorf("the watcher was done %d times", gets-1)
	}
	within(t, "renewals", renewals, 18, 90)
	proxy.Between("PUT auth/token/renew-self", renewals, renewals+2)
	proxy.Calm(15)
	server.Ended(t, w.address, []string{made.Auth.Accessor})
}

// watchExplicit: the watcher of a token is done when no renewal makes it longer.
func watchExplicit(t *testing.T, w world) {
	proxy, made := server.Count(t, w.address), w.child(t, &api.TokenCreateRequest{TTL: "3s", ExplicitMaxTTL: "12s"})
	renewals, done := watch(t, dial(t, proxy.URL, made.Auth.ClientToken), &api.LifetimeWatcherInput{Secret: made, Increment: 3})
	if !done || renewals < 3 || renewals > 20 {
		t.Errorf("%d renewals, done %v", renewals, done)
	}
	proxy.Between("PUT auth/token/renew-self", 3, 20)
	proxy.Calm(15)
	server.Ended(t, w.address, []string{made.Auth.Accessor})
}

// watch runs a watcher until it is done, or should have been.
func watch(t *testing.T, c *api.Client, in *api.LifetimeWatcherInput) (renewals int, done bool) {
	t.Helper()
	watcher := must[*api.LifetimeWatcher](t)(c.NewLifetimeWatcher(in))
	go watcher.Start()
	defer watcher.Stop()
	for timeout := time.After(20 * time.Second); ; {
		select {
		case <-watcher.RenewCh():
			renewals++
		case <-watcher.DoneCh():
			return renewals, true
		case <-timeout:
			return renewals, false
		}
	}
}

// watchRevokedToken: that renewals are denied ends a watcher, in its own time.
func watchRevokedToken(t *testing.T, w world) {
	proxy, made := server.Count(t, w.address), w.child(t, &api.TokenCreateRequest{TTL: "4s"})
	time.AfterFunc(3*time.Second, func() { _ = w.dial(t, server.Root).Auth().Token().RevokeAccessor(made.Auth.Accessor) })
	if _, done := watch(t, dial(t, proxy.URL, made.Auth.ClientToken), &api.LifetimeWatcherInput{Secret: made, Increment: 4}); !done {
		t.Error("the watcher of a revoked token goes on")
	}
	proxy.Between("PUT auth/token/renew-self", 1, 30)
	proxy.Calm(15)
}

// watchRevokedLease is the same of a lease, and of what it was for.
func watchRevokedLease(t *testing.T, w world) {
	proxy := server.Count(t, w.address)
	w.role(t, "revoked", "4s", "1h")
	c := dial(t, proxy.URL, server.Root)
	s := must[*api.Secret](t)(c.Logical().Read("database/creds/revoked"))
	time.AfterFunc(3*time.Second, func() { _ = w.dial(t, server.Root).Sys().Revoke(s.LeaseID) })
	if _, done := watch(t, c, &api.LifetimeWatcherInput{Secret: s, Increment: 4}); !done {
		t.Error("the watcher of a revoked lease goes on")
	}
	proxy.Between("PUT sys/leases/renew", 1, 30)
	proxy.Calm(15)
	server.Gone(t, w.address, w.db, "database/creds/revoked", map[string]bool{s.Data["username"].(string): true})
}

func watchKV2(t *testing.T, w world) {
	watchStatic(t, w, "fast/data/watched", func(n int) map[string]any { return map[string]any{"data": map[string]any{"n": n}} },
		func(s *api.Secret) any { return s.Data["data"].(map[string]any)["n"] })
}

func watchKV1(t *testing.T, w world) {
	watchStatic(t, w, "old/watched", func(n int) map[string]any { return map[string]any{"n": n} },
		func(s *api.Secret) any { return s.Data["n"] })
}

// watchStatic: the lease of a static secret is not renewable, so a watcher only waits until it is time to read again. Meanwhile there is a
// new version every five seconds.
func watchStatic(t *testing.T, w world, path string, value func(int) map[string]any, of func(*api.Secret) any) {
	root, proxy := w.dial(t, server.Root).Logical(), server.Count(t, w.address)
	version, written := 0, time.Time{}
	write := func() {
		version++
		must[*api.Secret](t)(root.Write(path, value(version)))
		written = time.Now()
	}
	held := func(s *api.Secret) int {
		return int(must[int64](t)(of(s).(interface{ Int64() (int64, error) }).Int64()))
	}
	write()
	c := dial(t, proxy.URL, w.child(t, &api.TokenCreateRequest{TTL: "1h"}).Auth.ClientToken)
	gets, _ := loop(t, c, 0, func() *api.Secret {
		s := must[*api.Secret](t)(c.Logical().Read(path))
		if held(s) != version {
			t.Errorf("a read of version %d shows %d", version, held(s))
		}
		return s
	}, func(s *api.Secret) {
		if n := held(s); n != version && time.Since(written) > 4*time.Second {
			t.Errorf("%v after version %d was written the loop holds %d", time.Since(written), version, n)
		}
		if time.Since(written) > 5*time.Second {
			write()
		}
	})
	if version < 3 {
		t.Errorf("%d versions only", version)
	}
	within(t, "reads", gets, 24, 60)
	proxy.Between("GET "+path, gets, gets)
	proxy.Between("PUT sys/leases/renew", 0, 0)
	proxy.Calm(15)
	if l := server.Leases(t, w.address, path); len(l) == 0 || len(l) > version {
		t.Errorf("%d leases for %d versions and one reader: %v", len(l), version, l)
	}
}

// watchDatabase: what the loop holds opens the database at every moment, and is gone when the loop is over.
func watchDatabase(t *testing.T, w world) {
	proxy := server.Count(t, w.address)
	w.role(t, "watched", "3s", "9s")
	c, users := dial(t, proxy.URL, w.child(t, &api.TokenCreateRequest{TTL: "1h"}).Auth.ClientToken), map[string]bool{}
	gets, renewals := loop(t, c, 3, func() *api.Secret {
		s := must[*api.Secret](t)(c.Logical().Read("database/creds/watched"))
		users[s.Data["username"].(string)] = true
		return s
	}, func(s *api.Secret) {
		if err := server.Login(t.Context(), w.db, s.Data["username"].(string), s.Data["password"].(string)); err != nil {
			t.Fatalf("the credentials that are held do not open the database: %v", err)
		}
		if l := server.Leases(t, w.address, "database/creds/watched"); len(l) > 3 {
			t.Errorf("one loop has %d leases at once: %v", len(l), l)
		}
	})
	if len(users) != gets {
		t.Errorf("%d accounts for %d credentials", len(users), gets)
	}
	within(t, "credentials", gets, 6, 14)
	within(t, "renewals", renewals, 12, 90)
	proxy.Between("GET database/creds/watched", gets, gets)
	proxy.Between("PUT sys/leases/renew", renewals, renewals+perLoop(t, 20)+2)
	proxy.Calm(15)
	server.Gone(t, w.address, w.db, "database/creds/watched", users)
}
