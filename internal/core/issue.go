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
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// issue makes a dynamic credential. The order is the whole point:
//
//  1. commit: the lease, pending, with all that undoes it, and the audit record that a target is about to be touched.
//     A crash after this leaves a lease that the reaper reverts.
//  2. the target is touched, under a deadline.
//  3. commit: the lease is live, only if it is still pending, and the audit record of the outcome.
//     A crash before this leaves a credential that nobody was given, under a lease that the reaper reverts.
//  4. the answer.
func (w *walk) issue(ctx context.Context) (*lessor.Answer, error) {
	i := w.reply.Issue
	issuer, ok := w.Backends[w.mount.Backend()].(engine.Issuer)
	if !ok {
		return nil, w.refuse(ctx, api.Errorf(api.Internal, "engine type %q does not issue credentials", w.mount.Type))
	}
	if err := w.mayIssue(); err != nil {
		return nil, w.refuse(ctx, err)
	}
	l, warnings, err := w.lease(i)
	if err != nil {
		return nil, w.refuse(ctx, err)
	}
	if err := w.reserve(ctx, l.Path(), "", l.Key()); err != nil {
		return nil, w.refuse(ctx, err)
	}
	intent, data, password, err := i.Plan(l)
	if err != nil {
		return nil, w.refuse(ctx, err)
	}
	l.Intent = intent

	txn, rec := &w.reply.Txn, w.record(audit.Begun)
	rec.Lease, rec.Owner = l.ID, l.Owner
	if err := w.spend(txn); err != nil {
		return nil, err
	}
	end := l.Expires
	l.State, l.Expires = lease.Pending, w.op.Time.Add(w.ApplyTimeout+lease.PendingMargin)
	lease.Add(txn, l)
	if err := w.commit(ctx, txn, rec); err != nil {
		return nil, err
	}

	access := engine.Access{Mount: w.mount, View: w.view, Grant: w.decision.Grant, Opener: w.Keys, Now: w.op.Time}
	applying, cancel := context.WithTimeout(ctx, w.ApplyTimeout)
	failure := issuer.Apply(applying, access, l, password)
	cancel()

	l.Expires = end
	return w.settle(context.WithoutCancel(ctx), l, failure, func(txn *store.Txn, rec *audit.Record) (*lessor.Answer, error) {
		a := &lessor.Answer{
			Data: data, Mount: w.mount.Type, Warnings: append(append(w.warnings, w.reply.Warnings...), warnings...),
			Lease: lessor.Terms{ID: l.ID, Renewable: l.Renewable, Duration: l.Expires.Sub(w.op.Time)},
		}
		rec.Secrets = append(rec.Secrets, audit.Shown{Path: l.ID, How: "issued", Fingerprint: w.Keys.Fingerprint(w.mount.UUID, l.ID, []byte(password.Reveal()))})
		return a, w.wrap(txn, a, rec)
	})
}

// settle commits what became of the touch of a target: the lease goes live, or is ended at once. The request's context
// counts no more: what happened must be on record. If the ground moves meanwhile, it looks again.
func (w *walk) settle(ctx context.Context, l *lease.Lease, failure error, done func(*store.Txn, *audit.Record) (*lessor.Answer, error)) (*lessor.Answer, error) {
	turn := turn{crowd: &w.crowd}
	defer turn.end()
	for more := true; more; more = turn.again(ctx) {
		answer, err := w.conclude(ctx, l, failure, done)
		if !errors.As(err, new(*store.Conflict)) {
			return answer, err
		}
	}
	// It stays pending, and so is reverted.
	rec := w.record(audit.Outcome)
	rec.Time, rec.Lease, rec.Owner, rec.ErrorKind = w.Store.Now(), l.ID, l.Owner, api.Unavailable.String()
	if _, err := w.Store.Commit(ctx, store.Txn{Audit: []audit.Record{rec}}); err != nil {
		return nil, settled(err)
	}
	return nil, errEnded
}

// conclude is one attempt to settle, on one View. A *store.Conflict means that the ground moved and nothing was committed.
func (w *walk) conclude(ctx context.Context, l *lease.Lease, failure error, done func(*store.Txn, *audit.Record) (*lessor.Answer, error)) (*lessor.Answer, error) {
	view, err := w.Store.View()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	now := w.Store.Now()
	current, row, err := lease.Get(view, l)
	if err != nil {
		return nil, err
	}
	txn, rec := &store.Txn{}, w.record(audit.Outcome)
	rec.Time, rec.Lease, rec.Owner = now, l.ID, l.Owner
	l.State = lease.Live // if all that it rests on is still there
	due, err := w.gives(view, l, now)
	if err != nil {
		return nil, err
	}
	if failure == nil && (current == nil || current.State != lease.Pending || !due) {
		failure = api.Errorf(api.Upstream, "the credential took so long to make that its lease was ended meanwhile; ask again")
	}
	if failure != nil {
		rec.ErrorKind = api.KindOf(failure).String()
		txn.Urgent = true
		if current != nil && current.State == lease.Pending {
			if err := lease.End(view, txn, row, current, "could not be made", now); err != nil {
				return nil, err
			}
		}
		txn.Audit = append(txn.Audit, rec)
		if _, err := w.Store.Commit(ctx, *txn); err != nil {
			return nil, settled(err)
		}
		return nil, failure
	}
	l.Due = current.Due
	lease.Confirm(txn, row, l)
	if err := w.undisputed(view, txn, l); err != nil {
		return nil, err
	}
	answer, err := done(txn, &rec)
	if err != nil {
		return nil, err
	}
	txn.Audit = append(txn.Audit, rec)
	if _, err := w.Store.Commit(ctx, *txn); err != nil {
		return nil, settled(err) // the lease stays pending, or was ended; either way it is reverted
	}
	w.counters.issued.Add(1)
	return answer, nil
}

// undisputed adds to txn that nobody revokes, meanwhile, what a credential that is about to be handed out rests on.
func (w *walk) undisputed(v store.View, txn *store.Txn, l *lease.Lease) error {
	txn.Unchanged = append(txn.Unchanged, store.Since{Table: store.Tombs, Position: v.Position()})
	if l.Token == "" {
		return nil
	}
	t, _, err := token.Lookup(v, l.Token)
	if err != nil || t == nil {
		return err
	}
	for _, hash := range append([]string{l.Token}, t.Ancestors...) { // those of now: it may have become an orphan
		k := token.Key(hash)
		txn.Present(k.Table, k.Name)
	}
	return nil
}

var errEnded = api.Errorf(api.Unavailable, "the credential was ended before it could be handed out; ask again")

// settled is a failure of the second commit in the client's words. A conflict stays one, for who looks again.
func settled(err error) error {
	if err == nil || errors.As(err, new(*store.Conflict)) {
		return err
	}
	if err = outcome(err); api.KindOf(err) == api.Internal {
		return errEnded
	}
	return err
}

// mayIssue refuses a leased credential to tokens that could not carry it.
func (w *walk) mayIssue() error {
	t := w.who.token
	switch {
	case w.Fenced():
		return errFenced
	case t == nil:
		return api.Errorf(api.Denied, "permission denied: leased credentials are given to tokens only")
	case t.Limited && t.NumUses <= 1:
		return api.Errorf(api.Invalid, "Secret cannot be returned; token had one use left, so leased credentials were immediately revoked.")
	}
	return nil
}

// lease drafts the lease of a credential: its end is the sooner of what role, mount and token allow.
func (w *walk) lease(i *engine.Issue) (*lease.Lease, []string, error) {
	now, limits := w.op.Time, w.request.Default
	ttl, most := i.TTL, limits.MaxTTL
	if ttl == 0 {
		ttl = limits.TTL
	}
	if i.MaxTTL > 0 {
		most = min(most, i.MaxTTL)
	}
	var warnings []string
	if ttl > most {
		warnings = append(warnings, token.CapWarning(ttl, most))
		ttl = most
	}
	t := w.who.token
	if t.Kind == lessor.Batch && !t.Expires.IsZero() {
		ttl, most = min(ttl, t.Left(now)), min(most, t.Left(now))
	}
	id, err := lease.NewID(w.mount.Path+i.Path, w.Random)
	if err != nil {
		return nil, nil, err
	}
	owned := i.Owned
	if owned == "" {
		owned = i.Path
	}
	owner, _ := w.ownerOf(w.mount.Path + owned)
	l := &lease.Lease{
		ID: id, Namespace: w.op.Namespace, Mount: w.mount.UUID,
		Kind: lease.Dynamic, Issued: now, Expires: now.Add(ttl), Max: now.Add(most), TTL: ttl, Renewable: i.Renewable && t.Kind != lessor.Batch,
		Token: bearer(t), Ancestors: t.Ancestors, Holder: w.holder(), Owner: owner, Target: i.Target, Request: w.op.ID, Position: w.view.Position(),
	}
	return l, warnings, nil
}

// holder is who the caller is as the holder of a lease.
func (w *walk) holder() lease.Holder {
	h := lease.Holder{Entity: w.who.Entity, Alias: w.who.Alias.ID, Instance: w.op.Instance, Name: w.who.DisplayName}
	if h.Alias == "" {
		h.Alias = w.who.Accessor
	}
	if w.who.Role != "" {
		h.Name += " as " + w.who.Role
	}
	if h.Instance == "" && w.who.instance != "" {
		h.Instance = token.InstanceOf(w.who.instance)
	}
	if h.Instance == "" && w.op.Client.IsValid() {
		h.Instance = w.op.Client.String()
	}
	return h
}

// hold gives the caller a lease on the version of a static secret that it was shown, or its live one back.
func (w *walk) hold(txn *store.Txn, rec *audit.Record, s *engine.Static) (lessor.Terms, error) {
	owner, _ := w.ownerOf(w.mount.Path + s.Path)
	h := w.holder()
	if w.op.WrapTTL > 0 {
		h.Instance = lease.Wrapped + w.op.ID // nobody's yet: who unwraps becomes the holder
	}
	tombs, err := w.tombstones(w.view)
	if err != nil {
		return lessor.Terms{}, err
	}
	terms, id, err := lease.Hold(txn, lease.Reading{
		View: w.view, Tombs: tombs, Mount: w.mount, Path: w.op.Path, Value: *s, Holder: h, Owner: owner, Renewable: w.op.Renewable,
		Least: w.op.WrapTTL, Now: w.op.Time, Request: w.op.ID, Random: w.Random,
	})
	rec.Lease, rec.Owner = id, owner
	if terms.Renewable {
		terms.Version = s.Version
	}
	return terms, err
}

// bearer is the token whose revocation ends the lease: a batch token has no row, and its leases die with its parent or in time.
func bearer(t *token.Token) string {
	if t.Hash == "" && len(t.Ancestors) > 0 {
		return t.Ancestors[0]
	}
	return t.Hash
}

// prolong has the lease of what is wrapped anew last as long as the wrapping, if it is in force and on a static secret.
func (w *walk) prolong(txn *store.Txn, id string, until time.Time) error {
	if id == "" {
		return nil
	}
	l, _, _, err := w.leased(id)
	if api.KindOf(err) == api.Invalid {
		return nil // who unwraps it is told
	}
	if err != nil || l.Kind != lease.Static {
		return err
	}
	return lease.Prolong(w.view, txn, l, until)
}

// rehold makes the caller, who unwraps an answer, the holder of the lease inside. What was revoked in its wrapping is not shown any more.
func (w *walk) rehold(txn *store.Txn, id string) error {
	l, row, _, err := w.leased(id)
	if err != nil {
		if api.KindOf(err) == api.Invalid {
			return api.Errorf(api.Invalid, "the lease of what was wrapped has ended or was revoked: ask for it anew")
		}
		return err
	}
	h := w.holder()
	if h.Entity == "" && w.who.token.Wrapping {
		h.Alias, h.Name = w.who.Accessor, "wrapping token"
	}
	return lease.Rehold(w.view, txn, row, l, h)
}
