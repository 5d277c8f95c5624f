package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
)

const (
	batch        = 64               // accounts removed in one transaction
	longest      = 30 * time.Second // of a statement at the server, and of a call whose context has no deadline
	shortest     = time.Second      // of a statement at the server
	patience     = 10 * time.Second // for sessions to end that were told to
	attempts     = 8                // at what PostgreSQL asks to try again
	crowd        = 10 * time.Second // how long everybody stands in line after somebody was in the way
	markPrefix   = "lessor lease="
	mountPrefix  = " mount="
	rolePrefix   = " role="
	sessionOf    = "lessor:" // application_name of a session that makes or renews an account, before its lease's short id
	mostOfResult = 1000
)

// inLine is the lock of those who stand in line. It comes after the leases' locks, always.
const inLine = "SELECT pg_advisory_xact_lock(119148106738546);"

// server is a pool of sessions with one PostgreSQL.
type server struct {
	pool       *pgxpool.Pool
	open       int // sessions at most
	iterations int
	verify     bool     // give the server a verifier instead of the password
	hide       []string // secrets of the connection, kept out of errors
	logins     database.Logins
	crowded    atomic.Int64 // Unix nanoseconds: until then transactions stand in line
}

// Close ends all sessions, those in use when they are given back.
func (d *server) Close() { go d.pool.Close() }

// Ping asks for a sign of life.
func (d *server) Ping(ctx context.Context) error {
	return d.session(ctx, func(s *session) error {
		_, err := s.run("SELECT 1")
		return d.fail(err)
	})
}

// Create makes the account in one round trip and one transaction, which marks it, too.
func (d *server) Create(ctx context.Context, a database.Account) error {
	password := a.Password.Reveal()
	if d.verify {
		var err error
		if password, err = verifier(password, salt(a.Lease), d.iterations); err != nil {
			return api.Errorf(api.Invalid, "%v", err)
		}
	}
	v, err := newValues(a.Username, password, a.Until)
	if err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	creation := v.script(a.Creation)
	first := creation[:statement(creation)] // makes the role, which takes long; what comes after it may have to stand in line
	rest := creation[len(first):] + `COMMENT ON ROLE "` + a.Username + `" IS '` + remark(&a) + `'`
	return d.session(ctx, func(s *session) error {
		s.spent = leavesTraces.MatchString(creation)
		err := s.again(func(lock string) error {
			return s.make(a.Lease, locks(a), first+lock+rest)
		})
		if code(err) == duplicateObject || code(err) == uniqueViolation {
			if found, lookErr := s.look([]database.Account{a}); lookErr == nil && found[a.Username].mark == a.Bears() {
				return nil // made before
			}
		}
		if err == nil {
			return nil
		}
		failure := d.fail(err, password, a.Password.Reveal())
		if code(err) != "" && len(a.Rollback) > 0 {
			if _, err := s.run(s.bounds("lessor") + locks(a) + v.script(a.Rollback)); err != nil {
				return &api.Error{Kind: api.Upstream, Text: failure.Error() + "; and rollback_statements failed: " + d.fail(err, password, a.Password.Reveal()).Error(), Cause: errors.Unwrap(failure)}
			}
		}
		return failure
	})
}

// Renew moves the account's end.
func (d *server) Renew(ctx context.Context, a database.Account) error {
	v, err := newValues(a.Username, "", a.Until)
	if err != nil {
		return api.Errorf(api.Invalid, "%v", err)
	}
	renewal := a.Renewal
	if len(renewal) == 0 {
		renewal = []string{`ALTER ROLE "{{name}}" VALID UNTIL '{{expiration}}'`}
	}
	script := v.script(renewal)
	return d.session(ctx, func(s *session) error {
		s.spent = leavesTraces.MatchString(script)
		return d.fail(s.again(func(lock string) error {
			return s.make(a.Lease, locks(a), lock+script)
		}))
	})
}

// remark is what an account's comment says: whose it is.
func remark(a *database.Account) string {
	if a.Mount == "" {
		return markPrefix + a.Bears()
	}
	if a.Role == "" {
		return markPrefix + a.Bears() + mountPrefix + a.Mount
	}
	return markPrefix + a.Bears() + mountPrefix + a.Mount + rolePrefix + a.Role
}

// marks reads a comment; all are empty if it is none of lessor's.
func marks(comment string) (mark, mount, role string) {
	rest, ok := strings.CutPrefix(comment, markPrefix)
	if !ok {
		return "", "", ""
	}
	mark, rest, _ = strings.Cut(rest, mountPrefix)
	mount, role, _ = strings.Cut(rest, rolePrefix)
	return mark, mount, role
}

// Marked lists the roles that bear a mark of lessor's.
func (d *server) Marked(ctx context.Context) (all []database.Marked, err error) {
	err = d.session(ctx, func(s *session) error {
		rows, err := s.run(`SELECT r.rolname, c.description FROM pg_roles r JOIN pg_shdescription c ON c.objoid = r.oid AND c.classoid = 'pg_authid'::regclass ` +
			`WHERE c.description LIKE '` + markPrefix + `%' ORDER BY 1`)
		for _, row := range rows {
			mark, mount, role := marks(row[1])
			all = append(all, database.Marked{Username: row[0], Mark: mark, Mount: mount, Role: role})
		}
		return d.fail(err)
	})
	return all, err
}

// Remove ends the accounts. Those that need nothing special go many at a time, over all sessions that there may be.
func (d *server) Remove(ctx context.Context, as []database.Account) []error {
	errs := make([]error, len(as))
	var parts [][]int
	var usual []int
	for i, a := range as {
		if !identifier.MatchString(a.Username) {
			errs[i] = api.Errorf(api.Internal, "the lease's notes are damaged: no username")
		} else if len(a.Revocation) > 0 {
			parts = append(parts, []int{i})
		} else {
			usual = append(usual, i)
		}
	}
	parts = slices.AppendSeq(parts, slices.Chunk(usual, batch))
	var wg sync.WaitGroup
	free := make(chan struct{}, d.open)
	for _, part := range parts {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			some := make([]database.Account, len(part))
			for n, i := range part {
				some[n] = as[i]
			}
			out := make([]error, len(part))
			if err := d.removeAll(ctx, some, out); err != nil {
				for n := range out {
					out[n] = d.fail(err)
				}
			}
			for n, i := range part {
				errs[i] = out[n]
			}
		})
	}
	wg.Wait()
	return errs
}

// removeAll removes accounts over one session, or over another when that one is ended: who ends the session of an account's maker may be late, and
// hit what the session does next. An error that it returns is true of all the accounts.
func (d *server) removeAll(ctx context.Context, as []database.Account, errs []error) error {
	for try := 1; ; try++ {
		clear(errs)
		err := d.session(ctx, func(s *session) error { return s.remove(as, errs) })
		if try == attempts || !terminated(err) {
			return err
		}
	}
}

// remove is removeAll over one session.
func (s *session) remove(as []database.Account, errs []error) error {
	found, err := s.look(as)
	if err != nil {
		return err
	}
	var easy, hard []int
	for i, a := range as {
		f, ok := found[a.Username]
		switch {
		case !ok || f.mark != "" && f.mark != a.Bears():
			// gone; or another lease's, and so this one's was never made
		case f.mark == "":
			errs[i] = api.Errorf(api.Upstream, "role %q does not bear lessor's mark any more: see whose it is, and drop it or restore its comment", a.Username)
		case len(a.Revocation) > 0 || f.sessions || f.elsewhere != "":
			hard = append(hard, i)
		default:
			easy = append(easy, i)
		}
	}
	if len(easy) > 0 {
		if err := s.dropAll(as, found, easy); err != nil {
			if code(err) == "" {
				return err
			}
			hard = append(hard, easy...)
		}
	}
	for _, i := range hard {
		if err := s.dropOne(as[i], found[as[i].Username]); terminated(err) {
			return err
		} else if err != nil {
			errs[i] = s.fail(err)
		}
	}
	return nil
}

// state is what the server knows of a role.
type state struct {
	oid       string
	mark      string // of lessor's; empty: none
	login     bool
	sessions  bool   // has some
	owns      bool   // objects, or rights to some, in the connection's database or shared by all
	elsewhere string // other databases in which it does
	root      bool   // the session's own account is a superuser
}

// look ends what others still do to the accounts, waits until it is over, and tells what the server has of them.
func (s *session) look(as []database.Account) (map[string]state, error) {
	apps, names := make([]string, len(as)), make([]string, len(as))
	for i, a := range as {
		apps[i], names[i] = sessionOf+short(a.Lease), a.Username
	}
	rows, err := s.run("BEGIN ISOLATION LEVEL READ COMMITTED;" + s.bounds("lessor") +
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND application_name IN (" + texts(apps) + ");" +
		locks(as...) + `
SELECT r.rolname, r.oid, coalesce(c.description, ''), r.rolcanlogin,
  r.oid IN (SELECT usesysid FROM pg_stat_activity WHERE usesysid IS NOT NULL),
  EXISTS (SELECT FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid
    AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))),
  coalesce((SELECT string_agg(DISTINCT b.datname, ', ') FROM pg_shdepend d JOIN pg_database b ON b.oid = d.dbid
    WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid AND b.datname <> current_database()), ''),
  current_setting('is_superuser')
FROM pg_roles r LEFT JOIN pg_shdescription c ON c.objoid = r.oid AND c.classoid = 'pg_authid'::regclass
WHERE r.rolname IN (` + texts(names) + `);
COMMIT`)
	if err != nil {
		return nil, err
	}
	found := make(map[string]state, len(rows))
	for _, r := range rows {
		f := state{oid: r[1], login: r[3] == "t", sessions: r[4] == "t", owns: r[5] == "t", elsewhere: r[6], root: r[7] == "on"}
		f.mark, _, _ = marks(r[2])
		found[r[0]] = f
	}
	return found, nil
}

// dropAll removes accounts that had no sessions, in two transactions and one round trip: none can log in any more; who
// just did is sent away; all are dropped.
func (s *session) dropAll(as []database.Account, found map[string]state, which []int) error {
	var noLogin strings.Builder
	var some []database.Account
	var all, owners, oids []string
	root := false
	for _, i := range which {
		a, f := as[i], found[as[i].Username]
		noLogin.WriteString(`ALTER ROLE "` + a.Username + `" NOLOGIN;`)
		some, all, oids = append(some, a), append(all, `"`+a.Username+`"`), append(oids, f.oid)
		if f.owns {
			owners = append(owners, `"`+a.Username+`"`)
		}
		root = f.root
	}
	return s.again(func(lock string) error {
		if len(owners) > 0 {
			lock = inLine
		}
		_, err := s.run("BEGIN;" + s.bounds("lessor") + locks(some...) + noLogin.String() + "COMMIT;" +
			"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid IN (" + strings.Join(oids, ",") + ");" +
			"BEGIN;" + s.bounds("lessor") + locks(some...) + lock + disown(owners, root) + "DROP ROLE IF EXISTS " + strings.Join(all, ",") + ";COMMIT")
		return err
	})
}

// dropOne removes an account that has sessions, statements of its own, or something that keeps it from going with others.
func (s *session) dropOne(a database.Account, f state) error {
	name := `"` + a.Username + `"`
	custom := len(a.Revocation) > 0
	_, err := s.run("BEGIN;" + s.bounds("lessor") + locks(a) + belong([]string{name}, f.root) + "ALTER ROLE " + name + " NOLOGIN;COMMIT")
	if err == nil {
		err = s.evict(f.oid)
	}
	if err != nil && !(custom && code(err) == notPermitted) { // revocation_statements may do what lessor's account may not
		return gone(err)
	}
	return s.again(func(lock string) error {
		script := disown([]string{name}, f.root) + "DROP ROLE IF EXISTS " + name + ";"
		if custom {
			v, err := newValues(a.Username, "", a.Until)
			if err != nil {
				return err
			}
			script = v.script(a.Revocation)
			s.spent = leavesTraces.MatchString(script)
		}
		_, err := s.run("BEGIN;" + s.bounds("lessor") + locks(a) + lock + script + "COMMIT")
		switch {
		case code(err) == dependentObjects && f.elsewhere != "":
			return &refusal{"the role cannot log in any more and has no sessions, but owns objects in other databases (" + f.elsewhere + "): give them away there"}
		case err != nil || !custom:
			return gone(err)
		}
		after, err := s.look([]database.Account{a})
		if err != nil {
			return err
		}
		if left, ok := after[a.Username]; ok && left.login {
			return &refusal{"revocation_statements left the role able to log in: they must drop it, or take LOGIN from it"}
		}
		return s.evict(f.oid)
	})
}

// evict ends the sessions of a role and waits until they have ended.
func (s *session) evict(oid string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		rows, err := s.run(s.bounds("lessor") + "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = " + oid)
		if err != nil || len(rows) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return &refusal{"the sessions of the role do not end"}
		}
	}
}

// belong makes lessor's account a member of the roles where it must be: a superuser need not.
func belong(names []string, root bool) string {
	if len(names) == 0 || root {
		return ""
	}
	return "GRANT " + strings.Join(names, ",") + " TO CURRENT_USER;"
}

// disown gives what the roles own in the connection's database to lessor's account, and takes their rights away.
func disown(names []string, root bool) string {
	if len(names) == 0 {
		return ""
	}
	list := strings.Join(names, ",")
	return belong(names, root) + "REASSIGN OWNED BY " + list + " TO CURRENT_USER;DROP OWNED BY " + list + ";"
}

// gone makes success of the error that says that a role is not there.
func gone(err error) error {
	if code(err) == undefinedObject {
		return nil
	}
	return err
}

// session is one of the pool's, for one call.
type session struct {
	*server
	ctx   context.Context
	conn  *pgx.Conn
	spent bool // statements may have changed it: not to be used again
}

// session runs f over a session of the pool. A context without a deadline gets one.
func (d *server) session(ctx context.Context, f func(*session) error) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	conn, err := d.acquire(ctx)
	if err != nil {
		return untouched(d.fail(err))
	}
	s := &session{server: d, ctx: ctx, conn: conn.Conn()}
	defer func() {
		if s.spent {
			_ = s.conn.Close(ctx)
		}
		conn.Release()
	}()
	return f(s)
}

// run sends a script, all of it in one message, and returns the rows of all its statements that have more than one column.
// After an error the session is in no transaction.
func (s *session) run(script string) ([][]string, error) {
	c := s.conn.PgConn()
	results := c.Exec(s.ctx, script)
	var rows [][]string
	for results.NextResult() {
		r := results.ResultReader()
		wide := len(r.FieldDescriptions()) > 1
		for r.NextRow() {
			if !wide {
				continue
			}
			row := make([]string, len(r.Values()))
			for i, v := range r.Values() {
				row[i] = string(v)
			}
			rows = append(rows, row)
		}
		_, _ = r.Close()
	}
	err := results.Close()
	if err != nil && !c.IsClosed() && c.TxStatus() != 'I' {
		_ = c.Exec(s.ctx, "ROLLBACK").Close()
	}
	return rows, err
}

// make runs a script that makes or changes what a lease, or an account, is about: in a transaction that bears its name, so that successors can end it,
// under locks, and not when the call's time is over.
func (s *session) make(name, under, script string) error {
	punctual, err := s.punctual()
	if err != nil {
		return err
	}
	_, err = s.run(s.bounds(sessionOf+short(name)) + under + punctual + script)
	return err
}

// again runs f, and again when PostgreSQL says that others were in the way: rights on one object are one row, which two
// transactions cannot change at a time. Who tries again stands in line (lock); so does everybody for some time after that.
func (s *session) again(f func(lock string) error) error {
	for try := 1; ; try++ {
		lock := ""
		if time.Now().UnixNano() < s.crowded.Load() {
			lock = inLine
		}
		err := f(lock)
		if s.late(err) {
			if try == attempts || s.ctx.Err() != nil {
				return errLate
			}
			continue
		}
		if try == attempts || !inTheWay(err) {
			return err
		}
		s.crowded.Store(time.Now().Add(crowd).UnixNano())
		select {
		case <-time.After(time.Duration(rand.Int64N(int64(try) * int64(10*time.Millisecond)))):
		case <-s.ctx.Done():
			return err
		}
	}
}

// bounds begins a transaction's statements: none outlives the call by much, and the session has a name.
func (s *session) bounds(name string) string {
	left := longest
	if deadline, ok := s.ctx.Deadline(); ok {
		left = max(shortest, time.Until(deadline))
	}
	return fmt.Sprintf("SET LOCAL statement_timeout=%d;SET LOCAL application_name='%s';", left.Milliseconds(), name)
}

// locks takes the advisory locks of accounts' leases until the transaction's end, in one order for everybody.
func locks(as ...database.Account) string {
	keys := make([]int64, len(as))
	for i, a := range as {
		h := sha256.Sum256([]byte("lessor lock\x00" + a.Lease))
		keys[i] = int64(binary.BigEndian.Uint64(h[:]))
	}
	slices.Sort(keys)
	if len(keys) == 1 {
		return "SELECT pg_advisory_xact_lock(" + strconv.FormatInt(keys[0], 10) + ");"
	}
	b := []byte("SELECT pg_advisory_xact_lock(k) FROM unnest(ARRAY[")
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, k, 10)
	}
	return string(b) + "]::bigint[]) k;"
}

// short is a lease's id in short, for application_name.
func short(lease string) string {
	h := sha256.Sum256([]byte("lessor session\x00" + lease))
	return hex.EncodeToString(h[:12])
}

// texts is a list of literals. Its elements come from allowlists of characters without quotes.
func texts(l []string) string { return "'" + strings.Join(l, "','") + "'" }
