// Package lessorredis gives go-redis clients connections that log in with a lessor secret, and move to the new credential when it is rotated:
//
//	secret, err := session.Secret(ctx, "database/static-creds/app")
//	db := lessorredis.NewClient(secret, &redis.Options{Addr: "redis:6379"})
//
// New connections use the secret's current value. Those that are open log in again with it, each between two commands; none is interrupted.
// go-redis does not tell when that has happened. So an old value counts as in use for Grace after a change, and for as long as
// lessor sees a session of it at the server. Connections that are kept by the program (PubSub, Conn, a Tx) for longer than Grace are seen so, too, but
// if the credential is a dynamic one they end with it.
//
// Clients of other kinds take New as their StreamingCredentialsProvider. go-redis has a connection log in again when it is used next: of such a client, one that
// lies in the pool unused keeps the old value in use.
package lessorredis

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"

	"github.com/lessor-dev/lessor/client"
)

// Grace is how long after a change the old value counts as in use, if nothing else is said: longer than a command takes.
const Grace = 30 * time.Second

// Provider is the credentials of go-redis clients. It is safe for concurrent use.
type Provider struct {
	secret *client.Secret
	grace  time.Duration
	cancel context.CancelFunc
	done   sync.WaitGroup
	ping   func(context.Context) error // over any connection of the pool; nil: the pool is not known

	mu      sync.Mutex
	uses    map[auth.CredentialsListener]*client.Use // of connections that are open
	behind  map[auth.CredentialsListener]bool        // those that have not begun to log in again
	pinging bool
}

// Option changes how a Provider is made.
type Option func(*Provider)

// WithGrace says how long after a change the old value counts as in use: longer than any command may take.
func WithGrace(d time.Duration) Option { return func(p *Provider) { p.grace = d } }

// New returns a provider of the secret's fields username (if there is none, the default user's) and password. It adopts the secret's values (see
// client.Secret.Adopt). The secret must stay open until the clients and the provider are closed.
func New(secret *client.Secret, opts ...Option) *Provider {
	return begin(secret, nil, opts)
}

func begin(secret *client.Secret, ping func(context.Context) error, opts []Option) *Provider {
	p := &Provider{
		secret: secret, grace: Grace, ping: ping, uses: map[auth.CredentialsListener]*client.Use{}, behind: map[auth.CredentialsListener]bool{},
	}
	for _, opt := range opts {
		opt(p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	v := secret.Value()
	p.done.Go(func() { p.follow(ctx, v) })
	return p
}

// Client is a client that logs in with a secret.
type Client struct {
	*redis.Client
	provider *Provider
}

// NewClient returns a client whose credentials are the secret's, as with New, instead of what options say. Connections that nobody uses move as well: for that it
// sends PING after a change. The secret must stay open until the client is closed, which does not close the secret.
func NewClient(secret *client.Secret, options *redis.Options, opts ...Option) *Client {
	c := &Client{}
	made := make(chan struct{})
	c.provider = begin(secret, func(ctx context.Context) error {
		<-made
		return c.Ping(ctx).Err()
	}, opts)
	own := *options
	own.StreamingCredentialsProvider = c.provider
	own.PoolFIFO = true // each in turn, so that PINGs come upon all
	c.Client = redis.NewClient(&own)
	close(made)
	return c
}

// Close closes all connections.
func (c *Client) Close() error { return errors.Join(c.Client.Close(), c.provider.Close()) }

// follow moves to each new value.
func (p *Provider) follow(ctx context.Context, v client.Value) {
	var again <-chan time.Time
	var pause time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case <-again:
			if again = nil; p.stir(ctx) {
				again, pause = time.After(pause), min(2*pause, longestPause)
			}
		case <-p.secret.Changed(v):
			v = p.secret.Value()
			p.move()
			p.secret.Adopt(v)
			again, pause = time.After(firstPause), 2*firstPause
		}
	}
}

// Between two rounds of PINGs.
const (
	firstPause   = 20 * time.Millisecond
	longestPause = 30 * time.Second
)

// move has all connections log in anew.
func (p *Provider) move() {
	p.mu.Lock()
	moving := map[auth.CredentialsListener]*client.Use{}
	for listener, old := range p.uses {
		use := p.secret.Acquire()
		p.uses[listener], moving[listener] = use, use
		p.behind[listener] = true
		time.AfterFunc(p.grace, old.Release)
	}
	p.mu.Unlock()
	for listener, use := range moving { // which may unsubscribe
		listener.OnNext(&awaited{credentials(use.Value), func() { p.moved(listener, use) }})
	}
}

// moved notes that a connection is about to log in again for a use, which may be an older one by now.
func (p *Provider) moved(listener auth.CredentialsListener, use *client.Use) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.uses[listener] == use {
		delete(p.behind, listener)
	}
}

// stir uses as many connections as have not logged in again: the pool has each of its that it comes upon do so. It reports whether there may be more to do.
func (p *Provider) stir(ctx context.Context) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.behind)
	if p.ping == nil || n == 0 {
		return false
	}
	if p.pinging {
		return true
	}
	p.pinging = true
	p.done.Go(func() {
		var all sync.WaitGroup
		for range n {
			all.Go(func() { _ = p.ping(ctx) }) // whoever uses the client hears of what is wrong with it
		}
		all.Wait()
		p.mu.Lock()
		p.pinging = false
		p.mu.Unlock()
	})
	return true
}

// awaited are credentials that tell when somebody is about to log in with them.
type awaited struct {
	auth.Credentials
	asked func()
}

// BasicAuth implements auth.Credentials.
func (a *awaited) BasicAuth() (username, password string) {
	a.asked()
	return a.Credentials.BasicAuth()
}

// Subscribe implements auth.StreamingCredentialsProvider. go-redis calls it for each connection that it opens.
func (p *Provider) Subscribe(listener auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	use := p.secret.Acquire()
	if before := p.uses[listener]; before != nil {
		before.Release()
	}
	p.uses[listener] = use
	return credentials(use.Value), func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if last := p.uses[listener]; last != nil {
			last.Release()
			delete(p.uses, listener)
			delete(p.behind, listener)
		}
		return nil
	}, nil
}

// Close ends the provider, after the clients that use it.
func (p *Provider) Close() error {
	p.cancel()
	p.done.Wait()
	return nil
}

func credentials(v client.Value) auth.Credentials {
	username, _ := v.Field("username")
	password, _ := v.Field("password")
	return auth.NewBasicCredentials(username, password)
}
