// Package core is the gate: every operation, a client's or lessor's own, walks through Handle, and nothing reaches a
// secret or a target by another way. It wires the domain's packages together through interfaces and imports no adapter.
//
// Read gate.go first: it is the walk of one request, top to bottom.
package core

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/event"
	"github.com/lessor-dev/lessor/internal/exporter"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/lockout"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/policy/book"
	"github.com/lessor-dev/lessor/internal/quota"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/tally"
	"github.com/lessor-dev/lessor/internal/token"
	"github.com/lessor-dev/lessor/internal/wrapping"
)

// Options of a Core. Store, Keys and Backends are needed; the rest has defaults.
type Options struct {
	Store        *store.DB // unsealed
	Keys         *seal.Keyring
	Random       io.Reader
	Log          *slog.Logger
	Backends     map[string]engine.Backend // by mount type
	RequireOwner bool                      // refuse to create what nobody owns
	Reported     string                    // the version that Vault's clients compare with
	Lockout      lockout.Settings          // of users who fail to log in
	DefaultTTL   time.Duration             // of tokens and leases; 0: 768 h
	MaxTTL       time.Duration             // 0: 768 h
	ApplyTimeout time.Duration             // of one touch of a target for a request; 0: 30 s
	ExportWait   time.Duration             // how much longer than retention says audit records are kept for devices that lag; 0: not at all
	Poll         time.Duration             // how often the background looks for what became due; 0: 1 s
	Claims       *claim.Claims             // which background work is this node's; nil: all of it, since there is no other node
	Cluster      string                    // what events name as their source; empty: vault://lessor
	Subscribers  int                       // to events, at once; 0: no bound
	Patience     time.Duration             // how long an answer waits for what the background does at targets; 0: 45 s, less than clients wait
}

// Core is the gate. Its methods are safe for concurrent use.
type Core struct {
	Options
	mounts   atomic.Pointer[mounted]
	routers  map[string]*engine.Router
	policies book.Book
	standing cache[*standing]
	owners   cache[owned]
	tombs    cache[lease.Tombs]
	past     cache[lease.Tombs]
	headers  cache[exporter.Headers]
	reaper   *lease.Reaper
	rotator  *rotation.Worker
	feed     *event.Feed
	turning  claims
	crowd    crowd
	strays   searching
	counters counters

	tidying   chan struct{} // asks for a round before its time
	demanding chan struct{} // says that there are demands
	strangers *tally.Tally
	guard     lockout.Guard
	quotas    *quota.Guard
	upgrading sync.Mutex // one upgrade at a time
}

// New wires a Core. It starts nothing.
func New(o Options) (*Core, error) {
	if o.Store == nil || o.Keys == nil {
		return nil, errors.New("core: store and keys are needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.DefaultTTL == 0 {
		o.DefaultTTL = 768 * time.Hour
	}
	if o.MaxTTL == 0 {
		o.MaxTTL = 768 * time.Hour
	}
	if o.ApplyTimeout == 0 {
		o.ApplyTimeout = 30 * time.Second
	}
	if o.Patience == 0 {
		o.Patience = 45 * time.Second
	}
	if o.Cluster == "" {
		o.Cluster = "vault://lessor"
	}
	c := &Core{Options: o, routers: map[string]*engine.Router{}, tidying: make(chan struct{}, 1), demanding: make(chan struct{}, 1), crowd: newCrowd()}
	for name, b := range o.Backends {
		c.routers[name] = engine.NewRouter(b.Routes())
	}
	c.strangers = tally.New(c.count)
	var err error
	if c.quotas, err = quota.NewGuard(o.Store, func(err error) { o.Log.Error("quotas are not up to date; it is tried again", "error", err) }); err != nil {
		return nil, err
	}
	c.feed = event.NewFeed(event.Options{Store: o.Store, Derive: c.announce, Log: o.Log, Most: o.Subscribers, PerSource: o.Subscribers / 4})
	c.reaper = lease.New(lease.Options{
		Store: o.Store, Revert: c.revert, Belongings: c.belongings, Random: o.Random, Log: o.Log, Fenced: c.Fenced, Poll: o.Poll,
		Claims: o.Claims,
	})
	c.rotator = rotation.New(rotation.Options{
		Store: o.Store, Mounts: c.rotated, Rotate: c.rotateDue, Secret: c.accountOf, Fenced: c.Fenced, Random: o.Random, Log: o.Log, Poll: o.Poll,
		Claims: o.Claims,
	})
	return c, nil
}

// Run does the background work until ctx ends: expiry, revocation, rotation, retention. Of several nodes, each follows the commits, and counts
// what strangers and quotas ask it; all else is done by the one that holds the claim.
func (c *Core) Run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { c.follow(ctx) })
	all.Go(func() { c.reaper.Run(ctx) })
	all.Go(func() { c.countStrangers(ctx) })
	all.Go(func() { c.rotator.Run(ctx) })
	all.Go(func() { c.quotas.Run(ctx) })
	all.Go(func() { c.feed.Run(ctx) })
	all.Go(func() { c.every(ctx, removalEvery, "removing a mount", c.removeMounts) })
	all.Go(func() { c.every(ctx, removalEvery, "upgrading a mount", c.Upgrade) })
	all.Go(func() { c.every(ctx, retentionEvery, "audit retention", c.prune) })
	all.Go(func() { c.every(ctx, retentionEvery, "forgetting revocations", c.forget) })
	all.Go(func() { c.every(ctx, retentionEvery, "dropping locks that are over", c.expireLocks) })
	all.Go(func() { c.every(ctx, retentionEvery, "forgetting who used secrets that are gone", c.forgetUsers) })
	all.Go(func() { c.every(ctx, strayEvery, "searching targets", c.seekStrays) })
	all.Go(func() { c.keepTidy(ctx) })
	all.Go(func() { c.keepDemands(ctx) })
	all.Wait()
}

// Reaper ends leases in the background.
func (c *Core) Reaper() *lease.Reaper { return c.reaper }

// Builtin mounts exist from the first start and are never removed. Their UUIDs are fixed and spell their names.
var builtin = []mount.Entry{
	{UUID: "lessor/sys\x00\x00\x00\x00\x00\x00", Path: "sys/", Type: "system", Accessor: "system_builtin", Description: "system endpoints used for control, policy and debugging"},
	{UUID: "lessor/identity\x00", Path: "identity/", Type: "identity", Accessor: "identity_builtin", Description: "identity store"},
	{UUID: "lessor/cubby\x00\x00\x00\x00", Path: "cubbyhole/", Type: "cubbyhole", Accessor: "cubbyhole_builtin", Description: "per-token private secret storage", Local: true},
	{UUID: "lessor/token\x00\x00\x00\x00", Path: "auth/token/", Type: "token", Class: mount.Auth, Accessor: "auth_token_builtin", Description: "token based credentials"},
}

// SystemMount is the UUID of sys/, under which lessor keeps secrets of its own: wrapped answers, and the keys of webhooks (package rotator).
var SystemMount = builtin[0].UUID

// CubbyholeMount is the UUID of cubbyhole/.
var CubbyholeMount = builtin[2].UUID

// Initialized reports whether Init has run on this store.
func (c *Core) Initialized() (bool, error) {
	v, err := c.Store.View()
	if err != nil {
		return false, err
	}
	defer v.Close()
	t, err := mount.Load(v)
	return err == nil && len(t.All()) > 0, err
}

// Init makes a new store usable: the builtin mounts, the default policy, and one root token that ends after ttl (0: never).
// rows are what the seal wants in the same commit. id is the token's id; empty: a random one.
func (c *Core) Init(ctx context.Context, rows []store.Put, id lessor.Secret, ttl time.Duration) (lessor.Secret, error) {
	now := c.Store.Now()
	txn := &store.Txn{Puts: rows}
	for _, e := range builtin {
		if e.Class == "" {
			e.Class = mount.Secret
		}
		e.Namespace, e.Created, e.Builtin = lessor.RootNamespace, now, true
		mount.Add(txn, &e)
	}
	v, err := c.Store.View()
	if err != nil {
		return lessor.Secret{}, err
	}
	defer v.Close()
	row, err := book.Row(v, book.DefaultPolicy)
	if err != nil {
		return lessor.Secret{}, err
	}
	book.Put(txn, row, policy.Default())
	t, secret, err := c.mint(v, &engine.Mint{
		ID: id, Name: "root", Policies: []string{token.RootPolicy}, NoDefault: true, TTL: ttl, NeverExpires: ttl == 0,
	}, now, "auth/token/root")
	if err != nil {
		return lessor.Secret{}, err
	}
	t.Store(txn)
	txn.Audit = []audit.Record{{
		Time: now, Operation: "init", Path: "sys/init", Phase: audit.Done, System: "bootstrap", Granted: true,
		Rule: "system:bootstrap", Policy: "system", Accessor: t.Accessor,
	}}
	if _, err := c.Store.Commit(ctx, *txn); err != nil {
		return lessor.Secret{}, fmt.Errorf("core: initialising: %w", err)
	}
	return secret, nil
}

// MintRoot adds a root token that ends after ttl to txn, for whoever has shown that they could unseal the store. Besides Init it is the
// one way to a root token that asks no policy; the caller commits txn together with the audit record, which names the accessor.
func (c *Core) MintRoot(v store.View, txn *store.Txn, ttl time.Duration) (id lessor.Secret, accessor string, err error) {
	t, id, err := c.mint(v, &engine.Mint{Name: "root", Policies: []string{token.RootPolicy}, NoDefault: true, TTL: ttl}, c.Store.Now(), "auth/token/root")
	if err != nil {
		return lessor.Secret{}, "", err
	}
	t.Store(txn)
	return id, t.Accessor, nil
}

// Fenced reports whether the store is a restored copy that nobody has resumed yet: it must not act on production's targets.
func (c *Core) Fenced() bool {
	v, err := c.Store.View()
	if err != nil {
		return true
	}
	defer v.Close()
	row, err := v.Get(store.Fenced)
	return err != nil || row.Exists()
}

// revert reaches the target of leases of one mount in the background. The decision is the system's own, and as narrow as a
// request's: a grant for this mount and no other.
func (c *Core) revert(ctx context.Context, uuid string, ls []*lease.Lease) []error {
	failed := func(err error) []error {
		errs := make([]error, len(ls))
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	v, err := c.Store.View()
	if err != nil {
		return failed(err)
	}
	defer v.Close()
	table, err := c.table(v)
	if err != nil {
		return failed(err)
	}
	e := table.ByUUID(uuid)
	if e == nil {
		return failed(errors.New("the mount of the lease is gone"))
	}
	issuer, ok := c.Backends[e.Backend()].(engine.Issuer)
	if !ok {
		return failed(fmt.Errorf("engine type %q does not issue credentials", e.Type))
	}
	op := &lessor.Op{Verb: lessor.Delete, Namespace: e.Namespace, Path: e.Path}
	d := policy.Decide(nil, &lessor.Principal{System: "reaper"}, op, policy.Facts{Mount: uuid})
	if d.Denied != nil {
		return failed(d.Denied)
	}
	return issuer.Revert(ctx, engine.Access{Mount: e, View: v, Grant: d.Grant, Opener: c.Keys, Now: c.Store.Now()}, ls)
}

// belongings are the rows that end with a token: its cubbyhole, and what it wraps.
func (c *Core) belongings(hash string) []store.Range {
	var out []store.Range
	for _, p := range []string{
		store.MountKey(lessor.RootNamespace, CubbyholeMount, hash),
		wrapping.Key(SystemMount, hash).Name,
	} {
		out = append(out, store.Range{Table: store.Secrets, From: p, To: store.PrefixEnd(p)})
	}
	return out
}
