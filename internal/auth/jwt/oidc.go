package jwt

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	case status >= 500:
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

// answers keeps what providers said, for a moment: an operation walks again with it, as often as the ground moves, and asks once.
type answers struct {
	mu    sync.Mutex
	known map[string]*reply
	from  sources
}

// reply is one of them.
type reply struct {
	done    chan struct{} // closed once there is one
	value   any
	err     error
	expires time.Time
}

const (
	answerLife  = 2 * time.Minute
	mostAnswers = 4096
)

// of is the answer to what key names. An *engine.Unknown asks for it first, unless this client has asked for too much lately.
func (a *answers) of(r *engine.Request, key string, ask func(ctx context.Context) (any, error)) (any, error) {
	key = r.Mount.UUID + "\x00" + key
	a.mu.Lock()
	defer a.mu.Unlock()
	if known := a.known[key]; known != nil {
		select {
		case <-known.done:
			return known.value, known.err
		default:
			return nil, &engine.Unknown{Learn: known.wait}
		}
	}
	if !a.from.may(r.Op.Client, r.Now) {
		return nil, api.Errorf(api.Limited, "too many logins are begun from this address; try again in a few seconds")
	}
	if len(a.known) >= mostAnswers {
		for k, old := range a.known {
			if !r.Now.Before(old.expires) {
				delete(a.known, k)
			}
		}
	}
	if len(a.known) >= mostAnswers {
		return nil, api.Errorf(api.Limited, "too many logins are under way; try again in a few seconds")
	}
	if a.known == nil {
		a.known = map[string]*reply{}
	}
	mine := &reply{done: make(chan struct{}), expires: r.Now.Add(answerLife)}
	a.known[key] = mine
	return nil, &engine.Unknown{Learn: func(ctx context.Context) {
		defer close(mine.done)
		mine.value, mine.err = ask(context.WithoutCancel(ctx)) // others may wait for it
	}}
}

func (r *reply) wait(ctx context.Context) {
	select {
	case <-r.done:
	case <-ctx.Done():
	}
}

// sources bounds how often each network has providers asked: a stranger's logins are questions in lessor's name. a.mu guards it.
type sources map[netip.Prefix]*allowance

// allowance is how many questions are left, and as of when.
type allowance struct {
	left float64
	at   time.Time
}

const (
	burst       = 20.0 // questions at once
	aSecond     = 2.0  // questions that come back each second
	mostSources = 10000
)

func (s *sources) may(client netip.Addr, now time.Time) bool {
	bits := 64
	if client = client.Unmap(); client.Is4() {
		bits = 32
	}
	from, err := client.Prefix(bits)
	if err != nil {
		from = netip.Prefix{}
	}
	if *s == nil || len(*s) >= mostSources {
		*s = sources{}
	}
	a := (*s)[from]
	if a == nil {
		a = &allowance{left: burst, at: now}
		(*s)[from] = a
	}
	a.left = min(burst, a.left+max(0, now.Sub(a.at).Seconds())*aSecond)
	a.at = now
	if a.left < 1 {
		return false
	}
	a.left--
	return true
}

// intervals bounds how often each device login asks.
type intervals struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// may reports whether it is time to ask again for what name names.
func (i *intervals) may(name string, now time.Time, every time.Duration) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	last, asked := i.last[name]
	if asked && now.Sub(last) < every {
		return false
	}
	if i.last == nil || len(i.last) >= mostSources {
		i.last = map[string]time.Time{}
	}
	i.last[name] = now
	return true
}
