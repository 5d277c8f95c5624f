package mysql

import (
	"errors"
	"strings"
	"testing"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mariatest"
)

// What only MySQL has: scripts/others runs these there.

func newMySQL(t *testing.T) *bench {
	t.Helper()
	s := mariatest.Start(t)
	if !s.MySQL() {
		t.Skip("MariaDB has nothing of the kind")
	}
	return newBench(t, s)
}

// verdicts tries passwords of an account, each by what it is to be.
func (b *bench) verdicts(username string, all map[string]database.Verdict) {
	b.t.Helper()
	for password, want := range all {
		if verdict, err := b.Database.Login(b.t.Context(), username, lessor.NewSecret(password)); err != nil || verdict != want {
			b.t.Errorf("%s, by %q: %v, not %v, %v", username, password, verdict, want, err)
		}
	}
}

// A second password, which somebody had an account retain, does not survive a rotation.
func TestSecondPasswordDies(t *testing.T) {
	b := newMySQL(t)
	for what, change := range map[string]database.Change{
		"by lessor":        {},
		"by statements":    {Statements: []string{"ALTER USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'"}},
		"by itself":        {Self: []lessor.Secret{lessor.NewSecret("second")}},
		"by its other one": {Self: []lessor.Secret{lessor.NewSecret("first")}},
	} {
		t.Run(what, func(t *testing.T) {
			name := b.human("CREATE USER HUMAN IDENTIFIED BY 'first'")
			b.exec("ALTER USER " + text(name) + " IDENTIFIED BY 'second' RETAIN CURRENT PASSWORD")
			b.exec("GRANT APPLICATION_PASSWORD_ADMIN ON *.* TO " + text(name))
			b.verdicts(name, map[string]database.Verdict{"first": database.Accepted, "second": database.Accepted})
			change.Name, change.Username, change.Password = "static/"+name, name, lessor.NewSecret("third")
			if err := b.SetPassword(t.Context(), change); err != nil {
				t.Fatal(err)
			}
			b.verdicts(name, map[string]database.Verdict{"first": database.Refused, "second": database.Refused, "third": database.Accepted})
		})
	}
	if err := usual.CheckRotation("app", []string{"ALTER USER '{{name}}' IDENTIFIED BY '{{password}}' Retain /* it */ CURRENT PASSWORD"}); err == nil {
		t.Error("statements that retain a password are taken")
	}
}

// A password that is set again is in the history that the server keeps; one that was in force earlier is refused.
func TestPasswordHistory(t *testing.T) {
	b := newMySQL(t)
	name := b.human("CREATE USER HUMAN IDENTIFIED BY 'first' PASSWORD HISTORY 5")
	for _, password := range []string{"second", "second", "third"} {
		c := database.Change{Name: "static/" + name, Username: name, Password: lessor.NewSecret(password)}
		if err := b.SetPassword(t.Context(), c); err != nil {
			t.Errorf("%s: %v", password, err)
		}
	}
	err := b.SetPassword(t.Context(), database.Change{Name: "static/" + name, Username: name, Password: lessor.NewSecret("second")})
	if err == nil || errors.Is(err, database.ErrUnreachable) || !strings.Contains(err.Error(), "(error 3638)") {
		t.Errorf("one of before: %v", err)
	}
	b.verdicts(name, map[string]database.Verdict{"second": database.Refused, "third": database.Accepted})
}

// An account that has to say its current password says it.
func TestCurrentPasswordIsRequired(t *testing.T) {
	b := newMySQL(t)
	name := b.human("CREATE USER HUMAN IDENTIFIED BY 'first' PASSWORD REQUIRE CURRENT")
	c := database.Change{Name: "static/" + name, Username: name, Password: lessor.NewSecret("second"), Self: []lessor.Secret{lessor.NewSecret("first")}}
	if err := b.SetPassword(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	b.verdicts(name, map[string]database.Verdict{"first": database.Refused, "second": database.Accepted})
}

// Who makes a view cannot keep his account by it: it is locked, until it can be dropped.
func TestAccountThatIsADefiner(t *testing.T) {
	b := newMySQL(t)
	_, least := b.least("PROCESS ON *.*", "CONNECTION ADMIN ON *.*")
	d := connection(t, b.Server, least)
	a, other := account(), b.create(account())
	a.Creation = append(a.Creation, "GRANT CREATE VIEW ON "+b.name+".* TO '{{name}}'@'%'")
	b.create(a)
	c, err := b.login(a)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.ExecContext(t.Context(), "CREATE VIEW "+b.name+".mine AS SELECT 1"); err != nil {
		t.Fatal(err)
	}
	errs := d.Remove(t.Context(), []database.Account{other, a})
	if errs[0] != nil || errs[1] == nil || !strings.Contains(errs[1].Error(), "which is locked") {
		t.Errorf("got %v", errs)
	}
	if _, err := c.ExecContext(t.Context(), "SELECT 1"); err == nil {
		t.Error("its session goes on")
	}
	if c, err := b.login(a); err == nil {
		c.Close()
		t.Error("it logs in still")
	}
	b.exec("DROP VIEW mine")
	if errs := d.Remove(t.Context(), []database.Account{a}); errs[0] != nil || b.has(a) {
		t.Errorf("without the view: %v", errs[0])
	}
}

// What lessor's account lacks for accounts of the system's is told.
func TestSystemUser(t *testing.T) {
	b := newMySQL(t)
	_, least := b.least("PROCESS ON *.*", "CONNECTION ADMIN ON *.*")
	d := connection(t, b.Server, least)
	name := b.human("CREATE USER HUMAN IDENTIFIED BY 'right'")
	b.exec("GRANT SYSTEM_USER ON *.* TO " + text(name))
	c, err := b.Server.Login(t.Context(), name, "right", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for what, err := range map[string]error{
		"set": d.SetPassword(t.Context(), database.Change{Name: "x", Username: name, Password: lessor.NewSecret("next")}),
		"end": d.End(t.Context(), name),
	} {
		if err == nil || errors.Is(err, database.ErrUnreachable) || !strings.Contains(err.Error(), "SYSTEM_USER") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
