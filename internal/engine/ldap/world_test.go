package ldap_test

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
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/engine/ldap/directory"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/ldaptest"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
	"github.com/lessor-dev/lessor/internal/system"
)

// world is a whole lessor, without HTTP, with the ldap engine at "ldap/", over a disk that survives its deaths, a branch of a directory and a clock
// that the test moves.
type world struct {
	*testing.T
	*ldaptest.Branch
	disk  *mem.Disk
	keys  *seal.Keyring
	clock *steady
	root  lessor.Secret

	eye    *eye
	faulty *storetest.Faulty
	db     *store.DB
	core   *core.Core
	end    func()
	n      atomic.Int64
}

// steady is a clock that the test moves: what it adds has passed by the monotonic reading, too.
type steady struct{ add atomic.Int64 }

var begun = time.Now()

func (c *steady) Elapsed() time.Duration  { return time.Since(begun) + time.Duration(c.add.Load()) }
func (c *steady) Now() time.Time          { return begun.UTC().Round(0).Add(c.Elapsed()) }
func (c *steady) advance(d time.Duration) { c.add.Add(int64(d)) }

// eye sees each touch of a directory, and may come between lessor and it.
type eye struct{ enginetest.Eye }

func (e *eye) open(c *ldap.Config, s ldap.Secrets) (ldap.Directory, error) {
	d, err := directory.Open(c, s)
	return &watched{d, e}, err
}

type watched struct {
	ldap.Directory
	*eye
}

func (d *watched) Login(ctx context.Context, dn string, password lessor.Secret) (v ldap.Verdict, err error) {
	err = d.Call("login", password, func() (err error) { v, err = d.Directory.Login(ctx, dn, password); return err })
	return v, err
}

func (d *watched) SetPassword(ctx context.Context, dn string, password lessor.Secret) error {
	return d.Call("set", password, func() error { return d.Directory.SetPassword(ctx, dn, password) })
}

func (d *watched) Make(ctx context.Context, e ldap.Entries) error {
	return d.Call("make", lessor.Secret{}, func() error { return d.Directory.Make(ctx, e) })
}

func (d *watched) Remove(ctx context.Context, e ldap.Entries) error {
	return d.Call("remove", lessor.Secret{}, func() error { return d.Directory.Remove(ctx, e) })
}

func newWorld(t *testing.T, s *ldaptest.Server) *world {
	t.Helper()
	w := &world{T: t, Branch: s.Branch(t)}
	w.begin(w.config(""))
	return w
}

// begin makes lessor, with a configuration of its mount.
func (w *world) begin(config string) {
	w.Helper()
	w.disk, w.clock, w.eye = new(mem.Disk), &steady{}, &eye{}
	t := w.T
	kek, err := seal.CreateKeyFile(filepath.Join(t.TempDir(), "seal.key"), rand.Reader)
	w.must(err)
	var rows []store.Put
	w.keys, rows, err = seal.Init(rand.Reader, w.clock.Now(), kek)
	w.must(err)
	w.boot()
	t.Cleanup(func() { w.end() })
	w.root, err = w.core.Init(t.Context(), rows, lessor.Secret{}, 0)
	w.must(err)
	w.do(lessor.Update, "sys/mounts/ldap", `{"type":"ldap"}`)
	w.do(lessor.Update, "ldap/config", config)
}

// config is a configuration of the branch, with more members.
func (w *world) config(more string) string {
	return fmt.Sprintf(`{"url":%q,"binddn":%q,"bindpass":%q,"userdn":%q%s}`, w.URL(), w.Manager, ldaptest.ManagerPassword, w.Branch.DN, more)
}

// away does something while lessor cannot reach the directory, which is at url.
func (w *world) away(url string, f func()) {
	w.Helper()
	scheme, _, _ := strings.Cut(url, "://")
	w.do(lessor.Update, "ldap/config", fmt.Sprintf(`{"url":"%s://127.0.0.1:1","verify_connection":false}`, scheme))
	f()
	w.do(lessor.Update, "ldap/config", fmt.Sprintf(`{"url":%q}`, url))
}

// boot starts a lessor on what the disk holds.
func (w *world) boot() {
	w.Helper()
	var err error
	w.faulty = storetest.NewFaulty(w.disk.Open(), 1, storetest.Faults{})
	w.db, err = store.Open(w.faulty, store.Options{Clock: w.clock})
	w.must(err)
	w.must(w.db.Unseal(w.keys.Cipher()))
	e := ldap.New(w.eye.open)
	tokens, sys := &authtoken.Backend{}, &system.Backend{Store: w.db}
	backends := map[string]engine.Backend{"ldap": e, "token": tokens, "system": sys, "identity": identity.Backend{}}
	w.core, err = core.New(core.Options{Store: w.db, Keys: w.keys, Random: rand.Reader, Backends: backends, ApplyTimeout: 5 * time.Second, Poll: 20 * time.Millisecond})
	w.must(err)
	c := w.core
	tokens.Settle = func(ctx context.Context, tomb string) error { return c.Reaper().Settle(ctx, tomb) }
	e.Settle = func(ctx context.Context, l *lease.Lease) error { return c.Reaper().SettleLease(ctx, l) }
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

func (w *world) op(token lessor.Secret, verb lessor.Verb, path, data string) *lessor.Op {
	op := &lessor.Op{
		ID: fmt.Sprintf("request-%d", w.n.Add(1)), Verb: verb, Namespace: lessor.RootNamespace, Path: path, Token: token,
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
	return w.core.Handle(context.Background(), w.op(w.root, verb, path, data))
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

// person makes an account of some name at the directory.
func (w *world) person(password string) (name, dn string) {
	w.Helper()
	name = fmt.Sprintf("person%d", w.n.Add(1))
	return name, w.Branch.Person(name, password)
}

// password is what readers of a static role get.
func (w *world) password(role string) string {
	w.Helper()
	return w.do(lessor.Read, "ldap/static-cred/"+role, "").Data["password"].(lessor.Secret).Reveal()
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
		if time.Since(start) > 60*time.Second {
			w.Fatalf("never: %s", what)
		}
	}
}

// leases counts those of the mount that are not gone.
func (w *world) leases() (n int) {
	w.Helper()
	v, err := w.db.View()
	w.must(err)
	defer v.Close()
	for row, err := range v.Scan(store.Leases, "", "") {
		w.must(err)
		if l, err := lease.Decode(row); err == nil && l.Kind == lease.Dynamic {
			n++
		}
	}
	return n
}

// records are the newest audit records of a path, newest first.
func (w *world) records(path string) []audit.At {
	w.Helper()
	all, _, err := w.db.Records(store.Query{Path: path, Newest: true})
	w.must(err)
	return all
}
