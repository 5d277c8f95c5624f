package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mariatest"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// bench is a database of its own at the shared server, a connection to it and the superuser's session.
type bench struct {
	*mariatest.Server
	t    testing.TB
	name string
	root *sql.Conn
	database.Database
}

func newBench(t testing.TB, s *mariatest.Server, change ...func(*database.Connection, *database.Secrets)) *bench {
	t.Helper()
	b := &bench{Server: s, t: t, name: s.Database(t)}
	b.root = s.Connect(t, b.name)
	b.Database = connection(t, s, change...)
	return b
}

// usual is the driver that most use.
var usual = Drivers()[0]

// connection is one of the superuser, changed.
func connection(t testing.TB, s *mariatest.Server, change ...func(*database.Connection, *database.Secrets)) database.Database {
	t.Helper()
	c := &database.Connection{URL: s.URL("{{username}}", "{{password}}"), Username: mariatest.Superuser}
	secrets := database.Secrets{Password: lessor.NewSecret(s.Password())}
	for _, f := range change {
		f(c, &secrets)
	}
	if err := usual.Check(c, secrets); err != nil {
		t.Fatal(err)
	}
	d, err := usual.Open(c, secrets)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.(*server).pool.Close() })
	return d
}

var serial atomic.Int64

// account is a new one, unlike any other of the process.
func account() database.Account {
	n := serial.Add(1)
	a := database.Account{
		Lease: fmt.Sprintf("database/creds/app/%d-%d", os.Getpid(), n), Username: fmt.Sprintf("v-test.app-%d_%d", os.Getpid(), n),
		Password: lessor.NewSecret(fmt.Sprintf("pass!$word %d", n)), Until: time.Now().Add(time.Hour),
	}
	a.Creation = []string{`CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'`}
	return a
}

func (b *bench) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.root.ExecContext(b.t.Context(), sql, args...); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

func ask[T any](b *bench, sql string, args ...any) (v T) {
	b.t.Helper()
	if err := b.root.QueryRowContext(b.t.Context(), sql, args...).Scan(&v); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// has reports whether there is anything of the account's name, its marker included.
func (b *bench) has(a database.Account) bool {
	b.t.Helper()
	return ask[int](b, "SELECT COUNT(*) FROM mysql.user WHERE User="+text(a.Username)) > 0
}

func (b *bench) login(a database.Account) (*mariatest.Session, error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	return b.Server.Login(ctx, a.Username, a.Password.Reveal(), "")
}

func (b *bench) create(a database.Account) database.Account {
	b.t.Helper()
	if err := b.Create(b.t.Context(), a); err != nil {
		b.t.Fatal(err)
	}
	return a
}

func (b *bench) remove(as ...database.Account) {
	b.t.Helper()
	for i, err := range b.Database.Remove(b.t.Context(), as) {
		if err != nil {
			b.t.Errorf("%s: %v", as[i].Username, err)
		}
		if b.has(as[i]) {
			b.t.Errorf("%s is still there", as[i].Username)
		}
	}
}

// until waits for what happens at the server.
func (b *bench) until(what string, f func() bool) {
	b.t.Helper()
	for start := time.Now(); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			b.t.Fatalf("never: %s", what)
		}
	}
}

// What an account bears at the server: a marker, and a hash in the place of its password.
func TestWhatAnAccountBears(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	a := account()
	a.Mount, a.Role = strings.Repeat("ab", 12), strings.Repeat("cd", 12)
	b.create(a)
	if got, want := ask[string](b, "SELECT Host FROM mysql.user WHERE Host<>'%' AND User="+text(a.Username)), database.Mark(a.Lease)+"."+a.Mount+"."+a.Role+".lessor.invalid"; got != want {
		t.Errorf("marker %q, want %q", got, want)
	}
	if stored := ask[string](b, "SELECT authentication_string FROM mysql.user WHERE Host='%' AND User="+text(a.Username)); stored != nativeHash(a.Password.Reveal()) && !(b.MySQL() && strings.HasPrefix(stored, "$A$")) {
		t.Errorf("stored as %q", stored)
	}
	b.remove(a)
}

// The names of an account may be at several hosts, with several rights, and go together.
func TestAccountAtSeveralHosts(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	a := account()
	a.Creation = []string{
		`CREATE USER '{{name}}'@'localhost' IDENTIFIED BY '{{password}}', "{{username}}"@'127.0.0.%' IDENTIFIED BY "{{password}}"; -- and; so on
		GRANT SELECT ON ` + b.name + `.* TO '{{name}}'@'127.0.0.%' /* ; */ ;`, "GRANT SELECT ON " + b.name + ".* TO `{{name}}`@localhost",
	}
	b.exec("CREATE TABLE numbers (n INT)")
	b.create(a)
	c, err := b.login(a)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.ExecContext(t.Context(), "SELECT * FROM "+b.name+".numbers"); err != nil {
		t.Error(err)
	}
	if n := ask[int](b, "SELECT COUNT(*) FROM mysql.user WHERE User="+text(a.Username)); n != 3 {
		t.Errorf("%d accounts, its marker included", n)
	}
	b.remove(a)
}

func TestHashesAreThoseOfTheServer(t *testing.T) {
	s := mariatest.Start(t)
	if s.MySQL() {
		t.Skip("MySQL gets passwords")
	}
	b := newBench(t, s)
	if got := ask[string](b, "SELECT PASSWORD('pencil')"); got != nativeHash("pencil") {
		t.Errorf("%s, not %s", nativeHash("pencil"), got)
	}
	// MariaDB's documentation has this one.
	if got := ed25519Hash("secret"); got != "ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY" {
		t.Errorf("ed25519: %s", got)
	}
	b.exec("INSTALL SONAME 'auth_ed25519'")
	t.Cleanup(func() { _, _ = b.root.ExecContext(context.Background(), "UNINSTALL SONAME 'auth_ed25519'") })
	e := newBench(t, s, func(c *database.Connection, _ *database.Secrets) { c.Authentication = ed25519 })
	a := e.create(account())
	if plugin := ask[string](b, "SELECT plugin FROM mysql.user WHERE Host='%' AND User="+text(a.Username)); plugin != "ed25519" {
		t.Errorf("plugin %s", plugin)
	}
	c, err := b.login(a)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	// A changed password keeps the plugin, whatever the connection's is.
	for _, d := range []database.Database{b.Database, e.Database, connection(t, s, func(c *database.Connection, _ *database.Secrets) { c.Authentication = plain })} {
		a.Password = lessor.NewSecret(fmt.Sprint("another ", serial.Add(1)))
		if err := d.SetPassword(t.Context(), database.Change{Name: "static/e", Username: a.Username, Password: a.Password}); err != nil {
			t.Fatal(err)
		}
		if c, err = b.login(a); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	self := database.Change{Name: "static/e", Username: a.Username, Password: lessor.NewSecret("by itself"), Self: []lessor.Secret{a.Password}}
	if err := b.SetPassword(t.Context(), self); err != nil {
		t.Fatal(err)
	}
	if verdict, err := b.Database.Login(t.Context(), a.Username, self.Password); err != nil || verdict != database.Accepted {
		t.Errorf("%v, %v", verdict, err)
	}
	for range 500 { // whatever the server's challenge is
		if verdict, err := b.Database.Login(t.Context(), a.Username, self.Password); err != nil || verdict != database.Accepted {
			t.Fatalf("%v, %v", verdict, err)
		}
	}
	b.remove(a)
	special := account()
	special.Creation = []string{"CREATE USER '{{name}}'@'%' IDENTIFIED VIA ed25519 USING PASSWORD('{{password}}')"}
	b.create(special)
	if c, err = b.login(special); err != nil {
		t.Fatal(err)
	}
	c.Close()
	b.remove(special)
}

// A password that is sent as it is has no quotes.
func TestPlainPassword(t *testing.T) {
	b := newBench(t, mariatest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.Authentication = plain })
	a := account()
	a.Password = lessor.NewSecret("it's")
	if err := b.Create(t.Context(), a); api.KindOf(err) != api.Invalid || b.has(a) {
		t.Errorf("a password with a quote: %v", err)
	}
}

// The password is in no log of the server, even of one that logs every statement; that of the connection neither.
func TestPasswordIsNotLogged(t *testing.T) {
	s := mariatest.Own(t, mariatest.Setting("general_log", "1"), mariatest.Setting("slow_query_log", "1"), mariatest.Setting("long_query_time", "0"))
	b := newBench(t, s)
	a := b.create(account())
	if c, err := b.login(a); err == nil {
		c.Close()
	}
	bad := account()
	bad.Creation = append(bad.Creation, "SELECT * FROM nowhere.nothing")
	if err := b.Create(t.Context(), bad); err == nil {
		t.Error("created")
	}
	static := b.create(account())
	change := database.Change{Name: "static/x", Username: static.Username, Password: lessor.NewSecret("the next word")}
	if err := b.SetPassword(t.Context(), change); err != nil {
		t.Error(err)
	}
	change.Statements = []string{"ALTER USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'"}
	if err := b.SetPassword(t.Context(), change); err != nil {
		t.Error(err)
	}
	b.remove(a, bad, static)
	if err := s.Down(); err != nil { // has written all
		t.Fatal(err)
	}
	var all strings.Builder
	for _, name := range s.Logs() {
		log, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(log)
	}
	hash := "IDENTIFIED WITH mysql_native_password AS '*"
	if s.MySQL() {
		hash = "IDENTIFIED BY <secret>"
	}
	if !strings.Contains(all.String(), hash) || !strings.Contains(all.String(), "# Query_time") {
		t.Fatal("the logs have no statements")
	}
	for _, secret := range []string{a.Password.Reveal(), bad.Password.Reveal(), change.Password.Reveal(), s.Password()} {
		if strings.Contains(all.String(), secret) {
			t.Errorf("the server logged %q", secret)
		}
	}
}

// Whatever goes wrong in the statements, no account stays behind, and no secret is told.
func TestCreateFails(t *testing.T) {
	b := newBench(t, mariatest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.Authentication = plain })
	b.exec("CREATE TABLE rolled_back (name VARCHAR(80)); CREATE PROCEDURE tell (what TEXT) SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = what")
	unknown := "doesn't exist (error 1146)"
	if b.MySQL() {
		unknown = "Unknown database 'nowhere' (error 1049)"
	}
	for name, c := range map[string]struct{ creation, want string }{
		"second statement":    {`CREATE USER '{{name}}' IDENTIFIED BY '{{password}}'; SELECT * FROM nowhere.nothing`, unknown},
		"no account":          {`SELECT '{{name}}'`, "made no account"},
		"syntax":              {`CREATE USER '{{name}}' IDENTIFIED BY '{{password}}' 'X{{password}}'`, "(error 1064)"},
		"syntax, far":         {`CREATE USER '{{name}}' IDENTIFIED BY '{{password}}' ` + strings.Repeat("x", 74) + `'{{password}}'`, "(error 1064)"},
		"quotes the password": {`CREATE USER '{{name}}'; DO CAST('{{password}}' AS SIGNED); SET @x='{{password}}', lock_wait_timeout='{{password}}'`, "Incorrect argument type"},
		"raises it":           {`CREATE USER '{{name}}'; CALL ` + b.name + `.tell('so: {{password}}')`, "so: [secret]"},
		"conflict":            {`CREATE USER '{{name}}'; CREATE USER 'root'@'%'`, "(error 1396)"},
		"no database":         {`CREATE USER '{{name}}'; GRANT SELECT, ON *.* TO '{{name}}'`, "(error 1064)"},
	} {
		t.Run(name, func(t *testing.T) {
			a := account()
			a.Creation = []string{c.creation}
			a.Rollback = []string{"INSERT INTO " + b.name + ".rolled_back VALUES ('{{name}}')"}
			err := b.Create(t.Context(), a)
			if err == nil || !strings.Contains(err.Error(), c.want) || api.KindOf(err) != api.Upstream || errors.Is(err, database.ErrUnreachable) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(fmt.Sprintf("%v %v", err, errors.Unwrap(err)), "pass!") {
				t.Errorf("a secret is told: %v", err)
			}
			if b.has(a) {
				t.Error("the account stayed")
			}
			if n := ask[int](b, "SELECT COUNT(*) FROM rolled_back WHERE name="+text(a.Username)); n != 1 {
				t.Errorf("rollback_statements ran %d times", n)
			}
			b.remove(a)
		})
	}
}

// An attempt that died midway left a marker, and perhaps an account without its rights; it is made anew, or removed.
func TestHalfMade(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	for name, left := range map[string]func(a *database.Account) string{
		"only the marker": func(a *database.Account) string { return "" },
		"an account":      func(a *database.Account) string { return "CREATE USER " + text(a.Username) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, again := range []bool{true, false} {
				a := account()
				b.exec("CREATE USER " + text(a.Username) + "@" + text(marker(&a, false)) + " ACCOUNT LOCK;" + left(&a))
				if again {
					b.create(a)
					c, err := b.login(a)
					if err != nil {
						t.Fatal(err)
					}
					c.Close()
					if n := ask[int](b, "SELECT COUNT(*) FROM mysql.user WHERE User="+text(a.Username)); n != 2 {
						t.Errorf("%d accounts", n)
					}
				}
				b.remove(a)
			}
		})
	}
}

// Many are made at once, and removed together, with a session in some.
func TestManyAtOnce(t *testing.T) {
	b := newBench(t, mariatest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.MaxOpen = 8 })
	b.exec("CREATE TABLE popular (n INT)")
	as := make([]database.Account, 150)
	var wg sync.WaitGroup
	for i := range as {
		as[i] = account()
		as[i].Creation = append(as[i].Creation, "GRANT SELECT ON "+b.name+".popular TO '{{name}}'@'%'")
		wg.Go(func() {
			if err := b.Create(t.Context(), as[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := 0; i < len(as); i += 20 {
		c, err := b.login(as[i])
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := c.ExecContext(context.Background(), "SELECT 1"); err == nil {
				t.Error("a session outlived its account")
			}
			c.Close()
		}()
	}
	b.remove(as...)
}

// A Create that hangs in its statements is ended by Remove, not waited for, and its account never appears.
func TestRemoveEndsItsPredecessor(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	a := account()
	a.Creation = append(a.Creation, "DO SLEEP(60)")
	done := make(chan error)
	go func() { done <- b.Create(t.Context(), a) }()
	b.until("it hangs", func() bool {
		return ask[int](b, "SELECT COUNT(*) FROM information_schema.processlist WHERE INFO LIKE 'DO SLEEP(60)%' AND ID=IS_USED_LOCK('"+making(a.Lease)+"')") == 1
	})
	start := time.Now()
	b.remove(a)
	if d := time.Since(start); d > 25*time.Second {
		t.Errorf("Remove took %v", d)
	}
	if err := <-done; !errors.Is(err, database.ErrUnreachable) {
		t.Errorf("the predecessor: %v", err)
	}
	if b.has(a) {
		t.Error("the predecessor's account appeared")
	}
}

// Sessions end, busy ones too, and so do logins that began while the account was there.
func TestRemoveEndsSessions(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	a := b.create(account())
	var sessions []*mariatest.Session
	for i := range 3 {
		c, err := b.login(a)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sessions = append(sessions, c)
		if i == 0 {
			go func() { _, _ = c.ExecContext(context.Background(), "DO SLEEP(120)") }()
		}
	}
	b.until("one is busy", func() bool {
		return ask[int](b, "SELECT COUNT(*) FROM information_schema.processlist WHERE INFO LIKE 'DO SLEEP(120)%' AND USER="+text(a.Username)) == 1
	})
	b.remove(a)
	if n := ask[int](b, "SELECT COUNT(*) FROM information_schema.processlist WHERE USER="+text(a.Username)); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	for _, c := range sessions[1:] {
		if _, err := c.ExecContext(t.Context(), "SELECT 1"); err == nil {
			t.Error("a session outlived its account")
		}
	}
}

func TestRevocationStatements(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	b.exec("CREATE TABLE revoked (name VARCHAR(80))")
	custom := func(sql ...string) database.Account {
		a := account()
		a.Revocation = sql
		return b.create(a)
	}
	drops := custom("INSERT INTO "+b.name+".revoked VALUES ('{{name}}'); REVOKE ALL PRIVILEGES, GRANT OPTION FROM '{{name}}'@'%'", "DROP USER '{{name}}'@'%'")
	c, err := b.login(drops)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b.remove(drops, drops, b.create(account()))
	if n := ask[int](b, "SELECT COUNT(*) FROM revoked WHERE name="+text(drops.Username)); n != 1 {
		t.Errorf("revocation_statements ran %d times", n)
	}
	if _, err := c.ExecContext(t.Context(), "SELECT 1"); err == nil {
		t.Error("a session outlived its account")
	}
	keeps := custom("ALTER USER '{{name}}'@'%' ACCOUNT LOCK")
	if errs := b.Database.Remove(t.Context(), []database.Account{keeps}); errs[0] != nil {
		t.Errorf("an account that is locked: %v", errs[0])
	}
	forgets := custom("ALTER USER '{{name}}'@'%' ACCOUNT UNLOCK")
	if errs := b.Database.Remove(t.Context(), []database.Account{forgets}); errs[0] == nil || !strings.Contains(errs[0].Error(), "able to log in") {
		t.Errorf("an account that may log in: %v", errs[0])
	}
	breaks := custom("SELECT * FROM nowhere.nothing")
	if errs := b.Database.Remove(t.Context(), []database.Account{breaks}); errs[0] == nil || errors.Is(errs[0], database.ErrUnreachable) {
		t.Errorf("statements that fail: %v", errs[0])
	}
	b.exec("DROP USER " + text(keeps.Username))
	for _, a := range []database.Account{forgets, breaks} {
		a.Revocation = nil
		b.remove(a)
	}
}

func TestRenewStatements(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	b.exec("CREATE TABLE renewed (name VARCHAR(80), until DATETIME)")
	a := account()
	a.Renewal = []string{"INSERT INTO " + b.name + ".renewed VALUES ('{{name}}', '{{expiration}}') # and that"}
	b.create(a)
	if err := b.Renew(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	off := ask[float64](b, "SELECT TIMESTAMPDIFF(SECOND, '1970-01-01', until) FROM renewed WHERE name="+text(a.Username)) - float64(a.Until.Unix())
	if d := time.Duration(off) * time.Second; d < database.Skew || d > database.Skew+time.Second {
		t.Errorf("{{expiration}} is %v after the lease's end", d)
	}
	b.remove(a)
}

// An event of the server's locks an account whose lease is over while lessor is away, as the documentation says.
func TestAccountThatEndsByItself(t *testing.T) {
	s := mariatest.Own(t, mariatest.Setting("event_scheduler", "ON"))
	b := newBench(t, s)
	_, least := b.least("PROCESS ON *.*", "CONNECTION ADMIN ON *.*", "EVENT ON "+b.name+".*")
	d := connection(t, s, least)
	event := "`" + b.name + "`.`{{name}}`"
	a := account()
	a.Creation = append(a.Creation, "CREATE EVENT "+event+" ON SCHEDULE AT '{{expiration}}' DO ALTER USER '{{name}}'@'%' ACCOUNT LOCK")
	a.Renewal = []string{"ALTER EVENT " + event + " ON SCHEDULE AT '{{expiration}}'"}
	a.Revocation = []string{"DROP EVENT IF EXISTS " + event + "; DROP USER IF EXISTS '{{name}}'@'%'"}
	if err := usual.CheckRole(&a.Statements); err != nil {
		t.Fatal(err)
	}
	if err := d.Create(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	c, err := b.login(a)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	a.Until = time.Now().Add(2*time.Second - database.Skew)
	if err := d.Renew(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	b.until("it is locked", func() bool {
		c, err := b.login(a)
		if err == nil {
			c.Close()
		}
		return code(err) == lockedMariaDB || code(err) == lockedMySQL
	})
	if errs := d.Remove(t.Context(), []database.Account{a, a}); errs[0] != nil || errs[1] != nil || b.has(a) {
		t.Errorf("%v", errs)
	}
	if n := ask[int](b, "SELECT COUNT(*) FROM information_schema.events"); n != 0 {
		t.Errorf("%d events are left", n)
	}
}

// least is an account with the rights that the documentation says lessor's needs.
func (b *bench) least(extra ...string) (name string, change func(*database.Connection, *database.Secrets)) {
	name = fmt.Sprintf("lessor_%d_%d", os.Getpid(), serial.Add(1))
	b.exec("CREATE USER " + name + "@'%' IDENTIFIED BY 'less'")
	for _, grant := range append([]string{"CREATE USER ON *.*", "SELECT ON mysql.*"}, extra...) {
		if b.MySQL() {
			grant = strings.ReplaceAll(grant, "CONNECTION ADMIN", "CONNECTION_ADMIN")
		}
		b.exec("GRANT " + grant + " TO " + name + "@'%'")
	}
	b.t.Cleanup(func() { _, _ = b.root.ExecContext(context.Background(), "DROP USER "+name+"@'%'") })
	return name, func(c *database.Connection, s *database.Secrets) {
		c.Username, s.Password = name, lessor.NewSecret("less")
	}
}

// A superuser is not needed; what is lacking is told.
func TestAccountOfFewRights(t *testing.T) {
	s := mariatest.Start(t)
	b := newBench(t, s)
	_, can := b.least("PROCESS ON *.*", "CONNECTION ADMIN ON *.*")
	b.Database = connection(t, s, can)
	a := b.create(account())
	c, err := b.login(a)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if found, err := b.Sessions(t.Context(), []string{a.Username}); err != nil || len(found) != 1 || found[0].Client != "127.0.0.1" && found[0].Client != "localhost" {
		t.Errorf("%v, %v", found, err)
	}
	b.remove(a)
	for _, c := range []struct {
		lacks string
		extra []string
	}{{"PROCESS", nil}, {"CONNECTION ADMIN", []string{"PROCESS ON *.*"}}} {
		_, cannot := b.least(c.extra...)
		d := connection(t, s, cannot)
		a := account()
		if err := d.Create(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		session, err := b.login(a)
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		errs := d.Remove(t.Context(), []database.Account{a})
		if errs[0] == nil || !strings.Contains(errs[0].Error(), "GRANT "+c.lacks+" ON *.*") {
			t.Errorf("without %s: %v", c.lacks, errs[0])
		}
		if c.lacks == "PROCESS" {
			if _, err := d.Sessions(t.Context(), []string{a.Username}); !errors.Is(err, database.ErrUnseen) {
				t.Errorf("sessions without %s: %v", c.lacks, err)
			}
		}
		if !b.has(a) {
			t.Error("the marker is gone while there is a session")
		}
		b.remove(a)
	}
	none := connection(t, s, func(c *database.Connection, s *database.Secrets) {
		c.Username, s.Password = b.create(account()).Username, lessor.NewSecret(fmt.Sprintf("pass!$word %d", serial.Load()))
	})
	if err := none.Create(t.Context(), account()); err == nil || !strings.Contains(err.Error(), "GRANT SELECT ON mysql.*") {
		t.Errorf("without any right: %v", err)
	}
}

// Statements that change their session do not change it for others.
func TestSessionsAreNotShared(t *testing.T) {
	b := newBench(t, mariatest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.MaxOpen = 1 })
	a := account()
	a.Creation = append([]string{"USE " + b.name + "; SET @changed = 1, sql_mode = 'ANSI_QUOTES'"}, a.Creation...)
	b.create(a)
	next := account()
	next.Creation = append(next.Creation, `SELECT IF(@changed IS NULL AND DATABASE() IS NULL AND @@sql_mode NOT LIKE "%ANSI%", 1, (SELECT 1 UNION SELECT 2))`)
	b.create(next)
	b.remove(a, next)
}

// A server that resolves no names knows markers no more after a start, and they are found and dropped all the same.
func TestMarkersOutliveAStart(t *testing.T) {
	s := mariatest.Own(t, mariatest.Setting("skip_name_resolve", "1"))
	b := newBench(t, s)
	done, half := b.create(account()), account()
	b.exec("CREATE USER " + text(half.Username) + "@" + text(marker(&half, false)) + " ACCOUNT LOCK; CREATE USER " + text(half.Username))
	if err := errors.Join(s.Kill(), s.Up()); err != nil {
		t.Fatal(err)
	}
	b.root = s.Connect(t, b.name)
	b.create(done)
	b.create(half)
	if c, err := b.login(half); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	b.remove(done, half)
}

// The server hangs, dies, comes back: calls end in time with ErrUnreachable, and what they left is put right by the next.
func TestServerTrouble(t *testing.T) {
	s := mariatest.Own(t)
	b := newBench(t, s)
	before := b.create(account())
	call := func(what string, f func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := f(ctx)
		if !errors.Is(err, database.ErrUnreachable) || api.KindOf(err) != api.Upstream {
			t.Errorf("%s: %v", what, err)
		}
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("%s took %v", what, d)
		}
		if err != nil && strings.Contains(err.Error(), s.Password()) {
			t.Errorf("%s tells the password: %v", what, err)
		}
	}
	during := account()
	all := func(what string) {
		t.Helper()
		call(what+", create", func(ctx context.Context) error { return b.Create(ctx, during) })
		call(what+", renew", func(ctx context.Context) error { return b.Renew(ctx, before) })
		call(what+", remove", func(ctx context.Context) error { return b.Database.Remove(ctx, []database.Account{before})[0] })
		call(what+", set", func(ctx context.Context) error {
			return b.SetPassword(ctx, database.Change{Name: "x", Username: before.Username, Password: lessor.NewSecret("y")})
		})
		call(what+", login", func(ctx context.Context) error {
			_, err := b.Database.Login(ctx, before.Username, before.Password)
			return err
		})
		call(what+", ping", b.Ping)
	}
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	all("hanging")
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	b.remove(during, before)

	before, during = b.create(account()), account()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	all("dead")
	if err := s.Up(); err != nil {
		t.Fatal(err)
	}
	b.root = s.Connect(t, b.name)
	b.create(during)
	b.remove(during, before)

	// It dies while statements run.
	during = account()
	during.Creation = append(during.Creation, "DO SLEEP(60)")
	done := make(chan error)
	go func() { done <- b.Create(t.Context(), during) }()
	b.until("it hangs", func() bool {
		return ask[int](b, "SELECT COUNT(*) FROM information_schema.processlist WHERE INFO LIKE 'DO SLEEP(60)%'") == 1
	})
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, database.ErrUnreachable) {
		t.Errorf("dying: %v", err)
	}
	if err := s.Up(); err != nil {
		t.Fatal(err)
	}
	b.root = s.Connect(t, b.name)
	b.remove(during)
}

// What a call started ends at the server, too, when the call's time is over.
func TestStatementsEnd(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	a := account()
	a.Creation = append(a.Creation, "DO BENCHMARK(1000000000000, SHA2('x', 256))") // sees nobody leave
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if err := b.Create(ctx, a); !errors.Is(err, database.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	if b.MySQL() { // which has no bounds for it: who removes the account ends it
		b.remove(a)
	}
	b.until("the statement ends at the server", func() bool {
		return ask[int](b, "SELECT COUNT(*) FROM information_schema.processlist WHERE INFO LIKE 'DO BENCHMARK(%'") == 0
	})
	b.remove(a)
}

func TestTLS(t *testing.T) {
	s := mariatest.Start(t, mariatest.TLS())
	other, err := pgtest.OtherCA()
	if err != nil {
		t.Fatal(err)
	}
	url := func(host, mode string) string {
		return strings.Replace(fmt.Sprintf("{{username}}:{{password}}@tcp(%s:%d)/?tls=%s", host, s.Port, mode), "?tls=-", "", 1)
	}
	for name, c := range map[string]struct {
		conn database.Connection
		want string
	}{
		"true":                      {database.Connection{URL: url("localhost", "true"), CA: string(s.CA)}, ""},
		"by address":                {database.Connection{URL: url("127.0.0.1", "true"), CA: string(s.CA)}, ""},
		"by another name":           {database.Connection{URL: url("127.0.0.1", "true"), CA: string(s.CA), ServerName: "localhost"}, ""},
		"wrong name":                {database.Connection{URL: url("localhost", "true"), CA: string(s.CA), ServerName: "db.example.com"}, "not trusted"},
		"wrong CA":                  {database.Connection{URL: url("localhost", "true"), CA: string(other)}, "not trusted"},
		"wrong CA, skip-verify":     {database.Connection{URL: url("localhost", "skip-verify"), CA: string(other)}, "not trusted"},
		"skip-verify, with a CA":    {database.Connection{URL: url("localhost", "skip-verify"), CA: string(s.CA), ServerName: "whatever"}, ""},
		"tls_skip_verify":           {database.Connection{URL: url("localhost", "-"), InsecureTLS: true}, ""},
		"system's CAs":              {database.Connection{URL: url("localhost", "true")}, "not trusted"},
		"skip-verify":               {database.Connection{URL: url("localhost", "skip-verify")}, ""},
		"preferred":                 {database.Connection{URL: url("localhost", "preferred")}, ""},
		"preferred with a wrong CA": {database.Connection{URL: url("localhost", "preferred"), CA: string(other)}, "not trusted"},
		"by default, with a CA":     {database.Connection{URL: url("localhost", "-"), CA: string(other)}, "not trusted"},
	} {
		t.Run(name, func(t *testing.T) {
			d := connection(t, s, func(conn *database.Connection, _ *database.Secrets) {
				*conn = c.conn
				conn.Username = mariatest.Superuser
			})
			err := d.Ping(t.Context())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	d := connection(t, mariatest.Start(t), func(c *database.Connection, _ *database.Secrets) {
		c.URL = strings.Replace(c.URL, "false", "skip-verify", 1)
	})
	if err := d.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "it speaks no TLS") {
		t.Errorf("a server without TLS: %v", err)
	}
}

func TestPingTellsWhatIsWrong(t *testing.T) {
	s := mariatest.Start(t)
	for name, c := range map[string]struct {
		change func(*database.Connection, *database.Secrets)
		want   string
	}{
		"password": {func(_ *database.Connection, s *database.Secrets) { s.Password = lessor.NewSecret("hush-hush") }, "refused lessor's own login"},
		"database": {func(c *database.Connection, _ *database.Secrets) {
			c.URL = strings.Replace(c.URL, "/?", "/nowhere?", 1)
		}, "(error 1049)"},
		"port":   {func(c *database.Connection, _ *database.Secrets) { c.URL = "u@tcp(127.0.0.1:1)/" }, "connection refused"},
		"name":   {func(c *database.Connection, _ *database.Secrets) { c.URL = "u@tcp(db.invalid)/" }, "name cannot be resolved"},
		"socket": {func(c *database.Connection, _ *database.Secrets) { c.URL = "u@unix(/nonexistent)/" }, "no such file"},
	} {
		err := connection(t, s, c.change).Ping(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(fmt.Sprint(err, errors.Unwrap(err)), "hush") {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	d := connection(t, s, func(c *database.Connection, _ *database.Secrets) {
		c.URL = "{{username}}:{{password}}@unix(" + s.Socket + ")/"
	})
	if err := d.Ping(t.Context()); err != nil {
		t.Errorf("over the Unix socket: %v", err)
	}
}
