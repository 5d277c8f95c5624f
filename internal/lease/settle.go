package lease

import (
	"context"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/store"
)

// settlePoll is how often Settle looks by itself, should nobody tell the Reaper what others commit (Heard).
const settlePoll = 250 * time.Millisecond

// Settle waits until all that the tombstones hit is gone, at targets too. What they hit is not in force from their commit on, whatever Settle
// says. An error of kind Upstream means that a target failed meanwhile, one of kind Unavailable that there was no time, or no use, to wait
// for one: lessor keeps trying.
func (r *Reaper) Settle(ctx context.Context, tombs ...string) error {
	return r.await(ctx, func(v store.View) (bool, error) {
		for _, id := range tombs {
			if gone, err := r.buried(v, id); err != nil || !gone {
				return false, err
			}
		}
		return true, nil
	})
}

// SettleLease waits until a lease that was ended is gone, at its target too. Errors are Settle's.
func (r *Reaper) SettleLease(ctx context.Context, l *Lease) error {
	return r.await(ctx, func(v store.View) (bool, error) {
		l, _, err := Get(v, l)
		if err != nil || l == nil {
			return err == nil, err
		}
		return false, r.hopeless(l)
	})
}

// buried reports whether nothing is left of what a tombstone hit.
func (r *Reaper) buried(v store.View, id string) (bool, error) {
	row, err := v.Get(store.Key{Table: store.Tombs, Name: tombRows + id})
	if err != nil || row.Exists() {
		return false, err
	}
	for _, err := range v.Scan(store.LeaseIdx, treeName(id, ""), store.PrefixEnd(treeName(id, ""))) {
		return false, err
	}
	prefix := tombPrefix(id)
	for row, err := range v.Scan(store.LeaseIdx, prefix, store.PrefixEnd(prefix)) {
		if err != nil {
			return false, err
		}
		l, _, err := load(v, row.Name[len(prefix):])
		if err != nil || l == nil {
			return false, err
		}
		return false, r.hopeless(l)
	}
	return true, nil
}

// hopeless is why nobody should wait for a Revoking lease: its target refused, or is known to fail and left alone for now. nil: it
// may be gone soon.
func (r *Reaper) hopeless(l *Lease) error {
	now := r.Store.Now()
	if err := l.refused(now); err != nil {
		return err
	}
	if l.State == Revoking && !l.Forced && r.workers.shut(target{l.Namespace, l.Mount, l.Target}, now) {
		return errUnconfirmed
	}
	return nil
}

var errUnconfirmed = api.Errorf(api.Unavailable, "the revocation is in force, but not yet confirmed by every target; lessor keeps trying")

// refused is the error of a Revoking lease whose target refused; nil while the next try is due.
func (l *Lease) refused(now time.Time) error {
	if l.LastError == "" || !l.Next.After(now) {
		return nil
	}
	return api.Errorf(api.Upstream,
		"the lease %s is revoked, but its target has not confirmed that the credential is gone; lessor keeps trying: %s", l.ID, l.LastError)
}

// await looks at each commit of the reaper until done says so.
func (r *Reaper) await(ctx context.Context, done func(store.View) (bool, error)) error {
	poll := time.NewTicker(settlePoll)
	defer poll.Stop()
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		r.Nudge()
		ok, err := r.ask(done)
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return errUnconfirmed
		case <-changed:
		case <-poll.C:
		}
	}
}

func (r *Reaper) ask(done func(store.View) (bool, error)) (bool, error) {
	v, err := r.Store.View()
	if err != nil {
		return false, err
	}
	defer v.Close()
	return done(v)
}

// OutlivedGrace is how long after the end of its lease a credential may wait for its target before it is a finding.
const OutlivedGrace = 30 * time.Second

// Outlived lists the credentials that outlived their lease, at most limit, those longest in the queue of each target first: leases whose end was
// more than grace before now, or whose revert failed, and that are still not confirmed gone.
func Outlived(v store.View, now time.Time, grace time.Duration, limit int) ([]*Lease, error) {
	var all []*Lease
	for row, err := range v.Scan(store.LeaseIdx, queuePrefix, store.PrefixEnd(queuePrefix)) {
		if err != nil {
			return nil, err
		}
		if len(all) == limit {
			break
		}
		_, _, name, ok := parseQueue(row.Name)
		if !ok {
			return nil, &store.Damage{Key: row.Key, Why: "it names no lease"}
		}
		l, _, err := load(v, name)
		if err != nil {
			return nil, err
		}
		confirmed := l != nil && l.Watch && l.Attempts > 0 && l.LastError == ""
		if l != nil && !confirmed && (l.LastError != "" || now.Sub(l.Ended) > grace) {
			all = append(all, l)
		}
	}
	return all, nil
}

// List yields, in order and once each, the names right below prefix among the ids of a mount's leases: ids without prefix up to the next slash, and
// with it where there is more below. prefix ends in "/"; it includes the mount's path.
func List(v store.View, namespace uint32, mount, prefix string, yield func(name string) bool) error {
	base := store.MountKey(namespace, mount, prefix)
	from, to := base, store.PrefixEnd(base)
	for {
		name := ""
		for row, err := range v.Scan(store.Leases, from, to) {
			if err != nil {
				return err
			}
			name = row.Name[len(base):]
			break
		}
		if name == "" {
			return nil
		}
		if i := strings.IndexByte(name, '/'); i >= 0 {
			name = name[:i+1]
			from = store.PrefixEnd(base + name)
		} else {
			from = base + name + "\x00"
		}
		if !yield(name) {
			return nil
		}
	}
}
