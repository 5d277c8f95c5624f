package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/pgtest"
)

// caller is a client of a server or of the load balancer. It keeps its connection, and tries nothing twice.
type caller struct {
	http    *http.Client
	address string
	token   string
}

func (f *fleet) caller(address string) *caller {
	c := &caller{&http.Client{Timeout: time.Minute, Transport: &http.Transport{}}, address, f.token}
	f.Cleanup(c.http.CloseIdleConnections)
	return c
}

// as is the caller with another token.
func (c *caller) as(token string) *caller { return &caller{c.http, c.address, token} }

// text asks; an answer with another status than the one that is due is an error.
func (c *caller) text(status int, method, path, body string) ([]byte, error) {
	request, err := http.NewRequest(method, "http://"+c.address+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("X-Vault-Token", c.token)
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != status {
		err = fmt.Errorf("%s %s: %d %s", method, path, answer.StatusCode, text)
	}
	return text, err
}

// reply is what the clients here need to know of an answer.
type reply struct {
	LeaseID string `json:"lease_id"`
	Auth    struct {
		Token    string `json:"client_token"`
		Duration int    `json:"lease_duration"`
	}
	Data struct {
		Version  int
		Username string
		Password string
		RoleID   string            `json:"role_id"`
		SecretID string            `json:"secret_id"`
		Data     map[string]string // of a secret
	}
}

func (c *caller) ask(status int, method, path, body string) (r reply, err error) {
	text, err := c.text(status, method, path, body)
	if err == nil && len(text) > 0 {
		err = json.Unmarshal(text, &r)
	}
	return r, err
}

// put writes a version of a secret after the one before, and reads it elsewhere.
func (c *caller) put(path string, version int, elsewhere *caller) error {
	r, err := c.ask(200, "POST", "secret/data/"+path, fmt.Sprintf(`{"options":{"cas":%d},"data":{"n":"%d"}}`, version-1, version))
	if err == nil && r.Data.Version != version {
		err = fmt.Errorf("%s: wrote version %d as %d", path, version, r.Data.Version)
	}
	if err != nil {
		return err
	}
	return elsewhere.holds(path, version)
}

// holds reads a secret, which must be at that version.
func (c *caller) holds(path string, version int) error {
	r, err := c.ask(200, "GET", "secret/data/"+path, "")
	if got := r.Data.Data["n"]; err == nil && got != fmt.Sprint(version) {
		err = fmt.Errorf("%s: read %q after version %d was acknowledged", path, got, version)
	}
	return err
}

// load are clients of the load balancer, each of which does one kind of thing again and again, until it ends or one of them fails.
type load struct {
	*fleet
	over    chan struct{}
	end     func() // returns when all have ended
	clients sync.WaitGroup
	failed  atomic.Bool
	rounds  map[string]*atomic.Int64 // done, by client

	roleID, secretID, limited string

	passwords map[string]bool // that the account which lessor rotates had; of its client, until end
}

// furnish prepares what the clients use.
func (f *fleet) furnish() *load {
	f.Helper()
	l := &load{fleet: f, over: make(chan struct{}), rounds: map[string]*atomic.Int64{}, passwords: map[string]bool{}}
	l.end = sync.OnceFunc(func() { close(l.over); l.clients.Wait() })
	f.Cleanup(l.end) // before the servers are killed
	c := f.caller(f.servers["one"].address)
	must := func(status int, path, body string) reply {
		f.Helper()
		r, err := c.ask(status, "POST", path, body)
		f.do(err)
		return r
	}
	must(204, "sys/mounts/secret", `{"type":"kv","options":{"version":"2"}}`)
	must(200, "secret/data/app", `{"data":{"n":"1"}}`)
	f.do(os.Mkdir(filepath.Join(f.dir, "audit"), 0o700))
	must(204, "sys/audit/file", fmt.Sprintf(`{"type":"file","options":{"file_path":%q}}`, filepath.Join(f.dir, "audit", "log")))
	must(204, "sys/policies/acl/app", `{"policy":"path \"secret/*\" { capabilities = [\"read\"] }"}`)
	must(204, "sys/auth/approle", `{"type":"approle"}`)
	must(204, "auth/approle/role/app", `{"token_policies":"app"}`)
	l.secretID = must(200, "auth/approle/role/app/secret-id", `{}`).Data.SecretID
	role, err := c.ask(200, "GET", "auth/approle/role/app/role-id", "")
	f.do(err)
	l.roleID = role.Data.RoleID
	l.limited = must(200, "auth/token/create", `{"policies":["turning"],"no_default_policy":true,"ttl":"1h"}`).Auth.Token
	must(204, "sys/mounts/db", `{"type":"database"}`)
	must(204, "db/config/pg", fmt.Sprintf(
		`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":"*","scram_iterations":1,"username_template":"lent_{{random 16}}"}`,
		f.pg.URL("{{username}}", "{{password}}", "postgres"), pgtest.Superuser, f.pg.Password()))
	for name, ttl := range map[string]string{"long": "1h", "short": "2s"} {
		must(204, "db/roles/"+name, fmt.Sprintf(
			`{"db_name":"pg","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"],"default_ttl":%q}`, ttl))
	}
	_, err = f.conn.Exec(f.Context(), "CREATE ROLE fixed LOGIN")
	f.do(err)
	must(204, "db/static-roles/fixed", `{"db_name":"pg","username":"fixed","rotation_period":"5s"}`)
	return l
}

// client begins to do something again and again, over two connections, which it opens anew now and then.
func (l *load) client(what string, round func(c, other *caller, n int) error) {
	rounds := new(atomic.Int64)
	l.rounds[what] = rounds
	c, other := l.caller(l.Addr().String()), l.caller(l.Addr().String())
	l.clients.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-l.over:
				return
			case <-time.After(10 * time.Millisecond): // the load is steady, not high
			}
			if err := round(c, other, n); err != nil {
				l.Errorf("%s, round %d: %v", what, n, err)
				l.failed.Store(true)
				return
			}
			rounds.Add(1)
			if n%20 == 0 {
				c.http.CloseIdleConnections()
				other.http.CloseIdleConnections()
			}
		}
	})
}

// begin begins all that the clients do. Each of them fails if anything is answered otherwise than it should be.
func (l *load) begin() {
	for _, path := range l.paths() {
		l.client(path, func(c, other *caller, n int) error { return c.put(path, n, other) })
	}
	l.client("logins", func(c, other *caller, _ int) error {
		r, err := c.as("").ask(200, "POST", "auth/approle/login", fmt.Sprintf(`{"role_id":%q,"secret_id":%q}`, l.roleID, l.secretID))
		if err != nil {
			return err
		}
		if err := other.as(r.Auth.Token).holds("app", 1); err != nil {
			return err
		}
		if _, err := other.as(r.Auth.Token).ask(204, "POST", "auth/token/revoke-self", ""); err != nil {
			return err
		}
		_, err = c.as(r.Auth.Token).ask(403, "GET", "secret/data/app", "")
		return err
	})
	l.client("renewals", func(c, other *caller, _ int) error {
		made, err := c.ask(200, "POST", "auth/token/create", `{"policies":["app"],"ttl":"30s"}`)
		for i := 0; i < 5 && err == nil; i++ {
			var r reply
			if r, err = other.as(made.Auth.Token).ask(200, "POST", "auth/token/renew-self", `{"increment":"90s"}`); err == nil && (r.Auth.Duration < 85 || r.Auth.Duration > 90) {
				err = fmt.Errorf("a token was renewed for %d s of 90", r.Auth.Duration)
			}
		}
		return err
	})
	l.client("policies", func(c, other *caller, n int) error {
		capability, status := "deny", 403
		if n%2 == 0 {
			capability, status = "read", 200
		}
		_, err := c.ask(204, "POST", "sys/policies/acl/turning", fmt.Sprintf(`{"policy":"path \"secret/data/app\" { capabilities = [\"%s\"] }"}`, capability))
		if err == nil {
			_, err = other.as(l.limited).ask(status, "GET", "secret/data/app", "")
		}
		return err
	})
	l.client("credentials", func(c, other *caller, _ int) error {
		r, err := c.ask(200, "GET", "db/creds/long", "")
		if err != nil {
			return err
		}
		if err := l.enters(r); err != nil {
			return err
		}
		if _, err := other.ask(200, "PUT", "sys/leases/renew", fmt.Sprintf(`{"lease_id":%q,"increment":7200}`, r.LeaseID)); err != nil {
			return err
		}
		if _, err := other.ask(204, "PUT", "sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q,"sync":true}`, r.LeaseID)); err != nil {
			return err
		}
		if err := l.enters(r); err == nil {
			return errors.New("a credential is good after its lease was revoked")
		}
		return nil
	})
	l.client("short credentials", func(c, other *caller, _ int) error { // ended by the servers
		r, err := c.ask(200, "GET", "db/creds/short", "")
		if err != nil {
			return err
		}
		if err := l.enters(r); err != nil {
			return err
		}
		_, err = other.ask(200, "PUT", "sys/leases/lookup", fmt.Sprintf(`{"lease_id":%q}`, r.LeaseID))
		return err
	})
	l.client("rotated passwords", l.fixed)
}

// patience is how long a password may be another than the one on record: while it is changed, whoever of the servers does that.
const patience = time.Minute

// fixed reads the password of the account that lessor rotates, and logs in with it.
func (l *load) fixed(c, other *caller, _ int) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		r, err := c.ask(200, "GET", "db/static-creds/fixed", "")
		if err != nil {
			return err
		}
		if err = l.enters(r); err == nil {
			l.passwords[r.Data.Password] = true
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the password on record is not in force: %w", err)
		}
		c, other = other, c
	}
}

// paths are those of the secrets that clients write.
func (l *load) paths() []string { return []string{"w1", "w2", "w3"} }

// enters logs in at the target with a credential.
func (l *load) enters(r reply) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := l.pg.Login(ctx, r.Data.Username, r.Data.Password, "")
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// goesOn waits until every client has come further, and every server has answered some of them.
func (l *load) goesOn() {
	l.Helper()
	rounds, granted := map[string]int64{}, map[string]int{}
	for what, n := range l.rounds {
		rounds[what] = n.Load()
	}
	for name := range l.servers {
		granted[name] = l.metric(name, "requests_granted_total")
	}
	l.eventually("all clients are served by all servers", func() bool {
		if l.failed.Load() {
			l.FailNow()
		}
		for what, n := range l.rounds {
			if n.Load() < rounds[what]+3 {
				return false
			}
		}
		for name := range l.servers {
			if l.metric(name, "requests_granted_total") < granted[name]+40 {
				return false
			}
		}
		return true
	})
}

// accounts is how many there are at the target that were lent.
func (l *load) accounts() (n int) {
	l.Helper()
	l.do(l.conn.QueryRow(l.Context(), "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'lent\\_%'").Scan(&n))
	return n
}

// Three servers of the version before become servers of this one, one after the other, under load, behind a plain TCP load balancer: no request
// fails, and nothing that was acknowledged is lost. The first new one changes the tables, which the old ones go on with; meanwhile
// a server can go back to the version before, too.
func TestUpgrade(t *testing.T) {
	if testing.Short() {
		t.Skip("builds two versions of lessor: left out by -short")
	}
	t.Parallel()
	old, now := bothVersions(t)
	f := newFleet(t)
	for _, name := range []string{"one", "two", "three"} {
		f.start(name, old)
	}
	version, _ := f.tables()
	l := f.furnish()
	l.begin()
	l.goesOn()

	f.replace("one", now)
	later, least := f.tables()
	if later <= version {
		t.Errorf("the tables are version %d, which the version before makes, too: nothing is shown of tables that change; name an earlier version in testdata/before", later)
	}
	if least > version {
		t.Fatalf("the tables are version %d, and take servers that know version %d or later; the version before knows %d, and cannot run beside this one", later, least, version)
	}
	f.known(old, now)
	l.goesOn()
	acknowledged := map[string]int{}
	for _, name := range []string{"one", "two", "three"} { // each of them writes, and another one knows
		at, other := f.caller(f.servers[name].address), f.caller(f.servers[map[string]string{"one": "two", "two": "one", "three": "one"}[name]].address)
		for n := 1; n <= 30; n++ {
			f.do(at.put("at/"+name, n, other))
			acknowledged["at/"+name] = n
		}
	}

	f.replace("two", now)
	l.goesOn()
	f.replace("two", old) // a step back, onto tables that are newer than it
	f.known(old, now)
	l.goesOn()
	back, one := f.caller(f.servers["two"].address), f.caller(f.servers["one"].address)
	for n := 31; n <= 60; n++ {
		f.do(back.put("at/two", n, one))
		acknowledged["at/two"] = n
	}

	f.told("one", f.metric("one", "store_sequence"))
	f.told("two", f.metric("two", "store_sequence"))
	f.join("four", now, "three") // one more, let in by a server of the version before
	f.start("four", now)
	f.known(old, now)

	f.replace("two", now)
	f.replace("three", now)
	f.known(now)
	l.goesOn()
	l.end()

	if v, n := f.tables(); v != later || n != least {
		t.Errorf("the tables went from version %d (%d at least) to %d (%d) afterwards", later, least, v, n)
	}
	for what, n := range l.rounds {
		t.Logf("%s: %d rounds", what, n.Load())
	}
	if len(l.passwords) < 2 {
		t.Error("no password was rotated")
	}
	for _, path := range l.paths() {
		acknowledged[path] = int(l.rounds[path].Load())
	}
	for name, d := range f.servers {
		if n := f.metric(name, "store_revivals_total"); n != 0 {
			t.Errorf("%s opened the store anew %d times", name, n)
		}
		for path, version := range acknowledged {
			if err := f.caller(d.address).holds(path, version); err != nil {
				t.Errorf("at %s: %v", name, err)
			}
		}
	}
	f.eventually("what was lent is over", func() bool { return l.accounts() == 0 })
	f.run(now, f.servers["one"].address, "audit", "verify")
	f.told("one", f.metric("one", "store_sequence"))
	f.stop("one", "two", "three", "four")
	f.run(now, "", "operator", "verify", "-config="+f.configOf("one"))
	if log := f.log.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("the log:\n%s", log)
	}
}
