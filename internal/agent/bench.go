package agent

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
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
	sources map[string]*source // by the query's key
}

// source is what a template reads: a secret that stays fresh, or a list of names. It is opened in the background, again and again until it is there.
type source struct {
	query

	mu      sync.Mutex
	secret  *client.Secret     // nil: it is none, or is not there yet
	names   []string           // of a list; nil: it is not there yet
	failure error              // why not
	readers map[*template]bool // templates that read it
	unmoved map[*template]bool // templates that use it, and whose programs have not moved to any value of it since the agent began: they may use what came before
	moved   client.Value       // to which one has moved last; zero: none has
	changed chan struct{}      // closed when any of that is another
}

// query is what a template asks for.
type query struct {
	kind    sourceKind
	path    string
	version uint64         // of the key-value engine's; 0: the current one
	body    map[string]any // that is written to get it; nil: it is read
}

// key is the same for the same query.
func (q query) key() string {
	body, _ := json.Marshal(q.body) // names are sorted
	hash := sha256.Sum256(body)
	return fmt.Sprintf("%s %s %d %x", q.kind, q.path, q.version, hash)
}

// asked is what the functions secret and secrets ask for: a path, with "?version=2" perhaps, and data to write, each "name=value".
func asked(kind sourceKind, path string, data []string) (query, error) {
	path, after, _ := strings.Cut(path, "?")
	q := query{kind: kind, path: strings.Trim(path, "/")}
	if after != "" {
		text, ok := strings.CutPrefix(after, "version=")
		n, err := strconv.ParseUint(text, 10, 64)
		if !ok || err != nil || n == 0 {
			return q, fmt.Errorf("%s: of what may follow a path's question mark only version=NUMBER is here", q.path)
		}
		q.version = n
	}
	for _, item := range data {
		name, text, ok := strings.Cut(item, "=")
		if !ok || name == "" {
			return q, fmt.Errorf("%s: what is to be written is of the form name=value", q.path)
		}
		if q.body == nil {
			q.body = map[string]any{}
		}
		q.body[name] = text
	}
	return q, nil
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
	expires time.Time       // when of is of no use any more, if its lease is not renewed; zero: never
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
func (b *bench) use(t *template, q query) (u *use, changed <-chan struct{}, err error) {
	b.mu.Lock()
	s := b.sources[q.key()]
	if s == nil {
		s = &source{query: q, changed: make(chan struct{}), readers: map[*template]bool{}, unmoved: map[*template]bool{}}
		b.sources[q.key()] = s
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
		if !expires.IsZero() && !time.Now().Before(expires) {
			held.Release()
			return nil, s.secret.Changed(held.Value), fmt.Errorf("%s: the lease has ended, and there is no other credential yet", s.path)
		}
		shown := &Secret{LeaseID: v.Lease, Data: v.Answer(), Renewable: !expires.IsZero()}
		if !expires.IsZero() {
			shown.LeaseDuration = int(time.Until(expires) / time.Second)
		}
		return &use{source: s, secret: shown, of: v, expires: expires, changed: s.secret.Changed(v), release: held.Release}, nil, nil
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
	s.moved = u.of
	s.adopt()
}

// forget says that a template uses the source no more. The others may have moved by then, and waited for it only.
func (s *source) forget(t *template) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unmoved, t)
	delete(s.readers, t)
	s.adopt()
}

// adopt tells the server what all programs have moved to, if they have. s.mu is held.
func (s *source) adopt() {
	if s.secret != nil && len(s.unmoved) == 0 && s.moved.Serial != 0 {
		s.secret.Adopt(s.moved)
	}
}

// open opens a source, and tries again until it has.
func (b *bench) open(s *source) {
	for failures := 0; b.ctx.Err() == nil; {
		var secret *client.Secret
		var names []string
		path, err := b.place(s.query)
		switch {
		case err != nil:
		case s.kind == value:
			secret, err = b.session.Secret(b.ctx, path, b.options(s.query)...)
		default:
			names, err = b.list(path)
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
		if b.abandon(s) {
			return
		}
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

// abandon gives a source up if no template reads it any more, and reports whether it has: else it would be asked for as long as the agent runs.
func (b *bench) abandon(s *source) bool {
	b.mu.Lock()
	s.mu.Lock()
	key, secret, idle := s.key(), s.secret, len(s.readers) == 0
	mine := b.sources[key] == s // else prune has seen to it
	if idle && mine {
		delete(b.sources, key)
	}
	s.mu.Unlock()
	b.mu.Unlock()
	if idle && mine && secret != nil {
		b.end(secret)
	}
	return idle
}

// end gives a secret back; what cannot be given back lapses.
func (b *bench) end(secret *client.Secret) {
	ending, cancel := context.WithTimeout(b.ctx, cleanup)
	defer cancel()
	_ = secret.Close(ending)
}

func (b *bench) options(q query) []client.SecretOption {
	all := []client.SecretOption{client.AdoptLater(), client.Sealed(b.box)}
	if q.version != 0 {
		all = append(all, client.PinVersion(q.version))
	}
	if q.body != nil {
		all = append(all, client.Write(q.body))
	}
	return all
}

// place is where the API has what is asked for: secrets of the key-value engine's version 2 may be named without the data/ in between, as its commands name them.
func (b *bench) place(q query) (string, error) {
	if q.body != nil {
		return q.path, nil
	}
	answer, err := b.session.Client().Read(b.ctx, "sys/internal/ui/mounts/"+q.path, nil)
	if client.IsStatus(err, http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed) {
		return q.path, nil // whoever may not know is told by the reading
	}
	if err != nil {
		return "", err
	}
	var found struct {
		Path    string            `json:"path"`
		Options map[string]string `json:"options"`
	}
	if err := answer.Decode(&found); err != nil {
		return "", err
	}
	rest, inside := strings.CutPrefix(q.path+"/", strings.Trim(found.Path, "/")+"/")
	if !inside || found.Options["version"] != "2" {
		return q.path, nil
	}
	part := "data"
	if q.kind == listing {
		part = "metadata"
	}
	switch first, _, _ := strings.Cut(rest, "/"); first {
	case "data", "metadata", "subkeys", "config":
		return q.path, nil
	}
	return strings.Trim(strings.Trim(found.Path, "/")+"/"+part+"/"+rest, "/"), nil
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
		b.end(secret)
	}
}

// wait waits until nothing is being opened any more.
func (b *bench) wait() { b.opening.Wait() }
