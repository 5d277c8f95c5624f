package turn

import (
	"fmt"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// Accounts are those that an engine keeps: it reads one, as a.View has it. nil: it does not exist any more.
type Accounts func(a engine.Access, account string) (*Turn, error)

// Now has the password of an account changed for a request: it is recorded as pending, and asked for to be brought into force. Two rotations of a pair never
// overlap: where one is under way, and readers are shown its password already, another waits for its turn.
func (of Accounts) Now(t *Turn, r *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{}
	reply.Txn.Require(t.Terms.Row)
	if err := t.Room(t.Passwords, r.Now); err != nil {
		return nil, api.Errorf(api.Limited, "%v", err)
	}
	if t.Outgoing != 0 {
		t.Demand(rotation.Asked, r.Now)
		told := fmt.Sprintf("a rotation is under way (%s since %s), and readers are shown its password already: this one begins when it is done", t.Phase(), t.Since.Format(time.RFC3339))
		if t.Phase() == rotation.Waiting {
			told += fmt.Sprintf(". Who is waited for is shown by lessor rotation status %s%s; lessor rotation retire ends the wait", r.Mount.Path, t.reads())
		}
		reply.Warnings = []string{told}
		return reply, t.Save(&reply.Txn)
	}
	if err := of.begin(t, r, reply); err != nil {
		return nil, err
	}
	return reply, nil
}

// begin records a password of t as pending, in reply's Txn, and asks for it to be brought into force.
func (of Accounts) begin(t *Turn, r *engine.Request, reply *engine.Reply) error {
	fresh, err := t.keeper.Fresh(r.System.Password)
	if err != nil {
		return err
	}
	t.Account.Begin(t.Passwords, fresh, r.Now)
	reply.Rotate = &engine.Rotate{Account: t.Name, Path: t.Terms.Path, Untouched: of.untouched(t)}
	return t.Save(&reply.Txn)
}

// Plan decides what comes next with an account by itself (engine.Rotator).
func (of Accounts) Plan(a engine.Access, account string, txn *store.Txn) (*engine.Rotate, error) {
	t, err := of(a, account)
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
	r := &engine.Rotate{Account: account, Path: t.Terms.Path}
	if t.Outgoing == 0 { // else it is that of the next rotation
		r.Cause = t.Cause
	}
	schedule := t.Terms.Schedule.Drawn(a.Chance)
	switch step := t.Step(schedule, a.Now); step {
	case rotation.Rotate, rotation.Retire:
		fresh, err := t.keeper.Fresh(a.Password)
		if err != nil {
			t.Failed(err, a.Now, a.Chance)
			return nil, t.Save(txn)
		}
		if r.Note = "rotation"; step == rotation.Retire {
			r.Note, r.Also = "the outgoing account is retired: "+t.WaitOver(), t.named()
		}
		t.Account.Begin(t.Passwords, fresh, a.Now)
		r.Untouched = of.untouched(t)
	case rotation.Resume:
		t.Account.Begin(t.Passwords, lessor.Secret{}, a.Now)
		r.Note, r.Untouched = "rotation resumed", of.untouched(t)
	case rotation.Prove:
		if r.Note = "password proven"; t.Phase() == rotation.Proving {
			r.Note = "the passwords of the outgoing account are proven dead"
		}
		t.Retry = a.Now.Add(rotation.Head)
	case rotation.Watching:
		r.Note, r.Look = "nobody is waited for any more", true
		return r, nil
	case rotation.Settle:
		more, err := lease.Settle(a.View, txn, a.Mount, t.reads(), t.Dead, t.Born)
		if err != nil {
			return nil, err
		}
		if !more {
			t.Settled = t.Dead
		}
		r.Note, r.Done = "older versions are proven dead", true
	case rotation.Yield:
		if !t.GiveUp(t.Passwords, schedule, a.Now) {
			return nil, t.Save(txn) // it came too late
		}
		if r.Note, r.Done = "the rotation is given up", true; t.Back { // readers are shown another password again
			r.Shown = []audit.Shown{t.Shown("written")}
		}
	case rotation.Miss:
		t.Skip(schedule, a.Now)
		return nil, t.Save(txn)
	default:
		return nil, nil
	}
	txn.Require(t.Terms.Row)
	return r, t.Save(txn)
}

// named are the audit records of those who had not moved when they were waited for no longer.
func (t *Turn) named() (all []audit.Record) {
	for _, s := range t.Stragglers {
		rec := audit.Record{
			Note: "has not moved from the outgoing password", Lease: s.Lease, Owner: s.Owner, Entity: s.Holder.Entity, Name: s.Holder.Name, Instance: s.Holder.Instance,
		}
		if s.Lease == "" {
			rec.Note, rec.Client = "sessions that use the outgoing password", s.Client
		}
		all = append(all, rec)
	}
	return all
}

// still is the account as it stands now, if the password that is on its way is still this one. nil: somebody else was faster.
func (of Accounts) still(a engine.Access, account string, pending lessor.Secret) (*Turn, error) {
	t, err := of(a, account)
	if err != nil || t == nil || t.Pending == 0 || !t.Passwords.Pending.Equal(pending) {
		return nil, err
	}
	return t, nil
}

// untouched records that the attempt which t began never was made.
func (of Accounts) untouched(t *Turn) func(engine.Access, *store.Txn) error {
	account, pending := t.Name, t.Passwords.Pending
	return func(a engine.Access, txn *store.Txn) error {
		t, err := of.still(a, account, pending)
		if t == nil {
			return err
		}
		t.Untouched()
		return t.Save(txn)
	}
}
