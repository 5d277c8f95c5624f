package client

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"
)

// feedRetry is after how long a server that had no feed for us is asked again.
const feedRetry = 10 * time.Minute

// listen tells the secrets what changed until ctx ends. feed is nil if none could be had.
//
// A server without a feed (Vault, say), or one that does not let us hear it, is not asked again for a while: secrets then change when their leases are
// renewed. Whenever the place in the feed was lost, all are read again.
func (s *Session) listen(ctx context.Context, feed *Subscription) {
	for {
		if feed == nil {
			s.listening(false)
			select {
			case <-ctx.Done():
				return
			case <-time.After(feedRetry):
			}
			if feed = s.subscribe(ctx); feed == nil {
				continue
			}
			s.listening(true)
			s.tell(nil)
		}
		if !s.hear(ctx, feed) {
			feed = nil
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// subscribe begins to hear of changes, from now on; nil if that is not possible.
func (s *Session) subscribe(ctx context.Context) *Subscription {
	feed, err := s.Client().Subscribe(ctx, Rotated)
	if err != nil {
		return nil
	}
	feed.Asked = func(err error) { s.listening(err == nil || lostPlace(err)) }
	return feed
}

// hear waits for the next changes, of the secrets that there are now: a change of that ends the wait, and loses nothing. It returns false when there is no
// feed any more.
func (s *Session) hear(ctx context.Context, feed *Subscription) bool {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	paths := []string{}
	for secret := range s.secrets {
		if secret.query == nil && !slices.Contains(paths, secret.path) {
			paths = append(paths, secret.path)
		}
	}
	s.rewait = cancel
	s.mu.Unlock()
	if len(paths) == 0 {
		<-waiting.Done()
		return true
	}
	slices.Sort(paths)
	feed.Paths = paths
	_, epoch := s.token()
	feed.Via(s.Client())
	events, err := feed.Next(waiting)
	switch {
	case errors.Is(err, ErrLostPlace):
		s.tell(nil)
	case waiting.Err() != nil:
	case IsStatus(err, http.StatusForbidden) && s.epoch() == epoch:
		s.doubt(epoch)
		return s.another(ctx, epoch)
	case err != nil:
		return false
	}
	changed := map[string]bool{}
	for _, e := range events {
		changed[e.Path] = true
	}
	if len(changed) > 0 {
		s.tell(changed)
	}
	return true
}

// another waits for another token than an epoch's, for a moment: the feed that was refused may be had with it.
func (s *Session) another(ctx context.Context, epoch uint64) bool {
	deadline := time.After(callTimeout)
	for s.epoch() == epoch {
		select {
		case <-ctx.Done():
			return true
		case <-deadline:
			return false
		case <-time.After(shortest):
		}
	}
	return true
}

// tell says that secrets may have changed: those at these paths; nil: all.
func (s *Session) tell(paths map[string]bool) {
	for _, secret := range s.open() {
		if paths == nil || paths[secret.path] {
			secret.tell()
		}
	}
}

// listening says whether changes are told.
func (s *Session) listening(yes bool) {
	s.mu.Lock()
	was := s.heard
	s.heard = yes
	s.mu.Unlock()
	if was == yes {
		return
	}
	for _, secret := range s.open() {
		secret.follow(yes)
	}
}
