// Package cubbyhole keeps values that belong to one token and end with it. Nobody else reaches them, root neither.
//
// Rows: Secrets, keyed hash of the token + path → the value's JSON. So whoever buries a token drops one range.
package cubbyhole

import (
	"context"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Backend is the engine.
type Backend struct{}

// Routes is the method table.
func (Backend) Routes() []engine.Route {
	return []engine.Route{{
		Pattern: "{path...}", Help: "Values that only this token reaches, and that end with it.", Free: true, Exists: exists,
		Ops: map[lessor.Verb]engine.Handler{lessor.Read: read, lessor.List: list, lessor.Update: write, lessor.Delete: remove},
	}}
}

// All is the range of rows that a token's cubbyhole holds: all of them go when the token does. mount is the UUID of the
// cubbyhole's mount, token the keyed hash of the token.
func All(namespace uint32, mount, token string) store.Range {
	begin := store.MountKey(namespace, mount, token)
	return store.Range{Table: store.Secrets, From: begin, To: store.PrefixEnd(begin)}
}

// key names the row of path in the cubbyhole of whoever asks.
func key(r *engine.Request, path string) (store.Key, error) {
	if r.Principal.Token == "" || r.Principal.TokenKind != lessor.Service {
		return store.Key{}, api.Errorf(api.Invalid, `cubbyhole operations are only supported by "service" type tokens`)
	}
	return store.Key{Table: store.Secrets, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, r.Principal.Token, path)}, nil
}

// located is key for a path that is fit to hold a value.
func located(r *engine.Request) (store.Key, error) {
	if err := engine.CheckPath(r.Param("path")); err != nil {
		return store.Key{}, err
	}
	return key(r, r.Param("path"))
}

func exists(r *engine.Request) (bool, error) {
	k, err := key(r, r.Param("path"))
	if err != nil {
		return false, err
	}
	row, err := r.View.Get(k)
	return row.Exists(), err
}

func read(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	k, err := located(r)
	if err != nil {
		return nil, err
	}
	row, err := r.View.Get(k)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, &api.Error{Kind: api.NotFound}
	}
	opened, err := r.Opener.Open(r.Grant, row)
	if err != nil {
		return nil, err
	}
	value := lessor.SecretJSON{Secret: opened}
	data, err := engine.Members(value)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: data, Shown: shown(r, row.Version, value, "shown")}, nil
}

// shown is what the audit record keeps of a value.
func shown(r *engine.Request, version uint64, value lessor.SecretJSON, how string) []audit.Shown {
	path := r.Param("path")
	f := r.Opener.Fingerprint(r.Mount.UUID, r.Principal.Token+path, []byte(value.Reveal()))
	return []audit.Shown{{Path: path, Version: version, Fingerprint: f, How: how}}
}

func write(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	k, err := located(r)
	if err != nil {
		return nil, err
	}
	if len(r.Op.Data) == 0 {
		return nil, api.Errorf(api.Invalid, "missing data fields")
	}
	value := lessor.SecretJSON{Secret: lessor.NewSecret(lessor.AppendJSON(nil, r.Op.Data))}
	reply := &engine.Reply{Shown: shown(r, 0, value, "written")}
	if r.Verb == lessor.Create {
		reply.Txn.Absent(k.Table, k.Name)
	} else {
		reply.Txn.Present(k.Table, k.Name)
	}
	reply.Txn.Put(k.Table, k.Name, []byte(value.Reveal()))
	return reply, nil
}

func remove(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	k, err := located(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	reply.Txn.Delete(k.Table, k.Name)
	return reply, nil
}

func list(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	folder := ""
	if path := r.Param("path"); path != "" {
		if err := engine.CheckPath(path); err != nil {
			return nil, err
		}
		folder = path + "/"
	}
	k, err := key(r, folder)
	if err != nil {
		return nil, err
	}
	names, err := engine.List(r.View, store.Secrets, k.Name)
	if err != nil {
		return nil, err
	}
	return engine.Keys(names)
}
