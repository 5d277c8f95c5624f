// Package turn changes the passwords of accounts that stay at their targets: those of static roles, and those that lessor itself logs in with. What the
// next step of an account is, package rotation decides; which accounts there are, and what is said to a target, an engine knows (Keeper, Target). In
// which order things are recorded, done and tried is here, once for all of them.
//
// A password walks through these, from top to bottom. What stands at the margin is a commit; what is indented touches the target, and is on record by then.
//
//	Now, Plan      a new password is pending, sealed, and it is on record that the target is about to be touched.
//	               Whoever dies here leaves a pending password, which the next one brings into force: nothing is lost.
//	    set        the target is given it, and a login tries it.
//	               Whoever dies here leaves one of two in force, both on record. The same one is set again; no other comes in its place.
//	set            it is in force, and readers are shown it. Of one account, what was before is kept until it is proven dead.
//	    look       Of two, the target is asked who uses the outgoing one: that changes nothing.
//	look           nobody is waited for any more. Whoever dies here has ended the wait all the same: there is no way back.
//	Plan           a password that nobody is told is pending for the outgoing account, with the names of those who had not moved.
//	    set        the target is given it; whoever has a session still is sent away if the wait had a deadline.
//	set            the outgoing account has it.
//	    prove      the password in force is taken, and those before it are refused. One that came back is replaced.
//	prove          they are forgotten, and whoever holds them is told. Whoever dies before has all tried again.
package turn

import (
	"cmp"
	"context"
	"time"

	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Keeper is what an engine has on record of an account, as of one View.
type Keeper interface {
	// Terms are those on which the account is rotated.
	Terms() Terms
	// Fresh makes a password that the target can take: generate makes one by a policy, whose name the Keeper knows.
	Fresh(generate func(policy string) (lessor.Secret, error)) (lessor.Secret, error)
	// Reach is the way to one of t's accounts, which are one or two. An error, free of secrets, says that its password was not touched.
	Reach(ctx context.Context, t *Turn, slot uint8) (Target, error)
	// Forget takes back the static role that was made with the account, since its first password could not be set. It does so in txn, and leaves the
	// account's own rows alone.
	Forget(txn *store.Txn)
}

// Terms are those on which an account is rotated.
type Terms struct {
	engine.Terms               // without Reads it is lessor's own account
	Row          store.Row     // that they were read from: whoever begins a rotation requires it
	Queue        string        // of the account's target
	Grace        time.Duration // of two accounts: how long holders are waited for; 0: for ever
	Quiet        time.Duration // of two accounts: how long no use is evidence
	Blind        bool          // of two accounts: the target shows nobody's use
	Configured   lessor.Secret // of lessor's own: what it was configured with, in force until it is rotated
}

// Own reports whether the account is the one that lessor itself logs in with.
func (t *Terms) Own() bool { return t.Reads == "" }

// Target is one account at the server that it is of. Errors are of kind Upstream and free of secrets. Those that say nothing about the request itself, only
// that the server cannot be asked at present, are target.ErrUnreachable besides; target.ErrUntouched, if nothing was sent.
type Target interface {
	// Set gives the account a password, whatever it has. Again, with the same, it changes nothing. What an earlier call left under way may land later.
	Set(ctx context.Context, password lessor.Secret) error
	// Changeable is what would keep Set from changing the password, as far as the server says without anything being changed: there is no such account, or lessor
	// may not. nil: nothing is known to.
	Changeable(ctx context.Context) error
	// Login tries a password, in a session of its own. An error says that the server cannot be asked.
	Login(ctx context.Context, password lessor.Secret) (target.Verdict, error)
}

// Witness is a Target that shows who uses the account.
type Witness interface {
	Target
	// Sessions are those that the account has open now, wherever they come from. It changes nothing. Whoever gets an error knows nothing: neither that the
	// account is in use nor that it is not.
	Sessions(ctx context.Context) ([]rotation.Seen, error)
	// End ends them, and returns when the server says that they are over. New ones are not kept away: whoever wants that sets another password first.
	End(ctx context.Context) error
}

// Turn is an account with all that its rotation needs, as of one View.
type Turn struct {
	*rotation.Account
	Passwords *rotation.Passwords
	Terms     Terms
	Access    engine.Access
	keeper    Keeper
	row, held store.Row // of Account and Passwords
}

// AccessOf is what a request may reach.
func AccessOf(r *engine.Request) engine.Access {
	return engine.Access{Mount: r.Mount, View: r.View, Grant: r.Grant, Opener: r.Opener, Now: r.Now}
}

// Of reads an account's rotation. One that never was rotated has none on record yet.
func Of(a engine.Access, account string, k Keeper) (*Turn, error) {
	t := &Turn{Terms: k.Terms(), Access: a, keeper: k}
	var err error
	if t.Account, t.row, err = rotation.Load(a.View, a.Mount.Namespace, a.Mount.UUID, account); err != nil {
		return nil, err
	}
	if t.Passwords, t.held, err = Passwords(a, account); err != nil {
		return nil, err
	}
	t.Target = t.Terms.Queue
	t.Pair, t.Grace, t.QuietFor, t.Blind = len(t.Terms.Accounts) == 2, t.Terms.Grace, t.Terms.Quiet, t.Terms.Blind
	if t.Terms.Own() && t.Version == 0 && !t.Terms.Configured.Empty() {
		t.Import(t.Passwords, t.Terms.Configured, a.Now)
	}
	return t, nil
}

// Passwords opens the passwords of an account. Without a row it has none on record.
func Passwords(a engine.Access, account string) (*rotation.Passwords, store.Row, error) {
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

// Recheck has an account's password tried, since it may be another where its target is now.
func Recheck(r *engine.Request, txn *store.Txn, account string) error {
	a, row, err := rotation.Load(r.View, r.Mount.Namespace, r.Mount.UUID, account)
	if err != nil {
		return err
	}
	a.Check = r.Now
	return rotation.Save(txn, row, a)
}

// Save records how the account stands now.
func (t *Turn) Save(txn *store.Txn) error {
	if err := rotation.Save(txn, t.row, t.Account); err != nil {
		return err
	}
	return rotation.Keep(txn, t.held, t.Passwords)
}

// Show has txn be made only if the passwords are still what t has read: who is shown one holds it by the same commit, or is not shown it. So once another one
// is in force nobody comes to hold this one any more. Where leases are not kept it is on record, once for each password, that others than its holders may know it.
func (t *Turn) Show(txn *store.Txn) error {
	txn.Require(t.held)
	if !t.leased() && !t.Strangers() {
		t.Lent()
		return rotation.Save(txn, t.row, t.Account)
	}
	return nil
}

// leased reports whether the mount keeps leases on what it shows.
func (t *Turn) leased() bool { return t.Access.Mount.Leases() }

// Username is the name of one of the accounts at the target.
func (t *Turn) Username(slot uint8) string { return t.Terms.Accounts[slot] }

// Shown says that the password in force was shown, or written.
func (t *Turn) Shown(how string) audit.Shown { return t.ShownAs(t.Version, t.Passwords.Current, how) }

// ShownAs says so of the password of any version.
func (t *Turn) ShownAs(version uint64, password lessor.Secret, how string) audit.Shown {
	path := t.reads()
	return audit.Shown{
		Path: path, Version: version, How: how, Fingerprint: t.Access.Opener.Fingerprint(t.Access.Mount.UUID, path, []byte(password.Reveal())),
	}
}

// reads is the path whose readers are shown the password; lessor's own is shown to nobody, and goes by the path that configures it.
func (t *Turn) reads() string { return cmp.Or(t.Terms.Reads, t.Terms.Path) }
