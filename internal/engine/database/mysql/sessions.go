package mysql

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
)

// Sessions: lessor's own, and those of accounts, as the process list has them.

const (
	longest  = 30 * time.Second // of a statement at the server, and of a call whose context has no deadline
	shortest = time.Second      // of a statement at the server
	patience = 10 * time.Second // for sessions to end that were told to
	dawdling = time.Second      // how long a login may take during which an account is removed
	lately   = time.Minute      // for which a reading of the server's clock is good
)

// wire is a session with the server, as the pool keeps it.
type wire struct {
	driver.Conn
	pool       *server
	generation int64
	maria      bool
	spent      bool // not to be used again
	clock      reading
	seeing     int8 // whether lessor's account sees others' sessions: 0 unknown, 1 yes, -1 no
}

// reading is what a server's clock said.
type reading struct {
	server float64   // Unix seconds
	before time.Time // it was not asked before
}

// IsValid says whether the pool may keep it.
func (w *wire) IsValid() bool {
	v, ok := w.Conn.(driver.Validator)
	return !w.spent && w.generation == w.pool.generation.Load() && (!ok || v.IsValid())
}

// ResetSession sees whether it still stands, before it is used again.
func (w *wire) ResetSession(ctx context.Context) error {
	if !w.IsValid() {
		return driver.ErrBadConn
	}
	if r, ok := w.Conn.(driver.SessionResetter); ok {
		return r.ResetSession(ctx)
	}
	return nil
}

// greeting is what each session begins with: the grammar that statements are checked by, no account that a GRANT makes in passing, times in UTC.
const greeting = "SET SESSION sql_mode=CONCAT('STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION',IF(VERSION() LIKE '%MariaDB%',',NO_AUTO_CREATE_USER','')),autocommit=1;" +
	"SET time_zone='+00:00';SELECT VERSION(),UNIX_TIMESTAMP(SYSDATE(6))"

// Connect opens a session for the pool. A password that is refused is followed by the next, twice round: while they are tried, the one in force may
// become another that was tried already.
func (d *server) Connect(ctx context.Context) (driver.Conn, error) {
	for try := 1; ; try++ {
		generation := d.generation.Load()
		password, at, of := d.logins.Current()
		c, err := d.dial(ctx, d.cfg.User, d.cfg.DBName, password.Reveal())
		if err == nil {
			return d.greet(ctx, &wire{Conn: c, pool: d, generation: generation})
		}
		if of <= 1 || try >= 2*of || code(err) != wrongPassword {
			return nil, err
		}
		d.logins.Wrong(at)
	}
}

// Driver is for database/sql, which asks nobody but a Connector.
func (d *server) Driver() driver.Driver { return mysql.MySQLDriver{} }

// dial opens a session of an account.
func (d *server) dial(ctx context.Context, username, name, password string) (driver.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	cfg := d.cfg.Clone()
	cfg.User, cfg.DBName, cfg.Passwd = username, name, password
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	c, err := connector.Connect(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return c, err
}

func (d *server) greet(ctx context.Context, w *wire) (driver.Conn, error) {
	w.clock.before = time.Now()
	rows, err := w.run(ctx, greeting)
	if err == nil && len(rows) != 1 {
		err = &refusal{"the database does not tell its version"}
	}
	if err == nil {
		w.maria = strings.Contains(rows[0][0], "MariaDB")
		w.clock.server, err = strconv.ParseFloat(rows[0][1], 64)
	}
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	return w, nil
}

// run sends a script, all of it in one message, and returns the rows of all its statements. The first that fails ends it.
func (w *wire) run(ctx context.Context, script string) (all [][]string, err error) {
	q, ok := w.Conn.(driver.QueryerContext)
	if !ok {
		return nil, errors.New("mysql: a session that takes no statements")
	}
	rows, err := q.QueryContext(ctx, script, nil)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	sets := rows.(driver.RowsNextResultSet)
	for {
		values := make([]driver.Value, len(rows.Columns()))
		for {
			if err := rows.Next(values); err == io.EOF {
				break
			} else if err != nil {
				return all, err
			}
			row := make([]string, len(values))
			for i, v := range values {
				switch v := v.(type) {
				case nil:
				case []byte:
					row[i] = string(v)
				default:
					row[i] = fmt.Sprint(v)
				}
			}
			all = append(all, row)
		}
		if err := sets.NextResultSet(); err == io.EOF {
			return all, nil
		} else if err != nil {
			return all, err
		}
	}
}

// session is one of the pool's, for one call.
type session struct {
	*server
	*wire
	ctx    context.Context
	locked bool // it holds locks
}

// session runs f over a session of the pool. A context without a deadline gets one.
func (d *server) session(ctx context.Context, f func(*session) error) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	c, err := d.pool.Conn(ctx)
	if err != nil {
		return untouched(d.fail(err))
	}
	defer c.Close()
	var failure error
	if err := c.Raw(func(conn any) error {
		s := &session{server: d, wire: conn.(*wire), ctx: ctx}
		if err := s.ask(); err != nil {
			failure = untouched(d.fail(err))
			return nil
		}
		defer s.release()
		failure = f(s)
		return nil
	}); err != nil {
		return d.fail(err)
	}
	return failure
}

// ask asks for the server's clock, unless the session has lately: clocks go apart.
func (s *session) ask() error {
	before := time.Now()
	if before.Sub(s.clock.before) < lately {
		return nil
	}
	rows, err := s.run("SELECT UNIX_TIMESTAMP(SYSDATE(6))")
	if err != nil {
		s.spent = true
		return err
	}
	s.clock.before = before
	s.clock.server, err = strconv.ParseFloat(rows[0][0], 64)
	return err
}

// run is wire's, with bounds: no statement outlives the call by much. MySQL bounds only what waits for others' locks.
func (s *session) run(script string) ([][]string, error) {
	left := longest
	if deadline, ok := s.ctx.Deadline(); ok {
		left = max(shortest, time.Until(deadline))
	}
	bounds := fmt.Sprintf("SET lock_wait_timeout=%d", seconds(left))
	if s.maria {
		bounds += fmt.Sprintf(",max_statement_time=%.3f", left.Seconds())
	}
	return s.wire.run(s.ctx, bounds+";"+script)
}

func seconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }

// Locks have names that the server keeps as long as the session lives that took them: one for whoever makes something for a lease, or an account, and one
// for whoever touches what is made.
func making(id string) string   { return "lessor make " + short(id) }
func touching(id string) string { return "lessor " + short(id) }

// short is a lease's id in short, for a lock's name.
func short(id string) string {
	h := sha256.Sum256([]byte("lessor session\x00" + id))
	return hex.EncodeToString(h[:12])
}

// lock takes locks, in the order given, or fails in time. Once it has them, the call's time must not be over: whoever succeeded it has looked by then,
// and found nobody.
func (s *session) lock(names ...string) error {
	left := longest
	if deadline, ok := s.ctx.Deadline(); ok {
		left = time.Until(deadline)
	}
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "SELECT GET_LOCK('%s',%d);", name, seconds(left))
	}
	s.locked = true
	rows, err := s.run(strings.TrimSuffix(b.String(), ";"))
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row[0] != "1" {
			return unreachable("what somebody else does to the account there does not end")
		}
	}
	return s.ctx.Err()
}

// begin takes the locks under which something is made.
func (s *session) begin(id string) error { return s.lock(making(id), touching(id)) }

// succeed ends those who still make something for the ids, and takes the locks under which it is undone.
func (s *session) succeed(ids ...string) error {
	if err := s.endMakers(ids); err != nil {
		return err
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = touching(id)
	}
	slices.Sort(names) // one order for everybody
	return s.lock(names...)
}

// endMakers ends the sessions that hold makers' locks, or wait for them.
func (s *session) endMakers(ids []string) error {
	used, calls := make([]string, len(ids)), make([]string, len(ids))
	for i, id := range ids {
		used[i], calls[i] = "IS_USED_LOCK('"+making(id)+"')", "GET_LOCK('"+making(id)+"'"
	}
	holders, err := s.run("SELECT " + strings.Join(used, ","))
	if err != nil {
		return err
	}
	waiting, err := s.run("SELECT ID,INFO FROM information_schema.processlist WHERE ID<>CONNECTION_ID() AND INFO LIKE '%lessor make %'")
	if err != nil {
		return err
	}
	var who []string
	for _, row := range holders {
		who = append(who, slices.DeleteFunc(row, func(id string) bool { return id == "" })...)
	}
	for _, row := range waiting {
		if slices.ContainsFunc(calls, func(call string) bool { return strings.Contains(row[1], call) }) {
			who = append(who, row[0])
		}
	}
	return s.kill(who)
}

// kill ends sessions by their numbers, which are never given again while the server runs.
func (s *session) kill(ids []string) error {
	for _, id := range ids {
		_, err := s.run("KILL " + id)
		switch code(err) {
		case noSuchThread:
		case killDenied:
			return &refusal{"lessor's account at the database may not end the sessions of others: GRANT CONNECTION ADMIN ON *.* to it (at MySQL: CONNECTION_ADMIN)"}
		default:
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// release gives back the session's locks, or the session with them.
func (s *session) release() {
	if !s.locked || s.spent {
		return
	}
	if _, err := s.run("DO RELEASE_ALL_LOCKS()"); err != nil {
		s.spent = true
	}
	s.locked = false
}

// punctual is a statement that fails once the call's time is over, by the server's own clock: at most the round trip later that asking for it took. It
// is for what a machine sends that slept meanwhile, and whose own clock did not go on.
func (s *session) punctual() string {
	deadline, ok := s.ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(longest)
	}
	until := s.clock.server + deadline.Sub(s.clock.before).Seconds()
	return fmt.Sprintf("SET time_zone=IF(UNIX_TIMESTAMP(SYSDATE(6))>%.6f,'%s','+00:00');", until, tooLate)
}

// tooLate is what the server quotes when it refuses.
const tooLate = "lessor came too late"

// make runs statements under locks that the session holds, each only if the call's time is not over.
func (s *session) make(statements ...string) error {
	s.spent = s.spent || leavesTraces(statements)
	var b strings.Builder
	for _, sql := range statements {
		b.WriteString(s.punctual() + sql + "\n;")
	}
	_, err := s.run(b.String())
	if code(err) == badTimeZone && strings.Contains(err.Error(), tooLate) {
		s.spent = true // it may also be that the server's clock was set: another session asks it
		return unreachable("it did not answer in time")
	}
	return err
}

// sees says why lessor's account does not see the sessions of others, if it does not: then the process list is silent about them.
func (s *session) sees() error {
	if s.seeing == 0 {
		_, err := s.run("SELECT 1 FROM information_schema.innodb_cmp LIMIT 1") // asks for the same right, and says so
		switch {
		case code(err) == notPrivileged:
			s.seeing = -1
		case err != nil:
			return err
		default:
			s.seeing = 1
		}
	}
	if s.seeing < 0 {
		return &api.Error{Kind: api.Upstream, Cause: database.ErrUnseen,
			Text: "lessor's account at the database does not see the sessions of others: GRANT PROCESS ON *.* to it"}
	}
	return nil
}

// evict ends the sessions of accounts and waits until they have ended. removed: nobody can log in with them any more, but for those who had begun to.
// MariaDB says of such a session whose it is to be; MySQL does not, so it waits for all of them, and ends those who take their time.
func (s *session) evict(usernames []string, removed bool) error {
	if err := s.sees(); err != nil {
		return err
	}
	start := time.Now()
	var entering map[string]bool
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		rows, err := s.run("SELECT ID,USER,COMMAND FROM information_schema.processlist WHERE ID<>CONNECTION_ID() AND USER IN (" +
			texts(append([]string{unauthenticated}, usernames...)) + ")")
		if err != nil {
			return err
		}
		var theirs, late []string
		still := map[string]bool{}
		for _, r := range rows {
			switch {
			case slices.Contains(usernames, r[1]): // the comparison there is not exact
				theirs = append(theirs, r[0])
			case r[1] == unauthenticated && removed && !s.maria && (entering == nil || entering[r[0]]):
				if still[r[0]] = true; time.Since(start) > dawdling {
					late = append(late, r[0])
				}
			}
		}
		if entering = still; len(theirs) == 0 && len(still) == 0 {
			return nil
		}
		if err := s.kill(append(theirs, late...)); err != nil {
			return err
		}
		if time.Since(start) > patience {
			return &refusal{"sessions of the account at the database do not end"}
		}
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

// unauthenticated is whose sessions are in the process list that have not logged in yet.
const unauthenticated = "unauthenticated user"

// Sessions lists the sessions of accounts. Since when they are open the process list does not tell.
func (d *server) Sessions(ctx context.Context, usernames []string) (all []database.Session, err error) {
	for _, name := range usernames {
		if !existing(name) {
			return nil, api.Errorf(api.Invalid, "the username cannot be put into statements")
		}
	}
	err = d.session(ctx, func(s *session) error {
		if err := s.sees(); err != nil {
			return d.fail(err)
		}
		rows, err := s.run("SELECT ID,USER,HOST FROM information_schema.processlist WHERE ID<>CONNECTION_ID() AND USER IN (" + texts(usernames) + ") ORDER BY ID")
		if err != nil {
			return d.fail(err)
		}
		called := map[string]string{}
		// Only where the performance schema is switched on, and open to lessor's account.
		named, err := s.run("SELECT PROCESSLIST_ID,ATTR_VALUE FROM performance_schema.session_connect_attrs WHERE ATTR_NAME='program_name'")
		if err != nil && code(err) == 0 {
			return d.fail(err)
		}
		for _, r := range named {
			called[r[0]] = r[1]
		}
		for _, r := range rows {
			if !slices.Contains(usernames, r[1]) {
				continue
			}
			found := database.Session{Username: r[1], Client: clientOf(r[2]), Application: called[r[0]]}
			if len(found.Application) > database.LongestApplication {
				found.Application = strings.ToValidUTF8(found.Application[:database.LongestApplication], "")
			}
			all = append(all, found)
		}
		return nil
	})
	return all, err
}

// clientOf is where a session comes from, by the host that the process list has.
func clientOf(host string) string {
	if host == "localhost" {
		return "local"
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		return host[:i]
	}
	return host
}

// End ends an account's sessions.
func (d *server) End(ctx context.Context, username string) error {
	if !existing(username) {
		return api.Errorf(api.Invalid, "the username cannot be put into statements")
	}
	return d.session(ctx, func(s *session) error { return d.fail(s.evict([]string{username}, false)) })
}
