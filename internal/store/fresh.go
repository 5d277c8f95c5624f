package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
)

// freshPatience is how long Fresh waits for a backend that does not answer.
const freshPatience = 5 * time.Second

// Fresh returns when Views show every commit that any node acknowledged before the call. On a backend that is not Shared that is
// at once. It costs one round trip to the backend, which those share who call within the same one: a look begins after all who
// wait for it have called. Errors: ErrUnreachable, after five seconds, behind a look that hangs as well; ctx's; ErrClosed; the Fault.
func (db *DB) Fresh(ctx context.Context) error {
	if db.shared == nil {
		return nil
	}
	return db.fresh.wait(ctx, db.look)
}

// look publishes the backend's latest state. What came too late to be told from what a failover took back is asked for again.
func (db *DB) look() error {
	ctx, cancel := context.WithTimeout(db.ctx, freshPatience)
	defer cancel()
	for {
		if err := db.lookOnce(ctx); !errors.Is(err, errLate) || ctx.Err() != nil {
			return err
		}
	}
}

func (db *DB) lookOnce(ctx context.Context) error {
	s, err := db.latest()
	if err != nil {
		return err
	}
	if s.cipher == nil {
		s.release()
		return db.Refresh()
	}
	defer func() { s.release() }()
	news, err := db.shared.Look(ctx, s.snap, s.head.Seq)
	if err != nil {
		if db.ctx.Err() != nil {
			return ErrClosed
		}
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return db.catchUp(&s, news, nil)
}

// followOthers publishes what other nodes commit, when the backend hints at it. A hint that could not be followed is tried again.
func (db *DB) followOthers() {
	moved, again := db.shared.Moved(), make(<-chan time.Time)
	for {
		select {
		case <-db.ctx.Done():
			return
		case <-db.halted:
			return
		case <-again:
		case _, ok := <-moved:
			if !ok {
				return
			}
		}
		if err := db.Fresh(db.ctx); err != nil && db.ctx.Err() == nil {
			db.log.Warn("reading other nodes' commits failed; it is tried again", "error", err)
			again = time.After(time.Second)
		}
	}
}

// catchUp publishes the state that the news tell of, and puts it in the place of s, which the news continue. News that do not
// continue it are a Fault.
func (db *DB) catchUp(s **state, news News, each func(*audit.Header)) error {
	if news.State == nil {
		return nil
	}
	next, err := db.advance(*s, news, (*s).cipher, each)
	if err != nil {
		return db.astray(*s, err)
	}
	if next.head.Seq == (*s).head.Seq { // something changed, and it was no commit
		if err := settled.admit(next.snap); err != nil {
			next.release()
			if errors.Is(err, errElsewhere) {
				db.fail(err)
			}
			return err
		}
	}
	db.clock.follow(next.head.Time)
	next.acquire()
	if err := db.replace(next); err != nil {
		next.release()
		return err
	}
	(*s).release()
	*s = next
	return nil
}

// holds is an error unless the state's snapshot has the header seq whose hash is given; seq 0 is the beginning, which it has.
func (s *state) holds(seq uint64, hash audit.Hash) error {
	if seq == 0 {
		return nil
	}
	stored, err := s.snap.Get(headKey(seq))
	if err != nil {
		return err
	}
	if _, have, err := decodeHead(Stored{headKey(seq), stored}); err != nil || have != hash {
		return &Damage{headKey(seq), "it is not the one that was there"}
	}
	return nil
}

// astray tells what it means that the backend's history does not continue s, and stops the store: if it still has the head of s, it is
// damaged after it; else what missing says.
func (db *DB) astray(s *state, cause error) error {
	if !errors.As(cause, new(*Damage)) {
		return cause // it could not be read
	}
	err := db.missing(s)
	switch {
	case err == nil:
		err = cause
	case !errors.Is(err, ErrLost) && !errors.Is(err, ErrBehind):
		return err
	}
	db.fail(err)
	return err
}

// parted tells what it means that something does not continue the published state s, nor is before it: if the backend has the head of s, it was of another
// history, and came late.
func (db *DB) parted(s *state, cause error) error {
	if errors.Is(cause, errLate) {
		return fmt.Errorf("%w: %w", ErrUnreachable, cause)
	}
	err := db.missing(s)
	switch {
	case errors.Is(err, ErrLost) || errors.Is(err, ErrBehind):
		db.fail(err)
		return err
	case err != nil:
		return fmt.Errorf("%w: which of two histories it has: %w", ErrUnreachable, err)
	}
	return fmt.Errorf("%w: it told of what a failover took back: %w", ErrUnreachable, cause)
}

// missing is an error unless the backend has the head of s. If it lost heads of which nobody was ever told that they would stay, that is what
// a failover may do, ErrLost. Anything earlier is ErrBehind.
func (db *DB) missing(s *state) error {
	snap, err := db.b.Snapshot()
	if err != nil {
		return err
	}
	defer snap.Close()
	now, damage := &state{snap: snap}, new(*Damage)
	if err = now.holds(s.head.Seq, s.hash); err == nil || !errors.As(err, damage) {
		return err
	}
	m := db.confirmed.Load()
	if m == nil {
		return fmt.Errorf("%w: commit %d", ErrLost, s.head.Seq)
	}
	switch err = now.holds(m.Seq, m.Hash); {
	case err == nil:
		return fmt.Errorf("%w: commit %d, after commit %d, which is there", ErrLost, s.head.Seq, m.Seq)
	case errors.As(err, damage):
		return fmt.Errorf("%w: commit %d was acknowledged, and the backend does not have it", ErrBehind, m.Seq)
	}
	return err
}

// confirm takes down that the head of s survives whatever commits survive: it was acknowledged, or one after it.
func (db *DB) confirm(s *state) {
	m := &Mark{Seq: s.head.Seq, Incarnation: s.head.Incarnation, Hash: s.hash}
	for {
		old := db.confirmed.Load()
		if old != nil && old.Seq >= m.Seq || db.confirmed.CompareAndSwap(old, m) {
			return
		}
	}
}

// barrier lets many wait for one look, each for one that begins after he came.
type barrier struct {
	mu   sync.Mutex
	next *round // for those who come now; nil: nobody waits
	busy bool   // somebody looks
}

type round struct {
	done chan struct{}
	err  error
}

func (b *barrier) wait(ctx context.Context, look func() error) error {
	b.mu.Lock()
	r := b.next
	if r == nil {
		r = &round{done: make(chan struct{})}
		b.next = r
	}
	if !b.busy {
		b.busy = true
		go b.run(look)
	}
	b.mu.Unlock()
	patience := time.NewTimer(freshPatience)
	defer patience.Stop()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	case <-patience.C:
		return fmt.Errorf("%w: it did not say in %s what is new", ErrUnreachable, freshPatience)
	}
}

// run looks until nobody waits.
func (b *barrier) run(look func() error) {
	for {
		b.mu.Lock()
		r := b.next
		b.next, b.busy = nil, r != nil
		b.mu.Unlock()
		if r == nil {
			return
		}
		r.err = look()
		close(r.done)
	}
}
