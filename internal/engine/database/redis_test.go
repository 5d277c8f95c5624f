package database_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database/redis"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/redistest"

	"github.com/lessor-dev/lessor/internal/engine/database"
)

// redisWorld is a world with the connection "r" to a Redis, by an account of its own that may be rotated, and the administrator's client.
type redisWorld struct {
	*world
	server *redistest.Server
	root   *goredis.Client
	own    string
}

func newRedisWorld(t *testing.T) *redisWorld {
	s := redistest.Start(t, redistest.ACLFile())
	w := &redisWorld{newWorldWithout(t, redis.Driver{}), s, s.Connect(t), fmt.Sprintf("lessor_%d", time.Now().UnixNano())}
	w.redis("ACL", "SETUSER", w.own, "on", ">first", "~*", "&*", "+@all")
	a := w.do(lessor.Update, "db/config/r", fmt.Sprintf(`{"plugin_name":"redis-database-plugin","host":%q,"port":%d,"username":%q,"password":"first","allowed_roles":"*"}`, s.Host, s.Port, w.own))
	if len(a.Warnings) > 0 {
		t.Errorf("warnings %q", a.Warnings)
	}
	return w
}

func (w *redisWorld) redis(args ...any) any {
	w.Helper()
	v, err := w.root.Do(w.Context(), args...).Result()
	if err != nil && !errors.Is(err, goredis.Nil) {
		w.Fatalf("%v: %v", args, err)
	}
	return v
}

func (w *redisWorld) logsIn(username, password string) bool {
	w.Helper()
	c := w.server.Client(username, password)
	defer c.Close()
	err := c.Ping(w.Context()).Err()
	if err != nil && !strings.HasPrefix(err.Error(), "WRONGPASS") && !strings.HasPrefix(err.Error(), "NOPERM") {
		w.Fatal(err)
	}
	return err == nil || strings.HasPrefix(err.Error(), "NOPERM")
}

func TestRedisConformance(t *testing.T) {
	enginetest.Conform(t, database.New(redis.Driver{}), nil)
}

func TestRedisConfiguration(t *testing.T) {
	b := enginetest.New(t, database.New(redis.Driver{}), nil)
	b.System = passwords{}
	type step = enginetest.Step
	b.Run(
		step{Name: "write", Verb: lessor.Update, Path: "config/r", Body: `{"plugin_name":"redis-database-plugin","host":"redis.example.com","port":"6380","tls":true,"username":"lessor","password":"hush","allowed_roles":"*","persistence_mode":"aclfile","verify_connection":false}`},
		step{Name: "read", Verb: lessor.Read, Path: "config/r", Want: `{"plugin_name":"redis-database-plugin","plugin_version":"","connection_details":{"host":"redis.example.com","port":6380,"tls":true,"insecure_tls":false,"username":"lessor","persistence_mode":"ACLFILE"},"allowed_roles":["*"],` +
			`"root_credentials_rotate_statements":[],"password_policy":"","verify_connection":false,"rotation_schedule":"","rotation_window":0,"rotation_period":0,"disable_automated_rotation":false,"skip_static_role_import_rotation":false}`},
		step{Name: "insecure", Verb: lessor.Update, Path: "config/r", Body: `{"insecure_tls":true}`, Warn: "insecure_tls takes any certificate: who stands between lessor and the database gets lessor's password; say ca_cert instead"},
		step{Name: "plain", Verb: lessor.Update, Path: "config/r", Body: `{"insecure_tls":false,"tls":false}`, Warn: "without TLS, who stands between lessor and the database reads lessor's password; say tls=true"},
		step{Name: "a URL", Verb: lessor.Update, Path: "config/r", Body: `{"connection_url":"redis://x"}`, Kind: api.Invalid, Err: "connection_url is not for Redis: say host and port, and tls=true for TLS"},
		step{Name: "without statements", Verb: lessor.Update, Path: "roles/app", Body: `{"db_name":"r"}`},
		step{Name: "rules as Vault has them", Verb: lessor.Update, Path: "roles/app", Body: `{"db_name":"r","creation_statements":"[\"~app:*\", \"+@write\"]"}`},
		step{Name: "as Terraform sends them", Verb: lessor.Update, Path: "roles/tf", Body: `{"db_name":"r","creation_statements":["[\"~app:*\", \"+@write\"]"]}`},
		step{Name: "a password", Verb: lessor.Update, Path: "roles/app", Body: `{"creation_statements":["~*",">word"]}`, Kind: api.Invalid,
			Err: "creation_statements: rules about passwords, and off, are lessor's to set: leave them out"},
		step{Name: "revocation", Verb: lessor.Update, Path: "roles/app", Body: `{"revocation_statements":"x"}`, Kind: api.Invalid,
			Err: "only creation_statements are for Redis, as a list of ACL rules: an account is removed as a whole, and has no end of its own to move"},
	)
	b.NoTrace("hush")
}

func TestRedisCredentials(t *testing.T) {
	w := newRedisWorld(t)
	w.do(lessor.Update, "db/roles/app", `{"db_name":"r","creation_statements":"[\"~{{name}}:*\",\"+get\",\"+set\"]","default_ttl":"1h"}`)
	a := w.do(lessor.Read, "db/creds/app", "")
	name, password := a.Data["username"].(string), a.Data["password"].(lessor.Secret).Reveal()
	if !strings.HasPrefix(name, "V_") || !strings.Contains(name, "_APP_") {
		t.Errorf("username %q", name)
	}
	c := w.server.Client(name, password)
	defer c.Close()
	if err := c.Set(t.Context(), name+":x", 1, 0).Err(); err != nil {
		t.Error(err)
	}
	if err := c.Set(t.Context(), "other", 1, 0).Err(); err == nil {
		t.Error("the account writes where its role does not let it")
	}
	w.do(lessor.Update, "sys/leases/renew", fmt.Sprintf(`{"lease_id":%q}`, a.Lease.ID))
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, a.Lease.ID))
	w.until("the account of a revoked lease is gone", func() bool { return w.redis("ACL", "GETUSER", name) == nil })
	if err := c.Get(t.Context(), name+":x").Err(); err == nil || errors.Is(err, goredis.Nil) {
		t.Error("a session outlived its lease")
	}
	end := w.do(lessor.Read, "db/creds/app", "").Data["username"].(string)
	w.clock.advance(2 * time.Hour)
	w.until("the account of a lease that is over is gone", func() bool { return w.redis("ACL", "GETUSER", end) == nil })
}

func TestRedisRotation(t *testing.T) {
	w := newRedisWorld(t)
	user := fmt.Sprintf("static_%d", time.Now().UnixNano())
	w.redis("ACL", "SETUSER", user, "on", ">before", "+get", "~*")
	w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"r","username":%q,"rotation_period":"1h"}`, user))
	first := w.password("app")
	if w.logsIn(user, "before") || !w.logsIn(user, first) {
		t.Error("the password that was imported is not the account's")
	}
	w.do(lessor.Update, "db/rotate-role/app", "")
	second := w.password("app")
	if second == first || w.logsIn(user, first) || !w.logsIn(user, second) {
		t.Error("after rotate-role")
	}
	w.do(lessor.Update, "db/rotate-root/r", "")
	if w.logsIn(w.own, "first") {
		t.Error("lessor's own password is what it was")
	}
	w.do(lessor.Update, "db/rotate-role/app", "")
	w.crash()
	w.do(lessor.Update, "db/rotate-role/app", "")
	if third := w.password("app"); !w.logsIn(user, third) {
		t.Error("after a crash")
	}
	// Somebody else changes it: it is set again when it is tried.
	w.redis("ACL", "SETUSER", user, "resetpass", ">elsewhere")
	w.clock.advance(3 * time.Minute)
	w.until("the password is set again", func() bool { return w.logsIn(user, w.password("app")) })
	w.refused(api.Invalid, lessor.Update, "db/static-roles/own", fmt.Sprintf(`{"db_name":"r","username":%q,"rotation_period":"1h"}`, w.own), "lessor itself uses")
	w.refused(api.Upstream, lessor.Update, "db/static-roles/none", `{"db_name":"r","username":"nobody-here","rotation_period":"1h"}`, "there is no account")
}

// An account that the store forgot is found by its mark, by the mount that made it, and removed.
func TestRedisStrays(t *testing.T) {
	s := redistest.Start(t, redistest.ACLFile())
	e := database.New(redis.Driver{})
	b := enginetest.New(t, e, nil)
	b.System = passwords{}
	t.Cleanup(func() { e.Close(b.Mount.UUID) })
	b.Do(lessor.Update, "config/pg", fmt.Sprintf(`{"plugin_name":"redis-database-plugin","host":%q,"port":%d,"username":%q,"password":%q,"allowed_roles":"*","verify_connection":false}`,
		s.Host, s.Port, redistest.Admin, s.Password()))
	b.Do(lessor.Update, "roles/app", `{"db_name":"pg"}`)
	l, answer, pw := plan(t, b)
	if err := e.Apply(t.Context(), access(t, b), l, pw); err != nil {
		t.Fatal(err)
	}
	found, err := e.Find(t.Context(), access(t, b), "pg")
	if err != nil || len(found) != 1 || found[0].Mark != e.Mark(l.ID) || found[0].Target != "pg" {
		t.Fatalf("found %+v, %v", found, err)
	}
	stray := *l
	stray.ID, stray.Intent = b.Mount.Path+"strays/x", found[0].Intent
	errs := e.Revert(t.Context(), access(t, b), []*lease.Lease{&stray})
	if errs[0] != nil {
		t.Fatal(errs)
	}
	root := s.Connect(t)
	if err := root.Do(t.Context(), "ACL", "GETUSER", answer["username"]).Err(); !errors.Is(err, goredis.Nil) {
		t.Errorf("the stray is still there: %v", err)
	}
	b.NoTrace(pw.Reveal(), s.Password())
}
