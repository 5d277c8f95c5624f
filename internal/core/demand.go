package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// demandBatch is how many demands one commit sees to.
const demandBatch = 200

// Why, for rotation: whose lease it was is on record with the demand.
const (
	demandCause = "a holder's lease was revoked"
	endedCause  = "a lease on it ended"
)

// keepDemands sees to demands: soon after this node hears of one, and every now and then, where that is this node's work.
func (c *Core) keepDemands(ctx context.Context) {
	every := c.Poll
	if every == 0 {
		every = time.Second
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		changed := c.Claims.Changed()
		c.claimed(ctx, "demanding rotations", c.meetDemands)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-changed:
		case <-c.demanding:
		}
	}
}

// demandsSoon asks for a look at them now.
func (c *Core) demandsSoon() {
	select {
	case c.demanding <- struct{}{}:
	default:
	}
}

// meetDemands has the secrets rotated whose version in force is exposed. A restored copy that is still fenced leaves that for later.
func (c *Core) meetDemands(ctx context.Context) error {
	if c.Fenced() {
		return nil
	}
	v, err := c.Store.View()
	if err != nil {
		return err
	}
	mounts, err := c.rotated(v)
	v.Close()
	if err != nil {
		return err
	}
	var failed []error
	for _, m := range mounts {
		for from, more := "", true; more && ctx.Err() == nil; more = from != "" {
			if from, err = c.meetSome(ctx, m.UUID, from); err != nil && !errors.As(err, new(*store.Conflict)) { // else somebody changed an account: the next look does it
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

// meetSome sees to some of a mount's demands from one on, and says where to go on; "" means that there are no more. Those that cannot be seen to, since they or
// their account's row are damaged, stay, and are in err; the others are seen to.
func (c *Core) meetSome(ctx context.Context, uuid, from string) (next string, err error) {
	v, err := c.Store.View()
	if err != nil {
		return "", err
	}
	defer v.Close()
	m, rotator, err := c.rotatorOf(v, uuid)
	if err != nil {
		return "", err
	}
	var failed []error
	demands, next, err := lease.Demands(v, m, from, demandBatch)
	if errors.As(err, new(*store.Damage)) {
		failed = append(failed, err)
	} else if err != nil {
		return "", err
	}
	txn := &store.Txn{}
	for len(demands) > 0 {
		n := 1
		for n < len(demands) && demands[n].Secret == demands[0].Secret {
			n++
		}
		one := &store.Txn{}
		met, err := c.meet(v, one, m, rotator, demands[:n])
		if err != nil {
			failed = append(failed, fmt.Errorf("a demand to rotate %s%s: %w", m.Path, demands[0].Secret, err))
			one = &store.Txn{}
		}
		if met {
			for _, d := range demands[:n] {
				lease.Met(one, m, d)
			}
		}
		txn.Join(one)
		demands = demands[n:]
	}
	if len(txn.Puts)+len(txn.Deletes) > 0 {
		if err := c.commit(ctx, txn); err != nil {
			return "", errors.Join(append(failed, err)...)
		}
		c.rotator.Nudge()
	}
	return next, errors.Join(failed...)
}

// meet sees to the demands on one secret, and reports whether that is all there is to do about them. It is not while another password is on its
// way, or holders of the exposed one are, or will be, waited for: it is succeeded, unless the rotation is given up.
func (c *Core) meet(v store.View, txn *store.Txn, m *mount.Entry, rotator engine.Rotator, demands []lease.Demand) (bool, error) {
	secret := demands[0].Secret
	account, ok := rotator.AccountOf(secret)
	versions, versioned := rotator.(engine.Versioner)
	if !ok || !versioned {
		return true, nil // it stays a finding
	}
	current, born, err := versions.Current(v, m, secret)
	if err != nil {
		return false, err
	}
	a, row, err := rotation.Load(v, m.Namespace, m.UUID, account)
	if err != nil || !row.Exists() {
		return err == nil, err
	}
	shared, lasting := false, false
	if !a.Pair && slices.ContainsFunc(demands, func(d lease.Demand) bool { return d.Ended }) {
		if shared, lasting, err = checkedOut(v, m, secret, a); err != nil {
			return false, err
		}
	}
	var left []lease.Demand
	waiting := slices.ContainsFunc(demands, func(d lease.Demand) bool { return d.Born == born && a.MayReturn(d.Version) })
	slices.SortStableFunc(demands, func(x, y lease.Demand) int { return cmp.Compare(rank(x), rank(y)) })
	for _, d := range demands {
		switch {
		case d.Born != born || d.Version != current && !a.InForce(d.Version):
			continue // it is succeeded already
		case d.Ended && shared:
			left = append(left, d) // it would lock out who has it still
			continue
		}
		now := c.Store.Now()
		cause, at := demandCause, now
		if d.Ended {
			cause, at = endedCause, a.Spared(now)
		}
		if a.Demand(cause, at) {
			txn.Audit = append(txn.Audit, audit.Record{
				Time: now, Operation: "demand", Namespace: m.Namespace, Path: m.Path + secret, Phase: audit.Done, System: "rotation", Granted: true,
				Rule: "system:rotation", Policy: "system", Cause: d.Cause, Note: "a rotation was demanded", Lease: d.Lease,
			})
			if err := rotation.Save(txn, row, a); err != nil {
				return false, err
			}
		} else if !a.Demanded() {
			return false, nil // what somebody asked for may be given up, and with it what this is about
		}
		if !a.Pair {
			return !waiting, nil
		}
		for _, other := range demands { // of two accounts it may be given up once it waits: what is outgoing is in force again then; one demand is enough for that
			if other != d && (other.Born != born || !a.MayReturn(other.Version)) {
				lease.Met(txn, m, other)
			}
		}
		return false, nil
	}
	if !lasting || len(left) == 0 {
		return !waiting, nil // who has it still demands the same by its own end
	}
	for _, d := range left[1:] {
		lease.Met(txn, m, d) // one is enough
	}
	return false, nil
}

// rank orders demands by how soon they are to be met: what is exposed first.
func rank(d lease.Demand) int {
	if d.Ended {
		return 1
	}
	return 0
}

// checkedOut reports whether somebody has a lease on the version in force of an account; lasting, whether somebody has one whose end demands nothing.
func checkedOut(v store.View, m *mount.Entry, secret string, a *rotation.Account) (shared, lasting bool, err error) {
	users, err := lease.Users(v, m, secret)
	for _, u := range users {
		if u.Lapsed.IsZero() && u.Born == a.Born && a.InForce(u.Newest) {
			shared, lasting = true, lasting || !u.CheckOut
		}
	}
	return shared, lasting, err
}
