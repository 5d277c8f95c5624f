// Package lessorredis gives go-redis clients connections that log in with a lessor secret, and move to the new credential when it is rotated:
//
//	secret, err := session.Secret(ctx, "database/static-creds/app")
//	provider := lessorredis.New(secret)
//	db := redis.NewClient(&redis.Options{Addr: "redis:6379", StreamingCredentialsProvider: provider})
//
// New connections use the secret's current value. Those that are open log in again with it, each between two commands; none is interrupted.
// go-redis does not tell when that has happened. So an old value counts as in use for Grace after a change, and for as long as
// lessor sees a session of it at the server. Connections that are kept by the program (PubSub, Conn, a Tx) for longer than Grace are seen so, too, but
// if the credential is a dynamic one they end with it.
package lessorredis

import (
	"context"
	"sync"
	"time"

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

	mu   sync.Mutex
	uses map[auth.CredentialsListener]*client.Use // of connections that are open
}

// Option changes how a Provider is made.
type Option func(*Provider)

// WithGrace says how long after a change the old value counts as in use: longer than any command may take.
func WithGrace(d time.Duration) Option { return func(p *Provider) { p.grace = d } }

// New returns a provider of the secret's fields username (if there is none, the default user's) and password. It adopts the secret's values (see
// client.Secret.Adopt). The secret must stay open until the clients and the provider are closed.
func New(secret *client.Secret, opts ...Option) *Provider {
	p := &Provider{secret: secret, grace: Grace, uses: map[auth.CredentialsListener]*client.Use{}}
	for _, opt := range opts {
		opt(p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	v := secret.Value()
	p.done.Go(func() { p.follow(ctx, v) })
	return p
}

// follow moves to each new value.
func (p *Provider) follow(ctx context.Context, v client.Value) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.secret.Changed(v):
		}
		v = p.secret.Value()
		p.move()
		p.secret.Adopt(v)
	}
}

// move has all connections log in anew.
func (p *Provider) move() {
	p.mu.Lock()
	moving := map[auth.CredentialsListener]*client.Use{}
	for listener, old := range p.uses {
		use := p.secret.Acquire()
		p.uses[listener], moving[listener] = use, use
		time.AfterFunc(p.grace, old.Release)
	}
	p.mu.Unlock()
	for listener, use := range moving { // which may unsubscribe
		listener.OnNext(credentials(use.Value))
	}
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
