package database_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database/postgres"
	"github.com/lessor-dev/lessor/internal/engine/database/rabbitmq"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rabbittest"
)

// brokerWorld is a world with the engine at "mq/", connected to a RabbitMQ by an account of its own that may be rotated.
type brokerWorld struct {
	*world
	server *rabbittest.Server
	own    string
}

func newBrokerWorld(t *testing.T) *brokerWorld {
	s := rabbittest.Start(t)
	w := &brokerWorld{newWorldWithout(t, postgres.Driver{}), s, fmt.Sprintf("lessor_%d", time.Now().UnixNano())}
	s.Do(t, http.MethodPut, rabbittest.User(w.own), map[string]string{"password": "first", "tags": "administrator"})
	t.Cleanup(func() { s.Do(t, http.MethodDelete, rabbittest.User(w.own), nil) })
	w.do(lessor.Update, "sys/mounts/mq", `{"type":"rabbitmq"}`)
	if a := w.do(lessor.Update, "mq/config/connection", fmt.Sprintf(`{"connection_uri":%q,"username":%q,"password":"first"}`, s.URL, w.own)); len(a.Warnings) > 0 {
		t.Errorf("warnings %q", a.Warnings)
	}
	return w
}

// human makes an account that may connect, as an administrator does, whose password is "first".
func (w *brokerWorld) human(name string) {
	w.Helper()
	w.server.Do(w, http.MethodPut, rabbittest.User(name), map[string]string{"password": "first", "tags": ""})
	w.server.Do(w, http.MethodPut, "permissions/%2F/"+name, map[string]string{"configure": "", "write": "", "read": ""})
	w.Cleanup(func() { w.server.Do(w, http.MethodDelete, rabbittest.User(name), nil) })
}

func (w *brokerWorld) has(name string) bool {
	w.Helper()
	return w.server.Do(w, http.MethodGet, rabbittest.User(name), nil) != nil
}

// logsIn reports whether a password is an account's, by what the broker says of it to itself.
func (w *brokerWorld) logsIn(name, password string) bool {
	w.Helper()
	c, err := w.server.Dial(name, password, "/")
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func TestRabbitMQConformance(t *testing.T) {
	enginetest.Conform(t, rabbitmq.New(), nil)
}

func TestRabbitMQConfiguration(t *testing.T) {
	b := enginetest.New(t, rabbitmq.New(), nil)
	b.System = passwords{}
	type step = enginetest.Step
	vhosts := `{\"/\":{\"configure\":\"\",\"write\":\"x\",\"read\":\".*\"}}`
	b.Run(
		step{Name: "nothing", Verb: lessor.Read, Path: "config/connection", Kind: api.NotFound, Fails: true},
		step{Name: "nothing", Verb: lessor.Read, Path: "config/lease", Kind: api.NotFound, Fails: true},
		step{Name: "no URI", Verb: lessor.Update, Path: "config/connection", Body: `{"username":"lessor"}`, Kind: api.Invalid, Err: "connection_uri is needed: the management API, such as https://rabbit.example.com:15671"},
		step{Name: "write", Verb: lessor.Update, Path: "config/connection", Body: `{"connection_uri":"https://rabbit.example.com:15671","username":"lessor","password":"hush","verify_connection":false,"rotation_period":"24h"}`},
		step{Name: "read", Verb: lessor.Read, Path: "config/connection", Want: `{"connection_uri":"https://rabbit.example.com:15671","username":"lessor","password_policy":"","verify_connection":false,` +
			`"rotation_schedule":"","rotation_window":0,"rotation_period":86400,"disable_automated_rotation":false,"skip_static_role_import_rotation":false}`},
		step{Name: "plain", Verb: lessor.Update, Path: "config/connection", Body: `{"connection_uri":"http://rabbit.example.com"}`, Warn: "without TLS, who stands between lessor and the broker reads lessor's password: say https:// in connection_uri"},
		step{Name: "no other plugin", Verb: lessor.Update, Path: "config/connection", Body: `{"plugin_name":"x"}`, Warn: "Endpoint ignored these unrecognized parameters: [plugin_name]"},
		step{Name: "terms", Verb: lessor.Update, Path: "config/lease", Body: `{"ttl":1800,"max_ttl":"1h"}`},
		step{Name: "read", Verb: lessor.Read, Path: "config/lease", Want: `{"ttl":1800,"max_ttl":3600}`},
		step{Name: "too long", Verb: lessor.Update, Path: "config/lease", Body: `{"ttl":7200,"max_ttl":"1h"}`, Kind: api.Invalid, Err: "ttl must not exceed max_ttl, nor be negative"},
		step{Name: "an empty role", Verb: lessor.Update, Path: "roles/app", Body: `{}`, Kind: api.Invalid, Err: "both tags and vhosts not specified"},
		step{Name: "no JSON", Verb: lessor.Update, Path: "roles/app", Body: `{"vhosts":"{"}`, Kind: api.Invalid, Err: `failed to unmarshal vhosts: it is JSON, such as {"/": {"configure": "", "write": "", "read": ".*"}}`},
		step{Name: "lessor's tags", Verb: lessor.Update, Path: "roles/app", Body: `{"tags":"a,lessor-lease-x"}`, Kind: api.Invalid, Err: `tags that begin with "lessor-" are lessor's own`},
		step{Name: "role", Verb: lessor.Update, Path: "roles/app", Body: `{"tags":"management, x","vhosts":"` + vhosts + `","vhost_topics":{"/":{"amq.topic":{"write":"","read":"a"}}}}`},
		step{Name: "read", Verb: lessor.Read, Path: "roles/app", Want: `{"tags":"management,x","vhosts":{"/":{"configure":"","write":"x","read":".*"}},"vhost_topics":{"/":{"amq.topic":{"write":"","read":"a"}}}}`},
		step{Name: "what is not sent is gone, as in Vault", Verb: lessor.Update, Path: "roles/app", Body: `{"tags":"y"}`},
		step{Name: "read", Verb: lessor.Read, Path: "roles/app", Want: `{"tags":"y","vhosts":null,"vhost_topics":null}`},
		step{Name: "list", Verb: lessor.List, Path: "roles/", Want: `{"keys":["app"]}`},
		step{Name: "delete", Verb: lessor.Delete, Path: "roles/app"},
		step{Name: "unknown role", Verb: lessor.Read, Path: "creds/app", Kind: api.Invalid, Err: "unknown role: app"},
	)
	// Of the database engine's parameters only those that mean something here.
	r := b.Do(lessor.Update, "static-roles/s", `{"username":"app","rotation_period":"1h","skip_import_rotation":true,"self_managed_password":"hush","db_name":"x","rotation_statements":"x"}`)
	if len(r.Txn.Puts) == 0 {
		t.Error("a static role was not written")
	}
	data := b.Do(lessor.Read, "static-roles/s", "").Data
	if data["username"] != "app" || data["db_name"] != nil || data["rotation_statements"] != nil {
		t.Errorf("read %v", data)
	}
	b.NoTrace("hush")
}

func TestRabbitMQCredentials(t *testing.T) {
	w := newBrokerWorld(t)
	w.do(lessor.Update, "mq/config/lease", `{"ttl":"30m","max_ttl":"1h"}`)
	w.do(lessor.Update, "mq/roles/app", `{"tags":"management","vhosts":"{\"/\":{\"configure\":\"\",\"write\":\"\",\"read\":\".*\"}}"}`)
	a := w.do(lessor.Read, "mq/creds/app", "")
	name, password := a.Data["username"].(string), a.Data["password"].(lessor.Secret).Reveal()
	if a.Lease.Duration != 30*time.Minute || !a.Lease.Renewable || !strings.HasPrefix(a.Lease.ID, "mq/creds/app/") {
		t.Errorf("lease %+v", a.Lease)
	}
	c, err := w.server.Dial(name, password, "/")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w.do(lessor.Update, "sys/leases/renew", fmt.Sprintf(`{"lease_id":%q}`, a.Lease.ID))
	w.refused(api.Invalid, lessor.Delete, "mq/config/connection", "", "still needed to revert its leases")
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, a.Lease.ID))
	w.until("the account of a revoked lease is gone", func() bool { return !w.has(name) })
	if !c.Ended(30 * time.Second) {
		t.Error("a connection outlived its lease")
	}
	end := w.do(lessor.Read, "mq/creds/app", "").Data["username"].(string)
	w.clock.advance(2 * time.Hour)
	w.until("the account of a lease that is over is gone", func() bool { return !w.has(end) })
}

func TestRabbitMQRotation(t *testing.T) {
	w := newBrokerWorld(t)
	user := fmt.Sprintf("static_%d", time.Now().UnixNano())
	w.server.Do(t, http.MethodPut, rabbittest.User(user), map[string]string{"password": "before", "tags": "x"})
	w.server.Do(t, http.MethodPut, "permissions/%2F/"+user, map[string]string{"configure": "", "write": "", "read": ""})
	t.Cleanup(func() { w.server.Do(t, http.MethodDelete, rabbittest.User(user), nil) })
	current := func() string {
		t.Helper()
		return w.do(lessor.Read, "mq/static-creds/app", "").Data["password"].(lessor.Secret).Reveal()
	}
	w.do(lessor.Update, "mq/static-roles/app", fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, user))
	first := current()
	if w.logsIn(user, "before") || !w.logsIn(user, first) {
		t.Error("the password that was imported is not the account's")
	}
	w.do(lessor.Update, "mq/rotate-root", "")
	if status, _, err := w.server.Call(w.own, "first", http.MethodGet, "whoami", nil); err != nil || status != http.StatusUnauthorized {
		t.Errorf("lessor's own password is what it was: %d, %v", status, err)
	}
	w.do(lessor.Update, "mq/rotate-role/app", "")
	w.crash()
	w.clock.advance(time.Hour)
	w.until("it is rotated when it is due", func() bool { return w.state("static/app").Version == 3 })
	if w.logsIn(user, first) || !w.logsIn(user, current()) {
		t.Error("after rotations")
	}
	// Somebody else changes it: it is set again when it is tried.
	w.server.Do(t, http.MethodPut, rabbittest.User(user), map[string]string{"password": "elsewhere", "tags": "x"})
	w.clock.advance(3 * time.Minute)
	w.until("the password is set again", func() bool { return w.logsIn(user, current()) })
	w.refused(api.Invalid, lessor.Update, "mq/static-roles/own", fmt.Sprintf(`{"username":%q,"rotation_period":"1h"}`, w.own), "lessor itself uses")
	w.refused(api.Upstream, lessor.Update, "mq/static-roles/none", `{"username":"nobody-here","rotation_period":"1h"}`, "there is no account")
	answer, err := json.Marshal(w.records("mq/rotate-root"))
	if err != nil || strings.Contains(string(answer), "first\"") {
		t.Errorf("records %s, %v", answer, err)
	}
}

// An account that the store forgot is found by its mark, by the mount that made it, and removed.
func TestRabbitMQStrays(t *testing.T) {
	s := rabbittest.Start(t)
	e := rabbitmq.New()
	b := enginetest.New(t, e, nil)
	b.System = passwords{}
	t.Cleanup(func() { e.Close(b.Mount.UUID) })
	b.Do(lessor.Update, "config/connection", fmt.Sprintf(`{"connection_uri":%q,"username":%q,"password":%q,"verify_connection":false}`, s.URL, rabbittest.Admin, s.Password()))
	b.Do(lessor.Update, "roles/app", `{"tags":"x"}`)
	l, answer, pw := plan(t, b)
	if err := e.Apply(t.Context(), access(t, b), l, pw); err != nil {
		t.Fatal(err)
	}
	targets, err := e.Targets(access(t, b))
	if err != nil || !slices.Equal(targets, []string{"connection"}) {
		t.Fatalf("targets %v, %v", targets, err)
	}
	found, err := e.Find(t.Context(), access(t, b), targets[0])
	if err != nil || len(found) != 1 || found[0].Mark != e.Mark(l.ID) {
		t.Fatalf("found %+v, %v", found, err)
	}
	stray := *l
	stray.ID, stray.Intent = b.Mount.Path+"strays/x", found[0].Intent
	if errs := e.Revert(t.Context(), access(t, b), []*lease.Lease{&stray}); errs[0] != nil {
		t.Fatal(errs)
	}
	if s.Do(t, http.MethodGet, rabbittest.User(answer["username"].(string)), nil) != nil {
		t.Error("the stray is still there")
	}
	b.NoTrace(pw.Reveal(), s.Password())
}
