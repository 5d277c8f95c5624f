package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Session is a client that stays logged in, and its secrets, which stay fresh: its token is renewed, and when it can be no more, there is a
// new login before it ends. Changes are heard of in one place for all secrets. A Session is one holder of what it reads: servers tell it
// from others by its instance.
//
// Its methods are safe for concurrent use.
type Session struct {
	client *Client
	method Method // nil: the client's own token, which nobody can replace
	fresh  bool   // the instance was made up: no server knows it

	doubts chan uint64 // epochs whose token was refused; holds one
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	ticket  ticket
	over    chan struct{} // closed when the ticket is succeeded
	failure error
	secrets map[*Secret]struct{}
	known   map[string]bool // paths and instances that were open once
	heard   bool            // changes are told as they happen
	rewait  func()          // ends the wait for changes, to begin another one
	handing chan struct{}   // closed when the Supersede that is under way has ended; nil: none is

	handed atomic.Uint64 // counts calls of Supersede
}

// ticket is a session's token.
type ticket struct {
	token     Token
	epoch     uint64 // counts tokens, from 1
	renewable bool
	begun     time.Time
	ttl       time.Duration // from begun on; 0: for ever
	full      time.Duration // that it was given at first
}

// Open logs in. Without a method it takes the client's own token. The client's Instance, if it is set, must be of this process alone, and of this session;
// if it is not, one is made up.
func Open(ctx context.Context, c *Client, m Method) (*Session, error) {
	s := &Session{
		client: c, method: m, doubts: make(chan uint64, 1), secrets: map[*Secret]struct{}{}, known: map[string]bool{},
		rewait: func() {}, over: make(chan struct{}),
	}
	if c.config.Timeout == 0 {
		s.client = s.client.WithTimeout(callTimeout)
	}
	if c.config.Instance == "" {
		s.client, s.fresh = s.client.WithInstance(newInstance()), true
	}
	if err := s.login(ctx); err != nil {
		return nil, err
	}
	feed, because := s.subscribe(ctx) // before anything is read: what changes from now on is told
	if err := ctx.Err(); err != nil {
		ending, done := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
		defer done()
		return nil, errors.Join(err, s.quit(ending))
	}
	s.heard = feed != nil
	living, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.done.Go(func() { s.keep(living) })
	s.done.Go(func() { s.listen(living, feed, because) })
	return s, nil
}

// callTimeout is how long a call of a session may take, if its client says nothing else.
const callTimeout = time.Minute

// quitTimeout is how long ending the token of a session may take that was given up while it was opened.
const quitTimeout = 5 * time.Second

// newInstance tells processes of one holder apart, in words that a person can follow: host, process, and a few random letters.
func newInstance() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("%.80s/%d/%s", host, os.Getpid(), hex.EncodeToString(b[:]))
}

// Client is a client with the token that the session has now. The token may end while it is used: ask again for each call, or few.
func (s *Session) Client() *Client {
	token, _ := s.token()
	return s.client.WithToken(token)
}

// Err is why the session may lose its token; nil: it does not.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

// Secret reads a path ("secret/data/app", "database/creds/app", "database/static-creds/app") and keeps what was read fresh. What is wrong now is an
// error; what goes wrong later is in the secret's Status.
func (s *Session) Secret(ctx context.Context, path string, opts ...SecretOption) (*Secret, error) {
	path = strings.Trim(path, "/") // as events name it
	secret := &Secret{
		session: s, client: s.client.WithWrapTTL(0).WithHeader("X-Lessor-Lease", "renewable"), path: path, jitter: mathrand.Float64(),
		nudge: make(chan struct{}, 1), done: make(chan struct{}), reading: make(chan struct{}, 1), held: map[uint64]int{}, spent: map[uint64]string{},
	}
	for _, opt := range opts {
		opt(secret)
	}
	secret.ctx, secret.cancel = context.WithCancel(context.Background())
	s.mu.Lock()
	instance := s.instance(secret)
	secret.client, secret.fresh = secret.client.WithInstance(instance), s.fresh && !s.known[path+"\x00"+instance]
	s.known[path+"\x00"+instance] = true
	s.secrets[secret] = struct{}{} // before it is read: it hears of what changes from then on
	heard := s.heard
	s.rewait()
	s.mu.Unlock()
	secret.follow(heard)
	if err := secret.begin(ctx); err != nil {
		secret.cancel()
		close(secret.done) // somebody may be closing the session meanwhile
		s.forget(secret)
		return nil, err
	}
	go secret.run()
	return secret, nil
}

// instance is who asks for a secret. A holder has one lease on what is at a path now, so a second Secret of that which is open is another holder; on what never changes
// it may have any number. The lock is held.
func (s *Session) instance(of *Secret) string {
	name := s.client.config.Instance
	if of.fixed() {
		return name
	}
	taken := map[string]bool{}
	for secret := range s.secrets {
		if secret.path == of.path && !secret.fixed() {
			taken[secret.client.config.Instance] = true
		}
	}
	for n := 2; taken[name]; n++ {
		name = numbered(s.client.config.Instance, n)
	}
	return name
}

// longestInstance is how many bytes servers take of one.
const longestInstance = 128

// numbered is the name of another holder, the nth, beside one: of a name that is too long for a number, as much as there is room for, and a digest of it.
func numbered(instance string, n int) string {
	number := "/" + strconv.Itoa(n)
	if len(instance)+len(number) <= longestInstance {
		return instance + number
	}
	sum := sha256.Sum256([]byte(instance))
	number = "~" + hex.EncodeToString(sum[:8]) + number
	return strings.ToValidUTF8(instance[:longestInstance-len(number)], "") + number
}

func (s *Session) forget(secret *Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.secrets, secret)
	s.rewait()
}

// Close closes the secrets that are open still, and ends the token, if the session logged in for it. It calls the server, under ctx: one that has ended
// already leaves all to end by itself.
func (s *Session) Close(ctx context.Context) error {
	var all sync.WaitGroup
	secrets := s.open()
	failed := make(chan error, len(secrets)+1)
	for _, secret := range secrets {
		all.Go(func() { failed <- secret.Close(ctx) })
	}
	all.Wait()
	s.cancel()
	s.done.Wait()
	failed <- s.quit(ctx)
	close(failed)
	var err error
	for e := range failed {
		err = errors.Join(err, e)
	}
	return err
}

// quit ends the token, if the session logged in for it.
func (s *Session) quit(ctx context.Context) error {
	if !s.own() {
		return nil
	}
	_, err := s.Client().Write(ctx, "auth/token/revoke-self", nil)
	return err
}

// Leave ends the session and its secrets here, and leaves their leases and the token as they are: a successor of the same instance goes on with what is
// in use, or they end by themselves. It does not call the server.
func (s *Session) Leave() {
	for _, secret := range s.open() {
		secret.cancel()
		<-secret.done
		s.forget(secret)
	}
	s.cancel()
	s.done.Wait()
}

// Supersede has the server end the dynamic credentials that this session's instance has, but for those of its open secrets: a process that had the Instance before, with the same login, was
// killed, and left them. It is for sessions whose client was given an Instance, and is called once what takes the place of those credentials is in use. What is on static
// secrets needs none of it: reading takes it up. Of several Secrets that it had of one path those are found of which this session has as many open. An error says that some may be there still; trying again may help, if the error is not a refusal.
func (s *Session) Supersede(ctx context.Context) error {
	if s.fresh {
		return errors.New("nobody was this instance before: the session made it up")
	}
	end, err := s.handover(ctx)
	if err != nil {
		return err
	}
	defer end()
	keep, instances := []string{}, map[string]bool{s.client.config.Instance: true}
	for _, secret := range s.open() {
		secret.mu.Lock()
		if secret.tenure.kind == dynamic {
			keep = append(keep, secret.tenure.lease)
		}
		keep = slices.AppendSeq(keep, maps.Values(secret.spent))
		secret.mu.Unlock()
		instances[secret.client.config.Instance] = true
	}
	for instance := range instances {
		body := map[string]any{"keep": keep, "sync": false}
		if _, err := s.Client().WithInstance(instance).WithWrapTTL(0).Write(ctx, "sys/lessor/leases/supersede", body); err != nil {
			return err
		}
	}
	return nil
}

// handover begins a Supersede, once no other is under way; end ends it. What is read meanwhile is read again.
func (s *Session) handover(ctx context.Context) (end func(), err error) {
	for {
		s.mu.Lock()
		before := s.handing
		if before == nil {
			over := make(chan struct{})
			s.handing = over
			s.handed.Add(1)
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.handing = nil
				close(over)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-before:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// handovers waits until no Supersede is under way, and returns how many were.
func (s *Session) handovers(ctx context.Context) (uint64, error) {
	for {
		s.mu.Lock()
		under, n := s.handing, s.handed.Load()
		s.mu.Unlock()
		if under == nil {
			return n, nil
		}
		select {
		case <-under:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// own reports whether the token is the session's alone.
func (s *Session) own() bool {
	_, kept := s.method.(Keeper)
	return s.method != nil && !kept
}

func (s *Session) open() []*Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*Secret
	for secret := range s.secrets {
		all = append(all, secret)
	}
	return all
}

func (s *Session) token() (Token, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ticket.token, s.ticket.epoch
}

func (s *Session) epoch() uint64 {
	_, epoch := s.token()
	return epoch
}

// doubt says that the token of an epoch was refused somewhere.
func (s *Session) doubt(epoch uint64) {
	select {
	case s.doubts <- epoch:
	default:
	}
}

// login gets a token. Secrets that end with the one before are read anew.
func (s *Session) login(ctx context.Context) error {
	var auth *Auth
	var err error
	if s.method == nil {
		auth, err = look(ctx, s.client)
	} else {
		auth, err = s.method.Login(ctx, s.client.WithToken(Token{}).WithWrapTTL(0))
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	ttl := time.Duration(auth.LeaseDuration) * time.Second
	s.ticket = ticket{
		token: NewToken(auth.ClientToken), epoch: s.ticket.epoch + 1, renewable: auth.Renewable, begun: time.Now(), ttl: ttl, full: ttl,
	}
	s.failure = nil
	close(s.over)
	s.over = make(chan struct{})
	s.mu.Unlock()
	for _, secret := range s.open() {
		secret.wake()
	}
	s.mu.Lock()
	s.rewait() // with the new token
	s.mu.Unlock()
	return nil
}

// keep renews the token until ctx ends, and logs in anew when it can be renewed no more, or was revoked.
func (s *Session) keep(ctx context.Context) {
	for failures := 0; ; {
		s.mu.Lock()
		t := s.ticket
		s.mu.Unlock()
		var timer <-chan time.Time
		switch {
		case failures > 0:
			timer = time.After(backoff(failures, mathrand.Float64()))
		case t.ttl > 0:
			part := t.ttl * 2 / 3
			timer = time.After(time.Until(t.begun.Add(max(part-time.Duration(mathrand.Float64()*float64(part/10)), shortest))))
		}
		var err error
		select {
		case <-ctx.Done():
			return
		case epoch := <-s.doubts:
			if epoch != t.epoch {
				continue
			}
			if _, err = look(ctx, s.Client()); IsStatus(err, http.StatusForbidden) {
				err = s.relogin(ctx, err)
			}
		case <-timer:
			err = s.extend(ctx, t)
		}
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		s.failure = err
		s.mu.Unlock()
		if failures++; err == nil {
			failures = 0
		}
	}
}

// extend renews a token, or replaces it if its renewal would give no more time.
func (s *Session) extend(ctx context.Context, t ticket) error {
	if !t.renewable || t.ttl < t.full*9/10 {
		return s.relogin(ctx, errors.New("the token cannot be renewed any more"))
	}
	answer, err := s.Client().Write(ctx, "auth/token/renew-self", nil)
	if err == nil && answer.Auth == nil {
		err = errors.New("the renewal of the token was answered without one")
	}
	if err != nil {
		if passing(err) {
			return err
		}
		return s.relogin(ctx, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ticket.begun, s.ticket.ttl, s.ticket.renewable = time.Now(), time.Duration(answer.Auth.LeaseDuration)*time.Second, answer.Auth.Renewable
	return nil
}

// relogin logs in again, if there is a way to.
func (s *Session) relogin(ctx context.Context, because error) error {
	if s.method == nil {
		return fmt.Errorf("the token ends, and there is no way to get another: %w", because)
	}
	return s.login(ctx)
}

// look is the client's own token, as a login would have given it.
func look(ctx context.Context, c *Client) (*Auth, error) {
	answer, err := c.WithWrapTTL(0).Read(ctx, "auth/token/lookup-self", nil)
	if err != nil {
		return nil, err
	}
	var found struct {
		TTL       int64 `json:"ttl"`
		Renewable bool  `json:"renewable"`
	}
	if err := answer.Decode(&found); err != nil {
		return nil, err
	}
	return &Auth{ClientToken: c.Token().Reveal(), LeaseDuration: found.TTL, Renewable: found.Renewable}, nil
}
