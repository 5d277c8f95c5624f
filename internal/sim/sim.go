// Package sim runs a whole lessor, gate, leases and store, against a target database and a disk that fail by chance, under a
// clock that does not behave, with many requests at once. Everything is drawn from a seed, which a failure prints.
//
// What must always hold is looked for at the moment when it could be broken, not only in the end: the target itself looks into
// the store when it is touched, and each answer is looked up in the audit trail when it arrives.
package sim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	authtoken "github.com/lessor-dev/lessor/internal/auth/token"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/kv"
	"github.com/lessor-dev/lessor/internal/identity"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/mem"
	"github.com/lessor-dev/lessor/internal/store/storetest"
	"github.com/lessor-dev/lessor/internal/system"
)

// World is one simulation: what survives the death of a node (disk, target, clock), the node that is up, and what clients were told.
type World struct {
	Seed   uint64
	disk   *mem.Disk
	keys   *seal.Keyring
	rows   []store.Put
	root   lessor.Secret
	clock  *clock
	target *target
	stay   *accounts

	mu     sync.Mutex
	rng    *mathrand.Rand
	acked  map[string]int // KV path: highest version that a write was acknowledged with
	broken []string       // what did not hold
	faults atomic.Int64   // nodes that died of a fault
}

// node is one life of the process.
type node struct {
	db     *store.DB
	core   *core.Core
	faulty *storetest.Faulty
	cancel context.CancelFunc
	done   chan struct{}
}

// clock is the machine's: it goes on when the simulation says so, and at times jumps.
type clock struct {
	mu    sync.Mutex
	wall  time.Time
	steps time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall
}

// Elapsed is the monotonic clock, which does not jump.
func (c *clock) Elapsed() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.steps
}

func (c *clock) advance(d, jump time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.steps = c.wall.Add(d+jump), c.steps+d
}

// New makes a world: an initialised store with a KV mount, an engine at the target, accounts that stay, and tokens for its clients. With an error, too,
// Broken tells what did not hold.
func New(seed uint64, dir string) (*World, error) {
	w := &World{
		Seed: seed, disk: new(mem.Disk), rng: mathrand.New(mathrand.NewPCG(seed, 1)), acked: map[string]int{},
		clock: &clock{wall: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)},
	}
	w.target = &target{world: w, accounts: map[string]string{}}
	w.stay = &accounts{target: w.target, passwords: map[string]string{}, ever: map[string]map[string]bool{}}
	w.target.healed = true // until the world is furnished
	kek, err := seal.CreateKeyFile(dir+"/seal.key", rand.Reader)
	if err != nil {
		return nil, err
	}
	if w.keys, w.rows, err = seal.Init(rand.Reader, w.clock.Now(), kek); err != nil {
		return nil, err
	}
	n, err := w.boot(storetest.Faults{})
	if err != nil {
		return nil, err
	}
	defer n.stop()
	if w.root, err = n.core.Init(context.Background(), w.rows, lessor.Secret{}, 0); err != nil {
		return nil, err
	}
	do := func(path string, data map[string]any) error {
		op := w.op(n, w.root, lessor.Update, path, data)
		answer, err := n.core.Handle(context.Background(), op)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		w.answered(n, op, answer)
		return nil
	}
	for path, data := range map[string]map[string]any{
		"sys/mounts/secret": {"type": "kv", "options": map[string]any{"version": "2"}},
		"sys/mounts/target": {"type": "target"}, "sys/mounts/db": {"type": "database"},
	} {
		if err := do(path, data); err != nil {
			return w, err
		}
	}
	err = w.stay.furnish(n, do)
	w.target.healed = false
	return w, err
}

// boot starts a node on what the disk holds.
func (w *World) boot(f storetest.Faults) (*node, error) {
	n := &node{faulty: storetest.NewFaulty(w.disk.Open(), w.draw(), storetest.Faults{}), done: make(chan struct{})}
	var err error
	if n.db, err = store.Open(n.faulty, store.Options{Clock: w.clock}); err != nil {
		return nil, err
	}
	if err := n.db.Unseal(w.keys.Cipher()); err != nil {
		return nil, errors.Join(err, n.db.Close())
	}
	tokens, sys := &authtoken.Backend{}, &system.Backend{Store: n.db}
	backends := map[string]engine.Backend{
		"kv-v2": kv.V2{}, "token": tokens, "system": sys, "identity": identity.Backend{}, "target": &issuer{w.target, n},
		"database": database.New(&visitor{w.stay, n}),
	}
	n.core, err = core.New(core.Options{Store: n.db, Keys: w.keys, Random: rand.Reader, Backends: backends, ApplyTimeout: 200 * time.Millisecond, Poll: 20 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	tokens.Settle = func(ctx context.Context, tomb string) error { return n.core.Reaper().Settle(ctx, tomb) }
	sys.Reaper, sys.Backends = n.core.Reaper(), backends
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go func() { defer close(n.done); n.core.Run(ctx) }()
	n.faulty.Set(f)
	return n, nil
}

// stop ends a node; what it had under way is cut off. The disk has what was durable, no more.
func (n *node) stop() {
	n.cancel()
	<-n.done
	_ = n.db.Close() // a store that died of a fault says so
}

func (w *World) draw() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.Uint64()
}

// chance is true with probability p.
func (w *World) chance(p float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.Float64() < p
}

func (w *World) pick(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

// violation notes that something that must always hold did not.
func (w *World) violation(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, fmt.Sprintf(format, args...))
}

// Broken is what did not hold so far.
func (w *World) Broken() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken
}

var requests atomic.Uint64

func (w *World) op(n *node, token lessor.Secret, verb lessor.Verb, path string, data map[string]any) *lessor.Op {
	return &lessor.Op{
		ID: fmt.Sprintf("r%d", requests.Add(1)), Verb: verb, Namespace: lessor.RootNamespace, Path: path, Data: data, Token: token,
		Client: netip.MustParseAddr("127.0.0.1"), Time: n.db.Now(),
	}
}

// Life runs one life of a node: clients at work until each has done its operations or the node has died, while the clock goes
// on. Then the node is gone, orderly or not.
func (w *World) Life(clients, operations int, f storetest.Faults) error {
	n, err := w.boot(f)
	if err != nil {
		return fmt.Errorf("the store does not open after a crash: %w", err)
	}
	stop := make(chan struct{})
	var ticking, working sync.WaitGroup
	ticking.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			var jump time.Duration
			if w.chance(0.02) {
				jump = time.Duration(w.pick(7)-3) * time.Second
			}
			w.clock.advance(time.Duration(w.pick(500))*time.Millisecond, jump)
		}
	})
	for c := range clients {
		working.Go(func() { w.client(n, c, operations) })
	}
	working.Wait()
	close(stop)
	ticking.Wait()
	if n.db.Fault() != nil {
		w.faults.Add(1)
	}
	n.stop()
	return nil
}

// client does operations until the node dies.
func (w *World) client(n *node, id, operations int) {
	ctx := context.Background()
	var held []string
	for i := range operations {
		var op *lessor.Op
		path := fmt.Sprintf("secret/data/c%d/s%d", id, w.pick(3))
		switch w.pick(15) {
		case 0, 1:
			op = w.op(n, w.root, lessor.Update, path, map[string]any{"data": map[string]any{"n": fmt.Sprint(i)}})
		case 2, 3:
			op = w.op(n, w.root, lessor.Read, path, nil)
		case 4, 5, 6:
			op = w.op(n, w.root, lessor.Read, fmt.Sprintf("target/creds/c%d", id), nil)
		case 7:
			if len(held) == 0 {
				continue
			}
			act := []string{"sys/leases/renew", "sys/lessor/leases/acknowledge"}[w.pick(2)]
			op = w.op(n, w.root, lessor.Update, act, map[string]any{"lease_id": held[w.pick(len(held))]})
		case 8:
			if len(held) == 0 {
				continue
			}
			op = w.op(n, w.root, lessor.Update, "sys/leases/revoke", map[string]any{"lease_id": held[w.pick(len(held))], "sync": false})
		case 9:
			op = w.op(n, w.root, lessor.Update, fmt.Sprintf("sys/leases/revoke-prefix/target/creds/c%d", id), map[string]any{"sync": false})
		case 10:
			op = w.op(n, w.root, lessor.Read, "db/static-creds/"+w.role(), nil)
		case 11:
			op = w.op(n, w.root, lessor.Update, "db/rotate-role/"+w.role(), nil)
		case 12:
			op = w.op(n, w.root, lessor.Update, "db/rotate-root/d", nil)
		case 13:
			op = w.op(n, w.root, lessor.Update, "sys/lessor/rotation/retire/db/static-creds/p", nil)
		case 14:
			op = w.op(n, w.root, lessor.Update, "sys/lessor/rotation/abort/db/static-creds/"+w.role(), nil)
		}
		op.Renewable = w.pick(2) == 0 // readers of static roles are shown the lease then: revoking that has the password rotated
		answer, err := n.core.Handle(ctx, op)
		if err == nil {
			w.answered(n, op, answer)
			if answer.Lease.ID != "" && op.Verb == lessor.Read {
				held = append(held, answer.Lease.ID)
			}
		} else if !tolerable(err) {
			w.violation("%s %s: %v", op.Verb, op.Path, err)
		}
		if n.db.Fault() != nil {
			return
		}
	}
}

// role is one of the static roles.
func (w *World) role() string {
	if n := w.pick(5); n < 3 {
		return fmt.Sprintf("u%d", n)
	}
	return "p"
}

// tolerable reports whether a client can expect the error in a world like this. A fault of lessor's own is none of these.
func tolerable(err error) bool {
	switch api.KindOf(err) {
	case api.NotFound, api.Invalid, api.Upstream, api.Unavailable, api.Uncertain:
		return true
	}
	return errors.Is(err, storetest.ErrFault)
}

// answered checks, at the moment the client has the answer, that its audit record is durable, and takes down what was promised.
func (w *World) answered(n *node, op *lessor.Op, answer *lessor.Answer) {
	rec, err := recorded(n.db, op.Path, func(a *audit.At) bool { return a.Request == op.ID && a.Phase != audit.Begun })
	switch {
	case err != nil:
		return // the store died meanwhile
	case rec == nil:
		w.violation("unaudited: %s %s was answered before its audit record was durable", op.Verb, op.Path)
	}
	if username, ok := answer.Data["username"].(string); ok {
		w.stay.known(n, username)
		if !w.stay.was(username, answer.Data["password"].(lessor.Secret).Reveal()) {
			w.violation("a reader of %s was shown a password that never was in force", username)
		}
	}
	if op.Verb == lessor.Update && strings.HasPrefix(op.Path, "secret/") && answer.Data["version"] != nil {
		v := int(number(answer.Data["version"]))
		w.mu.Lock()
		w.acked[op.Path] = max(w.acked[op.Path], v)
		w.mu.Unlock()
	}
}

func number(v any) int64 {
	var n int64
	_, _ = fmt.Sscan(fmt.Sprint(v), &n)
	return n
}

// recorded finds the newest durable audit record of a path for which match holds, among the newest few.
func recorded(db *store.DB, path string, match func(*audit.At) bool) (*audit.At, error) {
	records, _, err := db.Records(store.Query{Path: path, Newest: true, Limit: 400})
	if err != nil {
		return nil, err
	}
	for i := range records {
		if match(&records[i]) {
			return &records[i], nil
		}
	}
	return nil, nil
}

// Settle heals everything, lets all leases end and looks at what is left: nothing at the target, all that was acknowledged in
// the store, a chain that verifies.
func (w *World) Settle() error {
	w.target.heal()
	n, err := w.boot(storetest.Faults{})
	if err != nil {
		return fmt.Errorf("the store does not open in the end: %w", err)
	}
	defer n.stop()
	deadline := time.Now().Add(30 * time.Second)
	for w.target.count() > 0 || w.dynamic(n) > 0 {
		if time.Now().After(deadline) {
			w.violation("orphans: %d accounts at the target, %d dynamic leases, long after everything ended", w.target.count(), w.dynamic(n))
			break
		}
		w.clock.advance(30*time.Second, 0)
		time.Sleep(10 * time.Millisecond)
	}
	for end := time.Now().Add(30 * time.Second); !w.stay.settled(n); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.violation("an account never came to have the password that is on record")
			break
		}
		w.clock.advance(time.Second, 0)
	}
	for path, version := range w.acked {
		a, err := n.core.Handle(context.Background(), w.op(n, w.root, lessor.Read, path, nil))
		if err != nil {
			w.violation("lost: %s, of which version %d was acknowledged: %v", path, version, err)
			continue
		}
		meta, _ := a.Data["metadata"].(map[string]any)
		if got := number(meta["version"]); int(got) < version {
			w.violation("lost: %s is at version %d, version %d was acknowledged", path, got, version)
		}
	}
	if _, err := n.db.Verify(context.Background(), nil); err != nil {
		w.violation("the chain does not verify: %v", err)
	}
	return nil
}

// dynamic counts the leases that have something to undo.
func (w *World) dynamic(n *node) int {
	v, err := n.db.View()
	if err != nil {
		return -1
	}
	defer v.Close()
	count := 0
	for row, err := range v.Scan(store.Leases, "", "") {
		if err != nil {
			return -1
		}
		if l, err := lease.Decode(row); err == nil && l.Kind == lease.Dynamic {
			count++
		}
	}
	return count
}
