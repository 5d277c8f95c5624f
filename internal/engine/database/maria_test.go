package database_test

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/mysql"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mariatest"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/storetest"
)

// mariaWorld is a world with the connection "m" to a MariaDB, by an account of its own that has the rights which the documentation asks for and may be
// rotated, and the administrator's session.
type mariaWorld struct {
	*world
	server *mariatest.Server
	root   *sql.Conn
	own    string
	name   string // of a database
}

func newMariaWorld(t *testing.T, s *mariatest.Server) *mariaWorld {
	w := &mariaWorld{newWorldWithout(t, mysql.Drivers()[0]), s, s.Connect(t, ""), fmt.Sprintf("lessor_%d", time.Now().UnixNano()), s.Database(t)}
	w.exec("CREATE USER " + w.own + " IDENTIFIED BY 'first'")
	ends := "CONNECTION ADMIN"
	if s.MySQL() {
		ends = "CONNECTION_ADMIN"
	}
	for _, grant := range []string{"CREATE USER, PROCESS, " + ends + " ON *.*", "SELECT ON mysql.*", "SELECT, INSERT ON " + w.name + ".*"} {
		w.exec("GRANT " + grant + " TO " + w.own + " WITH GRANT OPTION")
	}
	w.connect("m", "first")
	return w
}

func (w *mariaWorld) connect(name, password string) {
	w.Helper()
	a := w.do(lessor.Update, "db/config/"+name, fmt.Sprintf(`{"plugin_name":"mysql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":"*"}`,
		w.server.URL("{{username}}", "{{password}}"), w.own, password))
	if len(a.Warnings) > 0 {
		w.Errorf("warnings %q", a.Warnings)
	}
}

func (w *mariaWorld) exec(sql string) {
	w.Helper()
	if _, err := w.root.ExecContext(w.Context(), sql); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
}

// human makes an account, as an administrator does, whose password is "before".
func (w *mariaWorld) human() string {
	w.Helper()
	name := fmt.Sprintf("static_%d", time.Now().UnixNano())
	w.exec("CREATE USER " + name + " IDENTIFIED BY 'before'")
	return name
}

// has reports whether there is anything of an account.
func (w *mariaWorld) has(username string) bool {
	w.Helper()
	var n int
	w.must(w.root.QueryRowContext(w.Context(), "SELECT COUNT(*) FROM mysql.user WHERE User='"+username+"'").Scan(&n))
	return n > 0
}

func (w *mariaWorld) logsIn(username, password string) bool {
	w.Helper()
	c, err := w.server.Login(w.Context(), username, password, "")
	if err != nil {
		if !strings.Contains(err.Error(), "1045") {
			w.Fatalf("logging in as %s: %v", username, err)
		}
		return false
	}
	c.Close()
	return true
}

const mariaCreation = `CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'`

func TestMariaConformance(t *testing.T) {
	enginetest.Conform(t, database.New(mysql.Drivers()...), nil)
}

func TestMariaConfiguration(t *testing.T) {
	b := enginetest.New(t, database.New(mysql.Drivers()...), nil)
	b.System = passwords{}
	type step = enginetest.Step
	answer := func(details string) string {
		return `{"plugin_name":"mysql-database-plugin","plugin_version":"","connection_details":` + details + `,"allowed_roles":[],` +
			`"root_credentials_rotate_statements":[],"password_policy":"","verify_connection":false,"rotation_schedule":"","rotation_window":0,"rotation_period":0,"disable_automated_rotation":false,"skip_static_role_import_rotation":false}`
	}
	write := func(url, more string) string {
		return fmt.Sprintf(`{"plugin_name":"mysql-database-plugin","connection_url":%q,"verify_connection":false%s}`, url, more)
	}
	b.Run(
		step{Name: "write", Verb: lessor.Update, Path: "config/a", Body: write("{{username}}:{{password}}@tcp(db.example.com:3306)/", `,"username":"lessor","password":"hush-1","password_authentication":"ed25519"`)},
		step{Name: "read", Verb: lessor.Read, Path: "config/a", Want: answer(`{"connection_url":"{{username}}:{{password}}@tcp(db.example.com:3306)/","username":"lessor","password_authentication":"ed25519"}`)},
		step{Name: "without verification", Verb: lessor.Update, Path: "config/a", Body: `{"tls_skip_verify":true,"password_authentication":""}`},
		step{Name: "read", Verb: lessor.Read, Path: "config/a", Want: answer(`{"connection_url":"{{username}}:{{password}}@tcp(db.example.com:3306)/","username":"lessor","tls_skip_verify":true}`)},
		step{Name: "a password in the URL", Verb: lessor.Update, Path: "config/b", Body: write("bob:hush%2@/:-2@tcp(db)/app?timeout=5s", "")},
		step{Name: "is taken out", Verb: lessor.Read, Path: "config/b", Want: answer(`{"connection_url":"bob:{{password}}@tcp(db)/app?timeout=5s"}`)},
		step{Name: "a key that is none", Verb: lessor.Update, Path: "config/b", Body: `{"tls_certificate_key":"hush-3"}`, Kind: api.Invalid, Err: "tls_certificate_key is not a certificate and its key, in PEM"},
		step{Name: "a URL that is none", Verb: lessor.Update, Path: "config/b", Body: `{"connection_url":"db.example.com"}`, Kind: api.Invalid,
			Err: "connection_url must be as {{username}}:{{password}}@tcp(db.example.com:3306)/app?tls=true, or with unix(/run/mysqld/mysqld.sock)"},
		step{Name: "SCRAM", Verb: lessor.Update, Path: "config/b", Body: `{"scram_iterations":1}`, Kind: api.Invalid, Err: "scram_iterations is for PostgreSQL"},
		step{Name: "no statements", Verb: lessor.Update, Path: "roles/app", Body: `{"db_name":"a"}`, Kind: api.Invalid, Err: "creation_statements are needed: they make the account {{name}} with {{password}}"},
		step{Name: "unquoted", Verb: lessor.Update, Path: "roles/app", Body: `{"db_name":"a","creation_statements":"CREATE USER {{name}}"}`, Kind: api.Invalid,
			Err: "creation_statements: {{name}} must be in quotes: '{{name}}', '{{password}}', '{{expiration}}'"},
		step{Name: "write", Verb: lessor.Update, Path: "roles/app", Body: `{"db_name":"a","creation_statements":"` + mariaCreation + `; GRANT SELECT ON app.* TO '{{name}}'@'%'"}`},
		step{Name: "another of Vault's names", Verb: lessor.Update, Path: "config/c", Body: `{"plugin_name":"mysql-rds-database-plugin","connection_url":"u@tcp(db)/","verify_connection":false}`},
	)
	b.NoTrace("hush")
	for _, d := range mysql.Drivers() {
		_, longest := d.Usernames()
		for _, who := range []string{"approle-billing", "x", "-.-", ""} {
			name, err := database.Username(d, "", "database/creds/app/Zk3", issued, who, "reporting")
			if err != nil || len(name) > longest || !allowed.MatchString(name) {
				t.Errorf("%s: %q, %v", d.Plugin(), name, err)
			}
		}
	}
}

func TestMariaCredentials(t *testing.T) {
	w := newMariaWorld(t, mariatest.Start(t))
	w.exec("CREATE TABLE " + w.name + ".kept (n INT)")
	w.do(lessor.Update, "db/roles/app", `{"db_name":"m","creation_statements":["`+mariaCreation+`","GRANT SELECT, INSERT ON `+w.name+`.* TO '{{name}}'@'%'"],"default_ttl":"1h"}`)
	a := w.do(lessor.Read, "db/creds/app", "")
	name, password := a.Data["username"].(string), a.Data["password"].(lessor.Secret).Reveal()
	if !strings.HasPrefix(name, "v-") || !strings.Contains(name, "-app-") || len(name) > 32 {
		t.Errorf("username %q", name)
	}
	c, err := w.server.Login(t.Context(), name, password, w.name)
	w.must(err)
	defer c.Close()
	if _, err := c.ExecContext(t.Context(), "INSERT INTO kept VALUES (7)"); err != nil {
		t.Error(err)
	}
	w.do(lessor.Update, "sys/leases/renew", fmt.Sprintf(`{"lease_id":%q}`, a.Lease.ID))
	w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, a.Lease.ID))
	w.until("the account of a revoked lease is gone", func() bool { return !w.has(name) })
	if _, err := c.ExecContext(t.Context(), "SELECT 1"); err == nil {
		t.Error("a session outlived its lease")
	}
	end := w.do(lessor.Read, "db/creds/app", "").Data["username"].(string)
	w.crash()
	w.clock.advance(2 * time.Hour)
	w.until("the account of a lease that is over is gone", func() bool { return !w.has(end) })
	w.do(lessor.Update, "db/roles/app", `{"creation_statements":["`+mariaCreation+`","SELECT * FROM nowhere.nothing"]}`)
	w.refused(api.Upstream, lessor.Read, "db/creds/app", "", "denied")
	w.refused(api.Invalid, lessor.Update, "db/config/m", `{"password":"wrong-password"}`, "the database refused lessor's own login")
}

func TestMariaRotation(t *testing.T) {
	w := newMariaWorld(t, mariatest.Start(t))
	user := w.human()
	w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"m","username":%q,"rotation_period":"1h"}`, user))
	first := w.password("app")
	if w.logsIn(user, "before") || !w.logsIn(user, first) {
		t.Error("the password that was imported is not the account's")
	}
	w.do(lessor.Update, "db/rotate-role/app", "")
	second := w.password("app")
	if second == first || w.logsIn(user, first) || !w.logsIn(user, second) {
		t.Error("after rotate-role")
	}
	w.do(lessor.Update, "db/roles/dyn", `{"db_name":"m","creation_statements":"`+mariaCreation+`"}`)
	w.do(lessor.Update, "db/rotate-root/m", "")
	if w.logsIn(w.own, "first") || !w.logsIn(w.own, w.passwords("root/m").Current.Reveal()) {
		t.Error("after rotate-root")
	}
	for range 2 {
		w.do(lessor.Update, "db/rotate-role/app", "")
		w.do(lessor.Read, "db/creds/dyn", "")
		w.crash()
	}
	w.do(lessor.Update, "db/rotate-root/m", "")
	w.do(lessor.Read, "db/creds/dyn", "")
	if third := w.password("app"); !w.logsIn(user, third) || third == second {
		t.Error("after a crash")
	}
	// Somebody else changes it: it is set again when it is tried.
	w.exec("ALTER USER " + user + " IDENTIFIED BY 'elsewhere'")
	w.clock.advance(3 * time.Minute)
	w.until("the password that is shown is in force again", func() bool { return w.logsIn(user, w.password("app")) })
	w.clock.advance(time.Hour)
	before := w.state("static/app").Version
	w.until("it is rotated when it is due", func() bool { return w.state("static/app").Version > before })

	w.refused(api.Invalid, lessor.Update, "db/static-roles/own", fmt.Sprintf(`{"db_name":"m","username":%q,"rotation_period":60}`, w.own), "is the account that lessor itself uses")
	w.refused(api.Invalid, lessor.Update, "db/static-roles/host", `{"db_name":"m","username":"a'@'%","rotation_period":60}`, "without quotes")
	w.refused(api.Upstream, lessor.Update, "db/static-roles/none", `{"db_name":"m","username":"nobody-here","rotation_period":60}`, "the static role was not made")
	self := w.human()
	w.do(lessor.Update, "db/static-roles/self", fmt.Sprintf(`{"db_name":"m","username":%q,"rotation_period":"1h","self_managed_password":"before"}`, self))
	w.do(lessor.Update, "db/rotate-role/self", "")
	if w.logsIn(self, "before") || !w.logsIn(self, w.password("self")) {
		t.Error("an account that changes its password itself")
	}
	if body := fmt.Sprint(w.records("db/static-roles/app"), w.records("db/rotate-role/app")); strings.Contains(body, first) || strings.Contains(body, second) {
		t.Error("a password is on record")
	}
}

// The server is killed while passwords change, over and over; in the end the password that is shown is the one in force, and lessor still gets in.
func TestMariaDiesWhileItRotates(t *testing.T) {
	s := mariatest.Own(t)
	w := newMariaWorld(t, s)
	user := w.human()
	w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"m","username":%q,"rotation_period":"1h"}`, user))
	for range 3 {
		var all sync.WaitGroup
		stop := make(chan struct{})
		for _, path := range []string{"db/rotate-role/app", "db/rotate-root/m"} {
			all.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_, _ = w.try(lessor.Update, path, "")
					}
				}
			})
		}
		before := w.state("static/app").Version
		w.until("it rotates", func() bool { return w.state("static/app").Version > before+2 })
		w.must(s.Kill())
		close(stop)
		all.Wait()
		w.must(s.Up())
	}
	w.root = s.Connect(t, "")
	w.until("nothing is pending", func() bool {
		w.clock.advance(time.Minute)
		app, own := w.state("static/app"), w.state("root/m")
		return app.Pending == 0 && app.Attempts == 0 && own.Pending == 0 && own.Attempts == 0
	})
	w.do(lessor.Update, "db/rotate-role/app", "")
	if !w.logsIn(user, w.password("app")) || !w.logsIn(w.own, w.passwords("root/m").Current.Reveal()) {
		t.Error("a password that is not in force")
	}
}

// What a mount made and no lease knows is found by its markers, half-made accounts too, and goes as its role says now.
func TestMariaStrays(t *testing.T) {
	s := mariatest.Start(t)
	root := s.Connect(t, "")
	e := database.New(mysql.Drivers()...)
	b := enginetest.New(t, e, nil)
	b.System = passwords{}
	b.Principal.DisplayName = "approle-billing"
	t.Cleanup(func() { e.Close(b.Mount.UUID) })
	name := s.Database(t)
	if _, err := root.ExecContext(t.Context(), "CREATE TABLE "+name+".said (name VARCHAR(80))"); err != nil {
		t.Fatal(err)
	}
	b.Do(lessor.Update, "config/pg", fmt.Sprintf(`{"plugin_name":"mysql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":"*"}`,
		s.URL("{{username}}", "{{password}}"), mariatest.Superuser, s.Password()))
	b.Do(lessor.Update, "roles/app", `{"db_name":"pg","creation_statements":"`+mariaCreation+`","revocation_statements":["INSERT INTO `+name+`.said VALUES ('{{name}}')","DROP USER '{{name}}'@'%'"]}`)
	count := func(query string) (n int) {
		if err := root.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, half := range []bool{false, true} {
		l, answer, pw := plan(t, b)
		username := answer["username"].(string)
		if err := e.Apply(t.Context(), access(t, b), l, pw); err != nil {
			t.Fatal(err)
		}
		if half {
			var host string
			if err := root.QueryRowContext(t.Context(), "SELECT Host FROM mysql.user WHERE Host LIKE '%.lessor.invalid' AND User='"+username+"'").Scan(&host); err != nil {
				t.Fatal(err)
			}
			begun := strings.Replace(host, ".lessor.", ".unfinished.lessor.", 1)
			if _, err := root.ExecContext(context.Background(), fmt.Sprintf("RENAME USER '%s'@'%s' TO '%s'@'%s'; DROP USER '%s'@'%%'", username, host, username, begun, username)); err != nil {
				t.Fatal(err)
			}
		}
		found, err := e.Find(t.Context(), access(t, b), "pg")
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(found, func(f engine.Found) bool { return f.Mark == e.Mark(l.ID) })
		if at < 0 {
			t.Fatal("it was not found")
		}
		stray := &lease.Lease{ID: b.Mount.Path + "strays/" + found[at].Mark, Mount: b.Mount.UUID, Namespace: lessor.RootNamespace, Intent: found[at].Intent}
		for range 2 {
			if err := e.Revert(t.Context(), access(t, b), []*lease.Lease{stray})[0]; err != nil {
				t.Fatal(err)
			}
		}
		if n := count("SELECT COUNT(*) FROM mysql.user WHERE User='" + username + "'"); n != 0 {
			t.Errorf("%d accounts are left", n)
		}
		if n, want := count("SELECT COUNT(*) FROM "+name+".said WHERE name='"+username+"'"), map[bool]int{false: 1, true: 0}[half]; n != want {
			t.Errorf("what its role says was said %d times, not %d", n, want)
		}
	}
}

// A store that was put back to an earlier state does not know an account; it is found once the fence is lifted, and removed.
func TestMariaRestoredCopy(t *testing.T) {
	w := newMariaWorld(t, mariatest.Start(t))
	w.do(lessor.Update, "db/roles/app", `{"db_name":"m","creation_statements":"`+mariaCreation+`","default_ttl":"1h"}`)
	known := w.do(lessor.Read, "db/creds/app", "").Data["username"].(string)
	stray := strings.Replace(known, "v-", "s-", 1)
	var host string
	w.must(w.root.QueryRowContext(t.Context(), "SELECT Host FROM mysql.user WHERE Host LIKE '%.lessor.invalid' AND User='"+known+"'").Scan(&host))
	_, rest, _ := strings.Cut(host, ".")
	w.exec(fmt.Sprintf("CREATE USER '%s'@'%s.%s' ACCOUNT LOCK; CREATE USER '%s'", stray, strings.Repeat("ab", 16), rest, stray))
	_, err := w.db.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: store.Fenced, Value: []byte("now")}}})
	w.must(err)
	w.crash()
	w.do(lessor.Delete, "sys/lessor/fence", "")
	w.until("what no lease knows is gone", func() bool { w.clock.advance(time.Second); return !w.has(stray) })
	if !w.has(known) {
		t.Error("an account of a lease is gone")
	}
}

// pair makes a static role of two accounts that take turns.
func (w *mariaWorld) pair(more string) *pair {
	w.Helper()
	p := &pair{w.world, [2]string{w.human(), w.human()}}
	w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"m","usernames":[%q,%q],"rotation_period":"1000h"%s}`, p.users[0], p.users[1], more))
	return p
}

// The process list shows who uses the old account, and he is waited for; once nobody is seen, its password is retired.
func TestMariaHandoverByEvidence(t *testing.T) {
	w := newMariaWorld(t, mariatest.Start(t))
	p := w.pair(`,"rotation_quiet":"60s"`)
	old := p.read("")
	c, err := w.server.Login(t.Context(), old.username, old.password, "")
	w.must(err)
	defer c.Close()
	p.do(lessor.Update, "db/rotate-role/app", "")
	p.until("it is seen", func() bool { p.clock.advance(time.Second); return len(p.status()["sessions"].([]any)) == 1 })
	if seen := p.status()["sessions"].([]any)[0].(map[string]any); seen["client"] == "" || seen["count"] != 1 {
		t.Errorf("seen is %v", seen)
	}
	for range 20 {
		p.clock.advance(10 * time.Second)
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := c.ExecContext(t.Context(), "SELECT 1"); err != nil || p.phase() != rotation.Waiting || !w.logsIn(old.username, old.password) {
		t.Fatalf("retired while it is in use, in phase %s: %v", p.phase(), err)
	}
	c.Close()
	p.reaches(rotation.Idle, time.Second)
	next := p.read("")
	if w.logsIn(old.username, old.password) || !w.logsIn(next.username, next.password) || next.username == old.username {
		t.Error("in the end")
	}
}

// A grace ends the wait, and the sessions.
func TestMariaHandoverByDeadline(t *testing.T) {
	w := newMariaWorld(t, mariatest.Start(t))
	p := w.pair(`,"rotation_grace":"1h"`)
	old := p.read("slow")
	c, err := w.server.Login(t.Context(), old.username, old.password, "")
	w.must(err)
	defer c.Close()
	p.do(lessor.Update, "db/rotate-role/app", "")
	p.until("it is seen", func() bool { p.clock.advance(time.Second); return len(p.status()["sessions"].([]any)) == 1 })
	if _, err := c.ExecContext(t.Context(), "SELECT 1"); err != nil {
		t.Fatal(err)
	}
	p.reaches(rotation.Idle, time.Minute)
	if _, err := c.ExecContext(t.Context(), "SELECT 1"); err == nil || w.logsIn(old.username, old.password) {
		t.Error("the old password is in use after the grace")
	}
	if s := p.state("static/app"); len(s.Stragglers) != 2 {
		t.Errorf("named are %+v", s.Stragglers)
	}
}

// The server, or lessor, dies while accounts are made, over and over: whatever was made of them goes with the leases, markers and all.
func TestMariaLeavesNoOrphans(t *testing.T) {
	s := mariatest.Own(t)
	w := newMariaWorld(t, s)
	w.do(lessor.Update, "db/roles/app", `{"db_name":"m","creation_statements":["`+mariaCreation+`","GRANT SELECT, INSERT ON `+w.name+`.* TO '{{name}}'@'%'"],"default_ttl":"10h","max_ttl":"10h"}`)
	var made atomic.Int64
	for round := range 4 {
		var all sync.WaitGroup
		stop := make(chan struct{})
		for range 4 {
			all.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						if _, err := w.try(lessor.Read, "db/creds/app", ""); err == nil {
							made.Add(1)
						}
					}
				}
			})
		}
		before := made.Load()
		w.until("accounts are made", func() bool { return made.Load() > before+10 })
		if round%2 == 0 {
			w.must(s.Kill())
			close(stop)
			all.Wait()
			w.must(s.Up())
			w.root = s.Connect(t, "")
		} else {
			w.faulty.Set(storetest.Faults{At: 1}) // nothing that is under way is recorded any more
			close(stop)
			all.Wait()
			w.crash()
		}
	}
	w.clock.advance(11 * time.Hour)
	w.until("all accounts are gone", func() bool {
		w.clock.advance(10 * time.Second)
		var n int
		w.must(w.root.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM mysql.user WHERE User LIKE 'v-%' OR Host LIKE '%.lessor.invalid'").Scan(&n))
		return n == 0
	})
}
