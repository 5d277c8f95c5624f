package core

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/tally"
)

// counted reports whether what was asked in vain, or without effect, is only counted: by somebody who holds no token that is any
// good, unless it is the first of its source in this second. cause is the refusal, if it is one.
func (w *walk) counted(cause error, rec audit.Record) bool {
	if !w.who.Anonymous() {
		return false
	}
	kind := tally.Plain
	if errors.Is(cause, errUnwrapped) {
		kind = tally.Probe
	}
	return !w.strangers.Add(w.op.Client, rec.ErrorKind+"\x00"+rec.Note+"\x00"+rec.Accessor, kind, rec)
}

// idle reports whether an operation changes nothing, gives nothing and shows nothing that is secret, as most of what strangers may ask.
func (w *walk) idle(txn *store.Txn, rec *audit.Record) bool {
	r := w.reply
	return len(txn.Puts)+len(txn.Deletes)+len(txn.Ranges)+len(rec.Secrets) == 0 && r.Login == nil && r.Mint == nil &&
		r.Raw == nil && r.First == nil && r.Do == nil && r.Then == nil && r.Later == nil && r.Feed == nil
}

// continues reports whether an operation only goes on with what is on record already.
func (w *walk) continues(txn *store.Txn) bool {
	return w.reply.Continues && len(txn.Puts)+len(txn.Deletes)+len(txn.Ranges) == 0
}

// Counts reports whether an act of somebody who holds no token, which has no effect on what is kept, is only counted, since this
// source has had enough records of its own of that kind in this second.
func (c *Core) Counts(client netip.Addr, rec audit.Record) bool {
	return !c.strangers.Add(client, rec.ErrorKind+"\x00"+rec.Note, tally.Probe, rec)
}

// count commits what the tally counted.
func (c *Core) count(ctx context.Context, records []audit.Record) error {
	_, err := c.Store.Commit(ctx, store.Txn{Audit: records})
	return err
}

// countStrangers makes the counts durable, each second, until ctx ends.
func (c *Core) countStrangers(ctx context.Context) {
	c.strangers.Run(ctx, c.Store.Now, func(err error) {
		c.Log.Error("refusals that were counted are not on record yet; it is tried again", "error", err)
	})
}

// FlushStrangers makes the counts of refusals before now durable.
func (c *Core) FlushStrangers(ctx context.Context, now time.Time) error {
	return c.strangers.Flush(ctx, now)
}
