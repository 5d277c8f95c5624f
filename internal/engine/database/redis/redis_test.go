package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/redistest"
)

// bench is a connection to a server, and the administrator's.
type bench struct {
	*redistest.Server
	t    testing.TB
	root *redis.Client
	database.Database
}

func newBench(t testing.TB, s *redistest.Server, change ...func(*database.Connection, *database.Secrets)) *bench {
	t.Helper()
	return &bench{Server: s, t: t, root: s.Connect(t), Database: connection(t, s, change...)}
}

// connection is one of the administrator, changed.
func connection(t testing.TB, s *redistest.Server, change ...func(*database.Connection, *database.Secrets)) database.Database {
	t.Helper()
	c := &database.Connection{Host: s.Host, Port: int64(s.Port), Username: redistest.Admin}
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
	t.Cleanup(d.Close)
	return d
}

var serial atomic.Int64

// account is a new one, unlike any other of the process.
func account() database.Account {
	n := serial.Add(1)
	return database.Account{
		Lease: fmt.Sprintf("database/creds/app/%d-%d", os.Getpid(), n), Username: fmt.Sprintf("V_TEST.APP-%d_%d", os.Getpid(), n),
		Mount: strings.Repeat("a1", 12), Role: strings.Repeat("b2", 12),
		Password: lessor.NewSecret(fmt.Sprintf("pass word' %d", n)), Until: time.Now().Add(time.Hour),
	}
}

func (b *bench) do(args ...any) any {
	b.t.Helper()
	v, err := b.root.Do(b.t.Context(), args...).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		b.t.Fatalf("%v: %v", args, err)
	}
	return v
}

func (b *bench) has(a database.Account) bool {
	b.t.Helper()
	return b.do("ACL", "GETUSER", a.Username) != nil
}

func (b *bench) logsIn(username, password string) bool {
	b.t.Helper()
	c := b.Client(username, password)
	defer c.Close()
	_, err := c.Get(b.t.Context(), "nothing").Result()
	if err != nil && !errors.Is(err, redis.Nil) && !strings.HasPrefix(err.Error(), "WRONGPASS") {
		b.t.Fatal(err)
	}
	return err == nil || errors.Is(err, redis.Nil)
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

// An account without statements may read everything, and write nothing; its sessions say since when they are open.
func TestAccountByDefault(t *testing.T) {
	b := newBench(t, redistest.Start(t))
	a := b.create(account())
	c := b.Client(a.Username, a.Password.Reveal())
	defer c.Close()
	if err := c.Get(t.Context(), "x").Err(); err != nil && !errors.Is(err, redis.Nil) {
		t.Errorf("it does not read: %v", err)
	}
	if err := c.Set(t.Context(), "x", 1, 0).Err(); err == nil || !strings.HasPrefix(err.Error(), "NOPERM") {
		t.Errorf("it writes: %v", err)
	}
	sessions, err := b.Sessions(t.Context(), []string{a.Username})
	if err != nil || len(sessions) != 1 || sessions[0].Since.IsZero() || time.Since(sessions[0].Since) > time.Minute {
		t.Errorf("sessions %+v, %v", sessions, err)
	}
	b.remove(a)
}

// Nobody has the passwords that mark an account, and the server never sees the one that somebody has.
func TestServerNeverSeesThePassword(t *testing.T) {
	b := newBench(t, redistest.Own(t))
	b.do("CONFIG", "SET", "slowlog-log-slower-than", "0")
	a := b.create(account())
	if err := b.SetPassword(t.Context(), database.Change{Name: "x", Username: a.Username, Password: lessor.NewSecret("another one")}); err != nil {
		t.Fatal(err)
	}
	log := fmt.Sprint(b.do("SLOWLOG", "GET", "128"))
	if !strings.Contains(log, "GETUSER") {
		t.Fatalf("the log has no commands: %s", log)
	}
	for _, secret := range []string{a.Password.Reveal(), "another one", b.Password()} {
		if strings.Contains(log, secret) {
			t.Errorf("the server saw %q", secret)
		}
	}
}

func TestMarks(t *testing.T) {
	a := account()
	for _, c := range []struct{ mount, role string }{{"", ""}, {a.Mount, ""}, {a.Mount, a.Role}} {
		a.Mount, a.Role = c.mount, c.role
		s, ok := slots(&a)
		m, rest := marks(append(s, digest("x")))
		if want := (database.Marked{Mark: database.Mark(a.Lease), Mount: c.mount, Role: c.role}); !ok || m != want || len(rest) != 1 {
			t.Errorf("%v became %+v, %v", s, m, rest)
		}
	}
	a.Found = "nonsense"
	if _, ok := slots(&a); ok {
		t.Error("a mark that could not be read back was taken")
	}
	if m, rest := marks([]string{digest("x"), "", leaseSlot}); m != (database.Marked{}) || len(rest) != 1 {
		t.Errorf("read %+v, %v", m, rest)
	}
}

func TestRules(t *testing.T) {
	for statement, want := range map[string]string{
		``:                                  `[~* +@read]`,
		`["~app:*", "+@read", "-keys"]`:     `[~app:* +@read -keys]`,
		`~* +get  +set`:                     `[~* +get +set]`,
		`["~{{name}}:*", "&{{username}}"]`:  `[~me:* &me]`,
		`+get (~a* +set) ( %R~b* +get ) on`: `[+get (~a* +set) ( %R~b* +get ) on]`,
		`allkeys allcommands`:               `[allkeys allcommands]`,
		`~* +get resetdbs db=1,2`:           `[~* +get resetdbs db=1,2]`,
		`>secret`:                           `lessor's to set`,
		`["+get", "nopass"]`:                `lessor's to set`,
		`+get OFF`:                          `lessor's to set`,
		`RESET`:                             `lessor's to set`,
		`#` + strings.Repeat("a", 64):       `lessor's to set`,
		`(+get >x)`:                         `lessor's to set`,
		`((+get))`:                          `none within it`,
		`(+get`:                             `closing parenthesis`,
		`CREATE USER x`:                     `"CREATE" is no rule`,
		`~{{password}}`:                     `only {{name}}`,
	} {
		got, err := rules([]string{statement}, "me")
		if s := fmt.Sprint(got); err != nil && !strings.Contains(err.Error(), want) || err == nil && s != want {
			t.Errorf("%s: %s, %v; want %s", statement, s, err, want)
		}
	}
}

// Valkey keeps accounts to some of its databases.
func TestDatabasesOfAnAccount(t *testing.T) {
	s := redistest.Start(t)
	d, admin := connection(t, s), s.Connect(t)
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "probe", "resetdbs").Err(); err != nil {
		t.Skipf("the server does not: %v", err)
	}
	a := account()
	a.Creation = []string{`["~*", "+@all", "resetdbs", "db=1"]`}
	if err := d.Create(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	c := s.Client(a.Username, a.Password.Reveal())
	defer c.Close()
	for number, want := range map[int]bool{1: true, 2: false} {
		conn := c.Conn()
		err := conn.Select(t.Context(), number).Err()
		if err == nil {
			err = conn.Set(t.Context(), "key", "value", 0).Err()
		}
		if (err == nil) != want {
			t.Errorf("database %d: %v", number, err)
		}
		_ = conn.Close()
	}
	if errs := d.Remove(t.Context(), []database.Account{a}); errs[0] != nil {
		t.Error(errs[0])
	}
}

func FuzzRules(f *testing.F) {
	for _, s := range []string{"~* +@read", `["+get","(~a +set)"]`, "(()", ">x", "( >x )", "+a\x00b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		all, err := rules([]string{text}, "me")
		if err != nil {
			return
		}
		for _, w := range all {
			for _, inner := range strings.Fields(strings.Trim(w, "()")) {
				if strings.ContainsAny(inner[:1], "><#!") || strings.EqualFold(inner, "nopass") || strings.EqualFold(inner, "off") {
					t.Fatalf("%q lets %q through", text, inner)
				}
			}
		}
	})
}

func TestCreateFails(t *testing.T) {
	b := newBench(t, redistest.Start(t))
	a := account()
	a.Creation = []string{"+@nonsense"}
	if err := b.Create(t.Context(), a); api.KindOf(err) != api.Upstream || errors.Is(err, database.ErrUnreachable) || !strings.Contains(err.Error(), "+@nonsense") {
		t.Errorf("got %v", err)
	}
	if b.has(a) {
		t.Error("the account stayed")
	}
	a.Creation = []string{"nopass"}
	if err := b.Create(t.Context(), a); api.KindOf(err) != api.Invalid || b.has(a) {
		t.Errorf("got %v", err)
	}
	b.remove(a)
}

func TestManyAtOnce(t *testing.T) {
	b := newBench(t, redistest.Start(t))
	as := make([]database.Account, batch+50)
	var wg sync.WaitGroup
	for i := range as {
		as[i] = account()
		wg.Go(func() {
			if err := b.Create(t.Context(), as[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.remove(as...)
}

// through is a connection over a relay, of an account of its own, with a session that is open; delivered waits until the server has ended it, which it
// does when it has done all that was sent.
func through(b *bench, r *pgtest.Relay) (d database.Database, delivered func()) {
	b.t.Helper()
	own := fmt.Sprintf("relayed_%d", serial.Add(1))
	b.do("ACL", "SETUSER", own, "on", ">relayed", "~*", "+@all")
	b.t.Cleanup(func() { b.root.Do(context.Background(), "ACL", "DELUSER", own) })
	host, port, _ := net.SplitHostPort(r.URL(b.Addr()))
	d = connection(b.t, b.Server, func(c *database.Connection, s *database.Secrets) {
		c.Host, c.Username, s.Password = host, own, lessor.NewSecret("relayed")
		_, _ = fmt.Sscan(port, &c.Port)
	})
	if err := d.Ping(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return d, func() {
		b.t.Helper()
		d.Close()
		for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			open, err := b.Sessions(b.t.Context(), []string{own})
			if err == nil && len(open) == 0 {
				return
			}
			if time.Since(start) > 30*time.Second {
				b.t.Fatalf("what was held back is under way for ever: %v, %v", open, err)
			}
		}
	}
}

func relay(b *bench) *pgtest.Relay {
	return pgtest.RelayTo(b.t, b.Addr())
}

// What a paused process sent, and the network delivers after its successor has removed the account and looked for the last time, makes nothing.
func TestCommandThatComesTooLate(t *testing.T) {
	b := newBench(t, redistest.Start(t))
	for _, from := range []string{"SETUSER", "GETUSER", "setname"} {
		t.Run(from, func(t *testing.T) {
			r := relay(b)
			paused, delivered := through(b, r)
			r.HoldFrom(from)
			a := account()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := paused.Create(ctx, a); !errors.Is(err, database.ErrUnreachable) {
				t.Fatalf("got %v", err)
			}
			b.remove(a)
			r.Release()
			delivered()
			if b.has(a) {
				t.Error("an account that was reverted came back")
			}
		})
	}
}

// The same of a password: one that was succeeded does not come into force again.
func TestPasswordThatComesTooLate(t *testing.T) {
	b := newBench(t, redistest.Start(t))
	r := relay(b)
	paused, delivered := through(b, r)
	r.HoldFrom("resetpass")
	a := b.create(account())
	change := func(password string) database.Change {
		return database.Change{Name: "static/app", Username: a.Username, Password: lessor.NewSecret(password)}
	}
	err := error(database.ErrUntouched)
	for patience := 300 * time.Millisecond; errors.Is(err, database.ErrUntouched) && patience < time.Minute; patience *= 2 { // until it is enough to get there
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err = paused.SetPassword(ctx, change("the first"))
		cancel()
	}
	if !errors.Is(err, database.ErrUnreachable) || errors.Is(err, database.ErrUntouched) {
		t.Fatalf("got %v", err)
	}
	if err := b.SetPassword(t.Context(), change("the second")); err != nil {
		t.Fatal(err)
	}
	r.Release()
	delivered()
	if !b.logsIn(a.Username, "the second") || b.logsIn(a.Username, "the first") {
		t.Error("the password that was succeeded is in force")
	}
	b.do("ACL", "DELUSER", a.Username) // it has lost its mark
}

func TestStaticAccount(t *testing.T) {
	b := newBench(t, redistest.Start(t))
	name := fmt.Sprintf("static:ä/%d", serial.Add(1))
	b.do("ACL", "SETUSER", name, "on", ">one", ">two", "+get", "~*")
	defer b.do("ACL", "DELUSER", name)
	verdict := func(password string, want database.Verdict) {
		t.Helper()
		if got, err := b.Login(t.Context(), name, lessor.NewSecret(password)); err != nil || got != want {
			t.Errorf("%s: verdict %v, %v; want %v", password, got, err, want)
		}
	}
	verdict("one", database.Accepted)
	verdict("three", database.Refused)
	c := database.Change{Name: "static/x", Username: name, Password: lessor.NewSecret("three")}
	for range 2 {
		if err := b.SetPassword(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	verdict("one", database.Refused)
	verdict("two", database.Refused)
	verdict("three", database.Accepted)
	b.do("ACL", "SETUSER", name, "off")
	verdict("three", database.Barred)
	verdict("one", database.Refused)
	b.do("ACL", "SETUSER", name, "on", "nopass")
	verdict("one", database.Refused) // it lets anybody in, but this is no password of its own: it has to be set again
	c.Password = lessor.NewSecret("four")
	if err := b.SetPassword(t.Context(), c); err != nil || b.logsIn(name, "anything") {
		t.Errorf("anybody may log in: %v", err)
	}
	// By the account itself, which may change passwords for that.
	b.do("ACL", "SETUSER", name, "+acl", "+client", "+ping")
	c.Password, c.Self = lessor.NewSecret("five"), []lessor.Secret{lessor.NewSecret("wrong"), lessor.NewSecret("four")}
	if err := b.SetPassword(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	verdict("five", database.Accepted)
	c.Self = c.Self[:1]
	if err := b.SetPassword(t.Context(), c); err == nil || errors.Is(err, database.ErrUnreachable) {
		t.Errorf("with a wrong password of its own: %v", err)
	}
	// Its sessions, which a change of the password does not end.
	client := b.Client(name, "five")
	defer client.Close()
	if err := client.Conn().ClientSetName(t.Context(), "worker-7").Err(); err != nil {
		t.Fatal(err)
	}
	found, err := b.Sessions(t.Context(), []string{name})
	if err != nil || len(found) != 1 || found[0].Application != "worker-7" {
		t.Errorf("sessions %+v, %v", found, err)
	}
	for range 2 {
		if err := b.End(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := b.Sessions(t.Context(), []string{name}); err != nil || len(found) > 0 {
		t.Errorf("sessions that were ended: %+v, %v", found, err)
	}
	missing := database.Change{Name: "static/y", Username: "nobody:here", Password: lessor.NewSecret("x")}
	if err := b.SetPassword(t.Context(), missing); err == nil || !strings.Contains(err.Error(), "there is no account") || b.do("ACL", "GETUSER", missing.Username) != nil {
		t.Errorf("an account that is not there: %v", err)
	}
	if v, err := b.Login(t.Context(), missing.Username, missing.Password); err != nil || v != database.Refused {
		t.Errorf("an account that is not there: %v, %v", v, err)
	}
	if err := b.End(t.Context(), missing.Username); err != nil {
		t.Error(err)
	}
}

// Lessor's own password changes: sessions are opened with whichever of those that may be in force is.
func TestOwnPassword(t *testing.T) {
	b := newBench(t, redistest.Start(t))
	own := fmt.Sprintf("own_%d", serial.Add(1))
	b.do("ACL", "SETUSER", own, "on", ">first", "~*", "+@all")
	defer b.do("ACL", "DELUSER", own)
	d := connection(t, b.Server, func(c *database.Connection, s *database.Secrets) {
		c.Username, s.Password, c.MaxOpen = own, lessor.NewSecret("first"), 1
	})
	secrets := []lessor.Secret{lessor.NewSecret("second"), lessor.NewSecret("first")}
	d.Use(secrets)
	if err := d.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.SetPassword(t.Context(), database.Change{Name: "root/x", Username: own, Password: secrets[0]}); err != nil {
		t.Fatal(err)
	}
	b.do("CLIENT", "KILL", "USER", own)
	if err := d.Ping(t.Context()); err != nil {
		t.Errorf("after the change: %v", err)
	}
	d.Use([]lessor.Secret{lessor.NewSecret("wrong")})
	if err := d.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "refused lessor's own login") || errors.Is(err, database.ErrUnreachable) {
		t.Errorf("with a wrong password: %v", err)
	}
	d.Use(secrets[:1])
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := d.Ping(t.Context()); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { d.Use([]lessor.Secret{secrets[0], secrets[1]}); d.Use([]lessor.Secret{secrets[1], secrets[0]}) })
	}
	wg.Wait()
}

// A connection that is closed, or opened anew, lets what is under way end.
func TestCloseLetsOthersEnd(t *testing.T) {
	b := newBench(t, redistest.Start(t))
	d := b.Database.(*server)
	err := d.session(t.Context(), idleName, func(s *session) error {
		d.Use([]lessor.Secret{lessor.NewSecret("next"), lessor.NewSecret(b.Password())})
		if err := s.name("after-use"); err != nil {
			return err
		}
		return d.session(t.Context(), idleName, func(s *session) error {
			d.Close()
			return s.name("after-close")
		})
	})
	if err != nil {
		t.Error(err)
	}
	if err := d.Ping(t.Context()); !errors.Is(err, database.ErrUntouched) {
		t.Errorf("after all: %v", err)
	}
}

// What lessor's account has to be permitted, and no more; what it lacks is said.
func TestAccountOfFewRights(t *testing.T) {
	b := newBench(t, redistest.Start(t, redistest.ACLFile()))
	own := fmt.Sprintf("few_%d", serial.Add(1))
	least := []any{"+ping", "+client|setname", "+client|list", "+client|kill", "+acl|setuser", "+acl|getuser", "+acl|deluser", "+acl|list"}
	b.do(append([]any{"ACL", "SETUSER", own, "on", ">few"}, least...)...)
	defer b.do("ACL", "DELUSER", own)
	few := func(mode string) *bench {
		return newBench(t, b.Server, func(c *database.Connection, s *database.Secrets) {
			c.Username, s.Password, c.Persistence = own, lessor.NewSecret("few"), mode
		})
	}
	a := account()
	if err := few("").Create(t.Context(), a); err == nil || !strings.Contains(err.Error(), "+acl|save") {
		t.Errorf("without the right to save: %v", err)
	}
	few(none).remove(a)
	b.do("ACL", "SETUSER", own, "+acl|save")
	f := few("")
	a = f.create(account())
	if _, err := f.Marked(t.Context()); err != nil {
		t.Error(err)
	}
	if err := f.SetPassword(t.Context(), database.Change{Name: "s", Username: own, Password: lessor.NewSecret("few")}); err != nil {
		t.Error(err)
	}
	if _, err := f.Sessions(t.Context(), []string{own}); err != nil {
		t.Error(err)
	}
	if err := f.End(t.Context(), "nobody"); err != nil {
		t.Error(err)
	}
	f.remove(a)
}

// What is saved outlives the server, and what is removed does not come back with it.
func TestServerThatIsStartedAnew(t *testing.T) {
	for mode, opts := range map[string][]redistest.Option{automatic: {redistest.ACLFile()}, users: {redistest.ACLFile()}, rewrite: nil, none: nil} {
		t.Run("mode "+mode, func(t *testing.T) {
			b := newBench(t, redistest.Own(t, opts...), func(c *database.Connection, _ *database.Secrets) { c.Persistence = mode })
			stays, goes := b.create(account()), b.create(account())
			b.remove(goes)
			if err := b.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := b.Up(); err != nil {
				t.Fatal(err)
			}
			if b.has(stays) != (mode != none) || b.has(goes) {
				t.Errorf("started anew, the server has the account: %v; the one that was removed: %v", b.has(stays), b.has(goes))
			}
			if err := b.Renew(t.Context(), stays); (err == nil) != (mode != none) {
				t.Errorf("renewed: %v", err)
			}
			b.remove(stays)
		})
	}
	strict := newBench(t, redistest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.Persistence = users })
	a := account()
	if err := strict.Create(t.Context(), a); err == nil || !strings.Contains(err.Error(), "not configured to use an ACL file") {
		t.Errorf("ACLFILE without a file: %v", err)
	}
	strict.do("ACL", "DELUSER", a.Username)
}

// The server hangs, dies, comes back: calls end in time with ErrUnreachable, and what they left is put right by the next.
func TestServerTrouble(t *testing.T) {
	b := newBench(t, redistest.Own(t, redistest.ACLFile()))
	before := b.create(account())
	call := func(what string, f func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		err := f(ctx)
		if !errors.Is(err, database.ErrUnreachable) || api.KindOf(err) != api.Upstream {
			t.Errorf("%s: %v", what, err)
		}
		if err != nil && strings.Contains(err.Error(), b.Password()) {
			t.Errorf("%s tells the password: %v", what, err)
		}
	}
	during := account()
	all := func(what string) {
		call(what+", create", func(ctx context.Context) error { return b.Create(ctx, during) })
		call(what+", renew", func(ctx context.Context) error { return b.Renew(ctx, before) })
		call(what+", remove", func(ctx context.Context) error { return b.Database.Remove(ctx, []database.Account{before})[0] })
		call(what+", ping", b.Ping)
		call(what+", login", func(ctx context.Context) error {
			_, err := b.Login(ctx, before.Username, before.Password)
			return err
		})
	}
	if err := b.Pause(); err != nil {
		t.Fatal(err)
	}
	all("hanging")
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
	b.remove(during, before)
	before, during = b.create(account()), account()
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	all("dead")
	if err := b.Up(); err != nil {
		t.Fatal(err)
	}
	b.create(during)
	b.remove(during, before)
}

func TestTLS(t *testing.T) {
	s := redistest.Start(t, redistest.TLS())
	other, err := pgtest.OtherCA()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		conn database.Connection
		want string
	}{
		"by name":         {database.Connection{Host: "localhost", TLS: true, CA: string(s.CA)}, ""},
		"by address":      {database.Connection{Host: "127.0.0.1", TLS: true, CA: string(s.CA)}, ""},
		"by another name": {database.Connection{Host: "127.0.0.1", TLS: true, CA: string(s.CA), ServerName: "localhost"}, ""},
		"wrong name":      {database.Connection{Host: "localhost", TLS: true, CA: string(s.CA), ServerName: "db.example.com"}, "not trusted"},
		"wrong CA":        {database.Connection{Host: "localhost", TLS: true, CA: string(other)}, "not trusted"},
		"system's CAs":    {database.Connection{Host: "localhost", TLS: true}, "not trusted"},
		"insecure":        {database.Connection{Host: "localhost", TLS: true, InsecureTLS: true}, ""},
		"plain":           {database.Connection{Host: "localhost"}, "say tls=true"},
	} {
		t.Run(name, func(t *testing.T) {
			d := connection(t, s, func(conn *database.Connection, _ *database.Secrets) {
				*conn = c.conn
				conn.Username, conn.Port = redistest.Admin, int64(s.Port)
			})
			if err := d.Ping(t.Context()); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	d := connection(t, redistest.Start(t), func(c *database.Connection, _ *database.Secrets) { c.TLS = true })
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := d.Ping(ctx); err == nil || !strings.Contains(err.Error(), "did not answer in time") { // it waits for a line's end
		t.Errorf("TLS with a server without: %v", err)
	}
}

func TestCheck(t *testing.T) {
	good := database.Connection{Host: "redis.example.com", Username: "lessor"}
	for want, change := range map[string]func(*database.Connection){
		"":                      func(*database.Connection) {},
		"host is needed":        func(c *database.Connection) { c.Host = "" },
		"not well-formed":       func(c *database.Connection) { c.Host = "redis://db" },
		"link-local":            func(c *database.Connection) { c.Host = "169.254.169.254" },
		"connection_url is not": func(c *database.Connection) { c.URL = "redis://db" },
		"port must be":          func(c *database.Connection) { c.Port = 70000 },
		"username is needed":    func(c *database.Connection) { c.Username = "" },
		"without spaces":        func(c *database.Connection) { c.Username = "a b" },
		"persistence_mode":      func(c *database.Connection) { c.Persistence = "DISK" },
		"TLS is off":            func(c *database.Connection) { c.CA = "x" },
		"has no certificate":    func(c *database.Connection) { c.TLS, c.CA = true, "x" },
		"password_authenticati": func(c *database.Connection) { c.Authentication = "scram-sha-256" },
	} {
		c := good
		change(&c)
		if err := (Driver{}).Check(&c, database.Secrets{}); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	same := func(a, b database.Connection) bool { return Driver{}.SameServer(&a, &b) }
	if !same(good, database.Connection{Host: "REDIS.example.com", Port: 6379}) || same(good, database.Connection{Host: "redis.example.com", Port: 1}) || same(database.Connection{}, database.Connection{}) {
		t.Error("SameServer")
	}
	if err := (Driver{}).CheckRole(&database.Statements{Revocation: []string{"x"}}); err == nil {
		t.Error("revocation_statements were taken")
	}
	if (Driver{}).CheckRotation("x", []string{"x"}) == nil || (Driver{}).CheckRotation("a\tb", nil) == nil || (Driver{}).CheckRotation("app", nil) != nil {
		t.Error("CheckRotation")
	}
}

func TestErrorsHaveNoSecrets(t *testing.T) {
	d := &server{hide: []string{"root-password"}}
	d.logins.Use([]lessor.Secret{lessor.NewSecret("login-password")})
	err := d.fail(answer("ERR x root-password, login-password; pass-word"), "pass-word")
	if s := fmt.Sprint(err, errors.Unwrap(err)); strings.Contains(s, "word") {
		t.Errorf("became %s", s)
	}
	if e := (*api.Error)(nil); !errors.As(err, &e) || reflect.ValueOf(e.Cause).IsValid() {
		t.Errorf("got %#v", err)
	}
}

type answer string

func (a answer) Error() string { return string(a) }
func (answer) RedisError()     {}
