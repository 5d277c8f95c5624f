package database_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mariatest"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// unmade wants a role to be refused with a text that tells no secret, nothing of it to be left, and both that it was tried and what came of it on record.
func (w *world) unmade(kind api.Kind, path, body, text string) {
	w.Helper()
	before := len(w.records(path))
	w.refused(kind, lessor.Update, path, body, text)
	_, err := w.try(lessor.Update, path, body)
	if strings.Contains(err.Error(), "hush") {
		w.Errorf("%s: a secret is told: %v", body, err)
	}
	w.refused(api.NotFound, lessor.Read, path, "", "")
	_, name, _ := strings.Cut(path, "static-roles/")
	if w.state("static/"+name) != nil {
		w.Errorf("%s: it left something", body)
	}
	recs := w.records(path)
	if len(recs) < before+4 || recs[1].Phase != audit.Outcome || recs[1].ErrorKind != kind.String() || recs[2].Phase != audit.Begun {
		w.Errorf("%s: records %+v", body, recs[:3])
	}
}

// What the database says is wrong with a static role is found when it is written, and not when it is rotated first.
func TestRoleIsTriedFirst(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	one, two := w.account(""), w.account("")
	body := func(users, more string) string {
		return `{"db_name":"pg","rotation_period":"1000h",` + users + more + `}`
	}
	single, both, half := fmt.Sprintf(`"username":%q`, one), fmt.Sprintf(`"usernames":[%q,%q]`, one, two), fmt.Sprintf(`"usernames":[%q,"nobody-here"]`, one)
	const skip = `,"skip_import_rotation":true`
	for _, c := range []struct {
		body, text string
		kind       api.Kind
	}{
		{body(single, skip+`,"password":"hush"`), "the static role was not written: the password that was sent is not the one of the account", api.Invalid},
		{body(single, skip+`,"self_managed_password":"hush"`), "the password that was sent is not the one of the account", api.Invalid},
		{body(`"username":"nobody-here"`, skip), `there is no account "nobody-here" at the database`, api.Invalid},
		{body(both, skip+`,"password":"hush"`), "the password that was sent is not the one of the account", api.Invalid},
		{body(half, skip+`,"password":"first"`), `there is no account "nobody-here" at the database`, api.Invalid},
		{body(half, ``), `the static role was not made, since the password of its account could not be changed: there is no account "nobody-here" at the database`, api.Upstream},
		{body(both, `,"password":"hush"`), "the password that was sent is not the one of the account", api.Upstream},
	} {
		w.unmade(c.kind, "db/static-roles/app", c.body, c.text)
		if !w.logsIn(one, "first") || !w.logsIn(two, "first") {
			t.Fatalf("%s: an account was touched", c.body)
		}
	}

	w.do(lessor.Update, "db/static-roles/app", body(single, skip+`,"password":"first"`))
	w.refused(api.Invalid, lessor.Update, "db/static-roles/app", `{"password":"hush"}`, "the password that was sent is not the one of the account")
	w.refused(api.Invalid, lessor.Update, "db/static-roles/app", "{"+half+"}", "there is no account")
	if d := w.do(lessor.Read, "db/static-roles/app", "").Data; d["strategy"] != "single" || w.password("app") != "first" {
		t.Errorf("a refused change was made: %v", d)
	}
	w.do(lessor.Update, "db/static-roles/app", "{"+both+"}")
	if !w.logsIn(one, "first") || !w.logsIn(two, "first") {
		t.Error("an account was touched")
	}

	// An account that may not log in is somebody's purpose, perhaps; a password that is not its own is none.
	locked := w.account("")
	w.sql(`ALTER ROLE "` + locked + `" NOLOGIN`)
	if a := w.do(lessor.Update, "db/static-roles/locked", fmt.Sprintf(`{"db_name":"pg","rotation_period":"1h","username":%q,"password":"first"%s}`, locked, skip)); len(a.Warnings) != 2 || !strings.Contains(a.Warnings[0], "may not log in") {
		t.Errorf("warnings %q", a.Warnings)
	}
}

// Lessor's own account may not change what a superuser has; statements of somebody's own may do what it may not.
func TestRoleBeyondLessorsRights(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	own := fmt.Sprintf("lessor_%d", time.Now().UnixNano())
	w.sql(`CREATE ROLE ` + own + ` LOGIN CREATEROLE PASSWORD 'first'`)
	w.connect("own", w.pg, own, "first")
	beyond := w.account("SUPERUSER")
	role := fmt.Sprintf(`{"db_name":"own","rotation_period":"1h","username":%q,"skip_import_rotation":true`, beyond)
	w.unmade(api.Invalid, "db/static-roles/app", role+"}", fmt.Sprintf("the static role was not written: lessor may not change the password of the account %q", beyond))
	w.do(lessor.Update, "db/static-roles/app", role+`,"rotation_statements":"SELECT administrators.give('{{name}}', '{{password}}')"}`)
	if !w.logsIn(beyond, "first") {
		t.Error("it was touched")
	}
	// At another connection, by which lessor may, what was tried here is tried anew.
	w.do(lessor.Update, "db/static-roles/app", `{"db_name":"pg","rotation_statements":[]}`)
	w.refused(api.Invalid, lessor.Update, "db/static-roles/app", `{"db_name":"own"}`, "superuser")
}

// A role is written while its database is away: that is warned of. A connection that is not tried has none of its roles tried.
func TestRoleIsWrittenMeanwhile(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	relay := pgtest.NewRelay(t, w.pg)
	w.do(lessor.Update, "db/config/far", fmt.Sprintf(`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":"*"}`,
		relay.URL(w.pg.URL("{{username}}", "{{password}}", "postgres")), pgtest.Superuser, w.pg.Password()))
	user := w.account("")
	role := fmt.Sprintf(`{"db_name":"far","rotation_period":"1000h","username":%q,"password":"hush","skip_import_rotation":true}`, user)
	relay.Cut()
	a := w.do(lessor.Update, "db/static-roles/app", role)
	if len(a.Warnings) != 2 || !strings.Contains(a.Warnings[0], "was not tried") || !strings.Contains(a.Warnings[0], "the database cannot be reached") {
		t.Errorf("warnings %q", a.Warnings)
	}
	if recs := w.records("db/static-roles/app"); len(recs) != 2 || recs[0].Phase != audit.Outcome || recs[0].ErrorKind != "" || recs[1].Phase != audit.Begun {
		t.Errorf("records %+v", recs)
	}
	relay.Mend()
	w.refused(api.Invalid, lessor.Update, "db/static-roles/app", `{"password":"hush-too"}`, "is not the one of the account")
	w.do(lessor.Update, "db/static-roles/app", `{"password":"first"}`)
	w.do(lessor.Delete, "db/static-roles/app", "")
	w.do(lessor.Update, "db/config/far", `{"verify_connection":false}`)
	if a := w.do(lessor.Update, "db/static-roles/app", role); len(a.Warnings) != 1 || w.password("app") != "hush" {
		t.Errorf("warnings %q", a.Warnings)
	}
}

// The same at the other kinds.
func TestRoleIsTriedElsewhere(t *testing.T) {
	type kind struct {
		*world
		mount, connection, one, two string
		logsIn                      func(username, password string) bool
	}
	for name, start := range map[string]func(*testing.T) kind{
		"MariaDB": func(t *testing.T) kind {
			w := newMariaWorld(t, mariatest.Start(t))
			k := kind{w.world, "db", `"db_name":"m",`, w.own + "_a", w.own + "_b", w.logsIn}
			for _, user := range []string{k.one, k.two} {
				w.exec("CREATE USER " + user + " IDENTIFIED BY 'first'")
			}
			return k
		},
		"Redis": func(t *testing.T) kind {
			w := newRedisWorld(t)
			k := kind{w.world, "db", `"db_name":"r",`, w.own + "_a", w.own + "_b", w.logsIn}
			for _, user := range []string{k.one, k.two} {
				w.redis("ACL", "SETUSER", user, "on", ">first")
			}
			return k
		},
		"RabbitMQ": func(t *testing.T) kind {
			w := newBrokerWorld(t)
			k := kind{w.world, "mq", "", w.own + "_a", w.own + "_b", w.logsIn}
			for _, user := range []string{k.one, k.two} {
				w.human(user)
			}
			return k
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := start(t)
			path := k.mount + "/static-roles/app"
			body := func(second, more string) string {
				return fmt.Sprintf(`{%s"rotation_period":"1000h","usernames":[%q,%q]%s}`, k.connection, k.one, second, more)
			}
			k.unmade(api.Invalid, path, body(k.two, `,"skip_import_rotation":true,"password":"hush"`), "is not the one of the account")
			k.unmade(api.Invalid, path, body("nobody-here", `,"skip_import_rotation":true,"password":"first"`), "nobody-here")
			k.unmade(api.Upstream, path, body("nobody-here", ""), "nobody-here")
			k.do(lessor.Update, path, body(k.two, `,"skip_import_rotation":true,"password":"first"`))
			if !k.logsIn(k.one, "first") || !k.logsIn(k.two, "first") {
				t.Error("an account was touched")
			}
		})
	}
}

// A role whose first password may be in force, since lessor died when it was set, is not taken back: that the database is away then, or lacks the second
// account by then, says nothing of what was done before.
func TestRoleThatMayBeRotatedStays(t *testing.T) {
	for what, gone := range map[string]string{"the database is away": "", "an account is gone": "second"} {
		t.Run(what, func(t *testing.T) {
			e := &eye{}
			w := newWorldOf(t, pgtest.Start(t), e)
			one, two := w.account(""), w.account("")
			users := fmt.Sprintf(`"username":%q`, one)
			if gone != "" {
				users = fmt.Sprintf(`"usernames":[%q,%q]`, one, two)
			}
			var sets atomic.Int32
			e.Watch(func(call string, _ lessor.Secret, do func() error) error {
				if call != "set" {
					return do()
				}
				switch sets.Add(1) {
				case 1:
					err := do()
					w.faulty.Set(storetest.Faults{At: 1})
					return err
				case 2:
					if gone == "" {
						return errAway
					}
				}
				return do()
			})
			if _, err := w.try(lessor.Update, "db/static-roles/app", `{"db_name":"pg","rotation_period":"1000h",`+users+`}`); err == nil {
				t.Fatal("what was not recorded succeeded")
			}
			if gone != "" {
				w.sql(`DROP ROLE "` + two + `"`)
			}
			w.crash()
			w.until("it is set again", func() bool {
				w.clock.advance(time.Second)
				a := w.state("static/app")
				return a == nil || a.Version == 1
			})
			if w.state("static/app") == nil || !w.logsIn(one, w.password("app")) {
				t.Error("the password that is in force was given up, with its role")
			}
		})
	}
}

// A role that is made is not taken back either while another node tries its first password, too, since this one takes long: what it has set by then is in force.
func TestRoleThatOthersRotateStays(t *testing.T) {
	e := &eye{}
	w := newWorldOf(t, pgtest.Start(t), e)
	one := w.account("")
	var sets atomic.Int32
	e.Watch(func(call string, _ lessor.Secret, do func() error) error {
		if call != "set" || sets.Add(1) > 1 {
			return do()
		}
		w.clock.advance(rotation.Head)
		w.until("it is begun a second time", func() bool { return w.state("static/app").Loose == 2 })
		if err := do(); err != nil { // the other node's
			return err
		}
		return errAway
	})
	if _, err := w.try(lessor.Update, "db/static-roles/app", `{"db_name":"pg","rotation_period":"1000h","username":"`+one+`"}`); err == nil || !strings.Contains(err.Error(), "retries will continue") {
		t.Errorf("what did not reach the database: %v", err)
	}
	w.until("it is set again", func() bool {
		w.clock.advance(time.Second)
		a := w.state("static/app")
		return a == nil || a.Version == 1
	})
	if w.state("static/app") == nil || !w.logsIn(one, w.password("app")) {
		t.Error("the password that is in force was given up, with its role")
	}
}

// errAway is a database that was asked nothing.
var errAway = &api.Error{Kind: api.Upstream, Text: "the database cannot be reached: connection refused", Cause: database.ErrUntouched}

// What people said of a password that lessor has not set is their word: it is taken back when they say otherwise, and neither tried nor brought into force, since the account
// keeps what it has until its first rotation.
func TestWordIsTakenBack(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	w.do(lessor.Update, "db/config/pg", `{"verify_connection":false}`)
	one := w.account("")
	for i := range 3 {
		w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"pg","rotation_period":"1000h","username":%q,"password":"hush-%d","skip_import_rotation":true}`, one, i))
	}
	if p := w.passwords("static/app"); len(p.Former) > 0 || w.password("app") != "hush-2" {
		t.Errorf("%d older words are kept", len(p.Former))
	}
	w.managed("next", (rotation.Watch + 30*time.Second).String()) // whose turn comes after that of what would be tried
	w.clock.advance(rotation.Watch + time.Minute)
	w.until("the next one is rotated", func() bool { return w.state("static/next").Version == 2 })
	if !w.logsIn(one, "first") {
		t.Error("the account has another password, before its first rotation")
	}
}
