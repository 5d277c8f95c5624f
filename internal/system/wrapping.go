package system

import (
	"context"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
	"github.com/lessor-dev/lessor/internal/wrapping"
)

func (b *Backend) wrappingRoutes() []engine.Route {
	fields := []engine.Field{{Name: "token", Type: engine.String, Help: "the wrapping token; without one, the calling token"}}
	return []engine.Route{
		{Pattern: "wrapping/wrap", Help: "wrap the data that is sent", Free: true, Ops: update(b.wrapData)},
		{Pattern: "wrapping/lookup", Help: "look a wrapping token up", Fields: fields, Open: true, Ops: ops{lessor.Read: b.lookupWrapping, lessor.Update: b.lookupWrapping}},
		{Pattern: "wrapping/unwrap", Help: "unwrap, once", Fields: fields, Ops: update(b.unwrap)},
		{Pattern: "wrapping/rewrap", Help: "wrap anew with a fresh token", Fields: fields, Ops: update(b.rewrap)},
	}
}

// notWrapping is the answer to every token that wraps nothing, or nothing any more. It is a security event: whoever sees it
// with a token of their own must suspect that somebody else unwrapped first.
var notWrapping = api.Errorf(api.Invalid, "wrapping token is not valid or does not exist")

func (b *Backend) wrapData(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ttl := r.Op.WrapTTL
	if ttl <= 0 {
		return nil, api.Errorf(api.Invalid, "endpoint requires response wrapping to be used: send X-Vault-Wrap-TTL")
	}
	a := &lessor.Answer{Data: r.Op.Data, Mount: r.Mount.Type}
	if a.Data == nil {
		a.Data = map[string]any{}
	}
	return &engine.Reply{Rewrap: &engine.Rewrap{Body: lessor.NewSecret(a.Append(nil, r.Op.ID)), Path: r.Op.Path, TTL: ttl}}, nil
}

// wrapped finds the wrapping token that a request names, or is made with.
func wrapped(r *engine.Request) (*token.Token, store.Row, error) {
	id := r.Secret("token")
	if id.Empty() {
		id = r.Op.Token
	}
	if id.Empty() {
		return nil, store.Row{}, api.Errorf(api.Unauthenticated, "error validating wrapping token: token is empty")
	}
	t, row, err := r.System.Token(id)
	if err != nil {
		return nil, row, err
	}
	if t == nil || !t.Wrapping {
		return nil, row, notWrapping
	}
	return t, row, nil
}

func (b *Backend) lookupWrapping(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, _, err := wrapped(r)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: map[string]any{
		"creation_path": t.Path, "creation_time": t.Created.Format(time.RFC3339Nano), "creation_ttl": whole(t.TTL),
	}}, nil
}

// open takes what a wrapping token wraps, and the token with it: whoever commits this first has it.
func open(r *engine.Request) (*engine.Reply, *wrapping.Kept, error) {
	t, row, err := wrapped(r)
	if err != nil {
		return nil, nil, err
	}
	kept, keptRow, err := wrapping.Get(r.View, r.Opener, r.Grant, r.Mount.UUID, t.Hash)
	if err != nil {
		return nil, nil, err
	}
	if kept == nil {
		return nil, nil, notWrapping
	}
	reply := &engine.Reply{}
	reply.Txn.Require(row)
	t.Drop(&reply.Txn)
	wrapping.Drop(&reply.Txn, keptRow)
	return reply, kept, nil
}

func (b *Backend) unwrap(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply, kept, err := open(r)
	if err != nil {
		return nil, err
	}
	reply.Wrapped = &lessor.SecretJSON{Secret: lessor.NewSecret(kept.Body)}
	reply.Unwrapped, reply.Lease = kept.Lease, kept.Lease
	reply.Note = "unwrapped"
	return reply, nil
}

func (b *Backend) rewrap(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply, kept, err := open(r)
	if err != nil {
		return nil, err
	}
	reply.Rewrap = &engine.Rewrap{Body: lessor.NewSecret(kept.Body), Path: kept.Path, TTL: kept.TTL, Accessor: kept.Accessor, Lease: kept.Lease, At: kept.First}
	return reply, nil
}
