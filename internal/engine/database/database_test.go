package database_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/postgres"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/password"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"

	"crypto/rand"
)

// passwords is the part of engine.System that the engine uses: the built-in policy, and one named "short".
type passwords struct{ engine.System }

func (passwords) Password(name string) (lessor.Secret, error) {
	switch name {
	case "":
		return password.Default.Generate(rand.Reader)
	case "short":
		p, err := password.New(8, password.Rule{Charset: []rune("abcdef")})
		if err != nil {
			return lessor.Secret{}, err
		}
		return p.Generate(rand.Reader)
	}
	return lessor.Secret{}, api.Errorf(api.Invalid, "there is no password policy %q", name)
}

func newBench(t testing.TB) (*enginetest.Bench, *database.Engine) {
	e := database.New(postgres.Driver{})
	b := enginetest.New(t, e, nil)
	b.System = passwords{}
	b.Principal.DisplayName = "approle-billing"
	t.Cleanup(func() { e.Close(b.Mount.UUID) })
	return b, e
}

const creation = `CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`

func TestConformance(t *testing.T) {
	enginetest.Conform(t, database.New(postgres.Driver{}), nil)
}

func TestConfiguration(t *testing.T) {
	b, _ := newBench(t)
	type step = enginetest.Step
	connection := `{"plugin_name":"postgresql-database-plugin","connection_url":"postgresql://{{username}}:{{password}}@db:5432/app?sslmode=verify-full","username":"lessor","password":"hush-1","allowed_roles":"app,ro-*","verify_connection":false,"max_open_connections":"5","max_connection_lifetime":"30s"}`
	details := `{"connection_url":"postgresql://{{username}}:{{password}}@db:5432/app?sslmode=verify-full","username":"lessor","max_open_connections":5,"max_connection_lifetime":"30s"}`
	answer := func(details, roles string) string {
		return `{"plugin_name":"postgresql-database-plugin","plugin_version":"","connection_details":` + details + `,"allowed_roles":` + roles +
			`,"root_credentials_rotate_statements":[],"password_policy":"","verify_connection":false,"rotation_schedule":"","rotation_window":0,` +
			`"rotation_period":0,"disable_automated_rotation":false,"skip_static_role_import_rotation":false}`
	}
	b.Run(
		step{Name: "nothing", Verb: lessor.Read, Path: "config/pg", Kind: api.NotFound, Fails: true},
		step{Name: "nothing", Verb: lessor.List, Path: "config/", Kind: api.NotFound, Fails: true},
		step{Name: "no plugin", Verb: lessor.Update, Path: "config/pg", Body: `{"allowed_roles":"*"}`, Kind: api.Invalid, Err: "empty plugin name"},
		step{Name: "unknown plugin", Verb: lessor.Update, Path: "config/pg", Body: `{"plugin_name":"oracle"}`, Kind: api.Invalid,
			Err: `there is no plugin "oracle"; plugin_name must be one of [postgresql-database-plugin]`},
		step{Name: "write", Verb: lessor.Update, Path: "config/pg", Body: connection},
		step{Name: "read", Verb: lessor.Read, Path: "config/pg", Want: answer(details, `["app","ro-*"]`)},
		step{Name: "what is not sent stays", Verb: lessor.Update, Path: "config/pg", Body: `{"allowed_roles":["*"],"scram_iterations":1}`},
		step{Name: "read", Verb: lessor.Read, Path: "config/pg", Want: answer(strings.Replace(details, "{", `{"scram_iterations":1,`, 1), `["*"]`)},
		step{Name: "a password in the URL", Verb: lessor.Update, Path: "config/pg2", Body: `{"plugin_name":"postgresql-database-plugin","connection_url":"postgres://bob:hush%2D2@db/app","verify_connection":false}`},
		step{Name: "is taken out", Verb: lessor.Read, Path: "config/pg2", Want: answer(`{"connection_url":"postgres://bob:{{password}}@db/app"}`, `[]`)},
		step{Name: "a password with signs", Verb: lessor.Update, Path: "config/pg3", Body: `{"plugin_name":"postgresql-database-plugin","connection_url":"postgres://bob:hush#3@@db/app","verify_connection":false}`},
		step{Name: "is taken out", Verb: lessor.Read, Path: "config/pg3", Want: answer(`{"connection_url":"postgres://bob:{{password}}@db/app"}`, `[]`)},
		step{Name: "one that is cut", Verb: lessor.Update, Path: "config/pg4", Body: `{"plugin_name":"postgresql-database-plugin","username":"bob","connection_url":"postgres://bob:hush/4@db/app","verify_connection":false}`, Kind: api.Invalid,
			Err: "connection_url: its database name is not well-formed; if it is part of a password, put that into the parameter password, and {{password}} in its place"},
		step{Name: "delete", Verb: lessor.Delete, Path: "config/pg3"},
		step{Name: "list", Verb: lessor.List, Path: "config/", Want: `{"keys":["pg","pg2"]}`},
		step{Name: "bad template", Verb: lessor.Update, Path: "config/pg", Body: `{"username_template":"{{.RoleName}}"}`, Kind: api.Invalid,
			Err: "username_template: it makes the same name for different leases: add {{random 20}} or {{uuid}}, and see that nothing truncates it"},
		step{Name: "metadata service", Verb: lessor.Update, Path: "config/pg", Body: `{"connection_url":"postgresql://169.254.169.254/app"}`, Kind: api.Invalid,
			Err: "the host is link-local, multicast, unspecified, or a cloud's metadata service: lessor does not connect to these"},
		step{Name: "bad glob", Verb: lessor.Update, Path: "config/pg", Body: `{"allowed_roles":"[a"}`, Kind: api.Invalid, Err: `allowed_roles: "[a" is no pattern`},
		step{Name: "unlimited", Verb: lessor.Update, Path: "config/pg", Body: `{"max_open_connections":-1}`},
		step{Name: "more than there can be", Verb: lessor.Update, Path: "config/pg", Body: `{"max_open_connections":1001}`, Kind: api.Invalid,
			Err: "max_open_connections must be from 1 to 1000; 0 stands for 4, a negative number for the most"},
		step{Name: "reset", Verb: lessor.Update, Path: "reset/pg"},
		step{Name: "reset nothing", Verb: lessor.Update, Path: "reset/none", Kind: api.Invalid, Err: `there is no connection "none"`},
		step{Name: "unknown parameter", Verb: lessor.Update, Path: "config/pg", Body: `{"color":1}`, Warn: "Endpoint ignored these unrecognized parameters: [color]"},

		step{Name: "no statements", Verb: lessor.Update, Path: "roles/app", Body: `{"db_name":"pg"}`, Kind: api.Invalid, Err: "creation_statements are needed: they make the account {{name}} with {{password}}"},
		step{Name: "no connection", Verb: lessor.Update, Path: "roles/app", Body: `{"creation_statements":"x"}`, Kind: api.Invalid, Err: "database name is required"},
		step{Name: "unquoted", Verb: lessor.Update, Path: "roles/app", Body: `{"db_name":"pg","creation_statements":"CREATE ROLE {{name}}"}`, Kind: api.Invalid,
			Err: `creation_statements: {{name}} must be in quotes: "{{name}}", '{{password}}', '{{expiration}}'`},
		step{Name: "write", Verb: lessor.Update, Path: "roles/app", Body: `{"db_name":"pg","creation_statements":"` + creation + `","default_ttl":"1h","max_ttl":86400}`},
		step{Name: "read", Verb: lessor.Read, Path: "roles/app", Want: `{"db_name":"pg","credential_type":"password","default_ttl":3600,"max_ttl":86400,"creation_statements":["` + creation + `"],"revocation_statements":[],"rollback_statements":[],"renew_statements":[]}`},
		step{Name: "statements as JSON and base64", Verb: lessor.Update, Path: "roles/app", Body: `{"revocation_statements":"[\"a, b\",\"c\"]","renew_statements":"U0VMRUNUIDE=","credential_config":{"password_policy":"short"}}`},
		step{Name: "read", Verb: lessor.Read, Path: "roles/app", Want: `{"db_name":"pg","credential_type":"password","default_ttl":3600,"max_ttl":86400,"creation_statements":["` + creation + `"],"revocation_statements":["a, b","c"],"rollback_statements":[],"renew_statements":["SELECT 1"],"credential_config":{"password_policy":"short"}}`},
		step{Name: "ttl", Verb: lessor.Update, Path: "roles/app", Body: `{"default_ttl":"25h"}`, Kind: api.Invalid, Err: "default_ttl must not exceed max_ttl"},
		step{Name: "other types", Verb: lessor.Update, Path: "roles/app", Body: `{"credential_type":"rsa_private_key"}`, Kind: api.Invalid, Err: `invalid credential_type "rsa_private_key": only password is supported`},
		step{Name: "connection to come", Verb: lessor.Update, Path: "roles/later", Body: `{"db_name":"later","creation_statements":["x"]}`, Warn: "there is no connection later yet"},
		step{Name: "list", Verb: lessor.List, Path: "roles/", Want: `{"keys":["app","later"]}`},
		step{Name: "delete", Verb: lessor.Delete, Path: "roles/later"},
		step{Name: "delete nothing", Verb: lessor.Delete, Path: "roles/later"},

		step{Name: "unknown role", Verb: lessor.Read, Path: "creds/none", Kind: api.Invalid, Err: "unknown role: none"},
		step{Name: "delete", Verb: lessor.Delete, Path: "config/pg2"},
		step{Name: "deleted", Verb: lessor.Read, Path: "config/pg2", Kind: api.NotFound, Fails: true},
		step{Name: "not allowed", Verb: lessor.Update, Path: "config/pg", Body: `{"allowed_roles":""}`},
		step{Name: "not allowed", Verb: lessor.Read, Path: "creds/app", Kind: api.Invalid, Err: `"app" is not an allowed role: add it to allowed_roles of connection "pg"`},
	)
	b.NoTrace("hush-1", "hush-2", "hush%2D2", "hush#3", "hush/4")
}

// target is a bench with a connection "pg" to a real server, and a role "app".
func target(t testing.TB, change string) (*enginetest.Bench, *database.Engine, *pgtest.Server) {
	s := pgtest.Start(t)
	b, e := newBench(t)
	configure(t, b, s, change)
	b.Do(lessor.Update, "roles/app", `{"db_name":"pg","creation_statements":"`+creation+`","default_ttl":3600,"max_ttl":7200}`)
	return b, e, s
}

func configure(t testing.TB, b *enginetest.Bench, s *pgtest.Server, change string) {
	t.Helper()
	r := b.Do(lessor.Update, "config/pg", fmt.Sprintf(`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":"*","scram_iterations":1%s}`,
		s.URL("{{username}}", "{{password}}", "postgres"), pgtest.Superuser, s.Password(), change))
	if r.First != nil {
		if _, err := r.First(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// access is what the core gives an Issuer.
func access(t testing.TB, b *enginetest.Bench) engine.Access {
	t.Helper()
	v, err := b.DB.View()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	op := &lessor.Op{Verb: lessor.Delete, Namespace: lessor.RootNamespace, Path: b.Mount.Path}
	d := policy.Decide(nil, &lessor.Principal{System: "reaper"}, op, policy.Facts{Mount: b.Mount.UUID})
	if d.Denied != nil {
		t.Fatal(d.Denied)
	}
	return engine.Access{Mount: b.Mount, View: v, Grant: d.Grant, Opener: b.Keys, Now: b.Clock.Now()}
}

var serial struct {
	sync.Mutex
	n int
}

// plan asks for a credential, as the core does, up to the pending lease.
func plan(t testing.TB, b *enginetest.Bench) (l *lease.Lease, answer map[string]any, pw lessor.Secret) {
	t.Helper()
	r := b.Do(lessor.Read, "creds/app", "")
	if r.Issue == nil || r.Data != nil || len(r.Txn.Checks) < 2 {
		t.Fatalf("got %+v", r)
	}
	serial.Lock()
	serial.n++
	l = &lease.Lease{
		ID: fmt.Sprintf("%s%s/%d-%d", b.Mount.Path, r.Issue.Path, time.Now().UnixNano(), serial.n), Mount: b.Mount.UUID, Namespace: lessor.RootNamespace,
		Kind: lease.Dynamic, Issued: b.Clock.Now(), Expires: time.Now().Add(r.Issue.TTL), TTL: r.Issue.TTL, Target: r.Issue.Target,
	}
	serial.Unlock()
	var err error
	if l.Intent, answer, pw, err = r.Issue.Plan(l); err != nil {
		t.Fatal(err)
	}
	l.Expires = b.Clock.Now().Add(time.Minute) // as the core does while the lease is pending
	return l, answer, pw
}

func TestLife(t *testing.T) {
	b, e, s := target(t, "")
	root := s.Connect(t, "")
	l, answer, pw := plan(t, b)
	if answer["password"] != pw || len(answer) != 2 || len(pw.Reveal()) < 20 {
		t.Errorf("answer %v", answer)
	}
	username := answer["username"].(string)
	if !strings.HasPrefix(username, "v-approle-app-") {
		t.Errorf("username %q", username)
	}
	if strings.Contains(string(l.Intent), pw.Reveal()) || strings.Contains(string(l.Intent), "CREATE") {
		t.Error("the intent says too much")
	}
	a := access(t, b)
	for range 2 {
		if err := e.Apply(t.Context(), a, l, pw); err != nil {
			t.Fatal(err)
		}
	}
	c, err := s.Login(t.Context(), username, pw.Reveal(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	until := func() (at time.Time) {
		if err := root.QueryRow(t.Context(), "SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1", username).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	if d := time.Until(until()) - time.Hour - database.Skew; d < -10*time.Second || d > 2*time.Second {
		t.Errorf("the account ends %v off", d)
	}
	end := time.Now().Add(2 * time.Hour)
	if err := e.Renew(t.Context(), a, l, end); err != nil {
		t.Fatal(err)
	}
	if d := until().Sub(end); d < database.Skew || d > database.Skew+time.Second {
		t.Errorf("renewed, it ends %v after its lease", d)
	}
	found, err := e.Find(t.Context(), a, "pg")
	at := slices.IndexFunc(found, func(f engine.Found) bool { return f.Mark == e.Mark(l.ID) })
	if err != nil || at < 0 {
		t.Fatalf("found %v, %v", found, err)
	}
	// Role and mount may change or go; a lease takes its statements with it. Its connection's password may change.
	b.Do(lessor.Delete, "roles/app", "")
	if _, err := root.Exec(t.Context(), "CREATE ROLE second SUPERUSER LOGIN PASSWORD 'second'"); err != nil {
		t.Fatal(err)
	}
	defer root.Exec(context.Background(), "DROP ROLE second")
	b.Do(lessor.Update, "config/pg", `{"username":"second","password":"second"}`)
	damaged := &lease.Lease{ID: "x", Intent: []byte("nonsense")}
	for range 2 {
		errs := e.Revert(t.Context(), access(t, b), []*lease.Lease{l, damaged})
		if errs[0] != nil || api.KindOf(errs[1]) != api.Internal || errs[1] == nil {
			t.Fatalf("got %v", errs)
		}
	}
	if _, err := c.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("a session outlived its lease")
	}
	if _, err := s.Login(t.Context(), username, pw.Reveal(), ""); err == nil {
		t.Error("the account outlived its lease")
	}
	if err := e.Apply(t.Context(), access(t, b), l, pw); api.KindOf(err) != api.Invalid {
		t.Errorf("applied without its role: %v", err)
	}
	b.NoTrace(pw.Reveal(), s.Password())
	e.Close(b.Mount.UUID)
}

// Whichever of the connections to its server finds an account, it is removed as its role says, over the connection that the role uses, as long as
// there are both and the one may use the other; else by the driver's own means, over the connection that found it.
func TestStraysGoAsTheirRoleSays(t *testing.T) {
	b, e, s := target(t, "")
	root := s.Connect(t, "")
	for _, sql := range []string{
		"CREATE TABLE IF NOT EXISTS said (name text, who text)", "DROP ROLE IF EXISTS twin", "CREATE ROLE twin SUPERUSER LOGIN PASSWORD 'twin'",
	} {
		if _, err := root.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	connect := func(name, url, user, password, allowed string) {
		b.Do(lessor.Update, "config/"+name, fmt.Sprintf(`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":%q,"verify_connection":false}`,
			url, user, password, allowed))
	}
	url := s.URL("{{username}}", "{{password}}", "postgres")
	connect("twin", url, "twin", "twin", "*")
	connect("other", "postgresql://elsewhere/postgres", "twin", "twin", "*")
	role := func(connection string) {
		b.Do(lessor.Update, "roles/app", `{"db_name":"`+connection+`","creation_statements":"`+creation+
			`","revocation_statements":["INSERT INTO said VALUES ('{{name}}', current_user)","DROP ROLE \"{{name}}\""]}`)
	}
	own := "nobody" // says anything: the driver's own means
	for _, c := range []struct {
		name    string
		change  func() // after the account was made
		finder  string
		target  string // where it goes
		speaker string // who says what its role says
	}{
		{"found by its role's connection", func() {}, "pg", "pg", pgtest.Superuser},
		{"found by another", func() {}, "twin", "pg", pgtest.Superuser},
		{"whose role moved there", func() { role("twin") }, "twin", "twin", "twin"},
		{"whose role moved to another", func() { role("twin") }, "pg", "twin", "twin"},
		{"whose role moved elsewhere", func() { role("other") }, "pg", "pg", own},
		{"whose role's connection is no more", func() { role("none") }, "pg", "pg", own},
		{"whose role may not use its connection", func() { connect("pg", url, pgtest.Superuser, s.Password(), "else") }, "pg", "pg", own},
		{"whose role may use this one, and not its own", func() { role("twin"); connect("twin", url, "twin", "twin", "else") }, "pg", "pg", own},
		{"whose role is no more", func() { b.Do(lessor.Delete, "roles/app", "") }, "twin", "twin", own},
	} {
		t.Run(c.name, func(t *testing.T) {
			connect("pg", url, pgtest.Superuser, s.Password(), "*")
			connect("twin", url, "twin", "twin", "*")
			role("pg")
			l, answer, pw := plan(t, b)
			if err := e.Apply(t.Context(), access(t, b), l, pw); err != nil {
				t.Fatal(err)
			}
			c.change()
			found, err := e.Find(t.Context(), access(t, b), c.finder)
			if err != nil {
				t.Fatal(err)
			}
			at := slices.IndexFunc(found, func(f engine.Found) bool { return f.Mark == e.Mark(l.ID) })
			if at < 0 {
				t.Fatal("it was not found")
			}
			if found[at].Target != c.target {
				t.Errorf("it is to be undone at %q, not %q", found[at].Target, c.target)
			}
			stray := &lease.Lease{ID: b.Mount.Path + "strays/" + found[at].Mark, Mount: b.Mount.UUID, Namespace: lessor.RootNamespace, Intent: found[at].Intent}
			if err := e.Revert(t.Context(), access(t, b), []*lease.Lease{stray})[0]; err != nil {
				t.Fatal(err)
			}
			var accounts int
			var speaker string
			err = root.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM pg_roles WHERE rolname = $1), coalesce((SELECT string_agg(who, ',') FROM said WHERE name = $1), $2)",
				answer["username"], own).Scan(&accounts, &speaker)
			if err != nil || accounts != 0 || speaker != c.speaker {
				t.Errorf("%d accounts are left, and %s said what the role says, not %s: %v", accounts, speaker, c.speaker, err)
			}
		})
	}
}

func TestConnectionIsKeptForItsLeases(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	w.do(lessor.Update, "db/roles/dyn", `{"db_name":"pg","creation_statements":"`+creation+`"}`)
	for range 3 { // what is in a lease differs: hashes of tokens, say
		id := w.do(lessor.Read, "db/creds/dyn", "").Lease.ID
		w.refused(api.Invalid, lessor.Delete, "db/config/pg", "", `connection "pg" is still needed to revert its leases`)
		w.do(lessor.Update, "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q}`, id))
	}
	w.do(lessor.Delete, "db/config/pg", "")
}

// A credential decided on a role or connection that changed meanwhile is not committed.
func TestStalePlan(t *testing.T) {
	b, _, _ := target(t, "")
	act, err := b.Begin(lessor.Read, "creds/app", "")
	if err != nil {
		t.Fatal(err)
	}
	b.Do(lessor.Update, "config/pg", `{"allowed_roles":"other","verify_connection":false}`)
	enginetest.Unwritten(t, act)
}

// Nor is the deletion of a connection that somebody began to need meanwhile, or a static role over one that is deleted.
func TestStaleDeletion(t *testing.T) {
	b, e, _ := target(t, "")
	stale := func(verb lessor.Verb, path, body string, meanwhile func()) {
		t.Helper()
		act, err := b.Begin(verb, path, body)
		if err != nil {
			t.Fatal(err)
		}
		meanwhile()
		enginetest.Unwritten(t, act)
	}
	role := `{"db_name":"pg","username":"somebody","rotation_period":60,"skip_import_rotation":true}`
	stale(lessor.Delete, "config/pg", "", func() { b.Do(lessor.Update, "static-roles/s", role) })
	b.Do(lessor.Delete, "static-roles/s", "")
	stale(lessor.Delete, "config/pg", "", func() {
		l, _, _ := plan(t, b)
		txn := store.Txn{}
		lease.Add(&txn, l)
		if _, err := b.DB.Commit(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
		txn = store.Txn{Deletes: []store.Key{l.Key()}}
		if _, err := b.DB.Commit(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
	})
	stale(lessor.Delete, "config/pg", "", func() {
		if _, err := b.DB.Update(t.Context(), func(v store.View, txn *store.Txn) error { return e.Keep(v, b.Mount, "pg", txn) }); err != nil {
			t.Fatal(err)
		}
	})
	stale(lessor.Delete, "config/pg", "", func() { b.Do(lessor.Update, "rotate-root/pg", "") })
	stale(lessor.Update, "static-roles/s", role, func() { b.Do(lessor.Delete, "config/pg", "") })
	if err := e.Keep(access(t, b).View, b.Mount, "pg", new(store.Txn)); api.KindOf(err) != api.Upstream {
		t.Errorf("kept a connection that is deleted: %v", err)
	}
}

// Connections that lead elsewhere are scanned, and not read one by one besides.
func TestConnectionsElsewhere(t *testing.T) {
	b, _, _ := target(t, "")
	role := `{"db_name":"pg","username":"somebody","rotation_period":60,"skip_import_rotation":true}`
	b.Do(lessor.Update, "static-roles/s", role)
	b.Do(lessor.Update, "static-roles/s", role)
	before := b.Reads
	for i := range 5 {
		b.Do(lessor.Update, fmt.Sprint("config/other", i), fmt.Sprintf(`{"plugin_name":"postgresql-database-plugin","connection_url":"postgresql://elsewhere%d/x","username":"x","verify_connection":false}`, i))
	}
	if b.Do(lessor.Update, "static-roles/s", role); b.Reads != before {
		t.Errorf("%d reads, and %d with five connections elsewhere", before, b.Reads)
	}
}

// What goes on over other connections does not keep one from being deleted.
func TestConnectionIsDeletedUnderLoad(t *testing.T) {
	s := pgtest.Start(t)
	w := newWorld(t, s)
	w.do(lessor.Update, "db/roles/dyn", `{"db_name":"pg","creation_statements":"`+creation+`"}`)
	var made atomic.Int64
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := w.try(lessor.Read, "db/creds/dyn", ""); err != nil {
					t.Errorf("a credential: %v", err)
					return
				}
				made.Add(1)
			}
		})
	}
	for range 3 {
		w.connect("spare", s, pgtest.Superuser, s.Password())
		before := made.Load()
		w.until("there is load", func() bool { return made.Load() > before+8 })
		if _, err := w.try(lessor.Delete, "db/config/spare", ""); err != nil {
			t.Errorf("deleting a connection that nobody uses: %v", err)
		}
	}
	close(stop)
	clients.Wait()
	w.refused(api.Invalid, lessor.Delete, "db/config/pg", "", `connection "pg" is still needed to revert its leases`)
}

// A connection that does not work is not stored; that it was tried is on record, before it is.
func TestVerification(t *testing.T) {
	w := newWorld(t, pgtest.Start(t))
	read := func() string { return string(lessor.AppendJSON(nil, w.do(lessor.Read, "db/config/pg", "").Data)) }
	before := read()
	w.refused(api.Invalid, lessor.Update, "db/config/pg", `{"password":"wrong-password","username":"postgres","allowed_roles":"x"}`,
		"error creating database object: error verifying connection: the database refused lessor's own login")
	if after := read(); after != before {
		t.Errorf("a connection that does not work was stored: %s", after)
	}
	w.do(lessor.Update, "db/reset/pg", "")
	w.do(lessor.Update, "db/static-roles/app", fmt.Sprintf(`{"db_name":"pg","username":%q,"rotation_period":3600}`, w.account("")))
	recs := w.records("db/config/pg")
	if recs[1].Phase != audit.Outcome || recs[1].ErrorKind != "invalid" || recs[2].Phase != audit.Begun {
		t.Errorf("records of a refusal: %+v", recs[:3])
	}
	if body := fmt.Sprint(recs); strings.Contains(body, "wrong-password") {
		t.Error("the password is on record")
	}
	w.do(lessor.Update, "db/config/pg", `{"password":"wrong-password","verify_connection":false}`)
	if after := read(); !strings.Contains(after, `"verify_connection":false`) {
		t.Errorf("verified though it was not to be: %s", after)
	}
}

// Names that clients chose come through as text, whatever is in them.
func TestHostileNames(t *testing.T) {
	b, e, s := target(t, `,"username_template":"{{.DisplayName}}.{{random 20}}"`)
	for _, name := range []string{`"; DROP ROLE postgres; --`, `'||pg_sleep(9)||'`, "ü\x00\n", `$$`, "{{password}}", "a--b"} {
		b.Principal.DisplayName = name
		l, answer, pw := plan(t, b)
		a := access(t, b)
		if err := e.Apply(t.Context(), a, l, pw); err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		c, err := s.Login(t.Context(), answer["username"].(string), pw.Reveal(), "")
		if err != nil {
			t.Errorf("%q: %v", name, err)
		} else {
			c.Close(t.Context())
		}
		if err := e.Revert(t.Context(), a, []*lease.Lease{l})[0]; err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	b.Principal.DisplayName = strings.Repeat("long", 30)
	r := b.Do(lessor.Read, "creds/app", "")
	if _, _, _, err := r.Issue.Plan(&lease.Lease{ID: "x"}); api.KindOf(err) != api.Invalid {
		t.Errorf("a name that is too long: %v", err)
	}
	for _, name := range []string{"a b", "-a", "a'b", `a"b`, "a.", "ü"} {
		if _, err := b.Try(lessor.Update, "roles/"+name, `{"db_name":"pg","creation_statements":"x"}`); api.KindOf(err) != api.Invalid {
			t.Errorf("role %q: %v", name, err)
		}
	}
}

func TestPasswordPolicies(t *testing.T) {
	b, _, _ := target(t, `,"password_policy":"short"`)
	if _, _, pw := plan(t, b); len(pw.Reveal()) != 8 {
		t.Error("the connection's password policy was not used")
	}
	b.Do(lessor.Update, "roles/app", `{"credential_config":{"password_policy":"none"}}`)
	if _, err := b.Try(lessor.Read, "creds/app", ""); api.KindOf(err) != api.Invalid {
		t.Errorf("an unknown policy: %v", err)
	}
}

// The sessions of a connection that changed, or of a mount that is closed, end.
func TestSessionsEnd(t *testing.T) {
	b, e, s := target(t, "")
	root := s.Connect(t, "")
	count := func() (n int) {
		if err := root.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lessor'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	use := func() {
		l, _, pw := plan(t, b)
		a := access(t, b)
		if err := errors.Join(e.Apply(t.Context(), a, l, pw), e.Revert(t.Context(), a, []*lease.Lease{l})[0]); err != nil {
			t.Fatal(err)
		}
	}
	until := func(n int, what string) {
		t.Helper()
		for start := time.Now(); count() != n; time.Sleep(5 * time.Millisecond) {
			if time.Since(start) > time.Minute {
				t.Fatalf("%s: %d sessions, not %d", what, count(), n)
			}
		}
	}
	until(0, "before")
	use()
	until(1, "in use")
	b.Do(lessor.Update, "config/pg", `{"max_open_connections":2,"verify_connection":false}`)
	use()
	until(1, "after a change")
	if err := b.Do(lessor.Update, "reset/pg", "").Then(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(0, "after a reset")
	use()
	e.Close(b.Mount.UUID)
	until(0, "after closing")
}
