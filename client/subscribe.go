package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Rotated is the type of the events that tell of new versions of static secrets, whatever keeps them. Path is the path to read, and
// Metadata["version"] the version.
const Rotated = "lessor/rotated"

// Event is what happened to something that the token may read. It has no secret.
type Event struct {
	ID       string            // the same from whichever server it comes, and however often
	Type     string            // "kv-v2/data-write", "database/rotate", Rotated, …
	Path     string            // by which what it is about is read: "secret/data/app"
	Metadata map[string]string // as Vault's events have it
	Mount    string            // path of the mount: "secret/"
	Time     time.Time         // of the commit, by the server's clock
	Cursor   string            // goes on behind it
	Raw      json.RawMessage   // as it came: CloudEvents
}

// ErrLostPlace is the error of Subscription.Next when what happened in between cannot be told any more: it was too long ago, or the server's store was put back
// to an earlier state. The subscription goes on from now: read again what you follow.
var ErrLostPlace = errors.New("events were missed: read again what you follow")

// Subscription hears of events, by calls that wait for them; from whichever server of a cluster answers. It is for one goroutine at a
// time.
type Subscription struct {
	Types  []string // of the events; * stands for any characters
	Paths  []string // only what is read by these; a * at the end of one stands for any characters. None: all that the token may read
	Filter string   // only what this is true of: `operation == "data-delete"`. Empty: all

	// Asked, if set, is told after each call what came of it: nil if it was answered, with events or without.
	Asked func(error)

	client *Client
	cursor string
	failed int // calls in a row
}

// pollWait is how long a call waits for events: less than most proxies allow.
const pollWait = 50 * time.Second

// Subscribe begins to hear of events of some types, in which * stands for any characters. What happens after it returned is told: read what you follow then,
// and nothing is missed. Paths may be set afterwards.
func (c *Client) Subscribe(ctx context.Context, types ...string) (*Subscription, error) {
	s := &Subscription{Types: types, client: c.WithWrapTTL(0)}
	return s, s.begin(ctx)
}

// SubscribeAfter is Subscribe from a place that an earlier subscription had, in another process perhaps. It does not call the server.
func (c *Client) SubscribeAfter(cursor string, types ...string) *Subscription {
	return &Subscription{Types: types, client: c.WithWrapTTL(0), cursor: cursor}
}

// Cursor is the subscription's place: behind all that Next returned.
func (s *Subscription) Cursor() string { return s.cursor }

// Via has the subscription go on through another client, which has another token, say.
func (s *Subscription) Via(c *Client) { s.client = c.WithWrapTTL(0) }

// Next waits for events, for as long as it takes, and returns them in order. A server that cannot be reached, or cannot answer, is asked again, after a
// growing pause. The errors are ctx's; ErrLostPlace; and a refusal that trying again would not change, an *Error. After each of them Next may be
// called again; a call that ctx ended loses nothing.
func (s *Subscription) Next(ctx context.Context) ([]Event, error) {
	for {
		asked := time.Now()
		events, told, err := s.poll(ctx, pollWait)
		if s.Asked != nil && ctx.Err() == nil {
			s.Asked(err)
		}
		switch {
		case err == nil && len(events) > 0: // though ctx may have ended: the place is behind them
			s.failed = 0
			return events, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil && (told > 0 || time.Since(asked) > pollWait/2):
			s.failed = 0
			continue
		case err == nil: // the server is about to stop, and is not to be asked again and again until it is gone
		case lostPlace(err):
			if err := s.begin(ctx); err != nil {
				return nil, err
			}
			return nil, ErrLostPlace
		case !passing(err):
			return nil, err
		}
		if s.failed++; err != nil && s.client.config.Waiting != nil {
			s.client.config.Waiting(s.failed, backoff(s.failed, 1), err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(backoff(s.failed, rand.Float64())):
		}
	}
}

// begin finds the place from which everything is told.
func (s *Subscription) begin(ctx context.Context) error {
	_, _, err := s.ask(ctx, s.client, nil)
	return err
}

// poll asks once. told is how many events came, wanted or not.
func (s *Subscription) poll(ctx context.Context, wait time.Duration) (events []Event, told int, err error) {
	one := s.client.WithTimeout(wait + 30*time.Second).with(func(g *Config) { g.MaxRetries = 0 })
	return s.ask(ctx, one, url.Values{"after": {s.cursor}, "wait": {wait.String()}})
}

func (s *Subscription) ask(ctx context.Context, c *Client, query url.Values) (events []Event, told int, err error) {
	kind := "*"
	if query == nil {
		query = url.Values{}
	}
	if len(s.Types) == 1 {
		kind = s.Types[0]
	} else if len(s.Types) > 1 {
		query["types"] = s.Types
	}
	switch long := len(strings.Join(s.Paths, "")) > mostPaths || len(s.Paths) > mostPaths/32; {
	case len(s.Paths) == 1:
		query["path"] = []string{s.Paths[0], s.Paths[0]} // a single text would be a list, separated by commas
	case !long:
		query["path"] = s.Paths
	}
	if s.Filter != "" {
		query.Set("filter", s.Filter)
	}
	answer, err := c.Do(ctx, Request{Method: http.MethodGet, Path: eventsPath + kind, Query: query})
	if err != nil {
		return nil, 0, err
	}
	var page struct {
		Cursor string            `json:"cursor"`
		Events []json.RawMessage `json:"events"`
	}
	if err := answer.Decode(&page); err != nil {
		return nil, 0, err
	}
	if page.Cursor == "" {
		return nil, 0, fmt.Errorf("%s: the server did not say where to go on; is it a lessor server?", eventsPath)
	}
	for _, raw := range page.Events {
		var one cloudEvent
		if json.Unmarshal(raw, &one) != nil || one.Data.Type == "" {
			return nil, 0, errForm
		}
		if e := one.event(); s.wants(e.Path) {
			e.Raw = raw
			events = append(events, e)
		}
	}
	s.cursor = page.Cursor
	return events, len(page.Events), nil
}

// mostPaths is how long paths may be, in bytes, that the server is told. If there are more it tells of all, and the choice is made here.
const mostPaths = 16 << 10

// wants reports whether what is read by a path is followed.
func (s *Subscription) wants(path string) bool {
	return len(s.Paths) == 0 || slices.ContainsFunc(s.Paths, func(wanted string) bool {
		wanted = strings.Trim(wanted, "/")
		prefix, wide := strings.CutSuffix(wanted, "*")
		return path == wanted || wide && strings.HasPrefix(path, prefix)
	})
}

var errForm = errors.New("an event of the server's is not of the expected form; client and server may be of different versions")

const eventsPath = "sys/lessor/events/"

// cloudEvent is an event as the server sends it.
type cloudEvent struct {
	ID     string    `json:"id"`
	Time   time.Time `json:"time"`
	Cursor string    `json:"lessorcursor"`
	Data   struct {
		Type  string `json:"event_type"`
		Event struct {
			Metadata map[string]string `json:"metadata"`
		} `json:"event"`
		Plugin struct {
			Mount string `json:"mount_path"`
		} `json:"plugin_info"`
	} `json:"data"`
}

func (e *cloudEvent) event() Event {
	return Event{
		ID: e.ID, Type: e.Data.Type, Path: e.Data.Event.Metadata["data_path"], Metadata: e.Data.Event.Metadata, Mount: e.Data.Plugin.Mount,
		Time: e.Time, Cursor: e.Cursor,
	}
}

// lostPlace reports whether the server refuses the cursor.
func lostPlace(err error) bool {
	refused, ok := errors.AsType[*Error](err)
	return ok && refused.Status == http.StatusBadRequest &&
		slices.ContainsFunc(refused.Errors, func(text string) bool { return strings.HasPrefix(text, "the cursor") })
}

// passing reports whether trying again may help.
func passing(err error) bool {
	if _, ok := errors.AsType[*Unreachable](err); ok {
		return true
	}
	return mayRetry(Request{Method: http.MethodGet}, err)
}

// backoff is the pause after so many failures in a row: it doubles from a fifth of a second to half a minute; chance, in [0, 1], takes up to half off, so
// that many who lost the same server do not come back at once.
func backoff(failures int, chance float64) time.Duration {
	d := min(200*time.Millisecond<<min(failures-1, 10), 30*time.Second)
	return d/2 + time.Duration(float64(d/2)*chance)
}
