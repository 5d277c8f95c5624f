package core

import (
	"context"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/quota"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/tally"
	"github.com/lessor-dev/lessor/internal/token"
)

// Quotas are the limits on requests and leases.
func (c *Core) Quotas() *quota.Guard { return c.quotas }

// Admit asks the rate limits, before anything is read of the request but its path and where it comes from. Where a limit is
// about a role or an entity, it says so, and is asked again with data: it reads what it needs then. The error is of kind Limited; it
// is counted in the audit trail. header is for the answer, whatever it will be. Without rate limits it costs the look at a pointer.
func (c *Core) Admit(op *lessor.Op, data bool) (header [][2]string, again bool, err error) {
	if c == nil || !c.quotas.Limits() {
		return nil, false, nil
	}
	q := quota.Request{Path: op.Path, Client: op.Client, Now: op.Time}
	if c.quotas.NeedsCaller(op.Path) {
		if !data {
			return nil, true, nil
		}
		if q.Role, q.Entity, err = c.whoAsks(op); err != nil {
			return nil, false, err
		}
	} else if data {
		return nil, false, nil // it was asked before
	}
	v := c.quotas.Allow(q)
	if v.Rule == nil {
		return v.Header, false, nil
	}
	w := &walk{Core: c, op: op, mount: c.quotas.Rules().MountOf(op.Path)}
	c.strangers.Add(op.Client, "quota\x00"+v.Rule.Name, tally.Quiet, audit.Record{
		Time: op.Time, Operation: op.Verb.String(), Namespace: op.Namespace, Path: w.recorded(), Phase: audit.Done,
		ErrorKind: api.Limited.String(), Rule: "quota:" + v.Rule.Name,
	})
	return v.Header, false, quota.ErrRate(op.Path)
}

// whoAsks is the role that a login names, and the entity of the token that comes with the request.
func (c *Core) whoAsks(op *lessor.Op) (role, entity string, err error) {
	view, err := c.Store.View()
	if err != nil {
		return "", "", outcome(err)
	}
	defer view.Close()
	w := &walk{Core: c, op: op, view: view, who: &caller{}}
	if who, err := c.caller(view, op); err == nil {
		w.who, entity = who, who.Entity
	}
	if err := w.find(); err != nil || w.route == nil || w.route.Subject == nil {
		return "", entity, nil // what is wrong with it is told by who handles it
	}
	if _, err := w.request.Bind(w.route); err != nil {
		return "", entity, nil
	}
	subject, err := w.route.Subject(w.request)
	return subject.Role, entity, outcome(err)
}

// reserve makes room for a lease in the quota that counts it, or refuses.
func (w *walk) reserve(ctx context.Context, path, role string, row store.Key) error {
	room, err := w.quotas.Reserve(ctx, w.mount.UUID, path, role, row.Name)
	if err != nil {
		return err
	}
	if !room {
		return quota.ErrLeases(w.op.Path)
	}
	w.reserved = append(w.reserved, row.Name)
	return nil
}

// reserveToken does so for a service token that ends.
func (w *walk) reserveToken(ctx context.Context, t *token.Token) error {
	if t.Kind != lessor.Service || t.Expires.IsZero() {
		return nil
	}
	return w.reserve(ctx, t.Path, t.Role, token.Key(t.Hash))
}

// release gives back what a walk that failed had reserved.
func (w *walk) release() {
	for _, row := range w.reserved {
		w.quotas.Release(row)
	}
}
