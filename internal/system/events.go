package system

import (
	"context"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/event"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Listen subscribes on behalf of an operation that was granted.
type Listen func(op *lessor.Op, i event.Interest, after event.Cursor) (Listener, error)

// Listener is told of what whoever asked may hear of at the moment. It is for one goroutine at a time.
type Listener interface {
	// Next waits for events. The errors are ctx's, and an *api.Error that ends it.
	Next(ctx context.Context) ([]*event.Event, error)
	// Cursor is behind all that was told, and what was not to be.
	Cursor() event.Cursor
	// Close ends it.
	Close()
}

// longestPoll bounds the wait for events: less than proxies and net/http let an answer take.
const longestPoll = 2 * time.Minute

// eventRoutes are Vault's subscription over a websocket, and lessor's own long poll. Events have no secret.
func (b *Backend) eventRoutes() []engine.Route {
	common := []engine.Field{
		{Name: "after", Type: engine.String, Help: "cursor behind which to go on"},
		{Name: "path", Type: engine.Strings, Help: "only of what is read by these paths; a * at the end of one stands for any characters"},
		{Name: "filter", Type: engine.String, Help: "only what this expression is true of: data_path == \"secret/data/app\" and operation != \"data-write\""},
	}
	return []engine.Route{
		{Pattern: "events/subscribe/{type...}", Help: "hear of events of a type (* stands for any characters) over a websocket, as CloudEvents in JSON",
			Ops: read(b.subscribe), Fields: append(common[:len(common):len(common)],
				engine.Field{Name: "json", Type: engine.Bool, Help: "true: there is no other form"},
				engine.Field{Name: "namespaces", Type: engine.Strings, Help: "there is one, the root"},
			)},
		{Pattern: "lessor/events/{type...}", Help: "wait for events of a type (* stands for any characters), and read them",
			Ops: read(b.pollEvents), Fields: append(common[:len(common):len(common)],
				engine.Field{Name: "types", Type: engine.Strings, Help: "only events of these types"},
				engine.Field{Name: "wait", Type: engine.Duration, Help: "how long to wait if there is nothing yet; at most 2 m"},
			)},
	}
}

// thread is what polls have in common that follow each other. It begins with a poll that is on record; who goes on within the hour, with the same
// token, on the same path, is not put on record again. So a thread's cursors say when it began, and prove it.
type thread struct {
	r     *engine.Request
	begun time.Time
}

const longestThread = time.Hour

// pick finds the thread of the cursor that a poll goes on from, or begins one.
func pick(r *engine.Request) (t thread, continues bool) {
	cursor, proof, _ := strings.Cut(r.Str("after"), ".")
	if seconds, err := strconv.ParseInt(proof[:max(0, strings.IndexByte(proof, '.'))], 36, 64); err == nil {
		t = thread{r, time.Unix(seconds, 0)}
		since := r.Now.Sub(t.begun)
		if r.Principal.Accessor != "" && since >= -time.Second && since < longestThread && t.mark(cursor) == r.Str("after") {
			return t, true
		}
	}
	return thread{r, r.Now}, false
}

// mark is a cursor with what proves that it is the thread's.
func (t thread) mark(cursor string) string {
	begun := strconv.FormatInt(t.begun.Unix(), 36)
	proof := t.r.Opener.Fingerprint(t.r.Mount.UUID, "events/"+t.r.Principal.Accessor, []byte(t.r.Op.Path+"\x00"+begun+"\x00"+cursor))
	return cursor + "." + begun + "." + base64.RawURLEncoding.EncodeToString(proof)
}

// interest is what a request wants to hear of, and from where on. first: it did not say where.
func (b *Backend) interest(r *engine.Request) (i event.Interest, after event.Cursor, first bool, err error) {
	kind := r.Param("type")
	i = event.Interest{Types: r.List("types"), Paths: r.List("path")}
	for n, p := range i.Paths {
		i.Paths[n] = strings.Trim(p, "/")
	}
	if len(i.Types) == 0 {
		i.Types = []string{kind}
	} else if kind != "*" {
		return i, after, false, api.Errorf(api.Invalid, "types choose from those of the path, which is * then")
	}
	if err := i.Check(); err != nil {
		return i, after, false, err
	}
	if text := r.Str("filter"); text != "" {
		if i.Filter, err = event.Filter(text); err != nil {
			return i, after, false, err
		}
	}
	if text, _, _ := strings.Cut(r.Str("after"), "."); text != "" {
		after, err = b.Events.Resume(text)
		return i, after, false, err
	}
	after, err = b.Events.Now(r.View)
	return i, after, true, err
}

// pollEvents answers with events as soon as there are any, and in any case with the cursor to ask after next time. Who has none yet gets the one
// behind all that he would read now.
func (b *Backend) pollEvents(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	i, after, first, err := b.interest(r)
	if err != nil {
		return nil, err
	}
	thread, continues := pick(r)
	if first {
		return &engine.Reply{Data: thread.heard(nil, after)}, nil
	}
	op, wait := r.Op, min(max(r.Dur("wait"), 0), longestPoll)
	return &engine.Reply{Continues: continues, Later: func(ctx context.Context) (map[string]any, error) {
		l, err := b.Listen(op, i, after)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		waiting, cancel := context.WithTimeout(ctx, max(wait, time.Millisecond))
		defer cancel()
		events, err := l.Next(waiting)
		if errors.Is(err, event.ErrLeaving) || waiting.Err() != nil && ctx.Err() == nil {
			err = nil // there is nothing
		}
		return thread.heard(events, l.Cursor()), err
	}}, nil
}

// heard is the answer to a poll.
func (t thread) heard(events []*event.Event, c event.Cursor) map[string]any {
	list := make([]any, 0, len(events))
	for _, e := range events {
		list = append(list, e.Raw())
	}
	return map[string]any{"cursor": t.mark(c.String()), "events": list}
}

// subscribe tells events over a websocket, for as long as whoever asked may hear of them.
func (b *Backend) subscribe(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if r.Has("json") && !r.Bool("json") {
		return nil, api.Errorf(api.Invalid, "events are told as JSON only: ask with json=true")
	}
	i, after, _, err := b.interest(r)
	if err != nil {
		return nil, err
	}
	op := r.Op
	return &engine.Reply{Feed: &messages{listen: func() (Listener, error) { return b.Listen(op, i, after) }}}, nil
}

// messages are events as they are sent.
type messages struct {
	listen   func() (Listener, error)
	listener Listener // once it is open
}

// Open implements lessor.Feed.
func (m *messages) Open() (err error) {
	m.listener, err = m.listen()
	return err
}

// Next implements lessor.Feed.
func (m *messages) Next(ctx context.Context) ([][]byte, error) {
	events, err := m.listener.Next(ctx)
	if err != nil {
		return nil, err
	}
	texts := make([][]byte, len(events))
	for i, e := range events {
		texts[i] = e.JSON()
	}
	return texts, nil
}

// Close implements lessor.Feed.
func (m *messages) Close() { m.listener.Close() }
