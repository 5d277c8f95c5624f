package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// rotate changes the password of an account at a target for a request. As with a credential there are two commits, and the touch of the
// target in between: what dies there leaves a pending password on record, which the background brings into force.
func (w *walk) rotate(ctx context.Context) (*lessor.Answer, error) {
	if w.Fenced() {
		return nil, w.refuse(ctx, errFenced)
	}
	txn, rec := &w.reply.Txn, w.record(audit.Begun)
	if err := w.spend(txn); err != nil {
		return nil, w.refuse(ctx, err)
	}
	if err := w.commit(ctx, txn, rec); err != nil {
		return nil, err
	}
	// Whoever asked may leave: it goes on, since it is on record that it does.
	if err := w.turn(context.WithoutCancel(ctx), w.mount, w.decision.Grant, w.reply.Rotate, w.record(audit.Outcome)); err != nil {
		if errors.As(err, new(*store.Conflict)) {
			err = api.Errorf(api.Unavailable, "too many others changed the same thing meanwhile; the rotation is finished in the background")
		}
		return nil, err
	}
	w.rotator.Nudge() // a look at who uses the old password may be due
	return w.answer(ctx, &store.Txn{}, &rec)
}

// rotateDue does what is due with an account, for package rotation.
func (c *Core) rotateDue(ctx context.Context, uuid, account string) error {
	m, r, err := c.planDue(ctx, uuid, account)
	if err != nil || r == nil || r.Done {
		return err
	}
	op := &lessor.Op{Verb: lessor.Update, Namespace: m.Namespace, Path: m.Path + r.Path}
	d := policy.Decide(nil, &lessor.Principal{System: "rotation"}, op, policy.Facts{Mount: m.UUID})
	return c.turn(ctx, m, d.Grant, r, c.rotation(audit.Outcome, m, r))
}

// planDue records that the target of an account is about to be touched. nil: it need not be.
func (c *Core) planDue(ctx context.Context, uuid, account string) (*mount.Entry, *engine.Rotate, error) {
	for range attempts {
		m, r, err := c.tryPlan(ctx, uuid, account)
		if !errors.As(err, new(*store.Conflict)) {
			return m, r, err
		}
	}
	return nil, nil, errors.New("too many others changed the same thing meanwhile")
}

func (c *Core) tryPlan(ctx context.Context, uuid, account string) (*mount.Entry, *engine.Rotate, error) {
	v, err := c.Store.View()
	if err != nil {
		return nil, nil, err
	}
	defer v.Close()
	m, rotator, err := c.rotatorOf(v, uuid)
	if err != nil {
		return nil, nil, err
	}
	op := &lessor.Op{Verb: lessor.Update, Namespace: m.Namespace, Path: m.Path}
	d := policy.Decide(nil, &lessor.Principal{System: "rotation"}, op, policy.Facts{Mount: m.UUID})
	txn, access := store.Txn{}, c.access(v, m, d.Grant)
	if c.Store.ClockAlarm() != nil {
		return m, nil, nil // the time that access has may be wrong
	}
	r, err := rotator.Plan(access, account, &txn)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case r == nil || r.Look:
		if len(txn.Puts)+len(txn.Deletes) == 0 {
			return m, r, nil
		}
	case r.Done:
		txn.Audit = c.rotations(audit.Done, m, r)
	default:
		txn.Audit = c.rotations(audit.Begun, m, r)
	}
	return m, r, c.commit(ctx, &txn)
}

// rotations are the audit records of what a Rotator planned.
func (c *Core) rotations(phase audit.Phase, m *mount.Entry, r *engine.Rotate) []audit.Record {
	all := []audit.Record{c.rotation(phase, m, r)}
	all[0].Secrets = r.Shown
	for _, also := range r.Also {
		rec := all[0]
		rec.Secrets = nil
		rec.Phase, rec.Note, rec.Lease, rec.Owner, rec.Instance, rec.Client = audit.Done, also.Note, also.Lease, also.Owner, also.Instance, also.Client
		rec.Entity, rec.Name = also.Entity, also.Name
		all = append(all, rec)
	}
	return all
}

// turn touches the target of an account, and records what came of it. In this process one account is turned once at a time; the
// rows' conditions do the same among processes.
func (c *Core) turn(ctx context.Context, m *mount.Entry, g policy.Grant, r *engine.Rotate, rec audit.Record) error {
	ctx, cancel := context.WithTimeout(ctx, 2*c.ApplyTimeout)
	defer cancel()
	release, err := c.turning.take(ctx, m.UUID+r.Account)
	if err != nil {
		err = api.Errorf(api.Unavailable, "the same account is being rotated by somebody else; look at it again before you try again")
		return c.untouched(ctx, m, g, r, rec, err)
	}
	defer release()
	t, err := c.touch(ctx, m, g, r)
	if err == nil && t.Then == nil {
		err = t.Err // it did not come to that
	}
	if err != nil {
		return c.untouched(ctx, m, g, r, rec, err)
	}
	rec.Time = c.Store.Now()
	rec.Secrets = append(rec.Secrets, t.Shown...)
	if t.Note != "" {
		rec.Note = t.Note
	}
	if t.Err != nil {
		rec.ErrorKind, rec.Secrets = api.KindOf(t.Err).String(), nil
	}
	return errors.Join(t.Err, c.recorded(ctx, m, g, t, rec))
}

// untouched records that a target which was about to be touched was not, and why.
func (c *Core) untouched(ctx context.Context, m *mount.Entry, g policy.Grant, r *engine.Rotate, rec audit.Record, failure error) error {
	rec.Time, rec.ErrorKind = c.Store.Now(), api.KindOf(failure).String()
	t := engine.Turned{}
	if r.Untouched != nil {
		t.Then = func(a engine.Access, txn *store.Txn, _ func() float64) error { return r.Untouched(a, txn) }
	}
	err := c.recorded(ctx, m, g, t, rec)
	if err != nil && t.Then != nil {
		t.Then = nil // what kept it from the target may be what is read here, too
		err = c.recorded(ctx, m, g, t, rec)
	}
	if err != nil {
		c.Log.Warn("it is not on record that a rotation never was tried", "path", rec.Path, "error", err)
	}
	return failure
}

// recorded is turned, again if the ground moves, whoever has left meanwhile.
func (c *Core) recorded(ctx context.Context, m *mount.Entry, g policy.Grant, t engine.Turned, rec audit.Record) (err error) {
	ctx = context.WithoutCancel(ctx)
	for range attempts {
		if err = c.turned(ctx, m, g, t, rec); !errors.As(err, new(*store.Conflict)) {
			break
		}
	}
	return err
}

// touch has the target touched, under a deadline.
func (c *Core) touch(ctx context.Context, m *mount.Entry, g policy.Grant, r *engine.Rotate) (engine.Turned, error) {
	v, err := c.Store.View()
	if err != nil {
		return engine.Turned{}, err
	}
	defer v.Close()
	_, rotator, err := c.rotatorOf(v, m.UUID)
	if err != nil {
		return engine.Turned{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.ApplyTimeout)
	defer cancel()
	a := c.access(v, m, g)
	a.Look = r.Look
	return rotator.Turn(ctx, a, r.Account), nil
}

// turned records what came of a touch.
func (c *Core) turned(ctx context.Context, m *mount.Entry, g policy.Grant, t engine.Turned, rec audit.Record) error {
	v, err := c.Store.View()
	if err != nil {
		return err
	}
	defer v.Close()
	txn := store.Txn{Audit: []audit.Record{rec}}
	if t.Then != nil {
		if err := t.Then(c.access(v, m, g), &txn, c.rotator.Jitter); err != nil {
			return err
		}
	}
	if len(txn.Audit) == 0 && rec.System == "" {
		txn.Audit = []audit.Record{rec} // what somebody asked for has its outcome on record, be it that others had done it, and that this was a look
	}
	if len(txn.Audit)+len(txn.Puts)+len(txn.Deletes) == 0 {
		return nil // a look that came too late
	}
	return c.commit(ctx, &txn)
}

func (c *Core) access(v store.View, m *mount.Entry, g policy.Grant) engine.Access {
	return engine.Access{
		Mount: m, View: v, Grant: g, Opener: c.Keys, Now: c.Store.Now(),
		Password: func(name string) (lessor.Secret, error) { return c.password(v, name) }, Chance: c.rotator.Jitter(),
	}
}

func (c *Core) rotatorOf(v store.View, uuid string) (*mount.Entry, engine.Rotator, error) {
	table, err := c.table(v)
	if err != nil {
		return nil, nil, err
	}
	m := table.ByUUID(uuid)
	if m == nil || m.Removing {
		return nil, nil, errors.New("the mount of the account is gone")
	}
	rotator, ok := c.Backends[m.Backend()].(engine.Rotator)
	if !ok {
		return nil, nil, fmt.Errorf("engine type %q rotates nothing", m.Type)
	}
	return m, rotator, nil
}

// accountOf is the account whose password readers of a path within a mount are shown; "": there is none.
func (c *Core) accountOf(v store.View, m rotation.Mount, path string) (string, error) {
	_, rotator, err := c.rotatorOf(v, m.UUID)
	if err != nil {
		return "", err
	}
	account, _ := rotator.AccountOf(path)
	return account, nil
}

// rotation is the audit record of a rotation that was due.
func (c *Core) rotation(phase audit.Phase, m *mount.Entry, r *engine.Rotate) audit.Record {
	cause := cmp.Or(r.Cause, "due")
	return audit.Record{
		Time: c.Store.Now(), Operation: "rotate", Namespace: m.Namespace, Path: m.Path + r.Path, Phase: phase, System: "rotation",
		Granted: true, Rule: "system:rotation", Policy: "system", Cause: cause, Note: r.Note,
	}
}

// rotated are the mounts whose accounts are rotated.
func (c *Core) rotated(v store.View) ([]rotation.Mount, error) {
	table, err := c.table(v)
	if err != nil {
		return nil, err
	}
	var all []rotation.Mount
	for _, m := range table.All() {
		if _, ok := c.Backends[m.Backend()].(engine.Rotator); ok && !m.Removing {
			all = append(all, rotation.Mount{Namespace: m.Namespace, UUID: m.UUID})
		}
	}
	return all, nil
}

// overdueGrace is how late a rotation may be before it counts as such.
const overdueGrace = time.Minute

// overdue counts the accounts whose rotation fails or is late, up to a thousand.
func (c *Core) overdue() float64 {
	v, err := c.Store.View()
	if err != nil {
		return 0
	}
	defer v.Close()
	mounts, err := c.rotated(v)
	if err != nil {
		return 0
	}
	found, err := rotation.Overdue(v, mounts, c.Store.Now(), overdueGrace, 1000)
	if err != nil {
		return 0
	}
	return float64(found)
}

// claims are what one goroutine of this process works on and no other may. The zero claims are ready.
type claims struct {
	mu    sync.Mutex
	taken map[string]chan struct{} // closed when it is free again
}

// take waits until name is free, and takes it. release gives it back.
func (c *claims) take(ctx context.Context, name string) (release func(), err error) {
	for {
		c.mu.Lock()
		other := c.taken[name]
		if other == nil {
			mine := make(chan struct{})
			if c.taken == nil {
				c.taken = map[string]chan struct{}{}
			}
			c.taken[name] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.taken, name)
				c.mu.Unlock()
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
