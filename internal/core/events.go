package core

import (
	"cmp"
	"context"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/event"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/system"
	"github.com/lessor-dev/lessor/internal/token"
)

// Events is what commits tell; see Listen.
func (c *Core) Events() *event.Feed { return c.feed }

// announce derives the events of a commit.
func (c *Core) announce(v store.View, h *audit.Header) ([]*event.Event, error) {
	table, err := c.table(v)
	if err != nil {
		return nil, err
	}
	var all []*event.Event
	for _, commit := range event.Commits(h, table, c.recordsOf(h.Seq)) {
		announcer, ok := c.Backends[commit.Mount.Backend()].(engine.Announcer)
		if !ok {
			continue
		}
		events, err := announcer.Announce(v, commit)
		if err != nil {
			return nil, err
		}
		event.Tell(commit, events, c.Cluster)
		all = append(all, events...)
	}
	event.Sort(all)
	return all, nil
}

// recordsOf reads what is on record with a commit.
func (c *Core) recordsOf(seq uint64) func() ([]audit.Record, error) {
	return func() ([]audit.Record, error) {
		commits, err := c.Store.Commits(seq, 1)
		if err != nil || len(commits) == 0 {
			return nil, err
		}
		var records []audit.Record
		for i := range commits[0].Records {
			records = append(records, commits[0].Records[i].Record)
		}
		return records, nil
	}
}

// listener is a subscription of somebody who may hear of some things, and perhaps soon of fewer.
type listener struct {
	*event.Subscription
	core *Core
	op   *lessor.Op
	ends time.Time // when the token does, as far as is known; zero: never
}

// Listen subscribes on behalf of an operation that was granted. Whoever asked hears of what he may read or subscribe to at the moment when
// he hears of it.
func (c *Core) Listen(op *lessor.Op, i event.Interest, after event.Cursor) (system.Listener, error) {
	tokens, err := c.restsOn(op)
	if err != nil {
		return nil, outcome(err)
	}
	s, err := c.feed.Subscribe(op.Client, i, after, tokens...)
	if err != nil {
		return nil, err
	}
	if _, err := c.restsOn(op); err != nil { // it ended before its end would have been noticed
		s.Close()
		return nil, outcome(err)
	}
	return &listener{Subscription: s, core: c, op: op}, nil
}

// restsOn names the rows of the token of an operation and of its ancestors: if one of them goes, the token does.
func (c *Core) restsOn(op *lessor.Op) (names []string, err error) {
	v, err := c.Store.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	t, row, err := c.lookup(v, op.Token)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, errToken
	}
	if live, err := t.Live(v, c.Store.Now()); err != nil || !live {
		return nil, cmp.Or(err, error(errToken))
	}
	if row.Exists() {
		names = append(names, row.Name)
	}
	for _, hash := range t.Ancestors {
		names = append(names, token.Key(hash).Name)
	}
	return names, nil
}

// recheck is how long a listener waits at most until it is looked whether its token still lives: it may have been renewed.
const recheck = time.Minute

// Next waits for events, and returns those that the listener may hear of. Its errors are those of event.Subscription.Next, and the refusal
// of somebody who may listen no more.
func (l *listener) Next(ctx context.Context) ([]*event.Event, error) {
	for {
		waiting, cancel := context.WithTimeout(ctx, l.patience())
		events, err := l.Subscription.Next(waiting)
		late := waiting.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && !late {
			return nil, err
		}
		if events, err = l.audible(events); err != nil || len(events) > 0 {
			return events, err
		}
	}
}

// patience is how long to wait before it is looked again whether the token lives.
func (l *listener) patience() time.Duration {
	if l.ends.IsZero() {
		return recheck
	}
	return min(recheck, max(0, l.ends.Sub(l.core.Store.Now()))+time.Millisecond)
}

// audible are the events that the listener may hear of now. It is refused who may not listen at all any more.
func (l *listener) audible(events []*event.Event) ([]*event.Event, error) {
	v, err := l.core.Store.View()
	if err != nil {
		return nil, outcome(err)
	}
	defer v.Close()
	op := *l.op
	op.Time = l.core.Store.Now()
	who, err := l.core.caller(v, &op)
	if err != nil {
		return nil, outcome(err)
	}
	l.ends = who.token.Expires
	acl, err := l.core.policies.ACL(v, &who.Principal)
	if err != nil {
		return nil, err
	}
	if d := policy.Decide(acl, &who.Principal, &op, policy.Facts{}); d.Denied != nil {
		return nil, d.Denied
	}
	var heard []*event.Event
	for _, e := range events {
		if policy.Hears(acl, &who.Principal, e.Path, e.Type, event.Match) {
			heard = append(heard, e)
		}
	}
	return heard, nil
}
