package token

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/policy/book"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// Role says on which terms auth/token/create/ROLE makes tokens. CBOR keys are on disk: never renumber, only append.
type Role struct {
	AllowedPolicies        []string       `cbor:"1,keyasint,omitempty"`
	DisallowedPolicies     []string       `cbor:"2,keyasint,omitempty"`
	AllowedPoliciesGlob    []string       `cbor:"3,keyasint,omitempty"`
	DisallowedPoliciesGlob []string       `cbor:"4,keyasint,omitempty"`
	Orphan                 bool           `cbor:"5,keyasint,omitempty"`
	Period                 time.Duration  `cbor:"6,keyasint,omitempty"`
	NotRenewable           bool           `cbor:"7,keyasint,omitempty"`
	PathSuffix             string         `cbor:"8,keyasint,omitempty"`
	ExplicitMaxTTL         time.Duration  `cbor:"9,keyasint,omitempty"`
	Bound                  []netip.Prefix `cbor:"10,keyasint,omitempty"`
	NoDefaultPolicy        bool           `cbor:"11,keyasint,omitempty"`
	NumUses                int            `cbor:"12,keyasint,omitempty"`
	Type                   string         `cbor:"13,keyasint,omitempty"` // service, batch, default-service, default-batch
	AllowedEntityAliases   []string       `cbor:"14,keyasint,omitempty"`
	Name                   string         `cbor:"15,keyasint,omitempty"` // as first written; rows are found without regard to case
	Older                  []string       `cbor:"16,keyasint,omitempty"` // parameters last written by their older names
}

// older are names that parameters had once; what was written by them is shown by them too.
var older = auth.Older{"token_period": "period", "token_explicit_max_ttl": "explicit_max_ttl", "token_bound_cidrs": "bound_cidrs"}

var roleFields = []engine.Field{
	{Name: "allowed_policies", Type: engine.Strings, Help: "policies that may be asked for; without any, those of the parent"},
	{Name: "disallowed_policies", Type: engine.Strings, Help: "policies that may not"},
	{Name: "allowed_policies_glob", Type: engine.Strings, Help: "globs of policies that may be asked for"},
	{Name: "disallowed_policies_glob", Type: engine.Strings, Help: "globs of policies that may not"},
	{Name: "orphan", Type: engine.Bool, Help: "make orphans"},
	{Name: "period", Type: engine.Duration, Help: "the same as token_period"},
	{Name: "token_period", Type: engine.Duration, Help: "makes the tokens periodic"},
	{Name: "renewable", Type: engine.Bool, Help: "false: the tokens are not renewable"},
	{Name: "path_suffix", Type: engine.String, Help: "appended to the tokens' path, for revocation by prefix"},
	{Name: "explicit_max_ttl", Type: engine.Duration, Help: "the same as token_explicit_max_ttl"},
	{Name: "token_explicit_max_ttl", Type: engine.Duration, Help: "end that no renewal goes beyond"},
	{Name: "bound_cidrs", Type: engine.Strings, Help: "the same as token_bound_cidrs"},
	{Name: "token_bound_cidrs", Type: engine.Strings, Help: "addresses that the tokens may be used from"},
	{Name: "token_no_default_policy", Type: engine.Bool, Help: "leave the policy default out"},
	{Name: "token_num_uses", Type: engine.Int, Help: "uses of each token; 0: unlimited"},
	{Name: "token_type", Type: engine.String, Help: "service, batch, default-service or default-batch"},
	{Name: "allowed_entity_aliases", Type: engine.Strings, Help: "aliases that entity_alias may name; globs"},
}

func roleName(mount, name string) string {
	return store.MountKey(lessor.RootNamespace, mount, "role/", name)
}

// role finds a token role; nil: there is none.
func role(v store.View, mount, name string) (*Role, store.Row, error) {
	row, err := v.Get(store.Key{Table: store.Config, Name: roleName(mount, strings.ToLower(name))})
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	ro := &Role{}
	if err := cbor.Unmarshal(row.Value, ro); err != nil {
		return nil, row, fmt.Errorf("token: damaged role: %w", err)
	}
	return ro, row, nil
}

func roleExists(r *engine.Request) (bool, error) {
	ro, _, err := role(r.View, r.Mount.UUID, r.Param("role_name"))
	return ro != nil, err
}

func (b *Backend) listRoles(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	p := roleName(r.Mount.UUID, "")
	keys := []string{}
	for row, err := range r.View.Scan(store.Config, p, store.PrefixEnd(p)) {
		if err != nil {
			return nil, err
		}
		ro := &Role{Name: strings.TrimPrefix(row.Name, p)}
		if err := cbor.Unmarshal(row.Value, ro); err != nil {
			return nil, fmt.Errorf("token: damaged role: %w", err)
		}
		keys = append(keys, ro.Name)
	}
	if len(keys) == 0 {
		return nil, &api.Error{Kind: api.NotFound}
	}
	return &engine.Reply{Data: map[string]any{"keys": keys}}, nil
}

func (b *Backend) readRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, _, err := role(r.View, r.Mount.UUID, r.Param("role_name"))
	if err != nil {
		return nil, err
	}
	if ro == nil {
		return nil, &api.Error{Kind: api.NotFound}
	}
	list := func(s []string) []string { return append([]string{}, s...) }
	d := map[string]any{
		"name": ro.name(r), "orphan": ro.Orphan, "path_suffix": ro.PathSuffix, "renewable": !ro.NotRenewable,
		"allowed_policies": list(ro.AllowedPolicies), "disallowed_policies": list(ro.DisallowedPolicies),
		"allowed_policies_glob": list(ro.AllowedPoliciesGlob), "disallowed_policies_glob": list(ro.DisallowedPoliciesGlob),
		"allowed_entity_aliases": ro.AllowedEntityAliases, "period": 0, "explicit_max_ttl": 0,
		"token_period": whole(ro.Period), "token_explicit_max_ttl": whole(ro.ExplicitMaxTTL), "token_no_default_policy": ro.NoDefaultPolicy,
		"token_type": ro.Type,
	}
	if len(ro.Bound) > 0 {
		d["token_bound_cidrs"] = prefixes(ro.Bound)
	}
	if ro.NumUses > 0 {
		d["token_num_uses"] = ro.NumUses
	}
	older.Show(d, ro.Older)
	if len(ro.Bound) == 0 {
		delete(d, "bound_cidrs")
	}
	if owner, _ := r.System.OwnerOf(r.Op.Path); owner != "" {
		d["owner"] = owner
	}
	return &engine.Reply{Data: d}, nil
}

// name is the role's, as it was first written.
func (ro *Role) name(r *engine.Request) string {
	if ro.Name != "" {
		return ro.Name
	}
	return strings.ToLower(r.Param("role_name"))
}

func (b *Backend) writeRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, row, err := role(r.View, r.Mount.UUID, r.Param("role_name"))
	if err != nil {
		return nil, err
	}
	if ro == nil {
		ro = &Role{Type: "default-service", Name: r.Param("role_name")}
	}
	reply := &engine.Reply{}
	if err := ro.set(r, reply); err != nil {
		return nil, err
	}
	if err := ro.check(); err != nil {
		return nil, err
	}
	value, err := cbor.Marshal(ro)
	if err != nil {
		return nil, err
	}
	reply.Txn.Require(row)
	reply.Txn.Put(row.Table, row.Name, value)
	return reply, nil
}

// set takes over what the client sent.
func (ro *Role) set(r *engine.Request, reply *engine.Reply) error {
	for name, to := range map[string]*[]string{
		"allowed_policies": &ro.AllowedPolicies, "disallowed_policies": &ro.DisallowedPolicies, "allowed_policies_glob": &ro.AllowedPoliciesGlob,
		"disallowed_policies_glob": &ro.DisallowedPoliciesGlob, "allowed_entity_aliases": &ro.AllowedEntityAliases,
	} {
		if r.Has(name) {
			*to = clean(r.List(name))
		}
	}
	for _, name := range []string{"token_period", "token_bound_cidrs", "token_explicit_max_ttl"} {
		if r.Has(name) && r.Has(older[name]) {
			reply.Warnings = append(reply.Warnings, fmt.Sprintf("Both '%s' and deprecated '%s' value supplied, ignoring the deprecated value", name, older[name]))
		}
	}
	if name, ok := older.Name(r, "token_period"); ok {
		ro.Period = r.Dur(name)
	}
	if name, ok := older.Name(r, "token_explicit_max_ttl"); ok {
		ro.ExplicitMaxTTL = r.Dur(name)
	}
	if name, ok := older.Name(r, "token_bound_cidrs"); ok {
		bound, err := auth.Prefixes(name, r.List(name))
		if err != nil {
			return err
		}
		ro.Bound = bound
	}
	ro.Older = older.Used(r, ro.Older)
	if r.Has("orphan") {
		ro.Orphan = r.Bool("orphan")
	}
	if r.Has("renewable") {
		ro.NotRenewable = !r.Bool("renewable")
	}
	if r.Has("token_no_default_policy") {
		ro.NoDefaultPolicy = r.Bool("token_no_default_policy")
	}
	if r.Has("token_num_uses") {
		if ro.NumUses = int(r.Int("token_num_uses")); ro.NumUses < 0 {
			return api.Errorf(api.Invalid, "error parsing role fields: 'token_num_uses' cannot be negative")
		}
	}
	if r.Has("path_suffix") {
		ro.PathSuffix = r.Str("path_suffix")
	}
	if r.Has("token_type") {
		ro.Type = r.Str("token_type")
	}
	if most := r.Default.MaxTTL; ro.ExplicitMaxTTL > most {
		reply.Warnings = append(reply.Warnings, fmt.Sprintf(
			"Given explicit max TTL of %d is greater than system/mount allowed value of %d seconds; tokens end at the lesser", whole(ro.ExplicitMaxTTL), whole(most)))
	}
	return nil
}

var suffixes = regexp.MustCompile(`^\w[\w.-]*\w$`)

// check refuses roles whose tokens could not be made.
func (ro *Role) check() error {
	switch ro.Type {
	case "service", "batch", "default-service", "default-batch":
	default:
		return api.Errorf(api.Invalid, "invalid 'token_type' value %q", ro.Type)
	}
	switch {
	case strings.Contains(ro.PathSuffix, ".."):
		return api.Errorf(api.Invalid, "error registering path suffix: path cannot contain parent references")
	case ro.PathSuffix != "" && (!suffixes.MatchString(ro.PathSuffix) || len(ro.PathSuffix) > 64):
		return api.Errorf(api.Invalid, "given role path suffix contains invalid characters; must match %s", suffixes)
	case ro.Type != "batch":
		return nil
	}
	bad := ""
	switch {
	case !ro.Orphan:
		bad = "non-orphan tokens"
	case ro.Period > 0:
		bad = "periodic tokens"
	case !ro.NotRenewable:
		bad = "renewable tokens"
	case ro.ExplicitMaxTTL > 0:
		bad = "tokens with an explicit max TTL"
	case ro.NumUses > 0:
		bad = "tokens with limited use count"
	default:
		return nil
	}
	return api.Errorf(api.Invalid, "'token_type' cannot be 'batch' when role is set to generate %s", bad)
}

func (b *Backend) deleteRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{}
	reply.Txn.Delete(store.Config, roleName(r.Mount.UUID, strings.ToLower(r.Param("role_name"))))
	return reply, nil
}

// apply puts the role's terms over what was asked for. Warnings tell what of it was overridden.
func (ro *Role) apply(m *engine.Mint) (warnings []string) {
	m.PathSuffix = ro.PathSuffix
	m.Renewable = m.Renewable && !ro.NotRenewable
	if len(ro.Bound) > 0 {
		m.BoundCIDRs = ro.Bound
	}
	if ro.NumUses > 0 && (m.NumUses == 0 || ro.NumUses < m.NumUses) {
		m.NumUses = ro.NumUses
	}
	if m.Batch {
		return nil
	}
	lesser := func(what string, asked *time.Duration, most time.Duration) {
		if most == 0 {
			return
		}
		both := *asked > 0
		if !both || most < *asked {
			*asked = most
		}
		if both {
			warnings = append(warnings, fmt.Sprintf("%s specified both during creation call and in role; using the lesser value of %d seconds", what, whole(*asked)))
		}
	}
	lesser("Explicit max TTL", &m.Explicit, ro.ExplicitMaxTTL)
	lesser("Period", &m.Period, ro.Period)
	return warnings
}

// allows reports whether a client may name the alias.
func (ro *Role) allows(alias string) bool {
	return matches(ro.AllowedEntityAliases, strings.ToLower(alias))
}

// restricted reports whether the role, if there is one, says which policies may be asked for.
func (ro *Role) restricted() bool {
	return ro != nil && len(ro.AllowedPolicies)+len(ro.AllowedPoliciesGlob)+len(ro.DisallowedPolicies)+len(ro.DisallowedPoliciesGlob) > 0
}

// policies decides which policies a token of a role that restricts them gets: what is asked for must be allowed, if anything in
// particular is, and not forbidden, whatever the parent has. default is added unless it was declined or is forbidden.
func (ro *Role) policies(asked, own []string, noDefault bool) ([]string, error) {
	forbidden := func(p string) bool {
		return slices.Contains(ro.DisallowedPolicies, p) || matches(ro.DisallowedPoliciesGlob, p)
	}
	complete := func(names []string) []string {
		if noDefault || ro.NoDefaultPolicy || forbidden(book.DefaultPolicy) {
			return clean(names)
		}
		return clean(append(slices.Clone(names), book.DefaultPolicy))
	}
	var final []string
	if len(asked) > 0 {
		final = complete(asked)
	}
	if len(ro.AllowedPolicies)+len(ro.AllowedPoliciesGlob) > 0 {
		allowed := complete(ro.AllowedPolicies)
		for _, p := range final {
			if !slices.Contains(allowed, p) && !matches(ro.AllowedPoliciesGlob, p) {
				return nil, api.Errorf(api.Invalid, "token policies (%q) must be subset of the role's allowed policies (%q) or glob policies (%q)", final, allowed, ro.AllowedPoliciesGlob)
			}
		}
		if final == nil {
			final = allowed
		}
	} else if final == nil {
		final = complete(own)
	}
	for _, p := range final {
		if forbidden(p) {
			return nil, api.Errorf(api.Invalid, "token policy %q is disallowed by this role", p)
		}
	}
	return final, nil
}

// matches reports whether one of the globs matches.
func matches(globs []string, s string) bool {
	return slices.ContainsFunc(globs, func(g string) bool { return auth.Glob(g, s) })
}

// Renew says on which terms a token of the method is renewed: those of its role now, if it has one. The end that it was given stays; a role
// can only bring it nearer.
func (b *Backend) Renew(r *engine.Request, txn *store.Txn, t *token.Token, terms *token.Lifetime) error {
	if t.Role == "" {
		return nil
	}
	ro, row, err := role(r.View, r.Mount.UUID, t.Role)
	if err != nil {
		return err
	}
	if ro == nil {
		return api.Errorf(api.Invalid, "original token role %q could not be found, not renewing", t.Role)
	}
	txn.Require(row)
	terms.Period = ro.Period
	if ro.ExplicitMaxTTL > 0 && (terms.Explicit == 0 || ro.ExplicitMaxTTL < terms.Explicit) {
		terms.Explicit = ro.ExplicitMaxTTL
	}
	return nil
}
