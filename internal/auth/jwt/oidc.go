package jwt

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

const (
	loginTime    = 10 * time.Minute // that a person has
	usualPoll    = 5 * time.Second
	providerTime = 10 * time.Second // of one question to a provider
	longestCode  = 8192             // bytes: anybody may send one, and it is sent on
	deviceGrant  = "urn:ietf:params:oauth:grant-type:device_code"
)

func (b *Backend) oidcRoutes() []engine.Route {
	sent := engine.Field{Name: "state", Type: engine.String, Help: "of the login, as it was given at its beginning"}
	nonce := engine.Field{Name: "client_nonce", Type: engine.String, Help: "what the client made up when it began; then nobody else goes on"}
	return []engine.Route{
		{
			Pattern: "oidc/auth_url", Help: "Begin a login in a browser: where to send it.", Open: true, Subject: subject, Roles: true, Ops: ops{lessor.Update: b.begin},
			Fields: []engine.Field{
				{Name: "role", Type: engine.String, Help: "the role; none: the method's default one"},
				{Name: "redirect_uri", Type: engine.String, Help: "where the provider is to send the browser back to; one of those that the role allows"},
				nonce,
			},
		},
		{
			Pattern: "oidc/callback", Help: "End a login in a browser, with what the provider sent back.", Open: true, Ops: ops{lessor.Read: b.callback, lessor.Update: b.callback},
			Fields: []engine.Field{
				sent, nonce, {Name: "code", Type: engine.String, Help: "the provider's"},
				{Name: "id_token", Type: engine.String, Help: "not accepted: tokens do not come by way of the browser"},
				{Name: "error", Type: engine.String, Help: "the provider's, if there is no code"},
				{Name: "error_description", Type: engine.String, Help: "of the error; passed over"},
			},
		},
		{
			Pattern: "oidc/poll", Help: "End a login by device code, once the person is done.", Open: true, Ops: ops{lessor.Update: b.poll},
			Fields: []engine.Field{sent, nonce},
		},
	}
}

// begin tells where a person shows the provider who he is.
func (b *Backend) begin(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	p, err := b.party(r, r.Str("role"))
	if err != nil {
		return nil, err
	}
	s := &state{Role: p.name, Client: r.Str("client_nonce"), Config: p.configRow.Version, Expires: r.Now.Add(loginTime)}
	if len(s.Client) > 256 {
		return nil, api.Errorf(api.Invalid, "client_nonce is longer than 256 bytes")
	}
	if p.role.Device {
		return b.beginDevice(r, p, s)
	}
	s.Redirect = r.Str("redirect_uri")
	switch {
	case s.Redirect == "":
		return nil, api.Errorf(api.Invalid, "missing redirect_uri")
	case !slices.ContainsFunc(p.role.RedirectURIs, func(allowed string) bool { return comesBack(allowed, s.Redirect) }):
		return nil, api.Errorf(api.Invalid, "unauthorized redirect_uri: %s", s.Redirect)
	}
	at, err := url.Parse(p.provider.Authorization)
	if err != nil || checkURL(p.provider.Authorization) != nil {
		return nil, errKeys
	}
	s.Nonce, s.Verifier = rand.Text(), rand.Text()+rand.Text()
	text, err := s.seal(r)
	if err != nil {
		return nil, err
	}
	challenge := sha256.Sum256([]byte(s.Verifier))
	q := at.Query()
	for name, value := range map[string]string{
		"response_type": "code", "client_id": p.as.id, "redirect_uri": s.Redirect, "scope": scopes(p.role), "state": text, "nonce": s.Nonce,
		"code_challenge_method": "S256", "code_challenge": base64.RawURLEncoding.EncodeToString(challenge[:]),
	} {
		q.Set(name, value)
	}
	if p.config.ResponseMode == "form_post" {
		q.Set("response_mode", "form_post")
	}
	if p.role.MaxAge > 0 {
		q.Set("max_age", strconv.FormatInt(int64(p.role.MaxAge/time.Second), 10))
	}
	at.RawQuery = q.Encode()
	return &engine.Reply{Data: map[string]any{"auth_url": at.String()}}, nil
}

func scopes(ro *role) string {
	all := []string{"openid"}
	for _, s := range ro.Scopes {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return strings.Join(all, " ")
}

// comesBack reports whether a role that allows the one URL allows the other: it is the same, or differs in the port of this machine only, which
// programs choose as they can (RFC 8252).
func comesBack(allowed, asked string) bool {
	if allowed == asked {
		return true
	}
	a, err1 := url.Parse(allowed)
	b, err2 := url.Parse(asked)
	if err1 != nil || err2 != nil || !loopback(a.Hostname()) || a.Hostname() != b.Hostname() {
		return false
	}
	a.Host, b.Host = a.Hostname(), b.Hostname()
	return a.String() == b.String()
}

// callback lets in whom the provider sent back.
func (b *Backend) callback(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	s, err := openState(r)
	if err != nil {
		return nil, err
	}
	code := r.Str("code")
	switch {
	case s.Device != "":
		return nil, errState
	case r.Str("error") != "":
		return nil, api.Errorf(api.Invalid, "Login failed. The provider refused: %s", word(r.Str("error")))
	case code == "":
		return nil, api.Errorf(api.Invalid, "Login failed. No code or id_token received.")
	case len(code) > longestCode:
		return nil, api.Errorf(api.Invalid, "Login failed. The code is longer than %d bytes.", longestCode)
	}
	p, err := b.resumed(r, s)
	if err != nil {
		return nil, err
	}
	a, err := b.answers.of(r, "callback\x00"+r.Str("state")+"\x00"+code, func(ctx context.Context) (any, error) {
		return p.exchange(ctx, r.Now, s.Nonce, url.Values{
			"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {s.Redirect}, "code_verifier": {s.Verifier},
		})
	})
	if err != nil {
		return nil, err
	}
	return p.finish(r, s, a.(claims))
}

// resumed is the party of a login that goes on, unless it did before, or what it began under has changed.
func (b *Backend) resumed(r *engine.Request, s *state) (*relyingParty, error) {
	p, err := b.party(r, s.Role)
	if err != nil {
		return nil, err
	}
	if p.configRow.Version != s.Config {
		return nil, errState
	}
	gone, err := r.View.Get(stateKey(r))
	if err == nil && gone.Exists() {
		err = errState
	}
	return p, err
}

// stateName is what the state of a login is on record as, once it was used.
func stateName(r *engine.Request) string { return "state\x00" + r.Str("state") }

func stateKey(r *engine.Request) store.Key { return usedKey(r.Mount, digest(stateName(r))) }

// finish lets in whom the ID token is about. The state is used up with it.
func (p *relyingParty) finish(r *engine.Request, s *state, said claims) (*engine.Reply, error) {
	reply, err := p.admit(r, said)
	if err != nil {
		return nil, err
	}
	return reply, once(r, &reply.Txn, stateName(r), s.Expires, errState)
}

// beginDevice asks the provider for a code that the person types there.
func (b *Backend) beginDevice(r *engine.Request, p *relyingParty, s *state) (*engine.Reply, error) {
	switch {
	case s.Client == "":
		return nil, api.Errorf(api.Invalid, "missing client_nonce")
	case p.provider.Device == "":
		return nil, api.Errorf(api.Invalid, "the provider has no device_authorization_endpoint: take callback_mode client")
	}
	a, err := b.answers.of(r, "begin\x00"+r.Op.ID, func(ctx context.Context) (any, error) {
		return p.ask(ctx, p.provider.Device, url.Values{"scope": {scopes(p.role)}})
	})
	if err != nil {
		return nil, err
	}
	d := a.(*spoken)
	at := d.Complete
	if at == "" {
		at = d.URI
	}
	if d.DeviceCode == "" || d.UserCode == "" || at == "" {
		return nil, api.Errorf(api.Upstream, "the provider gave no device code")
	}
	s.Device, s.Interval = d.DeviceCode, uint64(usualPoll/time.Second)
	switch {
	case p.role.PollInterval > 0:
		s.Interval = uint64(p.role.PollInterval / time.Second)
	case d.Interval > 0:
		s.Interval = uint64(min(d.Interval, 60))
	}
	if d.Expires > 0 {
		s.Expires = r.Now.Add(min(loginTime, time.Duration(min(d.Expires, 1<<20))*time.Second))
	}
	text, err := s.seal(r)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: map[string]any{
		"auth_url": at, "user_code": d.UserCode, "state": text, "poll_interval": strconv.FormatUint(s.Interval, 10),
	}}, nil
}

// poll asks the provider whether the person is done.
func (b *Backend) poll(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	s, err := openState(r)
	if err != nil {
		return nil, err
	}
	if s.Device == "" {
		return nil, errState
	}
	p, err := b.resumed(r, s)
	if err != nil {
		return nil, err
	}
	a, err := b.answers.of(r, "poll\x00"+r.Op.ID, func(ctx context.Context) (any, error) {
		if !b.polls.may(stateName(r), r.Now, time.Duration(s.Interval)*time.Second) {
			return nil, errSlow
		}
		return p.exchange(ctx, r.Now, "", url.Values{"grant_type": {deviceGrant}, "device_code": {s.Device}})
	})
	if err != nil {
		return nil, err
	}
	return p.finish(r, s, a.(claims))
}
