package postgres

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Passwords that change: lessor's own, and those of accounts that are not lessor's making.

// logins are the passwords that may open a session, while a rotation of it is under way more than one.
type logins struct {
	mu        sync.Mutex
	passwords []lessor.Secret
	good      int // the one that is tried first
}

// use replaces them, and reports whether they were others before.
func (l *logins) use(passwords []lessor.Secret) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.EqualFunc(l.passwords, passwords, lessor.Secret.Equal) {
		return false
	}
	changed := len(l.passwords) > 0 && (len(passwords) == 0 || !l.passwords[0].Equal(passwords[0]))
	l.passwords, l.good = slices.Clone(passwords), 0
	return changed
}

// current is the password that is tried now, and how many there are.
func (l *logins) current() (password lessor.Secret, at, of int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.passwords) == 0 {
		return lessor.Secret{}, 0, 0
	}
	return l.passwords[l.good], l.good, len(l.passwords)
}

// all are all of them.
func (l *logins) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, p := range l.passwords {
		out = append(out, p.Reveal())
	}
	return out
}

// wrong goes on to the next password if at is still the one that is tried.
func (l *logins) wrong(at int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.good == at && len(l.passwords) > 0 {
		l.good = (l.good + 1) % len(l.passwords)
	}
}

// Use says which passwords may log lessor in. When the first of them is another than before, sessions are opened anew.
func (d *server) Use(passwords []lessor.Secret) {
	if d.logins.use(passwords) {
		d.pool.Reset()
	}
}

// present gives a session that is opened its password.
func (d *server) present(_ context.Context, cfg *pgx.ConnConfig) error {
	password, _, _ := d.logins.current()
	cfg.Password = password.Reveal()
	return nil
}

// acquire is a session of the pool. A password that is refused is followed by the next, twice round: while they are tried, the one in force may
// become another that was tried already.
func (d *server) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	for try := 1; ; try++ {
		_, at, of := d.logins.current()
		conn, err := d.pool.Acquire(ctx)
		if err == nil || of <= 1 || try >= 2*of || !denied(err) {
			return conn, err
		}
		d.logins.wrong(at)
	}
}

// denied reports whether the server says that a password is wrong.
func denied(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == wrongPassword
}

// Login tries a password in a session of its own.
func (d *server) Login(ctx context.Context, username string, password lessor.Secret) (database.Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	c, err := d.as(ctx, username, password)
	if err == nil {
		_ = c.Close(ctx)
		return database.Accepted, nil
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch e.Code {
		case wrongPassword:
			return database.Refused, nil
		case notPermitted, noSuchDatabase: // comes after the password
			return database.Accepted, nil
		case notAuthorized:
			return database.Unknown, nil
		case tooMany:
			if e.Routine == "InitializeSessionUserId" || e.Routine == "CheckMyDatabase" { // for this account, or this database: after the password
				return database.Accepted, nil
			}
		}
	}
	return 0, d.fail(err, password.Reveal())
}

// as opens a session of an account, outside the pool.
func (d *server) as(ctx context.Context, username string, password lessor.Secret) (*pgx.Conn, error) {
	cfg := d.pool.Config().ConnConfig
	cfg.User, cfg.Password = username, password.Reveal()
	return pgx.ConnectConfig(ctx, cfg)
}

// SetPassword changes an account's password in one transaction, under the change's lock.
func (d *server) SetPassword(ctx context.Context, c database.Change) error {
	if !existing(c.Username) {
		return api.Errorf(api.Invalid, "the username cannot be put into statements")
	}
	password := c.Password.Reveal()
	if d.verify {
		var err error
		// The salt is that of this password: the same whenever it is set again.
		if password, err = verifier(password, salt(c.Name+"\x00"+password), d.iterations); err != nil {
			return api.Errorf(api.Invalid, "%v", err)
		}
	}
	v, err := fill(c.Username, password, time.Time{})
	if err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	statements := c.Statements
	if len(statements) == 0 {
		statements = []string{`ALTER ROLE "{{name}}" WITH PASSWORD '{{password}}'`}
	}
	script := v.script(statements)
	change := func(s *session) error {
		hidden := []string{password, c.Password.Reveal()}
		lock := database.Account{Lease: c.Name}
		if _, err := s.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = CURRENT_USER AND application_name = '" +
			sessionOf + short(c.Name) + "'"); err != nil {
			return d.fail(err, hidden...)
		}
		s.spent = leavesTraces.MatchString(script)
		return d.fail(s.again(func(string) error {
			return s.make(c.Name, locks(lock), script)
		}), hidden...)
	}
	if len(c.Self) == 0 {
		return d.session(ctx, change)
	}
	return d.alone(ctx, c, change)
}

// alone runs f in a session that the account itself opens.
func (d *server) alone(ctx context.Context, c database.Change, f func(*session) error) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	var failure error
	for _, password := range c.Self {
		conn, err := d.as(ctx, c.Username, password)
		if err != nil {
			if failure = d.fail(err, password.Reveal()); denied(err) {
				failure = api.Errorf(api.Upstream, "the database refused the account's own login: none of its passwords is the one that lessor knows")
				continue
			}
			return untouched(failure)
		}
		defer conn.Close(ctx)
		return f(&session{server: d, ctx: ctx, conn: conn})
	}
	return failure
}
