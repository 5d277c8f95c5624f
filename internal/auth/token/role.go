package token

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
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
}

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
	ro, _, err := role(r.View, r.Mount.UUID, r.Param("role"))
	return ro != nil, err
}

func (b *Backend) listRoles(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	p := roleName(r.Mount.UUID, "")
	keys := []string{}
	for row, err := range r.View.Scan(store.Config, p, store.PrefixEnd(p)) {
		if err != nil {
			return nil, err
		}
		keys = append(keys, strings.TrimPrefix(row.Name, p))
	}
	if len(keys) == 0 {
		return nil, &api.Error{Kind: api.NotFound}
	}
	return &engine.Reply{Data: map[string]any{"keys": keys}}, nil
}

func (b *Backend) readRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, _, err := role(r.View, r.Mount.UUID, r.Param("role"))
	if err != nil {
		return nil, err
	}
	if ro == nil {
		return nil, &api.Error{Kind: api.NotFound}
	}
	list := func(s []string) []string {
		if s == nil {
			return []string{}
		}
		return s
	}
	d := map[string]any{
		"name": strings.ToLower(r.Param("role")), "orphan": ro.Orphan, "path_suffix": ro.PathSuffix, "renewable": !ro.NotRenewable,
		"allowed_policies": list(ro.AllowedPolicies), "disallowed_policies": list(ro.DisallowedPolicies),
		"allowed_policies_glob": list(ro.AllowedPoliciesGlob), "disallowed_policies_glob": list(ro.DisallowedPoliciesGlob),
		"allowed_entity_aliases": list(ro.AllowedEntityAliases), "period": whole(ro.Period), "explicit_max_ttl": whole(ro.ExplicitMaxTTL),
		"token_period": whole(ro.Period), "token_explicit_max_ttl": whole(ro.ExplicitMaxTTL), "token_no_default_policy": ro.NoDefaultPolicy,
		"token_num_uses": ro.NumUses, "token_type": ro.Type, "token_bound_cidrs": prefixes(ro.Bound),
	}
	if owner, _ := r.System.OwnerOf(r.Op.Path); owner != "" {
		d["owner"] = owner
	}
	return &engine.Reply{Data: d}, nil
}

func (b *Backend) writeRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	ro, row, err := role(r.View, r.Mount.UUID, r.Param("role"))
	if err != nil {
		return nil, err
	}
	if ro == nil {
		ro = &Role{Type: "default-service"}
	}
	sets := []struct {
		name string
		to   *[]string
	}{
		{"allowed_policies", &ro.AllowedPolicies}, {"disallowed_policies", &ro.DisallowedPolicies},
		{"allowed_policies_glob", &ro.AllowedPoliciesGlob}, {"disallowed_policies_glob", &ro.DisallowedPoliciesGlob},
		{"allowed_entity_aliases", &ro.AllowedEntityAliases},
	}
	for _, s := range sets {
		if r.Has(s.name) {
			*s.to = clean(r.List(s.name))
		}
	}
	for _, name := range []string{"period", "token_period"} {
		if r.Has(name) {
			ro.Period = r.Dur(name)
		}
	}
	for _, name := range []string{"explicit_max_ttl", "token_explicit_max_ttl"} {
		if r.Has(name) {
			ro.ExplicitMaxTTL = r.Dur(name)
		}
	}
	for _, name := range []string{"bound_cidrs", "token_bound_cidrs"} {
		if r.Has(name) {
			if ro.Bound, err = parsePrefixes(r.List(name)); err != nil {
				return nil, err
			}
		}
	}
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
			return nil, api.Errorf(api.Invalid, "token_num_uses cannot be negative")
		}
	}
	if r.Has("path_suffix") {
		ro.PathSuffix = r.Str("path_suffix")
		if strings.ContainsAny(ro.PathSuffix, "/.*+ ") || len(ro.PathSuffix) > 64 {
			return nil, api.Errorf(api.Invalid, "path_suffix must be one plain word")
		}
	}
	if r.Has("token_type") {
		switch t := r.Str("token_type"); t {
		case "", "default-service":
			ro.Type = "default-service"
		case "service", "batch", "default-batch":
			ro.Type = t
		default:
			return nil, api.Errorf(api.Invalid, "invalid token_type %q", t)
		}
	}
	if ro.Type == "batch" && (ro.Period > 0 || ro.ExplicitMaxTTL > 0 || ro.NumUses > 0) {
		return nil, api.Errorf(api.Invalid, "batch tokens cannot have a period, an explicit_max_ttl or num_uses")
	}
	value, err := cbor.Marshal(ro)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	reply.Txn.Require(row)
	reply.Txn.Put(row.Table, row.Name, value)
	return reply, nil
}

func (b *Backend) deleteRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{}
	reply.Txn.Delete(store.Config, roleName(r.Mount.UUID, strings.ToLower(r.Param("role"))))
	return reply, nil
}

func parsePrefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil {
				return nil, api.Errorf(api.Invalid, "%q is neither an address nor a CIDR block", s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// apply puts the role's terms over what was asked for, and returns the token's type.
func (ro *Role) apply(m *engine.Mint, asked string) string {
	m.PathSuffix = ro.PathSuffix
	if len(ro.Bound) > 0 {
		m.BoundCIDRs = ro.Bound
	}
	if ro.Period > 0 && (m.Period == 0 || ro.Period < m.Period) {
		m.Period = ro.Period
	}
	if ro.NotRenewable {
		m.Renewable = false
	}
	if ro.ExplicitMaxTTL > 0 && (m.Explicit == 0 || ro.ExplicitMaxTTL < m.Explicit) {
		m.Explicit = ro.ExplicitMaxTTL
	}
	if ro.NumUses > 0 && (m.NumUses == 0 || ro.NumUses < m.NumUses) {
		m.NumUses = ro.NumUses
	}
	if ro.NoDefaultPolicy {
		m.NoDefault = true
	}
	switch ro.Type {
	case "service", "batch":
		return ro.Type
	case "default-batch":
		if asked == "" {
			return "batch"
		}
	}
	return asked
}

// warnings tells what the role overrode.
func (ro *Role) warnings(r *engine.Request) []string {
	var out []string
	if ro.ExplicitMaxTTL > 0 && r.Dur("explicit_max_ttl") > ro.ExplicitMaxTTL {
		out = append(out, fmt.Sprintf("Explicit max TTL specified both during creation call and in role; using the lesser value of %d seconds", whole(ro.ExplicitMaxTTL)))
	}
	return out
}

// policies decides which policies a token of the role gets: what is asked for must be allowed and not forbidden. A role that
// allows nothing in particular allows what the parent has.
func (ro *Role) policies(asked, own []string, m *engine.Mint) error {
	allowed := func(p string) bool {
		return slices.Contains(ro.AllowedPolicies, p) || slices.ContainsFunc(ro.AllowedPoliciesGlob, func(g string) bool { return glob(g, p) })
	}
	forbidden := func(p string) bool {
		return slices.Contains(ro.DisallowedPolicies, p) || slices.ContainsFunc(ro.DisallowedPoliciesGlob, func(g string) bool { return glob(g, p) })
	}
	listed := len(ro.AllowedPolicies)+len(ro.AllowedPoliciesGlob) > 0
	switch {
	case len(asked) > 0:
		m.Policies = asked
	case len(ro.AllowedPolicies) > 0:
		m.Policies = slices.Clone(ro.AllowedPolicies)
	default:
		m.Policies = own
	}
	if forbidden("default") {
		m.NoDefault = true
	}
	for _, p := range m.Policies {
		switch {
		case p == token.RootPolicy:
			return api.Errorf(api.Invalid, "token roles cannot give the root policy")
		case forbidden(p):
			return api.Errorf(api.Invalid, "token policies (%q) contain %q, which this role's disallowed policies forbid", m.Policies, p)
		case p == "default":
		case listed && !allowed(p):
			return api.Errorf(api.Invalid, "token policies (%q) must be subset of the role's allowed policies", m.Policies)
		case !listed && !slices.Contains(own, p) && !slices.Contains(own, token.RootPolicy):
			return api.Errorf(api.Invalid, "child policies must be subset of parent")
		}
	}
	return nil
}

// glob matches "*" in pattern with anything.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	last := len(parts) - 1
	if last == 0 {
		return s == pattern
	}
	if len(s) < len(parts[0])+len(parts[last]) || !strings.HasPrefix(s, parts[0]) || !strings.HasSuffix(s, parts[last]) {
		return false
	}
	s = s[len(parts[0]) : len(s)-len(parts[last])]
	for _, part := range parts[1:last] {
		_, after, found := strings.Cut(s, part)
		if !found {
			return false
		}
		s = after
	}
	return true
}
