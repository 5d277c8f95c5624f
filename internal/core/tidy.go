package core

import (
	"context"
	"errors"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
)

// keepTidy lets engines clear away what is over: every now and then, where that is this node's work, and when somebody asks this node for it.
func (c *Core) keepTidy(ctx context.Context) {
	t := time.NewTicker(retentionEvery)
	defer t.Stop()
	const what = "clearing away what is over"
	c.claimed(ctx, what, c.tidy)
	for {
		changed := c.Claims.Changed()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			c.claimed(ctx, what, c.tidy)
		case <-changed:
			c.claimed(ctx, what, c.tidy)
		case <-c.tidying:
			if err := c.tidy(ctx); err != nil && ctx.Err() == nil {
				c.Log.Error(what+" failed; it is tried again", "error", err)
			}
		}
	}
}

// tidySoon asks for a round of it now. One that is under way already may have passed what the caller means, so that another follows.
func (c *Core) tidySoon() {
	select {
	case c.tidying <- struct{}{}:
	default:
	}
}

// tidy is one round over all mounts.
func (c *Core) tidy(ctx context.Context) error {
	v, err := c.Store.View()
	if err != nil {
		return err
	}
	table, err := c.table(v)
	v.Close()
	if err != nil {
		return err
	}
	for _, m := range table.All() {
		t, ok := c.Backends[m.Backend()].(engine.Tidier)
		if !ok || m.Removing {
			continue
		}
		for from, more := "", true; more; more = from != "" {
			if from, err = c.tidyChunk(ctx, t, m, from); err != nil {
				return err
			}
		}
	}
	return nil
}

// tidyChunk is one commit of it. What somebody else changed meanwhile is left to the next round.
func (c *Core) tidyChunk(ctx context.Context, t engine.Tidier, m *mount.Entry, from string) (next string, err error) {
	v, err := c.Store.View()
	if err != nil {
		return "", err
	}
	defer v.Close()
	txn := store.Txn{}
	if next, err = t.Tidy(v, &txn, m, from, c.Store.Now()); err != nil || len(txn.Deletes) == 0 {
		return next, err
	}
	txn.Audit = []audit.Record{c.upkeep("tidy", m.Path, "what is over")}
	if err = c.commit(ctx, &txn); errors.As(err, new(*store.Conflict)) {
		err = nil
	}
	return next, err
}
