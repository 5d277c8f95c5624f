// Package run runs a command with secrets that stay fresh: in its environment, or in private files that the environment names. When a secret
// changes, the command is started anew, or told by a signal. Its leases end with it.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// Command is what is run.
type Command struct {
	Args        []string // program and arguments
	Environment *Environment
	In          io.Reader
	Out, Err    io.Writer
	Terminal    bool // this process is before a terminal: the command belongs there, too

	Heir     bool // there is one process of the session's instance at a time: what an earlier one had that was killed is ended once the command has started
	OnChange Change
	Grace    time.Duration // after the signal that ends the command, before it is killed
	Settle   time.Duration // with Notify: after the signal, before the command counts as one that uses the new values only

	Tell func(format string, args ...any) // what happens, for people; never with a secret
}

// Change is what is done when a secret changes. Files have the new value in each case.
type Change struct {
	Restart bool
	Notify  syscall.Signal // 0: none
}

// Exit is how the command ended: its exit code, or 128 and the number of the signal that killed it, as shells say it.
type Exit int

// inherits says that processes become this one's which others have started and left, as all of a container become its first one's.
var inherits = os.Getpid() == 1

// cleanup is how long ending the leases may take.
const cleanup = 15 * time.Second

// Run runs the command until it ends by itself. Signals that this process gets go to the command.
func Run(ctx context.Context, session *client.Session, c Command) (exit Exit, err error) {
	r := &runner{Command: c, secrets: map[secretKey]*client.Secret{}, changed: make(chan struct{}, 1), signals: make(chan os.Signal, 16)}
	signal.Notify(r.signals, forwarded...)
	defer signal.Stop(r.signals)
	if inherits {
		r.children = make(chan os.Signal, 1)
		signal.Notify(r.children, syscall.SIGCHLD)
		defer signal.Stop(r.children)
	}
	following, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	inherited := true
	defer func() {
		cancel()
		watching.Wait()
		ending, done := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
		defer done()
		var left error
		if !inherited { // the command was faster
			left = session.Supersede(ending)
		}
		if e := errors.Join(left, session.Close(ending), r.files.remove()); e != nil {
			r.Tell("%v", e)
		}
	}()
	for _, ref := range c.Environment.References() {
		if r.secrets[ref.secret()] != nil {
			continue
		}
		var opts []client.SecretOption
		if ref.Version > 0 {
			opts = append(opts, client.PinVersion(ref.Version))
		}
		secret, err := session.Secret(ctx, ref.Path, opts...)
		if err != nil {
			return 0, err
		}
		r.secrets[ref.secret()] = secret
		watching.Go(func() { r.follow(following, secret) })
	}
	if r.now, err = r.render(); err != nil {
		return 0, err
	}
	if err := r.start(); err != nil {
		return 0, err
	}
	if c.Heir {
		watching.Go(func() { inherited = r.supersede(following, session) })
	}
	return r.attend()
}

// runner is a command that runs.
type runner struct {
	Command
	secrets map[secretKey]*client.Secret
	files   files
	changed chan struct{} // holds one
	signals chan os.Signal

	children chan os.Signal // some process has ended whose parent this is; nil: there is none but the command

	now     rendering // that the command was given
	behind  bool      // it may use what it was given before that, still
	process *process
}

// rendering is what secrets have come to.
type rendering struct {
	environ []string
	files   map[string]string // text, by name
	values  map[secretKey]client.Value
}

func (r rendering) same(o rendering) bool {
	return slices.Equal(r.environ, o.environ) && maps.Equal(r.files, o.files)
}

// follow says when a secret changes.
func (r *runner) follow(ctx context.Context, s *client.Secret) {
	for v := s.Value(); ; v = s.Value() {
		select {
		case <-ctx.Done():
			return
		case <-s.Changed(v):
		}
		select {
		case r.changed <- struct{}{}:
		default:
		}
	}
}

// render makes the command's environment and its files of what the secrets are now.
func (r *runner) render() (rendering, error) {
	made := rendering{files: map[string]string{}, values: map[secretKey]client.Value{}}
	for key, secret := range r.secrets {
		made.values[key] = secret.Value()
	}
	for _, v := range r.Environment.variables {
		text, err := v.render(func(ref Reference) (string, error) {
			text, err := ref.text(made.values[ref.secret()])
			if err != nil {
				return "", err
			}
			switch ref.As {
			case File:
				name, err := r.files.put(ref, text)
				made.files[name] = text
				return name, err
			case Escaped:
				return strings.ReplaceAll(url.QueryEscape(text), "+", "%20"), nil // + is a space in queries only
			}
			return text, nil
		})
		if err != nil {
			return made, err
		}
		made.environ = append(made.environ, v.Name+"="+text)
	}
	return made, nil
}

// coalesce is how long is waited for other secrets to change as well.
const coalesce = 100 * time.Millisecond

// attend looks after the command until it ends.
func (r *runner) attend() (Exit, error) {
	var settled <-chan time.Time
	ending := false
	for {
		select {
		case <-r.process.done:
			return r.process.exit, nil
		case sig := <-r.signals:
			ending = ending || sig == syscall.SIGTERM || sig == syscall.SIGINT
			r.process.forward(sig.(syscall.Signal))
		case <-r.children:
			reap(r.process.cmd.Process.Pid)
		case <-settled:
			settled, r.behind = nil, false
			r.adopt()
		case <-r.changed:
			time.Sleep(coalesce)
			next, err := r.render()
			switch {
			case err != nil:
				r.Tell("the command goes on with what it has: %v", err)
			case next.same(r.now):
				r.now.values = next.values
				r.adopt()
			case ending:
			case r.OnChange.Restart:
				r.Tell("a secret has changed: the command is started anew")
				r.now = next
				if !r.process.stop(r.Grace, r.signals) {
					return r.process.exit, nil
				}
				if err := r.start(); err != nil {
					return 0, err
				}
				r.adopt()
			case r.OnChange.Notify != 0:
				r.now, r.behind = next, true
				r.process.signal(r.OnChange.Notify)
				settled = time.After(r.Settle)
			default:
				r.now, r.behind = next, true
			}
		}
	}
}

// adopt says that the command uses what it was given last, and nothing older, unless it is behind.
func (r *runner) adopt() {
	if r.behind {
		return
	}
	for key, v := range r.now.values {
		r.secrets[key].Adopt(v)
	}
}

func (r *runner) start() error {
	p, err := begin(r.Command, r.now.environ)
	if err != nil {
		return fmt.Errorf("the command could not be started: %w", err)
	}
	r.process = p
	if err := r.files.readBy(p.cmd.Process.Pid); err != nil {
		r.Tell("if this process is killed, the command's files are not safe from the next one: %v", err)
	}
	return nil
}
