package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

// feedRetry is after how long a server that had no feed for us is asked again.
const feedRetry = 10 * time.Minute

// listen tells the secrets what changed until ctx ends. feed is nil if none could be had, for the reason that because is.
//
// A server that cannot tell just now is asked again soon. One without a feed (Vault, say), or one that does not let us hear it, is not for a while: secrets
// then change when their leases are renewed. Whenever the place in the feed was lost, all are read again.
func (s *Session) listen(ctx context.Context, feed *Subscription, because error) {
	for failures := 0; ; {
		if feed == nil {
			s.listening(false)
			wait := feedRetry
			if failures++; passing(because) {
				wait = backoff(failures, rand.Float64())
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			if feed, because = s.subscribe(ctx); feed == nil {
				continue
			}
			s.listening(true)
			s.tell(nil)
		}
		failures = 0
		if because = s.hear(ctx, feed); because != nil {
			feed = nil
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// subscribe begins to hear of changes, from now on.
func (s *Session) subscribe(ctx context.Context) (*Subscription, error) {
	feed, err := s.Client().Subscribe(ctx, Rotated)
	if err != nil {
		return nil, err
	}
	feed.Asked = func(err error) { s.listening(err == nil || lostPlace(err)) }
	return feed, nil
}

// hear waits for the next changes, of the secrets that there are now: a change of that ends the wait, and loses nothing. An error says that there is no
// feed any more.
func (s *Session) hear(ctx context.Context, feed *Subscription) error {
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
		return nil
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
		if !s.another(ctx, epoch) {
			return err
		}
		return nil
	case err != nil:
		return err
	}
	changed := map[string]bool{}
	for _, e := range events {
		changed[e.Path] = true
	}
	if len(changed) > 0 {
		s.tell(changed)
	}
	return nil
}

// another waits for another token than an epoch's, for a moment: the feed that was refused may be had with it.
func (s *Session) another(ctx context.Context, epoch uint64) bool {
	s.mu.Lock()
	over, now := s.over, s.ticket.epoch
	s.mu.Unlock()
	if now != epoch {
		return true
	}
	select {
	case <-over:
	case <-ctx.Done():
	case <-time.After(callTimeout):
		return false
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
