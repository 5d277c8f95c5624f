package ldap

import (
	"cmp"
	"context"
	"fmt"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/turn"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/template"
)

// Role says how accounts are made. CBOR keys are on disk: never renumber, only append.
type Role struct {
	Creation         string        `cbor:"1,keyasint"` // LDIF
	Deletion         string        `cbor:"2,keyasint,omitempty"`
	Rollback         string        `cbor:"3,keyasint,omitempty"`
	UsernameTemplate string        `cbor:"4,keyasint,omitempty"`
	TTL              time.Duration `cbor:"5,keyasint,omitempty"`
	MaxTTL           time.Duration `cbor:"6,keyasint,omitempty"`
}

// Names that are made: the template where a role has none, and how long they may be, in bytes: what a common name may be.
const (
	defaultUsernames = `v_{{.DisplayName | truncate 8 | trim}}_{{.RoleName | truncate 8 | trim}}_{{random 10}}_{{unix_time}}`
	longestUsername  = 64
)

var roleFields = []engine.Field{
	{Name: "creation_ldif", Type: engine.String, Help: "LDIF that makes the account {{.Username}} with {{.Password}}."},
	{Name: "deletion_ldif", Type: engine.String, Help: "LDIF that removes it; by default what creation_ldif added is deleted."},
	{Name: "rollback_ldif", Type: engine.String, Help: "LDIF for when creation failed, beyond what deletion_ldif does."},
	{Name: "username_template", Type: engine.String, Help: "Template of the usernames that are made."},
	{Name: "default_ttl", Type: engine.Duration, Help: "Length of the leases; 0 for the mount's default."},
	{Name: "max_ttl", Type: engine.Duration, Help: "Length that renewals cannot exceed; 0 for the mount's maximum."},
}

func (e *Engine) readRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var role Role
	row, err := load(r.View, r.Mount, rolePrefix, nameOf(r), &role)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, &api.Error{Kind: api.NotFound}
	}
	return &engine.Reply{Data: map[string]any{
		"creation_ldif": role.Creation, "deletion_ldif": role.Deletion, "rollback_ldif": role.Rollback, "username_template": role.UsernameTemplate,
		"default_ttl": turn.Seconds(role.TTL), "max_ttl": turn.Seconds(role.MaxTTL),
	}}, nil
}

// writeRole makes or changes a role; what is not sent stays as it was.
func (e *Engine) writeRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := named(r)
	if err != nil {
		return nil, err
	}
	var role Role
	row, err := load(r.View, r.Mount, rolePrefix, name, &role)
	if err != nil {
		return nil, err
	}
	for field, to := range map[string]*string{
		"creation_ldif": &role.Creation, "deletion_ldif": &role.Deletion, "rollback_ldif": &role.Rollback, "username_template": &role.UsernameTemplate,
	} {
		if r.Has(field) {
			*to = r.Str(field)
		}
	}
	for field, to := range map[string]*time.Duration{"default_ttl": &role.TTL, "max_ttl": &role.MaxTTL} {
		if r.Has(field) {
			*to = r.Dur(field)
		}
	}
	switch {
	case role.Creation == "":
		return nil, api.Errorf(api.Invalid, "missing creation_ldif")
	case role.MaxTTL > 0 && role.TTL > role.MaxTTL:
		return nil, api.Errorf(api.Invalid, "default_ttl must not exceed max_ttl")
	}
	dns, err := e.try(&role, name)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "%v", err)
	}
	var c Config
	if _, err := load(r.View, r.Mount, configRow, "", &c); err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	for _, dn := range dns {
		if c.UserDN != "" && !below(dn, c.UserDN) {
			reply.Warnings = append(reply.Warnings, "creation_ldif adds entries that are not below userdn: after a restore from a backup, lessor does not find those there that it forgot")
			break
		}
	}
	return reply, save(&reply.Txn, row, &role)
}

// below reports whether an entry lies below another, or is it.
func below(dn, base string) bool {
	x, err := goldap.ParseDN(dn)
	if err != nil {
		return false
	}
	y, err := goldap.ParseDN(base)
	return err == nil && (y.AncestorOfFold(x) || y.EqualFold(x))
}

// try does all of a role that can be done without a directory, and returns the DNs of what it would add.
func (e *Engine) try(role *Role, name string) ([]string, error) {
	names, err := e.usernames(role)
	if err != nil {
		return nil, fmt.Errorf("username_template: %w", err)
	}
	issued := time.Unix(1700000000, 0)
	username, err := names.Name("lease", issued, "approle-billing", name)
	if err != nil {
		return nil, fmt.Errorf("username_template: %w", err)
	}
	about := about(username, "approle-billing", name, issued, issued.Add(time.Hour))
	creation, err := parseLDIF(role.Creation, &secret)
	if err != nil {
		return nil, fmt.Errorf("invalid creation_ldif: %w", err)
	}
	steps, err := creation.making("lease", issued, about, lessor.NewSecret("one-password"), lessor.NewSecret("another-one"))
	if err != nil {
		return nil, fmt.Errorf("invalid creation_ldif: %w", err)
	}
	dns, gives := added(steps), false
	for _, s := range steps {
		gives = gives || s.Secret
	}
	switch {
	case len(dns) == 0:
		return nil, fmt.Errorf("invalid creation_ldif: it adds no entry")
	case !gives:
		return nil, fmt.Errorf("invalid creation_ldif: it gives {{.Password}} to nobody")
	}
	_, err = role.removal("lease", issued, about, steps)
	return dns, err
}

// removal is how to remove what steps made.
func (role *Role) removal(lease string, issued time.Time, about subject, made []Step) ([]Step, error) {
	if role.Rollback != "" {
		if _, err := filled(role.Rollback, lease, issued, about); err != nil {
			return nil, fmt.Errorf("invalid rollback_ldif: %w", err)
		}
	}
	if role.Deletion == "" {
		return undoing(made)
	}
	steps, err := filled(role.Deletion, lease, issued, about)
	if err != nil {
		return nil, fmt.Errorf("invalid deletion_ldif: %w", err)
	}
	return steps, nil
}

// filled is LDIF that knows no password, filled.
func filled(raw, lease string, issued time.Time, about subject) ([]Step, error) {
	s, err := parseLDIF(raw, &inValue)
	if err != nil {
		return nil, err
	}
	return s.fill(lease, issued, about)
}

// about is what templates of a lease are about.
func about(username, display, role string, issued, expires time.Time) subject {
	return subject{
		Username: username, DisplayName: template.Clean(display), RoleName: template.Clean(role),
		IssueTime: issued.UTC().Format(time.RFC3339), IssueTimeSeconds: issued.Unix(),
		ExpirationTime: expires.UTC().Format(time.RFC3339), ExpirationTimeSeconds: expires.Unix(),
	}
}

// usernames is the role's template of names, compiled once.
func (e *Engine) usernames(role *Role) (*template.Username, error) {
	text := cmp.Or(role.UsernameTemplate, defaultUsernames)
	if t, ok := e.templates.Load(text); ok {
		return t.(*template.Username), nil
	}
	t, err := template.NewUsername(text, longestUsername)
	if err == nil {
		e.templates.Store(text, t)
	}
	return t, err
}

func (e *Engine) deleteRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	var role Role
	row, err := load(r.View, r.Mount, rolePrefix, nameOf(r), &role)
	if err != nil || !row.Exists() {
		return nil, err
	}
	reply := &engine.Reply{}
	reply.Txn.Require(row)
	reply.Txn.Delete(row.Table, row.Name)
	return reply, nil
}
