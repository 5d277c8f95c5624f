// Package api holds what crosses lessor's wire: the closed set of error kinds and their texts.
// It imports the standard library only, so that any program may depend on it.
package api

import (
	"errors"
	"fmt"
	"net/http"
)

// Kind classifies every error that lessor answers with. The set is closed: a new kind is a change of the protocol.
type Kind uint8

const (
	Internal        Kind = iota // a fault of lessor's own; the text never reaches the client
	Invalid                     // the request is malformed or contradicts itself; 400
	Mismatch                    // a check-and-set or similar condition of the request did not hold; 400
	Unauthenticated             // no token, or one that is unknown, expired or revoked; 403
	Denied                      // policy refuses; Rule names what refused; 403
	NotFound                    // nothing there; 404
	Unsupported                 // the path exists, the operation on it does not; 405
	TooLarge                    // body or value beyond a limit; 413
	MediaType                   // PATCH with a type other than application/merge-patch+json; 415
	Limited                     // quota or rate limit; 429
	Upstream                    // a target (database, broker, CA) failed or refused; 502
	Unavailable                 // sealed, starting, draining, out of disk, fenced; 503
	Uncertain                   // the outcome of a commit is unknown; ask again with the same request id; 500
)

var kinds = [...]struct {
	name   string
	status int
}{
	Internal:        {"internal", http.StatusInternalServerError},
	Invalid:         {"invalid", http.StatusBadRequest},
	Mismatch:        {"mismatch", http.StatusBadRequest},
	Unauthenticated: {"unauthenticated", http.StatusForbidden},
	Denied:          {"denied", http.StatusForbidden},
	NotFound:        {"not_found", http.StatusNotFound},
	Unsupported:     {"unsupported", http.StatusMethodNotAllowed},
	TooLarge:        {"too_large", http.StatusRequestEntityTooLarge},
	MediaType:       {"media_type", http.StatusUnsupportedMediaType},
	Limited:         {"limited", http.StatusTooManyRequests},
	Upstream:        {"upstream", http.StatusBadGateway},
	Unavailable:     {"unavailable", http.StatusServiceUnavailable},
	Uncertain:       {"uncertain", http.StatusInternalServerError},
}

// String is the kind's name as audit records carry it.
func (k Kind) String() string {
	if int(k) < len(kinds) {
		return kinds[k].name
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Status is the HTTP status that the kind is answered with.
func (k Kind) Status() int {
	if int(k) < len(kinds) {
		return kinds[k].status
	}
	return http.StatusInternalServerError
}

// Error is an error of a known kind. Text is what the client reads; it never contains a secret. Cause is for
// lessor's own log and never leaves the server.
type Error struct {
	Kind  Kind
	Text  string
	Rule  string // Denied: the policy rule that refused, as audit records it
	Cause error
}

func (e *Error) Error() string {
	if e.Text == "" && e.Cause != nil {
		return e.Cause.Error()
	}
	return e.Text
}

func (e *Error) Unwrap() error { return e.Cause }

// Errorf makes an error of a kind. A %w operand becomes its cause.
func Errorf(k Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: k, Text: err.Error(), Cause: errors.Unwrap(err)}
}

// KindOf finds the kind of err: Internal when err carries none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}
