package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lessor-dev/lessor/internal/lessor"
)

// How long a connection may say nothing before it is taken for dead. The host of a database that was stopped or cut off answers
// nobody, or acknowledges what it never does.
const (
	hostPatience = 3 * time.Second // to connect to one host of several, unless the URL says connect_timeout
	unanswered   = 6 * time.Second // for what was sent to be acknowledged by the other machine
	silence      = 5 * time.Second // for the database to answer any of this node's chores
	farewell     = time.Second     // for the database to close a connection that was given up
)

// Connections that a node has besides those that read.
const (
	keeperConns = 4 // of the chores: three may be slow, with reclaiming, measuring and partitions, while the node gives its signs of life
	writerConns = 1
	listenConns = 1
	otherConns  = keeperConns + writerConns + listenConns
	leastConns  = otherConns + 2 // of them reading
	usualConns  = 20
	mostConns   = 1000
)

// parse reads url. What is wrong with it is not told: it would be told in pieces of the URL, which may be pieces of the password.
func parse(url lessor.Secret, o Options) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(url.Reveal())
	if err != nil {
		return nil, errors.New("postgresql: the connection URL does not parse, or a file that it names cannot be read: it should be like " +
			"postgresql://lessor@db.example.com:5432/lessor?sslmode=verify-full, with the special characters of a password as %XX")
	}
	if !strings.Contains(url.Reveal(), "pool_max_conns") {
		config.MaxConns = int32(o.Connections - otherConns)
	}
	config.PingTimeout = 5 * time.Second
	c := config.ConnConfig
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = hostPatience
	}
	if c.RuntimeParams["search_path"] == "" {
		c.RuntimeParams["search_path"] = "pg_catalog" // nobody else's functions, whatever the role or the database is set to
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "lessor"
	}
	if err := writable(c); err != nil {
		return nil, err
	}
	if host := unverified(c); host != "" {
		o.Log.Warn("postgresql: who lies between lessor and the database may pass for it, as its certificate is not verified: use sslmode=verify-full", "host", host)
	}
	dialer := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: 2 * time.Second, Count: 2},
		Control: func(network, _ string, raw syscall.RawConn) error {
			if !strings.HasPrefix(network, "tcp") {
				return nil
			}
			return impatient(raw, unanswered)
		},
	}
	c.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
		defer cancel()
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return line{conn}, conn.SetDeadline(time.Now().Add(c.ConnectTimeout)) // until somebody has logged in, which who cancels does not
	}
	validate := c.ValidateConnect
	c.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		if err := conn.Conn().SetDeadline(time.Time{}); err != nil {
			return err
		}
		return validate(ctx, conn)
	}
	return config, nil
}

// line is a connection that does not wait long for its end. A pool gives a connection's place to another only when pgconn is done with it, which
// asks the server to cancel what is under way, over a further connection, and waits for it to hang up, fifteen seconds for both. A
// server that says nothing would hold up for as long the one connection that writes, when another has taken its place already.
type line struct{ net.Conn }

// NetConn is what l is made of, as tls.Conn.NetConn is.
func (l line) NetConn() net.Conn { return l.Conn }

// SetDeadline is called where a connection is given up, and to take a deadline back.
func (l line) SetDeadline(at time.Time) error {
	if latest := time.Now().Add(farewell); at.After(latest) {
		at = latest
	}
	return l.Conn.SetDeadline(at)
}

// errStandby is the error of a URL that asks for a server which takes no writes.
var errStandby = errors.New("postgresql: the connection URL, or PGTARGETSESSIONATTRS, asks for a standby, which takes no writes: leave out " +
	"target_session_attrs, and of several hosts the one that takes writes is used")

// writable has c lead to servers that take writes. "primary" stays what it is: it is as good, unless that server is set to read only.
func writable(c *pgx.ConnConfig) error {
	if c.ValidateConnect == nil {
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
		return nil
	}
	asked := reflect.ValueOf(c.ValidateConnect).Pointer() // of what was asked for, this is all that pgconn tells
	for _, standby := range []pgconn.ValidateConnectFunc{
		pgconn.ValidateConnectTargetSessionAttrsStandby, pgconn.ValidateConnectTargetSessionAttrsPreferStandby, pgconn.ValidateConnectTargetSessionAttrsReadOnly,
	} {
		if asked == reflect.ValueOf(standby).Pointer() {
			return errStandby
		}
	}
	return nil
}

// unverified is a host on another machine that would be talked to without TLS, or whoever it turned out to be; "" if there is none.
func unverified(c *pgx.ConnConfig) string {
	trusted := func(host string, t *tls.Config) bool {
		ip, err := netip.ParseAddr(host)
		near := strings.HasPrefix(host, "/") || host == "localhost" || err == nil && ip.IsLoopback()
		return near || t != nil && (!t.InsecureSkipVerify || t.VerifyPeerCertificate != nil) // the latter is sslmode=verify-ca
	}
	if !trusted(c.Host, c.TLSConfig) {
		return c.Host
	}
	for _, f := range c.Fallbacks {
		if !trusted(f.Host, f.TLSConfig) {
			return f.Host
		}
	}
	return ""
}

// session is what every connection begins with. Each statement of this package has its index, but while the tables are new, or
// their statistics old, the planner may think that it knows better. The server ends, by itself, whatever a node left behind.
const session = `SHOW fsync; SHOW full_page_writes; SHOW synchronous_commit; SHOW server_version_num; SELECT pg_postmaster_start_time();
SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off;
SET plan_cache_mode = force_generic_plan; SET statement_timeout = '150s'; SET lock_timeout = '20s';
SET idle_in_transaction_session_timeout = '10s'; SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
SET client_min_messages = warning`

// errUnsafe is the error of a server that loses what it acknowledges.
var errUnsafe = errors.New("postgresql: lessor does not use a server that may lose what it has acknowledged")

// server looks at each new connection, since a failover may have brought another server, or somebody may have set this one anew.
type server struct {
	log       *slog.Logger
	elsewhere func() // a connection leads to another server than the one before
	mu        sync.Mutex
	started   string // the last one's start, by which it is known
	warned    map[string]bool
}

// prepare makes a new connection ready, or refuses its server. It takes no longer than the login may: a connection has its place in the pool from
// the start, whoever gave up waiting for it, and until this returns.
func (s *server) prepare(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, conn.Config().ConnectTimeout)
	defer cancel()
	results, err := conn.PgConn().Exec(ctx, session).ReadAll()
	if err != nil {
		return err
	}
	said := func(i int) string { return string(results[i].Rows[0][0]) }
	fsync, pages, commits, number := said(0), said(1), said(2), said(3)
	if v, err := strconv.Atoi(number); err != nil || v < oldest {
		return fmt.Errorf("the server is version %s; 13 is the oldest that lessor can use", number)
	}
	switch {
	case fsync != "on":
		return fmt.Errorf("%w: it runs with fsync = off, and would lose commits when its machine fails: set fsync = on", errUnsafe)
	case commits == "off":
		return fmt.Errorf("%w: synchronous_commit is off for lessor's role, its database or the server, so that commits are acknowledged before they "+
			"are on disk: set it to on, for lessor's role at least (ALTER ROLE … SET synchronous_commit = on)", errUnsafe)
	}
	if pages != "on" {
		s.warn("postgresql: full_page_writes is off: unless the file system never tears a page (ZFS), a crash of the server's machine may damage the store")
	}
	if commits == "local" || commits == "remote_write" {
		s.warn("postgresql: synchronous_commit is " + commits + ", which does not wait for standbys to have commits on disk; lessor sets it to on for its own sessions")
		if _, err = conn.Exec(ctx, `SET synchronous_commit = on`); err != nil {
			return err
		}
	}
	if s.isAnother(said(4)) {
		s.elsewhere()
	}
	return nil
}

// isAnother takes down which server there is, and reports whether it was another before.
func (s *server) isAnother(started string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.started
	s.started = started
	return before != "" && before != started
}

// warn says something once.
func (s *server) warn(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.warned[text] {
		s.warned[text] = true
		s.log.Warn(text)
	}
}

// oldest is the least server_version_num.
const oldest = 130000

// link is what calls to the database depend on: it ends, and another takes its place, when the database has said nothing for so long that
// no call under way can be expected to come back. A server that was stopped keeps its connections, and would keep its callers.
type link struct {
	parent context.Context
	heard  atomic.Int64 // when the database answered last, in Unix nanoseconds

	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// Why a link ended.
var (
	errSilent    = errors.New("the database has not answered for some seconds")
	errElsewhere = errors.New("another server has taken the place of the one that was asked")
)

func newLink(parent context.Context) *link {
	l := &link{parent: parent}
	l.ctx, l.cancel = context.WithCancelCause(parent)
	l.answered(true)
	return l
}

// current is the context of calls that begin now.
func (l *link) current() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ctx
}

// answered takes down that the database answered, or that it did not.
func (l *link) answered(did bool) {
	if did {
		l.heard.Store(time.Now().UnixNano())
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().UnixNano()-l.heard.Load() > int64(silence) { // of several who say so the first ends the link
		l.replace(errSilent)
	}
}

// end gives up the calls that are under way.
func (l *link) end(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replace(why)
}

// replace ends the link, whose lock is held.
func (l *link) replace(why error) {
	l.cancel(why)
	l.ctx, l.cancel = context.WithCancelCause(l.parent)
	l.heard.Store(time.Now().UnixNano())
}
