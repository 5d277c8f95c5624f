package core_test

import (
	"context"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// target is an engine whose accounts are in memory, and that a test can take away.
type target struct {
	mu       sync.Mutex
	accounts map[string]bool    // by lease
	down     bool               // every touch fails
	during   func(*lease.Lease) // what happens while an account is being made
	hanging  chan struct{}      // reverts do not come back before it is closed; nil: they do

	meanwhile func() // what happens between the decision about a note and its commit, once
	trial     func() // what happens while the target is tried for a setting
	trials    int
}

func (t *target) set(down, hangs bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down = down; t.hanging != nil {
		close(t.hanging)
		t.hanging = nil
	}
	if hangs {
		t.hanging = make(chan struct{})
	}
}

func (t *target) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.accounts)
}

func (t *target) Routes() []engine.Route {
	return []engine.Route{{
		Pattern: "notes/{name}", Help: "a row", Ops: map[lessor.Verb]engine.Handler{
			lessor.Update: func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
				if f := t.meanwhile; f != nil {
					t.meanwhile = nil
					f()
				}
				reply := &engine.Reply{}
				reply.Txn.Put(store.Engine, store.MountKey(r.Mount.Namespace, r.Mount.UUID, "notes/", r.Param("name")), []byte("x"))
				return reply, nil
			},
			lessor.Read: func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
				row, err := r.View.Get(store.Key{Table: store.Engine, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "notes/", r.Param("name"))})
				return &engine.Reply{Data: map[string]any{"kept": row.Exists()}}, err
			},
		},
	}, {
		Pattern: "settings/{name}", Help: "a row that the target is tried for", Ops: map[lessor.Verb]engine.Handler{
			lessor.Update: func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
				row, err := r.View.Get(store.Key{Table: store.Engine, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "settings/", r.Param("name"))})
				if err != nil {
					return nil, err
				}
				reply := &engine.Reply{First: func(context.Context) ([]string, error) {
					t.trials++
					if t.trial != nil {
						t.trial()
					}
					if t.down {
						return nil, errDown
					}
					return []string{"it was tried"}, nil
				}}
				reply.Txn.Require(row)
				reply.Txn.Put(row.Table, row.Name, []byte("x"))
				return reply, nil
			},
		},
	}, {
		Pattern: "creds/{name}", Help: "an account", Ops: map[lessor.Verb]engine.Handler{
			lessor.Read: func(_ context.Context, r *engine.Request) (*engine.Reply, error) {
				return &engine.Reply{Issue: &engine.Issue{
					Path: "creds/" + r.Param("name"), Owned: "roles/" + r.Param("name"), Target: "t", TTL: time.Hour, MaxTTL: 24 * time.Hour, Renewable: true,
					Plan: func(*lease.Lease) ([]byte, map[string]any, lessor.Secret, error) {
						password := lessor.NewSecret("the password")
						return []byte("intent"), map[string]any{"password": password}, password, nil
					},
				}}, nil
			},
		},
	}}
}

var errDown = api.Errorf(api.Upstream, "the target does not answer")

func (t *target) Apply(_ context.Context, _ engine.Access, l *lease.Lease, _ lessor.Secret) error {
	if t.during != nil {
		t.during(l)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down {
		return errDown
	}
	t.accounts[l.ID] = true
	return nil
}

func (t *target) Renew(context.Context, engine.Access, *lease.Lease, time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down {
		return errDown
	}
	return nil
}

func (t *target) Revert(ctx context.Context, _ engine.Access, ls []*lease.Lease) []error {
	t.mu.Lock()
	hanging := t.hanging
	t.mu.Unlock()
	if hanging != nil {
		select {
		case <-ctx.Done():
		case <-hanging:
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	errs := make([]error, len(ls))
	for i, l := range ls {
		if t.down || hanging != nil {
			errs[i] = errDown
			continue
		}
		delete(t.accounts, l.ID)
	}
	return errs
}

func (t *target) Close(string) {}
