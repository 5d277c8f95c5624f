package directory

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
)

const (
	most = 8 // connections that are logged in at a time
	idle = 2 // of them kept for the next call
)

// largest is the largest answer that is read, in bytes. A server that announces more is not waited for.
const largest = 16 << 20

func init() { ber.MaxPacketLengthBytes = largest }

// connection is one to a server, logged in or not.
type connection struct {
	*goldap.Conn
	raw net.Conn
	of  int // which passwords it was opened with: Server.generation
}

// bound has a connection's calls end when ctx does. It returns what undoes that, and reports whether the connection is as good as before.
func (c *connection) bound(ctx context.Context) (release func() bool) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.raw.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.raw.SetDeadline(time.Unix(1, 0)) })
	return func() bool { return stop() && c.raw.SetDeadline(time.Time{}) == nil }
}

// dial opens a connection to the first of the servers that answers.
func (d *Server) dial(ctx context.Context) (*connection, error) {
	var failure error
	for _, a := range d.settings.servers {
		c, err := d.dialOne(ctx, a)
		if err == nil {
			return c, nil
		}
		if failure = err; ctx.Err() != nil {
			break
		}
	}
	return nil, failure
}

func (d *Server) dialOne(ctx context.Context, a address) (*connection, error) {
	dialing, cancel := context.WithTimeout(ctx, d.settings.connect)
	defer cancel()
	raw, err := target.Dialer(d.settings.connect).DialContext(dialing, "tcp", a.at)
	if err != nil {
		return nil, err
	}
	secure := d.settings.tls.Clone()
	secure.ServerName = a.host
	over := raw
	if a.tls {
		t := tls.Client(raw, secure)
		if err := t.HandshakeContext(dialing); err != nil {
			raw.Close()
			return nil, err
		}
		over = t
	}
	c := &connection{Conn: goldap.NewConn(over, a.tls), raw: raw}
	c.Start()
	if a.upward {
		release := c.bound(dialing)
		err := c.StartTLS(secure)
		release()
		if err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// logins are the passwords that may log lessor in, while a rotation of it is under way more than one.
type logins struct {
	mu         sync.Mutex
	passwords  []lessor.Secret
	generation int // grows when they change
}

// use replaces them.
func (l *logins) use(passwords []lessor.Secret) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.EqualFunc(l.passwords, passwords, lessor.Secret.Equal) {
		return
	}
	if len(l.passwords) == 0 || len(passwords) == 0 || !l.passwords[0].Equal(passwords[0]) {
		l.generation++
	}
	l.passwords = slices.Clone(passwords)
}

func (l *logins) current() ([]lessor.Secret, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.passwords), l.generation
}

// likelier puts a password that logged in first.
func (l *logins) likelier(p lessor.Secret) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.IndexFunc(l.passwords, p.Equal); i > 0 {
		l.passwords = slices.Insert(slices.Delete(l.passwords, i, i+1), 0, p)
	}
}

// login opens a connection of lessor's own account.
func (d *Server) login(ctx context.Context) (*connection, error) {
	passwords, generation := d.logins.current()
	c, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	release := c.bound(ctx)
	defer release()
	err = &refusal{"lessor has no password for its own login: configure bindpass"}
	for _, p := range passwords {
		if p.Empty() {
			continue
		}
		if err = c.Bind(d.config.BindDN, p.Reveal()); err == nil {
			d.logins.likelier(p)
			c.of = generation
			return c, nil
		}
		if !goldap.IsErrorWithCode(err, goldap.LDAPResultInvalidCredentials) {
			break
		}
	}
	c.Close()
	return nil, &loginError{err}
}

// loginError says that lessor's own login failed.
type loginError struct{ error }

func (e *loginError) Unwrap() error { return e.error }

// with runs f over a connection that is logged in, one that was kept or a new one, for as long as a request may take.
func (d *Server) with(ctx context.Context, f func(context.Context, *connection) error) error {
	ctx, cancel := context.WithTimeout(ctx, d.settings.request)
	defer cancel()
	select {
	case d.free <- struct{}{}:
	case <-ctx.Done():
		return untouched(d.fail(ctx.Err()))
	}
	defer func() { <-d.free }()
	c := d.kept()
	if c == nil {
		var err error
		if c, err = d.login(ctx); err != nil {
			return untouched(d.fail(err))
		}
	}
	release := c.bound(ctx)
	err := d.fail(f(ctx, c))
	d.give(c, release() && answered(err))
	return err
}

// kept is an idle connection that still stands; nil: there is none.
func (d *Server) kept() *connection {
	_, generation := d.logins.current()
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.idle) > 0 {
		c := d.idle[len(d.idle)-1]
		d.idle = d.idle[:len(d.idle)-1]
		if c.of == generation && !c.IsClosing() {
			return c
		}
		go c.Close()
	}
	return nil
}

// give keeps a connection that is good for the next call, or closes it.
func (d *Server) give(c *connection, good bool) {
	d.mu.Lock()
	keep := good && !d.closed && len(d.idle) < idle && !c.IsClosing()
	if keep {
		d.idle = append(d.idle, c)
	}
	d.mu.Unlock()
	if !keep {
		c.Close()
	}
}
