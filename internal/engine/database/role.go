package database

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/store"
)

// Role says how accounts are made. CBOR keys are on disk: never renumber, only append.
type Role struct {
	Connection     string        `cbor:"1,keyasint"` // db_name
	TTL            time.Duration `cbor:"2,keyasint,omitempty"`
	MaxTTL         time.Duration `cbor:"3,keyasint,omitempty"`
	Statements     Statements    `cbor:"4,keyasint"`
	PasswordPolicy string        `cbor:"5,keyasint,omitempty"`
}

var roleFields = []engine.Field{
	{Name: "db_name", Type: engine.String, Help: "Connection that the role uses."},
	{Name: "default_ttl", Type: engine.Duration, Help: "Length of the leases; 0 for the mount's default."},
	{Name: "max_ttl", Type: engine.Duration, Help: "Length that renewals cannot exceed; 0 for the mount's maximum."},
	{Name: "creation_statements", Type: engine.Any, Help: "Statements that make the account {{name}} with {{password}}, valid until {{expiration}}; for Redis a list of ACL rules, by default [\"~*\", \"+@read\"]."},
	{Name: "revocation_statements", Type: engine.Any, Help: "Statements that remove it; by default its sessions end, what it owns is given away, and it is dropped."},
	{Name: "rollback_statements", Type: engine.Any, Help: "Statements to run when creation failed, beyond the rollback of its transaction."},
	{Name: "renew_statements", Type: engine.Any, Help: "Statements that move its {{expiration}}; by default VALID UNTIL is."},
	{Name: "credential_type", Type: engine.String, Help: "password, the only type."},
	{Name: "credential_config", Type: engine.Pairs, Help: "password_policy: policy of the passwords that are made."},
}

func (e *Engine) readRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var role Role
	row, err := load(r.View, r.Mount, rolePrefix, r.Param("name"), &role)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, &api.Error{Kind: api.NotFound}
	}
	data := map[string]any{
		"db_name": role.Connection, "credential_type": "password",
		"default_ttl": count(int64(role.TTL / time.Second)), "max_ttl": count(int64(role.MaxTTL / time.Second)),
		"creation_statements": nonNil(role.Statements.Creation), "revocation_statements": nonNil(role.Statements.Revocation),
		"rollback_statements": nonNil(role.Statements.Rollback), "renew_statements": nonNil(role.Statements.Renewal),
	}
	if role.PasswordPolicy != "" {
		data["credential_config"] = map[string]string{"password_policy": role.PasswordPolicy}
	}
	return &engine.Reply{Data: data}, nil
}

// writeRole makes or changes a role; what is not sent stays as it was.
func (e *Engine) writeRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	static, err := r.View.Get(store.Key{Table: store.Engine, Name: key(r.Mount, staticPrefix, name)})
	if err != nil {
		return nil, err
	}
	if static.Exists() {
		return nil, api.Errorf(api.Invalid, "Role and Static Role names must be unique")
	}
	var role Role
	row, err := load(r.View, r.Mount, rolePrefix, name, &role)
	if err != nil {
		return nil, err
	}
	if err := role.amend(r); err != nil {
		return nil, err
	}
	switch {
	case role.Connection == "":
		return nil, api.Errorf(api.Invalid, "database name is required")
	case role.MaxTTL > 0 && role.TTL > role.MaxTTL:
		return nil, api.Errorf(api.Invalid, "default_ttl must not exceed max_ttl")
	}
	reply := &engine.Reply{}
	reply.Txn.Require(static)
	var c Connection
	used, err := load(r.View, r.Mount, connectionPrefix, role.Connection, &c)
	if err != nil {
		return nil, err
	}
	if !used.Exists() {
		reply.Warnings = append(reply.Warnings, "there is no connection "+role.Connection+" yet")
	}
	plugins := e.plugins()
	if used.Exists() {
		plugins = []string{c.Plugin}
	}
	if err := e.checkRole(&role.Statements, plugins); err != nil {
		return nil, api.Errorf(api.Invalid, "%v", err)
	}
	return reply, save(&reply.Txn, row, &role)
}

// checkRole says what is wrong with statements, which have to be good for one of the plugins.
func (e *Engine) checkRole(s *Statements, plugins []string) (failure error) {
	for _, plugin := range plugins {
		d, err := e.driver(plugin)
		if err == nil {
			err = d.CheckRole(s)
		}
		if err == nil {
			return nil
		}
		if failure == nil {
			failure = err
		}
	}
	return failure
}

// amend takes over what the client sent.
func (role *Role) amend(r *engine.Request) error {
	if r.Has("db_name") {
		role.Connection = r.Str("db_name")
	}
	if r.Has("default_ttl") {
		role.TTL = r.Dur("default_ttl")
	}
	if r.Has("max_ttl") {
		role.MaxTTL = r.Dur("max_ttl")
	}
	for name, to := range map[string]*[]string{
		"creation_statements": &role.Statements.Creation, "revocation_statements": &role.Statements.Revocation,
		"rollback_statements": &role.Statements.Rollback, "renew_statements": &role.Statements.Renewal,
	} {
		if !r.Has(name) {
			continue
		}
		l, ok := statements(r.Any(name))
		if !ok {
			return api.Errorf(api.Invalid, "field %q is not a list of strings", name)
		}
		*to = l
	}
	return credential(r, &role.PasswordPolicy)
}

// credential takes over what kind of credential a role gives: passwords, by a policy.
func credential(r *engine.Request, passwords *string) error {
	if t := r.Str("credential_type"); t != "" && t != "password" {
		return api.Errorf(api.Invalid, "invalid credential_type %q: only password is supported", t)
	}
	if r.Has("credential_config") {
		*passwords = ""
		for name, v := range r.Pairs("credential_config") {
			if name != "password_policy" {
				return api.Errorf(api.Invalid, "credential_config: there is no %q; only password_policy", name)
			}
			*passwords = v
		}
	}
	return nil
}

func (e *Engine) deleteRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var role Role
	row, err := load(r.View, r.Mount, rolePrefix, r.Param("name"), &role)
	if err != nil || !row.Exists() {
		return nil, err
	}
	reply := &engine.Reply{}
	reply.Txn.Require(row)
	reply.Txn.Delete(row.Table, row.Name)
	return reply, nil
}

// statements reads statements as Vault's clients send them: an array, or a string that is one statement (or several, with
// semicolons), a JSON array of them, or either of these in base64.
func statements(raw any) ([]string, bool) {
	var l []string
	switch v := raw.(type) {
	case string:
		if b, err := base64.StdEncoding.DecodeString(v); err == nil && utf8.Valid(b) {
			v = string(b)
		}
		if json.Unmarshal([]byte(v), &l) != nil {
			l = []string{v}
		}
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			l = append(l, s)
		}
	default:
		return nil, false
	}
	for i := range l {
		l[i] = strings.TrimSpace(l[i])
	}
	return slices.DeleteFunc(l, func(s string) bool { return s == "" }), true
}

// lifetime is a duration as it was written, checked.
func lifetime(raw any) (string, bool) {
	var text string
	switch v := raw.(type) {
	case string:
		text = strings.TrimSpace(v)
	case json.Number:
		text = v.String()
	default:
		return "", false
	}
	_, ok := engine.ParseDuration(text)
	return text, ok
}
