package kv

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// V1 is the engine "kv" of version 1: one value for a path. Rows: Secrets, "v/" + path → the value's JSON.
type V1 struct{}

// Routes is the method table.
func (V1) Routes() []engine.Route {
	return []engine.Route{{
		Pattern: "{path...}", Help: "Read, write, list and delete values.", Free: true, Exists: existsV1,
		Ops: ops{lessor.Read: readV1, lessor.List: listV1, lessor.Update: writeV1, lessor.Delete: deleteV1},
	}}
}

func rowV1(r *engine.Request, path string) store.Key {
	return store.Key{Table: store.Secrets, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "v/", path)}
}

func existsV1(r *engine.Request) (bool, error) {
	row, err := r.View.Get(rowV1(r, r.Param("path")))
	return row.Exists(), err
}

func readV1(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	path, err := location(r)
	if err != nil {
		return nil, err
	}
	row, err := r.View.Get(rowV1(r, path))
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, missing()
	}
	value, err := open(r, row)
	if err != nil {
		return nil, err
	}
	data, err := engine.Members(value)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{
		Data:   data,
		Shown:  shown(r, path, row.Version, value, "shown"),
		Static: &engine.Static{Path: path, Version: row.Version, Current: row.Version, Duration: wished(data)},
	}, nil
}

// wished is how long clients should believe the value: what it says of itself under "ttl" or "lease". 0: nothing.
func wished(data map[string]any) time.Duration {
	value, ok := data["ttl"].(lessor.SecretJSON)
	if !ok {
		if value, ok = data["lease"].(lessor.SecretJSON); !ok {
			return 0
		}
	}
	d := json.NewDecoder(bytes.NewReader([]byte(value.Reveal())))
	d.UseNumber()
	var raw any
	if d.Decode(&raw) != nil {
		return 0
	}
	wish, ok := engine.ParseDuration(raw)
	if !ok {
		return 0
	}
	return wish
}

func writeV1(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	path, err := location(r)
	if err != nil {
		return nil, err
	}
	if len(r.Op.Data) == 0 {
		return nil, api.Errorf(api.Invalid, "missing data fields")
	}
	reply, key := &engine.Reply{}, rowV1(r, path)
	granted(r, key, &reply.Txn)
	value := lessor.SecretJSON{Secret: lessor.NewSecret(lessor.AppendJSON(nil, r.Op.Data))}
	reply.Txn.Put(key.Table, key.Name, []byte(value.Reveal()))
	reply.Shown = shown(r, path, 0, value, "written")
	return reply, nil
}

// granted makes sure that what was granted, to create or to update, is what happens.
func granted(r *engine.Request, key store.Key, txn *store.Txn) {
	if r.Verb == lessor.Create {
		txn.Absent(key.Table, key.Name)
	} else {
		txn.Present(key.Table, key.Name)
	}
}

func deleteV1(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	path, err := location(r)
	if err != nil {
		return nil, err
	}
	reply, key := &engine.Reply{}, rowV1(r, path)
	reply.Txn.Delete(key.Table, key.Name)
	return reply, nil
}

func listV1(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	path, err := location(r)
	if err != nil {
		return nil, err
	}
	names, err := engine.List(r.View, store.Secrets, rowV1(r, folder(path)).Name)
	if err != nil {
		return nil, err
	}
	return engine.Keys(names)
}
