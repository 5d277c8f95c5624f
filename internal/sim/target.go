package sim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// target is a database somewhere else: it has accounts, by lease, and survives lessor's deaths. It fails in each of the four
// ways {done?} × {told?}, hangs, and does what it was asked long after whoever asked has given up.
type target struct {
	world *World

	mu       sync.Mutex
	accounts map[string]string // lease id: account
	healed   bool
	late     sync.WaitGroup
	made     atomic.Int64 // accounts, ever
}

var errTarget = api.Errorf(api.Upstream, "the target failed")

// fault draws whether an act is done, and whether success is told.
func (t *target) fault() (done, told bool) {
	if t.whole() {
		return true, true
	}
	switch p := t.world.pick(20); p {
	case 0, 1:
		return false, false
	case 2, 3:
		return true, false
	}
	return true, true
}

// whole reports whether all faults have ended.
func (t *target) whole() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.healed
}

// heal ends all faults, after what is still on its way has landed.
func (t *target) heal() {
	t.mu.Lock()
	t.healed = true
	t.mu.Unlock()
	t.late.Wait()
}

func (t *target) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.accounts)
}

func (t *target) make(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.accounts[id] = "account"
	t.made.Add(1)
}

// issuer is lessor's engine for the target, wired to one node: what it checks, it checks in that node's durable store.
type issuer struct {
	target *target
	node   *node
}

// Routes is the method table.
func (i *issuer) Routes() []engine.Route {
	return []engine.Route{{
		Pattern: "creds/{name}", Help: "an account at the target",
		Ops: map[lessor.Verb]engine.Handler{lessor.Read: func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
			return &engine.Reply{Issue: &engine.Issue{
				Path: "creds/" + r.Param("name"), Target: "t", TTL: 20 * time.Second, MaxTTL: time.Minute, Renewable: true,
				Plan: func(l *lease.Lease) ([]byte, map[string]any, lessor.Secret, error) {
					return []byte("intent"), map[string]any{"account": "account"}, lessor.NewSecret("password"), nil
				},
			}}, nil
		}},
	}}
}

// onRecord checks that the target is not touched before the lease, and the audit record that says so, are durable.
func (i *issuer) onRecord(l *lease.Lease, what string) {
	v, err := i.node.db.View()
	if err != nil {
		return // the store has died; whoever touches now decided before
	}
	defer v.Close()
	stored, _, err := lease.Get(v, l)
	if err == nil && stored == nil {
		i.target.world.violation("orphan: the target was touched (%s) before the lease was durable", what)
		return
	}
	rec, err := recorded(i.node.db, l.Path(), func(a *audit.At) bool { return a.Lease == l.ID })
	if err == nil && rec == nil {
		i.target.world.violation("unaudited: the target was touched (%s) before the audit record was durable", what)
	}
}

// Apply makes the account of a lease; now, later, or not.
func (i *issuer) Apply(ctx context.Context, _ engine.Access, l *lease.Lease, _ lessor.Secret) error {
	i.onRecord(l, "apply")
	t := i.target
	if t.world.chance(0.05) { // hangs, and lands when nobody waits any more
		if !t.whole() {
			t.late.Go(func() {
				time.Sleep(time.Duration(t.world.pick(400)) * time.Millisecond)
				t.make(l.ID)
			})
			<-ctx.Done()
			return fmt.Errorf("the target does not answer: %w", ctx.Err())
		}
	}
	done, told := t.fault()
	if done {
		t.make(l.ID)
	}
	if !told {
		return errTarget
	}
	return nil
}

// Renew extends the account.
func (i *issuer) Renew(_ context.Context, _ engine.Access, l *lease.Lease, _ time.Time) error {
	i.onRecord(l, "renew")
	if _, told := i.target.fault(); !told {
		return errTarget
	}
	return nil
}

// Revert removes accounts.
func (i *issuer) Revert(ctx context.Context, _ engine.Access, ls []*lease.Lease) []error {
	errs := make([]error, len(ls))
	t := i.target
	for n, l := range ls {
		v, err := i.node.db.View()
		if err == nil {
			stored, _, err := lease.Get(v, l)
			v.Close()
			if err == nil && (stored == nil || stored.State != lease.Revoking) {
				t.world.violation("the account of a lease that is not ended was reverted")
			}
		}
		done, told := t.fault()
		if done {
			t.mu.Lock()
			delete(t.accounts, l.ID)
			t.mu.Unlock()
		}
		if !told {
			errs[n] = errors.New("the target failed")
		}
	}
	return errs
}

// Close does nothing: there are no connections.
func (i *issuer) Close(string) {}
