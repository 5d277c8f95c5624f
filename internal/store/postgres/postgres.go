// Package postgres keeps a store in a PostgreSQL database (13 or later) that several nodes share: when one machine is not enough.
//
// # Commits
//
// There is one chain in a cluster, so there is one writer at a time. A commit is a call of the function commit_3 (functions.go), which takes an
// advisory lock first; at READ COMMITTED each of its statements sees what was committed when that began, so whatever it reads is
// from under the lock. A guess is that call by itself. Enter opens a transaction, takes the lock and looks around, in one round trip; the
// call and the COMMIT are another. Changes are collected in the form in which the function takes them.
// synchronous_commit is on for every Write, and a server that runs with it off, or with fsync=off, is refused. PostgreSQL
// shows a commit to others only once it is durable (with synchronous standbys: on those as well), and lets go of the lock
// only after that: who has the lock sees every commit there was. That is what makes an unknown outcome known.
//
// A node that hangs in a Write loses its lock after ten seconds (idle_in_transaction_session_timeout) and its connection with it;
// one whose machine is gone, likewise.
//
// # Snapshots
//
// A store publishes a state after every commit, and a View may hold one as long as it likes. Transactions at REPEATABLE READ
// would each pin a connection, hold back vacuum and die with a failover. So states are kept in the rows instead. Each commit has
// an epoch, the next number. Table rows has the latest state, each row with the epoch it is since; what a commit overwrites or
// deletes it moves to table past, with the epoch until which it was there. A snapshot is an epoch: a number, not a connection.
// It never blocks, outlives the loss of every connection, and reads go to whatever connection is free.
//
// The cost: a row that is overwritten or deleted is written once more, to past, and removed from there a second or so later; rows
// that are written once (headers, audit records, their indexes) cost nothing. A large deletion copies what it deletes.
//
// Nodes say in table nodes, once a second, that they are there, and what the oldest epoch is that they still show. What ended before all of those is reclaimed, and table
// horizon says up to where. Every read compares: a snapshot that was reclaimed under a node that was cut off for a minute
// gives an error, never a wrong answer.
//
// # Tables
//
// All of lessor's tables but the audit trail's lie in one SQL table, rows, with primary key (tab, name): bytea compares as bytes do. One table makes a
// batch one statement whatever it touches; a table for each would make it nineteen. The audit trail's lie in records, with a
// partition a day (records.go). All is in the schema lessor, which the first node creates, and brings up to date later (schema.go);
// several may start at once. A database administrator who does not want lessor to create schemas makes it in advance, owned by lessor's role,
// which needs no privilege but to connect.
//
// A name may have 2,600 bytes at most: PostgreSQL's index takes no more.
//
// # Connections
//
// Of Options.Connections one writes, four are the keeper's, one listens (hint.go), the others read. TLS, several hosts and all else come by the connection URL. Of
// several hosts the one that takes writes is used. lessor sets session parameters, so a pooler in between must pool sessions. What was
// acknowledged survives a failover only if the standby is synchronous. Each new connection looks whether its server keeps what it
// acknowledges. A database that says nothing is given up within seconds (connect.go), and calls under way with it.
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Options of a Backend. The zero value of each is usable.
type Options struct {
	Log         *slog.Logger // nil: discarded
	Connections int          // at most, 8 to 1000, less is 8; 0: 20. The URL's pool_max_conns, if any, is of those that read

	pollEvery time.Duration // 0: pollEvery
}

// How long things may take before they are errors.
const (
	connectPatience = 10 * time.Second
	lockPatience    = 20 * time.Second // for other nodes' Writes
	readPatience    = 15 * time.Second
	commitPatience  = 2 * time.Minute // a large deletion takes its time
	abortPatience   = 2 * time.Second
)

// Backend is a store.Shared in one database. Errors never hold the connection's password.
type Backend struct {
	writer  *pgxpool.Pool // of one connection, which the open Write has
	readers *pgxpool.Pool
	keeper  *pgxpool.Pool // for what must not wait for readers
	log     *slog.Logger
	id      string    // this Backend's row in table nodes
	started time.Time // by the database's clock
	about   atomic.Pointer[[]byte]
	pins    pins
	told    atomic.Int64 // the epoch that the store was told of last, by Look, Enter or its own commit
	used    atomic.Int64
	dead    atomic.Int64  // rows reclaimed since the past was vacuumed
	days    sync.Map      // of uint32: days whose partition was seen to
	day     atomic.Uint64 // 1+the last of them
	tidy    atomic.Bool   // no audit records are left where version 1 had them
	moved   chan struct{}
	commits chan struct{} // hints to give
	opened  atomic.Bool   // Open is through
	others  atomic.Bool   // other nodes live, as of the last beat
	clock   *clock
	link    *link
	spare   atomic.Pointer[load]
	warned  atomic.Uint64   // warnings on the writer's connections
	ctx     context.Context // ends with the Backend
	cancel  context.CancelFunc
	running sync.WaitGroup

	pollEvery time.Duration
}

var _ store.Shared = (*Backend)(nil)

// Open opens the store in the database that url names, a URL or keyword/value string, and creates its tables if need be. It
// fails if the server is too old or runs with fsync=off, or if a newer lessor was there.
func Open(ctx context.Context, url lessor.Secret, o Options) (*Backend, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Connections == 0 {
		o.Connections = usualConns
	}
	o.Connections = min(max(o.Connections, leastConns), mostConns)
	config, err := parse(url, o)
	if err != nil {
		return nil, err
	}
	b := &Backend{log: o.Log, moved: make(chan struct{}, 1), commits: make(chan struct{}, 1), clock: newClock(), pollEvery: cmp.Or(o.pollEvery, pollEvery)}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.link = newLink(b.ctx)
	config.AfterConnect = (&server{log: o.Log, elsewhere: b.reconnect, warned: make(map[string]bool)}).prepare
	if b.readers, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		b.disconnect()
		return nil, fmt.Errorf("postgresql: %w", err)
	}
	config = config.Copy()
	config.MinConns, config.MinIdleConns = 0, 0
	config.MaxConns = keeperConns
	if b.keeper, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		b.disconnect()
		return nil, fmt.Errorf("postgresql: %w", err)
	}
	config = config.Copy()
	config.MaxConns = writerConns
	config.ConnConfig.OnNotice = b.notice
	config.ShouldPing = unasked
	if b.writer, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		b.disconnect()
		return nil, fmt.Errorf("postgresql: %w", err)
	}
	for _, step := range []func(context.Context) error{b.prove, b.migrate, b.provide, b.tell, b.register, b.measure} {
		if err := step(ctx); err != nil {
			b.disconnect()
			return nil, wrap(err)
		}
	}
	b.opened.Store(true)
	for _, c := range b.chores() {
		b.running.Go(func() { b.keep(c) })
	}
	b.running.Go(b.hint)
	b.running.Go(b.listen)
	return b, nil
}

// reconnect gives up what is asked of a server whose place another has taken, as by a failover: it may never answer, and keep its connections.
func (b *Backend) reconnect() {
	if !b.opened.Load() {
		return // nothing is
	}
	b.readers.Reset() // first: who begins under the next link must find no idle connection to that server
	b.keeper.Reset()
	b.writer.Reset()
	b.link.end(errElsewhere)
}

// disconnect closes the pools that there are.
func (b *Backend) disconnect() {
	b.cancel()
	for _, pool := range []*pgxpool.Pool{b.readers, b.keeper, b.writer} {
		if pool != nil {
			pool.Close()
		}
	}
}

// Snapshot is the state after the last commit of any node.
func (b *Backend) Snapshot() (store.Snapshot, error) {
	floor := b.pins.hold()
	defer b.pins.release(floor)
	var now place
	err := b.attempt(readPatience, func(ctx context.Context) error {
		var found, least int32
		var mark []byte
		if err := b.readers.QueryRow(ctx, `SELECT version, least, epoch, mark FROM lessor.state`).Scan(&found, &least, &now.epoch, &mark); err != nil {
			return err
		}
		copy(now.mark[:], mark)
		return compatible(found, least)
	})
	if err != nil {
		return nil, err
	}
	return b.snapshot(now), nil
}

// Usage is the size of the database, as of some seconds ago at most. What is free is not known.
func (b *Backend) Usage() (used, free int64) { return b.used.Load(), -1 }

// Moved receives a hint of another node's commit: within a tenth of a second, and as a rule within milliseconds.
func (b *Backend) Moved() <-chan struct{} { return b.moved }

// Close ends the connections.
func (b *Backend) Close() error {
	b.cancel()
	b.running.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), abortPatience)
	defer cancel()
	if _, err := b.keeper.Exec(ctx, `DELETE FROM lessor.nodes WHERE id = $1`, b.id); err != nil {
		b.log.Warn("postgresql: this node could not sign off; its mark lapses in a minute", "error", err)
	}
	b.disconnect()
	return nil
}

// pauses are those between attempts; together they outlast a restart of the server.
var pauses = [...]time.Duration{20 * time.Millisecond, 200 * time.Millisecond, time.Second, 2 * time.Second}

// attempt runs f, and again if a connection was lost or said nothing, for patience at most. What f does must bear repeating.
func (b *Backend) attempt(patience time.Duration, f func(context.Context) error) error {
	return b.attemptFor(context.Background(), patience, f)
}

// attemptFor is attempt for somebody who may give up before, when caller ends.
func (b *Backend) attemptFor(caller context.Context, patience time.Duration, f func(context.Context) error) error {
	deadline := time.Now().Add(patience)
	if d, ok := caller.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	for try := 0; ; try++ {
		ctx, cancel := context.WithDeadline(b.link.current(), deadline)
		stop := context.AfterFunc(caller, cancel)
		err := reason(ctx, f(ctx))
		stop()
		cancel()
		if err == nil {
			b.link.answered(true)
			return nil
		}
		if try == len(pauses) || !lost(err) || time.Until(deadline) < pauses[try] {
			return wrap(err)
		}
		select {
		case <-time.After(pauses[try]):
		case <-caller.Done():
			return wrap(err)
		case <-b.ctx.Done():
			return wrap(err)
		}
	}
}

// reason is why the link ended, where that is behind err, which is what became of a call under ctx; else err.
func reason(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && !ours(err) && (errors.Is(cause, errSilent) || errors.Is(cause, errElsewhere)) {
		return cause
	}
	return err
}

// lost reports whether err is about the connection rather than about what was asked.
func lost(err error) bool {
	if ours(err) {
		return false
	}
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		return true
	}
	return strings.HasPrefix(said.Code, "57P") || strings.HasPrefix(said.Code, "08")
}

// ours reports whether err is this package's rather than the server's or the network's.
func ours(err error) bool {
	return errors.Is(err, errUnsafe) || errors.Is(err, errReclaimed) || errors.Is(err, errVersion) || errors.Is(err, errRole) ||
		errors.Is(err, errOver) || errors.Is(err, errShort) || errors.Is(err, errNoLock) || errors.Is(err, errStandby) || errors.Is(err, store.ErrMoved)
}

func wrap(err error) error {
	if err == nil || ours(err) {
		return err
	}
	return fmt.Errorf("postgresql: %w", err)
}
