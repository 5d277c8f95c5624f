package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// rotated is the type of the events that tell of a new version of anything static.
const rotated = "lessor/rotated"

const (
	feedWait  = 30 * time.Second // that a call waits for an event
	feedRetry = 10 * time.Minute // after which a server that had no feed for us is asked again
)

// listen tells the secrets what changed until ctx ends. place is where in the feed it is; err, why it is nowhere.
//
// A server without a feed (Vault, say), or one that does not let us hear it, is not asked again for a while: secrets then change when their leases are
// renewed. Whenever the place in the feed was lost, all are read again.
func (s *Session) listen(ctx context.Context, place string, err error) {
	for failures := 0; ; {
		if err != nil {
			if failures++; place == "" || failures > 2 {
				s.listening(false)
			}
			wait := backoff(failures, rand.Float64())
			if lost(err) {
				place, wait = "", 0
			} else if !passing(err) {
				place, wait = "", feedRetry
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		} else {
			failures = 0
		}
		from := place
		place, err = s.hear(ctx, from)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			place = from
			continue
		}
		s.listening(true)
		if from == "" {
			for _, secret := range s.open() {
				secret.tell()
			}
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

// hear waits for what happened after a place in the feed, tells the secrets that are concerned, and returns the place that was reached. Without a place it
// returns that of now.
func (s *Session) hear(ctx context.Context, place string) (string, error) {
	query := url.Values{}
	if place != "" {
		query = url.Values{"after": {place}, "wait": {feedWait.String()}}
	}
	answer, err := s.Client().WithTimeout(feedWait+callTimeout).WithWrapTTL(0).Read(ctx, "sys/lessor/events/"+rotated, query)
	if err != nil {
		if IsStatus(err, http.StatusForbidden) {
			s.doubt(s.epoch())
		}
		return place, err
	}
	var heard struct {
		Cursor string `json:"cursor"`
		Events []struct {
			Data struct {
				Event struct {
					Metadata struct {
						Path string `json:"path"`
					} `json:"metadata"`
				} `json:"event"`
			} `json:"data"`
		} `json:"events"`
	}
	if err := answer.Decode(&heard); err != nil {
		return place, err
	}
	changed := map[string]bool{}
	for _, e := range heard.Events {
		changed[e.Data.Event.Metadata.Path] = true
	}
	for _, secret := range s.open() {
		if changed[secret.path] {
			secret.tell()
		}
	}
	return heard.Cursor, nil
}

// lost reports whether an error says that the feed does not go back as far as the place that was asked for.
func lost(err error) bool {
	refused, ok := errors.AsType[*Error](err)
	return ok && len(refused.Errors) > 0 && strings.HasPrefix(refused.Errors[0], "the cursor")
}
