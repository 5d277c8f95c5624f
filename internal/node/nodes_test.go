package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/store"
)

// nodes are several nodes over one PostgreSQL, each with its copy of the key. The same server is the target of their leases.
type nodes struct {
	*place
	server *pgtest.Server
	url    string
	token  string
	count  int
	nodes  []*running
}

func startNodes(t *testing.T, n int) *nodes {
	t.Helper()
	t.Parallel() // they wait, mostly
	s := pgtest.Start(t, pgtest.Fsync())
	c := &nodes{place: newPlace(t), server: s}
	c.url = s.URL(pgtest.Superuser, s.Password(), s.Database(t))
	for range n {
		c.join(Options{})
	}
	return c
}

// join starts one more node.
func (c *nodes) join(o Options) *running { return c.joinAt(c.url, o) }

func (c *nodes) joinAt(url string, o Options) *running {
	c.Helper()
	key := c.key()
	if c.count > 0 {
		key = filepath.Join(c.dir, fmt.Sprint("node", c.count), "seal.key")
		b, err := os.ReadFile(c.key())
		c.do(err)
		c.do(os.Mkdir(filepath.Dir(key), 0o700))
		c.do(os.WriteFile(key, b, 0o600))
	}
	c.count++
	conf := c.config("-key-file", key)
	conf.Storage = config.Storage{Type: config.PostgreSQL, ConnectionURL: lessor.NewSecret(url)}
	o.Version, o.Log = "test", c.o.Log
	n, err := Start(c.Context(), conf, o)
	c.do(err)
	r := &running{c.place, n, n.Root.Reveal(), http.DefaultClient}
	if c.token == "" {
		c.token = r.token
	}
	r.token = c.token
	c.Cleanup(r.stop)
	c.nodes = append(c.nodes, r)
	return r
}

// fresh waits until every node shows what was acknowledged by any.
func (c *nodes) fresh() {
	c.Helper()
	var head uint64
	for _, n := range c.nodes {
		head = max(head, n.db.Head().Seq)
	}
	for _, n := range c.nodes {
		ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
		c.do(n.db.Await(ctx, head))
		cancel()
	}
}

// records are what is on record from a commit on.
func (r *running) records(from uint64) (all []audit.At) {
	r.Helper()
	for head := r.db.Head().Seq; from <= head; {
		commits, err := r.db.Commits(from, 1000)
		r.do(err)
		for i := range commits {
			all, from = append(all, commits[i].Records...), commits[i].Seq+1
		}
	}
	return all
}

// until waits for a condition.
func (c *nodes) until(what string, done func() bool) {
	c.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.Fatalf("waited in vain until %s", what)
		}
	}
}

// settled waits until the nodes have divided the background work.
func (c *nodes) settled() {
	c.Helper()
	c.until("the work is divided", func() bool {
		sum := 0
		for _, n := range c.nodes {
			l := n.state.Load().life
			if h := l.claims.Held(); h == 0 || h > 64/len(c.nodes)+1 {
				return false
			} else {
				sum += h
			}
		}
		return sum == 64
	})
}

// targets configures a database engine with a few connections to the server, so that there are several targets.
func (c *nodes) targets(n int) {
	c.Helper()
	one := c.nodes[0]
	one.must(204, "POST", "sys/mounts/db", `{"type":"database"}`)
	for i := range n {
		one.must(204, "POST", fmt.Sprint("db/config/pg", i), fmt.Sprintf(
			`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":"*","scram_iterations":1}`,
			c.server.URL("{{username}}", "{{password}}", "postgres"), pgtest.Superuser, c.server.Password()))
		one.must(204, "POST", fmt.Sprint("db/roles/app", i), fmt.Sprintf(
			`{"db_name":"pg%d","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"],"default_ttl":"1h"}`, i))
	}
	c.fresh()
}

// account reports whether there is an account.
func account(t *testing.T, conn *pgx.Conn, name string) bool {
	t.Helper()
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname = $1", name).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// credential makes one, and returns its lease and username.
func (r *running) credential(role string) (lease, username string) {
	r.Helper()
	a := r.must(200, "GET", "db/creds/"+role, "")
	return a["lease_id"].(string), a["data"].(map[string]any)["username"].(string)
}

// rush asks all nodes at once, some times each, and counts how often they say yes.
func (c *nodes) rush(times int, ask func(*running) bool) int {
	var yes atomic.Int64
	var all sync.WaitGroup
	start := make(chan struct{})
	for i := range times {
		n := c.nodes[i%len(c.nodes)]
		all.Go(func() {
			<-start
			if ask(n) {
				yes.Add(1)
			}
		})
	}
	close(start)
	all.Wait()
	return int(yes.Load())
}

// asks asks, and reports whether the answer's status is one of 2xx; what is neither that nor a refusal fails the test.
func (r *running) asks(token, method, path, body string) bool {
	as := *r
	as.token = token
	status, answer, err := as.tryAsk(method, path, body)
	if err != nil || status >= 500 {
		r.Errorf("%s %s: %d %v %v", method, path, status, answer, err)
	}
	return status < 300
}

// A revocation that is asked of one node is done by the one whose work it is, at once, and the first knows when.
func TestRevocationAtAnyNode(t *testing.T) {
	c := startNodes(t, 2)
	c.targets(4)
	c.settled()
	conn := c.server.Connect(t, "postgres")
	// round ends two accounts of each target at each of the nodes, and says how long they took: half of them are the other node's work.
	round := func() (took time.Duration) {
		for i := range 16 {
			maker, ender := c.nodes[i%2], c.nodes[i/8]
			lease, name := maker.credential(fmt.Sprint("app", i%4))
			if !account(t, conn, name) {
				t.Fatal("no account was made")
			}
			c.fresh()
			began := time.Now()
			ender.must(204, "PUT", "sys/leases/revoke", `{"lease_id":"`+lease+`","sync":true}`)
			if account(t, conn, name) {
				t.Error("the answer came before the account was gone")
			}
			took += time.Since(began)
		}
		return took
	}
	for end := time.Now().Add(time.Minute); ; {
		took := round()
		t.Logf("16 revocations took %s", took)
		if took < 3*time.Second { // a node looks by itself once a second: that would be some 8 s
			break
		}
		if time.Now().After(end) {
			t.Fatal("no round was quick: nodes do not hear of each other")
		}
	}
}

// What is due has one effective worker, however many nodes look; and when one leaves, others go on.
func TestEachDueLeaseOnce(t *testing.T) {
	c := startNodes(t, 3)
	c.targets(6)
	conn := c.server.Connect(t, "postgres")
	const attempts = "attempts_at_due_leases" // counts those that fail, too
	_, err := conn.Exec(t.Context(), "CREATE SEQUENCE "+attempts)
	c.do(err)
	defer func() {
		_, err := conn.Exec(context.Background(), "DROP SEQUENCE "+attempts)
		c.do(err)
	}()
	for i := range 6 {
		c.nodes[0].must(204, "POST", fmt.Sprint("db/roles/app", i), fmt.Sprintf(
			`{"db_name":"pg%d","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"],`+
				`"revocation_statements":["SELECT nextval('public.%s')","DROP ROLE \"{{name}}\""],"default_ttl":"2s"}`, i, attempts))
	}
	c.fresh()
	c.settled()
	from := c.nodes[0].db.Head().Seq
	leases := map[string]bool{}
	for i := range 24 {
		lease, _ := c.nodes[i%3].credential(fmt.Sprint("app", i%6))
		leases[lease] = true
	}
	c.nodes[2].stop() // in order: what it held is passed on at once
	stopped := time.Now()
	rest := c.nodes[:2]
	outcomes := map[string]int{}
	c.until("all leases have ended", func() bool {
		clear(outcomes)
		for _, at := range rest[0].records(from + 1) {
			if leases[at.Lease] && at.System == "reaper" && at.Phase == audit.Outcome && at.ErrorKind == "" {
				outcomes[at.Lease]++
			}
		}
		return len(outcomes) == len(leases)
	})
	t.Logf("the last lease ended %s after the node left", time.Since(stopped).Round(time.Millisecond))
	for lease, n := range outcomes {
		if n != 1 {
			t.Errorf("%s was reverted %d times", lease, n)
		}
	}
	var n int
	c.do(conn.QueryRow(t.Context(), "SELECT last_value FROM "+attempts).Scan(&n))
	if n != len(leases) {
		t.Errorf("%d attempts to remove %d accounts: more than one node works at a target", n, len(leases))
	}
}

// A node that is told to stop hands its work over at once, and serves on for its drain delay: what becomes due meanwhile is done.
func TestWorkIsHandedOverBeforeTheDrain(t *testing.T) {
	c := startNodes(t, 2)
	c.targets(4)
	one, two := c.nodes[0], c.nodes[1]
	for i := range 4 {
		one.must(204, "POST", fmt.Sprint("db/roles/app", i), fmt.Sprintf(
			`{"db_name":"pg%d","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"],"default_ttl":"2s"}`, i))
	}
	c.fresh()
	c.settled()
	conn := c.server.Connect(t, "postgres")
	one.Node.config.DrainDelay = time.Minute
	drain, cut := context.WithCancel(t.Context())
	defer cut()
	stopped := make(chan error, 1)
	began := time.Now()
	go func() { stopped <- one.Stop(drain) }()
	c.until("the other node does everything", func() bool { return two.state.Load().life.claims.Held() == 64 })
	if took := time.Since(began); took > one.Node.config.DrainDelay/2 {
		t.Errorf("handing over took %s", took)
	}
	var accounts []string
	for i := range 4 { // by the node that drains
		_, name := one.credential(fmt.Sprint("app", i))
		accounts = append(accounts, name)
	}
	made := time.Now()
	c.until("all accounts are gone", func() bool {
		for _, name := range accounts {
			if account(t, conn, name) {
				return false
			}
		}
		return true
	})
	if late := time.Since(made) - 2*time.Second; late > one.Node.config.DrainDelay/2 {
		t.Errorf("the last account went %s after its end", late)
	}
	lease, name := one.credential("app0") // a revocation that the node is asked for is done by the other one, and it knows when
	one.must(204, "PUT", "sys/leases/revoke", `{"lease_id":"`+lease+`","sync":true}`)
	if account(t, conn, name) {
		t.Error("the answer came before the account was gone")
	}
	for _, m := range two.must(200, "GET", "sys/lessor/members", "")["data"].(map[string]any)["members"].([]any) {
		m := m.(map[string]any)
		state, claims := "draining", float64(0)
		if m["self"] == true {
			state, claims = "active", 64
		}
		if m["state"] != state || m["claims"] != claims {
			t.Errorf("%v is not %s with %g claims", m, state, claims)
		}
	}
	select {
	case err := <-stopped:
		t.Fatalf("the node stopped before its time: %v", err)
	default:
	}
	cut()
	if err := <-stopped; err != nil {
		t.Errorf("stopping: %v", err)
	}
}

// What nodes of other versions say of themselves is understood: what they do not say is nothing, what this one does not know is passed over.
func TestMembersOfOtherVersions(t *testing.T) {
	c := startNodes(t, 2)
	c.settled()
	one, two := c.nodes[0], c.nodes[1]
	for said, failing := range map[string]float64{
		`{"name":"other","address":"http://192.0.2.1:8200","version":"0.1.0","reported":"1.20.0","state":"active"}`:                         0,
		`{"name":"other","address":"http://192.0.2.1:8200","version":"0.3.0","reported":"1.20.0","state":"active","failing":2,"news":[{}]}`: 2,
	} {
		two.db.Announce([]byte(said))
		c.until("it is told", func() bool {
			for _, m := range one.must(200, "GET", "sys/lessor/members", "")["data"].(map[string]any)["members"].([]any) {
				m := m.(map[string]any)
				if m["name"] == "other" && m["claims"] == float64(32) && m["failing_targets"] == failing && m["state"] == "active" {
					return true
				}
			}
			return false
		})
	}
}

// A target that fails is told by the node that works there: by name in its metrics, and to the others.
func TestTargetsThatFailAreTold(t *testing.T) {
	c := startNodes(t, 2)
	relay := pgtest.NewRelay(t, c.server)
	c.targets(1)
	one := c.nodes[0]
	one.must(204, "POST", "db/config/away", fmt.Sprintf(
		`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":"*","scram_iterations":1}`,
		relay.URL(c.server.URL("{{username}}", "{{password}}", "postgres")), pgtest.Superuser, c.server.Password()))
	one.must(204, "POST", "db/roles/away", `{"db_name":"away","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"]}`)
	c.fresh()
	c.settled()
	lease, _ := one.credential("away")
	relay.Cut()
	one.must(202, "PUT", "sys/leases/revoke", `{"lease_id":"`+lease+`","sync":false}`)
	failing := func(at int) bool { return len(c.nodes[at].state.Load().life.core.Failing()) > 0 }
	c.until("it fails", func() bool { return failing(0) || failing(1) })
	worker := 0
	if failing(1) {
		worker = 1
	}
	told := func(at int) (n float64) { // by the one that is asked, of the one that works there
		for _, m := range c.nodes[at].must(200, "GET", "sys/lessor/members", "")["data"].(map[string]any)["members"].([]any) {
			m := m.(map[string]any)
			if (m["self"] == true) == (at == worker) {
				n = m["failing_targets"].(float64)
			} else if m["failing_targets"] != float64(0) {
				t.Errorf("a node that does not work there says that it fails: %v", m)
			}
		}
		return n
	}
	for at, n := range c.nodes {
		c.until("all are told", func() bool { return told(at) == 1 })
		var text strings.Builder
		registry := prometheus.NewRegistry()
		registry.MustRegister(n.state.Load().life.core)
		c.do(expose(registry, &text))
		if strings.Contains(text.String(), `lessor_target_failing{mount="db/",target="away"} 1`) != (at == worker) {
			t.Errorf("the metrics of node %d, where %d works at the target:\n%s", at, worker, text.String())
		}
	}
	n := c.nodes[worker]
	n.announcing.Lock()
	n.announced.Failing = 0 // as by an announcement in between, for another reason, that did not count it
	n.announcing.Unlock()
	c.until("it is put right", func() bool {
		n.announcing.Lock()
		defer n.announcing.Unlock()
		return n.announced.Failing == 1
	})
	relay.Mend()
	c.until("it is back", func() bool { return told(0) == 0 && told(1) == 0 && !failing(worker) })
}

// What may be used so often is used so often, whichever nodes it is shown to.
func TestUsesAreCountedByAll(t *testing.T) {
	c := startNodes(t, 2)
	one := c.nodes[0]
	one.fill()
	one.must(204, "POST", "sys/policies/acl/reader", `{"policy":"path \"secret/*\" { capabilities = [\"read\",\"update\",\"create\"] }"}`)
	one.must(204, "POST", "sys/auth/approle", `{"type":"approle"}`)
	one.must(204, "POST", "sys/auth/approle/tune", `{"user_lockout_config":{"lockout_disable":true}}`) // refusals are what is counted here
	one.must(204, "POST", "auth/approle/role/app", `{"token_policies":"reader","secret_id_num_uses":3}`)
	role := one.must(200, "GET", "auth/approle/role/app/role-id", "")["data"].(map[string]any)["role_id"].(string)
	c.fresh()
	for range 3 {
		made := one.must(200, "POST", "auth/token/create", `{"policies":["reader"],"num_uses":7}`)
		token := made["auth"].(map[string]any)["client_token"].(string)
		c.fresh()
		if n := c.rush(20, func(r *running) bool { return r.asks(token, "GET", "auth/token/lookup-self", "") }); n != 7 {
			t.Errorf("a token for 7 uses was used %d times", n)
		}
		secret := one.must(200, "POST", "auth/approle/role/app/secret-id", "")["data"].(map[string]any)["secret_id"].(string)
		c.fresh()
		login := fmt.Sprintf(`{"role_id":%q,"secret_id":%q}`, role, secret)
		if n := c.rush(12, func(r *running) bool { return r.asks("", "POST", "auth/approle/login", login) }); n != 3 {
			t.Errorf("a secret id for 3 uses was used %d times", n)
		}
		wrapped := wrap(one, "sys/wrapping/wrap", `{"x":"y"}`)
		c.fresh()
		if n := c.rush(8, func(r *running) bool { return r.asks(wrapped, "PUT", "sys/wrapping/unwrap", "") }); n != 1 {
			t.Errorf("a wrapping was opened %d times", n)
		}
	}
	for version := 1; version <= 4; version++ {
		body := fmt.Sprintf(`{"options":{"cas":%d},"data":{"x":"y"}}`, version)
		if n := c.rush(8, func(r *running) bool { return r.asks(c.token, "POST", "secret/data/app", body) }); n != 1 {
			t.Errorf("version %d was written by %d", version+1, n)
		}
		c.fresh()
	}
}

// wrap asks for a wrapped answer.
func wrap(r *running, path, body string) (token string) { return wrapFor(r, path, body, 60) }

func wrapFor(r *running, path, body string, seconds int) (token string) {
	r.Helper()
	request, err := http.NewRequest("POST", r.Address()+"/v1/"+path, strings.NewReader(body))
	r.do(err)
	request.Header.Set("X-Vault-Token", r.token)
	request.Header.Set("X-Vault-Wrap-TTL", fmt.Sprint(seconds))
	answer, err := r.client.Do(request)
	r.do(err)
	defer func() { _ = answer.Body.Close() }()
	var wrapped struct {
		Info struct{ Token string } `json:"wrap_info"`
	}
	r.do(json.NewDecoder(answer.Body).Decode(&wrapped))
	return wrapped.Info.Token
}

// What one node is told is in force at the other: policies, mounts, tokens, groups, locks, settings.
func TestChangesAreInForceEverywhere(t *testing.T) {
	c := startNodes(t, 2)
	one, two := c.nodes[0], c.nodes[1]
	one.fill()
	c.fresh()
	made := two.must(200, "POST", "auth/token/create", `{"policies":["app"]}`)
	token := made["auth"].(map[string]any)["client_token"].(string)
	c.fresh()
	for i := range 6 { // a policy that comes and goes, each change at the other node
		at, other := c.nodes[i%2], c.nodes[1-i%2]
		allowed := i%3 != 2
		if allowed {
			at.must(204, "POST", "sys/policies/acl/app", `{"policy":"path \"secret/data/app\" { capabilities = [\"read\"] }"}`)
		} else {
			at.must(204, "DELETE", "sys/policies/acl/app", "")
		}
		c.fresh()
		if got := other.asks(token, "GET", "secret/data/app", ""); got != allowed {
			t.Errorf("change %d: allowed=%v at the other node", i, got)
		}
	}
	two.must(204, "POST", "sys/policies/acl/app", `{"policy":"path \"secret/data/app\" { capabilities = [\"read\"] }"}`)
	c.fresh()

	two.must(204, "POST", "sys/mounts/more", `{"type":"kv"}`)
	c.fresh()
	one.must(204, "POST", "more/x", `{"a":"b"}`)
	c.fresh()
	two.must(200, "POST", "sys/remount", `{"from":"more","to":"moved"}`)
	c.fresh()
	one.must(200, "GET", "moved/x", "")
	one.must(204, "DELETE", "sys/mounts/moved", "")
	c.fresh()
	if two.asks(c.token, "GET", "moved/x", "") {
		t.Error("a mount that was disabled answers at the other node")
	}

	// Who is locked out at one node is locked out at all.
	one.must(204, "POST", "sys/auth/userpass", `{"type":"userpass"}`)
	one.must(204, "POST", "auth/userpass/users/ann", `{"password":"right","token_policies":"app"}`)
	c.fresh()
	if !two.asks("", "POST", "auth/userpass/login/ann", `{"password":"right"}`) {
		t.Fatal("no login")
	}
	for range 5 {
		one.asks("", "POST", "auth/userpass/login/ann", `{"password":"wrong"}`)
	}
	c.fresh()
	if two.asks("", "POST", "auth/userpass/login/ann", `{"password":"right"}`) {
		t.Error("a name that was locked at one node logs in at the other")
	}

	one.must(204, "POST", "auth/token/revoke", `{"token":"`+token+`"}`)
	c.fresh()
	if two.asks(token, "GET", "secret/data/app", "") {
		t.Error("a token that was revoked at one node is good at the other")
	}
}

// A count of leases holds for all nodes together, within what the feed takes.
func TestLeaseCountOfAll(t *testing.T) {
	c := startNodes(t, 2)
	c.targets(1)
	c.nodes[0].must(204, "POST", "sys/quotas/lease-count/few", `{"max_leases":4,"path":"db/"}`)
	c.fresh()
	made := 0
	for i := range 8 {
		status, _ := c.nodes[i%2].ask("GET", "db/creds/app0", "")
		if status == 200 {
			made++
		}
		c.fresh()
		for _, n := range c.nodes {
			c.do(n.state.Load().life.core.Quotas().Sync(t.Context()))
		}
	}
	if made != 4 {
		t.Errorf("%d credentials were made of 4 that may be", made)
	}
}

// A connection that is changed, rotated or removed at one node is so at the others, which keep no sessions of what is gone.
func TestConnectionsOfAll(t *testing.T) {
	c := startNodes(t, 2)
	one, two := c.nodes[0], c.nodes[1]
	conn := c.server.Connect(t, "postgres")
	name := fmt.Sprintf("lessor_%d", time.Now().UnixNano())
	_, err := conn.Exec(t.Context(), fmt.Sprintf(`CREATE ROLE %s LOGIN CREATEROLE PASSWORD 'first'`, name))
	c.do(err)
	t.Cleanup(func() {
		_, _ = conn.Exec(context.Background(), "DROP OWNED BY "+name+"; DROP ROLE "+name)
	})
	one.must(204, "POST", "sys/mounts/db", `{"type":"database"}`)
	one.must(204, "POST", "db/config/pg", fmt.Sprintf(
		`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":"first","allowed_roles":"*","scram_iterations":1}`,
		c.server.URL("{{username}}", "{{password}}", "postgres"), name))
	one.must(204, "POST", "db/roles/app", `{"db_name":"pg","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"],"default_ttl":"1h"}`)
	c.fresh()
	for i := range 4 {
		lease, _ := c.nodes[i%2].credential("app")
		c.nodes[(i+1)%2].must(204, "POST", "db/rotate-root/pg", "")
		c.fresh()
		c.nodes[i%2].credential("app")
		c.fresh()
		c.nodes[i%2].must(204, "PUT", "sys/leases/revoke", `{"lease_id":"`+lease+`","sync":true}`)
		c.fresh()
	}
	one.must(204, "PUT", "sys/leases/revoke-prefix/db/creds/app", `{"sync":true}`)
	c.fresh()
	two.must(200, "DELETE", "db/config/pg", "")
	c.until("no node has sessions of a connection that is gone", func() bool {
		var n int
		c.do(conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", name).Scan(&n))
		return n == 0
	})
}

// Two nodes that are initialised at once: one of them is, and that is the store.
func TestInitialisedAtOnce(t *testing.T) {
	db := pgtest.Start(t, pgtest.Fsync())
	url := db.URL(pgtest.Superuser, db.Password(), db.Database(t))
	var nodes []*running
	for range 2 {
		nodes = append(nodes, sharing(t, url))
	}
	var answers [2]map[string]any
	var status [2]int
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() {
			status[i], answers[i], _ = n.tryAsk("PUT", "sys/init", `{"secret_shares":1,"secret_threshold":1}`)
		})
	}
	all.Wait()
	won := 0
	if status[1] == 200 {
		won = 1
	}
	if status[won] != 200 || status[1-won] != 400 {
		t.Fatalf("answers %d and %d: %v", status[0], status[1], answers)
	}
	keys := texts(answers[won]["keys"])
	token := answers[won]["root_token"].(string)
	for _, n := range nodes {
		n.give(keys...)
		n.token = token
		n.must(200, "GET", "auth/token/lookup-self", "")
	}
}

// Rites that are under way at two nodes do not undo each other; what one node does to the keys, the other follows.
func TestRitesAtTwoNodes(t *testing.T) {
	db := pgtest.Start(t, pgtest.Fsync())
	url := db.URL(pgtest.Superuser, db.Password(), db.Database(t))
	start := func() *running { return sharing(t, url) }
	one := start()
	keys := one.initialise(2, 2)
	two := start()
	one.give(keys...)
	two.give(keys...)
	two.token = one.token
	c := &nodes{place: one.place, nodes: []*running{one, two}}
	one.fill()

	// A new term of keys.
	for range 3 {
		one.must(204, "PUT", "sys/rotate", "")
		one.must(200, "POST", "secret/data/later", `{"data":{"x":"y"}}`)
		c.fresh()
		two.must(200, "GET", "secret/data/later", "")
		two.must(204, "PUT", "sys/rotate", "")
		two.must(200, "POST", "secret/data/later", `{"data":{"x":"z"}}`)
		c.fresh()
		one.must(200, "GET", "secret/data/later", "")
	}

	// New shares, asked for at both.
	first, second := one.rekey(`{"secret_shares":2,"secret_threshold":2}`), two.rekey(`{"secret_shares":2,"secret_threshold":2}`)
	one.must(200, "PUT", "sys/rekey/update", gives(first, keys[0]))
	two.must(200, "PUT", "sys/rekey/update", gives(second, keys[0]))
	fresh := texts(one.must(200, "PUT", "sys/rekey/update", gives(first, keys[1]))["keys"])
	c.fresh()
	if status, answer := two.ask("PUT", "sys/rekey/update", gives(second, keys[1])); status == 200 {
		t.Errorf("shares of an earlier set changed the shares: %v", answer)
	}
	for _, n := range c.nodes {
		n.must(204, "PUT", "sys/seal", "")
		n.give(fresh...)
		n.checkFilled()
	}
}

// skewed is a machine's clock that is off.
type skewed time.Duration

// Now implements lessor.Clock.
func (s skewed) Now() time.Time { return time.Now().Add(time.Duration(s)).UTC() }

// Nodes whose clocks disagree by two hours: nothing that is given ends early, and nothing lasts.
func TestClocksThatDisagree(t *testing.T) {
	c := startNodes(t, 0)
	one, two := c.join(Options{Clock: skewed(time.Hour)}), c.join(Options{Clock: skewed(-time.Hour)})
	c.targets(1)
	one.must(204, "POST", "db/roles/app0", `{"db_name":"pg0","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"],"default_ttl":"4s"}`)
	one.must(204, "POST", "sys/policies/acl/app", `{"policy":"path \"secret/*\" { capabilities = [\"read\"] }"}`)
	c.fresh()
	conn := c.server.Connect(t, "postgres")
	const ttl = 4 * time.Second
	tokens, accounts := map[string]string{}, map[string]string{}
	began := time.Now()
	for name, n := range map[string]*running{"ahead": one, "behind": two} {
		for _, kind := range []string{"service", "batch"} {
			made := n.must(200, "POST", "auth/token/create", `{"policies":["app"],"ttl":"4s","type":"`+kind+`"}`)
			tokens[name+" "+kind] = made["auth"].(map[string]any)["client_token"].(string)
		}
		tokens[name+" wrapping"] = wrapFor(n, "sys/wrapping/wrap", `{"x":"y"}`, 4)
		_, accounts[name] = n.credential("app0")
	}
	made := time.Now()
	c.fresh()
	alive := func(what string) (at []bool) {
		for _, n := range c.nodes {
			path, body := "auth/token/lookup-self", ""
			method := "GET"
			if strings.HasSuffix(what, "wrapping") {
				method, path, body = "PUT", "sys/wrapping/lookup", `{"token":"`+tokens[what]+`"}`
			}
			at = append(at, n.asks(tokens[what], method, path, body))
		}
		return at
	}
	for early := time.Duration(0); early < ttl-1500*time.Millisecond; early = time.Since(began) {
		for what := range tokens {
			if at := alive(what); (!at[0] || !at[1]) && time.Since(began) < ttl {
				t.Fatalf("the token of the node that is %s ended after %s: %v", what, time.Since(began), at)
			}
		}
		for name, user := range accounts {
			if !account(t, conn, user) && time.Since(began) < ttl {
				t.Fatalf("the account of the node that is %s ended after %s", name, time.Since(began))
			}
		}
	}
	time.Sleep(time.Until(made.Add(ttl)))
	for what := range tokens {
		c.until("the token of the node that is "+what+" is over", func() bool { at := alive(what); return !at[0] && !at[1] })
	}
	for name, user := range accounts {
		c.until("the account of the node that is "+name+" is gone", func() bool { return !account(t, conn, user) })
	}
	if late := time.Since(made) - ttl; late > time.Minute {
		t.Errorf("the last account went %s after its end", late)
	}
	for _, at := range one.records(1) {
		if d := at.Time.Sub(at.Commit); d.Abs() > time.Minute {
			t.Errorf("%s is on record as of %s, in a commit of %s", at.Path, at.Time, at.Commit)
		}
	}
}

// What a node that vanishes would have ended is ended by the others, within seconds, and once.
func TestDueLeasesOfANodeThatVanishes(t *testing.T) {
	c := startNodes(t, 1)
	relay := pgtest.NewRelay(t, c.server)
	one, two := c.nodes[0], c.joinAt(relay.URL(c.url), Options{})
	t.Cleanup(relay.Mend) // before it is stopped
	const targets = 8
	c.targets(targets)
	for i := range targets {
		one.must(204, "POST", fmt.Sprint("db/roles/app", i), fmt.Sprintf(
			`{"db_name":"pg%d","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"],"default_ttl":"2s"}`, i))
	}
	c.fresh()
	c.settled()
	conn := c.server.Connect(t, "postgres")
	from := one.db.Head().Seq
	leases := map[string]string{}
	for i := range targets {
		lease, user := c.nodes[i%2].credential(fmt.Sprint("app", i))
		leases[lease] = user
	}
	made := time.Now()
	relay.Cut()
	c.until("all accounts are gone", func() bool {
		for _, user := range leases {
			if account(t, conn, user) {
				return false
			}
		}
		return true
	})
	late := time.Since(made) - 2*time.Second
	t.Logf("the last account went %s after its end", late.Round(time.Millisecond))
	if late > 30*time.Second {
		t.Error("that is too late")
	}
	relay.Mend()
	c.until("it is on record", func() bool {
		outcomes := map[string]int{}
		for _, at := range one.records(from + 1) {
			if leases[at.Lease] != "" && at.System == "reaper" && at.Phase == audit.Outcome && at.ErrorKind == "" {
				outcomes[at.Lease]++
			}
		}
		for lease, n := range outcomes {
			if n > 1 {
				t.Fatalf("%s was ended %d times", lease, n)
			}
		}
		return len(outcomes) == targets
	})
	c.until("the node that vanished is back", func() bool { return two.db.Fault() == nil && two.db.Head().Seq >= one.db.Head().Seq })
}

// A credential is revoked while the node that makes it hangs; what that node then does all the same is undone.
func TestApplyThatHangs(t *testing.T) {
	c := startNodes(t, 2)
	c.targets(1)
	one, two := c.nodes[0], c.nodes[1]
	relay := pgtest.NewRelay(t, c.server)
	one.must(204, "POST", "db/config/slow", fmt.Sprintf(
		`{"plugin_name":"postgresql-database-plugin","connection_url":%q,"username":%q,"password":%q,"allowed_roles":"*","scram_iterations":1,"verify_connection":false,"username_template":"hangs{{random 8}}"}`,
		relay.URL(c.server.URL("{{username}}", "{{password}}", "postgres")), pgtest.Superuser, c.server.Password()))
	conn := c.server.Connect(t, "postgres")
	const made = "accounts_that_hung" // counts what was made, even if it was undone
	_, err := conn.Exec(t.Context(), "CREATE SEQUENCE "+made)
	c.do(err)
	defer func() {
		_, err := conn.Exec(context.Background(), "DROP SEQUENCE "+made)
		c.do(err)
	}()
	one.must(204, "POST", "db/roles/slow", `{"db_name":"slow","creation_statements":["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'",`+
		`"SELECT nextval('public.`+made+`')"]}`)
	c.fresh()
	two.credential("slow") // its session is open now, and held
	relay.Hold()
	count := func() (n int) {
		c.do(conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'hangs%'").Scan(&n))
		return n
	}
	var asking sync.WaitGroup
	asking.Go(func() { _, _, _ = two.tryAsk("GET", "db/creds/slow", "") })
	c.until("it is on record that the target is about to be touched", func() bool {
		v, err := one.db.View()
		c.do(err)
		defer v.Close()
		n := 0
		for _, err := range v.Scan(store.Leases, "", "") {
			c.do(err)
			n++
		}
		return n == 2
	})
	one.must(202, "PUT", "sys/leases/revoke-prefix/db/creds/slow", `{"sync":false}`)
	relay.Release()
	asking.Wait()
	var n int
	c.do(conn.QueryRow(t.Context(), "SELECT last_value FROM "+made).Scan(&n))
	if n != 2 {
		t.Errorf("%d accounts were made, not 2: what hung did nothing, so this shows nothing", n)
	}
	c.until("nothing is left of it", func() bool { return count() == 0 })
	time.Sleep(500 * time.Millisecond)
	if count() != 0 {
		t.Error("an account came back")
	}
}
