package turn

import (
	"cmp"
	"context"
	"errors"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/engine/target"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Turn touches the target as the account's rows say (engine.Rotator).
func (of Accounts) Turn(ctx context.Context, a engine.Access, account string) engine.Turned {
	t, err := of(a, account)
	switch {
	case err != nil || t == nil:
		return engine.Turned{Err: err}
	case a.Look:
		return of.look(ctx, t)
	case t.Pending != 0:
		return of.set(ctx, t)
	}
	return of.prove(ctx, t)
}

// set brings the pending password into force.
func (of Accounts) set(ctx context.Context, t *Turn) engine.Turned {
	account, pending := t.Name, t.Passwords.Pending
	there, err := t.keeper.Reach(ctx, t, t.Turn())
	if err == nil && t.New && t.Pair && t.Loose <= 1 {
		err = t.whole(ctx)
	}
	if err != nil {
		return of.failed(ctx, t, false, t.Loose <= 1, err)
	}
	verdict, touched, err := Bring(ctx, there, pending)
	if verdict == target.Barred && t.Pair && t.Outgoing == 0 { // the other one goes on
		touched, err = true, api.Errorf(api.Upstream, "the account %q has its new password, but may not log in: unlock it at the target, or let it log in there; then the rotation goes on", t.Username(t.Turn()))
	}
	if witness, ok := there.(Witness); err == nil && ok && t.Over.Forced() { // whoever uses it still is sent away, now that he cannot come back
		touched, err = true, witness.End(ctx)
	}
	if err != nil {
		dead := !touched && !errors.Is(err, target.ErrUnreachable) && t.dead(ctx, there, pending)
		return of.failed(ctx, t, touched, dead, err)
	}
	turned := engine.Turned{
		Note: remarks[verdict],
		Then: func(a engine.Access, txn *store.Txn, jitter func() float64) error {
			t, err := of.still(a, account, pending)
			if t == nil {
				return err
			}
			t.Confirm(t.Passwords, t.Terms.Schedule.Drawn(jitter()), a.Now)
			return t.Save(txn)
		},
	}
	if t.Outgoing == 0 { // else nobody is told
		turned.Shown = []audit.Shown{t.ShownAs(t.Pending, pending, "written")}
	}
	return turned
}

// Bring brings a password into force, and sees that it is: the verdict is not Refused. touched: if it failed, it may be in force all the same.
func Bring(ctx context.Context, there Target, password lessor.Secret) (verdict target.Verdict, touched bool, err error) {
	if err := there.Set(ctx, password); err != nil {
		return 0, errors.Is(err, target.ErrUnreachable) && !errors.Is(err, target.ErrUntouched), err
	}
	verdict, err = there.Login(ctx, password)
	if err == nil && verdict == target.Refused {
		err = api.Errorf(api.Upstream, "the target has taken the new password, but refuses a login with it: see whether the account is locked or its time is over (VALID UNTIL), and what rotation statements do")
	}
	return verdict, true, err
}

// remarks are noted where a login did not come to its end.
var remarks = map[target.Verdict]string{
	target.Unknown: "not verified: the target does not let the account log in from here, or by password",
	target.Barred:  "the password is in force, but the account may not log in: it is locked or disabled",
}

// dead reports whether a password that the target refused is certainly not in force: the account has the one that it had, since it has one; or
// has neither.
func (t *Turn) dead(ctx context.Context, there Target, refused lessor.Secret) bool {
	if t.New || t.Loose > 1 {
		return false // it is not made, or somebody else tries it, too
	}
	for _, password := range []lessor.Secret{t.Passwords.Of(t.Account, t.Turn()), refused} {
		if password.Empty() {
			continue
		}
		verdict, err := there.Login(ctx, password)
		if err != nil {
			return false
		}
		if verdict != target.Refused {
			return verdict.Right() && !password.Equal(refused)
		}
	}
	return true
}

// look asks the target who uses the outgoing account, and decides whether they are waited for any longer. Only that is on record. Where the target shows
// nobody's use, holders' own words and the deadline are all that there is to decide by.
func (of Accounts) look(ctx context.Context, t *Turn) engine.Turned {
	account, outgoing, asked := t.Name, t.Outgoing, t.Access.Now
	var seen []rotation.Seen
	var failure error
	if !t.Blind {
		there, err := t.keeper.Reach(ctx, t, 1-t.Slot)
		if err != nil {
			return of.failed(ctx, t, false, false, err)
		}
		if witness, ok := there.(Witness); ok {
			seen, failure = witness.Sessions(ctx)
		} else {
			failure = api.Errorf(api.Internal, "the target shows nobody's use, and was said to")
		}
	}
	turned := engine.Turned{Then: func(a engine.Access, txn *store.Txn, jitter func() float64) error {
		t, err := of(a, account)
		if err != nil || t == nil || t.Phase() != rotation.Waiting || t.Outgoing != outgoing || t.Abort {
			txn.Audit = nil
			return err // somebody else was faster, or wants it to be given up
		}
		if cut(ctx, failure) {
			txn.Audit = nil
			return nil // whoever comes next looks
		}
		users, err := lease.Users(a.View, a.Mount, t.reads())
		if err != nil {
			return err
		}
		holding, told := t.Holding(users), failure != nil && t.Attempts == 0
		if failure == nil {
			t.Sighted(seen, asked, a.Now)
		} else {
			t.Failed(failure, a.Now, jitter())
		}
		if why := t.Weigh(len(holding), t.leased(), a.Now); why != 0 {
			t.Close(why, holding, a.Now)
			txn.Audit[0].Note, txn.Audit[0].ErrorKind = "nobody is waited for any more: "+t.WaitOver(), ""
		} else if !told {
			txn.Audit = nil
		} else {
			txn.Audit[0].Note, txn.Audit[0].ErrorKind = "who uses the outgoing account cannot be seen", api.KindOf(failure).String()
		}
		return t.Save(txn)
	}}
	if errors.Is(failure, target.ErrUnreachable) { // else it is this account's trouble, and keeps no other waiting
		turned.Err = &api.Error{Kind: api.KindOf(failure), Cause: failure, Text: "whether the outgoing account is in use cannot be seen: " + failure.Error()}
	}
	return turned
}

// prove tries the password in force. One that is refused is brought into force again: somebody else changed it, or an attempt of long ago landed. Of
// a pair's other account each password that it had before must be refused.
func (of Accounts) prove(ctx context.Context, t *Turn) engine.Turned {
	note, err := t.restore(ctx)
	if err != nil {
		return of.failed(ctx, t, true, false, err)
	}
	found := lessor.Secret{}
	if t.Pair {
		var told string
		if found, told, err = t.buried(ctx); err != nil {
			return of.failed(ctx, t, true, false, err)
		}
		note = cmp.Or(note, told)
	}
	account, current, other := t.Name, t.Passwords.Current, t.Passwords.Other
	return engine.Turned{Note: note, Then: func(a engine.Access, txn *store.Txn, _ func() float64) error {
		t, err := of(a, account)
		if err != nil || t == nil || t.Pending != 0 || !t.Passwords.Current.Equal(current) || !t.Passwords.Other.Equal(other) {
			return err
		}
		if !found.Empty() {
			t.Passwords.Other = found
		}
		t.Proven(t.Passwords, a.Now)
		if !t.Terms.Own() {
			t.Buried(t.Passwords, a.Now)
		}
		return t.Save(txn)
	}}
}

// restore sees that the account in force has the password in force.
func (t *Turn) restore(ctx context.Context) (note string, err error) {
	current := t.Passwords.Current
	if current.Empty() {
		return "", nil
	}
	there, err := t.keeper.Reach(ctx, t, t.Slot)
	if err != nil {
		return "", err
	}
	verdict, err := there.Login(ctx, current)
	if err == nil && verdict == target.Refused {
		note = "the password had been changed by somebody else, and was set again"
		_, _, err = Bring(ctx, there, current)
	}
	return note, err
}

// buried tries that each password which the account that is not in force had before is refused. One that is not has landed since, and is replaced by the
// one that it should have; if it never had one that it should have, it is found.
func (t *Turn) buried(ctx context.Context) (found lessor.Secret, note string, err error) {
	slot := 1 - t.Slot
	there, err := t.keeper.Reach(ctx, t, slot)
	if err != nil {
		return found, "", err
	}
	other, tried := t.Passwords.Other, false
	for _, f := range t.Passwords.Formers(slot) {
		if f.Password.Equal(other) {
			continue
		}
		verdict, err := there.Login(ctx, f.Password)
		switch {
		case err != nil:
		case verdict == target.Unknown:
			note = remarks[verdict]
		case verdict.Right() && other.Empty():
			found = f.Password
		case verdict.Right():
			note = "an old password had been in force again, and was replaced"
			if _, _, err = Bring(ctx, there, other); err == nil {
				verdict, err = there.Login(ctx, f.Password)
			}
			if err == nil && verdict.Right() {
				err = api.Errorf(api.Upstream, "the target takes an old password of the account %q still, besides the one that it was given", t.Username(slot))
			}
		}
		if err != nil {
			return found, note, err
		}
		tried = true
	}
	if tried && !other.Empty() { // a target that counts failed logins begins anew
		_, err = there.Login(ctx, other)
	}
	return found, note, err
}

// cut reports whether an attempt failed since it was ended, and not by what the target said, or by its silence: lessor is being stopped, or its claim is lost.
func cut(ctx context.Context, failure error) bool {
	return errors.Is(ctx.Err(), context.Canceled) && errors.Is(failure, target.ErrUnreachable)
}

// interrupted is the note on such an attempt.
const interrupted = "it was ended before the target answered, and is tried again at once"

// failed records an attempt that failed. touched: what was to come into force may be, by all that the target said; dead: it is not, as is proven.
// If it is not, and no attempt before can have been, a static role that is being made is not made; and a password that the target refused gives way to another.
func (of Accounts) failed(ctx context.Context, t *Turn, touched, dead bool, failure error) engine.Turned {
	account, pending := t.Name, t.Passwords.Pending
	if cut(ctx, failure) {
		return engine.Turned{Err: failure, Note: interrupted, Then: func(a engine.Access, txn *store.Txn, _ func() float64) error {
			t, err := of(a, account)
			if err != nil || t == nil || !t.Passwords.Pending.Equal(pending) {
				return err
			}
			if !touched {
				t.Untouched()
			}
			t.Cut()
			return t.Save(txn)
		}}
	}
	withdraw := func(t *Turn) bool { return t.New && t.Attempts == 0 && t.Loose <= 1 && !touched && !t.Terms.Own() }
	first := withdraw(t)
	refused := !touched && !errors.Is(failure, target.ErrUnreachable)
	stays := "unable to finish rotating credentials; retries will continue in the background but it is also safe to retry manually: " + failure.Error()
	told := &api.Error{Kind: api.KindOf(failure), Cause: failure, Text: stays}
	return engine.Turned{
		Err: told,
		Then: func(a engine.Access, txn *store.Txn, jitter func() float64) error {
			told.Text = stays
			t, err := of(a, account)
			switch {
			case err != nil || t == nil || !t.Passwords.Pending.Equal(pending):
				return err
			case first && withdraw(t): // and nobody else has begun to try it meanwhile
				told.Text = "the static role was not made, since the password of its account could not be changed: " + failure.Error()
				t.keeper.Forget(txn)
				rotation.Drop(txn, t.row, t.Account)
				return nil
			}
			t.New = false
			if !touched {
				t.Untouched()
			}
			if refused {
				t.Withdraw(t.Passwords, dead, a.Now)
			}
			t.Failed(failure, a.Now, jitter())
			return t.Save(txn)
		},
	}
}
