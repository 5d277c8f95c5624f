package postgres

import (
	"context"
	"time"
)

// foundLock is held by a node that is about to make the store's first commit.
const foundLock = 0x6c6573736f720004

// Founding waits until no other node is within its own Founding, and keeps others from it until done is called, or this
// node's connection ends. So nodes that start at once on an empty database make one store. It takes ctx's end for an error.
func (b *Backend) Founding(ctx context.Context) (done func(), err error) {
	borrowed, err := b.readers.Acquire(ctx)
	if err != nil {
		return nil, wrap(err)
	}
	conn := borrowed.Hijack() // Close does not wait for it
	give := func() {
		leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortPatience)
		defer cancel()
		_ = conn.Close(leaving) // ends the lock
	}
	for told := false; ; {
		var mine bool
		if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(foundLock)).Scan(&mine); err != nil {
			give()
			return nil, wrap(err)
		}
		if mine {
			return give, nil
		}
		if !told {
			told = true
			b.log.Info("postgresql: another node is making the store: waiting for it")
		}
		select {
		case <-ctx.Done():
			give()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
