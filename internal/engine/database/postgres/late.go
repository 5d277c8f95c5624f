package postgres

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
)

// Scripts that come too late. A context ends a call, not what the call sent: a process that was stopped, or a network, may hold a script back for as
// long as it likes, and deliver it after whoever succeeded the caller has looked for the last time. So a script that makes something tells the server
// until when it may, by the server's own clock, which each session is asked for once.

// reading is what a server's clock said.
type reading struct {
	server float64   // Unix seconds
	before time.Time // it was not asked before
}

// clockOf is where a session keeps its server's reading.
const clockOf = "lessor clock"

// tooLate is what the server quotes when it refuses.
const tooLate = "lessor came too late: "

// asked asks the server for the time, unless this session has before.
func (s *session) asked() (reading, error) {
	data := s.conn.PgConn().CustomData()
	if r, ok := data[clockOf].(reading); ok {
		return r, nil
	}
	r := reading{before: time.Now()}
	rows, err := s.run("SELECT extract(epoch FROM clock_timestamp()), 'now'")
	if err != nil {
		return r, err
	}
	if len(rows) != 1 {
		return r, &refusal{"the database does not tell the time"}
	}
	if r.server, err = strconv.ParseFloat(rows[0][0], 64); err != nil {
		return r, &refusal{"the database does not tell the time"}
	}
	data[clockOf] = r
	return r, nil
}

// punctual is a statement that fails, and its transaction with it, once the call's time is over: at most the round trip later that asking for
// the server's clock took.
func (s *session) punctual() (string, error) {
	deadline, ok := s.ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(longest)
	}
	r, err := s.asked()
	if err != nil {
		return "", err
	}
	until := r.server + deadline.Sub(r.before).Seconds()
	return fmt.Sprintf("SELECT ('%s'||clock_timestamp())::int WHERE extract(epoch FROM clock_timestamp())>%.6f;", tooLate, until), nil
}

// late reports whether the server refused because its time was over. It may also be that its clock was set: then it is asked again.
func (s *session) late(err error) bool {
	if code(err) != invalidText || !strings.Contains(err.Error(), tooLate) {
		return false
	}
	delete(s.conn.PgConn().CustomData(), clockOf)
	return true
}

// errLate is the error of a call whose script came too late: nothing was done.
var errLate = &api.Error{Kind: api.Upstream, Text: "the database cannot be reached: it did not answer in time", Cause: database.ErrUntouched}
