package directory

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/ldap"
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
	var (
		network   *net.OpError
		name      *net.DNSError
		untrusted *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		errno     syscall.Errno
	)
	switch {
	case errors.Is(err, errForbidden):
		return api.Errorf(api.Upstream, "%v", errForbidden)
	case errors.As(err, &untrusted), errors.As(err, &authority), errors.As(err, &host), errors.As(err, &invalid), strings.Contains(err.Error(), "x509: "):
		return unreachable("its certificate is not trusted: it must be issued by an authority in certificate, for the host in url")
	case errors.Is(err, context.Canceled):
		return unreachable("the request ended")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout(), strings.Contains(err.Error(), "i/o timeout"):
		return unreachable("it did not answer in time")
	case errors.As(err, &name):
		return unreachable("its name cannot be resolved")
	case errors.As(err, &errno):
		return unreachable(errno.Error())
	}
	return unreachable("the connection broke off")
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
