// Package jwt logs programs and people in by tokens that somebody else signed: JSON Web Tokens of an issuer that an administrator
// named. A program has one already (GitHub Actions, GitLab, Kubernetes give it), so that it needs no first secret of lessor's; people
// get one from an OpenID provider, in a browser.
//
// What a token must say is a pure function of the role, the claims and the time (claims.go, condition.go). The issuer's keys are
// public, and cached by each node (keys.go): a login asks the issuer only when it needs a key that is not known yet, and outside of the
// gate (engine.Unknown). A browser login is sealed into its own state (state.go): it leaves no row until it succeeds, and may come back
// to any node.
//
// Rows: Config, "config" and "role/" + name; Secrets, "client" → the client secret; Engine, "used/" + hash → when a token that was good
// for one login is over.
package jwt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// Backend is the auth method, under both of its names.
type Backend struct {
	known   keyring
	exprs   expressions
	answers answers
	polls   intervals
}

// New returns the auth method.
func New() *Backend { return &Backend{} }

type ops = map[lessor.Verb]engine.Handler

// Routes is the method table.
func (b *Backend) Routes() []engine.Route {
	return append([]engine.Route{
		{Pattern: "config", Help: "Whose tokens are accepted.", Fields: configFields, Ops: ops{lessor.Read: b.readConfig, lessor.Update: b.writeConfig}},
		{Pattern: "role", Help: "List roles.", Ops: ops{lessor.List: listRoles}},
		{
			Pattern: "role/{name}", Owned: true, Help: "Manage a role.", Fields: roleFields, Exists: roleExists, Fold: true,
			Ops: ops{lessor.Read: readRole, lessor.Update: writeRole, lessor.Delete: removeRole},
		},
		{
			Pattern: "login", Help: "Log in with a token.", Open: true, Subject: subject, Roles: true, Ops: ops{lessor.Update: b.login},
			Fields: []engine.Field{
				{Name: "role", Type: engine.String, Help: "the role; none: the method's default one"},
				{Name: "jwt", Type: engine.String, Help: "the token"},
			},
		},
	}, b.oidcRoutes()...)
}

// subject is the role that a login names. Nobody can guess at a signature: nothing locks.
func subject(r *engine.Request) (engine.Subject, error) {
	name := strings.ToLower(r.Str("role"))
	if name == "" {
		c, _, err := loadConfig(r)
		if err != nil || c == nil || c.DefaultRole == "" {
			return engine.Subject{}, err
		}
		name = c.DefaultRole
	}
	ro, _, err := loadRole(r, name)
	if err != nil || ro == nil {
		return engine.Subject{}, err
	}
	return engine.Subject{Role: name, Known: true}, nil
}

func (b *Backend) login(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	jwt := r.Secret("jwt")
	if jwt.Empty() {
		return nil, api.Errorf(api.Invalid, "missing token")
	}
	e, err := b.enter(r, r.Str("role"))
	if err != nil {
		return nil, err
	}
	if e.role.Type != typeJWT {
		return nil, api.Errorf(api.Invalid, "role with oidc role_type is not allowed")
	}
	said, err := b.verified(r, e, jwt, e.config.Algorithms)
	if err != nil {
		return nil, err
	}
	return e.admit(r, said)
}

// entry is what a login rests on.
type entry struct {
	config    *config
	configRow store.Row
	name      string
	role      *role
	roleRow   store.Row
	condition *condition // of the role; nil: none
}

// enter finds the configuration and the role of a login, and refuses those from elsewhere.
func (b *Backend) enter(r *engine.Request, name string) (*entry, error) {
	c, row, err := configured(r)
	if err != nil {
		return nil, err
	}
	e := &entry{config: c, configRow: row, name: strings.ToLower(name)}
	if e.name == "" {
		e.name = c.DefaultRole
	}
	if e.name == "" {
		return nil, api.Errorf(api.Invalid, "missing role")
	}
	if e.role, e.roleRow, err = loadRole(r, e.name); err != nil {
		return nil, err
	}
	if e.role == nil {
		return nil, api.Errorf(api.Invalid, "role %q could not be found", e.name)
	}
	if !auth.Within(e.role.Token.BoundCIDRs, r.Op.Client) {
		return nil, api.Errorf(api.Unauthenticated, "permission denied")
	}
	e.condition, err = b.exprs.compiled(e.role.Condition)
	return e, err
}

// verified are the claims of a token that one of the issuer's keys signed.
func (b *Backend) verified(r *engine.Request, e *entry, jwt lessor.Secret, algorithms []string) (claims, error) {
	s, err := parse(strings.TrimSpace(jwt.Reveal()), algorithms)
	if err != nil {
		return nil, err
	}
	keys, err := b.keys(r, e.config, e.configRow.Version, s.kid)
	if err != nil {
		return nil, err
	}
	payload, err := s.verify(keys)
	if err != nil {
		return nil, err
	}
	said, err := readClaims(payload)
	if err != nil {
		return nil, invalid("%v", err)
	}
	if iss := e.config.issuer(); iss != "" && said.text("iss") != iss {
		return nil, invalid("invalid issuer (iss) claim")
	}
	return said, nil
}

// admit lets somebody in of whom an issuer said all that the role asks for.
func (e *entry) admit(r *engine.Request, said claims) (*engine.Reply, error) {
	ro := e.role
	if err := ro.accepts(said, e.condition, r.Now); err != nil {
		return nil, err
	}
	l, err := ro.person(said)
	if err != nil {
		return nil, err
	}
	l.Role, l.Token = e.name, ro.Token
	l.Metadata["role"] = e.name
	l.AliasMeta = maps.Clone(l.Metadata)
	reply := &engine.Reply{Login: l}
	reply.Txn.Require(e.configRow)
	reply.Txn.Require(e.roleRow)
	if ro.OneUse {
		err = use(r, &reply.Txn, said)
	}
	return reply, err
}

// accepts refuses a token that does not say what the role asks for at now, its condition included.
func (ro *role) accepts(said claims, c *condition, now time.Time) error {
	t, err := said.times()
	if err == nil {
		err = ro.leeways().check(t, now)
	}
	if err != nil {
		return err
	}
	if ro.Subject != "" && said.text("sub") != ro.Subject {
		return invalid("invalid subject (sub) claim")
	}
	if ro.Type == typeJWT || len(ro.Audiences) > 0 { // the audience of a browser login is lessor itself
		if err := audience(said, ro.Audiences); err != nil {
			return err
		}
	}
	if err := bound(said, ro.Claims, ro.Globs); err != nil {
		return err
	}
	if c == nil {
		return nil
	}
	return c.holds(said)
}

// person is whom the claims are about.
func (ro *role) person(said claims) (*engine.Login, error) {
	v, ok := said[ro.UserClaim], true
	if ro.UserPointer {
		v, ok = said.find(ro.UserClaim)
	}
	if !ok || v == nil {
		return nil, api.Errorf(api.Invalid, "claim %q not found in token", ro.UserClaim)
	}
	name, ok := scalar(v)
	if !ok || name == "" {
		return nil, api.Errorf(api.Invalid, "claim %q could not be converted to string", ro.UserClaim)
	}
	metadata, err := mapped(said, ro.Mappings)
	if err != nil {
		return nil, err
	}
	in, err := groups(said, ro.GroupsClaim)
	if err != nil {
		return nil, err
	}
	return &engine.Login{Alias: name, Name: name, Metadata: metadata, Groups: in, Instance: instance(said)}, nil
}

// Renew refuses tokens of roles that are gone; others live on by what the role's terms are now.
func (*Backend) Renew(r *engine.Request, txn *store.Txn, t *token.Token, terms *token.Lifetime) error {
	ro, row, err := loadRole(r, t.Role)
	if err != nil {
		return err
	}
	if ro == nil {
		return api.Errorf(api.Invalid, "role %q does not exist during renewal", t.Role)
	}
	txn.Require(row)
	auth.Terms(&ro.Token, terms)
	return nil
}

// used is the row of a token that was good for one login.
type used struct {
	Ends time.Time `cbor:"1,keyasint"` // when the token is over at whatever role, and nobody can use it again anyway
}

const (
	usedPrefix = "used/"
	longestID  = 1024 // bytes of a token's id
	tidied     = 2000 // rows that one commit of a tidy looks at
)

func usedKey(m *mount.Entry, rest string) store.Key {
	return store.Key{Table: store.Engine, Name: store.MountKey(m.Namespace, m.UUID, usedPrefix, rest)}
}

// use adds to a login's commit that nobody logged in with the token before.
func use(r *engine.Request, txn *store.Txn, said claims) error {
	id := said.text("jti")
	if id == "" || len(id) > longestID {
		return invalid("the role takes each token once, and this one has no id (jti)")
	}
	t, err := said.times()
	if err != nil {
		return err
	}
	return once(r, txn, said.text("iss")+"\x00"+id, widest.end(t), invalid("the token was used before"))
}

// once adds to txn that what has this name was never used, and that it is used now. It is forgotten after ends.
func once(r *engine.Request, txn *store.Txn, name string, ends time.Time, refusal error) error {
	k := usedKey(r.Mount, digest(name))
	row, err := r.View.Get(k)
	if err != nil {
		return err
	}
	if row.Exists() {
		return refusal
	}
	txn.Absent(k.Table, k.Name)
	txn.Put(k.Table, k.Name, auth.Encode(used{Ends: ends}))
	return nil
}

func digest(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// Tidy clears away what says of tokens that they were used, once their time is over.
func (*Backend) Tidy(v store.View, txn *store.Txn, m *mount.Entry, from string, now time.Time) (next string, err error) {
	all := usedKey(m, "").Name
	if from == "" {
		from = all
	}
	seen := 0
	for row, err := range v.Scan(store.Engine, from, store.PrefixEnd(all)) {
		if err != nil {
			return "", err
		}
		if seen++; seen > tidied {
			return row.Name, nil
		}
		var u used
		if err := auth.Decode(row.Value, &u); err != nil {
			return "", err
		}
		if !now.Before(u.Ends) {
			txn.Require(row)
			txn.Delete(row.Table, row.Name)
		}
	}
	return "", nil
}
