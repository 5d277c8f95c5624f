package core

import (
	"context"
	"errors"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/tally"
)

// counted reports whether a refusal is only counted: that of somebody who holds no token that is any good, unless it is
// the first of its source in this second.
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
