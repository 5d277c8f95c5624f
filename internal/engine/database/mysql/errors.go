package mysql

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
)

// Numbers of errors that mean something to lessor.
const (
	tooManyConnections = 1040
	noDatabaseRight    = 1044
	wrongPassword      = 1045
	noSuchDatabase     = 1049
	serverShutdown     = 1053
	noSuchColumn       = 1054
	noSuchThread       = 1094
	killDenied         = 1095
	hostBlocked        = 1129
	hostNotPrivileged  = 1130
	noTableRight       = 1142
	noColumnRight      = 1143
	lockWaitTimeout    = 1205
	tooManySessions    = 1203
	limitReached       = 1226
	notPrivileged      = 1227
	prevented          = 1290
	accountFailed      = 1396
	badTimeZone        = 1298
	queryInterrupted   = 1317
	passwordExpired    = 1862
	withoutPassword    = 1698
	unfitPassword      = 1819
	timedOut           = 1969 // MariaDB: max_statement_time
	killed             = 1927 // MariaDB
	timedOutSelect     = 3024 // MySQL: max_execution_time
	definer            = 4006 // MySQL: DROP USER of an account that stored objects run as
	lockedMySQL        = 3118
	lockedMariaDB      = 4151
	insecureTransport  = 3159
	blockedMySQL       = 3955 // after too many wrong passwords, whatever comes next
	blockedMariaDB     = 4150
	notCurrent         = 3891 // MySQL: what REPLACE says
	reused             = 3638 // MySQL: it is among those that the account had, or has
)

const mostOfResult = 1000

// refusal is an error of lessor's own making, about what the server did.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

// code is the number that the server answered with; 0 if it did not.
func code(err error) uint16 {
	if e, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return e.Number
	}
	return 0
}

// wasBefore reports whether a server refuses a password since the account had it before, or has it.
func wasBefore(err error) bool {
	return code(err) == reused || code(err) == unfitPassword && strings.Contains(err.Error(), "password_reuse_check")
}

// fail says what went wrong, without secrets: those of the connection and those given never appear, nor does what the server quotes of them. What
// only says that the server cannot be asked is database.ErrUnreachable besides.
func (d *server) fail(err error, secrets ...string) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		return api.Errorf(api.Upstream, "%s", r.text)
	}
	if e, ok := errors.AsType[*mysql.MySQLError](err); ok {
		text := fmt.Sprintf("%s (error %d)", d.redact(e.Message, secrets), e.Number)
		switch e.Number {
		case wrongPassword, withoutPassword, hostNotPrivileged, lockedMySQL, lockedMariaDB, blockedMySQL, blockedMariaDB, passwordExpired:
			return api.Errorf(api.Upstream, "the database refused lessor's own login: %s", text)
		case lockWaitTimeout, timedOut, timedOutSelect:
			return unreachable("it did not answer in time")
		case queryInterrupted, killed:
			return unreachable("the session was ended there")
		case tooManyConnections, serverShutdown, hostBlocked, tooManySessions, limitReached:
			return unreachable(text)
		case prevented:
			if strings.Contains(e.Message, "strict-password-validation") {
				text += "; where a plugin there has to see passwords, say password_authentication=password"
			}
		case definer:
			text += "; views, routines, triggers or events run as the account, which is locked: give them another definer, or give lessor's account the right to drop it all the same (ALLOW_NONEXISTENT_DEFINER; before MySQL 8.2 SET_USER_ID)"
		}
		return api.Errorf(api.Upstream, "the database refused: %s", text)
	}
	switch {
	case errors.Is(err, target.ErrForbidden):
		return api.Errorf(api.Upstream, "%v", target.ErrForbidden)
	case errors.Is(err, mysql.ErrNoTLS):
		return unreachable("it speaks no TLS: switch it on there, or say tls=false in connection_url")
	case errors.Is(err, mysql.ErrCleartextPassword), errors.Is(err, mysql.ErrOldPassword), errors.Is(err, mysql.ErrUnknownPlugin), errors.Is(err, mysql.ErrNativePassword):
		return api.Errorf(api.Upstream, "the database wants lessor's own account to log in by a plugin that lessor does not have: give it one of %s, %s, caching_sha2_password", native, ed25519)
	}
	return unreachable(target.Unreachable(err))
}

func unreachable(text string) error {
	return &api.Error{Kind: api.Upstream, Text: "the database cannot be reached: " + text, Cause: database.ErrUnreachable}
}

// untouched says of an error that nothing was sent.
func untouched(err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok && errors.Is(err, database.ErrUnreachable) {
		return &api.Error{Kind: e.Kind, Text: e.Text, Cause: database.ErrUntouched}
	}
	return err
}

// near is what a server quotes of a statement that it does not understand: up to 80 characters from there on, quotes of their own included.
var near = regexp.MustCompile(`(?s)near '(.*)' at line \d+`)

// redact takes secrets, and quotations that may be parts of them, out of a text of the server's.
func (d *server) redact(text string, secrets []string) string {
	const hidden = "[secret]"
	all := slices.DeleteFunc(slices.Concat(d.hide, d.logins.Reveal(), secrets), func(s string) bool { return s == "" })
	for _, s := range all {
		text = strings.ReplaceAll(text, s, hidden)
	}
	if at := near.FindStringSubmatchIndex(text); at != nil { // the end may be the beginning of a secret, the beginning the end of one
		quoted := text[at[2]:at[3]]
		for _, s := range all {
			quoted = withoutEnd(quoted, s, hidden)
		}
		text = text[:at[2]] + quoted + text[at[3]:]
	}
	for _, s := range all {
		text = quotation.ReplaceAllStringFunc(text, func(q string) string {
			if part := q[1 : len(q)-1]; part != "" && strings.Contains(s, part) {
				return hidden
			}
			return q
		})
	}
	if len(text) > mostOfResult {
		text = text[:mostOfResult]
	}
	return text
}

var quotation = regexp.MustCompile(`'([^']*)'`)

// withoutEnd is text with hidden in the place of its longest end that a secret begins with, or that is within one.
func withoutEnd(text, secret, hidden string) string {
	if strings.Contains(secret, text) && text != "" {
		return hidden
	}
	for n := min(len(text), len(secret)); n > 0; n-- {
		if strings.HasSuffix(text, secret[:n]) && (n > 2 || strings.HasSuffix(text, "'"+secret[:n])) {
			return text[:len(text)-n] + hidden
		}
	}
	return text
}
