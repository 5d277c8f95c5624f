package jwt

import (
	"context"
	"encoding/json"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/store"
)

// The types of roles: programs that have a token, and people who get one in a browser.
const (
	typeJWT  = "jwt"
	typeOIDC = "oidc"
)

// role says whom a login is for and on which terms it gives tokens. Names are lower case. CBOR keys are on disk: never
// renumber, only append.
type role struct {
	Type         string              `cbor:"1,keyasint"`
	UserClaim    string              `cbor:"2,keyasint"`
	UserPointer  bool                `cbor:"3,keyasint,omitempty"` // UserClaim is a JSON pointer
	Audiences    []string            `cbor:"4,keyasint,omitempty"`
	Subject      string              `cbor:"5,keyasint,omitempty"`
	Claims       map[string][]string `cbor:"6,keyasint,omitempty"`
	Globs        bool                `cbor:"7,keyasint,omitempty"` // values of Claims may have "*"
	Condition    string              `cbor:"8,keyasint,omitempty"` // in CEL
	Mappings     map[string]string   `cbor:"9,keyasint,omitempty"` // claim → key of metadata
	GroupsClaim  string              `cbor:"10,keyasint,omitempty"`
	ClockSkew    time.Duration       `cbor:"11,keyasint,omitempty"` // 0: usual; negative: none
	ExpiryLeeway time.Duration       `cbor:"12,keyasint,omitempty"` // 0: usual; negative: none
	BeforeLeeway time.Duration       `cbor:"13,keyasint,omitempty"` // 0: usual; negative: none
	RedirectURIs []string            `cbor:"14,keyasint,omitempty"`
	Scopes       []string            `cbor:"15,keyasint,omitempty"` // besides openid
	MaxAge       time.Duration       `cbor:"16,keyasint,omitempty"` // since the person showed the provider who he is; 0: any
	Verbose      bool                `cbor:"17,keyasint,omitempty"` // accepted for Vault's sake: claims are never logged
	OneUse       bool                `cbor:"18,keyasint,omitempty"` // a token is good for one login
	Device       bool                `cbor:"19,keyasint,omitempty"` // people are sent to the provider with a code to type (RFC 8628)
	PollInterval time.Duration       `cbor:"20,keyasint,omitempty"` // of device logins; 0: as the provider says
	Token        engine.TokenTerms   `cbor:"21,keyasint"`
	Older        []string            `cbor:"22,keyasint,omitempty"` // parameters last written by their older names
}

// What leeways are unless the role says otherwise, as Vault's.
const (
	usualSkew   = time.Minute
	usualLeeway = 150 * time.Second
)

var older = auth.Older{
	"token_policies": "policies", "token_ttl": "ttl", "token_max_ttl": "max_ttl", "token_period": "period", "token_num_uses": "num_uses", "token_bound_cidrs": "bound_cidrs",
}

var roleFields = func() []engine.Field {
	terms := auth.TokenFields()
	return slices.Concat([]engine.Field{
		{Name: "role_type", Type: engine.String, Help: "oidc (the default): people log in in a browser; jwt: programs show a token that they have"},
		{Name: "user_claim", Type: engine.String, Help: "claim that tells who it is: the name of the entity's alias"},
		{Name: "user_claim_json_pointer", Type: engine.Bool, Help: "user_claim is a JSON pointer, such as /kubernetes.io/serviceaccount/name"},
		{Name: "bound_audiences", Type: engine.Strings, Help: "audiences (aud), one of which the token must name; needed where tokens have one"},
		{Name: "bound_subject", Type: engine.String, Help: "subject (sub) that the token must have"},
		{Name: "bound_claims", Type: engine.Map, Help: "claims that the token must have, each with its value or a list of those accepted; names that begin with a slash are JSON pointers"},
		{Name: "bound_claims_type", Type: engine.String, Help: "string (the default): values are compared; glob: * in them stands for anything"},
		{Name: "bound_cel", Type: engine.String, Help: `condition in CEL over claims that must be true: claims.ref.startsWith("refs/tags/")`},
		{Name: "claim_mappings", Type: engine.Pairs, Help: "claims that go into the metadata of tokens and aliases, each with the key there"},
		{Name: "groups_claim", Type: engine.String, Help: "claim with the list of groups: names of group aliases at this method"},
		{Name: "clock_skew_leeway", Type: engine.Any, Help: "by how much clocks may differ: 60 s unless said otherwise; -1: not at all"},
		{Name: "expiration_leeway", Type: engine.Any, Help: "how long a token without an end (exp) is good: 150 s unless said otherwise; -1: not at all"},
		{Name: "not_before_leeway", Type: engine.Any, Help: "how long before its end a token without a beginning (nbf, iat) is good: 150 s unless said otherwise; -1: not at all"},
		{Name: "one_use", Type: engine.Bool, Help: "a token is good for one login at this method; it must have an id (jti)"},
		{Name: "allowed_redirect_uris", Type: engine.Strings, Help: "where the provider may send people back to: http://localhost:8250/oidc/callback for the command line"},
		{Name: "oidc_scopes", Type: engine.Strings, Help: "what the provider is asked for besides openid"},
		{Name: "max_age", Type: engine.Duration, Help: "how long ago people may have shown the provider who they are; 0: any time"},
		{Name: "callback_mode", Type: engine.String, Help: "client (the default): the browser comes back to who logs in; device: people type a code at the provider's"},
		{Name: "poll_interval", Type: engine.Duration, Help: "how long to wait between two questions whether the person is done; 0: as the provider says"},
		{Name: "verbose_oidc_logging", Type: engine.Bool, Help: "accepted for Vault's sake: what tokens say is never logged"},
	}, terms, older.Fields(terms))
}()

func roleKey(r *engine.Request, name string) store.Key {
	return store.Key{Table: store.Config, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "role/", name)}
}

// roleName is the role that the path names.
func roleName(r *engine.Request) (string, error) {
	name := strings.ToLower(r.Param("name"))
	return name, auth.CheckName("role name", name)
}

// loadRole finds a role; nil if there is none.
func loadRole(r *engine.Request, name string) (*role, store.Row, error) {
	row, err := r.View.Get(roleKey(r, name))
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	ro := &role{}
	return ro, row, auth.Decode(row.Value, ro)
}

func roleExists(r *engine.Request) (bool, error) {
	row, err := r.View.Get(roleKey(r, strings.ToLower(r.Param("name"))))
	return row.Exists(), err
}

func listRoles(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	names, err := engine.List(r.View, store.Config, roleKey(r, "").Name)
	if err != nil {
		return nil, err
	}
	return engine.Keys(names)
}

func readRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := roleName(r)
	if err != nil {
		return nil, err
	}
	ro, _, err := loadRole(r, name)
	if err != nil {
		return nil, err
	}
	if ro == nil {
		return nil, &api.Error{Kind: api.NotFound}
	}
	return &engine.Reply{Data: ro.data()}, nil
}

// data is the role as clients see it.
func (ro *role) data() map[string]any {
	claims := map[string]any{}
	for name, values := range ro.Claims {
		if claims[name] = values; len(values) == 1 {
			claims[name] = values[0]
		}
	}
	mappings := ro.Mappings
	if mappings == nil {
		mappings = map[string]string{}
	}
	kind, mode := "string", "client"
	if ro.Globs {
		kind = "glob"
	}
	if ro.Device {
		mode = "device"
	}
	data := map[string]any{
		"role_type": ro.Type, "user_claim": ro.UserClaim, "user_claim_json_pointer": ro.UserPointer, "bound_audiences": append([]string{}, ro.Audiences...),
		"bound_subject": ro.Subject, "bound_claims": claims, "bound_claims_type": kind, "bound_cel": ro.Condition, "claim_mappings": mappings,
		"groups_claim": ro.GroupsClaim, "clock_skew_leeway": auth.Seconds(ro.ClockSkew), "expiration_leeway": auth.Seconds(ro.ExpiryLeeway),
		"not_before_leeway": auth.Seconds(ro.BeforeLeeway), "one_use": ro.OneUse, "allowed_redirect_uris": append([]string{}, ro.RedirectURIs...),
		"oidc_scopes": append([]string{}, ro.Scopes...), "max_age": auth.Seconds(ro.MaxAge), "callback_mode": mode,
		"poll_interval": auth.Seconds(ro.PollInterval), "verbose_oidc_logging": ro.Verbose,
	}
	auth.TermsData(&ro.Token, data)
	older.Show(data, ro.Older)
	return data
}

func writeRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := roleName(r)
	if err != nil {
		return nil, err
	}
	ro, row, err := loadRole(r, name)
	if err != nil {
		return nil, err
	}
	if ro == nil {
		ro = &role{Type: typeOIDC}
	}
	if err := ro.amend(r); err != nil {
		return nil, err
	}
	if err := ro.check(); err != nil {
		return nil, err
	}
	reply := &engine.Reply{Warnings: ro.warnings()}
	reply.Txn.Require(row)
	reply.Txn.Put(row.Table, row.Name, auth.Encode(ro))
	return reply, nil
}

func removeRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name, err := roleName(r)
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	k := roleKey(r, name)
	reply.Txn.Delete(k.Table, k.Name)
	return reply, nil
}

// amend takes over what the client sent; what is not sent stays. Errors are of kind Invalid.
func (ro *role) amend(r *engine.Request) error {
	for name, to := range map[string]*string{
		"role_type": &ro.Type, "user_claim": &ro.UserClaim, "bound_subject": &ro.Subject, "bound_cel": &ro.Condition, "groups_claim": &ro.GroupsClaim,
	} {
		if r.Has(name) {
			*to = r.Str(name)
		}
	}
	for name, to := range map[string]*bool{
		"user_claim_json_pointer": &ro.UserPointer, "one_use": &ro.OneUse, "verbose_oidc_logging": &ro.Verbose,
	} {
		if r.Has(name) {
			*to = r.Bool(name)
		}
	}
	for name, to := range map[string]*[]string{"bound_audiences": &ro.Audiences, "allowed_redirect_uris": &ro.RedirectURIs, "oidc_scopes": &ro.Scopes} {
		if r.Has(name) {
			*to = r.List(name)
		}
	}
	for name, to := range map[string]*time.Duration{"max_age": &ro.MaxAge, "poll_interval": &ro.PollInterval} {
		if r.Has(name) {
			*to = r.Dur(name)
		}
	}
	for name, to := range map[string]*time.Duration{
		"clock_skew_leeway": &ro.ClockSkew, "expiration_leeway": &ro.ExpiryLeeway, "not_before_leeway": &ro.BeforeLeeway,
	} {
		if !r.Has(name) {
			continue
		}
		var ok bool
		if *to, ok = leeway(r.Any(name)); !ok {
			return api.Errorf(api.Invalid, "field %q is not a duration, nor negative", name)
		}
	}
	if r.Has("bound_claims") {
		ro.Claims = map[string][]string{}
		for name, v := range r.Map("bound_claims") {
			values, ok := scalars(v)
			if !ok || len(values) == 0 {
				return api.Errorf(api.Invalid, "bound_claims: the value of %q is neither a text nor a list of some", name)
			}
			ro.Claims[name] = values
		}
	}
	if r.Has("claim_mappings") {
		ro.Mappings = r.Pairs("claim_mappings")
	}
	switch kind := r.Str("bound_claims_type"); {
	case !r.Has("bound_claims_type"):
	case kind == "string" || kind == "glob":
		ro.Globs = kind == "glob"
	default:
		return api.Errorf(api.Invalid, "invalid 'bound_claims_type': %s: string or glob", kind)
	}
	switch mode := r.Str("callback_mode"); {
	case !r.Has("callback_mode"):
	case mode == "client" || mode == "device":
		ro.Device = mode == "device"
	case mode == "direct":
		return api.Errorf(api.Invalid, "callback_mode direct is not supported: client, or device where the browser is elsewhere")
	default:
		return api.Errorf(api.Invalid, "invalid 'callback_mode': %s: client or device", mode)
	}
	if err := auth.ParseTokenTerms(r, &ro.Token, older); err != nil {
		return err
	}
	ro.Older = older.Used(r, ro.Older)
	return nil
}

// check refuses roles that nobody could log in with, or more people than anybody means. Errors are of kind Invalid.
func (ro *role) check() error {
	switch {
	case ro.Type != typeJWT && ro.Type != typeOIDC:
		return api.Errorf(api.Invalid, "invalid 'role_type': %s: jwt or oidc", ro.Type)
	case ro.UserClaim == "":
		return api.Errorf(api.Invalid, "a user claim must be defined on the role")
	case ro.UserPointer && !strings.HasPrefix(ro.UserClaim, "/"):
		return api.Errorf(api.Invalid, "user_claim is no JSON pointer: one begins with a slash")
	case ro.Type == typeJWT && len(ro.Audiences) == 0 && ro.Subject == "" && len(ro.Claims) == 0 && ro.Condition == "" && len(ro.Token.BoundCIDRs) == 0:
		return api.Errorf(api.Invalid, "must have at least one bound constraint when creating/updating a role")
	case ro.Type == typeOIDC && len(ro.RedirectURIs) == 0 && !ro.Device:
		return api.Errorf(api.Invalid, "'allowed_redirect_uris' must be set if 'role_type' is 'oidc' or unspecified.")
	case ro.Type == typeJWT && ro.Device:
		return api.Errorf(api.Invalid, "'callback_mode' is for roles of type oidc")
	case ro.OneUse && max(ro.ClockSkew, ro.ExpiryLeeway, ro.BeforeLeeway) > widest.skew:
		return api.Errorf(api.Invalid, "a role with one_use takes leeways of %v at most: a token that was used is not remembered for longer", widest.skew)
	case ro.Type == typeJWT && ro.MaxAge > 0:
		return api.Errorf(api.Invalid, "'max_age' is for roles of type oidc")
	}
	for _, at := range ro.RedirectURIs {
		if u, err := url.Parse(at); err != nil || u.Scheme == "" || u.Host == "" || u.Fragment != "" {
			return api.Errorf(api.Invalid, "allowed_redirect_uris: %q is no URL to come back to", at)
		}
	}
	seen := map[string]bool{"role": true}
	for claim, key := range ro.Mappings {
		switch {
		case key == "role":
			return api.Errorf(api.Invalid, "metadata key %q is reserved and may not be a mapping destination", key)
		case key == "" || claim == "" || seen[key]:
			return api.Errorf(api.Invalid, "multiple keys are mapped to metadata key %q", key)
		}
		seen[key] = true
	}
	if ro.Condition == "" {
		return nil
	}
	_, err := compile(ro.Condition)
	return err
}

// warnings tell of what a role permits that may not be meant.
func (ro *role) warnings() []string {
	var out []string
	if ro.Type == typeJWT && len(ro.Audiences) == 0 {
		out = append(out, "Without bound_audiences, tokens that name an audience are refused; set it to what your issuer's tokens say (aud).")
	}
	if ro.Type == typeJWT && ro.Subject == "" && len(ro.Claims) == 0 && ro.Condition == "" {
		out = append(out, "This role is for everybody whom the issuer gives tokens for the audience: a public issuer gives them to anybody. Set bound_claims, bound_subject or bound_cel.")
	}
	return out
}

// leeway reads a duration that may be negative: then it is none at all.
func leeway(sent any) (time.Duration, bool) {
	text := ""
	switch v := sent.(type) {
	case string:
		text = strings.TrimSpace(v)
	case json.Number:
		text = v.String()
	}
	if rest, negative := strings.CutPrefix(text, "-"); negative {
		_, number := strconv.ParseFloat(rest, 64)
		_, duration := time.ParseDuration(rest)
		return -time.Second, number == nil || duration == nil
	}
	return engine.ParseDuration(sent)
}

// leeways are by how much times may be off.
func (ro *role) leeways() leeways {
	most := time.Duration(math.MaxInt64 / 4)
	if ro.OneUse { // and was written by a version that took more
		most = widest.skew
	}
	of := func(d, usual time.Duration) time.Duration {
		switch {
		case d == 0:
			return usual
		case d < 0:
			return 0
		}
		return min(d, most)
	}
	return leeways{skew: of(ro.ClockSkew, usualSkew), expiry: of(ro.ExpiryLeeway, usualLeeway), notBefore: of(ro.BeforeLeeway, usualLeeway)}
}
