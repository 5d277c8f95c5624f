package torture

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	clients      = 32
	callPatience = 15 * time.Second       // for an answer; then the outcome is unknown
	thinking     = 120 * time.Millisecond // between two operations of a client, on average
	era          = 8 * time.Second        // how long objects are used, so that histories stay short
	mostOps      = 40                     // on an object
)

// run is one run of the test: what clients share.
type run struct {
	*cluster
	long     bool // there is time to wait for what takes a minute
	began    time.Time
	history  *history
	ledger   *ledger
	way      [nodes]*http.Client // by which clients reach each node
	observer *observer
	watching func() // ends the observer
	wrong    []span
	pool     pool
	names    atomic.Int64 // of objects
	roleID   string       // of the approle that clients log in by
	secrets  string       // its secret id, for any number of logins

	mu         sync.Mutex
	unexpected []string // answers that no fault explains
	lastDone   time.Duration
	longest    time.Duration // between two acknowledgements
	longestAt  time.Duration
}

func (r *run) now() time.Duration { return time.Since(r.began) }

func (r *run) name(prefix string) string { return fmt.Sprintf("%s-%d", prefix, r.names.Add(1)) }

// odd takes down what no fault explains.
func (r *run) odd(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.unexpected) < 200 {
		r.unexpected = append(r.unexpected, fmt.Sprintf("at %.3f s: ", r.now().Seconds())+fmt.Sprintf(format, args...))
	}
}

// record takes down an operation that is over.
func (r *run) record(o op) {
	r.history.add(o)
	if o.Outcome != done {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if gap := o.Return - r.lastDone; gap > r.longest {
		r.longest, r.longestAt = gap, r.lastDone
	}
	r.lastDone = max(r.lastDone, o.Return)
}

// pool holds the objects of an era, which all clients use.
type pool struct {
	mu   sync.Mutex
	era  int
	of   map[string][]*object
	made map[string]int // begun in this era
}

// object is something that has a history: a policy, a family of tokens, a role's leases.
type object struct {
	name string

	mu     sync.Mutex
	ops    int
	tokens []string // by item
	leases []string // by item
}

// pick returns an object of a kind, or nil if one more should be made: there are up to most at a time.
func (p *pool) pick(now time.Duration, kind string, most int, choose func(int) int) *object {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := int(now / era); e != p.era || p.of == nil {
		p.era, p.of, p.made = e, map[string][]*object{}, map[string]int{}
	}
	var fresh []*object
	for _, o := range p.of[kind] {
		o.mu.Lock()
		if o.ops < mostOps {
			fresh = append(fresh, o)
		}
		o.mu.Unlock()
	}
	if len(fresh) < most && p.made[kind] < 4*most || len(fresh) == 0 {
		p.made[kind]++
		return nil
	}
	o := fresh[choose(len(fresh))]
	o.mu.Lock()
	o.ops++
	o.mu.Unlock()
	return o
}

// offer lets all clients use an object, if the era in which it was begun lasts.
func (p *pool) offer(now time.Duration, kind string, o *object) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if int(now/era) == p.era && p.of != nil {
		p.of[kind] = append(p.of[kind], o)
	}
}

// client is one of many.
type client struct {
	*run
	id    int
	r     *rand.Rand
	node  int
	token string // by its own login
	since time.Duration
}

func newTransport(address string) *http.Client {
	return &http.Client{Timeout: callPatience, Transport: &http.Transport{
		MaxIdleConnsPerHost: clients, MaxConnsPerHost: 0, IdleConnTimeout: 2 * time.Second,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, network, address)
		},
	}}
}

// once is a body that cannot be sent again: net/http would repeat a GET whose connection was lost, unseen.
type once struct{ io.Reader }

// ask sends a request to the client's node and tells the outcome in o. refusal is the text of the refusal that says something of the
// object, or several with | between them; "403" and "404" are any of that status.
func (c *client) ask(o *op, token, method, path string, body any, refusal string, header ...string) map[string]any {
	b := []byte{}
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			panic(err)
		}
	}
	req, err := http.NewRequest(method, "http://"+c.nodes[c.node].listen+"/v1/"+path, once{bytes.NewReader(b)})
	if err != nil {
		panic(err)
	}
	req.ContentLength = int64(len(b))
	if token != "" {
		req.Header.Set("X-Vault-Token", token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	o.Client, o.Node, o.Method, o.Path, o.Call = c.id, c.node, method, path, c.now()
	answer := c.outcome(o, req, refusal)
	if o.Return = c.now(); o.Outcome == void || o.Outcome == unknown {
		c.node = (c.node + 1) % nodes
	} else if c.r.IntN(8) == 0 {
		c.node = c.r.IntN(nodes)
	}
	return answer
}

func (c *client) outcome(o *op, req *http.Request, refusal string) map[string]any {
	resp, err := c.way[c.node].Do(req)
	if err != nil {
		o.Outcome, o.Error = unknown, short(err.Error())
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" || errors.Is(err, syscall.ECONNREFUSED) {
			o.Outcome = void
		}
		return nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	o.Status = resp.StatusCode
	if err != nil {
		o.Outcome, o.Error = unknown, short(err.Error())
		return nil
	}
	answer := map[string]any{}
	if len(b) > 0 {
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		if err := d.Decode(&answer); err != nil {
			o.Outcome, o.Error = unknown, "cut off: "+short(err.Error())
			return nil
		}
	}
	o.Request, _ = answer["request_id"].(string)
	if resp.StatusCode < 300 {
		o.Outcome = done
		return answer
	}
	o.Error = short(string(b))
	switch {
	case resp.StatusCode == 404 && refusal == "404", resp.StatusCode == 403 && refusal == "403",
		resp.StatusCode == 400 && refusal != "" && slices.ContainsFunc(strings.Split(refusal, "|"), func(text string) bool { return strings.Contains(o.Error, text) }):
		o.Outcome = refused
	case resp.StatusCode == 503 && (strings.Contains(o.Error, "nothing was done") || strings.Contains(o.Error, "is sealed") || strings.Contains(o.Error, "is stopping")),
		resp.StatusCode == 429:
		o.Outcome = void
	case resp.StatusCode >= 500:
		o.Outcome = unknown
	default:
		o.Outcome = unknown
		c.odd("client %d at node %d: %s %s: %d %s", c.id, c.node, o.Method, o.Path, resp.StatusCode, o.Error)
	}
	return answer
}

func short(s string) string { return strings.TrimSpace(s[:min(len(s), 300)]) }

// work does one operation after the other until ctx ends.
func (c *client) work(ctx context.Context) {
	for ctx.Err() == nil {
		if c.token == "" || c.now()-c.since > era {
			c.login()
		}
		switch n := c.r.IntN(100); {
		case n < 34:
			c.kv()
		case n < 50:
			c.policy()
		case n < 56:
			c.limitedToken()
		case n < 64:
			c.tokenFamily()
		case n < 70:
			c.wrapping()
		case n < 76:
			c.secretID()
		case n < 78:
			c.user()
		case n < 89:
			c.leases()
		case n < 97:
			c.credential(ctx)
		default:
			c.static()
		}
		sleep(ctx, time.Duration(c.r.Int64N(int64(2*thinking))))
	}
}

// login gets the client a token of its own.
func (c *client) login() {
	o := op{Do: "log in"}
	a := c.ask(&o, "", "POST", "auth/approle/login", map[string]any{"role_id": c.roleID, "secret_id": c.secrets}, "")
	c.record(o)
	if o.Outcome == done {
		c.token, c.since = text(a, "auth", "client_token"), c.now()
	}
}

func (c *client) kv() {
	o := op{Model: "kv", Object: fmt.Sprintf("era-%d/%d", int(c.now()/era), c.r.IntN(16))}
	path := "secret/data/" + o.Object
	if c.token == "" || c.r.IntN(2) == 0 {
		o.Do = "read"
		a := c.ask(&o, c.reader(), "GET", path, nil, "404")
		if o.Outcome == done {
			o.Value, o.Version = text(a, "data", "data", "v"), number(a, "data", "metadata", "version")
		}
		c.record(o)
		return
	}
	o.Do, o.Value, o.CAS = "write", fmt.Sprintf("%d-%d", c.id, c.names.Add(1)), -1
	body := map[string]any{"data": map[string]any{"v": o.Value}}
	if c.r.IntN(3) > 0 {
		look := op{Model: "kv", Object: o.Object, Do: "read"}
		a := c.ask(&look, c.reader(), "GET", path, nil, "404")
		if look.Outcome == done {
			look.Value, look.Version = text(a, "data", "data", "v"), number(a, "data", "metadata", "version")
		}
		c.record(look)
		if look.Outcome != done && look.Outcome != refused {
			return
		}
		o.CAS = look.Version
		body["options"] = map[string]any{"cas": o.CAS}
	}
	a := c.ask(&o, c.reader(), "POST", path, body, "check-and-set parameter did not match")
	if o.Outcome == done {
		o.Version = number(a, "data", "version")
	}
	c.record(o)
}

// reader is the client's own token, or the root token while it has none.
func (c *client) reader() string {
	if c.token != "" {
		return c.token
	}
	return c.root.Reveal()
}

// values are what a register may be set to. A policy permits reading the probe of its value, and no other.
var values = [...]string{"0", "1", "2"}

func (c *client) value() string { return values[c.r.IntN(len(values))] }

func (c *client) policy() {
	p := c.pool.pick(c.now(), "policy", 4, c.r.IntN)
	if p == nil {
		p = &object{name: c.name("policy")}
		if c.setPolicy(p) != done {
			return
		}
		o := op{Do: "create token"}
		a := c.ask(&o, c.root.Reveal(), "POST", "auth/token/create-orphan",
			map[string]any{"policies": []string{p.name}, "ttl": "2h", "no_default_policy": true}, "")
		c.record(o)
		if o.Outcome == done {
			p.tokens = []string{text(a, "auth", "client_token")}
			c.pool.offer(c.now(), "policy", p)
		}
		return
	}
	if c.r.IntN(4) == 0 {
		c.setPolicy(p)
		return
	}
	o := op{Model: "register", Object: p.name, Do: "probe", Value: c.value()}
	c.ask(&o, p.tokens[0], "GET", "secret/data/probe/"+o.Value, nil, "403")
	c.record(o)
}

func (c *client) setPolicy(p *object) outcome {
	o := op{Model: "register", Object: p.name, Do: "set", Value: c.value()}
	c.ask(&o, c.root.Reveal(), "PUT", "sys/policies/acl/"+p.name,
		map[string]any{"policy": fmt.Sprintf(`path "secret/data/probe/%s" { capabilities = ["read"] }`, o.Value)}, "")
	c.record(o)
	return o.Outcome
}

// limitedToken is of tokens that may be used two or three times.
func (c *client) limitedToken() {
	t := c.pool.pick(c.now(), "limited", 4, c.r.IntN)
	if t != nil {
		c.use(t, 0)
		return
	}
	t = &object{name: c.name("limited")}
	o := op{Model: "uses", Object: t.name, Do: "create", Uses: 2 + c.r.IntN(2)}
	a := c.ask(&o, c.root.Reveal(), "POST", "auth/token/create-orphan", map[string]any{"policies": []string{"reader"}, "ttl": "2h", "num_uses": o.Uses, "no_default_policy": true}, "")
	c.record(o)
	if o.Outcome == done {
		t.tokens = []string{text(a, "auth", "client_token")}
		c.pool.offer(c.now(), "limited", t)
	}
}

// use uses a token of a family.
func (c *client) use(t *object, item int) {
	t.mu.Lock()
	token := t.tokens[item]
	t.mu.Unlock()
	o := op{Model: "uses", Object: t.name, Do: "use", Item: item}
	c.ask(&o, token, "GET", "secret/data/probe/0", nil, "403")
	c.record(o)
}

// tokenFamily is of a token that makes others, which end with it.
func (c *client) tokenFamily() {
	t := c.pool.pick(c.now(), "family", 4, c.r.IntN)
	if t == nil {
		t = &object{name: c.name("family")}
		o := op{Model: "uses", Object: t.name, Do: "create", Uses: -1}
		a := c.ask(&o, c.root.Reveal(), "POST", "auth/token/create-orphan", map[string]any{"policies": []string{"reader", "parent"}, "ttl": "2h"}, "")
		c.record(o)
		if o.Outcome == done {
			t.tokens = []string{text(a, "auth", "client_token")}
			c.pool.offer(c.now(), "family", t)
		}
		return
	}
	t.mu.Lock()
	have := len(t.tokens)
	parent := t.tokens[0]
	claim := have < len(usesState{}) && c.r.IntN(3) == 0
	if claim {
		t.tokens = append(t.tokens, "") // the item is ours
	}
	t.mu.Unlock()
	switch {
	case claim:
		o := op{Model: "uses", Object: t.name, Do: "create", Item: have, Uses: -1}
		a := c.ask(&o, parent, "POST", "auth/token/create", map[string]any{"policies": []string{"reader"}, "ttl": "2h"}, "403")
		c.record(o)
		if o.Outcome == done {
			t.mu.Lock()
			t.tokens[have] = text(a, "auth", "client_token")
			t.mu.Unlock()
		}
	default:
		item := c.r.IntN(have)
		t.mu.Lock()
		token := t.tokens[item]
		t.mu.Unlock()
		if token == "" {
			return
		}
		if c.r.IntN(12) != 0 {
			c.use(t, item)
			return
		}
		o := op{Model: "uses", Object: t.name, Do: "revoke", Item: item}
		c.ask(&o, c.root.Reveal(), "POST", "auth/token/revoke", map[string]any{"token": token}, "")
		c.record(o)
	}
}

func (c *client) wrapping() {
	t := c.pool.pick(c.now(), "wrapping", 3, c.r.IntN)
	if t == nil {
		t = &object{name: c.name("wrapping")}
		o := op{Model: "uses", Object: t.name, Do: "create", Uses: 1}
		a := c.ask(&o, c.root.Reveal(), "GET", "secret/data/probe/0", nil, "", "X-Vault-Wrap-TTL", "1h")
		c.record(o)
		if o.Outcome == done {
			t.tokens, t.ops = []string{text(a, "wrap_info", "token")}, mostOps-4
			c.pool.offer(c.now(), "wrapping", t)
		}
		return
	}
	o := op{Model: "uses", Object: t.name, Do: "use"}
	c.ask(&o, t.tokens[0], "POST", "sys/wrapping/unwrap", map[string]any{}, "not valid or does not exist")
	c.record(o)
}

// secretID is of secret ids that log in once or twice.
func (c *client) secretID() {
	t := c.pool.pick(c.now(), "secret id", 3, c.r.IntN)
	if t == nil {
		t = &object{name: c.name("secretid")}
		o := op{Model: "uses", Object: t.name, Do: "create", Uses: 1 + c.r.IntN(2)}
		a := c.ask(&o, c.root.Reveal(), "POST", "auth/approle/role/client/secret-id", map[string]any{"num_uses": o.Uses}, "")
		c.record(o)
		if o.Outcome == done {
			t.tokens, t.ops = []string{text(a, "data", "secret_id")}, mostOps-6
			c.pool.offer(c.now(), "secret id", t)
		}
		return
	}
	o := op{Model: "uses", Object: t.name, Do: "use"}
	c.ask(&o, "", "POST", "auth/approle/login", map[string]any{"role_id": c.roleID, "secret_id": t.tokens[0]}, "invalid role or secret ID")
	c.record(o)
}

// user is of a user whose password changes.
func (c *client) user() {
	u := c.pool.pick(c.now(), "user", 1, c.r.IntN)
	create := u == nil
	if create {
		u = &object{name: c.name("user")}
	}
	o := op{Model: "register", Object: u.name, Do: "set", Value: c.value()}
	password := "password-" + o.Value
	switch {
	case create:
		c.ask(&o, c.root.Reveal(), "POST", "auth/userpass/users/"+u.name, map[string]any{"password": password, "token_policies": "reader", "token_ttl": "2h"}, "")
		if o.Outcome == done {
			c.pool.offer(c.now(), "user", u)
		}
	case c.r.IntN(4) == 0:
		c.ask(&o, c.root.Reveal(), "POST", "auth/userpass/users/"+u.name+"/password", map[string]any{"password": password}, "")
	default:
		o.Do = "probe"
		c.ask(&o, "", "POST", "auth/userpass/login/"+u.name, map[string]any{"password": password}, "invalid username or password")
	}
	c.record(o)
}

// leases is of a role's leases, which are renewed and revoked.
func (c *client) leases() {
	role := c.pool.pick(c.now(), "role", 2, c.r.IntN)
	if role == nil {
		role = &object{name: c.name("role")}
		o := op{Do: "create role"}
		c.ask(&o, c.root.Reveal(), "POST", "database/roles/"+role.name, roleOf(30*time.Minute, longestLease), "")
		c.record(o)
		if o.Outcome == done {
			c.pool.offer(c.now(), "role", role)
		}
		return
	}
	role.mu.Lock()
	have := len(role.leases)
	role.mu.Unlock()
	switch n := c.r.IntN(20); {
	case have == 0, n < 5 && have < 63:
		role.mu.Lock()
		item := len(role.leases)
		role.leases = append(role.leases, "")
		role.mu.Unlock()
		if item > 62 {
			return
		}
		o := op{Model: "leases", Object: role.name, Do: "issue", Item: item}
		a := c.ask(&o, c.root.Reveal(), "GET", "database/creds/"+role.name, nil, "")
		c.record(o)
		if o.Outcome == done {
			role.mu.Lock()
			role.leases[item] = text(a, "lease_id")
			role.mu.Unlock()
			c.ledger.issued(a, o, longestLease)
		}
	case n == 19:
		o := op{Model: "leases", Object: role.name, Do: "revoke all"}
		c.ask(&o, c.root.Reveal(), "POST", "sys/leases/revoke-prefix/database/creds/"+role.name, map[string]any{}, "")
		c.record(o)
		if o.Outcome == done {
			role.mu.Lock()
			c.ledger.revoked(o, role.leases...)
			role.mu.Unlock()
		}
	default:
		item := c.r.IntN(have)
		role.mu.Lock()
		lease := role.leases[item]
		role.mu.Unlock()
		if lease == "" {
			return
		}
		o := op{Model: "leases", Object: role.name, Do: "renew", Item: item}
		body := map[string]any{"lease_id": lease}
		switch {
		case n < 11:
			a := c.ask(&o, c.root.Reveal(), "POST", "sys/leases/renew", body, "lease not found|lease expired")
			c.ledger.renewed(lease, a, o)
		case n < 16:
			o.Do = "look up"
			a := c.ask(&o, c.root.Reveal(), "POST", "sys/leases/lookup", body, "invalid lease")
			if o.Outcome == done && text(a, "data", "state") != "live" { // its account may be there, the lease is not
				o.Outcome = refused
			}
		default:
			o.Do = "revoke"
			c.ask(&o, c.root.Reveal(), "POST", "sys/leases/revoke", body, "")
			if o.Outcome == done {
				c.ledger.revoked(o, lease)
			}
		}
		c.record(o)
	}
}

// roleOf is a role whose accounts end by themselves.
func roleOf(ttl, most time.Duration) map[string]any {
	return map[string]any{
		"db_name": "target", "default_ttl": ttl.String(), "max_ttl": most.String(),
		"creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`,
	}
}

// credential gets an account for a few seconds, logs in with it, and renews it once or not.
func (c *client) credential(ctx context.Context) {
	o := op{Do: "credential"}
	a := c.ask(&o, c.reader(), "GET", "database/creds/short", nil, "")
	c.record(o)
	if o.Outcome != done {
		return
	}
	c.ledger.issued(a, o, shortMost)
	user, secret, lease := text(a, "data", "username"), text(a, "data", "password"), text(a, "lease_id")
	err := c.loginAtTarget(ctx, user, secret)
	c.ledger.tried(lease, c.now(), err)
	if c.r.IntN(2) == 0 {
		return
	}
	sleep(ctx, time.Duration(c.r.Int64N(int64(3*time.Second))))
	n := op{Do: "renew credential"}
	b := c.ask(&n, c.reader(), "POST", "sys/leases/renew", map[string]any{"lease_id": lease}, "lease not found|lease expired")
	c.record(n)
	c.ledger.renewed(lease, b, n)
}

// static reads the password of an account that lessor rotates.
func (c *client) static() {
	o := op{Do: "static password"}
	c.ask(&o, c.reader(), "GET", "database/static-creds/fixed", nil, "")
	c.record(o)
}

// text and number are what an answer has at a path.
func text(a map[string]any, path ...string) string {
	s, _ := at(a, path).(string)
	return s
}

func number(a map[string]any, path ...string) int {
	n, _ := at(a, path).(json.Number)
	i, _ := n.Int64()
	return int(i)
}

func at(a map[string]any, path []string) any {
	var v any = a
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}
