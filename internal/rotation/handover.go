package rotation

import (
	"time"

	"github.com/lessor-dev/lessor/internal/lease"
	"github.com/lessor-dev/lessor/internal/lessor"
)

// Two accounts with equal rights take turns. A rotation gives the one that is not in force a password, and promotes it; from then on readers are shown
// that one. The other, which is outgoing, stays as it is while those who use it move, each in its own time. Then it is retired, and proven dead.

// Phase is how far a rotation is.
type Phase uint8

const (
	Idle     Phase = iota // nothing is under way
	Setting               // a password is recorded, set and tried, and readers are not shown it yet
	Waiting               // it is in force, and those who hold the outgoing one are waited for
	Retiring              // the outgoing account gets a password that nobody is told
	Proving               // it has it, and each password that it had before is to be refused
)

var phases = [...]string{"idle", "set", "wait", "retire", "prove"}

// String is what people are told.
func (p Phase) String() string { return phases[p] }

// Phases are all that there are, in their order.
func Phases() (all []Phase) {
	for i := range phases {
		all = append(all, Phase(i))
	}
	return all
}

// Phase follows from what is on record.
func (a *Account) Phase() Phase {
	switch {
	case a.Outgoing == 0 && a.Pending == 0:
		return Idle
	case a.Outgoing == 0:
		return Setting
	case a.Over == 0:
		return Waiting
	case a.Retired.IsZero():
		return Retiring
	}
	return Proving
}

// Over is why nobody waits any more for those who hold an outgoing password.
type Over uint8

const (
	Acknowledged Over = iota + 1 // each of them has said that it uses nothing so old, and the target shows no use, if it shows any
	Unused                       // the target has shown no use at each look for long enough
	Expired                      // the grace has passed
	Told                         // somebody said so
)

var overs = [...]string{"", "every holder has moved, and the target shows no use", "the target has shown no use for long enough", "the grace has passed", "somebody said not to wait any longer"}

// String is what people are told, and the audit trail's text.
func (o Over) String() string { return overs[o] }

// WaitOver is Over as people are told it of the account.
func (a *Account) WaitOver() string {
	if a.Blind && a.Over == Acknowledged {
		return "every holder has moved; the target does not show who uses it"
	}
	return a.Over.String()
}

// Forced reports whether somebody may use the outgoing account still: then its sessions are ended, too.
func (o Over) Forced() bool { return o >= Expired }

const (
	firstLook = 500 * time.Millisecond // after one that showed something new; doubles from there
	LastLook  = 30 * time.Second       // between two looks at most
	gap       = 3 * LastLook           // between two looks: what was before is no evidence any more
)

// DefaultQuiet and ShortestQuiet are how long no use must be seen to be evidence.
const (
	DefaultQuiet  = 10 * time.Minute
	ShortestQuiet = 5 * time.Second
)

// MostSeen and MostStragglers are how many are named; of others it is known how many they are.
const (
	MostSeen       = 16
	MostStragglers = 64
)

// Seen are sessions of an outgoing account that come from one place and call themselves the same. CBOR keys are on disk: never renumber, only append.
type Seen struct {
	Client      string    `cbor:"1,keyasint,omitempty"` // address; empty: the target does not tell
	Application string    `cbor:"2,keyasint,omitempty"` // the client's own word
	Count       uint32    `cbor:"3,keyasint"`
	Since       time.Time `cbor:"4,keyasint,omitempty"` // of the oldest, by the target's clock; zero: it does not tell
}

// Straggler is a holder that had not moved when the wait for it ended, or, without a Lease, sessions of which nobody knows whose they are. CBOR keys are on
// disk: never renumber, only append.
type Straggler struct {
	Holder lease.Holder `cbor:"1,keyasint,omitempty"`
	Owner  string       `cbor:"2,keyasint,omitempty"`
	Lease  string       `cbor:"3,keyasint,omitempty"`
	Oldest uint64       `cbor:"4,keyasint,omitempty"` // version that it may use
	Newest uint64       `cbor:"8,keyasint,omitempty"` // that it has read
	Last   time.Time    `cbor:"5,keyasint,omitempty"` // that it read; of sessions: that they were seen
	Lapsed time.Time    `cbor:"6,keyasint,omitempty"`
	Seen   `cbor:"7,keyasint,omitempty"`
}

// first is the version as which the password in force was handed out first.
func (a *Account) first() uint64 {
	if a.From != 0 {
		return a.From
	}
	return a.Version
}

// InForce reports whether a version's password is the one in force: that of an older version is where it was taken back (GiveUp). Versions that
// were given up in between count as well.
func (a *Account) InForce(version uint64) bool { return version >= a.first() && version <= a.Version }

// MayReturn reports whether a version is outgoing in a rotation that may be given up: then it is in force again.
func (a *Account) MayReturn(version uint64) bool {
	_, ok := a.Abortable()
	return ok && a.Phase() == Waiting && version >= a.OutFrom && version <= a.Outgoing
}

// Strangers reports whether others than those on record may know the password in force.
func (a *Account) Strangers() bool { return a.Version != 0 && a.Foreign >= a.first() }

// Lent records that the password in force was handed out without a lease.
func (a *Account) Lent() { a.Foreign = max(a.Foreign, a.Version) }

// Recovered records at now that the account is as it was some time ago: the passwords that it has may have been handed out since, and succeeded. All are to be
// tried.
func (a *Account) Recovered(now time.Time) {
	a.Foreign = max(a.Foreign, a.Version, a.Pending)
	a.Check, a.Retry = now, time.Time{}
}

// promote makes the other account's pending password the one in force since now, and waits for those who hold what was.
func (a *Account) promote(p *Passwords, now time.Time) {
	a.bury(p, now)
	p.Other, p.Current = p.Current, p.Pending
	a.Outgoing, a.OutFrom, a.From = a.Version, a.first(), 0
	a.Slot = 1 - a.Slot
	a.Stragglers, a.Beyond, a.Seen, a.SeenAt = nil, 0, nil, time.Time{}
	a.await(now)
}

// bury keeps the other account's password until it is proven dead, since it gets another one.
func (a *Account) bury(p *Passwords, now time.Time) {
	if p.Other.Empty() {
		return
	}
	f := Former{Slot: 1 - a.Slot, Password: p.Other, Until: now}
	if a.Outgoing != 0 {
		f.Version = a.Outgoing
	}
	p.Former = append(p.Former, f)
}

// await begins a wait at now, with a look at once.
func (a *Account) await(now time.Time) {
	a.Over, a.Retired = 0, time.Time{}
	a.Look, a.Looked, a.Looks, a.Behind, a.QuietSince = now, time.Time{}, 0, 0, time.Time{}
}

// Deadline is when nobody is waited for any longer; zero: never, or nobody is.
func (a *Account) Deadline() time.Time {
	if a.Phase() != Waiting || a.Grace == 0 {
		return time.Time{}
	}
	return a.Since.Add(a.Grace)
}

// Holding are those of the users of the account's secret who may use the outgoing password still. Whose access was revoked is nobody to wait for.
func (a *Account) Holding(users []lease.User) (all []lease.User) {
	for _, u := range users {
		if u.Born == a.Born && u.Oldest <= a.Outgoing && u.Newest >= a.OutFrom && !u.Revoked {
			all = append(all, u)
		}
	}
	return all
}

// Sighted records what the target, asked at one time, has shown by now: who uses the outgoing account. What was between is not evidence of quiet.
func (a *Account) Sighted(seen []Seen, asked, now time.Time) {
	switch {
	case len(seen) > 0:
		a.Seen, a.SeenAt, a.QuietSince = seen, now, time.Time{}
	case a.QuietSince.IsZero(), now.Sub(a.Looked) > gap:
		a.QuietSince = now
	}
	a.Looked = asked
	a.Attempts, a.LastError, a.Retry = 0, "", time.Time{}
}

// Weigh decides at now whether those who hold the outgoing password are waited for any longer. holding are who has not moved; known: they are all that lessor
// gave it to. It says when to look again. Only a look that was Sighted, and none that Failed since, is evidence, but a deadline needs none.
func (a *Account) Weigh(holding int, known bool, now time.Time) Over {
	quiet := time.Duration(-1)
	if !a.QuietSince.IsZero() && a.Attempts == 0 {
		quiet = max(0, a.Looked.Sub(a.QuietSince))
	}
	deadline := a.Deadline()
	switch {
	case quiet >= 0 && holding == 0 && known && a.OutFrom > a.Foreign:
		return Acknowledged
	case !a.Blind && quiet >= max(a.QuietFor, ShortestQuiet):
		return Unused
	case !deadline.IsZero() && !now.Before(deadline):
		return Expired
	}
	if a.Looks++; uint32(holding) != a.Behind {
		a.Looks, a.Behind = 0, uint32(holding) // they are moving
	}
	a.Look = now.Add(min(LastLook, firstLook<<min(a.Looks, 8)))
	if quiet >= 0 && !a.Blind {
		a.Look = earlier(a.Look, a.QuietSince.Add(max(a.QuietFor, ShortestQuiet)))
	}
	if !deadline.IsZero() {
		a.Look = earlier(a.Look, deadline)
	}
	return 0
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Stirrable is from when on a look before its time may be had, should a holder have moved; zero: there is none that is waited for, or the next look is as soon.
func (a *Account) Stirrable() time.Time {
	at := a.Looked.Add(firstLook)
	if a.Phase() != Waiting || a.Abort || a.Looked.IsZero() || !at.Before(a.Look) || a.Retry.After(at) {
		return time.Time{}
	}
	return at
}

// Stir has who uses the outgoing account looked at now, since a holder has moved. It reports whether that changes anything.
func (a *Account) Stir(now time.Time) bool {
	if at := a.Stirrable(); at.IsZero() || now.Before(at) || !now.Before(a.Look) {
		return false
	}
	a.Look = now
	return true
}

// Close ends the wait at now, and names those who have not moved: holding, and whoever was seen last. Who logs in anew for each query may have
// been between two when the target was asked; had nobody been seen for long enough, there would be nobody to name. From here on there is no way back.
func (a *Account) Close(why Over, holding []lease.User, now time.Time) {
	a.Over, a.Since, a.Retry = why, now, time.Time{}
	a.Stragglers, a.Beyond = nil, 0
	if !why.Forced() {
		return
	}
	for _, u := range holding {
		a.name(Straggler{Holder: u.Holder, Owner: u.Owner, Lease: u.Lease, Oldest: u.Oldest, Newest: u.Newest, Last: u.Last, Lapsed: u.Lapsed})
	}
	for _, s := range a.Seen {
		a.name(Straggler{Seen: s, Last: a.SeenAt})
	}
}

func (a *Account) name(s Straggler) {
	if len(a.Stragglers) == MostStragglers {
		a.Beyond++
		return
	}
	a.Stragglers = append(a.Stragglers, s)
}

// retire records that the outgoing account has the pending password since now, which nobody is told.
func (a *Account) retire(p *Passwords, now time.Time) {
	a.bury(p, now)
	p.Other, a.Retired = p.Pending, now
}

// Buried records, after Proven, that at now the target refused each password that a Pair's other account had before. That ends a rotation. What is
// proven dead by then is settled with those who hold it, where there are any (Settle).
func (a *Account) Buried(p *Passwords, now time.Time) {
	if !a.Pair {
		if len(p.Former) == 0 && a.Pending == 0 && a.Version > 0 {
			a.Dead = a.Version - 1
		}
		return
	}
	a.forget(p, 1-a.Slot, now)
	if a.Phase() != Proving {
		return
	}
	if a.first() > a.Outgoing { // else what was given up is dead, and what came before it in force again
		a.Dead = a.Outgoing
	}
	a.Outgoing, a.OutFrom, a.Back, a.Over, a.Retired = 0, 0, false, 0, time.Time{}
	a.Look, a.Looked, a.Looks, a.Behind, a.QuietSince = time.Time{}, time.Time{}, 0, 0, time.Time{}
	a.Since = now
}

// Abortable says whether the rotation under way can be given up, and why not.
func (a *Account) Abortable() (why string, ok bool) {
	switch a.Phase() {
	case Idle:
		return "no rotation is under way", false
	case Setting:
		if a.Version == 0 {
			return "it is the first rotation: there is no password to go back to", false
		}
	case Waiting:
		if a.Back {
			return "it has been given up already: what is waited for are those who read the password that it had brought", false
		}
	default:
		return "the outgoing account is being retired: what its holders have may be refused already", false
	}
	return "", true
}

// GiveUp gives up, at now, the rotation under way, as somebody wanted (Abort). What was not promoted yet is withdrawn, and kept until it is proven dead: what is
// in force stays so. What was promoted is outgoing from now on; what was outgoing is in force again, as another version, since versions never run
// back. What was demanded since somebody should not know the password in force any more is due again, at once. It reports whether it did: it is too late for one that
// is being retired.
func (a *Account) GiveUp(p *Passwords, s Schedule, now time.Time) bool {
	a.Abort = false
	if _, ok := a.Abortable(); !ok {
		return false
	}
	a.Attempts, a.LastError, a.Retry = 0, "", time.Time{}
	a.Since = now
	if a.Phase() == Setting {
		p.Former = append(p.Former, Former{Slot: a.Turn(), Password: p.Pending, Until: now})
		a.Pending, p.Pending, a.Loose = 0, lessor.Secret{}, 0
		if a.Check, a.Due = now, now; !a.Demanded() {
			a.Due, a.Cause = s.Next(now), ""
		}
		return true
	}
	from := a.OutFrom
	a.Outgoing, a.OutFrom, a.Back = a.Version, a.first(), true
	a.Slot, a.From = 1-a.Slot, from
	p.Current, p.Other = p.Other, p.Current
	a.Seen, a.SeenAt = nil, time.Time{}
	a.await(now)
	a.advance(a.Outgoing+1, s, now)
	return true
}
