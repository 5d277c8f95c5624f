package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Passwords that change: lessor's own, and those of accounts that are not lessor's making.

// Use says which passwords may log lessor in. When the first of them is another than before, sessions are opened anew.
func (d *server) Use(passwords []lessor.Secret) {
	if d.logins.Use(passwords) {
		d.pool.Reset()
	}
}

// present gives a session that is opened its password.
func (d *server) present(_ context.Context, cfg *pgx.ConnConfig) error {
	cfg.Password = d.logins.Current().Reveal()
	return nil
}

// acquire is a session of the pool, which logs in by present.
func (d *server) acquire(ctx context.Context) (conn *pgxpool.Conn, err error) {
	err = d.logins.Try(denied, func(lessor.Secret) (err error) {
		conn, err = d.pool.Acquire(ctx)
		return err
	})
	return conn, err
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
			if e.Routine == ofAccount { // it has no LOGIN
				return database.Barred, nil
			}
			return database.Unknown, nil
		case tooMany:
			if e.Routine == ofAccount || e.Routine == "CheckMyDatabase" { // for this account, or this database: after the password
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

// changing are the statements that change a password where nobody wrote any.
var changing = []string{`ALTER ROLE "{{name}}" WITH PASSWORD '{{password}}'`}

// Changeable looks for the account, and has its password changed to one that nobody knows in a transaction that is taken back: only that tells what the server,
// and what is loaded into it, has against the change.
func (d *server) Changeable(ctx context.Context, c database.Change) error {
	name, err := literals([]string{c.Username})
	if err != nil || len(c.Self) > 0 { // nobody but the account itself knows whether it may
		return err
	}
	password := "aA1-" + rand.Text()
	if d.verify {
		if password, err = verifier(password, salt(password), 1); err != nil {
			return api.Errorf(api.Invalid, "%v", err)
		}
	}
	v, err := fill(c.Username, password, time.Time{})
	if err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	return d.session(ctx, func(s *session) error {
		rows, err := s.run("SELECT oid, rolname FROM pg_roles WHERE rolname = " + name)
		switch {
		case err != nil:
			return d.fail(err)
		case len(rows) == 0:
			return api.Errorf(api.Upstream, "there is no account %q at the database", c.Username)
		case len(c.Statements) > 0:
			return nil
		}
		return d.unchanged(&c, s.again(func(string) error {
			_, err := s.run("BEGIN;" + s.bounds("lessor") + v.script(changing) + "ROLLBACK")
			return err
		}), password)
	})
}

// unchanged says why an account's password was not changed. If lessor may not, it says what that takes.
func (d *server) unchanged(c *database.Change, err error, secrets ...string) error {
	failure := d.fail(err, secrets...)
	if code(err) == notPermitted && len(c.Statements) == 0 && len(c.Self) == 0 {
		return api.Errorf(api.Upstream, "lessor may not change the password of the account %q: its own needs CREATEROLE, and from PostgreSQL 16 on ADMIN on that: %v", c.Username, failure)
	}
	return failure
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
	script := v.script(changing)
	if len(c.Statements) > 0 {
		script = v.script(c.Statements)
	}
	change := func(s *session) error {
		hidden := []string{password, c.Password.Reveal()}
		lock := database.Account{Lease: c.Name}
		if _, err := s.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = CURRENT_USER AND application_name = '" +
			sessionOf + short(c.Name) + "'"); err != nil {
			return d.fail(err, hidden...)
		}
		s.spent = leavesTraces.MatchString(script)
		return d.unchanged(&c, s.again(func(string) error {
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
