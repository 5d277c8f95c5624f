package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	mostClients = 128
	each        = 8 // secrets that each client reads in turn
)

// crowds are how many clients ask at once.
func (b *bench) crowds() []int { return pick(b.quick, []int{32}, []int{32, mostClients}) }

// scene is a server with all that the requests need.
type scene struct {
	*lessorServer
	tokens  []string
	roleID  string
	secrets []string // secret ids, one for each client
	leases  []string // on static secrets, one for each client
}

// kind is one kind of request.
type kind struct {
	name   string
	target float64
	fire   func(s *scene) shot
}

var value = `{"data":{"username":"app","password":"correct-horse-battery-staple"}}`

var kinds = []kind{
	{"KV read, many secrets", 0.5, func(s *scene) shot {
		return func(c *client) { c.request("GET", secretPath(c.n*each+c.seq%each), s.tokens[c.n], "") }
	}},
	{"KV read, all clients on one secret", 0.5, func(s *scene) shot {
		return func(c *client) { c.request("GET", "secret/data/hot", s.tokens[c.n], "") }
	}},
	{"KV read, a new holder each time", 0, func(s *scene) shot {
		run := strconv.FormatInt(time.Now().UnixNano(), 36)
		return func(c *client) {
			c.begin("GET", secretPath(c.n*each+c.seq%each), s.tokens[c.n])
			c.header("X-Lessor-Instance", run+"-"+strconv.Itoa(c.n)+"-"+strconv.Itoa(c.seq))
			c.finish("")
		}
	}},
	{"KV write", 0.4, func(s *scene) shot {
		return func(c *client) { c.request("POST", secretPath(100_000+c.n*each+c.seq%each), s.tokens[c.n], value) }
	}},
	{"lease renewal", 0.4, func(s *scene) shot {
		return func(c *client) {
			c.request("POST", "sys/leases/renew", s.tokens[c.n], `{"lease_id":"`+s.leases[c.n]+`"}`)
		}
	}},
	{"token renewal", 0, func(s *scene) shot {
		return func(c *client) { c.request("POST", "auth/token/renew-self", s.tokens[c.n], `{}`) }
	}},
	{"token creation", 0.35, func(s *scene) shot {
		return func(c *client) {
			c.request("POST", "auth/token/create", s.tokens[c.n], `{"policies":["bench"],"ttl":"1h"}`)
		}
	}},
	{"AppRole login", 0.3, func(s *scene) shot {
		return func(c *client) {
			c.request("POST", "auth/approle/login", "", `{"role_id":"`+s.roleID+`","secret_id":"`+s.secrets[c.n]+`"}`)
		}
	}},
}

func secretPath(n int) string { return "secret/data/app/" + strconv.Itoa(n) }

// newScene makes a server and what the requests are about.
func (b *bench) newScene(name string) (*scene, error) {
	server, err := newServer(b.binary, b.dir+"/"+name)
	if err != nil {
		return nil, err
	}
	b.later(func() { server.end(syscall.SIGTERM) })
	return newSceneOn(server)
}

// newSceneOn makes what the requests are about at a server that runs.
func newSceneOn(server *lessorServer) (s *scene, err error) {
	s = &scene{lessorServer: server}
	if s.tokens, err = s.furnish(mostClients); err != nil {
		return nil, err
	}
	for _, step := range []struct {
		path string
		body object
	}{
		{"sys/auth/approle", object{"type": "approle"}},
		{"auth/approle/role/app", object{"token_policies": "bench", "token_ttl": "1h"}},
		{"secret/data/hot", object{"data": object{"username": "app", "password": "correct-horse-battery-staple"}}},
	} {
		if _, err := s.call("POST", step.path, step.body); err != nil {
			return nil, err
		}
	}
	m, err := s.call("GET", "auth/approle/role/app/role-id", nil)
	if err != nil {
		return nil, err
	}
	s.roleID = text(m, "data", "role_id")
	for range mostClients {
		m, err := s.call("POST", "auth/approle/role/app/secret-id", object{})
		if err != nil {
			return nil, err
		}
		s.secrets = append(s.secrets, text(m, "data", "secret_id"))
	}
	return s, s.fill()
}

// fill writes the secrets, and reads them once: from then on every client holds its own.
func (s *scene) fill() error {
	all, err := dial(s.addr, mostClients)
	if err != nil {
		return err
	}
	defer hangUp(all)
	failed := make(chan error, len(all))
	for _, c := range all {
		go func() { failed <- s.fillOne(c) }()
	}
	for range all {
		if err = <-failed; err != nil {
			return err
		}
	}
	for i := range mostClients {
		m, err := s.callAs(s.tokens[i], "GET", secretPath(i*each), nil)
		if err != nil {
			return err
		}
		s.leases = append(s.leases, text(m, "lease_id"))
	}
	return nil
}

func (s *scene) fillOne(c *client) error {
	for i := range each {
		for _, at := range []string{secretPath(c.n*each + i), secretPath(100_000 + c.n*each + i)} {
			c.request("POST", at, s.tokens[c.n], value)
			if _, err := c.must(); err != nil {
				return err
			}
		}
		c.request("GET", secretPath(c.n*each+i), s.tokens[c.n], "")
		if _, err := c.must(); err != nil {
			return err
		}
	}
	c.request("GET", "secret/data/hot", s.tokens[c.n], "")
	_, err := c.must()
	return err
}

// requests measures what needs no target.
func (b *bench) requests() error {
	var wanted []kind
	for _, k := range kinds {
		if b.wants(k.name) {
			wanted = append(wanted, k)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	s, err := b.newScene("requests")
	if err != nil {
		return err
	}
	l, err := startLimit(filepath.Join(b.dir, "limit"))
	if err != nil {
		return err
	}
	defer l.stop()
	for _, k := range wanted {
		for _, n := range b.crowds() {
			if err := b.beside(k, n, s, l); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
		}
	}
	s.end(syscall.SIGTERM)
	return nil
}

// beside measures one kind of request beside the limit that is asked the same and answers the same.
func (b *bench) beside(k kind, n int, s *scene, l *limiter) error {
	to, err := dial(s.addr, n)
	if err != nil {
		return err
	}
	defer hangUp(to)
	bare, err := dial(l.addr, n)
	if err != nil {
		return err
	}
	defer hangUp(bare)
	fire := k.fire(s)
	fire(to[0])
	answer, err := to[0].must()
	if err != nil {
		return err
	}
	if err := l.answers(answer); err != nil {
		return err
	}
	var cpu time.Duration
	err = b.alternate(&figure{name: k.name, clients: n, target: k.target},
		func(warm, d time.Duration) (float64, error) {
			before := s.cpu()
			rate, err := closed(to, fire, warm, d)
			cpu += s.cpu() - before
			return rate, err
		},
		func(warm, d time.Duration) (float64, error) { return closed(bare, fire, warm, d) })
	if total := requestsOf(to); total > 0 {
		b.say("    of which each cost lessor %.0f µs of processor time", float64(cpu.Microseconds())/float64(total))
	}
	return err
}

// requestsOf is how many requests the clients have had answered.
func requestsOf(all []*client) (n uint64) {
	for _, c := range all {
		n += c.done.Load()
	}
	return n
}
