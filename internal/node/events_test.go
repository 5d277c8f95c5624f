package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/lessor-dev/lessor/client"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

// eventPatience is how long these tests wait for what is to come.
const eventPatience = time.Minute

// connect is a client of the node.
func (r *running) connect(token string) *client.Client {
	r.Helper()
	c, err := client.New(client.Config{Address: r.Address(), Token: client.NewToken(token)})
	r.do(err)
	return c
}

// hears subscribes over a websocket.
func (r *running) hears(token, query string) *websocket.Conn {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), eventPatience)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(r.Address(), "http")+"/v1/sys/events/subscribe/"+query, &websocket.DialOptions{
		HTTPHeader: http.Header{"X-Vault-Token": {token}},
	})
	r.do(err)
	r.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

// message is the next event, or the error that ends the conversation.
func (p *place) message(conn *websocket.Conn) (e socketEvent, err error) {
	ctx, cancel := context.WithTimeout(p.Context(), eventPatience)
	defer cancel()
	kind, text, err := conn.Read(ctx)
	if err != nil {
		return e, err
	}
	if kind != websocket.MessageText {
		p.Errorf("a message of kind %s", kind)
	}
	return e, json.Unmarshal(text, &e)
}

// socketEvent is one as it comes over a websocket.
type socketEvent struct {
	Cursor string `json:"lessorcursor"`
	Data   struct {
		Type  string `json:"event_type"`
		Event struct {
			Metadata map[string]string `json:"metadata"`
		} `json:"event"`
	} `json:"data"`
}

func (e socketEvent) String() string {
	return e.Data.Type + " " + e.Data.Event.Metadata["path"] + " " + e.Data.Event.Metadata["current_version"]
}

func TestEventsOverAWebsocket(t *testing.T) {
	r := newPlace(t).start()
	r.must(204, "POST", "sys/mounts/kv", `{"type":"kv","options":{"version":"2"}}`)
	r.must(204, "POST", "sys/policies/acl/mine", `{"policy":"path \"kv/data/mine\" { capabilities = [\"read\"] }"}`)
	auth := r.must(200, "POST", "auth/token/create", `{"policies":["mine"]}`)["auth"].(map[string]any)
	all, mine := r.hears(r.token, "kv-v2/data-write?json=true&namespaces=root"), r.hears(auth["client_token"].(string), "*?json=true")
	for i, name := range []string{"yours", "mine", "mine"} {
		r.must(200, "POST", "kv/data/"+name, fmt.Sprintf(`{"data":{"n":%d}}`, i))
	}
	var last socketEvent
	for _, want := range []string{"kv-v2/data-write kv/data/yours 1", "kv-v2/data-write kv/data/mine 1", "kv-v2/data-write kv/data/mine 2"} {
		e, err := r.message(all)
		r.do(err)
		if e.String() != want {
			t.Errorf("%s, want %s", e, want)
		}
		last = e
	}
	for _, want := range []string{"kv-v2/data-write kv/data/mine 1", "lessor/rotated kv/data/mine ", "kv-v2/data-write kv/data/mine 2", "lessor/rotated kv/data/mine "} {
		if e, err := r.message(mine); err != nil || e.String() != want {
			t.Errorf("who may read one secret: %s %v, want %s", e, err, want)
		}
	}

	// From a cursor on; with the token's end; and without a websocket.
	_ = all.CloseNow()
	r.must(200, "POST", "kv/data/mine", `{"data":{"n":3}}`)
	again := r.hears(r.token, "kv-v2/data-*?json=true&after="+last.Cursor)
	if e, err := r.message(again); err != nil || e.String() != "kv-v2/data-write kv/data/mine 3" {
		t.Errorf("from a cursor on: %s %v", e, err)
	}
	r.must(204, "POST", "auth/token/revoke-accessor", fmt.Sprintf(`{"accessor":%q}`, auth["accessor"]))
	for {
		if _, err := r.message(mine); err != nil {
			if websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
				t.Errorf("when its token was revoked it ended with %v", err)
			}
			break
		}
	}
	if status, answer := r.ask("GET", "sys/events/subscribe/kv*", ""); status != 400 || !strings.Contains(fmt.Sprint(answer), "websocket") {
		t.Errorf("without a websocket: %d %v", status, answer)
	}

	// A server that stops says so, and who waits for news does not hold it up.
	waiting, err := r.connect(r.token).Subscribe(t.Context(), client.Rotated)
	r.do(err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := waiting.Next(ctx)
		ended <- err
	}()
	r.eventually("both wait", func() bool { return r.state.Load().life.core.Events().Subscribers() == 2 })
	began := time.Now()
	r.stop()
	if took := time.Since(began); took > DrainTime {
		t.Errorf("stopping took %s", took)
	}
	if _, err := r.message(again); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("when the server stopped it ended with %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("who waits for news: %v", err)
	}
}

// What one node commits another tells, and shows; whoever is told elsewhere goes on there.
func TestEventsFromNodeToNode(t *testing.T) {
	c := startNodes(t, 2)
	a, b := c.nodes[0], c.nodes[1]
	a.must(204, "POST", "sys/mounts/kv", `{"type":"kv","options":{"version":"2"}}`)
	c.targets(1)
	s, err := b.connect(c.token).Subscribe(t.Context(), client.Rotated)
	c.do(err)
	// next is what comes next; what it is about is read at once where it was told.
	next := func(at *running, path, version string) map[string]any {
		t.Helper()
		s.Via(at.connect(c.token))
		ctx, cancel := context.WithTimeout(t.Context(), eventPatience)
		defer cancel()
		events, err := s.Next(ctx)
		c.do(err)
		if len(events) != 1 || events[0].Path != path || events[0].Metadata["version"] != version {
			t.Fatalf("%+v, want %s %s", events, path, version)
		}
		return at.must(200, "GET", path, "")["data"].(map[string]any)
	}
	for i := range 20 {
		at, to := c.nodes[i%2], c.nodes[rand.IntN(2)]
		at.must(200, "POST", "kv/data/app", fmt.Sprintf(`{"data":{"n":%d}}`, i))
		if got := next(to, "kv/data/app", fmt.Sprint(i+1))["data"].(map[string]any)["n"]; fmt.Sprint(got) != fmt.Sprint(i) {
			t.Fatalf("told of version %d, and shown n = %v", i+1, got)
		}
	}

	// A static role that is rotated, at either node.
	conn := c.server.Connect(t, pgtest.Superuser)
	_, err = conn.Exec(t.Context(), `CREATE ROLE app LOGIN PASSWORD 'before'`)
	c.do(err)
	before, err := b.connect(c.token).Subscribe(t.Context(), "database/*")
	c.do(err)
	if status, answer := a.ask("POST", "db/static-roles/app", `{"db_name":"pg0","username":"app","rotation_period":"24h"}`); status >= 300 {
		t.Fatalf("a static role: %d %v", status, answer)
	}
	first := next(b, "db/static-creds/app", "1")["password"]
	if status, answer := b.ask("POST", "db/rotate-role/app", ""); status >= 300 {
		t.Fatalf("its rotation: %d %v", status, answer)
	}
	if second := next(a, "db/static-creds/app", "2")["password"]; second == first || first == nil {
		t.Error("whoever was told of a rotation was shown the same password as before")
	}
	ctx, cancel := context.WithTimeout(t.Context(), eventPatience)
	defer cancel()
	for n := 0; n < 2; {
		events, err := before.Next(ctx)
		c.do(err)
		for _, e := range events {
			if e.Type != "database/rotate" || e.Path != "db/static-creds/app" || e.Metadata["name"] != "app" || e.Metadata["path"] != "db/rotate-role/app" {
				t.Errorf("%+v", e)
			}
			n++
		}
	}
}

// However often a subscriber is cut off, and wherever it goes on, it hears of each write once, in order.
func TestResumingLosesNothing(t *testing.T) {
	c := startNodes(t, 2)
	c.nodes[0].must(204, "POST", "sys/mounts/kv", `{"type":"kv","options":{"version":"2"}}`)
	s, err := c.nodes[0].connect(c.token).Subscribe(t.Context(), "kv-v2/data-write", client.Rotated)
	c.do(err)
	s.Paths = []string{"kv/data/a,b*"}
	const writes = 150
	go func() {
		for i := range writes {
			c.nodes[i%2].asks(c.token, "POST", fmt.Sprintf("kv/data/a,b%d", i%3), `{"data":{"k":"v"}}`)
			c.nodes[i%2].asks(c.token, "POST", "kv/data/other", `{"data":{"k":"v"}}`)
		}
	}()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	chance := rand.New(rand.NewPCG(seed, 0))
	versions, ids, last := map[string]int{}, map[string]bool{}, time.Now()
	for len(ids) < 2*writes && time.Since(last) < eventPatience {
		s.Via(c.nodes[chance.IntN(2)].connect(c.token))
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(chance.IntN(30))*time.Millisecond)
		events, err := s.Next(ctx)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		for _, e := range events {
			if last = time.Now(); ids[e.ID] {
				t.Errorf("told twice: %+v", e)
			}
			ids[e.ID] = true
			version := e.Metadata["version"]
			if e.Type != client.Rotated {
				versions[e.Path]++
				version = e.Metadata["current_version"]
			}
			if version != fmt.Sprint(versions[e.Path]) {
				t.Errorf("%s of %s has version %s after %d of them", e.Type, e.Path, version, versions[e.Path])
			}
		}
	}
	if len(ids) != 2*writes {
		t.Errorf("%d events came of %d", len(ids), 2*writes)
	}
}

// A subscription outlives the server: it goes on at the next one, and says so if it cannot know what it missed.
func TestASubscriptionOutlivesTheServer(t *testing.T) {
	p := newPlace(t)
	first := p.start()
	address := strings.TrimPrefix(first.Address(), "http://")
	first.must(204, "POST", "sys/mounts/kv", `{"type":"kv","options":{"version":"2"}}`)
	first.must(200, "POST", "kv/data/app", `{"data":{"n":1}}`)
	s, err := first.connect(first.token).Subscribe(t.Context(), client.Rotated)
	p.do(err)
	lost := first.connect(first.token).SubscribeAfter("AAAA", client.Rotated)
	ctx, cancel := context.WithTimeout(t.Context(), eventPatience)
	defer cancel()
	if _, err := lost.Next(ctx); !errors.Is(err, client.ErrLostPlace) {
		t.Errorf("a place that is none: %v", err)
	}
	heard := make(chan []client.Event, 2)
	for _, s := range []*client.Subscription{s, lost} {
		go func() {
			events, err := s.Next(ctx)
			if err != nil {
				t.Error(err)
			}
			heard <- events
		}()
	}
	p.eventually("both wait", func() bool { return first.state.Load().life.core.Events().Subscribers() == 2 })
	first.stop()
	conf := p.config()
	conf.Listeners[0].Address = address
	n, err := Start(t.Context(), conf, p.o)
	p.do(err)
	second := &running{p, n, first.token, &http.Client{Transport: &http.Transport{}}} // without the first one's connections: it is at the same address
	t.Cleanup(second.stop)
	t.Cleanup(second.client.CloseIdleConnections)
	second.must(200, "POST", "kv/data/app", `{"data":{"n":2}}`)
	for range 2 {
		if events := <-heard; len(events) != 1 || events[0].Path != "kv/data/app" || events[0].Metadata["version"] != "2" || events[0].Mount != "kv/" {
			t.Errorf("%+v", events)
		}
	}
}

// Who follows more paths than fit into a request hears of these, and no others, all the same.
func TestFollowingVeryManyPaths(t *testing.T) {
	r := newPlace(t).start()
	r.must(204, "POST", "sys/mounts/kv", `{"type":"kv"}`)
	s, err := r.connect(r.token).Subscribe(t.Context(), "kv-v1/*")
	r.do(err)
	for i := range 3000 {
		s.Paths = append(s.Paths, fmt.Sprintf("/kv/some/path/that/is/rather/long/%d", i))
	}
	s.Paths = append(s.Paths, "kv/all/*")
	for _, name := range []string{"other", "some/path/that/is/rather/long/2999", "some/path/that/is/rather/long/3000", "all/of/it", "allofit"} {
		r.must(204, "POST", "kv/"+name, `{"k":"v"}`)
	}
	ctx, cancel := context.WithTimeout(t.Context(), eventPatience)
	defer cancel()
	var heard []string
	for len(heard) < 2 {
		events, err := s.Next(ctx)
		r.do(err)
		for _, e := range events {
			heard = append(heard, e.Path)
		}
	}
	if want := "[kv/some/path/that/is/rather/long/2999 kv/all/of/it]"; fmt.Sprint(heard) != want {
		t.Errorf("%v, want %s", heard, want)
	}
}
