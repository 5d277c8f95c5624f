package system

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy/book"
	"github.com/lessor-dev/lessor/internal/seal"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// A machine joins the cluster with a join secret: a token that is good for that, once. It sends the public half of a key that it made
// itself; the root key is wrapped to that, and what else it needs is sealed to it. So neither request nor answer holds a secret but the join
// secret, which is used up in the commit that lets the machine in.

// Welcome is what a machine that joins needs to know. It is JSON, sealed to the machine's public half under WelcomeLabel: it holds the
// database's URL, and with it perhaps a password.
type Welcome struct {
	ConnectionURL   string `json:"connection_url,omitempty"` // empty: the machine was not to be told
	Connections     int    `json:"max_parallel,omitempty"`
	ClusterName     string `json:"cluster_name,omitempty"` // as configured; empty: as the store has it
	ReportedVersion string `json:"reported_version"`
	DefaultLeaseTTL int64  `json:"default_lease_ttl"` // seconds, as all that follow
	MaxLeaseTTL     int64  `json:"max_lease_ttl"`
	Retention       int64  `json:"audit_retention"`
	Patience        int64  `json:"exporter_patience"`
	AllowPrefix     bool   `json:"allow_audit_log_prefixing"`
	RequireOwner    bool   `json:"require_owner"`
	UI              bool   `json:"ui"`
}

// WelcomeLabel is the label under which the Welcome of a node is sealed.
func WelcomeLabel(node string) string { return "lessor: welcome of " + node }

const (
	joinTTL    = 15 * time.Minute
	maxJoinTTL = 24 * time.Hour
)

func (b *Backend) joinRoutes() []engine.Route {
	return []engine.Route{
		{Pattern: "lessor/join-secrets", Help: "join secrets, each of which lets one machine join the cluster, once", Sudo: true, Fields: []engine.Field{
			{Name: "ttl", Type: engine.Duration, Help: "how long it is good for: 15 minutes, and 24 hours at most"},
			{Name: "node", Type: engine.String, Help: "name of the node that it is for; any, if not given"},
		}, Ops: ops{lessor.List: b.listJoinSecrets, lessor.Update: b.makeJoinSecret}},
		{Pattern: "lessor/join-secrets/{accessor}", Help: "a join secret: whom it is for, who made it, until when", Sudo: true,
			Ops: ops{lessor.Read: b.readJoinSecret, lessor.Delete: b.dropJoinSecret}},
		{Pattern: "lessor/join", Help: "join the cluster; the token is a join secret", Fields: []engine.Field{
			{Name: "node", Type: engine.String, Help: "name of the new node"},
			{Name: "public", Type: engine.String, Help: "public half of its key file's key, in base64"},
			{Name: "connection_url", Type: engine.Bool, Help: "whether the answer is to have the database's URL; true if not given"},
		}, Ops: update(b.join)},
	}
}

// joinable refuses where there is nothing to join.
func (b *Backend) joinable() error {
	if b.Welcome == nil {
		return api.Errorf(api.Invalid, `no other server can work on this store: only storage "postgresql" takes several; move the store there with lessor operator migrate`)
	}
	return nil
}

var errForAnother = api.Errorf(api.Denied, "permission denied: this join secret is for a node of another name")

func checkNodeName(name string) error {
	if !config.IsNodeName(name) {
		return api.Errorf(api.Invalid, "node must be the name of a node: 1 to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit")
	}
	return nil
}

// makeJoinSecret makes a token that lives no longer than the one that it is made with.
func (b *Backend) makeJoinSecret(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if err := b.joinable(); err != nil {
		return nil, err
	}
	ttl, node, maker := joinTTL, r.Str("node"), r.System.Caller()
	if r.Has("ttl") {
		ttl = r.Dur("ttl")
	}
	switch {
	case ttl < time.Second || ttl > maxJoinTTL:
		return nil, api.Errorf(api.Invalid, "ttl must be between a second and %s", maxJoinTTL)
	case maker.Limited:
		return nil, api.Errorf(api.Invalid, "a token whose uses are counted makes no join secret: use another")
	case node != "":
		if err := checkNodeName(node); err != nil {
			return nil, err
		}
	}
	if left := maker.Left(r.Now); !maker.Expires.IsZero() && left < ttl {
		ttl = left
	}
	id, err := token.NewID(r.Random)
	if err != nil {
		return nil, err
	}
	accessor, err := token.NewAccessor(r.Random)
	if err != nil {
		return nil, err
	}
	t := &token.Token{
		Hash: b.Keys.TokenHash(id.Reveal()), Accessor: accessor, Kind: lessor.Service, Policies: []string{book.JoinPolicy}, Path: r.Op.Path, Name: "join-secret",
		Metadata: map[string]string{"made_by": r.Principal.DisplayName, "made_with": maker.Accessor, "node": node},
		Created:  r.Now, TTL: ttl, Explicit: ttl, Expires: r.Now.Add(ttl), NumUses: 1, Limited: true, Join: true, Position: r.View.Position(),
		Ancestors: slices.Clone(maker.Ancestors),
	}
	if maker.Hash != "" { // a batch token has no row, and dies with its parent or in time
		t.Ancestors = slices.Insert(t.Ancestors, 0, maker.Hash)
	}
	t.Orphan = len(t.Ancestors) == 0
	reply := &engine.Reply{Accessor: accessor, Note: "made join secret " + accessor}
	t.Store(&reply.Txn)
	reply.Data = joinSecret(t)
	reply.Data["join_secret"] = id
	return reply, nil
}

// joinSecret tells of one.
func joinSecret(t *token.Token) map[string]any {
	return map[string]any{
		"accessor": t.Accessor, "node": t.Metadata["node"], "made_by": t.Metadata["made_by"], "made_with": t.Metadata["made_with"],
		"created": stamp(t.Created), "expires": stamp(t.Expires), "ttl": whole(t.TTL),
	}
}

func (b *Backend) listJoinSecrets(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	keys, info := []string{}, map[string]any{}
	var failure error
	err := token.JoinSecrets(r.View, func(accessor string) bool {
		t, _, err := token.ByAccessor(r.View, accessor)
		if err == nil && t != nil {
			var live bool
			if live, err = t.Live(r.View, r.Now); live {
				keys, info[accessor] = append(keys, accessor), joinSecret(t)
			}
		}
		failure = err
		return err == nil
	})
	if err == nil {
		err = failure
	}
	if err == nil && len(keys) == 0 {
		err = empty()
	}
	return &engine.Reply{Data: map[string]any{"keys": keys, "key_info": info}}, err
}

// secretOf is the join secret that a request names by its accessor.
func secretOf(r *engine.Request) (*token.Token, store.Row, error) {
	t, row, err := token.ByAccessor(r.View, r.Param("accessor"))
	if err != nil {
		return nil, row, err
	}
	if t != nil && t.Join {
		live, err := t.Live(r.View, r.Now)
		if live || err != nil {
			return t, row, err
		}
	}
	return nil, row, notFound("there is no such join secret: it was used, revoked, or has expired")
}

func (b *Backend) readJoinSecret(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, _, err := secretOf(r)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: joinSecret(t)}, nil
}

func (b *Backend) dropJoinSecret(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, row, err := secretOf(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{Note: "revoked join secret " + t.Accessor}
	reply.Txn.Urgent = true
	reply.Txn.Require(row)
	t.Drop(&reply.Txn)
	return reply, nil
}

// join lets a machine in: its key unseals the store from the commit on that uses up the join secret. A secret that is no good was refused
// before, like any token; one that is survives a refusal of what was asked with it.
func (b *Backend) join(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	if caller := r.System.Caller(); caller == nil || !caller.Join {
		return nil, api.Errorf(api.Invalid, "this takes a join secret for a token: make one with lessor operator join-secret")
	}
	if err := b.joinable(); err != nil {
		return nil, err
	}
	if !r.Op.Private {
		return nil, api.Errorf(api.Invalid, "no server joins over plain HTTP, where others on the way could join instead: use https, and revoke this join secret, which was on the wire")
	}
	secret, row, err := r.System.Token(r.Op.Token)
	if err != nil {
		return nil, err
	}
	node, public := r.Str("node"), seal.Public(nil)
	if err := checkNodeName(node); err != nil {
		return nil, err
	}
	if bound := secret.Metadata["node"]; bound != "" && bound != node {
		return nil, errForAnother
	}
	if public, err = base64.StdEncoding.DecodeString(r.Str("public")); err != nil {
		return nil, api.Errorf(api.Invalid, "public is not base64")
	}
	if err := public.Check(); err != nil {
		return nil, api.Errorf(api.Invalid, "public is no public half of a key file's key")
	}
	name := seal.KeyFileOf(node)
	lock, err := r.View.Get(seal.KEKKey(name))
	if err != nil {
		return nil, err
	}
	if lock.Exists() && !seal.Opened(lock, public) {
		return nil, api.Errorf(api.Invalid, "there is a node %s already: take another name (-node-name) or, if that one is given up, first lessor operator migrate-seal remove %s", node, name)
	}
	put, err := b.Keys.WrapRootTo(name, public)
	if err != nil {
		return nil, err
	}
	welcome, err := json.Marshal(b.Welcome(!r.Has("connection_url") || r.Bool("connection_url")))
	if err != nil {
		return nil, fmt.Errorf("system: %w", err)
	}
	sealed, err := public.Seal(WelcomeLabel(node), welcome)
	clear(welcome)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{Data: map[string]any{"node": node, "welcome": base64.StdEncoding.EncodeToString(sealed)}, Note: "the key file of the new node " + node + " unseals the store"}
	reply.Txn.Require(row)
	secret.Drop(&reply.Txn)
	reply.Txn.Require(lock)
	reply.Txn.Puts = append(reply.Txn.Puts, put)
	return reply, nil
}
