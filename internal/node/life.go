package node

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/archive"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/exporter"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/server"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/postgres"
	"github.com/lessor-dev/lessor/internal/system"
)

// sealGrace is how long requests under way may take to finish once the node was told to seal.
const sealGrace = 5 * time.Second

// life is what there is of a node only while it is unsealed.
type life struct {
	n         *Node
	db        *store.DB
	keys      *seal.Keyring
	core      *core.Core
	backends  backends
	exporters *exporter.Exporters
	claims    *claim.Claims   // nil: the node has its store to itself
	yield     func()          // ends this node's part in what nodes share, once the background work has ended
	backups   *archive.Keeper // nil: none are configured
	cluster   cluster
	cancel    context.CancelFunc
	running   sync.WaitGroup // background work
	active    atomic.Int64   // requests under way
}

// state is what a node is at a moment. It is replaced, never changed.
type state struct {
	db     *store.DB
	life   *life           // nil: sealed
	locks  seal.Locks      // while sealed: what unseals the store
	given  int             // while sealed: keys given so far
	nonce  string          // of that attempt
	rested <-chan struct{} // closes when a node that was told to seal has done so; nil: it has
	away   error           // why the store is being opened anew; nil: it is not
	since  time.Time       // when the life began
}

// awaken begins a life: the gate over the unsealed store, and the background work. first are the rows of a new store; heard is
// what happened while the store was sealed, to be put on record.
func (n *Node) awaken(ctx context.Context, first []store.Put, heard []audit.Record) error {
	l := &life{n: n, db: n.db, keys: n.keys}
	l.backends = l.mountable()
	l.yield = func() {}
	if n.config.Storage.Type == config.PostgreSQL {
		l.claims = claim.New(claim.Options{Store: l.db, Log: n.log})
	}
	c, err := l.newCore()
	if err != nil {
		return err
	}
	l.core = c
	l.exporters = exporter.New(exporter.Options{Store: l.db, Keys: l.keys, Log: n.log, Private: n.private(), Claims: l.claims})
	l.backups = l.newKeeper()
	l.backends.connect(l)
	if first != nil {
		if err := n.initialize(ctx, c, first); err != nil {
			return err
		}
	}
	if len(heard) > 0 {
		if _, err := l.db.Commit(ctx, store.Txn{Audit: heard, Urgent: true}); err != nil { // without it, nothing could be revoked
			return err
		}
	}
	if l.cluster, err = l.identify(); err != nil {
		return err
	}
	c.Cluster = "vault://" + l.cluster.name
	if err := c.Installed(ctx, n.o.Version); err != nil {
		return err
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.cancel = cancel
	l.share(ctx)
	l.running.Go(func() { c.Run(background) })
	l.running.Go(func() { l.exporters.Run(background) })
	l.running.Go(func() { l.rotateKeys(background) })
	l.running.Go(func() { l.note(background) })
	if l.backups != nil {
		l.running.Go(func() { l.backups.Run(background) })
	}
	if first != nil && n.config.Dev.Enabled {
		if err := n.mountDevSecrets(ctx, c); err != nil {
			l.end()
			return err
		}
	}
	n.state.Store(&state{db: n.db, life: l, locks: n.lastLocks(), since: l.db.Now()})
	if n.draining.Load() {
		l.claims.Retire() // the node was told to stop meanwhile
	}
	n.announce()
	return nil
}

// share has this node take part in the work of all, until yield.
func (l *life) share(ctx context.Context) {
	if l.claims == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.claims.Run(ctx)
	}()
	l.yield = func() { cancel(); <-done }
}

func (l *life) newCore() (*core.Core, error) {
	c := l.n.config
	return core.New(core.Options{
		Store: l.db, Keys: l.keys, Random: l.n.o.Random, Log: l.n.log, Backends: l.backends.all,
		RequireOwner: c.RequireOwner, Reported: c.ReportedVersion, Lockout: c.Lockout, DefaultTTL: c.DefaultLeaseTTL, MaxTTL: c.MaxLeaseTTL,
		ExportWait: c.Audit.Patience, Claims: l.claims, Subscribers: server.Most(server.Files()) / 3 * 2,
	})
}

// newKeeper makes what backs the store up, if that is configured.
func (l *life) newKeeper() *archive.Keeper {
	n := l.n
	if n.destination == nil {
		return nil
	}
	c := n.config.Backup
	return archive.NewKeeper(archive.Options{
		Store: l.db, Keys: l.keys.Cipher(), Destination: n.destination, Random: n.o.Random, Log: n.log, Interval: c.Interval, Full: c.Full, Keep: c.Keep,
	})
}

// end ends the background work, leaves it to other nodes, and ends what engines keep open.
func (l *life) end() {
	l.cancel()
	l.running.Wait()
	l.yield()
	l.backends.close()
}

// enter is the node's life, held until leave; nil if it is sealed.
func (n *Node) enter() *life {
	l := n.state.Load().life
	if l == nil {
		return nil
	}
	l.active.Add(1)
	if n.state.Load().life != l { // it ended meanwhile, and may have been counted idle
		l.leave()
		return nil
	}
	return l
}

func (l *life) leave() { l.active.Add(-1) }

var errSealed = &api.Error{Kind: api.Unavailable, Text: "Vault is sealed"}

// unavailable is why the node serves nothing, if it has no life.
func (n *Node) unavailable() error {
	if n.state.Load().away != nil {
		return errAway
	}
	return errSealed
}

// Handle implements server.Gate: what changes the seal is done here, all else is the core's.
func (n *Node) Handle(ctx context.Context, op *lessor.Op) (*lessor.Answer, error) {
	if r, ok := n.rites[op.Path]; ok {
		return n.perform(ctx, r, op)
	}
	l := n.enter()
	if l == nil {
		if op.Path == "sys/seal" && op.Verb == lessor.Update && n.state.Load().away == nil {
			return &lessor.Answer{}, nil // so it is
		}
		return nil, n.unavailable()
	}
	defer l.leave()
	if n.shared() && l.db.Fault() != nil {
		return nil, errAway // soon it is opened anew
	}
	answer, err := l.core.Handle(ctx, op)
	if err != nil && api.KindOf(err) == api.Internal && postgres.Unreachable(err) {
		return nil, &api.Error{Kind: errAway.Kind, Text: errAway.Text, Cause: err}
	}
	if err == nil && answer.Raw != nil {
		answer.Raw = n.within(l, answer.Raw)
	}
	if err == nil && answer.Feed != nil {
		answer.Feed = &feed{answer.Feed, n, l}
	}
	return answer, err
}

// Admit implements server.Gate. Who asks of a sealed node is told that it is, and nothing more.
func (n *Node) Admit(op *lessor.Op, data bool) (header [][2]string, again bool, err error) {
	l := n.enter()
	if l == nil {
		return nil, false, nil
	}
	defer l.leave()
	return l.core.Admit(op, data)
}

// within keeps the life up while a stream is written.
func (n *Node) within(l *life, write func(context.Context, io.Writer) error) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		now := n.enter()
		if now == nil {
			return n.unavailable()
		}
		defer now.leave()
		if now != l {
			return errSealed
		}
		return write(ctx, w)
	}
}

// feed is messages of a life. It keeps the life up while somebody hears them.
type feed struct {
	lessor.Feed
	n *Node
	l *life
}

func (f *feed) Open() error {
	now := f.n.enter()
	if now == nil {
		return f.n.unavailable()
	}
	if now != f.l {
		now.leave()
		return errSealed
	}
	err := f.Feed.Open()
	if err != nil {
		now.leave()
	}
	return err
}

func (f *feed) Close() {
	f.Feed.Close()
	f.l.leave()
}

// Help implements server.Gate.
func (n *Node) Help(ctx context.Context, op *lessor.Op) (*lessor.Answer, error) {
	l := n.enter()
	if l == nil {
		return nil, n.unavailable()
	}
	defer l.leave()
	return l.core.Help(ctx, op)
}

// CORS implements server.Gate: which web pages of other origins may read answers; none if that cannot be read.
func (n *Node) CORS() server.CORS {
	l := n.enter()
	if l == nil {
		return server.CORS{}
	}
	defer l.leave()
	v, err := l.db.View()
	if err != nil {
		return server.CORS{}
	}
	defer v.Close()
	c, err := system.LoadCORS(v)
	if err != nil {
		n.log.Error("the configuration of CORS cannot be read: no origin is admitted", "error", err)
	}
	return server.CORS{Origins: c.Origins, Headers: c.Headers}
}

// Headers implements server.Gate: none while the node is sealed.
func (n *Node) Headers() []string {
	l := n.enter()
	if l == nil {
		return nil
	}
	defer l.leave()
	return l.core.Headers()
}

// Now implements lessor.Clock: lease time, sealed or not.
func (n *Node) Now() time.Time { return n.state.Load().db.Now() }

// Status implements server.Gate: what anybody may know.
func (n *Node) Status() server.Status {
	s := n.state.Load()
	locks := n.locks(s)
	a := server.Status{
		Initialized: locks.Initialised() || s.away != nil, Sealed: s.life == nil && s.away == nil, Progress: s.given, Nonce: s.nonce,
		Away: s.away != nil || n.silent.Load(), Shared: n.shared(), Address: n.reachable(), Since: s.since,
		Reported: n.config.ReportedVersion, Version: n.o.Version, Storage: string(n.config.Storage.Type), Seal: n.sealType(locks),
	}
	if s.life != nil {
		fault := s.db.Fault()
		passing := fault != nil && n.shared() && store.Passing(fault)
		a.Away = a.Away || passing
		a.Initialized, a.Sealed, a.Fenced = true, fault != nil && !passing, s.life.core.Fenced()
		a.ClusterID, a.ClusterName = s.life.cluster.id, s.life.cluster.name
	}
	if a.Initialized {
		a.Threshold, a.Shares = required(locks)
	}
	return a
}

// locks are what unseals the store, as of now.
func (n *Node) locks(s *state) seal.Locks {
	if s.life == nil {
		return s.locks
	}
	view, err := s.db.View()
	if err != nil {
		return s.locks
	}
	defer view.Close()
	locks, err := seal.ReadLocks(view)
	if err != nil {
		return s.locks
	}
	return locks
}

// lastLocks are those that were seen last.
func (n *Node) lastLocks() seal.Locks {
	if s := n.state.Load(); s != nil {
		return s.locks
	}
	return seal.Locks{}
}

// required is how many keys of how many unseal: shares, if there are any.
func required(l seal.Locks) (threshold, shares int) {
	if lock, ok := l.Find(seal.ShamirName); ok {
		return lock.Threshold, lock.Shares
	}
	return 1, 1
}

func (n *Node) sealType(l seal.Locks) string {
	_, shares := l.Find(seal.ShamirName)
	if shares || !l.Initialised() && n.manual() {
		return seal.ShamirName
	}
	return seal.KeyFileName
}

// manual says whether a new store waits for sys/init.
func (n *Node) manual() bool { return n.config.Seal.Shamir && n.config.Seal.KeyFile == "" }

// Rest begins to seal the node: from now on it answers that it is sealed. Requests under way have sealGrace, then the store is
// closed, the keys are forgotten, and the store is opened again to wait for its keys.
func (l *life) Rest() {
	rested := make(chan struct{})
	s := l.n.state.Load()
	next := &state{db: s.db, locks: l.n.locks(s), rested: rested}
	if s.life != l || !l.n.state.CompareAndSwap(s, next) {
		return // somebody else seals it
	}
	l.n.log.Warn("sealing: told to")
	l.claims.Retire()
	l.core.Events().Leave()
	l.n.resting.Go(func() {
		defer close(rested)
		l.settle()
		l.n.turn.Lock()
		defer l.n.turn.Unlock()
		l.n.forgetAttempts()
		l.end()
		if err := l.n.reopen(context.Background()); err != nil {
			l.n.fail(fmt.Errorf("sealing: %w", err))
			return
		}
		l.n.log.Warn("sealed")
	})
}

// settle waits until no request is under way, sealGrace at most.
func (l *life) settle() {
	for end := time.Now().Add(sealGrace); l.active.Load() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

// reopen closes the store, forgets its keys, and opens it sealed.
func (n *Node) reopen(ctx context.Context) error {
	if err := n.close(); err != nil {
		return err
	}
	if err := n.openStore(ctx); err != nil {
		return err
	}
	return n.look()
}

// look tells all what the sealed store says of itself.
func (n *Node) look() error {
	if err := n.db.Refresh(); err != nil {
		return err
	}
	view, err := n.db.View()
	if err != nil {
		return err
	}
	defer view.Close()
	locks, err := seal.ReadLocks(view)
	if err != nil {
		return err
	}
	n.state.Store(&state{db: n.db, locks: locks, given: n.unsealing.quorum.Progress(), nonce: n.unsealing.nonce})
	n.announce()
	return nil
}

// watchEvery is how often a sealed node looks at what other nodes do to their store.
const watchEvery = time.Second

// watch keeps what a sealed node tells of the store up to date, until ctx ends: another node may have initialised it, or made new shares.
func (n *Node) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s := n.state.Load(); s.life != nil || s.rested != nil || s.away != nil || !n.turn.TryLock() {
			continue
		}
		if s := n.state.Load(); s.life == nil && s.away == nil && n.broken.Load() == nil && ctx.Err() == nil {
			if err := n.look(); err != nil {
				n.log.Warn("the sealed store could not be looked at; it is tried again", "error", err)
			}
		}
		n.turn.Unlock()
	}
}

// fail ends the process, which another start may mend.
func (n *Node) fail(err error) {
	n.log.Error("the node cannot go on", "error", err)
	n.broken.CompareAndSwap(nil, &err)
}

// rotateEvery is how often it is asked whether the keys are due.
const rotateEvery = time.Hour

// rotateKeys begins a new term of keys whenever one is due, where that is this node's work, until ctx ends.
func (l *life) rotateKeys(ctx context.Context) {
	tick := time.NewTicker(rotateEvery)
	defer tick.Stop()
	for {
		changed := l.claims.Changed()
		if err := l.rotateDue(ctx); err != nil && ctx.Err() == nil {
			l.n.log.Error("rotating the keys failed; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changed:
		}
	}
}

func (l *life) rotateDue(ctx context.Context) error {
	hold, ok := l.claims.Take("keys")
	if !ok {
		return nil
	}
	defer hold.Release()
	ctx, cancel := hold.Context(ctx)
	defer cancel()
	if due, err := l.due(); err != nil || !due {
		return err
	}
	return l.rotate(ctx)
}

func (l *life) due() (bool, error) {
	view, err := l.db.View()
	if err != nil {
		return false, err
	}
	defer view.Close()
	rotation, err := system.Rotation(view)
	return l.keys.Due(rotation, l.db.Now(), view.Position()), err
}

// rotate begins a new term of keys; rows of earlier terms stay readable.
func (l *life) rotate(ctx context.Context) error {
	var adopt func() error
	_, err := l.db.Update(ctx, func(v store.View, txn *store.Txn) (err error) {
		claim.Fence(ctx, txn)
		txn.Audit = append(txn.Audit, bootstrapRecord(l.db.Now(), "rotate", "sys/rotate"))
		adopt, err = system.Rotate(v, txn, l.keys, l.n.o.Random, l.db.Now())
		return err
	})
	if err != nil {
		return err
	}
	return adopt()
}

// readKeyring reads the keyring's row, for a Keyring that meets a row of a later term.
func readKeyring(db *store.DB) func() ([]byte, error) {
	return func() ([]byte, error) {
		view, err := db.View()
		if err != nil {
			return nil, err
		}
		defer view.Close()
		row, err := view.Get(seal.KeyringKey)
		return row.Value, err
	}
}

// anchorReady makes the anchor's folder. Of a store that has a past it warns if there is no anchor, so that nobody can vouch for it.
func (n *Node) anchorReady(past bool) error {
	if n.config.Storage.Type == config.Mem {
		return nil
	}
	if past && !exists(n.config.Seal.Anchor) {
		n.log.Warn("the anchor is missing: this once, nothing tells whether the store was put back to an earlier state", "path", n.config.Seal.Anchor)
	}
	return os.MkdirAll(filepath.Dir(n.config.Seal.Anchor), 0o700)
}
