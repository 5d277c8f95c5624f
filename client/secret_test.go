package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/lessortest"
)

// patience is how long a test waits for what must happen.
const patience = time.Minute

// await waits for the value after v.
func await(t *testing.T, s *client.Secret, v client.Value) client.Value {
	t.Helper()
	select {
	case <-s.Changed(v):
	case <-time.After(patience):
		t.Fatalf("%s did not change within %v: %+v", v.Path, patience, s.Status())
	}
	return s.Value()
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func field(t *testing.T, v client.Value, name string) string {
	t.Helper()
	text, ok := v.Field(name)
	if !ok {
		t.Fatalf("%s has no field %s, but %v", v.Path, name, v.Fields())
	}
	return text
}

func put(s *lessortest.Server, path, password string) {
	s.Write(path, map[string]any{"data": map[string]any{"password": password}})
}

func open(t *testing.T, c *client.Client, m client.Method) *client.Session {
	t.Helper()
	session, err := client.Open(t.Context(), c, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := session.Close(context.Background()); err != nil {
			t.Errorf("closing the session: %v", err)
		}
	})
	return session
}

func secret(t *testing.T, s *client.Session, path string, opts ...client.SecretOption) *client.Secret {
	t.Helper()
	secret, err := s.Secret(t.Context(), path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// Where nobody tells of changes, the renewal of the lease does.
func TestSecretFollowsItsVersions(t *testing.T) {
	server := lessortest.Start(t)
	server.Write("sys/mounts/secret/tune", map[string]any{"options": map[string]any{"lease_duration": "2s"}})
	server.Policy("app", `path "secret/data/app" { capabilities = ["read"] }`)
	put(server, "secret/data/app", "one")
	session := open(t, before(t, server, server.Token("app"), silent), nil)
	s := secret(t, session, "secret/data/app")
	pinned := secret(t, session, "secret/data/app", client.PinVersion(1))
	v := s.Value()
	if v.Version != 1 || field(t, v, "password") != "one" || v.Lease == "" {
		t.Errorf("version %d under lease %q", v.Version, v.Lease)
	}
	put(server, "secret/data/app", "two")
	v = await(t, s, v)
	if v.Version != 2 || field(t, v, "password") != "two" {
		t.Errorf("version %d", v.Version)
	}
	// Written anew, with the same fields: another version all the same.
	put(server, "secret/data/app", "two")
	if v = await(t, s, v); v.Version != 3 {
		t.Errorf("version %d", v.Version)
	}
	if status := s.Status(); status.Err != nil || status.Followed || !status.Expires.IsZero() {
		t.Errorf("%+v", status)
	}
	if v := pinned.Value(); v.Version != 1 || field(t, v, "password") != "one" {
		t.Errorf("the version that was asked for is %d by now", v.Version)
	}
	if _, err := session.Secret(t.Context(), "secret/data/other"); !client.IsStatus(err, http.StatusForbidden) {
		t.Errorf("a secret that no policy permits: %v", err)
	}
}

// A change is heard of when it happens, long before the lease is renewed; that of a secret which was opened later, too.
func TestSecretHearsOfChanges(t *testing.T) {
	server := lessortest.Start(t)
	server.Policy("app", `path "secret/data/*" { capabilities = ["read"] }`)
	session := open(t, server.As("app"), nil)
	var secrets []*client.Secret
	for _, name := range []string{"a", "b", "c"} {
		put(server, "secret/data/"+name, "one")
		s := secret(t, session, "secret/data/"+name)
		if !s.Status().Followed {
			t.Fatalf("changes are not told: %+v", s.Status())
		}
		secrets = append(secrets, s)
		for _, s := range secrets {
			v := s.Value()
			put(server, v.Path, "another")
			if now := await(t, s, v); now.Version != v.Version+1 {
				t.Errorf("%s: version %d after %d", v.Path, now.Version, v.Version)
			}
		}
	}
	if err := secrets[1].Close(t.Context()); err != nil {
		t.Error(err)
	}
	v := secrets[0].Value()
	server.Delete("secret/metadata/a")
	if _, ok := secrets[0].Value().Field("password"); !ok {
		t.Error("the last value went away with the secret")
	}
	put(server, "secret/data/a", "again") // its versions begin anew
	if v = await(t, secrets[0], v); field(t, v, "password") != "again" {
		t.Errorf("version %d", v.Version)
	}
}

// A path may be written with slashes around it, as everywhere: what happens there is told all the same, and it is one path.
func TestSecretWithSlashesAroundItsPath(t *testing.T) {
	server := lessortest.Start(t)
	put(server, "secret/data/app", "one")
	session := open(t, server.Client(), nil)
	app := secret(t, session, "/secret/data/app")
	if got, plain := secret(t, session, "secret/data/app").Value(), app.Value(); got.Lease == plain.Lease {
		t.Errorf("both of one path have the lease %s", got.Lease)
	}
	v := app.Value()
	put(server, "secret/data/app", "two")
	if got := field(t, await(t, app, v), "password"); got != "two" {
		t.Errorf("after a change: %s", got)
	}
}

// However it is shown, nobody sees it.
func TestSecretsAreNotPrinted(t *testing.T) {
	server := lessortest.Start(t)
	put(server, "secret/data/app", "sesame")
	session := open(t, server.Client(), nil)
	s := secret(t, session, "secret/data/app")
	use := s.Acquire()
	defer use.Release()
	v := s.Value()
	for _, shown := range []string{
		fmt.Sprint(v), fmt.Sprintf("%+v %#v %q %x", v, v, v, v), fmt.Sprintf("%v %+v", &v, s), fmt.Sprintf("%+v", use), fmt.Sprintf("%+v", []any{v, s}),
	} {
		if strings.Contains(shown, "sesame") || strings.Contains(shown, "736573616d65") || !strings.Contains(shown, "[secret]") {
			t.Errorf("it is shown as %s", shown)
		}
	}
}

// before is a client of what stands before the server: hide is asked whether a request is to get that far, and may change it.
func before(t *testing.T, server *lessortest.Server, token client.Token, hide func(http.ResponseWriter, *http.Request) bool) *client.Client {
	t.Helper()
	target, err := url.Parse(server.Address)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !hide(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(front.Close)
	c, err := client.New(client.Config{Address: front.URL, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// vault hides what is lessor's own: paths and headers.
func vault(w http.ResponseWriter, r *http.Request) bool {
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Lessor-") {
			r.Header.Del(name)
		}
	}
	own := strings.HasPrefix(r.URL.Path, "/v1/sys/lessor/") || strings.HasPrefix(r.URL.Path, "/v1/sys/events/")
	if own {
		http.Error(w, `{"errors":["unsupported path"]}`, http.StatusNotFound)
	}
	return own
}

// silent hides that the server tells of changes.
func silent(w http.ResponseWriter, r *http.Request) bool {
	own := strings.HasPrefix(r.URL.Path, "/v1/sys/lessor/events")
	if own {
		http.Error(w, `{"errors":["permission denied"]}`, http.StatusForbidden)
	}
	return own
}

// At a server that is not lessor, a secret is read again when it is asked for, or its time is over.
func TestSecretOfAPlainServer(t *testing.T) {
	server := lessortest.Start(t)
	server.Write("sys/mounts/secret/tune", map[string]any{"options": map[string]any{"lease": "quiet"}})
	put(server, "secret/data/app", "one")
	s := secret(t, open(t, before(t, server, server.Root, vault), nil), "secret/data/app")
	v := s.Value()
	if v.Version != 1 || v.Lease != "" || s.Status().Followed {
		t.Errorf("version %d, lease %q, %+v", v.Version, v.Lease, s.Status())
	}
	if again, err := s.Refresh(t.Context(), v); err != nil || again.Version != 1 {
		t.Errorf("%d, %v", again.Version, err)
	}
	put(server, "secret/data/app", "two")
	again, err := s.Refresh(t.Context(), v)
	if err != nil || again.Version != 2 {
		t.Errorf("%d, %v", again.Version, err)
	}
	s.Adopt(again)
	eventually(t, "nothing older is in use", s.Settled)
}

// While the server is away the last value stays, and when it is back the secret goes on.
func TestSecretOutlivesTheServersAbsence(t *testing.T) {
	server := lessortest.Start(t)
	server.Write("sys/mounts/secret/tune", map[string]any{"options": map[string]any{"lease_duration": "2s"}})
	put(server, "secret/data/app", "one")
	var away atomic.Bool
	c := before(t, server, server.Root, func(w http.ResponseWriter, r *http.Request) bool {
		if away.Load() {
			panic(http.ErrAbortHandler)
		}
		return silent(w, r)
	})
	s := secret(t, open(t, c, nil), "secret/data/app")
	v := s.Value()
	away.Store(true)
	eventually(t, "the status says that the server is away", func() bool { return s.Status().Err != nil })
	put(server, "secret/data/app", "two")
	if now := s.Value(); field(t, now, "password") != "one" {
		t.Error("the last value went away")
	}
	away.Store(false)
	if v = await(t, s, v); v.Version != 2 || s.Status().Err != nil {
		t.Errorf("version %d, %+v", v.Version, s.Status())
	}
}

// A Secret whose session does not hear of changes any more says so, and hears again of what it missed.
func TestSecretKnowsThatItHearsNothing(t *testing.T) {
	server := lessortest.Start(t)
	put(server, "secret/data/app", "one")
	var away atomic.Bool
	c := before(t, server, server.Root, func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/v1/sys/lessor/events") {
			return false
		}
		if away.Load() {
			panic(http.ErrAbortHandler)
		}
		ctx, cancel := context.WithCancel(r.Context())
		go func() { // what is under way breaks off, too
			defer cancel()
			for !away.Load() && ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
		}()
		*r = *r.WithContext(ctx)
		return false
	})
	s := secret(t, open(t, c, nil), "secret/data/app")
	v := s.Value()
	if status := s.Status(); !status.Followed || time.Since(status.Confirmed) > patience {
		t.Errorf("%+v", status)
	}
	away.Store(true)
	eventually(t, "it knows that it hears nothing", func() bool { return !s.Status().Followed })
	put(server, "secret/data/app", "two")
	away.Store(false)
	if v = await(t, s, v); v.Version != 2 {
		t.Errorf("version %d", v.Version)
	}
	eventually(t, "it hears again", func() bool { return s.Status().Followed })
}

// acknowledged tells which version each instance may use at least, and which it acknowledged.
func acknowledged(server *lessortest.Server, path string) map[string]string {
	all := map[string]string{}
	for _, h := range server.Read("sys/lessor/holders/" + path).Data["holders"].([]any) {
		h := h.(map[string]any)
		all[h["instance"].(string)] = fmt.Sprintf("%v acknowledged %v", h["oldest"], h["acknowledged"])
	}
	return all
}

// The server hears that an older value is out of use when the last use of it has ended and the newer one is adopted, and not before.
func TestSecretAcknowledges(t *testing.T) {
	server := lessortest.Start(t)
	put(server, "secret/data/app", "one")
	session := open(t, server.Client().WithInstance("pod-7"), nil)
	s := secret(t, session, "secret/data/app")
	// A process that has just begun uses nothing that its predecessor did.
	eventually(t, "the first value is acknowledged", s.Settled)
	now := func() string { return acknowledged(server, "secret/app")["pod-7"] }
	if got := now(); got != "1 acknowledged 1" {
		t.Errorf("after the first read: %s", got)
	}
	old, older := s.Acquire(), s.Acquire()
	put(server, "secret/data/app", "two")
	v := await(t, s, old.Value)
	other := secret(t, session, "secret/data/app") // of the same process, and a holder of its own
	older.Release()
	older.Release()
	s.Adopt(v)
	other.Adopt(other.Value())
	eventually(t, "the other holder has moved", other.Settled)
	if got := acknowledged(server, "secret/app"); s.Settled() || got["pod-7"] != "1 acknowledged 1" || got["pod-7/2"] != "2 acknowledged 2" {
		t.Errorf("while the old value is in use: %v", got)
	}
	old.Release()
	eventually(t, "the second value is acknowledged", s.Settled)
	if got := now(); got != "2 acknowledged 2" {
		t.Errorf("after the old value is out of use: %s", got)
	}
	put(server, "secret/data/app", "three")
	await(t, s, v)
	if s.Settled() {
		t.Error("what was read counts as adopted")
	}
	// What is closed and opened anew is the same holder, and uses nothing older.
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = secret(t, session, "secret/data/app")
	eventually(t, "the third value is acknowledged", s.Settled)
	if got := acknowledged(server, "secret/app"); got["pod-7"] != "3 acknowledged 3" || len(got) != 2 {
		t.Errorf("after it was opened anew: %v", got)
	}
}

// A session's token is renewed, and replaced when it cannot be; what it reads goes on.
func TestSessionStaysLoggedIn(t *testing.T) {
	server := lessortest.Start(t)
	server.Write("sys/auth/approle", map[string]any{"type": "approle"})
	server.Policy("app", `path "secret/data/app" { capabilities = ["read"] }`)
	server.Write("auth/approle/role/app", map[string]any{"token_policies": "app", "token_ttl": "3s", "token_max_ttl": "5s"})
	role := server.Read("auth/approle/role/app/role-id").Data["role_id"].(string)
	put(server, "secret/data/app", "one")
	wrapped, err := server.Client().WithWrapTTL(patience).Write(t.Context(), "auth/approle/role/app/secret-id", nil)
	if err != nil {
		t.Fatal(err)
	}
	session := open(t, server.Client().WithToken(client.Token{}), &client.AppRole{RoleID: role, SecretID: client.NewToken(wrapped.WrapInfo.Token), Wrapped: true})
	s := secret(t, session, "secret/data/app")
	first := session.Client().Token()
	eventually(t, "another token", func() bool { return session.Client().Token() != first })
	if _, err := s.Refresh(t.Context(), s.Value()); err != nil {
		t.Error(err)
	}
	// Somebody revokes the token: there is another as soon as that is noticed.
	second := session.Client().Token()
	server.Write("auth/token/revoke", map[string]any{"token": second.Reveal()})
	if _, err := s.Refresh(t.Context(), s.Value()); session.Client().Token() == second && !client.IsStatus(err, http.StatusForbidden) {
		t.Errorf("with a revoked token: %v", err)
	}
	eventually(t, "a third token", func() bool { return session.Client().Token() != second })
	eventually(t, "the secret goes on", func() bool { return s.Status().Err == nil })
}

// A session ends what it logged in for, and no token that it was given.
func TestSessionEndsItsOwnToken(t *testing.T) {
	server := lessortest.Start(t)
	given := server.As("default")
	session, err := client.Open(t.Context(), given, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := given.Read(t.Context(), "auth/token/lookup-self", nil); err != nil {
		t.Errorf("the token that was given: %v", err)
	}
	server.Write("sys/auth/approle", map[string]any{"type": "approle"})
	server.Write("auth/approle/role/app", map[string]any{"bind_secret_id": false, "token_bound_cidrs": "127.0.0.1/32"})
	role := server.Read("auth/approle/role/app/role-id").Data["role_id"].(string)
	if session, err = client.Open(t.Context(), server.Client().WithToken(client.Token{}), &client.AppRole{RoleID: role}); err != nil {
		t.Fatal(err)
	}
	own := session.Client()
	if err := session.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := own.Read(t.Context(), "auth/token/lookup-self", nil); !client.IsStatus(err, http.StatusForbidden) {
		t.Errorf("its own token after it was closed: %v", err)
	}
}

// A session is closed while a secret is opened that cannot be had.
func TestSessionClosesWhileASecretIsOpened(t *testing.T) {
	server := lessortest.Start(t)
	asked, closing := make(chan struct{}), make(chan struct{})
	c := before(t, server, server.Root, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v1/secret/data/missing" {
			close(asked)
			<-closing
		}
		return false
	})
	session, err := client.Open(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	opened, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := session.Secret(context.Background(), "secret/data/missing")
		opened <- err
	}()
	<-asked
	go func() { closed <- session.Close(context.Background()) }()
	eventually(t, "the session waits for the secret", func() bool { // to be seen where its goroutine stands only
		var stacks [1 << 20]byte
		return strings.Contains(string(stacks[:runtime.Stack(stacks[:], true)]), "client.(*Secret).Close(")
	})
	close(closing)
	if err := <-opened; !client.IsStatus(err, http.StatusNotFound) {
		t.Errorf("a secret that is not there: %v", err)
	}
	select {
	case err := <-closed:
		if err != nil {
			t.Errorf("closing the session: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the session is never closed")
	}
}

// A subscription that has lost its place, and is cut off before it has another, loses nothing without saying so.
func TestSubscriptionThatIsCutOff(t *testing.T) {
	server := lessortest.Start(t)
	var lost atomic.Bool
	begins := make(chan struct{}, 1)
	c := before(t, server, server.Root, func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case !lost.Load():
			return false
		case r.URL.Query().Get("after") != "":
			r.URL.RawQuery = "after=forgotten"
			return false
		}
		begins <- struct{}{}
		<-r.Context().Done()
		return true
	})
	s, err := c.Subscribe(t.Context(), client.Rotated)
	if err != nil {
		t.Fatal(err)
	}
	lost.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begins; cancel() }()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	lost.Store(false)
	put(server, "secret/data/app", "one")
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	if events, err := s.Next(ctx); !errors.Is(err, client.ErrLostPlace) && (err != nil || len(events) != 1 || events[0].Path != "secret/data/app") {
		t.Errorf("what happened meanwhile is not told: %v %v", events, err)
	}
}

// A successor of the same instance takes up what its predecessor had, and says that it has moved only when it has.
func TestSuccessor(t *testing.T) {
	server := lessortest.Start(t)
	server.Policy("app", `path "secret/data/*" { capabilities = ["read"] }`)
	put(server, "secret/data/app", "one")
	c := server.As("app").WithInstance("pod-1")
	holder := func() string {
		t.Helper()
		holders := server.Read("sys/lessor/holders/secret/app").Data["holders"].([]any)
		if len(holders) != 1 {
			t.Fatalf("%d holders: %v", len(holders), holders)
		}
		h := holders[0].(map[string]any)
		return fmt.Sprintf("%v %v-%v", h["instance"], h["oldest"], h["newest"])
	}
	first, err := client.Open(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	secret(t, first, "secret/data/app", client.AdoptLater())
	first.Leave()
	put(server, "secret/data/app", "two")
	next := open(t, c, nil)
	if _, err := next.Secret(t.Context(), "secret/data/other"); !client.IsStatus(err, http.StatusNotFound) {
		t.Errorf("%v", err)
	}
	s := secret(t, next, "secret/data/app", client.AdoptLater())
	if got := holder(); got != "pod-1 1-2" || s.Settled() {
		t.Errorf("before it is adopted: %s", got)
	}
	s.Adopt(s.Value())
	eventually(t, "the server is told", s.Settled)
	if got := holder(); got != "pod-1 2-2" {
		t.Errorf("once it is adopted: %s", got)
	}
	// A place that was given up is taken again.
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	secret(t, next, "secret/data/app")
	if got := holder(); got != "pod-1 2-2" {
		t.Errorf("opened again: %s", got)
	}
}

// Who gives up while a session is opened leaves no token behind.
func TestOpenGivenUp(t *testing.T) {
	t.Parallel()
	server := lessortest.Start(t)
	server.Write("sys/auth/userpass", map[string]any{"type": "userpass"})
	server.Write("auth/userpass/users/ann", map[string]any{"password": "sesame", "token_policies": "default"})
	tokens := func() int {
		list, err := server.Client().List(t.Context(), "auth/token/accessors")
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Data["keys"].([]any))
	}
	before := tokens()
	at, err := url.Parse(server.Address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, giveUp := context.WithCancel(t.Context())
	proxy := httputil.NewSingleHostReverseProxy(at)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/events/") {
			giveUp()
			<-r.Context().Done()
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	c, err := client.New(client.Config{Address: front.URL})
	if err != nil {
		t.Fatal(err)
	}
	loggedIn := 0
	m := methodFunc(func(ctx context.Context, c *client.Client) (*client.Auth, error) {
		answer, err := c.Write(ctx, "auth/userpass/login/ann", map[string]any{"password": "sesame"})
		if err != nil {
			return nil, err
		}
		loggedIn = tokens()
		return answer.Auth, nil
	})
	if _, err := client.Open(ctx, c, m); !errors.Is(err, context.Canceled) {
		t.Fatalf("opened, though it was given up: %v", err)
	}
	if n := tokens(); loggedIn != before+1 || n != before {
		t.Errorf("%d tokens, %d while it was opened, %d before", n, loggedIn, before)
	}
}

// methodFunc is a function that logs in.
type methodFunc func(context.Context, *client.Client) (*client.Auth, error)

func (f methodFunc) Login(ctx context.Context, c *client.Client) (*client.Auth, error) {
	return f(ctx, c)
}

// However long a holder's name is, a second secret of the same path is held under one of its own.
func TestLongInstances(t *testing.T) {
	t.Parallel()
	server := lessortest.Start(t)
	put(server, "secret/data/app", "one")
	for _, name := range []string{strings.Repeat("x", 128), strings.Repeat("x", 127) + "y", strings.Repeat("x", 126), "x" + strings.Repeat("\u00e9", 63)} {
		session := open(t, server.Client().WithInstance(name), nil)
		for range 3 {
			secret(t, session, "secret/data/app")
		}
	}
	holders := server.Read("sys/lessor/holders/secret/app").Data["holders"].([]any)
	names := map[string]bool{}
	for _, h := range holders {
		names[h.(map[string]any)["instance"].(string)] = true
	}
	if len(names) != 12 {
		t.Errorf("%d holders: %v", len(names), names)
	}
}

// A server that cannot tell of changes in the moment in which a session opens is heard of them a little later.
func TestTheFeedIsTriedAgainSoon(t *testing.T) {
	t.Parallel()
	server := lessortest.Start(t)
	put(server, "secret/data/app", "one")
	at, err := url.Parse(server.Address)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	proxy := httputil.NewSingleHostReverseProxy(at)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/events/") && asked.Add(1) <= 2 {
			http.Error(w, `{"errors":["just now nothing can be told"]}`, http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	c, err := client.New(client.Config{Address: front.URL, Token: server.Root})
	if err != nil {
		t.Fatal(err)
	}
	session, err := client.Open(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Leave)
	s := secret(t, session, "secret/data/app")
	if s.Status().Followed {
		t.Fatal("the server told of changes: the test shows nothing")
	}
	eventually(t, "changes are told", func() bool { return s.Status().Followed })
	v := s.Value()
	put(server, "secret/data/app", "two")
	await(t, s, v)
}
