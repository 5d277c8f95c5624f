// Package lessorpgx gives pgx pools of PostgreSQL connections that log in with a lessor secret, and move to the new credential when it is rotated:
//
//	secret, err := session.Secret(ctx, "database/static-creds/app")
//	config, err := pgxpool.ParseConfig("postgres://db.example.org/app")
//	pool, err := lessorpgx.NewPool(ctx, config, secret)
//
// New connections use the secret's current value. Those of an older one are closed as soon as nobody uses them; none is interrupted. When
// the last of them is closed, lessor is told that the old credential is out of use here; only then it is retired.
package lessorpgx

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lessor-dev/lessor/client"
)

// Pool is a pgxpool.Pool that logs in with a secret. Where a pgxpool.Pool is wanted, pass Pool.Pool. What Pool does besides: its own methods try
// once more when a login fails because the secret was rotated a moment ago, and Close ends what follows the secret.
type Pool struct {
	*pgxpool.Pool
	secret *client.Secret
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// NewPool makes a pool. Connections log in with the secret's fields username (if there is none, with config's user) and password. config is
// as pgxpool.NewWithConfig wants it, and is not changed; its BeforeConnect sees connections that have their credential. The pool adopts the
// secret's values (see client.Secret.Adopt). The secret must stay open until the pool is closed, which does not close the secret.
func NewPool(ctx context.Context, config *pgxpool.Config, secret *client.Secret) (*Pool, error) {
	config = config.Copy()
	before := config.BeforeConnect
	config.BeforeConnect = func(ctx context.Context, c *pgx.ConnConfig) error {
		use := secret.Acquire()
		err := login(c, use.Value)
		if err == nil && before != nil {
			err = before(ctx, c)
		}
		if err != nil {
			use.Release()
			return err
		}
		c.Tracer = traced(c.Tracer, use)
		return nil
	}
	v := secret.Value()
	inner, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	following, cancel := context.WithCancel(context.Background())
	p := &Pool{Pool: inner, secret: secret, cancel: cancel}
	p.done.Go(func() { p.follow(following, v) })
	return p, nil
}

// follow moves to each new value.
func (p *Pool) follow(ctx context.Context, v client.Value) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.secret.Changed(v):
		}
		v = p.secret.Value()
		p.Reset() // closes idle connections now, and each other one, those that are being made included, when it is given back
		p.secret.Adopt(v)
	}
}

// Close closes all connections, waiting for those in use.
func (p *Pool) Close() {
	p.Pool.Close()
	p.cancel()
	p.done.Wait()
}

// login puts a value's credential into the configuration of a connection.
func login(c *pgx.ConnConfig, v client.Value) error {
	password, ok := v.Field("password")
	if !ok {
		return fmt.Errorf("%s has no field password", v.Path)
	}
	if user, ok := v.Field("username"); ok {
		c.User = user
	}
	c.Password = password
	return nil
}

// attempt is an attempt to connect with a value.
type attempt struct{ use *client.Use }

// traced has use released when the attempt has failed, or when the connection that it made is closed.
func traced(tracer pgx.QueryTracer, use *client.Use) pgx.QueryTracer {
	if tracer == nil {
		return attempt{use}
	}
	return multitracer.New(tracer, attempt{use})
}

// TraceConnectStart implements pgx.ConnectTracer.
func (a attempt) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return ctx
}

// TraceConnectEnd implements pgx.ConnectTracer.
func (a attempt) TraceConnectEnd(_ context.Context, end pgx.TraceConnectEndData) {
	if end.Err != nil || end.Conn == nil {
		a.use.Release()
		return
	}
	closed := end.Conn.PgConn().CleanupDone()
	go func() {
		<-closed
		a.use.Release()
	}()
}

// TraceQueryStart implements pgx.QueryTracer.
func (a attempt) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd implements pgx.QueryTracer.
func (a attempt) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// refused reports whether a login failed for its credential: SQLSTATE class 28.
func refused(err error) bool {
	told, ok := errors.AsType[*pgconn.PgError](err)
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return ok && connecting && strings.HasPrefix(told.Code, "28")
}

// again calls f once more if a login failed in it for a credential that is not the current one by now.
func again[T any](ctx context.Context, p *Pool, f func() (T, error)) (T, error) {
	v := p.secret.Value()
	result, err := f()
	if !refused(err) {
		return result, err
	}
	if now, stale := p.secret.Refresh(ctx, v); stale != nil || now.Serial == v.Serial {
		return result, err
	}
	return f()
}

// Acquire is pgxpool.Pool's.
func (p *Pool) Acquire(ctx context.Context) (*pgxpool.Conn, error) {
	return again(ctx, p, func() (*pgxpool.Conn, error) { return p.Pool.Acquire(ctx) })
}

// Ping is pgxpool.Pool's.
func (p *Pool) Ping(ctx context.Context) error {
	_, err := again(ctx, p, func() (struct{}, error) { return struct{}{}, p.Pool.Ping(ctx) })
	return err
}

// Begin is pgxpool.Pool's.
func (p *Pool) Begin(ctx context.Context) (pgx.Tx, error) { return p.BeginTx(ctx, pgx.TxOptions{}) }

// BeginTx is pgxpool.Pool's.
func (p *Pool) BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error) {
	return again(ctx, p, func() (pgx.Tx, error) { return p.Pool.BeginTx(ctx, options) })
}

// Exec is pgxpool.Pool's.
func (p *Pool) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return again(ctx, p, func() (pgconn.CommandTag, error) { return p.Pool.Exec(ctx, sql, args...) })
}

// Query is pgxpool.Pool's.
func (p *Pool) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return again(ctx, p, func() (pgx.Rows, error) { return p.Pool.Query(ctx, sql, args...) })
}

// QueryRow is pgxpool.Pool's.
func (p *Pool) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := p.Query(ctx, sql, args...)
	return row{rows, err}
}

// row is the first of a query's.
type row struct {
	rows pgx.Rows
	err  error
}

// Scan implements pgx.Row.
func (r row) Scan(into ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(into...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}
