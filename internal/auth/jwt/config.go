package jwt

import (
	"context"
	"slices"
	"strings"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/auth"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// config is whose tokens a mount accepts. The client secret is kept apart. CBOR keys are on disk: never renumber, only append.
type config struct {
	DiscoveryURL  string   `cbor:"1,keyasint,omitempty"`
	DiscoveryCA   string   `cbor:"2,keyasint,omitempty"` // PEM
	JWKSURL       string   `cbor:"3,keyasint,omitempty"`
	JWKSCA        string   `cbor:"4,keyasint,omitempty"` // PEM
	JWKSPairs     []pair   `cbor:"5,keyasint,omitempty"`
	PublicKeys    []string `cbor:"6,keyasint,omitempty"` // PEM
	BoundIssuer   string   `cbor:"7,keyasint,omitempty"`
	Algorithms    []string `cbor:"8,keyasint,omitempty"` // none: all that have public keys
	DefaultRole   string   `cbor:"9,keyasint,omitempty"`
	ClientID      string   `cbor:"10,keyasint,omitempty"`
	ResponseMode  string   `cbor:"11,keyasint,omitempty"` // "", query or form_post
	ResponseTypes []string `cbor:"12,keyasint,omitempty"` // code, if anything
}

// pair is an issuer's keys and the authorities that vouch for where they are.
type pair struct {
	URL string `cbor:"1,keyasint"`
	CA  string `cbor:"2,keyasint,omitempty"` // PEM
}

var configFields = []engine.Field{
	{Name: "oidc_discovery_url", Type: engine.String, Help: "URL of an issuer that describes itself (OpenID Connect Discovery), exactly as its tokens name it; without .well-known"},
	{Name: "oidc_discovery_ca_pem", Type: engine.String, Help: "authorities that vouch for that URL, in PEM; none: the system's"},
	{Name: "oidc_client_id", Type: engine.String, Help: "under which the provider knows lessor, for logins in a browser"},
	{Name: "oidc_client_secret", Type: engine.String, Help: "of that client; never returned"},
	{Name: "oidc_response_mode", Type: engine.String, Help: "how the provider sends people back: query (the default) or form_post"},
	{Name: "oidc_response_types", Type: engine.Strings, Help: "what the provider is asked for: code"},
	{Name: "jwks_url", Type: engine.String, Help: "URL of an issuer's keys, a JSON Web Key Set"},
	{Name: "jwks_ca_pem", Type: engine.String, Help: "authorities that vouch for that URL, in PEM; none: the system's"},
	{Name: "jwks_pairs", Type: engine.Any, Help: "several of both: a list of objects with jwks_url and jwks_ca_pem"},
	{Name: "jwt_validation_pubkeys", Type: engine.Any, Help: "keys that tokens are signed with, public keys or certificates in PEM: a list, or one"},
	{Name: "bound_issuer", Type: engine.String, Help: "issuer that tokens must name (iss); with oidc_discovery_url: instead of that"},
	{Name: "jwt_supported_algs", Type: engine.Strings, Help: "algorithms that tokens may be signed with; none: all that have public keys"},
	{Name: "default_role", Type: engine.String, Help: "role of logins that name none"},
	{Name: "provider_config", Type: engine.Map, Help: "settings of particular providers: none are supported"},
	{Name: "namespace_in_state", Type: engine.Bool, Help: "accepted for Vault's sake: there is one namespace"},
}

func configKey(r *engine.Request) store.Key {
	return store.Key{Table: store.Config, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "config")}
}

// secretKey is where the client secret is.
func secretKey(r *engine.Request) store.Key {
	return store.Key{Table: store.Secrets, Name: store.MountKey(r.Mount.Namespace, r.Mount.UUID, "client")}
}

// loadConfig is the mount's configuration; nil if there is none yet.
func loadConfig(r *engine.Request) (*config, store.Row, error) {
	row, err := r.View.Get(configKey(r))
	if err != nil || !row.Exists() {
		return nil, row, err
	}
	c := &config{}
	return c, row, auth.Decode(row.Value, c)
}

// configured is loadConfig for what cannot do without.
func configured(r *engine.Request) (*config, store.Row, error) {
	c, row, err := loadConfig(r)
	if err == nil && c == nil {
		err = api.Errorf(api.Invalid, "could not load configuration: this method is not configured yet")
	}
	return c, row, err
}

// sources are where the issuers' keys are; none for keys that the configuration has itself.
func (c *config) sources() []source {
	switch {
	case c.DiscoveryURL != "":
		return []source{{url: c.DiscoveryURL, ca: c.DiscoveryCA, discovery: true}}
	case c.JWKSURL != "":
		return []source{{url: c.JWKSURL, ca: c.JWKSCA}}
	}
	var out []source
	for _, p := range c.JWKSPairs {
		out = append(out, source{url: p.URL, ca: p.CA})
	}
	return out
}

// issuer is what tokens must name as theirs; empty: anything.
func (c *config) issuer() string {
	if c.BoundIssuer != "" {
		return c.BoundIssuer
	}
	return c.DiscoveryURL
}

func (b *Backend) readConfig(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c, row, err := loadConfig(r)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, &api.Error{Kind: api.NotFound}
	}
	pairs := []any{}
	for _, p := range c.JWKSPairs {
		pairs = append(pairs, map[string]any{"jwks_url": p.URL, "jwks_ca_pem": p.CA})
	}
	reply := &engine.Reply{Warnings: b.troubles(r, c, row.Version)}
	status := "valid"
	if len(reply.Warnings) > 0 {
		status = reply.Warnings[0]
	}
	reply.Data = map[string]any{
		"oidc_discovery_url": c.DiscoveryURL, "oidc_discovery_ca_pem": c.DiscoveryCA, "oidc_client_id": c.ClientID, "oidc_response_mode": c.ResponseMode,
		"oidc_response_types": append([]string{}, c.ResponseTypes...), "jwks_url": c.JWKSURL, "jwks_ca_pem": c.JWKSCA, "jwks_pairs": pairs,
		"jwt_validation_pubkeys": append([]string{}, c.PublicKeys...), "bound_issuer": c.BoundIssuer,
		"jwt_supported_algs": append([]string{}, c.Algorithms...), "default_role": c.DefaultRole, "provider_config": map[string]any{},
		"namespace_in_state": false, "status": status,
	}
	return reply, nil
}

// writeConfig replaces the configuration, after the issuers that it names have answered.
func (b *Backend) writeConfig(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	c, err := sentConfig(r)
	if err != nil {
		return nil, err
	}
	row, err := r.View.Get(configKey(r))
	if err != nil {
		return nil, err
	}
	reply := &engine.Reply{}
	reply.Txn.Require(row)
	reply.Txn.Put(row.Table, row.Name, auth.Encode(c))
	k, secret := secretKey(r), r.Secret("oidc_client_secret")
	if secret.Empty() {
		reply.Txn.Delete(k.Table, k.Name)
	} else {
		value := []byte(secret.Reveal())
		reply.Txn.Put(k.Table, k.Name, value)
		reply.Shown = []audit.Shown{{Path: "config", Fingerprint: r.Opener.Fingerprint(r.Mount.UUID, "client", value), How: "written"}}
	}
	if sources := c.sources(); len(sources) > 0 {
		reply.First = func(ctx context.Context) ([]string, error) { return nil, reachable(ctx, sources) }
	}
	return reply, nil
}

// reachable refuses issuers that do not show their keys.
func reachable(ctx context.Context, sources []source) error {
	for _, s := range sources {
		if _, _, err := s.fetch(ctx); err != nil {
			what := "jwks URL"
			if s.discovery {
				what = "oidc discovery URL"
			}
			return api.Errorf(api.Invalid, "error checking %s: %v", what, err)
		}
	}
	return nil
}

// sentConfig is the configuration that the client sent. Errors are of kind Invalid.
func sentConfig(r *engine.Request) (*config, error) {
	c := &config{
		DiscoveryURL: r.Str("oidc_discovery_url"), DiscoveryCA: r.Str("oidc_discovery_ca_pem"), JWKSURL: r.Str("jwks_url"), JWKSCA: r.Str("jwks_ca_pem"),
		BoundIssuer: r.Str("bound_issuer"), Algorithms: r.List("jwt_supported_algs"), DefaultRole: strings.ToLower(r.Str("default_role")),
		ClientID: r.Str("oidc_client_id"), ResponseMode: r.Str("oidc_response_mode"), ResponseTypes: r.List("oidc_response_types"),
	}
	var err error
	if c.JWKSPairs, err = sentPairs(r.Any("jwks_pairs")); err != nil {
		return nil, err
	}
	if c.PublicKeys, err = sentKeys(r.Any("jwt_validation_pubkeys")); err != nil {
		return nil, err
	}
	ways := 0
	for _, set := range []bool{c.DiscoveryURL != "", c.JWKSURL != "", len(c.JWKSPairs) > 0, len(c.PublicKeys) > 0} {
		if set {
			ways++
		}
	}
	secret := !r.Secret("oidc_client_secret").Empty()
	switch {
	case ways != 1:
		return nil, api.Errorf(api.Invalid, "exactly one of 'jwt_validation_pubkeys', 'jwks_url', 'jwks_pairs' or 'oidc_discovery_url' must be set")
	case (c.ClientID != "") != secret:
		return nil, api.Errorf(api.Invalid, "both 'oidc_client_id' and 'oidc_client_secret' must be set for OIDC")
	case secret && c.DiscoveryURL == "":
		return nil, api.Errorf(api.Invalid, "'oidc_discovery_url' must be set for OIDC")
	case len(r.Map("provider_config")) > 0:
		return nil, api.Errorf(api.Invalid, "provider_config is not supported: groups must come as a claim (groups_claim), in the ID token or from the provider's userinfo endpoint")
	case !slices.Contains([]string{"", "query", "form_post"}, c.ResponseMode):
		return nil, api.Errorf(api.Invalid, "invalid response_mode %q: query or form_post", c.ResponseMode)
	case slices.ContainsFunc(c.ResponseTypes, func(t string) bool { return t != "code" }):
		return nil, api.Errorf(api.Invalid, "unsupported response_type: the provider is asked for a code, and for tokens never by way of the browser")
	}
	for _, alg := range c.Algorithms {
		if !slices.Contains(algorithms, jose.SignatureAlgorithm(alg)) {
			return nil, api.Errorf(api.Invalid, "unsupported signing algorithm %q: one of %v", alg, algorithms)
		}
	}
	for _, s := range c.sources() {
		if err := checkURL(s.url); err != nil {
			return nil, api.Errorf(api.Invalid, "%v", err)
		}
		w, err := newWeb(s.ca)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "%v", err)
		}
		w.close()
	}
	_, err = publicKeys(c.PublicKeys)
	return c, err
}

// sentKeys takes one key or a list: a key in PEM has no comma, but a list must not be cut at line ends either.
func sentKeys(sent any) ([]string, error) {
	if text, ok := sent.(string); ok {
		if text == "" {
			return nil, nil
		}
		return []string{text}, nil
	}
	keys, ok := engine.ParseList(sent)
	if !ok || len(keys) > mostKeys {
		return nil, api.Errorf(api.Invalid, "jwt_validation_pubkeys is no list of at most %d keys", mostKeys)
	}
	return keys, nil
}

const mostPairs = 16

func sentPairs(sent any) ([]pair, error) {
	if sent == nil || sent == "" {
		return nil, nil
	}
	bad := api.Errorf(api.Invalid, "jwks_pairs is no list of at most %d objects with jwks_url and jwks_ca_pem", mostPairs)
	list, ok := sent.([]any)
	if !ok || len(list) > mostPairs {
		return nil, bad
	}
	var out []pair
	for _, e := range list {
		object, ok := e.(map[string]any)
		if !ok {
			return nil, bad
		}
		at, ok := object["jwks_url"].(string)
		ca, caOK := object["jwks_ca_pem"].(string)
		if !ok || !caOK && object["jwks_ca_pem"] != nil {
			return nil, bad
		}
		out = append(out, pair{at, ca})
	}
	return out, nil
}

// clientSecret is lessor's own at the provider.
func clientSecret(r *engine.Request) (lessor.Secret, store.Row, error) {
	row, err := r.View.Get(secretKey(r))
	if err != nil || !row.Exists() {
		return lessor.Secret{}, row, err
	}
	s, err := r.Opener.Open(r.Grant, row)
	return s, row, err
}
