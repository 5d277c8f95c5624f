package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
)

// SQLSTATEs that mean something to lessor.
const (
	duplicateObject  = "42710"
	uniqueViolation  = "23505"
	undefinedObject  = "42704"
	dependentObjects = "2BP01"
	queryCanceled    = "57014"
	lockNotAvailable = "55P03"
	wrongPassword    = "28P01"
	notAuthorized    = "28000"
	notPermitted     = "42501"
	noSuchDatabase   = "3D000"
	tooMany          = "53300"
	adminShutdown    = "57P01"
	invalidText      = "22P02"
)

// ofAccount is the routine of the server that looks at the account itself, once its password was right.
const ofAccount = "InitializeSessionUserId"

// refusal is an error of lessor's own making, about what the server did.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

// code is the SQLSTATE that the server answered with; empty if it did not.
func code(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && !fatal(e) {
		return e.Code
	}
	return ""
}

// fatal reports whether the server ended the session along with the error.
func fatal(e *pgconn.PgError) bool {
	return e.SeverityUnlocalized == "FATAL" || e.SeverityUnlocalized == "PANIC" || e.Severity == "FATAL" || e.Severity == "PANIC"
}

// terminated reports whether somebody told the server to end the session.
func terminated(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && fatal(e) && e.Code == adminShutdown
}

// inTheWay reports whether another transaction was, and the same may succeed now.
func inTheWay(err error) bool {
	switch code(err) {
	case "40001", "40P01":
		return true
	case "XX000":
		return strings.Contains(err.Error(), "concurrently")
	}
	return false
}

// fail says what went wrong, without secrets: those of the connection and those given never appear, nor does what the server
// quotes of them. What only says that the server cannot be asked is database.ErrUnreachable besides.
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
	unreachable := func(text string) error {
		return &api.Error{Kind: api.Upstream, Text: "the database cannot be reached: " + text, Cause: database.ErrUnreachable}
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		said := e.Message
		if e.Code == notPermitted && e.Detail != "" { // since PostgreSQL 16 which right is lacking is said here
			said += ": " + strings.TrimSuffix(e.Detail, ".")
		}
		text := fmt.Sprintf("%s (SQLSTATE %s)", d.redact(said, secrets), e.Code)
		switch {
		case e.Code == wrongPassword || e.Code == notAuthorized:
			return api.Errorf(api.Upstream, "the database refused lessor's own login: %s", text)
		case e.Code == noSuchDatabase:
			return &api.Error{Kind: api.Upstream, Text: "the server lets lessor in to no such database: see connection_url: " + text, Cause: database.ErrUnreachable}
		case e.Code == queryCanceled || e.Code == lockNotAvailable:
			return unreachable("it did not answer in time")
		case fatal(e), strings.HasPrefix(e.Code, "08"), strings.HasPrefix(e.Code, "53"), strings.HasPrefix(e.Code, "57"), strings.HasPrefix(e.Code, "58"):
			return unreachable(text)
		}
		return api.Errorf(api.Upstream, "the database refused: %s", text)
	}
	switch {
	case errors.Is(err, target.ErrForbidden):
		return api.Errorf(api.Upstream, "%v", target.ErrForbidden)
	case strings.Contains(err.Error(), "server refused TLS connection"): // pgx has no type for it
		return unreachable("it speaks no TLS: switch it on there (ssl = on), or say sslmode=disable in connection_url")
	case pgconn.Timeout(err) && !errors.Is(err, context.Canceled):
		return unreachable("it did not answer in time")
	}
	return unreachable(target.Unreachable(err))
}

var quotation = regexp.MustCompile(`"([^"]*)"`)

// untouched says of an error that nothing was sent.
func untouched(err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok && errors.Is(err, database.ErrUnreachable) {
		return &api.Error{Kind: e.Kind, Text: e.Text, Cause: database.ErrUntouched}
	}
	return err
}

// redact takes secrets, and quotations that are parts of them, out of a text of the server's.
func (d *server) redact(text string, secrets []string) string {
	all := slices.Concat(d.hide, d.logins.Reveal(), secrets)
	for _, s := range all {
		if s == "" {
			continue
		}
		text = strings.ReplaceAll(text, s, "[secret]")
		text = quotation.ReplaceAllStringFunc(text, func(q string) string {
			if part := q[1 : len(q)-1]; part != "" && strings.Contains(s, part) {
				return "[secret]"
			}
			return q
		})
	}
	if len(text) > mostOfResult {
		text = text[:mostOfResult]
	}
	return text
}
