// Package approle logs programs in by a role id and a secret id. A role says who they are and on which terms they get
// tokens; a secret id proves it, for a limited time or number of logins. lessor keeps no secret id, only its keyed hash.
//
// A login is two point reads: the role by its role id, the secret id by its hash. What a login uses up, and that role and
// secret id still are what they were, goes into the commit that makes the token: two logins never share a last use.
package approle

import (
	"context"
	"maps"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// Backend is the auth method.
type Backend struct{}

type ops = map[lessor.Verb]engine.Handler

// Routes is the method table.
func (Backend) Routes() []engine.Route {
	secret := []engine.Field{{Name: "secret_id", Type: engine.String, Help: "the secret id"}}
	accessor := []engine.Field{{Name: "secret_id_accessor", Type: engine.String, Help: "accessor of the secret id"}}
	return append([]engine.Route{
		{Pattern: "role", Help: "List roles.", Ops: ops{lessor.List: listRoles}},
		{
			Pattern: "role/{role_name}", Owned: true, Help: "Manage a role. Deleting it destroys its secret ids.", Fields: fields, Exists: exists, Fold: true,
			Ops: ops{lessor.Read: readRole, lessor.Update: writeRole, lessor.Delete: removeRole},
		},
		{
			Pattern: "role/{role_name}/secret-id", Fold: true, Help: "Make a secret id; list the accessors of all.", Fields: secretIDFields,
			Ops: ops{lessor.Update: createSecretID, lessor.List: listSecretIDs},
		},
		{
			Pattern: "role/{role_name}/custom-secret-id", Fold: true, Help: "Register a secret id of your own making.",
			Fields: append(secret[:1:1], secretIDFields...), Ops: ops{lessor.Update: customSecretID},
		},
		{
			Pattern: "role/{role_name}/secret-id/lookup", Fold: true, Help: "Properties of a secret id.", Fields: secret,
			Ops: ops{lessor.Update: bySecretID(lookup)},
		},
		{
			Pattern: "role/{role_name}/secret-id/destroy", Fold: true, Help: "Destroy a secret id.", Fields: secret,
			Ops: ops{lessor.Update: bySecretID(destroy), lessor.Delete: bySecretID(destroy)},
		},
		{
			Pattern: "role/{role_name}/secret-id-accessor/lookup", Fold: true, Help: "Properties of a secret id, by its accessor.", Fields: accessor,
			Ops: ops{lessor.Update: byAccessor(lookup)},
		},
		{
			Pattern: "role/{role_name}/secret-id-accessor/destroy", Fold: true, Help: "Destroy a secret id, by its accessor.", Fields: accessor,
			Ops: ops{lessor.Update: byAccessor(destroy), lessor.Delete: byAccessor(destroy)},
		},
		{Pattern: "tidy/secret-id", Help: "Clear away expired secret ids now.", Ops: ops{lessor.Update: tidy}},
		{
			Pattern: "login", Help: "Log in.", Open: true, Subject: subject, Roles: true, Ops: ops{lessor.Update: login},
			Fields: append(secret[:1:1], engine.Field{Name: "role_id", Type: engine.String, Help: "the role id"}),
		},
	}, settingRoutes()...)
}

func refused() error {
	return &api.Error{Kind: api.Invalid, Text: "invalid role or secret ID", Cause: engine.ErrCredentials}
}

func missingSecretID() error { return api.Errorf(api.Invalid, "missing secret_id") }

// subject is the role that a login's role id names.
func subject(r *engine.Request) (engine.Subject, error) {
	roleID := strings.TrimSpace(r.Str("role_id"))
	if roleID == "" {
		return engine.Subject{}, nil
	}
	ro, _, err := get(r, byRoleID(r, roleID))
	if err != nil || ro == nil {
		return engine.Subject{Alias: roleID}, err
	}
	return engine.Subject{Alias: roleID, Role: ro.Name, Known: true}, nil
}

func login(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	roleID := strings.TrimSpace(r.Str("role_id"))
	if roleID == "" {
		return nil, api.Errorf(api.Invalid, "missing role_id")
	}
	ro, row, err := get(r, byRoleID(r, roleID))
	if err != nil {
		return nil, err
	}
	if ro == nil {
		if strings.TrimSpace(r.Str("secret_id")) == "" {
			return nil, missingSecretID() // as of most roles there are: it tells nobody which
		}
		return nil, refused()
	}
	reply := &engine.Reply{}
	reply.Txn.Require(row)

	var s *secretID
	if ro.BindSecretID {
		if s, err = present(r, ro, reply); err != nil {
			return nil, err
		}
	}
	if !auth.Within(ro.SecretIDBound, r.Op.Client) {
		return nil, api.Errorf(api.Invalid, "source address %q unauthorized by CIDR restrictions on the role", r.Op.Client)
	}

	l := &engine.Login{Alias: ro.RoleID, Role: ro.Name, Metadata: map[string]string{}, Token: ro.Token}
	if s != nil {
		maps.Copy(l.Metadata, s.Metadata)
		l.Instance = s.Accessor
	}
	l.Metadata["role_name"] = ro.Name
	l.AliasMeta = l.Metadata
	l.Token.BoundCIDRs = tokenBound(ro, s)
	reply.Login = l
	return reply, nil
}

// Renew refuses tokens of roles that are gone; others live on by what the role's terms are now.
func (Backend) Renew(r *engine.Request, txn *store.Txn, t *token.Token, terms *token.Lifetime) error {
	ro, row, err := byRoleName(r, t.Role)
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

// present checks the secret id that the client presents, and takes one use off it.
func present(r *engine.Request, ro *role, reply *engine.Reply) (*secretID, error) {
	id := strings.TrimSpace(r.Str("secret_id"))
	if id == "" {
		return nil, missingSecretID()
	}
	s, row, err := ro.find(r, r.Opener.TokenHash(id))
	switch {
	case err != nil:
		return nil, err
	case s == nil:
		return nil, refused()
	case !auth.Inside(ro.SecretIDBound, s.Bound) || !auth.Inside(ro.Token.BoundCIDRs, s.Token): // the role may have been narrowed since
		return nil, notInside()
	case !auth.Within(s.Bound, r.Op.Client):
		return nil, api.Errorf(api.Invalid, "source address %q unauthorized through CIDR restrictions on the secret ID", r.Op.Client)
	}
	ro.use(r, &reply.Txn, s, row)
	return s, nil
}
