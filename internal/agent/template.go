package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"sync"
	texttemplate "text/template"
	"time"

	"github.com/lessor-dev/lessor/internal/agent/language"
)

// template keeps one file. It is a state machine of its own: it waits for what it is made of, is rendered, has its program told, and begins anew when
// anything of that changes. What fails is tried again, after a growing pause.
type template struct {
	Template
	log   *slog.Logger
	first chan struct{} // closed once it was rendered, and its program told
	once  sync.Once

	held    []*use           // what the file is made of
	sources map[*source]bool // all that it has read, and may be in use

	mu       sync.Mutex
	state    state
	failure  error
	rendered time.Time // when the file was written last
	writes   uint64
	failures uint64
}

// state is how far a template is.
type state string

const (
	waiting state = "waiting" // for what it is made of
	failing state = "failing" // it is tried again
	current state = "current" // the file is as it should be, and its program knows
)

func newTemplate(c Template, log *slog.Logger) *template {
	return &template{Template: c, log: log.With("template", c.name()), first: make(chan struct{}), sources: map[*source]bool{}, state: waiting}
}

// run keeps the file until ctx ends.
func (t *template) run(ctx context.Context, b *bench) {
	for failures := 0; ctx.Err() == nil; {
		p := t.pass(b)
		err := p.err
		if err == nil && p.waits == 0 {
			err = t.deliver(ctx, p.text)
			clear(p.text)
			if ctx.Err() != nil {
				p.release()
				return
			}
		}
		var again <-chan time.Time
		switch {
		case p.waits > 0:
			t.stand(waiting, errors.Join(p.missing...))
			p.release()
		case err != nil:
			failures++
			t.stand(failing, err)
			p.release()
			again = time.After(backoff(failures))
		default:
			failures = 0
			t.move(p.uses)
			t.narrow(p.uses, b)
			t.stand(current, nil)
			again = p.end()
			t.once.Do(func() { close(t.first) })
		}
		if changed(ctx, p.changes, again) {
			t.calm(ctx)
		}
	}
}

// move says that the file is made of other values now, and the program uses these, if it is known to.
func (t *template) move(uses []*use) {
	if t.adopts() {
		for _, u := range uses {
			u.adopt(t)
		}
	}
	if t.adopts() {
		t.release()
		t.held = uses
		return
	}
	for _, u := range uses { // nobody knows when the program stops to use what it read
		known := slices.ContainsFunc(t.held, func(h *use) bool { return h.source == u.source && h.of.Serial == u.of.Serial })
		if known {
			u.release()
			continue
		}
		t.held = append(t.held, u)
	}
}

// narrow gives back what the file was made of and is not any more: it has no say in what the program uses, and would stay behind at the next rotation. Where nobody knows when the program stops to
// use what it read it is kept.
func (t *template) narrow(uses []*use, b *bench) {
	if !t.adopts() {
		return
	}
	idle := false
	for s := range t.sources {
		if !slices.ContainsFunc(uses, func(u *use) bool { return u.source == s }) {
			s.forget(t)
			delete(t.sources, s)
			idle = true
		}
	}
	if idle {
		b.opening.Go(b.prune)
	}
}

// leave ends all that the template has.
func (t *template) leave() {
	t.release()
	for s := range t.sources {
		s.forget(t)
	}
}

// release ends the uses of what the file was made of.
func (t *template) release() {
	for _, u := range t.held {
		u.release()
	}
	t.held = nil
}

// stand puts on record how the template stands, and tells what is new.
func (t *template) stand(s state, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	news := s != t.state || (err == nil) != (t.failure == nil) || err != nil && err.Error() != t.failure.Error()
	t.state, t.failure = s, err
	if s == failing {
		t.failures++
	}
	switch {
	case !news:
	case s == failing:
		t.log.Warn("a template fails, and is tried again", "err", err)
	case s == waiting && err != nil:
		t.log.Warn("a template waits for what it is made of", "err", err)
	case s == current:
		t.log.Info("a template is current")
	}
}

// calm waits until nothing more is likely to change at once.
func (t *template) calm(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(min(t.Wait.Least, t.Wait.Most)):
	}
}

// changed waits until any of the channels is closed, and returns false if it is the timer's, or ctx has ended.
func changed(ctx context.Context, changes []<-chan struct{}, timer <-chan time.Time) bool {
	cases := []reflect.SelectCase{
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())},
		{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(timer)},
	}
	for _, c := range changes {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(c)})
	}
	chosen, _, _ := reflect.Select(cases)
	return chosen > 1
}

// pass is one attempt to make the text.
type pass struct {
	of      *template
	bench   *bench
	text    []byte
	err     error             // what is wrong with the template
	waits   int               // how much is not there yet
	missing []error           // why, where that is known
	changes []<-chan struct{} // closed when another pass may come to something else
	uses    []*use
	seen    map[string]*use
}

// end is when the first of the credentials would end that the text is made of: it is looked then whether their leases go on. nil: none does.
func (p *pass) end() <-chan time.Time {
	var first time.Time
	for _, u := range p.uses {
		if !u.expires.IsZero() && (first.IsZero() || u.expires.Before(first)) {
			first = u.expires
		}
	}
	if first.IsZero() {
		return nil
	}
	return time.After(time.Until(first))
}

func (p *pass) release() {
	for _, u := range p.uses {
		u.release()
	}
	p.uses = nil
}

// pass makes the text of what there is now. Everything that is missing is asked for at once.
func (t *template) pass(b *bench) *pass {
	p := &pass{of: t, bench: b, seen: map[string]*use{}}
	source := t.Contents
	if t.Source != "" {
		text, err := os.ReadFile(t.Source)
		if err != nil {
			p.err = err
			return p
		}
		source = string(text)
	}
	made, err := language.Parse(t.name(), source, language.Options{
		Left: t.Left, Right: t.Right, ErrorOnMissingKey: t.ErrorOnMissingKey, Functions: texttemplate.FuncMap{"secret": p.secret, "secrets": p.secrets},
	})
	if err != nil {
		p.err = err
		return p
	}
	p.text, p.err = made.Execute()
	for _, u := range p.uses {
		u.secret = nil
	}
	return p
}

// secret reads a secret, or has one made by writing what is given, each "name=value". Until it is there it is nil.
func (p *pass) secret(path string, data ...string) (*Secret, error) {
	q, err := asked(value, path, data)
	if err != nil {
		return nil, err
	}
	u := p.use(q)
	if u == nil {
		return nil, nil
	}
	return u.secret, nil
}

// secrets lists the names below a path.
func (p *pass) secrets(path string) ([]string, error) {
	q, err := asked(listing, path, nil)
	if err != nil {
		return nil, err
	}
	u := p.use(q)
	if u == nil {
		return nil, nil
	}
	return u.names, nil
}

// use is the same for the same query in one pass.
func (p *pass) use(q query) *use {
	key := q.key()
	if u := p.seen[key]; u != nil {
		return u
	}
	u, changed, err := p.bench.use(p.of, q)
	if u == nil {
		p.waits++
		if err != nil {
			p.missing = append(p.missing, err)
		}
		p.changes = append(p.changes, changed)
		return nil
	}
	p.seen[key], p.uses, p.changes = u, append(p.uses, u), append(p.changes, u.changed)
	return u
}

// deliver puts the text into the file, if it has another, and tells the program. A mark beside the file says that the program is yet to be told: whatever happens in between,
// it is.
func (t *template) deliver(ctx context.Context, text []byte) error {
	if t.MakeFolders {
		if err := makeFolders(t.Destination); err != nil {
			return err
		}
	}
	mark := markOf(t.Destination)
	before, info, err := readPlain(t.Destination)
	defer clear(before)
	if err != nil {
		return err
	}
	if info == nil || !bytes.Equal(before, text) {
		to, err := t.owner(info)
		if err != nil {
			return err
		}
		if t.Command.given() {
			if err := writeFile(mark, nil, owner{mode: 0o600, user: -1, group: -1}); err != nil {
				return err
			}
		}
		if t.Backup && info != nil {
			if err := writeFile(t.Destination+".bak", before, to); err != nil {
				return err
			}
		}
		if err := writeFile(t.Destination, text, to); err != nil {
			return err
		}
		t.mu.Lock()
		t.rendered = time.Now()
		t.writes++
		t.mu.Unlock()
		t.log.Info("the file was written", "file", t.Destination)
	}
	if !t.Command.given() {
		return nil
	}
	if _, err := os.Lstat(mark); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := t.Command.run(ctx); err != nil {
		return err
	}
	return os.Remove(mark)
}
