package turn

import (
	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Own is the account that lessor itself logs in with.
type Own struct {
	Account, Queue     string // of its rotation, within the mount
	Username, Password string // names of the parameters by which it is configured
}

// Login is how lessor logs in, as it is configured.
type Login struct {
	Username string
	Password lessor.Secret
	Schedule rotation.Schedule
}

// Rekey brings the rotation of lessor's own account in line with a configuration that r writes: after, instead of before; nil: there was none. It returns the
// passwords that may log in from now on, likely ones first. Unless it is to be rotated it has no row, and the password that is configured.
func (o Own) Rekey(r *engine.Request, txn *store.Txn, before, after *Login) ([]lessor.Secret, error) {
	t := &Turn{Access: AccessOf(r)}
	var err error
	if t.Account, t.row, err = rotation.Load(r.View, r.Mount.Namespace, r.Mount.UUID, o.Account); err != nil {
		return nil, err
	}
	if t.Passwords, t.held, err = Passwords(t.Access, o.Account); err != nil {
		return nil, err
	}
	t.Target = o.Queue
	other := before != nil && before.Username != after.Username
	changed := before == nil || !after.Password.Equal(before.Password)
	switch {
	case !t.row.Exists() && after.Schedule == (rotation.Schedule{}):
		return []lessor.Secret{after.Password}, nil
	case !t.row.Exists():
		t.Import(t.Passwords, after.Password, r.Now)
	case other && t.Pending != 0:
		return nil, api.Errorf(api.Invalid, "a rotation of the account %q is under way: wait until it is done before you change %s", before.Username, o.Username)
	case other && !changed && !r.Has(o.Password):
		return nil, api.Errorf(api.Invalid, "the account %q needs its password: send %s, too", after.Username, o.Password)
	case other:
		*t.Account, t.Passwords = rotation.Account{Name: t.Name, Target: o.Queue, Version: t.Version, Next: t.Next}, &rotation.Passwords{}
		t.Import(t.Passwords, after.Password, r.Now)
	case changed:
		t.Import(t.Passwords, after.Password, r.Now)
	case r.Has(o.Password): // as it was: by a tool that keeps it, and it is older than what was rotated since; or somebody has set it again
		t.Recall(t.Passwords, after.Password, r.Now)
	}
	last := t.Rotated
	if last.IsZero() {
		last = r.Now
	}
	if t.Due.IsZero() || before == nil || before.Schedule != after.Schedule {
		t.Due = after.Schedule.Drawn(rotation.Chance(r.Random)).Next(last)
	}
	return t.Passwords.Candidates(), t.Save(txn)
}

// Candidates are the passwords that may log lessor in, likely ones first, and the version of the row that says so; 0: none does, and it is the one that is
// configured.
func Candidates(a engine.Access, account string, configured lessor.Secret) ([]lessor.Secret, uint64, error) {
	p, row, err := Passwords(a, account)
	if err != nil || !row.Exists() {
		return []lessor.Secret{configured}, 0, err
	}
	return p.Candidates(), row.Version, nil
}
