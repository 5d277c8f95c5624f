package system

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/rotation"
	"github.com/lessor-dev/lessor/internal/store"
)

// rotationRoutes show how rotations stand and what the next one would do, give one up, and end its wait. A path is in full, and that of the secret or that
// of what is configured: database/static-creds/app, database/static-roles/app.
func (b *Backend) rotationRoutes() []engine.Route {
	return []engine.Route{
		{Pattern: "lessor/rotation/status", Help: "rotations that are under way, fail or are late; or all accounts that are rotated", Ops: read(b.rotations), Fields: []engine.Field{
			{Name: "all", Type: engine.Bool, Help: "accounts with nothing under way, too"},
		}},
		{Pattern: "lessor/rotation/status/{path...}", Help: "how the rotation of one secret stands, and who has not moved yet", Ops: read(b.rotationStatus)},
		{Pattern: "lessor/rotation/plan/{path...}", Help: "what the next rotation of a secret will do to whom; touches nothing", Ops: read(b.rotationPlan)},
		{Pattern: "lessor/rotation/abort/{path...}", Help: "give up the rotation of a secret that is under way: readers are shown the password before it", Ops: update(b.abortRotation)},
		{Pattern: "lessor/rotation/retire/{path...}", Help: "wait no longer for those who hold the old password of a secret: it is retired, and they are named", Ops: update(b.retireNow)},
	}
}

// rotating is an account that is rotated, as of a request's View.
type rotating struct {
	*rotation.Account
	row   store.Row
	mount *mount.Entry
	terms *engine.Terms
}

// rotating finds the account that a path is about.
func (b *Backend) rotating(r *engine.Request, path string) (*rotating, error) {
	m, rest := mountOf(r, path)
	if m == nil {
		return nil, notFound("no mount serves %q", path)
	}
	rotator, ok := b.Backends[m.Backend()].(engine.Explainer)
	if !ok {
		return nil, notFound("nothing at %q is rotated: its engine is of type %q", m.Path, m.Type)
	}
	name, ok := rotator.AccountOf(rest)
	if !ok {
		return nil, notFound("%q is not the path of something that is rotated, such as %sstatic-creds/NAME", path, m.Path)
	}
	return explained(r, m, rotator, name)
}

func explained(r *engine.Request, m *mount.Entry, rotator engine.Explainer, name string) (*rotating, error) {
	terms, err := rotator.Terms(r.View, m, name)
	if err != nil {
		return nil, err
	}
	if terms == nil {
		return nil, notFound("there is no account for %q at %q", name, m.Path)
	}
	a, row, err := rotation.Load(r.View, m.Namespace, m.UUID, name)
	if err != nil {
		return nil, err
	}
	return &rotating{Account: a, row: row, mount: m, terms: terms}, nil
}

// path is what the account is called to people.
func (t *rotating) path() string {
	if t.terms.Reads != "" {
		return t.mount.Path + t.terms.Reads
	}
	return t.mount.Path + t.terms.Path
}

// users are all that may use the secret, whatever version.
func (t *rotating) users(r *engine.Request) ([]lease.User, error) {
	if t.terms.Reads == "" {
		return nil, nil
	}
	return lease.Users(r.View, t.mount, t.terms.Reads)
}

// slot is the name of one of the accounts at the target.
func (t *rotating) slot(i uint8) string {
	if int(i) < len(t.terms.Accounts) {
		return t.terms.Accounts[i]
	}
	return ""
}

func (b *Backend) rotations(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	out := []any{}
	total := 0
	reply := &engine.Reply{}
	for _, m := range r.System.Mounts() {
		rotator, ok := b.Backends[m.Backend()].(engine.Explainer)
		if !ok {
			continue
		}
		for a, err := range rotation.Accounts(r.View, rotation.Mount{Namespace: m.Namespace, UUID: m.UUID}) {
			total++
			if damage, ok := errors.AsType[*store.Damage](err); ok {
				if len(reply.Warnings) < mostLeases {
					_, _, row := store.SplitMountKey(damage.Key.Name)
					name, _ := rotation.Named(row)
					reply.Warnings = append(reply.Warnings, fmt.Sprintf("how the rotation of the account %q at %q stands cannot be read, and it does not go on: its row is damaged", name, m.Path))
				}
				continue
			}
			if err != nil {
				return nil, err
			}
			if len(out) == mostLeases || !r.Bool("all") && a.Phase() == rotation.Idle && !a.Overdue(r.Now, late) {
				continue
			}
			t, err := explained(r, m, rotator, a.Name)
			if api.KindOf(err) == api.NotFound {
				continue // its role is gone, and so it will be
			}
			if err != nil {
				return nil, err
			}
			out = append(out, t.summary(r.Now))
		}
	}
	reply.Data = map[string]any{"rotations": out, "accounts": total}
	return reply, nil
}

// late is how long after it was due a rotation is worth to be told of.
const late = time.Minute

// summary is how a rotation stands, in a line.
func (t *rotating) summary(now time.Time) map[string]any {
	data := map[string]any{
		"path": t.path(), "step": t.Phase().String(), "since": stamp(t.Since), "version": t.Version, "outgoing_version": nil, "strategy": t.strategy(),
		"holders_behind": nil, "deadline": stamp(t.Deadline()), "due": stamp(t.Due), "last_rotation": stamp(t.Rotated), "attempts": int(t.Attempts),
		"last_error": t.LastError, "overdue": t.Overdue(now, late),
	}
	if t.Outgoing != 0 {
		data["outgoing_version"] = t.Outgoing
	}
	if t.Phase() == rotation.Waiting {
		data["holders_behind"] = int(t.Behind)
	}
	return data
}

func (t *rotating) strategy() string {
	if t.terms.Strategy != "" {
		return t.terms.Strategy
	}
	if len(t.terms.Accounts) == 2 {
		return "alternating"
	}
	return "single"
}

func (b *Backend) rotationStatus(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, err := b.rotating(r, r.Param("path"))
	if err != nil {
		return nil, err
	}
	data, err := t.status(r)
	if err != nil {
		return nil, err
	}
	return &engine.Reply{Data: data}, nil
}

// status is all that is known of a rotation.
func (t *rotating) status(r *engine.Request) (map[string]any, error) {
	data := t.summary(r.Now)
	data["account"], data["outgoing_account"] = t.slot(t.Slot), nil
	data["pending"], data["aborting"], data["given_up"], data["cause"] = t.Pending != 0, t.Abort, t.Back, t.Cause
	data["next_attempt"], data["holders"], data["sessions"], data["sessions_seen"] = nil, []any{}, sessions(t.Seen), stamp(t.SeenAt)
	data["next_look"], data["last_look"], data["quiet_since"], data["quiet_needed"], data["wait_over"] = nil, stamp(t.Looked), stamp(t.QuietSince), nil, t.WaitOver()
	data["stragglers"], data["stragglers_unnamed"] = stragglers(t.Account), int(t.Beyond)
	if r.Now.Before(t.Retry) {
		data["next_attempt"] = stamp(t.Retry)
	}
	if t.Outgoing != 0 {
		data["outgoing_account"] = t.slot(1 - t.Slot)
	}
	if t.Phase() != rotation.Waiting {
		return data, nil
	}
	data["next_look"], data["quiet_needed"] = stamp(t.Look), whole(t.QuietFor)
	users, err := t.users(r)
	if err != nil {
		return nil, err
	}
	behind := t.Holding(users)
	data["holders_behind"] = len(behind)
	holders := []any{}
	for _, u := range behind[:min(len(behind), mostLeases)] {
		holders = append(holders, user(r, &u))
	}
	data["holders"] = holders
	return data, nil
}

// user is who may use a secret, as people are told.
func user(r *engine.Request, u *lease.User) map[string]any {
	h := named(r, u.Holder)
	return map[string]any{
		"entity_id": h.Entity, "display_name": h.Name, "alias": h.Alias, "instance": h.Instance, "owner": u.Owner, "lease_id": u.Lease,
		"oldest": u.Oldest, "newest": u.Newest, "acknowledged": u.Acked, "last_read": stamp(u.Last), "lapsed": stamp(u.Lapsed),
		"revoked": u.Revoked,
	}
}

// named is a holder by the entity that it is now: the one that read may have been merged since.
func named(r *engine.Request, h lease.Holder) lease.Holder {
	if survivor, err := r.System.EntityID(h.Entity); err == nil {
		h.Entity = survivor
	}
	return h
}

func sessions(seen []rotation.Seen) []any {
	out := []any{}
	for _, s := range seen {
		out = append(out, map[string]any{"client": s.Client, "application": s.Application, "count": int(s.Count), "since": stamp(s.Since)})
	}
	return out
}

func stragglers(a *rotation.Account) []any {
	out := []any{}
	for _, s := range a.Stragglers {
		one := map[string]any{
			"entity_id": s.Holder.Entity, "display_name": s.Holder.Name, "alias": s.Holder.Alias, "instance": s.Holder.Instance, "owner": s.Owner, "lease_id": s.Lease,
			"oldest": s.Oldest, "newest": s.Newest, "last_read": stamp(s.Last), "lapsed": stamp(s.Lapsed),
		}
		if s.Lease == "" {
			one = map[string]any{"client": s.Client, "application": s.Application, "count": int(s.Count), "since": stamp(s.Since), "last_seen": stamp(s.Last)}
		}
		out = append(out, one)
	}
	return out
}

// How it will be known that a holder has moved.
const (
	byWord     = "it acknowledges"
	byEvidence = "only by evidence: the target shows no session of the old account for long enough"
	byDeadline = "only by deadline: the target does not show who uses what"
	byNothing  = "not at all: nobody is waited for"
	byLeaving  = "it is not waited for: its lease was given back, or revoked"
)

// rotationPlan says what the next rotation will do. It touches nothing.
func (b *Backend) rotationPlan(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, err := b.rotating(r, r.Param("path"))
	if err != nil {
		return nil, err
	}
	s, alternates := t.terms.Schedule, t.strategy() != "single"
	data := map[string]any{
		"path": t.path(), "strategy": t.strategy(), "accounts": t.terms.Accounts, "account": t.slot(t.Slot), "version": t.Version, "step": t.Phase().String(),
		"rotation_period": nil, "rotation_schedule": nil, "rotation_window": nil, "rotation_jitter": whole(s.Jitter), "due": stamp(t.Due), "cause": t.Cause,
		"rotation_grace": nil, "rotation_quiet": nil, "rotation_on_lease_end": t.terms.CheckOut,
	}
	switch {
	case s.Cron != "":
		data["rotation_schedule"], data["rotation_window"] = s.Cron, whole(s.Window)
	case s.Period > 0:
		data["rotation_period"] = whole(s.Period)
	}
	deadline := time.Time{} // when who has not moved is locked out; zero: never by itself
	switch {
	case alternates:
		if data["rotation_grace"], data["rotation_quiet"] = whole(t.Grace), whole(t.QuietFor); t.Grace > 0 && !t.Due.IsZero() {
			deadline = later(t.Due, r.Now).Add(t.Grace)
		}
	case !t.Due.IsZero():
		deadline = later(t.Due, r.Now)
	}
	users, err := t.users(r)
	if err != nil {
		return nil, err
	}
	holders, acknowledge, silent := []any{}, 0, 0
	for _, u := range users {
		if u.Born != t.Born || u.Newest < t.Version {
			continue // it holds nothing that is in force
		}
		one := user(r, &u)
		one["moves"], one["breaks_at"] = byNothing, stamp(deadline)
		switch {
		case u.Revoked:
			one["moves"], one["breaks_at"] = byLeaving, nil
		case alternates:
			says, err := acknowledges(r.View, t.mount, &u)
			if err != nil {
				return nil, err
			}
			if one["moves"] = byEvidence; t.Blind {
				one["moves"] = byDeadline
			}
			if says {
				one["moves"], one["breaks_at"] = byWord, nil
			}
		}
		switch one["moves"] {
		case byLeaving:
		case byWord:
			acknowledge++
		default:
			silent++
		}
		if len(holders) < mostLeases {
			holders = append(holders, one)
		}
	}
	data["holders"], data["acknowledging"], data["silent"], data["deadline"] = holders, acknowledge, silent, stamp(deadline)
	reply := &engine.Reply{Data: data}
	reply.Warnings = t.forewarned(silent)
	return reply, nil
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// acknowledges reports whether a holder is one that says what it uses: it has before, or renews, as lessor's own consumers do.
func acknowledges(v store.View, m *mount.Entry, u *lease.User) (bool, error) {
	if u.Acked != 0 || !u.Lapsed.IsZero() {
		return u.Lapsed.IsZero(), nil
	}
	l, _, err := lease.Get(v, &lease.Lease{ID: u.Lease, Namespace: m.Namespace, Mount: m.UUID})
	return l != nil && l.Renewable, err
}

// forewarned says in words what a plan's numbers come to.
func (t *rotating) forewarned(silent int) (all []string) {
	alternates := t.strategy() != "single"
	lockedOut, doNot := fmt.Sprintf("%d holders are locked out when it is rotated, until they read again", silent), fmt.Sprintf("%d holders do not acknowledge", silent)
	if silent == 1 {
		lockedOut, doNot = "1 holder is locked out when it is rotated, until it reads again", "1 holder does not acknowledge"
	}
	switch {
	case silent == 0:
	case !alternates && t.terms.Strategy != "":
		all = append(all, lockedOut+": its strategy is single; with overlap nobody is")
	case !alternates:
		all = append(all, lockedOut+": it has one account; give the role usernames, two that take turns, and nobody is")
	case t.Grace > 0:
		all = append(all, fmt.Sprintf("%s: whoever of them still uses the old password %s after the rotation is locked out then", doNot, t.Grace))
	case t.Blind:
		all = append(all, doNot+", and the target does not show who uses what: the old value stays in force until somebody says otherwise; give the rotation a rotation_grace")
	default:
		all = append(all, fmt.Sprintf("%s: the old password stays in force until the target has shown no use of it for %s", doNot, t.QuietFor))
	}
	if alternates && t.Strangers() {
		all = append(all, "others than the holders on record may use the password in force (it was not made by lessor, or handed out without a lease, or this is a restored copy), so it is retired by evidence (where the target shows any) or deadline only")
	}
	all = append(all, rotation.NoLeaseEnds(t.terms.CheckOut, t.mount)...)
	if !t.mount.Leases() {
		all = append(all, "the mount keeps no leases of its readers (lease=off): nobody is known to have moved but by evidence")
	}
	return all
}

// abortRotation has the rotation under way given up: the background does it at once, since it opens passwords.
func (b *Backend) abortRotation(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, err := b.rotating(r, r.Param("path"))
	if err != nil {
		return nil, err
	}
	if why, ok := t.Abortable(); !ok {
		return nil, api.Errorf(api.Invalid, "%s cannot be given up: %s", t.path(), why)
	}
	again := t.Phase() == rotation.Setting && t.Demanded()
	t.Abort, t.Retry = true, time.Time{}
	reply, err := t.changed(r)
	if again && err == nil {
		reply.Warnings = append(reply.Warnings, "a rotation is demanded ("+t.Cause+"), and begins anew at once, with another password")
	}
	return reply, err
}

// retireNow ends the wait for those who hold the old password.
func (b *Backend) retireNow(_ context.Context, r *engine.Request) (*engine.Reply, error) {
	t, err := b.rotating(r, r.Param("path"))
	if err != nil {
		return nil, err
	}
	switch t.Phase() {
	case rotation.Waiting:
	case rotation.Retiring, rotation.Proving:
		return t.changed(r)
	default:
		return nil, api.Errorf(api.Invalid, "nobody is waited for at %s", t.path())
	}
	users, err := t.users(r)
	if err != nil {
		return nil, err
	}
	t.Abort = false
	t.Close(rotation.Told, t.Holding(users), r.Now)
	return t.changed(r)
}

// changed saves the account, and answers how it stands now.
func (t *rotating) changed(r *engine.Request) (*engine.Reply, error) {
	reply := &engine.Reply{}
	if err := rotation.Save(&reply.Txn, t.row, t.Account); err != nil {
		return nil, err
	}
	var err error
	reply.Data, err = t.status(r)
	return reply, err
}
