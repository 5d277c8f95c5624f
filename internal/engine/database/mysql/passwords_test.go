package mysql

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mariatest"
)

// human is an account that is not lessor's making.
func (b *bench) human(definition string) string {
	b.t.Helper()
	name := fmt.Sprintf("human %d", serial.Add(1))
	b.exec(strings.ReplaceAll(definition, "HUMAN", text(name)))
	hosts := strings.Split(ask[string](b, "SELECT GROUP_CONCAT(Host SEPARATOR ' ') FROM mysql.user WHERE User="+text(name)), " ")
	b.t.Cleanup(func() {
		_, _ = b.root.ExecContext(context.Background(), "DROP USER "+strings.Join(accounts(name, hosts), ","))
	})
	return name
}

// bySocket is how an account is identified that logs in as whom the machine says it is.
func bySocket(b *bench) string {
	if !b.MySQL() {
		return "VIA unix_socket"
	}
	_, _ = b.root.ExecContext(b.t.Context(), "INSTALL PLUGIN auth_socket SONAME 'auth_socket.so'") // or it is there already
	return "WITH auth_socket"
}

func TestSetPassword(t *testing.T) {
	b := newBench(t, mariatest.Start(t))
	odd := fmt.Sprintf("a b; DROP USER {{name}}@c#ü %d", serial.Add(1)) // MySQL takes 32 characters
	b.exec("CREATE USER " + text(odd) + " IDENTIFIED BY 'first'")
	t.Cleanup(func() { _, _ = b.root.ExecContext(context.Background(), "DROP USER "+text(odd)) })
	several := b.human("CREATE USER HUMAN@'localhost' IDENTIFIED BY 'first', HUMAN@'127.0.0.1' IDENTIFIED BY 'first', HUMAN@'10.%' IDENTIFIED BY 'first'")
	for _, name := range []string{odd, several} {
		for _, statements := range [][]string{nil, {"ALTER USER '{{name}}'@'localhost' IDENTIFIED BY '{{password}}'", "ALTER USER '{{username}}'@'127.0.0.1' IDENTIFIED BY '{{password}}'"}} {
			if name == odd && statements != nil {
				statements = []string{"SET PASSWORD FOR '{{name}}'@'%' = PASSWORD('{{password}}')"}
				if b.MySQL() {
					statements = []string{"SET PASSWORD FOR '{{name}}'@'%' = '{{password}}'"}
				}
			}
			c := database.Change{Name: "static/" + name, Username: name, Password: lessor.NewSecret(fmt.Sprint("next ", serial.Add(1))), Statements: statements}
			for range 2 {
				if err := b.SetPassword(t.Context(), c); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			for password, want := range map[string]database.Verdict{"first": database.Refused, c.Password.Reveal(): database.Accepted} {
				if verdict, err := b.Database.Login(t.Context(), name, lessor.NewSecret(password)); err != nil || verdict != want {
					t.Errorf("%s: %v, %v", name, verdict, err)
				}
			}
		}
	}
	refused := map[string]string{
		"nobody-here": "does not exist",
		b.human("CREATE USER HUMAN IDENTIFIED " + bySocket(b)): "does not log in by a password",
	}
	if !b.MySQL() {
		refused[b.human("CREATE USER HUMAN IDENTIFIED VIA mysql_native_password USING PASSWORD('x') OR unix_socket")] = "in several ways"
	}
	for username, want := range refused {
		err := b.SetPassword(t.Context(), database.Change{Name: "x", Username: username, Password: lessor.NewSecret("y")})
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, database.ErrUnreachable) {
			t.Errorf("%s: %v, not %q", username, err, want)
		}
	}
	if err := b.SetPassword(t.Context(), database.Change{Name: "x", Username: "a'b", Password: lessor.NewSecret("y")}); api.KindOf(err) != api.Invalid {
		t.Errorf("a name with a quote: %v", err)
	}
}

// A password that the server refuses at the first of an account's hosts is in force nowhere; at a later one, it is in force somewhere.
func TestSetPasswordInPart(t *testing.T) {
	s := mariatest.Start(t)
	b := newBench(t, s)
	name := b.human("CREATE USER HUMAN@'127.0.0.1' IDENTIFIED BY 'first', HUMAN@'localhost' IDENTIFIED BY 'first'")
	set := func(statements ...string) error {
		return b.SetPassword(t.Context(), database.Change{Name: "static/" + name, Username: name, Password: lessor.NewSecret("next"), Statements: statements})
	}
	good, bad := "ALTER USER '{{name}}'@'localhost' IDENTIFIED BY '{{password}}'", "ALTER USER '{{name}}'@'nowhere' IDENTIFIED BY '{{password}}'"
	if err := set(bad, good); err == nil || errors.Is(err, database.ErrUnreachable) {
		t.Errorf("at the first: %v", err)
	}
	if err := set(good, bad); !errors.Is(err, database.ErrUnreachable) || errors.Is(err, database.ErrUntouched) || !strings.Contains(err.Error(), "in part") {
		t.Errorf("at the second: %v", err)
	}
	if s.MySQL() {
		return
	}
	own := mariatest.Own(t)
	b = newBench(t, own)
	b.exec("INSTALL SONAME 'auth_ed25519'")
	name = b.human("CREATE USER HUMAN@'127.0.0.1' IDENTIFIED BY 'first', HUMAN@'localhost' IDENTIFIED VIA ed25519 USING PASSWORD('first')")
	b.exec("UNINSTALL SONAME 'auth_ed25519'")
	if err := set(); !errors.Is(err, database.ErrUnreachable) || !strings.Contains(err.Error(), "in part") {
		t.Errorf("without the plugin of the second host: %v", err)
	}
}

// An account that needs no right but its own changes its password itself, whichever of those that lessor knows it has.
func TestSetPasswordItself(t *testing.T) {
	s := mariatest.Start(t)
	b := newBench(t, s)
	name := b.human("CREATE USER HUMAN IDENTIFIED BY 'second'")
	for i, d := range []database.Database{b.Database, connection(t, s, func(c *database.Connection, _ *database.Secrets) { c.Authentication = plain })} {
		next := lessor.NewSecret(fmt.Sprint("third ", i))
		c := database.Change{Name: "static/self", Username: name, Password: next, Self: []lessor.Secret{lessor.NewSecret("first"), lessor.NewSecret("second")}}
		if i == 1 {
			c.Self = []lessor.Secret{lessor.NewSecret("third 0")}
		}
		if err := d.SetPassword(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if verdict, err := d.Login(t.Context(), name, next); err != nil || verdict != database.Accepted {
			t.Errorf("%v, %v", verdict, err)
		}
		c.Self = []lessor.Secret{lessor.NewSecret("wrong")}
		if err := d.SetPassword(t.Context(), c); err == nil || !strings.Contains(err.Error(), "none of its passwords") {
			t.Errorf("with a wrong password: %v", err)
		}
	}
}

func TestLoginSaysWhatIsSo(t *testing.T) {
	s := mariatest.Start(t)
	b := newBench(t, s)
	for name, c := range map[string]struct {
		definition string
		right      database.Verdict
		wrong      database.Verdict
	}{
		"plain":             {"CREATE USER HUMAN IDENTIFIED BY 'right'", database.Accepted, database.Refused},
		"locked":            {"CREATE USER HUMAN IDENTIFIED BY 'right' ACCOUNT LOCK", database.Barred, database.Refused},
		"expired":           {"CREATE USER HUMAN IDENTIFIED BY 'right' PASSWORD EXPIRE", database.Accepted, database.Refused},
		"elsewhere":         {"CREATE USER HUMAN@'10.11.12.13' IDENTIFIED BY 'right'", database.Unknown, database.Unknown},
		"here, too":         {"CREATE USER HUMAN@'10.11.12.13' IDENTIFIED BY 'right', HUMAN@'%' IDENTIFIED BY 'right'", database.Accepted, database.Refused},
		"with TLS":          {"CREATE USER HUMAN IDENTIFIED BY 'right' REQUIRE SSL", database.Unknown, database.Unknown},
		"with certificate":  {"CREATE USER HUMAN IDENTIFIED BY 'right' REQUIRE X509", database.Unknown, database.Unknown},
		"by a socket":       {"CREATE USER HUMAN IDENTIFIED " + bySocket(b), database.Unknown, database.Unknown},
		"no more than none": {"CREATE USER HUMAN IDENTIFIED BY 'right' WITH MAX_CONNECTIONS_PER_HOUR 1", database.Accepted, database.Refused},
	} {
		t.Run(name, func(t *testing.T) {
			human := b.human(c.definition)
			for _, password := range []string{"right", "right", "wrong", ""} {
				want := c.wrong
				if password == "right" {
					want = c.right
				}
				if verdict, err := b.Database.Login(t.Context(), human, lessor.NewSecret(password)); err != nil || verdict != want {
					t.Errorf("%q: %v, not %v, %v", password, verdict, want, err)
				}
			}
		})
	}
	if verdict, err := b.Database.Login(t.Context(), "nobody-here", lessor.NewSecret("x")); err != nil || verdict != database.Refused {
		t.Errorf("nobody: %v, %v", verdict, err)
	}
	definition, last := "CREATE USER HUMAN IDENTIFIED BY 'right'", database.Refused
	if b.MySQL() { // which says so of the wrong password that blocks
		last = database.Unknown
		definition += " FAILED_LOGIN_ATTEMPTS 1 PASSWORD_LOCK_TIME UNBOUNDED"
	} else {
		b.exec("SET GLOBAL max_password_errors = 1")
		defer b.exec("SET GLOBAL max_password_errors = 4294967295")
	}
	blocked := b.human(definition)
	for _, c := range []struct {
		password string
		want     database.Verdict
	}{{"right", database.Accepted}, {"wrong", last}, {"right", database.Unknown}, {"wrong", database.Unknown}} {
		if verdict, err := b.Database.Login(t.Context(), blocked, lessor.NewSecret(c.password)); err != nil || verdict != c.want {
			t.Errorf("where one wrong password blocks an account, %q: %v, %v", c.password, verdict, err)
		}
	}
}

// When lessor's own password changes, sessions are opened anew with it; those that are open stay until they are given back.
func TestUse(t *testing.T) {
	s := mariatest.Start(t)
	b := newBench(t, s)
	name, least := b.least()
	d := connection(t, s, least)
	if err := d.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	count := func() int {
		return ask[int](b, "SELECT COUNT(*) FROM information_schema.processlist WHERE USER="+text(name))
	}
	b.exec("ALTER USER " + name + " IDENTIFIED BY 'next'")
	if err := d.Ping(t.Context()); err != nil {
		t.Errorf("the session that is open: %v", err)
	}
	before := ask[int](b, "SELECT MAX(ID) FROM information_schema.processlist WHERE USER="+text(name))
	d.Use([]lessor.Secret{lessor.NewSecret("next"), lessor.NewSecret("less")})
	if err := d.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	b.until("the old session has ended", func() bool { return count() == 1 })
	if now := ask[int](b, "SELECT MAX(ID) FROM information_schema.processlist WHERE USER="+text(name)); now == before {
		t.Error("no new session was opened")
	}
}

// The password in force changes, while those that may be are tried, to one that was tried already.
func TestLoginsChangeMeanwhile(t *testing.T) {
	s := mariatest.Start(t)
	b := newBench(t, s)
	name, least := b.least()
	change := func(password string) {
		if _, err := b.root.ExecContext(t.Context(), "ALTER USER "+name+" IDENTIFIED BY '"+password+"'"); err != nil {
			t.Error(err)
		}
	}
	change("b")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var logins atomic.Int64
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			if logins.Add(1) == 2 {
				change("a")
			}
			there, err := net.Dial("tcp", s.Address())
			if err != nil {
				client.Close()
				return
			}
			go func() { _, _ = io.Copy(there, client); there.Close() }()
			go func() { _, _ = io.Copy(client, there); client.Close() }()
		}
	}()
	d := connection(t, s, least, func(c *database.Connection, _ *database.Secrets) {
		c.URL = fmt.Sprintf("{{username}}:{{password}}@tcp(%s)/?tls=false", l.Addr())
	})
	d.Use([]lessor.Secret{lessor.NewSecret("a"), lessor.NewSecret("b")})
	if err := d.Ping(t.Context()); err != nil {
		t.Errorf("after %d logins: %v", logins.Load(), err)
	}
	d.Use([]lessor.Secret{lessor.NewSecret("x"), lessor.NewSecret("y")})
	logins.Store(10)
	if err := d.Ping(t.Context()); !strings.Contains(fmt.Sprint(err), "refused lessor's own login") || logins.Load() != 14 {
		t.Errorf("%v after %d logins with wrong passwords", err, logins.Load()-10)
	}
}

// Whose sessions there are can be seen, and they can be ended; new ones are not kept away.
func TestSessions(t *testing.T) {
	s := mariatest.Own(t, mariatest.Setting("performance_schema", "1"))
	b := newBench(t, s)
	a, other := b.create(account()), b.create(account())
	var open []*mariatest.Session
	for range 2 {
		c, err := b.login(a)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	kept, err := b.login(other)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	names := []string{a.Username, other.Username, "nobody-here", strings.ToUpper(a.Username)}
	found, err := b.Sessions(t.Context(), names)
	if err != nil || len(found) != 3 {
		t.Fatalf("%v, %v", found, err)
	}
	for i, f := range found {
		if f.Client != "127.0.0.1" && f.Client != "localhost" || f.Application != "mariatest" || (f.Username == other.Username) != (i == 2) {
			t.Errorf("%+v", f)
		}
	}
	for range 2 {
		if err := b.End(t.Context(), a.Username); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range open {
		if _, err := c.ExecContext(t.Context(), "SELECT 1"); err == nil {
			t.Error("a session was not ended")
		}
	}
	if _, err := kept.ExecContext(t.Context(), "SELECT 1"); err != nil {
		t.Errorf("another's session was ended: %v", err)
	}
	if c, err := b.login(a); err != nil {
		t.Errorf("a new session: %v", err)
	} else {
		c.Close()
	}
	b.until("they are gone", func() bool {
		found, err := b.Sessions(t.Context(), []string{a.Username})
		return err == nil && len(found) == 0
	})
	if found, err := b.Sessions(t.Context(), nil); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	b.remove(a, other)
}

// MariaDB's parsec, which lessor cannot log in by: what the server has of a password is right by its own word.
func TestParsec(t *testing.T) {
	// What MariaDB 11.8 made of a password.
	const stored = "P0:WmNtKDugZrpK1HWzs773Uzei:vqKsK+BzYd9hC87tzG7LBCHtUCEfpTxej057OXKvXK0"
	salt, err := base64.StdEncoding.DecodeString(strings.Split(stored, ":")[1])
	if err != nil {
		t.Fatal(err)
	}
	if got := parsecKey("secret", salt); got != stored {
		t.Errorf("got %s", got)
	}
	s := mariatest.Own(t)
	b := newBench(t, s)
	if _, err := b.root.ExecContext(t.Context(), "INSTALL SONAME 'auth_parsec'"); err != nil {
		t.Skipf("the server does not have it: %v", err)
	}
	name := b.human("CREATE USER HUMAN IDENTIFIED VIA parsec USING PASSWORD('first')")
	next := database.Change{Name: "static/" + name, Username: name, Password: lessor.NewSecret("second")}
	if err := b.SetPassword(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if got := ask[string](b, "SELECT authentication_string FROM mysql.user WHERE User="+text(name)); got != parsecHash("second") {
		t.Errorf("the server has %s", got)
	}
	if verdict, err := b.Database.Login(t.Context(), name, next.Password); err != nil || verdict != database.Unknown {
		t.Errorf("%v, %v", verdict, err)
	}
	a := account()
	a.Creation = []string{"CREATE USER '{{name}}'@'%' IDENTIFIED VIA parsec USING PASSWORD('{{password}}')"}
	b.create(a)
	client := exec.Command("mariadb", "--no-defaults", "--skip-ssl", "-h127.0.0.1", fmt.Sprint("-P", s.Port), "-u"+a.Username, "-Ne", "SELECT 'in'")
	client.Env = append(os.Environ(), "MYSQL_PWD="+a.Password.Reveal())
	if out, err := client.CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
		t.Log("there is no client that could log in")
	} else if err != nil || strings.TrimSpace(string(out)) != "in" {
		t.Errorf("the server's own client: %v, %s", err, out)
	}
	b.remove(a)
}

// What a server's own plugins say of a password is told, and one that is set again is taken where it counts as used.
func TestPasswordThatWasUsed(t *testing.T) {
	s := mariatest.Own(t)
	b := newBench(t, s)
	if _, err := b.root.ExecContext(t.Context(), "INSTALL SONAME 'password_reuse_check'"); err != nil {
		t.Skipf("the server does not have it: %v", err)
	}
	name := b.human("CREATE USER HUMAN IDENTIFIED BY 'first'")
	set := func(d database.Database, password string) error {
		return d.SetPassword(t.Context(), database.Change{Name: "static/" + name, Username: name, Password: lessor.NewSecret(password)})
	}
	if err := set(b.Database, "second"); err == nil || !strings.Contains(err.Error(), "say password_authentication=password") {
		t.Errorf("a hash: %v", err)
	}
	told := connection(t, s, func(c *database.Connection, _ *database.Secrets) { c.Authentication = plain })
	for _, password := range []string{"second", "second", "third"} {
		if err := set(told, password); err != nil {
			t.Errorf("%s: %v", password, err)
		}
	}
	if err := set(told, "second"); err == nil || errors.Is(err, database.ErrUnreachable) || !strings.Contains(err.Error(), "password_reuse_check") {
		t.Errorf("one of before: %v", err)
	}
}
