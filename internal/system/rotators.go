package system

import (
	"context"
	"encoding/hex"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotator"
	"github.com/lessor-dev/lessor/internal/store"
)

// rotatorRoutes register the programs that rotate what lessor itself cannot. Who may do that decides what this machine runs.
func (b *Backend) rotatorRoutes() []engine.Route {
	return []engine.Route{
		{Pattern: "lessor/rotators", Help: "list rotators", Sudo: true, Ops: ops{lessor.List: b.listRotators}},
		{Pattern: "lessor/rotators/{name}", Help: "programs that rotate secrets of the key-value engine", Sudo: true,
			Fields: []engine.Field{
				{Name: "type", Type: engine.String, Help: "exec, the only type: a program of the server's machine"},
				{Name: "path", Type: engine.String, Help: "absolute path of the program, in the server's rotator_directory"},
				{Name: "sha256", Type: engine.String, Help: "SHA-256 of the program's file, in hexadecimal: only that one is run"},
				{Name: "user", Type: engine.String, Help: "user of the server's machine as whom it runs, not root; empty: as lessor does, where rotator_same_user allows that"},
				{Name: "timeout", Type: engine.Duration, Help: "how long one step may take; default 10s, at most 25s"},
			},
			Ops: ops{lessor.Read: b.readRotator, lessor.Update: b.writeRotator, lessor.Delete: b.deleteRotator}},
	}
}

func (b *Backend) listRotators(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var names []string
	for row, err := range r.View.Scan(store.Config, rotator.Prefix, store.PrefixEnd(rotator.Prefix)) {
		if err != nil {
			return nil, err
		}
		names = append(names, strings.TrimPrefix(row.Name, rotator.Prefix))
	}
	return engine.Keys(names)
}

func (b *Backend) readRotator(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	one, _, err := rotator.Load(r.View, r.Param("name"))
	if err != nil {
		return nil, err
	}
	if one == nil {
		return nil, empty()
	}
	return &engine.Reply{Data: map[string]any{
		"type": one.Type, "path": one.Path, "sha256": hex.EncodeToString(one.Sum), "user": one.User, "timeout": whole(one.Timeout),
	}}, nil
}

// writeRotator registers one, or changes it: what is not sent stays as it was.
func (b *Backend) writeRotator(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := r.Param("name")
	if err := rotator.CheckName(name); err != nil {
		return nil, err
	}
	one, row, err := rotator.Load(r.View, name)
	if err != nil {
		return nil, err
	}
	if one == nil {
		one = &rotator.Rotator{Type: rotator.Exec, Timeout: rotator.DefaultTimeout}
	}
	for field, to := range map[string]*string{"type": &one.Type, "path": &one.Path, "user": &one.User} {
		if r.Has(field) {
			*to = r.Str(field)
		}
	}
	if r.Has("timeout") {
		one.Timeout = r.Dur("timeout")
	}
	if r.Has("sha256") {
		if one.Sum, err = hex.DecodeString(r.Str("sha256")); err != nil {
			return nil, api.Errorf(api.Invalid, "sha256 is not hexadecimal")
		}
	}
	if err := one.Check(); err != nil {
		return nil, err
	}
	if err := b.Rotators.Ready(one); err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	return reply, one.Save(&reply.Txn, row)
}

func (b *Backend) deleteRotator(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	_, row, err := rotator.Load(r.View, r.Param("name"))
	if err != nil || !row.Exists() {
		return &engine.Reply{}, err
	}
	reply := &engine.Reply{Warnings: []string{"secrets that it rotates keep their values, and their rotations fail until a rotator of that name is registered"}}
	reply.Txn.Require(row)
	reply.Txn.Delete(row.Table, row.Name)
	return reply, nil
}
