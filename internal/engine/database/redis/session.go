package redis

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
)

const (
	longest   = 30 * time.Second // of a call whose context has no deadline
	connect   = 10 * time.Second // to make a connection
	stale     = 3                // sessions of the pool that may turn out to be over, before one is used
	idleName  = "lessor"         // of a session that makes nothing
	sessionOf = "lessor:"        // begins the name of one that makes or changes an account, before its lease's short id
)

// server is a pool of sessions with one Redis.
type server struct {
	address     string
	tls         *tls.Config // nil: plain
	username    string
	persistence string
	open, idle  int           // sessions at most; of them idle, as database.Connection has it
	lifetime    time.Duration // of a session; 0: no end
	hide        []string      // secrets of the connection, kept out of errors
	logins      database.Logins
	pool        atomic.Pointer[pool]
	closed      atomic.Bool
}

// pool is the sessions that were opened by the same passwords.
type pool struct {
	client *redis.Client

	mu      sync.Mutex
	users   int  // sessions that are in use
	retired bool // no more is opened: the last who leaves closes it
}

// enter reports whether the pool may be used, until leave.
func (p *pool) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retired {
		return false
	}
	p.users++
	return true
}

func (p *pool) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users--; p.retired && p.users == 0 {
		_ = p.client.Close()
	}
}

// retire ends the sessions, those in use when they are given back.
func (p *pool) retire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.retired && p.users == 0 {
		_ = p.client.Close()
	}
	p.retired = true
}

// options are those of every connection to the server.
func (d *server) options() *redis.Options {
	dialer := target.Dialer(connect)
	o := &redis.Options{
		Addr: d.address, TLSConfig: d.tls, Protocol: 2, DisableIdentity: true, ContextTimeoutEnabled: true,
		MaxRetries: -1, DialerRetries: 1, // what is tried again, and in which session, is decided here
		DialTimeout: connect, ReadTimeout: longest, WriteTimeout: longest, PoolTimeout: longest,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		PoolSize:                 1,
	}
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if o.TLSConfig == nil {
			return dialer.DialContext(ctx, network, addr)
		}
		return (&tls.Dialer{NetDialer: dialer, Config: o.TLSConfig}).DialContext(ctx, network, addr)
	}
	return o
}

// fill makes a pool, without a session yet.
func (d *server) fill() *pool {
	o := d.options()
	o.PoolSize, o.ConnMaxLifetime, o.ConnMaxIdleTime = d.open, d.lifetime, -1
	if d.idle != 0 {
		o.MaxIdleConns = max(1, d.idle)
	}
	o.CredentialsProviderContext = func(context.Context) (string, string, error) {
		return d.username, d.logins.Current().Reveal(), nil
	}
	return &pool{client: redis.NewClient(o)}
}

// silent is where the library's log goes: what is to be said is in errors.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

var hush = sync.OnceFunc(func() { redis.SetLogger(silent{}) })

// Close ends all sessions, those in use when they are given back.
func (d *server) Close() {
	d.closed.Store(true)
	d.pool.Load().retire()
}

// renew has sessions opened anew, in the place of those of a pool.
func (d *server) renew(old *pool) {
	fresh := d.fill()
	if d.pool.CompareAndSwap(old, fresh) {
		old.retire()
	}
	if d.closed.Load() {
		d.pool.Load().retire()
	}
}

// Use says which passwords may log lessor in. When the first of them is another than before, sessions are opened anew.
func (d *server) Use(passwords []lessor.Secret) {
	if d.logins.Use(passwords) {
		d.renew(d.pool.Load())
	}
}

// session is a connection that is in use.
type session struct {
	*server
	ctx  context.Context
	conn *redis.Conn
}

// session runs f over a session of the pool that bears a name. A context without a deadline gets one.
func (d *server) session(ctx context.Context, name string, f func(*session) error) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	p, err := d.acquire()
	if err != nil {
		return err
	}
	defer p.leave()
	var s *session
	err = d.logins.Try(denied, func(lessor.Secret) error {
		for broken := 0; ; broken++ {
			s = &session{server: d, ctx: ctx, conn: p.client.Conn()}
			err := s.name(name)
			if err == nil {
				return nil
			}
			_ = s.conn.Close()
			if !over(err) || broken == stale {
				return err
			}
		}
	})
	if err == nil {
		defer s.release(name)
		return f(s)
	}
	if said(err) == "" && ctx.Err() == nil {
		d.renew(p) // the library's goes on refusing for a second what the server takes again
	}
	return untouched(d.fail(err))
}

// acquire is the pool, entered.
func (d *server) acquire() (*pool, error) {
	for {
		p := d.pool.Load()
		if p.enter() {
			return p, nil
		}
		if p == d.pool.Load() {
			return nil, errClosed
		}
	}
}

// errClosed is the error of a call that comes after Close.
var errClosed = &api.Error{Kind: api.Upstream, Text: "the database cannot be reached: its connection was closed", Cause: database.ErrUntouched}

// release gives a session back, without its name: what its next user does is not to be ended for what was done before.
func (s *session) release(name string) {
	if name != idleName {
		_ = s.name(idleName)
	}
	_ = s.conn.Close()
}

// name has the server know the session by a name.
func (s *session) name(name string) error { return s.conn.ClientSetName(s.ctx, name).Err() }

// do sends a command and returns what the server answers.
func (s *session) do(args ...any) (any, error) { return s.conn.Do(s.ctx, args...).Result() }

// as opens a session of another account, outside the pool.
func (d *server) as(ctx context.Context, username string, password lessor.Secret, f func(*session) error) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	o := d.options()
	o.Username, o.Password = username, password.Reveal()
	client := redis.NewClient(o)
	defer client.Close()
	s := &session{server: d, ctx: ctx, conn: client.Conn()}
	defer s.conn.Close()
	return f(s)
}

// short is a lease's id in short, for the name of a session.
func short(lease string) string {
	h := sha256.Sum256([]byte("lessor session\x00" + lease))
	return hex.EncodeToString(h[:12])
}

// said is what the server answered; empty if it did not.
func said(err error) string {
	var e redis.Error
	if errors.As(err, &e) && !errors.Is(err, redis.Nil) {
		return e.Error()
	}
	return ""
}

// denied reports whether the server says that a password is wrong, or that its account is off.
func denied(err error) bool { return strings.HasPrefix(said(err), "WRONGPASS") }

// over reports whether a session was over before it was used: the server had ended it while it lay in the pool.
func over(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// passing are answers of a server that cannot be asked at present.
var passing = []string{"LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "ERR max number of clients"}

// mostOfResult is how much of an answer an error quotes, in bytes.
const mostOfResult = 500

// fail says what went wrong, without secrets: those of the connection and those given never appear. What only says that the server cannot be asked
// is database.ErrUnreachable besides.
func (d *server) fail(err error, secrets ...string) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	unreachable := func(text string) error {
		return &api.Error{Kind: api.Upstream, Text: "the database cannot be reached: " + text, Cause: database.ErrUnreachable}
	}
	if answer := said(err); answer != "" {
		text := d.redact(answer, secrets)
		if strings.HasPrefix(answer, "WRONGPASS") || strings.HasPrefix(answer, "NOAUTH") {
			return api.Errorf(api.Upstream, "the database refused lessor's own login: %s", text)
		}
		for _, p := range passing {
			if strings.HasPrefix(answer, p) {
				return unreachable(text)
			}
		}
		return api.Errorf(api.Upstream, "the database refused: %s", text)
	}
	switch {
	case errors.Is(err, target.ErrForbidden):
		return api.Errorf(api.Upstream, "%v", target.ErrForbidden)
	case errors.Is(err, redis.ErrPoolTimeout):
		return unreachable("all sessions of its connection were in use")
	case d.tls == nil && over(err):
		return unreachable("the session broke off; if it speaks TLS, say tls=true")
	}
	return unreachable(target.Unreachable(err))
}

// untouched says of an error that nothing was sent.
func untouched(err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok && errors.Is(err, database.ErrUnreachable) {
		return &api.Error{Kind: e.Kind, Text: e.Text, Cause: database.ErrUntouched}
	}
	return err
}

// redact takes secrets out of a text of the server's.
func (d *server) redact(text string, secrets []string) string {
	for _, list := range [][]string{d.hide, d.logins.Reveal(), secrets} {
		for _, s := range list {
			if s != "" {
				text = strings.ReplaceAll(text, s, "[secret]")
			}
		}
	}
	if len(text) > mostOfResult {
		text = text[:mostOfResult]
	}
	return strings.ToValidUTF8(text, "")
}
