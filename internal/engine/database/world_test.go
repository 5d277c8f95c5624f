package database_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	authtoken "github.com/lessor-dev/lessor/internal/auth/token"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/postgres"
	"github.com/lessor-dev/lessor/internal/engine/database/rabbitmq"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
	"github.com/lessor-dev/lessor/internal/system"
)

// world is a whole lessor, without HTTP, with the database engine at "db/", over a disk that survives its deaths, a PostgreSQL
// and a clock that the test moves.
type world struct {
	*testing.T
	pg    *pgtest.Server
	disk  *mem.Disk
	keys  *seal.Keyring
	clock *steady
	root  lessor.Secret

	driver database.Driver
	faulty *storetest.Faulty
	db     *store.DB
	core   *core.Core
	end    func()
	n      atomic.Int64
}

// steady is a clock that the test moves: what it adds has passed by the monotonic reading, too. Only a jump has not.
type steady struct{ add, jump atomic.Int64 }

var begun = time.Now()

func (c *steady) Elapsed() time.Duration { return time.Since(begun) + time.Duration(c.add.Load()) }
func (c *steady) Now() time.Time {
	return begun.UTC().Round(0).Add(c.Elapsed() + time.Duration(c.jump.Load()))
}
func (c *steady) advance(d time.Duration) { c.add.Add(int64(d)) }

func newWorld(t *testing.T, s *pgtest.Server) *world {
	t.Helper()
	return newWorldOf(t, s, postgres.Driver{})
}

// newWorldOf is newWorld with a driver of the test's.
func newWorldOf(t *testing.T, s *pgtest.Server, d database.Driver) *world {
	t.Helper()
	w := newWorldWithout(t, d)
	w.pg = s
	w.connect("pg", s, pgtest.Superuser, s.Password())
	return w
}

// newWorldWithout is newWorldOf without a connection.
func newWorldWithout(t *testing.T, d database.Driver) *world {
	t.Helper()
	w := &world{T: t, disk: new(mem.Disk), clock: &steady{}, driver: d}
	kek, err := seal.CreateKeyFile(filepath.Join(t.TempDir(), "seal.key"), rand.Reader)
	w.must(err)
	var rows []store.Put
	w.keys, rows, err = seal.Init(rand.Reader, w.clock.Now(), kek)
	w.must(err)
	w.boot()
	t.Cleanup(func() { w.end() })
	w.root, err = w.core.Init(t.Context(), rows, lessor.Secret{}, 0)
	w.must(err)
	w.do(lessor.Update, "sys/mounts/db", `{"type":"database"}`)
	return w
}

// connect configures a connection.
func (w *world) connect(name string, s *pgtest.Server, username, password string) {
	w.Helper()
	w.do(lessor.Update, "db/config/"+name, fmt.Sprintf(`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":"*","scram_iterations":1}`,
		s.URL("{{username}}", "{{password}}", "postgres"), username, password))
}

// boot starts a lessor on what the disk holds.
func (w *world) boot() {
	w.Helper()
	var err error
	w.faulty = storetest.NewFaulty(w.disk.Open(), 1, storetest.Faults{})
	w.db, err = store.Open(w.faulty, store.Options{Clock: w.clock})
	w.must(err)
	w.must(w.db.Unseal(w.keys.Cipher()))
	e := database.New(w.driver)
	tokens, sys := &authtoken.Backend{}, &system.Backend{Store: w.db}
	broker := rabbitmq.New()
	backends := map[string]engine.Backend{"database": e, "rabbitmq": broker, "token": tokens, "system": sys, "identity": identity.Backend{}}
	w.core, err = core.New(core.Options{Store: w.db, Keys: w.keys, Random: rand.Reader, Backends: backends, ApplyTimeout: 2 * time.Second, Poll: 20 * time.Millisecond})
	w.must(err)
	c := w.core
	tokens.Settle = func(ctx context.Context, tomb string) error { return c.Reaper().Settle(ctx, tomb) }
	sys.Reaper, sys.Backends = c.Reaper(), backends
	sys.Info = func() map[string]any { return nil }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	db := w.db
	w.end = func() {
		cancel()
		<-done
		e.Shutdown()
		broker.Shutdown()
		_ = db.Close()
	}
}

// crash ends the lessor that is up, with all that was not durable, and starts another.
func (w *world) crash() {
	w.Helper()
	w.faulty.Set(storetest.Faults{At: 1}) // nothing that is under way is recorded any more
	w.end()
	w.boot()
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) op(verb lessor.Verb, path, data string) *lessor.Op {
	op := &lessor.Op{
		ID: fmt.Sprintf("request-%d", w.n.Add(1)), Verb: verb, Namespace: lessor.RootNamespace, Path: path, Token: w.root,
		Client: netip.MustParseAddr("127.0.0.1"), Time: w.db.Now(),
	}
	if data != "" {
		d := json.NewDecoder(strings.NewReader(data))
		d.UseNumber()
		w.must(d.Decode(&op.Data))
	}
	return op
}

func (w *world) try(verb lessor.Verb, path, data string) (*lessor.Answer, error) {
	return w.core.Handle(context.Background(), w.op(verb, path, data))
}

func (w *world) do(verb lessor.Verb, path, data string) *lessor.Answer {
	w.Helper()
	a, err := w.try(verb, path, data)
	if err != nil {
		w.Fatalf("%s %s: %v", verb, path, err)
	}
	return a
}

func (w *world) refused(kind api.Kind, verb lessor.Verb, path, data, text string) {
	w.Helper()
	_, err := w.try(verb, path, data)
	if err == nil || api.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		w.Fatalf("%s %s %s: %s error %v, want a %s one with %q", verb, path, data, api.KindOf(err), err, kind, text)
	}
}

// password is what readers of a static role get.
func (w *world) password(role string) string {
	w.Helper()
	return w.do(lessor.Read, "db/static-creds/"+role, "").Data["password"].(lessor.Secret).Reveal()
}

// logsIn reports whether a password is the account's.
func (w *world) logsIn(username, password string) bool {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := w.pg.Login(ctx, username, password, "")
	if err != nil {
		if !strings.Contains(err.Error(), "28P01") {
			w.Fatalf("logging in as %s: %v", username, err)
		}
		return false
	}
	c.Close(ctx)
	return true
}

// account makes an account at the database, as an administrator does.
func (w *world) account(options string) string {
	w.Helper()
	name := fmt.Sprintf("static_%d_%d", time.Now().UnixNano(), w.n.Add(1))
	w.sql(`CREATE ROLE "` + name + `" LOGIN PASSWORD 'first' ` + options)
	return name
}

func (w *world) sql(text string) {
	w.Helper()
	c, err := w.pg.Login(context.Background(), pgtest.Superuser, w.pg.Password(), "")
	w.must(err)
	defer c.Close(context.Background())
	if _, err := c.Exec(context.Background(), text); err != nil {
		w.Fatalf("%s: %v", text, err)
	}
}

// state is how an account's rotation stands.
func (w *world) state(account string) *rotation.Account {
	w.Helper()
	a, err := w.tryState(account)
	w.must(err)
	return a
}

func (w *world) tryState(account string) (*rotation.Account, error) {
	return enginetest.State(w.db, account)
}

// passwords are those of an account, as they are kept; none if it has none.
func (w *world) passwords(account string) *rotation.Passwords {
	w.Helper()
	p, err := w.tryPasswords(account)
	w.must(err)
	return p
}

func (w *world) tryPasswords(account string) (*rotation.Passwords, error) {
	return enginetest.Passwords(w.db, w.keys, account)
}

// until waits for the background.
func (w *world) until(what string, f func() bool) {
	w.Helper()
	for start := time.Now(); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			w.Fatalf("never: %s", what)
		}
	}
}

// records are the newest audit records of a path, newest first.
func (w *world) records(path string) []audit.At {
	w.Helper()
	all, _, err := w.db.Records(store.Query{Path: path, Newest: true})
	w.must(err)
	return all
}
