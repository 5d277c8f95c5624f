// Package directory talks to directory servers over LDAP: OpenLDAP and what is like it, and Active Directory.
//
// LDAP has no transactions, no locks, and no way to say until when an operation is wanted. So an entry is made in two steps: it is added
// with a password that nobody knows, or none, and then given its own by a modification, which demands that the entry is there. Whatever of
// that lands late, after the entry was removed, leaves at most an entry that nobody can log in as.
package directory

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf16"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/ldap"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Server is a directory, opened. Safe for concurrent use.
type Server struct {
	config   ldap.Config
	settings *settings
	logins   logins
	free     chan struct{} // a place for each connection that is logged in

	mu     sync.Mutex
	idle   []*connection
	closed bool
}

var _ ldap.Open = Open

// Open prepares a Server.
func Open(c *ldap.Config, s ldap.Secrets) (ldap.Directory, error) {
	read, err := read(c, s)
	if err != nil {
		return nil, err
	}
	d := &Server{config: *c, settings: read, free: make(chan struct{}, most)}
	d.logins.use([]lessor.Secret{s.Password})
	return d, nil
}

// Use says which passwords may log lessor in.
func (d *Server) Use(passwords []lessor.Secret) { d.logins.use(passwords) }

// Close ends idle connections now, others when they are given back.
func (d *Server) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for _, c := range d.idle {
		go c.Close()
	}
	d.idle = nil
}

// search asks for entries; a base that is not there has none.
func (d *Server) search(c *connection, base string, scope int, filter string, limit int, attributes ...string) ([]*goldap.Entry, error) {
	r := goldap.NewSearchRequest(base, scope, goldap.NeverDerefAliases, limit, int(d.settings.request.Seconds()), false, filter, attributes, nil)
	found, err := c.Search(r)
	switch {
	case is(err, goldap.LDAPResultNoSuchObject):
		return nil, nil
	case err != nil && !(limit > 0 && is(err, goldap.LDAPResultSizeLimitExceeded)):
		return nil, d.fail(err)
	}
	return found.Entries, nil
}

// Ping asks for the server's own entry.
func (d *Server) Ping(ctx context.Context) error {
	return d.with(ctx, func(ctx context.Context, c *connection) error {
		_, err := d.search(c, "", goldap.ScopeBaseObject, "(objectClass=*)", 0, "1.1")
		return err
	})
}

// Locate searches below userdn for the one entry whose userattr is the name. lessor's own account is what binddn calls it.
func (d *Server) Locate(ctx context.Context, username string) (dn string, err error) {
	name := username
	if d.config.UPNDomain != "" && !strings.Contains(name, "@") && strings.EqualFold(d.config.UserAttr, "userPrincipalName") {
		name += "@" + d.config.UPNDomain
	}
	err = d.with(ctx, func(ctx context.Context, c *connection) error {
		found, err := d.search(c, d.config.UserDN, goldap.ScopeWholeSubtree, "("+d.config.UserAttr+"="+goldap.EscapeFilter(name)+")", 2, principalName)
		switch {
		case err != nil:
			return err
		case len(found) == 0:
			return &api.Error{Kind: api.Upstream, Cause: ldap.ErrNoAccount,
				Text: "the directory shows no account whose " + d.config.UserAttr + " is " + name + ": see userdn and userattr of the configuration, and what lessor's account may read"}
		case len(found) > 1:
			return api.Errorf(api.Upstream, "the directory has several accounts whose %s is %s: give the role a dn", d.config.UserAttr, name)
		}
		if dn = found[0].DN; d.own(found[0].GetEqualFoldAttributeValue(principalName)) {
			dn = d.config.BindDN
		}
		return nil
	})
	return dn, err
}

// Shows looks at the entry.
func (d *Server) Shows(ctx context.Context, dn string) (there bool, err error) {
	err = d.with(ctx, func(_ context.Context, c *connection) error {
		there, _, err = d.look(c, dn)
		return err
	})
	return there, err
}

// Self searches for lessor's own entry, and for what is in its userattr.
func (d *Server) Self(ctx context.Context) (dn string, names []string, err error) {
	dn = d.config.BindDN
	err = d.with(ctx, func(_ context.Context, c *connection) error {
		own, err := d.entry(c, dn)
		if err != nil {
			return err
		}
		dn, names = own, nil
		found, err := d.search(c, own, goldap.ScopeBaseObject, "(objectClass=*)", 0, d.config.UserAttr)
		for _, e := range found {
			names = e.GetEqualFoldAttributeValues(d.config.UserAttr)
		}
		return err
	})
	if err != nil && !errors.Is(err, ldap.ErrUnreachable) { // it is not shown, so that no search finds it
		err = nil
	}
	for _, name := range names {
		if short, domain, ok := strings.Cut(name, "@"); ok && strings.EqualFold(domain, d.config.UPNDomain) {
			names = append(names, short)
		}
	}
	return dn, names, err
}

// principalName is what accounts of Active Directory are called besides: name@domain. lessor may log in by it.
const principalName = "userPrincipalName"

// own reports whether a principal name is what binddn says in the place of a DN.
func (d *Server) own(name string) bool {
	return name != "" && strings.EqualFold(name, d.config.BindDN)
}

// entry is the DN of lessor's own account, where binddn says another name of it; any other DN as it is.
func (d *Server) entry(c *connection, dn string) (string, error) {
	if _, err := goldap.ParseDN(dn); err == nil || !d.own(dn) {
		return dn, nil
	}
	root, err := d.search(c, "", goldap.ScopeBaseObject, "(objectClass=*)", 0, "defaultNamingContext")
	if err != nil {
		return "", err
	}
	for _, e := range root {
		found, err := d.search(c, e.GetEqualFoldAttributeValue("defaultNamingContext"), goldap.ScopeWholeSubtree, "("+principalName+"="+goldap.EscapeFilter(dn)+")", 2, "1.1")
		if err != nil {
			return "", err
		}
		if len(found) == 1 {
			return found[0].DN, nil
		}
	}
	return "", &refusal{"the directory does not show which entry binddn is: give its distinguished name"}
}

// Login tries a password in a connection of its own.
func (d *Server) Login(ctx context.Context, dn string, password lessor.Secret) (ldap.Verdict, error) {
	if dn == "" || password.Empty() { // a server takes that for an anonymous login
		return ldap.Refused, nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.settings.request)
	defer cancel()
	c, err := d.dial(ctx)
	if err != nil {
		return 0, untouched(d.fail(err))
	}
	defer c.Close()
	release := c.bound(ctx)
	defer release()
	return d.verdict(c.Bind(dn, password.Reveal()), password)
}

// verdict is what an answer to a login says of the password.
func (d *Server) verdict(err error, password lessor.Secret) (ldap.Verdict, error) {
	switch {
	case err == nil:
		return ldap.Accepted, nil
	case is(err, goldap.LDAPResultInvalidCredentials):
		return active(err), nil
	case is(err, goldap.LDAPResultInappropriateAuthentication, goldap.LDAPResultNoSuchObject):
		return ldap.Refused, nil // it has no password at all
	case is(err, goldap.LDAPResultConstraintViolation, goldap.LDAPResultUnwillingToPerform, goldap.LDAPResultInsufficientAccessRights):
		return ldap.Unknown, nil
	}
	return 0, d.fail(err, password.Reveal())
}

// active tells apart what Active Directory says with one code: some of it comes only after the password was right.
func active(err error) ldap.Verdict {
	_, rest, ok := strings.Cut(err.Error(), ", data ")
	if !ok {
		return ldap.Refused
	}
	data, _, _ := strings.Cut(rest, ",")
	switch data {
	case "530", "531", "532", "773": // not now, not from here, expired, must change it
		return ldap.Accepted
	case "533", "701": // disabled, over
		return ldap.Barred
	case "775": // locked
		return ldap.Unknown
	}
	return ldap.Refused
}

// SetPassword has the server hash the password, where it can (RFC 3062); Active Directory gets it as unicodePwd, and gets it twice: besides the password of
// an account it takes the one before, for an hour, which is the same then.
func (d *Server) SetPassword(ctx context.Context, dn string, password lessor.Secret) error {
	return d.with(ctx, func(_ context.Context, c *connection) error { return d.set(c, dn, password) })
}

func (d *Server) set(c *connection, dn string, password lessor.Secret) error {
	if d.config.Schema == ldap.AD {
		dn, err := d.entry(c, dn)
		if err != nil {
			return d.fail(err)
		}
		r := goldap.NewModifyRequest(dn, nil)
		r.Replace("unicodePwd", []string{quoted(password.Reveal())})
		if err := c.Modify(r); err != nil {
			return d.fail(err, password.Reveal())
		}
		if err := d.fail(c.Modify(r), password.Reveal()); err != nil { // be it refused: it is in force
			return &api.Error{Kind: api.Upstream, Text: "the directory took the password once, and not again: " + err.Error(), Cause: ldap.ErrUnreachable}
		}
		return nil
	}
	_, err := c.PasswordModify(goldap.NewPasswordModifyRequest(dn, "", password.Reveal()))
	if is(err, goldap.LDAPResultProtocolError) { // it does not know that operation
		r := goldap.NewModifyRequest(dn, nil)
		r.Replace("userPassword", []string{password.Reveal()})
		err = c.Modify(r)
	}
	return d.fail(err, password.Reveal())
}

// quoted is a password as Active Directory has it: in quotes, UTF-16, little-endian.
func quoted(password string) string {
	b := []byte{}
	for _, u := range utf16.Encode([]rune(`"` + password + `"`)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return string(b)
}

// markAttribute is where entries bear their mark.
func (d *Server) markAttribute() string { return d.config.Mark() }

const (
	leaseMark = "lessor lease="
	mountMark = " mount="
	roleMark  = " role="
	nameMark  = " name="
)

// remark is a mark as entries bear it.
func remark(m ldap.Mark) string {
	return leaseMark + m.Lease + mountMark + m.Mount + roleMark + m.Role + nameMark + m.Name
}

// marks reads it; false if it is none of lessor's.
func marks(text string) (m ldap.Mark, ok bool) {
	rest, ok := strings.CutPrefix(text, leaseMark)
	if !ok {
		return m, false
	}
	m.Lease, rest, _ = strings.Cut(rest, mountMark)
	m.Mount, rest, _ = strings.Cut(rest, roleMark)
	m.Role, m.Name, _ = strings.Cut(rest, nameMark)
	return m, true
}

// markOf is the mark that an entry bears.
func (d *Server) markOf(e *goldap.Entry) (ldap.Mark, bool) {
	for _, text := range e.GetEqualFoldAttributeValues(d.markAttribute()) {
		if m, ok := marks(text); ok {
			return m, true
		}
	}
	return ldap.Mark{}, false
}

// look is what the directory shows of an entry: whether it is there, and whose.
func (d *Server) look(c *connection, dn string) (there bool, mark ldap.Mark, err error) {
	found, err := d.search(c, dn, goldap.ScopeBaseObject, "(objectClass=*)", 0, d.markAttribute())
	if err != nil || len(found) == 0 {
		return false, mark, err
	}
	mark, _ = d.markOf(found[0])
	return true, mark, nil
}

// Make makes what the steps say.
func (d *Server) Make(ctx context.Context, e ldap.Entries) error {
	return d.with(ctx, func(ctx context.Context, c *connection) error {
		for i := range e.Steps {
			s := &e.Steps[i]
			if s.Secret && over(ctx) {
				return d.fail(context.DeadlineExceeded)
			}
			if err := d.step(c, s, e.Mark); err != nil {
				return err
			}
		}
		for _, dn := range e.DNs {
			there, mark, err := d.look(c, dn)
			if err != nil {
				return err
			}
			if !there || mark.Lease != e.Mark.Lease {
				return api.Errorf(api.Upstream, "lessor's account (binddn) cannot read what it made, with its mark in %s: it could not see that it is gone; let it read it", d.markAttribute())
			}
		}
		return nil
	})
}

// over reports whether a call's time is over, by the clock: a process that was paused may not have noticed yet.
func over(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// step does one step of making. What was done before is done.
func (d *Server) step(c *connection, s *ldap.Step, mark ldap.Mark) error {
	switch s.Verb {
	case ldap.Add:
		r := goldap.NewAddRequest(s.DN, nil)
		marked := false
		for _, v := range s.Values {
			values := v.Values
			if strings.EqualFold(v.Attribute, d.markAttribute()) {
				marked, values = true, append(slices.Clone(values), remark(mark))
			}
			r.Attribute(v.Attribute, values)
		}
		if !marked {
			r.Attribute(d.markAttribute(), []string{remark(mark)})
		}
		err := c.Add(r)
		switch {
		case is(err, goldap.LDAPResultEntryAlreadyExists):
			there, other, err := d.look(c, s.DN)
			if err != nil || there && other.Lease == mark.Lease {
				return err
			}
			return &refusal{"the directory has an entry of that name already, which is not lessor's: " + s.DN}
		case is(err, goldap.LDAPResultObjectClassViolation):
			return api.Errorf(api.Upstream, "%s; the entry bears lessor's mark in the attribute %s, which one of its object classes must allow: add one that does, or configure another mark_attribute", d.fail(err, secrets(s)...), d.markAttribute())
		}
		return d.fail(err, secrets(s)...)
	case ldap.Modify:
		return d.modify(c, s)
	case ldap.Password:
		return d.set(c, s.DN, s.Password)
	}
	err := c.Del(goldap.NewDelRequest(s.DN, nil))
	if is(err, goldap.LDAPResultNoSuchObject) {
		return nil
	}
	return d.fail(err)
}

// modify does a modification. If the directory says that one of its values is there already, or not there any more, each is tried by itself.
func (d *Server) modify(c *connection, s *ldap.Step) error {
	err := c.Modify(modification(s.DN, s.Changes...))
	if is(err, goldap.LDAPResultAttributeOrValueExists, goldap.LDAPResultNoSuchAttribute) {
		for _, change := range s.Changes {
			err = c.Modify(modification(s.DN, change))
			if change.Kind == ldap.AddValues && is(err, goldap.LDAPResultAttributeOrValueExists) || change.Kind == ldap.DeleteValues && is(err, goldap.LDAPResultNoSuchAttribute) {
				err = nil
			}
			if err != nil {
				break
			}
		}
	}
	if is(err, goldap.LDAPResultNoSuchObject) {
		return &api.Error{Kind: api.Upstream, Text: "the directory has no entry " + s.DN + " to modify", Cause: errGone}
	}
	return d.fail(err, secrets(s)...)
}

func modification(dn string, changes ...ldap.Change) *goldap.ModifyRequest {
	r := goldap.NewModifyRequest(dn, nil)
	for _, change := range changes {
		switch change.Kind {
		case ldap.AddValues:
			r.Add(change.Values.Attribute, change.Values.Values)
		case ldap.DeleteValues:
			r.Delete(change.Values.Attribute, change.Values.Values)
		case ldap.ReplaceValues:
			r.Replace(change.Values.Attribute, change.Values.Values)
		}
	}
	return r
}

// secrets are the values of a step that errors must not repeat.
func secrets(s *ldap.Step) (all []string) {
	if !s.Secret {
		return nil
	}
	for _, v := range s.Values {
		all = append(all, v.Values...)
	}
	for _, c := range s.Changes {
		all = append(all, c.Values.Values...)
	}
	return all
}

// Remove does what removes the entries: all of its steps, whatever becomes of some, since a former call may have done a part.
func (d *Server) Remove(ctx context.Context, e ldap.Entries) error {
	return d.with(ctx, func(ctx context.Context, c *connection) error {
		for _, dn := range e.DNs {
			there, mark, err := d.look(c, dn)
			switch {
			case err != nil:
				return err
			case there && mark.Lease == "":
				return api.Errorf(api.Upstream, "the entry %s does not bear lessor's mark any more: see whose it is, and delete it or restore its %s", dn, d.markAttribute())
			case there && mark.Lease != e.Mark.Lease:
				return nil // another lease's, and so this one's was never made
			}
		}
		var failure error
		for i := range e.Steps {
			err := d.step(c, &e.Steps[i], e.Mark)
			if e.Steps[i].Verb == ldap.Modify && errors.Is(err, errGone) {
				err = nil
			}
			if errors.Is(err, ldap.ErrUnreachable) {
				return err
			}
			failure = errors.Join(failure, err)
		}
		if failure != nil {
			return api.Errorf(api.Upstream, "%s", d.redact(failure.Error(), nil))
		}
		for _, dn := range e.DNs {
			there, _, err := d.look(c, dn)
			if err != nil {
				return err
			}
			if there {
				return api.Errorf(api.Upstream, "the entry %s is still there: deletion_ldif must delete it", dn)
			}
		}
		return nil
	})
}

// errGone is the cause of the error that an entry to modify is not there.
var errGone = errors.New("directory: no such entry")

// Marked searches below userdn, or everywhere if that is empty, for entries that bear a mark.
func (d *Server) Marked(ctx context.Context) (all []ldap.Marked, err error) {
	err = d.with(ctx, func(ctx context.Context, c *connection) error {
		bases := []string{d.config.UserDN}
		if d.config.UserDN == "" {
			own, err := d.search(c, "", goldap.ScopeBaseObject, "(objectClass=*)", 0, "namingContexts")
			if err != nil {
				return err
			}
			bases = nil
			for _, e := range own {
				bases = append(bases, e.GetEqualFoldAttributeValues("namingContexts")...)
			}
		}
		for _, base := range bases {
			filter := "(" + d.markAttribute() + "=" + leaseMark + "*)"
			r := goldap.NewSearchRequest(base, goldap.ScopeWholeSubtree, goldap.NeverDerefAliases, 0, 0, false, filter, []string{d.markAttribute()}, nil)
			found, err := c.SearchWithPaging(r, 500)
			if err != nil {
				return d.fail(err) // a base that is not there hides what was made there
			}
			for _, e := range found.Entries {
				if m, ok := d.markOf(e); ok {
					all = append(all, ldap.Marked{Mark: m, DN: e.DN})
				}
			}
		}
		return nil
	})
	return all, err
}
