package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/store/postgres"
)

// A store that lies elsewhere may be away, and come back. While it does not answer, the node says so to load balancers; where a commit's
// outcome stayed unknown, or what was acknowledged is gone in a failover, the store stops serving, and the node opens it anew, by
// itself, with the keys that it has. Damage is another matter: it ends the process.

// How the store is looked after.
const (
	tendEvery    = 200 * time.Millisecond // look for a fault
	probeEvery   = time.Second            // ask the database for something small
	awayAfter    = 3 * time.Second        // without an answer
	reviveFirst  = 100 * time.Millisecond // pause between attempts
	reviveLast   = 5 * time.Second
	reviveRepeat = time.Minute // say again why it does not succeed
)

var errAway = &api.Error{Kind: api.Unavailable, Text: "the store of this server cannot be reached at the moment: try again, or ask another server"}

// shared reports whether other nodes may work on the store, too.
func (n *Node) shared() bool { return n.config.Storage.Type == config.PostgreSQL }

// tend looks after a shared store until ctx ends.
func (n *Node) tend(ctx context.Context) {
	answered, outdated := time.Now(), false
	answers := make(chan error, 1)
	n.running.Go(func() { n.probe(ctx, answers) })
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-answers:
			answered = time.Now()
			switch was := outdated; {
			case err != nil:
				if outdated = true; !was {
					n.log.Error("this node is older than what its database takes: it refuses everything, and its health check says 503, until it is restarted with the newer lessor",
						"error", err)
				}
				n.silent.Store(true)
			case n.silent.Swap(false):
				if outdated = false; was {
					n.log.Info("the database takes this node again")
				} else {
					n.log.Info("the database answers again")
				}
			}
		case <-tick.C:
			if time.Since(answered) > awayAfter && !n.silent.Swap(true) {
				n.log.Warn("the database does not answer: the health check says 503 until it does")
			}
			s := n.state.Load()
			if fault := s.db.Fault(); fault != nil && s.rested == nil && n.broken.Load() == nil {
				if !store.Passing(fault) {
					continue // the process ends
				}
				n.revive(ctx, s, fault)
				answered = time.Now()
			}
		}
	}
}

// probe asks the database for who works on it, and tells when it answered: nil, or that it takes newer nodes only (store.ErrOutdated).
func (n *Node) probe(ctx context.Context, answers chan<- error) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		asking, cancel := context.WithTimeout(ctx, awayAfter)
		_, err := n.state.Load().db.Peers(asking)
		cancel()
		if err == nil || errors.Is(err, store.ErrOutdated) {
			select {
			case answers <- err:
			default:
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// revive ends the life over a store that stopped serving, and opens the store anew as often as it takes. A node that was unsealed
// keeps its keys meanwhile, so that it needs nobody; one that was sealed stays so.
func (n *Node) revive(ctx context.Context, s *state, fault error) {
	began := time.Now()
	if !n.state.CompareAndSwap(s, &state{db: s.db, locks: s.locks, away: fault}) {
		return // it is being sealed, or was unsealed this moment
	}
	n.log.Warn("the store stopped serving, and is opened anew", "error", fault)
	keys := n.lay(s.life)
	defer func() {
		if keys != nil {
			keys.Forget() // the node is stopping
		}
	}()
	told := time.Now()
	for pause := reviveFirst; ; pause = min(2*pause, reviveLast) {
		err := n.rise(ctx, keys)
		switch {
		case err == nil:
			keys = nil // the node's
			n.revivals.Add(1)
			n.log.Warn("the store serves again", "after", time.Since(began).Round(time.Millisecond))
			return
		case ctx.Err() != nil:
			return
		case !store.Passing(err), errors.Is(err, seal.ErrDamaged), errors.Is(err, seal.ErrNewer), errors.Is(err, seal.ErrUninitialised):
			n.fail(err)
			return
		case time.Since(told) > reviveRepeat:
			told = time.Now()
			n.log.Warn("the store cannot be opened; trying on", "since", began, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// lay ends a life, if there is one, once its requests under way have ended or had sealGrace, and closes its store. It returns the keys.
func (n *Node) lay(l *life) *seal.Keyring {
	if l != nil {
		l.core.Events().Leave()
		l.settle()
	}
	n.turn.Lock()
	defer n.turn.Unlock()
	n.forgetAttempts()
	if l != nil {
		l.end()
	}
	keys := n.keys
	n.keys = nil
	if err := n.db.Close(); err != nil {
		n.log.Warn("the store that stopped serving was not closed in order", "error", err)
	}
	return keys
}

// rise opens the store, and begins a life if there are keys. On an error everything is as before.
func (n *Node) rise(ctx context.Context, keys *seal.Keyring) (err error) {
	n.turn.Lock()
	defer n.turn.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.openStore(ctx); err != nil {
		return err
	}
	if keys == nil {
		if err := n.look(); err != nil {
			return errors.Join(err, n.db.Close())
		}
		return nil
	}
	defer func() {
		if err != nil {
			n.keys = nil
			err = errors.Join(err, n.db.Close())
		}
	}()
	row, err := readKeyring(n.db)()
	if err != nil {
		return err
	}
	if err := keys.Adopt(row); err != nil {
		return fmt.Errorf("%w: %w", seal.ErrDamaged, err)
	}
	if err := n.db.Unseal(keys.Cipher()); err != nil {
		return err
	}
	n.keys = keys
	keys.Follow(readKeyring(n.db))
	rec := bootstrapRecord(n.db.Now(), "reopen", "sys/seal")
	rec.Note = "the store had stopped serving"
	return n.awaken(ctx, nil, append(n.unheard, rec))
}

// patiently opens the store when the node starts, however long its server is away. What else is wrong is an error at once.
func (n *Node) patiently(ctx context.Context) error {
	for pause, told := reviveFirst, (time.Time{}); ; pause = min(2*pause, reviveLast) {
		err := n.openStore(ctx)
		if err == nil || !n.shared() || !postgres.Unreachable(err) || ctx.Err() != nil {
			return err
		}
		if time.Since(told) > reviveRepeat {
			told = time.Now()
			n.log.Warn("waiting for the database, which does not answer", "error", err)
			n.notify("STATUS=waiting for the database, which does not answer")
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}
