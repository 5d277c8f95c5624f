package rabbitmq

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rabbittest"
)

// bench is a connection to the server.
type bench struct {
	*rabbittest.Server
	t testing.TB
	database.Database
}

func newBench(t testing.TB, change ...func(*database.Connection, *database.Secrets)) *bench {
	t.Helper()
	s := rabbittest.Start(t)
	return &bench{s, t, connection(t, s, change...)}
}

// connection is one of the administrator, changed.
func connection(t testing.TB, s *rabbittest.Server, change ...func(*database.Connection, *database.Secrets)) database.Database {
	t.Helper()
	c := &database.Connection{URL: s.URL, Username: rabbittest.Admin}
	secrets := database.Secrets{Password: lessor.NewSecret(s.Password())}
	for _, f := range change {
		f(c, &secrets)
	}
	if err := (Driver{}).Check(c, secrets); err != nil {
		t.Fatal(err)
	}
	d, err := Driver{}.Open(c, secrets)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

var serial atomic.Int64

// account is a new one, unlike any other of the process.
func account() database.Account {
	n := serial.Add(1)
	a := database.Account{
		Lease: fmt.Sprintf("rabbitmq/creds/app/%d-%d", os.Getpid(), n), Username: fmt.Sprintf("test.app-%d_%d", os.Getpid(), n),
		Mount: strings.Repeat("a1", 12), Role: strings.Repeat("b2", 12),
		Password: lessor.NewSecret(fmt.Sprintf("päss word' %d", n)), Until: time.Now().Add(time.Hour),
	}
	a.Creation = []string{`{"tags":"monitoring,policymaker","vhosts":{"/":{"configure":"^$","write":"","read":".*"}},"vhost_topics":{"/":{"amq.topic":{"write":"","read":"a.*"}}}}`}
	return a
}

func (b *bench) user(name string) *user {
	b.t.Helper()
	answer := b.Do(b.t, http.MethodGet, rabbittest.User(name), nil)
	if answer == nil {
		return nil
	}
	var u user
	if err := json.Unmarshal(answer, &u); err != nil {
		b.t.Fatal(err)
	}
	return &u
}

func (b *bench) logsIn(username, password string) bool {
	b.t.Helper()
	c, err := b.Dial(username, password, "/")
	if err != nil {
		if !errors.Is(err, rabbittest.ErrRefused) {
			b.t.Fatal(err)
		}
		return false
	}
	c.Close()
	return true
}

func (b *bench) create(a database.Account) database.Account {
	b.t.Helper()
	if err := b.Create(b.t.Context(), a); err != nil {
		b.t.Fatal(err)
	}
	return a
}

func (b *bench) remove(as ...database.Account) {
	b.t.Helper()
	for i, err := range b.Database.Remove(b.t.Context(), as) {
		if err != nil {
			b.t.Errorf("%s: %v", as[i].Username, err)
		}
		if b.user(as[i].Username) != nil {
			b.t.Errorf("%s is still there", as[i].Username)
		}
	}
}

// An account has the tags and permissions that its statements say.
func TestPermissions(t *testing.T) {
	b := newBench(t)
	a := b.create(account())
	if u := b.user(a.Username); !slices.Contains(u.Tags, "monitoring") || !slices.Contains(u.Tags, "policymaker") {
		t.Errorf("tags %v", u.Tags)
	}
	for path, want := range map[string]string{
		"permissions/%2F/":       `"configure":"^$","write":"","read":".*"`,
		"topic-permissions/%2F/": `"exchange":"amq.topic","write":"","read":"a.*"`,
	} {
		if got := string(b.Do(t, http.MethodGet, path+a.Username, nil)); !strings.Contains(got, want) {
			t.Errorf("%s%s: %s", path, a.Username, got)
		}
	}
	b.remove(a)
}

// What arrives after its account was removed brings back an account that may do nothing; it is removed again, as long as something may come.
func TestRequestThatComesTooLate(t *testing.T) {
	b := newBench(t)
	a := b.create(account())
	b.remove(a)
	d := b.Database.(*broker)
	for _, table := range []string{"permissions", "topic-permissions"} {
		body := map[string]string{"exchange": "amq.topic", "configure": "", "write": "", "read": ""}
		if err := d.call(t.Context(), http.MethodPut, body, nil, table, "/", a.Username); refused(err) != http.StatusBadRequest {
			t.Errorf("%s of an account that was removed: %v", table, err)
		}
	}
	if err := d.put(t.Context(), a.Username, digest(a.Password, a.Lease), marked(&a)); err != nil {
		t.Fatal(err)
	}
	if b.logsIn(a.Username, a.Password.Reveal()) {
		t.Error("an account that came back opens a virtual host")
	}
	b.remove(a)
}

// A request that broke off is not sent again behind the caller's back.
func TestRequestIsSentOnce(t *testing.T) {
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fmt.Fprint(w, `{"tags":["administrator"]}`)
			return
		}
		asked.Add(1)
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			c.Close()
		}
	}))
	defer s.Close()
	d := connection(t, &rabbittest.Server{URL: s.URL})
	if err := d.Ping(t.Context()); err != nil { // there is a connection that is used again
		t.Fatal(err)
	}
	if err := d.SetPassword(t.Context(), database.Change{Username: "app", Password: lessor.NewSecret("x")}); !errors.Is(err, database.ErrUnreachable) || errors.Is(err, database.ErrUntouched) {
		t.Errorf("got %v", err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestStaticAccount(t *testing.T) {
	b := newBench(t)
	name := fmt.Sprintf("static:ä/../%d", serial.Add(1)) // names that URLs and HTTP have to be told apart from what they mean there
	b.Do(t, http.MethodPut, rabbittest.User(name), map[string]string{"password": "one", "tags": "x,y z"})
	b.Do(t, http.MethodPut, "permissions/%2F/"+url.PathEscape(name), map[string]string{"configure": "", "write": "", "read": ""})
	defer b.Do(t, http.MethodDelete, rabbittest.User(name), nil)
	verdict := func(username, password string, want database.Verdict) {
		t.Helper()
		if got, err := b.Login(t.Context(), username, lessor.NewSecret(password)); err != nil || got != want {
			t.Errorf("%s: verdict %v, %v; want %v", password, got, err, want)
		}
	}
	verdict(name, "one", database.Accepted)
	verdict(name, "two", database.Refused)
	verdict("nobody", "two", database.Refused)
	verdict(rabbittest.Admin, b.Password(), database.Accepted)
	verdict(rabbittest.Admin, "wrong", database.Refused)
	c := database.Change{Name: "static/x", Username: name, Password: lessor.NewSecret("two")}
	for range 2 {
		if err := b.SetPassword(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	verdict(name, "one", database.Refused)
	verdict(name, "two", database.Accepted)
	if !b.logsIn(name, "two") || b.logsIn(name, "one") {
		t.Error("the broker sees it otherwise")
	}
	if u := b.user(name); !slices.Equal(u.Tags, tags{"x", "y z"}) {
		t.Errorf("tags are %q now", u.Tags)
	}
	conn, err := b.Dial(name, "two", "/")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sessions := func() database.Session {
		found, err := b.Sessions(t.Context(), []string{name, "nobody"})
		if err != nil || len(found) > 1 {
			t.Fatalf("sessions %+v, %v", found, err)
		}
		return append(found, database.Session{})[0]
	}
	for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		found := sessions()
		if found.Username == name && found.Client == "127.0.0.1" && found.Application == "rabbittest" && time.Since(found.Since) < time.Minute {
			break
		}
		if time.Since(start) > 30*time.Second {
			t.Fatalf("its client says of itself %+v", found)
		}
	}
	for range 2 {
		if err := b.End(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if !conn.Ended(30 * time.Second) {
		t.Error("a connection that was ended goes on")
	}
	c.Username = "nobody-here"
	if err := b.SetPassword(t.Context(), c); err == nil || !strings.Contains(err.Error(), "there is no account") || b.user(c.Username) != nil {
		t.Errorf("an account that is not there: %v", err)
	}
	c.Self = []lessor.Secret{lessor.NewSecret("x")}
	if err := b.SetPassword(t.Context(), c); api.KindOf(err) != api.Invalid {
		t.Errorf("by itself: %v", err)
	}
}

func TestHashes(t *testing.T) {
	for _, u := range []user{
		{Hash: "/Nd92wESz0MdBwwwFhpiaZhBWsYRDmdoPJKXefClYaH/HP1t", Hashing: sha256Hashing},
		{Hash: digest(lessor.NewSecret("word"), "x"), Hashing: sha256Hashing},
	} {
		if !u.has(lessor.NewSecret("word")) || u.has(lessor.NewSecret("words")) {
			t.Errorf("%+v", u)
		}
	}
	for _, u := range []user{{}, {Hash: "AAAA", Hashing: sha256Hashing}, {Hash: "no base64", Hashing: sha256Hashing}, {Hash: digest(lessor.NewSecret("word"), "x"), Hashing: "other"}} {
		if u.has(lessor.NewSecret("word")) || u.has(lessor.NewSecret("")) {
			t.Errorf("%+v", u)
		}
	}
}

// Lessor's own password changes: it logs in with whichever of those that may be in force is.
func TestOwnPassword(t *testing.T) {
	b := newBench(t)
	own := fmt.Sprintf("own_%d", serial.Add(1))
	b.Do(t, http.MethodPut, rabbittest.User(own), map[string]string{"password": "first", "tags": "administrator"})
	defer b.Do(t, http.MethodDelete, rabbittest.User(own), nil)
	d := connection(t, b.Server, func(c *database.Connection, s *database.Secrets) {
		c.Username, s.Password = own, lessor.NewSecret("first")
	})
	secrets := []lessor.Secret{lessor.NewSecret("second"), lessor.NewSecret("first")}
	d.Use(secrets)
	if err := d.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.SetPassword(t.Context(), database.Change{Name: "root/x", Username: own, Password: secrets[0]}); err != nil {
		t.Fatal(err)
	}
	if err := d.Ping(t.Context()); err != nil {
		t.Errorf("after the change: %v", err)
	}
	d.Use([]lessor.Secret{lessor.NewSecret("wrong")})
	if err := d.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "refused lessor's own login") || errors.Is(err, database.ErrUnreachable) {
		t.Errorf("with a wrong password: %v", err)
	}
	d.Use(secrets[:1])
	b.Do(t, http.MethodPut, rabbittest.User(own), map[string]string{"password": "second", "tags": "monitoring"})
	if err := d.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "lacks the tag administrator") {
		t.Errorf("without its tag: %v", err)
	}
}

// The broker hangs, or is not there: calls end in time with ErrUnreachable.
func TestServerTrouble(t *testing.T) {
	b := newBench(t)
	a := account()
	call := func(what string, f func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := f(ctx); !errors.Is(err, database.ErrUnreachable) || strings.Contains(err.Error(), b.Password()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	all := func(what string, d database.Database) {
		call(what+", create", func(ctx context.Context) error { return d.Create(ctx, a) })
		call(what+", renew", func(ctx context.Context) error { return d.Renew(ctx, a) })
		call(what+", remove", func(ctx context.Context) error { return d.Remove(ctx, []database.Account{a})[0] })
		call(what+", ping", d.Ping)
		call(what+", login", func(ctx context.Context) error { _, err := d.Login(ctx, a.Username, a.Password); return err })
	}
	if err := b.Pause(); err != nil {
		t.Fatal(err)
	}
	all("hanging", b)
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
	b.remove(b.create(a))
	all("not there", connection(t, b.Server, func(c *database.Connection, _ *database.Secrets) { c.URL = "http://127.0.0.1:1" }))
}

// What is no broker is told from one; where it would lead is not followed, and what it says is not believed.
func TestWhatIsNoBroker(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"a page":     {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, "not the management API's"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/api/whoami", http.StatusFound) }, "status 302"},
		"a secret": {func(w http.ResponseWriter, r *http.Request) {
			_, p, _ := r.BasicAuth()
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"reason":"not %s"}`, p)
		}, "not [secret]"},
		"down": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "cannot be reached"},
	} {
		s := httptest.NewServer(c.answer)
		defer s.Close()
		d := connection(t, &rabbittest.Server{URL: s.URL})
		if err := d.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "administrator-password") {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"tags":"administrator"}`) }))
	defer s.Close()
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	d := connection(t, &rabbittest.Server{URL: s.URL})
	if err := d.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "not trusted") {
		t.Errorf("a certificate of nobody's: %v", err)
	}
	d = connection(t, &rabbittest.Server{URL: s.URL}, func(c *database.Connection, _ *database.Secrets) {
		c.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	})
	if err := d.Ping(t.Context()); err != nil {
		t.Errorf("a certificate that is trusted: %v", err)
	}
}

func TestCheck(t *testing.T) {
	for uri, want := range map[string]string{
		"https://rabbit.example.com:15671": "", "http://localhost:15672/prefix/": "", "https://[2001:db8::1]": "",
		"": "connection_uri is needed", "amqp://rabbit": "must be a URL", "https://": "must be a URL", "https://u:p@rabbit": "username and password",
		"https://rabbit?x=1": "ends with its host", "http://169.254.169.254": "link-local",
	} {
		err := Driver{}.Check(&database.Connection{URL: uri, Username: "lessor"}, database.Secrets{})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", uri, err, want)
		}
	}
	if (Driver{}).Check(&database.Connection{URL: "http://localhost", Username: "lessor", CA: "x"}, database.Secrets{}) == nil {
		t.Error("a CA for plain HTTP was taken")
	}
	same := func(a, b string) bool {
		return Driver{}.SameServer(&database.Connection{URL: a}, &database.Connection{URL: b})
	}
	if !same("https://Rabbit/x", "https://rabbit:443") || same("https://rabbit", "http://rabbit") || same("", "") {
		t.Error("SameServer")
	}
	for statement, want := range map[string]string{
		`{"tags":"x"}`: "", `{}`: "not specified", `x`: "damaged", `{"tags":"lessor-lease-x"}`: "lessor's own", `{"vhosts":{"":{}}}`: "no virtual host",
		`{"vhost_topics":{"/":{"":{}}}}`: "no exchange", `{"tags":" , "}`: "",
	} {
		err := Driver{}.CheckRole(&database.Statements{Creation: []string{statement}})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", statement, err, want)
		}
	}
}

func TestTags(t *testing.T) {
	for text, want := range map[string]string{`["a","b c"]`: "a|b c", `"a,b"`: "a|b", `""`: "", `[]`: ""} {
		var got tags
		if err := json.Unmarshal([]byte(text), &got); err != nil || strings.Join(got, "|") != want {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
}
