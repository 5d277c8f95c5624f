package node

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lessor-dev/lessor/internal/pgtest"
)

//go:embed testdata/before
var beforeText string

// before is the version before this one, as git knows it.
func before(t *testing.T) string {
	t.Helper()
	name := ""
	for line := range strings.Lines(beforeText) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			name = line
		}
	}
	if out, err := exec.Command("git", "rev-parse", "--verify", "--quiet", "--end-of-options", name+"^{commit}").CombinedOutput(); err != nil {
		text := fmt.Sprintf("the version before, %s (testdata/before), is not in this copy of the repository, so nothing shows that it runs beside this one: "+
			"use a clone with its history (%v %s)", name, err, out)
		if os.Getenv("CI") == "true" {
			t.Fatal(text)
		}
		t.Skip(text)
	}
	return name
}

// program is a lessor that was built.
type program struct {
	path    string
	version string // that it says it is
}

// build builds the lessor of the module in dir.
func build(dir, path, version string) (program, error) {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-X github.com/lessor-dev/lessor/internal/version.Version="+version, "-o", path, "github.com/lessor-dev/lessor/cmd/lessor")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return program{}, fmt.Errorf("building %s: %w\n%s", version, err, out)
	}
	return program{path, version}, nil
}

// extract puts the files of a commit into dir, without touching the working tree.
func extract(commit, dir string) error {
	top, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return err
	}
	archive, err := exec.Command("git", "-C", strings.TrimSpace(string(top)), "archive", "--format=tar", commit).Output()
	if err != nil {
		return err
	}
	tar := exec.Command("tar", "-x", "-f", "-", "-C", dir)
	tar.Stdin = bytes.NewReader(archive)
	if out, err := tar.CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w\n%s", err, out)
	}
	return nil
}

// bothVersions builds the version before and this one.
func bothVersions(t *testing.T) (old, now program) {
	t.Helper()
	commit := before(t)
	dir, source := t.TempDir(), t.TempDir()
	if err := extract(commit, source); err != nil {
		t.Fatal(err)
	}
	old, err := build(source, filepath.Join(dir, "before"), "0-before")
	if err == nil {
		now, err = build(".", filepath.Join(dir, "now"), "0-now")
	}
	if err != nil {
		t.Fatal(err)
	}
	return old, now
}

// fleet are servers, processes of two versions, over one PostgreSQL and behind one load balancer.
type fleet struct {
	*place
	*balancer
	pg      *pgtest.Server
	conn    *pgx.Conn // to lessor's database
	secret  string    // lessor's password there
	token   string
	servers map[string]*daemon
}

// daemon is a server that is a process.
type daemon struct {
	program
	name    string
	cmd     *exec.Cmd
	address string        // host:port
	told    atomic.Bool   // to end
	ended   chan struct{} // closed when it has
}

func newFleet(t *testing.T) *fleet {
	f := &fleet{place: newPlace(t), balancer: balance(t), servers: map[string]*daemon{}, secret: "lessor's-password"}
	f.pg = pgtest.Own(t, pgtest.Fsync(), pgtest.Setting("max_connections", "150"))
	admin := f.pg.Connect(t, "")
	for _, sql := range []string{"CREATE ROLE lessor LOGIN PASSWORD '" + strings.ReplaceAll(f.secret, "'", "''") + "'", "CREATE DATABASE lessor OWNER lessor"} {
		_, err := admin.Exec(t.Context(), sql)
		f.do(err)
	}
	f.conn = f.pg.Connect(t, "lessor")
	return f
}

// drain is the line of a configuration that has servers drain for three health checks.
const drain = "drain_delay = \"600ms\"\n"

func (f *fleet) configOf(name string) string { return filepath.Join(f.dir, name, "lessor.hcl") }

// join makes the files of a new server, by a program, as an operator does who asks another server to let it in.
func (f *fleet) join(name string, p program, at string) {
	f.Helper()
	address, secret := f.servers[at].address, filepath.Join(f.dir, name+".secret")
	f.run(p, address, "operator", "join-secret", "-node="+name, "-out="+secret)
	f.run(p, "", "operator", "join", "-address=http://"+address, "-secret-file="+secret, "-node-name="+name, "-listen=127.0.0.1:0", "-config="+f.configOf(name))
	text, err := os.ReadFile(f.configOf(name))
	f.do(err)
	f.do(os.WriteFile(f.configOf(name), append(text, drain...), 0o600))
}

// start starts a server; the first one makes the store, and the others get its key. The load balancer is told.
func (f *fleet) start(name string, p program) {
	f.Helper()
	if _, err := os.Stat(f.keyAt(name)); err != nil && f.token != "" {
		key, err := os.ReadFile(f.keyAt("one"))
		f.do(err)
		f.do(os.MkdirAll(filepath.Dir(f.keyAt(name)), 0o700))
		f.do(os.WriteFile(f.keyAt(name), key, 0o600))
	}
	config := f.configOf(name)
	if _, err := os.Stat(config); err != nil {
		f.do(os.MkdirAll(filepath.Dir(config), 0o700))
		f.do(os.WriteFile(config, fmt.Appendf(nil, `storage "postgresql" { connection_url = %q }
seal "keyfile" { path = %q }
listener "tcp" {
  address     = "127.0.0.1:0"
  tls_disable = true
}
node_name = %q
%s`, f.pg.URL("lessor", f.secret, "lessor"), f.keyAt(name), name, drain), 0o600))
	}
	d := &daemon{program: p, name: name, cmd: exec.Command(p.path, "server", "-config="+config), ended: make(chan struct{})}
	d.cmd.Env = []string{"HOME=" + f.dir, "PATH=" + os.Getenv("PATH")}
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	d.cmd.Stderr = f.log
	out, err := d.cmd.StdoutPipe()
	f.do(err)
	f.do(d.cmd.Start())
	f.Cleanup(func() { d.told.Store(true); _ = d.cmd.Process.Kill(); <-d.ended })

	hangs := time.AfterFunc(30*time.Second, func() { _ = d.cmd.Process.Kill() })
	var banner strings.Builder
	for b := make([]byte, 4096); !strings.Contains(banner.String(), "server started!"); {
		n, err := out.Read(b)
		if banner.Write(b[:n]); err != nil {
			d.told.Store(true)
			break
		}
	}
	hangs.Stop()
	go func() {
		defer close(d.ended)
		if err := d.cmd.Wait(); !d.told.Load() {
			f.Errorf("%s (%s) ended by itself: %v", name, p.version, err)
		}
	}()
	for line := range strings.Lines(banner.String()) {
		if address, ok := strings.CutPrefix(line, "Listener Address: http://"); ok {
			d.address = strings.TrimSpace(address)
		}
		if file, ok := strings.CutPrefix(line, "Bootstrap Token File: "); ok {
			token, err := os.ReadFile(strings.TrimSpace(file))
			f.do(err)
			f.token = strings.TrimSpace(string(token))
		}
	}
	if d.told.Load() || d.address == "" {
		f.Fatalf("%s (%s) did not start: %s\n%s", name, p.version, &banner, f.log)
	}
	f.servers[name] = d
	f.route()
	f.eventually(name+" is well", func() bool { return f.healthy() == len(f.servers) })
}

// route tells the load balancer where servers are.
func (f *fleet) route() {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(f.servers)) {
		all = append(all, f.servers[name].address)
	}
	f.set(all...)
}

// stop ends servers as their service managers do, and returns when they have drained and are gone.
func (f *fleet) stop(names ...string) {
	f.Helper()
	for _, name := range names {
		d := f.servers[name]
		d.told.Store(true)
		f.do(d.cmd.Process.Signal(syscall.SIGTERM))
	}
	for _, name := range names {
		d := f.servers[name]
		select {
		case <-d.ended:
		case <-time.After(40 * time.Second):
			f.Fatalf("%s (%s) does not end:\n%s", name, d.version, f.log)
		}
		if code := d.cmd.ProcessState.ExitCode(); code != 0 {
			f.Errorf("%s (%s) ended with %d", name, d.version, code)
		}
		delete(f.servers, name)
	}
}

// replace restarts a server with another program.
func (f *fleet) replace(name string, p program) {
	f.Helper()
	f.stop(name)
	f.start(name, p)
}

// tables are the version of the tables in the database, and the least that a lessor must know to work on them.
func (f *fleet) tables() (version, least int) {
	f.Helper()
	f.do(f.conn.QueryRow(f.Context(), "SELECT version, least FROM lessor.state").Scan(&version, &least))
	return version, least
}

// metric is one of a server's metrics.
func (f *fleet) metric(name, metric string) (value int) {
	f.Helper()
	text, err := f.caller(f.servers[name].address).text(http.StatusOK, "GET", "sys/metrics?format=prometheus", "")
	f.do(err)
	for line := range strings.Lines(string(text)) {
		if number, ok := strings.CutPrefix(line, "lessor_"+metric+" "); ok {
			var v float64
			_, err := fmt.Sscan(number, &v)
			f.do(err)
			return int(v)
		}
	}
	f.Fatalf("%s does not tell %s", name, metric)
	return 0
}

// run runs a command of a program against a server.
func (f *fleet) run(p program, address string, args ...string) []byte {
	f.Helper()
	cmd := exec.Command(p.path, args...)
	cmd.Env = []string{"HOME=" + f.dir, "PATH=" + os.Getenv("PATH"), "LESSOR_ADDR=http://" + address, "LESSOR_TOKEN=" + f.token}
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			out = append(out, exit.Stderr...)
		}
		f.Fatalf("lessor %s (%s): %v\n%s", strings.Join(args, " "), p.version, err, out)
	}
	return out
}

// known waits until each server, asked by each version's command, lists exactly those that there are, with their versions, and the servers
// have divided the background work.
func (f *fleet) known(programs ...program) {
	f.Helper()
	want := map[string]string{}
	for name, d := range f.servers {
		want[name] = d.version + " active"
	}
	for _, d := range f.servers {
		for _, p := range programs {
			f.eventually(fmt.Sprintf("%s (%s) tells %s that there are %v", d.name, d.version, p.version, want), func() bool {
				var members []struct {
					Name, Version, State string
					Alive                bool
				}
				f.do(json.Unmarshal(f.run(p, d.address, "operator", "members", "-format=json"), &members))
				got := map[string]string{}
				for _, m := range members {
					if m.Alive {
						got[m.Name] = m.Version + " " + m.State
					}
				}
				return maps.Equal(got, want)
			})
		}
	}
	f.eventually("the work is divided", func() bool {
		sum := 0
		for name := range f.servers {
			sum += f.metric(name, "background_shards")
		}
		return sum == 64
	})
}

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
const patience = 10 * time.Second

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
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
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

// told waits until a server says that the audit device was told everything up to a commit, by whichever servers, each record once and in order.
func (f *fleet) told(name string, seq int) {
	f.Helper()
	f.eventually("the audit device was told everything", func() bool {
		text, err := f.caller(f.servers[name].address).text(200, "GET", "sys/lessor/audit/check/file", "")
		f.do(err)
		var found struct {
			Data struct {
				OK      bool
				Broken  any
				Foreign int `json:"foreign_lines"`
				Repeats int `json:"repeated_lines"`
				Missing int `json:"missing_records"`
				Last    int `json:"last_sequence"`
			}
		}
		f.do(json.Unmarshal(text, &found))
		if d := found.Data; !d.OK || d.Foreign+d.Repeats+d.Missing > 0 {
			f.Fatalf("the audit device's file, says %s (%s): %s", name, f.servers[name].version, text)
		}
		return found.Data.Last >= seq
	})
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
	f.known(old, now)
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
