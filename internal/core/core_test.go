package core_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/auth/approle"
	"github.com/lessor-dev/lessor/internal/auth/cert"
	"github.com/lessor-dev/lessor/internal/auth/jwt"
	authtoken "github.com/lessor-dev/lessor/internal/auth/token"
	"github.com/lessor-dev/lessor/internal/auth/userpass"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/cubbyhole"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/database/postgres"
	"github.com/lessor-dev/lessor/internal/engine/database/rabbitmq"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/engine/kv"
	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/engine/ldap/directory"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/system"
)

// gate is a whole lessor over a store in memory, without HTTP, with a clock that the test moves.
type gate struct {
	*testing.T
	core     *core.Core
	db       *store.DB
	clock    *enginetest.Clock
	root     lessor.Secret
	backends map[string]engine.Backend
	target   *target
	n        int
	mu       sync.Mutex
}

func start(t *testing.T, set ...func(*core.Options)) *gate {
	t.Helper()
	return startWith(t, store.Options{}, set...)
}

// startWith is start over a store with options.
func startWith(t *testing.T, options store.Options, set ...func(*core.Options)) *gate {
	t.Helper()
	return startOn(t, mem.New(), options, set...)
}

// startOn is start over a backend.
func startOn(t *testing.T, b store.Backend, options store.Options, set ...func(*core.Options)) *gate {
	t.Helper()
	t.Parallel()
	clock := &enginetest.Clock{}
	for !clock.Now().Equal(enginetest.Epoch) { // a difference of times has a largest value
		clock.Advance(enginetest.Epoch.Sub(clock.Now()))
	}
	options.Clock = clock
	db, err := store.Open(b, options)
	if err != nil {
		t.Fatal(err)
	}
	kek, err := seal.CreateKeyFile(t.TempDir()+"/seal.key", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, rows, err := seal.Init(rand.Reader, clock.Now(), kek)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Unseal(keys.Cipher()); err != nil {
		t.Fatal(err)
	}
	tokens, sys := &authtoken.Backend{}, &system.Backend{Store: db, Keys: keys}
	backends := map[string]engine.Backend{
		"kv": kv.V1{}, "kv-v2": kv.V2{}, "cubbyhole": cubbyhole.Backend{}, "userpass": userpass.New(), "approle": approle.Backend{}, "jwt": jwt.New(), "cert": cert.Backend{},
		"token": tokens, "system": sys, "identity": identity.Backend{}, "database": database.New(postgres.Driver{}),
		"ldap": ldap.New(directory.Open), "rabbitmq": rabbitmq.New(),
	}
	g := &gate{T: t, db: db, clock: clock, backends: backends, target: &target{accounts: map[string]bool{}}}
	backends["target"] = g.target
	o := core.Options{Store: db, Keys: keys, Random: rand.Reader, Backends: backends}
	for _, f := range set {
		f(&o)
	}
	c, err := core.New(o)
	if err != nil {
		t.Fatal(err)
	}
	tokens.Settle = func(ctx context.Context, tomb string) error { return c.Reaper().Settle(ctx, tomb) }
	sys.Quotas, sys.Events, sys.Listen = c.Quotas(), c.Events(), c.Listen
	sys.Reaper, sys.Backends, sys.RequireOwner = c.Reaper(), backends, o.RequireOwner
	sys.Node = system.Node{
		Version: "test", Members: func(context.Context) ([]system.Member, error) {
			return []system.Member{{Name: "test", State: "active", Alive: true, Self: true}}, nil
		}, Settings: func() map[string]any { return map[string]any{"storage": "mem"} },
		InFlight: func() map[string]any { return map[string]any{} }, Level: func() string { return "info" }, SetLevel: func(string) error { return nil },
	}
	sys.Reported, sys.Upgrade = "1.20.0", c.Upgrade
	sys.Info = func() map[string]any { return map[string]any{"version": "test"} }
	sys.Metrics = system.Metrics{Text: writes("lessor_up 1\n"), JSON: writes(`{"Gauges":[]}`)}
	sys.Outside = []engine.Route{{Pattern: "health", Help: "whether to send requests here", Open: true, Ops: map[lessor.Verb]engine.Handler{lessor.Read: nil}}}
	g.core = c
	if g.root, err = c.Init(t.Context(), rows, lessor.Secret{}, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if _, err := db.Verify(context.Background(), nil); err != nil {
			t.Errorf("the store does not verify: %v", err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// writes is a stream of one text.
func writes(text string) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

// op makes an operation; data is JSON.
func (g *gate) op(token lessor.Secret, verb lessor.Verb, path, data string) *lessor.Op {
	g.mu.Lock()
	g.n++
	id := fmt.Sprintf("request-%d", g.n)
	g.mu.Unlock()
	op := &lessor.Op{
		ID: id, Verb: verb, Namespace: lessor.RootNamespace, Path: path, Token: token, Client: netip.MustParseAddr("127.0.0.1"), Time: g.db.Now(),
	}
	if data != "" {
		d := json.NewDecoder(strings.NewReader(data))
		d.UseNumber()
		if err := d.Decode(&op.Data); err != nil {
			g.Fatalf("%s: %v", data, err)
		}
	}
	return op
}

func (g *gate) try(token lessor.Secret, verb lessor.Verb, path, data string) (*lessor.Answer, error) {
	return g.core.Handle(context.Background(), g.op(token, verb, path, data))
}

func (g *gate) do(token lessor.Secret, verb lessor.Verb, path, data string) *lessor.Answer {
	g.Helper()
	a, err := g.try(token, verb, path, data)
	if err != nil {
		g.Fatalf("%s %s: %v", verb, path, err)
	}
	return a
}

func (g *gate) refused(kind api.Kind, token lessor.Secret, verb lessor.Verb, path, data string) string {
	g.Helper()
	a, err := g.try(token, verb, path, data)
	if err == nil {
		g.Fatalf("%s %s was not refused: %+v", verb, path, a.Data)
	}
	if got := api.KindOf(err); got != kind {
		g.Fatalf("%s %s: %s error, want %s: %v", verb, path, got, kind, err)
	}
	return err.Error()
}

func (g *gate) token(data string) lessor.Secret {
	g.Helper()
	return g.do(g.root, lessor.Update, "auth/token/create", data).Auth.Token
}

// last are the newest audit records of a path, newest first.
func (g *gate) last(path string) []audit.At {
	g.Helper()
	records, _, err := g.db.Records(store.Query{Path: path, Newest: true})
	if err != nil {
		g.Fatal(err)
	}
	return records
}

func (g *gate) kv2(path string) {
	g.Helper()
	g.do(g.root, lessor.Update, "sys/mounts/"+path, `{"type":"kv","options":{"version":"2"}}`)
}

func (g *gate) policy(name, source string) {
	g.Helper()
	g.do(g.root, lessor.Update, "sys/policies/acl/"+name, string(lessor.AppendJSON(nil, map[string]any{"policy": source})))
}

func TestGrantNamesRuleAndVersion(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	g.policy("dev", `path "secret/data/*" { capabilities = ["read"] }`)
	dev := g.token(`{"policies":["dev"]}`)
	a := g.do(dev, lessor.Read, "secret/data/app", "")
	rec := g.last("secret/data/app")[0]
	if !rec.Granted || rec.Policy != "dev" || !strings.Contains(rec.Rule, `secret/data/*`) || rec.PolicyVersion == 0 || rec.Lease != a.Lease.ID || rec.Lease == "" {
		t.Errorf("audit record of a read: %+v", rec.Record)
	}
	if len(rec.Secrets) != 1 || rec.Secrets[0].Version != 1 || len(rec.Secrets[0].Fingerprint) == 0 {
		t.Errorf("what it showed: %+v", rec.Secrets)
	}
	first := rec.PolicyVersion
	g.policy("dev", `path "secret/data/*" { capabilities = ["read", "list"] }`)
	g.do(dev, lessor.Read, "secret/data/app", "")
	if rec = g.last("secret/data/app")[0]; rec.PolicyVersion <= first {
		t.Errorf("after the policy changed its version is %d, before %d", rec.PolicyVersion, first)
	}
}

func TestDenialNamesRule(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	stranger := g.token(`{"policies":["default"]}`)
	text := g.refused(api.Denied, stranger, lessor.Read, "secret/data/app", "")
	if !strings.Contains(text, "permission denied") || !strings.Contains(text, "default") {
		t.Errorf("denial: %s", text)
	}
	rec := g.last("secret/data/app")[0]
	if rec.Granted || rec.ErrorKind != "denied" || rec.Rule == "" || rec.Accessor == "" {
		t.Errorf("record of the denial: %+v", rec.Record)
	}
	if text := g.refused(api.Unauthenticated, lessor.Secret{}, lessor.Read, "secret/data/app", ""); !strings.Contains(text, "permission denied") {
		t.Errorf("anonymous: %s", text)
	}
	g.refused(api.Unauthenticated, lessor.NewSecret("hvs.guess"), lessor.Read, "secret/data/app", "")
	for _, rec := range g.last("secret/data/app")[:2] {
		if rec.Granted || rec.ErrorKind != "unauthenticated" {
			t.Errorf("record of an unusable token: %+v", rec.Record)
		}
	}
}

func TestPolicyChangeIsInForceAtOnce(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	dev := g.token(`{"policies":["dev"]}`)
	for range 20 {
		g.policy("dev", `path "secret/data/*" { capabilities = ["read"] }`)
		g.do(dev, lessor.Read, "secret/data/app", "")
		g.do(g.root, lessor.Delete, "sys/policies/acl/dev", "")
		g.refused(api.Denied, dev, lessor.Read, "secret/data/app", "")
	}
}

// Many who change the same at once take turns; none is sent away.
func TestManyChangesAtOnce(t *testing.T) {
	g := start(t)
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			for range 3 {
				if _, err := g.try(g.root, lessor.Update, fmt.Sprintf("sys/policies/acl/p%d", i), `{"policy":"path \"x\" {}"}`); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func TestTokenTreeDiesAtOnce(t *testing.T) {
	g := start(t)
	parent := g.token(`{"policies":["default"],"meta":{"a":"b"}}`)
	g.policy("maker", `path "auth/token/create" { capabilities = ["update"] }`)
	maker := g.token(`{"policies":["maker","default"]}`)
	child := g.do(maker, lessor.Update, "auth/token/create", `{"policies":["maker","default"]}`).Auth.Token
	grandchild := g.do(child, lessor.Update, "auth/token/create", `{}`).Auth.Token
	batch := g.do(child, lessor.Update, "auth/token/create", `{"type":"batch"}`).Auth.Token
	orphan := g.do(g.root, lessor.Update, "auth/token/create-orphan", `{"policies":["default"]}`).Auth.Token
	for _, tok := range []lessor.Secret{parent, maker, child, grandchild, batch, orphan} {
		g.do(tok, lessor.Read, "auth/token/lookup-self", "")
	}
	g.do(maker, lessor.Update, "auth/token/revoke-self", "")
	for _, tok := range []lessor.Secret{maker, child, grandchild, batch} {
		g.refused(api.Unauthenticated, tok, lessor.Read, "auth/token/lookup-self", "")
	}
	g.do(parent, lessor.Read, "auth/token/lookup-self", "")
	g.do(orphan, lessor.Read, "auth/token/lookup-self", "")
}

func TestTokenExpiryAndRenewal(t *testing.T) {
	g := start(t)
	a := g.do(g.root, lessor.Update, "auth/token/create", `{"policies":["default"],"ttl":"1h","explicit_max_ttl":"2h"}`)
	if a.Auth.Duration != time.Hour {
		t.Errorf("ttl %v", a.Auth.Duration)
	}
	g.clock.Advance(50 * time.Minute)
	if r := g.do(a.Auth.Token, lessor.Update, "auth/token/renew-self", `{"increment":"1h"}`); r.Auth.Duration != time.Hour {
		t.Errorf("renewed to %v", r.Auth.Duration)
	}
	g.clock.Advance(50 * time.Minute)
	r := g.do(a.Auth.Token, lessor.Update, "auth/token/renew-self", `{"increment":"1h"}`)
	if r.Auth.Duration != 20*time.Minute || len(r.Warnings) == 0 {
		t.Errorf("beyond its maximum it was renewed to %v, warnings %v", r.Auth.Duration, r.Warnings)
	}
	g.clock.Advance(21 * time.Minute)
	g.refused(api.Unauthenticated, a.Auth.Token, lessor.Read, "auth/token/lookup-self", "")
	periodic := g.do(g.root, lessor.Update, "auth/token/create", `{"policies":["default"],"period":"1h"}`)
	for range 5 {
		g.clock.Advance(50 * time.Minute)
		if r := g.do(periodic.Auth.Token, lessor.Update, "auth/token/renew-self", `{"increment":"5h"}`); r.Auth.Duration != time.Hour {
			t.Errorf("periodic token renewed to %v", r.Auth.Duration)
		}
	}
}

func TestUsesAreCounted(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	g.policy("dev", `path "secret/data/*" { capabilities = ["read"] }`)
	tok := g.token(`{"policies":["dev"],"num_uses":3}`)
	var wg sync.WaitGroup
	var mu sync.Mutex
	granted := 0
	for range 16 {
		wg.Go(func() {
			if _, err := g.try(tok, lessor.Read, "secret/data/app", ""); err == nil {
				mu.Lock()
				granted++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if granted != 3 {
		t.Errorf("a token of 3 uses was used %d times", granted)
	}
	if text := g.refused(api.Unauthenticated, tok, lessor.Read, "secret/data/app", ""); text == "" {
		t.Error("no text")
	}
	limited := g.token(`{"policies":["default"],"num_uses":5}`)
	g.refused(api.Denied, limited, lessor.Update, "auth/token/create", `{}`)
}

func TestChildPoliciesAreASubset(t *testing.T) {
	g := start(t)
	g.policy("maker", `path "auth/token/create*" { capabilities = ["update"] }`)
	maker := g.token(`{"policies":["maker"]}`)
	g.do(maker, lessor.Update, "auth/token/create", `{"policies":["maker"]}`)
	g.refused(api.Invalid, maker, lessor.Update, "auth/token/create", `{"policies":["other"]}`)
	g.refused(api.Invalid, maker, lessor.Update, "auth/token/create", `{"policies":["root"]}`)
	g.refused(api.Invalid, maker, lessor.Update, "auth/token/create", `{"id":"a-custom-token-id"}`)
	g.refused(api.Invalid, maker, lessor.Update, "auth/token/create", `{"no_parent":true}`)
	g.refused(api.Invalid, maker, lessor.Update, "auth/token/create", `{"period":"1h"}`)
	g.refused(api.Invalid, maker, lessor.Update, "auth/token/create-orphan", `{"policies":["other"]}`)
	if a := g.do(maker, lessor.Update, "auth/token/create-orphan", `{}`); !a.Auth.Orphan || fmt.Sprint(a.Auth.TokenPolicies) != "[default maker]" {
		t.Errorf("an orphan: %+v", a.Auth)
	}
	expiring := g.token(`{"policies":["root"],"ttl":"1h"}`)
	g.refused(api.Invalid, expiring, lessor.Update, "auth/token/create", `{"policies":["root"]}`)
	g.do(expiring, lessor.Update, "auth/token/create", `{"policies":["root"],"ttl":"10m"}`)
}

func TestWrappingIsOnceAndRecorded(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	op := g.op(g.root, lessor.Read, "secret/data/app", "")
	op.WrapTTL = time.Minute
	a, err := g.core.Handle(t.Context(), op)
	if err != nil {
		t.Fatal(err)
	}
	if a.Wrap == nil || a.Data != nil || a.Lease.ID != "" {
		t.Fatalf("not wrapped: %+v", a)
	}
	g.refused(api.Denied, a.Wrap.Token, lessor.Read, "secret/data/app", "")
	look := g.do(lessor.Secret{}, lessor.Update, "sys/wrapping/lookup", `{"token":"`+a.Wrap.Token.Reveal()+`"}`)
	if look.Data["creation_path"] != "secret/data/app" {
		t.Errorf("lookup: %v", look.Data)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var got []string
	for range 8 {
		wg.Go(func() {
			if a, err := g.try(a.Wrap.Token, lessor.Update, "sys/wrapping/unwrap", ""); err == nil {
				mu.Lock()
				got = append(got, string(a.Append(nil, "x")))
				mu.Unlock()
			} else if api.KindOf(err) != api.Invalid {
				t.Errorf("second unwrap: %v", err)
			}
		})
	}
	wg.Wait()
	if len(got) != 1 || !strings.Contains(got[0], `"k":"v"`) || !strings.Contains(got[0], `"lease_id":"secret/data/app/`) {
		t.Errorf("unwrapped %d times: %v", len(got), got)
	}
	var security int
	for _, rec := range g.last("sys/wrapping/unwrap") {
		if strings.Contains(rec.Note, "suspect") {
			security++
		}
	}
	if security != 7 {
		t.Errorf("%d records of a second unwrap, want 7", security)
	}
	// Which token was made is on record, wrapped or not.
	op = g.op(g.root, lessor.Update, "auth/token/create", `{"policies":["default"]}`)
	op.WrapTTL = time.Minute
	made, err := g.core.Handle(t.Context(), op)
	if err != nil {
		t.Fatal(err)
	}
	if note := g.last("auth/token/create")[0].Note; note != "token "+made.Wrap.WrappedAccessor+", wrapped" {
		t.Errorf("note of a wrapped token: %q", note)
	}
	// An expired wrapping token is worth nothing, and what it wrapped goes.
	op = g.op(g.root, lessor.Read, "secret/data/app", "")
	op.WrapTTL = time.Minute
	if a, err = g.core.Handle(t.Context(), op); err != nil {
		t.Fatal(err)
	}
	g.clock.Advance(2 * time.Minute)
	g.refused(api.Invalid, a.Wrap.Token, lessor.Update, "sys/wrapping/unwrap", "")
}

func TestHolderOfAStaticSecret(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/app", `{"data":{"k":"v"}}`)
	one := g.do(g.root, lessor.Read, "secret/data/app", "")
	again := g.do(g.root, lessor.Read, "secret/data/app", "")
	if one.Lease.ID != again.Lease.ID || one.Lease.Duration != 300*time.Second || one.Lease.Renewable {
		t.Errorf("first %+v, again %+v", one.Lease, again.Lease)
	}
	op := g.op(g.root, lessor.Read, "secret/data/app", "")
	op.Instance = "another"
	other, err := g.core.Handle(t.Context(), op)
	if err != nil {
		t.Fatal(err)
	}
	if other.Lease.ID == one.Lease.ID {
		t.Error("another instance got the same lease")
	}
	held := g.do(g.root, lessor.Read, "sys/lessor/holders/secret/app", "").Data["holders"].([]any)
	if len(held) != 2 {
		t.Errorf("holders: %v", held)
	}
	// It outlives the token that read it.
	g.policy("dev", `path "secret/data/*" { capabilities = ["read"] }`)
	tok := g.token(`{"policies":["dev","default"]}`)
	mine := g.do(tok, lessor.Read, "secret/data/app", "")
	g.do(tok, lessor.Update, "auth/token/revoke-self", "")
	if r := g.do(g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+mine.Lease.ID+`"}`); r.Lease.ID != mine.Lease.ID || r.Data != nil {
		t.Errorf("renewal after the token went: %+v", r)
	}
	g.do(g.root, lessor.Update, "sys/leases/revoke", `{"lease_id":"`+mine.Lease.ID+`"}`)
	g.refused(api.Invalid, g.root, lessor.Update, "sys/leases/renew", `{"lease_id":"`+mine.Lease.ID+`"}`)
}

func TestOwnersAreResolvedAndRequired(t *testing.T) {
	g := start(t, func(o *core.Options) { o.RequireOwner = true })
	if text := g.refused(api.Invalid, g.root, lessor.Update, "sys/mounts/secret", `{"type":"kv","options":{"version":"2"}}`); !strings.Contains(text, "owner") {
		t.Errorf("refusal: %s", text)
	}
	g.do(g.root, lessor.Update, "sys/mounts/plain", `{"type":"kv","owner":"team-a"}`)
	a := g.do(g.root, lessor.Update, "plain/x", `{"k":"v"}`)
	_ = a
	if o := g.do(g.root, lessor.Read, "sys/lessor/owners/plain/x", "").Data; o["owner"] != "team-a" || o["from"] != "plain/" {
		t.Errorf("owner of a secret: %v", o)
	}
	g.do(g.root, lessor.Update, "sys/lessor/owners/plain/x", `{"owner":"ann"}`)
	read := g.do(g.root, lessor.Read, "plain/x", "")
	look := g.do(g.root, lessor.Update, "sys/leases/lookup", `{"lease_id":"`+read.Lease.ID+`"}`)
	if look.Data["owner"] != "ann" {
		t.Errorf("owner of a lease: %v", look.Data)
	}
	if rec := g.last("plain/x")[1]; rec.Owner != "ann" {
		t.Errorf("owner in the record: %+v", rec.Record)
	}
}

func TestIdentityPoliciesAndGroups(t *testing.T) {
	g := start(t)
	g.kv2("secret")
	g.do(g.root, lessor.Update, "secret/data/team", `{"data":{"k":"v"}}`)
	g.do(g.root, lessor.Update, "sys/auth/userpass", `{"type":"userpass"}`)
	g.do(g.root, lessor.Update, "auth/userpass/users/ann", `{"password":"a long password"}`)
	login := g.do(lessor.Secret{}, lessor.Update, "auth/userpass/login/ann", `{"password":"a long password"}`)
	g.refused(api.Denied, login.Auth.Token, lessor.Read, "secret/data/team", "")
	g.policy("team", `path "secret/data/{{identity.groups.names.team.name}}" { capabilities = ["read"] }`)
	g.do(g.root, lessor.Update, "identity/group", `{"name":"team","policies":["team"],"member_entity_ids":["`+login.Auth.Entity+`"]}`)
	g.do(login.Auth.Token, lessor.Read, "secret/data/team", "")
	if rec := g.last("secret/data/team")[0]; rec.Entity != login.Auth.Entity || len(rec.Groups) != 1 || rec.Groups[0] != "team" || rec.Alias != "ann" {
		t.Errorf("record: %+v", rec.Record)
	}
	g.do(g.root, lessor.Update, "identity/group/name/team", `{"member_entity_ids":[]}`)
	g.refused(api.Denied, login.Auth.Token, lessor.Read, "secret/data/team", "")
	g.do(g.root, lessor.Update, "identity/entity/id/"+login.Auth.Entity, `{"disabled":true}`)
	g.refused(api.Unauthenticated, login.Auth.Token, lessor.Read, "auth/token/lookup-self", "")
}

func TestDisabledMountIsGone(t *testing.T) {
	g := start(t)
	for range 3 {
		g.kv2("team")
		g.do(g.root, lessor.Update, "team/data/app", `{"data":{"k":"v"}}`)
		g.do(g.root, lessor.Read, "team/data/app", "")
		g.do(g.root, lessor.Delete, "sys/mounts/team", "")
		g.refused(api.NotFound, g.root, lessor.Read, "team/data/app", "")
	}
	g.kv2("team")
	g.refused(api.NotFound, g.root, lessor.Read, "team/data/app", "")
	g.refused(api.Invalid, g.root, lessor.Delete, "sys/mounts/sys", "")
	g.refused(api.Invalid, g.root, lessor.Update, "sys/mounts/team/below", `{"type":"kv"}`)
}

func TestLoginsOfADisabledMethodDie(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/auth/approle", `{"type":"approle"}`)
	g.do(g.root, lessor.Update, "auth/approle/role/app", `{"token_policies":"default"}`)
	id := g.do(g.root, lessor.Read, "auth/approle/role/app/role-id", "").Data["role_id"]
	sid := g.do(g.root, lessor.Update, "auth/approle/role/app/secret-id", "").Data["secret_id"].(lessor.Secret)
	body := string(lessor.AppendJSON(nil, map[string]any{"role_id": id, "secret_id": sid}))
	login := g.do(lessor.Secret{}, lessor.Update, "auth/approle/login", body)
	g.do(login.Auth.Token, lessor.Read, "auth/token/lookup-self", "")
	g.do(g.root, lessor.Delete, "sys/auth/approle", "")
	g.refused(api.Unauthenticated, login.Auth.Token, lessor.Read, "auth/token/lookup-self", "")
}

// What a wide revocation hits is not told to be live, though the revocation has not come to its row yet.
func TestLookupOfWhatIsRevoked(t *testing.T) {
	g := start(t)
	g.do(g.root, lessor.Update, "sys/mounts/target", `{"type":"target"}`)
	var leases []string
	for range 200 {
		leases = append(leases, g.do(g.root, lessor.Read, "target/creds/app", "").Lease.ID)
	}
	g.do(g.root, lessor.Update, "sys/leases/revoke-prefix/target", `{"sync":false}`)
	for _, id := range leases {
		switch a, err := g.try(g.root, lessor.Update, "sys/leases/lookup", `{"lease_id":"`+id+`"}`); {
		case err == nil && (a.Data["state"] != "revoking" || a.Data["renewable"] != false):
			t.Fatalf("after the revocation: %v", a.Data)
		case err != nil && api.KindOf(err) != api.Invalid:
			t.Fatal(err)
		}
	}
}
