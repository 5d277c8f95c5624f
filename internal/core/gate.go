package core

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/audit"
	"github.com/lessor-dev/lessor/internal/engine"
	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/mount"
	"github.com/lessor-dev/lessor/internal/policy"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/token"
)

// walk is one operation on its way through the gate. It lives for one attempt.
type walk struct {
	*Core
	op        *lessor.Op
	view      store.View
	who       *caller
	suspect   *caller // whose token was no good, for the record of the refusal; nil if that is not known
	mounts    *mount.Table
	mount     *mount.Entry
	route     *engine.Route
	request   *engine.Request
	decision  policy.Decision
	reply     *engine.Reply
	warnings  []string
	tombstone string // id of the tombstone that the operation puts
	suspected *suspected
	reserved  []string // rows of leases for which room was made in a quota
	trial     *trial
}

// trial is what an operation found out at a target before its commit. It outlives the walk: a new one rests on it, and does not
// touch the target again, if the rows are the same.
type trial struct {
	begun  *audit.Record // that the target is about to be touched; nil: it was not. It asks for a record of the outcome
	passed bool
	warns  []string      // of what was passed
	rows   []store.Check // that it was about
	later  makes         // the data of an answer that is on record; nil: it is there

	lessons int // how often something was found out for its handler
}

// makes makes an answer's data.
type makes = func(context.Context) (map[string]any, error)

// Handle is the gate. It answers op, or refuses it with an *api.Error; either way the audit record of it is durable when
// it returns, but for what strangers ask in vain, or without effect, which is counted (package tally). An error that is no *api.Error is
// a fault of lessor's own. Handle is safe for concurrent use.
//
// It sees what any node of the cluster acknowledged before the operation arrived: a policy, a revocation, a new version.
func (c *Core) Handle(ctx context.Context, op *lessor.Op) (*lessor.Answer, error) {
	answer, later, err := c.handle(ctx, op)
	if err == nil && later != nil {
		if answer.Data, err = later(ctx); err != nil {
			return nil, outcome(err)
		}
	}
	return answer, err
}

// handle is Handle, but for what follows when nothing is held up by it any more: the answer's data, if later is not nil.
func (c *Core) handle(ctx context.Context, op *lessor.Op) (answer *lessor.Answer, later makes, err error) {
	if err := c.Store.Fresh(ctx); err != nil {
		c.counters.count(err)
		return nil, nil, outcome(err)
	}
	var t trial
	turn := turn{crowd: &c.crowd}
	defer turn.end()
	for more := true; more; more = turn.again(ctx) {
		answer, err := c.informed(ctx, op, &t)
		if conflict := (*store.Conflict)(nil); !errors.As(err, &conflict) {
			c.counters.count(err)
			return answer, t.later, outcome(err)
		}
	}
	if t.begun != nil {
		rec := *t.begun
		rec.Phase, rec.ErrorKind = audit.Outcome, api.Unavailable.String()
		if _, err := c.Store.Commit(context.WithoutCancel(ctx), store.Txn{Audit: []audit.Record{rec}}); err != nil {
			return nil, nil, outcome(err)
		}
	}
	return nil, nil, api.Errorf(api.Unavailable, "too many others changed the same thing meanwhile; try again")
}

// lessons is how often one operation finds out what its handler has yet to know.
const lessons = 3

// informed is attempt, again after what the handler had yet to know was found out. No View is open meanwhile.
func (c *Core) informed(ctx context.Context, op *lessor.Op, t *trial) (*lessor.Answer, error) {
	for {
		answer, err := c.attempt(ctx, op, t)
		unknown, ok := errors.AsType[*engine.Unknown](err)
		if !ok {
			return answer, err
		}
		t.lessons++
		learning, cancel := context.WithTimeout(ctx, c.ApplyTimeout)
		unknown.Learn(learning)
		cancel()
	}
}

// lesson is the error of a handler, unless it has yet to find out something and had its chances.
func (w *walk) lesson(err error) error {
	if errors.As(err, new(*engine.Unknown)) && w.trial.lessons >= lessons {
		return api.Errorf(api.Unavailable, "what this depends on cannot be found out at present; try again")
	}
	return err
}

// attempt walks op through the gate once, on one View. A *store.Conflict means that the ground moved and nothing happened.
func (c *Core) attempt(ctx context.Context, op *lessor.Op, t *trial) (answer *lessor.Answer, failure error) {
	view, err := c.Store.View()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	w := &walk{Core: c, op: op, view: view, trial: t}
	if t.begun != nil {
		ctx = context.WithoutCancel(ctx) // what came of it must be on record
	}
	defer func() {
		if failure != nil {
			w.release()
		}
	}()

	// Who asks, and for what? What fails here is refused before any policy is asked, but not unrecorded. Where no token is
	// needed, one that is no good does no harm: clients log in with the old one still in their headers.
	var unusable error
	if w.who, unusable = c.caller(view, op); unusable != nil {
		w.who, w.suspect = &caller{}, w.who
	}
	if err = w.find(); err == nil && op.Verb != lessor.List && strings.HasSuffix(op.Path, "/") {
		err = errSlash
	}
	if unusable != nil && (w.route == nil || !w.route.Open || api.KindOf(unusable) != api.Unauthenticated) {
		err = unusable
		if op.Path == "sys/wrapping/unwrap" && errors.Is(err, errToken) {
			err = errUnwrapped
		}
	} else {
		w.suspect = nil
	}
	if err != nil {
		return nil, w.refuse(ctx, err)
	}

	// May they?
	if err := w.decide(); err != nil {
		return nil, w.refuse(ctx, err)
	}
	if w.route == nil {
		if !w.astray() {
			return nil, w.refuse(ctx, w.lost())
		}
		return w.finish(ctx)
	}

	// What would it do? The handler reads the View and touches nothing.
	if err := w.plan(ctx); err != nil {
		return nil, w.refuse(ctx, w.lesson(err))
	}

	// Do it: one commit of its rows and its audit record, or two around the touch of a target.
	switch {
	case w.reply.Issue != nil:
		return w.issue(ctx)
	case w.reply.Extend != nil:
		return w.extend(ctx)
	case w.reply.Rotate != nil:
		return w.rotate(ctx)
	}
	return w.finish(ctx)
}

// find routes the path. An unknown mount is told only to somebody who holds a token.
func (w *walk) find() error {
	var err error
	if w.mounts, err = w.table(w.view); err != nil {
		return err
	}
	var rest string
	if w.mount, rest = w.mounts.Route(w.op.Path); w.mount == nil {
		if w.who.Anonymous() {
			return errMissingToken
		}
		return nil
	}
	w.request = &engine.Request{
		Op: w.op, Verb: w.op.Verb, Path: rest, Principal: &w.who.Principal, Mount: w.mount, View: w.view,
		Opener: w.Keys, Now: w.op.Time, Random: w.Random, Default: w.limits(w.mount), System: w,
	}
	w.route, w.request.Params = w.routers[w.mount.Backend()].Match(w.op.Verb, rest)
	if w.route != nil && w.route.Handler(w.op.Verb) == nil {
		w.route = &engine.Route{Pattern: w.route.Pattern, Sudo: w.route.Sudo, Open: w.route.Open, Fold: w.route.Fold}
	}
	return nil
}

// errUnwrapped is the answer to a wrapping token that is no good. Whoever was given it must suspect that somebody else unwrapped first.
var errUnwrapped = api.Errorf(api.Invalid, "wrapping token is not valid or does not exist: if it was given to you a moment ago, somebody else has unwrapped it")

// errSlash refuses what policies would take for another path than engines do. The server takes such slashes off before.
var errSlash = api.Errorf(api.Invalid, "only the paths of lists end in a slash")

var errUpgrading = api.Errorf(api.Invalid, "Upgrading from non-versioned to versioned data. This backend will be unavailable for a brief period and will resume service shortly.")

var errMissingToken = api.Errorf(api.Unauthenticated, "permission denied: missing client token; log in, or set VAULT_TOKEN")

// decide asks the policies. What it is told of the world are facts: nothing that it decides depends on anything else.
func (w *walk) decide() error {
	facts := policy.Facts{}
	if w.mount != nil {
		facts.Mount = w.mount.UUID
	}
	if w.route != nil {
		facts.Sudo, facts.Open = w.route.Sudo, w.route.Open
	}
	if w.who.Anonymous() && !facts.Open {
		return errMissingToken
	}
	if w.route != nil {
		if w.route.Exists != nil && w.op.Verb == lessor.Update {
			var err error
			if facts.Exists, err = w.route.Exists(w.request); err != nil {
				return err
			}
			facts.ExistsKnown = true
		}
	}
	acl, err := w.policies.ACL(w.view, &w.who.Principal)
	if err != nil {
		return err
	}
	w.decision = policy.Decide(acl, &w.who.Principal, w.op, facts)
	if w.decision.Denied != nil {
		return w.decision.Denied
	}
	// Where names have no case, a rule that refuses a name refuses all its spellings.
	if op := w.folded(); op != nil {
		if d := policy.Decide(acl, &w.who.Principal, op, facts); d.Denied != nil && d.Rule != policy.NoRule {
			w.decision = d
			return d.Denied
		}
	}
	return nil
}

// folded is the operation in the spelling in which the engine takes it, nil if that is how it came.
func (w *walk) folded() *lessor.Op {
	if w.route == nil || !w.route.Fold {
		return nil
	}
	base := len(w.mount.Path)
	if base > len(w.op.Path) {
		return nil
	}
	path := w.op.Path[:base] + strings.ToLower(w.op.Path[base:])
	if path == w.op.Path {
		return nil
	}
	op := *w.op
	op.Path = path
	return &op
}

// lost is the answer to somebody who may go where nothing is. Clients tell by its first words whether there is no mount, which some of
// them then make, or no such path in one.
func (w *walk) lost() error {
	if w.mount == nil {
		return api.Errorf(api.NotFound, "no handler for route %q. route entry not found.", w.op.Path)
	}
	return api.Errorf(api.NotFound, "unsupported path: the %s engine at %q has no %q", w.mount.Type, w.mount.Path, w.request.Path)
}

// astray lets the engine tell somebody who may go where nothing is what they may have meant.
func (w *walk) astray() bool {
	if w.mount == nil {
		return false
	}
	guide, ok := w.Backends[w.mount.Backend()].(engine.Guide)
	if ok {
		w.route = &engine.Route{}
		w.reply = &engine.Reply{Status: 404, Warnings: []string{guide.Astray(w.mount, w.op.Verb, w.request.Path)}}
	}
	return ok
}

// plan lets the engine say what the operation would do.
func (w *walk) plan(ctx context.Context) error {
	r := w.request
	r.Grant, r.Verb = w.decision.Grant, w.decision.Grant.Verb()
	handler := w.route.Handler(r.Verb)
	if handler == nil {
		return api.Errorf(api.Unsupported, "unsupported operation: %q has no %s", w.op.Path, r.Verb)
	}
	if w.mount.Upgrading {
		return errUpgrading
	}
	unknown, err := r.Bind(w.route)
	if err != nil {
		return err
	}
	if len(unknown) > 0 {
		w.warnings = append(w.warnings, engine.Ignored(unknown))
	}
	if err := w.owned(); err != nil {
		return err
	}
	if err := w.barred(); err != nil {
		return err
	}
	w.reply, err = handler(ctx, r)
	if err != nil {
		return w.failed(err)
	}
	if w.reply == nil {
		w.reply = &engine.Reply{}
	}
	if w.op.WrapTTL > 0 && (w.reply.Raw != nil || w.reply.Later != nil || w.reply.Feed != nil || w.who.Anonymous() && w.reply.Login == nil) {
		return api.Errorf(api.Invalid, "this answer cannot be wrapped") // nor does who proves nothing leave anything behind
	}
	return nil
}

// finish commits what needs no target, or a look at one first, and answers.
func (w *walk) finish(ctx context.Context) (*lessor.Answer, error) {
	if w.reply.First != nil {
		if err := w.first(ctx); err != nil {
			return nil, err
		}
		ctx = context.WithoutCancel(ctx)
	}
	txn, rec := &w.reply.Txn, w.record(w.last())
	answer, err := w.answer(ctx, txn, &rec)
	if err != nil {
		return nil, w.refuse(ctx, err)
	}
	if err := w.spend(txn); err != nil {
		return nil, w.refuse(ctx, err)
	}
	if err := w.wrap(txn, answer, &rec); err != nil {
		return nil, err
	}
	if !w.continues(txn) && (!w.idle(txn, &rec) || !w.counted(nil, rec)) {
		if err := w.commit(ctx, txn, rec); err != nil {
			return nil, err
		}
	}
	w.welcomed()
	if txn.Urgent {
		w.reaper.Nudge()
		w.demandsSoon() // a lease that was revoked may leave one
	}
	if w.reply.Tidy {
		w.tidySoon()
	}
	if w.reply.Then != nil {
		if err := w.reply.Then(ctx); err != nil {
			return nil, err
		}
	}
	if w.reply.Do != nil {
		if w.Fenced() {
			answer.Warnings = append(answer.Warnings, "this is in force, but the store is a restored copy: it touches no target until an operator resumes it")
			return answer, nil
		}
		waiting, cancel := context.WithTimeout(ctx, w.Patience)
		defer cancel()
		if err := w.reply.Do(waiting); err != nil {
			return nil, err
		}
	}
	w.trial.later = w.reply.Later
	return answer, err
}

// first has the target touched that an operation depends on, once that is on record.
func (w *walk) first(ctx context.Context) error {
	if w.Fenced() {
		w.warnings = append(w.warnings, "this was not tried: the store is a restored copy, which touches no target until an operator resumes it")
		return nil
	}
	if w.trial.passed && slices.Equal(w.trial.rows, w.reply.Txn.Checks) {
		w.warnings = append(w.warnings, w.trial.warns...)
		return nil
	}
	rec := w.record(audit.Begun)
	txn := store.Txn{Audit: []audit.Record{rec}}
	w.who.ground(w.view, &txn)
	if _, err := w.Store.Commit(ctx, txn); err != nil {
		return err
	}
	w.trial.begun, w.trial.passed, w.trial.rows = &rec, false, slices.Clone(w.reply.Txn.Checks)
	touching, cancel := context.WithTimeout(ctx, w.ApplyTimeout)
	defer cancel()
	warns, err := w.reply.First(touching)
	if err != nil {
		return w.refuse(context.WithoutCancel(ctx), err)
	}
	w.trial.passed, w.trial.warns = true, warns
	w.warnings = append(w.warnings, warns...)
	return nil
}

// last is the phase of the record that an operation ends with.
func (w *walk) last() audit.Phase {
	if w.trial != nil && w.trial.begun != nil {
		return audit.Outcome
	}
	return audit.Done
}

// answer turns the reply into what the client reads, and adds to txn what it rests on: a lease on what it shows, a token
// that it gives.
func (w *walk) answer(ctx context.Context, txn *store.Txn, rec *audit.Record) (*lessor.Answer, error) {
	r := w.reply
	a := &lessor.Answer{
		Status: r.Status, Data: r.Data,
		Flat: r.Flat, Bare: r.Bare, Verbatim: r.Wrapped,
	}
	if !w.route.Open && r.Status != 404 {
		a.Mount = w.mount.Type
	}
	a.Feed = r.Feed
	if r.Raw != nil {
		a.Raw, a.RawType = r.Raw.Write, r.Raw.Type
	}
	if w.route.Owned && w.request.Verb == lessor.Read && a.Data != nil {
		if name, _ := w.OwnerOf(w.op.Path); name != "" {
			a.Data["owner"] = name
		}
	}
	var err error
	switch {
	case r.Login != nil:
		a.Auth, err = w.login(ctx, txn, rec, r.Login)
		a.Mount = "" // as Vault
	case r.Mint != nil:
		a.Auth, err = w.give(ctx, txn, rec, r.Mint)
	case r.Renewed != nil:
		a.Auth = r.Renewed
	case r.Static != nil:
		a.Lease, err = w.hold(txn, rec, r.Static)
	case r.Unwrapped != "":
		err = w.rehold(txn, r.Unwrapped)
	}
	a.Warnings = append(w.warnings, r.Warnings...)
	return a, err
}

// spend takes one use off a token whose uses are counted. With the last one the token ends, and its leases with it. What wrapping tokens
// and join secrets are good for ends them itself; to be refused does not.
func (w *walk) spend(txn *store.Txn) error {
	t := w.who.token
	if t == nil || !t.Limited || t.Wrapping || t.Join || w.route != nil && w.route.Open {
		return nil
	}
	after := *t
	after.NumUses--
	if touches(txn, w.who.row.Key) {
		return nil // the operation changes the token itself: its revocation, say
	}
	if after.NumUses > 0 {
		after.Save(txn, w.who.row, false)
		return nil
	}
	txn.Require(w.who.row)
	after.Drop(txn)
	_, err := w.Bury(txn, lease.Selector{Kind: lease.ByToken, Value: t.Hash}, "its token was used up")
	return err
}

// commit makes the walk's rows and its record durable, in one.
func (w *walk) commit(ctx context.Context, txn *store.Txn, rec audit.Record) error {
	if len(txn.Puts)+len(txn.Deletes)+len(txn.Ranges) > 0 || w.reply != nil && (w.reply.Login != nil || w.reply.Mint != nil) {
		w.who.ground(w.view, txn)
	}
	txn.Audit = append(txn.Audit, rec)
	_, err := w.Store.Commit(ctx, *txn)
	return err
}

// refuse records that the operation did not happen, and why, and returns the error for the client. What strangers are refused
// is counted rather than recorded one by one: it has no effect and shows nothing, and a flood must not fill the disk.
func (w *walk) refuse(ctx context.Context, cause error) error {
	if errors.As(cause, new(*store.Conflict)) || errors.As(cause, new(*engine.Unknown)) {
		return cause // it is not over
	}
	rec := w.record(w.last())
	rec.ErrorKind = api.KindOf(cause).String()
	rec.Note = note(cause)
	txn := &store.Txn{Audit: []audit.Record{rec}}
	if w.suspected != nil && w.suspected.locks {
		if err := w.lock(ctx, txn); err != nil {
			return err
		}
		return cause
	}
	if w.counted(cause, rec) {
		return cause
	}
	if api.KindOf(cause) != api.Unauthenticated {
		if err := w.spend(txn); err != nil {
			return err
		}
	}
	if _, err := w.Store.Commit(ctx, *txn); err != nil {
		return err
	}
	return cause
}

// record is what the audit trail keeps of the operation.
func (w *walk) record(phase audit.Phase) audit.Record {
	op, who := w.op, w.who
	if w.suspect != nil {
		who = w.suspect
	}
	rec := audit.Record{
		Time: op.Time, Request: op.ID, Operation: op.Verb.String(), Namespace: op.Namespace, Path: w.recorded(), Phase: phase,
		Entity: who.Entity, Name: who.DisplayName, Alias: who.Alias.Name, Accessor: who.Accessor, Role: who.Role,
		Instance: op.Instance, System: who.System,
		Granted: w.decision.Grant.Valid(), Rule: w.decision.Rule, Policy: w.decision.Policy, PolicyVersion: w.decision.Version,
	}
	if len(op.Headers) > 0 {
		if kept, err := w.headersOf(w.view); err == nil {
			rec.Headers = kept.Keep(w.Keys, op.Headers)
		}
	}
	if op.Client.IsValid() {
		rec.Client = op.Client.String()
	}
	for _, g := range who.Groups {
		rec.Groups = append(rec.Groups, g.Name)
	}
	if v := w.decision.Grant.Verb(); v != 0 {
		rec.Operation = v.String()
	}
	rec.Tombstone = w.tombstone
	if r := w.reply; r != nil {
		rec.Secrets = r.Shown
		if r.Note != "" {
			rec.Note = w.veiled(r.Note)
		}
		if r.Lease != "" {
			rec.Lease = r.Lease
		}
	}
	return rec
}

// recorded is the path as the audit record has it: tokens that clients put into URLs are not kept, but as a short hash.
func (w *walk) recorded() string {
	path := w.veiled(w.op.Path)
	if w.mount == nil || w.mount.Type != "token" {
		return path
	}
	segments := strings.Split(path, "/")
	if at := strings.Count(w.mount.Path, "/"); len(segments) > at+1 {
		switch segments[at] {
		case "lookup", "renew", "revoke", "revoke-orphan", "lookup-self", "renew-self", "revoke-self": // a custom id has no prefix
			for i := at + 1; i < len(segments); i++ {
				if segments[i] != "" && !strings.HasPrefix(segments[i], hashMark) {
					segments[i] = w.hashed(segments[i])
				}
			}
		}
	}
	return strings.Join(segments, "/")
}

// tokens finds what looks like one of lessor's tokens, wherever it stands.
var tokens = regexp.MustCompile(regexp.QuoteMeta(token.ServicePrefix) + `[\w-]+|` + regexp.QuoteMeta(token.BatchPrefix) + `[\w-]+`)

// hashMark begins what stands in an audit record for a token.
const hashMark = "hash:"

func (c *Core) hashed(id string) string { return hashMark + token.InstanceOf(c.Keys.TokenHash(id)) }

// veiled is a text that clients had a part in, with hashes in the place of tokens.
func (c *Core) veiled(text string) string {
	if !strings.Contains(text, token.ServicePrefix) && !strings.Contains(text, token.BatchPrefix) {
		return text
	}
	return tokens.ReplaceAllStringFunc(text, c.hashed)
}

// Recorded is the path of an operation under way as the audit record will have it.
func (c *Core) Recorded(op *lessor.Op) (string, error) {
	view, err := c.Store.View()
	if err != nil {
		return "", err
	}
	defer view.Close()
	w := &walk{Core: c, op: op, view: view, who: &caller{}}
	if w.mounts, err = c.table(view); err != nil {
		return "", err
	}
	w.mount, _ = w.mounts.Route(op.Path)
	return w.recorded(), nil
}

// note is a fixed text for the audit record of a refusal; never the error's own, which may quote the request.
func note(err error) string {
	switch {
	case errors.Is(err, errToken):
		return "unusable token"
	case errors.Is(err, errElsewhere):
		return "token used from an address that it is not bound to"
	case errors.Is(err, errDisabled):
		return "token of a disabled entity"
	case errors.Is(err, errUnwrapped):
		return "wrapping token unknown or used: suspect that somebody else unwrapped"
	case errors.Is(err, errMissingToken):
		return "no token"
	case errors.Is(err, errLocked):
		return "locked out"
	}
	return ""
}

// Outcome puts the store's errors into the client's words, as Handle does.
func Outcome(err error) error { return outcome(err) }

// outcome puts the store's errors into the client's words.
func outcome(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(*api.Error)):
		return err
	case errors.Is(err, store.ErrClosed): // what else it may be is why
		return &api.Error{Kind: api.Unavailable, Text: "lessor's store is closed at present; try again", Cause: err}
	case errors.Is(err, store.ErrFull):
		return &api.Error{Kind: api.Unavailable, Text: "the disk is almost full: only revocations are accepted until an operator makes room", Cause: err}
	case errors.Is(err, store.ErrUncertain):
		return &api.Error{Kind: api.Uncertain, Text: "whether this was done is unknown: read it back before trying again", Cause: err}
	case errors.Is(err, store.ErrOutdated):
		return &api.Error{Kind: api.Unavailable, Text: "this server is older than what its store takes: nothing was done; ask another server, until this one is upgraded", Cause: err}
	case errors.Is(err, store.ErrUnreachable):
		return &api.Error{Kind: api.Unavailable, Text: "lessor's own database cannot be reached: nothing was done; try again", Cause: err}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &api.Error{Kind: api.Unavailable, Text: "the request ended before it was done", Cause: err}
	}
	return fmt.Errorf("core: %w", err)
}

// limits are the ttl bounds in force at a mount.
func (c *Core) limits(e *mount.Entry) engine.Limits {
	l := engine.Limits{TTL: c.DefaultTTL, MaxTTL: c.MaxTTL}
	if e.Config.DefaultTTL > 0 {
		l.TTL = e.Config.DefaultTTL
	}
	if e.Config.MaxTTL > 0 {
		l.MaxTTL = e.Config.MaxTTL
	}
	l.TTL = min(l.TTL, l.MaxTTL)
	return l
}
