// Package enginetest runs an engine the way the core does, without the core: it routes, asks the policies, calls the
// handler and commits its Reply, over a real store under real keys. Every step is held to the contract: a handler changes
// nothing but what its Reply says, and only rows of its own mount.
package enginetest

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
)

// Epoch is when a Bench's clock starts.
var Epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// MountUUID is the UUID of a Bench's mount.
const MountUUID = "enginetest-mount"

// Clock stands still until it is advanced. Safe for concurrent use.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// Now implements lessor.Clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Bench is one mounted engine. Fields may be changed between steps; Try and Begin are otherwise safe for concurrent use.
type Bench struct {
	T         testing.TB
	DB        *store.DB
	Keys      *seal.Keyring
	Clock     *Clock
	Mount     *mount.Entry
	Principal *lessor.Principal // root; a zero Principal is an anonymous client
	Client    netip.Addr
	Shown     []*x509.Certificate // that the client's TLS connection has
	Default   engine.Limits
	System    engine.System
	Reads     int // point reads of the last handler
	Scanned   int // rows that it scanned

	engine engine.Backend
	random io.Reader
	router *engine.Router
	acl    *policy.ACL
	mu     sync.Mutex
	said   []string // all that could have been printed or logged

	requests int
}

// New mounts the engine on a new store.
func New(t testing.TB, backend engine.Backend, options map[string]string) *Bench {
	t.Helper()
	chance := &locked{r: rand.NewChaCha8([32]byte{1})}
	clock := &Clock{now: Epoch}
	db, err := store.Open(mem.New(), store.Options{Clock: clock, Random: chance})
	check(t, err)
	t.Cleanup(func() { check(t, db.Close()) })
	kek, err := seal.CreateKeyFile(filepath.Join(t.TempDir(), "key"), chance)
	check(t, err)
	keys, puts, err := seal.Init(chance, Epoch, kek)
	check(t, err)
	check(t, db.Unseal(keys.Cipher()))
	_, err = db.Commit(t.Context(), store.Txn{Puts: puts})
	check(t, err)
	return &Bench{
		T: t, DB: db, Keys: keys, Clock: clock, engine: backend, random: chance, router: engine.NewRouter(backend.Routes()),
		Mount:     &mount.Entry{UUID: MountUUID, Namespace: lessor.RootNamespace, Path: "bench/", Options: options, Created: Epoch},
		Principal: &lessor.Principal{Root: true, TokenKind: lessor.Service, Token: strings.Repeat("t", 20), Accessor: "root"},
		Client:    netip.MustParseAddr("10.1.2.3"),
		Default:   engine.Limits{TTL: 768 * time.Hour, MaxTTL: 768 * time.Hour},
		acl:       policy.Compile([]*policy.Policy{policy.Root()}, nil),
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// locked lets several goroutines share a source of randomness.
type locked struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *locked) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

// Elsewhere is the same mount as another node serves it, with nothing in memory: it shares store, keys and clock.
func (b *Bench) Elsewhere(backend engine.Backend) *Bench {
	return &Bench{
		T: b.T, DB: b.DB, Keys: b.Keys, Clock: b.Clock, Mount: b.Mount, Principal: b.Principal, Client: b.Client, Default: b.Default, System: b.System,
		engine: backend, random: b.random, router: engine.NewRouter(backend.Routes()), acl: b.acl,
	}
}

// Act is an operation that was planned and not yet committed.
type Act struct {
	Reply *engine.Reply
	bench *Bench
	op    *lessor.Op
}

// Begin plans an operation on the present state. body is a JSON object, or empty. What Commit makes of it later depends
// on what was committed meanwhile.
func (b *Bench) Begin(verb lessor.Verb, path, body string) (*Act, error) {
	return b.BeginAs(b.Principal, verb, path, body)
}

// BeginAs is Begin for somebody else than the Bench's principal.
func (b *Bench) BeginAs(who *lessor.Principal, verb lessor.Verb, path, body string) (*Act, error) {
	b.mu.Lock()
	b.requests++
	id := fmt.Sprintf("request %d", b.requests)
	b.mu.Unlock()
	op := &lessor.Op{
		ID: id, Verb: verb, Namespace: lessor.RootNamespace, Path: b.Mount.Path + path, Client: b.Client, Time: b.Clock.Now(),
		Data: Decode(b.T, body), Certificates: b.Shown,
	}
	before := op.Digest()
	reply, err := b.plan(who, op, path)
	for range 3 {
		unknown, ok := errors.AsType[*engine.Unknown](err)
		if !ok {
			break
		}
		unknown.Learn(context.Background())
		reply, err = b.plan(who, op, path)
	}
	if op.Digest() != before {
		b.T.Errorf("%s %s: the handler changed its Op", verb, path)
	}
	if err != nil {
		b.hear(err.Error())
		return nil, err
	}
	b.hear(fmt.Sprintf("%v %+v %#v %v %v %v", reply.Data, reply.Data, reply.Data, reply.Warnings, reply.Note, reply.Shown))
	b.held(op, reply)
	return &Act{reply, b, op}, nil
}

// plan is the walk through the gate up to the handler's Reply.
func (b *Bench) plan(who *lessor.Principal, op *lessor.Op, path string) (*engine.Reply, error) {
	v, err := b.DB.View()
	check(b.T, err)
	defer v.Close()
	counted := &view{View: v}
	r := &engine.Request{
		Op: op, Verb: op.Verb, Path: strings.TrimSuffix(path, "/"), Principal: who, Mount: b.Mount, View: counted, Opener: b.Keys,
		Now: op.Time, Random: b.random, Default: b.Default, System: b.System,
	}
	route, params := b.router.Match(op.Verb, path)
	if route == nil {
		return nil, api.Errorf(api.NotFound, "no handler for route %q", path)
	}
	r.Params = params
	facts := policy.Facts{Mount: b.Mount.UUID, Sudo: route.Sudo, Open: route.Open}
	if route.Exists != nil && op.Verb == lessor.Update {
		if facts.Exists, err = route.Exists(r); err != nil {
			return nil, err
		}
		facts.ExistsKnown = true
	}
	d := policy.Decide(b.acl, who, op, facts)
	if d.Denied != nil {
		return nil, d.Denied
	}
	r.Grant, r.Verb = d.Grant, d.Grant.Verb()
	handler := route.Handler(r.Verb)
	if handler == nil {
		return nil, api.Errorf(api.Unsupported, "unsupported operation")
	}
	unknown, err := r.Bind(route)
	if err != nil {
		return nil, err
	}
	counted.reads, counted.scanned = 0, 0
	reply, err := handler(context.Background(), r)
	b.mu.Lock()
	b.Reads, b.Scanned = counted.reads, counted.scanned
	b.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if reply == nil {
		reply = &engine.Reply{}
	}
	if len(unknown) > 0 {
		reply.Warnings = append([]string{engine.Ignored(unknown)}, reply.Warnings...)
	}
	return reply, nil
}

// Verb is what policies take an operation for on the present state: a write is Create or Update.
func (b *Bench) Verb(verb lessor.Verb, path, body string) lessor.Verb {
	b.T.Helper()
	v, err := b.DB.View()
	check(b.T, err)
	defer v.Close()
	route, params := b.router.Match(verb, path)
	if route == nil || route.Exists == nil || verb != lessor.Update {
		return verb
	}
	there, err := route.Exists(&engine.Request{
		Op: &lessor.Op{Verb: verb, Data: Decode(b.T, body)}, Verb: verb, Path: path, Params: params, Principal: b.Principal, Mount: b.Mount,
		View: v, Opener: b.Keys, Now: b.Clock.Now(),
	})
	check(b.T, err)
	if there {
		return lessor.Update
	}
	return lessor.Create
}

// view counts what is read.
type view struct {
	store.View
	reads, scanned int
}

func (v *view) Scan(t store.Table, from, to string) iter.Seq2[store.Row, error] {
	return func(yield func(store.Row, error) bool) {
		for row, err := range v.View.Scan(t, from, to) {
			v.scanned++
			if !yield(row, err) {
				return
			}
		}
	}
}

func (v *view) Get(k store.Key) (store.Row, error) {
	v.reads++
	return v.View.Get(k)
}

// held holds a Reply to the contract.
func (b *Bench) held(op *lessor.Op, r *engine.Reply) {
	b.T.Helper()
	own := func(k store.Key, to string) {
		begin := store.MountKey(b.Mount.Namespace, b.Mount.UUID)
		if !strings.HasPrefix(k.Name, begin) || to != k.Name && !strings.HasPrefix(to, begin) {
			b.T.Errorf("%s %s touches %s, which is not the mount's", op.Verb, op.Path, k)
		}
		if k.Table != store.Config && k.Table != store.Engine && k.Table != store.Secrets {
			b.T.Errorf("%s %s touches table %s", op.Verb, op.Path, k.Table)
		}
	}
	for _, p := range r.Txn.Puts {
		own(p.Key, p.Name)
	}
	for _, k := range r.Txn.Deletes {
		own(k, k.Name)
	}
	for _, g := range r.Txn.Ranges {
		own(store.Key{Table: g.Table, Name: g.From}, g.To)
	}
	if len(r.Txn.Audit) > 0 {
		b.T.Errorf("%s %s writes audit records, which is the core's to do", op.Verb, op.Path)
	}
	for _, s := range r.Shown {
		if s.How == "" || len(s.Fingerprint) != 16 && s.How != "destroyed" {
			b.T.Errorf("%s %s: what it shows has no fingerprint: %+v", op.Verb, op.Path, s)
		}
	}
}

// Commit does what the Act's Reply says. A *store.Conflict means that nothing was done.
func (a *Act) Commit() error {
	txn := a.Reply.Txn
	txn.Audit = []audit.Record{{Time: a.op.Time, Operation: a.op.Verb.String(), Path: a.op.Path, Phase: audit.Done, Secrets: a.Reply.Shown, Note: a.Reply.Note}}
	_, err := a.bench.DB.Commit(context.Background(), txn)
	return err
}

// Try does an operation from beginning to end, again and again while others are in its way, as the core does.
func (b *Bench) Try(verb lessor.Verb, path, body string) (*engine.Reply, error) {
	for range 1000 {
		act, err := b.Begin(verb, path, body)
		if err != nil {
			return nil, err
		}
		if err = act.Commit(); !errors.As(err, new(*store.Conflict)) {
			if err == nil && act.Reply.Tidy {
				err = b.tidy()
			}
			return act.Reply, err
		}
	}
	return nil, errors.New("enginetest: conflicts without end")
}

// tidy does what the core does in the background.
func (b *Bench) tidy() error {
	for from, more := "", true; more; more = from != "" {
		v, err := b.DB.View()
		if err != nil {
			return err
		}
		var txn store.Txn
		from, err = b.engine.(engine.Tidier).Tidy(v, &txn, b.Mount, from, b.Clock.Now())
		v.Close()
		if err != nil {
			return err
		}
		txn.Audit = []audit.Record{{Time: b.Clock.Now(), Operation: "tidy", Path: b.Mount.Path, Phase: audit.Done}}
		if _, err := b.DB.Commit(context.Background(), txn); err != nil {
			return err
		}
	}
	return nil
}

// Do is Try for what has to succeed.
func (b *Bench) Do(verb lessor.Verb, path, body string) *engine.Reply {
	b.T.Helper()
	r, err := b.Try(verb, path, body)
	if err != nil {
		b.T.Fatalf("%s %s %s: %v", verb, path, body, err)
	}
	return r
}

// Step is one operation and what must come of it.
type Step struct {
	Name   string
	Verb   lessor.Verb
	Path   string
	Body   string // JSON
	After  time.Duration
	Want   string // the answer's data as JSON; "" for none; the string "*" stands for any value
	Status int
	Warn   string
	Kind   api.Kind // of the error, if Err or Fails is set
	Err    string
	Fails  bool // the error has no text
}

// Run does the steps in order. After is how much time passes before a step.
func (b *Bench) Run(steps ...Step) {
	b.T.Helper()
	for i, s := range steps {
		at := fmt.Sprintf("step %d %s: %s %s %s", i+1, s.Name, s.Verb, s.Path, s.Body)
		b.Clock.Advance(s.After)
		r, err := b.Try(s.Verb, s.Path, s.Body)
		if s.Err != "" || s.Fails {
			switch {
			case err == nil:
				b.T.Fatalf("%s: no error, want %q", at, s.Err)
			case err.Error() != s.Err || api.KindOf(err) != s.Kind:
				b.T.Fatalf("%s: got %s %q, want %s %q", at, api.KindOf(err), err, s.Kind, s.Err)
			}
			continue
		}
		if err != nil {
			b.T.Fatalf("%s: %v", at, err)
		}
		if r.Status != s.Status {
			b.T.Errorf("%s: status %d, want %d", at, r.Status, s.Status)
		}
		if warned := strings.Join(r.Warnings, "\n"); warned != s.Warn {
			b.T.Errorf("%s: warnings %q, want %q", at, warned, s.Warn)
		}
		if !Matches(b.T, r.Data, s.Want) {
			b.T.Errorf("%s:\n got %s\nwant %s", at, JSON(r.Data), s.Want)
		}
	}
}

// JSON is data as a client gets it.
func JSON(data map[string]any) string {
	if data == nil {
		return ""
	}
	return string(lessor.AppendJSON(nil, data))
}

// Matches compares data with JSON, in which "*" stands for any value.
func Matches(t testing.TB, data map[string]any, want string) bool {
	t.Helper()
	if data == nil || want == "" {
		return data == nil && want == ""
	}
	return matches(decode(t, JSON(data)), decode(t, want))
}

func matches(got, want any) bool {
	switch w := want.(type) {
	case string:
		if w == "*" {
			return got != nil
		}
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok || len(g) != len(w) {
			return false
		}
		for k := range w {
			if v, ok := g[k]; !ok || !matches(v, w[k]) {
				return false
			}
		}
		return true
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return false
		}
		for i := range w {
			if !matches(g[i], w[i]) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(got, want)
}

// Decode reads a body as the server does.
func Decode(t testing.TB, body string) map[string]any {
	t.Helper()
	if body == "" {
		return nil
	}
	m, ok := decode(t, body).(map[string]any)
	if !ok {
		t.Fatalf("not an object: %s", body)
	}
	return m
}

func decode(t testing.TB, text string) any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

func (b *Bench) hear(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.said = append(b.said, text)
}

// NoTrace fails the test if one of the secrets can be found in errors, printed replies, audit records, names of rows, or
// rows that open without a Grant.
func (b *Bench) NoTrace(secrets ...string) {
	b.T.Helper()
	find := func(where, text string) {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				b.T.Errorf("%s holds the secret %q: %q", where, s, text)
			}
		}
	}
	b.mu.Lock()
	for _, text := range b.said {
		find("something said", text)
	}
	b.mu.Unlock()
	b.Rows(func(row store.Row) {
		find(row.Key.Table.String(), row.Name+"\x00"+string(row.Value)+"\x00"+string(row.Sealed()))
	})
}

// Rows yields all rows of the tables that engines keep, and all audit records.
func (b *Bench) Rows(yield func(store.Row)) {
	b.T.Helper()
	v, err := b.DB.View()
	check(b.T, err)
	defer v.Close()
	for _, t := range []store.Table{store.Config, store.Engine, store.Secrets, store.Records} {
		for row, err := range v.Scan(t, "", "") {
			check(b.T, err)
			yield(row)
		}
	}
}

// Count is the number of rows of the mount in a table.
func (b *Bench) Count(t store.Table) (n int) {
	b.T.Helper()
	b.Rows(func(row store.Row) {
		if _, m, _ := store.SplitMountKey(row.Name); row.Table == t && m == b.Mount.UUID {
			n++
		}
	})
	return n
}
