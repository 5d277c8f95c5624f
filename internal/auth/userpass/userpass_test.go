package userpass

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/lessor-dev/lessor/api"
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

// cheap makes hashing fast for a test.
func cheap(t *testing.T) {
	before, stranger := cost, nobody
	cost = bcrypt.MinCost
	hash, err := bcrypt.GenerateFromPassword([]byte("nobody"), cost)
	if err != nil {
		t.Fatal(err)
	}
	nobody = string(hash)
	t.Cleanup(func() { cost, nobody = before, stranger })
}

func TestConform(t *testing.T) {
	cheap(t)
	enginetest.Conform(t, New(), nil)
}

// terms is what a read of a user answers, apart from some keys.
func terms(with map[string]string) string {
	all := map[string]string{
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

func TestUsers(t *testing.T) {
	cheap(t)
	enginetest.New(t, New(), nil).Run([]enginetest.Step{
		{Verb: ls, Path: "users/", Fails: true, Kind: api.NotFound},
		{Verb: get, Path: "users/ann", Fails: true, Kind: api.NotFound},
		{Verb: put, Path: "users/ann", Body: `{"token_policies":"a"}`, Kind: api.Invalid, Err: "\"password\" or \"password_hash\" must be supplied"},
		{Verb: put, Path: "users/ann", Body: `{"password":""}`, Kind: api.Invalid, Err: "\"password\" or \"password_hash\" must be supplied"},
		{Verb: put, Path: "users/ann", Body: `{"password":"` + strings.Repeat("x", 73) + `"}`, Kind: api.Invalid, Err: "passwords have at most 72 bytes"},
		{Verb: put, Path: "users/ann", Body: `{"password":"x","password_hash":"y"}`, Kind: api.Invalid, Err: "\"password\" and \"password_hash\" cannot be supplied together"},
		{Verb: put, Path: "users/ann", Body: `{"password_hash":"y"}`, Kind: api.Invalid, Err: "password hash has incorrect length"},
		{Verb: put, Path: "users/ann", Body: `{"password_hash":"$9a$10$EehSWu4FjISZEmYA7dY4tOL1KJR6FQccjvCLN9SqVLHUn541q8EbG"}`, Kind: api.Invalid, Err: "password hash has incorrect prefix"},
		{Verb: put, Path: "users/ann", Body: `{"password_hash":"$2a$31$EehSWu4FjISZEmYA7dY4tOL1KJR6FQccjvCLN9SqVLHUn541q8EbG"}`, Kind: api.Invalid, Err: "password_hash is no bcrypt hash of a cost up to 15"},
		{Verb: put, Path: "users/Ann", Body: `{"password":"pw","token_policies":["a","b"],"token_ttl":"1h","token_max_ttl":7200,"token_bound_cidrs":"10.0.0.0/8,10.1.2.3"}`},
		{Verb: get, Path: "users/ANN", Want: terms(map[string]string{
			"token_policies": `["a","b"]`, "token_ttl": "3600", "token_max_ttl": "7200", "token_bound_cidrs": `["10.0.0.0/8","10.1.2.3"]`,
		})},
		{Name: "what is not sent stays", Verb: put, Path: "users/ann", Body: `{"token_ttl":0,"token_bound_cidrs":"","policies":"c"}`},
		{Name: "older names are shown when used", Verb: get, Path: "users/ann", Want: terms(map[string]string{
			"token_policies": `["c"]`, "policies": `["c"]`, "token_max_ttl": "7200",
		})},
		{Verb: put, Path: "users/ann/policies", Body: `{"token_policies":"d,e"}`},
		{Verb: get, Path: "users/ann", Want: terms(map[string]string{"token_policies": `["d","e"]`, "token_max_ttl": "7200"})},
		{Verb: put, Path: "users/ann/policies", Kind: api.Invalid, Err: "missing token_policies"},
		{Verb: put, Path: "users/bob/policies", Body: `{"token_policies":"d"}`, Kind: api.Invalid, Err: "username does not exist"},
		{Verb: put, Path: "users/bob/password", Body: `{"password":"d"}`, Kind: api.Invalid, Err: "username does not exist"},
		{Verb: put, Path: "users/ann/password", Body: `{}`, Kind: api.Invalid, Err: "\"password\" or \"password_hash\" must be supplied"},
		{Verb: put, Path: "users/ann", Body: `{"token_ttl":"9h"}`, Kind: api.Invalid, Err: "'token_ttl' cannot be greater than 'token_max_ttl'"},
		{Verb: put, Path: "users/ann", Body: `{"token_num_uses":-1}`, Kind: api.Invalid, Err: "'token_num_uses' cannot be negative"},
		{Verb: put, Path: "users/ann", Body: `{"token_type":"strange"}`, Kind: api.Invalid, Err: "invalid 'token_type' value \"strange\""},
		{Verb: put, Path: "users/ann", Body: `{"token_type":"batch","token_period":5}`, Kind: api.Invalid, Err: "'token_type' cannot be 'batch' or 'default_batch' when set to generate periodic tokens"},
		{Verb: put, Path: "users/ann", Body: `{"token_type":"batch","token_num_uses":5}`, Kind: api.Invalid, Err: "'token_type' cannot be 'batch' or 'default_batch' when set to generate tokens with limited use count"},
		{Verb: put, Path: "users/ann", Body: `{"token_bound_cidrs":"here"}`, Kind: api.Invalid, Err: `field "token_bound_cidrs": "here" is no CIDR block and no address`},
		{Verb: put, Path: "users/bob", Body: `{"password":"x"}`},
		{Verb: ls, Path: "users/", Want: `{"keys":["ann","bob"]}`},
		{Verb: del, Path: "users/Ann"},
		{Verb: del, Path: "users/ann"},
		{Verb: get, Path: "users/ann", Fails: true, Kind: api.NotFound},
		{Verb: ls, Path: "users/", Want: `{"keys":["bob"]}`},
	}...)
}

// login tries to log in as a client without a token.
func login(b *enginetest.Bench, name, password string) (*enginetest.Act, error) {
	return b.BeginAs(&lessor.Principal{}, put, "login/"+name, fmt.Sprintf(`{"password":%q}`, password))
}

func TestLogin(t *testing.T) {
	cheap(t)
	b := enginetest.New(t, New(), nil)
	b.Do(put, "users/ann", `{"password":"pässword","token_policies":"dev","token_ttl":"1h","token_bound_cidrs":"10.0.0.0/8"}`)
	act, err := login(b, "ANN", "pässword")
	if err != nil {
		t.Fatal(err)
	}
	l := act.Reply.Login
	if l == nil || l.Alias != "ann" || l.Name != "ann" || l.Metadata["username"] != "ann" || l.Token.TTL != time.Hour || l.Token.Policies[0] != "dev" {
		t.Errorf("login %+v", l)
	}
	if err := act.Commit(); err != nil {
		t.Error(err)
	}
	const refused = "invalid username or password"
	for _, c := range []struct {
		name, password, text string
		kind                 api.Kind
	}{
		{"ann", "wrong", refused, api.Invalid},
		{"ann", "pässword ", refused, api.Invalid},
		{"nobody", "pässword", refused, api.Invalid},
		{"ann", "", "invalid credentials", api.Invalid},
	} {
		if _, err := login(b, c.name, c.password); err == nil || err.Error() != c.text || api.KindOf(err) != c.kind {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	b.Client = netip.MustParseAddr("192.0.2.1")
	if _, err := login(b, "ann", "pässword"); api.KindOf(err) != api.Unauthenticated {
		t.Errorf("from elsewhere: %v", err)
	}
	b.Client = netip.MustParseAddr("10.0.0.9")

	hash, _ := bcrypt.GenerateFromPassword([]byte("hashed"), bcrypt.MinCost)
	b.Do(put, "users/ann/password", fmt.Sprintf(`{"password_hash":%q}`, hash))
	if _, err := login(b, "ann", "pässword"); err == nil {
		t.Error("the old password still works")
	}
	if _, err := login(b, "ann", "hashed"); err != nil {
		t.Error(err)
	}
	b.NoTrace("pässword", "hashed", string(hash))
}

// A password that begins with 72 bytes of the true one is not the true one.
func TestLongPassword(t *testing.T) {
	cheap(t)
	b := enginetest.New(t, New(), nil)
	long := strings.Repeat("x", 72)
	b.Do(put, "users/ann", fmt.Sprintf(`{"password":%q}`, long))
	if _, err := login(b, "ann", long); err != nil {
		t.Error(err)
	}
	if _, err := login(b, "ann", long+"y"); err == nil {
		t.Error("a longer password works, too")
	}
}

// Whether there is such a user is not to be seen from the time that a refusal takes.
func TestUnknownUsersTakeAsLong(t *testing.T) {
	b := enginetest.New(t, New(), nil)
	b.Do(put, "users/ann", `{"password":"pw"}`)
	best := map[string]time.Duration{"ann": time.Hour, "nobody": time.Hour} // what else the machine does only makes them take longer
	for range 12 {
		for name := range best {
			start := time.Now()
			if _, err := login(b, name, "wrong"); err == nil {
				t.Fatal("logged in with a wrong password")
			}
			best[name] = min(best[name], time.Since(start))
		}
		if best["nobody"] >= best["ann"]/2 && best["ann"] >= best["nobody"]/2 {
			return
		}
	}
	t.Errorf("a known user is refused after %s, an unknown one after %s", best["ann"], best["nobody"])
}

func TestStaleLogins(t *testing.T) {
	cheap(t)
	b := enginetest.New(t, New(), nil)
	for _, change := range []func(){
		func() { b.Do(put, "users/ann/password", `{"password":"new"}`) },
		func() { b.Do(put, "users/ann/policies", `{"policies":"less"}`) },
		func() { b.Do(del, "users/ann", "") },
	} {
		b.Do(put, "users/ann", `{"password":"pw"}`)
		act, err := login(b, "ann", "pw")
		if err != nil {
			t.Fatal(err)
		}
		change()
		enginetest.Unwritten(t, act)
	}
	if n := b.Count(store.Secrets) + b.Count(store.Config); n != 0 {
		t.Errorf("%d rows are left of a deleted user", n)
	}
	late, err := b.Begin(put, "users/eve", `{"password":"pw"}`)
	if err != nil {
		t.Fatal(err)
	}
	b.Do(put, "users/eve", `{"password":"other"}`)
	enginetest.Unwritten(t, late)
}

func TestVerbs(t *testing.T) {
	cheap(t)
	b := enginetest.New(t, New(), nil)
	for _, want := range []lessor.Verb{lessor.Create, lessor.Update} {
		if got := b.Verb(put, "users/Ann", ""); got != want {
			t.Errorf("a write is %s, want %s", got, want)
		}
		b.Do(put, "users/ann", `{"password":"x"}`)
	}
}
