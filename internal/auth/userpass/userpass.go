// Package userpass logs people in by name and password. A password is kept as its bcrypt hash only, apart from what else is
// known of the user.
//
// Rows: Config, "user/" + name → user; Secrets, "user/" + name → the hash. Names are lower case.
package userpass

import (
	"context"
	"runtime"
	"strings"

	"golang.org/x/crypto/bcrypt"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// Backend is the auth method.
type Backend struct {
	turns chan struct{} // hashing takes one: logins must not starve everybody else of processors
}

// New returns the auth method.
func New() *Backend { return &Backend{turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))} }

// user is what is known of a user besides the password. CBOR keys are on disk: never renumber, only append.
type user struct {
	Token engine.TokenTerms `cbor:"1,keyasint"`
	Older []string          `cbor:"2,keyasint,omitempty"` // parameters last written by their older names
}

var older = auth.Older{"token_policies": "policies", "token_ttl": "ttl", "token_max_ttl": "max_ttl", "token_bound_cidrs": "bound_cidrs"}

var passwords = []engine.Field{
	{Name: "password", Type: engine.String, Help: "the password, at most 72 bytes"},
	{Name: "password_hash", Type: engine.String, Help: "instead of the password: its bcrypt hash"},
}

type ops = map[lessor.Verb]engine.Handler

// Routes is the method table.
func (b *Backend) Routes() []engine.Route {
	terms := auth.TokenFields()
	policies := []engine.Field{
		{Name: "token_policies", Type: engine.Strings, Help: "policies of the tokens"},
		{Name: "policies", Type: engine.Strings, Help: "older name of token_policies"},
	}
	return []engine.Route{
		{Pattern: "users", Help: "List users.", Ops: ops{lessor.List: list}},
		{
			Pattern: "users/{username}", Owned: true, Help: "Manage a user.", Exists: exists, Fold: true,
			Fields: append(append(terms, older.Fields(terms)...), passwords...),
			Ops:    ops{lessor.Read: read, lessor.Update: b.write, lessor.Delete: remove},
		},
		{Pattern: "users/{username}/password", Fold: true, Help: "Set a user's password.", Fields: passwords, Ops: ops{lessor.Update: b.setPassword}},
		{Pattern: "users/{username}/policies", Fold: true, Help: "Set a user's policies.", Fields: policies, Ops: ops{lessor.Update: setPolicies}},
		{
			Pattern: "login/{username}", Help: "Log in.", Open: true, Subject: subject, Fields: passwords[:1],
			Ops: ops{lessor.Update: b.login},
		},
	}
}

func userKey(r *engine.Request, t store.Table, name string) store.Key {
	return store.Key{Table: t, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "user/", name)}
}

// named is the user that the path names.
func named(r *engine.Request) (string, error) {
	name := strings.ToLower(r.Param("username"))
	return name, auth.CheckName("username", name)
}

// load finds a user; nil if there is none.
func load(r *engine.Request, name string) (*user, store.Row, error) {
	row, err := r.View.Get(userKey(r, store.Config, name))
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	u := &user{}
	return u, row, auth.Decode(row.Value, u)
}

// save writes a user who is still as row says.
func (u *user) save(txn *store.Txn, row store.Row) {
	txn.Require(row)
	txn.Put(row.Table, row.Name, auth.Encode(u))
}

func exists(r *engine.Request) (bool, error) {
	row, err := r.View.Get(userKey(r, store.Config, strings.ToLower(r.Param("username"))))
	return row.Exists(), err
}

func list(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	names, err := engine.List(r.View, store.Config, userKey(r, store.Config, "").Name)
	if err != nil {
		return nil, err
	}
	return engine.Keys(names)
}

func read(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	u, _, err := load(r, name)
	if err != nil {
		return nil, err
	}
	if u == nil {
		return nil, &api.Error{Kind: api.NotFound}
	}
	data := map[string]any{}
	auth.TermsData(&u.Token, data)
	older.Show(data, u.Older)
	return &engine.Reply{Data: data}, nil
}

func (b *Backend) write(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	u, row, err := load(r, name)
	if err != nil {
		return nil, err
	}
	given := r.Str("password") != "" || r.Str("password_hash") != ""
	if u == nil {
		if u = (&user{}); !given {
			return nil, missingPassword()
		}
	}
	if err := auth.ParseTokenTerms(r, &u.Token, older); err != nil {
		return nil, err
	}
	u.Older = older.Used(r, u.Older)
	reply := &engine.Reply{}
	if given {
		if err := b.verifier(ctx, r, name, reply); err != nil {
			return nil, err
		}
	}
	u.save(&reply.Txn, row)
	return reply, nil
}

func (b *Backend) setPassword(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	u, row, err := load(r, name)
	if err != nil {
		return nil, err
	}
	if u == nil {
		return nil, unknownUser()
	}
	reply := &engine.Reply{}
	reply.Txn.Require(row)
	return reply, b.verifier(ctx, r, name, reply)
}

func setPolicies(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	u, row, err := load(r, name)
	if err != nil {
		return nil, err
	}
	if u == nil {
		return nil, unknownUser()
	}
	if _, ok := older.Name(r, "token_policies"); !ok {
		return nil, api.Errorf(api.Invalid, "missing token_policies")
	}
	if err := auth.ParseTokenTerms(r, &u.Token, older); err != nil {
		return nil, err
	}
	u.Older = older.Used(r, u.Older)
	reply := &engine.Reply{}
	u.save(&reply.Txn, row)
	return reply, nil
}

func remove(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	for _, t := range []store.Table{store.Config, store.Secrets} {
		k := userKey(r, t, name)
		reply.Txn.Delete(k.Table, k.Name)
	}
	return reply, nil
}

func missingPassword() error {
	return api.Errorf(api.Invalid, `"password" or "password_hash" must be supplied`)
}
func unknownUser() error { return api.Errorf(api.Invalid, "username does not exist") }
func refused() error {
	return &api.Error{Kind: api.Invalid, Text: "invalid username or password", Cause: engine.ErrCredentials}
}

const (
	longest = 72 // bytes of a password that bcrypt looks at
	hardest = 15 // cost of a hash that is taken over: a login with it takes seconds
)

// cost of the hashes that are made here, as Vault's.
var cost = bcrypt.DefaultCost

// verifier puts what the password that the client sent is checked against.
func (b *Backend) verifier(ctx context.Context, r *engine.Request, name string, reply *engine.Reply) error {
	password, given := r.Secret("password"), r.Secret("password_hash")
	var hash []byte
	switch {
	case password.Empty() && given.Empty():
		return missingPassword()
	case !password.Empty() && !given.Empty():
		return api.Errorf(api.Invalid, `"password" and "password_hash" cannot be supplied together`)
	case !given.Empty():
		hash = []byte(given.Reveal())
		if err := usable(hash); err != nil {
			return err
		}
	case len(password.Reveal()) > longest:
		return api.Errorf(api.Invalid, "passwords have at most %d bytes", longest)
	default:
		err := b.turn(ctx, func() (err error) {
			hash, err = bcrypt.GenerateFromPassword([]byte(password.Reveal()), cost)
			return err
		})
		if err != nil {
			return err
		}
	}
	k := userKey(r, store.Secrets, name)
	reply.Txn.Put(k.Table, k.Name, hash)
	reply.Shown = []audit.Shown{{Path: "users/" + name, Fingerprint: r.Opener.Fingerprint(r.Mount.UUID, k.Name, hash), How: "written"}}
	return nil
}

// usable refuses hashes that no password can be checked against in time.
func usable(hash []byte) error {
	if len(hash) != 60 {
		return api.Errorf(api.Invalid, "password hash has incorrect length")
	}
	if prefix := string(hash[:4]); prefix != "$2a$" && prefix != "$2b$" && prefix != "$2y$" {
		return api.Errorf(api.Invalid, "password hash has incorrect prefix")
	}
	if c, err := bcrypt.Cost(hash); err != nil || c > hardest {
		return api.Errorf(api.Invalid, "password_hash is no bcrypt hash of a cost up to %d", hardest)
	}
	return nil
}

// turn does what takes a processor for long.
func (b *Backend) turn(ctx context.Context, work func() error) error {
	select {
	case b.turns <- struct{}{}:
		defer func() { <-b.turns }()
		return work()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// nobody is the hash that the passwords of unknown users are compared with, so that they take as long as those of known ones.
var nobody = "$2a$10$EehSWu4FjISZEmYA7dY4tOL1KJR6FQccjvCLN9SqVLHUn541q8EbG"

// subject is the user that a login names.
func subject(r *engine.Request) (engine.Subject, error) {
	name := strings.ToLower(r.Param("username"))
	row, err := r.View.Get(userKey(r, store.Config, name))
	return engine.Subject{Alias: name, Known: row.Exists()}, err
}

func (b *Backend) login(ctx context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	password := r.Secret("password")
	if password.Empty() {
		return nil, api.Errorf(api.Invalid, "invalid credentials")
	}
	u, row, err := load(r, name)
	if err != nil {
		return nil, err
	}
	hash, verifier := lessor.NewSecret(nobody), store.Row{}
	if u != nil {
		if verifier, err = r.View.Get(userKey(r, store.Secrets, name)); err != nil {
			return nil, err
		}
	}
	if verifier.Exists() {
		if hash, err = r.Opener.Open(r.Grant, verifier); err != nil {
			return nil, err
		}
	}
	var match bool
	err = b.turn(ctx, func() error {
		match = matches(hash, password)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !match || !verifier.Exists() {
		return nil, refused()
	}
	if !auth.Within(u.Token.BoundCIDRs, r.Op.Client) {
		return nil, api.Errorf(api.Unauthenticated, "permission denied")
	}
	reply := &engine.Reply{Login: &engine.Login{
		Alias: name, Name: name, Metadata: map[string]string{"username": name}, Token: u.Token,
	}}
	reply.Txn.Require(row)
	reply.Txn.Require(verifier)
	return reply, nil
}

// Renew refuses tokens of users who are gone, or whose policies have changed; others live on by what the user's terms are now.
func (*Backend) Renew(r *engine.Request, txn *store.Txn, t *token.Token, terms *token.Lifetime) error {
	u, row, err := load(r, t.Metadata["username"])
	switch {
	case err != nil:
		return err
	case u == nil:
		return api.Errorf(api.Invalid, "the user of this token does not exist any more, not renewing")
	case !auth.SamePolicies(u.Token.Policies, t.Policies):
		return api.Errorf(api.Invalid, "policies have changed, not renewing")
	}
	txn.Require(row)
	auth.Terms(&u.Token, terms)
	return nil
}

// matches compares. A password that bcrypt would cut short matches nothing.
func matches(hash, password lessor.Secret) bool {
	p := []byte(password.Reveal())
	err := bcrypt.CompareHashAndPassword([]byte(hash.Reveal()), p[:min(len(p), longest)])
	return err == nil && len(p) <= longest
}
