// Package agent is lessor's agent: it stays logged in beside programs that know nothing of lessor, and keeps files of secrets for them that are made from templates,
// always with what is current. When a secret changes, its files are written anew and their programs told; once they have moved, the server hears that nobody
// here uses the older version. Programs that speak Vault's protocol reach the server through it.
//
// Each template is a state machine of its own: what goes wrong with one is tried again, and holds up no other. Nothing secret is on disk but in the files that
// were asked for.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"reflect"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// Options are what an agent's configuration does not say.
type Options struct {
	Log    *slog.Logger           // what happens; never with a secret
	Reload <-chan struct{}        // each says that the configuration is to be read again
	Read   func() (Config, error) // reads it; nil: it cannot be
}

const (
	// handover is how long a predecessor's credentials live on at most, while what takes their place is put into force.
	handover = 3 * time.Second
	// cleanup is how long giving back leases may take.
	cleanup = 15 * time.Second
)

// Run runs an agent until ctx ends, or, if it is to exit after its login, until each template was rendered. It ends its leases then, unless they are to be left to a
// successor. An error is one that trying again does not change.
func Run(ctx context.Context, c Config, o Options) error {
	return (&agent{config: c, log: o.Log, started: time.Now()}).run(ctx, o)
}

func (a *agent) run(ctx context.Context, o Options) error {
	unlock, err := a.settle()
	if err != nil {
		return err
	}
	defer unlock()
	removePID, err := writePID(a.config.PIDFile)
	if err != nil {
		return err
	}
	defer removePID()
	if a.box, err = newBox(); err != nil {
		a.log.Warn("the key of what is kept in memory may be swapped out", "err", err)
	}
	if a.server, err = client.New(a.config.Server); err != nil {
		return err
	}
	if a.method, err = newMethod(a.config.Auth, a.config.Server, a.box, a.sink); err != nil {
		return err
	}
	stop, err := a.serve(ctx)
	if err != nil {
		return err
	}
	defer stop()
	session, err := a.open(ctx)
	if err != nil {
		return nil // ctx has ended
	}
	a.attend(ctx, session, o)
	if a.config.ExitRetain || a.config.ExitAfterAuth {
		session.Leave()
		return nil
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer cancel()
	if err := session.Close(ending); err != nil {
		a.log.Warn("leases could not be given back, and end by themselves", "err", err)
	}
	return nil
}

// agent is an agent that runs.
type agent struct {
	config  Config // as it was begun with, but for its templates
	log     *slog.Logger
	started time.Time
	server  *client.Client
	method  client.Method
	box     *box
	cache   *cache // nil: nothing that passes through is kept

	mu        sync.Mutex
	session   *client.Session // nil: not logged in yet
	failure   error           // why not
	bench     *bench
	templates []*template
}

// open logs in, and tries again until it has, or ctx ends.
func (a *agent) open(ctx context.Context) (*client.Session, error) {
	for failures := 1; ; failures++ {
		session, err := client.Open(ctx, a.server, a.method)
		if err == nil {
			a.disown(ctx, session)
		}
		a.mu.Lock()
		a.session, a.failure = session, err
		a.mu.Unlock()
		if err == nil {
			a.log.Info("logged in")
			return session, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		wait := backoff(failures)
		a.log.Warn("the login failed, and is tried again", "err", err, "in", wait.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// attend looks after the templates, as they are configured by now, until ctx ends, or all is done.
func (a *agent) attend(ctx context.Context, session *client.Session, o Options) {
	living, cancel := context.WithCancel(ctx)
	b := &bench{ctx: living, session: session, box: a.box, sources: map[string]*source{}}
	a.mu.Lock()
	a.bench = b
	a.mu.Unlock()
	var others sync.WaitGroup
	defer others.Wait()
	defer b.wait()
	defer cancel()
	stop := a.begin(living, b, a.config.Templates)
	defer func() { stop() }()
	if a.config.Instance != "" {
		others.Go(func() { a.supersede(living, session) })
	}
	if a.config.ExitAfterAuth {
		a.rendered(ctx)
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.Reload:
			next, err := o.Read()
			if err != nil {
				a.log.Error("the configuration is wrong: the agent goes on with the one that it has", "err", err)
				continue
			}
			if !a.config.sameBut(next) {
				a.log.Warn("only templates are configured anew: the rest takes a restart")
			}
			stop()
			stop = a.begin(living, b, next.Templates)
			b.prune()
			a.log.Info("templates are configured anew", "templates", len(next.Templates))
		}
	}
}

// begin runs templates until the function that it returns is called. Those that were the same before go on with what they have.
func (a *agent) begin(ctx context.Context, b *bench, configured []Template) (stop func()) {
	running, cancel := context.WithCancel(ctx)
	a.mu.Lock()
	before := a.templates
	a.templates = nil
	for _, c := range configured {
		t := newTemplate(c, a.log)
		for _, old := range before {
			if reflect.DeepEqual(old.Template, c) {
				t = old
			}
		}
		a.templates = append(a.templates, t)
	}
	now := a.templates
	a.mu.Unlock()
	for _, old := range before {
		kept := false
		for _, t := range now {
			kept = kept || t == old
		}
		if !kept {
			old.leave()
		}
	}
	for _, t := range now {
		t.pass(b).release() // what all of them read is known before any says that its program has moved
	}
	var all sync.WaitGroup
	for _, t := range now {
		all.Go(func() { t.run(running, b) })
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// rendered waits until each template was rendered, or ctx ends.
func (a *agent) rendered(ctx context.Context) {
	a.mu.Lock()
	all := a.templates
	a.mu.Unlock()
	for _, t := range all {
		select {
		case <-ctx.Done():
			return
		case <-t.first:
		}
	}
}

// supersede has the server end what a process of this instance had before this one: once what takes its place is in force, or after a moment.
func (a *agent) supersede(ctx context.Context, session *client.Session) {
	soon, cancel := context.WithTimeout(ctx, handover)
	a.rendered(soon)
	cancel()
	a.end(ctx, session.Supersede)
}

// disown has the server end what was read through the process before this one with its token: its end would have ended that, had it not been killed. It is done before anything is read through
// this one.
func (a *agent) disown(ctx context.Context, session *client.Session) {
	if a.config.Instance == "" || !a.config.OwnToken || a.config.ExitRetain {
		return
	}
	soon, cancel := context.WithTimeout(ctx, handover)
	defer cancel()
	a.end(soon, func(ctx context.Context) error {
		body := map[string]any{"keep": []string{}, "sync": false}
		_, err := session.Client().WithInstance(a.through()).Write(ctx, "sys/lessor/leases/supersede", body)
		return err
	})
	if soon.Err() != nil && ctx.Err() == nil {
		a.log.Warn("what was read through an earlier process of this agent could not be ended in time, and ends by itself")
	}
}

// through is the instance of who reads with the agent's token and is none of his own.
func (a *agent) through() string { return a.config.Instance + through }

const through = "/through"

// end has the server end what an earlier process had, and tries until it has, or will not.
func (a *agent) end(ctx context.Context, supersede func(context.Context) error) {
	for failures := 1; ctx.Err() == nil; failures++ {
		err := supersede(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if client.IsStatus(err, http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed) {
			a.log.Warn("credentials of an earlier process of this agent could not be ended, and end by themselves", "err", err)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff(failures)):
		}
	}
}

// sink writes a new token to where it is to be.
func (a *agent) sink(token client.Token) {
	for _, s := range a.config.Auth.Sinks {
		if err := writeFile(s.Path, []byte(token.Reveal()), owner{mode: s.Mode, user: -1, group: -1}); err != nil {
			a.log.Error("the token could not be written", "sink", s.Path, "err", err)
		}
	}
}

// serve opens the sockets. What is asked there before the login is refused.
func (a *agent) serve(ctx context.Context) (stop func(), err error) {
	var servers []*http.Server
	var all sync.WaitGroup
	renewing, cancel := context.WithCancel(ctx)
	if a.config.Cache {
		a.cache = newCache(renewing, a.server, a.box, a.config.CacheSize, a.log)
	}
	stop = func() {
		cancel()
		ending, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer done()
		for _, s := range servers {
			if s.Shutdown(ending) != nil {
				_ = s.Close()
			}
		}
		all.Wait()
		if a.cache != nil {
			a.cache.busy.Wait()
		}
	}
	begin := func(l net.Listener, s *http.Server) {
		servers = append(servers, s)
		all.Go(func() {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				a.log.Error("a listener has ended", "address", l.Addr().String(), "err", err)
			}
		})
	}
	for _, c := range a.config.Listeners {
		l, err := c.listen(a.log)
		if err != nil {
			stop()
			return nil, fmt.Errorf("listener %s: %w", c.Address, err)
		}
		begin(l, a.proxy(c))
	}
	if a.config.StatusSocket != "" {
		l, err := listenUnix(a.config.StatusSocket, 0o600)
		if err != nil {
			stop()
			return nil, fmt.Errorf("status: %w", err)
		}
		begin(l, &http.Server{Handler: a.statusHandler(), ReadHeaderTimeout: headerTimeout})
	}
	return stop, nil
}

// backoff is how long is waited after so many failures, up to a minute; half of it by chance.
func backoff(failures int) time.Duration {
	d := min(time.Minute, 500*time.Millisecond<<min(failures-1, 7))
	return d/2 + rand.N(d/2)
}
