// Package lessorsql gives database/sql connections that log in with a lessor secret, and move to the new credential when it is rotated:
//
//	secret, err := session.Secret(ctx, "database/static-creds/app")
//	connector := lessorsql.New(secret, func(v client.Value) (driver.Connector, error) {
//		user, _ := v.Field("username")
//		password, _ := v.Field("password")
//		return mysql.NewConnector(&mysql.Config{Net: "tcp", Addr: "db:3306", User: user, Passwd: password, DBName: "app"})
//	})
//	db := sql.OpenDB(connector)
//
// It works with any driver. New connections use the secret's current value. Those of an older one are closed as soon as nobody uses them; none
// is interrupted. When the last of them is closed, lessor is told that the old credential is out of use here; only then it is retired.
package lessorsql

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lessor-dev/lessor/client"
)

// Connector is a driver.Connector for sql.OpenDB. It is safe for concurrent use.
type Connector struct {
	secret *client.Secret
	open   func(client.Value) (driver.Connector, error)
	driver driver.Driver
	newest atomic.Uint64 // serial of the value that connections are to have

	cancel context.CancelFunc
	done   sync.WaitGroup

	mu    sync.Mutex
	inner driver.Connector
	of    uint64 // serial of the value that inner logs in with
	conns map[*conn]struct{}
}

// New returns a connector whose connections are made by what open returns for the secret's current value. It adopts the secret's values (see
// client.Secret.Adopt). The secret must stay open until the sql.DB is closed, which ends the connector, but not the secret.
func New(secret *client.Secret, open func(client.Value) (driver.Connector, error)) (*Connector, error) {
	c := &Connector{secret: secret, open: open, conns: map[*conn]struct{}{}}
	v := secret.Value()
	inner, err := c.connector(v)
	if err != nil {
		return nil, err
	}
	c.driver = inner.Driver()
	c.newest.Store(v.Serial)
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.done.Go(func() { c.follow(ctx, v) })
	return c, nil
}

// follow moves to each new value.
func (c *Connector) follow(ctx context.Context, v client.Value) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.secret.Changed(v):
		}
		v = c.secret.Value()
		c.newest.Store(v.Serial)
		c.drain()
		c.secret.Adopt(v)
	}
}

// unused is how long a connection may be kept that was opened with an older value, and that nobody used yet.
const unused = time.Minute

// drain closes the connections of older values that nobody uses. Those in use are closed when they are given back.
func (c *Connector) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.conns {
		if !conn.old() {
			continue
		}
		if conn.state.CompareAndSwap(idle, gone) {
			go func() { _ = conn.Close() }()
			continue
		}
		// Whether somebody is about to use it, or it was put aside for nobody, is not to be seen.
		time.AfterFunc(unused, func() {
			if conn.state.CompareAndSwap(fresh, gone) {
				_ = conn.Close()
			}
		})
	}
}

// Connect implements driver.Connector. If the login is refused, and the secret was rotated a moment ago, it tries once more with the new value.
func (c *Connector) Connect(ctx context.Context) (driver.Conn, error) {
	made, v, err := c.connect(ctx)
	if err == nil {
		return made, nil
	}
	if !refused(err) {
		return nil, err
	}
	if now, stale := c.secret.Refresh(ctx, v); stale != nil || now.Serial == v.Serial {
		return nil, err
	}
	if made, _, err = c.connect(ctx); err != nil {
		return nil, err
	}
	return made, nil
}

// connect logs in with the current value, which it returns. A connection whose value became old meanwhile was not there to be drained, and might stay
// in the pool unused: it is replaced.
func (c *Connector) connect(ctx context.Context) (*conn, client.Value, error) {
	for {
		use := c.secret.Acquire()
		made, err := c.login(ctx, use.Value)
		if err != nil {
			use.Release()
			return nil, use.Value, err
		}
		conn := &conn{Conn: made, from: c, use: use}
		c.mu.Lock()
		c.conns[conn] = struct{}{}
		c.mu.Unlock()
		if !conn.old() {
			return conn, use.Value, nil
		}
		_ = conn.Close()
	}
}

func (c *Connector) login(ctx context.Context, v client.Value) (driver.Conn, error) {
	inner, err := c.connector(v)
	if err != nil {
		return nil, err
	}
	return inner.Connect(ctx)
}

// connector is the driver's, for a value.
func (c *Connector) connector(v client.Value) (driver.Connector, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == v.Serial {
		return c.inner, nil
	}
	inner, err := c.open(v)
	if err != nil {
		return nil, err
	}
	c.inner, c.of = inner, v.Serial
	return inner, nil
}

// Driver implements driver.Connector.
func (c *Connector) Driver() driver.Driver { return c.driver }

// Close implements io.Closer, for sql.DB.Close.
func (c *Connector) Close() error {
	c.cancel()
	c.done.Wait()
	return nil
}

// What a connection is doing, as far as can be seen.
const (
	fresh int32 = iota // opened, and not used yet
	busy
	idle // in the pool
	gone // closed, or about to be
)

// conn is a driver's connection and the use of the value that it logged in with.
type conn struct {
	driver.Conn
	from  *Connector
	use   *client.Use
	state atomic.Int32
	once  sync.Once
}

func (c *conn) old() bool { return c.use.Serial < c.from.newest.Load() }

// begin says that the connection is used from now on. One that was given back before anybody used it comes without a reset.
func (c *conn) begin() error {
	if c.state.CompareAndSwap(fresh, busy) || c.state.CompareAndSwap(idle, busy) || c.state.Load() == busy {
		return nil
	}
	return driver.ErrBadConn
}

// ResetSession implements driver.SessionResetter: the pool calls it before it gives the connection out again.
func (c *conn) ResetSession(ctx context.Context) error {
	if !c.state.CompareAndSwap(idle, busy) || c.old() {
		return driver.ErrBadConn
	}
	if r, ok := c.Conn.(driver.SessionResetter); ok {
		return r.ResetSession(ctx)
	}
	return nil
}

// IsValid implements driver.Validator: the pool calls it when the connection is given back.
func (c *conn) IsValid() bool {
	if v, ok := c.Conn.(driver.Validator); ok && !v.IsValid() {
		return false
	}
	c.state.Store(idle)
	return !c.old() // what became old before that is not drained any more
}

// Close implements driver.Conn.
func (c *conn) Close() (err error) {
	c.once.Do(func() {
		c.state.Store(gone)
		err = c.Conn.Close()
		c.from.mu.Lock()
		delete(c.from.conns, c)
		c.from.mu.Unlock()
		c.use.Release()
	})
	return err
}

// Unwrap is the driver's own connection, for sql.Conn.Raw.
func (c *conn) Unwrap() driver.Conn { return c.Conn }

// Ping implements driver.Pinger.
func (c *conn) Ping(ctx context.Context) error {
	if err := c.begin(); err != nil {
		return err
	}
	if p, ok := c.Conn.(driver.Pinger); ok {
		return p.Ping(ctx)
	}
	return nil
}

// ExecContext implements driver.ExecerContext.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	if e, ok := c.Conn.(driver.ExecerContext); ok {
		return e.ExecContext(ctx, query, args)
	}
	return nil, driver.ErrSkip
}

// QueryContext implements driver.QueryerContext.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	if q, ok := c.Conn.(driver.QueryerContext); ok {
		return q.QueryContext(ctx, query, args)
	}
	return nil, driver.ErrSkip
}

// PrepareContext implements driver.ConnPrepareContext.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	if p, ok := c.Conn.(driver.ConnPrepareContext); ok {
		return p.PrepareContext(ctx, query)
	}
	s, err := c.Prepare(query)
	if err == nil && ctx.Err() != nil {
		return nil, errors.Join(ctx.Err(), s.Close())
	}
	return s, err
}

// BeginTx implements driver.ConnBeginTx.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	if b, ok := c.Conn.(driver.ConnBeginTx); ok {
		return b.BeginTx(ctx, opts)
	}
	if opts.Isolation != 0 || opts.ReadOnly {
		return nil, errors.New("the driver knows neither isolation levels nor read-only transactions")
	}
	tx, err := c.Begin() //nolint:staticcheck // of drivers that have nothing better
	if err == nil && ctx.Err() != nil {
		return nil, errors.Join(ctx.Err(), tx.Rollback())
	}
	return tx, err
}

// CheckNamedValue implements driver.NamedValueChecker.
func (c *conn) CheckNamedValue(v *driver.NamedValue) error {
	if n, ok := c.Conn.(driver.NamedValueChecker); ok {
		return n.CheckNamedValue(v)
	}
	return driver.ErrSkip
}
