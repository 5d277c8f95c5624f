package torture

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/pgtest"
)

const (
	shortLease   = 8 * time.Second // of credentials that nobody revokes
	shortMost    = 14 * time.Second
	longestLease = 2 * time.Hour

	// lateBy is how much later than its lease's end a credential may be alive at a target that can be reached, by lessor nodes that work. It
	// covers clocks that are wrong by 5 s, the reaper's round and its retries.
	lateBy = 20 * time.Second
	// unconfirmed is how long lessor gives a credential that it began to make, and whose making nobody confirmed: the target's 30 s, and a margin.
	// Nobody has its password, and its account may be there so long even if its lease would have been shorter.
	unconfirmed = 30*time.Second + lease.PendingMargin
	// clockError is by how much nodes' clocks are wrong at most.
	clockError = 5 * time.Second
)

// grant is what clients know of a dynamic credential.
type grant struct {
	Lease, User string
	Issued      time.Duration // when it was asked for: its lease began after that
	Handed      time.Duration // when it was there: its lease began before that
	Latest      time.Duration // the lease's end is not after that, unless it is revoked before
	Most        time.Duration // nor may any renewal move it beyond that
	Revoked     time.Duration // when its revocation was acknowledged; 0: it was not
}

// end is when the account must be gone, or soon after.
func (g *grant) end() time.Duration {
	if g.Revoked != 0 {
		return min(g.Revoked, g.Latest)
	}
	return g.Latest
}

// ledger keeps the grants.
type ledger struct {
	odd func(string, ...any)

	mu     sync.Mutex
	grants map[string]*grant // by lease
	users  map[string]*grant // the same by account
}

func (l *ledger) issued(a map[string]any, o op, most time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := &grant{Lease: text(a, "lease_id"), User: text(a, "data", "username"), Issued: o.Call, Handed: o.Return, Most: o.Return + most}
	g.Latest = o.Return + time.Duration(number(a, "lease_duration"))*time.Second
	l.grants[g.Lease], l.users[g.User] = g, g
}

// renewed takes down that a lease was renewed, or may have been.
func (l *ledger) renewed(id string, a map[string]any, o op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.grants[id]
	switch {
	case g == nil:
	case o.Outcome == done:
		g.Latest = max(g.Latest, o.Return+time.Duration(number(a, "lease_duration"))*time.Second)
	case o.Outcome == unknown:
		g.Latest = g.Most
	}
}

func (l *ledger) revoked(o op, ids ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if g := l.grants[id]; g != nil && g.Revoked == 0 && g.Handed < o.Call { // a later one it may have missed
			g.Revoked = o.Return
		}
	}
}

// of is what clients know of an account; nil: nothing.
func (l *ledger) of(user string) *grant {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.users[user]
}

// tried takes down what came of a login at the target. A target that says no to a credential whose lease cannot have ended yet is a defect.
func (l *ledger) tried(id string, ended time.Duration, err error) {
	var said *pgconn.PgError
	if err == nil || !errors.As(err, &said) || !strings.HasPrefix(said.Code, "28") {
		return
	}
	l.mu.Lock()
	g := l.grants[id]
	l.mu.Unlock()
	if g != nil && g.Revoked == 0 && ended < g.Issued+shortLease-clockError-time.Second {
		l.odd("the target refused %s %.1f s after its lease %s was asked for: %s", g.User, (ended - g.Issued).Seconds(), id, said.Message)
	}
}

// account is what was seen of an account at the target.
type account struct {
	Name  string
	Mark  string // what its comment says of its lease
	First time.Duration
	Alive time.Duration // when it was last seen able to log in
	Until time.Duration // the end that the target knows of, as last seen
	Gone  bool
}

// end is when the account of a lease that no client knows must be gone, or soon after.
func (a account) end() time.Duration { return max(a.Until-database.Skew, a.First+unconfirmed) }

// observer looks at the target all the time.
type observer struct {
	mu       sync.Mutex
	accounts map[string]*account
	looks    int
}

const lookEvery = 200 * time.Millisecond

const accountsSQL = `SELECT rolname, rolcanlogin AND coalesce(rolvaliduntil > clock_timestamp(), true),
	coalesce(extract(epoch FROM rolvaliduntil - clock_timestamp()), 1e9)::float8, coalesce(shobj_description(oid, 'pg_authid'), '')
FROM pg_authid WHERE rolname LIKE 'v-%'`

func (w *observer) watch(ctx context.Context, target *pgtest.Server, now func() time.Duration) {
	var conn *pgx.Conn
	for ; ctx.Err() == nil; sleep(ctx, lookEvery) {
		if conn == nil {
			dial, cancel := context.WithTimeout(ctx, 2*time.Second)
			conn, _ = target.Login(dial, pgtest.Superuser, target.Password(), "")
			cancel()
		}
		if conn != nil && w.look(ctx, conn, now) != nil {
			_ = conn.Close(context.Background())
			conn = nil
		}
	}
	if conn != nil {
		_ = conn.Close(context.Background())
	}
}

// look sees which accounts there are.
func (w *observer) look(ctx context.Context, conn *pgx.Conn, now func() time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	began := now() // what is seen was so then, or later
	rows, err := conn.Query(ctx, accountsSQL)
	if err != nil {
		return err
	}
	type seen struct {
		name, comment string
		able          bool
		left          float64
	}
	var all []seen
	var s seen
	if _, err := pgx.ForEachRow(rows, []any{&s.name, &s.able, &s.left, &s.comment}, func() error { all = append(all, s); return nil }); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	for _, a := range w.accounts {
		a.Gone = true
	}
	for _, s := range all {
		a := w.accounts[s.name]
		if a == nil {
			a = &account{Name: s.name, First: began}
			w.accounts[s.name] = a
		}
		a.Gone, a.Until, a.Mark = false, began+time.Duration(s.left*float64(time.Second)), mark(s.comment)
		if s.able {
			a.Alive = began
		}
	}
	return nil
}

func (w *observer) all() []account {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []account
	for _, name := range slices.Sorted(maps.Keys(w.accounts)) {
		all = append(all, *w.accounts[name])
	}
	return all
}

// left are the accounts that are there still.
func (w *observer) left() (names []string) {
	for _, a := range w.all() {
		if !a.Gone {
			names = append(names, a.Name)
		}
	}
	return names
}

// mark is the part of an account's comment that names its lease.
func mark(comment string) string {
	m, _, _ := strings.Cut(comment, " mount=")
	return m
}

// markOf is what an account's comment says of a lease.
func markOf(id string) string { return "lessor lease=" + database.Mark(id) }
