// Package rotation changes passwords of accounts at targets so that lessor always knows one that logs in. What an account's
// state and its passwords are, and when something is to be done, is decided here, purely; Worker finds what is due.
//
// A rotation is two commits around the touch of a target:
//
//	Begin     the new password is recorded as pending, sealed, with the audit record that the target is about to be touched
//	          the target is told, and the new password tried
//	Confirm   pending is in force; what was before is kept until it is proven dead
//
// What dies in between leaves a pending password. It is not replaced by another: whoever comes next brings that same one into force, as
// often as it takes, so that an attempt which lands late does no harm. Only one that the target refused, each time that it was asked, is
// withdrawn (Account.Withdraw): a target that wants other passwords would refuse it for ever. It is kept, too, until it is proven dead.
//
// Where two accounts with equal rights take turns (Account.Pair) nobody is broken by that: the pending password is the other account's, Confirm
// promotes it, and what was in force stays so while its holders move. handover.go has what follows:
//
//	Wait      until everybody is known to have moved, the target shows no use, or a deadline has passed
//	Retire    the outgoing account gets a password that nobody is told: recorded, set, tried like any other
//	Prove     each password that the outgoing account had is refused
//
// Only then the next rotation begins: two of a pair never overlap.
package rotation

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lessor-dev/lessor/internal/lessor"
	"github.com/lessor-dev/lessor/internal/store"
)

// Watch is how long after a rotation an attempt that never reported back may still land. Then the password in force is tried once more, which proves
// that those before it are dead.
const Watch = 2 * time.Minute

// Head is the start that whoever begins has before somebody else takes over what looks abandoned.
const Head = 5 * time.Second

// Account is how rotation stands with one account, or with two that take turns: a row of store.Engine, free of secrets. CBOR keys are on disk:
// never renumber, only append.
type Account struct {
	Name      string    `cbor:"-"`                     // within the mount: "static/app", "root/pg"
	Target    string    `cbor:"1,keyasint"`            // whose queue it stands in
	Version   uint64    `cbor:"2,keyasint,omitempty"`  // of the password in force; 0: none is known yet
	Pending   uint64    `cbor:"3,keyasint,omitempty"`  // of the password on its way; 0: none
	Rotated   time.Time `cbor:"4,keyasint,omitempty"`  // when Version came into force through lessor; zero: it did not
	Due       time.Time `cbor:"5,keyasint,omitempty"`  // of the next rotation; zero: none comes by itself
	Check     time.Time `cbor:"6,keyasint,omitempty"`  // when Version is to be tried; zero: there is nothing to prove
	Retry     time.Time `cbor:"7,keyasint,omitempty"`  // not before this, after a failure
	Attempts  uint32    `cbor:"8,keyasint,omitempty"`  // that failed, one after the other
	LastError string    `cbor:"9,keyasint,omitempty"`  // of the last, free of secrets
	Next      time.Time `cbor:"10,keyasint,omitempty"` // where it stands in the queue; zero: it does not
	New       bool      `cbor:"11,keyasint,omitempty"` // made a moment ago, and withdrawn if its target was not touched
	Born      uint64    `cbor:"12,keyasint,omitempty"` // when it was made, Unix microseconds: tells accounts apart that had the same name in turn
	Loose     uint32    `cbor:"13,keyasint"`           // attempts at Pending that are under way, or of which nobody knows how they ended

	Cause   string    `cbor:"14,keyasint,omitempty"` // of the rotation that is due or begun, where that is not its schedule (Demand)
	Since   time.Time `cbor:"15,keyasint,omitempty"` // when its phase began; zero: before that was kept
	Foreign uint64    `cbor:"16,keyasint,omitempty"` // the last version that others than its readers on record may know (Import, Lent, Recovered, Load)
	Dead    uint64    `cbor:"17,keyasint,omitempty"` // versions up to this one are proven dead
	Settled uint64    `cbor:"18,keyasint,omitempty"` // and up to this one their holders are told of it
	Abort   bool      `cbor:"19,keyasint,omitempty"` // somebody wants the rotation under way to be given up (GiveUp)

	Pair       bool          `cbor:"20,keyasint,omitempty"` // two accounts take turns
	Grace      time.Duration `cbor:"21,keyasint,omitempty"` // with Pair: how long holders are waited for; 0: for ever
	QuietFor   time.Duration `cbor:"22,keyasint,omitempty"` // with Pair: how long no use must be seen to be evidence that there is none
	Slot       uint8         `cbor:"23,keyasint,omitempty"` // which of the two Version is of, 0 or 1
	From       uint64        `cbor:"24,keyasint,omitempty"` // version as which the password in force was handed out first; 0: Version
	Outgoing   uint64        `cbor:"25,keyasint,omitempty"` // version of the other account that is handed over from; 0: none
	OutFrom    uint64        `cbor:"26,keyasint,omitempty"` // From of Outgoing
	Back       bool          `cbor:"27,keyasint,omitempty"` // it is handed back: the rotation was given up while it waited
	Over       Over          `cbor:"28,keyasint,omitempty"` // why the wait for holders of Outgoing ended; 0: it has not
	Retired    time.Time     `cbor:"29,keyasint,omitempty"` // since when the outgoing account has a password that nobody is told; zero: it has not
	Look       time.Time     `cbor:"30,keyasint,omitempty"` // of the next look at who uses it, while it is waited for
	Looked     time.Time     `cbor:"31,keyasint,omitempty"` // when the target was asked in the last one that it answered
	Looks      uint32        `cbor:"32,keyasint,omitempty"` // that showed nothing new, one after the other
	Behind     uint32        `cbor:"33,keyasint,omitempty"` // holders that had not moved at the last look
	QuietSince time.Time     `cbor:"34,keyasint,omitempty"` // since when each look has shown no use; zero: the last one did
	Seen       []Seen        `cbor:"35,keyasint,omitempty"` // who used it at the last look that showed use, MostSeen at most
	SeenAt     time.Time     `cbor:"36,keyasint,omitempty"` // when that was
	Stragglers []Straggler   `cbor:"37,keyasint,omitempty"` // who had not moved when the wait ended last, MostStragglers at most
	Beyond     uint32        `cbor:"38,keyasint,omitempty"` // how many more
	Blind      bool          `cbor:"39,keyasint,omitempty"` // with Pair: the target does not show who uses it, so that it is no evidence that nothing is seen

	later map[uint64]cbor.RawMessage // what a later version put into the row: it is kept
}

// known is the greatest CBOR key of Account.
const known = 39

// Passwords are the secrets of an Account: a row of store.Secrets.
type Passwords struct {
	Current lessor.Secret // Account.Version
	Pending lessor.Secret // Account.Pending
	Other   lessor.Secret // of a Pair's account that Version is not of: Account.Outgoing, or one that nobody is told; empty: it was never set
	Former  []Former      // newest last
}

// Former is a password that was in force, or may have come into force, and may be again if an attempt of long ago lands.
type Former struct {
	Version  uint64 // 0: lessor never knew it to be in force, or told nobody
	Slot     uint8  // which of a Pair's accounts it is of
	Password lessor.Secret
	Until    time.Time // when it was succeeded, or given up
}

// Candidates are all passwords that may log in, likely ones first. Of a Pair they are both accounts'.
func (p *Passwords) Candidates() []lessor.Secret {
	var all []lessor.Secret
	for _, s := range []lessor.Secret{p.Current, p.Pending, p.Other} {
		if !s.Empty() {
			all = append(all, s)
		}
	}
	for i := len(p.Former) - 1; i >= 0; i-- {
		all = append(all, p.Former[i].Password)
	}
	return all
}

// Of is the password in force at one of an Account's accounts; empty: none is known.
func (p *Passwords) Of(a *Account, slot uint8) lessor.Secret {
	if slot == a.Slot {
		return p.Current
	}
	return p.Other
}

// Formers are the passwords that one of the accounts had, or may have, and should not.
func (p *Passwords) Formers(slot uint8) (all []Former) {
	for _, f := range p.Former {
		if f.Slot == slot {
			all = append(all, f)
		}
	}
	return all
}

// refused is how many of those are kept that lessor never knew to be in force.
func (p *Passwords) refused(slot uint8) (n int) {
	for _, f := range p.Formers(slot) {
		if f.Version == 0 {
			n++
		}
	}
	return n
}

// Turn is the slot of the account whose password is changed next: the other one's, where two take turns.
func (a *Account) Turn() uint8 {
	if a.Pair && a.Version != 0 {
		return 1 - a.Slot
	}
	return a.Slot
}

// Begin records at now that somebody goes and brings a password into force: the one that is pending already, else fresh.
// Nobody else does for a moment, Head.
func (a *Account) Begin(p *Passwords, fresh lessor.Secret, now time.Time) {
	if a.Pending == 0 {
		a.Pending, p.Pending, a.Loose = a.Version+1, fresh, 0
		if a.Outgoing != 0 {
			a.Pending = a.Outgoing // in its place; nobody is told
		}
		a.Since = now
	}
	a.Loose++
	a.Retry = now.Add(Head)
}

// Untouched records that an attempt has certainly changed nothing.
func (a *Account) Untouched() {
	if a.Loose > 0 {
		a.Loose--
	}
}

// mostRefused is how many refused passwords of an account are kept of which nobody knows whether they are in force.
const mostRefused = 8

// Withdraw gives up a pending password that the target refused, if no attempt at it may still land or is under way. Unless it is proven dead it
// is kept: a target may say that it refused, and have done it. What was begun is to be done all the same, with another password; but one of a target that
// refuses whatever it is given, and does not show what is in force, stays pending after a while, and is tried again: else there would be more and more.
func (a *Account) Withdraw(p *Passwords, dead bool, now time.Time) {
	if a.Pending == 0 || a.Loose > 0 || !dead && p.refused(a.Turn()) >= mostRefused {
		return
	}
	if !dead {
		p.Former = append(p.Former, Former{Slot: a.Turn(), Password: p.Pending, Until: now})
		a.watch(now)
	}
	a.Pending, p.Pending = 0, lessor.Secret{}
	if a.Outgoing == 0 && (a.Due.IsZero() || now.Before(a.Due)) {
		a.Due = now
	}
}

// watch has what came before tried once more, when nothing of it can land any more.
func (a *Account) watch(now time.Time) {
	if a.Check.IsZero() {
		a.Check = now.Add(Watch)
	}
}

// Confirm records that the pending password is in force since now: that of the account that is in force, of the other one, which is by that, or of the
// one that is retired.
func (a *Account) Confirm(p *Passwords, s Schedule, now time.Time) {
	switch {
	case a.Outgoing != 0:
		a.retire(p, now)
	case a.Turn() != a.Slot:
		a.promote(p, now)
		a.advance(a.Pending, s, now)
	default:
		a.supersede(p, now)
		p.Current = p.Pending
		a.advance(a.Pending, s, now)
	}
	a.Pending, p.Pending, a.Loose, a.New = 0, lessor.Secret{}, 0, false
	a.Attempts, a.LastError, a.Retry = 0, "", time.Time{}
	a.Since = now
	a.watch(now)
}

// advance makes version the one in force since now.
func (a *Account) advance(version uint64, s Schedule, now time.Time) {
	a.Version, a.Rotated, a.Cause = version, now, ""
	a.Due = s.Next(now)
}

// Import records a password that somebody else put into force.
func (a *Account) Import(p *Passwords, password lessor.Secret, now time.Time) {
	a.supersede(p, now)
	a.Version, p.Current = a.Version+1, password
	a.Foreign = a.Version
	if a.Pending != 0 {
		a.Pending = a.Version + 1
	}
	if len(p.Former) > 0 {
		a.watch(now)
	}
}

// Adopt records that somebody else put into force as version what lessor did not make, and answers for what was before: nobody retires that. It is not for
// while a rotation is under way.
func (a *Account) Adopt(p *Passwords, password lessor.Secret, version uint64) {
	a.Version, a.Foreign, a.From, p.Current = version, version, 0, password
	p.Former = slices.DeleteFunc(p.Former, func(f Former) bool { return f.Password.Equal(password) })
}

// Recall keeps a password, besides those that are kept, of which somebody says that it may be in force, and has all be tried.
func (a *Account) Recall(p *Passwords, password lessor.Secret, now time.Time) {
	if password.Empty() || password.Equal(p.Current) {
		return
	}
	if !slices.ContainsFunc(p.Candidates(), password.Equal) {
		p.Former = append(p.Former, Former{Slot: a.Slot, Password: password, Until: now})
	}
	a.Check = now
}

func (a *Account) supersede(p *Passwords, now time.Time) {
	if !p.Current.Empty() {
		p.Former = append(p.Former, Former{Version: a.Version, Slot: a.Slot, Password: p.Current, Until: now})
	}
}

// Proven records that at now the password in force logged in: an account has one password, so those before it are dead, but
// for those so recent that an attempt may be under way. What is kept of a Pair's other account is not proven by that.
func (a *Account) Proven(p *Passwords, now time.Time) {
	a.Attempts, a.LastError, a.Retry = 0, "", time.Time{}
	a.forget(p, a.Slot, now)
}

// forget drops what an account had so long ago that it cannot come again, and has all that is left tried later. One account has all of it, whichever of a
// Pair's two it was in its time: what nobody would forget would be tried again at once, for ever.
func (a *Account) forget(p *Passwords, slot uint8, now time.Time) {
	a.Check = time.Time{}
	kept := p.Former[:0]
	for _, f := range p.Former {
		if (f.Slot == slot || !a.Pair) && !now.Before(f.Until.Add(Watch)) {
			continue
		}
		kept = append(kept, f)
		if at := f.Until.Add(Watch); a.Check.Before(at) {
			a.Check = at
		}
	}
	p.Former = kept
}

// Reschedule makes the next rotation due by another schedule, from a time on. One for which there is a cause is due when it was, whatever the schedule says.
func (a *Account) Reschedule(s Schedule, from time.Time) {
	if a.Cause == "" {
		a.Due = s.Next(from)
	}
}

// Asked is the cause of a rotation that somebody asked for while another one was under way. Who gives it up does not want it any more; other causes stay.
const Asked = "asked for"

// Demand makes a rotation due at a time, whatever the schedule says, and keeps why: cause is a fixed text, for the audit trail. One that is under way waits
// for its end first. It reports whether anything changed: it did not if a password is on its way, in whose place this one would come, or if
// a rotation was demanded already, as soon as this one; one that was only Asked for is demanded from now on.
func (a *Account) Demand(cause string, at time.Time) bool {
	sooner := a.Due.IsZero() || at.Before(a.Due)
	if a.Phase() == Setting || (a.Demanded() || a.Cause == cause) && !sooner {
		return false
	}
	if sooner {
		a.Due = at
	}
	if cause != Asked || !a.Demanded() {
		a.Cause = cause
	}
	return true
}

// Spared is when, from now on, what any reader can bring about may begin a rotation: not sooner after the last than a schedule may have it. Else one who
// takes and gives back in a loop would keep the target and all other readers busy, and what is to be proven dead would become more and more.
func (a *Account) Spared(now time.Time) time.Time {
	if next := a.Rotated.Add(ShortestPeriod); !a.Rotated.IsZero() && now.Before(next) {
		return next
	}
	return now
}

// Demanded reports whether a rotation is due, or under way, that who gives one up does not give up: there is a cause.
func (a *Account) Demanded() bool { return a.Cause != "" && a.Cause != Asked }

// longestError is how much of an error is kept, in bytes.
const longestError = 300

// mostFormer is how many former passwords of an account are kept before nobody gets another one made by asking for it. Schedules leave fewer than fifty: as many as
// come within Watch at their shortest, two at a time.
const mostFormer = 64

// Room says at now why an account gets no other password by somebody's asking for it, and when to ask again: whoever asks in a loop would have more and more kept and
// tried, until they are proven dead. One that is on its way already makes no more of them. What is due, or demanded, is not asked for.
func (a *Account) Room(p *Passwords, now time.Time) error {
	if a.Pending != 0 || len(p.Former) < mostFormer {
		return nil
	}
	return fmt.Errorf("it was rotated so often that %d former values are kept until each is proven dead, which the oldest are at %s: ask again after that", len(p.Former), later(now, a.Check).Format(time.RFC3339))
}

// Cut records that an attempt ended before the target had answered, since whoever made it was ended: that is no failure, and whoever comes next need not wait. What
// it has sent may still land.
func (a *Account) Cut() { a.Retry = time.Time{} }

// Failed records an attempt that failed; jitter is in [0, 1].
func (a *Account) Failed(err error, now time.Time, jitter float64) {
	a.Attempts++
	a.LastError = err.Error()
	if len(a.LastError) > longestError {
		a.LastError = a.LastError[:longestError]
	}
	a.Retry = now.Add(Backoff(a.Attempts, jitter))
}

// longestBackoff is the longest wait after a failure.
const longestBackoff = 10 * time.Minute

// Backoff is the wait after so many failures: it doubles from a second to ten minutes; jitter, in [0, 1], takes up to half off.
func Backoff(failures uint32, jitter float64) time.Duration {
	d := longestBackoff
	if failures <= 10 {
		d = min(d, time.Second<<max(failures, 1)>>1)
	}
	return d/2 + time.Duration(float64(d/2)*jitter)
}

// Step is what is to be done with an account.
type Step uint8

const (
	Nothing  Step = iota // but to look again at Account.When
	Rotate               // record a new password, and bring it into force
	Resume               // bring the pending one into force
	Prove                // try the one in force, and those before it
	Miss                 // the window of this rotation is over: wait for the next (Account.Skip)
	Watching             // look who uses the outgoing account, and decide whether it is waited for any longer (Account.Weigh)
	Retire               // record a password for the outgoing account that nobody is told, and bring it into force
	Settle               // tell those who hold versions that are proven dead (Account.Dead)
	Yield                // give up the rotation under way (Account.GiveUp)
)

// Step decides what is to be done at now, by itself.
func (a *Account) Step(s Schedule, now time.Time) Step {
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	switch {
	case now.Before(a.Retry):
		return Nothing
	case a.Abort:
		return Yield
	case a.Pending != 0:
		return Resume
	case a.Phase() == Proving:
		return Prove
	case a.Phase() == Retiring:
		return Retire
	case a.Dead > a.Settled:
		return Settle
	case a.Phase() == Waiting && due(a.Look):
		return Watching
	case a.Outgoing == 0 && due(a.Due):
		if a.Cause == "" && s.Missed(a.Due, now) {
			return Miss
		}
		return Rotate
	case due(a.Check):
		return Prove
	}
	return Nothing
}

// Skip gives up the rotation that is due, for the one after now.
func (a *Account) Skip(s Schedule, now time.Time) { a.Due = s.Next(now) }

// immediately is the time of what is to be done next with an account whose rotation is under way: in front of all that has one.
var immediately = time.UnixMilli(0)

// When is when the account is to be looked at next; zero: never.
func (a *Account) When() time.Time {
	next := a.Check
	turn := a.Due
	if a.Phase() == Waiting {
		turn = a.Look
	}
	if !turn.IsZero() && (next.IsZero() || turn.Before(next)) {
		next = turn
	}
	if a.Abort || a.Pending != 0 || a.Phase() > Waiting || a.Phase() == Waiting && a.Looked.IsZero() || a.Dead > a.Settled {
		next = immediately
	}
	if !next.IsZero() && next.Before(a.Retry) {
		next = a.Retry
	}
	return next
}

// Overdue reports whether what should be done with the account has not been for longer than grace, or fails. Holders may take as long as it would take to
// see that nobody uses the password any more.
func (a *Account) Overdue(now time.Time, grace time.Duration) bool {
	switch {
	case a.Attempts > 0:
		return true
	case a.Outgoing != 0:
		return now.Sub(a.Since) > a.QuietFor+grace
	}
	return !a.Due.IsZero() && now.Sub(a.Due) > grace
}

// Rows of a mount. The queues are ordered by target and time.
const (
	accountRows = "turn/" // + name, in store.Engine and store.Secrets
	queueRows   = "due/"  // + target, NUL, TimeKey, name; in store.Engine
)

func accountKey(t store.Table, namespace uint32, mount, name string) store.Key {
	return store.Key{Table: t, Name: store.MountKey(namespace, mount, accountRows, name)}
}

func queuePrefix(namespace uint32, mount string) string {
	return store.MountKey(namespace, mount, queueRows)
}

func (a *Account) queueName(namespace uint32, mount string) string {
	return queuePrefix(namespace, mount) + a.Target + "\x00" + store.TimeKey(a.Next) + a.Name
}

var encoding, decoding = func() (cbor.EncMode, cbor.DecMode) {
	o := cbor.CoreDetEncOptions()
	o.Time, o.TimeTag = cbor.TimeUnixDynamic, cbor.EncTagNone
	e, err := o.EncMode()
	if err != nil {
		panic(err)
	}
	d, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		panic(err)
	}
	return e, d
}()

// exact makes times what a row says of them: UTC, to the microsecond.
func (a *Account) exact() {
	times := []*time.Time{&a.Rotated, &a.Due, &a.Check, &a.Retry, &a.Next, &a.Since, &a.Retired, &a.Look, &a.Looked, &a.QuietSince, &a.SeenAt}
	for i := range a.Seen {
		times = append(times, &a.Seen[i].Since)
	}
	for i := range a.Stragglers {
		times = append(times, &a.Stragglers[i].Last, &a.Stragglers[i].Lapsed, &a.Stragglers[i].Since)
	}
	for _, t := range times {
		if !t.IsZero() {
			*t = t.Round(time.Microsecond).UTC()
		}
	}
}

// Load reads an account of a mount. One that is not there has the row's Version 0, and is empty. One whose row cannot be read is a *store.Damage.
func Load(v store.View, namespace uint32, mount, name string) (*Account, store.Row, error) {
	a := &Account{Name: name}
	row, err := v.Get(accountKey(store.Engine, namespace, mount, name))
	if err != nil || !row.Exists() {
		return a, row, err
	}
	a.Loose = 1 // what versions that did not count left pending may still land
	if err := a.decode(row.Value); err != nil {
		return nil, row, &store.Damage{Key: row.Key, Why: err.Error()}
	}
	if a.exact(); a.Since.IsZero() {
		a.Lent() // versions that did not keep this forgot holders whose leases had ended
	}
	return a, row, nil
}

// Save puts the account, required to be still what row was, and moves it to its place in the queue.
func Save(txn *store.Txn, row store.Row, a *Account) error {
	namespace, mount, _ := store.SplitMountKey(row.Name)
	from, to := "", ""
	if was := (Account{Name: a.Name}); row.Exists() && decoding.Unmarshal(row.Value, &was) == nil && !was.Next.IsZero() {
		was.exact() // a row keeps fractions of a second as what is next to them, which may be the millisecond before, or after
		from = was.queueName(namespace, mount)
	}
	a.Next = a.When()
	a.exact()
	if !a.Next.IsZero() {
		to = a.queueName(namespace, mount)
	}
	if from != to && from != "" {
		txn.Delete(store.Engine, from)
	}
	if from != to && to != "" {
		txn.Put(store.Engine, to, nil)
	}
	value, err := a.encode()
	if err != nil {
		return err
	}
	txn.Require(row)
	txn.Put(row.Table, row.Name, value)
	return nil
}

// decode reads a row. What this version does not know it leaves as it is: a server of the version after may run beside, and what it knows of who is in force must not
// be lost when this one puts the row anew.
func (a *Account) decode(value []byte) error {
	if err := decoding.Unmarshal(value, a); err != nil {
		return err
	}
	if err := decoding.Unmarshal(value, &a.later); err != nil {
		return err
	}
	maps.DeleteFunc(a.later, func(key uint64, _ cbor.RawMessage) bool { return key <= known })
	return nil
}

// encode is the row's value.
func (a *Account) encode() ([]byte, error) {
	value, err := encoding.Marshal(a)
	if err != nil || len(a.later) == 0 {
		return value, err
	}
	all := maps.Clone(a.later)
	if err := decoding.Unmarshal(value, &all); err != nil {
		return nil, err
	}
	return encoding.Marshal(all)
}

// Drop deletes an account with its passwords.
func Drop(txn *store.Txn, row store.Row, a *Account) {
	if !row.Exists() {
		return
	}
	namespace, mount, _ := store.SplitMountKey(row.Name)
	txn.Require(row)
	if !a.Next.IsZero() {
		txn.Delete(store.Engine, a.queueName(namespace, mount))
	}
	txn.Delete(row.Table, row.Name)
	txn.Delete(store.Secrets, row.Name)
}

// SecretKey names the row of an account's passwords.
func SecretKey(namespace uint32, mount, name string) store.Key {
	return accountKey(store.Secrets, namespace, mount, name)
}

// sealed is how Passwords are kept. CBOR keys are on disk: never renumber, only append.
type sealed struct {
	Current string         `cbor:"1,keyasint,omitempty"`
	Pending string         `cbor:"2,keyasint,omitempty"`
	Former  []sealedFormer `cbor:"3,keyasint,omitempty"`
	Other   string         `cbor:"4,keyasint,omitempty"`
}

type sealedFormer struct {
	Version  uint64    `cbor:"1,keyasint"`
	Password string    `cbor:"2,keyasint"`
	Until    time.Time `cbor:"3,keyasint"`
	Slot     uint8     `cbor:"4,keyasint,omitempty"`
}

// Open reads the opened value of a row of passwords; an empty one holds none.
func Open(value lessor.Secret) (*Passwords, error) {
	p := &Passwords{}
	if value.Empty() {
		return p, nil
	}
	var s sealed
	if err := decoding.Unmarshal([]byte(value.Reveal()), &s); err != nil {
		return nil, errors.New("rotation: the passwords of an account are damaged")
	}
	p.Current, p.Pending, p.Other = lessor.NewSecret(s.Current), lessor.NewSecret(s.Pending), lessor.NewSecret(s.Other)
	for _, f := range s.Former {
		p.Former = append(p.Former, Former{Version: f.Version, Slot: f.Slot, Password: lessor.NewSecret(f.Password), Until: f.Until.UTC()})
	}
	return p, nil
}

// Keep puts the passwords in row's place, provided that it is as it was read.
func Keep(txn *store.Txn, row store.Row, p *Passwords) error {
	s := sealed{Current: p.Current.Reveal(), Pending: p.Pending.Reveal(), Other: p.Other.Reveal()}
	for _, f := range p.Former {
		s.Former = append(s.Former, sealedFormer{Version: f.Version, Slot: f.Slot, Password: f.Password.Reveal(), Until: f.Until.Round(time.Microsecond).UTC()})
	}
	value, err := encoding.Marshal(&s)
	if err != nil {
		return err
	}
	txn.Require(row)
	txn.Put(row.Table, row.Name, value)
	return nil
}
