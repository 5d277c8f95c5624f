package jwt_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth/jwt"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/oidctest"
	"github.com/lessor-dev/lessor/internal/store"
)

const (
	put = lessor.Update
	get = lessor.Read
	ls  = lessor.List
	del = lessor.Delete
)

func TestConform(t *testing.T) { enginetest.Conform(t, jwt.New(), nil) }

// body is a JSON object.
func body(t testing.TB, fields map[string]any) string {
	t.Helper()
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// bench is a method that accepts the tokens of p by discovery.
func bench(t *testing.T, p *oidctest.Provider) *enginetest.Bench {
	t.Helper()
	b := enginetest.New(t, jwt.New(), nil)
	p.Now = b.Clock.Now
	tried(t, b, "config", map[string]any{"oidc_discovery_url": p.URL, "oidc_discovery_ca_pem": p.CA})
	return b
}

// tried writes what is tried before it is stored.
func tried(t *testing.T, b *enginetest.Bench, path string, fields map[string]any) {
	t.Helper()
	act, err := b.Begin(put, path, body(t, fields))
	if err == nil && act.Reply.First != nil {
		_, err = act.Reply.First(t.Context())
	}
	if err == nil {
		err = act.Commit()
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func login(b *enginetest.Bench, role, token string) (*enginetest.Act, error) {
	return b.BeginAs(&lessor.Principal{}, put, "login", body(b.T, map[string]any{"role": role, "jwt": token}))
}

// admitted is a login that succeeds.
func admitted(t *testing.T, b *enginetest.Bench, role, token string) *engine.Login {
	t.Helper()
	act, err := login(b, role, token)
	if err != nil {
		t.Fatal(err)
	}
	if err := act.Commit(); err != nil {
		t.Fatal(err)
	}
	return act.Reply.Login
}

func refused(t *testing.T, b *enginetest.Bench, role, token, want string) {
	t.Helper()
	_, err := login(b, role, token)
	if err == nil {
		t.Fatal("logged in")
	}
	if err.Error() != want || api.KindOf(err) != api.Invalid {
		t.Fatalf("refused with %s %q, want %q", api.KindOf(err), err, want)
	}
}

const (
	badSignature = "error validating token: error verifying token signature: no known key successfully validated the token signature"
	notAccepted  = "error validating token: not a JWT that is signed in a way which is accepted here"
)

// claims are good ones, apart from some; nil takes one away.
func claims(b *enginetest.Bench, p *oidctest.Provider, with map[string]any) map[string]any {
	now := b.Clock.Now()
	all := map[string]any{"iss": p.URL, "aud": "lessor", "sub": "me", "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix()}
	maps.Copy(all, with)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	return all
}

// Tokens as they are presented by those who have no first secret.
func TestWorkloads(t *testing.T) {
	p := oidctest.New(t)
	b := bench(t, p)
	for _, c := range []struct {
		name   string
		role   map[string]any
		claims string // JSON; besides iss, aud and times
		login  engine.Login
		not    map[string]any // each of these changes is refused
	}{
		{
			name: "github actions",
			role: map[string]any{
				"user_claim": "repository", "bound_claims_type": "glob",
				"bound_claims":   map[string]any{"repository": "octo-org/octo-repo", "ref": []string{"refs/heads/main", "refs/tags/v*"}},
				"claim_mappings": map[string]any{"actor": "actor", "run_id": "run"},
			},
			claims: `{"jti":"example-id","sub":"repo:octo-org/octo-repo:environment:prod","environment":"prod","ref":"refs/tags/v1.2","sha":"example-sha",
				"repository":"octo-org/octo-repo","repository_owner":"octo-org","actor_id":"12","repository_visibility":"private","repository_id":"74",
				"repository_owner_id":"65","run_id":"example-run-id","run_number":"10","run_attempt":"2","runner_environment":"github-hosted","actor":"octocat",
				"workflow":"example-workflow","head_ref":"","base_ref":"","event_name":"workflow_dispatch","ref_type":"tag",
				"job_workflow_ref":"octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main"}`,
			login: engine.Login{
				Alias: "octo-org/octo-repo", Name: "octo-org/octo-repo",
				Metadata: map[string]string{"role": "workload", "actor": "octocat", "run": "example-run-id"},
			},
			not: map[string]any{"ref": "refs/heads/feature", "repository": "octo-org/octo-repo2"},
		},
		{
			name: "gitlab",
			role: map[string]any{
				"user_claim": "project_path", "bound_claims": map[string]any{"project_id": "22", "ref_protected": true},
				"groups_claim": "groups_direct",
				"bound_cel":    `claims.ref_type == "branch" && claims.project_path.startsWith("my-group/") && int(claims.runner_id) > 0`,
			},
			claims: `{"namespace_id":"72","namespace_path":"my-group","project_id":"22","project_path":"my-group/my-project","user_id":"1","user_login":"sample-user",
				"user_email":"sample-user@example.com","user_identities":[{"provider":"github","extern_uid":"2435223452345"}],"pipeline_id":"574",
				"pipeline_source":"push","job_id":"302","ref":"feature-branch-1","ref_type":"branch","ref_path":"refs/heads/feature-branch-1","ref_protected":"true",
				"groups_direct":["mygroup/mysubgroup","myothergroup/myothersubgroup"],"environment":"test-environment2","runner_id":1,"runner_environment":"self-hosted",
				"sha":"714a629c0b401fdce83e847fc9589983fc6f46bc","jti":"235b3a54-b797-45c7-ae9a-f72d7bc6ef5b","sub":"project_path:my-group/my-project:ref_type:branch:ref:feature-branch-1"}`,
			login: engine.Login{
				Alias: "my-group/my-project", Name: "my-group/my-project", Metadata: map[string]string{"role": "workload"},
				Groups: []string{"mygroup/mysubgroup", "myothergroup/myothersubgroup"},
			},
			not: map[string]any{"ref_protected": "false", "ref_type": "tag", "runner_id": 0, "project_path": "other/my-project"},
		},
		{
			name: "kubernetes",
			role: map[string]any{
				"user_claim": "/kubernetes.io/serviceaccount/uid", "user_claim_json_pointer": true, "bound_subject": "system:serviceaccount:billing:api",
				"bound_claims":   map[string]any{"/kubernetes.io/namespace": "billing"},
				"claim_mappings": map[string]any{"/kubernetes.io/serviceaccount/name": "service_account_name", "/kubernetes.io/node/name": "node"},
			},
			claims: `{"jti":"ea28ed49-2e11-4280-9ec5-bc3d1d84661a","kubernetes.io":{"namespace":"billing","node":{"name":"127.0.0.1","uid":"58456cb0-dd00-45ed-b797-5578fdceaced"},
				"pod":{"name":"api-69cbfb9798-jv9gn","uid":"778a530c-b3f4-47c0-9cd5-ab018fb64f33"},"serviceaccount":{"name":"api","uid":"a087d5a0-e1dd-43ec-93ac-f13d89cd13af"},
				"warnafter":1700081020},"sub":"system:serviceaccount:billing:api"}`,
			login: engine.Login{
				Alias: "a087d5a0-e1dd-43ec-93ac-f13d89cd13af", Name: "a087d5a0-e1dd-43ec-93ac-f13d89cd13af", Instance: "778a530c-b3f4-47c0-9cd5-ab018fb64f33",
				Metadata: map[string]string{"role": "workload", "service_account_name": "api", "node": "127.0.0.1"},
			},
			not: map[string]any{"sub": "system:serviceaccount:billing:other", "kubernetes.io": map[string]any{"namespace": "default"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.role["role_type"], c.role["bound_audiences"], c.role["token_policies"] = "jwt", "lessor", "app"
			b.Do(del, "role/workload", "")
			b.Do(put, "role/workload", body(t, c.role))
			var said map[string]any
			if err := json.Unmarshal([]byte(c.claims), &said); err != nil {
				t.Fatal(err)
			}
			c.login.Role, c.login.AliasMeta = "workload", c.login.Metadata
			c.login.Token.Policies = []string{"app"}
			token := p.Sign(claims(b, p, said))
			if got := admitted(t, b, "Workload", token); !reflect.DeepEqual(*got, c.login) {
				t.Errorf("got  %+v\nwant %+v", *got, c.login)
			}
			b.NoTrace(token)
			for claim, value := range c.not {
				other := maps.Clone(said)
				other[claim] = value
				if _, err := login(b, "workload", p.Sign(claims(b, p, other))); api.KindOf(err) != api.Invalid {
					t.Errorf("with %s = %v: %v", claim, value, err)
				}
			}
		})
	}
}

// What is wrong with a token, and what is said of it.
func TestRefusals(t *testing.T) {
	p := oidctest.New(t)
	b := bench(t, p)
	b.Do(put, "role/app", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor,other","bound_claims":{"team":["a","b"]}}`)
	good := func(with map[string]any) map[string]any {
		all := map[string]any{"team": "a"}
		maps.Copy(all, with)
		return claims(b, p, all)
	}
	admitted(t, b, "app", p.Sign(good(nil)))
	admitted(t, b, "app", p.Sign(good(map[string]any{"aud": []string{"x", "other"}, "team": []string{"z", "b"}})))
	at := func(d time.Duration) int64 { return b.Clock.Now().Add(d).Unix() }
	for name, c := range map[string]struct {
		with map[string]any
		want string
	}{
		"expired":             {map[string]any{"exp": at(-time.Minute)}, "error validating token: invalid expiration time (exp) claim: token is expired"},
		"not yet":             {map[string]any{"nbf": at(61 * time.Second)}, "error validating token: invalid not before (nbf) claim: token not yet valid"},
		"from the future":     {map[string]any{"iat": at(61 * time.Second)}, "error validating token: invalid issued at (iat) claim: token issued in the future"},
		"no times":            {map[string]any{"exp": nil, "nbf": nil, "iat": nil}, "error validating token: no issued at (iat), not before (nbf), or expiration time (exp) claims in token"},
		"a time in words":     {map[string]any{"exp": "never"}, `error validating token: the claim "exp" is no time`},
		"an endless time":     {map[string]any{"exp": 1e300}, `error validating token: the claim "exp" is no time`},
		"old, without an end": {map[string]any{"exp": nil, "nbf": nil, "iat": at(-211 * time.Second)}, "error validating token: invalid expiration time (exp) claim: token is expired"},
		"another issuer":      {map[string]any{"iss": "https://issuer.example.com"}, "error validating token: invalid issuer (iss) claim"},
		"no issuer":           {map[string]any{"iss": nil}, "error validating token: invalid issuer (iss) claim"},
		"for others":          {map[string]any{"aud": "another"}, "error validating token: invalid audience (aud) claim: audience claim does not match any bound audience"},
		"for nobody":          {map[string]any{"aud": nil}, "error validating token: invalid audience (aud) claim: audience claim does not match any bound audience"},
		"for an object":       {map[string]any{"aud": map[string]any{"lessor": 1}}, "error validating token: invalid audience (aud) claim: audience claim does not match any bound audience"},
		"no claim":            {map[string]any{"team": nil}, `error validating claims: claim "team" is missing`},
		"another claim":       {map[string]any{"team": "c"}, `error validating claims: claim "team" does not match any associated bound claim values`},
		"a longer claim":      {map[string]any{"team": "ab"}, `error validating claims: claim "team" does not match any associated bound claim values`},
		"an object claim":     {map[string]any{"team": map[string]any{"a": "a"}}, `error validating claims: claim "team" does not match any associated bound claim values`},
		"nobody":              {map[string]any{"sub": nil}, `claim "sub" not found in token`},
		"an empty name":       {map[string]any{"sub": ""}, `claim "sub" could not be converted to string`},
		"a list of names":     {map[string]any{"sub": []string{"me"}}, `claim "sub" could not be converted to string`},
	} {
		t.Run(name, func(t *testing.T) { refused(t, b, "app", p.Sign(good(c.with)), c.want) })
	}
	token := p.Sign(good(nil))
	refused(t, b, "", token, "missing role")
	refused(t, b, "nothing", token, `role "nothing" could not be found`)
	refused(t, b, "app", "", "missing token")
	b.Do(put, "role/open", `{"role_type":"jwt","user_claim":"sub","bound_subject":"me"}`)
	refused(t, b, "open", token, "error validating token: audience claim found in JWT but no audiences bound to the role")
	admitted(t, b, "open", p.Sign(good(map[string]any{"aud": nil})))
	b.Do(put, "role/people", `{"user_claim":"sub","allowed_redirect_uris":"http://localhost:8250/oidc/callback"}`)
	refused(t, b, "people", token, "role with oidc role_type is not allowed")
	b.Do(put, "role/app", `{"token_bound_cidrs":"10.9.0.0/16"}`)
	if _, err := login(b, "app", token); api.KindOf(err) != api.Unauthenticated {
		t.Errorf("from elsewhere: %v", err)
	}
	b.Client = netip.MustParseAddr("10.9.1.1")
	admitted(t, b, "app", token)
}

// What is not signed by the issuer's key, in the way that the key is for, is nobody's.
func TestForgeries(t *testing.T) {
	p := oidctest.New(t)
	b := bench(t, p)
	b.Do(put, "role/app", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor"}`)
	said := claims(b, p, nil)
	token := p.Sign(said)
	admitted(t, b, "app", token)

	payload := strings.Split(token, ".")[1]
	header := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	parts := strings.Split(token, ".")
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	embedded, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: own}, &jose.SignerOptions{EmbedJWK: true})
	if err != nil {
		t.Fatal(err)
	}
	jws, err := embedded.Sign([]byte(body(t, said)))
	if err != nil {
		t.Fatal(err)
	}
	withKey, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	other := claims(b, p, map[string]any{"sub": "root"})
	for name, c := range map[string]struct{ token, want string }{
		"none":                   {header(`{"alg":"none"}`) + "." + payload + ".", notAccepted},
		"None":                   {header(`{"alg":"None"}`) + "." + payload + ".", notAccepted},
		"no header":              {"." + payload + ".", notAccepted},
		"an HMAC by the key":     {oidctest.Sign(t, jose.HS256, []byte(p.CA), said), notAccepted},
		"another key's":          {oidctest.Sign(t, jose.ES256, own, said), badSignature},
		"another key's, by name": {oidctest.Sign(t, jose.ES256, jose.JSONWebKey{Key: own, KeyID: "key-1"}, said), badSignature},
		"with its own key":       {withKey, badSignature},
		"of something else":      {parts[0] + "." + strings.Split(oidctest.Sign(t, jose.ES256, own, other), ".")[1] + "." + parts[2], badSignature},
		"not signed":             {parts[0] + "." + parts[1] + ".", badSignature},
		"no token":               {"x", notAccepted},
		"in JSON":                {jws.FullSerialize(), notAccepted},
		"too long":               {strings.Repeat("x", 65<<10), "the token is longer than 65536 bytes"},
		"claims of nothing":      {p.Sign(nil), "error validating token: the claims are no JSON object"},
	} {
		t.Run(name, func(t *testing.T) { refused(t, b, "app", c.token, c.want) })
	}
}

// Keys that the configuration itself has, of each kind; what an algorithm is not accepted for is refused.
func TestStaticKeys(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := func(key any) string {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	p := oidctest.New(t)
	b := enginetest.New(t, jwt.New(), nil)
	b.Do(put, "role/app", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor"}`)
	b.Do(put, "config", body(t, map[string]any{
		"jwt_validation_pubkeys": []string{public(&rsaKey.PublicKey), public(&ecKey.PublicKey), public(edPublic)}, "default_role": "app", "bound_issuer": p.URL,
	}))
	said := claims(b, p, nil)
	for alg, key := range map[jose.SignatureAlgorithm]any{jose.RS256: rsaKey, jose.PS512: rsaKey, jose.ES384: ecKey, jose.EdDSA: edKey} {
		if got := admitted(t, b, "", oidctest.Sign(t, alg, key, said)); got.Role != "app" || got.Alias != "me" {
			t.Errorf("%s: %+v", alg, got)
		}
	}
	refused(t, b, "", p.Sign(said), badSignature)
	refused(t, b, "", oidctest.Sign(t, jose.HS256, []byte(public(&rsaKey.PublicKey)), said), notAccepted)
	refused(t, b, "", oidctest.Sign(t, jose.EdDSA, edKey, []byte(`{"sub":"me","sub":"root","exp":9999999999}`)), "error validating token: a claim stands in it twice")
	b.Do(put, "config", body(t, map[string]any{"jwt_validation_pubkeys": public(&rsaKey.PublicKey), "jwt_supported_algs": "RS256", "default_role": "app"}))
	admitted(t, b, "", oidctest.Sign(t, jose.RS256, rsaKey, said))
	refused(t, b, "", oidctest.Sign(t, jose.PS256, rsaKey, said), notAccepted)
	refused(t, b, "", oidctest.Sign(t, jose.EdDSA, edKey, said), notAccepted)
	b.Run(
		enginetest.Step{Verb: put, Path: "config", Body: body(t, map[string]any{"jwt_validation_pubkeys": public(&weak.PublicKey)}), Kind: api.Invalid,
			Err: "error parsing public key: an RSA key has 2048 bits at least"},
		enginetest.Step{Verb: put, Path: "config", Body: `{"jwt_validation_pubkeys":"key"}`, Kind: api.Invalid, Err: "error parsing public key: it is not in PEM"},
	)
}

func TestConfig(t *testing.T) {
	p := oidctest.New(t)
	b := enginetest.New(t, jwt.New(), nil)
	const exactly = "exactly one of 'jwt_validation_pubkeys', 'jwks_url', 'jwks_pairs' or 'oidc_discovery_url' must be set"
	b.Run([]enginetest.Step{
		{Verb: get, Path: "config", Fails: true, Kind: api.NotFound},
		{Verb: put, Path: "login", Body: `{"role":"x","jwt":"x"}`, Kind: api.Invalid, Err: "could not load configuration: this method is not configured yet"},
		{Verb: put, Path: "config", Body: `{}`, Kind: api.Invalid, Err: exactly},
		{Verb: put, Path: "config", Body: `{"jwks_url":"https://x","oidc_discovery_url":"https://x"}`, Kind: api.Invalid, Err: exactly},
		{Verb: put, Path: "config", Body: `{"jwks_url":"http://issuer.example.com/keys"}`, Kind: api.Invalid, Err: `"http://issuer.example.com/keys" is not an https URL`},
		{Verb: put, Path: "config", Body: `{"jwks_url":"https://x","jwks_ca_pem":"y"}`, Kind: api.Invalid, Err: "the authorities to trust are not in PEM"},
		{Verb: put, Path: "config", Body: `{"jwks_url":"https://x","jwt_supported_algs":"HS256"}`, Kind: api.Invalid,
			Err: `unsupported signing algorithm "HS256": one of [RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA]`},
		{Verb: put, Path: "config", Body: `{"oidc_discovery_url":"https://x","oidc_client_id":"y"}`, Kind: api.Invalid, Err: "both 'oidc_client_id' and 'oidc_client_secret' must be set for OIDC"},
		{Verb: put, Path: "config", Body: `{"jwks_url":"https://x","oidc_client_id":"y","oidc_client_secret":"z"}`, Kind: api.Invalid, Err: "'oidc_discovery_url' must be set for OIDC"},
		{Verb: put, Path: "config", Body: `{"oidc_discovery_url":"https://x","provider_config":{"provider":"azure"}}`, Kind: api.Invalid,
			Err: "provider_config is not supported: groups must come as a claim (groups_claim), in the ID token or from the provider's userinfo endpoint"},
		{Verb: put, Path: "config", Body: `{"oidc_discovery_url":"https://x","oidc_response_types":"id_token"}`, Kind: api.Invalid,
			Err: "unsupported response_type: the provider is asked for a code, and for tokens never by way of the browser"},
	}...)
	for fields, want := range map[string]string{
		`{"oidc_discovery_url":"` + p.URL + `"}`:                                                              "error checking oidc discovery URL",
		body(t, map[string]any{"oidc_discovery_url": p.URL + "/", "oidc_discovery_ca_pem": p.CA}):             "calls itself",
		body(t, map[string]any{"jwks_url": p.URL + "/nothing", "jwks_ca_pem": p.CA}):                          "status 404",
		body(t, map[string]any{"jwks_url": p.URL + "/.well-known/openid-configuration", "jwks_ca_pem": p.CA}): "no key that verifies",
	} {
		act, err := b.Begin(put, "config", fields)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := act.Reply.First(t.Context()); api.KindOf(err) != api.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is tried: %v", fields, err)
		}
	}
	tried(t, b, "config", map[string]any{
		"oidc_discovery_url": p.URL, "oidc_discovery_ca_pem": p.CA, "oidc_client_id": "id", "oidc_client_secret": "the client's secret", "default_role": "App",
	})
	b.Run(enginetest.Step{Verb: get, Path: "config", Want: body(t, map[string]any{
		"oidc_discovery_url": p.URL, "oidc_discovery_ca_pem": p.CA, "oidc_client_id": "id", "oidc_response_mode": "", "oidc_response_types": []string{},
		"jwks_url": "", "jwks_ca_pem": "", "jwks_pairs": []string{}, "jwt_validation_pubkeys": []string{}, "bound_issuer": "", "jwt_supported_algs": []string{},
		"default_role": "app", "provider_config": map[string]any{}, "namespace_in_state": false, "status": "valid",
	})})
	b.NoTrace("the client's secret")
	if n := b.Count(store.Secrets); n != 1 {
		t.Errorf("%d secrets", n)
	}
	tried(t, b, "config", map[string]any{"jwks_url": p.URL + "/keys", "jwks_ca_pem": p.CA})
	if n := b.Count(store.Secrets); n != 0 {
		t.Errorf("%d secrets are left", n)
	}
}

func TestRoles(t *testing.T) {
	b := enginetest.New(t, jwt.New(), nil)
	const jwtRole = `"role_type":"jwt","user_claim":"sub"`
	role := func(with map[string]any) string {
		all := map[string]any{
			"role_type": "jwt", "user_claim": "sub", "user_claim_json_pointer": false, "bound_audiences": []string{}, "bound_subject": "",
			"bound_claims": map[string]any{}, "bound_claims_type": "string", "bound_cel": "", "claim_mappings": map[string]any{}, "groups_claim": "",
			"clock_skew_leeway": 0, "expiration_leeway": 0, "not_before_leeway": 0, "one_use": false, "allowed_redirect_uris": []string{}, "oidc_scopes": []string{},
			"max_age": 0, "callback_mode": "client", "poll_interval": 0, "verbose_oidc_logging": false,
			"token_bound_cidrs": []string{}, "token_explicit_max_ttl": 0, "token_max_ttl": 0, "token_no_default_policy": false, "token_num_uses": 0,
			"token_period": 0, "token_policies": []string{}, "token_ttl": 0, "token_type": "default",
		}
		maps.Copy(all, with)
		return body(t, all)
	}
	b.Run([]enginetest.Step{
		{Verb: ls, Path: "role/", Fails: true, Kind: api.NotFound},
		{Verb: get, Path: "role/app", Fails: true, Kind: api.NotFound},
		{Verb: put, Path: "role/app", Body: `{"role_type":"jwt"}`, Kind: api.Invalid, Err: "a user claim must be defined on the role"},
		{Verb: put, Path: "role/app", Body: `{` + jwtRole + `}`, Kind: api.Invalid, Err: "must have at least one bound constraint when creating/updating a role"},
		{Verb: put, Path: "role/app", Body: `{"role_type":"saml","user_claim":"sub"}`, Kind: api.Invalid, Err: "invalid 'role_type': saml: jwt or oidc"},
		{Verb: put, Path: "role/app", Body: `{"user_claim":"sub"}`, Kind: api.Invalid, Err: "'allowed_redirect_uris' must be set if 'role_type' is 'oidc' or unspecified."},
		{Verb: put, Path: "role/app", Body: `{` + jwtRole + `,"bound_claims":{"a":{}}}`, Kind: api.Invalid, Err: `bound_claims: the value of "a" is neither a text nor a list of some`},
		{Verb: put, Path: "role/app", Body: `{` + jwtRole + `,"bound_subject":"x","bound_claims_type":"regex"}`, Kind: api.Invalid, Err: "invalid 'bound_claims_type': regex: string or glob"},
		{Verb: put, Path: "role/app", Body: `{` + jwtRole + `,"bound_subject":"x","claim_mappings":{"a":"role"}}`, Kind: api.Invalid, Err: `metadata key "role" is reserved and may not be a mapping destination`},
		{Verb: put, Path: "role/app", Body: `{` + jwtRole + `,"bound_subject":"x","claim_mappings":{"a":"k","b":"k"}}`, Kind: api.Invalid, Err: `multiple keys are mapped to metadata key "k"`},
		{Verb: put, Path: "role/app", Body: `{` + jwtRole + `,"bound_cel":"claims.a"}`, Kind: api.Invalid, Err: "bound_cel must be true or false, and this is of type dyn: compare it with something"},
		{Verb: put, Path: "role/app", Body: `{` + jwtRole + `,"bound_subject":"x","clock_skew_leeway":"x"}`, Kind: api.Invalid, Err: `field "clock_skew_leeway" is not a duration, nor negative`},
		{Verb: put, Path: "role/app", Body: `{"user_claim":"sub","callback_mode":"direct"}`, Kind: api.Invalid, Err: "callback_mode direct is not supported: client, or device where the browser is elsewhere"},
		{Verb: put, Path: "role/App", Body: `{` + jwtRole + `,"bound_audiences":"a,b","bound_claims":{"n":7,"l":["x",true]},"bound_claims_type":"glob","clock_skew_leeway":-1,
			"expiration_leeway":"5m","one_use":true,"bound_cel":"claims.n == 7","claim_mappings":{"email":"mail"},"policies":"p","token_ttl":"1h"}`},
		{Verb: get, Path: "role/APP", Want: role(map[string]any{
			"bound_audiences": []string{"a", "b"}, "bound_claims": map[string]any{"n": "7", "l": []string{"x", "true"}}, "bound_claims_type": "glob", "clock_skew_leeway": -1,
			"expiration_leeway": 300, "one_use": true, "bound_cel": "claims.n == 7", "claim_mappings": map[string]any{"email": "mail"}, "policies": []string{"p"},
			"token_policies": []string{"p"}, "token_ttl": 3600,
		})},
		{Name: "what is not sent stays", Verb: put, Path: "role/app", Body: `{"one_use":false,"bound_cel":"","bound_claims":{"l":"x"},"clock_skew_leeway":0,"expiration_leeway":0,"token_policies":"q"}`},
		{Verb: get, Path: "role/app", Want: role(map[string]any{
			"bound_audiences": []string{"a", "b"}, "bound_claims": map[string]any{"l": "x"}, "bound_claims_type": "glob", "claim_mappings": map[string]any{"email": "mail"},
			"token_policies": []string{"q"}, "token_ttl": 3600,
		})},
		{Verb: ls, Path: "role/", Want: `{"keys":["app"]}`},
		{Verb: del, Path: "role/App"},
		{Verb: del, Path: "role/app"},
		{Verb: get, Path: "role/app", Fails: true, Kind: api.NotFound},
		{Verb: put, Path: "role/anybody", Body: `{` + jwtRole + `,"bound_audiences":"a"}`,
			Warn: "This role is for everybody whom the issuer gives tokens for the audience: a public issuer gives them to anybody. Set bound_claims, bound_subject or bound_cel."},
	}...)
}

// A login rests on configuration and role as they are when it commits.
func TestStaleLogins(t *testing.T) {
	p := oidctest.New(t)
	b := bench(t, p)
	for _, change := range []func(){
		func() { b.Do(put, "role/app", `{"token_policies":"less"}`) },
		func() { b.Do(del, "role/app", "") },
		func() { tried(t, b, "config", map[string]any{"jwks_url": p.URL + "/keys", "jwks_ca_pem": p.CA}) },
	} {
		b.Do(put, "role/app", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor"}`)
		act, err := login(b, "app", p.Sign(claims(b, p, nil)))
		if err != nil {
			t.Fatal(err)
		}
		change()
		enginetest.Unwritten(t, act)
	}
}

// Of many that show the same token where each is good once, one is let in.
func TestOneUse(t *testing.T) {
	p := oidctest.New(t)
	b := bench(t, p)
	b.Do(put, "role/app", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor","one_use":true}`)
	refused(t, b, "app", p.Sign(claims(b, p, nil)), "error validating token: the role takes each token once, and this one has no id (jti)")
	token := p.Sign(claims(b, p, map[string]any{"jti": "id"}))
	request := body(t, map[string]any{"role": "app", "jwt": token})
	var mu sync.Mutex
	var wg sync.WaitGroup
	in := 0
	for range 8 {
		wg.Go(func() {
			if r, err := b.Try(put, "login", request); err == nil && r.Login != nil {
				mu.Lock()
				in++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if in != 1 {
		t.Errorf("%d logged in", in)
	}
	refused(t, b, "app", token, "error validating token: the token was used before")
	admitted(t, b, "app", p.Sign(claims(b, p, map[string]any{"jti": "another"})))

	// What was used is remembered for as long as the token could be good, and no longer.
	tidy := func() {
		t.Helper()
		v, err := b.DB.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		var txn store.Txn
		if next, err := jwt.New().Tidy(v, &txn, b.Mount, "", b.Clock.Now()); err != nil || next != "" {
			t.Fatal(next, err)
		}
		if _, err := b.DB.Commit(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
	}
	b.Clock.Advance(11*time.Minute - time.Second)
	tidy()
	refused(t, b, "app", token, "error validating token: the token was used before")
	b.Clock.Advance(time.Second)
	refused(t, b, "app", token, "error validating token: invalid expiration time (exp) claim: token is expired")
	tidy()
	// Nor is it good where more leeway is given.
	b.Do(put, "role/late", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor","one_use":true,"clock_skew_leeway":"15m","expiration_leeway":"15m"}`)
	refused(t, b, "late", token, "error validating token: the token was used before")
	if _, err := b.Try(put, "role/late", `{"clock_skew_leeway":"15m1s"}`); api.KindOf(err) != api.Invalid {
		t.Errorf("a role that takes tokens for longer than they are remembered: %v", err)
	}
	b.Clock.Advance(14 * time.Minute)
	refused(t, b, "late", token, "error validating token: invalid expiration time (exp) claim: token is expired")
	tidy()
	if n := b.Count(store.Engine); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// Leeways are as Vault's, and can be taken away.
func TestLeeways(t *testing.T) {
	p := oidctest.New(t)
	b := bench(t, p)
	b.Do(put, "role/app", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor"}`)
	at := func(d time.Duration) int64 { return b.Clock.Now().Add(d).Unix() }
	for _, c := range []struct {
		role string
		with map[string]any
		in   bool
	}{
		{`{}`, map[string]any{"exp": at(-59 * time.Second)}, true},
		{`{}`, map[string]any{"nbf": at(60 * time.Second), "iat": at(60 * time.Second)}, true},
		{`{"clock_skew_leeway":-1}`, map[string]any{"exp": at(-time.Second)}, false},
		{`{}`, map[string]any{"nbf": at(time.Second)}, false},
		{`{}`, map[string]any{"exp": at(time.Second)}, true},
		{`{"clock_skew_leeway":"10m"}`, map[string]any{"exp": at(-9 * time.Minute)}, true},
		{`{"clock_skew_leeway":0}`, map[string]any{"exp": nil, "nbf": nil, "iat": at(-209 * time.Second)}, true},
		{`{"expiration_leeway":-1}`, map[string]any{"exp": nil, "nbf": nil, "iat": at(-60 * time.Second)}, false},
		{`{"expiration_leeway":"1h"}`, map[string]any{"exp": nil, "nbf": nil, "iat": at(-time.Hour)}, true},
		{`{}`, map[string]any{"exp": at(209 * time.Second), "nbf": nil, "iat": nil}, true},
		{`{}`, map[string]any{"exp": at(211 * time.Second), "nbf": nil, "iat": nil}, false},
	} {
		b.Do(put, "role/app", c.role)
		if _, err := login(b, "app", p.Sign(claims(b, p, c.with))); (err == nil) != c.in {
			t.Errorf("after %s, %v: %v", c.role, c.with, err)
		}
	}
}

// Conditions are cut off at their cost, and what they cannot find is not true.
func TestConditions(t *testing.T) {
	p := oidctest.New(t)
	b := bench(t, p)
	many := make([]int, 3000)
	for _, c := range []struct {
		cel string
		in  bool
	}{
		{`claims.sub == "me"`, true},
		{`claims.sub != "me"`, false},
		{`claims.nothing == "me"`, false},
		{`has(claims.nothing) || claims.n == 7 && claims.n < 7.5`, true},
		{`claims.f > 1`, true},
		{`claims["list"].exists(x, x == "b")`, true},
		{`claims.list.all(x, x == "b")`, false},
		{`claims.sub.matches("^m.$") && size(claims.deep.list) == 2`, true},
		{`claims.n.startsWith("x")`, false},
		{`claims.many.all(x, claims.many.all(y, claims.many.all(z, x == y || z == 0)))`, false},
	} {
		b.Do(put, "role/app", body(t, map[string]any{"role_type": "jwt", "user_claim": "sub", "bound_audiences": "lessor", "bound_cel": c.cel}))
		begin := time.Now()
		_, err := login(b, "app", p.Sign(claims(b, p, map[string]any{
			"n": 7, "f": 1.5, "list": []string{"a", "b"}, "deep": map[string]any{"list": []int{1, 2}}, "many": many,
		})))
		if (err == nil) != c.in || err != nil && err.Error() != "error validating claims: the role's bound_cel is not true of this token" {
			t.Errorf("%s: %v", c.cel, err)
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("%s took %s", c.cel, took)
		}
	}
	for _, bad := range []string{`claims.sub = "me"`, `nothing == 1`, `"me"`, `claims.sub == `, strings.Repeat("(", 100), strings.Repeat("true||", 1000) + "true"} {
		if _, err := b.Try(put, "role/bad", body(t, map[string]any{"role_type": "jwt", "user_claim": "sub", "bound_cel": bad})); api.KindOf(err) != api.Invalid {
			t.Errorf("%.50s: %v", bad, err)
		}
	}
}

// Keys are fetched once for everybody; a key that is not known is looked for once in a while, whoever asks for it.
func TestKeysAreFetchedSeldom(t *testing.T) {
	p := oidctest.New(t)
	b := bench(t, p)
	b.Do(put, "role/app", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor"}`)
	before := p.Asked("/keys")
	token := p.Sign(claims(b, p, nil))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := login(b, "app", token); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := p.Asked("/keys") - before; n != 1 {
		t.Errorf("16 logins fetched keys %d times", n)
	}

	// The issuer changes its key, and withdraws the old one.
	b.Clock.Advance(5 * time.Second)
	p.Rotate(false)
	fresh := p.Sign(claims(b, p, nil))
	admitted(t, b, "app", fresh)
	refused(t, b, "app", token, badSignature)

	// Strangers make up names of keys.
	before = p.Asked("/keys")
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		b.Clock.Advance(time.Second)
		refused(t, b, "app", oidctest.Sign(t, jose.ES256, jose.JSONWebKey{Key: own, KeyID: fmt.Sprintf("made up %d", i)}, claims(b, p, nil)), badSignature)
	}
	if n := p.Asked("/keys") - before; n < 5 || n > 11 {
		t.Errorf("in 50 s, strangers had keys fetched %d times", n)
	}
}

// While the issuer is away, the keys that are known are good. What is not known is asked for less and less often, and told apart from
// what is wrong.
func TestIssuerAway(t *testing.T) {
	p := oidctest.New(t)
	b := bench(t, p)
	b.Do(put, "role/app", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor"}`)
	token := func() string { return p.Sign(claims(b, p, nil)) }
	admitted(t, b, "app", token())
	away := func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, p.URL+"/elsewhere", http.StatusFound) // followed by nobody
		return true
	}
	p.Set(func() { p.Answer = away })
	before := p.Asked("/.well-known/openid-configuration")
	for range 60 {
		b.Clock.Advance(30 * time.Second)
		admitted(t, b, "app", token())
	}
	if n := p.Asked("/.well-known/openid-configuration") - before; n < 10 || n > 30 {
		t.Errorf("an issuer that is away was asked %d times in half an hour", n)
	}
	if n := p.Asked("/elsewhere"); n != 0 {
		t.Error("a redirect was followed")
	}
	r := b.Do(get, "config", "")
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "status 302") || r.Data["status"] != r.Warnings[0] {
		t.Errorf("an administrator reads %v", r.Warnings)
	}

	// A node that has just started knows no key.
	other := enginetest.New(t, jwt.New(), nil)
	other.Do(put, "config", body(t, map[string]any{"oidc_discovery_url": p.URL, "oidc_discovery_ca_pem": p.CA}))
	other.Do(put, "role/app", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor"}`)
	if _, err := login(other, "app", token()); api.KindOf(err) != api.Unavailable {
		t.Errorf("without a key: %v", err)
	}

	p.Set(func() { p.Answer = nil })
	b.Clock.Advance(time.Minute)
	p.Rotate(false)
	admitted(t, b, "app", token())
	if r := b.Do(get, "config", ""); len(r.Warnings) != 0 {
		t.Errorf("it is back, and yet %v", r.Warnings)
	}
}

// Several issuers at one method: each vouches for its own tokens, and one that is away does not harm the other.
func TestSeveralIssuers(t *testing.T) {
	one, two := oidctest.New(t), oidctest.New(t)
	two.Rotate(false) // their keys have different names
	b := enginetest.New(t, jwt.New(), nil)
	pairs := []any{}
	for _, p := range []*oidctest.Provider{one, two} {
		pairs = append(pairs, map[string]any{"jwks_url": p.URL + "/keys", "jwks_ca_pem": p.CA})
	}
	tried(t, b, "config", map[string]any{"jwks_pairs": pairs})
	b.Do(put, "role/app", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor"}`)
	admitted(t, b, "app", one.Sign(claims(b, one, nil)))
	admitted(t, b, "app", two.Sign(claims(b, two, nil)))
	two.Set(func() {
		two.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return true
		}
	})
	asked := one.Asked("/keys")
	for range 20 {
		b.Clock.Advance(20 * time.Second)
		admitted(t, b, "app", one.Sign(claims(b, one, nil)))
	}
	if n := one.Asked("/keys") - asked; n > 2 {
		t.Errorf("the one was asked %d times in 400 s since the other is away", n)
	}
}

// While an issuer does not answer, those wait whom it matters to: a login by a key that is known goes on soon, and others at once.
func TestIssuerHangs(t *testing.T) {
	p := oidctest.New(t)
	b := bench(t, p)
	b.Do(put, "role/app", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor"}`)
	admitted(t, b, "app", p.Sign(claims(b, p, nil)))
	asked, answers := make(chan struct{}), make(chan struct{})
	var first sync.Once
	release := sync.OnceFunc(func() { close(answers) })
	t.Cleanup(release)
	p.Set(func() {
		p.Answer = func(http.ResponseWriter, *http.Request) bool {
			first.Do(func() { close(asked) })
			<-answers
			return false
		}
	})
	b.Clock.Advance(11 * time.Minute)
	done := make(chan error, 1)
	token := p.Sign(claims(b, p, nil))
	go func() {
		_, err := login(b, "app", token)
		done <- err
	}()
	<-asked
	admitted(t, b, "app", p.Sign(claims(b, p, nil)))
	if err := <-done; err != nil { // the issuer has not answered yet
		t.Error(err)
	}
	if warnings := b.Do(get, "config", "").Warnings; len(warnings) > 0 {
		t.Errorf("the login waited until %v", warnings)
	}
	release()
}
