package jwt

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// relyingParty is what a login of a person rests on.
type relyingParty struct {
	*entry
	provider *provider
	keys     *keySet
	as       credentials
}

// party is lessor as the provider knows it, for a role of people.
func (b *Backend) party(r *engine.Request, role string) (*relyingParty, error) {
	e, err := b.enter(r, role)
	if err != nil {
		return nil, err
	}
	switch {
	case e.config.ClientID == "":
		return nil, api.Errorf(api.Invalid, "OIDC login is not configured for this mount")
	case e.role.Type != typeOIDC:
		return nil, api.Errorf(api.Invalid, "role with jwt role_type is not allowed")
	}
	secret, _, err := clientSecret(r)
	if err != nil {
		return nil, err
	}
	keys := b.known.sets(r.Mount.UUID, e.configRow.Version, e.config.sources())[0]
	v := keys.see(r.Now, "")
	switch {
	case v.learn != nil:
		return nil, &engine.Unknown{Learn: v.learn}
	case v.provider == nil:
		return nil, errKeys
	}
	p := v.provider
	inBody := len(p.Auth) > 0 && !slices.Contains(p.Auth, "client_secret_basic") && slices.Contains(p.Auth, "client_secret_post")
	return &relyingParty{e, p, keys, credentials{e.config.ClientID, secret, inBody}}, nil
}

// What device logins are told while the person is not done (RFC 8628).
var (
	errPending = api.Errorf(api.Invalid, "authorization_pending")
	errSlow    = api.Errorf(api.Invalid, "slow_down")
)

// spoken is what a provider answers to forms.
type spoken struct {
	Error      string `json:"error"`
	IDToken    string `json:"id_token"`
	Access     string `json:"access_token"`
	DeviceCode string `json:"device_code"`
	UserCode   string `json:"user_code"`
	URI        string `json:"verification_uri"`
	Complete   string `json:"verification_uri_complete"`
	Expires    int64  `json:"expires_in"`
	Interval   int64  `json:"interval"`
}

// ask sends a form to the provider. Errors have a kind.
func (p *relyingParty) ask(ctx context.Context, at string, form url.Values) (*spoken, error) {
	ctx, cancel := context.WithTimeout(ctx, providerTime)
	defer cancel()
	w, err := newWeb(p.config.DiscoveryCA)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "%v", err)
	}
	defer w.close()
	status, text, err := w.post(ctx, at, form, p.as)
	if err != nil {
		return nil, &api.Error{Kind: api.Upstream, Text: "the provider cannot be reached at present; try again", Cause: err}
	}
	s := &spoken{}
	malformed := json.Unmarshal(text, s) != nil
	switch {
	case s.Error == "authorization_pending":
		return nil, errPending
	case s.Error == "slow_down":
		return nil, errSlow
	case status/100 == 2 && !malformed && s.Error == "":
		return s, nil
	case status >= 500, status == http.StatusTooManyRequests:
		return nil, api.Errorf(api.Upstream, "the provider fails at present; try again")
	case s.Error == "":
		return nil, api.Errorf(api.Invalid, "Login failed. The provider answered with status %d", status)
	}
	return nil, api.Errorf(api.Invalid, "Login failed. The provider refused: %s", word(s.Error))
}

var plainWord = regexp.MustCompile(`^[a-z_]{1,64}$`)

// word is an error code of OAuth; what is none is not repeated.
func word(code string) string {
	if plainWord.MatchString(code) {
		return code
	}
	return "an unknown error"
}

// exchange gives the provider a grant and takes an ID token for it.
func (p *relyingParty) exchange(ctx context.Context, now time.Time, nonce string, form url.Values) (claims, error) {
	s, err := p.ask(ctx, p.provider.Token, form)
	if err != nil {
		return nil, err
	}
	if s.IDToken == "" {
		return nil, api.Errorf(api.Invalid, "Login failed. The provider gave no ID token")
	}
	said, err := p.identified(ctx, now, nonce, s.IDToken)
	if err != nil || p.provider.UserInfo == "" || s.Access == "" {
		return said, err
	}
	return said, p.told(ctx, said, s.Access)
}

// told adds what else the provider tells of the person (OpenID Connect Core 1.0, 5.3): what the ID token says itself stands. Nothing is added if
// the provider does not tell; a role that asks for more then refuses.
func (p *relyingParty) told(ctx context.Context, said claims, access string) error {
	ctx, cancel := context.WithTimeout(ctx, providerTime)
	defer cancel()
	w, err := newWeb(p.config.DiscoveryCA)
	if err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	defer w.close()
	text, err := w.getAs(ctx, p.provider.UserInfo, lessor.NewSecret(access))
	if err != nil {
		return nil
	}
	more, err := readClaims(text)
	if err != nil {
		return nil
	}
	if more.text("sub") != said.text("sub") {
		return invalid("the provider tells of another person than its ID token")
	}
	for name, v := range more {
		if _, there := said[name]; !there {
			said[name] = v
		}
	}
	return nil
}

// identified are the claims of an ID token that was made for this login (OpenID Connect Core 1.0, 3.1.3.7).
func (p *relyingParty) identified(ctx context.Context, now time.Time, nonce, token string) (claims, error) {
	s, err := parse(token, p.config.Algorithms)
	if err != nil {
		return nil, err
	}
	v := p.keys.see(now, s.kid)
	if v.learn != nil {
		v.learn(ctx)
		v = p.keys.see(now, s.kid)
	}
	payload, err := s.verify(v.keys)
	if err != nil {
		return nil, err
	}
	said, err := readClaims(payload)
	if err != nil {
		return nil, invalid("%v", err)
	}
	aud, _ := scalars(said["aud"])
	authorized, _ := said["azp"].(string)
	switch {
	case said.text("iss") != p.config.issuer():
		return nil, invalid("invalid issuer (iss) claim")
	case !slices.Contains(aud, p.as.id) || len(aud) > 1 && authorized == "" || authorized != "" && authorized != p.as.id:
		return nil, invalid("invalid audience (aud) claim: the ID token is not for lessor")
	case nonce != "" && said.text("nonce") != nonce:
		return nil, invalid("invalid ID token nonce")
	case said.text("sub") == "" || said["exp"] == nil || said["iat"] == nil:
		return nil, invalid("the ID token has no subject (sub), or does not say when it was made and ends (iat, exp)")
	}
	if p.role.MaxAge > 0 {
		at, err := said.instant("auth_time")
		if err != nil || at.IsZero() || now.Sub(at) > p.role.MaxAge+p.role.leeways().skew {
			return nil, invalid("the person showed the provider too long ago who he is (auth_time)")
		}
	}
	return said, nil
}
