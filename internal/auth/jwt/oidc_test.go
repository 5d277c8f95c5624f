package jwt_test

import (
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth/jwt"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/oidctest"
	"github.com/lessor-dev/lessor/internal/store"
)

const back = "http://localhost:8250/oidc/callback"

// people is a method at which people log in by p, with a role "people" that is given more parameters.
func people(t *testing.T, p *oidctest.Provider, more map[string]any) *enginetest.Bench {
	t.Helper()
	b := enginetest.New(t, jwt.New(), nil)
	p.Now = b.Clock.Now
	tried(t, b, "config", map[string]any{
		"oidc_discovery_url": p.URL, "oidc_discovery_ca_pem": p.CA, "oidc_client_id": oidctest.ClientID, "oidc_client_secret": oidctest.ClientSecret, "default_role": "people",
	})
	role := map[string]any{"user_claim": "email", "allowed_redirect_uris": back, "groups_claim": "groups", "token_policies": "staff"}
	for k, v := range more {
		role[k] = v
	}
	b.Do(put, "role/people", body(t, role))
	return b
}

// ask is an operation of a stranger, as all logins are.
func ask(t *testing.T, b *enginetest.Bench, verb lessor.Verb, path string, fields map[string]any) (*engine.Reply, error) {
	t.Helper()
	act, err := b.BeginAs(&lessor.Principal{}, verb, path, body(t, fields))
	if err != nil {
		return nil, err
	}
	return act.Reply, act.Commit()
}

func begun(t *testing.T, b *enginetest.Bench, fields map[string]any) string {
	t.Helper()
	r, err := ask(t, b, put, "oidc/auth_url", fields)
	if err != nil {
		t.Fatal(err)
	}
	return r.Data["auth_url"].(string)
}

// visit has a person log in at the provider, and is what comes back with the browser.
func visit(t *testing.T, p *oidctest.Provider, at, user string) map[string]any {
	t.Helper()
	u, err := p.Visit(at, user)
	if err != nil {
		t.Fatal(err)
	}
	if u.Scheme+"://"+u.Host+u.Path != back {
		t.Fatalf("sent back to %s", u)
	}
	fields := map[string]any{}
	for k, v := range u.Query() {
		fields[k] = v[0]
	}
	return fields
}

func isRefused(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || api.KindOf(err) != api.Invalid || err.Error() != want {
		t.Errorf("%s %v, want %q", api.KindOf(err), err, want)
	}
}

const expired = "Login failed. Expired or missing OAuth state."

func TestBrowserLogin(t *testing.T) {
	p := oidctest.New(t)
	b := people(t, p, map[string]any{"oidc_scopes": "email,groups", "max_age": "5m"})
	at := begun(t, b, map[string]any{"redirect_uri": back, "client_nonce": "mine"})
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	if q := u.Query(); q.Get("scope") != "openid email groups" || q.Get("max_age") != "300" || q.Get("response_mode") != "" {
		t.Errorf("%v", q)
	}
	if n := b.Count(store.Engine); n != 0 {
		t.Errorf("a login that has begun left %d rows", n)
	}
	fields := visit(t, p, at, "ann")
	isRefused(t, second(ask(t, b, get, "oidc/callback", fields)), "invalid client_nonce")
	fields["client_nonce"] = "mine"
	r, err := ask(t, b, get, "oidc/callback", fields)
	if err != nil {
		t.Fatal(err)
	}
	want := &engine.Login{
		Alias: "ann@example.com", Name: "ann@example.com", Role: "people", Groups: []string{"people"}, Metadata: map[string]string{"role": "people"},
		AliasMeta: map[string]string{"role": "people"}, Token: engine.TokenTerms{Policies: []string{"staff"}},
	}
	if !reflect.DeepEqual(r.Login, want) {
		t.Errorf("got  %+v\nwant %+v", r.Login, want)
	}
	isRefused(t, second(ask(t, b, get, "oidc/callback", fields)), expired) // again
	b.NoTrace(fields["code"].(string), oidctest.ClientSecret)

	// The provider posts instead, for a port that the program chose.
	local := "http://127.0.0.1:34567/oidc/callback"
	b.Do(put, "role/people", `{"allowed_redirect_uris":["http://127.0.0.1/oidc/callback","`+back+`"],"max_age":0}`)
	begun(t, b, map[string]any{"redirect_uri": local})
	r, err = ask(t, b, put, "oidc/callback", visit(t, p, begun(t, b, map[string]any{"redirect_uri": back, "role": "People"}), "bob"))
	if err != nil || r.Login.Alias != "bob@example.com" {
		t.Errorf("%+v %v", r, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestBrowserRefusals(t *testing.T) {
	p := oidctest.New(t)
	b := people(t, p, nil)
	for _, c := range []struct{ uri, want string }{
		{"", "missing redirect_uri"},
		{"https://evil.example.com/oidc/callback", "unauthorized redirect_uri: https://evil.example.com/oidc/callback"},
		{"http://localhost:8250/oidc/callback/../x", "unauthorized redirect_uri: http://localhost:8250/oidc/callback/../x"},
		{"http://localhost.example.com:8250/oidc/callback", "unauthorized redirect_uri: http://localhost.example.com:8250/oidc/callback"},
	} {
		isRefused(t, second(ask(t, b, put, "oidc/auth_url", map[string]any{"redirect_uri": c.uri})), c.want)
	}
	b.Do(put, "role/ci", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor"}`)
	isRefused(t, second(ask(t, b, put, "oidc/auth_url", map[string]any{"role": "ci", "redirect_uri": back})), "role with jwt role_type is not allowed")
	isRefused(t, second(ask(t, b, put, "oidc/auth_url", map[string]any{"role": "x", "redirect_uri": back})), `role "x" could not be found`)

	at := begun(t, b, map[string]any{"redirect_uri": back})
	good := visit(t, p, at, "ann")
	with := func(name, value string) map[string]any {
		out := map[string]any{"state": good["state"], "code": good["code"]}
		out[name] = value
		return out
	}
	state := good["state"].(string)
	for what, text := range map[string]string{"no state": "", "another's": strings.Repeat("A", len(state)), "cut": state[:len(state)-1], "changed": flip(state), "twice": state + "\n"} {
		t.Log(what)
		isRefused(t, second(ask(t, b, get, "oidc/callback", with("state", text))), expired)
	}
	isRefused(t, second(ask(t, b, get, "oidc/callback", with("code", ""))), "Login failed. No code or id_token received.")
	isRefused(t, second(ask(t, b, get, "oidc/callback", with("code", "made up"))), "Login failed. The provider refused: invalid_grant")
	isRefused(t, second(ask(t, b, get, "oidc/callback", visit(t, p, at, ""))), "Login failed. The provider refused: access_denied")
	isRefused(t, second(ask(t, b, get, "oidc/callback", with("error", "<script>"))), "Login failed. The provider refused: an unknown error")
	isRefused(t, second(ask(t, b, put, "oidc/poll", map[string]any{"state": state})), expired)

	// What an ID token has to say.
	for what, c := range map[string]struct {
		claim string
		value any
		want  string
	}{
		"another login's":    {"nonce", "another", "error validating token: invalid ID token nonce"},
		"without a nonce":    {"nonce", nil, "error validating token: invalid ID token nonce"},
		"another client's":   {"aud", "another", "error validating token: invalid audience (aud) claim: the ID token is not for lessor"},
		"several clients'":   {"aud", []string{oidctest.ClientID, "another"}, "error validating token: invalid audience (aud) claim: the ID token is not for lessor"},
		"made for another":   {"azp", "another", "error validating token: invalid audience (aud) claim: the ID token is not for lessor"},
		"another provider's": {"iss", "https://issuer.example.com", "error validating token: invalid issuer (iss) claim"},
		"endless":            {"exp", nil, "error validating token: the ID token has no subject (sub), or does not say when it was made and ends (iat, exp)"},
		"over":               {"exp", b.Clock.Now().Add(-2 * time.Minute).Unix(), "error validating token: invalid expiration time (exp) claim: token is expired"},
		"nobody's":           {"email", nil, `claim "email" not found in token`},
	} {
		p.Set(func() {
			p.Tamper = func(claims map[string]any) {
				if claims[c.claim] = c.value; c.value == nil {
					delete(claims, c.claim)
				}
			}
		})
		t.Log(what)
		b.Clock.Advance(time.Second)
		isRefused(t, second(ask(t, b, get, "oidc/callback", visit(t, p, begun(t, b, map[string]any{"redirect_uri": back}), "ann"))), c.want)
	}
	p.Set(func() {
		p.Tamper = func(claims map[string]any) { claims["auth_time"] = b.Clock.Now().Add(-time.Hour).Unix() }
	})
	b.Do(put, "role/people", `{"max_age":"30m"}`)
	isRefused(t, second(ask(t, b, get, "oidc/callback", visit(t, p, begun(t, b, map[string]any{"redirect_uri": back}), "ann"))),
		"error validating token: the person showed the provider too long ago who he is (auth_time)")
	p.Set(func() { p.Tamper = nil })

	// Too late, and under another configuration.
	fields := visit(t, p, begun(t, b, map[string]any{"redirect_uri": back}), "ann")
	b.Clock.Advance(10 * time.Minute)
	isRefused(t, second(ask(t, b, get, "oidc/callback", fields)), expired)
	fields = visit(t, p, begun(t, b, map[string]any{"redirect_uri": back}), "ann")
	tried(t, b, "config", map[string]any{"oidc_discovery_url": p.URL, "oidc_discovery_ca_pem": p.CA, "oidc_client_id": "x", "oidc_client_secret": "y"})
	isRefused(t, second(ask(t, b, get, "oidc/callback", fields)), expired)
	tried(t, b, "config", map[string]any{"oidc_discovery_url": p.URL, "oidc_discovery_ca_pem": p.CA})
	isRefused(t, second(ask(t, b, put, "oidc/auth_url", map[string]any{"role": "people", "redirect_uri": back})), "OIDC login is not configured for this mount")
}

// flip changes one bit in the middle of a text in base64.
func flip(text string) string {
	b := []byte(text)
	if i := len(b) / 2; b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return string(b)
}

// What strangers send is neither sent on whatever its size, nor kept.
func TestLongCodes(t *testing.T) {
	p := oidctest.New(t)
	b := people(t, p, nil)
	fields := visit(t, p, begun(t, b, map[string]any{"redirect_uri": back}), "ann")
	fields["code"] = strings.Repeat("x", 1<<20)
	isRefused(t, second(ask(t, b, put, "oidc/callback", fields)), "Login failed. The code is longer than 8192 bytes.")
}

// A code is exchanged once, however often the walk begins anew and however many bring it. One of them is let in.
func TestBrowserLoginOnce(t *testing.T) {
	p := oidctest.New(t)
	b := people(t, p, nil)
	fields := visit(t, p, begun(t, b, map[string]any{"redirect_uri": back}), "ann")
	before := p.Asked("/token")
	acts := make([]*enginetest.Act, 8)
	var wg sync.WaitGroup
	for i := range acts {
		wg.Go(func() {
			var err error
			if acts[i], err = b.BeginAs(&lessor.Principal{}, get, "oidc/callback", body(t, fields)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := p.Asked("/token") - before; n != 1 {
		t.Errorf("the code was exchanged %d times", n)
	}
	if err := acts[0].Commit(); err != nil {
		t.Error(err)
	}
	for _, late := range acts[1:] {
		enginetest.Unwritten(t, late)
	}
	isRefused(t, second(ask(t, b, get, "oidc/callback", fields)), expired)
}

func TestDeviceLogin(t *testing.T) {
	p := oidctest.New(t)
	b := people(t, p, map[string]any{"callback_mode": "device", "allowed_redirect_uris": ""})
	isRefused(t, second(ask(t, b, put, "oidc/auth_url", map[string]any{})), "missing client_nonce")
	begin := func() (state, code string) {
		t.Helper()
		r, err := ask(t, b, put, "oidc/auth_url", map[string]any{"client_nonce": "mine"})
		if err != nil {
			t.Fatal(err)
		}
		if at, code := r.Data["auth_url"], r.Data["user_code"].(string); at != p.URL+"/device?user_code="+code || r.Data["poll_interval"] != "1" {
			t.Errorf("%v", r.Data)
		}
		return r.Data["state"].(string), r.Data["user_code"].(string)
	}
	poll := func(state string) (*engine.Reply, error) {
		t.Helper()
		return ask(t, b, put, "oidc/poll", map[string]any{"state": state, "client_nonce": "mine"})
	}
	state, code := begin()
	isRefused(t, second(poll(state)), "authorization_pending")
	before := p.Asked("/token")
	isRefused(t, second(poll(state)), "slow_down")
	if p.Asked("/token") != before {
		t.Error("who asks too often has the provider asked")
	}
	b.Clock.Advance(time.Second)
	isRefused(t, second(poll(state)), "authorization_pending")
	isRefused(t, second(ask(t, b, put, "oidc/poll", map[string]any{"state": state, "client_nonce": "other"})), "invalid client_nonce")
	isRefused(t, second(ask(t, b, get, "oidc/callback", map[string]any{"state": state, "client_nonce": "mine", "code": "x"})), expired)
	if err := p.Enter(code, "ann"); err != nil {
		t.Fatal(err)
	}
	b.Clock.Advance(time.Second)
	r, err := poll(state)
	if err != nil || r.Login == nil || r.Login.Alias != "ann@example.com" {
		t.Fatalf("%+v %v", r, err)
	}
	b.Clock.Advance(time.Second)
	isRefused(t, second(poll(state)), expired)

	state, code = begin()
	if err := p.Enter(code, ""); err != nil {
		t.Fatal(err)
	}
	isRefused(t, second(poll(state)), "Login failed. The provider refused: access_denied")
	state, _ = begin()
	b.Clock.Advance(11 * time.Minute)
	isRefused(t, second(poll(state)), expired)
}

// What strangers begin has the provider asked in lessor's name only so often, and leaves nothing. A provider that fails is told from one
// that refuses.
func TestProviderAway(t *testing.T) {
	p := oidctest.New(t)
	b := people(t, p, nil)
	at := begun(t, b, map[string]any{"redirect_uri": back})
	fields := visit(t, p, at, "ann")
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		p.Set(func() {
			p.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
				http.Error(w, "secret words", status)
				return true
			}
		})
		fields["code"] = "one that is good, but for " + http.StatusText(status)
		if _, err := ask(t, b, get, "oidc/callback", fields); api.KindOf(err) != api.Upstream || strings.Contains(err.Error(), "secret words") {
			t.Errorf("a provider that fails: %v", err)
		}
	}
	before, limited := p.Asked("/token"), 0
	for i := range 100 {
		fields["code"] = strings.Repeat("x", i+1)
		if _, err := ask(t, b, get, "oidc/callback", fields); api.KindOf(err) == api.Limited {
			limited++
		}
	}
	if n := p.Asked("/token") - before; n > 20 || limited < 80 {
		t.Errorf("a stranger had the provider asked %d times, and was refused %d times", n, limited)
	}
	b.Client = netip.MustParseAddr("192.0.2.1")
	fields["code"] = "another's"
	if _, err := ask(t, b, get, "oidc/callback", fields); api.KindOf(err) != api.Upstream {
		t.Errorf("from elsewhere: %v", err)
	}
	if n := b.Count(store.Engine); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// Who began at one node may come back to another.
func TestAnyNode(t *testing.T) {
	p := oidctest.New(t)
	one := people(t, p, nil)
	two := one.Elsewhere(jwt.New())
	fields := visit(t, p, begun(t, one, map[string]any{"redirect_uri": back}), "ann")
	if r, err := ask(t, two, get, "oidc/callback", fields); err != nil || r.Login == nil {
		t.Fatal(err)
	}
	isRefused(t, second(ask(t, one, get, "oidc/callback", fields)), expired)
	one.Do(put, "role/people", `{"callback_mode":"device"}`)
	r, err := ask(t, two, put, "oidc/auth_url", map[string]any{"client_nonce": "mine"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Enter(r.Data["user_code"].(string), "bob"); err != nil {
		t.Fatal(err)
	}
	if r, err = ask(t, one, put, "oidc/poll", map[string]any{"state": r.Data["state"], "client_nonce": "mine"}); err != nil || r.Login.Alias != "bob@example.com" {
		t.Errorf("%+v %v", r, err)
	}
}

// What the ID token does not say, the provider may tell besides. It never changes what the token says, nor tells of somebody else.
func TestUserInfo(t *testing.T) {
	p := oidctest.New(t)
	p.More = func(user string) map[string]any {
		return map[string]any{"sub": "id-of-" + user, "email": "root@example.com", "teams": []string{"blue"}, "iss": "https://issuer.example.com"}
	}
	b := people(t, p, map[string]any{"groups_claim": "teams", "bound_claims": map[string]any{"teams": "blue"}})
	login := func() (*engine.Reply, error) {
		t.Helper()
		b.Clock.Advance(time.Second)
		return ask(t, b, get, "oidc/callback", visit(t, p, begun(t, b, map[string]any{"redirect_uri": back}), "ann"))
	}
	r, err := login()
	if err != nil || r.Login.Alias != "ann@example.com" || !reflect.DeepEqual(r.Login.Groups, []string{"blue"}) {
		t.Errorf("%+v %v", r, err)
	}
	p.Set(func() {
		p.More = func(string) map[string]any { return map[string]any{"sub": "id-of-bob", "teams": []string{"blue"}} }
	})
	isRefused(t, second(login()), "error validating token: the provider tells of another person than its ID token")
	p.Set(func() {
		p.Answer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/userinfo" {
				http.Error(w, "away", http.StatusServiceUnavailable)
			}
			return r.URL.Path == "/userinfo"
		}
	})
	isRefused(t, second(login()), `error validating claims: claim "teams" is missing`)
}
