package node

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lessor-dev/lessor/internal/config"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/pgtest"
	"github.com/lessor-dev/lessor/internal/seal"
)

// on starts a node of the place on a database, under a name and with a key file of that name's.
func (p *place) on(url, name string) (*running, error) {
	p.Helper()
	c := p.config("-key-file", p.keyAt(name), "-node-name", name)
	c.Storage = config.Storage{Type: config.PostgreSQL, ConnectionURL: lessor.NewSecret(url)}
	c.DrainDelay = 0
	n, err := Start(p.Context(), c, p.o)
	if err != nil {
		return nil, err
	}
	r := &running{p, n, n.Root.Reveal(), &http.Client{Timeout: time.Minute}}
	p.Cleanup(r.stop)
	return r, nil
}

func (p *place) keyAt(name string) string { return filepath.Join(p.dir, name, "seal.key") }

// eventually waits until ok, half a minute at most.
func (p *place) eventually(what string, ok func() bool) {
	p.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.Fatalf("%s: not within a minute; the log:\n%s", what, p.log)
		}
	}
}

func (r *running) health() int {
	r.Helper()
	status, _, err := r.tryAsk("GET", "sys/health", "")
	if err != nil {
		r.Fatal(err)
	}
	return status
}

// A node outlives the death of its database: it says so while that is away, refuses what it cannot do at once or within bounds, and
// serves again by itself when the database is back, also where the outcome of a commit had stayed unknown.
func TestTheDatabaseComesBack(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, pgtest.Fsync())
	p := newPlace(t)
	r, err := p.on(server.URL(pgtest.Superuser, server.Password(), server.Database(t)), "one")
	p.do(err)
	r.fill()
	before := r.db.Self()

	// Streams of writes, so that one is under way when the database dies.
	stop := make(chan struct{})
	var writers sync.WaitGroup
	var counts sync.Map // by status
	count := func(status int) *atomic.Int64 {
		n, _ := counts.LoadOrStore(status, new(atomic.Int64))
		return n.(*atomic.Int64)
	}
	for w := range 8 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				began := time.Now()
				status, answer, err := r.tryAsk("POST", fmt.Sprintf("secret/data/n%d/%d", w, i), `{"data":{"x":"y"}}`)
				if err != nil {
					t.Errorf("a write: %v", err)
					return
				}
				if took := time.Since(began); took > 30*time.Second {
					t.Errorf("a write took %s", took)
				}
				if count(status).Add(1); status == 500 && !strings.Contains(fmt.Sprint(answer), "unknown") {
					t.Errorf("a write: %v", answer)
				}
				if status != 200 {
					time.Sleep(50 * time.Millisecond)
				}
			}
		})
	}
	p.eventually("writing", func() bool { status, _ := r.ask("GET", "secret/data/n3/9", ""); return status == 200 })
	p.do(server.Kill())
	p.eventually("the health check fails", func() bool { return r.health() == 503 })
	p.eventually("writes are refused", func() bool { return count(503).Load() > 0 || count(500).Load() > 0 })
	if r.Fault() != nil {
		t.Fatalf("the process would end: %v", r.Fault())
	}
	p.do(server.Up())
	p.eventually("the node serves again", func() bool {
		status, _ := r.ask("POST", "secret/data/after", `{"data":{"x":"y"}}`)
		return status == 200 && r.health() == 200
	})
	close(stop)
	writers.Wait()
	r.checkFilled()
	if again := r.db.Self() != before; count(500).Load() > 0 && !again {
		t.Error("the store was not opened anew, though an outcome was unknown")
	} else if text := r.metrics(); again && !strings.Contains(text, "\nlessor_store_revivals_total 1\n") {
		t.Errorf("the metrics do not tell of the revival:\n%s", text)
	}
}

// A node whose tables became too new for it says so, to load balancers and once in its log, and its process goes on, until it is restarted with
// a newer lessor.
func TestTablesThatAreTooNew(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Fsync())
	p := newPlace(t)
	name := server.Database(t)
	r, err := p.on(server.URL(pgtest.Superuser, server.Password(), name), "one")
	p.do(err)
	r.fill()
	_, err = server.Connect(t, name).Exec(t.Context(), "UPDATE lessor.state SET version = version + 1, least = version + 1")
	p.do(err)
	p.eventually("the health check fails", func() bool { return r.health() == 503 })
	if status, answer := r.ask("GET", "secret/data/app", ""); status != 503 || !strings.Contains(fmt.Sprint(answer), "this server is older than what its store takes") {
		t.Errorf("a read: %d %v", status, answer)
	}
	if r.Fault() != nil {
		t.Errorf("the process would end: %v", r.Fault())
	}
	_, err = server.Connect(t, name).Exec(t.Context(), "UPDATE lessor.state SET version = version - 1, least = least - 1")
	p.do(err)
	p.eventually("the health check succeeds", func() bool { return r.health() == 200 })
	log := p.log.String()
	for _, said := range []string{"this node is older than what its database takes", "made by a newer lessor", "the database takes this node again"} {
		if !strings.Contains(log, said) {
			t.Errorf("the log does not say that %s:\n%s", said, log)
		}
	}
	if n := strings.Count(log, "this node is older"); n > 1 || strings.Contains(log, `"the database does not answer:`) || strings.Contains(log, `"the database answers again"`) {
		t.Errorf("the log says it %d times, or what is not so:\n%s", n, log)
	}
}

// startAtOnce starts nodes of these names on one database, all at once.
func (p *place) startAtOnce(url string, names ...string) (started []*running, refused []error) {
	p.Helper()
	type outcome struct {
		r   *running
		err error
	}
	outcomes := make(chan outcome)
	for _, name := range names {
		go func() {
			r, err := p.on(url, name)
			outcomes <- outcome{r, err}
		}()
	}
	for range names {
		if o := <-outcomes; o.err != nil {
			refused = append(refused, o.err)
		} else {
			started = append(started, o.r)
		}
	}
	return started, refused
}

// Nodes that start at once on an empty database make one store. With a key file that was made in advance all of them come up; without,
// the first makes the store, and the others say what they lack.
func TestFirstStartsAtOnce(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Fsync())
	names := []string{"one", "two", "three"}

	p := newPlace(t)
	_, err := seal.CreateKeyFile(p.keyAt("one"), rand.Reader)
	p.do(err)
	text, err := os.ReadFile(p.keyAt("one"))
	p.do(err)
	for _, name := range names[1:] {
		p.do(os.MkdirAll(filepath.Dir(p.keyAt(name)), 0o700))
		p.do(os.WriteFile(p.keyAt(name), text, 0o600))
	}
	url := server.URL(pgtest.Superuser, server.Password(), server.Database(t))
	started, refused := p.startAtOnce(url, names...)
	if len(started) != 3 {
		t.Fatalf("%d started; the others: %v", len(started), refused)
	}
	token, ids := "", map[any]bool{}
	for _, r := range started {
		token = max(token, r.token)
		ids[r.must(200, "GET", "sys/health", "")["cluster_id"]] = true
	}
	if len(ids) != 1 {
		t.Errorf("they are of several clusters: %v", ids)
	}
	for _, r := range started {
		if r.token != "" && r.token != token {
			t.Error("there are several root tokens")
		}
		r.token = token
	}
	started[0].fill()
	for _, r := range started {
		p.eventually("every node serves", func() bool { status, _ := r.ask("GET", "secret/data/app", ""); return status == 200 })
	}
	for _, name := range names { // what a node says of itself comes with its next sign of life
		p.eventually(name+" is among the members, and active", func() bool {
			m := started[0].members()[name]
			return m["alive"] == true && m["state"] == "active" && m["version"] == "test" && m["self"] == (name == started[0].Node.config.NodeName)
		})
	}
	nodes := started[0].must(200, "GET", "sys/ha-status", "")["data"].(map[string]any)["nodes"].([]any)
	if len(nodes) != 3 || nodes[2].(map[string]any)["active_node"] != true {
		t.Errorf("ha-status: %v", nodes)
	}
	records := fmt.Sprint(started[0].must(200, "GET", "sys/lessor/audit/records?path=secret/data/app", ""))
	if !strings.Contains(records, "node:"+started[0].Node.config.NodeName) {
		t.Errorf("the records do not name the node: %s", records)
	}

	for _, r := range started {
		r.stop() // the server has connections for a few nodes only
	}
	p = newPlace(t)
	url = server.URL(pgtest.Superuser, server.Password(), server.Database(t))
	started, refused = p.startAtOnce(url, names...)
	if len(started) != 1 || len(refused) != 2 {
		t.Fatalf("%d started; the others: %v", len(started), refused)
	}
	for _, err := range refused {
		if !strings.Contains(err.Error(), "make a join secret there") {
			t.Errorf("a node without a key: %v", err)
		}
	}
	if found, _ := filepath.Glob(filepath.Join(p.dir, "*", "*")); len(found) == 0 || slices.ContainsFunc(found, func(path string) bool {
		return filepath.Dir(path) != filepath.Dir(p.keyAt(started[0].Node.config.NodeName))
	}) {
		t.Errorf("those that did not start left something: %v", found)
	}
	if strings.Contains(p.log.String(), "level=ERROR") {
		t.Errorf("the log:\n%s", p.log)
	}
}

// members are those of sys/lessor/members, by name, once all have said who they are.
func (r *running) members() map[string]map[string]any {
	r.Helper()
	all := map[string]map[string]any{}
	r.eventually("the nodes know each other", func() bool {
		clear(all)
		for _, m := range r.must(200, "GET", "sys/lessor/members", "")["data"].(map[string]any)["members"].([]any) {
			m := m.(map[string]any)
			if m["state"] == "starting" {
				return false
			}
			all[m["name"].(string)] = m
		}
		return true
	})
	return all
}

// Each node may have a key file of its own: one that it makes is known under its name, unseals it from then on, and can be taken away alone.
func TestAKeyFileForEachNode(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Fsync())
	url := server.URL(pgtest.Superuser, server.Password(), server.Database(t))
	p := newPlace(t)
	one, err := p.on(url, "one")
	p.do(err)
	one.fill()
	text, err := os.ReadFile(p.keyAt("one"))
	p.do(err)
	p.do(os.MkdirAll(filepath.Dir(p.keyAt("two")), 0o700))
	p.do(os.WriteFile(p.keyAt("two"), text, 0o600))
	two, err := p.on(url, "two")
	p.do(err)
	two.token = one.token
	own := p.keyAt("two") + ".own"
	two.must(200, "POST", "sys/lessor/seal/keyfile", fmt.Sprintf(`{"path":%q}`, own))
	names := func(r *running) (all []string) {
		for _, l := range r.must(200, "GET", "sys/lessor/seal", "")["data"].(map[string]any)["locks"].([]any) {
			l := l.(map[string]any)
			all = append(all, fmt.Sprintf("%v %v %v", l["name"], l["type"], l["configured"]))
		}
		return all
	}
	if got := names(two); !slices.Equal(got, []string{"keyfile keyfile false", "keyfile/two keyfile true"}) {
		t.Errorf("what unseals: %v", got)
	}
	two.stop()
	p.do(os.Rename(own, p.keyAt("two")))
	again, err := p.on(url, "two")
	p.do(err)
	again.token = one.token
	again.checkFilled()
	again.stop()

	one.eventually("the other node knows of it", func() bool { return len(names(one)) == 2 })
	one.must(204, "DELETE", "sys/lessor/seal/keyfile/two", "")
	one.must(404, "DELETE", "sys/lessor/seal/keyfile/two", "")
	one.must(400, "DELETE", "sys/lessor/seal/keyfile", "") // the last one
	if _, err := p.on(url, "two"); err == nil || !strings.Contains(err.Error(), "wrong key") && !strings.Contains(err.Error(), "was removed") {
		t.Errorf("a node whose key was removed: %v", err)
	}
	one.stop()
	back, err := p.on(url, "one")
	p.do(err)
	back.token = one.token
	back.checkFilled()
}

// balancer is a plain TCP load balancer: each connection goes to the next of those that passed the last health check, or that take it.
type balancer struct {
	net.Listener
	mu    sync.Mutex
	nodes []string // addresses
	well  map[string]bool
	next  int
}

func balance(t *testing.T) *balancer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{Listener: l, well: map[string]bool{}}
	ended := make(chan struct{})
	t.Cleanup(func() { close(ended); _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.forward(c)
		}
	}()
	go func() {
		client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		for {
			for _, node := range b.all() {
				answer, err := client.Get("http://" + node + "/v1/sys/health")
				if err == nil {
					_ = answer.Body.Close()
				}
				b.mu.Lock()
				b.well[node] = err == nil && answer.StatusCode == 200
				b.mu.Unlock()
			}
			select {
			case <-ended:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return b
}

func (b *balancer) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.nodes)
}

func (b *balancer) set(nodes ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nodes = nodes
}

func (b *balancer) healthy() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, node := range b.nodes {
		if b.well[node] {
			n++
		}
	}
	return n
}

// candidates are the nodes in the order in which a connection is offered to them.
func (b *balancer) candidates() (first, last []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	for i := range b.nodes {
		node := b.nodes[(b.next+i)%len(b.nodes)]
		if b.well[node] {
			first = append(first, node)
		} else {
			last = append(last, node)
		}
	}
	return first, last
}

func (b *balancer) forward(c net.Conn) {
	defer func() { _ = c.Close() }()
	first, last := b.candidates()
	for _, node := range append(first, last...) {
		to, err := net.DialTimeout("tcp", node, time.Second)
		if err != nil {
			continue
		}
		var both sync.WaitGroup
		pipe := func(to, from net.Conn) {
			_, _ = io.Copy(to, from)
			_ = to.(*net.TCPConn).CloseWrite()
		}
		both.Go(func() { pipe(to, c) })
		both.Go(func() { pipe(c, to) })
		both.Wait()
		_ = to.Close()
		return
	}
}

// Three nodes behind a plain TCP load balancer are restarted one after the other, under load: no request fails.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, pgtest.Fsync(), pgtest.Setting("max_connections", "120"))
	url := server.URL(pgtest.Superuser, server.Password(), server.Database(t))
	p := newPlace(t)
	_, err := seal.CreateKeyFile(p.keyAt("one"), rand.Reader)
	p.do(err)
	text, err := os.ReadFile(p.keyAt("one"))
	p.do(err)
	nodes := map[string]*running{}
	b := balance(t)
	tell := func() {
		var all []string
		for _, r := range nodes {
			all = append(all, strings.TrimPrefix(r.Address(), "http://"))
		}
		slices.Sort(all)
		b.set(all...)
	}
	token := ""
	for _, name := range []string{"one", "two", "three"} {
		if name != "one" {
			p.do(os.MkdirAll(filepath.Dir(p.keyAt(name)), 0o700))
			p.do(os.WriteFile(p.keyAt(name), text, 0o600))
		}
		r, err := p.on(url, name)
		p.do(err)
		r.Node.config.DrainDelay = 2 * time.Second // ten health checks, and a request of each client
		nodes[name], token = r, max(token, r.token)
	}
	nodes["one"].token = token
	nodes["one"].fill()
	tell()
	p.eventually("all nodes are well", func() bool { return b.healthy() == 3 })

	stop := make(chan struct{})
	var clients sync.WaitGroup
	var done atomic.Int64
	for w := range 8 {
		clients.Go(func() {
			client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{}} // keeps its connection alive
			defer client.CloseIdleConnections()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				method, body := http.MethodGet, ""
				path := "secret/data/app"
				if i%2 == 0 {
					method, body, path = http.MethodPost, `{"data":{"x":"y"}}`, fmt.Sprintf("secret/data/w%d", w)
				}
				request, err := http.NewRequest(method, "http://"+b.Addr().String()+"/v1/"+path, strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				request.Header.Set("X-Vault-Token", token)
				answer, err := client.Do(request)
				if err != nil {
					t.Errorf("request %d of %d: %v", i, w, err)
					return
				}
				said, err := io.ReadAll(answer.Body)
				_ = answer.Body.Close()
				if err != nil || answer.StatusCode != 200 {
					t.Errorf("request %d of %d: %d %s %v", i, w, answer.StatusCode, said, err)
					return
				}
				done.Add(1)
			}
		})
	}
	for _, name := range []string{"one", "two", "three"} {
		nodes[name].stop()
		r, err := p.on(url, name)
		p.do(err)
		r.Node.config.DrainDelay = 2 * time.Second
		nodes[name] = r
		tell()
		p.eventually("the node is well again", func() bool { return b.healthy() == 3 })
		before := done.Load()
		p.eventually("work goes on", func() bool { return t.Failed() || done.Load() > before+100 })
	}
	close(stop)
	clients.Wait()
	t.Logf("%d requests", done.Load())
}
