package agent

import (
	"context"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// bench is where the secrets lie that templates are made of: each once, however many use it.
type bench struct {
	ctx     context.Context
	session *client.Session
	box     *box
	opening sync.WaitGroup

	mu      sync.Mutex
	sources map[string]*source // by kind and path
}

// source is what a template reads: a secret that stays fresh, or a list of names. It is opened in the background, again and again until it is there.
type source struct {
	kind sourceKind
	path string

	mu      sync.Mutex
	secret  *client.Secret     // nil: it is none, or is not there yet
	names   []string           // of a list; nil: it is not there yet
	failure error              // why not
	readers map[*template]bool // templates that read it
	unmoved map[*template]bool // templates that use it, and whose programs have not moved to any value of it since the agent began: they may use what came before
	changed chan struct{}      // closed when any of that is another
}

type sourceKind string

const (
	value   sourceKind = "secret"
	listing sourceKind = "list"
)

// relist is how often a list is read again: nobody tells of its changes.
const relist = 5 * time.Minute

// use is a template's use of a source, until it is released.
type use struct {
	source  *source
	secret  *Secret  // of a value; nil once the template is rendered: then it lies sealed only
	names   []string // of a listing
	of      client.Value
	changed <-chan struct{} // closed when what is used is not current any more
	release func()
}

// Secret is what the function secret gives to templates, as Vault Agent's does.
type Secret struct {
	RequestID     string
	LeaseID       string
	LeaseDuration int
	Renewable     bool
	Data          map[string]any
}

// use begins a template's use of what is at a path; u is nil if it is not there yet: then changed is closed when there is more to say, and err is why it is not there.
func (b *bench) use(t *template, kind sourceKind, path string) (u *use, changed <-chan struct{}, err error) {
	path = strings.Trim(path, "/")
	b.mu.Lock()
	s := b.sources[string(kind)+" "+path]
	if s == nil {
		s = &source{kind: kind, path: path, changed: make(chan struct{}), readers: map[*template]bool{}, unmoved: map[*template]bool{}}
		b.sources[string(kind)+" "+path] = s
		b.opening.Go(func() { b.open(s) })
	}
	s.mu.Lock()
	s.readers[t] = true // before prune looks
	b.mu.Unlock()
	if !t.sources[s] {
		t.sources[s], s.unmoved[t] = true, true
	}
	defer s.mu.Unlock()
	switch {
	case s.secret != nil:
		held := s.secret.Acquire()
		v := held.Value
		expires := s.secret.Status().Expires
		shown := &Secret{LeaseID: v.Lease, Data: v.Answer(), Renewable: !expires.IsZero()}
		if !expires.IsZero() {
			shown.LeaseDuration = int(time.Until(expires) / time.Second)
		}
		return &use{source: s, secret: shown, of: v, changed: s.secret.Changed(v), release: held.Release}, nil, nil
	case s.names != nil:
		return &use{source: s, names: slices.Clone(s.names), changed: s.changed, release: func() {}}, nil, nil
	}
	return nil, s.changed, s.failure
}

// adopt says that a template's program uses this now, and nothing older. The server is told once that holds for all templates: those that have moved before hold what they
// moved to.
func (u *use) adopt(t *template) {
	s := u.source
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unmoved, t)
	if s.secret != nil && len(s.unmoved) == 0 {
		s.secret.Adopt(u.of)
	}
}

// forget says that a template uses the source no more.
func (s *source) forget(t *template) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unmoved, t)
	delete(s.readers, t)
}

// open opens a source, and tries again until it has.
func (b *bench) open(s *source) {
	for failures := 0; b.ctx.Err() == nil; {
		var secret *client.Secret
		var names []string
		var err error
		if s.kind == value {
			secret, err = b.session.Secret(b.ctx, s.path, client.AdoptLater(), client.Sealed(b.box))
		} else {
			names, err = b.list(s.path)
		}
		if b.ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		if err == nil || s.failure == nil || err.Error() != s.failure.Error() || !reflect.DeepEqual(names, s.names) {
			if err == nil {
				s.secret = secret
			}
			if names != nil && !reflect.DeepEqual(names, s.names) || secret != nil || err != nil {
				close(s.changed)
				s.changed = make(chan struct{})
			}
			if names != nil {
				s.names = names
			}
		}
		s.failure = err
		s.mu.Unlock()
		wait := relist
		if failures++; err == nil {
			failures = 0
			if s.kind == value {
				return
			}
		} else {
			wait = backoff(failures)
		}
		select {
		case <-b.ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// list is what is below a path; nothing is no error.
func (b *bench) list(path string) ([]string, error) {
	answer, err := b.session.Client().List(b.ctx, path)
	if client.IsStatus(err, http.StatusNotFound) {
		return []string{}, nil
	}
	if err != nil {
		return nil, err
	}
	return append([]string{}, answer.Keys()...), nil
}

// leases are those of what is on the bench.
func (b *bench) leases() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := []string{}
	for _, s := range b.sources {
		s.mu.Lock()
		if s.secret != nil {
			all = append(all, s.secret.Value().Lease)
		}
		s.mu.Unlock()
	}
	return all
}

// prune gives back what no template uses any more.
func (b *bench) prune() {
	b.mu.Lock()
	var idle []*client.Secret
	for key, s := range b.sources {
		s.mu.Lock()
		if len(s.readers) == 0 && s.secret != nil {
			idle = append(idle, s.secret)
			delete(b.sources, key)
		}
		s.mu.Unlock()
	}
	b.mu.Unlock()
	for _, secret := range idle {
		ending, cancel := context.WithTimeout(b.ctx, cleanup)
		_ = secret.Close(ending) // what cannot be given back lapses
		cancel()
	}
}

// wait waits until nothing is being opened any more.
func (b *bench) wait() { b.opening.Wait() }
