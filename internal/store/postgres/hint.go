package postgres

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Hints. A node that committed says so on a channel of NOTIFY, and those who LISTEN look at once rather than when they next poll. Nothing
// depends on it: a hint may be lost, late, doubled or made up, a pooler in between may not carry any, and all goes on by polling.
//
// PostgreSQL lets one transaction at a time through that notifies, until it is durable. So a hint is a transaction of its own, on a connection
// of its own, that nobody waits for, and that waits for no disk and no standby; there is one for many commits, and none while there is nobody to
// hear it. It names the latest epoch that its node knows of, so that who knows of it, too, the node itself not least, does not look again.

const (
	hintChannel  = "lessor"
	hintEvery    = 20 * time.Millisecond // at most
	hintPatience = time.Second
	listenAgain  = time.Second // after a connection that listened was lost, or could not be had
)

// hintSQL has effect at its commit, which is the end of the statement.
const hintSQL = `SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)`

// committed has others hinted at a commit. It never blocks.
func (b *Backend) committed() {
	select {
	case b.commits <- struct{}{}:
	default:
	}
}

// hint hints at commits until the Backend closes.
func (b *Backend) hint() {
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-b.commits:
		}
		if !b.others.Load() {
			continue
		}
		ctx, cancel := context.WithTimeout(b.link.current(), hintPatience)
		_, err := b.keeper.Exec(ctx, hintSQL, hintChannel, strconv.FormatInt(b.told.Load(), 10))
		cancel()
		if err != nil {
			b.log.Debug("postgresql: other nodes were not notified of a commit; they poll", "error", wrap(err))
		}
		select {
		case <-b.ctx.Done():
		case <-time.After(hintEvery):
		}
	}
}

// listen hears hints until the Backend closes.
func (b *Backend) listen() {
	for b.ctx.Err() == nil {
		if err := b.hear(b.link.current()); b.ctx.Err() == nil {
			b.log.Debug("postgresql: this node does not hear other nodes' hints; it polls, and tries again", "error", wrap(err))
		}
		select {
		case <-b.ctx.Done():
		case <-time.After(listenAgain):
		}
	}
}

// hear hears hints on a connection of its own, until that is lost or ctx ends.
func (b *Backend) hear(ctx context.Context) error {
	pooled, err := b.keeper.Acquire(ctx)
	if err != nil {
		return err
	}
	conn := pooled.Hijack()
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `LISTEN `+pgx.Identifier{hintChannel}.Sanitize()); err != nil {
		return err
	}
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		if epoch, err := strconv.ParseInt(n.Payload, 10, 64); err != nil || epoch > b.told.Load() {
			b.nudge()
		}
	}
}

// nudge tells the store that there may be something new.
func (b *Backend) nudge() {
	select {
	case b.moved <- struct{}{}:
	default:
	}
}
