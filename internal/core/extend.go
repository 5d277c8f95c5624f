package core

import (
	"context"
	"errors"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// extend renews a lease. That of a static secret is a matter of one commit. A dynamic one has its new end on record, with the
// audit record that its target is about to be touched, before the target is told: a crash in between leaves a credential that
// ends too early at its target, never one that outlives its lease.
func (w *walk) extend(ctx context.Context) (*lessor.Answer, error) {
	e := w.reply.Extend
	l, row, m, err := w.leased(e.Lease)
	if err != nil {
		return nil, w.refuse(ctx, err)
	}
	w.reply.Lease = l.ID // not before it is known to be one: what a client calls a lease may be anything
	if l.Kind == lease.Static {
		return w.extendStatic(ctx, l, m)
	}
	until, warning, err := l.Extended(e.Increment, w.op.Time)
	if err != nil {
		return nil, w.refuse(ctx, err)
	}
	issuer, ok := w.Backends[m.Backend()].(engine.Issuer)
	if !ok {
		return nil, w.refuse(ctx, api.Errorf(api.Internal, "engine type %q does not issue credentials", m.Type))
	}
	if w.Fenced() {
		return nil, w.refuse(ctx, errFenced)
	}
	answer := &lessor.Answer{Warnings: w.warnings, Mount: m.Type}
	if warning != "" {
		answer.Warnings = append(answer.Warnings, warning)
	}

	before := l.Expires
	l.Expires, l.Renewed = until, w.op.Time
	txn, rec := &w.reply.Txn, w.record(audit.Begun)
	rec.Owner = l.Owner
	lease.Save(txn, row, l)
	if err := w.spend(txn); err != nil {
		return nil, err
	}
	if err := w.commit(ctx, txn, rec); err != nil {
		return nil, err
	}

	access := engine.Access{Mount: m, View: w.view, Grant: w.forMount(m), Opener: w.Keys, Now: w.op.Time}
	touching, cancel := context.WithTimeout(ctx, w.ApplyTimeout)
	failure := issuer.Renew(touching, access, l, until)
	cancel()
	if err := w.extended(context.WithoutCancel(ctx), l, before, failure); err != nil {
		return nil, err
	}
	answer.Lease = lessor.Terms{ID: l.ID, Renewable: true, Duration: until.Sub(w.op.Time)}
	w.counters.renewals.Add(1)
	return answer, nil
}

// extended records what the target said to a renewal. If it refused, the lease ends when it would have.
func (w *walk) extended(ctx context.Context, l *lease.Lease, before time.Time, failure error) error {
	rec := w.record(audit.Outcome)
	rec.Time, rec.Owner = w.Store.Now(), l.Owner
	txn := &store.Txn{}
	if failure != nil {
		rec.ErrorKind = api.KindOf(failure).String()
		view, err := w.Store.View()
		if err != nil {
			return err
		}
		defer view.Close()
		now, row, err := lease.Get(view, l)
		if err != nil {
			return err
		}
		if now != nil && now.State == lease.Live && now.Expires.Equal(l.Expires) {
			now.Expires = before
			lease.Save(txn, row, now)
		}
	}
	txn.Audit = []audit.Record{rec}
	if _, err := w.Store.Commit(ctx, *txn); err != nil {
		if conflict := (*store.Conflict)(nil); !errors.As(err, &conflict) {
			return settled(err)
		}
		// Somebody else renewed or revoked it meanwhile: their end counts, but this outcome is still to be recorded.
		if _, err := w.Store.Commit(ctx, store.Txn{Audit: []audit.Record{rec}}); err != nil {
			return settled(err)
		}
	}
	return failure
}

// extendStatic renews the lease on a static secret: a plain answer, and a hint to read again if there is a newer version.
func (w *walk) extendStatic(ctx context.Context, l *lease.Lease, m *mount.Entry) (*lessor.Answer, error) {
	var current, born uint64
	if v, ok := w.Backends[m.Backend()].(engine.Versioner); ok {
		var err error
		if current, born, err = v.Current(w.view, m, l.Secret); err != nil {
			return nil, w.refuse(ctx, err)
		}
	}
	txn, rec := &w.reply.Txn, w.record(audit.Done)
	terms, warning, err := lease.RenewStatic(w.view, txn, l, current, born, w.op.Time)
	if err != nil {
		return nil, w.refuse(ctx, err)
	}
	rec.Owner = l.Owner
	if err := w.spend(txn); err != nil {
		return nil, err
	}
	if err := w.commit(ctx, txn, rec); err != nil {
		return nil, err
	}
	w.counters.renewals.Add(1)
	answer := &lessor.Answer{Warnings: w.warnings, Mount: m.Type, Lease: terms}
	if warning != "" {
		answer.Warnings = append(answer.Warnings, warning)
	}
	return answer, nil
}

// leased finds a live lease by its id.
func (w *walk) leased(id string) (*lease.Lease, store.Row, *mount.Entry, error) {
	missing := api.Errorf(api.Invalid, "lease not found")
	m, _ := w.mounts.Route(id)
	if m == nil {
		return nil, store.Row{}, nil, missing
	}
	l, row, err := lease.Find(w.view, m.Namespace, m.UUID, id)
	if err != nil {
		return nil, row, nil, err
	}
	if l == nil {
		return nil, row, nil, missing
	}
	live, err := w.Alive(l)
	if err != nil {
		return nil, row, nil, err
	}
	if !live {
		return nil, row, nil, api.Errorf(api.Invalid, "lease expired")
	}
	return l, row, m, nil
}

// Alive implements engine.System: a lease gives its holder something now if it is live, and so is the token that it dies with.
func (w *walk) Alive(l *lease.Lease) (bool, error) { return w.gives(w.view, l, w.op.Time) }

// gives is Alive as of a View.
func (c *Core) gives(v store.View, l *lease.Lease, now time.Time) (bool, error) {
	tombs, err := c.tombstones(v)
	if err != nil || !l.Live(tombs, now) {
		return false, err
	}
	if l.Token == "" {
		return true, nil
	}
	t, _, err := token.Lookup(v, l.Token)
	if err != nil || t == nil {
		return false, err
	}
	if live, err := t.Live(v, now); err != nil || !live {
		return false, err
	}
	return c.spared(v, t)
}

// forMount is the permission to reach the target of a lease for a request that was granted at sys/.
func (w *walk) forMount(m *mount.Entry) policy.Grant {
	op := *w.op
	op.Path = m.Path
	return policy.Decide(nil, &lessor.Principal{System: "renewal"}, &op, policy.Facts{Mount: m.UUID}).Grant
}

var errFenced = api.Errorf(api.Unavailable, "this is a restored copy: it touches no target until an operator resumes it with lessor operator fence resume")
