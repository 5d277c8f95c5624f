package ldap

import (
	"context"
	"errors"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Rotation of what is at a directory: the accounts of static roles, "static/NAME", and that which lessor itself logs in with, "root". The rows
// of both are package rotation's. rotateRole and rotateRoot begin one for a request, Plan when it is due; Turn touches the directory.

// turn is an account with all that its rotation needs, as of one View.
type turn struct {
	*rotation.Account
	passwords *rotation.Passwords
	access    engine.Access
	row, held store.Row   // of Account and passwords
	role      *StaticRole // nil: lessor's own account
	roleRow   store.Row   // of role, or of the configuration
	config    *Config
	over      store.Row // of config
}

func accessOf(r *engine.Request) engine.Access {
	return engine.Access{Mount: r.Mount, View: r.View, Grant: r.Grant, Opener: r.Opener, Now: r.Now}
}

// turn reads an account. nil: it does not exist any more.
func (e *Engine) turn(a engine.Access, account string) (*turn, error) {
	t := &turn{access: a}
	if name, ok := strings.CutPrefix(account, staticPrefix); ok {
		t.role = &StaticRole{}
		var err error
		if t.roleRow, err = load(a.View, a.Mount, staticPrefix, name, t.role); err != nil || !t.roleRow.Exists() {
			return nil, err
		}
	}
	return t, t.complete(account)
}

// forRequest is turn for a request, whose role may differ from the stored one.
func (e *Engine) forRequest(r *engine.Request, account string, role *StaticRole, row store.Row) (*turn, error) {
	t := &turn{access: accessOf(r), role: role, roleRow: row}
	return t, t.complete(account)
}

// complete reads the rows of a turn whose role is known.
func (t *turn) complete(account string) (err error) {
	a := t.access
	t.config = &Config{}
	if t.over, err = load(a.View, a.Mount, configRow, "", t.config); err != nil {
		return err
	}
	if !t.over.Exists() {
		return errUnconfigured
	}
	if t.role == nil {
		t.roleRow = t.over
	}
	if t.Account, t.row, err = rotation.Load(a.View, a.Mount.Namespace, a.Mount.UUID, account); err != nil {
		return err
	}
	if t.passwords, t.held, err = passwords(a, account); err != nil {
		return err
	}
	t.Target = Target
	if t.role != nil || t.Version != 0 {
		return nil
	}
	// Lessor's own was never rotated: what was configured is in force.
	sealed, err := a.View.Get(store.Key{Table: store.Secrets, Name: t.over.Name})
	if err != nil {
		return err
	}
	s, err := open(a.Opener, a.Grant, sealed)
	if err == nil && !s.Password.Empty() {
		t.Import(t.passwords, s.Password, a.Now)
	}
	return err
}

var errUnconfigured = api.Errorf(api.Invalid, "missing LDAP configuration: write it to config")

// passwords opens the passwords of an account.
func passwords(a engine.Access, account string) (*rotation.Passwords, store.Row, error) {
	row, err := a.View.Get(rotation.SecretKey(a.Mount.Namespace, a.Mount.UUID, account))
	if err != nil {
		return nil, row, err
	}
	var value lessor.Secret
	if row.Exists() {
		if value, err = a.Opener.Open(a.Grant, row); err != nil {
			return nil, row, err
		}
	}
	p, err := rotation.Open(value)
	return p, row, err
}

// save records how the account stands now.
func (t *turn) save(txn *store.Txn) error {
	if err := rotation.Save(txn, t.row, t.Account); err != nil {
		return err
	}
	return rotation.Keep(txn, t.held, t.passwords)
}

func (t *turn) schedule() rotation.Schedule {
	if t.role != nil {
		return t.role.schedule()
	}
	return t.config.schedule()
}

// fresh is a new password that a directory can take.
func (t *turn) fresh(generate func(policy string) (lessor.Secret, error)) (lessor.Secret, error) {
	return fresh(generate, t.config)
}

// fresh generates a password by the configuration's policy. Directories take bytes that begin with a scheme in braces for a hash.
func fresh(generate func(policy string) (lessor.Secret, error), c *Config) (lessor.Secret, error) {
	for range 8 {
		p, err := generate(c.PasswordPolicy)
		if err != nil || !p.Empty() && !strings.HasPrefix(p.Reveal(), "{") && !strings.ContainsAny(p.Reveal(), "\x00\"") {
			return p, err
		}
	}
	return lessor.Secret{}, api.Errorf(api.Invalid, `the password policy makes passwords that directories take for something else: they must not be empty, begin with "{", or hold quotes`)
}

func (t *turn) shown(path, how string) audit.Shown {
	return audit.Shown{
		Path: path, Version: t.Version, How: how,
		Fingerprint: t.access.Opener.Fingerprint(t.access.Mount.UUID, path, []byte(t.passwords.Current.Reveal())),
	}
}

// path is what the account is called to people.
func (t *turn) path() string {
	if t.role != nil {
		return "static-role/" + strings.TrimPrefix(t.Name, staticPrefix)
	}
	return configRow
}

// read is the path whose readers are shown the password; for lessor's own account nobody is.
func (t *turn) read() string {
	if t.role != nil {
		return staticCred + strings.TrimPrefix(t.Name, staticPrefix)
	}
	return configRow
}

// rotateRole changes the password of a static role now.
func (e *Engine) rotateRole(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	name := nameOf(r)
	var role StaticRole
	row, err := load(r.View, r.Mount, staticPrefix, name, &role)
	if err != nil {
		return nil, err
	}
	if !row.Exists() {
		return nil, api.Errorf(api.Invalid, "role doesn't exist: %s", name)
	}
	t, err := e.forRequest(r, staticPrefix+name, &role, row)
	if err != nil {
		return nil, err
	}
	return e.begin(r, t)
}

// rotateRoot changes the password of lessor's own account now. Nobody is told the new one.
func (e *Engine) rotateRoot(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, err := e.forRequest(r, rootAccount, nil, store.Row{})
	if err != nil {
		return nil, err
	}
	return e.begin(r, t)
}

// begin records a password as pending, and asks for it to be brought into force.
func (e *Engine) begin(r *engine.Request, t *turn) (*engine.Reply, error) {
	fresh, err := t.fresh(r.System.Password)
	if err != nil {
		return nil, err
	}
	t.Begin(t.passwords, fresh, r.Now)
	reply := &engine.Reply{Rotate: &engine.Rotate{Account: t.Name, Path: t.path(), Untouched: e.untouched(t)}}
	reply.Txn.Require(t.roleRow)
	return reply, t.save(&reply.Txn)
}

// still is the account as it stands now, if the password that is pending is still this one; nil: somebody else was faster.
func (e *Engine) still(a engine.Access, account string, pending lessor.Secret) (*turn, error) {
	t, err := e.turn(a, account)
	if err != nil || t == nil || t.Pending == 0 || !t.passwords.Pending.Equal(pending) {
		return nil, err
	}
	return t, nil
}

// untouched records that the attempt which t began never was made.
func (e *Engine) untouched(t *turn) func(engine.Access, *store.Txn) error {
	account, pending := t.Name, t.passwords.Pending
	return func(a engine.Access, txn *store.Txn) error {
		t, err := e.still(a, account, pending)
		if t == nil {
			return err
		}
		t.Untouched()
		return t.save(txn)
	}
}

// Plan decides what comes next with an account by itself.
func (e *Engine) Plan(a engine.Access, account string, txn *store.Txn) (*engine.Rotate, error) {
	t, err := e.turn(a, account)
	if err != nil {
		return nil, err
	}
	if t == nil {
		known, row, err := rotation.Load(a.View, a.Mount.Namespace, a.Mount.UUID, account)
		if err == nil {
			rotation.Drop(txn, row, known)
		}
		return nil, err
	}
	r := &engine.Rotate{Account: account, Path: t.path(), Cause: t.Cause}
	schedule := t.schedule().Drawn(a.Chance)
	switch t.Step(schedule, a.Now) {
	case rotation.Rotate:
		fresh, err := t.fresh(a.Password)
		if err != nil {
			t.Failed(err, a.Now, a.Chance)
			return nil, t.save(txn)
		}
		t.Begin(t.passwords, fresh, a.Now)
		r.Note, r.Untouched = "rotation", e.untouched(t)
	case rotation.Resume:
		t.Begin(t.passwords, lessor.Secret{}, a.Now)
		r.Note, r.Untouched = "rotation resumed", e.untouched(t)
	case rotation.Prove:
		t.Retry = a.Now.Add(rotation.Head)
		r.Note = "password proven"
	case rotation.Settle:
		more, err := lease.Settle(a.View, txn, a.Mount, t.read(), t.Dead, t.Born)
		if err != nil {
			return nil, err
		}
		if !more {
			t.Settled = t.Dead
		}
		r.Note, r.Done = "older versions are proven dead", true
	case rotation.Yield:
		if !t.GiveUp(t.passwords, schedule, a.Now) {
			return nil, t.save(txn) // it came too late
		}
		r.Note, r.Done = "the rotation is given up", true
	case rotation.Miss:
		t.Skip(schedule, a.Now)
		return nil, t.save(txn)
	default:
		return nil, nil
	}
	txn.Require(t.roleRow)
	return r, t.save(txn)
}

// Turn touches the directory.
func (e *Engine) Turn(ctx context.Context, a engine.Access, account string) engine.Turned {
	t, err := e.turn(a, account)
	if err != nil || t == nil {
		return engine.Turned{Err: err}
	}
	d, err := e.directory(a)
	if err != nil {
		return e.failed(t, false, true, err)
	}
	dn, err := t.locate(ctx, d)
	if err != nil {
		return e.failed(t, false, false, err)
	}
	if t.Pending == 0 {
		return e.prove(ctx, t, d, dn)
	}
	pending := t.passwords.Pending
	note, touched, err := bring(ctx, d, dn, pending)
	if err != nil {
		dead := !touched && !errors.Is(err, ErrUnreachable) && t.dead(ctx, d, dn, pending)
		return e.failed(t, touched, dead, err)
	}
	done := *t
	after := *t.Account
	done.Account = &after
	done.Version, done.passwords = t.Pending, &rotation.Passwords{Current: pending}
	return engine.Turned{
		Note: note, Shown: []audit.Shown{done.shown(t.read(), "written")},
		Then: func(a engine.Access, txn *store.Txn, jitter func() float64) error {
			t, err := e.still(a, account, pending)
			if t == nil {
				return err
			}
			t.Confirm(t.passwords, t.schedule().Drawn(jitter()), a.Now)
			return t.save(txn)
		},
	}
}

// locate is the account's DN.
func (t *turn) locate(ctx context.Context, d Directory) (string, error) {
	if t.role == nil {
		return t.config.BindDN, nil
	}
	if t.role.DN != "" {
		return t.role.DN, nil
	}
	dn, err := d.Locate(ctx, t.role.Username)
	if err == nil && same(dn, t.config.BindDN) {
		return "", errOwn(t.role.Username)
	}
	return dn, err
}

// bring brings a password into force, and sees that it is. touched: if it failed, it may be in force all the same.
func bring(ctx context.Context, d Directory, dn string, password lessor.Secret) (note string, touched bool, err error) {
	if err := d.SetPassword(ctx, dn, password); err != nil {
		return "", errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrUntouched), err
	}
	switch verdict, err := d.Login(ctx, dn, password); {
	case err != nil:
		return "", true, err
	case verdict == Refused:
		return "", true, api.Errorf(api.Upstream, "the directory has taken the new password, but refuses a login with it: see whether the account is locked or over")
	case verdict == Unknown:
		return "not verified: the directory does not let the account log in by password", true, nil
	}
	return "", true, nil
}

// dead reports whether a password that the directory refused is certainly not in force: the account has the one that it had, since it has one;
// or has neither.
func (t *turn) dead(ctx context.Context, d Directory, dn string, refused lessor.Secret) bool {
	if t.New || t.Loose > 1 {
		return false // it is not made, or somebody else tries it, too
	}
	for _, password := range []lessor.Secret{t.passwords.Current, refused} {
		if password.Empty() {
			continue
		}
		verdict, err := d.Login(ctx, dn, password)
		if err != nil {
			return false
		}
		if verdict != Refused {
			return verdict == Accepted && !password.Equal(refused)
		}
	}
	return true
}

// prove tries the password in force. One that is refused is brought into force again: somebody else changed it, or an attempt of long ago landed.
func (e *Engine) prove(ctx context.Context, t *turn, d Directory, dn string) engine.Turned {
	current := t.passwords.Current
	if current.Empty() {
		return e.proven(t.Name, current, "")
	}
	verdict, err := d.Login(ctx, dn, current)
	note := ""
	if err == nil && verdict == Refused {
		note = "the password had been changed by somebody else, and was set again"
		_, _, err = bring(ctx, d, dn, current)
	}
	if err != nil {
		return e.failed(t, true, false, err)
	}
	return e.proven(t.Name, current, note)
}

func (e *Engine) proven(account string, current lessor.Secret, note string) engine.Turned {
	return engine.Turned{Note: note, Then: func(a engine.Access, txn *store.Txn, _ func() float64) error {
		t, err := e.turn(a, account)
		if err != nil || t == nil || t.Pending != 0 || !t.passwords.Current.Equal(current) {
			return err
		}
		t.Proven(t.passwords, a.Now)
		if t.role != nil {
			t.Buried(t.passwords, a.Now)
		}
		return t.save(txn)
	}}
}

// failed records an attempt that failed. touched: what was to come into force may be, by all that the directory said; dead: it is not, as is proven.
// If it is not, a static role that is being made is not made, and a password that the directory refused gives way to another.
func (e *Engine) failed(t *turn, touched, dead bool, failure error) engine.Turned {
	account, pending := t.Name, t.passwords.Pending
	withdraw := t.New && t.Attempts == 0 && !touched && t.role != nil
	refused := !touched && !errors.Is(failure, ErrUnreachable)
	told := "unable to finish rotating credentials; retries will continue in the background but it is also safe to retry manually: "
	if withdraw {
		told = "the static role was not made, since the password of its account could not be changed: "
	}
	return engine.Turned{
		Err: &api.Error{Kind: api.KindOf(failure), Cause: failure, Text: told + failure.Error()},
		Then: func(a engine.Access, txn *store.Txn, jitter func() float64) error {
			t, err := e.turn(a, account)
			switch {
			case err != nil || t == nil || !t.passwords.Pending.Equal(pending):
				return err
			case withdraw && t.New && t.Attempts == 0:
				forget(txn, a.Mount, t.roleRow, t.role)
				rotation.Drop(txn, t.row, t.Account)
				return nil
			}
			t.New = false
			if !touched {
				t.Untouched()
			}
			if refused {
				t.Withdraw(t.passwords, dead, a.Now)
			}
			t.Failed(failure, a.Now, jitter())
			return t.save(txn)
		},
	}
}
