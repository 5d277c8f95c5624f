package core

import (
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy/book"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
	"github.com/lessor-dev/lessor/internal/wrapping"
)

// wrap replaces the answer, if its client or its handler asked for that, with a wrapping token: the answer itself is kept
// sealed, in the same commit, until somebody unwraps it once.
func (w *walk) wrap(txn *store.Txn, a *lessor.Answer, rec *audit.Record) error {
	ttl := w.op.WrapTTL
	path := w.recorded() // it is shown, and on record when the wrapping token ends
	if r := w.reply.Rewrap; r != nil {
		ttl, path = r.TTL, r.Path
	} else if ttl <= 0 || a.Empty() || w.reply.Wrapped != nil {
		return nil
	}
	secret, err := token.NewID(w.Random)
	if err != nil {
		return err
	}
	accessor, err := token.NewAccessor(w.Random)
	if err != nil {
		return err
	}
	now := w.op.Time
	t := &token.Token{
		Hash: w.Keys.TokenHash(secret.Reveal()), Accessor: accessor, Kind: lessor.Service, Orphan: true,
		Policies: []string{book.WrappingPolicy}, Path: path, Created: now, TTL: ttl, Explicit: ttl, Expires: now.Add(ttl), NumUses: 1, Limited: true,
		Wrapping: true, Position: w.view.Position(),
	}
	t.Store(txn)
	kept := &wrapping.Kept{Path: path, Created: now, First: now, TTL: ttl, Lease: a.Lease.ID}
	if w.reply.Static != nil {
		kept.Lease = rec.Lease // it may be one that clients do not see
	}
	if kept.Accessor = w.reply.Accessor; a.Auth != nil {
		kept.Accessor = a.Auth.Accessor
	}
	body := w.reply.Rewrap
	if body != nil {
		kept.Body, kept.Accessor, kept.Lease = []byte(body.Body.Reveal()), body.Accessor, body.Lease
		if !body.At.IsZero() {
			kept.First = body.At
		}
		if err := w.prolong(txn, body.Lease, t.Expires); err != nil {
			return err
		}
	} else {
		kept.Body = a.Append(nil, w.op.ID)
	}
	wrapping.Put(txn, SystemMount, t.Hash, kept)
	if rec.Note != "" {
		rec.Note += ", " // which token was made, say
	}
	rec.Note += "wrapped"
	*a = lessor.Answer{Warnings: a.Warnings, Flat: a.Flat, Wrap: &lessor.Wrap{
		Token: secret, Accessor: accessor, TTL: ttl, Created: now.Round(time.Nanosecond), Path: path, WrappedAccessor: kept.Accessor,
	}}
	return nil
}
