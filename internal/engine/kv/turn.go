package kv

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/rotator"
	"github.com/lessor-dev/lessor/internal/store"
)

// Rotation of secrets by rotators. The rows are package rotation's, by the secret's path; its passwords are values here. Two slots take turns as two accounts
// of a database do, but they are two values that the target takes at a time:
//
//	create    the pending token is recorded, then the value that the rotator makes of it
//	set test  it is in force, and the commit that says so writes the secret's next version
//	          holders of the outgoing value are waited for
//	finish    the outgoing value is retired
//	test      each value that was in force before is refused
//
// With one slot, strategy single, set ends the value before, and the rest follows as soon as nothing of the rotation can land any more.

var _ engine.Explainer = V2{}

// turn is a secret with all that its rotation needs, as of one View.
type turn struct {
	*engine.Request
	*rotation.Account
	*revision // the secret; its meta is nil if there is none
	path      string
	terms     *terms
	termsRow  store.Row
	values    *rotation.Passwords
	row, held store.Row // of Account and values
}

// turnOf reads a secret's rotation; nil: it has none.
func turnOf(r *engine.Request, path string) (*turn, error) {
	if err := engine.CheckPath(path); err != nil {
		return nil, err
	}
	t := &turn{Request: r, path: path, revision: &revision{path: path, reply: &engine.Reply{}}}
	var err error
	if t.terms, t.termsRow, err = loadTerms(r, path); err != nil || t.terms == nil {
		return nil, err
	}
	if t.meta, t.revision.row, err = load(r, path); err != nil {
		return nil, err
	}
	var row store.Row
	if t.config, row, err = loadConfig(r); err != nil {
		return nil, err
	}
	t.reply.Txn.Require(row)
	return t, t.complete()
}

// background is the request that a background act would be.
func background(a engine.Access) *engine.Request {
	return &engine.Request{Mount: a.Mount, View: a.View, Grant: a.Grant, Opener: a.Opener, Now: a.Now}
}

// complete reads the rows of a turn whose terms are known.
func (t *turn) complete() (err error) {
	if t.Account, t.row, err = rotation.Load(t.View, t.Mount.Namespace, t.Mount.UUID, t.path); err != nil {
		return err
	}
	if t.held, err = t.View.Get(rotation.SecretKey(t.Mount.Namespace, t.Mount.UUID, t.path)); err != nil {
		return err
	}
	var value lessor.Secret
	if t.held.Exists() {
		if value, err = t.Opener.Open(t.Grant, t.held); err != nil {
			return err
		}
	}
	if t.values, err = rotation.Open(value); err != nil {
		return err
	}
	t.Target = t.terms.Rotator
	t.Pair, t.Blind, t.Grace, t.QuietFor = !t.terms.Single, !t.terms.Single, t.terms.Grace, rotation.DefaultQuiet
	return nil
}

// save records how the rotation stands now.
func (t *turn) save(txn *store.Txn) error {
	if err := rotation.Save(txn, t.row, t.Account); err != nil {
		return err
	}
	return rotation.Keep(txn, t.held, t.values)
}

// drop deletes the rotation.
func (t *turn) drop(txn *store.Txn) {
	txn.Require(t.termsRow)
	txn.Delete(t.termsRow.Table, t.termsRow.Name)
	rotation.Drop(txn, t.row, t.Account)
}

// newest is the secret's newest value; without one, if it is hidden or is no object.
func (t *turn) newest() (m material, err error) {
	v := t.meta.version(t.meta.Current)
	if v == nil || v.gone(t.Now) {
		return m, nil
	}
	f := found{path: t.path, meta: t.meta, number: t.meta.Current}
	value, err := f.value(t.Request)
	if err != nil || value.Reveal() == "null" {
		return m, err
	}
	return material{value: value.Secret}, nil
}

// publish writes the value in force as the secret's next version, which the rotation has counted already.
func (t *turn) publish(txn *store.Txn) error {
	is, err := materialOf(t.values.Current)
	if err != nil {
		return err
	}
	t.meta.Rotated = true
	t.append(t.Request, lessor.SecretJSON{Secret: is.value})
	if t.meta.Current != t.Version {
		return api.Errorf(api.Internal, "kv: version %d of a secret became %d by its rotation", t.Version, t.meta.Current)
	}
	txn.Join(&t.reply.Txn)
	return nil
}

// astray reports whether the secret is not what the rotation made of it: a server of a version that knows of no rotators has written it.
func (t *turn) astray() bool { return t.meta.Current != t.Version }

// remember has the secret's metadata say again that it is rotated, as that server did not know.
func (t *turn) remember(txn *store.Txn) {
	if !t.meta.Rotated {
		t.meta.Rotated = true
		t.meta.save(txn, t.revision.row)
	}
}

// token names a rotation to its rotator: once for each that begins.
func (t *turn) token() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d\x00%d\x00%d", t.Mount.UUID, t.path, t.Born, t.Version, t.Now.UnixMicro()))
	return hex.EncodeToString(sum[:16])
}

// Plan decides what comes next with a secret by itself.
func (e V2) Plan(a engine.Access, account string, txn *store.Txn) (*engine.Rotate, error) {
	t, err := turnOf(background(a), account)
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
	switch {
	case t.meta == nil || t.meta.Born != t.Born: // another secret than it was made for
		t.drop(txn)
		return nil, nil
	case t.astray() && t.Phase() == rotation.Idle:
		is, err := t.newest()
		if err != nil {
			return nil, err
		}
		t.remember(txn)
		t.take(is, t.meta.Current)
		return nil, t.save(txn)
	case t.astray():
		t.remember(txn)
		t.Failed(fmt.Errorf("version %d was written past the rotation that is under way: delete the rotation, and write it again", t.meta.Current), a.Now, a.Chance)
		return nil, t.save(txn)
	}
	txn.Require(t.termsRow)
	r, err := t.plan(a, txn)
	if err != nil || r == nil {
		return r, err
	}
	r.Account, r.Path = account, "rotation/"+t.path
	if t.Outgoing == 0 { // else it is that of the next rotation
		r.Cause = t.Cause
	}
	if r.Look {
		return r, nil
	}
	return r, t.save(txn)
}

func (t *turn) plan(a engine.Access, txn *store.Txn) (*engine.Rotate, error) {
	schedule := t.terms.schedule().Drawn(a.Chance)
	switch step := t.Step(schedule, a.Now); step {
	case rotation.Rotate:
		t.Begin(t.values, material{token: t.token()}.sealed(), a.Now)
		return &engine.Rotate{Note: "rotation"}, nil
	case rotation.Retire:
		t.Begin(t.values, material{token: t.token(), retired: true}.sealed(), a.Now)
		return &engine.Rotate{Note: "the outgoing value is retired: " + t.WaitOver(), Also: t.named()}, nil
	case rotation.Resume:
		t.Begin(t.values, lessor.Secret{}, a.Now)
		return &engine.Rotate{Note: "rotation resumed"}, nil
	case rotation.Prove:
		t.Retry = a.Now.Add(rotation.Head)
		return &engine.Rotate{Note: "older values are proven dead"}, nil
	case rotation.Watching:
		return &engine.Rotate{Note: "nobody is waited for any more", Look: true}, nil
	case rotation.Settle:
		more, err := lease.Settle(a.View, txn, a.Mount, t.path, t.Dead, t.Born)
		if err == nil && !more {
			t.Settled = t.Dead
		}
		return &engine.Rotate{Note: "older versions are proven dead", Done: true}, err
	case rotation.Yield:
		if !t.GiveUp(t.values, schedule, a.Now) {
			return nil, t.save(txn) // it came too late
		}
		r := &engine.Rotate{Note: "the rotation is given up", Done: true}
		if t.Back { // readers are shown another value again
			if err := t.publish(txn); err != nil {
				return nil, err
			}
			r.Shown = t.reply.Shown
		}
		return r, nil
	case rotation.Miss:
		t.Skip(schedule, a.Now)
		return nil, t.save(txn)
	}
	return nil, nil
}

// named are the audit records of those who had not moved when they were waited for no longer.
func (t *turn) named() (all []audit.Record) {
	for _, s := range t.Stragglers {
		all = append(all, audit.Record{
			Note: "has not moved from the outgoing value", Lease: s.Lease, Owner: s.Owner, Entity: s.Holder.Entity, Name: s.Holder.Name, Instance: s.Holder.Instance,
		})
	}
	return all
}

// act is a turn while its rotator is called.
type act struct {
	*turn
	rotators Rotators
	ctx      context.Context
	current  material
	other    material // the outgoing one; of one slot, none
}

// Turn has the rotator take the next step.
func (e V2) Turn(ctx context.Context, a engine.Access, account string) engine.Turned {
	t, err := turnOf(background(a), account)
	if err != nil || t == nil {
		return engine.Turned{Err: err}
	}
	if a.Look { // be it that somebody else was faster: nothing is on record of a call
		return t.look()
	}
	if e.Rotators == nil {
		return t.failed(api.Errorf(api.Invalid, "this server calls no rotators"))
	}
	c := &act{turn: t, rotators: e.Rotators, ctx: ctx}
	if c.current, err = materialOf(t.values.Current); err != nil {
		return t.failed(err)
	}
	if c.other, err = materialOf(t.values.Other); err != nil {
		return t.failed(err)
	}
	if t.Pending == 0 {
		return c.prove()
	}
	pending, err := materialOf(t.values.Pending)
	switch {
	case err != nil:
		return t.failed(err)
	case t.Outgoing != 0:
		return c.retire(pending)
	case pending.value.Empty():
		return c.create(pending)
	}
	return c.set(pending)
}

// call asks the rotator for a step. What is in force is told with each.
func (c *act) call(call rotator.Call) (rotator.Answer, error) {
	call.Secret, call.Options = c.Mount.Path+c.path, c.terms.Options
	if call.Current.Empty() {
		call.Current = c.current.value
	}
	return c.rotators.Call(c.ctx, c.View, c.terms.Rotator, call)
}

// make has the value of a token made.
func (c *act) make(token string) (lessor.Secret, error) {
	answer, err := c.call(rotator.Call{Step: rotator.Create, Token: token})
	if err != nil {
		return lessor.Secret{}, err
	}
	value, err := object(lessor.SecretJSON{Secret: answer.Pending})
	return lessor.NewSecret(lessor.AppendJSON(nil, value)), err
}

// create has the pending value made, and puts it on record before anything else is done with it.
func (c *act) create(pending material) engine.Turned {
	value, err := c.make(pending.token)
	if err == nil {
		err = c.fresh(value)
	}
	if err != nil {
		return c.failed(err)
	}
	return c.then("the rotator has made a value", func(t *turn, _ *store.Txn, _ rotation.Schedule) error {
		t.values.Pending = material{token: pending.token, value: value}.sealed()
		t.Untouched()
		t.Attempts, t.LastError, t.Retry = 0, "", time.Time{}
		return nil
	})
}

// fresh is nil if a value is another one than those that are in force, or were: else those would be called dead while it is in force.
func (c *act) fresh(value lessor.Secret) error {
	for _, known := range c.values.Candidates() {
		was, err := materialOf(known)
		if err != nil {
			return err
		}
		if was.value.Equal(value) {
			return api.Errorf(api.Upstream, "the rotator has made a value that was in force before: it has to make another one for each token")
		}
	}
	return nil
}

// set brings the pending value into force, and sees that it is. By that the secret has another version.
func (c *act) set(pending material) engine.Turned {
	if _, err := c.call(rotator.Call{Step: rotator.Set, Token: pending.token, Pending: pending.value}); err != nil {
		return c.failed(err)
	}
	if err := c.works(pending); err != nil {
		return c.failed(err)
	}
	turned := c.then("", func(t *turn, txn *store.Txn, s rotation.Schedule) error {
		if t.astray() {
			return nil // Plan says so
		}
		t.Confirm(t.values, s, t.Now)
		return t.publish(txn)
	})
	turned.Shown = shown(c.Request, c.path, c.Pending, lessor.SecretJSON{Secret: pending.value}, "written")
	return turned
}

// retire has the target refuse the outgoing value: those who may use it have moved, or are waited for no longer.
func (c *act) retire(pending material) engine.Turned {
	if err := c.finish(pending.token, c.other); err != nil {
		return c.failed(err)
	}
	return c.then("", func(t *turn, _ *store.Txn, s rotation.Schedule) error {
		t.Confirm(t.values, s, t.Now)
		return nil
	})
}

// finish has the target refuse a value, unless it is the one in force.
func (c *act) finish(token string, m material) error {
	if m.value.Empty() || m.value.Equal(c.current.value) {
		return nil
	}
	_, err := c.call(rotator.Call{Step: rotator.Finish, Token: token, Previous: m.value})
	return err
}

// works is nil if the target takes a value.
func (c *act) works(m material) error {
	answer, err := c.call(rotator.Call{Step: rotator.Test, Token: m.token, Pending: m.value})
	if err == nil && !answer.Accepted {
		err = api.Errorf(api.Upstream, "the target refuses the value that the rotator has set")
	}
	return err
}

// refused reports whether the target refuses a value.
func (c *act) refused(m material) (bool, error) {
	answer, err := c.call(rotator.Call{Step: rotator.Test, Token: m.token, Previous: m.value, Refused: true})
	return !answer.Accepted, err
}

// prove tries that the value in force is taken, and that all before it are refused. One that is not is retired once more: a step of long ago landed, or the
// value was given up before anybody was shown it.
func (c *act) prove() engine.Turned {
	note, err := c.restore()
	if err != nil {
		return c.failed(err)
	}
	for _, f := range c.values.Former {
		was, err := materialOf(f.Password)
		if err == nil {
			err = c.bury(was)
		}
		if err != nil {
			return c.failed(err)
		}
	}
	current, other := c.values.Current, c.values.Other
	return c.then(note, func(t *turn, _ *store.Txn, _ rotation.Schedule) error {
		if !t.values.Current.Equal(current) || !t.values.Other.Equal(other) {
			return nil
		}
		t.Proven(t.values, t.Now)
		t.Buried(t.values, t.Now)
		return nil
	})
}

// restore sees that the target takes the value in force. What lessor did not have made it does not set.
func (c *act) restore() (note string, err error) {
	if c.current.value.Empty() {
		return "", nil
	}
	answer, err := c.call(rotator.Call{Step: rotator.Test, Token: c.current.token, Pending: c.current.value})
	if err != nil || answer.Accepted {
		return "", err
	}
	if c.current.token != "" {
		if _, err = c.call(rotator.Call{Step: rotator.Set, Token: c.current.token, Pending: c.current.value}); err != nil {
			return "", err
		}
	}
	return "the value in force was set again: the target did not take it", c.works(c.current)
}

// bury sees that the target refuses a value. One that was given up before it was on record is made first, lest it be one that nobody knows.
func (c *act) bury(was material) (err error) {
	if was.value.Empty() && was.token != "" && !was.retired {
		if was.value, err = c.make(was.token); err != nil {
			return err
		}
	}
	if was.value.Empty() || was.value.Equal(c.current.value) {
		return nil
	}
	dead, err := c.refused(was)
	if err != nil || dead {
		return err
	}
	if err := c.finish(cmp.Or(was.token, c.current.token), was); err != nil {
		return err
	}
	if dead, err = c.refused(was); err == nil && !dead {
		err = api.Errorf(api.Upstream, "the target takes an old value still, though the rotator has ended it")
	}
	return err
}

// then records what came of a step, unless somebody else was faster.
func (c *act) then(note string, do func(*turn, *store.Txn, rotation.Schedule) error) engine.Turned {
	account, pending := c.path, c.values.Pending
	return engine.Turned{Note: note, Then: func(a engine.Access, txn *store.Txn, jitter func() float64) error {
		t, err := turnOf(background(a), account)
		if err != nil || t == nil || t.meta == nil || !t.values.Pending.Equal(pending) {
			return err
		}
		if err := do(t, txn, t.terms.schedule().Drawn(jitter())); err != nil {
			return err
		}
		return t.save(txn)
	}}
}

// look decides whether those who hold the outgoing value are waited for any longer. No target shows who uses it: only their word is known, and the deadline.
func (t *turn) look() engine.Turned {
	account, outgoing := t.path, t.Outgoing
	return engine.Turned{Then: func(a engine.Access, txn *store.Txn, _ func() float64) error {
		records := txn.Audit
		txn.Audit = nil
		t, err := turnOf(background(a), account)
		if err != nil || t == nil || t.Phase() != rotation.Waiting || t.Outgoing != outgoing || t.Abort {
			return err // somebody else was faster, or wants it to be given up
		}
		users, err := lease.Users(a.View, a.Mount, t.path)
		if err != nil {
			return err
		}
		holding := t.Holding(users)
		t.Sighted(nil, a.Now, a.Now)
		if why := t.Weigh(len(holding), a.Mount.Leases(), a.Now); why != 0 {
			t.Close(why, holding, a.Now)
			txn.Audit = records
			txn.Audit[0].Note = "nobody is waited for any more: " + t.WaitOver()
		}
		return t.save(txn)
	}}
}

// failed records a step that failed, unless the rotator was cut off since lessor is being stopped, or its claim is lost: then the step is taken again at once.
func (c *act) failed(failure error) engine.Turned {
	if !errors.Is(c.ctx.Err(), context.Canceled) || !errors.Is(failure, rotator.ErrUnreachable) {
		return c.turn.failed(failure)
	}
	turned := c.then("it was ended before the rotator answered, and is tried again at once", func(t *turn, _ *store.Txn, _ rotation.Schedule) error {
		t.Cut()
		return nil
	})
	turned.Err = failure
	return turned
}

// failed records a step that failed: it is tried again, for ever, with the same token.
func (t *turn) failed(failure error) engine.Turned {
	account, pending := t.path, t.values.Pending
	return engine.Turned{
		Err: &api.Error{Kind: api.KindOf(failure), Cause: failure, Text: "the rotation is tried again: " + failure.Error()},
		Then: func(a engine.Access, txn *store.Txn, jitter func() float64) error {
			t, err := turnOf(background(a), account)
			if err != nil || t == nil || !t.values.Pending.Equal(pending) {
				return err
			}
			t.Failed(failure, a.Now, jitter())
			return t.save(txn)
		},
	}
}
