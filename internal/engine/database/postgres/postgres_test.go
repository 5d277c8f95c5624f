package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// bench is a database of its own at the shared server, a connection to it and the superuser's session.
type bench struct {
	*pgtest.Server
	t    testing.TB
	name string
	root *pgx.Conn
	database.Database
}

func newBench(t testing.TB, s *pgtest.Server, change ...func(*database.Connection, *database.Secrets)) *bench {
	t.Helper()
	b := &bench{Server: s, t: t, name: s.Database(t)}
	b.root = s.Connect(t, b.name)
	b.Database = connection(t, s, b.name, change...)
	return b
}

// connection is one of the superuser, changed.
func connection(t testing.TB, s *pgtest.Server, name string, change ...func(*database.Connection, *database.Secrets)) database.Database {
	t.Helper()
	c := &database.Connection{URL: s.URL("{{username}}", "{{password}}", name), Username: pgtest.Superuser, ScramIterations: 1}
	secrets := database.Secrets{Password: lessor.NewSecret(s.Password())}
	for _, f := range change {
		f(c, &secrets)
	}
	if err := (Driver{}).Check(c, secrets); err != nil {
		t.Fatal(err)
	}
	d, err := Driver{}.Open(c, secrets)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.(*server).pool.Close)
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
	a.Creation = []string{`CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`}
	return a
}

func (b *bench) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.root.Exec(b.t.Context(), sql, args...); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

func ask[T any](b *bench, sql string, args ...any) (v T) {
	b.t.Helper()
	if err := b.root.QueryRow(b.t.Context(), sql, args...).Scan(&v); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func (b *bench) has(a database.Account) bool {
	b.t.Helper()
	return ask[bool](b, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", a.Username)
}

func (b *bench) login(a database.Account) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	return b.Server.Login(ctx, a.Username, a.Password.Reveal(), b.name)
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

// What an account bears at the server: its mark, its end, and a verifier in the place of its password.
func TestWhatAnAccountBears(t *testing.T) {
	b := newBench(t, pgtest.Start(t))
	a := b.create(account())
	if got, want := ask[string](b, "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1", a.Username), "lessor lease="+database.Mark(a.Lease); got != want {
		t.Errorf("comment %q, want %q", got, want)
	}
	end := func() time.Duration {
		until := ask[time.Time](b, "SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", a.Username)
		return until.Sub(a.Until)
	}
	if d := end(); d < database.Skew || d > database.Skew+time.Second {
		t.Errorf("the account ends %v after its lease", d)
	}
	if stored := ask[string](b, "SELECT rolpassword FROM pg_authid WHERE rolname = $1", a.Username); !strings.HasPrefix(stored, "SCRAM-SHA-256$1:") {
		t.Errorf("stored as %q", stored)
	}
	a.Until = a.Until.Add(time.Hour)
	if err := b.Renew(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if d := end(); d < database.Skew || d > database.Skew+time.Second {
		t.Errorf("renewed, the account ends %v after its lease", d)
	}
	b.remove(a)
}

func TestVerifierIsAccepted(t *testing.T) {
	s := pgtest.Start(t)
	for _, n := range []int64{1, 4096} {
		b := newBench(t, s, func(c *database.Connection, _ *database.Secrets) { c.ScramIterations = n })
		a := b.create(account())
		if stored := ask[string](b, "SELECT rolpassword FROM pg_authid WHERE rolname = $1", a.Username); !strings.HasPrefix(stored, fmt.Sprintf("SCRAM-SHA-256$%d:", n)) {
			t.Errorf("stored as %q", stored)
		}
		c, err := b.login(a)
		if err != nil {
			t.Fatalf("%d iterations: %v", n, err)
		}
		c.Close(t.Context())
		b.remove(a)
	}
}

// RFC 7677, section 3, has the user's keys of "pencil".
func TestVerifier(t *testing.T) {
	got, err := verifier("pencil", []byte{0x5b, 0x6d, 0x99, 0x68, 0x9d, 0x12, 0x35, 0x8e, 0xec, 0xa0, 0x4b, 0x14, 0x12, 0x36, 0xfa, 0x81}, 4096)
	if want := "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="; err != nil || got != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
	if _, err := verifier("pässword", []byte("salt"), 1); err == nil {
		t.Error("a password that SASLprep may change was hashed")
	}
}

// A password that is sent as it is has no quotes.
func TestPlainPassword(t *testing.T) {
	b := newBench(t, pgtest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.Authentication = plain })
	a := account()
	a.Password = lessor.NewSecret("it's")
	if err := b.Create(t.Context(), a); api.KindOf(err) != api.Invalid || b.has(a) {
		t.Errorf("a password with a quote: %v", err)
	}
}

// The password is in no log of the server, even of one that logs every statement; that of the connection neither.
func TestPasswordIsNotLogged(t *testing.T) {
	s := pgtest.Own(t, pgtest.Setting("log_statement", "all"), pgtest.Setting("log_min_duration_statement", "0"))
	b := newBench(t, s)
	a := b.create(account())
	if c, err := b.login(a); err == nil {
		c.Close(t.Context())
	}
	bad := account()
	bad.Creation = append(bad.Creation, "SELECT 1/0")
	if err := b.Create(t.Context(), bad); err == nil {
		t.Error("created")
	}
	b.remove(a, bad)
	log, err := os.ReadFile(s.Log)
	if err != nil || !strings.Contains(string(log), "SCRAM-SHA-256$") {
		t.Fatalf("the log has no statements: %v", err)
	}
	for _, secret := range []string{a.Password.Reveal(), bad.Password.Reveal(), s.Password()} {
		if strings.Contains(string(log), secret) {
			t.Errorf("the server logged %q", secret)
		}
	}
}

// Whatever goes wrong in the statements, nothing stays behind, and no secret is told.
func TestCreateFails(t *testing.T) {
	b := newBench(t, pgtest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.Authentication = plain })
	b.exec("CREATE TABLE rolled_back (name text)")
	for name, c := range map[string]struct{ creation, want string }{
		"second statement":    {`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}'; SELECT 1/0`, "division by zero (SQLSTATE 22012)"},
		"no role":             {`SELECT '{{name}}'`, "does not exist (SQLSTATE 42704)"},
		"syntax":              {`CREATE ROLE "{{name}}" PASSWORD '{{password}}' 'X{{password}}'`, "42601"},
		"quotes the password": {`CREATE ROLE "{{name}}"; SELECT '{{password}}'::int`, "invalid input syntax"},
		"raises it":           {`CREATE ROLE "{{name}}"; DO $$ BEGIN RAISE EXCEPTION 'so: {{password}}'; END $$`, "so: [secret]"},
		"conflict":            {`CREATE ROLE "{{name}}"; CREATE ROLE "postgres"`, "42710"},
	} {
		t.Run(name, func(t *testing.T) {
			a := account()
			a.Creation = []string{c.creation}
			a.Rollback = []string{`INSERT INTO rolled_back VALUES ('{{name}}')`}
			err := b.Create(t.Context(), a)
			if err == nil || !strings.Contains(err.Error(), c.want) || api.KindOf(err) != api.Upstream || errors.Is(err, database.ErrUnreachable) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(fmt.Sprintf("%v %v", err, errors.Unwrap(err)), "word") {
				t.Errorf("a secret is told: %v", err)
			}
			if b.has(a) {
				t.Error("the role stayed")
			}
			if n := ask[int](b, "SELECT count(*) FROM rolled_back WHERE name = $1", a.Username); n != 1 {
				t.Errorf("rollback_statements ran %d times", n)
			}
			b.remove(a)
		})
	}
}

// A Create that hangs in its statements is ended by Remove, not waited for, and its role never appears.
func TestRemoveEndsItsPredecessor(t *testing.T) {
	b := newBench(t, pgtest.Start(t))
	a := account()
	a.Creation = append(a.Creation, "SELECT pg_sleep(60)")
	done := make(chan error)
	go func() { done <- b.Create(t.Context(), a) }()
	for ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND query LIKE '%pg_sleep%'", sessionOf+short(a.Lease)) == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	start := time.Now()
	b.remove(a)
	if d := time.Since(start); d > longest-10*time.Second {
		t.Errorf("Remove took %v", d)
	}
	if err := <-done; !errors.Is(err, database.ErrUnreachable) {
		t.Errorf("the predecessor: %v", err)
	}
	if b.has(a) {
		t.Error("the predecessor's role appeared")
	}
}

// Sessions end, what the account owns is given away with what is in it, and rights it had do not keep it.
func TestRemoveWithSessionsAndBelongings(t *testing.T) {
	b := newBench(t, pgtest.Start(t))
	b.exec("CREATE TABLE shared (n int); GRANT CREATE ON SCHEMA public TO PUBLIC")
	grant := `GRANT ALL ON shared TO "{{name}}"; GRANT CONNECT ON DATABASE ` + b.name + ` TO "{{name}}"; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO "{{name}}"`
	var as []database.Account
	for i := range 6 {
		a := account()
		a.Creation = append(a.Creation, grant)
		b.create(a)
		as = append(as, a)
		if i%2 == 0 {
			continue
		}
		c, err := b.login(a)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(t.Context())
		if _, err := c.Exec(t.Context(), fmt.Sprintf("CREATE TABLE owned_%d (n int); INSERT INTO owned_%d VALUES (7); CREATE TEMP TABLE passing (n int)", i, i)); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := c.Exec(context.Background(), "SELECT 1"); err == nil {
				t.Error("a session outlived its account")
			}
		}()
		if i == 5 {
			c.Close(t.Context())
		}
	}
	b.remove(as...)
	for _, i := range []int{1, 3, 5} {
		if n := ask[int](b, fmt.Sprintf("SELECT n FROM owned_%d", i)); n != 7 {
			t.Errorf("owned_%d has %d", i, n)
		}
	}
	if n := ask[int](b, "SELECT count(*) FROM pg_stat_activity s LEFT JOIN pg_roles r ON r.oid = s.usesysid WHERE s.usesysid IS NOT NULL AND r.oid IS NULL"); n != 0 {
		t.Errorf("%d sessions of nobody", n)
	}
}

func TestRemoveSaysWhatKeepsAnAccount(t *testing.T) {
	b := newBench(t, pgtest.Start(t))
	other := b.Server.Database(t)
	elsewhere := b.Connect(t, other)
	a, fine := b.create(account()), b.create(account())
	if _, err := elsewhere.Exec(t.Context(), fmt.Sprintf(`CREATE TABLE kept (n int); ALTER TABLE kept OWNER TO %q`, a.Username)); err != nil {
		t.Fatal(err)
	}
	errs := b.Database.Remove(t.Context(), []database.Account{a, fine})
	if errs[0] == nil || !strings.Contains(errs[0].Error(), other) || errs[1] != nil || b.has(fine) {
		t.Errorf("got %v", errs)
	}
	if _, err := b.login(a); err == nil {
		t.Error("the account still logs in")
	}
	if _, err := elsewhere.Exec(t.Context(), "DROP TABLE kept"); err != nil {
		t.Fatal(err)
	}
	b.remove(a)
}

func TestRevocationStatements(t *testing.T) {
	b := newBench(t, pgtest.Start(t))
	b.exec("CREATE TABLE revoked (name text)")
	custom := func(sql ...string) database.Account {
		a := account()
		a.Revocation = sql
		return b.create(a)
	}
	drops := custom(`INSERT INTO revoked VALUES ('{{name}}'); DROP ROLE "{{name}}"`)
	c, err := b.login(drops)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	b.remove(drops, drops, b.create(account()))
	if n := ask[int](b, "SELECT count(*) FROM revoked WHERE name = $1", drops.Username); n != 1 {
		t.Errorf("revocation_statements ran %d times", n)
	}
	if _, err := c.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("a session outlived its account")
	}
	keeps := custom(`ALTER ROLE "{{name}}" NOLOGIN`)
	if errs := b.Database.Remove(t.Context(), []database.Account{keeps}); errs[0] != nil {
		t.Errorf("a role without LOGIN: %v", errs[0])
	}
	forgets := custom(`ALTER ROLE "{{name}}" LOGIN`)
	if errs := b.Database.Remove(t.Context(), []database.Account{forgets}); errs[0] == nil || !strings.Contains(errs[0].Error(), "able to log in") {
		t.Errorf("a role that may log in: %v", errs[0])
	}
	breaks := custom("SELECT 1/0")
	if errs := b.Database.Remove(t.Context(), []database.Account{breaks}); errs[0] == nil || errors.Is(errs[0], database.ErrUnreachable) {
		t.Errorf("statements that fail: %v", errs[0])
	}
	for _, a := range []database.Account{keeps, forgets, breaks} {
		a.Revocation = nil
		b.remove(a)
	}
}

func TestRenewStatements(t *testing.T) {
	b := newBench(t, pgtest.Start(t))
	a := account()
	a.Renewal = []string{`ALTER ROLE "{{name}}" VALID UNTIL '{{expiration}}' CONNECTION LIMIT 7 -- and that`}
	b.create(a)
	if err := b.Renew(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if n := ask[int](b, "SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", a.Username); n != 7 {
		t.Errorf("limit %d", n)
	}
	b.remove(a)
}

// Accounts whose rights are on the same table collide in its one row of the catalog; all are made all the same.
func TestConcurrentGrants(t *testing.T) {
	b := newBench(t, pgtest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.MaxOpen = 8 })
	b.exec("CREATE TABLE popular (n int)")
	as := make([]database.Account, 120)
	var wg sync.WaitGroup
	for i := range as {
		as[i] = account()
		as[i].Creation = append(as[i].Creation, `GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{{name}}"`)
		wg.Go(func() {
			if err := b.Create(t.Context(), as[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.remove(as...)
}

// A superuser is not needed.
func TestAccountWithCreaterole(t *testing.T) {
	s := pgtest.Start(t)
	c := s.Connect(t, "")
	owner := fmt.Sprintf("lessor_%d", serial.Add(1))
	if _, err := c.Exec(t.Context(), fmt.Sprintf("CREATE ROLE %s LOGIN CREATEROLE PASSWORD 'less'", owner)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Exec(context.Background(), "DROP ROLE "+owner) })
	b := newBench(t, s, func(c *database.Connection, s *database.Secrets) {
		c.Username, s.Password = owner, lessor.NewSecret("less")
	})
	b.exec(fmt.Sprintf("ALTER DATABASE %s OWNER TO %s; ALTER SCHEMA public OWNER TO %s", b.name, owner, owner))
	a := account()
	a.Creation = append(a.Creation, `GRANT CREATE, USAGE ON SCHEMA public TO "{{name}}"`)
	b.create(a)
	session, err := b.login(a)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close(t.Context())
	if _, err := session.Exec(t.Context(), "CREATE TABLE made (n int)"); err != nil {
		t.Fatal(err)
	}
	b.remove(a, b.create(account()))
	if got := ask[string](b, "SELECT tableowner FROM pg_tables WHERE tablename = 'made'"); got != owner {
		t.Errorf("made belongs to %s", got)
	}
	b.exec("ALTER SCHEMA public OWNER TO postgres; DROP TABLE made")
	b.exec("ALTER DATABASE " + b.name + " OWNER TO postgres")
	if _, err := b.Marked(t.Context()); err != nil {
		t.Error(err)
	}
	b.Database.(*server).pool.Close()
}

// A role that may create others changes passwords: its own, and those of accounts that are not of its making. From PostgreSQL 16 on it needs ADMIN on these,
// and on what it grants; who lacks that is told so. Accounts that one of lessor's accounts has made are removed by the next that is a member of it.
func TestRotationWithCreaterole(t *testing.T) {
	s := pgtest.Start(t)
	root := newBench(t, s)
	first, next := fmt.Sprintf("lessor_%d", serial.Add(1)), fmt.Sprintf("lessor_%d", serial.Add(1))
	user, readers := fmt.Sprintf("user_%d", serial.Add(1)), fmt.Sprintf("readers_%d", serial.Add(1))
	root.exec(fmt.Sprintf("CREATE ROLE %s LOGIN CREATEROLE PASSWORD 'less'; CREATE ROLE %s LOGIN CREATEROLE PASSWORD 'less'", first, next))
	root.exec(fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'word'; CREATE ROLE %s", user, readers))
	t.Cleanup(func() {
		_, _ = root.root.Exec(context.Background(), fmt.Sprintf("DROP ROLE %s, %s, %s, %s", user, readers, next, first))
	})
	as := func(name, password string) *bench {
		b := &bench{Server: s, t: t, name: root.name, root: root.root}
		b.Database = connection(t, s, root.name, func(c *database.Connection, s *database.Secrets) {
			c.Username, s.Password = name, lessor.NewSecret(password)
		})
		return b
	}
	verdict := func(name, password string) database.Verdict {
		t.Helper()
		v, err := root.Database.Login(t.Context(), name, lessor.NewSecret(password))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	change := func(name, password string) database.Change {
		return database.Change{Name: name, Username: name, Password: lessor.NewSecret(password)}
	}
	reader := func() database.Account {
		a := account()
		a.Creation = append(a.Creation, fmt.Sprintf(`GRANT %s TO "{{name}}"`, readers))
		return a
	}

	b, successor := as(first, "less"), as(next, "less")
	narrow := ask[int](root, "SELECT current_setting('server_version_num')::int") >= 160000
	admin := "ADMIN OPTION"
	if narrow {
		admin = "ADMIN TRUE, INHERIT FALSE, SET FALSE"
		if err := b.SetPassword(t.Context(), change(user, "changed")); err == nil || !strings.Contains(err.Error(), "ADMIN") {
			t.Errorf("a password is changed without ADMIN: %v", err)
		}
		if err := b.Create(t.Context(), reader()); err == nil || !strings.Contains(err.Error(), "ADMIN") {
			t.Errorf("a role is granted without ADMIN: %v", err)
		}
	}
	root.exec(fmt.Sprintf("GRANT %s, %s TO %s WITH %s", user, readers, first, admin))
	if err := b.SetPassword(t.Context(), change(user, "changed")); err != nil {
		t.Fatal(err)
	}
	if verdict(user, "changed") != database.Accepted || verdict(user, "word") != database.Refused {
		t.Error("the password was not changed")
	}
	if err := b.SetPassword(t.Context(), change(first, "more")); err != nil {
		t.Fatal(err)
	}
	b.Use([]lessor.Secret{lessor.NewSecret("more")})
	if verdict(first, "more") != database.Accepted || verdict(first, "less") != database.Refused {
		t.Error("lessor's own password was not changed")
	}

	a, left := b.create(reader()), b.create(reader())
	b.remove(a)
	if narrow {
		if err := successor.Renew(t.Context(), left); err == nil || !strings.Contains(err.Error(), "ADMIN") {
			t.Errorf("an account of another's making is renewed: %v", err)
		}
		if err := successor.Remove(t.Context(), []database.Account{left})[0]; err == nil || !strings.Contains(err.Error(), "ADMIN") {
			t.Errorf("an account of another's making is removed: %v", err)
		}
	}
	root.exec(fmt.Sprintf("GRANT %s TO %s", first, next))
	if err := successor.Renew(t.Context(), left); err != nil {
		t.Error(err)
	}
	successor.remove(left)
}

// Statements that change their session do not change it for others.
func TestSessionsAreNotShared(t *testing.T) {
	b := newBench(t, pgtest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.MaxOpen = 1 })
	a := account()
	a.Creation = append([]string{"SET ROLE pg_monitor; RESET ROLE; SET search_path = nowhere; SET ROLE postgres"}, a.Creation...)
	b.create(a)
	next := account()
	next.Creation = append(next.Creation, `DO $$ BEGIN IF current_setting('search_path') = 'nowhere' THEN RAISE 'changed'; END IF; END $$`)
	b.create(next)
	b.remove(a, next)
}

// The password in force changes, while those that may be are tried, to one that was tried already.
func TestLoginsChangeMeanwhile(t *testing.T) {
	s := pgtest.Start(t)
	root := s.Connect(t, "")
	name := fmt.Sprintf("own_%d", serial.Add(1))
	change := func(password string) {
		if _, err := root.Exec(context.Background(), "ALTER ROLE "+name+" PASSWORD '"+password+"'"); err != nil {
			t.Error(err)
		}
	}
	if _, err := root.Exec(t.Context(), "CREATE ROLE "+name+" LOGIN"); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = root.Exec(context.Background(), "DROP ROLE "+name) }()
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
			there, err := net.Dial("tcp", net.JoinHostPort(s.Host, fmt.Sprint(s.Port)))
			if err != nil {
				client.Close()
				return
			}
			go func() { _, _ = io.Copy(there, client); there.Close() }()
			go func() { _, _ = io.Copy(client, there); client.Close() }()
		}
	}()
	d := connection(t, s, "postgres", func(c *database.Connection, _ *database.Secrets) {
		c.URL, c.Username = fmt.Sprintf("postgresql://{{username}}:{{password}}@%s/postgres?sslmode=disable", l.Addr()), name
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

// The server hangs, dies, comes back: calls end in time with ErrUnreachable, and what they left is put right by the next.
func TestServerTrouble(t *testing.T) {
	s := pgtest.Own(t)
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
		if d := time.Since(start); d >= defaultConnectTimeout {
			t.Errorf("%s took %v", what, d)
		}
		if err != nil && strings.Contains(err.Error(), s.Password()) {
			t.Errorf("%s tells the password: %v", what, err)
		}
	}
	during := account()
	all := func(what string) {
		call(what+", create", func(ctx context.Context) error { return b.Create(ctx, during) })
		call(what+", renew", func(ctx context.Context) error { return b.Renew(ctx, before) })
		call(what+", remove", func(ctx context.Context) error { return b.Database.Remove(ctx, []database.Account{before})[0] })
		call(what+", ping", b.Ping)
	}
	reconnect := func() {
		var err error
		for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(50 * time.Millisecond) {
			if b.root, err = s.Login(t.Context(), pgtest.Superuser, s.Password(), b.name); err == nil {
				return
			}
		}
		t.Fatal(err)
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
	reconnect()
	b.create(during)
	b.remove(during, before)

	// It dies while statements run.
	during = account()
	during.Creation = append(during.Creation, "SELECT pg_sleep(60)")
	done := make(chan error)
	go func() { done <- b.Create(t.Context(), during) }()
	for ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()") == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, database.ErrUnreachable) {
		t.Errorf("dying: %v", err)
	}
	if err := s.Up(); err != nil {
		t.Fatal(err)
	}
	reconnect()
	b.remove(during)
}

// What a call started ends at the server, too, when the call's time is over.
func TestStatementsEnd(t *testing.T) {
	b := newBench(t, pgtest.Start(t))
	a := account()
	a.Creation = append(a.Creation, "SELECT pg_sleep(60)")
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if err := b.Create(ctx, a); !errors.Is(err, database.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	for start := time.Now(); ask[int](b, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", sessionOf+short(a.Lease)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 30*time.Second {
			t.Fatal("the statement goes on at the server")
		}
	}
	if b.has(a) {
		t.Error("the role was made")
	}
}

func TestTLS(t *testing.T) {
	s := pgtest.Start(t, pgtest.TLS())
	other, err := pgtest.OtherCA()
	if err != nil {
		t.Fatal(err)
	}
	url := func(host, mode string) string {
		return strings.Replace(fmt.Sprintf("postgresql://{{username}}:{{password}}@%s:%d/postgres?sslmode=%s", host, s.Port, mode), "?sslmode=-", "", 1)
	}
	for name, c := range map[string]struct {
		conn database.Connection
		want string
	}{
		"verify-full":               {database.Connection{URL: url("localhost", "verify-full"), CA: string(s.CA)}, ""},
		"by address":                {database.Connection{URL: url("127.0.0.1", "verify-full"), CA: string(s.CA)}, ""},
		"by another name":           {database.Connection{URL: url("127.0.0.1", "verify-full"), CA: string(s.CA), ServerName: "localhost"}, ""},
		"wrong name":                {database.Connection{URL: url("localhost", "verify-full"), CA: string(s.CA), ServerName: "db.example.com"}, "not trusted"},
		"wrong CA":                  {database.Connection{URL: url("localhost", "verify-full"), CA: string(other)}, "not trusted"},
		"wrong CA, verify-ca":       {database.Connection{URL: url("localhost", "verify-ca"), CA: string(other)}, "not trusted"},
		"verify-ca":                 {database.Connection{URL: url("localhost", "verify-ca"), CA: string(s.CA), ServerName: "whatever"}, ""},
		"system's CAs":              {database.Connection{URL: url("localhost", "verify-full")}, "not trusted"},
		"require":                   {database.Connection{URL: url("localhost", "require")}, ""},
		"require with the wrong CA": {database.Connection{URL: url("localhost", "require"), CA: string(other)}, "not trusted"},
		"prefer":                    {database.Connection{URL: url("localhost", "prefer")}, ""},
		"by default, with a CA":     {database.Connection{URL: url("localhost", "-"), CA: string(other)}, "not trusted"},
	} {
		t.Run(name, func(t *testing.T) {
			d := connection(t, s, "", func(conn *database.Connection, _ *database.Secrets) {
				*conn = c.conn
				conn.Username = pgtest.Superuser
			})
			err := d.Ping(t.Context())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	plainServer := pgtest.Start(t)
	d := connection(t, plainServer, "postgres", func(c *database.Connection, _ *database.Secrets) {
		c.URL = strings.Replace(c.URL, "disable", "require", 1)
	})
	if err := d.Ping(t.Context()); err == nil {
		t.Error("sslmode=require talked to a server without TLS")
	}
}

// What keeps an account from logging in comes after its password.
func TestLoginOfWhoMayNot(t *testing.T) {
	b := newBench(t, pgtest.Start(t))
	user := fmt.Sprintf("user_%d", serial.Add(1))
	b.exec(fmt.Sprintf("CREATE ROLE %s NOLOGIN PASSWORD 'right'", user))
	t.Cleanup(func() { _, _ = b.root.Exec(context.Background(), "DROP ROLE "+user) })
	for password, want := range map[string]database.Verdict{"right": database.Barred, "wrong": database.Refused} {
		if got, err := b.Database.Login(t.Context(), user, lessor.NewSecret(password)); err != nil || got != want {
			t.Errorf("the %s password: %v, %v", password, got, err)
		}
	}
}

func TestPingTellsWhatIsWrong(t *testing.T) {
	s := pgtest.Start(t)
	for name, c := range map[string]struct {
		change func(*database.Connection, *database.Secrets)
		want   string
	}{
		"password": {func(_ *database.Connection, s *database.Secrets) { s.Password = lessor.NewSecret("hush-hush") }, "refused lessor's own login"},
		"database": {func(c *database.Connection, _ *database.Secrets) {
			c.URL = s.URL("{{username}}", "{{password}}", "nowhere")
		}, "no such database: see connection_url"},
		"no TLS": {func(c *database.Connection, _ *database.Secrets) {
			c.URL = strings.Replace(c.URL, "disable", "verify-full", 1)
		}, "it speaks no TLS"},
		"port":   {func(c *database.Connection, _ *database.Secrets) { c.URL = "postgresql://127.0.0.1:1/x" }, "connection refused"},
		"name":   {func(c *database.Connection, _ *database.Secrets) { c.URL = "postgresql://db.invalid/x?sslmode=disable" }, "name cannot be resolved"},
		"socket": {func(c *database.Connection, _ *database.Secrets) { c.URL = "postgresql:///x?host=/nonexistent" }, "no such file"},
	} {
		err := connection(t, s, "postgres", c.change).Ping(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(fmt.Sprint(err, errors.Unwrap(err)), "hush") {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	d := connection(t, s, "", func(c *database.Connection, _ *database.Secrets) {
		c.URL = fmt.Sprintf("postgresql://:%d/postgres?host=%s", s.Port, s.Socket)
	})
	if err := d.Ping(t.Context()); err != nil {
		t.Errorf("over the Unix socket: %v", err)
	}
}

func TestSettings(t *testing.T) {
	for url, want := range map[string]string{
		"postgresql://{{username}}:{{password}}@db:5432/app":           "",
		"postgres://u@db/app?sslmode=require&connect_timeout=5":        "",
		"postgresql://u@[2001:db8::1]:5433/app":                        "",
		"postgresql://u@a:1,b:2,c/app?target_session_attrs=read-write": "",
		"postgresql:///app?host=/run/postgresql":                       "",
		"host=db user=u":                                               "must be a URL",
		"mysql://u@db/app":                                             "must be a URL",
		"postgresql://u@/app":                                          "names no host",
		"postgresql://u@a,,b/app":                                      "names no host",
		"postgresql://u@db:x/app":                                      "port",
		"postgresql://u@db:99999/app":                                  "port",
		"postgresql://u@db/app?sslrootcert=/etc/passwd":                `"sslrootcert" is not allowed`,
		"postgresql://u@db/app?options=-c%20statement_timeout%3D0":     `"options" is not allowed`,
		"postgresql://u@db/app?service=x":                              "not allowed",
		"postgresql://u@db/app?passfile=/root/.pgpass":                 "not allowed",
		"postgresql://u@db/app?user=root":                              "not allowed",
		"postgresql://u@db/app?host=/tmp":                              "in the place of a host",
		"postgresql:///app?host=example.com":                           "folder",
		"postgresql://u@db/app?sslmode=disable&sslmode=require":        "twice",
		"postgresql://u@db/app?sslmode=allow":                          "sslmode must be",
		"postgresql://u@db/app?connect_timeout=0":                      "connect_timeout",
		"postgresql://u@db/app?target_session_attrs=standby":           "target_session_attrs",
		"postgresql://u@db/app%2":                                      "database name",
		"postgresql://u@169.254.169.254/app":                           "link-local",
		"postgresql://u@[fe80::1]/app":                                 "link-local",
		"postgresql://u@[::ffff:169.254.169.254]:80/app":               "link-local",
		"postgresql://u@0.0.0.0/app":                                   "link-local",
		"postgresql://u@[fd00:ec2::254]/app":                           "metadata",
		"postgresql://u@db,100.100.100.200/app":                        "metadata",
		"postgresql://u@[fd00:ec2::23]/app":                            "metadata",
		"postgresql://u@[fd20:ce::254]/app":                            "metadata",
		"postgresql://u@[64:ff9b::a9fe:a9fe]/app":                      "metadata",
		"postgresql://u@[::169.254.169.254]/app":                       "metadata",
		"postgresql://u@[fe80::1%25eth0]/app":                          "not well-formed",
		"postgresql://u@[64:ff9b::192.0.2.1]/app":                      "",
		"postgresql://u@[::1]/app":                                     "",
		"postgresql://u@db/app?sslkey=/etc/ssl/private/key":            `"sslkey" is not allowed`,
		"postgresql://u@db/app?sslcert=/x":                             `"sslcert" is not allowed`,
		"postgresql://u@db/app?servicefile=/x":                         "not allowed",
		"postgresql://u@db/app?hostaddr=169.254.169.254":               "not allowed",
		"postgresql://u@db/app?port=1":                                 "not allowed",
		"postgresql://u@db/app?dbname=host%3D169.254.169.254":          "not allowed",
		"postgresql://u@db/app?application_name=x":                     "not allowed",
		"postgresql://u@db/app?krbsrvname=x":                           "not allowed",
		"postgresql://u@%2Ftmp/app":                                    "host is not well-formed",
		"postgresql://u@a%2Cb/app":                                     "host is not well-formed",
		"postgresql://u:hu/sh@db":                                      "database name",
		"postgresql://u:hu?sh=1@db/x":                                  "parameters are not",
		"postgresql://u:hu#sh@db/x":                                    "password belongs",
		"postgresql://u:hush@a:hush/x":                                 "password belongs",
		"postgresql://u@a:hush/x":                                      "port",
	} {
		_, err := settings(&database.Connection{URL: url, Username: "lessor"}, database.Secrets{})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hu") {
			t.Errorf("%s: the password is told: %v", url, err)
		}
	}
	for _, c := range []database.Connection{
		{URL: "postgresql://u@db/x", CA: "no PEM"}, {URL: "postgresql://u@db/x", Certificate: "no PEM"},
		{URL: "postgresql://u@db/x?sslmode=disable", CA: "x"}, {URL: "postgresql://u@db/x", Authentication: "md5"},
		{URL: "postgresql://u@db/x", ScramIterations: -1}, {URL: "postgresql://db/x"},
	} {
		if (Driver{}).Check(&c, database.Secrets{}) == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

// Nothing of the process's environment or files decides where lessor connects to, and as whom.
func TestEnvironmentIsIgnored(t *testing.T) {
	s := pgtest.Start(t)
	for name, v := range map[string]string{"PGHOST": "192.0.2.1", "PGPORT": "1", "PGUSER": "nobody", "PGPASSWORD": "wrong", "PGDATABASE": "nowhere",
		"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nonexistent", "PGOPTIONS": "-c nonsense=1", "PGAPPNAME": "x", "PGTARGETSESSIONATTRS": "standby",
		"PGCHANNELBINDING": "require", "PGREQUIREAUTH": "md5", "PGSSLNEGOTIATION": "direct", "PGSSLCERT": "/nonexistent", "PGMINPROTOCOLVERSION": "latest"} {
		t.Setenv(name, v)
	}
	if err := connection(t, s, "postgres").Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestErrorsHaveNoSecrets(t *testing.T) {
	d := &server{hide: []string{"root-password"}}
	for _, text := range []string{
		`syntax error at or near "word"`, `x root-password y`, `near "oot-pass"`, `value "SCRAM-SHA-256$4096:abc"`,
	} {
		got := d.fail(&pgconn.PgError{Severity: "ERROR", Code: "42601", Message: text}, "SCRAM-SHA-256$4096:abc$def", "pass-word")
		if s := fmt.Sprint(got, errors.Unwrap(got)); strings.Contains(s, "word") || strings.Contains(s, "oot-") || strings.Contains(s, "SCRAM") {
			t.Errorf("%s became %s", text, s)
		}
	}
	got := d.fail(&pgconn.PgError{Severity: "ERROR", Code: notPermitted, Message: "permission denied", Detail: `You lack "it", root-password.`})
	if text := got.Error(); text != `the database refused: permission denied: You lack "it", [secret] (SQLSTATE 42501)` {
		t.Errorf("a right that is lacking: %s", text)
	}
}

// A name leads where its addresses do, when it is connected to, whatever it led to before; and so does a number that some resolvers take for an address.
func TestNamesThatLeadToForbiddenAddresses(t *testing.T) {
	for _, at := range []string{"169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "100.100.100.200", "0.0.0.0", "::"} {
		connect, err := settings(&database.Connection{URL: "postgresql://u@2852039166/app?sslmode=disable"}, database.Secrets{})
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := pgx.ParseConfig(baseline)
		if err != nil {
			t.Fatal(err)
		}
		connect(cfg)
		cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{at}, nil }
		_, err = pgx.ConnectConfig(t.Context(), cfg)
		if got := (&server{}).fail(err); !errors.Is(err, target.ErrForbidden) || !strings.Contains(got.Error(), "does not connect to these") {
			t.Errorf("a name that leads to %s: %v", at, got)
		}
	}
}
