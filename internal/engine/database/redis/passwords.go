package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/database"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Login tries a password in a session of its own. An account may have several; what Redis keeps of them tells whether this is one, whether the account is
// out (off) or lets anybody in (nopass).
func (d *server) Login(ctx context.Context, username string, password lessor.Secret) (verdict database.Verdict, err error) {
	if !existing(username) {
		return 0, errInvalidName
	}
	err = d.as(ctx, username, password, func(s *session) error { return s.conn.Ping(s.ctx).Err() })
	if answer := said(err); err != nil && !denied(err) && !strings.HasPrefix(answer, "NOPERM") { // who may not ask for a sign of life is in
		return 0, d.fail(err, password.Reveal())
	}
	err = d.session(ctx, idleName, func(s *session) error {
		f, err := s.look(username)
		verdict = database.Refused
		if err == nil && f != nil && slices.Contains(f.hashes, digest(password.Reveal())) {
			verdict = database.Accepted
			if f.off {
				verdict = database.Barred
			}
		}
		return d.fail(err)
	})
	if err != nil {
		return 0, err
	}
	return verdict, nil
}

// Changeable looks for the account, and whether lessor may change it: servers look at rights before they find that there is no such rule, and change nothing.
func (d *server) Changeable(ctx context.Context, c database.Change) error {
	if !existing(c.Username) {
		return errInvalidName
	}
	if len(c.Self) > 0 { // nobody but the account itself knows whether it may
		return nil
	}
	return d.session(ctx, idleName, func(s *session) error {
		f, err := s.look(c.Username)
		if err == nil && f == nil {
			return errNone(c.Username)
		}
		if err == nil {
			if _, err = s.do("ACL", "SETUSER", c.Username, "lessor-changes-nothing"); said(err) != "" && !strings.HasPrefix(said(err), "NOPERM") {
				err = nil
			}
		}
		return d.fail(err)
	})
}

func errNone(username string) error {
	return api.Errorf(api.Upstream, "there is no account %q at the database", username)
}

// SetPassword gives an account one password, in the place of all that it had. What cannot be saved is not changed.
func (d *server) SetPassword(ctx context.Context, c database.Change) error {
	if !existing(c.Username) {
		return errInvalidName
	}
	secret := digest(c.Password.Reveal())
	change := func(s *session) error {
		name := sessionOf + short(c.Name)
		if err := s.end([]string{name}); err != nil {
			return d.fail(err)
		}
		if err := s.name(name); err != nil {
			return d.fail(err)
		}
		defer s.name(idleName)
		f, err := s.look(c.Username)
		if err == nil && f == nil {
			return errNone(c.Username)
		}
		if err != nil {
			return d.fail(err)
		}
		if err := s.save(); err != nil {
			return err
		}
		if _, err := s.do("ACL", "SETUSER", c.Username, "resetpass", "#"+secret); err != nil {
			return d.fail(err, secret, c.Password.Reveal())
		}
		if err := s.save(); err != nil { // it is in force
			return &api.Error{Kind: api.Upstream, Text: "the database has the new password, but did not save it: " + err.Error(), Cause: database.ErrUnreachable}
		}
		return nil
	}
	if len(c.Self) == 0 {
		return d.session(ctx, idleName, change)
	}
	var failure error
	for _, password := range c.Self {
		in := false
		err := d.as(ctx, c.Username, password, func(s *session) error {
			if err := s.name(idleName); err != nil {
				return err
			}
			in = true
			return change(s)
		})
		switch {
		case in || err == nil:
			return err
		case denied(err):
			failure = api.Errorf(api.Upstream, "the database refused the account's own login: none of its passwords is the one that lessor knows")
		default:
			return untouched(d.fail(err, password.Reveal()))
		}
	}
	return failure
}

// encryption is how to talk to the server: nil stands for plain.
func encryption(c *database.Connection, s database.Secrets) (*tls.Config, error) {
	if !c.TLS {
		if c.InsecureTLS || c.CA != "" || c.Certificate != "" || c.ServerName != "" || !s.PrivateKey.Empty() {
			return nil, errors.New("TLS is off: say tls=true, or leave out ca_cert, insecure_tls and what else is about it")
		}
		return nil, nil
	}
	name := strings.Trim(c.Host, "[]")
	if c.ServerName != "" {
		name = c.ServerName
	}
	t, err := target.TLS(name, c.CA, c.Certificate, s.PrivateKey.Reveal())
	if err != nil {
		return nil, err
	}
	t.InsecureSkipVerify = c.InsecureTLS
	return t, nil
}
