// Package oidctest is an OpenID provider for tests: an issuer over TLS that describes itself, shows its keys, signs tokens, and lets
// people in by authorization code with PKCE (RFC 7636) and by device code (RFC 8628). It holds its clients to the protocol. To a browser it shows
// pages with forms: "user" is whom it lets in, and #agree and #refuse are the buttons. Test code that asks like a browser says so by a header instead.
package oidctest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// The client that the provider knows. The secret has characters that must be escaped in a header.
const (
	ClientID     = "lessor"
	ClientSecret = "s3cr%t:+ of the client"
)

// Provider is a provider that runs until the test ends. Its fields may be changed before it is asked anything; its methods are safe for
// concurrent use.
type Provider struct {
	URL string           // the issuer
	CA  string           // PEM of the authority that vouches for it
	Now func() time.Time // for the tokens that it makes itself

	// Tamper changes the claims of an ID token before it is signed; nil: nothing does.
	Tamper func(claims map[string]any)
	// More is what the provider tells of a person besides, at its userinfo endpoint; nil: it has none.
	More func(user string) map[string]any
	// Answer, if not nil, answers in the place of the provider, unless it returns false.
	Answer func(w http.ResponseWriter, r *http.Request) bool

	t       testing.TB
	client  *http.Client
	mu      sync.Mutex
	keys    []jose.JSONWebKey // private halves; the last one signs
	asked   map[string]int    // requests by path
	codes   map[string]*grant
	devices map[string]*grant // by device code
	access  map[string]string // user by access token
	numbers int
}

// grant is what a person agreed to, or will.
type grant struct {
	redirect, nonce, challenge string
	userCode, user             string
	denied                     bool
}

// New starts a provider with one key.
func New(t testing.TB) *Provider {
	t.Helper()
	p := &Provider{t: t, Now: time.Now, asked: map[string]int{}, codes: map[string]*grant{}, devices: map[string]*grant{}, access: map[string]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.describe)
	mux.HandleFunc("GET /keys", p.showKeys)
	mux.HandleFunc("/authorize", p.authorize)
	mux.HandleFunc("POST /device_authorization", p.device)
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("GET /userinfo", p.userInfo)
	mux.HandleFunc("/device", p.enter)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked[r.URL.Path]++
		answer := p.Answer
		p.mu.Unlock()
		if answer == nil || !answer(w, r) {
			mux.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	p.URL, p.client = s.URL, s.Client()
	p.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	p.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	p.Rotate(false)
	return p
}

// Rotate makes a new key, which signs from now on. The old ones are shown on only if keep is set.
func (p *Provider) Rotate(keep bool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.numbers++
	if !keep {
		p.keys = nil
	}
	p.keys = append(p.keys, jose.JSONWebKey{Key: key, KeyID: fmt.Sprintf("key-%d", p.numbers), Algorithm: string(jose.ES256), Use: "sig"})
}

// Asked is how often a path was asked for.
func (p *Provider) Asked(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[path]
}

// Set changes something of the provider while it runs.
func (p *Provider) Set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// Sign makes a token of the claims, signed by the provider's present key.
func (p *Provider) Sign(claims map[string]any) string {
	p.mu.Lock()
	key := p.keys[len(p.keys)-1]
	p.mu.Unlock()
	return Sign(p.t, jose.ES256, key, claims)
}

// Sign makes a token of the claims: a map, or JSON as []byte.
func Sign(t testing.TB, alg jose.SignatureAlgorithm, key any, claims any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	payload, raw := claims.([]byte)
	if !raw {
		if payload, err = json.Marshal(claims); err != nil {
			t.Fatal(err)
		}
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (p *Provider) describe(w http.ResponseWriter, _ *http.Request) {
	about := map[string]any{
		"issuer": p.URL, "jwks_uri": p.URL + "/keys", "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token",
		"device_authorization_endpoint":         p.URL + "/device_authorization",
		"id_token_signing_alg_values_supported": []string{"ES256"}, "response_types_supported": []string{"code"},
		"token_endpoint_auth_methods_supported": []string{"client_secret_basic"}, "code_challenge_methods_supported": []string{"S256"},
	}
	p.mu.Lock()
	if p.More != nil {
		about["userinfo_endpoint"] = p.URL + "/userinfo"
	}
	p.mu.Unlock()
	answer(w, 200, about)
}

func (p *Provider) userInfo(w http.ResponseWriter, r *http.Request) {
	access, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	p.mu.Lock()
	user, ok := p.access[access]
	more := p.More
	p.mu.Unlock()
	if !ok || more == nil {
		answer(w, 401, map[string]any{"error": "invalid_token"})
		return
	}
	answer(w, 200, more(user))
}

func (p *Provider) showKeys(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	set := jose.JSONWebKeySet{}
	for _, k := range p.keys {
		set.Keys = append(set.Keys, k.Public())
	}
	answer(w, 200, set)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// authorize lets whoever is named by the header User in, or who fills in the page's form.
func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.FormValue
	switch {
	case q("client_id") != ClientID || q("response_type") != "code" || q("redirect_uri") == "" || q("state") == "":
		http.Error(w, "not a request that is understood", 400)
		return
	case q("code_challenge_method") != "S256" || q("code_challenge") == "" || q("nonce") == "":
		http.Error(w, "a nonce and a challenge are asked for", 400)
		return
	}
	back, err := url.Parse(q("redirect_uri"))
	if err != nil {
		http.Error(w, "no way back", 400)
		return
	}
	user, decided := person(r)
	if !decided {
		show(w, loginPage, r.Form)
		return
	}
	values := url.Values{"state": {q("state")}}
	if user == "" {
		values.Set("error", "access_denied")
	} else {
		values.Set("code", p.keep(p.codes, &grant{redirect: q("redirect_uri"), nonce: q("nonce"), challenge: q("code_challenge"), user: user}))
	}
	if q("response_mode") == "form_post" {
		show(w, backPage, map[string]any{"At": q("redirect_uri"), "Values": values})
		return
	}
	for name, v := range back.Query() {
		values[name] = v
	}
	back.RawQuery = values.Encode()
	http.Redirect(w, r, back.String(), http.StatusFound)
}

// person is who agreed, or "" if somebody refused; false if that is to be found out by a page.
func person(r *http.Request) (user string, decided bool) {
	switch {
	case !strings.Contains(r.Header.Get("Accept"), "text/html"):
		return r.Header.Get("User"), true
	case r.Method == http.MethodPost && r.PostFormValue("answer") == "agree":
		return r.PostFormValue("user"), true
	}
	return "", r.Method == http.MethodPost
}

var (
	loginPage = template.Must(template.New("").Parse(`<!DOCTYPE html><title>Log in</title>
<form method="post">
{{range $name, $values := .}}{{range $values}}<input type="hidden" name="{{$name}}" value="{{.}}">{{end}}{{end}}
<input name="user"><button id="agree" name="answer" value="agree">Log in</button><button id="refuse" name="answer" value="refuse">Cancel</button>
</form>`))
	// OAuth 2.0 Form Post Response Mode
	backPage = template.Must(template.New("").Parse(`<!DOCTYPE html><title>Back</title>
<body onload="document.forms[0].submit()"><form method="post" action="{{.At}}">
{{range $name, $values := .Values}}{{range $values}}<input type="hidden" name="{{$name}}" value="{{.}}">{{end}}{{end}}
</form>`))
	codePage = template.Must(template.New("").Parse(`<!DOCTYPE html><title>A device</title>
<form method="post"><input name="user_code" value="{{.}}"><input name="user">
<button id="agree" name="answer" value="agree">Log it in</button><button id="refuse" name="answer" value="refuse">Cancel</button></form>`))
)

func show(w http.ResponseWriter, page *template.Template, about any) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = page.Execute(w, about)
}

// enter is the page where a code from a device is typed.
func (p *Provider) enter(w http.ResponseWriter, r *http.Request) {
	user, decided := person(r)
	if !decided {
		show(w, codePage, r.FormValue("user_code"))
		return
	}
	if err := p.Enter(r.FormValue("user_code"), user); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	_, _ = io.WriteString(w, "Go back to your device.")
}

// keep remembers a grant under a new code.
func (p *Provider) keep(in map[string]*grant, g *grant) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	code := rand.Text()
	in[code] = g
	return code
}

// Visit is what a person's browser does at the provider: user logs in ("" refuses), and is sent back to the URL that it returns.
func (p *Provider) Visit(at, user string) (back *url.URL, err error) {
	request, err := http.NewRequest(http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User", user)
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusFound {
		return nil, fmt.Errorf("the provider answered %s", response.Status)
	}
	return response.Location()
}

// Enter is what a person does with a code from a device: user agrees ("" refuses).
func (p *Provider) Enter(userCode, user string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.devices {
		if g.userCode == userCode {
			g.user, g.denied = user, user == ""
			return nil
		}
	}
	return fmt.Errorf("nobody knows the code %q", userCode)
}

func (p *Provider) device(w http.ResponseWriter, r *http.Request) {
	if !authentic(r) {
		answer(w, 401, map[string]any{"error": "invalid_client"})
		return
	}
	userCode := rand.Text()[:8]
	code := p.keep(p.devices, &grant{userCode: userCode})
	answer(w, 200, map[string]any{
		"device_code": code, "user_code": userCode, "verification_uri": p.URL + "/device", "verification_uri_complete": p.URL + "/device?user_code=" + userCode,
		"expires_in": 600, "interval": 1,
	})
}

// authentic reports whether a request is the client's.
func authentic(r *http.Request) bool {
	id, secret, ok := r.BasicAuth()
	id, err1 := url.QueryUnescape(id)
	secret, err2 := url.QueryUnescape(secret)
	return ok && err1 == nil && err2 == nil && id == ClientID && secret == ClientSecret
}

func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	if !authentic(r) {
		answer(w, 401, map[string]any{"error": "invalid_client"})
		return
	}
	g, problem := p.granted(r)
	if problem != "" {
		answer(w, 400, map[string]any{"error": problem, "error_description": "the provider's own words: " + problem})
		return
	}
	now := p.Now()
	claims := map[string]any{
		"iss": p.URL, "aud": ClientID, "sub": "id-of-" + g.user, "email": g.user + "@example.com", "groups": []string{"people"},
		"iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(), "auth_time": now.Unix(), "jti": rand.Text(),
	}
	if g.nonce != "" {
		claims["nonce"] = g.nonce
	}
	p.mu.Lock()
	tamper := p.Tamper
	p.mu.Unlock()
	if tamper != nil {
		tamper(claims)
	}
	access := rand.Text()
	p.Set(func() { p.access[access] = g.user })
	answer(w, 200, map[string]any{"access_token": access, "token_type": "Bearer", "expires_in": 600, "id_token": p.Sign(claims)})
}

// granted is what the code in a request stands for; each is good once.
func (p *Provider) granted(r *http.Request) (*grant, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch r.PostFormValue("grant_type") {
	case "authorization_code":
		code := r.PostFormValue("code")
		g := p.codes[code]
		delete(p.codes, code)
		sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
		if g == nil || g.redirect != r.PostFormValue("redirect_uri") || g.challenge != base64.RawURLEncoding.EncodeToString(sum[:]) {
			return nil, "invalid_grant"
		}
		return g, ""
	case "urn:ietf:params:oauth:grant-type:device_code":
		code := r.PostFormValue("device_code")
		g := p.devices[code]
		switch {
		case g == nil:
			return nil, "invalid_grant"
		case g.denied:
			delete(p.devices, code)
			return nil, "access_denied"
		case g.user == "":
			return nil, "authorization_pending"
		}
		delete(p.devices, code)
		return g, ""
	}
	return nil, "unsupported_grant_type"
}

// Waiting are the codes that devices show and nobody entered yet.
func (p *Provider) Waiting() (codes []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.devices {
		if g.user == "" && !g.denied {
			codes = append(codes, g.userCode)
		}
	}
	slices.Sort(codes)
	return codes
}
