package directory

import (
	"errors"
	"fmt"
	"strings"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/engine/target"
)

// refusal is an error of lessor's own making, about what the directory did.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

// code is the result code that the server answered with; false if it did not answer.
func code(err error) (uint16, bool) {
	e, ok := errors.AsType[*goldap.Error](err)
	if !ok || e.ResultCode >= goldap.LDAPResultServerDown && e.ResultCode <= goldap.LDAPResultTimeout || e.ResultCode >= goldap.ErrorNetwork && e.ResultCode < goldap.ErrorNetwork+100 {
		return 0, false
	}
	return e.ResultCode, true
}

// is reports whether the server answered with one of the codes.
func is(err error, codes ...uint16) bool {
	got, ok := code(err)
	if !ok {
		return false
	}
	for _, c := range codes {
		if got == c {
			return true
		}
	}
	return false
}

// answered reports whether a failed call's connection is as good as before: the server said no, or lessor did.
func answered(err error) bool {
	return !errors.Is(err, ldap.ErrUnreachable)
}

// longest is how much of what a server says is told, in bytes.
const longest = 300

// fail says what went wrong, without secrets: those of the configuration and those given never appear. What only says that the directory
// cannot be asked is ldap.ErrUnreachable besides.
func (d *Server) fail(err error, secrets ...string) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		return api.Errorf(api.Upstream, "%s", d.redact(r.text, secrets))
	}
	unreachable := func(text string) error {
		return &api.Error{Kind: api.Upstream, Text: "the directory cannot be reached: " + text, Cause: ldap.ErrUnreachable}
	}
	own := errors.As(err, new(*loginError))
	if c, ok := code(err); ok {
		text := d.said(err, c, secrets)
		switch c {
		case goldap.LDAPResultInvalidCredentials:
			return api.Errorf(api.Upstream, "the directory refused lessor's own login: %s", text)
		case goldap.LDAPResultBusy, goldap.LDAPResultUnavailable, goldap.LDAPResultTimeLimitExceeded, goldap.LDAPResultAdminLimitExceeded:
			return unreachable(text)
		case goldap.LDAPResultConfidentialityRequired, goldap.LDAPResultStrongAuthRequired:
			return api.Errorf(api.Upstream, "the directory asks for TLS: use ldaps:// or starttls=true (%s)", text)
		case goldap.LDAPResultReferral:
			return api.Errorf(api.Upstream, "the directory refers to another server, which lessor does not follow: let url lead to one that can be written to")
		case goldap.LDAPResultInsufficientAccessRights:
			return api.Errorf(api.Upstream, "the directory does not let lessor's account (binddn) do that: %s", text)
		}
		if own {
			return api.Errorf(api.Upstream, "the directory refused lessor's own login: %s", text)
		}
		return api.Errorf(api.Upstream, "the directory refused: %s", text)
	}
	switch text := err.Error(); { // go-ldap has no types for what comes from below it
	case errors.Is(err, target.ErrForbidden):
		return api.Errorf(api.Upstream, "%v", target.ErrForbidden)
	case strings.Contains(text, "x509: "):
		return unreachable("its certificate is not trusted: it must be issued by an authority in certificate, for the host in url")
	case strings.Contains(text, "i/o timeout"):
		return unreachable("it did not answer in time")
	}
	return unreachable(target.Unreachable(err))
}

// said is a result in words: its name, and what the server says besides.
func (d *Server) said(err error, c uint16, secrets []string) string {
	name := goldap.LDAPResultCodeMap[c]
	if name == "" {
		name = "unknown result"
	}
	text := fmt.Sprintf("%s (%d)", name, c)
	if e, ok := errors.AsType[*goldap.Error](err); ok && e.Err != nil && e.Err.Error() != "" {
		text += ": " + d.redact(e.Err.Error(), secrets)
	}
	return text
}

// untouched says of an error that nothing was sent.
func untouched(err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok && errors.Is(err, ldap.ErrUnreachable) {
		return &api.Error{Kind: e.Kind, Text: e.Text, Cause: ldap.ErrUntouched}
	}
	return err
}

// redact takes secrets out of a text of the server's, and cuts it.
func (d *Server) redact(text string, secrets []string) string {
	passwords, _ := d.logins.current()
	for _, p := range passwords {
		secrets = append(secrets, p.Reveal())
	}
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "[secret]")
		}
	}
	if len(text) > longest {
		text = text[:longest]
	}
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text), "")
}
