package system

import (
	"context"
	"encoding/hex"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotator"
	"github.com/lessor-dev/lessor/internal/store"
)

// rotatorRoutes register who rotates what lessor itself cannot. Who may do that decides what this machine runs, and who is told values of secrets.
func (b *Backend) rotatorRoutes() []engine.Route {
	return []engine.Route{
		{Pattern: "lessor/rotators", Help: "list rotators", Sudo: true, Ops: ops{lessor.List: b.listRotators}},
		{Pattern: "lessor/rotators/{name}", Help: "programs and webhooks that rotate secrets of the key-value engine", Sudo: true,
			Fields: []engine.Field{
				{Name: "type", Type: engine.String, Help: "exec, the default: a program of the server's machine; webhook: a URL"},
				{Name: "paths", Type: engine.Strings, Help: "secrets that it may be asked to rotate, as policies write paths, without data/"},
				{Name: "path", Type: engine.String, Help: "exec: absolute path of the program, in the server's rotator_directory"},
				{Name: "sha256", Type: engine.String, Help: "exec: SHA-256 of the program's file, in hexadecimal: only that one is run"},
				{Name: "user", Type: engine.String, Help: "exec: user of the server's machine as whom it runs, not root; empty: as lessor does, where rotator_same_user allows that"},
				{Name: "url", Type: engine.String, Help: "webhook: https://, at a host that the server's rotator_hosts name"},
				{Name: "ca", Type: engine.String, Help: "webhook: certificates in PEM of who vouches for it; empty: whom the server's machine trusts"},
				{Name: "timeout", Type: engine.Duration, Help: "how long one step may take; default 10s, at most 25s"},
			},
			Ops: ops{lessor.Read: b.readRotator, lessor.Update: b.writeRotator, lessor.Delete: b.deleteRotator}},
		{Pattern: "lessor/rotators/{name}/key", Help: "a new key that requests to a webhook are signed with, besides the one before, which is dropped by DELETE", Sudo: true,
			Ops: ops{lessor.Update: b.renewSigning, lessor.Delete: b.retireSigning}},
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
	data := map[string]any{"type": one.Type, "paths": append([]string{}, one.Paths...), "timeout": whole(one.Timeout)}
	if one.Type == rotator.Webhook {
		keys := []any{}
		for _, made := range one.Keyed {
			keys = append(keys, stamp(time.Unix(made, 0)))
		}
		data["url"], data["ca"], data["signing_keys"] = one.URL, one.CA, keys
	} else {
		data["path"], data["sha256"], data["user"] = one.Path, hex.EncodeToString(one.Sum), one.User
	}
	return &engine.Reply{Data: data}, nil
}

// writeRotator registers one, or changes it: what is not sent stays as it was. The first key of a webhook is in the answer, and in no other.
func (b *Backend) writeRotator(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := r.Param("name")
	if err := rotator.CheckName(name); err != nil {
		return nil, err
	}
	one, row, err := rotator.Load(r.View, name)
	if err != nil {
		return nil, err
	}
	isNew := one == nil
	if isNew {
		one = &rotator.Rotator{Type: rotator.Exec, Timeout: rotator.DefaultTimeout}
	}
	if r.Has("type") && !isNew && r.Str("type") != one.Type {
		return nil, api.Errorf(api.Invalid, "a rotator keeps its type: delete it first")
	}
	for field, to := range map[string]*string{"type": &one.Type, "path": &one.Path, "user": &one.User, "url": &one.URL, "ca": &one.CA} {
		if r.Has(field) {
			*to = r.Str(field)
		}
	}
	if r.Has("paths") {
		one.Paths = r.List("paths")
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
	if isNew && one.Type == rotator.Webhook {
		return resign(r, one, row)
	}
	reply := &engine.Reply{}
	return reply, one.Save(&reply.Txn, row)
}

// webhook is the registered one that a request is about.
func webhook(r *engine.Request) (*rotator.Rotator, store.Row, error) {
	one, row, err := rotator.Load(r.View, r.Param("name"))
	switch {
	case err != nil:
		return nil, row, err
	case one == nil:
		return nil, row, empty()
	case one.Type != rotator.Webhook:
		return nil, row, api.Errorf(api.Invalid, "nothing is signed for a rotator of the type %s", one.Type)
	}
	return one, row, nil
}

// renewSigning makes a key, which signs besides the one before until that is dropped.
func (b *Backend) renewSigning(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	one, row, err := webhook(r)
	if err != nil {
		return nil, err
	}
	return resign(r, one, row)
}

// resign makes a key of a webhook, and saves both: the reply shows the key, as no other will.
func resign(r *engine.Request, one *rotator.Rotator, row store.Row) (*engine.Reply, error) {
	name := r.Param("name")
	signing, kept, err := rotator.LoadSigning(r.View, r.Mount.UUID, name, r.Opener, r.Grant)
	if err != nil {
		return nil, err
	}
	key, err := signing.Renew(one, r.Random, r.Now)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{
		Data:  map[string]any{"signing_key": key},
		Shown: []audit.Shown{{Path: "lessor/rotators/" + name + "/key", Fingerprint: r.Opener.Fingerprint(r.Mount.UUID, "rotator/"+name, []byte(key.Reveal())), How: "issued"}},
	}
	if err := signing.Save(&reply.Txn, kept); err != nil {
		return nil, err
	}
	return reply, one.Save(&reply.Txn, row)
}

// retireSigning has the newest key sign alone.
func (b *Backend) retireSigning(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	one, row, err := webhook(r)
	if err != nil {
		return nil, err
	}
	signing, kept, err := rotator.LoadSigning(r.View, r.Mount.UUID, r.Param("name"), r.Opener, r.Grant)
	if err != nil {
		return nil, err
	}
	if err := signing.Retire(one); err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	if err := signing.Save(&reply.Txn, kept); err != nil {
		return nil, err
	}
	return reply, one.Save(&reply.Txn, row)
}

func (b *Backend) deleteRotator(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	one, row, err := rotator.Load(r.View, r.Param("name"))
	if err != nil || one == nil {
		return &engine.Reply{}, err
	}
	reply := &engine.Reply{Warnings: []string{"secrets that it rotates keep their values, and their rotations fail until a rotator of that name is registered"}}
	reply.Txn.Require(row)
	reply.Txn.Delete(row.Table, row.Name)
	return reply, rotator.DropSigning(&reply.Txn, r.View, r.Mount.UUID, r.Param("name"))
}
