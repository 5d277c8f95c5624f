package mysql

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

const (
	longest  = 30 * time.Second // of a statement at the server, and of a call whose context has no deadline
	shortest = time.Second      // of a statement at the server
	lately   = time.Minute      // for which a reading of the server's clock is good
)

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
	if code(err) == accountFailed && s.maria {
		return s.why(err)
	}
	return err
}

// why is the error that another one of MariaDB's, which says only that something failed with an account, does not tell.
func (s *session) why(failed error) error {
	rows, err := s.wire.run(s.ctx, "SHOW ERRORS") // only what comes next is told
	if err != nil {
		return failed
	}
	for _, r := range rows {
		if number, err := strconv.ParseUint(r[1], 10, 16); err == nil && number != accountFailed {
			return &mysql.MySQLError{Number: uint16(number), Message: r[2]}
		}
	}
	return failed
}
