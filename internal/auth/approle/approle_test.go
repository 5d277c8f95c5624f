package approle_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/auth/approle"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/enginetest"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

const (
	put = lessor.Update
	get = lessor.Read
	ls  = lessor.List
	del = lessor.Delete
)

func TestConform(t *testing.T) { enginetest.Conform(t, approle.Backend{}, nil) }

// role is what a read of a role answers, apart from some keys.
func role(with map[string]string) string {
	all := map[string]string{
		"bind_secret_id": "true", "secret_id_bound_cidrs": "null", "secret_id_num_uses": "0", "secret_id_ttl": "0", "local_secret_ids": "false",
		"token_bound_cidrs": "[]", "token_explicit_max_ttl": "0", "token_max_ttl": "0", "token_no_default_policy": "false",
		"token_num_uses": "0", "token_period": "0", "token_policies": "[]", "token_ttl": "0", "token_type": `"default"`,
	}
	maps.Copy(all, with)
	var b strings.Builder
	for k, v := range all {
		fmt.Fprintf(&b, ",%q:%s", k, v)
	}
	return "{" + b.String()[1:] + "}"
}

func TestRoles(t *testing.T) {
	const beyond = "token_max_ttl is greater than the backend mount's maximum TTL value; issued tokens' max TTL value will be truncated"
	enginetest.New(t, approle.Backend{}, nil).Run([]enginetest.Step{
		{Verb: ls, Path: "role/", Fails: true, Kind: api.NotFound},
		{Verb: get, Path: "role/app", Fails: true, Kind: api.NotFound},
		{Verb: put, Path: "role/app", Body: `{"bind_secret_id":false}`, Kind: api.Invalid, Err: "at least one constraint should be enabled on the role"},
		{Verb: put, Path: "role/App", Body: `{"policies":"a,b","secret_id_ttl":"10m","token_num_uses":10,"local_secret_ids":true,"secret_id_bound_cidrs":["10.0.0.0/8","10.1.2.3/32"]}`},
		{Verb: get, Path: "role/app", Want: role(map[string]string{
			"policies": `["a","b"]`, "token_policies": `["a","b"]`, "secret_id_ttl": "600", "token_num_uses": "10", "local_secret_ids": "true",
			"secret_id_bound_cidrs": `["10.0.0.0/8","10.1.2.3/32"]`,
		})},
		{Name: "what is not sent stays", Verb: put, Path: "role/app", Body: `{"token_policies":["c"],"secret_id_num_uses":"3"}`},
		{Verb: get, Path: "role/APP", Want: role(map[string]string{
			"token_policies": `["c"]`, "secret_id_ttl": "600", "token_num_uses": "10", "local_secret_ids": "true", "secret_id_num_uses": "3",
			"secret_id_bound_cidrs": `["10.0.0.0/8","10.1.2.3/32"]`,
		})},
		{Verb: put, Path: "role/app", Body: `{"local_secret_ids":false}`, Kind: api.Invalid, Err: "local_secret_ids can only be modified during role creation"},
		{Verb: put, Path: "role/app", Body: `{"secret_id_num_uses":-1}`, Kind: api.Invalid, Err: "secret_id_num_uses cannot be negative"},
		{Verb: put, Path: "role/app", Body: `{"role_id":""}`, Kind: api.Invalid, Err: "invalid role_id supplied, or failed to generate a role_id"},
		{Verb: put, Path: "role/app", Body: `{"period":"9999h"}`, Kind: api.Invalid, Err: `period of "9999h0m0s" is greater than the backend's maximum lease TTL of "768h0m0s"`},
		{Verb: put, Path: "role/app", Body: `{"token_max_ttl":"9999h"}`, Warn: beyond},
		{Verb: put, Path: "role/app", Body: `{"token_type":"default-service","token_max_ttl":0}`, Warn: "default-service has no useful meaning; adjusting to service"},
		{Verb: put, Path: "role/other", Body: `{"role_id":"mine"}`},
		{Verb: put, Path: "role/app", Body: `{"role_id":"mine"}`, Kind: api.Invalid, Err: "role_id already in use"},
		{Verb: put, Path: "role/third", Body: `{"role_id":"mine"}`, Kind: api.Invalid, Err: "role_id already in use"},
		{Verb: get, Path: "role/other/role-id", Want: `{"role_id":"mine"}`},
		{Verb: put, Path: "role/other/role-id", Body: `{"role_id":"yours"}`},
		{Verb: put, Path: "role/other/role-id", Body: `{"role_id":"yours"}`},
		{Verb: get, Path: "role/other/role-id", Want: `{"role_id":"yours"}`},
		{Verb: put, Path: "role/other/role-id", Body: `{}`, Kind: api.Invalid, Err: "missing role_id"},
		{Verb: put, Path: "role/app", Body: `{"role_id":"mine"}`},
		{Verb: ls, Path: "role/", Want: `{"keys":["app","other"]}`},
		{Verb: del, Path: "role/App"},
		{Verb: del, Path: "role/app"},
		{Verb: ls, Path: "role/", Want: `{"keys":["other"]}`},
		{Verb: get, Path: "role/app", Fails: true, Kind: api.NotFound},
		{Verb: put, Path: "role/app/role-id", Body: `{"role_id":"x"}`, Kind: api.NotFound, Err: `role "app" does not exist`},
		{Verb: put, Path: "role/app", Body: `{}`},
		{Verb: get, Path: "role/app", Want: role(nil)},
	}...)
}

func TestSettings(t *testing.T) {
	const deprecated = `The "bound_cidr_list" field is deprecated and will be removed. Please use "secret_id_bound_cidrs" instead.`
	for _, c := range []struct{ path, unset, body, set, missing, warn string }{
		{"policies", `{"token_policies":[]}`, `{"token_policies":"a,b"}`, `{"token_policies":["a","b"]}`, "token_policies", ""},
		{"policies", `{"token_policies":[]}`, `{"policies":["a"]}`, `{"token_policies":["a"],"policies":["a"]}`, "token_policies", ""},
		{"bound-cidr-list", `{"bound_cidr_list":null}`, `{"bound_cidr_list":"10.0.0.0/8"}`, `{"bound_cidr_list":["10.0.0.0/8"]}`, "bound_cidr_list", deprecated},
		{"secret-id-bound-cidrs", `{"secret_id_bound_cidrs":null}`, `{"secret_id_bound_cidrs":"10.0.0.0/8"}`, `{"secret_id_bound_cidrs":["10.0.0.0/8"]}`, "secret_id_bound_cidrs", ""},
		{"token-bound-cidrs", `{"token_bound_cidrs":null}`, `{"token_bound_cidrs":["10.0.0.1/32"]}`, `{"token_bound_cidrs":["10.0.0.1"]}`, "token_bound_cidrs", ""},
		{"secret-id-num-uses", `{"secret_id_num_uses":0}`, `{"secret_id_num_uses":"7"}`, `{"secret_id_num_uses":7}`, "secret_id_num_uses", ""},
		{"secret-id-ttl", `{"secret_id_ttl":0}`, `{"secret_id_ttl":"1h"}`, `{"secret_id_ttl":3600}`, "secret_id_ttl", ""},
		{"token-num-uses", `{"token_num_uses":0}`, `{"token_num_uses":3}`, `{"token_num_uses":3}`, "token_num_uses", ""},
		{"token-ttl", `{"token_ttl":0}`, `{"token_ttl":30}`, `{"token_ttl":30}`, "token_ttl", ""},
		{"token-max-ttl", `{"token_max_ttl":0}`, `{"token_max_ttl":"1m"}`, `{"token_max_ttl":60}`, "token_max_ttl", ""},
		{"period", `{"token_period":0}`, `{"token_period":"1h"}`, `{"token_period":3600}`, "period", ""},
		{"period", `{"token_period":0}`, `{"period":"1h"}`, `{"token_period":3600,"period":3600}`, "period", ""},
	} {
		t.Run(c.path, func(t *testing.T) {
			b, path := enginetest.New(t, approle.Backend{}, nil), "role/app/"+c.path
			b.Run([]enginetest.Step{
				{Verb: get, Path: path, Fails: true, Kind: api.NotFound},
				{Verb: put, Path: path, Body: c.body, Kind: api.NotFound, Err: `role "app" does not exist`},
				{Verb: del, Path: path},
				{Verb: put, Path: "role/app", Body: `{}`},
				{Verb: get, Path: path, Want: c.unset, Warn: c.warn},
				{Verb: put, Path: path, Body: `{}`, Kind: api.Invalid, Err: "missing " + c.missing},
				{Verb: put, Path: path, Body: c.body},
				{Verb: get, Path: path, Want: c.set, Warn: c.warn},
				{Verb: del, Path: path},
				{Verb: get, Path: path, Want: c.unset, Warn: c.warn},
				{Verb: get, Path: "role/app", Want: role(nil)},
			}...)
		})
	}
	enginetest.New(t, approle.Backend{}, nil).Run([]enginetest.Step{
		{Verb: put, Path: "role/app", Body: `{"local_secret_ids":true}`},
		{Verb: get, Path: "role/app/local-secret-ids", Want: `{"local_secret_ids":true}`},
		{Verb: put, Path: "role/app/local-secret-ids", Body: `{"local_secret_ids":false}`, Kind: api.Unsupported, Err: "unsupported operation"},
		{Verb: put, Path: "role/app/bind-secret-id", Body: `{"bind_secret_id":false}`, Kind: api.Invalid, Err: "at least one constraint should be enabled on the role"},
		{Verb: put, Path: "role/app/token-bound-cidrs", Body: `{"token_bound_cidrs":"10.0.0.0/8"}`},
		{Verb: put, Path: "role/app/bind-secret-id", Body: `{"bind_secret_id":false}`},
		{Verb: get, Path: "role/app/bind-secret-id", Want: `{"bind_secret_id":false}`},
		{Verb: del, Path: "role/app/token-bound-cidrs", Kind: api.Invalid, Err: "at least one constraint should be enabled on the role"},
		{Verb: del, Path: "role/app/bind-secret-id"},
		{Verb: get, Path: "role/app/bind-secret-id", Want: `{"bind_secret_id":true}`},
		{Verb: del, Path: "role/app/token-bound-cidrs"},
		{Verb: put, Path: "role/app/token-ttl", Body: `{"token_ttl":"2h"}`},
		{Verb: put, Path: "role/app/token-max-ttl", Body: `{"token_max_ttl":"1h"}`, Kind: api.Invalid, Err: "'token_ttl' cannot be greater than 'token_max_ttl'"},
	}...)
}

// bench has a role "app" of role id "app-id".
func bench(t *testing.T, parameters string) *enginetest.Bench {
	t.Helper()
	b := enginetest.New(t, approle.Backend{}, nil)
	b.Do(put, "role/app", `{"role_id":"app-id"`+parameters+`}`)
	return b
}

// issue makes a secret id.
func issue(b *enginetest.Bench, body string) (id, accessor string) {
	b.T.Helper()
	d := b.Do(put, "role/app/secret-id", body).Data
	return d["secret_id"].(lessor.Secret).Reveal(), d["secret_id_accessor"].(string)
}

// begin plans a login by a client without a token.
func begin(b *enginetest.Bench, roleID, secretID string) (*enginetest.Act, error) {
	return b.BeginAs(&lessor.Principal{}, put, "login", fmt.Sprintf(`{"role_id":%q,"secret_id":%q}`, roleID, secretID))
}

// login logs in, as the core does: again while others are in the way.
func login(b *enginetest.Bench, roleID, secretID string) (*engine.Login, error) {
	for {
		act, err := begin(b, roleID, secretID)
		if err != nil {
			return nil, err
		}
		if err = act.Commit(); !errors.As(err, new(*store.Conflict)) {
			return act.Reply.Login, err
		}
	}
}

func refused(t *testing.T, b *enginetest.Bench, roleID, secretID, text string) {
	t.Helper()
	if _, err := login(b, roleID, secretID); err == nil || err.Error() != text || api.KindOf(err) != api.Invalid {
		t.Errorf("%q %q: got %v, want %q", roleID, secretID, err, text)
	}
}

const invalid = "invalid role or secret ID"

func TestSecretIDs(t *testing.T) {
	b := bench(t, `,"secret_id_ttl":"1h","secret_id_num_uses":5`)
	const created = "2026-01-02T03:04:05Z"
	b.Run([]enginetest.Step{
		{Verb: ls, Path: "role/app/secret-id/", Fails: true, Kind: api.NotFound},
		{Verb: ls, Path: "role/nil/secret-id/", Kind: api.Invalid, Err: `role "nil" does not exist`},
		{Verb: put, Path: "role/nil/secret-id", Kind: api.NotFound, Err: `role "nil" does not exist`},
		{Verb: put, Path: "role/app/secret-id", Want: `{"secret_id":"*","secret_id_accessor":"*","secret_id_ttl":3600,"secret_id_num_uses":5}`},
		{Verb: put, Path: "role/app/secret-id", Body: `{"ttl":60,"num_uses":"2"}`, Want: `{"secret_id":"*","secret_id_accessor":"*","secret_id_ttl":60,"secret_id_num_uses":2}`},
		{Verb: put, Path: "role/app/secret-id", Body: `{"ttl":"2h"}`, Kind: api.Invalid, Err: "ttl cannot be longer than the role's secret_id_ttl"},
		{Verb: put, Path: "role/app/secret-id", Body: `{"ttl":0}`, Kind: api.Invalid, Err: "ttl cannot be longer than the role's secret_id_ttl"},
		{Verb: put, Path: "role/app/secret-id", Body: `{"num_uses":6}`, Kind: api.Invalid, Err: "num_uses cannot be higher than the role's secret_id_num_uses"},
		{Verb: put, Path: "role/app/secret-id", Body: `{"num_uses":0}`, Kind: api.Invalid, Err: "num_uses cannot be higher than the role's secret_id_num_uses"},
		{Verb: put, Path: "role/app/secret-id", Body: `{"num_uses":-1}`, Kind: api.Invalid, Err: "num_uses cannot be negative"},
		{Verb: put, Path: "role/app/secret-id", Body: `{"cidr_list":"x"}`, Kind: api.Invalid, Err: `field "cidr_list": "x" is no CIDR block and no address`},
		{Verb: put, Path: "role/app/custom-secret-id", Kind: api.Invalid, Err: "missing secret_id"},
		{Verb: put, Path: "role/app/custom-secret-id", Body: `{"secret_id":"my own","metadata":"{\"team\":\"x\"}","cidr_list":["10.0.0.0/8"],"token_bound_cidrs":"10.1.2.3/32"}`,
			Want: `{"secret_id":"my own","secret_id_accessor":"*","secret_id_ttl":3600,"secret_id_num_uses":5}`},
		{Verb: put, Path: "role/app/custom-secret-id", Body: `{"secret_id":"my own"}`, Kind: api.Invalid, Err: "SecretID is already registered"},
		{Verb: put, Path: "role/app/secret-id/lookup", Body: `{"secret_id":"my own"}`, Want: `{"secret_id_accessor":"*","secret_id_num_uses":5,"secret_id_ttl":3600,
			"creation_time":"` + created + `","expiration_time":"2026-01-02T04:04:05Z","last_updated_time":"` + created + `",
			"metadata":{"team":"x"},"cidr_list":["10.0.0.0/8"],"token_bound_cidrs":["10.1.2.3/32"]}`},
		{Verb: put, Path: "role/app/secret-id/lookup", Body: `{"secret_id":"another"}`},
		{Verb: put, Path: "role/app/secret-id/lookup", Kind: api.Invalid, Err: "missing secret_id"},
		{Verb: put, Path: "role/app/secret-id-accessor/lookup", Body: `{"secret_id_accessor":"none"}`, Kind: api.NotFound, Err: `failed to find accessor entry for secret_id_accessor: "none"`},
		{Verb: put, Path: "role/app/secret-id-accessor/destroy", Body: `{"secret_id_accessor":"none"}`, Kind: api.NotFound, Err: `failed to find accessor entry for secret_id_accessor: "none"`},
		{Verb: put, Path: "role/app/secret-id-accessor/lookup", Kind: api.Invalid, Err: "missing secret_id_accessor"},
		{Verb: ls, Path: "role/app/secret-id/", Want: `{"keys":["*","*","*"]}`},
		{Verb: put, Path: "role/app/secret-id/destroy", Body: `{"secret_id":"my own"}`},
		{Verb: put, Path: "role/app/secret-id/destroy", Body: `{"secret_id":"my own"}`},
		{Verb: ls, Path: "role/app/secret-id/", Want: `{"keys":["*","*"]}`},
	}...)
	id, accessor := issue(b, "")
	b.Run([]enginetest.Step{
		{Verb: put, Path: "role/app/secret-id-accessor/lookup", Body: `{"secret_id_accessor":"` + accessor + `"}`, Want: `{"secret_id_accessor":"` + accessor + `",
			"secret_id_num_uses":5,"secret_id_ttl":3600,"creation_time":"*","expiration_time":"*","last_updated_time":"*","metadata":{},"cidr_list":[],"token_bound_cidrs":[]}`},
		{Verb: del, Path: "role/app/secret-id-accessor/destroy", Body: `{"secret_id_accessor":"` + accessor + `"}`},
		{Verb: put, Path: "role/app/secret-id/lookup", Body: `{"secret_id":"` + id + `"}`},
		{Verb: put, Path: "role/app", Body: `{"bind_secret_id":false,"token_bound_cidrs":"10.0.0.0/8"}`},
		{Verb: put, Path: "role/app/secret-id", Kind: api.Invalid, Err: "bind_secret_id is not set on the role"},
	}...)
	if len(id) != 36 || len(accessor) != 36 || id == accessor {
		t.Errorf("secret id of %d bytes, accessor %q", len(id), accessor)
	}
	b.NoTrace(id, "my own")
	b.Do(del, "role/app", "")
	for _, table := range []store.Table{store.Config, store.Engine, store.Secrets} {
		if n := b.Count(table); n != 0 {
			t.Errorf("%d rows of %s are left of a deleted role", n, table)
		}
	}
}

func TestNeverExpiring(t *testing.T) {
	b := bench(t, "")
	b.Do(put, "role/app/custom-secret-id", `{"secret_id":"s"}`)
	b.Run(enginetest.Step{Verb: put, Path: "role/app/secret-id/lookup", Body: `{"secret_id":"s"}`, After: 9999 * time.Hour, Want: `{"secret_id_accessor":"*",
		"secret_id_num_uses":0,"secret_id_ttl":0,"creation_time":"*","expiration_time":"0001-01-01T00:00:00Z","last_updated_time":"*",
		"metadata":{},"cidr_list":[],"token_bound_cidrs":[]}`})
	b.Default.MaxTTL = time.Hour
	b.Run(enginetest.Step{
		Name: "no longer than the mount allows", Verb: put, Path: "role/app/secret-id", Body: `{"ttl":"3h"}`,
		Want: `{"secret_id":"*","secret_id_accessor":"*","secret_id_ttl":3600,"secret_id_num_uses":0}`,
	})
}

func TestLogin(t *testing.T) {
	b := bench(t, `,"token_policies":"p","token_ttl":"20m","token_type":"batch","token_bound_cidrs":"10.0.0.0/8"`)
	id, accessor := issue(b, `{"metadata":{"team":"x","role_name":"forged"}}`)
	l, err := login(b, " app-id ", " "+id+"\n")
	if err != nil {
		t.Fatal(err)
	}
	metadata := map[string]string{"team": "x", "role_name": "app"}
	want := &engine.Login{
		Alias: "app-id", AliasMeta: metadata, Role: "app", Metadata: metadata, Instance: accessor,
		Token: engine.TokenTerms{TTL: 20 * time.Minute, Policies: []string{"p"}, Type: "batch", BoundCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
	}
	if !reflect.DeepEqual(l, want) {
		t.Errorf("got %+v\nwant %+v", l, want)
	}
	if b.Reads != 2 {
		t.Errorf("a login took %d point reads", b.Reads)
	}
	refused(t, b, "", id, "missing role_id")
	refused(t, b, "app-id", "", "missing secret_id")
	refused(t, b, "app", id, invalid)
	refused(t, b, "app-id", "wrong", invalid)
	refused(t, b, "app-id", accessor, invalid)
	b.Do(put, "role/other", `{"role_id":"other-id"}`)
	refused(t, b, "other-id", id, invalid)
	b.Do(put, "role/app/role-id", `{"role_id":"new-id"}`)
	refused(t, b, "app-id", id, invalid)
	if l, err = login(b, "new-id", id); err != nil || l.Alias != "new-id" {
		t.Errorf("under its new role id: %+v, %v", l, err)
	}
	b.Do(put, "role/app/secret-id/destroy", fmt.Sprintf(`{"secret_id":%q}`, id))
	refused(t, b, "new-id", id, invalid)
	b.NoTrace(id)
	b.Rows(func(row store.Row) {
		if strings.Contains(row.Name, "new-id") {
			t.Errorf("the name %q tells the role id", row.Name)
		}
	})
}

func TestLoginWithoutSecretID(t *testing.T) {
	b := bench(t, `,"bind_secret_id":false,"secret_id_bound_cidrs":"10.0.0.0/8"`)
	l, err := login(b, "app-id", "")
	if err != nil || l.Instance != "" || l.Metadata["role_name"] != "app" || b.Reads != 1 {
		t.Errorf("%+v, %v, %d reads", l, err, b.Reads)
	}
	b.Client = netip.MustParseAddr("192.0.2.9")
	refused(t, b, "app-id", "", `source address "192.0.2.9" unauthorized by CIDR restrictions on the role`)
}

func TestAddresses(t *testing.T) {
	b := bench(t, `,"secret_id_bound_cidrs":"10.0.0.0/8","token_bound_cidrs":"10.0.0.0/8"`)
	const outside = "failed to verify subset relationship between CIDR blocks on the role and CIDR blocks on the secret ID"
	b.Run(
		enginetest.Step{Verb: put, Path: "role/app/secret-id", Body: `{"cidr_list":"11.0.0.0/8"}`, Kind: api.Invalid, Err: outside},
		enginetest.Step{Verb: put, Path: "role/app/secret-id", Body: `{"token_bound_cidrs":"0.0.0.0/0"}`, Kind: api.Invalid, Err: outside},
	)
	id, _ := issue(b, `{"cidr_list":"10.1.0.0/16","token_bound_cidrs":"10.9.0.0/16","num_uses":1}`)
	b.Client = netip.MustParseAddr("10.2.0.1")
	refused(t, b, "app-id", id, `source address "10.2.0.1" unauthorized through CIDR restrictions on the secret ID`)
	b.Client = netip.MustParseAddr("10.1.0.1")
	l, err := login(b, "app-id", id)
	if err != nil {
		t.Fatalf("a refused login has used the secret id up: %v", err)
	}
	if got := fmt.Sprint(l.Token.BoundCIDRs); got != "[10.9.0.0/16]" {
		t.Errorf("the token is bound to %s", got)
	}
	id, _ = issue(b, `{"token_bound_cidrs":"10.9.0.0/16"}`)
	b.Do(put, "role/app/token-bound-cidrs", `{"token_bound_cidrs":"10.8.0.0/16"}`)
	refused(t, b, "app-id", id, outside)
	b.Do(put, "role/app/token-bound-cidrs", `{"token_bound_cidrs":"10.0.0.0/8"}`)
	id, _ = issue(b, `{"cidr_list":"10.1.0.0/16"}`)
	b.Do(put, "role/app/secret-id-bound-cidrs", `{"secret_id_bound_cidrs":"10.2.0.0/16"}`)
	refused(t, b, "app-id", id, outside)
	id, _ = issue(b, "")
	refused(t, b, "app-id", id, `source address "10.1.0.1" unauthorized by CIDR restrictions on the role`)
}

func TestExpiry(t *testing.T) {
	b := bench(t, `,"secret_id_ttl":"1h"`)
	id, accessor := issue(b, "")
	b.Clock.Advance(time.Hour - 1)
	if _, err := login(b, "app-id", id); err != nil {
		t.Fatal(err)
	}
	b.Clock.Advance(1)
	refused(t, b, "app-id", id, invalid)
	b.Run(
		enginetest.Step{Verb: put, Path: "role/app/secret-id/lookup", Body: `{"secret_id":"` + id + `"}`},
		enginetest.Step{Verb: put, Path: "role/app/secret-id-accessor/lookup", Body: `{"secret_id_accessor":"` + accessor + `"}`,
			Kind: api.NotFound, Err: `failed to find accessor entry for secret_id_accessor: "` + accessor + `"`},
	)
	live, liveAccessor := issue(b, "")
	b.Run(enginetest.Step{Verb: ls, Path: "role/app/secret-id/", Want: `{"keys":["` + liveAccessor + `"]}`})
	b.Clock.Advance(time.Minute)
	b.Do(put, "role/more", `{"secret_id_ttl":"1s"}`)
	for range 5 {
		b.Do(put, "role/more/secret-id", "")
	}
	b.Clock.Advance(time.Minute)
	b.Run(enginetest.Step{Verb: put, Path: "tidy/secret-id", Status: 202, Warn: "Tidy operation successfully started. What it removes is in the audit trail."})
	if s, e := b.Count(store.Secrets), b.Count(store.Engine); s != 1 || e != 1 {
		t.Errorf("%d secret ids and %d accessors are left", s, e)
	}
	if _, err := login(b, "app-id", live); err != nil {
		t.Error(err)
	}
}

// What expires does not pile up, even if nobody ever lists or tidies.
func TestNewSecretIDsSweep(t *testing.T) {
	b := bench(t, `,"secret_id_ttl":"1m"`)
	for range 400 {
		b.Clock.Advance(5 * time.Second)
		issue(b, "")
	}
	if n := b.Count(store.Secrets); n > 60 || n != b.Count(store.Engine) {
		t.Errorf("%d secret ids and %d accessors are kept, of which 12 are live", n, b.Count(store.Engine))
	}
}

func TestUses(t *testing.T) {
	b := bench(t, `,"secret_id_num_uses":2`)
	id, _ := issue(b, "")
	for _, left := range []int{2, 1} {
		d := b.Do(put, "role/app/secret-id/lookup", `{"secret_id":"`+id+`"}`).Data
		if d["secret_id_num_uses"] != left {
			t.Errorf("%v uses left, want %d", d["secret_id_num_uses"], left)
		}
		b.Clock.Advance(time.Second)
		if _, err := login(b, "app-id", id); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, b, "app-id", id, invalid)
	if n := b.Count(store.Secrets) + b.Count(store.Engine); n != 0 {
		t.Errorf("%d rows are left of a used-up secret id", n)
	}
}

// Of many logins at once with the same secret id exactly as many succeed as it is good for.
func TestLastUse(t *testing.T) {
	b := bench(t, "")
	for _, uses := range []int{1, 3} {
		id, _ := issue(b, fmt.Sprintf(`{"num_uses":%d}`, uses))
		late, err := begin(b, "app-id", id)
		if err != nil {
			t.Fatal(err)
		}
		errs := make([]error, 12)
		var wait sync.WaitGroup
		for i := range errs {
			wait.Go(func() { _, errs[i] = login(b, "app-id", id) })
		}
		wait.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if err.Error() != invalid {
				t.Error(err)
			}
		}
		if won != uses {
			t.Errorf("%d logins with a secret id that is good for %d", won, uses)
		}
		enginetest.Unwritten(t, late)
	}
}

func TestStaleLogins(t *testing.T) {
	b := bench(t, "")
	for name, change := range map[string]func(id string){
		"the role changed":            func(string) { b.Do(put, "role/app/policies", `{"policies":"less"}`) },
		"the role went":               func(string) { b.Do(del, "role/app", "") },
		"the role id changed":         func(string) { b.Do(put, "role/app/role-id", `{"role_id":"new-id"}`) },
		"the secret id was destroyed": func(id string) { b.Do(put, "role/app/secret-id/destroy", `{"secret_id":"`+id+`"}`) },
	} {
		t.Run(name, func(t *testing.T) {
			b.Do(put, "role/app", `{"role_id":"app-id"}`)
			id, _ := issue(b, "")
			act, err := begin(b, "app-id", id)
			if err != nil {
				t.Fatal(err)
			}
			change(id)
			enginetest.Unwritten(t, act)
		})
	}
	// A secret id is not made for a role that is going.
	b.Do(put, "role/app", `{"role_id":"app-id"}`)
	act, err := b.Begin(put, "role/app/secret-id", "")
	if err != nil {
		t.Fatal(err)
	}
	b.Do(del, "role/app", "")
	enginetest.Unwritten(t, act)
	// Nor do two roles take the same role id.
	if act, err = b.Begin(put, "role/one", `{"role_id":"same"}`); err != nil {
		t.Fatal(err)
	}
	b.Do(put, "role/two", `{"role_id":"same"}`)
	enginetest.Unwritten(t, act)
}

// Logins with a secret id of unlimited use are not in each other's way.
func TestUnlimitedLoginsDoNotConflict(t *testing.T) {
	b := bench(t, "")
	id, _ := issue(b, "")
	one, err := begin(b, "app-id", id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := login(b, "app-id", id); err != nil {
		t.Fatal(err)
	}
	if err := one.Commit(); err != nil {
		t.Error(err)
	}
	if len(one.Reply.Txn.Puts)+len(one.Reply.Txn.Deletes) != 0 {
		t.Error("a login writes, though nothing is used up")
	}
}

func BenchmarkLogin(b *testing.B) {
	bn := enginetest.New(b, approle.Backend{}, nil)
	bn.Do(put, "role/app", `{"role_id":"app-id","token_policies":"p"}`)
	id, _ := issue(bn, "")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := begin(bn, "app-id", id); err != nil {
			b.Fatal(err)
		}
	}
}

func TestVerbs(t *testing.T) {
	b := enginetest.New(t, approle.Backend{}, nil)
	for _, want := range []lessor.Verb{lessor.Create, lessor.Update} {
		if got := b.Verb(put, "role/App", ""); got != want {
			t.Errorf("a write is %s, want %s", got, want)
		}
		b.Do(put, "role/app", `{}`)
	}
}
