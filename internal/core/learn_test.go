package core_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/core"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/oidctest"
)

// A program logs in by a token of its issuer: the first login of this node asks the issuer for its keys, while no View is open. Groups
// that the token names give what external groups of the method have.
func TestLoginByIssuer(t *testing.T) {
	g := start(t)
	p := oidctest.New(t)
	p.Now = g.clock.Now
	config, err := json.Marshal(map[string]any{"oidc_discovery_url": p.URL, "oidc_discovery_ca_pem": p.CA, "default_role": "ci"})
	if err != nil {
		t.Fatal(err)
	}
	g.do(g.root, lessor.Update, "sys/auth/jwt", `{"type":"jwt"}`)
	g.do(g.root, lessor.Update, "auth/jwt/config", string(config))
	g.do(g.root, lessor.Update, "auth/jwt/role/ci", `{"role_type":"jwt","user_claim":"sub","bound_audiences":"lessor","groups_claim":"groups","bound_cel":"claims.ref == 'main'","token_policies":"ci"}`)
	accessor := g.do(g.root, lessor.Read, "sys/auth/jwt", "").Data["accessor"].(string)
	group := g.do(g.root, lessor.Update, "identity/group", `{"name":"release","type":"external","policies":["release"]}`).Data["id"].(string)
	g.do(g.root, lessor.Update, "identity/group-alias", fmt.Sprintf(`{"name":"releasers","mount_accessor":%q,"canonical_id":%q}`, accessor, group))

	login := func(ref string) (*lessor.Answer, error) {
		token := p.Sign(map[string]any{
			"iss": p.URL, "aud": "lessor", "sub": "job", "ref": ref, "groups": []string{"releasers", "others"}, "exp": g.clock.Now().Add(time.Minute).Unix(),
		})
		return g.try(lessor.Secret{}, lessor.Update, "auth/jwt/login", `{"jwt":"`+token+`"}`)
	}
	a, err := login("main")
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(a.Auth.Policies) != "[ci default release]" || a.Auth.Metadata["role"] != "ci" || a.Auth.Entity == "" {
		t.Errorf("%+v", a.Auth)
	}
	self := g.do(a.Auth.Token, lessor.Read, "auth/token/lookup-self", "").Data
	if self["display_name"] != "jwt-job" {
		t.Errorf("%v", self["display_name"])
	}
	g.do(a.Auth.Token, lessor.Update, "auth/token/renew-self", "")
	if _, err := login("feature"); api.KindOf(err) != api.Invalid {
		t.Errorf("from a feature branch: %v", err)
	}
	if records := g.last("auth/jwt/login"); len(records) < 1 || records[len(records)-1].Role != "ci" || records[len(records)-1].Entity != a.Auth.Entity {
		t.Errorf("on record: %+v", records)
	}
	g.do(g.root, lessor.Delete, "auth/jwt/role/ci", "")
	g.refused(api.Invalid, a.Auth.Token, lessor.Update, "auth/token/renew-self", "")
}

// stubborn is an engine that never knows enough.
type stubborn struct{ asked atomic.Int32 }

func (s *stubborn) Routes() []engine.Route {
	return []engine.Route{{Pattern: "x", Help: "x", Ops: map[lessor.Verb]engine.Handler{
		lessor.Read: func(context.Context, *engine.Request) (*engine.Reply, error) {
			return nil, &engine.Unknown{Learn: func(ctx context.Context) {
				if _, bounded := ctx.Deadline(); bounded {
					s.asked.Add(1)
				}
			}}
		},
	}}}
}

// What an operation depends on is looked for a few times. Then it is refused, and on record once.
func TestUnknownForEver(t *testing.T) {
	s := &stubborn{}
	g := start(t, func(o *core.Options) { o.Backends["stubborn"] = s })
	g.do(g.root, lessor.Update, "sys/mounts/stubborn", `{"type":"stubborn"}`)
	g.refused(api.Unavailable, g.root, lessor.Read, "stubborn/x", "")
	if n := s.asked.Load(); n != 3 {
		t.Errorf("it was looked for %d times", n)
	}
	if records := g.last("stubborn/x"); len(records) != 1 || records[0].ErrorKind != api.Unavailable.String() {
		t.Errorf("on record: %+v", records)
	}
}

// Strangers who begin logins at a provider, and end them with codes that they made up, leave no row, and few records.
func TestStrangersAtProvider(t *testing.T) {
	g := start(t)
	p := oidctest.New(t)
	p.Now = g.clock.Now
	config, err := json.Marshal(map[string]any{
		"oidc_discovery_url": p.URL, "oidc_discovery_ca_pem": p.CA, "default_role": "people", "oidc_client_id": oidctest.ClientID, "oidc_client_secret": oidctest.ClientSecret,
	})
	if err != nil {
		t.Fatal(err)
	}
	const back = "http://localhost:8250/oidc/callback"
	g.do(g.root, lessor.Update, "sys/auth/people", `{"type":"jwt"}`)
	g.do(g.root, lessor.Update, "auth/people/config", string(config))
	g.do(g.root, lessor.Update, "auth/people/role/people", `{"user_claim":"email","allowed_redirect_uris":"`+back+`"}`)
	begin := func() string {
		return g.do(lessor.Secret{}, lessor.Update, "auth/people/oidc/auth_url", `{"redirect_uri":"`+back+`"}`).Data["auth_url"].(string)
	}
	before := g.ground()
	var at *url.URL
	for i := range 100 {
		if at, err = url.Parse(begin()); err != nil {
			t.Fatal(err)
		}
		code := fmt.Sprintf(`{"state":%q,"code":"made up %d"}`, at.Query().Get("state"), i)
		if _, err := g.try(lessor.Secret{}, lessor.Update, "auth/people/oidc/callback", code); api.KindOf(err) != api.Invalid && api.KindOf(err) != api.Limited {
			t.Fatal(err)
		}
	}
	if changed := g.ground(); changed != before && !g.idle(g.op(lessor.Secret{}, lessor.Read, "auth/people/oidc/callback", "")) {
		t.Errorf("tables changed: %v, before %v", changed, before)
	}
	if n := len(g.last("auth/people/oidc/auth_url")) + len(g.last("auth/people/oidc/callback")); n > 10 {
		t.Errorf("100 logins that strangers began and did not end left %d records", n)
	}

	// Somebody who does log in is on record, and his answer may be wrapped.
	came, err := p.Visit(begin(), "ann")
	if err != nil {
		t.Fatal(err)
	}
	g.clock.Advance(time.Minute)
	op := g.op(lessor.Secret{}, lessor.Read, "auth/people/oidc/callback", fmt.Sprintf(`{"state":%q,"code":%q}`, came.Query().Get("state"), came.Query().Get("code")))
	op.WrapTTL = time.Minute
	a, err := g.core.Handle(t.Context(), op)
	if err != nil || a.Wrap == nil {
		t.Fatalf("%+v %v", a, err)
	}
	if records := g.last("auth/people/oidc/callback"); records[0].Role != "people" || records[0].Entity == "" {
		t.Errorf("on record: %+v", records[0])
	}
}
